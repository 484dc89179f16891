"""The loop: what a round does, what a kill leaves, and what people are waited for."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import textwrap
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from curation import acquisition, assemble, choosing, loop, people, relabel, workspace
from curation.curate import Rules
from curation.errors import UsageError
from curation.formats import Mapping
from curation.loop import run
from curation.opinions import opinions
from curation.people import Simulated
from curation.people.through import Through
from curation.question import current
from curation.run import MAIN, TWIN, Run
from curation.workspace import init, open_workspace
from tests.curation.toys import CLASSES, ToyLearner, inquiries, write_rows

ROOT = Path(__file__).resolve().parents[2]


def make(folder: Path, rows: list[dict[str, str]], gold: bool = True, **settings: str) -> Path:
    init(folder, actor="ana", name="desk")
    text = (folder / "tilth.toml").read_text()
    for old, new in {"batch = 50": "batch = 20", **settings}.items():
        assert old in text
        text = text.replace(old, new)
    (folder / "tilth.toml").write_text(text)
    path = write_rows(folder / "rows.jsonl", rows)
    with open_workspace(folder, actor="ana") as opened:
        workspace.ingest(opened, path, mapping=Mapping(id="id", gold="gold" if gold else None))
    return folder


def play(folder: Path, rounds: int, annotator: Any = None) -> tuple[dict[str, Any], ToyLearner]:
    with open_workspace(folder, actor="ana") as opened:
        learner = ToyLearner(opened)
        who = annotator or Simulated()
        return run(Run(opened, learner, who, who.name), rounds), learner


def test_a_simulated_run_ends_with_snapshots_adapters_and_a_metric_that_rises(tmp_path: Path) -> None:
    result, _ = play(make(tmp_path / "w", inquiries(400)), 3)
    rounds = result["rounds"]
    assert [r["labels"] for r in rounds] == [20, 40, 60]
    assert rounds[-1]["metric"] > rounds[0]["metric"] > 0.25
    assert all(r["random_metric"] is not None and len(r["snapshot"]) == 64 for r in rounds)
    assert result["metric_name"] == "accuracy"
    assert result["annotator"] == "simulated"


def test_both_arms_learn_from_equally_many_labels_and_never_from_each_other(tmp_path: Path) -> None:
    from curation import snapshot

    folder = make(tmp_path / "w", inquiries(300))
    result, _ = play(folder, 2)
    with open_workspace(folder, actor="ana") as opened:
        authors = {a.id: a.kind for a in opened.ledger.authors()}
        for name, kind in (("snapshot", "simulated"), ("random_snapshot", "simulated-random")):
            rows = snapshot.load(opened.store, result["rounds"][-1][name], split="train").to_pylist()
            assert {authors[a] for row in rows for a in row["authors"]} == {kind}
            assert len(rows) == 40


def test_test_rows_are_never_trained_on_nor_asked_about(tmp_path: Path) -> None:
    from curation import snapshot

    folder = make(tmp_path / "w", inquiries(300))
    result, _ = play(folder, 2)
    with open_workspace(folder, actor="ana") as opened:
        reserved = set(opened.ledger.eval_items()["record"].to_pylist())
        asked = {item.record for s in opened.ledger.selections() for item in s.items}
        trained = set(
            snapshot.load(opened.store, result["rounds"][-1]["snapshot"], split="train")["record"].to_pylist()
        )
    assert reserved
    assert not reserved & (asked | trained)


def test_a_finished_run_is_not_done_again(tmp_path: Path) -> None:
    folder = make(tmp_path / "w", inquiries(300))
    first, learner = play(folder, 2)
    again, idle = play(folder, 2)
    assert (learner.trainings, idle.trainings) == (4, 0)
    assert [r["snapshot"] for r in again["rounds"]] == [r["snapshot"] for r in first["rounds"]]


def test_a_run_with_more_rounds_goes_on_from_the_last(tmp_path: Path) -> None:
    folder = make(tmp_path / "w", inquiries(300))
    first, _ = play(folder, 1)
    more, learner = play(folder, 2)
    assert more["rounds"][0]["snapshot"] == first["rounds"][0]["snapshot"]
    assert learner.trainings == 2


CHILD = """
    import os, signal, sys
    from pathlib import Path
    from curation.loop import run
    from curation.run import Run
    from curation.people import Simulated
    from curation.workspace import open_workspace
    from curation.ledger import store
    from tests.curation.toys import ToyLearner

    folder, stop = Path(sys.argv[1]), int(sys.argv[2])
    commit, count = store.commit, 0

    def counted(connection, busy):
        global count
        count += 1
        if count == stop and sys.argv[3] == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        commit(connection, busy)
        if count == stop:
            os.kill(os.getpid(), signal.SIGKILL)

    store.commit = counted
    with open_workspace(folder, actor="ana") as opened:
        run(Run(opened, ToyLearner(opened), Simulated(), "simulated"), 2)
    print(count)
