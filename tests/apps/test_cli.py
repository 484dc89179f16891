"""The command line's contract: every command explains itself, speaks JSON, and writes nothing on a dry run."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer.main

from apps.cli import app
from tests.curation.toys import inquiries, write_rows

ROOT = Path(__file__).resolve().parents[2]
GROUP = typer.main.get_command(app)


def commands() -> dict[str, Any]:
    """Every command by its words, subcommands included."""
    found = {}
    for name, command in GROUP.commands.items():
        if hasattr(command, "commands"):
            found |= {f"{name} {sub}": item for sub, item in command.commands.items()}
        else:
            found[name] = command
    return found


COMMANDS = commands()
# Commands that only read have nothing to try out.
READERS = {
    "status",
    "doctor",
    "question",
    "question judged",
    "audit",
    "snapshot list",
    "snapshot show",
    "snapshot diff",
    "snapshot verify",
}


def tilth(*words: str, cwd: Path, code: int = 0) -> Any:
    """Run a command with --json and return its object; the exit code must be ``code``."""
    done = subprocess.run(
        [sys.executable, "-m", "apps.cli", "--json", *words],
        cwd=cwd,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert done.returncode == code, done.stderr
    lines = done.stdout.strip().splitlines()
    assert len(lines) == 1, "stdout holds one JSON object and nothing else"
    return json.loads(lines[0])


def tree(folder: Path) -> dict[str, str]:
    """Every file below a folder with the digest of its content."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.endswith("-journal")
    }


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_has_help_with_an_example_and_a_line_in_the_readme(name: str) -> None:
    command = COMMANDS[name]
    assert command.help
    assert (command.epilog or "").startswith(f"Example: tilth {name}"), name
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    first, _, second = name.partition(" ")
    assert f"`tilth {first}" in readme
    assert not second or f"{second}" in readme


@pytest.mark.parametrize("name", sorted(set(COMMANDS) - READERS))
def test_a_command_that_writes_has_a_dry_run(name: str) -> None:
    assert "--dry-run" in [opt for param in COMMANDS[name].params for opt in getattr(param, "opts", ())], name


def test_the_readme_names_no_command_that_is_not_there() -> None:
    import re

    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    named = {m[1] for m in re.finditer(r"tilth (?:--[a-z]+ \S+ )*([a-z]+)", readme)}
    assert named <= {name.split()[0] for name in COMMANDS} | {"is", "finds"}


@pytest.fixture
def desk(tmp_path: Path) -> Path:
    """A workspace with some rows."""
    tilth("init", "desk", cwd=tmp_path)
    write_rows(tmp_path / "rows.jsonl", inquiries(80))
    tilth("--workspace", "desk", "ingest", "rows.jsonl", "--map", "id=id", cwd=tmp_path)
    return tmp_path


def test_a_workspace_counts_what_it_was_given_and_knows_it_again(desk: Path) -> None:
    again = tilth("--workspace", "desk", "ingest", "rows.jsonl", "--map", "id=id", cwd=desk)
    assert (again["accepted"], again["unchanged"], again["quarantined"]) == (0, 80, 0)
    assert tilth("--workspace", "desk", "status", cwd=desk)["records"] == 80
    undone = tilth("--workspace", "desk", "ingest", "--undo", cwd=desk)
    assert undone["ingest"] == again["ingest"]


def test_a_dry_run_of_an_import_foretells_what_the_import_does(desk: Path) -> None:
    """Known rows, new ones, a known row with another completion, a known id with another text, and a broken line."""
    rows = [json.loads(line) for line in (desk / "rows.jsonl").read_text().splitlines()]
    more = [
        *rows[:20],
        *({**row, "id": f"new-{row['id']}"} for row in rows[20:30]),
        {**rows[30], "completion": "another answer"},
        {**rows[31], "prompt": "another text under a known id"},
    ]
    write_rows(desk / "more.jsonl", more)
    with (desk / "more.jsonl").open("a") as file:
        file.write("{broken\n")
    words = ("--workspace", "desk", "ingest", "more.jsonl", "--map", "id=id")
    names = ("accepted", "unchanged", "quarantined")
    foretold, done = tilth(*words, "--dry-run", cwd=desk), tilth(*words, cwd=desk)
    assert [foretold[name] for name in names] == [done[name] for name in names] == [11, 20, 2]
    once_more = tilth(*words, "--dry-run", cwd=desk)
    assert [once_more[name] for name in names] == [0, 31, 2]


