"""Consensus on free text: the answer that the others come closest to, with good annotators counting more.

Answers that are the same once normalised are one answer. Likeness is the overlap of words and of word pairs
(characters in scripts without spaces), and of an encoder's vectors where one is handed in. Skill and choice are found
together: an annotator is skilled whose answers lie close to skilled annotators' answers, and the answer chosen is close
to theirs and by one of them. Texts are chosen, never rewritten.

How sharply skill counts was settled on made-up annotators (references of E2E with words dropped and swapped); the crowd
sets that the benchmark reports were looked at before and after.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from curation.calibration import Floats
from curation.consensus.answers import Answers, Codes
from curation.text import ngrams, normalise, tokens

Encoder = Callable[[Sequence[str]], np.ndarray]


@dataclass(frozen=True)
class TextRule:
    """How texts are compared and when a curator should look.

    ``weights``: what the overlap of words, of word pairs, and the encoder's cosine (where one is handed in) count for.
    ``sharpness``: an annotator's weight is their skill, relative to the crowd's, to this power. ``rounds``: how often
    skill and choice are refined. ``prior``: skill is drawn towards the crowd's as if by so many answers.
    ``min_confidence``: below it, and with differing answers, a curator decides.
    """

    weights: tuple[float, float, float] = (1.0, 1.0, 1.0)
    sharpness: float = 4.0
    rounds: int = 10
    prior: float = 4.0
    min_confidence: float = 0.3


@dataclass(frozen=True)
class TextAgreed:
    """``chosen[i]`` indexes the answer that stands for item ``i``; ``confidence`` is how alike the others are to it.

    Confidence lies in [0, 1]: the skill-weighted mean likeness of the item's other answers to the chosen one; 1 where
    all say the same. A single answer has its annotator's skill. ``skill`` is each annotator's expected likeness to the
    chosen answers.
    """

    answers: Answers
    chosen: Codes
    confidence: Floats
    skill: Floats
    given: Codes
    disputed: np.ndarray


def agree_on_text(
    answers: Answers, rule: TextRule | None = None, encoder: Encoder | None = None
) -> TextAgreed:
    """One answer an item, chosen among those given. No answers give no items.

    ``encoder`` turns texts into vectors; without one, likeness is by words and characters alone.
    """
    rule = rule or TextRule()
    groups = _groups(answers, rule, encoder)
    skill: Floats = np.full(len(answers.annotators), 0.5)
    quality = np.zeros(len(answers))
    for _ in range(rule.rounds):
        for group in groups:
            mine = skill[answers.annotator[group.rows]]
            quality[group.rows] = group.centrality(mine, rule.sharpness)
        fresh = _skills(answers, quality, rule.prior)
        done = np.abs(fresh - skill).max(initial=0.0) < 1e-4
        skill = fresh
        if done:
            break
    chosen = np.zeros(len(answers.items), np.int64)
    confidence = np.zeros(len(answers.items))
    for group in groups:
        mine = skill[answers.annotator[group.rows]]
        best = group.best(mine, rule.sharpness)
        chosen[group.item] = group.rows[best]
        confidence[group.item] = group.confidence(best, mine, rule.sharpness)
    several = np.array([len(set(group.same)) > 1 for group in groups], bool)
    disputed = several & (confidence < rule.min_confidence)
    given = np.bincount(answers.annotator, minlength=len(answers.annotators))
    return TextAgreed(answers, chosen, confidence, skill, given, disputed)


@dataclass(frozen=True)
class _Group:
    """The answers to one item: their rows, how alike each two are, and which are the same once normalised."""

    item: int
    rows: Codes
    likeness: Floats
    same: tuple[int, ...]

    def centrality(self, skill: Floats, sharpness: float) -> Floats:
        """How alike each answer is to the item's other answers, those by skilled annotators counting more."""
        weight = np.tile((skill / skill.mean()) ** sharpness, (len(skill), 1))
        np.fill_diagonal(weight, 0.0)
        total = weight.sum(1)
        found = (weight * self.likeness).sum(1) / np.where(total > 0, total, 1.0)
        quality: Floats = np.where(total > 0, found, skill)
        return quality

    def best(self, skill: Floats, sharpness: float) -> int:
        """The answer with the most merit: as central as it is, by somebody as skilled. Of equals, the first given."""
        merit = self.centrality(skill, sharpness) + skill
        return int(np.argmax(np.round(merit, 9)))

    def confidence(self, best: int, skill: Floats, sharpness: float) -> float:
        """How alike the others are to the answer chosen."""
        return float(np.clip(self.centrality(skill, sharpness)[best], 0.0, 1.0))


