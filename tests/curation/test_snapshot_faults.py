"""Killed, failing, full, powerless: a snapshot is all there or not there, and what was acknowledged stays."""

from __future__ import annotations

import errno
import os
import random
import shutil
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from curation import artifacts, snapshot
from curation.artifacts import MANIFEST, Store
from curation.errors import StorageFailed, TilthError
from curation.records import EXAMPLES, table
from tests.curation.faults import STORAGE_ERRORS, Fault, Forks, Outcome, lay_out, power_failures
from tests.curation.test_snapshot import FACTS, examples, frozen

FREEZE = "tests.curation.test_snapshot_faults:freeze"
FREEZE_CARELESSLY = "tests.curation.test_snapshot_faults:freeze_carelessly"
SECOND = 12  # rows of the snapshot that is being frozen when the fault comes


def freeze(root: str, spill_bytes: int = 1_500) -> str:
    """Freeze the second snapshot, through sorted runs on disk, and return its name."""
    store = Store(root)
    tables = (examples(4, start) for start in range(0, SECOND, 4))
    return snapshot.freeze(tables, store, facts=FACTS, spill_bytes=spill_bytes).name


class CarelessStore(Store):
    """A store that writes into place, manifest first: what the sweep must find wanting."""

    def _publish(self, kind: str, name: str, final: Path, text: bytes) -> None:
        folder = self._open_area().folder(kind, name)
        final.mkdir(parents=True, exist_ok=True)
        artifacts.write_synced(final / MANIFEST, text)
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                (final / path.relative_to(folder)).parent.mkdir(exist_ok=True)
                artifacts.write_synced(final / path.relative_to(folder), path)


def freeze_carelessly(root: str) -> str:
    """Freeze into a :class:`CarelessStore`."""
    return snapshot.freeze([examples(SECOND)], CarelessStore(root), facts=FACTS).name


