"""Freezing: rows in any order become a directory whose name is their digest, in bounded memory.

Refuses rows that cannot be trained on, groups or clusters that stand on two sides, records that have changed
sides since the parent, and facts that do not pass the gates. Freezing the same rows again finds the snapshot
that is there.
"""

from __future__ import annotations

import math
import platform
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from curation.artifacts import RECORDED, Sink, Store
from curation.errors import ConflictError, GateRefused, UsageError, storage_errors
from curation.records import EXAMPLES, SPLITS
from curation.snapshot import card, rows
from curation.snapshot.gates import GateRule, check_gates, refuse
from curation.snapshot.read import KIND, Snapshot, scan, snapshot_of, verify
from curation.snapshot.spool import Spool

SCHEMA = "tilth.snapshot.1"
SPILL_BYTES = 128 << 20
GROUP_ROWS, GROUP_BYTES = 16_384, 64 << 20
SHARD_BYTES = 256 << 20
FACTS = (
    "workspace",
    "parent",
    "round",
    "rules",
    "versions",
    "stages",
    "pii",
    "leakage",
    "coverage",
    "agreement",
    "card",
)


def freeze(
    examples: Iterable[pa.Table],
    store: Store,
    *,
    facts: Mapping[str, Any],
    rule: GateRule | None = None,
    spill_bytes: int = SPILL_BYTES,
    shard_bytes: int = SHARD_BYTES,
) -> Snapshot:
    """Freeze tables of EXAMPLES into ``store``, and return the snapshot once it is on disk.

    The name is the SHA-256 over the sorted digests of the rows (messages, completion, split, weight), so the
    order of the rows, their lineage, the time and the tools do not matter. Rows that are there already give
    the snapshot that is there, with ``fresh`` false: its lineage and facts are those of the first freeze.

    ``facts``, all optional, go into the manifest and the card:

    - ``parent`` (name of a snapshot), ``round``, ``workspace``, ``rules`` (stage to digest or settings),
      ``versions`` (tool to version)
    - ``stages``: ``[{"stage", "in", "out", "reasons": {reason: rows}}]``
    - ``pii``: ``{"unscanned", "open_spans", "collisions", "marked", "layers": [...], ...}``; ``leakage``:
      ``{"leaks", "eval_sets": [...], ...}``; ``coverage``: ``{"gaps": {stage: rows}}``; ``agreement``:
      ``{"alpha", ...}``: what the gates judge
    - ``card``: ``{"title", "description", "license", "languages", "tags"}``

    ``rule`` says which gates stand (all, without it). About ``spill_bytes`` of rows are held in memory; more
    go through sorted runs on the store's disk. Raises :class:`UsageError` for no rows, rows that cannot be
    trained on and unknown facts, :class:`GateRefused` for a gate or a record, group or cluster on two sides,
    and :class:`curation.errors.StorageFailed` when the disk is full.
    """
    unknown = sorted(set(facts) - set(FACTS))
    if unknown:
        raise UsageError(
            f"unknown facts: {', '.join(unknown)}", where="snapshot", next=f"Known: {', '.join(FACTS)}"
        )
    rule = rule or GateRule()
    results = check_gates(facts, rule)
    refuse(results)
    with store.scratch() as folder:
        intake = _Intake(Spool(folder, spill_bytes), folder)
        for table in examples:
            intake.take(table)
        checked = intake.check_sides(store, facts.get("parent"))
        name = rows.name_of(bytes(intake.digests))
        if store.has(KIND, name):
            return verify(store, name, deep=False)
        manifest: dict[str, Any] = {
            **{key: value for key, value in facts.items() if key not in ("versions", "workspace")},
            **intake.counts(),
            "snapshot": SCHEMA,
            "row": rows.VERSION,
            "rule": asdict(rule),
            "gates": [result.to_dict() for result in results],
            "parent_checked": checked,
            RECORDED: _recorded(facts),
        }
        return _write(store, name, manifest, intake, shard_bytes)


def _recorded(facts: Mapping[str, Any]) -> dict[str, Any]:
    """What is told but takes no part in comparisons: when, where, with what."""
    own = {"python": platform.python_version(), "pyarrow": pa.__version__}
    created = datetime.now(UTC).isoformat(timespec="seconds")
    workspace = {"workspace": facts["workspace"]} if "workspace" in facts else {}
    return {"created": created, "versions": {**own, **facts.get("versions", {})}, **workspace}


@dataclass
class _Tally:
    """What is counted of one split while its rows go by."""

    rows: int = 0
    size: int = 0
    weights: list[float] = field(default_factory=list)
    least: float = math.inf
    most: float = -math.inf

    def take(self, bodies: list[bytes], weights: list[float]) -> None:
        self.rows += len(bodies)
        self.size += sum(map(len, bodies))
        self.weights.append(math.fsum(weights))
        self.least, self.most = min(self.least, *weights), max(self.most, *weights)

    def to_dict(self) -> dict[str, Any]:
        weight = {"sum": round(math.fsum(self.weights), 6), "least": self.least, "most": self.most}
        return {"rows": self.rows, "bytes": self.size, "weight": weight}


