"""From examples and a recipe to an adapter that can be traced and verified.

Training itself is trl's ``SFTTrainer`` on peft's LoRA; what is said here is what those are given: rows whose mask was
built and checked beforehand, a weight per row, and settings that leave nothing to the environment. It refuses data that
nobody vouched for, an empty split, rows that do not fit and a loss that is not a number; then nothing is left behind.
The same examples, recipe and base give the same weights on the same CPU.
"""

from __future__ import annotations

import dataclasses
import math
import platform
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import torch
from torch.nn import functional

from curation import snapshot
from curation.errors import TilthError, UsageError
from curation.records import Message, canonical_json, digest, user_message
from training import registry
from training.examples import IGNORED, Encoded, UnfitExample, check, check_tokenizer, encode, encode_text
from training.model import (
    Base,
    Progress,
    attach,
    context_length,
    load_base,
    out_of_memory,
    quiet,
    resolve_base,
)

METHODS = ("lora", "full", "adapt")
LINEAGE = "lineage.json"
SMALL = 50_000_000
"""Below this many parameters a model is small: it learns with higher rates and needs no memory to be saved."""


@dataclass(frozen=True)
class Recipe:
    """How to train. What is ``None`` is chosen by :meth:`settled` for the method, the model's size and the data.

    ``method``: ``lora`` trains an adapter, ``full`` every weight, ``adapt`` every weight on plain text (continued
    pre-training). ``warmup`` is a share of all steps. ``batch`` counts rows per update, of which ``micro_batch`` go
    through the model at once. ``lr`` falls from its peak by ``schedule``. ``answer_tokens`` also trains the embeddings of
    the tokens that answers are made of: a small base may never have read them, and its head is its embedding.
    """

    method: str = "lora"
    rank: int = 16
    alpha: int = 32
    dropout: float = 0.0
    target: str = "all-linear"
    answer_tokens: bool | None = None
    epochs: float | None = None
    max_steps: int | None = None
    lr: float | None = None
    batch: int = 16
    micro_batch: int | None = None
    max_length: int = 512
    warmup: float = 0.05
    schedule: str = "cosine"
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        problems = [said for wrong, said in self._problems() if wrong]
        if problems:
            raise UsageError("; ".join(problems), where="recipe")

    def _problems(self) -> list[tuple[bool, str]]:
        return [
            (self.method not in METHODS, f"method {self.method!r} is not one of {', '.join(METHODS)}"),
            (
                self.schedule not in SCHEDULES,
                f"schedule {self.schedule!r} is not one of {', '.join(SCHEDULES)}",
            ),
            (self.rank < 1 or self.alpha < 1, "rank and alpha are at least 1"),
            (
                self.batch < 1 or (self.micro_batch is not None and self.micro_batch < 1),
                "batch and micro_batch are at least 1",
            ),
            (self.max_length < 2, "max_length is at least 2"),
            (self.lr is not None and not 0 < self.lr <= 1, "lr lies above 0 and is at most 1"),
            (self.epochs is not None and self.epochs <= 0, "epochs is above 0"),
            (self.max_steps is not None and self.max_steps < 1, "max_steps is at least 1"),
            (not 0 <= self.warmup < 1, "warmup is a share of the steps, from 0 to below 1"),
            (not 0 <= self.dropout < 1, "dropout lies from 0 to below 1"),
        ]

    def settled(self, parameters: int, rows: int) -> Recipe:
        """The recipe with every choice made, for a model of so many parameters and so many rows.

        Few rows are seen more often, until :data:`ENOUGH_STEPS` updates were made or a row was seen
        :data:`MOST_EPOCHS` times.
        """
        small = parameters < SMALL
        lr = self.lr or (SMALL_LR if small else LARGE_LR)[self.method]
        enough = ENOUGH_STEPS * self.batch / max(rows, 1)
        epochs = self.epochs or (min(MOST_EPOCHS, max(3.0, round(enough))) if small else 3.0)
        micro = min(self.batch, self.micro_batch or self.batch)
        tokens = self.method == "lora" and (small if self.answer_tokens is None else self.answer_tokens)
        return dataclasses.replace(self, lr=lr, epochs=epochs, micro_batch=micro, answer_tokens=tokens)


