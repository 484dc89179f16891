"""Learning from preferences: trl's DPO (Rafailov et al. 2023, arXiv 2305.18290), given ids that were made and checked here.

trl's own tokenising would render prompts otherwise than training, scoring and generating do, and cut what is too long;
its checkpoints are pickles and may be cut off half-way, so ours take their place. The reference is the base without its
adapter, or the adapter that is continued as it was.
"""

from __future__ import annotations

import json
import math
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from curation.errors import UsageError
from training.batches import pad
from training.checkpoint import Keeper, Saved, optimizer_tensors, restore_optimizer
from training.examples import IGNORED, Encoded, UnfitExample, check_tokenizer, encode_pair
from training.fit import State, Watch, diverged, random_tensors, save_due, set_random
from training.loss import answer_nll
from training.recipe import Recipe
from training.rows import Example

Pair = dict[str, list[int]]


def encode_pairs(
    rows: Sequence[Example], tokenizer: Any, max_length: int
) -> tuple[list[Pair], list[tuple[int, str]]]:
    """What trl learns of preference rows, and (index, reason) of each that does not fit.

    Raises ``UsageError`` on a row without a rejected answer, or with a weight: DPO has no place for one.
    """
    check_tokenizer(tokenizer)
    made, refused = [], []
    for i, row in enumerate(rows):
        if row.fault:
            refused.append((i, row.fault))
            continue
        if row.rejected is None:
            raise UsageError(
                "a preference has prompt, chosen and rejected", where=f"row {i}", next="Complete it"
            )
        if row.weight not in (0.0, 1.0):
            raise UsageError(
                "preferences are learned without weights", where=f"row {i}", next="Leave the weight out"
            )
        try:
            if row.weight:
                ids = encode_pair(row.messages, row.completion, row.rejected, tokenizer, max_length)
                made.append(dict(zip(("prompt_ids", "chosen_ids", "rejected_ids"), ids, strict=True)))
        except UnfitExample as error:
            refused.append((i, str(error)))
    return made, refused


def prefer(
    model: Any,
    tokenizer: Any,
    pairs: Sequence[Pair],
    recipe: Recipe,
    folder: Path,
    watch: Watch | None,
    saves: Saves | None = None,
) -> tuple[State, dict[str, float]]:
    """Train ``model`` on preferences in place; gives the state at the end, and what trl measured on the last batch.

    With ``saves`` it goes on from their newest checkpoint, and adds to them. ``folder`` is trl's to write into.
    """
    from datasets import Dataset
    from transformers import PrinterCallback

    saved = saves.keeper.newest() if saves else None
    before = float(saved.state["seconds"]) if saved else 0.0
    trainer = _trainer_class()(
        model=model,
        args=_settings(recipe, model, folder),
        train_dataset=Dataset.from_list(list(pairs)),
        processing_class=tokenizer,
        callbacks=[_reporter(watch, before), *([_saver(saves, before)] if saves else [])],
    )
    trainer.remove_callback(PrinterCallback)  # stdout is the result's
    begun = time.monotonic()
    went = _go_on(trainer, saved) if saved else trainer.train()
    log = [line for line in trainer.state.log_history if "rewards/margins" in line]
    measured = {name.replace("/", "_"): float(log[-1][name]) for name in _MEASURED} if log else {}
    tokens = sum(len(p["prompt_ids"]) * 2 + len(p["chosen_ids"]) + len(p["rejected_ids"]) for p in pairs)
    seen = round(tokens * went.global_step * recipe.batch / len(pairs))
    model.eval()
    total = sum(float(line["loss"]) for line in trainer.state.log_history if "loss" in line)
    return State(went.global_step, total, seen, before + time.monotonic() - begun), measured


_MEASURED = ("rewards/margins", "rewards/accuracies", "logps/chosen", "logps/rejected")


def _settings(recipe: Recipe, model: Any, folder: Path) -> Any:
    """trl's configuration; every line that differs from its defaults does so for a reason given beside it."""
    from trl import DPOConfig

    on_gpu = next(model.parameters()).device.type == "cuda"
    micro = recipe.micro_batch or recipe.batch
    return DPOConfig(
        output_dir=str(folder),
        save_strategy="no",  # the weights are written once, sealed, at the end
        report_to="none",  # nothing leaves the machine
        disable_tqdm=True,
        logging_steps=1,  # the loss of every step is looked at
        use_cpu=not on_gpu,
        bf16=on_gpu,
        gradient_checkpointing=bool(recipe.checkpointing),
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
        max_length=None,  # what does not fit was refused; nothing is cut
        beta=recipe.beta,
        seed=recipe.seed,
        data_seed=recipe.seed,
    )


def _trainer_class() -> Any:
    """trl's trainer without its tokenising. Made on first use, since importing trl takes seconds."""
    from trl import DPOTrainer

    class PreferenceTrainer(DPOTrainer):
        """Takes ``prompt_ids``, ``chosen_ids`` and ``rejected_ids`` as they are, and goes on from ``saved``."""

        saved: Saved | None = None

        def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
            return dataset

        @torch.no_grad()
        def _load_from_checkpoint(self, *_: Any) -> None:
            if self.saved:
                for name, p in _trained(self.model).items():
                    p.copy_(self.saved.tensors[f"model.{name}"])

        def _load_optimizer_and_scheduler(self, checkpoint: Any) -> None:
            if self.saved:
                optimizer: Any = self.optimizer
                schedule: Any = self.lr_scheduler
                restore_optimizer(optimizer, self.saved.tensors, self.saved.state["optimizer"])
                schedule.load_state_dict(self.saved.state["schedule"])
                for group, lr in zip(optimizer.param_groups, schedule.get_last_lr(), strict=True):
                    group["lr"] = lr

        def _load_rng_state(self, checkpoint: Any) -> None:
            if self.saved:
                set_random(self.saved.tensors)

    return PreferenceTrainer


