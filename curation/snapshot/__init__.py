"""Snapshots: frozen sets of rows whose name is their digest, and everything that guards them.

``freeze`` makes one, in bounded memory and behind gates; ``verify``, ``load``, ``diff`` and ``export`` read
it; the splits that it holds come from ``assign_splits``. A snapshot is never changed, but that rows are
emptied where a person asks to be erased; no row of one is ever repaired here.
"""

from __future__ import annotations

from curation.snapshot.changes import Change, Diff, diff
from curation.snapshot.erasing import empty_rows, holders
from curation.snapshot.freezing import freeze
from curation.snapshot.gates import GateResult, GateRule, check_gates, refuse
from curation.snapshot.read import (
    KIND,
    Snapshot,
    export,
    export_directory,
    import_directory,
    load,
    manifest,
    names,
    require_trainable,
    resolve,
    scan,
    show,
    verify,
)
from curation.snapshot.splits import POOL, Splits, assign_splits, reserve

__all__ = [
    "KIND",
    "POOL",
    "Change",
    "Diff",
    "GateResult",
    "GateRule",
    "Snapshot",
    "Splits",
    "assign_splits",
    "check_gates",
    "diff",
    "empty_rows",
    "export",
    "export_directory",
    "freeze",
    "holders",
    "import_directory",
    "load",
    "manifest",
    "names",
    "refuse",
    "require_trainable",
    "reserve",
    "resolve",
    "scan",
    "show",
    "verify",
]