SCHEDULES = ("cosine", "linear", "constant")
SMALL_LR = {"lora": 5e-3, "full": 1e-3, "adapt": 1e-3}
LARGE_LR = {"lora": 2e-4, "full": 1e-5, "adapt": 2e-5}  # LoRA wants about ten times the rate of full training
ENOUGH_STEPS = 300
MOST_EPOCHS = 30.0


@dataclass(frozen=True)
class TrainResult:
    """What training gave: where it is, its name, and how it went. ``refused`` are rows that did not fit, with why."""

    adapter: Path
    digest: str
    eval_loss: float | None
    tokens_per_second: float
    seconds: float
    steps: int
    train_loss: float
    recipe: Recipe
    metrics: Mapping[str, Any]
    refused: tuple[tuple[int, str], ...] = ()


@dataclass(frozen=True)
class Example:
    """One row to learn from."""

    messages: Sequence[Message]
    completion: str
    weight: float = 1.0


# ------------------------------------------------------------------------------------------------ train


def train(
    examples: pa.Table | Sequence[Mapping[str, Any]],
    recipe: Recipe,
    base: str | Path,
    out: str | Path,
    *,
    revision: str | None = None,
    eval_examples: pa.Table | Sequence[Mapping[str, Any]] | None = None,
    provenance: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
    device: torch.device | str | None = None,
) -> TrainResult:
    """Train ``recipe`` on ``examples`` from ``base`` and write an adapter (or a whole model) to ``out``.

    ``examples`` are a table of EXAMPLES, of which the split ``train`` is learned and ``validation`` measured, or rows
    with ``prompt`` (or ``messages``) and ``completion``, and ``weight`` if they have one; for ``adapt`` also plain
    ``text``. A row counts in proportion to its weight. ``provenance`` (the snapshot's name and what else is to be
    traced) is written to ``lineage.json``.

    Raises :class:`TilthError` on an empty split, a base that is not there, a loss that is not a number, or memory that
    runs out; ``out`` then does not exist. Rows that do not fit are left out, and named in the result.
    """
    quiet()
    begun = time.time()
    provenance = dict(provenance or {})
    found = resolve_base(base, revision)
    rows = split_rows(examples, "train")
    held = split_rows(examples, "validation") if eval_examples is None else split_rows(eval_examples, None)
    with registry.partial(Path(out)) as folder, _faults(recipe), seeded(recipe.seed):
        model, tokenizer = load_base(found, method=recipe.method, device=device)
        limit = min(recipe.max_length, context_length(model))
        learned, weights, refused = encode_rows(rows, tokenizer, limit, recipe.method)
        measured, _, _ = encode_rows(held, tokenizer, limit, recipe.method) if held else ([], [], [])
        if not learned:
            raise _nothing_to_learn(len(rows), refused)
        recipe = recipe.settled(sum(p.numel() for p in model.parameters()), len(learned))
        if recipe.method == "lora":
            model = attach(model, recipe, tokens=answer_tokens(learned) if recipe.answer_tokens else ())
        trained, went = _fit(model, tokenizer, learned, weights, recipe, folder, progress)
        eval_loss = mean_loss(trained, measured, tokenizer) if measured else None
        metrics = {
            **went["metrics"],
            "eval_loss": eval_loss,
            "examples": len(learned),
            "refused": len(refused),
        }
        _save(trained, tokenizer, found, folder)
        _write_lineage(folder, provenance, found)
        _write_card(folder, recipe, found, metrics, provenance)
        content = {
            "kind": "adapter" if recipe.method == "lora" else "model",
            "snapshot": provenance.get("snapshot"),
            "data": rows_digest(rows),
            "recipe": dataclasses.asdict(recipe),
            "base": {"ref": found.ref, "revision": found.revision, "digest": found.digest},
            "metrics": metrics,
            "versions": versions(),
        }
        run = {"started": begun, "seconds": time.time() - begun, "host": platform.platform(), **went["speed"]}
        manifest = registry.seal(folder, content, run)
    return TrainResult(
        adapter=Path(out),
        digest=manifest["digest"],
        eval_loss=eval_loss,
        tokens_per_second=went["speed"]["tokens_per_second"],
        seconds=run["seconds"],
        steps=metrics["steps"],
        train_loss=metrics["train_loss"],
        recipe=recipe,
        metrics=metrics,
        refused=tuple(refused),
    )


