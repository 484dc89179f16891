"""From votes to one probability per record: choose a label model, say why, and keep what no model may break.

A class that all voting functions name always comes first, a record without votes gets the class balance and no weight,
and the gold of a row never decides that row: whatever is learnt from gold answers it out of fold.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from curation.calibration import Floats, calibration_error, fit_temperature
from curation.errors import MissingExtra, UsageError
from curation.records import PROBABILITIES
from curation.voting.fitting import (
    ONE_STEP,
    SPOKEN,
    fit_dawid_skene,
    fit_triplet,
    fit_weighted,
    head_count,
    uniform,
)
from curation.voting.functions import ABSTAIN
from curation.voting.heldout import vote_likelihood
from curation.voting.matrix import Matrix, Votes, analyse, class_counts, unanimous
from curation.voting.models import Blend, Calibrated, LabelModel, Majority, Weighted
from curation.voting.snorkel import fit_snorkel

MODELS = ("auto", "majority", "weighted", "dawid-skene", "triplet", "snorkel", "blend")

_MIN_GOLD = 30  # rows with gold and votes below which accuracy is too coarse to choose by
_FOLDS = 5
_COPY = 0.95  # two functions that vote alike on this share of the rows where either votes are one opinion

Truth = npt.NDArray[Any]


@dataclass(frozen=True)
class Report:
    """What happened: the model asked for and the one used, why, and what the functions are worth.

    ``coverage``, ``overlap`` and ``conflict`` are shares of all rows; ``restored`` counts unanimous rows that
    the model would have overruled; ``accuracy`` and ``calibration_error`` (expected, 15 bins) are over rows with gold
    and votes (None without gold), cross-validated where gold was learnt from. ``candidates`` holds the cross-validated
    accuracy of every model that gold compared, ``heldout`` the held-out log-likelihood per row of those that votes
    compared. ``parameters`` are those of the model used.
    """

    asked: str
    model: str
    why: str
    rows: int
    coverage: float
    overlap: float
    conflict: float
    restored: int
    balance: dict[str, float]
    functions: list[dict[str, Any]]
    warnings: list[str] = field(default_factory=list)
    accuracy: float | None = None
    calibration_error: float | None = None
    candidates: dict[str, float] = field(default_factory=dict)
    heldout: dict[str, float] = field(default_factory=dict)
    parameters: dict[str, Any] = field(default_factory=dict, repr=False)

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON, without the parameters; accuracy and calibration only where gold was there to tell."""
        hidden = {"parameters"} | ({"accuracy", "calibration_error"} if self.accuracy is None else set())
        return {k: v for k, v in asdict(self).items() if k not in hidden}


@dataclass(frozen=True)
class _Choice:
    """A model, why it was chosen, and ``(rows, classes)`` what it says; gold rows are answered out of fold."""

    model: LabelModel
    why: str
    proba: Floats
    candidates: dict[str, float] = field(default_factory=dict)
    heldout: dict[str, float] = field(default_factory=dict)


