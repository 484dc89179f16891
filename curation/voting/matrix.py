"""The vote matrix and what can be read off it: coverage, overlap, conflict, polarity, accuracy. Arithmetic
only.

Rows are records, columns labeling functions; an entry is the index of a class, and -1 abstains.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from curation.calibration import wilson
from curation.errors import UsageError
from curation.records import VOTES
from curation.voting.functions import ABSTAIN

Matrix = npt.NDArray[np.int16]


@dataclass(frozen=True)
class Failures:
    """How often one function failed on a row (it abstained there), with the first case in words."""

    function: str
    count: int = 0
    record: str = ""
    message: str = ""

    def __bool__(self) -> bool:
        return self.count > 0


@dataclass(frozen=True)
class Votes:
    """What ``functions`` said about ``records``: ``matrix[i, j]`` indexes ``classes``, or is -1."""

    matrix: Matrix
    classes: tuple[str, ...]
    functions: tuple[str, ...]
    records: tuple[str, ...]
    digests: tuple[str, ...] = ()
    failures: tuple[Failures, ...] = ()

    def table(self) -> pa.Table:
        """Long form: one row per record and function, null where it abstained
        (:data:`curation.records.VOTES`).
        """
        rows, columns = self.matrix.shape
        codes = pa.array(self.matrix.ravel(), mask=self.matrix.ravel() == ABSTAIN)
        names = pa.array(self.classes, pa.string())
        return pa.Table.from_arrays(
            [
                pa.array(self.records, pa.string()).take(pa.array(np.repeat(np.arange(rows), columns))),
                pa.array(self.functions, pa.string()).take(pa.array(np.tile(np.arange(columns), rows))),
                names.take(codes.cast(pa.int32())),
            ],
            schema=VOTES,
        )


def analyse(votes: Votes, gold: npt.ArrayLike | None = None) -> list[dict[str, Any]]:
    """One dictionary per function, as shares of all rows.

    ``coverage``: it voted; ``overlap``: another one voted too; ``conflict``: another one voted differently.
    ``polarity``: the classes it used. With ``gold`` (class indices, -1 unknown): ``judged`` rows that it
    voted on and gold knows, ``accuracy`` on those and its 95% ``interval`` (None where there are none). No rows give shares of 0.
    """
    matrix, n = votes.matrix, max(1, len(votes.matrix))
    voted = matrix != ABSTAIN
    overlap, conflict = (
        voted & (voted.sum(1, keepdims=True) > 1),
        _conflicts(matrix, max(1, len(votes.classes))),
    )
    failed = {f.function: f for f in votes.failures}
    return [
        {
            "name": name,
            "coverage": float(voted[:, j].sum() / n),
            "overlap": float(overlap[:, j].sum() / n),
            "conflict": float(conflict[:, j].sum() / n),
            "polarity": [votes.classes[c] for c in np.unique(matrix[voted[:, j], j])],
            "errors": failed[name].count if name in failed else 0,
            **_judge(matrix[:, j], gold),
        }
        for j, name in enumerate(votes.functions)
    ]


def worst_examples(votes: Votes, gold: npt.ArrayLike, most: int = 3) -> dict[str, list[tuple[str, str, str]]]:
    """Per function, up to ``most`` of its wrong votes as ``(record, vote, gold)``.

    Those come first on which most other functions were right: what a function gets wrong alone is its own fault.
    """
    truth, matrix = np.asarray(gold), votes.matrix
    right = ((matrix == truth[:, None]) & (matrix != ABSTAIN)).sum(1)
    names = [*votes.classes, "another class"]
    found = {}
    for j, name in enumerate(votes.functions):
        wrong = np.flatnonzero((matrix[:, j] != ABSTAIN) & (truth != ABSTAIN) & (matrix[:, j] != truth))
        worst = wrong[np.argsort(-right[wrong], kind="stable")][:most]
        found[name] = [(votes.records[i], names[matrix[i, j]], names[truth[i]]) for i in worst.tolist()]
    return found


def class_counts(matrix: Matrix, k: int) -> npt.NDArray[np.float64]:
    """``(rows, k)``: how many functions voted for each class."""
    return np.stack([(matrix == c).sum(1) for c in range(k)], axis=1).astype(np.float64)


def unanimous(matrix: Matrix, k: int) -> npt.NDArray[np.int64]:
    """The class that every voting function of a row names; -1 where they differ or none voted."""
    named = class_counts(matrix, k) > 0
    return np.where(named.sum(1) == 1, named.argmax(1), ABSTAIN)


def _conflicts(matrix: Matrix, k: int) -> npt.NDArray[np.bool_]:
    """``(rows, functions)``: it voted, and another one voted for something else."""
    differ = (class_counts(matrix, k) > 0).sum(1, keepdims=True) > 1
    return (matrix != ABSTAIN) & differ


def _judge(column: npt.NDArray[Any], gold: npt.ArrayLike | None) -> dict[str, Any]:
    if gold is None:
        return {}
    truth = np.asarray(gold)
    judged = (column != ABSTAIN) & (truth != ABSTAIN)
    n = int(judged.sum())
    if not n:
        return {"judged": 0, "accuracy": None, "interval": None}
    hits = int((column[judged] == truth[judged]).sum())
    return {"judged": n, "accuracy": hits / n, "interval": wilson(hits, n)}


# Votes that come as they are --------------------------------------------------------------------------------


def read_votes(
    values: Sequence[Any],
    *,
    classes: Sequence[str] | None = None,
    records: Sequence[str] | None = None,
    where: str = "",
) -> Votes:
    """Votes given as data: per row a list of class numbers (-1 abstains) or of class names (null abstains).

    Numbers name the classes "0", "1", ... unless ``classes`` does. Raises :class:`UsageError` that names the
    row, for a row that is no list or has another length, mixed kinds, a number below -1 or beyond the
    classes, an unknown name.
    """
    rows = [_listed(value, i, where) for i, value in enumerate(values)]
    width = len(rows[0]) if rows else 0
    for i, row in enumerate(rows):
        if len(row) != width:
            _refuse(
                f"row {i} has {len(row)} votes, the first row {width}",
                where,
                "Give every row one vote a function",
            )
    names = tuple(classes) if classes is not None else _class_names(rows, where)
    codes: dict[Any, int] = {**{name: i for i, name in enumerate(names)}, None: ABSTAIN}
    matrix = np.full((len(rows), width), ABSTAIN, np.int16)
    for i, row in enumerate(rows):
        matrix[i] = [_code(vote, codes, len(names), i, where) for vote in row]
    return Votes(
        matrix,
        names,
        tuple(f"function_{j}" for j in range(width)),
        tuple(records) if records is not None else tuple(map(str, range(len(rows)))),
    )


def read_gold(values: Sequence[Any], classes: Sequence[str]) -> npt.NDArray[np.int64]:
    """Gold as class indices; -1 where it is null (or -1), ``len(classes)`` where no function knows the class.

    The last can never be hit, so such rows count against accuracy, as they should. Numbers are read as class
    numbers when the classes are numbered, else as names.
    """
    codes: dict[Any, int] = {name: i for i, name in enumerate(classes)}
    return np.array(
        [ABSTAIN if v is None or v == ABSTAIN else codes.get(str(v), len(classes)) for v in values], int
    )


def _listed(value: Any, i: int, where: str) -> list[Any]:
    if not isinstance(value, (list, tuple, np.ndarray)):
        _refuse(f"the votes of row {i} are not a list: {str(value)[:60]!r}", where, "Give a list of votes")
    return list(value)


def _class_names(rows: Sequence[Sequence[Any]], where: str) -> tuple[str, ...]:
    """Numbers count up to the highest seen (two classes at least); names are sorted, so that row order is no
    matter.
    """
    seen = {vote for row in rows for vote in row if vote is not None}
    if all(isinstance(vote, str) for vote in seen):
        return tuple(sorted(seen))
    if not all(isinstance(vote, (int, np.integer)) and not isinstance(vote, bool) for vote in seen):
        _refuse("the votes mix numbers with other kinds", where, "Give numbers with -1, or names with null")
    return tuple(map(str, range(max(2, max(map(int, seen)) + 1))))


def _code(vote: Any, codes: Mapping[Any, int], k: int, i: int, where: str) -> int:
    if isinstance(vote, (int, np.integer)) and not isinstance(vote, bool) and ABSTAIN <= vote < k:
        return int(vote)
    if not (vote is None or (isinstance(vote, str) and vote in codes)):
        _refuse(f"row {i} votes {vote!r}, none of the {k} classes", where, "Use -1 or null to abstain")
    return codes[vote]


def _refuse(what: str, where: str, then: str) -> NoReturn:
    raise UsageError(what, where=where, next=then)
