"""Label models: a matrix of votes becomes one probability per class and record. One interface, three models
and a judge.

``majority`` counts votes; ``dawid-skene`` learns what each function says under each class; ``snorkel`` is
Snorkel's LabelModel, fenced: it needs three functions, never outvotes a unanimous row, and leaves the
process's random generators as it found them. ``auto`` chooses and says why. Nothing here looks at gold to
place a class, and parameters are JSON, never pickle.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from curation.errors import MissingExtra, UsageError
from curation.records import PROBABILITIES
from curation.voting.functions import ABSTAIN
from curation.voting.matrix import Matrix, Votes, analyse, class_counts, unanimous

Floats = npt.NDArray[np.float64]

MODELS = ("auto", "majority", "dawid-skene", "snorkel")

_CELLS = 40_000_000  # one-hot cells that a fit may hold at once; more rows than that are sampled
_STRENGTH = 5.0  # rows' worth of belief, per class, in what a function is expected to say
_PRECISION = 0.7  # how often a function is expected to be right; Snorkel starts from the same figure
_MIN_GOLD = 30  # rows with gold and votes below which accuracy is too coarse to choose by
_AGREE = 0.95  # share of voted rows on which two different estimators must agree to trust the finer one
_COPY = 0.95  # two functions that vote alike on this share of the rows where either votes are one opinion


class LabelModel(Protocol):
    """What every label model offers."""

    @property
    def kind(self) -> str:
        """Its name among :data:`MODELS`."""
        ...

    @property
    def balance(self) -> Floats:
        """The share of each class, which is also what it answers where nobody voted."""
        ...

    def proba(self, matrix: Matrix) -> Floats:
        """``(rows, classes)`` probabilities, each row summing to 1; a row without votes gets the class
        balance.
        """
        ...

    def parameters(self) -> dict[str, Any]:
        """All it has learnt, as plain JSON; :func:`model_from_parameters` reads it back."""
        ...


@dataclass(frozen=True)
class Majority:
    """Votes count alike: ``(votes for the class + balance) / (votes + 1)``. The balance breaks ties and
    nothing else.
    """

    balance: Floats
    kind: str = "majority"

    def proba(self, matrix: Matrix) -> Floats:
        counts = class_counts(matrix, len(self.balance))
        return (counts + self.balance) / (counts.sum(1, keepdims=True) + 1)

    def parameters(self) -> dict[str, Any]:
        return {"kind": self.kind, "balance": self.balance.tolist()}


@dataclass(frozen=True)
class Weighted:
    """Functions independent given the class: ``P(y | votes) ∝ balance[y] · Π_j likelihood[j, vote_j + 1,
    y]``.

    ``log_likelihood`` has shape (functions, 1 + classes, classes); entry 0 of the middle axis is what
    abstaining says.
    """

    kind: str
    balance: Floats
    log_likelihood: Floats

    def proba(self, matrix: Matrix) -> Floats:
        score = np.tile(np.log(self.balance), (len(matrix), 1))
        for j, table in enumerate(self.log_likelihood):
            score += table[matrix[:, j] + 1]
        silent = (matrix == ABSTAIN).all(1)
        score[silent] = np.log(self.balance)  # no vote, no opinion: silence alone must not tilt a record
        score = np.exp(score - score.max(1, keepdims=True))
        return score / score.sum(1, keepdims=True)

    def parameters(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "balance": self.balance.tolist(),
            "log_likelihood": self.log_likelihood.tolist(),
        }


def model_from_parameters(parameters: Mapping[str, Any]) -> LabelModel:
    """The model that :meth:`LabelModel.parameters` wrote down. Raises :class:`UsageError` for anything
    else.
    """
    try:
        balance = np.asarray(parameters["balance"], np.float64)
        if parameters["kind"] == "majority":
            return Majority(balance)
        return Weighted(parameters["kind"], balance, np.asarray(parameters["log_likelihood"], np.float64))
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(
            "these are not the parameters of a label model", next="Fit the model again"
        ) from error


# Fitting ----------------------------------------------------------------------------------------------------


def fit_dawid_skene(matrix: Matrix, k: int, balance: Floats | None = None, *, steps: int = 200) -> Weighted:
    """Expectation maximisation after Dawid and Skene (1979), with abstaining as one more thing a function can
    say.

    A function that speaks up for one class only is thereby understood: its silence counts a little against
    that class. Each table is smoothed, by ``_STRENGTH`` rows a class, towards a function that votes as often
    as this one and is right ``_PRECISION`` of the time: that functions are better than chance is all that is
    assumed of them. A given ``balance`` stays fixed. Without any vote the model knows nothing and answers the
    balance.
    """
    rows, times = np.unique(
        _sample(matrix, k), axis=0, return_counts=True
    )  # few ways to vote, often repeated
    said = np.stack([rows == v for v in range(-1, k)], axis=2).reshape(len(rows), -1).astype(np.float64)
    shares = times @ said / max(1, times.sum())
    belief = Majority(_uniform(k)).proba(rows)
    prior, table = _uniform(k) if balance is None else balance, np.ones((said.shape[1], k))
    for _ in range(steps):
        weighed = belief * times[:, None]
        mass = weighed.sum(0)
        prior = balance if balance is not None else (mass + 1) / (mass.sum() + k)
        table = (said.T @ weighed + _STRENGTH * _expected(shares, prior)) / (mass + _STRENGTH)
        table = np.log(np.clip(table, 1e-6, 1.0))
        before, belief = belief, _softmax(np.log(prior) + said @ table)
        if np.abs(belief - before).max(initial=0.0) < 1e-4:
            break
    return Weighted("dawid-skene", prior, table.reshape(matrix.shape[1], 1 + k, k))


def _expected(shares: Floats, balance: Floats) -> Floats:
    """``(functions x answers, classes)``: the tables of functions that answer by ``shares``, right
    ``_PRECISION`` of the time.
    """
    k = len(balance)
    right = np.full((k, k), (1 - _PRECISION) / max(1, k - 1))
    np.fill_diagonal(right, _PRECISION)
    voting = shares.reshape(-1, 1 + k)[:, 1:, None] * right / balance
    voting *= np.minimum(1.0, 0.98 / np.maximum(voting.sum(1, keepdims=True), 1e-12))
    silent = 1 - voting.sum(1, keepdims=True)
    return np.concatenate([silent, voting], axis=1).reshape(-1, k)


def fit_snorkel(matrix: Matrix, k: int, balance: Floats, *, seed: int = 7) -> Weighted:
    """Snorkel's LabelModel (Ratner et al. 2019), with its conditional tables taken out of it.

    ``matrix`` needs three functions that voted. The random generators of ``random``, numpy and torch are left
    as they were: the library reseeds all three, and draws from numpy's when it is imported. Raises
    :class:`MissingExtra`, :class:`UsageError` for fewer functions, ``ArithmeticError`` when it does not
    converge.
    """
    active = np.flatnonzero((matrix != ABSTAIN).any(0))
    if len(active) < 3 or k < 2:
        raise UsageError(
            f"Snorkel's label model needs three voting functions, here are {len(active)}", next="Use majority"
        )
    table = np.zeros((matrix.shape[1], 1 + k, k))  # abstaining says nothing, nor does one that never voted
    with generators_restored(), _one_thread():
        model = _snorkel_model(k)
        _train(model, _sample(matrix[:, active], k), balance, seed)
        table[active, 1:] = np.log(model.get_conditional_probs()[:, 1:, :])
    if not np.isfinite(table).all():
        raise ArithmeticError("its tables are not finite")
    return Weighted("snorkel", balance, table)


def _train(model: Any, sample: Matrix, balance: Floats, seed: int) -> None:
    try:
        model.fit(
            sample.astype(np.int64),
            class_balance=balance.tolist(),
            n_epochs=300,
            lr=0.02,
            optimizer="adam",
            seed=seed,
            progress_bar=False,
        )
    except Exception as error:  # the library raises a bare Exception when its loss is not a number
        raise ArithmeticError(str(error)) from error


def _snorkel_model(k: int) -> Any:
    try:
        from snorkel.labeling.model import LabelModel
    except ImportError as error:
        raise MissingExtra("weak", "snorkel") from error
    return LabelModel(cardinality=k, verbose=False)


@contextmanager
def generators_restored() -> Iterator[None]:
    """Put the global generators of ``random``, numpy and torch back to where they were."""
    try:
        import torch
    except ImportError as error:
        raise MissingExtra("weak", "snorkel") from error
    python, numpy_state, torch_state = random.getstate(), np.random.get_state(), torch.get_rng_state()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy_state)
        torch.set_rng_state(torch_state)
        if cuda is not None:
            torch.cuda.set_rng_state_all(cuda)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Threads only wait for each other over matrices this small, and on a busy machine they wait long."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _sample(matrix: Matrix, k: int) -> Matrix:
    """All rows, or an even draw of them where their one-hot form would not fit."""
    most = max(1000, _CELLS // max(1, matrix.shape[1] * (1 + k)))
    if len(matrix) <= most:
        return matrix
    return matrix[np.sort(np.random.default_rng(0).choice(len(matrix), most, replace=False))]


def _uniform(k: int) -> Floats:
    return np.full(k, 1 / k)


def _softmax(score: npt.NDArray[Any]) -> Floats:
    grown = np.exp(np.asarray(score, np.float64) - score.max(1, keepdims=True, initial=-np.inf))
    return grown / grown.sum(1, keepdims=True)


# Labelling --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Report:
    """What happened: the model asked for and the one used, why, and what the functions are worth.

    ``coverage``, ``overlap`` and ``conflict`` are shares of all rows; ``restored`` counts unanimous rows that
    the model would have overruled; ``accuracy`` is over rows with gold and votes (None without gold),
    ``candidates`` the same for every model that was compared. ``parameters`` are those of the model used.
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
    candidates: dict[str, float] = field(default_factory=dict)
    parameters: dict[str, Any] = field(default_factory=dict, repr=False)

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON, without the parameters; accuracy only where gold was there to tell."""
        plain = {k: v for k, v in asdict(self).items() if k != "parameters"}
        return plain if self.accuracy is not None else {k: v for k, v in plain.items() if k != "accuracy"}


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
    first. ``gold`` (class indices, -1 unknown) measures, and lets ``auto`` choose; ``balance`` is the known
    share of each class, else it is estimated from the votes. Without rows the table is empty. Raises
    :class:`UsageError` for an unknown model, gold of another length, or votes without classes.
    """
    matrix, k = votes.matrix, max(1, len(votes.classes))
    truth = None if gold is None else np.asarray(gold)
    _check(votes, model, truth, balance)
    chosen, why, candidates = _choose(model, matrix, k, _known(balance), truth, seed)
    proba, restored = respect_unanimity(chosen.proba(matrix), matrix, chosen.balance)
    shares = _shares(matrix, k)
    report = Report(
        asked=model,
        model=chosen.kind,
        why=why,
        rows=len(matrix),
        restored=restored,
        balance=dict(zip(votes.classes, map(float, chosen.balance), strict=False)),
        functions=analyse(votes, truth),
        warnings=_copies(votes) + _failures(votes),
        accuracy=_accuracy(proba, matrix, truth),
        candidates=candidates,
        parameters=chosen.parameters(),
        **shares,
    )
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


