"""Normalising, shingles, and their numbers."""

from __future__ import annotations

import unicodedata
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curation import folding, minhash, text
from curation import shingles as numbers
from curation.errors import UsageError

WORDS = st.sampled_from(
    ["the", "cat", "sat", "on", "Mat", "naïve", "Straße", "１２", "ﬁne", "日本語", "ไทย", "x" * 20]
)
SPACES = st.sampled_from([" ", "  ", "\n", "\t", "\u00a0", "\u2003"])
PROSE = st.lists(st.tuples(WORDS, SPACES), max_size=30).map(lambda pairs: "".join(w + s for w, s in pairs))
TEXTS = st.one_of(PROSE, st.text(max_size=60), st.text("日本語です。 、ab", max_size=40))


def test_normalising_folds_width_case_and_white_space():
    assert text.normalise("  Ｈello\u00a0\tWORLD\n") == "hello world"
    assert text.normalise("Straße ﬁne") == "strasse fine"


@given(st.text(st.characters(max_codepoint=127), max_size=80))
def test_the_short_way_for_ascii_is_the_long_way(value):
    assert text.normalise(value) == " ".join(unicodedata.normalize("NFKC", value).casefold().split())


def test_a_script_without_spaces_is_cut_into_characters():
    assert text.tokens("日本 語") == ["日", "本", "語"]
    assert text.tokens("two words") == ["two", "words"]
    assert text.tokens("mostly english with 日本") == ["mostly", "english", "with", "日本"]


def test_a_text_shorter_than_a_shingle_is_one_shingle():
    assert text.shingles("to be", 5) == {"to be"}
    assert text.shingles("  ", 5) == set()
    assert text.jaccard(set(), set()) == 1.0


@settings(max_examples=200, deadline=None)
@given(st.lists(TEXTS, max_size=6), st.integers(1, 7))
def test_numbers_stand_for_shingles_one_to_one(texts, n):
    flat, offsets = numbers.as_sets(numbers.shingle_hashes(texts, n))
    sets = [text.shingles(value, n) for value in texts]
    assert np.diff(offsets).tolist() == [len(s) for s in sets]
    alone = {s: numbers.shingle_hashes([s], n)[0].tolist() for s in set().union(*sets)}
    for i, expected in enumerate(sets):
        found = set(flat[offsets[i] : offsets[i + 1]].tolist())
        # A shingle taken out of a mixed text may be read as another script than the text it stood in.
        known = {alone[s][0] for s in expected if len(alone[s]) == 1 and text.tokens(s) == s.split(" ")}
        assert known <= found


@settings(max_examples=200, deadline=None)
@given(TEXTS, TEXTS, st.integers(1, 6))
def test_jaccard_of_numbers_is_jaccard_of_shingles(one, other, n):
    sets = numbers.as_sets(numbers.shingle_hashes([one, other], n))
    found = numbers.pair_jaccard(sets, np.array([[0, 1], [1, 0], [0, 0]]))
    exact = text.jaccard(text.shingles(one, n), text.shingles(other, n))
    assert found.tolist() == [pytest.approx(exact), pytest.approx(exact), 1.0]


@given(st.lists(TEXTS, max_size=5), st.integers(1, 5))
def test_ngrams_are_shingles_without_the_short_texts(texts, n):
    counts = np.diff(numbers.ngram_hashes(texts, n)[1]).tolist()
    assert counts == [len(text.ngrams(text.tokens(value), n)) for value in texts]


def test_numbers_do_not_depend_on_the_batch(monkeypatch):
    texts = [f"the parcel number {i} went by rail and came by road" for i in range(50)] + ["", "日本語"]
    whole = numbers.shingle_hashes(texts, 3)
    monkeypatch.setattr(numbers, "BATCH_CHARACTERS", 60)
    parts = numbers.shingle_hashes(texts, 3)
    assert np.array_equal(whole[0], parts[0])
    assert np.array_equal(whole[1], parts[1])


def test_numbers_are_the_same_on_every_machine():
    flat, offsets = numbers.shingle_hashes(
        ["the cat sat on the mat", "", "日本語です これは", "a supercalifragilistic"], 5
    )
    assert offsets.tolist() == [0, 2, 2, 6, 7]
    assert [hex(value) for value in flat[[0, 2, 6]]] == GOLDEN


GOLDEN = ["0xb769d070f9fb85af", "0xec03c291cc6ccde1", "0xe53abf30b1b4931d"]


def test_words_in_another_order_are_another_shingle():
    flat, _ = numbers.shingle_hashes(["a b c d e", "b a c d e", "a b c e d", "e d c b a"], 5)
    assert len(set(flat.tolist())) == 4


def test_a_lone_surrogate_is_hashed_and_not_lost():
    flat, offsets = numbers.shingle_hashes(["bad \ud800 text", "bad \ud801 text"], 5)
    assert offsets.tolist() == [0, 1, 2]
    assert flat[0] != flat[1]


