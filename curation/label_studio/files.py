"""Tasks and answers as files, for people without a server: Label Studio's JSON, or a form that a spreadsheet
opens.

Whatever the file (tasks filled in by hand, an export of a real server as JSON, JSON-MIN or CSV, a form with
one answer a row), it is read into the same tasks with annotations, so answers mean the same wherever they
come from. Refuses what it cannot read by line number; never guesses an answer.
"""

from __future__ import annotations

import csv
import io
import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from curation.errors import UsageError, storage_errors
from curation.label_studio.answers import PersonLabel, from_annotations, task_id
from curation.label_studio.channel import Pulled
from curation.label_studio.interface import COMPLETION, SIDES
from curation.label_studio.tasks import ANSWER, IDENTITY, PROMPT, Question, suggested
from curation.records import digest

FORM = (*IDENTITY, PROMPT, "suggestion", ANSWER, "annotator", "skip")
FORM_KINDS = (
    "edit",
    "accept",
    "class",
    "compare",
)  # one cell holds an answer to them; not grades, and not marks
_TABLES = {".csv": ",", ".tsv": "\t"}
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def write_tasks(path: Path, tasks: Iterable[Mapping[str, Any]]) -> int:
    """Write tasks as Label Studio reads them: a list for ``.json``, one a line otherwise. Gives their number.

    The file appears whole or not at all.
    """
    rows = list(tasks)
    if path.suffix == ".json":
        text = json.dumps(rows, ensure_ascii=False, indent=1) + "\n"
    else:
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    _replace(path, text)
    return len(rows)


def write_form(path: Path, tasks: Iterable[Mapping[str, Any]]) -> int:
    """Write one row per task with an empty ``answer`` to fill in, as CSV, TSV or JSON lines; counted."""
    return _write_rows(path, [form_row(task) for task in tasks])


def form_row(task: Mapping[str, Any]) -> dict[str, str]:
    """A task as a row of the form, with what is judged where something is; who answers writes in ``answer``, or anything
    in ``skip``.
    """
    data = task["data"]
    judged = [name for name in (COMPLETION, *SIDES) if name in data]
    row = {name: str(data.get(name, "")) for name in (*IDENTITY, PROMPT, *judged)}
    return row | {"suggestion": suggested(task) or "", ANSWER: "", "annotator": "", "skip": ""}


def read_tasks(path: Path) -> list[dict[str, Any]]:
    """The tasks of a file with the annotations it holds, in file order; rows of one task are brought
    together.

    An empty file gives none. Raises :class:`UsageError` with the line that cannot be read.
    """
    text = _text(path)
    rows = _table_rows(text, path) if path.suffix.lower() in _TABLES else _json_rows(text, path)
    tasks: dict[str, dict[str, Any]] = {}
    for line, row in rows:
        task = row if "data" in row else _from_row(row, f"{path}:{line}")
        known = tasks.setdefault(task_id(task), task)
        if known is not task:
            known["annotations"] = [*known.get("annotations", []), *task.get("annotations", [])]
    return list(tasks.values())


def read_answers(
    path: Path, question: Question, *, author: str = "", held: Iterable[PersonLabel] = ()
) -> list[PersonLabel]:
    """The latest answer of each person in the file; see
    :func:`~curation.label_studio.answers.from_annotations`.

    ``author`` is whoever filled in the answers that name nobody. A row without an answer is not answered yet;
    where ``held`` has one, it was taken back.
    """
    tasks = [_signed(task, author) for task in read_tasks(path)]
    held = list(held)
    by_task: dict[str, list[PersonLabel]] = {}
    for label in held:
        by_task.setdefault(label.task, []).append(label)
    return [
        label for task in tasks for label in from_annotations(task, question, by_task.get(task_id(task), ()))
    ]


@dataclass(frozen=True)
class FileChannel:
    """A file as the way to people and back. Pushing adds to it and keeps what has been filled in.

    ``.csv`` and ``.tsv`` are forms, ``.json`` and ``.jsonl`` are Label Studio tasks, or a form where ``form``
    is set.
    """

    path: Path
    question: Question
    author: str = ""
    form: bool = False

    def push(self, tasks: Sequence[Mapping[str, Any]]) -> dict[str, str]:
        """Add the tasks that the file does not hold yet. Gives the file's id of each showing."""
        table = self.form or self.path.suffix.lower() in _TABLES
        old = self._rows() if self.path.exists() else []
        known = {_showing(row) for row in old}
        new = [task for task in tasks if task["data"]["showing"] not in known]
        if table:
            _write_rows(self.path, [*old, *(form_row(task) for task in new)])
        else:
            write_tasks(self.path, [*old, *new])
        return {task["data"]["showing"]: task["data"]["showing"] for task in tasks}

    def pull(self, since: str | None = None, *, held: Iterable[PersonLabel] = ()) -> Iterator[Pulled]:
        """All answers of the file at once; nothing where its content is what ``since`` saw."""
        watermark = digest(_text(self.path))
        if watermark == since:
            return
        answers = read_answers(self.path, self.question, author=self.author, held=held)
        tasks = tuple(task_id(task) for task in read_tasks(self.path))
        yield Pulled(tuple(answers), tasks, watermark)

    def vanished(self, tasks: Sequence[str]) -> tuple[str, ...]:
        """None: a row that somebody left out of a file says nothing about its answer."""
        return ()

    def _rows(self) -> list[dict[str, Any]]:
        text = _text(self.path)
        if self.path.suffix.lower() in _TABLES:
            return [row for _, row in _table_rows(text, self.path)]
        return [row for _, row in _json_rows(text, self.path)]


