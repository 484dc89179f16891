"""From examples and a recipe to an adapter that can be traced and verified.

The rows are encoded and checked in :mod:`training.rows`, learned by the loop of :mod:`training.fit` (preferences by trl,
:mod:`training.preferences`), and sealed by :mod:`training.registry`; here they are joined. It refuses data that nobody
vouched for, an empty split, rows that do not fit, a training that memory will not hold and a loss that is not a number.
A run that stops half-way leaves nothing that could be loaded, and goes on from its last checkpoint when it is asked for
again. The same examples, recipe and base give the same weights on the same CPU.
"""

from __future__ import annotations

import dataclasses
import platform
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
import pyarrow as pa
import torch

from curation import snapshot
from curation.errors import TilthError, UsageError
from curation.records import canonical_json, digest
from training import card, guards, memory, preferences, registry, tracking
from training.adapters import attach, resume
from training.attention import suits
from training.checkpoint import Keeper, place_of, workplace
from training.fit import Diverged, State, Task, Watch, fit
from training.loss import causal_of, mean_loss
from training.model import Base, Progress, load_base, load_tokenizer, out_of_memory, quiet, resolve_base
from training.peers import Peers, join
from training.recipe import Recipe
from training.rows import (
    Example,
    Lesson,
    answer_tokens,
    check_mixture,
    encode_rows,
    level_weights,
    rows_digest,
    split_rows,
)

__all__ = ["Recipe", "Sink", "TrainResult", "adapt", "load_snapshot_for_training", "train"]

Rows: TypeAlias = pa.Table | Sequence[Mapping[str, Any]]


class Sink(Protocol):
    """Where a run reports to, and who says whether it may still write. Handed in by whoever keeps the ledger."""

    def event(self, kind: str, subject: str, detail: Mapping[str, Any]) -> None:
        """Note ``train-started``, ``train-failed`` or ``train-finished`` of the run ``subject``."""

    def holds(self) -> None:
        """Raise :class:`curation.errors.ConflictError` unless this process still holds the run; asked before each
        checkpoint and before the weights are published. Renews the hold."""


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


@dataclass
class _Run:
    """One training as it goes: what was asked, and what is known so far."""

    rows: list[Example]
    held: list[Example]
    recipe: Recipe
    base: Base
    start: Path | None
    say: Callable[[str], None]
    watch: Watch | None
    sink: Sink | None
    save_every: int | None
    peers: Peers
    device: torch.device
    track: tracking.Destinations | None = None
    trials: Sequence[Mapping[str, Any]] = ()
    lesson: Lesson = field(default_factory=Lesson)
    pairs: list[preferences.Pair] = field(default_factory=list)
    measured: Lesson = field(default_factory=Lesson)
    measured_pairs: list[preferences.Pair] = field(default_factory=list)
    metrics: dict[str, Any] = field(default_factory=dict)

    @property
    def learned(self) -> int:
        """How many rows are learned."""
        return len(self.pairs) or len(self.lesson)

    @property
    def refused(self) -> list[tuple[int, str]]:
        """Rows that did not fit, with why."""
        return self.lesson.refused


