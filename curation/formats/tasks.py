"""Label Studio tasks and exports as files: a task's data is a record, its annotations are completions.

Predictions are nobody's answer and are not read. What the server adds (ids, times, users) is dropped; it
reaches the ledger through the server, where an annotation is somebody's Label.
"""

from __future__ import annotations

from typing import Any

from curation.formats.rows import Damage, Row
from curation.records import prompt_text


def unwrap(task: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The data of a task, and one answer per annotation that was not cancelled and holds choices or text.

    Raises :class:`Damage` where the annotations are not as Label Studio exports them.
    """
    found = task.get("annotations", task.get("completions")) or []
    if type(found) is not list:
        raise Damage("wrong type", "annotations is not a list")
    return task["data"], [answer for item in found if (answer := _answer(item)) is not None]


def _answer(annotation: Any) -> str | None:
    if type(annotation) is int:  # an export without expanded annotations holds their ids
        return None
    if type(annotation) is not dict or type(annotation.get("result") or []) is not list:
        raise Damage("wrong type", "an annotation is not an object with a list of results")
    if annotation.get("was_cancelled"):
        return None
    texts = [text for result in annotation.get("result") or [] for text in _texts(result)]
    return "\n".join(texts) if texts else None


def _texts(result: Any) -> list[str]:
    """The texts of one result: those typed, or the choices joined by commas; none for any other kind."""
    if type(result) is not dict or type(result.get("value") or {}) is not dict:
        raise Damage("wrong type", "a result is not an object with a value")
    value = result.get("value") or {}
    if result.get("type") == "textarea":
        return _strings(value.get("text"))
    return [", ".join(choices)] if (choices := _strings(value.get("choices"))) else []


def _strings(value: Any) -> list[str]:
    listed = [value] if type(value) is str else value or []
    if type(listed) is not list or not all(type(text) is str for text in listed):
        raise Damage("wrong type", "an annotation holds something other than text")
    return listed


def task_of(row: Row) -> dict[str, Any]:
    """A row as a task: our own fields in ``data``, and its completion as a prediction, so that the editor
    shows it.

    Gold is left out: whoever opens the task would see it.
    """
    data: dict[str, Any] = {"item_id": row.key} if row.key is not None else {}
    data["prompt"] = prompt_text(row.messages)
    data["messages"] = row.messages
    for name in ("completion", "group", "lang", "time"):
        if (value := getattr(row, name)) is not None:
            data[name] = value
    clash = data.keys() & row.tags.keys()
    if clash:
        raise Damage("not expressible", f"the record's own field {min(clash)} has a meaning in a task")
    task: dict[str, Any] = {"data": {**data, **row.tags}}
    if row.completion is not None:
        task["predictions"] = [_prediction(row.completion)]
    return task


def _prediction(text: str) -> dict[str, Any]:
    place = {"from_name": "completion", "to_name": "prompt", "type": "textarea"}
    return {"model_version": "source", "result": [{**place, "value": {"text": [text]}}]}
