"""Opening a ledger: journals, migrations that are killed, stores of another release, errors in words."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable
from itertools import repeat
from pathlib import Path

import pytest
from sqlalchemy import Connection, text

from curation.errors import ConflictError, IntegrityError, RemoteUnavailable, StorageFailed, UsageError
from curation.ledger import Ledger, choose_journal, network_filesystem, schema, store
from curation.ledger import migrations as steps
from curation.ledger.migrations import MIGRATIONS, Migration
from tests.curation.ledger_toys import drafted, prompts, take_in

ROOT = Path(__file__).resolve().parents[2]

# SQLite's own list: the WAL-reset bug is fixed in 3.44.6, 3.50.7 and from 3.51.3 on.
JOURNALS = {
    (3, 7, 0): "delete",
    (3, 40, 1): "delete",
    (3, 44, 5): "delete",
    (3, 44, 6): "wal",
    (3, 45, 0): "delete",
    (3, 50, 6): "delete",
    (3, 50, 7): "wal",
    (3, 51, 0): "delete",
    (3, 51, 2): "delete",
    (3, 51, 3): "wal",
    (3, 52, 0): "wal",
    (4, 0, 0): "wal",
}
MOUNTS = """/dev/sda1 / ext4 rw 0 0
tmpfs /tmp tmpfs rw 0 0
fileserver:/home /mnt/team nfs4 rw,vers=4.2 0 0
//box/share /mnt/my\\040share cifs rw 0 0
/dev/sdb1 /mnt/team/local ext4 rw 0 0
me@host:/ /mnt/ssh fuse.sshfs rw 0 0
"""


@pytest.mark.parametrize(("version", "journal"), JOURNALS.items())
def test_wal_is_used_only_on_builds_without_the_reset_bug(version: tuple[int, ...], journal: str) -> None:
    assert choose_journal(version, network_fs=False) == journal


@pytest.mark.parametrize("version", JOURNALS)
def test_wal_is_never_used_on_a_network_file_system(version: tuple[int, ...]) -> None:
    assert choose_journal(version, network_fs=True) == "delete"


@pytest.mark.parametrize(
    ("path", "network"),
    [
        ("/home/ana/ledger.db", False),
        ("/mnt/team/ws/ledger.db", True),
        ("/mnt/team/local/ledger.db", False),
        ("/mnt/teams/ledger.db", False),
        ("/mnt/my share/ledger.db", True),
        ("/mnt/ssh/ledger.db", True),
    ],
)
def test_a_network_file_system_is_known_by_the_longest_mount_point(path: str, network: bool) -> None:
    assert network_filesystem(path, MOUNTS) is network


def test_without_a_table_of_mounts_the_safe_journal_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("curation.ledger.journal._read_mounts", lambda: None)
    assert network_filesystem("/anywhere") is True


@pytest.mark.parametrize(("version", "journal"), [((3, 40, 1), "delete"), ((3, 51, 3), "wal")])
def test_a_ledger_is_put_into_the_journal_mode_that_is_safe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: tuple[int, ...], journal: str
) -> None:
    monkeypatch.setattr(store, "network_filesystem", lambda path: False)
    monkeypatch.setattr(store.sqlite3, "sqlite_version_info", version)
    url = f"sqlite:///{tmp_path / 'ledger.db'}"
    with Ledger.create(url, workspace="toy", actor="ana") as ledger:
        assert ledger.journal_mode() == journal
    monkeypatch.setattr(
        store, "network_filesystem", lambda path: True
    )  # the file was moved to a network share
    with Ledger.open(url, actor="ana") as ledger:
        assert ledger.journal_mode() == "delete"


def test_the_journal_table_fails_a_rule_that_forgets_the_backports(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("curation.ledger.journal._FIXED_IN", {})
    assert any(choose_journal(version, False) != journal for version, journal in JOURNALS.items())


def test_sqlite_syncs_fully(sqlite_ledger: Ledger) -> None:
    with sqlite_ledger._engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2


def test_a_ledger_is_made_once_and_opened_again(ledger_url: str) -> None:
    with Ledger.create(ledger_url, workspace="toy", actor="ana") as ledger:
        take_in(ledger, [drafted("a")])
        name = ledger.id
    with Ledger.open(ledger_url, actor="bea") as ledger:
        assert (ledger.workspace, ledger.actor, ledger.id) == ("toy", "bea", name)
        assert ledger.version == MIGRATIONS[-1].name
        assert prompts(ledger) == ["question a"]


def test_there_is_no_ledger_to_open_before_one_is_made(ledger_url: str) -> None:
    with pytest.raises(UsageError, match="no ledger here"):
        Ledger.open(ledger_url, actor="ana")


def test_a_ledger_of_another_workspace_is_refused(ledger_url: str) -> None:
    Ledger.create(ledger_url, workspace="toy", actor="ana").close()
    with pytest.raises(UsageError, match="belongs to the workspace 'toy', not 'other'"):
        Ledger.open(ledger_url, workspace="other", actor="ana")


def test_every_write_names_workspace_actor_time_and_command(ledger: Ledger) -> None:
    take_in(ledger, [drafted("a")])
    ledger.acting_as("bea").event("looked", "a")
    last = ledger.transactions()[-1]
    assert (last.workspace, last.actor, last.command) == ("toy", "bea", "looked")
    assert last.time.endswith("Z")
    assert ledger.actor == "ana"


def test_columns_of_different_lengths_are_no_rows(ledger: Ledger) -> None:
    with pytest.raises(ValueError, match="events of 1 and 2 rows"), ledger._write("test") as writer:
        writer.insert_columns(schema.events, ["one", "two"], ["a"], repeat("{}"))
    assert ledger.events() == []


def test_what_raises_in_a_transaction_leaves_no_trace(ledger: Ledger) -> None:
    before = ledger.transactions()

    def doomed() -> None:
        with ledger._write("doomed") as writer:
            writer.insert(schema.events, [("doomed", "a", "{}")])
            raise RuntimeError

    with pytest.raises(RuntimeError):
        doomed()
    assert ledger.events() == []
    assert ledger.transactions() == before


# --- what cannot be opened ------------------------------------------------------------------------------------------
@pytest.mark.parametrize("url", ["mysql://host/db", "sqlite://", "sqlite:///:memory:", "no url at all"])
def test_what_is_no_store_for_a_ledger_is_refused(url: str) -> None:
    with pytest.raises(UsageError, match="sqlite:////"):
        Ledger.open(url, actor="ana", create=True, workspace="toy")


def test_a_file_that_is_no_ledger_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("not a database, but long enough to have a header of its own " * 20)
    with pytest.raises(UsageError, match="not a ledger"):
        Ledger.open(f"sqlite:///{path}", actor="ana")


def test_another_programs_database_is_no_ledger(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "other.db") as other:
        other.execute("CREATE TABLE songs (title TEXT)")
    with pytest.raises(UsageError, match="no ledger here"):
        Ledger.open(f"sqlite:///{tmp_path / 'other.db'}", actor="ana")


def test_a_server_that_does_not_answer_is_a_remote_that_is_unavailable() -> None:
    pytest.importorskip("psycopg")
    url = "postgresql+psycopg://nobody:secret@127.0.0.1:9/none"
    with pytest.raises(RemoteUnavailable) as failed:
        Ledger.open(url, actor="ana", busy_seconds=2)
    assert "secret" not in str(failed.value)


def test_a_full_disk_is_a_storage_failure_and_leaves_the_ledger_whole(sqlite_ledger: Ledger) -> None:
    take_in(sqlite_ledger, [drafted("a")])
    with sqlite_ledger._engine.connect() as connection:
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar()
        connection.exec_driver_sql(f"PRAGMA max_page_count={pages}")  # what a full disk looks like to SQLite
    with pytest.raises(StorageFailed, match="disk is full"):
        take_in(sqlite_ledger, [drafted(str(n), "long " * 200) for n in range(200)], "big.jsonl")
    assert prompts(sqlite_ledger) == ["question a"]
    assert sqlite_ledger.audit().problems == ()


def test_a_read_only_ledger_is_a_storage_failure(sqlite_ledger: Ledger) -> None:
    with sqlite_ledger._engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA query_only=ON")
    with pytest.raises(StorageFailed, match="read-only"):
        sqlite_ledger.event("looked", "a")


def test_a_writer_who_waits_too_long_is_told_who_to_wait_for(ledger_url: str) -> None:
    with (
        Ledger.create(ledger_url, workspace="toy", actor="ana") as first,
        Ledger.open(ledger_url, actor="bea", busy_seconds=0.3) as second,
    ):
        with first._write("slow"), pytest.raises(ConflictError, match="locked"):
            second.event("looked", "a")
        second.event("looked", "b")
        assert [event.subject for event in first.events()] == ["b"]


def test_reading_in_pages_does_not_keep_a_writer_out(ledger_url: str) -> None:
    with (
        Ledger.create(ledger_url, workspace="toy", actor="ana") as reading,
        Ledger.open(ledger_url, actor="bea", busy_seconds=0.5) as writing,
    ):
        take_in(reading, [drafted(str(n)) for n in range(10)])
        pages = reading.view_pages(scrub_rule=None, size=2)
        assert next(pages).table.num_rows == 2
        writing.event("looked", "between two pages")
        assert sum(page.table.num_rows for page in pages) == 8


def test_a_cursor_that_stays_open_would_keep_the_writer_out(sqlite_ledger: Ledger) -> None:
    """The negative control of the test above: what paging protects from is real."""
    take_in(sqlite_ledger, [drafted(str(n)) for n in range(10)])
    with (
        Ledger.open(sqlite_ledger.url, actor="bea", busy_seconds=0.3) as writing,
        sqlite_ledger._read() as reader,
    ):
        reader.one("SELECT * FROM records")
        if sqlite_ledger.journal_mode() == "delete":
            with pytest.raises(ConflictError, match="locked"):
                writing.event("looked", "a")


def test_threads_may_share_a_ledger(ledger: Ledger) -> None:
    def work(name: str) -> None:
        for number in range(5):
            ledger.acting_as(name).event("looked", f"{name}{number}")

    threads = [threading.Thread(target=work, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(ledger.events()) == 20
    assert {t.actor for t in ledger.transactions()} == set("abcd")
    assert ledger.audit().problems == ()


# --- migrations -----------------------------------------------------------------------------------------------------
def _add_column(connection: Connection) -> None:
    connection.execute(text("ALTER TABLE events ADD COLUMN mood TEXT"))


def _add_table(connection: Connection) -> None:
    connection.execute(text("CREATE TABLE moods (name TEXT PRIMARY KEY)"))


def _backfill(connection: Connection) -> None:
    connection.execute(text("UPDATE events SET mood = 'calm'"))
    connection.execute(text("INSERT INTO moods VALUES ('calm')"))


NEXT = (*MIGRATIONS, Migration("0002-moods", (_add_column, _add_table, _backfill)))


def _upgraded(ledger: Ledger) -> tuple[bool, bool, bool]:
    """Whether the column, the table and the name of the second migration are there."""
    with ledger._engine.connect() as connection:
        names = steps.applied(connection)
        tables = steps.inspect(connection)
        columns = {column["name"] for column in tables.get_columns("events")}
        return "mood" in columns, tables.has_table("moods"), "0002-moods" in names


def _rows_of(ledger: Ledger) -> list[object]:
    with ledger._engine.connect() as connection:
        return list(
            connection.execute(text("SELECT seq, tx, kind, subject, detail FROM events ORDER BY seq"))
        )


def test_a_migration_runs_once_and_keeps_every_row(ledger_url: str) -> None:
    with Ledger.create(ledger_url, workspace="toy", actor="ana") as ledger:
        ledger.event("looked", "a")
        before = _rows_of(ledger)
    for _ in range(2):
        with Ledger.open(ledger_url, actor="ana", known=NEXT) as ledger:
            assert ledger.version == "0002-moods"
            assert _upgraded(ledger) == (True, True, True)
            assert _rows_of(ledger) == before


def test_a_newer_store_is_refused_by_name(ledger_url: str) -> None:
    Ledger.create(ledger_url, workspace="toy", actor="ana").close()
    Ledger.open(ledger_url, actor="ana", known=NEXT).close()
    with pytest.raises(UsageError, match=r"'0002-moods'.*'0001-initial'.*newer tilth"):
        Ledger.open(ledger_url, actor="ana")


@pytest.mark.parametrize("broken", range(4))
def test_a_migration_that_fails_half_way_leaves_the_old_schema(ledger_url: str, broken: int) -> None:
    def fail(connection: Connection) -> None:
        raise RuntimeError("the power went out")

    parts: list[steps.Step] = [_add_column, _add_table, _backfill]
    parts.insert(broken, fail)
    with Ledger.create(ledger_url, workspace="toy", actor="ana") as ledger:
        ledger.event("looked", "a")
        before = _rows_of(ledger)
    with pytest.raises(RuntimeError):
        Ledger.open(ledger_url, actor="ana", known=(*MIGRATIONS, Migration("0002-moods", tuple(parts))))
    with Ledger.open(ledger_url, actor="ana") as ledger:
        assert _upgraded(ledger) == (False, False, False)
        assert _rows_of(ledger) == before


_KILLED = """
import os, signal, sys
from curation.ledger import Ledger, migrations
from tests.curation import test_ledger_store as here

