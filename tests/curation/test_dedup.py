"""Duplicates: what is found, what is never said to be one, what stays; and conflicts."""

from __future__ import annotations

import random
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curation import dedup, grouping, minhash, shingles, text
from curation.dedup import find_duplicates
from curation.errors import UsageError
from curation.minhash import DuplicateRule
from tests.curation.stages import check_invariants, decided, example, view_of

RULE = DuplicateRule()
WORDS = [f"w{i}" for i in range(5000)]


def prose(seed: int, words: int = 100) -> list[str]:
    return random.Random(seed).choices(WORDS, k=words)


def edited(words: list[str], edits: int, seed: int) -> list[str]:
    """The words with ``edits`` of them replaced, evenly spread, each by a word that stands nowhere else."""
    changed = list(words)
    for k in range(edits):
        changed[(k * len(words)) // edits] = f"new{seed}x{k}"
    return changed


def planted(pairs: int) -> tuple[list[str], dict[tuple[int, int], float]]:
    """Texts in pairs whose Jaccard index is spread from 0.5 to 1, and that index as sets of shingles give
    it."""
    texts, exact = [], {}
    for seed in range(pairs):
        words = prose(seed, 70 + seed % 81)
        one, other = " ".join(words), " ".join(edited(words, seed % 7, seed))
        exact[2 * seed, 2 * seed + 1] = text.jaccard(text.shingles(one), text.shingles(other))
        texts += [one, other]
    return texts, exact


@pytest.fixture(scope="module")
def corpus() -> tuple[list[str], dict[tuple[int, int], float]]:
    return planted(2000)


def found_pairs(texts: list[str], rule: DuplicateRule = RULE) -> set[tuple[int, int]]:
    """The pairs within clusters."""
    clusters = find_duplicates(range(len(texts)), texts, rule).clusters
    return {pair for cluster in clusters for pair in combinations(cluster.members, 2)}


def recall(found: set[tuple[int, int]], exact: dict[tuple[int, int], float], at_least: float) -> float:
    wanted = {pair for pair, value in exact.items() if value >= at_least}
    return len(found & wanted) / len(wanted)


def proposed_unverified(texts: list[str], rule: DuplicateRule) -> set[tuple[int, int]]:
    """What banding alone proposes."""
    keys = minhash.band_keys(minhash.signatures(minhash.shingle_hashes(texts, rule), rule), rule)
    alone = np.arange(len(texts))
    blocks = (block for band in keys.T for block in grouping.candidate_pairs(grouping.buckets(band), alone))
    return {(min(pair), max(pair)) for block in blocks for pair in block.tolist()}


# --- Quality: recall and precision against the exact index ----------------------------------------


def test_planted_pairs_at_the_threshold_are_found_and_none_below_it(corpus):
    texts, exact = corpus
    assert sum(0.8 <= value < 0.85 for value in exact.values()) > 150
    assert sum(0.5 <= value < 0.8 for value in exact.values()) > 800
    found = found_pairs(texts)
    assert recall(found, exact, 0.8) >= 0.995
    assert recall(found, exact, 0.9) >= 0.999
    assert all(exact.get(pair, 0) >= RULE.threshold for pair in found)


def test_uniting_unverified_proposals_would_fail_the_check_of_precision(corpus):
    texts, exact = corpus
    proposed = proposed_unverified(texts, RULE)
    assert not all(exact.get(pair, 0) >= RULE.threshold for pair in proposed)


def test_the_banding_that_datasketch_chooses_would_fail_the_check_of_recall(corpus):
    datasketch = pytest.importorskip("datasketch")
    chosen = datasketch.MinHashLSH(threshold=0.8, num_perm=128)
    texts, exact = corpus
    texts = texts[:800]
    exact = {pair: value for pair, value in exact.items() if pair[1] < 800}
    theirs = found_pairs(texts, DuplicateRule(bands=chosen.b, rows=chosen.r))
    near = {pair: value for pair, value in exact.items() if value < 0.9}
    assert recall(theirs, near, 0.8) < 0.9
    assert recall(found_pairs(texts), near, 0.8) >= 0.99


@pytest.mark.parametrize("threshold", [0.5, 0.6, 0.7, 0.9, 1.0])
def test_another_threshold_chooses_another_banding_and_keeps_the_recall(corpus, threshold):
    rule = DuplicateRule(threshold=threshold)
    assert minhash.found_probability(threshold, rule.bands, rule.rows) >= minhash.RECALL
    texts, exact = corpus
    texts = texts[:1000]
    exact = {pair: value for pair, value in exact.items() if pair[1] < 1000}
    assert recall(found_pairs(texts, rule), exact, threshold) >= 0.99


def test_the_default_banding_is_32_of_8():
    assert (RULE.bands, RULE.rows) == (32, 8)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.sampled_from("abcd"), min_size=1, max_size=12).map(" ".join), max_size=25))
