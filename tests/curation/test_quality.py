"""Quality filters: each fires on what it is for, says what it measured, and leaves good rows and labels
alone."""

from __future__ import annotations

import csv
import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curation.errors import UsageError
from curation.quality import QualityRule, explain, find_low_quality
from curation.quality import filters as quality
from tests.curation.stages import check_invariants, decided, example, view_of

RULE = QualityRule()
LABELS = QualityRule(free_text=False)
WORDS = [f"word{i}" for i in range(2000)]
ANSWER = "You can return the parcel within fourteen days. We pay for the way back."


def prose(seed: int, words: int) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=words))


BAD = {
    "empty": " \n ",
    "lost_characters": "The caf\ufffd is closed on Monday.",
    "mojibake": "The cafÃ© is closed â€“ sorry about that.",
    "too_long": prose(1, 8001),
    "loop": "We will call you " + "back soon " * 12,
    "repetition": " ".join([prose(2, 40), prose(3, 30), prose(4, 30), prose(3, 30)]),
    "boilerplate": "Please enable JavaScript to see this answer in full.",
    "refusal": "I'm sorry, but as an AI language model I cannot look into orders.",
    "placeholder": "Dear [customer name], thank you for writing to us.",
    "broken_json": '{"intent": "refund", "order": 12',
    "truncated": "We have looked into your order and found that the parcel was sent to the",
    "prompt_echo": "Where is the parcel that I sent to Hamburg last week? It is on its way.",
}
PROMPT = "Where is the parcel that I sent to Hamburg last week?"


def named(completion: str | None, rule: QualityRule = RULE, prompt: str = PROMPT, **more) -> list[str]:
    return [finding.filter for finding in explain({"prompt": prompt, "completion": completion, **more}, rule)]


@pytest.mark.parametrize("name", BAD)
def test_each_filter_fires_on_what_it_is_for(name):
    assert named(BAD[name]) == [name]


@pytest.mark.parametrize("name", BAD)
def test_a_filter_that_is_taken_out_is_missed(name, monkeypatch):
    for table in ("_ANY_TEXT", "_PROSE"):
        monkeypatch.setattr(quality, table, tuple(f for f in getattr(quality, table) if f[0] != name))
    monkeypatch.setattr(quality, "prompt_echo", lambda *_: None)
    assert name not in named(BAD[name])


@pytest.mark.parametrize(
    "completion",
    [
        ANSWER,
        "yes",
        "42",
        "👍",
        "card_arrival",
        "Não, à côté de l'été: £5 – “quoted” — naïve façade, ÃO",
        "Да, конечно. Мы вернём деньги за четырнадцать дней.",
        "日本語の返事です。ありがとうございます。",
        '{"intent": "refund", "order": [1, 2]}',
        '```json\n{"intent": "refund"}\n```',
        "[1] is the first source, [2] the second one.",
        "{name} is how a variable looks in a template string",
        "Contact [NAME] at <EMAIL_ADDRESS_1> or [DATE_TIME] for order <ORDER_2>.",
        "I can't help but admire how the parcel made it here in time.",
        "ha ha ha ha",
        "- one\n- two\n- three\n- four\n- five\n- six",
        "First unpack it, then plug it in and wait for the light to turn green",
        None,
    ],
)
def test_good_completions_pass_every_filter(completion):
    assert named(completion) == []


@settings(max_examples=100)
@given(st.lists(st.sampled_from(WORDS), min_size=1, max_size=150, unique=True))
def test_words_that_do_not_repeat_are_never_repetition(words):
    text = " ".join(words)
    assert quality.repetition(text, RULE) is None
    assert quality.loop(text, RULE) is None


@given(st.text(st.characters(min_codepoint=0xA0, max_codepoint=0x24F), min_size=1, max_size=20))
def test_text_misread_as_windows_1252_is_found(text):
    try:
        damaged = text.encode("utf-8").decode("cp1252")
    except UnicodeDecodeError:
        damaged = text.encode("utf-8").decode("latin-1")
    assert quality.mojibake(damaged, RULE) is not None


