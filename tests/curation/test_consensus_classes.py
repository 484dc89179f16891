"""Many people answer the same items: whom to believe, how sure to be, and what no model of them may do."""

from __future__ import annotations

import csv
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curation.calibration import calibration_error, fit_temperature, temper
from curation.consensus import MODELS, Answers, agree, classes, relabel_or_new
from curation.consensus.annotators import Coin, digamma, lgamma
from curation.errors import UsageError


def crowd(seed=0, items=400, annotators=30, each=5, k=3, spread=0.25, base=0.7, spammers=0):
    """Answers by people of differing skill over a known truth; spammers answer the first label always."""
    draw = np.random.default_rng(seed)
    truth = draw.integers(0, k, items)
    skill = np.clip(draw.normal(base, spread, annotators), 1 / k, 0.98)
    triples = []
    for i in range(items):
        for a in draw.choice(annotators, each, replace=False):
            right = draw.random() < skill[a]
            said = truth[i] if right else (truth[i] + draw.integers(1, k)) % k
            triples.append((f"i{i}", f"a{a}", f"c{0 if a < spammers else said}"))
    answers = Answers.of(triples, labels=[f"c{c}" for c in range(k)])
    return answers, np.array([truth[int(name[1:])] for name in answers.items]), skill


def accuracy(found, truth):
    return float((found.label == truth).mean())


def test_answers_are_counted_once_an_annotator_and_the_later_one_counts():
    answers = Answers.of([("1", "ana", "x"), ("1", "ben", "x"), ("1", "ana", "y"), ("2", "ana", "x")])
    assert answers.counts().tolist() == [[1, 1], [1, 0]]
    assert (answers.items, answers.annotators, answers.labels) == (("1", "2"), ("ana", "ben"), ("x", "y"))


@pytest.mark.parametrize("model", MODELS[1:])
def test_a_unanimous_answer_wins_and_probabilities_sum_to_one(model):
    answers, _, _ = crowd(1)
    found = agree(answers, model)
    assert found.proba.sum(1) == pytest.approx(np.ones(len(answers.items)))
    counts = answers.counts()
    agreed = np.flatnonzero((counts > 0).sum(1) == 1)
    assert len(agreed) > 20
    assert (found.label[agreed] == counts[agreed].argmax(1)).all()


@pytest.mark.parametrize("model", ["auto", "one-coin", "mace", "glad", "hierarchical"])
def test_people_of_differing_skill_are_told_apart(model):
    """On five crowds a model is at least as good as the majority on average, and finds who is good."""
    gain, ranked = [], []
    for seed in range(5):
        answers, truth, skill = crowd(seed)
        found = agree(answers, model)
        gain.append(accuracy(found, truth) - accuracy(agree(answers, "majority"), truth))
        mine = skill[[int(name[1:]) for name in answers.annotators]]
        ranked.append(np.corrcoef(found.skill, mine)[0, 1])
    assert np.mean(gain) > 0.01, gain
    assert min(ranked) > 0.7, ranked


def test_a_model_that_mixes_up_its_annotators_fails_to_beat_the_majority(monkeypatch):
    """Negative control: the same check with everybody's skill handed to the wrong person."""
    real = classes._LEARN["one-coin"]

    def shuffled(answers, belief):
        coin = real(answers, belief)
        return Coin(coin.right[::-1], coin.wrong[::-1])

    monkeypatch.setitem(classes._LEARN, "one-coin", shuffled)
    gains = []
    for seed in range(10):
        answers, truth, _ = crowd(seed)
        gains.append(
            accuracy(agree(answers, "one-coin"), truth) - accuracy(agree(answers, "majority"), truth)
        )
    assert np.mean(gains) < 0.01


def test_spammers_do_not_carry_the_day():
    answers, truth, _ = crowd(3, spammers=12, base=0.85, spread=0.05)
    assert accuracy(agree(answers), truth) > accuracy(agree(answers, "majority"), truth) + 0.03


def test_few_answers_leave_the_majority_and_the_reason_is_told():
    found = agree(Answers.of([("1", "a", "x"), ("1", "b", "y"), ("2", "a", "x"), ("2", "b", "x")]))
    assert found.model == "majority"
    assert "fewer than ten items" in found.why
    assert agree(Answers.of([("1", "a", "x")])).why.startswith("majority, because there is one annotator")
    empty = agree(Answers.of([]))
    assert (len(empty.label), empty.model) == (0, "majority")