def adapt(
    base: str | Path,
    texts: Sequence[str],
    out: str | Path,
    *,
    recipe: Recipe | None = None,
    provenance: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> TrainResult:
    """Continue the pre-training of ``base`` on unlabelled ``texts``: every weight, every token.

    For a base that has never read the domain's language. The result is a base directory like any other.
    """
    recipe = dataclasses.replace(recipe or Recipe(), method="adapt")
    rows = [{"text": text} for text in texts]
    return train(rows, recipe, base, out, provenance=provenance, progress=progress)


def load_snapshot_for_training(path: str | Path, approved: bool | None = None) -> pa.Table:
    """The rows of a snapshot's folder, all splits, once it is certain that they may be trained on.

    Every byte, row and the name are verified, every gate must have passed, and a curator's word counts: ``approved`` is
    true or false once there is a verdict, ``None`` before. Raises ``IntegrityError`` for a changed snapshot and
    ``GateRefused``, naming what stands in the way, for one that was not scrubbed, leaks, or was not approved.
    """
    found = snapshot.require_trainable(Path(path), approved=approved)
    return snapshot.load(found.path)


def split_rows(examples: pa.Table | Sequence[Mapping[str, Any]], split: str | None) -> list[Example]:
    """The rows of one split, or all of them where there is no ``split`` column (then ``validation`` has none).

    Raises ``UsageError`` naming the first row that has neither prompt nor messages, or no completion.
    """
    rows = examples.to_pylist() if isinstance(examples, pa.Table) else list(examples)
    if split is not None and any(row.get("split") for row in rows):
        rows = [row for row in rows if row.get("split") == split]
    elif split == "validation":
        return []
    return [_example(i, row) for i, row in enumerate(rows)]


def _example(index: int, row: Mapping[str, Any]) -> Example:
    weight = row.get("weight")
    weight = 1.0 if weight is None else float(weight)
    if not math.isfinite(weight) or weight < 0:
        raise UsageError(f"the weight is {weight}", where=f"row {index}", next="Give a number of at least 0")
    if row.get("text") is not None:
        return Example((), row["text"], weight)
    messages, prompt = row.get("messages"), row.get("prompt")
    if not messages and isinstance(prompt, str):
        messages = user_message(prompt)
    if not messages or not isinstance(row.get("completion"), str):
        raise UsageError(
            "a row to learn from needs a prompt (or messages) and a completion",
            where=f"row {index}",
            next="Leave it out, or complete it",
        )
    return Example(messages, row["completion"], weight)


def encode_rows(
    rows: Sequence[Example], tokenizer: Any, max_length: int, method: str
) -> tuple[list[Encoded], list[float], list[tuple[int, str]]]:
    """Encoded rows, their weights, and (index, reason) of each row that does not fit. Rows of weight 0 are left out."""
    check_tokenizer(tokenizer)
    learned: list[Encoded] = []
    weights: list[float] = []
    refused: list[tuple[int, str]] = []
    for i, row in enumerate(rows):
        try:
            made = _encode(row, tokenizer, max_length, method) if row.weight > 0 else []
        except UnfitExample as error:
            refused.append((i, str(error)))
            continue
        learned += made
        weights += [row.weight] * len(made)
    return learned, weights, refused


def answer_tokens(rows: Sequence[Encoded]) -> list[int]:
    """The ids that occur among the learned tokens, sorted."""
    return sorted({label for row in rows for label in row.labels} - {IGNORED})


def _encode(row: Example, tokenizer: Any, max_length: int, method: str) -> list[Encoded]:
    if method == "adapt" or not row.messages:
        text = "\n".join([*(m["content"] for m in row.messages), row.completion])
        return encode_text(text, tokenizer, max_length)
    made = encode(row.messages, row.completion, tokenizer, max_length)
    check(made, tokenizer)
    return [made]


def _nothing_to_learn(rows: int, refused: Sequence[tuple[int, str]]) -> UsageError:
    if refused:
        return UsageError(f"none of {rows} rows can be trained on; the first: {refused[0][1]}")
    return UsageError(
        "there is no row to train on", next="Check that the split 'train' holds rows with a weight above 0"
    )


def rows_digest(rows: Sequence[Example]) -> str:
    """The digest of what was learned, in order: messages, completion and weight of each row."""
    kept = ([[dict(m) for m in row.messages], row.completion, row.weight] for row in rows)
    return digest("\n".join(digest(canonical_json(row)) for row in kept))


# -------------------------------------------------------------------------------------------------- fit


def _fit(
    model: Any,
    tokenizer: Any,
    rows: Sequence[Encoded],
    weights: Sequence[float],
    recipe: Recipe,
    folder: Path,
    progress: Progress | None,
) -> tuple[Any, dict[str, Any]]:
    """Run trl over the encoded rows; gives the trained model, and metrics and speed."""
    from datasets import Dataset

    data = Dataset.from_dict(
        {
            "input_ids": [r.input_ids for r in rows],
            "labels": [r.labels for r in rows],
            "weight": level_weights(rows, weights),
            "length": [len(r.input_ids) for r in rows],
        }
    )
    settings = _settings(recipe, model, folder)
    trainer = _trainer_class()(
        model=model,
        args=settings,
        train_dataset=data,
        processing_class=tokenizer,
        data_collator=Collator(tokenizer.pad_token_id),
        callbacks=[_reporter(progress)] if progress else None,
    )
    _silence(trainer)
    begun = time.monotonic()
    state = trainer.train()
    seconds = time.monotonic() - begun
    tokens = trainer.tokens_seen
    if not math.isfinite(state.training_loss):
        raise _diverged(state.training_loss, state.global_step)
    return trainer.model, {
        "metrics": {
            "train_loss": float(state.training_loss),
            "steps": int(state.global_step),
            "tokens": tokens,
            "supervised_tokens": sum(r.supervised for r in rows),
        },
        "speed": {"training_seconds": seconds, "tokens_per_second": tokens / seconds},
    }


def level_weights(rows: Sequence[Encoded], weights: Sequence[float]) -> list[float]:
    """The weights scaled so that the mean over learned tokens is 1.

    The loss ``sum_i w_i sum_t nll_it / tokens`` then keeps its size, and the learning rate its meaning, whatever the
    unit of the weights; and it is the same however the batch is cut into pieces.
    """
    tokens = np.array([row.supervised for row in rows], dtype=np.float64)
    given = np.asarray(weights, dtype=np.float64)
    return (given * tokens.sum() / (given * tokens).sum()).tolist()


@dataclass(frozen=True)
class Collator:
    """Pads a batch on the right; labels are ignored there, and attention is masked."""

    pad_token_id: int

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        width = max(len(row["input_ids"]) for row in rows)
        ids = torch.full((len(rows), width), self.pad_token_id)
        labels = torch.full((len(rows), width), IGNORED)
        mask = torch.zeros((len(rows), width), dtype=torch.long)
        for i, row in enumerate(rows):
            size = len(row["input_ids"])
            ids[i, :size] = torch.tensor(row["input_ids"])
            labels[i, :size] = torch.tensor(row["labels"])
            mask[i, :size] = 1
        weight = torch.tensor([row["weight"] for row in rows], dtype=torch.float32)
        return {"input_ids": ids, "attention_mask": mask, "labels": labels, "weight": weight}


def _settings(recipe: Recipe, model: Any, folder: Path) -> Any:
    """trl's configuration. Every line that differs from its defaults does so for a reason given beside it."""
    from trl import SFTConfig

    on_gpu = next(model.parameters()).device.type == "cuda"
    small = model.num_parameters() < SMALL
    micro = recipe.micro_batch or recipe.batch
    return SFTConfig(
        output_dir=str(folder),
        save_strategy="no",  # the weights are written once, sealed, at the end
        report_to="none",  # nothing leaves the machine
        disable_tqdm=True,
        logging_strategy="no",
        use_cpu=not on_gpu,
        bf16=on_gpu,
        gradient_checkpointing=not small,  # it trades time for memory that a small model does not need
        train_sampling_strategy="group_by_length",  # padding is work for nothing
        remove_unused_columns=False,  # the weight of a row is one of them
        dataset_kwargs={"skip_prepare_dataset": True},  # ids and labels are made and checked already
        dataloader_pin_memory=on_gpu,
        optim="adamw_torch_fused",
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=max(1, round(recipe.batch / micro)),
        num_train_epochs=recipe.epochs or 1.0,
        max_steps=recipe.max_steps or -1,
        learning_rate=recipe.lr or 0.0,
        lr_scheduler_type=recipe.schedule,
        warmup_steps=recipe.warmup,
        weight_decay=recipe.weight_decay,
        max_grad_norm=recipe.max_grad_norm,
        max_length=recipe.max_length,
        seed=recipe.seed,
        data_seed=recipe.seed,
    )


def _trainer_class() -> Any:
    """trl's trainer with the weighted loss. Made on first use, since importing trl takes seconds."""
    from trl import SFTTrainer

    class CompletionTrainer(SFTTrainer):
        """``loss = sum over learned tokens of weight x NLL / learned tokens of the whole update``."""

        tokens_seen = 0

        def compute_loss(
            self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
        ) -> Any:
            weight, labels = inputs["weight"], inputs["labels"]
            self.tokens_seen += int(inputs["attention_mask"].sum())
            nll, row = answer_nll(model, inputs["input_ids"], inputs["attention_mask"], labels)
            count = (labels[:, 1:] != IGNORED).sum() if num_items_in_batch is None else num_items_in_batch
            loss = (nll * weight[row]).sum() / count
            return (loss, None) if return_outputs else loss

        def training_step(self, *args: Any, **kwargs: Any) -> Any:
            loss = super().training_step(*args, **kwargs)
            if not torch.isfinite(loss):
                raise _diverged(float(loss), self.state.global_step + 1)
            return loss

    return CompletionTrainer


# What some architectures do to the logits after the head; the head alone would then give other probabilities.
_HEAD_TRICKS = (
    "final_logit_softcapping",
    "logit_scale",
    "output_multiplier",
    "lm_head_multiplier",
    "logits_scaling",
)


def answer_nll(
    model: Any, input_ids: torch.Tensor, attention_mask: torch.Tensor, labels: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The negative log-likelihood, in nats, of each learned token, and the row that it belongs to; float32.

    Only learned positions go through the head: with short answers and a large vocabulary most of the work is saved.
    (trl's own fused head does the same on GPUs, but scores every position on a CPU.)
    """
    causal = model.get_base_model() if hasattr(model, "get_base_model") else model
    learned = labels[:, 1:] != IGNORED
    targets = labels[:, 1:][learned]
    config = causal.config.get_text_config()
    if any(getattr(config, name, None) not in (None, 1.0) for name in _HEAD_TRICKS):
        logits = model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).logits[:, :-1][
            learned
        ]
    else:
        states = causal.base_model(
            input_ids=input_ids, attention_mask=attention_mask, use_cache=False
        ).last_hidden_state
        logits = causal.get_output_embeddings()(states[:, :-1][learned])
    nll = functional.cross_entropy(logits.float(), targets, reduction="none")
    return nll, learned.nonzero()[:, 0]


def mean_loss(model: Any, rows: Sequence[Encoded], tokenizer: Any, batch: int = 32) -> float:
    """Nats per learned token over ``rows``. Raises ``UsageError`` on no rows."""
    if not rows:
        raise UsageError("there is no row to measure the loss on")
    model.eval()
    device = next(model.parameters()).device
    order = sorted(range(len(rows)), key=lambda i: len(rows[i].input_ids))
    total = 0.0
    collate = Collator(tokenizer.pad_token_id)
    with torch.no_grad():
        for start in range(0, len(order), batch):
            chosen = [rows[i] for i in order[start : start + batch]]
            made = collate([{"input_ids": r.input_ids, "labels": r.labels, "weight": 1.0} for r in chosen])
            moved = {name: made[name].to(device) for name in ("input_ids", "attention_mask", "labels")}
            nll, _ = answer_nll(model, **moved)
            total += float(nll.double().sum())
    learned = sum(sum(label != IGNORED for label in r.labels[1:]) for r in rows)
    return total / learned


def _reporter(progress: Progress) -> Any:
    from transformers import TrainerCallback

    class Reporter(TrainerCallback):
        """Passes steps on to whoever watches."""

        begun = time.monotonic()

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            progress(
                {
                    "step": state.global_step,
                    "steps": state.max_steps,
                    "seconds": time.monotonic() - self.begun,
                }
            )

    return Reporter()


def _silence(trainer: Any) -> None:
    from transformers import PrinterCallback

    trainer.remove_callback(PrinterCallback)


# ----------------------------------------------------------------------------------------------- safety


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed every global generator for the block, and give each its own state back afterwards."""
    kept = random.getstate(), np.random.get_state(), torch.random.get_rng_state()
    gpu = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(kept[0])
        np.random.set_state(kept[1])
        torch.random.set_rng_state(kept[2])
        if gpu:
            torch.cuda.set_rng_state_all(gpu)


@contextmanager
def _faults(recipe: Recipe) -> Iterator[None]:
    """What the layers below raise when memory runs out, in words that help."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        raise TilthError(
            f"memory ran out with {recipe.micro_batch or recipe.batch} rows of up to {recipe.max_length} tokens",
            where="train",
            next="Lower micro_batch (the result stays the same) or max_length, or choose a smaller base",
        ) from error


def _diverged(loss: float, step: int) -> TilthError:
    return TilthError(
        f"the loss became {loss} at step {step}; nothing was kept",
        where="train",
        next="Lower the learning rate, and check the rows for extreme weights",
    )


# -------------------------------------------------------------------------------------------- on disk


def _save(model: Any, tokenizer: Any, base: Base, folder: Path) -> None:
    if hasattr(model, "peft_config"):
        for config in model.peft_config.values():
            config.base_model_name_or_path, config.revision = base.ref, base.revision
        model.save_pretrained(folder, save_embedding_layers=False)
    else:
        model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _write_lineage(folder: Path, provenance: Mapping[str, Any], base: Base) -> None:
    about = {"base": {"ref": base.ref, "revision": base.revision, "digest": base.digest}, **provenance}
    (folder / LINEAGE).write_bytes(orjson.dumps(about, option=orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS))


def _write_card(
    folder: Path, recipe: Recipe, base: Base, metrics: Mapping[str, Any], provenance: Mapping[str, Any]
) -> None:
    frozen = provenance.get("snapshot")
    head = {
        "base_model": base.ref,
        "library_name": "peft" if recipe.method == "lora" else "transformers",
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
    from importlib.metadata import version

    packages = ("torch", "transformers", "peft", "trl", "accelerate", "tokenizers", "safetensors")
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}