def test_clusters_are_those_of_brute_force(texts):
    rule = DuplicateRule(threshold=0.7, shingle=2, bands=256, rows=1)
    sets = [text.shingles(value, 2) for value in texts]
    pairs = [(i, j) for i, j in combinations(range(len(texts)), 2) if text.jaccard(sets[i], sets[j]) >= 0.7]
    labels = grouping.group(texts, rule).labels
    assert labels.tolist() == grouping.components(len(texts), np.array(pairs, np.int64)).tolist()


def test_signatures_agree_as_often_as_the_sets_overlap(corpus):
    texts, exact = corpus
    signature = minhash.signatures(minhash.shingle_hashes(texts, RULE), RULE)
    errors = [np.mean(signature[i] == signature[j]) - value for (i, j), value in exact.items()]
    assert abs(np.mean(errors)) < 0.003
    assert np.std(errors) < 0.031  # sqrt(j (1 - j) / 256) at its largest


# --- Stability: machines, versions, order ---------------------------------------------------------

GOLDEN_TEXTS = ["the quick brown fox jumps over the lazy dog", "to be", "日本語のテキストです", ""]
GOLDEN = [
    [500384545, 219293938, 581935135, 47183509],
    [105205876, 3911332371, 1142008158, 3562950414],
    [1159758038, 340897905, 142090834, 55517586],
    [4294967295, 4294967295, 4294967295, 4294967295],
]


def test_signatures_are_the_same_on_every_machine_and_version():
    signature = minhash.signatures(minhash.shingle_hashes(GOLDEN_TEXTS, RULE), RULE)
    assert signature.shape == (4, 256)
    assert signature[:, [0, 1, 2, 255]].tolist() == GOLDEN


def test_a_changed_seed_fails_the_golden_check():
    other = DuplicateRule(seed=2)
    assert minhash.signatures(minhash.shingle_hashes(GOLDEN_TEXTS, other), other)[0, 0] != GOLDEN[0][0]
    assert other.digest() != RULE.digest()


def test_signatures_of_another_scheme_are_refused():
    with pytest.raises(UsageError, match="affine64"):
        DuplicateRule(scheme="affine64")


def test_clusters_do_not_depend_on_the_order_of_the_texts(corpus):
    texts = corpus[0][:600] + [" ".join(edited(prose(1), 3, 10_000 + i)) for i in range(100)]
    clusters = {frozenset(c.members) for c in find_duplicates(range(len(texts)), texts, RULE).clusters}
    for seed in range(3):
        order = list(range(len(texts)))
        random.Random(seed).shuffle(order)
        found = find_duplicates(order, [texts[i] for i in order], RULE)
        assert {frozenset(cluster.members) for cluster in found.clusters} == clusters


def test_clusters_do_not_depend_on_the_size_of_batches(corpus, monkeypatch):
    texts = corpus[0][:200]
    whole = find_duplicates(range(200), texts, RULE)
    monkeypatch.setattr(shingles, "BATCH_CHARACTERS", 3000)
    monkeypatch.setattr(minhash, "_BLOCK", 500)
    assert find_duplicates(range(200), texts, RULE) == whole


@given(
    st.integers(1, 30), st.lists(st.tuples(st.integers(0, 29), st.integers(0, 29)), max_size=40), st.randoms()
)
def test_components_do_not_depend_on_the_order_of_pairs(size, pairs, shuffled):
    pairs = [(a % size, b % size) for a, b in pairs]
    labels = grouping.components(size, np.array(pairs, np.int64)).tolist()
    shuffled.shuffle(pairs)
    assert grouping.components(size, np.array([p[::-1] for p in pairs], np.int64)).tolist() == labels
    assert all(labels[a] == labels[b] <= min(a, b) for a, b in pairs)
    assert all(labels[label] == label for label in labels)


