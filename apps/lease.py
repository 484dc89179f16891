"""One run at a time: who holds the right to make something, renewed while it is being made."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from curation.errors import ConflictError, TilthError

if TYPE_CHECKING:
    from curation.ledger import Ledger
    from curation.ledger.registry import Lease

HOLD_SECONDS = 30.0
"""How long a process may be silent before another takes its training over."""


class LedgerSink:
    """Where a training reports to: the ledger's events; and the lease that says whether it may still write."""

    def __init__(self, ledger: Ledger, lease: Lease) -> None:
        self.ledger, self.lease = ledger, lease

    def event(self, kind: str, subject: str, detail: Mapping[str, Any]) -> None:
        """Note it in the ledger."""
        self.ledger.event(kind, subject, detail)

    def holds(self) -> None:
        """Raise ``ConflictError`` where the lease was lost."""
        self.lease.renew()


@contextmanager
def held(
    ledger: Ledger, name: str, seconds: float = HOLD_SECONDS, *, patience: float | None = None
) -> Iterator[LedgerSink]:
    """The one right to make what ``name`` stands for, kept alive by a thread while the block works.

    A process that was killed stops renewing and is succeeded after ``seconds``; one that was stopped and woken finds its
    lease gone and publishes nothing. Waits that long for a silent holder, or ``patience`` seconds for one at work, then
    raises ``ConflictError`` naming one that is at work.
    """
    with ExitStack() as stack:
        lease = _awaited(stack, ledger, name, seconds, 1.2 * seconds if patience is None else patience)
        done = threading.Event()
        keeper = threading.Thread(target=_keep, args=(lease, done, seconds / 3), daemon=True)
        keeper.start()
        try:
            yield LedgerSink(ledger, lease)
        finally:
            done.set()
            keeper.join()


def _awaited(stack: ExitStack, ledger: Ledger, name: str, seconds: float, patience: float) -> Lease:
    until = time.monotonic() + patience
    while True:
        try:
            return stack.enter_context(ledger.lease(name, seconds))
        except ConflictError:
            if time.monotonic() > until:
                raise
            time.sleep(min(0.5, seconds / 10))


def _keep(lease: Lease, done: threading.Event, every: float) -> None:
    while not done.wait(every):
        try:
            lease.renew()
        except TilthError:
            return  # the block learns it from holds()