def label(
    votes: Votes,
    model: str = "auto",
    *,
    gold: npt.ArrayLike | None = None,
    balance: Sequence[float] | None = None,
    seed: int = 7,
) -> tuple[pa.Table, Report]:
    """One distribution per record (:data:`curation.records.PROBABILITIES`), and how it came about.

    ``label`` is the likeliest class and ``weight`` its probability; without votes the label is null, the
    weight 0 and the distribution the class balance. A class that all voting functions name always comes
    first. ``gold`` (class indices, -1 unknown) measures, calibrates, lets ``auto`` choose and ``weighted`` learn, but
    never decides its own row; ``balance`` is the known share of each class, else it is estimated from the votes.
    Without rows the table is empty. Raises :class:`UsageError` for an unknown model, gold of another length,
    ``weighted`` without gold, or votes without classes.
    """
    matrix, k = votes.matrix, max(1, len(votes.classes))
    truth = None if gold is None else np.asarray(gold)
    _check(votes, model, truth, balance)
    chosen = _choose(model, matrix, k, _known(balance), truth, seed)
    proba, restored = respect_unanimity(chosen.proba, matrix, chosen.model.balance)
    report = Report(
        asked=model,
        model=chosen.model.kind,
        why=chosen.why,
        rows=len(matrix),
        restored=restored,
        balance=dict(zip(votes.classes, map(float, chosen.model.balance), strict=False)),
        functions=analyse(votes, truth),
        warnings=_copies(votes) + _failures(votes),
        candidates=chosen.candidates,
        heldout=chosen.heldout,
        parameters=chosen.model.parameters(),
        **_shares(matrix, k),
    )
    measured = _measured(proba, matrix, truth)
    report = replace(report, accuracy=measured[0], calibration_error=measured[1])
    return _table(votes, proba), report


def respect_unanimity(proba: Floats, matrix: Matrix, balance: Floats) -> tuple[Floats, int]:
    """Where all voting functions agree, their class comes strictly first; returns how many rows had to be put
    right.

    Such a row takes the distribution of the majority: a model that would overrule everybody has nothing
    better to say.
    """
    agreed = unanimous(matrix, len(balance))
    rows = np.flatnonzero(agreed != ABSTAIN)
    others = proba[rows].copy()
    others[np.arange(len(rows)), agreed[rows]] = -1.0
    overruled = rows[proba[rows, agreed[rows]] <= others.max(1, initial=-1.0)]
    mended = proba.copy()
    mended[overruled] = Majority(balance).proba(matrix[overruled])
    return mended, len(overruled)


def _check(votes: Votes, model: str, gold: Truth | None, balance: Sequence[float] | None) -> None:
    if model not in MODELS:
        raise UsageError(f"there is no label model {model!r}", next=f"Choose one of {', '.join(MODELS)}")
    if not votes.classes and len(votes.matrix):
        raise UsageError("the votes name no class", next="Give the classes, or at least one vote")
    if gold is not None and gold.shape != (len(votes.matrix),):
        raise UsageError(f"gold has {gold.size} values for {len(votes.matrix)} rows", next="Give one per row")
    if balance is not None and len(balance) != len(votes.classes):
        raise UsageError(
            f"{len(balance)} class shares for {len(votes.classes)} classes", next="Give one each"
        )
    if model == "weighted" and gold is None:
        raise UsageError("the weighted model learns from gold, and there is none", next="Pass --gold FIELD")


def _known(balance: Sequence[float] | None) -> Floats | None:
    """The given shares, none of them 0: nothing could then undo it."""
    if balance is None:
        return None
    floored = np.maximum(np.asarray(balance, np.float64), 1e-4)
    return floored / floored.sum()


# Choosing ---------------------------------------------------------------------------------------------------


def _choose(
    name: str, matrix: Matrix, k: int, given: Floats | None, gold: Truth | None, seed: int
) -> _Choice:
    """The model to use, the reason in words, and what it says of every row."""
    if not (matrix != ABSTAIN).any():
        return _plain(Majority(uniform(k) if given is None else given), matrix, "nobody voted")
    if reason := _too_little(matrix, k):
        return _plain(Majority(head_count(matrix, k) if given is None else given), matrix, reason)
    fits = _Fits(matrix, k, given, seed)
    if name == "snorkel" and fits.snorkel(required=True) is None:
        return _plain(fits.majority, matrix, fits.problem)
    judged = _judged(matrix, gold)
    if name == "weighted" and judged.sum() < _MIN_GOLD:
        reason = f"gold is known for only {judged.sum()} rows with votes and weights need {_MIN_GOLD}"
        return _plain(fits.majority, matrix, reason)
    if name == "auto":
        if gold is not None and judged.sum() >= _MIN_GOLD:
            return _by_gold(fits, gold, judged)
        return _by_votes(fits)
    if gold is not None and judged.sum() >= _MIN_GOLD:
        scored = _cross_fit(fits, name, gold, judged)
        return _Choice(scored.model, "asked for", scored.proba)
    model = fits.named(name)
    return _Choice(model, "asked for", model.proba(matrix))


