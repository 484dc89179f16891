"""The loop with people in it: select, push, pull, run, review, report, demo."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from apps.cli import app, session
from apps.cli.data import DryRun
from apps.cli.session import grid, lines, span

Annotator = Annotated[str, typer.Option("--annotator", help="label-studio, files or simulated.")]
MOST_TOLD = 20  # answers that cannot be used are told one by one up to here
ANNOTATORS = ("label-studio", "files", "simulated")


def annotator(name: str) -> Any:
    """Who answers, by name. Raises :class:`UsageError` for a name that is none of them."""
    from curation import people
    from curation.errors import UsageError

    if name not in ANNOTATORS:
        raise UsageError(f"annotator {name!r} is none of {', '.join(ANNOTATORS)}", where="--annotator")
    if name == "simulated":
        return people.Simulated()
    return people.files() if name == "files" else people.label_studio()


def loop_of(opened: Any, name: str, meter: Any, batch: int, strategy: str) -> Any:
    """The run that a name stands for: one per kind of annotator and workspace."""
    from apps.learner import LocalLearner
    from curation.run import Run

    who = annotator(name)
    learner = LocalLearner(opened, strategy or opened.config.acquisition.strategy)
    return Run(
        opened, learner, who, name=name, progress=meter, batch=batch or None, strategy=strategy or None
    )


@app.command(epilog="Example: tilth run --rounds 3 --annotator simulated")
def run(
    rounds: Annotated[
        int, typer.Option(min=1, help="How many rounds in all; finished ones are not repeated.")
    ] = 1,
    annotator: Annotator = "label-studio",
    batch: Annotated[int, typer.Option(min=0, help="Records per round; from tilth.toml by default.")] = 0,
    strategy: Annotated[str, typer.Option(help="From tilth.toml by default.")] = "",
    dry_run: DryRun = False,
) -> None:
    """The loop: clean, choose, ask, agree, freeze, train, measure. Stopped anywhere, it goes on when run again."""
    from curation import loop

    with session.workspace() as opened, session.progress() as meter:
        if dry_run:
            cost = loop.estimate(opened, rounds, batch or None)
            session.report({**cost, "dry_run": True}, "would cost\n" + lines(cost, "  "))
            return
        with telling_unusable(opened):
            result = loop.run(loop_of(opened, annotator, meter, batch, strategy), rounds)
    session.report(result, rounds_text(result))


@contextmanager
def telling_unusable(opened: Any) -> Iterator[None]:
    """Say which answers could not be used and why, of those that come while the block works."""
    from curation.people.intake import NOT_USABLE

    known = len(opened.ledger.events(NOT_USABLE))
    yield
    fresh = opened.ledger.events(NOT_USABLE)[known:]
    for event in fresh[:MOST_TOLD]:
        session.say(f"the answer to {event.subject[:12]} could not be used: {event.detail['why']}")
    if len(fresh) > MOST_TOLD:
        session.say(f"and {len(fresh) - MOST_TOLD:,} more")


def rounds_text(result: dict[str, Any]) -> str:
    """A run for people: a row per round beside the random arm, and what it waits for."""
    name = result["metric_name"] or "metric"
    rows = [
        (
            r["round"],
            r["labels"],
            interval(r["metric"], r["metric_ci95"]),
            interval(r["random_metric"], r["random_ci95"]),
            difference(r.get("difference")),
            r["snapshot"][:12],
            r["adapter"][:12],
        )
        for r in result["rounds"]
    ]
    header = ("round", "labels", name, f"{name}, random arm", "difference", "snapshot", "adapter")
    text = grid(rows, header) if rows else ""
    if result["annotator"] == "simulated":
        text += "\nThe annotator was simulated: it answered with the hidden gold."
    for done in (r for r in result["rounds"] if r["relabels"]):
        text += f"\nRound {done['round']}: {again_text(done['relabels'])}"
    if waiting := result.get("waiting_for"):
        text += f"\nWaiting for {waiting['labels']} answers of round {waiting['round']}: {waiting['where']}"
        text += f"\n{again_text(waiting['relabels'])}" if waiting["relabels"] else ""
        text += "\nRun the same command again when they are there."
    return f"{text}\n{span(result['seconds'])}".strip()


def again_text(relabels: int) -> str:
    """How many records of a round had answers, and why they are among its tasks."""
    return (
        f"{relabels} records are asked about once more: another answer there is worth more than a first one "
        "elsewhere. `tilth select` gives each one's reason."
    )


def interval(value: float | None, ci: list[float] | None) -> str:
    """``0.712 [0.664, 0.758]``, or a dash."""
    if value is None:
        return "-"
    return f"{value:.3f} [{ci[0]:.3f}, {ci[1]:.3f}]" if ci else f"{value:.3f}"


def difference(paired: dict[str, Any] | None) -> str:
    """A paired difference with its interval and sign, or a dash."""
    if not paired:
        return "-"
    low, high = paired["ci95"]
    return f"{paired['value']:+.3f} [{low:+.3f}, {high:+.3f}]"


@app.command(epilog="Example: tilth select --batch 20 --annotator files")
def select(
    annotator: Annotator = "label-studio",
    batch: Annotated[int, typer.Option(min=0, help="Records; from tilth.toml by default.")] = 0,
    strategy: Annotated[str, typer.Option(help="From tilth.toml by default.")] = "",
    dry_run: DryRun = False,
) -> None:
    """Show which records the next round would ask about, and why each. Scores are kept for that round."""
    from curation import loop
    from curation.acquisition import RELABEL

    with session.workspace() as opened, session.progress() as meter:
        if dry_run:
            cost = {
                "records": opened.ledger.counts()["records"],
                "batch": batch or opened.config.acquisition.batch,
            }
            session.report(
                {**cost, "dry_run": True}, "would score the records and choose a batch\n" + lines(cost, "  ")
            )
            return
        picked = loop.preview(loop_of(opened, annotator, meter, batch, strategy))
    rows = [(p["record"][:12], p["arm"], "yes" if p["blind"] else "", p["reason"]) for p in picked]
    relabels = sum(p["arm"] == RELABEL for p in picked)
    text = grid(rows, ("record", "arm", "blind", "reason"))
    text += f"\n{relabels} of {len(picked)} had answers before" if relabels else ""
    session.report({"selection": picked, "relabels": relabels}, text)


@app.command(epilog="Example: tilth push --question quality --count 40")
def push(
    annotator: Annotator = "label-studio",
    question: Annotated[
        str, typer.Option(help="Another question of tilth.toml: its answers are judged, not trained on.")
    ] = "",
    count: Annotated[
        int, typer.Option(min=0, help="Ask another question about so many records more; by time where 0.")
    ] = 0,
    honeypots: Annotated[
        int, typer.Option(min=0, help="Put so many blind tasks with a known answer before each person.")
    ] = 0,
    dry_run: DryRun = False,
) -> None:
    """Bring every open task to the people, chosen as `tilth run` would; what they have already is not brought again."""
    from curation import loop, people
    from curation.people import offer
    from curation.question import current
    from curation.records import JUDGING

    with session.workspace() as opened, session.progress() as meter:
        through = _annotator(annotator)
        if not question and not dry_run and not people.chosen(opened):
            loop.choose(loop_of(opened, annotator, meter, 0, ""))
        asked = current(opened, question or None)
        if not dry_run and honeypots:
            offer.check(opened, through, asked, honeypots)
        if not dry_run and asked.kind in JUDGING and (question or count):
            per_record = opened.config.question[asked.name].annotators_per_record
            fitting = through.batch(opened, asked, per_record) or opened.config.acquisition.batch
            offer.offer(opened, through, asked, count or fitting)
        done = people.push_open(opened, through, name=asked.name, dry_run=dry_run)
    session.report({**done, "dry_run": dry_run}, f"{done['pushed']} tasks are new at {done['where']}")


@app.command(epilog="Example: tilth pull --annotator files")
def pull(annotator: Annotator = "label-studio", dry_run: DryRun = False) -> None:
    """Fetch what people answered since the last time: new answers, edits, deletions and skips."""
    from curation import people

    with session.workspace() as opened, telling_unusable(opened):
        done = people.pull_all(opened, _annotator(annotator), dry_run=dry_run)
    if dry_run:
        session.report({**done, "dry_run": True}, "would fetch what people answered; nothing was asked for")
        return
    text = f"{done['added']} answers added, {done['withdrawn']} withdrawn"
    text += f", {done['skipped']} skipped" if done.get("skipped") else ""
    text += (
        f"\n{done['unusable']} could not be used: correct them, then pull again" if done["unusable"] else ""
    )
    session.report({**done, "dry_run": False}, text)


_annotator = annotator


@app.command(epilog="Example: tilth review")
def review(
    port: Annotated[int, typer.Option(min=0, max=65535, help="The port on this machine.")] = 8501,
    dry_run: DryRun = False,
) -> None:
    """Open the curators' page: what is held, what people disagree on, what contradicts."""
    from apps import review as pages
    from curation.config import find_root

    command = pages.command(find_root(session.root).resolve(), port, actor=session.actor)
    if dry_run:
        session.report({"command": command, "dry_run": True}, " ".join(command))
        return
    raise SystemExit(subprocess.run(command, check=False).returncode)


