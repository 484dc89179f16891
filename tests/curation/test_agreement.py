"""Agreement beyond luck: against published examples, statsmodels and crowd-kit; and what it says of nothing."""

from __future__ import annotations

import numpy as np
import pytest

from curation.consensus import (
    by_slice,
    cohen_kappa,
    fleiss_kappa,
    krippendorff_alpha,
    pairwise_kappa,
    with_interval,
)
from curation.errors import UsageError

# Krippendorff 2011, section C: four observers, twelve units, missing values.
TABLE = (
    "1 2 3 3 2 1 4 1 2 . . .",
    "1 2 3 3 2 2 4 1 2 5 . 3",
    ". 3 3 3 2 3 4 2 2 5 1 .",
    "1 2 3 3 2 4 4 1 2 5 1 .",
)
PUBLISHED = [
    (str(item), str(observer), value)
    for observer, line in enumerate(TABLE)
    for item, value in enumerate(line.split())
    if value != "."
]


def noisy(seed=0, items=200, annotators=3, k=4, right=0.7):
    draw = np.random.default_rng(seed)
    truth = draw.integers(0, k, items)
    said = np.where(draw.random((annotators, items)) < right, truth, draw.integers(0, k, (annotators, items)))
    return said, [(str(i), f"a{a}", str(said[a, i])) for a in range(annotators) for i in range(items)]


@pytest.mark.parametrize(("level", "alpha"), [("nominal", 0.743), ("ordinal", 0.815), ("interval", 0.849)])
def test_alpha_agrees_with_the_published_example_at_every_level(level, alpha):
    assert krippendorff_alpha(PUBLISHED, level) == pytest.approx(alpha, abs=6e-4)


def test_grades_may_have_names_when_their_order_is_given():
    names = dict(zip("12345", ["awful", "bad", "fair", "good", "great"], strict=True))
    named = [(i, a, names[v]) for i, a, v in PUBLISHED]
    order = list(names.values())
    assert krippendorff_alpha(named, "ordinal", order) == pytest.approx(
        krippendorff_alpha(PUBLISHED, "ordinal")
    )
    assert krippendorff_alpha(named, "ordinal", [*order[2:], *order[:2]]) != pytest.approx(0.815, abs=0.01)
    with pytest.raises(UsageError, match="'awful' is no number"):
        krippendorff_alpha(named, "interval")
    with pytest.raises(UsageError, match="do not hold 'great'"):
        krippendorff_alpha(named, "ordinal", order[:-1])


def test_alpha_agrees_with_crowd_kits():
    pd = pytest.importorskip("pandas")
    metrics = pytest.importorskip("crowdkit.metrics.data")
    _, triples = noisy()
    frame = pd.DataFrame(triples, columns=["task", "worker", "label"])
    assert krippendorff_alpha(triples) == pytest.approx(metrics.alpha_krippendorff(frame), abs=1e-9)


def test_kappas_agree_with_statsmodels():
    rater = pytest.importorskip("statsmodels.stats.inter_rater")
    said, triples = noisy()
    table, _ = rater.aggregate_raters(said.T)
    assert fleiss_kappa(triples) == pytest.approx(rater.fleiss_kappa(table), abs=1e-12)
    pairs = np.zeros((4, 4))
    np.add.at(pairs, (said[0], said[1]), 1)
    one, other = (list(map(str, said[a])) for a in (0, 1))
    for weights, theirs in (("nominal", None), ("ordinal", "linear"), ("interval", "quadratic")):
        expected = rater.cohens_kappa(pairs, wt=theirs, return_results=False)
        assert cohen_kappa(one, other, weights) == pytest.approx(expected, abs=1e-12), weights


def test_every_pair_of_annotators_has_a_kappa_and_the_number_of_items_they_share():
    found = pairwise_kappa(
        [("1", "a", "x"), ("1", "b", "x"), ("2", "a", "y"), ("2", "b", "y"), ("3", "c", "x")]
    )
    assert found == {("a", "b"): (1.0, 2)}


def test_an_interval_holds_the_coefficient_and_narrows_with_items():
    few, many = (with_interval(noisy(1, items=n)[1], draws=200) for n in (40, 640))
    for found in (few, many):
        assert found.low < found.value < found.high
    assert many.high - many.low < (few.high - few.low) / 2
    assert with_interval([]).value is None
    assert with_interval(noisy(1, items=40)[1], draws=200) == few  # the same draws every time


def test_agreement_is_told_by_slice():
    _, good = noisy(2, right=0.95)
    _, bad = noisy(3, right=0.2)
    mixed = [("g" + i, a, v) for i, a, v in good] + [("b" + i, a, v) for i, a, v in bad]
    found = by_slice(mixed, lambda item: item[0], krippendorff_alpha)
    assert list(found) == ["b", "g"]
    assert found["g"].low > found["b"].high


def test_nothing_and_sameness():
    for coefficient in (krippendorff_alpha, fleiss_kappa):
        assert coefficient([]) is None
        assert coefficient([("1", "a", "x"), ("1", "b", "x")]) == 1.0
    assert cohen_kappa([], []) is None
    assert cohen_kappa(["x"], ["x"]) == 1.0
    assert krippendorff_alpha([("1", "a", "x"), ("2", "a", "y")]) is None
    with pytest.raises(UsageError, match="same number of answers"):
        fleiss_kappa([("1", "a", "x"), ("1", "b", "x"), ("2", "a", "x")])


def test_shuffled_answers_agree_no_more_than_luck():
    """Negative control: the coefficient is about who said what of which item, not about shares."""
    said, _ = noisy(4, items=2000)
    draw = np.random.default_rng(0)
    mixed = [
        (str(i), f"a{a}", str(v)) for a, row in enumerate(said) for i, v in enumerate(draw.permutation(row))
    ]
    assert abs(krippendorff_alpha(mixed)) < 0.03
