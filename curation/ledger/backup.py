"""Copies of a ledger, taken while others write. A backup is one SQLite file, whichever store it came from.

The file appears whole or not at all. It holds every text, erased ones excepted: guard it like the ledger.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import Engine

from curation.errors import IntegrityError, UsageError, storage_errors
from curation.ledger import schema
from curation.ledger.audit import Audits, pages
from curation.ledger.failures import translated
from curation.ledger.migrations import applied, is_ledger, migrate
from curation.ledger.rows import Audit
from curation.ledger.store import (
    Reader,
    Store,
    begin_write,
    commit,
    make_engine,
    parse_url,
    send,
    sqlite_path,
)

_BUSY = 60.0


class Backups(Store):
    """Taking a backup of the open ledger."""

    def backup(self, path: str | Path) -> Path:
        """Copy the ledger as it stands to one file and return its path; others may go on writing meanwhile.

        ``UsageError`` where the file exists; ``StorageFailed`` when the disk is full.
        """
        target = Path(path)
        if target.exists():
            raise UsageError("this file exists already", where=str(target), next="Name another file")
        with _appearing(target) as partial:
            if self._sqlite:
                self._copy_file(partial)
            else:
                self._copy_rows(partial)
        return target

    def _copy_file(self, partial: Path) -> None:
        with translated(str(partial)), self._engine.connect() as connection:
            target = sqlite3.connect(partial)
            try:
                connection.connection.driver_connection.backup(target, sleep=0.05)  # type: ignore[union-attr]
                target.execute("PRAGMA journal_mode=DELETE")  # one file, with nothing beside it
            finally:
                target.close()

    def _copy_rows(self, partial: Path) -> None:
        engine = make_engine(parse_url(f"sqlite:///{partial.resolve()}"), _BUSY)
        try:
            migrate(engine, _BUSY, where=str(partial))
            with self._read() as reader:
                _copy(reader, engine, str(partial))
        finally:
            engine.dispose()


def restore(path: str | Path, url: str, *, workspace: str | None = None) -> Audit:
    """Make a ledger at ``url`` from a backup, verified before it is visible; returns the verification.

    A backup of an older release is migrated on the way. ``UsageError`` where the file is no ledger, is of a newer
    release or of another workspace than the one named, or where ``url`` already holds a ledger; ``IntegrityError`` when
    the backup was damaged or changed.
    """
    source, wanted = Path(path), parse_url(url)
    if not source.is_file():
        raise UsageError(
            "there is no such backup", where=str(source), next="Name a file that tilth backup wrote"
        )
    target = sqlite_path(wanted)
    if target is not None and target.exists():
        raise UsageError(
            "there is a ledger already", where=str(target), next="Move it away first, or restore elsewhere"
        )
    beside = target if target is not None else source
    with _appearing(
        beside.with_name(beside.name + ".restored") if target is None else target, keep=target is not None
    ) as partial:
        shutil.copyfile(source, partial)
        engine = make_engine(parse_url(f"sqlite:///{partial.resolve()}"), _BUSY)
        try:
            report = _verified(engine, source)
            if workspace is not None:
                _belongs(engine, workspace, source)
            if target is None:
                _load(engine, make_engine(wanted, _BUSY), wanted.render_as_string(hide_password=True))
        finally:
            engine.dispose()
    return report


def _verified(engine: Engine, source: Path) -> Audit:
    with translated(str(source)):
        with engine.connect() as connection:
            if not is_ledger(connection):
                raise UsageError(
                    "this file is not a ledger", where=str(source), next="Name a file that tilth backup wrote"
                )
            damage = connection.exec_driver_sql("PRAGMA quick_check").scalar()
        migrate(engine, _BUSY, where=str(source))
    report = Audits(f"sqlite:///{source}", engine, "", "", _BUSY).audit()
    problems = report.problems if damage == "ok" else (str(damage), *report.problems)
    if problems:
        raise IntegrityError(
            f"the backup is damaged: {problems[0]}", where=str(source), next="Use an older backup"
        )
    return report


def _belongs(engine: Engine, workspace: str, source: Path) -> None:
    with engine.connect() as connection:
        name = Reader(connection).meta("workspace")
    if name != workspace:
        raise UsageError(
            f"this is a backup of the workspace {name!r}, and here is {workspace!r}",
            where=str(source),
            next=f'Set name = "{name}" under [workspace] in tilth.toml, or restore it elsewhere',
        )


def _load(engine: Engine, target: Engine, where: str) -> None:
    try:
        with translated(where):
            with target.connect() as connection:
                full = is_ledger(connection) and Reader(connection).one("SELECT 1 FROM meta") is not None
            if full:
                raise UsageError(
                    "there is a ledger already", where=where, next="Restore into an empty database"
                )
            migrate(target, _BUSY, where=where)
            with Store(where, engine, "", "", _BUSY)._read() as reader:
                _copy(reader, target, where)
    finally:
        target.dispose()


def _copy(reader: Reader, target: Engine, where: str) -> None:
    """Every row as it is into an empty ledger, in one transaction; numbers are ours, so nothing is renumbered."""
    with translated(where), target.connect() as connection:
        begin_write(connection, _BUSY)
        try:
            for table in schema.TABLES:
                if table.name == "migrations":
                    continue
                whole = (
                    []
                    if "seq" in table.c
                    else [[tuple(r) for r in reader.all(f'SELECT * FROM "{table.name}"')]]
                )
                for rows in pages(reader, table) if "seq" in table.c else whole:
                    if rows:
                        send(connection, table, rows)
            commit(connection, _BUSY)
        except BaseException:
            connection.exec_driver_sql("ROLLBACK")
            raise


@contextmanager
def _appearing(target: Path, keep: bool = True) -> Iterator[Path]:
    """A path to write to, which becomes ``target`` when all went well: write, fsync, rename, fsync the folder."""
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        with storage_errors(target):
            target.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        if keep:
            with storage_errors(target):
                _sync(partial)
                os.replace(partial, target)
                _sync(target.parent)
    finally:
        for leftover in (partial, Path(f"{partial}-journal"), Path(f"{partial}-wal"), Path(f"{partial}-shm")):
            leftover.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def schema_names(engine: Engine) -> list[str]:
    """The migrations that a store has seen."""
    with engine.connect() as connection:
        return applied(connection)
