"""The cleaning stages, in their order, over a workspace: exact duplicates, scrubbing, quality, near-duplicates,
conflicts, leaks. Each writes Decisions and the coverage that proves what it has seen.

Exact duplicates are found on the raw view; everything after sees only the scrubbed one. A row stage runs over what it
has not seen; a set stage runs over everything as soon as anything is new, and takes back what no longer holds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from curation import dedup, leakage, pii, quality, records, snapshot, vault
from curation.config import settings
from curation.errors import GateRefused
from curation.ledger import Alias
from curation.marks import marked
from curation.question import is_closed
from curation.workspace import Progress, Workspace, silent, view

STAGES = ("exact", "scrub", "quality", "near", "conflict", "leak", "asked", "consensus")
BLOCKING = ("drop", "hold", "quarantine")
ALL_KINDS = frozenset(records.AUTHOR_KINDS)
SCAN_PAGE = 5_000
# What a curator's acceptance may override. A leak, an exact copy and unscanned text stay out whoever asks.
OVERRIDABLE = frozenset({"near", "conflict", "quality", "asked", "consensus"})
JUDGED = ("asked", "consensus")  # stages that follow what people say, and have no coverage of their own


@dataclass(frozen=True)
class Rules:
    """The rule digest of every stage. Each covers what came before it, so a changed rule re-runs what it affects."""

    workspace: Workspace = field(repr=False)

    def _digest(self, stage: str, **parts: Any) -> str:
        return records.digest(records.canonical_json({"stage": stage, **parts}))

    @cached_property
    def scrubbing(self) -> pii.ScrubRule:
        """How personal data is scanned for and replaced."""
        config = self.workspace.config
        return pii.ScrubRule(
            layers=pii.located(config.pii.layers, config.root),
            mode=config.pii.mode,
            languages=config.workspace.languages,
            deny=config.pii.deny,
            allow=config.pii.allow,
            kept=config.pii.keep,
        )

    @cached_property
    def duplicates(self) -> dedup.DuplicateRule:
        """What counts as a near-duplicate."""
        section = self.workspace.config.dedup
        return dedup.DuplicateRule(
            threshold=section.threshold, shingle=section.shingle, fields=tuple(section.fields)
        )

    @cached_property
    def exact(self) -> str:
        return self._digest("exact", version=1)

    @cached_property
    def scrub(self) -> str:
        # The key is part of the rule: under another key every alias is another one.
        return self._digest("scrub", rule=self.scrubbing.digest(), key=records.digest(self.workspace.key))

    @cached_property
    def near(self) -> str:
        plain = settings(self.workspace.config)["dedup"]
        return self._digest("near", rule=plain, exact=self.exact, scrub=self.scrub, quality=self.quality)

    @cached_property
    def conflict(self) -> str:
        return self._digest("conflict", near=self.near)

    @cached_property
    def filters(self) -> quality.QualityRule:
        """What counts as poor quality; a class is no free text, and a short one is no fault."""
        return quality.QualityRule(free_text=not is_closed(self.workspace))

    @cached_property
    def overlaps(self) -> leakage.LeakageRule:
        """What counts as a leak. Completions are compared where they are free text: classes repeat by nature.

        A reserved row comes from the same people as the pool, who repeat themselves: a fifth of it must be held
        before it counts as contaminated, as in Llama 2 (Touvron et al. 2023, section A.6).
        """
        return leakage.LeakageRule(share=0.2, completions=not is_closed(self.workspace))

    @cached_property
    def quality(self) -> str:
        return self._digest("quality", rule=self.filters.digest(), scrub=self.scrub)

    @property
    def leak(self) -> str:
        items = self.workspace.ledger.eval_items()
        reserved = records.digest(records.canonical_json(items.to_pydict()))
        return self._digest(
            "leak", version=3, rule=self.overlaps.digest(), scrub=self.scrub, reserved=reserved
        )

    @cached_property
    def asked(self) -> str:
        """People's word on the question itself: a record that they call a bad question stays out."""
        return self._digest("asked", version=1)

    @cached_property
    def consensus(self) -> str:
        return self._digest("consensus", version=1)

    def of(self, stage: str) -> str:
        """The rule digest of ``stage``."""
        return getattr(self, stage)


@dataclass(frozen=True)
class Curated:
    """What one pass over the cleaning stages decided: rows by stage and action, and what ran."""

    decided: dict[str, dict[str, int]]
    ran: list[str]


