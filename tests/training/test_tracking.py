"""Where a run is followed: MLflow for real in a folder; servers only where they are listed; a lost tracker stops no run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from apps import models
from apps.cli.session import Session
from curation import config, health, workspace
from curation.errors import MissingExtra, RemoteUnavailable, UsageError
from tests.training.conftest import rows
from tests.training.test_commands import OPTIONS, plan
from training import registry, tracking
from training.recipe import Recipe
from training.tracking import Destinations, Tracker, destinations
from training.train import train

QUICK = Recipe(rank=2, max_steps=6, lr=5e-3, batch=4, max_length=64)
PRIVATE = {"train": {"tracking": ["mlflow"], "mlflow_store": "https://track.example.org"}}


def asked(raw: dict[str, Any], root: Path, allow: tuple[str, ...] = ()) -> config.Config:
    return config.parse({**raw, "egress": {"allow": list(allow)}}, root)


class Recorder:
    """A board that remembers, and fails where it is told to."""

    def __init__(self, fails_at: int | None = None) -> None:
        self.heard: list[tuple[str, int]] = []
        self.failed: bool | None = None
        self.fails_at = fails_at

    def note(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        if step == self.fails_at:
            raise ConnectionError("the server is gone")
        self.heard.append((kind, step))

    def close(self, failed: bool) -> None:
        self.failed = failed


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    made = Recorder()
    monkeypatch.setattr(tracking, "BOARDS", {"mlflow": lambda *_: made})
    return made


# ------------------------------------------------------------------------------------------------ refusals


def test_a_server_that_is_not_listed_is_refused_and_one_that_is_listed_or_local_is_not(tmp_path):
    pytest.importorskip("mlflow")
    with pytest.raises(UsageError, match=r"track\.example\.org is beyond this machine and not listed"):
        destinations(asked(PRIVATE, tmp_path))
    assert (
        destinations(asked(PRIVATE, tmp_path, ("track.example.org",))).mlflow == "https://track.example.org"
    )
    local = {"train": {"tracking": ["mlflow"], "mlflow_store": "http://127.0.0.1:5000/"}}
    assert destinations(asked(local, tmp_path)).mlflow_uri == "http://127.0.0.1:5000"
    folder = destinations(asked({"train": {"tracking": ["mlflow"]}}, tmp_path))
    assert folder.mlflow_uri == (tmp_path / "mlruns").resolve().as_uri()


@pytest.mark.parametrize("store", ["databricks://x", "sqlite:///x.db", "http://me:secret@127.0.0.1"])
def test_a_store_that_is_neither_folder_nor_server_is_refused_without_its_password(tmp_path, store):
    with pytest.raises(UsageError, match="no address of a server") as refused:
        destinations(asked({"train": {"tracking": ["mlflow"], "mlflow_store": store}}, tmp_path))
    assert "secret" not in str(refused.value)


def test_a_server_of_a_tracker_that_nobody_asked_for_is_not_looked_at(tmp_path):
    made = {"train": {"mlflow_store": "https://track.example.org", "wandb_server": "https://api.wandb.ai"}}
    assert destinations(asked(made, tmp_path)).names == ("tensorboard",)


def test_weights_and_biases_is_offline_unless_a_listed_server_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(tracking, "_installed", lambda name: True)
    offline = {"train": {"tracking": ["wandb"]}}
    assert destinations(asked(offline, tmp_path)).wandb == ""
    online = {"train": {"tracking": ["wandb"], "wandb_server": "https://api.wandb.ai"}}
    with pytest.raises(UsageError, match=r"api\.wandb\.ai is beyond this machine"):
        destinations(asked(online, tmp_path))
    assert destinations(asked(online, tmp_path, ("api.wandb.ai",))).wandb == "https://api.wandb.ai"


def test_a_package_that_is_missing_is_named_with_its_extra(tmp_path, monkeypatch):
    monkeypatch.setattr(tracking, "_installed", lambda name: False)
    for name, package in (("mlflow", "mlflow-skinny"), ("wandb", "wandb")):
        with pytest.raises(MissingExtra, match=rf"{package} is not installed.*tilth\[{name}\]"):
            destinations(asked({"train": {"tracking": [name]}}, tmp_path))


def test_a_folder_of_a_packages_name_is_no_package(tmp_path, monkeypatch):
    (tmp_path / "quite_a_tracker").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    assert not tracking._installed("quite_a_tracker")
    assert tracking._installed("orjson")


def test_doctor_names_every_place_and_calls_an_unlisted_one_bad(tmp_path):
    def found(allow: tuple[str, ...]) -> dict[str, tuple[str, str]]:
        made = asked(
            {"train": {**PRIVATE["train"], "tracking": ["tensorboard", "mlflow", "wandb"]}}, tmp_path, allow
        )
        return {check.name: (check.state, check.detail) for check in health._egress(made)}

    listed = found(("track.example.org",))
    assert listed["trainings to tensorboard"][0] == "good"
    assert listed["trainings to mlflow"] == ("note", "https://track.example.org")
    assert listed["trainings to wandb"] == ("good", "wandb, offline, on this machine")
    assert found(())["trainings to mlflow"][0] == "bad"


def test_a_training_of_a_workspace_that_asks_for_an_unlisted_server_makes_nothing(base, tmp_path):
    (tmp_path / config.FILE).write_text(
        '[train]\ntracking = ["mlflow"]\nmlflow_store = "https://track.example.org"\n'
    )
    planned = plan(tmp_path, base, rows(8))
    planned.session = Session(root=tmp_path, quiet=True)
    with pytest.raises(UsageError, match="not listed"):
        planned.train(OPTIONS, workspace.silent)
    assert not (tmp_path / "out").exists()


# ------------------------------------------------------------------------------------------------- following


def test_a_training_is_followed_in_a_real_mlflow_folder(base, tmp_path):
    mlflow = pytest.importorskip("mlflow")
    (tmp_path / config.FILE).write_text('[train]\ntracking = ["mlflow"]\n')
    planned: models.Plan = plan(tmp_path, base, rows(16))
    planned.session = Session(root=tmp_path, quiet=True)
    planned.train(OPTIONS, workspace.silent)
    client = mlflow.tracking.MlflowClient(tracking_uri=(tmp_path / "mlruns").as_uri())
    (run,) = client.search_runs([client.get_experiment_by_name("tilth").experiment_id])
    manifest, log = registry.read(tmp_path / "out"), tracking.read(tmp_path / "out" / registry.LOG)
    assert run.info.status == "FINISHED"
    assert run.data.params["recipe.rank"] == "2"
    assert run.data.params["data"] == manifest["data"]
    losses = [line["loss"] for line in log if line["kind"] == "step"]
    assert [m.value for m in client.get_metric_history(run.info.run_id, "step/loss")] == losses
    assert "end/minutes" in run.data.metrics
    stored = b"".join(p.read_bytes() for p in (tmp_path / "mlruns").rglob("*") if p.is_file())
    assert not any(row["prompt"].encode() in stored for row in rows(16))


class Stopped(Exception):
    """Stands for a kill."""


def test_a_run_that_goes_on_after_a_stop_goes_on_in_the_same_mlflow_run(base, tmp_path):
    mlflow = pytest.importorskip("mlflow")
    to = Destinations(names=("mlflow",), folder=tmp_path)

    def stop(told: dict[str, Any]) -> None:
        if told.get("step") == 4:
            raise Stopped

    def run(seed: int, **more: Any) -> Any:
        return train(rows(16), Recipe(**{**vars(QUICK), "seed": seed}), base, tmp_path / f"out-{seed}", eval_examples=rows(2, 1),
                     save_every=2, track=to, **more)  # fmt: skip

    with pytest.raises(Stopped):
        run(0, progress=stop)
    client = mlflow.tracking.MlflowClient(tracking_uri=to.mlflow_uri)
    experiment = client.get_experiment_by_name("tilth").experiment_id
    assert [r.info.status for r in client.search_runs([experiment])] == ["FAILED"]
    run(0)
    (whole,) = client.search_runs([experiment])
    assert whole.info.status == "FINISHED"
    assert {m.step for m in client.get_metric_history(whole.info.run_id, "step/loss")} == {1, 2, 3, 4, 5, 6}
    run(1)
    assert len(client.search_runs([experiment])) == 2  # another recipe is another run


def test_a_server_that_does_not_answer_is_an_error_before_anything_is_trained(base, tmp_path, monkeypatch):
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    to = Destinations(names=("mlflow",), folder=tmp_path, mlflow="http://127.0.0.1:9")
    steps: list[Any] = []
    with pytest.raises(RemoteUnavailable, match="MLflow did not take the run"):
        train(rows(8), QUICK, base, tmp_path / "out", track=to, progress=steps.append)
    assert not steps
    assert not (tmp_path / "out").exists()


def test_a_tracker_that_fails_half_way_is_told_no_more_and_the_training_goes_on(base, tmp_path, recorder):
    recorder.fails_at = 3
    said: list[str] = []
    made = train(
        rows(16), QUICK, base, tmp_path / "out", track=Destinations(names=("mlflow",)), say=said.append
    )
    assert made.steps == 6
    assert recorder.heard[-1] == ("step", 2)
    lost = [line for line in tracking.read(tmp_path / "out" / registry.LOG) if line["kind"] == tracking.LOST]
    assert [(line["tracker"], line["step"]) for line in lost] == [("mlflow", 3)]
    assert any("the server is gone" in line for line in said)


def test_a_tracker_hears_whether_the_run_failed(base, tmp_path, recorder):
    train(rows(8), QUICK, base, tmp_path / "good", track=Destinations(names=("mlflow",)))
    assert recorder.failed is False

    def fail(told: dict[str, Any]) -> None:
        raise Stopped

    with pytest.raises(Stopped):
        train(rows(8), QUICK, base, tmp_path / "bad", track=Destinations(names=("mlflow",)), progress=fail)
    assert recorder.failed is True


def test_trackers_are_imported_only_where_they_are_asked_for(tmp_path):
    program = (
        "import sys; from pathlib import Path; from training import tracking, train\n"
        f"tracking.Tracker(Path({str(tmp_path)!r})).close()\n"
        "print([name for name in ('mlflow', 'wandb') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_what_the_packages_send_home_by_themselves_is_switched_off(monkeypatch):
    utils = pytest.importorskip("mlflow.telemetry.utils")
    monkeypatch.setattr(os, "environ", dict(os.environ) | {"MLFLOW_DISABLE_TELEMETRY": "false"})
    tracking._configure()
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"
    assert os.environ["WANDB_ERROR_REPORTING"] == "false"
    assert utils.is_telemetry_disabled()


# ------------------------------------------------------------------------------------------ Weights & Biases


def test_weights_and_biases_is_begun_offline_told_and_finished(tmp_path, monkeypatch):
    """Against a recorder with the calls of the package's documented interface; the package itself is optional."""
    calls: list[tuple[str, Any]] = []
    run = SimpleNamespace(
        config=SimpleNamespace(update=lambda values: calls.append(("config", values))),
        log=lambda values, step: calls.append(("log", (values, step))),
        finish=lambda exit_code: calls.append(("finish", exit_code)),
    )

    def init(**given: Any) -> Any:
        calls.append(("init", given))
        return run

    fake = SimpleNamespace(init=init, Settings=lambda **given: given, Error=RuntimeError)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    tracker = Tracker(tmp_path / "log", "a" * 64, Destinations(names=("wandb",), folder=tmp_path))
    tracker.note("run", 0, {"recipe": {"rank": 2}})
    tracker.note("step", 1, {"loss": 0.5, "word": "x"})
    tracker.close(failed=True)
    names = [name for name, _ in calls]
    assert names == ["init", "config", "log", "finish"]
    begun = calls[0][1]
    assert (begun["mode"], begun["dir"], "base_url" in begun["settings"]) == ("offline", str(tmp_path), False)
    assert calls[1:] == [("config", {"recipe.rank": 2}), ("log", ({"step/loss": 0.5}, 1)), ("finish", 1)]
    Tracker(tmp_path / "log", "b", Destinations(("wandb",), tmp_path, wandb="http://127.0.0.1:8080"))
    assert (calls[-1][1]["mode"], calls[-1][1]["settings"]["base_url"]) == ("online", "http://127.0.0.1:8080")


@pytest.mark.slow  # W&B is no part of what `make setup` installs
def test_weights_and_biases_writes_its_offline_folder(tmp_path):
    pytest.importorskip("wandb")
    program = (
        "from pathlib import Path; from training.tracking import Destinations, Tracker\n"
        f"here = Path({str(tmp_path)!r})\n"
        "tracker = Tracker(here / 'log', 'a' * 64, Destinations(('wandb',), here))\n"
        "tracker.note('run', 0, {'recipe': {'rank': 2}})\n"
        "tracker.note('step', 1, {'loss': 0.5})\n"
        "tracker.close()\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)
    assert list((tmp_path / "wandb").glob("offline-run-*/*.wandb"))
    assert [json.loads(line)["kind"] for line in (tmp_path / "log" / tracking.JSONL).open()] == [
        "run",
        "step",
    ]
