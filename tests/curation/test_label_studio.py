"""Tasks out, answers back: pure functions, files, a server that misbehaves, and a real one."""

from __future__ import annotations

import base64
import csv
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apps import label_studio_server
from curation.errors import RemoteUnavailable, UsageError
from curation.label_studio import (
    FileChannel,
    PersonLabel,
    ProjectChannel,
    Suggestion,
    connect,
    ensure_project,
    from_annotations,
    label_config,
    read_answers,
    read_tasks,
    to_task,
    tombstones,
    validate_task,
    write_form,
    write_tasks,
)
from curation.label_studio import client as client_module
from curation.label_studio import project as project_module
from curation.label_studio.tasks import WORD_JOINER, result
from curation.records import digest
from tests import label_studio_fake as faults
from tests.label_studio_fake import Fake, fake_server

TOKEN = "4f0c9a1db2e7aaaa4f0c9a1db2e7aaaa00001111"


@dataclass(frozen=True)
class Question:
    name: str = "reply"
    version: int = 1
    kind: str = "edit"
    classes: tuple[str, ...] = ()
    guideline: str = ""
    mapping: dict[str, str | None] = field(default_factory=dict)


@dataclass(frozen=True)
class Showing:
    id: str
    record: str
    question: str = "reply"
    question_version: int = 1
    blind: bool = False


EDIT = Question()
CHOOSE = Question(kind="class", classes=("billing", "claims", "where is it"))


def make(
    i: int, *, question: Question = EDIT, blind: bool = False, text: str = "On its way."
) -> dict[str, Any]:
    record = digest(f"record {i}")
    showing = Showing(digest(f"showing {i}"), record, question.name, question.version, blind)
    row = {"record": record, "prompt": f"Where is parcel {i}?"}
    return to_task(showing, row, Suggestion(text, "adapter-7", 0.25), question)


def annotation(who: Any, text: str, *, at: int = 0, **more: Any) -> dict[str, Any]:
    note = {"id": at + 1, "completed_by": who, "was_cancelled": False, "result": [result(text, EDIT)]}
    return note | {"updated_at": f"2026-03-01T10:00:{at:02d}.000000Z", "lead_time": 3.5} | more


def task_with(*annotations: dict[str, Any], **more: Any) -> dict[str, Any]:
    return make(1) | {"id": 17, "annotations": list(annotations)} | more


# The interface

NASTY = [
    "<script>alert(1)</script>",
    '"/><HyperText name="x" value="$prompt"/>',
    "a & b &amp; c",
    "$prompt and $50 and ${data} and $[0]",
    "line one\nline two\ttab\rreturn",
    "]]><View>",
    "\x00\x07\ud800",
    "'single' \"double\"",
    "![x](http://example.org/x.png) [y](javascript:alert(1))",
]


@pytest.mark.parametrize("text", NASTY)
@pytest.mark.parametrize("question", [EDIT, CHOOSE], ids=["edit", "class"])
def test_a_guideline_stays_text_whatever_it_holds(question: Question, text: str) -> None:
    tree = ElementTree.fromstring(label_config(replace(question, guideline=text)))
    (shown,) = [tag for tag in tree.iter("Text") if tag.get("name") == "guideline"]
    printable = "".join(c if c in "\t\n\r" or (c >= " " and c != "\ud800") else "\ufffd" for c in text)
    assert (shown.get("value") or "").replace(WORD_JOINER, "") == printable
    assert not any(f"${c}" in (shown.get("value") or "") for c in "pd5[")


def test_an_interface_shows_text_and_never_renders_it() -> None:
    for question in (EDIT, CHOOSE):
        tags = {tag.tag for tag in ElementTree.fromstring(label_config(question)).iter()}
        assert tags <= {
            "View",
            "Header",
            "Text",
            "TextArea",
            "Choices",
            "Choice",
            "Collapse",
            "Panel",
            "Style",
        }
        assert "<" not in (ElementTree.fromstring(label_config(question)).findtext("Style") or "")


def test_the_names_in_a_prediction_are_those_of_the_interface() -> None:
    for question in (EDIT, CHOOSE):
        tree = ElementTree.fromstring(label_config(question))
        (control,) = [c for c in (*tree.iter("TextArea"), *tree.iter("Choices")) if c.get("name") == "answer"]
        region = result("billing", question)
        assert (control.get("name"), control.get("toName")) == (region["from_name"], region["to_name"])
        assert control.tag.lower() == region["type"]


def test_a_class_with_a_dollar_sign_is_answered_by_its_own_name() -> None:
    question = replace(CHOOSE, classes=("$prompt", "plain"))
    dollar, plain, *_ = ElementTree.fromstring(label_config(question)).iter("Choice")
    assert (dollar.get("alias"), plain.get("alias")) == ("$prompt", None)
    assert dollar.get("value") == f"${WORD_JOINER}prompt"


