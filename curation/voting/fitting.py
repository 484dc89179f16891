"""Learning label models from votes alone, and from votes with some gold.

Functions written by one person are rarely independent: two rules that match the same phrase repeat one opinion. So
expectation maximisation discounts a function by how far it goes along with others beyond what the class explains, and
tables are pulled towards a function that is merely better than chance. Nothing here chooses between models.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from curation.calibration import Floats, even_draw, fit_temperature, softmax, temper
from curation.voting.functions import ABSTAIN
from curation.voting.matrix import Matrix
from curation.voting.models import Corrected, LabelModel, Majority, Weighted

_CELLS = 20_000_000  # one-hot cells that a fit may hold at once; more rows than that are sampled
_GOLD = 10_000  # rows with gold that weights are learnt from: dozens for every weight, in seconds
_PRECISION = 0.7  # how often a function is expected to be right before its votes are looked at


@dataclass(frozen=True)
class EmRule:
    """How expectation maximisation goes about it.

    ``strength``: rows' worth of belief, per class, in what a function is expected to say. ``even``: pull of the class
    balance towards equal shares, as a share of the rows. ``silence``: how much abstaining counts as evidence, 0 to 1.
    ``discount``: whether functions that repeat each other count less. ``steps``: at most so many; a single one only
    re-weighs the majority, which is early stopping and hard to lead astray.
    """

    strength: float = 5.0
    even: float = 0.0
    silence: float = 1.0
    discount: bool = True
    steps: int = 60


FULL = EmRule()
SPOKEN = EmRule(strength=20.0, even=0.5, silence=0.0, steps=8)
ONE_STEP = EmRule(strength=20.0, even=0.5, silence=0.5, discount=False, steps=1)
_SHARED, _ECHO = 30, 0.95  # rows that two functions must share, and Cohen's kappa, to be one opinion
_EVERY = 5  # steps between two looks at how far functions repeat each other


def fit_dawid_skene(
    matrix: Matrix,
    k: int,
    balance: Floats | None = None,
    rule: EmRule = FULL,
    kind: str = "dawid-skene",
) -> Weighted:
    """Expectation maximisation after Dawid and Skene (1979), with abstaining as one more thing a function can say.

    A function that speaks up for one class only is thereby understood: its silence counts a little against that
    class. Each table is smoothed towards a function that votes as often as this one and is right ``_PRECISION`` of
    the time: that functions are better than chance is all that is assumed of them. A given ``balance`` stays fixed.
    Without any vote the model knows nothing and answers the balance.
    """
    votes = _Patterns.of(sample(matrix, k), k)
    echo = 1 / (1 + votes.echoes().sum(1)) if rule.discount else np.ones(matrix.shape[1])
    belief, weight = votes.head_count(echo), echo
    prior = uniform(k) if balance is None else balance
    table: Floats = np.ones((matrix.shape[1], 1 + k, k))
    settled = belief
    for step in range(rule.steps):
        mass, counts = votes.count(belief)
        prior = votes.balance(belief, rule.even) if balance is None else balance
        expected = _expected(votes.shares, prior)
        table = (counts + rule.strength * expected) / (mass + rule.strength)
        if rule.discount and step % _EVERY == _EVERY - 1:
            weight = np.minimum(echo, votes.independence(belief, counts, mass))
            if np.abs(belief - settled).max(initial=0.0) < 1e-3:
                break
            settled = belief
        before, belief = belief, votes.posterior(_evidence(table, weight, rule.silence), prior)
        if not rule.discount and np.abs(belief - before).max(initial=0.0) < 1e-4:
            break
    return Weighted(kind, prior, _evidence(table, weight, rule.silence))


def _evidence(table: Floats, weight: Floats, silence: float) -> Floats:
    logs = np.log(np.clip(table, 1e-6, 1.0)) * weight[:, None, None]
    logs[:, 0] *= silence
    return logs


@dataclass(frozen=True)
class _Patterns:
    """The few ways to vote that a matrix holds, how often each occurs, and the sums that a step needs."""

    rows: Matrix
    times: Floats
    said: Floats  # (patterns, functions, 1 + classes), one-hot
    together: Floats  # (classes, functions, functions): rows in which both vote for the class

    @classmethod
    def of(cls, matrix: Matrix, k: int) -> _Patterns:
        rows, times = np.unique(matrix, axis=0, return_counts=True)
        said = np.stack([rows == v for v in range(-1, k)], axis=2).astype(np.float64)
        together = [
            (here * times[:, None]).T @ here for here in ((rows == v).astype(np.float64) for v in range(k))
        ]
        return cls(rows, times.astype(np.float64), said, np.stack(together))

    @property
    def shares(self) -> Floats:
        """``(functions, 1 + classes)``: how often each function gives each answer."""
        return np.tensordot(self.times, self.said, 1) / max(1.0, self.times.sum())

    def head_count(self, weight: Floats) -> Floats:
        """``(patterns, classes)``: each function's vote counted by its weight, one more spread over all classes."""
        counts = np.tensordot(weight, self.said[:, :, 1:], (0, 1)) + 1 / (self.said.shape[2] - 1)
        share: Floats = counts / counts.sum(1, keepdims=True)
        return share

    def echoes(self) -> npt.NDArray[np.bool_]:
        """``(functions, functions)``: pairs that are one opinion, by Cohen's kappa on the rows where both vote.

        Expectation maximisation would take such a pair for the truth itself, since nothing explains them better.
        Functions for a single class have no kappa: agreeing is all they can do.
        """
        spoke = (self.rows != ABSTAIN).astype(np.float64)
        both = (spoke * self.times[:, None]).T @ spoke
        named = ((self.rows == v) * self.times[:, None] for v in range(len(self.together)))
        mine = np.stack([votes.T @ spoke for votes in named])  # i's votes where j votes too
        known = np.maximum(both, 1.0)
        agree, luck = self.together.sum(0) / known, (mine * np.swapaxes(mine, 1, 2)).sum(0) / known**2
        alike = (both >= _SHARED) & (agree - luck >= _ECHO * (1 - luck)) & (luck < 0.99)
        np.fill_diagonal(alike, False)
        return alike

    def count(self, belief: Floats) -> tuple[Floats, Floats]:
        """Rows per class, and ``(functions, 1 + classes, classes)`` answers per class."""
        weighed = belief * self.times[:, None]
        flat = self.said.reshape(len(self.rows), -1)
        return weighed.sum(0), (flat.T @ weighed).reshape(*self.said.shape[1:], belief.shape[1])

    def balance(self, belief: Floats, even: float) -> Floats:
        """Class shares among the rows with votes, pulled towards equal ones."""
        voted = (self.rows != ABSTAIN).any(1)
        mass = (belief[voted] * self.times[voted, None]).sum(0)
        pull = 1 + even * self.times.sum() / len(mass)
        return (mass + pull) / (mass.sum() + len(mass) * pull)

    def posterior(self, evidence: Floats, prior: Floats) -> Floats:
        """``(patterns, classes)``; a pattern without votes gets the prior."""
        flat = self.said.reshape(len(self.rows), -1)
        belief = softmax(np.log(prior) + flat @ evidence.reshape(-1, len(prior)))
        belief[(self.rows == ABSTAIN).all(1)] = prior
        return belief

    def independence(self, belief: Floats, counts: Floats, mass: Floats) -> Floats:
        """``(functions,)`` in (0, 1]: what share of a function's votes is its own.

        ``1 / (1 + Σ_j ρ_ij)`` over the positive correlations of what the class leaves unexplained: the design effect
        of repeated measurement (Kish 1965, section 8.2) as a weight. Correlations within three standard errors of
        zero are taken for zero.
        """
        said = counts[:, 1:] / np.maximum(mass, 1e-12)  # P(vote | class)
        square = (belief * self.times[:, None]).T @ belief
        shared = np.zeros((len(said), len(said)))
        for v, both in enumerate(self.together):
            cross = counts[:, 1 + v] @ said[:, v].T
            shared += both - cross - cross.T + said[:, v] @ square @ said[:, v].T
        spread = np.sqrt(np.maximum(np.diag(shared), 1e-9))
        rho = shared / spread[:, None] / spread
        np.fill_diagonal(rho, 0.0)
        rho[rho < 3 / np.sqrt(self.times.sum())] = 0.0
        weight: Floats = 1 / (1 + rho.sum(1))
        return weight


