"""How the base in ``training/base`` was made, and how to make another from text of your own.

    python -m training.pretrain --texts FOLDER --out DIR --seconds 3000

A byte-level vocabulary is learned from the text, then a small Llama, by reading and by practising on exercises that need
nobody's labels (:mod:`training.sources`). What is held out is never read. A run that is killed goes on where it last
wrote its checkpoint when the same command is typed again; a checkpoint of another recipe is refused. Weights and
checkpoints are safetensors; nothing is pickled.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from curation.errors import IntegrityError, TilthError, UsageError
from curation.records import digest
from training import registry
from training.lessons import (
    RECIPE,
    BaseRecipe,
    Lessons,
    Schedule,
    Shape,
    cooccurrence,
    exercises,
    gather,
    held_texts,
    lessons_of,
    make_tokenizer,
    prepare,
    read_recipe,
    vectors,
)
from training.model import BUNDLED, Progress, best_device, load_base, quiet, resolve_base
from training.sources import Piece

CARD = Path(__file__).with_name("bundled_card.md")


# ------------------------------------------------------------------------------------------ the training


def new_model(shape: Shape, tokenizer: Any, seed: int) -> Any:
    """A Llama of this shape with random weights, the same ones for the same seed."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=shape.hidden,
        intermediate_size=shape.inner,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        max_position_embeddings=shape.context,
        tie_word_embeddings=True,
        initializer_range=0.02,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return LlamaForCausalLM(config)


