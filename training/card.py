"""What is written beside trained weights: the weights themselves, where they come from, and a card for people."""

from __future__ import annotations

import dataclasses
import platform
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import orjson

from training import registry
from training.model import Base
from training.recipe import Recipe

LINEAGE = "lineage.json"


def save(model: Any, tokenizer: Any, base: Base, folder: Path) -> None:
    """Write the weights (safetensors) and the tokenizer in the layout that other tools read."""
    if hasattr(model, "peft_config"):
        for config in model.peft_config.values():
            config.base_model_name_or_path, config.revision = base.ref, base.revision
        model.save_pretrained(folder, save_embedding_layers=False, selected_adapters=["default"])
    else:
        model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def write_lineage(folder: Path, provenance: Mapping[str, Any], base: Base, start: Path | None) -> None:
    """``lineage.json``: base, snapshot, and the adapter that was continued, if any."""
    about = {"base": {"ref": base.ref, "revision": base.revision, "digest": base.digest}, **provenance}
    if start:
        about["continues"] = registry.read(start)["digest"]
    (folder / LINEAGE).write_bytes(orjson.dumps(about, option=orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS))


def write(
    folder: Path, recipe: Recipe, base: Base, metrics: Mapping[str, Any], provenance: Mapping[str, Any]
) -> None:
    """``README.md``: the model card, in the form that model hubs read."""
    frozen = provenance.get("snapshot")
    head = {
        "base_model": base.ref,
        "library_name": "peft" if recipe.adapter else "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["tilth", recipe.method],
    }
    front = "\n".join(f"{key}: {orjson.dumps(value).decode()}" for key, value in head.items())
    loss = "not measured" if metrics["eval_loss"] is None else f"{metrics['eval_loss']:.4f} nats per token"
    settings = "\n".join(f"| {key} | {value} |" for key, value in dataclasses.asdict(recipe).items())
    (folder / "README.md").write_text(
        f"---\n{front}\n---\n\n# A model trained by Tilth\n\n"
        f"Base: `{base.ref}`, revision `{base.revision}`.\n\n"
        f"Data: {f'snapshot `{frozen}`' if frozen else 'a file, without a snapshot'}; "
        f"{metrics['examples']} rows learned, {metrics['refused']} refused because they did not fit.\n\n"
        f"Loss on held-out rows: {loss}. Loss in training: {metrics['train_loss']:.4f}, "
        f"after {metrics['steps']} updates.\n\n"
        f"`manifest.json` names every file by its SHA-256; `lineage.json` says where the rows came from.\n\n"
        f"## Recipe\n\n| setting | value |\n|---|---|\n{settings}\n",
        encoding="utf-8",
    )


def versions() -> dict[str, str]:
    """The versions of what did the work."""
    packages = ("torch", "transformers", "peft", "trl", "accelerate", "tokenizers", "safetensors")
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}