def train(
    examples: Rows,
    recipe: Recipe,
    base: str | Path,
    out: str | Path,
    *,
    revision: str | None = None,
    eval_examples: Rows | None = None,
    provenance: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
    device: torch.device | str | None = None,
    start: str | Path | None = None,
    say: Callable[[str], None] | None = None,
    sink: Sink | None = None,
    save_every: int | None = None,
    track: tracking.Destinations | None = None,
    trials: Sequence[Mapping[str, Any]] = (),
) -> TrainResult:
    """Train ``recipe`` on ``examples`` from ``base`` and write an adapter (or a whole model) to ``out``.

    ``examples`` are a table of EXAMPLES, of which the split ``train`` is learned and ``validation`` measured, or rows
    with ``prompt`` (or ``messages``) and ``completion``, and ``weight``, ``task`` or ``passages`` if they have them; for
    ``dpo`` with ``chosen`` and ``rejected``; for ``adapt`` also plain ``text``. A row counts in proportion to its weight.
    ``start`` names an adapter to go on from. ``provenance`` (the snapshot's name and what else is to be traced) is
    written to ``lineage.json``. ``say`` is told, before the first update, what is learned of a row and what memory it
    takes; ``sink`` who is to know of the run; ``track`` where its curve goes beside its log, which
    begins with the ``trials`` that chose the recipe. Checkpoints are written
    beside ``out`` every ``save_every`` updates, or every five minutes.

    Raises :class:`TilthError` on an empty split, a base that is not there, a training that does not fit into memory, a
    loss that is not a number, or memory that runs out; ``out`` then does not exist. Rows that do not fit are left out,
    and named in the result.
    """
    quiet()
    begun, out = time.time(), Path(out)
    peers, where = join(device)
    rows = split_rows(examples, "train")
    held = split_rows(examples, "validation") if eval_examples is None else split_rows(eval_examples, None)
    found = resolve_base(base, revision)
    run = _Run(rows, held, recipe, found, Path(start) if start else None, say or _silent, progress, sink, save_every,
               peers, where, track, trials)  # fmt: skip
    with _reported(run, out), _faults(recipe), seeded(recipe.seed):
        if not peers.leads:
            return _follow(run, out)
        with workplace(out) as place, registry.partial(out) as folder:
            state, model, tokenizer = _learn(run, folder, place)
            manifest = _publish(run, state, model, tokenizer, dict(provenance or {}), folder, begun)
            tracking.keep(place / registry.LOG, folder / registry.LOG)
            if sink:
                sink.holds()  # whoever slept through the end of its hold must not publish
        peers.wait()
    return _result(run, out, manifest)


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


# ------------------------------------------------------------------------------------------- the way there


def run_name(
    rows: Sequence[Example], held: Sequence[Example], recipe: Recipe, base: Base, start: Path | None
) -> str:
    """The digest of all that decides a training's outcome: what a checkpoint must have been made of to be gone on from."""
    before = registry.read(start)["digest"] if start else None
    about = [
        rows_digest(rows),
        rows_digest(held),
        dataclasses.asdict(recipe),
        base.digest,
        before,
        card.versions(),
    ]
    return digest(canonical_json(about))


def _learn(run: _Run, folder: Path | None, place: Path) -> tuple[State, Any, Any]:
    """Encode, guard, load and train; the state at the end, the model and its tokenizer."""
    name = run_name(run.rows, run.held, run.recipe, run.base, run.start)
    tokenizer = load_tokenizer(run.base)
    _encode(run, tokenizer)
    _plan(run, tokenizer)
    model, _ = load_base(run.base, method=run.recipe.method, device=run.device, bits=run.recipe.bits)
    run.recipe = run.recipe.settled(sum(p.numel() for p in model.parameters()), run.learned)
    model = _prepare(run, model)
    tracker = tracking.Tracker(place / registry.LOG, name, run.track, run.say) if run.peers.leads else None
    ended = False
    try:
        if tracker:
            for trial in run.trials:
                tracker.note(tracking.TRIAL, 0, trial)
            tracker.note("run", 0, _about(run))
        if run.recipe.method == "dpo":
            state = _prefer(run, model, tokenizer, folder, Keeper(place, name), tracker)
        else:
            state = _supervise(run, model, tokenizer, name, place, tracker)
        if tracker:
            tracker.note("end", state.step, {"minutes": state.seconds / 60, "tokens": state.tokens})
        ended = True
    except Diverged:
        Keeper(place, name).forget()  # a checkpoint would lead there again
        raise
    finally:
        if tracker:
            tracker.close(failed=not ended)
    return state, model, tokenizer


def _encode(run: _Run, tokenizer: Any) -> None:
    """What is learned and measured of the rows. Raises ``UsageError`` where nothing is."""
    limit = min(run.recipe.max_length, memory.context(run.base.path) or run.recipe.max_length)
    method = run.recipe.method
    if method == "dpo":
        run.pairs, run.lesson.refused = preferences.encode_pairs(run.rows, tokenizer, limit)
        run.measured_pairs, _ = preferences.encode_pairs(run.held, tokenizer, limit)
    else:
        run.lesson = encode_rows(run.rows, tokenizer, limit, method)
        run.measured = encode_rows(run.held, tokenizer, limit, method)
        check_mixture(run.lesson.tasks, run.recipe.mixture)
    if not run.learned:
        raise _nothing_to_learn(len(run.rows), run.refused)