def test_many_classes_get_a_box_that_narrows_them_down() -> None:
    many = replace(CHOOSE, classes=tuple(f"class {i}" for i in range(77)))
    assert '<Filter name="find" toName="answer"' in label_config(many)
    assert "<Filter" not in label_config(CHOOSE)


def test_whoever_marks_meets_the_kinds_before_the_text_and_whoever_compares_sees_both_sides_at_once() -> None:
    spans = label_config(replace(EDIT, kind="spans"))
    assert spans.index("<Labels") < spans.index('value="$completion"')
    assert spans.count('value="$completion"') == 1
    columns = ElementTree.fromstring(label_config(replace(EDIT, kind="compare"))).iter("View")
    sides = next(
        v
        for v in columns
        if v.get("className") == "tilth-columns" and v.find(".//Text[@name='a']") is not None
    )
    assert [view.find(".//Text").get("name") for view in sides] == ["a", "b"]  # type: ignore[union-attr]


@pytest.mark.parametrize("kind", ["edit", "accept", "class", "compare", "rubric", "spans"])
def test_one_of_several_is_a_radio_button_and_only_what_may_be_suggested_speaks_of_suggestions(
    kind: str,
) -> None:
    page = label_config(replace(EDIT, kind=kind, classes=("kind", "true")))
    assert 'choice="single"' not in page
    assert ('value="$note"' in page) == (kind in ("edit", "class"))
    assert ">" not in page.partition("<Style>")[2].partition("</Style>")[0], (
        "the server would write an entity"
    )


@pytest.mark.parametrize(
    "question",
    [
        replace(EDIT, kind="poem"),
        replace(EDIT, kind="rubric"),
        replace(CHOOSE, classes=("a",)),
        replace(CHOOSE, classes=("a", "a")),
    ],
)
def test_a_question_that_people_cannot_be_asked_is_refused(question: Question) -> None:
    with pytest.raises(UsageError, match="question reply"):
        label_config(question)


# Tasks


def test_a_task_carries_our_ids_and_the_suggestion_with_its_confidence() -> None:
    task = make(1)
    assert set(task["data"]) == {
        "record", "showing", "question", "question_version", "prompt", "suggested_by", "confidence",
        "note", "suggestion",
    }  # fmt: skip
    (prediction,) = task["predictions"]
    assert prediction["score"] == 0.25
    assert prediction["result"][0]["value"] == {"text": ["On its way."]}


def test_a_blind_task_holds_nothing_of_the_suggestion() -> None:
    text = json.dumps(make(1, blind=True))
    assert all(word not in text for word in ("On its way", "predictions", "confidence", "0.25", "adapter-7"))
    assert "On its way" in json.dumps(make(1)), "the same check sees a suggestion where there is one"


def test_a_showing_of_another_record_is_refused() -> None:
    with pytest.raises(UsageError, match="another record or question"):
        to_task(Showing("s", "r1"), {"record": "r2", "prompt": "?"}, None, EDIT)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t["data"].pop("showing"), "lacks showing"),
        (lambda t: t["data"].update(prompt=""), "lacks prompt"),
        (lambda t: t["data"].update(prompt="a\0b"), "NUL"),
        (lambda t: t["data"].update(prompt="\ud800"), "surrogate"),
        (lambda t: t["data"].update(question_version=2), "does not ask reply version 1"),
        (lambda t: t["predictions"][0].update(model_version="adapter-8"), "nobody would be shown"),
        (lambda t: t["predictions"][0].update(score=1.5), "no confidence"),
        (lambda t: t["predictions"][0].update(score=float("nan")), "no confidence"),
        (lambda t: t["predictions"][0]["result"][0].update(from_name="label"), "from_name"),
        (lambda t: t["predictions"][0]["result"][0].update(value={"text": "x"}), "one text"),
        (lambda t: t.pop("data"), "no data"),
    ],
)
def test_a_task_that_the_interface_cannot_show_is_refused_before_it_is_sent(change: Any, words: str) -> None:
    task = make(1)
    validate_task(task, EDIT)
    change(task)
    with pytest.raises(UsageError, match=words):
        validate_task(task, EDIT)


def test_a_suggested_class_that_does_not_exist_is_refused_with_the_nearest() -> None:
    with pytest.raises(UsageError, match="did you mean 'billing'"):
        validate_task(make(1, question=CHOOSE, text="biling"), CHOOSE)


# Answers


def test_the_latest_state_of_each_person_counts_in_any_order() -> None:
    notes = [
        annotation(1, "first", at=1),
        annotation(2, "other", at=2),
        annotation(1, "second thought", at=3),
    ]
    for order in (notes, notes[::-1]):
        labels = from_annotations(task_with(*order), EDIT)
        assert [(label.author, label.value) for label in labels] == [("1", "second thought"), ("2", "other")]


