"""Who answers: people behind a channel (Label Studio or files), or a simulation that reads the hidden gold.

Both write the same thing: Labels that cite the Showing they answer. A simulation is called simulated wherever it shows.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from curation.curate import Rules, scrubbed_labels
from curation.errors import UsageError
from curation.label_studio import (
    Channel,
    FileChannel,
    PersonLabel,
    Suggestion,
    connect,
    to_task,
    validate_task,
)
from curation.ledger import NewLabel, Question, Showing, Task
from curation.loop import TWIN
from curation.question import current
from curation.workspace import Workspace

PAGE = 5_000


@dataclass
class Simulated:
    """Answers every showing with the record's gold; where a source gave none, with the source's own completion.

    The random twin of the strategy has annotators of its own, so that neither learns from the other's Labels.
    """

    name: str = "simulated"
    simulated: bool = True

    def ask(self, workspace: Workspace, question: Question, showings: Sequence[Showing]) -> int:
        """A simulation needs no telling: it answers what it is shown when it is collected from."""
        return len(showings)

    def collect(self, workspace: Workspace, question: Question) -> dict[str, int]:
        """Write one Label for each showing that nobody has answered."""
        book = workspace.ledger
        twins = {s.id for s in book.selections() if s.strategy == TWIN}
        done = answered(workspace)
        todo = [s for s in book.showings() if s.id not in done]
        known = _known_answers(workspace, {s.record for s in todo})
        labels = []
        for showing in todo:
            answers = known.get(showing.record, [])
            place = int(showing.annotator or 0)
            if not answers:
                continue
            kind = f"simulated-{TWIN}" if showing.selection in twins else "simulated"
            labels.append(
                NewLabel(
                    record=showing.record,
                    question=question.name,
                    question_version=question.version,
                    kind="person",
                    author=book.add_author(f"{kind}-{place + 1}", kind),
                    body=answers[place % len(answers)],
                    showing=showing.id,
                )
            )
        book.add_labels(labels)
        return {"added": len(labels), "withdrawn": 0, "unusable": 0}

    def waiting(self, workspace: Workspace, showings: Sequence[str]) -> int:
        """How many of these showings have no answer."""
        return len(set(showings) - answered(workspace))

    def where(self, workspace: Workspace) -> str:
        """Where to look for the tasks; a simulation has no such place."""
        return "a simulation: records without gold cannot be answered"


def answered(workspace: Workspace) -> set[str]:
    """The showings that a person's standing Label answers."""
    return set(workspace.ledger.labels(kinds={"person"})["showing"].to_pylist()) - {None}


def _known_answers(workspace: Workspace, wanted: set[str]) -> dict[str, list[str]]:
    """The texts that the simulation answers with: gold where a record has some, else reference, else candidate."""
    found: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    kinds = ("gold", "reference", "candidate")
    rows = scrubbed_labels(workspace, Rules(workspace), set(kinds), sorted(wanted))
    columns = (rows[name].to_pylist() for name in ("record", "kind", "body"))
    for record, kind, body in zip(*columns, strict=True):
        if body is not None:
            found[record][kind].append(body)
    return {record: next(by[kind] for kind in kinds if kind in by) for record, by in found.items()}


