"""What several stages share about text: normalising, tokens, shingles, n-grams, similarity. Pure and small."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Sequence
from typing import TypeVar

T = TypeVar("T")

# Scripts that are written without spaces between words: Han, kana, Thai, Lao, Khmer, Myanmar.
_UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0002ffff]"
)


def normalise(text: str) -> str:
    """NFKC, casefold, white space folded to single spaces and trimmed.

    >>> normalise("  Ｈello\\tWORLD ")
    'hello world'
    """
    if text.isascii():  # NFKC is the identity on ASCII, and casefold is lower
        return " ".join(text.lower().split())
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def has_unspaced(text: str) -> bool:
    """Whether a character belongs to a script that is written without spaces between words."""
    return not text.isascii() and _UNSPACED.search(text) is not None


def is_unspaced(text: str) -> bool:
    """Whether most letters belong to a script that is written without spaces between words."""
    if not has_unspaced(text):  # spares accented text the count below
        return False
    letters = sum(c.isalpha() for c in text)
    return letters > 0 and 2 * len(_UNSPACED.findall(text)) > letters


def tokens(text: str) -> list[str]:
    """Words of the normalised text; single characters where the script has no spaces."""
    clean = normalise(text)
    return list(clean.replace(" ", "")) if is_unspaced(clean) else clean.split()


def ngrams(items: Sequence[str], n: int) -> list[tuple[str, ...]]:
    """All runs of ``n`` items, in order; none where there are fewer."""
    return [tuple(items[i : i + n]) for i in range(len(items) - n + 1)]


def shingles(text: str, n: int = 5) -> set[str]:
    """The set of ``n``-word shingles of the normalised text (characters for scripts without spaces).

    A text of fewer than ``n`` words is one shingle; an empty text has none.

    >>> sorted(shingles("the cat sat on the mat"))
    ['cat sat on the mat', 'the cat sat on the']
    """
    words = tokens(text)
    if not words:
        return set()
    if len(words) < n:
        return {" ".join(words)}
    return {" ".join(run) for run in ngrams(words, n)}


def jaccard(a: Collection[T], b: Collection[T]) -> float:
    """``|a ∩ b| / |a ∪ b|`` of two sets; 1.0 where both are empty."""
    first, second = set(a), set(b)
    union = len(first | second)
    return len(first & second) / union if union else 1.0
