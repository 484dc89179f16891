"""Labeling functions and label models: what decides a vote, what a failure costs, and what no model may
do.
"""

from __future__ import annotations

import functools
import json
import random
import socket
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from curation import voting
from curation.errors import MissingExtra, UsageError
from curation.records import PROBABILITIES, VIEW, VOTES, table, user_message
from curation.voting import (
    MODELS,
    Limits,
    Row,
    Votes,
    analyse,
    apply_functions,
    find_functions,
    fitting,
    functions_for,
    label,
    labeling_function,
    labelling,
    read_gold,
    read_votes,
    snorkel,
)
from curation.voting.models import Blend, Calibrated, Corrected, Majority, Weighted

SPAM, HAM = "spam", "ham"


def module(folder: Path, source: str, name: str = "rules.py") -> Path:
    path = folder / name
    path.write_text(
        "from curation.voting import labeling_function\n" + textwrap.dedent(source), encoding="utf-8"
    )
    return path


def view(*prompts: str):
    rows = [{"record": f"r{i}", "prompt": p, "messages": user_message(p)} for i, p in enumerate(prompts)]
    return table(rows, VIEW)


def votes_of(matrix, k: int) -> Votes:
    matrix = np.asarray(matrix, np.int16)
    names = tuple(f"f{j}" for j in range(matrix.shape[1]))
    return Votes(matrix, tuple(f"c{i}" for i in range(k)), names, tuple(map(str, range(len(matrix)))))


@labeling_function(classes=[SPAM])
def shouts(row):
    """Capitals."""
    return SPAM if row.prompt.isupper() else None


@labeling_function(classes=[SPAM, HAM])
def money(row):
    return SPAM if "$" in row.prompt else HAM


@labeling_function(classes=[SPAM])
def stumbles(row):
    if "x" in row.prompt:
        raise ValueError("no \x1b[31mx\x1b[0m please\n")


@labeling_function(classes=[SPAM])
def talks_of_others(row):
    return "eggs"


# Applying ---------------------------------------------------------------------------------------------------


def test_functions_vote_by_class_name_and_abstain_with_none():
    votes = apply_functions([shouts, money], view("BUY", "$5", "hello"))
    assert votes.classes == (SPAM, HAM)
    assert votes.matrix.tolist() == [[0, 1], [-1, 0], [-1, 1]]
    assert votes.table().schema == VOTES
    assert votes.table().to_pylist()[:3] == [
        {"record": "r0", "function": "shouts", "vote": SPAM},
        {"record": "r0", "function": "money", "vote": HAM},
        {"record": "r1", "function": "shouts", "vote": None},
    ]


def test_an_empty_view_gives_an_empty_matrix():
    votes = apply_functions([shouts, money], view())
    assert votes.matrix.shape == (0, 2)
    assert len(votes.table()) == 0


def test_a_function_that_raises_abstains_there_and_is_counted_while_the_others_go_on():
    votes = apply_functions([stumbles, money], view("a", "x", "xx"))
    assert votes.matrix.tolist() == [[-1, 1], [-1, 1], [-1, 1]]
    (failure,) = votes.failures
    assert (failure.function, failure.count, failure.record) == ("stumbles", 2, "r1")
    assert "ValueError: no \\x1b[31mx" in failure.message
    assert failure.message.isprintable()


def test_an_answer_that_was_not_declared_abstains_and_is_counted():
    (failure,) = apply_functions([talks_of_others], view("a", "b")).failures
    assert failure.count == 2
    assert "'eggs'" in failure.message


def test_what_a_function_prints_stays_off_the_screen(capfd):
    @labeling_function(classes=[SPAM])
    def loud(row):
        print("\x1b[2J wiped")

    apply_functions([loud], view("a"))
    out = capfd.readouterr()
    assert "wiped" not in out.out + out.err


def test_the_question_decides_the_order_of_the_classes_and_refuses_foreign_ones():
    assert apply_functions([money], view("$"), classes=[HAM, SPAM]).matrix.tolist() == [[1]]
    with pytest.raises(UsageError, match="money may answer ham"):
        apply_functions([money], view("$"), classes=[SPAM])
    with pytest.raises(UsageError, match="money may answer ham"):
        functions_for([money], [SPAM, "eggs"])
    assert functions_for([money, shouts], ["eggs"]) == []


def test_applying_does_not_change_the_view_and_a_function_cannot_change_a_row():
    @labeling_function(classes=[SPAM])
    def meddles(row):
        row.prompt = "changed"

    before = view("a", "b")
    (failure,) = apply_functions([meddles], before).failures
    assert failure.count == 2
    assert before == view("a", "b")


def test_a_decorator_without_classes_or_on_something_else_is_refused():
    with pytest.raises(UsageError, match="list of classes"):
        labeling_function(classes="spam")
    with pytest.raises(UsageError, match="at least one class"):
        labeling_function(classes=[])
    with pytest.raises(UsageError, match="plain functions"):
        labeling_function(classes=[SPAM])(len)


# Apart, with limits -----------------------------------------------------------------------------------------