def _showing(row: Mapping[str, Any]) -> str:
    return str(row.get("data", row).get("showing", ""))


def _signed(task: dict[str, Any], author: str) -> dict[str, Any]:
    annotations = [
        note if note.get("completed_by") not in (None, "") else {**note, "completed_by": author}
        for note in task.get("annotations", [])
        if isinstance(note, Mapping)
    ]
    return {**task, "annotations": annotations}


def _from_row(row: Mapping[str, Any], where: str) -> dict[str, Any]:
    """A row of a form, or of an export as JSON-MIN or CSV, as a task with at most one annotation."""
    if not row.get("record"):
        raise UsageError(
            "this row names no record",
            where=where,
            next="Keep the record column as it was written; nothing else says what the answer belongs to",
        )
    data = {name: row[name] for name in (*IDENTITY, PROMPT) if row.get(name) not in (None, "")}
    task: dict[str, Any] = {"data": data, "annotations": []}
    if row.get("id") not in (None, ""):
        task["id"] = row["id"]
    texts, skipped = _texts(row.get(ANSWER)), str(row.get("skip") or "").strip()
    if texts or skipped:
        task["annotations"] = [
            {
                "id": row.get("annotation_id"),
                "completed_by": row.get("annotator"),
                "was_cancelled": bool(skipped),
                "lead_time": _number(row.get("lead_time")),
                "updated_at": row.get("updated_at"),
                "result": [{"from_name": ANSWER, "to_name": PROMPT, "value": {"text": texts}}],
            }
        ]
    return task


def _texts(answer: Any) -> list[str]:
    if isinstance(answer, Mapping):
        answer = answer.get("text", answer.get("choices", []))
    found = answer if isinstance(answer, list) else [answer]
    return [str(text) for text in found if text is not None and str(text).strip()]


def _number(value: Any) -> float | None:
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def _text(path: Path) -> str:
    try:
        # Spreadsheets put a byte order mark first; a carriage return inside an answer stays one.
        with storage_errors(path), path.open(encoding="utf-8-sig", newline="") as lines:
            return lines.read()
    except FileNotFoundError:
        raise UsageError("there is no such file", where=str(path), next="Name the file of answers") from None
    except UnicodeDecodeError as error:
        raise UsageError(
            f"not UTF-8 at byte {error.start}", where=str(path), next="Save it as UTF-8 and run again"
        ) from None


def _json_rows(text: str, path: Path) -> list[tuple[int, dict[str, Any]]]:
    if not text.strip():
        return []
    if text.lstrip()[0] == "[":
        rows = _parsed(text, path, 1)
        return [(number, _object(row, path, number)) for number, row in enumerate(rows, 1)]
    if path.suffix == ".json":
        return [(1, _object(_parsed(text, path, 1), path, 1))]
    lines = ((number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip())
    return [(number, _object(_parsed(line, path, number), path, number)) for number, line in lines]


def _parsed(text: str, path: Path, line: int) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise UsageError(
            f"not valid JSON: {error.msg}",
            where=f"{path}:{line + error.lineno - 1}",
            next="Mend the line, or export the file again",
        ) from None


def _object(row: Any, path: Path, number: int) -> dict[str, Any]:
    if isinstance(row, dict):
        return row
    raise UsageError("this is no task", where=f"{path}:{number}", next="Write one JSON object per task")


def _table_rows(text: str, path: Path) -> list[tuple[int, dict[str, Any]]]:
    head = text.split("\n", 1)[0]
    delimiter = max(",;\t", key=head.count)  # spreadsheets write what their country uses
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    rows = []
    try:
        for row in reader:
            if None in row or None in row.values():
                raise UsageError(
                    "this row has another number of cells than the header",
                    where=f"{path}:{reader.line_num}",
                    next="Mend the row; a text with the separator or a line break in it stands in quotes",
                )
            rows.append((reader.line_num, {name: _unguarded(value) for name, value in row.items()}))
    except csv.Error as error:
        raise UsageError(
            f"not a table: {error}", where=f"{path}:{reader.line_num}", next="Save it as CSV and run again"
        ) from None
    return rows


def _write_rows(path: Path, rows: list[dict[str, Any]]) -> int:
    delimiter = _TABLES.get(path.suffix.lower())
    if delimiter is None:
        _replace(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        return len(rows)
    judged = [name for name in (COMPLETION, *SIDES) if any(name in row for row in rows)]
    head = [*FORM[: FORM.index("suggestion")], *judged, *FORM[FORM.index("suggestion") :]]
    names = list(dict.fromkeys([*head, *(name for row in rows for name in row)]))
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, names, delimiter=delimiter, restval="")
    writer.writeheader()
    writer.writerows({name: _guarded(value) for name, value in row.items()} for row in rows)
    _replace(path, "\ufeff" + out.getvalue())
    return len(rows)


def _guarded(value: Any) -> str:
    """A cell that a spreadsheet shows as text: one that starts like a formula gets an apostrophe in front."""
    text = str(value)
    return (
        f"'{text}"
        if text.startswith(_FORMULA) or (text[:1] == "'" and text[1:].startswith((*_FORMULA, "'")))
        else text
    )


def _unguarded(value: str) -> str:
    return value[1:] if value[:1] == "'" and value[1:].startswith((*_FORMULA, "'")) else value


def _replace(path: Path, text: str) -> None:
    """Write the whole file beside its place, make it durable, and move it there."""
    with storage_errors(path, len(text)):
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "w", encoding="utf-8", newline="") as out:
                out.write(text)
                out.flush()
                os.fsync(out.fileno())
            os.replace(name, path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
