"""Directories of weights that vouch for themselves: a manifest, written last, names every file by its SHA-256.

A directory without a manifest does not exist for Tilth, so a killed training run leaves nothing behind that could be
loaded. The digest in the manifest is the adapter's name; it covers files, data, recipe, base, metrics and versions, but
neither times nor speeds. Nothing here opens a weight file other than to hash it.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson

from curation.errors import ConflictError, IntegrityError, UsageError, storage_errors
from curation.records import canonical_json, digest

MANIFEST = "manifest.json"
LOG = "log"
FORMAT = "tilth-weights/1"
KINDS = ("adapter", "model", "base")
_PARTIAL = ".partial-"
_OUTSIDE = ("digest", "run")  # what the digest does not cover: itself, and times, speeds, places


@contextmanager
def partial(out: Path) -> Iterator[Path]:
    """A folder to write into, beside ``out``; renamed to ``out`` at the end, or removed where the block raises.

    Raises ``ConflictError`` where ``out`` holds something already. What a killed run left is swept by the next one.
    """
    out = Path(out).absolute()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConflictError("there is something already", where=str(out), next="Choose another directory")
    with storage_errors(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        _sweep(out)
        work = out.parent / f"{_PARTIAL}{out.name}-{os.getpid()}"
        work.mkdir()
        try:
            yield work
            os.replace(work, out)
            sync(out.parent)
        finally:
            shutil.rmtree(work, ignore_errors=True)


def _sweep(out: Path) -> None:
    for left in out.parent.glob(f"{_PARTIAL}{out.name}-*"):
        if not _alive(left.name.rpartition("-")[2]):
            shutil.rmtree(left, ignore_errors=True)


def _alive(pid: str) -> bool:
    try:
        os.kill(int(pid), 0)
    except (ValueError, ProcessLookupError):
        return False
    except PermissionError:
        return True
    return int(pid) != os.getpid()


def seal(folder: Path, content: Mapping[str, Any], run: Mapping[str, Any]) -> dict[str, Any]:
    """Hash every file of ``folder`` and write the manifest over them, last; gives the manifest.

    ``content`` is covered by the digest; ``run`` (times, speeds, places) is not.
    """
    with storage_errors(folder):
        manifest = {"format": FORMAT, **content, "files": file_digests(folder), "run": dict(run)}
        manifest["digest"] = manifest_digest(manifest)
        for name in manifest["files"]:
            sync(folder / name)
        write(folder / MANIFEST, orjson.dumps(manifest, option=orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS))
        sync(folder)
    return manifest


def manifest_digest(manifest: Mapping[str, Any]) -> str:
    """The name of an adapter: the digest of its manifest less the digest itself, times, speeds and places."""
    return digest(canonical_json({k: v for k, v in manifest.items() if k not in _OUTSIDE}))


def read(folder: Path | str) -> dict[str, Any]:
    """The manifest of ``folder``, its own digest checked; the files are not.

    Raises ``UsageError`` where there is none, ``IntegrityError`` where it was changed or is not one of ours.
    """
    path = Path(folder) / MANIFEST
    if not path.is_file():
        raise UsageError(
            "this is not a finished adapter or model: it has no manifest",
            where=str(folder),
            next="A training run that was stopped leaves none; train again",
        )
    try:
        manifest = orjson.loads(path.read_bytes())
        known = manifest["format"] == FORMAT and manifest["kind"] in KINDS
        honest = manifest["digest"] == manifest_digest(manifest)
    except (orjson.JSONDecodeError, KeyError, TypeError) as error:
        raise IntegrityError(f"the manifest cannot be read: {error}", where=str(path)) from error
    if not known:
        raise IntegrityError(
            f"unknown manifest {manifest['format']!r} of kind {manifest['kind']!r}",
            where=str(path),
            next=f"This release reads {FORMAT}",
        )
    if not honest:
        raise IntegrityError("the manifest was changed after training", where=str(path), next=_RESTORE)
    return manifest


def verify(folder: Path | str) -> dict[str, Any]:
    """The manifest of ``folder`` after every file was hashed and compared with it.

    Raises ``IntegrityError`` naming the first file that is missing, changed, or there without being listed.
    """
    folder = Path(folder)
    manifest = read(folder)
    refuse_pickles(folder)
    found = file_digests(folder)
    for name in sorted(found.keys() | manifest["files"].keys()):
        _compare(folder / name, found.get(name), manifest["files"].get(name))
    return manifest


def _compare(path: Path, found: Mapping[str, Any] | None, expected: Mapping[str, Any] | None) -> None:
    if found is None:
        raise IntegrityError("the file is missing", where=str(path), next=_RESTORE)
    if expected is None:
        raise IntegrityError("the file is not in the manifest", where=str(path), next="Remove it")
    if dict(found) != dict(expected):
        raise IntegrityError("the file is not the one that was written", where=str(path), next=_RESTORE)


_RESTORE = "Restore it from a backup, or train again"
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".npy", ".dill")


def refuse_pickles(folder: Path) -> None:
    """Raise ``IntegrityError`` naming a file that may hold a pickle: loading one runs its author's code."""
    for path in sorted(Path(folder).rglob("*")):
        if path.suffix.lower() in PICKLES:
            raise IntegrityError(
                "this file may hold a pickle, which runs code when it is loaded",
                where=str(path),
                next="Weights are read from .safetensors alone; convert the file, or remove it",
            )


def file_digests(folder: Path) -> dict[str, dict[str, Any]]:
    """SHA-256 and size in bytes of every file under ``folder`` but its manifest and its log, by relative path.

    The log (:data:`LOG`) tells times and speeds, which two equal trainings do not share; no weight is read from it.
    """
    aside = {MANIFEST, LOG}
    paths = sorted(
        p for p in Path(folder).rglob("*") if p.is_file() and p.relative_to(folder).parts[0] not in aside
    )
    return {p.relative_to(folder).as_posix(): file_digest(p) for p in paths}


def file_digest(path: Path) -> dict[str, Any]:
    """SHA-256 (hexadecimal) and size in bytes of one file."""
    with open(path, "rb") as file:
        return {"sha256": hashlib.file_digest(file, "sha256").hexdigest(), "bytes": path.stat().st_size}


def write(path: Path, data: bytes) -> None:
    """Write a file and wait until the disk has it."""
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def sync(path: Path) -> None:
    """Wait until the disk has a file, or the names in a folder."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