def test_a_shingle_of_no_words_is_refused():
    with pytest.raises(UsageError, match="0 words"):
        numbers.shingle_hashes(["a"], 0)


def test_nothing_gives_nothing():
    flat, offsets = numbers.shingle_hashes([])
    assert (len(flat), offsets.tolist()) == (0, [0])
    assert len(numbers.pair_jaccard(numbers.as_sets((flat, offsets)), np.empty((0, 2), np.int64))) == 0


HARD = [
    "",
    " ",
    "a",
    "The  quick\tbrown\n\nfox  ",
    "\x1cA\x1dB\x1eC\x1fD\x0b",
    "日本語のテキストです。ありがとう",
    "日本語 と English",
    "Ｆｕｌｌ ｗｉｄｔｈ",
    "naïve café\u00a0x\u2003y",
    "ÉCOLE\u2028Straße\u2029É\u0085x\u1680ﬁ “Quoted” — Ǆ ŉ İ",
    "ＥＣ ไทย ខ្មែរ မြန်မာ",
    "e\u0301 E\u0301 \u1e9e \u0130",
    "counterrevolutionaries antidisestablishmentarianism " * 3,
    "lone \ud800 surrogate",
    "nul\x00byte",
]


@pytest.fixture
def compiled():
    pytest.importorskip("numba")
    numbers.kernels(numbers.WORTH_COMPILING)
    yield
    numbers._loaded.clear()


def both(function):
    """What the numpy code gives, and what the compiled loops give."""
    loaded, numbers._loaded[:] = list(numbers._loaded), []
    plain = function()
    numbers._loaded[:] = loaded
    return plain, function()


@pytest.mark.usefixtures("compiled")
@settings(deadline=None)
@given(st.lists(st.one_of(st.text(max_size=60), st.sampled_from(HARD)), max_size=12), st.integers(1, 6))
def test_the_compiled_loops_give_the_same_shingles(texts, n):
    for make in (numbers.shingle_hashes, numbers.ngram_hashes):
        plain, fast = both(lambda make=make: make(texts, n))
        assert plain[0].tolist() == fast[0].tolist()
        assert plain[1].tolist() == fast[1].tolist()


def folded(texts):
    """The bytes that folding a batch gives for each text."""
    data, ends = folding.fold(texts)
    return [data[a:b].tobytes() for a, b in pairwise(ends.tolist())]


def tokens(texts):
    return [" ".join(text.tokens(value)).encode("utf-8", "surrogatepass") for value in texts]


@settings(deadline=None)
@given(
    st.lists(
        st.one_of(TEXTS, st.sampled_from(HARD), st.text(" \n\u00a0a\u0301\u00b4", max_size=9)), max_size=12
    )
)
def test_folding_a_batch_gives_the_tokens_of_each_text(texts):
    assert folded(texts) == tokens(texts)


def test_a_folding_without_lower_case_would_be_noticed(monkeypatch):
    monkeypatch.setattr(folding, "TABLE", bytes(range(256)))
    assert folded(["The Quick"]) != tokens(["The Quick"])


def test_what_is_folded_alone_never_joins_with_what_stands_before_it():
    """Of every character: it is no second half of a composition, and folding it between letters is folding it."""
    for code in range(0x80, 0x110000):
        character = chr(code)
        if (alone := folding.folded_alone(character)) is None:
            continue
        for before in ("a", "E", "\u00e9", "\u2019"):
            assert text.normalise(f"x{before}{character}z").split() == (
                f"x{text.normalise(before)}{alone}z".split()
            ), hex(code)
    seconds = {pair[1] for pair in decompositions() if len(pair) == 2}
    assert len(seconds) > 50
    assert not [c for c in seconds if folding.folded_alone(chr(int(c, 16))) is not None]
    assert folding.folded_alone("\u2019") == "\u2019"
    assert folding.folded_alone("\u00c9") == "\u00e9"
    assert folding.folded_alone("\u0301") is None


def decompositions():
    """All canonical decompositions, as hexadecimal code points."""
    found = (unicodedata.decomposition(chr(code)).split() for code in range(0x80, 0x110000))
    return [parts for parts in found if parts and not parts[0].startswith("<")]


@pytest.mark.usefixtures("compiled")
@settings(deadline=None)
@given(st.lists(st.sampled_from(HARD), min_size=1, max_size=8), st.integers(1, 5), st.integers(1, 3))
def test_the_compiled_loops_give_the_same_signatures_and_similarities(texts, bands, rows):
    rule = minhash.DuplicateRule(bands=bands, rows=rows)
    hashes = numbers.shingle_hashes(texts, 2)
    plain, fast = both(lambda: minhash.signatures(hashes, rule))
    assert plain.tolist() == fast.tolist()
    pairs = np.array([[i, j] for i in range(len(texts)) for j in range(i + 1)], np.int64)
    plain, fast = both(lambda: numbers.pair_jaccard(numbers.as_sets(hashes), pairs))
    assert plain.tolist() == fast.tolist()
