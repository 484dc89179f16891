"""Running labeling functions over a view: here, or in processes of their own with limits.

A function that fails on a row abstains there; the failure is counted and its first case kept in words, and
the other functions go on. The limits are for accidents of trusted code (a loop, a fork, a huge allocation),
not for attackers.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.feather as feather

from curation.errors import MissingExtra, UsageError
from curation.voting.functions import ABSTAIN, Function, Row, functions_for
from curation.voting.matrix import Failures, Votes

Column = tuple[np.ndarray, Failures]


@dataclass(frozen=True)
class Limits:
    """What one labeling function may use: ``row_seconds`` on a row, ``seconds`` in all, ``memory`` bytes
    beyond start.
    """

    row_seconds: float = 2.0
    seconds: float = 600.0
    memory: int = 2 * 1024**3


def apply_functions(
    functions: Sequence[Function],
    view: pa.Table,
    *,
    classes: Sequence[str] | None = None,
    limits: Limits | None = None,
    processes: int = 1,
) -> Votes:
    """Let every function vote on every row of ``view`` (:data:`curation.records.VIEW`; ``tags`` may stand
    beside).

    ``classes`` are those of the Question; without them, the ones the functions declare. With ``limits`` the
    functions run in other processes, in ``processes`` of them where the rows are many, without network and without
    children of their own: they must come from :func:`find_functions`. An empty view gives an empty matrix. Raises
    :class:`UsageError` for functions of other classes, :class:`MissingExtra` without Snorkel.
    """
    names = tuple(classes) if classes is not None else _declared(functions)
    functions_for(functions, names)
    if limits is None:
        rows = list(rows_of(view))
        columns = [run_one(function, rows, names) for function in functions]
    else:
        columns = _run_apart(functions, view, names, limits, processes)
    matrix = np.full((len(view), len(functions)), ABSTAIN, np.int16)
    for j, (column, _) in enumerate(columns):
        matrix[:, j] = column
    return Votes(
        matrix,
        names,
        tuple(f.name for f in functions),
        tuple(view["record"].to_pylist()),
        tuple(f.digest for f in functions),
        tuple(failures for _, failures in columns if failures),
    )


def rows_of(view: pa.Table) -> Iterator[Row]:
    """The rows of a view as labeling functions see them; columns that they do not know are left out."""
    names = [f.name for f in fields(Row) if f.name in view.column_names]
    for values in zip(*(view[name].to_pylist() for name in names), strict=True):
        yield Row(**{n: v for n, v in zip(names, values, strict=True) if v is not None})


class Watch:
    """Tells when a call has run for too long; this one, for calls in our own process, never does."""

    def begin(self) -> None:
        """A row begins."""

    def end(self) -> None:
        """The row is over."""


class RowTimeout(BaseException):
    """A row took too long. Not an ``Exception``, so that a function's own ``except Exception`` lets it
    through.
    """


def run_one(
    function: Function, rows: Sequence[Row], classes: Sequence[str], watch: Watch | None = None
) -> Column:
    """The votes of one function on all rows, through Snorkel's applier, and its failures. What it prints is
    dropped.
    """
    LabelingFunction, LFApplier = _snorkel()
    caller = _Caller(function, classes, watch or Watch())
    if not rows:
        return np.zeros(0, np.int16), Failures(function.name)
    applier = LFApplier([LabelingFunction(name=function.name, f=caller)])
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        column = applier.apply(rows, progress_bar=False)[:, 0]
    return column.astype(np.int16), Failures(function.name, caller.count, caller.record, caller.message)


class _Caller:
    """Class name to class number; an error or an undeclared answer abstains and is counted."""

    def __init__(self, function: Function, classes: Sequence[str], watch: Watch) -> None:
        self.call, self.watch = function.call, watch
        known = {c: i for i, c in enumerate(classes) if c in function.classes}
        self.codes: dict[Any, int] = {**known, None: ABSTAIN}
        self.count, self.record, self.message = 0, "", ""

    def __call__(self, row: Row) -> int:
        try:
            self.watch.begin()
            answer = self.call(row)
            self.watch.end()
            code = self.codes.get(answer)
        except (Exception, SystemExit, RowTimeout) as error:
            self.watch.end()
            return self._failed(row, f"{type(error).__name__}: {error}")
        if code is None:
            return self._failed(row, f"answered {answer!r}, which is none of its classes")
        return code

    def _failed(self, row: Row, message: str) -> int:
        self.count += 1
        if self.count == 1:
            self.record, self.message = row.record, printable(message)
        return ABSTAIN


def printable(text: str, longest: int = 300) -> str:
    """The text on one line, with control characters and terminal escapes spelled out."""
    clean = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
    return clean if len(clean) <= longest else clean[: longest - 1] + "…"


def _snorkel() -> tuple[Any, Any]:
    try:
        from snorkel.labeling import LabelingFunction, LFApplier
    except ImportError as error:
        raise MissingExtra("weak", "snorkel") from error
    return LabelingFunction, LFApplier


def _declared(functions: Sequence[Function]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(c for f in functions for c in f.classes))


# In a process of their own ----------------------------------------------------------------------------------

_START = "from curation.voting.worker import main; main()"
_START_SECONDS = 180.0  # importing Snorkel on a busy machine
_MANY = 10_000  # rows that make up for the start of a second worker
_LOOK = 0.2  # seconds between two looks at whether all is over


def _run_apart(
    functions: Sequence[Function], view: pa.Table, classes: Sequence[str], limits: Limits, processes: int
) -> list[Column]:
    """The functions dealt out to ``processes`` workers, or all to one where there are few rows to vote on.

    Each worker is waited for by a thread; whatever ends this call ends them all.
    """
    _snorkel()
    lanes = max(1, min(processes, len(functions))) if len(view) >= _MANY else 1
    stop = threading.Event()
    with tempfile.TemporaryDirectory(prefix="tilth-vote-") as name, ThreadPoolExecutor(lanes) as pool:
        source = Path(name) / "view.arrow"
        feather.write_feather(view, str(source), compression="uncompressed")
        work = partial(_lane, job=_Job(source, len(view), classes, limits, stop))
        try:
            found = list(pool.map(work, [functions[lane::lanes] for lane in range(lanes)]))
        finally:
            stop.set()
    return [found[i % lanes][i // lanes] for i in range(len(functions))]


@dataclass(frozen=True)
class _Job:
    """What all workers share: the view's file and its rows, the classes, the limits, and word that all is over."""

    view: Path
    rows: int
    classes: Sequence[str]
    limits: Limits
    stop: threading.Event


