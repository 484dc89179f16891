"""The curators' review log: one chain of decisions per record, each made against the version its author saw.

A decision made against an older version is refused with the other's decision and a diff; nothing is overwritten.
Undo takes back the latest decision that stands, to any depth, and is itself an entry of the log.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from curation.errors import ConflictError, UsageError
from curation.ledger import schema
from curation.ledger.labels import store_labels, withdraw
from curation.ledger.lookups import bodies_of, ensure_author, put_payloads, record_seqs
from curation.ledger.rows import NewLabel, Review, ReviewConflict, ReviewResult
from curation.ledger.store import Reader, Store, Writer
from curation.records import digest

REVIEW_ACTIONS = ("accept", "reject", "edit", "skip")

REVIEW_STATES = pa.schema(
    [
        ("record", pa.string()),
        ("action", pa.string()),
        ("version", pa.int64()),
        ("label", pa.string()),
        ("reason", pa.string()),
        ("author", pa.string()),
    ]
)
"""The decision that stands for each reviewed record; records whose every decision was undone are not in it."""


class Reviews(Store):
    """Decisions of curators, with compare-and-swap on the record's version."""

    def review_state(self, record: str) -> tuple[int, list[Review]]:
        """The record's version (0 before any review) and its whole log, oldest first."""
        with self._read() as reader:
            number = record_seqs(reader, [record])[record]
            history = _history(reader, number)
        return (history[-1].version if history else 0), history

    def review(
        self,
        record: str,
        *,
        version: int,
        action: str,
        body: str | None = None,
        label: str | None = None,
        reason: str = "",
        key: str,
    ) -> ReviewResult:
        """Decide about a record as it stood at ``version``: accept, reject, edit or skip.

        ``accept`` names what is accepted, as ``body`` (the text on screen) or ``label``; ``edit`` gives the new
        ``body``; both make a curator's Label, which stands until the next decision. The same ``key`` twice gives the
        same result and acts once. ``ReviewConflict`` when the version has moved, with the other's decision and a diff.
        """
        _check_review(action, body, label)
        with self._write("review") as writer:
            number = record_seqs(writer, [record])[record]
            repeated = self._repeated(writer, key, record, action)
            if repeated:
                return repeated
            body = _accepted(writer, body, label, number)
            history = _history(writer, number)
            current = history[-1].version if history else 0
            self._check_version(version, current, history, action, body)
            self._retire(writer, history, "superseded by a newer review")
            made = self._curator_label(writer, record, body, key) if action in ("accept", "edit") else None
            return self._log(writer, number, record, current + 1, action, made, body, reason, key)

    def undo_review(self, record: str, *, version: int, key: str, reason: str = "") -> ReviewResult:
        """Take back the latest decision that stands and bring back the one before it, with its Label.

        Same rules for ``version`` and ``key`` as :meth:`review`. ``UsageError`` where nothing is left to undo.
        """
        with self._write("review undo") as writer:
            number = record_seqs(writer, [record])[record]
            repeated = self._repeated(writer, key, record, "undo")
            if repeated:
                return repeated
            history = _history(writer, number)
            current = history[-1].version if history else 0
            self._check_version(version, current, history, "undo", None)
            standing = _stack(history)
            if not standing:
                raise UsageError(
                    "there is no decision left to undo", where=record, next="Review the record first"
                )
            self._retire(writer, history, "its review was undone")
            before = standing[-2] if len(standing) > 1 else None
            if before and before.label:
                withdraw(writer, [before.label], "the review after it was undone", restore=True)
            label = before.label if before else None
            return self._log(writer, number, record, current + 1, "undo", label, None, reason, key)

    def review_states(self) -> pa.Table:
        """The decision that stands for every reviewed record: a table of ``REVIEW_STATES``, in record order."""
        with self._read() as reader:
            rows = reader.all(f"{_REVIEWS} ORDER BY v.record_seq, v.version")
        histories: dict[str, list[Review]] = {}
        for row in rows:
            histories.setdefault(row[1], []).append(_review(row, {}))
        states = []
        for record, history in histories.items():
            standing = _stack(history)
            if standing:
                top = standing[-1]
                states.append((record, top.action, history[-1].version, top.label, top.reason, top.author))
        columns = list(zip(*states, strict=True)) or [()] * len(REVIEW_STATES)
        return pa.table(
            [pa.array(c, f.type) for c, f in zip(columns, REVIEW_STATES, strict=True)], REVIEW_STATES
        )

    def reviews(self, after: int = 0) -> list[Review]:
        """The whole log in commit order, all records together; from the ``after``-th entry on."""
        with self._read() as reader:
            return _reviews(reader, f"{_REVIEWS} WHERE v.seq > :after ORDER BY v.seq", after=after)

    def _check_version(
        self, seen: int, current: int, history: Sequence[Review], action: str, body: str | None
    ) -> None:
        """The compare of compare-and-swap; the swap is the unique (record, version)."""
        if seen == current:
            return
        if not history:
            raise ConflictError(f"version {seen} of this record does not exist", next="Reload the record")
        theirs = history[-1]
        raise ReviewConflict(
            f"{theirs.actor} chose {theirs.action!r} at {theirs.time}, after you opened version {seen}; yours was {action!r}",
            where=theirs.record,
            next="Look at the difference, then decide again",
            theirs=theirs,
            diff=text_diff(theirs.body or "", body or "", theirs.actor, self.actor),
        )

    def _repeated(self, writer: Writer, key: str, record: str, action: str) -> ReviewResult | None:
        found = _reviews(writer, f"{_REVIEWS} WHERE v.key = :key", key=key)
        if not found:
            return None
        first = found[0]
        if (first.record, first.action) != (record, action):
            raise ConflictError(
                "this idempotency key was used for another decision",
                where=record,
                next="Use a fresh key for each decision",
            )
        return ReviewResult(record, first.version, action, first.label, repeated=True)

    def _retire(self, writer: Writer, history: Sequence[Review], reason: str) -> None:
        standing = _stack(history)
        if standing and standing[-1].label:
            withdraw(writer, [standing[-1].label], reason)

    def _curator_label(self, writer: Writer, record: str, body: str | None, key: str) -> str:
        author = ensure_author(writer, self.actor, "curator")
        row = NewLabel(record, None, None, "curator", author, body or "", revision=f"review:{key}")
        store_labels(writer, {row.id: row})
        return row.id

    def _log(
        self,
        writer: Writer,
        number: int,
        record: str,
        version: int,
        action: str,
        label: str | None,
        body: str | None,
        reason: str,
        key: str,
    ) -> ReviewResult:
        author = ensure_author(writer, self.actor, "curator")
        payload = None if body is None else put_payloads(writer, [body])[0]
        row = (
            digest(f"{record}\0{version}\0{key}"),
            number,
            version,
            action,
            label,
            payload,
            reason,
            author,
            key,
        )
        writer.insert(schema.reviews, [row])
        return ReviewResult(record, version, action, label)


