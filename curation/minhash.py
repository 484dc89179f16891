"""Near-duplicates among many texts: MinHash proposes pairs, the exact Jaccard index decides, verified pairs
connect.

Banding (Broder 1997; Leskovec, Rajaraman, Ullman, *Mining of Massive Datasets*, section 3.4) finds the texts
that are worth comparing. Every proposed pair is verified, and only verified pairs join a cluster, so a corpus
in another order gives the same clusters.

Nothing here decides on an unverified pair, and nothing here knows a record: texts go in, groups of them come
out.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from curation import folding, records, shingles
from curation.errors import UsageError
from curation.text import normalise

Pairs = NDArray[np.int64]

SCHEME = "affine32-1"  # 32-bit affine permutations of the upper half of a shingle's number; see signatures()
PERMUTATIONS = 256
RECALL = 0.997  # the probability of finding a pair that lies exactly on the threshold

WIDE = 64  # members of a bucket that are all compared with each other; a wider bucket is compared in part
LEADERS = 4  # in a wide bucket: members that all others are compared with
SAMPLE = 256  # in a wide bucket: members that show what most of it shares
RESIDUES = 16  # in a wide bucket: times that the others are sorted by what sets them apart
_BLOCK = 1 << 16  # shingles per permutation and step: 256 kB, which stays in the second-level cache


@dataclass(frozen=True)
class DuplicateRule:
    """What counts as a near-duplicate, and how hard to look.

    ``bands`` of ``rows`` signature values each: 0 chooses, out of 256 permutations, the most selective
    banding that still finds a pair on the threshold with probability 0.997 (32 bands of 8 rows for 0.8).
    Signatures of another ``scheme`` or ``seed`` cannot be compared. Raises :class:`UsageError` for values
    that make no sense.
    """

    threshold: float = 0.8
    shingle: int = 5
    fields: tuple[str, ...] = ("prompt", "completion")
    bands: int = 0
    rows: int = 0
    seed: int = 1
    scheme: str = SCHEME

    def __post_init__(self) -> None:
        _check_rule(self)
        if not self.bands:
            bands, rows = banding(self.threshold)
            object.__setattr__(self, "bands", bands)
            object.__setattr__(self, "rows", rows)

    def digest(self) -> str:
        """The name of this rule; every value is part of it."""
        return records.digest(records.canonical_json({"rule": "duplicates", **asdict(self)}))


def _check_rule(rule: DuplicateRule) -> None:
    if not 0 < rule.threshold <= 1:
        raise UsageError(f"a threshold of {rule.threshold} is not in (0, 1]", next="0.8 is usual")
    if rule.shingle < 1:
        raise UsageError(
            f"a shingle of {rule.shingle} words has no meaning", next="Use 1 or more; 5 is usual"
        )
    if not rule.fields or set(rule.fields) - {"prompt", "completion"}:
        raise UsageError(f"fields {list(rule.fields)} are not known", next="Use prompt, completion, or both")
    if (rule.bands > 0) != (rule.rows > 0) or min(rule.bands, rule.rows) < 0:
        raise UsageError("bands and rows go together", next="Give both, or neither")
    if rule.scheme != SCHEME:
        raise UsageError(
            f"signatures of scheme {rule.scheme!r} cannot be made or compared here",
            next=f"Use {SCHEME!r}, and make the signatures again",
        )


def found_probability(jaccard: float, bands: int, rows: int) -> float:
    """The probability that a pair is proposed: ``1 - (1 - j**rows)**bands``, the S-curve of banding.

    >>> round(found_probability(0.8, 32, 8), 3)
    0.997
    """
    return 1 - (1 - jaccard**rows) ** bands


def banding(threshold: float) -> tuple[int, int]:
    """(bands, rows) within 256 permutations: the most rows, so the fewest proposals, at the promised
    recall."""
    for rows in range(32, 1, -1):
        if found_probability(threshold, PERMUTATIONS // rows, rows) >= RECALL:
            return PERMUTATIONS // rows, rows
    return PERMUTATIONS, 1


# --- Arithmetic: arrays in, arrays out ------------------------------------------------------------


def exact_key(text: str) -> bytes:
    """The 16 bytes that texts share when they are equal after :func:`curation.text.normalise`."""
    return _key(normalise(text))


def _key(clean: str) -> bytes:
    return hashlib.blake2b(clean.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def shingle_hashes(texts: Sequence[str], rule: DuplicateRule) -> shingles.Ragged:
    """The shingles of each text as numbers: (flat ``uint64``, offsets); see :mod:`curation.shingles`."""
    return shingles.shingle_hashes(texts, rule.shingle)


def permutations(rule: DuplicateRule) -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
    """Factor (odd) and summand of each permutation, drawn from the seed by BLAKE2b: no library's generator,
    whose stream may change from version to version, takes part."""
    seeds = (f"{rule.scheme}/{rule.seed}/{i}".encode() for i in range(rule.bands * rule.rows))
    raw = b"".join(hashlib.blake2b(seed, digest_size=8).digest() for seed in seeds)
    drawn = np.frombuffer(raw, "<u4").astype(np.uint32).reshape(-1, 2)
    return drawn[:, 0] | np.uint32(1), drawn[:, 1]


def signatures(rows: shingles.Ragged, rule: DuplicateRule) -> NDArray[np.uint32]:
    """MinHash signatures, shape (texts, bands x rows): the least value of each permutation over a text's
    shingles.

    Two signatures agree in a place with the probability of the Jaccard index. A permutation is ``a * h + b``
    modulo 2**32 over the upper half of each shingle's number. A text without shingles has the largest value
    everywhere.
    """
    flat, offsets = rows
    factors, summands = permutations(rule)
    if module := shingles.kernels():
        made = np.empty((len(offsets) - 1, len(factors)), np.uint32)
        room = np.empty(int(np.diff(offsets).max(initial=0)), np.uint32)
        module.least(flat, offsets, factors, summands, room, made)
        return made
    upper = (flat >> np.uint64(32)).astype(np.uint32)
    result = np.full((len(factors), len(offsets) - 1), np.iinfo(np.uint32).max, np.uint32)
    filled = np.flatnonzero(np.diff(offsets))
    for block in _blocks(offsets, filled):
        low, high = offsets[block[0]], offsets[block[-1] + 1]
        result[:, block] = _least(upper[low:high], offsets[block] - low, factors, summands)
    return result.T


def _blocks(offsets: shingles.Offsets, filled: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    cuts = np.flatnonzero(np.diff(offsets[filled] // _BLOCK)) + 1
    return [block for block in np.split(filled, cuts) if len(block)]


def _least(
    values: NDArray[np.uint32],
    starts: NDArray[np.int64],
    factors: NDArray[np.uint32],
    summands: NDArray[np.uint32],
) -> NDArray[np.uint32]:
    least = np.empty((len(factors), len(starts)), np.uint32)
    image = np.empty_like(values)
    for place, (factor, summand) in enumerate(zip(factors, summands, strict=True)):
        np.multiply(values, factor, out=image)
        np.add(image, summand, out=image)
        np.minimum.reduceat(image, starts, out=least[place])
    return least


def band_keys(signature: NDArray[np.uint32], rule: DuplicateRule) -> shingles.Hashes:
    """One number per text and band, shape (texts, bands): equal where the band's signature values are."""
    keys: shingles.Hashes = np.zeros((len(signature), rule.bands), np.uint64)
    for row in range(rule.rows):
        keys = shingles.mix(keys ^ signature[:, row :: rule.rows].astype(np.uint64)) + np.uint64(row + 1)
    return keys


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