HOSTILE = """
    import os, socket, subprocess, sys, time

    @labeling_function(classes=["spam", "ham"])
    def honest_before(row):
        return "spam" if "bad" in row.prompt else "ham"

    @labeling_function(classes=["spam"])
    def loops_on_one_row(row):
        while row.prompt == "bad 1":
            try:
                time.sleep(0.01)
            except Exception:
                pass
        return "spam"

    @labeling_function(classes=["spam"])
    def eats_memory(row):
        return "spam" if len(bytearray(8 * 1024**3)) else None

    @labeling_function(classes=["spam"])
    def forks(row):
        os.fork()
        return "spam"

    @labeling_function(classes=["spam"])
    def starts_a_program(row):
        subprocess.run(["true"])
        return "spam"

    @labeling_function(classes=["spam"])
    def phones_out(row):
        socket.create_connection(("127.0.0.1", int(row.prompt.split()[-1]) + 1000), timeout=1)
        return "spam"

    @labeling_function(classes=["spam"])
    def exits(row):
        sys.exit(3)

    @labeling_function(classes=["spam"])
    def dies(row):
        os._exit(7)

    @labeling_function(classes=["spam", "ham"])
    def honest_after(row):
        print("\\x1b[2J")
        return "ham" if "good" in row.prompt else "spam"
"""


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    functions = find_functions(module(tmp_path_factory.mktemp("hostile"), HOSTILE))
    rows = view("bad 1", "good 2", "bad 3")
    return apply_functions(functions, rows, limits=Limits(row_seconds=1.0, seconds=30, memory=1024**3))


def test_functions_that_loop_fork_or_eat_memory_do_not_stop_the_others(hostile):
    columns = dict(zip(hostile.functions, hostile.matrix.T.tolist(), strict=True))
    spam, ham = hostile.classes.index(SPAM), hostile.classes.index(HAM)
    assert columns["honest_before"] == columns["honest_after"] == [spam, ham, spam]
    assert columns["loops_on_one_row"] == [-1, spam, spam]
    for name in ("eats_memory", "forks", "starts_a_program", "phones_out", "exits", "dies"):
        assert columns[name] == [-1, -1, -1], name


def test_each_failure_is_counted_and_named(hostile):
    told = {f.function: (f.count, f.message) for f in hostile.failures}
    assert told["loops_on_one_row"][0] == 1
    assert "more than 1 s" in told["loops_on_one_row"][1]
    assert "MemoryError" in told["eats_memory"][1]
    assert "may not use os.fork" in told["forks"][1]
    assert "may not use subprocess.Popen" in told["starts_a_program"][1]
    assert "may not use socket" in told["phones_out"][1]
    assert "SystemExit" in told["exits"][1]
    assert told["dies"] == (3, "it ended its process (exit status 7), so it abstains everywhere")
    assert {"honest_before", "honest_after"}.isdisjoint(told)


def test_a_function_that_hangs_beyond_python_loses_its_process(tmp_path):
    source = """
        import signal

        @labeling_function(classes=["spam"])
        def deaf(row):
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM})
            signal.sigwait({signal.SIGUSR2})

        @labeling_function(classes=["spam"])
        def fine(row):
            return "spam"
    """
    began = time.monotonic()
    limits = Limits(row_seconds=0.2, seconds=1)
    votes = apply_functions(find_functions(module(tmp_path, source)), view("a"), limits=limits)
    assert votes.matrix.tolist() == [[-1, 0]]
    assert votes.failures[0].function == "deaf"
    assert time.monotonic() - began < 120


def test_apart_and_here_give_the_same_votes(tmp_path):
    source = """
        @labeling_function(classes=["spam"])
        def short(row):
            return "spam" if len(row.messages[-1]["content"]) < 3 else None
    """
    functions = find_functions(module(tmp_path, source))
    rows = view("a", "long enough", "b")
    here, apart = apply_functions(functions, rows), apply_functions(functions, rows, limits=Limits())
    assert here.matrix.tolist() == apart.matrix.tolist() == [[0], [-1], [0]]
    assert here.digests == apart.digests


# Finding and naming -----------------------------------------------------------------------------------------

RULES = """
    import re
    from ._words import GREETINGS, greets

    WORDS = {"cheap", "free"}
    PATTERN = re.compile("win(ner)?")
    UNUSED = 1

    def loud(text):
        return text.isupper() and bool(WORDS)

    def make(name, word):
        @labeling_function(classes=["spam"], name=name)
        def has_word(row):
            return "spam" if word in row.prompt else None
        return has_word

    prize = make("prize", "prize")

    @labeling_function(classes=["spam"], resources=["list.txt"])
    def listed(row):
        return "spam" if loud(row.prompt) or PATTERN.search(row.prompt) or greets(row.prompt) else None
"""
WORDS = "GREETINGS = ['hi']\ndef greets(text):\n    return text in GREETINGS\n"


@pytest.fixture
def rules(tmp_path):
    (tmp_path / "_words.py").write_text(WORDS)
    (tmp_path / "list.txt").write_text("one\n")
    module(tmp_path, RULES)
    return tmp_path


