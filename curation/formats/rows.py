"""What reading a file gives: rows, bad rows with a reason, and how fields are named.

A file is never trusted and never repaired: each of its records becomes a row or a bad row, and a bad row
keeps its bytes. Nothing here opens a file.
"""

from __future__ import annotations

import csv
import difflib
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from typing import Any

from curation.errors import UsageError

MAX_LINE = 16 << 20
"""The longest record that is read, in bytes; a longer one is set aside as ``line too long``."""

REASONS = {
    "blank line": "Delete the line",
    "line too long": "Split the record; a record may hold 16 MiB",
    "not utf-8": "Save the file as UTF-8",
    "byte order mark": "Remove the mark; it may stand at the start of the file alone",
    "nul character": "Remove the NUL; no database stores it in text",
    "control character": "Escape it, as \\t or \\u0001",
    "carriage return": "End every record with a line feed",
    "truncated": "Write the record again, whole",
    "trailing text": "Put one record on one line, with nothing behind it",
    "bare comma": "Remove the comma that has no value beside it",
    "missing comma": "Put a comma between the two values",
    "missing colon": "Put a colon between key and value",
    "single quotes": "JSON takes double quotes: write the file with a JSON library",
    "unquoted key": "Put the key in double quotes",
    "bad literal": "JSON knows true, false and null alone",
    "not a number": "JSON has no NaN and no Infinity: use null, or leave the key out",
    "bad number": "Write the number as JSON has it, or as text in quotes",
    "bad escape": "Escape a backslash as two",
    "lone surrogate": "Half a character: write the whole of it, or remove it",
    "comment": "JSON has no comments: remove it",
    "too deep": "Flatten the record: 1,000 levels at most",
    "duplicate key": "Keep one of the two: which one counts is not defined",
    "syntax error": "Write the line with a JSON library",
    "not an object": 'A record is an object: {"prompt": ..., "completion": ...}',
    "missing key": "Add the key, or name the field: --map prompt=FIELD",
    "wrong type": "Write it as text; a field named with --map is taken as its text",
    "empty prompt": "There is nothing to answer: fill it in, or delete the record",
    "empty completion": "Fill it in; leave the key out, or write null, where there is no completion",
    "unknown role": "Use system, user, assistant or tool",
    "unsupported content": "Content other than text cannot be read",
    "mixture": "One file holds one shape: split the file",
    "preference pair": "Name the answer to keep: --map completion=chosen",
    "wrong column count": "Give the record as many fields as the header has",
    "bad quote": "Double each quote inside a quoted field, and close it",
    "not expressible": "Choose a format that holds it, such as chat",
}
"""Every reason code, and what to do about it."""


