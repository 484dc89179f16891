"""Layers made of models that somebody else trained: a spaCy pipeline, a token classifier of transformers.

A model is loaded when its layer is listed, from this machine alone: no hub is asked, and of a token classifier neither
weights are unpickled nor code is run that comes with it. A spaCy pipeline may bring code of its own, as an installed
package: list one that you trust. What cannot be used says so in a :class:`UsageError` with what to do next. Labels become
our types by :mod:`curation.pii.labels`; offsets are code points of the text.

Each text is looked at by itself, so that no text's spans depend on its company.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from curation.errors import UsageError
from curation.pii import labels, outside
from curation.pii.patterns import Deadline
from curation.pii.spans import Span, Unscanned
from curation.text import is_unspaced

SPACY_SCORE = 0.85
"""The score of what a spaCy pipeline marks, which gives none of its own; Presidio's analyzer takes the same."""

LONGEST_WINDOW = 512
"""Tokens of one pass through a token classifier, or fewer where the model takes fewer. A quarter is overlap."""

_EXTRAS = {"spacy": "pii", "transformers": "train", "torch": "train"}
_VISIBLE = re.compile("[^\ufffc]+")  # what stands where a value was replaced is nobody's name


class ModelLayer(Protocol):
    """A layer with the labels that its model gives."""

    @property
    def labels(self) -> tuple[str, ...]: ...

    def find(self, text: str, language: str, deadline: Deadline) -> list[Span]: ...


def load(layer: str, threshold: float) -> ModelLayer:
    """The layer ``KIND:MODEL``, ready to look at texts; spans below ``threshold`` are left out.

    Raises :class:`UsageError` where a package or the model is missing or cannot be read, with what to do next.
    """
    told = outside.split(layer)
    if told is None:
        raise UsageError(f"layer {layer!r} is not installed", next=f"Known kinds: {', '.join(_LOADERS)}")
    kind, model = told
    return _LOADERS[kind](layer, model, threshold)


@contextmanager
def _usable(layer: str, package: str, remedy: str) -> Iterator[None]:
    """Turn whatever a library says while it loads a model into one :class:`UsageError`."""
    try:
        yield
    except UsageError:
        raise
    except ModuleNotFoundError as error:
        missing = error.name or package
        wanted = f"'tilth[{_EXTRAS[missing]}]'" if missing in _EXTRAS else missing
        raise UsageError(
            f"the package {missing} is not installed",
            where=f"layer {layer!r}",
            next=f"Install it: pip install {wanted}",
        ) from None
    except Exception as error:  # a library may raise anything over a folder that holds something else
        said = (str(error).strip().splitlines() or [""])[0][:200]
        raise UsageError(
            f"the model cannot be loaded: {type(error).__name__}: {said}",
            where=f"layer {layer!r}",
            next=remedy,
        ) from None


def _folder(layer: str, *holds: str) -> Path:
    """The folder of a layer's model, which holds a file of each of the names."""
    at = outside.folder(layer)
    if at is None:
        raise UsageError(
            "there is no such folder", where=f"layer {layer!r}", next="Put the model's files there"
        )
    for name in holds:
        if not any(at.glob(name)):
            raise UsageError(
                f"the folder holds no {name}",
                where=f"layer {layer!r}",
                next="Save the model there, as safetensors",
            )
    return at


def spans_of(text: str, found: Iterable[tuple[int, int, str, float]], threshold: float) -> list[Span]:
    """Start, end, label and score of what a model marked, as spans of our types: without white space at their edges,
    and none of a label that is not personal, below the threshold, or of signs alone."""
    spans = []
    for start, end, label, score in found:
        kind = labels.entity_type(label)
        if kind is None or score < threshold:
            continue
        for match in _VISIBLE.finditer(text, start, end):
            part = match.group()
            first = match.start() + len(part) - len(part.lstrip())
            last = first + len(part.strip())
            if any(map(str.isalnum, text[first:last])):
                spans.append(Span(first, last, kind, float(score)))
    return spans


# --- spaCy ----------------------------------------------------------------------------------------------------


