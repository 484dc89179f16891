"""Choosing what to label: never twice, never what is excluded, the same for the same seed, and always beside random."""

from __future__ import annotations

import math
import random
from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curation.acquisition import (
    CONSIDERED,
    CONTROL,
    RELABEL,
    STRATEGIES,
    STRATEGY,
    AcquisitionRule,
    Again,
    Selection,
    ranks,
    select,
    spread,
    text_vectors,
    typicality,
    with_relabels,
)
from curation.errors import UsageError
from curation.records import SCORES, digest, table

TOPICS = ("parcel late {}", "invoice wrong {}", "refund please {}", "customs form {}")


def pool_of(count: int, **columns: Any) -> pa.Table:
    """A toy pool of ``count`` records on four topics."""
    ids = [digest(f"r{n}") for n in range(count)]
    prompts = [TOPICS[n % 4].format(f"number {n}") for n in range(count)]
    return pa.table({"record": ids, "prompt": prompts, **columns})


def scores_of(pool: pa.Table, seed: int = 0, *, embeddings: bool = True, **columns: Any) -> pa.Table:
    """Toy scores for a pool: random signals, and embeddings in four clusters."""
    draw = np.random.default_rng(seed)
    count = pool.num_rows
    centres = draw.normal(size=(4, 8))
    vectors = (centres[np.arange(count) % 4] + 0.2 * draw.normal(size=(count, 8))).astype(np.float32)
    confidence = draw.uniform(0.3, 1.0, count)
    made = {
        "record": pool["record"],
        "view": pool["record"],
        "nll": draw.exponential(size=count),
        "confidence": confidence,
        "margin": confidence / 2,
        "completion": pool["prompt"],
        "embedding": pa.array(list(vectors) if embeddings else [None] * count, pa.list_(pa.float32())),
        "entropy": draw.uniform(0, 2, count),
        "disagreement": draw.uniform(0, 1, count),
    }
    return pa.table({**made, **columns})


def chosen(selection: Selection, arm: str | None = None) -> list[str]:
    """The records of a selection, or of one arm, in order."""
    return [picked.record for picked in selection if arm in (None, picked.arm)]


# What holds for every strategy


@pytest.mark.parametrize("strategy", STRATEGIES)
@settings(max_examples=30, deadline=None)
@given(
    count=st.integers(0, 40),
    batch=st.integers(1, 30),
    control=st.floats(0, 1),
    blind=st.floats(0, 1),
    seed=st.integers(0, 5),
    model=st.sampled_from(["good", "none", "nan", "part", "no vectors"]),
    data=st.data(),
)
def test_every_strategy_keeps_every_promise(
    strategy: str,
    count: int,
    batch: int,
    control: float,
    blind: float,
    seed: int,
    model: str,
    data: st.DataObject,
) -> None:
    pool = pool_of(count)
    ids = pool["record"].to_pylist()
    reasons = st.sampled_from(["labelled", "queued", "dropped", "held", "quarantined", "evaluation"])
    exclude = data.draw(st.dictionaries(st.sampled_from(ids), reasons)) if ids else {}
    scores = _scores(pool, model)
    rule = AcquisitionRule(strategy, batch, control, blind, seed)
    found = select(scores, pool, rule, exclude)
    size = min(batch, count - len(exclude))
    assert len(found) == size
    assert len(set(chosen(found))) == size, "a record twice"
    assert not set(chosen(found)) & set(exclude), "an excluded record"
    assert set(chosen(found)) <= set(ids)
    assert [picked.position for picked in found] == list(range(size))
    assert len(chosen(found, CONTROL)) == math.floor(control * size + 0.5)
    assert sum(picked.blind for picked in found) == math.floor(blind * size + 0.5)
    assert all(picked.reason and picked.arm in (STRATEGY, CONTROL) for picked in found)
    order = data.draw(st.permutations(range(count)))
    shuffled = pool.take(pa.array(order, pa.int64()))
    again = select(
        _reversed(scores),
        shuffled,
        rule,
        dict(sorted(exclude.items())),
    )
    assert again == found, "another order of the rows, another batch"