def _nothing_to_learn(rows: int, refused: Sequence[tuple[int, str]]) -> UsageError:
    if refused:
        return UsageError(f"none of {rows} rows can be trained on; the first: {refused[0][1]}")
    return UsageError(
        "there is no row to train on", next="Check that the split 'train' holds rows with a weight above 0"
    )


def _plan(run: _Run, tokenizer: Any) -> None:
    """Settle the recipe, and show what will be learned and what memory it takes, before a weight is loaded."""
    shapes = memory.weight_shapes(run.base.path)
    run.recipe = run.recipe.settled(memory.parameters(shapes), run.learned)
    sizes = [len(r.input_ids) for r in run.lesson.rows] or [
        len(p["prompt_ids"]) + max(len(p["chosen_ids"]), len(p["rejected_ids"])) for p in run.pairs
    ]
    answer = max([r.supervised for r in run.lesson.rows] or sizes)
    gpu = run.device.type == "cuda"
    free = memory.free_bytes(run.device)
    run.recipe, need = memory.fit_in(
        shapes, run.recipe, memory.base_config(run.base.path), max(sizes), answer, free, gpu=gpu
    )
    if run.lesson.rows:
        run.say(guards.look(run.lesson.rows, tokenizer))
    if run.lesson.repeated:
        run.say(f"{run.lesson.repeated} rows repeat others and are learned once")
    run.say(f"memory: {need.words()}, {free / 1e9:.1f} GB free")


def _prepare(run: _Run, model: Any) -> Any:
    """The model with what is to be trained on it, and gradient checkpointing where memory wants it."""
    recipe = run.recipe
    if recipe.checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if run.start:
        if not recipe.adapter:
            raise UsageError(
                f"{recipe.method} trains every weight; it continues no adapter", where=str(run.start)
            )
        return resume(model, run.start, run.base)
    if not recipe.adapter:
        return model
    tokens = answer_tokens(run.lesson.rows) if recipe.answer_tokens else ()
    return attach(model, recipe, tokens=tokens, steps=_task(run, 0).steps if run.lesson.rows else 100)


def _task(run: _Run, pad_token_id: int, **more: Any) -> Task:
    bf16 = run.recipe.precision == "bf16" or (run.recipe.precision == "auto" and run.device.type == "cuda")
    return Task(run.lesson, run.measured.rows, run.recipe, pad_token_id, bf16=bf16, peers=run.peers,
                save_every=run.save_every, **more)  # fmt: skip


def _packed(run: _Run, model: Any) -> bool:
    """Whether rows are laid end to end: as the recipe says, or where nothing is lost by it."""
    if run.recipe.packing is not None:
        return run.recipe.packing
    return run.device.type == "cuda" or suits(causal_of(model))


def _supervise(
    run: _Run, model: Any, tokenizer: Any, name: str, place: Path, tracker: tracking.Tracker | None
) -> State:
    pad = tokenizer.pad_token_id
    holds = run.sink.holds if run.sink else None
    keeper, watch = Keeper(place, name), _watcher(run, tracker)
    task = _task(run, pad, packing=_packed(run, model), keeper=keeper, watch=watch, holds=holds)
    weights = level_weights(run.lesson.rows, run.lesson.weights)
    guards.check_loss(model, run.lesson.rows, weights, pad, packing=task.packing)
    state = fit(model, task)
    measured = run.measured.rows
    run.metrics = {
        "eval_loss": mean_loss(model, measured, pad) if measured else None,
        "best_step": state.best_step if measured else state.step,
        "supervised_tokens": sum(r.supervised for r in run.lesson.rows),
        "repeated": run.lesson.repeated,
    }
    return state


def _prefer(
    run: _Run,
    model: Any,
    tokenizer: Any,
    folder: Path | None,
    keeper: Keeper,
    tracker: tracking.Tracker | None,
) -> State:
    if run.peers.world > 1 or folder is None:
        raise UsageError("preferences are learned in one process", next="Start it without accelerate launch")
    saves = preferences.Saves(keeper, run.save_every, run.sink.holds if run.sink else None)
    state, measured = preferences.prefer(
        model, tokenizer, run.pairs, run.recipe, folder, _watcher(run, tracker), saves
    )
    held = run.measured_pairs
    margin = preferences.margins(model, held, tokenizer.pad_token_id, run.recipe.beta) if held else None
    run.metrics = {
        "eval_loss": preferences.preference_loss(margin) if margin is not None else None,
        "eval_margin": float(margin.mean()) if margin is not None else None,
        "eval_accuracy": float((margin > 0).mean()) if margin is not None else None,
        **{f"train_{name}": value for name, value in measured.items()},
    }
    return state


