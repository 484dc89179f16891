"""One batch of records on its way in: sorted into new, known and refused rows, then stored set by set.

This is the hot path: a handful of statements per batch, none per row. It runs inside one write transaction, so what it
has looked up stays true until it is done.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from curation.errors import UsageError
from curation.ledger import schema
from curation.ledger.lookups import (
    BROUGHT_LABEL,
    VISIBLE_RECORD,
    add_payloads,
    ensure_author,
    held_payloads,
    json_text,
    to_bytes,
)
from curation.ledger.rows import Added, NewRecord, label_id
from curation.ledger.store import Writer
from curation.records import SOURCE_TRUST, digest

OTHER_TEXT = "another text stands under the same id: change the id, or drop one of the two rows"
ERASED = "its text was erased on request and is not taken in again"


class _Held(NamedTuple):
    """A record or label that the ledger holds: who brought it, and whether it is in view."""

    id: str
    seq: int
    payload: str
    ingest: int
    visible: int


class _Said(NamedTuple):
    """One completion of one row of the batch."""

    kind: str
    payload: str
    confidence: float | None


class Batch:
    """The rows of one call of ``add_rows``."""

    def __init__(self, writer: Writer, ingest: int, rows: Sequence[NewRecord]) -> None:
        self.writer, self.ingest, self.rows = writer, ingest, rows
        self.bodies: dict[str, bytes] = {}
        self.payloads = [self._body(row.payload_body) for row in rows]
        self.said = [[self._say(*label) for label in row.labels] for row in rows]
        self.records = self._held_records()
        self.fresh: dict[str, int] = {}  # id -> index of the row that brings it
        self.again: list[int] = []  # rows whose record is known, in the store or in this batch
        self.conflicts: dict[int, str] = {}
        self.authors: dict[tuple[str, str], str] = {}

    def add(self) -> Added:
        """Store the batch and say what became of it."""
        held = held_payloads(self.writer, list(self.bodies))
        self._refuse_erased({text for text, erased in held.items() if erased})
        self._sort()
        add_payloads(self.writer, self._needed(), held)
        numbers = self._add_records()
        returned = {i for i in self.again if not self._in_view(self.rows[i].id)}
        self.labels = self._held_labels()
        accepted = {*self.fresh.values(), *returned, *self._add_labels(numbers)}
        self._reassert()
        standing = len(self.fresh) + len(self.again)
        return Added(len(accepted), standing - len(accepted), sorted(self.conflicts.items()))

    def _body(self, raw: bytes) -> str:
        text = digest(raw)
        self.bodies[text] = raw
        return text

    def _say(self, kind: str, body: str, confidence: float | None) -> _Said:
        if kind not in SOURCE_TRUST:
            raise UsageError(
                f"a source's completion cannot be of kind {kind!r}",
                next=f"Use one of {', '.join(SOURCE_TRUST)}",
            )
        sure = None if confidence is None else float(confidence)
        return _Said(kind, self._body(to_bytes(body)), sure)

    def _held_records(self) -> dict[str, _Held]:
        statement = f"""SELECT r.id, r.seq, r.payload, r.ingest, {VISIBLE_RECORD}
            FROM records r WHERE r.id {{items}}"""
        ids = list(dict.fromkeys(row.id for row in self.rows))
        return {row[0]: _Held(*row) for row in self.writer.rows_in(statement, ids)}

    def _in_view(self, record: str) -> bool:
        return record not in self.records or bool(self.records[record].visible)

    def _refuse_erased(self, erased: set[str]) -> None:
        if not erased:
            return
        for index, payload in enumerate(self.payloads):
            if payload in erased or any(said.payload in erased for said in self.said[index]):
                self.conflicts[index] = ERASED

    def _sort(self) -> None:
        for index, row in enumerate(self.rows):
            if index in self.conflicts:
                continue
            known = self.records.get(row.id)
            first = self.fresh.get(row.id)
            if known is None and first is None:
                self.fresh[row.id] = index
                continue
            before = known.payload if known is not None else self.payloads[first or 0]
            if before == self.payloads[index]:
                self.again.append(index)
            else:
                self.conflicts[index] = OTHER_TEXT

    def _needed(self) -> dict[str, bytes]:
        """The texts of the rows that are stored: a refused row leaves nothing behind."""
        if not self.conflicts:
            return self.bodies
        standing = [*self.fresh.values(), *self.again]
        texts = {self.payloads[i] for i in standing} | {
            said.payload for i in standing for said in self.said[i]
        }
        return {text: self.bodies[text] for text in texts}

    def _add_records(self) -> dict[str, int]:
        first = self.writer.insert(schema.records, [self._record(index) for index in self.fresh.values()])
        numbers = {record: known.seq for record, known in self.records.items()}
        numbers.update(zip(self.fresh, range(first, first + len(self.fresh)), strict=True))
        return numbers

    def _record(self, index: int) -> tuple[Any, ...]:
        row = self.rows[index]
        tags = None if row.tags is None else json_text(row.tags)
        what = (row.id, row.source, row.key, self.payloads[index], row.lang, row.group, row.time, tags)
        return (*what, row.occurrence, self.ingest)

    def _held_labels(self) -> dict[str, _Held]:
        """What sources said before about the records of this batch; new records have none."""
        numbers = [self.records[self.rows[i].id].seq for i in self.again if self.rows[i].id in self.records]
        statement = f"""SELECT l.id, l.seq, l.payload, l.ingest, {BROUGHT_LABEL}
            FROM labels l WHERE l.record_seq {{items}} AND l.ingest IS NOT NULL"""
        return {row[0]: _Held(*row) for row in self.writer.rows_in(statement, numbers)}

    def _label_id(self, index: int, said: _Said) -> str:
        row = self.rows[index]
        author = self.authors.get((said.kind, row.source)) or self._author(said.kind, row.source)
        return label_id(row.id, None, None, said.kind, author, said.payload)

    def _author(self, kind: str, source: str) -> str:
        self.authors[kind, source] = ensure_author(self.writer, source, kind)
        return self.authors[kind, source]

    def _add_labels(self, numbers: dict[str, int]) -> set[int]:
        """Store labels that are new and return the rows that brought one, or one that had left the view."""
        brought: set[int] = set()
        new: dict[str, tuple[Any, ...]] = {}
        for index in (*self.fresh.values(), *self.again):
            for said in self.said[index]:
                label = self._label_id(index, said)
                if label in self.labels:
                    if not self.labels[label].visible:
                        brought.add(index)
                elif label not in new:
                    new[label] = self._label(label, numbers[self.rows[index].id], index, said)
                    brought.add(index)
        self.writer.insert(schema.labels, list(new.values()))
        return brought

    def _label(self, label: str, number: int, index: int, said: _Said) -> tuple[Any, ...]:
        author = self.authors[said.kind, self.rows[index].source]
        what = (label, number, None, None, said.kind, author, said.payload, said.confidence)
        return (*what, None, self.ingest, None)

    def _reassert(self) -> None:
        """Note that this ingest, too, holds these records, and those of their labels that its rows name."""
        seen = [(i, self.records[self.rows[i].id]) for i in self.again if self.rows[i].id in self.records]
        if not seen:
            return
        statement = "SELECT record_seq, label_seq FROM reasserted WHERE ingest = :n AND record_seq {items}"
        rows = self.writer.rows_in(statement, [known.seq for _i, known in seen], n=self.ingest)
        noted = {tuple(row) for row in rows}
        wanted: dict[tuple[int, int | None], None] = {}
        for index, record in seen:
            if record.ingest != self.ingest:
                wanted[record.seq, None] = None
            for said in self.said[index]:
                label = self.labels.get(self._label_id(index, said))
                if label is not None and label.ingest != self.ingest:
                    wanted[record.seq, label.seq] = None
        self.writer.insert(schema.reasserted, [(self.ingest, *key) for key in wanted if key not in noted])
