"""Decontamination: records of the pool that a model would recognise an evaluation set by.

A record leaks when its prompt equals a reserved one, is a near-duplicate of it, shares a run of 13 words with
it (Brown et al. 2020, appendix C), or holds 70% of its runs of 8 words (Chowdhery et al. 2022, section 8). What
many records share, a signature, a greeting, a template, says nothing about a leak, so a run or shingle counts
only while few records hold it; Brown et al. leave out runs found in more than ten documents.

Nothing here can see a paraphrase (Yang et al. 2023, arXiv 2311.04850); a clean report is not a proof. And
evidence never quotes the evaluation text: those who read decisions may be the ones who answer it later.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from curation import records, shingles
from curation.errors import UsageError
from curation.text import normalise

Pairs = NDArray[np.int64]


@dataclass(frozen=True)
class LeakageRule:
    """When a text of the pool is too close to a reserved one.

    ``ngram``: words in a run that must not be shared. ``threshold``: Jaccard index of the sets of
    ``shingle``-word shingles from which two texts are near-duplicates. ``common``: what more records than
    this hold is nobody's own; in a small corpus fewer are enough (:meth:`most`). ``own``: the share of what
    is a reserved text's own that a near-duplicate of it must hold. ``share``: the share of a reserved text's runs of
    ``ngram`` words that must be held. ``most_runs``: the share of its runs of ``run`` words from which a text is a
    leak whatever else it says (Chowdhery et al. 2022, section 8: 70% of 8-grams). ``completions``: compare completions of
    ``ngram`` words or more as well. Raises :class:`UsageError` for values that make no sense.
    """

    ngram: int = 13
    threshold: float = 0.8
    shingle: int = 5
    common: int = 10
    own: float = 0.5
    share: float = 0.0
    completions: bool = True
    run: int = 8
    most_runs: float = 0.7

    def __post_init__(self) -> None:
        if not (0 < self.threshold <= 1 and 0 <= self.own <= 1 and 0 < self.most_runs <= 1):
            raise UsageError("threshold, own and most_runs are shares", next="0.8, 0.5 and 0.7 are usual")
        if min(self.ngram, self.shingle, self.common, self.run) < 1:
            raise UsageError("ngram, shingle, common and run are 1 or more", next="13, 5, 10 and 8 are usual")

    def digest(self) -> str:
        """The name of this rule; every value is part of it."""
        return records.digest(records.canonical_json({"rule": "leakage", **asdict(self)}))

    def most(self, texts: int) -> int:
        """The most different records out of ``texts`` that may share what still counts as somebody's own.

        A habit (a signature, a template) is what more than one record in fifty says. A run of words counts as one
        when so many hold it that at one in fifty the chance of it were under one in a thousand: 4 of 20, 6 of 50,
        8 of 100; and from 3 to ``common`` whatever the corpus. Under a fixed share, 4 copies of one leak would pass
        for a habit of 150 records.
        """
        chance, below = (1 - _HABIT) ** texts, 0.0
        for count in range(self.common):
            below += chance
            if 1 - below <= _CHANCE:
                return min(max(count, 3), self.common)
            chance *= (texts - count) / (count + 1) * _HABIT / (1 - _HABIT)
        return self.common


_HABIT = 0.02  # the share of records from which a wording is a habit
_CHANCE = 0.001


@dataclass(frozen=True)
class Leak:
    """Row ``row`` of the pool is too close to row ``matched`` of the reserved texts.

    ``method``: ``exact`` (score 1), ``near`` (score: Jaccard index), ``ngram`` (score: the share of the
    reserved text's runs of words that the row holds) or ``ngram8`` (the same of its short runs).
    """

    row: int
    matched: int
    method: str
    score: float


# Punctuation at the edge of a word. Signs that carry meaning in sums and prices are left alone.
_EDGES = re.compile(r"(?:(?<=\s)|^)[.,;:!?\"'“”‘’„«»()\[\]{}…*_`]+|[.,;:!?\"'“”‘’„«»()\[\]{}…*_`]+(?=\s|$)")


def plain(text: str) -> str:
    """The normalised text without punctuation around its words: what a careless copy still shares.

    >>> plain('"Where is it?", she asked.')
    'where is it she asked'
    """
    return " ".join(_EDGES.sub("", normalise(text)).split())


# --- Reserved texts against a pool that is read in parts --------------------------------------------


@dataclass(frozen=True)
class _Level:
    """One way to compare: runs of ``width`` words. ``short``: a text of fewer words is one run."""

    width: int
    short: bool

    def runs(self, clean: Sequence[str]) -> shingles.Ragged:
        make = shingles.shingle_hashes if self.short else shingles.ngram_hashes
        return make(clean, self.width)


@dataclass(frozen=True)
class Reserved:
    """What texts are compared with: the reserved texts in plain words, and per level the runs that they hold."""

    exact: dict[str, int]  # a plain text, and the first reserved one that is it
    size: int
    levels: tuple[_Level, ...]
    runs: tuple[shingles.Ragged, ...]
    values: tuple[shingles.Hashes, ...]  # sorted, without repeats


def reserve(texts: Sequence[str], rule: LeakageRule) -> Reserved:
    """Reserved texts, ready to be compared with; they are held in memory, the pool never is."""
    plain_texts = [plain(text) for text in texts]
    exact: dict[str, int] = {}
    for place, text in enumerate(plain_texts):
        if text:
            exact.setdefault(text, place)
    levels = (_Level(rule.shingle, True), _Level(rule.ngram, False), _Level(rule.run, False))
    runs = tuple(level.runs(plain_texts) for level in levels)
    return Reserved(exact, len(texts), levels, runs, tuple(np.unique(flat) for flat, _ in runs))


@dataclass(frozen=True)
class Hits:
    """What a part of the pool has in common with the reserved texts, and nothing else of it.

    ``equal``: pairs of a row and the reserved text it equals. ``names``: of each row that shares a run the digest of
    its text, 0 for the others. Per level: the number of different runs of each row that shares one (0 for the
    others), and the places of the shared ones among the reserved values.
    """

    rows: int
    equal: Pairs
    names: shingles.Hashes
    sizes: tuple[Pairs, ...]
    shared: tuple[shingles.Ragged, ...]


def find_hits(texts: Sequence[str], reserved: Reserved) -> Hits:
    """Compare a part of the pool with the reserved texts; a pure function, so an engine may run it anywhere."""
    clean = [plain(text) for text in texts]
    equal = [(row, reserved.exact[text]) for row, text in enumerate(clean) if text in reserved.exact]
    found = [
        _hits(level.runs(clean), values)
        for level, values in zip(reserved.levels, reserved.values, strict=True)
    ]
    sizes, shared = tuple(size for size, _ in found), tuple(places for _, places in found)
    names = np.zeros(len(texts), np.uint64)
    for row in np.flatnonzero(np.sum(sizes, axis=0)).tolist():
        names[row] = _name(clean[row])
    return Hits(len(texts), np.array(equal, np.int64).reshape(-1, 2), names, sizes, shared)


def _name(clean: str) -> int:
    """A number that equal texts share; never 0."""
    raw = hashlib.blake2b(clean.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(raw, "little") | 1


_TABLE = 1 << 20


def _hits(rows: shingles.Ragged, values: shingles.Hashes) -> tuple[Pairs, shingles.Ragged]:
    """The number of different runs in each row that holds a known one, and those as their places in ``values``."""
    table = np.zeros(_TABLE, bool)
    table[values & np.uint64(_TABLE - 1)] = True
    likely = np.flatnonzero(table[rows[0] & np.uint64(_TABLE - 1)])
    known = likely[_among(rows[0][likely], values)[1]]
    some = np.unique(np.searchsorted(rows[1], known, "right") - 1)
    flat, offsets = shingles.as_sets(shingles.take(rows, some))
    place, is_known = _among(flat, values)
    sizes = np.zeros(len(rows[1]) - 1, np.int64)
    counts = np.zeros(len(rows[1]) - 1, np.int64)
    sizes[some] = np.diff(offsets)
    counts[some] = np.diff(np.concatenate([[0], np.cumsum(is_known)])[offsets])
    return sizes, (place[is_known].astype(np.uint64), np.concatenate([[0], np.cumsum(counts)]))


def _among(flat: shingles.Hashes, values: shingles.Hashes) -> tuple[Pairs, NDArray[np.bool_]]:
    """The place of each number in ``values``, and whether it is there."""
    place = np.searchsorted(values, flat)
    return place, (place < len(values)) & (np.append(values, np.uint64(0))[place] == flat)


def find_overlaps(texts: Sequence[str], reserved: Sequence[str], rule: LeakageRule) -> list[Leak]:
    """The texts that leak, at most one :class:`Leak` each, in order: equal, else nearest, else most runs
    shared.

    Nothing reserved, or no texts, give none.
    """
    return _find(texts, reserved, rule, whole=True)


def _find(texts: Sequence[str], reserved: Sequence[str], rule: LeakageRule, *, whole: bool) -> list[Leak]:
    shingles.kernels(sum(map(len, texts)))
    held = reserve(reserved, rule)
    return decide(held, [find_hits(part, held) for part in shingles.batches(texts)], rule, whole=whole)


def decide(reserved: Reserved, parts: Sequence[Hits], rule: LeakageRule, *, whole: bool = True) -> list[Leak]:
    """The leaks among the rows of all parts, at most one each, in order.

    ``whole``: a reserved text that is nothing but common is still compared, as a whole; without it, it is not.
    """
    rows = sum(part.rows for part in parts)
    starts = np.cumsum([0, *(part.rows for part in parts)])
    equal = [part.equal + np.array([start, 0]) for part, start in zip(parts, starts, strict=False)]
    near, runs, shares = (
        _shared(reserved, parts, level, rows, rule, whole) for level in range(len(reserved.levels))
    )
    best: dict[int, Leak] = {}
    for leaks in (
        _exact(np.concatenate([np.empty((0, 2), np.int64), *equal]), reserved, rows, rule, whole),
        _near(near, rule, whole),
        _ngrams(runs, rule, whole),
        _share(shares, rule),
    ):
        found: dict[int, Leak] = {}
        for leak in leaks:
            known = found.get(leak.row)
            if known is None or (leak.score, -leak.matched) > (known.score, -known.matched):
                found[leak.row] = leak
        best = {**found, **best}
    return [best[row] for row in sorted(best)]


def _exact(equal: Pairs, reserved: Reserved, rows: int, rule: LeakageRule, whole: bool) -> Iterator[Leak]:
    counts = np.bincount(equal[:, 1], minlength=reserved.size)
    most = rule.most(rows + reserved.size)
    pairs = equal.tolist()
    return (Leak(row, matched, "exact", 1.0) for row, matched in pairs if whole or counts[matched] <= most)


def _near(shared: _Shared, rule: LeakageRule, whole: bool) -> Iterator[Leak]:
    score = _ratio(shared.both, shared.pool_size + shared.held_size - shared.both, 0.0)
    own = _ratio(shared.own, shared.held_own, float(whole))
    return shared.leaks((score >= rule.threshold) & (own >= rule.own), "near", score)


def _ratio(part: Pairs, of: Pairs, empty: float) -> NDArray[np.float64]:
    return np.where(of > 0, part / np.maximum(of, 1), empty)


def _ngrams(shared: _Shared, rule: LeakageRule, whole: bool) -> Iterator[Leak]:
    score = _ratio(shared.both, shared.held_size, 0.0)
    alike = whole & (shared.held_own == 0) & (score >= rule.threshold)
    return shared.leaks(((shared.own > 0) & (score >= rule.share)) | alike, "ngram", score)


def _share(shared: _Shared, rule: LeakageRule) -> Iterator[Leak]:
    """Most of a reserved text in short runs, at least half of it its own: an answer with a word changed here and
    there."""
    score = _ratio(shared.both, shared.held_size, 0.0)
    own = _ratio(shared.own, shared.held_own, 0.0)
    return shared.leaks((score >= rule.most_runs) & (own >= rule.own), f"ngram{rule.run}", score)


@dataclass(frozen=True)
class _Shared:
    """Pairs (row of the pool, reserved row) and, for each, how many runs of words the sides and both hold.

    ``own`` counts only runs that say something (:func:`_telling`).
    """

    pairs: Pairs
    both: Pairs
    own: Pairs
    pool_size: Pairs
    held_size: Pairs
    held_own: Pairs

    def leaks(self, which: NDArray[np.bool_], method: str, score: NDArray[np.float64]) -> Iterator[Leak]:
        for (row, matched), value in zip(self.pairs[which].tolist(), score[which].tolist(), strict=True):
            yield Leak(row, matched, method, value)


def _shared(
    reserved: Reserved, parts: Sequence[Hits], level: int, rows: int, rule: LeakageRule, whole: bool
) -> _Shared:
    """Every row of the pool beside every reserved text that it shares something of its own with.

    A text that many rows repeat is one holder where texts are compared ``whole``: a copy says nothing about how usual
    its wording is. A reply that is given many times is a habit.
    """
    runs, values = reserved.runs[level], reserved.values[level]
    flat, offsets = shingles.as_sets(runs)
    codes = np.searchsorted(values, flat)
    hits = shingles.join([part.shared[level] for part in parts])
    sizes = np.concatenate([np.empty(0, np.int64), *(part.sizes[level] for part in parts)])
    counted = _of_different(hits, parts) if whole else hits[0].astype(np.int64)
    holders = np.bincount(counted, minlength=len(values)) + np.bincount(codes, minlength=len(values))
    common = holders > rule.most(rows + reserved.size)
    telling = _telling(np.searchsorted(values, runs[0]), runs[1], common, reserved.levels[level].width)
    target = codes.astype(np.uint64), offsets
    pairs = _pairs(hits, target, telling, holders)
    both = shingles.join([hits, target])
    own = _only(both, telling)
    places = np.column_stack([pairs[:, 0], pairs[:, 1] + rows])
    return _Shared(
        pairs,
        shingles.pair_shared(both, places),
        shingles.pair_shared(own, places),
        sizes[pairs[:, 0]],
        np.diff(both[1])[places[:, 1]],
        np.diff(own[1])[places[:, 1]],
    )


def _of_different(hits: shingles.Ragged, parts: Sequence[Hits]) -> Pairs:
    """The shared runs of the first of all rows that are the same text."""
    names = np.concatenate([np.empty(0, np.uint64), *(part.names for part in parts)])
    first = np.zeros(len(names), bool)
    first[np.unique(names, return_index=True)[1]] = True
    return hits[0][np.repeat(first, np.diff(hits[1]))].astype(np.int64)


def _telling(
    codes: Pairs, offsets: shingles.Offsets, common: NDArray[np.bool_], width: int
) -> NDArray[np.bool_]:
    """Which runs of ``width`` words say something: those that are not common, and stand somewhere in the
    reserved texts without sharing more than half of their words with a common run.

    Otherwise the last twelve words of a signature and one word before it by chance would be a run of its own.
    """
    before = np.concatenate([[0], np.cumsum(common[codes])])
    start = np.repeat(offsets[:-1], np.diff(offsets))
    end = np.repeat(offsets[1:], np.diff(offsets))
    place = np.arange(len(codes))
    low, high = np.maximum(place - width // 2, start), np.minimum(place + width // 2 + 1, end)
    telling = np.zeros(len(common), bool)
    telling[codes[before[high] == before[low]]] = True
    return telling


def _pairs(
    hits: shingles.Ragged, target: shingles.Ragged, telling: NDArray[np.bool_], holders: Pairs
) -> Pairs:
    """The pairs to compare: those that share a telling run; for a reserved text that has none, those that
    hold its rarest run."""
    row = np.repeat(np.arange(len(hits[1]) - 1), np.diff(hits[1]))
    held = np.repeat(np.arange(len(target[1]) - 1), np.diff(target[1]))
    code, of_held = hits[0].astype(np.int64), target[0].astype(np.int64)
    used = telling[of_held] | _rarest(of_held, held, telling, holders)
    order = np.argsort(of_held[used], kind="stable")
    of_held, held = of_held[used][order], held[used][order]
    low, high = np.searchsorted(of_held, code, "left"), np.searchsorted(of_held, code, "right")
    count = high - low
    at = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count) + np.repeat(low, count)
    found = np.repeat(row, count) * np.int64(len(target[1])) + held[at]
    return np.column_stack(np.divmod(np.unique(found), np.int64(len(target[1]))))


def _rarest(codes: Pairs, held: Pairs, telling: NDArray[np.bool_], holders: Pairs) -> NDArray[np.bool_]:
    """Marks, for each reserved row that has no telling run, the run that fewest records hold."""
    marked = np.zeros(len(codes), bool)
    has_own = np.bincount(held, weights=telling[codes], minlength=1) > 0
    order = np.lexsort((codes, holders[codes], held))
    first = np.ones(len(order), bool)
    first[1:] = held[order][1:] != held[order][:-1]
    marked[order[first]] = ~has_own[held[order[first]]]
    return marked


def _only(rows: shingles.Ragged, wanted: NDArray[np.bool_]) -> shingles.Ragged:
    """The rows without the places that are not wanted."""
    keep = wanted[rows[0].astype(np.int64)]
    return rows[0][keep], np.concatenate([[0], np.cumsum(keep)])[rows[1]]


# --- Stage over a workspace's view ----------------------------------------------------------------


def find_leaks(view: pa.Table, eval_view: pa.Table, rule: LeakageRule) -> pa.Table:
    """Drop rows that are too close to a reserved record; one decision per row, with record, method and score.

    Prompts are compared without their system messages, which a whole desk shares. With ``rule.completions``,
    completions of at least ``rule.ngram`` words are compared with reserved completions too, but a reply that
    many records share, equal or not, is never a leak. An empty view, or nothing reserved, gives no decisions.
    A record is not compared with itself.
    """
    found = _leaks_of(view, eval_view, rule, "prompt")
    if rule.completions:
        found = {**_leaks_of(view, eval_view, rule, "completion"), **found}
    return records.table([found[row] for row in sorted(found)], records.DECISIONS)


def _leaks_of(
    view: pa.Table, eval_view: pa.Table, rule: LeakageRule, field: str
) -> dict[int, dict[str, object]]:
    """Decisions by row of the view, comparing one field."""
    reserved = set(eval_view["record"].to_pylist())
    texts, held = _texts(view, field, rule), _texts(eval_view, field, rule)
    rows = [(i, key) for i, key in enumerate(texts) if key is not None and key[0] not in reserved]
    unique = list(dict.fromkeys(key for _, key in rows))
    held_unique = list(dict.fromkeys(key for key in held if key is not None))
    leaks = _find([t for _, t in unique], [t for _, t in held_unique], rule, whole=field == "prompt")
    by_key = {unique[leak.row]: leak for leak in leaks}
    labels = view["label"].to_pylist()
    return {
        i: _decision(key[0], labels[i], field, held_unique[by_key[key].matched][0], by_key[key])
        for i, key in rows
        if key in by_key
    }


def _texts(view: pa.Table, field: str, rule: LeakageRule) -> list[tuple[str, str] | None]:
    """(record, text) per row; None where there is nothing to compare."""
    names = view["record"].to_pylist()
    if field == "completion":
        values = view["completion"].to_pylist()
        return [(r, t) if t and _is_long(t, rule.ngram) else None for r, t in zip(names, values, strict=True)]
    prompts = zip(view["messages"].to_pylist(), view["prompt"].to_pylist(), strict=True)
    return [(r, _without_system(*prompt)) for r, prompt in zip(names, prompts, strict=True)]


def _is_long(text: str, words: int) -> bool:
    return len(shingles.ngram_hashes([text], words)[0]) > 0


def _without_system(messages: list[dict[str, str]] | None, prompt: str | None) -> str:
    said = [m for m in messages or () if m["role"] != "system"]
    return records.prompt_text(said) if messages and len(said) < len(messages) else prompt or ""


_WORDS = {"exact": "equals", "near": "is a near-duplicate of", "ngram": "shares a run of words with"}
_MOST = "holds most runs of words of"


def _decision(record: str, label: str | None, field: str, matched: str, leak: Leak) -> dict[str, object]:
    reason = f"the {field} {_WORDS.get(leak.method, _MOST)} one that is reserved for evaluation"
    evidence = {"matched": matched, "field": field, "method": leak.method, "score": round(leak.score, 6)}
    return records.decision(record, "drop", reason, label=label, evidence=evidence)
