"""A question as a labeling interface, and a showing of a record as a task. Pure: nothing here opens a file or
a socket.

Every text is shown as text: the interface is made of ``Text``, ``TextArea`` and ``Choices``, never of a tag
that renders HTML, and values are escaped. A blind task carries no suggestion, no confidence and nothing to
sort by.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol
from xml.sax.saxutils import quoteattr

from curation.errors import UsageError
from curation.records import canonical_json, digest

PROMPT, ANSWER = "prompt", "answer"  # the names of the shown text and of the control in the interface
IDENTITY = ("record", "showing", "question", "question_version")
SELECT_ABOVE = 12  # more classes than this are a searchable list instead of a row of buttons
WORD_JOINER = "\u2060"
# A project fills in suggestions of the one model version that its first import named. Were this the model
# that proposed, suggestions of later models would stay hidden; who proposed stands in ``data`` instead.
MODEL_VERSION = "suggestion"
_VARIABLE = re.compile(r"\$(?=[\w\[])")


class Question(Protocol):
    """What people are asked: ``kind`` is ``edit`` (a text, best by editing the suggestion) or ``class``."""

    @property
    def name(self) -> str: ...
    @property
    def version(self) -> int: ...
    @property
    def kind(self) -> str: ...
    @property
    def classes(self) -> Sequence[str]: ...
    @property
    def guideline(self) -> str: ...


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
    """What a model proposes: the answer, who proposes it, and its confidence between 0 and 1 where that is
    known.
    """

    text: str
    by: str
    confidence: float | None = None


def label_config(question: Question) -> str:
    """The labeling interface of ``question`` as XML. Raises :class:`UsageError` for a kind or classes it
    cannot show.
    """
    control = {"edit": _text_area, "class": _choices}.get(question.kind)
    if control is None:
        raise UsageError(
            f"people cannot be asked a question of kind {question.kind!r}",
            where=f"question {question.name}",
            next="Set kind to edit or class",
        )
    lines = [
        "<View>",
        *_guideline(question.guideline),
        '  <Header value="Prompt" size="5"/>',
        f'  <Text name="{PROMPT}" value="${PROMPT}"/>',
        '  <Header value="Your answer" size="5"/>',
        *control(question),
        "</View>",
    ]
    return "\n".join(lines)


def _guideline(text: str) -> list[str]:
    if not text.strip():
        return []
    shown = f'<Text name="guideline" value={literal(text.strip())}/>'
    return ['  <Collapse><Panel value="Guideline">', f"    {shown}", "  </Panel></Collapse>"]


def _text_area(question: Question) -> list[str]:
    return [
        f'  <TextArea name="{ANSWER}" toName="{PROMPT}" editable="true" maxSubmissions="1" rows="8"'
        ' showSubmitButton="false" required="true" requiredMessage="Write an answer, or skip the task."/>'
    ]


def _choices(question: Question) -> list[str]:
    if len(set(question.classes)) < 2 or len(set(question.classes)) != len(question.classes):
        raise UsageError(
            "a class question needs two or more classes, each once",
            where=f"question {question.name}",
            next="List them under classes in tilth.toml, or bring labels that show them",
        )
    layout = "select" if len(question.classes) > SELECT_ABOVE else "vertical"
    opening = f'  <Choices name="{ANSWER}" toName="{PROMPT}" choice="single" layout="{layout}"'
    return [
        f'{opening} required="true" requiredMessage="Choose a class, or skip the task.">',
        *(f"    {_choice(name)}" for name in question.classes),
        "  </Choices>",
    ]


def _choice(name: str) -> str:
    shown = literal(name)
    if shown == _attribute(name):
        return f"<Choice value={shown}/>"
    return f"<Choice value={shown} alias={_attribute(name)}/>"  # the alias is what an answer holds


def literal(text: str) -> str:
    """``text`` as a quoted XML attribute that stays what it says.

    The interface replaces ``$name`` by a field of the task; an invisible word joiner after the sign prevents
    that.
    """
    return _attribute(_VARIABLE.sub(f"${WORD_JOINER}", text))


def _attribute(text: str) -> str:
    return quoteattr(_xml_characters(text), {"\n": "&#10;", "\r": "&#13;", "\t": "&#9;"})


def _xml_characters(text: str) -> str:
    """Characters that XML 1.0 cannot hold, made visible as U+FFFD."""
    return re.sub("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "\ufffd", text)


def to_task(
    showing: Showing, row: Mapping[str, Any], suggestion: Suggestion | None, question: Question
) -> dict[str, Any]:
    """The task of one showing: ``row`` is a row of the view (``record`` and ``prompt`` are read).

    ``data`` carries our ids, so that an answer finds its record wherever the task has travelled; a suggestion
    becomes a prediction whose score is its confidence. A blind showing drops the suggestion. Raises
    :class:`UsageError` where showing, row and question do not belong together.
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
    }
    if showing.blind or suggestion is None:
        return {"data": data}
    data["suggested_by"] = suggestion.by
    if suggestion.confidence is not None:
        data["confidence"] = (
            suggestion.confidence
        )  # a score may be lost when predictions change; this one stays
    return {"data": data, "predictions": [_prediction(suggestion, question)]}


def _prediction(suggestion: Suggestion, question: Question) -> dict[str, Any]:
    prediction = {"model_version": MODEL_VERSION, "result": [result(suggestion.text, question)]}
    return prediction if suggestion.confidence is None else prediction | {"score": suggestion.confidence}


def result(value: str, question: Question) -> dict[str, Any]:
    """One answer as a region of an annotation or a prediction."""
    kind, key = ("choices", "choices") if question.kind == "class" else ("textarea", "text")
    return {
        "id": digest(canonical_json([question.name, value]))[:10],
        "from_name": ANSWER,
        "to_name": PROMPT,
        "type": kind,
        "value": {key: [value]},
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
    missing = [name for name in (*IDENTITY, PROMPT) if data.get(name) in (None, "")]
    found = [f"data lacks {name}" for name in missing]
    if (data.get("question"), data.get("question_version")) != (question.name, question.version):
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
    if question.kind == "class" and values[0] not in question.classes:
        found.append(f"{values[0]!r} is no class of the question{nearest(values[0], question.classes)}")
    return found


def nearest(value: str, classes: Sequence[str]) -> str:
    """A hint at the class that was probably meant; empty where none is near."""
    near = difflib.get_close_matches(value, list(classes), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""
