"""The text as a recogniser should see it, with the way back to the original offsets.

Folded: full-width and other single-character variants of ASCII, digits of any script, dashes and spaces of
any width, zero-width characters and soft hyphens, HTML character references, percent-encoded ``@ . + -``,
"(at)" and "[dot]", look-alike letters inside a word that also holds Latin ones, and numbers or addresses that
wrap at the end of a line. Not folded: spelled-out numbers, text in pictures, ciphers; what expands to several
characters (an ellipsis) stays.

The folded text is only ever scanned, never stored.
"""

from __future__ import annotations

import base64
import binascii
import html
import re
import unicodedata
from collections.abc import Callable, Iterator
from typing import NamedTuple

from curation.pii.words import HIDDEN

# Cyrillic and Greek letters that look like Latin ones, in the order of the Latin letters below.
_ALIKE = "аеорсухіјѕԁһАВЕКМНОРСТХІЈЅοαυνικΑΒΕΗΙΚΜΝΟΡΤΥΧΖ"
_LATIN = "aeopcyxijsdhABEKMHOPCTXIJSoauvikABEHIKMNOPTYXZ"
_LOOKALIKES = str.maketrans(_ALIKE, _LATIN)
_HAS_ALIKE = re.compile(f"[{_ALIKE}]")
_WORD = re.compile(r"\S+")
_ASCII_LETTER = re.compile("[A-Za-z]")

# Format characters (Unicode category Cf), the grapheme joiner and variation selectors: all invisible.
_HIDDEN = (
    "\u00ad\u034f\u0600-\u0605\u061c\u06dd\u070f\u08e2\u180e\u200b-\u200f\u202a-\u202e\u2060-\u2064\u2066-\u206f"
    "\ufe00-\ufe0f\ufeff\ufff9-\ufffb\U000e0001\U000e0020-\U000e007f"
)
_EDITS = re.compile(
    rf"(?P<hidden>[{_HIDDEN}]+)|(?P<entity>&(?:#\d{{1,7}}|#[xX][0-9a-fA-F]{{1,6}}|[A-Za-z]\w{{1,30}});)"
    r"|(?P<percent>%(?:40|2[BbDdEe]))|(?P<word>[ \t]?[\[({][ \t]?(?:at|dot)[ \t]?[\])}][ \t]?)",
    re.IGNORECASE,
)
_SIGNS = re.compile(rf"[&%\[({{{_HIDDEN}]")  # one of these stands in whatever is edited
_PERCENT = {"40": "@", "2B": "+", "2D": "-", "2E": "."}


class Folded(NamedTuple):
    """The text to scan. ``starts[i]`` and ``ends[i]`` say where its character ``i`` was; both None: at
    ``i``."""

    text: str
    starts: list[int] | None = None
    ends: list[int] | None = None

    def back(self, start: int, end: int) -> tuple[int, int]:
        """The range of the original text behind a non-empty range of the folded one."""
        if self.starts is None or self.ends is None:
            return start, end
        return self.starts[start], self.ends[end - 1]


class _Plain(dict[int, str]):
    """One ASCII character for each character that is a variant of it, worked out on first use."""

    def __missing__(self, code: int) -> str:
        char = chr(code)
        self[code] = plain = _plain(char)
        return plain


def _plain(char: str) -> str:
    category = unicodedata.category(char)
    if category == "Nd":
        return str(unicodedata.decimal(char))
    if category in ("Zs", "Pd") or char == "\u2212":
        return " " if category == "Zs" else "-"
    form = unicodedata.normalize("NFKC", char)
    # Superscripts and circled digits (category No) are footnotes and bullets, not digits of a number.
    return form if len(form) == 1 and form.isascii() and form.isprintable() and category != "No" else char


_PLAIN = _Plain()


def _unmix(match: re.Match[str]) -> str:
    word = match.group()
    return word.translate(_LOOKALIKES) if _ASCII_LETTER.search(word) else word


def _same_length(text: str) -> str:
    if text.isascii():
        return text
    plain = text.translate(_PLAIN)
    return _WORD.sub(_unmix, plain) if _HAS_ALIKE.search(plain) else plain


def _written(match: re.Match[str]) -> str:
    """What an invisible, encoded or spelled-out stretch stands for."""
    text = match.group()
    if match["entity"]:
        return _same_length(html.unescape(text))
    if match["percent"]:
        return _PERCENT[text[1:].upper()]
    return ("@" if "at" in text.lower() else ".") if match["word"] else ""


def _rewrite(text: str, pattern: re.Pattern[str], new: Callable[[re.Match[str]], str]) -> Folded:
    """``text`` with each match replaced, and the offsets back; every new character stands for its whole
    match."""
    parts: list[str] = []
    starts: list[int] = []
    ends: list[int] = []
    at = 0
    for match in pattern.finditer(text):
        start, end = match.span()
        word = new(match)
        parts += [text[at:start], word]
        starts += [*range(at, start), *[start] * len(word)]
        ends += [*range(at + 1, start + 1), *[end] * len(word)]
        at = end
    starts += range(at, len(text))
    ends += range(at + 1, len(text) + 1)
    return Folded("".join([*parts, text[at:]]), starts, ends)


def fold(text: str) -> Folded:
    """The text to scan; plain ASCII without references comes back as it is, for next to nothing.

    >>> fold("ｊane＠example．com").text
    'jane@example.com'
    >>> folded = fold("a\\u200bb"); folded.text, folded.back(0, 2)
    ('ab', (0, 3))
    """
    plain = text if text.replace(HIDDEN, "").isascii() else _same_length(text)
    if _SIGNS.search(plain) is None or _EDITS.search(plain) is None:
        return Folded(plain)
    return _rewrite(plain, _EDITS, _written)


_WRAP = re.compile(r"(?<=[\w@.\-])[ \t]*\r?\n[ \t]*(?=[\w@+])")


def _joined(match: re.Match[str]) -> str:
    """What a line break inside an address or a number stands for; any other line break stays."""
    text, (start, end) = match.string, match.span()
    before, after = text[start - 1], text[end]
    word = text[max(text.rfind(" ", 0, start), text.rfind("\n", 0, start)) + 1 : start]
    if "@" in (before, after) or (before == "." and "@" in word):
        return ""
    if before == "-" and after.isdigit():
        return ""
    return " " if before.isdigit() or after.isdigit() else "\n"


def unwrapped(text: str) -> tuple[Folded, list[int]] | None:
    """A folded text with line breaks inside addresses and numbers taken out, and where; None where there is
    none.

    Lists of numbers look the same, so only what carries its own proof (a checksum, a full address) may be
    taken from this reading.
    """
    if "\n" not in text:
        return None
    joins = [m.start() for m in _WRAP.finditer(text) if _joined(m) != "\n"]
    return (_rewrite(text, _WRAP, _joined), joins) if joins else None


_BASE64 = re.compile(r"(?<![A-Za-z0-9+/_\-=])[A-Za-z0-9+/]{20,}={0,2}(?![A-Za-z0-9+/=])")


def encoded(text: str) -> Iterator[tuple[int, int, str]]:
    """Words that are base64 of printable text: start, end, and the text. Hashes and keys decode to noise
    and give none."""
    for match in _BASE64.finditer(text):
        word = match.group()
        try:
            inside = base64.b64decode(word + "=" * (-len(word) % 4), validate=True).decode()
        except (binascii.Error, UnicodeDecodeError):
            continue
        if all(c.isprintable() or c in "\r\n\t" for c in inside):
            yield match.start(), match.end(), inside