def _check(votes: Votes, model: str, gold: npt.NDArray[Any] | None, balance: Sequence[float] | None) -> None:
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


def _known(balance: Sequence[float] | None) -> Floats | None:
    """The given shares, none of them 0: nothing could then undo it."""
    if balance is None:
        return None
    floored = np.maximum(np.asarray(balance, np.float64), 1e-4)
    return floored / floored.sum()


def _choose(
    name: str, matrix: Matrix, k: int, given: Floats | None, gold: npt.NDArray[Any] | None, seed: int
) -> tuple[LabelModel, str, dict[str, float]]:
    """The model to use, the reason in words, and the accuracy of each that was compared."""
    if not (matrix != ABSTAIN).any():
        return Majority(_uniform(k) if given is None else given), "majority, because nobody voted", {}
    dawid_skene = fit_dawid_skene(matrix, k, given)
    majority = Majority(dawid_skene.balance)
    if reason := _too_little(matrix, k):
        return majority, f"majority, because {reason}", {}
    if name == "majority":
        return majority, "asked for", {}
    if name == "dawid-skene":
        return dawid_skene, "asked for", {}
    snorkel, problem = _try_snorkel(matrix, k, majority.balance, seed, required=name == "snorkel")
    if name == "snorkel":
        if snorkel is None:
            return majority, f"majority, because {problem}", {}
        return snorkel, "asked for", {}
    models: list[LabelModel] = [majority, dawid_skene, *([snorkel] if snorkel else [])]
    return _choose_by_gold(models, matrix, gold) or _choose_by_agreement(models, matrix, problem)