def curate(workspace: Workspace, *, progress: Progress = silent) -> Curated:
    """Run every cleaning stage over what it has not seen yet. Nothing new means nothing to do."""
    rules = Rules(workspace)
    decided: dict[str, dict[str, int]] = {}
    ran: list[str] = []
    for stage, work in PIPELINE.items():
        if workspace.ledger.gaps(stage, rules.of(stage)):
            progress(stage, 0, None)
            work(workspace, rules, progress)
            ran.append(stage)
        decided[stage] = tally(workspace, stage, rules.of(stage))
    return Curated(decided, ran)


def tally(workspace: Workspace, stage: str, rule: str) -> dict[str, int]:
    """How many rows stand under each action of ``stage`` now; kept rows are not counted."""
    actions = workspace.ledger.decisions(stage=stage, rule=rule)["action"]
    return {item["values"].as_py(): item["counts"].as_py() for item in pc.value_counts(actions)}


def _scrub(workspace: Workspace, rules: Rules, progress: Progress) -> None:
    """Scan every record that has no scan, or has a completion that none has seen, and register the aliases.

    What people marked in a record is replaced there, whatever the detectors make of it.
    """
    book = workspace.ledger
    labels_hi = book.labels_seen()
    scan = _scanning(workspace, rules)
    gaps = book.gaps("scrub", rules.scrub)
    seen: set[str] = set()
    done = 0
    for gap in (g for g in gaps if g.what == "record"):
        for page in book.view_pages(scrub_rule=None, after=gap.lo, kinds=ALL_KINDS, size=SCAN_PAGE):
            found = scan(page.table)
            book.decide("scrub", rules.scrub, found, covered=[("record", gap.lo, page.hi)], supersede=False)
            seen.update(page.table["record"].to_pylist())
            done += page.table.num_rows
            progress("scrubbing", done, None)
    for gap in (g for g in gaps if g.what == "label"):
        _rescan(workspace, rules, scan, gap.lo, seen)
    nothing = records.DECISIONS.empty_table()
    book.decide("scrub", rules.scrub, nothing, covered=[("label", 0, labels_hi)], supersede=False)


def fill_vault(workspace: Workspace, *, progress: Progress = silent) -> None:
    """Put the values of every record into the vault that an earlier scan knew nothing of. Raises :class:`UsageError` where
    the workspace has none."""
    vault.opened(workspace.root)
    scan = _scanning(workspace, Rules(workspace))
    done = 0
    for page in workspace.ledger.view_pages(scrub_rule=None, kinds=ALL_KINDS, size=SCAN_PAGE):
        scan(page.table)
        done += page.table.num_rows
        progress("filling the vault", done, None)


def _scanning(workspace: Workspace, rules: Rules) -> Callable[[pa.Table], pa.Table]:
    """What scans the rows of a view: decisions come back, aliases are registered, and kept in the vault if there is one."""
    keeper = vault.keeper(workspace)
    scrubber = pii.Scrubber(
        rules.scrubbing,
        workspace.key,
        known=workspace.ledger.aliases(),
        remember=keeper.note if keeper else None,
    )
    marks = marked(workspace)

    def scan(rows: pa.Table) -> pa.Table:
        found, aliases = pii.scrub_view(rows, scrubber, marks)
        if keeper:
            keeper.flush()
        workspace.ledger.add_aliases([Alias(a.entity_type, a.hash, a.alias) for a in aliases])
        return found

    return scan


def _rescan(
    workspace: Workspace, rules: Rules, scan: Callable[[pa.Table], pa.Table], after: int, seen: set[str]
) -> None:
    """Scan the records that got a Label since they were scanned, whole: prompt and answers share their aliases, and the
    Label may be a mark.
    """
    book = workspace.ledger
    fresh: set[str] = set()
    for page in book.label_pages(after=after, kinds=ALL_KINDS):
        fresh.update(page["record"].to_pylist())
    ids = sorted(fresh - seen)
    for start in range(0, len(ids), SCAN_PAGE):
        some = ids[start : start + SCAN_PAGE]
        for page in book.view_pages(scrub_rule=None, records=some, kinds=ALL_KINDS):
            found = scan(page.table)
            standing = book.decisions(stage="scrub", rule=rules.scrub, records=some)
            book.decide("scrub", rules.scrub, changes(standing, found), covered=[], supersede=False)


def _exact(workspace: Workspace, rules: Rules, progress: Progress) -> None:
    def find(rows: pa.Table) -> pa.Table:
        return dedup.exact_duplicates(rows, rank=_ranks(workspace, rows, {}))

    _decide_set(workspace, "exact", rules.exact, find, raw=True)


def _near(workspace: Workspace, rules: Rules, progress: Progress) -> None:
    def find(rows: pa.Table) -> pa.Table:
        fresh = without(rows, blocked(workspace, rules, ("exact", "scrub")))
        ranks = _ranks(workspace, fresh, _flaws(workspace, rules, fresh))
        found, clusters = dedup.near_duplicates(fresh, rules.duplicates, rank=ranks)
        save_table(workspace, "clusters", rules.near, clusters)
        return found

    _decide_set(workspace, "near", rules.near, find)


