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
        whole = text[start:end]
        # Digits alone are tried as they are, unless the search for candidates had to break a longer run.
        if whole.isdecimal() and not text[before:start].isdecimal():
            free, numbers = False, [whole]
        else:
            free, numbers = _parts(piece, leniency)
        settled: dict[tuple[str, int], Any] = {}
        for region in regions:
            tick()
            if not free and not any(_is_valid(number, region, leniency) for number in numbers):
                continue
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


def _parts(piece: str, leniency: int) -> tuple[bool, list[str]]:
    """Whether a part of the candidate says more than its digits do, and the digits of all others.

    As long as nothing matches, every region is shown the same parts: they are collected once.
    """
    tried: dict[str, None] = {}
    for _ in _collector()(piece, leniency, tried):
        pass
    parts = [part for part in tried if enough_digits(part)]
    free = any(_is_free(part) for part in parts)
    return free, [] if free else [_digits(part) for part in parts]


def _digits(part: str) -> str:
    return "".join(_DIGIT.findall(part))


@lru_cache(maxsize=1 << 14)
def _is_valid(number: str, region: str, leniency: int) -> bool:
    """Whether digits without any sign are a number dialled in ``region``, by phonenumbers' own verdict.

    Its parser looks at nothing else of a candidate that holds neither a plus nor a letter. Only numbers that are to be
    valid are judged here; how their digits are grouped, which a stricter search asks for, is for the matcher to say.
    """
    from phonenumbers import Leniency, NumberParseException, PhoneNumberMatcher, parse, phonenumbermatcher

    if leniency != Leniency.VALID:
        return True
    if not _shape(region).fullmatch(number) or _lacks_prefix(number, region):
        return False
    try:
        read = parse(number, region, keep_raw_input=True)
    except NumberParseException:
        return False
    return bool(phonenumbermatcher._verify(leniency, read, number, PhoneNumberMatcher(number, region)))


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


# A number is valid where it is one of these.
_KINDS = (
    *("fixed_line", "mobile", "toll_free", "premium_rate", "shared_cost"),
    *("personal_number", "voip", "pager", "uan", "voicemail"),
)


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
    kinds = [getattr(m, kind) for m in sharing if m is not None for kind in _KINDS]
    patterns = {k.national_number_pattern for k in kinds if k is not None and k.national_number_pattern}
    numbers = "|".join(f"(?:{pattern})" for pattern in sorted(patterns))
    prefix = here.national_prefix_for_parsing or ""
    # A transform rule rewrites what follows the prefix, so nothing can be said about it.
    rewritten = (
        rf"|(?:{here.country_code})?(?:{prefix})\d*" if prefix and here.national_prefix_transform_rule else ""
    )
    abroad = rf"(?:{here.international_prefix})\d*" if here.international_prefix else r"(?!)"
    # A national prefix is taken off once before the country code is settled and once after.
    return re.compile(rf"{abroad}|(?:{here.country_code})?(?:{prefix}){{0,2}}(?:{numbers}){rewritten}")


def _lacks_prefix(number: str, region: str) -> bool:
    """Whether the digits can only be a number without a prefix, of a form that is never written without one."""
    prefixed, forms = _forms(region)
    if prefixed.match(number):
        return False
    for leading, whole, needs_prefix in forms:
        if leading.match(number) and whole.fullmatch(number):
            return needs_prefix
    return False


@cache
def _forms(region: str) -> tuple[re.Pattern[str], list[tuple[re.Pattern[str], re.Pattern[str], bool]]]:
    """How a number with a prefix of any kind starts in ``region``; and its forms in order: leading digits, whole
    number, and whether the national prefix has to be there. The first form that fits counts."""
    from phonenumbers import PhoneMetadata, region_code_for_country_code

    here: Any = PhoneMetadata.metadata_for_region(region, None)
    main: Any = PhoneMetadata.metadata_for_region(region_code_for_country_code(here.country_code), None)
    prefixes = [here.international_prefix, here.national_prefix_for_parsing, str(here.country_code)]
    prefixed = re.compile("|".join(f"(?:{prefix})" for prefix in prefixes if prefix))
    return prefixed, [
        (
            re.compile((form.leading_digits_pattern or [""])[-1]),
            re.compile(form.pattern),
            _asks_for_prefix(form),
        )
        for form in main.number_format
    ]


def _asks_for_prefix(form: Any) -> bool:
    """A rule that is the first group alone, or in brackets, asks for no prefix."""
    rule = form.national_prefix_formatting_rule
    optional = form.national_prefix_optional_when_formatting
    return bool(rule) and not optional and re.fullmatch(r"\(?\\1\)?", rule) is None


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
            digits = _digits(candidate)
            if len(digits) < FEWEST_DIGITS:
                return None
            if _names_its_country(candidate):
                if (candidate, offset) not in self._settled:
                    self._settled[candidate, offset] = super()._parse_and_verify(candidate, offset)
                return self._settled[candidate, offset]
            if not _is_free(candidate) and not _is_valid(digits, self.preferred_region, self.leniency):
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
