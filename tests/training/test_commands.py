"""What `tilth train`, `generate` and `merge` ask of this room, from files to a report."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import orjson
import pytest

from apps import models
from apps.cli.session import Session
from curation import workspace
from curation.errors import UsageError
from tests.training.conftest import rows
from training import registry

OPTIONS = {"rank": 2, "epochs": 1.0, "lr": 5e-3, "max_length": 64, "seed": 0}


def written(path: Path, lines: list[dict[str, Any]]) -> Path:
    path.write_bytes(b"".join(orjson.dumps(line) + b"\n" for line in lines))
    return path


def plan(tmp_path: Path, base: Path, lines: list[dict[str, Any]], **options: Any) -> models.Plan:
    data = written(tmp_path / "train.jsonl", lines)
    held = written(tmp_path / "dev.jsonl", options.pop("held", rows(4, seed=1)))
    asked = {"snapshot": "", "revision": "", "method": "lora", "out": tmp_path / "out"} | options
    return models.plan_training(Session(quiet=True), data=data, eval=held, base=str(base), **asked)


def test_a_search_tries_recipes_and_trains_the_best_one(base, tmp_path):
    made = plan(tmp_path, base, rows(16)).train({**OPTIONS, "search": 3}, workspace.silent)
    assert [trial["rung"] for trial in made["trials"]] == [0, 0, 0]
    best = min(made["trials"], key=lambda trial: trial["loss"])
    recipe = registry.read(tmp_path / "out")["recipe"]
    assert (recipe["rank"], recipe["lr"]) == (best["rank"], best["lr"])
    assert recipe["max_steps"] is None


def test_preferences_come_from_a_file_and_half_ones_are_named(base, tmp_path):
    pair = {"prompt": "my card", "chosen": "card_help", "rejected": "no"}
    made = plan(tmp_path, base, [pair, {**pair, "prompt": "my pin"}], method="dpo", held=[pair])
    assert made.train(OPTIONS, workspace.silent)["steps"] == 1
    whole = {side: f"\n\nHuman: my pin\n\nAssistant: {pair[side]}" for side in ("chosen", "rejected")}
    said: list[str] = []
    made = plan(tmp_path, base, [pair, whole], method="dpo", held=[whole], out=tmp_path / "second")
    made.session = SimpleNamespace(say=said.append, root=tmp_path)
    assert made.train(OPTIONS, workspace.silent)["refused"] == []
    assert said
    with pytest.raises(UsageError, match="row 1: a preference has"):
        plan(tmp_path, base, [pair, {"prompt": "q", "chosen": "a"}], method="dpo", held=[pair])


def test_a_mixture_is_typed_as_tasks_with_weights(base, tmp_path):
    lines = [{**row, "task": f"t{i % 2}"} for i, row in enumerate(rows(8))]
    plan(tmp_path, base, lines).train({**OPTIONS, "mix": ["t1=3"]}, workspace.silent)
    assert registry.read(tmp_path / "out")["recipe"]["mixture"] == [["t1", 3.0]]
    for wrong in ("t1", "=3", "t1=x"):
        with pytest.raises(UsageError, match="is not TASK=WEIGHT"):
            plan(tmp_path, base, lines).train({**OPTIONS, "mix": [wrong]}, workspace.silent)


def test_weights_and_passages_of_a_file_reach_the_rows(base, tmp_path):
    line = {"prompt": "how long?", "completion": "5 days", "weight": 0.5, "passages": ["Free for 5 days."]}
    row = plan(tmp_path, base, [line]).rows[0]
    assert row["weight"] == 0.5
    assert row["messages"][-1]["content"].startswith("Answer from these passages:\n[1] Free for 5 days.")


def test_a_dry_run_says_what_would_happen_and_a_merge_says_how_near_it_is(base, tmp_path):
    planned = plan(tmp_path, base, rows(8))
    assert planned.describe() == {
        "rows": 8,
        "base": str(base),
        "method": "lora",
        "out": str(tmp_path / "out"),
    }
    planned.train(OPTIONS, workspace.silent)
    merged = models.merge(tmp_path / "out", tmp_path / "whole", tmp_path / "dev.jsonl")
    assert merged["apart_nats"] < 1e-3
    assert registry.verify(tmp_path / "whole")["kind"] == "model"