def _too_little(matrix: Matrix, k: int) -> str:
    active = int((matrix != ABSTAIN).any(0).sum())
    if k < 2:
        return "there is one class only"
    if active < 3:
        return f"only {active} of {matrix.shape[1]} functions voted and a model needs three"
    if not ((matrix != ABSTAIN).sum(1) > 1).any():
        return "no record has two votes to compare"
    return ""


def _try_snorkel(
    matrix: Matrix, k: int, balance: Floats, seed: int, *, required: bool
) -> tuple[Weighted | None, str]:
    try:
        return fit_snorkel(matrix, k, balance, seed=seed), ""
    except ArithmeticError as error:
        return None, f"Snorkel's label model did not converge ({error})"
    except MissingExtra:
        if required:
            raise
        return None, "Snorkel is not installed"


def _choose_by_gold(
    models: Sequence[LabelModel], matrix: Matrix, gold: npt.NDArray[Any] | None
) -> tuple[LabelModel, str, dict[str, float]] | None:
    """The most accurate on gold; the simplest of equals. None where gold is too scarce to tell."""
    judged = 0 if gold is None else int(((gold != ABSTAIN) & (matrix != ABSTAIN).any(1)).sum())
    if judged < _MIN_GOLD:
        return None
    mended = {m.kind: respect_unanimity(m.proba(matrix), matrix, m.balance)[0] for m in models}
    scores = {kind: _accuracy(proba, matrix, gold) or 0.0 for kind, proba in mended.items()}
    best = max(models, key=lambda m: scores[m.kind])
    told = ", ".join(f"{kind} {score:.3f}" for kind, score in scores.items())
    return best, f"{best.kind} is the most accurate on {judged} rows with gold ({told})", scores


