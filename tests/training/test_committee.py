"""A committee: disagreement by hand, masks that belong to a record, and members that say together what they are asked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from curation import records
from curation.errors import UsageError
from tests.training.conftest import rows
from training import committee, score
from training.adapters import load_unmerged
from training.committee import Dropout, disagreement, of_members, under_dropout
from training.recipe import Recipe
from training.score import score_classes, score_pool
from training.train import train

CLASSES = ["card_help", "card_lost", "refund_help", "transfer_pending"]
PROMPTS = [row["prompt"] for row in rows(6)] + ["?", "a much longer question about my card " * 3]


@pytest.fixture(scope="module")
def adapters(base: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two adapters on the same rows by two seeds."""
    learned = [{"prompt": p, "completion": CLASSES[i % 4]} for i, p in enumerate(PROMPTS)]
    made = tmp_path_factory.mktemp("adapters")
    return [
        train(
            learned, Recipe(rank=4, max_steps=12, lr=5e-3, seed=seed), base, made / str(seed), device="cpu"
        ).adapter
        for seed in (0, 1)
    ]


def view(prompts: list[str]) -> pa.Table:
    made = [
        {"record": f"r{i}", "messages": records.user_message(p), "prompt": p} for i, p in enumerate(prompts)
    ]
    return records.table(made, records.VIEW)


FOUR = Dropout(4, 0.3)


def doubt(adapter: Any, pool: pa.Table, rule: Dropout = FOUR, **options: Any) -> dict[str, float]:
    """Disagreement by record."""
    scores = score_pool(adapter, pool, classes=CLASSES, embeddings=False)
    found = under_dropout(scores, adapter, pool, CLASSES, rule, **options)
    return dict(zip(found["record"].to_pylist(), found["disagreement"].to_pylist(), strict=True))


# ------------------------------------------------------------------------------------------ arithmetic


def test_disagreement_is_worked_by_hand():
    opposed = np.array([[[1.0, 0.0]], [[0.0, 1.0]]])
    assert disagreement(opposed)[0] == pytest.approx(np.log(2))
    # H([0.6, 0.4]) = 0.67301; H([0.9, 0.1]) = 0.32508 and H([0.3, 0.7]) = 0.61086, whose mean is 0.46797.
    assert disagreement(np.array([[[0.9, 0.1]], [[0.3, 0.7]]]))[0] == pytest.approx(0.20504, abs=1e-5)


def test_members_that_are_unsure_alike_do_not_disagree():
    alike = np.tile([[[0.25, 0.25, 0.5]]], (5, 1, 1))
    assert disagreement(alike)[0] == pytest.approx(0.0, abs=1e-12)
    assert score.entropy(alike[0])[0] > 1.0


# --------------------------------------------------------------------------------------------- dropout


def test_samples_disagree_and_without_dropout_they_agree(adapters):
    assert max(doubt(adapters[0], view(PROMPTS)).values()) > 1e-4
    assert max(doubt(adapters[0], view(PROMPTS), Dropout(4, 0.0)).values()) < 1e-9


def test_disagreement_is_that_of_masks_put_into_the_weights(adapters):
    """A mask on the input of A strikes out columns of A: score with such weights, and no dropout anywhere."""
    pool, rule = view(PROMPTS[:1]), Dropout(3, 0.3, seed=5)
    loaded, sampled = load_unmerged(adapters[0]), []
    layers = [m for m in loaded.model.modules() if hasattr(m, "lora_dropout")]
    masks = committee._Masks([committee._Masked(m.in_features) for m in layers], rule)
    for sample in range(rule.samples):
        masks.of(sample, ["r0"])([0])
        kept = [m.lora_A["default"].weight.detach().clone() for m in layers]
        for module, layer in zip(layers, masks.layers, strict=True):
            module.lora_A["default"].weight.data *= layer.mask
        sampled.append(score_classes(loaded, PROMPTS[:1], CLASSES).probabilities)
        for module, weight in zip(layers, kept, strict=True):
            module.lora_A["default"].weight.data.copy_(weight)
    assert doubt(adapters[0], pool, rule)["r0"] == pytest.approx(disagreement(np.stack(sampled))[0], abs=1e-6)


def test_a_sample_does_not_depend_on_batch_mates_or_their_order(adapters):
    together = doubt(adapters[0], view(PROMPTS))
    assert doubt(adapters[0], view(PROMPTS), batch_tokens=1) == pytest.approx(together, abs=1e-5)
    assert doubt(adapters[0], view(PROMPTS).take(list(range(len(PROMPTS)))[::-1])) == pytest.approx(
        together, abs=1e-5
    )


