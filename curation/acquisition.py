"""Which records people are asked next: scores in, a Selection out. Arithmetic only; no model is called here.

Every batch carries a control arm that is drawn at random from the whole open pool, so that what a strategy
saves can be measured, and blind tasks, so that anchoring can. Nothing that is excluded (labelled, queued,
held, dropped, reserved) is ever chosen, no record is chosen twice, and the same records, scores and seed give
the same batch whatever the order of the rows. Uncertainty alone chases noise (arXiv 2301.03252, 2305.15040),
so ``hybrid`` weighs it by how typical a record is and spreads the batch out; without scores it starts with
typical records (arXiv 2202.02794).
"""

from __future__ import annotations

import hashlib
import math
import zlib
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa

from curation.errors import UsageError
from curation.text import ngrams, tokens

STRATEGIES = ("random", "nll", "least_confidence", "margin", "entropy", "bald", "hybrid")
STRATEGY, CONTROL, RELABEL = "strategy", "control", "relabel"
SEEN = ("labelled", "queued")  # reasons of exclusion that mean: people have this already, so look elsewhere

PRIORITY = "priority"  # the column of a pool, and the signal made of it

# Records that hybrid weighs, drawn at random where the pool holds more: 1.3 s of processor time at 384 dimensions.
CONSIDERED = 20_000
REFERENCES = 2_000  # records that stand for the pool when typicality is measured
NEIGHBOURS = 3  # few, so that a rare kind of record is typical as soon as it has some company
OUTLIERS = 0.1  # the least typical tenth is not asked: what lies far from everything is mostly noise
SHORTLIST = 10  # times the batch: how many of the most valuable records diversity chooses from
TEXT_DIMENSIONS = 256


@dataclass(frozen=True)
class AcquisitionRule:
    """How one batch is chosen. Shares are of the batch, rounded half up; ``batch`` is a number of records.

    Records with a ``quality`` under ``min_quality`` are skipped where the pool has that column. Raises
    :class:`UsageError` for values that make no sense, all at once.
    """

    strategy: str = "hybrid"
    batch: int = 50
    control_share: float = 0.2
    blind_share: float = 0.1
    seed: int = 0
    min_quality: float = 0.5

    def __post_init__(self) -> None:
        wrong = []
        if self.strategy not in STRATEGIES:
            wrong.append(f"strategy {self.strategy!r} is none of {', '.join(STRATEGIES)}")
        if self.batch < 1:
            wrong.append(f"batch is {self.batch}; it must be 1 or more")
        for name in ("control_share", "blind_share"):
            if not 0 <= getattr(self, name) <= 1:
                wrong.append(f"{name} is {getattr(self, name)}; it must lie between 0 and 1")
        if wrong:
            raise UsageError("; ".join(wrong), where="acquisition")


@dataclass(frozen=True)
class Picked:
    """One chosen record: its arm (``strategy``, ``control``, or ``relabel`` where it has answers already), whether it is
    shown blind, why, and when in the batch.

    Positions mix the arms, so that a batch that is left half-done still compares them.
    """

    record: str
    arm: str
    blind: bool
    reason: str
    position: int


@dataclass(frozen=True)
class Selection(Sequence[Picked]):
    """A batch in the order of its positions, and ``notes`` in words on what did not go as asked."""

    picked: tuple[Picked, ...]
    notes: tuple[str, ...] = ()

    def __iter__(self) -> Iterator[Picked]:
        return iter(self.picked)

    def __len__(self) -> int:
        return len(self.picked)

    def __getitem__(self, position: Any) -> Any:
        return self.picked[position]


Choice = tuple[str, str]  # a record, and why


@dataclass(frozen=True)
class Again:
    """A record with answers, what one more is expected to be worth, and why it is asked about again."""

    record: str
    value: float
    reason: str