def _plain(model: Majority, matrix: Matrix, reason: str) -> _Choice:
    return _Choice(model, f"majority, because {reason}", model.proba(matrix))


def _too_little(matrix: Matrix, k: int) -> str:
    active = int((matrix != ABSTAIN).any(0).sum())
    if k < 2:
        return "there is one class only"
    if active < 3:
        return f"only {active} of {matrix.shape[1]} functions voted and a model needs three"
    if not ((matrix != ABSTAIN).sum(1) > 1).any():
        return "no record has two votes to compare"
    return ""


class _Fits:
    """The models fitted on one matrix, each at most once, and why Snorkel's is missing if it is."""

    def __init__(self, matrix: Matrix, k: int, given: Floats | None, seed: int) -> None:
        self.matrix, self.k, self.given, self.seed = matrix, k, given, seed
        self.dawid_skene = fit_dawid_skene(matrix, k, given)
        self.balance = self.dawid_skene.balance
        self.majority = Majority(head_count(matrix, k) if given is None else given)
        self.problem = ""
        self._made: dict[str, LabelModel | None] = {
            "dawid-skene": self.dawid_skene,
            "majority": self.majority,
        }

    def named(self, name: str) -> LabelModel:
        """The model of that name; Snorkel's only where :meth:`snorkel` found it."""
        if name not in self._made:
            self._made[name] = self.triplet() if name == "triplet" else self.blend()
        model = self._made[name]
        assert model is not None
        return model

    def triplet(self) -> Weighted:
        return fit_triplet(self.matrix, self.k, self.given)

    def snorkel(self, *, required: bool = False) -> LabelModel | None:
        """Snorkel's model, or None with the ``problem`` in words; raises where it is required and not installed."""
        if "snorkel" not in self._made:
            self._made["snorkel"] = None
            try:
                self._made["snorkel"] = fit_snorkel(self.matrix, self.k, self.balance, seed=self.seed)
            except ArithmeticError as error:
                self.problem = f"Snorkel's label model did not converge ({error})"
            except MissingExtra:
                if required:
                    raise
                self.problem = "Snorkel is not installed"
        return self._made["snorkel"]

    def blend(self) -> LabelModel:
        """All models together, and Dawid and Skene's twice more: heard without silences, and stopped early."""
        spoken = fit_dawid_skene(self.matrix, self.k, self.given, SPOKEN, "dawid-skene without silences")
        early = fit_dawid_skene(self.matrix, self.k, self.given, ONE_STEP, "dawid-skene stopped early")
        parts = [self.dawid_skene, spoken, early, self.named("triplet"), self.snorkel()]
        return Blend(tuple(part for part in parts if part is not None), self.balance)

    def candidates(self) -> list[str]:
        """What can be compared, the simplest first."""
        found = ["majority", "blend", "dawid-skene", "triplet"]
        return [*found, "snorkel"] if self.snorkel() is not None else found


def _by_votes(fits: _Fits) -> _Choice:
    """Without gold: models that foresee held-out votes no better than the majority are left out of the blend."""
    scores = _heldout(fits)
    better = [name for name, score in scores.items() if name != "majority" and score > scores["majority"]]
    told = ", ".join(f"{name} {score:+.3f}" for name, score in scores.items())
    if not better:
        why = f"majority, because nothing foresees held-out votes better (log-likelihood a row: {told})"
        return _Choice(fits.majority, why, fits.majority.proba(fits.matrix), heldout=scores)
    blend = fits.named("blend")
    assert isinstance(blend, Blend)
    kept = replace(blend, models=tuple(m for m in blend.models if m.kind in better))
    why = f"blend of {', '.join(better)}: no gold tells them apart, and each foresees held-out votes better than"
    why += f" the majority (log-likelihood a row: {told})"
    return _Choice(kept, why, kept.proba(fits.matrix), heldout=scores)


