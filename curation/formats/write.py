"""Rows to a file: written whole or not at all, and a row that the format cannot hold is set aside with its
reason.

JSON and Parquet hold every text as it is. CSV is opened by spreadsheets, so that a cell that one would run is
neutralised unless the caller wants it lossless.
"""

from __future__ import annotations

import csv
import gzip
import io
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import IO, Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from curation.errors import UsageError, storage_errors
from curation.formats.chat import EXTRAS, is_plain
from curation.formats.read import read
from curation.formats.rows import BadRow, Damage, Format, Mapping, Row, suggestion
from curation.formats.shaping import LOSSES, SHAPERS, alpaca, beside
from curation.records import MESSAGES

TARGETS = tuple(LOSSES)
GROUP = 5_000  # rows of a Parquet row group

# What spreadsheets take for the start of a formula, plain and full-width; space and invisible characters
# before it are skipped by some of them.
FORMULA = frozenset("=+-@\t\r\n|%＝＋－＠")
_INVISIBLE = " \u00a0\u200b\u200c\u200d\u2060\ufeff\u3000\"'"

Refuse = Callable[[BadRow], None]


@dataclass(frozen=True)
class Written:
    """How many rows were written, and how many the format could not hold."""

    rows: int
    refused: int


@dataclass(frozen=True)
class Converted:
    """How many records were read, rows written, and records set aside."""

    records: int
    rows: int
    quarantined: int


def write(
    path: str | Path,
    rows: Iterable[Row],
    *,
    to: str | None = None,
    names: Mapping | None = None,
    neutralise: bool = True,
    on_bad: Refuse | None = None,
) -> Written:
    """Write rows to ``path`` (``-`` is standard output) as ``to``: one of :data:`TARGETS`; ``jsonl`` by
    default.

    The suffix says how the objects are packed: a JSON list for ``.json``, CSV, TSV, Parquet, else JSON lines;
    ``.gz`` compresses. ``names`` are the names of the fields beside the messages. ``neutralise`` is for CSV.
    A row that the format cannot hold goes to ``on_bad``. The file appears when it is whole. No rows give a
    valid empty file. Raises ``UsageError`` for an unknown or impossible format, ``StorageFailed`` where the
    disk refuses.
    """
    to, container = _target(to, path)
    names = names or Mapping()
    count = _Count(on_bad)
    with target_file(path) as sink:
        if container == "parquet":
            _write_parquet(sink, rows, to, names, count)
        elif container in ("csv", "tsv"):
            _write_csv(sink, rows, names, count, neutralise, "\t" if container == "tsv" else ",")
        else:
            _write_json(
                sink, count.shaped(rows, lambda row: _dumped(SHAPERS[to](row, names))), container == "json"
            )
    return Written(count.rows, count.refused)


def convert(
    source: str | Path,
    target: str | Path,
    to: str | None = None,
    *,
    mapping: Mapping | None = None,
    format: Format | str | None = None,
    neutralise: bool = True,
    on_bad: Refuse | None = None,
) -> Converted:
    """Read ``source`` and write it to ``target`` in another format; every record is written or set aside.

    Bad rows, and rows that the new format cannot hold, go to ``on_bad``. Raises what :func:`read` and
    :func:`write` do.
    """
    records = bad = 0

    def good() -> Iterator[Row]:
        nonlocal records, bad
        for batch in read(source, mapping=mapping, format=format):
            records, bad = records + batch.records, bad + len(batch.bad)
            for row in batch.bad:
                if on_bad:
                    on_bad(row)
            yield from batch.rows

    written = write(target, good(), to=to, names=_plain_names(mapping), neutralise=neutralise, on_bad=on_bad)
    return Converted(records, written.rows, bad + written.refused)


def _plain_names(mapping: Mapping | None) -> Mapping:
    """The mapping for writing: a field inside another has no name of its own at the top."""
    mapping = mapping or Mapping()
    return Mapping(**{role: name for role, name in mapping.named().items() if "." not in name})


