"""A training that was done elsewhere, brought back: its weights checked against what this workspace froze, its events merged.

The job had a copy of a snapshot and no ledger (``tilth train --snapshot FOLDER --out DIR``). What it made is believed as
far as it can be checked here: the weights by the digests of their manifest, the rows by the snapshot of that name, the
base by the one on this machine. Its log says how the run went; no digest covers that, as times are nobody's identity.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson

from apps.lease import held
from curation import snapshot
from curation.errors import IntegrityError, UsageError, storage_errors
from curation.ledger.rows import Adapter
from curation.workspace import Workspace

ARM = "job"
"""Of adapters that came from elsewhere: of no round, so that nothing offers their answers before they are measured."""

RETURNED = "adapter-returned"
_TOLD = ("train_loss", "eval_loss", "steps", "tokens", "examples", "refused")


def bring(workspace: Workspace, folder: Path, *, dry_run: bool = False) -> dict[str, Any]:
    """Take the adapter in ``folder`` and its events into the workspace; one that is here already is left as it is.

    With ``dry_run`` it is only checked. Raises ``IntegrityError`` where weights or manifest were changed, or where other
    rows or another base were learned than the manifest's names stand for; ``UsageError`` for a snapshot that is unknown
    here or a base that is missing; ``GateRefused`` for a snapshot that may not be trained on. Nothing is then registered.
    """
    manifest = _checked(workspace, folder)
    name = manifest["digest"]
    told = {"adapter": name, "snapshot": manifest["snapshot"], "dry_run": dry_run}
    if dry_run:
        return told | {"new": name not in {a.digest for a in workspace.ledger.adapters()}}
    events = _events(folder, manifest)
    with held(workspace.ledger, f"bring:{name}"):
        path = _copied(workspace.store.root, folder, manifest)
        made = Adapter(
            name,
            manifest["snapshot"],
            manifest["base"]["ref"],
            manifest["recipe"],
            manifest["metrics"],
            path,
            ARM,
        )
        new = workspace.ledger.add_returned(made, events)
    return told | {"new": new, "events": len(events) if new else 0, **_went(manifest)}


def returned(workspace: Workspace) -> list[dict[str, Any]]:
    """Every adapter that was brought back, oldest first: digest, snapshot, and how its run went."""
    return [{"adapter": e.subject, **e.detail} for e in workspace.ledger.events(RETURNED)]


# -------------------------------------------------------------------------------------------------- checks


def _checked(workspace: Workspace, folder: Path) -> Mapping[str, Any]:
    """The manifest, once weights, rows and base are what it says."""
    from training import registry

    manifest = registry.verify(folder)
    if manifest["kind"] == "base" or not manifest.get("snapshot"):
        raise UsageError(
            "this was not trained on a snapshot, so it has no place in a workspace",
            where=str(folder),
            next="Use it by its folder: tilth evaluate --adapter DIR",
        )
    _check_rows(workspace, folder, manifest)
    _check_base(folder, manifest)
    return manifest


def _check_rows(workspace: Workspace, folder: Path, manifest: Mapping[str, Any]) -> None:
    from training.rows import rows_digest, split_rows

    known = {s.name: s.verdict for s in workspace.ledger.snapshots()}
    name = manifest["snapshot"]
    if name not in known:
        raise UsageError(
            f"its snapshot {str(name)[:12]} is unknown in this workspace",
            where=str(folder),
            next="Bring it to the workspace that froze the snapshot (tilth snapshot list)",
        )
    approved = None if known[name] is None else known[name] == "approved"
    snapshot.require_trainable(workspace.store, name, approved=approved)
    if rows_digest(split_rows(snapshot.load(workspace.store, name), "train")) != manifest["data"]:
        raise IntegrityError(
            f"it was not trained on the rows that snapshot {name[:12]} holds",
            where=str(folder),
            next="Where somebody was erased since, train again; otherwise find out what it was trained on",
        )


def _check_base(folder: Path, manifest: Mapping[str, Any]) -> None:
    from training.model import resolve_base

    base = manifest["base"]
    revision = None if Path(base["ref"]).is_dir() else base["revision"]
    found = resolve_base(base["ref"], revision)
    if found.digest != base["digest"]:
        raise IntegrityError(
            f"{base['ref']} is another base here than where it was trained "
            f"({found.digest[:12]} instead of {base['digest'][:12]})",
            where=str(folder),
            next="Put the base of the job in that place",
        )


# -------------------------------------------------------------------------------------------------- merging


def _copied(root: Path, folder: Path, manifest: Mapping[str, Any]) -> str:
    """The adapter's path below ``root``, once it is whole there: the files that the manifest lists, and the log's lines."""
    from training import registry
    from training.tracking import JSONL

    path = f"adapters/{manifest['digest']}"
    if (root / path).is_dir():
        registry.verify(root / path)
        return path
    log = f"{registry.LOG}/{JSONL}"
    names = [*manifest["files"], *([log] if (folder / log).is_file() else []), registry.MANIFEST]
    with storage_errors(root), registry.partial(root / path) as work:
        for name in names:
            (work / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(folder / name, work / name)
        if registry.verify(work)["digest"] != manifest["digest"]:
            raise IntegrityError("it changed while it was copied", where=str(folder))
    return path


def _events(folder: Path, manifest: Mapping[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    """What a run in the workspace would have noted itself, as (kind, subject, detail), and that it came from elsewhere."""
    from training import registry, tracking

    try:
        log = tracking.read(folder / registry.LOG)
        trials = {(line["trial"], line["rung"]): line for line in log if line["kind"] == tracking.TRIAL}
    except (orjson.JSONDecodeError, KeyError, TypeError) as error:
        raise IntegrityError(f"its log cannot be read: {error}", where=str(folder / registry.LOG)) from error
    name, run = manifest["digest"], manifest["run"]
    aside = ("kind", "step")
    tried = [
        (tracking.TRIAL, name, {k: v for k, v in one.items() if k not in aside}) for one in trials.values()
    ]
    started = {
        "base": manifest["base"]["ref"],
        "rows": manifest["metrics"]["examples"],
        "time": run["started"],
    }
    return [
        *tried,
        ("train-started", name, started),
        ("train-finished", name, {"digest": name, "time": run["started"] + run["seconds"]}),
        (RETURNED, name, {"snapshot": manifest["snapshot"], **_went(manifest), "losses": _losses(log)}),
    ]


def _went(manifest: Mapping[str, Any]) -> dict[str, Any]:
    run, metrics = manifest["run"], manifest["metrics"]
    told = {name: metrics[name] for name in _TOLD if name in metrics}
    return told | {name: run[name] for name in ("host", "seconds", "tokens_per_second") if name in run}


def _losses(log: Sequence[Mapping[str, Any]]) -> list[list[float]]:
    """The validation losses of the run as [step, loss], by step; of a step that was made twice, the later one."""
    return [
        list(pair)
        for pair in sorted({int(li["step"]): li["eval_loss"] for li in log if "eval_loss" in li}.items())
    ]
