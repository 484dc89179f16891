"""From rows of a snapshot or a file to what is learned: which rows, how heavy, encoded, each once, mixed by task.

A row that does not fit is named with its reason and left out; a row that is not whole stops everything. No tensor here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from curation.errors import UsageError
from curation.records import Message, canonical_json, digest, user_message
from training.examples import (
    IGNORED,
    Encoded,
    UnfitExample,
    check,
    check_tokenizer,
    encode,
    encode_text,
    with_passages,
)
from training.transcripts import compared


@dataclass(frozen=True)
class Example:
    """One row to learn from; for preferences ``rejected`` is the answer that ``completion`` was preferred to.

    ``fault`` says why a row cannot be learned, where that is known before it is encoded.
    """

    messages: Sequence[Message]
    completion: str
    weight: float = 1.0
    task: str = ""
    rejected: str | None = None
    fault: str | None = None


@dataclass
class Lesson:
    """Encoded rows with their weights and tasks; ``refused`` are (index, reason), ``repeated`` counts copies left out."""

    rows: list[Encoded] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)
    tasks: list[str] = field(default_factory=list)
    refused: list[tuple[int, str]] = field(default_factory=list)
    repeated: int = 0

    def __len__(self) -> int:
        return len(self.rows)


def split_rows(examples: pa.Table | Sequence[Mapping[str, Any]], split: str | None) -> list[Example]:
    """The rows of one split, or all of them where there is no ``split`` column (then ``validation`` has none).

    Raises ``UsageError`` naming the first row that has neither prompt nor messages, or no completion.
    """
    rows = examples.to_pylist() if isinstance(examples, pa.Table) else list(examples)
    if split is not None and any(row.get("split") for row in rows):
        rows = [row for row in rows if row.get("split") == split]
    elif split == "validation":
        return []
    return [_example(i, row) for i, row in enumerate(rows)]


def _example(index: int, row: Mapping[str, Any]) -> Example:
    weight = row.get("weight")
    weight = 1.0 if weight is None else float(weight)
    if not math.isfinite(weight) or weight < 0:
        raise UsageError(f"the weight is {weight}", where=f"row {index}", next="Give a number of at least 0")
    task = str(row.get("task") or "")
    if row.get("text") is not None:
        return Example((), row["text"], weight, task)
    messages, prompt = row.get("messages"), row.get("prompt")
    if not messages and isinstance(prompt, str):
        messages = user_message(prompt)
    if not messages and row.get("chosen") and row.get("rejected"):
        return _compared(row, weight, task)
    completion = row.get("chosen") if row.get("rejected") is not None else row.get("completion")
    if not messages or not isinstance(completion, str):
        raise UsageError(
            "a row to learn from needs a prompt (or messages) and a completion (or chosen and rejected)",
            where=f"row {index}",
            next="Leave it out, or complete it",
        )
    return Example(
        with_passages(messages, row.get("passages")), completion, weight, task, row.get("rejected")
    )


def _compared(row: Mapping[str, Any], weight: float, task: str) -> Example:
    """A preference between whole transcripts; published sets hold a few whose beginnings differ."""
    try:
        messages, chosen, rejected = compared(row["chosen"], row["rejected"])
    except UsageError as error:
        return Example((), "", weight, task, fault=error.what)
    return Example(with_passages(messages, row.get("passages")), chosen, weight, task, rejected)


def encode_rows(rows: Sequence[Example], tokenizer: Any, max_length: int, method: str) -> Lesson:
    """What is learned of ``rows``: encoded, checked, each different row once with the heaviest of its weights.

    Rows of weight 0 are left out. The same row twice in one epoch would teach it twice as hard without anybody's wish.
    """
    check_tokenizer(tokenizer)
    lesson = Lesson()
    place: dict[tuple[tuple[int, ...], int], int] = {}
    for i, row in enumerate(rows):
        try:
            made = _encode(row, tokenizer, max_length, method) if row.weight > 0 else []
        except UnfitExample as error:
            lesson.refused.append((i, str(error)))
            continue
        for one in made:
            _add(lesson, place, one, row)
    return lesson


def _add(lesson: Lesson, place: dict[tuple[tuple[int, ...], int], int], one: Encoded, row: Example) -> None:
    key = (tuple(one.input_ids), one.supervised)
    if key in place:
        lesson.repeated += 1
        lesson.weights[place[key]] = max(lesson.weights[place[key]], row.weight)
        return
    place[key] = len(lesson.rows)
    lesson.rows.append(one)
    lesson.weights.append(row.weight)
    lesson.tasks.append(row.task)


def _encode(row: Example, tokenizer: Any, max_length: int, method: str) -> list[Encoded]:
    if row.fault:
        raise UnfitExample(row.fault)
    if method == "adapt" or not row.messages:
        text = "\n".join([*(m["content"] for m in row.messages), row.completion])
        return encode_text(text, tokenizer, max_length)
    made = encode(row.messages, row.completion, tokenizer, max_length)
    check(made, tokenizer)
    return [made]


def answer_tokens(rows: Sequence[Encoded]) -> list[int]:
    """The ids that occur among the learned tokens, sorted."""
    return sorted({label for row in rows for label in row.labels} - {IGNORED})


def level_weights(rows: Sequence[Encoded], weights: Sequence[float]) -> list[float]:
    """The weights scaled so that the mean over learned tokens is 1.

    The loss ``sum_i w_i sum_t nll_it / tokens`` then keeps its size, and the learning rate its meaning, whatever the
    unit of the weights; and it is the same however the batch is cut into pieces.
    """
    tokens = np.array([row.supervised for row in rows], dtype=np.float64)
    given = np.asarray(weights, dtype=np.float64)
    return (given * tokens.sum() / (given * tokens).sum()).tolist()


def rows_digest(rows: Sequence[Example]) -> str:
    """The digest of what was learned, in order: messages, completion, weight, and what a preference was preferred to."""
    kept = (
        [
            [dict(m) for m in row.messages],
            row.completion,
            row.weight,
            *([row.rejected] if row.rejected else []),
        ]
        for row in rows
    )
    return digest("\n".join(digest(canonical_json(row)) for row in kept))


# ------------------------------------------------------------------------------------------------ tasks


def task_shares(
    counts: Mapping[str, int], temperature: float = 1.0, weights: Mapping[str, float] | None = None
) -> dict[str, float]:
    """How large a share of every epoch each task gets: ``w_t * n_t ** (1 / temperature)``, normalised.

    1 keeps the proportions of the data; the higher, the more equal the tasks (Arivazhagan et al. 2019, arXiv 1907.05019,
    section 4.2). A task without a weight has 1.

    >>> task_shares({"a": 900, "b": 100}, temperature=2)
    {'a': 0.75, 'b': 0.25}
    >>> task_shares({"a": 900, "b": 100}, weights={"b": 9})
    {'a': 0.5, 'b': 0.5}
    """
    weights = weights or {}
    odds = {task: weights.get(task, 1.0) * n ** (1.0 / temperature) for task, n in counts.items()}
    total = sum(odds.values())
    return {task: odd / total for task, odd in odds.items()}


def check_mixture(tasks: Sequence[str], mixture: Sequence[tuple[str, float]]) -> None:
    """Raises ``UsageError`` where a weight is for a task that no row has: it would say nothing, silently."""
    unknown = sorted({task for task, _ in mixture} - set(tasks))
    if unknown:
        known = ", ".join(sorted(set(tasks) - {""})) or "none, since no row has a field task"
        raise UsageError(
            f"no row to learn has the task {unknown[0]!r}", where="mixture", next=f"Tasks: {known}"
        )


def epoch_rows(
    tasks: Sequence[str],
    temperature: float,
    rng: np.random.Generator,
    weights: Mapping[str, float] | None = None,
) -> np.ndarray:
    """The indices of one epoch, in random order: as many as there are rows, each task by its share.

    A task that gets more than it has repeats its rows evenly; one that gets fewer drops some, others in each epoch.
    With one task, or temperature 1 and no weights, every row comes exactly once.
    """
    names, place = np.unique(np.asarray(tasks, dtype=object).astype(str), return_inverse=True)
    if len(names) < 2 or (temperature == 1.0 and not weights):
        return rng.permutation(len(tasks))
    counts = np.bincount(place)
    shares = task_shares(dict(zip(names.tolist(), counts.tolist(), strict=True)), temperature, weights)
    wanted = _apportion([shares[name] for name in names.tolist()], len(tasks))
    drawn = [_draw(np.flatnonzero(place == t), n, rng) for t, n in enumerate(wanted)]
    return rng.permutation(np.concatenate(drawn))


def _apportion(shares: Sequence[float], total: int) -> list[int]:
    """Whole numbers that sum to ``total`` in proportion to ``shares`` (largest remainder)."""
    exact = np.asarray(shares) * total
    whole = np.floor(exact).astype(int)
    for i in np.argsort(whole - exact, kind="stable")[: total - int(whole.sum())]:
        whole[i] += 1
    return whole.tolist()


def _draw(own: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    rounds = -(-count // len(own)) if count else 0
    drawn = [rng.permutation(own) for _ in range(rounds)]
    return np.concatenate(drawn)[:count] if drawn else own[:0]
