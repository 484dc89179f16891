"""Several writers at once, some of them killed: nothing acknowledged is lost, nothing happens twice, nobody overwrites."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from curation.errors import ConflictError
from curation.ledger import Ledger, ReviewConflict, restore
from curation.ledger.review import Reviews
from curation.records import digest
from tests.curation.ledger_toys import drafted, row, take_in, view

ROOT = Path(__file__).resolve().parents[2]


class Workers:
    """Processes that do one job side by side; a killed one is replaced until the job is done."""

    def __init__(self, job: str, url: str, folder: Path, records: list[str]) -> None:
        self.job, self.url, self.folder = job, url, folder
        (folder / "records").write_text("\n".join(records))
        self.running: dict[str, subprocess.Popen[str]] = {}
        self.begun: dict[str, int] = {}
        self.killed = 0

    def start(self, name: str, wanted: int) -> None:
        arguments = [
            self.job,
            self.url,
            str(self._log(name)),
            name,
            str(wanted),
            str(self.folder / "records"),
        ]
        program = [sys.executable, "-m", "tests.curation.ledger_workers", *arguments]
        self.begun[name] = self.done(name)
        self.running[name] = subprocess.Popen(program, cwd=ROOT, stderr=subprocess.PIPE, text=True)

    def _log(self, name: str) -> Path:
        return self.folder / f"{name}.log"

    def done(self, name: str) -> int:
        return self._log(name).read_bytes().count(b"\n") if self._log(name).exists() else 0

    def acknowledged(self) -> list[dict[str, object]]:
        lines = [
            line for log in self.folder.glob("*.log") for line in log.read_text().splitlines(keepends=True)
        ]
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def run(self, count: int, each: int, kill_every: float, kills: int = 1_000_000) -> None:
        """``count`` workers, ``each`` acknowledgements of every one, and a SIGKILL now and then."""
        for number in range(count):
            self.start(f"w{number}", each)
        next_kill = time.monotonic() + kill_every
        while self.running:
            time.sleep(0.02)
            if self.killed < kills and time.monotonic() > next_kill and self._kill_one():
                next_kill = time.monotonic() + kill_every
            for name, process in list(self.running.items()):
                if process.poll() is not None:
                    self._ended(name, process, each)

    def _kill_one(self) -> bool:
        """Kill a worker that is in the middle of its work; one that only starts would be no test."""
        busy = [name for name in self.running if self.done(name) > self.begun[name]]
        if busy:
            self.running[random.choice(busy)].kill()
            self.killed += 1
        return bool(busy)

    def _ended(self, name: str, process: subprocess.Popen[str], each: int) -> None:
        error = process.stderr.read() if process.stderr else ""
        assert process.returncode in (0, -9), error
        del self.running[name]
        if self.done(name) < each:
            self.start(name, each - self.done(name))

    def stop(self) -> None:
        for process in self.running.values():
            process.kill()
            process.wait()


@contextmanager
def workers(job: str, url: str, folder: Path, records: list[str]) -> Iterator[Workers]:
    crew = Workers(job, url, folder, records)
    try:
        yield crew
    finally:
        crew.stop()


def check_reviews(ledger: Ledger, acknowledged: list[dict[str, object]]) -> None:
    """Every acknowledged decision is in the log exactly once, at the version it was told; versions have no gaps."""
    log = ledger.reviews()
    stored = Counter((entry.body, entry.record, entry.version) for entry in log)
    assert set(stored.values()) <= {1}
    lost = [a for a in acknowledged if stored[a["key"], a["record"], a["version"]] != 1]
    assert lost == []
    for record in {entry.record for entry in log}:
        versions = [entry.version for entry in log if entry.record == record]
        assert versions == list(range(1, len(versions) + 1))
    top = {entry.record: entry.body for entry in log}
    labels = ledger.labels(kinds=["curator"])
    assert dict(zip(labels["record"].to_pylist(), labels["body"].to_pylist(), strict=True)) == top
    assert ledger.audit().problems == ()


def reviewed_by_many(ledger: Ledger, folder: Path, each: int, kills: int = 1_000_000) -> dict[str, float]:
    """Eight curators at once, and what came of it."""
    rows = [row(str(n)) for n in range(12)]
    take_in(ledger, rows)
    with workers("review", ledger.url, folder, [r.id for r in rows]) as crew:
        crew.run(8, each, kill_every=2, kills=kills)
        acknowledged = crew.acknowledged()
        killed = crew.killed
    assert len(acknowledged) == 8 * each
    check_reviews(ledger, acknowledged)
    seconds = sorted(float(str(a["seconds"])) for a in acknowledged)
    return {"p50": seconds[len(seconds) // 2], "p99": seconds[int(len(seconds) * 0.99)], "killed": killed}


def test_no_decision_of_eight_curators_is_lost_when_some_are_killed(
    ledger: Ledger, store_kind: str, tmp_path: Path
) -> None:
    each = 100 if store_kind == "sqlite" else 40  # as many again in the long test
    figures = reviewed_by_many(ledger, tmp_path, each, kills=4)
    print(figures)
    assert figures["killed"] >= 1


@pytest.mark.slow
def test_no_decision_of_eight_curators_is_lost_in_a_long_session(ledger: Ledger, tmp_path: Path) -> None:
    print(reviewed_by_many(ledger, tmp_path, 500))


def test_the_check_for_lost_decisions_finds_one_that_was_deleted(sqlite_ledger: Ledger) -> None:
    """The negative control of the two tests above."""
    take_in(sqlite_ledger, [row("a")])
    acknowledged: list[dict[str, object]] = []
    for number in range(3):
        key = f"k{number}"
        sqlite_ledger.review(row("a").id, version=number, action="edit", body=key, key=key)
        acknowledged.append({"key": key, "record": row("a").id, "version": number + 1})
    check_reviews(sqlite_ledger, acknowledged)
    with sqlite_ledger._engine.connect() as connection:
        connection.exec_driver_sql("DELETE FROM reviews WHERE version = 2")
    with pytest.raises(AssertionError):
        check_reviews(sqlite_ledger, acknowledged)


# --- two people, one item -------------------------------------------------------------------------------------------
def race(ledgers: tuple[Ledger, Ledger], record: str, version: int) -> list[object]:
    """Both decide about the same version at the same moment; what each of them got."""
    outcomes: list[object] = [None, None]
    gate = threading.Barrier(2)

    def decide(side: int) -> None:
        gate.wait()
        try:
            body = f"text of {side} at {version}"
            outcomes[side] = ledgers[side].review(
                record, version=version, action="edit", body=body, key=f"{record}-{version}-{side}"
            )
        except ReviewConflict as lost:
            outcomes[side] = lost

    threads = [threading.Thread(target=decide, args=(side,)) for side in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return outcomes


def silent_overwrites(ledger: Ledger, ledgers: tuple[Ledger, Ledger], pairs: int) -> int:
    """Of ``pairs`` races, those without exactly one winner and one loser who was told everything."""
    wrong = 0
    for number in range(pairs):
        key = f"race-{number}-{ledger.records_seen()}"
        take_in(ledger, [row(key)], key)
        outcomes = race(ledgers, row(key).id, 0)
        losers = [o for o in outcomes if isinstance(o, ReviewConflict)]
        told = all(o.theirs.body and f"-{o.theirs.body}" in o.diff and "+text of" in o.diff for o in losers)
        wrong += not (len(losers) == 1 and told and None not in outcomes)
    return wrong


@pytest.mark.parametrize("pairs", [40, pytest.param(2000, marks=pytest.mark.slow)])
def test_of_two_who_edit_the_same_item_one_wins_and_the_other_sees_the_difference(
    ledger: Ledger, pairs: int
) -> None:
    with Ledger.open(ledger.url, actor="bea") as second:
        assert silent_overwrites(ledger, (ledger, second), pairs) == 0


def test_the_race_finds_silent_overwrites_once_the_comparison_is_gone(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The negative control: without compare-and-swap, both of a pair believe they have won."""
    monkeypatch.setattr(Reviews, "_check_version", lambda *_: None)
    with Ledger.open(ledger.url, actor="bea") as second:
        assert silent_overwrites(ledger, (ledger, second), 5) > 0


