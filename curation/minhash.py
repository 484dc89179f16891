"""Sketches of texts by which near-duplicates are proposed: MinHash signatures, and one key for each band of them.

Banding (Broder 1997; Leskovec, Rajaraman, Ullman, *Mining of Massive Datasets*, section 3.4) finds the texts
that are worth comparing; :mod:`curation.grouping` compares them.

Nothing here compares two texts, and nothing here knows a record: a batch of texts goes in, columns come out.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from curation import folding, records, shingles
from curation.errors import UsageError
from curation.text import normalise

SCHEME = "affine32-1"  # 32-bit affine permutations of the upper half of a shingle's number; see signatures()
PERMUTATIONS = 256
RECALL = 0.997  # the probability of finding a pair that lies exactly on the threshold

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


# --- Texts in, sketches out -----------------------------------------------------------------------


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
