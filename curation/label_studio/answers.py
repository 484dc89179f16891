"""Annotations of a task as labels of people: the latest state of each person on each task. Pure.

An edit is the newest state, a deletion becomes a tombstone, a skip is an opinion about the task and no answer; it says
why where its author did. An answer that cannot be used is returned with the reason and without a value; none is
dropped in silence.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from curation.errors import UsageError
from curation.label_studio.interface import (
    ANSWER,
    CANNOT,
    COMPLETION,
    GRADES,
    REASONS,
    WHY,
    Question,
    choices_of,
    criterion,
)
from curation.label_studio.tasks import nearest
from curation.records import canonical_json

_KEYS = ("text", "choices")


@dataclass(frozen=True)
class PersonLabel:
    """What one person last said about one task.

    ``value`` is ``None`` for a skip, for a tombstone and where ``problem`` says why the answer cannot be
    used. ``author`` is the person's id on the other side, not a name in the ledger. ``lead_time`` is in
    seconds, ``updated_at`` ISO 8601 in UTC, empty where the other side gave none. ``task`` and ``annotation``
    are the ids on the other side. ``why`` is why a task was skipped (one of ``REASONS``, or empty) or an answer
    rejected, in its author's words. Grades and marks are canonical JSON: ``{"criterion": 4}``, and
    ``[{"start", "end", "type", "text"}]`` with offsets in Unicode code points.
    """

    record: str
    showing: str
    question: str
    question_version: int
    author: str
    value: str | None
    task: str
    annotation: str
    updated_at: str = ""
    lead_time: float | None = None
    skipped: bool = False
    deleted: bool = False
    ground_truth: bool = False
    origin: str = ""
    problem: str = ""
    why: str = ""

    @property
    def usable(self) -> bool:
        """Whether this is an answer."""
        return self.value is not None


def from_annotations(
    task: Mapping[str, Any], question: Question, held: Iterable[PersonLabel] = ()
) -> list[PersonLabel]:
    """The latest state of each person on ``task``, sorted by author, and tombstones for what ``held`` has too
    much.

    ``task`` is the JSON of a task with its annotations, as the server's task list and its exports give it.
    ``held`` are the labels taken from it before. A task without annotations gives none (but tombstones).
    Raises :class:`UsageError` where ``task`` is not the JSON of a task.
    """
    latest: dict[str, PersonLabel] = {}
    for annotation in _annotations(task):
        label = _label(task, annotation, question)
        other = latest.get(label.author)
        if other is None or _age(label) > _age(other):
            latest[label.author] = label
    labels = [latest[author] for author in sorted(latest)]
    return labels + tombstones(held, labels, [task_id(task)])


def tombstones(
    held: Iterable[PersonLabel], current: Iterable[PersonLabel], tasks: Iterable[str]
) -> list[PersonLabel]:
    """One tombstone for each person whose label in ``held`` is gone from ``tasks``: those are the tasks just
    read.

    Where the person has another label on the same task, that one has replaced it, and there is no tombstone.
    """
    read = set(tasks)
    alive = {(label.task, label.author) for label in current}
    gone = {
        (old.task, old.author): old
        for old in held
        if old.task in read and not old.deleted and (old.task, old.author) not in alive
    }
    return [
        replace(old, value=None, skipped=False, deleted=True, problem="") for _, old in sorted(gone.items())
    ]


def task_id(task: Mapping[str, Any]) -> str:
    """The task's id on the other side; where it has none (a file filled in by hand), the showing's or
    record's.
    """
    data = task.get("data", {})
    return str(task.get("id") or data.get("showing") or data.get("record", ""))


def utc(text: str) -> str:
    """A time of the server as ISO 8601 in UTC with microseconds, so that times sort as texts.

    Raises ``ValueError`` for anything else.
    """
    moment = datetime.fromisoformat(text)
    moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _annotations(task: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The annotations of ``task``, oldest first."""
    found = task.get("annotations", task.get("completions", []))
    if not isinstance(task.get("data"), Mapping) or not isinstance(found, list):
        raise UsageError(
            "this is no task with annotations",
            where=f"task {task.get('id', '?')}",
            next="Export the project as JSON",
        )
    return [item for item in found if isinstance(item, Mapping)]


def _label(task: Mapping[str, Any], annotation: Mapping[str, Any], question: Question) -> PersonLabel:
    data = task["data"]
    said = _said(annotation)
    why = next(iter(said.get(CANNOT, ())), "")
    # Whoever says why they cannot answer and then presses Submit has skipped the task all the same.
    skipped = bool(annotation.get("was_cancelled")) or why in REASONS
    value, problem = (None, "") if skipped else _value(annotation, said, data, question)
    author, no_author = _author(annotation)
    foreign = _foreign(data, question)
    lead = annotation.get("lead_time")
    return PersonLabel(
        record=str(data.get("record") or ""),
        showing=str(data.get("showing") or ""),
        question=str(data.get("question") or question.name),
        question_version=_version(data.get("question_version"), question),
        author=author,
        value=None if foreign or no_author else value,
        task=task_id(task),
        annotation=str(annotation.get("id") or f"{task_id(task)}:{author}"),
        updated_at=_time(annotation),
        lead_time=float(lead) if isinstance(lead, int | float) and not isinstance(lead, bool) else None,
        skipped=skipped,
        ground_truth=bool(annotation.get("ground_truth")),
        origin=_origin(annotation),
        problem=foreign or no_author or problem,
        why=why if skipped else "\n".join(said.get(WHY, ())).strip(),
    )