def test_without_the_comparison_the_unique_version_still_refuses_a_fork(ledger: Ledger) -> None:
    take_in(ledger, [row("a")])
    ledger.review(row("a").id, version=0, action="skip", key="k")
    with pytest.raises(ConflictError, match="claimed the same row"), ledger._write("forged") as writer:
        Reviews._log(ledger, writer, 1, row("a").id, 1, "reject", None, None, "", "another key")


# --- snapshots ------------------------------------------------------------------------------------------------------
def one_line(ledger: Ledger, folder: Path, each: int, kills: int) -> None:
    with workers("snapshots", ledger.url, folder, []) as crew:
        crew.run(8, each, kill_every=1, kills=kills)
        acknowledged = [str(a["name"]) for a in crew.acknowledged()]
    chain = ledger.snapshots()
    names = [s.name for s in chain]
    assert len(set(acknowledged)) == 8 * each
    assert set(acknowledged) <= set(names)
    assert len(set(names)) == len(names)
    assert [s.parent for s in chain] == ["", *names[:-1]]
    assert ledger.audit().problems == ()


def test_snapshots_of_eight_committers_are_one_line_without_forks(ledger: Ledger, tmp_path: Path) -> None:
    one_line(ledger, tmp_path, 5, kills=2)


@pytest.mark.slow
def test_four_hundred_snapshots_of_eight_committers_are_one_line_without_forks(
    ledger: Ledger, tmp_path: Path
) -> None:
    one_line(ledger, tmp_path, 50, kills=40)