def with_relabels(
    selection: Selection, again: Sequence[Again], worth: Mapping[str, float], batch: int
) -> Selection:
    """The selection with the most valuable of ``again`` in the places of strategy picks that are worth less.

    ``worth`` holds the value of a first answer to each record of the selection, on the scale of ``again``. The control
    arm and blind picks keep their places: what they measure must not depend on it. Places up to ``batch`` that the pool
    could not fill are given too. Nothing worth more leaves the selection as it is.
    """
    best = sorted(again, key=lambda a: (-a.value, a.record))
    places = [pick for pick in selection if pick.arm == STRATEGY and not pick.blind]
    places.sort(key=lambda pick: (worth[pick.record], pick.record))
    swaps = {
        pick.record: Picked(new.record, RELABEL, False, new.reason, pick.position)
        for pick, new in zip(places, best, strict=False)
        if new.value > worth[pick.record]
    }
    picked = [swaps.get(pick.record, pick) for pick in selection]
    more = best[len(swaps) : len(swaps) + max(0, batch - len(picked))]
    picked += [Picked(a.record, RELABEL, False, a.reason, place) for place, a in enumerate(more, len(picked))]
    told = f"{len(swaps) + len(more):,} of {len(picked):,} ask again about records with answers"
    return Selection(tuple(picked), (*selection.notes, told) if swaps or more else selection.notes)


def select(
    scores: pa.Table | None,
    pool: pa.Table,
    rule: AcquisitionRule,
    exclude: Mapping[str, str] | Collection[str] = (),
) -> Selection:
    """Choose the next batch from ``pool`` (``record``, ``prompt``; ``quality`` and ``priority`` in 0..1 where known).

    ``scores`` is a table of SCORES by one adapter, or ``None``; ``priority`` is how much a person's answer is wanted
    whatever the model says, which ``hybrid`` weighs beside the model's doubt. ``exclude`` holds the records that must
    not be chosen, with a reason each where it is a mapping; those ``labelled`` or ``queued`` also count as covered when
    ``hybrid`` looks for something different. Scores that are missing or no numbers are not used: where none is left,
    ``hybrid`` takes typical records first and the others draw at random, and a note says so. A pool smaller than the
    batch is taken whole; an empty one gives an empty Selection. Raises :class:`UsageError` for scores of a record twice,
    and for scores that lack what the strategy needs.
    """
    state = _State.of(scores, pool, rule, exclude)
    size = min(rule.batch, len(state.ids))
    if size < rule.batch:
        state.notes.append(
            f"{size} open records, fewer than the batch of {rule.batch}: all of them are taken"
        )
    control = _at_random(state.ids, rule.seed, "control")[: _share(rule.control_share, size)]
    why = f"random control: drawn from all {len(state.ids):,} open records"
    chosen = [(record, CONTROL, why) for record in control]
    rest = state.without(control)
    for record, reason in _RANKERS[rule.strategy](rest, size - len(control)):
        chosen.append((record, STRATEGY, reason))
    return Selection(tuple(_arranged(chosen, rule)), tuple(state.notes))


def _share(share: float, size: int) -> int:
    return math.floor(share * size + 0.5)


def _arranged(chosen: list[tuple[str, str, str]], rule: AcquisitionRule) -> Iterator[Picked]:
    records = [record for record, _, _ in chosen]
    blind = set(_at_random(records, rule.seed, "blind")[: _share(rule.blind_share, len(records))])
    place = {record: i for i, record in enumerate(_at_random(records, rule.seed, "position"))}
    for record, arm, reason in sorted(chosen, key=lambda item: place[item[0]]):
        yield Picked(record, arm, record in blind, reason, place[record])


def _at_random(records: list[str], seed: int, purpose: str) -> list[str]:
    """The records in an order that seed and purpose alone decide, not the order they come in or what else is there."""
    prefix = f"{purpose}\0{seed}\0".encode()
    return sorted(records, key=lambda r: (hashlib.blake2b(prefix + r.encode(), digest_size=8).digest(), r))