# ---------------------------------------------------------------------------------------------- checkpoints


@dataclass(frozen=True)
class Saves:
    """Where checkpoints go, and after how many updates each; ``None``: every few minutes. ``holds`` asks whether they may."""

    keeper: Keeper
    every: int | None = None
    holds: Callable[[], None] | None = None


def _trained(model: Any) -> dict[str, torch.nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def _saver(saves: Saves, before: float) -> Any:
    from transformers import TrainerCallback

    class Saver(TrainerCallback):
        """Keeps what decides the steps to come, once a step's loss is in the log."""

        begun = written = time.monotonic()

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **given: Any) -> None:
            if "loss" not in (logs or {}) or not save_due(state.global_step, self.written, saves.every):
                return
            if saves.holds:
                saves.holds()
            tensors, plain = optimizer_tensors(given["optimizer"])
            tensors |= {f"model.{name}": p for name, p in _trained(given["model"]).items()} | random_tensors()
            about = {
                "optimizer": plain,
                "schedule": given["lr_scheduler"].state_dict(),
                "trainer": asdict(state),
                "seconds": before + time.monotonic() - self.begun,
            }
            saves.keeper.save(state.global_step, tensors, about)
            self.written = time.monotonic()

    return Saver()


def _go_on(trainer: Any, saved: Saved) -> Any:
    """Train on from a checkpoint. The trainer reads its counters from a file of its own and asks us for all the rest."""
    from transformers.trainer import TRAINER_STATE_NAME

    trainer.saved = saved
    with tempfile.TemporaryDirectory() as counters:
        (Path(counters) / TRAINER_STATE_NAME).write_text(json.dumps(saved.state["trainer"]))
        return trainer.train(resume_from_checkpoint=counters)


def _reporter(watch: Watch | None, before: float) -> Any:
    from transformers import TrainerCallback

    class Reporter(TrainerCallback):
        """Passes steps on to whoever watches, and stops a loss that is not a number."""

        begun = time.monotonic()

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            loss = float((logs or {}).get("loss", 0.0))
            if not math.isfinite(loss):
                raise diverged(loss, state.global_step)
            if watch and "loss" in (logs or {}):
                seconds = before + time.monotonic() - self.begun
                watch({"step": state.global_step, "steps": state.max_steps, "loss": loss, "seconds": seconds})

    return Reporter()


@torch.no_grad()
def margins(model: Any, pairs: Sequence[Pair], pad_token_id: int, beta: float, batch: int = 16) -> np.ndarray:
    """The implicit reward margin of each pair, in nats: ``beta * ((log p - log p0)(chosen) - (log p - log p0)(rejected))``.

    ``p0`` is what training began with: trl's copy of the adapter as it was, or the base without the adapter (arXiv
    2305.18290, equation 5). Above 0 where the model has learned to prefer what was preferred. No pairs give an empty array.
    """
    model.eval()
    with _reference(model):
        reference = logprobs(model, pairs, pad_token_id, batch)
    learned = logprobs(model, pairs, pad_token_id, batch) - reference
    return beta * (learned[:, 0] - learned[:, 1])


@contextmanager
def _reference(model: Any) -> Iterator[None]:
    if "ref" not in model.peft_config:
        with model.disable_adapter():
            yield
        return
    model.set_adapter("ref")
    try:
        yield
    finally:
        model.set_adapter("default")


@torch.no_grad()
def logprobs(model: Any, pairs: Sequence[Pair], pad_token_id: int, batch: int) -> np.ndarray:
    """Sum of log-probabilities of the chosen and the rejected answer of each pair, (pairs, 2)."""
    rows = [_encoded(pair, name) for pair in pairs for name in ("chosen_ids", "rejected_ids")]
    device = next(model.parameters()).device
    found = np.zeros(len(rows))
    order = sorted(range(len(rows)), key=lambda i: len(rows[i].input_ids))
    for start in range(0, len(order), batch):
        chosen = order[start : start + batch]
        made = pad([rows[i] for i in chosen], [1.0] * len(chosen), pad_token_id).to(device)
        nll, _ = answer_nll(model, made)
        line = (made.labels[:, 1:] != IGNORED).nonzero()[:, 0]
        sums = torch.zeros(len(chosen), dtype=torch.float64, device=device).index_add_(0, line, nll.double())
        found[chosen] = -sums.cpu().numpy()
    return found.reshape(-1, 2)


def _encoded(pair: Pair, name: str) -> Encoded:
    return Encoded(pair["prompt_ids"] + pair[name], [IGNORED] * len(pair["prompt_ids"]) + pair[name])


def preference_loss(margin: np.ndarray) -> float:
    """DPO's loss, in nats per pair: ``mean(log(1 + exp(-margin)))``; ``log 2`` before anything is learned.

    >>> round(preference_loss(np.zeros(3)), 4)
    0.6931
    """
    return float(np.logaddexp(0.0, -np.asarray(margin, dtype=np.float64)).mean())
