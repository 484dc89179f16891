"""An adapter merged into its base: for tools that know no adapters. Published only if it still answers as the adapter does.

The base is loaded whole, never quantised: merging into four bits rounds the adapter away (peft issues 2321 and 1043).
The merged model is written, loaded again as anybody would, and compared with base and adapter on real prompts; rounding
that moves its probabilities further than :data:`APART` is refused. A quantised copy is made from the merged model by
other tools, and evaluated like any model.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from curation.errors import GateRefused, UsageError
from curation.records import Message, user_message
from training import registry
from training.adapters import Loaded, load_unmerged
from training.examples import prompt_ids
from training.loss import causal_of
from training.model import load_base, quiet, resolve_base
from training.score import log_softmax

APART = {torch.float32: 1e-3, torch.bfloat16: 0.1}
"""How far a merged model's log-probabilities may lie from the adapter's: nats, mean over the likely tokens of a prompt."""

LIKELY = 20
PROBES = tuple(
    user_message(text) for text in ("Where is my order?", "Summarise this in one sentence.", "1 + 1 =")
)


def merge(
    adapter: str | Path,
    out: str | Path,
    *,
    prompts: Sequence[Sequence[Message]] = PROBES,
    base: str | Path | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> dict[str, Any]:
    """Write adapter and base as one model to ``out``; gives its manifest, with how far it lies from the adapter.

    ``prompts`` are what the two are compared on. Weights are bfloat16 on a GPU and float32 on a CPU unless ``dtype`` says
    otherwise. Raises ``GateRefused`` where the merged model answers otherwise; ``out`` then does not exist.
    """
    quiet()
    begun, adapter = time.time(), Path(adapter)
    manifest = registry.verify(adapter)
    if manifest["kind"] != "adapter":
        raise UsageError("this is a whole model already", where=str(adapter), next="Use it as it is")
    if not prompts:
        raise UsageError("there is no prompt to compare on", where="merge")
    loaded = load_unmerged(adapter, base=base, device=device, dtype=dtype)
    before = _likely(loaded, prompts)
    merged = loaded.model.merge_and_unload(safe_merge=True)
    with registry.partial(Path(out)) as folder:
        merged.save_pretrained(folder)
        loaded.tokenizer.save_pretrained(folder)
        apart = _apart(before, _reloaded(folder, device, dtype), prompts)
        limit = APART.get(merged.dtype, APART[torch.bfloat16])
        if not apart <= limit:
            raise GateRefused(
                f"the merged model's log-probabilities lie {apart:.4f} nats from the adapter's, more than {limit}",
                where=str(adapter),
                next="Serve the adapter beside its base, or merge in float32",
            )
        kept = ("snapshot", "data", "recipe", "base", "metrics", "versions")
        content = {name: manifest[name] for name in kept} | {
            "kind": "model",
            "merged": {"adapter": manifest["digest"], "dtype": str(merged.dtype), "apart_nats": apart},
        }
        return registry.seal(folder, content, {"started": begun, "host": platform.platform()})


def _reloaded(folder: Path, device: Any, dtype: torch.dtype | None) -> Loaded:
    model, tokenizer = load_base(resolve_base(folder), device=device, dtype=dtype)
    return Loaded(model.eval(), tokenizer, "", 0)


Likely = list[tuple[torch.Tensor, torch.Tensor]]


@torch.no_grad()
def _likely(loaded: Loaded, prompts: Sequence[Sequence[Message]]) -> Likely:
    """For each prompt the ids of the likeliest next tokens, and their log-probabilities in float32."""
    found = []
    for messages in prompts:
        values = _next(loaded, messages)
        top = values.topk(min(LIKELY, len(values)))
        found.append((top.indices, top.values))
    return found


def _next(loaded: Loaded, messages: Sequence[Message]) -> torch.Tensor:
    device = next(loaded.model.parameters()).device
    ids = torch.tensor([prompt_ids(messages, loaded.tokenizer)], device=device)
    states = causal_of(loaded.model).base_model(input_ids=ids, use_cache=False).last_hidden_state
    return log_softmax(loaded.model, states[0, -1])


@torch.no_grad()
def _apart(before: Likely, loaded: Loaded, prompts: Sequence[Sequence[Message]]) -> float:
    """The mean absolute difference over the likely tokens of all prompts, in nats."""
    pairs = zip(before, prompts, strict=True)
    each = [(_next(loaded, messages)[ids] - values).abs().mean() for (ids, values), messages in pairs]
    return float(torch.stack(each).mean())
