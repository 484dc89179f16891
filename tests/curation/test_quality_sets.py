"""What quality says about many rows together: limits from data, conventions, words by slice, and scores of a model."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from curation import quality
from curation.errors import UsageError
from curation.quality import QualityRule
from tests.curation.stages import check_invariants, decided, example, view_of

WORDS = [f"word{i}" for i in range(500)]


def prose(seed: int, words: int) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=words))


# --- Limits from data ---------------------------------------------------------------------------------


def trusted(count: int, words: int, **more):
    return [
        example(f"r{i}", prose(i, 12), prose(i + 5000, words + i % 5), **{"trust": "person", **more})
        for i in range(count)
    ]


def test_limits_follow_what_people_vouched_for():
    short, long = (quality.fitted(view_of(trusted(300, words)), QualityRule()) for words in (20, 9000))
    assert (short.max_words, long.max_words) == (48, 18_008)
    assert not any(quality.explain(row, long) for row in trusted(300, 9000)[:20]), (
        "rows that the limits were read from pass them"
    )


def test_rows_that_nobody_vouched_for_move_no_limit():
    assert quality.fitted(view_of(trusted(300, 9000, trust="candidate")), QualityRule()) == QualityRule()
    assert quality.fitted(view_of(trusted(100, 9000)), QualityRule()) == QualityRule()


def test_every_filter_is_told_in_a_line():
    assert {"repetition", "prompt_echo", "truncated"} <= set(quality.CATALOGUE)
    for line, _ in quality.CATALOGUE.values():
        assert line.endswith(".")
        assert "\n" not in line
    assert "Gopher" in quality.CATALOGUE["repetition"][1]


# --- Conventions --------------------------------------------------------------------------------------


def formatted(count: int, odd: int) -> list[dict]:
    """Prompts that end in a colon and completions that begin with a space, but for the last ``odd``."""
    rows = [example(f"r{i}", f"{prose(i, 5)} Answer:", f" {prose(i, 4)}.") for i in range(count - odd)]
    return rows + [example(f"x{i}", f"{prose(i, 5)} Answer\n", f"\n{prose(i, 4)}\n") for i in range(odd)]


def test_rows_that_break_what_nearly_all_keep_are_held_with_the_form_that_is_usual():
    view = view_of(formatted(100, 3))
    found = decided(check_invariants(quality.find_inconsistent, view))
    assert {key[0] for key in found} == {"x0", "x1", "x2"}
    first = found["x0", "x0/label"][1]["conventions"][0]
    assert (first["aspect"], first["form"], first["this row"]) == ("prompt ends with", ":", "no mark")


def test_where_people_disagree_or_are_few_there_is_no_convention():
    assert quality.conventions(view_of(formatted(100, 40))) == []
    assert quality.conventions(view_of(formatted(40, 1))) == []
    assert quality.conventions(view_of(formatted(100, 0))) == []


def test_standardising_changes_white_space_and_last_marks_alone():
    kept = quality.conventions(view_of(formatted(100, 3)))
    assert quality.standardise("a b Answer\n", "\nc d.\n", kept) == ("a b Answer:", " c d.")
    assert quality.standardise("say `x`", " c", kept) == ("say `x`", " c")


@given(st.text(max_size=30), st.one_of(st.none(), st.text(min_size=1, max_size=30)))
def test_standardising_twice_is_standardising_once_and_loses_no_word(prompt, completion):
    kept = quality.conventions(view_of(formatted(100, 3)))
    once = quality.standardise(prompt, completion, kept)
    assert quality.standardise(*once, kept) == once
    for before, after in ((prompt, once[0]), (completion or "", once[1] or "")):
        letters = [[c for c in text if c.isalnum()] for text in (before, after)]
        assert letters[0] == letters[1]


# --- Words by slice -----------------------------------------------------------------------------------


def test_a_slice_and_a_group_in_bad_company_stand_out():
    rows = [example(f"a{i}", "p", "thank you for the parcel", source="mail") for i in range(200)]
    rows += [example(f"b{i}", "p", "you stupid idiot", source="forum") for i in range(60)]
    rows += [example(f"c{i}", "p", "those immigrants are liars!", source="mail") for i in range(10)]
    rows += [example("open", "stupid?", None, source="mail")]
    found = {(r.slice, r.group): r for r in quality.audit_words(view_of(rows))}
    assert (found["forum", ""].rate, found["mail", ""].hits, found["mail", ""].rows) == (1.0, 10, 210)
    assert found["mail", "origin"].rate == 1.0
    assert found["mail", "origin"].low > found["mail", ""].high
    assert quality.audit_words(view_of([])) == []


def test_another_list_of_words_finds_other_words():
    view = view_of([example("a", "p", "the parcel is kaputt", source="s")])
    assert quality.audit_words(view)[0].hits == 0
    assert quality.audit_words(view, harsh={"kaputt"})[0].hits == 1


# --- Scores of a model --------------------------------------------------------------------------------


def test_scores_by_hand():
    assert quality.perplexity([math.log(8)], [3]).tolist() == pytest.approx([2.0])
    assert quality.perplexity_ratio([6.0], [3.0], [3]).tolist() == pytest.approx([math.exp(-1)])
    assert quality.ifd([2.0, 4.0], [4.0, 2.0], [2, 2]).tolist() == pytest.approx([math.exp(-1), math.exp(1)])
    assert np.isnan(quality.ifd([0.0], [0.0], [0])).all()
    with pytest.raises(UsageError, match="2 and 1"):
        quality.perplexity([1.0, 2.0], [1])


def test_an_answer_that_its_prompt_does_not_help_is_held():
    view = view_of([example(name, "p", "c") for name in "abcd"])
    found = decided(quality.find_unhelped(view, [0.4, 1.0, 1.3, math.nan]))
    assert {key[0]: evidence["ifd"] for key, (_, evidence) in found.items()} == {"b": 1.0, "c": 1.3}
    with pytest.raises(UsageError, match="3 scores for 4 rows"):
        quality.find_unhelped(view, [1, 2, 3])