def _age(label: PersonLabel) -> tuple[str, int, str]:
    """Sorts by time, then by the id that the server gave; ids grow there."""
    return (label.updated_at, int(label.annotation) if label.annotation.isdecimal() else 0, label.annotation)


def _time(annotation: Mapping[str, Any]) -> str:
    text = annotation.get("updated_at") or annotation.get("created_at") or ""
    try:
        return utc(str(text)) if text else ""
    except ValueError:
        return ""


def _author(annotation: Mapping[str, Any]) -> tuple[str, str]:
    """Who answered, or why that is unknown. Exports give a number, an e-mail address, or both."""
    who = annotation.get("completed_by")
    if isinstance(who, Mapping):
        who = who.get("id") or who.get("email")
    return (str(who), "") if who not in (None, "") else ("", "nobody is named in completed_by")


def _origin(annotation: Mapping[str, Any]) -> str:
    regions = [r for r in annotation.get("result") or () if isinstance(r, Mapping)]
    return next((str(r["origin"]) for r in regions if r.get("from_name") == ANSWER and r.get("origin")), "")


def _version(value: Any, question: Question) -> int:
    return int(value) if str(value).isdecimal() else question.version


def _foreign(data: Mapping[str, Any], question: Question) -> str:
    """Why the task is none of ours; empty where it is. A form may leave out what its file says anyway."""
    if not data.get("record"):
        return "the task was not pushed from here: its data names no record"
    asked = data.get("question") or question.name
    return "" if asked == question.name else f"the task asks {asked!r}, not {question.name!r}"


def _value(
    annotation: Mapping[str, Any], said: Mapping[str, list[str]], data: Mapping[str, Any], question: Question
) -> tuple[str | None, str]:
    """The answer, or why there is none. Several texts of one answer are its lines."""
    if question.kind == "rubric":
        return _grades(said, question)
    if question.kind == "spans":
        return _spans(annotation, str(data.get(COMPLETION) or ""))
    value = "\n".join(said.get(ANSWER, ()))
    if not value.strip():
        return None, "the answer is empty"
    allowed = choices_of(question)
    # A class of a former version stays what was said; the question tells what it counts as.
    if allowed and value not in allowed and value not in question.mapping:
        return None, f"{value!r} is no class of the question{nearest(value, allowed)}"
    return value, ""


def _said(annotation: Mapping[str, Any]) -> dict[str, list[str]]:
    """What each control of the interface holds."""
    found: dict[str, list[str]] = {}
    for region in annotation.get("result") or ():
        if isinstance(region, Mapping):
            found.setdefault(str(region.get("from_name")), []).extend(_texts(region.get("value")))
    return found


def _grades(said: Mapping[str, list[str]], question: Question) -> tuple[str | None, str]:
    grades = {}
    for index, name in enumerate(question.classes):
        given = said.get(criterion(index), [])
        if len(given) != 1 or given[0] not in GRADES:
            return None, f"the criterion {name!r} has no grade"
        grades[name] = int(given[0])
    return canonical_json(grades).decode(), ""


def _spans(annotation: Mapping[str, Any], shown: str) -> tuple[str | None, str]:
    """The marks on ``shown``, in its order; an empty list says that there is nothing to mark."""
    spans = []
    for region in annotation.get("result") or ():
        if not isinstance(region, Mapping) or region.get("from_name") != ANSWER:
            continue
        value = region.get("value")
        place = _place(value, shown) if isinstance(value, Mapping) else None
        if place is None:
            return None, "a mark lies outside the text that was shown"
        start, end = place
        kinds = region["value"].get("labels") or ["OTHER"]
        spans.append({"start": start, "end": end, "type": str(kinds[0]), "text": shown[start:end]})
    spans.sort(key=lambda span: (span["start"], span["end"], span["type"]))
    return canonical_json(spans).decode(), ""


def _place(value: Mapping[str, Any], shown: str) -> tuple[int, int] | None:
    """Start and end of a mark in code points. Browsers count UTF-16 units: the marked text tells which it was."""
    try:
        start, end = int(value["start"]), int(value["end"])
    except (KeyError, TypeError, ValueError):
        return None
    text = value.get("text")
    if text is None or shown[start:end] == text:
        return (start, end) if 0 <= start < end <= len(shown) else None
    units = shown.encode("utf-16-le")
    try:
        before, marked = (
            units[: 2 * start].decode("utf-16-le"),
            units[2 * start : 2 * end].decode("utf-16-le"),
        )
    except UnicodeDecodeError:
        return None
    return (len(before), len(before) + len(marked)) if marked and marked == text else None


def _texts(value: Any) -> list[str]:
    if not isinstance(value, Mapping):
        return []
    found: Any = next((value[key] for key in _KEYS if isinstance(value.get(key), list | str)), [])
    return [found] if isinstance(found, str) else [str(text) for text in found]
