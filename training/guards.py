"""What is tried on the model itself before a training starts, because each has gone wrong unseen in other trainers.

The mask of every row is checked when it is encoded (:mod:`training.examples`), the rate when the recipe is settled. Here
the loss is computed twice, on a few of the very rows that will be learned: whole and in pieces, which must be equal, and
packed, which must be equal or rows see each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from curation.errors import TilthError, UsageError
from training import loss
from training.attention import rows_apart
from training.batches import Batch, pack, pad
from training.examples import IGNORED, Encoded, preview

PROBED = 4
TOLERANCE = {torch.float32: 1e-3}
LOOSE = 3e-2
"""How far two ways to compute the same loss may differ, in nats per token on average; bfloat16 has three digits."""


def check_loss(
    model: Any, rows: Sequence[Encoded], weights: Sequence[float], pad_token_id: int, *, packing: bool
) -> None:
    """Refuse to train where the loss of a few rows depends on how they are cut, padded or packed.

    Raises :class:`TilthError` (cut or padded), or :class:`UsageError` with a way out (packed).
    """
    chosen = probe(rows)
    some, heavy = [rows[i] for i in chosen], [weights[i] for i in chosen]
    near = TOLERANCE.get(next(model.parameters()).dtype, LOOSE)
    together = token_losses(model, pad(some, heavy, pad_token_id))
    alone = [token_losses(model, pad([r], [w], pad_token_id)) for r, w in zip(some, heavy, strict=True)]
    whole, cut = float(together.mean()), combine([float(each.mean()) for each in alone], some)
    if abs(whole - cut) > near or _apart(together, torch.cat(alone)) > near:
        raise TilthError(
            f"the loss of {len(some)} rows is {whole:.5f} together and {cut:.5f} one by one: it depends on padding or "
            "on how a batch is cut",
            where="train",
            next="Do not train this base with these versions; report it",
        )
    if not packing:
        return
    with rows_apart(model):
        packed = token_losses(model, pack(some, heavy, pad_token_id, None))
    if _apart(together, packed) > near:
        raise UsageError(
            "packed rows see each other in this architecture", where="train", next="Train without packing"
        )


def _apart(one: torch.Tensor, two: torch.Tensor) -> float:
    return float((one - two).abs().mean())


def probe(rows: Sequence[Encoded]) -> list[int]:
    """The indices of a few rows of different lengths: the shortest, the longest, and some between."""
    order = sorted(range(len(rows)), key=lambda i: len(rows[i].input_ids))
    places = {round(i * (len(order) - 1) / (PROBED - 1)) for i in range(PROBED)}
    return [order[i] for i in sorted(places)]


@torch.no_grad()
def token_losses(model: Any, batch: Batch) -> torch.Tensor:
    """The weighted NLL of every learned token of a batch, row after row, dropout off; float64."""
    training = model.training
    model.eval()
    nll, weight = loss.answer_nll(model, batch.to(next(model.parameters()).device))
    model.train(training)
    return (nll * weight).double()


def combine(losses: Sequence[float], rows: Sequence[Encoded]) -> float:
    """The mean over tokens of per-row means: what accumulation over single rows must come to."""
    tokens = [row.targets for row in rows]
    return sum(each * n for each, n in zip(losses, tokens, strict=True)) / sum(tokens)


def look(rows: Sequence[Encoded], tokenizer: Any, width: int = 600) -> str:
    """One row as the model will see it, what is learned between ``⟦`` and ``⟧``, and how much that is."""
    row = rows[len(rows) // 2]
    text = preview(row, tokenizer)
    shown = text if len(text) <= width else f"…{text[-width:]}"
    learned = sum(label != IGNORED for label in row.labels)
    return f"learned is what stands in ⟦⟧ ({learned} of {len(row.labels)} tokens of this row):\n{shown}"
