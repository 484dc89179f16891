"""Several models on the same prompts, and how far they disagree: one adapter under dropout, or adapters of several seeds.

Where one model is unsure, the record may be noise; where good models are sure of different answers, a label settles
something. BALD (Houlsby et al. 2011, arXiv 1112.5745) asks for the latter: the mutual information between the answer and
the weights. It needs the probabilities of a closed set of answers; over free text there is none.

Dropout (Gal and Ghahramani 2016, arXiv 1506.02142) acts on the input of the adapter, as in training, so a sample is the
adapter with some columns of its first matrix struck out. One sample keeps its mask over all tokens of a prompt and its
answers, and the mask follows from seed, sample and record alone: who shares the batch changes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from curation.errors import UsageError
from curation.records import SCORES, digest, table
from training.adapters import Loaded, load_unmerged, open_model
from training.score import BATCH_TOKENS, class_rows, entropy, score_classes


def disagreement(probabilities: np.ndarray) -> np.ndarray:
    """Mutual information of answer and model, in nats: the entropy of the mean less the mean of the entropies.

    ``probabilities`` is (members, rows, classes); gives (rows,). Never below 0, which is agreement, nor above the logarithm
    of the number of members or of classes. Houlsby et al. 2011, equation 2.

    >>> disagreement(np.array([[[1.0, 0.0]], [[0.0, 1.0]]])) / np.log(2)
    array([1.])
    >>> disagreement(np.array([[[0.5, 0.5]], [[0.5, 0.5]]]))
    array([0.])
    """
    probabilities = np.asarray(probabilities, dtype=np.float64)
    return np.maximum(entropy(probabilities.mean(axis=0)) - entropy(probabilities).mean(axis=0), 0.0)


@dataclass(frozen=True)
class Dropout:
    """How an adapter is sampled: so many ``samples``, each with a share ``rate`` of the adapter's inputs struck out."""

    samples: int = 8
    rate: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        if self.samples < 1 or not 0 <= self.rate < 1:
            raise UsageError(
                f"{self.samples} samples at a rate of {self.rate} are none",
                where="dropout",
                next="Take one sample or more, and a rate from 0 to below 1",
            )


def under_dropout(
    scores: pa.Table,
    adapter: str | Path | Loaded,
    view: pa.Table,
    classes: Sequence[str],
    rule: Dropout,
    *,
    batch_tokens: int = BATCH_TOKENS,
) -> pa.Table:
    """``scores`` with the disagreement of an adapter's samples; all else stays the adapter's own.

    A loaded ``adapter`` must lie beside its base, not be merged into it (:func:`training.adapters.load_unmerged`). Records
    without a score stay as they are. Raises ``UsageError`` where dropout would act on nothing.
    """
    records, prompts = _scored(scores, view)
    if not records:
        return scores
    loaded = _beside_its_base(adapter)
    sampled = []
    with _masks(loaded.model, rule) as masks:
        for sample in range(rule.samples):
            told = masks.of(sample, records)
            sampled.append(score_classes(loaded, prompts, classes, batch_tokens=batch_tokens, before=told))
    found = disagreement(np.stack([one.probabilities for one in sampled]))
    return _with(scores, {r: {"disagreement": d} for r, d in zip(records, found.tolist(), strict=True)})


def of_members(
    scores: pa.Table,
    members: Sequence[str | Path | Loaded],
    view: pa.Table,
    classes: Sequence[str],
    *,
    batch_tokens: int = BATCH_TOKENS,
) -> pa.Table:
    """``scores`` with what the members say together: the mean of their probabilities, and their disagreement.

    Completion, confidence, margin and entropy become those of the mean, ``nll`` the members' mean nats per token of that
    completion. Embeddings stay, as do records without a score. Raises ``UsageError`` for fewer than two members.
    """
    if len(members) < 2:
        raise UsageError("one model cannot disagree", where="ensemble", next="Give two adapters or more")
    records, prompts = _scored(scores, view)
    if not records:
        return scores
    found = [score_classes(open_model(m), prompts, classes, batch_tokens=batch_tokens) for m in members]
    probabilities = np.stack([one.probabilities for one in found])
    mean = replace(found[0], logprobs=np.mean([one.logprobs for one in found], axis=0))
    told = zip(
        class_rows(mean, probabilities.mean(axis=0)), disagreement(probabilities).tolist(), strict=True
    )
    return _with(scores, {r: {**row, "disagreement": d} for r, (row, d) in zip(records, told, strict=True)})


