"""Models of annotators: how likely is what somebody said, under each class that may be true.

Two shapes cover them all. A :class:`Coin` knows how often an annotator says a label when it is right and when it is
not; a :class:`Confusion` holds a full table per annotator. Each is learnt from the current belief about the items, so a
learner is a pure function from expected counts to a model. No items, no files here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from curation.calibration import Floats
from curation.consensus.answers import Answers, tally

_TINY = 1e-9


class Annotators(Protocol):
    """What a model of annotators offers."""

    def score(self, answers: Answers) -> Floats:
        """``(items, labels)``: the log-likelihood of an item's answers under each class, up to a constant an item."""
        ...

    def chance(self, answers: Answers, belief: Floats) -> Floats:
        """``(answers,)``: the probability of each answer, given what is believed of its item."""
        ...

    def skill(self, prior: Floats) -> Floats:
        """``(annotators,)``: the probability of a right answer on an item drawn by the class shares ``prior``."""
        ...


@dataclass(frozen=True)
class Coin:
    """``right[a, l]``: how likely ``a`` says ``l`` where ``l`` is true; ``wrong[a, l]``: where something else is.

    Majority voting (everybody alike), the one-coin model and MACE are of this shape.
    """

    right: Floats
    wrong: Floats

    def score(self, answers: Answers) -> Floats:
        gain = np.log(np.maximum(self.right, _TINY)) - np.log(np.maximum(self.wrong, _TINY))
        weights = gain[answers.annotator, answers.label]
        return tally(answers.item, answers.label, weights, len(answers.items), len(answers.labels))

    def chance(self, answers: Answers, belief: Floats) -> Floats:
        at = (answers.annotator, answers.label)
        sure = belief[answers.item, answers.label]
        found: Floats = self.wrong[at] + sure * (self.right[at] - self.wrong[at])
        return found

    def skill(self, prior: Floats) -> Floats:
        found: Floats = self.right @ prior
        return found


@dataclass(frozen=True)
class Confusion:
    """``logs[a, l, c]``: the (expected) log-probability that ``a`` says ``l`` where ``c`` is true."""

    logs: Floats

    def score(self, answers: Answers) -> Floats:
        at = answers.annotator * self.logs.shape[1] + answers.label
        flat = self.logs.reshape(-1, self.logs.shape[2])
        columns = [
            np.bincount(answers.item, flat[:, c][at], minlength=len(answers.items))
            for c in range(flat.shape[1])
        ]
        return np.stack(columns, axis=1)

    def chance(self, answers: Answers, belief: Floats) -> Floats:
        table = np.exp(self.logs)
        table /= table.sum(1, keepdims=True)
        found = np.zeros(len(answers))
        for c in range(table.shape[2]):
            found += belief[answers.item, c] * table[answers.annotator, answers.label, c]
        return found

    def skill(self, prior: Floats) -> Floats:
        table = np.exp(self.logs)
        table /= table.sum(1, keepdims=True)
        found: Floats = np.einsum("acc,c->a", table, prior)
        return found


def hits(answers: Answers, belief: Floats) -> Floats:
    """``(annotators, labels)``: expected number of right answers, by the label given."""
    weights = belief[answers.item, answers.label]
    return tally(answers.annotator, answers.label, weights, len(answers.annotators), len(answers.labels))


def given(answers: Answers) -> Floats:
    """``(annotators, labels)``: how often each annotator gave each label."""
    return tally(answers.annotator, answers.label, None, len(answers.annotators), len(answers.labels))


def tables(answers: Answers, belief: Floats) -> Floats:
    """``(annotators, labels given, classes)``: expected answers under each class."""
    k, m = len(answers.labels), len(answers.annotators)
    at = answers.annotator * k + answers.label
    found = np.zeros((m * k, k))
    for c in range(k):
        found[:, c] = np.bincount(at, belief[answers.item, c], minlength=m * k)
    return found.reshape(m, k, k)


def learn_alike(answers: Answers, belief: Floats) -> Coin:
    """Everybody is right equally often: what majority voting assumes."""
    right, total = hits(answers, belief).sum(), len(answers)
    k, m = len(answers.labels), len(answers.annotators)
    accuracy = (right + 2.0) / (total + 3.0)
    return _coin(np.full(m, max(accuracy, 1 / k + 0.01)), k)


def learn_coin(answers: Answers, belief: Floats) -> Coin:
    """One accuracy an annotator, drawn towards the crowd's by a Beta prior whose strength the crowd's spread decides."""
    right, total = hits(answers, belief).sum(1), given(answers).sum(1)
    mean = (right.sum() + 2.0) / (total.sum() + 3.0)
    strength = _strength(np.stack([right, total - right], 1), np.array([mean, 1 - mean]))
    return _coin((right + strength * mean) / (total + strength), len(answers.labels))


def _coin(accuracy: Floats, k: int) -> Coin:
    clipped = np.clip(accuracy, 1e-3, 1 - 1e-3)[:, None]
    return Coin(np.repeat(clipped, k, 1), np.repeat((1 - clipped) / max(1, k - 1), k, 1))


def learn_mace(answers: Answers, belief: Floats, before: Coin | None = None) -> Coin:
    """Who does not know the answer draws a label of their own liking (MACE; Hovy et al. 2013).

    ``P(l | c) = θ [l = c] + (1 - θ) ξ_l`` with ``θ`` how often somebody knows and ``ξ`` their liking; one step of
    expectation maximisation from ``before``, with Beta(1, 1) on ``θ`` and half a pseudo-answer a label on ``ξ``.
    """
    k = len(answers.labels)
    total, right = given(answers), hits(answers, belief)
    guess = before.wrong if before else np.full(total.shape, 0.3 / k)
    knew = right * (1 - guess / np.maximum(before.right if before else guess + 0.7, _TINY))
    theta = (knew.sum(1) + 1) / (total.sum(1) + 2)
    liking = total - knew + 0.5
    liking /= liking.sum(1, keepdims=True)
    wrong = (1 - theta)[:, None] * liking
    return Coin(theta[:, None] + wrong, wrong)


