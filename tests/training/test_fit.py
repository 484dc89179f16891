"""The loop: exactly resumable, killed at any moment, stopped when it learns no more, the same on one process and on two."""

from __future__ import annotations

import dataclasses
import json
import math
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from curation.errors import ConflictError, StorageFailed, TilthError, UsageError
from tests.training.conftest import rows
from training import checkpoint, fit, registry, tracking
from training.checkpoint import Keeper, place_of
from training.fit import measured_steps
from training.recipe import Recipe, pace
from training.train import TrainResult, train

ROOT = Path(__file__).resolve().parents[2]
QUICK = Recipe(rank=2, alpha=4, max_steps=8, max_length=64, lr=5e-3, batch=4, dropout=0.1, evaluations=2)


class Interrupted(BaseException):
    """What a test throws to stop a run half-way."""


def run(base: Path, out: Path, recipe: Recipe = QUICK, stop: int = 0, **options) -> TrainResult:  # type: ignore[no-untyped-def]
    def watch(told):  # type: ignore[no-untyped-def]
        if told["step"] == stop:
            raise Interrupted

    return train(
        rows(16), recipe, base, out, eval_examples=rows(4, seed=1), progress=watch, save_every=2, **options
    )


@pytest.fixture(scope="module")
def whole(base, tmp_path_factory) -> TrainResult:
    return run(base, tmp_path_factory.mktemp("whole") / "out")


# ------------------------------------------------------------------------------------------- resuming


@pytest.mark.parametrize("method", ["lora", "adalora", "qlora", "full"])
def test_a_run_that_goes_on_ends_with_the_weights_of_one_that_was_not_stopped(base, tmp_path, method):
    recipe = dataclasses.replace(QUICK, method=method, lr=None if method == "adalora" else 5e-3, max_steps=10)
    straight = run(base, tmp_path / "a", recipe)
    with pytest.raises(Interrupted):
        run(base, tmp_path / "b", recipe, stop=7)
    assert not (tmp_path / "b").exists()
    assert [p.name for p in sorted(place_of(tmp_path / "b").glob("step-*"))] == [
        "step-000000004",
        "step-000000006",
    ]
    again = run(base, tmp_path / "b", recipe)
    assert again.train_loss == pytest.approx(straight.train_loss, abs=1e-5)
    assert registry.read(again.adapter)["files"] == registry.read(straight.adapter)["files"]
    assert again.digest == straight.digest
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b"]


def test_without_the_generators_state_the_weights_would_differ(base, tmp_path, whole, monkeypatch):
    with pytest.raises(Interrupted):
        run(base, tmp_path / "b", stop=5)
    monkeypatch.setattr(torch.random, "set_rng_state", lambda state: torch.manual_seed(99))
    assert run(base, tmp_path / "b").digest != whole.digest


