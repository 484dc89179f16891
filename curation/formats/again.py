"""A file of rows that is read several times: once to look, once to write what stays. In blocks of JSON lines.

Memory holds one block. Standard input is copied to a folder first, and a file that changes between two readings is
an error: rows are told apart by their number alone.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from curation.errors import IntegrityError, UsageError, storage_errors
from curation.formats.objects import report
from curation.formats.read import parsed, too_long
from curation.formats.rows import MAX_LINE, BadRow, Damage, Format
from curation.formats.sniff import examine
from curation.formats.stream import Stream, opened, pieces
from curation.formats.strict import parse

BLOCK_BYTES = 4 << 20


@dataclass(frozen=True)
class Block:
    """Consecutive rows as JSON, one to an item, blank lines among them; ``line`` is the number of the first.

    ``read`` is the share of the file that is behind, 0 to 1.
    """

    name: str
    line: int
    lines: list[bytes]
    read: float

    def rows(self) -> list[bytes]:
        """The lines that hold a row."""
        return [line for line in self.lines if line and not line.isspace()]

    def objects(self) -> list[dict[str, Any]]:
        """The rows, parsed strictly. Raises ``UsageError`` that names the line."""
        return [
            _object(self.name, self.line + place, raw)
            for place, raw in enumerate(self.lines)
            if raw and not raw.isspace()
        ]


def _object(name: str, line: int, raw: bytes) -> dict[str, Any]:
    try:
        found = parse(raw)
        if type(found) is not dict:
            raise Damage("not an object", "the record is not an object")
    except Damage as damage:
        report(BadRow(line, 0, damage.code, damage.message, raw), name, None)
    return found


class Repeatable:
    """A source that gives the same blocks each time."""

    def __init__(self, path: Path, name: str, suffix: Path) -> None:
        self.path, self.name, self._suffix = path, name, suffix
        self.size = path.stat().st_size if path.is_file() else 0
        self._seen = self._state()

    def _state(self) -> tuple[int, int]:
        with storage_errors(self.path):
            state = self.path.stat()
        return state.st_size, state.st_mtime_ns

    def blocks(self, size: int = BLOCK_BYTES) -> Iterator[Block]:
        """The rows in blocks of about ``size`` bytes. Raises ``UsageError`` for what is not a row, with its line,
        and ``IntegrityError`` where the file is no longer the one that was read first."""
        if self._state() != self._seen:
            raise IntegrityError("the file changed while it was read", where=self.name, next="Run it again")
        with opened(self.path) as stream:
            form = examine(stream, None, self._suffix)
            found = _lines(stream) if form.name == "jsonl" else _dumped(stream, form, self.name)
            yield from self._gathered(found, stream, size)

    def _gathered(
        self, found: Iterator[tuple[int, list[bytes]]], stream: Stream, size: int
    ) -> Iterator[Block]:
        first, weight = 1, 0
        lines: list[bytes] = []
        for number, some in found:
            first = number if not lines else first
            lines += some
            weight += sum(map(len, some))
            if weight >= size:
                yield Block(self.name, first, lines, self._share(stream))
                lines, weight = [], 0
        if lines:
            yield Block(self.name, first, lines, 1.0)

    def _share(self, stream: Stream) -> float:
        return min(stream.consumed() / self.size, 1.0) if self.size else 0.0


def _lines(stream: Stream) -> Iterator[tuple[int, list[bytes]]]:
    for piece in pieces(stream, MAX_LINE):
        if piece.overlong:
            damage = too_long(piece.overlong, MAX_LINE)
            report(BadRow(piece.line, piece.offset, damage.code, damage.message, b""), stream.name, None)
        if piece.offset == 0 and piece.lines:
            piece.lines[0] = piece.lines[0].removeprefix(codecs.BOM_UTF8)
        yield piece.line, piece.lines


def _dumped(stream: Stream, form: Format, name: str) -> Iterator[tuple[int, list[bytes]]]:
    """The records of another container as JSON lines."""
    for line, offset, raw, record, damage in parsed(stream, form):
        if damage is None and type(record) is not dict:
            damage = Damage("not an object", "the record is not an object")
        if damage is None:
            yield line, [_json(record, name, line)]
        elif damage.code != "blank line":
            report(BadRow(line, offset, damage.code, damage.message, raw), name, None)


def _json(record: Any, name: str, line: int) -> bytes:
    try:
        return orjson.dumps(record)
    except TypeError as error:
        raise UsageError(
            f"JSON cannot hold the record ({error})",
            where=f"{name}:{line}",
            next="Convert the column to text",
        ) from error


@contextmanager
def repeatable(path: str | Path, folder: Path) -> Iterator[Repeatable]:
    """The file at ``path`` (``-`` is standard input, which is copied into ``folder``) to be read several times."""
    if str(path) != "-" and Path(path).is_file():
        yield Repeatable(Path(path), str(path), Path(str(path)))
        return
    copy = folder / f"input-{len(list(folder.iterdir()))}"
    with opened(path) as stream, storage_errors(copy), open(copy, "wb") as out:
        for block in stream.blocks():
            out.write(block)
        name = stream.name
    yield Repeatable(copy, name, Path(str(path)))
