"""Bytes in, pieces out: files, gzip files and standard input, cut into lines in bounded memory.

Nothing here knows JSON or CSV. A device is refused, and so is a gzip file that grows without bound.
"""

from __future__ import annotations

import gzip
import io
import os
import stat
import sys
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any

from curation.errors import IntegrityError, UsageError, storage_errors

BLOCK = 1 << 20
HEAD = 1 << 18
KEPT = 1 << 16  # how much of an overlong record a bad row keeps

# Text compresses 3 to 30 times. A file of equal lines reaches hundreds; past this size that is an attack or a
# mistake.
MAX_EXPANSION = 200
EXPANSION_FLOOR = 256 << 20


class Stream:
    """The decompressed bytes of one input, with a look at its beginning that consumes nothing."""

    def __init__(self, name: str, raw: IO[bytes]) -> None:
        self.name, self.raw, self.length = name, raw, 0
        packed = raw.peek(2)[:2] == b"\x1f\x8b"  # type: ignore[attr-defined]
        self.packed = packed
        self._body: Any = gzip.GzipFile(fileobj=raw) if packed else raw
        self._head = b""

    def head(self, size: int = HEAD) -> bytes:
        """The first ``size`` bytes, or all there are."""
        while len(self._head) < size and (more := self._read(size - len(self._head))):
            self._head += more
        return self._head[:size]

    def whole(self, size: int = HEAD) -> bool:
        """Whether the input has no more than ``size`` bytes."""
        return len(self.head(size + 1)) <= size

    def blocks(self) -> Iterator[bytes]:
        """The bytes from where the last reader stopped; from the start at first."""
        block, self._head = self._head, b""
        while block or (block := self._read(BLOCK)):
            yield block
            block = b""

    def consumed(self) -> int:
        """How many bytes of the input, as it lies on disk, are behind."""
        try:
            return self.raw.tell()
        except OSError:  # a pipe has no position
            return self.length

    def _read(self, size: int) -> bytes:
        try:
            with storage_errors(self.name):
                block = self._body.read(size)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise IntegrityError(
                f"the gzip data is damaged after {self.length:,} bytes of text ({error})",
                where=self.name,
                next="Fetch the file again",
            ) from error
        self.length += len(block)
        if self.packed and self.length > EXPANSION_FLOOR:
            self._check_expansion()
        return block

    def _check_expansion(self) -> None:
        if self.length > MAX_EXPANSION * max(self.consumed(), 1):
            raise UsageError(
                f"{self.consumed():,} compressed bytes have become more than {self.length:,}",
                where=self.name,
                next="If that is right, decompress the file yourself and read the result",
            )


@contextmanager
def opened(path: str | Path) -> Iterator[Stream]:
    """The file at ``path``, or standard input for ``-``. Raises ``UsageError`` for what cannot be read."""
    if str(path) == "-":
        raw: Any = sys.stdin.buffer
        yield Stream("standard input", raw if hasattr(raw, "peek") else io.BufferedReader(raw))
        return
    _check_file(Path(path))
    with ExitStack() as stack:
        with storage_errors(path):
            handle = stack.enter_context(open(path, "rb", buffering=1 << 20))
        yield Stream(str(path), handle)


def _check_file(path: Path) -> None:
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        raise UsageError("there is no such file", where=str(path), next="Check the path") from None
    except (OSError, ValueError) as error:  # a name that is too long, or holds a NUL
        raise UsageError(f"the file cannot be opened ({error})", where=ascii(str(path))) from error
    if stat.S_ISDIR(mode):
        raise UsageError("this is a folder", where=str(path), next="Name a file inside it")
    if not (stat.S_ISREG(mode) or stat.S_ISFIFO(mode) or os.path.samefile(path, os.devnull)):
        raise UsageError("this is a device, not a file", where=str(path), next="Name a file")


class Piece:
    """Consecutive lines: the number of the first, its offset, their bytes; ``overlong`` is the length of a
    line over the limit, of which the one item is the beginning, else 0."""

    __slots__ = ("line", "lines", "offset", "overlong")

    def __init__(self, line: int, offset: int, lines: list[bytes], overlong: int = 0) -> None:
        self.line, self.offset, self.lines, self.overlong = line, offset, lines, overlong


def pieces(stream: Stream, limit: int, newline: bytes = b"\n") -> Iterator[Piece]:
    """The lines of a stream in runs, without their line ends. Memory holds one block and one line.

    Text after the last line end is a line; nothing after it is none.
    """
    line, offset, rest = 1, 0, b""
    kept, skipped = b"", 0  # of a line over the limit: its beginning, and how many bytes are behind
    for block in stream.blocks():
        lines = (rest + block).split(newline)
        if skipped and len(lines) > 1:
            length = skipped + len(lines.pop(0))
            yield Piece(line, offset, [kept], length)
            line, offset, skipped = line + 1, offset + length + 1, 0
        rest = lines.pop()
        yield from _runs(line, offset, lines, limit)
        line, offset = line + len(lines), offset + sum(map(len, lines)) + len(lines)
        if skipped or len(rest) > limit:
            kept = kept if skipped else rest[:KEPT]
            skipped, rest = skipped + len(rest), b""
    if skipped:
        yield Piece(line, offset, [kept], skipped)
    elif rest:
        yield from _runs(line, offset, [rest], limit)


def _runs(line: int, offset: int, lines: list[bytes], limit: int) -> Iterator[Piece]:
    """The lines as one piece, or as several around those over the limit."""
    if not lines:
        return
    if len(max(lines, key=len)) <= limit:
        yield Piece(line, offset, lines)
        return
    for raw in lines:
        over = len(raw) > limit
        yield Piece(line, offset, [raw[:KEPT] if over else raw], len(raw) if over else 0)
        line, offset = line + 1, offset + len(raw) + 1
