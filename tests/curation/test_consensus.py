"""Opinions become one probability: what a person, a function and a curator weigh, and how far people agree."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from curation.consensus import (
    ConsensusRule,
    Opinion,
    class_consensus,
    krippendorff_alpha,
    posterior,
    text_consensus,
)

CLASSES = ("a", "b", "c")


def said(*words: tuple[str, str], kind: str = "person") -> list[Opinion]:
    return [Opinion("r", f"l{i}", author, kind, value) for i, (author, value) in enumerate(words)]


def test_one_person_counts_more_than_a_flat_prior_and_less_than_certainty() -> None:
    (found,) = class_consensus(said(("ana", "b")), CLASSES)
    assert (found.value, found.authors, found.needs_review) == ("b", ("ana",), False)
    assert found.confidence == pytest.approx(0.9)


def test_functions_tip_the_scale_between_two_people_who_disagree() -> None:
    prior = {"r": np.array([0.9, 0.05, 0.05])}
    (found,) = class_consensus(said(("ana", "a"), ("ben", "b")), CLASSES, prior)
    assert found.value == "a"
    assert not found.needs_review


def test_people_who_disagree_with_nothing_to_decide_between_them_go_to_a_curator() -> None:
    (found,) = class_consensus(said(("ana", "a"), ("ben", "b")), CLASSES)
    assert found.needs_review
    assert found.reason == "people disagree: a, b"


def test_the_latest_curator_decides_alone() -> None:
    opinions = said(("ana", "a"), ("ben", "a")) + said(("cleo", "b"), ("cleo", "c"), kind="curator")
    (found,) = class_consensus(opinions, CLASSES)
    assert (found.value, found.confidence, found.kinds) == ("c", 1.0, ("curator",))


@given(st.lists(st.sampled_from(CLASSES), max_size=6), st.sampled_from(CLASSES))
def test_one_more_agreeing_person_never_lowers_a_class(votes: list[str], more: str) -> None:
    flat = np.full(3, 1 / 3)
    before = posterior(said(*((f"p{i}", v) for i, v in enumerate(votes))), CLASSES, flat, ConsensusRule())
    after = posterior(
        said(*((f"p{i}", v) for i, v in enumerate([*votes, more]))), CLASSES, flat, ConsensusRule()
    )
    at = CLASSES.index(more)
    assert after[at] >= before[at] - 1e-12
    assert after.sum() == pytest.approx(1.0)


def test_different_answers_in_free_text_are_several_references() -> None:
    found = text_consensus(said(("ana", "Dear Sir"), ("ben", "dear  sir"), ("cleo", "Hello")))
    assert [(c.value, round(c.confidence, 2), len(c.labels)) for c in found] == [
        ("Dear Sir", 0.67, 2),
        ("Hello", 0.33, 1),
    ]


def test_answers_that_share_too_little_are_held_where_the_rule_asks() -> None:
    found = text_consensus(
        said(("ana", "yes of course"), ("ben", "never")), ConsensusRule(min_similarity=0.2)
    )
    assert all(c.needs_review for c in found)


def test_no_opinions_give_nothing() -> None:
    assert class_consensus([], CLASSES) == []
    assert text_consensus([]) == []
    assert krippendorff_alpha([]) is None


def test_alpha_of_people_who_answer_at_random_is_about_zero() -> None:
    rng = np.random.default_rng(0)
    answers = [(str(i), str(j), str(rng.integers(3))) for i in range(2000) for j in range(2)]
    assert abs(krippendorff_alpha(answers) or 1) < 0.05
