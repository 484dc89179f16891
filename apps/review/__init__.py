"""The curators' review page: ``page`` draws, ``desk`` decides, and this file says how the page is started.

It is served to this machine only, sends nothing out, and shows every text as text.
"""

from __future__ import annotations

import sys
from pathlib import Path

PAGE = Path(__file__).with_name("page.py")
ADDRESS = "127.0.0.1"
PORT = 8501


def command(workspace: Path, port: int = PORT, *, actor: str = "") -> list[str]:
    """The command that serves the page for one workspace on the loopback. ``actor`` defaults to the login."""
    options = {
        "server.address": ADDRESS,
        "server.port": str(port),
        "server.headless": "true",  # else the first start asks for an e-mail address and waits
        "server.fileWatcherType": "none",
        "browser.gatherUsageStats": "false",
        "client.toolbarMode": "minimal",
        "client.showErrorDetails": "none",  # a traceback may hold what somebody wrote
        "theme.light.primaryColor": "#2e6b4a",  # the usual red would make Accept look like a warning
        "theme.dark.primaryColor": "#34795a",
    }
    flags = [part for name, value in options.items() for part in (f"--{name}", value)]
    given = ["--workspace", str(workspace), *(["--actor", actor] if actor else [])]
    return [sys.executable, "-m", "streamlit", "run", str(PAGE), *flags, "--", *given]