# --- the same file, many times --------------------------------------------------------------------------------------
def test_the_same_file_taken_in_by_eight_at_once_is_one_set_of_records(ledger: Ledger) -> None:
    rows = [drafted(str(n)) for n in range(60)]
    added: list[int] = []

    def work() -> None:
        with Ledger.open(ledger.url, actor="bea") as own:
            ingest = own.begin_ingest("toys", "x.jsonl", digest("x"), format="jsonl")
            added.extend(
                own.add_rows(ingest, rows[start : start + 20]).accepted for start in range(0, 60, 20)
            )
            own.end_ingest(ingest)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(added) == 60
    assert Counter(r["prompt"] for r in view(ledger)) == Counter(f"question {n}" for n in range(60))
    for ingest in [i for i in ledger.ingests() if not i.undone]:
        ledger.undo_ingest(ingest.id)
    assert view(ledger) == []


# --- backups while others write -------------------------------------------------------------------------------------
def backed_up_under_load(ledger: Ledger, folder: Path, times: int, new_url: Callable[[], str]) -> None:
    """Back up and restore while four curators decide; a backup holds all that was acknowledged before it began."""
    rows = [row(str(n)) for n in range(12)]
    take_in(ledger, rows)
    with workers("review", ledger.url, folder, [r.id for r in rows]) as crew:
        for number in range(4):
            crew.start(f"w{number}", 1_000_000)
        for number in range(times):
            before = wait_for_more(crew)
            path = ledger.backup(folder / f"backup-{number}.db")
            restored = new_url()
            report = restore(path, restored)
            assert report.problems == ()
            with Ledger.open(restored, actor="bea") as copy:
                assert before <= {entry.body for entry in copy.reviews()}
                assert copy.head() == report.head
            assert ledger.audit(head=report.head).problems == ()
        assert all(process.poll() is None for process in crew.running.values())


def wait_for_more(crew: Workers) -> set[object]:
    """What is acknowledged, once that is more than it was."""
    start = len(crew.acknowledged())
    deadline = time.monotonic() + 120
    while len(crew.acknowledged()) <= start:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return {a["key"] for a in crew.acknowledged()}


def test_a_backup_taken_while_others_write_restores_to_a_valid_state(
    ledger: Ledger, tmp_path: Path, new_ledger_url: Callable[[], str]
) -> None:
    backed_up_under_load(ledger, tmp_path, 3, new_ledger_url)


@pytest.mark.slow
def test_fifty_backups_taken_while_others_write_restore_to_valid_states(
    ledger: Ledger, tmp_path: Path, new_ledger_url: Callable[[], str]
) -> None:
    backed_up_under_load(ledger, tmp_path, 50, new_ledger_url)
