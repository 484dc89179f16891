"""What goes wrong, in words: every error says what happened, where, and what to do next.

Each class carries the exit code of the command line, so that a script can tell a gate that refused from a disk that
is full. Nothing here logs, retries or swallows.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class TilthError(Exception):
    """An error that a person can act on: ``what`` happened, ``where``, and what to do ``next``."""

    exit_code = 1

    def __init__(self, what: str, *, where: str = "", next: str = "") -> None:
        self.what, self.where, self.next = what, where, next
        super().__init__(self.sentence())

    def sentence(self) -> str:
        """``where: what. next.`` with the empty parts left out."""
        head = f"{self.where}: {self.what}" if self.where else self.what
        return " ".join(part if part[-1] in ".!?" else f"{part}." for part in (head, self.next) if part)


class UsageError(TilthError):
    """The command, its arguments or the configuration are wrong (exit code 2)."""

    exit_code = 2


class MissingExtra(UsageError):
    """An optional package is not installed (exit code 2).

    >>> str(MissingExtra("pii", "presidio-analyzer"))
    "presidio-analyzer is not installed. Install it: pip install 'tilth[pii]'."
    """

    def __init__(self, extra: str, package: str) -> None:
        super().__init__(f"{package} is not installed", next=f"Install it: pip install 'tilth[{extra}]'")


class Quarantined(TilthError):
    """The work finished, but rows were set aside and ``--strict`` was asked for (exit code 3)."""

    exit_code = 3


class ConflictError(TilthError):
    """Somebody else wrote first, or holds the lock (exit code 4)."""

    exit_code = 4


class IntegrityError(TilthError):
    """Stored bytes are not the bytes that were stored (exit code 5)."""

    exit_code = 5


class GateRefused(TilthError):
    """A gate refused to let rows or weights pass (exit code 6)."""

    exit_code = 6


class RemoteUnavailable(TilthError):
    """A server that was asked for did not answer, or refused (exit code 7)."""

    exit_code = 7


class StorageFailed(TilthError):
    """The disk is full, read-only or failing; nothing half-written is visible (exit code 8)."""

    exit_code = 8


_STORAGE = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EROFS: "the file system is read-only",
    errno.EIO: "the disk reports an input/output error",
    errno.EMFILE: "too many files are open",
    errno.ENFILE: "too many files are open on this machine",
    errno.EACCES: "permission is denied",
    errno.EPERM: "the operation is not permitted",
}


@contextmanager
def storage_errors(path: str | Path, needed: int | None = None) -> Iterator[None]:
    """Turn an ``OSError`` of the disk at ``path`` into :class:`StorageFailed`; ``needed`` is in bytes.

    Errors that do not speak of storage (a missing file, say) pass through unchanged.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _STORAGE:
            raise
        size = f" ({needed:,} bytes needed)" if needed else ""
        raise StorageFailed(
            f"{_STORAGE[error.errno]}{size}",
            where=str(path),
            next="Nothing half-written is visible; free the space or mend the disk, then run the same command again",
        ) from error
