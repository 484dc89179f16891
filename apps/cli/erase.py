"""``tilth erase``: forget one person everywhere, and say what cannot be reached from here."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from apps.cli import app, session
from apps.cli.data import DryRun
from apps.cli.session import lines


@app.command(epilog="Example: tilth erase 'Jane Doe' jane@acme.com --receipt receipt.json")
def erase(
    values: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[VALUE]...", help="Names, addresses, numbers of the person as the texts have them."
        ),
    ] = None,
    record: Annotated[
        list[str] | None, typer.Option(help="A record about the person; may be given again.")
    ] = None,
    group: Annotated[list[str] | None, typer.Option(help="A group (thread, customer) of theirs.")] = None,
    annotator: Annotated[list[str] | None, typer.Option(help="An annotator's name, to be forgotten.")] = None,
    receipt: Annotated[Path | None, typer.Option(help="Where the receipt goes, as JSON.")] = None,
    dry_run: DryRun = False,
) -> None:
    """Empty a person's texts in every record, snapshot and table; what was trained or exported is listed."""
    from curation import lineage
    from curation.artifacts import write_atomic
    from curation.records import canonical_json

    subject = lineage.parsed(values or (), record or (), group or (), annotator or ())
    with session.workspace() as opened:
        done = lineage.erase(opened, subject, dry_run=dry_run).as_dict()
    if receipt is not None and not dry_run:
        write_atomic(receipt, canonical_json(done) + b"\n")
    session.report(done, _told(done))


def _told(done: dict[str, Any]) -> str:
    """The receipt for people, and what they still have to do."""
    held = sum(map(len, done["artifacts"].values()))
    said = {
        "subject": done["subject"],
        "records": len(done["records"]),
        "texts emptied": done["texts"],
        "snapshots and tables emptied": held,
        "annotators forgotten": done["annotators"],
        **({"entries of the vault taken out": done["vault"]} if done["vault"] else {}),
    }
    todo = [f"retrain or retire adapter {name}" for name in done["adapters"]]
    todo += [f"delete or replace the export {path}" for path in done["exports"]]
    todo += [f"delete task {task} where people see it" for task in done["tasks"]]
    if done["remaining"]:
        todo.append(
            f"{done['remaining']} records name the person in their key, group or tags, which stay in the ledger"
        )
    todo.append("replace backups made before now: they hold the texts still")
    verb = "would be" if done["dry_run"] else "is"
    return lines(said) + f"\n\nWhat {verb} left to do:\n" + "\n".join(f"  - {line}" for line in todo)
