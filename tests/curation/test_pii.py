"""Scrubbing records: one unit, one numbering, closed when anything fails."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curation import pii
from curation.errors import UsageError
from curation.pii import dialled, patterns, scan, urls
from curation.pii.spans import Span, Unscanned
from curation.records import DECISIONS, VIEW, table, user_message
from tests.bench.pii import PLAIN, TEMPLATES, Values

KEY = b"a key for tests, 32 bytes long.."


@cache
def scanner() -> pii.Scanner:
    """Building the recognisers takes seconds; the tests share one scanner under the default rule."""
    return pii.Scanner(pii.ScrubRule())


def scrubber(**rule: Any) -> pii.Scrubber:
    made = pii.Scrubber.__new__(pii.Scrubber)
    made.rule = pii.ScrubRule(**rule)
    made.aliaser = pii.Aliaser(KEY)
    made.scanner = object.__new__(pii.Scanner)
    made.scanner.__dict__.update(scanner().__dict__, rule=made.rule)
    made.scanner._deny = scan._terms(made.rule.deny)
    made.scanner._allow = frozenset(value.casefold() for value in made.rule.allow)
    made.scanner.missing = [
        f"layer {name!r} is not installed" for name in made.rule.layers if name not in pii.LAYERS
    ]
    return made


def found(text: str, **rule: Any) -> list[tuple[str, str]]:
    return [(span.entity_type, text[span.start : span.end]) for span in scrubber(**rule).detect([text])[0]]


def view(*rows: dict[str, Any]) -> pa.Table:
    return table([{"messages": user_message(row.pop("prompt")), "lang": "en", **row} for row in rows], VIEW)


# --- what is found ------------------------------------------------------------------------------------------

KINDS = {
    "email": "EMAIL_ADDRESS",
    "phone": "PHONE_NUMBER",
    "card": "CREDIT_CARD",
    "iban": "IBAN_CODE",
    "ssn": "US_SSN",
    "ip": "IP_ADDRESS",
    "mac": "MAC_ADDRESS",
    "url": "URL",
    "crypto": "CRYPTO",
    "uuid": "UUID",
}


def recall(
    change: Callable[[str], str] = lambda value: value, kinds: tuple[str, ...] = tuple(KINDS), rows: int = 60
) -> float:
    """Share of made-up values that the scan covers wholly after ``change``."""
    hits = total = 0
    for seed in range(rows):
        values = Values(seed)
        for kind in kinds:
            value = change(getattr(values, kind)())
            text = f"Hello, about the shipment: {value} is what I have."
            start = text.index(value)
            hits += any(s.start <= start and s.end >= start + len(value) for s in scanner().scan(text))
            total += 1
    return hits / total


def test_values_with_a_format_of_their_own_are_found() -> None:
    assert recall() >= 0.99


def full_width(value: str) -> str:
    return "".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c for c in value)


def spread(mark: str) -> Callable[[str], str]:
    return lambda value: mark.join(value[i : i + 3] for i in range(0, len(value), 3))


EVASIONS: dict[str, tuple[Callable[[str], str], tuple[str, ...]]] = {
    "full-width": (full_width, ("email", "phone", "card", "iban", "ssn", "ip")),
    "zero-width": (spread("\u200b"), ("email", "phone", "card", "iban", "ssn", "ip", "url")),
    "soft hyphen": (spread("\u00ad"), ("email", "phone", "card", "iban", "ssn", "ip", "url")),
    "no-break space": (lambda v: v.replace(" ", "\u00a0"), ("phone", "card", "iban")),
    "dashes": (lambda v: v.replace("-", "\u2011"), ("ssn", "card")),
    "look-alike letters": (lambda v: v.replace("a", "а").replace("o", "о").replace("e", "е"), ("email",)),
    "HTML entities": (
        lambda v: "".join(f"&#{ord(c)};" for c in v),
        ("email", "phone", "card", "iban", "ssn", "ip"),
    ),
    "percent": (lambda v: v.replace("@", "%40"), ("email",)),
    "at and dot in words": (lambda v: v.replace("@", " (at) ").replace(".", " [dot] "), ("email",)),
    "line break in an address": (lambda v: v.replace("@", "@\n"), ("email",)),
    "line break in a number": (lambda v: v[:4] + "\n" + v[4:].lstrip(" -"), ("card",)),
    "base64": (
        lambda v: __import__("base64").b64encode(f"note: {v}".encode()).decode(),
        ("email", "card", "iban"),
    ),
    "Arabic digits": (
        lambda v: "".join(chr(0x660 + int(c)) if c.isdigit() else c for c in v),
        ("card", "ssn", "ip"),
    ),
}


@pytest.mark.parametrize("name", sorted(EVASIONS))
def test_an_evasion_that_can_be_normalised_is_seen_through(name: str) -> None:
    change, kinds = EVASIONS[name]
    assert recall(change, kinds, rows=30) >= 0.95


def test_without_folding_evasions_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    from curation.pii.fold import Folded

    monkeypatch.setattr(scan, "fold", Folded)
    assert recall(spread("\u200b"), ("email", "card"), rows=10) < 0.5


def test_offsets_are_code_points_of_the_text_as_given() -> None:
    text = "🚚 naïve ｊane@acme.com, 41\u200b11 1111 1111 1111!"
    assert found(text) == [("EMAIL_ADDRESS", "ｊane@acme.com"), ("CREDIT_CARD", "41\u200b11 1111 1111 1111")]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("see https://acme.com:8080/x?token=s3cret.", [("URL", "https://acme.com:8080/x?token=s3cret")]),
        ("see http://bob:pw@acme.com/a", [("URL", "http://bob:pw@acme.com/a")]),
        ("at shop.company/x", [("URL", "shop.company/x")]),
        ('the "https://acme.com" page', [("URL", "https://acme.com")]),
        ("it is late.So call. Your order.Please", []),
        ("go to Acme.Com", [("URL", "Acme.Com")]),
        ("number 4155552671 here", [("PHONE_NUMBER", "4155552671")]),
        ("NHS number 4155552671 here", [("UK_NHS", "4155552671")]),
        ("in the year 1640, room 1641", []),
    ],
)
def test_each_listed_correction_of_presidio(text: str, expected: list[tuple[str, str]]) -> None:
    assert found(text) == expected


def test_a_host_that_is_no_domain_is_shortened_or_dropped() -> None:
    known = {"acme.com", "shop.company"}.__contains__
    assert urls.mend("acme.com.Please", Span(0, 11, "URL", 0.5), known) == Span(0, 8, "URL", 0.5)
    assert urls.mend("order.Please", Span(0, 8, "URL", 0.5), known) is None


def test_denied_terms_are_found_and_allowed_values_are_not() -> None:
    text = "project bluebird, mail HELP@acme.com"
    assert found(text, deny=("Bluebird",), allow=("help@acme.com",)) == [("TERM", "bluebird")]


def test_a_date_is_reported_but_stays() -> None:
    made = scrubber()
    assert [span.entity_type for span in made.detect(["due 2024-05-03"])[0]] == ["DATE_TIME"]
    assert made.scrub(["due 2024-05-03"]).texts == ("due 2024-05-03",)
    assert scrubber(kept=()).scrub(["due 2024-05-03"]).texts != ("due 2024-05-03",)


# --- phone numbers as people write them ---------------------------------------------------------------------

WRITTEN = (
    *("###-###-####", "(###) ###-####", "(###)###-####", "###.###.####", "001-###-###-####", "+1-###-###-####x###"),
    *("###-###-####x#####", "+1 (###) ###-####", "+44 #### ######", "+49 ### #### ####", "+61 # #### ####"),
    *("(0##) #### ####", "0### ### ####", "0####/######", "+55 ## #####-####", "+91 ##### #####", "+33 (0)# ## ## ## ##"),
)  # fmt: skip
NO_PHONES = (
    *("PO-######", "A-####-####", "#0#-#######-#######", "0#-0#-20##", "20##-0#-1#", "0#/1#/19## 10:30", "0####-####"),
    *("978-0-###-#####-#", "0##-########", "#### #### #### ####", "#.###.###,##", "+#.## %", "0###-###-##"),
)  # fmt: skip


def filled(shapes: tuple[str, ...], each: int = 20) -> list[str]:
    draw = random.Random(12)
    return [
        "".join(draw.choice("123456789") if c == "#" else c for c in s) for s in shapes for _ in range(each)
    ]


def covered(text: str) -> bool:
    """Whether one span holds the whole of a number that stands in a sentence."""
    sentence = f"You can reach me at {text} after six."
    start = sentence.index(text)
    return any(s.start <= start and start + len(text) <= s.end for s in scanner().scan(sentence))


def test_numbers_written_as_phone_numbers_are_found_whether_or_not_they_were_given_out() -> None:
    numbers = filled(WRITTEN)
    assert sum(map(covered, numbers)) / len(numbers) >= 0.98


def test_without_the_ways_of_writing_a_third_would_be_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dialled, "written", lambda text: iter(()))
    numbers = filled(WRITTEN)
    assert sum(map(covered, numbers)) / len(numbers) < 0.75


def test_dates_prices_orders_and_parts_are_not_written_as_phone_numbers() -> None:
    assert [n for n in filled(NO_PHONES) if any(dialled.written(f"see {n} please"))] == []


SAID = (
    "My phone number is {}.",
    "You can call me at {} after six.",
    "Please change my mobile to {}, thanks.",
    "Tel. {}",
)
ON_A_LINE = ("Ines Okafor, 12 Mill Lane, Leeds\n{}\nines@okafor.example", "{}")


@cache
def national() -> tuple[str, ...]:
    """A number of every region as it is written there, with random digits behind the first two; six or more."""
    import phonenumbers

    draw, found = random.Random(5), []
    for region in sorted(phonenumbers.SUPPORTED_REGIONS):
        example = phonenumbers.example_number_for_type(region, phonenumbers.PhoneNumberType.MOBILE)
        if example is not None:
            shape = phonenumbers.format_number(example, phonenumbers.PhoneNumberFormat.NATIONAL)
            kept = re.match(r"\D*\d\D*\d", shape)
            rest = kept.end() if kept else 0
            found.append(shape[:rest] + re.sub(r"\d", lambda _: draw.choice("0123456789"), shape[rest:]))
    return tuple(number for number in found if len(re.findall(r"\d", number)) >= 6)


def share_covered(numbers: Sequence[str], sentences: Sequence[str]) -> float:
    """Share of the numbers that one span covers, each in the next of the sentences."""
    hits = 0
    for i, number in enumerate(numbers):
        sentence = sentences[i % len(sentences)]
        start = sentence.index("{")
        found = scanner().scan(sentence.replace("{}", number))
        hits += any(s.start <= start and start + len(number) <= s.end for s in found)
    return hits / len(numbers)


def test_a_number_of_any_country_is_found_where_somebody_speaks_of_a_telephone() -> None:
    assert share_covered(national(), SAID) >= 0.98


def test_a_grouped_number_of_any_country_is_found_on_a_line_of_its_own() -> None:
    grouped = [number for number in national() if not number.isdecimal()]
    assert share_covered(grouped, ON_A_LINE) >= 0.98


def test_without_the_words_before_a_number_many_countries_would_be_missed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(dialled, "_told", lambda text: iter(()))
    assert share_covered(national(), SAID) < 0.9


@pytest.mark.parametrize(
    "text",
    [
        "Call me at 10:30 on 12.05.2024, not before 2024-05-12.",
        "We phoned on 3 4 2024 and 1 200 000 people called.",
        "So 160 230 + 48 36 32 = 160 + 230 = <<160+230=390>>390 pages, call it 12,000+24,000.",
        "Her mobile cost $1200.50, the phone 1,250,300.75 yen.",
        "years 2008 2013\n120 300\n240 600\n360 900",
        "Die ISBN of the phone book is 978-0-306-40615-7.",
        "It costs 12000-24000 = 12 in all, 0.282906 of 3000-2250 = 750.",
        "Contact us about order 123456 or case 77 123 456.",
    ],
)
def test_amounts_dates_sums_and_columns_are_no_phone_numbers(text: str) -> None:
    assert [s for s in scanner().scan(text) if s.entity_type == "PHONE_NUMBER"] == []


def test_two_numbers_beside_each_other_are_no_sum() -> None:
    for text in (
        "+1 415 736 2671 / +44 20 7946 0958",
        "415-736-2671/415-736-2672",
        "415-736-2671 +44 20 7946 0958",
    ):
        found = [s for s in scanner().scan(f"Phones: {text}.") if s.entity_type == "PHONE_NUMBER"]
        assert sum(s.end - s.start for s in found) >= len(text) - 3


def test_without_a_look_at_what_it_is_a_part_of_a_sum_would_be_a_phone_number(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(dialled, "is_other", lambda text, start, end: False)
    found = scanner().scan("So far he is out 3000-1200 = <<3000-1200=1800>>1800 after recouping 0.282906.")
    assert "PHONE_NUMBER" in {s.entity_type for s in found}


# --- closed -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "lang", "words"),
    [
        ({"layers": ("patterns", "faces")}, "en", "layer 'faces' is not installed"),
        ({}, "de", "language 'de'"),
        ({"longest": 20}, "en", "more than the 20"),
        ({"timeout": 1e-9}, "en", "took longer"),
    ],
)
def test_what_cannot_be_scanned_is_quarantined_with_all_its_labels(
    rule: dict[str, Any], lang: str, words: str
) -> None:
    rows = view(
        {
            "record": "r",
            "label": "a",
            "prompt": "my mail is jane.doe@acme.com",
            "completion": "ok",
            "lang": lang,
        },
        {
            "record": "r",
            "label": "b",
            "prompt": "my mail is jane.doe@acme.com",
            "completion": "no",
            "lang": lang,
        },
    )
    decisions, aliases = pii.scrub_view(rows, scrubber(**rule))
    assert decisions["action"].to_pylist() == ["quarantine"] * 3
    assert decisions["label"].to_pylist() == [None, "a", "b"]
    assert all(
        reason.startswith("unscanned: ") and words in reason for reason in decisions["reason"].to_pylist()
    )
    assert aliases == []
    assert "jane" not in json.dumps(decisions.to_pylist())


def test_a_layer_that_fails_quarantines(monkeypatch: pytest.MonkeyPatch) -> None:
    def explode(*_: object) -> list[Span]:
        raise MemoryError("jane.doe@acme.com")

    monkeypatch.setattr(patterns.PatternLayer, "find", explode)
    decisions, _ = pii.scrub_view(view({"record": "r", "prompt": "hello"}), scrubber())
    assert decisions["reason"].to_pylist() == ["unscanned: PatternLayer failed with MemoryError"]


def test_five_million_characters_are_quarantined() -> None:
    decisions, _ = pii.scrub_view(view({"record": "r", "prompt": "a b " * 1_250_000}), scrubber())
    assert decisions["action"].to_pylist() == ["quarantine"]


def test_a_language_with_a_region_is_its_language() -> None:
    assert scrubber().detect(["jane@acme.com"], "en-GB") == scrubber().detect(["jane@acme.com"], None)


def test_a_long_text_is_scanned_in_windows_without_a_seam() -> None:
    filler = "nothing to see here at all "
    text = filler.join(f"mail jane{n}@acme.com card 4111 1111 1111 1111 " for n in range(40))
    small = scrubber(window=400, overlap=120, timeout=30.0)
    assert small.detect([text]) == scrubber(timeout=30.0).detect([text])


def test_a_span_that_a_window_cuts_off_grows_to_the_end_of_its_word() -> None:
    text = "x " * 150 + "https://acme.com/" + "p" * 500 + " end"
    (span,) = scrubber(window=400, overlap=120).detect([text])[0]
    assert text[span.start : span.end] == "https://acme.com/" + "p" * 500


@pytest.mark.parametrize(
    "wrong", [{"mode": "hide"}, {"layers": ()}, {"languages": ()}, {"timeout": 0}, {"deny": ("",)}]
)
def test_a_rule_that_makes_no_sense_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        pii.ScrubRule(**wrong)


def test_the_digest_of_a_rule_covers_its_fields_and_what_it_scans_with(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from curation.pii import rule

    plain = pii.ScrubRule().digest()
    assert pii.ScrubRule().digest() == plain != pii.ScrubRule(mode="mask").digest()
    monkeypatch.setattr(rule, "_installed", lambda: {"presidio-analyzer": "9.9.9"})
    assert pii.ScrubRule().digest() != plain


# --- what comes out -----------------------------------------------------------------------------------------


def test_prompt_and_every_completion_share_their_aliases() -> None:
    rows = view(
        {"record": "r", "label": "a", "prompt": "I am jane@acme.com", "completion": "Dear JANE@acme.com, ok"},
        {"record": "r", "label": "b", "prompt": "I am jane@acme.com", "completion": "no"},
        {"record": "q", "prompt": "nothing", "completion": None},
        {"record": "p", "prompt": "again jane@acme.com", "completion": None},
    )
    decisions, aliases = pii.scrub_view(rows, scrubber())
    alias = pii.Aliaser(KEY).alias("EMAIL_ADDRESS", "jane@acme.com")
    assert [a.alias for a in aliases] == [alias]
    assert [(d["record"], d["label"], d["action"]) for d in decisions.to_pylist()] == [
        ("r", None, "rewrite"),
        ("r", "a", "rewrite"),
        ("p", None, "rewrite"),
    ]
    outputs = decisions["output"].to_pylist()
    assert json.loads(outputs[0]) == user_message(f"I am {alias}")
    assert outputs[1] == f"Dear {alias}, ok"
    assert decisions.schema == DECISIONS
    assert json.loads(decisions["evidence"][1].as_py())["spans"][0]["start"] == 5


def test_a_value_found_in_one_part_is_replaced_where_the_others_only_repeat_it() -> None:
    done = scrubber(mode="mask").scrub(
        ["my bank account is 945456787654", "noted: 945456787654", "1945456787654"]
    )
    assert done.texts == (
        "my bank account is <US_BANK_NUMBER_1>",
        "noted: <US_BANK_NUMBER_1>",
        "1945456787654",
    )


def test_masks_are_numbered_through_the_record() -> None:
    done = scrubber(mode="mask").scrub(["a@acme.com and b@acme.com", "B@acme.com, c@acme.com"])
    assert done.texts == (
        "<EMAIL_ADDRESS_1> and <EMAIL_ADDRESS_2>",
        "<EMAIL_ADDRESS_2>, <EMAIL_ADDRESS_3>",
    )


def test_dropping_spares_the_labels_of_a_clean_prompt() -> None:
    rows = view(
        {"record": "r", "label": "a", "prompt": "who?", "completion": "jane@acme.com"},
        {"record": "r", "label": "b", "prompt": "who?", "completion": "nobody"},
        {"record": "q", "label": "c", "prompt": "I am jane@acme.com", "completion": "ok"},
    )
    decisions, aliases = pii.scrub_view(rows, scrubber(mode="drop"))
    assert [(d["record"], d["label"], d["action"], d["output"]) for d in decisions.to_pylist()] == [
        ("r", "a", "drop", None),
        ("q", None, "drop", None),
        ("q", "c", "drop", None),
    ]
    assert aliases == []


def test_keeping_reports_spans_and_changes_nothing() -> None:
    decisions, _ = pii.scrub_view(
        view({"record": "r", "prompt": "I am jane@acme.com"}), scrubber(mode="keep")
    )
    (row,) = decisions.to_pylist()
    assert (row["action"], row["output"]) == ("keep", None)
    assert json.loads(row["evidence"])["spans"][0]["entity_type"] == "EMAIL_ADDRESS"
    assert "jane" not in row["evidence"]


def test_an_empty_view_gives_empty_decisions() -> None:
    decisions, aliases = pii.scrub_view(VIEW.empty_table(), scrubber())
    assert decisions.num_rows == 0
    assert decisions.schema == DECISIONS
    assert aliases == []


def test_the_view_is_not_changed() -> None:
    rows = view({"record": "r", "label": "a", "prompt": "I am jane@acme.com", "completion": "jane@acme.com"})
    before = rows.to_pylist()
    pii.scrub_view(rows, scrubber())
    assert rows.to_pylist() == before


def test_a_number_has_one_type_in_one_record() -> None:
    done = scrubber().scrub(["call 4155552671", "nhs 4155552671"])
    assert len({edit.replacement for row in done.edits for edit in row}) == 1


def test_scrub_texts_gives_the_replacement_of_every_span() -> None:
    parts = ["mail jane@acme.com", "and 8.8.8.8"]
    done = pii.scrub_texts(parts, scrubber())
    for part, text, (edit,) in zip(parts, done.texts, done.edits, strict=True):
        assert text == part[: edit.start] + edit.replacement + part[edit.end :]
    assert pii.scrub_texts([], scrubber()).texts == ()


messages = st.integers(0, 10**6).map(
    lambda seed: [
        " ".join(
            Values(seed + n).fill(random.Random(seed * 7 + n).choice([*TEMPLATES, *PLAIN]))[0]
            for n in range(part, part + 1 + seed % 3)
        )
        for part in (0, 1)
    ]
)


@settings(max_examples=150, deadline=None)
@given(messages, st.sampled_from(["pseudonym", "mask"]))
def test_scrubbing_twice_changes_nothing_more(parts: list[str], mode: str) -> None:
    made = scrubber(mode=mode, timeout=30.0)
    once = made.scrub(parts)
    again = made.scrub(once.texts)
    assert again.texts == once.texts
    assert not again.found()


@settings(max_examples=100, deadline=None)
@given(messages)
def test_characters_outside_spans_stay_as_they_are(parts: list[str]) -> None:
    for part, text, edits in zip(
        parts, *(lambda d: (d.texts, d.edits))(scrubber(timeout=30.0).scrub(parts)), strict=True
    ):
        at = 0
        for edit in edits:
            kept = part[at : edit.start]
            assert text.startswith(kept + edit.replacement)
            text, at = text[len(kept) + len(edit.replacement) :], edit.end
        assert text == part[at:]


def test_aliases_that_nobody_registered_are_not_passed_over() -> None:
    first, stranger = scrubber(), scrubber()
    once = first.scrub(["server 8.8.8.8 is down"])
    assert first.scrub(once.texts).texts == once.texts
    assert stranger.scrub(once.texts).texts != once.texts


def test_a_scan_that_never_settles_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    made = scrubber()
    monkeypatch.setattr(made.scanner, "scan_all", lambda texts: [[Span(0, 4, "TERM", 1.0)] for _ in texts])
    with pytest.raises(Unscanned, match="rounds"):
        made.scrub(["some text"])
