"""Near-duplicates among many texts: sketches propose pairs, the exact Jaccard index decides, verified pairs connect.

Every proposed pair is verified, and only verified pairs join a cluster, so a corpus in another order gives the same
clusters.

Nothing here decides on an unverified pair, and nothing here knows a record: sketches go in, groups of texts come out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from curation import shingles
from curation.minhash import DuplicateRule, keys_of, names_of, shingle_hashes, sketch

Pairs = NDArray[np.int64]

WIDE = 64  # members of a bucket that are all compared with each other; a wider bucket is compared in part
LEADERS = 4  # in a wide bucket: members that all others are compared with
SAMPLE = 256  # in a wide bucket: members that show what most of it shares
RESIDUES = 16  # in a wide bucket: times that the others are sorted by what sets them apart

# --- Buckets and components -----------------------------------------------------------------------


def buckets(keys: shingles.Hashes) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """The texts that share their key with another, those of one key together and in order; where each run of them
    begins, and its size."""
    some = _maybe_shared(keys)
    order = some[np.argsort(keys[some], kind="stable")]
    _, size = _runs(keys[order])
    many = size > 1
    return order[np.repeat(many, size)], np.cumsum(size[many]) - size[many], size[many]


def _maybe_shared(keys: shingles.Hashes) -> NDArray[np.int64]:
    """The texts whose key stands twice, and a few more: sorting numbers alone is several times as fast as sorting
    places by them, so only these few are."""
    ordered = np.sort(keys)
    twice = ordered[1:][ordered[1:] == ordered[:-1]]
    low = np.uint64((1 << (16 * len(twice)).bit_length()) - 1)
    known = np.zeros(int(low) + 1, bool)
    known[twice & low] = True
    return np.flatnonzero(known[keys & low])


def verify(sets: shingles.Ragged, pairs: Pairs, threshold: float) -> tuple[Pairs, NDArray[np.float64]]:
    """The pairs whose exact Jaccard index reaches the threshold, and that index."""
    similarity = shingles.pair_jaccard(sets, pairs)
    passed = similarity >= threshold
    return pairs[passed], similarity[passed]


class Components:
    """Connected components that grow by pairs; ``labels[i]`` is the smallest member of ``i``'s component."""

    def __init__(self, size: int) -> None:
        self.labels = np.arange(size)

    def join(self, pairs: Pairs) -> None:
        """Unite the two sides of each pair, in any order of the pairs."""
        while len(pairs):
            ends = np.sort(self.labels[pairs], axis=1)
            pairs = pairs[ends[:, 0] != ends[:, 1]]
            np.minimum.at(self.labels, ends[:, 1], ends[:, 0])
            self._flatten()

    def _flatten(self) -> None:
        while True:
            shorter = self.labels[self.labels]
            if np.array_equal(shorter, self.labels):
                return
            self.labels[:] = shorter


def components(size: int, pairs: Pairs) -> NDArray[np.int64]:
    """For each of ``size`` items the smallest item that the pairs connect it with; itself where there is
    none."""
    forest = Components(size)
    forest.join(np.asarray(pairs, np.int64).reshape(-1, 2))
    return forest.labels


# --- Proposing pairs ------------------------------------------------------------------------------


@dataclass
class _Search:
    """One run over the buckets: what is compared, what has been joined, what could only be compared in
    part."""

    bands: Iterable[shingles.Hashes]  # of each band the keys of the texts
    names: shingles.Hashes  # a number per text that depends on its content alone: ties never follow the order
    sets: shingles.Ragged
    threshold: float
    forest: Components
    verified: list[tuple[Pairs, NDArray[np.float64]]]
    partial: int = 0
    compared: int = 0

    def run(self) -> None:
        for keys in self.bands:
            found = buckets(keys)
            for pairs in candidate_pairs(found, self.forest.labels, WIDE):
                self.check(pairs)
            for bucket in wide_buckets(found, self.forest.labels, WIDE):
                self.partial += 1
                self.search_wide(bucket)

    def check(self, pairs: Pairs) -> None:
        """Verify those pairs that are not connected yet, and join what passes."""
        labels = self.forest.labels
        pairs = pairs[labels[pairs[:, 0]] != labels[pairs[:, 1]]]
        if len(pairs):
            passed, similarity = verify(self.sets, pairs, self.threshold)
            self.compared += len(pairs)
            self.verified.append((passed, similarity))
            self.forest.join(passed)

    def search_wide(self, bucket: NDArray[np.int64]) -> None:
        """Compare a wide bucket in a number of pairs that is linear in its size.

        Its members share a lot, often a template. One member is compared with all others, which settles a
        bucket of near-equal texts. Then the members with the least of their own (the template itself, if it
        is there) are compared with all others. The rest may still agree in what is their own: sorted by
        MinHashes of just the shingles that few of the bucket share, neighbours are compared.
        """
        bucket = bucket[np.argsort(self.names[bucket])]
        self.compare_all(bucket, bucket[0])
        if np.ptp(self.forest.labels[bucket]) == 0:
            return
        residue = residues(self.sets, bucket)
        for place in np.argsort(np.diff(residue[1]), kind="stable")[:LEADERS]:
            self.compare_all(bucket, bucket[place])
        for salt in range(RESIDUES):
            self.check(bucket[residue_neighbours(residue, salt)])

    def compare_all(self, bucket: NDArray[np.int64], leader: np.int64) -> None:
        """Compare all members of a bucket with one of them."""
        others = bucket[self.forest.labels[bucket] != self.forest.labels[leader]]
        self.check(np.column_stack([np.full(len(others), leader), others]))


