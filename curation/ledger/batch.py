"""One batch of records on its way in: sorted into new, known and refused rows, then stored set by set.

This is the hot path: a handful of statements per batch, none per row. It runs inside one write transaction, so what it
has looked up stays true until it is done.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import count, repeat
from typing import Any, NamedTuple

from curation.ledger import schema
from curation.ledger.incoming import NewRecords, SourceLabel, SourceLabels
from curation.ledger.lookups import (
    BROUGHT_LABEL,
    VISIBLE_RECORD,
    add_payloads,
    ensure_author,
    held_payloads,
)
from curation.ledger.rows import Added
from curation.ledger.store import Reader, Writer
from curation.records import SOURCE_TRUST

OTHER_TEXT = "another text stands under the same id: change the id, or drop one of the two rows"
ERASED = "its text was erased on request and is not taken in again"


class _Held(NamedTuple):
    """A record or label that the ledger holds: who brought it, and whether it is in view."""

    id: str
    seq: int
    payload: str
    ingest: int
    visible: int


class Sorted:
    """The rows of one batch, told apart by what the ledger holds of them. It asks; it stores nothing."""

    def __init__(self, reader: Reader, rows: NewRecords) -> None:
        self.reader, self.rows = reader, rows
        self.records = self._held_records()
        self.fresh: dict[str, int] = {}  # id -> index of the row that brings it
        self.again: list[int] = []  # rows whose record is known, in the store or in this batch
        self.conflicts: dict[int, str] = {}
        self.held = held_payloads(reader, list(rows.bodies))
        self._refuse_erased({text for text, erased in self.held.items() if erased})
        self._sort()
        self.labels = self._held_labels()
        self.new_labels, self.saying = self._sort_labels()

    def added(self) -> Added:
        """What becomes of the rows when the batch is stored."""
        returned = {i for i in self.again if not self._in_view(self.rows.ids[i])}
        accepted = {*self.fresh.values(), *returned, *self.saying}
        standing = len(self.fresh) + len(self.again)
        return Added(len(accepted), standing - len(accepted), sorted(self.conflicts.items()))

    def _held_records(self) -> dict[str, _Held]:
        statement = f"""SELECT r.id, r.seq, r.payload, r.ingest, {VISIBLE_RECORD}
            FROM records r WHERE r.id {{items}}"""
        ids = list(dict.fromkeys(self.rows.ids))
        return {row[0]: _Held(*row) for row in self.reader.rows_in(statement, ids)}

    def _in_view(self, record: str) -> bool:
        return record not in self.records or bool(self.records[record].visible)

    def _refuse_erased(self, erased: set[str]) -> None:
        if not erased:
            return
        refused = {i for i, payload in enumerate(self.rows.payloads) if payload in erased}
        refused |= {label.row for label in self.rows.labels if label.payload in erased}
        self.conflicts = dict.fromkeys(sorted(refused), ERASED)

    def _sort(self) -> None:
        """Tell new rows from known ones and from those that contradict what is known."""
        ids, payloads = self.rows.ids, self.rows.payloads
        if not self.records and not self.conflicts and len(fresh := dict(zip(ids, count()))) == len(ids):
            self.fresh = fresh  # the usual batch of a first import
            return
        for index, record in enumerate(ids):
            if index in self.conflicts:
                continue
            known = self.records.get(record)
            first = self.fresh.get(record)
            if known is None and first is None:
                self.fresh[record] = index
                continue
            before = known.payload if known is not None else payloads[first or 0]
            if before == payloads[index]:
                self.again.append(index)
            else:
                self.conflicts[index] = OTHER_TEXT

    def _standing_labels(self) -> Iterable[SourceLabel]:
        """The labels of rows that are stored or were."""
        if not self.conflicts:
            return self.rows.labels
        return (label for label in self.rows.labels if label.row not in self.conflicts)

    def _held_labels(self) -> dict[str, _Held]:
        """What sources said before about the records of this batch; new records have none."""
        numbers = [known.seq for _index, known in self._known_again()]
        statement = f"""SELECT l.id, l.seq, l.payload, l.ingest, {BROUGHT_LABEL}
            FROM labels l WHERE l.record_seq {{items}} AND l.ingest IS NOT NULL"""
        return {row[0]: _Held(*row) for row in self.reader.rows_in(statement, numbers)}

    def _known_again(self) -> list[tuple[int, _Held]]:
        """The rows whose record the store held before this batch, with that record."""
        ids, held = self.rows.ids, self.records
        return [(i, held[ids[i]]) for i in self.again if ids[i] in held]

    def _sort_labels(self) -> tuple[SourceLabels, set[int]]:
        """The labels that are new, and the rows that bring one of them or one that had left the view."""
        labels = self.rows.labels
        if not self.labels and not self.conflicts and len(set(labels.ids)) == len(labels):
            return labels, set(labels.rows)  # the usual batch of a first import
        saying: set[int] = set()
        new = SourceLabels()
        known = set(self.labels)
        for label in self._standing_labels():
            if label.id not in known:
                known.add(label.id)
                new.append(label)
            elif label.id not in self.labels or self.labels[label.id].visible:
                continue
            saying.add(label.row)
        return new, saying


class Batch(Sorted):
    """The rows of one call of ``add_rows``, stored."""

    def __init__(self, writer: Writer, ingest: int, rows: NewRecords) -> None:
        super().__init__(writer, rows)
        self.writer, self.ingest = writer, ingest

    def add(self) -> Added:
        """Store the batch and say what became of it."""
        add_payloads(self.writer, self._needed(), self.held)
        self._store_labels(self.new_labels, self._add_records())
        self._reassert()
        return self.added()

    def _needed(self) -> dict[str, bytes]:
        """The texts of the rows that are stored: a refused row leaves nothing behind."""
        bodies = self.rows.bodies
        if not self.conflicts:
            return bodies
        texts = {self.rows.payloads[i] for i in (*self.fresh.values(), *self.again)}
        texts |= {label.payload for label in self._standing_labels()}
        return {text: bodies[text] for text in texts}

    def _add_records(self) -> dict[str, int]:
        """Store the new records; the number of every record of the batch, known or new."""
        rows = self.rows
        about = (rows.langs, rows.groups, rows.times, rows.tags, rows.occurrences)
        columns: list[Sequence[Any]] = [rows.ids, rows.sources, rows.keys, rows.payloads, *about]
        if len(self.fresh) < len(rows):
            new = list(self.fresh.values())
            columns = [[column[index] for index in new] for column in columns]
        first = self.writer.insert_columns(schema.records, *columns, repeat(self.ingest))
        numbers = {record: known.seq for record, known in self.records.items()}
        numbers.update(zip(self.fresh, range(first, first + len(self.fresh)), strict=True))
        return numbers

    def _store_labels(self, new: SourceLabels, numbers: dict[str, int]) -> None:
        spoken = set(new.authors)
        for source, author in self.rows.authors.items():
            if author in spoken:
                ensure_author(self.writer, source, SOURCE_TRUST[0])
        ids = self.rows.ids
        records = [numbers[ids[row]] for row in new.rows]
        nothing = repeat(None)
        columns = (records, nothing, nothing, new.kinds, new.authors, new.payloads, new.confidences, nothing)
        self.writer.insert_columns(schema.labels, new.ids, *columns, repeat(self.ingest), nothing)

    def _reassert(self) -> None:
        """Note that this ingest, too, holds these records, and those of their labels that its rows name."""
        seen = dict(self._known_again())
        if not seen:
            return
        statement = "SELECT record_seq, label_seq FROM reasserted WHERE ingest = :n AND record_seq {items}"
        rows = self.writer.rows_in(statement, [known.seq for known in seen.values()], n=self.ingest)
        noted = {tuple(row) for row in rows}
        wanted: dict[tuple[int, int | None], None] = {}
        for record in seen.values():
            if record.ingest != self.ingest:
                wanted[record.seq, None] = None
        for said in self._standing_labels():
            label = self.labels.get(said.id) if said.row in seen else None
            if label is not None and label.ingest != self.ingest:
                wanted[seen[said.row].seq, label.seq] = None
        self.writer.insert(schema.reasserted, [(self.ingest, *key) for key in wanted if key not in noted])
