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


def alike(vectors: Vectors, threshold: float) -> NDArray[np.int64]:
    """All pairs (i, j), i < j, whose cosine is ``threshold`` or more (Abbas et al. 2023, SemDeDup, arXiv 2303.09540,
    within one cluster). Grows with the square of the rows: meant for what an exact stage has left."""
    made = unit(vectors)
    pairs: list[NDArray[np.int64]] = [np.empty((0, 2), np.int64)]
    for start in range(0, len(made), _BLOCK):
        near = made[start : start + _BLOCK] @ made[start:].T >= threshold
        i, j = np.nonzero(np.triu(near, 1))
        pairs.append(np.column_stack([i + start, j + start]))
    return np.concatenate(pairs)


def semantic_duplicates(view: pa.Table, encode: Encoder, threshold: float = 0.95) -> pa.Table:
    """Hold records whose prompt means the same as that of a record with a smaller id: (what it resembles, how much).

    One decision per row of the later record. Records with equal prompts are left to the exact stages.
    """
    prompts = dict(zip(view["record"].to_pylist(), view["prompt"].to_pylist(), strict=True))
    names = sorted(prompts)
    if not names:
        return records.DECISIONS.empty_table()
    vectors = unit(encode([prompts[name] or "" for name in names]))
    like: dict[str, tuple[str, float]] = {}
    for i, j in alike(vectors, threshold).tolist():
        if prompts[names[i]] != prompts[names[j]]:
            like.setdefault(names[j], (names[i], float(vectors[i] @ vectors[j])))
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
