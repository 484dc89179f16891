"""One text in, its spans out: folding, windows, layers, and the way back to the offsets of the text as given.

Fails closed. Whatever keeps a text from being scanned to its end (a detector that fails or runs out of time,
a listed layer that is missing, a language outside the rule, too long a text) raises :class:`Unscanned`; there
is no partial answer.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Protocol, runtime_checkable

from curation.errors import UsageError
from curation.pii import dialled, labels, models, outside, presidio
from curation.pii.fold import encoded, fold, unwrapped
from curation.pii.patterns import Deadline, Layer, PatternLayer
from curation.pii.rule import ScrubRule
from curation.pii.spans import Span, Unscanned, resolve

TERM = "TERM"
"""The entity type of what a rule's ``deny`` lists."""

ENCODED = "ENCODED"
"""The entity type of a base64 word that holds personal data."""

# What may be taken from a text without its line breaks: types whose format or checksum is proof enough.
_PROVEN = frozenset({"CREDIT_CARD", "IBAN_CODE", "EMAIL_ADDRESS", "UUID", "CRYPTO", "US_SSN"})


@runtime_checkable
class Together(Protocol):
    """A layer that looks at several texts for less than at each, and finds in each what it would find in it alone."""

    def find_all(self, texts: Sequence[str], language: str, deadline: Deadline) -> list[list[Span]]:
        """What :meth:`curation.pii.patterns.Layer.find` finds in each of the texts."""
        ...


Ahead = Mapping[tuple[int, str, str], list[Span]]
"""What was found already, by the number of the layer, the language and the text."""


def _patterns(rule: ScrubRule) -> Layer:
    if not any(told and told[0] == "spacy" for told in map(outside.split, rule.layers)):
        presidio.import_alone()
    return PatternLayer(rule.languages, threshold=rule.threshold)


def _names(rule: ScrubRule) -> Layer:
    from curation.pii.names import NamesLayer

    return NamesLayer()


LAYERS: dict[str, Callable[[ScrubRule], Layer]] = {"patterns": _patterns, "names": _names}
"""How each built-in layer is made from a rule; :mod:`curation.pii.models` makes those of models from outside."""


def layer_of(name: str, rule: ScrubRule) -> Layer:
    """The layer of a name. Raises :class:`UsageError`, :class:`MissingExtra` among them, where it cannot be used."""
    if name in LAYERS:
        return LAYERS[name](rule)
    return models.load(name, rule.threshold)


