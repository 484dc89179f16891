"""Erasing one person: everywhere, provably, and no more than that."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pyarrow as pa
import pytest

from curation import assemble, lineage, snapshot
from curation.artifacts import ERASED
from curation.curate import Rules, curate
from curation.errors import IntegrityError, UsageError
from curation.formats import Mapping
from curation.lineage import Subject, erase, mentions
from curation.snapshot import erasing
from curation.workspace import Workspace, ingest, init, open_workspace
from tests.curation.toys import write_rows

ROWS = [
    {"id": "a", "prompt": "Please send the crate to jane.roe@acme.com by noon.", "gold": "The crate leaves today."},
    {"id": "b", "prompt": "Which form do we need for the heavy crate?", "gold": "Form twelve, signed twice."},
    {"id": "c", "prompt": "Is the ramp open after six in the evening?", "gold": "Write to JANE.ROE@acme.com first."},
    {"id": "d", "prompt": "How long does clearing a container take?", "gold": "Form twelve, signed twice."},
]  # fmt: skip
VALUE = "jane.roe@acme.com"


@pytest.fixture
def desk(tmp_path: Path) -> Path:
    """A workspace whose four rows are curated and frozen; the person stands in two of them."""
    folder = tmp_path / "desk"
    init(folder, actor="ana", name="desk")
    text = (folder / "tilth.toml").read_text()
    text = text.replace('layers = ["patterns", "names"]', 'layers = ["patterns"]')
    for share in ("test_share = 0.1 ", "dev_share = 0.05"):
        text = text.replace(share, f"{share.split(' ')[0]} = 0.0")
    (folder / "tilth.toml").write_text(text)
    with open_workspace(folder, actor="ana") as opened:
        ingest(
            opened,
            write_rows(tmp_path / "rows.jsonl", ROWS),
            mapping=Mapping(id="id", completion="gold"),
            trust="reference",
        )
        curate(opened)
    return folder


def frozen(opened: Workspace) -> str:
    return assemble.freeze(opened, assemble.compose(opened)).name


def test_a_person_is_gone_from_records_snapshots_and_the_database_and_all_of_it_verifies(desk: Path) -> None:
    with open_workspace(desk, actor="ana") as opened:
        name = frozen(opened)
        before = snapshot.load(opened.store, name)
        done = erase(opened, Subject(values=(VALUE,)))
        after = snapshot.load(opened.store, name)
        assert len(done.records) == 2
        assert done.artifacts["snapshots"] == [name]
        assert snapshot.verify(opened.store, name).name == name
        assert opened.ledger.audit().problems == ()
        kept = set(before["record"].to_pylist()) - set(done.records)
        assert set(after["record"].to_pylist()) == kept
        assert len(kept) == 2
    raw = b"".join(path.read_bytes() for path in desk.rglob("*") if path.is_file())
    assert VALUE.encode() not in raw.lower()
    assert b"The crate leaves today" not in raw


def test_what_others_were_told_too_stays(desk: Path) -> None:
    with open_workspace(desk, actor="ana") as opened:
        record = opened.ledger.records()["record"].to_pylist()[1]
        erase(opened, Subject(records=(record,)))
        answers = opened.ledger.labels()["body"].to_pylist()
    assert answers.count("Form twelve, signed twice.") >= 1


def test_a_second_snapshot_of_the_rest_can_be_frozen_and_the_text_is_refused_when_it_comes_again(
    desk: Path, tmp_path: Path
) -> None:
    with open_workspace(desk, actor="ana") as opened:
        first = frozen(opened)
        erase(opened, Subject(values=(VALUE,)))
        curate(opened)
        assert frozen(opened) != first
        again = ingest(
            opened,
            write_rows(tmp_path / "again.jsonl", ROWS),
            mapping=Mapping(id="id", completion="gold"),
            trust="reference",
        )
        assert VALUE not in json.dumps(opened.ledger.labels().to_pylist(), default=str)
        assert again.accepted == 0


def test_erasing_twice_changes_nothing_more(desk: Path) -> None:
    with open_workspace(desk, actor="ana") as opened:
        name = frozen(opened)
        first = erase(opened, Subject(values=(VALUE,)))
        second = erase(opened, Subject(values=(VALUE,)))
        assert second.subject == first.subject
        assert second.texts == 0
        snapshot.verify(opened.store, name)


def test_a_dry_run_tells_the_same_and_changes_nothing(desk: Path) -> None:
    with open_workspace(desk, actor="ana") as opened:
        name = frozen(opened)
        told = erase(opened, Subject(values=(VALUE,)), dry_run=True)
        assert opened.ledger.payload(opened.ledger.records()["payload"][0].as_py()) is not None
        assert len(snapshot.load(opened.store, name)) == 4
        done = erase(opened, Subject(values=(VALUE,)))
    assert (told.records, told.texts, told.artifacts) == (done.records, done.texts, done.artifacts)


def test_the_receipt_names_nobody_and_lists_adapters_exports_and_the_chain_holds_it(desk: Path) -> None:
    from curation.ledger import Adapter

    with open_workspace(desk, actor="ana") as opened:
        name = frozen(opened)
        opened.ledger.add_adapter(Adapter("f" * 32, name, "tiny", {}, {}, "adapters/x"))
        opened.ledger.event("exported", name, {"path": "/srv/train.jsonl", "to": "trl"})
        done = erase(opened, Subject(values=(VALUE,)))
        (noted,) = opened.ledger.events(kind="erased")
    assert done.adapters == ("f" * 32,)
    assert done.exports == ("/srv/train.jsonl",)
    assert "jane" not in json.dumps(done.as_dict()).lower()
    assert noted.detail["digest"] == done.digest


def test_killed_between_list_and_file_the_snapshot_still_verifies(
    desk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_workspace(desk, actor="ana") as opened:
        name = frozen(opened)
        real, calls = erasing.write_atomic, []

        def dies(path: Path, data: bytes) -> object:
            if calls:
                raise KeyboardInterrupt
            calls.append(path)
            return real(path, data)

        monkeypatch.setattr(erasing, "write_atomic", dies)
        with pytest.raises(KeyboardInterrupt):
            erase(opened, Subject(values=(VALUE,)))
        monkeypatch.undo()
        snapshot.verify(opened.store, name)
        erase(opened, Subject(values=(VALUE,)))
        snapshot.verify(opened.store, name)


def shards(opened: Workspace, name: str) -> list[Path]:
    return sorted((opened.store.path("snapshots", name) / "data").glob("*.parquet"))


def test_an_erased_snapshot_that_was_edited_beyond_that_is_corrupt(desk: Path) -> None:
    import pyarrow.parquet as pq

    with open_workspace(desk, actor="ana") as opened:
        name = frozen(opened)
        erase(opened, Subject(values=(VALUE,)))
        path = shards(opened, name)[0]
        table = pq.read_table(path)
        forged = table.set_column(
            table.column_names.index("completion"),
            "completion",
            pa.array(["forged"] * table.num_rows, pa.string()),
        )
        pq.write_table(forged, path)
        with pytest.raises(IntegrityError):
            snapshot.verify(opened.store, name)


def test_a_forged_list_of_erasures_can_take_text_away_but_put_none_in(desk: Path) -> None:
    """The negative control: with list and files forged together, only the row digests are left to tell."""
    import hashlib

    import orjson
    import pyarrow.parquet as pq

    with open_workspace(desk, actor="ana") as opened:
        name = frozen(opened)
        erase(opened, Subject(values=(VALUE,)))
        folder, path = opened.store.path("snapshots", name), shards(opened, name)[0]
        table = pq.read_table(path)
        at = table.column_names.index("completion")
        pq.write_table(
            table.set_column(at, "completion", pa.array(["new"] * table.num_rows, pa.string())), path
        )
        told = orjson.loads((folder / ERASED).read_bytes())
        data = path.read_bytes()
        told["files"][path.relative_to(folder).as_posix()] = {
            "sha256": hashlib.sha256(data).hexdigest(),
            "size": len(data),
        }
        (folder / ERASED).write_bytes(orjson.dumps(told))
        snapshot.verify(opened.store, name, deep=False)
        with pytest.raises(IntegrityError):
            snapshot.verify(opened.store, name)


def test_an_erased_snapshot_travels(desk: Path, tmp_path: Path) -> None:
    with open_workspace(desk, actor="ana") as opened:
        name = frozen(opened)
        erase(opened, Subject(values=(VALUE,)))
        snapshot.export_directory(opened.store, name, tmp_path / "copy")
        assert snapshot.verify(tmp_path / "copy").name == name
    init(tmp_path / "other", actor="bo", name="other")
    with open_workspace(tmp_path / "other", actor="bo") as other:
        snapshot.import_directory(tmp_path / "copy", other.store)
        assert len(snapshot.load(other.store, name)) == 2
        snapshot.verify(other.store, name)


def test_an_annotators_name_is_forgotten_and_their_labels_stay(desk: Path) -> None:
    with open_workspace(desk, actor="ana") as opened:
        opened.ledger.add_author("Mia Example", "person")
        done = erase(opened, Subject(annotators=("mia example",)))
        assert done.annotators == 1
        assert "Mia Example" not in [author.name for author in opened.ledger.authors()]


@pytest.mark.parametrize("subject", [{"records": ("nobody",)}, {"annotators": ("Nobody",)}])
def test_whoever_is_not_known_is_refused_before_anything_is_done(
    desk: Path, subject: dict[str, tuple[str]]
) -> None:
    with open_workspace(desk, actor="ana") as opened, pytest.raises(UsageError):
        erase(opened, Subject(**subject))


@pytest.mark.parametrize("subject", [{}, {"values": ("ab",)}])
def test_a_subject_that_is_nobody_or_half_the_workspace_is_refused(subject: dict[str, tuple[str]]) -> None:
    with pytest.raises(UsageError):
        Subject(**subject)


def test_a_value_is_found_however_it_is_written_and_never_inside_a_word() -> None:
    is_about = mentions(["Jane Roe"])
    assert all(map(is_about, ["JANE ROE", "jane\u200b  roe's", "to Ｊane Roe, now", "Jane\nRoe"]))
    assert not any(map(is_about, ["Jane Roebuck", "Mjane Roe", "Jane and Roe"]))


def test_the_command_prints_a_receipt_and_what_is_left_to_do(desk: Path, tmp_path: Path) -> None:
    from apps import cli

    with open_workspace(desk, actor="ana") as opened:
        frozen(opened)
        rule = Rules(opened).scrub
    assert rule
    tilth = Path(cli.__file__).parents[2] / ".venv" / "bin" / "tilth"
    command = [
        str(tilth),
        "--workspace",
        str(desk),
        "--json",
        "erase",
        VALUE,
        "--receipt",
        str(tmp_path / "r.json"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    told = json.loads(done.stdout)
    assert len(told["records"]) == 2
    assert json.loads((tmp_path / "r.json").read_text())["digest"] == told["digest"]
    assert "jane" not in done.stdout + done.stderr


def test_every_kind_of_artifact_that_the_workspace_writes_is_looked_through() -> None:
    import re

    root = Path(lineage.__file__).parent
    written = {
        kind
        for path in root.rglob("*.py")
        for kind in re.findall(r'save_table\(\s*\w*(?:\.\w+)*,\s*"(\w+)"', path.read_text(encoding="utf-8"))
    }
    assert written <= set(lineage.ARTIFACTS)
    assert written
