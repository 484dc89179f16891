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

from curation.text import jaccard, normalise, shingles


@dataclass(frozen=True)
class ConsensusRule:
    """How far an opinion is trusted, by who gave it.

    ``accuracy`` is the chance that an opinion of that kind names the right class; the rest is spread evenly over the
    other classes (the one-coin model of Dawid and Skene, 1979, with a fixed coin). Below ``min_confidence`` a record on
    which people disagree is held for a curator.
    """

    accuracy: Mapping[str, float] = field(
        default_factory=lambda: {"curator": 1.0, "person": 0.9, "reference": 0.9, "candidate": 0.6}
    )
    min_confidence: float = 0.6
    min_similarity: float = 0.0


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


def posterior(
    opinions: Sequence[Opinion], classes: Sequence[str], prior: np.ndarray, rule: ConsensusRule
) -> np.ndarray:
    """``P(class | opinions)``, shape (classes,): the prior times each opinion's likelihood, normalised.

    A curator's word is final: it takes all the probability. No opinions give the prior.
    """
    index = {name: i for i, name in enumerate(classes)}
    log_p = np.log(np.clip(prior, 1e-12, None))
    for opinion in opinions:
        if rule.accuracy.get(opinion.kind, 0.5) >= 1.0:
            return np.eye(len(classes))[index[opinion.value]]
        right = rule.accuracy.get(opinion.kind, 0.5)
        wrong = (1.0 - right) / max(len(classes) - 1, 1)
        likelihood = np.full(len(classes), max(wrong, 1e-12))
        likelihood[index[opinion.value]] = right
        log_p += np.log(likelihood)
    p = np.exp(log_p - log_p.max())
    return p / p.sum()


def class_consensus(
    opinions: Iterable[Opinion],
    classes: Sequence[str],
    priors: Mapping[str, np.ndarray] | None = None,
    rule: ConsensusRule | None = None,
) -> list[Consensus]:
    """One class per record that anybody spoke on, in the order of first mention. No opinions give an empty list.

    ``priors`` holds the label model's distribution over ``classes`` per record; a record without one has a flat prior.
    The latest curator decides alone. Ties go to the class that comes first in ``classes``.
    """
    rule = rule or ConsensusRule()
    flat = np.full(len(classes), 1.0 / max(len(classes), 1))
    return [
        _one_class(record, said, classes, (priors or {}).get(record, flat), rule)
        for record, said in _by_record(opinions).items()
    ]


def _one_class(
    record: str, said: list[Opinion], classes: Sequence[str], prior: np.ndarray, rule: ConsensusRule
) -> Consensus:
    curators = [o for o in said if o.kind == "curator"]
    heard = curators[-1:] or said
    p = posterior(heard, classes, prior, rule)
    best = int(np.argmax(p))
    people = {o.value for o in heard if o.kind == "person"}
    unsure = len(people) > 1 and float(p[best]) < rule.min_confidence
    reason = f"people disagree: {', '.join(sorted(people))}" if unsure else ""
    return _agreed(
        record, [o for o in heard if o.value == classes[best]], classes[best], p[best], unsure, reason
    )


def text_consensus(opinions: Iterable[Opinion], rule: ConsensusRule | None = None) -> list[Consensus]:
    """Every distinct answer per record, each weighed by the share of authors who gave it (normalised text).

    People word things differently, so different answers are several references and not a quarrel, unless two of them
    share less than ``min_similarity`` of their words. A curator's answers replace all others.
    """
    rule = rule or ConsensusRule()
    found: list[Consensus] = []
    for record, said in _by_record(opinions).items():
        heard = [o for o in said if o.kind == "curator"] or said
        if len(heard) == 1:  # by far the most, and nothing to compare
            found.append(_agreed(record, heard, heard[0].value, 1.0, False, ""))
            continue
        clusters: dict[str, list[Opinion]] = defaultdict(list)
        for opinion in heard:
            clusters[normalise(opinion.value)].append(opinion)
        far = _furthest([members[0].value for members in clusters.values()])
        unsure = far < rule.min_similarity
        reason = f"answers share only {far:.0%} of their words" if unsure else ""
        for members in clusters.values():
            share = len(members) / len(heard)
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
