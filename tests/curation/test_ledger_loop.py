"""What the loop keeps in the ledger: questions, showings, selections, sticky sets, snapshots, steps, leases."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from curation.errors import ConflictError, UsageError
from curation.ledger import Adapter, Ledger, Question, SelectionItem, Showing, Task
from tests.curation.ledger_toys import drafted, row, take_in

A, B, C = (row(key).id for key in "abc")


@pytest.fixture
def toys(ledger: Ledger) -> Ledger:
    take_in(ledger, [drafted("a"), drafted("b"), drafted("c")])
    return ledger


def test_a_question_keeps_every_version_with_its_mapping(ledger: Ledger) -> None:
    first = Question("topic", 1, "class", ("a", "b"), "one class", "Read twice.")
    second = Question("topic", 2, "class", ("a", "c"), "one class", "Read twice.", {"b": None, "a": "a"})
    for question in (first, first, second):
        ledger.add_question(question)
    assert ledger.questions() == [first, second]
    assert ledger.question("topic") == second
    assert ledger.question("topic", 1) == first
    with pytest.raises(ConflictError, match="reads differently"):
        ledger.add_question(Question("topic", 2, "class", ("z",)))
    with pytest.raises(UsageError, match="Store it as version 3"):
        ledger.add_question(Question("topic", 5, "class"))
    with pytest.raises(UsageError, match="no question 'tone'"):
        ledger.question("tone")


def test_a_showing_is_everything_that_was_on_the_screen(toys: Ledger) -> None:
    shown = Showing(
        A, "reply", 1, "v" * 32, "Draft\u0000.", "adapter-1", ("p1",), False, "sel", "a-1", {"order": 3}
    )
    blind = Showing(B, "reply", 1, "v" * 32, blind=True)
    ids = toys.add_showings([shown, blind])
    assert toys.add_showings([shown, blind]) == ids
    stored = toys.showings()
    assert [s.id for s in stored] == ids
    assert stored == [replace(shown, id=ids[0]), replace(blind, id=ids[1])]
    assert [s.id for s in toys.showings(record=B)] == [ids[1]]
    assert [s.id for s in toys.showings(ids=[ids[1]])] == [ids[1]]


def test_a_task_is_open_until_it_is_done_or_skipped(toys: Ledger) -> None:
    (showing,) = toys.add_showings([Showing(A, "reply", 1, "v")])
    new = [Task(showing, "label-studio", "7/1"), Task(showing, "files", "x")]
    ids = toys.add_tasks(new)
    assert toys.add_tasks(new) == ids
    assert toys.finish_tasks([ids[0]]) == 1
    assert toys.finish_tasks([ids[0]]) == 0
    assert [t.remote for t in toys.tasks(state="open")] == ["x"]
    assert [t.id for t in toys.tasks(channel="label-studio", state="done")] == [ids[0]]
    assert toys.finish_tasks([ids[0]], "skipped") == 1
    with pytest.raises(UsageError, match="no task"):
        toys.finish_tasks(["f" * 32])
    with pytest.raises(UsageError, match="unknown state"):
        toys.finish_tasks(ids, "lost")


def test_a_selection_keeps_order_arm_and_reason(toys: Ledger) -> None:
    items = (SelectionItem(C, "strategy", "least sure", 1.5), SelectionItem(A, "control", "drawn at random"))
    chosen = toys.add_selection(round=1, run="r", strategy="hybrid", adapter=None, items=items)
    assert toys.add_selection(round=1, run="r", strategy="hybrid", adapter=None, items=items) == chosen
    (stored,) = toys.selections("r")
    assert (stored.id, stored.items) == (chosen, items)
    assert toys.selections("other") == []
    selected = toys.selected_records().to_pylist()
    assert [(s["record"], s["arm"], s["position"], s["round"]) for s in selected] == [
        (C, "strategy", 0, 1),
        (A, "control", 1, 1),
    ]


def test_what_people_will_see_of_a_choice_is_stored_with_it_or_not_at_all(toys: Ledger) -> None:
    items = (SelectionItem(C, "strategy", "least sure"),)
    shown = Showing(C, "reply", 1, "a" * 32, annotator="ana")
    with pytest.raises(UsageError):
        toys.add_selection(
            round=1,
            run="r",
            strategy="nll",
            adapter=None,
            items=items,
            showings=[replace(shown, record="f" * 32)],
        )
    assert (toys.selections("r"), toys.showings()) == ([], [])
    for _ in range(2):
        chosen = toys.add_selection(
            round=1, run="r", strategy="nll", adapter=None, items=items, showings=[shown]
        )
    assert [(s.record, s.selection) for s in toys.showings()] == [(C, chosen)]


def test_a_reserved_record_keeps_its_role_for_ever(toys: Ledger) -> None:
    first = toys.reserve("exam", [(A, "test"), (B, "dev")], {"seed": 7})
    assert toys.reserve("exam", [(B, "dev"), (A, "test")]) == first
    assert toys.eval_items().to_pylist() == [{"record": A, "role": "test"}, {"record": B, "role": "dev"}]
    assert toys.eval_items("dev")["record"].to_pylist() == [B]
    toys.reserve("exam", [(A, "test"), (C, "test")])
    with pytest.raises(ConflictError, match="already in 'test'"):
        toys.reserve("exam", [(C, "dev")])
    with pytest.raises(ConflictError):
        toys.reserve("twice", [(C, "test"), (C, "dev")])
    with pytest.raises(UsageError, match="unknown role"):
        toys.reserve("exam", [(C, "train")])
    assert toys.eval_items().num_rows == 3


def test_splits_stick_and_only_a_held_record_may_still_move(toys: Ledger) -> None:
    assert toys.set_splits([(A, "train"), (B, "held")]) == 2
    assert toys.set_splits([(A, "train"), (B, "held")]) == 0
    assert toys.set_splits([(B, "test")]) == 1
    assert toys.splits().to_pylist() == [{"record": A, "split": "train"}, {"record": B, "split": "test"}]
    with pytest.raises(ConflictError, match="already in 'test'"):
        toys.set_splits([(C, "train"), (B, "train")])
    assert toys.splits().num_rows == 2
    with pytest.raises(UsageError, match="unknown split"):
        toys.set_splits([(A, "dev")])


def test_snapshots_are_one_line_of_descent(ledger: Ledger) -> None:
    one = ledger.add_snapshot("s1", rows=3, manifest_digest="d1", round=0)
    assert one.parent == ""
    assert ledger.add_snapshot("s2", rows=4, manifest_digest="d2", parent="s1").parent == "s1"
    assert ledger.add_snapshot("s1", rows=3, manifest_digest="d1") == one
    with pytest.raises(ConflictError, match="another snapshot, 's2', was committed since 's1'"):
        ledger.add_snapshot("s3", rows=5, manifest_digest="d3", parent="s1")
    ledger.approve("s2", "refused", by="gates", reason="leak")
    ledger.approve("s2", "approved", by="ana", reason="looked at it")
    assert [(s.name, s.parent, s.verdict, s.by) for s in ledger.snapshots()] == [
        ("s1", "", None, None),
        ("s2", "s1", "approved", "ana"),
    ]
    assert ledger.snapshot("s2").reason == "looked at it"
    with pytest.raises(UsageError, match="2 snapshots are named 's'"):
        ledger.snapshot("s")
    with pytest.raises(UsageError, match="unknown verdict"):
        ledger.approve("s2", "maybe", by="ana", reason="")


def test_an_adapter_comes_back_with_recipe_and_metrics(ledger: Ledger) -> None:
    made = Adapter("d" * 32, "s1", "base@rev", {"rank": 16}, {"exact": 0.5}, "artifacts/x", "random")
    assert ledger.add_adapter(made) == made.digest
    ledger.add_adapter(made)
    (stored,) = ledger.adapters()
    assert (stored.recipe, stored.metrics, stored.arm, stored.base) == (
        {"rank": 16},
        {"exact": 0.5},
        "random",
        "base@rev",
    )


def test_the_first_writer_finishes_a_step(ledger: Ledger) -> None:
    assert ledger.step("run", 0, "train") is None
    assert ledger.finish_step("run", 0, "train", {"adapter": "a"}) == {"adapter": "a"}
    assert ledger.finish_step("run", 0, "train", {"adapter": "b"}) == {"adapter": "a"}
    assert ledger.step("run", 0, "train") == {"adapter": "a"}
    assert ledger.steps("run") == [("run", 0, "train", {"adapter": "a"})]
    assert ledger.finish_step("run", 1, "train", {}) == {}
    assert ledger.step("run", 1, "train") == {}
    with pytest.raises(UsageError, match="without an output"):
        ledger.finish_step("run", 0, "score", None)
    with pytest.raises(UsageError, match="stored as JSON"):
        ledger.finish_step("run", 0, "score", object())


def test_a_watermark_moves(ledger: Ledger) -> None:
    assert ledger.watermark("pull") is None
    ledger.set_watermark("pull", "2026-01-01")
    ledger.set_watermark("pull", "2026-01-02")
    assert ledger.watermark("pull") == "2026-01-02"


def test_a_lease_is_held_by_one_and_its_token_rises(ledger: Ledger) -> None:
    with ledger.lease("train", 60) as first:
        with (
            pytest.raises(ConflictError, match=r"ana@.* holds 'train'"),
            ledger.acting_as("bea").lease("train"),
        ):
            pass
        with ledger.lease("score") as other:
            other.check()
        first.renew()
        first.check()
    with ledger.lease("train", 60) as second:
        assert second.token == first.token + 1
        with pytest.raises(ConflictError, match="was lost"):
            first.check()


def test_a_lease_that_ran_out_goes_to_the_next_and_the_late_holder_is_told(ledger: Ledger) -> None:
    with ledger.lease("train", 0.05) as late:
        time.sleep(0.1)
        with ledger.lease("train", 60) as next_one:
            for ask in (late.check, late.renew):
                with pytest.raises(ConflictError, match="was lost"):
                    ask()
            late.release()
            next_one.check()


def test_events_are_kept_with_their_author(ledger: Ledger) -> None:
    ledger.event("promoted", "adapter-1", {"why": "better"})
    ledger.event("looked", "adapter-2")
    (found,) = ledger.events(kind="promoted")
    assert (found.subject, found.detail, found.actor) == ("adapter-1", {"why": "better"}, "ana")
    assert [e.kind for e in ledger.events(subject="adapter-2")] == ["looked"]


def test_counts_tell_what_there_is(toys: Ledger) -> None:
    counts = toys.counts()
    assert (counts["records"], counts["labels"], counts["ingests"], counts["reviews"]) == (
        3,
        {"candidate": 3},
        1,
        0,
    )
    toys.undo_ingest()
    assert (toys.counts()["records"], toys.counts()["labels"]) == (0, {})
