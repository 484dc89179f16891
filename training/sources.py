"""The text that a base is made of: read from files, cut into pieces, and turned into something to practise.

A piece is a short text with what is known to follow it. What is held out is decided by the document, the conversation or
the example that a piece belongs to, never by the piece, so that a measure on it is not of text that was nearly read.
Turns that hold someone's name, number or address are left out: a base must not remember them.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise, zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from curation.errors import UsageError

DOCUMENT = "<|document|>"
"""The line that separates documents in a file of kind ``documents``."""

_HELD = 20  # one group in so many is held out
_PERSONAL = re.compile(r"name|number|ssn|address|phone|email")
_SPECIAL = re.compile(r"<\|[a-z]+\|>")
_SENTENCE = re.compile(r"(?<=[.!?])[\"'”’)]*\s+(?=[\"'“‘(]*[A-Z0-9])")


@dataclass(frozen=True)
class Piece:
    """A text, the group that it is held out with, its answer if it has one, and what comes after it if that is known."""

    text: str
    group: str
    answer: str | None = None
    after: str | None = None


@dataclass(frozen=True)
class Source:
    """Where text comes from: ``files`` are patterns below a folder, ``share`` is of all tokens that are learned.

    ``practice`` says how often each of :data:`EXERCISES` is drawn for a piece, relative to the others; ``renamed`` gives
    answers another spelling (``checkbalance`` as ``check_balance``).
    """

    name: str
    kind: str
    files: tuple[str, ...]
    share: float
    licence: str
    practice: Mapping[str, float]
    renamed: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.kind not in READERS:
            raise UsageError(
                f"unknown kind {self.kind!r}", where=self.name, next=f"Known: {', '.join(READERS)}"
            )
        unknown = self.practice.keys() - EXERCISES.keys()
        if unknown:
            raise UsageError(
                f"unknown exercise {min(unknown)!r}", where=self.name, next=f"Known: {', '.join(EXERCISES)}"
            )

    def pieces(self, folder: Path) -> list[Piece]:
        """Every piece of this source below ``folder``. Raises ``UsageError`` naming a pattern that matches no file."""
        found: list[Piece] = []
        for pattern in self.files:
            paths = sorted(folder.glob(pattern))
            if not paths:
                raise UsageError(
                    "no such text", where=str(folder / pattern), next="Name the folder with --texts"
                )
            for path in paths:
                found += READERS[self.kind](_read(path), path)
        return [replace(p, answer=self.renamed.get(p.answer or "", p.answer)) for p in found]


def held_out(piece: Piece) -> bool:
    """Whether a piece is only measured on: one group in twenty, by its digest, so that it is the same for everyone."""
    return hashlib.sha256(piece.group.encode()).digest()[0] % _HELD == 0


def _read(path: Path) -> str:
    data = path.read_bytes()
    return (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8", "replace")


# --------------------------------------------------------------------------------------------- reading


def documents(text: str, path: Path) -> list[Piece]:
    """Plain text, documents parted by a line :data:`DOCUMENT`: passages of one to a few sentences, in order."""
    found = []
    for number, document in enumerate(text.split(f"\n{DOCUMENT}\n")):
        passages = [
            passage for paragraph in re.split(r"\n\s*\n", document) for passage in passages_of(paragraph)
        ]
        found += [
            Piece(passage, f"{path.name} {number}", after=after)
            for passage, after in zip_longest(passages, passages[1:])
        ]
    return found


def passages_of(paragraph: str, limit: int = 480) -> Iterator[str]:
    """The sentences of a paragraph on one line each, joined up to a length in characters that varies with the text.

    >>> list(passages_of("It rained.\\nWe left early."))
    ['It rained. We left early.']
    """
    words = " ".join(paragraph.split())
    wanted = 60 + (len(words) * 7919) % (limit - 60)  # short and long ones, without a random state
    held = ""
    for sentence in _SENTENCE.split(words):
        if held and len(held) + len(sentence) > wanted:
            yield held
            held = ""
        held = f"{held} {sentence}" if held else sentence
    if held:
        yield held


def pairs(text: str, path: Path) -> list[Piece]:
    """JSONL with ``prompt`` and ``completion``: one piece per row; rows at the same place in two files are one group.

    End markers of other models (``<|endoftext|>``) are taken away: they are no text.
    """
    return [
        Piece(_clean(row["prompt"]), f"row {number}", answer=_clean(row["completion"]))
        for number, row in enumerate(map(orjson.loads, text.splitlines()))
    ]


def instructions(text: str, path: Path) -> list[Piece]:
    """JSONL of seed tasks: ``instruction`` and ``instances`` of ``input`` and ``output``."""
    return [
        Piece("\n".join(filter(None, (row["instruction"], one["input"]))), row["id"], answer=one["output"])
        for row in map(orjson.loads, text.splitlines())
        for one in row["instances"]
    ]


def turns(text: str, path: Path) -> list[Piece]:
    """TSV of a conversation's turns: what was said, the (first) intent as its answer, and what was said next.

    Turns with a personal value (by the annotated slots, or four digits in a row) are left out, and so are turns of one
    or two words and what repeats an earlier turn.
    """
    rows = [
        r
        for r in csv.DictReader(io.StringIO(text), delimiter="\t", quoting=csv.QUOTE_NONE)
        if r.get("intent")
    ]
    clean = [
        r
        for r in rows
        if not _PERSONAL.search(r["slot-labels"] or "") and not re.search(r"\d{4}", r["utterance"])
    ]
    after = {
        id(one): two["utterance"]
        for one, two in pairwise(clean)
        if one["conversationId"] == two["conversationId"]
    }
    first = {(r["utterance"], r["intent"]): r for r in reversed(clean) if len(r["utterance"].split()) > 2}
    return [
        Piece(r["utterance"], r["conversationId"], answer=_intent(r["intent"]), after=after.get(id(r)))
        for r in reversed(first.values())
    ]


def _intent(name: str) -> str | None:
    return None if name == "contentonly" else name.partition("<div>")[0]


def _clean(text: str) -> str:
    return _SPECIAL.sub("", text).strip()


READERS: dict[str, Callable[[str, Path], list[Piece]]] = {
    "documents": documents,
    "pairs": pairs,
    "instructions": instructions,
    "turns": turns,
}


# ------------------------------------------------------------------------------------------ practising

_WORD = re.compile(r"[^\W_]+")
_JOINERS = ("_", "_", " ", ", ")
_MOST_WORDS = 4


def words_of(text: str) -> list[str]:
    """The different words of a text in lower case, in order."""
    return list(dict.fromkeys(_WORD.findall(text.lower())))


def word_rarity(words: Sequence[Sequence[str]]) -> dict[str, float]:
    """How telling a word is: the square of its inverse document frequency; next to nothing for a word seen twice or less.

    >>> word_rarity([["a", "b"], ["a", "b"], ["a", "b"], ["a"]])["a"]
    0.001
    """
    seen = Counter(word for row in words for word in row)
    total = len(words)
    return {w: float(np.log(total / n) ** 2 * (n > 2) + 1e-3) for w, n in seen.items()}


def telling(
    words: Sequence[str], rarity: Mapping[str, float], count: int, rng: np.random.Generator
) -> list[str]:
    """``count`` of the words, the rarer the likelier, in their order; all of them where there are fewer.

    Each word waits an exponential time at the rate of its rarity, and the first ``count`` are taken: the same as drawing
    one after the other without putting back, and much quicker.
    """
    waits = rng.standard_exponential(len(words)) / [rarity.get(word, 1e-3) for word in words]
    return [words[i] for i in sorted(waits.argsort()[:count])]


Practice = tuple[str, str | None]
"""What is read and what is to be answered; ``None`` where reading is all."""


def _read_it(piece: Piece, rarity: Mapping[str, float], rng: np.random.Generator) -> Practice | None:
    return piece.text, None


def _answer(piece: Piece, rarity: Mapping[str, float], rng: np.random.Generator) -> Practice | None:
    return (piece.text, piece.answer) if piece.answer else None


def _after(piece: Piece, rarity: Mapping[str, float], rng: np.random.Generator) -> Practice | None:
    return (piece.text, piece.after) if piece.after else None


def _copy(piece: Piece, rarity: Mapping[str, float], rng: np.random.Generator) -> Practice | None:
    return piece.text, piece.text


def _name(piece: Piece, rarity: Mapping[str, float], rng: np.random.Generator) -> Practice | None:
    """One to four of the text's rarer words, ``card_arrival``: short names of what matters are what class labels are."""
    words = words_of(piece.text)
    if not words:
        return None
    joiner = _JOINERS[int(rng.integers(len(_JOINERS)))]
    return piece.text, joiner.join(telling(words, rarity, 1 + int(rng.integers(_MOST_WORDS)), rng))


