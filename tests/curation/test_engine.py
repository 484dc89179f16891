"""Running a stage in processes: order, bounds, errors by batch, and nobody left behind."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from curation import engine
from curation.engine import run_batches
from curation.errors import GateRefused, TilthError, UsageError


def square(value: int) -> int:
    time.sleep(0.02 * (value % 3))  # later batches are ready first
    return value * value


def refuse_three(value: int) -> int:
    if value == 3:
        raise ValueError("three is not wanted")
    return value


def refuse_by_name(value: int) -> int:
    raise GateRefused("refused", where=f"row {value}" if value else "")


def die(value: int) -> int:
    os._exit(1)


def process_of(value: int) -> int:
    return os.getpid()


@pytest.mark.parametrize("processes", [1, 2])
def test_results_come_in_the_order_of_the_batches(processes):
    assert list(run_batches(square, range(10), processes=processes)) == [i * i for i in range(10)]


def test_no_batches_give_nothing():
    assert list(run_batches(square, [], processes=2)) == []


def test_one_process_is_this_one_and_two_are_others():
    assert set(run_batches(process_of, range(3))) == {os.getpid()}
    assert os.getpid() not in set(run_batches(process_of, range(3), processes=2))


@pytest.mark.parametrize("processes", [1, 2])
def test_an_error_comes_out_as_it_is_with_its_batch(processes):
    results = run_batches(refuse_three, range(9), processes=processes)
    with pytest.raises(ValueError, match="three is not wanted") as caught:
        list(results)
    assert caught.value.__notes__ == ["in batch 4"]


@pytest.mark.parametrize("processes", [1, 2])
def test_an_error_of_our_own_names_its_place_or_else_the_batch_and_keeps_its_exit_code(processes):
    with pytest.raises(GateRefused) as caught:
        list(run_batches(refuse_by_name, [7], processes=processes))
    assert str(caught.value) == "row 7: refused."
    assert caught.value.exit_code == 6
    with pytest.raises(GateRefused, match="batch 1: refused"):
        list(run_batches(refuse_by_name, [0], processes=processes))


def test_a_process_that_dies_is_an_error_and_no_hang():
    with pytest.raises(TilthError, match="worker process died"):
        list(run_batches(die, range(3), processes=2))
    assert multiprocessing.active_children() == []


def test_batches_are_drawn_only_as_results_are_taken():
    drawn = []

    def batches() -> Iterator[int]:
        for i in range(1000):
            drawn.append(i)
            yield i

    results = run_batches(square, batches(), processes=2)
    assert next(results) == 0
    assert len(drawn) <= 2 * engine.WAITING
    results.close()
    assert multiprocessing.active_children() == []


def test_a_window_without_bounds_would_fail_that_check(monkeypatch):
    monkeypatch.setattr(engine, "WAITING", 10**6)
    drawn = []
    results = run_batches(square, (drawn.append(i) or i for i in range(50)), processes=2)
    next(results)
    assert len(drawn) == 50
    results.close()


def test_no_processes_cannot_work():
    with pytest.raises(UsageError, match="0 processes"):
        run_batches(square, [1], processes=0)


def test_ctrl_c_ends_all_processes_and_no_traceback_comes_from_them(tmp_path: Path):
    script = tmp_path / "run.py"
    script.write_text(
        textwrap.dedent("""
        import multiprocessing, signal, sys, time
        # A shell without job control starts what runs in the background with Ctrl-C ignored.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        from curation.engine import run_batches
        from tests.curation.test_engine import square
        if __name__ == "__main__":
            try:
                for number, _ in enumerate(run_batches(square, iter(int, 1), processes=2)):
                    if number == 0:
                        print("running", flush=True)
            except KeyboardInterrupt:
                print("left", len(multiprocessing.active_children()), flush=True)
                sys.exit(130)
        """)
    )
    root = Path(__file__).resolve().parents[2]
    child = subprocess.Popen(
        [sys.executable, str(script)],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == "running\n"
        os.killpg(child.pid, signal.SIGINT)  # a terminal sends it to the whole group
        out, err = child.communicate(timeout=60)
    finally:
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGKILL)
    assert (child.returncode, out) == (130, "left 0\n")
    assert "Traceback" not in err


def count_to(limit: int) -> Iterator[int]:
    yield from range(limit)


def fail_after_two(kind: str) -> Iterator[int]:
    yield from (1, 2)
    if kind == "ours":
        raise GateRefused("refused", where="row 3")
    if kind == "dies":
        os._exit(1)
    raise ValueError("three is not wanted")


def endless(_: int) -> Iterator[int]:
    while True:
        yield os.getpid()


def test_items_made_ahead_come_in_order_from_another_process():
    assert list(engine.run_ahead(count_to, 5)) == [0, 1, 2, 3, 4]
    assert list(engine.run_ahead(count_to, 0)) == []


def test_an_error_ahead_comes_out_as_it_is_after_the_items_before_it():
    items = engine.run_ahead(fail_after_two, "theirs")
    assert [next(items), next(items)] == [1, 2]
    with pytest.raises(ValueError, match="three is not wanted"):
        next(items)
    with pytest.raises(GateRefused) as caught:
        list(engine.run_ahead(fail_after_two, "ours"))
    assert str(caught.value) == "row 3: refused."


def test_a_process_ahead_that_dies_is_an_error_and_no_hang():
    with pytest.raises(TilthError, match="reads ahead died"):
        list(engine.run_ahead(fail_after_two, "dies"))


def test_a_process_ahead_ends_when_nobody_listens_any_more():
    items = engine.run_ahead(endless, 0)
    other = next(items)
    assert other != os.getpid()
    items.close()
    assert multiprocessing.active_children() == []