def test_a_label_knows_where_it_comes_from() -> None:
    (label,) = from_annotations(task_with(annotation(7, "Thursday.", at=5, ground_truth=True)), EDIT)
    data = make(1)["data"]
    assert label == PersonLabel(
        data["record"], data["showing"], "reply", 1, "7", "Thursday.", "17", "6",
        updated_at="2026-03-01T10:00:05.000000Z", lead_time=3.5, ground_truth=True,
    )  # fmt: skip
    assert label.usable


@pytest.mark.parametrize("who", [7, "7", {"id": 7, "email": "ines@example.org"}])
def test_every_way_of_naming_the_author_is_one_person(who: Any) -> None:
    assert from_annotations(task_with(annotation(who, "x")), EDIT)[0].author == "7"


def test_a_skip_is_no_answer_and_a_later_answer_replaces_it() -> None:
    skip = annotation(1, "", at=1, was_cancelled=True, result=[])
    (label,) = from_annotations(task_with(skip), EDIT)
    assert (label.skipped, label.value, label.problem) == (True, None, "")
    (label,) = from_annotations(task_with(skip, annotation(1, "now", at=2)), EDIT)
    assert (label.skipped, label.value) == (False, "now")


def test_a_deleted_annotation_becomes_one_tombstone() -> None:
    held = from_annotations(task_with(annotation(1, "gone"), annotation(2, "stays")), EDIT)
    labels = from_annotations(task_with(annotation(2, "stays")), EDIT, held)
    assert [(label.author, label.deleted, label.value) for label in labels] == [
        ("2", False, "stays"),
        ("1", True, None),
    ]
    again = from_annotations(task_with(annotation(2, "stays")), EDIT, labels)
    assert not any(label.deleted for label in again), "a tombstone dies once"


def test_a_replaced_annotation_leaves_no_tombstone() -> None:
    held = from_annotations(task_with(annotation(1, "old", at=1)), EDIT)
    labels = from_annotations(task_with(annotation(1, "new", at=9)), EDIT, held)
    assert [(label.value, label.deleted) for label in labels] == [("new", False)]


def test_tasks_that_were_not_read_lose_nothing() -> None:
    held = from_annotations(task_with(annotation(1, "kept")), EDIT)
    assert tombstones(held, [], ["another task"]) == []
    assert len(tombstones(held, [], ["17"])) == 1


@pytest.mark.parametrize(
    ("note", "question", "words"),
    [
        (annotation(1, "  "), EDIT, "the answer is empty"),
        (annotation(1, "x", result=[]), EDIT, "the answer is empty"),
        (annotation(None, "x"), EDIT, "nobody is named"),
        (annotation(1, "biling"), CHOOSE, "did you mean 'billing'"),
        (annotation(1, "x"), replace(EDIT, name="tone"), "asks 'reply', not 'tone'"),
    ],
)
def test_an_answer_that_cannot_be_used_says_why(note: dict[str, Any], question: Question, words: str) -> None:
    (label,) = from_annotations(task_with(note), question)
    assert not label.usable
    assert words in label.problem


def test_a_task_that_somebody_else_made_is_named_and_not_used() -> None:
    (label,) = from_annotations({"id": 3, "data": {"prompt": "?"}, "annotations": [annotation(1, "x")]}, EDIT)
    assert "was not pushed from here" in label.problem
    assert not label.usable


def test_a_text_in_several_parts_is_read_whole() -> None:
    region = result("", EDIT) | {"value": {"text": ["one", "two"]}}
    assert from_annotations(task_with(annotation(1, "", result=[region])), EDIT)[0].value == "one\ntwo"
    region = result("", EDIT) | {"value": {"text": "plain"}}
    assert from_annotations(task_with(annotation(1, "", result=[region])), EDIT)[0].value == "plain"


def test_something_else_than_a_task_is_refused() -> None:
    with pytest.raises(UsageError, match="no task with annotations"):
        from_annotations({"id": 1, "annotations": "none"}, EDIT)


# What a real server said


RECORDING = json.loads(
    (Path(__file__).parent / "recordings" / "label_studio.json").read_text(encoding="utf-8")
)
SAID = {
    ("record-0", "one"): ("Thursday.", False, ""),
    ("record-1", "one"): ("second thought", False, ""),
    ("record-3", "one"): (None, True, "not my field"),
    ("record-3", "two"): (None, True, ""),
    ("record-4", "one"): ("mine", False, ""),
    ("record-4", "two"): ("yours", False, ""),
    ("record-5", "one"): ("marked", False, ""),
}


