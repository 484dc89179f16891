"""The ``patterns`` layer: Presidio's recognisers that need no model, run under a clock and only where they
could match.

Recognisers, patterns, validators and context words are Presidio's own, as its registry loads them for a
language. What differs is how they are run: a pattern that runs out of time raises instead of being skipped;
the public suffix list is the bundled copy, so that nothing reaches for the network; and a recogniser is not
run on a text that lacks what each of its matches must contain (its gate). A gate never changes the result.

Refused: a recogniser whose search cannot be bounded in time. Names, places and organisations are no patterns.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any, NamedTuple, Protocol

from curation.errors import MissingExtra, UsageError
from curation.pii import dialled, phones, urls
from curation.pii.context import Contexts
from curation.pii.spans import Span, Unscanned, without_duplicates


class Layer(Protocol):
    """A detector. ``find`` returns spans of ``text`` in any order, overlapping or not, all at or above the
    threshold.

    It raises :class:`Unscanned`, or any exception, where it could not look; it never returns what it found so
    far.
    """

    def find(self, text: str, language: str, deadline: Deadline) -> list[Span]: ...


class Deadline:
    """A point in time after which scanning a text is given up."""

    def __init__(self, seconds: float) -> None:
        self._seconds, self._end = seconds, time.monotonic() + seconds

    def left(self) -> float:
        """Seconds left, above 0. Raises :class:`Unscanned` where there are none."""
        left = self._end - time.monotonic()
        if left <= 0:
            raise Unscanned(f"scanning took longer than {self._seconds:g} s")
        return left


class _Pattern(NamedTuple):
    search: Any  # a compiled pattern of the regex package
    score: float
    context_needed: bool  # its score passes the threshold only with a context word near by
    sign: str = ""  # what every match holds


class Clues:
    """What a text contains, as far as gates ask; each answer is worked out once."""

    __slots__ = ("_blob", "_lowered", "_run", "text")

    def __init__(self, text: str) -> None:
        self.text = text
        self._blob = self._run = -1
        self._lowered: str | None = None

    def _measure(self) -> None:
        self._run = self._blob = 0
        for number in _NUMBER.findall(self.text):
            if len(number) > self._run:
                parts = _SPLIT.split(number)
                self._run = max(self._run, *map(len, parts))
                self._blob = max(self._blob, sum(map(len, parts)))

    @property
    def run(self) -> int:
        """Length of the longest run of digits."""
        if self._run < 0:
            self._measure()
        return self._run

    @property
    def blob(self) -> int:
        """Most digits in a number whose groups are parted by single spaces, full stops or hyphens."""
        if self._blob < 0:
            self._measure()
        return self._blob

    def has_any(self, words: Sequence[str]) -> bool:
        """Whether one of the lower-case words occurs, as part of a word too."""
        if self._lowered is None:
            self._lowered = self.text.lower()
        lowered = self._lowered
        for word in words:  # noqa: SIM110  # a third of the time that any() takes, many times a text
            if word in lowered:
                return True
        return False


Gate = Callable[[Clues], bool]
Search = Callable[[str, int], Any]

_NUMBER = re.compile(r"\d+(?:[- .]\d+)*")
_SPLIT = re.compile("[- .]")
_HEALTH = re.compile(r"\bnhs\b|health (?:service|authority)|patient", re.IGNORECASE)

# Letters as the recognisers know them, whose searches take no notice of case: some letters beyond ASCII have one of
# ASCII as their other case. Spelled out, because a search is several times slower where it must fold case itself.
_A = "A-Za-z\u0130\u0131\u017f\u212a"
_HEX = "[0-9A-Fa-f]"

_HOST = re.compile(rf"[{_A}0-9.\-]\.[{_A}]{{2}}")
_ADDRESS = re.compile(rf"\d\.\d{{1,3}}\.\d|:{_HEX}{{0,4}}:")
_DEVICE = re.compile(rf"{_HEX}{{2}}(?::{_HEX}{{2}}:|-{_HEX}{{2}}-)|{_HEX}{{4}}\.{_HEX}{{4}}\.")
_UUID = re.compile(rf"{_HEX}{{8}}-{_HEX}{{4}}-")
_ACCOUNT = re.compile(rf"[{_A}]{{2}}[0-9]{{2}}[ -]?[{_A}0-9]{{4}}")
_WALLET = re.compile(rf"[13][{_A}0-9]{{25}}")
_DOCTOR = re.compile(rf"[{_A}]\d{{7}}")
_DATE = re.compile(
    rf"\b(?:\d{{1,2}}(?:/\d|[-.]\d{{1,2}}[-.]\d\d|-[{_A}]{{3}})|\d{{4}}[-/]\d{{1,2}}[-/]\d|[{_A}]{{3}}-\d\d)"
)
_DIGIT = re.compile(r"\d")


def _run(digits: int) -> Gate:
    return lambda clues: clues.run >= digits


def _blob(digits: int) -> Gate:
    return lambda clues: clues.blob >= digits


# In each gate the cheapest question comes first.
def _has_host(clues: Clues) -> bool:
    return "." in clues.text and _HOST.search(clues.text) is not None


def _has_address(clues: Clues) -> bool:
    return (":" in clues.text or clues.text.count(".") > 1) and _ADDRESS.search(clues.text) is not None


def _has_device(clues: Clues) -> bool:
    text = clues.text
    parted = text.count(":") > 1 or text.count("-") > 1 or text.count(".") > 1
    return parted and _DEVICE.search(text) is not None


def _has_wallet(clues: Clues) -> bool:
    return len(clues.text) > 25 and clues.run > 0 and _WALLET.search(clues.text) is not None


@lru_cache(maxsize=1)
def gates() -> dict[str, Gate]:
    """What every match of a recogniser must contain; a recogniser without an entry always runs."""
    return {
        "EmailRecognizer": lambda clues: "@" in clues.text,
        "UrlRecognizer": _has_host,
        "CreditCardRecognizer": _blob(12),
        "UsBankRecognizer": _run(8),
        "UsLicenseRecognizer": _run(1),
        "UsItinRecognizer": lambda clues: clues.blob >= 9 and "9" in clues.text,
        "UsPassportRecognizer": _run(8),
        "UsSsnRecognizer": _blob(9),
        "NhsRecognizer": _blob(10),
        "CryptoRecognizer": _has_wallet,
        "DateRecognizer": lambda clues: clues.run > 0 and _DATE.search(clues.text) is not None,
        "IbanRecognizer": lambda clues: clues.run > 1 and _ACCOUNT.search(clues.text) is not None,
        "IpRecognizer": _has_address,
        "MedicalLicenseRecognizer": lambda clues: clues.run >= 7 and _DOCTOR.search(clues.text) is not None,
        "MacAddressRecognizer": _has_device,
        "UuidRecognizer": lambda clues: "-" in clues.text and _UUID.search(clues.text) is not None,
        "PhoneRecognizer": lambda clues: clues.run > 0 and phones.possible(clues.text),
    }


_DIGIT_OR_AT = re.compile(r"[\d@]")


def _could_match(text: str) -> bool:
    """Whether any gate could open: without a digit and an @ there must be a host, an address or a device."""
    if _DIGIT_OR_AT.search(text):
        return True
    if "." in text and (_HOST.search(text) or _DEVICE.search(text)):
        return True
    if ":" in text and (_ADDRESS.search(text) or _DEVICE.search(text)):
        return True
    return "-" in text and (_DEVICE.search(text) is not None or _UUID.search(text) is not None)


def _date_sign(pattern: str) -> str:
    """The character between the numbers of a date, by its pattern: each of Presidio's knows one."""
    return (
        "/"
        if "/" in pattern
        else "-"
        if "-(" in pattern.replace("[1-9", "")
        else "."
        if r"\." in pattern
        else ""
    )


