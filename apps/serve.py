"""What a Label Studio server may ask of a workspace: ``tilth serve``.

A webhook only wakes the poll that brings answers in: what it says is not even read, so a forged, lost or doubled one
changes nothing. The ML backend proposes answers with the current adapter, and nothing for a blind task; it never
trains. It listens on the loopback unless told otherwise, and whoever calls must know the secret.
"""

from __future__ import annotations

import base64
import hmac
import ipaddress
import json
import logging
import socket
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

import pyarrow as pa

from curation.errors import MissingExtra

try:
    import uvicorn
    from fastapi import FastAPI, HTTPException, Request, Response
    from starlette.concurrency import run_in_threadpool
except ImportError as missing:
    raise MissingExtra("serve", missing.name or "fastapi") from None

from curation.errors import TilthError
from curation.label_studio.tasks import result
from curation.people import connection, label_studio, pull_all
from curation.question import current
from curation.run import MAIN
from curation.workspace import Workspace, open_workspace

HEADER, USER = connection.HEADER, connection.USER
LARGEST_WEBHOOK = 64 << 10  # bytes; ours carry no content, so more is no webhook of ours
LARGEST_PREDICT = 16 << 20
SHORTEST_PAUSE = 2.0  # seconds between two polls, however often somebody knocks
log = logging.getLogger("tilth.serve")


class Scorer(Protocol):
    """What answers: a :class:`curation.run.Learner`, or a part of one."""

    def score(self, adapter: str | None, base: str, rows: pa.Table, classes: Sequence[str]) -> pa.Table:
        """SCORES of the rows of a VIEW."""


@dataclass(frozen=True)
class Service:
    """What is served: the workspace at ``root`` in the name of ``actor``; ``hosts`` may knock, with ``secret``."""

    root: Path
    actor: str
    secret: str = field(repr=False)
    hosts: frozenset[str] = frozenset({"127.0.0.1", "::1"})
    scorer: Callable[[Workspace], Scorer] | None = None


class Knocker:
    """Wakes whoever polls, and says how often somebody knocked."""

    def __init__(self) -> None:
        self.woken = threading.Event()
        self.knocks = 0

    def knock(self) -> None:
        """Somebody may have answered."""
        self.knocks += 1
        self.woken.set()


def same(given: str, secret: str) -> bool:
    """Whether two secrets are equal, compared in a time that tells nothing; an empty one never is."""
    return bool(secret) and hmac.compare_digest(given.encode(), secret.encode())


