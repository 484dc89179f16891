"""A real Label Studio, real browsers: what annotators see, what they do there, and what becomes of it.

One server serves the whole file. The module needs Label Studio (``make label-studio-install``) and Chromium; it skips,
saying so, where one is missing.
"""

from __future__ import annotations

import json
import os
import re
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from apps.cli import app
from apps.label_studio_server import Server
from curation import loop, people, workspace
from curation.errors import RemoteUnavailable
from curation.formats import Mapping
from curation.label_studio import LabelStudio, PersonLabel, ProjectChannel, Suggestion, connect, to_task
from curation.label_studio import project as project_module
from curation.ledger import Question, Showing
from curation.people import plan
from curation.records import digest
from curation.run import Run
from curation.workspace import Workspace, init, open_workspace
from tests.curation.toys import ToyLearner, write_rows
from tests.label_studio_server import Person, admin, server, sign_up

CHROMIUM = Path("/usr/bin/chromium")
PASSWORD = "a-long-password"
NUMBER = os.getpid()  # so that a server may be used again
pytestmark = [pytest.mark.server]


@pytest.fixture(scope="module")
def at(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with server(tmp_path_factory.mktemp("label-studio")) as started:
        yield started


@pytest.fixture
def tilth(at: Server, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The command line, pointed at the server; in this process, since a dozen starts take longer than the work."""
    monkeypatch.setenv("LABEL_STUDIO_URL", at.url)
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", at.token)

    def call(folder: Path, *words: str) -> dict[str, Any]:
        told = ["--workspace", str(folder), "--json", "--quiet", "--actor", "ana", *words]
        done = CliRunner().invoke(app, told, catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return json.loads(done.stdout.strip().splitlines()[-1])

    return call


@dataclass
class Annotator:
    """Somebody at a browser, who does what the page lets them do."""

    page: Any
    url: str

    def sign_in(self, email: str) -> None:
        self.page.goto(f"{self.url}/user/login/")
        self.page.fill("input[name=email]", email)
        self.page.fill("input[name=password]", PASSWORD)
        self.page.click("button[type=submit]")
        self.page.wait_for_url(lambda url: "login" not in url)

    def open(self, place: str) -> None:
        self.page.goto(place)
        self.shown()

    def shown(self) -> str:
        """The record on the page, as it says itself."""
        head = self.page.get_by_text(re.compile("^Record [0-9a-f]{32}$"))
        head.wait_for(timeout=90_000)
        return str(head.inner_text()).removeprefix("Record ").strip()

    @property
    def box(self) -> Any:
        return self.page.locator("textarea[name=answer], .lsf-text-area textarea").first

    def press(self, name: str) -> None:
        """Press Submit or Skip and wait for another task, or for the end of the queue."""
        before = self.shown()
        self.page.get_by_role("button", name=name).first.click()
        self.page.wait_for_function(
            "before => { const h = [...document.querySelectorAll('h3')].find(e => e.innerText.startsWith('Record '));"
            " return !h || h.innerText !== 'Record ' + before; }",
            arg=before,
            timeout=90_000,
        )


@pytest.fixture
def browsers(at: Server) -> Iterator[Any]:
    """A maker of annotators, each with a browser session of their own."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if not CHROMIUM.exists():
        pytest.skip("Chromium is not installed: run `make system`")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"], headless=True)

        def annotator(email: str) -> Annotator:
            sign_up(at, email)
            context = browser.new_context(viewport={"width": 1280, "height": 900})
            # The server's page would fetch fonts and news from its makers; nothing may leave this machine.
            context.route(
                "**/*", lambda route: route.continue_() if at.url in route.request.url else route.abort()
            )
            made = Annotator(context.new_page(), at.url)
            made.sign_in(email)
            return made

        yield annotator
        browser.close()


def desk(folder: Path, rows: list[dict[str, str]], toml: dict[str, str], **mapping: str) -> Path:
    """A workspace with rows of its own and a settled configuration."""
    init(folder, actor="ana", name=folder.name)
    text = (folder / "tilth.toml").read_text()
    for old, new in toml.items():
        assert old in text, old
        text = text.replace(old, new)
    (folder / "tilth.toml").write_text(text)
    with open_workspace(folder, actor="ana") as opened:
        path = write_rows(folder / "rows.jsonl", rows)
        workspace.ingest(opened, path, mapping=Mapping(id="id", **mapping))
    return folder


def choose(opened: Workspace, batch: int) -> None:
    """Choose the next batch as a run does, without torch."""
    loop.choose(Run(opened, ToyLearner(opened), people.label_studio(), "label-studio", batch=batch))


POLICY = """# Parcels

## Late parcels
A parcel that is late by more than five days is refunded in full.

## Customs
Customs duties are paid by whoever receives the parcel.
"""
DRAFT = "Your parcel is on its way."


def letters(count: int) -> list[dict[str, str]]:
    return [
        {
            "id": f"L{i}",
            "prompt": f"My parcel number {i} is late <b>again</b>. Who pays customs duties, $prompt?",
            "draft": DRAFT,
        }
        for i in range(count)
    ]


@pytest.mark.browser
def test_two_annotators_in_browsers_and_what_becomes_of_their_answers(
    at: Server, tilth: Any, browsers: Any, tmp_path: Path
) -> None:
    folder = desk(
        tmp_path / f"letters-{os.getpid()}",
        letters(40),
        {
            'kind = "auto"': 'kind = "edit"',
            'guideline = ""': 'guideline = "guide.md"',
            "annotators_per_record = 1": "annotators_per_record = 2",
            "batch = 50 ": "batch = 6 ",
            "blind_share = 0.1": "blind_share = 0.34",
        },
        completion="draft",
    )
    (folder / "guide.md").write_text("Answer politely.\nNever promise <i>dates</i>.", encoding="utf-8")
    (folder / "policy.md").write_text(POLICY, encoding="utf-8")
    tilth(folder, "ingest", str(folder / "policy.md"))
    ines, tom = browsers(f"ines{NUMBER}@example.org"), browsers(f"tom{NUMBER}@example.org")
    tilth(folder, "people", "add", "Ines", "--minutes", "90", "--email", f"ines{NUMBER}@example.org")
    tilth(folder, "people", "add", "Tom", "--minutes", "90", "--email", f"tom{NUMBER}@example.org")
    with open_workspace(folder, actor="ana") as opened:
        choose(opened, 6)
    pushed = tilth(folder, "push")
    assert pushed["pushed"] == 12
    assert tilth(folder, "push")["pushed"] == 0
    places = pushed["where"].split(", ")
    assert len(places) == 2
    with open_workspace(folder, actor="ana") as opened:
        blind = {s.record for s in opened.ledger.showings() if s.blind}
    assert len(blind) == 2

    # Ines writes her own text on each, keeps one draft, and skips one; Tom follows every draft that he sees.
    skipped = ""
    ines.open(places[0])
    for turn in range(6):
        record = ines.shown()
        if turn == 0 and (picture := os.environ.get("TILTH_SCREENSHOT")):
            ines.page.screenshot(path=picture)
        _look(ines, blind=record in blind)
        if record not in blind and not skipped:
            skipped = record
            ines.page.get_by_text("bad question").click()
            ines.press("Skip")
            continue
        ines.box.fill("We are sorry. Your parcel is refunded.\nNo duties are due.")
        ines.press("Submit")
    tom.open(places[1])
    for _ in range(6):
        if tom.shown() in blind:
            tom.box.fill("We are sorry. Your parcel is refunded.\nNo duties are due.")
        tom.press("Submit")

    pulled = tilth(folder, "pull")
    assert (pulled["added"], pulled["skipped"], pulled["unusable"]) == (11, 1, 0)
    assert tilth(folder, "pull")["added"] == 0
    _judge(folder, tilth, blind, skipped)


def _look(annotator: Annotator, *, blind: bool) -> None:
    """What the page shows: text as text, the passages, and no trace of a suggestion where it is blind."""
    text = annotator.page.locator("body").inner_text()
    assert "is late <b>again</b>" in text
    assert "$prompt?" in text
    assert "policy.md › Parcels › Customs" in text
    assert "paid by whoever receives" in text
    assert ("No suggestion" in text) == blind
    assert (annotator.box.input_value() == DRAFT) != blind
    assert "Labeled regions will appear here" not in text


def _judge(folder: Path, tilth: Any, blind: set[str], skipped: str) -> None:
    from curation.consensus import text_consensus
    from curation.curate import Rules, blocked
    from curation.opinions import Voices, opinions
    from curation.question import current

    with open_workspace(folder, actor="ana") as opened:
        assert blocked(opened, Rules(opened), ("asked",)) == {skipped}
        heard = opinions(opened, current(opened), Voices(), {"person"})
        agreed = text_consensus(heard)
        by_record: dict[str, list[Any]] = {}
        for found in agreed:
            by_record.setdefault(found.record, []).append(found)
        assert len(by_record) == 6
        assert {len(by_record[record]) for record in blind} == {1}, "both wrote the same on blind tasks"
        assert {by_record[r][0].confidence for r in blind} == {1.0}
        apart = by_record.keys() - blind - {skipped}
        assert {len(by_record[record]) for record in apart} == {2}, "and differ where Tom followed the draft"
        texts = {found.value for record in apart for found in by_record[record]}
        assert texts == {DRAFT, "We are sorry. Your parcel is refunded.\nNo duties are due."}
        labels = opened.ledger.labels(kinds={"person"}).to_pylist()
        assert {row["author"] for row in labels} == {p.id for p in plan.people(opened)}
        assert all(json.loads(row["extra"])["lead_time"] > 0 for row in labels)
    told = tilth(folder, "status", "--people")
    rows = {row["person"]: row for row in told["people"]}
    assert (rows["Ines"]["answers"], rows["Tom"]["answers"]) == (5, 6)
    assert rows["Ines"]["agreement"]["share"] == rows["Tom"]["agreement"]["share"] == 0.4
    # 7 answers to shown drafts (Ines 3, Tom 4), of which Tom's equal the draft; 4 blind ones, too few for a share.
    assert told["anchoring"]["shown"]["share"] == round(4 / 7, 4)
    assert told["anchoring"]["blind"] is None
    assert -1 <= told["alpha"] < 1


# Faults between us and the server


class Faults:
    """What the proxy does to answers: ``lose`` forwards a request and drops the answer, ``cut`` sends half of it."""

    def __init__(self) -> None:
        self.plan: list[str] = []
        self.log: list[str] = []

    def next(self, method: str, path: str) -> str:
        fault = self.plan.pop(0) if self.plan else ""
        self.log.append(f"{method} {path.partition('?')[0]} {fault}".strip())
        return fault


@pytest.fixture
def proxy(at: Server) -> Iterator[tuple[str, Faults]]:
    """A proxy in front of the real server that loses and cuts answers on demand."""
    faults = Faults()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            """Quiet."""

        def _forward(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            fault = faults.next(self.command, self.path)
            if fault == "busy":
                self._answer(503, "application/json", b'{"detail": "busy"}')
                return
            headers = {k: v for k, v in self.headers.items() if k.lower() not in ("host", "accept-encoding")}
            got = httpx.request(self.command, at.url + self.path, content=body, headers=headers, timeout=120)
            if fault == "lose":
                self.close_connection = True
                self.connection.close()
                return
            content = got.content[: len(got.content) // 2] if fault == "cut" else got.content
            if fault == "page":
                self._answer(200, "text/html", b"<html>Please log in</html>")
                return
            self._answer(got.status_code, got.headers.get("content-type", ""), content)

        def _answer(self, status: int, kind: str, content: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_PATCH = do_DELETE = _forward

    listening = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    listening.daemon_threads = True
    threading.Thread(target=listening.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listening.server_address[1]}", faults
    finally:
        listening.shutdown()
        listening.server_close()


REPLY = Question("reply", 1, "edit")


def pushed(number: int, question: Question = REPLY) -> list[dict[str, Any]]:
    """Tasks of so many records, every fifth of them blind."""
    made = []
    for i in range(number):
        record = digest(f"{NUMBER} record {i}")
        showing = Showing(record, "reply", 1, record, blind=i % 5 == 0, id=digest(f"{NUMBER} showing {i}"))
        row = {"record": record, "prompt": f"Where is parcel {i}?"}
        made.append(to_task(showing, row, Suggestion("On its way.", "adapter", 0.5), question))
    return made


def test_through_a_network_that_loses_and_cuts_answers_each_task_and_each_answer_arrives_once(
    at: Server, proxy: tuple[str, Faults], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, faults = proxy
    monkeypatch.setattr(project_module, "IMPORT", 5)
    http = admin(at).http
    with connect(url, at.token, sleep=lambda _: None) as client:
        channel = project_module.channel(client, REPLY, title=f"faults {NUMBER}")
        tasks = pushed(20)
        faults.log.clear()
        # Every second import is done by the server, and its answer lost; a look-up between is cut.
        faults.plan = ["", "lose", "cut", "", "", "", "lose", "", "", "", "lose", "cut"]
        remote = channel.push(tasks)
        assert channel.push(tasks) == remote
        assert sum("import lose" in line for line in faults.log) >= 2, faults.log
        listed = http.get("/api/tasks/", params={"project": channel.project, "page_size": 100}).json()
        assert listed["total"] == len(set(remote.values())) == 20
        # Answers in bulk, as a second project would be imported; then every kind of trouble on the way back.
        people_of = [sign_up(at, f"{name}-{NUMBER}@example.org") for name in ("vera", "wim")]
        ids = list(remote.values())
        notes = [people_of[i % 2].answer(ids[i], f"answer {i}", seconds=7.0) for i in range(12)]
        people_of[1].answer(ids[0], "another opinion")
        people_of[0].skip(ids[12], "needs context")
        small = replace(channel, page=4)
        whole = [a for page in small.pull() for a in page.answers]
        assert len(whole) == 14
        for fault in ("cut", "lose"):
            faults.plan = ["", *[fault] * 5]
            taken = []
            with pytest.raises(RemoteUnavailable):
                for page in small.pull():
                    taken.append(page)
            faults.plan = []
            mark = taken[-1].watermark if taken else None
            rest = [a for page in small.pull(mark) for a in page.answers]
            got = {a.annotation: a for page in taken for a in page.answers} | {a.annotation: a for a in rest}
            assert got == {a.annotation: a for a in whole}, fault
        faults.plan = ["busy", "page"]
        with pytest.raises(RemoteUnavailable, match="a web page"):
            list(channel.pull())
        faults.plan = ["busy", "cut", ""]
        assert len([a for page in channel.pull() for a in page.answers]) == 14, "what may pass is tried again"
        people_of[0].edit(notes[2], "second thought")
        people_of[1].delete(notes[1])
        later = [a for page in small.pull(held=whole) for a in page.answers]
        by_note = {a.annotation: a for a in later}
        assert by_note[str(notes[2])].value == "second thought"
        assert by_note[str(notes[1])].deleted
        assert {a.lead_time for a in later if a.usable and a.value != "another opinion"} == {7.0}
        assert [a.why for a in later if a.skipped] == ["needs context"]


# Two people over the API


def test_a_real_server_gives_back_what_two_people_said(at: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    question = replace(REPLY, guideline="Never promise $money or <b>dates</b>.")
    ines, tom = sign_up(at, f"ana-{NUMBER}@example.org"), sign_up(at, f"ben-{NUMBER}@example.org")
    assert tom.http.get("/user/signup/").status_code in (200, 403)
    title = f"two people {NUMBER}"
    with connect(at.url, at.token) as client:
        channel = project_module.channel(client, question, title=title)
        with monkeypatch.context() as patch:
            patch.setattr(client, "_send", lambda *_: pytest.fail("the project needs no change"))
            assert project_module.ensure_project(client, question, title=title) == channel.project
        made = pushed(20, question)
        remote = channel.push(made)
        assert channel.push(made) == remote
        _assert_project(at, channel, made)
        ids = list(remote.values())
        kept = ines.answer(ids[0], "Thursday, <b>surely</b>.\n$prompt")
        tom.answer(ids[0], "Friday.")
        edited = ines.answer(ids[1], "first thought", seconds=9.0)
        gone = tom.answer(ids[2], "to be taken back")
        tom.skip(ids[3])
        before = [label for page in channel.pull() for label in page.answers]
        assert len(before) == 5
        ines.edit(edited, "second thought")
        tom.delete(gone)
        after = [list(channel.pull(held=before)) for _ in range(2)]
        assert after[0] == after[1]
        _assert_labels([label for page in after[0] for label in page.answers], ids, ines.id, tom.id, kept)
        again = [
            label for page in channel.pull(after[0][-1].watermark, held=before) for label in page.answers
        ]
        assert set(again) <= {label for page in after[0] for label in page.answers}
        _assert_next_model_is_shown(client, ines)
        admin(at).http.delete(f"/api/tasks/{ids[5]}/").raise_for_status()
        assert channel.vanished(ids) == (ids[5],)
        with pytest.raises(RemoteUnavailable, match="not there"):
            list(replace(channel, project=99_999).pull())
    with (
        connect(at.url, "0" * 40) as stranger,
        pytest.raises(RemoteUnavailable, match="token is refused"),
    ):
        stranger.me()


def _assert_project(at: Any, channel: ProjectChannel, made: list[dict[str, Any]]) -> None:
    """Nothing was made twice, blind tasks have no prediction, and the guideline is text."""
    http = admin(at).http
    listed = http.get(
        "/api/tasks/", params={"project": channel.project, "fields": "all", "page_size": 100}
    ).json()
    assert listed["total"] == 20
    by_showing = {task["data"]["showing"]: task for task in listed["tasks"]}
    for task in made:
        assert len(by_showing[task["data"]["showing"]]["predictions"]) == len(task.get("predictions", ()))
    projects = http.get("/api/projects/", params={"title": f"two people {NUMBER}"}).json()["results"]
    assert [p["id"] for p in projects] == [channel.project]
    assert "&lt;b&gt;dates" in http.get(f"/api/projects/{channel.project}/").json()["expert_instruction"]


def _assert_labels(labels: list[PersonLabel], ids: list[str], ines: str, tom: str, kept: int) -> None:
    said = {(label.task, label.author): label for label in labels}
    assert len(said) == len(labels) == 5
    first = said[ids[0], ines]
    assert (first.value, first.lead_time, first.annotation) == (
        "Thursday, <b>surely</b>.\n$prompt",
        4.0,
        str(kept),
    )
    assert said[ids[0], tom].value == "Friday."
    assert said[ids[1], ines].value == "second thought"
    assert said[ids[2], tom].deleted
    assert said[ids[3], tom].skipped


def _assert_next_model_is_shown(client: LabelStudio, person: Person) -> None:
    """The suggestion of a second model fills in the box too, not only that of the first."""
    question = replace(REPLY, name="tone")
    channel = project_module.channel(client, question, title=f"tone {NUMBER}")
    for model in ("adapter-7", "adapter-8"):
        record = digest(model)
        showing = Showing(record, "tone", 1, record, id=digest(f"showing of {model}"))
        suggestion = Suggestion(f"from {model}", model, 0.5)
        channel.push([to_task(showing, {"record": record, "prompt": "?"}, suggestion, question)])
        task = person.http.get(f"/api/projects/{channel.project}/next").raise_for_status().json()
        assert task["data"]["suggestion"] == f"from {model}"
        person.skip(str(task["id"]))


# The loop, the webhook, the ML backend


def test_a_webhook_wakes_the_poll_and_the_ml_backend_is_asked(at: Server, tilth: Any, tmp_path: Path) -> None:
    import uvicorn

    from apps import serve
    from apps.label_studio_server import free_port
    from curation.people import connection

    folder = desk(
        tmp_path / f"hooks-{NUMBER}", letters(30), {'kind = "auto"': 'kind = "edit"'}, completion="draft"
    )
    with open_workspace(folder, actor="ana") as opened:
        choose(opened, 2)
    tilth(folder, "push")
    secret, port = "ab" * 20, free_port()
    url = f"http://127.0.0.1:{port}"
    knocker = serve.Knocker()
    service = serve.Service(folder, "ana", secret, serve.hosts_of(at.url), ToyLearner)
    app_ = serve.create_app(service, knocker, every=600)
    running = uvicorn.Server(uvicorn.Config(app_, host="127.0.0.1", port=port, log_level="error"))
    thread = threading.Thread(target=running.run, daemon=True)
    thread.start()
    try:
        serve.wait_until_healthy(url)
        with open_workspace(folder, actor="ana") as opened:
            assert connection.register(opened, url, secret)["added"]
            assert not connection.register(opened, url, secret)["added"], "registered once"
            assert len(connection.connect_backends(opened, url, secret)) == 1
            assert connection.connect_backends(opened, url, secret) == []
            checks = {check.name: check for check in connection.examine(opened)}
            assert {check.state for check in checks.values()} == {"good"}, checks
            assert "takes personal and legacy" in checks["label studio token"].detail
            (task, _) = opened.ledger.tasks()
        sign_up(at, f"xenia-{NUMBER}@example.org").answer(task.remote, "It is on its way.")
        deadline = time.monotonic() + 60
        labels = 0
        while not labels and time.monotonic() < deadline:
            time.sleep(0.5)
            with open_workspace(folder, actor="ana") as opened:
                labels = opened.ledger.labels(kinds={"person"}).num_rows
        assert labels == 1, "nobody pulled: the webhook did"
        assert knocker.knocks >= 1
        http = admin(at).http
        (hook,) = [h for h in http.get("/api/webhooks/").json() if h["url"] == f"{url}/webhook"]
        http.patch(f"/api/webhooks/{hook['id']}/", json={"is_active": False}).raise_for_status()
        told = {check["name"]: check for check in _checks(folder)}
        assert told["webhook"]["state"] == "bad"
        http.delete(f"/api/webhooks/{hook['id']}/")
    finally:
        running.should_exit = True
        thread.join(timeout=30)


def _checks(folder: Path) -> list[dict[str, Any]]:
    done = CliRunner().invoke(app, ["--workspace", str(folder), "--json", "--quiet", "doctor"])
    return list(json.loads(done.stdout.strip().splitlines()[-1])["checks"])


def test_classes_that_somebody_used_are_revised_on_the_server(at: Server, tilth: Any, tmp_path: Path) -> None:
    folder = desk(
        tmp_path / f"revised-{NUMBER}",
        [{"id": f"C{i}", "prompt": f"Inquiry number {i} about something"} for i in range(30)],
        {'kind = "auto"': 'kind = "class"\nclasses = ["billing", "claims", "customs"]'},
    )
    with open_workspace(folder, actor="ana") as opened:
        choose(opened, 4)
    tilth(folder, "push")
    who = sign_up(at, f"yann-{NUMBER}@example.org")
    with open_workspace(folder, actor="ana") as opened:
        tasks = [task.remote for task in opened.ledger.tasks()]
    for task, name in zip(tasks, ("billing", "claims", "customs"), strict=False):
        who.choose(task, name)
    assert tilth(folder, "pull")["added"] == 3
    told = tilth(
        folder, "question", "revise", "--rename", "claims=damages", "--remove", "customs", "--add", "other"
    )
    assert told["labels"] == {"kept": 1, "mapped": 1, "asked_again": 1}
    assert tilth(folder, "question")["classes"] == ["billing", "damages", "other"]
    with open_workspace(folder, actor="ana") as opened:
        assert len(opened.ledger.tasks()) == 5, "the record whose class went is asked about again"
        last = opened.ledger.tasks()[-1].remote
    who.choose(last, "other")
    assert tilth(folder, "pull")["added"] == 1


def test_a_project_of_others_is_taken_over_on_the_server(at: Server, tilth: Any, tmp_path: Path) -> None:
    http = admin(at).http
    choices = (
        '<Choices name="topic" toName="mail"><Choice value="billing"/><Choice value="claims"/></Choices>'
    )
    interface = f'<View><Text name="mail" value="$body"/>{choices}</View>'
    made = http.post("/api/projects/", json={"title": f"Mails {NUMBER}", "label_config": interface})
    project = int(made.raise_for_status().json()["id"])
    rows = [{"data": {"body": f"Where is my invoice {i}?"}} for i in range(6)]
    ids = http.post(f"/api/projects/{project}/import?return_task_ids=true", json=rows).json()["task_ids"]
    who = sign_up(at, f"uma-{NUMBER}@example.org")
    region = {
        "id": "a",
        "from_name": "topic",
        "to_name": "mail",
        "type": "choices",
        "value": {"choices": ["billing"]},
    }
    note = {"result": [region], "lead_time": 3.0}
    who.http.post(f"/api/tasks/{ids[0]}/annotations/", json=note).raise_for_status()
    folder = tmp_path / f"adopted-{NUMBER}"
    init(folder, actor="ana")
    assert tilth(folder, "question", "adopt", str(project), "--dry-run")["tasks"] == 6
    told = tilth(folder, "question", "adopt", str(project))
    assert (told["records"], told["added"], told["kind"]) == (6, 1, "class")
    assert tilth(folder, "question")["classes"] == ["billing", "claims"]
    who.http.post(f"/api/tasks/{ids[1]}/annotations/", json=note).raise_for_status()
    assert tilth(folder, "pull")["added"] == 1
    with open_workspace(folder, actor="ana") as opened:
        assert opened.ledger.labels(kinds={"person"})["body"].to_pylist() == ["billing"] * 2


@pytest.mark.slow
def test_the_loop_goes_on_through_two_rounds_with_people_behind_the_server(
    at: Server, tilth: Any, tmp_path: Path
) -> None:
    from tests.curation.toys import CLASSES, inquiries

    rows = inquiries(160)
    folder = desk(
        tmp_path / f"loop-{NUMBER}",
        [*rows],
        {'kind = "auto"': f'kind = "class"\nclasses = {json.dumps(CLASSES)}', "batch = 50 ": "batch = 6 "},
        gold="gold",
    )
    text = (folder / "tilth.toml").read_text().replace("rank = 16", "rank = 4\nadapt_steps = 5\nepochs = 1")
    (folder / "tilth.toml").write_text(text)
    right = {row["prompt"]: row["gold"] for row in rows}
    who: Person | None = None
    sent: list[int] = []
    for number in (1, 2):
        told = tilth(folder, "run", "--rounds", "2", "--annotator", "label-studio")
        assert told["waiting_for"]["round"] == number
        again = tilth(folder, "run", "--rounds", "2", "--annotator", "label-studio")
        assert again["waiting_for"] == told["waiting_for"], "waiting is not asking twice"
        project = int(told["waiting_for"]["where"].split("/projects/")[1].split("/")[0])
        http = admin(at).http
        listed = http.get(
            "/api/tasks/", params={"project": project, "page_size": 100, "fields": "all"}
        ).json()
        sent.append(listed["total"])
        who = who or sign_up(at, f"zoe-{NUMBER}@example.org")
        for task in listed["tasks"]:
            if not task["annotations"]:
                who.choose(str(task["id"]), right[task["data"]["prompt"]])
    done = tilth(folder, "run", "--rounds", "2", "--annotator", "label-studio")
    assert [r["labels"] for r in done["rounds"]] == [6, 12]
    assert sent == [6, 12], "nothing was pushed twice"
    assert "waiting_for" not in done
