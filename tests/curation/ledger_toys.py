"""Toy rows for the ledger's tests."""

from __future__ import annotations

from collections.abc import Sequence

from curation.ledger import Ledger, NewRecord
from curation.records import canonical_json, digest, record_id, user_message


def row(key: str, prompt: str = "", labels: Sequence[tuple[str, str, float | None]] = ()) -> NewRecord:
    """A record of the source ``toys`` under a key; by default its prompt names the key."""
    body = canonical_json(user_message(prompt or f"question {key}"))
    return NewRecord(record_id("toys", key=key), "toys", key, body, labels=labels)


def drafted(key: str, completion: str = "") -> NewRecord:
    """A record with one candidate completion."""
    return row(key, labels=[("candidate", completion or f"answer {key}", None)])


def take_in(ledger: Ledger, rows: Sequence[NewRecord], name: str = "toys.jsonl") -> str:
    """One whole ingest; returns its id."""
    ingest = ledger.begin_ingest("toys", name, digest(name), format="jsonl")
    ledger.add_rows(ingest, rows)
    ledger.end_ingest(ingest)
    return ingest


def view(ledger: Ledger, **options: object) -> list[dict[str, object]]:
    """The whole view as rows."""
    pages = ledger.view_pages(**{"scrub_rule": None, **options})  # type: ignore[arg-type]
    return [row for page in pages for row in page.table.to_pylist()]


def prompts(ledger: Ledger) -> list[object]:
    """The prompts in view, in order, one per row."""
    return [row["prompt"] for row in view(ledger)]
