"""Train the names model and write it as the file that :mod:`curation.pii.names` reads.

The network: a word is the sum of its hashed features' rows (a bag), joined with whether it touches its neighbour and how
the text uses case; four residual convolutions of width 3 see six words to either side; one linear layer gives a score
per label. Embedding sums and text convolutions as in Bojanowski et al. 2017 and Strubell et al. 2017 (both with far
larger networks). A quarter of the uncommon words of every batch are read as if no lexicon held them, so that the model
learns to name people nobody has listed.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save_file
from torch import nn

from curation.pii import words
from training.names import lexicon as lists
from training.names.sentences import Example
from training.names.silver import Tagged

TYPES = (
    *("PERSON", "LOCATION", "ORGANIZATION", "STREET_ADDRESS", "ZIP_CODE", "AGE", "TITLE", "NRP", "DATE_TIME"),
    *("PHONE_NUMBER", "CREDIT_CARD", "US_DRIVER_LICENSE", "US_SSN"),
)
LABELS = ("O", *(f"{edge}-{kind}" for kind in TYPES for edge in "BI"))
IGNORED = -100
DILATIONS = (1, 1, 2, 2)


@dataclass(frozen=True)
class Recipe:
    """What training is done with; ``tokens`` is the size of a batch."""

    embedding: int = 64
    hidden: int = 80
    epochs: int = 5
    tokens: int = 6000
    rate: float = 3e-3
    dropout: float = 0.2
    unknown: float = 0.25
    seed: int = 0


@dataclass(frozen=True)
class Row:
    """A text as the network trains on it: a type number and a label number per token."""

    types: list[int]
    glued: list[bool]
    case: int
    labels: list[int]


def make_lexicon(texts: Sequence[str]) -> dict[int, int]:
    """The lexicon of the model: every listed name and every word that is common in ``texts``."""
    counts, flags = lists.frequencies(texts), lists.vocabulary()
    kept = {word for word, count in counts.items() if count >= 3} | set(flags)
    return {
        words.key(word): words.entry(flags.get(word, 0), lists.rank(counts.get(word, 0))) for word in kept
    }


class Types:
    """Numbers for distinct words, with the feature rows of each, read with and without the lexicon."""

    def __init__(self, lexicon: Mapping[int, int]) -> None:
        self.lexicon = lexicon
        self.number: dict[str, int] = {}
        self.known: list[list[int]] = []
        self.unknown: list[list[int]] = []
        self.may_be_unknown: list[bool] = []

    def of(self, word: str) -> int:
        if word not in self.number:
            self.number[word] = len(self.known)
            self.known.append(words.features(word, self.lexicon))
            self.unknown.append(words.features(word, self.lexicon, known=False))
            entry = self.lexicon.get(words.key(word), 0)
            self.may_be_unknown.append(word.isalpha() and words.common(entry) < 4)
        return self.number[word]

    def row(self, text: str, labels: Callable[[words.Tokens], list[int]]) -> Row:
        found = words.tokens(text)
        return Row([self.of(w) for w in found.words], found.glued, words.case_of(text), labels(found))


def from_spans(spans: Sequence[tuple[int, int, str]]) -> Callable[[words.Tokens], list[int]]:
    """Label numbers of made-up text: every token is known."""

    def label(found: words.Tokens) -> list[int]:
        out = [0] * len(found.words)
        for start, end, kind in spans:
            inside = [
                i
                for i, (s, e) in enumerate(zip(found.starts, found.ends, strict=True))
                if s < end and e > start
            ]
            for place, i in enumerate(inside):
                out[i] = LABELS.index(f"{'I' if place else 'B'}-{kind}")
        return out

    return label


def from_tags(tags: Sequence[str | None]) -> Callable[[words.Tokens], list[int]]:
    """Label numbers of real text: what nobody knows is left out of the loss."""

    def label(found: words.Tokens) -> list[int]:
        out, before = [], None
        for tag in tags:
            edge = "I" if tag == before else "B"
            out.append(IGNORED if tag is None else 0 if tag == "O" else LABELS.index(f"{edge}-{tag}"))
            before = tag
        return out

    return label


class Network(nn.Module):
    """See the module's docstring. ``forward`` takes a batch of texts padded to one length."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.bag = nn.EmbeddingBag(words.BUCKETS, recipe.embedding, mode="sum")
        nn.init.normal_(self.bag.weight, std=0.05)
        self.glued = nn.Embedding(2, recipe.embedding)
        self.case = nn.Embedding(3, recipe.embedding)
        sizes = [recipe.embedding, *[recipe.hidden] * len(DILATIONS)]
        self.layers = nn.ModuleList(nn.Linear(3 * a, b) for a, b in pairwise(sizes))
        self.out = nn.Linear(recipe.hidden, len(LABELS))
        self.dropout = nn.Dropout(recipe.dropout)

    def forward(self, bag: Any, place: Any, glued: Any, case: Any, mask: Any) -> Any:
        """``place`` says which bag each token is, (texts, tokens); the scores are (texts, tokens, labels)."""
        word = self.bag(*bag)
        at = word[place] + self.glued(glued) + self.case(case)[:, None]
        at = self.dropout(at) * mask
        for layer, step in zip(self.layers, DILATIONS, strict=True):
            padded = nn.functional.pad(at, (0, 0, step, step))
            size = at.shape[1]
            wide = torch.cat([padded[:, :size], at, padded[:, 2 * step : 2 * step + size]], dim=2)
            new = torch.relu(layer(wide))
            at = (self.dropout(new) + (at if at.shape[2] == new.shape[2] else 0)) * mask
        return self.out(at)


