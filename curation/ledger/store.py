"""One database, opened: connections, transactions, errors in words, and the audit chain as rows are written.

Every write transaction is alone: ``BEGIN IMMEDIATE`` on SQLite, an advisory lock on PostgreSQL. That is why a higher
``seq`` never commits before a lower one, why "covered up to N" is safe, and why ``seq`` can be counted here, without
gaps. Nothing here knows what the tables mean.
"""

from __future__ import annotations

import copy
import hashlib
import random
import sqlite3
import time
from collections.abc import Iterable, Iterator, Sequence, Sized
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import count, repeat
from operator import itemgetter
from pathlib import Path
from typing import Any, Self

import orjson
from sqlalchemy import Connection, Engine, Table, create_engine, event, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError

from curation.errors import MissingExtra, UsageError
from curation.ledger import schema
from curation.ledger.failures import is_busy, translated
from curation.ledger.journal import choose_journal, network_filesystem
from curation.records import digest

_PAGE_CACHE_KIB = 65_536
_BULK_CACHE_KIB = 524_288
CHUNK = 20_000  # rows per statement where a list may be long


def now() -> str:
    """The time as stored: ISO 8601, UTC, microseconds."""
    return datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def parse_url(url: str) -> URL:
    """The store's URL with its driver; ``UsageError`` for anything but SQLite and PostgreSQL."""
    try:
        parsed = make_url(url)
    except ArgumentError:
        raise UsageError("the ledger's URL cannot be read", where=url, next=_URL_HELP) from None
    if parsed.drivername in ("postgresql", "postgres"):
        parsed = parsed.set(drivername="postgresql+psycopg")
    if parsed.drivername not in ("sqlite", "sqlite+pysqlite", "postgresql+psycopg"):
        raise UsageError(f"no ledger can be kept in {parsed.drivername!r}", where=str(parsed), next=_URL_HELP)
    if parsed.get_backend_name() == "sqlite" and parsed.database in (None, "", ":memory:"):
        raise UsageError(
            "a ledger in memory would be lost", where=url, next="Name a file: sqlite:////path/ledger.db"
        )
    return parsed


_URL_HELP = "Use sqlite:////absolute/path/ledger.db or postgresql+psycopg://user@host/database"


def make_engine(url: URL, busy_seconds: float) -> Engine:
    """An engine whose transactions are begun and ended by hand, in plain SQL."""
    if url.get_backend_name() == "sqlite":
        options: dict[str, Any] = {
            "timeout": busy_seconds,
            "check_same_thread": False,
            "cached_statements": 256,
        }
    else:
        options = {"connect_timeout": max(2, int(busy_seconds))}
    try:
        # The connection used last is taken first: its page cache is warm.
        pool = {"pool_size": 8, "max_overflow": 24, "pool_use_lifo": True}
        engine = create_engine(url, isolation_level="AUTOCOMMIT", connect_args=options, **pool)
    except (NoSuchModuleError, ModuleNotFoundError):
        raise MissingExtra("postgres", "psycopg") from None
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", _set_pragmas)
    else:
        event.listen(engine, "connect", _set_session)
    return engine


def _set_pragmas(connection: sqlite3.Connection, _record: object) -> None:
    # The page size counts for a new file alone; 8 KiB keeps the indexes of random digests one level lower.
    for pragma in (
        "page_size=8192",
        "synchronous=FULL",
        "temp_store=MEMORY",
        f"cache_size=-{_PAGE_CACHE_KIB}",
    ):
        connection.execute(f"PRAGMA {pragma}")


def _set_session(connection: Any, _record: object) -> None:
    # Pages are short index scans: compiling them or starting workers for them takes longer than running them.
    for setting in ("jit = off", "max_parallel_workers_per_gather = 0"):
        connection.execute(f"SET {setting}")
    connection.commit()