def digests(folder: Path) -> dict[str, str]:
    return {f.name: f.digest for f in find_functions(folder)}


def test_functions_are_found_by_path_in_the_order_of_the_file(rules):
    functions = find_functions(rules)
    assert [f.name for f in functions] == ["prize", "listed"]
    assert functions[1](Row(prompt="a winner")) == SPAM
    assert [f.name for f in find_functions(rules / "rules.py")] == ["prize", "listed"]


def test_loading_by_path_shadows_no_module_and_writes_no_byte_code(rules):
    find_functions(rules)
    assert "rules" not in sys.modules
    assert "_words" not in sys.modules
    assert sorted(p.name for p in rules.iterdir()) == ["_words.py", "list.txt", "rules.py"]


EDITS = {
    "its own source": ("rules.py", "greets(row.prompt) else", "greets(row.prompt + ' ') else"),
    "a helper in its module": ("rules.py", "text.isupper()", "text.islower()"),
    "a constant that a helper uses": ("rules.py", '"free"', '"gratis"'),
    "a compiled pattern": ("rules.py", "win(ner)?", "won"),
    "a helper in a neighbouring module": ("_words.py", "return text in", "return text not in"),
    "a constant of a neighbouring module": ("_words.py", "'hi'", "'ho'"),
    "a look-up file": ("list.txt", "one", "two"),
    "a class": ("rules.py", 'classes=["spam"], resources', 'classes=["spam", "ham"], resources'),
}


@pytest.mark.parametrize("what", EDITS)
def test_the_digest_changes_with(what, rules):
    file, old, new = EDITS[what]
    before = digests(rules)
    text = (rules / file).read_text()
    assert old in text
    (rules / file).write_text(text.replace(old, new))
    after = digests(rules)
    assert after["listed"] != before["listed"]
    assert after["prize"] == before["prize"]


def test_the_digest_changes_with_a_closure_and_not_with_its_neighbours(rules):
    before = digests(rules)
    module(
        rules, RULES.replace('make("prize", "prize")', 'make("prize", "lottery")').replace("UNUSED = 1", "")
    )
    after = digests(rules)
    assert after["prize"] != before["prize"]
    assert after["listed"] == before["listed"]


def test_the_digest_does_not_depend_on_where_the_folder_lies(rules, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    for file in rules.iterdir():
        (elsewhere / file.name).write_bytes(file.read_bytes())
    assert digests(elsewhere) == digests(rules)


def test_a_digest_that_stopped_at_the_function_would_miss_its_helpers(rules, monkeypatch):
    """Negative control: with the walk to helpers cut, an edited helper goes unnoticed."""
    monkeypatch.setattr(voting.functions, "_used", lambda call: {})
    before = digests(rules)
    text = (rules / "rules.py").read_text()
    (rules / "rules.py").write_text(text.replace("text.isupper()", "text.islower()"))
    assert digests(rules)["listed"] == before["listed"]


def test_an_edit_within_the_same_second_and_of_the_same_length_is_seen(tmp_path):
    source = '@labeling_function(classes=["spam"])\ndef f(row):\n    return "spam" if row.prompt == "{}" else None\n'
    for word in ("aaa", "bbb", "ccc"):
        path = module(tmp_path, source.format(word))
        (function,) = find_functions(path)
        assert function(Row(prompt=word)) == SPAM


def test_a_global_that_nothing_can_name_is_refused_with_advice(tmp_path):
    source = """
        import threading
        LOCK = threading.Lock()

        @labeling_function(classes=["spam"])
        def f(row):
            with LOCK:
                return "spam"
    """
    with pytest.raises(UsageError, match=r"LOCK, a lock.*no digest can cover.*plain value"):
        find_functions(module(tmp_path, source))


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("x = 1", "no labeling function found"),
        ("def f(:", r"rules.py:2: does not load: SyntaxError"),
        ("\nimport nowhere_to_be_found", r"rules.py:3: does not load: ModuleNotFoundError"),
        (
            "a = labeling_function(classes=['s'], name='t')(lambda row: None)\n"
            "b = labeling_function(classes=['s'], name='t')(lambda row: 's')",
            "two labeling functions are called t",
        ),
        (
            "@labeling_function(classes=['s'], resources=['gone.csv'])\ndef f(row):\n    pass",
            "needs the look-up file gone.csv",
        ),
    ],
)
def test_a_module_that_cannot_serve_is_refused_by_name(source, says, tmp_path):
    with pytest.raises(UsageError, match=says):
        find_functions(module(tmp_path, source))


def test_a_missing_path_is_refused(tmp_path):
    with pytest.raises(UsageError, match="no such file or folder"):
        find_functions(tmp_path / "nowhere")


# Votes as data ----------------------------------------------------------------------------------------------


def test_votes_can_be_numbers_or_names():
    numbers = read_votes([[0, -1, 2], [1, 1, -1]])
    assert numbers.classes == ("0", "1", "2")
    assert numbers.matrix.tolist() == [[0, -1, 2], [1, 1, -1]]
    names = read_votes([["b", None], ["a", "b"]], records=["x", "y"])
    assert names.classes == ("a", "b")
    assert names.matrix.tolist() == [[1, -1], [0, 1]]
    assert names.records == ("x", "y")


