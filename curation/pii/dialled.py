"""What is written as a telephone number, and what is only made of the same digits.

Presidio's search asks which numbers were given out; here only the writing counts: the national and international
notations of ITU-T E.123 and the habits of countries, alone or after a word such as "phone". People mistype, and a number
may be newer than the list of what is assigned.

Refused: numbers of fewer than five digits, be a telephone spoken of or not, and of more than E.164 allows.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

# In order: any country's after a plus; North America's 3-3-4, with a separator that accounts do not use or an area code in
# brackets; a national one whose area code, a 0 and two to four digits, stands in brackets or before a space or a slash: no
# date has one, and part numbers are parted by hyphens. Groups of digits are told apart by what stands between them, so
# that a search has one way to read them.
_AFTER_PLUS = r"\+[1-9]\d{0,14}(?:[ .\-/]\d{1,8}|[ .\-/]?\(\d{1,5}\)\d{0,8}){0,7}"
_NORTH_AMERICAN = r"(?:\+?1[ .\-]|001[ .\-])?(?:\(\d{3}\)[ .\-]?\d{3}[ .\-]\d{4}|\d{3}([.\-])\d{3}\1\d{4})"
_FROM_ZERO = r"(?:\(0\d{2,4}\) ?|0\d{2,4}[ /])\d{2,8}(?:[ \-]\d{2,4}){0,3}"
# Without a 0 or a plus the groups must be those of telephones: 3-3-3, 3-4-4 and their like, or four or five pairs.
_GROUPED = (
    r"\d{3} \d{3} \d{3}|\d{2} \d{3} \d{4}|\d{2} \d{4} \d{4}|\d{3} \d{4} \d{4}|\d{3} \d{2} \d{2} \d{2}|\d{3} \d{2} \d{3}"
    r"|\d{3} \d{7}|\d{2}(?P<apart>[ .\-])\d{2}(?:(?P=apart)\d{2}){2,3}"
)
_START, _STOP = r"(?<![\w.\-+/(])(?<!\d )", r"(?=x\d|(?![\-./]?\w))"
_WRITTEN = re.compile(
    rf"{_START}(?:{_AFTER_PLUS}|{_NORTH_AMERICAN}|{_FROM_ZERO}|(?P<bare>{_GROUPED})(?! \d)){_STOP}", re.ASCII
)
_FEWEST, _FEWEST_BARE, _MOST = 9, 8, 15

# After a word of telephones any grouping will do, and five digits are enough: several countries have no more.
_ANY = re.compile(
    rf"(?<![\w.,\-+/($€£])(?<!\d )\(?\d{{1,6}}\)?(?:[ .\-/]?\(?\d{{1,8}}\)?){{0,6}}(?! \d){_STOP}", re.ASCII
)
_FEWEST_TOLD = 5
# On a line of its own two groups are enough, as below a name in a signature, but not in a column of numbers.
_LINE = re.compile(r"^[ \t]*(\(?\d{1,5}\)?(?:[ .\-]\(?\d{2,8}\)?){1,4})[ \t]*$", re.ASCII | re.MULTILINE)
_FEWEST_ON_LINE = 6
_COLUMN = re.compile(r"[\d\s.,+\-]*\d[\d\s.,+\-]*")
_FIVE_NEAR = re.compile(r"\d(?:[^\dA-Za-z]{0,3}\d){4}")
_TOLD = re.compile(
    r"\b(?:phones?|phoned|telephone|tel|mobile|cell|cellphone|fax|landline|hotline|whatsapp|sms|voicemail|pager|call(?:ed|ing)?"
    r"|ring|rang|dial(?:l?ed|l?ing)?|reach(?:ed)?|text(?:ed)?|contact)\b"
    r"(?:\W|\b(?:numbers?|no|num|nr|is|was|me|us|him|her|them|back|at|on|under|to|via|by|the|my|our|his|their|your|new|old"
    r"|details|are|same|other|home|work|office|private|direct|line|now|still|here|phone|mobile|cell|and|or)\b){0,16}$",
    re.IGNORECASE,
)
_TOLD_WITHIN = 48

_LONGER = re.compile(r",? ?(?:x|ext\.?|extension|#) ?:?\d{1,6}\b", re.IGNORECASE | re.ASCII)

# What is no telephone number: ISBN-13 (ISO 2108) and ISBN-10 in their four groups, of which the last is one check digit;
# a decimal number, be it a price or a coordinate; thousands parted by commas; dates in numbers.
_OTHER = re.compile(
    r"97[89][ \-]?\d(?:[ \-]?\d){9}|\d{1,5}([ \-])\d{1,7}\1\d{1,7}\1[\dXx]|\d{1,3}\.\d{5,}|\d+[.,]\d{1,2}"
    r"|\d{1,3}(?:,\d{3})+(?:\.\d+)?"
    r"|(?:0?[1-9]|[12]\d|3[01])([.\-/ ])(?:0?[1-9]|1[0-2])\2(?:(?:19|20)\d\d|\d\d)"
    r"|(?:0?[1-9]|1[0-2])([.\-/ ])(?:0?[1-9]|[12]\d|3[01])\3(?:(?:19|20)\d\d|\d\d)"
    r"|(?:19|20)\d\d([.\-/ ])(?:0?[1-9]|1[0-2])\4(?:0?[1-9]|[12]\d|3[01])",
    re.ASCII,
)
# Two years may also be a telephone number of Hong Kong or Singapore, but only where one is spoken of.
_YEARS = re.compile(r"(?:1\d|20)\d\d[ \-/](?:1\d|20)\d\d", re.ASCII)
# Arithmetic and money: signs of equations, a spaced minus twice, and a plus with the same on either side; that of a
# telephone number stands by its digits and apart from what is before.
_SUM = re.compile(r"[<>=*×÷]|\d(?:\+| \+ )\d|\d [\-–] \d+ [\-–] ")
_SUM_BEFORE = re.compile(r"(?:(?<!\w)[\d.,]*\d(?: ?[=*×÷] ?|\+| \+ )|(?:<<|>>|[$€£]) ?)$")
_SUM_WITHIN = 16
_SUM_AFTER = re.compile(r" ?(?:[=*×÷%€]|<<|/ ?\d+ ?=)|(?:\+| \+ )\d")
_GROUP = re.compile(r"\d+")

# What a model may leave of a number's beginning and end.
_BEFORE = re.compile(r"(?<![\w.\-])(?:\d{1,5}[.,\-])+$", re.ASCII)
_AFTER = re.compile(r"(?:[.,]\d+|[ \-][\dXx](?!\w))*", re.ASCII)
_SPOKEN_OF = re.compile(
    r"\b(?:phones?|telephoned?|tel|mobile|cell|fax|call|called|calls|calling|ring|rang|dial|dialled|dialed|reach|text|texted"
    r"|sms|whatsapp|signal|contact|hotline|landline|voicemail|pager|(?:my|his|her|their|our|your|the|this) number|number is)\b",
    re.IGNORECASE,
)
_NEAR = 60
_WORD = re.compile(r"[^\W\d_]+")
_SHORT_ANSWER = 3
_DIGIT = re.compile(r"\d")


def written(text: str) -> Iterator[tuple[int, int]]:
    """Start and end of what is written as a telephone number is, in order, then of what is said to be one.

    Nine to fifteen digits (E.164), eight where the groups are the only sign, six on a line of its own, five where somebody
    speaks of a telephone.
    """
    for match in _WRITTEN.finditer(text):
        bare = match["bare"] is not None
        if _digits(match.group(), _FEWEST_BARE if bare else _FEWEST) and not (
            bare and is_other(text, *match.span())
        ):
            yield match.span()
    if _FIVE_NEAR.search(text):
        yield from _told(text)
        yield from _on_a_line(text)


def _told(text: str) -> Iterator[tuple[int, int]]:
    for match in _ANY.finditer(text):
        start, end = match.span()
        if (
            _digits(match.group(), _FEWEST_TOLD)
            and _TOLD.search(text, max(0, start - _TOLD_WITHIN), start)
            and not is_other(text, start, end)
        ):
            yield start, end


def _on_a_line(text: str) -> Iterator[tuple[int, int]]:
    for match in _LINE.finditer(text):
        start, end = match.span(1)
        if _digits(match[1], _FEWEST_ON_LINE) and not (
            is_other(text, start, end) or _YEARS.fullmatch(match[1]) or _in_column(text, *match.span())
        ):
            yield start, end


def _in_column(text: str, start: int, end: int) -> bool:
    """Whether the line before or behind a line is made of numbers, too."""
    before, after = text[:start].rstrip("\n").rpartition("\n")[2], text[end:].lstrip("\n").partition("\n")[0]
    return _COLUMN.fullmatch(before) is not None or _COLUMN.fullmatch(after) is not None


def _digits(number: str, fewest: int) -> bool:
    return fewest <= len(_DIGIT.findall(number)) <= _MOST


def may_be_meant(text: str, start: int, end: int) -> bool:
    """Whether what a model takes for a telephone number may be one, by how it is written.

    ISBNs, decimal numbers, sums and rows of small numbers are none. Digits alone and two years say nothing by their form,
    so they need a word of telephones within 60 characters, or to be nearly the whole text: the answer to a question.

    >>> [may_be_meant(f"see {n}", 4, 4 + len(n)) for n in ("978-0-306-40615-7", "52.37403", "300+555", "555-1234")]
    [False, False, False, True]
    """
    if is_other(text, start, end) or _is_row(text[start:end]):
        return False
    value = text[start:end]
    if not (_with_rest(text, start, end).isdecimal() or _YEARS.fullmatch(value)):
        return True
    if _SPOKEN_OF.search(text, max(0, start - _NEAR), end + _NEAR):
        return True
    return len(_WORD.findall(text)) <= _SHORT_ANSWER or _stands_alone(text, start, end)


def is_other(text: str, start: int, end: int) -> bool:
    """Whether the digits are those of something else that has a form: a book, an amount, a date, a sum."""
    if _OTHER.fullmatch(_with_rest(text, start, end)) or _SUM.search(text, start, end):
        return True
    return (
        _SUM_BEFORE.search(text, max(0, start - _SUM_WITHIN), start) is not None
        or _SUM_AFTER.match(text, end) is not None
    )


def _with_rest(text: str, start: int, end: int) -> str:
    """The number with what was left of its beginning and end."""
    before, after = _BEFORE.search(text[max(0, start - _NEAR) : start]), _AFTER.match(text, end)
    return f"{before.group() if before else ''}{text[start:end]}{after.group() if after else ''}"


def _stands_alone(text: str, start: int, end: int) -> bool:
    """Whether the number has a line to itself, beside lines of something else."""
    first, last = text.rfind("\n", 0, start) + 1, text.find("\n", end)
    last = len(text) if last < 0 else last
    return text[first:last].strip() == text[start:end] and not _in_column(text, first, last)


def _is_row(value: str) -> bool:
    """Whether these are numbers in a row: single digits among longer groups, where a telephone number has at most
    one, its country's or its trunk's, or is spelled in nothing else. A plus or a bracket is a sign of telephones."""
    if "+" in value or "(" in value:
        return False
    single = [len(group) == 1 for group in _GROUP.findall(value)]
    return sum(single[1:]) > 1 and not all(single)


def with_extension(text: str, end: int) -> int:
    """Where a number that ends at ``end`` ends with its extension: "x12", "ext. 12"."""
    match = _LONGER.match(text, end)
    return match.end() if match else end
