"""What is put on somebody's screen: a Showing for each record and person, and the task that carries it there."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import orjson

from curation import records as nouns
from curation.curate import Rules
from curation.label_studio import Suggestion, to_task, validate_task
from curation.ledger import Passage, Question, Showing
from curation.passages import prompts_of
from curation.records import DECISIONS, decision, table
from curation.workspace import Workspace


def make_tasks(
    workspace: Workspace, question: Question, showings: Sequence[Showing], *, files: bool = False
) -> list[dict[str, Any]]:
    """The showings as tasks with the scrubbed prompt; each is checked against the question before it leaves.

    On a form (``files``) there is no place for passages.
    """
    prompts = prompts_of(workspace, [s.record for s in showings])
    library = {p.id: p for p in workspace.ledger.passages()}
    tasks = []
    for showing in showings:
        row = {"record": showing.record, "prompt": prompts[showing.record], **judged(showing, question)}
        shown = [_passage_text(library[p]) for p in showing.passages if p in library]
        task = to_task(
            showing,
            row,
            _suggestion(showing, question),
            replace(question, version=showing.question_version),
            passages=shown if library and not files else None,
        )
        validate_task(task, question)
        tasks.append(task)
    return tasks


def judged(showing: Showing, question: Question) -> dict[str, str]:
    """What the task asks an opinion about: an answer, or the two sides of a comparison as they stood on the page."""
    if question.kind == "compare":
        a, b = orjson.loads(showing.suggestion or "[]")
        return {"a": a, "b": b}
    return {"completion": showing.suggestion or ""} if question.kind in ("accept", "rubric", "spans") else {}


def _suggestion(showing: Showing, question: Question) -> Suggestion | None:
    """What a model proposes as the answer; nothing where the text that a Showing keeps is itself what is judged."""
    if showing.suggestion is None or question.kind not in ("edit", "class"):
        return None
    told = showing.extra or {}
    by = showing.suggestion_by or "source"
    return Suggestion(showing.suggestion, by, told.get("confidence"), told.get("why", ""))


def sides(first: str, second: str, record: str, person: str) -> str:
    """Two answers as a comparison keeps them: which is A changes from person to person, so that neither place wins.

    >>> sorted(orjson.loads(sides("x", "y", "r1", "a"))) == ["x", "y"]
    True
    """
    turned = int(nouns.digest(f"{record}\0{person}")[0], 16) % 2
    return orjson.dumps([second, first] if turned else [first, second]).decode()


def _passage_text(passage: Passage) -> str:
    path = " › ".join((passage.document, *passage.heading))
    return f"{path}\n{passage.body.strip()}"


def record_drops(workspace: Workspace, drops: Mapping[str, str], *, open_to: Collection[str]) -> None:
    """Keep out of training what people would not answer: a bad question is dropped, what nobody can answer is held.

    Only a bad question outweighs an answer that somebody else gave (``open_to`` are the answered showings).
    """
    answered = {s.record for s in workspace.ledger.showings(list(open_to))} if open_to else set()
    rows = [
        decision(record, "drop", "people say: bad question")
        if why == "bad question"
        else decision(record, "hold", f"people could not answer it: {why or 'no reason given'}")
        for record, why in drops.items()
        if why == "bad question" or record not in answered
    ]
    if rows:
        rule = Rules(workspace).asked
        workspace.ledger.decide("asked", rule, table(rows, DECISIONS), covered=[], supersede=False)
