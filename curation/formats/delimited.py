"""CSV and TSV with the line and the byte offset of every record, newlines inside quotes included.

The ``csv`` module parses, strictly. A quote that never closes costs one record and not the rest of the file:
the lines that it swallowed are read again on their own.
"""

from __future__ import annotations

import csv
import sys
from collections import deque
from collections.abc import Iterator

from curation.errors import UsageError
from curation.formats.rows import MAX_LINE, Damage, Format
from curation.formats.stream import KEPT, Stream, pieces

csv.field_size_limit(min(MAX_LINE, sys.maxsize))


class Line:
    """One physical line: its number, offset and bytes with the line end; ``overlong`` where it is over the
    limit.
    """

    __slots__ = ("number", "offset", "overlong", "raw")

    def __init__(self, number: int, offset: int, raw: bytes, overlong: bool) -> None:
        self.number, self.offset, self.raw, self.overlong = number, offset, raw, overlong


class Record:
    """One record: the line and offset it starts at, its bytes, and its fields or what is wrong with it."""

    __slots__ = ("damage", "fields", "line", "offset", "raw")

    def __init__(self, lines: list[Line], fields: list[str] | None, damage: Damage | None) -> None:
        self.line, self.offset = lines[0].number, lines[0].offset
        self.raw = b"".join(line.raw for line in lines).rstrip(b"\r\n")
        self.fields, self.damage = fields, damage


class _Feed:
    """Gives text lines to the csv module and remembers which it took for the current record."""

    def __init__(self, lines: Iterator[Line], limit: int) -> None:
        self.lines, self.limit = lines, limit
        self.again: deque[Line] = deque()
        self.taken: list[Line] = []
        self.size = 0

    def __iter__(self) -> _Feed:
        return self

    def __next__(self) -> str:
        line = self.again.popleft() if self.again else next(self.lines)
        self.taken.append(line)
        self.size += len(line.raw)
        if line.overlong or self.size > self.limit:
            raise Damage("line too long", f"the record has more than {self.limit:,} bytes")
        return line.raw.decode("utf-8", "surrogateescape")

    def begin(self) -> None:
        self.taken, self.size = [], 0

    def give_back(self) -> None:
        """All but the first line of the current record are read again."""
        self.again.extendleft(reversed(self.taken[1:]))
        del self.taken[1:]


def physical_lines(stream: Stream, limit: int, newline: bytes = b"\n") -> Iterator[Line]:
    """The lines of a stream, without a byte order mark at the start."""
    for piece in pieces(stream, limit, newline):
        number, offset = piece.line, piece.offset
        for raw in piece.lines:
            text = raw.removeprefix(b"\xef\xbb\xbf") if offset == 0 else raw
            yield Line(number, offset, text + newline, bool(piece.overlong))
            number, offset = number + 1, offset + (piece.overlong or len(raw)) + 1


def records(stream: Stream, form: Format, limit: int) -> Iterator[Record]:
    """Every record of a CSV stream, the header first. Raises nothing for what a record may hold."""
    feed = _Feed(physical_lines(stream, limit, form.newline), limit)
    reader = csv.reader(feed, delimiter=form.delimiter, quoting=form.quoting, strict=True)  # type: ignore[arg-type]
    while True:
        feed.begin()
        fields, damage = None, None
        try:
            fields = next(reader)
        except StopIteration:
            if not feed.taken:
                return
            damage = Damage("bad quote", "a quoted field has no end")
        except csv.Error as error:
            damage = _in_words(str(error))
        except Damage as error:
            damage = error
        if damage is not None:
            feed.give_back()
            reader = csv.reader(feed, delimiter=form.delimiter, quoting=form.quoting, strict=True)  # type: ignore
        record = Record(feed.taken, fields, damage)
        yield _checked(record)


def _in_words(error: str) -> Damage:
    if "new-line" in error:
        return Damage("carriage return", "a carriage return stands inside a field without quotes")
    if "field limit" in error:
        return Damage("line too long", "a field is over the limit")
    return Damage(
        "bad quote", "a quoted field has no end" if "end of data" in error else "text follows a closing quote"
    )


def _checked(record: Record) -> Record:
    """The record, with the damage that the csv module does not see."""
    if record.damage is not None:
        record.raw = record.raw[:KEPT]
    elif not record.fields or (len(record.fields) == 1 and not record.raw.strip()):
        record.damage = Damage("blank line", "there is nothing on the line")
    elif not record.raw.isascii() and any(map(_broken, record.fields)):
        record.damage = Damage("not utf-8", "the record is not UTF-8")
    return record


def _broken(text: str) -> bool:
    """Whether bytes that are not UTF-8 were carried through as half characters."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def header(found: Iterator[Record], where: str) -> list[str]:
    """The names of the columns. Raises ``UsageError`` where there is no usable header."""
    for record in found:
        if record.damage is not None and record.damage.code == "blank line":
            continue
        if record.damage is not None or not record.fields:
            break
        names = record.fields
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            what = f"the header has {', '.join(map(repr, twice))} more than once"
            raise UsageError(what, where=f"{where}:{record.line}", next="Name every column differently")
        return names
    raise UsageError("there is no header", where=where, next="The first line names the columns")
