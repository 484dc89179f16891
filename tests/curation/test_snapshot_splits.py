"""Splits: one side for good, duplicates and groups together, whatever the order and however data grows."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curation import snapshot
from curation.artifacts import Store
from curation.errors import GateRefused, UsageError
from curation.records import EXAMPLES, digest, table
from curation.snapshot import POOL, Splits, assign_splits, reserve
from tests.curation.test_snapshot import FACTS, example

SHARES = {"train": 0.7, "validation": 0.1, "test": 0.2}
Row = tuple[str, str | None, str | None]


def rows(*given_: Row | str, labels: list[str] | None = None) -> pa.Table:
    """Records with group and cluster; a plain text is a record without either."""
    full = [(row, None, None) if isinstance(row, str) else row for row in given_]
    columns: dict[str, Any] = {
        name: [row[i] for row in full] for i, name in enumerate(("record", "group", "cluster"))
    }
    if labels is not None:
        columns["label"] = labels
    return pa.table({name: pa.array(values, pa.string()) for name, values in columns.items()})


def crossings(whole: pa.Table, assigned: dict[str, str]) -> list[str]:
    """Groups and clusters of which two assigned records stand on two sides."""
    sides: defaultdict[tuple[str, str], set[str]] = defaultdict(set)
    for row in whole.to_pylist():
        for key in ("group", "cluster"):
            if row[key] is not None and row["record"] in assigned:
                sides[key, row[key]].add(assigned[row["record"]])
    return sorted(f"{kind} {key}" for (kind, key), found in sides.items() if len(found) > 1)


def test_no_records_give_no_splits() -> None:
    assert assign_splits(rows(), {}, SHARES) == Splits({}, {})


def test_a_group_and_a_cluster_tie_records_together_also_in_a_chain() -> None:
    chain = rows(
        ("a", "g1", None), ("b", "g1", "c1"), ("c", None, "c1"), ("d", "g2", "c1"), ("e", "g2", None)
    )
    for seed in range(20):
        found = assign_splits(chain, {}, SHARES, seed)
        assert found.held == {}
        assert len(set(found.assigned.values())) == 1
    assert len({assign_splits(chain, {}, SHARES, seed).assigned["a"] for seed in range(20)}) > 1


def test_shares_hold_on_average_and_exactly_per_stratum_with_labels() -> None:
    ids = [digest(str(n)) for n in range(5_000)]
    by_hash = Counter(assign_splits(rows(*ids), {}, SHARES).assigned.values())
    assert by_hash["train"] == pytest.approx(3_500, abs=120)
    labels = ["rare" if n % 50 == 0 else "common" for n in range(5_000)]
    found = assign_splits(rows(*ids, labels=labels), {}, SHARES).assigned
    per = Counter((label, found[record]) for record, label in zip(ids, labels, strict=True))
    assert {side: per["rare", side] for side in SHARES} == {"train": 70, "validation": 10, "test": 20}
    assert {side: per["common", side] for side in SHARES} == {"train": 3430, "validation": 490, "test": 980}


def test_a_newcomer_joins_the_side_of_its_group() -> None:
    whole = rows(("old", "g", None), *((f"new{n}", "g", None) for n in range(20)))
    for side in SHARES:
        assert set(assign_splits(whole, {"old": side}, SHARES).assigned.values()) == {side}


def test_a_newcomer_that_would_tie_two_sides_is_held_and_the_others_are_not() -> None:
    whole = rows(
        ("a", "g", None), ("b", None, "c"), ("bridge", "g", "c"), ("near a", "g", None), ("near b", None, "c")
    )
    found = assign_splits(whole, {"a": "train", "b": "test"}, SHARES)
    assert found.assigned == {"a": "train", "b": "test", "near a": "train", "near b": "test"}
    assert found.held == {"bridge": "would tie test and train together"}


def test_a_chain_of_newcomers_between_two_sides_is_held_as_a_whole() -> None:
    whole = rows(("a", "g", None), ("b", "h", None), ("x", "g", "c"), ("y", "h", "c"), ("free", "g", None))
    found = assign_splits(whole, {"a": "train", "b": "test"}, SHARES)
    assert set(found.held) == {"x", "y"}
    assert found.assigned["free"] == "train"


def test_a_tie_that_comes_up_between_old_records_holds_the_training_row() -> None:
    whole = rows(("a", None, "c"), ("b", None, "c"), ("new", None, "c"))
    found = assign_splits(whole, {"a": "train", "b": "test"}, SHARES)
    assert found.assigned == {"b": "test"}
    assert set(found.held) == {"a", "new"}
    assert "stands in train" in found.held["a"]


@pytest.mark.parametrize(
    "shares", [{"train": 0.5}, {"train": 1.2, "test": -0.2}, {"train": 0.5, "dev": 0.5}, {}]
)
def test_shares_that_make_no_sense_are_refused(shares: dict[str, float]) -> None:
    with pytest.raises(UsageError, match="sum to 1"):
        assign_splits(rows("a"), {}, shares)


names = st.integers(0, 12).map(lambda n: f"k{n}")


@settings(max_examples=150, deadline=None)
@given(
    st.dictionaries(
        st.integers(0, 40).map(lambda n: f"r{n}"),
        st.tuples(st.none() | names, st.none() | names),
        max_size=25,
    ),
    st.dictionaries(st.integers(0, 40).map(lambda n: f"r{n}"), st.sampled_from(sorted(SHARES)), max_size=12),
    st.integers(0, 3),
    st.randoms(use_true_random=False),
)
def test_whatever_comes_nothing_crosses_moves_or_depends_on_order(
    records: dict[str, tuple[str | None, str | None]],
    existing: dict[str, str],
    seed: int,
    draw: random.Random,
) -> None:
    given_ = [(record, *keys) for record, keys in records.items()]
    whole = rows(*given_)
    found = assign_splits(whole, existing, SHARES, seed)
    assert crossings(whole, found.assigned) == []
    assert set(found.assigned) | set(found.held) == set(records)
    assert not set(found.assigned) & set(found.held)
    assert all(
        found.assigned.get(record, side) == side for record, side in existing.items() if record in records
    )
    draw.shuffle(given_)
    assert assign_splits(rows(*given_), existing, SHARES, seed) == found
    again = assign_splits(whole, {**existing, **found.assigned}, SHARES, seed)
    assert again.assigned == found.assigned, "a second pass over the same rows changes nothing"


# Twenty growing snapshots

Assign = Callable[[pa.Table, dict[str, str], int], Splits]


def _universe(draw: random.Random, step: int) -> list[Row]:
    """Ten newcomers: groups and clusters that reach back to earlier steps, and now and then a bridge between them."""
    made: list[Row] = []
    for n in range(10):
        group = f"g{draw.randint(0, 4 * step + 4)}" if draw.random() < 0.5 else None
        cluster = f"c{draw.randint(0, 3 * step + 3)}" if draw.random() < 0.5 else None
        made.append((digest(f"{step}-{n}"), group, cluster))
    return made


def _merged(whole: list[Row], draw: random.Random) -> list[Row]:
    """Two clusters found to be one, as happens when a newcomer is near to both."""
    clusters = sorted({cluster for _, _, cluster in whole if cluster})
    if len(clusters) < 2:
        return whole
    gone, kept = draw.sample(clusters, 2)
    return [(record, group, kept if cluster == gone else cluster) for record, group, cluster in whole]


def _grow(root: Path, assign: Assign, seed: int) -> tuple[int, int, int]:
    """Twenty snapshots, each of all records so far and child of the last: crossings, migrations, held at the end."""
    draw = random.Random(seed)
    store = Store(root)
    whole: list[Row] = []
    existing: dict[str, str] = {}
    parent: str | None = None
    crossed = moved = 0
    for step in range(20):
        whole = _merged(whole, draw) + _universe(draw, step)
        found = assign(rows(*whole), existing, seed)
        crossed += len(crossings(rows(*whole), found.assigned))
        moved += sum(found.assigned.get(record, side) != side for record, side in existing.items())
        existing |= found.assigned
        if not crossed and not moved:
            parent = _freeze(store, whole, found.assigned, parent)
    return crossed, moved, len(found.held)


def _freeze(store: Store, whole: list[Row], assigned: dict[str, str], parent: str | None) -> str:
    made = [
        example(n, record=record, group=group, cluster=cluster, split=assigned[record])
        for n, (record, group, cluster) in enumerate(whole)
        if record in assigned
    ]
    return snapshot.freeze([table(made, EXAMPLES)], store, facts={**FACTS, "parent": parent}).name


@pytest.mark.parametrize("seed", range(3))
def test_over_twenty_growing_snapshots_nothing_crosses_and_nothing_moves(tmp_path: Path, seed: int) -> None:
    crossed, moved, held = _grow(tmp_path, lambda t, e, s: assign_splits(t, e, SHARES, s), seed)
    assert (crossed, moved) == (0, 0)
    assert held > 0, "the planted bridges must have been met"
    assert len(snapshot.names(Store(tmp_path))) == 20


def test_splits_that_forget_would_move_records(tmp_path: Path) -> None:
    _, moved, _ = _grow(tmp_path, lambda t, e, s: assign_splits(t, {}, SHARES, s), 0)
    assert moved > 0


def test_splits_by_record_would_cross_and_freezing_refuses_them(tmp_path: Path) -> None:
    def by_record(whole: pa.Table, existing: dict[str, str], seed: int) -> Splits:
        return assign_splits(whole.select(["record"]), existing, SHARES, seed)

    crossed, moved, _ = _grow(tmp_path, by_record, 0)
    assert crossed > 0
    assert moved == 0
    torn = rows(("a", "g", None), ("b", "g", None), ("c", "g", None), ("d", "g", None), ("e", "g", None))
    with pytest.raises(GateRefused, match="group g stands in"):
        _freeze(
            Store(tmp_path / "x"),
            [tuple(r.values()) for r in torn.to_pylist()],
            by_record(torn, {}, 1).assigned,
            None,
        )


# Evaluation sets


def test_reserved_records_fill_their_shares_per_label_and_keep_groups_together() -> None:
    ids = [digest(str(n)) for n in range(1_000)]
    labels = [("a", "b")[n % 10 == 0] for n in range(1_000)]
    whole = rows(*ids, labels=labels)
    found = reserve(whole, {"dev": 0.05, "test": 0.1}, seed=4).assigned
    label = dict(zip(ids, labels, strict=True))
    per = Counter((label[record], role) for record, role in found.items())
    assert per == {("a", "dev"): 45, ("a", "test"): 90, ("b", "dev"): 5, ("b", "test"): 10}
    grouped = rows(*((record, f"g{n % 60}", None) for n, record in enumerate(ids)))
    roles = dict.fromkeys(ids, POOL) | reserve(grouped, {"dev": 0.05, "test": 0.1}).assigned
    assert crossings(grouped, roles) == []
    assert set(roles.values()) == {"dev", "test", POOL}


def test_reserved_roles_are_sticky_and_what_was_seen_is_never_reserved() -> None:
    ids = [digest(str(n)) for n in range(300)]
    shares = {"dev": 0.1, "test": 0.2}
    first = reserve(rows(*ids[:150]), shares, existing={}).assigned
    seen = {record: POOL for record in ids[:150] if record not in first}
    second = reserve(rows(*ids), shares, existing={**first, **seen})
    assert first.items() <= second.assigned.items()
    assert not set(second.assigned) & set(seen)
    tied = rows(("old", "g", None), *((record, "g", None) for record in ids))
    assert reserve(tied, shares, existing={"old": POOL}).assigned == {}
    with pytest.raises(UsageError, match="no evaluation roles"):
        reserve(tied, {"validation": 0.1})


def test_reserving_nothing_is_possible() -> None:
    assert reserve(rows("a", "b"), {"dev": 0.0, "test": 0.0}).assigned == {}
