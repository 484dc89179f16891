"""The freight desk's labeling functions: each on mails it must and must not speak about, and all on a made-up
month.
"""

from __future__ import annotations

import json

import pytest

from apps.demo import corpus
from curation.records import VIEW, table, user_message
from curation.voting import Row, analyse, apply_functions, find_functions, functions_for, label, read_gold
from labeling_functions import freight

SPEAKS = {
    "document_is_lacking": ("The packing list is missing.", "customs_missing_document"),
    "asks_which_document": ("Which paper do you want?", "customs_missing_document"),
    "asks_about_duty": ("How much duty do we pay?", "customs_duty_question"),
    "tariff_code": ("We use HS 6907.21 for tiles.", "customs_duty_question"),
    "known_substance": ("Can UN 1090 go by sea?", "hazmat_classification"),
    "classification_words": ("Which packing group is it?", "hazmat_classification"),
    "marks_and_drums": ("Labels on the drums with UN1090?", "hazmat_packaging"),
    "late_or_waiting": ("The ship is LATE again.", "route_delay"),
    "when_does_it_come": ("When does the truck arrive?", "route_delay"),
    "other_destination": ("Please redirect the box to Lyon.", "route_reroute_request"),
    "nobody_knows_where": ("Our container has disappeared.", "route_lost_container"),
    "objects_to_charge": ("The invoice is wrong.", "billing_dispute"),
    "wants_a_copy": ("Send us a duplicate.", "billing_copy_invoice"),
    "terms_of_payment": ("Can we pay in two instalments?", "billing_payment_terms"),
    "something_broke": ("Two crates arrived crushed.", "claim_damage"),
    "count_does_not_agree": ("Short delivery again.", "claim_shortage"),
    "claim_under_way": ("What is the state of our claim?", "claim_status"),
}
SILENT = "Good morning, we would like an offer for coffee beans from Santos."


@pytest.fixture(scope="module")
def functions():
    found = find_functions(freight.__file__)
    return {f.name: f for f in found}


def test_there_is_an_example_for_every_function(functions):
    assert set(functions) == set(SPEAKS)
    assert len(functions) >= 12
    assert {c for f in functions.values() for c in f.classes} == set(freight.INTENTS)


@pytest.mark.parametrize("name", SPEAKS)
def test_each_function_speaks_of_its_own_matter_and_is_silent_otherwise(name, functions):
    mail, intent = SPEAKS[name]
    assert functions[name](Row(prompt=mail)) == intent
    assert functions[name](Row(prompt=SILENT)) is None
    assert functions[name](Row(prompt="")) is None


def test_only_the_last_message_counts(functions):
    messages = [*user_message("The ship is late."), *user_message("Send us a duplicate.")]
    row = Row(prompt="ignored", messages=messages)
    assert functions["wants_a_copy"](row) == "billing_copy_invoice"
    assert functions["late_or_waiting"](row) is None


def test_packaging_words_turn_a_known_substance_into_a_packaging_question(functions):
    assert functions["known_substance"](Row(prompt="An overpack for UN 1090?")) == "hazmat_packaging"
    assert functions["known_substance"](Row(prompt="Is UN 9999 allowed?")) is None


def test_the_list_of_substances_is_part_of_the_digest(tmp_path):
    for name in ("freight.py", "un_numbers.csv"):
        (tmp_path / name).write_bytes((corpus.Path(freight.__file__).parent / name).read_bytes())
    before = {f.name: f.digest for f in find_functions(tmp_path)}
    with open(tmp_path / "un_numbers.csv", "a") as file:
        file.write("9999,moon dust\n")
    after = {f.name: f.digest for f in find_functions(tmp_path)}
    assert {name for name in before if before[name] != after[name]} == {"known_substance"}


def test_drafts_and_gold_decide_no_vote(functions):
    row = Row(
        prompt=SPEAKS["wants_a_copy"][0],
        completion="route_delay",
        trust="gold",
        tags={"gold": "claim_status"},
    )
    assert functions["wants_a_copy"](row) == "billing_copy_invoice"


@pytest.fixture(scope="module")
def month(tmp_path_factory):
    out = tmp_path_factory.mktemp("month")
    truth = corpus.generate(out, inquiries=800)
    broken = {fault["line"] for fault in truth.malformed}
    lines = (out / "inquiries.jsonl").read_bytes().splitlines()
    rows = [json.loads(line) for number, line in enumerate(lines, 1) if number not in broken]
    return [row for row in rows if row["gold"]]


def test_on_a_month_of_mails_the_functions_are_useful_and_far_from_perfect(month, functions):
    view = table(
        [{"record": r["id"], "prompt": r["prompt"], "messages": user_message(r["prompt"])} for r in month],
        VIEW,
    )
    chosen = functions_for(functions.values(), freight.INTENTS)
    votes = apply_functions(chosen, view, classes=freight.INTENTS)
    gold = read_gold([r["gold"] for r in month], votes.classes)
    assert votes.failures == ()
    assert all(f["coverage"] > 0 for f in analyse(votes))
    _, report = label(votes, "dawid-skene", gold=gold)
    assert report.coverage > 0.8
    assert 0.7 < report.accuracy < 0.97
    assert report.conflict > 0.1