class Reader:
    """One consistent view of the store, for as long as its ``with`` block lasts. Keep it short."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.sqlite = connection.dialect.name == "sqlite"
        # How a list is handed over as one parameter: no limit on its length, one prepared statement.
        self.among = "IN (SELECT value FROM json_each(:{0}))" if self.sqlite else "= ANY(:{0})"

    def all(self, statement: str, **values: Any) -> list[Any]:
        """Every row of the answer; a list among the values goes with ``{name}`` in the statement, see ``rows_in``."""
        return list(self.connection.execute(text(statement), values).fetchall())

    def one(self, statement: str, **values: Any) -> Any:
        """The first row, or ``None``."""
        return self.connection.execute(text(statement), values).first()

    def value(self, statement: str, **values: Any) -> Any:
        """The first column of the first row, or ``None``."""
        row = self.one(statement, **values)
        return None if row is None else row[0]

    def run(self, statement: str, **values: Any) -> None:
        """A statement without an answer; for bookkeeping tables, which the audit chain does not cover."""
        self.connection.execute(text(statement), values)

    def rows_in(self, statement: str, items: Sequence[Any], **values: Any) -> list[Any]:
        """``statement`` with ``{items}`` standing for "is one of ``items``", asked in chunks; rows in no order."""
        statement = statement.replace("{items}", self.among.format("items"))
        rows: list[Any] = []
        ordered = sorted(items)  # neighbours in the index follow each other: less than half the time
        for start in range(0, len(ordered), CHUNK):
            chunk = ordered[start : start + CHUNK]
            rows += self.all(
                statement, items=orjson.dumps(chunk).decode() if self.sqlite else chunk, **values
            )
        return rows

    def prefer_indexes(self) -> None:
        """Keep PostgreSQL from reading whole tables for a page: its guess is wrong while statistics are young."""
        if not self.sqlite:
            for plan in ("seqscan", "hashjoin", "mergejoin"):
                self.run(f"SET LOCAL enable_{plan} = off")

    def meta(self, key: str) -> Any:
        """What the ledger says of itself: its ``workspace``, ``id``, ``author_salt``, when it was ``created``; else ``None``."""
        return self.value("SELECT value FROM meta WHERE key = :key", key=key)

    def top(self, table: Table) -> int:
        """The highest ``seq`` of a table; 0 where it is empty."""
        return self.value(f'SELECT max(seq) FROM "{table.name}"') or 0


class Writer(Reader):
    """The one write transaction of the moment. Rows go in through :meth:`insert`, which numbers and hashes them."""

    def __init__(self, connection: Connection) -> None:
        super().__init__(connection)
        last = self.one("SELECT seq, chain FROM transactions ORDER BY seq DESC LIMIT 1")
        self.tx: int = last[0] + 1 if last else 1
        self.before: str = last[1] if last else ""
        self._next: dict[str, int] = {}
        self._hashes: dict[str, Any] = {}
        self._counts: dict[str, int] = {}

    def insert(self, table: Table, rows: Sequence[tuple[Any, ...]]) -> int:
        """Add rows (all columns after ``seq`` and ``tx``, in order) and return the ``seq`` of the first."""
        return self.insert_columns(table, *zip(*rows, strict=True)) if rows else 0

    def insert_columns(self, table: Table, *columns: Iterable[Any]) -> int:
        """The same by column, which is quicker for many rows. Columns without a length, as a value that is repeated, give as
        many as the others hold; others that differ in length raise ``ValueError``, since rows would be lost.
        """
        if len(sizes := {len(column) for column in columns if isinstance(column, Sized)}) > 1:
            raise ValueError(f"columns of {table.name} of {min(sizes)} and {max(sizes)} rows")
        first = self._next.get(table.name) or self.top(table) + 1
        full = list(zip(count(first), repeat(self.tx), *columns))
        if not full:
            return 0
        self._next[table.name] = first + len(full)
        self._hash(table, full)
        self._send(table, full)
        return first

    def _hash(self, table: Table, rows: list[tuple[Any, ...]]) -> None:
        hasher = self._hashes.setdefault(table.name, hashlib.blake2b(digest_size=16))
        hasher.update(chained_bytes(table, rows))
        self._counts[table.name] = self._counts.get(table.name, 0) + len(rows)

    def _send(self, table: Table, rows: list[tuple[Any, ...]]) -> None:
        send(self.connection, table, rows)

    def analyze(self, *tables: Table) -> None:
        """Tell PostgreSQL how large tables have become, so that it plans well before it finds out by itself."""
        if not self.sqlite:
            for table in tables:
                self.run(f'ANALYZE "{table.name}"')

    def finish(self, workspace: str, actor: str, command: str) -> None:
        """Write the transaction's own row and so lengthen the chain; a transaction without rows leaves no trace."""
        if not self._counts:
            return
        parts = [(name, self._counts[name], self._hashes[name].hexdigest()) for name in self._counts]
        row = (self.tx, workspace, actor, now(), command, content_digest(parts))
        send(self.connection, schema.transactions, [(*row, chain_digest(self.before, row))])


def chained_bytes(table: Table, rows: list[tuple[Any, ...]]) -> bytes:
    """The bytes of rows that the chain covers: they do not depend on how the rows were batched."""
    if table.name == "payloads":
        # seq, tx, digest: the body may be erased, the digest vouches for it
        rows = list(map(itemgetter(0, 1, 2), rows))
    elif table.name == "authors":
        rows = list(map(itemgetter(0, 1, 2, 4), rows))
    return orjson.dumps(rows)[1:-1] + b","


def content_digest(parts: list[tuple[str, int, str]]) -> str:
    """One digest for all rows of a transaction, from (table, count, digest of its rows)."""
    return digest(orjson.dumps(sorted(parts)))


def chain_digest(before: str, row: tuple[Any, ...]) -> str:
    """The link: the chain so far, and this transaction's row."""
    return digest(before.encode() + orjson.dumps(row))


