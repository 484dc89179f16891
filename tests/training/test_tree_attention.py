"""Attention of a tree: the same numbers as the library's, for groups of heads, under the tree's own mask."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from training import tree_attention
from training.adapters import open_model


def asked(groups: int = 2) -> dict[str, Any]:
    """Six heads in so many groups, five queries, nine keys; every query is kept from some key."""
    torch.manual_seed(0)
    mask = torch.zeros(3, 1, 5, 9).masked_fill(torch.rand(3, 1, 5, 9) < 0.3, torch.finfo(torch.float32).min)
    mask[..., 0] = 0
    key, value = torch.randn(2, 3, groups, 9, 4)
    module = SimpleNamespace(num_key_value_groups=6 // groups)
    return {
        "module": module, "query": torch.randn(3, 6, 5, 4), "key": key, "value": value, "attention_mask": mask,
        "scaling": 0.3,
    }  # fmt: skip


@pytest.mark.parametrize("groups", [1, 2, 6])
def test_it_gives_what_the_library_gives(groups):
    given = asked(groups)
    with torch.no_grad():
        found = tree_attention.tree_attention(**given)[0]
    assert torch.allclose(found, sdpa_attention_forward(**given)[0], atol=1e-5)


def test_keys_given_to_the_wrong_heads_would_be_noticed():
    given = asked()
    with torch.no_grad():
        found = tree_attention.tree_attention(**given | {"key": given["key"].flip(1)})[0]
    assert not torch.allclose(found, sdpa_attention_forward(**given)[0], atol=1e-2)


def test_what_is_no_tree_goes_the_librarys_way(monkeypatch):
    monkeypatch.setattr(tree_attention, "sdpa_attention_forward", lambda *args, **options: ("theirs", None))
    given = asked()
    assert tree_attention.tree_attention(**given)[0] == "theirs"  # a gradient is wanted
    with torch.no_grad():
        assert tree_attention.tree_attention(**given)[0] != "theirs"
        for mask in (None, given["attention_mask"] == 0):
            assert tree_attention.tree_attention(**given | {"attention_mask": mask})[0] == "theirs"


def test_it_is_chosen_for_float32_on_a_cpu_where_torchs_own_would_be(base):
    model = open_model(base, device="cpu").model
    assert model.config._attn_implementation == tree_attention.NAME
    model.set_attn_implementation("eager")
    assert tree_attention.prefer(model).config._attn_implementation == "eager"
    model.set_attn_implementation("sdpa")
    assert tree_attention.prefer(model.bfloat16()).config._attn_implementation == "sdpa"
