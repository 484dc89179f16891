"""What banding missed, on the very texts that were compared: a sample of them against all others, exactly.

The S-curve of banding is a promise about random hash functions; this is a count. Nothing here changes a cluster.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from curation import shingles
from curation.grouping import Corpus, Groups, Pairs, first_of_name
from curation.minhash import DuplicateRule


@dataclass(frozen=True)
class Check:
    """What an exact comparison of ``sample`` texts with all others shows: ``pairs`` are at the threshold or over it,
    and of those ``found`` were put into one cluster. ``joined`` pairs of sampled texts with others are in one cluster,
    ``direct`` of them at the threshold themselves; the rest are connected by texts between them."""

    sample: int
    pairs: int
    found: int
    joined: int
    direct: int

    @property
    def recall(self) -> float:
        """The share of near-duplicate pairs that were found; 1.0 where there are none."""
        return self.found / self.pairs if self.pairs else 1.0


_TABLE = 1 << 20
_STEP = 1 << 18  # candidates that are looked at together


def check(corpus: Corpus, groups: Groups, rule: DuplicateRule, sample: int) -> Check:
    """Compare ``sample`` distinct texts exactly with every other distinct text, without MinHash.

    The sample is those of the least names, which are digests: it depends neither on order nor on a generator. A text
    at the threshold shares one of the first ``size - ceil(t * size) + 1`` shingles, in any fixed order, of a sampled
    one (prefix filtering: Bayardo, Ma, Srikant 2007), so only texts that hold one of these are compared.
    """
    first = first_of_name(corpus.names)
    kept = np.flatnonzero(first == np.arange(len(first)))
    chosen = kept[np.argsort(corpus.names[kept, 0], kind="stable")[:sample]]
    sets = corpus.sets(chosen)
    prefixes = _prefixes(sets, rule.threshold)
    near = [_near_the_sample(rows, start, sets, prefixes, rule) for start, rows in placed(corpus.batches())]
    pairs = np.concatenate([np.empty((0, 2), np.int64), *near])
    other, of = pairs[:, 0], chosen[pairs[:, 1]]
    counted = (first[other] == other) & (other != of)
    other, of = other[counted], of[counted]
    found = groups.labels[other] == groups.labels[of]
    sizes = np.bincount(groups.labels[kept], minlength=len(first))
    joined = int((sizes[groups.labels[chosen]] - 1).sum())
    return Check(len(chosen), len(other), int(found.sum()), joined, int(found.sum()))


def placed(batches: Iterable[shingles.Ragged]) -> Iterator[tuple[int, shingles.Ragged]]:
    """Each batch with the number of its first text."""
    start = 0
    for rows in batches:
        yield start, rows
        start += len(rows[1]) - 1


def _prefixes(sets: shingles.Ragged, threshold: float) -> tuple[shingles.Hashes, NDArray[np.int64]]:
    """The shingles of which a near-duplicate must hold one, sorted, and the set that each is from."""
    sizes = np.diff(sets[1])
    wanted = np.where(sizes > 0, sizes - np.ceil(threshold * sizes - 1e-9).astype(np.int64) + 1, 0)
    flat, _ = shingles.take_sizes(sets[0], sets[1][:-1], wanted)
    owner = np.repeat(np.arange(len(sizes)), wanted)
    order = np.argsort(flat, kind="stable")
    return flat[order], owner[order]


def _near_the_sample(
    rows: shingles.Ragged,
    start: int,
    sets: shingles.Ragged,
    prefixes: tuple[shingles.Hashes, NDArray[np.int64]],
    rule: DuplicateRule,
) -> Pairs:
    """(text, sampled text) at the threshold or over it, among the texts of one batch."""
    pairs = meeting(rows, *prefixes)
    texts, row = np.unique(pairs[:, 0], return_inverse=True)
    both = shingles.join([sets, shingles.as_sets(shingles.take(rows, texts))])
    compared = np.column_stack([row + len(sets[1]) - 1, pairs[:, 1]])
    near = pairs[shingles.pair_jaccard(both, compared) >= rule.threshold]
    return near + np.array([start, 0])


def meeting(rows: shingles.Ragged, values: shingles.Hashes, owner: NDArray[np.int64]) -> Pairs:
    """(text of ``rows``, owner), each pair once, where the text holds one of the sorted ``values`` that the owner has."""
    known = np.zeros(_TABLE, bool)
    known[values & np.uint64(_TABLE - 1)] = True
    at = np.flatnonzero(known[rows[0] & np.uint64(_TABLE - 1)])
    low = np.searchsorted(values, rows[0][at], "left")
    count = np.searchsorted(values, rows[0][at], "right") - low
    text = np.searchsorted(rows[1], at, "right") - 1
    codes, width = np.empty(0, np.int64), int(owner.max(initial=0)) + 1
    for some in np.split(np.arange(len(at)), np.flatnonzero(np.diff(np.cumsum(count) // _STEP)) + 1):
        many, first = count[some], low[some]
        place = np.arange(many.sum()) - np.repeat(np.cumsum(many) - many, many) + np.repeat(first, many)
        codes = np.union1d(codes, np.repeat(text[some], many) * width + owner[place])
    return np.column_stack(np.divmod(codes, width))
