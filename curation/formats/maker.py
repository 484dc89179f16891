"""From one parsed record to its rows, under the shape of the file and a person's mapping.

A shape's own fields must hold text. A field that a person names with ``--map`` is taken as its text, since
the person says what it is. Nothing is repaired and no text is stripped.
"""

from __future__ import annotations

from typing import Any

from curation.formats.chat import EXTRAS, read_messages, split_answer
from curation.formats.rows import Damage, Mapping, Row
from curation.formats.shapes import SHAPES, Fields, Taken, asked, shape_of, take_pair, value_of
from curation.formats.strict import parse, spelling
from curation.formats.tasks import unwrap

_SIDE = ("gold", "group", "lang", "time")  # taken by their own names where nobody names others


class Maker:
    """Turns the records of one file into rows.

    A table has every column in every row: an empty cell of CSV and a null of Parquet are a field that is not
    there, and the column ``tags`` holds, as JSON, the fields that have no column.
    """

    def __init__(self, shape: str | None, mapping: Mapping, container: str) -> None:
        self.shape, self.mapping = shape, mapping
        self.blank_is_null = container in ("csv", "tsv")
        self.is_table = self.blank_is_null or container == "parquet"
        self.take = SHAPES.get(shape or "", take_pair)
        self.mapped = bool(mapping.named())
        self.has_text = mapping.prompt is not None or mapping.completion is not None
        roles = {role: getattr(mapping, role) for role in _SIDE}
        self.named_side = [(role, name) for role, name in roles.items() if name]
        self.own_side = [role for role, name in roles.items() if not name]

    def rows(
        self, record: Any, line: int, offset: int, raw: bytes | None = None, suspect: bool = True
    ) -> list[Row]:
        """The rows of one record: one, or one per answer of a Label Studio task. Raises :class:`Damage`.

        ``raw`` is its JSON, for the spelling of numbers; ``suspect`` says that a text may hold a NUL.
        """
        if type(record) is not dict:
            raise Damage("not an object", "the record is not an object")
        if self.shape == "label-studio":
            return self._task_rows(record, line, offset)
        return [self._row(record, line, offset, raw, suspect)]

    def _task_rows(self, task: Fields, line: int, offset: int) -> list[Row]:
        if type(task.get("data")) is not dict:
            raise Damage(
                "mixture" if shape_of(task) else "missing key", "the record has no data: it is not a task"
            )
        data, answers = unwrap(task)
        row = self._row(data, line, offset, None, suspect=False)
        if row.key is None and type(row.tags.get("item_id")) is str:
            row.key = row.tags.pop("item_id")
        _check_nul(row)
        for answer in answers:
            _check_answer(answer)
        return [self._answered(row, answer) for answer in answers] or [row]

    @staticmethod
    def _answered(row: Row, answer: str) -> Row:
        place = row.line, row.offset, row.messages
        return Row(*place, answer, row.gold, row.key, row.group, row.lang, row.time, dict(row.tags))

    def _row(self, fields: Fields, line: int, offset: int, raw: bytes | None, suspect: bool) -> Row:
        messages, completion, used, extras = self._mapped(fields, raw) if self.has_text else self.take(fields)
        if completion is not None and (not completion or completion.isspace()):
            if completion or not self.blank_is_null:
                raise Damage("empty completion", "the completion holds no text")
            completion = None
        if not messages or not (last := messages[-1]["content"]) or last.isspace():
            raise Damage("empty prompt", "the prompt holds no text")
        row = Row(line, offset, messages, completion)
        if self.mapped or not fields.keys() <= used:
            used = self._side(row, fields, used, raw)
            row.tags = {k: v for k, v in fields.items() if k not in used}
            if self.is_table:
                row.tags = self._unpacked(row.tags)
        if extras:
            row.tags[EXTRAS] = _merged(row.tags.get(EXTRAS), extras)
        if suspect:
            _check_nul(row)
        return row

    def _unpacked(self, cells: Fields) -> Fields:
        """The fields that a row of a table holds."""
        absent = "" if self.blank_is_null else None
        fields = {name: value for name, value in cells.items() if value != absent}
        packed = fields.get("tags")
        if type(packed) is not str or not packed.startswith("{"):
            return fields
        try:
            found = parse(packed.encode())
        except Damage:
            return fields
        del fields["tags"]
        return {**fields, **found} if not fields.keys() & found.keys() else {**fields, "tags": packed}

    def _side(self, row: Row, fields: Fields, used: frozenset[str], raw: bytes | None) -> frozenset[str]:
        """Fill in what stands beside prompt and completion; the fields that are used up."""
        found = {}
        for role in self.own_side:
            if role not in used and type(fields.get(role)) is str and fields[role]:
                found[role] = role
                setattr(row, role, fields[role])
        for role, name in self.named_side:
            found[name] = role
            setattr(row, role, self._as_text(fields, name, raw) or None)
        if self.mapping.id:
            found[self.mapping.id] = "key"
            row.key = self._needed(fields, self.mapping.id, raw, "missing key")
        if row.gold is not None and row.gold.isspace():
            raise Damage("empty completion", "the gold completion holds no text")
        return used.union(found)

    def _mapped(self, fields: Fields, raw: bytes | None) -> Taken:
        """Prompt and completion where at least one of them is named."""
        taken = self._unanswered(fields) if self.mapping.prompt is None else self._prompt(fields, raw)
        name = self.mapping.completion
        if name is None:
            return taken
        return taken._replace(completion=self._as_text(fields, name, raw), used=taken.used | {name})

    def _unanswered(self, fields: Fields) -> Taken:
        """The prompt by the shape of the file, without the completion that the shape knows."""
        if self.shape in (None, "preference"):
            messages, extras = asked(value_of(fields, "prompt"), "prompt")
            return Taken(messages, None, frozenset({"prompt"}), extras)
        taken = self.take(fields)
        return taken._replace(
            completion=None, used=taken.used - {"completion", "output"}, extras=_asking(taken.extras)
        )

    def _prompt(self, fields: Fields, raw: bytes | None) -> Taken:
        """The named prompt; the completion beside it is the field of that name, or the answer in the prompt's
        list.
        """
        name = str(self.mapping.prompt)
        completion = fields.get("completion") if name != "completion" else None
        beside = completion if type(completion) is str and self.mapping.completion is None else None
        used = frozenset({name} if beside is None else {name, "completion"})
        value, _ = lookup(fields, name)
        if type(value) is not list:
            text = self._needed(fields, name, raw, "empty prompt")
            return Taken([{"role": "user", "content": text}], beside, used)
        messages, answer, extras = split_answer(*read_messages(value, name))
        if beside is None and self.mapping.completion is None:
            return Taken(messages, answer, used, extras)
        return Taken(messages, beside, used, _asking(extras))

    def _needed(self, fields: Fields, name: str, raw: bytes | None, reason: str) -> str:
        text = self._as_text(fields, name, raw)
        if text is None and lookup(fields, name)[1] is None:
            raise Damage("missing key", f"the record has no {name}")
        if text is None or not text or text.isspace():
            raise Damage(reason, f"{name} holds no text")
        return text

    def _as_text(self, fields: Fields, name: str, raw: bytes | None) -> str | None:
        """The text of a named field: of a number its spelling, of a truth value ``true`` or ``false``."""
        value, path = lookup(fields, name)
        if type(value) is str:
            return value or None if self.blank_is_null else value
        return None if value is None else _scalar(value, path or (), raw, name)


