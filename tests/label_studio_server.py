"""A real Label Studio for tests: started in a folder of its own, with people who have signed up, and stopped
again.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from apps.label_studio_server import ENVIRONMENT, USER, Server, running
from curation.label_studio.tasks import reason

ROOT = Path(__file__).resolve().parent.parent


@contextmanager
def server(folder: Path) -> Iterator[Server]:
    """A running server with its files in ``folder``; the test is skipped where none is installed.

    ``TILTH_TEST_LABEL_STUDIO`` names the address, the data folder and the process of one that runs already, to save its start.
    """
    if running_one := os.environ.get("TILTH_TEST_LABEL_STUDIO"):
        url, data, *pid = running_one.split(" ")
        yield Server(url, USER, Path(data), *map(int, pid))
        return
    environment = ROOT / ENVIRONMENT
    if not (environment / "bin" / "label-studio").exists():
        pytest.skip("Label Studio is not installed: run `make label-studio-install`")
    with running(folder, environment=environment) as started:
        yield started


@dataclass(frozen=True)
class Person:
    """Somebody who annotates over the API as the interface does."""

    http: httpx.Client

    @property
    def id(self) -> str:
        """The person's id on the server."""
        return str(self.http.get("/api/current-user/whoami").raise_for_status().json()["id"])

    def answer(self, task: str, text: str, *, seconds: float = 4.0) -> int:
        """Submit a text for a task. Gives the annotation's id."""
        return self._annotate(task, {"result": [_region(text)], "lead_time": seconds})

    def choose(self, task: str, name: str, *, seconds: float = 4.0) -> int:
        """Submit a class for a task. Gives the annotation's id."""
        region = _region(name) | {"type": "choices", "value": {"choices": [name]}}
        return self._annotate(task, {"result": [region], "lead_time": seconds})

    def skip(self, task: str, why: str = "") -> int:
        """Skip a task, and say why."""
        told = [reason(why)] if why else []
        return self._annotate(task, {"result": told, "was_cancelled": True})

    def edit(self, annotation: int, text: str) -> None:
        """Change an answer."""
        self.http.patch(
            f"/api/annotations/{annotation}/", json={"result": [_region(text)]}
        ).raise_for_status()

    def delete(self, annotation: int) -> None:
        """Take an answer back."""
        self.http.delete(f"/api/annotations/{annotation}/").raise_for_status()

    def _annotate(self, task: str, body: dict[str, Any]) -> int:
        answer = self.http.post(f"/api/tasks/{task}/annotations/", json=body).raise_for_status()
        return int(answer.json()["id"])


def admin(at: Server) -> Person:
    """The owner, by token."""
    return Person(httpx.Client(base_url=at.url, headers={"Authorization": f"Token {at.token}"}, timeout=60))


def sign_up(at: Server, email: str) -> Person:
    """A new annotator, who signs up by the invitation link as people do."""
    link = admin(at).http.get("/api/invite").raise_for_status().json()["invite_url"]
    http = httpx.Client(base_url=at.url, timeout=60, follow_redirects=True)
    token = re.search("token=([^&]+)", link)
    assert token
    page = http.get("/user/signup/", params={"token": token[1]}).raise_for_status()
    csrf = re.search('name="csrfmiddlewaretoken" value="([^"]+)"', page.text)
    assert csrf
    form = {
        "email": email,
        "password": "a-long-password",
        "csrfmiddlewaretoken": csrf[1],
        "allow_newsletters": "",
    }
    http.post(f"/user/signup/?token={token[1]}", data=form, headers={"Referer": at.url}).raise_for_status()
    http.headers["X-CSRFToken"] = http.cookies["csrftoken"]
    http.headers["Referer"] = at.url
    return Person(http)


def _region(text: str) -> dict[str, Any]:
    value = {"text": [text]}
    return {"id": "a", "from_name": "answer", "to_name": "prompt", "type": "textarea", "value": value}
