"""What a run tells while it trains: a line of JSON per moment, and the same as TensorBoard scalars. All on this machine.

The log lies with the checkpoints while the run goes on, so that it survives a kill, and with the adapter afterwards. It
is no part of the adapter's name.
"""

from __future__ import annotations

import os
import platform
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson
import torch

JSONL = "events.jsonl"


class Tracker:
    """Appends to ``folder``: ``events.jsonl``, and a TensorBoard file where that package is installed."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._file = open(folder / JSONL, "ab")  # noqa: SIM115
        self._board = _board(folder)

    def note(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        """One moment of the run; numbers also become scalars ``kind/name``."""
        line = {"time": time.time(), "kind": kind, "step": step, **values}
        self._file.write(orjson.dumps(line, option=orjson.OPT_NON_STR_KEYS, default=str) + b"\n")
        self._file.flush()
        if self._board:
            for name, value in values.items():
                if isinstance(value, int | float):
                    self._board.add_event(_scalar(f"{kind}/{name}", float(value), step))

    def close(self) -> None:
        """Write what is left."""
        self._file.close()
        if self._board:
            self._board.close()


def _board(folder: Path) -> Any:
    try:
        from tensorboard.summary.writer.event_file_writer import EventFileWriter
    except ImportError:  # an optional reader's format; the JSON lines hold the same
        return None
    return EventFileWriter(str(folder))


def _scalar(name: str, value: float, step: int) -> Any:
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary

    summary = Summary(value=[Summary.Value(tag=name, simple_value=value)])
    return Event(wall_time=time.time(), step=step, summary=summary)


def hardware() -> dict[str, Any]:
    """What the run was made on."""
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "machine": platform.machine(),
        "system": platform.platform(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpus": gpus,
    }


def keep(log: Path, folder: Path) -> None:
    """Put a finished run's log beside its weights."""
    if log.is_dir():
        shutil.copytree(log, folder, dirs_exist_ok=True)


def read(folder: Path) -> list[dict[str, Any]]:
    """The moments of a run's log, in order; a line that a kill cut off is passed over."""
    path = Path(folder) / JSONL
    lines = path.read_bytes().splitlines() if path.is_file() else []
    return [orjson.loads(line) for line in lines if line.startswith(b"{") and line.endswith(b"}")]
