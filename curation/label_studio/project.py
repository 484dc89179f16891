"""One project of a Label Studio server as a way to people and back: what is pushed, what has changed, what is gone.

Tasks are looked for before they are created and created once, so that a lost answer makes no second task. Changes are
read by the time of the last one, page by page, so that a pull goes on where it stopped. What is sent and received, and
what of it is believed, is :mod:`~curation.label_studio.client`'s.
"""

from __future__ import annotations

import html
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any
from xml.etree import ElementTree

from curation.errors import RemoteUnavailable, UsageError
from curation.label_studio.answers import PersonLabel, from_annotations, task_id, utc
from curation.label_studio.channel import Pulled
from curation.label_studio.client import LabelStudio, RemoteRefused
from curation.label_studio.interface import Question, label_config
from curation.label_studio.tasks import validate_task
from curation.records import digest

LOOK_UP = 100  # showings asked for at once: their ids travel in the URL
IMPORT = 1_000  # tasks sent at once
OVERLAP = timedelta(
    seconds=60
)  # the server sets a time before it commits; a slow commit must not be passed by
EPOCH = "1970-01-01T00:00:00.000000Z"
TITLE = 50  # characters, the server's limit


def ensure_project(
    client: LabelStudio, question: Question, *, title: str = "", passages: bool = False, overlap: int = 1
) -> int:
    """The id of the project that asks ``question``; made where there is none, its interface brought up to date.

    ``title`` defaults to the question's name. Raises :class:`RemoteUnavailable` where the server refuses the
    interface, as it does when a class that somebody has used would go.
    """
    wanted = title_of(title or question.name)
    settings = project_settings(question, passages, overlap)
    found = client.find_project(wanted)
    if found is None:
        return client.make_project(wanted, settings)
    number = int(found["id"])
    kept = project_settings(question, passages, overlap, retired=True) if question.mapping else settings
    if not (_same_settings(found, settings) or _same_settings(found, kept)):
        try:
            client.update_project(number, settings)
        except RemoteRefused:
            if kept is settings:
                raise
            client.update_project(number, kept)  # a class that is gone has been used: it stays, and says so
    return number


def channel(
    client: LabelStudio,
    question: Question,
    *,
    title: str = "",
    passages: bool = False,
    overlap: int = 1,
    page: int = 500,
) -> ProjectChannel:
    """The way to the people who work in the question's project. ``page`` is the number of tasks pulled at once,
    ``overlap`` how many different people each task is dealt to.
    """
    number = ensure_project(client, question, title=title, passages=passages, overlap=overlap)
    return ProjectChannel(client, number, question, page)


def every_task(found: ProjectChannel) -> Iterator[list[dict[str, Any]]]:
    """All tasks of a project with their annotations, page by page."""
    return found._changed(EPOCH)