@pytest.mark.parametrize(
    "label",
    [
        "refund",
        "the",
        "card payment, fee",
        "as an ai",
        "[name]",
        "loop loop loop loop loop loop loop loop loop",
    ],
)
def test_class_labels_are_not_judged_as_prose(label):
    assert named(label, LABELS) == []
    assert named("", LABELS) == ["empty"]


def test_a_short_answer_is_not_judged_as_prose_either():
    assert named("to the, [name]") == []


def test_prompts_are_checked_for_damage_alone():
    assert named(None, prompt="") == ["empty"]
    assert named(None, prompt="The cafÃ© is closed") == ["mojibake"]
    assert named(None, prompt="as an ai language model, write to [customer name] and") == []


@pytest.mark.parametrize(
    ("lang", "prompt", "found"),
    [
        ("ru", "This is plainly English text", ["wrong_script"]),
        ("en", "Это определённо русский текст", ["wrong_script"]),
        ("de", "This is plainly English text", []),
        ("xx", "Это определённо русский текст", []),
        ("en-GB", "ok 👍 12", []),
        (None, "Это определённо русский текст", []),
        ("ja", "これは日本語の文章です。", []),
    ],
)
def test_a_language_is_checked_by_its_script_and_no_further(lang, prompt, found):
    assert named(None, prompt=prompt, lang=lang) == found


def test_a_decision_names_the_filter_and_the_number():
    view = view_of(
        [
            example("good", PROMPT, ANSWER),
            example("open", PROMPT),
            *(example(name, PROMPT, text) for name, text in BAD.items()),
            example("both", "", BAD["refusal"]),
        ]
    )
    found = decided(check_invariants(lambda rows: find_low_quality(rows, RULE), view))
    assert {key[0] for key in found} == {*BAD, "both"}
    assert found["loop", "loop/label"] == (
        "drop",
        {"filter": "loop", "field": "completion", "measure": 12, "limit": 8, "also": []},
    )
    assert found["refusal", "refusal/label"][0] == "hold"
    action, evidence = found["both", "both/label"]
    assert (action, evidence["field"], evidence["also"]) == ("drop", "prompt", ["completion: refusal"])


def test_a_shared_record_is_judged_row_by_row():
    view = view_of([example("a", PROMPT, ANSWER), example("a", PROMPT, BAD["truncated"], label="a/2")])
    assert decided(find_low_quality(view, RULE)).keys() == {("a", "a/2")}


def test_a_rule_that_makes_no_sense_is_refused():
    with pytest.raises(UsageError):
        QualityRule(repeats=1)
    assert QualityRule().digest() != LABELS.digest()


@pytest.mark.parametrize(
    "hostile",
    [
        "[" * 50_000,
        "{{ " * 20_000,
        "<insert " * 10_000,
        "a " * 50_000,
        "Ã" * 100_000,
        "i'm sorry " * 9000,
        "``` " * 20_000,
    ],
)
def test_hostile_text_takes_bounded_time(hostile):
    import time

    start = time.process_time()
    explain({"prompt": hostile, "completion": hostile}, RULE)
    assert time.process_time() - start < 4


@pytest.mark.shared_data
def test_few_good_human_answers_are_called_bad(shared_data):
    solved = [json.loads(line) for line in next((shared_data / "instr-gsm8k").glob("*.jsonl")).open()][:1500]
    with next((shared_data / "instr-e2e-nlg").glob("*.csv")).open() as file:
        rows = [(r["mr"], r["ref"]) for r in csv.DictReader(file)][:1500]
    rows += [(row["question"], row["answer"]) for row in solved]
    found = [explain({"prompt": p, "completion": c, "lang": "en"}, RULE) for p, c in rows]
    assert sum(map(bool, found)) / len(rows) < 0.02
    assert not any(finding.action == "drop" for row in found for finding in row)


def test_an_automatic_mail_is_held_and_a_customer_who_complains_of_one_is_not() -> None:
    machine = "This is an automatic reply. Please do not reply to this message. Ticket 80."
    person = (
        "I got an automatic reply last week, and since then nobody has told me where my container is. "
        + ("It should have been in Antwerp on Monday, and the buyer calls every day. " * 4)
    )
    found = {text: [f.filter for f in explain({"prompt": text}, QualityRule())] for text in (machine, person)}
    assert found == {machine: ["automatic"], person: []}