# What the matches of these patterns of IP addresses hold, by the patterns' names.
_ADDRESS_SIGNS = {
    "IPv4_mapped": "::",
    "IPv4_embedded": ":",
    "IPv4": ".",
    "IPv6": ":",
    "IPv6_unspecified": "::",
}


def _sign(recogniser: str, pattern: Any) -> str:
    """A text that every match of the pattern holds; empty where none is known."""
    if recogniser == "DateRecognizer":
        return _date_sign(pattern.regex)
    if recogniser == "IpRecognizer":
        return _ADDRESS_SIGNS.get(pattern.name, "")
    return "://" if pattern.name == "Standard Url" else ""


# Matches of these hold no white space, so they are looked for in the words that hold the sign they must have.
_SIGNS: dict[str, Search] = {
    "EmailRecognizer": re.compile("@").search,
    "UrlRecognizer": _HOST.search,
    "IpRecognizer": _ADDRESS.search,
    "DateRecognizer": _DATE.search,
    "UsLicenseRecognizer": _DIGIT.search,
    "MedicalLicenseRecognizer": _DOCTOR.search,
    "CryptoRecognizer": _WALLET.search,
    "MacAddressRecognizer": _DEVICE.search,
    "UuidRecognizer": _UUID.search,
}


_DOMAINS = re.compile(r"\(\?:(\(\?:[a-z][a-z0-9\-]+\)(?:\|\(\?:[a-z][a-z0-9\-]+\))+)\)")


