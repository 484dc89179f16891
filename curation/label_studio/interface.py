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
FILTER_ABOVE = 12  # more classes than this get a box that narrows them down to what is typed
WORD_JOINER = "\u2060"

KINDS = ("edit", "accept", "class", "compare", "rubric", "spans")
VERDICTS = ("accept", "reject")
PREFERENCES = ("A", "B", "tie")
GRADES = ("1", "2", "3", "4", "5")
SPAN_TYPES = ("PERSON", "EMAIL_ADDRESS", "PHONE_NUMBER", "ADDRESS", "ID_NUMBER", "DATE_OF_BIRTH", "OTHER")
REASONS = ("bad question", "not my field", "needs context")

_VARIABLE = re.compile(r"\$(?=[\w\[])")
# What must be read stands in columns where there is room, so that what must be done comes into the window. The side
# panels take a third of the page to list regions, which only marks are, and a mark shows where it is. A child selector
# would not reach the page: the server writes its sign as an entity.
_STYLE = (
    ".lsf-text-area textarea { min-height: 9em; }"
    " .tilth-text { border-left: 3px solid #b9c3d6; padding-left: 12px; margin: 8px 0; }"
    " .tilth-quiet h3 { font-size: 13px !important; font-weight: 400 !important; opacity: 0.75; margin: 4px 0 !important; }"
    " .tilth-columns { display: flex; flex-wrap: wrap; gap: 0 24px; }"
    " .tilth-column { flex: 1 1 380px; min-width: 0; }"
    " .tilth-criteria { display: flex; flex-wrap: wrap; gap: 0 40px; }"
    " .tilth-classes .lsf-choices { display: grid; grid-template-columns: repeat(auto-fill, minmax(220px, 1fr));"
    " gap: 0 16px; max-height: 24em; overflow-y: auto; }"
    " .tilth-classes .lsf-choice, .tilth-classes .lsf-choice__item { margin: 0 !important; padding: 1px 0 !important; }"
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
    lines = [
        "<View>",
        f"  <Style>{_STYLE}</Style>",
        *_guideline(question.guideline),
        *_columns([_header("Prompt"), *_shown(PROMPT)], _passages() if passages else []),
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
        return _columns(*([_header(f"Answer {side.upper()}"), *_shown(side)] for side in SIDES))
    if question.kind == "spans":
        return []  # the text is part of what is done
    return [_header("Answer"), *_shown(COMPLETION)] if is_shown_by(question) else []


def _columns(*parts: Sequence[str]) -> list[str]:
    """The parts side by side where there is room, else one below the other; those without lines are left out."""
    opening = '    <View className="tilth-column">'
    columns = [[opening, *(f"    {line}" for line in part), "    </View>"] for part in parts if part]
    return [
        '  <View className="tilth-columns">',
        *(line for column in columns for line in column),
        "  </View>",
    ]


def _header(text: str) -> str:
    return f'  <Header value={literal(text)} size="5"/>'


def _note() -> str:
    """Where a suggestion comes from, or that there is none: for the questions that may have one."""
    return f'  <View className="tilth-quiet"><Header value="${NOTE}" size="4"/></View>'


def _told(text: str) -> list[str]:
    return [f'  <View className="tilth-quiet"><Header value={literal(text)} size="4"/></View>']


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
        *_choices(ANSWER, VERDICTS, "Accept or reject, or say why you cannot.", "inline"),
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
    chosen = _choices(ANSWER, question.classes, "Choose a class, or say why you cannot.")
    former = [_former(old, new) for old, new in sorted(retired.items())]
    narrow = f'  <Filter name="find" toName="{ANSWER}" minlength="0" placeholder="Type a part of the class"/>'
    return [
        _header("Your answer"),
        _note(),
        *([narrow] if len(question.classes) > FILTER_ABOVE else []),
        '  <View className="tilth-classes">',
        *chosen[:-1],
        *former,
        chosen[-1],
        "  </View>",
    ]


def _former(old: str, new: str | None) -> str:
    told = f"{old} (no longer used: {new or 'choose again'})"
    return f"    <Choice value={literal(told)} alias={_attribute(old)}/>"


def _preference(question: Question) -> list[str]:
    asked = _choices(ANSWER, PREFERENCES, "Choose the better one, or say why you cannot.", "inline")
    return [_header("Which answer is better?"), *asked]


def _rubric(question: Question) -> list[str]:
    if not question.classes or len(set(question.classes)) != len(question.classes):
        raise UsageError(
            "a rubric needs criteria, each once",
            where=f"question {question.name}",
            next='List them in tilth.toml: criteria = ["correct", "polite"]',
        )
    lines = [
        _header(f"Grade the answer: {GRADES[0]} is poor, {GRADES[-1]} is excellent"),
        '  <View className="tilth-criteria">',
    ]
    for index, name in enumerate(question.classes):
        lines += [
            "  <View>",
            f'  <Header value={literal(name)} size="6"/>',
            *_choices(criterion(index), GRADES, f"Grade it: {name}", "inline"),
            "  </View>",
        ]
    return [*lines, "  </View>"]


def _spans(question: Question) -> list[str]:
    marks = [f"    <Label value={literal(name)}/>" for name in question.classes or SPAN_TYPES]
    return [
        _header("Mark personal data that is still there: choose a kind, then select the text"),
        *_told("A click on a mark and Backspace take it back. Nothing to mark? Submit as it is."),
        f'  <Labels name="{ANSWER}" toName="{COMPLETION}">',
        *marks,
        "  </Labels>",
        *_shown(COMPLETION),
    ]


def _choices(name: str, values: Sequence[str], message: str, layout: str = "vertical") -> list[str]:
    opening = f'  <Choices name="{name}" toName="{PROMPT}" choice="single-radio" layout="{layout}"'
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
