"""The service beside Label Studio: who may knock, what a knock does, and what is proposed to whom."""

from __future__ import annotations

import base64
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

pytest.importorskip("fastapi", reason="fastapi is not installed: pip install 'tilth[serve]'")
from fastapi.testclient import TestClient

from apps import serve
from apps.serve import HEADER, Knocker, Service, create_app, same
from curation import loop, workspace
from curation.errors import RemoteUnavailable
from curation.formats import Mapping
from curation.ledger import Adapter
from curation.people import Simulated
from curation.run import Run
from curation.workspace import init, open_workspace
from tests.curation.toys import ToyLearner, inquiries, write_rows

SECRET = "5e" * 20
CALLER = ("127.0.0.1", 40_000)


def client(service: Service, knocker: Knocker, caller: tuple[str, int] = CALLER) -> Any:
    app = create_app(service, knocker, polling=False)
    return TestClient(app, client=caller)


@pytest.fixture
def knocker() -> Knocker:
    return Knocker()


@pytest.fixture
def service(tmp_path: Path) -> Service:
    return Service(tmp_path, "ana", SECRET)


def test_only_whoever_knows_the_secret_wakes_the_poll(service: Service, knocker: Knocker) -> None:
    calls = client(service, knocker)
    for headers in (
        {},
        {HEADER: ""},
        {HEADER: SECRET[:-1]},
        {HEADER: SECRET + "0"},
        {"Authorization": "Basic !!"},
    ):
        assert (
            calls.post("/webhook", json={"action": "ANNOTATION_CREATED"}, headers=headers).status_code == 401
        )
    assert knocker.knocks == 0
    assert calls.post("/webhook", json={}, headers={HEADER: SECRET}).status_code == 204
    assert knocker.knocks == 1


def test_the_secret_alone_is_not_enough_from_another_host(service: Service, knocker: Knocker) -> None:
    calls = client(service, knocker, ("192.0.2.7", 1))
    assert calls.post("/webhook", json={}, headers={HEADER: SECRET}).status_code == 403
    assert knocker.knocks == 0


def test_an_empty_secret_opens_to_nobody(service: Service, knocker: Knocker) -> None:
    assert not same("", "")
    assert same(SECRET, SECRET)
    calls = client(Service(service.root, "ana", ""), knocker)
    assert calls.post("/webhook", json={}, headers={HEADER: ""}).status_code == 401


def test_a_body_larger_than_any_of_ours_is_given_up_before_it_is_read(
    service: Service, knocker: Knocker
) -> None:
    calls = client(service, knocker)
    told = {HEADER: SECRET, "Content-Length": str(100 << 20)}
    assert calls.post("/webhook", content=b"x", headers=told).status_code == 413
    sent = 0

    def endless() -> Iterator[bytes]:
        nonlocal sent
        for _ in range(1_600):
            sent += 1
            yield b"x" * 65_536

    assert calls.post("/webhook", content=endless(), headers={HEADER: SECRET}).status_code == 413
    assert knocker.knocks == 0


@pytest.mark.parametrize("guard", ["same", "hosts", "size"])
def test_without_any_one_of_its_guards_the_door_opens(
    service: Service, knocker: Knocker, monkeypatch: pytest.MonkeyPatch, guard: str
) -> None:
    """Negative controls: a forged secret, a stranger's address, and a body that is read whatever its size."""
    headers, caller, body = {HEADER: SECRET}, CALLER, b"x"
    if guard == "same":
        headers = {HEADER: "forged"}
        monkeypatch.setattr(serve, "same", lambda given, secret: True)
    elif guard == "hosts":
        caller = ("192.0.2.7", 1)
        service = replace(service, hosts=frozenset({caller[0]}))
    else:
        body = b"x" * (2 * serve.LARGEST_WEBHOOK)
        monkeypatch.setattr(serve, "LARGEST_WEBHOOK", len(body))
    assert client(service, knocker, caller).post("/webhook", content=body, headers=headers).status_code == 204
    assert knocker.knocks == 1


def test_secrets_are_compared_in_a_time_that_tells_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    compared = []
    real = serve.hmac.compare_digest
    monkeypatch.setattr(serve.hmac, "compare_digest", lambda a, b: compared.append((a, b)) or real(a, b))
    assert not same("guess", SECRET)
    assert compared == [(b"guess", SECRET.encode())]