def test_every_import_is_listed_with_the_id_that_undo_takes(desk: Path) -> None:
    write_rows(desk / "more.jsonl", inquiries(90)[80:])
    tilth("--workspace", "desk", "ingest", "more.jsonl", "--map", "id=id", cwd=desk)
    first, second = tilth("--workspace", "desk", "status", "--ingests", cwd=desk)["ingests"]
    assert [(one["file"], one["accepted"], one["state"]) for one in (first, second)] == [
        ("rows.jsonl", 80, "stands"),
        ("more.jsonl", 10, "stands"),
    ]
    tilth("--workspace", "desk", "ingest", "--undo", "--id", first["id"], cwd=desk)
    states = tilth("--workspace", "desk", "status", "--ingests", cwd=desk)["ingests"]
    assert [one["state"] for one in states] == ["undone", "stands"]


@pytest.mark.parametrize(
    "words",
    [
        ("init", "other", "--dry-run"),
        ("--workspace", "desk", "ingest", "rows.jsonl", "--dry-run"),
        ("--workspace", "desk", "curate", "--dry-run"),
        ("--workspace", "desk", "label", "--dry-run"),
        ("--workspace", "desk", "run", "--rounds", "2", "--annotator", "simulated", "--dry-run"),
        ("--workspace", "desk", "select", "--dry-run"),
        ("--workspace", "desk", "pull", "--annotator", "files", "--dry-run"),
        ("--workspace", "desk", "review", "--dry-run"),
        ("--workspace", "desk", "report", "report.html", "--dry-run"),
        ("--workspace", "desk", "people", "add", "Ines", "--minutes", "90", "--dry-run"),
        ("--workspace", "desk", "erase", "Ines", "--dry-run"),
        ("--workspace", "desk", "train", "--data", "rows.jsonl", "--out", "adapter", "--dry-run"),
        ("--workspace", "desk", "backup", "copy.db", "--dry-run"),
        ("--workspace", "desk", "export", "all", "--dry-run"),
        ("dedup", "rows.jsonl", "--out", "kept.jsonl", "--dry-run"),
        ("scrub", "rows.jsonl", "--out", "clean.jsonl", "--dry-run"),
        ("decontaminate", "rows.jsonl", "--against", "rows.jsonl", "--out", "x.jsonl", "--dry-run"),
        ("convert", "rows.jsonl", "x.jsonl", "--to", "chat", "--dry-run"),
        ("demo", "here", "--dry-run"),
    ],
    ids=lambda words: " ".join(w for w in words if not w.startswith("-"))[:40],
)
def test_a_dry_run_changes_no_file(desk: Path, words: tuple[str, ...]) -> None:
    before = tree(desk)
    tilth(*words, cwd=desk)
    assert tree(desk) == before


def test_the_dry_run_check_sees_a_file_that_changed(desk: Path) -> None:
    before = tree(desk)
    tilth("convert", "rows.jsonl", "x.jsonl", "--to", "chat", cwd=desk)
    assert tree(desk) != before


def write(folder: Path, name: str, text: str) -> str:
    (folder / name).write_text(text, encoding="utf-8")
    return name


def test_bad_input_is_told_in_one_sentence_with_the_right_exit_code(desk: Path) -> None:
    cases = [
        (2, "absent.jsonl", ("--workspace", "desk", "ingest", "absent.jsonl")),
        (2, "empty", ("--workspace", "desk", "ingest", write(desk, "empty.jsonl", ""))),
        (
            2,
            "image.png",
            ("--workspace", "desk", "ingest", write(desk, "image.png", "\x89PNG\r\n\x1a\n\x00\x00")),
        ),
        (2, "not a workspace", ("--workspace", ".", "status")),
        (2, "no field", ("--workspace", "desk", "ingest", "rows.jsonl", "--map", "prompt=promt")),
        (2, "none of candidate", ("--workspace", "desk", "ingest", "rows.jsonl", "--trust", "blind")),
        (4, "workspace already", ("init", "desk")),
        (2, "no snapshot", ("--workspace", "desk", "snapshot", "show", "abc")),
        (2, "annotator", ("--workspace", "desk", "run", "--annotator", "nobody")),
    ]
    for code, words, command in cases:
        error = tilth(*command, cwd=desk, code=code)["error"]
        assert words in json.dumps(error), error
        assert error["exit_code"] == code


