"""What people's grades and preferences amount to: how far they stand behind an answer that somebody else gave.

An answer that was graded by a rubric, or set beside another one, keeps its text; what people make of it is a share
between 0 and 1 with a half as the middle. Below the middle a row weighs less in training, and what people grade as poor
waits for a curator. A judgement never becomes an answer itself, and a curator's answer is not judged.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import orjson

from curation import consensus
from curation.consensus import Consensus
from curation.curate import Rules, scrubbed_labels
from curation.errors import UsageError
from curation.label_studio import GRADES
from curation.ledger import Question
from curation.workspace import Workspace

POOR = 0.25  # of the way from the lowest grade to the highest: below it a curator should look
PRIOR = 0.5  # wins and losses that a comparison starts with, so that one person's word is not all
KINDS = ("rubric", "compare")
_LEVEL = 1e-3  # nearer to a half than this is a half: strengths are found by iteration


@dataclass(frozen=True)
class Judgement:
    """One person's standing opinion on an answer (``text``), or on two (``rival`` is the other side).

    ``said`` holds a grade per criterion, or ``{"win": 1}``: 1 where ``text`` is the better side, 0 where ``rival`` is,
    0.5 for a tie.
    """

    record: str
    text: str
    author: str
    said: Mapping[str, float]
    rival: str = ""


@dataclass(frozen=True)
class Judged:
    """How far people stand behind ``text``: ``share`` in [0, 1], by so many ``people``, in ``words``.

    ``grades`` are the pooled grades by criterion as people give them, 1 to 5; empty for preferences.
    """

    record: str
    text: str
    share: float
    people: int
    words: str
    grades: Mapping[str, float]

    @property
    def is_poor(self) -> bool:
        """Whether people grade it so low that it must not be trained on unseen."""
        return bool(self.grades) and self.share < POOR

    @property
    def factor(self) -> float:
        """What a row's weight is multiplied by: 1 from the middle upwards, falling to 0."""
        return min(1.0, 2 * self.share)


@dataclass(frozen=True)
class Preference:
    """Two answers to a record that people compared: ``chosen`` beats ``rejected`` with a chance of ``share``, over a half."""

    record: str
    chosen: str
    rejected: str
    share: float


# Arithmetic ---------------------------------------------------------------------------------------------------


def graded(judgements: Sequence[Judgement]) -> tuple[list[Judged], dict[str, float]]:
    """Each answer's pooled grades, and how many grades each person stands above the others; nothing gives nothing.

    A criterion is pooled over all answers (:func:`curation.consensus.grade`), since that is where it shows who is
    strict; the share is the mean of the criteria.
    """
    means: dict[tuple[str, str], dict[str, float]] = defaultdict(dict)
    leanings: dict[str, list[float]] = defaultdict(list)
    keys = {orjson.dumps([j.record, j.text]).decode(): (j.record, j.text) for j in judgements}
    for criterion in dict.fromkeys(name for j in judgements for name in j.said):
        triples = [
            (orjson.dumps([j.record, j.text]).decode(), j.author, str(int(j.said[criterion])))
            for j in judgements
            if criterion in j.said
        ]
        found = consensus.grade(triples, GRADES)
        for item, mean in zip(found.answers.items, found.mean.tolist(), strict=True):
            means[keys[item]][criterion] = mean
        for author, lean in zip(found.answers.annotators, found.leaning.tolist(), strict=True):
            leanings[author].append(lean)
    people = _people(judgements)
    judged = [_graded(key, by, people[key]) for key, by in means.items()]
    return judged, {author: sum(leans) / len(leans) for author, leans in leanings.items()}


def _graded(key: tuple[str, str], means: Mapping[str, float], people: int) -> Judged:
    level = sum(means.values()) / len(means)
    grades = {name: round(1 + mean, 2) for name, mean in means.items()}
    told = ", ".join(f"{name} {mean:.1f}" for name, mean in grades.items())
    words = f"people grade it {1 + level:.1f} of {len(GRADES)} ({told}; {people} people)"
    return Judged(*key, level / (len(GRADES) - 1), people, words, grades)


def preferred(judgements: Sequence[Judgement]) -> list[Judged]:
    """Each answer's chance to be preferred to the record's other ones (Bradley and Terry); nothing gives nothing."""
    found = []
    for record, said, strength in _strengths(judgements):
        people = len({j.author for j in said})
        for text, own in strength.items():
            others = [s for t, s in strength.items() if t != text]
            share = own / (own + sum(others) / len(others))
            words = f"people prefer it to the other answer with a chance of {share:.2f} ({people} people)"
            found.append(Judged(record, text, share, people, words, {}))
    return found


def preferences(judgements: Sequence[Judgement]) -> list[Preference]:
    """A row for every two answers that somebody compared, by strength over all comparisons of the record (Bradley and
    Terry), so that everybody's word counts once; what is level, all in all, gives none.
    """
    found = []
    for record, said, strength in _strengths(judgements):
        for one, other in sorted({(min(j.text, j.rival), max(j.text, j.rival)) for j in said}):
            chosen, rejected = sorted((one, other), key=lambda text: -strength[text])
            share = strength[chosen] / (strength[chosen] + strength[rejected])
            if share > 0.5 + _LEVEL:
                found.append(Preference(record, chosen, rejected, share))
    return found