MEMORY = Path("/dev/shm")  # a sync costs nothing there, and what a kill leaves is the same


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder in memory where there is one, else on disk."""
    if not os.access(MEMORY, os.W_OK):
        yield tmp_path_factory.mktemp("disk")
        return
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def forks() -> Iterator[Forks]:
    with Forks() as server:
        yield server


@pytest.fixture(scope="module")
def before(disk: Path) -> tuple[Path, str, str]:
    """A store with one acknowledged snapshot, its name, and the name of the one to come."""
    root = disk / "before"
    first = frozen(root, 4).name
    shutil.copytree(root, root.with_name("after"))
    return root, first, freeze(str(root.with_name("after")))


def wrong(root: Path, first: str, second: str, acknowledged: bool) -> list[str]:
    """What is wrong with a store after a fault: lost, half-visible, or unable to go on."""
    store = Store(root)
    found = set(snapshot.names(store))
    complaints = [f"{name[:8]} is lost" for name in {first, *({second} if acknowledged else ())} - found]
    complaints += [f"{name[:8]} is nobody's" for name in found - {first, second}]
    complaints += [f"{name[:8]} is half-visible: {error}" for name, error in _damaged(store, found)]
    try:
        again = freeze(str(root), spill_bytes=1 << 20)
        snapshot.verify(store, again)
    except TilthError as error:
        return [*complaints, f"the next freeze fails: {error}"]
    if again != second or list((root / ".staging").iterdir()):
        complaints.append("the next freeze leaves something behind")
    return complaints


def _damaged(store: Store, names: set[str]) -> Iterator[tuple[str, TilthError]]:
    for name in names:
        try:
            snapshot.verify(store, name)
        except TilthError as error:
            yield name, error


def run_on_copy(forks: Forks, before: Path, to: Path, fault: Fault, call: str = FREEZE) -> Outcome:
    """Run ``call`` under ``fault`` on a copy of the store at ``to``."""
    shutil.rmtree(to, ignore_errors=True)
    shutil.copytree(before, to)
    return forks.run(call, fault, root=str(to))


def test_killed_at_every_step_a_snapshot_is_all_there_or_not_there(
    forks: Forks, before: tuple[Path, str, str], disk: Path, record_property: Any
) -> None:
    root, first, second = before
    whole = run_on_copy(forks, root, disk / "store", Fault("none"))
    assert whole.value == second
    landed: Counter[str] = Counter()
    complaints = []
    for at in range(1, len(whole.ops) + 1):
        for do in ("kill", "torn") if whole.ops[at - 1]["op"] == "write" else ("kill",):
            outcome = run_on_copy(forks, root, disk / "store", Fault(do, at))
            assert outcome.status == "killed"
            landed[f"{do}: {outcome.where}"] += 1
            complaints += [f"{do} at {at}: {what}" for what in wrong(disk / "store", first, second, False)]
    record_property("landed", dict(landed))
    print(f"{sum(landed.values())} kills landed at: {dict(landed)}")
    assert complaints == []
    for op in ("write", "fsync", "rename", "mkdir"):
        assert any(op in where for where in landed), f"no kill landed at {op}"


def test_the_sweep_finds_a_store_that_writes_its_manifest_first(
    forks: Forks, before: tuple[Path, str, str], disk: Path
) -> None:
    root, first, second = before
    whole = run_on_copy(forks, root, disk / "store", Fault("none"), FREEZE_CARELESSLY)
    syncs = [i for i, op in enumerate(whole.ops, 1) if op["op"] == "fsync"]
    complaints = []
    for at in syncs[-4:]:
        run_on_copy(forks, root, disk / "store", Fault("kill", at), FREEZE_CARELESSLY)
        complaints += wrong(disk / "store", first, second, False)
    assert any("half-visible" in what for what in complaints)


def _random_kills(
    forks: Forks, before: tuple[Path, str, str], folder: Path, count: int, seed: int
) -> Counter[str]:
    root, first, second = before
    draw = random.Random(seed)
    landed: Counter[str] = Counter()
    patience = 1.0  # seconds that a whole run takes: the shortest seen, since a busy machine stretches some
    for number in range(-2, count):
        after = 0.0 if number < 0 else draw.uniform(1e-4, patience)
        start = time.perf_counter()
        outcome = run_on_copy(forks, root, folder / "store", Fault("none", after=after))
        if outcome.status == "ok":
            patience = min(patience, time.perf_counter() - start)
        if number >= 0:
            landed[outcome.where if outcome.status == "killed" else "after the end"] += 1
        assert wrong(folder / "store", first, second, outcome.status == "ok") == []
    print(f"seed {seed}: {count} random kills landed at: {dict(landed)}")
    return landed


def test_killed_at_twenty_random_moments_nothing_is_lost(
    forks: Forks, before: tuple[Path, str, str], disk: Path
) -> None:
    landed = _random_kills(forks, before, disk, 20, seed=0)
    assert sum(landed.values()) - landed["after the end"] > 0


@pytest.mark.slow
def test_killed_at_two_hundred_random_moments_nothing_is_lost(
    forks: Forks, before: tuple[Path, str, str], disk: Path
) -> None:
    landed = _random_kills(forks, before, disk, 200, seed=1)
    assert sum(landed.values()) - landed["after the end"] > 50


# Power loss


def _recorded(forks: Forks, root: Path) -> list[dict[str, Any]]:
    """The operations of a freeze into a store that did not exist, below the empty folder ``root``."""
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir()
    outcome = forks.run(FREEZE, Fault("record"), root=str(root / "deep/store"))
    assert outcome.status == "ok"
    shutil.rmtree(root / "deep")
    return outcome.ops


def _complaints(tree: dict[str, Any], acknowledged: bool, folder: Path, second: str) -> list[str]:
    """What is lost or half-visible in a tree that a power failure left."""
    shutil.rmtree(folder, ignore_errors=True)
    lay_out(tree, folder)
    store = Store(folder / "deep/store")
    found = set(snapshot.names(store))
    lost = ["what was acknowledged is lost"] if acknowledged and second not in found else []
    return lost + [f"{name}: {error}" for name, error in _damaged(store, found)]


def test_what_was_acknowledged_survives_a_power_failure_at_any_moment(
    forks: Forks, before: tuple[Path, str, str], disk: Path
) -> None:
    root = disk / "power"
    states = list(power_failures(root, _recorded(forks, root)))
    print(f"{len(states)} distinct states")
    assert len(states) > 100
    for tree, acknowledged in states:
        assert _complaints(tree, acknowledged, disk / "left", before[2]) == []


def test_every_single_sync_is_needed(forks: Forks, before: tuple[Path, str, str], disk: Path) -> None:
    root = disk / "power"
    ops = _recorded(forks, root)
    syncs = [i for i, op in enumerate(ops) if op["op"] == "fsync"]
    assert len(syncs) >= 10
    for i in syncs:
        states = power_failures(root, ops[:i] + ops[i + 1 :], acknowledged=True)
        complaints = [
            what for tree, _ in states for what in _complaints(tree, True, disk / "left", before[2])
        ]
        assert complaints, f"nothing is lost without the sync of {ops[i]['path']}"


# A disk that fails


def _failures(
    forks: Forks, before: tuple[Path, str, str], disk: Path, plan: list[tuple[int, int]]
) -> Counter[str]:
    """Fail operation ``at`` with error ``number`` for each of the plan; every end must be clean."""
    root, first, second = before
    ended: Counter[str] = Counter()
    for at, number in plan:
        outcome = run_on_copy(forks, root, disk / "store", Fault("fail", at, errno=number))
        assert outcome.hit
        clean = outcome.status == "ok" or (outcome.error, outcome.exit_code) == ("StorageFailed", 8)
        assert clean, (at, outcome.where, outcome.error, outcome.message)
        if outcome.status == "raised":
            assert str(disk / "store") in outcome.message
        assert wrong(disk / "store", first, second, outcome.status == "ok") == [], (at, outcome.where)
        ended[f"{errno.errorcode[number]} {outcome.error or 'ok'}"] += 1
    print(f"{len(plan)} failures ended {dict(ended)}")
    return ended


def _plan(forks: Forks, before: tuple[Path, str, str], disk: Path) -> list[list[tuple[int, int]]]:
    """For each operation of a freeze, the errors that it can meet."""
    whole = run_on_copy(forks, before[0], disk / "store", Fault("none"))
    return [
        [(at, number) for number, ops in sorted(STORAGE_ERRORS.items()) if op["op"] in ops]
        for at, op in enumerate(whole.ops, 1)
    ]


def test_whichever_operation_fails_the_error_is_clean_and_the_store_whole(
    forks: Forks, before: tuple[Path, str, str], disk: Path
) -> None:
    plan = [errors[at % len(errors)] for at, errors in enumerate(_plan(forks, before, disk))]
    ended = _failures(forks, before, disk, plan)
    assert {what.split()[0] for what in ended} == {errno.errorcode[number] for number in STORAGE_ERRORS}
    assert sum(count for what, count in ended.items() if "StorageFailed" in what) > len(plan) / 3


@pytest.mark.slow
def test_whichever_operation_meets_whichever_error_the_store_stays_whole(
    forks: Forks, before: tuple[Path, str, str], disk: Path
) -> None:
    _failures(forks, before, disk, [case for errors in _plan(forks, before, disk) for case in errors])


def test_a_freeze_that_fails_leaves_no_file_behind(
    forks: Forks, before: tuple[Path, str, str], disk: Path
) -> None:
    whole = run_on_copy(forks, before[0], disk / "store", Fault("none"))
    writes = [i for i, op in enumerate(whole.ops, 1) if op["op"] == "write"]
    for at in writes[:: max(1, len(writes) // 6)]:
        outcome = run_on_copy(forks, before[0], disk / "store", Fault("fail", at, errno=errno.ENOSPC))
        assert outcome.status == "raised"
        assert list((disk / "store/.staging").iterdir()) == []
        assert snapshot.names(Store(disk / "store")) == [before[1]]


def test_a_careless_store_would_be_caught_saying_ok_or_leaving_a_half(
    forks: Forks, before: tuple[Path, str, str], disk: Path
) -> None:
    root, first, second = before
    whole = run_on_copy(forks, root, disk / "store", Fault("none"), FREEZE_CARELESSLY)
    steps = [i for i, op in enumerate(whole.ops, 1) if op["op"] == "write"][-4:]
    complaints = []
    for at in steps:
        run_on_copy(forks, root, disk / "store", Fault("fail", at, errno=errno.ENOSPC), FREEZE_CARELESSLY)
        complaints += wrong(disk / "store", first, second, False)
    assert any("half-visible" in what for what in complaints)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real disk of eight megabytes."""
    folder = tmp_path / "small"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode != 0:
        pytest.skip("mounting a small disk needs root")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_on_a_full_disk_freezing_fails_cleanly_and_gives_the_space_back(small_disk: Path) -> None:
    store = Store(small_disk / "store")
    first = snapshot.freeze([examples(40)], store, facts=FACTS)
    free = shutil.disk_usage(small_disk).free
    draw = random.Random(0)
    large = examples(1).to_pylist()[0]
    rows = [
        {**large, "record": f"r{n}", "completion": draw.randbytes(1_000).hex(), "split": "train"}
        for n in range(12_000)
    ]
    tables = [table(rows[i : i + 2_000], EXAMPLES) for i in range(0, len(rows), 2_000)]
    for spill in (1 << 20, 1 << 30):  # full while sorting, and full while writing
        with pytest.raises(StorageFailed, match=r"the disk is full \([\d,]+ bytes needed\)"):
            snapshot.freeze(tables, store, facts=FACTS, spill_bytes=spill)
        assert abs(shutil.disk_usage(small_disk).free - free) < 100_000
        assert snapshot.names(store) == [first.name]
    snapshot.verify(store, first.name)
    snapshot.freeze([examples(41)], store, facts=FACTS)


