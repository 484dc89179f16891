"""Which passages an answer may rest on: BM25 by hand, and what it does not find."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curation.retrieval import RetrievalRule, index

PASSAGES = [
    "A parcel that is late by five days is refunded.",
    "Customs duties are paid by whoever receives the parcel.",
    "Batteries are hazardous goods: call first.",
]


def test_the_passage_that_names_the_same_things_comes_first() -> None:
    found = index(PASSAGES).search("Who pays customs duties for my parcel?")
    assert [f.place for f in found] == [1, 0]
    assert found[0].score > found[1].score > 0


def test_the_score_is_the_formula() -> None:
    (hit,) = index(["a b b", "c d"], RetrievalRule()).search("b")
    idf = math.log(1 + (2 - 1 + 0.5) / (1 + 0.5))
    norm = 1.2 * (1 - 0.75 + 0.75 * 3 / 2.5)
    assert hit.score == pytest.approx(idf * 2 * 2.2 / (2 + norm))


def test_nothing_is_found_where_no_word_is_shared_nor_in_an_empty_library() -> None:
    assert index(PASSAGES).search("Wann kommt mein Paket?") == []
    assert index(PASSAGES).search("") == []
    assert index([]).search("parcel") == []


def test_a_word_that_stands_everywhere_tells_nothing() -> None:
    many = [f"the policy number {i}" for i in range(40)]
    assert index(many).search("the policy") == []
    assert [f.place for f in index(many).search("the 7")] == [7]


@settings(deadline=None)
@given(st.lists(st.text("ab c", max_size=8), max_size=8), st.text("ab c", max_size=8), st.integers(0, 4))
def test_results_are_few_distinct_sorted_and_repeatable(texts: list[str], query: str, k: int) -> None:
    found = index(texts).search(query, k)
    assert len(found) <= k
    assert len({f.place for f in found}) == len(found)
    assert [f.score for f in found] == sorted((f.score for f in found), reverse=True)
    assert found == index(texts).search(query, k)
