"""Adapters on their base: made, gone on from, verified and loaded; and whatever can answer, opened.

An adapter is loaded only after its manifest was verified and onto the very base that the manifest names.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from curation.errors import IntegrityError, UsageError
from training import registry, tree_attention
from training.model import Base, context_length, load_base, read_json, resolve_base

if TYPE_CHECKING:
    from training.recipe import Recipe


@dataclass(frozen=True)
class Loaded:
    """A model ready to answer: ``name`` is the digest of its manifest, or of its files where it has none."""

    model: Any
    tokenizer: Any
    name: str
    max_length: int


def attach(model: Any, recipe: Recipe, tokens: Sequence[int] = (), steps: int = 100) -> Any:
    """The model with a fresh adapter of the recipe on it; only the adapter is trainable.

    LoRA: Hu et al. 2021 (arXiv 2106.09685), on every linear layer but the head, as Dettmers et al. 2023 (arXiv
    2305.14314) found necessary. The initial values come from torch's global generator. The embeddings of ``tokens``
    (ids) are trained along, in the head too where the two are tied. ``steps`` is how many updates are coming: AdaLoRA
    spreads its reallocation over them, from one and a half times the rank down to the rank on average.
    """
    from peft import AdaLoraConfig, LoraConfig, TaskType, get_peft_model

    shared: dict[str, Any] = {
        "lora_alpha": recipe.alpha,
        "lora_dropout": recipe.dropout,
        "target_modules": recipe.target if recipe.target == "all-linear" else recipe.target.split(","),
        "task_type": TaskType.CAUSAL_LM,
        "bias": "none",
    }
    if recipe.method == "adalora":
        schedule: dict[str, Any] = _reallocation(recipe.rank, steps)
        return get_peft_model(model, AdaLoraConfig(**shared, **schedule))
    config = LoraConfig(
        r=recipe.rank,
        use_dora=recipe.method == "dora",
        trainable_token_indices={_embedding_name(model): list(tokens)} if tokens else None,
        ensure_weight_tying=bool(tokens) and bool(model.config.tie_word_embeddings),
        **shared,
    )
    return get_peft_model(model, config)


def _reallocation(rank: int, steps: int) -> dict[str, Any]:
    """AdaLoRA's schedule: a tenth of the updates at full rank, then reallocation, the last third at the final ranks."""
    return {
        "init_r": math.ceil(1.5 * rank),
        "target_r": rank,
        "tinit": steps // 10,
        "tfinal": steps // 3,
        "deltaT": max(1, steps // 100),
        "total_step": steps,
    }


def resume(model: Any, folder: Path, base: Base) -> Any:
    """The base with the adapter of ``folder`` on it, trainable again: its weights go on from where they were.

    Raises ``UsageError`` where the folder holds no adapter, ``IntegrityError`` where it was changed or belongs to
    another base.
    """
    manifest = registry.verify(folder)
    if manifest["kind"] != "adapter":
        raise UsageError("this is no adapter", where=str(folder), next="Pass it as --base instead")
    _check_adapter_config(folder, manifest)
    _check_base(base, manifest)
    return _joined(model, folder, trainable=True)


def _joined(model: Any, folder: Path, *, trainable: bool) -> Any:
    """The adapter of a folder on its base, by nothing but safetensors of this machine.

    AdaLoRA's ``rank_pattern`` says which directions of each matrix were kept. It is for the weights that are loaded, not
    for the layers that wait for them: made with it, those take its keys for names of layers, and find none.
    """
    from peft import PeftConfig, PeftModel, PeftModelForCausalLM

    options: dict[str, Any] = {"is_trainable": trainable, "local_files_only": True, "use_safetensors": True}
    config = PeftConfig.from_pretrained(str(folder), local_files_only=True)
    kept = config.rank_pattern if config.peft_type == "ADALORA" else None
    if not kept:
        return PeftModel.from_pretrained(model, str(folder), **options)
    config.inference_mode, config.rank_pattern = not trainable, None
    joined = PeftModelForCausalLM(model, config)
    config.rank_pattern = kept
    joined.load_adapter(str(folder), "default", **options)
    return joined


def _embedding_name(model: Any) -> str:
    embedding = model.get_input_embeddings()
    return next(name.rpartition(".")[2] for name, module in model.named_modules() if module is embedding)


def load_adapter(
    folder: str | Path,
    *,
    base: str | Path | None = None,
    device: torch.device | str | None = None,
    bits: int | None = None,
) -> Loaded:
    """Load what :func:`training.train.train` wrote, after verifying all of it.

    Every file must have the SHA-256 that the manifest gives, nothing may lie beside them, and the base must have the
    digest that the manifest names; ``base`` says where it is now, if it was moved. Raises ``IntegrityError`` where any
    of that fails, ``UsageError`` where the folder or the base is missing.
    """
    manifest = registry.verify(folder)
    if manifest["kind"] != "adapter":
        return _load_whole(Path(folder), manifest["digest"], device, bits)
    loaded = load_unmerged(folder, base=base, device=device, bits=bits)
    # Merging saves two small products per layer, but rounds; only float32 has the digits to spare.
    if bits is None and next(loaded.model.parameters()).dtype == torch.float32:
        loaded = replace(loaded, model=tree_attention.prefer(loaded.model.merge_and_unload().eval()))
    return loaded


def load_unmerged(
    folder: str | Path,
    *,
    base: str | Path | None = None,
    device: torch.device | str | None = None,
    bits: int | None = None,
    dtype: torch.dtype | None = None,
) -> Loaded:
    """:func:`load_adapter` of an adapter, with the adapter beside the base's weights rather than in them."""
    folder = Path(folder)
    manifest = registry.verify(folder)
    _check_adapter_config(folder, manifest)
    found = resolve_base(base or manifest["base"]["ref"], _pinned(manifest, base))
    _check_base(found, manifest)
    model, tokenizer = load_base(found, device=device, bits=bits, dtype=dtype)
    return Loaded(_join(model, folder), tokenizer, manifest["digest"], context_length(model))


def _check_base(found: Base, manifest: dict[str, Any]) -> None:
    if found.digest != manifest["base"]["digest"]:
        raise IntegrityError(
            f"the base is not the one that the adapter was trained on "
            f"({found.digest[:12]} instead of {manifest['base']['digest'][:12]})",
            where=str(found.path),
            next="Give the original base, or train again on this one",
        )


def _pinned(manifest: dict[str, Any], moved: str | Path | None) -> str | None:
    ref = manifest["base"]["ref"]
    return None if moved or Path(ref).is_dir() else manifest["base"]["revision"]


def _join(model: Any, folder: Path) -> Any:
    from safetensors import SafetensorError

    try:
        joined = _joined(model, folder, trainable=False)
    except SafetensorError as error:
        raise IntegrityError(f"the weights are damaged: {error}", where=str(folder)) from error
    return joined.eval()


def _check_adapter_config(folder: Path, manifest: dict[str, Any]) -> None:
    if not (folder / "adapter_model.safetensors").is_file():
        raise IntegrityError("the adapter has no adapter_model.safetensors", where=str(folder))
    config = read_json(folder / "adapter_config.json")
    ref = manifest["base"]["ref"]
    if config.get("base_model_name_or_path") != ref:
        raise IntegrityError(
            f"adapter_config.json names another base ({config.get('base_model_name_or_path')!r}) than the "
            f"manifest ({ref!r})",
            where=str(folder),
        )
    if config.get("peft_type") not in ("LORA", "ADALORA") or config.get("auto_mapping"):
        raise IntegrityError(
            f"adapter_config.json asks for {config.get('peft_type')!r} with its own mapping; only LORA and ADALORA "
            "are loaded",
            where=str(folder),
        )


def _load_whole(folder: Path, name: str, device: Any, bits: int | None) -> Loaded:
    model, tokenizer = load_base(folder, device=device, bits=bits)
    return Loaded(tree_attention.prefer(model.eval()), tokenizer, name, context_length(model))


def open_model(ref: str | Path | Loaded, *, device: torch.device | str | None = None) -> Loaded:
    """Whatever can answer: something already loaded, an adapter, a trained model, or a base as it is."""
    if isinstance(ref, Loaded):
        return ref
    if (Path(ref) / registry.MANIFEST).is_file() or (Path(ref) / "adapter_config.json").is_file():
        return load_adapter(ref, device=device)
    base = resolve_base(ref)
    return _load_whole(base.path, base.digest, device, None)
