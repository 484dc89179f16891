"""The ``names`` layer: a small network that marks people, places, organisations, addresses, ages and titles.

It runs on numpy alone. The weights are this project's own (``names.md`` beside them says what they were made of and how
well they do); they are read from a safetensors file, whose form and version are checked. The layer answers for English.

Refused: text in another language, which raises :class:`Unscanned`, and weights that do not fit this code.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from curation.errors import IntegrityError
from curation.pii import dialled, words
from curation.pii.patterns import Deadline
from curation.pii.spans import Span, Unscanned

Floats = npt.NDArray[np.float32]

MODEL = Path(__file__).parent / "names.safetensors"
LANGUAGES = ("en",)
SCORE = 0.85
"""The score of every span, as Presidio gives to what a network finds; the network's own odds are not calibrated."""

CAUTION = 1.4
"""Taken from the score of "no name" at every token: e to its power is how many false alarms a miss is worth; four, as in F2."""

_CHUNK = 2048  # tokens of one pass through the network: its working memory stays within a core's cache
_REMEMBERED = 60_000  # distinct words whose sums are kept


@dataclass
class Network:
    """The weights, and the sums of the words that were seen so far. ``scores`` is the whole of its arithmetic."""

    labels: tuple[str, ...]
    dilations: tuple[int, ...]
    rows: npt.NDArray[np.int8]
    scale: Floats
    glued: Floats
    case: Floats
    layers: list[tuple[Floats, Floats]]
    out: Floats
    out_bias: Floats
    lexicon: dict[int, int]
    _slots: dict[str, int] = field(default_factory=dict)
    _sums: npt.NDArray[Any] = field(default_factory=lambda: np.zeros((0, 0), np.float32))

    def __post_init__(self) -> None:
        self._forget()

    def _forget(self) -> None:
        self._slots = {}
        self._sums = np.zeros((1024, int(self.rows.shape[1])), np.float32)

    def _learn(self, new: Sequence[str]) -> None:
        """Keep the sums of new words; each is added up by itself, in the order of its features."""
        first, last = len(self._slots), len(self._slots) + len(new)
        while last > len(self._sums):
            self._sums = np.concatenate([self._sums, np.zeros_like(self._sums)])
        used = [words.features(word, self.lexicon) for word in new]
        flat = np.array([row for rows in used for row in rows], np.intp)
        starts = np.cumsum([0, *map(len, used[:-1])])
        read = self.rows[flat].astype(np.float32)
        read *= self.scale[flat, None]
        np.add.reduceat(read, starts, axis=0, out=self._sums[first:last])
        self._slots.update(zip(new, range(first, last), strict=True))

    def word_sums(self, tokens: Sequence[str]) -> Floats:
        """The sum of each token's feature rows, (tokens, embedding)."""
        if len(self._slots) > _REMEMBERED:
            self._forget()
        known = self._slots
        if new := [word for word in dict.fromkeys(tokens) if word not in known]:
            self._learn(new)
        return self._sums[np.array([known[token] for token in tokens], np.intp)]

    def scores(self, texts: Sequence[words.Tokens], cases: Sequence[int]) -> list[Floats]:
        """Scores of the labels at every token of each text, (tokens, labels); they say nothing across texts."""
        ends = np.cumsum([len(text.words) for text in texts])
        return np.split(self.all_scores(texts, cases), ends[:-1])

    def all_scores(self, texts: Sequence[words.Tokens], cases: Sequence[int]) -> Floats:
        """The scores of one text behind those of the other, (tokens of all, labels).

        The texts lie behind each other with rows of zeros between them, so that no convolution sees a neighbour.
        """
        gap = max(self.dilations)
        lengths = np.array([len(text.words) for text in texts], np.intp)
        starts = np.cumsum([gap, *(lengths + gap)])
        at: Floats = np.zeros((int(starts[-1]), self.rows.shape[1]), np.float32)
        # Of each token: how many rows of zeros stand before it, and its number among the tokens.
        inside = np.repeat(starts[:-1] - np.cumsum(lengths) + lengths, lengths) + np.arange(lengths.sum())
        glued = [joined for text in texts for joined in text.glued]
        read = self.word_sums([word for text in texts for word in text.words])
        read += self.glued[np.array(glued, np.intp)]
        read += self.case[np.repeat(np.array(cases, np.intp), lengths)]
        at[inside] = read
        between = np.ones(len(at), bool)
        between[inside] = False
        gaps = np.flatnonzero(between)
        for (weights, bias), step in zip(self.layers, self.dilations, strict=True):
            at = _convolved(at, weights, bias, step, gaps)
        told: Floats = at[inside] @ self.out
        told += self.out_bias
        return told