def _conflict(workspace: Workspace, rules: Rules, progress: Progress) -> None:
    def find(rows: pa.Table) -> pa.Table:
        fresh = without(rows, blocked(workspace, rules, ("exact", "scrub")))
        return dedup.conflicts(fresh, rules.duplicates, closed=is_closed(workspace))

    _decide_set(workspace, "conflict", rules.conflict, find)


def _quality(workspace: Workspace, rules: Rules, progress: Progress) -> None:
    def find(rows: pa.Table) -> pa.Table:
        return quality.find_low_quality(rows, rules.filters)

    _decide_set(workspace, "quality", rules.quality, find)


def _leak(workspace: Workspace, rules: Rules, progress: Progress) -> None:
    """On the scrubbed view, which is what is trained on, and on the raw one: two aliases for one name hide a copy."""
    reserved = workspace.ledger.eval_items()["record"].combine_chunks()

    def leaks_of(rows: pa.Table) -> pa.Table:
        held_out = pc.is_in(rows["record"], value_set=reserved)
        return leakage.find_leaks(rows.filter(pc.invert(held_out)), rows.filter(held_out), rules.overlaps)

    def find(rows: pa.Table) -> pa.Table:
        found = leaks_of(rows)
        seen = set(zip(found["record"].to_pylist(), found["label"].to_pylist(), strict=True))
        raw = leaks_of(view(workspace, rule=None)).to_pylist()
        more = [row for row in raw if (row["record"], row["label"]) not in seen]
        return records.table([*found.to_pylist(), *more], records.DECISIONS)

    _decide_set(workspace, "leak", rules.leak, find)


PIPELINE: dict[str, Callable[[Workspace, Rules, Progress], None]] = {
    "exact": _exact,
    "scrub": _scrub,
    "quality": _quality,
    "near": _near,
    "conflict": _conflict,
    "leak": _leak,
}


def _decide_set(
    workspace: Workspace,
    stage: str,
    rule: str,
    find: Callable[[pa.Table], pa.Table],
    *,
    raw: bool = False,
) -> None:
    """Run a set stage over everything and write what changed: new decisions, and a keep for what no longer stands."""
    book = workspace.ledger
    covered = [("record", 0, book.records_seen()), ("label", 0, book.labels_seen())]
    rows = view(workspace, rule=None if raw else Rules(workspace).scrub)
    standing = book.decisions(stage=stage, rule=rule)
    found = find(rows)
    book.decide(stage, rule, changes(standing, found), covered=covered, supersede=False)


def changes(standing: pa.Table, found: pa.Table) -> pa.Table:
    """The decisions that bring a stage from ``standing`` to ``found``: what is new or different, and a ``keep`` for
    every row that a decision stands on and none is found for."""

    def key(row: dict[str, Any]) -> tuple[str, str | None]:
        return row["record"], row["label"]

    before = {key(row): row for row in standing.to_pylist() if row["action"] != "keep"}
    after = {key(row): row for row in found.to_pylist()}
    new = [
        row
        for at, row in after.items()
        if at not in before
        or any(before[at][name] != row[name] for name in ("action", "reason", "evidence", "output"))
    ]
    lifted = [
        records.decision(record, "keep", "what spoke against it no longer holds", label=label)
        for record, label in before
        if (record, label) not in after
    ]
    return records.table([*new, *lifted], records.DECISIONS)


def _ranks(workspace: Workspace, rows: pa.Table, flaws: Mapping[str, int]) -> dict[str, tuple[Any, ...]]:
    """Which of several duplicates stays, lowest first: a reserved row, then what a snapshot holds already, then the
    better by ``flaws`` (copies are equally good, and have none), then the better trusted, then the older.

    A reserved row must stay: dropped in favour of a row that the leak stage then drops, both would be lost. And
    what was trained on once stays in the next snapshot, so that two of them differ by what was decided, not by
    what came in. Nothing here depends on the order in which rows arrived.
    """
    reserved = set(workspace.ledger.eval_items()["record"].to_pylist())
    used = frozen_records(workspace)
    standing = dedup.default_rank(dedup.rows_of(rows))
    return {
        record: (record not in reserved, record not in used, flaws.get(record, 0), *rank)
        for record, rank in standing.items()
    }


