"""What the command line asks of models: a training planned and done, answers, measures, vectors, whole models.

Rows come from files or from a snapshot; a workspace is there where one is needed and no further. torch is imported by the
first call that trains or scores.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from apps.learner import steps_of
from apps.lease import LedgerSink, held
from curation import config, neighbours, records, snapshot
from curation.errors import TilthError, UsageError
from curation.neighbours import Encoder
from curation.workspace import Progress

if TYPE_CHECKING:
    from apps.cli.session import Session
    from training.tracking import Destinations
    from training.train import Recipe, Sink, TrainResult


@dataclass
class Plan:
    """A training that is about to happen: on which rows, from which base, to where."""

    rows: pa.Table | list[dict[str, Any]]
    held: list[dict[str, Any]] | None
    base: str
    revision: str
    method: str
    out: Path
    provenance: dict[str, Any] = field(default_factory=dict)
    start: Path | None = None
    session: Session | None = None

    def describe(self) -> dict[str, Any]:
        """What ``--dry-run`` says."""
        return {"rows": len(self.rows), "base": self.base, "method": self.method, "out": str(self.out)}

    def train(self, options: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
        """Do it, and say how it went. ``options`` are those of the command line; zeros leave the choice to the recipe."""
        from training.train import Recipe

        made = Recipe(
            method=self.method,
            rank=options["rank"],
            alpha=2 * options["rank"],
            epochs=options["epochs"] or None,
            lr=options["lr"] or None,
            batch=options.get("batch") or 16,
            micro_batch=options.get("micro_batch") or None,
            packing=options.get("packing"),
            length_grouping=bool(options.get("length_grouping")),
            patience=options.get("patience") or None,
            temperature=options.get("temperature") or 1.0,
            mixture=_mixture(options.get("mix") or []),
            max_length=options["max_length"],
            seed=options["seed"],
        )
        trials: list[dict[str, Any]] = []
        with self._right(made) as sink:
            if options.get("search"):
                made = self._search(made, options["search"], progress, trials, sink)
            result = self._run(made, self.out, progress, sink, trials)
        return _told(result) | ({"trials": trials} if trials else {})

    def _run(
        self,
        recipe: Recipe,
        out: Path,
        progress: Progress,
        sink: Sink | None,
        trials: Sequence[Mapping[str, Any]] = (),
    ) -> TrainResult:
        from training.train import train

        return train(
            self.rows,
            recipe,
            self.base,
            out,
            revision=self.revision or None,
            eval_examples=self.held,
            provenance=self.provenance,
            progress=steps_of(progress, "training"),
            start=self.start,
            say=self.session.say if self.session else None,
            sink=sink,
            track=self._followed(),
            trials=trials,
        )

    def _followed(self) -> Destinations | None:
        """The trackers that the workspace asks for, if there is a workspace."""
        from training.tracking import destinations

        if self.session is None or not (self.session.root / config.FILE).is_file():
            return None
        return destinations(config.load(self.session.root))

    def _right(self, recipe: Recipe) -> Any:
        """The lease of (snapshot, recipe) in the workspace whose snapshot it is; none for plain files and folders."""
        name = self.provenance.get("snapshot")
        if self.session is None or name is None or not self.provenance.get("workspace"):
            return nullcontext(None)
        key = records.digest(records.canonical_json([name, self.base, asdict(recipe)]))
        return _leased(self.session, f"train:{key}")

    def _search(
        self,
        recipe: Recipe,
        count: int,
        progress: Progress,
        trials: list[dict[str, Any]],
        sink: Sink | None,
    ) -> Recipe:
        """The best of ``count`` recipes; every trial is noted in ``trials``, and in the ledger where there is one."""
        from training import memory, search
        from training.model import resolve_base

        size = memory.parameters(memory.weight_shapes(resolve_base(self.base, self.revision or None).path))

        def note(trial: search.Trial) -> None:
            trials.append(trial.told())
            if sink:
                sink.event("trial", str(self.out), trial.told())

        def run(one: Recipe, out: Path) -> float | None:
            return self._run(one, out, progress, None).eval_loss

        return search.search(search.draw(recipe, count, size), len(self.rows), run, note)


def _mixture(given: Sequence[str]) -> tuple[tuple[str, float], ...]:
    """``TASK=WEIGHT`` as the recipe holds it. Raises :class:`UsageError` for what is not of that form."""
    made = []
    for one in given:
        task, _, weight = one.rpartition("=")
        try:
            made.append((task, float(weight)))
        except ValueError:
            task = ""
        if not task:
            raise UsageError(f"{one!r} is not TASK=WEIGHT", where="--mix", next="For instance --mix reply=2")
    return tuple(made)


@contextmanager
def _leased(session: Session, name: str) -> Iterator[LedgerSink]:
    with session.workspace() as opened, held(opened.ledger, name) as sink:
        yield sink


def _told(result: TrainResult) -> dict[str, Any]:
    return {
        "adapter": str(result.adapter),
        "digest": result.digest,
        "eval_loss": result.eval_loss,
        "train_loss": result.train_loss,
        "tokens_per_second": result.tokens_per_second,
        "seconds": result.seconds,
        "steps": result.steps,
        "refused": list(result.refused),
    }


def plan_training(
    session: Session,
    *,
    data: Path | None,
    snapshot: str,
    eval: Path | None,
    base: str,
    revision: str,
    method: str,
    out: Path | None,
    start: Path | None = None,
) -> Plan:
    """What ``tilth train`` was asked for. Raises :class:`UsageError` where that is too little or too much."""
    if (data is None) == (not snapshot):
        raise UsageError("name either --data FILE or --snapshot NAME", where="tilth train")
    if out is None:
        raise UsageError("there is no --out", where="tilth train", next="Name the new adapter's folder")
    read = _pairs if method == "dpo" else _rows
    held = read(eval) if eval else None
    rest: dict[str, Any] = {"start": start, "session": session}
    if data is not None:
        return Plan(read(data), held, base, revision, method, out, {"data": data.name}, **rest)
    table, name, home = _snapshot_rows(session, snapshot)
    return Plan(table, held, base, revision, method, out, {"snapshot": name, **home}, **rest)


def _snapshot_rows(session: Session, wanted: str) -> tuple[pa.Table, str, dict[str, str]]:
    """The rows of a snapshot of the workspace, or of an exported one, once it may be trained on; and its workspace.

    An exported one needs no ledger: the training may be a job on another machine.
    """
    if Path(wanted).is_dir():
        found = snapshot.require_trainable(Path(wanted))
        return snapshot.load(Path(wanted)), found.name, {}
    with session.workspace() as opened:
        name = snapshot.resolve(opened.store, wanted)
        verdict = {s.name: s.verdict for s in opened.ledger.snapshots()}.get(name)
        snapshot.require_trainable(
            opened.store, name, approved=None if verdict is None else verdict == "approved"
        )
        return snapshot.load(opened.store, name), name, {"workspace": opened.config.workspace.name}


def _pairs(path: Path) -> list[dict[str, Any]]:
    """Preference rows of a file: prompt or messages, chosen, rejected; or the two whole transcripts as chosen and rejected.

    Raises :class:`UsageError` with the first bad line.
    """
    from curation import formats

    rows = []
    for i, (_, row) in enumerate(formats.read_objects(path)):
        if not all(_said(row.get(name)) for name in ("chosen", "rejected")):
            raise UsageError(
                "a preference has prompt, chosen and rejected, as text; or chosen and rejected as transcripts",
                where=f"{path}: row {i}",
            )
        rows.append({name: row.get(name) for name in _PAIR})
    return rows


def _said(answer: Any) -> bool:
    return isinstance(answer, list) or (isinstance(answer, str) and bool(answer.strip()))


_PAIR = ("prompt", "messages", "passages", "weight", "task", "chosen", "rejected")


def _rows(path: Path) -> list[dict[str, Any]]:
    """Rows of a plain file with messages, completion and weight. Raises :class:`UsageError` with the first bad line."""
    from curation import formats
    from training.examples import with_passages

    rows = []
    for batch in formats.read(path, mapping=formats.Mapping()):
        if batch.bad:
            bad = batch.bad[0]
            raise UsageError(
                bad.message, where=f"{path}:{bad.line}", next="Mend the line, or ingest the file"
            )
        rows += [
            {
                "messages": with_passages(row.messages, row.tags.get("passages")),
                "prompt": records.prompt_text(row.messages),
                "completion": row.completion,
                "text": records.prompt_text(row.messages) if row.completion is None else None,
                "weight": row.tags.get("weight"),
                "task": row.tags.get("task"),
            }
            for row in batch.rows
        ]
    return rows


def find_adapter(session: Session, wanted: str) -> Path:
    """The folder of an adapter: a path, or the beginning of a digest in the workspace."""
    if Path(wanted).is_dir():
        return Path(wanted)
    try:
        with session.workspace() as opened:
            found = {a.digest: opened.store.root / a.path for a in opened.ledger.adapters()}
    except TilthError as error:
        raise UsageError("no such folder, and no workspace to look in", where=wanted) from error
    matches = [path for name, path in found.items() if name.startswith(wanted)]
    if len(matches) != 1:
        raise UsageError(
            f"{len(matches)} adapters are named {wanted!r}",
            where="--adapter",
            next="Name a folder, or more of it",
        )
    return matches[0]


def encoder(session: Session, wanted: str, progress: Progress) -> Encoder:
    """What turns texts into vectors that may be compared by cosine: hidden states of an adapter or a base, the bundled
    one for ``bundled``."""
    from training.score import embed

    model = wanted if wanted == "bundled" else find_adapter(session, wanted)
    return lambda texts: neighbours.isotropic(embed(model, texts, progress=partial(progress, "encoding")))


def generate(folder: Path, prompt: str, data: Path | None, out: Path | None, limit: int) -> dict[str, Any]:
    """Answers to one prompt, or to every row of a file."""
    from training.score import generate as answer

    if data is None:
        made = answer(folder, [records.user_message(prompt)], max_new_tokens=limit)[0]
        return {"text": made.text, "tokens": made.tokens}
    rows = _rows(data)
    answers = answer(folder, [row["messages"] for row in rows], max_new_tokens=limit)
    lines = [
        records.canonical_json({"prompt": row["prompt"], "completion": a.text})
        for row, a in zip(rows, answers, strict=True)
    ]
    _write(out, lines)
    return {"rows": len(lines), "tokens": sum(a.tokens for a in answers), "out": str(out or "-")}


def merge(folder: Path, out: Path, data: Path | None) -> dict[str, Any]:
    """An adapter and its base as one model, compared on the prompts of a file, or on three of its own."""
    from training import merge as merging

    prompts = [row["messages"] for row in _rows(data)[:MOST_PROBES]] if data else merging.PROBES
    manifest = merging.merge(folder, out, prompts=prompts)
    return {"model": str(out), "digest": manifest["digest"], **manifest["merged"]}


MOST_PROBES = 64


def _write(out: Path | None, lines: Sequence[bytes]) -> None:
    from curation.artifacts import write_atomic

    body = b"".join(line + b"\n" for line in lines)
    if out is None or str(out) == "-":
        os.write(1, body)
    else:
        write_atomic(out, body)


def evaluate_file(
    session: Session,
    data: Path,
    adapter: str,
    predictions: str,
    metrics: Sequence[str],
    slices: Sequence[str],
    closed: bool,
    out: Path | None,
    progress: Progress,
) -> dict[str, Any]:
    """Measure an adapter or a field of predictions on a file of prompts with references."""
    from curation import formats
    from training import evaluate
    from training.examples import with_passages
    from training.score import predict

    if bool(adapter) == bool(predictions):
        raise UsageError("name either --adapter DIR or --predictions FIELD", where="tilth evaluate")
    named = list(formats.read_objects(data))
    ids, objects = [id for id, _ in named], [row for _, row in named]
    references = [_references(row, i) for i, row in enumerate(objects)]
    if predictions:
        answers = [_field(row, predictions, i) for i, row in enumerate(objects)]
    else:
        prompts = [
            with_passages(
                row.get("messages") or records.user_message(_field(row, "prompt", i)), row.get("passages")
            )
            for i, row in enumerate(objects)
        ]
        classes = sorted({text for row in references for text in row}) if closed else None
        progress("answering", 0, len(prompts))
        answers = predict(find_adapter(session, adapter), prompts, classes=classes)
    for name in slices:
        if not any(name in row for row in objects):
            raise UsageError(f"there is no field {name!r}", where=f"--slices: {data}")
    parts = {name: [None if row.get(name) is None else str(row[name]) for row in objects] for name in slices}
    if out is not None:
        table = evaluate.row_scores(answers, references, metrics)
        _write(
            out,
            [records.canonical_json({"id": i, **row}) for i, row in zip(ids, table.to_pylist(), strict=True)],
        )
    return evaluate.evaluate(answers, references, metrics, parts)


def _references(row: Mapping[str, Any], index: int) -> list[str]:
    many = row.get("references")
    if isinstance(many, list) and many:
        return [str(text) for text in many]
    return [_field(row, "completion", index)]


def _field(row: Mapping[str, Any], name: str, index: int) -> str:
    if row.get(name) is None:
        raise UsageError(
            f"there is no {name!r}", where=f"row {index}", next=f"Known fields: {', '.join(map(str, row))}"
        )
    return str(row[name])
