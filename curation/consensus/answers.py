"""Who answered what on which item, as three columns of numbers: what every consensus is computed from.

A million answers fit in a few dozen megabytes. An annotator who answers an item twice is heard once, by the later answer.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from curation.calibration import Floats

Codes = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Answers:
    """``label[i]`` is what ``annotator[i]`` said of ``item[i]``: indices into ``labels``, ``annotators``, ``items``.

    The names stand in the order of first mention, except labels, which are sorted so that no order of rows matters.
    """

    item: Codes
    annotator: Codes
    label: Codes
    items: tuple[str, ...]
    annotators: tuple[str, ...]
    labels: tuple[str, ...]

    @classmethod
    def of(cls, triples: Iterable[tuple[str, str, str]], labels: Sequence[str] | None = None) -> Answers:
        """Answers from ``(item, annotator, label)`` triples; ``labels`` fixes the order of the classes.

        Nothing gives empty columns. Raises :class:`KeyError` for a label that ``labels`` lacks.
        """
        item, annotator, label = Names(), Names(), Names(labels or ())
        columns: tuple[list[int], list[int], list[int]] = ([], [], [])
        for i, a, value in triples:
            columns[0].append(item[i])
            columns[1].append(annotator[a])
            columns[2].append(label.known[value] if labels is not None else label[value])
        coded = [np.array(column, np.int64) for column in columns]
        return cls.coded(coded[0], coded[1], coded[2], item, annotator, label, labels is None)

    @classmethod
    def coded(
        cls,
        item: Codes,
        annotator: Codes,
        label: Codes,
        items: Names,
        annotators: Names,
        labels: Names,
        sort: bool = True,
    ) -> Answers:
        """Answers from columns that are numbers already; repeated ones are dropped, labels sorted where asked."""
        keep = _latest(item * max(1, len(annotators.known)) + annotator)
        names = list(labels.known)
        if sort:
            order = sorted(range(len(names)), key=names.__getitem__)
            place = np.empty(len(order), np.int64)
            place[order] = np.arange(len(order))
            label, names = place[label] if len(label) else label, [names[i] for i in order]
        return cls(
            item[keep],
            annotator[keep],
            label[keep],
            tuple(items.known),
            tuple(annotators.known),
            tuple(names),
        )

    def __len__(self) -> int:
        return len(self.item)

    def counts(self) -> Floats:
        """``(items, labels)``: how many annotators gave each answer."""
        return tally(self.item, self.label, None, len(self.items), len(self.labels))

    def only(self, chosen: npt.NDArray[Any]) -> Answers:
        """The answers that a mask or an index picks; the names stay, so codes keep their meaning."""
        return Answers(
            self.item[chosen],
            self.annotator[chosen],
            self.label[chosen],
            self.items,
            self.annotators,
            self.labels,
        )


class Names:
    """Numbers for names, given out as the names come."""

    def __init__(self, first: Iterable[str] = ()) -> None:
        self.known: dict[str, int] = {}
        for name in first:
            _ = self[name]

    def __getitem__(self, name: str) -> int:
        return self.known.setdefault(name, len(self.known))


def tally(rows: Codes, columns: Codes, weights: Floats | None, height: int, width: int) -> Floats:
    """``(height, width)`` sums of ``weights`` (1 each without) by row and column index."""
    flat = np.bincount(rows * width + columns, weights, minlength=height * width)
    return flat.astype(np.float64).reshape(height, width)


def _latest(key: Codes) -> Codes:
    """The positions of the last occurrence of every key, in order."""
    if not len(key):
        return key
    last = len(key) - 1 - np.unique(key[::-1], return_index=True)[1]
    return np.sort(last)
