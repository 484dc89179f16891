"""What can be plainly wrong with a text: each function measures one thing, and says what it measured and where the limit
is, or None where nothing is wrong.

Nothing here asks a model, and nothing here decides: :mod:`curation.quality.filters` says what follows.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import orjson

from curation import records
from curation.errors import UsageError
from curation.text import is_unspaced, ngrams, normalise, tokens


@dataclass(frozen=True)
class QualityRule:
    """The limits of the filters.

    ``free_text``: completions are prose; False where they are class labels, then only empty and damaged ones
    are found. ``short``: completions of fewer words are not judged as prose either way. ``max_words``: longer
    prompts and completions are held. ``repeats``: times that the same words may follow each other. ``echo``:
    words of a prompt from which its verbatim repetition in the completion counts. ``script``: least share of
    letters in the script of the row's language. Repetition has the limits of Rae et al. 2021
    (:data:`GOPHER`). Raises :class:`UsageError` for values that make no sense.
    """

    free_text: bool = True
    short: int = 4
    max_words: int = 8000
    repeats: int = 8
    echo: int = 8
    script: float = 0.5

    def __post_init__(self) -> None:
        if min(self.short, self.max_words, self.echo) < 1 or self.repeats < 2 or not 0 <= self.script <= 1:
            raise UsageError(
                "a limit of the quality filters makes no sense", next="Use the defaults as a guide"
            )

    def digest(self) -> str:
        """The name of this rule; every value, and the version of the filters, is part of it."""
        return records.digest(records.canonical_json({"rule": "quality", "version": 1, **asdict(self)}))


Measured = tuple[float, float]
"""What was measured, and the limit; a filter that finds nothing returns None."""


# --- What any text can suffer from ----------------------------------------------------------------


def empty(text: str, rule: QualityRule) -> Measured | None:
    """No letter, digit or symbol at all. Measures visible characters."""
    visible = sum(unicodedata.category(c)[0] in "LNSP" for c in text[:1000])
    return None if visible else (0, 1)


# A run of characters that single bytes of 0x80 and above turn into under Windows-1252 or Latin-1.
_HIGH = "\u0080-\u00ff\u0152\u0153\u0160\u0161\u0178\u017d\u017e\u0192\u02c6\u02dc\u2013-\u203a\u20ac\u2122"
_MISREAD = re.compile(f"[\u00c2-\u00f4][{_HIGH}]{{1,3}}")


def mojibake(text: str, rule: QualityRule) -> Measured | None:
    """UTF-8 that was read as Windows-1252: ``Ã©`` for ``é``. Measures the places that decode when read
    again."""
    if text.isascii():
        return None
    places = sum(_decodes(run.group()) for run in _MISREAD.finditer(text))
    return (places, 0) if places else None


def _decodes(run: str) -> bool:
    """Whether the characters, as single bytes, begin with a valid multi-byte UTF-8 character."""
    raw = b"".join(_single_byte(c) for c in run)
    size = 2 if raw[0] < 0xE0 else 3 if raw[0] < 0xF0 else 4
    try:
        return len(raw[:size].decode("utf-8")) == 1
    except UnicodeDecodeError:
        return False


def _single_byte(character: str) -> bytes:
    try:
        return character.encode("cp1252")
    except UnicodeEncodeError:  # the five bytes that Windows-1252 leaves undefined come through as controls
        return character.encode("latin-1", "replace")


_LOST = re.compile("[\ufffd\x00-\x08\x0e-\x1a\x1c-\x1f]")


def lost_characters(text: str, rule: QualityRule) -> Measured | None:
    """Replacement and control characters: something could not be decoded. Measures how many."""
    count = len(_LOST.findall(text))
    return (count, 0) if count else None


def too_long(text: str, rule: QualityRule) -> Measured | None:
    """More words than ``rule.max_words``: most likely several documents in one. Measures words."""
    if len(text) <= rule.max_words:
        return None
    count = len(tokens(text))
    return (count, rule.max_words) if count > rule.max_words else None


# The alphabets of languages that are written in one. Languages that are missing here are not checked.
_SCRIPTS = {
    **dict.fromkeys(("bg", "be", "mk", "ru", "uk"), ("CYRILLIC",)),
    **dict.fromkeys(("ar", "fa", "ur"), ("ARABIC",)),
    **dict.fromkeys(("zh",), ("CJK",)),
    **dict.fromkeys(("ja",), ("CJK", "HIRAGANA", "KATAKANA")),
    **dict.fromkeys(("ko",), ("HANGUL",)),
    **dict.fromkeys(("el",), ("GREEK",)),
    **dict.fromkeys(("he", "yi"), ("HEBREW",)),
    **dict.fromkeys(("hi", "mr", "ne"), ("DEVANAGARI",)),
    **dict.fromkeys(("th",), ("THAI",)),
    **dict.fromkeys(
        (
            "cs",
            "da",
            "de",
            "en",
            "es",
            "et",
            "fi",
            "fr",
            "hu",
            "id",
            "it",
            "lt",
            "lv",
            "nl",
            "no",
            "pl",
            "pt",
        ),
        ("LATIN",),
    ),
    **dict.fromkeys(("ro", "sk", "sl", "sv", "tr", "vi"), ("LATIN",)),
}


def wrong_script(text: str, rule: QualityRule, lang: str | None) -> Measured | None:
    """Most letters are not in the script of the language that the row claims. Measures the share that is.

    This tells Russian from English, never Dutch from German: for that it would need a model.
    """
    scripts = _SCRIPTS.get((lang or "").lower().replace("_", "-").split("-")[0])
    letters = [c for c in text[:2000] if c.isalpha()] if scripts else []
    if not scripts or len(letters) < 10:
        return None
    share = sum(unicodedata.name(c, "").split(" ")[0].startswith(scripts) for c in letters) / len(letters)
    return (round(share, 3), rule.script) if share < rule.script else None


# --- What a completion in prose can suffer from ---------------------------------------------------

# Rae et al. 2021, "Scaling Language Models" (Gopher), table A1: the largest shares of repeated lines; of
# characters in repeated lines; in the most frequent run of n words; in runs of n words that occur more than
# once.
GOPHER_LINES = 0.30
GOPHER_LINE_CHARACTERS = 0.20
GOPHER_TOP = {2: 0.20, 3: 0.18, 4: 0.16}
GOPHER_REPEATED = {5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.10}
GOPHER_WORDS = 100  # the limits were set on web pages; in shorter answers ordinary ones break them


def repetition(text: str, rule: QualityRule) -> Measured | None:
    """The same lines or runs of words over and over, by the limits of Rae et al. 2021.

    Measures the first share that is over its limit. Texts under 100 words are left to :func:`loop`.
    """
    words = tokens(text)
    if len(words) < GOPHER_WORDS or is_unspaced(text):
        return None
    return _repeated_lines(text) or _top_runs(words) or _repeated_runs(words)


def _repeated_lines(text: str) -> Measured | None:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    seen: set[str] = set()
    again = [line for line in lines if line in seen or seen.add(line)]  # type: ignore[func-returns-value]
    share = len(again) / max(len(lines), 1)
    characters = sum(map(len, again)) / max(len(text), 1)
    if share > GOPHER_LINES:
        return round(share, 3), GOPHER_LINES
    if characters > GOPHER_LINE_CHARACTERS:
        return round(characters, 3), GOPHER_LINE_CHARACTERS
    return None


def _top_runs(words: Sequence[str]) -> Measured | None:
    size = sum(map(len, words))
    for n, limit in GOPHER_TOP.items():
        run, count = Counter(ngrams(words, n)).most_common(1)[0]
        share = count * sum(map(len, run)) / size
        if count > 1 and share > limit:
            return round(share, 3), limit
    return None


def _repeated_runs(words: Sequence[str]) -> Measured | None:
    """Characters in runs that stood in the text before; a word in several such runs counts once."""
    size = sum(map(len, words))
    for n, limit in GOPHER_REPEATED.items():
        seen: set[tuple[str, ...]] = set()
        again: set[int] = set()
        for i, run in enumerate(ngrams(words, n)):
            if run in seen:
                again.update(range(i, i + n))
            seen.add(run)
        share = sum(len(words[i]) for i in again) / size
        if share > limit:
            return round(share, 3), limit
    return None


def loop(text: str, rule: QualityRule) -> Measured | None:
    """The same one to ten words again and again, without anything between. Measures how often."""
    words = tokens(text)
    longest = max((longest_run(words, n) for n in range(1, 11)), default=0)
    return (longest, rule.repeats) if longest > rule.repeats else None


def longest_run(words: Sequence[str], n: int) -> int:
    """How often the most repeated block of ``n`` words that hold a letter follows itself."""
    best = same = 0
    for i in range(n, len(words)):
        same = same + 1 if words[i] == words[i - n] and any(c.isalpha() for c in words[i]) else 0
        best = max(best, same)
    return best // n + 1 if best >= n else 0


_REFUSALS = re.compile(
    r"as an ai\b|as a (?:large )?language model|i(?:'m| am) (?:just )?an ai\b"
    r"|i(?:'m| am) (?:very |so )?sorry,? but (?:i|as an)\b.{0,40}\b(?:cannot|can't|unable|not able)\b"
    r"|i (?:cannot|can't|am unable to|am not able to|won't)"
    r" (?:assist|help(?! but)|fulfill?|comply|provide|answer)\b"
    r"|i do(?:n't| not) have (?:access to|personal (?:opinions|experience))"
)


def refusal(text: str, rule: QualityRule) -> Measured | None:
    """A model declines instead of answering, within the first 300 characters. Measures where it begins.

    A desk may want some refusals learned; so these are held and not dropped. English only.
    """
    found = _REFUSALS.search(normalise(text[:300]).replace("’", "'"))
    return (found.start(), 300) if found else None


# Raffel et al. 2020 (C4), section 2.2, drop pages for "lorem ipsum" and for script warnings.
_BOILERPLATE = re.compile(
    r"lorem ipsum|(?:enable|requires?|activate) javascript|javascript is (?:disabled|required)"
    r"|my knowledge cut-?off|as of my last (?:knowledge )?update|regenerate response"
    r"|\[end of (?:text|document)\]"
    r"|<\|(?:im_start|im_end|endoftext|assistant|user|system|eot_id)\|>|\[/?inst\]|<</?sys>>"
)


def boilerplate(text: str, rule: QualityRule) -> Measured | None:
    """What a web page or another model's chat window left behind. Measures how often."""
    count = len(_BOILERPLATE.findall(normalise(text)))
    return (count, 0) if count else None


