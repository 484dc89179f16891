"""What one more label would be worth: on a record that has some, or on a new one.

A pure function over what is believed; choosing records is acquisition's business.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from curation.calibration import Floats


@dataclass(frozen=True)
class Worth:
    """Expected gain of one more label, in probability of the right class: for each old record, for each new one.

    ``old[i]`` and ``new[j]`` are comparable with each other: rank both together and ask the highest first.
    """

    old: Floats
    new: Floats


def relabel_or_new(consensus: Floats, model: Floats, skill: float, *, model_skill: float = 0.5) -> Worth:
    """The expected value of one more label on each old record, against the first label on each new one.

    ``consensus`` ``(old, classes)`` is what is believed of records with labels; ``model`` ``(new, classes)`` what the
    trained model predicts of records without, believed as far as ``model_skill`` (0: not at all, 1: fully), the rest
    being equal shares. An annotator of accuracy ``skill``, wrong in every way alike, would answer; the value is how
    much the probability of the likeliest class is expected to rise: ``E[max_c P(c | answer)] - max_c P(c)``. After the
    idea of ActiveLab (Goh and Mueller 2023), which scores labelled and unlabelled records on one scale. Raises nothing;
    no records give no values.

    >>> sure, open_ = relabel_or_new(np.array([[0.99, 0.01], [0.5, 0.5]]), np.zeros((0, 2)), 0.8).old
    >>> sure < open_
    True
    """
    k = consensus.shape[1] if consensus.size else model.shape[1]
    softened = model_skill * model + (1 - model_skill) / max(1, k)
    return Worth(_gain(consensus, skill), _gain(softened, skill))


def _gain(belief: Floats, skill: float) -> Floats:
    if not len(belief):
        return np.zeros(0)
    k = belief.shape[1]
    wrong = (1 - skill) / max(1, k - 1)
    answer = np.full((k, k), wrong)  # P(answer | class)
    np.fill_diagonal(answer, skill)
    joint = belief[:, None, :] * answer  # (records, answers, classes)
    gain: Floats = joint.max(2).sum(1) - belief.max(1)
    return np.maximum(gain, 0.0)