def test_a_thousand_knocks_lose_nothing_and_make_few_polls(service: Service, knocker: Knocker) -> None:
    """Lost, doubled and reordered webhooks all come to the same poll, which reads what is there."""
    init(service.root / "w", actor="ana")
    there = Service(service.root / "w", "ana", SECRET)
    polls: list[int] = []
    ending = threading.Event()
    arrived = 0

    def pull(_: Any) -> dict[str, int]:
        polls.append(arrived)
        if len(polls) == 2:
            raise RemoteUnavailable("the server is busy", where="here")
        return {"added": 0}

    worker = threading.Thread(target=serve.poll, args=(there, knocker, ending, 0.3, pull))
    worker.start()
    for _ in range(1_000):
        arrived += 1
        if arrived % 10:  # every tenth is lost
            knocker.knock()
    deadline = time.monotonic() + 30
    while (not polls or polls[-1] < 1_000) and time.monotonic() < deadline:
        time.sleep(0.05)
    ending.set()
    knocker.knock()
    worker.join(timeout=10)
    assert polls[-1] == 1_000, "the last poll began after the last event, and a failed one was tried again"
    assert len(polls) < 20


def test_the_server_may_call_from_its_own_address_and_this_machine_from_both_loopbacks() -> None:
    assert {"127.0.0.1", "::1"} <= serve.hosts_of("http://localhost:8080")
    assert serve.hosts_of("http://192.0.2.9:8080") == frozenset({"192.0.2.9"})
    assert serve.hosts_of("") == frozenset()


class Counting(ToyLearner):
    """Counts how often it is asked."""

    asked = 0

    def score(self, adapter: str | None, base: str, rows: pa.Table, classes: Any) -> pa.Table:
        Counting.asked += 1
        assert adapter
        return super().score(adapter, base, rows, classes)


def test_a_blind_task_is_answered_with_nothing_and_a_shown_one_by_the_newest_adapter(
    tmp_path: Path, knocker: Knocker
) -> None:
    folder = tmp_path / "w"
    init(folder, actor="ana")
    path = write_rows(tmp_path / "rows.jsonl", inquiries(150))
    with open_workspace(folder, actor="ana") as opened:
        workspace.ingest(opened, path, mapping=Mapping(id="id", gold="gold"))
        loop.run(Run(opened, ToyLearner(opened), Simulated(), "simulated", batch=20), 1)
        loop.choose(Run(opened, ToyLearner(opened), Simulated(), "simulated", batch=40))
        showings = opened.ledger.showings()
        adapter = opened.ledger.adapters()[0]
        before = opened.ledger.counts()
    calls = client(Service(folder, "ana", SECRET, scorer=Counting), knocker)
    assert calls.get("/health").json()["status"] == "UP"
    known = {HEADER: SECRET}
    assert calls.post("/setup", json={"access_token": "theirs"}, headers=known).json() == {
        "model_version": adapter.digest
    }
    blind = next(s for s in showings if s.blind)
    shown = next(s for s in showings if not s.blind)
    tasks = [{"id": i, "data": {"showing": s}} for i, s in enumerate([blind.id, shown.id, "unknown", ""])]
    got = calls.post("/predict", json={"tasks": tasks}, headers=known).json()["results"]
    assert [len(entry) for entry in got] == [0, 1, 0, 0]
    (guess,) = got[1]
    assert guess["model_version"] == adapter.digest
    assert guess["result"][0]["from_name"] == "answer"
    assert 0 <= guess["score"] <= 1
    only_blind = calls.post("/predict", json={"tasks": tasks[:1]}, headers=known).json()["results"]
    assert (only_blind, Counting.asked) == ([[]], 1), "for a blind task the model is not even asked"
    assert calls.post("/predict", json={"tasks": tasks}).status_code == 401
    assert calls.post("/predict", json={"nonsense": 1}, headers=known).status_code == 400
    basic = base64.b64encode(f"tilth:{SECRET}".encode()).decode()
    told = {"Authorization": f"Basic {basic}"}
    assert calls.post("/predict", json={"tasks": tasks}, headers=told).status_code == 200
    assert calls.post("/train", headers=known).status_code == 405
    with open_workspace(folder, actor="ana") as opened:
        assert opened.ledger.counts()["adapters"] == before["adapters"], "it never trains"


def test_before_there_is_an_adapter_nothing_is_proposed(tmp_path: Path, knocker: Knocker) -> None:
    init(tmp_path / "w", actor="ana")
    calls = client(Service(tmp_path / "w", "ana", SECRET), knocker)
    told = {HEADER: SECRET}
    assert calls.post("/setup", json={}, headers=told).json() == {"model_version": "none"}
    got = calls.post("/predict", json={"tasks": [{"data": {"showing": "x"}}]}, headers=told).json()
    assert got == {"results": [[]]}


def test_the_random_arms_adapter_is_never_the_one_that_answers(tmp_path: Path) -> None:
    init(tmp_path / "w", actor="ana")
    with open_workspace(tmp_path / "w", actor="ana") as opened:
        assert serve.champion(opened) is None
        opened.ledger.add_adapter(Adapter("a" * 32, None, "base", {}, {}, "adapters/a", "main"))
        opened.ledger.add_adapter(Adapter("b" * 32, None, "base", {}, {}, "adapters/b", "random"))
        assert serve.champion(opened) == ("a" * 32, "base")