def _convolved(at: Floats, weights: Floats, bias: Floats, step: int, gaps: npt.NDArray[np.intp]) -> Floats:
    """One convolution of width 3 at a distance of ``step``, rectified, added to its input where the sizes agree; the
    rows ``gaps`` stay zeros."""
    size, depth = at.shape
    new = at @ weights[depth : 2 * depth]
    new[step:] += at[: size - step] @ weights[:depth]
    new[: size - step] += at[step:] @ weights[2 * depth :]
    new += bias
    np.maximum(new, 0, out=new)
    if depth == new.shape[1]:
        new += at
    new[gaps] = 0
    return new


def load(path: Path = MODEL) -> Network:
    """Read and check the weights. Raises :class:`IntegrityError` where the file is missing, damaged, or of another
    version."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "np") as file:
            told = file.metadata() or {}
            arrays: dict[str, Any] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise _unfit(path, type(error).__name__) from None
    if told.get("version") != str(words.VERSION):
        raise _unfit(path, f"it is of version {told.get('version')}, and this program reads {words.VERSION}")
    return _network(told, arrays)


def _network(told: dict[str, str], arrays: dict[str, Any]) -> Network:
    def plain(name: str) -> Floats:
        return np.ascontiguousarray(arrays[name], dtype=np.float32)

    dilations = tuple(json.loads(told["dilations"]))
    keys, entries = arrays["lexicon_keys"].tolist(), arrays["lexicon_entries"].tolist()
    return Network(
        labels=tuple(json.loads(told["labels"])),
        dilations=dilations,
        rows=arrays["rows"],
        scale=plain("scale"),
        glued=plain("glued"),
        case=plain("case"),
        layers=[(plain(f"layer{i}"), plain(f"layer{i}_bias")) for i in range(len(dilations))],
        out=plain("out"),
        out_bias=plain("out_bias"),
        lexicon=dict(zip(keys, entries, strict=True)),
    )


def _unfit(path: Path, why: str) -> IntegrityError:
    return IntegrityError(
        f"the names model cannot be used: {why}",
        where=str(path),
        next="Install Tilth again, or make the model with `python -m training.names`",
    )


@lru_cache(maxsize=1)
def network() -> Network:
    """The weights that are shipped, read once."""
    return load()


def is_rare(word: str) -> bool:
    """Whether a word is hardly ever written in small letters, so that it may be taken for the name it was once."""
    return words.common(network().lexicon.get(words.key(word), 0)) < 3


def is_listed(word: str) -> bool:
    """Whether somebody or some place is called so, or the word is a common one."""
    return words.key(word) in network().lexicon


class NamesLayer:
    """Spans of the names model. Deterministic, whatever texts are looked at together."""

    def __init__(self, model: Network | None = None, *, caution: float = CAUTION) -> None:
        self._model = model or network()
        self._kinds = [label.partition("-")[2] for label in self._model.labels]
        self._begins = [label.startswith("B-") for label in self._model.labels]
        self._caution = np.zeros(len(self._model.labels), np.float32)
        self._none = self._model.labels.index("O")
        self._caution[self._none] = caution

    def find(self, text: str, language: str, deadline: Deadline) -> list[Span]:
        """Spans of one text. Raises :class:`Unscanned` for a language the model does not know."""
        return self.find_all([text], language, deadline)[0]

    def find_all(self, texts: Sequence[str], language: str, deadline: Deadline) -> list[list[Span]]:
        """Spans of several texts, looked at together, which is cheaper than one by one."""
        if language not in LANGUAGES:
            raise Unscanned(f"the names layer reads {', '.join(LANGUAGES)}, not {language!r}")
        read = [words.tokens(text) for text in texts]
        found: list[list[Span]] = []
        at = 0
        while at < len(texts):
            deadline.left()
            end, size = at + 1, len(read[at].words)
            while end < len(texts) and size + len(read[end].words) <= _CHUNK:
                size += len(read[end].words)
                end += 1
            found += self._look(texts[at:end], read[at:end])
            at = end
        return found

    def _look(self, texts: Sequence[str], read: Sequence[words.Tokens]) -> Iterator[list[Span]]:
        """The spans of each of the texts of one pass."""
        scores = self._model.all_scores(read, [words.case_of(text) for text in texts])
        best = (scores - self._caution).argmax(axis=1)
        marked = np.flatnonzero(best != self._none)
        labels = best[marked].tolist()
        ends = np.cumsum([len(tokens.words) for tokens in read])
        start, first = 0, 0
        for text, tokens, last in zip(texts, read, np.searchsorted(marked, ends).tolist(), strict=True):
            at = (marked[first:last] - start).tolist()
            yield self._spans(dict(zip(at, labels[first:last], strict=True)), tokens, text)
            start, first = start + len(tokens.words), last

    def _spans(self, labels: Mapping[int, int], tokens: words.Tokens, text: str) -> list[Span]:
        """Spans of the tokens that have a label other than none; neighbours of one type are one span, unless a label
        begins another."""
        found: list[Span] = []
        open_kind, start, end = "", 0, 0
        for i, label in labels.items():
            kind = self._kinds[label]
            goes_on = kind == open_kind and i - 1 in labels and not self._begins[label]
            if not goes_on:
                if open_kind:
                    found += _trimmed(start, end, open_kind, text)
                open_kind, start = kind, tokens.starts[i]
            end = tokens.ends[i]
        if open_kind:
            found += _trimmed(start, end, open_kind, text)
        return [span for span in found if not _is_stray_code(span, found, text)]


_EDGES = words.HIDDEN + " \n\t,;:!?\"“”()[]<>|*_/\\–—-.'’"
_OPENING = "+(#"
# Fewest digits, and a form that the value must have. A shorter number is an amount, a case or a room: it reaches nobody.
_FORMS = {
    "PHONE_NUMBER": (6, re.compile(r"^[\W\d_]*(?:(?:x|ext|extension)[\W\d_]*)?$", re.IGNORECASE)),
    "CREDIT_CARD": (12, re.compile(r"^[\W\d_]*$")),
    "US_SSN": (8, re.compile(r"^[\W\d_]*$")),
    "US_DRIVER_LICENSE": (6, re.compile(r"^[A-Z0-9 \-]*$", re.IGNORECASE)),
    "ZIP_CODE": (1, re.compile(r"^.{3,12}$")),
    "STREET_ADDRESS": (0, re.compile(r"(?<![\w])[^\W\d_]{3,}(?!\w)")),
}


_NEVER_CODES = frozenset({"PERSON", "LOCATION", "ORGANIZATION", "ZIP_CODE"})
# Order and case numbers (FR-636429), and containers by ISO 6346 (UMJU 424382-1): they name a thing.
_CODE = re.compile(r"\b(?:[A-Z]{2,5}-\d{4,}(?:-\d+)?|[A-Z]{4} ?\d{6}-?\d?|[A-Z]{1,5}\d{4,})\b")


def _trimmed(start: int, end: int, kind: str, text: str) -> list[Span]:
    """The span without punctuation at its edges; none where nothing else is in it."""
    while (
        end > start
        and text[end - 1] in _EDGES
        and not (text[end - 1] == "." and _abbreviates(text, start, end))
    ):
        end -= 1
    while start < end and text[start] in _EDGES and not (kind == "PHONE_NUMBER" and text[start] in _OPENING):
        start += 1
    return [Span(start, end, kind, SCORE)] if _may_be(kind, text, start, end) else []


def _may_be(kind: str, text: str, start: int, end: int) -> bool:
    """Whether a span can be what it was marked as: a code such as w752 is neither a street nor somebody's number."""
    value = text[start:end]
    if not value or (value[0].isalnum() and text[start - 1 : start].isalnum()):
        return False
    if (value[-1].isalnum() and text[end : end + 1].isalnum()) or (kind == "PERSON" and len(value) < 2):
        return False
    if kind in _NEVER_CODES and any(
        code.start() <= start and end <= code.end()
        for code in _CODE.finditer(text, max(0, start - 12), end + 12)
    ):
        return False
    if kind == "PHONE_NUMBER" and not dialled.may_be_meant(text, start, end):
        return False
    if kind not in _FORMS:
        return True
    fewest, form = _FORMS[kind]
    return sum(map(str.isdigit, value)) >= fewest and form.search(value) is not None


