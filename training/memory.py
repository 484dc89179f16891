"""How much memory a training will need, worked out before a weight is loaded, and what to change where it will not fit.

Arithmetic on the shapes in the weight files' headers. Good to about a third: it is there to stop a run that cannot fit
before it has read forty gigabytes, and to say which setting would; memory that runs out all the same is caught.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import orjson
import psutil
import torch
from safetensors import SafetensorError, safe_open

from curation.errors import IntegrityError, UsageError
from training.recipe import Recipe

Shapes = Mapping[str, tuple[int, ...]]

_HIDDEN_COPIES = (
    34  # numbers kept for the backward pass per layer, token and hidden unit (Korthikanti et al. 2022, eq. 2)
)
_MARGIN = 0.9  # of what is free; the rest is other programs' and the allocator's


@dataclass(frozen=True)
class Need:
    """Bytes: the base's weights, what training keeps for trained ones, activations, and logits."""

    weights: int
    trained: int
    activations: int
    logits: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.trained + self.activations + self.logits

    def words(self) -> str:
        """For people.

        >>> Need(2 * 10**9, 10**8, 10**9, 0).words()
        'about 3.1 GB (weights 2.0, training 0.1, activations 1.0, logits 0.0)'
        """
        g = [n / 1e9 for n in (self.total, self.weights, self.trained, self.activations, self.logits)]
        return "about {:.1f} GB (weights {:.1f}, training {:.1f}, activations {:.1f}, logits {:.1f})".format(
            *g
        )


def weight_shapes(base: Path) -> dict[str, tuple[int, ...]]:
    """The shape of every weight of a base, from the files' headers alone. Raises ``IntegrityError`` on a damaged one."""
    shapes: dict[str, tuple[int, ...]] = {}
    for path in sorted(base.glob("*.safetensors")):
        try:
            with safe_open(path, framework="pt") as file:
                shapes |= {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise IntegrityError(
                f"the weights are damaged: {error}", where=str(path), next="Get the base again"
            ) from error
    return shapes


def parameters(shapes: Shapes) -> int:
    """How many numbers the weights hold."""
    return sum(prod(shape) for shape in shapes.values())


def estimate(
    shapes: Shapes, recipe: Recipe, config: Mapping[str, Any], longest: int, answer: int, *, gpu: bool
) -> Need:
    """The memory that an update of ``recipe`` needs; rows are at most ``longest`` tokens, ``answer`` of them learned.

    ``config`` is the base's config.json.
    """
    count, micro = parameters(shapes), min(recipe.batch, recipe.micro_batch or recipe.batch)
    layers, hidden = int(config.get("num_hidden_layers") or 1), int(config.get("hidden_size") or 1)
    vocabulary = int(config.get("vocab_size") or 1)
    wide = 2 if gpu and recipe.method not in ("full", "adapt") else 4
    computed = 2 if gpu or recipe.precision == "bf16" else 4
    trained = count if not recipe.adapter else _adapter_size(shapes, recipe)
    moments = 2 if recipe.bits else 8  # of AdamW, for each trained number; in 8 bits for quantised bases
    tokens = micro * longest
    full = tokens * hidden * _HIDDEN_COPIES * computed // 2
    kept = full + layers * tokens * hidden * computed if recipe.checkpointing else layers * full
    return Need(
        weights=_base_bytes(shapes, recipe.bits, wide),
        trained=trained * (4 + moments + (4 if recipe.adapter else 0)),
        activations=kept * (2 if recipe.method == "dpo" else 1),
        logits=micro * answer * vocabulary * 4 * 3,
    )


def _base_bytes(shapes: Shapes, bits: int | None, wide: int) -> int:
    if bits is None:
        return parameters(shapes) * wide
    inner = sum(prod(s) for name, s in shapes.items() if len(s) == 2 and not _outer(name))
    return int(inner * (bits / 8 + 0.02)) + (parameters(shapes) - inner) * wide


def _outer(name: str) -> bool:
    return "embed" in name or "lm_head" in name or "wte" in name


def _adapter_size(shapes: Shapes, recipe: Recipe) -> int:
    return sum(recipe.rank * sum(s) for name, s in shapes.items() if len(s) == 2 and not _outer(name))


def free_bytes(device: torch.device) -> int:
    """What the device could still give: of a GPU's own memory, or of the machine's."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(min(psutil.virtual_memory().available, _group_left()))


def _group_left() -> float:
    """What the process group's limit leaves, where there is one (a container's, say)."""
    try:
        root = Path("/sys/fs/cgroup")
        return int((root / "memory.max").read_text()) - int((root / "memory.current").read_text())
    except (OSError, ValueError):
        return float("inf")


def fit_in(
    shapes: Shapes,
    recipe: Recipe,
    config: Mapping[str, Any],
    longest: int,
    answer: int,
    free: int,
    *,
    gpu: bool,
) -> tuple[Recipe, Need]:
    """The recipe with ``checkpointing`` decided, and its need: checkpointing costs time, so only where memory wants it.

    Raises ``UsageError`` where it will not fit even so, naming the first change that would.
    """

    def need(tried: Recipe) -> Need:
        return estimate(shapes, tried, config, longest, answer, gpu=gpu)

    room = int(free * _MARGIN)
    choices = [recipe.checkpointing] if recipe.checkpointing is not None else [False, True]
    tried = [dataclasses.replace(recipe, checkpointing=choice) for choice in choices]
    for one in tried:
        if need(one).total <= room:
            return one, need(one)
    last = tried[-1]
    raise UsageError(
        f"this training needs {need(last).words()}, and {free / 1e9:.1f} GB are free",
        where="train",
        next=_hint(last, longest, room, lambda r, n: estimate(shapes, r, config, n, answer, gpu=gpu)),
    )


def _hint(recipe: Recipe, longest: int, room: int, need: Any) -> str:
    half = max(16, longest // 2)
    changes: Sequence[tuple[str, dict[str, Any], int]] = (
        ("micro_batch 1 (the result stays the same)", {"micro_batch": 1}, longest),
        ("method qlora", {"method": "qlora"}, longest),
        (f"method qlora, micro_batch 1 and max_length {half}", {"method": "qlora", "micro_batch": 1}, half),
    )
    for said, change, length in changes:
        if need(dataclasses.replace(recipe, checkpointing=True, **change), length).total <= room:
            return f"It would fit with {said}"
    return "Choose a smaller base, or a machine with more memory"


def base_config(base: Path) -> dict[str, Any]:
    """The base's config.json; of a model of several parts, that of its language part."""
    config = orjson.loads((base / "config.json").read_bytes())
    return dict(config.get("text_config") or config)


def context(base: Path) -> int:
    """The longest sequence, in tokens, that the base's positions allow; 0 where it does not say."""
    return int(base_config(base).get("max_position_embeddings") or 0)