class Scanner:
    """The layers of a rule, ready to scan. ``missing`` says why a listed layer is not there; then nothing
    passes. ``notes`` names the labels of models that no type of ours is known for.

    Raises :class:`curation.errors.MissingExtra` without the packages of a layer.
    """

    def __init__(self, rule: ScrubRule) -> None:
        self.rule = rule
        self.missing: list[str] = []
        self.notes: list[str] = []
        self._layers: list[Layer] = []
        for name in rule.layers:
            self._add(name)
        self._deny = _terms(rule.deny)
        self._allow = frozenset(fold(value).text.casefold() for value in rule.allow)

    def _add(self, name: str) -> None:
        try:
            layer = layer_of(name, self.rule)
        except UsageError as error:
            if name in LAYERS:
                raise
            self.missing.append(str(error))
            return
        self._layers.append(layer)
        if own := labels.unknown(getattr(layer, "labels", ())):
            self.notes.append(f"layer {name!r}: {labels.TOLD_UNKNOWN}: {', '.join(own)}")

    def scan(self, text: str, language: str | None = None) -> list[Span]:
        """Spans that do not overlap, in text order; offsets in code points of ``text``. An empty text has
        none.

        Without a language the text is scanned in every language of the rule. Raises :class:`Unscanned`.
        """
        return self._scan(text, language, {})

    def scan_all(self, texts: Sequence[tuple[str, str | None]]) -> list[list[Span] | Unscanned]:
        """What :meth:`scan` says of each text in its language, or why it could not be scanned.

        Layers that can are shown the texts together first. Where that fails, each text is looked at by itself, so
        that one that cannot be scanned holds no other back.
        """
        ahead = self._look_ahead(texts) if len(texts) > 1 and not self.missing else {}
        found: list[list[Span] | Unscanned] = []
        for text, language in texts:
            try:
                found.append(self._scan(text, language, ahead))
            except Unscanned as error:
                found.append(error)
        return found

    def _look_ahead(self, texts: Sequence[tuple[str, str | None]]) -> Ahead:
        by_language: dict[str, dict[str, None]] = {}
        for text, language in texts:
            if len(text) <= self.rule.window:
                for name in self.rule.languages if language is None else (_primary(language),):
                    by_language.setdefault(name, {}).update(dict.fromkeys(_readings(text)))
        ahead: dict[tuple[int, str, str], list[Span]] = {}
        for number, layer in enumerate(self._layers):
            if isinstance(layer, Together):
                for language, some in by_language.items():
                    for text, spans in self._ask_together(layer, list(some), language):
                        ahead[number, language, text] = spans
        return ahead

    def _ask_together(
        self, layer: Together, texts: list[str], language: str
    ) -> Iterator[tuple[str, list[Span]]]:
        """Texts with what the layer found; none where it failed, as in a language that it does not know: the text to
        blame will say so when it is asked about alone."""
        try:
            found = layer.find_all(texts, language, Deadline(self.rule.time_limit * len(texts)))
        except Exception:
            return
        yield from zip(texts, found, strict=True)

    def _scan(self, text: str, language: str | None, ahead: Ahead) -> list[Span]:
        languages = self._languages(language)
        if self.missing:
            raise Unscanned("; ".join(self.missing))
        if len(text) > self.rule.longest:
            raise Unscanned(
                f"{len(text):,} characters are more than the {self.rule.longest:,} that are scanned"
            )
        deadline = Deadline(self.rule.time_limit)
        spans = [span for name in languages for span in self._read(text, name, deadline, ahead)]
        return resolve(spans, self.rule.kept) if spans else []

    def _languages(self, language: str | None) -> Sequence[str]:
        if language is None:
            return self.rule.languages
        primary = _primary(language)
        if primary not in self.rule.languages:
            raise Unscanned(f"language {language[:35]!r} is not one of {', '.join(self.rule.languages)}")
        return (primary,)

    def _read(self, text: str, language: str, deadline: Deadline, ahead: Ahead) -> Iterator[Span]:
        """Every reading of the text: folded, without line breaks, and inside its base64 words."""
        folded = fold(text)
        for span in self._not_allowed(folded.text, self._windows(folded.text, language, deadline, ahead)):
            yield span.at(*folded.back(span.start, span.end))
        if (joined := unwrapped(folded.text)) is not None:
            flat, joins = joined
            for span in self._windows(flat.text, language, deadline, ahead):
                start, end = flat.back(span.start, span.end)
                if _is_proven(span, flat.text) and any(start < join < end for join in joins):
                    yield span.at(*folded.back(start, end))
        for start, end, inside in encoded(folded.text):
            if found := self._windows(inside, language, deadline, ahead):
                score = max(span.score for span in found)
                yield Span(*folded.back(start, end), ENCODED, score)

    def _not_allowed(self, text: str, spans: list[Span]) -> list[Span]:
        """The spans without allowed values and what lies inside one, such as the host of an address."""
        if not self._allow:
            return spans
        free = [s for s in spans if text[s.start : s.end].casefold() in self._allow]
        return [s for s in spans if not any(f.start <= s.start and s.end <= f.end for f in free)]

    def _windows(self, text: str, language: str, deadline: Deadline, ahead: Ahead) -> list[Span]:
        """Spans of a text of any length. Each window answers for what starts in it, the overlap's halves
        apart."""
        if len(text) <= self.rule.window:
            return self._look(text, language, deadline, ahead)
        step, half = self.rule.window - self.rule.overlap, self.rule.overlap // 2
        found: list[Span] = []
        for start in range(0, max(1, len(text) - self.rule.overlap), step):
            end = min(start + self.rule.window, len(text))
            first = start + half if start else 0
            last = end - half if end < len(text) else len(text)
            spans = self._look(text[start:end], language, deadline, ahead)
            moved = (s.at(s.start + start, s.end + start) for s in spans)
            found += [_to_word_end(s, text) if s.end == end else s for s in moved if first <= s.start < last]
        return found

    def _look(self, text: str, language: str, deadline: Deadline, ahead: Ahead) -> list[Span]:
        deadline.left()
        found: list[Span] = []
        for number, layer in enumerate(self._layers):
            known = ahead.get((number, language, text))
            spans = self._ask(layer, text, language, deadline) if known is None else known
            found += [_with_extension(s, text) if s.entity_type == "PHONE_NUMBER" else s for s in spans]
        if self._deny is not None:
            found += [Span(*match.span(), TERM, 1.0) for match in self._deny.finditer(text)]
        return found

    @staticmethod
    def _ask(layer: Layer, text: str, language: str, deadline: Deadline) -> list[Span]:
        try:
            return layer.find(text, language, deadline)
        except Unscanned:
            raise
        except Exception as error:
            raise Unscanned(f"{type(layer).__name__} failed with {type(error).__name__}") from None


def _readings(text: str) -> Iterator[str]:
    """What is looked at of a text in any case: itself, folded, and without line breaks inside numbers."""
    folded = fold(text).text
    yield folded
    if (joined := unwrapped(folded)) is not None:
        yield joined[0].text


def _primary(language: str | None) -> str:
    """The language of a tag, without region: "en" of "en-GB"; empty without a tag."""
    return (language or "").replace("_", "-").split("-")[0].lower()


def _with_extension(span: Span, text: str) -> Span:
    return span.at(span.start, dialled.with_extension(text, span.end))


def _terms(terms: Sequence[str]) -> re.Pattern[str] | None:
    if not terms:
        return None
    longest_first = sorted(
        (re.escape(fold(term).text) for term in terms), key=lambda term: (-len(term), term)
    )
    return re.compile(rf"(?<!\w)(?:{'|'.join(longest_first)})(?!\w)", re.IGNORECASE)


def _is_proven(span: Span, text: str) -> bool:
    with_country = span.entity_type == "PHONE_NUMBER" and text[span.start] == "+"
    return with_country or (span.entity_type in _PROVEN and span.score >= 0.5)


_WORD_END = re.compile(r"\S*")


def _to_word_end(span: Span, text: str) -> Span:
    """A span that reached the end of its window, grown to the end of its word: it may have been cut there."""
    match = _WORD_END.match(text, span.end)
    return span.at(span.start, match.end() if match else span.end)