def optimizers(model: Any, schedule: Schedule) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the layers, AdamW for embeddings and norms.

    Muon: Jordan et al. 2024; its step scaled to the size of AdamW's by Liu et al. 2025 (arXiv 2502.16982), so that one
    kind of rate serves both.
    """
    inside = [p for p in model.model.layers.parameters() if p.dim() == 2]
    known = {id(p) for p in inside}
    rest = [p for p in model.parameters() if id(p) not in known]
    decay = schedule.weight_decay
    return [
        torch.optim.Muon(inside, lr=schedule.matrix_lr, weight_decay=decay, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=schedule.lr, betas=(0.9, 0.95), weight_decay=0.0, fused=True),
    ]


def pace(step: int, done: float, schedule: Schedule) -> float:
    """The factor on the rates: up, level, and down to nothing at the end (``done`` is the share of the run that is over).

    >>> pace(1000, 0.5, Schedule()), pace(1000, 0.85, Schedule(cooldown=0.3)), pace(49, 0.0, Schedule())
    (1.0, 0.5, 0.5)
    """
    return round(min(1.0, (step + 1) / schedule.warmup_steps, max(0.0, 1.0 - done) / schedule.cooldown), 6)


def loss_sum(
    model: Any, rows: Sequence[tuple[np.ndarray, int]], reading: float, *, quick: bool = True
) -> tuple[torch.Tensor, float]:
    """The weighted sum of the NLL of next tokens, in nats, and of the weights: ``reading`` before an answer, then 1.

    ``quick`` multiplies in bfloat16, good enough to learn from; without it the figure is that of the weights as they are.
    """
    width = max(len(ids) for ids, _ in rows)
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    weight = torch.zeros(len(rows), width)
    for i, (row, start) in enumerate(rows):
        ids[i, : len(row)] = torch.from_numpy(row.astype(np.int64))
        weight[i, 1:start] = reading
        weight[i, start : len(row)] = 1.0
    device = next(model.parameters()).device
    ids, weight = ids.to(device), weight[:, 1:].to(device)
    # Padding stands on the right, where causal attention never looks from a real token, so it needs no mask.
    with torch.autocast(device.type, torch.bfloat16, enabled=quick):
        states = model.model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]
        logits = model.lm_head(states[weight > 0])
    nll = functional.cross_entropy(logits.float(), ids[:, 1:][weight > 0], reduction="none")
    return (nll * weight[weight > 0]).sum(), float(weight.sum())


def bits_per_byte(model: Any, tokenizer: Any, texts: Sequence[str]) -> float:
    """What the model needs to tell each byte of the texts, in bits: ``sum of NLL / ln 2 / bytes``; lower is better.

    Each text stands alone after the beginning of sequence; its end is not counted. Raises ``UsageError`` on no text.
    """
    texts = [text for text in texts if text]
    if not texts:
        raise UsageError("there is no text to measure on")
    rows = [
        (np.array(ids[: model.config.max_position_embeddings]), 1)
        for ids in tokenizer(list(texts), split_special_tokens=True)["input_ids"]
    ]
    size = sum(len(text.encode()) for text in texts)
    rows.sort(key=lambda row: len(row[0]))
    model.eval()
    with torch.no_grad():
        nats = sum(
            float(loss_sum(model, rows[i : i + 32], 1.0, quick=False)[0]) for i in range(0, len(rows), 32)
        )
    model.train()
    return nats / math.log(2) / size


@dataclass
class Run:
    """A training under way: all that a checkpoint holds."""

    model: Any
    optimizers: list[torch.optim.Optimizer]
    recipe: str
    step: int = 0
    place: int = 0
    tokens: int = 0
    seconds: float = 0.0
    curve: list[dict[str, float]] = field(default_factory=list)


def learn(
    run: Run,
    lessons: Lessons,
    schedule: Schedule,
    *,
    seconds: float | None = None,
    steps: int | None = None,
    checkpoint: Path | None = None,
    every: float = 300,
    measure: Any = None,
    progress: Progress | None = None,
) -> None:
    """Train ``run`` until so many steps were made, or so many seconds were spent on them in all.

    ``measure`` gives held-out bits per byte; it is asked every ``every`` seconds, when the checkpoint is written too.
    Raises ``TilthError`` where the loss is not a number.
    """
    run.model.train()
    begun, before = time.monotonic(), run.seconds
    saved, recent = begun, 0.0
    stream = _stream(lessons, schedule, run.place)
    while (done := run.step / steps if steps else run.seconds / (seconds or 1.0)) < 1.0:
        for optimizer in run.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group.setdefault("peak", group["lr"]) * pace(run.step, done, schedule)
        taken, loss = _step(run, stream, schedule)
        run.step, run.tokens = run.step + 1, run.tokens + taken
        run.seconds = before + time.monotonic() - begun
        recent = loss if not recent else 0.98 * recent + 0.02 * loss
        if progress and run.step % 10 == 0:
            progress(
                {
                    "step": run.step,
                    "steps": steps,
                    "loss": recent,
                    "seconds": run.seconds,
                    "tokens": run.tokens,
                }
            )
        if time.monotonic() - saved > every:
            begun_measuring = time.monotonic()
            run.curve.append(_point(run, recent, measure))
            if checkpoint:
                save_checkpoint(run, checkpoint)
            saved = time.monotonic()
            begun += saved - begun_measuring  # measuring and saving is not training
    if not run.curve or run.curve[-1]["step"] != run.step:
        run.curve.append(_point(run, recent, measure))
        if checkpoint:
            save_checkpoint(run, checkpoint)


def _point(run: Run, loss: float, measure: Any) -> dict[str, float]:
    point = {"step": run.step, "tokens": run.tokens, "seconds": round(run.seconds), "loss": round(loss, 4)}
    return point | ({"bits_per_byte": round(measure(run.model), 4)} if measure else {})


def _stream(lessons: Lessons, schedule: Schedule, place: int) -> Iterator[list[tuple[np.ndarray, int]]]:
    """Endless groups of documents, from the ``place``-th on: where a killed run goes on."""
    epoch = 0
    while True:
        groups = lessons.batches(epoch, schedule)
        for group in groups[place:]:
            yield [lessons.document(int(i)) for i in group]
        place = max(0, place - len(groups))
        epoch += 1


def _step(run: Run, stream: Iterator[list[tuple[np.ndarray, int]]], schedule: Schedule) -> tuple[int, float]:
    """One update; gives tokens, padding not counted, and the mean loss in nats."""
    groups = [next(stream) for _ in range(max(1, schedule.batch_tokens // schedule.micro_tokens))]
    run.place += len(groups)
    total = weights = 0.0
    for rows in groups:
        loss, weight = loss_sum(run.model, rows, schedule.reading)
        # Micro-batches hold about as much as each other; their sums are averaged by the whole step's size below.
        (loss / schedule.batch_tokens).backward()
        total, weights = total + loss.item(), weights + weight
    if not math.isfinite(total):
        raise TilthError(f"the loss became {total} at step {run.step + 1}", next="Lower the learning rates")
    for p in run.model.parameters():
        p.grad.mul_(schedule.batch_tokens / weights)
    torch.nn.utils.clip_grad_norm_(run.model.parameters(), 1.0)
    for optimizer in run.optimizers:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return sum(len(ids) for rows in groups for ids, _ in rows), total / weights


# --------------------------------------------------------------------------------------- checkpoints


def save_checkpoint(run: Run, path: Path) -> None:
    """Weights, optimizer states and counters in one safetensors file, put in place in one move."""
    from safetensors.torch import save_file

    tensors = {f"model/{name}": p.detach() for name, p in run.model.named_parameters()}
    for i, optimizer in enumerate(run.optimizers):
        for j, state in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer/{i}/{j}/{name}": t for name, t in state.items() if torch.is_tensor(t)}
    counters = {
        name: getattr(run, name) for name in ("recipe", "step", "place", "tokens", "seconds", "curve")
    }
    partial = path.with_suffix(".partial")
    save_file(
        {name: t.cpu().contiguous() for name, t in tensors.items()}, partial, {"run": json.dumps(counters)}
    )
    os.replace(partial, path)


def load_checkpoint(run: Run, path: Path) -> None:
    """Put ``run`` where the checkpoint was. Raises ``IntegrityError`` where that belongs to another recipe or text."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            counters = json.loads(file.metadata()["run"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, KeyError, ValueError, TypeError) as error:
        raise IntegrityError(
            f"the checkpoint is damaged: {error}", where=str(path), next="Remove it"
        ) from error
    if counters["recipe"] != run.recipe:
        raise IntegrityError(
            "the checkpoint belongs to another recipe or other text",
            where=str(path),
            next="Remove it, or choose another --out",
        )
    with torch.no_grad():
        for name, p in run.model.named_parameters():
            p.copy_(tensors[f"model/{name}"])
    for i, optimizer in enumerate(run.optimizers):
        state: dict[int, dict[str, torch.Tensor]] = {}
        for name, tensor in tensors.items():
            if name.startswith(f"optimizer/{i}/"):
                state.setdefault(int(name.split("/")[2]), {})[name.split("/")[3]] = tensor
        optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
    for name, value in counters.items():
        setattr(run, name, value)


