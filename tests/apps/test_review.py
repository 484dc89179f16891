"""The curators' page: who may decide, what is written, and that text stays text on the screen."""

from __future__ import annotations

import ast
import http.server
import re
import subprocess
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apps.label_studio_server import free_port
from apps.review import command, desk
from apps.review import page as page_module
from apps.review.desk import MAY, Desk, Entry, Item, open_desk, waiting
from apps.review.page import KEYS, is_loopback
from curation import assemble
from curation.curate import curate
from curation.errors import GateRefused, TilthError, UsageError
from curation.ledger import NewLabel, Question, ReviewConflict
from curation.workspace import Workspace, open_workspace
from tests.apps.review_workspace import ANSWERS, PROMPTS, QUARREL, build, quarrel

ROOT = Path(__file__).resolve().parent.parent.parent
CHROMIUM = Path("/usr/bin/chromium")
CANARY = "mara.canary@example.org"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "workspace"


@pytest.fixture
def ids(root: Path) -> dict[str, str]:
    return build(root)


@pytest.fixture
def mara(root: Path, ids: dict[str, str]) -> Iterator[Desk]:
    with sitting(root, "mara") as at:
        yield at


@contextmanager
def sitting(root: Path, actor: str) -> Iterator[Desk]:
    at = open_desk(root, actor=actor)
    try:
        yield at
    finally:
        at.ledger.close()


def item_of(at: Desk, record: str) -> Item:
    return at.item(next(entry for entry in at.queue() if entry.record == record))


# The queue


def test_the_queue_holds_what_needs_a_curator_and_says_why(mara: Desk, ids: dict[str, str]) -> None:
    names = {record: name for name, record in ids.items()}
    found = [(names[e.record], e.reasons[0].kind, e.reasons[0].words) for e in mara.queue()]
    assert [(name, kind) for name, kind, _ in found] == [
        ("parcel", "disagreement"), ("refund", "conflict"), ("customs", "held"), ("unscanned", "quarantined")
    ]  # fmt: skip
    assert found[0][2] == "two people disagree: agreement 0.21, below 0.60"


def test_decisions_of_an_older_rule_wait_for_nobody(mara: Desk) -> None:
    newer = Desk(mara.ledger, {**mara.rules, "quality": "another rule"})
    assert len(newer.queue()) == len(mara.queue()) - 1


def test_an_item_shows_every_answer_once_with_everybody_who_gave_it(mara: Desk, ids: dict[str, str]) -> None:
    again = mara.ledger.add_author("zoe", "person")
    mara.ledger.add_labels([NewLabel(ids["parcel"], None, None, "person", again, "Please call the depot.")])
    item = item_of(mara, ids["parcel"])
    assert item.prompt == PROMPTS["parcel"]
    assert [len(answer.voices) for answer in item.answers] == [2, 1, 1], "what most stand by comes first"
    shown = {voice.name for answer in item.answers for voice in answer.voices}
    assert not shown & {"ines", "tom", "zoe"}, "names of people should not sway"


def test_a_conflict_brings_the_other_records_answer_beside_it(mara: Desk, ids: dict[str, str]) -> None:
    item = item_of(mara, ids["refund"])
    assert [answer.text for answer in item.answers] == [ANSWERS["refund"], ANSWERS["refund-twin"]]
    assert item.answers[1].voices[0].kind == "other record: candidate"


def test_functions_stand_by_the_class_they_voted_for(mara: Desk, ids: dict[str, str]) -> None:
    voting = Desk(
        mara.ledger, mara.rules, lambda record: [("calls", "Please call the depot."), ("no", "REJECT")]
    )
    item = item_of(voting, ids["parcel"])
    assert [
        voice.name
        for answer in item.answers
        for voice in answer.voices
        if voice.kind == "function" and answer.text == "Please call the depot."
    ] == ["calls"]
    assert ("no", "REJECT") in item.votes