def test_one_class_of_numbers_still_leaves_room_for_another():
    assert read_votes([[0, -1]]).classes == ("0", "1")


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([[0, 1], [0]], "row 1 has 1 votes, the first row 2"),
        ([[0, "a"]], "mix numbers"),
        ([[0, True]], "mix numbers"),
        ([[0.5, 1]], "mix numbers"),
        ([[0, -2]], "row 0 votes -2"),
        (["01"], "row 0 are not a list"),
    ],
)
def test_votes_of_the_wrong_shape_name_the_row(rows, says):
    with pytest.raises(UsageError, match=says):
        read_votes(rows, where="votes.jsonl")


def test_gold_that_no_function_knows_counts_against_accuracy():
    assert read_gold(["a", None, "z", "b"], ("a", "b")).tolist() == [0, -1, 2, 1]
    assert read_gold([1, -1, 7], ("0", "1")).tolist() == [1, -1, 2]
    _, report = label(read_votes([["a"], ["a"]]), "majority", gold=[0, 9])
    assert report.accuracy == 0.5


@given(st.lists(st.lists(st.integers(-1, 4), min_size=3, max_size=3), max_size=20))
def test_numbers_survive_the_reading(rows):
    assert read_votes(rows).matrix.reshape(-1, 3).tolist() == rows


# Analysis ---------------------------------------------------------------------------------------------------


def test_the_analysis_agrees_with_snorkels_own():
    from snorkel.labeling import LFAnalysis

    matrix = np.random.default_rng(3).integers(-1, 3, (200, 4))
    gold = np.random.default_rng(4).integers(0, 3, 200)
    theirs = LFAnalysis(matrix)
    ours = analyse(votes_of(matrix, 3), gold)
    assert [f["coverage"] for f in ours] == pytest.approx(theirs.lf_coverages().tolist())
    assert [f["overlap"] for f in ours] == pytest.approx(theirs.lf_overlaps().tolist())
    assert [f["conflict"] for f in ours] == pytest.approx(theirs.lf_conflicts().tolist())
    assert [f["accuracy"] for f in ours] == pytest.approx(theirs.lf_empirical_accuracies(gold).tolist())
    assert ours[0]["polarity"] == ["c0", "c1", "c2"]


def test_the_analysis_of_nothing_is_zero_and_a_function_without_gold_has_no_accuracy():
    (empty, _) = analyse(votes_of(np.zeros((0, 2)), 2))
    assert (empty["coverage"], empty["overlap"], empty["conflict"], empty["polarity"]) == (0, 0, 0, [])
    (judged, unjudged) = analyse(votes_of([[0, 1], [0, -1]], 2), [-1, 0])
    assert (judged["judged"], judged["accuracy"]) == (1, 1.0)
    assert (unjudged["judged"], unjudged["accuracy"]) == (0, None)


# Label models -----------------------------------------------------------------------------------------------


def planted(seed: int, n: int = 800, *, one_sided: bool = False):
    """Votes of independent functions over a known truth; ``one_sided`` ones speak up for a single class
    each.
    """
    draw = np.random.default_rng(seed)
    k, m = int(draw.choice([2, 3, 5])), int(draw.integers(6, 12))
    balance = draw.dirichlet(np.full(k, 5.0))
    truth = draw.choice(k, n, p=balance)
    matrix = np.full((n, m), -1, np.int16)
    for j in range(m):
        accuracy, coverage = draw.uniform(0.55, 0.95), draw.uniform(0.2, 0.9)
        wrong = (truth + draw.integers(1, k, n)) % k
        said = np.where(draw.random(n) < accuracy, truth, wrong)
        heard = draw.random(n) < coverage
        if one_sided:
            heard &= said == j % k
        matrix[heard, j] = said[heard]
    return matrix, truth, k


def reference_dawid_skene(matrix, k, steps=100):
    """The textbook, row by row: no smoothing but a hair, abstaining is one more answer."""
    n, m = matrix.shape
    counts = np.stack([(matrix == c).sum(1) for c in range(k)], 1) + 1 / k
    belief = counts / counts.sum(1, keepdims=True)
    for _ in range(steps):
        prior = belief.mean(0)
        score = np.tile(np.log(prior), (n, 1))
        for j in range(m):
            for answer in range(-1, k):
                rows = matrix[:, j] == answer
                score[rows] += np.log((belief[rows].sum(0) + 0.01) / (belief.sum(0) + 0.01 * (k + 1)))
        score = np.exp(score - score.max(1, keepdims=True))
        belief = score / score.sum(1, keepdims=True)
    return belief


def hits(answers, truth, matrix):
    voted = (matrix >= 0).any(1)
    return float((np.asarray(answers)[voted] == truth[voted]).mean())


def labels_of(table_, votes):
    return np.array([votes.classes.index(c) if c else -1 for c in table_["label"].to_pylist()])


