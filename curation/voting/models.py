"""What a label model is: votes in, one probability per class out. The shapes of all of them, without their fitting.

A model is a frozen value whose parameters are plain JSON. Every one answers the class balance where nobody voted, and
none looks at gold to place a class it was not fitted on. ``fitting`` learns them, ``labelling`` chooses among them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from curation.calibration import Floats, softmax, temper
from curation.errors import UsageError
from curation.voting.functions import ABSTAIN
from curation.voting.matrix import Matrix, class_counts

_FLOOR = 0.02  # what a model in a blend leaves to the classes that it rules out: none has a veto


class LabelModel(Protocol):
    """What every label model offers."""

    @property
    def kind(self) -> str:
        """Its name among :data:`curation.voting.MODELS`."""
        ...

    @property
    def balance(self) -> Floats:
        """The share of each class, which is also what it answers where nobody voted."""
        ...

    def proba(self, matrix: Matrix, without: int | None = None) -> Floats:
        """``(rows, classes)`` probabilities, each row summing to 1; a row without votes gets the class balance.

        ``without`` names a function whose votes (and silence) are not heard.
        """
        ...

    def parameters(self) -> dict[str, Any]:
        """All it has learnt, as plain JSON; :func:`model_from_parameters` reads it back."""
        ...


def _unheard(matrix: Matrix, without: int | None) -> Matrix:
    if without is None:
        return matrix
    heard = matrix.copy()
    heard[:, without] = ABSTAIN
    return heard


def _silence(proba: Floats, matrix: Matrix, balance: Floats) -> Floats:
    """No vote, no opinion: silence alone must not tilt a record."""
    proba[(matrix == ABSTAIN).all(1)] = balance
    return proba


@dataclass(frozen=True)
class Majority:
    """Votes count alike: ``(votes for the class + balance) / (votes + 1)``. The balance breaks ties and nothing
    else.
    """

    balance: Floats
    kind: str = "majority"

    def proba(self, matrix: Matrix, without: int | None = None) -> Floats:
        counts = class_counts(_unheard(matrix, without), len(self.balance))
        return (counts + self.balance) / (counts.sum(1, keepdims=True) + 1)

    def parameters(self) -> dict[str, Any]:
        return {"kind": self.kind, "balance": self.balance.tolist()}


@dataclass(frozen=True)
class Weighted:
    """Each vote adds evidence: ``P(y | votes) ∝ balance[y] · Π_j exp(evidence[j, vote_j + 1, y])``.

    ``evidence`` has shape (functions, 1 + classes, classes); entry 0 of the middle axis is what abstaining says.
    For functions independent given the class it is their log-likelihood.
    """

    kind: str
    balance: Floats
    evidence: Floats

    def proba(self, matrix: Matrix, without: int | None = None) -> Floats:
        score = np.tile(np.log(self.balance), (len(matrix), 1))
        for j, table in enumerate(self.evidence):
            if j != without:
                score += table[matrix[:, j] + 1]
        return _silence(softmax(score), _unheard(matrix, without), self.balance)

    def parameters(self) -> dict[str, Any]:
        return {"kind": self.kind, "balance": self.balance.tolist(), "evidence": self.evidence.tolist()}


@dataclass(frozen=True)
class Blend:
    """Several models at once: ``share`` of the majority's probability, the rest the geometric mean of ``models``.

    Estimators that err for different reasons are averaged, since without gold nothing tells which of them errs here;
    the majority's share keeps a clear plurality from being overturned by anything but near-certainty of all.
    """

    models: tuple[LabelModel, ...]
    balance: Floats
    share: float = 2 / 3
    kind: str = "blend"

    def proba(self, matrix: Matrix, without: int | None = None) -> Floats:
        plain = Majority(self.balance).proba(matrix, without)
        if not self.models:
            return plain
        k = len(self.balance)
        said = np.stack([m.proba(matrix, without) for m in self.models])
        logs = np.log((said + _FLOOR / k) / (1 + _FLOOR)).mean(0)
        mixed = self.share * plain + (1 - self.share) * softmax(logs)
        return _silence(mixed, _unheard(matrix, without), self.balance)

    def parameters(self) -> dict[str, Any]:
        inner = [m.parameters() for m in self.models]
        return {"kind": self.kind, "balance": self.balance.tolist(), "share": self.share, "models": inner}


@dataclass(frozen=True)
class Corrected:
    """Another model, put right by gold: ``P ∝ base(votes)^(1/temperature) · Π_j exp(evidence[j, vote_j + 1])``."""

    base: LabelModel
    temperature: float
    evidence: Floats
    prior: Floats
    kind: str = "weighted"

    @property
    def balance(self) -> Floats:
        """That of the model beneath."""
        return self.base.balance

    def proba(self, matrix: Matrix, without: int | None = None) -> Floats:
        shift = Weighted("", np.exp(self.prior), self.evidence).proba(matrix, without)
        both = temper(self.base.proba(matrix, without), self.temperature) * shift
        return _silence(both / both.sum(1, keepdims=True), _unheard(matrix, without), self.balance)

    def parameters(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "base": self.base.parameters(),
            "temperature": self.temperature,
            "evidence": self.evidence.tolist(),
            "prior": self.prior.tolist(),
        }


@dataclass(frozen=True)
class Calibrated:
    """A model whose confidence is softened or sharpened by one temperature, learnt on gold; its labels stay."""

    model: LabelModel
    temperature: float

    @property
    def kind(self) -> str:
        """That of the model inside."""
        return self.model.kind

    @property
    def balance(self) -> Floats:
        """That of the model inside."""
        return self.model.balance

    def proba(self, matrix: Matrix, without: int | None = None) -> Floats:
        softened = temper(self.model.proba(matrix, without), self.temperature)
        return _silence(softened, _unheard(matrix, without), self.balance)

    def parameters(self) -> dict[str, Any]:
        return {"kind": "calibrated", "model": self.model.parameters(), "temperature": self.temperature}


def model_from_parameters(parameters: Mapping[str, Any]) -> LabelModel:
    """The model that :meth:`LabelModel.parameters` wrote down. Raises :class:`UsageError` for anything else."""
    try:
        return _read(parameters)
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(
            "these are not the parameters of a label model", next="Fit the model again"
        ) from error


def _read(given: Mapping[str, Any]) -> LabelModel:
    kind = given["kind"]
    if kind == "calibrated":
        return Calibrated(_read(given["model"]), float(given["temperature"]))
    if kind == "weighted":
        prior = _floats(given["prior"])
        return Corrected(_read(given["base"]), float(given["temperature"]), _floats(given["evidence"]), prior)
    balance = _floats(given["balance"])
    if kind == "majority":
        return Majority(balance)
    if kind == "blend":
        return Blend(tuple(map(_read, given["models"])), balance, float(given["share"]))
    return Weighted(kind, balance, _floats(given["evidence"]))


def _floats(values: Any) -> Floats:
    found: npt.NDArray[np.float64] = np.asarray(values, np.float64)
    return found
