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
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from curation.errors import IntegrityError, TilthError, UsageError
from curation.records import canonical_json, digest
from training import registry
from training.examples import SEPARATOR
from training.model import BUNDLED, Progress, best_device, load_base, quiet, resolve_base, train_tokenizer
from training.sources import Piece, Practice, Source, held_out, practise, source_of, word_rarity, words_of

RECIPE = Path(__file__).with_name("bundled.toml")


# -------------------------------------------------------------------------------------------- the recipe


@dataclass(frozen=True)
class Shape:
    """A Llama's: ``inner`` is the width of its feed-forward layers, ``context`` the longest sequence in tokens."""

    vocab: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    inner: int
    context: int


@dataclass(frozen=True)
class Schedule:
    """How it is trained.

    A step learns ``batch_tokens`` (padding included) in pieces of ``micro_tokens``; a text is cut at ``window`` tokens.
    The rates warm up over ``warmup_steps``, stay, and fall to nothing over the last ``cooldown`` of the run, so that a
    run may be made longer until then. ``reading`` is what a token of a prompt counts beside one of its answer;
    ``corpus_tokens`` how many tokens are prepared before texts come again in another order.
    """

    batch_tokens: int = 2048
    micro_tokens: int = 2048
    window: int = 256
    corpus_tokens: int = 12_000_000
    lr: float = 4e-3
    matrix_lr: float = 6e-3
    warmup_steps: int = 100
    cooldown: float = 0.3
    weight_decay: float = 0.05
    reading: float = 0.3
    seed: int = 0


@dataclass(frozen=True)
class BaseRecipe:
    """What is read, into which shape, how."""

    shape: Shape
    schedule: Schedule
    sources: tuple[Source, ...]

    @property
    def digest(self) -> str:
        """The recipe's name: a checkpoint of another one does not fit."""
        return digest(canonical_json(asdict(self)))


def read_recipe(path: Path) -> BaseRecipe:
    """A recipe from its TOML file. Raises ``UsageError`` for what is missing, unknown or malformed."""
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
        return BaseRecipe(
            Shape(**table["shape"]),
            Schedule(**table.get("schedule", {})),
            tuple(source_of(one) for one in table["source"]),
        )
    except OSError as error:
        raise UsageError(f"the recipe cannot be read: {error.strerror}", where=str(path)) from error
    except (tomllib.TOMLDecodeError, KeyError, TypeError) as error:
        raise UsageError(
            f"this is not a recipe: {error}", where=str(path), next=f"Compare it with {RECIPE.name}"
        ) from error


# ---------------------------------------------------------------------------------------------- the text


@dataclass(frozen=True)
class Lessons:
    """Everything to be learned as one row of ids, cut at ``ends``; an answer begins at ``starts`` of its document."""

    ids: np.ndarray
    ends: np.ndarray
    starts: np.ndarray
    tokens: Mapping[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.ends)

    def lengths(self) -> np.ndarray:
        """Tokens of each document."""
        return np.diff(self.ends, prepend=0)

    def document(self, i: int) -> tuple[np.ndarray, int]:
        """Ids of a document, and where its answer begins (1 where all of it is read: nothing predicts the first)."""
        begin = self.ends[i - 1] if i else 0
        return self.ids[begin : self.ends[i]], int(self.starts[i])

    def batches(self, epoch: int, schedule: Schedule) -> list[np.ndarray]:
        """Documents of about the same length in groups of at most ``micro_tokens``, in the epoch's own order."""
        rng = np.random.default_rng([schedule.seed, epoch])
        lengths = self.lengths()
        order = rng.permutation(len(self))
        order = order[np.argsort(lengths[order], kind="stable")]
        groups, group = [], []  # type: ignore[var-annotated]
        for i in order:
            if group and (len(group) + 1) * lengths[i] > schedule.micro_tokens:
                groups.append(np.array(group))
                group = []
            group.append(i)
        groups.append(np.array(group))
        return [groups[i] for i in rng.permutation(len(groups))]