@functools.cache
def known_answer(seed, one_sided):
    """A planted matrix, and the accuracy of the better of majority and the reference on it."""
    matrix, truth, k = planted(seed, one_sided=one_sided)
    votes = votes_of(matrix, k)
    plain = labels_of(label(votes, "majority")[0], votes)
    reference = reference_dawid_skene(matrix, k).argmax(1)
    return matrix, truth, k, max(hits(plain, truth, matrix), hits(reference, truth, matrix))


def shortfall(seed, model, *, one_sided=False):
    """How far the model stays behind the better of majority and the reference, in accuracy; negative:
    ahead.
    """
    matrix, truth, k, best = known_answer(seed, one_sided)
    votes = votes_of(matrix, k)
    return best - hits(labels_of(label(votes, model)[0], votes), truth, matrix)


@pytest.mark.parametrize("model", ["auto", "dawid-skene", "snorkel"])
def test_a_model_is_within_two_points_of_the_better_of_majority_and_a_reference(model):
    """On each of twenty matrices of functions that may name any class."""
    behind = {seed: shortfall(seed, model) for seed in range(20)}
    assert max(behind.values()) <= 0.02, behind


@pytest.mark.parametrize("model", ["dawid-skene", pytest.param("auto", marks=pytest.mark.slow)])
def test_with_functions_for_one_class_each_it_is_within_two_points_on_average(model):
    """Such votes leave more open: a single matrix may lie further off, but not far."""
    behind = [shortfall(seed, model, one_sided=True) for seed in range(20)]
    assert float(np.mean(behind)) <= 0.02, behind
    assert max(behind) <= 0.08, behind


def test_a_model_that_mixes_up_its_functions_fails_the_two_points():
    """Negative control: the same check, with the learnt tables handed to the wrong functions."""
    failed = 0
    for seed in range(10):
        matrix, truth, k = planted(seed)
        model = fitting.fit_dawid_skene(matrix, k)
        shuffled = replace(model, evidence=model.evidence[::-1])
        floor = hits(reference_dawid_skene(matrix, k).argmax(1), truth, matrix)
        failed += hits(shuffled.proba(matrix).argmax(1), truth, matrix) < floor - 0.02
    assert failed >= 3


matrices = st.integers(2, 4).flatmap(
    lambda k: st.lists(st.lists(st.integers(-1, k - 1), min_size=4, max_size=4), min_size=1, max_size=25).map(
        lambda rows: votes_of(rows, k)
    )
)


@settings(deadline=None, max_examples=40)
@given(matrices, st.sampled_from(["majority", "dawid-skene"]))
def test_a_unanimous_vote_wins_probabilities_sum_to_one_and_silence_gets_the_balance(votes, model):
    check_invariants(votes, model)


@settings(deadline=None, max_examples=8)
@given(matrices)
def test_snorkel_keeps_the_same_invariants(votes):
    check_invariants(votes, "snorkel")


def check_invariants(votes, model):
    out, report = label(votes, model)
    assert out.schema == PROBABILITIES
    proba = np.array(out["proba"].to_pylist())
    assert proba.sum(1) == pytest.approx(np.ones(len(proba)))
    for row, p, named, weight in zip(
        votes.matrix, proba, out["label"].to_pylist(), out["weight"].to_pylist(), strict=True
    ):
        said = {int(v) for v in row if v >= 0}
        if not said:
            assert (named, weight) == (None, 0.0)
            assert p == pytest.approx(list(report.balance.values()))
        else:
            assert weight == pytest.approx(p.max())
            assert named == votes.classes[int(p.argmax())]
        if len(said) == 1:
            (agreed,) = said
            assert named == votes.classes[agreed]
            assert (np.delete(p, agreed) < p[agreed]).all()


def stubborn():
    """Four functions that are nearly always right, each silent half of the time, and one that says the opposite.

    A model learns that the last one, where it speaks alone, means the other class.
    """
    draw = np.random.default_rng(0)
    truth = draw.integers(0, 2, 600)
    right = np.where(draw.random((600, 4)) < 0.95, truth[:, None], 1 - truth[:, None])
    right = np.where(draw.random((600, 4)) < 0.5, right, -1)
    return votes_of(np.hstack([right, 1 - truth[:, None]]), 2)


def test_a_model_that_may_overrule_everybody_fails_the_invariant(monkeypatch):
    """Negative control: without the guard, the class that the only voter names does not win."""
    check_invariants(stubborn(), "dawid-skene")
    _, report = label(stubborn(), "dawid-skene")
    assert report.restored > 10
    monkeypatch.setattr(labelling, "respect_unanimity", lambda proba, matrix, balance: (proba, 0))
    with pytest.raises(AssertionError):
        check_invariants(stubborn(), "dawid-skene")


def states():
    return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()


def test_the_global_generators_and_threads_are_left_as_they_were():
    matrix, _, k = planted(1, 200)
    random.random(), np.random.rand(), torch.rand(1)
    before, threads = states(), torch.get_num_threads()
    label(votes_of(matrix, k), "snorkel")
    assert states() == before
    assert torch.get_num_threads() == threads


