"""Choosing a batch: which records people are asked about next, why, and what is on whose screen.

A choice and its screens are stored together, and a choice that is stored stands.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curation import acquisition, records, relabel, voting
from curation.assemble import one_per_record, reserved_records
from curation.curate import Rules, blocked, load_artifact, load_table, save_table, without
from curation.errors import UsageError
from curation.ledger import Question, Selection, SelectionItem, Showing
from curation.passages import passages_of
from curation.question import current
from curation.run import MAIN, TWIN, Run
from curation.text import normalise
from curation.workspace import Workspace, view

# Scoring costs time for every record, and a sample of the pool holds about as good a batch as the whole.
POOL_SAMPLE = 2_000


def pool(loop: Run) -> pa.Table:
    """Every record that people may be asked about now: not reserved, not kept out, one row each."""
    workspace = loop.workspace
    rules = Rules(workspace)
    out = blocked(workspace, rules) | reserved_records(workspace)
    rows = one_per_record(without(view(workspace, rule=rules.scrub), out))
    if loop.annotator.simulated:
        answerable = workspace.ledger.labels(kinds={"gold", "reference", "candidate"})[
            "record"
        ].combine_chunks()
        rows = rows.filter(pc.is_in(rows["record"], value_set=answerable))
    return rows


def arm_of(selection: Selection) -> str:
    """Whom a selection was made for: the strategy, which may draw at random too, or its random twin."""
    return TWIN if any(item.arm == TWIN for item in selection.items) else MAIN


def asked(loop: Run, arm: str) -> set[str]:
    """The records that the rounds of this run have chosen, for the strategy or for its random twin."""
    return {
        item.record
        for selection in loop.workspace.ledger.selections(loop.name)
        if arm_of(selection) == arm
        for item in selection.items
    }


def score(loop: Run, number: int, adapter: str | None, base: str) -> dict[str, Any]:
    """Scores of a sample of the pool under the latest adapter; before there is one, under the base."""
    rows = without(pool(loop), asked(loop, MAIN))
    if not rows.num_rows:
        return {"scores": None}
    keys = pa.array([records.digest(f"{number}\0{record}") for record in rows["record"].to_pylist()])
    sample = rows.take(pc.sort_indices(keys)[:POOL_SAMPLE])
    question = current(loop.workspace)
    scores = loop.learner.score(adapter, base, sample, question.classes if question.kind == "class" else ())
    return {"scores": save_table(loop.workspace, "scores", f"{loop.name}-{number}-{adapter or base}", scores)}


def select(loop: Run, number: int, scores: str | None, adapter: str | None) -> dict[str, Any]:
    """The round's batch; in a simulation also the twin's, drawn at random from all that the twin has not seen."""
    rows = pool(loop)
    # People's time changes while they work: the size of a round is settled once.
    size = loop.once(number, "size", lambda: {"batch": loop.rule.batch})["batch"]
    chosen = {MAIN: _choose(loop, number, rows, scores, replace(loop.rule, batch=size), adapter)}
    if loop.annotator.simulated:
        rule = acquisition.AcquisitionRule(strategy="random", batch=size, control_share=0.0, seed=number)
        chosen[TWIN] = _choose(loop, number, rows, None, rule, None, arm=TWIN)
    left = rows.num_rows - len(asked(loop, MAIN) & set(rows["record"].to_pylist()))
    return {"selections": chosen, "pool_left": left, "relabels": _relabels(loop, chosen[MAIN])}


def _relabels(loop: Run, selection: str) -> int:
    """How many records of a selection had answers before."""
    (found,) = [s for s in loop.workspace.ledger.selections(loop.name) if s.id == selection]
    return sum(item.arm == acquisition.RELABEL for item in found.items)


def _choose(
    loop: Run,
    number: int,
    rows: pa.Table,
    scores: str | None,
    rule: acquisition.AcquisitionRule,
    adapter: str | None,
    *,
    arm: str = MAIN,
) -> str:
    """Pick a batch and write down what was picked, why, and what each annotator will see of it.

    A choice that is there already stands, however much people have answered since: a run may be killed behind it.
    """
    for selection in loop.workspace.ledger.selections(loop.name):
        if selection.round == number and arm_of(selection) == arm:
            return selection.id
    table = load_artifact(loop.workspace, "scores", scores) if scores else None
    picked = picked_for(loop, number, rows, table, rule, adapter, arm)
    if not picked:
        raise UsageError(
            "no record is left to ask about", where=str(loop.workspace.root), next="Ingest more rows"
        )
    suggestions = _suggestions(table, adapter) if adapter else {}
    return loop.workspace.ledger.add_selection(
        round=number,
        run=loop.name,
        strategy=TWIN if arm == TWIN else rule.strategy,
        adapter=adapter,
        items=tuple(SelectionItem(p.record, TWIN if arm == TWIN else p.arm, p.reason) for p in picked),
        showings=_showings_of(loop, _with_answered(loop, rows, picked), picked, suggestions),
    )


def picked_for(
    loop: Run,
    number: int,
    rows: pa.Table,
    scores: pa.Table | None,
    rule: acquisition.AcquisitionRule,
    adapter: str | None,
    arm: str,
) -> acquisition.Selection:
    """New records, and in the places where that is worth more, records that people have answered already.

    A simulation answers the same however often it is asked, and the random arm only ever asks about new records.
    """
    new = acquisition.select(
        scores, _prioritised(loop, rows), rule, exclude=dict.fromkeys(asked(loop, arm), "labelled")
    )
    if arm == TWIN or loop.annotator.simulated:
        return new
    question = current(loop.workspace)
    return relabel.mixed(
        loop.workspace,
        question,
        new,
        rule,
        scores=scores if adapter else None,
        trust=relabel.trust_in_model(loop.workspace, question, loop.name, range(2, number)),
        seats=lambda wanted: loop.annotator.another(loop.workspace, question, wanted),
    )


def _prioritised(loop: Run, rows: pa.Table) -> pa.Table:
    """The pool with how far the functions leave each record's class open, where there are functions."""
    table = load_table(loop.workspace, "probabilities", Rules(loop.workspace).scrub)
    if table is None or not table.num_rows:
        return rows
    proba = np.array(table["proba"].to_pylist(), np.float64)
    wanted = dict(zip(table["record"].to_pylist(), voting.priority(proba).tolist(), strict=True))
    column = [wanted.get(record) for record in rows["record"].to_pylist()]
    return rows.append_column(acquisition.PRIORITY, pa.array(column, pa.float64()))


