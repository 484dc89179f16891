"""Emptying rows of a frozen artifact on a person's request, so that it verifies as erased and not as corrupt.

The artifact keeps its name and manifest. Beside them ``erased.json`` lists which rows were emptied, the digest that each
had, and the digests of the files as they are now; :func:`curation.artifacts.verify_folder` accepts a file in either
state, and the row check takes the listed digest for a row that is empty. So an erasure can take text away and nothing
else: a row that holds any text must still have the digest that it was frozen with.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from io import BytesIO
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from curation.artifacts import ERASED, read_erased, write_atomic
from curation.records import MESSAGES, canonical_json
from curation.snapshot import rows

_TEXTS = ("completion", "prompt")
_TRACES = ("embedding",)


def holders(folder: Path, records: Collection[str]) -> set[str]:
    """Which of the records an artifact's Parquet files hold text of."""
    found: set[str] = set()
    for path in _tables(folder):
        names = set(pq.read_schema(path).names)
        if "record" in names and names & {*_TEXTS, *_TRACES, "messages"}:
            column = pq.read_table(path, columns=["record"])["record"]
            held = column.filter(pc.is_in(column, value_set=pa.array(sorted(records), pa.string())))
            found |= set(held.to_pylist())
    return found


def empty_rows(folder: Path, records: Collection[str]) -> set[str]:
    """Empty every text of the records in an artifact's Parquet files, and return the records that were there.

    Can be killed at any point and called again: what is to be erased is listed first, with the digests of the files
    before they are written, and each file is replaced whole.
    """
    found = holders(folder, records)
    if not found:
        return found
    listed = read_erased(folder)
    fresh = {}
    for path in _tables(folder):
        whole = pq.read_table(path)
        if "record" not in whole.column_names:
            continue
        gone = pc.fill_null(pc.is_in(whole["record"], value_set=pa.array(sorted(found), pa.string())), False)
        if not pc.any(gone).as_py():
            continue
        relpath = path.relative_to(folder).as_posix()
        listed["rows"] |= _digests(whole.filter(gone), listed["rows"])
        fresh[relpath] = _bytes(emptied(whole, gone), path)
    for relpath, data in fresh.items():
        listed["files"][relpath] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
    write_atomic(folder / ERASED, canonical_json(listed) + b"\n")
    for relpath, data in fresh.items():
        write_atomic(folder / relpath, data)
    return found


def _tables(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.parquet"))


def _bytes(table: pa.Table, old: Path) -> bytes:
    """The table as the file had it: the same row groups and compression, without the old pages."""
    with pq.ParquetFile(old) as file:
        group = max((file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)), default=1)
        kind = file.metadata.row_group(0).column(0).compression if file.num_row_groups else "ZSTD"
    sink = BytesIO()
    pq.write_table(table, sink, compression=kind.lower(), row_group_size=max(group, 1))
    return sink.getvalue()


def _digests(gone: pa.Table, before: dict[str, list[str]]) -> dict[str, list[str]]:
    """The digests of the rows that go, by record; rows that are empty already keep the one that is listed."""
    if "messages" not in gone.column_names or "split" not in gone.column_names:
        return {record: [] for record in gone["record"].to_pylist()}
    found: dict[str, list[str]] = {}
    size = rows.DIGEST_BYTES
    for batch in rows.steps(gone):
        made = rows.digests(rows.canonical(batch))
        for i, (record, empty) in enumerate(zip(batch["record"].to_pylist(), is_empty(batch), strict=True)):
            if not empty:
                found.setdefault(record, []).append(made[i * size : (i + 1) * size].hex())
    return {record: [*before.get(record, []), *digests] for record, digests in found.items()}


def emptied(table: pa.Table, gone: pa.ChunkedArray) -> pa.Table:
    """The table with the texts of the marked rows empty and what was computed from them null; nothing else changes."""
    for name in table.column_names:
        at, column = table.column_names.index(name), table[name]
        if name in _TEXTS:
            blank = pc.if_else(pc.is_null(column), column, pa.scalar("", column.type))
            table = table.set_column(at, table.field(at), pc.if_else(gone, blank, column))
        elif name == "messages" and column.type == MESSAGES:
            new = [
                [{**message, "content": ""} for message in said or []] if out else said
                for said, out in zip(column.to_pylist(), gone.to_pylist(), strict=True)
            ]
            table = table.set_column(at, table.field(at), pa.chunked_array([pa.array(new, MESSAGES)]))
        elif name in _TRACES:
            values = [None if out else v for v, out in zip(column.to_pylist(), gone.to_pylist(), strict=True)]
            table = table.set_column(at, table.field(at), pa.chunked_array([pa.array(values, column.type)]))
    return _prompts(table, gone)


def _prompts(table: pa.Table, gone: pa.ChunkedArray) -> pa.Table:
    """The prompt of an emptied row is what its empty messages say."""
    if not {"messages", "prompt"} <= set(table.column_names):
        return table
    made = pa.chunked_array([rows.prompts(batch) for batch in rows.steps(table)] or [[]], pa.string())
    at = table.column_names.index("prompt")
    return table.set_column(at, table.field(at), pc.if_else(gone, made, table["prompt"]))


def is_empty(batch: pa.RecordBatch) -> list[bool]:
    """Which rows hold no text at all."""
    said = batch["messages"].to_pylist()
    answers = batch["completion"].to_pylist()
    return [
        not answer and all(not message["content"] for message in messages or [])
        for messages, answer in zip(said, answers, strict=True)
    ]


class Listed:
    """The row digests of an artifact's erased rows, handed out once each as the rows are met."""

    def __init__(self, folder: Path) -> None:
        self._left: dict[str, list[str]] = {r: list(d) for r, d in read_erased(folder)["rows"].items()}

    def __bool__(self) -> bool:
        return bool(self._left)

    def substitute(self, batch: pa.RecordBatch, digests: bytes) -> bytes:
        """The digests of a batch, with the listed one in the place of each empty row that was erased."""
        if not self._left:
            return digests
        size = rows.DIGEST_BYTES
        made = [digests[i : i + size] for i in range(0, len(digests), size)]
        for i, (record, empty) in enumerate(zip(batch["record"].to_pylist(), is_empty(batch), strict=True)):
            if empty and self._left.get(record):
                made[i] = bytes.fromhex(self._left[record].pop(0))
        return b"".join(made)


def without_erased(table: pa.Table, erased: Collection[str]) -> pa.Table:
    """The rows that still hold text: an emptied row is no example."""
    if not erased:
        return table
    keep = pc.invert(pc.is_in(table["record"], value_set=pa.array(sorted(erased), pa.string())))
    return table.filter(pc.fill_null(keep, True))