@dataclass
class Through:
    """People behind a channel. ``open`` makes the channel for a question; it is called once per question version."""

    name: str
    place: str
    open: Callable[[Workspace, Question], Channel]
    simulated: bool = False
    channels: dict[str, Channel] = field(default_factory=dict, repr=False)

    def _channel(self, workspace: Workspace, question: Question) -> Channel:
        key = f"{question.name}-{question.version}"
        if key not in self.channels:
            self.channels[key] = self.open(workspace, question)
        return self.channels[key]

    def ask(self, workspace: Workspace, question: Question, showings: Sequence[Showing]) -> int:
        """Push what is not on the other side yet, and remember each task once it is known to be there."""
        known = {task.showing for task in workspace.ledger.tasks(channel=self.name)}
        new = [s for s in showings if s.id not in known]
        channel = self._channel(workspace, question)
        for start in range(0, len(new), PAGE):
            page = new[start : start + PAGE]
            remote = channel.push(make_tasks(workspace, question, page))
            workspace.ledger.add_tasks(
                [Task(showing=s.id, channel=self.name, remote=remote[s.id]) for s in page]
            )
        return len(new)

    def collect(self, workspace: Workspace, question: Question) -> dict[str, int]:
        """Pull page by page since the watermark; each page's answers and the watermark are stored before the next."""
        return pull(workspace, self._channel(workspace, question), self.name, question)

    def waiting(self, workspace: Workspace, showings: Sequence[str]) -> int:
        """How many of these showings nobody has answered or skipped."""
        closed = {t.showing for t in workspace.ledger.tasks(channel=self.name) if t.state != "open"}
        return len(set(showings) - closed)

    def where(self, workspace: Workspace) -> str:
        """Where the people find their tasks."""
        return self.place


def make_tasks(workspace: Workspace, question: Question, showings: Sequence[Showing]) -> list[dict[str, Any]]:
    """The showings as tasks with the scrubbed prompt; each is checked against the question before it leaves."""
    rows = {}
    ids = list(dict.fromkeys(s.record for s in showings))
    for page in workspace.ledger.view_pages(scrub_rule=Rules(workspace).scrub, records=ids):
        for record, prompt in zip(
            page.table["record"].to_pylist(), page.table["prompt"].to_pylist(), strict=True
        ):
            rows[record] = {"record": record, "prompt": prompt}
    tasks = []
    for showing in showings:
        suggestion = None
        if showing.suggestion is not None:
            suggestion = Suggestion(text=showing.suggestion, by=showing.suggestion_by or "source")
        task = to_task(showing, rows[showing.record], suggestion, question)
        validate_task(task, question)
        tasks.append(task)
    return tasks


def pull(workspace: Workspace, channel: Channel, name: str, question: Question) -> dict[str, int]:
    """Bring the ledger to the state of the other side; returns how many Labels were added and withdrawn.

    Page by page: each page's answers are stored before the watermark moves past them, so a kill repeats work and
    loses none. What cannot be used is kept as an event with its reason.
    """
    book = workspace.ledger
    mark = f"{name}:{question.name}"
    totals = {"added": 0, "withdrawn": 0, "unusable": 0}
    for page in channel.pull(book.watermark(mark), held=held(workspace, name)):
        changes = _Changes(workspace, name)
        for answer in page.answers:
            changes.take(answer)
        for kind, count in changes.write().items():
            totals[kind] += count
        book.set_watermark(mark, page.watermark)
    return totals


def held(workspace: Workspace, name: str) -> list[PersonLabel]:
    """The Labels that came through a channel, as that channel knows them."""
    return [label for _, label in _standing(workspace, name)]


def _standing(workspace: Workspace, name: str) -> list[tuple[str, PersonLabel]]:
    rows = workspace.ledger.labels(kinds={"person"})
    columns = (
        rows[c].to_pylist()
        for c in ("label", "record", "showing", "question", "question_version", "body", "extra")
    )
    found = []
    for label, record, showing, question, version, body, extra in zip(*columns, strict=True):
        told = orjson.loads(extra) if extra else {}
        if told.get("channel") == name:
            remote = {key: told[key] for key in ("author", "task", "annotation", "updated_at", "lead_time")}
            answer = PersonLabel(record, showing, question, version, value=body, **remote)
            found.append((label, answer))
    return found


