"""Decontamination: what is a leak, what only looks like one, and that evidence does not leak either."""

from __future__ import annotations

import csv
import json
import random
from math import comb

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curation import leakage, text
from curation.errors import UsageError
from curation.leakage import LeakageRule, find_leaks, find_overlaps
from tests.curation.stages import check_invariants, decided, example, view_of

RULE = LeakageRule()
WORDS = [f"w{i}" for i in range(3000)]


def prose(seed: int, words: int = 60) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=words))


POOL = [prose(seed) for seed in range(60)]
RESERVED = [prose(seed) for seed in range(1000, 1010)]


def leaks(
    texts: list[str], reserved: list[str] = RESERVED, rule: LeakageRule = RULE
) -> dict[int, tuple[int, str]]:
    return {leak.row: (leak.matched, leak.method) for leak in find_overlaps(texts, reserved, rule)}


def edited(words: str, places: tuple[int, ...]) -> str:
    changed = words.split()
    for place in places:
        changed[place] = f"new{place}"
    return " ".join(changed)


def test_unrelated_texts_do_not_leak():
    assert leaks(POOL) == {}


@pytest.mark.parametrize(
    "change", [str.upper, lambda t: f"  {t}\n", lambda t: t.replace(" ", ", ") + "!", lambda t: f'"{t}"']
)
def test_a_copy_is_exact_whatever_its_case_spaces_and_punctuation(change):
    assert leaks([*POOL, change(RESERVED[3])]) == {60: (3, "exact")}


def test_short_texts_leak_when_they_are_equal():
    assert leaks(["my card is lost", "my card is stolen"], ["My card is lost!"]) == {0: (0, "exact")}


def test_sums_with_another_sign_are_other_sums():
    assert leaks(["what is 12 + 5", "what is 12 - 5"], ["What is 12 - 5?"]) == {1: (0, "exact")}


def test_a_near_duplicate_leaks_with_its_jaccard_index():
    copy = edited(RESERVED[2], (2, 58))
    (found,) = find_overlaps([*POOL, copy], RESERVED, RULE)
    assert (found.row, found.matched, found.method) == (60, 2, "near")
    assert found.score == pytest.approx(text.jaccard(text.shingles(copy), text.shingles(RESERVED[2])))


def test_a_run_of_thirteen_words_leaks_and_one_of_twelve_does_not():
    words = RESERVED[4].split()
    thirteen = " ".join([prose(1, 20), *words[10:23], prose(2, 20)])
    twelve = " ".join([prose(3, 20), *words[10:22], prose(4, 20)])
    assert leaks([*POOL, thirteen, twelve]) == {60: (4, "ngram")}


def test_a_question_embedded_in_a_long_text_leaks_as_a_whole():
    (found,) = find_overlaps([*POOL, f"{prose(5, 200)} {RESERVED[0]} {prose(6, 200)}"], RESERVED, RULE)
    assert (found.row, found.method, found.score) == (60, "ngram", 1.0)


SIGNATURE = (
    "kind regards from your friendly team at the northern freight desk open every day from eight to six"
)


def test_a_signature_that_many_records_share_is_no_leak():
    assert leaks([f"{t} {SIGNATURE}" for t in POOL], [f"{t} {SIGNATURE}" for t in RESERVED]) == {}


def test_counting_common_runs_would_raise_that_false_alarm(monkeypatch):
    monkeypatch.setattr(LeakageRule, "most", lambda self, texts: 10**9)
    assert len(leaks([f"{t} {SIGNATURE}" for t in POOL], [f"{t} {SIGNATURE}" for t in RESERVED])) == len(POOL)


def test_a_template_that_fills_most_of_a_prompt_makes_no_near_duplicates():
    template = prose(77, 80)
    pool = [f"{template} {prose(seed, 8)}" for seed in range(50)]
    reserved = [f"{template} {prose(seed, 8)}" for seed in range(500, 505)]
    assert text.jaccard(text.shingles(pool[0]), text.shingles(reserved[0])) > RULE.threshold
    assert leaks(pool, reserved) == {}
    assert leaks([*pool, reserved[1].upper()], reserved) == {50: (1, "exact")}
    # The same template about the same thing, with one word changed: a leak for what is its own.
    assert leaks([*pool, edited(reserved[1], (87,))], reserved) == {50: (1, "near")}