def send(connection: Connection, table: Table, rows: list[tuple[Any, ...]]) -> None:
    """Rows of all columns into a table, the fastest way that each store has."""
    columns = ", ".join(f'"{c.name}"' for c in table.columns)
    raw: Any = connection.connection.driver_connection
    if connection.dialect.name == "sqlite":
        marks = ", ".join("?" * len(table.columns))
        raw.executemany(f'INSERT INTO "{table.name}" ({columns}) VALUES ({marks})', rows)
        return
    with (
        raw.cursor() as cursor,
        cursor.copy(f'COPY "{table.name}" ({columns}) FROM STDIN (FORMAT BINARY)') as copying,
    ):
        copying.set_types([_PG_TYPES[str(c.type)] for c in table.columns])
        for row in rows:
            copying.write_row(row)


_PG_TYPES = {"BIGINT": "int8", "TEXT": "text", "DOUBLE": "float8", "BLOB": "bytea"}


class Store:
    """A store that is open. Safe to use from several threads; each process opens its own."""

    def __init__(self, url: str, engine: Engine, workspace: str, actor: str, busy_seconds: float) -> None:
        self.url, self._engine = url, engine
        self.workspace, self.actor = workspace, actor
        self._busy = busy_seconds

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give every connection back. Closing twice is fine."""
        self._engine.dispose()

    def acting_as(self, actor: str) -> Self:
        """The same ledger in another person's name: what it writes is theirs. Connections are shared."""
        other = copy.copy(self)
        other.actor = actor
        return other

    @contextmanager
    def _read(self) -> Iterator[Reader]:
        begin = "BEGIN" if self._sqlite else "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"
        with translated(self.url), self._engine.connect() as connection:
            connection.exec_driver_sql(begin)
            try:
                yield Reader(connection)
            finally:
                _quietly(connection, "ROLLBACK")

    @contextmanager
    def _write(self, command: str, *, bulk: bool = False) -> Iterator[Writer]:
        """A write transaction: all of it or, on any exception, none of it."""
        with translated(self.url), self._engine.connect() as connection:
            if bulk and self._sqlite:
                connection.exec_driver_sql(f"PRAGMA cache_size=-{_BULK_CACHE_KIB}")
            begin_write(connection, self._busy)
            try:
                writer = Writer(connection)
                yield writer
                writer.finish(self.workspace, self.actor, command)
                commit(connection, self._busy)
            except BaseException:
                _quietly(connection, "ROLLBACK")
                raise

    @property
    def _sqlite(self) -> bool:
        return self._engine.dialect.name == "sqlite"

    def journal_mode(self) -> str:
        """How commits are made safe: ``delete`` or ``wal`` on SQLite, ``server`` on PostgreSQL."""
        if not self._sqlite:
            return "server"
        with translated(self.url), self._engine.connect() as connection:
            return str(connection.exec_driver_sql("PRAGMA journal_mode").scalar())


def begin_write(connection: Connection, busy_seconds: float) -> None:
    """Wait for the one write lock, at most ``busy_seconds``; ``ConflictError`` when somebody keeps it longer."""
    if connection.dialect.name == "sqlite":
        _patiently(connection, "BEGIN IMMEDIATE", busy_seconds)
        return
    connection.exec_driver_sql("BEGIN")
    connection.exec_driver_sql(f"SET LOCAL lock_timeout = '{max(1, int(busy_seconds * 1000))}ms'")
    # One key per schema, so that two ledgers in one database do not wait for each other.
    connection.exec_driver_sql("SELECT pg_advisory_xact_lock(1953066100, hashtext(current_schema()))")


def commit(connection: Connection, busy_seconds: float) -> None:
    """Commit; a reader in the way (SQLite) is waited for, since the transaction stays open meanwhile."""
    _patiently(connection, "COMMIT", busy_seconds)


def _patiently(connection: Connection, statement: str, busy_seconds: float) -> None:
    """Run a statement that may find the file locked, again and again with jitter, until the time is up."""
    deadline = time.monotonic() + busy_seconds
    while True:
        try:
            connection.exec_driver_sql(statement)
            return
        except DBAPIError as error:
            if not is_busy(error.orig) or time.monotonic() >= deadline:
                raise
            time.sleep(random.uniform(0.001, 0.05))  # the jitter keeps waiters from meeting again and again


def _quietly(connection: Connection, statement: str) -> None:
    """End a transaction that may have ended already; the error that led here is the one to tell."""
    try:
        connection.exec_driver_sql(statement)
    except DBAPIError:
        connection.invalidate()


def sqlite_path(url: URL) -> Path | None:
    """The file of a SQLite URL; ``None`` for PostgreSQL."""
    return Path(str(url.database)) if url.get_backend_name() == "sqlite" else None


def set_journal(engine: Engine, path: Path, version: Sequence[int] | None = None) -> str:
    """Put a SQLite file into the journal mode that is safe here, and return it."""
    wanted = choose_journal(version or sqlite3.sqlite_version_info, network_filesystem(path))
    with engine.connect() as connection:
        current = str(connection.exec_driver_sql("PRAGMA journal_mode").scalar())
        if current == wanted:
            return current
        return str(connection.exec_driver_sql(f"PRAGMA journal_mode={wanted}").scalar())