@dataclass(frozen=True)
class _State:
    """The open pool in the order of record ids, and what is known of each; ``nan`` where nothing is."""

    ids: list[str]
    prompts: list[str]
    signals: dict[
        str, np.ndarray
    ]  # name of a score -> one float per record, larger where the model is less sure
    offered: frozenset[str]  # the scores that the table has at all
    vectors: dict[str, np.ndarray]  # embeddings of open and of covered records
    covered: dict[str, str]  # records that people have already, with their prompts
    rule: AcquisitionRule
    notes: list[str]

    @classmethod
    def of(
        cls,
        scores: pa.Table | None,
        pool: pa.Table,
        rule: AcquisitionRule,
        exclude: Mapping[str, str] | Collection[str],
    ) -> _State:
        notes: list[str] = []
        prompts, poor = _pool(pool, rule)
        excluded = set(exclude)
        ids = sorted(set(prompts) - excluded - poor)
        if skipped := len(poor - excluded):
            notes.append(f"{skipped:,} records skipped: no text, or a quality under {rule.min_quality}")
        seen = {r for r in exclude if exclude[r] in SEEN} if isinstance(exclude, Mapping) else set()
        rows = _score_rows(scores)
        signals, offered = _signals(scores, rows, ids)
        signals[PRIORITY] = _priority(pool, ids)
        return cls(
            ids=ids,
            prompts=[prompts[record] for record in ids],
            signals=signals,
            offered=offered,
            vectors=_embeddings(scores, rows, set(ids) | seen),
            covered={record: prompts.get(record, "") for record in sorted(seen)},
            rule=rule,
            notes=notes,
        )

    def without(self, records: list[str]) -> _State:
        """The same state with these records covered instead of open."""
        gone = set(records)
        keep = [i for i, record in enumerate(self.ids) if record not in gone]
        now = {record: self.prompts[i] for i, record in enumerate(self.ids) if record in gone}
        return self.at(keep, covered={**self.covered, **now})

    def at(self, positions: list[int], covered: dict[str, str] | None = None) -> _State:
        """The state of some of the open records."""
        return replace(
            self,
            ids=[self.ids[i] for i in positions],
            prompts=[self.prompts[i] for i in positions],
            signals={name: values[positions] for name, values in self.signals.items()},
            covered=self.covered if covered is None else covered,
        )


def _pool(pool: pa.Table, rule: AcquisitionRule) -> tuple[dict[str, str], set[str]]:
    """The prompt of every record, and the records that are not worth an expert's minute."""
    ids, texts = pool["record"].to_pylist(), pool["prompt"].to_pylist()
    quality = pool["quality"].to_pylist() if "quality" in pool.column_names else [None] * len(ids)
    prompts: dict[str, str] = {}
    poor = set()
    for record, text, value in zip(ids, texts, quality, strict=True):
        prompts[record] = min(filter(None, (prompts.get(record), text)), default="")
        if not (text or "").strip() or (value is not None and not value >= rule.min_quality):
            poor.add(record)
    return prompts, poor


def _priority(pool: pa.Table, ids: list[str]) -> np.ndarray:
    """The pool's own word on how much each record's answer is wanted; ``nan`` where it says nothing."""
    if PRIORITY not in pool.column_names:
        return np.full(len(ids), np.nan)
    told = dict(zip(pool["record"].to_pylist(), pool[PRIORITY].to_pylist(), strict=True))
    return np.array([np.nan if told[i] is None else told[i] for i in ids], dtype=np.float64)


def _score_rows(scores: pa.Table | None) -> dict[str, int]:
    if scores is None:
        return {}
    ids = scores["record"].to_pylist()
    rows = {record: i for i, record in enumerate(ids)}
    if len(rows) < len(ids):
        twice = Counter(ids).most_common(1)[0][0]
        raise UsageError(f"record {twice} has two scores", next="Pass the scores of one adapter for one view")
    return rows


