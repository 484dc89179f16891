"""A revision carried out: the question's next version, the records that must be asked about again, the projects."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from curation.people import plan
from curation.people.plan import Person
from curation.people.through import AGAIN, Through
from curation.question import Revision, current
from curation.question import revise as revise_question
from curation.workspace import Workspace


def revise(
    workspace: Workspace,
    change: Revision,
    name: str | None = None,
    through: Through | None = None,
    *,
    dry_run: bool = False,
) -> dict[str, Any]:
    """Store the revision and ask again; where ``through`` leads to a server, its projects are renewed at once.

    Open tasks stay where they are: an answer under the former version is read with what its class counts as now.
    """
    told = revise_question(workspace, change, name, dry_run=dry_run)
    if dry_run:
        return told
    book, question = workspace.ledger, current(workspace, name)
    again = [
        replace(
            s,
            question_version=question.version,
            suggestion=s.suggestion if s.suggestion in question.classes else None,
            extra={**(s.extra or {}), AGAIN: s.id},
            id="",
        )
        for s in book.showings(told["again"])
    ]
    ids = book.add_showings(again)
    told["again"] = ids
    if through is not None:
        asked = {s.annotator for s in book.showings() if s.question == question.name}
        team: list[Person | None] = [p for p in plan.people(workspace) if p.id in asked]
        for person in team or [None]:
            through.renew(workspace, question, person)
        through.ask(workspace, question, [replace(s, id=i) for s, i in zip(again, ids, strict=True)])
    return told
