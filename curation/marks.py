"""Personal data that people marked: what scanning missed, read from the answers to questions of kind ``spans``.

A mark is a deny-list of one record: scrubbing replaces it there, and a record in which it still stands cannot be frozen.
People mark what they see, which aliases are part of: those are cut out of a mark, since no source holds them.
The marked text is personal data, so it leaves this module only to be looked for.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

import orjson
import pyarrow as pa

from curation import pii
from curation.workspace import Workspace

# Kinds that people mark by, as types that aliases are written for; a kind that is none of them stays as it is.
_TYPES = {"ADDRESS": "STREET_ADDRESS", "DATE_OF_BIRTH": "TERM", "OTHER": "TERM"}

Marks = Mapping[str, tuple[pii.Mark, ...]]
"""What was marked in each record."""


def marked(workspace: Workspace) -> dict[str, tuple[pii.Mark, ...]]:
    """Every standing mark of every record, each once; records without one are left out."""
    asked = {q.name for q in workspace.ledger.questions() if q.kind == "spans"}
    if not asked:
        return {}
    rows = workspace.ledger.labels(kinds={"person"})
    names = ("record", "question", "body", "showing")
    marking = [
        row for row in zip(*(rows[name].to_pylist() for name in names), strict=True) if row[1] in asked
    ]
    shown = {
        s.id: s.suggestion or "" for s in workspace.ledger.showings([row[3] for row in marking if row[3]])
    }
    index = (
        pii.AliasIndex(alias.alias for alias in workspace.ledger.aliases()) if marking else pii.AliasIndex()
    )
    found: dict[str, dict[pii.Mark, None]] = {}
    for record, _, body, showing in marking:
        marks = _marks(orjson.loads(body), shown.get(showing, ""), index)
        found.setdefault(record, {}).update(dict.fromkeys(marks))
    return {record: tuple(marks) for record, marks in found.items() if marks}


def _marks(spans: Iterable[Mapping[str, Any]], shown: str, index: pii.AliasIndex) -> Iterator[pii.Mark]:
    for span in spans:
        for text in _of_the_source(span, shown, index):
            yield pii.Mark(text, _TYPES.get(span["type"], span["type"]))


def _of_the_source(span: Mapping[str, Any], shown: str, index: pii.AliasIndex) -> list[str]:
    """What a mark holds beside the aliases and masks that it touches; nothing where it holds nothing else.

    What is left beside an alias counts only where it tells something: it may be the "and" between two names.
    """
    text, start = str(span["text"]), int(span["start"])
    if shown[start : start + len(text)] != text:
        shown, start = text, 0
    end = start + len(text)
    ours = sorted((a, b) for a, b in pii.stand_ins(shown, index) if a < end and start < b)
    if not ours:
        return [text.strip()] if text.strip() else []
    edges = [start, *(edge for place in ours for edge in place), end]
    left = (shown[a:b].strip() for a, b in zip(edges[::2], edges[1::2], strict=True) if a < b)
    return [piece for piece in left if pii.is_telling(piece)]


def left_in(tables: Iterable[pa.Table], marks: Marks) -> list[str]:
    """The records of EXAMPLES whose messages or completion still hold what somebody marked in them, sorted."""
    found = set()
    for table in tables if marks else ():
        columns = (table[name].to_pylist() for name in ("record", "messages", "completion"))
        for record, messages, completion in zip(*columns, strict=True):
            if record in marks and _holds([*(m["content"] for m in messages), completion], marks[record]):
                found.add(record)
    return sorted(found)


def _holds(texts: Iterable[str | None], marks: Collection[pii.Mark]) -> bool:
    return any(pii.stands_in(text, mark) for text in texts if text for mark in marks)