def test_without_the_guard_snorkel_reseeds_the_process(monkeypatch):
    """Negative control: the library does what the guard is there for."""
    from contextlib import nullcontext

    monkeypatch.setattr(snorkel, "generators_restored", nullcontext)
    matrix, _, k = planted(1, 200)
    before = states()
    label(votes_of(matrix, k), "snorkel")
    after = states()
    assert all(a != b for a, b in zip(after, before, strict=True))


def test_the_same_votes_give_the_same_probabilities_whatever_was_drawn_before():
    matrix, _, k = planted(2, 200)
    votes = votes_of(matrix, k)
    first, _ = label(votes, "snorkel")
    np.random.rand(17), random.random()
    assert label(votes, "snorkel")[0] == first


UNTAUGHT = [model for model in MODELS if model != "weighted"]  # the models that need no gold


def test_fewer_than_three_functions_leave_the_majority():
    for model in UNTAUGHT:
        _, report = label(votes_of([[0, 1, -1], [1, 1, -1]], 2), model)
        assert report.model == "majority"
    assert "only 2 of 3 functions voted" in report.why
    _, report = label(votes_of([[0, -1, -1], [-1, 1, -1], [-1, -1, 1]], 2), "auto")
    assert "no record has two votes" in report.why


def test_auto_says_what_it_chose_and_why():
    matrix, truth, k = planted(1)
    votes = votes_of(matrix, k)
    _, blind = label(votes, "auto")
    assert blind.model in MODELS[1:]
    assert blind.why.startswith(blind.model)
    assert "held-out votes better than the majority" in blind.why
    assert blind.heldout["dawid-skene"] > blind.heldout["majority"]
    assert (blind.accuracy, blind.calibration_error) == (None, None)
    _, seen = label(votes, "auto", gold=truth)
    assert set(seen.candidates) == set(MODELS) - {"auto"}
    assert seen.candidates[seen.model] == seen.accuracy > max(seen.candidates.values()) - 0.01
    assert "makes the gold of" in seen.why
    assert seen.calibration_error is not None
    assert seen.calibration_error < 0.05


def test_honest_confidence_outweighs_one_more_hit(monkeypatch):
    """The second model is right once less often, and is not sure where it errs."""
    matrix, truth, k = planted(1, 100)
    right, wrong = np.eye(k)[truth], np.eye(k)[(truth + 1) % k]
    bold, modest = 0.98 * right + 0.02 / k, 0.9 * right + 0.1 / k
    bold[:5], modest[:6] = 0.98 * wrong[:5] + 0.02 / k, 0.55 * wrong[:6] + 0.45 * right[:6]
    answers = {"majority": bold, "blend": modest}

    def scored(fits, name, gold, judged):
        proba = answers.get(name, np.full((100, k), 1 / k))
        hits = float((proba.argmax(1) == gold).mean())
        return labelling._Scored(fits.majority, proba, hits, labelling._likelihood(proba, gold))

    monkeypatch.setattr(labelling, "_cross_fit", scored)
    choice = labelling._by_gold(labelling._Fits(matrix, k, None, 7), truth, np.ones(100, bool))
    assert choice.why.startswith("blend")
    assert (choice.candidates["majority"], choice.candidates["blend"]) == (0.95, 0.94)
    assert labelling._likelihood(modest, np.full(100, k)) == 0.0, (
        "a class that no function knows says nothing"
    )


def test_auto_falls_back_when_snorkel_does_not_converge_or_is_not_there(monkeypatch):
    matrix, _, k = planted(0, 200)
    votes = votes_of(matrix, k)

    def nan(*_args, **_kwargs):
        raise ArithmeticError("Loss is NaN")

    monkeypatch.setattr(snorkel, "_train", nan)
    _, report = label(votes, "snorkel")
    assert (report.model, report.why) == (
        "majority",
        "majority, because Snorkel's label model did not converge (Loss is NaN)",
    )
    assert "snorkel" not in label(votes, "auto")[1].heldout

    def gone(_k):
        raise MissingExtra("weak", "snorkel")

    monkeypatch.setattr(snorkel, "_snorkel_model", gone)
    assert "snorkel" not in label(votes, "auto")[1].heldout
    with pytest.raises(MissingExtra, match=r"tilth\[weak\]"):
        label(votes, "snorkel")


@pytest.mark.parametrize("model", UNTAUGHT)
def test_parameters_are_json_and_give_the_same_model_back(model):
    matrix, _, k = planted(4, 200)
    out, report = label(votes_of(matrix, k), model)
    again = voting.model_from_parameters(json.loads(json.dumps(report.parameters)))
    assert again.kind == report.model
    proba, _ = labelling.respect_unanimity(again.proba(matrix), matrix, again.balance)
    assert proba.tolist() == np.array(out["proba"].to_pylist()).tolist()


def test_parameters_of_something_else_are_refused():
    with pytest.raises(UsageError, match="not the parameters"):
        voting.model_from_parameters({"kind": "majority"})