class _Count:
    """Counts what is written and what is refused."""

    def __init__(self, on_bad: Refuse | None) -> None:
        self.rows, self.refused, self.on_bad = 0, 0, on_bad

    def shaped(self, rows: Iterable[Row], shape: Callable[[Row], Any]) -> Iterator[Any]:
        """The shaped rows without those that the format refuses."""
        for row in rows:
            try:
                found = shape(row)
            except Damage as damage:
                self.refused += 1
                if self.on_bad:
                    raw = orjson.dumps([row.messages, row.completion])
                    self.on_bad(BadRow(row.line, row.offset, damage.code, damage.message, raw))
                continue
            self.rows += 1
            yield found


def _container(path: str | Path) -> str:
    """How the suffix says that objects are packed; JSON lines where it says nothing."""
    suffixes = [suffix.lower() for suffix in Path(str(path)).suffixes if suffix.lower() != ".gz"]
    return suffixes[-1][1:] if suffixes and suffixes[-1][1:] in ("json", "csv", "tsv", "parquet") else "jsonl"


def _target(to: str | None, path: str | Path) -> tuple[str, str]:
    """The format and the container of a target. Raises ``UsageError`` where they do not go together."""
    container = _container(path)
    if to in ("csv", "parquet"):
        container = container if container == "tsv" and to == "csv" else to
        to = "jsonl"
    to = "jsonl" if to is None or to == "prompt-completion" else to
    if to not in SHAPERS:
        what = f"there is no format {to!r}{suggestion(to, TARGETS)}"
        raise UsageError(what, where="--to", next=f"Use one of {', '.join(TARGETS)}")
    allowed = {"csv": ("jsonl",), "tsv": ("jsonl",), "parquet": tuple(_COLUMNS)}.get(container, (to,))
    if to not in allowed:
        raise UsageError(f"{container} cannot hold {to}", where=str(path), next="Write it to a .jsonl file")
    if container == "parquet" and (str(path) == "-" or str(path).lower().endswith(".gz")):
        raise UsageError(
            "Parquet is written to a plain file alone", where=str(path), next="Name a .parquet file"
        )
    return to, container


@contextmanager
def target_file(path: str | Path) -> Iterator[IO[bytes]]:
    """A place to write; at the end it becomes the file, and before it there is nothing to see."""
    if str(path) == "-":
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    final = Path(os.path.realpath(path))
    if final.is_dir() or not final.parent.is_dir():
        raise UsageError("this is a folder" if final.is_dir() else "there is no such folder", where=str(path))
    with storage_errors(path):
        if final.exists() and not final.is_file():  # a pipe or a device
            with open(final, "wb") as direct:
                yield direct
            return
        part = final.with_name(f".{final.name}.{os.getpid()}.part")
        try:
            with open(part, "wb") as sink:
                with _packed(sink, final) as packed:
                    yield packed
                sink.flush()
                os.fsync(sink.fileno())
            os.replace(part, final)
            _sync_folder(final.parent)
        finally:
            with suppress(FileNotFoundError):
                part.unlink()


@contextmanager
def _packed(sink: IO[bytes], final: Path) -> Iterator[Any]:
    """The sink itself, or one that compresses; without a time stamp, so that the same rows give the same
    bytes.
    """
    if final.suffix.lower() != ".gz":
        yield sink
        return
    with gzip.GzipFile("", "wb", fileobj=sink, mtime=0) as packer:
        yield packer


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _dumped(found: dict[str, Any]) -> bytes:
    try:
        return orjson.dumps(found)
    except TypeError as error:  # a row that did not come from a file
        raise Damage("not expressible", f"JSON cannot hold the record ({error})") from error


def _write_json(sink: IO[bytes], found: Iterator[bytes], listed: bool) -> None:
    if not listed:
        for line in found:
            sink.write(line + b"\n")
        return
    lead = b"[\n"
    for line in found:
        sink.write(lead + line)
        lead = b",\n"
    sink.write(b"[]\n" if lead == b"[\n" else b"\n]\n")


def neutral(cell: str) -> str:
    """The cell with an apostrophe before it where a spreadsheet would run it.

    >>> neutral("=HYPERLINK(1)"), neutral("5 - 3")
    ("'=HYPERLINK(1)", '5 - 3')
    """
    bare = cell.lstrip(_INVISIBLE)
    return f"'{cell}" if bare and bare[0] in FORMULA else cell