def test_a_text_that_no_scan_has_seen_is_not_handed_out(mara: Desk, ids: dict[str, str]) -> None:
    item = item_of(mara, ids["unscanned"])
    assert (item.prompt, item.answers, item.votes) == ("", (), ())
    assert "not been scanned" in item.hidden
    assert PROMPTS["unscanned"] not in repr(item)
    with pytest.raises(UsageError, match="nobody can answer for it"):
        mara.edit(item, "東京にあります。")
    assert mara.skip(item).action == "skip"


@pytest.mark.parametrize("guarded", [True, False])
def test_personal_data_that_a_curator_types_never_reaches_a_snapshot_and_unguarded_it_would(
    mara: Desk, root: Path, ids: dict[str, str], monkeypatch: pytest.MonkeyPatch, guarded: bool
) -> None:
    mara.edit(item_of(mara, ids["parcel"]), f"Write to {CANARY} about it.")

    def rows(opened: Workspace) -> str:
        return "".join(str(table.to_pylist()) for table in assemble.compose(opened).tables)

    with open_workspace(root, actor="mara") as opened:
        if not guarded:
            monkeypatch.setattr(assemble, "require_covered", lambda workspace, rules: None)
            assert CANARY in rows(opened)
            return
        with pytest.raises(GateRefused):
            rows(opened)
        curate(opened)
        assert "about it." in rows(opened)
        assert CANARY not in rows(opened)


def test_an_erased_record_is_named_and_passed_by(mara: Desk) -> None:
    with pytest.raises(TilthError):
        mara.item(Entry("0" * 32, ()))


# Decisions


def test_a_decision_is_in_the_ledger_when_the_call_returns(
    mara: Desk, root: Path, ids: dict[str, str]
) -> None:
    item = item_of(mara, ids["parcel"])
    done = mara.accept(item, item.answers[1].text, reason="names the time")
    with sitting(root, "ana") as other:
        version, (entry,) = other.ledger.review_state(ids["parcel"])
        labels = other.ledger.labels(records=[ids["parcel"]], kinds={"curator"}).to_pylist()
    assert (version, entry.action, entry.body, entry.actor) == (1, "accept", item.answers[1].text, "mara")
    assert [(row["label"], row["body"]) for row in labels] == [(done.label, item.answers[1].text)]


def test_only_an_answer_on_the_screen_can_be_accepted(mara: Desk, ids: dict[str, str]) -> None:
    with pytest.raises(UsageError, match="not on the screen"):
        mara.accept(item_of(mara, ids["parcel"]), "something else")
    with pytest.raises(UsageError, match="empty"):
        mara.edit(item_of(mara, ids["parcel"]), " \n")


def test_the_same_decision_sent_twice_is_one(mara: Desk, ids: dict[str, str]) -> None:
    item = item_of(mara, ids["parcel"])
    first, second = (mara.accept(item, item.answers[0].text) for _ in range(2))
    assert (second.version, second.repeated, first.repeated) == (first.version, True, False)
    assert len(mara.ledger.review_state(ids["parcel"])[1]) == 1


def test_a_second_curator_sees_the_first_ones_decision_and_overwrites_nothing(
    mara: Desk, root: Path, ids: dict[str, str]
) -> None:
    with sitting(root, "ana") as ana:
        hers = item_of(ana, ids["parcel"])
        mara.edit(item_of(mara, ids["parcel"]), "Thursday.\nBefore noon.")
        with pytest.raises(ReviewConflict) as raised:
            ana.edit(hers, "Thursday.\nAfter noon.")
        assert (raised.value.theirs.actor, raised.value.theirs.action) == ("mara", "edit")
        assert "-Before noon." in raised.value.diff
        assert "+After noon." in raised.value.diff
        assert raised.value.exit_code == 4
        assert ana.ledger.review_state(ids["parcel"])[0] == 1


def test_undo_takes_back_ones_own_decisions_one_by_one(mara: Desk, root: Path, ids: dict[str, str]) -> None:
    before = snapshot(mara, ids)
    mara.reject(item_of(mara, ids["parcel"]))
    mara.skip(item_of(mara, ids["refund"]))
    with sitting(root, "ana") as ana:
        ana.reject(item_of(ana, ids["customs"]))
        assert mara.undo().record == ids["refund"]
        assert mara.undo().record == ids["parcel"]
        with pytest.raises(UsageError, match="nothing of yours"):
            mara.undo()
        assert ana.undo().record == ids["customs"]
    assert snapshot(mara, ids) == before
    assert [entry.action for entry in mara.ledger.reviews()].count("undo") == 3, "every step is kept"


