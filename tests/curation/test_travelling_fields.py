"""Every field that a row brings along: none of them carries a person out of the workspace's ledger."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from curation import assemble, examples, snapshot
from curation.curate import curate
from curation.formats import Mapping
from curation.workspace import Workspace, ingest, init, open_workspace

CANARIES = {
    "id": "ines.key@nest.example.com",
    "group": "Rosalind Unwin 415-555-0199",
    "tags": "tag.rosalind@nest.example.com",
    "note": "note.rosalind@nest.example.com",
    "file": "rosalind-unwin-complaint",
    "prompt": "prompt.rosalind@nest.example.com",
    "completion": "answer.rosalind@nest.example.com",
}
FIELDS = {name: value for name, value in CANARIES.items() if name in ("id", "group", "tags", "note")}


def desk(folder: Path) -> Workspace:
    """A curated workspace of forty rows with a canary in every field of each."""
    init(folder / "desk", actor="ana", name="desk")
    rows = [
        {
            **{name: f"{value}{n}" for name, value in FIELDS.items()},
            "prompt": f"Crate {n} is late, write to {CANARIES['prompt']} about gate {n * 7}.",
            "completion": f"We told {CANARIES['completion']} that crate {n} leaves at {n % 12} today.",
        }
        for n in range(40)
    ]
    source = folder / f"{CANARIES['file']}.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    opened = open_workspace(folder / "desk", actor="ana")
    mapping = Mapping(id="id", group="group")
    ingest(opened, source, mapping=mapping, trust="reference")
    curate(opened)
    return opened


def heard(folder: Path) -> set[str]:
    """The canaries that can be heard in any file of the folder, Parquet read as what it holds."""
    said = []
    for path in sorted(folder.rglob("*")):
        said += [str(path.relative_to(folder))]
        if path.is_file():
            text = path.read_bytes().decode("utf-8", "replace")
            said += [
                json.dumps(pq.read_table(path).to_pylist(), default=str)
                if path.suffix == ".parquet"
                else text
            ]
    whole = "\n".join(said)
    return {name for name, value in CANARIES.items() if value in whole}


def frozen_and_exported(folder: Path) -> set[str]:
    with desk(folder) as opened:
        name = assemble.freeze(opened, assemble.compose(opened)).name
        out = folder / "out"
        out.mkdir()
        for to in ("jsonl", "trl", "chat"):
            snapshot.export(opened.store, name, to=to, out=out / f"{to}.jsonl")
        snapshot.export_directory(opened.store, name, out / "copy")
        assert pq.read_table(next((out / "copy").rglob("*.parquet"))).num_rows > 20
        return heard(out) | heard(opened.store.path("snapshots", name))


def test_no_field_of_a_row_is_heard_in_a_snapshot_or_an_export(tmp_path: Path) -> None:
    assert frozen_and_exported(tmp_path) == set()


@pytest.mark.parametrize("sabotage", ["group", "texts"])
def test_the_search_hears_a_group_or_a_text_that_is_left_as_it_came(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sabotage: str
) -> None:
    if sabotage == "group":
        monkeypatch.setattr(examples, "_with_opaque_groups", lambda views, key: views)
        assert frozen_and_exported(tmp_path) == {"group"}
    else:
        monkeypatch.setattr("curation.pii.scan.Scanner._scan", lambda *_: [])
        assert {"prompt", "completion"} <= frozen_and_exported(tmp_path)
