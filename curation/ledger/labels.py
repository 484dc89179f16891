"""Opinions and who holds them: authors, labels, labeling functions, runs of votes and scores.

A label is never changed; it is withdrawn, and may be restored. Nothing here weighs one opinion against another.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import orjson

from curation.errors import UsageError
from curation.ledger import schema
from curation.ledger.incoming import json_text
from curation.ledger.lookups import (
    STANDING_LABEL,
    ensure_author,
    in_kinds,
    known,
    put_payloads,
    record_seqs,
)
from curation.ledger.rows import Author, Function, NewLabel, ScoreRun, VoteRun
from curation.ledger.store import Store, Writer
from curation.records import digest

SUPERSEDED = "superseded by a newer label of the same person about the same showing"


class Labels(Store):
    """Authors, labels, functions, vote runs and scores."""

    def add_author(self, name: str, kind: str) -> str:
        """The opaque id of a person, source, function or model; the same name and kind give the same id."""
        with self._write("author") as writer:
            return ensure_author(writer, name, kind)

    def authors(self) -> list[Author]:
        """Everybody who ever had an opinion, oldest first; erased names are ``None``."""
        with self._read() as reader:
            return [Author(*row) for row in reader.all("SELECT id, name, kind FROM authors ORDER BY seq")]

    def erase_author(self, author: str) -> None:
        """Forget a name; the opaque id stays on what they said. ``UsageError`` for an id that is not there."""
        with self._write("erase author") as writer:
            if writer.one("SELECT 1 FROM authors WHERE id = :id", id=author) is None:
                raise UsageError(f"the ledger holds no author {author!r}", next="See: tilth people")
            writer.run("UPDATE authors SET name = NULL WHERE id = :id", id=author)
            writer.insert(schema.events, [("author erased", author, "{}")])

    def add_labels(self, rows: Sequence[NewLabel]) -> list[str]:
        """Store opinions and return their ids, in order; one that is known by id is left as it is.

        A person's new label about the same showing is a changed mind: it withdraws that person's earlier ones.
        ``UsageError`` for an unknown record or kind.
        """
        if not rows:
            return []
        in_kinds({row.kind for row in rows})
        ids = [row.id for row in rows]
        with self._write("label") as writer:
            held = known(writer, "labels", "id", ids)
            fresh = {label: row for label, row in zip(ids, rows, strict=True) if label not in held}
            store_labels(writer, fresh)
            _supersede(writer, fresh)
        return ids

    def withdrawn(self, ids: Sequence[str]) -> dict[str, str]:
        """Which of these labels are withdrawn, each with the reason; standing and unknown ones are left out."""
        statement = (
            "SELECT l.id, (SELECT w.reason FROM label_withdrawals w WHERE w.label = l.id ORDER BY w.seq DESC LIMIT 1) "
            f"FROM labels l WHERE l.id {{items}} AND NOT ({STANDING_LABEL})"
        )
        with self._read() as reader:
            return {row[0]: row[1] for row in reader.rows_in(statement, list(dict.fromkeys(ids)))}

    def withdraw_labels(self, ids: Sequence[str], reason: str) -> int:
        """Take labels out of every view (deleted annotation, revoked author); returns how many were standing."""
        with self._write("label withdraw") as writer:
            return withdraw(writer, ids, reason)

    def restore_labels(self, ids: Sequence[str], reason: str) -> int:
        """Bring withdrawn labels back; returns how many were withdrawn."""
        with self._write("label restore") as writer:
            return withdraw(writer, ids, reason, restore=True)

    def labels_by(self, author: str, kinds: Collection[str] | None = None) -> list[str]:
        """The ids of every standing label of an author, oldest first. ``kinds`` defaults to all but gold."""
        with self._read() as reader:
            where = f"WHERE l.author = :author AND {in_kinds(kinds)} AND {STANDING_LABEL}"
            return [
                row[0]
                for row in reader.all(f"SELECT l.id FROM labels l {where} ORDER BY l.seq", author=author)
            ]

    def add_functions(self, functions: Sequence[Function]) -> None:
        """Keep labeling functions as they stood when they voted; one that is known by digest is left as it is."""
        with self._write("functions") as writer:
            held = known(writer, "functions", "digest", [f.digest for f in functions])
            fresh = list({f.digest: f for f in functions if f.digest not in held}.values())
            payloads = put_payloads(writer, [f.source for f in fresh])
            rows = [
                (f.digest, f.name, f.path, payload, json_text(f.classes))
                for f, payload in zip(fresh, payloads, strict=True)
            ]
            writer.insert(schema.functions, rows)

    def functions(self) -> list[Function]:
        """Every labeling function that ever voted, oldest first."""
        with self._read() as reader:
            rows = reader.all(
                "SELECT f.digest, f.name, f.path, p.body, f.classes FROM functions f "
                "LEFT JOIN payloads p ON p.digest = f.source ORDER BY f.seq"
            )
        return [
            Function(r[0], r[1], r[2], bytes(r[3] or b"").decode(), tuple(orjson.loads(r[4]))) for r in rows
        ]

    def add_vote_run(self, artifact: str, *, rule: str, record_hi: int, functions: Sequence[str]) -> str:
        """Note that functions voted on everything up to ``record_hi``; the votes are in ``artifact``. Returns its id."""
        run = digest(f"{artifact}\0{rule}\0{record_hi}")
        with self._write("vote") as writer:
            if not known(writer, "vote_runs", "id", [run]):
                writer.insert(
                    schema.vote_runs, [(run, artifact, rule, record_hi, json_text(list(functions)))]
                )
        return run

    def vote_runs(self) -> list[VoteRun]:
        """Every run of the functions, oldest first."""
        with self._read() as reader:
            rows = reader.all("SELECT id, artifact, rule, record_hi, functions FROM vote_runs ORDER BY seq")
        return [VoteRun(r[0], r[1], r[2], r[3], tuple(orjson.loads(r[4]))) for r in rows]

    def latest_vote_run(self) -> VoteRun | None:
        """The newest run of the functions, or ``None``."""
        runs = self.vote_runs()
        return runs[-1] if runs else None

    def add_scores(self, adapter: str, artifact: str, *, view_rule: str, record_hi: int) -> str:
        """Note that an adapter scored everything up to ``record_hi``; the scores are in ``artifact``. Returns its id."""
        run = digest(f"{adapter}\0{artifact}\0{view_rule}\0{record_hi}")
        with self._write("score") as writer:
            if not known(writer, "scores", "id", [run]):
                writer.insert(schema.scores, [(run, adapter, artifact, view_rule, record_hi)])
        return run

    def score_runs(self, adapter: str | None = None) -> list[ScoreRun]:
        """Every scoring, oldest first; of one adapter where it is named."""
        with self._read() as reader:
            rows = reader.all("SELECT id, adapter, artifact, view_rule, record_hi FROM scores ORDER BY seq")
        return [ScoreRun(*row) for row in rows if adapter is None or row[1] == adapter]


def store_labels(writer: Writer, fresh: dict[str, NewLabel]) -> None:
    """Add labels by id; the caller has left out those that are there."""
    numbers = record_seqs(writer, [row.record for row in fresh.values()])
    payloads = put_payloads(writer, [row.body for row in fresh.values()])
    writer.insert(
        schema.labels,
        [
            (
                label,
                numbers[row.record],
                row.question,
                row.question_version,
                row.kind,
                row.author,
                payload,
                None if row.confidence is None else float(row.confidence),
                row.showing,
                None,
                None if row.extra is None else json_text(row.extra),
            )
            for (label, row), payload in zip(fresh.items(), payloads, strict=True)
        ],
    )


def withdraw(writer: Writer, ids: Sequence[str], reason: str, *, restore: bool = False) -> int:
    """Withdraw (or restore) those of the labels that are not so already, and return how many they were."""
    statement = f"SELECT l.id, {STANDING_LABEL} FROM labels l WHERE l.id {{items}}"
    rows = writer.rows_in(statement, list(dict.fromkeys(ids)))
    missing = set(ids) - {row[0] for row in rows}
    if missing:
        raise UsageError(
            f"the ledger holds no label {min(missing)!r}", next="Give ids as labels() lists them"
        )
    turning = [row[0] for row in rows if bool(row[1]) != restore]
    writer.insert(schema.label_withdrawals, [(label, int(not restore), reason) for label in turning])
    return len(turning)


def _supersede(writer: Writer, fresh: dict[str, NewLabel]) -> None:
    people = {label: row for label, row in fresh.items() if row.kind == "person" and row.showing is not None}
    if not people:
        return
    statement = (
        "SELECT l.id, l.showing, l.author, l.question, l.question_version FROM labels l JOIN records r ON r.seq = l.record_seq "
        f"WHERE r.id {{items}} AND l.kind = 'person' AND l.showing IS NOT NULL AND {STANDING_LABEL} ORDER BY l.seq"
    )
    latest = {_mind(row): label for label, row in people.items()}
    rows = writer.rows_in(statement, list({row.record for row in people.values()}))
    old = [row[0] for row in rows if latest.get(tuple(row[1:]), row[0]) != row[0]]
    withdraw(writer, old, SUPERSEDED)


def _mind(row: NewLabel) -> tuple[str | None, str, str | None, int | None]:
    return (row.showing, row.author, row.question, row.question_version)
