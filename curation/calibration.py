"""How far a probability may be believed: sharpening or softening it, measuring what is left of the gap, and how sure a
counted share is.

Shared by whatever states a probability. Arithmetic only: arrays in, numbers out.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

_FLOOR = 1e-6  # no class is ever ruled out by rounding
_ENOUGH = (
    10_000  # rows to fit one number by: its error is then about a hundredth, well below what a bin can show
)


def softmax(score: npt.NDArray[Any]) -> Floats:
    """Each row's exponentials, normalised; safe for large scores. No rows give no rows."""
    grown = np.exp(np.asarray(score, np.float64) - score.max(1, keepdims=True, initial=-np.inf))
    return grown / grown.sum(1, keepdims=True)


def temper(proba: Floats, temperature: float) -> Floats:
    """``p ** (1 / temperature)``, normalised by row: above 1 softens, below 1 sharpens; the order of classes stays."""
    return softmax(np.log(np.maximum(proba, _FLOOR)) / temperature)


def fit_temperature(proba: Floats, truth: npt.NDArray[Any]) -> float:
    """The temperature in [0.1, 10] under which ``truth`` is likeliest (Guo et al. 2017, section 4.2).

    ``truth`` holds a class index per row; rows with another index are left out. One row's worth of belief in 1.0
    keeps a handful of rows from deciding much. Without rows: 1.0. Of more than ``_ENOUGH`` rows an even draw decides. A
    golden-section search over the logarithm, since the loss has one valley there.
    """
    known = even_draw(np.flatnonzero((truth >= 0) & (truth < proba.shape[1])), _ENOUGH)
    logs, right = np.log(np.maximum(proba[known], _FLOOR)), truth[known]
    if not len(right):
        return 1.0
    rows = np.arange(len(right))

    def loss(log_t: float) -> float:
        scaled = logs / np.exp(log_t)
        top = scaled.max(1)
        norm = top + np.log(np.exp(scaled - top[:, None]).sum(1))
        return float((norm - scaled[rows, right]).sum()) + 0.5 * log_t**2

    return float(np.exp(_valley(loss, np.log(0.1), np.log(10.0))))


def even_draw(rows: npt.NDArray[Any], most: int) -> npt.NDArray[Any]:
    """All ``rows``, or ``most`` of them, drawn evenly, in their order and the same ones each time."""
    if len(rows) <= most:
        return rows
    return rows[np.sort(np.random.default_rng(0).choice(len(rows), most, replace=False))]


def _valley(loss: Any, low: float, high: float, steps: int = 40) -> float:
    """Where a function of one valley is lowest, by golden section."""
    ratio = (np.sqrt(5.0) - 1) / 2
    a, b = high - ratio * (high - low), low + ratio * (high - low)
    at_a, at_b = loss(a), loss(b)
    for _ in range(steps):
        if at_a < at_b:
            high, b, at_b = b, a, at_a
            a = high - ratio * (high - low)
            at_a = loss(a)
        else:
            low, a, at_a = a, b, at_b
            b = low + ratio * (high - low)
            at_b = loss(b)
    return (low + high) / 2


def calibration_error(confidence: npt.ArrayLike, correct: npt.ArrayLike, bins: int = 15) -> float | None:
    """Expected calibration error: the mean gap between confidence and share correct, over equal-width bins.

    Naeini et al. 2015, weighted by the rows in each bin; 0 is perfect. ``None`` without rows.

    >>> calibration_error([0.8, 0.8, 0.8, 0.8, 0.8], [1, 1, 1, 1, 0])
    0.0
    """
    sure, hit = np.asarray(confidence, np.float64), np.asarray(correct, np.float64)
    if not len(sure):
        return None
    which = np.minimum((sure * bins).astype(int), bins - 1)
    gap = np.bincount(which, weights=sure - hit, minlength=bins)
    return round(float(np.abs(gap).sum() / len(sure)), 12)


def wilson(hits: float, n: int, z: float = 1.959964) -> tuple[float, float]:
    """The score interval of a share of ``n`` (Wilson 1927), of 95% as it stands; (0, 1) where ``n`` is 0.

    It never leaves [0, 1], and holds the share itself.

    >>> [round(bound, 3) for bound in wilson(9, 10)]
    [0.596, 0.982]
    """
    if not n:
        return 0.0, 1.0
    share, slack = hits / n, z * z / n
    middle = (share + slack / 2) / (1 + slack)
    reach = z * math.sqrt(share * (1 - share) / n + slack / (4 * n)) / (1 + slack)
    # Rounding must leave neither the share nor a probability outside.
    return max(0.0, min(share, middle - reach)), min(1.0, max(share, middle + reach))
