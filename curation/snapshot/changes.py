"""What changed between two snapshots, row by row, and why. Reads only what differs into memory."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa

from curation.snapshot import rows
from curation.snapshot.read import Where, scan

KINDS = ("added", "removed", "relabelled", "reweighted", "moved", "reworded")
UNEXPLAINED = "no decision names this record"
_COLUMNS = ("record", "messages", "prompt", "completion", "split", "weight")

Reasons: TypeAlias = Callable[[str], str | None] | Mapping[str, str] | pa.Table
"""Why a record changed: a function or a mapping from record id to words, or a table with ``record`` and ``reason``."""


@dataclass(frozen=True)
class Change:
    """One row that differs. ``kinds`` says how; ``before`` and ``after`` hold its fields, ``None`` where it is not.

    added, removed: the row is on one side only. relabelled: another completion. reweighted: another weight.
    moved: another split. reworded: other messages under the same record (a new scrubbing rule, say).
    """

    record: str
    kinds: tuple[str, ...]
    before: dict[str, Any] | None
    after: dict[str, Any] | None
    reason: str


@dataclass(frozen=True)
class Diff:
    """The changes in the order of their record ids, and how many rows are the same on both sides."""

    changes: tuple[Change, ...]
    same: int

    def of(self, kind: str) -> list[Change]:
        """The changes of one kind."""
        return [change for change in self.changes if kind in change.kinds]

    def counts(self) -> dict[str, int]:
        """How many changes there are of each kind; a row may have several."""
        found = Counter(kind for change in self.changes for kind in change.kinds)
        return {kind: found[kind] for kind in KINDS}

    def to_dict(self) -> dict[str, Any]:
        """Plain values for reports: one entry per change and kind, with what was there before and after."""
        changes = [entry for change in self.changes for entry in _entries(change)]
        return {"counts": self.counts(), "same": self.same, "changes": changes}


_COLUMN_OF = {"relabelled": "completion", "reweighted": "weight", "moved": "split", "reworded": "prompt"}


def _entries(change: Change) -> Iterator[dict[str, Any]]:
    for kind in change.kinds:
        column = _COLUMN_OF.get(kind, "completion")
        before, after = ((side or {}).get(column) for side in (change.before, change.after))
        yield {
            "change": kind,
            "record": change.record,
            "before": before,
            "after": after,
            "reason": change.reason,
        }


def diff(
    a: tuple[Where, str | None] | Where, b: tuple[Where, str | None] | Where, reasons: Reasons | None = None
) -> Diff:
    """Compare snapshot ``a`` (before) with ``b`` (after); each a ``(store, name)`` or a folder.

    Rows are matched by record id; several rows of one record are matched in the order of their completions. A
    record that ``reasons`` does not know is reported as unexplained, never with a guess.
    """
    before, after = _pair(a), _pair(b)
    old, new = _identities(*before), _identities(*after)
    gone, come = _only(old, new), _only(new, old)
    explain = _explainer(reasons)
    left, right = _rows_at(*before, gone), _rows_at(*after, come)
    changes = [
        change
        for record in sorted(left.keys() | right.keys())
        for change in _changes(record, left.get(record, []), right.get(record, []), explain)
    ]
    return Diff(tuple(changes), len(old) - len(gone))


def _pair(where: tuple[Where, str | None] | Where) -> tuple[Where, str | None]:
    return where if isinstance(where, tuple) else (where, None)


def _batches(where: Where, name: str | None) -> Iterator[pa.RecordBatch]:
    for table in scan(where, name, columns=_COLUMNS):
        yield from rows.steps(table)


def _identities(where: Where, name: str | None) -> np.ndarray:
    """A 64-bit key per row, over its record and its canonical form, in the order of the scan.

    Two different rows share one with a probability of n²/2⁶⁵: 3e-8 for a million rows.
    """
    keys = bytearray()
    for batch in _batches(where, name):
        for record, body in zip(batch["record"].to_pylist(), rows.canonical(batch), strict=True):
            keys += hashlib.blake2b(record.encode() + b"\0" + body, digest_size=8).digest()
    return np.frombuffer(bytes(keys), dtype="<u8")


def _only(mine: np.ndarray, other: np.ndarray) -> np.ndarray:
    """The positions of ``mine`` that have no partner in ``other``; of equal rows, each pairs off one."""
    order = np.argsort(mine, kind="stable")
    keys, first, counts = np.unique(mine[order], return_index=True, return_counts=True)
    theirs, their_counts = np.unique(other, return_counts=True)
    partners = np.zeros(len(keys), dtype=np.int64)
    _, here, there = np.intersect1d(keys, theirs, assume_unique=True, return_indices=True)
    partners[here] = their_counts[there]
    # How many equal rows come before each row: the first ones are those that have partners.
    rank = np.arange(len(mine)) - np.repeat(first, counts)
    return np.sort(order[rank >= np.repeat(partners, counts)])


def _rows_at(where: Where, name: str | None, positions: np.ndarray) -> dict[str, list[dict[str, Any]]]:
    """The rows at these positions of the scan, by record."""
    found: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
    start = 0
    for batch in _batches(where, name):
        stop = start + batch.num_rows
        mine = positions[np.searchsorted(positions, start) : np.searchsorted(positions, stop)] - start
        for row in batch.take(pa.array(mine)).to_pylist() if len(mine) else ():
            found[row["record"]].append(row)
        start = stop
    return dict(found)


def _changes(
    record: str, left: list[dict[str, Any]], right: list[dict[str, Any]], explain: Callable[[str], str]
) -> Iterator[Change]:
    left, right = _matched(left, right)
    for before, after in zip(left, right, strict=False):
        yield Change(record, _kinds(before, after), _fields(before), _fields(after), explain(record))
    for row in left[len(right) :]:
        yield Change(record, ("removed",), _fields(row), None, explain(record))
    for row in right[len(left) :]:
        yield Change(record, ("added",), None, _fields(row), explain(record))


def _matched(left: list[dict[str, Any]], right: list[dict[str, Any]]) -> tuple[list, list]:
    """Both lists with the rows of equal completion first, in step; then the others in the order of completions."""
    left, right = (sorted(side, key=lambda row: (row["completion"], row["weight"])) for side in (left, right))
    pairs = []
    for row in list(left):
        partner = next((other for other in right if other["completion"] == row["completion"]), None)
        if partner is not None:
            pairs.append((row, partner))
            left.remove(row)
            right.remove(partner)
    return [a for a, _ in pairs] + left, [b for _, b in pairs] + right


def _kinds(before: dict[str, Any], after: dict[str, Any]) -> tuple[str, ...]:
    named = (
        ("relabelled", "completion"),
        ("reweighted", "weight"),
        ("moved", "split"),
        ("reworded", "messages"),
    )
    return tuple(kind for kind, column in named if before[column] != after[column])


def _fields(row: dict[str, Any]) -> dict[str, Any]:
    return {key: row[key] for key in ("prompt", "completion", "split", "weight")}


def _explainer(reasons: Reasons | None) -> Callable[[str], str]:
    if isinstance(reasons, pa.Table):
        reasons = dict(zip(reasons["record"].to_pylist(), reasons["reason"].to_pylist(), strict=True))
    if reasons is None:
        reasons = {}
    lookup = reasons.get if isinstance(reasons, Mapping) else reasons
    return lambda record: lookup(record) or UNEXPLAINED
