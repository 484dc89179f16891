"""A question as a labeling interface: the page that an annotator works on. Pure.

Every text is shown as text: the page is made of ``Text``, ``TextArea``, ``Choices`` and ``Labels``, never of a tag that
renders HTML, and values are escaped. Whoever cannot answer says why: the reasons stand on every page, and Skip sends
the one that was chosen.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Protocol
from xml.sax.saxutils import quoteattr

from curation.errors import UsageError

PROMPT, ANSWER = "prompt", "answer"  # the names of the shown text and of the control in the interface
CANNOT, WHY = "cannot", "why"  # the controls that hold why a task was skipped, and why an answer was rejected
COMPLETION, PASSAGES, NOTE, SUGGESTION = "completion", "passages", "note", "suggestion"  # fields of a task
SIDES = ("a", "b")
SELECT_ABOVE = 12  # more classes than this are a searchable list instead of a row of buttons
WORD_JOINER = "\u2060"

KINDS = ("edit", "accept", "class", "compare", "rubric", "spans")
VERDICTS = ("accept", "reject")
PREFERENCES = ("A", "B", "tie")
GRADES = ("1", "2", "3", "4", "5")
SPAN_TYPES = ("PERSON", "EMAIL_ADDRESS", "PHONE_NUMBER", "ADDRESS", "ID_NUMBER", "DATE_OF_BIRTH", "OTHER")
REASONS = ("bad question", "not my field", "needs context")

_VARIABLE = re.compile(r"\$(?=[\w\[])")
# The side panels list regions, of which only marked spans have any; without them the text gets the whole width.
_STYLE = (
    ".lsf-text-area textarea { min-height: 9em; }"
    " .tilth-text { border-left: 3px solid #b9c3d6; padding-left: 12px; margin: 8px 0; }"
    " .tilth-quiet h3 { font-size: 13px !important; font-weight: 400 !important; opacity: 0.75; margin: 4px 0 !important; }"
)
_NO_PANELS = (
    " .lsf-sidepanels__wrapper { display: none !important; } .lsf-sidepanels { padding-right: 0 !important; }"
)


class Question(Protocol):
    """What people are asked: ``kind`` is one of :data:`KINDS`; the criteria of a rubric are its ``classes``."""

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
    @property
    def mapping(self) -> Mapping[str, str | None]: ...


def label_config(question: Question, *, passages: bool = False, retired: bool = False) -> str:
    """The labeling interface of ``question`` as XML; with a place for passages where ``passages`` is set.

    ``retired`` keeps the classes of former versions in the list, each with what it counts as: a server refuses to lose
    a class that somebody has used.

    Raises :class:`UsageError` for a kind or classes it cannot show.
    """
    if question.kind not in KINDS:
        raise UsageError(
            f"people cannot be asked a question of kind {question.kind!r}",
            where=f"question {question.name}",
            next=f"Set kind to one of {', '.join(KINDS)}",
        )
    style = _STYLE + ("" if question.kind == "spans" else _NO_PANELS)
    lines = [
        "<View>",
        f"  <Style>{style}</Style>",
        *_guideline(question.guideline),
        '  <Header value="Prompt" size="5"/>',
        *_shown(PROMPT),
        *(_passages() if passages else ()),
        *_judged(question),
        f'  <View visibleWhen="choice-unselected" whenTagName="{CANNOT}">',
        *(f"  {line}" for line in _control(question, retired)),
        "  </View>",
        *_reasons(),
        '  <View className="tilth-quiet"><Header value="Record $record" size="4"/></View>',
        "</View>",
    ]
    return "\n".join(lines)


def is_shown_by(question: Question) -> tuple[str, ...]:
    """The fields of a task that hold what is judged: none where people write or choose an answer to the prompt."""
    if question.kind == "compare":
        return SIDES
    return (COMPLETION,) if question.kind in ("accept", "rubric", "spans") else ()


def control_of(question: Question) -> tuple[str, str, str]:
    """The type of the answer's control, the key of its value, and the name of the text that it stands at."""
    if question.kind == "edit":
        return "textarea", "text", PROMPT
    if question.kind == "spans":
        return "labels", "labels", COMPLETION
    return "choices", "choices", PROMPT


def choices_of(question: Question) -> tuple[str, ...]:
    """The answers that may be chosen; none where the answer is a text, grades or marks."""
    if question.kind == "class":
        return tuple(question.classes)
    return {"accept": VERDICTS, "compare": PREFERENCES}.get(question.kind, ())


def criterion(index: int) -> str:
    """The name of the control of a rubric's criterion; criteria are free text and names are not."""
    return f"{ANSWER}_{index}"


def literal(text: str) -> str:
    """``text`` as a quoted XML attribute that stays what it says.

    The interface replaces ``$name`` by a field of the task; an invisible word joiner after the sign prevents that.
    """
    return _attribute(_VARIABLE.sub(f"${WORD_JOINER}", text))


def _attribute(text: str) -> str:
    return quoteattr(_xml_characters(text), {"\n": "&#10;", "\r": "&#13;", "\t": "&#9;"})


