"""Texts that lie within longer ones: what is found is what brute force finds, and what is left out is counted."""

from __future__ import annotations

import random

import numpy as np
import pytest

from curation import contained, grouping, minhash, shingles, text

RULE = minhash.DuplicateRule()
WORDS = [f"w{i}" for i in range(4000)]


def prose(seed: int, words: int) -> list[str]:
    return random.Random(seed).choices(WORDS, k=words)


def found_in(texts: list[str]) -> dict[tuple[int, int], float]:
    corpus = grouping.InMemory(texts, RULE)
    made = contained.find_contained(corpus, np.ones(len(texts), bool))
    return {(a, b): share for (a, b), share in zip(made.pairs.tolist(), made.share.tolist(), strict=True)}


def threads() -> list[str]:
    """Mails, threads that quote some of them with a word changed here and there, and long texts that share a page."""
    mails = [prose(seed, 60) for seed in range(30)]
    quoting = []
    for seed, mail in enumerate(mails[:10]):
        copy = list(mail)
        for place in range(7, 60, 20 if seed % 2 else 9):  # 3 words or 6: the share is 0.73 to 0.79, or 0.46
            copy[place] = "other"
        quoting.append([*prose(100 + seed, 500), *(mail if seed < 4 else copy), *prose(200 + seed, 300)])
    page = prose(999, 320)
    manuals = [[*prose(300 + seed, 700), *page, *prose(400 + seed, 300)] for seed in range(2)]
    return [" ".join(words) for words in (*mails, *quoting, *manuals, prose(500, 3))]


def brute_force(texts: list[str]) -> dict[tuple[int, int], float]:
    sets = [text.shingles(value) for value in texts]
    wanted = {}
    for a, one in enumerate(sets):
        for b, other in enumerate(sets):
            smaller = len(one) < len(other) or (len(one) == len(other) and a > b)
            if smaller and len(one & other) >= contained.SHARE * min(len(one), contained.WINDOW) - 1e-9:
                wanted[a, b] = len(one & other) / len(one)
    return wanted


def test_what_lies_in_a_longer_text_is_found_with_its_share():
    texts = threads()
    wanted = brute_force(texts)
    assert {(i, 30 + i) for i in range(4)} <= wanted.keys()
    assert (41, 40) in wanted  # a page of two manuals, a quarter of each
    assert 0.2 < wanted[41, 40] < 0.3
    assert found_in(texts) == pytest.approx(wanted)
    assert grouping.group(texts, RULE).clusters() == []  # none of them is a near-duplicate


def test_without_windows_the_shared_page_is_missed(monkeypatch):
    monkeypatch.setattr(contained, "WINDOW", 10**6)
    found = found_in(threads())
    assert (0, 30) in found
    assert (41, 40) not in found


def test_looking_up_fewer_shingles_than_are_asked_for_would_be_noticed(monkeypatch):
    rarest = contained._rarest

    def fewer(windows, of, counts):
        values, owner = rarest(windows, of, counts)
        return values[::40], owner[::40]

    monkeypatch.setattr(contained, "_rarest", fewer)
    assert len(found_in(threads())) < len(brute_force(threads()))


def test_the_order_and_the_size_of_batches_change_nothing(monkeypatch):
    texts = threads()
    whole = found_in(texts)
    monkeypatch.setattr(shingles, "BATCH_CHARACTERS", 2000)
    assert found_in(texts) == pytest.approx(whole)
    turned = found_in(texts[::-1])
    last = len(texts) - 1
    assert {frozenset((last - a, last - b)) for a, b in turned} == {frozenset(pair) for pair in whole}


def test_what_everybody_quotes_proposes_no_pairs_and_is_counted():
    disclaimer = " ".join(prose(1, 40))
    texts = [disclaimer, *(" ".join([*prose(10 + i, 30), disclaimer]) for i in range(300))]
    corpus = grouping.InMemory(texts, RULE)
    made = contained.find_contained(corpus, np.ones(len(texts), bool))
    assert len(made.pairs) == 0
    assert made.partial >= 1


@pytest.mark.parametrize("texts", [[], [""], ["", "a", "a b"]])
def test_little_or_nothing_gives_no_pairs(texts):
    assert found_in(texts) == {}
