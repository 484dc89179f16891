"""Ready-made labeling functions, and what a weak label's confidence is good for."""

from __future__ import annotations

import numpy as np
import pytest

from curation.errors import UsageError
from curation.voting import (
    Limits,
    Row,
    Votes,
    analyse,
    apply_functions,
    cut_statistic,
    find_functions,
    keyword,
    lexical_features,
    lookup,
    loss_weight,
    model_votes,
    priority,
    regex,
    trusted,
    worst_examples,
)
from tests.curation.test_voting import view

MODULE = """
from pathlib import Path
from curation.voting import keyword, length, lookup, model_votes, regex

WORDS = ["free", "win cash"]

def scores(text):
    return {"spam": 0.9 if "$" in text else 0.6, "ham": 0.1}

money = keyword("money", "spam", WORDS)
link = regex("link", "spam", r"https?://")
short = length("short", "ham", at_most=3)
listed = lookup("listed", Path(__file__).with_name("phrases.csv"), ["spam", "ham"])
model = model_votes("model", scores, ["spam", "ham"], at_least=0.8)
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "phrases.csv").write_text("prize,spam\nno prize,ham\n", encoding="utf-8")
    (tmp_path / "ready.py").write_text(MODULE, encoding="utf-8")
    return tmp_path


def test_ready_made_functions_are_found_in_the_order_of_their_file_and_vote_apart_as_here(folder):
    functions = find_functions(folder)
    assert [f.name for f in functions] == ["money", "link", "short", "listed", "model"]
    rows = view("Win  CASH now", "freedom at http://x.org", "no prize for you $", "hello there")
    here = apply_functions(functions, rows)
    said = [[here.classes[v] if v >= 0 else None for v in row] for row in here.matrix]
    assert said == [
        ["spam", None, "ham", None, None],
        [None, "spam", "ham", None, None],
        [None, None, None, "ham", "spam"],
        [None, None, "ham", None, None],
    ]
    assert apply_functions(functions, rows, limits=Limits()).matrix.tolist() == here.matrix.tolist()
    assert functions[0].description == "Looks for free, win cash."


EDITS = {
    "money": ("ready.py", '"free"', '"gratis"'),
    "link": ("ready.py", "https?", "ftp"),
    "short": ("ready.py", "at_most=3", "at_most=4"),
    "listed": ("phrases.csv", "prize,spam", "prizes,spam"),
    "model": ("ready.py", "0.9 if", "0.95 if"),
}


@pytest.mark.parametrize("name", EDITS)
def test_the_digest_of_a_ready_made_function_changes_with_what_decides_its_votes_and_with_nothing_else(
    name, folder
):
    before = {f.name: f.digest for f in find_functions(folder)}
    file, old, new = EDITS[name]
    text = (folder / file).read_text(encoding="utf-8")
    assert old in text
    (folder / file).write_text(text.replace(old, new, 1), encoding="utf-8")
    after = {f.name: f.digest for f in find_functions(folder)}
    assert {n for n in after if after[n] != before[n]} == {name}


def test_words_are_whole_and_may_hold_signs():
    plus = keyword("plus", "code", ["c++"])
    assert [plus(Row(prompt=p)) for p in ("I like C++.", "c+", "abc++")] == ["code", None, None]


def test_what_cannot_work_is_refused_when_it_is_made(tmp_path):
    with pytest.raises(UsageError, match="no words"):
        keyword("k", "a", [" "])
    with pytest.raises(UsageError, match="does not compile"):
        regex("r", "a", "(")
    path = tmp_path / "t.csv"
    path.write_text("x,b\n", encoding="utf-8")
    with pytest.raises(UsageError, match="'b', which is not declared"):
        lookup("l", path, ["a"])


def test_a_model_that_is_unsure_or_names_a_foreign_class_abstains():
    ask = model_votes("m", lambda text: {"a": 0.5, "z": 0.5} if text else {}, ["a"], at_least=0.6)
    assert ask(Row(prompt="x")) is None
    assert ask(Row(prompt="")) is None
    assert model_votes("m", lambda text: {"z": 0.9}, ["a"])(Row(prompt="x")) is None


# Confidence -------------------------------------------------------------------------------------------------


def test_certainty_weighs_fully_a_guess_nothing_and_the_unsure_are_asked_first():
    proba = np.array([[1.0, 0.0, 0.0], [1 / 3, 1 / 3, 1 / 3], [0.7, 0.2, 0.1]])
    assert loss_weight(proba.max(1), 3) == pytest.approx([1.0, 0.0, 0.55])
    assert loss_weight(np.array([0.2, 1.0]), 1) == pytest.approx([0.2, 1.0])
    asked = priority(proba)
    assert asked[1] == pytest.approx(1.0)
    assert asked[0] == pytest.approx(0.0)
    assert asked[1] > asked[2] > asked[0]
    assert len(loss_weight(np.zeros(0), 3)) == len(priority(np.zeros((0, 3)))) == 0


def two_clouds(wrong=0.2, n=400, seed=0):
    draw = np.random.default_rng(seed)
    truth = draw.integers(0, 2, n)
    features = draw.normal(0, 1, (n, 8)) + np.where(truth[:, None] == 1, 2.0, -2.0)
    labels = np.where(draw.random(n) < wrong, 1 - truth, truth)
    return labels, truth, features


def test_rows_that_their_neighbours_confirm_are_cleaner_than_the_rest():
    labels, truth, features = two_clouds()
    keep = trusted(np.eye(2)[labels] * 0.9 + 0.05, features)
    assert 0.49 < keep.mean() < 0.52
    assert (labels == truth)[keep].mean() > 0.99
    assert (labels == truth)[~keep].mean() < 0.7
    assert set(labels[keep]) == {0, 1}


def test_features_that_say_nothing_choose_nothing():
    """Negative control: with the neighbours shuffled, what is kept is no cleaner than what is left."""
    labels, truth, features = two_clouds(n=1500)
    shuffled = features[np.random.default_rng(1).permutation(len(features))]
    keep = trusted(np.eye(2)[labels], shuffled)
    assert abs((labels == truth)[keep].mean() - (labels == truth).mean()) < 0.04


def test_the_statistic_of_few_or_of_one_label_is_zero():
    assert cut_statistic(np.array([0]), np.ones((1, 2))).tolist() == [0.0]
    assert cut_statistic(np.zeros(5, int), np.random.default_rng(0).normal(size=(5, 2))).tolist() == [0.0] * 5
    assert len(trusted(np.zeros((0, 2)), np.zeros((0, 3)))) == 0


def test_texts_about_the_same_lie_closer():
    a, b, c = lexical_features(["the invoice is wrong", "a wrong invoice", "container lost at sea"])
    assert a @ b > a @ c


# Report -----------------------------------------------------------------------------------------------------


def test_the_report_names_accuracy_with_its_interval_and_the_worst_mistakes_first():
    matrix = np.array([[0, 1, 1], [0, 0, 1], [0, -1, -1], [1, 1, 1]], np.int16)
    votes = Votes(matrix, ("a", "b"), ("f", "g", "h"), ("r0", "r1", "r2", "r3"))
    gold = np.array([1, 1, 2, 1])
    first = analyse(votes, gold)[0]
    assert (first["judged"], first["accuracy"]) == (4, 0.25)
    low, high = first["interval"]
    assert 0 < low < 0.25 < high < 1
    worst = worst_examples(votes, gold, most=2)
    assert worst["f"] == [("r0", "a", "b"), ("r1", "a", "b")]
    assert worst["h"] == []
    assert worst_examples(votes, gold)["f"][-1] == ("r2", "a", "another class")
