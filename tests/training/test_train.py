"""Training: the same twice, weighted as asked, refused where it must be, and nothing left behind where it fails."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import orjson
import pytest
import torch

from curation import records, snapshot
from curation.artifacts import Store
from curation.errors import ConflictError, GateRefused, IntegrityError, TilthError, UsageError
from tests.curation import test_snapshot as toys
from tests.training.conftest import rows
from training import fit, loss, registry
from training import train as training
from training.batches import pad
from training.examples import encode
from training.model import load_base
from training.rows import level_weights
from training.train import Recipe, load_snapshot_for_training, train

ROOT = Path(__file__).resolve().parents[2]
QUICK = Recipe(rank=4, alpha=8, max_steps=3, max_length=64, lr=5e-3, batch=8)


def loss_of(base: Path, where: Path, recipe: Recipe = QUICK, **options):  # type: ignore[no-untyped-def]
    return train(rows(24), recipe, base, where, eval_examples=rows(8, seed=1), **options)


def test_the_same_rows_recipe_and_seed_give_the_same_weights(base, tmp_path):
    one, two = loss_of(base, tmp_path / "a"), loss_of(base, tmp_path / "b")
    assert one.train_loss == two.train_loss
    assert one.eval_loss == two.eval_loss
    assert one.digest == two.digest
    other = loss_of(base, tmp_path / "c", dataclasses.replace(QUICK, seed=1))
    assert other.train_loss != one.train_loss


def test_training_leaves_the_global_generators_alone(base, tmp_path):
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.random.get_rng_state().tolist()
    loss_of(base, tmp_path / "a")
    assert before == (
        random.getstate(),
        np.random.get_state()[1].tolist(),
        torch.random.get_rng_state().tolist(),
    )


def test_training_learns(base, tmp_path):
    longer = dataclasses.replace(QUICK, max_steps=60, rank=16, alpha=32, lr=1e-2)
    before, after = loss_of(base, tmp_path / "a"), loss_of(base, tmp_path / "b", longer)
    assert after.eval_loss < before.eval_loss - 0.5


def test_a_manifest_says_what_made_the_weights(base, tmp_path):
    made = loss_of(base, tmp_path / "a", provenance={"snapshot": "abc", "round": 3})
    manifest = registry.verify(made.adapter)
    assert manifest["digest"] == made.digest
    assert manifest["snapshot"] == "abc"
    assert manifest["recipe"] == json.loads(json.dumps(dataclasses.asdict(made.recipe)))
    assert manifest["base"]["ref"] == str(base)
    assert manifest["metrics"]["eval_loss"] == made.eval_loss
    assert manifest["versions"]["trl"]
    assert manifest["run"]["seconds"] > 0
    lineage = orjson.loads((made.adapter / "lineage.json").read_bytes())
    assert lineage["round"] == 3
    assert lineage["base"] == manifest["base"]
    card = (made.adapter / "README.md").read_text()
    assert "snapshot `abc`" in card
    assert card.startswith("---\nbase_model: ")
    aside = ["manifest.json", registry.LOG]
    assert sorted(p.name for p in made.adapter.iterdir()) == sorted([*manifest["files"], *aside])


def test_the_rows_decide_the_name_of_the_data(base, tmp_path):
    one = registry.read(loss_of(base, tmp_path / "a").adapter)["data"]
    two = registry.read(train(rows(24, seed=9), QUICK, base, tmp_path / "b").adapter)["data"]
    assert one != two


def test_a_table_is_learned_by_its_train_split_and_measured_on_its_validation_split(base, tmp_path):
    made = [
        {
            **row,
            "record": str(i),
            "messages": records.user_message(row["prompt"]),
            "weight": 1.0,
            "split": split,
        }
        for split in ("train", "validation", "test")
        for i, row in enumerate(rows(8))
    ]
    result = train(records.table(made, records.EXAMPLES), QUICK, base, tmp_path / "a")
    assert result.metrics["examples"] == 8
    assert result.eval_loss is not None


def test_full_training_gives_a_whole_model(base, tmp_path):
    from training.adapters import load_adapter

    made = loss_of(base, tmp_path / "a", dataclasses.replace(QUICK, method="full"))
    assert registry.verify(made.adapter)["kind"] == "model"
    assert load_adapter(made.adapter).name == made.digest
    assert not (made.adapter / "adapter_config.json").exists()


def test_continued_pre_training_learns_text_and_gives_a_base(base, tmp_path):
    made = training.adapt(base, [row["prompt"] for row in rows(40)], tmp_path / "a", recipe=QUICK)
    assert registry.read(made.adapter)["kind"] == "model"
    assert loss_of(made.adapter, tmp_path / "b").steps == 3


def test_a_base_read_before_helps_more_than_random_weights(base, tmp_path):
    from transformers import AutoModelForCausalLM

    model, tokenizer = load_base(base, device="cpu")
    torch.manual_seed(0)
    fresh = AutoModelForCausalLM.from_config(model.config)
    fresh.save_pretrained(tmp_path / "random")
    tokenizer.save_pretrained(tmp_path / "random")
    recipe = dataclasses.replace(QUICK, max_steps=20)
    learned = loss_of(base, tmp_path / "a", recipe)
    assert learned.eval_loss < loss_of(tmp_path / "random", tmp_path / "b", recipe).eval_loss - 0.5


# ------------------------------------------------------------------------------------------ the loss


def gradients(base: Path, tokenizer, pieces: int, weights) -> torch.Tensor:  # type: ignore[no-untyped-def]
    """Gradient of one update over eight rows of unequal length, cut into so many pieces."""
    made = [
        encode(records.user_message(row["prompt"]), row["completion"] + " x" * i, tokenizer, 100)
        for i, row in enumerate(rows(8))
    ]
    model, _ = load_base(base, method="full", device="cpu")
    scaled = level_weights(made, weights)
    count = sum(row.supervised for row in made)
    size = len(made) // pieces
    for start in range(0, len(made), size):
        nll, weight = loss.answer_nll(
            model, pad(made[start : start + size], scaled[start : start + size], tokenizer.pad_token_id)
        )
        ((nll * weight).sum() / count).backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def test_the_loss_is_the_same_however_the_batch_is_cut(base, tmp_path):
    whole = dataclasses.replace(QUICK, batch=8, max_steps=2)
    pieces = dataclasses.replace(whole, micro_batch=2)
    one, four = loss_of(base, tmp_path / "a", whole), loss_of(base, tmp_path / "b", pieces)
    assert one.train_loss == pytest.approx(four.train_loss, rel=1e-4)
    assert one.eval_loss == pytest.approx(four.eval_loss, rel=1e-3)


def test_weights_of_one_size_change_nothing_and_a_weight_of_nought_removes(base, tokenizer):
    plain = gradients(base, tokenizer, 1, [1.0] * 8)
    assert torch.allclose(plain, gradients(base, tokenizer, 4, [2.5] * 8), atol=1e-5)
    assert not torch.allclose(plain, gradients(base, tokenizer, 1, [1.0] * 7 + [9.0]), atol=1e-3)


def test_weights_are_levelled_by_tokens(tokenizer):
    made = [encode(records.user_message("q"), "a" * n, tokenizer, 200) for n in (1, 40)]
    scaled = level_weights(made, [3.0, 1.0])
    tokens = [row.supervised for row in made]
    assert sum(w * n for w, n in zip(scaled, tokens, strict=True)) == pytest.approx(sum(tokens))
    assert scaled[0] == pytest.approx(3 * scaled[1])


def test_a_heavier_row_is_learned_better(base, tmp_path):
    question = [
        {"prompt": "my card is blocked", "completion": answer} for answer in ("card_help", "refund_help")
    ]
    recipe = dataclasses.replace(QUICK, max_steps=25, batch=2)

    def wins(weights: list[float], where: str) -> str:
        from training.score import predict

        weighted = [{**row, "weight": w} for row, w in zip(question, weights, strict=True)]
        made = train(weighted, recipe, base, tmp_path / where)
        return predict(made.adapter, ["my card is blocked"], ["card_help", "refund_help"])[0]

    assert wins([9.0, 1.0], "a") == "card_help"
    assert wins([1.0, 9.0], "b") == "refund_help"


def test_only_learned_positions_are_scored_and_the_result_is_the_models_own_loss(base, tokenizer):
    model, _ = load_base(base, device="cpu")
    made = [encode(records.user_message(r["prompt"]), r["completion"], tokenizer, 100) for r in rows(4)]
    batch = pad(made, [1.0] * 4, tokenizer.pad_token_id)
    nll, weight = loss.answer_nll(model, batch)
    mask = (batch.input_ids != tokenizer.pad_token_id).long()
    theirs = model(input_ids=batch.input_ids, attention_mask=mask, labels=batch.labels).loss
    assert len(nll) == len(weight) == sum(m.supervised for m in made)
    assert float(nll.mean()) == pytest.approx(float(theirs), rel=1e-5)
    model.config.logit_scale = 1.5  # an architecture that bends its logits goes the long way round
    assert loss.answer_nll(model, batch)[0].shape == nll.shape


# ----------------------------------------------------------------------------------------- refusals


def test_rows_that_do_not_fit_are_left_out_and_named(base, tmp_path):
    long = {"prompt": "word " * 100, "completion": "card_help"}
    made = train([*rows(8), long], QUICK, base, tmp_path / "a")
    assert [index for index, _ in made.refused] == [8]
    assert "tokens of the completion would be lost" in made.refused[0][1]
    with pytest.raises(UsageError, match="none of 1 rows can be trained on"):
        train([long], QUICK, base, tmp_path / "b")


@pytest.mark.parametrize(
    ("examples", "said"),
    [
        ([], "no row to train on"),
        ([{"prompt": "q", "completion": "a", "weight": 0.0}], "no row to train on"),
        ([{"prompt": "q", "completion": "a", "split": "test"}], "no row to train on"),
        ([{"prompt": "q"}], "row 0: a row to learn from needs"),
        ([{"completion": "a"}], "row 0: a row to learn from needs"),
        ([{"prompt": "q", "completion": "a", "weight": -1.0}], "the weight is -1.0"),
        ([{"prompt": "q", "completion": "a", "weight": float("nan")}], "the weight is nan"),
    ],
)
def test_an_empty_split_and_half_rows_are_refused_and_nothing_is_left(base, tmp_path, examples, said):
    with pytest.raises(UsageError, match=said):
        train(examples, QUICK, base, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_missing_base_is_refused_and_nothing_is_left(tmp_path):
    with pytest.raises(UsageError, match="no such directory"):
        train(rows(4), QUICK, tmp_path / "nowhere", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_loss_that_is_not_a_number_stops_and_nothing_is_left(base, tmp_path, monkeypatch):
    real = fit.update

    def broken(*args):  # type: ignore[no-untyped-def]
        return real(*args)[0] * float("nan"), 1

    monkeypatch.setattr(fit, "update", broken)
    with pytest.raises(TilthError, match="the loss became nan at step 1"):
        train(rows(8), QUICK, base, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "error",
    [
        torch.cuda.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried"),
        MemoryError(),
    ],
)
def test_memory_that_runs_out_is_said_in_words_and_nothing_is_left(base, tmp_path, monkeypatch, error):
    def full(*_):  # type: ignore[no-untyped-def]
        raise error

    monkeypatch.setattr(fit, "update", full)
    with pytest.raises(TilthError, match="Lower micro_batch"):
        train(rows(8), QUICK, base, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_gpu_that_is_lost_half_way_is_said_in_words_and_the_run_goes_on_later(base, tmp_path, monkeypatch):
    real, events = fit.update, Events()

    def lost(*args):  # type: ignore[no-untyped-def]
        if len(made) == 4:
            raise RuntimeError(
                "CUDA error: unspecified launch failure\nCUDA kernel errors might be reported later"
            )
        made.append(args)
        return real(*args)

    made: list[object] = []
    monkeypatch.setattr(fit, "update", lost)
    recipe = dataclasses.replace(QUICK, max_steps=6)
    with pytest.raises(
        TilthError, match="the GPU failed: CUDA error: unspecified launch failure. Run the same"
    ):
        train(rows(24), recipe, base, tmp_path / "out", save_every=1, sink=events)
    assert events.kinds == ["train-started", "train-failed"]
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(fit, "update", real)
    told: list[float] = []
    train(rows(24), recipe, base, tmp_path / "out", progress=lambda s: told.append(s["step"]))
    assert told == [5, 6]


def test_an_adapter_that_is_there_is_not_overwritten(base, tmp_path):
    made = loss_of(base, tmp_path / "a")
    with pytest.raises(ConflictError):
        loss_of(base, tmp_path / "a")
    assert registry.verify(tmp_path / "a")["digest"] == made.digest


@pytest.mark.parametrize(
    "wrong",
    [
        {"method": "x"}, {"precision": "fp8"}, {"patience": 0},
        {"schedule": "x"}, {"rank": 0}, {"batch": 0}, {"lr": 0.0}, {"lr": 2.0}, {"epochs": 0.0},
        {"max_steps": 0}, {"warmup": 1.0}, {"dropout": 1.0}, {"max_length": 1}, {"micro_batch": 0},
    ],
)  # fmt: skip
def test_a_recipe_that_cannot_be_is_refused(wrong):
    with pytest.raises(UsageError, match="recipe: "):
        Recipe(**wrong)


def test_all_problems_of_a_recipe_are_told_at_once():
    with pytest.raises(UsageError, match="method 'x'.*rank must be at least 1"):
        Recipe(method="x", rank=0)


def test_what_a_recipe_leaves_open_is_chosen_and_what_it_says_is_kept():
    few, many = Recipe().settled(10**6, 50), Recipe().settled(10**6, 50_000)
    assert few.epochs > many.epochs >= 3
    assert Recipe(lr=1e-3, epochs=2).settled(10**6, 50).lr == 1e-3
    assert Recipe().settled(10**6, 100).lr > Recipe().settled(10**9, 100).lr
    assert Recipe().settled(10**9, 100).lr > Recipe(method="full").settled(10**9, 100).lr


class Events:
    """A sink that remembers what kinds of events it was told."""

    def __init__(self) -> None:
        self.kinds: list[str] = []

    def event(self, kind, subject, detail) -> None:  # type: ignore[no-untyped-def]
        self.kinds.append(kind)

    def holds(self) -> None:
        """Always."""


SCRIPT = """
import sys, time
sys.path.insert(0, {root!r})
from tests.training.conftest import rows
from training.train import Recipe, train
def slowly(state):
    print(state["step"], flush=True)
    time.sleep(0.2)