class SpacyLayer:
    """The entities of a spaCy pipeline. It answers for the pipeline's language; ``xx`` for all."""

    def __init__(self, pipeline: Any, labels: tuple[str, ...], threshold: float) -> None:
        self._pipeline, self.labels, self._threshold = pipeline, labels, threshold

    def find(self, text: str, language: str, deadline: Deadline) -> list[Span]:
        """Spans of one text. Raises :class:`Unscanned` for another language and after the deadline."""
        if self._pipeline.lang not in ("xx", language):
            raise Unscanned(f"the spaCy pipeline reads {self._pipeline.lang!r}, not {language!r}")
        entities = self._pipeline(text).ents
        deadline.left()
        marked = ((e.start_char, e.end_char, e.label_, SPACY_SCORE) for e in entities)
        return spans_of(text, marked, self._threshold)


def _spacy(layer: str, model: str, threshold: float) -> SpacyLayer:
    remedy = f"Install the pipeline (python -m spacy download {model}) or name the folder of one"
    with _usable(layer, "spacy", remedy):
        import spacy

        if outside.folder(layer) is None:
            raise UsageError("no such package or folder", where=f"layer {layer!r}", next=remedy)
        pipeline = spacy.load(model)
        marking = [n for n in pipeline.pipe_names if "doc.ents" in pipeline.get_pipe_meta(n).assigns]
        if not marking:
            raise UsageError(
                "the pipeline has no component that marks entities",
                where=f"layer {layer!r}",
                next="Name a pipeline with `ner` or `entity_ruler`",
            )
    names = {label for name in marking for label in pipeline.pipe_labels.get(name, ())}
    return SpacyLayer(pipeline, tuple(sorted(names)), threshold)


# --- token classifiers ----------------------------------------------------------------------------------------


class Token(NamedTuple):
    """What a classifier says of characters ``start`` to ``end``: the likeliest label and its probability. ``inside``:
    the token goes on with the word of the one before."""

    start: int
    end: int
    label: str
    score: float
    inside: bool


def joined(tokens: Iterable[Token]) -> Iterator[tuple[int, int, str, float]]:
    """Tokens as entities: start, end, label without its prefix, and the mean of the words' probabilities.

    A word is of the label of its first token, as classifiers are trained. Neighbours of one label are one entity; the
    prefixes ``B-``, ``S-`` and ``U-`` begin another. ``O`` is no entity.
    """
    start = end = 0
    kind, scores = "", [0.0]
    for token in tokens:
        if token.inside:
            end = token.end if kind else end
            continue
        prefix, name = _parted(token.label)
        if kind and (name != kind or prefix in ("B", "S", "U")):
            yield start, end, kind, sum(scores) / len(scores)
            kind = ""
        if name:
            if not kind:
                start, kind, scores = token.start, name, []
            scores.append(token.score)
            end = token.end
    if kind:
        yield start, end, kind, sum(scores) / len(scores)


def _parted(label: str) -> tuple[str, str]:
    """Prefix and name of a label, both empty for ``O``; the prefixes are those of IOB2, BIOES and BILOU."""
    if label == "O":
        return "", ""
    prefix, dash, name = label.partition("-")
    return (prefix, name) if dash and prefix in tuple("BIESLU") else ("", label)


