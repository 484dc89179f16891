"""A showing of a record as a task, and an answer as a region of an annotation. Pure: nothing here opens a file or a
socket.

A blind task carries no suggestion, no explanation, no confidence and nothing to sort by. What is judged (an answer to
accept, two to compare) is part of the question and is shown to everybody.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from curation.errors import UsageError
from curation.label_studio.interface import (
    ANSWER,
    CANNOT,
    NOTE,
    PASSAGES,
    PROMPT,
    SUGGESTION,
    WORD_JOINER,
    Question,
    choices_of,
    control_of,
    is_shown_by,
    label_config,
)
from curation.records import canonical_json, digest

__all__ = ["ANSWER", "PROMPT", "WORD_JOINER", "Question", "Showing", "Suggestion", "label_config", "to_task"]

IDENTITY = ("record", "showing", "question", "question_version")
# A project fills in suggestions of the one model version that its first import named. Were this the model
# that proposed, suggestions of later models would stay hidden; who proposed stands in ``data`` instead.
MODEL_VERSION = "suggestion"
NO_PASSAGE = "No passage was found for this prompt."
BLIND_NOTE = "No suggestion for this one: please answer from scratch."


class Showing(Protocol):
    """One record on somebody's screen: its own id, and whether it is shown without a suggestion."""

    @property
    def id(self) -> str: ...
    @property
    def record(self) -> str: ...
    @property
    def question(self) -> str: ...
    @property
    def question_version(self) -> int: ...
    @property
    def blind(self) -> bool: ...


@dataclass(frozen=True)
class Suggestion:
    """What a model proposes: the answer, who proposes it, its confidence between 0 and 1 where that is known, and why
    the record was chosen.
    """

    text: str
    by: str
    confidence: float | None = None
    why: str = ""


def to_task(
    showing: Showing,
    row: Mapping[str, Any],
    suggestion: Suggestion | None,
    question: Question,
    *,
    passages: Sequence[str] | None = None,
) -> dict[str, Any]:
    """The task of one showing: ``row`` holds ``record``, ``prompt`` and what is judged (``completion``, or ``a``, ``b``).

    ``data`` carries our ids, so that an answer finds its record wherever the task has travelled; a suggestion
    becomes a prediction whose score is its confidence. A blind showing drops the suggestion and its reason. ``passages``
    are put on the page as text; ``None`` where the page has no place for them. Raises :class:`UsageError` where showing,
    row and question do not belong together.
    """
    if row["record"] != showing.record or (question.name, question.version) != (
        showing.question,
        showing.question_version,
    ):
        raise UsageError(
            "the showing belongs to another record or question",
            where=f"showing {showing.id}",
            next="Make the task from the row and the question that were shown",
        )
    data: dict[str, Any] = {
        "record": showing.record,
        "showing": showing.id,
        "question": showing.question,
        "question_version": showing.question_version,
        PROMPT: row["prompt"],
        **{name: row[name] for name in is_shown_by(question)},
        NOTE: BLIND_NOTE,
    }
    if question.kind == "edit":
        data[SUGGESTION] = ""
    if passages is not None:
        data[PASSAGES] = "\n\n".join(passages) or NO_PASSAGE
    if showing.blind or suggestion is None:
        return {"data": data}
    data |= {NOTE: _note(suggestion), "suggested_by": suggestion.by}
    if question.kind == "edit":
        data[SUGGESTION] = suggestion.text
    if suggestion.confidence is not None:
        # A score may be lost when predictions change; this one stays.
        data["confidence"] = suggestion.confidence
    return {"data": data, "predictions": [_prediction(suggestion, question)]}


def _note(suggestion: Suggestion) -> str:
    """Who proposes, how sure it is, and why the record was chosen: one line for the page."""
    by = suggestion.by if len(suggestion.by) < 24 else f"model {suggestion.by[:8]}"
    sure = "" if suggestion.confidence is None else f", {suggestion.confidence:.0%} sure"
    why = f" Asked because: {suggestion.why}." if suggestion.why else ""
    return f"Suggested by {by}{sure}. Change whatever is not right.{why}"


def _prediction(suggestion: Suggestion, question: Question) -> dict[str, Any]:
    prediction = {"model_version": MODEL_VERSION, "result": [result(suggestion.text, question)]}
    return prediction if suggestion.confidence is None else prediction | {"score": suggestion.confidence}


