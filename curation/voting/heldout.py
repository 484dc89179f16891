"""How well a label model foresees votes that it was not shown: the only judge there is without gold.

A model that has found the classes can say, from all functions but one, how that one will vote. One that has found
something else, or nothing, cannot do it better than counting heads.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from curation.calibration import Floats, even_draw
from curation.voting.matrix import Matrix
from curation.voting.models import LabelModel

_ROWS = 4000  # an even draw of so many rows is enough to compare by


def vote_likelihood(model: LabelModel, matrix: Matrix, k: int) -> float:
    """Mean over rows of ``Σ_j log P(vote_j | the others) - log P(vote_j)``, in nats; 0 means that nothing is foreseen.

    The class is inferred from all functions but ``j``; what function ``j`` says under each class is counted on half
    of the rows and judged on the other half, both ways round. Abstaining is a vote like any other here. Without rows: 0.
    """
    rows = even_draw(matrix, _ROWS)
    if len(rows) < 2:
        return 0.0
    half = np.random.default_rng(0).permutation(len(rows)) % 2
    gains = [_foreseen(model.proba(rows, j), rows[:, j], half, k) for j in range(rows.shape[1])]
    return float(np.sum(gains))


def _foreseen(belief: Floats, column: Matrix, half: npt.NDArray[np.int64], k: int) -> float:
    said = np.eye(1 + k)[column + 1]
    gain = 0.0
    for side in (0, 1):
        known, tried = half != side, half == side
        share = (said[known].sum(0) + 1 / (1 + k)) / (known.sum() + 1)
        table = (said[known].T @ belief[known] + 2 * share[:, None]) / (belief[known].sum(0) + 2)
        at = (np.arange(tried.sum()), column[tried] + 1)
        gain += float((np.log((belief[tried] @ table.T)[at]) - np.log(share[at[1]])).sum())
    return gain / len(column)