def _expected(shares: Floats, balance: Floats) -> Floats:
    """``(functions, 1 + classes, classes)``: the tables of functions that answer by ``shares``, right ``_PRECISION``
    of the time.
    """
    k = len(balance)
    right = np.full((k, k), (1 - _PRECISION) / max(1, k - 1))
    np.fill_diagonal(right, _PRECISION)
    voting = shares[:, 1:, None] * right / balance
    voting *= np.minimum(1.0, 0.98 / np.maximum(voting.sum(1, keepdims=True), 1e-12))
    silent = 1 - voting.sum(1, keepdims=True)
    return np.concatenate([silent, voting], axis=1)


# By triplets ------------------------------------------------------------------------------------------------


def fit_triplet(matrix: Matrix, k: int, balance: Floats | None = None) -> Weighted:
    """Accuracies in closed form, from how often three functions at a time agree (FlyingSquid; Fu et al. 2020, alg. 1).

    For a class against the rest, a vote is +1 or -1 and ``E[a_i y] E[a_j y] = E[a_i a_j]`` for functions independent
    given ``y``, so ``|E[a_i y]| = sqrt(E_ij E_il / E_jl)``. Each accuracy is the median over all pairs ``j, l``, with
    the sign of a function that is better than chance. One without a usable triplet gets the expected precision.
    """
    prior = uniform(k) if balance is None else balance
    evidence = np.zeros((matrix.shape[1], 1 + k, k))
    for c in range(k):
        signed = np.where(matrix == ABSTAIN, 0, np.where(matrix == c, 1, -1)).astype(np.float32)
        strength = np.log1p(moments := _triplets(signed)) - np.log1p(-moments)
        if k == 2:  # the two classes share one score: half of it each
            strength = strength / 2
        evidence[:, 1:, c] = -strength[:, None]
        evidence[:, 1 + c, c] = strength
    return Weighted("triplet", prior, evidence)