def _grouped(pattern: str) -> str:
    """The same pattern with its list of top-level domains in groups of one beginning.

    Domains that begin with different letters never match at one place, so only the order within a group tells
    which is found, and that stays. A search then tries some dozens of domains in place of 700.
    """

    def groups(match: re.Match[str]) -> str:
        by_start: dict[str, list[str]] = {}
        for domain in match[1].split("|"):
            name = domain.removeprefix("(?:").removesuffix(")")
            by_start.setdefault(name[0], []).append(name[1:])
        return "(?:" + "|".join(f"{a}(?:{'|'.join(rest)})" for a, rest in by_start.items()) + ")"

    return _DOMAINS.sub(groups, pattern)


def _words_with(sign: Search, text: str) -> Iterator[tuple[int, int]]:
    """Stretches between white space that hold the sign, in order."""
    at = 0
    while match := sign(text, at):
        before = max(text.rfind(" ", at, match.start()), text.rfind("\n", at, match.start()))
        start = max(at, before + 1)
        ends = [end for end in (text.find(" ", match.end()), text.find("\n", match.end())) if end >= 0]
        at = min(ends, default=len(text))
        yield start, at


@dataclass(frozen=True)
class Recogniser:
    """One of Presidio's recognisers, taken apart so that it can be run under a clock."""

    name: str
    entity_type: str
    context: tuple[str, ...]
    source: Any = field(repr=False)
    patterns: tuple[_Pattern, ...] = field(default=(), repr=False)
    gate: Gate | None = field(default=None, repr=False)
    words: Search | None = field(default=None, repr=False)

    @cached_property
    def needs_context(self) -> bool:
        """Whether nothing it finds counts without a context word."""
        return bool(self.patterns) and all(pattern.context_needed for pattern in self.patterns)

    def hits(self, clues: Clues, deadline: Deadline) -> list[Span]:
        """Matches with the score of their pattern and validator, before any context."""
        if self.name == "PhoneRecognizer":
            return without_duplicates(self._phones(clues.text, deadline))
        context = clues.has_any(self.context)
        if self.needs_context and not context:
            return []
        found = [
            span
            for pattern in self.patterns
            if (context or not pattern.context_needed) and pattern.sign in clues.text
            for span in self._matches(pattern, clues.text, deadline)
        ]
        return without_duplicates(found) if len(found) > 1 else found

    def _phones(self, text: str, deadline: Deadline) -> Iterator[Span]:
        for start, end in phones.search(
            text, self.source.supported_regions, self.source.leniency, deadline.left
        ):
            yield Span(start, end, self.entity_type, self.source.SCORE)

    def _matches(self, pattern: _Pattern, text: str, deadline: Deadline) -> Iterator[Span]:
        ranges = [(0, len(text))] if self.words is None else _words_with(self.words, text)
        for start, end in ranges:
            for match in pattern.search.finditer(text, start, end, timeout=deadline.left()):
                span = self._judged(match, text, pattern.score)
                if span is not None:
                    yield span

    def _judged(self, match: Any, text: str, score: float) -> Span | None:
        """The match with its score after validation, None where the validator says no or it is empty.

        An IBAN may have swallowed the word behind it, so its shorter readings are tried too, longest first.
        """
        start = match.start()
        ends = [match.end(i) for i in (3, 2, 1)] if self.name == "IbanRecognizer" else [match.end()]
        for end in (e if e > 0 else match.end() for e in ends):
            final = self._score(text[start:end], score) if end > start else 0.0
            if final > 0:
                return Span(start, end, self.entity_type, final)
        return None

    def _score(self, value: str, score: float) -> float:
        # Presidio writes an IBAN that it cannot read into the log; only text that it can read is shown to it.
        if self.name == "IbanRecognizer" and not value.isascii():
            return 0.0
        verdict = self.source.validate_result(value)
        if verdict is not None:
            score = 1.0 if verdict else 0.0
        return 0.0 if self.source.invalidate_result(value) else score


