"""The trainer as the loop and the command line want it: bases, adapters, scores and measures, on this machine.

Everything it makes lies in a folder whose name is known beforehand (what it is made of), so that a killed run finds
finished work again instead of doing it twice. torch is imported by the first call that trains or scores.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import groupby, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from curation import neighbours, records, snapshot
from curation.errors import ConflictError, TilthError, UsageError
from curation.loop import MAIN, TWIN, Trained
from curation.neighbours import Encoder
from curation.workspace import Progress, Workspace

if TYPE_CHECKING:
    from apps.cli.session import Session
    from curation.ledger import Ledger
    from curation.ledger.registry import Lease
    from training.train import Recipe, Sink, TrainResult

MOST_TEXTS = 200_000  # a small base learns no more from more text in the time it is given


class LocalLearner:
    """A :class:`curation.loop.Learner` that trains here, with the recipe of the workspace's configuration."""

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace
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
        few = list(islice(texts, MOST_TEXTS))
        return practised_base(few, self._root / "bases", section.adapt_steps, progress).name

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
        recipe = self.recipe()
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
        from training import registry
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
            progress=_steps(progress, "training"),
            sink=sink,
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

        return score_pool(self._model(adapter, base), rows, classes=list(classes) or None)

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


def practised_base(texts: Sequence[str], folder: Path, steps: int, progress: Progress) -> Path:
    """What the bundled base becomes by practising on these texts, or what the same texts made of it before."""
    from training.model import BUNDLED, resolve_base
    from training.pretrain import practise_base

    made_of = [resolve_base(BUNDLED).digest, sorted(records.digest(text) for text in texts), steps]
    out = folder / records.digest(records.canonical_json(made_of))
    if not out.is_dir():
        practise_base(texts, out, steps=steps, progress=_steps(progress, "practising on the texts"))
    return out


def _steps(progress: Progress, what: str) -> Any:
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


# ---------------------------------------------------------------------------------- one run at a time

HOLD_SECONDS = 30.0
"""How long a process may be silent before another takes its training over."""


class LedgerSink:
    """Where a training reports to: the ledger's events; and the lease that says whether it may still write."""

    def __init__(self, ledger: Ledger, lease: Lease) -> None:
        self.ledger, self.lease = ledger, lease

    def event(self, kind: str, subject: str, detail: Mapping[str, Any]) -> None:
        """Note it in the ledger."""
        self.ledger.event(kind, subject, detail)

    def holds(self) -> None:
        """Raise ``ConflictError`` where the lease was lost."""
        self.lease.renew()


@contextmanager
def held(ledger: Ledger, name: str, seconds: float = HOLD_SECONDS) -> Iterator[LedgerSink]:
    """The one right to make what ``name`` stands for, kept alive by a thread while the block works.

    A process that was killed stops renewing and is succeeded after ``seconds``; one that was stopped and woken finds its
    lease gone and publishes nothing. Waits that long for a silent holder, then raises ``ConflictError`` naming one that
    is at work.
    """
    with ExitStack() as stack:
        lease = _awaited(stack, ledger, name, seconds)
        done = threading.Event()
        keeper = threading.Thread(target=_keep, args=(lease, done, seconds / 3), daemon=True)
        keeper.start()
        try:
            yield LedgerSink(ledger, lease)
        finally:
            done.set()
            keeper.join()


def _awaited(stack: ExitStack, ledger: Ledger, name: str, seconds: float) -> Lease:
    until = time.monotonic() + 1.2 * seconds
    while True:
        try:
            return stack.enter_context(ledger.lease(name, seconds))
        except ConflictError:
            if time.monotonic() > until:
                raise
            time.sleep(min(0.5, seconds / 10))


def _keep(lease: Lease, done: threading.Event, every: float) -> None:
    while not done.wait(every):
        try:
            lease.renew()
        except TilthError:
            return  # the block learns it from holds()


# --------------------------------------------------------------------------------- what the command line asks


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
            result = self._run(made, self.out, progress, sink)
        return _told(result) | ({"trials": trials} if trials else {})

    def _run(self, recipe: Recipe, out: Path, progress: Progress, sink: Sink | None) -> TrainResult:
        from training.train import train

        return train(
            self.rows,
            recipe,
            self.base,
            out,
            revision=self.revision or None,
            eval_examples=self.held,
            provenance=self.provenance,
            progress=_steps(progress, "training"),
            start=self.start,
            say=self.session.say if self.session else None,
            sink=sink,
        )

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

        def steps(one: Recipe) -> int:
            return max(1, round((one.epochs or 1.0) * len(self.rows) / one.batch))

        def run(one: Recipe, out: Path) -> float | None:
            return self._run(one, out, progress, None).eval_loss

        return search.search(search.draw(recipe, count, size), steps, run, note)


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
    objects = [row for _, row in formats.read_objects(data)]
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
    parts = {name: [None if row.get(name) is None else str(row[name]) for row in objects] for name in slices}
    if out is not None:
        table = evaluate.row_scores(answers, references, metrics)
        _write(out, [records.canonical_json(row) for row in table.to_pylist()])
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