_REVIEWS = (
    "SELECT v.id, r.id, v.version, v.action, v.label, v.payload, v.reason, v.author, t.actor, t.time FROM reviews v "
    "JOIN records r ON r.seq = v.record_seq JOIN transactions t ON t.seq = v.tx"
)


def text_diff(theirs: str, ours: str, their_name: str, our_name: str) -> str:
    """A unified diff of two texts, line by line; empty where they are equal."""
    lines = difflib.unified_diff(
        theirs.splitlines(), ours.splitlines(), their_name, our_name, lineterm="", n=1
    )
    return "\n".join(lines)


def _check_review(action: str, body: str | None, label: str | None) -> None:
    if action not in REVIEW_ACTIONS:
        raise UsageError(
            f"unknown review {action!r}", next=f"Use one of {', '.join(REVIEW_ACTIONS)}, or undo_review"
        )
    if action == "edit" and body is None:
        raise UsageError("an edit needs the new text", next="Give body")
    if action == "accept" and body is None and label is None:
        raise UsageError(
            "an acceptance needs what is accepted", next="Give body, the text on screen, or label"
        )


def _accepted(reader: Reader, body: str | None, label: str | None, number: int) -> str | None:
    """The text that a decision is about: as given, or that of the label it names."""
    if body is not None or label is None:
        return body
    row = reader.one(
        "SELECT p.body FROM labels l JOIN payloads p ON p.digest = l.payload WHERE l.id = :id AND l.record_seq = :n",
        id=label,
        n=number,
    )
    if row is None or row[0] is None:
        raise UsageError(f"the record has no label {label!r} with a text", next="Give a label of this record")
    return bytes(row[0]).decode()


def _stack(history: Sequence[Review]) -> list[Review]:
    """The decisions that stand, oldest first: every undo takes the top one away."""
    standing: list[Review] = []
    for entry in history:
        if entry.action != "undo":
            standing.append(entry)
        elif standing:
            standing.pop()
    return standing


def _history(reader: Reader, number: int) -> list[Review]:
    return _reviews(reader, f"{_REVIEWS} WHERE v.record_seq = :n ORDER BY v.version", n=number)


def _reviews(reader: Reader, statement: str, **values: Any) -> list[Review]:
    rows = reader.all(statement, **values)
    bodies = bodies_of(reader, [row[5] for row in rows])
    return [_review(row, bodies) for row in rows]


def _review(row: Sequence[Any], bodies: dict[str, str]) -> Review:
    values = list(row)
    values[5] = bodies.get(values[5])
    return Review(*values)
