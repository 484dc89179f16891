"""The review page: it draws what the desk hands out and passes on what the curator presses.

Nothing is decided here. What people or models wrote goes through ``st.text``, ``st.code`` or an input box
only, which never render it; Markdown is for the fixed words of this page.
"""

from __future__ import annotations

import argparse
import getpass
import ipaddress
import sys
from collections.abc import Callable
from pathlib import Path

import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from apps.review.desk import KINDS, Answer, Desk, Entry, Item, open_desk, waiting
from apps.review.voices import in_words
from curation.errors import TilthError
from curation.ledger import ReviewConflict, ReviewResult

STYLE = Path(__file__).with_name("style.css")
SIDE_BY_SIDE = 3  # cards in a row; more would be too narrow to read
KEYS = {"accept": "A", "reject": "X", "edit": "E", "skip": "S", "undo": "U", "next": "J", "previous": "K"}
TOLD = {
    "accept": "Accepted. U takes it back.",
    "reject": "Rejected. U takes it back.",
    "edit": "Written. U takes it back.",
    "skip": "Skipped. It comes again at the end.",
    "undo": "Taken back.",
}
STATE = {"accept": "accepted", "edit": "edited", "reject": "rejected", "skip": "skipped", "undo": "undone"}


def main(arguments: list[str]) -> None:
    """Draw the page once, as Streamlit does on every key press."""
    parser = argparse.ArgumentParser(prog="tilth review")
    parser.add_argument("--workspace", type=Path, default=Path())
    parser.add_argument("--actor", default=getpass.getuser())
    given = parser.parse_args(arguments)
    # No icon: the browser would fetch one from a server elsewhere.
    st.set_page_config(page_title="Tilth review", layout="wide")
    st.html(STYLE)
    if not is_loopback(st.get_option("server.address")):
        refuse("This page has no login, so it is served to this machine only. Start it with tilth review.")
        return
    try:
        draw(_desk(given.workspace.resolve(), given.actor))
    except TilthError as error:
        refuse("This did not work.", str(error))


def is_loopback(address: str | None) -> bool:
    """Whether the server listens on this machine alone; without an address it listens everywhere."""
    if address == "localhost":
        return True
    try:
        return ipaddress.ip_address(address or "0.0.0.0").is_loopback
    except ValueError:
        return False


@st.cache_resource(show_spinner=False, max_entries=8)
def _desk(root: Path, actor: str) -> Desk:
    return open_desk(root, actor=actor)


def refuse(words: str, detail: str = "") -> None:
    """Say what is wrong; ``detail`` may hold anything, so it is shown as text."""
    st.error(words, icon=":material/block:")
    if detail:
        st.text(detail)


def draw(desk: Desk) -> None:
    """The whole page for one desk."""
    entries = desk.queue()
    head(desk, entries)
    notices()
    todo = waiting(entries, choose_kind())
    if not todo:
        empty(desk, entries)
        return
    entry = current(todo)
    item = desk.item(entry)
    place(entry, item, todo)
    body(item)
    decide(desk, item, todo)


def head(desk: Desk, entries: list[Entry]) -> None:
    """Whose page this is and how far the queue is."""
    done = desk.progress(entries)
    with st.container(horizontal=True, vertical_alignment="bottom", key="head"):
        st.markdown("#### Review")
        st.space("stretch")
        with muted("who"):
            st.text(f"{desk.ledger.workspace} · {desk.actor}")
    left = waiting(entries)
    counts = [f"{n} {kind}" for kind in KINDS if (n := sum(kind in entry.kinds for entry in left))]
    parts = [f"{done.decided} of {done.total} decided", *counts, f"{done.skipped} skipped"]
    share = done.decided / done.total if done.total else 1.0
    st.progress(share, "  ·  ".join(parts if done.skipped else parts[:-1]))


def notices() -> None:
    """What the last key press led to."""
    conflict: ReviewConflict | None = st.session_state.pop("conflict", None)
    if conflict:
        theirs = conflict.theirs
        st.warning("Somebody else decided first. Nothing of yours was written.", icon=":material/group:")
        when = theirs.time[:16].replace("T", " ")
        st.text(f"{theirs.actor} {STATE[theirs.action]} it at {when} UTC. {theirs.reason}")
        if conflict.diff:
            st.code(conflict.diff, language="diff", wrap_lines=True)
    error: str | None = st.session_state.pop("error", None)
    if error:
        refuse("This was not written.", error)
    done: ReviewResult | None = st.session_state.pop("done", None)
    if done:
        st.toast(TOLD[done.action])


def choose_kind() -> str:
    """The kind of item that the curator wants to see; empty for all.

    The labels never change: the browser remembers the chosen one by its label.
    """
    labels = {"": "All"} | {kind: kind.capitalize() for kind in KINDS}
    chosen = st.pills(
        "Show",
        list(labels),
        format_func=labels.__getitem__,
        default="",
        key="kind",
        label_visibility="collapsed",
    )
    return chosen or ""


def empty(desk: Desk, entries: list[Entry]) -> None:
    """Nothing waits."""
    st.container(height=40, border=False)
    st.markdown(
        "### Nothing waits for a curator" if not waiting(entries) else "### Nothing of this kind waits"
    )
    st.markdown("New items appear here when `tilth curate` or the loop finds them.")
    button("undo", "", lambda: act(desk.undo, follow=True))


def current(todo: list[Entry]) -> Entry:
    """The entry under the cursor; the first where the cursor's record is no longer waiting."""
    at = st.session_state.get("record")
    return next((entry for entry in todo if entry.record == at), todo[0])


