"""Attention over packed rows, row by row, so that nothing is computed for padding and nothing for other rows.

Rows of an update lie end to end in one line. Whatever treats tokens one by one (nearly all of the work) then reads real
tokens alone; for attention each row is laid on a line of its own, which costs little, and needs no mask: in a causal
model no token sees the padding behind its row. Without it a packed line wants a mask of its length squared, and padded
rows want half as much work again.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from curation.errors import UsageError
from training.loss import causal_of

NAME = "rows_apart"
"""What the transformers library knows this attention by."""

ALIKE = 1.5
"""Neighbouring rows are attended to together while the longest is at most so many times as long as the shortest."""

_UNKNOWN = ("softcap", "s_aux", "position_bias", "sliding_window")
"""What some architectures ask of attention and this one does not do."""


@contextmanager
def rows_apart(model: Any) -> Iterator[bool]:
    """Let ``model`` attend to packed rows one by one while the block lasts; gives whether its architecture lets it.

    Where it does not, packed rows are kept apart by the mask that the transformers library makes of their positions.
    """
    causal = causal_of(model)
    if not suits(causal):
        yield False
        return
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, RowsApart())
    causal.set_attn_implementation(NAME)
    try:
        yield True
    finally:
        causal.set_attn_implementation("sdpa")


def suits(causal: Any) -> bool:
    """Whether every layer is plain causal attention over all that came before, through torch's own kernels."""
    config = causal.config.get_text_config()
    layers = getattr(config, "layer_types", None)
    whole = set(layers) == {"full_attention"} if layers else getattr(config, "sliding_window", None) is None
    return (
        whole
        and getattr(config, "_attn_implementation", None) == "sdpa"
        and getattr(config, "attn_logit_softcapping", None) is None
    )


class RowsApart:
    """Causal attention within each row, as the transformers library calls it.

    A row begins wherever ``position_ids`` (lines, tokens) are 0. Where one row of positions is given for all lines, each line
    is a row of its own, padded on the right.
    """

    def __init__(self) -> None:
        self._seen: torch.Tensor | None = None
        self._known: list[_Part] = []

    def __call__(
        self,
        module: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        *,
        scaling: float | None = None,
        dropout: float = 0.0,
        position_ids: torch.Tensor | None = None,
        **asked: Any,
    ) -> tuple[torch.Tensor, None]:
        """(lines, heads, tokens, size) to (lines, tokens, heads, size)."""
        told = [name for name in _UNKNOWN if asked.get(name) is not None]
        if told or attention_mask is not None:
            raise UsageError(
                f"this architecture asks for {', '.join(told) or 'a mask'} in attention",
                where="train",
                next="Train without packing",
            )
        attend = partial(
            functional.scaled_dot_product_attention,
            dropout_p=dropout,
            scale=scaling,
            is_causal=True,
            enable_gqa=query.shape[1] != key.shape[1],  # heads of the query share those of the key
        )
        lines = query.shape[0]
        if position_ids is None or position_ids.shape[0] < lines:
            return attend(query, key, value).transpose(1, 2).contiguous(), None
        end_to_end = [t.transpose(0, 1).flatten(1, 2) for t in (query, key, value)]
        found = [part.together(attend(*map(part.apart, end_to_end))) for part in self._parts(position_ids)]
        return torch.cat(found).unflatten(0, (lines, -1)), None

    def _parts(self, positions: torch.Tensor) -> list[_Part]:
        """The parts of a line; every layer of a model asks about the same."""
        if self._seen is not positions:
            self._seen, self._known = positions, parts_of(positions)
        return self._known


def parts_of(positions: torch.Tensor) -> list[_Part]:
    """Rows end to end, given by their positions (lines, tokens), cut where one is of another length than its neighbours."""
    starts = [*(positions.flatten() == 0).nonzero().flatten().tolist(), positions.numel()]
    lengths = [end - start for start, end in pairwise(starts)]
    parts, first = [], 0
    for i in range(1, len(lengths) + 1):
        alike = lengths[first : i + 1]
        if i == len(lengths) or max(alike) > ALIKE * min(alike):
            parts.append(_Part.of(starts[first], lengths[first:i], positions.device))
            first = i
    return parts


@dataclass(frozen=True)
class _Part:
    """Neighbouring rows, from token ``start`` to token ``end``; ``places`` says where each token lies once
    every row has a line of its own, ``longest`` tokens long."""

    start: int
    end: int
    rows: int
    longest: int
    places: torch.Tensor

    @classmethod
    def of(cls, start: int, lengths: list[int], device: torch.device) -> _Part:
        longest = max(lengths)
        places = np.concatenate([np.arange(n) + i * longest for i, n in enumerate(lengths)])
        return cls(start, start + sum(lengths), len(lengths), longest, torch.from_numpy(places).to(device))

    def apart(self, packed: torch.Tensor) -> torch.Tensor:
        """(heads, tokens, size) to (rows, heads, longest, size), zeros behind each row."""
        tokens = packed[:, self.start : self.end]
        if self.rows == 1:
            return tokens[None]
        tokens = tokens.transpose(0, 1)
        laid = tokens.new_zeros(self.rows * self.longest, *tokens.shape[1:]).index_copy(
            0, self.places, tokens
        )
        return laid.view(self.rows, self.longest, *tokens.shape[1:]).transpose(1, 2)

    def together(self, apart: torch.Tensor) -> torch.Tensor:
        """(rows, heads, longest, size) to (tokens, heads, size)."""
        lines = apart.transpose(1, 2).flatten(0, 1)
        return lines if self.rows == 1 else lines.index_select(0, self.places)
