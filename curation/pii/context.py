"""Context: a weak hit counts for more where a word such as "account" stands near it, by Presidio's own rules.

Words and weights are Presidio's; the tokeniser is spaCy's for the language, without a model. Nothing is
tokenised that no context word could be near.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from curation.errors import UsageError
from curation.pii.spans import Span


class Contexts:
    """Presidio's context words, with spaCy's tokeniser for the language and the words as they are written.

    Presidio compares lemmas, which take a model; it matches parts of words, so that "card" still finds
    "cards".
    """

    def __init__(self, language: str) -> None:
        from presidio_analyzer.context_aware_enhancers import LemmaContextAwareEnhancer

        self._rules = LemmaContextAwareEnhancer()
        self._before = self._rules.context_prefix_count + 1
        self._after = self._rules.context_suffix_count + 1
        self._tokeniser = _Tokeniser(language)

    _SHORT = 360  # characters of a text whose hits share the tokens of all of it

    def lift(self, text: str, hits: list[Span], context: Sequence[str]) -> list[Span]:
        """Hits with a better score where a context word stands near by."""
        lowered = text.lower()
        words = [word for word in context if word in lowered]
        if not words:
            return hits
        best = self._rules.MAX_SCORE
        return [hit if hit.score >= best else self._lifted(text, hit, words) for hit in hits]

    def _lifted(self, text: str, hit: Span, words: Sequence[str]) -> Span:
        if not any(word in token for word in words for token in self._near(text, hit.start)):
            return hit
        rules = self._rules
        lifted = max(hit.score + rules.context_similarity_factor, rules.min_score_with_context_similarity)
        return hit._replace(score=min(lifted, rules.MAX_SCORE))

    def _near(self, text: str, start: int) -> list[str]:
        """Keywords around the token at ``start``: itself and some before it, then itself or the next, and
        some after.

        Of a long text only the words around the hit are tokenised, and more of them until there are enough;
        spaCy takes words between white space one by one, so a part of a text gives the tokens of the whole.
        """
        reach = len(text) if len(text) <= self._SHORT else self._SHORT // 3
        while True:
            first = _word_start(text, start - reach)
            last = _word_end(text, start + reach)
            before, after = self._keywords(text[first:last], start - first)
            enough_before = first == 0 or len(before) >= self._before
            enough_after = last == len(text) or len(after) >= self._after
            if enough_before and enough_after:
                return before[: self._before] + after[: self._after]
            reach *= 4

    def _keywords(self, text: str, start: int) -> tuple[list[str], list[str]]:
        """Keywords from the token at ``start`` backwards, and from it forwards."""
        ends, keywords = self._tokeniser.tokens(text)
        at = bisect_right(ends, start)
        before = [word for word in reversed(keywords[: at + 1]) if word]
        return before, [word for word in keywords[at:] if word]


def _word_start(text: str, at: int) -> int:
    """The start of the word at or before ``at``; 0 where the text starts first."""
    if at <= 0:
        return 0
    return max(text.rfind(" ", 0, at), text.rfind("\n", 0, at)) + 1


def _word_end(text: str, at: int) -> int:
    """The end of the word at or after ``at``; the end of the text where that comes first."""
    ends = [end for end in (text.find(" ", at), text.find("\n", at)) if end >= 0]
    return min(ends, default=len(text))


def _columns(doc: Any) -> list[list[int]]:
    """Length, space behind, stop word and punctuation of each token; far cheaper than token by token."""
    return doc.to_array(["LENGTH", "SPACY", "IS_STOP", "IS_PUNCT"]).tolist()


_STRETCH = re.compile(r"\s+|\S+")
_DIGIT = re.compile(r"\d")


class _Tokeniser:
    """spaCy's tokeniser for a language, in bounded memory and asked about each word once.

    spaCy splits a text at white space and takes each word by itself, so what it made of a word holds wherever the word
    stands. What it made of a number holds for every number of the same form, since its rules for numbers know digits,
    not which; where they do (times such as "9am", smileys, addresses of hosts), each number is asked about. Forms
    come again and are remembered; spaCy itself would keep every number it ever saw.
    """

    _REMEMBERED = 50_000
    _WORDS_PER_ZONE = 2_000
    _LONGEST = 40

    def __init__(self, language: str) -> None:
        import spacy

        try:
            self._nlp = spacy.blank(language)
        except ImportError:
            raise UsageError(
                f"spaCy has no tokeniser for language {language!r}",
                where="[workspace] languages",
                next="Take the language out; its text is then held as unscanned",
            ) from None
        tokenizer: Any = self._nlp.tokenizer
        self._special = _numbered_exceptions(tokenizer.rules or ())
        self._last: tuple[str, tuple[list[int], list[str]]] = ("", ([], []))
        self._known: dict[str, list[tuple[int, bool]]] = {}
        self._zone: Any = None
        self._words = 0

    def tokens(self, text: str) -> tuple[list[int], list[str]]:
        """Where each token of a text ends, and the token in lower case where it is a keyword, else an empty string.
        The answer for the last text is kept."""
        if self._last[0] != text:
            self._last = (text, self._read(text))
        return self._last[1]

    def _read(self, text: str) -> tuple[list[int], list[str]]:
        ends: list[int] = []
        keywords: list[str] = []
        for match in _STRETCH.finditer(text):
            stretch, start = match.group(), match.start()
            if stretch[0].isspace():
                # One space belongs to the word before it; what is left of the stretch is a token.
                rest = stretch[1:] if start and stretch[0] == " " else stretch
                if rest:
                    ends.append(match.end())
                    keywords.append("" if ":" in rest else rest.lower())
                continue
            at = 0
            for end, is_keyword in self._of_word(stretch):
                ends.append(start + end)
                keywords.append(stretch[at:end].lower() if is_keyword else "")
                at = end
        return ends, keywords

    def _of_word(self, word: str) -> list[tuple[int, bool]]:
        """Where the tokens of a word end, and which are keywords."""
        known = self._known.get(word)
        if known is not None:
            return known
        form = self._form(word)
        known = self._known.get(form) if form else None
        if known is None:
            known = list(self._ask(word))
            if form:
                if len(self._known) >= self._REMEMBERED:
                    self._known.clear()
                self._known[form] = known
        return known

    def _form(self, word: str) -> str:
        """What stands for the word in memory: the word with a 0 for every digit; empty where the digits matter."""
        if len(word) > self._LONGEST:
            return ""
        form = _DIGIT.sub("0", word)
        if form == word and "0" not in word:
            return word
        has_host = _HOST.search(form) is not None
        return "" if has_host or not word.isascii() or self._special.search(form) else form

    def _renew(self) -> None:
        """Leave spaCy's memory zone now and then, which frees its words; nothing of spaCy's is kept across."""
        if self._words % self._WORDS_PER_ZONE == 0:
            if self._zone is not None:
                self._zone.__exit__(None, None, None)
            self._zone = self._nlp.memory_zone()
            self._zone.__enter__()
        self._words += 1

    def _ask(self, word: str) -> Iterator[tuple[int, bool]]:
        self._renew()
        at = 0
        for length, space, stop, punctuation in _columns(self._nlp.make_doc(word)):
            part = word[at : at + length]
            # Presidio splits keywords at colons, then looks for whole tokens: one with a colon never counts.
            plain = not (stop or punctuation or part in ("-PRON-", "be") or ":" in part)
            yield at + length, plain
            at += length + space


_HOST = re.compile(r"0\.[0a-z]", re.IGNORECASE)


def _numbered_exceptions(rules: Iterable[str]) -> re.Pattern[str]:
    """The forms of the tokeniser's exceptions that hold a digit, such as "9am" and "8)"."""
    forms = sorted({_DIGIT.sub("0", rule) for rule in rules if _DIGIT.search(rule)})
    # Without a letter beside it a short form such as "0pm" may also stand inside a longer number.
    return re.compile("|".join(map(re.escape, forms)) or r"(?!)", re.IGNORECASE)