def gather(recipe: BaseRecipe, folder: Path) -> tuple[dict[str, list[Piece]], dict[str, list[Piece]]]:
    """The pieces of each source: those to learn from, and those held out."""
    learned, held = {}, {}
    for source in recipe.sources:
        pieces = source.pieces(folder)
        held[source.name] = [piece for piece in pieces if held_out(piece)]
        learned[source.name] = [piece for piece in pieces if not held_out(piece)]
    return learned, held


def make_tokenizer(recipe: BaseRecipe, pieces: Mapping[str, Sequence[Piece]], sample: int = 6_000_000) -> Any:
    """The vocabulary, learned from ``sample`` characters shared among the sources as their tokens are."""
    rng = np.random.default_rng(recipe.schedule.seed)
    texts: list[str] = []
    for source in recipe.sources:
        left = source.share * sample
        known = pieces[source.name]
        for i in rng.permutation(len(known)):
            text = "\n".join(filter(None, (known[i].text, known[i].answer)))
            texts.append(text)
            left -= len(text)
            if left < 0:
                break
    return train_tokenizer(texts, recipe.shape.vocab)


def prepare(recipe: BaseRecipe, pieces: Mapping[str, Sequence[Piece]], tokenizer: Any) -> Lessons:
    """Exercises on every source until each has its share of ``corpus_tokens``; small sources come several times."""
    schedule = recipe.schedule
    rng = np.random.default_rng(schedule.seed)
    made = {
        source.name: list(
            exercises(
                pieces[source.name],
                source.practice,
                source.share * schedule.corpus_tokens,
                tokenizer,
                schedule.window,
                rng,
            )
        )
        for source in recipe.sources
    }
    return lessons_of(
        [row for rows in made.values() for row in rows],
        {name: sum(len(ids) for ids, _ in rows) for name, rows in made.items()},
    )


def lessons_of(rows: Sequence[tuple[np.ndarray, int]], tokens: Mapping[str, int]) -> Lessons:
    """Documents as one row of ids. Raises ``UsageError`` where there is none."""
    if not rows:
        raise UsageError("there is no text to learn from", next="Give a folder that holds some with --texts")
    ends = np.cumsum([len(ids) for ids, _ in rows])
    return Lessons(
        np.concatenate([ids for ids, _ in rows]), ends, np.array([start for _, start in rows]), tokens
    )


def exercises(
    known: Sequence[Piece],
    practice: Mapping[str, float],
    wanted: float,
    tokenizer: Any,
    window: int,
    rng: np.random.Generator,
) -> Iterator[tuple[np.ndarray, int]]:
    """Ids of exercises on the pieces, and where each answer begins, until ``wanted`` tokens were made."""
    rarity = word_rarity([words_of(known[i].text) for i in rng.permutation(len(known))[:_SAMPLE]])
    have = 0
    while known and have < wanted:
        before = have
        drawn = [known[i] for i in rng.permutation(len(known))[:_SAMPLE]]
        for ids, start in _encoded(practise(drawn, practice, rarity, rng), tokenizer, window):
            yield ids, start
            have += len(ids)
            if have >= wanted:
                return
        if have == before:
            return  # every piece is too long


_SAMPLE = 20_000  # pieces at a time


def _encoded(made: Sequence[Practice], tokenizer: Any, window: int) -> Iterator[tuple[np.ndarray, int]]:
    """Ids and where the answer begins. An exercise that is too long is left out; what is only read is cut."""
    prompts = tokenizer(
        [text if answer is None else text + SEPARATOR for text, answer in made], split_special_tokens=True
    )["input_ids"]
    answers = tokenizer(
        [answer or "" for _, answer in made], add_special_tokens=False, split_special_tokens=True
    )["input_ids"]
    for prompt, answer, (_, asked) in zip(prompts, answers, made, strict=True):
        ids = [*prompt, *answer, tokenizer.eos_token_id]
        if asked is None or len(ids) <= window:
            yield np.array(ids[:window], dtype=np.uint16), 1 if asked is None else len(prompt)


