"""Tasks outside the loop: answers to be judged under another question, and honeypots whose answer is known."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from curation import records
from curation.assemble import one_per_record, reserved_records
from curation.curate import Rules, blocked, without
from curation.errors import UsageError
from curation.ledger import Question, Showing
from curation.passages import passages_of
from curation.people.analytics import honeypots
from curation.people.showing import sides
from curation.people.through import Through
from curation.workspace import Workspace, view


def offer(workspace: Workspace, through: Through, question: Question, count: int) -> list[str]:
    """Make showings for ``count`` records that this question has not been asked about; the ids.

    Which records is settled by digest, so that nobody's eye has picked them. An answer to be judged is the source's; a
    comparison needs two different ones, and leaves out records that have not. Raises :class:`UsageError` where none is
    left.
    """
    through.require(question)
    asked = {s.record for s in workspace.ledger.showings() if s.question == question.name}
    out = blocked(workspace, Rules(workspace)) | reserved_records(workspace) | asked
    rows = without(view(workspace, rule=Rules(workspace).scrub, kinds={"candidate", "reference"}), out)
    texts: dict[str, list[str]] = {}
    seen: dict[str, tuple[Any, str]] = {}
    columns = (rows[name].to_pylist() for name in ("record", "messages", "prompt", "completion"))
    for record, messages, prompt, completion in zip(*columns, strict=True):
        seen[record] = (messages, prompt)
        answers = texts.setdefault(record, [])
        if completion and completion not in answers:
            answers.append(completion)
    need = {"compare": 2, "spans": 0}.get(question.kind, 1)
    ready = sorted((r for r, found in texts.items() if len(found) >= need), key=records.digest)[:count]
    if not ready:
        raise UsageError(
            f"no record is left to ask {question.name!r} about",
            where=str(workspace.root),
            next="It needs records with an answer that somebody may judge: ingest some with --map completion=FIELD",
        )
    per_record = workspace.config.question[question.name].annotators_per_record
    seats = through.seats(workspace, question, [(r, seen[r][1]) for r in ready], per_record)
    passages = passages_of(workspace, {r: seen[r][1] for r in ready})
    return workspace.ledger.add_showings(
        [
            _showing(question, record, seen[record], texts[record], person, passages[record])
            for record in ready
            for person in seats[record]
        ]
    )


def _showing(
    question: Question,
    record: str,
    row: tuple[Any, str],
    answers: Sequence[str],
    person: str,
    passages: tuple[str, ...],
) -> Showing:
    messages, prompt = row
    judged = (
        sides(answers[0], answers[1], record, person)
        if question.kind == "compare"
        else answers[0]
        if answers
        else prompt
    )
    return Showing(
        record,
        question.name,
        question.version,
        records.digest(records.canonical_json(messages)),
        suggestion=judged,
        suggestion_by="source",
        passages=passages,
        annotator=person,
    )


def check(workspace: Workspace, through: Through, question: Question, count: int) -> list[str]:
    """Make blind showings of ``count`` records whose answer is known, for each person; the ids.

    They come from the rows reserved for tuning (``dev``), which nothing is trained on, and never from the test set.
    Raises :class:`UsageError` where there are none.
    """
    through.require(question)
    known = honeypots(workspace)
    out = blocked(workspace, Rules(workspace))
    rows = one_per_record(view(workspace, rule=Rules(workspace).scrub))
    columns = (rows[name].to_pylist() for name in ("record", "messages", "prompt"))
    seen = {r: (m, p) for r, m, p in zip(*columns, strict=True) if r in known and r not in out}
    asked = {s.record for s in workspace.ledger.showings() if (s.extra or {}).get("honeypot")}
    ready = sorted((r for r in seen if r not in asked), key=records.digest)[:count]
    if not ready:
        raise UsageError(
            "there is no tuning row with a known answer",
            where=str(workspace.root),
            next="Rows are reserved by the first run (evaluation.dev_share) where gold or references are there",
        )
    people = [p.id for p in through.team(workspace)] or ["0"]
    passages = passages_of(workspace, {r: seen[r][1] for r in ready})
    return workspace.ledger.add_showings(
        [
            Showing(
                record,
                question.name,
                question.version,
                records.digest(records.canonical_json(seen[record][0])),
                passages=passages[record],
                blind=True,
                annotator=person,
                extra={"honeypot": True},
            )
            for record in ready
            for person in people
        ]
    )