class Damage(Exception):
    """What is wrong with one record: a code of :data:`REASONS` and a sentence. Becomes a :class:`BadRow`."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code, self.message = code, message


@dataclass(slots=True)
class Row:
    """One record of a file, and the completion that came with it.

    ``line`` counts from 1 (a CSV record's first line, a Parquet row's number); ``offset`` is the byte at
    which the record starts in the decompressed file (the 0-based row number in Parquet). ``messages`` are
    ``{"role", "content"}``, the last is what is to be answered. ``completion`` and ``gold`` are null or hold
    more than white space, and are never stripped. ``tags`` holds every other field of the record.
    """

    line: int
    offset: int
    messages: list[dict[str, str]]
    completion: str | None = None
    gold: str | None = None
    key: str | None = None
    group: str | None = None
    lang: str | None = None
    time: str | None = None
    tags: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class BadRow:
    """A record that was set aside: where, a code of :data:`REASONS`, a sentence, and its bytes.

    ``raw`` is without the line end; of a record over the size limit it is the beginning.
    """

    line: int
    offset: int
    reason: str
    message: str
    raw: bytes

    def sentence(self, path: object) -> str:
        """``file:line: reason: message. What to do.``"""
        return f"{path}:{self.line}: {self.reason}: {self.message}. {REASONS[self.reason]}."

    def as_dict(self, path: object) -> dict[str, Any]:
        """The bad row as an object for a quarantine file; bytes that are not UTF-8 are shown as ``\\xNN``."""
        raw = self.raw.decode("utf-8", "backslashreplace")
        place = {"file": str(path), "line": self.line, "offset": self.offset}
        return {**place, "reason": self.reason, "message": self.message, "raw": raw}


@dataclass(slots=True)
class Batch:
    """A run of records. ``records`` counts those read here; each is one row or one bad row.

    Only a Label Studio task that several people answered is several rows, one per answer. ``bytes_read``
    counts the bytes of the file on disk that are behind, from its start: the measure of progress.
    """

    rows: list[Row]
    bad: list[BadRow]
    bytes_read: int
    records: int


@dataclass(frozen=True)
class Format:
    """What a file is: its container (``name``), the shape of its records, and ``why`` in words.

    ``shape`` is null where no known key was found, so that only a mapping can say what is the prompt.
    ``fields`` are the fields seen in the first records.
    """

    name: str
    why: str
    shape: str | None = None
    fields: tuple[str, ...] = ()
    delimiter: str = ","
    quoting: int = csv.QUOTE_MINIMAL
    newline: bytes = b"\n"


@dataclass(frozen=True)
class Mapping:
    """Which field of a file is what. A role that is not named is found by the names of the file's shape.

    Fields named ``gold``, ``group``, ``lang`` and ``time`` are taken by their names. ``id`` is not: an
    identity has to be named, since a row number would break under the next import.
    """

    prompt: str | None = None
    completion: str | None = None
    gold: str | None = None
    id: str | None = None
    group: str | None = None
    lang: str | None = None
    time: str | None = None

    @classmethod
    def parse(cls, pairs: Iterable[str]) -> Mapping:
        """The mapping that ``prompt=FIELD`` strings describe. Raises ``UsageError`` that lists every problem.

        >>> Mapping.parse(["prompt=text"]).prompt
        'text'
        """
        chosen: dict[str, str] = {}
        problems = [p for pair in pairs if (p := _add(chosen, pair))]
        if problems:
            raise UsageError("; ".join(problems), where="--map", next="Write it as --map prompt=FIELD")
        return cls(**chosen)

    def named(self) -> dict[str, str]:
        """The roles that are named, with their fields."""
        return {f.name: value for f in fields(self) if (value := getattr(self, f.name)) is not None}

    def check(self, known: Iterable[str], where: str) -> None:
        """Raise ``UsageError`` where a named field is not among the ``known`` ones, with a suggestion."""
        known = tuple(known)
        missing = {f for f in self.named().values() if f not in known and f.split(".")[0] not in known}
        if missing:
            what = "; ".join(
                f"there is no field {name!r}{suggestion(name, known)}" for name in sorted(missing)
            )
            raise UsageError(what, where=where, next=f"The fields are: {', '.join(known) or 'none'}")


ROLES = tuple(f.name for f in fields(Mapping))


def suggestion(word: str, known: Iterable[str]) -> str:
    """``, did you mean 'x'?`` where something like ``word`` is known, else nothing."""
    close = difflib.get_close_matches(word, list(known), n=1)
    return f", did you mean {close[0]!r}?" if close else ""


def _add(chosen: dict[str, str], pair: str) -> str | None:
    """Put one ``role=FIELD`` into ``chosen``; what is wrong with it, or null."""
    role, equals, name = pair.partition("=")
    if not equals or not name:
        return f"{pair!r} names no field"
    if role not in ROLES:
        hint = suggestion(role, ROLES) or f": use one of {', '.join(ROLES)}"
        return f"{role!r} cannot be mapped{hint}"
    if chosen.setdefault(role, name) != name:
        return f"{role} is mapped to both {chosen[role]!r} and {name!r}"
    return None