# ----------------------------------------------------------------------------------------- the whole


def make_base(
    recipe: BaseRecipe,
    texts: Path,
    out: Path,
    *,
    seconds: float | None = None,
    steps: int | None = None,
    every: float = 300,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Learn a vocabulary and a base from the texts below a folder and write the base directory; gives its manifest.

    The same recipe, texts and ``steps`` give the same weights on the same machine, killed in between or not. A
    checkpoint lies beside ``out`` until the end.
    """
    quiet()
    learned, held = gather(recipe, texts)
    tokenizer = make_tokenizer(recipe, learned)
    lessons = prepare(recipe, learned, tokenizer)
    model = new_model(recipe.shape, tokenizer, recipe.schedule.seed)
    place_embeddings(model, tokenizer, learned)
    model.to(best_device())
    name = digest(recipe.digest + digest(lessons.ids.tobytes().hex()))
    run = Run(model, optimizers(model, recipe.schedule), name)
    checkpoint = out.with_name(f"{out.name}.checkpoint.safetensors")
    if checkpoint.exists():
        load_checkpoint(run, checkpoint)
    sample = held_texts(held)

    def measure(model: Any) -> float:
        return float(np.mean([bits_per_byte(model, tokenizer, few[:40]) for few in sample.values()]))

    learn(
        run,
        lessons,
        recipe.schedule,
        seconds=seconds,
        steps=steps,
        checkpoint=checkpoint,
        every=every,
        measure=measure if sample else None,
        progress=progress,
    )
    manifest = write_base(model, tokenizer, recipe, run, dict(lessons.tokens), out)
    checkpoint.unlink(missing_ok=True)
    return manifest


def write_base(
    model: Any, tokenizer: Any, recipe: BaseRecipe, run: Run, prepared: Mapping[str, int], out: Path
) -> dict[str, Any]:
    """The base directory, in half precision, with its card, sealed; gives the manifest."""
    metrics = {"steps": run.step, "tokens": run.tokens, "prepared": dict(prepared), "curve": run.curve}
    content = {"kind": "base", "recipe": asdict(recipe), "metrics": metrics, "texts": run.recipe}
    with registry.partial(out) as folder:
        model.cpu().half().save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        (folder / "README.md").write_text(card(recipe, model, metrics), encoding="utf-8")
        return registry.seal(folder, content, {"seconds": run.seconds})


def practise_base(
    texts: Sequence[str], out: Path, *, steps: int, base: str = BUNDLED, progress: Progress | None = None
) -> dict[str, Any]:
    """Let a base practise on unlabelled text of one's own, and write the base that it becomes; gives its manifest.

    Continued pre-training on the domain's text (Gururangan et al. 2020, arXiv 2004.10964), with the exercises that need
    no labels, at a quarter of the rates. The same base, texts and steps give the same weights on the same machine.
    Raises ``UsageError`` where the texts hold nothing.
    """
    quiet()
    found = resolve_base(base)
    model, tokenizer = load_base(found, method="adapt")
    schedule = replace(Schedule(), lr=1e-3, matrix_lr=1.5e-3, warmup_steps=10)
    pieces = [Piece(text.strip(), str(i)) for i, text in enumerate(texts) if text.strip()]
    wanted = steps * schedule.batch_tokens
    rows = list(exercises(pieces, _OWN, wanted, tokenizer, schedule.window, np.random.default_rng(0)))
    run = Run(model, optimizers(model, schedule), found.digest)
    learn(run, lessons_of(rows, {}), schedule, steps=steps, progress=progress)
    content = {
        "kind": "base",
        "start": found.digest,
        "metrics": {"steps": run.step, "tokens": run.tokens},
        "texts": digest("\n".join(digest(piece.text) for piece in pieces)),
    }
    with registry.partial(out) as folder:
        model.cpu().half().save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return registry.seal(folder, content, {"seconds": run.seconds})


_OWN = {"read": 1.0, "name": 3.0, "copy": 1.0}


def place_embeddings(model: Any, tokenizer: Any, pieces: Mapping[str, Sequence[Piece]]) -> None:
    """Begin with embeddings that know which tokens stand together in the text that is to be learned from.

    Centred, and scaled to the size that random ones would have had; tokens that the text does not hold stay random.
    """
    texts = ["\n".join(filter(None, (p.text, p.answer))) for known in pieces.values() for p in known]
    rows = tokenizer(texts, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    weight = model.get_input_embeddings().weight
    counts = cooccurrence(rows, *weight.shape[:1])
    found = vectors(counts, weight.shape[1])
    seen = counts.sum(1) > 0
    found[seen] -= found[seen].mean(0)
    found[seen] *= model.config.initializer_range / max(float(found[seen].std()), 1e-9)
    with torch.no_grad():
        weight[torch.from_numpy(seen)] = torch.from_numpy(found[seen])


def card(recipe: BaseRecipe, model: Any, metrics: Mapping[str, Any]) -> str:
    """The model card: what it is, what it read, how it learned, what it is not."""
    shape = recipe.shape
    return CARD.read_text(encoding="utf-8").format(
        parameters=sum(p.numel() for p in model.parameters()) / 1e6,
        shape=f"{shape.layers} layers of {shape.hidden}, {shape.heads} heads ({shape.kv_heads} for keys and values), "
        f"feed-forward {shape.inner}, embeddings tied",
        vocab=len(model.get_input_embeddings().weight),
        context=shape.context,
        tokens=metrics["tokens"] / 1e6,
        steps=metrics["steps"],
        minutes=metrics["curve"][-1]["seconds"] / 60,
        sources="\n".join(
            f"| {s.name} | {s.share:.0%} | {', '.join(sorted(s.practice))} | {s.licence} |"
            for s in recipe.sources
        ),
        curve="\n".join(
            f"| {p['step']:,} | {p['tokens'] / 1e6:.2f} | {p['loss']:.3f} | {p.get('bits_per_byte', '')} |"
            for p in metrics["curve"]
        ),
    )


def main() -> None:
    """Make a base from the command line; talks on stderr, prints the manifest's digest."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--texts", type=Path, required=True, help="the folder that the recipe's files lie in")
    parser.add_argument("--out", type=Path, required=True, help="the base directory to write")
    parser.add_argument("--recipe", type=Path, default=RECIPE)
    parser.add_argument("--seconds", type=float, help="of training, over all runs")
    parser.add_argument("--steps", type=int, help="instead of --seconds")
    options = parser.parse_args()

    def tell(state: Mapping[str, Any]) -> None:
        if state["step"] % 50 == 0:
            rate = state["tokens"] / max(state["seconds"], 1e-9)
            print(
                f"step {state['step']:,}  loss {state['loss']:.3f}  {state['tokens']:,} tokens  {rate:,.0f}/s  "
                f"{state['seconds']:.0f} s",
                file=sys.stderr,
                flush=True,
            )

    made = make_base(
        read_recipe(options.recipe),
        options.texts,
        options.out,
        seconds=options.seconds or (None if options.steps else 3000.0),
        steps=options.steps,
        progress=tell,
    )
    print(made["digest"])


if __name__ == "__main__":
    main()
