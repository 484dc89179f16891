"""A text as the names model reads it: tokens with offsets, and the hashed features of each word.

A word is read by its letters (lower-cased word, beginnings, ends, trigrams), its shape, and by what a lexicon says
of it: whether it is somebody's first or last name, a place, a people, and how common it is in lower case. The features
of a word do not depend on where it stands, so they are worked out once per word. The same code reads the text that the
model is trained on; a change here wants a new model, which :data:`VERSION` enforces.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple
from zlib import crc32

VERSION = 1
BUCKETS = 1 << 16
"""Rows of the embedding table that features are hashed to."""

# Letters with their inner apostrophes (O'Brien, but not the 's of Anna's), runs of digits, line breaks, single signs.
# A stretch that was hidden from the scan, such as an alias, is one token.
HIDDEN = "\ufffc"
"""The object replacement character: no letter, no digit, no space, no part of any pattern."""
TOKEN = re.compile(rf"[^\W\d_]+(?:['’](?![sS]\b)[^\W\d_]+)*|\d+|\n|{HIDDEN}+|[^\w\s]|_")

FIRST, LAST, PLACE, COUNTRY, PEOPLE = 1, 2, 4, 8, 16
_FLAGS = {FIRST: "first", LAST: "last", PLACE: "place", COUNTRY: "country", PEOPLE: "people"}
_COMMON = 5  # how far the flags are shifted to hold how common a word is, from 0 (unknown) to 7

LOWER, UPPER, MIXED = 0, 1, 2
"""How a text uses case: no capital at all, no small letter at all, or both."""


class Tokens(NamedTuple):
    """The words of a text, where each starts and ends, and whether it follows its neighbour without a space."""

    words: list[str]
    starts: list[int]
    ends: list[int]
    glued: list[bool]


def tokens(text: str) -> Tokens:
    """The tokens of a text in order; an empty text has none.

    >>> tokens("Anna O'Hara's, 12b").words
    ['Anna', "O'Hara", "'", 's', ',', '12', 'b']
    """
    # Between tokens there is white space alone, so a word is where it is found next.
    words = TOKEN.findall(text)
    starts: list[int] = []
    ends: list[int] = []
    glued: list[bool] = []
    end = -1
    for word in words:
        start = text.index(word, max(end, 0))
        glued.append(start == end)
        end = start + len(word)
        starts.append(start)
        ends.append(end)
    return Tokens(words, starts, ends, glued)


def case_of(text: str) -> int:
    """How the text uses case: :data:`LOWER`, :data:`UPPER` or :data:`MIXED`."""
    if text == text.lower():
        return LOWER
    return UPPER if text == text.upper() else MIXED


def key(word: str) -> int:
    """The number under which a lexicon knows a word, whatever its case."""
    return crc32(word.lower().encode("utf-8", "surrogatepass"))


def common(entry: int) -> int:
    """How common a word is in lower case, from 0 to 7."""
    return entry >> _COMMON


def entry(flags: int, rank: int) -> int:
    """A lexicon's entry: flags, and how common the word is."""
    return flags | rank << _COMMON


def _hashed(feature: str) -> int:
    return crc32(feature.encode("utf-8", "surrogatepass")) % BUCKETS


def shape(word: str) -> str:
    """The shape of a word: capitals, small letters and digits as X, x and d; runs of letters are shortened to two.

    >>> shape("McDonald"), shape("USA"), shape("2024")
    ('XxXx', 'XX', 'dddd')
    """
    out: list[str] = []
    for char in word[:24]:
        kind = "X" if char.isupper() else "x" if char.isalpha() else "d" if char.isdigit() else char
        if kind == "d" or len(out) < 2 or out[-1] != kind or out[-2] != kind:
            out.append(kind)
    joined = "".join(out)
    return joined.replace("xx", "x") if joined != "xx" else "x"


def features(word: str, lexicon: Mapping[int, int], *, known: bool = True) -> list[int]:
    """The rows of the embedding table that a word is the sum of.

    ``known=False`` reads it as if no lexicon held it, which is how a model learns to do without one.
    """
    if not word[0].isalnum():
        return [_hashed("w" + word[0])]
    low = word.lower()
    told = lexicon.get(key(word), 0) if known else 0
    found = ["s" + shape(word)]
    if low[0].isdigit():
        return [_hashed(f) for f in [*found, "n" + low if len(low) < 3 else "p" + low[:2], f"l{len(low)}"]]
    if told:
        found.append("w" + low)
        found += [_FLAGS[flag] for flag in _FLAGS if told & flag]
    found.append(f"c{common(told)}")
    found += [f"<{low[:n]}" for n in (1, 2, 3, 4)] + [f"{low[-n:]}>" for n in (1, 2, 3, 4)]
    framed = f"^{low[:14]}$"
    found += [framed[i : i + 3] for i in range(len(framed) - 2)]
    return [_hashed(feature) for feature in found]
