"""The elements of a JSON array, one by one, from a stream: memory holds one block and one element.

The array is cut, not parsed: brackets and strings are followed, and each element's bytes go to the strict
reader.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from curation.formats.rows import Damage
from curation.formats.stream import KEPT, Stream

# Possessive repeats: a string is matched without remembering where it could have ended.
_STRING = rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"'
_TOP = re.compile(_STRING + rb'|[\[{]|[\]},]|"', re.DOTALL)
_DEEP = re.compile(_STRING + rb'|[\[{]++|[\]}]++|"', re.DOTALL)
_SPACE = b" \t\r\n"


class Element:
    """One element: its line, offset and bytes; ``length`` is its size where that is over the limit, else 0.

    ``damage`` says what is wrong with the array itself at this place.
    """

    __slots__ = ("damage", "length", "line", "offset", "raw")

    def __init__(
        self, line: int, offset: int, raw: bytes, length: int = 0, damage: Damage | None = None
    ) -> None:
        self.line, self.offset, self.raw, self.length, self.damage = line, offset, raw, length, damage


class _Cutter:
    """Follows depth and place through the blocks of one array."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.buffer, self.base = b"", 0  # ``base`` is the offset of the buffer's first byte
        self.at, self.start = 0, 0  # how far the buffer was read; where the current element begins
        self.line = 1  # the line of ``start``
        self.depth = 0
        self.kept: bytes | None = None  # the beginning of an element over the limit
        self.first = (1, 0)  # its line and offset
        self.elements = 0
        self.closed = False

    def feed(self, block: bytes) -> Iterator[Element]:
        self.buffer += block
        if self.closed:
            self.buffer = (self.buffer.lstrip(_SPACE) or b" ")[:KEPT]
            return
        while (
            not self.closed
            and (match := (_DEEP if self.depth > 1 else _TOP).search(self.buffer, self.at)) is not None
        ):
            token = match.group()
            if token == b'"':  # a string that the next block ends
                self.at = match.start()
                break
            yield from self._token(token, match.start(), match.end())
        else:
            self.at = self.at if self.closed else len(self.buffer)
        self._forget()

    def _token(self, token: bytes, start: int, end: int) -> Iterator[Element]:
        self.at = end
        kind = token[:1]
        if kind in b"[{":
            self.depth += len(token)
            if self.depth == len(token):  # the array opens
                self.at = start + 1
                self.depth = 1
                self._begin(self.at)
        elif kind in b"]}":
            closing = min(len(token), self.depth - 1) if self.depth > 1 else 1
            self.at = start + closing
            if self.depth == 1:
                yield from self._emit(start, closing=True)
                if kind == b"}":
                    yield self._damaged("syntax error", "a brace closes the list")
            self.depth -= closing
            self.closed = self.depth == 0
        elif kind == b"," and self.depth == 1:
            yield from self._emit(start)

    def _begin(self, place: int) -> None:
        self.line += self.buffer.count(b"\n", self.start, place)
        self.start = place

    def _emit(self, end: int, closing: bool = False) -> Iterator[Element]:
        piece = self.buffer[self.start : end]
        lead = len(piece) - len(piece.lstrip(_SPACE))
        line = self.line + piece.count(b"\n", 0, lead)
        raw, offset = piece.strip(_SPACE), self.base + self.start + lead
        if self.kept is not None:
            yield Element(*self.first, self.kept, offset + len(raw) - self.first[1])
        elif raw:
            yield Element(line, offset, raw, len(raw) if len(raw) > self.limit else 0)
        elif not closing or self.elements:
            yield Element(line, offset, raw, 0, Damage("bare comma", "a comma without a value beside it"))
        self.elements += 1
        self.kept = None
        self._begin(end + 1)

    def _forget(self) -> None:
        """Drop what is behind; of an element over the limit keep its beginning alone."""
        if self.kept is None and len(self.buffer) - self.start > self.limit and self.depth:
            piece = self.buffer[self.start :]
            lead = len(piece) - len(piece.lstrip(_SPACE))
            self.kept = piece[lead : lead + KEPT]
            self.first = self.line + piece.count(b"\n", 0, lead), self.base + self.start + lead
        if self.kept is not None:
            self._shorten()
        elif self.start:
            self._drop(self.start)

    def _shorten(self) -> None:
        """Inside an element over the limit: forget its text. An open string stays open, with its last
        backslash.
        """
        self._begin(self.at)
        self._drop(self.at)
        if self.buffer.startswith(b'"'):
            body = self.buffer[1:]
            slashes = len(body) - len(body.rstrip(b"\\"))
            self.line += body.count(b"\n")
            self.base += len(body) - slashes % 2
            self.buffer = b'"' + b"\\" * (slashes % 2)

    def _drop(self, count: int) -> None:
        self.buffer, self.base = self.buffer[count:], self.base + count
        self.at, self.start = self.at - count, self.start - count

    def _damaged(self, code: str, message: str) -> Element:
        raw = self.buffer[self.start :].strip(_SPACE)[:KEPT]
        return Element(self.line, self.base + self.start, raw, 0, Damage(code, message))

    def finish(self) -> Iterator[Element]:
        """What is left: nothing, a cut-off element, or text behind the array."""
        if self.depth:
            yield self._damaged("truncated", "the file ends before its list does")
        elif self.buffer[self.start :].strip(_SPACE):
            yield self._damaged("trailing text", "text follows the list")


def elements(stream: Stream, limit: int) -> Iterator[Element]:
    """The elements of the array that a stream holds, in order."""
    cutter = _Cutter(limit)
    for number, block in enumerate(stream.blocks()):
        skip = len(block) - len(block.removeprefix(b"\xef\xbb\xbf")) if number == 0 else 0
        cutter.base += skip
        yield from cutter.feed(block[skip:])
    yield from cutter.finish()
