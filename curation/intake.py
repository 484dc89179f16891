"""Rows of a file made ready for the ledger: identities and digests, a batch at a time.

With two processes a large file is read in one of its own, so that one batch is parsed while the one before is stored.
Nothing here writes, and nothing here decides about a row.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import orjson

from curation import formats, records
from curation.engine import run_ahead
from curation.ledger import NewQuarantine, NewRecords

BATCH = 100_000  # rows in a transaction: each writes most pages of the indexes anew, so that large ones write less in all
AHEAD_BYTES = 16 << 20  # a smaller file is read sooner than a process has started


@dataclass(frozen=True)
class Source:
    """Where rows come from, and who is believed to have written their completions."""

    name: str
    trust: str
    author: str


@dataclass(slots=True)
class Prepared:
    """A batch that is ready to be stored, what was set aside, and where each row stood (line, byte offset)."""

    rows: NewRecords
    places: list[tuple[int, int]]
    bad: list[NewQuarantine]

    def conflicts(self, file: str, found: Iterable[tuple[int, str]]) -> list[NewQuarantine]:
        """Rows whose id is known with another text: which of the two is right, a person must say."""
        aside = []
        for index, message in found:
            line, offset = self.places[index]
            messages = orjson.loads(self.rows.bodies[self.rows.payloads[index]])
            raw = records.canonical_json({"id": self.rows.keys[index], "messages": messages})
            aside.append(NewQuarantine(file, line, offset, "id_conflict", message, raw))
        return aside


def prepared(
    path: Path, mapping: formats.Mapping, form: formats.Format, source: Source, *, processes: int = 1
) -> Iterator[Prepared]:
    """The batches of a file in order; an empty file gives none. With ``processes`` above 1 they are read ahead."""
    if processes > 1 and path.is_file() and path.stat().st_size >= AHEAD_BYTES:
        return run_ahead(prepare, path, mapping, form, source)
    return prepare(path, mapping, form, source)


def prepare(path: Path, mapping: formats.Mapping, form: formats.Format, source: Source) -> Iterator[Prepared]:
    """The batches of a file, read here."""
    maker = _Maker(source)
    for batch in formats.read(path, mapping=mapping, format=form, batch=BATCH):
        rows = maker.batch(batch.rows)
        aside = [NewQuarantine(path.name, b.line, b.offset, b.reason, b.message, b.raw) for b in batch.bad]
        yield Prepared(rows, [(row.line, row.offset) for row in batch.rows], aside)


class _Maker:
    """Rows into records: counts how often the same row came before in this file."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.seen: Counter[bytes] = Counter()

    def batch(self, rows: Iterable[formats.Row]) -> NewRecords:
        made = NewRecords({self.source.name: self.source.author})
        for row in rows:
            self._add(made, row)
        made.sort_bodies()
        return made

    def _add(self, made: NewRecords, row: formats.Row) -> None:
        source, trust = self.source.name, self.source.trust
        body = records.canonical_json(row.messages)
        payload = records.digest(body)
        key = row.key
        occurrence = 0 if key is not None else self._occurrence(payload, row)
        labels: list[tuple[str, str, float | None]] = []
        if row.completion is not None:
            labels.append((trust, row.completion, None))
        if row.gold is not None:
            labels.append(("gold", row.gold, None))
        name = records.record_id(source, key=key, payload=payload, occurrence=occurrence)
        about = (row.lang, row.group, row.time)
        made.add(name, source, key, body, payload, about, row.tags, occurrence, labels)

    def _occurrence(self, payload: str, row: formats.Row) -> int:
        whole = f"{payload}\0{row.completion!r}\0{row.gold!r}".encode("utf-8", "surrogatepass")
        key = hashlib.blake2b(whole, digest_size=16).digest()
        count = self.seen[key]
        self.seen[key] = count + 1
        return count
