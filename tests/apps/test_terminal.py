"""What data, file names and arguments hold never drives the terminal: every command, on a real pty."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.apps.test_cli import COMMANDS, ROOT

# A title, a clipboard (OSC 52), a link (OSC 8), a device control string, eight-bit controls, a return, and reordering.
EVIL = "\x1b]0;owned\x07\x1b]52;c;b3duZWQ=\x07\x1b]8;;http://x\x1b\\\x1bP1$r\x1b\\\x9b31m\x1b[2J\r[link=x]OWNED\u202egnp"
RAW = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]|\r\\[link")
NAME = EVIL.replace("/", "").replace("\\", "")  # as part of a file's name
FILE = f"{NAME}.jsonl"

DESK = ("--workspace", "desk")
SHOWN: dict[str, Sequence[Sequence[str]]] = {
    "init": [(FILE, "--dry-run")],
    "ingest": [
        (*DESK, FILE, "--map", "id=id", "--map", "group=group"),
        (*DESK, "again.jsonl", "--map", "id=id"),
    ],
    "status": [(*DESK,), (*DESK, "--quarantine"), (*DESK, "--people")],
    "doctor": [(*DESK,)],
    "curate": [(*DESK,), (*DESK, "--audit", "source"), (*DESK, "--explain", EVIL)],
    "label": [(*DESK,), (*DESK, "--report")],
    "backup": [(*DESK, f"{NAME}.db", "--dry-run")],
    "restore": [(*DESK, f"{NAME}.db")],
    "export": [(*DESK, NAME, "--dry-run")],
    "audit": [(*DESK,), (*DESK, "--head", EVIL)],
    "vote": [(*DESK, "--sample", "5"), (FILE, "--votes", "votes"), (FILE, "--votes", EVIL)],
    "convert": [(FILE, "out.csv", "--to", EVIL), (FILE, NAME + ".csv", "--dry-run"), ("bad.jsonl", "-")],
    "dedup": [(FILE, "--clusters", "clusters.jsonl"), (FILE, "--fields", EVIL), (f"no{FILE}",)],
    "decontaminate": [(FILE, "--against", FILE, "--report", "r.jsonl"), (FILE, "--against", f"no{FILE}")],
    "consensus": [("answers.jsonl",), (FILE,)],
    "erase": [(*DESK, EVIL, "--dry-run"), (*DESK, "--group", EVIL, "--dry-run")],
    "run": [(*DESK, "--annotator", EVIL)],
    "select": [(*DESK, "--batch", EVIL)],
    "push": [(*DESK, "--question", EVIL)],
    "pull": [(*DESK, "--annotator", EVIL)],
    "review": [(*DESK, "--dry-run")],
    "report": [(*DESK, f"{NAME}.html")],
    "demo": [(NAME, "--dry-run")],
    "train": [("--data", f"no{FILE}", "--out", NAME)],
    "generate": [("--adapter", NAME, EVIL)],
    "merge": [("--adapter", NAME, "--out", "merged")],
    "evaluate": [("--data", FILE, "--predictions", "prediction"), ("--data", FILE, "--predictions", EVIL)],
    "scrub": [(FILE, "--spans", "spans.jsonl"), (FILE, "--layers", EVIL)],
    "serve": [(*DESK, "--dry-run")],
    "snapshot create": [(*DESK,)],
    "snapshot list": [(*DESK,)],
    "snapshot show": [(*DESK, EVIL)],
    "snapshot diff": [(*DESK, EVIL, EVIL)],
    "snapshot verify": [(*DESK, EVIL)],
    "snapshot approve": [(*DESK, EVIL, "--reason", EVIL)],
    "snapshot export": [(*DESK, EVIL, FILE)],
    "snapshot restore": [(*DESK, NAME)],
    "people": [(*DESK,)],
    "people add": [(*DESK, EVIL, "--expertise", EVIL)],
    "people stop": [(*DESK, f"{EVIL}?")],
    "question": [(*DESK,)],
    "question revise": [(*DESK, "--add", EVIL, "--dry-run")],
    "question judged": [(*DESK, "--name", EVIL)],
    "question adopt": [(*DESK, EVIL)],
    "vault enable": [(*DESK, "--key-file", f"{NAME}.key", "--dry-run")],
    "vault fill": [(*DESK,)],
    "vault show": [(*DESK, EVIL)],
    "vault export": [(*DESK, NAME, "--dry-run")],
    "vault destroy": [(*DESK,)],
}
"""Calls of every command, the options before the verb first; what they say is looked at, be it a result or an error."""

DRIVER = """
import json, sys
from apps.cli import main
for words in json.load(open("calls.json")):
    print(chr(0x241E), flush=True)
    try:
        main(words)
    except SystemExit:
        pass
    sys.stdout.flush(), sys.stderr.flush()
