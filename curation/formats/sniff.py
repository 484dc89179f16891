"""What a file is, by its content and its keys: said in words, and refused where it is not text or Parquet.

The name of the file decides nothing but ties. A mapping is not needed to sniff, and nothing is parsed as a
whole.
"""

from __future__ import annotations

import codecs
import csv
import io
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from curation.errors import UsageError
from curation.formats.arrays import elements
from curation.formats.delimited import header, records
from curation.formats.rows import MAX_LINE, Damage, Format, suggestion
from curation.formats.shapes import SHAPES, shape_of
from curation.formats.stream import HEAD, Stream, opened
from curation.formats.strict import parse

CONTAINERS = ("jsonl", "json", "csv", "tsv", "parquet")
ALIASES = {"trl": "prompt-completion", "json-lines": "jsonl", "ndjson": "jsonl"}
FORCED = (*CONTAINERS, *(shape for shape in SHAPES if shape != "preference"), *ALIASES)
SAMPLE = 200  # records that are looked at

MAGIC = {
    b"PK\x03\x04": "a ZIP archive or an Excel workbook",
    b"\x7fELF": "a program",
    b"%PDF-": "a PDF document",
    b"BZh": "compressed with bzip2",
    b"\xfd7zXZ\0": "compressed with xz",
    b"\x28\xb5\x2f\xfd": "compressed with zstd",
    b"7z\xbc\xaf\x27\x1c": "a 7-Zip archive",
    b"Rar!": "a RAR archive",
    b"SQLite format 3\0": "an SQLite database",
    b"\x89PNG": "a picture",
    b"\xff\xd8\xff": "a picture",
    b"GIF8": "a picture",
    b"ARROW1": "an Arrow file",
    b"\x89HDF": "an HDF5 file",
    b"\xd0\xcf\x11\xe0": "an old Office document",
    b"\x1f\x8b": "compressed twice",
}


def sniff(path: str | Path, forced: str | None = None) -> Format:
    """What the file at ``path`` is. ``forced`` names a container or a shape, and is believed.

    Raises ``UsageError`` for what is neither text nor Parquet. An empty file is JSON lines without records.
    """
    with opened(path) as stream:
        return examine(stream, forced, Path(str(path)))


def examine(stream: Stream, forced: str | None, path: Path) -> Format:
    """:func:`sniff` on a stream; the stream is not consumed."""
    container, shape = _forced(forced)
    head = stream.head()
    container = container or _container(head, path, stream.name)
    if container == "parquet":
        return _parquet(stream, shape)
    _refuse_binary(head, stream.name)
    if container in ("csv", "tsv"):
        return _delimited(stream, container, shape, forced)
    return _json(stream, container, shape, forced)


def _forced(forced: str | None) -> tuple[str | None, str | None]:
    """The container and the shape that a person asked for."""
    if forced is None:
        return None, None
    name = ALIASES.get(forced, forced)
    if name in CONTAINERS:
        return name, None
    if name in SHAPES:
        return None, name
    what = f"there is no format {forced!r}{suggestion(forced, FORCED)}"
    raise UsageError(what, where="--format", next=f"Use one of {', '.join(FORCED)}")


def _container(head: bytes, path: Path, name: str) -> str:
    if head.startswith(b"PAR1"):
        return "parquet"
    text = head.removeprefix(codecs.BOM_UTF8).lstrip()
    _refuse_binary(head, name)
    lines = [line.strip() for line in text.split(b"\n", SAMPLE)[:SAMPLE]]
    objects = sum(map(_is_object, lines))
    if text.startswith(b"[") and not (objects and _is_json(lines[0])):
        return "json"
    if objects or not text:
        return "jsonl"
    suffixes = [suffix.lower() for suffix in path.suffixes if suffix.lower() != ".gz"]
    if suffixes and suffixes[-1] in (".csv", ".tsv"):
        return suffixes[-1][1:]
    if text.startswith(b"{"):
        return "jsonl" if suffixes != [".json"] and not _is_indented(lines) else _one_object(name)
    if suffixes and suffixes[-1] in (".jsonl", ".ndjson", ".json"):
        return "jsonl"
    return "tsv" if b"\t" in lines[0] and b"," not in lines[0] else "csv"


def _one_object(name: str) -> str:
    raise UsageError(
        "this is one JSON object, not records", where=name, next="Write one record on a line, or a list"
    )


def _is_indented(lines: list[bytes]) -> bool:
    """Whether the first lines look like one object that is spread over many."""
    return len(lines) > 1 and lines[0] in (b"{", b"{ ") and lines[1][:1] in (b'"', b"}")


def _is_object(line: bytes) -> bool:
    try:
        return line[:1] == b"{" and bool(parse(line))
    except Damage:
        return False


def _is_json(line: bytes) -> bool:
    try:
        parse(line)
    except Damage:
        return False
    return True


