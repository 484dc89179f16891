"""Texts that mean the same in other words, by vectors that an encoder made: arithmetic for de-duplication and
decontamination. No encoder is here; whoever has one hands in its vectors.

What an encoder calls near is an opinion. So nothing is dropped on it: rows are held, beside what they resemble, for a
person to decide.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from curation import records
from curation.errors import UsageError

Vectors = NDArray[np.float32]
Encoder = Callable[[Sequence[str]], Vectors]
"""Texts to vectors, shape (texts, dimensions); their length plays no part."""

_BLOCK = 1024  # rows compared with all others at once: 4 MB per thousand others


def unit(vectors: Vectors) -> Vectors:
    """Vectors of length one; a vector of zeros stays, and resembles nothing. Raises :class:`UsageError` for numbers that
    are not finite."""
    made = np.asarray(vectors, np.float32)
    if not np.isfinite(made).all():
        raise UsageError(
            "a vector holds a number that is not finite", next="Look at what the encoder was given"
        )
    length = np.linalg.norm(made, axis=1, keepdims=True) if made.size else np.ones((len(made), 1), np.float32)
    return made / np.where(length > 0, length, 1)


def nearest(
    vectors: Vectors, others: Vectors, k: int = 5, least: float = 0.0
) -> list[list[tuple[int, float]]]:
    """For each vector the ``k`` nearest of the others by cosine, best first, those under ``least`` left out.

    Ties go to the smaller number. Memory holds one block of the similarities. No others give empty lists.
    """
    one, other = unit(vectors), unit(others)
    if not len(other):
        return [[] for _ in range(len(one))]
    found = []
    for start in range(0, len(one), _BLOCK):
        for row in one[start : start + _BLOCK] @ other.T:
            best = np.argsort(-row, kind="stable")[:k]
            found.append([(int(i), float(row[i])) for i in best if row[i] >= least])
    return found


FEWEST = 20  # texts from which a mean says what they have in common, and not what each of them is


def isotropic(vectors: Vectors) -> Vectors:
    """Vectors from the hidden states of a language model, fit to be compared by cosine.

    As they are, all of them point one way (Ethayarajh 2019, arXiv 1909.00512). Their mean goes, and then the
    directions that they vary most along, one per hundred dimensions (Mu and Viswanath 2018, arXiv 1702.01417, section
    2.3), and no more than one per fifty texts. Vectors of an encoder that was trained for cosines need none of it.
    Raises :class:`UsageError` for fewer than :data:`FEWEST` texts; none give none.
    """
    made = np.asarray(vectors, np.float64)
    if not len(made):
        return np.asarray(vectors, np.float32)
    if len(made) < FEWEST:
        raise UsageError(
            f"{len(made)} texts are too few to learn what their hidden states have in common",
            next=f"Bring vectors of an encoder for similarity, or {FEWEST} texts",
        )
    centred = made - made.mean(axis=0)
    _, directions = np.linalg.eigh(centred.T @ centred)  # by rising variance
    width = made.shape[1]
    most = directions[:, width - min(round(width / 100), len(made) // 50) :]
    return (centred - centred @ most @ most.T).astype(np.float32)


Told = Callable[[int, int], None]


def alike(
    vectors: Vectors, threshold: float, told: Told = lambda done, total: None
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """All pairs (i, j), i < j, whose cosine is ``threshold`` or more, and that cosine (Abbas et al. 2023, SemDeDup, arXiv
    2303.09540, within one cluster); ordered by j. Grows with the square of the rows: meant for what an exact stage has
    left. Memory holds a tile of the similarities; ``told`` is told how many rows are done."""
    made = unit(vectors)
    pairs: list[NDArray[np.int64]] = [np.empty((0, 2), np.int64)]
    scores: list[NDArray[np.float32]] = [np.empty(0, np.float32)]
    for start in range(0, len(made), _BLOCK):
        later = made[start : start + _BLOCK]
        for first in range(0, start + 1, _BLOCK):
            cosine = later @ made[first : first + _BLOCK].T
            j, i = np.nonzero(np.tril(cosine >= threshold, -1) if first == start else cosine >= threshold)
            pairs.append(np.column_stack([i + first, j + start]))
            scores.append(cosine[j, i])
        told(min(start + _BLOCK, len(made)), len(made))
    found, cosines = np.concatenate(pairs), np.concatenate(scores)
    order = np.lexsort((found[:, 0], found[:, 1]))
    return found[order], cosines[order]


def followers(
    vectors: Vectors, threshold: float, told: Told = lambda done, total: None
) -> dict[int, tuple[int, float]]:
    """For each row that resembles an earlier one: the one it resembles most, of those that follow none, and the cosine.

    So whoever drops all of these keeps, for each, a row within the threshold: a chain of small steps ends after one.
    """
    found: dict[int, tuple[int, float]] = {}
    pairs, scores = alike(vectors, threshold, told)
    for (i, j), score in zip(pairs.tolist(), scores.tolist(), strict=True):
        if i not in found and score > found.get(j, (0, -1.0))[1]:
            found[j] = (i, score)
    return found


def semantic_duplicates(view: pa.Table, encode: Encoder, threshold: float = 0.95) -> pa.Table:
    """Hold records whose prompt means the same as that of a record with a smaller id, which is not held itself.

    One decision per row of the later record, with what it resembles and how much. Records with equal prompts are left
    to the exact stages.
    """
    prompts = dict(zip(view["record"].to_pylist(), view["prompt"].to_pylist(), strict=True))
    holders: dict[str, str] = {}
    for name in sorted(prompts):
        holders.setdefault(prompts[name] or "", name)
    if not holders:
        return records.DECISIONS.empty_table()
    found = followers(encode(list(holders)), threshold)
    texts, names = list(holders), list(holders.values())
    resembled = {texts[j]: (names[i], score) for j, (i, score) in found.items()}
    like = {name: resembled[text or ""] for name, text in prompts.items() if (text or "") in resembled}
    return _held(view, like, "means the same as another record, by the encoder's vectors", "resembles")


def paraphrased_leaks(
    view: pa.Table, eval_view: pa.Table, encode: Encoder, *, k: int = 5, least: float = 0.8
) -> pa.Table:
    """Hold, for each reserved prompt, the ``k`` records that resemble it most, from a cosine of ``least``.

    What no comparison of words can see (Yang et al. 2023, arXiv 2311.04850). The evidence names the reserved record and
    never quotes it.
    """
    pool = dict(zip(view["record"].to_pylist(), view["prompt"].to_pylist(), strict=True))
    held = dict(zip(eval_view["record"].to_pylist(), eval_view["prompt"].to_pylist(), strict=True))
    names, reserved = sorted(set(pool) - set(held)), sorted(held)
    if not names or not reserved:
        return records.DECISIONS.empty_table()
    vectors = encode([pool[name] or "" for name in names])
    targets = encode([held[name] or "" for name in reserved])
    like: dict[str, tuple[str, float]] = {}
    for target, found in zip(reserved, nearest(targets, vectors, k, least), strict=True):
        for place, score in found:
            if score > like.get(names[place], ("", -1.0))[1]:
                like[names[place]] = (target, score)
    return _held(view, like, "resembles a prompt that is reserved for evaluation", "matched")


def _held(view: pa.Table, like: dict[str, tuple[str, float]], reason: str, key: str) -> pa.Table:
    rows = zip(view["record"].to_pylist(), view["label"].to_pylist(), strict=True)
    found = [
        records.decision(
            record,
            "hold",
            reason,
            label=label,
            evidence={key: like[record][0], "method": "embedding", "score": round(like[record][1], 4)},
        )
        for record, label in rows
        if record in like
    ]
    return records.table(found, records.DECISIONS)
