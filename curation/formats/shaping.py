"""Rows to the objects of each format, and what each format cannot hold.

A row that a format cannot hold is refused with a reason, never bent to fit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from curation.formats.chat import EXTRAS, chat_messages, is_plain, pairs, turns
from curation.formats.rows import Damage, Mapping, Row
from curation.formats.tasks import task_of

_EVERY = (
    "line, offset and the spelling of the JSON",
    "an empty group, lang, time or gold becomes none at all",
)
_CHAT = (
    "content in parts is joined to one text",
    "a ShareGPT function_call becomes an OpenAI tool call, spelled anew",
)

LOSSES: dict[str, tuple[str, ...]] = {
    "jsonl": (*_EVERY, *_CHAT),
    "chat": (*_EVERY, *_CHAT),
    "trl": (
        *_EVERY,
        *_CHAT,
        "of a completion of several messages, all but the last become part of the prompt",
    ),
    "alpaca": (
        *_EVERY,
        "instruction and input are joined by a newline",
        "refused: messages other than a system prompt, questions and answers in turn; an empty system prompt",
    ),
    "sharegpt": (
        *_EVERY,
        "a system prompt beside the conversation becomes its first turn",
        "the id, the type and the spelling of an OpenAI tool call",
        "refused: the roles developer and function; text beside a tool call",
    ),
    "label-studio": (
        *_EVERY,
        "gold, since an annotator would see it",
        "ids, times, users and predictions of the server",
        "results other than choices and text; choices are joined by commas, texts by newlines",
    ),
    "csv": (
        *_EVERY,
        "an empty text becomes none",
        "a cell that a spreadsheet would run as a formula gets an apostrophe, unless that is switched off",
        "refused: prompts of more than one message",
    ),
    "parquet": (
        *_EVERY,
        "nulls inside structures, and columns of bytes, of a file that was not written here",
    ),
}
"""What a row, or a foreign file, does not keep in each format. Everything else comes back as it was."""


def beside(row: Row, names: Mapping) -> dict[str, Any]:
    """What a row holds beside its messages, under the names of ``names`` or its own; nothing that is null."""
    held = {"id": row.key, "gold": row.gold, "group": row.group, "lang": row.lang, "time": row.time}
    return {getattr(names, role) or role: value for role, value in held.items() if value is not None}


def _whole(own: dict[str, Any], row: Row, names: Mapping, *, extras: bool) -> dict[str, Any]:
    """The object: the format's own fields, what stands beside them, and the tags; refused where two have one
    name.

    ``extras`` says that the extras of the messages are already inside the own fields.
    """
    tags = {name: value for name, value in row.tags.items() if not (extras and name == EXTRAS)}
    side = beside(row, names)
    twice = (own.keys() & side.keys()) | ((own.keys() | side.keys()) & tags.keys())
    if twice:
        raise Damage("not expressible", f"the record's own field {min(twice)} has a meaning in this format")
    return {**side, **own, **tags}


def pair(row: Row, names: Mapping) -> dict[str, Any]:
    """``prompt`` and ``completion`` as texts; as lists of messages where two texts cannot hold the row."""
    if not is_plain(row):
        return trl(row, names)
    completion = {} if row.completion is None else {"completion": row.completion}
    return _whole({"prompt": row.messages[0]["content"], **completion}, row, names, extras=False)


def chat(row: Row, names: Mapping) -> dict[str, Any]:
    """``messages``, the completion last. Refused where the prompt ends with the assistant and nothing
    follows.
    """
    messages, answer = chat_messages(row)
    if answer is None and messages[-1]["role"] == "assistant":
        raise Damage(
            "not expressible", "a prompt that ends with the assistant's words would be read as the answer"
        )
    if "completion" in row.tags:
        raise Damage("not expressible", "the record's own field completion has a meaning beside messages")
    return _whole({"messages": messages if answer is None else [*messages, answer]}, row, names, extras=True)


def trl(row: Row, names: Mapping) -> dict[str, Any]:
    """``prompt`` and ``completion`` as lists of messages, as trl calls conversational."""
    messages, answer = chat_messages(row)
    own = {"prompt": messages} if answer is None else {"prompt": messages, "completion": [answer]}
    return _whole(own, row, names, extras=True)


def sharegpt(row: Row, names: Mapping) -> dict[str, Any]:
    """``conversations`` of ``from`` and ``value``."""
    found = turns(row)
    if row.completion is None and found[-1]["from"] in ("gpt", "function_call"):
        raise Damage(
            "not expressible", "a prompt that ends with the assistant's words would be read as the answer"
        )
    if "system" in row.tags:
        raise Damage("not expressible", "the record's own field system has a meaning in this format")
    return _whole({"conversations": found}, row, names, extras=True)


def alpaca(row: Row, names: Mapping) -> dict[str, Any]:
    """``instruction``, ``input`` (empty) and ``output``; ``system`` and ``history`` where there are any."""
    system, rest = [], row.messages
    if rest[0]["role"] == "system":
        system, rest = [rest[0]["content"]], rest[1:]
    if not rest or rest[-1]["role"] != "user" or system == [""]:
        raise Damage(
            "not expressible", "Alpaca holds a question of the user, after a system prompt that is not empty"
        )
    own: dict[str, Any] = {"instruction": rest[-1]["content"], "input": "", "output": row.completion or ""}
    if system:
        own["system"] = system[0]
    if history := pairs(rest[:-1]):
        own["history"] = history
    if {"system", "history"} & row.tags.keys() - own.keys():
        raise Damage(
            "not expressible", "the record's own fields system and history have a meaning in this format"
        )
    return _whole(own, row, names, extras=False)


def task(row: Row, names: Mapping) -> dict[str, Any]:
    """A Label Studio task; the fields have the names that its projects use."""
    return task_of(row)


SHAPERS: dict[str, Callable[[Row, Mapping], dict[str, Any]]] = {
    "jsonl": pair,
    "chat": chat,
    "trl": trl,
    "alpaca": alpaca,
    "sharegpt": sharegpt,
    "label-studio": task,
}
