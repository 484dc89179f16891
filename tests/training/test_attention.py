"""Attention over packed rows: what each row alone would get, whatever lies beside it, and the model as it was afterwards."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from curation.errors import UsageError
from tests.training.conftest import rows
from tests.training.test_batches import WEIGHTS, gradient
from training import attention, guards
from training.attention import NAME, RowsApart, parts_of, rows_apart, suits
from training.batches import pack, pad
from training.examples import Encoded
from training.fit import Task, fit, lay_out
from training.model import load_base
from training.recipe import Recipe
from training.rows import encode_rows, split_rows


@pytest.fixture(scope="module")
def made(tokenizer) -> list[Encoded]:
    told = [row | {"completion": row["completion"] + " please" * 3 * i} for i, row in enumerate(rows(8))]
    return list(encode_rows(split_rows(told, None), tokenizer, 100, "lora").rows)


@pytest.fixture
def model(base):
    return load_base(base, device="cpu")[0]


def line_of(lengths: list[int]) -> torch.Tensor:
    return torch.cat([torch.arange(n) for n in lengths])[None]


@pytest.mark.parametrize("width", [None, 120])
def test_rows_attended_to_apart_learn_what_padded_rows_learn(model, base, made, tokenizer, width):
    padded = gradient(model, [pad(made, WEIGHTS, tokenizer.pad_token_id)])
    other, _ = load_base(base, device="cpu")
    with rows_apart(other) as apart:
        packed = gradient(other, [pack(made, WEIGHTS, tokenizer.pad_token_id, width)])
    assert apart
    assert torch.allclose(padded, packed, atol=1e-4)


def test_one_row_seen_instead_of_many_would_be_caught_by_the_guard(model, made, tokenizer, monkeypatch):
    guards.check_loss(model, made, WEIGHTS, tokenizer.pad_token_id, packing=True)
    whole = parts_of
    monkeypatch.setattr(attention, "parts_of", lambda p: whole(torch.arange(p.numel())[None]))
    with pytest.raises(UsageError, match="packed rows see each other"):
        guards.check_loss(model, made, WEIGHTS, tokenizer.pad_token_id, packing=True)


@given(st.lists(st.integers(1, 30), min_size=1, max_size=12))
def test_every_token_is_in_one_part_and_comes_back_to_its_place(lengths):
    parts = parts_of(line_of(lengths))
    assert [part.start for part in parts[1:]] == [part.end for part in parts[:-1]]
    tokens = torch.arange(sum(lengths), dtype=torch.float32).view(1, -1, 1) + 1
    back = torch.cat([part.together(part.apart(tokens)) for part in parts])
    assert torch.equal(back.transpose(0, 1), tokens)
    laid = [line[line > 0].tolist() for part in parts for line in part.apart(tokens).flatten(1)]
    assert [len(line) for line in laid] == lengths


def test_rows_of_different_lengths_do_not_pad_each_other():
    parts = parts_of(line_of([4, 5, 6, 20, 22, 3]))
    assert [(part.rows, part.longest) for part in parts] == [(3, 6), (2, 22), (1, 3)]


def test_the_model_is_as_it_was_after_the_block_and_after_an_error(model):
    with rows_apart(model):
        assert model.config._attn_implementation == NAME
    assert model.config._attn_implementation == "sdpa"
    with pytest.raises(RuntimeError), rows_apart(model):
        raise RuntimeError
    assert model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize(
    "other",
    [
        {"sliding_window": 64},
        {"layer_types": ["full_attention", "sliding_attention"]},
        {"attn_logit_softcapping": 50.0},
        {"_attn_implementation": "eager"},
    ],
    ids=lambda other: next(iter(other)),
)
def test_architectures_that_attend_otherwise_keep_their_own_attention(other):
    plain = {"_attn_implementation": "sdpa", "sliding_window": None}
    made = [SimpleNamespace(get_text_config=lambda c=c: SimpleNamespace(**c)) for c in (plain, plain | other)]
    assert [suits(SimpleNamespace(config=config)) for config in made] == [True, False]


@pytest.mark.parametrize("asked", [{"softcap": 30.0}, {"s_aux": torch.zeros(1)}, {"sliding_window": 4}])
def test_what_it_does_not_do_is_refused_and_not_left_out(asked):
    heads = torch.zeros(1, 2, 4, 8)
    with pytest.raises(UsageError, match=f"asks for {next(iter(asked))} in attention.*without packing"):
        RowsApart()(None, heads, heads, heads, None, position_ids=line_of([2, 2]), **asked)


def test_a_training_packs_into_one_line_where_rows_are_attended_to_apart(base, made, tokenizer, monkeypatch):
    lines: list[int] = []

    def counted(*given):  # type: ignore[no-untyped-def]
        lines.append(len(lay_out(*given).input_ids))
        return lay_out(*given)

    monkeypatch.setattr("training.fit.lay_out", counted)
    lesson = encode_rows(split_rows(rows(8), None), tokenizer, 60, "full")
    recipe = Recipe(method="full", lr=1e-3, batch=8, max_steps=2, max_length=60)
    losses = {}
    for packing in (True, False):
        model, _ = load_base(base, device="cpu")
        losses[packing] = fit(model, Task(lesson, (), recipe, tokenizer.pad_token_id, packing=packing)).total
    assert lines == [1, 1, 8, 8]
    assert losses[True] == pytest.approx(losses[False], abs=1e-4)
