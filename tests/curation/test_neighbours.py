"""Rows that mean the same by somebody's vectors: what is held, and that nothing is dropped on an opinion."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from curation import neighbours
from curation.errors import UsageError
from tests.curation.stages import check_invariants, decided, example, view_of

MEANINGS = {
    "where is my parcel": (1, 0, 0),
    "what happened to my package": (0.99, 0.05, 0),
    "who pays customs": (0, 1, 0),
    "who covers the duty": (0.1, 0.99, 0),
    "what is the weather": (0, 0, 1),
}


def encode(texts):
    return np.array([MEANINGS[text] for text in texts], np.float32) * 7


def view(*prompts: str):
    return view_of([example(f"r{i}", prompt, "x") for i, prompt in enumerate(prompts)])


def test_prompts_in_other_words_are_held_and_never_dropped():
    rows = view(*MEANINGS)
    found = decided(check_invariants(lambda v: neighbours.semantic_duplicates(v, encode), rows))
    assert {key[0]: (action, e["resembles"]) for key, (action, e) in found.items()} == {
        "r1": ("hold", "r0"),
        "r3": ("hold", "r2"),
    }


def test_a_threshold_that_nothing_reaches_holds_nothing():
    assert neighbours.semantic_duplicates(view(*MEANINGS), encode, 0.9999).num_rows == 0


def test_the_nearest_to_a_reserved_prompt_are_held_beside_it():
    pool = view("what happened to my package", "who covers the duty", "what is the weather")
    reserved = view_of([example("e0", "where is my parcel"), example("e1", "who pays customs")])
    found = decided(check_invariants(lambda v: neighbours.paraphrased_leaks(v, reserved, encode), pool))
    assert {key[0]: e["matched"] for key, (_, e) in found.items()} == {"r0": "e0", "r1": "e1"}
    assert neighbours.paraphrased_leaks(pool, view_of([]), encode).num_rows == 0


@given(st.integers(0, 40), st.integers(0, 40), st.integers(1, 6), st.integers(0, 1000))
def test_nearest_and_alike_are_those_of_brute_force(count, others, k, seed):
    rng = np.random.default_rng(seed)
    one, other = rng.normal(size=(count, 4)), rng.normal(size=(others, 4))
    cosine = neighbours.unit(one) @ neighbours.unit(other).T
    for row, found in zip(cosine, neighbours.nearest(one, other, k, 0.2), strict=True):
        wanted = sorted(((float(v), -j) for j, v in enumerate(row) if v >= 0.2), reverse=True)[:k]
        assert [j for j, _ in found] == [-j for _, j in wanted]
    within = neighbours.unit(one) @ neighbours.unit(one).T
    wanted = [[i, j] for j in range(count) for i in range(j) if within[i, j] >= 0.5]
    pairs, scores = neighbours.alike(one, 0.5)
    assert pairs.tolist() == wanted
    assert scores == pytest.approx([within[i, j] for i, j in wanted])


def test_the_size_of_blocks_changes_nothing(monkeypatch):
    vectors = np.random.default_rng(0).normal(size=(60, 3))
    whole = neighbours.alike(vectors, 0.9)[0].tolist()
    monkeypatch.setattr(neighbours, "_BLOCK", 7)
    assert neighbours.alike(vectors, 0.9)[0].tolist() == whole


@given(st.integers(0, 40), st.integers(0, 1000))
def test_whoever_drops_the_followers_keeps_a_row_within_the_threshold_for_each(count, seed):
    vectors = np.random.default_rng(seed).normal(size=(count, 3))
    cosine = neighbours.unit(vectors) @ neighbours.unit(vectors).T
    found = neighbours.followers(vectors, 0.8)
    kept = [row for row in range(count) if row not in found]
    for row, (like, score) in found.items():
        assert like in kept
        assert like < row
        assert score == pytest.approx(max(cosine[row, i] for i in kept if i < row))
    assert all(cosine[i, j] < 0.8 for i in kept for j in kept if i < j)


def test_a_chain_of_small_steps_is_not_followed_to_its_end():
    steps = np.array([[np.cos(a), np.sin(a)] for a in np.arange(0, 2, 0.3)])
    found = neighbours.followers(steps, 0.9)
    assert [like for like, _ in found.values()] == [0, 2, 4]
    pairs, _ = neighbours.alike(
        steps, 0.9
    )  # the first neighbour of each, whether it stays or not, is a chain
    assert {j: i for i, j in reversed(pairs.tolist())} == {j: j - 1 for j in range(1, 7)}


def test_hidden_states_that_point_one_way_are_told_apart():
    rng = np.random.default_rng(0)
    meaning = rng.normal(size=(40, 100))
    states = meaning + 20 * rng.normal(size=100) + 9 * rng.normal(size=(40, 1)) * rng.normal(size=100)
    twice = np.concatenate([states, states + 0.1 * rng.normal(size=states.shape)])
    wanted = [[i, i + 40] for i in range(40)]
    assert neighbours.alike(neighbours.isotropic(twice), 0.9)[0].tolist() == wanted
    assert len(neighbours.alike(twice, 0.9)[0]) > 1000  # as they are, nearly all are alike
    assert neighbours.isotropic(twice[:0]).shape == (0, 100)
    with pytest.raises(UsageError, match="3 texts are too few"):
        neighbours.isotropic(twice[:3])


def test_records_with_one_prompt_are_held_together():
    rows = view("where is my parcel", "what happened to my package", "what happened to my package")
    found = decided(neighbours.semantic_duplicates(rows, encode))
    assert {key[0]: e["resembles"] for key, (_, e) in found.items()} == {"r1": "r0", "r2": "r0"}


def test_vectors_of_nothing_resemble_nothing_and_broken_ones_are_refused():
    assert neighbours.nearest(np.zeros((1, 3)), np.ones((2, 3)), 2, 0.1) == [[]]
    with pytest.raises(UsageError, match="not finite"):
        neighbours.unit(np.array([[np.nan, 1.0]]))