def _refuse_binary(head: bytes, name: str) -> None:
    """Raise ``UsageError`` for anything but text; a stray control character is a matter of its line."""
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise UsageError("this is UTF-16", where=name, next="Convert it: iconv -f utf-16 -t utf-8")
    for magic, what in MAGIC.items():
        if head.startswith(magic):
            raise UsageError(f"this is {what}, not text", where=name, next="Write the records as JSON lines")
    start = head[:4096]
    odd = sum(start.count(code) for code in (*range(9), 11, 12, *range(14, 32)))
    if odd > 16 and odd > len(start) // 20:
        raise UsageError("this is not text", where=name, next="Write the records as JSON lines")


def _json(stream: Stream, container: str, shape: str | None, forced: str | None) -> Format:
    sample = _sample(stream.head(), container)
    if container == "json" and not stream.head().removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"["):
        raise UsageError(
            "this is not a JSON list", where=stream.name, next="Leave the format out, or write a list"
        )
    found = Counter(s for record in sample if (s := shape_of(record)))
    shape, why = (
        shape or (found.most_common(1)[0][0] if found else None),
        _why(found, shape, forced, len(sample)),
    )
    parts = [r["data"] if shape == "label-studio" and type(r.get("data")) is dict else r for r in sample]
    names = "JSON lines" if container == "jsonl" else "a JSON list"
    return Format(container, f"{names}; {why}", shape, _names(parts))


def _why(found: Counter[str], shape: str | None, forced: str | None, total: int) -> str:
    if shape is not None:
        return f"{shape}, because --format {forced} says so"
    if not found:
        return f"no known keys in the first {total} records" if total else "no record could be read"
    name, count = found.most_common(1)[0]
    return f"{name}, by the keys of {count} of the first {total} records"


def _names(sample: Iterable[dict[str, Any]]) -> tuple[str, ...]:
    """The fields of the sample, in the order they first stand in."""
    return tuple(dict.fromkeys(name for record in sample for name in record))


class _Head(Stream):
    """A stream over the beginning of another."""

    def __init__(self, head: bytes) -> None:
        super().__init__("", io.BufferedReader(io.BytesIO(head)))  # type: ignore[arg-type]
        self.packed, self._body = False, self.raw


def _sample(head: bytes, container: str) -> list[dict[str, Any]]:
    """The objects that can be read in the first records."""
    if container == "json":
        whole = [
            e.raw
            for e, _ in zip(elements(_Head(head), MAX_LINE), range(SAMPLE), strict=False)
            if not e.damage
        ]
    else:
        whole = head.removeprefix(codecs.BOM_UTF8).split(b"\n", SAMPLE)[:SAMPLE]
    found = []
    for raw in whole:
        try:
            record = parse(raw)
        except Damage:
            continue
        if type(record) is dict and record:
            found.append(record)
    return found


def _delimited(stream: Stream, container: str, shape: str | None, forced: str | None) -> Format:
    head = stream.head().removeprefix(codecs.BOM_UTF8)
    newline = b"\n" if b"\n" in head or b"\r" not in head else b"\r"
    first = head.lstrip(b"\r\n").split(newline, 1)[0]
    delimiter = "\t" if container == "tsv" else max(",;\t|", key=lambda c: first.count(c.encode()))
    quoting = _quoting(head, delimiter, newline) if delimiter == "\t" else csv.QUOTE_MINIMAL
    draft = Format(container, "", None, (), delimiter, quoting, newline)
    names = header(records(_Head(head), draft, MAX_LINE), stream.name)
    known = shape_of(names)
    why = (
        f"--format {forced} says so"
        if shape
        else "its header says so"
        if known
        else "the header has no known names"
    )
    spelled = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}[delimiter]
    shape = shape or known
    text = f"{container.upper()} with {spelled}; {shape or 'no shape'}, because {why}"
    return Format(container, text, shape, tuple(names), delimiter, quoting, newline)


def _quoting(head: bytes, delimiter: str, newline: bytes) -> int:
    """Whether quotes quote: many TSV files hold them as plain text. The fewer bad records, the better."""

    if len(head) >= HEAD - len(codecs.BOM_UTF8):  # the head ends inside a record
        head = head[: head.rfind(newline) + 1]

    def bad(quoting: int) -> int:
        draft = Format("tsv", "", None, (), delimiter, quoting, newline)
        found = list(records(_Head(head), draft, MAX_LINE))
        width = len(found[0].fields or []) if found else 0
        return sum(r.damage is not None or len(r.fields or []) != width for r in found)

    return csv.QUOTE_NONE if bad(csv.QUOTE_NONE) < bad(csv.QUOTE_MINIMAL) else csv.QUOTE_MINIMAL


def _parquet(stream: Stream, shape: str | None) -> Format:
    from curation.formats.parquet import opened_parquet

    with opened_parquet(stream) as file:
        names = tuple(file.schema_arrow.names)
    known = shape or shape_of(names)
    return Format("parquet", f"Parquet; {known or 'no known shape'}, by its columns", known, names)