def _xml_characters(text: str) -> str:
    """Characters that XML 1.0 cannot hold, made visible as U+FFFD."""
    return re.sub("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "\ufffd", text)


def _shown(name: str) -> list[str]:
    return [f'  <View className="tilth-text"><Text name="{name}" value="${name}"/></View>']


def _guideline(text: str) -> list[str]:
    if not text.strip():
        return []
    shown = f'<Text name="guideline" value={literal(text.strip())}/>'
    return ['  <Collapse><Panel value="Guideline">', f"    {shown}", "  </Panel></Collapse>"]


def _passages() -> list[str]:
    shown = f'<Text name="{PASSAGES}" value="${PASSAGES}"/>'
    head = '  <Collapse open="true"><Panel value="Passages that may hold the answer">'
    return [head, f"    {shown}", "  </Panel></Collapse>"]


def _judged(question: Question) -> list[str]:
    if question.kind == "compare":
        return [line for side in SIDES for line in (_header(f"Answer {side.upper()}"), *_shown(side))]
    return [_header("Answer"), *_shown(COMPLETION)] if is_shown_by(question) else []


def _header(text: str) -> str:
    return f'  <Header value={literal(text)} size="5"/>'


def _note() -> str:
    return f'  <View className="tilth-quiet"><Header value="${NOTE}" size="4"/></View>'


def _control(question: Question, retired: bool) -> list[str]:
    if question.kind == "class":
        return _class(question, question.mapping if retired else {})
    made = {
        "edit": _text_area,
        "accept": _verdict,
        "compare": _preference,
        "rubric": _rubric,
        "spans": _spans,
    }
    return made[question.kind](question)


def _text_area(question: Question) -> list[str]:
    return [
        _header("Your answer"),
        _note(),
        f'  <TextArea name="{ANSWER}" toName="{PROMPT}" value="${SUGGESTION}" editable="true" maxSubmissions="1" rows="8"'
        ' showSubmitButton="false" required="true" requiredMessage="Write an answer, or say why you cannot."/>',
    ]


def _verdict(question: Question) -> list[str]:
    return [
        _header("May this answer go out as it is?"),
        _note(),
        *_choices(ANSWER, VERDICTS, "Accept or reject, or say why you cannot."),
        f'  <View visibleWhen="choice-selected" whenTagName="{ANSWER}" whenChoiceValue="reject">',
        f'    <TextArea name="{WHY}" toName="{PROMPT}" rows="3" maxSubmissions="1" editable="true" showSubmitButton="false"'
        ' placeholder="What is wrong with it?" required="true" requiredMessage="Say what is wrong with the answer."/>',
        "  </View>",
    ]


def _class(question: Question, retired: Mapping[str, str | None]) -> list[str]:
    if len(set(question.classes)) < 2 or len(set(question.classes)) != len(question.classes):
        raise UsageError(
            "a class question needs two or more classes, each once",
            where=f"question {question.name}",
            next="List them under classes in tilth.toml, or bring labels that show them",
        )
    layout = "select" if len(question.classes) > SELECT_ABOVE else "vertical"
    chosen = _choices(ANSWER, question.classes, "Choose a class, or say why you cannot.", layout)
    former = [_former(old, new) for old, new in sorted(retired.items())]
    return [_header("Your answer"), _note(), *chosen[:-1], *former, chosen[-1]]


def _former(old: str, new: str | None) -> str:
    told = f"{old} (no longer used: {new or 'choose again'})"
    return f"    <Choice value={literal(told)} alias={_attribute(old)}/>"


def _preference(question: Question) -> list[str]:
    asked = _choices(ANSWER, PREFERENCES, "Choose the better one, or say why you cannot.", "inline")
    return [_header("Which answer is better?"), _note(), *asked]


def _rubric(question: Question) -> list[str]:
    if not question.classes or len(set(question.classes)) != len(question.classes):
        raise UsageError(
            "a rubric needs criteria, each once",
            where=f"question {question.name}",
            next='List them in tilth.toml: criteria = ["correct", "polite"]',
        )
    lines = [_header(f"Grade the answer: {GRADES[0]} is poor, {GRADES[-1]} is excellent"), _note()]
    for index, name in enumerate(question.classes):
        lines += [
            f'  <Header value={literal(name)} size="6"/>',
            *_choices(criterion(index), GRADES, f"Grade it: {name}", "inline"),
        ]
    return lines


def _spans(question: Question) -> list[str]:
    marks = [f"    <Label value={literal(name)}/>" for name in question.classes or SPAN_TYPES]
    return [
        _header("Mark personal data that is still there: choose a kind, then select the text"),
        _note(),
        f'  <Labels name="{ANSWER}" toName="{COMPLETION}">',
        *marks,
        "  </Labels>",
    ]


def _choices(name: str, values: Sequence[str], message: str, layout: str = "vertical") -> list[str]:
    opening = f'  <Choices name="{name}" toName="{PROMPT}" choice="single" layout="{layout}"'
    return [
        f'{opening} required="true" requiredMessage={literal(message)}>',
        *(f"    {_choice(value)}" for value in values),
        "  </Choices>",
    ]


def _choice(name: str) -> str:
    shown = literal(name)
    if shown == _attribute(name):
        return f"<Choice value={shown}/>"
    return f"<Choice value={shown} alias={_attribute(name)}/>"  # the alias is what an answer holds


def _reasons() -> list[str]:
    return [
        _header("Cannot answer? Say why, then press Skip"),
        f'  <Choices name="{CANNOT}" toName="{PROMPT}" choice="single-radio" layout="inline">',
        *(f"    <Choice value={literal(reason)}/>" for reason in REASONS),
        "  </Choices>",
    ]
