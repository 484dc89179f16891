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
import unicodedata
from collections.abc import Iterator, Sequence
from functools import cache
from types import ModuleType

import numpy as np
from numpy.typing import NDArray

from curation.errors import UsageError
from curation.text import is_unspaced, normalise

Hashes = NDArray[np.uint64]
Offsets = NDArray[np.int64]
Ragged = tuple[Hashes, Offsets]
"""Rows of unequal length: row ``i`` is ``flat[offsets[i]:offsets[i + 1]]``."""

BATCH_CHARACTERS = 1 << 22  # texts hashed at once: keeps the working arrays near 150 MB whatever the corpus
WORTH_COMPILING = 1 << 22  # characters from which loading the compiled loops (half a second) pays

_ODD = np.uint64(0x9E3779B97F4A7C15)  # 2**64 / golden ratio, odd
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
    values = (values ^ (values >> np.uint64(33))) * np.uint64(0xFF51AFD7ED558CCD)
    values = (values ^ (values >> np.uint64(33))) * np.uint64(0xC4CEB9FE1A85EC53)
    return values ^ (values >> np.uint64(33))


def shingle_hashes(texts: Sequence[str], n: int = 5, *, normalised: bool = False) -> Ragged:
    """The ``n``-word shingles of each text as numbers, in order and with repeats: (flat ``uint64``, row
    offsets).

    Tokens are those of :func:`curation.text.tokens`: words of the normalised text, characters where the
    script has no spaces. A text of fewer than ``n`` tokens has one shingle, an empty text none. No texts give
    an empty array and the offsets ``[0]``. Raises :class:`UsageError` where ``n`` is not positive. Texts that
    are the output of :func:`curation.text.normalise` already may say so with ``normalised``, and are not
    normalised a second time.
    """
    return _batched(texts, n, short=True, normalised=normalised)


def ngram_hashes(texts: Sequence[str], n: int, *, normalised: bool = False) -> Ragged:
    """Like :func:`shingle_hashes`, but a text of fewer than ``n`` tokens has none
    (:func:`curation.text.ngrams`)."""
    return _batched(texts, n, short=False, normalised=normalised)


def _batched(texts: Sequence[str], n: int, *, short: bool, normalised: bool) -> Ragged:
    if n < 1:
        raise UsageError(f"a shingle of {n} words has no meaning", next="Use 1 or more; 5 is usual")
    kernels(sum(map(len, texts)))
    return join([_hash_batch(batch, n, short, normalised) for batch in batches(texts)])


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


def _hash_batch(texts: Sequence[str], n: int, short: bool, normalised: bool) -> Ragged:
    if kernels():
        return hash_folded(fold(texts), n, short=short)
    clean = texts if normalised else [normalise(text) for text in texts]
    words, counts = _word_hashes([_spaced(text) for text in clean])
    return _combine(words, counts, n, short)


Folded = tuple[NDArray[np.uint8], Offsets]
"""Normalised texts as UTF-8, their tokens parted by single spaces: text ``i`` is ``data[offsets[i]:offsets[i + 1]]``.
Eight bytes more than the last offset can be read."""

_FOLDING = np.arange(256, dtype=np.uint8)
_FOLDING[65:91] += 32
_FOLDING[[9, 10, 11, 12, 13, 28, 29, 30, 31]] = 32  # what str.split takes for white space in ASCII


def fold(texts: Sequence[str]) -> Folded:
    """Texts as :func:`curation.text.normalise` and :func:`curation.text.tokens` read them.

    Text that is ASCII, which most is, is folded as bytes; only the rest costs Python's Unicode tables.
    """
    module = kernels()
    if module is None:
        return _joined([_encoded(_spaced(normalise(text))) for text in texts])
    data, offsets = _joined([_folded(text) for text in texts])
    out, ends = np.zeros(len(data) + 1, np.uint8), np.empty_like(offsets)
    module.fold(data, offsets, _FOLDING, out, ends)
    return out, ends


_RARE_SPACES = "\u0085\u1680\u2028\u2029"  # white space that NFKC does not turn into a space
# The first bytes of scripts that are written without spaces, and of others; without them there is none.
_COMMON_BYTES = bytes(set(range(256)) - {0xE0, 0xE1, *range(0xE3, 0xEA), 0xEF, 0xF0})


def _folded(text: str) -> bytes:
    """A text whose letters are folded but for ASCII, and whose white space is ASCII: the compiled loop does the rest."""
    if text.isascii():
        return text.encode()
    if not unicodedata.is_normalized("NFKC", text):
        text = unicodedata.normalize("NFKC", text)
    for space in _RARE_SPACES:
        if space in text:
            text = text.replace(space, " ")
    raw = text.casefold().encode("utf-8", "surrogatepass")
    return _encoded(_spaced(normalise(text))) if raw.translate(None, _COMMON_BYTES) else raw


def _encoded(text: str) -> bytes:
    # Lone surrogates, which a text may hold that did not come from a file, are hashed as they are.
    return text.encode("utf-8", "surrogatepass")


def _joined(parts: list[bytes]) -> Folded:
    offsets = np.zeros(len(parts) + 1, np.int64)
    np.cumsum([len(part) for part in parts], dtype=np.int64, out=offsets[1:])
    return np.frombuffer(b"".join(parts) + bytes(8), np.uint8), offsets


