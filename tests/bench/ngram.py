"""A small n-gram model with interpolated Kneser-Ney smoothing: what a language model has to beat.

Kneser and Ney 1995; interpolated, with one discount per order, as in Chen and Goodman 1999 (Computer Speech and
Language 13, section 3). Everything is sorted arrays of integers: an n-gram is one number in base ``vocab``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Order:
    """The n-grams of one order, and for each of their contexts how many there are of how many kinds."""

    grams: np.ndarray
    counts: np.ndarray
    contexts: np.ndarray
    totals: np.ndarray
    kinds: np.ndarray
    discount: float

    @staticmethod
    def of(grams: np.ndarray, counts: np.ndarray, vocab: int) -> Order:
        """From sorted n-grams and their counts. The discount is ``n1 / (n1 + 2 n2)``."""
        once, twice = int((counts == 1).sum()), int((counts == 2).sum())
        starts = np.flatnonzero(np.diff(grams // vocab, prepend=-1))
        kinds = np.diff(np.append(starts, len(grams)))
        totals = np.add.reduceat(counts, starts)
        discount = once / (once + 2 * twice) if once and twice else 0.5
        return Order(grams, counts, grams[starts] // vocab, totals, kinds, discount)

    def interpolate(self, grams: np.ndarray, lower: np.ndarray, vocab: int) -> np.ndarray:
        """Probabilities of n-grams, given those of their shorter forms; the latter where the context is new."""
        place, known = _find(self.contexts, grams // vocab)
        gram, seen = _find(self.grams, grams)
        count = np.where(seen, self.counts[gram], 0)
        total = self.totals[place]
        mixed = (
            np.maximum(count - self.discount, 0) / total + self.discount * self.kinds[place] / total * lower
        )
        return np.where(known, mixed, lower)


def _find(table: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    place = np.minimum(np.searchsorted(table, wanted), len(table) - 1)
    return place, table[place] == wanted


@dataclass(frozen=True)
class KneserNey:
    """The orders from 1 up, over ids below ``vocab``; ``vocab ** order`` has to fit into 63 bits."""

    orders: tuple[Order, ...]
    vocab: int

    @staticmethod
    def learn(rows: Sequence[Sequence[int]], vocab: int, order: int = 5) -> KneserNey:
        """From rows of ids. The longest n-grams are counted, shorter ones by how many different tokens precede them."""
        if vocab**order >= 2**63:
            raise ValueError(f"{order}-grams over {vocab} tokens do not fit into 63 bits")
        grams, counts = np.unique(_grams(rows, vocab, order), return_counts=True)
        orders = [Order.of(grams, counts, vocab)]
        for shorter in range(order - 1, 0, -1):
            grams, counts = np.unique(grams % vocab**shorter, return_counts=True)
            orders.append(Order.of(grams, counts, vocab))
        return KneserNey(tuple(reversed(orders)), vocab)

    def probabilities(self, grams: np.ndarray) -> np.ndarray:
        """Of the last token of each n-gram of the highest order, given the others."""
        found = np.full(len(grams), 1.0 / self.vocab)
        for n, order in enumerate(self.orders, 1):
            found = order.interpolate(grams % self.vocab**n, found, self.vocab)
        return found

    def bits(self, rows: Sequence[Sequence[int]]) -> float:
        """What it needs to tell the rows, in bits."""
        return float(-np.log2(self.probabilities(_grams(rows, self.vocab, len(self.orders)))).sum())


def _grams(rows: Sequence[Sequence[int]], vocab: int, order: int) -> np.ndarray:
    """Each token of each row with the ``order - 1`` before it as one number; before a row stand zeros (the padding)."""
    padded = [part for row in rows for part in ([0] * (order - 1), row)]
    flat = np.concatenate([np.asarray(part, dtype=np.int64) for part in padded])
    real = np.concatenate([np.full(len(part), i % 2, dtype=bool) for i, part in enumerate(padded)])
    codes = np.zeros(len(flat) - order + 1, dtype=np.int64)
    for back in range(order):
        codes = codes * vocab + flat[back : back + len(codes)]
    return codes[real[order - 1 :]]


def bits_per_byte(model: KneserNey, rows: Sequence[Sequence[int]], texts: Sequence[str]) -> float:
    """Bits over the texts' bytes in UTF-8; ``rows`` are their ids."""
    size = sum(len(text.encode()) for text in texts)
    return model.bits(rows) / size if size else math.nan