def test_masks_by_place_in_the_batch_would_be_noticed(adapters, monkeypatch):
    together = doubt(adapters[0], view(PROMPTS))
    real = committee._Masks._row
    monkeypatch.setattr(
        committee._Masks, "of", lambda masks, sample, _: lambda places: _shared(masks, real, sample, places)
    )
    alone = doubt(adapters[0], view(PROMPTS), batch_tokens=1)
    assert alone != pytest.approx(together, abs=1e-5)


def _shared(masks: Any, row: Any, sample: int, places: list[int]) -> None:
    """One mask for all that go through the model together."""
    drawn = row(masks, sample, str(places))
    for layer, mask in zip(masks.layers, np.split(drawn, masks._ends), strict=True):
        layer.mask = torch.from_numpy(mask[None])


def test_another_seed_draws_other_masks_and_the_same_one_the_same(adapters):
    pool = view(PROMPTS[:3])
    one = doubt(adapters[0], pool, Dropout(3, 0.3, seed=1))
    assert one == doubt(adapters[0], pool, Dropout(3, 0.3, seed=1))
    assert one != pytest.approx(doubt(adapters[0], pool, Dropout(3, 0.3, seed=2)), abs=1e-6)


def test_a_mask_keeps_the_mean_of_what_goes_through():
    masks = committee._Masks([committee._Masked(40_000)], Dropout(1, 0.25))
    row = masks._row(0, "r")
    assert set(np.unique(row)) == {np.float32(0), np.float32(1 / 0.75)}
    assert row.mean() == pytest.approx(1.0, abs=0.02)


def test_scores_stay_those_of_the_adapter_and_its_dropout_is_put_back(adapters):
    loaded, pool = load_unmerged(adapters[0]), view(PROMPTS)
    before = score_pool(loaded, pool, classes=CLASSES)
    found = under_dropout(before, loaded, pool, CLASSES, Dropout(2, 0.3))
    assert found.drop_columns("disagreement") == before.drop_columns("disagreement")
    assert score_pool(loaded, pool, classes=CLASSES) == before


def test_weights_that_dropout_cannot_act_on_are_refused_rather_than_agreed_with(base, adapters, tmp_path):
    pool = view(PROMPTS[:2])
    with pytest.raises(UsageError, match="dropout acts on nothing"):
        doubt(base, pool)
    dora = Recipe(method="dora", rank=4, max_steps=1)
    made = train([{"prompt": "q", "completion": CLASSES[0]}], dora, base, tmp_path / "dora", device="cpu")
    with pytest.raises(UsageError, match="dropout acts on nothing"):
        doubt(made.adapter, pool)
    with pytest.raises(UsageError, match="from 0 to below 1"):
        Dropout(4, 1.0)


# -------------------------------------------------------------------------------------------- ensembles


def test_an_ensemble_says_the_mean_of_its_members(adapters):
    pool = view(PROMPTS)
    scores = score_pool(adapters[0], pool, classes=CLASSES)
    found = of_members(scores, adapters, pool, CLASSES)
    each = np.stack([score_classes(a, PROMPTS, CLASSES).probabilities for a in adapters])
    assert found["confidence"].to_numpy() == pytest.approx(each.mean(0).max(1), abs=1e-6)
    assert found["completion"].to_pylist() == [CLASSES[i] for i in each.mean(0).argmax(1)]
    assert found["disagreement"].to_numpy() == pytest.approx(disagreement(each), abs=1e-6)
    assert found["embedding"] == scores["embedding"]
    assert found.schema == records.SCORES


def test_one_adapter_twice_does_not_disagree_with_itself(adapters):
    pool = view(PROMPTS)
    scores = score_pool(adapters[0], pool, classes=CLASSES)
    same = of_members(scores, [adapters[0]] * 2, pool, CLASSES)
    assert np.abs(same["disagreement"].to_numpy()).max() < 1e-9
    assert max(of_members(scores, adapters, pool, CLASSES)["disagreement"].to_pylist()) > 1e-6
    with pytest.raises(UsageError, match="one model cannot disagree"):
        of_members(scores, adapters[:1], pool, CLASSES)


# ------------------------------------------------------------------------------------------------ edges


def test_a_record_without_a_score_gets_no_disagreement(adapters):
    pool = view(["q", "word " * 400])
    scores = score_pool(adapters[0], pool, classes=CLASSES)
    for found in (
        under_dropout(scores, adapters[0], pool, CLASSES, Dropout(2)),
        of_members(scores, adapters, pool, CLASSES),
    ):
        assert found["disagreement"].is_null().to_pylist() == [False, True]


def test_an_empty_pool_gives_an_empty_table(adapters):
    empty = records.SCORES.empty_table()
    assert under_dropout(empty, adapters[0], view([]), CLASSES, Dropout(2)) == empty
    assert of_members(empty, adapters, view([]), CLASSES) == empty
