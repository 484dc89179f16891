"""Negative controls for the guards around labeling functions: without each of them, its fault gets through."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time

import pytest

from curation.voting import Limits, apply, apply_functions, find_functions, labeling_function
from tests.curation.test_voting import SPAM, module, stumbles, view

UNGUARDED = """
import curation.voting.worker as worker
worker.refuse = lambda event, arguments: None
worker._limit_memory = lambda extra: None
worker.Alarm = type("Alarm", (worker.Watch,), {"__init__": lambda self, *limits: None, "stop": lambda self: None})
worker.main()
"""

FAULTS = """
    import subprocess, time

    @labeling_function(classes=["spam"])
    def starts_a_program(row):
        subprocess.run(["true"])
        return "spam"

    @labeling_function(classes=["spam"])
    def takes_half_a_gigabyte(row):
        return "spam" if len(bytearray(512 * 1024**2)) else None

    @labeling_function(classes=["spam"])
    def loops_on_one_row(row):
        while row.prompt == "bad":
            time.sleep(0.01)
        return "spam"
"""


@pytest.mark.parametrize("guarded", [True, False])
def test_the_worker_without_its_guards_lets_programs_memory_and_loops_through(tmp_path, monkeypatch, guarded):
    if not guarded:
        monkeypatch.setattr(apply, "_START", UNGUARDED)
    functions = find_functions(module(tmp_path, FAULTS))
    limits = Limits(row_seconds=0.5, seconds=4, memory=128 * 1024**2)
    votes = apply_functions(functions, view("bad", "good"), limits=limits)
    columns = dict(zip(votes.functions, votes.matrix.T.tolist(), strict=True))
    if guarded:
        assert columns == {
            "starts_a_program": [-1, -1], "takes_half_a_gigabyte": [-1, -1], "loops_on_one_row": [-1, 0]
        }  # fmt: skip
    else:
        assert columns["starts_a_program"] == columns["takes_half_a_gigabyte"] == [0, 0]
        assert columns["loops_on_one_row"] == [-1, -1], "one row cost the function every other one"


def test_two_workers_vote_like_one_and_a_function_that_ends_its_worker_ends_no_other(tmp_path, monkeypatch):
    source = """
        import os

        @labeling_function(classes=["spam", "ham"])
        def first(row):
            return "spam" if "bad" in row.prompt else "ham"

        @labeling_function(classes=["spam"])
        def dies(row):
            os._exit(7)

        @labeling_function(classes=["ham"])
        def third(row):
            return "ham" if "good" in row.prompt else None

        @labeling_function(classes=["spam"])
        def raises(row):
            raise ValueError(row.prompt)

        @labeling_function(classes=["spam"])
        def last(row):
            return "spam"
    """
    monkeypatch.setattr(apply, "_MANY", 1)
    functions, rows = find_functions(module(tmp_path, source)), view("bad", "good")
    one, two = (apply_functions(functions, rows, limits=Limits(), processes=n) for n in (1, 2))
    assert two.matrix.tolist() == one.matrix.tolist() == [[0, -1, -1, -1, 0], [1, -1, 1, -1, 0]]
    assert two.failures == one.failures
    assert [f.function for f in two.failures] == ["dies", "raises"]


@pytest.mark.parametrize("guarded", [True, False])
def test_whoever_interrupts_ends_every_worker_and_without_the_word_they_go_on(tmp_path, monkeypatch, guarded):
    source = """
        import time
        from pathlib import Path

        def waits(row, name):
            Path(row.prompt, name + " began").touch()
            time.sleep(8)
            Path(row.prompt, name + " ended").touch()
            return "spam"

        @labeling_function(classes=["spam"])
        def one(row):
            return waits(row, "one")

        @labeling_function(classes=["spam"])
        def two(row):
            return waits(row, "two")
    """
    monkeypatch.setattr(apply, "_MANY", 1)
    if not guarded:
        monkeypatch.setattr(apply._Events, "until", _deaf(apply._Events.until))
    functions = find_functions(module(tmp_path, source))

    def interrupt() -> None:
        while len(list(tmp_path.glob("* began"))) < 2:
            time.sleep(0.05)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(
        apply.ThreadPoolExecutor, "map", _interrupted(apply.ThreadPoolExecutor.map, interrupt)
    )
    with pytest.raises(KeyboardInterrupt):
        apply_functions(functions, view(str(tmp_path)), limits=Limits(row_seconds=60), processes=2)
    assert len(list(tmp_path.glob("* ended"))) == (0 if guarded else 2)


def _deaf(until):
    """The same, without hearing that all is over."""

    def waits(self, seconds):
        self.stop = threading.Event()
        return until(self, seconds)

    return waits


def _interrupted(work, interrupt):
    """The same, with Ctrl-C while it is waited for."""

    def begun(self, *arguments):
        found = work(self, *arguments)
        interrupt()
        return found

    return begun


def test_without_the_net_a_function_that_raises_stops_the_run(monkeypatch):
    monkeypatch.setattr(apply._Caller, "__call__", lambda self, row: self.codes[self.call(row)])
    with pytest.raises(ValueError, match="no"):
        apply_functions([stumbles], view("x"))


def test_without_spelling_out_a_message_brings_its_escapes_to_the_terminal(monkeypatch):
    monkeypatch.setattr(apply, "printable", lambda text: text)
    (failure,) = apply_functions([stumbles], view("x")).failures
    assert "\x1b[31m" in failure.message


def test_without_a_sink_what_a_function_prints_is_on_the_screen(monkeypatch, capfd):
    @labeling_function(classes=[SPAM])
    def loud(row):
        print("\x1b[2J wiped")

    monkeypatch.setattr(apply.contextlib, "redirect_stdout", lambda sink: contextlib.nullcontext())
    apply_functions([loud], view("a"))
    assert "wiped" in capfd.readouterr().out


def test_what_a_function_writes_past_python_stays_off_the_screen_where_it_runs_apart(tmp_path, capfd):
    source = """
        import os

        @labeling_function(classes=["spam"])
        def raw(row):
            os.write(1, b"\\x1b[2J wiped")
            os.write(2, b"\\x1b]52;c;d2lwZWQ=\\x07")
            return "spam"
    """
    functions = find_functions(module(tmp_path, source))
    votes = apply_functions(functions, view("a"), limits=Limits())
    assert votes.matrix.tolist() == [[0]]
    told = capfd.readouterr()
    assert "\x1b" not in told.out + told.err
    os.write(1, b"\x1b control")
    assert "\x1b" in capfd.readouterr().out, "the check sees what is written past Python"