class _Intake:
    """The rows on their way in: conformed, digested, counted, and spooled."""

    def __init__(self, spool: Spool, folder: Path) -> None:
        self.spool, self._folder = spool, folder
        self.digests = bytearray()
        self.splits = {split: _Tally() for split in SPLITS}
        self._sources: Counter[str] = Counter()
        self._kinds: Counter[str] = Counter()
        self._keys: dict[str, list[pa.Table]] = {"record": [], "group": [], "cluster": []}

    def take(self, table: pa.Table) -> None:
        for batch in rows.steps(rows.conform(table)):
            bodies = rows.canonical(batch)
            made = rows.digests(bodies)
            self.digests += made
            with storage_errors(self._folder, batch.nbytes):
                self.spool.add(pa.Table.from_batches([batch]), made)
            self._count(batch, bodies)

    def _count(self, batch: pa.RecordBatch, bodies: list[bytes]) -> None:
        splits, weights = batch["split"].to_pylist(), batch["weight"].to_pylist()
        for split in set(splits):
            mine = [i for i, other in enumerate(splits) if other == split]
            self.splits[split].take([bodies[i] for i in mine], [weights[i] for i in mine])
        self._sources.update(source or "not named" for source in batch["source"].to_pylist())
        for kinds in batch["author_kinds"].to_pylist():
            self._kinds.update(set(kinds or ()))
        for name, tables in self._keys.items():
            tables.append(_key_table(batch, name))

    def check_sides(self, store: Store, parent: str | None) -> bool:
        """Refuse what stands on two sides, here or between here and the parent; returns whether the parent was seen.

        Clusters are compared within this snapshot only: they are computed anew for each.
        """
        if not self.digests:
            raise UsageError(
                "there are no rows to freeze", where="snapshot", next="Label or ingest some first"
            )
        seen = parent is not None and store.has(KIND, parent)
        if seen:
            for batch in (
                b for t in scan(store, parent, columns=["record", "group", "split"]) for b in t.to_batches()
            ):
                for name in ("record", "group"):
                    self._keys[name].append(_key_table(batch, name))
        for name, tables in self._keys.items():
            _refuse_two_sides(name, tables)
        return seen

    def counts(self) -> dict[str, Any]:
        return {
            "rows": len(self.digests) // rows.DIGEST_BYTES,
            "splits": {split: tally.to_dict() for split, tally in self.splits.items() if tally.rows},
            "sources": dict(self._sources),
            "author_kinds": dict(self._kinds),
        }


def _key_table(batch: pa.RecordBatch, name: str) -> pa.Table:
    side = pc.index_in(batch["split"], pa.array(SPLITS)).cast(pa.int8())
    return pa.table({"key": batch[name], "side": side}).filter(pc.is_valid(batch[name]))


def _refuse_two_sides(name: str, tables: list[pa.Table]) -> None:
    whole = pa.concat_tables(tables).group_by("key").aggregate([("side", "min"), ("side", "max")])
    crossing = whole.filter(pc.not_equal(whole["side_min"], whole["side_max"]))
    if crossing.num_rows:
        key, low, high = (crossing[c][0].as_py() for c in ("key", "side_min", "side_max"))
        more = f", and {crossing.num_rows - 1:,} more" if crossing.num_rows > 1 else ""
        raise GateRefused(
            f"{name} {key} stands in {SPLITS[low]} and in {SPLITS[high]}{more}",
            where="snapshot",
            next="Splits are for good, here and in the parent; leave out what assign_splits holds",
        )


def _write(store: Store, name: str, manifest: dict[str, Any], intake: _Intake, shard_bytes: int) -> Snapshot:
    files: dict[str, list[str]] = {}
    sizes: dict[str, int] = {}
    try:
        for split, tally in intake.splits.items():
            if tally.rows:
                made = _write_split(store, name, split, tally, intake.spool, shard_bytes)
                files[split] = list(made)
                sizes |= made
        store.put(KIND, name, "README.md", card.render({**manifest, "name": name}, files, sizes))
        path = store.commit(KIND, name, manifest)
    except ConflictError:
        # Somebody froze the same rows in the meantime, with other lineage or facts: theirs is the snapshot.
        store.discard(KIND, name)
        if not store.has(KIND, name):
            raise
        return verify(store, name, deep=False)
    except BaseException:
        store.discard(KIND, name)
        raise
    return snapshot_of(path, store.manifest(KIND, name), fresh=True)


def _write_split(
    store: Store, name: str, split: str, tally: _Tally, spool: Spool, shard_bytes: int
) -> dict[str, int]:
    """Write the shards of one split; returns their paths and sizes."""
    mean = max(1, tally.size // tally.rows)
    group_rows = max(1, min(GROUP_ROWS, GROUP_BYTES // mean))
    groups = math.ceil(tally.rows / group_rows)
    per_shard = max(1, shard_bytes // (mean * group_rows))
    shards = math.ceil(groups / per_shard)
    chunks = regroup(spool.rows(split), group_rows)
    made = {}
    for number in range(shards):
        path = f"data/{split}-{number:05d}-of-{shards:05d}.parquet"
        expected = min(shard_bytes, tally.size)
        made[path] = store.put(KIND, name, path, _shard(islice(chunks, per_shard)), expected=expected).size
    return made


def _shard(chunks: Iterator[pa.Table]) -> Callable[[Sink], None]:
    """A source that writes each table as one row group of a Parquet file."""

    def write(sink: Sink) -> None:
        writer = pq.ParquetWriter(sink, EXAMPLES, compression="zstd")
        for chunk in chunks:
            writer.write_table(chunk, row_group_size=chunk.num_rows)
        writer.close()

    return write


def regroup(tables: Iterable[pa.Table], size: int) -> Iterator[pa.Table]:
    """The same rows in tables of exactly ``size``; the last may be smaller."""
    held: list[pa.Table] = []
    count = 0
    for table in tables:
        held.append(table)
        count += table.num_rows
        while count >= size:
            whole = pa.concat_tables(held)
            yield whole.slice(0, size)
            held, count = [whole.slice(size)], count - size
    if count:
        yield pa.concat_tables(held)
