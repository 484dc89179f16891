"""What a weak label's confidence is good for: a weight in training, a place in the queue, and whom to trust at all.

Pure functions of probabilities and features; nothing here trains or asks.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from curation.calibration import Floats
from curation.text import tokens

_BLOCK = 1_000_000  # similarities held at once while neighbours are found


def loss_weight(sure: Floats, classes: int) -> Floats:
    """``(rows,)`` in [0, 1]: how much a row's label counts in the loss, from the probability ``sure`` that it is right.

    ``(k · p - 1) / (k - 1)``: 1 for certainty, 0 for a guess among ``k`` classes. Where a label is wrong in every way
    alike, this is the share of labels that say more than a guess would: the rest teaches nothing. Among fewer than two
    classes there is nothing to guess, and the weight is ``sure``.
    """
    weight: Floats = (classes * sure - 1) / (classes - 1) if classes > 1 else sure
    return np.clip(weight, 0.0, 1.0)


def priority(proba: Floats) -> Floats:
    """``(rows,)`` in [0, 1]: how much a person's answer is wanted; the entropy of the row over that of ``k`` equals."""
    k = max(2, proba.shape[1])
    found: Floats = -(proba * np.log(np.maximum(proba, 1e-12))).sum(1) / np.log(k)
    return np.clip(found, 0.0, 1.0)


def cut_statistic(
    labels: npt.NDArray[np.int64], features: npt.NDArray[np.floating], neighbours: int = 20
) -> Floats:
    """``(rows,)``: how far each row's label disagrees with its neighbours', in standard errors; low is trusted.

    A row is joined to its nearest rows by cosine of ``features`` ``(rows, dims)`` (embeddings, or any vectors that are
    handed in). The weighted edges to rows of another label are summed, and compared with what labels drawn at random by
    their shares would give (Muhlenbach et al. 2004; Lang et al. 2022, section 3). A row without neighbours gets 0, and so
    does every row where one label is all there is.
    """
    n = len(labels)
    if n < 2:
        return np.zeros(n)
    near, weight = _neighbours(features, min(neighbours, n - 1))
    share = np.bincount(labels, minlength=labels.max() + 1) / n
    other = 1 - share[labels]
    cut = (weight * (labels[near] != labels[:, None])).sum(1)
    expected = other * weight.sum(1)
    spread = np.sqrt(other * (1 - other) * (weight**2).sum(1))
    found: Floats = np.where(spread > 0, (cut - expected) / np.where(spread > 0, spread, 1.0), 0.0)
    return found


def trusted(
    proba: Floats, features: npt.NDArray[np.floating], share: float = 0.5, neighbours: int = 20
) -> npt.NDArray[np.bool_]:
    """A mask of the ``share`` of rows whose labels their neighbourhood confirms best, by :func:`cut_statistic`.

    Within each predicted class the same share is kept, so that a hard class does not vanish. Half of the rows is what Lang
    et al. (2022) found to serve well. No rows give an empty mask.
    """
    labels = proba.argmax(1) if len(proba) else np.zeros(0, np.int64)
    statistic = cut_statistic(labels, features, neighbours)
    keep = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        order = np.lexsort((-proba[rows].max(1), statistic[rows]))
        keep[rows[order[: int(np.ceil(share * len(rows)))]]] = True
    return keep


def lexical_features(texts: Sequence[str], dims: int = 512) -> npt.NDArray[np.float32]:
    """``(texts, dims)``: words hashed into so many counts, damped by a logarithm and by how common each bucket is.

    What stands in for embeddings where no model is at hand; the same on every machine.
    """
    found = np.zeros((len(texts), dims), np.float32)
    for i, text in enumerate(texts):
        for word in tokens(text):
            found[i, zlib.crc32(word.encode()) % dims] += 1
    common = (found > 0).mean(0) if len(texts) else np.zeros(dims)
    damped: npt.NDArray[np.float32] = np.log1p(found) * np.log(1 / np.maximum(common, 1e-6)).astype(
        np.float32
    )
    return damped


def _neighbours(features: npt.NDArray[np.floating], count: int) -> tuple[npt.NDArray[np.int64], Floats]:
    """``(rows, count)`` nearest other rows by cosine, and the edges' weights ``1 / (1 + distance)``."""
    unit = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    n = len(unit)
    near = np.zeros((n, count), np.int64)
    weight = np.zeros((n, count))
    step = max(1, _BLOCK // n)
    for start in range(0, n, step):
        alike = unit[start : start + step] @ unit.T
        rows = np.arange(len(alike))
        alike[rows, start + rows] = -np.inf
        best = np.argpartition(-alike, count - 1, axis=1)[:, :count]
        near[start : start + step] = best
        weight[start : start + step] = 1 / (2 - np.take_along_axis(alike, best, 1))
    return near, weight