def batches(rows: Sequence[Row], size: int, draw: random.Random) -> Iterator[list[Row]]:
    """Rows of like length together, about ``size`` tokens in all, in random order."""
    order = sorted((row for row in rows if row.types), key=lambda r: len(r.types) + draw.random() * 4)
    made, batch = [], []  # type: ignore[var-annotated]
    for row in order:
        batch.append(row)
        if len(batch) * len(row.types) >= size:
            made.append(batch)
            batch = []
    made += [batch] if batch else []
    draw.shuffle(made)
    yield from made


def tensors(batch: Sequence[Row], types: Types, unknown: float, draw: random.Random) -> tuple[Any, ...]:
    """The arguments of :meth:`Network.forward` and the labels."""
    used = sorted({number for row in batch for number in row.types})
    slot = {number: i for i, number in enumerate(used)}
    bags = [
        types.unknown[n] if types.may_be_unknown[n] and draw.random() < unknown else types.known[n]
        for n in used
    ]
    offsets = np.cumsum([0, *map(len, bags[:-1])])
    flat = np.concatenate([np.asarray(b) for b in bags])
    width = max(len(row.types) for row in batch)
    place, glued = np.zeros((len(batch), width), int), np.zeros((len(batch), width), int)
    labels, mask = np.full((len(batch), width), IGNORED), np.zeros((len(batch), width, 1), np.float32)
    for i, row in enumerate(batch):
        n = len(row.types)
        place[i, :n], glued[i, :n] = [slot[t] for t in row.types], row.glued
        labels[i, :n], mask[i, :n] = row.labels, 1
    case = torch.tensor([row.case for row in batch])
    bag = (torch.from_numpy(flat), torch.from_numpy(offsets))
    return (
        bag,
        torch.from_numpy(place),
        torch.from_numpy(glued),
        case,
        torch.from_numpy(mask),
        torch.from_numpy(labels),
    )


def train(rows: Sequence[Row], types: Types, recipe: Recipe, tell: Callable[[str], None] = print) -> Network:
    """The trained network; deterministic for a recipe on one machine with one thread."""
    torch.manual_seed(recipe.seed)
    draw = random.Random(recipe.seed)
    network = Network(recipe)
    steps = recipe.epochs * sum(1 for _ in batches(rows, recipe.tokens, random.Random(0)))
    adam = torch.optim.Adam(network.parameters(), lr=recipe.rate, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(adam, recipe.rate, total_steps=steps + 10, pct_start=0.08)
    done, total, begun = 0, 0.0, time.monotonic()
    for epoch in range(recipe.epochs):
        for batch in batches(rows, recipe.tokens, draw):
            *inputs, labels = tensors(batch, types, recipe.unknown, draw)
            scores = network(*inputs)
            loss = nn.functional.cross_entropy(scores.flatten(0, 1), labels.flatten(), ignore_index=IGNORED)
            adam.zero_grad(set_to_none=True)
            loss.backward()
            adam.step()
            schedule.step()
            done, total = done + 1, total + loss.item()
            if done % 100 == 0:
                tell(
                    f"epoch {epoch}, step {done} of {steps}, loss {total / 100:.4f}, {time.monotonic() - begun:.0f} s"
                )
                total = 0.0
    return network.eval()


def save(network: Network, lexicon: Mapping[int, int], path: Path, told: Mapping[str, str]) -> None:
    """Write the model: int8 rows with a scale each, the rest in half precision, the lexicon, and what it was made of."""
    rows = network.bag.weight.detach().numpy()
    scale = np.maximum(np.abs(rows).max(axis=1), 1e-8) / 127
    keys = np.array(sorted(lexicon), np.uint32)
    arrays = {
        "rows": np.round(rows / scale[:, None]).astype(np.int8),
        "scale": scale.astype(np.float16),
        "glued": network.glued.weight.detach().numpy().astype(np.float16),
        "case": network.case.weight.detach().numpy().astype(np.float16),
        "out": network.out.weight.detach().numpy().T.astype(np.float16),
        "out_bias": network.out.bias.detach().numpy().astype(np.float32),
        "lexicon_keys": keys,
        "lexicon_entries": np.array([lexicon[int(k)] for k in keys], np.uint8),
    }
    for i, layer in enumerate(network.layers):
        arrays[f"layer{i}"] = layer.weight.detach().numpy().T.astype(np.float16)  # type: ignore[operator, union-attr]
        arrays[f"layer{i}_bias"] = layer.bias.detach().numpy().astype(np.float32)  # type: ignore[operator, union-attr]
    arrays = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    made_of = {
        "version": str(words.VERSION),
        "labels": json.dumps(LABELS),
        "dilations": json.dumps(DILATIONS),
        **told,
    }
    save_file(arrays, path, metadata=made_of)


def example_rows(examples: Sequence[Example], types: Types) -> list[Row]:
    """Made-up texts as rows."""
    return [types.row(text, from_spans(spans)) for text, spans in examples]


def tagged_rows(pieces: Sequence[Tagged], types: Types) -> list[Row]:
    """Real texts as rows."""
    return [types.row(text, from_tags(tags)) for text, tags in pieces]