def _signals(
    scores: pa.Table | None, rows: Mapping[str, int], ids: list[str]
) -> tuple[dict[str, np.ndarray], frozenset[str]]:
    """One signal per kind of score, larger where the model is less sure, and the kinds that any row has."""
    at = np.array([rows.get(record, -1) for record in ids], dtype=np.int64)
    signals, offered = {}, set()
    for name, (column, sign, _) in _SIGNALS.items():
        values: np.ndarray = np.full(len(ids), np.nan)
        if scores is not None and column in scores.column_names:
            if scores[column].null_count < scores.num_rows:
                offered.add(name)
            raw = np.append(scores[column].to_numpy().astype(np.float64), np.nan)
            values = sign * raw[at]
            values[~np.isfinite(values)] = np.nan
        signals[name] = values
    return signals, frozenset(offered)


# Strategy -> column of SCORES, sign that makes larger mean less sure, and the value in words.
_SIGNALS: dict[str, tuple[str, float, str]] = {
    "nll": ("nll", 1.0, "{:.3f} nats per token"),
    "least_confidence": ("confidence", -1.0, "best class at {:.3f}"),
    "margin": ("margin", -1.0, "best class ahead by {:.3f}"),
    "entropy": ("entropy", 1.0, "{:.3f} nats over the classes"),
    "bald": ("disagreement", 1.0, "models disagree by {:.3f} nats"),  # Houlsby et al. 2011, arXiv 1112.5745
}


def _embeddings(scores: pa.Table | None, rows: Mapping[str, int], wanted: set[str]) -> dict[str, np.ndarray]:
    """The unit vectors of the wanted records; a vector that is empty, not finite or of another length is left out."""
    if scores is None or "embedding" not in scores.column_names:
        return {}
    column = scores["embedding"].combine_chunks()
    found = {}
    for record in sorted(wanted & rows.keys()):
        value = column[rows[record]].values if column[rows[record]].is_valid else None
        vector = np.asarray(
            value.to_numpy(zero_copy_only=False) if value is not None else [], dtype=np.float32
        )
        length = float(np.linalg.norm(vector)) if vector.size else 0.0
        if length > 0 and math.isfinite(length):
            found[record] = vector / length
    width = Counter(vector.size for vector in found.values()).most_common(1)
    return {record: vector for record, vector in found.items() if vector.size == width[0][0]}


def _random(state: _State, count: int) -> list[Choice]:
    why = f"drawn at random from {len(state.ids):,} records"
    return [(record, why) for record in _at_random(state.ids, state.rule.seed, "random")[:count]]


def _uncertain(name: str) -> Callable[[_State, int], list[Choice]]:
    """The strategy that takes the records of which the model is least sure, by one score."""
    column, sign, words = _SIGNALS[name]

    def rank(state: _State, count: int) -> list[Choice]:
        signal = state.signals[name]
        scored = np.flatnonzero(~np.isnan(signal))
        if not len(scored):
            return _fallback(state, count, name, column)
        order = scored[np.argsort(-signal[scored], kind="stable")][:count]
        chosen = [
            (
                state.ids[i],
                f"{name}: {words.format(sign * signal[i])}, rank {place:,} of {len(scored):,} scored",
            )
            for place, i in enumerate(order.tolist(), 1)
        ]
        return chosen + _unscored(state, chosen, count)

    return rank


def _unscored(state: _State, chosen: list[Choice], count: int) -> list[Choice]:
    """Records without a score, at random, where those with one do not fill the batch."""
    missing = count - len(chosen)
    if missing <= 0:
        return []
    taken = {record for record, _ in chosen}
    left = [record for record in state.ids if record not in taken]
    if left:
        state.notes.append(f"only {len(chosen):,} records have a usable score; the rest is drawn at random")
    return [
        (record, "no usable score: drawn at random")
        for record in _at_random(left, state.rule.seed, "random")[:missing]
    ]


