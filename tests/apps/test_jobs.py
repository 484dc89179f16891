"""A job's adapter comes home: checked against what the workspace froze, registered once with its events, or refused."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest
import torch

from apps import jobs, models, report
from apps.cli.session import Session
from apps.serve import champion
from curation import snapshot, workspace
from curation.errors import GateRefused, IntegrityError, UsageError
from curation.workspace import init, open_workspace
from tests.apps.test_cli import tilth
from tests.apps.test_learner import desk, frozen
from tests.curation.toys import inquiries, write_rows
from training import registry, tracking

torch.set_num_threads(1)

OPTIONS = {"rank": 2, "epochs": 1.0, "lr": 5e-3, "max_length": 64, "seed": 0, "search": 3}


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace ``home`` with a snapshot, and ``job``, trained on an exported copy of it where there is no ledger."""
    here = tmp_path_factory.mktemp("jobs")
    with open_workspace(desk(here / "home"), actor="ana") as opened:
        snapshot.export_directory(opened.store, frozen(opened), here / "carried")
    held = write_rows(
        here / "dev.jsonl",
        [{"prompt": row["prompt"], "completion": row["gold"]} for row in inquiries(8, seed=9)],
    )
    elsewhere = Session(root=here / "elsewhere", quiet=True)
    planned = models.plan_training(
        elsewhere, data=None, snapshot=str(here / "carried"), eval=held, base="bundled", revision="", method="lora",
        out=here / "job",
    )  # fmt: skip
    planned.train(OPTIONS, workspace.silent)
    return here


@pytest.fixture
def home(done: Path, tmp_path: Path) -> Path:
    """Copies of both, to be spoilt."""
    for name in ("home", "job"):
        shutil.copytree(done / name, tmp_path / name)
    return tmp_path


def brought(home: Path, **options: Any) -> dict[str, Any]:
    with open_workspace(home / "home", actor="ana") as opened:
        return jobs.bring(opened, home / "job", **options)


def kinds(home: Path) -> list[str]:
    with open_workspace(home / "home", actor="ana") as opened:
        return [event.kind for event in opened.ledger.events()]


def test_an_adapter_comes_back_with_its_events_once(home: Path) -> None:
    before = kinds(home)
    first, again = brought(home), brought(home)
    assert (first["new"], again["new"], again["events"]) == (True, False, 0)
    merged = kinds(home)[len(before) :]
    assert merged == [*["trial"] * 3, "train-started", "train-finished", jobs.RETURNED]
    with open_workspace(home / "home", actor="ana") as opened:
        (adapter,) = opened.ledger.adapters()
        assert registry.verify(opened.store.root / adapter.path)["digest"] == adapter.digest
        assert tracking.read(opened.store.root / adapter.path / registry.LOG)
        (event,) = opened.ledger.events(jobs.RETURNED)
        assert event.detail["losses"][-1][1] == pytest.approx(min(loss for _, loss in event.detail["losses"]))
        assert not opened.ledger.audit().problems
        assert champion(opened) is None  # it was measured by nobody, so it suggests nothing to people


def test_status_report_and_commands_know_it(home: Path) -> None:
    words = ("--workspace", "home", "train", "--bring", "job")
    tried = tilth(*words, "--dry-run", cwd=home)
    assert (tried["new"], tilth("--workspace", "home", "status", cwd=home)["adapters"]) == (True, 0)
    made = tilth(*words, cwd=home)
    assert tilth("--workspace", "home", "status", cwd=home)["adapters"] == 1
    assert models.find_adapter(Session(root=home / "home"), made["adapter"][:12]).is_dir()
    with open_workspace(home / "home", actor="ana") as opened:
        page = report.render(report.gather(opened, "people"))
    assert "Trained elsewhere" in page
    assert made["adapter"][:12] in page
    tilth(*words, "--out", "x", cwd=home, code=2)


def _flip(home: Path) -> None:
    path = home / "job" / "adapter_model.safetensors"
    body = bytearray(path.read_bytes())
    body[-1] ^= 1
    path.write_bytes(body)


def _resealed(home: Path, **changes: Any) -> None:
    """A manifest that vouches for itself and lies about something else."""
    path = home / "job" / registry.MANIFEST
    manifest = orjson.loads(path.read_bytes()) | changes
    path.write_bytes(orjson.dumps(manifest | {"digest": registry.manifest_digest(manifest)}))


def _pickle(home: Path) -> None:
    (home / "job" / "extra.bin").write_bytes(b"x")


def _break_log(home: Path) -> None:
    (home / "job" / registry.LOG / tracking.JSONL).write_bytes(b"{not json}\n")


def _break_snapshot(home: Path) -> None:
    path = next((home / "home").rglob("data/train-*"))
    body = bytearray(path.read_bytes())
    body[len(body) // 2] ^= 1
    path.chmod(0o644)
    path.write_bytes(body)


def _refuse(home: Path) -> None:
    with open_workspace(home / "home", actor="ana") as opened:
        opened.ledger.approve(
            opened.ledger.snapshots()[0].name, "refused", by="ana", reason="on second thoughts"
        )


OTHER_BASE = {"ref": "bundled", "revision": None, "digest": "0" * 64}


@pytest.mark.parametrize(
    ("spoil", "error", "words"),
    [
        (_flip, IntegrityError, "not the one that was written"),
        (_pickle, IntegrityError, "pickle"),
        (_break_log, IntegrityError, "log cannot be read"),
        (_break_snapshot, IntegrityError, "data/train"),
        (_refuse, GateRefused, "a curator has refused it"),
        (lambda home: _resealed(home, snapshot="f" * 64), UsageError, "unknown in this workspace"),
        (lambda home: _resealed(home, snapshot=None), UsageError, "not trained on a snapshot"),
        (lambda home: _resealed(home, data="0" * 64), IntegrityError, "not trained on the rows"),
        (lambda home: _resealed(home, base=OTHER_BASE), IntegrityError, "another base here"),
    ],
)
def test_what_is_not_what_it_says_is_refused_and_nothing_is_registered(
    home: Path, spoil: Callable[[Path], None], error: type[Exception], words: str
) -> None:
    before = kinds(home)
    spoil(home)
    with pytest.raises(error, match=words):
        brought(home)
    assert kinds(home) == before
    assert not list((home / "home").rglob("adapter_model.safetensors"))
    with open_workspace(home / "home", actor="ana") as opened:
        assert opened.ledger.adapters() == []


def test_a_workspace_that_froze_something_else_does_not_take_it(home: Path) -> None:
    init(home / "other", actor="ben", name="other")
    with (
        open_workspace(home / "other", actor="ben") as opened,
        pytest.raises(UsageError, match="unknown in this workspace"),
    ):
        jobs.bring(opened, home / "job")


def test_without_the_check_of_rows_other_rows_would_pass(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _resealed(home, data="0" * 64)
    monkeypatch.setattr(jobs, "_check_rows", lambda *_: None)
    assert brought(home)["new"]


def test_a_kill_between_copy_and_ledger_leaves_a_job_that_can_be_brought_again(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from curation.ledger.registry import Registry

    def killed(*_: Any) -> bool:
        raise KeyboardInterrupt

    before = kinds(home)
    with monkeypatch.context() as patched:
        patched.setattr(Registry, "add_returned", killed)
        with pytest.raises(KeyboardInterrupt):
            brought(home)
    assert kinds(home) == before
    assert brought(home)["new"]
    assert kinds(home).count(jobs.RETURNED) == 1
