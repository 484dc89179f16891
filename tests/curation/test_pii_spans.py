"""Spans, offsets and folding: pure functions, checked on random input."""

from __future__ import annotations

import random
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from curation.pii.fold import fold, unwrapped
from curation.pii.spans import Edit, Span, cut, placed, resolve, uncut, without_duplicates

TYPES = ("EMAIL_ADDRESS", "PHONE_NUMBER", "URL", "DATE_TIME")
spans = st.lists(
    st.builds(
        lambda start, length, kind, score: Span(start, start + length, kind, score),
        st.integers(0, 60),
        st.integers(1, 25),
        st.sampled_from(TYPES),
        st.sampled_from((0.4, 0.5, 0.85, 1.0)),
    ),
    max_size=12,
)


def random_spans(draw: random.Random, length: int) -> list[Span]:
    found = []
    for _ in range(draw.randint(0, 8)):
        start = draw.randrange(length)
        end = min(length, start + draw.randint(1, 15))
        found.append(Span(start, end, draw.choice(TYPES), draw.choice((0.4, 0.85, 1.0))))
    return found


def violations(text: str, found: list[Span], resolved: list[Span]) -> list[str]:
    """What is wrong with a resolution and the text cut by it."""
    wrong = []
    if any(a.end > b.start for a, b in pairwise(resolved)):
        wrong.append("overlap")
    covered = {i for s in resolved for i in range(s.start, s.end)}
    if covered != {i for s in found for i in range(s.start, s.end)}:
        wrong.append("coverage")
    edits = [Edit(*span, "#" * (number % 4)) for number, span in enumerate(resolved)]
    kept = "".join(c for i, c in enumerate(text) if i not in covered)
    if cut(text, edits).replace("#", "") != kept:
        wrong.append("damage")
    return wrong


def test_ten_thousand_random_span_sets_never_damage_a_text() -> None:
    draw = random.Random(3)
    text = "".join(chr(0x100 + i) for i in range(80))
    for _ in range(10_000):
        found = random_spans(draw, len(text))
        assert violations(text, found, resolve(found)) == []


def test_the_damage_check_sees_overlaps_and_lost_characters() -> None:
    found = [Span(0, 5, "URL", 1.0), Span(3, 8, "URL", 1.0)]
    assert violations("abcdefghij", found, found) == ["overlap"]
    assert "coverage" in violations("abcdefghij", found, found[:1])
    apart = [Span(6, 8, "URL", 1.0), Span(0, 2, "URL", 1.0)]
    assert "damage" in violations("abcdefghij", apart, apart)


@given(spans, st.randoms())
def test_the_order_in_which_spans_are_found_does_not_matter(found: list[Span], order: random.Random) -> None:
    shuffled = list(found)
    order.shuffle(shuffled)
    assert resolve(shuffled, ("DATE_TIME",)) == resolve(found, ("DATE_TIME",))
    assert without_duplicates(shuffled) == without_duplicates(found)


@given(spans)
def test_resolving_twice_changes_nothing(found: list[Span]) -> None:
    once = resolve(found, ("DATE_TIME",))
    assert resolve(once, ("DATE_TIME",)) == once


def test_a_kept_type_gives_way_to_one_that_is_replaced() -> None:
    date, phone = Span(0, 10, "DATE_TIME", 1.0), Span(8, 20, "PHONE_NUMBER", 0.4)
    assert resolve([date, phone], ("DATE_TIME",)) == [phone]
    assert resolve([date], ("DATE_TIME",)) == [date]


def test_overlapping_spans_become_one_of_the_longest_members_type() -> None:
    url, email = Span(0, 30, "URL", 0.6), Span(10, 25, "EMAIL_ADDRESS", 1.0)
    assert resolve([email, url]) == [url]
    assert resolve([Span(0, 9, "US_BANK_NUMBER", 0.4), Span(0, 9, "US_SSN", 0.85)]) == [
        Span(0, 9, "US_SSN", 0.85)
    ]


@given(spans, st.integers(0, 84), st.integers(1, 20))
def test_a_range_of_the_cut_text_leads_back_to_what_it_came_from(
    found: list[Span], at: int, length: int
) -> None:
    text = "".join(chr(0x100 + i) for i in range(90))
    edits = [Edit(*span, "<mask>"[: 2 + span.start % 5]) for span in resolve(found)]
    short = cut(text, edits)
    start, end = min(at, len(short) - 1), min(at + length, len(short))
    first, last = uncut(edits, start, end)
    inside = [edit for edit in edits if first <= edit.start and edit.end <= last]
    moved = [edit._replace(start=edit.start - first, end=edit.end - first) for edit in inside]
    assert short[start:end] in cut(text[first:last], moved)
    assert [short[a:b] for a, b in placed(edits)] == [edit.replacement for edit in edits]


@given(
    st.text(
        alphabet=st.sampled_from("aé1 ½…１＠．\u200b\u00ad&#64;()@%\U0001d7d8ß\n" + "\u0430o"), max_size=40
    )
)
def test_folding_leads_every_character_back_to_where_it_was(text: str) -> None:
    folded = fold(text)
    assert all(0 <= a < b <= len(text) for a, b in (folded.back(i, i + 1) for i in range(len(folded.text))))
    starts = [folded.back(i, i + 1)[0] for i in range(len(folded.text))]
    assert starts == sorted(starts)
    if (joined := unwrapped(folded.text)) is not None:
        assert all(
            0 <= a < b <= len(folded.text)
            for a, b in (joined[0].back(i, i + 1) for i in range(len(joined[0].text)))
        )


def test_plain_text_folds_to_itself() -> None:
    text = "Call me (at home) at 5 & bring 50% of it: a@b.com <x>."
    assert fold(text).text == text
    assert fold(text).starts is None


def test_what_expands_to_several_characters_is_left_alone() -> None:
    assert fold("wait…com ½ ²").text == "wait…com ½ ²"


def test_an_html_reference_stands_for_its_whole_range() -> None:
    folded = fold("jane&#64;example.com")
    assert folded.text == "jane@example.com"
    assert folded.back(4, 5) == (4, 9)
