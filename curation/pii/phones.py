"""Phone numbers: Presidio's search over its regions, with the work shared between them and the hopeless left
out.

The search itself is phonenumbers' own. A number of fewer than seven digits is not looked for: German pager
numbers would otherwise claim every "1640".
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from functools import cache, lru_cache
from typing import Any

FEWEST_DIGITS = 7

_SEVEN = re.compile(r"(?:\d\D{0,24}?){6}\d")
_DIGIT = re.compile(r"\d")
_EXTENSION = re.compile(r"[^\W\d_]|[#;,~]")


def possible(text: str) -> bool:
    """Whether the text holds digits enough, near enough to each other, for any phone number."""
    return _SEVEN.search(text) is not None


def enough_digits(number: str) -> bool:
    """Whether a match has the digits of a phone number."""
    return len(_DIGIT.findall(number)) >= FEWEST_DIGITS


def search(
    text: str, regions: Sequence[str], leniency: int, tick: Callable[[], object] = lambda: None
) -> Iterator[tuple[int, int]]:
    """Start and end of every valid number of any of the ``regions``, duplicates included.

    phonenumbers looks for the same candidates in every region; here each candidate is found once and shown to
    the regions in turn, until one takes all of it. A character on either side goes along, because it can
    disqualify. ``tick`` is called before each candidate is shown to a region, and may raise.
    """
    for start, end in _candidates(text):
        before = max(0, start - 1)
        piece = text[before : end + 3]
        settled: dict[tuple[str, int], Any] = {}
        for region in _hopeful(piece, tuple(regions), leniency):
            tick()
            taken = False
            for match in _matcher()(piece, region, leniency, settled):
                yield before + match.start, before + match.end
                taken = taken or (before + match.start <= start and before + match.end >= end)
            if taken:
                break


def _candidates(text: str) -> Iterator[tuple[int, int]]:
    """What phonenumbers would try, where it has the digits for it."""
    from phonenumbers import phonenumbermatcher

    for match in phonenumbermatcher._PATTERN.finditer(text):
        if enough_digits(match.group()):
            yield match.span()


def _hopeful(piece: str, regions: tuple[str, ...], leniency: int) -> list[str]:
    """The regions in which some part of the candidate has the shape of a number.

    As long as nothing matches, every region is shown the same parts: they are collected once.
    """
    tried: dict[str, None] = {}
    for _ in _collector()(piece, leniency, tried):
        pass
    parts = [part for part in tried if enough_digits(part)]
    if any(_is_free(part) for part in parts):
        return list(regions)
    digits = ["".join(_DIGIT.findall(part)) for part in parts]
    return [region for region in regions if any(_shape(region).fullmatch(number) for number in digits)]


def _is_free(part: str) -> bool:
    """Whether the digits alone do not tell: a plus brings its own country, a letter or sign may start an
    extension."""
    return "+" in part or "\uff0b" in part or _EXTENSION.search(part) is not None


_PLUS = re.compile(r"[^\d+\uff0b]*[+\uff0b]\D*(\d{1,3})")


def _names_its_country(candidate: str) -> bool:
    """Whether the number starts with a plus and a country code that exists; then the region has no say."""
    from phonenumbers import COUNTRY_CODE_TO_REGION_CODE

    code = _PLUS.match(candidate)
    return code is not None and any(int(code[1][:n]) in COUNTRY_CODE_TO_REGION_CODE for n in (1, 2, 3))


@cache
def _shape(region: str) -> re.Pattern[str]:
    """What the digits of a number dialled in ``region`` must look like to be valid: after its
    international prefix anything, else country code and national prefix, both optional, and the general
    form of its numbers."""
    from phonenumbers import COUNTRY_CODE_TO_REGION_CODE, PhoneMetadata

    here: Any = PhoneMetadata.metadata_for_region(region, None)
    sharing: list[Any] = [
        PhoneMetadata.metadata_for_region(r, None) for r in COUNTRY_CODE_TO_REGION_CODE[here.country_code]
    ]
    numbers = "|".join(f"(?:{m.general_desc.national_number_pattern})" for m in sharing if m is not None)
    prefix = here.national_prefix_for_parsing or ""
    # A transform rule rewrites what follows the prefix, so nothing can be said about it.
    rewritten = (
        rf"|(?:{here.country_code})?(?:{prefix})\d*" if prefix and here.national_prefix_transform_rule else ""
    )
    abroad = rf"(?:{here.international_prefix})\d*" if here.international_prefix else r"(?!)"
    # A national prefix is taken off once before the country code is settled and once after.
    return re.compile(rf"{abroad}|(?:{here.country_code})?(?:{prefix}){{0,2}}(?:{numbers}){rewritten}")


@lru_cache(maxsize=1)
def _matcher() -> Any:
    from phonenumbers import PhoneNumberMatcher

    class Matcher(PhoneNumberMatcher):
        """phonenumbers' matcher for one region; ``settled`` holds what is the same in every region."""

        def __init__(
            self, text: str, region: str, leniency: int, settled: dict[tuple[str, int], Any]
        ) -> None:
            super().__init__(text, region, leniency=leniency)
            self._settled = settled

        def _parse_and_verify(self, candidate: str, offset: int) -> Any:
            digits = "".join(_DIGIT.findall(candidate))
            if len(digits) < FEWEST_DIGITS:
                return None
            if _names_its_country(candidate):
                if (candidate, offset) not in self._settled:
                    self._settled[candidate, offset] = super()._parse_and_verify(candidate, offset)
                return self._settled[candidate, offset]
            if not _is_free(candidate) and not _shape(self.preferred_region).fullmatch(digits):
                return None
            return super()._parse_and_verify(candidate, offset)

    return Matcher


@lru_cache(maxsize=1)
def _collector() -> Any:
    from phonenumbers import PhoneNumberMatcher

    class Collector(PhoneNumberMatcher):
        """A matcher that accepts nothing and writes down what it was shown."""

        def __init__(self, text: str, leniency: int, tried: dict[str, None]) -> None:
            super().__init__(text, "ZZ", leniency=leniency)
            self._tried = tried

        def _parse_and_verify(self, candidate: str, offset: int) -> Any:
            self._tried[candidate] = None
            return None

    return Collector