class PatternLayer:
    """Every pattern recogniser of Presidio's registry for the given languages; see the module's docstring.

    ``gated=False`` runs every recogniser on every text, ``mended=False`` leaves URLs as Presidio cuts them:
    both exist so that tests can compare. Raises :class:`MissingExtra` without Presidio, :class:`UsageError`
    for a language that spaCy has no tokeniser for or a recogniser that cannot be bounded.
    """

    def __init__(
        self, languages: Sequence[str], *, threshold: float, gated: bool = True, mended: bool = True
    ) -> None:
        self._threshold, self._gated, self._mended = threshold, gated, mended
        self._is_domain = _suffix_list()
        self._recognisers = {language: self._load(language) for language in languages}
        self._contexts = {language: Contexts(language) for language in languages}

    def _load(self, language: str) -> list[Recogniser]:
        return [self._taken_apart(source) for source in registered(language)]

    def _taken_apart(self, source: Any) -> Recogniser:
        name = type(source).__name__
        if name == "EmailRecognizer":
            source = _offline(source, self._is_domain)
        return Recogniser(
            name=name,
            entity_type=source.supported_entities[0],
            context=tuple(word.lower() for word in source.context or ()),
            source=source,
            patterns=tuple(self._patterns(source, name)),
            gate=gates().get(name) if self._gated else None,
            words=_SIGNS.get(name) if self._gated else None,
        )

    def _patterns(self, source: Any, name: str) -> Iterator[_Pattern]:
        import regex
        from presidio_analyzer import PatternRecognizer

        if not isinstance(source, PatternRecognizer):
            return
        validated = type(source).validate_result is not PatternRecognizer.validate_result
        patterns: Any = getattr(source, "patterns")  # noqa: B009  # Presidio leaves its type open
        for pattern in patterns:
            # The quoted readings of a URL find the same URL with its quotation marks.
            if self._mended and name == "UrlRecognizer" and pattern.name.startswith("Quoted"):
                continue
            weak = self._gated and pattern.score < self._threshold and not validated
            sign = _sign(name, pattern) if self._gated else ""
            search = _grouped(pattern.regex) if self._gated and name == "UrlRecognizer" else pattern.regex
            yield _Pattern(regex.compile(search, source.global_regex_flags), pattern.score, weak, sign)

    def find(self, text: str, language: str, deadline: Deadline) -> list[Span]:
        """Spans at or above the threshold, without those inside another of their type. Raises
        :class:`Unscanned`."""
        if self._gated and not _could_match(text):
            return []
        found = [
            span
            for hits in self._raw(text, language, deadline)
            for span in self._in_context(text, language, *hits)
        ]
        sure = without_duplicates(span for span in found if span.score >= self._threshold)
        return list(self._mend(text, sure)) if self._mended else sure

    def _raw(self, text: str, language: str, deadline: Deadline) -> Iterator[tuple[Recogniser, list[Span]]]:
        clues = Clues(text)
        for recogniser in self._recognisers[language]:
            try:
                if recogniser.gate is not None and not recogniser.gate(clues):
                    continue
                hits = recogniser.hits(clues, deadline)
            except TimeoutError:
                raise Unscanned(f"{recogniser.name} ran out of time") from None
            except Unscanned:
                raise
            except Exception as error:
                # The message of a validator may quote the text: its class has to do.
                raise Unscanned(f"{recogniser.name} failed with {type(error).__name__}") from None
            if hits:
                yield recogniser, hits

    def _in_context(self, text: str, language: str, recogniser: Recogniser, hits: list[Span]) -> list[Span]:
        return self._contexts[language].lift(text, hits, recogniser.context)

    def _mend(self, text: str, spans: list[Span]) -> Iterator[Span]:
        """The spans with what is corrected of Presidio's, each an improvement: URLs (:func:`urls.mend`), patient
        numbers that are phone numbers, phone numbers that are written as such but not assigned, and assigned ones that
        are an amount, a book or a part of a sum."""
        if new := self._written(text, spans):
            spans = without_duplicates([*spans, *new])
        numbers = {span[:2] for span in spans if span.entity_type == "PHONE_NUMBER"}
        for span in spans:
            mended = urls.mend(text, span, self._is_domain) if span.entity_type == "URL" else span
            # Every eleventh phone number of ten digits passes the checksum of British patient numbers.
            by_chance = span.entity_type == "UK_NHS" and span[:2] in numbers and not _HEALTH.search(text)
            is_other = span.entity_type == "PHONE_NUMBER" and dialled.is_other(text, span.start, span.end)
            if mended is not None and not (by_chance or is_other):
                yield mended

    def _written(self, text: str, spans: Sequence[Span]) -> list[Span]:
        """Phone numbers by the way they are written, where nothing was found that explains all their digits."""
        return [
            Span(start, end, "PHONE_NUMBER", self._threshold)
            for start, end in dialled.written(text)
            if not any(span.start <= start and end <= span.end for span in spans)
        ]