def _reversed(scores: pa.Table | None) -> pa.Table | None:
    return None if scores is None else scores.take(pa.array(range(scores.num_rows)[::-1], pa.int64()))


def _scores(pool: pa.Table, model: str) -> pa.Table | None:
    nan = pa.array([float("nan")] * pool.num_rows)
    if model == "none":
        return None
    if model == "nan":
        signals = dict.fromkeys(("nll", "confidence", "margin", "entropy", "disagreement"), nan)
        return scores_of(pool, **signals)
    if model == "part":
        return scores_of(pool).slice(0, pool.num_rows // 2)
    return scores_of(pool, embeddings=model != "no vectors")


def test_the_promises_would_catch_a_strategy_that_ignores_them(monkeypatch: pytest.MonkeyPatch) -> None:
    from curation import acquisition

    def greedy(state: Any, count: int) -> list[tuple[str, str]]:
        return [(digest("r0"), "always the same")] * count

    monkeypatch.setitem(acquisition._RANKERS, "nll", greedy)
    found = select(
        scores_of(pool_of(20)), pool_of(20), AcquisitionRule("nll", 5, 0.0), {digest("r0"): "labelled"}
    )
    assert len(set(chosen(found))) < 5
    assert digest("r0") in chosen(found)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_another_seed_draws_another_control_arm(strategy: str) -> None:
    pool = pool_of(200)
    arms = {
        tuple(sorted(chosen(select(scores_of(pool), pool, AcquisitionRule(strategy, 20, seed=s)), CONTROL)))
        for s in range(5)
    }
    assert len(arms) == 5


def test_the_control_arm_is_drawn_from_the_whole_pool_not_from_what_the_strategy_leaves() -> None:
    pool = pool_of(30)
    scores = scores_of(pool)
    nll = dict(zip(pool["record"].to_pylist(), scores["nll"].to_pylist(), strict=True))
    wanted = set(sorted(nll, key=lambda record: -nll[record])[:10])
    drawn = Counter(
        record in wanted
        for seed in range(300)
        for record in chosen(select(scores, pool, AcquisitionRule("nll", 10, 0.2, seed=seed)), CONTROL)
    )
    assert drawn[True] / drawn.total() == pytest.approx(1 / 3, abs=0.06), (
        "the most uncertain third is a third of it"
    )


def test_arms_and_blind_tasks_are_mixed_over_the_batch() -> None:
    pool = pool_of(400)
    found = select(scores_of(pool), pool, AcquisitionRule("nll", 100, 0.3, 0.3))
    for half in (found.picked[:50], found.picked[50:]):
        assert 8 <= sum(picked.arm == CONTROL for picked in half) <= 22
        assert 8 <= sum(picked.blind for picked in half) <= 22
    assert {(picked.arm, picked.blind) for picked in found} == {
        (a, b) for a in (STRATEGY, CONTROL) for b in (True, False)
    }


def test_thirty_rounds_never_ask_twice_and_use_up_the_pool() -> None:
    pool = pool_of(290)
    asked: dict[str, str] = {}
    for number in range(30):
        found = select(scores_of(pool, seed=number), pool, AcquisitionRule("hybrid", 10, seed=number), asked)
        assert not set(chosen(found)) & set(asked)
        asked |= dict.fromkeys(chosen(found), "labelled")
    assert set(asked) == set(pool["record"].to_pylist())
    empty = select(None, pool, AcquisitionRule(), asked)
    assert len(empty) == 0
    assert "0 open records, fewer than the batch of 50" in empty.notes[0]


# What each strategy takes


@pytest.mark.parametrize(
    ("strategy", "column", "most"),
    [
        ("nll", "nll", 1),
        ("least_confidence", "confidence", -1),
        ("margin", "margin", -1),
        ("entropy", "entropy", 1),
        ("bald", "disagreement", 1),
    ],
)
def test_an_uncertainty_strategy_takes_the_least_sure_with_ties_by_id(
    strategy: str, column: str, most: int
) -> None:
    pool = pool_of(40)
    tied = np.round(scores_of(pool)[column].to_numpy(), 1)
    scores = scores_of(pool).drop_columns([column]).append_column(column, pa.array(tied))
    found = select(scores, pool, AcquisitionRule(strategy, 12, 0.0))
    ids = pool["record"].to_pylist()
    expected = sorted(range(40), key=lambda i: (-most * tied[i], ids[i]))[:12]
    assert set(chosen(found)) == {ids[i] for i in expected}
    first = next(picked for picked in found if picked.record == ids[expected[0]])
    assert f"{tied[expected[0]]:.3f}" in first.reason
    assert "rank 1 of 40 scored" in first.reason


def test_a_missing_or_corrupt_model_means_random_and_a_note() -> None:
    pool = pool_of(50)
    for scores in (None, _scores(pool, "nan")):
        for strategy in ("nll", "least_confidence", "margin", "entropy", "bald"):
            found = select(scores, pool, AcquisitionRule(strategy, 10))
            assert found.notes == (f"no usable scores for {strategy}: the whole batch is drawn at random",)
            assert "at random" in found[0].reason or "random control" in found[0].reason


def test_scores_that_lack_what_the_strategy_needs_are_refused() -> None:
    pool = pool_of(10)
    scores = table([{"record": r, "view": "v", "nll": 1.0} for r in pool["record"].to_pylist()], SCORES)
    with pytest.raises(UsageError, match=r"no confidence, so least_confidence cannot rank.*nll needs"):
        select(scores, pool, AcquisitionRule("least_confidence"))
    with pytest.raises(UsageError, match="entropy cannot rank"):
        select(scores, pool, AcquisitionRule("entropy"))


def test_two_scores_of_one_record_are_refused() -> None:
    pool = pool_of(3)
    with pytest.raises(UsageError, match="two scores"):
        select(pa.concat_tables([scores_of(pool)] * 2), pool, AcquisitionRule())


def test_unscored_records_fill_up_a_batch_at_random_and_say_so() -> None:
    pool = pool_of(30)
    found = select(scores_of(pool).slice(0, 4), pool, AcquisitionRule("nll", 10, 0.0))
    assert sum("no usable score" in picked.reason for picked in found) == 6
    assert "only 4 records have a usable score" in found.notes[0]


def test_garbage_is_never_asked_in_any_arm() -> None:
    pool = pool_of(60, quality=[0.1 if n % 2 else 0.9 for n in range(60)])
    pool = pool.set_column(1, "prompt", [["  ", *pool["prompt"].to_pylist()[1:]]])
    good = {record for n, record in enumerate(pool["record"].to_pylist()) if n % 2 == 0 and n}
    found = select(scores_of(pool), pool, AcquisitionRule("nll", 60, 0.5))
    assert set(chosen(found)) == good
    assert "31 records skipped" in " ".join(found.notes)
    unknown = select(
        None, pool_of(5, quality=[None, 0.2, 0.9, None, float("nan")]), AcquisitionRule("random", 5)
    )
    assert set(chosen(unknown)) == {digest("r0"), digest("r2"), digest("r3")}


def test_a_record_with_several_rows_is_one_record() -> None:
    pool = pa.concat_tables([pool_of(10), pool_of(10)])
    assert len(select(None, pool, AcquisitionRule("random", 50))) == 10


@pytest.mark.parametrize("embeddings", [True, False])
def test_hybrid_covers_the_topics_and_leaves_outliers_alone(embeddings: bool) -> None:
    pool = pool_of(200)
    odd = [f"zq{n} xv{n * 7} kk{n * 13} jw{n}" for n in range(10)]
    prompts = [*pool["prompt"].to_pylist()[:190], *odd]
    pool = pool.set_column(1, "prompt", [prompts])
    scores = scores_of(pool, embeddings=embeddings)
    if embeddings:
        noise = np.random.default_rng(9).normal(size=(10, 8)).astype(np.float32)
        vectors = [*scores["embedding"].to_pylist()[:190], *noise.tolist()]
        scores = scores.set_column(6, "embedding", pa.array(vectors, pa.list_(pa.float32())))
    nll = [*scores["nll"].to_pylist()[:190], *[9.0] * 10]
    scores = scores.set_column(2, "nll", pa.array(nll))
    ids = pool["record"].to_pylist()
    strange = set(ids[190:])
    hybrid = chosen(select(scores, pool, AcquisitionRule("hybrid", 12, 0.0)))
    greedy = chosen(select(scores, pool, AcquisitionRule("nll", 12, 0.0)))
    assert len(strange & set(greedy)) == 10, "uncertainty alone asks about noise"
    assert len(strange & set(hybrid)) <= 1
    assert len({ids.index(record) % 4 for record in hybrid if record not in strange}) == 4


def test_at_the_start_typical_records_come_first() -> None:
    pool = pool_of(100)
    pool = pool.set_column(
        1, "prompt", [[*pool["prompt"].to_pylist()[:95], *(f"w{n} v{n} u{n}" for n in range(5))]]
    )
    found = select(None, pool, AcquisitionRule("hybrid", 8, 0.0))
    assert found.notes == ("no usable scores: typical records first",)
    assert not set(chosen(found)) & set(pool["record"].to_pylist()[95:])
    assert len({pool["record"].to_pylist().index(record) % 4 for record in chosen(found)}) == 4
    assert all("typical first" in picked.reason for picked in found)


def test_hybrid_looks_away_from_what_people_have_already() -> None:
    pool = pool_of(80)
    ids = pool["record"].to_pylist()
    scores = scores_of(pool, nll=np.ones(80), confidence=np.ones(80))
    covered = {record: "labelled" for n, record in enumerate(ids) if n % 4 == 0 and n < 60}
    away = chosen(select(scores, pool, AcquisitionRule("hybrid", 6, 0.0), covered))
    assert all(ids.index(record) % 4 for record in away)
    dropped = dict.fromkeys(covered, "dropped")
    free = chosen(select(scores, pool, AcquisitionRule("hybrid", 20, 0.0), dropped))
    assert any(ids.index(record) % 4 == 0 for record in free)


def test_a_scored_sample_of_the_pool_is_where_hybrid_chooses() -> None:
    pool = pool_of(100)
    scores = scores_of(pool).slice(10, 40)
    found = select(scores, pool, AcquisitionRule("hybrid", 10, 0.0))
    assert set(chosen(found)) <= set(scores["record"].to_pylist())
    assert found.notes == ()


def test_a_large_pool_is_sampled_before_it_is_weighed() -> None:
    pool = pool_of(CONSIDERED + 500)
    found = select(None, pool, AcquisitionRule("hybrid", 10))
    assert len(found) == 10
    assert f"{CONSIDERED:,} records, drawn at random" in found.notes[0]


def test_broken_embeddings_are_not_used() -> None:
    pool = pool_of(20)
    vectors: list[Any] = scores_of(pool)["embedding"].to_pylist()
    vectors[0], vectors[1], vectors[2], vectors[3] = None, [float("nan")] * 8, [1.0], [0.0] * 8
    scores = scores_of(pool, embedding=pa.array(vectors, pa.list_(pa.float32())))
    found = select(scores, pool, AcquisitionRule("hybrid", 5, 0.0))
    assert len(found) == 5
    assert found.notes == ("only 16 of 20 have an embedding: compared by their words",)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"strategy": "hybird"}, "'hybird' is none of"),
        ({"batch": 0}, "batch is 0"),
        ({"control_share": 1.1}, "control_share"),
        ({"blind_share": float("nan")}, "blind_share"),
    ],
)
def test_a_rule_that_makes_no_sense_is_refused(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        AcquisitionRule(**fields)


def test_selecting_changes_nothing_that_was_handed_in() -> None:
    pool = pool_of(30)
    scores, exclude = scores_of(pool), {digest("r1"): "labelled"}
    before = (pool.to_pylist(), scores.to_pylist(), dict(exclude))
    state = random.getstate(), np.random.get_state()[1].tolist()  # type: ignore[union-attr]
    select(scores, pool, AcquisitionRule(), exclude)
    assert (pool.to_pylist(), scores.to_pylist(), exclude) == before
    assert (random.getstate(), np.random.get_state()[1].tolist()) == state  # type: ignore[union-attr]


# The arithmetic, by hand


def test_ranks_share_ties_and_end_at_one() -> None:
    assert ranks(np.array([5.0, 1.0, 5.0, 9.0])).tolist() == [0.625, 0.25, 0.625, 1.0]
    assert ranks(np.array([])).tolist() == []
    assert ranks(np.array([-np.inf, 0.0])).tolist() == [0.5, 1.0]


def test_spread_takes_worth_times_distance() -> None:
    vectors = np.array([[1, 0], [0.8, 0.6], [0, 1]], dtype=np.float32)
    worth = np.array([1.0, 0.9, 0.5])
    assert spread(vectors, worth, np.empty((0, 2), np.float32), 3) == [0, 2, 1]
    assert spread(vectors, worth, vectors[:1], 1) == [2]
    assert spread(vectors, np.zeros(3), vectors, 9) == [0, 1, 2]


def test_typicality_is_the_mean_cosine_to_the_nearest_others() -> None:
    vectors = np.array([[1, 0], [1, 0], [1, 0], [1, 0], [0, 1]], dtype=np.float32)
    assert typicality(vectors, list("abcde")).tolist() == [1, 1, 1, 1, 0]
    assert typicality(vectors[:1], ["a"]).tolist() == [0]


def test_text_vectors_have_length_one_or_none() -> None:
    vectors = text_vectors(["late parcel", "late parcel again", "", "customs"])
    assert np.linalg.norm(vectors, axis=1) == pytest.approx([1, 1, 0, 1], abs=1e-6)
    assert vectors[0] @ vectors[1] > 0.3 > vectors[0] @ vectors[3]


# Worth more than random

CLASSES = 12


def _world(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Points of twelve classes of very unequal size, a seventh of them noise with noisy labels; and a balanced test."""
    draw = np.random.default_rng(seed)
    centres = draw.normal(size=(CLASSES, 24))
    share = 1 / np.arange(1, CLASSES + 1)
    classes = draw.choice(CLASSES, size=700, p=share / share.sum())
    points = centres[classes] + draw.normal(size=(700, 24))
    points[:100], classes[:100] = 2.5 * draw.normal(size=(100, 24)), draw.integers(0, CLASSES, 100)
    exam = draw.integers(0, CLASSES, 400)
    return points, classes, centres[exam] + draw.normal(size=(400, 24)), exam


def _fit(points: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Softmax regression by gradient descent; a column of ones is the bias."""
    points = np.c_[points, np.ones(len(points))]
    weights = np.zeros((points.shape[1], CLASSES))
    for _ in range(80):
        gradient = points.T @ (_proba(points, weights) - np.eye(CLASSES)[classes]) / len(points)
        weights -= 0.5 * (gradient + 0.01 * weights)
    return weights


def _proba(points: np.ndarray, weights: np.ndarray) -> np.ndarray:
    logits = points @ weights
    raised = np.exp(logits - logits.max(axis=1, keepdims=True))
    return raised / raised.sum(axis=1, keepdims=True)


def _curve(strategy: str, seed: int) -> float:
    """The mean accuracy over eight rounds of twenty labels."""
    points, classes, exam, truth = _world(seed)
    ids = [digest(f"{seed}-{n}") for n in range(len(points))]
    pool = pa.table({"record": ids, "prompt": ["text"] * len(ids)})
    embedding = pa.array(list(points.astype(np.float32)), pa.list_(pa.float32()))
    scores = pa.table({"record": ids, "embedding": embedding})
    labelled: dict[str, str] = {}
    accuracy = []
    for _ in range(8):
        labelled |= {
            p.record: "labelled"
            for p in select(scores, pool, AcquisitionRule(strategy, 20, seed=seed), labelled)
        }
        rows = [ids.index(record) for record in labelled]
        weights = _fit(points[rows], classes[rows])
        best = np.max(_proba(np.c_[points, np.ones(len(points))], weights), axis=1)
        scores = pa.table({"record": ids, "embedding": embedding, "nll": -np.log(best), "confidence": best})
        accuracy.append(np.mean(_proba(np.c_[exam, np.ones(len(exam))], weights).argmax(axis=1) == truth))
    return float(np.mean(accuracy))


def test_hybrid_beats_random_on_noisy_unequal_classes_in_eight_seeds_of_ten() -> None:
    gains = [_curve("hybrid", seed) - _curve("random", seed) for seed in range(10)]
    print(
        f"gain in mean accuracy over random: {np.mean(gains):.3f}, seeds won: {sum(g > 0 for g in gains)} of 10"
    )
    assert sum(gain > 0 for gain in gains) >= 8
    assert np.mean(gains) > 0.03


# Once more or new


def batch_of(control_share: float = 0.2, blind_share: float = 0.2) -> tuple[Selection, dict[str, float]]:
    """Ten picks, and what a first answer to each is worth: 0.00, 0.05 and so on in the order of their ids."""
    pool = pool_of(40)
    rule = AcquisitionRule(batch=10, control_share=control_share, blind_share=blind_share)
    selection = select(scores_of(pool), pool, rule)
    return selection, {record: 0.05 * i for i, record in enumerate(sorted(chosen(selection)))}


def test_relabels_take_the_places_that_are_worth_less_and_no_others() -> None:
    selection, worth = batch_of(blind_share=0.0)
    again = [Again(f"old{i}", value, "quarrel") for i, value in enumerate((0.01, 0.9, 0.8))]
    found = with_relabels(selection, again, worth, 10)
    assert set(chosen(found, RELABEL)) == {"old1", "old2"}, (
        "0.01 is worth less than any free place but the first"
    )
    assert len(found) == 10
    assert chosen(found, CONTROL) == chosen(selection, CONTROL)
    cheapest = sorted(chosen(selection, STRATEGY), key=worth.__getitem__)[:2]
    assert set(chosen(selection)) - set(chosen(found)) == set(cheapest)
    assert [p.position for p in found] == [p.position for p in selection]
    assert "2 of 10 ask again" in found.notes[-1]


def test_blind_picks_and_the_control_arm_keep_their_places_whatever_a_relabel_is_worth() -> None:
    selection, worth = batch_of()
    again = [Again(f"old{i}", 1.0, "quarrel") for i in range(20)]
    found = with_relabels(selection, again, worth, 10)
    kept = {p.record for p in selection if p.blind or p.arm == CONTROL}
    assert set(chosen(found)) - {a.record for a in again} == kept
    assert [p.record for p in found if p.blind] == [p.record for p in selection if p.blind]


def test_relabels_fill_the_places_that_the_pool_could_not() -> None:
    found = with_relabels(Selection(()), [Again("a", 0.1, "x"), Again("b", 0.2, "x")], {}, 1)
    assert chosen(found) == ["b"]
    selection, worth = batch_of()
    assert with_relabels(selection, [], worth, 10) == selection


def test_what_the_functions_leave_open_is_asked_first_where_the_model_is_equally_unsure() -> None:
    pool = pool_of(40)
    flat = dict.fromkeys(("nll", "confidence", "margin"), [0.5] * 40)
    scores = scores_of(pool, **{name: pa.array(column) for name, column in flat.items()})
    open_ones = set(pool["record"].to_pylist()[::4])
    priority = [float(record in open_ones) for record in pool["record"].to_pylist()]
    rule = AcquisitionRule(batch=8, control_share=0.0)
    found = select(scores, pool.append_column("priority", pa.array(priority)), rule)
    without_it = select(scores, pool, rule)
    share = len(set(chosen(found)) & open_ones), len(set(chosen(without_it)) & open_ones)
    assert share[0] > share[1]
    assert all("the functions and the model are less sure" in p.reason for p in found)
    assert not any("functions" in p.reason for p in without_it)


def test_a_score_that_is_the_same_for_all_is_no_reason() -> None:
    pool = pool_of(20)
    flat = pa.array([0.5] * 20)
    found = select(scores_of(pool, nll=flat, confidence=flat, margin=flat), pool, AcquisitionRule(batch=5))
    assert not any("less sure" in picked.reason for picked in found)