def hash_folded(folded: Folded, n: int, *, short: bool = True) -> Ragged:
    """The ``n``-word shingles of folded texts; see :func:`shingle_hashes`."""
    data, ends = folded
    module = kernels()
    if module is None:
        raw = data.tobytes()
        bounds = zip(ends[:-1].tolist(), ends[1:].tolist(), strict=True)
        texts = [raw[a:b].decode("utf-8", "surrogatepass") for a, b in bounds]
        return _combine(*_word_hashes(texts), n, short)
    eight: Hashes = np.ndarray((len(data) - 7,), np.dtype("<u8"), buffer=data, strides=(1,))
    sizes = np.diff(ends)
    words = np.empty(max(int(sizes.max(initial=0)) // 2 + 1, n), np.uint64)
    flat = np.empty(int((sizes // 2 + 1).sum()), np.uint64)
    offsets = np.empty(len(ends), np.int64)
    module.shingles(data, eight, ends, n, short, _ODD, _ODD | np.uint64(3), _MASKS, words, flat, offsets)
    return flat[: offsets[-1]].copy(), offsets


def _spaced(clean: str) -> str:
    """The tokens of a normalised text with single spaces between them."""
    return " ".join(clean.replace(" ", "")) if is_unspaced(clean) else clean


def _word_hashes(spaced: list[str]) -> tuple[Hashes, Offsets]:
    """One number per word of all texts, and the number of words of each text."""
    counts = np.array([text.count(" ") + 1 if text else 0 for text in spaced], np.int64)
    # Lone surrogates, which JSON can smuggle in, are hashed as they are.
    data = " ".join(text for text in spaced if text).encode("utf-8", "surrogatepass")
    if not data:
        return np.empty(0, np.uint64), counts
    raw = np.frombuffer(data + b" " + bytes(8), np.uint8)
    ends = np.flatnonzero(raw[: len(data) + 1] == 32)
    starts = np.concatenate([[0], ends[:-1] + 1])
    return _hash_words(raw, starts, ends - starts), counts


def _hash_words(raw: NDArray[np.uint8], starts: Offsets, lengths: Offsets) -> Hashes:
    """Eight bytes at a time, each step a bijection: words of up to eight bytes and equal length never
    collide."""
    eight: Hashes = np.ndarray((len(raw) - 7,), np.dtype("<u8"), buffer=raw, strides=(1,))
    hashes = mix((lengths.astype(np.uint64) + np.uint64(1)) * _ODD)
    hashes = mix(hashes ^ (eight[starts] & _MASKS[np.minimum(lengths, 8)]))
    rest = np.flatnonzero(lengths > 8)
    done = 8
    while len(rest):
        left = np.minimum(lengths[rest] - done, 8)
        hashes[rest] = mix(hashes[rest] ^ (eight[starts[rest] + done] & _MASKS[left]))
        done += 8
        rest = rest[lengths[rest] > done]
    return hashes


def _combine(words: Hashes, counts: Offsets, n: int, short: bool) -> Ragged:
    """Numbers of runs of ``n`` words from the numbers of the words.

    A run is the sum of word times place, where the places are powers of an odd number that is 3 modulo 4: two
    runs that differ in one word never collide, and swapped words do not cancel.
    """
    starts = np.concatenate([[0], np.cumsum(counts)])[:-1]
    sizes = np.where(counts >= n, counts - n + 1, (counts > 0) & short)
    offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    at = np.arange(offsets[-1]) + np.repeat(starts - offsets[:-1], sizes)
    left = np.minimum(np.repeat(counts, sizes) - (at - np.repeat(starts, sizes)), n)
    flat = np.zeros(len(at), np.uint64)
    place = _ODD | np.uint64(3)
    scarce = np.flatnonzero(left < n)
    for j in range(n):
        inside = np.minimum(at + j, max(len(words) - 1, 0))
        term = words[inside] if len(words) else flat
        if len(scarce):
            term[scarce[left[scarce] <= j]] = 0
        flat = flat * place + term
    return mix(flat), offsets


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
    if module := kernels():
        shared = np.empty(len(pairs), np.int64)
        module.shared(flat, offsets[:-1], np.diff(offsets), pairs, shared)
        return shared
    bounds = np.column_stack([offsets[pairs], offsets[pairs + 1]]).tolist()
    counts = (_shared(flat[a:a_end], flat[b:b_end]) for a, b, a_end, b_end in bounds)
    return np.fromiter(counts, np.int64, len(pairs))


def _shared(a: Hashes, b: Hashes) -> int:
    """A number in both sets stands twice in a row once both are sorted together."""
    both = np.concatenate((a, b))
    both.sort()
    return int(np.count_nonzero(both[1:] == both[:-1]))


def take(rows: Ragged, which: NDArray[np.int64]) -> Ragged:
    """The rows of the numbers ``which``, in that order; a row may be taken more than once."""
    return take_sizes(rows[0], rows[1][which], np.diff(rows[1])[which])


def take_sizes(flat: Hashes, starts: Offsets, sizes: Offsets) -> Ragged:
    """The rows that begin at ``starts`` and have so many members."""
    ends = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    at = np.arange(ends[-1]) + np.repeat(starts - ends[:-1], sizes)
    return flat[at], ends