def test_two_functions_that_are_one_are_pointed_out():
    matrix, _, k = planted(0, 200)
    _, report = label(votes_of(np.hstack([matrix, matrix[:, :1]]), k), "majority")
    assert any(w.startswith(f"f0 and f{matrix.shape[1]} vote alike on 100%") for w in report.warnings)
    _, clean = label(votes_of(matrix, k), "majority")
    assert clean.warnings == []


def test_a_failing_function_is_in_the_report():
    _, report = label(apply_functions([stumbles, money], view("x", "$")), "majority")
    assert report.functions[0]["errors"] == 1
    assert "stumbles failed on 1 rows" in report.warnings[0]


def test_labels_do_not_depend_on_the_order_of_the_rows():
    matrix, _, k = planted(3, 300)
    order = np.random.default_rng(0).permutation(len(matrix))
    for model in UNTAUGHT[1:]:
        straight = np.array(label(votes_of(matrix, k), model)[0]["proba"].to_pylist())
        shuffled = np.array(label(votes_of(matrix[order], k), model)[0]["proba"].to_pylist())
        assert np.allclose(straight[order], shuffled, atol=1e-4), model


def test_labelling_does_not_change_the_votes():
    matrix, truth, k = planted(5, 200)
    votes, copy = votes_of(matrix, k), matrix.copy()
    label(votes, "auto", gold=truth)
    assert (votes.matrix == copy).all()


def test_no_rows_give_an_empty_table():
    out, report = label(read_votes([]), "auto")
    assert out.schema == PROBABILITIES
    assert (len(out), report.rows, report.coverage) == (0, 0, 0.0)
    assert len(label(votes_of(np.zeros((0, 4)), 3), "snorkel")[0]) == 0


def test_a_balance_that_is_known_breaks_ties_and_answers_for_silence():
    out, report = label(votes_of([[0, 1], [-1, -1]], 2), "majority", balance=[0.2, 0.8])
    assert out["label"].to_pylist() == ["c1", None]
    assert out["proba"].to_pylist()[1] == pytest.approx([0.2, 0.8])
    assert report.balance == pytest.approx({"c0": 0.2, "c1": 0.8})


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"model": "oracle"}, "no label model 'oracle'"),
        ({"gold": [0, 1, 1]}, "gold has 3 values for 2 rows"),
        ({"balance": [1.0]}, "1 class shares for 2 classes"),
    ],
)
def test_bad_arguments_are_refused_by_name(arguments, says):
    with pytest.raises(UsageError, match=says):
        label(votes_of([[0, 1], [0, 0]], 2), **arguments)


def test_votes_without_any_class_are_refused():
    with pytest.raises(UsageError, match="name no class"):
        label(read_votes([[None, None]]))


def test_parameters_of_a_model_that_learnt_from_gold_are_json_too():
    matrix, truth, k = planted(4, 400)
    for model in ("weighted", "auto"):
        _, report = label(votes_of(matrix, k), model, gold=truth)
        again = voting.model_from_parameters(json.loads(json.dumps(report.parameters)))
        assert again.kind == report.model
        assert again.parameters() == report.parameters


# What gold may do -------------------------------------------------------------------------------------------


def test_the_gold_of_a_row_never_decides_that_row():
    """Functions that vote at random: whoever saw the answers would be right more often than chance."""
    draw = np.random.default_rng(0)
    matrix, truth = draw.integers(-1, 2, (600, 40)), draw.integers(0, 2, 600)
    for model in ("weighted", "auto"):
        _, report = label(votes_of(matrix, 2), model, gold=truth)
        assert abs(report.accuracy - 0.5) < 0.06, model


def test_a_model_that_answers_for_the_rows_it_learnt_from_is_found_out(monkeypatch):
    """Negative control: with every fold fitted on all gold, random votes look informative."""
    draw = np.random.default_rng(0)
    matrix, truth = draw.integers(-1, 2, (600, 40)), draw.integers(0, 2, 600)
    real = labelling.fit_weighted
    monkeypatch.setattr(labelling, "fit_weighted", lambda m, k, _known, base: real(m, k, truth, base))
    _, report = label(votes_of(matrix, 2), "weighted", gold=truth)
    assert report.accuracy > 0.56


def test_gold_finds_the_function_that_is_always_wrong():
    votes = stubborn()
    truth = 1 - votes.matrix[:, -1]
    _, plain = label(votes, "majority", gold=truth)
    _, taught = label(votes, "weighted", gold=truth)
    assert taught.accuracy >= plain.accuracy
    assert taught.parameters["model"]["evidence"][-1][1][0] < 0


def test_too_little_gold_leaves_the_majority_and_none_is_refused():
    matrix, truth, k = planted(1, 200)
    few = np.where(np.arange(200) < 10, truth, -1)
    _, report = label(votes_of(matrix, k), "weighted", gold=few)
    assert report.model == "majority"
    assert "only 10 rows" in report.why or "only 9 rows" in report.why
    with pytest.raises(UsageError, match="learns from gold"):
        label(votes_of(matrix, k), "weighted")


