"""The supervised training loop: update after update, exactly resumable, equal however the batch is cut or shared.

One update is the rows that :class:`training.batches.Updates` gives it; the gradient is that of
``sum over learned tokens of weight x NLL / learned tokens of the update``. Everything that decides the next update is in
:class:`State` and the checkpoint that it is written to: a run that was killed and goes on ends with the weights of one
that was not (on a CPU, to the last bit). Nothing here reads rows or writes weights for others.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from curation.errors import MissingExtra, TilthError
from training import loss as losses
from training.attention import rows_apart
from training.batches import Batch, Updates, pack, pad
from training.checkpoint import Keeper, Saved, optimizer_tensors, restore_optimizer
from training.peers import ALONE, Peers
from training.recipe import Recipe, pace
from training.rows import Lesson, level_weights

Watch = Callable[[dict[str, Any]], None]
"""Called after every update with ``step``, ``steps``, ``loss``, ``lr``, ``seconds``, ``tokens_per_second``; and after
every measurement with ``eval_loss`` as well."""

SAVE_SECONDS = 300.0
_ORTHOGONAL = 0.5  # weight of AdaLoRA's regulariser (arXiv 2303.10512, equation 4)


@dataclass
class State:
    """Where a training stands. ``total`` is the sum of the updates' losses; ``best`` are the trained weights then."""

    step: int = 0
    total: float = 0.0
    tokens: int = 0
    seconds: float = 0.0
    best_loss: float = math.inf
    best_step: int = 0
    waited: int = 0
    measured: list[list[float]] = field(default_factory=list)
    best: dict[str, torch.Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Task:
    """All that a training needs beside the model: rows, recipe, and who watches, keeps and takes part.

    With ``packing`` rows lie end to end in lines as long as a row may be, or all in ``one_line``, which :func:`fit` decides.
    """

    lesson: Lesson
    held: Sequence[Any]
    recipe: Recipe
    pad_token_id: int
    packing: bool = False
    one_line: bool = False
    bf16: bool = False
    keeper: Keeper | None = None
    save_every: int | None = None
    peers: Peers = ALONE
    watch: Watch | None = None
    holds: Callable[[], None] | None = None

    @property
    def updates(self) -> Updates:
        """Which rows each update holds."""
        lengths = tuple(len(row.input_ids) for row in self.lesson.rows)
        recipe = self.recipe
        tasks = tuple(self.lesson.tasks)
        how = (recipe.temperature, recipe.mixture, recipe.length_grouping)
        return Updates(lengths, tasks, recipe.batch, recipe.seed, *how)

    @property
    def steps(self) -> int:
        """How many updates there are, if nothing stops them."""
        return self.updates.steps(self.recipe.epochs or 1.0, self.recipe.max_steps)


def fit(model: Any, task: Task) -> State:
    """Train ``model`` in place, from the newest checkpoint where there is one, and give the state at the end.

    With held-out rows the weights are those of the best measurement. Raises :class:`TilthError` where the loss is not a
    number, and whatever ``task.holds`` raises when this run is no longer the one that may write.
    """
    with rows_apart(model) if task.packing else nullcontext(False) as apart:
        return _fit(model, replace(task, one_line=apart))


def _fit(model: Any, task: Task) -> State:
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    optimizer = make_optimizer(list(trained.values()), task.recipe)
    state = restore(task.keeper.newest() if task.keeper else None, model, trained, optimizer)
    updates, steps = task.updates, task.steps
    weights = level_weights(task.lesson.rows, task.lesson.weights)
    due = measured_steps(steps, task.recipe.evaluations)
    model.train()
    begun = saved = time.monotonic()
    before = state.seconds
    while state.step < steps and not _waited_enough(state, task.recipe):
        lr = (task.recipe.lr or 0.0) * pace(state.step, steps, task.recipe)
        loss, tokens = update(model, trained, optimizer, updates.at(state.step), weights, lr, task)
        if not math.isfinite(loss):
            raise diverged(loss, state.step + 1)
        _reallocate(model, state.step + 1)
        optimizer.zero_grad(set_to_none=True)
        state.step, state.total, state.tokens = state.step + 1, state.total + loss, state.tokens + tokens
        state.seconds = before + time.monotonic() - begun
        told: dict[str, Any] = {"loss": loss, "lr": lr}
        if task.held and state.step in due:
            told["eval_loss"] = _measure(model, trained, state, task)
        if task.keeper and task.peers.leads and save_due(state.step, saved, task.save_every):
            if task.holds:
                task.holds()
            task.keeper.save(state.step, *_snapshot(model, trained, optimizer, state))
            saved = time.monotonic()
        if task.watch:
            speed = state.tokens / max(state.seconds, 1e-9)
            progress = {
                "step": state.step,
                "steps": steps,
                "seconds": state.seconds,
                "tokens_per_second": speed,
            }
            task.watch(progress | told)
    _take_best(trained, state)
    model.eval()
    return state


def update(
    model: Any,
    trained: Mapping[str, torch.nn.Parameter],
    optimizer: torch.optim.Optimizer,
    chosen: list[int],
    weights: Sequence[float],
    lr: float,
    task: Task,
) -> tuple[float, int]:
    """One step of the optimiser on the rows ``chosen``; gives the loss before it, and the tokens it read."""
    rows = task.lesson.rows
    count = sum(rows[i].targets for i in chosen)
    device = next(model.parameters()).device
    total, tokens = torch.zeros((), device=device), 0
    for piece in pieces(task.peers.share(chosen), task.recipe.micro_batch or task.recipe.batch):
        batch = lay_out([rows[i] for i in piece], [weights[i] for i in piece], task).to(device)
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=task.bf16):
            nll, weight = losses.answer_nll(model, batch)
        part = (nll * weight).sum() / count
        (part + _regulariser(model) * (len(piece) / len(chosen))).backward()
        total, tokens = total + part.detach(), tokens + batch.tokens
    total = task.peers.add_up(trained.values(), total)
    torch.nn.utils.clip_grad_norm_(trained.values(), task.recipe.max_grad_norm)
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.step()
    return float(total), tokens


