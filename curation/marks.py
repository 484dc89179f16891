"""Personal data that people marked: what scanning missed, read from the answers to questions of kind ``spans``.

A mark is a deny-list of one record: scrubbing replaces it there, and a record in which it still stands cannot be frozen.
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
    columns = (rows[name].to_pylist() for name in ("record", "question", "body"))
    found: dict[str, dict[pii.Mark, None]] = {}
    for record, question, body in zip(*columns, strict=True):
        if question in asked:
            found.setdefault(record, {}).update(dict.fromkeys(_marks(orjson.loads(body))))
    return {record: tuple(marks) for record, marks in found.items() if marks}


def _marks(spans: Iterable[Mapping[str, Any]]) -> Iterator[pii.Mark]:
    for span in spans:
        if text := str(span["text"]).strip():
            yield pii.Mark(text, _TYPES.get(span["type"], span["type"]))


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