def _watcher(run: _Run, tracker: tracking.Tracker | None) -> Watch | None:
    def watch(told: dict[str, Any]) -> None:
        if tracker:
            tracker.note("step", told["step"], {k: v for k, v in told.items() if k not in ("step", "steps")})
        if run.watch:
            run.watch(told)

    return watch


def _about(run: _Run) -> dict[str, Any]:
    return {
        "recipe": dataclasses.asdict(run.recipe),
        "data": rows_digest(run.rows),
        "rows": run.learned,
        "base": run.base.digest,
        "hardware": tracking.hardware(),
    }


# ------------------------------------------------------------------------------------------- the end


def _publish(
    run: _Run,
    state: State,
    model: Any,
    tokenizer: Any,
    provenance: dict[str, Any],
    folder: Path,
    begun: float,
) -> dict[str, Any]:
    """Write weights, lineage and card, and seal them; gives the manifest."""
    metrics = {
        "train_loss": state.total / max(state.step, 1),
        "steps": state.step,
        "tokens": state.tokens,
        **run.metrics,
        "examples": run.learned,
        "refused": len(run.refused),
    }
    card.save(model, tokenizer, run.base, folder)
    card.write_lineage(folder, provenance, run.base, run.start)
    card.write(folder, run.recipe, run.base, metrics, provenance)
    content = {
        "kind": "adapter" if run.recipe.adapter else "model",
        "snapshot": provenance.get("snapshot"),
        "data": rows_digest(run.rows),
        "recipe": dataclasses.asdict(run.recipe),
        "base": {"ref": run.base.ref, "revision": run.base.revision, "digest": run.base.digest},
        "metrics": metrics,
        "versions": card.versions(),
    }
    speed = state.tokens / max(state.seconds, 1e-9)
    went = {"started": begun, "seconds": time.time() - begun, "training_seconds": state.seconds}
    return registry.seal(folder, content, {**went, "host": platform.platform(), "tokens_per_second": speed})


def _result(run: _Run, out: Path, manifest: Mapping[str, Any]) -> TrainResult:
    metrics = manifest["metrics"]
    return TrainResult(
        adapter=out,
        digest=manifest["digest"],
        eval_loss=metrics["eval_loss"],
        tokens_per_second=manifest["run"]["tokens_per_second"],
        seconds=manifest["run"]["seconds"],
        steps=metrics["steps"],
        train_loss=metrics["train_loss"],
        recipe=run.recipe,
        metrics=metrics,
        refused=tuple(run.refused),
    )


def _follow(run: _Run, out: Path) -> TrainResult:
    """What a process does that does not lead: it learns its share, and waits until the leader has written."""
    _learn(run, None, place_of(out))
    run.peers.wait()
    return _result(run, out, registry.read(out))


# ----------------------------------------------------------------------------------------------- safety


def _silent(_: str) -> None:
    return None


@contextmanager
def _reported(run: _Run, out: Path) -> Iterator[None]:
    """Tell the sink how the run began and ended."""
    if run.sink is None or not run.peers.leads:
        yield
        return
    run.sink.event("train-started", str(out), {"base": run.base.ref, "rows": len(run.rows)})
    try:
        yield
    except BaseException as error:
        run.sink.event("train-failed", str(out), {"why": str(error) or type(error).__name__})
        raise
    run.sink.event("train-finished", str(out), {"digest": registry.read(out)["digest"]})


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
    """What the layers below raise when memory runs out, or a device is lost, in words that help."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if out_of_memory(error):
            raise TilthError(
                f"memory ran out with {recipe.micro_batch or recipe.batch} rows of up to {recipe.max_length} tokens",
                where="train",
                next="Lower micro_batch (the result stays the same) or max_length, or choose a smaller base",
            ) from error
        if "CUDA" not in str(error):
            raise
        raise TilthError(
            f"the GPU failed: {str(error).splitlines()[0]}",
            where="train",
            next="Run the same command again: it goes on from the last checkpoint",
        ) from error
