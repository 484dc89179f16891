"""What a run tells while it trains: a line of JSON per moment, and the same to the trackers that were asked for.

The JSON lines are always written. They lie with the checkpoints while the run goes on, so that they survive a kill, and
with the adapter afterwards; they are no part of its name. TensorBoard's file lies beside them. MLflow and Weights & Biases
get the recipe, digests, hardware and numbers, never a text of the data. They write to folders of this machine unless a
server was named, and a server beyond it must be listed under ``[egress]``. Their packages are imported where they were
asked for and nowhere else, with what they would send home by themselves switched off.
"""

from __future__ import annotations

import os
import platform
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import orjson
import torch

from curation.config import Config
from curation.egress import check_url
from curation.errors import MissingExtra, RemoteUnavailable

JSONL = "events.jsonl"
LOST = "tracker-lost"
TRIAL = "trial"
MLFLOW_RUN = "mlflow-run.json"
PROJECT = "tilth"
FLUSH_SECONDS = 5.0
"""How long numbers wait before they go to MLflow together: a request per update would cost more than the update."""

_QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ALLOW_HTTP_REDIRECTS": "false",  # a listed host must not pass what it gets on to another one
    "MLFLOW_ALLOW_FILE_STORE": "true",  # else MLflow refuses a folder: its makers prefer a database
    "WANDB_ERROR_REPORTING": "false",
}
_PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}


@dataclass(frozen=True)
class Destinations:
    """Where a run is followed beside its JSON lines.

    ``names`` are of ``tensorboard``, ``mlflow`` and ``wandb``; ``folder`` is where what stays on this machine goes;
    ``mlflow`` a folder's path below it, or a server; ``wandb`` a server, or empty for no connection at all.
    """

    names: tuple[str, ...] = ("tensorboard",)
    folder: Path = Path()
    mlflow: str = "mlruns"
    wandb: str = ""

    @property
    def mlflow_uri(self) -> str:
        """The store as MLflow wants it named."""
        return self.mlflow if ":" in self.mlflow else (self.folder / self.mlflow).resolve().as_uri()


def destinations(config: Config) -> Destinations:
    """What a workspace's configuration asks for.

    Raises ``UsageError`` where a server is beyond this machine and not listed, and ``MissingExtra`` where a package is
    not installed: both before anything is trained.
    """
    servers = {name: check_url(url, config.egress.allow) for name, url in config.tracking_servers.items()}
    for name, (extra, package) in _PACKAGES.items():
        if name in config.train.tracking and not _installed(name):
            raise MissingExtra(extra, package)
    return Destinations(
        names=config.train.tracking,
        folder=config.root,
        mlflow=servers.get("mlflow", config.train.mlflow_store),
        wandb=servers.get("wandb", ""),
    )


def _installed(name: str) -> bool:
    found = find_spec(name)
    return (
        found is not None and found.origin is not None
    )  # a folder of that name, as W&B makes one, is no package


_PACKAGES = {"mlflow": ("mlflow", "mlflow-skinny"), "wandb": ("wandb", "wandb")}