def _fallback(state: _State, count: int, name: str, column: str) -> list[Choice]:
    others = sorted(other for other in state.offered - {name} if not np.isnan(state.signals[other]).all())
    if others and name not in state.offered:
        raise UsageError(
            f"the scores have no {column}, so {name} cannot rank",
            where="acquisition",
            next=f"They have what {', '.join(others)} needs",
        )
    if count:
        state.notes.append(f"no usable scores for {name}: the whole batch is drawn at random")
    return [(record, f"no usable scores: {reason}") for record, reason in _random(state, count)]


def _hybrid(state: _State, count: int) -> list[Choice]:
    """Uncertainty x typicality x distance from what is chosen or covered, one record at a time."""
    if not count:
        return []
    # A sample of the pool may have been scored: then the choice is among that sample.
    scored = np.flatnonzero(~np.isnan(state.signals["nll"]) | ~np.isnan(state.signals["least_confidence"]))
    if count <= len(scored) < len(state.ids):
        state = state.at(scored.tolist())
    if len(state.ids) > CONSIDERED:
        drawn = set(_at_random(state.ids, state.rule.seed, "considered")[: max(CONSIDERED, count)])
        state = state.at([i for i, record in enumerate(state.ids) if record in drawn])
        state.notes.append(f"hybrid weighed {len(state.ids):,} records, drawn at random from the pool")
    vectors, centres = _vectors(state)
    typical = typicality(vectors, state.ids, state.rule.seed)
    unsure = _unsureness(state)
    if unsure is None:
        state.notes.append("no usable scores: typical records first")
    worth = ranks(typical) * (ranks(unsure) if unsure is not None else 1.0)
    inside = typical >= np.quantile(typical, OUTLIERS)
    # Those that do not belong come only when there is nothing else left to fill the batch.
    order = np.lexsort((-worth, ~inside))[: max(SHORTLIST * count, count)]
    shortlist = np.sort(order[inside[order]] if inside[order].sum() >= count else order)
    picked = spread(vectors[shortlist], worth[shortlist], centres, count)
    return [_hybrid_choice(state, int(shortlist[i]), typical, unsure) for i in picked]


def _hybrid_choice(state: _State, i: int, typical: np.ndarray, unsure: np.ndarray | None) -> Choice:
    of = f"of {len(state.ids):,} records"
    place = f"more typical than {_percent(typical, i)} {of}, unlike those chosen before it"
    if unsure is None:
        return state.ids[i], f"typical first: {place}"
    who = "the functions and the model are less" if not np.isnan(state.signals[PRIORITY]).all() else "less"
    return state.ids[i], f"hybrid: {who} sure than {_percent(unsure, i)}, {place}"


def _percent(values: np.ndarray, i: int) -> str:
    return f"{100 * float((values < values[i]).mean()):.0f}%"


def _unsureness(state: _State) -> np.ndarray | None:
    """The mean rank of the two scores that every model gives, and of the pool's priority where it has one; a record
    without any counts as the surest. What is the same for all records tells nothing, and is no reason to give."""
    told = [np.nan_to_num(state.signals[n], nan=-np.inf) for n in ("nll", "least_confidence", PRIORITY)]
    usable = [ranks(signal) for signal in told if len(np.unique(signal)) > 1]
    return np.mean(usable, axis=0) if usable else None