def snapshot(at: Desk, ids: dict[str, str]) -> list[Any]:
    """What stands: reviews and the curators' labels that count."""
    states = at.ledger.review_states().select(["record", "action", "label"]).to_pylist()
    labels = at.ledger.labels(kinds={"curator"}).select(["record", "label", "body"]).to_pylist()
    return [states, sorted(labels, key=str)]


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["parcel", "refund", "customs"]),
        st.sampled_from(["accept", "edit", "reject", "skip"]),
    ),
    min_size=1,
    max_size=6,
)


@settings(max_examples=15, deadline=None)
@given(steps=STEPS)
def test_undoing_every_decision_restores_each_state_in_turn(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, str]]
) -> None:
    root = tmp_path_factory.mktemp("undo") / "workspace"
    ids = build(root)
    with sitting(root, "mara") as at:
        states = [snapshot(at, ids)]
        for number, (name, action) in enumerate(steps):
            take(at, item_of(at, ids[name]), action, number)
            states.append(snapshot(at, ids))
        for earlier, _later in reversed(list(pairwise(states))):
            at.undo()
            assert snapshot(at, ids) == earlier


def take(at: Desk, item: Item, action: str, number: int) -> None:
    if action == "accept":
        at.accept(item, item.answers[0].text)
    elif action == "edit":
        at.edit(item, f"text {number}")
    else:
        getattr(at, action)(item)


def test_what_is_decided_leaves_the_queue_and_what_is_skipped_goes_to_its_end(
    mara: Desk, ids: dict[str, str]
) -> None:
    mara.skip(item_of(mara, ids["parcel"]))
    mara.reject(item_of(mara, ids["refund"]))
    left = waiting(mara.queue())
    assert [entry.record for entry in left] == [ids["customs"], ids["unscanned"], ids["parcel"]]
    assert [entry.record for entry in waiting(mara.queue(), "held")] == [ids["customs"]]
    done = mara.progress(mara.queue())
    assert (done.decided, done.skipped, done.total) == (1, 1, 4)


# Roles

CALLS: dict[str, tuple[str, Callable[[Desk, Item], Any]]] = {
    "queue": ("look", lambda at, item: at.queue()),
    "item": ("look", lambda at, item: at.item(Entry(item.record, item.reasons))),
    "accept": ("decide", lambda at, item: at.accept(item, item.answers[0].text)),
    "edit": ("decide", lambda at, item: at.edit(item, "new")),
    "reject": ("decide", lambda at, item: at.reject(item)),
    "skip": ("decide", lambda at, item: at.skip(item)),
    "undo": ("decide", lambda at, item: at.undo()),
    "grant": ("decide", lambda at, item: at.grant("eve", "curator")),
}


@pytest.mark.parametrize("role", [*MAY, "a stranger"])
def test_every_call_asks_for_the_role_that_it_needs(
    mara: Desk, root: Path, ids: dict[str, str], role: str
) -> None:
    item = item_of(mara, ids["parcel"])
    mara.grant("mara", "curator")
    if role in MAY:
        mara.grant("ana", role)
    with sitting(root, "ana") as ana:
        for name, (needs, call) in CALLS.items():
            if needs in MAY.get(role, set()):
                with allowed():
                    call(ana, item)
            else:
                with pytest.raises(GateRefused, match=f"may not {needs}"):
                    call(ana, item)
                assert mara.ledger.review_state(ids["parcel"])[0] == 0, name


@contextmanager
def allowed() -> Iterator[None]:
    """Anything but a refusal: a conflict with an earlier call of the loop is not about roles."""
    try:
        yield
    except GateRefused:
        raise
    except TilthError:
        return


