"""Grades and preferences: what they amount to, what they do to a row, and what they never do."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import orjson
import pytest

from apps.cli import main
from curation import workspace
from curation.assemble import compose
from curation.consensus import Consensus
from curation.curate import Rules, blocked, curate
from curation.errors import UsageError
from curation.formats import Mapping
from curation.judging import POOR, Judged, Judgement, graded, judged, preferred, report, weighed
from curation.ledger import NewLabel, Showing
from curation.opinions import Voices, opinions, settle
from curation.question import current
from curation.workspace import Workspace, init, open_workspace
from tests.curation.toys import write_rows


def grades(record: str, author: str, **said: float) -> Judgement:
    return Judgement(record, f"answer {record}", author, said)


def prefers(record: str, author: str, win: float) -> Judgement:
    return Judgement(record, "x", author, {"win": win}, rival="y")


def test_a_strict_person_and_a_mild_one_come_to_the_same_order() -> None:
    truth = {"a": 4, "b": 3, "c": 2}
    said = [grades(r, "strict", good=level - 1) for r, level in truth.items()]
    said += [grades(r, "mild", good=level + 1) for r, level in truth.items()]
    found, leaning = graded(said)
    shares = {j.record: j.share for j in found}
    assert shares["a"] > shares["b"] > shares["c"]
    assert shares["b"] == pytest.approx(0.5, abs=0.05)
    assert leaning["mild"] > 0 > leaning["strict"]
    assert "people grade it" in found[0].words


def test_the_share_is_the_mean_of_the_criteria() -> None:
    (found,), _ = graded([grades("a", "p", kind=5, true=1)])
    assert found.share == pytest.approx(0.5)
    assert found.grades == {"kind": 5.0, "true": 1.0}


def test_a_preference_of_one_person_says_little_and_of_many_much_and_a_tie_nothing() -> None:
    def share(*wins: float) -> float:
        found = preferred([prefers("r", f"p{i}", win) for i, win in enumerate(wins)])
        return next(j.share for j in found if j.text == "x")

    assert share(0.5) == pytest.approx(0.5)
    assert 0.5 < share(1) < share(1, 1, 1) < 1
    assert share(1, 0) == pytest.approx(0.5)
    assert share(0, 0, 0) == pytest.approx(1 - share(1, 1, 1))


def test_nothing_said_gives_nothing() -> None:
    assert graded([]) == ([], {})
    assert preferred([]) == []


def row(value: str = "x", kinds: tuple[str, ...] = ("reference",)) -> Consensus:
    return Consensus("r", value, 0.9, (), (), kinds, False)


def opinion(share: float, **by: float) -> dict[tuple[str, str], Judged]:
    return {("r", "x"): Judged("r", "x", share, 2, "people say so", by)}


def test_below_the_middle_a_row_weighs_less_and_what_is_poor_waits_for_a_curator() -> None:
    (good,) = weighed([row()], opinion(0.8, kind=4.2))
    (low,) = weighed([row()], opinion(0.4, kind=2.6))
    (poor,) = weighed([row()], opinion(POOR - 0.01, kind=1.9))
    assert (good.confidence, low.confidence) == (0.9, pytest.approx(0.72))
    assert (good.needs_review, low.needs_review, poor.needs_review) == (False, False, True)
    assert poor.reason == "people say so"
    (loser,) = weighed([row()], opinion(0.1))
    assert not loser.needs_review, "to lose to a better answer is no fault"


def test_a_curators_answer_and_another_text_are_not_judged() -> None:
    assert weighed([row(kinds=("curator",))], opinion(0.1, kind=1)) == [row(kinds=("curator",))]
    assert weighed([row("other")], opinion(0.1, kind=1)) == [row("other")]


# Through the ledger


QUESTIONS = """
[question.quality]
kind = "rubric"
criteria = ["kind", "true"]

[question.better]
kind = "compare"