def pieces(chosen: Sequence[int], size: int) -> list[Sequence[int]]:
    """The rows of an update, a few at a time."""
    return [chosen[i : i + size] for i in range(0, len(chosen), size)]


def lay_out(rows: Sequence[Any], weights: Sequence[float], task: Task) -> Batch:
    """The rows as tensors: padded, or packed into one line or several."""
    if task.packing:
        width = None if task.one_line else task.recipe.max_length
        return pack(rows, weights, task.pad_token_id, width)
    return pad(rows, weights, task.pad_token_id)


def make_optimizer(parameters: Sequence[torch.nn.Parameter], recipe: Recipe) -> torch.optim.Optimizer:
    """AdamW (Loshchilov and Hutter 2019); paged and in 8 bits where the base is quantised (Dettmers et al. 2022).

    Only matrices decay: norms and biases have no direction to shrink in.
    """
    groups = [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": recipe.weight_decay},
        {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if recipe.bits is None:
        return torch.optim.AdamW(groups, lr=recipe.lr or 0.0, fused=True)
    try:
        from bitsandbytes.optim import PagedAdamW8bit
    except ImportError:
        raise MissingExtra("train", "bitsandbytes") from None
    return PagedAdamW8bit(groups, lr=recipe.lr or 0.0)


def diverged(loss: float, step: int) -> TilthError:
    """The error of a loss that is not a number."""
    return Diverged(
        f"the loss became {loss} at step {step}; nothing was kept",
        where="train",
        next="Lower the learning rate, and check the rows for extreme weights",
    )


class Diverged(TilthError):
    """The loss is not a number: going on from a checkpoint would end there again."""


# --------------------------------------------------------------------------------------------- measuring


def measured_steps(steps: int, evaluations: int) -> set[int]:
    """After which updates the validation loss is measured: evenly, the last included.

    >>> sorted(measured_steps(10, 3))
    [4, 7, 10]
    """
    return {math.ceil(steps * (i + 1) / evaluations) for i in range(evaluations)}


def _measure(model: Any, trained: Mapping[str, torch.nn.Parameter], state: State, task: Task) -> float:
    loss = losses.mean_loss(model, task.held, task.pad_token_id)
    state.measured.append([state.step, loss])
    if loss < state.best_loss:
        state.best_loss, state.best_step, state.waited = loss, state.step, 0
        state.best = {name: p.detach().cpu().clone() for name, p in trained.items()}
    else:
        state.waited += 1
    return loss


def _waited_enough(state: State, recipe: Recipe) -> bool:
    return recipe.patience is not None and state.waited >= recipe.patience


@torch.no_grad()
def _take_best(trained: Mapping[str, torch.nn.Parameter], state: State) -> None:
    for name, value in state.best.items():
        trained[name].copy_(value)


# ----------------------------------------------------------------------------------------------- AdaLoRA


def _allocator(model: Any) -> Any | None:
    """AdaLoRA's own bookkeeping, where the model has it."""
    return getattr(getattr(model, "base_model", None), "rankallocator", None)


def _reallocate(model: Any, step: int) -> None:
    """Move rank to where it is needed. Without this call after every update AdaLoRA trains as plain LoRA, silently."""
    if _allocator(model) is not None:
        model.base_model.update_and_allocate(step)


def _regulariser(model: Any) -> torch.Tensor | float:
    """How far AdaLoRA's factors are from orthogonal, which its reading of singular values rests on; 0 for others."""
    if _allocator(model) is None:
        return 0.0
    apart = []
    for name, p in model.named_parameters():
        if "lora_A" in name or "lora_B" in name:
            square = p @ p.T if "lora_A" in name else p.T @ p
            apart.append(torch.linalg.norm(square - torch.eye(len(square), device=p.device, dtype=p.dtype)))
    return _ORTHOGONAL * torch.stack(apart).mean()


# -------------------------------------------------------------------------------------------- checkpoints

_SENSITIVITIES = ("ipt", "exp_avg_ipt", "exp_avg_unc")
_PLAIN = ("total", "tokens", "seconds", "best_loss", "best_step", "waited", "measured")


def save_due(step: int, saved: float, every: int | None) -> bool:
    """Whether a checkpoint is due: after so many steps, else :data:`SAVE_SECONDS` after the time of the last one."""
    return step % every == 0 if every else time.monotonic() - saved >= SAVE_SECONDS


def random_tensors() -> dict[str, torch.Tensor]:
    """Where torch's generators stand."""
    tensors = {"random.cpu": torch.random.get_rng_state()}
    if torch.cuda.is_available():
        tensors["random.gpu"] = torch.cuda.get_rng_state()
    return tensors


def set_random(tensors: Mapping[str, torch.Tensor]) -> None:
    """Put torch's generators where :func:`random_tensors` found them."""
    torch.random.set_rng_state(tensors["random.cpu"])
    if "random.gpu" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["random.gpu"])


def _snapshot(
    model: Any, trained: Mapping[str, torch.nn.Parameter], optimizer: torch.optim.Optimizer, state: State
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """All that decides what comes next, as tensors and as JSON."""
    tensors, plain = optimizer_tensors(optimizer)
    tensors |= {f"model.{name}": p for name, p in trained.items()}
    tensors |= {f"best.{name}": value for name, value in state.best.items()}
    tensors |= random_tensors()
    about = {name: getattr(state, name) for name in _PLAIN} | {"optimizer": plain}
    about["best_loss"] = None if math.isinf(state.best_loss) else state.best_loss
    allocator = _allocator(model)
    if allocator is not None:
        for kind in _SENSITIVITIES:
            tensors |= {f"rank.{kind}.{name}": value for name, value in getattr(allocator, kind).items()}
        about["rank_pattern"] = _active_config(model).rank_pattern
    return tensors, about


@torch.no_grad()
def restore(
    saved: Saved | None,
    model: Any,
    trained: Mapping[str, torch.nn.Parameter],
    optimizer: torch.optim.Optimizer,
) -> State:
    """The state of a checkpoint, put into model, optimiser and generators; a fresh state where there is none."""
    if saved is None:
        return State()
    for name, p in trained.items():
        p.copy_(saved.tensors[f"model.{name}"])
    restore_optimizer(optimizer, saved.tensors, saved.state["optimizer"])
    set_random(saved.tensors)
    allocator = _allocator(model)
    if allocator is not None:
        for kind in _SENSITIVITIES:
            setattr(allocator, kind, _named(saved, f"rank.{kind}.", next(model.parameters()).device))
        _active_config(model).rank_pattern = saved.state["rank_pattern"]
    about = {name: saved.state[name] for name in _PLAIN}
    about["best_loss"] = math.inf if about["best_loss"] is None else about["best_loss"]
    return State(step=saved.state["step"], best=_named(saved, "best."), **about)


def _named(saved: Saved, prefix: str, device: torch.device | None = None) -> dict[str, torch.Tensor]:
    return {
        name.removeprefix(prefix): value.to(device) if device else value
        for name, value in saved.tensors.items()
        if name.startswith(prefix)
    }


def _active_config(model: Any) -> Any:
    return next(iter(model.peft_config.values()))
