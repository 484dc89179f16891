"""Texts in, scrubbed texts out: one record is one unit, its messages and every completion, with one
numbering.

What is found in one part is replaced wherever it occurs in the others. The result is scanned again before it
is handed out, until a scan finds nothing more: scrubbing a scrubbed record changes nothing. Characters
outside spans stay as they are. A record that could not be scanned is quarantined with all its labels; nothing
of it passes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import pyarrow as pa

from curation.collector import without_collector
from curation.pii import outside
from curation.pii.aliases import Alias, Aliaser, AliasIndex, Known, Remember, canonical, masks, name_words
from curation.pii.fold import fold
from curation.pii.rule import ScrubRule
from curation.pii.scan import Scanner
from curation.pii.spans import Edit, Mark, Span, Unscanned, cut, overlaps, placed, resolve, uncut
from curation.pii.words import HIDDEN
from curation.records import DECISIONS, canonical_json, decision, table

_MASK = re.compile(r"<[A-Z][A-Z_]*_\d+>")
_Told = TypeVar("_Told")
_ROUNDS = 6
_TOGETHER = 64  # records of a view that are scrubbed together
# Types of the names model: words that are personal because of what they say, not of how they are written.
_WORDY = frozenset(
    {"PERSON", "LOCATION", "ORGANIZATION", "STREET_ADDRESS", "ZIP_CODE", "AGE", "TITLE", "NRP"}
)
_SHORTEST_LITERAL = 4
_SHORTEST_NAME = 3


@dataclass(frozen=True)
class Scrubbed:
    """The parts of one record after scrubbing, and the edits of each part in offsets of the part as it was
    given.

    In the modes ``drop`` and ``keep`` the texts are the given ones and a replacement is the text itself. ``kept`` are
    the spans of the types that the rule finds and leaves, such as dates.
    """

    texts: tuple[str, ...]
    edits: tuple[tuple[Edit, ...], ...]
    kept: tuple[tuple[Span, ...], ...] = ()

    def found(self) -> bool:
        """Whether anything was found that the rule replaces."""
        return any(self.edits)


class Unit(NamedTuple):
    """The parts of one record, to be scrubbed together.

    ``terse`` are the numbers of parts that are no prose, such as a tag: a word there is a name only where it is one
    in another part, while whatever has a format of its own is found as everywhere. What somebody ``marked`` is found
    wherever it stands.
    """

    parts: Sequence[str]
    language: str | None = None
    terse: Collection[int] = ()
    marked: Collection[Mark] = ()


Asking = Generator[list[str], list[list[Span]], _Told]
"""Work that hands out texts and gets their spans back, until it has what it was for. Whoever drives it may scan the
texts of many at once."""


class Scrubber:
    """A rule and a key at work. ``known`` are the aliases registered so far, such as rows of the ledger; ``remember`` is
    told whose each alias is, and is for a vault alone.

    ``missing`` names the listed layers that are not there: with any, every record is quarantined. Raises
    :class:`curation.errors.MissingExtra` without Presidio and :class:`curation.errors.UsageError` for a short
    key.
    """

    def __init__(
        self,
        rule: ScrubRule,
        key: bytes,
        *,
        known: Iterable[Known] = (),
        remember: Remember | None = None,
    ) -> None:
        self.rule = rule
        self.scanner = Scanner(rule)
        self.aliaser = Aliaser(key, known, _lexicon(rule), remember)

    @property
    def missing(self) -> list[str]:
        """Why listed layers are not there, in words; empty where all are."""
        return self.scanner.missing

    def detect(self, texts: Sequence[str], language: str | None = None) -> list[list[Span]]:
        """The spans of each text, registered aliases left out; they do not overlap and are in text order.

        Types that the rule keeps are among them. Raises :class:`Unscanned` at the first text that cannot be
        scanned.
        """
        (found,) = self._driven([self._seen(texts, {})], [language])
        if isinstance(found, Unscanned):
            raise found
        return found

    def scrub(
        self,
        parts: Sequence[str],
        language: str | None = None,
        *,
        terse: Collection[int] = (),
        marked: Collection[Mark] = (),
    ) -> Scrubbed:
        """Scrub the parts of one record together; see :class:`Unit`. Raises :class:`Unscanned`; no parts give no
        texts."""
        (done,) = self.scrub_all([Unit(parts, language, terse, marked)])
        if isinstance(done, Unscanned):
            raise done
        return done

    def scrub_all(self, units: Sequence[Unit]) -> list[Scrubbed | Unscanned]:
        """Each unit scrubbed as by itself, or why it could not be; their texts are scanned together, which is cheaper.

        Only where two values lead to one alias does the second's depend on the company: whichever was scanned clean
        first keeps it.
        """
        with without_collector():
            return self._driven([self._work(unit) for unit in units], [unit.language for unit in units])

    def _driven(
        self, work: Sequence[Asking[_Told]], languages: Sequence[str | None]
    ) -> list[_Told | Unscanned]:
        """What each piece of work comes to. Its texts, in its language, are scanned with those that the others want
        at the same time; a text that cannot be scanned ends the work that asked for it, and no other."""
        done: dict[int, _Told | Unscanned] = {}
        given: dict[int, list[list[Span]] | None] = dict.fromkeys(range(len(work)))
        while given:
            wanted: dict[int, list[str]] = {}
            for number, spans in given.items():
                try:
                    wanted[number] = next(work[number]) if spans is None else work[number].send(spans)
                except StopIteration as stop:
                    done[number] = stop.value
                except Unscanned as error:
                    done[number] = error
            asked = [(text, languages[number]) for number, texts in wanted.items() for text in texts]
            told = iter(self.scanner.scan_all(asked))
            given = {}
            for number, texts in wanted.items():
                answers = [next(told) for _ in texts]
                failed = next((answer for answer in answers if isinstance(answer, Unscanned)), None)
                if failed is not None:
                    done[number] = failed
                else:
                    given[number] = [answer for answer in answers if not isinstance(answer, Unscanned)]
        return [done[number] for number in range(len(work))]

    def _seen(self, hidden: Sequence[str], known: dict[str, list[Span]]) -> Asking[list[list[Span]]]:
        """Spans of texts in which what was replaced is hidden; aliases are hidden too, where there is anything at all.
        ``known`` holds what was seen of the same record so far, so that no text is scanned twice."""
        yield from _ask(hidden, known)
        clean = [self._hidden(text) if known[text] else text for text in hidden]
        yield from _ask(clean, known)
        return [known[text] for text in clean]

    def _work(self, unit: Unit) -> Asking[Scrubbed]:
        """Scan, replace and scan again until nothing more is found. Raises :class:`Unscanned` where that never ends."""
        parts = unit.parts
        edits: list[list[Edit]] = [[] for _ in parts]
        known: dict[str, list[Span]] = {}
        left: list[list[Span]] | None = None
        for _ in range(_ROUNDS):
            more, kept = yield from self._found(unit, edits, known)
            left = kept if left is None else left
            if not any(more):
                texts = tuple(cut(*pair) for pair in zip(parts, edits, strict=True))
                return Scrubbed(texts, _frozen(edits), _standing(left, edits))
            edits = self._replaced(parts, [_joined(old, new) for old, new in zip(edits, more, strict=True)])
            if self.rule.mode in ("drop", "keep"):
                return Scrubbed(tuple(parts), _frozen(edits), _standing(left, edits))
        raise Unscanned(f"after {_ROUNDS} rounds the scrubbed text still held personal data")

    def _found(
        self, unit: Unit, edits: Sequence[Sequence[Edit]], known: dict[str, list[Span]]
    ) -> Asking[tuple[list[list[Span]], list[list[Span]]]]:
        """What a scan of every part as it stands now finds, in offsets of the part as it was given; and what it finds
        and leaves, in offsets of the part as it stands."""
        now = [cut(part, done) for part, done in zip(unit.parts, edits, strict=True)]
        hidden = [_hide(text, placed(done)) for text, done in zip(now, edits, strict=True)]
        seen = yield from self._seen(hidden, known)
        for number in unit.terse:
            seen[number] = [span for span in seen[number] if span.entity_type not in _WORDY]
        kept = [[s for s in spans if s.entity_type in self.rule.kept] for spans in seen]
        found = [[s for s in spans if s.entity_type not in self.rule.kept] for spans in seen]
        values = _values(now, found) | _values(unit.parts, edits) | {_literal(mark) for mark in unit.marked}
        for number, text in enumerate(hidden):
            # Looking for an alias costs more than looking for the few values, so they are looked for first.
            if held := _held(text, values):
                found[number] = resolve([*found[number], *_literally(self._hidden(text), held)])
        return [
            [s.at(*uncut(done, s.start, s.end)) for s in spans]
            for done, spans in zip(edits, found, strict=True)
        ], kept

    def _hidden(self, text: str) -> str:
        """``text`` without registered aliases and masks."""
        return _hide(text, stand_ins(text, self.aliaser.index))

    def _replaced(self, parts: Sequence[str], spans: Sequence[Sequence[Span]]) -> list[list[Edit]]:
        """The spans with what takes their place, numbered through all parts."""
        values = _of_one_type(
            [[_value(part, span) for span in found] for part, found in zip(parts, spans, strict=True)]
        )
        if self.rule.mode == "pseudonym":
            new = [[self.aliaser.alias(*value) for value in row] for row in values]
        elif self.rule.mode == "mask":
            keys = [[(kind, canonical(kind, text)) for kind, text in row] for row in values]
            made = masks(key for row in keys for key in row)
            new = [[made[key] for key in row] for row in keys]
        else:
            new = [[part[s.start : s.end] for s in found] for part, found in zip(parts, spans, strict=True)]
        return [
            [Edit(*s, word) for s, word in zip(*row, strict=True)] for row in zip(spans, new, strict=True)
        ]


def _ask(texts: Iterable[str], known: dict[str, list[Span]]) -> Asking[None]:
    """Hand out the texts that are not known yet, and note their spans."""
    new = [text for text in dict.fromkeys(texts) if text not in known]
    if new:
        known.update(zip(new, (yield new), strict=True))


def _standing(
    kept: Sequence[Sequence[Span]], edits: Sequence[Sequence[Edit]]
) -> tuple[tuple[Span, ...], ...]:
    """The kept spans that no edit touched."""
    return tuple(
        tuple(span for span in spans if not any(overlaps(span, edit) for edit in done))
        for spans, done in zip(kept, edits, strict=True)
    )


def _frozen(edits: Iterable[Iterable[Edit]]) -> tuple[tuple[Edit, ...], ...]:
    return tuple(tuple(row) for row in edits)


def _hide(text: str, ranges: Sequence[tuple[int, int]]) -> str:
    """``text`` with the ranges blanked by characters that nothing matches, of the same length."""
    for start, end in ranges:
        text = text[:start] + HIDDEN * (end - start) + text[end:]
    return text


def _joined(old: Sequence[Edit], new: Sequence[Span]) -> list[Span]:
    """Old and new spans as one list; a new span that swallows an old one takes its place."""
    kept = [Span(*edit[:4]) for edit in old if not any(overlaps(edit, span) for span in new)]
    return sorted([*kept, *new])


def _value(part: str, span: Span) -> tuple[str, str]:
    return span.entity_type, fold(part[span.start : span.end]).text


def _of_one_type(values: list[list[tuple[str, str]]]) -> list[list[tuple[str, str]]]:
    """A bare number can look like a phone here and like an account there; in one record it is what it was
    first."""
    first: dict[str, str] = {}
    return [[(first.setdefault(_bare(text), kind), text) for kind, text in row] for row in values]


def _bare(text: str) -> str:
    return "".join(c for c in text if c.isalnum()).casefold()


def _lexicon(rule: ScrubRule) -> Callable[[str], bool]:
    """Whether a word is somebody's name or a place's, as far as the names model knows; nothing is where no layer finds
    names."""
    if "names" not in rule.layers and not any(map(outside.split, rule.layers)):
        return lambda word: False
    from curation.pii.names import is_listed

    return is_listed


class _Literal(NamedTuple):
    """A text that was found, to be replaced wherever it stands as a whole word; ``loose``: in whatever case, ``within``:
    inside words too.
    """

    value: str
    entity_type: str
    score: float
    loose: bool = False
    within: bool = False


def _literal(mark: Mark) -> _Literal:
    """A mark as what is looked for: a person in whatever case, and whatever is not too short inside words too, where the
    marked text may be followed by an ending.
    """
    loose = mark.entity_type == "PERSON"
    value = mark.text.lower() if loose else mark.text
    return _Literal(value, mark.entity_type, 1.0, loose, within=len(value) >= _SHORTEST_LITERAL)


def stand_ins(text: str, index: AliasIndex) -> list[tuple[int, int]]:
    """Where aliases and masks stand in ``text``, which took the place of what was there; in no order."""
    return [*index.find(text), *(match.span() for match in _MASK.finditer(text))]


def is_telling(text: str) -> bool:
    """Whether a text says who or what by itself: it holds a digit, or a word that is hardly ever written small."""
    from curation.pii.names import is_rare

    return any(map(str.isdigit, text)) or any(
        len(word) >= _SHORTEST_NAME and is_rare(word) for word in name_words(text)
    )


def stands_in(text: str, mark: Mark) -> bool:
    """Whether what was marked stands in ``text``, by the same eyes as scrubbing."""
    return any(_literally(text, [_literal(mark)]))


def _values(parts: Sequence[str], spans: Sequence[Sequence[Span | Edit]]) -> set[_Literal]:
    """The texts that were found, with type and score; very short ones would match too much."""
    found = (
        _Literal(part[s.start : s.end], s.entity_type, s.score)
        for part, row in zip(parts, spans, strict=True)
        for s in row
    )
    kept = {f for f in found if len(f.value) >= _SHORTEST_LITERAL and HIDDEN not in f.value}
    people = [f for f in kept if f.entity_type == "PERSON"]
    return kept | {name for person in people for name in _names_of(person)}


def _names_of(person: _Literal) -> Iterator[_Literal]:
    """The words of a person's name that are no common words: each stands for the person, in any case."""
    from curation.pii.names import is_rare

    for word in name_words(person.value):
        if len(word) >= _SHORTEST_NAME and is_rare(word):
            yield _Literal(word.lower(), person.entity_type, person.score, loose=True)