def _skills(answers: Answers, quality: Floats, prior: float) -> Floats:
    """An annotator's mean quality beyond what their items make easy, drawn towards the crowd's."""
    sizes = np.bincount(answers.item, minlength=len(answers.items))
    ease = np.bincount(answers.item, quality, minlength=len(answers.items)) / np.maximum(sizes, 1)
    crowd = float(quality.mean()) if len(quality) else 0.5
    beyond = quality - ease[answers.item]
    given = np.bincount(answers.annotator, minlength=len(answers.annotators))
    gained = np.bincount(answers.annotator, beyond, minlength=len(answers.annotators))
    return np.clip(crowd + gained / (given + prior), 1e-3, 1.0)


# Likeness ---------------------------------------------------------------------------------------------------


def _groups(answers: Answers, rule: TextRule, encoder: Encoder | None) -> list[_Group]:
    order = np.argsort(answers.item, kind="stable")
    bounds = np.searchsorted(answers.item[order], np.arange(len(answers.items) + 1))
    bags = {code: _bags(answers.labels[code]) for code in np.unique(answers.label).tolist()}
    vectors = _unit(encoder(list(answers.labels))) if encoder else None
    found = []
    for item in range(len(answers.items)):
        rows = order[bounds[item] : bounds[item + 1]]
        codes = answers.label[rows].tolist()
        found.append(_group(item, rows, codes, bags, vectors, rule))
    return found


def _group(
    item: int,
    rows: Codes,
    codes: list[int],
    bags: dict[int, _Bags],
    vectors: Floats | None,
    rule: TextRule,
) -> _Group:
    clusters: dict[str, int] = {}
    same = tuple(clusters.setdefault(bags[code].normal, len(clusters)) for code in codes)
    firsts = [codes[same.index(c)] for c in range(len(clusters))]
    small = np.eye(len(firsts))
    for i, one in enumerate(firsts):
        for j in range(i):
            near = None if vectors is None else float(vectors[one] @ vectors[firsts[j]])
            small[i, j] = small[j, i] = likeness(bags[one], bags[firsts[j]], rule.weights, near)
    return _Group(item, rows, small[np.ix_(same, same)], same)


@dataclass(frozen=True)
class _Bags:
    """A text, normalised, as bags of words and of word pairs."""

    normal: str
    parts: tuple[Counter[tuple[str, ...]], ...]


def _bags(text: str) -> _Bags:
    normal = normalise(text)
    parts = words(normal)
    return _Bags(normal, (Counter(ngrams(parts, 1)), Counter(ngrams(parts, 2))))


def words(normal: str) -> list[str]:
    """Words without the punctuation that clings to them; the words as they are where nothing else is left."""
    bare = [w for w in ("".join(c for c in word if c.isalnum()) for word in tokens(normal)) if w]
    return bare or tokens(normal)


def likeness(one: _Bags, other: _Bags, weights: Sequence[float], near: float | None = None) -> float:
    """In [0, 1]: the weighted mean of the F1 overlaps of the bags, and of the encoder's cosine where there is one."""
    scores = [_overlap(a, b) for a, b in zip(one.parts, other.parts, strict=True)]
    if near is not None:
        scores.append(max(0.0, near))
    used = weights[: len(scores)]
    return float(np.dot(scores, used) / sum(used))


def _overlap(one: Counter[tuple[str, ...]], other: Counter[tuple[str, ...]]) -> float:
    """Twice the shared n-grams over all n-grams (F1 of the bags); 1.0 where both are empty."""
    total = one.total() + other.total()
    return 2 * sum((one & other).values()) / total if total else 1.0


def _unit(vectors: np.ndarray) -> Floats:
    found: Floats = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    return found


def text_alpha(answers: Answers, *, pairs: int = 2000, seed: int = 0) -> float | None:
    """Krippendorff's alpha with ``1 - likeness`` as the distance of two answers: 1 alike, 0 as unlike as by luck.

    Expected disagreement is taken over ``pairs`` random pairs of answers to different items. ``None`` where no item has
    two answers, or there is one item only.
    """
    rule = TextRule()
    apart = [
        (1 - group.likeness[np.triu_indices(len(group.rows), 1)]).mean()
        for group in _groups(answers, rule, None)
        if len(group.rows) > 1
    ]
    if not apart or len(answers.items) < 2:
        return None
    rng = np.random.default_rng(seed)
    one, other = rng.integers(0, len(answers), (2, pairs))
    differ = answers.item[one] != answers.item[other]
    drawn = zip(answers.label[one[differ]].tolist(), answers.label[other[differ]].tolist(), strict=True)
    luck = [1 - likeness(_bags(answers.labels[a]), _bags(answers.labels[b]), rule.weights) for a, b in drawn]
    expected = float(np.mean(luck)) if luck else 0.0
    return 1.0 - float(np.mean(apart)) / expected if expected else 1.0
