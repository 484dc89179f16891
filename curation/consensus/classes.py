"""Consensus on classes: several models of annotators behind one interface, and a choice that explains itself.

Every model is fitted by the same loop (believe, learn the annotators, believe again). Without gold they are judged by
how well they foresee answers that they were not shown; with gold, by accuracy on it. Nothing here reads a file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from curation.calibration import Floats, calibration_error, fit_temperature, softmax, temper
from curation.consensus.annotators import (
    Annotators,
    learn_alike,
    learn_coin,
    learn_confusion,
    learn_crowd,
    learn_difficulty,
    learn_mace,
)
from curation.consensus.answers import Answers, Codes
from curation.errors import UsageError

# name -> how annotators are learnt from belief; those of the second set go on from where they were
_LEARN: dict[str, Callable[..., Annotators]] = {
    "majority": learn_alike,
    "one-coin": learn_coin,
    "mace": learn_mace,
    "glad": learn_difficulty,
    "dawid-skene": learn_confusion,
    "hierarchical": learn_crowd,
}
_GO_ON = {"mace", "glad"}
_TABLED = {"dawid-skene", "hierarchical"}
MODELS = ("auto", *_LEARN)

_CELLS = 20_000_000  # cells of annotators' tables beyond which models without tables must do
_MIN_GOLD = 30  # gold items below which accuracy is too coarse to choose by
_HELD, _ROUNDS, _DRAW = 0.2, 2, 100_000  # answers held out at a time, how often, and of how many at most


@dataclass(frozen=True)
class Agreed:
    """What a set of answers amounts to.

    ``proba`` is ``(items, labels)``, calibrated; ``label`` the likeliest label of each item; ``skill`` each annotator's
    chance of a right answer and ``given`` their number of answers. ``heldout`` is the mean log-probability that each
    model gave to answers it was not shown, ``candidates`` the accuracy on gold where gold chose.
    """

    answers: Answers
    model: str
    why: str
    proba: Floats
    skill: Floats
    given: Codes
    temperature: float = 1.0
    heldout: dict[str, float] = field(default_factory=dict)
    candidates: dict[str, float] = field(default_factory=dict)
    accuracy: float | None = None
    calibration_error: float | None = None

    @property
    def label(self) -> Codes:
        """``(items,)``: the index of the likeliest label."""
        found: Codes = self.proba.argmax(1) if self.proba.size else np.zeros(len(self.proba), np.int64)
        return found

    @property
    def confidence(self) -> Floats:
        """``(items,)``: the probability of that label."""
        found: Floats = self.proba.max(1, initial=0.0)
        return found

    def disputed(self, min_confidence: float) -> np.ndarray:
        """``(items,)``: annotators differ and the likeliest label is less sure than the rule asks."""
        differ = (self.answers.counts() > 0).sum(1) > 1
        return differ & (self.confidence < min_confidence)


def agree(
    answers: Answers,
    model: str = "auto",
    *,
    gold: Mapping[str, str] | None = None,
    proba: Floats | None = None,
) -> Agreed:
    """One calibrated distribution per item, and what each annotator is worth.

    ``gold`` maps items to their true labels: it chooses and calibrates (each gold item out of fold), and never decides
    an item. ``proba`` ``(items, labels)`` is what a trained model makes of the items; it joins as one more voice, as
    loud as it agrees with the annotators (after CROWDLAB; Goh et al. 2022). Items are those with an answer: no answers
    give no items. Raises :class:`UsageError` for an unknown model.
    """
    if model not in MODELS:
        raise UsageError(f"there is no consensus model {model!r}", next=f"Choose one of {', '.join(MODELS)}")
    if not len(answers):
        return Agreed(answers, "majority", "majority, because nobody answered", *_nothing(answers))
    truth = _truth(answers, gold)
    names, why = _names(answers) if model == "auto" else ([model], "asked for")
    fits = {name: fit(answers, name, proba) for name in names}
    scores: dict[str, float] = {}
    candidates: dict[str, float] = {}
    chosen = list(fits)
    if len(fits) > 1 and (truth >= 0).sum() >= _MIN_GOLD:
        candidates = {name: _accuracy(one.belief, truth) for name, one in fits.items()}
        chosen = [max(fits, key=lambda name: candidates[name])]
        why = f"{chosen[0]} is the most accurate on {(truth >= 0).sum()} gold items ({_told(candidates)})"
    elif len(fits) > 1:
        scores, chosen, why = _by_answers(answers, list(fits), proba)
    return _result(answers, {name: fits[name] for name in chosen}, why, truth, scores, candidates, proba)


def _nothing(answers: Answers) -> tuple[Floats, Floats, Codes]:
    k = max(1, len(answers.labels))
    m = len(answers.annotators)
    return np.full((len(answers.items), k), 1 / k), np.full(m, 1 / k), np.zeros(m, np.int64)


def _names(answers: Answers) -> tuple[list[str], str]:
    """The models worth comparing on these answers, and the reason where it is the majority alone."""
    per_item = np.bincount(answers.item, minlength=len(answers.items))
    if len(answers.labels) < 2 or len(answers.annotators) < 2:
        return ["majority"], "majority, because there is one annotator or one label only"
    if (per_item > 1).sum() < 10:
        return ["majority"], "majority, because fewer than ten items have two answers to compare"
    big = len(answers.annotators) * len(answers.labels) ** 2 > _CELLS
    return [name for name in _LEARN if not (big and name in _TABLED)], ""


@dataclass(frozen=True)
class Fitted:
    """Belief about the items ``(items, labels)``, the model of the annotators, and the class shares."""

    belief: Floats
    annotators: Annotators
    prior: Floats


def fit(answers: Answers, name: str, proba: Floats | None = None, *, steps: int = 60) -> Fitted:
    """Expectation maximisation from the majority: believe, learn the annotators, believe again.

    Stops when no probability moves by more than 0.001. A trained model's ``proba`` is heard at the end, tempered so that
    it explains best what the annotators by themselves are sure of: heard any earlier, it would grade the annotators that
    grade it. An item without answers keeps the prior, or the model's word.
    """
    learn, k = _LEARN[name], len(answers.labels)
    counts = answers.counts()
    belief = (counts + 1 / k) / (counts.sum(1, keepdims=True) + 1)
    annotators = learn(answers, belief)
    prior = np.full(k, 1 / k)
    for _ in range(steps):
        prior = (belief.sum(0) + 1) / (len(belief) + k)
        before, belief = belief, softmax(np.log(prior) + annotators.score(answers))
        annotators = learn(answers, belief, annotators) if name in _GO_ON else learn(answers, belief)
        if np.abs(belief - before).max(initial=0.0) < 1e-3:
            break
    if proba is not None:
        belief = softmax(_voice(proba, belief) + annotators.score(answers))
    return Fitted(belief, annotators, prior)


def _voice(proba: Floats, belief: Floats) -> Floats:
    """The trained model's log-probabilities, as loud as it agrees with what the annotators are sure of."""
    known = belief.max(1) > 0.5
    temperature = fit_temperature(proba[known], belief[known].argmax(1))
    return np.log(temper(proba, max(1.0, temperature)))