Buckets = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]


def candidate_pairs(found: Buckets, labels: NDArray[np.int64], wide: int | None = None) -> Iterator[Pairs]:
    """All pairs that share one of the :func:`buckets`, in blocks of at most one pair per text; none from buckets
    over ``wide``.

    ``labels`` are the components so far: a pair within one component tells nothing new and is left out. They
    are read again for each block, so what a caller joins in between saves the work of proposing it.
    """
    order, start, size = found
    open_ = (size <= (wide or len(labels))) & ~_settled(labels[order], start)
    order, run = order[np.repeat(open_, size)], np.repeat(np.arange(len(size))[open_], size[open_])
    for apart in range(1, int(size[open_].max(initial=1))):
        at = np.flatnonzero(run[apart:] == run[:-apart])
        pairs = np.column_stack([order[at], order[at + apart]])
        pairs = pairs[labels[pairs[:, 0]] != labels[pairs[:, 1]]]
        if len(pairs):
            yield pairs


def wide_buckets(found: Buckets, labels: NDArray[np.int64], wide: int) -> Iterator[NDArray[np.int64]]:
    """The members of each bucket of more than ``wide`` texts that are not all connected already."""
    order, start, size = found
    for i in np.flatnonzero((size > wide) & ~_settled(labels[order], start)):
        yield order[start[i] : start[i] + size[i]]


def _runs(ordered: shingles.Hashes) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Start and size of each run of equal numbers."""
    if not len(ordered):
        return np.empty(0, np.int64), np.empty(0, np.int64)
    start = np.concatenate([[0], np.flatnonzero(ordered[1:] != ordered[:-1]) + 1])
    return start, np.diff(start, append=len(ordered))


def _settled(labels: NDArray[np.int64], start: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Whether all members of each run are in one component."""
    if not len(start):
        return np.empty(0, bool)
    return np.minimum.reduceat(labels, start) == np.maximum.reduceat(labels, start)


def residues(sets: shingles.Ragged, bucket: NDArray[np.int64]) -> shingles.Ragged:
    """Of each member of a bucket the shingles that set it apart: those that at most half of its first members
    hold."""
    sample = shingles.take(sets, bucket[:SAMPLE])[0]
    values, counts = np.unique(sample, return_counts=True)
    common = values[2 * counts > min(SAMPLE, len(bucket))]
    flat, offsets = shingles.take(sets, bucket)
    rare = np.append(common, 0)[np.searchsorted(common, flat)] != flat
    return flat[rare], np.concatenate([[0], np.cumsum(rare)])[offsets]


def residue_neighbours(residue: shingles.Ragged, salt: int) -> Pairs:
    """Neighbours, at up to three places, among the rows that share the least shingle under a permutation."""
    flat, offsets = residue
    filled = np.flatnonzero(np.diff(offsets))
    if not len(filled):
        return np.empty((0, 2), np.int64)
    least = np.minimum.reduceat(shingles.mix(flat ^ np.uint64(salt + 1)), offsets[filled])
    order = np.argsort(least, kind="stable")
    return np.concatenate([_same(least, filled, order[:-apart], order[apart:]) for apart in (1, 2, 3)])


def _same(least: shingles.Hashes, rows: Pairs, one: Pairs, other: Pairs) -> Pairs:
    agree = least[one] == least[other]
    return np.column_stack([rows[one[agree]], rows[other[agree]]])


# --- Texts in, clusters out -----------------------------------------------------------------------


class Corpus(Protocol):
    """The sketches of many texts, wherever they are kept; :func:`cluster` reads them a column at a time."""

    names: shingles.Hashes  # (texts, 2)

    def band(self, number: int) -> shingles.Hashes:
        """The keys of one band, one per text."""

    def sets(self, rows: NDArray[np.int64]) -> shingles.Ragged:
        """The shingles of some texts, as :func:`curation.shingles.as_sets` gives them."""

    def batches(self) -> Iterator[shingles.Ragged]:
        """The shingles of all texts, in order, a part at a time."""


