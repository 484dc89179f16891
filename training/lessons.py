"""What a base is to learn, made ready: the recipe, the texts as ids of exercises, and which tokens stand together.

A recipe is a TOML file (``bundled.toml``): a shape, a schedule, and sources with their shares. Everything here follows from
the recipe, the texts and a seed, so that a run that goes on after a kill sees the same lessons.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from curation.errors import UsageError
from curation.records import canonical_json, digest
from training.examples import SEPARATOR
from training.sources import Piece, Practice, Source, held_out, practise, source_of, word_rarity, words_of

RECIPE = Path(__file__).with_name("bundled.toml")
"""The recipe of the base in the package."""


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

PAD, BOS, EOS = "<|pad|>", "<|begin|>", "<|end|>"


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


def train_tokenizer(texts: Sequence[str], vocab: int) -> Any:
    """A byte-level BPE vocabulary of at most ``vocab`` tokens, with padding, beginning and end of its own.

    Any text can be encoded, since every byte is a token. The beginning is put before each text.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    learner = trainers.BpeTrainer(
        vocab_size=vocab,
        min_frequency=2,
        special_tokens=[PAD, BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, learner)
    begin = bpe.token_to_id(BOS)
    bpe.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, begin)])
    return PreTrainedTokenizerFast(tokenizer_object=bpe, pad_token=PAD, bos_token=BOS, eos_token=EOS)


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


def held_texts(held: Mapping[str, Sequence[Piece]]) -> dict[str, list[str]]:
    """The texts held out of each source that has any, shuffled by a fixed seed."""
    rng = np.random.default_rng(0)
    return {name: [p[i].text for i in rng.permutation(len(p))] for name, p in held.items() if p}