@app.command(epilog="Example: tilth report report.html")
def report(
    out: Annotated[Path, typer.Argument(help="The HTML file to write.")] = Path("report.html"),
    annotator: Annotator = "simulated",
    dry_run: DryRun = False,
) -> None:
    """Write one self-contained page: rounds beside the random arm, what cleaning did, what the functions do."""
    from apps import report as page

    with session.workspace() as opened:
        facts = page.gather(opened, annotator)
    if not dry_run:
        page.write(facts, out)
    session.report({"report": str(out), "dry_run": dry_run}, f"{out}")


@app.command(epilog="Example: tilth demo")
def demo(
    directory: Annotated[Path, typer.Argument(help="The folder of the demo's workspace.")] = Path(
        "demo-workspace"
    ),
    rounds: Annotated[int, typer.Option(min=2)] = 2,
    inquiries: Annotated[int, typer.Option(min=300)] = 3000,
    dry_run: DryRun = False,
) -> None:
    """The whole loop on a freight company's support desk whose faults are known, so that the product is scored."""
    from apps import demo as show

    if dry_run:
        plan = {"directory": str(directory), "rounds": rounds, "inquiries": inquiries, "dry_run": True}
        session.report(plan)
        return
    with session.progress() as meter:
        result = show.play(directory, session, rounds=rounds, inquiries=inquiries, progress=meter)
    session.report(result, show.text(result))
    sys.stdout.flush()
