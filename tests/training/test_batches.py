"""Updates and their layout: every row once, the same twice, little padding, and packed rows that do not see each other."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from curation.errors import UsageError
from curation.records import user_message
from tests.training.conftest import rows
from training import guards, loss
from training.batches import Batch, Updates, fill, group_by_length, pack, pad
from training.examples import IGNORED, Encoded, encode
from training.model import load_base
from training.recipe import Recipe
from training.rows import Example, check_mixture, encode_rows, epoch_rows, split_rows, task_shares


@pytest.fixture(scope="module")
def made(tokenizer) -> list[Encoded]:
    return [
        encode(user_message(row["prompt"]), row["completion"] + " x" * i, tokenizer, 100)
        for i, row in enumerate(rows(8))
    ]


@pytest.fixture
def model(base):
    return load_base(base, device="cpu")[0]


WEIGHTS = [1.0, 2.0, 0.5, 1.0, 3.0, 1.0, 1.0, 0.25]


def gradient(model, batches: list[Batch]) -> torch.Tensor:
    for batch in batches:
        nll, weight = loss.answer_nll(model, batch)
        (nll * weight).sum().backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize("width", [None, 64, 10])
def test_packed_rows_learn_what_padded_rows_learn(model, base, made, tokenizer, width):
    padded = gradient(model, [pad(made, WEIGHTS, tokenizer.pad_token_id)])
    other, _ = load_base(base, device="cpu")
    packed = gradient(other, [pack(made, WEIGHTS, tokenizer.pad_token_id, width)])
    assert torch.allclose(padded, packed, atol=1e-4)


def nll_of_last_row(model, rows: list[Encoded], pad_id: int, positions: bool = True) -> torch.Tensor:
    batch = pack(rows, [1.0] * len(rows), pad_id, None)
    if not positions:
        batch = Batch(batch.input_ids, batch.labels, batch.weights, None, batch.tokens)
    return loss.answer_nll(model, batch)[0][-rows[-1].targets :].detach()


def test_a_packed_row_does_not_see_the_one_before_it(model, made, tokenizer):
    pad_id = tokenizer.pad_token_id
    alone = nll_of_last_row(model, made[3:4], pad_id)
    for neighbour in (made[0], made[7]):
        assert torch.allclose(nll_of_last_row(model, [neighbour, made[3]], pad_id), alone, atol=1e-4)


def test_without_positions_it_would_see_it(model, made, tokenizer):
    pad_id = tokenizer.pad_token_id
    alone = nll_of_last_row(model, made[3:4], pad_id)
    leaking = nll_of_last_row(model, [made[0], made[3]], pad_id, positions=False)
    assert not torch.allclose(leaking, alone, atol=1e-2)


def test_the_first_token_of_a_packed_row_is_not_predicted_from_the_row_before(tokenizer):
    text = Encoded([5, 6, 7], [5, 6, 7])
    batch = pack([text, text], [1.0, 1.0], tokenizer.pad_token_id, None)
    assert batch.labels.tolist() == [[IGNORED, 6, 7, IGNORED, 6, 7]]
    assert batch.positions is not None
    assert batch.positions.tolist() == [[0, 1, 2, 0, 1, 2]]


def test_a_padded_batch_counts_real_tokens_and_ignores_the_rest():
    batch = pad([Encoded([1, 2, 3], [IGNORED, 2, 3]), Encoded([4, 5], [IGNORED, 5])], [1.0, 2.0], 0)
    assert batch.input_ids.tolist() == [[1, 2, 3], [4, 5, 0]]
    assert batch.labels.tolist() == [[IGNORED, 2, 3], [IGNORED, 5, IGNORED]]
    assert batch.tokens == 5
    assert batch.positions is None


@given(st.lists(st.integers(1, 60), min_size=1, max_size=40))
def test_lines_hold_every_row_once_and_never_too_much(lengths):
    bins = fill(lengths, 60)
    assert sorted(i for line in bins for i in line) == list(range(len(lengths)))
    assert all(sum(lengths[i] for i in line) <= 60 for line in bins)


# ---------------------------------------------------------------------------------------------- updates


@given(st.integers(1, 200), st.integers(1, 20), st.integers(0, 5))
def test_an_epoch_holds_every_row_once_and_the_same_seed_gives_it_again(count, batch, seed):
    lengths = tuple(1 + (7 * i) % 50 for i in range(count))
    updates = Updates(lengths, ("",) * count, batch, seed)
    for epoch in (0, 1):
        steps = range(epoch * updates.per_epoch, (epoch + 1) * updates.per_epoch)
        found = [updates.at(step) for step in steps]
        assert sorted(i for group in found for i in group) == list(range(count))
        assert [Updates(lengths, ("",) * count, batch, seed).at(step) for step in steps] == found


def test_length_grouping_saves_most_of_the_padding():
    rng = np.random.default_rng(0)
    lengths = rng.integers(10, 200, 512).tolist()
    order = rng.permutation(512).tolist()

    def padded(groups: list[list[int]]) -> int:
        return sum(len(group) * max(lengths[i] for i in group) for group in groups)

    grouped = padded(group_by_length(order, lengths, 16, rng))
    plain = padded([order[i : i + 16] for i in range(0, 512, 16)])
    assert grouped < 1.08 * sum(lengths)
    assert plain > 1.5 * sum(lengths)


def test_epochs_differ_and_steps_are_counted_in_epochs_or_as_told():
    updates = Updates((5,) * 40, ("",) * 40, 16, 0)
    assert updates.at(0) != updates.at(updates.per_epoch)
    assert updates.steps(2.0, None) == 6
    assert updates.steps(0.1, None) == 1
    assert updates.steps(2.0, 7) == 7


# ------------------------------------------------------------------------------------------------ tasks


def test_temperature_flattens_the_tasks_and_one_keeps_them():
    tasks = ["big"] * 90 + ["small"] * 10
    rng = np.random.default_rng(0)
    assert sorted(epoch_rows(tasks, 1.0, rng).tolist()) == list(range(100))
    drawn = epoch_rows(tasks, 2.0, rng)
    assert len(drawn) == 100
    assert int((drawn >= 90).sum()) == round(100 * task_shares({"big": 90, "small": 10}, 2.0)["small"]) == 25
    repeats = np.bincount(drawn[drawn >= 90] - 90, minlength=10)
    assert set(repeats.tolist()) == {2, 3}  # evenly, not by chance


def test_a_weight_brings_the_rows_of_its_task_so_many_times_as_often():
    tasks = ["big"] * 90 + ["small"] * 10
    drawn = epoch_rows(tasks, 1.0, np.random.default_rng(0), {"small": 9.0})
    assert len(drawn) == 100
    assert int((drawn >= 90).sum()) == 50
    assert sorted(drawn[drawn >= 90].tolist()) == sorted(list(range(90, 100)) * 5)
    updates = Updates((4,) * 100, tuple(tasks), 10, 0, mixture=(("small", 9.0),))
    assert sum(row >= 90 for step in range(10) for row in updates.at(step)) == 50


def test_a_weight_for_a_task_that_no_row_has_is_refused():
    with pytest.raises(UsageError, match=r"no row to learn has the task 'smal'.*Tasks: big, small"):
        check_mixture(["big", "small"], (("smal", 2.0),))
    with pytest.raises(UsageError, match="weight of a task is above 0; a task has one weight"):
        Recipe(mixture=(("big", 0.0), ("big", 1.0)))


def test_a_repeated_row_is_learned_once_with_its_heaviest_weight(tokenizer):
    twice = [
        Example(user_message("q"), "a", 1.0),
        Example(user_message("q"), "a", 3.0),
        Example(user_message("q"), "b"),
    ]
    lesson = encode_rows(twice, tokenizer, 50, "lora")
    assert (len(lesson), lesson.weights, lesson.repeated) == (2, [3.0, 1.0], 1)


def test_passages_are_rendered_the_same_for_training_and_for_asking(tokenizer):
    from training.examples import prompt_ids, with_passages

    row = {"prompt": "how long?", "completion": "5 days", "passages": ["Free for 5 days.", "Then 10 a day."]}
    learned = encode_rows(split_rows([row], None), tokenizer, 200, "lora").rows[0]
    asked = prompt_ids(with_passages(user_message("how long?"), row["passages"]), tokenizer)
    assert learned.input_ids[: len(asked)] == asked
    assert "[2] Then 10 a day." in tokenizer.decode(asked)


# ----------------------------------------------------------------------------------------------- guards


def test_the_guard_passes_a_model_whose_loss_adds_up(model, made, tokenizer):
    guards.check_loss(model, made, WEIGHTS, tokenizer.pad_token_id, packing=True)


def test_the_guard_catches_a_loss_that_is_averaged_by_row_instead_of_by_token(
    model, made, tokenizer, monkeypatch
):
    monkeypatch.setattr(guards, "combine", lambda losses, rows: sum(losses) / len(losses))
    with pytest.raises(Exception, match="depends on padding or on how a batch is cut"):
        guards.check_loss(model, made, WEIGHTS, tokenizer.pad_token_id, packing=False)


def test_the_guard_catches_padding_that_is_looked_at(model, made, tokenizer, monkeypatch):
    def left(rows, weights, pad_id):  # type: ignore[no-untyped-def]
        width = max(len(r.input_ids) for r in rows)
        moved = [
            Encoded(
                [pad_id] * (width - len(r.input_ids)) + r.input_ids,
                [IGNORED] * (width - len(r.labels)) + r.labels,
            )
            for r in rows
        ]
        return pad(moved, weights, pad_id)

    monkeypatch.setattr(guards, "pad", left)
    with pytest.raises(Exception, match="depends on padding"):
        guards.check_loss(model, made, WEIGHTS, tokenizer.pad_token_id, packing=False)


def test_the_guard_catches_an_architecture_in_which_packed_rows_see_each_other(
    model, made, tokenizer, monkeypatch
):
    def leaking(rows, weights, pad_id, width):  # type: ignore[no-untyped-def]
        batch = pack(rows, weights, pad_id, width)
        return Batch(batch.input_ids, batch.labels, batch.weights, None, batch.tokens)

    monkeypatch.setattr(guards, "pack", leaking)
    with pytest.raises(UsageError, match="packed rows see each other"):
        guards.check_loss(model, made, WEIGHTS, tokenizer.pad_token_id, packing=True)