def _held(text: str, values: Iterable[_Literal]) -> list[_Literal]:
    """The values that occur in the text, be it inside a word or an alias."""
    lowered = text.lower()
    return [literal for literal in values if literal.value in (lowered if literal.loose else text)]


def _literally(text: str, values: Iterable[_Literal]) -> Iterator[Span]:
    """Where the values occur in the text, as whole words unless a value says otherwise."""
    lowered = text.lower()
    for literal in values:
        # A letter whose small form is longer would shift the offsets.
        where = lowered if literal.loose and len(lowered) == len(text) else text
        at = where.find(literal.value)
        while at >= 0:
            end = at + len(literal.value)
            if literal.within or not (_in_word(where[at - 1 : at]) or _in_word(where[end : end + 1])):
                yield Span(at, end, literal.entity_type, literal.score)
            at = where.find(literal.value, at + 1)


def _in_word(char: str) -> bool:
    return char.isalnum() or char == "_"


def scrub_texts(parts: Sequence[str], scrubber: Scrubber, *, language: str | None = None) -> Scrubbed:
    """Scrub the text fields of one row together, with the replacement in every edit. Raises
    :class:`Unscanned`."""
    return scrubber.scrub(parts, language)


def scrub_view(
    view: pa.Table, scrubber: Scrubber, marked: Mapping[str, Collection[Mark]] | None = None
) -> tuple[pa.Table, list[Alias]]:
    """Decisions for a table of :data:`curation.records.VIEW`, and the aliases to register.

    A record's rows belong together: all of them must be in ``view``. One decision per changed thing: without
    label for the messages (``output`` is their canonical JSON), with label for a completion (``output`` is
    its text). A record that cannot be scanned gets a ``quarantine`` for the record and each label, with a
    reason that starts with "unscanned:". Mode ``drop`` drops the completion that holds personal data, or all
    of a record whose messages do; mode ``keep`` reports spans as ``keep``. Evidence holds types and offsets,
    never text. Rows without a finding get no decision; an empty table gives an empty one. ``marked`` holds what people
    marked in each record, which counts as found.
    """
    told = marked or {}
    found = _records(view)
    rows: list[dict[str, Any]] = []
    for start in range(0, len(found), _TOGETHER):
        some = found[start : start + _TOGETHER]
        for record, done in zip(
            some, scrubber.scrub_all([r.unit(told.get(r.id, ())) for r in some]), strict=True
        ):
            rows += _decide(record, done, scrubber.rule.mode)
    return table(rows, DECISIONS), scrubber.aliaser.new()