# Choosing ---------------------------------------------------------------------------------------------------


def _by_answers(
    answers: Answers, names: list[str], proba: Floats | None
) -> tuple[dict[str, float], list[str], str]:
    """The models that foresee held-out answers better than the majority does; the majority where none does.

    Better means by more than one standard error of the paired difference: on few answers the majority stays.
    """
    found = heldout(answers, names, proba)
    scores = {name: float(logs.mean()) if len(logs) else 0.0 for name, logs in found.items()}
    better = [name for name in names if _clearly(found[name] - found["majority"])]
    if not better:
        why = f"majority, because nothing foresees held-out answers better (log-probability: {_told(scores)})"
        return scores, ["majority"], why
    why = f"{' and '.join(better)}, averaged: each foresees held-out answers better than the majority"
    return scores, better, f"{why} (log-probability: {_told(scores)})"


def _clearly(gain: Floats) -> bool:
    """Whether a mean is above zero by more than its standard error."""
    return len(gain) > 1 and float(gain.mean()) > float(gain.std(ddof=1) / np.sqrt(len(gain)))


def heldout(answers: Answers, names: list[str], proba: Floats | None = None) -> dict[str, Floats]:
    """The log-probability that each model gives to each of the same answers, none of which it was shown.

    A fifth of the answers is held out, each leaving its item and its annotator at least one other; of large sets, a
    draw of whole items is judged. Empty where no answer can be held out.
    """
    drawn = _drawn(answers)
    logs: dict[str, list[Floats]] = {name: [np.zeros(0)] for name in names}
    for seed in range(_ROUNDS):
        out = _hold_out(drawn, seed)
        kept, held = drawn.only(~out), drawn.only(out)
        for name in names:
            found = fit(kept, name, proba)
            chance = found.annotators.chance(held, found.belief)
            logs[name].append(np.log(np.maximum(chance, 1e-9)))
    return {name: np.concatenate(parts) for name, parts in logs.items()}