@pytest.mark.parametrize("way", ["listed", "exported"])
def test_what_a_real_server_recorded_is_read_as_it_was_meant(way: str) -> None:
    """Recorded from Label Studio 1.23: an answer, an edit, a deletion, two skips, two people, a ground truth."""
    names = {number: name for name, number in RECORDING["people"].items()}
    labels = [label for task in RECORDING[way] for label in from_annotations(task, EDIT)]
    said = {(label.record, names[label.author]): (label.value, label.skipped, label.why) for label in labels}
    assert said == SAID
    assert [label.record for label in labels if label.ground_truth] == ["record-5"]
    assert {label.lead_time for label in labels if label.record in ("record-0", "record-1")} == {4.0, 9.0}
    assert all(label.updated_at and not label.problem for label in labels)


def test_an_answer_that_a_real_server_lost_becomes_a_tombstone() -> None:
    (task,) = [task for task in RECORDING["listed"] if task["data"]["record"] == "record-2"]
    before = from_annotations(task_with(annotation(1, "x")), EDIT)
    held = [replace(label, task=str(task["id"]), record="record-2") for label in before]
    assert task["annotations"] == []
    assert [(label.deleted, label.value) for label in from_annotations(task, EDIT, held)] == [(True, None)]


# Kinds of question

JUDGED = {"accept": {}, "compare": {}, "rubric": {"classes": ("kind", "true")}, "spans": {}}


@pytest.mark.parametrize("kind", JUDGED)
def test_every_kind_of_question_has_a_page_of_plain_text_that_asks_why_not(kind: str) -> None:
    tree = ElementTree.fromstring(label_config(replace(EDIT, kind=kind, **JUDGED[kind]), passages=True))
    tags = {tag.tag for tag in tree.iter()}
    assert tags <= {
        "View", "Header", "Text", "TextArea", "Choices", "Choice", "Collapse", "Panel", "Style", "Labels", "Label"
    }  # fmt: skip
    (cannot,) = [tag for tag in tree.iter("Choices") if tag.get("name") == "cannot"]
    assert [choice.get("value") for choice in cannot] == ["bad question", "not my field", "needs context"]
    assert any(tag.get("value") == "$passages" for tag in tree.iter("Text"))
    assert "Record $record" in [tag.get("value") for tag in tree.iter("Header")]


def marked(start: int, end: int, text: str | None, shown: str) -> PersonLabel:
    value = {"start": start, "end": end, "labels": ["PERSON"]} | ({} if text is None else {"text": text})
    region = {"from_name": "answer", "to_name": "completion", "type": "labels", "value": value}
    task = task_with(annotation(1, "", result=[region]))
    task["data"] |= {"completion": shown, "question": "reply"}
    (label,) = from_annotations(task, replace(EDIT, kind="spans"))
    return label


def test_a_mark_is_counted_in_code_points_whatever_the_browser_counts() -> None:
    shown = "🙂 Ines wrote"
    want = [{"start": 2, "end": 6, "text": "Ines", "type": "PERSON"}]
    for start, end in ((2, 6), (3, 7)):  # in code points, and in the UTF-16 units of a browser
        assert json.loads(marked(start, end, "Ines", shown).value or "") == want
    assert json.loads(marked(2, 6, None, shown).value or "") == want
    assert "outside the text" in marked(4, 99, None, shown).problem
    assert "outside the text" in marked(0, 3, "Tom", shown).problem


def test_no_marks_say_that_there_is_nothing_to_mark() -> None:
    task = task_with(annotation(1, "", result=[]))
    task["data"]["completion"] = "nothing here"
    (label,) = from_annotations(task, replace(EDIT, kind="spans"))
    assert (label.value, label.problem) == ("[]", "")


def test_a_reason_outweighs_an_answer_however_it_was_sent() -> None:
    why = {"from_name": "cannot", "type": "choices", "value": {"choices": ["needs context"]}}
    for cancelled in (True, False):
        note = annotation(1, "the untouched draft", was_cancelled=cancelled)
        note["result"].append(why)
        (label,) = from_annotations(task_with(note), EDIT)
        assert (label.skipped, label.value, label.why) == (True, None, "needs context")


def test_retired_classes_stay_on_the_page_where_a_server_cannot_lose_them() -> None:
    revised = replace(CHOOSE, mapping={"lost": "claims", "odd": None})
    assert "lost" not in label_config(revised)
    page = label_config(revised, retired=True)
    assert 'value="lost (no longer used: claims)" alias="lost"' in page
    assert 'value="odd (no longer used: choose again)"' in page


# Files

ANSWER = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=40
).filter(lambda text: text.strip())