def die(connection):
    os.kill(os.getpid(), signal.SIGKILL)

url, mode, position = sys.argv[1], sys.argv[2], int(sys.argv[3])
known = list(here.NEXT if mode == "second" else migrations.MIGRATIONS)
parts = list(known[-1].steps)
parts.insert(position, die)
known[-1] = migrations.Migration(known[-1].name, tuple(parts))
Ledger.open(url, actor="ana", workspace="toy", create=True, known=known)
"""


def _killed(url: str, mode: str, position: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _KILLED, url, mode, str(position)], cwd=ROOT, env={**os.environ}
    )
    assert done.returncode == -9


@pytest.mark.parametrize("position", range(4))
def test_a_program_killed_in_a_migration_leaves_the_old_schema_and_the_next_one_finishes(
    ledger_url: str, position: int
) -> None:
    with Ledger.create(ledger_url, workspace="toy", actor="ana") as ledger:
        ledger.event("looked", "a")
        before = _rows_of(ledger)
    _killed(ledger_url, "second", position)
    with Ledger.open(ledger_url, actor="ana") as ledger:
        assert _upgraded(ledger) == (False, False, False)
        assert _rows_of(ledger) == before
    with Ledger.open(ledger_url, actor="ana", known=NEXT) as ledger:
        assert _upgraded(ledger) == (True, True, True)
        assert _rows_of(ledger) == before


@pytest.mark.parametrize("position", [0, 1, 17, len(MIGRATIONS[0].steps)])
def test_a_program_killed_while_making_a_ledger_leaves_none_and_the_next_one_makes_it(
    ledger_url: str, position: int
) -> None:
    _killed(ledger_url, "first", position)
    with pytest.raises(UsageError, match="no ledger here"):
        Ledger.open(ledger_url, actor="ana")
    with Ledger.create(ledger_url, workspace="toy", actor="ana") as ledger:
        assert take_in(ledger, [drafted("a")])


def test_without_a_transaction_a_killed_migration_would_leave_a_mixed_schema(sqlite_ledger: Ledger) -> None:
    """The negative control: the same check finds the mixture that a migration outside a transaction leaves."""
    with sqlite_ledger._engine.connect() as connection:  # autocommit: each statement on its own
        _add_column(connection)
    assert _upgraded(sqlite_ledger) not in [(False, False, False), (True, True, True)]


def test_two_programs_may_make_the_same_ledger_at_once(ledger_url: str) -> None:
    opened: list[Ledger] = []

    def make() -> None:
        opened.append(Ledger.create(ledger_url, workspace="toy", actor="ana"))

    threads = [threading.Thread(target=make) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({ledger.id for ledger in opened}) == 1
    assert len(opened) == 4
    for ledger in opened:
        ledger.close()


def test_a_damaged_file_is_an_integrity_error(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    with Ledger.create(f"sqlite:///{path}", workspace="toy", actor="ana") as ledger:
        take_in(ledger, [drafted(str(n)) for n in range(500)])
    raw = bytearray(path.read_bytes())
    raw[8192:] = os.urandom(len(raw) - 8192)
    path.write_bytes(raw)
    with pytest.raises(IntegrityError, match="damaged"):
        Ledger.open(f"sqlite:///{path}", actor="ana")


def test_every_table_of_the_schema_is_made(new_ledger_url: Callable[[], str]) -> None:
    with (
        Ledger.create(new_ledger_url(), workspace="toy", actor="ana") as ledger,
        ledger._engine.connect() as connection,
    ):
        found = steps.inspect(connection)
        for table in schema.TABLES:
            assert [c["name"] for c in found.get_columns(table.name)] == [c.name for c in table.columns]