def _merged(before: Any, extras: dict[str, Any]) -> dict[str, Any]:
    """The extras that a tag brought along, and those that the messages hold."""
    found = dict(before) if type(before) is dict else {}
    for place, extra in extras.items():
        found[place] = {**found[place], **extra} if type(found.get(place)) is dict else extra
    return found


def _asking(extras: dict[str, Any] | None) -> dict[str, Any]:
    """The extras of the messages without those of the answer."""
    return {place: extra for place, extra in (extras or {}).items() if place != "answer"}


def _scalar(value: Any, path: tuple[str, ...], raw: bytes | None, name: str) -> str:
    if type(value) is bool:
        return "true" if value else "false"
    if type(value) is float:
        return spelling(raw, path, value)
    if type(value) is int:
        return str(value)
    if type(value) is list and len(messages := read_messages(value, name)[0]) == 1:
        return messages[0]["content"]
    raise Damage("wrong type", f"{name} is neither text nor a number")


def lookup(fields: Fields, name: str) -> tuple[Any, tuple[str, ...] | None]:
    """The value of a field and its path; ``a.b`` is the field of that name, else ``b`` inside ``a``.

    A field that is not there is null and has no path.
    """
    if name in fields:
        return fields[name], (name,)
    path = tuple(name.split("."))
    value: Any = fields
    for part in path:
        if type(value) is not dict or part not in value:
            return None, None
        value = value[part]
    return value, path


def _check_answer(answer: str) -> None:
    if not answer or answer.isspace():
        raise Damage("empty completion", "an annotation holds no text")
    if "\0" in answer:
        raise Damage("nul character", "an annotation holds a NUL")


def _check_nul(row: Row) -> None:
    """NUL is valid in JSON, and in no text column of PostgreSQL."""
    texts = (
        row.completion,
        row.gold,
        row.key,
        row.group,
        row.lang,
        row.time,
        *(m["content"] for m in row.messages),
    )
    if any(text is not None and "\0" in text for text in texts):
        raise Damage("nul character", "a text holds a NUL")
