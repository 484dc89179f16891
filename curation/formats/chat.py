"""Messages as the formats of the field write them, and as Tilth holds them: ``{"role", "content"}``, nothing
else.

A call of a tool is a message of role ``tool_call`` whose content is the JSON of the call, so that every stage
and the model see it. What else a message carries (``name``, ``tool_call_id``, ``weight``) goes to the tag
``message_extras``, keyed by position, and comes back when the messages are written.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from curation.formats.rows import Damage, Row

ROLES = frozenset({"system", "developer", "user", "assistant", "tool", "function", "tool_call"})
FROM = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
    "function_call": "tool_call",
    "observation": "tool",
    "tool": "tool",
}
TO = {
    "user": "human",
    "assistant": "gpt",
    "system": "system",
    "tool_call": "function_call",
    "tool": "observation",
}
ANSWERS = ("assistant", "tool_call")
EXTRAS = "message_extras"

Messages = list[dict[str, str]]
Extras = dict[str, dict[str, Any]]


def read_messages(value: Any, name: str) -> tuple[Messages, Extras]:
    """The messages of a list in either spelling (``role``/``content`` or ``from``/``value``), and what else
    they hold.

    Raises :class:`Damage` for what is not such a list. An empty list gives no messages.
    """
    if type(value) is not list:
        raise Damage("wrong type", f"{name} is not a list of messages")
    messages: Messages = []
    extras: Extras = {}
    for place, item in enumerate(value):
        if type(item) is not dict:
            raise Damage("wrong type", f"{name}[{place}] is not a message")
        message, extra = _read_message(item, f"{name}[{place}]")
        messages.append(message)
        if extra:
            extras[str(place)] = extra
    return messages, extras


def _read_message(item: dict[str, Any], name: str) -> tuple[dict[str, str], dict[str, Any] | None]:
    role, content = item.get("role"), item.get("content")
    if type(role) is str and type(content) is str and role in ROLES and not item.get("tool_calls"):
        extra = {k: v for k, v in item.items() if k not in ("role", "content")} if len(item) > 2 else None
        return {"role": role, "content": content}, extra
    if "from" in item:
        return _read_turn(item, name)
    if role is None:
        raise Damage("missing key", f"{name} has no role")
    if role not in ROLES if type(role) is str else True:
        raise Damage("unknown role", f"the role of {name} is not one of {', '.join(sorted(ROLES))}")
    if item.get("tool_calls"):
        return {"role": "tool_call", "content": _call_text(item, name)}, None
    extra = {k: v for k, v in item.items() if k not in ("role", "content")}
    return {"role": role, "content": _parts(content, name)}, extra


def _read_turn(item: dict[str, Any], name: str) -> tuple[dict[str, str], dict[str, Any] | None]:
    """A ShareGPT turn."""
    speaker, value = item["from"], item.get("value")
    role = FROM.get(speaker) if type(speaker) is str else None
    if role is None:
        raise Damage("unknown role", f"the speaker of {name} is not one of {', '.join(FROM)}")
    if type(value) is not str:
        raise Damage("wrong type" if "value" in item else "missing key", f"the value of {name} is not text")
    return {"role": role, "content": value}, {k: v for k, v in item.items() if k not in ("from", "value")}


def _call_text(item: dict[str, Any], name: str) -> str:
    if item["role"] != "assistant":
        raise Damage("unknown role", f"{name} calls a tool, and is not the assistant's")
    try:
        return orjson.dumps({k: v for k, v in item.items() if k != "role"}).decode()
    except TypeError as error:
        raise Damage("unsupported content", f"{name} holds what JSON cannot") from error


def _parts(content: Any, name: str) -> str:
    """The text of a content that is a list of parts, as multimodal chats write it."""
    if content is None:
        raise Damage("missing key", f"{name} has no content")
    if type(content) is not list:
        raise Damage("wrong type", f"the content of {name} is not text")
    for part in content:
        if type(part) is not dict or part.get("type") != "text" or type(part.get("text")) is not str:
            raise Damage("unsupported content", f"{name} holds a part that is not text")
    return "".join(part["text"] for part in content)


def split_answer(messages: Messages, extras: Extras) -> tuple[Messages, str | None, Extras]:
    """The messages before the answer, and the answer, where the assistant speaks last.

    The extras of the answer are kept under ``answer``, with its role where that is not ``assistant``.
    """
    if not messages or messages[-1]["role"] not in ANSWERS:
        return messages, None, extras
    last = messages[-1]
    kept = {place: extra for place, extra in extras.items() if place != str(len(messages) - 1)}
    extra = dict(extras.get(str(len(messages) - 1), {}))
    if last["role"] != "assistant":
        extra["role"] = last["role"]
    return messages[:-1], last["content"], {**kept, "answer": extra} if extra else kept


def is_plain(row: Row) -> bool:
    """Whether the row is one user message and a text, so that two texts hold it."""
    return len(row.messages) == 1 and row.messages[0]["role"] == "user" and EXTRAS not in row.tags


def chat_messages(row: Row) -> tuple[list[dict[str, Any]], dict[str, Any] | None]:
    """The messages of a row, and its completion as a message, as OpenAI's chat format has them."""
    extras = _extras(row)
    messages = [_chat_message(m, extras.get(str(i), {})) for i, m in enumerate(row.messages)]
    if row.completion is None:
        return messages, None
    return messages, _chat_message(_answer(row), _rest(extras))


