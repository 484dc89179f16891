"""What one more label would be worth: on a record that has some, or on a new one.

A pure function over what is believed; choosing records is acquisition's business.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from curation.calibration import Floats

CLASSES = 8  # the likeliest classes of a record; what the others add to the worth of an answer is small
PLANNED = 3  # answers to a new record that are looked ahead; the first decide nearly all


@dataclass(frozen=True)
class Worth:
    """Expected gain of a label, in probability of the right class: for each old record, for each new one.

    ``old[i]`` and ``new[j]`` are comparable with each other: rank both together and ask the highest first.
    """

    old: Floats
    new: Floats


def relabel_or_new(
    consensus: Floats, model: Floats, skill: float, *, model_skill: float = 0.5, answers: int = 1
) -> Worth:
    """The expected value of one more label on each old record, against a label on each new one.

    ``consensus`` ``(old, classes)`` is what is believed of records with labels; ``model`` ``(new, classes)`` what the
    trained model predicts of records without, believed as far as ``model_skill`` (0: not at all, 1: fully), the rest
    being equal shares. An annotator of accuracy ``skill``, wrong in every way alike, would answer; the value is how
    much the probability of the likeliest class is expected to rise: ``E[max_c P(c | answer)] - max_c P(c)``. A new
    record costs as many ``answers`` as are asked for each, so its rise after all of them is shared out among them. After
    the idea of ActiveLab (Goh and Mueller 2023), which scores labelled and unlabelled records on one scale. Raises
    nothing; no records give no values.

    >>> sure, open_ = relabel_or_new(np.array([[0.99, 0.01], [0.5, 0.5]]), np.zeros((0, 2)), 0.8).old
    >>> bool(sure < open_)
    True
    """
    k = consensus.shape[1] if consensus.size else model.shape[1]
    softened = model_skill * model + (1 - model_skill) / max(1, k)
    return Worth(_gain(consensus, skill, 1), _gain(softened, skill, answers) / max(1, answers))


def _gain(belief: Floats, skill: float, answers: int) -> Floats:
    """How much so many answers are expected to raise the probability of the likeliest class."""
    if not len(belief):
        return np.zeros(0)
    top = -np.sort(-belief, axis=1)[:, :CLASSES]
    k = top.shape[1]
    said = np.full((k, k), (1 - skill) / max(1, k - 1))  # P(answer | class)
    np.fill_diagonal(said, skill)
    rise: Floats = _expected_best(top, said, min(answers, PLANNED)) - top.max(1)
    return np.maximum(rise, 0.0)


def _expected_best(joint: Floats, said: Floats, answers: int) -> Floats:
    """``E[max_c P(c, answers)]`` of each row of ``joint`` ``(records, classes)``, over all answers that may be given."""
    if not answers:
        found: Floats = joint.max(1)
        return found
    return np.sum([_expected_best(joint * column, said, answers - 1) for column in said.T], axis=0)