@dataclass(frozen=True)
class ProjectChannel:
    """One project of a server as a way to people and back; see
    :class:`~curation.label_studio.channel.Channel`.
    """

    client: LabelStudio
    project: int
    question: Question
    page: int = 500
    # A project that somebody else made names its fields and controls otherwise: in and out are told here.
    outward: Callable[[Mapping[str, Any]], Mapping[str, Any]] = field(default=dict, repr=False)
    inward: Callable[[dict[str, Any]], dict[str, Any]] = field(default=dict, repr=False)

    def push(self, tasks: Sequence[Mapping[str, Any]]) -> dict[str, str]:
        """Create the tasks that the project does not hold yet, and nothing twice.

        All are checked before any is sent. Raises :class:`RemoteUnavailable` where some are missing at the
        end; those that arrived are found by the next call.
        """
        for task in tasks:
            validate_task(task, self.question)
        wanted = {str(task["data"]["showing"]): self.outward(task) for task in tasks}
        known = self._look(list(wanted)) if self.client.task_count(self.project) else {}
        missing = [showing for showing in wanted if showing not in known]
        for batch in _batches(missing, IMPORT):
            known |= self._create({showing: wanted[showing] for showing in batch})
        return {showing: known[showing] for showing in wanted}

    def _create(self, tasks: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
        failure: RemoteUnavailable | None = None
        try:
            ids = self.client.import_tasks(self.project, list(tasks.values()))
            numbered = dict(zip(tasks, ids, strict=False))
            ends = [next(iter(tasks)), list(tasks)[-1]]
            # The ids come in the order of the tasks; both ends are looked at before that is believed.
            if len(ids) == len(tasks) and self._look(ends) == {
                showing: numbered[showing] for showing in ends
            }:
                return numbered
        except RemoteUnavailable as error:
            failure = error  # the tasks may be there all the same: only looking tells
        arrived = self._look(list(tasks))
        absent = len(tasks) - len(arrived)
        if absent and failure:
            raise failure
        if absent:
            raise RemoteUnavailable(
                f"{absent} of {len(tasks)} tasks did not arrive",
                where=self.client.url,
                next="The server may still be importing. Run the same command again in a minute",
            )
        return arrived

    def _look(self, showings: Sequence[str]) -> dict[str, str]:
        """The remote ids of those showings that have a task; the oldest where there are several."""
        found: dict[str, str] = {}
        for batch in _batches(showings, LOOK_UP):
            query = {"filters": _filter("data.showing", "in_list", "List", batch), "ordering": ["tasks:id"]}
            for task in self._all(query):
                found.setdefault(str(task["data"].get("showing")), task_id(task))
        return found

    def _all(self, query: Mapping[str, Any], *, annotations: bool = False) -> Iterator[dict[str, Any]]:
        page = 1
        while True:
            got = self.client.tasks(self.project, query, page=page, size=self.page, annotations=annotations)
            yield from got.tasks
            if page * self.page >= got.total:
                return
            page += 1

    def pull(self, since: str | None = None, *, held: Iterable[PersonLabel] = ()) -> Iterator[Pulled]:
        """Answers by the time of their tasks' last change, in pages; see the protocol.

        The last minute before ``since`` is read again, so the same answer may come twice; it is the same
        label.
        """
        by_task: dict[str, list[PersonLabel]] = {}
        for label in held:
            by_task.setdefault(label.task, []).append(label)
        start = EPOCH if since is None else _earlier(since)
        for tasks in self._changed(start):
            answers = [
                answer
                for task in tasks
                for answer in from_annotations(
                    self.inward(task), self.question, by_task.get(task_id(task), ())
                )
            ]
            yield Pulled(tuple(answers), tuple(task_id(t) for t in tasks), utc(tasks[-1]["updated_at"]))

    def _changed(self, start: str) -> Iterator[list[dict[str, Any]]]:
        """Pages of tasks changed at ``start`` or later, oldest change first, each task once unless it changes
        again.

        The next page starts at the time where the last one ended, not at a row number: rows move while people
        work.
        """
        seen: dict[str, str] = {}
        page = 1
        while True:
            query = {
                "filters": _filter("updated_at", "greater_or_equal", "Datetime", start),
                "ordering": ["tasks:updated_at"],
            }
            got = self.client.tasks(self.project, query, page=page, size=self.page, annotations=True)
            fresh = [task for task in got.tasks if seen.get(task_id(task)) != task["updated_at"]]
            seen |= {task_id(task): task["updated_at"] for task in fresh}
            if fresh:
                yield fresh
            if page * self.page >= got.total:
                return
            last = utc(got.tasks[-1]["updated_at"])
            # More tasks than a page holds may share one time (a bulk change): only then go on by page number.
            start, page = (last, 1) if last > start else (start, page + 1)

    def withdraw(self, tasks: Sequence[str]) -> tuple[str, ...]:
        """Delete those of the tasks that nobody has touched, and give them; what has an answer stays.

        A task that is gone already counts as deleted.
        """
        touched: set[str] = set()
        for batch in _batches(list(tasks), LOOK_UP):
            ids = [int(number) for number in batch if number.isdecimal()]
            query = {"filters": _filter("id", "in_list", "List", ids), "ordering": ["tasks:id"]}
            touched |= {task_id(task) for task in self._all(query, annotations=True) if task["annotations"]}
        free = [number for number in tasks if number not in touched]
        there = set(free) - set(self.vanished(free))
        for number in free:
            if number in there:
                self.client.delete_task(int(number))
        return tuple(free)

    def vanished(self, tasks: Sequence[str]) -> tuple[str, ...]:
        """Which of these tasks were deleted on the server: a deleted task is on no page of :meth:`pull`."""
        there: set[str] = set()
        for batch in _batches(list(tasks), LOOK_UP):
            ids = [int(number) for number in batch if number.isdecimal()]
            query = {"filters": _filter("id", "in_list", "List", ids), "ordering": ["tasks:id"]}
            there |= {task_id(task) for task in self._all(query)}
        return tuple(number for number in tasks if number not in there)


def title_of(name: str) -> str:
    """The project's title; a long name keeps its beginning and is told apart by its digest."""
    whole = f"Tilth: {name}"
    return whole if len(whole) <= TITLE else f"{whole[: TITLE - 9]} {digest(whole)[:8]}"


def project_settings(
    question: Question, passages: bool = False, overlap: int = 1, *, retired: bool = False
) -> dict[str, Any]:
    """The project's settings. Instructions are rendered as HTML there, so the guideline is escaped.

    The guideline opens on the page; as a dialog it would cover the page whenever it is opened.
    """
    guideline = question.guideline.strip()
    return {
        "label_config": label_config(question, passages=passages, retired=retired),
        "expert_instruction": html.escape(guideline).replace("\n", "<br>"),
        "show_instruction": False,
        "show_skip_button": True,
        "enable_empty_annotation": True,  # else Submit waits for a click on Add; the control is required
        # A suggested text stands in the box that people write in; as a prediction it would be a line with a hidden pencil.
        "show_collab_predictions": question.kind != "edit",
        "sampling": "Sequential sampling",  # the order of the push is the order of the queue
        "maximum_annotations": overlap,  # how many different people a task is dealt to
    }


def _same_settings(project: Mapping[str, Any], settings: Mapping[str, Any]) -> bool:
    """Whether a project of the list needs no change; the server tidies the instruction, so its text is
    compared.
    """
    same = all(project.get(name) == value for name, value in settings.items() if not isinstance(value, str))
    return (
        same
        and project.get("sampling") == settings["sampling"]
        and _plain(project.get("expert_instruction")) == _plain(settings["expert_instruction"])
        and _same_xml(str(project.get("label_config")), settings["label_config"])
    )


def _plain(text: Any) -> str:
    return " ".join(html.unescape(str(text or "")).replace('"', " ").split())


def _same_xml(a: str, b: str) -> bool:
    try:
        return ElementTree.canonicalize(a, strip_text=True) == ElementTree.canonicalize(b, strip_text=True)
    except ElementTree.ParseError:
        return a == b


def _filter(column: str, operator: str, kind: str, value: Any) -> dict[str, Any]:
    item = {"filter": f"filter:tasks:{column}", "operator": operator, "type": kind, "value": value}
    return {"conjunction": "and", "items": [item]}


def _earlier(since: str) -> str:
    try:
        moment = datetime.fromisoformat(utc(since))
    except ValueError:
        raise UsageError(
            f"{since!r} is no time of this server", where="watermark", next="Pull once without a watermark"
        ) from None
    return utc((moment - OVERLAP).isoformat())


def _batches(items: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
