"""What ``tilth doctor`` looks at: the machine, what is installed, the workspace, and where data may go.

Every check says good, note or bad, and what to do about it. Nothing here repairs anything or speaks to a network.
"""

from __future__ import annotations

import importlib.metadata
import platform
import shutil
import sqlite3
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from curation import config as configuration
from curation.egress import check_url
from curation.errors import TilthError
from curation.ledger import choose_journal, network_filesystem
from curation.workspace import KEY_FILE, open_workspace, safe_url

if TYPE_CHECKING:
    from curation.pii import ScrubRule

EXTRAS = {
    "fast": "numba",
    "pii": "presidio-analyzer",
    "weak": "snorkel",
    "labelstudio": "label-studio-sdk",
    "train": "torch",
    "review": "streamlit",
    "serve": "fastapi",
    "mlflow": "mlflow-skinny",
    "wandb": "wandb",
    "postgres": "psycopg",
}
LITTLE_DISK = 2 << 30


@dataclass(frozen=True)
class Check:
    """One finding: ``state`` is good, note or bad."""

    name: str
    state: str
    detail: str


def examine(root: Path, actor: str) -> list[Check]:
    """Every check, in order; those of a workspace only where ``root`` is one."""
    found = [*_machine(root), *_extras()]
    if not (root / configuration.FILE).is_file():
        return [*found, Check("workspace", "note", f"{root} is none; make one with: tilth init DIR")]
    return [*found, *_workspace(root, actor)]


def _machine(root: Path) -> Iterator[Check]:
    fits = (3, 11) <= sys.version_info[:2] <= (3, 13)
    yield Check(
        "python", "good" if fits else "bad", f"{platform.python_version()} (3.11 to 3.13 are supported)"
    )
    network = network_filesystem(root)
    mode = choose_journal(sqlite3.sqlite_version_info, network)
    where = ", on a network file system" if network else ""
    yield Check("sqlite", "good", f"{sqlite3.sqlite_version}: journal mode {mode}{where}")
    free = shutil.disk_usage(root if root.exists() else Path.cwd()).free
    yield Check("disk", "good" if free > LITTLE_DISK else "note", f"{free / (1 << 30):.1f} GiB free")


def _extras() -> Iterator[Check]:
    for extra, package in EXTRAS.items():
        try:
            yield Check(f"[{extra}]", "good", f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            yield Check(f"[{extra}]", "note", f"{package} is not installed: pip install 'tilth[{extra}]'")


def _workspace(root: Path, actor: str) -> Iterator[Check]:
    try:
        config = configuration.load(root)
        yield Check("tilth.toml", "good", config.workspace.name)
        with open_workspace(root, actor=actor) as opened:
            yield Check("ledger", "good", f"{safe_url(opened.ledger.url)}, schema {opened.ledger.version}")
            audit = opened.ledger.audit()
            whole = f"{audit.transactions:,} transactions, {audit.rows:,} rows, unbroken"
            yield Check(
                "audit chain", "bad" if audit.problems else "good", "; ".join(audit.problems[:3]) or whole
            )
    except TilthError as error:
        yield Check("workspace", "bad", str(error))
        return
    yield _key(root)
    yield from _pii(config)
    yield from _egress(config)


def _pii(config: configuration.Config) -> Iterator[Check]:
    """Each layer that is listed: active, and with which model, or why not; one that cannot be used quarantines every
    row."""
    from curation import pii

    section = config.pii
    yield Check("pii layers", "good", f"{', '.join(section.layers)}; mode {section.mode}")
    rule = pii.ScrubRule(pii.located(section.layers, config.root), languages=config.workspace.languages)
    for listed, name in zip(section.layers, rule.layers, strict=True):
        yield _layer(listed, name, rule)
    if section.layers == ("patterns",):
        yield Check("pii names", "note", "names of people and places are not looked for")


def _layer(listed: str, name: str, rule: ScrubRule) -> Check:
    """One layer, loaded as a scan would load it."""
    from curation.pii import labels, outside, scan

    try:
        layer = scan.layer_of(name, rule)
    except TilthError as error:
        return Check(f"pii layer {listed}", "bad", f"not active, every row is held as unscanned: {error}")
    if (told := getattr(layer, "labels", None)) is None:
        return Check(f"pii layer {listed}", "good", f"active, {_BUILT_IN[listed]()}")
    state = "note" if labels.unknown(told) else "good"
    known_as = outside.identity(name)["files"][:12]
    return Check(f"pii layer {listed}", state, f"active, model {known_as}: {labels.told(told)}")


def _names_told() -> str:
    from curation.pii.names import network

    return f"the bundled model, {len(network().lexicon):,} words known"


_BUILT_IN: dict[str, Callable[[], str]] = {
    "patterns": lambda: f"presidio-analyzer {importlib.metadata.version('presidio-analyzer')}",
    "names": _names_told,
}


def _key(root: Path) -> Check:
    path = root / KEY_FILE
    if not path.is_file():
        return Check("pseudonym key", "bad", f"{path} is missing: put it back from your backup")
    mode = path.stat().st_mode & 0o777
    if mode & 0o077:
        return Check("pseudonym key", "bad", f"{path} may be read by others ({mode:o}): chmod 600 it")
    return Check("pseudonym key", "good", f"{path}, readable by its owner alone")


def _egress(config: configuration.Config) -> Iterator[Check]:
    """Every destination that data may leave to."""
    listed = ", ".join(config.egress.allow) or "nowhere: [egress] allow is empty"
    yield Check("data may leave to", "good" if not config.egress.allow else "note", listed)
    for name in config.train.tracking:
        yield _tracker(config, name)


def _tracker(config: configuration.Config, name: str) -> Check:
    """Where trainings are followed by one tracker; bad where it would speak to a host that is not listed."""
    url = config.tracking_servers.get(name)
    if url is None:
        here = {"mlflow": config.train.mlflow_store, "wandb": "wandb, offline"}.get(name, "the adapter's log")
        return Check(f"trainings to {name}", "good", f"{here}, on this machine")
    try:
        return Check(f"trainings to {name}", "note", check_url(url, config.egress.allow))
    except TilthError as error:
        return Check(f"trainings to {name}", "bad", str(error))
