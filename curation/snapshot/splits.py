"""Which side a record stands on: train or evaluation, once and for good.

Records that share a ``group`` or a ``cluster`` of near-duplicates stay on one side. A side is never changed:
a newcomer that would tie two sides together is held, and so is the weaker end of a tie that has come up
between old records. The outcome depends on the records and the seed, never on the order of the rows or on a
random generator.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import pyarrow as pa

from curation.errors import UsageError
from curation.records import SPLITS

Key = tuple[str, str]  # ("group", value) or ("cluster", value)
POOL = "pool"


@dataclass(frozen=True)
class Splits:
    """The side of every record that has one, and the reason of every record that is held."""

    assigned: dict[str, str] = field(default_factory=dict)
    held: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class _Row:
    record: str
    keys: tuple[Key, ...]
    label: str | None


def assign_splits(
    records: pa.Table,
    existing: Mapping[str, str],
    shares: Mapping[str, float],
    seed: int = 0,
) -> Splits:
    """Give every record of ``records`` (``record``, ``group``, ``cluster``, and ``label`` to stratify by) its split.

    ``existing`` says where records stand already and is never contradicted; hand in every record that has a
    split, so that its groups and clusters count. ``shares`` maps train, validation and test to shares that
    sum to 1. Without labels a component is placed by the hash of its smallest record id, so shares hold on
    average; with labels, each stratum is filled to its shares. No records give no splits.
    """
    return _assign(_rows(records), existing, _checked(shares, SPLITS), seed, strongest=SPLITS[::-1])


def reserve(
    records: pa.Table,
    shares: Mapping[str, float],
    seed: int = 0,
    *,
    stratify: bool = True,
    existing: Mapping[str, str] | None = None,
) -> Splits:
    """Choose evaluation rows: ``assigned`` maps each reserved record to ``dev`` or ``test``.

    ``shares`` gives both as shares of all records; the rest stays in the pool and is not in the answer.
    Groups and clusters stay together. ``existing`` holds earlier roles, and ``"pool"`` for records that
    functions or acquisition have seen already: neither ever changes, and a record tied to the pool is not
    reserved. ``stratify`` fills each label's shares where ``records`` has labels.
    """
    unknown = sorted(set(shares) - {"dev", "test"})
    if unknown:
        raise UsageError(f"{unknown} are no evaluation roles; there are dev and test", where="evaluation")
    whole = {**shares, POOL: 1 - sum(shares.values())}
    rows = _rows(records, stratify)
    checked = _checked(whole, (POOL, "dev", "test"))
    found = _assign(rows, existing or {}, checked, seed, strongest=("test", "dev", POOL))
    return Splits({r: role for r, role in found.assigned.items() if role != POOL}, found.held)


def _checked(shares: Mapping[str, float], known: Iterable[str]) -> dict[str, float]:
    unknown = sorted(set(shares) - set(known))
    if unknown or min(shares.values(), default=0) < 0 or abs(sum(shares.values()) - 1) > 1e-9:
        raise UsageError(
            f"the shares {dict(shares)} must be 0 or more, sum to 1, and name {', '.join(known)}",
            where="splits",
        )
    return {side: shares[side] for side in known if shares.get(side)}


def _rows(records: pa.Table, labels: bool = True) -> list[_Row]:
    """The rows in the order of their ids; several rows of one record are one, with all their keys."""

    def column(name: str) -> list[str | None]:
        return records[name].to_pylist() if name in records.column_names else [None] * records.num_rows

    keys: defaultdict[str, set[Key]] = defaultdict(set)
    label: dict[str, str | None] = {}
    wanted = column("label") if labels else [None] * records.num_rows
    ids = records["record"].to_pylist()
    for record, group, cluster, value in zip(ids, column("group"), column("cluster"), wanted, strict=True):
        keys[record].update(_keys(group, cluster))
        label[record] = min(filter(None, (label.get(record), value)), default=None)
    return [_Row(record, tuple(sorted(keys[record])), label[record]) for record in sorted(keys)]


def _keys(group: str | None, cluster: str | None) -> Iterator[Key]:
    if group is not None:
        yield "group", group
    if cluster is not None:
        yield "cluster", cluster


def _assign(
    rows: list[_Row],
    existing: Mapping[str, str],
    shares: dict[str, float],
    seed: int,
    strongest: tuple[str, ...],
) -> Splits:
    sides = _sides(rows, existing)
    found = Splits()
    newcomers = []
    for row in rows:
        mine = existing.get(row.record)
        near = _reach(row, sides)
        if mine is not None and _strongest(near | {mine}, strongest) == mine:
            found.assigned[row.record] = mine
        elif mine is not None:
            other = _strongest(near, strongest)
            found.held[row.record] = f"stands in {mine}, and a group or cluster of it now reaches {other}"
        elif len(near) > 1:
            found.held[row.record] = f"would tie {' and '.join(sorted(near))} together"
        else:
            newcomers.append(row)
    fresh = []
    for component in _components(newcomers, sides):
        near = {side for row in component for side in _reach(row, sides)}
        if len(near) > 1:
            reason = f"its group or cluster would tie {' and '.join(sorted(near))} together"
            found.held.update((row.record, reason) for row in component)
        elif near:
            found.assigned.update((row.record, next(iter(near))) for row in component)
        else:
            fresh.append(component)
    _place(fresh, rows, found, shares, seed)
    return found


def _strongest(sides: Iterable[str], order: tuple[str, ...]) -> str:
    """The side that wins a tie: evaluation before training, since a leak is worse than a row that waits."""
    return min(sides, key=lambda side: order.index(side) if side in order else len(order))


def _sides(rows: Iterable[_Row], existing: Mapping[str, str]) -> dict[Key, set[str]]:
    """The sides on which each group and cluster already has records."""
    sides: defaultdict[Key, set[str]] = defaultdict(set)
    for row in rows:
        if row.record in existing:
            for key in row.keys:
                sides[key].add(existing[row.record])
    return dict(sides)


def _reach(row: _Row, sides: Mapping[Key, set[str]]) -> set[str]:
    return {side for key in row.keys for side in sides.get(key, ())}


def _components(rows: list[_Row], sides: Mapping[Key, set[str]]) -> Iterator[list[_Row]]:
    """Newcomers tied to each other by groups and clusters that stand on no side yet; each in the order of ids.

    A key that has a side ties nobody: its side reaches each of its records by itself.
    """
    parent = list(range(len(rows)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    first: dict[Key, int] = {}
    for i, row in enumerate(rows):
        for key in row.keys:
            if key not in sides:
                a, b = root(first.setdefault(key, i)), root(i)
                parent[max(a, b)] = min(a, b)
    members: defaultdict[int, list[_Row]] = defaultdict(list)
    for i, row in enumerate(rows):
        members[root(i)].append(row)
    yield from members.values()


def _place(
    components: list[list[_Row]], rows: list[_Row], found: Splits, shares: dict[str, float], seed: int
) -> None:
    """Put components that are tied to no side where the shares want them."""
    filled: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for row in rows:
        if row.label is not None and row.record in found.assigned:
            filled[row.label][found.assigned[row.record]] += 1
    drawn = sorted((_draw(seed, part[0].record), part[0].record, part) for part in components)
    for share, _, part in drawn:
        labels = Counter(row.label for row in part if row.label is not None)
        if labels:
            stratum = min(labels, key=lambda label: (-labels[label], label))
            side = _neediest(filled[stratum], shares, len(part))
            filled[stratum][side] += len(part)
        else:
            side = _side_at(share, shares)
        found.assigned.update((row.record, side) for row in part)


def _draw(seed: int, record: str) -> float:
    """A number in [0, 1) that belongs to this seed and record, whatever else is there."""
    raw = hashlib.blake2b(f"{seed}\0{record}".encode(), digest_size=8, person=b"splits").digest()
    return (int.from_bytes(raw, "big") >> 11) / (1 << 53)


def _side_at(share: float, shares: Mapping[str, float]) -> str:
    end = 0.0
    for side, size in shares.items():
        end += size
        if share < end:
            return side
    return list(shares)[-1]


def _neediest(filled: Counter[str], shares: Mapping[str, float], size: int) -> str:
    """The side that is furthest below its share of the stratum once ``size`` more records are in it."""
    total = sum(filled.values()) + size
    return max(shares, key=lambda side: shares[side] * total - filled[side])
