"""From encoded rows to updates and to tensors: which rows share an update, and how they are laid out for the model.

Which rows an update holds is decided by seed and lengths alone, so that any update can be named by its number and a
training can go on where it stopped. How they are laid out (padded, or packed end to end) changes neither the rows nor
the loss: packed rows do not see each other. Nothing here runs a model.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch

from training.examples import IGNORED, Encoded
from training.rows import epoch_rows

WINDOW = 16
"""Where rows are grouped by length, they are sorted within this many updates: enough to save nearly all the padding."""


@dataclass(frozen=True)
class Batch:
    """What goes through the model at once, (lines, width) each.

    ``weights`` are per token. ``positions`` count from 0 within each row; they are there only where rows share a line,
    and tell the model where one row ends and the next begins. ``tokens`` counts what is not padding.
    """

    input_ids: torch.Tensor
    labels: torch.Tensor
    weights: torch.Tensor
    positions: torch.Tensor | None
    tokens: int

    def to(self, device: torch.device) -> Batch:
        """The same on another device."""
        places = None if self.positions is None else self.positions.to(device)
        ids, labels, weights = (t.to(device) for t in (self.input_ids, self.labels, self.weights))
        return Batch(ids, labels, weights, places, self.tokens)


def pad(rows: Sequence[Encoded], weights: Sequence[float], pad_token_id: int) -> Batch:
    """One row a line, padded on the right, where causal attention never looks from a real token."""
    return _lay([[i] for i in range(len(rows))], rows, weights, pad_token_id, packed=False)


def pack(rows: Sequence[Encoded], weights: Sequence[float], pad_token_id: int, width: int | None) -> Batch:
    """Rows end to end in lines of at most ``width`` tokens (or of the longest row), longest first; None: one line.

    First fit decreasing: at most 11/9 of the fewest lines possible (Johnson 1973).
    """
    lengths = [len(row.input_ids) for row in rows]
    lines = [list(range(len(rows)))] if width is None else fill(lengths, max(width, *lengths))
    return _lay(lines, rows, weights, pad_token_id, packed=True)


def fill(lengths: Sequence[int], width: int) -> list[list[int]]:
    """Bins of indices whose lengths sum to at most ``width``, by first fit decreasing.

    >>> fill([4, 8, 2, 6], 10)
    [[1, 2], [3, 0]]
    """
    bins: list[list[int]] = []
    room: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        at = next((b for b, left in enumerate(room) if left >= lengths[i]), len(bins))
        if at == len(bins):
            bins.append([])
            room.append(width)
        bins[at].append(i)
        room[at] -= lengths[i]
    return bins


def _lay(
    lines: Sequence[Sequence[int]],
    rows: Sequence[Encoded],
    weights: Sequence[float],
    pad_token_id: int,
    *,
    packed: bool,
) -> Batch:
    sizes = [sum(len(rows[i].input_ids) for i in line) for line in lines]
    shape = (len(lines), max(sizes))
    ids, labels = np.full(shape, pad_token_id), np.full(shape, IGNORED)
    scale, places = np.zeros(shape, dtype=np.float32), np.zeros(shape, dtype=np.int64)
    for at, line in enumerate(lines):
        start = 0
        for i in line:
            here = slice(start, start + len(rows[i].input_ids))
            ids[at, here], labels[at, here] = rows[i].input_ids, rows[i].labels
            labels[at, start] = IGNORED  # nothing comes before it within its own row
            scale[at, here], places[at, here] = weights[i], np.arange(here.stop - start)
            start = here.stop
    positions = torch.from_numpy(places) if packed else None
    whole = [torch.from_numpy(a) for a in (ids, labels, scale)]
    return Batch(whole[0], whole[1], whole[2], positions, sum(sizes))


# ---------------------------------------------------------------------------------------------- updates


@dataclass(frozen=True)
class Updates:
    """Which rows each update of a training holds, by its number from 0; the same seed gives the same updates."""

    lengths: tuple[int, ...]
    tasks: tuple[str, ...]
    batch: int
    seed: int
    temperature: float = 1.0
    mixture: tuple[tuple[str, float], ...] = ()
    grouped: bool = False

    @property
    def per_epoch(self) -> int:
        """Updates per epoch; the last may be smaller."""
        return math.ceil(len(self.lengths) / self.batch)

    def steps(self, epochs: float, max_steps: int | None) -> int:
        """How many updates a training makes."""
        return max_steps or max(1, math.ceil(round(epochs * self.per_epoch, 6)))

    def at(self, step: int) -> list[int]:
        """The rows of update ``step``, as indices, the shortest first."""
        epoch, place = divmod(step, self.per_epoch)
        return _epoch(self, epoch)[place]


@lru_cache(maxsize=2)
def _epoch(updates: Updates, epoch: int) -> list[list[int]]:
    rng = np.random.default_rng([updates.seed, epoch])
    order = epoch_rows(updates.tasks, updates.temperature, rng, dict(updates.mixture))
    if updates.grouped:
        return group_by_length(order.tolist(), updates.lengths, updates.batch, rng)
    return as_drawn(order.tolist(), updates.lengths, updates.batch)


def as_drawn(order: Sequence[int], lengths: Sequence[int], batch: int) -> list[list[int]]:
    """``order`` cut into groups of ``batch`` rows as they come, each group the shortest first.

    >>> as_drawn([3, 0, 2, 1], (5, 9, 7, 6), 2)
    [[0, 3], [2, 1]]
    """
    starts = range(0, len(order), batch)
    return [sorted(order[start : start + batch], key=lambda i: lengths[i]) for start in starts]


def group_by_length(
    order: Sequence[int], lengths: Sequence[int], batch: int, rng: np.random.Generator
) -> list[list[int]]:
    """``order`` cut into groups of ``batch`` rows of about the same length, the groups in random order.

    It saves padding and costs learning: an update then holds long rows or short ones, never both. Rows are sorted within
    windows of :data:`WINDOW` groups only, so that what meets in a group differs from epoch to epoch.
    """
    groups = []
    for start in range(0, len(order), batch * WINDOW):
        window = sorted(order[start : start + batch * WINDOW], key=lambda i: lengths[i])
        groups += [window[i : i + batch] for i in range(0, len(window), batch)]
    return [groups[i] for i in rng.permutation(len(groups))]
