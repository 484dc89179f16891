"""Rows on their way into the ledger, by column, with every digest made: what can be done before the write lock is held.

No statement and no connection here, so a file can be made ready in one process while another stores what came before.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import orjson

from curation.errors import UsageError
from curation.ledger.rows import NewRecord, label_id
from curation.records import SOURCE_TRUST, digest


class SourceLabel(NamedTuple):
    """One completion that came with a row: ``row`` is the row's index in its batch, ``payload`` the text's digest."""

    id: str
    row: int
    kind: str
    author: str
    payload: str
    confidence: float | None


@dataclass(slots=True)
class SourceLabels:
    """The completions that came with a batch, by column; iterated, they are :class:`SourceLabel`."""

    ids: list[str] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)
    kinds: list[str] = field(default_factory=list)
    authors: list[str] = field(default_factory=list)
    payloads: list[str] = field(default_factory=list)
    confidences: list[float | None] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.ids)

    def __iter__(self) -> Iterator[SourceLabel]:
        columns = (self.ids, self.rows, self.kinds, self.authors, self.payloads, self.confidences)
        return map(SourceLabel._make, zip(*columns, strict=True))

    def append(self, label: SourceLabel) -> None:
        """Add one."""
        self.ids.append(label.id)
        self.rows.append(label.row)
        self.kinds.append(label.kind)
        self.authors.append(label.author)
        self.payloads.append(label.payload)
        self.confidences.append(label.confidence)


@dataclass(slots=True)
class NewRecords:
    """A batch of rows by column, in order; ``authors`` holds the opaque id of every source, from ``Ledger.source_author``.

    Columns rather than objects, because a batch crosses from one process to another and is then stored column by column.
    """

    authors: dict[str, str]
    ids: list[str] = field(default_factory=list)
    sources: list[str] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    payloads: list[str] = field(default_factory=list)
    langs: list[str | None] = field(default_factory=list)
    groups: list[str | None] = field(default_factory=list)
    times: list[str | None] = field(default_factory=list)
    tags: list[str | None] = field(default_factory=list)
    occurrences: list[int] = field(default_factory=list)
    labels: SourceLabels = field(default_factory=SourceLabels)
    bodies: dict[str, bytes] = field(default_factory=dict)

    @classmethod
    def of(cls, rows: Iterable[NewRecord], authors: dict[str, str]) -> NewRecords:
        """The same rows by column."""
        batch = cls(authors)
        for row in rows:
            batch.add(
                row.id,
                row.source,
                row.key,
                row.payload_body,
                digest(row.payload_body),
                (row.lang, row.group, row.time),
                row.tags,
                row.occurrence,
                row.labels,
            )
        return batch

    def __len__(self) -> int:
        return len(self.ids)

    def add(
        self,
        id: str,
        source: str,
        key: str | None,
        body: bytes,
        payload: str,
        about: tuple[str | None, str | None, str | None],
        tags: Mapping[str, Any] | Sequence[str] | None,
        occurrence: int,
        labels: Iterable[tuple[str, str, float | None]],
    ) -> None:
        """Append one row: ``payload`` is the digest of ``body``, ``about`` its language, group and time.

        Raises :class:`UsageError` for a label of a kind that no source has, and for text that UTF-8 cannot hold.
        """
        number = len(self.ids)
        self.ids.append(id)
        self.sources.append(source)
        self.keys.append(key)
        self.bodies[payload] = body
        self.payloads.append(payload)
        lang, group, time = about
        self.langs.append(lang)
        self.groups.append(group)
        self.times.append(time)
        self.tags.append(None if tags is None else json_text(tags))
        self.occurrences.append(occurrence)
        for kind, text, confidence in labels:
            self._say(number, id, source, kind, text, confidence)

    def sort_bodies(self) -> None:
        """Put the texts in the order of their digests, in which the ledger looks them up and stores them."""
        self.bodies = dict(sorted(self.bodies.items()))

    def _say(
        self, row: int, record: str, source: str, kind: str, text: str, confidence: float | None
    ) -> None:
        if kind not in SOURCE_TRUST:
            raise UsageError(
                f"a source's completion cannot be of kind {kind!r}",
                next=f"Use one of {', '.join(SOURCE_TRUST)}",
            )
        body = to_bytes(text)
        payload = digest(body)
        self.bodies[payload] = body
        author = self.authors[source]
        name = label_id(record, None, None, kind, author, payload)
        sure = None if confidence is None else float(confidence)
        self.labels.append(SourceLabel(name, row, kind, author, payload, sure))


def json_text(value: Any) -> str:
    """Canonical JSON as text, as it is stored."""
    try:
        return orjson.dumps(value, option=orjson.OPT_SORT_KEYS | orjson.OPT_SERIALIZE_NUMPY).decode()
    except TypeError as error:
        raise UsageError(
            f"a value cannot be stored as JSON: {error}", next="Store only text, numbers, lists and tables"
        ) from None


def to_bytes(body: str | bytes) -> bytes:
    """The bytes of a payload; ``UsageError`` for text that UTF-8 cannot hold (lone surrogates)."""
    if isinstance(body, bytes):
        return body
    try:
        return body.encode()
    except UnicodeEncodeError as error:
        raise UsageError(
            f"a text is not valid Unicode: {error}", next="Remove the lone surrogate from the source"
        ) from None


def author_id(salt: str, name: str, kind: str) -> str:
    """An opaque id: keyed with the ledger's own salt, so that a list of names does not lead back to it.

    A source is one author, whatever trust its completions have.
    """
    group = "source" if kind in SOURCE_TRUST else kind
    key = hashlib.blake2b(f"{group}\0{name}".encode(), key=bytes.fromhex(salt), digest_size=6)
    return f"a-{key.hexdigest()}"