_PLACES = ("LOCATION", "STREET_ADDRESS")
_NEAR_ITS_PLACE = 40
_CODE_WORD = re.compile(r"\b(?:zip|post(?:al)?[ \-]?code)", re.IGNORECASE)


def _is_stray_code(span: Span, found: Sequence[Span], text: str) -> bool:
    """Whether a post code is no more than a number: four digits or fewer, and neither a place nor the word near by."""
    value = text[span.start : span.end]
    if span.entity_type != "ZIP_CODE" or len(value) > 4 or not value.isdecimal():
        return False
    if _CODE_WORD.search(text, max(0, span.start - _NEAR_ITS_PLACE), span.start):
        return False
    return not any(
        other.entity_type in _PLACES
        and other.start - _NEAR_ITS_PLACE < span.end
        and span.start < other.end + _NEAR_ITS_PLACE
        for other in found
    )


def _abbreviates(text: str, start: int, end: int) -> bool:
    """Whether the full stop that ends a span belongs to it: Mr., St., Inc., John R."""
    word = text[start : end - 1].rsplit(None, 1)[-1] if text[start : end - 1].split() else ""
    return len(word) == 1 or word.rstrip(".") in _ABBREVIATIONS


_ABBREVIATIONS = frozenset(
    {
        "Mr",
        "Mrs",
        "Ms",
        "Dr",
        "Prof",
        "Rev",
        "Capt",
        "Sgt",
        "Hon",
        "Mx",
        "Jr",
        "Sr",
        "St",
        "Rd",
        "Ave",
        "Blvd",
    }
    | {"Apt", "Inc", "Ltd", "Corp", "Co", "S.A", "U.S", "S.A.S", "d.o.o"}
)
