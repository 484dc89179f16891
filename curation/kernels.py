"""The inner loops of de-duplication, compiled by numba when they are first called: the same numbers as the numpy
code in :mod:`curation.shingles` and :mod:`curation.minhash`, two to four times as fast.

Every function fills arrays that its caller made, allocates next to nothing, and holds no lock, so threads may share
the work. Nothing here is needed: without numba the numpy code runs. Importing this module imports numba, so
:func:`curation.shingles.kernels` does it, and only where there is enough to do.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
Hashes = NDArray[np.uint64]
Places = NDArray[np.int64]

_ONE = np.uint64(1)
_SPREAD = np.uint64(33)
_FIRST = np.uint64(0xFF51AFD7ED558CCD)
_SECOND = np.uint64(0xC4CEB9FE1A85EC53)
_SPACE = np.uint8(32)
_TOP = np.uint32(0xFFFFFFFF)
_HALF = np.uint64(32)


@njit(cache=True, nogil=True, inline="always")
def _mix(value):  # type: ignore[no-untyped-def]  # as shingles.mix, for one number
    value = (value ^ (value >> _SPREAD)) * _FIRST
    value = (value ^ (value >> _SPREAD)) * _SECOND
    return value ^ (value >> _SPREAD)


@njit(cache=True, nogil=True)
def shingles(  # type: ignore[no-untyped-def]
    data: Bytes,
    eight: Hashes,
    ends: Places,
    n: int,
    short: bool,
    odd,
    place,
    masks: Hashes,
    words: Hashes,
    flat: Hashes,
    offsets: Places,
) -> None:
    """The shingles of folded texts, as ``shingles._numbers`` makes them.

    ``eight[i]`` is the eight bytes from ``i`` on; ``words`` has room for the words of any one text, ``flat`` for all
    shingles. ``short``: a text of fewer than ``n`` words has one shingle.
    """
    at = 0
    offsets[0] = 0
    for i in range(len(ends) - 1):
        j = ends[i]
        end = ends[i + 1]
        count = 0
        while j < end:
            stop = j
            while stop < end and data[stop] != _SPACE:
                stop += 1
            value = _mix((np.uint64(stop - j) + _ONE) * odd)
            value = _mix(value ^ (eight[j] & masks[min(stop - j, 8)]))
            j += 8
            while j < stop:
                value = _mix(value ^ (eight[j] & masks[min(stop - j, 8)]))
                j += 8
            words[count] = value
            count += 1
            j = stop + 1
        if 0 < count < n and short:
            for k in range(count, n):
                words[k] = np.uint64(0)
            count = n
        for k in range(count - n + 1):
            value = words[k]
            for step in range(1, n):
                value = value * place + words[k + step]
            flat[at] = _mix(value)
            at += 1
        offsets[i + 1] = at


@njit(cache=True, nogil=True)
def least(
    flat: Hashes,
    offsets: Places,
    factors: NDArray[np.uint32],
    summands: NDArray[np.uint32],
    upper: NDArray[np.uint32],
    out: NDArray[np.uint32],
) -> None:
    """MinHash signatures: ``out[i, p]`` is the least ``factors[p] * h + summands[p]`` modulo 2**32 over row ``i``.

    ``upper`` has room for the longest row. The number of permutations is a multiple of four, or the rest is done one
    by one: four at a time read each shingle once, and the inner loop becomes vector instructions.
    """
    permutations = factors.shape[0]
    fours = permutations - permutations % 4
    for i in range(len(offsets) - 1):
        size = offsets[i + 1] - offsets[i]
        for j in range(size):
            upper[j] = np.uint32(flat[offsets[i] + j] >> _HALF)
        for p in range(0, fours, 4):
            a, b, c, d = factors[p], factors[p + 1], factors[p + 2], factors[p + 3]
            e, f, g, h = summands[p], summands[p + 1], summands[p + 2], summands[p + 3]
            s, t, u, v = _TOP, _TOP, _TOP, _TOP
            for j in range(size):
                x = upper[j]
                s = min(s, np.uint32(np.uint32(a * x) + e))
                t = min(t, np.uint32(np.uint32(b * x) + f))
                u = min(u, np.uint32(np.uint32(c * x) + g))
                v = min(v, np.uint32(np.uint32(d * x) + h))
            out[i, p], out[i, p + 1], out[i, p + 2], out[i, p + 3] = s, t, u, v
        for p in range(fours, permutations):
            s = _TOP
            for j in range(size):
                s = min(s, np.uint32(np.uint32(factors[p] * upper[j]) + summands[p]))
            out[i, p] = s


@njit(cache=True, nogil=True)
def shared(flat: Hashes, starts: Places, sizes: Places, pairs: NDArray[np.int64], out: Places) -> None:
    """How many members the two sorted rows of each pair share; a merge without branches to mispredict."""
    for k in range(len(pairs)):
        i, j = starts[pairs[k, 0]], starts[pairs[k, 1]]
        i_end, j_end = i + sizes[pairs[k, 0]], j + sizes[pairs[k, 1]]
        count = 0
        while i < i_end and j < j_end:
            a, b = flat[i], flat[j]
            i += a <= b
            j += b <= a
            count += a == b
        out[k] = count
