"""Personal data that people marked: it is replaced in its record, and what is not cannot be frozen."""

from __future__ import annotations

from pathlib import Path

import orjson
import pytest

from apps.cli import main
from curation import assemble, curate, marks, pii, workspace
from curation.curate import Rules
from curation.errors import GateRefused
from curation.formats import Mapping
from curation.ledger import NewLabel, Showing, views
from curation.marks import left_in, marked
from curation.question import current
from curation.workspace import Workspace, init, open_workspace
from tests.curation.toys import write_rows

SECRET = "Bluefin"  # no name and no number: nothing but a person finds it
QUESTION = '\n[question.missed]\nkind = "spans"\n\n[functions]'


def make(folder: Path, mode: str = "pseudonym") -> Path:
    """A workspace with three reference answers, two of which hold what nobody has found yet."""
    init(folder, actor="ana")
    text = (folder / "tilth.toml").read_text().replace('kind = "auto"', 'kind = "edit"')
    text = text.replace("\n[functions]", QUESTION).replace('mode = "pseudonym"', f'mode = "{mode}"')
    text = text.replace('layers = ["patterns", "names"]', 'layers = ["patterns"]')
    (folder / "tilth.toml").write_text(text)
    said = [
        f"ask {SECRET} for the papers of crate one",
        f"{SECRET}s crate stands at gate two",
        "we will write",
    ]
    rows = [
        {"id": str(i), "prompt": f"Where is crate {i}?", "answer": f"Please {s}."} for i, s in enumerate(said)
    ]
    with open_workspace(folder, actor="ana") as opened:
        path = write_rows(folder / "rows.jsonl", rows)
        workspace.ingest(opened, path, mapping=Mapping(id="id", completion="answer"), trust="reference")
        curate.curate(opened)
    return folder


def records(opened: Workspace) -> list[str]:
    return list(opened.ledger.records()["record"].to_pylist())


def mark(opened: Workspace, record: str, text: str = SECRET, kind: str = "OTHER") -> None:
    """Somebody marks ``text`` in a record's answer, as scrubbing left it."""
    labels = curate.scrubbed_labels(opened, Rules(opened), {"reference"}, [record])
    (shown,) = labels["body"].to_pylist()
    start = shown.index(text)
    spans = [{"start": start, "end": start + len(text), "type": kind, "text": text}]
    asked = current(opened, "missed")
    (showing,) = opened.ledger.add_showings(
        [Showing(record, "missed", asked.version, record, suggestion=shown, annotator="p")]
    )
    author = opened.ledger.add_author("p", "person")
    body = orjson.dumps(spans).decode()
    opened.ledger.add_labels(
        [NewLabel(record, "missed", asked.version, "person", author, body, showing=showing)]
    )


def texts(opened: Workspace) -> dict[str, str]:
    tables = assemble.compose(opened).tables
    return {row["record"]: row["completion"] for table in tables for row in table.to_pylist()}


def test_what_a_person_marked_is_replaced_in_its_record_and_nowhere_else(tmp_path: Path) -> None:
    with open_workspace(make(tmp_path / "w"), actor="ana") as opened:
        first, second, _ = records(opened)
        mark(opened, first)
        with pytest.raises(GateRefused, match="scrub"):
            assemble.compose(opened)  # the mark is news that scrubbing has not seen
        curate.curate(opened)
        found = texts(opened)
        assert SECRET not in found[first]
        assert found[first].startswith("Please ask term-")
        assert SECRET in found[second], "it was marked in one record"
        assert assemble.compose(opened).marked == []
        assert assemble.freeze(opened, assemble.compose(opened)).rows == len(found)


def test_a_mark_is_found_with_an_ending_and_a_person_in_any_case(tmp_path: Path) -> None:
    with open_workspace(make(tmp_path / "w"), actor="ana") as opened:
        second = records(opened)[1]
        mark(opened, second)
        curate.curate(opened)
        assert SECRET not in texts(opened)[second]
    assert pii.stands_in("ask bluefin", pii.Mark(SECRET, "PERSON"))
    assert not pii.stands_in("ask bluefin", pii.Mark(SECRET, "TERM"))
    assert not pii.stands_in("nothing", pii.Mark("in", "TERM")), "a short mark is a word of its own"
    assert pii.stands_in("an in tray", pii.Mark("in", "TERM"))


def test_a_record_in_which_a_mark_still_stands_cannot_be_frozen_and_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make(tmp_path / "w", mode="keep")  # finds, and leaves everything as it is
    with open_workspace(folder, actor="ana") as opened:
        first = records(opened)[0]
        mark(opened, first)
        curate.curate(opened)
        assert SECRET in texts(opened)[first]
    with pytest.raises(SystemExit) as end:
        main(["--workspace", str(folder), "snapshot", "create"])
    assert end.value.code == 6
    told = capsys.readouterr().err
    assert first in told
    assert "people marked" in told
    assert SECRET not in told


def test_a_scrubbing_that_ignores_marks_is_stopped_by_the_gate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Negative control of the scrubbing, and proof that the gate does not take its word."""
    with open_workspace(make(tmp_path / "w"), actor="ana") as opened:
        first = records(opened)[0]
        mark(opened, first)
        monkeypatch.setattr(curate, "marked", lambda workspace: {})
        curate.curate(opened)
        composed = assemble.compose(opened)
        assert composed.marked == [first]
        with pytest.raises(GateRefused, match=first):
            assemble.freeze(opened, composed)


def test_a_gate_that_looks_for_no_marks_lets_them_through(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Negative control of the gate."""
    with open_workspace(make(tmp_path / "w", mode="keep"), actor="ana") as opened:
        mark(opened, records(opened)[0])
        curate.curate(opened)
        monkeypatch.setattr(assemble, "left_in", lambda tables, marks: [])
        assert assemble.freeze(opened, assemble.compose(opened)).rows == 3