# Several at once


def freeze_some(root: str, worker: int, count: int) -> list[str]:
    """Freeze ``count`` snapshots of the worker's own, and in between the one that all workers freeze."""
    store = Store(root)
    names = []
    for n in range(count):
        own = examples(4, start=1_000 * (worker + 1) + 4 * n)
        names.append(snapshot.freeze([own], store, facts=FACTS).name)
        shared = examples(4, start=4 * n, labels=[f"worker {worker}"])
        names.append(snapshot.freeze([shared], store, facts=FACTS).name)
    return names


def test_several_freezers_at_once_with_kills_lose_nothing(disk: Path) -> None:
    root = disk / "several"
    servers = [Forks() for _ in range(3)]
    call = "tests.curation.test_snapshot_faults:freeze_some"
    acknowledged: set[str] = set()
    draw = random.Random(3)
    try:
        for _ in range(2):
            for worker, server in enumerate(servers):
                fault = Fault("none", after=draw.uniform(0.05, 0.3)) if worker == 0 else Fault("none")
                server.send(call, fault, root=str(root), worker=worker, count=4)
            for server in servers:
                outcome = server.receive()
                assert outcome.status in ("ok", "killed")
                acknowledged |= set(outcome.value or ())
    finally:
        for server in servers:
            server.close()
    store = Store(root)
    found = set(snapshot.names(store))
    assert acknowledged <= found
    assert len(acknowledged) >= 12
    assert list(_damaged(store, found)) == []
    store.sweep()
    assert list((root / ".staging").iterdir()) == []
