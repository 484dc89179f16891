"""How good predictions are: metrics with intervals, by slice, and paired differences.

Works on plain strings and numpy arrays, so every number can be checked by hand; it loads no model and needs no torch.
It refuses an empty evaluation, and it never reports a number without the interval that says how far to trust it.

| metric | counts | compared after |
|---|---|---|
| ``accuracy`` | 1 where the prediction is one of the references | trimming white space |
| ``exact_match`` | 1 where the prediction is one of the references | NFKC, casefold, white space folded |
| ``token_f1`` | harmonic mean of precision and recall of the bags of words, best reference (SQuAD, arXiv 1606.05250) | as above, then words |
| ``rouge_l`` | F-measure of the longest common subsequence, best reference (Lin 2004) | lower case, letters and digits only, no stemming |
| ``bleu`` | corpus BLEU-4 on 0 to 100, several references, exponential smoothing (sacrebleu) | tokeniser ``13a``, case kept |

All but ``bleu`` are means over rows of a number between 0 and 1.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, lru_cache
from typing import Any

import numpy as np
import pyarrow as pa

from curation import text
from curation.errors import MissingExtra, UsageError

RESAMPLES = 1000
BLEU_ORDER = 4
BLEU_TOKENISER = "13a"
_DRAWS = 4_000_000  # counts of one block of resamples: 32 MB

_WORD = re.compile(r"[^\W_]+")


# ---------------------------------------------------------------------------------------------- one row


def accuracy(prediction: str, references: Sequence[str]) -> float:
    """1.0 where the prediction is literally one of the references, outer white space aside; else 0.0."""
    return float(prediction.strip() in {r.strip() for r in references})


def exact_match(prediction: str, references: Sequence[str]) -> float:
    """1.0 where the normalised prediction equals a normalised reference; else 0.0.

    >>> exact_match("Card  ARRIVAL", ["card arrival"])
    1.0
    """
    return float(text.normalise(prediction) in {text.normalise(r) for r in references})


def token_f1(prediction: str, references: Sequence[str]) -> float:
    """The best F1 of the bags of words over the references; 1.0 where both bags are empty.

    >>> token_f1("the red card", ["a red card"])
    0.6666666666666666
    """
    mine = text.tokens(prediction)
    return max(_bag_f1(mine, text.tokens(r)) for r in references)


def rouge_l(prediction: str, references: Sequence[str]) -> float:
    """The best ROUGE-L F-measure over the references; 0.0 where either side has no words.

    >>> round(rouge_l("the cat sat", ["the cat on the mat sat"]), 4)
    0.6667
    """
    mine = _rouge_tokens(prediction)
    return max(_lcs_f(mine, _rouge_tokens(r)) for r in references)


def _bag_f1(a: list[str], b: list[str]) -> float:
    if not a or not b:
        return float(a == b)
    shared = sum((Counter(a) & Counter(b)).values())
    return _f1(shared, len(a), len(b))


def _f1(shared: int, mine: int, theirs: int) -> float:
    """``2 P R / (P + R)`` with P = shared / mine and R = shared / theirs, which is ``2 shared / (mine + theirs)``."""
    return 2 * shared / (mine + theirs) if shared else 0.0


@lru_cache(maxsize=65_536)
def _rouge_tokens(value: str) -> tuple[str, ...]:
    clean = unicodedata.normalize("NFKC", value).lower()
    if text.is_unspaced(clean):
        return tuple("".join(_WORD.findall(clean)))
    return tuple(_WORD.findall(clean))


def _lcs_f(a: tuple[str, ...], b: tuple[str, ...]) -> float:
    return _f1(lcs_length(a, b), len(a), len(b)) if a and b else 0.0


def lcs_length(a: Sequence[str], b: Sequence[str]) -> int:
    """Length of the longest common subsequence, one machine word of ``a`` at a time (Hyyrö 2004).

    Bit i of ``state`` is 0 where the dynamic programme's row grows at position i, so the zeros count the length.

    >>> lcs_length("the cat sat on a mat".split(), "a cat on mat".split())
    3
    """
    where: dict[str, int] = {}
    for i, word in enumerate(a):
        where[word] = where.get(word, 0) | (1 << i)
    full = (1 << len(a)) - 1
    state = full
    for word in b:
        matches = state & where.get(word, 0)
        state = ((state + matches) | (state - matches)) & full
    return len(a) - state.bit_count()


# ------------------------------------------------------------------------------------------ corpus BLEU


@cache
def _bleu() -> Any:
    try:
        from sacrebleu.metrics import BLEU
    except ImportError:
        raise MissingExtra("train", "sacrebleu") from None
    return BLEU(tokenize=BLEU_TOKENISER, effective_order=True)


def bleu_statistics(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> np.ndarray:
    """The sufficient statistics of BLEU: an int64 array (rows, 2 + 2 * 4).

    Columns: length of the prediction, length of the closest reference, matched n-grams for n = 1..4, n-grams in the
    prediction for n = 1..4. The BLEU of any set of rows is a function of the sum of their rows here, which is what
    makes the bootstrap cheap. Empty input gives an array of no rows.
    """
    rows = [_segment(p, list(r)) for p, r in zip(predictions, references, strict=True)]
    return np.array(rows, dtype=np.int64).reshape(len(rows), 2 + 2 * BLEU_ORDER)


def _segment(prediction: str, references: list[str]) -> list[int]:
    score = _bleu().sentence_score(prediction, references)
    return [score.sys_len, score.ref_len, *score.counts, *score.totals]


def bleu_from_statistics(sums: np.ndarray) -> np.ndarray:
    """BLEU (0 to 100) of summed statistics, one per row of ``sums`` (any leading shape).

    ``exp(min(0, 1 - r/c)) * exp(mean_n log p_n)``, where the k-th order without a match counts as ``1 / (2^k total)``
    (method 3 of Chen and Cherry 2014, as ``mteval-v13a`` and sacrebleu do). 0 where nothing matches, or where the
    predictions together are shorter than four words.
    """
    sums = np.asarray(sums, dtype=np.float64)
    length, closest = sums[..., 0], sums[..., 1]
    matched, total = sums[..., 2 : 2 + BLEU_ORDER], sums[..., 2 + BLEU_ORDER :]
    missed = matched == 0
    halvings = np.cumsum(missed, axis=-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        precision = np.where(missed, 0.5**halvings, matched) / total
        score = np.exp(np.log(precision).mean(axis=-1) + np.minimum(0.0, 1.0 - closest / length))
    void = missed.all(axis=-1) | (total == 0).any(axis=-1)
    return np.where(void, 0.0, 100.0 * score)


def corpus_bleu(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Corpus BLEU-4, 0 to 100. Rows may have different numbers of references. Empty input raises ``UsageError``."""
    _check(predictions, references)
    return float(bleu_from_statistics(bleu_statistics(predictions, references).sum(axis=0)))


