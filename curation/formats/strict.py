"""One JSON value, read strictly, or the right reason why not.

orjson reads; what it lets pass silently (a key given twice, an integer that became a float) is checked, and
what it refuses is read again, slowly, to say in words what is wrong. No input raises anything but
:class:`Damage`, and no message quotes a record's text, which may hold personal data: a message reaches logs,
the record does not.
"""

from __future__ import annotations

import json
import re
from typing import Any, NoReturn

import orjson

from curation.formats.rows import Damage

# An upper bound of the number of keys: a quote inside a text is escaped, and may still stand before a colon.
_KEY = re.compile(rb'"[ \t\r\n]*:')
_SPACE = " \t\r\n"
_LITERAL = re.compile(r"[A-Za-z_$][\w$]*")
_EXACT = float(2**63)
_LARGE = 1 << 20


def parse(raw: bytes) -> Any:
    """The value that ``raw`` spells. Raises :class:`Damage`."""
    if not raw or raw.isspace():
        raise Damage("blank line", "there is nothing on the line")
    try:
        value = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise diagnose(raw, str(error)) from None
    keys, large = _survey(value)
    if large or (keys != raw.count(b":") and keys != _spelled_keys(raw)):
        _check_slowly(raw)
    return value


def _spelled_keys(raw: bytes) -> int:
    """How many keys ``raw`` seems to spell, counted without a list of them where there may be a million."""
    if len(raw) < _LARGE:
        return len(_KEY.findall(raw))
    return sum(1 for _ in _KEY.finditer(raw))


def _survey(value: Any) -> tuple[int, bool]:
    """The number of keys in ``value``, and whether a float may have been an integer of more than 64 bits."""
    keys, large, todo = 0, False, [value]
    while todo:
        item = todo.pop()
        if type(item) is dict:
            keys += len(item)
            item = item.values()
        elif type(item) is not list:
            item = (item,)
        for part in item:
            kind = type(part)
            if kind is dict or kind is list:
                todo.append(part)
            elif kind is float and not -_EXACT < part < _EXACT:
                large = True
    return keys, large


def _check_slowly(raw: bytes) -> None:
    try:
        json.loads(raw, object_pairs_hook=_unique, parse_int=_integer, parse_constant=_constant)
    except RecursionError:
        raise Damage("too deep", "the record is nested too deeply") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        name = next(k for k, _ in pairs if k in seen or seen.add(k))  # type: ignore[func-returns-value]
        raise Damage("duplicate key", f"the key {_short(name)} stands twice")
    return found


def _integer(text: str) -> int:
    if len(text) > 20 or not -(2**63) <= int(text) < 2**64:
        raise Damage("bad number", f"an integer of {len(text)} digits has more than 64 bits")
    return int(text)


def _constant(name: str) -> NoReturn:
    raise Damage("not a number", f"{name} is not JSON")


def spelling(raw: bytes | None, path: tuple[str, ...], value: float) -> str:
    """How the number at ``path`` is written in ``raw``: ``1.50`` is not ``1.5`` where it is text."""
    if raw is None:
        return repr(value)
    found: Any = json.loads(raw, parse_float=str)
    for name in path:
        found = found[name]
    return str(found)


def diagnose(raw: bytes, error: str) -> Damage:
    """Why ``raw`` is not JSON; ``error`` is what orjson said, the answer of last resort."""
    if raw.startswith(b"\xef\xbb\xbf"):
        return Damage("byte order mark", "a byte order mark stands at the start of the record")
    try:
        text = raw.decode()
    except UnicodeDecodeError as bad:
        return Damage("not utf-8", f"byte {bad.start + 1} (0x{raw[bad.start]:02x}) is not UTF-8")
    if "\0" in text:
        return Damage("nul character", f"a NUL stands at byte {raw.index(0) + 1}")
    if "depth limit" in error:
        return Damage("too deep", "the record is nested too deeply")
    try:
        return _diagnose(text, error)
    except RecursionError:
        return Damage("too deep", "the record is nested too deeply")


