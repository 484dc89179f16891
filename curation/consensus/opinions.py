"""People, functions and sources become one probability per record, and one number says how far people agree.

Votes of labeling functions arrive here as one distribution per record; each person's Label multiplies it by how likely
that Label is under each class. What stays uncertain although people have spoken goes to a curator. Nothing here reads
a ledger; free text is never rewritten, only weighed.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from curation.consensus.answers import Answers
from curation.consensus.classes import agree
from curation.consensus.texts import agree_on_text
from curation.text import jaccard, normalise, shingles


@dataclass(frozen=True)
class ConsensusRule:
    """How far an opinion is trusted, by who gave it.

    ``accuracy`` is the chance that an opinion of that kind names the right class; the rest is spread evenly over the
    other classes (the one-coin model of Dawid and Skene, 1979, with a fixed coin). Below ``min_confidence`` a record on
    which people disagree is held for a curator; so is one where two people's texts share less than ``min_similarity`` of
    their words: answers that have nine words in ten to themselves say different things.
    """

    accuracy: Mapping[str, float] = field(
        default_factory=lambda: {"curator": 1.0, "person": 0.9, "reference": 0.9, "candidate": 0.6}
    )
    min_confidence: float = 0.6
    min_similarity: float = 0.1


@dataclass(frozen=True)
class Opinion:
    """One Label, as consensus sees it: who (an opaque id), of what kind, said what."""

    record: str
    label: str
    author: str
    kind: str
    value: str


@dataclass(frozen=True)
class Consensus:
    """What a record's opinions amount to; ``labels`` are the Labels that agree with ``value``."""

    record: str
    value: str
    confidence: float
    labels: tuple[str, ...]
    authors: tuple[str, ...]
    kinds: tuple[str, ...]
    needs_review: bool
    reason: str = ""


def skills(opinions: Iterable[Opinion], classes: Sequence[str] | None) -> dict[str, float]:
    """What each person's word is worth, learnt from where people's answers meet; empty where they meet too rarely.

    For classes the chance of a right answer (:func:`curation.consensus.classes.agree`), kept above a guess and below
    certainty; for free text (``classes`` is None) the expected likeness to the chosen answers.
    """
    said = [(o.record, o.author, o.value) for o in opinions if o.kind == "person"]
    if classes is None:
        answers = Answers.of(said)
        if len(answers) == len(answers.items):
            return {}
        return dict(zip(answers.annotators, agree_on_text(answers).skill.tolist(), strict=True))
    found = agree(Answers.of(said, labels=classes))
    if found.model == "majority":
        return {}
    guess = 1 / max(2, len(classes))
    kept = np.clip(found.skill, guess + 0.05, 0.98)
    return dict(zip(found.answers.annotators, kept.tolist(), strict=True))


def posterior(
    opinions: Sequence[Opinion],
    classes: Sequence[str],
    prior: np.ndarray,
    rule: ConsensusRule,
    skill: Mapping[str, float] | None = None,
) -> np.ndarray:
    """``P(class | opinions)``, shape (classes,): the prior times each opinion's likelihood, normalised.

    ``skill`` says how often an author is right, where that is known; others are believed by their kind. A curator's word
    is final: it takes all the probability. No opinions give the prior.
    """
    index = {name: i for i, name in enumerate(classes)}
    log_p = np.log(np.clip(prior, 1e-12, None))
    for opinion in opinions:
        if rule.accuracy.get(opinion.kind, 0.5) >= 1.0:
            return np.eye(len(classes))[index[opinion.value]]
        right = _worth(opinion, rule, skill)
        wrong = (1.0 - right) / max(len(classes) - 1, 1)
        likelihood = np.full(len(classes), max(wrong, 1e-12))
        likelihood[index[opinion.value]] = right
        log_p += np.log(likelihood)
    p = np.exp(log_p - log_p.max())
    return p / p.sum()


def _worth(opinion: Opinion, rule: ConsensusRule, skill: Mapping[str, float] | None) -> float:
    known = (skill or {}).get(opinion.author) if opinion.kind == "person" else None
    return rule.accuracy.get(opinion.kind, 0.5) if known is None else known


