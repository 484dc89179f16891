"""What comes in and what stages read: ingests, undoing one, the view in pages, erased texts."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from curation.errors import UsageError
from curation.ledger import Added, Ledger, NewQuarantine, NewRecord, Passage
from curation.ledger.batch import ERASED, OTHER_TEXT
from curation.records import DECISIONS, VIEW, canonical_json, decision, digest, record_id, table, user_message
from tests.curation.ledger_toys import drafted, prompts, row, take_in, view


def begin(ledger: Ledger, name: str = "toys.jsonl") -> str:
    return ledger.begin_ingest("toys", name, digest(name), format="jsonl")


# --- taking in ------------------------------------------------------------------------------------------------------
def test_rows_come_out_as_they_went_in(ledger: Ledger) -> None:
    body = canonical_json(
        [{"role": "system", "content": "be brief"}, {"role": "user", "content": "häh? \u0000"}]
    )
    new = NewRecord(
        "r" * 32,
        "toys",
        "k",
        body,
        lang="de",
        group="g1",
        time="2026-01-02",
        tags={"a": 1},
        labels=[("candidate", "ja\u0000", 0.5)],
    )
    take_in(ledger, [new, row("bare")])
    first, second = view(ledger)
    assert first["messages"] == json.loads(body)
    assert first["prompt"] == "system: be brief\nuser: häh? \u0000"
    assert (first["completion"], first["trust"]) == ("ja\u0000", "candidate")
    assert (first["lang"], first["group"], first["time"], first["source"]) == (
        "de",
        "g1",
        "2026-01-02",
        "toys",
    )
    assert (second["label"], second["completion"], second["trust"]) == (None, None, None)


def test_the_view_has_the_schema_of_the_view_even_without_rows(ledger: Ledger) -> None:
    take_in(ledger, [row("a")])
    ledger.undo_ingest()
    (page,) = ledger.view_pages(scrub_rule=None)
    assert page.table.schema.equals(VIEW)
    assert (page.table.num_rows, page.hi) == (0, 1)


def test_an_empty_ledger_has_no_pages_and_an_empty_batch_adds_nothing(ledger: Ledger) -> None:
    assert list(ledger.view_pages(scrub_rule=None)) == []
    assert ledger.add_rows(begin(ledger), []) == Added(0, 0)
    assert ledger.labels().num_rows == 0


def test_the_same_rows_again_are_unchanged(ledger: Ledger) -> None:
    rows = [drafted(str(n)) for n in range(5)]
    ingest = begin(ledger)
    assert ledger.add_rows(ingest, rows) == Added(5, 0)
    assert ledger.add_rows(ingest, rows[::-1]) == Added(0, 5)
    assert len(view(ledger)) == 5


def test_the_same_row_twice_in_one_batch_is_one_record(ledger: Ledger) -> None:
    assert ledger.add_rows(begin(ledger), [drafted("a"), drafted("a")]) == Added(1, 1)
    assert len(view(ledger)) == 1


def test_a_row_that_brings_a_new_label_is_accepted(ledger: Ledger) -> None:
    ingest = begin(ledger)
    ledger.add_rows(ingest, [drafted("a")])
    assert ledger.add_rows(ingest, [drafted("a", "another answer"), drafted("a")]) == Added(1, 1)
    assert [r["completion"] for r in view(ledger)] == ["answer a", "another answer"]


def test_another_text_under_the_same_id_is_a_conflict_and_is_not_stored(ledger: Ledger) -> None:
    ingest = begin(ledger)
    ledger.add_rows(ingest, [drafted("a")])
    added = ledger.add_rows(ingest, [drafted("b"), row("a", "changed"), row("b", "changed too")])
    assert added == Added(1, 0, [(1, OTHER_TEXT), (2, OTHER_TEXT)])
    assert prompts(ledger) == ["question a", "question b"]
    assert ledger.payload(digest(row("a", "changed").payload_body)) is None


def test_gold_is_hidden_unless_it_is_asked_for(ledger: Ledger) -> None:
    take_in(ledger, [row("a", labels=[("gold", "the truth", None), ("reference", "good", None)])])
    assert [r["completion"] for r in view(ledger)] == ["good"]
    assert [r["completion"] for r in view(ledger, kinds={"gold"})] == ["the truth"]
    assert ledger.labels()["body"].to_pylist() == ["good"]
    assert ledger.labels(kinds=["gold"])["body"].to_pylist() == ["the truth"]


def test_a_source_cannot_speak_as_a_person(ledger: Ledger) -> None:
    with pytest.raises(UsageError, match="'person'"):
        ledger.add_rows(begin(ledger), [row("a", labels=[("person", "me", None)])])
    assert view(ledger) == []


def test_an_import_that_was_killed_is_taken_up_under_its_old_id(ledger: Ledger) -> None:
    first = begin(ledger)
    ledger.add_rows(first, [drafted("a")])
    assert begin(ledger) == first
    ledger.add_rows(first, [drafted("a"), drafted("b")])
    done = ledger.end_ingest(first)
    assert (done.accepted, done.quarantined) == (2, 0)
    assert ledger.end_ingest(first) == done
    assert begin(ledger) != first


def test_an_unknown_ingest_is_refused(ledger: Ledger) -> None:
    with pytest.raises(UsageError, match="no ingest 'x'"):
        ledger.add_rows("x", [drafted("a")])


def test_quarantined_rows_keep_their_place_reason_and_bytes(ledger: Ledger) -> None:
    ingest = begin(ledger)
    bad = NewQuarantine("toys.jsonl", 41, 900, "empty", "completion is empty", b'{"p": "\xff\x00"}')
    ledger.add_quarantine(ingest, [bad])
    ledger.add_quarantine(ingest, [bad])
    assert ledger.quarantined() == [bad]
    assert ledger.quarantined(ingest) == [bad]
    assert ledger.end_ingest(ingest).quarantined == 1


def test_records_know_where_they_come_from(ledger: Ledger) -> None:
    ingest = take_in(ledger, [row("a")], "march.jsonl")
    (found,) = ledger.records([row("a").id, "f" * 32]).to_pylist()
    assert (found["ingest"], found["file_name"], found["key"], found["actor"]) == (
        ingest,
        "march.jsonl",
        "a",
        "ana",
    )
    assert found["visible"] is True
    assert ledger.records().num_rows == 1


# --- undoing --------------------------------------------------------------------------------------------------------
def test_undoing_an_ingest_takes_its_rows_out_of_every_view(ledger: Ledger) -> None:
    take_in(ledger, [drafted("a")])
    second = take_in(ledger, [drafted("b")], "more.jsonl")
    assert ledger.undo_ingest().id == second
    assert prompts(ledger) == ["question a"]
    assert ledger.labels().num_rows == 1
    assert ledger.counts()["records"] == 1
    assert ledger.records([row("b").id])["visible"].to_pylist() == [False]


@pytest.mark.parametrize("undone", [0, 1])
def test_what_another_ingest_also_held_stays(ledger: Ledger, undone: int) -> None:
    ingests = [
        take_in(ledger, [drafted("a"), drafted("both")], "one.jsonl"),
        take_in(ledger, [drafted("both"), drafted("b")], "two.jsonl"),
    ]
    ledger.undo_ingest(ingests[undone])
    assert set(prompts(ledger)) == {"question both", ("question b", "question a")[undone]}
    ledger.undo_ingest()
    assert prompts(ledger) == []


def test_a_label_that_only_the_undone_ingest_brought_goes_with_it(ledger: Ledger) -> None:
    first = take_in(ledger, [drafted("a", "from one")], "one.jsonl")
    take_in(ledger, [drafted("a", "from two")], "two.jsonl")
    ledger.undo_ingest(first)
    assert [r["completion"] for r in view(ledger)] == ["from two"]


def test_an_undone_file_can_be_taken_in_again_and_counts_as_accepted(ledger: Ledger) -> None:
    take_in(ledger, [drafted("a"), drafted("b")])
    ledger.undo_ingest()
    again = begin(ledger)
    assert ledger.add_rows(again, [drafted("a"), drafted("b")]) == Added(2, 0)
    assert prompts(ledger) == ["question a", "question b"]
    ledger.undo_ingest(again)
    assert prompts(ledger) == []


def test_there_must_be_something_to_undo(ledger: Ledger) -> None:
    with pytest.raises(UsageError, match="no ingest to take back"):
        ledger.undo_ingest()
    ingest = take_in(ledger, [drafted("a")])
    ledger.undo_ingest(ingest)
    with pytest.raises(UsageError, match="no ingest to take back"):
        ledger.undo_ingest(ingest)


FILES = st.lists(
    st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(["x", "y", None])), max_size=4),
    min_size=1,
    max_size=4,
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(files=FILES, undone=st.sets(st.integers(0, 3)))
def test_the_view_is_what_the_files_that_stand_hold(
    sqlite_ledger: Ledger, files: list, undone: set[int]
) -> None:
    for ingest in [i for i in sqlite_ledger.ingests() if not i.undone]:  # what the last example left
        sqlite_ledger.undo_ingest(ingest.id)
    names = []
    for number, rows in enumerate(files):
        new = [row(key, labels=[] if body is None else [("candidate", body, None)]) for key, body in rows]
        names.append(take_in(sqlite_ledger, new, f"{number}.jsonl"))
    for number in undone & set(range(len(files))):
        sqlite_ledger.undo_ingest(names[number])
    standing = [pair for number, rows in enumerate(files) if number not in undone for pair in rows]
    labelled = {key for key, body in standing if body}
    expected = {pair for pair in standing if pair[1] or pair[0] not in labelled}
    shown = [(str(r["prompt"])[-1], r["completion"]) for r in view(sqlite_ledger)]
    assert sorted(shown, key=str) == sorted(expected, key=str)


# --- the view -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("size", [1, 2, 3, 100])
def test_pages_of_any_size_give_the_same_rows(ledger: Ledger, size: int) -> None:
    take_in(ledger, [drafted(str(n)) for n in range(5)])
    pages = list(ledger.view_pages(scrub_rule=None, size=size))
    assert pa.concat_tables([page.table for page in pages])["prompt"].to_pylist() == [
        f"question {n}" for n in range(5)
    ]
    assert (pages[-1].hi, pages[-1].label_hi) == (ledger.records_seen(), ledger.labels_seen())
    assert [page.hi for page in pages] == sorted({page.hi for page in pages})


def test_a_view_starts_after_a_number_or_holds_only_given_records(ledger: Ledger) -> None:
    take_in(ledger, [drafted(str(n)) for n in range(5)])
    assert [r["prompt"] for r in view(ledger, after=3)] == ["question 3", "question 4"]
    some = view(ledger, records=[drafted("4").id, drafted("1").id], size=1)
    assert [r["prompt"] for r in some] == ["question 1", "question 4"]
    assert view(ledger, records=[]) == []
    with pytest.raises(UsageError, match="no record"):
        view(ledger, records=["f" * 32])


def test_only_newer_labels_can_be_asked_for(ledger: Ledger) -> None:
    take_in(ledger, [drafted("a"), row("b")])
    seen = ledger.labels_seen()
    take_in(ledger, [drafted("a", "late")], "more.jsonl")
    assert [r["completion"] for r in view(ledger, labels_after=seen)] == ["late"]


def rewrite(ledger: Ledger, rows: list[dict[str, object]], rule: str = "rule", stage: str = "scrub") -> None:
    hi, label_hi = ledger.records_seen(), ledger.labels_seen()
    ledger.decide(stage, rule, table(rows, DECISIONS), covered=[("record", 0, hi), ("label", 0, label_hi)])


def test_the_scrubbed_view_shows_what_the_latest_decision_of_its_rule_rewrote(ledger: Ledger) -> None:
    take_in(ledger, [drafted("a"), drafted("b")])
    label = str(view(ledger)[0]["label"])
    clean = canonical_json(user_message("question <X>")).decode()
    rewrite(
        ledger,
        [
            decision(drafted("a").id, "rewrite", "a name", output=clean),
            decision(drafted("a").id, "rewrite", "a name", label=label, output="answer <X>"),
        ],
    )
    rewrite(ledger, [decision(drafted("b").id, "rewrite", "other", output=clean)], rule="another")
    first, second = view(ledger, scrub_rule="rule")
    assert (first["prompt"], first["completion"]) == ("question <X>", "answer <X>")
    assert first["messages"] == user_message("question <X>")
    assert (second["prompt"], second["completion"]) == ("question b", "answer b")
    assert [r["completion"] for r in view(ledger, scrub_rule="rule", records=[drafted("a").id])] == [
        "answer <X>"
    ]
    assert prompts(ledger) == ["question a", "question b"]
    rewrite(ledger, [])  # a second scan finds nothing any more
    assert view(ledger, scrub_rule="rule") == view(ledger)


# --- erasing --------------------------------------------------------------------------------------------------------
def test_erasing_a_text_leaves_every_other_row_as_it_was(ledger: Ledger) -> None:
    take_in(ledger, [drafted("a"), drafted("b"), drafted("c")])
    others = [r for r in view(ledger) if r["prompt"] != "question b"]
    before = ledger.counts()
    text = ledger.records([drafted("b").id])["payload"][0].as_py()
    assert ledger.erase_payloads([text]) == 1
    assert ledger.erase_payloads([text]) == 0
    assert view(ledger) == others
    assert ledger.payload(text) is None
    assert ledger.counts() | {"erased": 0, "transactions": 0} == before | {"transactions": 0}
    assert ledger.audit().problems == ()


def test_an_erased_completion_leaves_its_record_without_one(ledger: Ledger) -> None:
    take_in(ledger, [drafted("a")])
    ledger.erase_payloads([digest("answer a")])
    assert [(r["prompt"], r["completion"]) for r in view(ledger)] == [("question a", None)]
    assert ledger.labels().num_rows == 0


def test_an_erased_text_is_not_taken_in_again(ledger: Ledger) -> None:
    take_in(ledger, [drafted("a")])
    ledger.erase_payloads([digest("answer a")])
    again = ledger.add_rows(begin(ledger, "again"), [drafted("a"), drafted("b", "answer a"), drafted("c")])
    assert again == Added(1, 0, [(0, ERASED), (1, ERASED)])
    assert ledger.payload(digest("answer a")) is None
    assert ledger.payload(digest(row("b").payload_body)) is None


def test_erased_bytes_are_gone_from_the_file(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    with Ledger.create(f"sqlite:///{path}", workspace="toy", actor="ana") as ledger:
        take_in(ledger, [drafted("a", "the secret of Ms Unmistakable"), drafted("b")])
        assert b"Ms Unmistakable" in path.read_bytes()
        ledger.erase_payloads([digest("the secret of Ms Unmistakable")])
        assert b"Ms Unmistakable" not in path.read_bytes()


def test_an_unknown_text_cannot_be_erased(ledger: Ledger) -> None:
    with pytest.raises(UsageError, match="no text"):
        ledger.erase_payloads(["f" * 32])


# --- passages -------------------------------------------------------------------------------------------------------
def test_passages_come_back_and_an_undone_ingest_takes_them_along(ledger: Ledger) -> None:
    ingest = begin(ledger)
    one = Passage("p1", "policy.md", "v3", ("Refunds", "Late"), "Refunds take five days.")
    two = Passage("p2", "policy.md", "v3", (), "Say sorry.")
    ledger.add_passages([one], ingest)
    ledger.add_passages([two, one])
    assert ledger.passages() == [one, two]
    ledger.undo_ingest(ingest)
    assert ledger.passages() == [two]


def test_many_rows_go_through_in_one_batch(ledger: Ledger) -> None:
    rows = [drafted(str(n), f"answer {n % 7}") for n in range(21_000)]
    assert ledger.add_rows(begin(ledger), rows) == Added(21_000, 0)
    assert sum(page.table.num_rows for page in ledger.view_pages(scrub_rule=None)) == 21_000
    assert ledger.labels_seen() == 21_000
    assert record_id("toys", key="20999") == ledger.records([drafted("20999").id])["record"][0].as_py()