def frozen_records(workspace: Workspace) -> set[str]:
    """The records that a snapshot holds whose files are here."""
    held = set(workspace.store.list(snapshot.KIND))
    used: set[str] = set()
    for name in {frozen.name for frozen in workspace.ledger.snapshots()} & held:
        for table in snapshot.scan(workspace.store, name, columns=["record"]):
            used.update(table["record"].to_pylist())
    return used


_FLAWS = {"hold": 1, "quarantine": 2, "drop": 3}


def _flaws(workspace: Workspace, rules: Rules, rows: pa.Table) -> dict[str, int]:
    """How bad the quality stage calls a record by its best row; records that it has nothing against are left out."""
    found = workspace.ledger.decisions(stage="quality", rule=rules.quality).to_pylist()
    worst = {(row["record"], row["label"]): _FLAWS.get(row["action"], 0) for row in found}
    best: dict[str, int] = {}
    for key in zip(rows["record"].to_pylist(), rows["label"].to_pylist(), strict=True):
        best[key[0]] = min(best.get(key[0], 3), worst.get(key, 0))
    return {record: flaw for record, flaw in best.items() if flaw}


def blocked(workspace: Workspace, rules: Rules, stages: tuple[str, ...] = STAGES) -> set[str]:
    """The records that a stage keeps out now, less those that a curator has let in; with those a curator rejected."""
    out: set[str] = set()
    accepted: set[str] = set()
    for row in workspace.ledger.review_states().to_pylist():
        if row["action"] == "reject":
            out.add(row["record"])
        elif row["action"] in ("accept", "edit"):
            accepted.add(row["record"])
    for stage in stages:
        found = workspace.ledger.decisions(stage=stage, rule=rules.of(stage))
        stopping = found.filter(pc.is_in(found["action"], value_set=pa.array(BLOCKING)))
        stopped = set(stopping["record"].to_pylist())
        out |= stopped - accepted if stage in OVERRIDABLE else stopped
    return out


def without(rows: pa.Table, ids: set[str]) -> pa.Table:
    """The rows whose record is none of ``ids``, in their order."""
    if not ids:
        return rows
    return rows.filter(pc.invert(pc.is_in(rows["record"], value_set=pa.array(ids, pa.string()))))


def save_table(workspace: Workspace, kind: str, name: str, rows: pa.Table) -> str:
    """Keep a large table as a Parquet artifact named by its rule and content; the ledger points at the newest."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "table.parquet"
        pq.write_table(rows, path, compression="zstd")
        artifact = records.digest(name + records.digest(path.read_bytes()))
        if artifact not in workspace.store.list(kind):
            workspace.store.put(kind, artifact, "table.parquet", path)
            workspace.store.commit(kind, artifact, {"rule": name, "rows": rows.num_rows})
    workspace.ledger.set_watermark(f"{kind}:{name}", artifact)
    return artifact


def load_table(workspace: Workspace, kind: str, name: str) -> pa.Table | None:
    """The newest table kept under ``kind`` and ``name``, or ``None``."""
    artifact = workspace.ledger.watermark(f"{kind}:{name}")
    return None if artifact is None else load_artifact(workspace, kind, artifact)


def load_artifact(workspace: Workspace, kind: str, artifact: str) -> pa.Table:
    """The table of an artifact that :func:`save_table` kept."""
    return pq.read_table(workspace.store.path(kind, artifact) / "table.parquet")


def require_covered(workspace: Workspace, rules: Rules) -> None:
    """Raise :class:`GateRefused` where a stage has not seen every row under its current rule."""
    missing = [
        stage for stage in STAGES if stage not in JUDGED and workspace.ledger.gaps(stage, rules.of(stage))
    ]
    if missing:
        raise GateRefused(
            f"rows that {', '.join(missing)} has not seen under the current rule",
            where="snapshot",
            next="Run `tilth curate` first",
        )


def scrubbed_labels(
    workspace: Workspace, rules: Rules, kinds: set[str], records: Sequence[str] | None = None
) -> pa.Table:
    """The ledger's Labels of these kinds with their text as scrubbing left it: columns of the ledger's LABELS."""
    labels = workspace.ledger.labels(records=records, kinds=kinds)
    found = workspace.ledger.decisions(stage="scrub", rule=rules.scrub)
    rewritten = found.filter(pc.and_(pc.is_valid(found["label"]), pc.equal(found["action"], "rewrite")))
    if not rewritten.num_rows or not labels.num_rows:
        return labels
    text = dict(zip(rewritten["label"].to_pylist(), rewritten["output"].to_pylist(), strict=True))
    pairs = zip(labels["label"].to_pylist(), labels["body"].to_pylist(), strict=True)
    bodies = pa.array([text.get(label, body) for label, body in pairs], pa.string())
    return labels.set_column(labels.schema.get_field_index("body"), "body", bodies)