@settings(max_examples=60, deadline=None)
@given(answer=ANSWER, suffix=st.sampled_from([".csv", ".tsv", ".jsonl"]))
def test_an_answer_typed_into_a_form_comes_back_as_it_was(
    tmp_path_factory: pytest.TempPathFactory, answer: str, suffix: str
) -> None:
    path = tmp_path_factory.mktemp("form") / f"tasks{suffix}"
    write_form(path, [make(1), make(2)])
    fill(path, {0: answer})
    (label,) = read_answers(path, EDIT, author="ines")
    assert (label.value, label.author, label.record) == (answer, "ines", make(1)["data"]["record"])


def fill(path: Path, answers: dict[int, str], **columns: str) -> None:
    """Do as an expert with a spreadsheet does."""
    if path.suffix == ".jsonl":
        rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    else:
        delimiter = "\t" if path.suffix == ".tsv" else ","
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file, delimiter=delimiter))
    for number, text in answers.items():
        rows[number] |= {"answer": text} | columns
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
        return
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)


@pytest.mark.parametrize("name", ["tasks.json", "tasks.jsonl"])
def test_a_file_of_tasks_filled_in_by_hand_is_read_like_an_export(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    tasks = [make(1), make(2) | {"annotations": [annotation("ines", "by hand")]}]
    assert write_tasks(path, tasks) == 2
    (label,) = read_answers(path, EDIT)
    assert (label.value, label.author, label.task) == ("by hand", "ines", tasks[1]["data"]["showing"])


def test_every_export_of_a_server_gives_the_same_labels(tmp_path: Path) -> None:
    data = make(1)["data"]
    flat = {**data, "id": 17, "annotator": 7, "annotation_id": 6, "lead_time": 3.5, "answer": "Thursday."}
    flat["updated_at"] = "2026-03-01T10:00:05.000000Z"
    (tmp_path / "a.json").write_text(json.dumps([task_with(annotation(7, "Thursday.", at=5))]), "utf-8")
    (tmp_path / "b.json").write_text(json.dumps([flat]), "utf-8")
    with (tmp_path / "c.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, sorted(flat))
        writer.writeheader()
        writer.writerow(flat)
    exports = [read_answers(tmp_path / name, EDIT) for name in ("a.json", "b.json", "c.csv")]
    assert exports[0] == exports[1] == exports[2]
    assert exports[0][0].value == "Thursday."


def test_a_form_takes_two_people_a_skip_and_a_country_with_semicolons(tmp_path: Path) -> None:
    data = make(1)["data"]
    head = "record;showing;question;question_version;prompt;answer;annotator;skip"
    ids = ";".join(str(data[name]) for name in ("record", "showing", "question", "question_version"))
    lines = [head, f'{ids};?;"a ""quoted"" word; two";ines;', f"{ids};?;;tom;x", ""]
    path = tmp_path / "form.csv"
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())
    ines, tom = read_answers(path, EDIT)
    assert (ines.author, ines.value) == ("ines", 'a "quoted" word; two')
    assert (tom.author, tom.skipped, tom.value) == ("tom", True, None)


def test_the_least_form_needs_a_record_and_an_answer(tmp_path: Path) -> None:
    path = tmp_path / "form.jsonl"
    path.write_text('{"record": "r1", "prompt": "?", "answer": "yes"}\n', "utf-8")
    (label,) = read_answers(path, EDIT, author="ines")
    assert (label.record, label.value, label.question, label.question_version) == ("r1", "yes", "reply", 1)


def test_a_cell_that_looks_like_a_formula_is_shown_as_text(tmp_path: Path) -> None:
    path = tmp_path / "form.csv"
    task = make(1, text="=HYPERLINK(1)")
    task["data"]["prompt"] = "+1 555 0100 called"
    write_form(path, [task])
    with path.open(encoding="utf-8-sig", newline="") as file:
        (row,) = csv.DictReader(file)
    assert (row["prompt"][0], row["suggestion"][0]) == ("'", "'")
    FileChannel(path, EDIT).push([make(2)])
    assert read_tasks(path)[0]["data"]["prompt"] == "+1 555 0100 called", (
        "rewriting adds no second apostrophe"
    )


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.jsonl", b'{"record": "r"}\n{"record": \n', "a.jsonl:2: not valid JSON"),
        ("a.jsonl", b'{"record": "r"}\n{"answer": "x"}\n', "a.jsonl:2: this row names no record"),
        ("a.jsonl", b"[1]\n", "a.jsonl:1: this is no task"),
        ("a.json", b'[{"data": {}', "not valid JSON"),
        ("a.csv", b"record,answer\nr,one,two\n", "another number of cells"),
        ("a.csv", b'record,answer\nr,"one\n', "not a table"),
        ("a.csv", "record,answer\nr,\xe9\n".encode("latin-1"), "not UTF-8"),
    ],
)
def test_a_file_that_cannot_be_read_names_the_line(
    tmp_path: Path, name: str, content: bytes, words: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UsageError) as raised:
        read_tasks(path)
    assert words in str(raised.value)