def _compose(piece: Piece, rarity: Mapping[str, float], rng: np.random.Generator) -> Practice | None:
    """The sentence that some words were taken from: half of its different words, rarer ones first, in any order."""
    words = words_of(piece.text)
    if not 4 <= len(words) <= 40:
        return None
    chosen = telling(words, rarity, len(words) // 2, rng)
    return ", ".join(chosen[i] for i in rng.permutation(len(chosen))), piece.text


EXERCISES: dict[str, Callable[[Piece, Mapping[str, float], np.random.Generator], Practice | None]] = {
    "read": _read_it,
    "answer": _answer,
    "after": _after,
    "copy": _copy,
    "name": _name,
    "compose": _compose,
}


def practise(
    pieces: Sequence[Piece],
    practice: Mapping[str, float],
    rarity: Mapping[str, float],
    rng: np.random.Generator,
) -> list[Practice]:
    """One exercise for each piece, drawn by the weights in ``practice``; reading where the one drawn does not fit."""
    names = sorted(practice)
    odds = np.array([practice[name] for name in names], dtype=float)
    drawn = rng.choice(len(names), len(pieces), p=odds / odds.sum())
    return [
        EXERCISES[names[i]](piece, rarity, rng) or (piece.text, None)
        for i, piece in zip(drawn, pieces, strict=True)
    ]


def source_of(table: Mapping[str, Any]) -> Source:
    """A source from one table of a recipe file."""
    return Source(
        name=table["name"],
        kind=table["kind"],
        files=tuple(table["files"]),
        share=float(table["share"]),
        licence=table["licence"],
        practice=dict(table["practice"]),
        renamed=dict(table.get("renamed", {})),
    )