def class_consensus(
    opinions: Iterable[Opinion],
    classes: Sequence[str],
    priors: Mapping[str, np.ndarray] | None = None,
    rule: ConsensusRule | None = None,
    skill: Mapping[str, float] | None = None,
) -> list[Consensus]:
    """One class per record that anybody spoke on, in the order of first mention. No opinions give an empty list.

    ``priors`` holds the label model's distribution over ``classes`` per record; a record without one has a flat prior.
    The latest curator decides alone. Ties go to the class that comes first in ``classes``.
    """
    rule = rule or ConsensusRule()
    flat = np.full(len(classes), 1.0 / max(len(classes), 1))
    return [
        _one_class(record, said, classes, (priors or {}).get(record, flat), rule, skill)
        for record, said in _by_record(opinions).items()
    ]


def _one_class(
    record: str,
    said: list[Opinion],
    classes: Sequence[str],
    prior: np.ndarray,
    rule: ConsensusRule,
    skill: Mapping[str, float] | None,
) -> Consensus:
    curators = [o for o in said if o.kind == "curator"]
    heard = curators[-1:] or said
    p = posterior(heard, classes, prior, rule, skill)
    best = int(np.argmax(p))
    people = {o.value for o in heard if o.kind == "person"}
    unsure = len(people) > 1 and float(p[best]) < rule.min_confidence
    reason = f"people disagree: {', '.join(sorted(people))}" if unsure else ""
    return _agreed(
        record, [o for o in heard if o.value == classes[best]], classes[best], p[best], unsure, reason
    )


def text_consensus(
    opinions: Iterable[Opinion],
    rule: ConsensusRule | None = None,
    skill: Mapping[str, float] | None = None,
) -> list[Consensus]:
    """Every distinct answer per record, each weighed by the share of authors who gave it (normalised text).

    With ``skill`` a person counts by what their word is worth beside the mean person's.

    People word things differently, so different answers are several references and not a quarrel, unless those of two
    people share less than ``min_similarity`` of their words. A curator's answers replace all others.
    """
    rule = rule or ConsensusRule()
    found: list[Consensus] = []
    usual = float(np.mean(list(skill.values()))) if skill else 1.0
    for record, said in _by_record(opinions).items():
        heard = [o for o in said if o.kind == "curator"] or said
        if len(heard) == 1:  # by far the most, and nothing to compare
            found.append(_agreed(record, heard, heard[0].value, 1.0, False, ""))
            continue
        clusters: dict[str, list[Opinion]] = defaultdict(list)
        for opinion in heard:
            clusters[normalise(opinion.value)].append(opinion)
        people = [c[0].value for c in clusters.values() if any(o.kind == "person" for o in c)]
        far = _furthest(people)
        unsure = far < rule.min_similarity
        reason = f"answers share only {far:.0%} of their words" if unsure else ""
        weight = {o.author: (skill or {}).get(o.author, usual) / usual for o in heard}
        total = sum(weight[o.author] for o in heard)
        for members in clusters.values():
            share = sum(weight[o.author] for o in members) / total
            found.append(_agreed(record, members, members[0].value, share, unsure, reason))
    return found


def _furthest(texts: Sequence[str]) -> float:
    words = [shingles(text, 1) for text in texts]
    pairs = [(i, j) for i in range(len(words)) for j in range(i)]
    return min((jaccard(words[i], words[j]) for i, j in pairs), default=1.0)


def _by_record(opinions: Iterable[Opinion]) -> dict[str, list[Opinion]]:
    records: dict[str, list[Opinion]] = defaultdict(list)
    for opinion in opinions:
        records[opinion.record].append(opinion)
    return records


def _agreed(
    record: str, agreeing: Sequence[Opinion], value: str, confidence: float, unsure: bool, reason: str
) -> Consensus:
    return Consensus(
        record=record,
        value=value,
        confidence=float(confidence),
        labels=tuple(o.label for o in agreeing),
        authors=tuple(sorted({o.author for o in agreeing})),
        kinds=tuple(sorted({o.kind for o in agreeing})),
        needs_review=unsure,
        reason=reason,
    )
