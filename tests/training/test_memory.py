"""Memory worked out beforehand: it grows where it must, and a training that will not fit is told what would."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from curation.errors import IntegrityError, UsageError
from tests.training.conftest import rows
from training import memory
from training.adapters import attach
from training.memory import estimate, fit_in, parameters, weight_shapes
from training.model import load_base, resolve_base
from training.recipe import Recipe
from training.train import train

LLAMA_8B = {
    "vocab_size": 128256, "hidden_size": 4096, "num_hidden_layers": 32, "intermediate_size": 14336,
}  # fmt: skip
SHAPES = {"model.embed_tokens.weight": (128256, 4096), "lm_head.weight": (128256, 4096)} | {
    f"model.layers.{i}.{name}.weight": shape
    for i in range(32)
    for name, shape in {
        "q": (4096, 4096), "k": (1024, 4096), "v": (1024, 4096), "o": (4096, 4096),
        "gate": (14336, 4096), "up": (14336, 4096), "down": (4096, 14336),
    }.items()
}  # fmt: skip
GB = 10**9


def need(**changes) -> memory.Need:  # type: ignore[no-untyped-def]
    recipe = Recipe(**{"batch": 8, "checkpointing": True, **changes})
    return estimate(SHAPES, recipe, LLAMA_8B, 2048, 200, gpu=True)


def test_the_needs_of_a_model_of_eight_billion_are_those_that_are_known():
    assert parameters(SHAPES) == pytest.approx(8.03e9, rel=0.01)
    assert need(method="lora").weights == pytest.approx(16 * GB, rel=0.02)
    assert need(method="qlora").weights == pytest.approx(5.7 * GB, rel=0.1)
    assert need(method="full").total > 120 * GB  # weights, gradients and two moments in float32
    assert need(method="lora").trained < 1 * GB


def test_what_costs_memory_costs_memory():
    base = need(method="lora").total
    assert need(method="lora", checkpointing=False).total > base
    assert need(method="lora", micro_batch=1).total < base
    assert need(method="dpo").total > base
    assert need(method="qlora").total < base < need(method="full").total


def test_checkpointing_is_switched_on_only_where_memory_wants_it():
    lora = Recipe(batch=8)
    roomy, _ = fit_in(SHAPES, lora, LLAMA_8B, 2048, 200, 2000 * GB, gpu=True)
    tight, _ = fit_in(SHAPES, lora, LLAMA_8B, 2048, 200, 60 * GB, gpu=True)
    assert (roomy.checkpointing, tight.checkpointing) == (False, True)


@pytest.mark.parametrize(
    ("free", "hint"),
    [(24, "micro_batch 1"), (14, "qlora"), (11, "qlora, micro_batch 1"), (2, "smaller base")],
)
def test_a_training_that_does_not_fit_is_told_what_would(free, hint):
    with pytest.raises(UsageError, match="this training needs about") as refused:
        fit_in(SHAPES, Recipe(batch=8), LLAMA_8B, 2048, 200, free * GB, gpu=True)
    assert hint in refused.value.next


def test_it_is_refused_before_a_weight_is_loaded(base, tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "free_bytes", lambda device: 1000)
    monkeypatch.setattr("training.train.load_base", lambda *a, **k: pytest.fail("the weights were loaded"))
    with pytest.raises(UsageError, match="this training needs"):
        train(rows(8), Recipe(max_steps=1, max_length=64), base, tmp_path / "a")
    assert list(tmp_path.iterdir()) == []


def test_the_shapes_in_the_headers_are_those_of_the_model_that_is_loaded(base):
    found = resolve_base(base)
    model, _ = load_base(found, device="cpu")
    assert parameters(weight_shapes(found.path)) == sum(p.numel() for p in model.parameters())
    recipe = Recipe(rank=4).settled(10**5, 10)
    trained = sum(p.numel() for p in attach(model, recipe).parameters() if p.requires_grad)
    assert memory._adapter_size(weight_shapes(found.path), recipe) == trained


def test_a_damaged_header_is_refused(base, tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"\xff" * 64)
    with pytest.raises(IntegrityError, match="damaged"):
        weight_shapes(tmp_path)


def test_checkpointing_changes_no_gradient(base, tmp_path):
    recipe = Recipe(max_steps=2, max_length=64, batch=8, rank=2, alpha=4, lr=5e-3)
    plain = train(rows(16), recipe, base, tmp_path / "a")
    spared = train(rows(16), dataclasses.replace(recipe, checkpointing=True), base, tmp_path / "b")
    assert spared.train_loss == pytest.approx(plain.train_loss, abs=1e-5)


def test_free_memory_is_a_number_of_bytes():
    assert memory.free_bytes(torch.device("cpu")) > 10**6
