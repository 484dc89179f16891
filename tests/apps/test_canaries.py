"""Two hundred canaries through the whole pipeline at DEBUG: none may sing outside the ledger."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.bench.pii import Values

ROOT = Path(__file__).resolve().parents[2]
CANARIES = 200
# The same entry point as `tilth`, with every logger at DEBUG and on stderr.
LOUD = """
import logging
logging.basicConfig(level=logging.DEBUG)
logging.getLogger("canaries").debug("is heard")
from apps.cli import main
main()
"""
SAID = (
    "Please send the crate for {} to the north gate and tell the driver to wait there.",
    "I wrote to {} about the late container on the quay and nobody has answered so far.",
    "The delivery note names {} and the weight is wrong by two hundred kilograms again.",
    "Could you ask {} whether the customs papers for the pumps are complete by now?",
)


def canaries() -> list[str]:
    values = Values(17)
    kinds = (values.card, values.iban, values.ssn, values.email)
    return [f"canary.{n}@nest{n}.com" if n % 4 == 3 else kinds[n % 3]() for n in range(CANARIES)]


def rows(secrets: list[str]) -> list[dict[str, str]]:
    return [
        {
            "id": f"r{n}",
            "prompt": f"{SAID[n % len(SAID)].format(secret)} Case {n}.",
            "completion": ("billing", "claims")[n % 2] if n % 3 else f"Write to {secret}",
            "note": f"called from {secret}",
        }
        for n, secret in enumerate(secrets)
    ]


def run(workspace: Path, *command: str) -> str:
    environment = {
        **os.environ,
        "TMPDIR": str(workspace.parent / "tmp"),
        "HOME": str(workspace.parent / "home"),
    }
    done = subprocess.run(
        [sys.executable, "-c", LOUD, "--workspace", str(workspace), *command],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=environment,
    )
    assert done.returncode in (0, 6), done.stderr[-2000:]
    return done.stdout + done.stderr


def heard(secrets: list[str], text: bytes) -> list[str]:
    return [secret for secret in secrets if secret.encode() in text]


@pytest.fixture(scope="module")
def flight(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str], str]:
    """A workspace that went through the pipeline, its canaries, and everything that was said on the way."""
    folder = tmp_path_factory.mktemp("flight")
    for name in ("tmp", "home"):
        (folder / name).mkdir()
    secrets = canaries()
    source = folder / "rows.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows(secrets)), encoding="utf-8")
    desk = folder / "desk"
    said = run(desk, "init", str(desk))
    said += run(desk, "ingest", str(source), "--trust", "reference")
    said += run(desk, "curate")
    said += run(desk, "label")
    said += run(desk, "snapshot", "create")
    said += run(desk, "report", str(folder / "report.html"))
    said += run(
        desk,
        "scrub",
        str(source),
        "--out",
        str(folder / "clean.jsonl"),
        "--spans",
        str(folder / "spans.jsonl"),
    )
    said += run(desk, "status")
    return folder, secrets, said


def test_nothing_that_is_said_at_debug_holds_a_canary(flight: tuple[Path, list[str], str]) -> None:
    _, secrets, said = flight
    assert "DEBUG:canaries:is heard" in said
    assert heard(secrets, said.encode()) == []


def test_no_file_but_the_ledger_holds_a_canary_and_the_ledger_is_its_owners_alone(
    flight: tuple[Path, list[str], str],
) -> None:
    folder, secrets, _ = flight
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != "rows.jsonl"]
    leaks = {str(path.relative_to(folder)): heard(secrets, path.read_bytes()) for path in files}
    found = {path for path, birds in leaks.items() if birds}
    assert found <= {"desk/ledger.db"}
    assert len(leaks["desk/ledger.db"]) == CANARIES, "the search must be able to hear them"
    assert (folder / "desk" / "ledger.db").stat().st_mode & 0o077 == 0
    assert any(path.name == "clean.jsonl" for path in files)
