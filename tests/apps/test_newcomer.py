"""What somebody new to the command line types by mistake: told in a sentence, and nothing is lost by it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from apps.cli.people import telling_unusable
from curation.people.intake import NOT_USABLE
from curation.workspace import open_workspace
from tests.curation.toys import inquiries, write_rows

ROOT = Path(__file__).resolve().parents[2]


def tilth(cwd: Path, *words: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "apps.cli", *words]
    return subprocess.run(command, cwd=cwd, input=stdin, capture_output=True, text=True, env=env, check=False)


def told(cwd: Path, *words: str, code: int = 0) -> Any:
    done = tilth(cwd, "--json", *words)
    assert done.returncode == code, done.stderr
    found = json.loads(done.stdout)
    return found["error"] if code else found


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    write_rows(tmp_path / "rows.jsonl", inquiries(40))
    write_rows(tmp_path / "test.jsonl", inquiries(10))
    return tmp_path


@pytest.mark.parametrize(
    "words",
    [
        ("dedup", "rows.jsonl", "--out", "x.jsonl", "--clusters", "x.jsonl"),
        ("dedup", "rows.jsonl", "--out", "x.jsonl", "--clusters", "rows.jsonl"),
        ("dedup", "rows.jsonl", "--out", "x.jsonl", "--contained", "./x.jsonl"),
        ("dedup", "rows.jsonl", "--out", "-", "--clusters", "-"),
        ("dedup", "rows.jsonl", "--against", "test.jsonl", "--out", "test.jsonl"),
        ("scrub", "rows.jsonl", "--out", "x.jsonl", "--spans", "x.jsonl"),
        ("scrub", "rows.jsonl", "--out", "x.jsonl", "--spans", "rows.jsonl"),
        ("decontaminate", "rows.jsonl", "--against", "test.jsonl", "--out", "test.jsonl"),
        ("decontaminate", "rows.jsonl", "--against", "test.jsonl", "--report", "rows.jsonl"),
        ("decontaminate", "rows.jsonl", "--against", "test.jsonl", "--out", "x.jsonl", "--report", "x.jsonl"),
    ],
    ids=" ".join,
)
def test_no_output_takes_the_place_of_another_or_of_a_file_that_is_read(
    rows: Path, words: tuple[str, ...]
) -> None:
    before = {path.name: path.read_bytes() for path in rows.iterdir()}
    assert told(rows, *words, code=2)["next"] == "Name another file"
    assert {path.name: path.read_bytes() for path in rows.iterdir()} == before


def test_outputs_that_are_apart_are_all_written_and_devices_may_be_named_twice(rows: Path) -> None:
    told(rows, "dedup", "rows.jsonl", "--out", "x.jsonl", "--clusters", "y.jsonl")
    assert (rows / "x.jsonl").is_file()
    assert (rows / "y.jsonl").is_file()
    told(rows, "dedup", "rows.jsonl", "--out", "/dev/null", "--clusters", "/dev/null")
    told(rows, "dedup", "rows.jsonl", "--out", "rows.jsonl")  # in place: the file is replaced whole


@pytest.mark.parametrize("command", ["run", "select"])
def test_a_mistyped_strategy_is_told_before_a_model_is_made(rows: Path, command: str) -> None:
    told(rows, "init", "desk")
    told(rows, "--workspace", "desk", "ingest", "rows.jsonl")
    words = ("--workspace", "desk", command, "--annotator", "files", "--strategy", "hybird")
    assert "'hybird' is none of random" in told(rows, *words, code=2)["what"]
    assert not (rows / "desk" / "artifacts" / "bases").exists()


def test_a_dry_run_says_that_it_was_one_and_a_real_run_does_not(rows: Path) -> None:
    told(rows, "init", "desk")
    ingest = ("--workspace", "desk", "ingest", "rows.jsonl")
    assert "(dry run: nothing was written)" in tilth(rows, *ingest, "--dry-run").stdout
    assert "dry run" not in tilth(rows, *ingest).stdout
    backup = ("--workspace", "desk", "backup", "copy.db", "--dry-run")
    assert "would be in copy.db" in tilth(rows, *backup).stdout
    assert not (rows / "copy.db").exists()


def test_what_is_piped_on_holds_rows_alone(rows: Path) -> None:
    text = (rows / "rows.jsonl").read_text()
    for words in (("dedup", "-", "--out", "-"), ("convert", "-", "-", "--to", "chat")):
        done = tilth(rows, *words, stdin=text)
        assert len([json.loads(line) for line in done.stdout.splitlines()]) == 40
        assert "rows" in done.stderr
    assert "rows" in tilth(rows, "dedup", "-", stdin=text).stdout  # without rows there, the result is


def test_a_mistyped_choice_or_field_is_refused_and_not_passed_over(rows: Path) -> None:
    (rows / "lf.py").write_text(
        "from curation.voting import keyword\nlost = keyword('lost', 'claims', ['lost'])\n", encoding="utf-8"
    )
    (rows / "p.jsonl").write_text('{"id": "a", "prompt": "x", "completion": "y", "answer": "y"}\n')
    measure = ("evaluate", "--data", "p.jsonl", "--predictions", "answer")
    cases = [
        ("--layers", "pattern", ("scrub", "rows.jsonl", "--layers", "pattern")),
        ("--mode", "masks", ("scrub", "rows.jsonl", "--mode", "masks")),
        ("--gold", "golt", ("vote", "rows.jsonl", "--lfs", "lf.py", "--gold", "golt")),
        ("--slices", "lnag", (*measure, "--slices", "lnag")),
    ]
    for option, name, words in cases:
        error = told(rows, *words, code=2)
        assert option in error["where"]
        assert name in error["what"]


def test_metrics_are_shown_by_slice_and_scores_name_their_rows(rows: Path) -> None:
    found = [
        {
            "id": str(i),
            "lang": "en" if i % 2 else "de",
            "prompt": "x",
            "completion": "y",
            "answer": "y" if i % 2 else "z",
        }
        for i in range(8)
    ]
    write_rows(rows / "p.jsonl", found)
    words = ("evaluate", "--data", "p.jsonl", "--predictions", "answer", "--metrics", "exact_match")
    slices = told(rows, *words, "--slices", "lang", "--out", "scores.jsonl")["slices"]
    assert {name: part["metrics"]["exact_match"]["value"] for name, part in slices.items()} == {
        "lang=de": 0.0,
        "lang=en": 1.0,
    }
    scores = [json.loads(line) for line in (rows / "scores.jsonl").read_text().splitlines()]
    assert [row["id"] for row in scores] == [row["id"] for row in found]
    shown = tilth(rows, *words, "--slices", "lang")
    assert shown.returncode == 0, shown.stderr
    assert "lang=en  exact_match  1.000" in shown.stdout


def test_a_broken_line_is_told_once_with_what_to_do(rows: Path) -> None:
    (rows / "broken.jsonl").write_text('{"text": "one"}\n{"text":\n')
    error = told(rows, "dedup", "broken.jsonl", code=2)
    assert error["what"] == "truncated: the record breaks off"
    assert error["next"] == "Write the record again, whole"


@pytest.fixture
def desk(rows: Path) -> Path:
    told(rows, "init", "desk")
    told(rows, "--workspace", "desk", "ingest", "rows.jsonl")
    return rows


def undo(desk: Path, *words: str, code: int = 0) -> Any:
    return told(desk, "--workspace", "desk", "ingest", "--undo", *words, code=code)


def test_an_ingest_that_failed_is_not_what_undo_takes_back(desk: Path) -> None:
    for _ in range(2):
        told(desk, "--workspace", "desk", "ingest", "test.jsonl", "--map", "prompt=promt", code=2)
    assert told(desk, "--workspace", "desk", "status")["ingests"] == 1
    assert undo(desk)["file"] == "rows.jsonl"


def test_undo_takes_back_the_file_that_is_named_or_nothing(desk: Path) -> None:
    (desk / "other.jsonl").write_text('{"prompt": "another question", "completion": "yes"}\n')
    told(desk, "--workspace", "desk", "ingest", "other.jsonl")
    error = undo(desk, "absent.jsonl", code=2)
    assert "absent.jsonl" in error["what"]
    assert "other.jsonl" in error["next"]
    tried = undo(desk, "rows.jsonl", "--dry-run")
    assert told(desk, "--workspace", "desk", "status")["records"] == 41
    assert undo(desk, "rows.jsonl") == {
        "schema": 1,
        "ingest": tried["ingest"],
        "file": "rows.jsonl",
        "records": 40,
    }
    assert told(desk, "--workspace", "desk", "status")["records"] == 1
    assert undo(desk)["file"] == "other.jsonl"
    assert "Nothing was ingested" in undo(desk, code=2)["next"]


def test_an_answer_that_cannot_be_used_is_told_with_its_reason_once(
    desk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with open_workspace(desk / "desk", actor="ana") as opened:
        opened.ledger.event(NOT_USABLE, "record-before", {"why": "told before", "annotation": "0"})
        with telling_unusable(opened):
            opened.ledger.event(NOT_USABLE, "record-1", {"why": "'crad' is no class", "annotation": "1"})
    assert capsys.readouterr().err == "the answer to record-1 could not be used: 'crad' is no class\n"