class _Changes:
    """What a page of answers changes in the ledger: Labels to add, Labels to withdraw, tasks to close or reopen."""

    def __init__(self, workspace: Workspace, name: str) -> None:
        self.book, self.name = workspace.ledger, name
        self.tasks = {task.showing: task.id for task in self.book.tasks(channel=name)}
        self.labels = {(a.showing, a.author): label for label, a in _standing(workspace, name)}
        self.new: list[NewLabel] = []
        self.gone: list[str] = []
        self.states: dict[str, str] = {}
        self.unusable = 0

    def take(self, answer: PersonLabel) -> None:
        """Sort one answer: a Label, a skip, a tombstone, or something that cannot be used."""
        if answer.showing not in self.tasks:
            self._refuse(answer, "it cites no task of this workspace")
        elif answer.usable:
            self.new.append(self._label(answer))
            self.states[answer.showing] = "done"
        elif answer.problem:
            self._refuse(answer, answer.problem)
        else:
            self._take_back(answer)

    def _take_back(self, answer: PersonLabel) -> None:
        old = self.labels.get((answer.showing, answer.author))
        if old:
            self.gone.append(old)
        if self.states.get(answer.showing) != "done":
            self.states[answer.showing] = "skipped" if answer.skipped else "open"

    def _refuse(self, answer: PersonLabel, why: str) -> None:
        self.unusable += 1
        detail = {"channel": self.name, "task": answer.task, "annotation": answer.annotation, "why": why}
        self.book.event("answer not usable", answer.record or answer.task, detail)

    def _label(self, answer: PersonLabel) -> NewLabel:
        told = ("author", "task", "annotation", "updated_at", "lead_time")
        return NewLabel(
            record=answer.record,
            question=answer.question,
            question_version=answer.question_version,
            kind="person",
            author=self.book.add_author(f"{self.name}:{answer.author}", "person"),
            body=answer.value or "",
            showing=answer.showing,
            extra={"channel": self.name, **{key: getattr(answer, key) for key in told}},
            revision=f"{answer.annotation}@{answer.updated_at}",
        )

    def write(self) -> dict[str, int]:
        """Store it all; how many Labels are new, withdrawn, and how many answers could not be used."""
        before = set(self.labels.values())
        ids = self.book.add_labels(self.new)
        withdrawn = self.book.withdraw_labels(self.gone, "its author took it back")
        for state in ("done", "skipped", "open"):
            self.book.finish_tasks([self.tasks[s] for s, now in self.states.items() if now == state], state)
        return {"added": len(set(ids) - before), "withdrawn": withdrawn, "unusable": self.unusable}


# ------------------------------------------------------------------------------------------- channels by name

TASKS_FILE = "tasks.csv"


def files() -> Through:
    """People who fill in a form: one row per task in ``tasks.csv`` of the workspace."""
    return Through("files", f"{TASKS_FILE}: write into the answer column", _file_channel)


def _file_channel(workspace: Workspace, question: Question) -> Channel:
    return FileChannel(workspace.root / TASKS_FILE, question, author="form", form=True)


def label_studio() -> Through:
    """People in Label Studio, at the URL of the configuration or the environment."""
    return Through("label-studio", "Label Studio", _project_channel)


def _project_channel(workspace: Workspace, question: Question) -> Channel:
    url = os.environ.get("LABEL_STUDIO_URL") or workspace.config.label_studio.url
    if not url:
        raise UsageError(
            "no Label Studio is configured",
            where=str(workspace.root),
            next="Start one with `make label-studio` and set [label_studio] url, or pass --annotator files",
        )
    client = connect(url, os.environ.get("LABEL_STUDIO_API_KEY", ""), allow=workspace.config.egress.allow)
    return client.channel(question, title=f"{workspace.config.workspace.name} {question.name}")


def push_open(workspace: Workspace, through: Any, *, dry_run: bool = False) -> dict[str, Any]:
    """Bring every showing that nobody has answered to the people; what is there already is not brought again."""
    done = answered(workspace)
    known = {task.showing for task in workspace.ledger.tasks(channel=through.name)}
    todo = [s for s in workspace.ledger.showings() if s.id not in done and s.id not in known]
    if todo and not dry_run:
        through.ask(workspace, current(workspace), todo)
    return {"pushed": len(todo), "where": through.where(workspace)}


def pull_all(workspace: Workspace, through: Any, *, dry_run: bool = False) -> dict[str, int]:
    """Fetch what people did since the last time."""
    before = len(answered(workspace))
    if not dry_run:
        totals = through.collect(workspace, current(workspace))
        if totals:
            return totals
    return {"added": len(answered(workspace)) - before, "withdrawn": 0, "unusable": 0}
