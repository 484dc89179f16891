"""What a model's log-probabilities say about a row: arithmetic on arrays that whoever holds the model hands in.

Negative log-likelihoods (``nll``) are sums over the tokens of a completion, in nats; ``tokens`` are how many there
are. A completion of no tokens has no score: NaN.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike, NDArray

from curation import records
from curation.errors import UsageError

Floats = NDArray[np.float64]


def _arrays(*values: ArrayLike) -> list[Floats]:
    arrays = [np.asarray(value, np.float64) for value in values]
    if len({array.shape for array in arrays}) > 1:
        raise UsageError(
            f"scores of {' and '.join(str(len(np.atleast_1d(a))) for a in arrays)} rows do not match",
            next="Score the same rows each time",
        )
    return arrays


def perplexity(nll: ArrayLike, tokens: ArrayLike) -> Floats:
    """``exp(nll / tokens)``: among how many tokens the model hesitates, on average.

    >>> perplexity([4 * np.log(2)], [4]).tolist()
    [2.0]
    """
    total, count = _arrays(nll, tokens)
    return np.exp(np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0))


def perplexity_ratio(base_nll: ArrayLike, adapter_nll: ArrayLike, tokens: ArrayLike) -> Floats:
    """Perplexity under the adapter over that under its base: what training did to a row.

    Far under 1: learned. About 1 or more on a row that was trained on: it goes against the others, and a person should
    look whether it is wrong or only rare.
    """
    base, adapter, count = _arrays(base_nll, adapter_nll, tokens)
    return perplexity(adapter - base, count)


def ifd(answer_nll: ArrayLike, alone_nll: ArrayLike, tokens: ArrayLike) -> Floats:
    """Instruction-following difficulty: perplexity of the answer after its prompt over that of the answer alone (Li et
    al. 2024, arXiv 2308.12032, as the ratio of perplexities of arXiv 2402.00530).

    Near 0 the prompt gives the answer away; near 1 it helps little, which is hard and worth learning; at 1 or more the
    answer is likelier without its prompt, which is why the paper leaves these rows out.
    """
    given, alone, count = _arrays(answer_nll, alone_nll, tokens)
    return perplexity(given - alone, count)


def find_unhelped(view: pa.Table, difficulty: Sequence[float] | Floats, limit: float = 1.0) -> pa.Table:
    """Hold rows whose :func:`ifd` is ``limit`` or more: the answer does not follow from its prompt.

    ``difficulty`` has one value per row of the view; rows with NaN are not judged.
    """
    if len(difficulty) != view.num_rows:
        raise UsageError(f"{len(difficulty)} scores for {view.num_rows} rows", next="Give one score per row")
    keys = zip(view["record"].to_pylist(), view["label"].to_pylist(), difficulty, strict=True)
    reason = "the answer is no likelier after its prompt than without it"
    found = [
        records.decision(
            record, "hold", reason, label=label, evidence={"ifd": round(float(value), 4), "limit": limit}
        )
        for record, label, value in keys
        if value >= limit
    ]
    return records.table(found, records.DECISIONS)
