"""How far people agree, beyond what luck would give: Krippendorff's alpha, Cohen's and Fleiss's kappa, with intervals.

Every coefficient takes ``(item, annotator, answer)`` triples and is 1 for perfect agreement, about 0 for luck. Arithmetic
only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import numpy as np
import numpy.typing as npt

from curation.calibration import Floats
from curation.consensus.answers import Answers, tally
from curation.errors import UsageError

Triple = tuple[str, str, str]
Level = Literal["nominal", "ordinal", "interval"]
Coefficient = Callable[[Sequence[Triple]], float | None]


def krippendorff_alpha(
    answers: Iterable[Triple] | Answers, level: Level = "nominal", order: Sequence[str] | None = None
) -> float | None:
    """Krippendorff's alpha; any number of annotators, any of them missing.

    ``1 - D_o / D_e`` with observed and expected disagreement of the coincidence matrix (Krippendorff, Computing
    Krippendorff's Alpha-Reliability, 2011). ``level`` says how far two answers are apart: ``nominal`` 0 or 1,
    ``ordinal`` by how many answers rank between them (``order`` lists the grades, lowest first; numbers sort by value),
    ``interval`` by the square of their difference as numbers. ``None`` where no item has two answers, since nothing can
    be said; 1.0 where only one value was ever used by everybody. Raises :class:`UsageError` for answers that are no
    numbers where numbers are needed.

    >>> krippendorff_alpha([("1", "a", "x"), ("1", "b", "x"), ("2", "a", "y"), ("2", "b", "y")])
    1.0
    """
    coded = answers if isinstance(answers, Answers) else Answers.of(answers)
    counts = coded.counts()
    paired = counts[counts.sum(1) > 1]
    if not len(paired):
        return None
    totals = paired.sum(0)
    if level == "nominal":  # a table of all pairs of labels would not fit where labels are texts
        seen = paired.sum(1)
        observed = float((((seen**2) - (paired**2).sum(1)) / (seen - 1)).sum())
        expected = float(totals.sum() ** 2 - (totals**2).sum()) / (totals.sum() - 1)
        return float(1.0 - observed / expected) if expected else 1.0
    ranks = _order(coded.labels, level, order)
    distance = _distances(totals[ranks], [coded.labels[i] for i in ranks], level)
    return _alpha(paired[:, ranks], distance)


def _alpha(paired: Floats, distance: Floats) -> float:
    """Alpha from ``(items, values)`` counts of items with two answers or more, and squared distances of values."""
    seen, totals = paired.sum(1), paired.sum(0)
    observed = float((((paired @ distance) * paired).sum(1) / (seen - 1)).sum())
    expected = float(totals @ distance @ totals) / (totals.sum() - 1)
    return float(1.0 - observed / expected) if expected else 1.0


def _order(labels: Sequence[str], level: Level, order: Sequence[str] | None) -> list[int]:
    place = {name: i for i, name in enumerate(labels)}
    if level == "ordinal" and order is not None:
        missing = sorted(set(labels) - set(order))
        if missing:
            raise UsageError(f"the grades do not hold {missing[0]!r}", next="List every grade, lowest first")
        return [place[name] for name in order if name in place]
    return sorted(range(len(labels)), key=lambda i: _number(labels[i]))


def _number(label: str) -> float:
    try:
        return float(label)
    except ValueError as error:
        raise UsageError(
            f"the answer {label!r} is no number", next="Answer in numbers, or list the grades in order"
        ) from error


def _distances(totals: Floats, labels: Sequence[str], level: Level) -> Floats:
    """Squared distances of values in order (Krippendorff 2011, section D)."""
    if level == "interval":
        value = np.array([_number(label) for label in labels])
        return np.asarray((value[:, None] - value) ** 2, np.float64)
    middle = (
        np.cumsum(totals) - totals / 2
    )  # a grade's mean rank; ranks between two grades lie between their middles
    return np.asarray((middle[:, None] - middle) ** 2, np.float64)


def fleiss_kappa(answers: Iterable[Triple] | Answers) -> float | None:
    """Fleiss's kappa (1971) for items that all have the same number of answers, two or more.

    ``(P - P_e) / (1 - P_e)``: mean share of agreeing pairs an item, against that of answers drawn by their overall
    shares. ``None`` without items; 1.0 where one value is all there is. Raises :class:`UsageError` for unequal numbers
    of answers: alpha is for those.
    """
    coded = answers if isinstance(answers, Answers) else Answers.of(answers)
    counts = coded.counts()
    if not len(counts):
        return None
    n = counts.sum(1)
    if n.min() != n.max() or n[0] < 2:
        raise UsageError(
            "Fleiss's kappa needs the same number of answers, two or more, on every item",
            next="Use Krippendorff's alpha",
        )
    share = counts.sum(0) / counts.sum()
    seen = float((((counts**2).sum(1) - n) / (n * (n - 1))).mean())
    luck = float((share**2).sum())
    return (seen - luck) / (1 - luck) if luck < 1 else 1.0


def cohen_kappa(one: Sequence[str], other: Sequence[str], weights: Level = "nominal") -> float | None:
    """Cohen's kappa (1960) of two annotators over the same items; with ``interval``, its quadratic weights (1968).

    ``ordinal`` weighs by the number of grades between two answers, which numbers in order decide. ``None`` without
    items; 1.0 where both only ever used one value.
    """
    if not len(one):
        return None
    labels = sorted(set(one) | set(other), key=None if weights == "nominal" else _number)
    place = {name: i for i, name in enumerate(labels)}
    a, b = (np.array([place[x] for x in side], np.int64) for side in (one, other))
    table = tally(a, b, None, len(labels), len(labels)) / len(a)
    rank = np.arange(len(labels), dtype=np.float64)
    apart = {
        "nominal": (rank[:, None] != rank).astype(np.float64),
        "ordinal": np.abs(rank[:, None] - rank),
        "interval": (rank[:, None] - rank) ** 2,
    }[weights]
    luck = float((np.outer(table.sum(1), table.sum(0)) * apart).sum())
    return 1.0 - float((table * apart).sum()) / luck if luck else 1.0


def pairwise_kappa(answers: Iterable[Triple]) -> dict[tuple[str, str], tuple[float, int]]:
    """Cohen's kappa of every two annotators and the number of items they share; pairs that share none are left out."""
    said: dict[str, dict[str, str]] = {}
    for item, annotator, answer in answers:
        said.setdefault(annotator, {})[item] = answer
    found = {}
    for a, b in combinations(sorted(said), 2):
        both = sorted(said[a].keys() & said[b].keys())
        kappa = cohen_kappa([said[a][i] for i in both], [said[b][i] for i in both])
        if kappa is not None:
            found[a, b] = (kappa, len(both))
    return found


@dataclass(frozen=True)
class Interval:
    """A coefficient, its 95% interval by resampling items, and how many items it rests on."""

    value: float | None
    low: float | None
    high: float | None
    items: int


def with_interval(
    answers: Iterable[Triple],
    coefficient: Coefficient = krippendorff_alpha,
    *,
    draws: int = 500,
    seed: int = 0,
) -> Interval:
    """The coefficient with its percentile bootstrap interval; whole items are drawn, since answers to one are not apart.

    Draws for which nothing can be said are left out; without any, the bounds are ``None``.
    """
    by_item: dict[str, list[Triple]] = {}
    for triple in answers:
        by_item.setdefault(triple[0], []).append(triple)
    groups = list(by_item.values())
    value = coefficient([t for group in groups for t in group])
    if value is None:
        return Interval(None, None, None, len(groups))
    rng = np.random.default_rng(seed)
    drawn: list[float] = []
    for _ in range(draws):
        picks = rng.integers(0, len(groups), len(groups))
        again = [(f"{place}", a, x) for place, g in enumerate(picks.tolist()) for _, a, x in groups[g]]
        one = coefficient(again)
        drawn += [] if one is None else [one]
    low, high = np.percentile(drawn, [2.5, 97.5]) if drawn else (None, None)
    return Interval(value, _plain(low), _plain(high), len(groups))


def _plain(bound: npt.ArrayLike | None) -> float | None:
    return None if bound is None else float(np.asarray(bound))


def by_slice(
    answers: Iterable[Triple], slice_of: Callable[[str], str], coefficient: Coefficient = krippendorff_alpha
) -> dict[str, Interval]:
    """The coefficient within each slice of the items (a question, a language, a source), in order of name."""
    parts: dict[str, list[Triple]] = {}
    for triple in answers:
        parts.setdefault(slice_of(triple[0]), []).append(triple)
    return {name: with_interval(parts[name], coefficient) for name in sorted(parts)}