def test_auto_tells_what_each_model_foresaw():
    answers, _, _ = crowd(5)
    found = agree(answers)
    assert set(found.heldout) == set(MODELS) - {"auto"}
    for name in found.model.split("+"):
        assert found.heldout[name] > found.heldout["majority"] or name == "majority"
    assert "held-out answers" in found.why


def test_gold_chooses_and_calibrates():
    answers, truth, _ = crowd(6, base=0.6)
    gold = {item: f"c{t}" for item, t in zip(answers.items, truth, strict=True)}
    found = agree(answers, gold=gold)
    assert found.candidates[found.model] == max(found.candidates.values())
    assert found.calibration_error < 0.06
    assert found.accuracy == pytest.approx(accuracy(found, truth))


def test_a_trained_model_joins_as_far_as_it_is_right():
    answers, truth, _ = crowd(7, each=2, base=0.6)
    draw = np.random.default_rng(0)
    good = np.full((len(truth), 3), 0.1) + 0.7 * np.eye(3)[truth]
    noise = draw.dirichlet(np.ones(3), len(truth))
    alone = accuracy(agree(answers, "hierarchical"), truth)
    assert accuracy(agree(answers, "hierarchical", proba=good), truth) > alone + 0.1
    assert accuracy(agree(answers, "hierarchical", proba=noise), truth) > alone - 0.03


def test_the_order_of_rows_and_the_names_of_labels_do_not_matter():
    answers, _, _ = crowd(8)
    triples = [
        (answers.items[i], answers.annotators[a], answers.labels[x])
        for i, a, x in zip(answers.item, answers.annotator, answers.label, strict=True)
    ]
    straight = agree(Answers.of(triples), "hierarchical")
    mixed = agree(
        Answers.of([triples[i] for i in np.random.default_rng(0).permutation(len(triples))]), "hierarchical"
    )
    by_item = dict(zip(mixed.answers.items, mixed.proba, strict=True))
    for item, p in zip(straight.answers.items, straight.proba, strict=True):
        assert by_item[item] == pytest.approx(p, abs=0.02)


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 10_000))
def test_at_better_than_chance_skills_one_more_agreeing_answer_never_lowers_a_class(seed):
    draw = np.random.default_rng(seed)
    k, m = int(draw.integers(2, 5)), 6
    right = draw.uniform(1 / k + 0.01, 0.99, (m, 1)) * np.ones((m, k))
    coin = Coin(right, (1 - right) / (k - 1))
    said = draw.integers(0, k, m)
    names = [f"c{c}" for c in range(k)]
    all_but_one = Answers.of([("i", f"a{a}", names[said[a]]) for a in range(m - 1)], labels=names)
    every = Answers.of([("i", f"a{a}", names[said[a]]) for a in range(m)], labels=names)
    before, after = (classes.softmax(coin.score(x))[0, said[-1]] for x in (all_but_one, every))
    assert after >= before - 1e-12


def test_people_who_differ_without_a_likely_winner_go_to_a_curator():
    answers, _, _ = crowd(9, each=2, base=0.6)
    found = agree(answers)
    disputed = found.disputed(0.9)
    counts = answers.counts()
    assert disputed.any()
    assert ((counts[disputed] > 0).sum(1) > 1).all()
    assert not found.disputed(0.0).any()


def test_an_unknown_model_is_refused():
    with pytest.raises(UsageError, match="no consensus model 'oracle'"):
        agree(crowd(0)[0], "oracle")


# Arithmetic -------------------------------------------------------------------------------------------------


def test_gamma_functions_agree_with_the_library():
    special = pytest.importorskip("scipy.special")
    x = np.array([1e-6, 0.1, 0.5, 1.0, 3.7, 40.0, 1e6])
    assert lgamma(x) == pytest.approx(special.gammaln(x), rel=1e-9, abs=1e-9)
    assert digamma(x) == pytest.approx(special.digamma(x), rel=1e-9, abs=1e-9)


def test_temperature_finds_overconfidence_and_leaves_a_few_rows_alone():
    draw = np.random.default_rng(0)
    honest = draw.dirichlet(np.ones(3), 4000)
    truth = np.array([draw.choice(3, p=p) for p in honest])
    loud = temper(honest, 0.5)
    assert fit_temperature(loud, truth) == pytest.approx(2.0, rel=0.1)
    assert fit_temperature(loud[:0], truth[:0]) == 1.0
    before = calibration_error(loud.max(1), loud.argmax(1) == truth)
    mended = temper(loud, fit_temperature(loud, truth))
    assert calibration_error(mended.max(1), mended.argmax(1) == truth) < before / 2
    assert calibration_error([], []) is None