@pytest.mark.parametrize("damage", ["tensors.safetensors", "state.json", "complete.json"])
@pytest.mark.parametrize("how", ["flip", "cut", "gone"])
def test_a_broken_checkpoint_is_passed_over_for_the_one_before(base, tmp_path, whole, damage, how):
    with pytest.raises(Interrupted):
        run(base, tmp_path / "b", stop=7)
    newest = place_of(tmp_path / "b") / "step-000000006" / damage
    data = bytearray(newest.read_bytes())
    data[len(data) // 2] ^= 1
    {
        "flip": lambda: newest.write_bytes(data),
        "cut": lambda: newest.write_bytes(data[: len(data) // 2]),
        "gone": newest.unlink,
    }[how]()
    again = run(base, tmp_path / "b")
    assert registry.read(again.adapter)["files"] == registry.read(whole.adapter)["files"]
    assert tracked_starts(again.adapter) == 5  # it went on from step 4


def tracked_starts(adapter: Path) -> int:
    """The first step that the last part of a run made."""
    log = tracking.read(adapter / registry.LOG)
    start = max(i for i, line in enumerate(log) if line["kind"] == "run")
    return next(int(line["step"]) for line in log[start:] if line["kind"] == "step")


def test_without_the_hashes_a_broken_checkpoint_would_be_trained_on(base, tmp_path, whole, monkeypatch):
    with pytest.raises(Interrupted):
        run(base, tmp_path / "b", stop=7)
    newest = place_of(tmp_path / "b") / "step-000000006" / "tensors.safetensors"
    data = bytearray(newest.read_bytes())
    data[-200] ^= 0x40
    newest.write_bytes(data)

    def unchecked(keeper: Keeper, path: Path) -> checkpoint.Saved:
        state = json.loads((path / "state.json").read_bytes())
        return checkpoint.Saved(checkpoint.load_file(path / "tensors.safetensors"), state)

    monkeypatch.setattr(Keeper, "_read", unchecked)
    assert run(base, tmp_path / "b").digest != whole.digest


@pytest.mark.parametrize("other", [{"seed": 1}, {"lr": 4e-3}])
def test_the_checkpoint_of_another_recipe_is_not_gone_on_from(base, tmp_path, other):
    with pytest.raises(Interrupted):
        run(base, tmp_path / "b", stop=5)
    again = run(base, tmp_path / "b", dataclasses.replace(QUICK, **other))
    assert tracked_starts(again.adapter) == 1


def test_a_checkpoint_holds_no_pickle_and_one_that_is_put_there_is_not_loaded(base, tmp_path):
    with pytest.raises(Interrupted):
        run(base, tmp_path / "b", stop=7)
    place = place_of(tmp_path / "b")
    assert {p.suffix for p in place.glob("step-*/*")} == {".safetensors", ".json"}
    marker = tmp_path / "ran"
    evil = f"cos\nsystem\n(S'touch {marker}'\ntR.".encode()
    for name in ("optimizer.pt", "rng_state.pth", "training_args.bin"):
        (place / "step-000000006" / name).write_bytes(evil)
    run(base, tmp_path / "b")
    assert not marker.exists()


def _child(base: Path, out: Path) -> None:
    torch.set_num_threads(1)
    run(base, out)
    os._exit(0)


def killed(base: Path, out: Path, times: int, seed: int) -> int:
    """Start the run, kill it after a random part of the time it takes, and again; how often it was cut off."""
    fork, rng, kills = multiprocessing.get_context("fork"), random.Random(seed), 0
    start = time.monotonic()
    whole = fork.Process(target=_child, args=(base, out))
    whole.start()
    whole.join()
    seconds = time.monotonic() - start
    shutil.rmtree(out)
    shutil.rmtree(place_of(out), ignore_errors=True)
    for _ in range(times):
        process = fork.Process(target=_child, args=(base, out))
        process.start()
        process.join(rng.uniform(0.05, 0.9) * seconds)
        process.kill()
        process.join()
        kills += process.exitcode == -signal.SIGKILL
        if out.exists():
            registry.verify(out)  # whole, or not there
            shutil.rmtree(out)
            shutil.rmtree(place_of(out), ignore_errors=True)
    return kills


@pytest.mark.parametrize("times", [10, pytest.param(50, marks=pytest.mark.slow)])
def test_a_run_that_is_killed_at_any_moment_ends_as_if_it_never_was(base, tmp_path, whole, times):
    kills = killed(base, tmp_path / "out", times, seed=times)
    assert kills >= times // 2
    last = run(base, tmp_path / "out")
    assert registry.read(last.adapter)["files"] == registry.read(whole.adapter)["files"]
    assert last.train_loss == pytest.approx(whole.train_loss, abs=1e-5)
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("moment", ["save_file", "file_digests", "replace"])
def test_a_kill_while_a_checkpoint_is_written_leaves_the_one_before(
    base, tmp_path, whole, monkeypatch, moment
):
    owner = {"save_file": checkpoint, "file_digests": registry, "replace": os}[moment]
    real = getattr(owner, moment)
    calls = []

    def die(*args, **options):  # type: ignore[no-untyped-def]
        calls.append(args)
        if len(calls) == 3:
            raise Interrupted
        return real(*args, **options)

    monkeypatch.setattr(owner, moment, die)
    with pytest.raises(Interrupted):
        run(base, tmp_path / "out")
    monkeypatch.undo()
    assert run(base, tmp_path / "out").digest == whole.digest


def test_a_disk_that_fills_up_is_named_and_the_run_goes_on_later(base, tmp_path, whole, monkeypatch):
    with pytest.raises(Interrupted):
        run(base, tmp_path / "out", stop=5)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(StorageFailed, match="the disk is full"):
        run(base, tmp_path / "out")
    monkeypatch.undo()
    again = run(base, tmp_path / "out")
    assert again.digest == whole.digest
    assert tracked_starts(again.adapter) > 1


def test_two_processes_do_not_train_into_the_same_folder(base, tmp_path):
    with checkpoint.workplace(tmp_path / "out"), pytest.raises(ConflictError, match="another process trains"):
        run(base, tmp_path / "out")


# -------------------------------------------------------------------------------------------- stopping


def test_the_best_measurement_is_what_is_kept_and_patience_ends_the_run(base, tmp_path):
    recipe = dataclasses.replace(QUICK, lr=9e-2, max_steps=60, evaluations=30, patience=3, dropout=0.0)
    made = run(base, tmp_path / "a", recipe)
    measured = [line for line in tracking.read(made.adapter / registry.LOG) if "eval_loss" in line]
    best = min(measured, key=lambda line: line["eval_loss"])
    assert made.steps < 60
    assert made.metrics["best_step"] == best["step"] < made.steps
    assert made.eval_loss == pytest.approx(best["eval_loss"], abs=1e-6)


def test_measurements_lie_evenly_and_the_last_update_is_one():
    assert sorted(measured_steps(8, 2)) == [4, 8]
    assert measured_steps(3, 10) == {1, 2, 3}
    assert measured_steps(8, 0) == set()


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
def test_a_schedule_rises_then_falls_and_stays_within_its_peak(schedule):
    recipe = Recipe(schedule=schedule, warmup=0.2)
    paces = [pace(i, 50, recipe) for i in range(50)]
    assert paces[:10] == sorted(paces[:10])
    assert paces[10] == max(paces) == 1.0
    assert paces[10:] == sorted(paces[10:], reverse=True)
    assert (paces[-1] < 0.05) == (schedule != "constant")


# -------------------------------------------------------------------------------------------- telling


class Ledger:
    """A sink that remembers, and lets go after so many questions."""

    def __init__(self, lets_go: int = 10**9) -> None:
        self.events: list[tuple[str, dict]] = []
        self.left = lets_go

    def event(self, kind, subject, detail):  # type: ignore[no-untyped-def]
        self.events.append((kind, dict(detail)))

    def holds(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise ConflictError("the lease was lost")


def test_a_run_tells_its_sink_how_it_began_and_ended(base, tmp_path):
    sink = Ledger()
    made = run(base, tmp_path / "a", sink=sink)
    assert [kind for kind, _ in sink.events] == ["train-started", "train-finished"]
    assert sink.events[-1][1]["digest"] == made.digest


@pytest.mark.parametrize("after", [0, 2, 4])
def test_a_run_that_lost_its_hold_publishes_nothing_and_says_that_it_failed(base, tmp_path, after):
    sink = Ledger(lets_go=after)
    with pytest.raises(ConflictError):
        run(base, tmp_path / "a", sink=sink)
    assert not (tmp_path / "a").exists()
    assert [kind for kind, _ in sink.events] == ["train-started", "train-failed"]


def test_a_loss_that_is_not_a_number_forgets_its_checkpoints(base, tmp_path, monkeypatch):
    real, calls = fit.update, []

    def broken(*args):  # type: ignore[no-untyped-def]
        calls.append(1)
        return (math.nan, 1) if len(calls) == 5 else real(*args)

    monkeypatch.setattr(fit, "update", broken)
    sink = Ledger()
    with pytest.raises(TilthError, match="the loss became nan at step 5"):
        run(base, tmp_path / "a", sink=sink)
    assert list(tmp_path.iterdir()) == []
    assert sink.events[-1][0] == "train-failed"


def test_the_log_tells_every_step_and_what_it_was_made_on(base, tmp_path, whole):
    log = tracking.read(whole.adapter / registry.LOG)
    assert [line["step"] for line in log if line["kind"] == "step"] == list(range(1, 9))
    about = log[0]
    assert about["recipe"]["rank"] == 2
    assert about["hardware"]["cores"] == os.cpu_count()
    assert about["data"] == registry.read(whole.adapter)["data"]
    assert log[-1]["kind"] == "end"
    assert log[-1]["minutes"] > 0
    assert any(p.name.startswith("events.out.tfevents") for p in (whole.adapter / registry.LOG).iterdir())


def test_before_the_first_update_a_row_is_shown_with_its_mask_and_the_memory_it_takes(base, tmp_path):
    said: list[str] = []
    run(base, tmp_path / "a", say=said.append)
    assert "⟦" in said[0]
    assert "_help<|end|>⟧" in said[0]
    assert any("memory: about" in line for line in said)


# ------------------------------------------------------------------------------------------ processes

PAIR = """
import sys
sys.path.insert(0, {root!r})
import torch
torch.set_num_threads(1)
from tests.training.test_fit import QUICK, train, rows
import dataclasses
recipe = dataclasses.replace(QUICK, dropout=0.0)
train(rows(16), recipe, {base!r}, {out!r}, eval_examples=rows(4, seed=1), device="cpu")
"""


def test_two_processes_learn_what_one_learns(base, tmp_path):
    alone = train(
        rows(16), dataclasses.replace(QUICK, dropout=0.0), base, tmp_path / "a", eval_examples=rows(4, seed=1)
    )
    script = tmp_path / "pair.py"
    script.write_text(PAIR.format(root=str(ROOT), base=str(base), out=str(tmp_path / "b")))
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2"]
    port = [
        "--num_machines",
        "1",
        "--mixed_precision",
        "no",
        "--dynamo_backend",
        "no",
        "--main_process_port",
        "0",
    ]
    done = subprocess.run(
        [*launch, *port, str(script)], cwd=ROOT, capture_output=True, text=True, timeout=180, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    pair = registry.verify(tmp_path / "b")
    assert pair["metrics"]["train_loss"] == pytest.approx(alone.train_loss, rel=1e-4)
    assert pair["metrics"]["eval_loss"] == pytest.approx(alone.eval_loss, rel=1e-3)
    assert pair["metrics"]["examples"] == alone.metrics["examples"]


def test_a_launch_that_shards_the_model_is_refused_as_accelerate_would_start_it(base, tmp_path, monkeypatch):
    from accelerate.commands.launch import launch_command_parser
    from accelerate.utils.launch import prepare_multi_gpu_env

    asked = [
        "--num_machines",
        "1",
        "--num_processes",
        "2",
        "--mixed_precision",
        "no",
        "--dynamo_backend",
        "no",
        "train.py",
    ]
    plain, sharded = (
        prepare_multi_gpu_env(launch_command_parser().parse_args([*flags, *asked]))
        for flags in (["--multi_gpu"], ["--use_fsdp"])
    )
    assert "ACCELERATE_USE_FSDP" not in plain  # the control: replicas are fine
    monkeypatch.setenv("ACCELERATE_USE_FSDP", sharded["ACCELERATE_USE_FSDP"])
    with pytest.raises(UsageError, match="every process holds the whole model"):
        run(base, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