@dataclass(frozen=True)
class _Record:
    """A record with all its labels, as the view holds them."""

    id: str
    messages: list[dict[str, str]]
    language: str | None
    completions: dict[str | None, str]

    @property
    def labels(self) -> list[str | None]:
        """The record itself, then its labels."""
        return [None, *(label for label in self.completions if label is not None)]

    def unit(self, marked: Collection[Mark]) -> Unit:
        """The contents of the messages, then the completions, and what somebody marked in them."""
        contents = [message["content"] or "" for message in self.messages]
        parts = [*contents, *self.completions.values()]
        # An answer of one word is a class more often than somebody's name, and must stay the class that it is.
        terse = [i for i in range(len(contents), len(parts)) if not any(map(str.isspace, parts[i]))]
        return Unit(parts, self.language, terse, marked)


def _records(view: pa.Table) -> list[_Record]:
    """The records of the view, in the order of their first row."""
    found: dict[str, _Record] = {}
    names = ("record", "label", "messages", "completion", "lang")
    for record, label, messages, completion, lang in zip(*(view[n].to_pylist() for n in names), strict=True):
        whole = found.setdefault(record, _Record(record, messages or [], lang, {}))
        if completion is not None:
            whole.completions[label] = completion
    return list(found.values())


def _decide(record: _Record, done: Scrubbed | Unscanned, mode: str) -> Iterator[dict[str, Any]]:
    if isinstance(done, Unscanned):
        for label in record.labels:
            yield decision(record.id, "quarantine", f"unscanned: {done}", label=label)
    elif done.found():
        yield from _outcome(record, done, len(record.messages), mode)