def _strengths(
    judgements: Sequence[Judgement],
) -> Iterator[tuple[str, list[Judgement], Mapping[str, float]]]:
    """Each record, what was said of its answers, and their strength (Bradley and Terry)."""
    by_record: dict[str, list[Judgement]] = defaultdict(list)
    for judgement in judgements:
        by_record[judgement.record].append(judgement)
    for record, said in by_record.items():
        yield record, said, consensus.bradley_terry(_wins(said), prior=2 * PRIOR)


def _wins(judgements: Iterable[Judgement]) -> list[tuple[str, str]]:
    """Winner and loser twice for each comparison, so that a tie is half a win for each side."""
    pairs = []
    for j in judgements:
        pairs += [(j.text, j.rival) if half < 2 * j.said["win"] else (j.rival, j.text) for half in range(2)]
    return pairs


def _people(judgements: Iterable[Judgement]) -> dict[tuple[str, str], int]:
    who: dict[tuple[str, str], set[str]] = defaultdict(set)
    for j in judgements:
        who[j.record, j.text].add(j.author)
    return {key: len(names) for key, names in who.items()}


def weighed(agreed: Iterable[Consensus], judged: Mapping[tuple[str, str], Judged]) -> list[Consensus]:
    """The rows with what people think of their texts: less weight below the middle, a curator for what is poor."""
    found = []
    for row in agreed:
        told = judged.get((row.record, row.value))
        if told and "curator" not in row.kinds:
            row = replace(row, confidence=row.confidence * told.factor)
            if told.is_poor:
                row = replace(row, needs_review=True, reason=told.words)
        found.append(row)
    return found


# The ledger ---------------------------------------------------------------------------------------------------


def judgements(workspace: Workspace, kind: str, name: str | None = None) -> list[Judgement]:
    """Every standing judgement of a kind, or of one question; each cites the Showing that says what was judged."""
    asked = {q.name for q in workspace.ledger.questions() if q.kind == kind and name in (None, q.name)}
    rows = [
        row
        for row in workspace.ledger.labels(kinds={"person"}).to_pylist()
        if row["question"] in asked and row["showing"]
    ]
    shown = {s.id: s.suggestion for s in workspace.ledger.showings([row["showing"] for row in rows])}
    latest = {}
    for row in rows:
        if text := shown.get(row["showing"]):
            said = _judgement(kind, row, text)
            latest[said.record, said.author, frozenset((said.text, said.rival))] = said
    return list(latest.values())


def _judgement(kind: str, row: Mapping[str, Any], shown: str) -> Judgement:
    if kind == "rubric":
        return Judgement(row["record"], shown, row["author"], orjson.loads(row["body"]))
    a, b = orjson.loads(shown)
    win = {"A": 1.0, "B": 0.0}.get(row["body"], 0.5)
    return Judgement(row["record"], a, row["author"], {"win": win}, rival=b)


def judged(workspace: Workspace) -> dict[tuple[str, str], Judged]:
    """What people think of each (record, text) that any rubric or comparison asked about; the harsher where both did."""
    everything = [*graded(judgements(workspace, "rubric"))[0], *preferred(judgements(workspace, "compare"))]
    found: dict[tuple[str, str], Judged] = {}
    for one in everything:
        key = (one.record, one.text)
        if key not in found or one.share < found[key].share:
            found[key] = one
    return found


def report(workspace: Workspace, question: Question) -> dict[str, Any]:
    """The numbers behind ``tilth question judged``: answers from best to worst, and who is strict or which source wins."""
    if question.kind not in KINDS:
        raise UsageError(
            f"question {question.name!r} asks for no grades and no preferences: it is of kind {question.kind!r}",
            next="Name a rubric or a comparison with --name",
        )
    said = judgements(workspace, question.kind, question.name)
    told: dict[str, Any] = {"question": question.name, "kind": question.kind, "judgements": len(said)}
    if question.kind == "rubric":
        answers, leaning = graded(said)
        names = {a.id: a.name or a.id for a in workspace.ledger.authors()}
        told["people"] = [
            {"person": names.get(author, author), "leaning": round(lean, 3)}
            for author, lean in sorted(leaning.items(), key=lambda pair: pair[1])
        ]
    else:
        answers = preferred(said)
        told["sources"] = _sources(workspace, said)
    order = sorted(answers, key=lambda j: (-j.share, j.record, j.text))
    told["answers"] = [
        {"record": j.record, "text": j.text, "share": round(j.share, 4), "people": j.people, "words": j.words}
        | ({"grades": dict(j.grades)} if j.grades else {})
        for j in order
    ]
    return told


def _sources(workspace: Workspace, said: Sequence[Judgement]) -> list[dict[str, Any]]:
    """The strength of every source, by how far it is trusted, over all comparisons of its answers (Bradley and Terry)."""
    kinds = {"candidate", "reference"}
    rows = scrubbed_labels(workspace, Rules(workspace), kinds, sorted({j.record for j in said}))
    names = {a.id: a.name or a.id for a in workspace.ledger.authors()}
    by = {
        (row["record"], row["body"]): f"{names.get(row['author'], row['author'])} ({row['kind']})"
        for row in rows.to_pylist()
    }
    met = [
        replace(j, text=by[j.record, j.text], rival=by[j.record, j.rival])
        for j in said
        if (j.record, j.text) in by and (j.record, j.rival) in by
    ]
    strength = consensus.bradley_terry(
        [(a, b) for a, b in _wins(j for j in met if j.text != j.rival)], prior=2 * PRIOR
    )
    return [
        {"source": name, "strength": round(s, 4)} for name, s in sorted(strength.items(), key=lambda p: -p[1])
    ]