def _lane(functions: Sequence[Function], job: _Job) -> list[Column]:
    """One worker runs the functions in turn; when one kills it, that one has failed and a new worker takes
    the rest.
    """
    columns: list[Column] = []
    with tempfile.TemporaryDirectory(dir=job.view.parent) as name:
        while len(columns) < len(functions):
            columns += _one_worker(functions[len(columns) :], Path(name), job)
    return columns


def _one_worker(functions: Sequence[Function], folder: Path, job: _Job) -> list[Column]:
    """The columns of the functions that this worker finished, and of the one that ended it, if one did."""
    _write_job(functions, folder, job)
    columns: list[Column] = []
    with _worker(folder, job.stop) as events:
        for function in functions:
            if not columns and (problem := events.until(_START_SECONDS)):
                raise UsageError(f"the functions' process did not start: {problem}", next=_stderr(folder))
            problem = events.until(job.limits.seconds + 2 * job.limits.row_seconds)
            if problem:
                failed = Failures(
                    function.name, job.rows, "", printable(f"it {problem}, so it abstains everywhere")
                )
                return [*columns, (np.full(job.rows, ABSTAIN, np.int16), failed)]
            columns.append((np.fromfile(folder / f"{len(columns)}.votes", np.int16), Failures(**events.last)))
    return columns


def _write_job(functions: Sequence[Function], folder: Path, job: _Job) -> None:
    told = {
        "view": str(job.view),
        "functions": [{"path": str(f.path), "name": f.name, "digest": f.digest} for f in functions],
        "classes": list(job.classes),
        "limits": asdict(job.limits),
    }
    (folder / "job.json").write_text(json.dumps(told), encoding="utf-8")


class _Events:
    """JSON lines from the worker, each awaited with a deadline, and no longer once ``stop`` is set."""

    def __init__(self, pipe: int, process: subprocess.Popen[bytes], stop: threading.Event) -> None:
        self.pipe, self.process, self.stop, self.buffer = pipe, process, stop, b""
        self.last: dict[str, Any] = {}
        self.selector = selectors.DefaultSelector()
        self.selector.register(pipe, selectors.EVENT_READ)

    def until(self, seconds: float) -> str:
        """Wait for the next line and keep it in ``last``; returns what went wrong, or nothing."""
        deadline = time.monotonic() + seconds
        while b"\n" not in self.buffer:
            left = deadline - time.monotonic()
            if not self.selector.select(min(_LOOK, max(0.0, left))):
                if self.stop.is_set():
                    raise InterruptedError("voting was stopped")
                if left <= 0:
                    return f"ran for more than {seconds:.0f} s"
                continue
            chunk = os.read(self.pipe, 65536)
            if not chunk:
                return f"ended its process (exit status {self.process.wait()})"
            self.buffer += chunk
        line, _, self.buffer = self.buffer.partition(b"\n")
        self.last = json.loads(line)
        return ""


@contextlib.contextmanager
def _worker(folder: Path, stop: threading.Event) -> Iterator[_Events]:
    """A worker in a session of its own, ended with all its children when the block ends."""
    reading, writing = os.pipe()
    root = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH", "")]))
    with open(folder / "stderr", "wb") as errors:
        process = subprocess.Popen(
            [sys.executable, "-c", _START, str(folder), str(writing)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            pass_fds=[writing],
            start_new_session=True,
            env={**os.environ, "PYTHONPATH": path},
        )
    os.close(writing)
    try:
        yield _Events(reading, process, stop)
    finally:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        os.close(reading)


def _stderr(folder: Path) -> str:
    lines = (folder / "stderr").read_text("utf-8", "replace").strip().splitlines()
    return printable(lines[-1]) if lines else "It left no message"