@given(st.lists(st.integers(0, 40), max_size=60), st.integers(0, 2))
def test_buckets_hold_the_texts_that_share_a_key_and_no_other(values, shift):
    keys = np.array(values, np.uint64) << np.uint64(20 * shift)  # also keys that agree in their lower half
    order, start, size = grouping.buckets(keys)
    found = [order[s : s + n].tolist() for s, n in zip(start.tolist(), size.tolist(), strict=True)]
    wanted = [[i for i, v in enumerate(values) if v == value] for value in sorted(set(values))]
    assert found == [places for places in wanted if len(places) > 1]


# --- Wide buckets: near linear, and nothing lost that matters -------------------------------------


def verified_pairs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Counts, from now on, the pairs that are compared exactly."""
    counted: list[int] = []
    original = grouping.verify

    def counting(sets, pairs, threshold):
        counted.append(len(pairs))
        return original(sets, pairs, threshold)

    monkeypatch.setattr(grouping, "verify", counting)
    return counted


def test_identical_texts_cost_no_comparison(monkeypatch):
    counted = verified_pairs(monkeypatch)
    found = find_duplicates(range(3000), [" ".join(prose(0))] * 3000, RULE)
    assert [len(cluster.members) for cluster in found.clusters] == [3000]
    assert sum(counted) == 0


def test_letters_from_one_template_are_one_cluster_in_linear_time(monkeypatch):
    counted = verified_pairs(monkeypatch)
    texts = [" ".join([*prose(0, 110), f"number {i}"]) for i in range(3000)]
    found = find_duplicates(range(3000), texts, RULE)
    assert [len(cluster.members) for cluster in found.clusters] == [3000]
    assert sum(counted) < 5 * 3000


def template_with_own_parts(count: int) -> list[str]:
    """Texts that share 108 words of 126, so that any two lie under the threshold."""
    return [" ".join(prose(0, 108) + prose(seed + 1, 18)) for seed in range(count)]


def test_a_template_with_parts_of_their_own_is_not_merged_and_costs_linear_time(monkeypatch):
    counted = verified_pairs(monkeypatch)
    texts = template_with_own_parts(3000)
    found = find_duplicates(range(3000), texts, RULE)
    assert found.clusters == ()
    assert found.partial > 0
    assert sum(counted) < 80 * 3000


def test_duplicates_inside_a_wide_bucket_are_found_by_what_sets_them_apart(monkeypatch):
    texts = template_with_own_parts(1500)
    copies = {
        i: " ".join([*texts[i].split()[:-12], *edited(["other"] * 12, 12, i)]) for i in range(0, 1500, 10)
    }
    for i, copy in copies.items():
        assert text.jaccard(text.shingles(texts[i]), text.shingles(copy)) >= 0.8
    ids = list(range(1500)) + [f"copy of {i}" for i in copies]
    pairs = {frozenset(c.members) for c in find_duplicates(ids, texts + list(copies.values()), RULE).clusters}
    assert sum({i, f"copy of {i}"} in pairs for i in copies) / len(copies) >= 0.99
    monkeypatch.setattr(grouping, "RESIDUES", 0)
    monkeypatch.setattr(grouping, "LEADERS", 0)
    blind = find_duplicates(ids, texts + list(copies.values()), RULE).clusters
    assert len(blind) < 0.9 * len(copies)


# --- Filters: ids and texts -----------------------------------------------------------------------


def test_the_first_stays_or_the_one_of_best_rank():
    words = prose(0)
    texts = [" ".join(edited(words, 1, i)) for i in range(3)] + ["something else"]
    assert find_duplicates("abcd", texts, RULE).clusters[0].kept == "a"
    ranked = find_duplicates("abcd", texts, RULE, rank=[2, 1, 1, 0])
    assert ranked.clusters[0].kept == "b"
    assert ranked.dropped == {"a", "c"}


def test_similarity_is_the_exact_index_with_the_kept_one():
    words = prose(0)
    texts = [" ".join(words), " ".join(edited(words, 2, 1)), "  " + " ".join(words).upper()]
    (cluster,) = find_duplicates([1, 2, 3], texts, RULE).clusters
    exact = text.jaccard(text.shingles(texts[0]), text.shingles(texts[1]))
    assert cluster.similarity == (1.0, pytest.approx(exact), 1.0)


def test_texts_without_spaces_are_compared_by_characters():
    one = "本日はご来店いただき誠にありがとうございます。ご注文の品をお届けいたします。"
    found = find_duplicates(
        [1, 2, 3], [one, one.replace("本日", "今日"), "まったく別の文章がここにあります。"], RULE
    )
    assert [cluster.members for cluster in found.clusters] == [(1, 2)]


def test_no_texts_give_no_clusters():
    assert find_duplicates([], [], RULE).clusters == ()


def test_ids_that_do_not_fit_are_refused():
    with pytest.raises(UsageError, match="2 ids and 1 texts"):
        find_duplicates([1, 2], ["a"], RULE)
    with pytest.raises(UsageError, match="twice"):
        find_duplicates([1, 1], ["a", "b"], RULE)


@pytest.mark.parametrize(
    "wrong",
    [
        {"threshold": 0},
        {"threshold": 1.1},
        {"shingle": 0},
        {"fields": ("body",)},
        {"bands": 4},
        {"fields": ()},
    ],
)
def test_a_rule_that_makes_no_sense_is_refused(wrong):
    with pytest.raises(UsageError):
        DuplicateRule(**wrong)


# --- Stages ---------------------------------------------------------------------------------------

LONG = " ".join(prose(7, 60))
NEAR = LONG + " today"
REPLY = " ".join(prose(8, 40))


def near(view):
    return dedup.near_duplicates(view, RULE)[0]


def test_exact_duplicates_keep_every_invariant():
    rows = [
        example("b", "Where is it?", "On its way."),
        example("a", "where  is it?", "ON ITS WAY."),
        example("c", "Where is it?", "Lost."),
        example("d", "Where is it?"),
    ]
    found = decided(check_invariants(dedup.exact_duplicates, view_of(rows)))
    assert found == {("b", "b/label"): ("drop", {"kept": "a", "kept_label": "a/label", "similarity": 1.0})}


def test_near_duplicates_keep_every_invariant():
    rows = [example("a", LONG, REPLY), example("b", NEAR, REPLY), example("c", "something else", REPLY)]
    found = decided(check_invariants(near, view_of(rows)))
    exact = text.jaccard(text.shingles(f"{LONG}\n{REPLY}"), text.shingles(f"{NEAR}\n{REPLY}"))
    evidence = {"kept": "a", "kept_label": "a/label", "similarity": round(exact, 6)}
    assert found == {("b", "b/label"): ("drop", evidence)}


@pytest.mark.parametrize("stage", [dedup.exact_duplicates, near, lambda view: dedup.conflicts(view, RULE)])
def test_references_of_one_record_are_never_held_against_each_other(stage):
    rows = [
        example("a", LONG, answer, label=f"a/{i}")
        for i, answer in enumerate(["yes", "yes", "no", REPLY, REPLY])
    ]
    assert stage(view_of(rows)).num_rows == 0


@pytest.mark.parametrize("stage", [dedup.exact_duplicates, near])
def test_the_better_trusted_stays_then_the_older_then_the_smaller_id(stage):
    def kept(*rows):
        return {evidence["kept"] for _, evidence in decided(stage(view_of(rows))).values()}

    first = example("a", LONG, REPLY, time="2024-03-01")
    assert kept(first, example("b", LONG, REPLY, time="2024-01-01")) == {"b"}
    assert kept(first, example("b", LONG, REPLY, trust="person")) == {"b"}
    assert kept(first, example("b", LONG, REPLY, time="2024-03-01")) == {"a"}
    assert {
        e["kept"]
        for _, e in decided(
            dedup.exact_duplicates(view_of([first, example("b", LONG, REPLY)]), {"b": 0, "a": 1})
        ).values()
    } == {"b"}


def test_a_record_without_an_answer_goes_before_one_that_has_it():
    rows = [example("a", LONG, None, time="2020"), example("b", NEAR, "card lost", time="2024")]
    assert decided(near(view_of(rows))).keys() == {("a", None)}


@pytest.mark.parametrize(
    ("one", "other"),
    [("card_lost", "card_stolen"), ("Yes, we do.", "No, we do not."), (f"{REPLY} 40", f"{REPLY} 75")],
)
def test_near_duplicates_with_another_answer_are_held_as_conflicts_and_not_dropped(one, other):
    view = view_of([example("a", LONG, one), example("b", NEAR, other)])
    assert near(view).num_rows == 0
    found = decided(check_invariants_of_conflicts(view))
    assert {key[0]: (action, e["against"]) for key, (action, e) in found.items()} == {
        "a": ("hold", "b"),
        "b": ("hold", "a"),
    }


def check_invariants_of_conflicts(view):
    return check_invariants(lambda rows: dedup.conflicts(rows, RULE), view)


def test_dropping_without_a_look_at_the_answers_would_lose_the_conflict(monkeypatch):
    view = view_of([example("a", LONG, "card_lost"), example("b", NEAR, "card_stolen")])
    monkeypatch.setattr(dedup, "answer", lambda row: "the same")
    assert near(view).num_rows == 1


def test_good_answers_in_other_words_are_no_conflict():
    rows = [
        example("a", LONG, "You can return it at any shop of ours."),
        example("b", LONG, "Bring it back to one of our shops, please."),
    ]
    assert dedup.conflicts(view_of(rows), RULE).num_rows == 0


def test_questions_with_other_numbers_are_other_questions():
    one, other = f"{LONG} What is 12 plus 5?", f"{LONG} What is 12 plus 6?"
    rows = [example("a", one, "The sum of both is 17."), example("b", other, "The sum of both is 18.")]
    assert dedup.conflicts(view_of(rows), RULE).num_rows == 0
    assert near(view_of(rows)).num_rows == 0


def test_a_draft_cannot_put_a_persons_answer_on_hold():
    rows = [example("a", LONG, "card_lost", trust="person"), example("b", LONG, "card_stolen")]
    assert decided(dedup.conflicts(view_of(rows), RULE)).keys() == {("b", "b/label")}


def test_a_record_that_holds_both_answers_contradicts_neither():
    rows = [example("a", LONG, "x"), example("a", LONG, "y", label="a/2"), example("b", LONG, "x")]
    assert dedup.conflicts(view_of(rows), RULE).num_rows == 0


def test_long_classes_are_compared_as_a_whole_when_the_question_is_closed():
    rows = [
        example("a", LONG, "card payment wrong exchange rate"),
        example("b", LONG, "card payment fee was charged"),
    ]
    assert dedup.conflicts(view_of(rows), RULE).num_rows == 0
    assert dedup.conflicts(view_of(rows), RULE, closed=True).num_rows == 2


def with_system(record: str, system: str, prompt: str, completion: str):
    messages = [{"role": "system", "content": system}, {"role": "user", "content": prompt}]
    return example(record, f"system: {system}\nuser: {prompt}", completion, messages=messages)


def test_a_system_message_that_all_share_makes_no_duplicates():
    rows = [
        with_system(str(i), LONG, f"question {i} about {WORDS[i]}", f"answer {WORDS[i + 50]} it is")
        for i in range(20)
    ]
    assert near(view_of(rows)).num_rows == 0
    assert dedup.prompt_clusters(view_of(rows), RULE).num_rows == 0


def test_another_system_message_is_another_question():
    rows = [
        with_system("a", "Answer in French.", LONG, REPLY),
        with_system("b", "Answer in German.", LONG, REPLY),
    ]
    assert near(view_of(rows)).num_rows == 0
    assert dedup.exact_duplicates(view_of(rows)).num_rows == 0


def test_a_chain_names_what_connects_it():
    words = prose(3, 120)
    far = [" ".join(edited(words, edits, 0)) for edits in (0, 2)]
    step = [*far[1].split()]
    for k in (30, 90):
        step[k] = f"other{k}"
    rows = [example("a", far[0]), example("b", far[1]), example("c", " ".join(step))]
    found = decided(near(view_of(rows)))
    assert found["c", None][1]["similarity"] < RULE.threshold
    assert found["c", None][1]["through"] == "b"
    assert found["c", None][1]["through_similarity"] >= RULE.threshold


def test_clusters_of_prompts_are_named_by_their_smallest_record():
    rows = [
        example("d", NEAR, "x"),
        example("b", LONG, "y"),
        example("c", "alone", "z"),
        example("b", LONG, "w", label="b/2"),
    ]
    clusters = dedup.prompt_clusters(view_of(rows), RULE)
    assert clusters.to_pylist() == [{"record": "b", "cluster": "b"}, {"record": "d", "cluster": "b"}]
    assert dedup.near_duplicates(view_of(rows), RULE)[1].equals(clusters)
    assert dedup.prompt_clusters(view_of([]), RULE).num_rows == 0