def _heldout(fits: _Fits) -> dict[str, float]:
    """Held-out log-likelihood a row of the majority and of every part of the blend, by kind."""
    blend = fits.named("blend")
    assert isinstance(blend, Blend)
    parts = {model.kind: model for model in (fits.majority, *blend.models)}
    return {kind: vote_likelihood(model, fits.matrix, fits.k) for kind, model in parts.items()}


@dataclass(frozen=True)
class _Scored:
    """A model and its answers, those on gold rows by a model (and a temperature) that has not seen their gold.

    ``likelihood`` is the mean log-probability that it gives to the gold of a row.
    """

    model: LabelModel
    proba: Floats
    accuracy: float
    likelihood: float


def _by_gold(fits: _Fits, gold: Truth, judged: npt.NDArray[np.bool_]) -> _Choice:
    """The likeliest in cross-validation; the simplest of equals.

    A proper score, which rewards accuracy and honest confidence alike, tells models apart that accuracy does not: a few
    hundred rows of gold decide a point of accuracy by chance. On generated votes it also came to the higher accuracy.
    """
    names = [*fits.candidates(), "weighted"]
    scored = {name: _cross_fit(fits, name, gold, judged) for name in names}
    scores = {name: one.accuracy for name, one in scored.items()}
    best = max(names, key=lambda name: scored[name].likelihood)
    told = ", ".join(f"{name} {one.likelihood:+.3f} and {one.accuracy:.3f}" for name, one in scored.items())
    why = f"{best} makes the gold of {judged.sum()} rows likeliest, cross-validated (log-likelihood and accuracy: {told})"
    return _Choice(scored[best].model, why, scored[best].proba, candidates=scores)


def _cross_fit(fits: _Fits, name: str, gold: Truth, judged: npt.NDArray[np.bool_]) -> _Scored:
    """Fit and calibrate on all gold for rows without it, and on the other folds for rows with it."""
    matrix, k = fits.matrix, fits.k
    fit: Callable[[Truth], LabelModel]
    if name == "weighted":
        base = fits.named("blend")

        def fit(known: Truth) -> LabelModel:
            return fit_weighted(matrix, k, known, base)
    else:
        fixed = fits.named(name)

        def fit(known: Truth) -> LabelModel:
            return fixed

    folds = _folds(gold, judged)
    raw = np.zeros((len(matrix), k))
    for fold in range(_FOLDS):
        here = folds == fold
        raw[here] = fit(np.where(here, ABSTAIN, gold)).proba(matrix[here])
    final = Calibrated(fit(gold), fit_temperature(raw[judged], gold[judged]))
    proba = final.proba(matrix)
    for fold in range(_FOLDS):
        here, others = folds == fold, judged & (folds != fold)
        held = _Given(raw[here])
        proba[here] = Calibrated(held, fit_temperature(raw[others], gold[others])).proba(matrix[here])
    mended, _ = respect_unanimity(proba, matrix, final.balance)
    return _Scored(
        final, proba, _accuracy(mended, matrix, gold) or 0.0, _likelihood(mended[judged], gold[judged])
    )


def _likelihood(proba: Floats, gold: Truth) -> float:
    """Mean log-probability of ``gold``, in nats; rows whose class no function knows are left out. Without rows: 0."""
    known = np.flatnonzero(gold < proba.shape[1])
    return float(np.log(np.maximum(proba[known, gold[known]], 1e-6)).mean()) if len(known) else 0.0