def _choose_by_agreement(
    models: Sequence[LabelModel], matrix: Matrix, problem: str
) -> tuple[LabelModel, str, dict[str, float]]:
    """Without gold: Snorkel where expectation maximisation confirms it, else the latter, which has less to go
    wrong.
    """
    dawid_skene = models[1]
    if len(models) < 3:
        return dawid_skene, f"dawid-skene, because {problem}", {}
    voted = matrix[(matrix != ABSTAIN).any(1)]
    same = float((dawid_skene.proba(voted).argmax(1) == models[2].proba(voted).argmax(1)).mean())
    told = f"the two models agree on {same:.1%} of the voted rows and no gold tells them apart"
    if same >= _AGREE:
        return models[2], f"snorkel, because {told}", {}
    return dawid_skene, f"dawid-skene, because {told}: below {_AGREE:.0%}, the finer one is not trusted", {}


def _accuracy(proba: Floats, matrix: Matrix, gold: npt.NDArray[Any] | None) -> float | None:
    if gold is None:
        return None
    judged = (gold != ABSTAIN) & (matrix != ABSTAIN).any(1)
    return float((proba[judged].argmax(1) == gold[judged]).mean()) if judged.any() else None


def _shares(matrix: Matrix, k: int) -> dict[str, float]:
    votes, n = (matrix != ABSTAIN).sum(1), max(1, len(matrix))
    conflict = (class_counts(matrix, k) > 0).sum(1) > 1
    return {
        "coverage": float((votes > 0).sum() / n),
        "overlap": float((votes > 1).sum() / n),
        "conflict": float(conflict.sum() / n),
    }


def _copies(votes: Votes) -> list[str]:
    """Pairs that vote alike wherever either votes: every model would count their one opinion twice."""
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