def test_a_role_taken_away_counts_at_once(mara: Desk, root: Path, ids: dict[str, str]) -> None:
    mara.grant("ana", "curator")
    assert mara.role() == "curator", "whoever gives the first role keeps their own"
    with sitting(root, "ana") as ana:
        item = item_of(ana, ids["parcel"])
        mara.grant("ana", "viewer")
        with pytest.raises(GateRefused, match="ana is viewer"):
            ana.reject(item)


def test_without_the_check_a_stranger_could_decide(
    mara: Desk, root: Path, ids: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    mara.grant("mara", "curator")
    item = item_of(mara, ids["parcel"])
    with sitting(root, "eve") as eve:
        with pytest.raises(GateRefused):
            eve.reject(item)
        monkeypatch.setattr(Desk, "require", lambda self, what: None)
        assert eve.reject(item).action == "reject"


# The page, drawn without a browser


def script(root: str, actor: str, address: str) -> None:
    import streamlit

    from apps.review import page

    streamlit.get_option = lambda name: address
    page.main(["--workspace", root, "--actor", actor])


def drawn(root: Path, actor: str = "mara", address: str = "127.0.0.1") -> Any:
    from streamlit.testing.v1 import AppTest

    given = {"root": str(root), "actor": actor, "address": address}
    return AppTest.from_function(script, kwargs=given, default_timeout=30).run()


@pytest.fixture(autouse=True)
def _own_options(monkeypatch: pytest.MonkeyPatch) -> None:
    import streamlit

    monkeypatch.setattr(streamlit, "get_option", streamlit.get_option)


def texts(page: Any) -> list[str]:
    return [element.value for element in page.text]


def press(page: Any, label: str) -> Any:
    (button,) = [b for b in page.button if b.label == label]
    return button.click().run()


def test_the_page_shows_prompt_answers_reasons_and_keys(root: Path, ids: dict[str, str]) -> None:
    page = drawn(root)
    assert not page.exception
    assert PROMPTS["parcel"] in texts(page)
    assert ANSWERS["parcel"] in texts(page)
    assert "Two people disagree: agreement 0.21, below 0.60" in texts(page)
    shortcuts = {b.label: b.proto.shortcut for b in page.button}
    for name, key in KEYS.items():
        assert shortcuts[name.capitalize()] == key.lower()
    assert shortcuts["Choose"] in "23"


def test_pressing_through_the_queue_writes_every_decision(
    root: Path, ids: dict[str, str], mara: Desk
) -> None:
    page = drawn(root)
    page = press(page, "Accept")
    page = press(page, "Skip")
    page = press(page, "Edit")
    page.text_area[0].set_value("Please declare what it is worth.")
    page = press(page, "Save")
    page = press(page, "Reject")
    done = [(r.action, r.record) for r in mara.ledger.reviews()]
    names = ("parcel", "refund", "customs", "unscanned")
    assert done == list(zip(("accept", "skip", "edit", "reject"), (ids[name] for name in names), strict=True))
    assert mara.ledger.review_state(ids["customs"])[1][0].body == "Please declare what it is worth."
    page = press(page, "Undo")
    assert mara.ledger.reviews()[-1].action == "undo"
    assert not page.exception


def test_the_chosen_answer_is_the_one_that_is_accepted(root: Path, ids: dict[str, str], mara: Desk) -> None:
    page = drawn(root)
    third = [b for b in page.button if b.label == "Choose"][-1]
    page = third.click().run()
    press(page, "Accept")
    assert mara.ledger.reviews()[0].body == ANSWERS["parcel"], "a draft that nobody stands by comes last"


def test_a_quarrel_shows_who_said_what_with_skill_and_time_and_is_decided_by_a_key(root: Path) -> None:
    record = quarrel(root)
    page = drawn(root)
    assert not page.exception
    shown = texts(page)
    assert QUARREL in shown
    assert "People disagree: billing, customs" in shown
    (billing,), (customs,) = (
        [text for text in shown if word in text] for word in ("was shown “billing”", "saw no suggestion")
    )
    tom, model = billing.splitlines()
    assert " s  ·  2026-03-01 10:00" in tom
    assert "5 s" in tom
    assert model.startswith("model 5f0c9a")
    assert "83% sure" in model
    kim, function = customs.splitlines()
    assert "41 s" in kim
    assert function == "function mentions_the_border"
    assert float(re.search(r"skill (0\.\d+)", tom)[1]) < 0.95  # type: ignore[index]
    assert shown.index(customs) < shown.index(billing), "the side that more skill speaks for comes first"
    assert not any("Other votes" in text for text in shown), "the vote stands by its answer"
    page = press(page, "Choose")
    press(page, "Accept")
    with sitting(root, "mara") as at:
        assert [(r.action, r.record, r.body) for r in at.ledger.reviews()] == [("accept", record, "billing")]
        assert at.queue()[0].state == "accept"


def test_a_persons_judgement_of_an_answer_is_no_answer_on_the_page(
    root: Path, ids: dict[str, str], mara: Desk
) -> None:
    author = mara.ledger.add_author("zoe", "person")
    mara.ledger.add_question(Question("quality", 1, "rubric", ("kind",)))
    said = NewLabel(ids["parcel"], "quality", 1, "person", author, '{"kind":1}')
    mara.ledger.add_labels([said])
    assert '{"kind":1}' not in {answer.text for answer in item_of(mara, ids["parcel"]).answers}


def test_next_and_previous_move_and_stay_at_the_ends(root: Path, ids: dict[str, str]) -> None:
    page = drawn(root)
    page = press(page, "Previous")
    assert PROMPTS["parcel"] in texts(page)
    for _ in range(5):
        page = press(page, "Next")
    assert "4 of 4  ·  from mail" in texts(page)


def shared_buttons(root: Path) -> set[str]:
    """The keys of deciding buttons that one item has in common with the next."""
    names = {name.capitalize() for name in KEYS}
    page = drawn(root)
    first = {b.key for b in page.button if b.label in names}
    return first & {b.key for b in press(page, "Next").button if b.label in names}


def test_no_button_of_one_item_is_there_for_a_second_click_on_the_next(
    root: Path, ids: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert shared_buttons(root) == set()
    fixed = page_module.button
    monkeypatch.setattr(
        page_module, "button", lambda name, seen, *rest, **more: fixed(name, "x", *rest, **more)
    )
    assert len(shared_buttons(root)) >= 6, "the check sees keys that do not name the item"


def test_a_conflict_shows_the_others_decision_and_the_difference(
    root: Path, ids: dict[str, str], mara: Desk
) -> None:
    page = drawn(root, "ana")
    page = press(page, "Edit")
    mara.edit(item_of(mara, ids["parcel"]), "Thursday.")
    page.text_area[0].set_value("Friday.")
    page = press(page, "Save")
    assert "Somebody else decided first" in page.warning[0].value
    assert any(text.startswith("mara edited it") for text in texts(page))
    assert "-Thursday." in page.code[0].value
    assert "+Friday." in page.code[0].value


def test_only_one_kind_is_shown_when_asked_for(root: Path, ids: dict[str, str]) -> None:
    page = drawn(root)
    page.button_group[0].set_value("held").run()
    assert PROMPTS["customs"] in texts(page)
    page = press(page, "Reject")
    assert not page.exception
    assert "### Nothing of this kind waits" in [m.value for m in page.markdown]


@pytest.mark.parametrize("address", ["0.0.0.0", "", "192.168.1.10", "example.org"])
def test_the_page_is_not_served_beyond_this_machine(root: Path, ids: dict[str, str], address: str) -> None:
    page = drawn(root, address=address)
    assert "served to this machine only" in page.error[0].value
    assert texts(page) == []
    assert not is_loopback(address)
    assert is_loopback("127.0.0.1")
    assert is_loopback("::1")


def test_a_stranger_sees_a_refusal_and_no_text(root: Path, ids: dict[str, str], mara: Desk) -> None:
    mara.grant("mara", "curator")
    page = drawn(root, "eve")
    (said,) = texts(page)
    assert "eve is not known here" in said
    assert not page.button


def test_the_command_serves_the_loopback_and_reports_to_nobody() -> None:
    parts = command(Path("/w"), 9000, actor="mara")
    for name, value in {
        "--server.address": "127.0.0.1",
        "--server.port": "9000",
        "--browser.gatherUsageStats": "false",
    }.items():
        assert parts[parts.index(name) + 1] == value
    assert parts[parts.index("--") :] == ["--", "--workspace", "/w", "--actor", "mara"]


# Text stays text

RENDERING = {
    "markdown",
    "write",
    "html",
    "caption",
    "title",
    "header",
    "subheader",
    "latex",
    "error",
    "warning",
}
RENDERING |= {
    "info",
    "success",
    "toast",
    "json",
    "dataframe",
    "data_editor",
    "iframe",
    "image",
    "exception",
    "metric",
}


def rendered_data(source: str) -> list[str]:
    """Calls that render what is not a fixed text of the page, and every ``unsafe_allow_html``."""
    found = ["unsafe_allow_html"] if "unsafe_allow_html" in source else []
    for node in ast.walk(ast.parse(source)):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
            continue
        if (
            node.func.attr in RENDERING
            and isinstance(node.func.value, ast.Name)
            and node.func.value.id == "st"
        ):
            found += [ast.unparse(node) for argument in node.args if not _fixed(argument)]
    return found


def _fixed(node: ast.expr) -> bool:
    """Whether the text can only be what the page's author wrote."""
    if isinstance(node, ast.IfExp):
        return _fixed(node.body) and _fixed(node.orelse)
    return isinstance(node, ast.Constant) or ast.unparse(node) in ("STYLE", "words", "TOLD[done.action]")


def test_nothing_but_fixed_words_is_ever_rendered() -> None:
    assert rendered_data((ROOT / "apps/review/page.py").read_text("utf-8")) == []


@pytest.mark.parametrize(
    "line",
    ["st.markdown(item.prompt)", "st.error(f'{error}')", "st.text(x, unsafe_allow_html=True)", "st.write(a)"],
)
def test_the_check_for_rendering_finds_it(line: str) -> None:
    assert rendered_data(line)


@contextmanager
def served(root: Path) -> Iterator[str]:
    """The page as ``tilth review`` serves it."""
    port = free_port()
    process = subprocess.Popen(
        command(root, port, actor="mara"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=ROOT
    )
    try:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/_stcore/health", timeout=2)
                break
            except OSError:
                time.sleep(0.3)
        yield f"http://127.0.0.1:{port}/"
    finally:
        process.terminate()
        process.wait(timeout=20)


@contextmanager
def bait() -> Iterator[tuple[str, list[str]]]:
    """A server that must never be asked for anything."""
    asked: list[str] = []

    class Listener(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_error(404)

        def log_message(self, *_: object) -> None:
            """Quiet."""

    listening = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Listener)
    threading.Thread(target=listening.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listening.server_address[1]}", asked
    finally:
        listening.shutdown()
        listening.server_close()


def payloads(url: str) -> list[str]:
    """Texts that would run or fetch something if they were rendered; none would be noticed on a screen."""
    tags = [
        f"<script>fetch('{url}/{{n}}')</script>",
        f"<img src={url}/{{n}} onerror=\"fetch('{url}/{{n}}')\">",
        f"![picture]({url}/{{n}})",
        f"<svg onload=\"fetch('{url}/{{n}}')\">",
        f"<iframe src='{url}/{{n}}'></iframe>",
        f"<link rel=stylesheet href={url}/{{n}}>",
        f"<style>@import '{url}/{{n}}'</style>",
        f"[click](javascript:fetch('{url}/{{n}}'))",
        f":material/{{n}}: $$\\href{{{{{url}}}}}{{{{x}}}}$$ :red[x]",
        f"<a href='{url}/{{n}}' ping='{url}/{{n}}'>x</a>",
    ]
    return [tag.format(n=f"{i}-{j}") for i in range(10) for j, tag in enumerate(tags)]


BROWSER = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip


@contextmanager
def browser_page(url: str) -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api")
    if not CHROMIUM.exists():
        pytest.skip("Chromium is not installed: apt-get install chromium")
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=str(CHROMIUM), args=BROWSER)
        page = chromium.new_page(viewport={"width": 1400, "height": 1000})
        page.set_default_timeout(60_000)
        page.goto(url)
        page.get_by_role("button", name="Accept").wait_for()
        yield page
        chromium.close()


@pytest.mark.browser
def test_in_a_browser_keys_decide_typing_does_not_and_nothing_is_fetched(root: Path) -> None:
    ids = build(root)
    with bait() as (elsewhere, asked), sitting(root, "mara") as at:
        hundred = payloads(elsewhere)
        author = at.ledger.add_author("mallory", "person")
        at.ledger.add_labels(
            [NewLabel(ids["parcel"], None, None, "person", author, text) for text in hundred]
        )
        with served(root) as url, browser_page(url) as page:
            requests: list[str] = []
            page.on("request", lambda request: requests.append(request.url))
            page.reload()
            page.get_by_text(hundred[-1], exact=True).wait_for()
            assert page.get_by_text("picture](").count() == 10, "shown as it was written"
            _keys(page, at, ids)
            strangers = [
                r for r in requests if not r.startswith((url, "data:", "blob:", url.replace("http", "ws")))
            ]
            assert strangers == []
            assert asked == []
            page.evaluate("url => fetch(url, {mode: 'no-cors'}).catch(() => 0)", f"{elsewhere}/control")
        assert asked == ["/control"], "the bait notices a page that does ask"


def choose_second(page: Any) -> None:
    """Press until the page has heard it: its keys are bound a moment after it is drawn."""
    for _ in range(30):
        press_key(page, "2", "Chosen")
        page.wait_for_timeout(1000)
        if page.evaluate(SECOND_IS_CHOSEN):
            return
    pytest.fail("the second answer could not be chosen by its key")


SECOND_IS_CHOSEN = """() => {
    const cards = [...document.querySelectorAll("button")].map(b => b.innerText).filter(t => /^Cho(ose|sen)/.test(t));
    return cards.length > 1 && cards[0].startsWith("Choose") && cards[1].startsWith("Chosen");
}"""


def press_key(page: Any, key: str, shows: str) -> None:
    """Press once the page has come to rest, as a person does, and wait for what it leads to."""
    page.locator("[data-testid=stApp][data-test-script-state=notRunning]").wait_for()
    page.keyboard.press(key)
    page.get_by_text(shows, exact=True).first.wait_for()


def _keys(page: Any, at: Desk, ids: dict[str, str]) -> None:
    second = item_of(at, ids["parcel"]).answers[1].text
    choose_second(page)
    press_key(page, "e", "Save")
    box = page.locator("textarea")
    box.click()
    box.press("End")
    box.type(" a x s u j k")
    page.wait_for_timeout(500)
    assert at.ledger.reviews() == [], "letters typed into the box are letters"
    press_key(page, "Control+Enter", PROMPTS["refund"])
    assert at.ledger.reviews()[0].action == "edit"
    assert at.ledger.reviews()[0].body == f"{second} a x s u j k", "the second answer was chosen and edited"
    page.get_by_role("button", name="Accept").dblclick()
    page.get_by_text(PROMPTS["customs"], exact=True).wait_for()
    page.wait_for_timeout(1000)
    assert [(r.action, r.record) for r in at.ledger.reviews()][1:] == [("accept", ids["refund"])]
    press_key(page, "u", PROMPTS["refund"])
    press_key(page, "j", PROMPTS["customs"])
    press_key(page, "k", PROMPTS["refund"])
    page.reload()
    page.get_by_role("button", name="Reject").wait_for()
    press_key(page, "x", PROMPTS["customs"])
    assert [r.action for r in at.ledger.reviews()] == ["edit", "accept", "undo", "reject"]


def test_the_page_imports_its_rules_from_the_desk_alone() -> None:
    tree = ast.parse((ROOT / "apps/review/page.py").read_text("utf-8"))
    names = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {name for name in names if name and name.startswith(("apps", "curation"))} == {
        "apps.review.desk", "apps.review.voices", "curation.errors", "curation.ledger"
    }  # fmt: skip
    assert "streamlit" not in (ROOT / "apps/review/desk.py").read_text("utf-8")
    assert desk.__doc__
