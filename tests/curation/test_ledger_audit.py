"""The chain finds every change of history; backups, restores and exports hold all of it."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
from sqlalchemy import text

from curation.errors import IntegrityError, StorageFailed, UsageError
from curation.ledger import Ledger, NewQuarantine, Question, restore, schema
from curation.ledger import backup as backups
from curation.records import DECISIONS, decision, digest, table
from tests.curation.ledger_toys import drafted, row, take_in, view
from tests.curation.test_ledger_store import NEXT


def lived_in(ledger: Ledger) -> Ledger:
    """A ledger with something in most of its tables."""
    take_in(ledger, [drafted("a"), drafted("b"), row("c")])
    take_in(ledger, [drafted("a")], "again.jsonl")
    ledger.add_quarantine(
        ledger.ingests()[0].id, [NewQuarantine("f", 1, 0, "utf8", "not UTF-8", b"\xff\x00")]
    )
    ledger.add_question(Question("reply", 1, "edit"))
    ledger.decide(
        "quality", "r", table([decision(row("c").id, "drop", "no")], DECISIONS), covered=[("record", 0, 3)]
    )
    ledger.review(row("a").id, version=0, action="edit", body="better", key="k1")
    ledger.undo_review(row("a").id, version=1, key="k2")
    ledger.acting_as("bea").review(row("b").id, version=0, action="accept", body="fine", key="k3")
    ledger.add_snapshot("s1", rows=2, manifest_digest="m")
    ledger.approve("s1", "approved", by="ana", reason="read it")
    ledger.erase_payloads([digest("answer b")])
    ledger.erase_author(ledger.add_author("Carl", "person"))
    ledger.set_watermark("pull", "7")
    with ledger.lease("train"):
        pass
    return ledger


def everything(ledger: Ledger) -> dict[str, list[tuple[object, ...]]]:
    with ledger._engine.connect() as connection:
        return {
            t.name: sorted((tuple(map(repr, r)) for r in connection.execute(t.select())), key=str)
            for t in schema.TABLES
            if t.name != "migrations"
        }


# --- the chain ------------------------------------------------------------------------------------------------------
def test_an_untouched_ledger_is_sound(ledger: Ledger) -> None:
    report = lived_in(ledger).audit()
    assert report.problems == ()
    assert report.head == ledger.head()
    assert report.transactions == len(ledger.transactions())
    assert report.rows > 30


def test_an_empty_ledger_is_sound(ledger: Ledger) -> None:
    assert ledger.audit().problems == ()
    assert ledger.head() == ""


TAMPERING = {
    "an edited label": "UPDATE labels SET author = 'a-0' WHERE seq = 1",
    "an edited confidence": "UPDATE labels SET confidence = 1.0 WHERE seq = 1",
    "a deleted review": "DELETE FROM reviews WHERE seq = 1",
    "a deleted last review": "DELETE FROM reviews WHERE seq = (SELECT max(seq) FROM reviews)",
    "a forged review": "INSERT INTO reviews SELECT 99, tx, 'x', record_seq, 99, 'accept', NULL, NULL, '', author, 'y' "
    "FROM reviews WHERE seq = 1",
    "a decision in another's name": "UPDATE transactions SET actor = 'bea' WHERE seq = 2",
    "an approval at another time": "UPDATE transactions SET time = '2020-01-01T00:00:00Z' WHERE seq = 3",
    "a deleted transaction": "DELETE FROM transactions WHERE seq = 2",
    "a deleted first transaction": "DELETE FROM transactions WHERE seq = 1",
    "a changed verdict": "UPDATE approvals SET verdict = 'refused'",
    "a changed scrub decision": "UPDATE decisions SET action = 'keep'",
    "another text under a digest": "UPDATE payloads SET body = (SELECT body FROM payloads WHERE seq = 2) WHERE seq = 1",
    "a text that nobody erased": "UPDATE payloads SET body = NULL WHERE seq = 1",
    "a hidden erasure": "DELETE FROM erasures",
    "rows moved to another transaction": "UPDATE decisions SET tx = 1",
    "a renumbered record": "UPDATE records SET seq = 77 WHERE seq = 3",
}


@pytest.mark.parametrize("name", TAMPERING)
def test_every_change_of_history_is_found(ledger: Ledger, name: str) -> None:
    lived_in(ledger)
    before = everything(ledger)
    with ledger._engine.connect() as connection:
        connection.execute(text(TAMPERING[name]))
    assert everything(ledger) != before
    assert ledger.audit().problems != ()


def test_two_reordered_reviews_are_found(ledger: Ledger) -> None:
    lived_in(ledger)
    with ledger._engine.connect() as connection:
        for old, new in ((1, 90), (2, 1), (90, 2)):
            connection.execute(text(f"UPDATE reviews SET seq = {new} WHERE seq = {old}"))
    assert ledger.audit().problems != ()


def test_a_history_cut_off_at_its_end_is_found_by_a_head_kept_elsewhere(ledger: Ledger) -> None:
    head = lived_in(ledger).head()
    last = ledger.transactions()[-1].seq
    ledger.event("looked", "a")
    assert ledger.audit(head=head).problems == ()
    with ledger._engine.connect() as connection:
        for t in schema.LOGGED:
            connection.execute(text(f'DELETE FROM "{t.name}" WHERE tx >= {last}'))
        connection.execute(text(f"DELETE FROM transactions WHERE seq >= {last}"))
    assert ledger.audit().problems == ()  # the rest is whole in itself
    assert "no longer part of the chain" in ledger.audit(head=head).problems[0]


# --- backup and restore ---------------------------------------------------------------------------------------------
def test_a_backup_restores_to_the_same_ledger(
    ledger: Ledger, tmp_path: Path, new_ledger_url: Callable[[], str]
) -> None:
    saved = lived_in(ledger).backup(tmp_path / "saved.db")
    ledger.event("later", "than the backup")
    url = new_ledger_url()
    report = restore(saved, url)
    with Ledger.open(url, actor="bea") as copy:
        assert (copy.id, copy.workspace, copy.head()) == (ledger.id, ledger.workspace, report.head)
        assert copy.events("later") == []
        assert view(copy) == view(ledger)
        assert copy.audit().problems == ()
        copy.event("life", "goes on")
        assert copy.audit().problems == ()


@pytest.mark.postgres
def test_a_backup_of_one_store_restores_into_the_other(tmp_path: Path, postgres_url: str) -> None:
    from tests import postgres

    urls = [
        f"sqlite:///{tmp_path / 'one.db'}",
        postgres.fresh_schema(postgres_url),
        f"sqlite:///{tmp_path / 'three.db'}",
    ]
    with Ledger.create(urls[0], workspace="toy", actor="ana") as first:
        expected = everything(lived_in(first))
    for number, (source, target) in enumerate(pairwise(urls)):
        with Ledger.open(source, actor="ana") as ledger:
            restore(ledger.backup(tmp_path / f"{number}.saved"), target)
    with Ledger.open(urls[1], actor="ana") as second, Ledger.open(urls[2], actor="ana") as third:
        assert everything(second) == expected
        assert everything(third) == expected
        assert third.audit().problems == ()
    postgres.drop_schema(urls[1])


def test_a_backup_of_another_workspace_is_refused_and_leaves_nothing(ledger: Ledger, tmp_path: Path) -> None:
    saved = ledger.backup(tmp_path / "saved.db")
    target = tmp_path / "there.db"
    with pytest.raises(
        UsageError, match=rf"backup of the workspace '{ledger.workspace}', and here is 'other'"
    ):
        restore(saved, f"sqlite:///{target}", workspace="other")
    assert not target.exists()
    restore(saved, f"sqlite:///{target}", workspace=ledger.workspace)
    assert target.exists()


def test_a_restore_never_replaces_a_ledger(ledger: Ledger, tmp_path: Path) -> None:
    saved = lived_in(ledger).backup(tmp_path / "saved.db")
    with pytest.raises(UsageError, match="a ledger already"):
        restore(saved, ledger.url)
    with pytest.raises(UsageError, match="exists already"):
        ledger.backup(saved)
    with pytest.raises(UsageError, match="no such backup"):
        restore(tmp_path / "none.db", ledger.url)


def test_a_damaged_or_changed_backup_is_not_restored(sqlite_ledger: Ledger, tmp_path: Path) -> None:
    saved = lived_in(sqlite_ledger).backup(tmp_path / "saved.db")
    with sqlite3.connect(saved) as connection:
        connection.execute("UPDATE reviews SET action = 'reject' WHERE action = 'accept'")
    target = tmp_path / "new.db"
    with pytest.raises(IntegrityError, match="damaged"):
        restore(saved, f"sqlite:///{target}")
    assert not target.exists()
    (tmp_path / "notes.txt").write_text("no database " * 100)
    with pytest.raises(UsageError, match="not a ledger"):
        restore(tmp_path / "notes.txt", f"sqlite:///{target}")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["ledger.db", "notes.txt", "saved.db"]


def test_a_backup_of_a_newer_release_is_refused_and_stays_as_it_is(
    sqlite_ledger: Ledger, tmp_path: Path
) -> None:
    Ledger.open(sqlite_ledger.url, actor="ana", known=NEXT).close()
    saved = sqlite_ledger.backup(tmp_path / "saved.db")
    raw = saved.read_bytes()
    with pytest.raises(UsageError, match="newer tilth"):
        restore(saved, f"sqlite:///{tmp_path / 'new.db'}")
    assert saved.read_bytes() == raw


def test_a_backup_that_finds_the_disk_full_leaves_nothing_behind(
    ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import errno

    def full(path: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    folder = tmp_path / "out"
    monkeypatch.setattr(backups, "_sync", full)
    with pytest.raises(StorageFailed, match="disk is full"):
        ledger.backup(folder / "saved.db")
    assert list(folder.iterdir()) == []


# --- export ---------------------------------------------------------------------------------------------------------
def test_an_export_holds_every_row_of_every_table(ledger: Ledger, tmp_path: Path) -> None:
    counts = lived_in(ledger).export_all(tmp_path / "out")
    assert set(counts) == {t.name for t in schema.TABLES}
    for name, rows in everything(ledger).items():
        lines = (tmp_path / "out" / f"{name}.jsonl").read_text().splitlines()
        assert len(lines) == len(rows) == counts[name]
    texts = [
        json.loads(line)["body"] for line in (tmp_path / "out" / "payloads.jsonl").read_text().splitlines()
    ]
    assert "better" in texts
    assert {"hex": "ff00"} in texts
    assert None in texts
