"""Named migrations: each runs whole, in one transaction with its own name in ``migrations``, or not at all.

First expand (new tables and columns), a release later contract. A released migration is never edited: a change to the
schema is a new one at the end. An older program refuses a store that holds a migration it does not know.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, Engine, Table, inspect, text
from sqlalchemy.schema import CreateIndex, CreateTable

from curation.errors import UsageError
from curation.ledger import schema
from curation.ledger.store import begin_write, commit, now

Step = Callable[[Connection], None]


@dataclass(frozen=True)
class Migration:
    """A name that never changes, and the statements behind it."""

    name: str
    steps: tuple[Step, ...]


def _create(table: Table) -> Step:
    def step(connection: Connection) -> None:
        connection.execute(CreateTable(table))
        for index in sorted(table.indexes, key=lambda i: str(i.name)):
            connection.execute(CreateIndex(index))

    return step


MIGRATIONS: tuple[Migration, ...] = (
    Migration("0001-initial", tuple(_create(t) for t in schema.TABLES if t.name != "migrations")),
)


def is_ledger(connection: Connection) -> bool:
    """Whether this database holds a ledger at all."""
    return inspect(connection).has_table("migrations")


def applied(connection: Connection) -> list[str]:
    """The names of the migrations that this store has seen, oldest first; none where it is no ledger yet."""
    if not is_ledger(connection):
        return []
    return [row[0] for row in connection.execute(text("SELECT name FROM migrations ORDER BY position"))]


def refuse_newer(names: Sequence[str], known: Sequence[Migration], where: str) -> None:
    """``UsageError`` when the store has seen a migration that this program does not know."""
    unknown = [name for name in names if name not in {m.name for m in known}]
    if unknown:
        raise UsageError(
            f"this ledger was written by a newer tilth: it is at schema {names[-1]!r}, this program knows {known[-1].name!r}",
            where=where,
            next="Install the newer tilth: pip install --upgrade tilth",
        )


def migrate(
    engine: Engine, busy_seconds: float, *, where: str, known: Sequence[Migration] = MIGRATIONS
) -> list[str]:
    """Run what is missing, oldest first, and return the names that ran. Safe to run twice, and at once by several."""
    ran: list[str] = []
    for position, migration in enumerate(known):
        with engine.connect() as connection:
            refuse_newer(applied(connection), known, where)
            if migration.name not in applied(connection) and _apply(
                connection, migration, position, busy_seconds
            ):
                ran.append(migration.name)
    return ran


def _apply(connection: Connection, migration: Migration, position: int, busy_seconds: float) -> bool:
    begin_write(connection, busy_seconds)
    try:
        if migration.name in applied(connection):  # another process was faster
            connection.exec_driver_sql("ROLLBACK")
            return False
        if not is_ledger(connection):
            connection.execute(CreateTable(schema.migrations))
        for step in migration.steps:
            step(connection)
        values = {"name": migration.name, "position": position, "applied": now()}
        connection.execute(schema.migrations.insert(), values)
        commit(connection, busy_seconds)
    except BaseException:
        connection.exec_driver_sql("ROLLBACK")
        raise
    return True
