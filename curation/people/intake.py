"""Answers into the ledger: page by page, each page stored before its watermark, so that a kill repeats work and loses none.

An answer becomes a Label that cites its Showing; a changed mind replaces it, a deletion and a skip withdraw it. What
cannot be used is kept as an event with its reason.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import orjson

from curation.label_studio import Channel, PersonLabel
from curation.ledger import NewLabel
from curation.ledger.labels import SUPERSEDED
from curation.workspace import Workspace

TAKEN_BACK = "its author took it back"
RESTORED = "its author has no newer one"
NOT_USABLE = "answer not usable"  # the kind of event that keeps why an answer counts for nothing
SKIPPED = "skipped"  # the kind of event that keeps why somebody skipped a task
_TOLD = ("author", "task", "annotation", "updated_at", "lead_time", "why")
Namer = Callable[[str], str]
"""The ledger's author of a person on the other side."""


ANYBODY = "any:"


def anybody(count: int) -> str:
    """The seat of so many different people, whoever they are: one task that is dealt to each of them.

    >>> wanted(anybody(3)), wanted("a-5f0c"), wanted(None)
    (3, 1, 1)
    """
    return f"{ANYBODY}{count}"


def wanted(seat: str | None) -> int:
    """How many people are to answer a showing."""
    return int(seat.removeprefix(ANYBODY)) if seat and seat.startswith(ANYBODY) else 1


def pull(
    workspace: Workspace,
    channel: Channel,
    name: str,
    *,
    mark: str,
    namer: Namer | None = None,
    deleted: Iterable[str] = (),
) -> dict[str, int]:
    """Bring the ledger to the state of the other side: how many Labels were added and withdrawn, what was skipped.

    ``deleted`` are the remote ids of tasks that exist no longer: what was said about them is withdrawn, and nobody is
    waited for.
    """
    intake = Intake(workspace, name, namer)
    book = workspace.ledger
    for page in channel.pull(book.watermark(mark), held=intake.held()):
        for answer in page.answers:
            intake.take(answer)
        intake.write()
        book.set_watermark(mark, page.watermark)
    intake.drop(deleted)
    return intake.totals


def held(workspace: Workspace, name: str) -> list[PersonLabel]:
    """The Labels that came through a channel, as that channel knows them."""
    return [answer for _, answer, _ in _standing(workspace, name)]


def _standing(workspace: Workspace, name: str) -> list[tuple[str, PersonLabel, str]]:
    rows = workspace.ledger.labels(kinds={"person"})
    names = ("label", "record", "showing", "question", "question_version", "body", "extra", "author")
    columns = (rows[c].to_pylist() for c in names)
    found = []
    for label, record, showing, question, version, body, extra, author in zip(*columns, strict=True):
        told = orjson.loads(extra) if extra else {}
        if told.get("channel") == name:
            remote = {key: told[key] for key in _TOLD if key in told}
            found.append(
                (label, PersonLabel(record, showing, question, version, value=body, **remote), author)
            )
    return found


