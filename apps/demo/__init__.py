"""The whole loop on a freight company's support desk that is made up, so that every fault in it is known.

``play`` writes the corpus, runs the loop with a simulated annotator, scores the product against the truth and writes
a report. Seeds are fixed beforehand, and what comes out is printed as it is, an interval that crosses zero included.
"""

from __future__ import annotations

import time
from pathlib import Path
from shutil import copyfile, which
from typing import TYPE_CHECKING, Any

from apps.cli.people import rounds_text
from apps.cli.session import grid, span
from apps.demo import corpus, score
from curation import config, formats
from curation import workspace as workspaces
from curation.workspace import Progress, Workspace

if TYPE_CHECKING:
    from apps.cli.session import Session

SEED = 7
SETTINGS = """\
[workspace]
name = "freight-desk"
ledger = "sqlite:///ledger.db"
artifacts = "artifacts"
languages = ["en"]

[question.desk]                     # which desk an inquiry belongs to
kind = "class"
classes = [{classes}]
guideline = "guideline.md"

[train]
method = "full"                     # so small a base learns more in a minute as a whole than through an adapter
adapt_steps = {steps}
epochs = {epochs}

[acquisition]
strategy = "hybrid"
batch = {batch}

[evaluation]
test_share = 0.1
dev_share = 0.03
"""


def play(
    directory: Path,
    session: Session,
    *,
    rounds: int = 2,
    inquiries: int = 3000,
    steps: int = 60,
    batch: int = 80,
    epochs: float = 6,
    progress: Progress = workspaces.silent,
) -> dict[str, Any]:
    """Run the demo in ``directory`` and return its result; what an earlier, killed demo finished is not done again."""
    from apps import report
    from apps.learner import LocalLearner
    from curation.loop import run
    from curation.people import Simulated
    from curation.run import Run

    start = time.monotonic()
    session.say(
        f"Writing a support desk of {inquiries:,} inquiries whose faults are known, to {directory}/corpus"
    )
    truth = corpus.generate(directory / "corpus", seed=SEED, inquiries=inquiries)
    _prepare(directory, session.actor, steps, batch, epochs)
    with workspaces.open_workspace(directory, actor=session.actor) as opened:
        session.say("Reading two overlapping exports, fifteen policies and an evaluation set")
        counts = bring(opened, directory / "corpus")
        session.say(f"Running {rounds} rounds; the annotator is simulated: it answers with the hidden gold")
        result = run(Run(opened, LocalLearner(opened), Simulated(), "simulated", progress, batch), rounds)
        scores = score.card(opened, truth, result)
        facts = report.gather(opened, "simulated") | {"scores": scores, "next": commands(directory)}
        out = directory / "report.html"
        report.write(facts, out)
    return {
        **result,
        "ingested": counts,
        "scores": scores,
        "report": str(out),
        "next": commands(directory),
        "seconds": round(time.monotonic() - start, 1),
    }


def _prepare(directory: Path, actor: str, steps: int, batch: int, epochs: float) -> None:
    """The workspace with the desk's question, guideline and labeling functions."""
    if not (directory / config.FILE).is_file():
        workspaces.init(directory, actor=actor, name="freight-desk")
    classes = ", ".join(f'"{name}"' for name in sorted(corpus.INTENTS))
    text = SETTINGS.format(classes=classes, steps=steps, batch=batch, epochs=float(epochs))
    (directory / config.FILE).write_text(text, encoding="utf-8")
    copyfile(Path(__file__).parent / "guideline.md", directory / "guideline.md")
    own = Path(__file__).resolve().parent.parent.parent / "labeling_functions"
    for name in ("freight.py", "un_numbers.csv"):
        copyfile(own / name, directory / "labeling_functions" / name)


def bring(opened: Workspace, folder: Path) -> dict[str, dict[str, int]]:
    """Everything the desk has, into the ledger; the counts of each file."""
    mapping = formats.Mapping(
        prompt="prompt", completion="completion", gold="gold", id="id", group="thread", time="time"
    )
    counts = {}
    for name in ("inquiries.jsonl", "inquiries-next.jsonl"):
        done = workspaces.ingest(opened, folder / name, mapping=mapping, source="desk")
        counts[name] = {k: getattr(done, k) for k in ("accepted", "unchanged", "quarantined")}
    done = workspaces.ingest(
        opened,
        folder / "eval.jsonl",
        mapping=formats.Mapping(id="id"),
        trust="gold",
        source="benchmark",
        eval_set="benchmark",
    )
    counts["eval.jsonl"] = {k: getattr(done, k) for k in ("accepted", "unchanged", "quarantined")}
    for path in sorted((folder / "policies").glob("*.md")):
        workspaces.ingest_passages(opened, path)
    return counts


def commands(directory: Path) -> list[str]:
    """What to type next, with the command as it can be typed from here."""
    tilth = "tilth" if which("tilth") else ".venv/bin/tilth"
    desk = f"{tilth} --workspace {directory}"
    return [
        f"{desk} snapshot list",
        f"{desk} curate --explain RECORD",
        f"{desk} review",
        f"{desk} run --rounds 3 --annotator simulated",
        f"{tilth} init my-desk",
    ]


def text(result: dict[str, Any]) -> str:
    """The result for people: faults found, rounds beside the random arm, what to type next."""
    rows = [
        (
            s["what"],
            f"{s['found']:,} of {s['known']:,}",
            f"{s['recall']:.3f} [{s['ci95'][0]:.3f}, {s['ci95'][1]:.3f}]",
            s["note"],
        )
        for s in result["scores"]
    ]
    card = grid(rows, ("known fault", "found", "recall [95%]", ""))
    follow = "\n".join(f"  {command}" for command in result["next"])
    return (
        f"\nThe product, scored against faults that are known\n\n{card}\n\n"
        f"The model, on test rows that no training saw\n\n{rounds_text(result)}\n\n"
        f"Report: {result['report']}\nAll of it took {span(result['seconds'])}. Next:\n{follow}"
    )