# ---------------------------------------------------------------------------------- what stands together


def cooccurrence(rows: Sequence[Sequence[int]], vocab: int, window: int = 6) -> np.ndarray:
    """How often two tokens stand at most ``window`` apart in a row, each time counted as one over the distance.

    Symmetric, ``[vocab, vocab]``, float32.
    """
    counts = np.zeros(vocab * vocab, dtype=np.float32)
    gap = np.full(window, vocab, dtype=np.int64)  # between rows, so that their ends do not meet
    flat = np.concatenate([part for row in rows for part in (np.asarray(row, dtype=np.int64), gap)] or [gap])
    for distance in range(1, window + 1):
        left, right = flat[:-distance], flat[distance:]
        known = (left < vocab) & (right < vocab)
        counts += np.bincount(left[known] * vocab + right[known], minlength=vocab * vocab) / np.float32(
            distance
        )
    square = counts.reshape(vocab, vocab)
    return square + square.T


def vectors(counts: np.ndarray, size: int) -> np.ndarray:
    """Vectors of ``size`` for each token whose products approach how much oftener than chance two stand together.

    The positive pointwise mutual information, contexts smoothed by the power 3/4, factorised by its largest singular
    values (Levy, Goldberg and Dagan 2015, TACL 3). They hold in a minute what training would need many hours to
    read. A token that was never seen gets zeros.
    """
    context = counts.sum(0) ** 0.75
    expected = np.outer(counts.sum(1), context / max(context.sum(), 1e-9))
    with np.errstate(divide="ignore", invalid="ignore"):
        information = np.nan_to_num(np.maximum(np.log(counts / expected), 0.0), posinf=0.0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        u, scale, _ = torch.svd_lowrank(torch.from_numpy(information.astype(np.float32)), q=size, niter=4)
    return (u * scale.sqrt()).numpy()


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


def held_texts(held: Mapping[str, Sequence[Piece]]) -> dict[str, list[str]]:
    """The texts held out of each source that has any, shuffled by a fixed seed."""
    rng = np.random.default_rng(0)
    return {name: [p[i].text for i in rng.permutation(len(p))] for name, p in held.items() if p}


def card(recipe: BaseRecipe, model: Any, metrics: Mapping[str, Any]) -> str:
    """The model card: what it is, what it read, how it learned, what it is not."""
    shape = recipe.shape
    return _CARD.format(
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


_CARD = """\
---
license: apache-2.0
language: en
library_name: transformers
pipeline_tag: text-generation
---
# A tiny base for Tilth

A Llama of {parameters:.2f} million parameters ({shape}), with {vocab:,} byte-level BPE tokens and a context of {context:,}.
It is there so that adapters learn something real on a laptop with no download: in the demo, in tests, in simulations.
It knows next to nothing about the world, and an adapter for work that matters wants a real base.

## Data

Trained on {tokens:.2f} million tokens in {steps:,} steps, {minutes:.0f} minutes on one core of a busy machine.

| source | share of tokens | practised | licence |
|---|---|---|---|
{sources}

Held out of every source: one document, conversation or example in twenty, by digest. Customers' turns that hold a name, a
number or an address (by the annotated slots, or by four digits in a row) were left out. The Wikipedia text within P3 names
public people. No set that Tilth is measured on was read: no banking77, CLINC150, E2E, GSM8K, hh-rlhf.

The exercises: `read` a text; `answer` a prompt; say what comes `after`; `copy`; `name` the text's rarer words, as class
labels do; `compose` a sentence from its words. Prompts end with a line break, answers with the end of sequence.
Embeddings began as factors of the pointwise mutual information of tokens in all the text.

## Loss

Nats per weighted token of training, smoothed; bits per byte on the held-out texts, the mean over sources.

| step | million tokens | loss | bits per byte |
|---|---|---|---|
{curve}

## Made by

`python -m training.pretrain --texts FOLDER --out DIR` with the recipe `training/bundled.toml`, which also takes text of
your own. What it buys is measured by `python -m tests.bench.base`.
"""


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