@dataclass
class Intake:
    """What answers change in the ledger: Labels to add, Labels to withdraw, tasks to close or reopen."""

    workspace: Workspace
    name: str
    namer: Namer | None = None
    totals: dict[str, int] = field(
        default_factory=lambda: {"added": 0, "withdrawn": 0, "unusable": 0, "skipped": 0}
    )

    def __post_init__(self) -> None:
        book = self.workspace.ledger
        self.book = book
        self.tasks = {task.showing: task for task in book.tasks(channel=self.name)}
        self.states = {showing: task.state for showing, task in self.tasks.items()}
        standing = _standing(self.workspace, self.name)
        self.labels = {(a.showing, a.author): (label, a) for label, a, _ in standing}
        self.authors = {a.author: author for _, a, author in standing}
        self.wanted = {
            s.id: wanted(s.annotator) for s in book.showings() if (s.annotator or "").startswith(ANYBODY)
        }
        self.told = {event.subject: event.detail for event in book.events(SKIPPED)}
        self.refused = {(e.detail["annotation"], e.detail["why"]) for e in book.events(NOT_USABLE)}
        self._clear()

    def _clear(self) -> None:
        self.new: list[tuple[NewLabel, PersonLabel]] = []
        self.gone: list[str] = []
        self.moved: dict[str, str] = {}

    def held(self) -> list[PersonLabel]:
        """The standing Labels, as the other side knows them."""
        return [answer for _, answer in self.labels.values()]

    def take(self, answer: PersonLabel) -> None:
        """Sort one answer: a Label, a skip, a tombstone, or something that cannot be used."""
        if answer.showing not in self.tasks:
            self._refuse(answer, "it cites no task of this workspace")
        elif answer.usable:
            self.new.append((self._label(answer), answer))
            self.moved[answer.showing] = "done"
        elif answer.problem:
            self._refuse(answer, answer.problem)
        else:
            self._take_back(answer)

    def drop(self, remotes: Iterable[str]) -> None:
        """Forget tasks that exist no longer on the other side."""
        gone = set(remotes)
        for showing, task in self.tasks.items():
            if task.remote in gone and self.states[showing] != "withdrawn":
                self.gone += [label for (s, _), (label, _) in self.labels.items() if s == showing]
                self.moved[showing] = "withdrawn"
        self.write()

    def _take_back(self, answer: PersonLabel) -> None:
        old = self.labels.get((answer.showing, answer.author))
        if old:
            self.gone.append(old[0])
        if self.moved.get(answer.showing) == "done":
            return
        others = any(s == answer.showing and a != answer.author for s, a in self.labels)
        self.moved[answer.showing] = "done" if others else "skipped" if answer.skipped else "open"
        if answer.skipped:
            self._tell_skip(answer)

    def _tell_skip(self, answer: PersonLabel) -> None:
        told = {"why": answer.why, "author": self._author(answer.author), "annotation": answer.annotation}
        if self.told.get(answer.showing) != told:
            self.told[answer.showing] = told
            self.totals["skipped"] += 1
            self.book.event(SKIPPED, answer.showing, told)

    def _refuse(self, answer: PersonLabel, why: str) -> None:
        self.totals["unusable"] += 1
        if (answer.annotation, why) in self.refused:
            return
        self.refused.add((answer.annotation, why))
        detail = {"channel": self.name, "task": answer.task, "annotation": answer.annotation, "why": why}
        self.book.event(NOT_USABLE, answer.record or answer.task, detail)

    def _author(self, remote: str) -> str:
        if remote not in self.authors:
            named = self.namer(remote) if self.namer else ""
            self.authors[remote] = named or self.book.add_author(f"{self.name}:{remote}", "person")
        return self.authors[remote]

    def _label(self, answer: PersonLabel) -> NewLabel:
        return NewLabel(
            record=answer.record,
            question=answer.question,
            question_version=answer.question_version,
            kind="person",
            author=self._author(answer.author),
            body=answer.value or "",
            showing=answer.showing,
            extra={"channel": self.name, **{key: getattr(answer, key) for key in _TOLD}},
            revision=f"{answer.annotation}@{answer.updated_at}",
        )

    def _still_withdrawn(self, ids: Sequence[str]) -> set[str]:
        """The Labels among ``ids`` that stay withdrawn. Where somebody deletes a newer answer their older one holds
        again; what was withdrawn here, by a revision or a revocation, is not brought back by reading it again.
        """
        reasons = self.book.withdrawn(ids)
        again = [label for label, why in reasons.items() if why in (SUPERSEDED, TAKEN_BACK)]
        self.book.restore_labels(again, RESTORED)
        return set(reasons) - set(again)

    def _reopen(self) -> None:
        """Keep a task open until as many different people as it wants have answered or skipped it."""
        for showing in [
            s for s, now in self.moved.items() if now in ("done", "skipped") and s in self.wanted
        ]:
            authors = {author for s, author in self.labels if s == showing}
            if len(authors) + (showing in self.told) < self.wanted[showing]:
                self.moved[showing] = "open"

    def write(self) -> None:
        """Store what was taken since the last time, and count what is new and what was withdrawn."""
        before = {label for label, _ in self.labels.values()}
        ids = self.book.add_labels([label for label, _ in self.new])
        standing = set(ids) - self._still_withdrawn(ids)
        for label, (_, answer) in zip(ids, self.new, strict=True):
            if label in standing:
                key = (answer.showing, answer.author)
                if key in self.labels and self.labels[key][0] != label:
                    self.gone.append(self.labels[key][0])
                self.labels[key] = (label, answer)
        self.totals["added"] += len(standing - before)
        self.totals["withdrawn"] += self.book.withdraw_labels(self.gone, TAKEN_BACK)
        gone = set(self.gone)
        self.labels = {key: told for key, told in self.labels.items() if told[0] not in gone}
        self._reopen()
        for state in sorted(set(self.moved.values())):
            changed = [s for s, now in self.moved.items() if now == state and self.states[s] != state]
            if changed:
                self.book.finish_tasks([self.tasks[s].id for s in changed], state)
        self.states |= self.moved
        self._clear()
