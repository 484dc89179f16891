"""Damaged JSON lines whose damage is known: the line it stands on, and the reason that a reader must give.

Any test that reads files may use :func:`damaged`; the generator never imports the reader.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass

GOOD = '{"prompt":"Where is order 7?","completion":" It left today."}'


@dataclass(frozen=True)
class Kind:
    """One kind of damage: its name, the reason code to expect, and what it makes of a good line."""

    name: str
    reason: str
    spoil: Callable[[bytes], bytes]


def _line(text: str) -> Callable[[bytes], bytes]:
    return lambda good: text.encode("utf-8", "surrogatepass")


def _end(text: bytes) -> Callable[[bytes], bytes]:
    return lambda good: good + text


KINDS = (
    Kind("empty line", "blank line", _line("")),
    Kind("white space alone", "blank line", _line(" \t ")),
    Kind("cut inside a text", "truncated", lambda good: good[: good.index(b"completion") + 16]),
    Kind("cut after a colon", "truncated", _line('{"prompt":"a","completion":')),
    Kind("cut before the last brace", "truncated", lambda good: good[:-1]),
    Kind("bare comma before the brace", "bare comma", lambda good: good[:-1] + b",}"),
    Kind("two commas", "bare comma", _line('{"prompt":"a",,"completion":"b"}')),
    Kind("comma after the record", "bare comma", _end(b",")),
    Kind("a comma alone", "bare comma", _line(",")),
    Kind("text after the record", "trailing text", _end(b" oops")),
    Kind("two records on a line", "trailing text", lambda good: good + good),
    Kind("records joined by CR", "carriage return", lambda good: good + b"\r" + good),
    Kind("a list", "not an object", _line('["a","b"]')),
    Kind("a text", "not an object", _line('"prompt"')),
    Kind("null", "not an object", _line("null")),
    Kind("no prompt", "missing key", _line('{"completion":"b"}')),
    Kind("an empty object", "missing key", _line("{}")),
    Kind("prompt is a number", "wrong type", _line('{"prompt":5,"completion":"b"}')),
    Kind("prompt is an object", "wrong type", _line('{"prompt":{"a":1},"completion":"b"}')),
    Kind("completion is an object", "wrong type", _line('{"prompt":"a","completion":{"b":1}}')),
    Kind("an empty prompt", "empty prompt", _line('{"prompt":"","completion":"b"}')),
    Kind("a prompt of white space", "empty prompt", _line('{"prompt":" \\n","completion":"b"}')),
    Kind("an empty completion", "empty completion", _line('{"prompt":"a","completion":""}')),
    Kind("half of a UTF-8 character", "not utf-8", lambda good: good[:-2] + "€".encode()[:2] + b'"}'),
    Kind("Latin-1", "not utf-8", lambda good: good.replace(b"today", "à midi".encode("latin-1"))),
    Kind("a mark in mid-file", "byte order mark", lambda good: b"\xef\xbb\xbf" + good),
    Kind("a raw NUL", "nul character", lambda good: good.replace(b"today", b"to\0day")),
    Kind("an escaped NUL", "nul character", _line('{"prompt":"a\\u0000b","completion":"c"}')),
    Kind("a raw tab", "control character", lambda good: good.replace(b"today", b"to\tday")),
    Kind("a lone surrogate", "lone surrogate", _line('{"prompt":"a\\ud800b","completion":"c"}')),
    Kind("an unknown escape", "bad escape", _line('{"prompt":"a\\x41","completion":"c"}')),
    Kind("NaN", "not a number", _line('{"prompt":"a","completion":"b","score":NaN}')),
    Kind("single quotes", "single quotes", _line("{'prompt':'a','completion':'b'}")),
    Kind("None", "bad literal", _line('{"prompt":"a","completion":None}')),
    Kind("a key twice", "duplicate key", _line('{"prompt":"a","completion":"b","prompt":"c"}')),
    Kind("deep nesting", "too deep", _line('{"prompt":"a","x":' + "[" * 5000 + "]" * 5000 + "}")),
    Kind("another shape", "mixture", _line('{"messages":[{"role":"user","content":"a"}]}')),
)


@dataclass(frozen=True)
class Damaged:
    """A file of JSON lines, and the damage in it: line number to kind, and line number to byte offset."""

    data: bytes
    lines: int
    damage: dict[int, Kind]
    offsets: dict[int, int]


def damaged(lines: int = 1000, seed: int = 0, each: int = 1) -> Damaged:
    """A file of ``lines`` lines with every kind of damage ``each`` times, at places that ``seed`` chooses."""
    draw = random.Random(seed)
    kinds = [kind for kind in KINDS for _ in range(each)]
    places = draw.sample(range(2, lines + 1), len(kinds))  # the first line may bear a byte order mark
    damage = dict(zip(places, kinds, strict=True))
    data, offsets = bytearray(), {}
    for number in range(1, lines + 1):
        offsets[number] = len(data)
        good = _good(number)
        data += (damage[number].spoil(good) if number in damage else good) + b"\n"
    return Damaged(bytes(data), lines, damage, offsets)


def _good(number: int) -> bytes:
    """A good line; some hold what looks like damage and is none."""
    odd = ("", "\u202e", "\u2028", " \\u0041", "�", " 'x': None, NaN,", ' \\":', "{[", "\ufeff")[number % 9]
    text = json.dumps({"prompt": f"Where is order {number}?{odd}", "completion": f" It left today. {odd}"})
    return text.encode() if number % 2 else json.dumps(json.loads(text), ensure_ascii=False).encode()
