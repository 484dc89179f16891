"""Which passages an answer may rest on: lexical retrieval by BM25. Pure; nothing here reads a ledger or a file.

Words are all it knows: it finds a policy that names the same things, and misses one that says them in other words.
What it finds is shown to people as a help, and is never taken for the answer.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from curation.text import tokens

_EDGES = re.compile(r"^\W+|\W+$")


@dataclass(frozen=True)
class RetrievalRule:
    """``k1`` dampens repeated words, ``b`` the length of a passage (Robertson and Zaragoza 2009, section 3.4).

    ``rare`` is the share of passages above which a word tells nothing and is passed over; the least of ten passages.
    """

    k1: float = 1.2
    b: float = 0.75
    rare: float = 0.5


@dataclass(frozen=True)
class Found:
    """A passage by its place in the index, and its score."""

    place: int
    score: float


@dataclass(frozen=True)
class Index:
    """An inverted index over passages; make it with :func:`index`."""

    size: int
    postings: dict[str, tuple[np.ndarray, np.ndarray]] = field(repr=False)
    rule: RetrievalRule = RetrievalRule()

    def search(self, query: str, k: int = 3) -> list[Found]:
        """The ``k`` best passages for ``query``, best first, ties by place; fewer where fewer share a word with it.

        An empty query and an empty index find nothing.
        """
        scores = np.zeros(self.size)
        for word in set(words(query)):
            if word in self.postings:
                places, weights = self.postings[word]
                scores[places] += weights
        best = np.lexsort((np.arange(self.size), -scores))[:k]
        return [Found(int(place), float(scores[place])) for place in best if scores[place] > 0]


def words(text: str) -> list[str]:
    """The words of a text without punctuation at their edges.

    >>> words("Refunds (late): see 5.2!")
    ['refunds', 'late', 'see', '5.2']
    """
    return [bare for word in tokens(text) if (bare := _EDGES.sub("", word))]


def index(passages: Sequence[str], rule: RetrievalRule | None = None) -> Index:
    """Index passages by their words.

    The weight of a word in a passage is ``idf * tf (k1 + 1) / (tf + k1 (1 - b + b length / mean length))`` with
    ``idf = ln(1 + (N - n + 0.5) / (n + 0.5))``, which is never negative.
    """
    rule = rule or RetrievalRule()
    counts = [Counter(words(text)) for text in passages]
    lengths = np.array([sum(c.values()) for c in counts], dtype=float)
    mean = float(lengths.mean()) if lengths.size and lengths.sum() else 1.0
    found: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for number, count in enumerate(counts):
        for word, repeats in count.items():
            found[word].append((number, repeats))
    common = max(rule.rare * len(passages), 10)
    postings = {}
    for word, hits in found.items():
        if len(hits) > common:
            continue
        places = np.array([place for place, _ in hits])
        times = np.array([n for _, n in hits], dtype=float)
        idf = math.log(1 + (len(passages) - len(hits) + 0.5) / (len(hits) + 0.5))
        norm = rule.k1 * (1 - rule.b + rule.b * lengths[places] / mean)
        postings[word] = (places, idf * times * (rule.k1 + 1) / (times + norm))
    return Index(len(passages), postings, rule)
