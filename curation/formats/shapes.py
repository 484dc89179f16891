"""Objects to rows: which keys make a record a prompt, and which its completion.

Every shape is one function from an object to a :class:`Taken`. Nothing here guesses: a number where a shape
has a text is damage, and so is a record of another shape.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from curation.formats.chat import Extras, Messages, read_messages, split_answer
from curation.formats.rows import Damage


class Taken(NamedTuple):
    """What a shape found: the messages, the completion, the fields it used, and what the messages held
    besides.
    """

    messages: Messages
    completion: str | None
    used: frozenset[str]
    extras: Extras | None = None


Fields = dict[str, Any]
Take = Callable[[Fields], Taken]

_PAIR = frozenset({"prompt", "completion"})
_ALPACA = frozenset({"instruction", "input", "output", "system", "history"})
_RECORD = frozenset({"messages", "completion", "prompt"})


def shape_of(row: Iterable[str] | Fields) -> str | None:
    """The shape that the keys of an object tell, or null.

    >>> shape_of({"instruction": "Greet", "output": "Hello"})
    'alpaca'
    """
    keys = set(row)
    if isinstance(row, dict) and isinstance(row.get("data"), dict):
        return "label-studio"
    if {"chosen", "rejected"} <= keys:
        return "preference"
    if "messages" in keys:
        return "record" if "completion" in keys else "chat"
    if "conversations" in keys:
        return "sharegpt"
    if "instruction" in keys and keys & {"output", "input"}:
        return "alpaca"
    if "prompt" in keys:
        return "prompt-completion"
    return "text" if "text" in keys else None


def value_of(row: Fields, name: str) -> Any:
    try:
        return row[name]
    except KeyError:
        other = shape_of(row)
        if other:
            raise Damage("mixture", f"the record has no {name}: it is {other}, and the file is not") from None
        raise Damage("missing key", f"the record has no {name}") from None


def _text(row: Fields, name: str) -> str:
    value = value_of(row, name)
    if type(value) is not str:
        raise Damage("wrong type" if value is not None else _empty(name), f"{name} is not text")
    return value


def _empty(name: str) -> str:
    return "empty completion" if name in ("completion", "output") else "empty prompt"


def take_pair(row: Fields) -> Taken:
    """``prompt`` and ``completion``, each a text or a list of messages."""
    prompt = value_of(row, "prompt")
    completion = row.get("completion")
    if type(prompt) is str and (completion is None or type(completion) is str):
        return Taken([{"role": "user", "content": prompt}], completion, _PAIR)
    messages, extras = asked(prompt, "prompt")
    if type(completion) is list:
        return _joined(messages, extras, completion)
    if completion is not None and type(completion) is not str:
        raise Damage("wrong type", "completion is neither text nor a list of messages")
    return Taken(messages, completion, _PAIR, extras)


def asked(value: Any, name: str) -> tuple[Messages, Extras]:
    if value is None:
        raise Damage("empty prompt", f"{name} is null")
    if type(value) is str:
        return [{"role": "user", "content": value}], {}
    if type(value) is not list:
        raise Damage("wrong type", f"{name} is neither text nor a list of messages")
    return read_messages(value, name)


def _joined(messages: Messages, extras: Extras, completion: list[Any]) -> Taken:
    """A prompt and a completion that are lists: what precedes the last message is what it answers."""
    more, theirs = read_messages(completion, "completion")
    shifted = {str(int(place) + len(messages)): extra for place, extra in theirs.items()}
    before, answer, kept = split_answer([*messages, *more], {**extras, **shifted})
    if not more or answer is None:
        raise Damage("empty completion", "the completion does not end with the assistant's message")
    return Taken(before, answer, _PAIR, kept)


def take_chat(row: Fields) -> Taken:
    """``messages``: the assistant's last one is the completion, the rest is what it answers."""
    messages, answer, extras = split_answer(*read_messages(value_of(row, "messages"), "messages"))
    return Taken(messages, answer, frozenset({"messages"}), extras)


def take_record(row: Fields) -> Taken:
    """``messages`` that await an answer beside a ``completion``, as snapshots and Parquet hold them."""
    messages, extras = read_messages(value_of(row, "messages"), "messages")
    completion = row.get("completion")
    if completion is not None and type(completion) is not str:
        raise Damage("wrong type", "completion is not text")
    return Taken(messages, completion, _RECORD, extras)


def take_sharegpt(row: Fields) -> Taken:
    """``conversations`` of ``from`` and ``value``, with the system prompt among them or beside them."""
    messages, extras = read_messages(value_of(row, "conversations"), "conversations")
    system = row.get("system")
    if type(system) is str and system:
        messages = [{"role": "system", "content": system}, *messages]
        extras = {str(int(place) + 1): extra for place, extra in extras.items()}
    used = frozenset({"conversations", "system"} if type(system) is str else {"conversations"})
    messages, answer, extras = split_answer(messages, extras)
    return Taken(messages, answer, used, extras)


def take_alpaca(row: Fields) -> Taken:
    """``instruction`` and ``input`` (joined by a newline), ``output``, and perhaps ``system`` and
    ``history``.

    Alpaca writes an absent text as an empty one.
    """
    asked = [text for text in (_text(row, "instruction"), _optional(row, "input")) if text]
    messages = [{"role": "system", "content": system}] if (system := _optional(row, "system")) else []
    for pair in row.get("history") or []:
        if type(pair) is not list or len(pair) != 2 or not all(type(text) is str for text in pair):
            raise Damage("wrong type", "history is not a list of pairs of texts")
        messages += [{"role": "user", "content": pair[0]}, {"role": "assistant", "content": pair[1]}]
    messages.append({"role": "user", "content": "\n".join(asked)})
    return Taken(messages, _optional(row, "output") or None, _ALPACA)


def _optional(row: Fields, name: str) -> str:
    value = row.get(name)
    if value is not None and type(value) is not str:
        raise Damage("wrong type", f"{name} is not text")
    return value or ""


def take_text(row: Fields) -> Taken:
    """``text`` alone: a prompt without a completion."""
    return Taken([{"role": "user", "content": _text(row, "text")}], None, frozenset({"text"}))


def take_task(row: Fields) -> Taken:
    """The data of a Label Studio task: our own fields, or ``text``."""
    if "messages" in row:
        return take_record(row)
    return take_pair(row) if "prompt" in row else take_text(row)


def take_preference(row: Fields) -> Taken:
    """A preference pair has two completions, and nothing says which of them to learn."""
    raise Damage("preference pair", "the record has a chosen and a rejected completion")


SHAPES: dict[str, Take] = {
    "prompt-completion": take_pair,
    "record": take_record,
    "chat": take_chat,
    "alpaca": take_alpaca,
    "sharegpt": take_sharegpt,
    "label-studio": take_task,
    "text": take_text,
    "preference": take_preference,
}
