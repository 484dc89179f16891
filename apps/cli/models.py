"""Models: train, generate, evaluate. On a snapshot of the workspace, or on plain files."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from apps.cli import app, session
from apps.cli.data import DryRun
from apps.cli.people import interval
from apps.cli.session import grid, span

Adapter = Annotated[
    str, typer.Option(help="An adapter's folder, or the beginning of its name in the workspace.")
]


# What `tilth train` can be told, in the order of its help.
Data = Annotated[Path | None, typer.Option(help="Rows with prompt and completion, or messages.")]
Frozen = Annotated[str, typer.Option(help="A snapshot of the workspace, or an exported snapshot's folder.")]
Held = Annotated[Path | None, typer.Option(help="Rows for the validation loss.")]
Base = Annotated[str, typer.Option(help="bundled, a folder, or a hub name that is on this machine.")]
Revision = Annotated[str, typer.Option(help="The revision of a hub name.")]
_METHODS = "lora, dora, adalora, qlora (4 bits), int8, full, dpo (prompt, chosen, rejected), or adapt (text)."
Method = Annotated[str, typer.Option(help=_METHODS)]
Out = Annotated[Path | None, typer.Option(help="The new adapter's folder.")]
Rank = Annotated[int, typer.Option(min=1)]
Epochs = Annotated[float, typer.Option(min=0, help="0: chosen for the size.")]
Rate = Annotated[float, typer.Option(min=0, help="0: chosen for the method.")]
Batch = Annotated[int, typer.Option(min=0, help="Rows per update; 0: 16.")]
_MICRO = "Of those, how many at once: for memory alone; 0: all."
MicroBatch = Annotated[int, typer.Option(min=0, help=_MICRO)]
_PACKING = "Rows end to end instead of padded; by default where the architecture attends to them one by one, and on a GPU."
Packing = Annotated[bool | None, typer.Option("--packing/--no-packing", help=_PACKING)]
_GROUPING = (
    "Rows of about one length in an update: where they are padded, faster; less is learned of each update."
)
Grouping = Annotated[bool, typer.Option("--length-grouping", help=_GROUPING)]
MaxLength = Annotated[int, typer.Option(min=2)]
_PATIENCE = "Stop after so many measurements without a better validation loss."
Patience = Annotated[int, typer.Option(min=0, help=_PATIENCE)]
_TEMPERATURE = "Above 1: rows of rarer tasks (field task) come more often."
Temperature = Annotated[float, typer.Option(min=0.01, help=_TEMPERATURE)]
_MIX = "TASK=WEIGHT: its rows come so many times as often; may be given again."
Mix = Annotated[list[str] | None, typer.Option(help=_MIX)]
Start = Annotated[Path | None, typer.Option(help="An adapter to go on from.")]
_SEARCH = "Try so many ranks, rates and epochs by successive halving first."
Search = Annotated[int, typer.Option(min=0, help=_SEARCH)]
_BRING = "Train nothing: take what was trained on another host into this workspace."
Bring = Annotated[Path | None, typer.Option(help=_BRING)]


@app.command(epilog="Example: tilth train --data train.jsonl --eval dev.jsonl --out my-adapter")
def train(
    data: Data = None,
    snapshot: Frozen = "",
    eval: Held = None,
    base: Base = "bundled",
    revision: Revision = "",
    method: Method = "lora",
    out: Out = None,
    rank: Rank = 16,
    epochs: Epochs = 0,
    learning_rate: Rate = 0,
    batch: Batch = 0,
    micro_batch: MicroBatch = 0,
    packing: Packing = None,
    length_grouping: Grouping = False,
    max_length: MaxLength = 512,
    patience: Patience = 0,
    temperature: Temperature = 1.0,
    mix: Mix = None,
    start: Start = None,
    search: Search = 0,
    seed: int = 0,
    bring: Bring = None,
    dry_run: DryRun = False,
) -> None:
    """Train an adapter. A row that does not fit is refused by name; a killed run leaves no adapter behind, and goes on
    from its last checkpoint when the same command is typed again."""
    from apps import models

    if bring is not None:
        _bring(bring, bool(data or snapshot or out), dry_run)
        return
    options = {"rank": rank, "epochs": epochs, "lr": learning_rate, "batch": batch, "micro_batch": micro_batch,
               "packing": packing, "length_grouping": length_grouping, "patience": patience,
               "temperature": temperature, "mix": mix, "max_length": max_length, "search": search,
               "seed": seed}  # fmt: skip
    with session.progress() as meter:
        plan = models.plan_training(
            session, data=data, snapshot=snapshot, eval=eval, base=base, revision=revision, method=method,
            out=out, start=start,
        )  # fmt: skip
        if dry_run:
            session.report({**plan.describe(), "dry_run": True})
            return
        _tell(plan.train(options, meter))


def _tell(result: dict[str, Any]) -> None:
    for row, why in result.pop("refused", [])[:20]:
        session.say(f"row {row} was left out: {why}")
    session.report(
        result,
        f"{result['adapter']}\n{result['digest']}\nloss {result['train_loss']:.4f}, validation "
        f"{result['eval_loss'] if result['eval_loss'] is not None else '-'}; {result['tokens_per_second']:,.0f} "
        f"tokens/s, {span(result['seconds'])}",
    )


def _bring(folder: Path, more: bool, dry_run: bool) -> None:
    from apps import jobs
    from curation.errors import UsageError

    if more:
        raise UsageError(
            "--bring trains nothing, so it takes no --data, --snapshot or --out", where="tilth train"
        )
    with session.workspace() as opened:
        result = jobs.bring(opened, folder, dry_run=dry_run)
    state = "checked" if dry_run else "is here" if result["new"] else "was here already"
    session.report(result, f"{result['adapter']} {state}, trained on snapshot {result['snapshot'][:12]}")


@app.command(epilog="Example: tilth generate --adapter my-adapter 'Where is my container?'")
def generate(
    prompt: Annotated[str, typer.Argument(help="A prompt; - reads it from stdin.")] = "",
    adapter: Adapter = "",
    data: Annotated[Path | None, typer.Option(help="A file of rows with prompts instead.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Where the rows go with their completions; stdout by default.")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 128,
    dry_run: DryRun = False,
) -> None:
    """Let an adapter answer. Greedy, so the same prompt gives the same answer."""
    from apps import models
    from curation.errors import UsageError

    if not adapter:
        raise UsageError("no adapter was named", where="tilth generate", next="Pass --adapter DIR")
    text = sys.stdin.read() if prompt == "-" else prompt
    if not text and data is None:
        raise UsageError("there is no prompt", where="tilth generate", next="Pass one, or --data FILE")
    folder = models.find_adapter(session, adapter)
    if dry_run:
        session.report({"adapter": str(folder), "dry_run": True})
        return
    result = models.generate(folder, text, data, out, max_new_tokens)
    session.report(
        result, result.get("text") or f"{result.get('rows', 0)} completions in {result.get('out')}"
    )


@app.command(epilog="Example: tilth merge --adapter my-adapter --out my-model --data dev.jsonl")
def merge(
    adapter: Adapter = "",
    out: Annotated[Path | None, typer.Option(help="The new model's folder.")] = None,
    data: Annotated[Path | None, typer.Option(help="Rows whose prompts the two are compared on.")] = None,
    dry_run: DryRun = False,
) -> None:
    """Write an adapter and its base as one model, for tools that know no adapters. Refused (exit code 6) where the
    merged model would answer otherwise than the adapter does."""
    from apps import models
    from curation.errors import UsageError

    if not adapter or out is None:
        raise UsageError("name --adapter DIR and --out DIR", where="tilth merge")
    folder = models.find_adapter(session, adapter)
    if dry_run:
        session.report({"adapter": str(folder), "out": str(out), "dry_run": True})
        return
    session.report(models.merge(folder, out, data))


@app.command(
    epilog="Example: tilth evaluate --data test.jsonl --predictions answer --metrics exact_match,token_f1"
)
def evaluate(
    data: Annotated[Path, typer.Option(help="Rows with prompt and completion or references.")],
    adapter: Adapter = "",
    predictions: Annotated[
        str, typer.Option(help="The field that holds predictions, instead of an adapter.")
    ] = "",
    metrics: Annotated[
        str, typer.Option(help="accuracy, exact_match, token_f1, rouge_l, bleu; by comma.")
    ] = "exact_match,token_f1",
    slices: Annotated[str, typer.Option(help="Fields to slice by, by comma.")] = "",
    closed: Annotated[
        bool, typer.Option("--closed", help="Answers are one of the references' values.")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="Where per-row scores go.")] = None,
    dry_run: DryRun = False,
) -> None:
    """Measure predictions or an adapter, every metric with its bootstrap interval."""
    from apps import models

    with session.progress() as meter:
        result = models.evaluate_file(
            session,
            data,
            adapter,
            predictions,
            _list(metrics),
            _list(slices),
            closed,
            None if dry_run else out,
            meter,
        )
    session.report({**result, "dry_run": dry_run}, metrics_text(result))


def _list(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def metrics_text(result: dict[str, Any]) -> str:
    """Metrics for people: a row each, then a row per slice."""
    rows = [
        ("all", name, interval(m["value"], m["ci95"]), result["rows"])
        for name, m in result["metrics"].items()
    ]
    for where, part in result.get("slices", {}).items():
        rows += [
            (where, name, interval(m["value"], m["ci95"]), part["rows"])
            for name, m in part["metrics"].items()
        ]
    return grid(rows, ("slice", "metric", "value [95% interval]", "rows"))
