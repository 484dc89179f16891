"""Snorkel's LabelModel, fenced: three functions or more, random generators left as they were, no pickle.

The library is old and its habits are its own, so it stays behind this one module; what it has learnt leaves it as a
plain table. Nothing here is needed where Snorkel is not installed.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from curation.calibration import Floats
from curation.errors import MissingExtra, UsageError
from curation.voting.fitting import sample
from curation.voting.functions import ABSTAIN
from curation.voting.matrix import Matrix
from curation.voting.models import Weighted


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
        _train(model, sample(matrix[:, active], k), balance, seed)
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
