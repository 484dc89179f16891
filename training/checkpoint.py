"""Checkpoints that a kill cannot spoil: whole or not there, bound to one run, without pickles.

A checkpoint is a folder of tensors (safetensors) and one JSON file, written beside, synced, sealed by a manifest that
holds the SHA-256 of each file and is written last, and renamed into place. What was cut off has no manifest; what was
changed fails its hashes; either way the one before is taken. A checkpoint of other rows, another recipe or base is
not this run's and never taken.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from curation.errors import ConflictError, IntegrityError, storage_errors
from training import registry

KEPT = 2
"""How many checkpoints are kept: the newest, and the one to fall back to."""

_MARKER = "complete.json"
_STATE = "state.json"
_TENSORS = "tensors.safetensors"


@dataclass(frozen=True)
class Saved:
    """A checkpoint as it was read: tensors by name, and what JSON holds."""

    tensors: Mapping[str, torch.Tensor]
    state: Mapping[str, Any]


@dataclass(frozen=True)
class Keeper:
    """The checkpoints of one run, in ``folder``; ``run`` is the digest of rows, recipe and base that they belong to."""

    folder: Path
    run: str

    def save(self, step: int, tensors: Mapping[str, torch.Tensor], state: Mapping[str, Any]) -> None:
        """Write the checkpoint of ``step``, then drop all but the newest :data:`KEPT`.

        Raises :class:`curation.errors.StorageFailed` where the disk is full; older checkpoints then still stand.
        """
        final, work = self.folder / f"step-{step:09d}", self.folder / f".step-{step:09d}"
        with storage_errors(self.folder):
            shutil.rmtree(work, ignore_errors=True)
            work.mkdir(parents=True)
            try:
                kept = {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}
                _save(kept, work / _TENSORS)
                registry.write(work / _STATE, orjson.dumps({**state, "step": step}))
                registry.sync(work / _TENSORS)
                seal = {"run": self.run, "files": registry.file_digests(work)}
                registry.write(work / _MARKER, orjson.dumps(seal))
                registry.sync(work)
                shutil.rmtree(final, ignore_errors=True)
                os.replace(work, final)
                registry.sync(self.folder)
            except BaseException:
                shutil.rmtree(work, ignore_errors=True)
                raise
        for old in self._found()[KEPT:]:
            shutil.rmtree(old, ignore_errors=True)

    def newest(self) -> Saved | None:
        """The newest whole checkpoint of this run, or None; broken and foreign ones are passed over."""
        return next((saved for path in self._found() if (saved := self._read(path))), None)

    def _found(self) -> list[Path]:
        return sorted(self.folder.glob("step-*"), reverse=True)

    def _read(self, path: Path) -> Saved | None:
        try:
            seal = orjson.loads((path / _MARKER).read_bytes())
            registry.refuse_pickles(path)
            files = registry.file_digests(path)
            files.pop(_MARKER, None)
            if seal["run"] != self.run or files != seal["files"]:
                return None
            state = orjson.loads((path / _STATE).read_bytes())
            return Saved(load_file(path / _TENSORS), state)
        except (OSError, KeyError, TypeError, orjson.JSONDecodeError, SafetensorError, IntegrityError):
            return None

    def forget(self) -> None:
        """Remove every checkpoint: the run is done, or not worth going on with."""
        for path in [*self.folder.glob("step-*"), *self.folder.glob(".step-*")]:
            shutil.rmtree(path, ignore_errors=True)


def _save(tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    try:
        save_file(dict(tensors), path)
    except SafetensorError as error:  # it wraps the operating system's words, and loses their number
        if "No space left" in str(error):
            raise OSError(28, "No space left on device") from error
        raise


def place_of(out: Path) -> Path:
    """The folder beside ``out`` where a run keeps its checkpoints and its log."""
    return out.absolute().parent / f".training-{out.name}"


@contextmanager
def workplace(out: Path) -> Iterator[Path]:
    """:func:`place_of` ``out``, for one process at a time.

    Removed when the block ends well, or where it holds no checkpoint to go on from. Raises ``ConflictError`` while
    another process trains into the same ``out``; the lock is the operating system's, so a killed process holds nothing.
    """
    folder = place_of(out)
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = open(folder / "lock", "w")  # noqa: SIM115
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConflictError(
                "another process trains into this folder",
                where=str(out),
                next="Wait for it, or choose another --out",
            ) from None
        try:
            yield folder
        except BaseException:
            if not any(folder.glob("step-*")):
                shutil.rmtree(folder, ignore_errors=True)
            raise
        shutil.rmtree(folder, ignore_errors=True)


# ------------------------------------------------------------------------------------------ optimisers


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """An optimiser's state as named tensors, and the rest of it as JSON; both by their path in the state."""
    tensors: dict[str, torch.Tensor] = {}
    plain: dict[str, Any] = {}
    for path, value in _leaves(optimizer.state_dict()["state"], ""):
        if isinstance(value, torch.Tensor):
            tensors[_OPTIMIZER + path] = value
        else:
            plain[path] = value
    return tensors, plain


_OPTIMIZER = "optimizer"


def _leaves(state: Mapping[Any, Any], path: str) -> Iterator[tuple[str, Any]]:
    """Every value of nested mappings with its path (8-bit optimisers nest their scales)."""
    for key, value in state.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{path}/{key}")
        else:
            yield f"{path}/{key}", value


def restore_optimizer(
    optimizer: torch.optim.Optimizer, tensors: Mapping[str, torch.Tensor], plain: Mapping[str, Any]
) -> None:
    """Give an optimiser of the same parameters back the state that :func:`optimizer_tensors` took."""
    own = {n.removeprefix(_OPTIMIZER): t for n, t in tensors.items() if n.startswith(f"{_OPTIMIZER}/")}
    state: dict[int, dict[str, Any]] = {}
    for path, value in {**own, **plain}.items():
        _, index, *inner, last = path.split("/")
        place = state.setdefault(int(index), {})
        for key in inner:
            place = place.setdefault(key, {})
        place[last] = value
    if state:
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