def _diagnose(text: str, error: str) -> Damage:
    start = len(text) - len(text.lstrip(_SPACE))
    decoder = json.JSONDecoder(parse_constant=_constant, parse_int=_integer, object_pairs_hook=_unique)
    try:
        value, end = decoder.raw_decode(text, start)
    except json.JSONDecodeError as bad:
        return _at(text, bad.pos, bad.msg)
    except Damage as damage:
        return damage
    except ValueError as bad:  # Python refuses to convert thousands of digits
        return Damage("bad number", str(bad))
    if text[end:].strip(_SPACE):
        return (
            _behind(text, end) if type(value) in (dict, list) else _at(text, end, "Expecting ',' delimiter")
        )
    if re.search("[\ud800-\udfff]", json.dumps(value, ensure_ascii=False)):
        return Damage("lone surrogate", "half of a surrogate pair stands alone")
    if "infinity" in error:
        return Damage("bad number", "a number is too large for a double")
    return Damage("syntax error", error)


def _behind(text: str, end: int) -> Damage:
    """What stands behind a complete value."""
    rest = text[end:].lstrip(_SPACE)
    gap = text[end : len(text) - len(rest)]
    if not rest.strip(", \t\r\n"):
        return Damage("bare comma", "a comma follows the record")
    if "\r" in gap:
        return Damage("carriage return", "records are separated by a carriage return alone")
    if rest.startswith(("//", "/*", "#")):
        return Damage("comment", "a comment follows the record")
    return Damage(
        "trailing text", f"the record ends at byte {len(text[:end].encode())}, and more text follows"
    )


def _at(text: str, position: int, message: str) -> Damage:
    """What is wrong where Python's reader stopped. Judged by the text there rather than by its words."""
    rest = text[position:].lstrip(_SPACE)
    before = text[:position].rstrip(_SPACE)
    byte = f"at byte {len(text[:position].encode('utf-8', 'surrogatepass')) + 1}"
    if message.startswith("Unterminated string"):
        return Damage("truncated", f"the text that starts {byte} has no end")
    if not rest:
        return Damage("truncated", "the record breaks off")
    if message.startswith("Invalid control"):
        return Damage("control character", f"the control character U+{ord(text[position]):04X} stands {byte}")
    if message.startswith("Invalid \\"):
        cut = '"' not in text[position + 1 :]  # \u12 at the very end of a cut record
        return Damage("truncated" if cut else "bad escape", f"the escape {byte} is not known to JSON")
    if _is_comma(rest, before, message):
        return Damage("bare comma", f"a comma without a value {byte}")
    return _token(rest, before, message, byte, text[position - 1 : position])


def _is_comma(rest: str, before: str, message: str) -> bool:
    if "':'" in message:
        return False
    return rest[0] == "," or (rest[0] in "}]" and before.endswith(","))


def _token(rest: str, before: str, message: str, byte: str, last: str) -> Damage:
    """The reason by the token that was found where another was expected."""
    if rest[0] == "'":
        return Damage("single quotes", f"a single quote {byte}")
    if rest.startswith(("//", "/*", "#")):
        return Damage("comment", f"a comment {byte}")
    if "delimiter" in message and last.isdigit() and rest[0] in "0123456789.eExX_":
        return Damage("bad number", f"the number {byte} is not JSON")
    if "','" in message:
        return Damage("missing comma", f"a comma is missing {byte}")
    if "':'" in message:
        return Damage("missing colon", f"a colon is missing {byte}")
    if "property name" in message and _LITERAL.match(rest):
        return Damage("unquoted key", f"the key {byte} has no quotes")
    if "property name" not in message and before:
        return _value(rest, byte)
    return _value(rest, byte) if _is_word(rest) else Damage("syntax error", f"no JSON value starts {byte}")


def _is_word(rest: str) -> bool:
    """Whether a bare word or number is all there is."""
    return bool(re.fullmatch(r"[-+.\w]+", rest.strip(_SPACE)))


def _value(rest: str, byte: str) -> Damage:
    word = re.match(r"[-+]?[A-Za-z_.\d]*", rest)
    name = word.group() if word else ""
    if name.strip("+-").lower() in ("nan", "inf", "infinity"):
        return Damage("not a number", f"{name} {byte} is not JSON")
    if re.fullmatch(r"[-+]?\.?\d.*|[-+]", name):
        return Damage("bad number", f"the number {byte} is not JSON")
    if _LITERAL.fullmatch(name):
        known = f"{name} " if name in ("None", "True", "False", "undefined") else ""
        return Damage("bad literal", f"the word {known}{byte} is not JSON")
    return Damage("syntax error", f"no JSON value starts {byte}")


def _short(text: str) -> str:
    """The beginning of a key, printable, for a message."""
    return ascii(text[:40]) + ("..." if len(text) > 40 else "")
