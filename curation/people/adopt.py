"""Taking over a project that somebody else made: its tasks become Records, its annotations Labels, its people stay.

The project keeps its interface. Its names for the text and the answer are read from there and told apart on the way
in and out; what it holds that no question of ours can ask is refused before anything is written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any
from xml.etree import ElementTree

from curation import records
from curation.errors import UsageError
from curation.label_studio import LabelStudio, ProjectChannel
from curation.label_studio.answers import task_id
from curation.label_studio.interface import ANSWER, PROMPT
from curation.label_studio.project import every_task
from curation.ledger import NewRecord, Question, Showing, Task
from curation.people.intake import pull
from curation.question import current
from curation.workspace import Workspace

ADOPTED = "project adopted"
_CONTROLS = {"TextArea": "edit", "Choices": "class"}


@dataclass(frozen=True)
class Names:
    """What the project calls things: the field of its tasks, the text on its page, the control of the answer."""

    project: int
    field: str
    text: str
    answer: str


def read_interface(xml: str, project: int) -> tuple[Names, str, tuple[str, ...]]:
    """The names that an interface uses, the kind of question it asks, and its classes.

    The first ``TextArea`` or single ``Choices`` that answers a ``Text`` is the question. Raises :class:`UsageError`
    where there is none.
    """
    try:
        tree = ElementTree.fromstring(xml)
    except ElementTree.ParseError as error:
        raise UsageError(f"the interface is not valid XML: {error}", where=f"project {project}") from None
    texts = {tag.get("name"): str(tag.get("value") or "") for tag in tree.iter("Text")}
    for control in tree.iter():
        value = texts.get(control.get("toName"), "")
        if control.tag in _CONTROLS and value.startswith("$") and control.get("choice") != "multiple":
            names = Names(project, value[1:], str(control.get("toName")), str(control.get("name")))
            classes = tuple(str(c.get("alias") or c.get("value")) for c in control.iter("Choice"))
            return names, _CONTROLS[control.tag], classes
    raise UsageError(
        "no TextArea or single Choices answers a Text in this project",
        where=f"project {project}",
        next="Adopt a project that asks for a text or a class",
    )


def adopt(
    workspace: Workspace, client: LabelStudio, project: int, *, dry_run: bool = False
) -> dict[str, Any]:
    """Take the project over, or take in what it has got since; counts of tasks, records and answers that are new."""
    names, kind, classes = read_interface(str(client.project(project)["label_config"]), project)
    question = _question(workspace, kind, classes, dry_run)
    channel = ProjectChannel(client, project, question)
    pages = list(_pages(channel, names))
    tasks = sum(len(page) for page in pages)
    if dry_run:
        return {"tasks": tasks, "records": 0, "added": 0, "question": question.name, "kind": kind}
    accepted = _store(workspace, names, question, pages)
    told = workspace.ledger.events(ADOPTED, question.name)
    if not told or told[-1].detail != asdict(names):
        workspace.ledger.event(ADOPTED, question.name, asdict(names))
    opened = adopted_channel(workspace, client, question)
    assert opened is not None
    got = pull(workspace, opened, "label-studio", mark=f"label-studio:{question.name}")
    return {"tasks": tasks, "records": accepted, "question": question.name, "kind": kind, **got}


def adopted_channel(workspace: Workspace, client: LabelStudio, question: Question) -> ProjectChannel | None:
    """The way to the people of the adopted project; ``None`` where the question has adopted none."""
    told = workspace.ledger.events(ADOPTED, question.name)
    if not told:
        return None
    names = Names(**told[-1].detail)
    inward = _inward(workspace, names, question)
    return ProjectChannel(client, names.project, question, outward=_outward(names), inward=inward)


def _question(workspace: Workspace, kind: str, classes: tuple[str, ...], dry_run: bool) -> Question:
    name, section = workspace.config.the_question
    known = [q for q in workspace.ledger.questions() if q.name == name]
    if not known and section.kind == "auto":
        made = Question(name, 1, kind, classes)
        return made if dry_run else workspace.ledger.add_question(made)
    asked = current(workspace)
    missing = set(classes) - set(asked.classes)
    if asked.kind != kind or (section.classes and missing):
        raise UsageError(
            f"the project asks for a {kind}"
            + (f" with classes {', '.join(sorted(missing))}" if missing else "")
            + f", and the question {name!r} is of kind {asked.kind}",
            where="tilth.toml",
            next=f"Make [question.{name}] ask the same",
        )
    return asked


def _pages(channel: ProjectChannel, names: Names) -> Iterator[list[tuple[str, str]]]:
    """Every task of the project with its text; a task without one cannot be adopted."""
    for page in every_task(channel):
        found = []
        for task in page:
            text = task["data"].get(names.field)
            if not isinstance(text, str) or not text.strip():
                raise UsageError(
                    f"its field {names.field!r} holds no text",
                    where=f"task {task_id(task)} of project {names.project}",
                    next="Delete the task, or fill in its text",
                )
            if "showing" not in task["data"]:  # what Tilth has pushed here since is known already
                found.append((task_id(task), text))
        yield found


def _store(workspace: Workspace, names: Names, question: Question, pages: list[list[tuple[str, str]]]) -> int:
    """Records, Showings and tasks of the project; returns how many records are new."""
    book, source = workspace.ledger, f"label-studio-{names.project}"
    accepted = 0
    whole = records.digest(records.canonical_json(pages))
    number = book.begin_ingest(
        source=source,
        file_name=f"project {names.project}",
        file_digest=whole,
        format="label-studio",
        rule=asdict(names),
        trust="candidate",
    )
    for page in pages:
        rows = [_record(source, remote, text) for remote, text in page]
        accepted += book.add_rows(number, rows).accepted
        showings = [_showing(row, question) for row in rows]
        ids = book.add_showings(showings)
        book.add_tasks(
            [Task(showing, "label-studio", remote) for showing, (remote, _) in zip(ids, page, strict=True)]
        )
    book.end_ingest(number)
    return accepted


def _record(source: str, remote: str, text: str) -> NewRecord:
    body = records.canonical_json(records.user_message(text))
    return NewRecord(records.record_id(source, key=remote), source, remote, body)


def _showing(row: NewRecord, question: Question) -> Showing:
    return Showing(row.id, question.name, 1, records.digest(row.payload_body), extra={"adopted": row.source})


def _inward(
    workspace: Workspace, names: Names, question: Question
) -> Callable[[dict[str, Any]], dict[str, Any]]:
    showings = {s.id: s for s in workspace.ledger.showings() if s.question == question.name}
    known = {
        task.remote: showings[task.showing]
        for task in workspace.ledger.tasks(channel="label-studio")
        if task.showing in showings
    }

    def inward(task: dict[str, Any]) -> dict[str, Any]:
        showing = known.get(task_id(task))
        data = {PROMPT: task["data"].get(names.field)}
        if showing:
            told = (showing.record, showing.id, showing.question, showing.question_version)
            data |= dict(zip(("record", "showing", "question", "question_version"), told, strict=True))
        notes = [_renamed(note, names.answer, ANSWER) for note in task["annotations"]]
        return {**task, "data": data, "annotations": notes}

    return inward


def _outward(names: Names) -> Callable[[Mapping[str, Any]], Mapping[str, Any]]:
    def outward(task: Mapping[str, Any]) -> Mapping[str, Any]:
        data = {**task["data"], names.field: task["data"][PROMPT]}
        guesses = [
            _renamed(guess, ANSWER, names.answer, at=names.text) for guess in task.get("predictions", ())
        ]
        return {**task, "data": data, **({"predictions": guesses} if guesses else {})}

    return outward


def _renamed(holder: Mapping[str, Any], old: str, new: str, *, at: str = PROMPT) -> dict[str, Any]:
    """An annotation or prediction whose regions of the control ``old`` are those of ``new``."""
    regions = [
        {**r, "from_name": new, "to_name": at} if isinstance(r, Mapping) and r.get("from_name") == old else r
        for r in holder.get("result") or ()
    ]
    return {**holder, "result": regions}