class Board(Protocol):
    """One place that a run is followed on."""

    def note(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        """One moment of the run; of kind ``run`` what it is made of, else numbers."""

    def close(self, failed: bool) -> None:
        """Send what is left, and how the run ended."""


class Tracker:
    """Appends to ``folder``/``events.jsonl``, and tells every board.

    ``name`` is the run's (what decides its outcome): a run that goes on after a kill goes on in the same MLflow run. A
    board that fails when the run begins is an error; one that fails later is told of no more, and the log and ``say``
    hear why: hours of training are worth more than a curve of them.
    """

    def __init__(
        self,
        folder: Path,
        name: str = "",
        to: Destinations | None = None,
        say: Callable[[str], None] | None = None,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._say = say or (lambda _: None)
        self._boards = {one: BOARDS[one](folder, name, to) for one in to.names} if to else _by_default(folder)
        self._file = open(folder / JSONL, "ab")  # noqa: SIM115

    def note(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        """One moment of the run; numbers also become scalars ``kind/name``."""
        self._write(kind, step, values)
        for name in list(self._boards):
            self._tell(name, step, lambda board: board.note(kind, step, values))

    def close(self, failed: bool = False) -> None:
        """Write what is left."""
        for name in list(self._boards):
            self._tell(name, 0, lambda board: board.close(failed))
        self._file.close()

    def _write(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        line = {"time": time.time(), "kind": kind, "step": step, **values}
        self._file.write(orjson.dumps(line, option=orjson.OPT_NON_STR_KEYS, default=str) + b"\n")
        self._file.flush()

    def _tell(self, name: str, step: int, what: Callable[[Board], None]) -> None:
        try:
            what(self._boards[name])
        except Exception as error:  # whatever a tracker's package raises, the training goes on
            del self._boards[name]
            why = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no reason given'}"
            self._write(LOST, step, {"tracker": name, "why": why})
            self._say(f"{name} is told no more of this run, which goes on: {why}")


def numbers(kind: str, values: Mapping[str, Any]) -> dict[str, float]:
    """The numbers among ``values`` by the name ``kind/name``; truth values are none.

    >>> numbers("step", {"loss": 2, "note": "x", "packed": True})
    {'step/loss': 2.0}
    """
    return {
        f"{kind}/{name}": float(value)
        for name, value in values.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values by dotted names.

    >>> flat({"recipe": {"rank": 4, "lr": None}, "rows": 9})
    {'recipe.rank': 4, 'recipe.lr': None, 'rows': 9}
    """
    made: dict[str, Any] = {}
    for name, value in values.items():
        made |= flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return made


# ------------------------------------------------------------------------------------------------ the boards


class TensorBoard:
    """Scalars in a TensorBoard file, in the run's own log."""

    def __init__(self, folder: Path, name: str, to: Destinations) -> None:
        try:
            from tensorboard.summary.writer.event_file_writer import EventFileWriter
        except ImportError:
            raise MissingExtra("train", "tensorboard") from None
        self._writer = EventFileWriter(str(folder))

    def note(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        """Numbers as scalars."""
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        for tag, value in numbers(kind, values).items():
            summary = Summary(value=[Summary.Value(tag=tag, simple_value=value)])
            self._writer.add_event(Event(wall_time=time.time(), step=step, summary=summary))

    def close(self, failed: bool) -> None:
        """Write what is left."""
        self._writer.close()


def _by_default(folder: Path) -> dict[str, Board]:
    """TensorBoard where it is installed: nobody asked for it, and the JSON lines hold the same."""
    with suppress(MissingExtra):
        return {"tensorboard": TensorBoard(folder, "", Destinations())}
    return {}


class MLflow:
    """A run of the experiment ``tilth``: recipe, digests and hardware as parameters, numbers as metrics.

    Through ``MlflowClient`` and with the store named outright, so that neither a global run of the caller's nor a store
    named in the environment is touched.
    """

    def __init__(self, folder: Path, name: str, to: Destinations) -> None:
        _configure()
        try:
            from mlflow.exceptions import MlflowException
            from mlflow.tracking import MlflowClient
        except ImportError:
            raise MissingExtra(*_PACKAGES["mlflow"]) from None
        uri = to.mlflow_uri
        self._client = MlflowClient(tracking_uri=uri, registry_uri=uri)
        self._waiting: list[Any] = []
        self._sent = time.monotonic()
        try:
            self._run, self._new = _mlflow_run(self._client, folder / MLFLOW_RUN, name, uri)
        except MlflowException as error:
            raise RemoteUnavailable(
                f"MLflow did not take the run: {str(error).splitlines()[0]}",
                where=uri,
                next='Start the server, or take "mlflow" out of [train] tracking',
            ) from error

    def note(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        """Parameters at the run's beginning, metrics afterwards."""
        from mlflow.entities import Metric, Param

        if kind == "run":
            if self._new:  # the hardware may be another one now, and a parameter is written once
                told = [Param(key, str(value)) for key, value in flat(values).items()]
                self._client.log_batch(self._run, params=told)
            return
        now = int(time.time() * 1000)
        self._waiting += [Metric(key, value, now, step) for key, value in numbers(kind, values).items()]
        if time.monotonic() - self._sent > FLUSH_SECONDS:
            self._send()

    def _send(self) -> None:
        from mlflow.utils.validation import MAX_METRICS_PER_BATCH as MOST

        for i in range(0, len(self._waiting), MOST):
            self._client.log_batch(self._run, metrics=self._waiting[i : i + MOST])
        self._waiting, self._sent = [], time.monotonic()

    def close(self, failed: bool) -> None:
        """Send what waits, and say how it ended."""
        self._send()
        self._client.set_terminated(self._run, "FAILED" if failed else "FINISHED")


def _mlflow_run(client: Any, note: Path, name: str, uri: str) -> tuple[str, bool]:
    """The run's id, and whether it is new: ``note`` holds the one that was begun for this name and store."""
    ours = {"name": name, "uri": uri}
    if note.is_file():
        known = orjson.loads(note.read_bytes())
        if known | ours == known:
            client.update_run(known["run"], status="RUNNING")
            return str(known["run"]), False
    found = client.get_experiment_by_name(PROJECT)
    experiment = found.experiment_id if found else client.create_experiment(PROJECT)
    made = client.create_run(experiment, run_name=name[:12] or None, tags={"tilth.run": name})
    note.write_bytes(orjson.dumps({**ours, "run": made.info.run_id}))
    return str(made.info.run_id), True


class WeightsAndBiases:
    """A run of the project ``tilth``, offline unless a server was named; ``wandb sync`` sends it later.

    The machine's other facts, its git state, its console and its code are not collected.
    """

    def __init__(self, folder: Path, name: str, to: Destinations) -> None:
        _configure()
        try:
            import wandb
        except ImportError:
            raise MissingExtra(*_PACKAGES["wandb"]) from None
        more = {"base_url": to.wandb} if to.wandb else {}
        settings = wandb.Settings(
            console="off", disable_git=True, disable_code=True, silent=True, x_disable_stats=True,
            x_disable_meta=True, x_disable_machine_info=True, reinit="create_new", **more
        )  # fmt: skip
        try:
            self._run = wandb.init(
                project=PROJECT,
                name=name[:12] or None,
                group=name or None,
                dir=str(to.folder),
                mode="online" if to.wandb else "offline",
                settings=settings,
            )
        except (wandb.Error, OSError) as error:
            raise RemoteUnavailable(
                f"Weights & Biases did not take the run: {error}",
                where=to.wandb or str(to.folder),
                next='Set WANDB_API_KEY, or take "wandb" out of [train] tracking',
            ) from error

    def note(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        """The configuration at the run's beginning, numbers afterwards."""
        if kind == "run":
            self._run.config.update(flat(values))
        else:
            self._run.log(numbers(kind, values), step=step)

    def close(self, failed: bool) -> None:
        """Write what is left, and say how it ended."""
        self._run.finish(exit_code=int(failed))


BOARDS: Mapping[str, Callable[[Path, str, Destinations], Board]] = {
    "tensorboard": TensorBoard,
    "mlflow": MLflow,
    "wandb": WeightsAndBiases,
}


def _configure() -> None:
    """What the packages read from the environment when they are imported."""
    os.environ.update(_QUIET)
    for name, value in _PATIENCE.items():
        os.environ.setdefault(name, value)


# ---------------------------------------------------------------------------------------------- the log


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