def test_a_leak_that_was_copied_many_times_is_not_taken_for_boilerplate():
    copies = [edited(RESERVED[6], (i % 60,)) for i in range(30)]
    found = leaks([*POOL, *copies])
    assert set(found) == set(range(60, 90))
    assert {matched for matched, _ in found.values()} == {6}
    embedded = [f"{prose(2000 + i)} {RESERVED[6]} {prose(3000 + i)}" for i in range(30)]
    assert set(leaks([*POOL, *embedded])) == set(range(60, 90))


def passages(pool: int, copies: int) -> tuple[list[str], list[str]]:
    """A small pool in which different texts quote one reserved text, and the reserved ones."""
    quoted = " ".join(RESERVED[0].split()[20:34])
    quoting = [f"{prose(5000 + i, 40)} {quoted} {prose(6000 + i, 40)}" for i in range(copies)]
    return [prose(7000 + i) for i in range(pool - copies)] + quoting, RESERVED


@pytest.mark.parametrize(("pool", "copies"), [(20, 3), (50, 4), (80, 6), (150, 9)])
def test_a_passage_that_leaks_again_and_again_is_found_in_a_small_pool(pool, copies):
    texts, reserved = passages(pool, copies)
    assert leaks(texts, reserved) == dict.fromkeys(range(pool - copies, pool), (0, "ngram"))


