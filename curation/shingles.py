"""Sets of shingles as numbers: what :func:`curation.text.shingles` means, for a hundred thousand texts at a
time.

A shingle is a 64-bit number here. Two texts share a number exactly when they share a shingle, save for a
collision (2**-61 per pair of shingles), so Jaccard indices from these sets are the exact ones. The numbers
depend on the text alone: not on the machine, the Python version or a library, and they may be stored.

Nothing here decides what a duplicate is, and nothing here keeps texts: a batch of text goes in, arrays come
out.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import pairwise
from types import ModuleType

import numpy as np
from numpy.typing import NDArray

from curation import folding
from curation.errors import UsageError
from curation.folding import Bytes, Folded, Offsets

Hashes = NDArray[np.uint64]
Ragged = tuple[Hashes, Offsets]
"""Rows of unequal length: row ``i`` is ``flat[offsets[i]:offsets[i + 1]]``."""

BATCH_CHARACTERS = 1 << 22  # texts hashed at once: keeps the working arrays near 150 MB whatever the corpus
_STRETCH = 1 << 18  # bytes hashed at once by numpy: their arrays stay in the second-level cache
_PAIR = 512  # characters that numpy hashes and signs in the time in which it compares two sets
WORTH_COMPILING = 1 << 25  # characters from which loading the compiled loops (half a second) pays

_ODD = np.uint64(0x9E3779B97F4A7C15)  # 2**64 / golden ratio, odd
_SPREAD = np.uint64(33)
_PLACE = _ODD | np.uint64(3)
_MASKS = np.array([(1 << 8 * n) - 1 for n in range(9)], np.uint64)  # keep the first n bytes of eight


_loaded: list[ModuleType] = []


def kernels(characters: int = 0) -> ModuleType | None:
    """:mod:`curation.kernels`, where numba is installed and it is loaded or worth loading for so many characters.

    Which of the two does the work is a matter of speed alone: both give the same numbers.
    """
    if not _loaded and characters >= WORTH_COMPILING and _has_numba():
        from curation import kernels as module

        _loaded.append(module)
    return _loaded[0] if _loaded else None


@cache
def _has_numba() -> bool:
    return importlib.util.find_spec("numba") is not None


def mix(values: Hashes) -> Hashes:
    """The finaliser of MurmurHash3: a bijection on 64 bits that spreads every input bit over the whole
    word."""
    mixed = values >> _SPREAD
    mixed ^= values
    mixed *= np.uint64(0xFF51AFD7ED558CCD)
    mixed ^= mixed >> _SPREAD
    mixed *= np.uint64(0xC4CEB9FE1A85EC53)
    mixed ^= mixed >> _SPREAD
    return mixed


_SEEDS = mix(np.arange(1, 257, dtype=np.uint64) * _ODD)  # of words of up to 255 bytes


def shingle_hashes(texts: Sequence[str], n: int = 5) -> Ragged:
    """The ``n``-word shingles of each text as numbers, in order and with repeats: (flat ``uint64``, row
    offsets).

    Tokens are those of :func:`curation.text.tokens`: words of the normalised text, characters where the
    script has no spaces. A text of fewer than ``n`` tokens has one shingle, an empty text none. No texts give
    an empty array and the offsets ``[0]``. Raises :class:`UsageError` where ``n`` is not positive.
    """
    return _batched(texts, n, short=True)


def ngram_hashes(texts: Sequence[str], n: int) -> Ragged:
    """Like :func:`shingle_hashes`, but a text of fewer than ``n`` tokens has none
    (:func:`curation.text.ngrams`)."""
    return _batched(texts, n, short=False)


def _batched(texts: Sequence[str], n: int, *, short: bool) -> Ragged:
    if n < 1:
        raise UsageError(f"a shingle of {n} words has no meaning", next="Use 1 or more; 5 is usual")
    kernels(sum(map(len, texts)))
    return join([hash_folded(folding.fold(batch), n, short=short) for batch in batches(texts)])


def batches(texts: Sequence[str]) -> Iterator[Sequence[str]]:
    """Runs of texts of about :data:`BATCH_CHARACTERS` characters; a longer text stands alone."""
    start = size = 0
    for i, text in enumerate(texts):
        if size and size + len(text) > BATCH_CHARACTERS:
            yield texts[start:i]
            start, size = i, 0
        size += len(text)
    if start < len(texts):
        yield texts[start:]


def hash_folded(folded: Folded, n: int, *, short: bool = True) -> Ragged:
    """The ``n``-word shingles of folded texts; see :func:`shingle_hashes`."""
    data, ends = folded
    module = kernels()
    if module is None:
        return join([_numbers(data, ends[some], n, short) for some in _stretches(ends)])
    sizes = np.diff(ends)
    words = np.empty(max(int(sizes.max(initial=0)) // 2 + 1, n), np.uint64)
    flat = np.empty(int((sizes // 2 + 1).sum()), np.uint64)
    offsets = np.empty(len(ends), np.int64)
    module.shingles(data, _eights(data), ends, n, short, _ODD, _PLACE, _MASKS, words, flat, offsets)
    return flat[: offsets[-1]].copy(), offsets


def _eights(data: Bytes) -> Hashes:
    """The eight bytes from each place on, as a number."""
    return np.ndarray((len(data) - 7,), np.dtype("<u8"), buffer=data, strides=(1,))


def _stretches(ends: Offsets) -> Iterator[slice]:
    """Ranges of ``ends`` for runs of texts whose arrays stay in the cache."""
    cuts = np.flatnonzero(np.diff(ends[:-1] // _STRETCH)) + 1
    for first, last in pairwise([0, *cuts.tolist(), len(ends) - 1]):
        yield slice(first, last + 1)


def _numbers(data: Bytes, ends: Offsets, n: int, short: bool) -> Ragged:
    """The shingles of the texts between ``ends``."""
    if ends[0] == ends[-1]:
        return np.empty(0, np.uint64), np.zeros(len(ends), np.int64)
    filled = ends[:-1] < ends[1:]
    space = np.flatnonzero(data[ends[0] : ends[-1]] == folding.SPACE) + ends[0]
    starts = np.sort(np.concatenate([ends[:-1][filled], space + 1]), kind="stable")
    stops = np.sort(np.concatenate([ends[1:][filled], space]), kind="stable")
    words = _hash_words(_eights(data), starts, stops - starts)
    return _combine(words, np.diff(np.searchsorted(starts, ends)), n, short)


def _hash_words(eights: Hashes, starts: Offsets, lengths: Offsets) -> Hashes:
    """Eight bytes at a time, each step a bijection: words of up to eight bytes and equal length never
    collide."""
    hashes = mix(_seeds(lengths) ^ (eights[starts] & _MASKS[np.minimum(lengths, 8)]))
    rest = np.flatnonzero(lengths > 8)
    done = 8
    while len(rest):
        left = np.minimum(lengths[rest] - done, 8)
        hashes[rest] = mix(hashes[rest] ^ (eights[starts[rest] + done] & _MASKS[left]))
        done += 8
        rest = rest[lengths[rest] > done]
    return hashes


def _seeds(lengths: Offsets) -> Hashes:
    """What the number of a word of each length starts from."""
    if lengths.max(initial=0) < len(_SEEDS):
        return _SEEDS[lengths]
    return mix((lengths.astype(np.uint64) + np.uint64(1)) * _ODD)


def _combine(words: Hashes, counts: Offsets, n: int, short: bool) -> Ragged:
    """Numbers of runs of ``n`` words from the numbers of the words.

    A run is the sum of word times place, where the places are powers of an odd number that is 3 modulo 4: two
    runs that differ in one word never collide, and swapped words do not cancel.
    """
    ends = np.cumsum(counts)
    sizes = np.where(counts >= n, counts - n + 1, (counts > 0) & short)
    offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    begins = np.ones(len(words), bool)  # whether a run of n words of one text begins here
    for back in range(1, min(n, int(counts.max(initial=0)) + 1)):
        begins[(ends - back)[counts >= back]] = False
    runs: Hashes = words[: max(len(words) - n + 1, 0)]
    for j in range(1, n):
        runs = runs * _PLACE + words[j : j + len(runs)]
    flat = np.empty(offsets[-1], np.uint64)
    few = np.flatnonzero((counts > 0) & (counts < n)) if short else np.empty(0, np.int64)
    whole = np.ones(len(flat), bool)
    whole[offsets[few]] = False
    flat[whole] = runs[begins[: len(runs)]]
    flat[offsets[few]] = _padded(words, ends[few] - counts[few], counts[few], n)
    return mix(flat), offsets


def _padded(words: Hashes, starts: Offsets, counts: Offsets, n: int) -> Hashes:
    """Runs of ``n`` words that begin at ``starts``, of which only so many are there: zeros stand for the rest."""
    runs: Hashes = np.zeros(len(starts), np.uint64)
    for j in range(n):
        there = j < counts
        runs *= _PLACE
        runs[there] += words[starts[there] + j]
    return runs


def join(parts: Sequence[Ragged]) -> Ragged:
    """Ragged rows, one part after the other; no parts give no rows."""
    flat = np.concatenate([np.empty(0, np.uint64), *(part[0] for part in parts)])
    sizes = np.concatenate([np.zeros(1, np.int64), *(np.diff(part[1]) for part in parts)])
    return flat, np.cumsum(sizes)


def as_sets(rows: Ragged) -> Ragged:
    """Each row sorted and without repeats."""
    flat, offsets = rows[0].copy(), rows[1]
    for start, end in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True):
        flat[start:end].sort()
    fresh = np.ones(len(flat), bool)
    fresh[1:] = flat[1:] != flat[:-1]
    fresh[offsets[:-1][np.diff(offsets) > 0]] = True
    kept = np.concatenate([[0], np.cumsum(fresh)])
    return flat[fresh], kept[offsets]


def pair_jaccard(sets: Ragged, pairs: NDArray[np.int64]) -> NDArray[np.float64]:
    """``|a ∩ b| / |a ∪ b|`` of the sets (see :func:`as_sets`) of each pair; 1.0 where both are empty.

    ``pairs`` has shape (k, 2) and holds row numbers. Beside the result, memory does not grow with ``k``.
    """
    shared = pair_shared(sets, pairs)
    union = (sets[1][pairs + 1] - sets[1][pairs]).sum(axis=1) - shared
    return np.where(union > 0, shared / np.maximum(union, 1), 1.0)


def pair_shared(sets: Ragged, pairs: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many numbers the two sets of each pair share."""
    flat, offsets = sets
    if module := kernels(len(pairs) * _PAIR):
        shared = np.empty(len(pairs), np.int64)
        module.shared(flat, offsets[:-1], np.diff(offsets), pairs, shared)
        return shared
    bounds = np.column_stack([offsets[pairs], offsets[pairs + 1]]).tolist()
    counts = (_shared(flat[a:a_end], flat[b:b_end]) for a, b, a_end, b_end in bounds)
    return np.fromiter(counts, np.int64, len(pairs))


def _shared(a: Hashes, b: Hashes) -> int:
    """A number in both sets stands twice in a row once both are sorted together: two runs, which a stable sort merges."""
    both = np.concatenate((a, b))
    both.sort(kind="stable")
    return int(np.count_nonzero(both[1:] == both[:-1]))


def take(rows: Ragged, which: NDArray[np.int64]) -> Ragged:
    """The rows of the numbers ``which``, in that order; a row may be taken more than once."""
    return take_sizes(rows[0], rows[1][which], np.diff(rows[1])[which])


def take_sizes(flat: Hashes, starts: Offsets, sizes: Offsets) -> Ragged:
    """The rows that begin at ``starts`` and have so many members."""
    ends = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    at = np.arange(ends[-1]) + np.repeat(starts - ends[:-1], sizes)
    return flat[at], ends