@dataclass(frozen=True)
class _Given:
    """Answers that are there already, in the shape of a model."""

    answers: Floats
    kind: str = "given"

    @property
    def balance(self) -> Floats:
        return uniform(self.answers.shape[1])

    def proba(self, matrix: Matrix, without: int | None = None) -> Floats:
        return self.answers

    def parameters(self) -> dict[str, Any]:
        return {}


def _folds(gold: Truth, judged: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """A fold for every judged row, -1 for others; each class is dealt out evenly, at random but the same each time."""
    folds = np.full(len(gold), -1)
    rows = np.flatnonzero(judged)
    mixed = rows[np.random.default_rng(0).permutation(len(rows))]
    dealt = mixed[np.argsort(gold[mixed], kind="stable")]
    folds[dealt] = np.arange(len(dealt)) % _FOLDS
    return folds


def _judged(matrix: Matrix, gold: Truth | None) -> npt.NDArray[np.bool_]:
    """Rows with votes whose gold is known; a gold class that no function knows is known, and always missed."""
    voted = (matrix != ABSTAIN).any(1)
    return voted & (gold != ABSTAIN) if gold is not None else np.zeros(len(matrix), bool)


# Telling ----------------------------------------------------------------------------------------------------


def _measured(proba: Floats, matrix: Matrix, gold: Truth | None) -> tuple[float | None, float | None]:
    """Accuracy and expected calibration error on the rows with gold and votes; None where there are none."""
    judged = _judged(matrix, gold)
    if gold is None or not judged.any():
        return None, None
    right = proba[judged].argmax(1) == gold[judged]
    return float(right.mean()), calibration_error(proba[judged].max(1), right)


def _accuracy(proba: Floats, matrix: Matrix, gold: Truth | None) -> float | None:
    return _measured(proba, matrix, gold)[0]


def _shares(matrix: Matrix, k: int) -> dict[str, float]:
    votes, n = (matrix != ABSTAIN).sum(1), max(1, len(matrix))
    conflict = (class_counts(matrix, k) > 0).sum(1) > 1
    return {
        "coverage": float((votes > 0).sum() / n),
        "overlap": float((votes > 1).sum() / n),
        "conflict": float(conflict.sum() / n),
    }


def _copies(votes: Votes) -> list[str]:
    """Pairs that vote alike wherever either votes: models discount them, and a reader should know."""
    found = []
    for i in range(votes.matrix.shape[1]):
        for j in range(i + 1, votes.matrix.shape[1]):
            a, b = votes.matrix[:, i], votes.matrix[:, j]
            either = (a != ABSTAIN) | (b != ABSTAIN)
            alike = float((a == b)[either].mean()) if either.sum() >= _MIN_GOLD else 0.0
            if alike >= _COPY:
                names = f"{votes.functions[i]} and {votes.functions[j]}"
                found.append(f"{names} vote alike on {alike:.0%} of the rows where either votes: keep one")
    return found


def _failures(votes: Votes) -> list[str]:
    return [f"{f.function} failed on {f.count} rows and abstained there: {f.message}" for f in votes.failures]


def _table(votes: Votes, proba: Floats) -> pa.Table:
    voted = (votes.matrix != ABSTAIN).any(1)
    best = proba.argmax(1) if len(proba) else np.zeros(0, np.int64)
    weight = np.where(voted, proba.max(1, initial=0.0), 0.0)
    n, k = proba.shape
    offsets = pa.array(np.arange(0, (n + 1) * k, k, dtype=np.int32))
    classes = pa.array(list(votes.classes), pa.string()).take(pa.array(np.tile(np.arange(k), n)))
    return pa.Table.from_arrays(
        [
            pa.array(votes.records, pa.string()),
            pa.array(list(votes.classes), pa.string()).take(pa.array(best, mask=~voted)),
            pa.ListArray.from_arrays(offsets, classes),
            pa.ListArray.from_arrays(offsets, pa.array(proba.ravel())),
            pa.array(weight),
        ],
        schema=PROBABILITIES,
    )