def learn_confusion(answers: Answers, belief: Floats) -> Confusion:
    """A table an annotator from their own answers alone (Dawid and Skene 1979), a hair of smoothing apart."""
    counts = tables(answers, belief) + 0.1
    return Confusion(np.log(counts / counts.sum(1, keepdims=True)))


def learn_crowd(answers: Answers, belief: Floats) -> Confusion:
    """A table an annotator, drawn towards the crowd's: many answers speak for themselves, few follow the crowd.

    Variational Bayes for Bayesian classifier combination (Kim and Ghahramani 2012) with the Dirichlet prior learnt
    from the crowd: its mean is the pooled table (itself drawn towards a single coin), its strength the one under
    which the annotators' tables are likeliest.
    """
    counts = tables(answers, belief)
    pooled = counts.sum(0)
    k = len(pooled)
    right = (np.trace(pooled) + 2.0) / (pooled.sum() + 3.0)
    coin = np.full((k, k), (1 - right) / max(1, k - 1))
    np.fill_diagonal(coin, right)
    mean = (pooled + 5 * coin) / (pooled.sum(0) + 5)
    prior = np.stack([mean[:, c] * _strength(counts[:, :, c], mean[:, c]) for c in range(k)], axis=1)
    alpha = counts + prior
    return Confusion(digamma(alpha) - digamma(alpha.sum(1))[:, None])


_STRENGTHS = 2.0 ** np.arange(0, 9)


def _strength(counts: Floats, mean: Floats) -> float:
    """How many answers' worth the crowd's habit is, of 1 to 256: the Dirichlet-multinomial likelihood decides."""
    total = counts.sum(1)
    heard = counts[total > 0.5]
    if not len(heard):
        return 8.0
    n = heard.sum(1)

    def likelihood(s: float) -> float:
        prior = np.maximum(s * mean, 1e-6)
        each = lgamma(heard + prior) - lgamma(prior)
        return float(each.sum() + (lgamma(np.full(len(n), s)) - lgamma(n + s)).sum())

    return float(max(_STRENGTHS, key=likelihood))


def lgamma(x: Floats) -> Floats:
    """``log Γ(x)`` for positive ``x``: Stirling's series after eight steps up; within 1e-10."""
    shift = np.ones_like(x)
    for i in range(8):
        shift = shift * (x + i)
    z = x + 8
    series = 1 / (12 * z) - 1 / (360 * z**3) + 1 / (1260 * z**5)
    found: Floats = (z - 0.5) * np.log(z) - z + 0.5 * np.log(2 * np.pi) + series - np.log(shift)
    return found


def digamma(x: Floats) -> Floats:
    """``d log Γ(x) / dx`` for positive ``x``, by the same road."""
    lower = np.zeros_like(x)
    for i in range(8):
        lower = lower + 1 / (x + i)
    z = x + 8
    found: Floats = np.log(z) - 1 / (2 * z) - 1 / (12 * z**2) + 1 / (120 * z**4) - 1 / (252 * z**6) - lower
    return found


@dataclass(frozen=True)
class Difficulty:
    """GLAD (Whitehill et al. 2009): right with probability ``1 / (1 + exp(-ability_a · exp(ease_i)))``."""

    ability: Floats
    ease: Floats

    def right(self, answers: Answers) -> Floats:
        """``(answers,)``: the probability that each is right."""
        logit = self.ability[answers.annotator] * np.exp(self.ease[answers.item])
        found: Floats = np.clip(1 / (1 + np.exp(-logit)), 1e-3, 1 - 1e-3)
        return found

    def score(self, answers: Answers) -> Floats:
        p, k = self.right(answers), len(answers.labels)
        gain = np.log(p) - np.log((1 - p) / max(1, k - 1))
        return tally(answers.item, answers.label, gain, len(answers.items), k)

    def chance(self, answers: Answers, belief: Floats) -> Floats:
        p, sure = self.right(answers), belief[answers.item, answers.label]
        return sure * p + (1 - sure) * (1 - p) / max(1, len(answers.labels) - 1)

    def skill(self, prior: Floats) -> Floats:
        found: Floats = 1 / (1 + np.exp(-self.ability))
        return found


_CLIMB, _STEPS = 1.0, 10  # gradient steps per round of GLAD, in units of the curvature's bound


def learn_difficulty(answers: Answers, belief: Floats, before: Difficulty | None = None) -> Difficulty:
    """A few gradient steps from ``before``; abilities have the prior N(1, 1), log-eases N(0, 1), as in the paper."""
    m, n = len(answers.annotators), len(answers.items)
    ability = before.ability if before else np.ones(m)
    ease = before.ease if before else np.zeros(n)
    sure = belief[answers.item, answers.label]
    for _ in range(_STEPS):
        beta, alpha = np.exp(ease)[answers.item], ability[answers.annotator]
        wrong_by = sure - 1 / (1 + np.exp(-alpha * beta))
        up = np.bincount(answers.annotator, wrong_by * beta, minlength=m) - (ability - 1)
        curve = np.bincount(answers.annotator, beta**2, minlength=m) / 4 + 1
        over = np.bincount(answers.item, wrong_by * alpha * beta, minlength=n) - ease
        bend = np.bincount(answers.item, (alpha * beta) ** 2, minlength=n) / 4 + 1
        ability = ability + _CLIMB * up / curve
        ease = np.clip(ease + _CLIMB * over / bend, -3.0, 3.0)
    return Difficulty(ability, ease)