recipe = Recipe(rank=4, alpha=8, max_steps=500, max_length=64, lr=1e-3, batch=8)
train(rows(24), recipe, {base!r}, {out!r}, progress=slowly)
"""


def start(base: Path, out: Path) -> subprocess.Popen[str]:
    code = SCRIPT.format(root=str(ROOT), base=str(base), out=str(out))
    return subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )


def test_a_killed_training_leaves_nothing_that_could_be_loaded_and_the_next_one_sweeps_up(base, tmp_path):
    process = start(base, tmp_path / "out")
    assert process.stdout is not None
    assert process.stdout.readline().strip() == "1"
    os.kill(process.pid, signal.SIGKILL)
    process.wait(timeout=60)
    assert not (tmp_path / "out").exists()
    left = list(tmp_path.glob(".partial-*"))
    assert left  # it was killed in the middle of something
    assert not any((folder / registry.MANIFEST).exists() for folder in left)
    loss_of(base, tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("moment", ["save_pretrained", "seal", "write", "replace"])
def test_a_training_that_dies_while_it_writes_leaves_nothing(base, tmp_path, monkeypatch, moment):
    class Killed(BaseException):
        pass

    def die(*_, **__):  # type: ignore[no-untyped-def]
        raise Killed

    from peft import PeftModel

    owner = {"save_pretrained": PeftModel, "seal": registry, "write": registry, "replace": os}[moment]
    monkeypatch.setattr(owner, moment, die)
    with pytest.raises(Killed):
        loss_of(base, tmp_path / "out")
    monkeypatch.undo()
    assert list(tmp_path.iterdir()) == []


def test_progress_is_told(base, tmp_path):
    told: list[dict[str, float]] = []
    began = time.monotonic()
    loss_of(base, tmp_path / "a", progress=told.append)
    assert [state["step"] for state in told] == [1, 2, 3]
    assert told[-1]["steps"] == 3
    assert 0 <= told[-1]["seconds"] <= time.monotonic() - began


# ----------------------------------------------------------------------------------- the snapshot's gate


@pytest.fixture
def frozen(tmp_path: Path) -> Path:
    """A snapshot of which a curator must approve."""
    rule = snapshot.GateRule(approval="curator")
    return snapshot.freeze([toys.examples(40)], Store(tmp_path), facts=toys.FACTS, rule=rule).path


def test_an_approved_snapshot_is_trained_on(frozen, base, tmp_path):
    table = load_snapshot_for_training(frozen, approved=True)
    assert table.schema == records.EXAMPLES
    made = train(table, QUICK, base, tmp_path / "out", provenance={"snapshot": frozen.name})
    assert registry.read(made.adapter)["snapshot"] == frozen.name
    assert made.metrics["examples"] == 20


VIOLATIONS = {
    "unscrubbed": (toys._gate("pii", "refused"), True, GateRefused),
    "leaking": (toys._gate("leakage", "refused"), True, GateRefused),
    "not approved": (lambda folder: None, None, GateRefused),
    "refused by a curator": (lambda folder: None, False, GateRefused),
    "a changed byte": (toys._edit_byte, True, IntegrityError),
    "a row replaced, the manifest forged": (toys._rewrite_row, True, IntegrityError),
    "without a manifest": (lambda folder: (folder / "manifest.json").unlink(), True, IntegrityError),
}


@pytest.mark.parametrize("name", VIOLATIONS)
def test_a_snapshot_that_nobody_vouches_for_is_refused(frozen, name):
    damage, approved, error = VIOLATIONS[name]
    damage(frozen)
    with pytest.raises(error):
        load_snapshot_for_training(frozen, approved=approved)


def test_the_refusal_comes_from_the_gate_and_not_from_reading(frozen, monkeypatch):
    monkeypatch.setattr(snapshot, "require_trainable", lambda path, approved: snapshot.show(path))
    assert load_snapshot_for_training(frozen, approved=False).num_rows == 40