"""


def files(folder: Path) -> None:
    """Rows that hold the evil text in every field, and a file that is damaged with it."""
    rows = [
        {
            "id": f"{n}{EVIL}",
            "group": EVIL,
            "prompt": f"{EVIL} crate {n}, late again",
            "completion": EVIL if n % 2 else f"{EVIL}!",
            "votes": [EVIL, "x"],
            "prediction": EVIL,
            EVIL: EVIL,
        }
        for n in range(8)
    ]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / FILE).write_text(text)
    (folder / "again.jsonl").write_text(text.replace("late", "lost"))
    (folder / "bad.jsonl").write_text(
        f'{{"prompt": "{EVIL}\n' + json.dumps({"prompt": "a", "completion": [EVIL]}) + "\n"
    )
    answers = ({"item": f"{EVIL}{n % 3}", "annotator": EVIL, "label": EVIL} for n in range(6))
    (folder / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in answers))


def on_a_pty(calls: Sequence[Sequence[str]], folder: Path, first: str = "") -> list[str]:
    """What each call writes to a terminal of its own; one process makes them all, one behind the other, after ``first``."""
    (folder / "calls.json").write_text(json.dumps(calls))
    main, side = pty.openpty()
    said: list[bytes] = []

    def listen() -> None:
        while True:
            try:
                said.append(os.read(main, 65536))
            except OSError:  # the other side is closed
                return

    listener = threading.Thread(target=listen)
    listener.start()
    env = os.environ | {"PYTHONPATH": str(ROOT), "TERM": "xterm-256color", "COLUMNS": "200"}
    subprocess.run(
        [sys.executable, "-c", first + DRIVER],
        cwd=folder,
        stdin=side,
        stdout=side,
        stderr=side,
        env=env,
        timeout=300,
    )
    os.close(side)
    listener.join()
    os.close(main)
    return b"".join(said).decode("utf-8", "replace").replace("\r\n", "\n").split("\u241e")[1:]


def call(name: str, words: Sequence[str]) -> list[str]:
    """The words of a command line: options of the workspace stand before the verb."""
    before, rest = (list(words[:2]), list(words[2:])) if tuple(words[:2]) == DESK else ([], list(words))
    return [*before, *name.split(), *rest]


@pytest.fixture(scope="module")
def screens(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """By command, what its calls wrote, with a call that ends in an option that nobody knows."""
    folder = tmp_path_factory.mktemp("terminal")
    files(folder)
    calls = [(name, call(name, words)) for name in SHOWN for words in (*SHOWN[name], ("--" + EVIL,))]
    shown = on_a_pty([["init", "desk"], *(words for _, words in calls)], folder)
    assert len(shown) == len(calls) + 1
    found: dict[str, list[str]] = {}
    for (name, _), text in zip(calls, shown[1:], strict=True):
        found.setdefault(name, []).append(text)
    return found


def test_every_command_is_called() -> None:
    assert set(COMMANDS) <= set(SHOWN)


@pytest.mark.parametrize("name", SHOWN)
def test_no_control_character_reaches_the_terminal(screens: dict[str, list[str]], name: str) -> None:
    assert [RAW.findall(text) for text in screens[name] if RAW.search(text)] == []
    assert "Traceback" not in "".join(screens[name])


def test_some_of_what_was_shown_is_the_data_spelt_out(screens: dict[str, list[str]]) -> None:
    told = {name for name, texts in screens.items() if any("OWNED" in text for text in texts)}
    assert len(told) > len(SHOWN) / 2, sorted(set(SHOWN) - told)


def test_the_terminal_would_have_got_them_from_a_command_that_prints_as_it_comes(tmp_path: Path) -> None:
    files(tmp_path)
    calls = [["dedup", f"no{FILE}"]]
    (text,) = on_a_pty(calls, tmp_path, "import sys, apps.cli; sys.modules['apps.cli.session'].plain = str")
    assert RAW.search(text)
