"""A small stand-in for Label Studio that misbehaves on demand: it cuts, drops, delays and lies, as networks
do.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

Fault = Callable[["Handler", int, bytes], bool]
"""Told the handler, the status and the body; answers itself and gives True, or lets the answer pass."""


class Fake:
    """The state behind the stand-in. ``faults`` are used up, one per request; ``log`` tells the requests."""

    def __init__(self) -> None:
        self.projects: list[dict[str, Any]] = []
        self.tasks: list[dict[str, Any]] = []
        self.faults: list[Fault | None] = []
        self.log: list[str] = []
        self.authorizations: list[str] = []
        self.clock = self.made = 0
        self.lock = threading.Lock()
        self.url = ""

    def tick(self) -> str:
        """A later time than any before."""
        self.clock += 1
        return f"2026-03-01T10:00:00.{self.clock:06d}Z"

    def answer(self, method: str, path: str, query: dict[str, list[str]], body: Any) -> tuple[int, Any]:
        """What an honest server would answer."""
        if path == "/api/token/refresh/":
            return 200, {"access": body["refresh"].replace("refresh", "access")}
        if path.rstrip("/") == "/api/projects" and method == "GET":
            return 200, {
                "count": len(self.projects),
                "next": None,
                "previous": None,
                "results": self.projects,
            }
        if path.rstrip("/") == "/api/projects":
            project = {"id": len(self.projects) + 1, **body}
            self.projects.append(project)
            return 201, project
        if re.fullmatch(r"/api/projects/\d+/import", path):
            return 201, self._import(body, int(path.split("/")[3]))
        if re.fullmatch(r"/api/projects/\d+/?", path) and method == "PATCH":
            found = next(p for p in self.projects if p["id"] == int(path.strip("/").split("/")[2]))
            found.update(body)
            return 200, found
        if re.fullmatch(r"/api/projects/\d+/?", path) and method == "GET":
            number = int(path.strip("/").split("/")[2])
            found = [p for p in self.projects if p["id"] == number]
            return (
                (200, {**found[0], "task_number": len(self.of(number))})
                if found
                else (404, {"detail": "Not found."})
            )
        if path.rstrip("/") == "/api/tasks":
            return 200, self._list(
                json.loads(query["query"][0]),
                int(query["page"][0]),
                int(query["page_size"][0]),
                int(query["project"][0]),
            )
        if re.fullmatch(r"/api/tasks/\d+/?", path) and method == "DELETE":
            self.tasks = [task for task in self.tasks if task["id"] != int(path.strip("/").split("/")[2])]
            return 204, None
        return 404, {"detail": "Not found."}

    def of(self, project: int) -> list[dict[str, Any]]:
        """The tasks of a project."""
        return [task for task in self.tasks if task["project"] == project]

    def _import(self, tasks: list[dict[str, Any]], project: int = 1) -> dict[str, Any]:
        for task in tasks:
            self.made += 1
            made = {"id": self.made, "project": project, "annotations": [], **task}
            self.tasks.append(made | {"updated_at": self.tick()})
        ids = [task["id"] for task in self.tasks[len(self.tasks) - len(tasks) :]]
        return {"task_count": len(tasks), "task_ids": ids}

    def _list(self, query: dict[str, Any], page: int, size: int, project: int = 1) -> dict[str, Any]:
        (item,) = query["filters"]["items"]
        name, value = item["filter"].removeprefix("filter:tasks:"), item["value"]
        tests: dict[str, Callable[[dict[str, Any]], bool]] = {
            "data.showing": lambda task: task["data"].get("showing") in value,
            "id": lambda task: task["id"] in value,
            "updated_at": lambda task: task["updated_at"] >= value,
        }
        found = [task for task in self.of(project) if tests[name](task)]
        found.sort(key=lambda task: (task["updated_at"], task["id"]) if name == "updated_at" else task["id"])
        return {"total": len(found), "tasks": found[(page - 1) * size : page * size]}

    def annotate(self, number: int, who: int, text: str, **more: Any) -> dict[str, Any]:
        """Somebody answers a task."""
        task = next(task for task in self.tasks if task["id"] == number)
        value = {"from_name": "answer", "to_name": "prompt", "type": "textarea", "value": {"text": [text]}}
        note = {"id": 100 + self.clock, "completed_by": who, "result": [value], "was_cancelled": False}
        note |= {"updated_at": self.tick(), "lead_time": 2.5} | more
        task["annotations"].append(note)
        task["updated_at"] = self.tick()
        return note


class Handler(BaseHTTPRequestHandler):
    """One request."""

    fake: Fake
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *_: object) -> None:
        """Quiet."""

    def _serve(self) -> None:
        parts = urlsplit(self.path)
        raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        with self.fake.lock:
            self.fake.log.append(f"{self.command} {parts.path}")
            self.fake.authorizations.append(self.headers.get("Authorization", ""))
            fault = self.fake.faults.pop(0) if self.fake.faults else None
            if getattr(fault, "before", False):
                fault(self, 0, b"")  # type: ignore[misc]
                return
            status, body = self.fake.answer(
                self.command, parts.path, parse_qs(parts.query), json.loads(raw) if raw else None
            )
        data = b"" if status == 204 else json.dumps(body).encode()
        if fault is None or not fault(self, status, data):
            self.reply(status, data)

    do_GET = do_POST = do_PATCH = do_DELETE = _serve

    def reply(
        self,
        status: int,
        data: bytes,
        *,
        kind: str = "application/json",
        length: int | None = None,
        **headers: str,
    ) -> None:
        """Send an answer; a ``length`` other than that of ``data`` is a lie."""
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data) if length is None else length))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(data)


@contextmanager
def fake_server() -> Iterator[Fake]:
    """The stand-in, listening on the loopback."""
    fake = Fake()
    handler = type("Bound", (Handler,), {"fake": fake})
    listening = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    listening.daemon_threads = True
    fake.url = f"http://127.0.0.1:{listening.server_address[1]}"
    threading.Thread(target=listening.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield fake
    finally:
        listening.shutdown()
        listening.server_close()


def dropped(handler: Handler, status: int, body: bytes) -> bool:
    """The work is done, and the connection closes before a word of the answer."""
    handler.close_connection = True
    handler.connection.close()
    return True


def cut(at: int) -> Fault:
    """The answer ends after ``at`` bytes, and says that this is all."""

    def fault(handler: Handler, status: int, body: bytes) -> bool:
        handler.reply(status, body[:at])
        return True

    return fault


def torn(at: int) -> Fault:
    """The connection closes after ``at`` bytes of the promised answer."""

    def fault(handler: Handler, status: int, body: bytes) -> bool:
        handler.reply(status, body[:at], length=len(body))
        return dropped(handler, status, body)

    return fault


def html(handler: Handler, status: int, body: bytes) -> bool:
    """A login page in place of the answer."""
    handler.reply(200, b"<html><body>Please log in</body></html>", kind="text/html; charset=utf-8")
    return True


def refused(status: int, **headers: str) -> Fault:
    """An error before anything is done."""

    def fault(handler: Handler, _status: int, _body: bytes) -> bool:
        authorization = handler.headers.get("Authorization", "")
        handler.reply(status, json.dumps({"detail": f"no: {authorization}"}).encode(), **headers)
        return True

    fault.before = True  # type: ignore[attr-defined]
    return fault


def short(handler: Handler, status: int, body: bytes) -> bool:
    """A valid answer that lacks its last row."""
    page = json.loads(body)
    page["tasks"] = page["tasks"][:-1]
    handler.reply(status, json.dumps(page).encode())
    return True
