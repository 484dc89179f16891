"""What a database driver raises, in words that a person can act on: what, where, and what to do next.

Nothing here retries; that is the store's business. A password in a URL never reaches a message.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DBAPIError

from curation.errors import (
    ConflictError,
    IntegrityError,
    RemoteUnavailable,
    StorageFailed,
    TilthError,
    UsageError,
)


def is_busy(error: BaseException | None) -> bool:
    """Whether SQLite found the file locked by another connection."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    return code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


@contextmanager
def translated(where: str) -> Iterator[None]:
    """Turn what a driver raises into an error that a person can act on."""
    try:
        yield
    except DBAPIError as error:
        raise _in_words(error.orig or error, _hide_password(where)) from error
    except sqlite3.Error as error:
        raise _in_words(error, where) from error
    except Exception as error:
        if type(error).__module__.startswith("psycopg"):
            raise _in_words(error, _hide_password(where)) from error
        raise


def _hide_password(url: str) -> str:
    try:
        return make_url(url).render_as_string(hide_password=True)
    except ArgumentError:
        return url


def _in_words(error: BaseException, where: str) -> TilthError:
    if isinstance(error, sqlite3.Error):
        return _sqlite_in_words(error, where)
    return _postgres_in_words(error, where)


def _sqlite_in_words(error: sqlite3.Error, where: str) -> TilthError:
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return ConflictError(
            "another process kept the ledger locked",
            where=where,
            next="Wait for it, then run the command again",
        )
    if code in _SQLITE_STORAGE:
        return StorageFailed(
            _SQLITE_STORAGE[code],
            where=where,
            next="Nothing half-written is visible; mend the disk and run the command again",
        )
    if code == sqlite3.SQLITE_NOTADB:
        return UsageError(
            "this file is not a ledger", where=where, next="Name the ledger's own file, or run: tilth init"
        )
    if code == sqlite3.SQLITE_CORRUPT:
        return IntegrityError(
            f"the database file is damaged ({error})",
            where=where,
            next="Restore a backup: tilth restore FILE",
        )
    if code == sqlite3.SQLITE_CONSTRAINT:
        return ConflictError(
            f"two writers claimed the same row ({error})", where=where, next="Run the command again"
        )
    return IntegrityError(f"SQLite refused a statement ({error})", where=where, next="Run: tilth doctor")


_SQLITE_STORAGE = {
    sqlite3.SQLITE_FULL: "the disk is full",
    sqlite3.SQLITE_IOERR: "the disk reports an input/output error",
    sqlite3.SQLITE_READONLY: "the ledger's file or folder is read-only",
    sqlite3.SQLITE_CANTOPEN: "the ledger's file cannot be opened",
    sqlite3.SQLITE_PERM: "permission is denied",
}


def _postgres_in_words(error: BaseException, where: str) -> TilthError:
    state = getattr(error, "sqlstate", None) or ""
    if state == "55P03":
        return ConflictError(
            "another process kept the ledger locked",
            where=where,
            next="Wait for it, then run the command again",
        )
    if state in ("53100", "58030"):
        return StorageFailed(
            f"the database server's disk failed or is full ({error})",
            where=where,
            next="Free space there, then run the command again",
        )
    if state == "25006":
        return StorageFailed("the database server is read-only", where=where, next="Name the primary server")
    if state.startswith("23"):
        return ConflictError(
            f"two writers claimed the same row ({error})", where=where, next="Run the command again"
        )
    if state.startswith("22"):
        return UsageError(
            f"PostgreSQL cannot hold a value ({error})",
            where=where,
            next="Remove the character it names from the source",
        )
    if state in ("", "3D000") or state[:2] in ("08", "28", "57", "53"):
        return RemoteUnavailable(
            f"the database server did not answer ({str(error).strip()})",
            where=where,
            next="Check the server, the URL and the password, then run the command again",
        )
    return IntegrityError(f"PostgreSQL refused a statement ({error})", where=where, next="Run: tilth doctor")