def test_two_in_a_hundred_and_no_chance_would_miss_that_passage(monkeypatch):
    monkeypatch.setattr(LeakageRule, "most", lambda self, texts: min(self.common, max(3, texts // 50)))
    assert [len(leaks(*passages(*size))) for size in ((50, 4), (80, 6), (150, 9))] == [0, 0, 0]


def test_a_habit_is_what_one_in_fifty_would_not_reach_by_chance():
    def beyond(texts: int, count: int) -> float:
        return 1 - sum(comb(texts, i) * 0.02**i * 0.98 ** (texts - i) for i in range(count + 1))

    for texts in (24, 30, 50, 75, 100, 150):
        most = RULE.most(texts)
        assert beyond(texts, most) <= 0.001 < beyond(texts, most - 1)
    assert (RULE.most(0), RULE.most(5), RULE.most(10**7)) == (3, 3, 10)


def test_a_row_that_stands_many_times_makes_no_habit_of_what_it_quotes():
    texts, reserved = passages(40, 1)
    assert len(leaks(texts + [texts[-1].upper()] * 60, reserved)) == 61


def test_counting_every_copy_would_hide_that_leak(monkeypatch):
    monkeypatch.setattr(leakage, "_of_different", lambda hits, parts: hits[0].astype(np.int64))
    texts, reserved = passages(40, 1)
    assert leaks(texts + [texts[-1].upper()] * 60, reserved) == {}


def test_the_same_leak_is_found_among_many_more_texts():
    many = [prose(seed, 30) for seed in range(10_000, 13_000)]
    assert leaks([*many, edited(RESERVED[2], (2, 58))]) == {3000: (2, "near")}


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 9), st.sets(st.integers(0, 59), max_size=4))
def test_what_is_called_near_has_the_index_and_what_has_it_is_called_a_leak(which, places):
    copy = edited(RESERVED[which], tuple(places))
    exact = text.jaccard(text.shingles(copy), text.shingles(RESERVED[which]))
    found = find_overlaps([*POOL, copy], RESERVED, RULE)
    assert [leak.matched for leak in found] == ([which] if exact >= RULE.threshold or found else [])
    if exact >= RULE.threshold:
        assert found[0].method == ("near" if places else "exact")


@pytest.mark.parametrize(
    ("texts", "reserved"), [([], RESERVED), (POOL, []), ([], []), ([""], [""]), ([" "], RESERVED)]
)
def test_nothing_to_compare_gives_no_leaks(texts, reserved):
    assert find_overlaps(texts, reserved, RULE) == []


@pytest.mark.parametrize("wrong", [{"threshold": 0}, {"ngram": 0}, {"common": 0}, {"own": 2}])
def test_a_rule_that_makes_no_sense_is_refused(wrong):
    with pytest.raises(UsageError):
        LeakageRule(**wrong)


# --- Stage ----------------------------------------------------------------------------------------


def reserved_view():
    return view_of(
        [example(f"eval{i}", t, f"{prose(4000 + i, 30)}", trust="gold") for i, t in enumerate(RESERVED)]
    )


def pool_view(*more):
    return view_of([*(example(f"r{i}", t, "fine") for i, t in enumerate(POOL)), *more])


def test_leaks_keep_every_invariant():
    view = pool_view(example("x", RESERVED[1].upper(), "a"), example("y", edited(RESERVED[2], (3,))))
    found = decided(check_invariants(lambda rows: find_leaks(rows, reserved_view(), RULE), view))
    assert found["x", "x/label"] == (
        "drop",
        {"matched": "eval1", "field": "prompt", "method": "exact", "score": 1.0},
    )
    assert found["y", None][1]["matched"] == "eval2"
    assert len(found) == 2


def test_every_completion_of_a_leaking_record_goes():
    view = pool_view(example("x", RESERVED[1], "a"), example("x", RESERVED[1], "b", label="x/2"))
    assert decided(find_leaks(view, reserved_view(), RULE)).keys() == {("x", "x/label"), ("x", "x/2")}


def test_evidence_does_not_quote_the_evaluation_text():
    view = pool_view(example("x", f"{prose(1, 30)} {RESERVED[1]}", "a"))
    (row,) = find_leaks(view, reserved_view(), RULE).to_pylist()
    assert not any(word in row["evidence"] + row["reason"] for word in RESERVED[1].split())


def test_a_record_is_not_compared_with_itself():
    assert find_leaks(reserved_view(), reserved_view(), RULE).num_rows == 0


def test_a_completion_leaks_when_it_is_free_text_and_nobody_elses():
    answer = reserved_view()["completion"][4].as_py()
    view = pool_view(example("x", "another question", answer))
    assert decided(find_leaks(view, reserved_view(), RULE))["x", "x/label"][1]["field"] == "completion"
    assert find_leaks(view, reserved_view(), LeakageRule(completions=False)).num_rows == 0


def test_class_labels_and_standard_replies_are_no_leaks():
    reply = prose(9999, 30)
    reserved = view_of(
        [example("e", RESERVED[0], reply, trust="gold"), example("f", RESERVED[1], "refund", trust="gold")]
    )
    view = view_of([example(f"r{i}", t, reply if i % 2 else "refund") for i, t in enumerate(POOL)])
    assert find_leaks(view, reserved, RULE).num_rows == 0


def test_a_system_message_that_all_share_is_no_leak():
    def asked(record, question):
        messages = [{"role": "system", "content": prose(55, 80)}, {"role": "user", "content": question}]
        return example(record, "unused", None, messages=messages)

    pool = view_of([asked("a", "where is my parcel now"), asked("b", "who pays for the pallet")])
    reserved = view_of([asked("e", "who pays for the pallet?")])
    assert decided(find_leaks(pool, reserved, RULE)).keys() == {("b", None)}


def test_plain_text_keeps_signs_that_mean_something():
    assert leakage.plain('"Pay £40, (or -5%)!"  … now') == "pay £40 or -5% now"


# --- Levels: planted, real, and none where there is none --------------------------------------------


def planted(level: str, seed: int) -> tuple[str, str]:
    """A reserved text, and a leak of it that this level alone can see."""
    words = prose(seed, 60).split()
    before, after = prose(seed + 10_000, 80), prose(seed + 20_000, 80)
    if level == "exact":  # too short for any run
        return " ".join(words[:4]), " ".join(words[:4]).upper() + " !"
    if level == "near":  # 12 words in a row and then another one: eight shingles of ten, and no run of 13
        return " ".join(words[:13]), " ".join([*words[:12], "other"])
    if level == "ngram":  # a passage out of it
        return " ".join(words), " ".join([before, *words[20:34], after])
    return " ".join(words[:11]), " ".join([before, *words[:11], after])  # too short for a run of 13


LEVELS = {"exact": "_exact", "near": "_near", "ngram": "_ngrams", "ngram8": "_share"}


@pytest.mark.parametrize("level", LEVELS)
def test_leaks_planted_at_each_level_are_all_found_by_it(level):
    pairs = [planted(level, 40_000 + seed) for seed in range(50)]
    found = leaks([*POOL, *(leak for _, leak in pairs)], [held for held, _ in pairs])
    assert found == {60 + i: (i, level) for i in range(50)}


@pytest.mark.parametrize("level", LEVELS)
def test_a_level_that_is_switched_off_misses_what_only_it_can_see(level, monkeypatch):
    monkeypatch.setattr(leakage, LEVELS[level], lambda *_: [])
    pairs = [planted(level, 40_000 + seed) for seed in range(50)]
    rule = LeakageRule(most_runs=1.0) if level == "near" else RULE  # near and most runs see much of the same
    found = leaks([*POOL, *(leak for _, leak in pairs)], [held for held, _ in pairs], rule)
    assert {method for _, method in found.values()} == ({"near"} if level == "exact" else set())


def brute_force(texts: list[str], reserved: list[str]) -> set[int]:
    """The rows that leak by the letter of the rule, compared one with one; what many share is not left out."""
    held = [leakage.plain(t) for t in reserved]
    sets = [[set(text.shingles(t)), runs(t, 13), runs(t, 8)] for t in held]
    found = set()
    for row, value in enumerate(map(leakage.plain, texts)):
        near, long, short = set(text.shingles(value)), runs(value, 13), runs(value, 8)
        if value in held or any(
            (near and text.jaccard(near, a) >= 0.8) or long & b or (c and len(short & c) >= 0.7 * len(c))
            for a, b, c in sets
        ):
            found.add(row)
    return found


def runs(value: str, n: int) -> set[tuple[str, ...]]:
    return set(text.ngrams(text.tokens(value), n))


@pytest.mark.shared_data
def test_the_real_leaks_of_a_split_of_sms_messages_are_all_found_and_no_others(shared_data):
    rows = [
        row["v2"]
        for name in ("train.csv", "valid.csv")
        for row in csv.DictReader((shared_data / "ws-lfr-sms" / name).open(encoding="utf-8"))
    ]
    random.Random(0).shuffle(rows)
    reserved, pool = rows[:300], rows[1000:4000]
    found = {leak.row for leak in find_overlaps(pool, reserved, RULE)}
    assert len(found) > 60
    assert found == brute_force(pool, reserved)


@pytest.mark.shared_data
def test_texts_of_other_domains_raise_no_alarm(shared_data):
    def column(path: str, name: str) -> list[str]:
        return [row[name] for row in csv.DictReader((shared_data / path).open(encoding="utf-8"))]

    sums = [
        json.loads(line)["question"] for line in next((shared_data / "instr-gsm8k").glob("*.jsonl")).open()
    ]
    bank = column(
        str(next((shared_data / "intent-banking77").glob("*.csv")).relative_to(shared_data)), "text"
    )
    menu = column(str(next((shared_data / "instr-e2e-nlg").glob("*.csv")).relative_to(shared_data)), "ref")
    clean = 0
    for pool, reserved in ((sums, bank), (bank, menu), (menu, sums), (bank, sums)):
        clean += len(pool[:5000])
        assert find_overlaps(pool[:5000], reserved[:5000], RULE) == []
    assert clean > 15_000  # so the rate of false alarms is under 3 in 15,000, with 95% confidence
