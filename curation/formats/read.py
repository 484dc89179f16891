"""Reading a file of any size in batches of rows and bad rows: nothing is dropped, nothing repaired.

Every record of a file is accounted for, with its line and byte offset. Memory holds one batch and one block.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import orjson

from curation.errors import UsageError
from curation.formats import arrays, delimited, parquet
from curation.formats.maker import Maker
from curation.formats.rows import MAX_LINE, BadRow, Batch, Damage, Format, Mapping, Row
from curation.formats.sniff import examine
from curation.formats.stream import KEPT, Stream, opened, pieces
from curation.formats.strict import parse

BATCH_BYTES = 64 << 20  # a batch of long records ends before it has all its rows

# One record: its line, offset and bytes, what it was parsed to, and what is wrong with it.
Parsed = tuple[int, int, bytes, Any, Damage | None]


def read(
    path: str | Path,
    *,
    mapping: Mapping | None = None,
    format: Format | str | None = None,
    batch: int = 10_000,
    max_line: int = MAX_LINE,
) -> Iterator[Batch]:
    """The rows of a file (``-`` is standard input), in batches of ``batch`` records or fewer.

    Every record becomes a row or a bad row, a blank line included; an empty file gives no batch. ``format``
    is what :func:`sniff` gave, or the name of a container or a shape. A record of more than ``max_line``
    bytes is set aside. Raises ``UsageError`` where the file cannot be read at all, or has no field that could
    be the prompt; ``IntegrityError`` where it is cut off inside its compression.
    """
    mapping = mapping or Mapping()
    with opened(path) as stream:
        form = examine(stream, format, Path(str(path))) if not isinstance(format, Format) else format
        _check(form, mapping, stream.name)
        maker = Maker(form.shape, mapping, form.name)
        yield from _batches(stream, form, maker, batch, max_line)


def _check(form: Format, mapping: Mapping, name: str) -> None:
    """Raise ``UsageError`` where a mapped field does not exist, or no field could be the prompt."""
    if not form.fields:  # nothing could be read: every record will say why
        return
    mapping.check(form.fields, name)
    if form.shape is None and mapping.prompt is None:
        raise UsageError(
            f"no field is known to be the prompt; the fields are: {', '.join(form.fields)}",
            where=name,
            next="Name it: --map prompt=FIELD, and --map completion=FIELD if there is one",
        )


def _batches(stream: Stream, form: Format, maker: Maker, size: int, limit: int) -> Iterator[Batch]:
    rows: list[Row] = []
    bad: list[BadRow] = []
    count = weight = 0
    for line, offset, raw, record, damage in parsed(stream, form, limit):
        count += 1
        weight += len(raw)
        if damage is None:
            try:
                rows += maker.rows(record, line, offset, raw, form.name != "jsonl" or b"\\u0000" in raw)
            except Damage as found:
                damage = found
        if damage is not None:
            bad.append(BadRow(line, offset, damage.code, damage.message, raw or _shown(record)))
        if count >= size or weight >= BATCH_BYTES:
            yield Batch(rows, bad, stream.consumed(), count)
            rows, bad, count, weight = [], [], 0, 0
    if count:
        yield Batch(rows, bad, stream.consumed(), count)


def _shown(record: Any) -> bytes:
    """The bytes of a record that had none of its own: a row of Parquet."""
    if record is None:
        return b""
    return orjson.dumps(record, default=str)[:KEPT]


def parsed(stream: Stream, form: Format, limit: int = MAX_LINE) -> Iterator[Parsed]:
    """Every record of a stream, parsed or with its damage."""
    readers: dict[str, Callable[[Stream, Format, int], Iterator[Parsed]]] = {
        "jsonl": _lines,
        "json": _elements,
        "csv": _records,
        "tsv": _records,
        "parquet": _rows,
    }
    return readers[form.name](stream, form, limit)


def too_long(length: int, limit: int) -> Damage:
    """What is wrong with a record over the size limit."""
    return Damage("line too long", f"the record has {length:,} bytes, and the limit is {limit:,}")


def _lines(stream: Stream, form: Format, limit: int) -> Iterator[Parsed]:
    for piece in pieces(stream, limit):
        line, offset = piece.line, piece.offset
        for raw in piece.lines:
            length = piece.overlong or len(raw)
            if offset == 0:
                raw = raw.removeprefix(codecs.BOM_UTF8)
            damage = too_long(length, limit) if piece.overlong else None
            try:
                record = None if damage else parse(raw)
            except Damage as found:
                record, damage = None, found
            yield line, offset, raw, record, damage
            line += 1
            offset += length + 1


def _elements(stream: Stream, form: Format, limit: int) -> Iterator[Parsed]:
    for element in arrays.elements(stream, limit):
        place = element.line, element.offset, element.raw[:KEPT] if element.length else element.raw
        damage = too_long(element.length, limit) if element.length else element.damage
        try:
            record = None if damage else parse(element.raw)
        except Damage as found:
            record, damage = None, found
        yield *place, record, damage


def _records(stream: Stream, form: Format, limit: int) -> Iterator[Parsed]:
    found = delimited.records(stream, form, limit)
    names = delimited.header(found, stream.name)
    for record in found:
        place = record.line, record.offset, record.raw
        damage = record.damage
        if damage is None and len(record.fields or []) != len(names):
            damage = Damage(
                "wrong column count", f"{len(record.fields or [])} fields, and the header has {len(names)}"
            )
        fields = None if damage else dict(zip(names, record.fields or [], strict=True))
        yield *place, fields, damage


def _rows(stream: Stream, form: Format, limit: int) -> Iterator[Parsed]:
    for number, row in enumerate(parquet.records(stream)):
        damage = row if isinstance(row, Damage) else None
        yield number + 1, number, b"", None if damage else row, damage
