"""Which question a workspace asks: its kind, its classes, its version, from the configuration and the labels seen.

Classes come from the configuration, from labeling functions and from labels that somebody has given; never from hidden
gold. Whether answers are classes or free text is a matter of shape alone, and is decided once and then kept.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace

import pyarrow.compute as pc

from curation.errors import UsageError
from curation.ledger import Question
from curation.records import SOURCE_TRUST
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


def current(workspace: Workspace, *, function_classes: Sequence[str] = ()) -> Question:
    """The question as it stands: kind fixed at first asking, classes grown by labels seen since.

    A change of kind, classes or guideline is a new version; the same again is the version that is there.
    """
    name, section = workspace.config.the_question
    known = _latest(workspace, name)
    kind = section.kind if section.kind != "auto" else (known.kind if known else _shape_of(workspace))
    classes = section.classes
    if kind == "class" and not classes:
        before = known.classes if known and known.kind == "class" else ()
        classes = tuple(sorted({*before, *_classes_seen(workspace), *function_classes}))
    asked = Question(
        name=name,
        version=known.version if known else 1,
        kind=kind,
        classes=tuple(classes),
        guideline=_guideline(workspace, section.guideline),
    )
    if known and asked != known:
        asked = replace(asked, version=known.version + 1)
    if section.kind == "auto" and not known and _is_silent(workspace):
        return asked  # nobody has answered anything yet: too early to fix what kind of answer is wanted
    return workspace.ledger.add_question(asked)


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