# What mail servers and absent people send by themselves (RFC 3834 asks them to say so, and most do in words).
_AUTOMATIC = re.compile(
    r"automatic(?:ally generated)? (?:reply|response|message|e-?mail)|auto-?(?:reply|response)\b"
    r"|automated (?:reply|response|message|e-?mail)|\bout of (?:the )?office\b"
    r"|delivery (?:has |to the following recipients? )?failed|undeliverable|mailbox is (?:full|not monitored|unattended)"
    r"|do not (?:reply|respond) to this (?:message|e-?mail)"
)
_AUTOMATIC_WORDS = 60


def automatic(text: str, rule: QualityRule) -> Measured | None:
    """A machine wrote it: an out-of-office note, a bounce, a receipt. Measures its words, of 60 at most.

    A longer mail that quotes such a phrase was written by somebody who wants something. English only.
    """
    words = len(tokens(text))
    found = words <= _AUTOMATIC_WORDS and _AUTOMATIC.search(normalise(text))
    return (words, _AUTOMATIC_WORDS) if found else None


_PLACEHOLDERS = re.compile(
    r"\{\{\s*[\w .-]{1,40}\s*\}\}"
    r"|\[(?:insert|your|enter|add|fill in|todo|tbd)(?:[ _/'’-][^\]\n]{0,40})?\]"
    r"|<(?:insert|your|enter|fill in)[ _-][^>\n]{1,40}>"
    r"|(?P<noun>\[(?:company|customer|client|agent|recipient|sender|name|date)(?:[ _/'’-][^\]\n]{0,40})?\])",
    re.IGNORECASE,
)


