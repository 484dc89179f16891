"""The demo, small: it runs from end to end, scores itself against the truth, and no socket leaves the machine."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]

# Every connection and every look-up of a name passes here; what is not this machine is written down and refused.
GUARD = """
    import ipaddress, json, socket, sys
    from pathlib import Path

    away = []

    def local(host):
        if host in ("localhost", "", None):
            return True
        try:
            return ipaddress.ip_address(host).is_loopback
        except ValueError:
            return False

    connect, look_up = socket.socket.connect, socket.getaddrinfo

    def guarded_connect(self, address):
        if isinstance(address, tuple) and not local(address[0]):
            away.append(str(address))
            raise OSError("no socket leaves the machine")
        return connect(self, address)

    def guarded_look_up(host, *rest, **more):
        name = host.decode() if isinstance(host, bytes) else host
        if not local(name):
            away.append(str(name))
            raise OSError("no name is looked up")
        return look_up(host, *rest, **more)

    socket.socket.connect = socket.socket.connect_ex = guarded_connect
    socket.getaddrinfo = guarded_look_up
"""

DEMO = """
    from apps import demo
    from apps.cli.session import Session

    result = demo.play(
        Path(sys.argv[1]), Session(actor="ana", quiet=True), rounds=2, inquiries=300, steps=20, batch=30, epochs=2
    )
    print(json.dumps({"away": away, "result": result, "text": demo.text(result)}))
"""


def guarded(code: str, *args: str) -> Any:
    script = textwrap.dedent(GUARD) + textwrap.dedent(code)
    done = subprocess.run(
        [sys.executable, "-c", script, *args], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.strip().splitlines()[-1])


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("demo") / "desk"
    return guarded(DEMO, str(folder)) | {"folder": folder}


def test_no_socket_leaves_the_machine_during_the_demo(played: Any) -> None:
    assert played["away"] == []


def test_the_guard_sees_a_socket_that_would_leave() -> None:
    code = """
        try:
            socket.create_connection(("192.0.2.1", 80), timeout=1)
        except OSError:
            pass
        print(json.dumps(away))
    """
    assert guarded(code) == ["192.0.2.1"]


def test_the_demo_finds_what_was_planted(played: Any) -> None:
    scores = {row["what"]: row for row in played["result"]["scores"]}
    personal = ("personal data, by pattern", "personal data, names")
    for what in ("malformed lines", "exact duplicates", "evaluation leaks", *personal):
        assert scores[what]["recall"] > 0.9, scores[what]
        assert scores[what]["known"] > 0
    assert scores["labels right: simulated people"]["recall"] == 1.0


def test_the_demo_reports_both_arms_with_intervals_and_says_that_it_was_simulated(played: Any) -> None:
    for round in played["result"]["rounds"]:
        assert len(round["metric_ci95"]) == len(round["random_ci95"]) == 2
        assert (
            round["difference"]["ci95"][0] <= round["difference"]["value"] <= round["difference"]["ci95"][1]
        )
    assert "simulated" in played["text"]
    assert "Next:" in played["text"]


def test_the_report_is_one_page_that_loads_nothing(played: Any) -> None:
    page = (played["folder"] / "report.html").read_text(encoding="utf-8")
    assert "<svg" in page
    for outside in ("http://", "https://", "<script", "src=", "@import", "url("):
        assert outside not in page, outside


def test_every_trained_row_is_traced_to_a_label_or_to_functions(played: Any) -> None:
    from curation import snapshot
    from curation.workspace import open_workspace

    with open_workspace(played["folder"], actor="ana") as opened:
        name = played["result"]["rounds"][-1]["snapshot"]
        rows = snapshot.load(opened.store, name, split="train").to_pylist()
        known = set(opened.ledger.labels(kinds={"person"})["label"].to_pylist())
    assert rows
    for row in rows:
        assert (row["labels"] and set(row["labels"]) <= known) or row["functions"]
