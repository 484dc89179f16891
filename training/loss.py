"""The loss: nats per learned token, at learned positions alone, weighted by row, the same however a batch is cut.

A packed line is attended block by block: the model is told each row's own positions and nothing else, and the
transformers library makes the block-diagonal mask (or variable-length attention) of them. Whether an architecture
obeys is measured before training (:mod:`training.guards`), not believed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional

from curation.errors import UsageError
from training.batches import Batch, pad
from training.examples import IGNORED, Encoded

# What some architectures do to the logits after the head; the head alone would then give other probabilities.
_HEAD_TRICKS = (
    "final_logit_softcapping",
    "logit_scale",
    "output_multiplier",
    "lm_head_multiplier",
    "logits_scaling",
)


def answer_nll(model: Any, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """The negative log-likelihood, in nats, of each learned token, and the weight of its row; float32.

    Only learned positions go through the head: with short answers and a large vocabulary most of the work is saved.
    Padding stands on the right and rows end to end, so no attention mask is needed beyond the causal one and the
    positions: without a mask, attention takes its fast path.
    """
    causal = causal_of(model)
    learned = batch.labels[:, 1:] != IGNORED
    given = {"input_ids": batch.input_ids, "use_cache": False}
    if batch.positions is not None:
        given["position_ids"] = batch.positions
    if bends_logits(causal):
        logits = model(**given).logits[:, :-1][learned]
    else:
        states = causal.base_model(**given).last_hidden_state
        logits = causal.get_output_embeddings()(states[:, :-1][learned])
    nll = functional.cross_entropy(logits.float(), batch.labels[:, 1:][learned], reduction="none")
    return nll, batch.weights[:, 1:][learned]


def causal_of(model: Any) -> Any:
    """The language model below an adapter, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def bends_logits(causal: Any) -> bool:
    """Whether the architecture does something to the logits after its head."""
    config = causal.config.get_text_config()
    return any(getattr(config, name, None) not in (None, 1.0) for name in _HEAD_TRICKS)


@torch.no_grad()
def mean_loss(model: Any, rows: Sequence[Encoded], pad_token_id: int, batch: int = 32) -> float:
    """Nats per learned token over ``rows``, dropout off. Raises ``UsageError`` on no rows."""
    if not rows:
        raise UsageError("there is no row to measure the loss on")
    training = model.training
    model.eval()
    device = next(model.parameters()).device
    ordered = sorted(rows, key=lambda row: len(row.input_ids))
    total, learned = 0.0, 0
    for start in range(0, len(ordered), batch):
        chosen = ordered[start : start + batch]
        nll, _ = answer_nll(model, pad(chosen, [1.0] * len(chosen), pad_token_id).to(device))
        total, learned = total + float(nll.double().sum()), learned + len(nll)
    model.train(training)
    return total / learned
