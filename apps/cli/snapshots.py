"""Snapshots: create, list, show, diff, verify, approve, export, restore."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from apps.cli import app, session
from apps.cli.data import DryRun
from apps.cli.session import grid, lines

snapshots = typer.Typer(
    name="snapshot", help="Frozen rows, named by their digest.", no_args_is_help=True, rich_markup_mode=None
)
app.add_typer(snapshots)

Name = Annotated[str, typer.Argument(help="A snapshot's name, or enough of its beginning.")]


@snapshots.command(epilog="Example: tilth snapshot create")
def create(dry_run: DryRun = False) -> None:
    """Freeze what is curated and labelled now; the same rows give the same name."""
    from curation import assemble

    with session.workspace() as opened, session.progress() as meter:
        composed = assemble.compose(opened, progress=meter)
        made = assemble.freeze(opened, composed, dry_run=dry_run)
    session.report(
        {"snapshot": made.name, "rows": made.rows, "dry_run": dry_run}, f"{made.name}\n{made.rows:,} rows"
    )


@snapshots.command("list", epilog="Example: tilth snapshot list")
def list_() -> None:
    """Every snapshot of the workspace, newest last."""
    from curation import assemble

    with session.workspace() as opened:
        rows = assemble.list_snapshots(opened)
    shown = [(r["name"][:16], r["rows"], r["round"], r["verdict"] or "-", r["time"][:19]) for r in rows]
    session.report({"snapshots": rows}, grid(shown, ("snapshot", "rows", "round", "verdict", "time")))


@snapshots.command(epilog="Example: tilth snapshot show 3fa9")
def show(name: Name) -> None:
    """A snapshot's counts, rules, gates and where its rows come from."""
    from curation import snapshot

    with session.workspace() as opened:
        manifest = snapshot.show(opened.store, name).manifest
    session.report(manifest, lines({k: v for k, v in manifest.items() if k != "files"}))


@snapshots.command(epilog="Example: tilth snapshot diff 3fa9 81c0")
def diff(old: Name, new: Name) -> None:
    """What was added, removed, relabelled, reweighted or moved between two snapshots, and why."""
    from curation import assemble

    with session.workspace() as opened:
        changes = assemble.diff_snapshots(opened, old, new)
    shown = [
        (c["change"], c["record"][:12], c["before"], c["after"], c["reason"]) for c in changes["changes"]
    ]
    counts = (
        ", ".join(f"{count:,} {change}" for change, count in changes["counts"].items()) or "no difference"
    )
    session.report(changes, f"{grid(shown, ('change', 'record', 'before', 'after', 'reason'))}\n\n{counts}")


@snapshots.command(epilog="Example: tilth snapshot verify 3fa9 --deep")
def verify(
    name: Name,
    deep: Annotated[
        bool, typer.Option("--deep", help="Recompute the digest of every row and the name.")
    ] = False,
) -> None:
    """Check that a snapshot's files are the ones that were written."""
    from curation import snapshot

    with session.workspace() as opened:
        found = snapshot.resolve(opened.store, name)
        snapshot.verify(opened.store, found, deep=deep)
    session.report({"snapshot": found, "deep": deep, "ok": True}, f"{found} is what it was")


@snapshots.command(epilog="Example: tilth snapshot approve 3fa9 --reason 'looked at 200 rows'")
def approve(
    name: Name,
    reason: Annotated[str, typer.Option(help="Why, for the record.")] = "",
    reject: Annotated[bool, typer.Option("--reject", help="Refuse it instead.")] = False,
    dry_run: DryRun = False,
) -> None:
    """Say as a curator that a snapshot may be trained on, or that it may not."""
    from curation import snapshot

    verdict = "refused" if reject else "approved"
    with session.workspace() as opened:
        found = snapshot.resolve(opened.store, name)
        if not dry_run:
            opened.ledger.approve(found, verdict, by=session.actor, reason=reason)
    verb = "would be" if dry_run else "is"
    session.report({"snapshot": found, "verdict": verdict, "dry_run": dry_run}, f"{found} {verb} {verdict}")


@snapshots.command("export", epilog="Example: tilth snapshot export 3fa9 out.jsonl --to chat")
def export_(
    name: Name,
    out: Annotated[Path, typer.Argument(help="A file; or a new folder with --to directory.")],
    to: Annotated[
        str,
        typer.Option(
            help="jsonl, trl, chat, preferences (what people preferred, for DPO), or directory (trains elsewhere)."
        ),
    ] = "jsonl",
    dry_run: DryRun = False,
) -> None:
    """Write a snapshot for other tools, or as a folder that another host can train on."""
    from curation import snapshot
    from curation.artifacts import write_atomic
    from curation.pairs import preference_rows
    from curation.records import canonical_json

    with session.workspace() as opened:
        found = snapshot.resolve(opened.store, name)
        pairs = preference_rows(opened, found) if to == "preferences" else None
        rows = snapshot.show(opened.store, found).rows if pairs is None else len(pairs)
        if not dry_run:
            if pairs is None:
                _write(opened, found, out, to)
            else:
                write_atomic(out, b"".join(canonical_json(pair) + b"\n" for pair in pairs))
            # Whoever is erased later must be told where copies went.
            opened.ledger.event("exported", found, {"path": str(out.absolute()), "to": to})
    session.report(
        {"snapshot": found, "out": str(out), "rows": rows, "dry_run": dry_run}, f"{rows} rows in {out}"
    )


def _write(opened: Any, name: str, out: Path, to: str) -> None:
    from curation import snapshot

    if to == "directory":
        snapshot.export_directory(opened.store, name, out)
    else:
        snapshot.export(opened.store, name, to=to, out=out)


@snapshots.command("restore", epilog="Example: tilth snapshot restore ./exported-snapshot")
def restore_(
    directory: Annotated[Path, typer.Argument(help="A folder that `snapshot export --to directory` wrote.")],
    dry_run: DryRun = False,
) -> None:
    """Verify an exported snapshot and take it into this workspace."""
    from curation import snapshot

    with session.workspace() as opened:
        name = snapshot.import_directory(directory, opened.store, dry_run=dry_run).name
    session.report({"snapshot": name, "dry_run": dry_run}, f"{name} {'would be' if dry_run else 'is'} here")