def registered(language: str) -> list[Any]:
    """The recognisers that Presidio loads by default for a language, without the one that needs a model."""
    try:
        from presidio_analyzer import RecognizerRegistry
    except ImportError:
        raise MissingExtra("pii", "presidio-analyzer") from None
    registry = RecognizerRegistry(supported_languages=[language])
    registry.load_predefined_recognizers(languages=[language])
    found = [r for r in registry.recognizers if type(r).__name__ != "SpacyRecognizer"]
    for recogniser in found:
        _check_bounded(recogniser)
    return found


def _check_bounded(recogniser: Any) -> None:
    from presidio_analyzer import PatternRecognizer

    name = type(recogniser).__name__
    plain = (
        isinstance(recogniser, PatternRecognizer) and type(recogniser).analyze is PatternRecognizer.analyze
    )
    if not plain and name not in ("IbanRecognizer", "PhoneRecognizer"):
        raise UsageError(
            f"{name} searches in a way of its own, which cannot be stopped when it takes too long",
            where="[pii]",
            next="Install the version of presidio-analyzer that constraints.txt names",
        )


@lru_cache(maxsize=1)
def _suffix_list() -> Callable[[str], bool]:
    """Whether a text ends in a domain of the public suffix list, by the copy that tldextract brings along."""
    try:
        import tldextract
    except ImportError:
        raise MissingExtra("pii", "tldextract") from None
    extract = tldextract.TLDExtract(suffix_list_urls=(), cache_dir=None)
    return lambda text: extract(text).fqdn != ""


def _offline(source: Any, is_domain: Callable[[str], bool]) -> Any:
    """Presidio's e-mail recogniser with our copy of the suffix list: its own asks the network for one."""
    source.validate_result = is_domain
    return source
