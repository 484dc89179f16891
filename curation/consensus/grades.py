"""Ordinal grades and pairwise preferences: consensus where answers are more or less, or better than another.

A grade is pooled as a distribution over the scale after each annotator's leaning is taken off; preferences are ranked by
Bradley and Terry's model. Arithmetic only.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from curation.calibration import Floats
from curation.consensus.answers import Answers, Codes, Names

_PRIOR = 2.0  # answers' worth by which an annotator's leaning is drawn towards none


@dataclass(frozen=True)
class Graded:
    """``mean[i]`` is item ``i``'s pooled grade on the scale's steps (0 is the lowest), ``error`` its standard error.

    ``label`` is the nearest grade; ``leaning[a]`` how many steps annotator ``a`` grades above the others, and
    ``weight[a]`` the inverse of the variance that is left.
    """

    answers: Answers
    scale: tuple[str, ...]
    mean: Floats
    error: Floats
    label: Codes
    leaning: Floats
    weight: Floats


def grade(triples: Iterable[tuple[str, str, str]], scale: Sequence[str], *, rounds: int = 50) -> Graded:
    """Pool grades: each annotator's leaning is taken off, and who is steadier counts more.

    Alternates between items' weighted means and annotators' mean and mean squared deviation from them, both drawn
    towards the crowd's: inverse-variance weighting, iterated. ``scale`` lists the grades, lowest first. No triples give
    no items. Raises :class:`KeyError` for a grade that the scale lacks.
    """
    answers = Answers.of(triples, labels=scale)
    n, m = len(answers.items), len(answers.annotators)
    step = answers.label.astype(np.float64)
    leaning: Floats = np.zeros(m)
    weight: Floats = np.ones(m)
    mean: Floats = np.zeros(n)
    given = np.bincount(answers.annotator, minlength=m)
    for _ in range(rounds):
        w = weight[answers.annotator]
        level = step - leaning[answers.annotator]
        before = mean
        mean = np.bincount(answers.item, w * level, minlength=n) / np.bincount(answers.item, w, minlength=n)
        off = step - mean[answers.item]
        leaning = np.bincount(answers.annotator, off, minlength=m) / (given + _PRIOR)
        rest = (off - leaning[answers.annotator]) ** 2
        crowd = float(rest.mean()) + 1e-6 if len(rest) else 1.0
        spread = np.bincount(answers.annotator, rest, minlength=m) + _PRIOR * crowd
        weight = (given + _PRIOR) / (spread + 1e-2 * crowd)
        if np.abs(mean - before).max(initial=0.0) < 1e-6:
            break
    mean = np.clip(mean, 0, max(0, len(scale) - 1))
    error = 1 / np.sqrt(np.bincount(answers.item, weight[answers.annotator], minlength=n)) if n else mean
    return Graded(answers, tuple(scale), mean, error, np.rint(mean).astype(np.int64), leaning, weight)


def bradley_terry(
    wins: Iterable[tuple[str, str]], *, prior: float = 0.1, rounds: int = 1000
) -> dict[str, float]:
    """Strengths of things from ``(winner, loser)`` pairs, summing to 1: ``P(a beats b) = s_a / (s_a + s_b)``.

    Hunter's (2004) minorise-maximise iteration for Bradley and Terry (1952). ``prior`` wins and losses against an
    average opponent keep the strength of what never lost, or never met the others, finite. No pairs give nothing.

    >>> found = bradley_terry([("a", "b"), ("a", "b"), ("b", "a")])
    >>> found["a"] > found["b"]
    True
    """
    names = Names()
    pairs = [(names[a], names[b]) for a, b in wins]
    n = len(names.known)
    if not n:
        return {}
    met = np.zeros((n, n))
    won = np.full(n, prior)
    for a, b in pairs:
        met[a, b] += 1
        met[b, a] += 1
        won[a] += 1
    strength = np.ones(n)
    for _ in range(rounds):
        against = (met / (strength[:, None] + strength)).sum(1) + 2 * prior / (strength + 1.0)
        fresh = won / against
        done = np.abs(np.log(fresh / strength)).max() < 1e-9
        strength = fresh
        if done:
            break
    share = strength / strength.sum()
    return {name: float(share[i]) for name, i in names.known.items()}