def ranks(values: np.ndarray) -> np.ndarray:
    """The rank of each value as a share in (0, 1]; equal values share the mean of their ranks. Shape ``(n,)``."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return ((ends - (counts - 1) / 2) / max(1, len(values)))[inverse]


def typicality(vectors: np.ndarray, ids: list[str], seed: int = 0) -> np.ndarray:
    """How near each record lies to the pool: its mean cosine to its nearest neighbours in a random sample of it.

    ``vectors`` has shape ``(n, d)``, rows of length 1; returns shape ``(n,)``. A record is no neighbour of
    its own. A pool of one record gives 0.
    """
    chosen = set(_at_random(ids, seed, "reference")[:REFERENCES])
    sample = np.array([i for i, record in enumerate(ids) if record in chosen], dtype=np.int64)
    near = min(NEIGHBOURS, len(sample) - 1)
    found = np.zeros(len(ids))
    if near < 1:
        return found
    column = {int(i): place for place, i in enumerate(sample)}
    for start in range(0, len(ids), 1_000):
        cosines = vectors[start : start + 1_000] @ vectors[sample].T
        for row in range(len(cosines)):
            if (own := column.get(start + row)) is not None:
                cosines[row, own] = -np.inf
        found[start : start + 1_000] = np.partition(cosines, -near, axis=1)[:, -near:].mean(axis=1)
    # Rounded, so that the order of a sum in a matrix product does not decide between equals.
    return np.round(found, 5)


def spread(vectors: np.ndarray, worth: np.ndarray, centres: np.ndarray, count: int) -> list[int]:
    """Choose ``count`` rows one by one, each the largest ``worth`` times distance from all centres and earlier choices.

    The distance is ``1 - cosine``, 1 where there are no centres yet; ties go to the first row. Rows of
    ``vectors`` (``(n, d)``) and ``centres`` (``(m, d)``) have length 1. Returns positions, all of them where
    ``count >= n``.
    """
    distance = np.ones(len(vectors))
    for centre in centres:
        distance = np.minimum(distance, 1 - vectors @ centre)
    open_rows = np.ones(len(vectors), dtype=bool)
    chosen: list[int] = []
    while len(chosen) < min(count, len(vectors)):
        # A floor keeps worth in play where everything left equals something chosen.
        gain = np.where(open_rows, worth * np.maximum(np.round(distance, 5), 1e-6), -1.0)
        best = int(np.argmax(gain))
        chosen.append(best)
        open_rows[best] = False
        distance = np.minimum(distance, 1 - vectors @ vectors[best])
    return chosen


def _vectors(state: _State) -> tuple[np.ndarray, np.ndarray]:
    """The vectors of the open records and of the covered ones: embeddings where every open record has one, else text."""
    covered = _at_random(list(state.covered), state.rule.seed, "reference")[:REFERENCES]
    if all(record in state.vectors for record in state.ids):
        known = [state.vectors[record] for record in covered if record in state.vectors]
        open_vectors = np.array([state.vectors[record] for record in state.ids], dtype=np.float32)
        return open_vectors, np.array(known, dtype=np.float32).reshape(-1, open_vectors.shape[1])
    if embedded := sum(record in state.vectors for record in state.ids):
        state.notes.append(
            f"only {embedded:,} of {len(state.ids):,} have an embedding: compared by their words"
        )
    texts = [state.covered[record] for record in covered if state.covered[record]]
    whole = text_vectors([*state.prompts, *texts])
    return whole[: len(state.ids)], whole[len(state.ids) :]


def text_vectors(texts: list[str], dimensions: int = TEXT_DIMENSIONS) -> np.ndarray:
    """Words and pairs of words, hashed with signs into ``dimensions`` and weighed by rarity; rows of length 1.

    Feature hashing (Weinberger et al. 2009) with tf-idf: crude beside an encoder, but it needs no model. A
    text without words gets a row of zeros. Shape ``(len(texts), dimensions)``.
    """
    features = [_features(text) for text in texts]
    seen = Counter(feature for found in features for feature in found)
    vectors = np.zeros((len(texts), dimensions), dtype=np.float32)
    for row, found in enumerate(features):
        for feature, count in found.items():
            weight = (1 + math.log(count)) * math.log((1 + len(texts)) / seen[feature])
            vectors[row, feature % dimensions] += weight if (feature >> 31) & 1 else -weight
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(lengths > 0, lengths, 1)


def _features(text: str) -> Counter[int]:
    words = tokens(text)
    return Counter(
        zlib.crc32(" ".join(run).encode("utf-8", "surrogatepass")) for n in (1, 2) for run in ngrams(words, n)
    )


_RANKERS: dict[str, Callable[[_State, int], list[Choice]]] = {
    "random": _random,
    "hybrid": _hybrid,
    **{name: _uncertain(name) for name in _SIGNALS},
}