class TransformersLayer:
    """The entities of a token classifier, over windows that overlap: each token is read where most stands around it.

    It answers for every language that it is asked in.
    """

    def __init__(self, model: Any, tokenizer: Any, window: int, threshold: float) -> None:
        self._model, self._tokenizer = model, tokenizer
        self._names: list[str] = [model.config.id2label[i] for i in range(model.config.num_labels)]
        self._window, self._threshold = window, threshold
        self._room = window - tokenizer.num_special_tokens_to_add()

    @property
    def labels(self) -> tuple[str, ...]:
        return tuple(sorted({name for label in self._names if (name := _parted(label)[1])}))

    def find(self, text: str, language: str, deadline: Deadline) -> list[Span]:
        """Spans of one text. Raises :class:`Unscanned` after the deadline, which is looked at between windows."""
        return spans_of(text, joined(self.tokens(text, deadline)), self._threshold)

    def tokens(self, text: str, deadline: Deadline) -> list[Token]:
        """Every token of the text, each as the window says of which it is farthest from an edge."""
        overlap = self._room // 4
        read = self._tokenizer(
            text, truncation=True, max_length=self._window, stride=overlap, return_overflowing_tokens=True,
            return_offsets_mapping=True, return_special_tokens_mask=True,
        )  # fmt: skip
        best: dict[int, tuple[int, tuple[int, int], int | None, str, float]] = {}
        for number, ids in enumerate(read["input_ids"]):
            deadline.left()
            special, offsets = read["special_tokens_mask"][number], read["offset_mapping"][number]
            words = read.word_ids(number)
            inner = [i for i, is_special in enumerate(special) if not is_special]
            told = self._told(ids)
            for place, i in enumerate(inner):
                at = number * (self._room - overlap) + place
                around = min(place, len(inner) - 1 - place)
                if at not in best or around > best[at][0]:
                    best[at] = (around, offsets[i], words[i], *told[i])
        deadline.left()
        return list(_words(text, [best[at][1:] for at in sorted(best)]))

    def _told(self, ids: Sequence[int]) -> list[tuple[str, float]]:
        """The likeliest label at each token of one window, and its probability."""
        import torch

        with torch.inference_mode():
            odds = self._model(input_ids=torch.tensor([ids])).logits[0].float().softmax(-1)
        scores, numbers = odds.max(-1)
        if not bool(scores.isfinite().all()):
            raise ValueError("the model's scores are no numbers")
        return [(self._names[n], s) for n, s in zip(numbers.tolist(), scores.tolist(), strict=True)]


def _words(text: str, tokens: Sequence[tuple[tuple[int, int], int | None, str, float]]) -> Iterator[Token]:
    """The tokens, each with whether it goes on with a word: of the same word to the tokenizer, and no sign, space or
    script without spaces between. Without white space at their beginning, and none that is nothing else."""
    before = None
    for (start, end), word, label, score in tokens:
        start += len(text[start:end]) - len(text[start:end].lstrip())
        if start == end:
            continue
        last, first = text[start - 1 : start], text[start]
        inside = word == before and last.isalnum() and first.isalnum() and not is_unspaced(first)
        yield Token(start, end, label, score, inside)
        before = word


def _transformers(layer: str, model: str, threshold: float) -> TransformersLayer:
    at = _folder(layer, "config.json", "*.safetensors")
    with _usable(layer, "transformers", "Save model and tokenizer there with save_pretrained"):
        import torch  # noqa: F401  # said by name where it is missing
        from transformers import AutoModelForTokenClassification, AutoTokenizer
        from transformers.utils import logging

        logging.disable_progress_bar()
        here: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
        tokenizer = AutoTokenizer.from_pretrained(str(at), **here)
        made, lacks = AutoModelForTokenClassification.from_pretrained(
            str(at), use_safetensors=True, output_loading_info=True, **here
        )
        if lacks["missing_keys"]:
            raise ValueError(
                f"the weights lack {sorted(lacks['missing_keys'])[0]}: no token classifier was saved"
            )
        if not tokenizer.is_fast:
            raise ValueError("its tokenizer tells no offsets (it is no fast one)")
        if "O" not in made.config.id2label.values():
            raise ValueError('no label is "O", so that which one means no entity is unknown')
        made.eval()
        return TransformersLayer(made, tokenizer, _longest(made.config, tokenizer), threshold)


def _longest(config: Any, tokenizer: Any) -> int:
    """Tokens that a model takes at once. Two positions less than its table holds: RoBERTa and its kin count from two."""
    places = getattr(config, "max_position_embeddings", None) or LONGEST_WINDOW + 2
    return min(LONGEST_WINDOW, int(tokenizer.model_max_length), places - 2)


def _gliner(layer: str, model: str, threshold: float) -> ModelLayer:
    raise UsageError(
        "GLiNER is not run by this version: gliner 0.2.29 asks for transformers below 5.17, and Tilth is made with a later one",
        where=f"layer {layer!r}",
        next="Name a token classifier as transformers:FOLDER, or label the rows in an environment of its own "
        "(pip install gliner) and give the values to [pii] deny",
    )


_LOADERS: dict[str, Callable[[str, str, float], ModelLayer]] = {
    "gliner": _gliner,
    "spacy": _spacy,
    "transformers": _transformers,
}
