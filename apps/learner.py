"""The trainer as the loop wants it: bases, adapters, scores and measures, on this machine.

Everything it makes lies in a folder whose name is known beforehand (what it is made of), so that a killed run finds
finished work again instead of doing it twice. torch is imported by the first call that trains or scores.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from itertools import groupby, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from apps.lease import held
from curation import records, snapshot
from curation.errors import UsageError
from curation.run import MAIN, TWIN, Trained
from curation.workspace import Progress, Workspace, silent

if TYPE_CHECKING:
    from training.train import Recipe, Sink

MOST_TEXTS = 200_000  # a small base learns no more from more text in the time it is given


class LocalLearner:
    """A :class:`curation.run.Learner` that trains here, with the recipe of the workspace's configuration.

    Where records are chosen by ``bald``, scores hold how far the configured committee disagrees.
    """

    def __init__(self, workspace: Workspace, strategy: str = "") -> None:
        self.workspace, self.strategy = workspace, strategy
        self._loaded: dict[str, Any] = {}

    @property
    def _root(self) -> Path:
        return self.workspace.store.root

    def base(self, texts: Iterator[str], progress: Progress) -> str:
        """The configured base; the bundled one practises on the unlabelled texts first, for ``adapt_steps``."""
        from training.model import BUNDLED

        section = self.workspace.config.train
        if section.base != BUNDLED or not section.adapt_steps:
            return section.base
        from training.pretrain import practise_base

        few = list(islice(texts, MOST_TEXTS))
        out = self._root / "bases" / practised_name(few, section.adapt_steps)
        if not out.is_dir():
            # Another run may be making it: nothing can be done without it, so it is waited for as long as it takes.
            with held(self.workspace.ledger, f"base:{out.name}", patience=math.inf):
                if not out.is_dir():
                    told = steps_of(progress, "practising on the texts")
                    practise_base(few, out, steps=section.adapt_steps, progress=told)
        return out.name

    def _reference(self, base: str) -> str:
        made = self._root / "bases" / base
        return str(made) if made.is_dir() else base

    def recipe(self) -> Recipe:
        """The configured recipe; zeros leave the choice to the method and the model's size."""
        from training.train import Recipe

        section = self.workspace.config.train
        return Recipe(
            method=section.method,
            rank=section.rank,
            alpha=2 * section.rank,
            epochs=section.epochs or None,
            lr=section.learning_rate or None,
            batch=section.batch or 16,
            max_length=section.max_length,
            seed=section.seed,
        )

    def train(self, snapshot: str, *, base: str, progress: Progress) -> Trained:
        """Train on a snapshot that may be trained on, or find the adapter that this snapshot and recipe gave before."""
        return self._trained(snapshot, base, self.recipe(), progress)

    def _trained(self, snapshot: str, base: str, recipe: Recipe, progress: Progress) -> Trained:
        key = records.digest(records.canonical_json([snapshot, base, asdict(recipe)]))
        out = self._root / "adapters" / key
        manifest = _finished(out)
        if manifest is None:
            with held(self.workspace.ledger, f"train:{key}") as sink:
                manifest = _finished(out) or self._train(snapshot, base, recipe, out, progress, sink)
        made = {"recipe": manifest["recipe"], "metrics": manifest["metrics"]}
        return Trained(
            manifest["digest"], base, **made, seconds=manifest["run"]["seconds"], folder=f"adapters/{key}"
        )

    def _train(
        self, name: str, base: str, recipe: Recipe, out: Path, progress: Progress, sink: Sink
    ) -> dict[str, Any]:
        from training import registry, tracking
        from training.train import train

        verdict = {s.name: s.verdict for s in self.workspace.ledger.snapshots()}.get(name)
        approved = None if verdict is None else verdict == "approved"
        found = snapshot.require_trainable(self.workspace.store, name, approved=approved)
        train(
            snapshot.load(self.workspace.store, name),
            recipe,
            self._reference(base),
            out,
            revision=self.workspace.config.train.revision or None,
            provenance={
                "snapshot": name,
                "rows": found.rows,
                "workspace": self.workspace.config.workspace.name,
            },
            progress=steps_of(progress, "training"),
            sink=sink,
            track=tracking.destinations(self.workspace.config),
        )
        return registry.read(out)

    def folder(self, adapter: str) -> Path:
        """Where the adapter of a digest lies."""
        for known in self.workspace.ledger.adapters():
            if known.digest == adapter:
                return self._root / known.path
        raise UsageError(f"no adapter {adapter!r} in this workspace", next="See them with `tilth status`")

    def _model(self, adapter: str | None, base: str) -> Any:
        """An opened model; each stays open for the run, since opening costs more than a small pool."""
        from training.adapters import open_model

        where = str(self.folder(adapter)) if adapter else self._reference(base)
        if where not in self._loaded:
            self._loaded = {where: open_model(where)}
        return self._loaded[where]

    def score(self, adapter: str | None, base: str, rows: pa.Table, classes: Sequence[str]) -> pa.Table:
        """SCORES of the rows; where there is no adapter yet, embeddings and uncertainty of the base."""
        from training.score import score_pool

        scores = score_pool(self._model(adapter, base), rows, classes=list(classes) or None)
        return self._doubted(scores, adapter, base, rows, classes) if self.strategy == "bald" else scores

    def _doubted(
        self, scores: pa.Table, adapter: str | None, base: str, rows: pa.Table, classes: Sequence[str]
    ) -> pa.Table:
        """The scores with what the committee says. Free text has none, and a base alone no number: nobody to disagree."""
        from training import committee

        section = self.workspace.config.acquisition
        if not classes:
            return scores
        if adapter is None:
            return committee.unknown(scores)
        folder = self.folder(adapter)
        if section.committee == "ensemble":
            members = [folder, *self._siblings(folder, base, section.members - 1)]
            return committee.of_members(scores, members, rows, classes)
        rule = committee.Dropout(section.members, section.dropout, section.seed)
        return committee.under_dropout(scores, folder, rows, classes, rule)

    def _siblings(self, folder: Path, base: str, count: int) -> list[Path]:
        """Adapters on the same rows by the seeds that follow; those that were trained before are found again."""
        from training import registry

        snapshot, recipe = registry.read(folder)["snapshot"], self.recipe()
        others = [replace(recipe, seed=recipe.seed + i) for i in range(1, count + 1)]
        made = [self._trained(snapshot, base, one, silent) for one in others]
        return [self._root / one.folder for one in made]

    def compare(
        self, adapters: Mapping[str, str], rows: pa.Table, classes: Mapping[str, Sequence[str]], closed: bool
    ) -> dict[str, Any]:
        """Each adapter on the same prompts, and the paired difference of the strategy's to its random twin's."""
        from training import evaluate

        prompts, references = grouped(rows)
        metric = self._metric(closed)
        stats, arms = {}, {}
        for arm, adapter in adapters.items():
            predictions = self.answers(adapter, prompts, classes[arm])
            stats[arm] = evaluate.row_statistics(predictions, references, metric)
            value, ci95 = evaluate.interval(stats[arm])
            arms[arm] = {"value": value, "ci95": ci95}
        both = MAIN in stats and TWIN in stats
        difference = evaluate.paired_difference(stats[TWIN], stats[MAIN]) if both else None
        return {"metric": metric, "arms": arms, "difference": difference, "rows": len(prompts)}

    def answers(self, adapter: str, prompts: Sequence[Any], classes: Sequence[str]) -> list[str]:
        """Greedy answers; the likeliest class where the answers are classes."""
        from training.score import predict

        return predict(self._model(adapter, ""), prompts, classes=list(classes) or None)

    def _metric(self, closed: bool) -> str:
        chosen = [name for name in self.workspace.config.evaluation.metrics if name != "auto"]
        return chosen[0] if chosen else ("accuracy" if closed else "bleu")