"""


def killed_at(folder: Path, commit: int, when: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", textwrap.dedent(CHILD), str(folder), str(commit), when]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def kills(total: int, slow: bool) -> list[tuple[int, str]]:
    if slow:
        return [(point, when) for point in range(1, total + 1) for when in ("before", "after")]
    return [(total // 4, "before"), (total // 2, "after"), (3 * total // 4, "before"), (total - 1, "after")]


def check_kills(tmp_path: Path, slow: bool) -> None:
    """The same names whatever commit a kill falls on, and nothing asked twice."""
    rows = inquiries(160)
    whole = make(tmp_path / "whole", rows)
    total = int(killed_at(whole, 10**9, "after").stdout)
    expected, _ = play(whole, 2)
    for point, when in kills(total, slow):
        folder = make(tmp_path / f"{point}-{when}", rows)
        died = killed_at(folder, point, when)
        assert died.returncode == -signal.SIGKILL, died.stderr
        result, _ = play(folder, 2)
        assert [r["snapshot"] for r in result["rounds"]] == [r["snapshot"] for r in expected["rounds"]], (
            point,
            when,
        )
        with open_workspace(folder, actor="ana") as opened:
            showings = [(s.record, s.selection) for s in opened.ledger.showings()]
            labels = opened.ledger.labels(kinds={"person"})["showing"].to_pylist()
        assert len(showings) == len(set(showings))
        assert len(labels) == len(set(labels))


def test_a_run_killed_at_a_commit_comes_to_the_same_snapshots(tmp_path: Path) -> None:
    check_kills(tmp_path, slow=False)


@pytest.mark.slow
def test_a_run_killed_at_every_commit_comes_to_the_same_snapshots(tmp_path: Path) -> None:
    check_kills(tmp_path, slow=True)


def test_the_kill_check_sees_a_batch_that_depends_on_chance(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Negative control: with a seed from the clock, an interrupted run cannot come to the same names."""
    rows = inquiries(160)
    first, _ = play(make(tmp_path / "a", rows), 1)
    monkeypatch.setattr(
        Run, "rule", property(lambda self: acquisition.AcquisitionRule(batch=20, seed=os.getpid()))
    )
    second, _ = play(make(tmp_path / "b", rows), 1)
    assert first["rounds"][0]["snapshot"] != second["rounds"][0]["snapshot"]