def unknown(scores: pa.Table) -> pa.Table:
    """``scores`` where nobody could disagree: not a number, which no strategy takes for agreement."""
    return _with(scores, {r: {"disagreement": math.nan} for r in scores["record"].to_pylist()})


def _beside_its_base(adapter: str | Path | Loaded) -> Loaded:
    if not isinstance(adapter, Loaded) and (Path(adapter) / "adapter_config.json").is_file():
        return load_unmerged(adapter)
    return open_model(adapter)


def _scored(scores: pa.Table, view: pa.Table) -> tuple[list[str], list[Any]]:
    """The records that have a score over classes, and what they ask."""
    messages = dict(zip(view["record"].to_pylist(), view["messages"].to_pylist(), strict=True))
    standing = zip(scores["record"].to_pylist(), scores["confidence"].to_pylist(), strict=True)
    records = [record for record, confidence in standing if confidence is not None]
    return records, [messages[record] for record in records]


def _with(scores: pa.Table, told: Mapping[str, Mapping[str, Any]]) -> pa.Table:
    return table(({**row, **told.get(row["record"], {})} for row in scores.to_pylist()), SCORES)


# ---------------------------------------------------------------------------------------------- dropout


class _Masked(torch.nn.Module):
    """Stands where an adapter's dropout stands: multiplies its input by the mask that each row of the batch was given."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width, self.mask = width, torch.ones(1, width)
        self.used = False

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """``states`` (rows, tokens, width), each row by its own mask."""
        self.used = True
        return states * self.mask[:, None].to(states.device, states.dtype)


class _Masks:
    """Every mask of a model, drawn anew for each batch."""

    def __init__(self, layers: Sequence[_Masked], rule: Dropout) -> None:
        self.layers, self.rule = layers, rule

    def of(self, sample: int, records: Sequence[str]) -> Callable[[list[int]], None]:
        """What gives every layer the masks of one sample for those of ``records`` that are next."""

        def draw(places: list[int]) -> None:
            drawn = np.stack([self._row(sample, records[place]) for place in places])
            for layer, mask in zip(self.layers, np.split(drawn, self._ends, axis=1), strict=True):
                layer.mask = torch.from_numpy(mask)

        return draw

    @property
    def _ends(self) -> np.ndarray:
        return np.cumsum([layer.width for layer in self.layers])[:-1]

    def _row(self, sample: int, record: str) -> np.ndarray:
        """The masks of all layers, end to end: 0 where an input is struck out, else what keeps its mean."""
        seed = int(digest(f"{self.rule.seed}\0{sample}\0{record}"), 16)
        kept = np.random.default_rng(seed).random(sum(layer.width for layer in self.layers)) >= self.rule.rate
        return kept.astype(np.float32) / np.float32(1 - self.rule.rate)


@contextmanager
def _masks(model: Any, rule: Dropout) -> Iterator[_Masks]:
    """Masks in the place of the dropout of every adapted layer, while the block works.

    Raises ``UsageError`` where there is no such layer, and, in the end, where a layer never asked for its mask: its samples
    would agree by mistake.
    """
    places = [
        (module.lora_dropout, name, module.in_features)
        for module in model.modules()
        if hasattr(module, "lora_dropout")
        for name in module.active_adapters
    ]
    if not places:
        raise _inert()
    before = [at[name] for at, name, _ in places]
    layers = [_Masked(width) for _, _, width in places]
    for (at, name, _), layer in zip(places, layers, strict=True):
        at[name] = layer
    try:
        yield _Masks(layers, rule)
    finally:
        for (at, name, _), old in zip(places, before, strict=True):
            at[name] = old
    if not all(layer.used for layer in layers):
        raise _inert()


def _inert() -> UsageError:
    return UsageError(
        "dropout acts on nothing: these weights have no adapter beside them, or one that takes no dropout (DoRA)",
        where="dropout",
        next='Train with method = "lora", or set committee = "ensemble" under [acquisition]',
    )