def grouped(rows: pa.Table) -> tuple[list[Any], list[list[str]]]:
    """Test rows as prompts (messages) with all their references, one entry per record, in the order of ids."""
    columns = (rows[name].to_pylist() for name in ("record", "messages", "completion"))
    ordered = sorted(zip(*columns, strict=True), key=lambda row: row[0])
    parts = [list(part) for _, part in groupby(ordered, key=lambda row: row[0])]
    return [part[0][1] for part in parts], [[row[2] for row in part] for part in parts]


def _finished(folder: Path) -> dict[str, Any] | None:
    """The manifest of a whole adapter, or ``None`` where training never came to its end."""
    from training import registry

    if not folder.is_dir():
        return None
    with suppress(UsageError):
        return registry.verify(folder)
    return None


def practised_name(texts: Sequence[str], steps: int) -> str:
    """The name of what the bundled base becomes by practising on these texts: the digest of what it is made of."""
    from training.model import BUNDLED, resolve_base

    made_of = [resolve_base(BUNDLED).digest, sorted(records.digest(text) for text in texts), steps]
    return records.digest(records.canonical_json(made_of))


def steps_of(progress: Progress, what: str) -> Any:
    """A training room's progress as this room tells it: with the loss and the speed, where the meter can show them."""

    def tell(state: Mapping[str, Any]) -> None:
        if hasattr(progress, "remark"):
            progress.remark = _remark(state)
        progress(what, int(state.get("step", 0)), int(state["steps"]) if state.get("steps") else None)

    return tell


def _remark(state: Mapping[str, Any]) -> str:
    parts = [f"loss {state['loss']:.3f}"] if state.get("loss") is not None else []
    if state.get("tokens_per_second"):
        parts.append(f"{state['tokens_per_second']:,.0f} tokens/s")
    return ", ".join(parts)
