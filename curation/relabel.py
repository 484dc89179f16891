"""Once more or new: which records that have answers deserve another one, beside records that nobody has answered.

One more label is worth what it is expected to add to the probability of the right class. Records with answers and
records without are weighed on that one scale, and the batch takes whatever is worth most; the control arm and the blind
share stay as they were drawn. Only classes can be weighed like this: two free texts may differ and both be right.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from curation import acquisition, consensus
from curation.acquisition import Again, Selection
from curation.assemble import reserved_records
from curation.consensus import ConsensusRule, Opinion
from curation.curate import STAGES, Rules, blocked, load_artifact
from curation.ledger import Question
from curation.opinions import Voices, opinions, priors
from curation.workspace import Workspace

MOST = 5  # answers to one record: people who do not agree by then will not, and a curator decides
Floats = np.ndarray

Seats = Callable[[Sequence[tuple[str, str]]], Mapping[str, Sequence[str]]]
"""Who could give one more answer to each of (record, words); nobody where that cannot be told."""


@dataclass(frozen=True)
class Answered:
    """What is believed of the records that people have answered: ``belief[i]`` over the question's classes, and what
    was said of ``records[i]``. ``skill`` is how often a person's answer is right.
    """

    records: list[str]
    belief: Floats
    said: list[list[Opinion]]
    skill: float

    def best(self, classes: Sequence[str]) -> dict[str, str]:
        """The likeliest class of each record."""
        return {r: classes[int(i)] for r, i in zip(self.records, self.belief.argmax(1), strict=True)}


def answered(workspace: Workspace, question: Question) -> Answered:
    """The records with an answer of a person and none of a curator, as consensus sees them now."""
    kinds = {"person", "curator", "reference"}
    heard = opinions(workspace, question, Voices(), kinds)
    skill = consensus.skills(heard, question.classes)
    before, rule = priors(workspace, question), ConsensusRule()
    by_record: dict[str, list[Opinion]] = {}
    for opinion in heard:
        by_record.setdefault(opinion.record, []).append(opinion)
    said = {
        record: answers
        for record, answers in by_record.items()
        if (who := {o.kind for o in answers}) >= {"person"} and "curator" not in who
    }
    flat = np.full(len(question.classes), 1 / max(1, len(question.classes)))
    belief = [
        consensus.posterior(answers, question.classes, before.get(record, flat), rule, skill)
        for record, answers in said.items()
    ]
    usual = float(np.mean(list(skill.values()))) if skill else rule.accuracy["person"]
    shape = (len(said), len(question.classes))
    return Answered(list(said), np.array(belief).reshape(shape), list(said.values()), usual)


def can_weigh(question: Question) -> bool:
    """Whether answers to the question can be weighed against each other: there are classes to be right or wrong about."""
    return question.kind == "class" and len(question.classes) > 1


def mixed(
    workspace: Workspace,
    question: Question,
    selection: Selection,
    rule: acquisition.AcquisitionRule,
    *,
    scores: pa.Table | None,
    trust: float,
    seats: Seats,
) -> Selection:
    """The batch with relabels where one more answer is worth more than the first one to a record that was chosen.

    ``scores`` are the model's of the pool, believed as far as ``trust`` (0: not at all, 1: fully). A question of free
    text, and a workspace that nobody has answered, keep the selection as it is.
    """
    if not can_weigh(question):
        return selection
    known = answered(workspace, question)
    picked = [pick.record for pick in selection]
    model = _predicted(picked, scores, len(question.classes))
    asked = workspace.config.the_question[1].annotators_per_record
    worth = consensus.relabel_or_new(known.belief, model, known.skill, model_skill=trust, answers=asked)
    out = blocked(workspace, Rules(workspace), _SETTLED) | reserved_records(workspace)
    again = [
        Again(record, float(value), _reason(said, float(value)))
        for record, value, said in zip(known.records, worth.old, known.said, strict=True)
        if value > 1e-9 and record not in out and _people(said) < MOST
    ]
    again = sorted(again, key=lambda a: (-a.value, a.record))[: rule.batch]
    free = seats([(a.record, "") for a in again]) if again else {}
    again = [a for a in again if free.get(a.record)]
    return acquisition.with_relabels(
        selection, again, dict(zip(picked, worth.new.tolist(), strict=True)), rule.batch
    )


# A record on which people disagree is held for a curator, and may be asked about again before one has come to it.
_SETTLED = tuple(stage for stage in STAGES if stage != "consensus")


def _people(said: Sequence[Opinion]) -> int:
    return sum(o.kind == "person" for o in said)


def _reason(said: Sequence[Opinion], value: float) -> str:
    counts: dict[str, int] = {}
    for opinion in said:
        if opinion.kind == "person":
            counts[opinion.value] = counts.get(opinion.value, 0) + 1
    told = ", ".join(f"{name} {count}" for name, count in sorted(counts.items()))
    return (
        f"asked again: people said {told}; one more answer adds {value:.2f} to the chance of the right class"
    )


def _predicted(records: Sequence[str], scores: pa.Table | None, classes: int) -> Floats:
    """What the model says of each record, ``(records, classes)``; equal shares where it says nothing.

    Of a distribution the scores keep the best share and how far the second is behind; the rest is spread evenly, which
    assumes nothing more. Which class is meant does not matter to the worth of an answer.
    """
    found = np.full((len(records), classes), 1 / classes)
    if scores is None:
        return found
    columns = (scores[name].to_pylist() for name in ("record", "confidence", "margin"))
    told = {record: (sure, ahead) for record, sure, ahead in zip(*columns, strict=True)}
    for row, record in enumerate(records):
        sure, ahead = told.get(record, (None, None))
        if sure is not None and ahead is not None and 0 <= ahead <= sure <= 1:
            second = min(sure - ahead, 1 - sure)
            found[row] = max(0.0, 1 - sure - second) / max(1, classes - 2)
            found[row, :2] = sure, second
    return found / found.sum(1, keepdims=True)


def trust_in_model(workspace: Workspace, question: Question, run: str, rounds: Sequence[int]) -> float:
    """How far the model's word on a record is to be believed, from 0 (a guess) to 1, by what people said later.

    The records of the control arm were drawn at random and had been predicted before anybody answered; the share of
    right predictions, with one right and one wrong added, is set against that of a guess (``(p - 1/k) / (1 - 1/k)``).
    0 where there are no classes to predict.
    """
    if not can_weigh(question):
        return 0.0
    best = answered(workspace, question).best(question.classes)
    control = {
        (selection.round, item.record)
        for selection in workspace.ledger.selections(run)
        for item in selection.items
        if item.arm == acquisition.CONTROL
    }
    right = total = 0
    for number in rounds:
        step = workspace.ledger.step(run, number, "score")
        table = load_artifact(workspace, "scores", step["scores"]) if step and step["scores"] else None
        columns = ("record", "completion")
        rows = zip(*(table[c].to_pylist() for c in columns), strict=True) if table is not None else ()
        for record, told in rows:
            if told is not None and (number, record) in control and record in best:
                total += 1
                right += told == best[record]
    share, guess = (right + 1) / (total + 2), 1 / max(2, len(question.classes))
    return max(0.0, (share - guess) / (1 - guess))