def placeholder(text: str, rule: QualityRule) -> Measured | None:
    """A gap that nobody filled in: ``[your name]``, ``{{order}}``, ``<insert date>``. Measures how many.

    The masks that scrubbing leaves, such as ``[NAME]``, are names of entities in capitals, and none of these.
    """
    count = sum(not (found["noun"] or "").isupper() for found in _PLACEHOLDERS.finditer(text))
    return (count, 0) if count else None


# fmt: off
_ENGLISH_OPEN = frozenset([
    "a", "an", "and", "as", "because", "but", "for", "from", "if", "into", "my", "of", "or", "our", "the",
    "their", "to", "which", "while", "with", "your", "is", "are", "was", "were", "will", "would",
])
# fmt: on
TRUNCATED_WORDS = 12  # shorter answers may be a heading or a fragment on purpose


def truncated(text: str, rule: QualityRule) -> Measured | None:
    """The text stops in the middle: on a comma, an opening bracket, an English word that asks for another, or
    in a code block that is not closed. Measures words. A missing full stop alone is no sign: people leave it
    out."""
    words = tokens(text)
    last = text.rstrip()[-1:]
    if text.count("```") % 2:
        return len(words), TRUNCATED_WORDS
    if len(words) < TRUNCATED_WORDS:
        return None
    stops = last in {",", "(", "[", "{", "，", "、"} or words[-1] in _ENGLISH_OPEN
    return (len(words), TRUNCATED_WORDS) if stops else None


_FENCE = re.compile(r"\A```(?:json)?\s*\n(.*?)\n?```\Z", re.DOTALL | re.IGNORECASE)
_LOOKS_LIKE_JSON = re.compile(r'\A(?:\{\s*(?:"[^"\n]*"\s*:|\})|\[\s*(?:\{\s*"|"[^"\n]*"\s*[,\]]))')


def broken_json(text: str, rule: QualityRule) -> Measured | None:
    """A completion that begins like JSON and does not parse. Measures characters."""
    body = text.strip()
    fenced = _FENCE.match(body)
    body = fenced.group(1).strip() if fenced else body
    if not _LOOKS_LIKE_JSON.match(body):
        return None
    try:
        orjson.loads(body)
    except orjson.JSONDecodeError as error:
        return error.pos, len(body)
    return None


def prompt_echo(prompt: str, completion: str, rule: QualityRule) -> Measured | None:
    """The completion is the prompt again, or begins with all of it. Measures words of the prompt."""
    asked = tokens(prompt)
    if len(asked) < rule.echo:
        return None
    return (len(asked), rule.echo) if tokens(completion)[: len(asked)] == asked else None
