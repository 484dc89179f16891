"""How near a consensus comes to known answers: accuracy with its interval for classes, GLEU and token F1 for texts.

Known answers measure; they choose nothing and weigh nobody. Arithmetic only.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from curation.calibration import Floats
from curation.consensus.texts import words
from curation.text import ngrams, normalise

DRAWS = 2000
HELD = 4_000_000  # counts of one block of resamples: 32 MB
ORDER = 4  # the longest n-grams that GLEU counts


def gleu(one: Sequence[str], other: Sequence[str]) -> float:
    """GLEU of two texts in words (Wu et al. 2016, section 6): shared n-grams of 1 to 4 words over those of the longer.

    It is the smaller of precision and recall, so which text is the reference does not matter. 1.0 where both are empty.

    >>> gleu("the cat sat".split(), "the cat sat down".split())
    0.6
    """
    mine, right = (Counter(g for n in range(1, ORDER + 1) for g in ngrams(x, n)) for x in (one, other))
    most = max(mine.total(), right.total())
    return (mine & right).total() / most if most else 1.0


def token_f1(one: Sequence[str], other: Sequence[str]) -> float:
    """F1 of the bags of words (Rajpurkar et al. 2016); 1.0 where both are empty."""
    total = len(one) + len(other)
    return 2 * (Counter(one) & Counter(other)).total() / total if total else 1.0


def score_classes(found: Mapping[str, str], gold: Mapping[str, str]) -> dict[str, Any]:
    """Accuracy on the items of ``gold`` that have a consensus, with a 95% interval; no such item gives no figures."""
    return _scores(found, gold, {"accuracy": lambda said, right: float(said == right)})


def score_texts(found: Mapping[str, str], gold: Mapping[str, str]) -> dict[str, Any]:
    """Mean GLEU and token F1 to the known text, over words without case and punctuation, with 95% intervals."""
    return _scores(found, gold, {"gleu": _on_words(gleu), "token_f1": _on_words(token_f1)})


def _on_words(measure: Callable[[Sequence[str], Sequence[str]], float]) -> Callable[[str, str], float]:
    return lambda said, right: measure(words(normalise(said)), words(normalise(right)))


def _scores(
    found: Mapping[str, str], gold: Mapping[str, str], measures: Mapping[str, Callable[[str, str], float]]
) -> dict[str, Any]:
    known = [item for item in gold if item in found]
    told: dict[str, Any] = {"gold": len(known)}
    for name, measure in measures.items() if known else ():
        values = np.array([measure(found[item], gold[item]) for item in known])
        told[name] = {"value": round(float(values.mean()), 4), "ci95": _interval(values)}
    return told


def _interval(values: Floats) -> list[float]:
    """A 95% bootstrap interval of the mean: items are drawn again, the same each time, a few resamples at a time."""
    n, rng, means = len(values), np.random.default_rng(0), []
    share = np.full(n, 1 / n)
    step = max(1, HELD // n)
    for start in range(0, DRAWS, step):
        means.append(rng.multinomial(n, share, min(step, DRAWS - start)) @ values / n)
    return [round(float(x), 4) for x in np.percentile(np.concatenate(means), [2.5, 97.5])]
