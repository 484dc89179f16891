"""The process in which labeling functions run apart: watched, short of memory, without network or children.

Started by ``curation.voting.apply`` with a folder that holds ``job.json``, and the number of a pipe. It answers one
JSON line when it is ready and one per finished function; the votes themselves go to ``<n>.votes``.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import Any

import pyarrow.feather as feather

from curation.errors import ConflictError
from curation.voting.apply import RowTimeout, Watch, _snorkel, rows_of, run_one
from curation.voting.functions import Function, find_functions

_FORBIDDEN = (
    "socket.",
    "subprocess.Popen",
    "os.fork",
    "os.forkpty",
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "pty.",
)


def main() -> None:
    """Run the job of the folder named on the command line, telling the pipe after each function."""
    folder, pipe = Path(sys.argv[1]), int(sys.argv[2])
    job = json.loads((folder / "job.json").read_text(encoding="utf-8"))
    rows = list(rows_of(feather.read_table(job["view"])))
    _snorkel()
    limits = job["limits"]
    _limit_memory(limits["memory"])
    sys.addaudithook(refuse)
    functions = _load(job["functions"])
    _tell(pipe, {})
    for number, function in enumerate(functions):
        watch = Alarm(limits["row_seconds"], time.monotonic() + limits["seconds"])
        column, failures = run_one(function, rows, job["classes"], watch)
        watch.stop()
        column.tofile(folder / f"{number}.votes")
        _tell(pipe, asdict(failures))


def refuse(event: str, _: Any) -> None:
    """Audit hook: a labeling function neither talks to the network nor starts processes."""
    if event.startswith(_FORBIDDEN):
        raise PermissionError(f"a labeling function may not use {event}")


class Alarm(Watch):
    """Interrupts a row after ``row_seconds``, and every row once ``deadline`` (monotonic seconds) has
    passed.
    """

    def __init__(self, row_seconds: float, deadline: float) -> None:
        self.row_seconds, self.deadline = row_seconds, deadline
        self.since: float | None = None
        signal.signal(signal.SIGALRM, self._tick)
        signal.setitimer(signal.ITIMER_REAL, row_seconds / 4, row_seconds / 4)

    def begin(self) -> None:
        self.since = time.monotonic()
        if self.since > self.deadline:
            raise RowTimeout("the function's time is used up")

    def end(self) -> None:
        self.since = None

    def stop(self) -> None:
        """No more ticks."""
        signal.setitimer(signal.ITIMER_REAL, 0)

    def _tick(self, _signal: int, _frame: FrameType | None) -> None:
        if self.since is not None and time.monotonic() - self.since > self.row_seconds:
            self.since = None
            raise RowTimeout(f"the row took more than {self.row_seconds:g} s")


def _load(wanted: Sequence[dict[str, str]]) -> list[Function]:
    """The functions of the job, by path and name; an edit since they were found is a conflict."""
    found = {(path, f.name): f for path in {w["path"] for w in wanted} for f in find_functions(path)}
    functions = [found[w["path"], w["name"]] for w in wanted]
    for want, function in zip(wanted, functions, strict=True):
        if function.digest != want["digest"]:
            raise ConflictError(
                f"{function.name} was edited while it ran", where=want["path"], next="Run the command again"
            )
    return functions


def _tell(pipe: int, event: dict[str, Any]) -> None:
    os.write(pipe, json.dumps(event).encode() + b"\n")


def _limit_memory(extra: int) -> None:
    """Let the process grow by ``extra`` bytes and no more. Without /proc no size is known, and no limit is
    set.
    """
    statm = Path("/proc/self/statm")
    if not statm.exists():
        return
    size = int(statm.read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + extra, resource.getrlimit(resource.RLIMIT_AS)[1]))
