"""The ledger as one class: opening it, and everything the other files here add to it.

One ledger holds one workspace. Opening runs the migrations that are missing and refuses a store of a newer release.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from sqlalchemy import Engine
from sqlalchemy.engine import URL

from curation.errors import UsageError, storage_errors
from curation.ledger import schema
from curation.ledger.asking import Asking
from curation.ledger.audit import Audits
from curation.ledger.backup import Backups, restore
from curation.ledger.decisions import Decisions
from curation.ledger.erasure import Erasures
from curation.ledger.failures import translated
from curation.ledger.ingest import Ingests
from curation.ledger.labels import Labels
from curation.ledger.migrations import MIGRATIONS, Migration, applied, is_ledger, migrate, refuse_newer
from curation.ledger.registry import Registry
from curation.ledger.review import Reviews
from curation.ledger.store import (
    Reader,
    begin_write,
    commit,
    make_engine,
    now,
    parse_url,
    set_journal,
    sqlite_path,
)
from curation.ledger.views import Views

__all__ = ["Ledger", "restore"]


class Ledger(Ingests, Views, Labels, Decisions, Asking, Reviews, Registry, Audits, Erasures, Backups):
    """A ledger that is open: ``with Ledger.open(url, actor="ana") as ledger: ...``.

    Threads may share it; each process opens its own. Every call is one transaction and is done when it returns.
    """

    @classmethod
    def create(cls, url: str, *, workspace: str, actor: str, busy_seconds: float = 30.0) -> Self:
        """Make a ledger (or finish one whose making was killed) and open it; one that is whole is simply opened."""
        return cls.open(url, workspace=workspace, actor=actor, create=True, busy_seconds=busy_seconds)

    @classmethod
    def open(
        cls,
        url: str,
        *,
        actor: str,
        workspace: str | None = None,
        create: bool = False,
        busy_seconds: float = 30.0,
        known: Sequence[Migration] = MIGRATIONS,
    ) -> Self:
        """Open a ledger: ``sqlite:////absolute/path`` or ``postgresql+psycopg://user@host/database``.

        ``busy_seconds`` is how long a call waits for another writer. ``workspace``, where given, must be the ledger's
        own. ``UsageError`` where there is no ledger, or one of a newer release or another workspace;
        ``StorageFailed``, ``RemoteUnavailable`` and ``ConflictError`` as the store behaves.
        """
        parsed = parse_url(url)
        where = parsed.render_as_string(hide_password=True)
        engine = make_engine(parsed, busy_seconds)
        try:
            with translated(where):
                _require(parsed, engine, create, known, where)
                migrate(engine, busy_seconds, where=where, known=known)
                name = _workspace(engine, workspace, create, busy_seconds, where)
        except BaseException:
            engine.dispose()
            raise
        return cls(url, engine, name, actor, busy_seconds)

    @property
    def version(self) -> str:
        """The name of the newest migration that the store has seen."""
        with self._engine.connect() as connection:
            return applied(connection)[-1]

    @property
    def id(self) -> str:
        """The ledger's own random id; it survives backup and restore."""
        with self._read() as reader:
            return str(reader.meta("id"))


def _require(url: URL, engine: Engine, create: bool, known: Sequence[Migration], where: str) -> None:
    """``UsageError`` unless there is a ledger that this program can read, or one may be made."""
    path = sqlite_path(url)
    if path is not None:
        _require_file(path, create)
    with engine.connect() as connection:
        refuse_newer(applied(connection), known, where)
        if not is_ledger(connection) and not create:
            raise UsageError("there is no ledger here", where=where, next="Make one: tilth init DIR")
    if path is not None:
        set_journal(engine, path)  # last: another program's database is left as it was


def _require_file(path: Path, create: bool) -> None:
    if path.exists():
        return
    if not create:
        raise UsageError("there is no ledger here", where=str(path), next="Make one: tilth init DIR")
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        # It will hold every text as it came in, so it is its owner's alone; SQLite's journal takes the same mode.
        os.close(os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))


def _workspace(engine: Engine, workspace: str | None, create: bool, busy_seconds: float, where: str) -> str:
    """The workspace of the ledger; written down first where it is new."""
    with engine.connect() as connection:
        held = Reader(connection).meta("workspace")
        if held is None:
            if not create or not workspace:
                raise UsageError(
                    "this ledger was never finished", where=where, next="Make it again: tilth init DIR"
                )
            held = _write_meta(engine, workspace, busy_seconds)
    if workspace is not None and workspace != held:
        raise UsageError(
            f"this ledger belongs to the workspace {held!r}, not {workspace!r}",
            where=where,
            next="Set [workspace] name back, or name another ledger",
        )
    return str(held)


def _write_meta(engine: Engine, workspace: str, busy_seconds: float) -> str:
    rows = {
        "workspace": workspace,
        "id": secrets.token_hex(16),
        "author_salt": secrets.token_hex(16),
        "created": now(),
    }
    with engine.connect() as connection:
        begin_write(connection, busy_seconds)
        held = Reader(connection).meta("workspace")
        if held is None:
            connection.execute(schema.meta.insert(), [{"key": k, "value": v} for k, v in rows.items()])
        commit(connection, busy_seconds)
    return str(held or workspace)
