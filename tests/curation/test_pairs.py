"""Preference pairs of a snapshot: who wins, what is left out, and that training reads them."""

from __future__ import annotations

import json
from pathlib import Path

import orjson
import pytest

from apps.cli import main
from curation import pairs
from curation.assemble import compose, freeze
from curation.curate import curate
from curation.errors import GateRefused
from curation.judging import Judgement, Preference, preferences
from curation.pairs import preference_rows
from curation.pii import Mark
from curation.workspace import Workspace
from tests.curation.test_judging import desk, prefers, say, texts, weights

__all__ = ["desk"]  # the fixture


def compare(opened: Workspace, record: str, *said: str) -> None:
    """So many people say A (the draft), B (the reference) or tie."""
    sides = orjson.dumps([texts(opened, record, kind) for kind in ("candidate", "reference")]).decode()
    for number, word in enumerate(said):
        say(opened, "better", record, sides, word, f"p{number}")


def frozen(opened: Workspace) -> str:
    curate(opened)
    return freeze(opened, compose(opened)).name


def test_the_answer_that_most_people_prefer_is_chosen_and_a_draw_gives_no_pair() -> None:
    found = preferences([prefers("r", "p", 0), prefers("r", "q", 0), prefers("r", "s", 1)])
    assert [(p.chosen, p.rejected) for p in found] == [("y", "x")]
    assert 0.5 < found[0].share < 2 / 3, "three people are few"
    assert preferences([prefers("r", "p", 1), prefers("r", "q", 0)]) == []
    assert preferences([prefers("r", "p", 0.5)]) == []
    assert preferences([]) == []


def test_of_three_answers_only_those_that_were_compared_make_a_pair_and_strength_is_shared() -> None:
    said = [Judgement("r", "a", who, {"win": 1.0}, rival="b") for who in "pq"]
    said += [Judgement("r", "b", who, {"win": 1.0}, rival="c") for who in "pq"]
    assert [(p.chosen, p.rejected) for p in preferences(said)] == [("a", "b"), ("b", "c")]
    assert all(isinstance(p, Preference) and p.share > 0.5 for p in preferences(said))


def test_a_snapshot_gives_what_people_preferred_and_training_reads_it(
    desk: Workspace, tmp_path: Path
) -> None:
    from training.rows import split_rows

    first, draw, unasked, _ = sorted(weights(desk))
    compare(desk, first, "A", "A", "B")
    compare(desk, draw, "A", "B", "tie")
    name = frozen(desk)
    out = tmp_path / "pairs.jsonl"
    with pytest.raises(SystemExit) as end:
        main(["--workspace", str(desk.root), "snapshot", "export", name, str(out), "--to", "preferences"])
    assert not end.value.code
    (row,) = map(json.loads, out.read_text().splitlines())
    draft, reference = texts(desk, first, "candidate"), texts(desk, first, "reference")
    assert row == {"id": first, "prompt": row["prompt"], "chosen": draft, "rejected": reference}
    assert row["prompt"].startswith("Where is parcel")
    (example,) = split_rows([row], None)
    assert (example.completion, example.rejected) == (draft, reference)
    assert unasked not in out.read_text()


def test_a_record_that_the_snapshot_does_not_train_on_gives_no_pair(desk: Workspace) -> None:
    held, kept, *_ = sorted(weights(desk))
    compare(desk, held, "A")
    compare(desk, kept, "B")
    desk.ledger.review(held, version=0, action="reject", reason="no", key="k")
    assert [row["id"] for row in preference_rows(desk, frozen(desk))] == [kept]


def test_a_text_in_which_a_mark_stands_is_in_no_pair_and_without_the_look_it_would_be(
    desk: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = sorted(weights(desk))[0]
    compare(desk, record, "A")
    name = frozen(desk)
    assert len(preference_rows(desk, name)) == 1, "negative control: nothing is marked"
    monkeypatch.setattr(pairs, "marked", lambda workspace: {record: (Mark("do not know", "TERM"),)})
    assert preference_rows(desk, name) == []


def test_no_pair_leaves_while_an_answer_is_unscanned(desk: Workspace) -> None:
    first, second, *_ = sorted(weights(desk))
    compare(desk, first, "A")
    name = frozen(desk)
    assert preference_rows(desk, name)
    compare(desk, second, "A")
    with pytest.raises(GateRefused, match="curate"):
        preference_rows(desk, name)