def _write_csv(
    sink: IO[bytes], rows: Iterable[Row], names: Mapping, count: _Count, neutralise: bool, delimiter: str
) -> None:
    side = [getattr(names, role) or role for role in ("id", "gold", "group", "lang", "time")]
    columns = ["prompt", "completion", *side, "tags"]
    if len(set(columns)) < len(columns):
        raise _same_names()
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, delimiter=delimiter, quoting=csv.QUOTE_ALL, lineterminator="\n")
    clean = neutral if neutralise else str
    for cells in chain([columns], count.shaped(rows, lambda row: _cells(row, names, columns))):
        writer.writerow([clean(cell) for cell in cells])
        sink.write(buffer.getvalue().encode())
        buffer.seek(0)
        buffer.truncate()


def _same_names() -> UsageError:
    what = "two columns would have one name"
    return UsageError(what, where="--map", next="Rename the field in the source")


def _cells(row: Row, names: Mapping, columns: list[str]) -> list[str]:
    if len(row.messages) != 1 or row.messages[0]["role"] != "user":
        raise Damage("not expressible", "CSV holds a prompt of one message")
    side = beside(row, names)
    tags = _dumped(row.tags).decode() if row.tags else ""
    texts = {"prompt": row.messages[0]["content"], "completion": row.completion or "", "tags": tags, **side}
    return [texts.get(column, "") for column in columns]


_TEXT = pa.string()
_SIDE = [("id", _TEXT), ("gold", _TEXT), ("group", _TEXT), ("lang", _TEXT), ("time", _TEXT), ("tags", _TEXT)]
_COLUMNS: dict[str, list[tuple[str, pa.DataType]]] = {
    "jsonl": [("messages", MESSAGES), ("completion", _TEXT)],
    "chat": [("messages", MESSAGES)],
    "trl": [("prompt", MESSAGES), ("completion", MESSAGES)],
    "alpaca": [
        ("instruction", _TEXT),
        ("input", _TEXT),
        ("output", _TEXT),
        ("system", _TEXT),
        ("history", pa.list_(pa.list_(_TEXT))),
    ],
}


def _write_parquet(sink: IO[bytes], rows: Iterable[Row], to: str, names: Mapping, count: _Count) -> None:
    schema = pa.schema([*_COLUMNS[to], *((getattr(names, n, None) or n, kind) for n, kind in _SIDE)])
    if len(set(schema.names)) < len(schema.names):
        raise _same_names()
    with pq.ParquetWriter(sink, schema, compression="zstd") as writer:
        group: list[dict[str, Any]] = []
        for found in count.shaped(rows, lambda row: _columns(row, to, names)):
            group.append(found)
            if len(group) == GROUP:
                writer.write_table(pa.Table.from_pylist(group, schema))
                group = []
        writer.write_table(pa.Table.from_pylist(group, schema))


def _columns(row: Row, to: str, names: Mapping) -> dict[str, Any]:
    """A row as the columns of a Parquet file; tags, and what messages hold besides, as JSON in ``tags``."""
    tags = _dumped(row.tags).decode() if row.tags else None
    side = {**beside(row, names), "tags": tags}
    if to == "alpaca":
        bare = Row(row.line, row.offset, row.messages, row.completion)
        return {**alpaca(bare, names), **side}
    answer = _answer_column(row)
    if to == "trl":
        return {"prompt": row.messages, "completion": answer or None, **side}
    if to == "chat":
        if not answer and row.messages[-1]["role"] in ("assistant", "tool_call"):
            raise Damage(
                "not expressible", "a prompt that ends with the assistant's words would be read as the answer"
            )
        return {"messages": [*row.messages, *answer], **side}
    return {"messages": row.messages, "completion": row.completion, **side}


def _answer_column(row: Row) -> list[dict[str, str]]:
    extras = row.tags.get(EXTRAS)
    answer = extras.get("answer", {}) if type(extras) is dict else {}
    role = answer.get("role", "assistant") if type(answer) is dict else "assistant"
    return [] if row.completion is None else [{"role": role, "content": row.completion}]


__all__ = ["FORMULA", "TARGETS", "Converted", "Written", "convert", "is_plain", "neutral", "write"]