def test_an_empty_file_holds_no_answers(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_bytes(b"")
    assert read_answers(tmp_path / "empty.jsonl", EDIT) == []


@pytest.mark.parametrize("name", ["tasks.json", "tasks.jsonl", "tasks.csv"])
def test_pushing_to_a_file_again_keeps_what_was_filled_in(tmp_path: Path, name: str) -> None:
    channel = FileChannel(tmp_path / name, EDIT, author="ines", form=name.endswith("csv"))
    first = channel.push([make(1), make(2)])
    if name.endswith("csv"):
        fill(channel.path, {0: "mine"})
    else:
        tasks = read_tasks(channel.path)
        write_tasks(channel.path, [tasks[0] | {"annotations": [annotation("ines", "mine")]}, *tasks[1:]])
    assert channel.push([make(1), make(2), make(3)]) == first | {
        make(3)["data"]["showing"]: make(3)["data"]["showing"]
    }
    (page,) = channel.pull()
    assert [label.value for label in page.answers] == ["mine"]
    assert len(page.tasks) == 3
    assert list(channel.pull(page.watermark)) == [], "an unchanged file has nothing new"


def test_an_answer_wiped_out_in_a_file_is_taken_back(tmp_path: Path) -> None:
    channel = FileChannel(tmp_path / "form.csv", EDIT, author="ines")
    channel.push([make(1)])
    fill(channel.path, {0: "mine"})
    (page,) = channel.pull()
    fill(channel.path, {0: ""})
    (after,) = channel.pull(page.watermark, held=page.answers)
    assert [(label.deleted, label.value) for label in after.answers] == [(True, None)]


# A server that misbehaves


@pytest.fixture
def fake() -> Iterator[Fake]:
    with fake_server() as standing_in:
        yield standing_in


@pytest.fixture
def slept() -> list[float]:
    return []


@pytest.fixture
def channel(fake: Fake, slept: list[float]) -> Iterator[ProjectChannel]:
    with connect(fake.url, TOKEN, sleep=slept.append, timeout=5) as client:
        ready = project_module.channel(client, EDIT)
        fake.log.clear()
        yield ready


def tasks(n: int) -> list[dict[str, Any]]:
    return [make(i) for i in range(n)]


def test_an_answer_lost_after_the_import_makes_no_second_task(fake: Fake, channel: ProjectChannel) -> None:
    fake.faults = [None, faults.dropped]
    remote = channel.push(tasks(5))
    assert len(fake.tasks) == 5
    assert remote == {task["data"]["showing"]: str(task["id"]) for task in fake.tasks}
    assert fake.log.count("POST /api/projects/1/import") == 1


def test_without_looking_first_a_second_push_would_double_every_task(
    fake: Fake, channel: ProjectChannel, monkeypatch: pytest.MonkeyPatch
) -> None:
    channel.push(tasks(3))
    channel.push(tasks(3))
    assert len(fake.tasks) == 3
    monkeypatch.setattr(ProjectChannel, "_look", lambda self, showings: {})
    with pytest.raises(RemoteUnavailable, match="3 of 3 tasks did not arrive"):
        channel.push(tasks(3))
    assert len(fake.tasks) == 6


def test_every_item_becomes_one_task_over_many_lost_answers(
    fake: Fake, channel: ProjectChannel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(project_module, "IMPORT", 2)
    fake.faults = [None if i % 5 else faults.dropped for i in range(200)]
    channel.push(tasks(60))
    shown = [task["data"]["showing"] for task in fake.tasks]
    assert len(shown) == len(set(shown)) == 60


def test_a_refused_import_is_sent_once_and_says_what_to_do(fake: Fake, channel: ProjectChannel) -> None:
    fake.faults = [None, faults.refused(503)]
    with pytest.raises(RemoteUnavailable, match="Run the same command again"):
        channel.push(tasks(2))
    assert fake.log.count("POST /api/projects/1/import") == 1
    assert len(channel.push(tasks(2))) == len(fake.tasks) == 2


@pytest.mark.parametrize("fault", [faults.cut, faults.torn], ids=["cut", "torn"])
def test_a_pull_cut_at_any_of_two_hundred_places_is_refused_and_the_next_completes(
    fake: Fake, channel: ProjectChannel, fault: Any
) -> None:
    channel.push(tasks(4))
    for number in range(1, 5):
        fake.annotate(number, 7, f"answer {number}")
    whole = list(channel.pull())
    size = len(json.dumps(fake._list({"filters": {"items": [_everything()]}}, 1, 500)))
    for at in range(0, size, size // 199):
        fake.faults = [fault(at)] * client_module.TRIES
        with pytest.raises(RemoteUnavailable):
            list(channel.pull())
        assert not fake.faults, "it was tried as often as allowed"
    assert list(channel.pull()) == whole


def _everything() -> dict[str, str]:
    return {"filter": "filter:tasks:updated_at", "value": project_module.EPOCH}


def test_one_cut_answer_is_read_again(fake: Fake, channel: ProjectChannel, slept: list[float]) -> None:
    channel.push(tasks(2))
    fake.faults = [faults.torn(40), faults.refused(503), None]
    (page,) = channel.pull()
    assert len(page.tasks) == 2
    assert slept == [1.0, 2.0]


def test_a_list_shorter_than_its_count_is_refused(fake: Fake, channel: ProjectChannel) -> None:
    channel.push(tasks(3))
    fake.faults = [faults.short] * client_module.TRIES
    with pytest.raises(RemoteUnavailable, match="holds 2 tasks where it should hold 3"):
        list(channel.pull())


def test_without_counting_a_short_list_passes_for_all_there_is(
    fake: Fake, channel: ProjectChannel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Negative control: the server lists two of three tasks, and nobody misses the third."""

    def believing(self: Any, project: int, query: Any, *, page: int, size: int, annotations: bool) -> Any:
        return self._task_page(project, query, page, size, annotations)

    channel.push(tasks(3))
    monkeypatch.setattr(client_module.LabelStudio, "tasks", believing)
    fake.faults = [faults.short]
    assert [len(page.tasks) for page in channel.pull()] == [2]


def test_a_push_that_was_sent_again_like_a_read_would_double_its_tasks(
    fake: Fake, channel: ProjectChannel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Negative control: the server did what was asked and its answer was lost; once more makes the tasks twice."""
    monkeypatch.setattr(client_module.LabelStudio, "_send", lambda self, call, what: self._read(call))
    fake.faults = [None, faults.dropped]
    channel.push(tasks(2))
    assert fake.log.count("POST /api/projects/1/import") == 2
    assert len(fake.tasks) == 4


def test_a_web_page_in_place_of_an_answer_is_refused_at_once(fake: Fake, channel: ProjectChannel) -> None:
    fake.faults = [faults.html]
    with pytest.raises(RemoteUnavailable, match="a web page"):
        list(channel.pull())


def test_a_server_that_asks_to_wait_is_waited_for(
    fake: Fake, channel: ProjectChannel, slept: list[float]
) -> None:
    fake.faults = [faults.refused(429, Retry_After="7")]
    assert list(channel.pull()) == []
    assert slept == [7.0]
    fake.faults = [faults.refused(429, Retry_After="3600")]
    with pytest.raises(RemoteUnavailable, match="in a minute"):
        list(channel.pull())
    assert slept == [7.0]


@pytest.mark.parametrize(
    ("status", "words"), [(401, "token is refused"), (403, "may not"), (404, "not there"), (418, "refused")]
)
def test_a_refusal_names_the_way_out_and_never_the_token(
    fake: Fake, channel: ProjectChannel, status: int, words: str
) -> None:
    fake.faults = [faults.refused(status)]
    with pytest.raises(RemoteUnavailable, match=words) as raised:
        list(channel.pull())
    assert len(fake.log) == 1, "what cannot pass by itself is not tried again"
    error: BaseException | None = raised.value
    while error:
        assert TOKEN not in str(error)
        error = error.__cause__
    assert raised.value.__suppress_context__ or raised.value.__context__ is None
    assert raised.value.exit_code == 7


def test_nobody_listening_is_said_so() -> None:
    nobody = connect("http://127.0.0.1:9", TOKEN, sleep=lambda _: None)
    with nobody, pytest.raises(RemoteUnavailable, match="nothing answers"):
        nobody.me()


def jwt(kind: str, *, expires: float) -> str:
    parts = [{"alg": "HS256", "typ": "JWT"}, {"token_type": kind, "exp": int(expires)}]
    return ".".join(
        [*(base64.urlsafe_b64encode(json.dumps(p).encode()).decode().rstrip("=") for p in parts), kind]
    )


def test_both_kinds_of_token_are_sent_as_the_server_wants_them(fake: Fake) -> None:
    with connect(fake.url, TOKEN) as client:
        ensure_project(client, EDIT)
    assert fake.authorizations[-1] == f"Token {TOKEN}"
    personal = jwt("refresh", expires=time.time() + 3600)
    with connect(fake.url, personal) as client:
        ensure_project(client, EDIT)
    assert fake.log.count("POST /api/token/refresh/") == 1
    assert fake.authorizations[-1].startswith("Bearer ")
    assert personal not in fake.authorizations[-1]


def test_an_expired_token_says_where_to_get_another(fake: Fake) -> None:
    with pytest.raises(RemoteUnavailable, match="/user/account"):
        connect(fake.url, jwt("refresh", expires=time.time() - 10))


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://labels.example.org", "beyond this machine"),
        ("ftp://127.0.0.1", "no address"),
        ("http://ana:secret@127.0.0.1:8080", "no address"),
        ("127.0.0.1:8080", "no address"),
    ],
)
def test_an_address_that_must_not_be_spoken_to_is_refused(url: str, words: str) -> None:
    with pytest.raises(UsageError, match=words) as raised:
        connect(url, TOKEN)
    assert "secret" not in str(raised.value)
    with connect("http://labels.example.org", TOKEN, allow=["labels.example.org"]):
        pass


def test_no_token_is_said_before_anything_is_sent(fake: Fake) -> None:
    with pytest.raises(UsageError, match="LABEL_STUDIO_API_KEY"):
        connect(fake.url, " ")
    assert fake.log == []


def test_a_project_is_made_once_and_follows_the_question(fake: Fake) -> None:
    with connect(fake.url, TOKEN) as client:
        first = ensure_project(client, CHOOSE)
        assert ensure_project(client, CHOOSE) == first
        assert not [line for line in fake.log if line.startswith("PATCH")]
        grown = replace(CHOOSE, classes=(*CHOOSE.classes, "other"), version=2)
        assert ensure_project(client, grown) == first
        longer = [ensure_project(client, EDIT, title="a long workspace name " * 3 + end) for end in "ab"]
        assert longer[0] != longer[1]
    assert len(fake.projects) == 3
    assert all(3 <= len(project["title"]) <= 50 for project in fake.projects)
    assert "other" in fake.projects[0]["label_config"]


def test_pages_resume_at_a_watermark_and_nothing_is_missed(fake: Fake, channel: ProjectChannel) -> None:
    small = replace(channel, page=7)
    small.push(tasks(40))
    for number in range(1, 41):
        fake.annotate(number, 7, f"answer {number}")
    pages = small.pull()
    got = [next(pages), next(pages)]
    pages.close()
    rest = list(small.pull(got[-1].watermark))
    values = {label.value for page in [*got, *rest] for label in page.answers}
    assert values == {f"answer {number}" for number in range(1, 41)}


def test_a_task_changed_while_pages_are_read_is_not_missed(fake: Fake, channel: ProjectChannel) -> None:
    small = replace(channel, page=5)
    small.push(tasks(20))
    latest: dict[str, str | None] = {}
    for number, page in enumerate(small.pull(), 1):
        if number == 1:
            fake.annotate(1, 7, "changed behind us")
            fake.annotate(19, 7, "changed before us")
        latest |= {label.task: label.value for label in page.answers}
    assert latest == {"1": "changed behind us", "19": "changed before us"}


def test_more_tasks_of_one_moment_than_a_page_holds_are_all_read(fake: Fake, channel: ProjectChannel) -> None:
    small = replace(channel, page=4)
    small.push(tasks(11))
    for task in fake.tasks:
        task["updated_at"] = "2026-03-01T10:00:00.000000Z"
    assert {number for page in small.pull() for number in page.tasks} == {str(i) for i in range(1, 12)}


def test_a_task_deleted_on_the_server_is_found_missing(fake: Fake, channel: ProjectChannel) -> None:
    remote = list(channel.push(tasks(5)).values())
    del fake.tasks[2]
    assert channel.vanished(remote) == (remote[2],)


# The server of this machine


def test_the_server_is_started_for_this_machine_alone_and_tells_nobody() -> None:
    for host in ("0.0.0.0", "::", "192.168.1.10", "example.org"):
        with pytest.raises(UsageError, match="refusing an address"):
            label_studio_server.check_loopback(host)
    assert label_studio_server.check_loopback("localhost") == "127.0.0.1"
    settings = label_studio_server.environment_variables(Path("/d"), "t" * 40, "p")
    assert settings["DISABLE_SIGNUP_WITHOUT_LINK"] == "true"
    assert settings["COLLECT_ANALYTICS"] == "false"
    assert settings["SENTRY_DSN"] == settings["FRONTEND_SENTRY_DSN"] == ""
    assert settings["LATEST_VERSION_CHECK"] == "false"


def test_a_secret_is_made_once_and_only_its_owner_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "data" / "token"
    first = label_studio_server.secret(path)
    assert label_studio_server.secret(path) == first
    assert len(first) == 40
    assert path.stat().st_mode & 0o777 == 0o600
    path.chmod(0o644)
    label_studio_server.secret(path)
    assert path.stat().st_mode & 0o777 == 0o600
    path.chmod(0o644)
    assert label_studio_server.secret(path, given="theirs") == "theirs"
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_missing_server_and_a_taken_port_are_named(tmp_path: Path, fake: Fake) -> None:
    with pytest.raises(UsageError, match="make label-studio"):
        label_studio_server.executable(tmp_path)
    with pytest.raises(UsageError, match="is taken"):
        label_studio_server.free_port(int(fake.url.rsplit(":", 1)[1]))