_SEEN, _CLEAR = 5, 0.05  # rows a pair must share, and agreement to divide by, for a triplet to count


def _triplets(signed: npt.NDArray[np.float32]) -> Floats:
    """``E[a_i y]`` of each function from votes in {-1, 0, 1}, within [0.05, 0.95]."""
    spoke = np.abs(signed)
    both = (spoke.T @ spoke).astype(np.float64)
    agree = np.where(both >= _SEEN, signed.T @ signed / np.maximum(both, 1), np.nan)
    np.fill_diagonal(agree, np.nan)
    divisor = np.where(np.abs(agree) >= _CLEAR, np.abs(agree), np.nan)
    divisor[np.tril_indices(len(divisor))] = np.nan
    found = np.full(len(agree), 2 * _PRECISION - 1)
    for i, row in enumerate(agree):
        squared = np.abs(row[:, None] * row) / divisor
        if np.isfinite(squared).any():
            found[i] = np.sqrt(np.nanmedian(np.minimum(squared, 1.0)))
    return np.clip(found, 0.05, 0.95)


# With gold --------------------------------------------------------------------------------------------------


def fit_weighted(
    matrix: Matrix,
    k: int,
    gold: npt.NDArray[Any],
    base: LabelModel,
    *,
    penalty: float = 1.0,
    steps: int = 300,
) -> Corrected:
    """A vote's weight learnt on gold, starting from what another model makes of the votes.

    Multinomial logistic regression of the class on the votes, one weight per function and class it names, with the
    base model's tempered log-probabilities as offset and an L2 ``penalty``: with little gold the base model answers,
    with much the gold does, and functions that repeat each other share their weight. ``gold`` holds class indices;
    rows with another index, or without votes, are left out, and of more than ``_GOLD`` an even draw teaches. Böhning's
    (1992) bound on the curvature makes every step an improvement.
    """
    known = even_draw(np.flatnonzero((gold >= 0) & (gold < k) & (matrix != ABSTAIN).any(1)), _GOLD)
    rows, truth = matrix[known], gold[known]
    start = base.proba(rows)
    temperature = fit_temperature(start, truth)
    offset = np.log(temper(start, temperature))
    said = np.stack([np.column_stack([rows == v, np.ones(len(rows))]) for v in range(k)]).astype(np.float64)
    curve = [np.linalg.cholesky(x.T @ x / 2 + penalty * np.eye(x.shape[1])) for x in said]
    weight = np.zeros((k, matrix.shape[1] + 1))
    target = np.eye(k)[truth]
    for _ in range(steps):
        p = softmax(offset + np.stack([x @ w for x, w in zip(said, weight, strict=True)], axis=1))
        slope = [x.T @ (target[:, v] - p[:, v]) - penalty * weight[v] for v, x in enumerate(said)]
        move = np.stack([_solve(c, s) for c, s in zip(curve, slope, strict=True)])
        weight += move
        if np.abs(move).max() < 1e-4:
            break
    evidence = np.zeros((matrix.shape[1], 1 + k, k))
    for v in range(k):
        evidence[:, 1 + v, v] = weight[v, :-1]
    return Corrected(base, temperature, evidence, weight[:, -1])


def _solve(lower: Floats, right: Floats) -> Floats:
    """Solve ``L Lᵀ x = right`` for a lower triangle ``L``."""
    found: Floats = np.linalg.solve(lower.T, np.linalg.solve(lower, right))
    return found


def uniform(k: int) -> Floats:
    """Equal shares."""
    return np.full(k, 1 / k)


def head_count(matrix: Matrix, k: int) -> Floats:
    """The class shares that votes show when each row's are counted alike; equal shares where nobody voted."""
    voted = matrix[(matrix != ABSTAIN).any(1)]
    return Majority(uniform(k)).proba(voted).mean(0) if len(voted) else uniform(k)


def sample(matrix: Matrix, k: int) -> Matrix:
    """All rows, or an even draw of them where their one-hot form would not fit."""
    return even_draw(matrix, max(1000, _CELLS // max(1, matrix.shape[1] * (1 + k))))
