"""What comes in: files, their rows, what was set aside, and taking one ingest back.

The same row twice is one record, whichever file it came from; a second import that held it is noted, so that undoing
one keeps what another also brought. Nothing here reads a file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from curation.errors import UsageError
from curation.ledger import schema
from curation.ledger.batch import Batch, Sorted
from curation.ledger.incoming import NewRecords, author_id, json_text
from curation.ledger.lookups import author_salt, known, put_payloads
from curation.ledger.rows import Added, Ingest, NewQuarantine, NewRecord, Passage
from curation.ledger.store import Reader, Store
from curation.records import SOURCE_TRUST, digest


class Ingests(Store):
    """Ingests, records as they come in, quarantine and passages."""

    def begin_ingest(
        self,
        source: str,
        file_name: str,
        file_digest: str,
        *,
        format: str,
        rule: Mapping[str, Any] | None = None,
        trust: str = "candidate",
    ) -> str:
        """Announce an import and return its id. One that was killed half-way is taken up again under its old id."""
        if trust not in SOURCE_TRUST:
            raise UsageError(f"unknown trust {trust!r}", next=f"Use one of {', '.join(SOURCE_TRUST)}")
        values = (source, file_name, file_digest, format, json_text(dict(rule or {})), trust)
        with self._write("ingest begin") as writer:
            unfinished = writer.value(_UNFINISHED, **dict(zip(_INGEST_FIELDS, values, strict=True)))
            if unfinished:
                return str(unfinished)
            ingest = digest(f"{source}\0{file_digest}\0{writer.top(schema.ingests)}")
            writer.insert(schema.ingests, [(ingest, *values)])
            return ingest

    def source_author(self, source: str) -> str:
        """The opaque id of a source as an author, whether or not it has said anything yet."""
        with self._read() as reader:
            return author_id(author_salt(reader), source, SOURCE_TRUST[0])

    def add_rows(self, ingest: str, rows: Sequence[NewRecord] | NewRecords) -> Added:
        """Store a batch of rows in one transaction; large batches are the fastest.

        A row whose id is known with the same text is unchanged, unless it brings a label that is new. The same id with
        another text is a conflict and is not stored. No rows give ``Added(0, 0)``.
        """
        if not isinstance(rows, NewRecords):
            rows = NewRecords.of(
                rows, {source: self.source_author(source) for source in {r.source for r in rows}}
            )
        if not len(rows):
            return Added(0, 0)
        with self._write("ingest", bulk=True) as writer:
            number = _number(writer, ingest)
            added = Batch(writer, number, rows).add()
            counts = (number, added.accepted, added.unchanged, len(added.conflicts))
            writer.insert(schema.ingest_batches, [counts])
            return added

    def expected(self, rows: NewRecords) -> Added:
        """What :meth:`add_rows` would make of a batch as the ledger stands. Nothing is written."""
        with self._read() as reader:
            return Sorted(reader, rows).added() if len(rows) else Added(0, 0)

    def add_quarantine(self, ingest: str, rows: Sequence[NewQuarantine]) -> None:
        """Set rows aside with file, line, byte offset and reason; the same row twice is kept once."""
        with self._write("quarantine") as writer:
            number = _number(writer, ingest)
            held = writer.all(
                'SELECT file, line, "offset", reason FROM quarantine WHERE ingest = :n', n=number
            )
            seen = {tuple(row) for row in held}
            fresh = [row for row in rows if (row.file, row.line, row.offset, row.reason) not in seen]
            payloads = put_payloads(writer, [row.raw for row in fresh])
            writer.insert(
                schema.quarantine,
                [
                    (number, row.file, row.line, row.offset, row.reason, row.message, payload)
                    for row, payload in zip(fresh, payloads, strict=True)
                ],
            )

    def quarantined(self, ingest: str | None = None) -> list[NewQuarantine]:
        """The rows that were set aside, oldest first; ``raw`` is empty where it was erased."""
        which = "" if ingest is None else "WHERE i.id = :ingest"
        values = {} if ingest is None else {"ingest": ingest}
        with self._read() as reader:
            rows = reader.all(
                f'SELECT q.file, q.line, q."offset", q.reason, q.message, p.body FROM quarantine q '
                f"JOIN ingests i ON i.seq = q.ingest LEFT JOIN payloads p ON p.digest = q.payload {which} ORDER BY q.seq",
                **values,
            )
        return [NewQuarantine(r[0], r[1], r[2], r[3], r[4], bytes(r[5] or b"")) for r in rows]

    def end_ingest(self, ingest: str) -> Ingest:
        """Note that the import is complete, and return it with its counts. Ending twice changes nothing."""
        with self._write("ingest end") as writer:
            number = _number(writer, ingest)
            if writer.one("SELECT 1 FROM ingest_ends WHERE ingest = :n", n=number) is None:
                accepted, unchanged = writer.one(
                    "SELECT coalesce(sum(accepted), 0), coalesce(sum(unchanged), 0) FROM ingest_batches WHERE ingest = :n",
                    n=number,
                )
                aside = writer.value("SELECT count(*) FROM quarantine WHERE ingest = :n", n=number)
                writer.analyze(schema.payloads, schema.records, schema.labels)
                writer.insert(schema.ingest_ends, [(number, int(accepted), int(unchanged), aside)])
            return _ingests(writer, "WHERE i.seq = :n", n=number)[0]

    def undo_ingest(self, ingest: str | None = None) -> Ingest:
        """Take one ingest back (the latest that stands, by default): its rows leave every view, nothing is deleted.

        What another ingest also held stays. ``UsageError`` where there is none to take back.
        """
        with self._write("ingest undo") as writer:
            standing = "WHERE i.seq NOT IN (SELECT ingest FROM ingest_undos)"
            found = _ingests(
                writer, standing + (" AND i.id = :id" if ingest else ""), **({"id": ingest} if ingest else {})
            )
            if not found:
                raise UsageError(
                    "there is no ingest to take back" + (f" with id {ingest!r}" if ingest else ""),
                    next="See: tilth status",
                )
            number = _number(writer, found[-1].id)
            writer.insert(schema.ingest_undos, [(number,)])
            return _ingests(writer, "WHERE i.seq = :n", n=number)[0]

    def ingests(self) -> list[Ingest]:
        """Every import, oldest first."""
        with self._read() as reader:
            return _ingests(reader, "")

    def add_passages(self, passages: Sequence[Passage], ingest: str | None = None) -> None:
        """Store chunks of documents; one that is known by id is left as it is."""
        with self._write("passages") as writer:
            held = known(writer, "passages", "id", [p.id for p in passages])
            fresh = list({p.id: p for p in passages if p.id not in held}.values())
            payloads = put_payloads(writer, [p.body for p in fresh])
            number = None if ingest is None else _number(writer, ingest)
            writer.insert(
                schema.passages,
                [
                    (p.id, p.document, p.version, json_text(p.heading), payload, number)
                    for p, payload in zip(fresh, payloads, strict=True)
                ],
            )

    def passages(self) -> list[Passage]:
        """Every passage whose text was not erased and whose ingest was not undone, oldest first."""
        with self._read() as reader:
            rows = reader.all(
                "SELECT s.id, s.document, s.version, s.heading, p.body FROM passages s JOIN payloads p ON p.digest = s.payload "
                "WHERE p.body IS NOT NULL AND (s.ingest IS NULL OR s.ingest NOT IN (SELECT ingest FROM ingest_undos)) "
                "ORDER BY s.seq"
            )
        return [Passage(r[0], r[1], r[2], tuple(orjson.loads(r[3])), bytes(r[4]).decode()) for r in rows]


_INGEST_FIELDS = ("source", "file_name", "file_digest", "format", "rule", "trust")
_UNFINISHED = (
    "SELECT id FROM ingests WHERE "
    + " AND ".join(f"{name} = :{name}" for name in _INGEST_FIELDS)
    + " AND seq NOT IN (SELECT ingest FROM ingest_ends) AND seq NOT IN (SELECT ingest FROM ingest_undos) LIMIT 1"
)


def _number(reader: Reader, ingest: str) -> int:
    number = reader.value("SELECT seq FROM ingests WHERE id = :id", id=ingest)
    if number is None:
        raise UsageError(f"the ledger holds no ingest {ingest!r}", next="See: tilth status")
    return int(number)


def _ingests(reader: Reader, where: str, **values: Any) -> list[Ingest]:
    rows = reader.all(
        "SELECT i.id, i.source, i.file_name, i.file_digest, i.format, i.rule, i.trust, t.actor, t.time, e.accepted, "
        "e.unchanged, e.quarantined, i.seq IN (SELECT ingest FROM ingest_undos) FROM ingests i "
        f"JOIN transactions t ON t.seq = i.tx LEFT JOIN ingest_ends e ON e.ingest = i.seq {where} ORDER BY i.seq",
        **values,
    )
    return [_ingest(list(row)) for row in rows]


def _ingest(values: list[Any]) -> Ingest:
    values[5], values[12] = orjson.loads(values[5]), bool(values[12])
    return Ingest(*values)
