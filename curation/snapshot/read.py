"""Reading snapshots: by name or by folder, verified, loaded, exported, carried to another store.

A folder is enough: a snapshot that was copied to another machine is read and verified as one in a store is.
Nothing here changes a snapshot.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from curation import artifacts
from curation.artifacts import Sink, Store, verify_folder, write_atomic
from curation.errors import ConflictError, GateRefused, IntegrityError, UsageError, storage_errors
from curation.records import EXAMPLES, SPLITS, canonical_json
from curation.snapshot import erasing, rows
from curation.snapshot.gates import GATES, NOT_MEASURED, OFF, PASSED, PENDING

KIND = "snapshots"
EXPORTS = ("jsonl", "trl", "chat")
Where = Store | Path
"""A store, in which a snapshot has a name, or the folder of one snapshot."""


@dataclass(frozen=True)
class Snapshot:
    """A frozen set of rows: ``path`` is a folder that ``datasets.load_dataset`` reads; ``splits`` counts rows.

    ``fresh`` says whether this very call made it.
    """

    name: str
    rows: int
    path: Path
    splits: dict[str, int] = field(default_factory=dict)
    fresh: bool = False
    manifest: dict[str, Any] = field(default_factory=dict, repr=False)


def snapshot_of(path: Path, manifest: dict[str, Any], fresh: bool = False) -> Snapshot:
    """The snapshot that a manifest describes."""
    splits = {split: manifest["splits"][split]["rows"] for split in SPLITS if split in manifest["splits"]}
    return Snapshot(manifest["name"], manifest["rows"], path, splits, fresh, manifest)


def names(store: Store) -> list[str]:
    """The names of the snapshots of a store, sorted."""
    return store.list(KIND)


def resolve(store: Store, prefix: str) -> str:
    """The one snapshot whose name starts with ``prefix``. Raises :class:`UsageError` where there is none, or several."""
    found = [name for name in names(store) if name.startswith(prefix)] if prefix else []
    if len(found) == 1:
        return found[0]
    if not found:
        raise UsageError(f"no snapshot is named {prefix!r}", next="`tilth snapshot list` shows what there is")
    raise UsageError(
        f"{prefix!r} begins the names of {len(found)} snapshots",
        next=f"Give more of the name: {', '.join(found[:5])}",
    )


def folder_of(where: Where, name: str | None = None) -> Path:
    """The folder to read: of snapshot ``name`` (or a unique beginning) in a store, or ``where`` itself."""
    if isinstance(where, Store):
        if name is None:
            raise UsageError("a store holds many snapshots", next="Name one")
        return where.path(KIND, resolve(where, name))
    return Path(where)


def show(where: Where, name: str | None = None) -> Snapshot:
    """A snapshot by its manifest and the sizes of its files, without reading rows.

    Raises :class:`IntegrityError` for a damaged one, :class:`UsageError` where there is none.
    """
    return verify(where, name, deep=False, hashes=False)


def manifest(where: Where, name: str | None = None) -> dict[str, Any]:
    """The manifest of a snapshot: counts, rules, gates, files; see :func:`show` for errors."""
    return show(where, name).manifest


def verify(where: Where, name: str | None = None, deep: bool = True, *, hashes: bool = True) -> Snapshot:
    """Check that a snapshot is what was frozen. Raises :class:`IntegrityError` that names the file that is not.

    ``hashes`` reads every file and compares its SHA-256; ``deep`` also recomputes the digest of every row and
    the name that they make, which finds even a folder whose manifest was forged along with its files.
    """
    folder = folder_of(where, name)
    found = verify_folder(folder, deep=hashes or deep, kind=KIND)
    if isinstance(where, Store) and folder.name != found["name"]:
        raise _broken(folder / artifacts.MANIFEST, f"it says that it is {found['name']}")
    if not isinstance(where, Store) and name is not None and not found["name"].startswith(name):
        raise _broken(folder / artifacts.MANIFEST, f"this is snapshot {found['name']}, not {name}")
    if deep:
        _verify_rows(folder, found)
    return snapshot_of(folder, found)


def _verify_rows(folder: Path, manifest: dict[str, Any]) -> None:
    if manifest.get("row") != rows.VERSION:
        raise UsageError(
            f"its rows are of version {manifest.get('row')!r}; this program reads {rows.VERSION!r}",
            where=str(folder),
        )
    digests = bytearray()
    erased = erasing.Listed(folder)
    for path, split in _data_files(manifest):
        for table in _tables(folder / path, None):
            for batch in rows.steps(table):
                digests += erased.substitute(batch, _checked_digests(folder / path, split, batch))
    count = len(digests) // rows.DIGEST_BYTES
    if count != manifest["rows"] or rows.name_of(bytes(digests)) != manifest["name"]:
        raise _broken(folder / "data", f"its {count:,} rows are not those that {manifest['name'][:12]} names")


def _checked_digests(path: Path, split: str, batch: pa.RecordBatch) -> bytes:
    try:
        bodies = rows.canonical(batch)
    except UsageError as error:
        raise _broken(path, f"a row cannot have been frozen: {error}") from error
    if set(batch["split"].to_pylist()) - {split}:
        raise _broken(path, f"a row of another split stands among {split}")
    if not batch["prompt"].equals(rows.prompts(batch)):
        raise _broken(path, "a prompt is not what its messages say")
    return rows.digests(bodies)


def _data_files(manifest: dict[str, Any], split: str | None = None) -> list[tuple[str, str]]:
    """The shards with their split, in order: train, validation, test."""
    found = []
    for wanted in SPLITS if split is None else (split,):
        paths = sorted(path for path in manifest["files"] if path.startswith(f"data/{wanted}-"))
        found += [(path, wanted) for path in paths]
    return found


def _tables(path: Path, columns: Sequence[str] | None) -> Iterator[pa.Table]:
    """A Parquet file one row group at a time."""
    try:
        with storage_errors(path), pq.ParquetFile(path) as file:
            if not file.schema_arrow.equals(EXAMPLES):
                raise _broken(path, "its columns are not those of a snapshot")
            for group in range(file.num_row_groups):
                yield file.read_row_group(
                    group, columns=list(columns) if columns else None, use_threads=False
                )
    except (pa.ArrowException, FileNotFoundError) as error:
        raise _broken(path, f"it cannot be read: {error}") from error
    except OSError as error:
        # Arrow reports damaged pages as an OSError without a number; the others are the disk's.
        if error.errno is not None:
            raise
        raise _broken(path, f"it cannot be read: {error}") from error


def scan(
    where: Where, name: str | None = None, split: str | None = None, columns: Sequence[str] | None = None
) -> Iterator[pa.Table]:
    """The rows of a snapshot, a bounded table at a time, in the order of their digests within each split.

    Rows that were erased on request are left out. The manifest and the sizes of the files are checked; :func:`verify`
    checks their bytes. Raises
    :class:`UsageError` for an unknown split; a split without rows gives no tables.
    """
    if split is not None and split not in SPLITS:
        raise UsageError(f"there is no split {split!r}", next=f"There are {', '.join(SPLITS)}")
    found = show(where, name)
    erased = artifacts.read_erased(found.path)["rows"]
    wanted = columns if columns is None or not erased else list(dict.fromkeys([*columns, "record"]))
    for path, _ in _data_files(found.manifest, split):
        for table in _tables(found.path / path, wanted):
            kept = erasing.without_erased(table, erased)
            yield kept if columns is None else kept.select(list(columns))


def load(where: Where, name: str | None = None, split: str | None = None) -> pa.Table:
    """The rows of a snapshot, or of one split, as one table of EXAMPLES; see :func:`scan`."""
    tables = list(scan(where, name, split))
    return pa.concat_tables(tables) if tables else EXAMPLES.empty_table()


def require_trainable(where: Where, name: str | None = None, *, approved: bool | None = None) -> Snapshot:
    """The snapshot, once it is certain that it may be trained on: what a trainer calls before it reads a row.

    Every byte, every row and the name are verified (:class:`IntegrityError`); every gate must have passed,
    been switched off by the configuration, or have had nothing to measure; where a curator has to approve,
    ``approved`` must be true. A curator's refusal (``approved`` false) always counts. Raises
    :class:`GateRefused` that names what stands in the way.
    """
    found = verify(where, name, deep=True)
    wrong = _objections(found.manifest, approved)
    if not found.splits.get("train"):
        wrong.append("it has no rows to train on")
    if wrong:
        raise GateRefused(
            f"snapshot {found.name[:12]} may not be trained on: {'; '.join(wrong)}",
            where=str(found.path),
            next="Mend what is named and freeze again, or have a curator approve it",
        )
    return found


def _objections(manifest: dict[str, Any], approved: bool | None) -> list[str]:
    results = {result["gate"]: result for result in manifest.get("gates", ())}
    wrong = [f"the {gate} gate was not asked" for gate in GATES if gate not in results]
    for result in results.values():
        pending = result["status"] == PENDING
        if pending and approved is None:
            wrong.append(result["detail"])
        elif not pending and result["status"] not in (PASSED, OFF, NOT_MEASURED):
            wrong.append(f"the {result['gate']} gate refused: {result['detail']}")
    if approved is False:
        wrong.append("a curator has refused it")
    return wrong


def export(where: Where, name: str | None, to: str, out: Path, split: str | None = None) -> int:
    """Write the rows as one JSON object per line, and return their number.

    ``jsonl``: id, prompt and completion as texts. ``trl``: prompt and completion as lists of messages.
    ``chat``: ``messages`` that end with the answer. Each row keeps its split and weight. The file appears
    whole or not at all. Raises :class:`UsageError` for an unknown format.
    """
    if to not in EXPORTS:
        raise UsageError(f"{to!r} is no format of an export", next=f"Choose {', '.join(EXPORTS)}")
    count = 0

    def write(sink: Sink) -> None:
        nonlocal count
        for table in scan(
            where, name, split, ["record", "messages", "prompt", "completion", "split", "weight"]
        ):
            for row in table.to_pylist():
                sink.write(canonical_json(_exported(row, to)) + b"\n")
                count += 1

    write_atomic(out, write)
    return count


def _exported(row: dict[str, Any], to: str) -> dict[str, Any]:
    answer = {"role": "assistant", "content": row["completion"]}
    shape: dict[str, Any] = {
        "jsonl": {"id": row["record"], "prompt": row["prompt"], "completion": row["completion"]},
        "trl": {"prompt": row["messages"], "completion": [answer]},
        "chat": {"messages": [*row["messages"], answer]},
    }[to]
    return {**shape, "split": row["split"], "weight": row["weight"]}


def export_directory(where: Where, name: str | None, out: Path) -> Snapshot:
    """Copy a snapshot's folder to ``out``, verified on both sides: it trains on another machine as it stands.

    Raises :class:`ConflictError` where ``out`` is there and not empty, :class:`IntegrityError` for a damaged
    source.
    """
    found = verify(where, name)
    with storage_errors(out):
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise ConflictError(
                "the folder is not empty", where=str(out), next="Name a folder that does not exist"
            )
        listed = [artifacts.ERASED] if (found.path / artifacts.ERASED).is_file() else []
        for path in [
            *listed,
            *found.manifest["files"],
            artifacts.MANIFEST,
        ]:  # the manifest last: a part of a copy is no copy
            write_atomic(out / path, found.path / path)
    return verify(out, found.name)


def import_directory(path: Path, store: Store, *, dry_run: bool = False) -> Snapshot:
    """Bring a copied snapshot into ``store`` under its own name, once it verifies; one that is there stays.

    With ``dry_run`` it is only verified. Raises :class:`IntegrityError` for a damaged folder; nothing of it
    is then in the store.
    """
    found = verify(path)
    if dry_run:
        return found
    if store.has(KIND, found.name):
        return verify(store, found.name)
    ours = ("schema", "kind", "name", "files", "digest")
    erased = artifacts.read_erased(path)["files"]
    told = {key: value for key, value in found.manifest.items() if key not in ours}
    try:
        for relpath, stated in found.manifest["files"].items():
            made = store.put(KIND, found.name, relpath, path / relpath)
            if made.sha256 not in (stated["sha256"], erased.get(relpath, stated)["sha256"]):
                raise _broken(path / relpath, "the file changed while it was copied")
        folder = store.commit(KIND, found.name, told)
        if (path / artifacts.ERASED).is_file():
            write_atomic(folder / artifacts.ERASED, path / artifacts.ERASED)
    except BaseException:
        store.discard(KIND, found.name)
        raise
    return snapshot_of(folder, store.manifest(KIND, found.name), fresh=True)


def _broken(path: Path, what: str) -> IntegrityError:
    return IntegrityError(
        what, where=str(path), next="Do not use it; restore it from a copy, or freeze the rows again"
    )