def test_a_label_is_worth_most_where_nothing_is_known_and_least_where_all_is():
    old = np.array([[0.98, 0.01, 0.01], [0.5, 0.45, 0.05], [0.34, 0.33, 0.33]])
    worth = relabel_or_new(old, np.array([[0.9, 0.05, 0.05], [0.4, 0.3, 0.3]]), 0.8, model_skill=1.0)
    assert worth.old[0] < worth.old[1] < worth.old[2]
    assert worth.new[0] < worth.new[1]
    assert worth.old[2] > worth.new[0]  # a disputed old record before a new one that the model is sure of
    assert relabel_or_new(old, old, 1 / 3).old.max() == pytest.approx(
        0.0
    )  # an annotator who guesses adds nothing
    distrusted = relabel_or_new(old, np.array([[0.9, 0.05, 0.05]]), 0.8, model_skill=0.0)
    assert distrusted.new[0] > worth.new[0]


def test_a_new_record_that_two_people_must_answer_costs_two_answers():
    even = np.full((1, 4), 0.25)
    once = relabel_or_new(even, even, 0.8, model_skill=1.0)
    twice = relabel_or_new(even, even, 0.8, model_skill=1.0, answers=2)
    assert once.new[0] == pytest.approx(0.8 - 0.25)
    assert twice.new[0] == pytest.approx((0.8 - 0.25) / 2), "a second answer alone overrules no first one"
    assert twice.old[0] == once.old[0]
    disputed = np.array([[0.5, 0.5, 0.0, 0.0]])
    assert relabel_or_new(disputed, even, 0.8, answers=2).old[0] > twice.new[0]
    assert relabel_or_new(disputed, even, 0.8, answers=1).old[0] < once.new[0]


# Beside other implementations -------------------------------------------------------------------------------


def test_dawid_skene_agrees_with_crowd_kits():
    pd = pytest.importorskip("pandas")
    aggregation = pytest.importorskip("crowdkit.aggregation")
    answers, _truth, _ = crowd(11, items=300, annotators=12, each=6)
    frame = pd.DataFrame(
        {
            "task": [answers.items[i] for i in answers.item],
            "worker": [answers.annotators[a] for a in answers.annotator],
            "label": [answers.labels[x] for x in answers.label],
        }
    )
    theirs = aggregation.DawidSkene(n_iter=100).fit_predict(frame)
    found = agree(answers, "dawid-skene")
    ours = {item: answers.labels[x] for item, x in zip(answers.items, found.label, strict=True)}
    assert np.mean([ours[item] == label for item, label in theirs.items()]) > 0.98


@pytest.mark.shared_data
def test_on_real_judgements_of_entailment_the_choice_reaches_the_best_of_the_field(shared_data):
    """0.927 or better: crowd-kit's majority has 0.875, its Dawid-Skene 0.9275, its MACE 0.926."""
    with open(shared_data / "crowd-snow2008" / "rte.standardized.tsv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    answers = Answers.of((row["orig_id"], row["!amt_worker_ids"], row["response"]) for row in rows)
    gold = {row["orig_id"]: row["gold"] for row in rows}
    found = agree(answers)
    right = [answers.labels[x] == gold[i] for i, x in zip(answers.items, found.label, strict=True)]
    assert np.mean(right) >= 0.927
    assert calibration_error(found.confidence, right) < 0.06


@pytest.mark.slow
def test_a_million_answers_are_agreed_on_within_memory():
    answers, truth, _ = crowd(0, items=1000, annotators=50, each=5)
    many = np.arange(200)
    item = (answers.item + 1000 * many[:, None]).ravel()
    annotator = (answers.annotator + 50 * (many[:, None] % 40)).ravel()
    label = np.tile(answers.label, 200)
    names = tuple(map(str, range(200_000)))
    big = Answers(item, annotator, label, names, names[:2000], answers.labels)
    began = time.process_time()
    found = agree(big)
    assert accuracy(found, np.tile(truth, 200)) > 0.8
    assert time.process_time() - began < 240