def place(entry: Entry, item: Item, todo: list[Entry]) -> None:
    """Where we are in the queue and why this item waits."""
    with st.container(key="why", gap="xsmall"):
        for reason in entry.reasons:
            # Why people are called in need not be said twice.
            said = reason.words if reason.kind == "disagreement" else f"{reason.kind}: {reason.words}"
            st.text(said[:1].upper() + said[1:])
    skipped = "  ·  skipped before" if entry.state == "skip" else ""
    with muted("place"):
        st.text(f"{todo.index(entry) + 1} of {len(todo)}  ·  from {item.source}{skipped}")


def muted(name: str) -> DeltaGenerator:
    """A container for text that matters less than what is to be judged."""
    return st.container(key=f"muted-{name}", width="content" if name == "who" else "stretch")


def body(item: Item) -> None:
    """The prompt, the competing answers side by side, and the votes."""
    with muted("prompt-title"):
        st.text("Prompt")
    with st.container(border=True, key="prompt"):
        st.text(item.hidden or item.prompt)
    if item.answers:
        with muted("answers-title"):
            st.text("Answers" if len(item.answers) > 1 else "Answer")
    for start in range(0, len(item.answers), SIDE_BY_SIDE):
        row = item.answers[start : start + SIDE_BY_SIDE]
        for column, (number, answer) in zip(st.columns(len(row)), enumerate(row, start), strict=True):
            with column:
                card(item, number, answer)
    shown = {answer.text for answer in item.answers}
    if others := [(function, vote) for function, vote in item.votes if vote not in shown]:
        with muted("votes"):
            st.text("Other votes: " + ", ".join(f"{function} says {vote}" for function, vote in others))


def card(item: Item, number: int, answer: Answer) -> None:
    """One answer, who gave it, and the key that chooses it."""
    chosen = choice(item) == number
    with st.container(border=True, height="stretch", key=f"card-{number}{'-chosen' if chosen else ''}"):
        with st.container(key=f"answer-{number}"):
            st.text(answer.text)
        st.space("stretch")
        with muted(f"voices-{number}"):
            st.text("\n".join(in_words(voice) for voice in answer.voices))
        if len(item.answers) > 1 and not editing(item):
            st.button(
                "Chosen" if chosen else "Choose",
                key=f"choose-{item.record}-{number}",
                shortcut=str(number + 1) if number < 9 else None,
                disabled=chosen,
                on_click=st.session_state.__setitem__,
                args=(f"choice-{item.record}", number),
            )


def editing(item: Item) -> bool:
    """Whether the editor is open on this item."""
    return bool(st.session_state.get("editing") == item.record)


def choice(item: Item) -> int:
    """Which answer is chosen; the first at first."""
    return int(st.session_state.get(f"choice-{item.record}", 0))


def decide(desk: Desk, item: Item, todo: list[Entry]) -> None:
    """The row of actions, or the editor in its place."""
    if editing(item):
        editor(desk, item, todo)
        return
    text = item.answers[choice(item)].text if item.answers else ""
    seen = f"{item.record}-{item.version}"
    with st.container(horizontal=True, key="actions"):
        if item.answers:
            button("accept", seen, lambda: act(lambda: desk.accept(item, text), item, todo), primary=True)
        button("reject", seen, lambda: act(lambda: desk.reject(item), item, todo))
        if not item.hidden:
            button("edit", seen, lambda: st.session_state.update(editing=item.record))
        button("skip", seen, lambda: act(lambda: desk.skip(item), item, todo))
        button("undo", seen, lambda: act(desk.undo, follow=True))
        st.space("stretch")
        button("previous", seen, lambda: go(item, todo, -1))
        button("next", seen, lambda: go(item, todo, 1))


def editor(desk: Desk, item: Item, todo: list[Entry]) -> None:
    """A box with the chosen answer to be written anew."""
    text = item.answers[choice(item)].text if item.answers else ""
    key = f"text-{item.record}"
    with muted("editor-title"):
        st.text("Your answer")
    st.text_area("Your answer", text, key=key, height=220, label_visibility="collapsed")

    def save() -> None:
        act(lambda: desk.edit(item, st.session_state[key]), item, todo)

    with st.container(horizontal=True, key="actions"):
        saved = f"save-{item.record}-{item.version}"
        st.button("Save", key=saved, shortcut="Ctrl+Enter", type="primary", on_click=save)
        st.button(
            "Cancel", key="cancel", shortcut="Esc", on_click=st.session_state.pop, args=("editing", None)
        )


def button(name: str, seen: str, action: Callable[[], None], *, primary: bool = False) -> None:
    """A button with its key shown on it.

    ``seen``, the record and version on the screen, is part of its identity: the second click of a double
    click meets a button that is gone, and not the next item.
    """
    st.button(
        name.capitalize(),
        key=f"{name}-{seen}",
        shortcut=KEYS[name],
        type="primary" if primary else "secondary",
        on_click=action,
    )


def act(
    decision: Callable[[], ReviewResult],
    item: Item | None = None,
    todo: list[Entry] | None = None,
    *,
    follow: bool = False,
) -> None:
    """Carry out one decision; on success go on (or, with ``follow``, to the record it was about)."""
    try:
        done = decision()
    except ReviewConflict as conflict:
        st.session_state["conflict"] = conflict
        return
    except TilthError as error:
        st.session_state["error"] = str(error)
        return
    st.session_state["done"] = done
    st.session_state.pop("editing", None)
    if follow:
        st.session_state["record"] = done.record
    elif item and todo:
        go(item, todo, 1)


def go(item: Item, todo: list[Entry], step: int) -> None:
    """Move the cursor; it stays at the ends of the queue."""
    records = [entry.record for entry in todo]
    at = records.index(item.record) + step
    if 0 <= at < len(records):
        st.session_state["record"] = records[at]
    st.session_state.pop("editing", None)


if __name__ == "__main__":
    main(sys.argv[1:])
