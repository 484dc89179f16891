"""``tilth vault``: whose each alias is, for whoever must answer by name. Off until it is enabled."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from apps.cli import app, session
from apps.cli.data import DryRun
from apps.cli.session import grid, lines

vault = typer.Typer(
    name="vault",
    help="Whose each alias is, encrypted beside the workspace and opened on the record.",
    rich_markup_mode=None,
    no_args_is_help=True,
)
app.add_typer(vault)


@vault.command(epilog="Example: tilth vault enable --key-file ~/.config/tilth/desk.key")
def enable(
    key_file: Annotated[
        Path | None,
        typer.Option(help="Outside the workspace; made if it is not there. Without it: TILTH_VAULT_KEY."),
    ] = None,
    dry_run: DryRun = False,
) -> None:
    """Make an empty vault. The next scans write into it; `tilth vault fill` adds what earlier ones replaced."""
    from curation import vault as keeping

    with session.workspace() as opened:
        path = opened.root / keeping.FILE if dry_run else keeping.enable(opened, key_file)
    session.report({"vault": str(path), "dry_run": dry_run}, f"the vault is {path}; keep its key elsewhere")


@vault.command(epilog="Example: tilth vault fill")
def fill(dry_run: DryRun = False) -> None:
    """Scan every record again for the values that the vault does not hold yet."""
    from curation import curate
    from curation import vault as keeping

    with session.workspace() as opened, session.progress() as progress:
        keeping.opened(opened.root)
        if not dry_run:
            curate.fill_vault(opened, progress=progress)
        held = len(keeping.opened(opened.root).entries())
    session.report({"entries": held, "dry_run": dry_run})


@vault.command(epilog="Example: tilth vault show 'Madu Reki'")
def show(
    aliases: Annotated[
        list[str], typer.Argument(metavar="ALIAS...", help="As the scrubbed texts have them.")
    ],
    dry_run: DryRun = False,
) -> None:
    """Show what aliases stand for. The ledger notes who asked, and for which."""
    from curation import vault as keeping

    with session.workspace() as opened:
        if dry_run:
            keeping.opened(opened.root)
        found = [] if dry_run else keeping.shown(opened, aliases)
    rows = [(entry.alias, entry.entity_type, entry.value) for entry in found]
    text = "the key fits; nothing was opened" if dry_run else grid(rows, ("alias", "type", "value"))
    session.report({"entries": [entry._asdict() for entry in found], "dry_run": dry_run}, text)


@vault.command(epilog="Example: tilth vault export /secure/desk-values.jsonl")
def export(
    target: Annotated[Path, typer.Argument(metavar="FILE", help="A new file outside the workspace.")],
    dry_run: DryRun = False,
) -> None:
    """Write every entry in plain text, for the move to another system. The ledger notes who did."""
    from curation import vault as keeping

    with session.workspace() as opened:
        vault = keeping.opened(opened.root)
        written = len(vault.entries()) if dry_run else keeping.exported(opened, target)
    result = {"entries": written, "file": str(target), "dry_run": dry_run}
    session.report(
        result, f"{lines(result)}\n\nIts values are in plain text: delete it when it has been read."
    )


@vault.command(epilog="Example: tilth vault destroy --yes")
def destroy(
    yes: Annotated[bool, typer.Option("--yes", help="Aliases can then not be reversed any more.")] = False,
    dry_run: DryRun = False,
) -> None:
    """Take the vault away for good. Its key is not touched."""
    from curation import vault as keeping
    from curation.errors import UsageError

    if not (yes or dry_run):
        raise UsageError("aliases could not be reversed any more", next="Say --yes if that is meant")
    with session.workspace() as opened:
        held = keeping.held(opened.root) if dry_run else keeping.destroy(opened)
    session.report({"entries": held, "dry_run": dry_run})
