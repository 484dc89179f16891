"""Pseudonyms: the same value gets the same alias everywhere, and nobody without the key can go back.

An alias is HMAC-SHA256(key, type and canonical value) written in the shape of its type, out of ranges that
are never issued to anyone. The key is not in it, nor in the registered rows; the same value gives the same
alias in prompt and completion, in every record and in every process. A value has one alias whatever way it is
written: "(415) 555-2671" and "415-555-2671" are one number.

Nothing here finds personal data. Refused: a short key, which could be guessed.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol

from curation.errors import ConflictError, UsageError

SHORTEST_KEY = 16


class Alias(NamedTuple):
    """A registered pseudonym: ``hash`` is the keyed hash of the canonical value, in hexadecimal."""

    entity_type: str
    hash: str
    alias: str


class Known(Protocol):
    """Whatever has the three attributes of an :class:`Alias`, such as a row of the ledger."""

    @property
    def entity_type(self) -> str: ...
    @property
    def hash(self) -> str: ...
    @property
    def alias(self) -> str: ...


def canonical(entity_type: str, value: str) -> str:
    """What makes two spellings one value: no white space; digits only for phones, cards and social security
    numbers; upper-case letters and digits for other numbers; casefold for the rest.

    >>> canonical("PHONE_NUMBER", "+1 (415) 555-2671"), canonical("EMAIL_ADDRESS", "Jane@Example.com")
    ('4155552671', 'jane@example.com')
    """
    value = "".join(value.split())
    if entity_type in _DIGITS_ONLY:
        digits = "".join(c for c in value if c.isdigit())
        is_north_american = entity_type == "PHONE_NUMBER" and len(digits) == 11 and digits[0] == "1"
        return digits[1:] if is_north_american else digits or value.casefold()
    if entity_type in _LETTERS_AND_DIGITS:
        return "".join(c for c in value if c.isalnum()).upper() or value
    # Case means something in an address of a cryptocurrency and in base64.
    return value if entity_type in ("CRYPTO", "ENCODED") else value.casefold()


_DIGITS_ONLY = frozenset({"PHONE_NUMBER", "CREDIT_CARD", "US_SSN", "US_ITIN", "UK_NHS", "US_BANK_NUMBER"})
_LETTERS_AND_DIGITS = frozenset(
    {"IBAN_CODE", "MAC_ADDRESS", "UUID", "US_PASSPORT", "US_DRIVER_LICENSE", "MEDICAL_LICENSE"}
)


class Draw:
    """256 bits of an HMAC, dealt out as digits; the same bits give the same digits."""

    def __init__(self, bits: bytes) -> None:
        self._rest = int.from_bytes(bits, "big")

    def below(self, limit: int) -> int:
        """A number from 0 to ``limit - 1``."""
        self._rest, number = divmod(self._rest, limit)
        return number

    def digits(self, count: int) -> str:
        """``count`` decimal digits."""
        return "".join(str(self.below(10)) for _ in range(count))

    def hex(self, count: int) -> str:
        """``count`` hexadecimal digits."""
        return "".join(f"{self.below(16):x}" for _ in range(count))


def _email(value: str, draw: Draw) -> str:
    return f"user-{draw.hex(10)}@example.invalid"  # RFC 2606: .invalid never resolves


def _url(value: str, draw: Draw) -> str:
    scheme = re.match(r"[a-z][a-z0-9+.\-]*://", value)
    return f"{scheme.group() if scheme else ''}site-{draw.hex(10)}.example.invalid"


def _phone(value: str, draw: Draw) -> str:
    """North American: area code 555 is not assigned, and no exchange starts with 0 or 1. International:
    country code 999 is unassigned. National with a leading 0: after 00 no country code starts with 0. Too short for a
    number: a part of one."""
    if len(value) < 7:
        return f"phone-{draw.hex(10)}"
    if len(value) == 10 and value[0] != "0":
        return f"555-{draw.below(2)}{draw.digits(2)}-{draw.digits(4)}"
    if value[0] == "0":
        return f"000 {draw.digits(len(value) - 3)}"
    digits = draw.digits(len(value) - 3)
    return f"+999 {digits[:-4]} {digits[-4:]}".replace("  ", " ")


def _card(value: str, draw: Draw) -> str:
    """No card starts with 0000, and the check digit is wrong."""
    body = "0000" + draw.digits(len(value) - 5)
    right = next(d for d in "0123456789" if _luhn(body + d))
    check = str((int(right) + 1 + draw.below(9)) % 10)
    number = body + check
    return " ".join(number[i : i + 4] for i in range(0, len(number), 4))


def _luhn(number: str) -> bool:
    doubled = [int(d) * (1 + (i + len(number)) % 2) for i, d in enumerate(number, 1)]
    return sum(d - 9 if d > 9 else d for d in doubled) % 10 == 0


def _iban(value: str, draw: Draw) -> str:
    """XX is no country, and 00 is never a check number."""
    return "XX00" + "".join(draw.digits(1) if c.isdigit() else "X" for c in value[4:])


def _ip(value: str, draw: Draw) -> str:
    """IPv6: the documentation prefix. IPv4: 240.0.0.0/4, reserved and never routed; the documentation
    networks have 768 addresses in all, so that a dozen values would already collide."""
    address, slash, mask = value.partition("/")
    if ":" in address:
        fake = f"2001:db8::{draw.hex(4)}:{draw.hex(4)}:{draw.hex(4)}"
    else:
        fake = f"{240 + draw.below(15)}.{draw.below(256)}.{draw.below(256)}.{draw.below(256)}"
    return fake + slash + mask


def _mac(value: str, draw: Draw) -> str:
    """Locally administered, so of no maker."""
    return ":".join(["02", "00", "5e", draw.hex(2), draw.hex(2), draw.hex(2)])


def _social(value: str, draw: Draw) -> str:
    """No social security number starts with 9, and no taxpayer number has a group below 50."""
    return f"9{draw.digits(2)}-{10 + draw.below(40)}-{draw.digits(4)}"


def _nhs(value: str, draw: Draw) -> str:
    """999 is kept for test patients."""
    return f"999 {draw.digits(3)} {draw.digits(4)}"


def _crypto(value: str, draw: Draw) -> str:
    """The alphabet of these addresses lacks the letter O and the digit 0 respectively."""
    head = "bc1qoooo" if value[:3].lower() == "bc1" else f"{value[0]}0000"
    return head + draw.hex(max(len(value) - len(head), 10))


def _uuid(value: str, draw: Draw) -> str:
    """Version 0 does not exist."""
    return f"00000000-{draw.hex(4)}-0{draw.hex(3)}-8{draw.hex(3)}-{draw.hex(12)}"


def _number(value: str, draw: Draw) -> str:
    """Any other number: letters become X, the first digits 0, the rest is drawn. Four characters or more."""
    value = value + "0" * (4 - len(value))
    zeros = sum(c.isdigit() for c in value) // 3
    out = []
    for char in value:
        if not char.isdigit():
            out.append("X" if char.isalpha() else char)
            continue
        out.append("0" if zeros > 0 else draw.digits(1))
        zeros -= 1
    return "".join(out)


_SYLLABLES = tuple(
    f"{c}{v}" for c in ("b", "d", "g", "k", "l", "m", "n", "p", "r", "s", "t", "v", "z") for v in "aeiou"
)


def coined(draw: Draw, syllables: int = 4) -> str:
    """A word that can be spoken and that no language has given to anyone; 65 syllables, so 17 million of four."""
    return "".join(_SYLLABLES[draw.below(len(_SYLLABLES))] for _ in range(syllables)).capitalize()


def _word(value: str, draw: Draw) -> str:
    return coined(draw)


def _organisation(value: str, draw: Draw) -> str:
    """A coined name, with the legal form of the organisation where it has one."""
    form = _LEGAL_FORM.search(value)
    return f"{coined(draw)} {_FORMS[form[1]]}" if form else coined(draw)


_FORMS = {"inc": "Inc", "ltd": "Ltd", "llc": "LLC", "plc": "PLC", "corp": "Corp", "gmbh": "GmbH", "university": "University",
          "college": "College", "hospital": "Hospital", "bank": "Bank"}  # fmt: skip
_LEGAL_FORM = re.compile(rf"({'|'.join(_FORMS)})\.?$")


def _address(value: str, draw: Draw) -> str:
    """A number and a coined street; streets are not numbered from 0."""
    return f"0{draw.digits(2)} {coined(draw)} Street"


def _named(prefix: str) -> Maker:
    return lambda value, draw: f"{prefix}-{draw.hex(10)}"


Maker = Callable[[str, Draw], str]

MAKERS: dict[str, Maker] = {
    "EMAIL_ADDRESS": _email,
    "URL": _url,
    "PHONE_NUMBER": _phone,
    "CREDIT_CARD": _card,
    "IBAN_CODE": _iban,
    "IP_ADDRESS": _ip,
    "MAC_ADDRESS": _mac,
    "US_SSN": _social,
    "US_ITIN": _social,
    "UK_NHS": _nhs,
    "CRYPTO": _crypto,
    "UUID": _uuid,
    "PERSON": _word,
    "LOCATION": _word,
    "ORGANIZATION": _organisation,
    "STREET_ADDRESS": _address,
    "ZIP_CODE": _named("zip"),
    "AGE": _named("age"),
    "TITLE": _named("title"),
    "NRP": _named("people"),
    "DATE_TIME": _named("date"),
    "TERM": _named("term"),
    "ENCODED": _named("encoded"),
}
"""How an alias of each type is written, from the canonical value and the drawn digits. Other types:
letters become X, digits are drawn."""


BY_WORD = frozenset({"PERSON"})
"""Types whose values get an alias for each of their words."""

_NAME_WORD = re.compile(r"[^\W\d_]+(?:['’.\-][^\W\d_]+)*")
_AFTER_NAMES = frozenset({"jr", "sr", "ii", "iii", "iv", "phd", "md"})


def name_words(value: str) -> list[str]:
    """The words of a person's name that stand for that person: two letters or more, and no suffix; all of them where
    nothing else is left.

    >>> name_words("J. R. Doe-Smith Jr."), name_words("J. R.")
    (['Doe-Smith'], ['J', 'R'])
    """
    found = _NAME_WORD.findall(value)
    whole = [
        word for word in found if len(word) > 1 and "." not in word and word.casefold() not in _AFTER_NAMES
    ]
    return whole or found


Remember = Callable[[Alias, str], None]
"""Told an alias and the value that it stands for."""


class Aliaser:
    """Hands out aliases under a key, and remembers whose they are.

    ``known`` are the aliases that were registered before; ``is_name`` says of a word whether somebody or some place is
    called so, and then it is no alias; ``remember`` is told every alias with its value, whenever one is handed out, and is for
    a vault alone. Two values whose HMAC leads to the same alias
    (short numbers have few) get different ones: the second takes the next counter of its own HMAC. Only then
    does an alias depend on what was registered first. Raises :class:`UsageError` for a key under 16 bytes and
    :class:`ConflictError` where ``known`` gives one alias to two values.
    """

    def __init__(
        self,
        key: bytes,
        known: Iterable[Known] = (),
        is_name: Callable[[str], bool] = lambda word: False,
        remember: Remember | None = None,
    ) -> None:
        if len(key) < SHORTEST_KEY:
            raise UsageError(
                f"the pseudonym key has {len(key)} bytes, fewer than {SHORTEST_KEY}",
                next="Use a key made by `tilth init`, or os.urandom(32)",
            )
        self._key, self._is_name, self._remember = key, is_name, remember
        self._owner: dict[str, tuple[str, str]] = {}
        self._alias: dict[tuple[str, str], str] = {}
        self._new: list[Alias] = []
        self.index = AliasIndex()
        for row in known:
            self._register(row.entity_type, row.hash, row.alias)

    def _hmac(self, *parts: str) -> bytes:
        return hmac.digest(self._key, "\0".join(parts).encode("utf-8", "surrogatepass"), "sha256")

    def hash(self, entity_type: str, value: str) -> str:
        """The keyed hash under which the alias of a value is registered: 32 hexadecimal characters."""
        return self._hmac("value", entity_type, canonical(entity_type, value)).hex()[:32]

    def alias(self, entity_type: str, value: str) -> str:
        """The alias of a value; a value that is new is registered. Raises ``ValueError`` for an empty
        value.

        A person's name gets an alias word by word, so that "Jane Doe" and "Jane" are still one person: initials and
        what follows a name (Jr.) are left out where a whole word stands beside them.
        """
        if entity_type in BY_WORD and (parts := name_words(value)):
            return " ".join(self._one(entity_type, part) for part in parts)
        return self._one(entity_type, value)

    def _one(self, entity_type: str, value: str) -> str:
        whose = (entity_type, self.hash(entity_type, value))
        if whose not in self._alias:
            self._new.append(Alias(*whose, self._free(entity_type, canonical(entity_type, value), whose)))
            self._register(*self._new[-1])
        if self._remember is not None:
            self._remember(Alias(*whose, self._alias[whose]), value)
        return self._alias[whose]

    def _free(self, entity_type: str, value: str, whose: tuple[str, str]) -> str:
        if not value:
            raise ValueError(f"an empty {entity_type} has no alias")
        counter = 0
        while True:
            # A short number soon runs out of aliases of its length: every 100 tries it may grow by a digit.
            alias = self._made(entity_type, value + "0" * (counter // 100), counter, value)
            is_free = (
                self._owner.get(alias.casefold(), whose) == whose and alias.casefold() != value.casefold()
            )
            if is_free and not self._is_name(alias):
                return alias
            counter += 1

    def _made(self, entity_type: str, shape: str, counter: int, value: str) -> str:
        draw = Draw(self._hmac("alias", entity_type, value, str(counter)))
        return MAKERS.get(entity_type, _number)(shape, draw)

    def _register(self, entity_type: str, hash: str, alias: str) -> None:
        whose = (entity_type, hash)
        if self._owner.setdefault(alias.casefold(), whose) != whose:
            raise ConflictError(
                f"alias {alias!r} stands for two values",
                next="Scrub the later rows again, with the aliases that are registered by now",
            )
        self._alias[whose] = alias
        self.index.add(alias)

    def new(self) -> list[Alias]:
        """The aliases made since the last call, in order; they are to be registered."""
        made, self._new = self._new, []
        return made


_HEADS = re.compile(r"(?<!\w)(?=(\S{3}))")


class AliasIndex:
    """Finds registered aliases in text, however many there are: a look-up at the beginning of every word."""

    _HEAD = 3

    def __init__(self, aliases: Iterable[str] = ()) -> None:
        self._all: set[str] = set()
        self._lengths: dict[str, list[int]] = {}
        for alias in aliases:
            self.add(alias)

    def add(self, alias: str) -> None:
        """Make ``alias`` known."""
        self._all.add(alias)
        lengths = self._lengths.setdefault(alias[: self._HEAD], [])
        if len(alias) not in lengths:
            self._lengths[alias[: self._HEAD]] = sorted([*lengths, len(alias)], reverse=True)

    def find(self, text: str) -> list[tuple[int, int]]:
        """Where aliases stand as whole words: ranges that do not overlap, in text order, the longest
        first."""
        if not self._all or self._lengths.keys().isdisjoint(_HEADS.findall(text)):
            return []
        found, at = [], 0
        for match in _HEADS.finditer(text):
            start, head = match.start(), match[1]
            if start >= at and head in self._lengths and (end := self._end(text, start, head)):
                found.append((start, end))
                at = end
        return found

    def _end(self, text: str, start: int, head: str) -> int:
        for length in self._lengths[head]:
            end = start + length
            if text[start:end] in self._all and not _is_word(text[end : end + 1]):
                return end
        return 0


def _is_word(char: str) -> bool:
    return char.isalnum() or char == "_"


class Collision(NamedTuple):
    """An alias that means two things: ``why`` says which, ``text`` is the number of the text where it
    occurs."""

    alias: str
    why: str
    text: int | None = None


def collisions(aliases: Iterable[Known], texts: Sequence[str] | Iterator[str] = ()) -> list[Collision]:
    """Aliases that stand for two values, or that occur in ``texts`` before scrubbing: a reader would take
    the one for the other. For the gate at freezing; no aliases give none."""
    rows = list(aliases)
    owners: dict[str, set[tuple[str, str]]] = {}
    for row in rows:
        owners.setdefault(row.alias.casefold(), set()).add((row.entity_type, row.hash))
    shared = [Collision(alias, "stands for two values") for alias, whose in owners.items() if len(whose) > 1]
    index = AliasIndex(row.alias for row in rows)
    found = {
        (text[start:end], number): None
        for number, text in enumerate(texts)
        for start, end in index.find(text)
    }
    return shared + [
        Collision(alias, "occurs in the text as it was given", number) for alias, number in found
    ]


def masks(pairs: Iterable[tuple[str, str]]) -> Mapping[tuple[str, str], str]:
    """Numbered masks for types and canonical values in the order given: ``<EMAIL_ADDRESS_1>``,
    ``<EMAIL_ADDRESS_2>``."""
    made: dict[tuple[str, str], str] = {}
    counts: dict[str, int] = {}
    for entity_type, value in pairs:
        if (entity_type, value) not in made:
            counts[entity_type] = counts.get(entity_type, 0) + 1
            made[entity_type, value] = f"<{entity_type}_{counts[entity_type]}>"
    return made
