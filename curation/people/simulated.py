"""A simulation that answers with the hidden gold. It is called simulated wherever it shows."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from curation.choosing import arm_of
from curation.curate import Rules, scrubbed_labels
from curation.errors import UsageError
from curation.ledger import NewLabel, Question, Showing
from curation.run import TWIN
from curation.workspace import Workspace


@dataclass
class Simulated:
    """Answers every showing with the record's gold; where a source gave none, with the source's own completion.

    The random twin of the strategy has annotators of its own, so that neither learns from the other's Labels.
    """

    name: str = "simulated"
    simulated: bool = True

    def ask(self, workspace: Workspace, question: Question, showings: Sequence[Showing]) -> int:
        """A simulation needs no telling: it answers what it is shown when it is collected from."""
        return len(showings)

    def require(self, question: Question) -> None:
        """Raise :class:`UsageError` for a question that judges: a simulation knows answers and has no opinion."""
        if question.kind not in ("edit", "class", "accept"):
            raise UsageError(
                f"a simulation has no opinion on a question of kind {question.kind!r}",
                where=f"question {question.name}",
                next="Ask people: --annotator label-studio",
            )

    def collect(self, workspace: Workspace, question: Question) -> dict[str, int]:
        """Write one Label for each showing that nobody has answered."""
        book = workspace.ledger
        twins = {s.id for s in book.selections() if arm_of(s) == TWIN}
        done = answered(workspace)
        # What was put before somebody by name waits for them, and not for a simulation.
        todo = [s for s in book.showings() if s.id not in done and (s.annotator or "0").isdecimal()]
        known = _known_answers(workspace, {s.record for s in todo})
        labels = []
        for showing in todo:
            answers = known.get(showing.record, [])
            place = int(showing.annotator or 0)
            if not answers:
                continue
            kind = f"simulated-{TWIN}" if showing.selection in twins else "simulated"
            labels.append(
                NewLabel(
                    record=showing.record,
                    question=question.name,
                    question_version=question.version,
                    kind="person",
                    author=book.add_author(f"{kind}-{place + 1}", kind),
                    body=answers[place % len(answers)],
                    showing=showing.id,
                )
            )
        book.add_labels(labels)
        return {"added": len(labels), "withdrawn": 0, "unusable": 0}

    def waiting(self, workspace: Workspace, showings: Sequence[str]) -> int:
        """How many of these showings have no answer."""
        return len(set(showings) - answered(workspace))

    def batch(self, workspace: Workspace, question: Question, per_record: int) -> int | None:
        """Nobody's time is spent, so nothing limits a batch."""
        return None

    def seats(
        self, workspace: Workspace, question: Question, rows: Sequence[tuple[str, str]], per_record: int
    ) -> dict[str, tuple[str, ...]]:
        """A seat for each opinion that is wanted, numbered."""
        return {record: numbered(per_record) for record, _ in rows}

    def another(
        self,
        workspace: Workspace,
        question: Question,
        rows: Sequence[tuple[str, str]],
        given: Mapping[str, int] | None = None,
    ) -> dict[str, tuple[str, ...]]:
        """Nobody: the answer would be the same."""
        return {record: () for record, _ in rows}

    def where(self, workspace: Workspace) -> str:
        """Where to look for the tasks; a simulation has no such place."""
        return "a simulation: records without gold cannot be answered"


def numbered(per_record: int) -> tuple[str, ...]:
    """Seats for whoever comes: nobody in particular is meant."""
    return tuple(str(place) for place in range(per_record))


def answered(workspace: Workspace) -> set[str]:
    """The showings that a person's standing Label answers."""
    return set(workspace.ledger.labels(kinds={"person"})["showing"].to_pylist()) - {None}


def _known_answers(workspace: Workspace, wanted: set[str]) -> dict[str, list[str]]:
    """The texts that the simulation answers with: gold where a record has some, else reference, else candidate."""
    found: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    kinds = ("gold", "reference", "candidate")
    rows = scrubbed_labels(workspace, Rules(workspace), set(kinds), sorted(wanted))
    columns = (rows[name].to_pylist() for name in ("record", "kind", "body"))
    for record, kind, body in zip(*columns, strict=True):
        if body is not None:
            found[record][kind].append(body)
    return {record: next(by[kind] for kind in kinds if kind in by) for record, by in found.items()}
