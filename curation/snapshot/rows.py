"""What a row of a snapshot is, to the byte: its canonical form, its digest, and the name that the digests make.

The canonical form of a row is the JSON array ``[version, [[role, content], ...], completion, split, weight]``
in UTF-8, without white space. Lineage, times and tool versions are no part of it: same rows, same name. A row
that cannot be trained on (no completion, no message, a weight that is no number) has no canonical form and is
refused.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc

from curation.errors import UsageError
from curation.records import EXAMPLES, SPLITS, prompt_text

VERSION = "tilth.row.1"
NAMING = b"tilth.snapshot.1\n"
DIGEST_BYTES = 16
STEP = 10_000  # rows that are Python objects at any one time

Pairs = list[tuple[str, str]]


def conform(examples: pa.Table) -> pa.Table:
    """The table with exactly the columns of EXAMPLES, in order; lineage that is absent becomes null.

    ``prompt`` is made anew from ``messages``, since it is a view of them and no second truth. Raises
    :class:`UsageError` for a missing or unknown column and for a type that does not fit.
    """
    needed = ("record", "messages", "completion", "split", "weight")
    missing = [name for name in needed if name not in examples.column_names]
    unknown = sorted(set(examples.column_names) - set(EXAMPLES.names))
    if missing or unknown:
        raise UsageError(
            f"the examples lack {missing} and have unknown columns {unknown}",
            where="snapshot",
            next="Give tables of the schema EXAMPLES",
        )
    columns = {name: examples[name] for name in examples.column_names}
    columns["prompt"] = pa.chunked_array([prompts(batch) for batch in steps(examples)] or [[]], pa.string())
    try:
        arrays = [_column(columns.get(f.name), f, examples.num_rows) for f in EXAMPLES]
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise UsageError(f"a column has another type: {error}", where="snapshot") from error
    return pa.Table.from_arrays(arrays, schema=EXAMPLES)


def _column(column: pa.ChunkedArray | None, to: pa.Field, rows: int) -> pa.ChunkedArray | pa.Array:
    return pa.nulls(rows, to.type) if column is None else column.cast(to.type)


def steps(examples: pa.Table) -> Iterator[pa.RecordBatch]:
    """The rows in batches of at most :data:`STEP`."""
    yield from examples.to_batches(max_chunksize=STEP)


def message_pairs(batch: pa.RecordBatch) -> list[Pairs]:
    """The ``(role, content)`` pairs of each row. Raises :class:`UsageError` where a row has none, or a null in one."""
    column = batch["messages"]
    lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False)
    if len(lengths) and lengths.min() == 0:
        raise _refused(batch, int(lengths.argmin()), "has no messages")
    inner = column.flatten()
    flat = list(zip(inner.field("role").to_pylist(), inner.field("content").to_pylist(), strict=True))
    ends = np.cumsum(lengths).tolist()
    rows = [flat[end - length : end] for end, length in zip(ends, lengths.tolist(), strict=True)]
    if inner.field("role").null_count or inner.field("content").null_count:
        bad = next(i for i, pairs in enumerate(rows) if any(None in pair for pair in pairs))
        raise _refused(batch, bad, "has a message without role or content")
    return rows


def prompts(batch: pa.RecordBatch) -> pa.Array:
    """The prompt column: the messages of each row as one text."""
    texts = [
        pairs[0][1]
        if len(pairs) == 1 and pairs[0][0] == "user"
        else prompt_text([{"role": role, "content": content} for role, content in pairs])
        for pairs in message_pairs(batch)
    ]
    return pa.array(texts, pa.string())


def canonical(batch: pa.RecordBatch) -> list[bytes]:
    """The canonical bytes of each row. Raises :class:`UsageError` naming the first record that has none.

    >>> row = {"record": "r", "messages": [{"role": "user", "content": "Hi"}], "completion": "Hello"}
    >>> from curation.records import table
    >>> canonical(table([{**row, "split": "train", "weight": 1}], EXAMPLES).to_batches()[0])
    [b'["tilth.row.1",[["user","Hi"]],"Hello","train",1.0]']
    """
    completions, splits, weights = (batch[name].to_pylist() for name in ("completion", "split", "weight"))
    _check(batch, completions, splits, weights)
    rows = zip(message_pairs(batch), completions, splits, weights, strict=True)
    # Adding zero spells a negative zero as zero.
    return [orjson.dumps((VERSION, pairs, text, split, weight + 0.0)) for pairs, text, split, weight in rows]


def _check(batch: pa.RecordBatch, completions: list, splits: list, weights: list) -> None:
    for row, (text, split, weight) in enumerate(zip(completions, splits, weights, strict=True)):
        if text is None:
            raise _refused(batch, row, "has no completion")
        if split not in SPLITS:
            raise _refused(batch, row, f"has split {split!r}, none of {', '.join(SPLITS)}")
        if weight is None or not math.isfinite(weight) or weight < 0:
            raise _refused(batch, row, f"has weight {weight}; a weight is a finite number of 0 or more")
    if batch["record"].null_count:
        raise UsageError("a row has no record id", where="snapshot")


def _refused(batch: pa.RecordBatch, row: int, what: str) -> UsageError:
    return UsageError(
        f"record {batch['record'][row].as_py()} {what}", where="snapshot", next="Mend or leave it out"
    )


def digests(canonical_rows: Sequence[bytes]) -> bytes:
    """The 128-bit BLAKE2b digests of canonical rows, end to end."""
    return b"".join(hashlib.blake2b(row, digest_size=DIGEST_BYTES).digest() for row in canonical_rows)


def name_of(row_digests: bytes) -> str:
    """The snapshot's name: SHA-256 over the sorted digests of its rows, 64 hexadecimal characters.

    Any order of the same rows gives the same name; a row that is there twice counts twice.
    """
    whole = np.frombuffer(row_digests, dtype=_BIG_ENDIAN)
    ordered = whole[np.lexsort((whole["low"], whole["high"]))]
    return hashlib.sha256(NAMING + ordered.tobytes()).hexdigest()


# Two big-endian words sort as the sixteen bytes do. NumPy's own byte strings would lose trailing zero bytes.
_BIG_ENDIAN = np.dtype([("high", ">u8"), ("low", ">u8")])
