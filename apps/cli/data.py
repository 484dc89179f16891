"""What comes into a workspace and what becomes of it: init, ingest, curate, label, status, doctor, backup."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from apps.cli import app, session
from apps.cli.session import grid, lines, strictly

DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would happen; write nothing.")]


@app.command(epilog="Example: tilth init freight-desk")
def init(
    directory: Annotated[Path, typer.Argument(help="The new workspace's folder.")],
    name: Annotated[str, typer.Option(help="Its name; the folder's by default.")] = "",
    dry_run: DryRun = False,
) -> None:
    """Make a workspace: a commented tilth.toml, a ledger, a folder for labeling functions."""
    from curation import workspace

    made = workspace.init(directory, actor=session.actor, name=name or None, dry_run=dry_run)
    text = "\n".join(f"  {directory / path}" for path in made)
    follow = f"Next:\n  tilth --workspace {directory} ingest FILE --map prompt=FIELD --map gold=FIELD"
    head = "Would make" if dry_run else "Made"
    session.report(
        {"workspace": str(directory), "files": made, "dry_run": dry_run}, f"{head}\n{text}\n\n{follow}"
    )


@app.command(
    epilog="Example: tilth ingest mails.csv --map prompt=body --map completion=reply --map group=thread"
)
def ingest(
    file: Annotated[
        Path | None,
        typer.Argument(
            help="JSONL, CSV, Parquet, chat, Alpaca, ShareGPT or Label Studio; .md and .txt become passages."
        ),
    ] = None,
    map: Annotated[
        list[str] | None,
        typer.Option("--map", help="ROLE=FIELD: prompt, completion, gold, id, group, lang, time."),
    ] = None,
    format: Annotated[str, typer.Option(help="Force a format instead of detecting it.")] = "",
    trust: Annotated[
        str, typer.Option(help="How far the completions are believed: candidate, reference or gold.")
    ] = "candidate",
    group: Annotated[
        str, typer.Option(help="The field that keeps rows together; the same as --map group=FIELD.")
    ] = "",
    source: Annotated[
        str, typer.Option(help="Where the rows come from; exports of one source find their records again.")
    ] = "main",
    eval_set: Annotated[str, typer.Option(help="Reserve these rows as an evaluation set of this name.")] = "",
    undo: Annotated[
        bool,
        typer.Option(
            "--undo", help="Take back the last ingest: of all, of FILE, or the one that --id names."
        ),
    ] = False,
    id: Annotated[str, typer.Option(help="The ingest to undo.")] = "",
    strict: Annotated[
        bool, typer.Option("--strict", help="Exit with 3 where rows were quarantined.")
    ] = False,
    dry_run: DryRun = False,
) -> None:
    """Read a file into the ledger. Rows that cannot be read are set aside with line, offset and reason."""
    from curation.errors import UsageError

    with session.workspace() as opened:
        if undo:
            _undo(opened, id, file, dry_run)
            return
        if file is None:
            raise UsageError("no file was named", where="tilth ingest", next="Name one, or pass --undo")
        if file.suffix.lower() in (".md", ".txt"):
            _passages(opened, file, dry_run)
            return
        fields = [*(map or []), *([f"group={group}"] if group else [])]
        _ingest(opened, file, fields, format, trust, source, eval_set, strict, dry_run)


def _ingest(
    opened: Any,
    file: Path,
    fields: list[str],
    format: str,
    trust: str,
    source: str,
    eval_set: str,
    strict: bool,
    dry: bool,
) -> None:
    from curation import engine, formats, workspace

    with session.progress() as meter:
        done = workspace.ingest(
            opened,
            file,
            mapping=formats.Mapping.parse(fields),
            format=format or None,
            trust=trust,
            source=source,
            eval_set=eval_set or None,
            dry_run=dry,
            processes=engine.cores(),
            progress=meter,
        )
    session.say(f"read as {done.format}: {done.why}")
    counts = {key: getattr(done, key) for key in ("accepted", "unchanged", "quarantined")}
    text = lines(counts)
    if done.quarantined and not dry:
        text += "\nSee why with: tilth status --quarantine"
    session.report({**counts, "ingest": done.ingest, "format": done.format, "dry_run": dry}, text)
    strictly(strict, done.quarantined)


def _passages(opened: Any, file: Path, dry: bool) -> None:
    from curation import formats, workspace

    found = len(formats.passages(file))
    new = 0 if dry else workspace.ingest_passages(opened, file)
    session.report({"passages": found, "new": new, "dry_run": dry}, f"{found} passages, {new} of them new")


def _undo(opened: Any, ingest: str, file: Path | None, dry: bool) -> None:
    chosen = _standing(opened, ingest, file)
    told = {"ingest": chosen.id, "file": chosen.file_name}
    if dry:
        text = f"would take back {chosen.file_name} (ingest {chosen.id})"
        session.report({**told, "dry_run": True}, text)
        return
    before = opened.ledger.counts()["records"]
    opened.ledger.undo_ingest(chosen.id)
    gone = before - opened.ledger.counts()["records"]
    text = f"took back {chosen.file_name} (ingest {chosen.id}): {gone:,} records left the view"
    session.report({**told, "records": gone}, text)


def _standing(opened: Any, ingest: str, file: Path | None) -> Any:
    """The last ingest that was not taken back, among those of this id and this file name where they are given.

    Raises ``UsageError`` where there is none, naming those that stand.
    """
    from curation.errors import UsageError

    stand = [one for one in opened.ledger.ingests() if not one.undone]
    found = [one for one in stand if ingest in ("", one.id) and (file is None or file.name == one.file_name)]
    if not found:
        asked = (f" with id {ingest!r}" if ingest else "") + (f" of {file.name}" if file else "")
        named = ", ".join(f"{one.file_name} ({one.id})" for one in stand[-5:])
        told = (
            f"The last that stand: {named}" if named else "Nothing was ingested, or all of it was taken back"
        )
        raise UsageError(f"there is no ingest{asked} to take back", where="--undo", next=told)
    return found[-1]


@app.command(epilog="Example: tilth status --quarantine")
def status(
    quarantine: Annotated[
        bool, typer.Option("--quarantine", help="List the rows that were set aside, and why.")
    ] = False,
    ingests: Annotated[
        bool,
        typer.Option("--ingests", help="List every file that was taken in, with the id that --undo takes."),
    ] = False,
    people: Annotated[
        bool, typer.Option("--people", help="Each person's week, agreement, and what their labels changed.")
    ] = False,
) -> None:
    """What the workspace holds: records, labels, decisions, snapshots, adapters."""
    from curation import workspace

    with session.workspace() as opened:
        if people:
            from apps.cli.team import people_text
            from curation.people.analytics import people_status

            told_people = people_status(opened)
            session.report(told_people, people_text(told_people))
            return
        if ingests:
            _ingests(opened)
            return
        if quarantine:
            header = ("file", "line", "offset", "reason", "message")
            shown = [tuple(getattr(row, name) for name in header) for row in opened.ledger.quarantined()]
            told = [dict(zip(header, row, strict=True)) for row in shown]
            session.report({"quarantined": told}, grid(shown, header))
            return
        session.report(workspace.status(opened))


def _ingests(opened: Any) -> None:
    """Every file that was taken in, oldest first, and whether it still stands."""
    header = ("id", "file", "source", "trust", "accepted", "unchanged", "quarantined", "time", "state")
    found = [
        {
            **{name: getattr(one, name) for name in header[3:8]},
            "id": one.id,
            "file": one.file_name,
            "source": one.source,
            "state": "undone" if one.undone else "unfinished" if one.accepted is None else "stands",
        }
        for one in opened.ledger.ingests()
    ]
    shown = [
        (row["id"][:16], *(row[name] for name in header[1:7]), row["time"][:19], row["state"])
        for row in found
    ]
    session.report({"ingests": found}, grid(shown, header))


@app.command(epilog="Example: tilth doctor")
def doctor() -> None:
    """Check the machine and the workspace: versions, extras, ledger, disk, and every destination data may leave to."""
    from curation import health

    report = [*health.examine(session.root, session.actor), *_server_checks()]
    rows = [(c.name, c.state, c.detail) for c in report]
    found = [{"name": c.name, "state": c.state, "detail": c.detail} for c in report]
    session.report(
        {"checks": found, "healthy": all(c.state != "bad" for c in report)}, grid(rows, ("check", "", ""))
    )
    if any(c.state == "bad" for c in report):
        raise typer.Exit(1)


def _server_checks() -> list[Any]:
    """What can be said of the configured Label Studio; nothing outside a workspace."""
    from curation.config import FILE
    from curation.errors import TilthError
    from curation.people import connection

    if not (session.root / FILE).is_file():
        return []
    try:
        with session.workspace() as opened:
            return connection.examine(opened)
    except TilthError:
        return []  # the workspace cannot be opened, and that has been said already


@app.command(epilog="Example: tilth curate")
def curate(
    strict: Annotated[
        bool, typer.Option("--strict", help="Exit with 3 where rows were quarantined.")
    ] = False,
    explain: Annotated[str, typer.Option(help="Show every decision on one record.")] = "",
    audit: Annotated[
        str, typer.Option(help="Count formats and harsh words by this column: source, lang, group.")
    ] = "",
    semantic: Annotated[
        str,
        typer.Option(help="Show records in other words, with this encoder: bundled, a base or an adapter."),
    ] = "",
    cosine: Annotated[float, typer.Option(min=0.0, max=1.0, help="From which vectors mean the same.")] = 0.95,
    contained: Annotated[
        bool, typer.Option("--contained", help="Show records of which a good part lies in another.")
    ] = False,
    dry_run: DryRun = False,
) -> None:
    """Run the cleaning stages: exact duplicates, personal data, quality, near-duplicates, conflicts, leaks, quarrels."""
    from curation import curate as stages
    from curation.opinions import settle

    with session.workspace() as opened:
        if explain:
            _explain(opened, explain)
            return
        if audit or semantic or contained:
            _show(opened, audit, semantic, cosine, contained)
            return
        if dry_run:
            rules = stages.Rules(opened)
            todo = [stage for stage in stages.PIPELINE if opened.ledger.gaps(stage, rules.of(stage))]
            session.report({"would_run": todo}, f"would run: {', '.join(todo) or 'nothing, all is covered'}")
            return
        with session.progress() as meter:
            done = stages.curate(opened, progress=meter)
            meter("consensus", 0, None)
            held = settle(opened)
    decided = done.decided | ({"consensus": {"hold": held}} if held else {})
    rows = [(stage, action, count) for stage, counts in decided.items() for action, count in counts.items()]
    session.report({"decided": decided, "ran": done.ran}, grid(rows, ("stage", "action", "rows")))
    strictly(strict, decided.get("scrub", {}).get("quarantine", 0))


def _show(opened: Any, audit: str, semantic: str, cosine: float, contained: bool) -> None:
    """What a curator asked to see of all rows together; nothing is decided."""
    from curation import findings

    found = findings.audit(opened, audit) if audit else {}
    if contained:
        found |= findings.within(opened)
    if semantic:
        from apps import models

        with session.progress() as meter:
            found |= findings.resembling(opened, models.encoder(session, semantic, meter), cosine)
    tables = (grid([list(row.values()) for row in rows], list(rows[0])) for rows in found.values() if rows)
    session.report(found, "\n\n".join(tables) or "nothing to show")


def _explain(opened: Any, record: str) -> None:
    """Every decision on a record; with a quality filter, what it looks for and where its limit was published."""
    import json

    from curation.errors import UsageError
    from curation.quality import CATALOGUE

    if not opened.ledger.records([record]).num_rows:
        raise UsageError(
            f"there is no record {record!r}", where="--explain", next="Give an id as `tilth export` writes it"
        )
    rows = opened.ledger.decisions(records=[record]).to_pylist()
    for row in rows:
        looked = CATALOGUE.get(json.loads(row["evidence"] or "{}").get("filter", ""))
        if looked:
            row["reason"] += f". {looked[0]}" + (f" ({looked[1]})" if looked[1] else "")
    shown = [(r["stage"], r["action"], r["reason"], r["evidence"]) for r in rows]
    session.report(
        {"record": record, "decisions": rows}, grid(shown, ("stage", "action", "reason", "evidence"))
    )


@app.command(epilog="Example: tilth label")
def label(
    report: Annotated[
        bool, typer.Option("--report", help="Show each function's accuracy on dev and its worst mistakes.")
    ] = False,
    dry_run: DryRun = False,
) -> None:
    """Apply the labeling functions to every record and weigh their votes into one probability."""
    from curation import assemble

    with session.workspace() as opened:
        if dry_run:
            names = [f.name for f in assemble.find_functions(opened)]
            session.report({"functions": names}, f"would apply {len(names)} functions: {', '.join(names)}")
            return
        with session.progress() as meter:
            found = assemble.vote(opened, progress=meter)
    if found is None:
        session.report(
            {"functions": []}, "no labeling functions; add some to labeling_functions/ and run again"
        )
        return
    session.report(found, votes_text(found) + (mistakes_text(found) if report else ""))


def votes_text(report: dict[str, Any]) -> str:
    """A vote report for people: the model that was chosen and why, then a line per function."""
    names = ("name", "coverage", "overlap", "conflict", "accuracy", "interval", "errors")
    rows = [[_spelled(f.get(name)) for name in names] for f in report["functions"]]
    head = f"label model: {report['model']} ({report['why']})\ncoverage: {report['coverage']:.1%}"
    if report.get("accuracy") is not None:
        head += f"\naccuracy: {report['accuracy']:.1%}"
    return f"{head}\n\n{grid(rows, names)}"


def _spelled(value: Any) -> Any:
    """An interval as text; other values as they are."""
    return f"{value[0]:.3f} to {value[1]:.3f}" if isinstance(value, tuple | list) else value


def mistakes_text(report: dict[str, Any]) -> str:
    """The worst mistakes of every function that made some on dev, a line each."""
    told = []
    for function in report["functions"]:
        for wrong in function.get("worst", []):
            text = " ".join(wrong["prompt"].split())[:80]
            told.append(f"{function['name']} voted {wrong['vote']}, gold says {wrong['gold']}: {text!r}")
    return "\n\n" + ("\n".join(told) or "no mistakes on dev, or no dev to make them on")


@app.command(epilog="Example: tilth backup ledger-2026-11-22.db")
def backup(
    file: Annotated[Path, typer.Argument(help="The file to write; it must not exist.")],
    dry_run: DryRun = False,
) -> None:
    """Copy the whole ledger into one file while others go on working."""
    with session.workspace() as opened:
        if not dry_run:
            opened.ledger.backup(file)
    session.report(
        {"file": str(file), "dry_run": dry_run}, f"the ledger {'would be' if dry_run else 'is'} in {file}"
    )


@app.command(epilog="Example: tilth restore ledger-2026-11-22.db")
def restore(
    file: Annotated[Path, typer.Argument(help="A file that `tilth backup` wrote.")],
    dry_run: DryRun = False,
) -> None:
    """Put a backup in the place of the workspace's ledger, which must be empty or gone."""
    from curation import config, ledger
    from curation.workspace import safe_url

    found = config.load(session.root)
    if not dry_run:
        ledger.restore(file, found.ledger_url, workspace=found.workspace.name)
    verb = "would restore" if dry_run else "restored"
    session.report(
        {"file": str(file), "dry_run": dry_run}, f"{verb} {file} into {safe_url(found.ledger_url)}"
    )


@app.command(epilog="Example: tilth export everything/")
def export(
    directory: Annotated[Path, typer.Argument(help="A new folder.")],
    dry_run: DryRun = False,
) -> None:
    """Write the whole ledger as open files, one Parquet file per table."""
    with session.workspace() as opened:
        counts = opened.ledger.counts() if dry_run else opened.ledger.export_all(directory)
    session.report({"directory": str(directory), "tables": counts, "dry_run": dry_run})


@app.command(epilog="Example: tilth audit --head 5f0c")
def audit(
    head: Annotated[
        str, typer.Option(help="An end of the chain noted earlier; it must still be part of it.")
    ] = "",
) -> None:
    """Verify the ledger's hash chain: who changed what, and that nobody changed it afterwards."""
    from curation.errors import IntegrityError

    with session.workspace() as opened:
        found = opened.ledger.audit(head or None)
    told = {"transactions": found.transactions, "rows": found.rows, "head": found.head}
    if found.problems:
        raise IntegrityError(
            "; ".join(found.problems[:10]), where="ledger", next="Restore a backup: tilth restore FILE"
        )
    session.report(
        told, lines(told) + "\nKeep the head elsewhere: it proves that no earlier row was changed."
    )