def turns(row: Row) -> list[dict[str, Any]]:
    """The messages and the completion of a row as ShareGPT turns."""
    extras = _extras(row)
    found = [_turn(m, extras.get(str(i), {})) for i, m in enumerate(row.messages)]
    return found if row.completion is None else [*found, _turn(_answer(row), _rest(extras))]


def _extras(row: Row) -> Mapping[str, Any]:
    """The extras of a row; none where the tag of that name is a field of the source's own."""
    found = row.tags.get(EXTRAS, {})
    whole = type(found) is dict and all(type(value) is dict for value in found.values())
    if not whole:
        raise Damage("not expressible", f"the field {EXTRAS} is not what chats are read with")
    return found


def _answer(row: Row) -> dict[str, str]:
    role = _extras(row).get("answer", {}).get("role", "assistant")
    return {"role": role, "content": row.completion or ""}


def _rest(extras: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in extras.get("answer", {}).items() if k != "role"}


def _chat_message(message: Mapping[str, str], extra: Mapping[str, Any]) -> dict[str, Any]:
    if message["role"] == "tool_call":
        return {"role": "assistant", **_call(message["content"]), **extra}
    return {"role": message["role"], "content": message["content"], **extra}


def _call(content: str) -> dict[str, Any]:
    """The tool call of OpenAI's format that a content spells, in that format or in ShareGPT's."""
    calls = _json(content)
    if type(calls) is dict and type(calls.get("tool_calls")) is list and calls["tool_calls"]:
        return calls
    listed = calls if type(calls) is list else [calls]
    if not listed or not all(type(c) is dict and {"name", "arguments"} == c.keys() for c in listed):
        raise Damage("not expressible", "a call of a tool is not JSON of a name and arguments")
    return {"content": None, "tool_calls": [{"type": "function", "function": call} for call in listed]}


def _turn(message: Mapping[str, str], extra: Mapping[str, Any]) -> dict[str, Any]:
    if message["role"] not in TO:
        raise Damage("not expressible", f"ShareGPT has no speaker for the role {message['role']}")
    value = message["content"]
    if message["role"] == "tool_call":
        value = _share_call(value)
    return {"from": TO[message["role"]], "value": value, **extra}


def _share_call(content: str) -> str:
    """A tool call as ShareGPT writes it: the JSON of name and arguments, a list where there are several."""
    found = _json(content)
    calls = found.get("tool_calls") if type(found) is dict else None
    if type(calls) is not list:
        return content
    functions = [call.get("function") if type(call) is dict else None for call in calls]
    if not all(type(f) is dict for f in functions) or found.get("content"):
        raise Damage(
            "not expressible", "ShareGPT cannot hold text beside a call, or a call that is not a function"
        )
    return orjson.dumps(functions[0] if len(functions) == 1 else functions).decode()


def _json(text: str) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return None


def pairs(messages: Sequence[Mapping[str, str]]) -> list[list[str]]:
    """User and assistant messages in turn, as Alpaca's history. Raises :class:`Damage` for another order."""
    roles = [m["role"] for m in messages]
    if roles != ["user", "assistant"] * (len(roles) // 2):
        raise Damage("not expressible", "Alpaca's history is question and answer in turn")
    texts = [m["content"] for m in messages]
    return [texts[i : i + 2] for i in range(0, len(texts), 2)]
