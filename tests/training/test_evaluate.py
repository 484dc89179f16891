"""Metrics against numbers worked out by hand, and intervals against what an interval promises."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curation.errors import UsageError
from training import evaluate as ev

words = st.lists(st.sampled_from(["a", "b", "c", "d"]), max_size=9)


def test_accuracy_is_literal_and_exact_match_is_not():
    assert ev.accuracy(" card_arrival ", ["other", "card_arrival"]) == 1.0
    assert ev.accuracy("Card_arrival", ["card_arrival"]) == 0.0
    assert ev.exact_match("Card  ARRIVAL", ["card arrival"]) == 1.0
    assert ev.exact_match("card", ["card arrival"]) == 0.0


def test_token_f1_is_the_best_over_references_worked_by_hand():
    # "the red card" against "a red card now": 2 shared, precision 2/3, recall 2/4
    expected = 2 * (2 / 3) * (2 / 4) / (2 / 3 + 2 / 4)
    assert ev.token_f1("the red card", ["nothing here", "a red card now"]) == pytest.approx(expected)


def test_rouge_l_is_worked_by_hand():
    # "police killed the gunman" against "the gunman police killed": LCS 2 of 4 and 4
    assert ev.rouge_l("police killed the gunman", ["the gunman police killed"]) == pytest.approx(0.5)
    assert ev.rouge_l("", ["anything"]) == 0.0


@given(words, words)
def test_the_bit_parallel_subsequence_is_the_textbook_one(a, b):
    table = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            table[i + 1][j + 1] = table[i][j] + 1 if x == y else max(table[i][j + 1], table[i + 1][j])
    assert ev.lcs_length(a, b) == table[-1][-1]


def test_bleu_is_worked_by_hand():
    # hypothesis "a b c d e" against "a b c d f": matches 4/5, 3/4, 2/3, 1/2 and no brevity penalty
    expected = 100 * math.exp(sum(math.log(p) for p in (4 / 5, 3 / 4, 2 / 3, 1 / 2)) / 4)
    assert ev.corpus_bleu(["a b c d e"], [["a b c d f"]]) == pytest.approx(expected)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(words, st.lists(words, min_size=2, max_size=2)), min_size=1, max_size=6))
def test_bleu_from_summed_statistics_is_sacrebleus_corpus_bleu(rows):
    from sacrebleu.metrics import BLEU

    predictions = [" ".join(p) for p, _ in rows]
    references = [[" ".join(r) for r in many] for _, many in rows]
    theirs = BLEU(tokenize="13a").corpus_score(predictions, [list(c) for c in zip(*references, strict=True)])
    assert ev.corpus_bleu(predictions, references) == pytest.approx(theirs.score, abs=1e-9)


def test_rows_may_have_different_numbers_of_references():
    one = ev.corpus_bleu(["a b c d", "e f g h"], [["a b c d"], ["x", "e f g h"]])
    assert one == pytest.approx(100.0)


def test_everything_is_reported_with_its_interval_and_by_slice():
    found = ev.evaluate(
        ["x", "y", "z", "w"],
        [["x"], ["y"], ["n"], ["n"]],
        ["accuracy"],
        slices={"lang": ["en", "en", "de", None]},
    )
    assert found["metrics"]["accuracy"]["value"] == 0.5
    low, high = found["metrics"]["accuracy"]["ci95"]
    assert 0.0 <= low < 0.5 < high <= 1.0
    assert found["slices"]["lang=en"] == {
        "rows": 2,
        "metrics": {"accuracy": {"value": 1.0, "ci95": [1.0, 1.0]}},
    }
    assert found["slices"]["lang=de"]["metrics"]["accuracy"]["value"] == 0.0
    assert "lang=None" not in found["slices"]


def test_the_same_seed_gives_the_same_interval_and_another_does_not():
    values = np.random.default_rng(0).random(50)
    assert ev.interval(values, seed=1) == ev.interval(values, seed=1)
    assert ev.interval(values, seed=1) != ev.interval(values, seed=2)


def covered(narrower: float = 1.0) -> float:
    """How often a 95% interval for a rate of 0.7 over 120 rows holds 0.7; ``narrower`` sabotages it."""
    rng = np.random.default_rng(7)
    inside = 0
    for trial in range(300):
        value, (low, high) = ev.interval((rng.random(120) < 0.7).astype(float), seed=trial, resamples=400)
        inside += value - narrower * (value - low) <= 0.7 <= value + narrower * (high - value)
    return inside / 300


def test_an_interval_covers_the_truth_as_often_as_it_promises():
    assert 0.92 <= covered() <= 0.98
    assert covered(narrower=0.5) < 0.85  # the check would notice


def test_a_paired_difference_is_sharper_than_two_intervals():
    rng = np.random.default_rng(3)
    a = rng.random(300)
    b = a + 0.02 + 0.01 * rng.standard_normal(300)
    gain = ev.paired_difference(a, b)
    assert gain["value"] == pytest.approx(0.02, abs=0.003)
    assert gain["ci95"][0] > 0
    assert gain["better"] == 1.0
    assert ev.interval(a)[1][1] > ev.interval(b)[1][0]  # unpaired, the two overlap


def test_the_difference_of_two_equal_systems_is_nought():
    stats = ev.bleu_statistics(["a b c d", "e f g h"], [["a b c d"], ["e f x h"]])
    assert ev.paired_difference(stats, stats) == {"value": 0.0, "ci95": [0.0, 0.0], "better": 0.5, "rows": 2}


def test_resampling_bleu_by_statistics_is_resampling_rows():
    predictions = ["a b c d e", "f g h i", "a c b d", "x y"]
    references = [["a b c d f"], ["f g h j"], ["a b c d"], ["x z"]]
    stats = ev.bleu_statistics(predictions, references)
    for counts in next(ev.resample_counts(4, seed=5, resamples=5)):
        drawn = [i for i, count in enumerate(counts) for _ in range(count)]
        slow = ev.corpus_bleu([predictions[i] for i in drawn], [references[i] for i in drawn])
        assert float(ev.bleu_from_statistics(counts @ stats)) == pytest.approx(slow)


def test_resampling_in_blocks_draws_what_one_block_draws(monkeypatch):
    values = np.random.default_rng(0).random(200)
    whole = ev.interval(values)
    monkeypatch.setattr(ev, "_DRAWS", 1000)
    assert ev.interval(values) == whole


@pytest.mark.parametrize(
    ("predictions", "references", "metrics", "said"),
    [
        ([], [], ["accuracy"], "no rows"),
        (["a"], [["a"], ["b"]], ["accuracy"], "1 predictions for 2"),
        (["a"], [[]], ["accuracy"], "row 0: there is nothing to compare with"),
        (["a"], [["a"]], ["precision"], "unknown metric 'precision'"),
        (["a"], [["a"]], [], "no metric"),
    ],
)
def test_what_cannot_be_evaluated_is_refused_in_words(predictions, references, metrics, said):
    with pytest.raises(UsageError, match=said):
        ev.evaluate(predictions, references, metrics)


def test_slices_and_pairs_of_the_wrong_length_are_refused():
    with pytest.raises(UsageError, match="slice 'lang' has 1 values for 2 rows"):
        ev.evaluate(["a", "b"], [["a"], ["b"]], ["accuracy"], slices={"lang": ["en"]})
    with pytest.raises(UsageError, match="cannot be paired"):
        ev.paired_difference(np.zeros(2), np.zeros(3))
    with pytest.raises(UsageError, match="no rows"):
        ev.interval(np.zeros(0))


def test_a_table_holds_each_rows_own_score():
    table = ev.row_scores(["a b c d", "x"], [["a b c d"], ["y"]], ["exact_match", "bleu"])
    assert table.column_names == ["prediction", "exact_match", "bleu"]
    assert table["exact_match"].to_pylist() == [1.0, 0.0]
    assert table["bleu"].to_pylist() == pytest.approx([100.0, 0.0])
    assert ev.row_scores([], [], ["accuracy"]).num_rows == 0