def result(value: str, question: Question) -> dict[str, Any]:
    """One answer as a region of an annotation or a prediction; not for rubrics and spans, which have several."""
    kind, key, at = control_of(question)
    return {
        "id": digest(canonical_json([question.name, value]))[:10],
        "from_name": ANSWER,
        "to_name": at,
        "type": kind,
        "value": {key: [value]},
    }


def reason(why: str) -> dict[str, Any]:
    """Why a task was skipped, as a region of an annotation."""
    return {
        "id": digest(why)[:10],
        "from_name": CANNOT,
        "to_name": PROMPT,
        "type": "choices",
        "value": {"choices": [why]},
    }


def suggested(task: Mapping[str, Any]) -> str | None:
    """The text that a task suggests; ``None`` where it suggests nothing."""
    for prediction in task.get("predictions") or ():
        for region in prediction.get("result") or () if isinstance(prediction, Mapping) else ():
            value = region.get("value", {})
            for key in ("text", "choices"):
                if value.get(key):
                    return str(value[key][0])
    return None


def validate_task(task: Mapping[str, Any], question: Question) -> None:
    """Refuse a task that the interface of ``question`` could not show, before it is pushed.

    Raises one :class:`UsageError` that lists every problem.
    """
    problems = list(_problems(task, question))
    if problems:
        data = task.get("data")
        raise UsageError(
            "; ".join(problems),
            where=f"task of record {data.get('record', '?') if isinstance(data, Mapping) else '?'}",
            next="Make the task with to_task, from the question it asks",
        )


def _problems(task: Mapping[str, Any], question: Question) -> list[str]:
    data = task.get("data")
    if not isinstance(data, Mapping):
        return ["it has no data"]
    needed = (*IDENTITY, PROMPT, *is_shown_by(question))
    missing = [name for name in needed if data.get(name) in (None, "")]
    found = [f"data lacks {name}" for name in missing]
    version = data.get("question_version")
    # A showing of a former version still stands: its page is the newest, and old classes are read as what they became.
    if data.get("question") != question.name or not isinstance(version, int) or version > question.version:
        found.append(f"it does not ask {question.name} version {question.version}")
    found += [f"data.{name} {why}" for name, value in data.items() if (why := _unfit(value))]
    for prediction in task.get("predictions") or ():
        found += _prediction_problems(prediction, question)
    return found


def _unfit(value: Any) -> str:
    if not isinstance(value, str):
        return ""
    if "\0" in value:
        return "holds a NUL character, which the server's database cannot keep"
    if any("\ud800" <= c <= "\udfff" for c in value):
        return "holds half of a surrogate pair, which is not text"
    return ""


def _prediction_problems(prediction: Mapping[str, Any], question: Question) -> list[str]:
    version = prediction.get("model_version")
    found = [] if version == MODEL_VERSION else [f"model_version is {version!r}, which nobody would be shown"]
    score = prediction.get("score")
    if score is not None and not (_number(score) and 0 <= score <= 1):
        found.append(f"the score {score!r} is no confidence between 0 and 1")
    for region in prediction.get("result") or ():
        found += _region_problems(region, question)
    return found


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _region_problems(region: Mapping[str, Any], question: Question) -> list[str]:
    wanted = result("", question)
    found = [
        f"the prediction's {name} is {region.get(name)!r} where the interface has {wanted[name]!r}"
        for name in ("from_name", "to_name", "type")
        if region.get(name) != wanted[name]
    ]
    key = next(iter(wanted["value"]))
    values = region.get("value", {}).get(key)
    if not isinstance(values, list) or len(values) != 1 or not isinstance(values[0], str):
        return [*found, f"the prediction's value must be one text under {key!r}"]
    why = _unfit(values[0])
    if why:
        found.append(f"the suggestion {why}")
    allowed = choices_of(question)
    if allowed and values[0] not in allowed:
        found.append(f"{values[0]!r} is no class of the question{nearest(values[0], allowed)}")
    return found


def nearest(value: str, classes: Sequence[str]) -> str:
    """A hint at the class that was probably meant; empty where none is near."""
    near = difflib.get_close_matches(value, list(classes), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""