@pytest.mark.parametrize("step", ["_showings_of", "_relabels"])
def test_a_run_that_dies_while_it_chooses_chooses_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """Before and after the choice is stored: no record is chosen that nobody is shown."""
    folder = make(tmp_path / "w", inquiries(160))

    def die(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(choosing, step, die)
        play(folder, 1)
    play(folder, 1)
    with open_workspace(folder, actor="ana") as opened:
        chosen = opened.ledger.selections("simulated")
        shown = {(s.selection, s.record) for s in opened.ledger.showings()}
    assert [choosing.arm_of(selection) for selection in chosen] == [MAIN, TWIN]
    assert shown == {(s.id, item.record) for s in chosen for item in s.items}


def test_a_choice_that_stands_is_not_made_anew_for_answers_that_came_since(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "w"
    disputed_round(folder)

    def die(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(choosing, "_relabels", die)
        play(folder, 2, people.files())
    monkeypatch.setattr(relabel, "mixed", lambda _, __, new, *a, **k: new)  # as if all had been settled since
    waiting, _ = play(folder, 2, people.files())
    assert waiting["waiting_for"]["relabels"] == 3
    with open_workspace(folder, actor="ana") as opened:
        assert [s.round for s in opened.ledger.selections("files")] == [1, 2]


def fill(folder: Path, gold: dict[str, str], some: int | None = None) -> None:
    """What an expert does with the form: an answer in every row, or in the first few."""
    path = folder / people.TASKS_FILE
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for i, row in enumerate(rows):
        if not row["answer"] and (some is None or i < some):
            row["answer"], row["annotator"] = gold[row["prompt"]], "expert"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def with_references(folder: Path, rows: list[dict[str, str]]) -> Path:
    """A workspace whose people are asked about unlabelled rows, and measured on an evaluation set with answers."""
    classes = ", ".join(f'"{name}"' for name in CLASSES)
    made = make(folder, rows, gold=False, **{'kind = "auto"': f'kind = "class"\nclasses = [{classes}]'})
    held = write_rows(
        folder / "held.jsonl", [{**row, "completion": row["gold"]} for row in inquiries(60, seed=9)]
    )
    with open_workspace(made, actor="ana") as opened:
        workspace.ingest(opened, held, mapping=Mapping(id="id"), trust="gold", source="held", eval_set="held")
    return made


def test_a_run_with_people_waits_for_their_answers_and_goes_on(tmp_path: Path) -> None:
    rows = inquiries(200)
    folder = with_references(tmp_path / "w", [{k: v for k, v in row.items() if k != "gold"} for row in rows])
    gold = {row["prompt"]: row["gold"] for row in rows}
    first, _ = play(folder, 1, people.files())
    assert first["rounds"] == []
    assert first["waiting_for"]["labels"] == 20
    fill(folder, gold, some=5)
    second, _ = play(folder, 1, people.files())
    assert second["waiting_for"]["labels"] == 15
    fill(folder, gold)
    third, _ = play(folder, 1, people.files())
    assert "waiting_for" not in third
    assert third["rounds"][0]["labels"] == 20
    assert third["rounds"][0]["metric"] > 0.25


def test_a_strategy_that_draws_at_random_asks_about_no_record_twice(tmp_path: Path) -> None:
    """It is told from the random twin by its arm: both are called random."""
    drawn = {'strategy = "hybrid"': 'strategy = "random"'}
    result, _ = play(make(tmp_path / "w", inquiries(400), **drawn), 2)
    assert [r["labels"] for r in result["rounds"]] == [20, 40]
    with open_workspace(tmp_path / "w", actor="ana") as opened:
        chosen = opened.ledger.selections("simulated")
    for arm in (MAIN, TWIN):
        first, second = ({i.record for i in s.items} for s in chosen if choosing.arm_of(s) == arm)
        assert len(first) == len(second) == 20
        assert not first & second


def test_tasks_are_pushed_once_however_often_the_run_is_started(tmp_path: Path) -> None:
    rows = [{k: v for k, v in row.items() if k != "gold"} for row in inquiries(120)]
    folder = with_references(tmp_path / "w", rows)
    for _ in range(3):
        play(folder, 1, people.files())
    with (folder / people.TASKS_FILE).open(newline="", encoding="utf-8") as file:
        assert len(list(csv.DictReader(file))) == 20


def test_a_blind_task_shows_no_suggestion(tmp_path: Path) -> None:
    folder = make(tmp_path / "w", inquiries(200), **{"blind_share = 0.1": "blind_share = 0.5"})
    play(folder, 2)
    with open_workspace(folder, actor="ana") as opened:
        second = {s.id for s in opened.ledger.selections() if s.round == 2}
        showings = [s for s in opened.ledger.showings() if s.selection in second and not s.blind]
        blind = [s for s in opened.ledger.showings() if s.blind]
    assert blind
    assert all(s.suggestion is None and s.suggestion_by is None for s in blind)
    assert any(s.suggestion for s in showings)


def test_a_pool_smaller_than_the_batch_is_asked_about_whole(tmp_path: Path) -> None:
    folder = make(tmp_path / "w", inquiries(40))
    result, _ = play(folder, 5)
    assert result["rounds"][-1]["pool_left"] == 0
    assert len(result["rounds"]) < 5


def test_an_empty_workspace_says_what_to_do(tmp_path: Path) -> None:
    init(tmp_path / "w", actor="ana")
    with pytest.raises(UsageError, match="Ingest more rows"):
        play(tmp_path / "w", 1)


def test_functions_beside_a_question_without_classes_are_told_what_is_missing(tmp_path: Path) -> None:
    folder = tmp_path / "w"
    init(folder, actor="ana")
    (folder / "labeling_functions" / "one.py").write_text(
        "from curation.voting import keyword\nlost = keyword('lost', 'claims', ['lost'])\n"
    )
    with open_workspace(folder, actor="ana") as opened:
        assert assemble.vote(opened) is not None, "nothing to vote on, and nothing wrong with that"
        path = write_rows(tmp_path / "rows.jsonl", [{"prompt": "My crate is lost."}])
        workspace.ingest(opened, path, mapping=Mapping())
        with pytest.raises(UsageError, match='Set kind = "class"'):
            assemble.vote(opened)


def test_a_dry_run_counts_labels_and_trainings(tmp_path: Path) -> None:
    with open_workspace(make(tmp_path / "w", inquiries(100)), actor="ana") as opened:
        cost = loop.estimate(opened, 3)
    assert cost["labels"] == 60
    assert cost["adapters_trained"] == 6


# Once more or new


def form(folder: Path) -> list[dict[str, str]]:
    with (folder / people.TASKS_FILE).open(newline="", encoding="utf-8-sig") as file:
        return list(csv.DictReader(file))


def answer(folder: Path, said: dict[tuple[str, int], tuple[str, str]], otherwise: dict[str, str]) -> None:
    """Fill the form: ``said`` gives person and answer by (record, line of that record), else the truth by two people."""
    rows, lines = form(folder), Counter[str]()
    for row in rows:
        place = lines[row["record"]]
        lines[row["record"]] += 1
        if not row["answer"]:
            who, text = said.get((row["record"], place), (f"p{place}", otherwise[row["prompt"]]))
            row["answer"], row["annotator"] = text, who
    with (folder / people.TASKS_FILE).open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def disputed_round(folder: Path, *arms: str) -> tuple[list[str], dict[str, str]]:
    """A first round by two people who disagree on three records (of the ``arms``, if any are named); those records, and
    everybody's true class.
    """
    rows = inquiries(200)
    made = with_references(folder, [{k: v for k, v in row.items() if k != "gold"} for row in rows])
    text = (made / "tilth.toml").read_text()
    (made / "tilth.toml").write_text(text.replace("annotators_per_record = 1", "annotators_per_record = 2"))
    gold = {row["prompt"]: row["gold"] for row in rows}
    play(made, 1, people.files())
    with open_workspace(made, actor="ana") as opened:
        arm_of = {item.record: item.arm for chosen in opened.ledger.selections() for item in chosen.items}
    records = [r for r in sorted({row["record"] for row in form(made)}) if not arms or arm_of[r] in arms][:3]
    truth = {row["record"]: gold[row["prompt"]] for row in form(made)}
    wrong = {r: next(name for name in CLASSES if name != truth[r]) for r in records}
    answer(made, {(r, 1): ("p1", wrong[r]) for r in records}, gold)
    assert play(made, 1, people.files())[0]["rounds"]
    return records, gold


def test_records_on_which_people_disagree_are_asked_about_again_and_the_run_says_so(tmp_path: Path) -> None:
    folder = tmp_path / "w"
    disputed, gold = disputed_round(folder)
    with open_workspace(folder, actor="ana") as opened:
        rules = Rules(opened)
        held = opened.ledger.decisions(stage="consensus", rule=rules.consensus).to_pylist()
        assert {row["record"] for row in held if row["action"] == "hold"} == set(disputed)
        shown = loop.preview(Run(opened, ToyLearner(opened), people.files(), "files"))
        assert {p["record"] for p in shown if p["arm"] == "relabel"} == set(disputed)
    waiting, _ = play(folder, 2, people.files())
    assert waiting["waiting_for"]["relabels"] == 3
    with open_workspace(folder, actor="ana") as opened:
        (second,) = [s for s in opened.ledger.selections("files") if s.round == 2]
        again = {i.record: i.reason for i in second.items if i.arm == "relabel"}
        assert set(again) == set(disputed)
        assert all(
            "people said" in reason and "one more answer adds 0." in reason for reason in again.values()
        )
        assert sum(item.arm == "control" for item in second.items) == 4, "the control arm is as it was drawn"
        shown_again = [s for s in opened.ledger.showings() if s.selection == second.id and s.record in again]
        assert len(shown_again) == 3, "one more opinion each, and not two"
        assert all(s.suggestion is None and not s.blind for s in shown_again)
    answer(
        folder, {(r, 2): ("p2", gold[row["prompt"]]) for row in form(folder) for r in (row["record"],)}, gold
    )
    done, _ = play(folder, 2, people.files())
    assert done["rounds"][1]["relabels"] == 3
    with open_workspace(folder, actor="ana") as opened:
        standing = opened.ledger.decisions(stage="consensus", rule=Rules(opened).consensus)
        assert not standing.num_rows, "two of three agree: nothing is left to a curator"


@pytest.mark.parametrize("guarded", [True, False])
def test_the_random_twin_does_not_hear_what_was_said_of_its_records_when_they_were_chosen_once_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, guarded: bool
) -> None:
    folder = tmp_path / "w"
    disputed, gold = disputed_round(folder, "control")
    play(folder, 2, people.files())
    truth = {row["record"]: gold[row["prompt"]] for row in form(folder)}
    answer(folder, {(r, 2): ("p2", truth[r]) for r in disputed}, gold)
    play(folder, 2, people.files())
    if not guarded:
        monkeypatch.setattr(loop, "_asked_again", lambda workspace: frozenset())
    with open_workspace(folder, actor="ana") as opened:
        run = Run(opened, ToyLearner(opened), people.files(), "files")
        heard = {
            arm: Counter(
                o.record for o in opinions(opened, current(opened), loop._voices(run, arm), {"person"})
            )
            for arm in (MAIN, TWIN)
        }
    assert [heard[MAIN][r] for r in disputed] == [3, 3, 3]
    assert [heard[TWIN][r] for r in disputed] == [2 if guarded else 3] * 3
    assert set(heard[TWIN]) < set(heard[MAIN]), "and nothing but its own arm"


def test_who_is_asked_again_has_the_new_records_of_the_batch_to_do_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, told = tmp_path / "w", []
    disputed_round(folder)
    another = Through.another

    def listening(self: Through, workspace: Any, question: Any, rows: Any, given: Any = None) -> Any:
        told.append(given)
        return another(self, workspace, question, rows, given)

    monkeypatch.setattr(Through, "another", listening)
    play(folder, 2, people.files())
    assert told == [None, {"0": 17, "1": 17}], (
        "to see who could at all, then beside two tasks for each new record"
    )


def answered_round(folder: Path) -> Path:
    """A workspace whose first round people have answered by form, each record rightly."""
    rows = inquiries(200)
    with_references(folder, [{k: v for k, v in row.items() if k != "gold"} for row in rows])
    play(folder, 1, people.files())
    fill(folder, {row["prompt"]: row["gold"] for row in rows})
    play(folder, 1, people.files())
    return folder


def test_where_people_agree_nobody_is_asked_again(tmp_path: Path) -> None:
    """Negative control: the same round without the quarrel chooses new records only."""
    folder = answered_round(tmp_path / "w")
    with open_workspace(folder, actor="ana") as opened:
        shown = loop.preview(Run(opened, ToyLearner(opened), people.files(), "files"))
    assert {p["arm"] for p in shown} == {"strategy", "control"}


def test_a_model_is_believed_as_far_as_it_foresaw_what_people_said_of_records_drawn_at_random(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = answered_round(tmp_path / "w")
    with open_workspace(folder, actor="ana") as opened:
        question = current(opened)
        said = relabel.answered(opened, question).best(question.classes)
        told = dict(said)
        foreseen = {"record": list(told), "completion": list(told.values())}
        monkeypatch.setattr(relabel, "load_artifact", lambda *_: pa.table(foreseen))
        assert relabel.trust_in_model(opened, question, "files", ()) == pytest.approx((0.5 - 0.25) / 0.75)
        assert relabel.trust_in_model(opened, question, "files", (1,)) > 0.7, "four of four"
        foreseen["completion"] = [next(c for c in CLASSES if c != name) for name in said.values()]
        assert relabel.trust_in_model(opened, question, "files", (1,)) == 0.0, "worse than a guess"
        control = {i.record for s in opened.ledger.selections("files") for i in s.items if i.arm == "control"}
        foreseen["completion"] = [
            told[r] if r not in control else next(c for c in CLASSES if c != told[r]) for r in told
        ]
        assert relabel.trust_in_model(opened, question, "files", (1,)) == 0.0, (
            "what it chose itself proves nothing"
        )


def test_the_command_says_how_many_relabels_a_round_holds_and_why() -> None:
    from apps.cli.people import rounds_text

    waiting = {"round": 2, "labels": 9, "where": "tasks.csv", "relabels": 3}
    told = rounds_text(
        {"metric_name": None, "annotator": "files", "rounds": [], "seconds": 1.0, "waiting_for": waiting}
    )
    assert "3 records are asked about once more: another answer there is worth more" in told
    plain = rounds_text(
        {
            "metric_name": None,
            "annotator": "files",
            "rounds": [],
            "seconds": 1.0,
            "waiting_for": {**waiting, "relabels": 0},
        }
    )
    assert "once more" not in plain


def test_a_round_of_free_text_chooses_new_records_only(tmp_path: Path) -> None:
    rows = [{"id": row["id"], "prompt": row["prompt"]} for row in inquiries(120)]
    folder = make(tmp_path / "w", rows, gold=False, **{'kind = "auto"': 'kind = "edit"'})
    for number in (1, 2):
        with open_workspace(folder, actor="ana") as opened:
            shown = loop.preview(Run(opened, ToyLearner(opened), people.files(), "files"))
            loop.choose(Run(opened, ToyLearner(opened), people.files(), f"files{number}"))
        assert {p["arm"] for p in shown} == {"strategy", "control"}