def wait_until_healthy(url: str, seconds: float = 20.0) -> None:
    """Return as soon as the service at ``url`` answers. Raises ``OSError`` where it does not in time."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=5):
                return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)


def hosts_of(url: str) -> frozenset[str]:
    """The addresses that the server at ``url`` may call from. A name that cannot be resolved has none."""
    name = urlsplit(url).hostname or ""
    try:
        found = {str(entry[4][0]) for entry in socket.getaddrinfo(name, None)} if name else set()
    except OSError:
        return frozenset()
    local = any(ipaddress.ip_address(address.partition("%")[0]).is_loopback for address in found)
    return frozenset(found | ({"127.0.0.1", "::1"} if local else set()))


def create_app(
    service: Service,
    knocker: Knocker,
    *,
    every: float = 60.0,
    polling: bool = True,
    greet: Callable[[], None] = lambda: None,
) -> Any:
    """The application. With ``polling`` a thread pulls when knocked at, and every so many seconds whatever happens; it
    calls ``greet`` first.
    """

    def work(ending: threading.Event) -> None:
        greet()
        poll(service, knocker, ending, every)

    life = _worked(knocker, work) if polling else None
    app = FastAPI(title="Tilth", lifespan=life, docs_url=None, redoc_url=None, openapi_url=None)
    _add_webhook(app, service, knocker)
    _add_backend(app, service, Backend(service))
    return app


def _worked(knocker: Knocker, work: Callable[[threading.Event], None]) -> Callable[[Any], Any]:
    """The life of an application beside which ``work`` runs in a thread, until the event that it is handed is set."""

    @asynccontextmanager
    async def alive(_: Any) -> Any:
        ending = threading.Event()
        worker = threading.Thread(target=work, args=(ending,), daemon=True)
        worker.start()
        yield
        ending.set()
        knocker.woken.set()
        worker.join(timeout=30)

    return alive


def _add_webhook(app: Any, service: Service, knocker: Knocker) -> None:
    """What a server tells when somebody has answered: it is heard, and not read."""

    @app.post("/webhook", status_code=204)
    async def webhook(request: Request) -> Response:
        _known(request, service)
        await _body(request, LARGEST_WEBHOOK)
        knocker.knock()
        return Response(status_code=204)


def _add_backend(app: Any, service: Service, backend: Backend) -> None:
    """What a server asks of its ML backend: health, version, predictions; never a training."""

    @app.get("/health")
    def health() -> dict[str, str]:
        return {"status": "UP", "model_class": "tilth"}

    @app.post("/setup")
    async def setup(request: Request) -> dict[str, str]:
        _known(request, service)
        await _body(request, LARGEST_PREDICT)  # it holds the server's token, which nobody needs here
        return {"model_version": backend.version()}

    @app.post("/predict")
    async def predict(request: Request) -> dict[str, Any]:
        _known(request, service)
        shown = _showings(await _body(request, LARGEST_PREDICT))
        return {"results": await run_in_threadpool(backend.predict, shown)}

    @app.post("/train")
    def train() -> Response:
        return Response("Tilth trains in its own rounds: tilth run", status_code=405)


def _showings(body: bytes) -> list[str]:
    """The showing of each task in a request for predictions. Refuses what is no list of tasks."""
    try:
        return [str(task["data"].get("showing", "")) for task in json.loads(body)["tasks"]]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise HTTPException(400, "this is no list of tasks") from None


async def _body(request: Request, limit: int) -> bytes:
    """The body, given up as soon as it is larger than ``limit`` or says that it will be."""
    declared = request.headers.get("content-length", "0")
    if not declared.isdecimal() or int(declared) > limit:
        raise HTTPException(413, "too large")
    read = bytearray()
    async for chunk in request.stream():
        read += chunk
        if len(read) > limit:
            raise HTTPException(413, "too large")
    return bytes(read)


def _known(request: Request, service: Service) -> None:
    """Refuse whoever calls from elsewhere or does not know the secret."""
    caller = request.client.host if request.client else ""
    if caller not in service.hosts:
        raise HTTPException(403, "unknown host")
    if not (same(request.headers.get(HEADER, ""), service.secret) or _basic(request, service.secret)):
        raise HTTPException(401, "unknown caller", headers={"WWW-Authenticate": "Basic"})


def _basic(request: Any, secret: str) -> bool:
    kind, _, told = request.headers.get("authorization", "").partition(" ")
    if kind.lower() != "basic":
        return False
    try:
        user, _, password = base64.b64decode(told, validate=True).decode().partition(":")
    except ValueError:
        return False
    return user == USER and same(password, secret)


def poll(
    service: Service,
    knocker: Knocker,
    ending: threading.Event,
    every: float,
    pull: Callable[[Workspace], Mapping[str, int]] | None = None,
) -> None:
    """Bring answers in whenever somebody knocks, and every so many seconds all the same, until told to end.

    A failure is logged and tried again at the next turn: the watermark has not moved, so nothing is lost.
    """
    bring = pull or (lambda workspace: pull_all(workspace, label_studio()))
    while not ending.is_set():
        knocker.woken.clear()
        try:
            with open_workspace(service.root, actor=service.actor) as workspace:
                told = bring(workspace)
            if any(told.values()):
                log.info("pulled: %s", ", ".join(f"{count} {key}" for key, count in told.items() if count))
        except TilthError as error:
            log.warning("%s", error)
        begun = time.monotonic()
        knocker.woken.wait(every)
        ending.wait(max(0.0, SHORTEST_PAUSE - (time.monotonic() - begun)))


class Backend:
    """Proposes answers for tasks, one request at a time: a model is not shared between threads."""

    def __init__(self, service: Service) -> None:
        self.service, self.lock = service, threading.Lock()
        self._scorer: tuple[Workspace, Scorer] | None = None

    @contextmanager
    def _open(self) -> Iterator[tuple[Workspace, Scorer]]:
        with self.lock, open_workspace(self.service.root, actor=self.service.actor) as workspace:
            if self._scorer is None:
                make = self.service.scorer or _local
                self._scorer = (workspace, make(workspace))
            scorer = self._scorer[1]
            with suppress(AttributeError):
                scorer.workspace = workspace  # type: ignore[attr-defined]  # the model stays open, the ledger does not
            yield workspace, scorer

    def version(self) -> str:
        """The adapter that answers now; ``none`` before there is one."""
        with open_workspace(self.service.root, actor=self.service.actor) as workspace:
            found = champion(workspace)
        return found[0] if found else "none"

    def predict(self, showings: Sequence[str]) -> list[list[dict[str, Any]]]:
        """One entry per task: its prediction, or none for a blind task, an unknown one, and one that is judged."""
        with self._open() as (workspace, scorer):
            adapter, question = champion(workspace), current(workspace)
            known = {s.id: s for s in workspace.ledger.showings([s for s in showings if s])}
            open_to = [
                s
                for s in known.values()
                if not s.blind and s.question == question.name and question.kind in ("edit", "class")
            ]
            if adapter is None or not open_to:
                return [[] for _ in showings]
            rows = _rows(workspace, [s.record for s in open_to])
            classes = question.classes if question.kind == "class" else ()
            scores = scorer.score(adapter[0], adapter[1], rows, classes)
        columns = (scores[name].to_pylist() for name in ("record", "completion", "confidence"))
        said = {record: (text, sure) for record, text, sure in zip(*columns, strict=True) if text}
        shown = {s.id: said[s.record] for s in open_to if s.record in said}
        return [
            [{"model_version": adapter[0], "result": [result(shown[s][0], question)], "score": shown[s][1]}]
            if s in shown
            else []
            for s in showings
        ]


def champion(workspace: Workspace) -> tuple[str, str] | None:
    """The newest adapter that was not trained for the random arm, and its base; ``None`` before there is one."""
    made = [a for a in workspace.ledger.adapters() if a.arm in (None, MAIN)]
    return (made[-1].digest, made[-1].base) if made else None


def _rows(workspace: Workspace, records: Sequence[str]) -> pa.Table:
    """The scrubbed view of records, without any completion: one row each."""
    from curation.curate import Rules

    pages = workspace.ledger.view_pages(
        scrub_rule=Rules(workspace).scrub, records=list(dict.fromkeys(records)), kinds=set()
    )
    return pa.concat_tables([page.table for page in pages])


def _local(workspace: Workspace) -> Scorer:
    from apps.learner import LocalLearner

    return LocalLearner(workspace)


def run(service: Service, host: str, port: int, every: float, connect: bool = False) -> None:
    """Serve until interrupted. With ``connect`` the projects of the server are told where their ML backend is."""
    url = f"http://{host}:{port}"

    def greet() -> None:
        with suppress(OSError):
            wait_until_healthy(url)
        try:
            with open_workspace(service.root, actor=service.actor) as workspace:
                connection.connect_backends(workspace, url, service.secret)
        except TilthError as error:
            log.warning("%s", error)

    app = create_app(service, Knocker(), every=every, greet=greet if connect else lambda: None)
    uvicorn.run(app, host=host, port=port, log_level="warning", access_log=False, server_header=False)
