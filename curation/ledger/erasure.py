"""What an erasure has to know: where a text is used, and which texts belong to a set of records alone."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

from curation.ledger.store import Reader, Store

# Every place where a record leads to a text: its messages, what was said about it, what a stage or a curator made of it,
# and what was suggested to people.
_USES = (
    "SELECT r.id, r.payload FROM records r WHERE r.payload {items}",
    "SELECT r.id, l.payload FROM labels l JOIN records r ON r.seq = l.record_seq WHERE l.payload {items}",
    "SELECT r.id, d.output FROM decisions d JOIN records r ON r.seq = d.record_seq WHERE d.output {items}",
    "SELECT r.id, v.payload FROM reviews v JOIN records r ON r.seq = v.record_seq WHERE v.payload {items}",
    "SELECT r.id, s.suggestion FROM showings s JOIN records r ON r.seq = s.record_seq WHERE s.suggestion {items}",
)
_OF_RECORDS = tuple(use.partition(" WHERE ")[0] + " WHERE r.id {items}" for use in _USES)
_PAGE = 2_000


class Erasures(Store):
    """Searching texts, and following them to records and back. :meth:`erase_payloads` does the erasing."""

    def standing_texts(self) -> Iterator[tuple[str, bytes]]:
        """(digest, bytes) of every text that was not erased, a bounded page at a time."""
        after = 0
        while True:
            with self._read() as reader:
                rows = reader.all(
                    f"SELECT seq, digest, body FROM payloads WHERE seq > :after AND body IS NOT NULL ORDER BY seq LIMIT {_PAGE}",
                    after=after,
                )
            if not rows:
                return
            yield from ((row[1], bytes(row[2])) for row in rows)
            after = rows[-1][0]

    def records_using(self, digests: Sequence[str]) -> set[str]:
        """The records that lead to any of the texts, in whatever role."""
        with self._read() as reader:
            return {record for record, _ in _rows(reader, _USES, digests)}

    def texts_of(self, records: Collection[str]) -> set[str]:
        """The texts that the records lead to and no other record does: a class that others were given too stays."""
        wanted = set(records)
        with self._read() as reader:
            led_to = {text for _, text in _rows(reader, _OF_RECORDS, sorted(wanted)) if text is not None}
            shared = {text for record, text in _rows(reader, _USES, sorted(led_to)) if record not in wanted}
        return led_to - shared

    def erased_records(self) -> set[str]:
        """The records whose messages were erased."""
        with self._read() as reader:
            rows = reader.all(
                "SELECT r.id FROM records r JOIN payloads p ON p.digest = r.payload WHERE p.body IS NULL"
            )
        return {row[0] for row in rows}

    def told_beside(self) -> Iterator[tuple[str, str]]:
        """(record, text) of what stands in the rows themselves and cannot be erased: key, group and tags."""
        with self._read() as reader:
            rows = reader.all("SELECT id, key, grp, tags FROM records")
        return ((row[0], str(text)) for row in rows for text in row[1:] if text)


def _rows(
    reader: Reader, statements: Sequence[str], values: Sequence[str]
) -> Iterator[tuple[str, str | None]]:
    for statement in statements:
        yield from (tuple(row) for row in reader.rows_in(statement, values))  # type: ignore[misc]
