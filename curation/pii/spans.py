"""Where personal data was found: spans, how overlapping ones become one, and how a span is cut out of a text.

Offsets are Unicode code points of the text as it was given. Nothing here detects anything, and nothing here
changes a character outside a span.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple


class Span(NamedTuple):
    """Characters ``start`` to ``end`` (exclusive) that look like an ``entity_type``, with a score from 0
    to 1."""

    start: int
    end: int
    entity_type: str
    score: float

    def at(self, start: int, end: int) -> Span:
        """The same finding at other offsets."""
        return Span(start, end, self.entity_type, self.score)


class Edit(NamedTuple):
    """A span and the text that takes its place."""

    start: int
    end: int
    entity_type: str
    score: float
    replacement: str


class Mark(NamedTuple):
    """A text that somebody marked as personal data in a record, and the type of it."""

    text: str
    entity_type: str


class Unscanned(Exception):
    """A text that could not be scanned to its end; it must not pass as clean. The reason names no text."""


def _longest_first(span: Span) -> tuple[int, float, int, str]:
    return (span.start - span.end, -span.score, span.start, span.entity_type)


def _merged(group: list[Span]) -> Span:
    """One span over a whole overlapping group, of the type that explains most of it."""
    if len(group) == 1:
        return group[0]
    best = min(group, key=_longest_first)
    return Span(min(s.start for s in group), max(s.end for s in group), best.entity_type, best.score)


def groups(spans: Iterable[Span]) -> list[list[Span]]:
    """Spans in groups that overlap, directly or through others, in text order; spans that only touch stay
    apart."""
    found: list[list[Span]] = []
    reach = -1
    for span in sorted(spans):
        if found and span.start < reach:
            found[-1].append(span)
        else:
            found.append([span])
        reach = max(reach, span.end)
    return found


def overlaps(a: Span | Edit, b: Span | Edit) -> bool:
    """Whether two spans share a character."""
    return a.start < b.end and b.start < a.end


def resolve(spans: Iterable[Span], kept: Collection[str] = ()) -> list[Span]:
    """Spans that do not overlap, in text order, that together cover every character of the given ones.

    An overlapping group becomes one span over all of it, so that no end of the loser stays readable; its type
    is that of its longest member, then of the surest, then of the first by name. Spans of the ``kept`` types
    are not going to be replaced, so they give way wherever they overlap one that is. The order of the input
    does not matter.
    """
    spans = [span for span in spans if span.end > span.start]
    replaced = [_merged(group) for group in groups(s for s in spans if s.entity_type not in kept)]
    left = [_merged(group) for group in groups(s for s in spans if s.entity_type in kept)]
    free = [span for span in left if not any(overlaps(span, other) for other in replaced)]
    return sorted(replaced + free)


def without_duplicates(spans: Iterable[Span]) -> list[Span]:
    """Drop a span inside another of its own type with the same or a better score; sorted by text order."""
    kept: list[Span] = []
    for span in sorted(set(spans), key=lambda s: (s.entity_type, s.start, -s.end, -s.score)):
        if not any(_covers(other, span) for other in kept):
            kept.append(span)
    return sorted(kept)


def _covers(outer: Span, inner: Span) -> bool:
    inside = outer.start <= inner.start and inner.end <= outer.end
    return inside and outer.entity_type == inner.entity_type and inner.score <= outer.score


def cut(text: str, edits: Sequence[Edit]) -> str:
    """``text`` with every edit applied; the edits are in text order and do not overlap.

    >>> cut("call 555 now", [Edit(5, 8, "PHONE_NUMBER", 1.0, "<PHONE>")])
    'call <PHONE> now'
    """
    parts, at = [], 0
    for edit in edits:
        parts += [text[at : edit.start], edit.replacement]
        at = edit.end
    return "".join([*parts, text[at:]])


def placed(edits: Sequence[Edit]) -> list[tuple[int, int]]:
    """Where each replacement lies in the text that :func:`cut` returns."""
    places, shift = [], 0
    for edit in edits:
        start = edit.start + shift
        places.append((start, start + len(edit.replacement)))
        shift += len(edit.replacement) - (edit.end - edit.start)
    return places


def uncut(edits: Sequence[Edit], start: int, end: int) -> tuple[int, int]:
    """The range of the original text behind ``start`` to ``end`` of the cut one; it grows to whole edits
    it touches."""
    shift, first, last = 0, None, None
    for edit in edits:
        at, to = edit.start + shift, edit.start + shift + len(edit.replacement)
        if first is None and start < to:
            first = edit.start if start >= at else start - shift
        if end <= to:
            last = edit.end if end > at else end - shift
            break
        shift += len(edit.replacement) - (edit.end - edit.start)
    return (start - shift if first is None else first, end - shift if last is None else last)
