"""`tilth run`, the real command with the real trainer, killed at random times: it comes to the same snapshots."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from curation.workspace import open_workspace
from tests.apps.test_cli import tilth
from tests.curation.toys import inquiries, write_rows

ROOT = Path(__file__).resolve().parents[2]
RUN = ("--json", "run", "--rounds", "2", "--annotator", "simulated")
KILLS, RUNS = 4, 3


def desk(folder: Path) -> Path:
    """A workspace with a small batch and a small recipe, ingested and not yet run."""
    tilth("init", str(folder), cwd=folder.parent)
    text = (folder / "tilth.toml").read_text()
    for old, new in {
        "batch = 50": "batch = 16",
        "rank = 16": "rank = 4\nadapt_steps = 8\nepochs = 2.0",
    }.items():
        assert old in text
        text = text.replace(old, new)
    (folder / "tilth.toml").write_text(text)
    rows = write_rows(folder / "rows.jsonl", inquiries(120))
    tilth("--workspace", str(folder), "ingest", str(rows), "--map", "id=id", "--map", "gold=gold", cwd=folder)
    return folder


def started(folder: Path) -> subprocess.Popen[str]:
    """The run, in a process group of its own, so that a kill reaches whatever it started."""
    return subprocess.Popen(
        [sys.executable, "-m", "apps.cli", "--workspace", str(folder), *RUN],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        start_new_session=True,
    )


def finished(folder: Path) -> tuple[dict[str, Any], float]:
    start = time.monotonic()
    running = started(folder)
    out, err = running.communicate()
    assert running.returncode == 0, err[-3000:]
    return json.loads(out), time.monotonic() - start


def kill_after(folder: Path, seconds: float) -> bool:
    """Start the run and kill it after a while; whether it was still running then."""
    running = started(folder)
    try:
        running.communicate(timeout=seconds)
        return False
    except subprocess.TimeoutExpired:
        os.killpg(running.pid, signal.SIGKILL)
        running.communicate()
        return True


def names(result: dict[str, Any]) -> list[tuple[str, str]]:
    return [(r["snapshot"], r["random_snapshot"]) for r in result["rounds"]]


@pytest.mark.slow
def test_a_real_run_killed_at_random_times_comes_to_the_same_snapshots_and_asks_nothing_twice(
    tmp_path: Path,
) -> None:
    fresh = desk(tmp_path / "fresh")
    whole = shutil.copytree(fresh, tmp_path / "whole")
    expected, seconds = finished(whole)
    draw, killed = random.Random(11), 0
    for attempt in range(RUNS):
        folder = shutil.copytree(fresh, tmp_path / f"killed-{attempt}")
        for _ in range(KILLS):
            killed += kill_after(folder, draw.uniform(0.1, 0.9) * seconds)
        result, _ = finished(folder)
        assert names(result) == names(expected)
        with open_workspace(folder, actor="ana") as opened:
            showings = [(s.record, s.selection, s.annotator) for s in opened.ledger.showings()]
            assert len(showings) == len(set(showings))
            assert not opened.ledger.audit().problems
    assert killed >= RUNS, "too few runs were still going when they were to be killed"