def _with_answered(loop: Run, rows: pa.Table, picked: Sequence[acquisition.Picked]) -> pa.Table:
    """The pool's rows and those of relabels that are none of them: held, because people disagree."""
    missing = {p.record for p in picked} - set(rows["record"].to_pylist())
    if not missing:
        return rows
    view_of = loop.workspace.ledger.view_pages(
        scrub_rule=Rules(loop.workspace).scrub, records=sorted(missing)
    )
    return pa.concat_tables([rows, *(one_per_record(page.table) for page in view_of)])


@dataclass(frozen=True)
class _Proposal:
    """What the page of a record may suggest, by whom, and how sure that is."""

    text: str
    by: str
    confidence: float | None = None


_NOTHING = _Proposal("", "")


def _suggestions(scores: pa.Table | None, adapter: str) -> dict[str, _Proposal]:
    if scores is None:
        return {}
    columns = (scores[name].to_pylist() for name in ("record", "completion", "confidence"))
    return {
        record: _Proposal(text, adapter, confidence)
        for record, text, confidence in zip(*columns, strict=True)
        if text is not None
    }


def _showings_of(
    loop: Run, rows: pa.Table, picked: Sequence[acquisition.Picked], suggestions: Mapping[str, _Proposal]
) -> list[Showing]:
    """One Showing per record and annotator: the model's suggestion, else the source's draft, unless it is blind.

    What is judged is shown to everybody; a blind showing then leaves out only why it was chosen.
    """
    workspace = loop.workspace
    question = current(workspace)
    columns = ("record", "messages", "prompt", "completion", "trust")
    seen = {row[0]: row[1:] for row in zip(*(rows[name].to_pylist() for name in columns), strict=True)}
    votes = _votes(workspace, question)
    proposed = {}
    for pick in picked:
        _, _, draft, trust = seen[pick.record]
        source = _Proposal(draft, "source") if trust == "candidate" and draft is not None else None
        proposed[pick.record] = suggestions.get(pick.record) or votes.get(pick.record) or source
    words = [
        (p.record, f"{seen[p.record][1]} {(proposed[p.record] or _NOTHING).text}")
        for p in picked
        if p.arm != acquisition.RELABEL
    ]
    per_record = workspace.config.the_question[1].annotators_per_record
    seats = loop.annotator.seats(workspace, question, words, per_record)
    again = [(p.record, "") for p in picked if p.arm == acquisition.RELABEL]
    given = Counter(person for people in seats.values() for person in people)
    seats |= loop.annotator.another(workspace, question, again, given) if again else {}
    passages = passages_of(workspace, {record: seen[record][1] for record in proposed})
    hides = question.kind in ("edit", "class")
    showings = []
    for pick in picked:
        # One more opinion must be somebody's own: nothing on the page says what others or the model think.
        alone = pick.arm == acquisition.RELABEL
        proposal = None if (pick.blind and hides) or alone else proposed[pick.record]
        why = {"why": pick.reason} if alone else _beside(pick, proposed[pick.record])
        for person in seats[pick.record]:
            showings.append(
                Showing(
                    record=pick.record,
                    question=question.name,
                    question_version=question.version,
                    view=records.digest(records.canonical_json(seen[pick.record][0])),
                    suggestion=proposal.text if proposal else None,
                    suggestion_by=proposal.by if proposal else None,
                    passages=passages[pick.record],
                    blind=pick.blind,
                    annotator=person,
                    extra=why,
                )
            )
    return showings


def _votes(workspace: Workspace, question: Question) -> dict[str, _Proposal]:
    """What the functions make of each record, where they vote on the classes that people are asked for."""
    table = (
        load_table(workspace, "probabilities", Rules(workspace).scrub) if question.kind == "class" else None
    )
    found = {}
    for row in table.to_pylist() if table is not None else ():
        if row["label"] in question.classes and row["weight"]:
            found[row["record"]] = _Proposal(row["label"], "functions", max(row["proba"]))
    return found


def _beside(pick: acquisition.Picked, proposal: _Proposal | None) -> dict[str, Any]:
    """What a Showing remembers beside the page. Of a suggestion that was held back only the digest: enough to see later
    whether people came to the same answer by themselves.
    """
    if pick.blind:
        return {"hidden": records.digest(normalise(proposal.text))} if proposal else {}
    return {"why": pick.reason, "confidence": proposal.confidence if proposal else None}
