"""Reading for the filters: any object, by its id, and the text that it holds.

A filter changes objects and passes on the fields it does not know, so no shape is imposed on them here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from curation.errors import UsageError
from curation.formats.chat import read_messages
from curation.formats.read import parsed
from curation.formats.rows import MAX_LINE, REASONS, BadRow, Damage, suggestion
from curation.formats.sniff import examine
from curation.formats.stream import opened
from curation.records import prompt_text


def read_objects(
    path: str | Path, on_bad: Callable[[BadRow], None] | None = None, *, max_line: int = MAX_LINE
) -> Iterator[tuple[Any, dict[str, Any]]]:
    """The objects of a file (``-`` is standard input), each with its ``id`` field or its 0-based index.

    The index counts objects. What is not an object goes to ``on_bad``; without one it raises ``UsageError``.
    A blank line between objects holds nothing and is passed over. An empty file gives nothing.
    """
    index = 0
    with opened(path) as stream:
        form = examine(stream, None, Path(str(path)))
        for line, offset, raw, record, damage in parsed(stream, form, max_line):
            if damage is None and type(record) is not dict:
                damage = Damage("not an object", "the record is not an object")
            if damage is None:
                identity = record.get("id")
                yield index if identity is None else identity, record
                index += 1
            elif damage.code != "blank line":
                report(BadRow(line, offset, damage.code, damage.message, raw), stream.name, on_bad)


def report(bad: BadRow, name: str, on_bad: Callable[[BadRow], None] | None) -> None:
    """Hand a bad row to whoever takes them; without anybody raise ``UsageError`` that names its line."""
    if on_bad is None:
        where = f"{name}:{bad.line}"
        raise UsageError(f"{bad.reason}: {bad.message}", where=where, next=REASONS[bad.reason])
    on_bad(bad)


def text_fields(record: Mapping[str, Any], fields: Sequence[str] | None = None) -> tuple[str, ...]:
    """The names of the fields that hold the text: those given; else ``text``, or ``prompt`` and
    ``completion``, or ``messages``. Raises ``UsageError`` where there are none.

    >>> text_fields({"id": 1, "prompt": "Hello", "completion": "Hi"})
    ('prompt', 'completion')
    """
    if fields:
        for name in fields:
            if name not in record:
                what = f"there is no field {name!r}{suggestion(name, record)}"
                raise UsageError(what, where="--fields", next=f"The fields are: {', '.join(record)}")
        return tuple(fields)
    if "text" in record:
        return ("text",)
    pair = tuple(name for name in ("prompt", "completion") if name in record)
    if "prompt" in pair:
        return pair
    if "messages" in record:
        return ("messages",)
    what = f"no field is known to hold text; the fields are: {', '.join(record) or 'none'}"
    raise UsageError(what, next="Name them: --fields a,b")


def text_of(record: Mapping[str, Any], fields: Sequence[str]) -> str:
    """The texts of the fields, joined by a newline; a field that is absent or null adds nothing.

    Messages become lines ``role: content``; numbers and truth values are taken as JSON writes them.
    """
    return "\n".join(field_text(value) for name in fields if (value := record.get(name)) is not None)


def field_text(value: Any) -> str:
    """One field as text. Raises ``UsageError`` for a structure that is not a list of messages."""
    if type(value) is str:
        return value
    if type(value) is bool:
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return str(value)
    try:
        messages, _ = read_messages(value, "the field")
    except Damage as damage:
        raise UsageError(f"a field is neither text nor messages: {damage.message}") from None
    return prompt_text(messages)
