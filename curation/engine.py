"""Where work runs: here, in several processes, or ahead in one. Results come in the order of the batches, whoever
was first.

A stage stays a pure function of a batch; this module knows nothing of tables or rules. It never holds more
than a few batches per process, and it leaves no process behind: not after an error, not after Ctrl-C.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any, TypeVar

from curation.collector import without_collector
from curation.errors import TilthError, UsageError

Batch = TypeVar("Batch")
Result = TypeVar("Result")

WAITING = 2  # batches per process that are handed out ahead of the one whose result is next


def cores() -> int:
    """The processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_batches(
    function: Callable[[Batch], Result], batches: Iterable[Batch], *, processes: int = 1
) -> Iterator[Result]:
    """``function`` of every batch, in order; no batches give nothing.

    With more than one process the function must be importable (a module's own, or a ``functools.partial`` of
    one, whose arguments are sent to each process once), and batches and results must pickle; each process is
    started afresh, so no open file or lock of this one leaks into it. Batches are drawn only as results are taken.
    An exception comes out as it is, with the number of its batch, counted from 1, unless it names a place itself; a
    process that dies is a :class:`TilthError`. Raises :class:`UsageError` where ``processes`` is not positive.
    """
    if processes < 1:
        raise UsageError(f"{processes} processes cannot work", next="Use 1 or more")
    return _here(function, batches) if processes == 1 else _in_processes(function, batches, processes)


def _here(function: Callable[[Batch], Result], batches: Iterable[Batch]) -> Iterator[Result]:
    for number, batch in enumerate(batches, 1):
        try:
            result = function(batch)
        except Exception as error:
            raise _named(error, number)
        yield result


def _in_processes(
    function: Callable[[Batch], Result], batches: Iterable[Batch], processes: int
) -> Iterator[Result]:
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(processes, mp_context=context, initializer=_begin, initargs=(function,))
    waiting: deque[tuple[int, Future[Result]]] = deque()
    try:
        for number, batch in enumerate(batches, 1):
            waiting.append((number, _submit(pool, batch, number)))
            if len(waiting) >= processes * WAITING:
                yield _result(*waiting.popleft())
        while waiting:
            yield _result(*waiting.popleft())
    finally:
        # What runs ends with its batch; what waits is dropped. Then the processes are gone.
        pool.shutdown(wait=True, cancel_futures=True)


def run_ahead(produce: Callable[..., Iterator[Result]], *arguments: Any) -> Iterator[Result]:
    """The items of ``produce(*arguments)``, made in a process of its own, one ahead of the one in use.

    ``produce`` must be importable, and arguments and items must pickle. An exception comes out as it is, after the
    items before it; a process that dies is a :class:`TilthError`. The process ends when the iterator is closed.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_produce, args=(theirs, produce, arguments), daemon=True)
    with _interrupts_held():  # the process inherits what is held
        process.start()
    theirs.close()  # so that the end of the process is the end of what can be received
    try:
        while (message := _received(ours)) is not None:
            item, error = message
            if error is not None:
                raise error
            yield item
    finally:
        ours.close()
        process.terminate()
        process.join()


def _produce(out: Connection, produce: Callable[..., Iterator[Any]], arguments: tuple[Any, ...]) -> None:
    """In the process that runs ahead: ``(item, None)`` per item, ``(None, error)`` on an exception, then ``None``."""
    _leave_interrupts()
    try:
        with without_collector():
            for item in produce(*arguments):
                out.send((item, None))
        out.send(None)
    except BrokenPipeError:
        return  # nobody listens any more
    except Exception as error:
        out.send((None, error))


def _received(ours: Connection) -> Any:
    try:
        return ours.recv()
    except EOFError:
        raise TilthError(
            "the process that reads ahead died", next="Most often memory ran out: free some, and run it again"
        ) from None


def _leave_interrupts() -> None:
    """Ctrl-C reaches every process of a terminal; only the one that started the others acts on it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


_function: Callable[[Any], Any] | None = None  # in a process that was started here: what it is for


def _begin(function: Callable[[Any], Any]) -> None:
    """A process of the pool: what every batch will be given to."""
    global _function
    _leave_interrupts()
    _function = function


def _work(batch: Any) -> Any:
    assert _function is not None, "the process was not begun"
    return _function(batch)


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Ctrl-C takes effect at the end of the block. Windows cannot hold it back, and goes on as it is."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _submit(pool: ProcessPoolExecutor, batch: Any, number: int) -> Future[Any]:
    try:
        with _interrupts_held():  # a process may be started here, and it inherits what is held
            return pool.submit(_work, batch)
    except BrokenProcessPool as error:
        raise _died(number) from error


def _result(number: int, future: Future[Result]) -> Result:
    try:
        return future.result()
    except BrokenProcessPool as error:
        raise _died(number) from error
    except Exception as error:
        raise _named(error, number)


def _died(number: int) -> TilthError:
    return TilthError(
        "a worker process died",
        where=f"batch {number}",
        next="Most often memory ran out: use fewer processes or smaller batches",
    )


def _named(error: Exception, number: int) -> Exception:
    """The same exception, saying which batch it comes from."""
    where = f"batch {number}"
    if isinstance(error, TilthError):
        error.where = error.where or where
        error.args = (error.sentence(),)
    else:
        error.add_note(f"in {where}")
    return error
