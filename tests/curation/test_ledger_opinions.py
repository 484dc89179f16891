"""Labels, decisions, coverage, reviews: opinions stand beside records, the latest one counts, nothing is overwritten."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from curation.errors import ConflictError, UsageError
from curation.ledger import (
    Alias,
    Covered,
    Function,
    Ledger,
    NewLabel,
    Review,
    ReviewConflict,
    VoteRun,
)
from curation.ledger.decisions import merge_ranges
from curation.records import DECISIONS, decision, digest, table
from tests.curation.ledger_toys import drafted, row, take_in, view

A, B = row("a").id, row("b").id


def said(
    body: str, *, record: str = A, author: str = "a-1", showing: str | None = "s1", revision: str = ""
) -> NewLabel:
    return NewLabel(record, "reply", 1, "person", author, body, None, showing, {"lead_time": 3.5}, revision)


@pytest.fixture
def toys(ledger: Ledger) -> Ledger:
    take_in(ledger, [drafted("a"), drafted("b")])
    return ledger


def bodies(ledger: Ledger, **options: object) -> list[str]:
    return ledger.labels(**options)["body"].to_pylist()  # type: ignore[arg-type]


# --- authors --------------------------------------------------------------------------------------------------------
def test_an_author_has_one_opaque_id_and_a_name_that_can_be_erased(ledger: Ledger) -> None:
    ana = ledger.add_author("ana@example.org", "person")
    assert ledger.add_author("ana@example.org", "person") == ana
    assert ledger.add_author("ana@example.org", "curator") != ana
    assert "ana" not in ana[2:]
    assert ana.startswith("a-")
    assert len(ana) == 14
    ledger.erase_author(ana)
    first = ledger.authors()[0]
    assert (first.id, first.name) == (ana, None)
    assert ledger.audit().problems == ()
    with pytest.raises(UsageError, match="no author"):
        ledger.erase_author("a-000000000000")


def test_two_ledgers_give_the_same_name_different_ids(new_ledger_url) -> None:  # type: ignore[no-untyped-def]
    ids = set()
    for _ in range(2):
        with Ledger.create(new_ledger_url(), workspace="toy", actor="ana") as ledger:
            ids.add(ledger.add_author("ana", "person"))
    assert len(ids) == 2


# --- labels ---------------------------------------------------------------------------------------------------------
def test_a_label_is_stored_once_and_comes_back_whole(toys: Ledger) -> None:
    first = toys.add_labels([said("fine")])
    assert toys.add_labels([said("fine")]) == first
    (found,) = toys.labels(records=[A], kinds=["person"]).to_pylist()
    assert found.pop("seq") == 3
    assert found == {
        "record": A,
        "label": first[0],
        "kind": "person",
        "author": "a-1",
        "body": "fine",
        "confidence": None,
        "question": "reply",
        "question_version": 1,
        "showing": "s1",
        "extra": '{"lead_time":3.5}',
    }


def test_a_changed_mind_about_the_same_showing_replaces_the_earlier_label(toys: Ledger) -> None:
    toys.add_labels([said("fine", revision="1"), said("fine", author="a-2")])
    toys.add_labels([said("better", revision="2")])
    assert bodies(toys, kinds=["person"]) == ["fine", "better"]
    toys.add_labels([said("fine", revision="1"), said("better", revision="2")])  # a replay changes nothing
    assert bodies(toys, kinds=["person"]) == ["fine", "better"]
    toys.add_labels([said("fine", revision="3")])  # and back again
    assert bodies(toys, kinds=["person"]) == ["fine", "fine"]


def test_labels_about_another_showing_or_by_a_function_stand_side_by_side(toys: Ledger) -> None:
    toys.add_labels([said("x"), said("y", showing="s2"), said("z", showing=None), said("w", showing=None)])
    toys.add_labels(
        [NewLabel(A, None, None, "function", "f1", "ACCEPT"), NewLabel(A, None, None, "model", "m1", "ok", 1)]
    )
    assert bodies(toys, records=[A]) == ["answer a", "x", "y", "z", "w", "ACCEPT", "ok"]


def test_withdrawn_labels_leave_every_view_and_may_be_restored(toys: Ledger) -> None:
    (label,) = toys.add_labels([said("fine")])
    assert toys.withdraw_labels([label], "annotation deleted") == 1
    assert toys.withdraw_labels([label], "annotation deleted") == 0
    assert bodies(toys) == ["answer a", "answer b"]
    assert [r["completion"] for r in view(toys)] == ["answer a", "answer b"]
    assert toys.labels_by("a-1") == []
    assert toys.restore_labels([label], "by mistake") == 1
    assert toys.labels_by("a-1") == [label]
    assert bodies(toys, records=[A]) == ["answer a", "fine"]


def test_labels_of_unknown_records_kinds_and_ids_are_refused(toys: Ledger) -> None:
    with pytest.raises(UsageError, match="no record"):
        toys.add_labels([said("x", record="f" * 32)])
    with pytest.raises(UsageError, match="unknown kind of label: 'oracle'"):
        toys.add_labels([NewLabel(A, None, None, "oracle", "a-1", "x")])
    with pytest.raises(UsageError, match="no label"):
        toys.withdraw_labels(["f" * 32], "x")
    with pytest.raises(UsageError, match="unknown kind"):
        toys.labels(kinds=["x' OR '1'='1"])


def test_labels_come_in_pages(toys: Ledger) -> None:
    toys.add_labels([said(str(n), showing=str(n)) for n in range(7)])
    pages = list(toys.label_pages(size=4))
    assert [page.num_rows for page in pages] == [4, 4, 1]


def test_functions_and_runs_of_votes_and_scores_are_kept(ledger: Ledger) -> None:
    short = Function("d" * 32, "too_short", "lfs.py:3", "def too_short(x): ...", ("ACCEPT", "REJECT"))
    ledger.add_functions([short, short])
    ledger.add_functions([short])
    assert ledger.functions() == [short]
    assert ledger.latest_vote_run() is None
    run = ledger.add_vote_run("votes-1", rule="r1", record_hi=7, functions=["d" * 32])
    assert ledger.add_vote_run("votes-1", rule="r1", record_hi=7, functions=["d" * 32]) == run
    assert ledger.latest_vote_run() == VoteRun(run, "votes-1", "r1", 7, ("d" * 32,))
    scored = ledger.add_scores("adapter", "scores-1", view_rule="r1", record_hi=7)
    assert [s.id for s in ledger.score_runs("adapter")] == [scored]
    assert ledger.score_runs("another") == []


# --- decisions and coverage -----------------------------------------------------------------------------------------
def decide(
    ledger: Ledger, rows: list[dict[str, object]], covered: list[tuple[str, int, int]], **options: object
) -> int:
    return ledger.decide("quality", "r1", table(rows, DECISIONS), covered=covered, **options)  # type: ignore[arg-type]


def standing(ledger: Ledger) -> list[tuple[str, str]]:
    found = ledger.decisions("quality", "r1").to_pylist()
    return [(row["record"], row["action"]) for row in found]


def test_a_decision_comes_back_with_reason_evidence_and_output(toys: Ledger) -> None:
    made = decision(A, "rewrite", "too loud", evidence={"caps": 9}, output="quiet")
    assert decide(toys, [made], [("record", 0, 2)], inputs={A: "i" * 32}, run="run-1") == 1
    (found,) = toys.decisions().to_pylist()
    assert found.pop("seq") == 1
    assert found == made | {"stage": "quality", "rule": "r1", "run": "run-1"}
    assert toys.decisions(records=[B]).num_rows == 0
    assert toys.decisions(stage="dedup").num_rows == 0


def test_the_latest_decision_of_a_stage_and_rule_wins(toys: Ledger) -> None:
    decide(toys, [decision(A, "drop", "short")], [("record", 0, 2)])
    decide(toys, [decision(A, "hold", "odd")], [("record", 0, 2)])
    assert standing(toys) == [(A, "hold")]
    assert toys.decisions(latest=False)["action"].to_pylist() == ["drop", "hold"]


def test_what_is_covered_again_and_not_decided_again_is_kept(toys: Ledger) -> None:
    decide(toys, [decision(A, "drop", "x"), decision(B, "drop", "x")], [("record", 0, 2)])
    decide(toys, [], [("record", 1, 2)])
    assert standing(toys) == [(A, "drop")]
    decide(toys, [], [("record", 0, 2)], supersede=False)
    assert standing(toys) == [(A, "drop")]


def test_covering_labels_speaks_of_labels_and_covering_records_of_records(toys: Ledger) -> None:
    label = str(view(toys)[0]["label"])
    both = [decision(A, "drop", "x"), decision(A, "rewrite", "y", label=label, output="z")]
    decide(toys, both, [("record", 0, 2), ("label", 0, 2)])
    decide(toys, [both[0]], [("record", 0, 2), ("label", 1, 2)])
    assert sorted(standing(toys)) == [(A, "drop"), (A, "rewrite")]
    decide(toys, [both[0]], [("record", 0, 2), ("label", 0, 2)])
    assert standing(toys) == [(A, "drop")]


def test_decisions_and_their_coverage_are_stored_together_or_not_at_all(toys: Ledger) -> None:
    with pytest.raises(UsageError, match="no record"):
        decide(toys, [decision(A, "drop", "x"), decision("f" * 32, "drop", "x")], [("record", 0, 2)])
    with pytest.raises(UsageError, match="unknown action 'burn'"):
        decide(toys, [decision(A, "burn", "x")], [("record", 0, 2)])
    with pytest.raises(UsageError, match="coverage of 'page'"):
        decide(toys, [], [("page", 0, 2)])
    assert toys.decisions().num_rows == 0
    assert toys.coverage("quality", "r1") == []


def test_gaps_are_what_is_visible_and_not_covered(toys: Ledger) -> None:
    assert toys.gaps("quality", "r1") == [Covered("record", 0, 2), Covered("label", 0, 2)]
    decide(toys, [], [("record", 0, 2), ("label", 0, 2)])
    assert toys.gaps("quality", "r1") == []
    assert toys.gaps("quality", "r2") != []
    take_in(toys, [drafted("c"), row("d", labels=[("gold", "hidden", None)])], "more.jsonl")
    assert toys.gaps("quality", "r1") == [Covered("record", 2, 4), Covered("label", 2, 3)]
    toys.undo_ingest()
    assert toys.gaps("quality", "r1") == []


RANGES = st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20)), max_size=8)


@given(RANGES)
def test_merged_ranges_hold_the_same_numbers_apart_and_in_order(ranges: list[tuple[int, int]]) -> None:
    merged = merge_ranges(ranges)
    numbers = {n for lo, hi in ranges for n in range(lo + 1, hi + 1)}
    assert {n for lo, hi in merged for n in range(lo + 1, hi + 1)} == numbers
    assert all(a[1] < b[0] for a, b in pairwise(merged))


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ranges=RANGES)
def test_gaps_and_coverage_together_are_everything(
    sqlite_ledger: Ledger, ranges: list[tuple[int, int]]
) -> None:
    take_in(sqlite_ledger, [row(str(n)) for n in range(20)])
    rule = digest(repr(ranges))
    sqlite_ledger.decide("s", rule, table([], DECISIONS), covered=[("record", lo, hi) for lo, hi in ranges])
    spans = [(c.lo, c.hi) for c in sqlite_ledger.coverage("s", rule)] + [
        (g.lo, g.hi) for g in sqlite_ledger.gaps("s", rule)
    ]
    assert sorted(n for lo, hi in spans for n in range(lo + 1, hi + 1)) == list(range(1, 21))


def test_aliases_are_handed_out_once(ledger: Ledger) -> None:
    ana, bea = Alias("PERSON", "h1", "PERSON_1"), Alias("PERSON", "h2", "PERSON_2")
    assert ledger.add_aliases([ana, bea]) == [ana, bea]
    assert ledger.add_aliases([Alias("PERSON", "h1", "PERSON_9")]) == [ana]
    assert ledger.aliases() == [ana, bea]
    for clashing in (
        [Alias("PERSON", "h3", "PERSON_1")],
        [Alias("PERSON", "h4", "P"), Alias("PERSON", "h5", "P")],
    ):
        with pytest.raises(ConflictError, match="already stands for something else"):
            ledger.add_aliases(clashing)
    assert ledger.aliases() == [ana, bea]


# --- reviews --------------------------------------------------------------------------------------------------------
def curated(ledger: Ledger) -> list[str]:
    return bodies(ledger, kinds=["curator"])


def test_an_edit_makes_the_curators_label_and_moves_the_version(toys: Ledger) -> None:
    done = toys.review(A, version=0, action="edit", body="better", reason="tone", key="k1")
    assert (done.version, done.action, done.repeated) == (1, "edit", False)
    assert curated(toys) == ["better"]
    version, history = toys.review_state(A)
    assert version == 1
    assert isinstance(history[0], Review)
    assert (history[0].body, history[0].reason, history[0].actor, history[0].label) == (
        "better",
        "tone",
        "ana",
        done.label,
    )
    assert toys.review_state(B) == (0, [])
    assert toys.reviews() == history


def test_an_acceptance_may_name_the_label_it_accepts(toys: Ledger) -> None:
    label = str(view(toys)[0]["label"])
    toys.review(A, version=0, action="accept", label=label, key="k1")
    assert curated(toys) == ["answer a"]
    with pytest.raises(UsageError, match="no label"):
        toys.review(B, version=0, action="accept", label=label, key="k2")
    with pytest.raises(UsageError, match="what is accepted"):
        toys.review(B, version=0, action="accept", key="k3")
    with pytest.raises(UsageError, match="needs the new text"):
        toys.review(B, version=0, action="edit", key="k4")
    with pytest.raises(UsageError, match="unknown review 'burn'"):
        toys.review(B, version=0, action="burn", key="k5")


def test_a_rejection_makes_no_label_and_retires_the_one_before(toys: Ledger) -> None:
    toys.review(A, version=0, action="accept", body="fine", key="k1")
    toys.review(A, version=1, action="reject", reason="on second thought", key="k2")
    assert curated(toys) == []
    (state,) = toys.review_states().to_pylist()
    assert (state["record"], state["action"], state["version"], state["label"]) == (A, "reject", 2, None)


def test_the_same_key_twice_acts_once(toys: Ledger) -> None:
    first = toys.review(A, version=0, action="edit", body="better", key="k1")
    again = toys.review(A, version=0, action="edit", body="better", key="k1")
    assert again.repeated
    assert (again.version, again.label) == (first.version, first.label)
    assert len(toys.reviews()) == 1
    with pytest.raises(ConflictError, match="used for another decision"):
        toys.review(B, version=0, action="edit", body="better", key="k1")


def test_who_comes_second_is_told_what_the_first_one_decided(toys: Ledger) -> None:
    toys.review(A, version=0, action="edit", body="line one\nline two", key="k1")
    with pytest.raises(ReviewConflict, match="ana chose 'edit'") as refused:
        toys.acting_as("bea").review(A, version=0, action="edit", body="line one\nline 2", key="k2")
    assert refused.value.theirs.body == "line one\nline two"
    assert "-line two" in refused.value.diff
    assert "+line 2" in refused.value.diff
    assert refused.value.exit_code == 4
    assert curated(toys) == ["line one\nline two"]
    with pytest.raises(ConflictError, match="version 3 of this record does not exist"):
        toys.review(B, version=3, action="skip", key="k3")


def test_undo_brings_back_the_decision_before_with_its_label(toys: Ledger) -> None:
    first = toys.review(A, version=0, action="accept", body="fine", key="k1")
    toys.review(A, version=1, action="edit", body="better", key="k2")
    undone = toys.undo_review(A, version=2, key="u1")
    assert (undone.version, undone.label) == (3, first.label)
    assert toys.undo_review(A, version=2, key="u1").repeated
    assert curated(toys) == ["fine"]
    toys.undo_review(A, version=3, key="u2")
    assert curated(toys) == []
    assert toys.review_states().num_rows == 0
    with pytest.raises(UsageError, match="no decision left to undo"):
        toys.undo_review(A, version=4, key="u3")
    with pytest.raises(ReviewConflict):
        toys.undo_review(A, version=1, key="u4")


ACTIONS = st.lists(
    st.tuples(st.sampled_from(["accept", "edit", "reject", "skip"]), st.sampled_from("xyz")), max_size=6
)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(before=ACTIONS, after=ACTIONS)
def test_n_undos_restore_the_state_before_n_decisions(
    sqlite_ledger: Ledger, before: list, after: list
) -> None:
    name = sqlite_ledger.records_seen()  # a fresh record for each example
    record = row(str(name)).id
    take_in(sqlite_ledger, [row(str(name))], str(name))

    def act(actions: list[tuple[str, str]], start: int) -> None:
        for number, (action, body) in enumerate(actions, start):
            sqlite_ledger.review(record, version=number, action=action, body=body, key=f"{name}-{number}")

    def state() -> object:
        found = [
            s for s in sqlite_ledger.review_states().to_pylist() if s.pop("version") and s["record"] == record
        ]
        return found, bodies(sqlite_ledger, records=[record])

    act(before, 0)
    wanted = state()
    act(after, len(before))
    start = len(before) + len(after)
    for number in range(start, start + len(after)):
        sqlite_ledger.undo_review(record, version=number, key=f"{name}-{number}")
    assert state() == wanted