def test_three_mistakes_in_the_configuration_are_told_together(desk: Path) -> None:
    path = desk / "desk" / "tilth.toml"
    text = path.read_text().replace("threshold = 0.8", "treshold = 0.8").replace("pii = true", 'pii = "yes"')
    path.write_text(text + "\n[trainn]\nrank = 1\n")
    error = tilth("--workspace", "desk", "status", cwd=desk, code=2)["error"]["what"]
    assert "did you mean 'threshold'" in error
    assert "true or false" in error
    assert "did you mean 'train'" in error


def test_an_unknown_base_model_is_named_with_the_way_to_get_it(desk: Path) -> None:
    write_rows(desk / "train.jsonl", [{"prompt": "a b c", "completion": "d"}])
    words = ("train", "--data", "train.jsonl", "--base", "nobody/nothing", "--out", "adapter")
    error = tilth(*words, cwd=desk, code=2)["error"]
    assert "nobody/nothing" in json.dumps(error)
    assert not (desk / "adapter").exists()


def test_a_filter_reads_standard_input(desk: Path) -> None:
    rows = (desk / "rows.jsonl").read_text() * 2
    command = [sys.executable, "-m", "apps.cli", "--quiet", "dedup", "-", "--out", "-"]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, input=rows, cwd=desk, capture_output=True, text=True, env=env, check=True)
    kept = [line for line in done.stdout.splitlines() if line.startswith("{")]
    assert len(kept) == 80


def test_control_characters_of_data_never_reach_the_terminal(desk: Path) -> None:
    evil = "\x1b]0;owned\x07 \u202egnp.exe \x9b31m"
    write_rows(
        desk / "evil.jsonl", [{"id": "1", "prompt": evil, "completion": evil}, {"id": "1", "prompt": "other"}]
    )
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    for words in (("ingest", "evil.jsonl", "--map", "id=id"), ("status", "--quarantine"), ("question",)):
        command = [sys.executable, "-m", "apps.cli", "--workspace", "desk", *words]
        done = subprocess.run(command, cwd=desk, capture_output=True, text=True, env=env, check=True)
        shown = done.stdout + done.stderr
        assert not any(
            (ord(c) < 32 and c not in "\n\t") or 127 <= ord(c) < 160 or c == "\u202e" for c in shown
        )


def test_the_vault_by_the_command_line_says_what_is_wrong_with_the_right_code(desk: Path) -> None:
    def vault(*words: str, code: int = 0) -> Any:
        return tilth("--workspace", "desk", "vault", *words, cwd=desk, code=code)

    assert "no vault" in vault("show", "Madu", code=2)["error"]["what"]
    vault("enable", "--key-file", "key", "--dry-run")
    assert not (desk / "key").exists()
    vault("enable", "--key-file", "key")
    vault("enable", "--key-file", "key", code=4)
    assert "holds no alias" in vault("show", "Madu", code=2)["error"]["what"]
    assert "--yes" in vault("destroy", code=2)["error"]["next"]
    (desk / "desk" / ".tilth" / "vault").open("a").write(
        '{"type": "PERSON", "hash": "x", "sealed": "AAAA"}\n'
    )
    vault("show", "Madu", code=5)
    (desk / "key").write_text("0" * 64)
    assert "not the one" in vault("export", "values.jsonl", code=2)["error"]["what"]
    assert vault("destroy", "--yes")["entries"] == 1


def test_a_record_that_is_not_there_cannot_be_explained(desk: Path) -> None:
    told = tilth("--workspace", "desk", "curate", "--explain", "zzz", cwd=desk, code=2)
    assert "'zzz'" in told["error"]["what"]