def test_a_mark_that_was_taken_back_binds_nobody_and_scrubbing_repeats_itself(tmp_path: Path) -> None:
    with open_workspace(make(tmp_path / "w"), actor="ana") as opened:
        first = records(opened)[0]
        mark(opened, first)
        curate.curate(opened)
        before = opened.ledger.decisions(stage="scrub", rule=Rules(opened).scrub).num_rows
        assert curate.curate(opened).ran == []
        assert opened.ledger.decisions(stage="scrub", rule=Rules(opened).scrub).num_rows == before
        labels = opened.ledger.labels(kinds={"person"})["label"].to_pylist()
        opened.ledger.withdraw_labels(labels, "taken back")
        assert marked(opened) == {}
        assert left_in([], {"r": (pii.Mark("x", "TERM"),)}) == []


def test_an_answer_that_repeats_an_alias_stops_no_snapshot_and_a_source_that_holds_one_does(
    tmp_path: Path,
) -> None:
    folder = make(tmp_path / "w")
    mapping = Mapping(id="id", completion="answer")
    with open_workspace(folder, actor="ana") as opened:
        row = {"id": "9", "prompt": "Write to jo.lindt@example.org about it", "answer": "We did."}
        workspace.ingest(opened, write_rows(tmp_path / "a.jsonl", [row]), mapping=mapping, trust="reference")
        curate.curate(opened)
        (alias,) = {a.alias for a in opened.ledger.aliases()}
        asked, author = current(opened), opened.ledger.add_author("p", "person")
        (said,) = [r for r in records(opened) if r in texts(opened) and texts(opened)[r] == "We did."]
        (showing,) = opened.ledger.add_showings(
            [Showing(said, asked.name, asked.version, said, suggestion="", annotator="p")]
        )
        answer = NewLabel(
            said, asked.name, asked.version, "person", author, f"We wrote to {alias}.", showing=showing
        )
        opened.ledger.add_labels([answer])
        curate.curate(opened)
        assert assemble.compose(opened).collisions == 0
        row = {"id": "10", "prompt": f"Who is {alias}?", "answer": "Nobody."}
        workspace.ingest(opened, write_rows(tmp_path / "b.jsonl", [row]), mapping=mapping, trust="reference")
        curate.curate(opened)
        assert assemble.compose(opened).collisions == 1


def aliased(folder: Path) -> tuple[str, str, list[str]]:
    """A workspace with one more answer, which holds two addresses: its record, the answer as shown, and the aliases."""
    row = {
        "id": "9",
        "prompt": "Who is it?",
        "answer": f"Ask {SECRET} a.lindt@example.org and b.moe@example.org now.",
    }
    with open_workspace(make(folder), actor="ana") as opened:
        path = write_rows(folder / "more.jsonl", [row])
        workspace.ingest(opened, path, mapping=Mapping(id="id", completion="answer"), trust="reference")
        curate.curate(opened)
        (record,) = (r for r, text in texts(opened).items() if text.startswith("Ask "))
        return record, texts(opened)[record], [a.alias for a in opened.ledger.aliases()]


def test_what_a_mark_holds_beside_aliases_is_replaced_and_a_mark_of_aliases_alone_binds_nobody(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "w"
    record, shown, (one, two) = aliased(folder)
    for whole in (one, f"{one} and {two}", f"{one[2:]} and {two[:4]}", f"{two} now"):
        with open_workspace(folder, actor="ana") as opened:
            mark(opened, record, whole)
            assert marked(opened) == {}, whole
    with open_workspace(folder, actor="ana") as opened:
        mark(opened, record, f"{SECRET} {one}")
        assert marked(opened) == {record: (pii.Mark(SECRET, "TERM"),)}
        curate.curate(opened)
        found = texts(opened)[record]
        assert SECRET not in found
        assert found == shown.replace(SECRET, found.split()[1]), "and nothing else has changed"
        assert assemble.freeze(opened, assemble.compose(opened)).rows


def test_a_mark_taken_with_its_alias_would_hold_its_record_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Negative control: no source holds the alias, so scrubbing never finds such a mark, and the gate always does."""
    folder = tmp_path / "w"
    record, _, (one, _) = aliased(folder)
    monkeypatch.setattr(marks, "_of_the_source", lambda span, shown, index: [span["text"]])
    with open_workspace(folder, actor="ana") as opened:
        mark(opened, record, f"{SECRET} {one}")
        curate.curate(opened)
        assert assemble.compose(opened).marked == [record]


def test_opinions_about_answers_are_no_completions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_workspace(make(tmp_path / "w"), actor="ana") as opened:
        first = records(opened)[0]
        before = workspace.view(opened, rule=None)
        mark(opened, first)
        assert workspace.view(opened, rule=None).equals(before)
        curate.curate(opened)
        found = opened.ledger.decisions(rule=Rules(opened).scrub).to_pylist()
        labels = opened.ledger.labels(kinds={"person"})["label"].to_pylist()
        assert found
        assert not {row["label"] for row in found} & set(labels), "the marks themselves were not scanned"
        monkeypatch.setattr(views, "JUDGING", ("accept",))  # negative control
        assert '"type":"OTHER"' in str(workspace.view(opened, rule=None)["completion"].to_pylist())
