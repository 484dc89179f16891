"""Which question a workspace asks: its kind, its classes, its version, from the configuration and the labels seen.

Classes come from the configuration, from labeling functions and from labels that somebody has given; never from hidden
gold. Whether answers are classes or free text is a matter of shape alone, and is decided once and then kept. A revision
says what becomes of old answers: a class is kept, counts as another one, or is asked about again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow.compute as pc

from curation.config import QuestionSection
from curation.errors import UsageError
from curation.label_studio import PREFERENCES, SPAN_TYPES, VERDICTS
from curation.ledger import Question
from curation.records import SOURCE_TRUST, canonical_json, digest
from curation.workspace import Workspace

SHAPE_SAMPLE = 20_000
MAX_CLASSES = 500
MAX_CLASS_CHARACTERS = 80


def shape(completions: Iterable[str]) -> str:
    """``class`` where the completions are few, short and repeated; ``edit`` otherwise, and where there are none.

    >>> shape(["billing", "claims", "billing", "claims", "billing", "claims"])
    'class'
    >>> shape(["Dear Sir,", "Thank you for your mail."])
    'edit'
    """
    counts = Counter(completions)
    total = sum(counts.values())
    if not total or len(counts) > MAX_CLASSES or 3 * len(counts) > total:
        return "edit"
    return "class" if all(len(text) <= MAX_CLASS_CHARACTERS for text in counts) else "edit"


def current(
    workspace: Workspace, name: str | None = None, *, function_classes: Sequence[str] = ()
) -> Question:
    """The question as it stands: kind fixed at first asking, classes grown by labels seen since.

    ``name`` defaults to the first question of the configuration, the one that the loop asks. A change of kind, classes
    or guideline is a new version; the same again is the version that is there. Classes of a revision stand until
    somebody writes other ones into the configuration. Raises :class:`UsageError` for a question that it does not hold.
    """
    name, section = _section(workspace, name)
    known = _latest(workspace, name)
    kind = section.kind if section.kind != "auto" else (known.kind if known else _shape_of(workspace))
    revised = known is not None and _is_revised(workspace, name, section.classes)
    mapping = known.mapping if known and revised else {}
    classes = known.classes if known and revised else section.classes
    if kind == "class" and not section.classes:
        before = known.classes if known and known.kind == "class" else ()
        seen = {*_classes_seen(workspace), *function_classes} - mapping.keys()
        classes = tuple(sorted({*before, *seen}))
    fixed = {"accept": VERDICTS, "compare": PREFERENCES, "rubric": section.criteria, "spans": SPAN_TYPES}
    asked = Question(
        name=name,
        version=known.version if known else 1,
        kind=kind,
        classes=tuple(fixed.get(kind, classes)),
        rubric="\n".join(section.criteria),
        guideline=_guideline(workspace, section.guideline),
        mapping=dict(mapping),
    )
    if known and asked != known:
        asked = replace(asked, version=known.version + 1)
    if section.kind == "auto" and not known and _is_silent(workspace):
        return asked  # nobody has answered anything yet: too early to fix what kind of answer is wanted
    return workspace.ledger.add_question(asked)


def _section(workspace: Workspace, name: str | None) -> tuple[str, QuestionSection]:
    if name is None:
        return workspace.config.the_question
    if name not in workspace.config.question:
        raise UsageError(
            f"there is no question {name!r}",
            where=str(workspace.root / "tilth.toml"),
            next=f"Known: {', '.join(workspace.config.question)}. Add a section [question.{name}]",
        )
    return name, workspace.config.question[name]


@dataclass(frozen=True)
class Revision:
    """What becomes of the classes: ``add`` are new, ``rename`` and ``merge`` give an old class the one it counts as, and
    answers of ``reask`` no longer count, whether the class stays or goes.
    """

    add: tuple[str, ...] = ()
    merge: Mapping[str, str] | None = None
    rename: Mapping[str, str] | None = None
    reask: tuple[str, ...] = ()
    remove: tuple[str, ...] = ()


def revised(question: Question, change: Revision) -> Question:
    """The next version of a class question. Pure.

    The mapping gives every class that ever was the one it counts as now, or null where it must be asked again.
    Raises :class:`UsageError` for classes that are not there, for new ones that are, and where fewer than two are left.
    """
    if question.kind != "class":
        raise UsageError(
            f"question {question.name!r} has no classes to revise: it is of kind {question.kind!r}",
            next="Change its guideline in tilth.toml: that makes a new version by itself",
        )
    moved = {**(change.merge or {}), **(change.rename or {})}
    named = [*moved, *change.reask, *change.remove]
    unknown = [name for name in named if name not in question.classes]
    taken = [name for name in change.add if name in question.classes]
    taken += [new for new in (change.rename or {}).values() if new in question.classes]
    if unknown or taken:
        what = f"has no class {unknown[0]!r}" if unknown else f"has a class {taken[0]!r} already"
        raise UsageError(
            f"question {question.name!r} {what}",
            next=f"Its classes: {', '.join(question.classes)}. To join two, use --merge OLD=NEW",
        )
    kept = [moved.get(name, name) for name in question.classes if name not in change.remove]
    classes = tuple(dict.fromkeys([*kept, *change.add]))
    if len(classes) < 2:
        raise UsageError("fewer than two classes would be left", where=f"question {question.name}")
    now: dict[str, str | None] = dict.fromkeys(change.remove)
    now |= dict.fromkeys((name for name in change.reask if name not in classes), None)
    now |= moved
    before = {old: now.get(new, new) if new is not None else None for old, new in question.mapping.items()}
    mapping = {old: new for old, new in {**before, **now}.items() if old not in classes}
    return replace(question, version=question.version + 1, classes=classes, mapping=mapping)


def revise(
    workspace: Workspace, change: Revision, name: str | None = None, *, dry_run: bool = False
) -> dict[str, Any]:
    """Store the next version and take back the Labels that must be asked again; counts of old Labels by what became of
    them, and the records to ask about again.

    Labels are facts and stay as they were given: what an old class counts as is read from the question.
    """
    old = current(workspace, name)
    new = revised(old, change)
    labels = workspace.ledger.labels(kinds={"person"})
    columns = (labels[c].to_pylist() for c in ("label", "record", "body", "question", "showing"))
    again = {*change.reask, *change.remove}
    counts: Counter[str] = Counter()
    gone: list[tuple[str, str, str]] = []
    for label, record, body, asked, showing in zip(*columns, strict=True):
        if asked not in (None, old.name):
            continue
        lost = body in again or (body in new.mapping and new.mapping[body] is None)
        counts["asked_again" if lost else "mapped" if body in new.mapping else "kept"] += 1
        if lost:
            gone.append((label, record, showing))
    if not dry_run:
        workspace.ledger.add_question(new)
        configured = workspace.config.question[old.name].classes
        workspace.ledger.set_watermark(_REVISED + old.name, _configured(configured))
        workspace.ledger.withdraw_labels(
            [label for label, _, _ in gone], f"asked again under version {new.version}"
        )
    return {
        "question": new.name,
        "version": new.version,
        "classes": list(new.classes),
        "mapping": dict(new.mapping),
        "labels": {key: counts[key] for key in ("kept", "mapped", "asked_again")},
        "again": [showing for _, _, showing in gone if showing],
    }


_REVISED = "revised:"


def _configured(classes: Sequence[str]) -> str:
    return digest(canonical_json(list(classes)))


def _is_revised(workspace: Workspace, name: str, classes: Sequence[str]) -> bool:
    """Whether the question was revised since its classes were last written into the configuration."""
    return workspace.ledger.watermark(_REVISED + name) == _configured(classes)


def _is_silent(workspace: Workspace) -> bool:
    return (
        next(workspace.ledger.label_pages(kinds={*SOURCE_TRUST, "person", "curator"}, size=1), None) is None
    )


def _latest(workspace: Workspace, name: str) -> Question | None:
    versions = [q for q in workspace.ledger.questions() if q.name == name]
    return versions[-1] if versions else None


def _classes_seen(workspace: Workspace) -> set[str]:
    seen: set[str] = set()
    for page in workspace.ledger.label_pages(kinds={"candidate", "reference", "person", "curator"}):
        seen.update(pc.unique(page["body"]).to_pylist())
    return {name for name in seen if name}


def _guideline(workspace: Workspace, path: str) -> str:
    if not path:
        return ""
    where = workspace.root / path
    if not where.is_file():
        raise UsageError(
            "the guideline is missing", where=str(where), next="Write it, or mend [question] guideline"
        )
    return where.read_text(encoding="utf-8")


def is_closed(workspace: Workspace) -> bool:
    """Whether the workspace's answers are classes."""
    name, section = workspace.config.the_question
    if section.kind != "auto":
        return section.kind == "class"
    known = _latest(workspace, name)
    return (known.kind if known else _shape_of(workspace)) == "class"


def _shape_of(workspace: Workspace) -> str:
    """The shape of the completions that are there, hidden gold included: their number and length, not their text."""
    pages = workspace.ledger.label_pages(kinds={*SOURCE_TRUST, "person", "curator"}, size=SHAPE_SAMPLE)
    first = next(pages, None)
    return shape(first["body"].to_pylist() if first is not None else [])
