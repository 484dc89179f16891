"""A file made ready for the ledger: the same batches here and in a process of its own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from curation import formats, intake, workspace
from curation.formats import Mapping

SOURCE = intake.Source("main", "reference", "a-1")


@pytest.fixture
def mails(tmp_path: Path) -> Path:
    path = tmp_path / "mails.jsonl"
    rows = [{"id": i % 9, "prompt": f"Where is parcel {i}?", "completion": "On its way."} for i in range(12)]
    path.write_text("\n".join([*map(json.dumps, rows), "{broken"]) + "\n")
    return path


def read_all(path: Path, processes: int) -> list[intake.Prepared]:
    form = formats.sniff(path, None)
    return list(intake.prepared(path, Mapping(id="id"), form, SOURCE, processes=processes))


def test_a_file_read_ahead_gives_the_batches_of_one_read_here(mails, monkeypatch):
    monkeypatch.setattr(intake, "AHEAD_BYTES", 0)
    assert read_all(mails, 2) == read_all(mails, 1)
    assert len(read_all(mails, 1)[0].rows) == 12


def test_small_files_and_single_processes_start_no_process(mails, monkeypatch):
    def refuse(*_: object) -> None:
        raise AssertionError("a process was started")

    monkeypatch.setattr(intake, "run_ahead", refuse)
    assert read_all(mails, 2) == read_all(mails, 1)
    monkeypatch.setattr(intake, "AHEAD_BYTES", 0)
    read_all(mails, 1)
    with pytest.raises(AssertionError, match="was started"):  # the control: here one would be
        read_all(mails, 2)


def test_an_ingest_read_ahead_stores_what_one_read_here_stores(mails, tmp_path, monkeypatch):
    monkeypatch.setattr(intake, "AHEAD_BYTES", 0)
    found = []
    for processes in (1, 2):
        root = tmp_path / f"w{processes}"
        workspace.init(root, actor="ana")
        with workspace.open_workspace(root, actor="ana") as opened:
            done = workspace.ingest(
                opened, mails, mapping=Mapping(id="id"), trust="reference", processes=processes
            )
            aside = [(q.line, q.offset, q.reason) for q in opened.ledger.quarantined()]
            view = workspace.view(opened, rule=None).select(["record", "prompt", "completion"]).to_pydict()
            found.append((done.accepted, done.unchanged, done.quarantined, aside, view))
    assert found[0] == found[1]
    assert found[0][0] == 9
    assert found[0][2] == 4  # three ids with another text, one broken line