def _sentence_bleu(prediction: str, references: Sequence[str]) -> float:
    return float(_bleu().sentence_score(prediction, list(references)).score)


# -------------------------------------------------------------------------------------------- intervals


ROW_METRICS: Mapping[str, Callable[[str, Sequence[str]], float]] = {
    "accuracy": accuracy,
    "exact_match": exact_match,
    "token_f1": token_f1,
    "rouge_l": rouge_l,
}
METRICS = (*ROW_METRICS, "bleu")


def resample_counts(rows: int, seed: int, resamples: int = RESAMPLES) -> Iterator[np.ndarray]:
    """How often each row is drawn in each bootstrap resample: int64 arrays (some resamples, rows), each row summing to
    ``rows``, a few resamples at a time to bound memory.

    The same seed and number of rows give the same draw, which is what pairs two systems.
    """
    rng = np.random.default_rng(seed)
    share = np.full(rows, 1.0 / rows)
    step = max(1, _DRAWS // rows)
    for start in range(0, resamples, step):
        yield rng.multinomial(rows, share, size=min(step, resamples - start))


def _replicates(stats: Sequence[np.ndarray], seed: int, resamples: int) -> list[np.ndarray]:
    """The metric of each system in each resample; all systems see the same draws."""
    rows = len(stats[0])
    parts = [
        [_aggregate(counts @ s, rows) for s in stats] for counts in resample_counts(rows, seed, resamples)
    ]
    return [np.concatenate(column) for column in zip(*parts, strict=True)]


def _aggregate(sums: np.ndarray, rows: int) -> np.ndarray:
    """Summed statistics to the metric: one column is a mean over rows, more columns are those of BLEU."""
    return sums[..., 0] / rows if sums.shape[-1] == 1 else bleu_from_statistics(sums)


def _statistics(values: np.ndarray) -> np.ndarray:
    values = np.asarray(values, dtype=np.float64)
    return values[:, None] if values.ndim == 1 else values


def interval(values: np.ndarray, seed: int = 0, resamples: int = RESAMPLES) -> tuple[float, list[float]]:
    """The metric and its 95% percentile bootstrap interval over rows (Efron and Tibshirani 1993, section 13.3).

    ``values`` holds one number per row, or the rows of :func:`bleu_statistics`. An empty array raises ``UsageError``.
    """
    stats = _statistics(values)
    rows = len(stats)
    if rows == 0:
        raise _empty()
    (replicates,) = _replicates([stats], seed, resamples)
    low, high = np.percentile(replicates, [2.5, 97.5])
    return float(_aggregate(stats.sum(axis=0), rows)), [float(low), float(high)]


def paired_difference(
    a: np.ndarray, b: np.ndarray, seed: int = 0, resamples: int = RESAMPLES
) -> dict[str, Any]:
    """How much better ``b`` is than ``a`` on the same rows, by paired bootstrap (Koehn 2004).

    Both hold one number per row, or both the rows of :func:`bleu_statistics`. Gives ``value`` (metric of ``b`` minus
    metric of ``a``), ``ci95``, and ``better``, the share of resamples in which ``b`` beats ``a``, ties counting half.
    Raises ``UsageError`` where the two do not cover the same number of rows, or none.
    """
    first, second = _statistics(a), _statistics(b)
    if first.shape != second.shape:
        raise UsageError(
            f"two systems of {len(first)} and {len(second)} rows cannot be paired",
            next="Score both on the same rows, in the same order",
        )
    rows = len(first)
    if rows == 0:
        raise _empty()
    of_first, of_second = _replicates([first, second], seed, resamples)
    gains = of_second - of_first
    low, high = np.percentile(gains, [2.5, 97.5])
    value = _aggregate(second.sum(axis=0), rows) - _aggregate(first.sum(axis=0), rows)
    better = float((gains > 0).mean() + 0.5 * (gains == 0).mean())
    return {"value": float(value), "ci95": [float(low), float(high)], "better": better, "rows": rows}


# ------------------------------------------------------------------------------------------------ whole


def row_statistics(
    predictions: Sequence[str], references: Sequence[Sequence[str]], metric: str
) -> np.ndarray:
    """What :func:`interval` and :func:`paired_difference` take: one number per row, or BLEU's statistics."""
    if metric == "bleu":
        return bleu_statistics(predictions, references)
    score = ROW_METRICS[metric]
    return np.array([score(p, r) for p, r in zip(predictions, references, strict=True)])


def row_scores(
    predictions: Sequence[str], references: Sequence[Sequence[str]], metrics: Sequence[str]
) -> pa.Table:
    """One row per prediction, one float64 column per metric; ``bleu`` is then the sentence's own BLEU.

    Empty input gives an empty table.
    """
    scorers = {name: ROW_METRICS.get(name, _sentence_bleu) for name in _known(metrics)}
    columns = {
        name: pa.array([score(p, r) for p, r in zip(predictions, references, strict=True)], pa.float64())
        for name, score in scorers.items()
    }
    return pa.table({"prediction": pa.array(predictions, pa.string()), **columns})


def evaluate(
    predictions: Sequence[str],
    references: Sequence[Sequence[str]],
    metrics: Sequence[str],
    slices: Mapping[str, Sequence[str | None]] | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Every metric with its interval, over all rows and within each slice.

    ``references[i]`` are the acceptable answers to row i; ``slices`` maps a name (``"lang"``) to one value per row, and
    rows whose value is null belong to no slice of that name. The result is plain JSON::

        {"rows": 3, "metrics": {"accuracy": {"value": 0.67, "ci95": [0.0, 1.0]}},
         "slices": {"lang=en": {"rows": 2, "metrics": {...}}}}

    Raises ``UsageError`` on no rows, on unequal lengths, on a row without references and on an unknown metric.
    """
    _check(predictions, references)
    stats = {name: row_statistics(predictions, references, name) for name in _known(metrics)}
    everything = np.arange(len(predictions))
    found: dict[str, Any] = _summary(stats, everything, seed)
    groups = _slice_rows(slices or {}, len(predictions))
    found["slices"] = {name: _summary(stats, where, seed) for name, where in groups.items()}
    return found


def _summary(stats: Mapping[str, np.ndarray], where: np.ndarray, seed: int) -> dict[str, Any]:
    measured = {}
    for name, values in stats.items():
        value, ci95 = interval(values[where], seed)
        measured[name] = {"value": value, "ci95": ci95}
    return {"rows": len(where), "metrics": measured}


def _slice_rows(slices: Mapping[str, Sequence[str | None]], rows: int) -> dict[str, np.ndarray]:
    groups: dict[str, list[int]] = {}
    for name, values in slices.items():
        if len(values) != rows:
            raise UsageError(
                f"slice {name!r} has {len(values)} values for {rows} rows", next="Give one value per row"
            )
        for i, value in enumerate(values):
            if value is not None:
                groups.setdefault(f"{name}={value}", []).append(i)
    return {name: np.array(groups[name]) for name in sorted(groups)}


def _known(metrics: Sequence[str]) -> list[str]:
    for name in metrics:
        if name not in METRICS:
            raise UsageError(f"unknown metric {name!r}", next=f"Choose among: {', '.join(METRICS)}")
    if not metrics:
        raise UsageError("no metric was asked for", next=f"Choose among: {', '.join(METRICS)}")
    return list(dict.fromkeys(metrics))


def _check(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> None:
    if len(predictions) != len(references):
        raise UsageError(
            f"{len(predictions)} predictions for {len(references)} rows of references",
            next="Give one prediction and one list of references per row",
        )
    if not predictions:
        raise _empty()
    bare = next((i for i, r in enumerate(references) if not r), None)
    if bare is not None:
        raise UsageError(
            "there is nothing to compare with: no reference",
            where=f"row {bare}",
            next="Give each row at least one reference, or leave it out",
        )


def _empty() -> UsageError:
    return UsageError(
        "there are no rows to evaluate", next="Check that the file or the split holds rows with references"
    )
