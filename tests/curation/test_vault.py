"""The vault: off unless it is asked for, opened by its key alone and on the record, and nowhere in what travels."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from curation import curate, lineage, pii, vault
from curation.errors import ConflictError, IntegrityError, UsageError
from curation.pii.aliases import Aliaser
from curation.workspace import Workspace, ingest, init, open_workspace

MAIL, NAME = "rosalind.u@brimstone.example.com", "Rosalind Unwin"
ROWS = (
    {"id": "1", "prompt": f"I am {NAME}, write to {MAIL} please.", "completion": "Thanks, Rosalind."},
    {
        "id": "2",
        "prompt": "My colleague is ida.moss@brimstone.example.com, call her.",
        "completion": "Done.",
    },
)


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Workspace]:
    root = tmp_path / "desk"
    init(root, actor="ines")
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    with open_workspace(root, actor="ines") as opened:
        ingest(opened, tmp_path / "rows.jsonl")
        yield opened


@pytest.fixture
def kept(desk: Workspace, tmp_path: Path) -> Workspace:
    """A workspace whose vault was filled by scrubbing."""
    vault.enable(desk, tmp_path / "keys" / "desk.key")
    curate.curate(desk)
    return desk


def alias_of(desk: Workspace, kind: str, value: str) -> str:
    return Aliaser(desk.key, desk.ledger.aliases()).alias(kind, value)


def files_with(folder: Path, text: str) -> list[str]:
    return [str(p) for p in folder.rglob("*") if p.is_file() and text.encode() in p.read_bytes()]


def test_an_alias_is_opened_by_the_key_and_the_ledger_says_by_whom(kept: Workspace) -> None:
    alias = alias_of(kept, "EMAIL_ADDRESS", MAIL)
    assert vault.shown(kept, [alias]) == [vault.Entry("EMAIL_ADDRESS", alias, MAIL)]
    name = alias_of(kept, "PERSON", NAME)
    assert " ".join(entry.value for entry in vault.shown(kept, [name])) == NAME
    first, second = kept.ledger.events("vault opened")
    assert (first.actor, first.detail) == ("ines", {"aliases": [alias]})
    assert MAIL not in json.dumps([first.detail, second.detail])


def test_the_vault_holds_no_value_that_can_be_read_and_is_its_owners_alone(kept: Workspace) -> None:
    path = kept.root / vault.FILE
    assert vault.held(kept.root) >= 4
    assert MAIL not in path.read_text()
    assert alias_of(kept, "EMAIL_ADDRESS", MAIL) not in path.read_text()
    assert path.stat().st_mode & 0o077 == 0
    nonces = [json.loads(line)["sealed"][:16] for line in path.read_text().splitlines()[1:]]
    assert len(set(nonces)) == len(nonces)


def test_off_by_default_nothing_that_can_reverse_is_written(
    desk: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def told(*_: object) -> None:
        raise AssertionError("an alias was remembered")

    monkeypatch.setattr(vault.Keeper, "note", told)
    curate.curate(desk)
    assert desk.ledger.aliases()
    assert not list(desk.root.rglob("vault*"))
    with pytest.raises(UsageError, match="has no vault"):
        vault.opened(desk.root)


def test_the_check_that_nothing_is_remembered_sees_a_vault(
    kept: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vault.Keeper, "note", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        curate.fill_vault(kept)


def test_neither_key_nor_vault_is_in_ledger_backup_or_export(kept: Workspace, tmp_path: Path) -> None:
    key = (tmp_path / "keys" / "desk.key").read_text().strip()
    sealed = [json.loads(line)["sealed"] for line in (kept.root / vault.FILE).read_text().splitlines()[1:]]
    kept.ledger.backup(tmp_path / "copy" / "backup.db")
    for secret in (key, *sealed):
        assert list(files_with(tmp_path / "copy", secret)) == []
        assert {Path(f).name for f in files_with(kept.root, secret)} <= {"vault"}
    assert files_with(tmp_path, key) == [str(tmp_path / "keys" / "desk.key")]


def test_what_was_scrubbed_before_is_filled_in(desk: Workspace, tmp_path: Path) -> None:
    curate.curate(desk)
    before = desk.ledger.aliases()
    vault.enable(desk, tmp_path / "key")
    assert vault.held(desk.root) == 0
    curate.fill_vault(desk)
    assert {(e.entity_type, e.alias) for e in vault.opened(desk.root).entries().values()} == {
        (alias.entity_type, alias.alias) for alias in before
    }
    curate.fill_vault(desk)
    assert vault.held(desk.root) == len(before) == len(desk.ledger.aliases())


@pytest.mark.parametrize("change", ["wrong", "missing", "open", "short"])
def test_a_key_that_may_not_be_used_says_so_and_nothing_is_scrubbed(
    kept: Workspace, tmp_path: Path, change: str
) -> None:
    key = tmp_path / "keys" / "desk.key"
    words = {
        "wrong": "not the one that this vault was made with",
        "missing": "is missing",
        "open": "may be read by others",
        "short": "64 hexadecimal digits",
    }
    if change == "missing":
        key.unlink()
    elif change == "open":
        key.chmod(0o644)
    else:
        key.write_text("ab" * (32 if change == "wrong" else 8))
    for work in (lambda: vault.shown(kept, ["x"]), lambda: curate.fill_vault(kept)):
        with pytest.raises(UsageError, match=words[change]):
            work()
    assert kept.ledger.events("vault opened") == []


@pytest.mark.parametrize("change", ["sealed", "swapped", "moved", "cut", "header"])
def test_an_entry_that_was_tampered_with_is_told(kept: Workspace, change: str) -> None:
    path = kept.root / vault.FILE
    header, first, second, *rest = [json.loads(line) for line in path.read_text().splitlines()]
    if change == "sealed":
        first["sealed"] = (
            first["sealed"][:30] + ("A" if first["sealed"][30] != "A" else "B") + first["sealed"][31:]
        )
    elif change == "swapped":
        first["sealed"], second["sealed"] = second["sealed"], first["sealed"]
    elif change == "moved":
        first["hash"] = "0" * 32
    elif change == "cut":
        first["sealed"] = first["sealed"][:12]
    else:
        header["format"] = "other"
    path.write_text("".join(json.dumps(line) + "\n" for line in (header, first, second, *rest)))
    with pytest.raises(IntegrityError, match="not as it was written"):
        vault.opened(kept.root).entries()


def test_without_the_identity_in_the_seal_a_swap_would_pass(
    kept: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vault.Vault, "_about", lambda self, id: b"")
    one, two = vault.Entry("PERSON", "Madu", "Ida"), vault.Entry("PERSON", "Reki", "Omar")
    opened = vault.opened(kept.root)
    opened = vault.Vault(kept.root / "other", opened.salt, opened.key)
    lines = [json.loads(opened._sealed(("PERSON", h), e)) for h, e in (("a", one), ("b", two))]
    lines[0]["sealed"] = lines[1]["sealed"]
    assert opened._opened(lines[0], 1) == two


def test_half_a_line_that_a_kill_left_is_written_again(kept: Workspace) -> None:
    path = kept.root / vault.FILE
    whole = vault.opened(kept.root).entries()
    path.write_bytes(path.read_bytes()[:-20])
    assert len(vault.opened(kept.root).entries()) == len(whole) - 1
    curate.fill_vault(kept)
    assert vault.opened(kept.root).entries() == whole


def test_erasing_a_person_takes_their_entries_out_and_no_others(kept: Workspace) -> None:
    held = vault.held(kept.root)
    tried = lineage.erase(kept, lineage.parsed([NAME, MAIL], [], [], []), dry_run=True)
    assert vault.held(kept.root) == held
    done = lineage.erase(kept, lineage.parsed([NAME, MAIL], [], [], []))
    assert tried.vault == done.vault >= 3
    left = vault.opened(kept.root).entries().values()
    assert len(left) == held - done.vault
    assert "ida.moss@brimstone.example.com" in {entry.value for entry in left}
    assert not any(entry.value in f"{NAME} {MAIL}" for entry in left)


def test_erasing_a_record_takes_out_what_was_replaced_there_alone(kept: Workspace) -> None:
    record = kept.ledger.records()["record"].to_pylist()[0]
    lineage.erase(kept, lineage.parsed([], [record], [], []))
    assert [e.value for e in vault.opened(kept.root).entries().values()] == ["ida.moss@brimstone.example.com"]


def test_a_key_inside_the_workspace_and_a_second_vault_are_refused(desk: Workspace, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="inside the workspace"):
        vault.enable(desk, desk.root / "vault.key")
    vault.enable(desk, tmp_path / "key")
    with pytest.raises(ConflictError, match="has a vault"):
        vault.enable(desk, tmp_path / "key")


def test_the_key_may_come_from_the_environment(desk: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="is missing"):
        vault.enable(desk, None)
    monkeypatch.setenv(vault.KEY_VARIABLE, os.urandom(32).hex())
    vault.enable(desk, None)
    curate.curate(desk)
    assert MAIL in {entry.value for entry in vault.opened(desk.root).entries().values()}


def test_an_export_is_its_owners_alone_and_outside_and_on_the_record(kept: Workspace, tmp_path: Path) -> None:
    target = tmp_path / "values.jsonl"
    assert vault.exported(kept, target) == vault.held(kept.root)
    assert MAIL in target.read_text()
    assert target.stat().st_mode & 0o077 == 0
    assert kept.ledger.events("vault exported")
    with pytest.raises(ConflictError):
        vault.exported(kept, target)
    with pytest.raises(UsageError, match="beside their aliases"):
        vault.exported(kept, kept.root / "values.jsonl")


def test_a_destroyed_vault_is_gone_and_scrubbing_goes_on(kept: Workspace) -> None:
    assert vault.destroy(kept) >= 4
    assert not vault.is_on(kept.root)
    assert vault.keeper(kept) is None
    assert pii.ScrubRule().layers == ("patterns",)