# What one more vote may do ----------------------------------------------------------------------------------


def better_than_chance(draw, m, k):
    """Tables of independent functions that are right more often than each way of being wrong."""
    tables = np.ones((m, 1 + k, k))
    for j in range(m):
        right = draw.uniform(1 / k + 0.02, 0.98)
        tables[j, 1:] = (1 - right) / (k - 1)
        tables[j, 1 + np.arange(k), np.arange(k)] = right
    return np.log(tables)


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10_000))
def test_at_fixed_better_than_chance_parameters_one_more_agreeing_vote_never_lowers_a_class(seed):
    draw = np.random.default_rng(seed)
    m, k = int(draw.integers(3, 8)), int(draw.integers(2, 5))
    balance = draw.dirichlet(np.full(k, 2.0))
    one, two = (Weighted(kind, balance, better_than_chance(draw, m, k)) for kind in ("a", "b"))
    rising = np.abs(better_than_chance(draw, m, k)) * 0
    rising[:, 1 + np.arange(k), np.arange(k)] = draw.uniform(0, 2, (m, k))
    taught = Corrected(Blend((one, two), balance), 1.3, rising, np.log(balance))
    before = draw.integers(-1, k, (20, m))
    for model in (Majority(balance), one, Blend((one, two), balance), taught, Calibrated(one, 2.0)):
        for j in range(m):
            silent = before.copy()
            silent[:, j] = -1
            silent = silent[(silent >= 0).any(1)]  # the first vote of all turns a balance into an opinion
            for c in range(k):
                voted = silent.copy()
                voted[:, j] = c
                assert (model.proba(voted)[:, c] >= model.proba(silent)[:, c] - 1e-9).all(), model.kind


def test_a_function_worse_than_chance_does_lower_its_class():
    """Negative control: the invariant is about functions that are better than chance, and sees one that is not."""
    table = better_than_chance(np.random.default_rng(0), 3, 2)
    table[0, 1:] = table[0, 1:][::-1].copy()
    model = Weighted("", np.array([0.5, 0.5]), table)
    before, after = model.proba(np.array([[-1, 0, -1]])), model.proba(np.array([[0, 0, -1]]))
    assert after[0, 0] < before[0, 0]


# Functions that repeat each other ---------------------------------------------------------------------------


def test_an_opinion_that_five_functions_copy_is_not_heard_five_times():
    draw = np.random.default_rng(3)
    truth = draw.integers(0, 2, 2000)
    alone = [np.where(draw.random(2000) < 0.75, truth, 1 - truth) for _ in range(6)]
    loud = np.where(draw.random(2000) < 0.65, truth, 1 - truth)
    copies = [np.where(draw.random(2000) < 0.7, loud, -1) for _ in range(5)]
    matrix = np.stack([*alone, *copies], axis=1)
    heard = hits(fitting.fit_dawid_skene(matrix, 2).proba(matrix).argmax(1), truth, matrix)
    deaf = fitting.fit_dawid_skene(matrix, 2, rule=fitting.EmRule(discount=False))
    assert heard > 0.8
    assert heard > hits(deaf.proba(matrix).argmax(1), truth, matrix) + 0.1


def test_triplets_recover_planted_accuracies():
    draw = np.random.default_rng(5)
    truth, accuracy = draw.integers(0, 2, 20_000), np.array([0.9, 0.8, 0.7, 0.6, 0.75])
    said = np.where(draw.random((20_000, 5)) < accuracy, truth[:, None], 1 - truth[:, None])
    matrix = np.where(draw.random((20_000, 5)) < 0.6, said, -1)
    evidence = fitting.fit_triplet(matrix, 2).evidence
    found = 1 / (1 + np.exp(-2 * evidence[:, 1, 0]))
    assert np.abs(found - accuracy).max() < 0.03


# Real votes -------------------------------------------------------------------------------------------------


@pytest.mark.shared_data
def test_on_real_comments_models_stay_near_the_majority_and_gold_beats_everything(shared_data):
    rows = json.loads((shared_data / "ws-wrench-youtube" / "train.json").read_text(encoding="utf-8")).values()
    votes = read_votes([row["weak_labels"] for row in rows])
    gold = read_gold([row["label"] for row in rows], votes.classes)
    table_, _ = label(votes, "auto")
    blind = hits(labels_of(table_, votes), gold, votes.matrix)
    counts = np.stack([(votes.matrix == c).sum(1) for c in range(2)], 1)
    voted = counts.sum(1) > 0
    tied = counts[:, 0] == counts[:, 1]
    majority = float(np.where(tied, 0.5, counts.argmax(1) == gold)[voted].mean())
    assert blind > majority - 0.005
    _, taught = label(votes, "auto", gold=gold)
    assert taught.accuracy > max(majority, taught.candidates["snorkel"]) + 0.02
    assert taught.calibration_error < 0.05


def test_importing_the_module_loads_nothing_heavy():
    import subprocess

    code = "import sys, curation.voting; print(sorted({'torch','snorkel','pandas','sklearn'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert socket  # the parent keeps its network: the ban is the worker's
