"""The names layer: what it finds on names it never saw, that it answers for what it knows, and fails closed."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from curation import pii
from curation.errors import IntegrityError
from curation.pii import dialled, names, words
from curation.pii.names import MODEL, NamesLayer, load
from curation.pii.patterns import Deadline
from curation.pii.spans import Span, Unscanned
from tests.curation.test_pii import WRITTEN, filled
from training.names.sentences import LABELS, Values, fill, templates

KEY = b"a key for tests, 32 bytes long.."
ROWS = 300


@cache
def layer() -> NamesLayer:
    return NamesLayer()


@cache
def scrubber() -> pii.Scrubber:
    """Building it takes seconds, and every test below leaves it as it was but for more aliases."""
    return pii.Scrubber(pii.ScrubRule(layers=("patterns", "names"), timeout=30.0), KEY)


def find(text: str) -> list[tuple[str, str]]:
    return [(s.entity_type, text[s.start : s.end]) for s in layer().find(text, "en", Deadline(60))]


# --- recall on names and sentences that nothing was trained on ------------------------------------------------


@cache
def held_out() -> list[tuple[str, list[tuple[int, int, str]]]]:
    """Sentences with people in them, of templates and names that the recipe keeps apart."""
    values = Values(3, held_out=True)
    apart = [t for n, (_, t) in enumerate(templates()) if n % 9 == 4 and ("{name}" in t or "{first}" in t)]
    return [fill(values.pick(apart), values) for _ in range(ROWS)]


def recall(find: Callable[[Sequence[str]], list[list[Span]]], change: Callable[[str], str]) -> float:
    """Share of the people whose whole name is covered, by whatever type."""
    rows = [(change(text), spans) for text, spans in held_out() if len(change(text)) == len(text)]
    hits = total = 0
    for (text, gold), found in zip(rows, find([text for text, _ in rows]), strict=True):
        for start, end, kind in gold:
            if kind == "PERSON":
                total += 1
                letters = [i for i in range(start, end) if text[i].isalnum()]
                hits += all(any(s.start <= i < s.end for s in found) for i in letters)
    assert total >= ROWS
    return hits / total


def by_layer(texts: Sequence[str]) -> list[list[Span]]:
    return layer().find_all(texts, "en", Deadline(60))


@pytest.mark.parametrize(("change", "least"), [(str, 0.90), (str.lower, 0.85), (str.upper, 0.85)])
def test_people_that_it_never_saw_are_found_in_any_case(change: Callable[[str], str], least: float) -> None:
    assert recall(by_layer, change) >= least


def test_the_recall_test_sees_a_model_that_knows_nothing() -> None:
    blank = load()
    blank.rows = np.zeros_like(blank.rows)
    assert recall(lambda texts: NamesLayer(blank).find_all(texts, "en", Deadline(60)), str) < 0.2


def test_held_out_names_are_in_no_lexicon() -> None:
    from training.names import lexicon

    kept = [name for name in lexicon.lists(held_out=True).last if " " not in name and "-" not in name][:200]
    entries = [names.network().lexicon.get(words.key(name), 0) for name in kept]
    listed = sum(bool(entry & words.LAST) for entry in entries)
    assert listed / len(kept) < 0.05


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "My name is Rosalind Unwin and I live in Lisbon.",
            [("PERSON", "Rosalind Unwin"), ("LOCATION", "Lisbon")],
        ),
        ("Dear Mr. Castellanos, your parcel is here.", [("TITLE", "Mr."), ("PERSON", "Castellanos")]),
        ("hi this is priya ramaswamy", [("PERSON", "priya ramaswamy")]),
        ("Where is my parcel? It was due yesterday and nobody called.", []),
        ("Will it be ready by noon? May I come by?", []),
        ("The bicycles in UMJU 424382-1 and shipment FR-987112 arrived wet.", []),
    ],
)
def test_plain_sentences_are_read_as_people_read_them(text: str, expected: list[tuple[str, str]]) -> None:
    assert find(text) == expected


BOOKS = (
    "978-0-###-#####-#",
    "978 3 ### ##### #",
    "0-###-#####-#",
    "##.#####",
    "#######.##",
    "########",
    "##########",
)
PLAIN = (
    "We paid {} for the pump that came from the north.",
    "Number {} arrived today with the morning post.",
    "It is listed as {} in the catalogue of the library.",
    "The value was {} when we measured it at the gate.",
)
CALLS = (
    "You can reach me at {} after six.",
    "My number is {} and I am at home.",
    "Please call {} before noon or we will leave.",
    "Sure, {}",
)


def share_of_phones(shapes: tuple[str, ...], sentences: tuple[str, ...]) -> float:
    """Share of the numbers, filled in at random, of which the layer takes a part for a telephone number."""
    texts = [(s.format(n), n) for n in filled(shapes, 10) for s in sentences]
    spans = by_layer([text for text, _ in texts])
    places = [(text.index(number), len(number)) for text, number in texts]
    hits = sum(
        any(s.entity_type == "PHONE_NUMBER" and s.start < at + n and at < s.end for s in found)
        for found, (at, n) in zip(spans, places, strict=True)
    )
    return hits / len(texts)


def test_book_numbers_prices_and_coordinates_are_no_phones() -> None:
    assert share_of_phones(BOOKS, PLAIN) < 0.02


def test_without_a_look_at_their_form_half_of_the_book_numbers_would_be(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(dialled, "may_be_meant", lambda *_: True)
    assert share_of_phones(BOOKS, PLAIN) > 0.3


def test_no_phone_that_somebody_gives_is_lost_for_its_form(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = (*WRITTEN, "###-####", "### ####", "## ### ## ##", "06-########", "#######", "##########")
    now = share_of_phones(shapes, CALLS)
    monkeypatch.setattr(dialled, "may_be_meant", lambda *_: True)
    assert now == share_of_phones(shapes, CALLS) > 0.95


SUMS = (
    "## + ## + ## = ###",
    "<<#####/#=####>>####",
    "#####+#####",
    "#.#####6",
    "#,###,###",
    "18 0 3 1 7",
)


def test_sums_amounts_and_rows_of_numbers_are_no_phones(monkeypatch: pytest.MonkeyPatch) -> None:
    assert share_of_phones(SUMS, PLAIN) < 0.02
    monkeypatch.setattr(dialled, "may_be_meant", lambda *_: True)
    assert share_of_phones(SUMS, PLAIN) > 0.1


def test_a_short_number_is_a_post_code_only_near_a_place(monkeypatch: pytest.MonkeyPatch) -> None:
    def codes() -> int:
        texts = [f"She read {n} pages more.\n#### {n}" for n in range(1000, 3000, 50)]
        return sum(s.entity_type == "ZIP_CODE" for spans in by_layer(texts) for s in spans)

    assert ("ZIP_CODE", "2000") in find("Post code 2000, Sydney")
    assert codes() == 0
    monkeypatch.setattr(names, "_PLACES", ("ZIP_CODE",))
    assert codes() > 0


# --- the layer itself -----------------------------------------------------------------------------------------


def test_a_text_is_read_the_same_alone_and_among_others() -> None:
    texts = [text for text, _ in held_out()[:60]] + ["", "   ", "\n", "x" * 50]
    together = by_layer(texts)
    alone = [layer().find(text, "en", Deadline(60)) for text in texts]
    order = list(range(len(texts)))
    random.Random(1).shuffle(order)
    shuffled = dict(zip(order, by_layer([texts[i] for i in order]), strict=True))
    assert together == alone == [shuffled[i] for i in range(len(texts))]


def test_without_the_gap_between_texts_neighbours_would_be_heard() -> None:
    model = load()
    texts = [words.tokens("Dear"), words.tokens("Unwin , hello")]
    apart = model.scores(texts, [words.MIXED] * 2)[1]
    model.dilations = (0,) * len(model.dilations)
    assert not np.allclose(apart, model.scores(texts, [words.MIXED] * 2)[1])


def test_a_word_is_summed_alike_alone_and_among_others() -> None:
    told = sorted({word for text, _ in held_out()[:40] for word in words.tokens(text).words})
    model, single = load(), load()
    together = model.word_sums(told)
    assert np.array_equal(together, np.concatenate([single.word_sums([word]) for word in told]))
    used = words.features(told[0], model.lexicon)
    assert np.allclose(together[0], model.scale[used] @ model.rows[used].astype(np.float32), atol=1e-5)


def test_spans_do_not_depend_on_how_many_words_were_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [text for text, _ in held_out()[:40]]
    monkeypatch.setattr(names, "_REMEMBERED", 10)
    assert NamesLayer(load()).find_all(texts, "en", Deadline(60)) == by_layer(texts)


def test_spans_are_code_points_of_the_text_and_carry_no_punctuation() -> None:
    text = "🚚 Ask (Rosalind Unwin), please!"
    assert find(text) == [("PERSON", "Rosalind Unwin")]


def test_another_language_is_not_answered_for() -> None:
    with pytest.raises(Unscanned, match="'de'"):
        layer().find("Ich heisse Anna", "de", Deadline(60))


def test_no_time_left_is_no_answer() -> None:
    late = Deadline(1e-9)
    with pytest.raises(Unscanned, match="took longer"):
        layer().find("hello", "en", late)


def test_weights_that_are_missing_damaged_or_of_another_version_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut = tmp_path / "names.safetensors"
    cut.write_bytes(MODEL.read_bytes()[:5000])
    for path in (tmp_path / "none.safetensors", cut):
        with pytest.raises(IntegrityError, match="names model"):
            load(path)
    monkeypatch.setattr(words, "VERSION", 99)
    with pytest.raises(IntegrityError, match="version"):
        load()


def test_a_names_layer_that_cannot_be_loaded_quarantines_every_row(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> list[Span]:
        raise ValueError("Rosalind")

    made = scrubber()
    monkeypatch.setattr(names.NamesLayer, "find", fails)
    with pytest.raises(Unscanned, match="NamesLayer failed with ValueError") as caught:
        made.scrub(["hello"])
    assert "Rosalind" not in str(caught.value)


def units() -> list[pii.Unit]:
    texts = [text for text, _ in held_out()[:90]]
    pairs = zip(texts[::2], texts[1::2], ["en", None] * 30, strict=False)
    return [pii.Unit(["", one, two], language, (2,)) for one, two, language in pairs]


def test_records_scrubbed_together_come_out_as_scrubbed_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    alone = [scrubber().scrub(u.parts, u.language, terse=u.terse) for u in units()]

    looked_at: list[str] = []
    real = NamesLayer.find

    def find(self: NamesLayer, text: str, language: str, deadline: Deadline) -> list[Span]:
        looked_at.append(text)
        return real(self, text, language, deadline)

    monkeypatch.setattr(NamesLayer, "find", find)
    assert scrubber().scrub_all(units()) == alone
    assert any(done.found() for done in alone)
    assert len(looked_at) < len(alone) / 10


def test_a_record_that_fails_among_others_is_held_back_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    real = NamesLayer.find_all

    def fails(self: NamesLayer, texts: Sequence[str], language: str, deadline: Deadline) -> list[list[Span]]:
        if any("Unwin" in text for text in texts):
            raise ValueError("Unwin")
        return real(self, texts, language, deadline)

    monkeypatch.setattr(NamesLayer, "find_all", fails)
    rows = [pii.Unit(["I am Ann Tate."]), pii.Unit(["I am Rosalind Unwin."]), pii.Unit(["Hallo"], "de")]
    first, second, third = scrubber().scrub_all(rows)
    assert isinstance(first, pii.Scrubbed)
    assert first.found()
    assert str(second) == "NamesLayer failed with ValueError"
    assert "language 'de'" in str(third)


def test_the_comparison_sees_a_look_ahead_that_finds_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    from curation.pii.scan import Scanner

    alone = [scrubber().scrub(u.parts, u.language, terse=u.terse) for u in units()]
    monkeypatch.setattr(
        Scanner, "_ask_together", lambda self, layer, texts, language: [(t, []) for t in texts]
    )
    assert scrubber().scrub_all(units()) != alone


def test_the_model_is_small_is_no_pickle_and_has_a_card() -> None:
    assert MODEL.stat().st_size <= 6_000_000
    assert MODEL.read_bytes()[8:9] == b"{"
    card = MODEL.with_suffix(".md").read_text(encoding="utf-8")
    assert all(word in card for word in ("trained on", "held out", "Limits", "python -m training.names"))


def test_the_rule_digest_covers_the_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    from curation.pii import rule

    with_names = pii.ScrubRule(layers=("patterns", "names"))
    before = with_names.digest()
    monkeypatch.setattr(rule, "_model", lambda: "other weights")
    assert with_names.digest() != before


def test_every_label_of_the_recipe_is_one_that_the_network_gives() -> None:
    kinds = {label[2:] for label in load().labels if label != "O"}
    assert set(LABELS.values()) == kinds


# --- scrubbing with names -------------------------------------------------------------------------------------


def test_one_person_has_one_alias_in_prompt_completion_and_other_records() -> None:
    made = scrubber()
    first = made.scrub(["I am Rosalind Unwin.", "Dear Rosalind, thanks. UNWIN is noted."])
    second = made.scrub(["Please call Rosalind Unwin back."])
    alias = first.texts[0].removeprefix("I am ").removesuffix(".")
    given, family = alias.split(" ")
    assert first.texts[1] == f"Dear {given}, thanks. {family} is noted."
    assert second.texts[0] == f"Please call {alias} back."
    assert not names.is_listed(given)


def test_scrubbing_twice_changes_nothing_more_and_leaves_no_name() -> None:
    made = scrubber()
    for text, spans in held_out()[:80]:
        once = made.scrub([text])
        again = made.scrub(once.texts)
        assert again.texts == once.texts
        assert not again.found()
        for start, end, kind in spans:
            found = any(e.start <= start and e.end >= end for e in once.edits[0])
            assert (
                kind != "PERSON"
                or not found
                or text[start:end] not in once.texts[0]
                or len(text[start:end]) < 4
            )


def test_ages_titles_peoples_and_dates_are_told_and_stay() -> None:
    text = "Dr. Castellanos, a 34 year old Italian, came on 12 May 2021."
    done = scrubber().scrub([text])
    kept = {(s.entity_type, text[s.start : s.end]) for s in done.kept[0]}
    assert {("TITLE", "Dr."), ("AGE", "34"), ("NRP", "Italian"), ("DATE_TIME", "12 May 2021")} <= kept
    assert "34 year old Italian, came on 12 May 2021" in done.texts[0]
    assert "Castellanos" not in done.texts[0]


def test_a_tag_is_a_name_only_where_prose_says_so() -> None:
    made = scrubber()
    done = made.scrub(["I am Rosalind Unwin", "Rosalind", "paris", "r.unwin@acme.com"], terse=(1, 2, 3))
    assert done.texts[1] == done.texts[0].removeprefix("I am ").split(" ")[0]
    assert done.texts[2] == "paris"
    assert done.texts[3].endswith("@example.invalid")


def test_aliases_of_names_are_stable_under_one_key_and_unlinkable_under_another() -> None:
    rule = pii.ScrubRule(layers=("names",))
    texts = ["I am Rosalind Unwin from Lisbon."]
    one, same, other = (pii.Scrubber(rule, key).scrub(texts).texts for key in (KEY, KEY, KEY[::-1]))
    assert one == same
    shared = set(one[0].split()) & set(other[0].split())
    assert shared == {"I", "am", "from"}


def test_evidence_of_a_scan_holds_no_name() -> None:
    from curation.records import VIEW, table, user_message

    view = table([{"record": "r", "messages": user_message("I am Rosalind Unwin"), "lang": "en"}], VIEW)
    decisions, aliases = pii.scrub_view(view, scrubber())
    assert "Unwin" not in json.dumps(decisions.to_pylist())
    assert aliases == [] or all("Unwin" not in a.alias for a in aliases)


def test_a_class_stays_the_class_that_it_is() -> None:
    from curation.records import VIEW, table, user_message

    rows = [
        {
            "record": "r",
            "label": "a",
            "messages": user_message("My pump leaks."),
            "completion": word,
            "lang": "en",
        }
        for word in ("hazmat", "paris", "jordan")
    ]
    for row in rows:
        decisions, _ = pii.scrub_view(table([row], VIEW), scrubber())
        assert decisions.num_rows == 0
