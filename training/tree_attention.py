"""Attention of a prefix tree on a CPU: few keys, a mask of its own, and many queries that share their keys.

torch's kernel for CPUs takes each head and each 32 queries for themselves, with matrices too small for a core to be busy;
heads that share keys are one product here. Everything else goes the library's own way.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "tilth-tree"


def tree_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """``softmax(query key' * scaling + mask) value`` for a mask that is added (rows, 1, queries, keys), and no gradient.

    ``query`` is (rows, heads, queries, width), ``key`` and ``value`` (rows, groups, keys, width), each group serving as many
    heads; gives (rows, queries, heads, width). A mask of another kind, or none, means that no tree is asked about.
    """
    if attention_mask is None or attention_mask.dtype == torch.bool or torch.is_grad_enabled():
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **options)
    (rows, heads, queries, width), (_, groups, keys, _) = query.shape, key.shape
    scale = width**-0.5 if scaling is None else scaling
    added = attention_mask[:, :, None].expand(rows, groups, heads // groups, queries, keys)
    weights = torch.softmax(
        torch.baddbmm(
            added.reshape(rows * groups, -1, keys),
            query.reshape(rows * groups, -1, width),
            key.reshape(rows * groups, keys, width).transpose(1, 2),
            alpha=scale,
        ),
        dim=-1,
    )
    found = torch.bmm(weights, value.reshape(rows * groups, keys, -1))
    return found.view(rows, heads, queries, -1).transpose(1, 2).contiguous(), None


def prefer(model: Any) -> Any:
    """The model with this attention, where it is on a CPU in float32 and would else have used torch's kernel."""
    weight = next(model.parameters())
    if weight.device.type == "cpu" and weight.dtype == torch.float32 and _current(model) == "sdpa":
        AttentionInterface.register(NAME, tree_attention)
        AttentionMaskInterface.register(NAME, sdpa_mask)
        model.set_attn_implementation(NAME)
    return model


def _current(model: Any) -> str:
    return str(model.config._attn_implementation)
