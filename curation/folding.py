"""Texts as folded bytes: what :func:`curation.text.normalise` and :func:`curation.text.tokens` make of them, for a
hundred thousand at a time.

Bytes of ASCII, which most are, are folded all together. Of the rest a text pays for what it holds: a curly quote or a
letter with an accent means the same wherever it stands, and is looked up once; where neighbours take part (combining
marks, Hangul, scripts without spaces) the text goes through Python's Unicode tables whole.

Nothing here knows a shingle: texts go in, one array of bytes comes out.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from curation.text import has_unspaced, is_unspaced

Bytes = NDArray[np.uint8]
Offsets = NDArray[np.int64]
Folded = tuple[Bytes, Offsets]
"""Normalised texts as UTF-8, their tokens parted by single spaces: text ``i`` is ``data[offsets[i]:offsets[i + 1]]``.
Eight bytes more than the last offset can be read."""

SPACE = 32
PADDING = 8  # bytes behind the last text, so that eight can be read from any place
TABLE = bytes.maketrans(  # lower case; and a space for what str.split takes for white space in ASCII
    b"ABCDEFGHIJKLMNOPQRSTUVWXYZ\t\n\v\f\r\x1c\x1d\x1e\x1f", b"abcdefghijklmnopqrstuvwxyz" + b" " * 9
)

_ASCII = bytes(range(128))
# A text of which at most one byte in so many is beyond ASCII has its characters looked up one by one.
_FEW = 4


def fold(texts: Sequence[str]) -> Folded:
    """Texts as :func:`curation.text.normalise` and :func:`curation.text.tokens` read them; no texts give ``[0]``."""
    parts = [_encoded(text.strip()) for text in texts]
    offsets = np.zeros(len(parts) + 1, np.int64)
    np.cumsum([len(part) for part in parts], dtype=np.int64, out=offsets[1:])
    folded = np.frombuffer((b"".join(parts) + bytes(PADDING)).translate(TABLE), np.uint8)
    space = folded == SPACE
    again = np.flatnonzero(space[1:] & space[:-1]) + 1  # no text begins or ends with a space
    if not len(again):
        return folded, offsets
    return np.delete(folded, again), offsets - np.searchsorted(again, offsets)


def _encoded(text: str) -> bytes:
    """A text whose letters are folded but for ASCII, and whose white space is ASCII, none of it at an edge."""
    # Lone surrogates, which a text may hold that did not come from a file, are hashed as they are.
    raw = text.encode("utf-8", "surrogatepass")
    rare = raw.translate(None, _ASCII)
    if not rare:
        return raw
    if _FEW * len(rare) > len(raw):
        return _slowly(text)
    for character in set(rare.decode("utf-8", "surrogatepass")):
        folded = folded_alone(character)
        if folded is None:
            return _slowly(text)
        if folded != character:
            raw = raw.replace(character.encode(), folded.encode())
    return raw.strip()  # a letter may have become a space and a mark


@lru_cache(1 << 16)
def folded_alone(character: str) -> str | None:
    """What normalising makes of a character wherever it stands; ``None`` where what stands beside it takes part.

    Normalisation joins characters only where the decomposition of the second begins with a mark, or with a letter
    without case, as Hangul's (The Unicode Standard, section 3.11); the same classes hold the scripts without spaces.
    """
    first = unicodedata.category(unicodedata.normalize("NFKD", character)[0])
    if first[0] in "MC" or first in ("Lo", "Lm"):
        return None
    folded = unicodedata.normalize("NFKC", character).casefold()
    again = unicodedata.normalize("NFKC", folded).casefold()
    if again != folded or has_unspaced(folded):
        return None
    return "".join(" " if part.isspace() else part for part in folded)


_RARE_SPACES = "\u0085\u1680\u2028\u2029"  # white space that NFKC does not turn into a space
# The first bytes of scripts that are written without spaces, and of others; without them there is none.
_COMMON_BYTES = bytes(set(range(256)) - {0xE0, 0xE1, *range(0xE3, 0xEA), 0xEF, 0xF0})


def _slowly(text: str) -> bytes:
    """A text whose characters take part in each other, or that has none of ASCII to speak of."""
    clean = unicodedata.normalize("NFKC", text).casefold()
    for space in _RARE_SPACES:
        if space in clean:
            clean = clean.replace(space, " ")
    raw = clean.strip().encode("utf-8", "surrogatepass")
    if raw.translate(None, _COMMON_BYTES) and is_unspaced(clean):
        return " ".join("".join(clean.split())).encode("utf-8", "surrogatepass")
    return raw
