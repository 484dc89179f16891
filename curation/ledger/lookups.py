"""What several parts of the ledger ask of it: which rows are visible, which number an id has, where a text lies."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from itertools import repeat

from curation.errors import UsageError
from curation.ledger import schema
from curation.ledger.incoming import author_id, to_bytes
from curation.ledger.store import Reader, Writer
from curation.records import AUTHOR_KINDS, SOURCE_TRUST, digest

_LIVE = "NOT IN (SELECT ingest FROM ingest_undos)"

VISIBLE_RECORD = f"""(r.ingest {_LIVE} OR EXISTS (SELECT 1 FROM reasserted ra
    WHERE ra.record_seq = r.seq AND ra.label_seq IS NULL AND ra.ingest {_LIVE}))"""
"""A record ``r`` counts while an ingest that held it was not undone."""

BROUGHT_LABEL = f"""(l.ingest IS NULL OR l.ingest {_LIVE} OR EXISTS (SELECT 1 FROM reasserted la
    WHERE la.record_seq = l.record_seq AND la.label_seq = l.seq AND la.ingest {_LIVE}))"""
"""A label ``l`` of a source counts while an ingest that held it was not undone; other labels always do."""

STANDING_LABEL = """coalesce((SELECT w.withdrawn FROM label_withdrawals w
    WHERE w.label = l.id ORDER BY w.seq DESC LIMIT 1), 0) = 0"""
"""A label ``l`` that nobody has withdrawn, or that was restored since."""

VISIBLE_LABEL = f"{BROUGHT_LABEL} AND {STANDING_LABEL}"


def in_kinds(kinds: Collection[str] | None) -> str:
    """An SQL condition on ``l.kind``. ``None`` is every kind but gold, which nobody may see by accident."""
    chosen = [k for k in AUTHOR_KINDS if k != "gold"] if kinds is None else sorted(kinds)
    unknown = set(chosen) - set(AUTHOR_KINDS)
    if unknown:
        raise UsageError(
            f"unknown kind of label: {sorted(unknown)[0]!r}", next=f"Known are {', '.join(AUTHOR_KINDS)}"
        )
    if not chosen:
        return "1 = 0"
    return "l.kind IN (" + ", ".join(f"'{k}'" for k in chosen) + ")"  # every one of them was checked above


def record_seqs(reader: Reader, ids: Iterable[str]) -> dict[str, int]:
    """The number of each record; ``UsageError`` naming the first that the ledger does not hold."""
    wanted = list(dict.fromkeys(ids))
    found = {row[0]: row[1] for row in reader.rows_in("SELECT id, seq FROM records WHERE id {items}", wanted)}
    missing = [record for record in wanted if record not in found]
    if missing:
        raise UsageError(
            f"the ledger holds no record {missing[0]!r}", next="Ingest its source first: tilth ingest FILE"
        )
    return found


def put_payloads(writer: Writer, bodies: Iterable[str | bytes]) -> list[str]:
    """Store texts that are not there yet and return their digests, in order. An erased text stays erased."""
    raws = [to_bytes(body) for body in bodies]
    digests = [digest(raw) for raw in raws]
    texts = dict(zip(digests, raws, strict=True))
    add_payloads(writer, texts, held_payloads(writer, list(texts)))
    return digests


def held_payloads(reader: Reader, digests: Sequence[str]) -> dict[str, bool]:
    """Which of the texts were ever stored, and of each whether it was erased since."""
    rows = reader.rows_in("SELECT digest, body IS NULL FROM payloads WHERE digest {items}", digests)
    return {row[0]: bool(row[1]) for row in rows}


def add_payloads(writer: Writer, bodies: dict[str, bytes], held: dict[str, bool]) -> None:
    """Store the texts that are not among ``held``."""
    # Sorted, because neighbours in the index then share a page: a quarter less time for a large batch.
    fresh = sorted(bodies.keys() - held.keys()) if held else sorted(bodies)
    writer.insert_columns(schema.payloads, fresh, map(bodies.__getitem__, fresh), repeat(None))


def bodies_of(reader: Reader, digests: Iterable[str | None]) -> dict[str, str]:
    """The texts behind digests; erased and unknown ones are missing from the answer."""
    wanted = list(dict.fromkeys(d for d in digests if d is not None))
    rows = reader.rows_in(
        "SELECT digest, body FROM payloads WHERE digest {items} AND body IS NOT NULL", wanted
    )
    return {row[0]: bytes(row[1]).decode() for row in rows}


def author_salt(reader: Reader) -> str:
    """What the ledger's opaque ids are keyed with."""
    return str(reader.meta("author_salt"))


def ensure_author(writer: Writer, name: str, kind: str) -> str:
    """The id of an author, added if new."""
    author = author_id(author_salt(writer), name, kind)
    if writer.one("SELECT 1 FROM authors WHERE id = :id", id=author) is None:
        writer.insert(schema.authors, [(author, name, "source" if kind in SOURCE_TRUST else kind)])
    return author


def known(reader: Reader, table: str, column: str, values: Sequence[str]) -> set[str]:
    """Which of ``values`` the table already holds in ``column``."""
    rows = reader.rows_in(f'SELECT "{column}" FROM "{table}" WHERE "{column}" {{items}}', list(values))
    return {row[0] for row in rows}