def _outcome(record: _Record, done: Scrubbed, count: int, mode: str) -> Iterator[dict[str, Any]]:
    """The decisions of a record in which something was found; its first ``count`` parts are its messages."""
    messages = done.edits[:count]
    if any(messages):
        texts = zip(record.messages, done.texts, strict=False)
        body = canonical_json([{**message, "content": text} for message, text in texts]).decode()
        yield _decision(record.id, None, messages, body, mode)
    for label, text, edits in zip(record.completions, done.texts[count:], done.edits[count:], strict=True):
        if edits or (mode == "drop" and any(messages) and label is not None):
            yield _decision(record.id, label, (edits,), text, mode)


def _decision(
    record: str, label: str | None, edits: Sequence[Sequence[Edit]], output: str, mode: str
) -> dict[str, Any]:
    action = {"pseudonym": "rewrite", "mask": "rewrite"}.get(mode, mode)
    return decision(
        record,
        action,
        _reason(edits, label, action),
        label=label,
        evidence={"spans": [span for part, row in enumerate(edits) for span in _evidence(part, row, action)]},
        output=output if action == "rewrite" else None,
    )


def _reason(edits: Sequence[Sequence[Edit]], label: str | None, action: str) -> str:
    counts: dict[str, int] = {}
    for edit in (edit for row in edits for edit in row):
        counts[edit.entity_type] = counts.get(edit.entity_type, 0) + 1
    if not counts:
        return "personal data in the messages that this answers"
    words = ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items()))
    where = "messages" if label is None else "completion"
    return f"personal data in the {where}: {words}" + (" replaced" if action == "rewrite" else "")


def _evidence(part: int, edits: Sequence[Edit], action: str) -> Iterator[dict[str, Any]]:
    for edit in edits:
        seen = {
            "part": part,
            "start": edit.start,
            "end": edit.end,
            "entity_type": edit.entity_type,
            "score": edit.score,
        }
        yield {**seen, "replacement": edit.replacement} if action == "rewrite" else seen