def sketch(texts: Sequence[str], rule: DuplicateRule) -> pa.RecordBatch:
    """What is compared of each text: its ``name`` (16 bytes that equal texts share), the ``keys`` of its bands, and
    its ``shingles`` as numbers, with repeats.

    A pure function of a batch, so it runs wherever an engine puts it. No texts give no rows.
    """
    folded = folding.fold(texts)
    rows = shingles.hash_folded(folded, rule.shingle)
    keys = band_keys(signatures(rows, rule), rule)
    columns = [
        pa.Array.from_buffers(pa.binary(16), len(texts), [None, pa.py_buffer(_names(folded))]),
        pa.FixedSizeListArray.from_arrays(_column(keys.ravel()), rule.bands),
        pa.LargeListArray.from_arrays(_column(rows[1]), _column(rows[0])),
    ]
    return pa.RecordBatch.from_arrays(columns, ["name", "keys", "shingles"])


def _column(values: NDArray[Any]) -> pa.Array:
    """An array as Arrow, without a copy; ``pa.array`` would load pandas to see whether it is one of its own."""
    kind = pa.int64() if values.dtype == np.int64 else pa.uint64()
    return pa.Array.from_buffers(kind, len(values), [None, pa.py_buffer(values)])


def _names(folded: folding.Folded) -> bytes:
    data, ends = folded[0].data, folded[1].tolist()
    return b"".join([hashlib.blake2b(data[a:b], digest_size=16).digest() for a, b in pairwise(ends)])


def names_of(made: pa.RecordBatch) -> shingles.Hashes:
    """The names of a sketch as numbers, shape (texts, 2)."""
    return _values(made.column("name"), "<u8", 2 * len(made)).reshape(-1, 2)


def keys_of(made: pa.RecordBatch) -> shingles.Hashes:
    """The band keys of a sketch, shape (texts, bands)."""
    column = made.column("keys")
    bands = column.type.list_size
    return _values(column.values, "<u8", bands * len(made)).reshape(-1, bands)


def shingles_of(made: pa.RecordBatch) -> shingles.Ragged:
    """The shingles of a sketch."""
    column = made.column("shingles")
    flat = column.values
    return _values(flat, "<u8", len(flat)), _values(column.offsets, "<i8", len(made) + 1)


def _values(column: pa.Array, kind: str, count: int) -> NDArray[Any]:
    """What an array without nulls holds, not copied; ``to_numpy`` would load pandas, which takes a quarter of a second."""
    if not count:
        return np.empty(0, kind)
    return np.frombuffer(column.buffers()[-1], kind, count, column.offset * np.dtype(kind).itemsize)


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