[question.verdict]
kind = "accept"
"""


@pytest.fixture
def desk(tmp_path: Path) -> Workspace:
    folder = tmp_path / "w"
    init(folder, actor="ana")
    text = (folder / "tilth.toml").read_text().replace('kind = "auto"', 'kind = "edit"')
    (folder / "tilth.toml").write_text(text.replace("\n[functions]", f"{QUESTIONS}\n[functions]"))
    prompts = [{"id": str(i), "prompt": f"Where is parcel number {i} now?"} for i in range(4)]
    opened = open_workspace(folder, actor="ana")
    for trust, said in (("reference", "It is in the depot and comes"), ("candidate", "We do not know about")):
        rows = [{**p, "answer": f"{said} at {p['id']}{p['id']} o'clock."} for p in prompts]
        path = write_rows(folder / f"{trust}.jsonl", rows)
        workspace.ingest(opened, path, mapping=Mapping(id="id", completion="answer"), trust=trust)
    curate(opened)
    return opened


def texts(opened: Workspace, record: str, kind: str) -> str:
    (label,) = opened.ledger.labels(records=[record], kinds={kind}).to_pylist()
    return str(label["body"])


def say(opened: Workspace, name: str, record: str, shown: str, said: str, who: str) -> None:
    question = current(opened, name)
    (showing,) = opened.ledger.add_showings(
        [Showing(record, name, question.version, record, suggestion=shown, annotator=who)]
    )
    author = opened.ledger.add_author(who, "person")
    opened.ledger.add_labels(
        [NewLabel(record, name, question.version, "person", author, said, showing=showing)]
    )


def weights(opened: Workspace) -> dict[str, float]:
    tables = compose(opened).tables
    return {r["record"]: r["weight"] for t in tables for r in t.to_pylist() if r["split"] == "train"}


def test_grades_and_preferences_reach_the_snapshot_and_the_curator(desk: Workspace) -> None:
    before = weights(desk)
    records = sorted(before)
    assert set(before.values()) == {1.0}
    poor, low, good, _ = records
    for who in ("p", "q"):
        say(desk, "quality", poor, texts(desk, poor, "reference"), '{"kind":1,"true":1}', who)
        say(desk, "quality", good, texts(desk, good, "reference"), '{"kind":5,"true":5}', who)
        sides = [texts(desk, low, "candidate"), texts(desk, low, "reference")]
        say(desk, "better", low, orjson.dumps(sides).decode(), "A", who)
    curate(desk)
    assert settle(desk) == 1
    assert poor in blocked(desk, Rules(desk), ("consensus",))
    after = weights(desk)
    assert poor not in after, "what people call poor waits for a curator"
    assert after[good] == 1.0
    assert 0 < after[low] < 1.0, "the answer that lost weighs less"
    assert all("We do not know" not in str(t.to_pylist()) for t in compose(desk).tables), (
        "the answer that won was a draft, and a judgement is no answer"
    )
    told = report(desk, current(desk, "better"))
    assert len(told["answers"]) == 2
    assert [s["source"].split()[-1] for s in told["sources"]] == ["(candidate)", "(reference)"]
    assert told["sources"][0]["strength"] > 0.5
    told = report(desk, current(desk, "quality"))
    assert [a["share"] for a in told["answers"]] == [1.0, 0.0]
    assert len(told["people"]) == 2
    with pytest.raises(UsageError, match="no grades"):
        report(desk, current(desk))


def test_a_grade_of_an_answer_is_no_verdict_on_it(desk: Workspace) -> None:
    record = sorted(weights(desk))[0]
    draft = texts(desk, record, "candidate")
    say(desk, "verdict", record, draft, "accept", "p")
    say(desk, "quality", record, draft, '{"kind":5,"true":5}', "q")
    curate(desk)
    heard = opinions(desk, current(desk, "verdict"), Voices(), {"person"})
    assert [(o.record, o.value) for o in heard] == [(record, draft)], "a grade is not counted as a rejection"
    say(desk, "verdict", record, draft, "reject", "r")
    curate(desk)
    assert opinions(desk, current(desk, "verdict"), Voices(), {"person"}) == []


def test_a_judgement_that_was_taken_back_no_longer_counts(desk: Workspace) -> None:
    record = sorted(weights(desk))[0]
    say(desk, "quality", record, texts(desk, record, "reference"), '{"kind":1,"true":1}', "p")
    assert len(judged(desk)) == 1
    labels = desk.ledger.labels(kinds={"person"})["label"].to_pylist()
    desk.ledger.withdraw_labels(labels, "taken back")
    curate(desk)
    assert judged(desk) == {}
    assert settle(desk) == 0
    assert weights(desk)[record] == 1.0


def test_a_row_that_ignores_judgements_would_weigh_the_same(
    desk: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Negative control: without the weighing, the check above cannot pass."""
    record = sorted(weights(desk))[0]
    say(desk, "quality", record, texts(desk, record, "reference"), '{"kind":1,"true":1}', "p")
    curate(desk)
    monkeypatch.setattr("curation.judging.weighed", lambda agreed, judged: [replace(c) for c in agreed])
    assert weights(desk)[record] == 1.0


def test_the_command_tells_answers_people_and_sources(
    desk: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    record = sorted(weights(desk))[0]
    say(desk, "quality", record, texts(desk, record, "reference"), '{"kind":2,"true":1}', "p")
    for words, code in ((["--name", "quality"], 0), ([], 2)):
        with pytest.raises(SystemExit) as end:
            main(["--workspace", str(desk.root), "question", "judged", *words])
        assert end.value.code == code
    told = capsys.readouterr()
    assert "1 judgements of 1 answers" in told.out
    assert "people grade it 1.5 of 5 (kind 2.0, true 1.0; 1 people)" in told.out
    assert "asks for no grades" in told.err
