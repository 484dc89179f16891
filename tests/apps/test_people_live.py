"""A real Label Studio, real browsers: what annotators see, what they do there, and what becomes of it.

One server serves the whole file. The module needs Label Studio (``make label-studio-install``) and Chromium; it skips,
saying so, where one is missing.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from apps.cli import app
from apps.label_studio_server import Server
from curation import loop, people, workspace
from curation.formats import Mapping
from curation.loop import Run
from curation.people import plan
from curation.workspace import Workspace, init, open_workspace
from tests.curation.toys import ToyLearner, write_rows
from tests.label_studio_server import server, sign_up

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


def choose(opened: Workspace) -> None:
    """Choose the next batch as a run does, without torch."""
    loop.choose(Run(opened, ToyLearner(opened), people.label_studio(), "label-studio"))


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
        loop.choose(Run(opened, ToyLearner(opened), people.label_studio(), "label-studio", batch=6))
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
    from curation.assemble import Voices, opinions
    from curation.consensus import text_consensus
    from curation.curate import Rules, blocked
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