@dataclass
class InMemory:
    """A corpus of texts that are in memory anyway: their shingles are made again rather than kept."""

    texts: Sequence[str]
    rule: DuplicateRule

    def __post_init__(self) -> None:
        shingles.kernels(sum(map(len, self.texts)))
        made = [sketch(part, self.rule) for part in shingles.batches(self.texts)]
        empty = np.empty((0, 2), np.uint64), np.empty((0, self.rule.bands), np.uint64)
        self.names = np.concatenate([empty[0], *map(names_of, made)])
        self.keys = np.concatenate([empty[1], *map(keys_of, made)])

    def band(self, number: int) -> shingles.Hashes:
        return np.ascontiguousarray(self.keys[:, number])

    def sets(self, rows: NDArray[np.int64]) -> shingles.Ragged:
        return shingles.as_sets(shingle_hashes([self.texts[i] for i in rows.tolist()], self.rule))

    def batches(self) -> Iterator[shingles.Ragged]:
        for part in shingles.batches(self.texts):
            yield shingle_hashes(part, self.rule)


@dataclass(frozen=True)
class Groups:
    """Which of ``n`` texts belong together: ``labels[i]`` is the first text of ``i``'s cluster.

    ``similarity`` gives the exact Jaccard index of any two texts of clusters. ``partial`` counts buckets too
    wide for all their pairs to be compared: with 0 the clusters are all that the signatures can show. ``compared``
    pairs were verified, and ``verified`` holds those that passed (pairs, index).
    """

    labels: NDArray[np.int64]
    similarity: Callable[[Pairs], NDArray[np.float64]]
    partial: int
    compared: int
    verified: tuple[tuple[Pairs, NDArray[np.float64]], ...]

    def clusters(self) -> list[NDArray[np.int64]]:
        """The members of each cluster of two or more, in order; clusters in the order of their first
        members."""
        order = np.argsort(self.labels, kind="stable")
        start, size = _runs(self.labels[order].astype(np.uint64))
        many = np.flatnonzero(size > 1)
        return [order[s : s + n] for s, n in zip(start[many].tolist(), size[many].tolist(), strict=True)]

    @cached_property
    def links(self) -> dict[int, tuple[int, float]]:
        """For a text, the one it resembles most among the pairs that were verified, and how much."""
        links: dict[int, tuple[int, float]] = {}
        for pairs, similarity in self.verified:
            for (a, b), value in zip(pairs.tolist(), similarity.tolist(), strict=True):
                for one, other in ((a, b), (b, a)):
                    links[one] = max(links.get(one, (other, value)), (other, value), key=lambda link: link[1])
        return links


def group(texts: Sequence[str], rule: DuplicateRule) -> Groups:
    """Cluster texts: equal after normalising, or connected by verified near-duplicates.

    Beside the texts this holds 8 bytes per text and band, and the shingles of those texts that share a
    bucket.
    """
    return cluster(InMemory(texts, rule), rule)


Told = Callable[[int, int], None]


def cluster(corpus: Corpus, rule: DuplicateRule, told: Told = lambda done, total: None) -> Groups:
    """Cluster the texts of a corpus. ``told`` hears of how many texts, of all, the work is done.

    Holds about 60 bytes per text; sets and keys stay where the corpus keeps them.
    """
    size, steps = len(corpus.names), 2 * rule.bands
    first = first_of_name(corpus.names)
    kept = np.flatnonzero(first == np.arange(size))
    shared = np.zeros(len(kept), bool)
    for number in range(rule.bands):
        shared[buckets(corpus.band(number)[kept])[0]] = True
        told(size * (number + 1) // steps, size)
    busy = kept[shared]

    def bands() -> Iterator[shingles.Hashes]:
        for number in range(rule.bands):
            yield corpus.band(number)[busy]
            told(size * (rule.bands + number + 1) // steps, size)

    sets = corpus.sets(busy)
    search = _Search(bands(), corpus.names[busy, 0], sets, rule.threshold, Components(len(busy)), [])
    search.run()
    forest = Components(size)
    forest.join(np.column_stack([np.arange(size), first]))
    forest.join(np.column_stack([busy, busy[search.forest.labels]]))
    row = np.full(size, -1)
    row[busy] = np.arange(len(busy))
    return Groups(
        forest.labels,
        lambda pairs: _similarity(sets, row[first[pairs]], first[pairs]),
        search.partial,
        search.compared,
        tuple((busy[pairs], value) for pairs, value in search.verified),
    )


def first_of_name(names: shingles.Hashes) -> NDArray[np.int64]:
    """For each text, by their names (:func:`names_of`), the first one of the same name."""
    order = np.lexsort((names[:, 1], names[:, 0]))  # stable: within a name, texts stay in order
    fresh = np.ones(len(names), bool)
    fresh[1:] = (names[order][1:] != names[order][:-1]).any(axis=1)
    first = np.empty(len(names), np.int64)
    first[order] = order[np.maximum.accumulate(np.where(fresh, np.arange(len(names)), 0))]
    return first


def _similarity(sets: shingles.Ragged, rows: Pairs, first: Pairs) -> NDArray[np.float64]:
    """Jaccard of rows of ``sets``; 1.0 where both sides are the same text, which may have no row."""
    same = first[:, 0] == first[:, 1]
    result = np.ones(len(rows))
    result[~same] = shingles.pair_jaccard(sets, rows[~same])
    return result
