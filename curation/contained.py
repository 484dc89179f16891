"""Texts of which a good part lies in another text, however long that one is: a mail quoted in a thread, a page that two
manuals share.

Two such texts are no near-duplicates: the Jaccard index of a short text and a long one is small even where the long one
holds all of it (Broder 1997, section 1: resemblance is not containment). So nothing here joins a cluster or drops a
row; whoever curates sees the pairs.

A text is looked for in windows of :data:`WINDOW` shingles, every second one beginning in the middle of another; a
shorter text is one window. Where a window lies in another text to a share ``t``, that text holds one of its
``size - ceil(t * size) + 1`` rarest shingles (prefix filtering: Bayardo, Ma, Srikant 2007), so only texts that do are
compared, exactly. Nothing is missed for chance; what is missed for cost is counted.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from curation import shingles
from curation.grouping import Corpus, Pairs
from curation.recall import meeting, placed

SHARE = 0.8  # of a window's shingles
WINDOW = 200  # shingles: about as many words
USUAL = 255  # texts that hold a shingle from which it proposes no pair; also where counting stops

Counts = NDArray[np.uint8]


@dataclass(frozen=True)
class Contained:
    """``pairs`` (text, another one with no fewer shingles), and the ``share`` of the first's shingles that the other
    holds. In ``partial`` texts a window's rarest shingles are usual ones, and pairs may be missing."""

    pairs: Pairs
    share: NDArray[np.float64]
    partial: int

    def of(self, first: int) -> Contained:
        """The pairs that hold a text of number ``first`` or more."""
        some = (self.pairs >= first).any(axis=1)
        return Contained(self.pairs[some], self.share[some], self.partial)


def find_contained(corpus: Corpus, stays: NDArray[np.bool_]) -> Contained:
    """The pairs of texts that ``stay`` of which one holds a window's worth of the other: as many of its shingles as are
    :data:`SHARE` of a window, or of all where it is shorter. No texts give no pairs.

    Found is every pair in which some window lies in the other text. Memory holds two to four bytes per shingle for
    counting, and the rare shingles that at least two texts hold.
    """
    counts = _counts(corpus)
    values, owner, partial = _index(corpus, stays, counts)
    found = [np.empty((0, 2), np.int64)]
    for start, rows in placed(corpus.batches()):
        pairs = meeting(rows, values, owner) + np.array([start, 0])
        found.append(pairs[stays[pairs[:, 0]] & (pairs[:, 0] != pairs[:, 1])])
    return Contained(*_verified(corpus, np.concatenate(found)), partial)


def _counts(corpus: Corpus) -> Counts:
    """How many texts hold the shingles of each cell, up to :data:`USUAL`. A cell may count several shingles, so
    that a count is never too small for one."""
    total = sum(len(rows[0]) for rows in corpus.batches())
    counts = np.zeros(1 << max(2 * total, 1).bit_length(), np.uint8)
    for rows in corpus.batches():
        cells, more = np.unique(_cells(shingles.as_sets(rows)[0], counts), return_counts=True)
        counts[cells] = np.minimum(counts[cells] + more, USUAL)
    return counts


def _cells(flat: shingles.Hashes, counts: Counts) -> Pairs:
    return (flat & np.uint64(len(counts) - 1)).astype(np.int64)


def _index(
    corpus: Corpus, stays: NDArray[np.bool_], counts: Counts
) -> tuple[shingles.Hashes, NDArray[np.int64], int]:
    """Of each window the shingles of which another text must hold one, sorted, and the text that each is from; and of how
    many texts some are left out because they are usual. Those that one text alone holds need no place."""
    parts: list[tuple[shingles.Hashes, NDArray[np.int64]]] = [(np.empty(0, np.uint64), np.empty(0, np.int64))]
    left_out: set[int] = set()
    for start, rows in placed(corpus.batches()):
        values, owner = _rarest(*_windows(rows), counts)
        owner += start
        held = counts[_cells(values, counts)]
        left_out.update(owner[(held == USUAL) & stays[owner]].tolist())
        wanted = (held > 1) & (held < USUAL) & stays[owner]
        parts.append((values[wanted], owner[wanted]))
    values, owner = (np.concatenate([part[i] for part in parts]) for i in range(2))
    order = np.argsort(values, kind="stable")
    return values[order], owner[order], len(left_out)


def _windows(rows: shingles.Ragged) -> tuple[shingles.Ragged, NDArray[np.int64]]:
    """The windows of each text as sets, and the text that each is from; the last one ends where its text does."""
    flat, offsets = rows
    sizes = np.diff(offsets)
    half = WINDOW // 2
    many = np.where(sizes > WINDOW, -(-(sizes - WINDOW) // half) + 1, (sizes > 0).astype(np.int64))
    text = np.repeat(np.arange(len(sizes)), many)
    number = np.arange(len(text)) - np.repeat(np.cumsum(many) - many, many)
    size = np.minimum(sizes[text], WINDOW)
    start = offsets[text] + np.minimum(number * half, sizes[text] - size)
    return shingles.as_sets(shingles.take_sizes(flat, start, size)), text


def _rarest(
    windows: shingles.Ragged, text: NDArray[np.int64], counts: Counts
) -> tuple[shingles.Hashes, NDArray[np.int64]]:
    """Of each window the shingles that the fewest texts hold, as many as prefix filtering asks for; and their texts."""
    flat, offsets = windows
    sizes = np.diff(offsets)
    window = np.repeat(np.arange(len(sizes)), sizes)
    order = np.lexsort((flat, counts[_cells(flat, counts)], window))
    wanted = sizes - np.ceil(SHARE * sizes - 1e-9).astype(np.int64) + 1
    first = order[np.arange(len(flat)) - offsets[window] < wanted[window]]
    return flat[first], text[window[first]]


def _verified(corpus: Corpus, proposed: Pairs) -> tuple[Pairs, NDArray[np.float64]]:
    """The pairs, each once and the smaller text first, that share a window's worth; and the share of the first."""
    rows, places = np.unique(proposed, return_inverse=True)
    sets = corpus.sets(rows)
    sizes = np.diff(sets[1])
    pairs = places.reshape(-1, 2)
    swapped = sizes[pairs[:, 0]] > sizes[pairs[:, 1]]
    swapped |= (sizes[pairs[:, 0]] == sizes[pairs[:, 1]]) & (
        pairs[:, 0] < pairs[:, 1]
    )  # of equals the later is within
    pairs = np.unique(np.where(swapped[:, None], pairs[:, ::-1], pairs), axis=0)
    shared = shingles.pair_shared(sets, pairs)
    size = sizes[pairs[:, 0]]
    found = shared >= np.ceil(SHARE * np.minimum(size, WINDOW) - 1e-9)
    return rows[pairs[found]], shared[found] / size[found]