def _drawn(answers: Answers) -> Answers:
    if len(answers) <= _DRAW:
        return answers
    share = _DRAW / len(answers)
    lucky = np.random.default_rng(0).random(len(answers.items)) < share
    return answers.only(lucky[answers.item])


def _hold_out(answers: Answers, seed: int) -> np.ndarray:
    """A mask of a fifth of the answers, none of them the only one left of its item or annotator."""
    order = np.random.default_rng(seed).permutation(len(answers))
    wanted = np.zeros(len(answers), bool)
    wanted[order[: int(_HELD * len(answers))]] = True
    for column, size in ((answers.item, len(answers.items)), (answers.annotator, len(answers.annotators))):
        left = np.bincount(column[~wanted], minlength=size)
        wanted &= left[column] > 0
    return wanted


# Results ----------------------------------------------------------------------------------------------------


def _result(
    answers: Answers,
    fits: dict[str, Fitted],
    why: str,
    truth: Codes,
    scores: dict[str, float],
    candidates: dict[str, float],
    proba: Floats | None,
) -> Agreed:
    belief = _average([one.belief for one in fits.values()])
    skill = np.mean([one.annotators.skill(one.prior) for one in fits.values()], axis=0)
    known = truth >= 0
    if known.sum() >= _MIN_GOLD:
        calibrated, temperature = _calibrated_by_gold(belief, truth)
    else:
        temperature = _foreseeing_temperature(answers, list(fits), proba)
        calibrated = temper(belief, temperature)
    right = calibrated.argmax(1)[known] == truth[known]
    return Agreed(
        answers=answers,
        model="+".join(fits),
        why=why,
        proba=calibrated,
        skill=skill,
        given=np.bincount(answers.annotator, minlength=len(answers.annotators)),
        temperature=temperature,
        heldout=scores,
        candidates=candidates,
        accuracy=float(right.mean()) if known.any() else None,
        calibration_error=calibration_error(calibrated.max(1)[known], right),
    )


def _average(beliefs: list[Floats]) -> Floats:
    """The geometric mean of several distributions, none of which may rule a label out by itself."""
    if len(beliefs) == 1:
        return beliefs[0]
    return softmax(np.log(np.maximum(np.stack(beliefs), 1e-3)).mean(0))


def _foreseeing_temperature(answers: Answers, names: list[str], proba: Floats | None) -> float:
    """How much softer belief must be to foresee held-out answers best; never sharper than the models say.

    Models count every answer as independent, and people who misread a question misread it together.
    """
    drawn = _drawn(answers)
    out = _hold_out(drawn, _ROUNDS)
    if out.sum() < _MIN_GOLD:
        return 1.0
    kept, held = drawn.only(~out), drawn.only(out)
    fits = [fit(kept, name, proba) for name in names]
    belief = _average([one.belief for one in fits])

    def foreseen(temperature: float) -> float:
        soft = temper(belief, temperature)
        chances = [np.log(np.maximum(one.annotators.chance(held, soft), 1e-9)).mean() for one in fits]
        return float(np.mean(chances))

    return max((1.0, 1.25, 1.5, 2.0, 2.5, 3.0, 4.0, 6.0), key=foreseen)


def _calibrated_by_gold(belief: Floats, truth: Codes) -> tuple[Floats, float]:
    """Belief tempered by what gold teaches: gold items by the gold of the other folds."""
    known = np.flatnonzero(truth >= 0)
    fold = np.random.default_rng(0).permutation(len(known)) % 5
    temperature = fit_temperature(belief[known], truth[known])
    calibrated = temper(belief, temperature)
    for f in range(5):
        here, others = known[fold == f], known[fold != f]
        calibrated[here] = temper(belief[here], fit_temperature(belief[others], truth[others]))
    return calibrated, temperature


def _truth(answers: Answers, gold: Mapping[str, str] | None) -> Codes:
    """``(items,)``: the index of the gold label; -1 where there is none, or nobody ever gave it."""
    code = {name: i for i, name in enumerate(answers.labels)}
    found = [code.get((gold or {}).get(item, ""), -1) for item in answers.items]
    return np.array(found, np.int64)


def _accuracy(belief: Floats, truth: Codes) -> float:
    known = truth >= 0
    return float((belief[known].argmax(1) == truth[known]).mean())


def _told(scores: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {score:.3f}" for name, score in scores.items())
