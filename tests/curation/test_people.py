"""People: how much fits into their time, who sees what, what follows a skip, and what their answers say about them."""

from __future__ import annotations

import random
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curation import loop, people, workspace
from curation.curate import Rules, blocked
from curation.errors import GateRefused, RemoteUnavailable, UsageError
from curation.formats import Mapping
from curation.label_studio import connect
from curation.ledger import Showing
from curation.people import analytics, offer, plan, revising
from curation.people.adopt import adopt, read_interface
from curation.people.analytics import Answer, anchoring, mark
from curation.people.plan import Person, assign, batch_size, seconds_for
from curation.question import Revision, current, revised
from curation.run import Run
from curation.workspace import Workspace, init, open_workspace
from tests.curation.toys import CLASSES, ToyLearner, inquiries, write_rows
from tests.label_studio_fake import Fake, cut, dropped, fake_server, html, refused, short, torn

TOKEN = "4f0c9a1db2e7aaaa4f0c9a1db2e7aaaa00001111"


# Time


def test_an_answer_costs_the_median_of_what_such_answers_took_and_lunch_is_no_work() -> None:
    assert seconds_for("class", [10, 12, 11, 9_000, 0.0]) == 11
    assert seconds_for("edit", []) == plan.USUAL["edit"]
    assert seconds_for("edit", [60.0], own=[10.0] * 4) == 60.0, "four answers are not enough to know a pace"
    assert seconds_for("edit", [60.0], own=[10.0] * 5) == 10.0


def test_a_week_begins_on_monday_in_utc() -> None:
    thursday = datetime(2026, 11, 26, 3, 0, tzinfo=UTC)
    assert plan.week_start(thursday) == "2026-11-23T00:00:00.000000Z"


@settings(deadline=None)
@given(st.lists(st.integers(0, 30), max_size=5), st.integers(1, 4))
def test_a_batch_is_the_most_that_people_can_see_without_seeing_anything_twice(
    room: list[int], per_record: int
) -> None:
    size = batch_size(room, per_record)
    want = min(per_record, sum(r > 0 for r in room))
    assert sum(min(r, size) for r in room) >= size * want
    assert not want or sum(min(r, size + 1) for r in room) < (size + 1) * want


# Who sees what

TEAM = [
    Person("a-ines", "Ines", 90, frozenset({"hazmat"})),
    Person("a-tom", "Tom", 90),
    Person("a-uma", "Uma", 90, frozenset({"customs"})),
]


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 12),
    st.integers(1, 4),
    st.lists(st.integers(0, 8), min_size=3, max_size=3),
    st.dictionaries(st.integers(0, 11), st.sets(st.sampled_from([p.id for p in TEAM])), max_size=6),
)
def test_nobody_is_given_a_record_twice_or_more_than_they_have_room_for(
    count: int, per_record: int, room: list[int], seen: dict[int, set[str]]
) -> None:
    records = [f"r{i}" for i in range(count)]
    rooms = {p.id: r for p, r in zip(TEAM, room, strict=True)}
    before = {f"r{i}": frozenset(who) for i, who in seen.items()}
    given_to = assign(records, TEAM, rooms, per_record=per_record, seen=before)
    for record in records:
        who = given_to[record]
        assert len(who) == len(set(who)) <= per_record
        assert not set(who) & before.get(record, frozenset())
    for person, most in rooms.items():
        assert sum(person in who for who in given_to.values()) <= most


def test_experts_come_first_then_generalists_then_other_experts() -> None:
    rooms = dict.fromkeys((p.id for p in TEAM), 9)
    about = {"r1": frozenset({"hazmat"}), "r2": frozenset({"customs"}), "r3": frozenset[str]()}
    got = assign(["r1", "r2", "r3"], TEAM, rooms, per_record=2, topics=about)
    assert got["r1"] == ("a-ines", "a-tom")
    assert got["r2"] == ("a-uma", "a-tom")
    assert got["r3"][0] == "a-tom"


def test_whoever_has_stopped_is_given_nothing() -> None:
    team = [replace(TEAM[1], active=False), TEAM[2]]
    assert assign(["r"], team, {"a-tom": 5, "a-uma": 5}, per_record=2) == {"r": ("a-uma",)}


# What answers say


def answers(author: str, pairs: list[tuple[str, str]], **more: Any) -> list[Answer]:
    return [Answer(record, author, value, **more) for record, value in pairs]


def test_a_person_who_copies_suggestions_is_found_by_the_blind_share() -> None:
    shown = [Answer(f"s{i}", "a", "x", suggested=mark("x")) for i in range(40)]
    own_mind = [
        Answer(f"b{i}", "a", "y" if i % 2 else "x", suggested=mark("x"), blind=True) for i in range(40)
    ]
    told = anchoring(shown + own_mind)
    assert (told["shown"]["share"], told["blind"]["share"]) == (1.0, 0.5)
    assert told["difference"]["value"] == 0.5
    assert told["difference"]["ci95"][0] > 0.3
    honest = anchoring([replace(a, value="x" if i % 2 else "y") for i, a in enumerate(shown)] + own_mind)
    assert honest["difference"]["ci95"][0] < 0 < honest["difference"]["ci95"][1]


def test_too_few_answers_say_nothing() -> None:
    told = anchoring([Answer("s", "a", "x", suggested=mark("x"))])
    assert told == {"shown": None, "blind": None, "difference": None}
    assert analytics.share(4, 4) is None


def test_agreement_and_skill_come_out_as_counted_by_hand() -> None:
    said = answers("a", [("1", "x"), ("2", "x")]) + answers("b", [("1", "x"), ("2", "y")])
    said += answers("c", [("1", "x"), ("2", "x"), ("3", "z")])
    assert analytics.agreement(said) == {"a": (3, 4), "b": (2, 4), "c": (3, 4)}
    # a: the others agree on 1 (right) and are split on 2; b: right on 1, wrong on 2; c: right on 1, split on 2.
    assert analytics.skill(said) == {"a": round(2 / 3, 4), "b": 0.5, "c": round(2 / 3, 4)}


def test_drift_sets_the_earlier_half_beside_the_later() -> None:
    said = [
        Answer(f"r{i}", "a", "x" if i < 5 else "y", float(60 - 5 * i), f"2026-03-{i + 1:02d}", known="x")
        for i in range(10)
    ]
    told = analytics.drift(said, lambda a: a.value == a.known)
    assert told is not None
    assert (told["earlier"]["right"]["share"], told["later"]["right"]["share"]) == (1.0, 0.0)
    assert told["earlier"]["seconds"] > told["later"]["seconds"]
    assert analytics.drift(said[:9], lambda a: True) is None


# Through a server


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A workspace with two people, before a server that misbehaves on demand."""
    with fake_server() as fake:
        monkeypatch.setenv("LABEL_STUDIO_URL", fake.url)
        monkeypatch.setenv("LABEL_STUDIO_API_KEY", TOKEN)
        folder = tmp_path / "w"
        init(folder, actor="ana", name="desk")
        text = (
            (folder / "tilth.toml")
            .read_text()
            .replace("annotators_per_record = 1", "annotators_per_record = 2")
        )
        (folder / "tilth.toml").write_text(text.replace('kind = "auto"', 'kind = "class"'))
        rows = write_rows(folder / "rows.jsonl", inquiries(120))
        with open_workspace(folder, actor="ana") as opened:
            workspace.ingest(opened, rows, mapping=Mapping(id="id", completion="gold"), trust="candidate")
            yield opened, fake


def choose(opened: Workspace, batch: int | None = None) -> list[Showing]:
    loop.choose(Run(opened, ToyLearner(opened), people.label_studio(), "label-studio", batch=batch))
    return opened.ledger.showings()


def tasks_of(fake: Fake) -> list[dict[str, Any]]:
    return fake.tasks


def test_a_round_is_sized_by_minutes_and_each_record_goes_to_two_people(desk: tuple[Workspace, Fake]) -> None:
    opened, fake = desk
    plan.add(opened, "Ines", minutes=4, expertise=["hazmat"])
    plan.add(opened, "Tom", minutes=4)
    showings = choose(opened)
    assert len(showings) == 24, "four minutes at 20 s an answer are twelve tasks for each"
    by_record: dict[str, set[str | None]] = {}
    for showing in showings:
        by_record.setdefault(showing.record, set()).add(showing.annotator)
    assert {len(who) for who in by_record.values()} == {2}
    people.push_open(opened, people.label_studio())
    assert len(fake.tasks) == 24
    assert sorted(p["title"] for p in fake.projects) == [
        "Tilth: desk reply · Ines",
        "Tilth: desk reply · Tom",
    ]
    assert plan.room_of(opened, current(opened), "label-studio") == dict.fromkeys(
        (p.id for p in plan.people(opened)), 0
    ), "what is open already fills the week"
    with pytest.raises(UsageError, match="nobody has time left"):
        people.label_studio().batch(opened, current(opened), 2)


def test_one_more_opinion_takes_of_the_time_that_the_same_batch_has_left(
    desk: tuple[Workspace, Fake],
) -> None:
    opened, _ = desk
    ines, tom = (plan.add(opened, name, minutes=4) for name in ("Ines", "Tom"))
    rows = [(record, "") for record in opened.ledger.records()["record"].to_pylist()[:12]]
    through, question = people.label_studio(), current(opened)
    alone = through.another(opened, question, rows)
    assert {who for seats in alone.values() for who in seats} == {ines.id, tom.id}
    beside = through.another(opened, question, rows, {ines.id: 12})
    assert set(beside.values()) == {(tom.id,)}, (
        "Ines has twelve tasks of the batch, which fill her four minutes"
    )


def test_without_names_one_task_is_dealt_to_two_people_and_waits_for_both(
    desk: tuple[Workspace, Fake],
) -> None:
    opened, fake = desk
    showings = choose(opened, batch=3)
    through = people.label_studio()
    people.push_open(opened, through)
    assert len(fake.tasks) == len(showings) == 3
    assert fake.projects[0]["maximum_annotations"] == 2
    fake.annotate(1, 7, CLASSES[0])
    through.collect(opened, current(opened))
    assert through.waiting(opened, [s.id for s in showings]) == 3, "one of two opinions is in"
    fake.annotate(1, 7, CLASSES[1])
    through.collect(opened, current(opened))
    assert through.waiting(opened, [s.id for s in showings]) == 3, "a changed mind is no second opinion"
    fake.annotate(1, 8, CLASSES[1])
    through.collect(opened, current(opened))
    assert through.waiting(opened, [s.id for s in showings]) == 2


def test_one_persons_records_never_come_back_to_them(desk: tuple[Workspace, Fake]) -> None:
    opened, _ = desk
    plan.add(opened, "Ines", minutes=90)
    showings = choose(opened, batch=10)
    again = people.label_studio().seats(opened, current(opened), [(s.record, "") for s in showings], 2)
    assert set(again.values()) == {()}


@pytest.mark.parametrize(
    ("why", "drops", "asked_again"), [("bad question", True, 0), ("not my field", False, 1), ("", False, 1)]
)
def test_a_skip_drops_the_record_or_asks_somebody_else(
    desk: tuple[Workspace, Fake], why: str, drops: bool, asked_again: int
) -> None:
    opened, fake = desk
    plan.add(opened, "Ines", minutes=90)
    showings = choose(opened, batch=3)
    through = people.label_studio()
    people.push_open(opened, through)
    plan.add(opened, "Tom", minutes=90)
    reason = {"from_name": "cannot", "to_name": "prompt", "type": "choices", "value": {"choices": [why]}}
    fake.annotate(1, 7, "x", was_cancelled=True, result=[reason] if why else [])
    totals = through.collect(opened, current(opened))
    assert (totals["skipped"], totals["asked_again"]) == (1, asked_again)
    record = fake.tasks[0]["data"]["record"]
    assert (record in blocked(opened, Rules(opened), ("asked",))) == drops
    new = [s for s in opened.ledger.showings() if s.id not in {s.id for s in showings}]
    assert [s.record for s in new] == [record] * asked_again
    assert through.collect(opened, current(opened))["asked_again"] == 0, "a skip is followed once"
    if asked_again:
        assert plan.find(opened, "Tom").id == new[0].annotator
        fake.annotate(4, 8, "x", was_cancelled=True, result=[reason] if why else [])
        through.collect(opened, current(opened))
        held = opened.ledger.decisions(stage="asked", rule=Rules(opened).asked).to_pylist()
        assert [(row["record"], row["action"]) for row in held] == [(record, "hold")], "nobody is left to ask"


def test_whoever_needs_context_is_shown_more_of_it_once(desk: tuple[Workspace, Fake], tmp_path: Path) -> None:
    opened, fake = desk
    plan.add(opened, "Ines", minutes=90)
    (tmp_path / "policy.md").write_text(
        "# P\n" + "\n".join(f"## Part {i}\nabout case and number {i}\n" for i in range(9)), encoding="utf-8"
    )
    workspace.ingest_passages(opened, tmp_path / "policy.md")
    showings = choose(opened, batch=2)
    assert {len(s.passages) for s in showings} == {3}
    through = people.label_studio()
    people.push_open(opened, through)
    assert fake.tasks[0]["data"]["passages"].count("policy.md ›") == 3
    reason = {
        "from_name": "cannot",
        "to_name": "prompt",
        "type": "choices",
        "value": {"choices": ["needs context"]},
    }
    fake.annotate(1, 7, "x", result=[reason])
    assert through.collect(opened, current(opened))["asked_again"] == 1, "Submit with a reason is a skip too"
    new = opened.ledger.showings()[-1]
    assert (new.record, new.annotator) == (showings[0].record, showings[0].annotator)
    assert 3 < len(new.passages) <= 8
    fake.annotate(3, 7, "x", result=[reason])
    assert through.collect(opened, current(opened))["asked_again"] == 0
    assert blocked(opened, Rules(opened), ("asked",)) == {new.record}


def test_the_open_tasks_of_whoever_stops_go_to_others_and_answers_stay(desk: tuple[Workspace, Fake]) -> None:
    opened, fake = desk
    ines = plan.add(opened, "Ines", minutes=90)
    showings = choose(opened, batch=4)
    through = people.label_studio()
    people.push_open(opened, through)
    fake.annotate(2, 7, CLASSES[0])
    plan.add(opened, "Tom", minutes=90)
    plan.stop(opened, "Ines")
    assert through.rebalance(opened, current(opened), ines) == {"moved": 3, "given_up": 0}
    assert [task["id"] for task in fake.tasks[:1]] == [2], "her answered task is the only one left of hers"
    assert len(fake.tasks) == 4
    assert through.collect(opened, current(opened))["added"] == 1
    assert through.waiting(opened, [s.id for s in showings]) == 0
    assert through.waiting(opened, [s.id for s in opened.ledger.showings()]) == 3


def test_a_task_deleted_on_the_server_is_no_longer_waited_for(desk: tuple[Workspace, Fake]) -> None:
    opened, fake = desk
    plan.add(opened, "Ines", minutes=90)
    showings = choose(opened, batch=2)
    through = people.label_studio()
    people.push_open(opened, through)
    fake.annotate(1, 7, CLASSES[0])
    assert through.collect(opened, current(opened))["added"] == 1
    del fake.tasks[0]
    totals = through.collect(opened, current(opened))
    assert totals["withdrawn"] == 1
    assert through.waiting(opened, [s.id for s in showings]) == len(showings) - 1
    assert not opened.ledger.labels(kinds={"person"}).num_rows


def test_a_blind_showing_keeps_of_the_suggestion_only_what_tells_two_answers_apart(
    desk: tuple[Workspace, Fake],
) -> None:
    opened, fake = desk
    showings = choose(opened, batch=40)
    blind = [s for s in showings if s.blind]
    assert blind
    assert all(s.suggestion is None and set(s.extra or {}) == {"hidden"} for s in blind)
    people.push_open(opened, people.label_studio())
    sent = {task["data"]["showing"]: task for task in fake.tasks}
    for showing in showings:
        task = sent[showing.id]
        assert ("predictions" in task) == (not showing.blind)
        assert ({"confidence", "suggested_by"} & set(task["data"]) == set()) == showing.blind
        assert not showing.blind or "because" not in task["data"]["note"]


def test_honeypots_come_from_tuning_rows_are_blind_and_never_from_the_test_set(
    desk: tuple[Workspace, Fake], tmp_path: Path
) -> None:
    opened, _ = desk
    gold = write_rows(tmp_path / "gold.jsonl", [{**r, "id": f"G{r['id']}"} for r in inquiries(200, seed=1)])
    workspace.ingest(opened, gold, mapping=Mapping(id="id", gold="gold"))
    choose(opened, batch=2)
    roles = opened.ledger.eval_items().to_pylist()
    dev = {row["record"] for row in roles if row["role"] == "dev"}
    ids = offer.check(opened, people.label_studio(), current(opened), 5)
    made = opened.ledger.showings(ids)
    assert len(made) == 5
    assert {s.record for s in made} <= dev
    assert all(s.blind and s.suggestion is None for s in made)


# Revisions


def test_a_revision_maps_keeps_and_asks_again() -> None:
    from curation.ledger import Question

    old = Question("reply", 1, "class", ("a", "b", "c", "d"))
    new = revised(old, Revision(add=("e",), merge={"b": "a"}, rename={"c": "cc"}, remove=("d",)))
    assert new.classes == ("a", "cc", "e")
    assert new.mapping == {"b": "a", "c": "cc", "d": None}
    third = revised(new, Revision(rename={"cc": "ccc"}))
    assert (third.version, third.mapping) == (3, {"b": "a", "c": "ccc", "cc": "ccc", "d": None})
    for wrong in (
        Revision(rename={"x": "y"}),
        Revision(rename={"a": "b"}),
        Revision(add=("a",)),
        Revision(remove=("a", "b", "c")),
    ):
        with pytest.raises(UsageError):
            revised(old, wrong)
    with pytest.raises(UsageError, match="no classes to revise"):
        revised(replace(old, kind="edit"), Revision(add=("x",)))


def test_old_answers_count_as_what_their_class_became_and_the_rest_is_asked_again(
    desk: tuple[Workspace, Fake],
) -> None:
    from curation.opinions import Voices, opinions

    opened, fake = desk
    plan.add(opened, "Ines", minutes=90)
    choose(opened, batch=4)
    through = people.label_studio()
    people.push_open(opened, through)
    for number, name in enumerate(("billing", "claims", "customs", "hazmat"), 1):
        fake.annotate(number, 7, name)
    assert through.collect(opened, current(opened))["added"] == 4
    change = Revision(merge={"claims": "billing"}, rename={"customs": "duties"}, remove=("hazmat",))
    dry = revising.revise(opened, change, dry_run=True)
    assert current(opened).version == dry["version"] - 1
    told = revising.revise(opened, change, through=through)
    assert told["labels"] == {"kept": 1, "mapped": 2, "asked_again": 1}
    asked = current(opened)
    assert set(asked.classes) == {"billing", "duties"}, "classes that went do not grow back from old labels"
    heard = opinions(opened, asked, Voices(), {"person"})
    assert sorted(o.value for o in heard) == ["billing", "billing", "duties"]
    assert fake.tasks[-1]["data"]["question_version"] == asked.version
    assert 'value="duties"' in fake.projects[0]["label_config"]
    fake.annotate(len(fake.tasks), 7, "customs")  # a page that was opened before the revision
    assert through.collect(opened, current(opened))["added"] == 1
    heard = opinions(opened, asked, Voices(), {"person"})
    assert sorted(o.value for o in heard) == ["billing", "billing", "duties", "duties"]


# Projects of others

THEIRS = """<View><Text name="mail" value="$body"/>
<Choices name="topic" toName="mail"><Choice value="billing"/><Choice value="claims"/></Choices></View>"""


def test_a_project_of_others_is_taken_over_with_its_tasks_and_answers(tmp_path: Path) -> None:
    with fake_server() as fake, connect(fake.url, TOKEN) as client:
        fake.projects.append({"id": 1, "title": "Mails", "label_config": THEIRS})
        fake._import([{"data": {"body": f"Where is my invoice {i}?"}} for i in range(5)])
        region = {
            "from_name": "topic",
            "to_name": "mail",
            "type": "choices",
            "value": {"choices": ["billing"]},
        }
        fake.annotate(2, 7, "", result=[region])
        folder = tmp_path / "w"
        init(folder, actor="ana")
        with open_workspace(folder, actor="ana") as opened:
            told = adopt(opened, client, 1)
            assert (told["tasks"], told["records"], told["added"]) == (5, 5, 1)
            asked = current(opened)
            assert (asked.kind, asked.classes) == ("class", ("billing", "claims"))
            (label,) = opened.ledger.labels(kinds={"person"}).to_pylist()
            assert label["body"] == "billing"
            fake.annotate(3, 8, "", result=[{**region, "value": {"choices": ["claims"]}}])
            fake._import([{"data": {"body": "A new one"}}])
            told = adopt(opened, client, 1)
            assert (told["records"], told["added"]) == (1, 1)
            assert opened.ledger.counts()["records"] == 6


def test_an_interface_that_asks_nothing_we_can_ask_is_refused() -> None:
    names, kind, classes = read_interface(THEIRS, 3)
    assert (names.field, names.text, names.answer, kind, classes) == (
        "body", "mail", "topic", "class", ("billing", "claims"),
    )  # fmt: skip
    for xml in (
        "<View/>",
        "<View",
        '<View><Image name="i" value="$x"/><Choices name="c" toName="i"/></View>',
    ):
        with pytest.raises(UsageError, match="project 3"):
            read_interface(xml, 3)


# Events that are lost, doubled and out of order


FAULTS = (dropped, cut(40), torn(200), html, short, refused(503))
PAUSE = 30  # events between two polls: however often somebody knocks, they are brought in together


def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retries without the pauses between them."""
    monkeypatch.setattr("curation.people.through.connect", partial(connect, sleep=lambda seconds: None))


def happen(fake: Fake, rng: random.Random) -> None:
    """Something that people do: answer, change their mind, skip, delete an answer, or a whole task."""
    task = rng.choice(fake.tasks)
    notes = task["annotations"]
    if rng.random() < 0.002 and len(fake.tasks) > 10:
        fake.tasks.remove(task)
    elif notes and rng.random() < 0.3:
        notes.pop(rng.randrange(len(notes)))
        task["updated_at"] = fake.tick()
    elif notes and rng.random() < 0.5:
        region = {"from_name": "answer", "type": "choices", "value": {"choices": [rng.choice(CLASSES)]}}
        changed = {"result": [region], "updated_at": fake.tick(), "was_cancelled": rng.random() < 0.1}
        rng.choice(notes).update(changed)
        task["updated_at"] = fake.tick()
    else:
        fake.annotate(task["id"], rng.choice((7, 8)), rng.choice(CLASSES))


def storm(opened: Workspace, fake: Fake, events: int, seed: int) -> dict[str, int]:
    """So many events whose webhooks are lost (10%), doubled (10%) and late, on a network that may fail in every second pull.

    A webhook only wakes a pull, so what one says and in which order they come cannot matter; which pulls happen does.
    """
    rng = random.Random(seed)
    counts = {"pulls": 0, "failed": 0, "lost": 0}
    knocks: list[int] = []
    for now in range(events):
        happen(fake, rng)
        copies = rng.choices((0, 1, 2), (0.1, 0.8, 0.1))[0]
        counts["lost"] += copies == 0
        knocks += [now + rng.randrange(200) for _ in range(copies)]
        if now % PAUSE or not any(at <= now for at in knocks):
            continue
        knocks = [at for at in knocks if at > now]
        counts["pulls"] += 1
        fake.faults = [None] * rng.randrange(4) + [rng.choice(FAULTS)] * 6 if rng.random() < 0.5 else []
        try:
            people.label_studio().collect(opened, current(opened))
        except RemoteUnavailable:
            counts["failed"] += 1
    fake.faults = []
    return counts


@pytest.mark.parametrize(
    ("events", "records"), [(300, 25), pytest.param(10_000, 200, marks=pytest.mark.slow)]
)
def test_however_webhooks_arrive_one_reconcile_comes_to_the_servers_state(
    desk: tuple[Workspace, Fake], monkeypatch: pytest.MonkeyPatch, events: int, records: int
) -> None:
    opened, fake = desk
    impatient(monkeypatch)
    if records > 50:
        more = write_rows(opened.root / "more.jsonl", inquiries(2 * records, seed=5))
        workspace.ingest(
            opened, more, mapping=Mapping(id="id", completion="gold"), trust="candidate", source="m"
        )
    plan.add(opened, "Ines", minutes=9_000)
    showings = choose(opened, batch=records)
    people.push_open(opened, people.label_studio())
    assert len(fake.tasks) == len(showings) == records
    counts = storm(opened, fake, events, seed=7)
    assert counts["pulls"] > events / PAUSE / 2
    assert counts["failed"] > 0
    people.label_studio().collect(opened, current(opened))
    assert _standing(opened) == _state(fake), "nothing is missing, nothing is there twice"
    assert len(_standing(opened)) > 10
    assert len(fake.tasks) < records, "some tasks were deleted whole"
    again = people.label_studio().collect(opened, current(opened))
    assert (again["added"], again["withdrawn"]) == (0, 0), "nothing is taken twice"


def test_a_pull_that_forgets_deletions_does_not_come_to_the_servers_state(
    desk: tuple[Workspace, Fake], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Negative control: without tombstones the same events leave answers that nobody stands by."""
    opened, fake = desk
    impatient(monkeypatch)
    monkeypatch.setattr("curation.label_studio.answers.tombstones", lambda held, current, tasks: [])
    plan.add(opened, "Ines", minutes=900)
    choose(opened, batch=25)
    people.push_open(opened, people.label_studio())
    storm(opened, fake, 300, seed=7)
    people.label_studio().collect(opened, current(opened))
    assert _standing(opened) != _state(fake)


def _standing(opened: Workspace) -> dict[tuple[str, str], str]:
    rows = opened.ledger.labels(kinds={"person"}).to_pylist()
    found = {(row["showing"], orjson.loads(row["extra"])["author"]): row["body"] for row in rows}
    assert len(found) == len(rows), "one Label for each person and task"
    return found


def _state(fake: Fake) -> dict[tuple[str, str], str]:
    """The latest annotation of each person on each task, less those that are skips."""
    found: dict[tuple[str, str], str] = {}
    for task in fake.tasks:
        for note in sorted(task["annotations"], key=lambda n: (n["updated_at"], n["id"])):
            key = (task["data"]["showing"], str(note["completed_by"]))
            found.pop(key, None)
            if not note["was_cancelled"]:
                found[key] = next(iter(note["result"][0]["value"].values()))[0]
    return found


def test_personal_data_that_somebody_types_into_an_answer_never_reaches_a_snapshot(tmp_path: Path) -> None:
    from curation.assemble import compose
    from curation.curate import curate
    from curation.ledger import NewLabel

    secret = "ines.canary@example.org"
    folder = tmp_path / "w"
    init(folder, actor="ana")
    text = (folder / "tilth.toml").read_text().replace('kind = "auto"', 'kind = "edit"')
    (folder / "tilth.toml").write_text(text)
    rows = write_rows(tmp_path / "rows.jsonl", [{"id": str(i), "prompt": f"Question {i}?"} for i in range(4)])
    with open_workspace(folder, actor="ana") as opened:
        workspace.ingest(opened, rows, mapping=Mapping(id="id"))
        question = opened.ledger.add_question(replace(current(opened), version=1))
        record = opened.ledger.records()["record"].to_pylist()[0]
        showing = Showing(record, question.name, 1, record, annotator="0")
        (shown,) = opened.ledger.add_showings([showing])
        author = opened.ledger.add_author("label-studio:7", "person")
        curate(opened)
        said = f"Write to {secret} please."
        opened.ledger.add_labels([NewLabel(record, question.name, 1, "person", author, said, showing=shown)])
        with pytest.raises(GateRefused):
            compose(opened)  # nobody has scanned the answer: freezing refuses the gap
        curate(opened)
        composed = compose(opened)
        frozen = "".join(str(table.to_pylist()) for table in composed.tables)
        assert "please." in frozen
        assert secret not in frozen


# Every kind of question, there and back


KINDS = {
    "accept": ("reject", {"from_name": "why", "type": "textarea", "value": {"text": ["rude"]}}),
    "compare": ("tie", None),
    "rubric": (None, None),
    "spans": (None, None),
}


@pytest.mark.parametrize("kind", KINDS)
def test_an_answer_is_judged_and_never_trained_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    with fake_server() as fake:
        monkeypatch.setenv("LABEL_STUDIO_URL", fake.url)
        monkeypatch.setenv("LABEL_STUDIO_API_KEY", TOKEN)
        folder = tmp_path / "w"
        init(folder, actor="ana")
        more = f'\n\n[question.judge]\nkind = "{kind}"\n'
        more += 'criteria = ["kind", "true"]\n' if kind == "rubric" else ""
        text = (folder / "tilth.toml").read_text().replace("\n[functions]", f"{more}\n[functions]")
        (folder / "tilth.toml").write_text(text.replace('kind = "auto"', 'kind = "edit"'))
        rows = [
            {"id": f"{i}", "prompt": f"Question {i}?", "draft": f"Write to me, answer {i}."} for i in range(3)
        ]
        other = [{**row, "draft": f"Do not write to me, {row['id']}."} for row in rows]
        with open_workspace(folder, actor="ana") as opened:
            for name, trust in ((rows, "candidate"), (other, "reference")):
                path = write_rows(tmp_path / f"{trust}.jsonl", name)
                workspace.ingest(opened, path, mapping=Mapping(id="id", completion="draft"), trust=trust)
            asked = current(opened, "judge")
            offer.offer(opened, people.label_studio(), asked, 2)
            through = people.label_studio()
            assert people.push_open(opened, through, name="judge")["pushed"] == 2
            data = fake.tasks[0]["data"]
            assert "predictions" not in fake.tasks[0]
            value, extra = KINDS[kind]
            fake.annotate(1, 7, "x", result=_judgement(kind, value, extra, data))
            assert people.pull_all(opened, through)["added"] == 1
            (label,) = opened.ledger.labels(kinds={"person"}).to_pylist()
            told = orjson.loads(label["extra"])
            if kind == "accept":
                assert (label["body"], told["why"]) == ("reject", "rude")
            elif kind == "compare":
                assert label["body"] == "tie"
                assert {data["a"], data["b"]} <= {row["draft"] for row in rows + other}
            elif kind == "rubric":
                assert orjson.loads(label["body"]) == {"kind": 5, "true": 2}
            else:
                (span,) = orjson.loads(label["body"])
                assert (span["text"], span["type"]) == ("me", "PERSON")
            from curation.opinions import Voices, opinions

            heard = opinions(opened, current(opened), Voices(), {"person"})
            assert heard == [], "an opinion about an answer is no answer to the loop's question"


def _judgement(kind: str, value: Any, extra: Any, data: dict[str, Any]) -> list[dict[str, Any]]:
    if kind == "rubric":
        return [
            {"from_name": f"answer_{i}", "type": "choices", "value": {"choices": [grade]}}
            for i, grade in enumerate(("5", "2"))
        ]
    if kind == "spans":
        start = data["completion"].index("me") if "me" in data["completion"] else 0
        marked = {"start": start, "end": start + 2, "text": data["completion"][start : start + 2]}
        return [{"from_name": "answer", "type": "labels", "value": {**marked, "labels": ["PERSON"]}}]
    chosen = {"from_name": "answer", "type": "choices", "value": {"choices": [value]}}
    return [chosen, *([extra] if extra else [])]


def test_a_simulation_leaves_alone_what_was_put_before_somebody_by_name(desk: tuple[Workspace, Fake]) -> None:
    opened, _ = desk
    plan.add(opened, "Ines", minutes=90)
    choose(opened, batch=3)
    assert people.Simulated().collect(opened, current(opened))["added"] == 0
    loop.choose(Run(opened, ToyLearner(opened), people.Simulated(), "simulated", batch=3))
    assert people.Simulated().collect(opened, current(opened))["added"] > 0


# Judging on a form


def judge_workspace(folder: Path, kind: str) -> Workspace:
    """A workspace whose second question, of ``kind``, asks about two answers to one prompt."""
    init(folder, actor="ana")
    more = f'\n\n[question.judge]\nkind = "{kind}"\n'
    more += 'criteria = ["kind", "true"]\n' if kind == "rubric" else ""
    text = (folder / "tilth.toml").read_text().replace("\n[functions]", f"{more}\n[functions]")
    (folder / "tilth.toml").write_text(text.replace('kind = "auto"', 'kind = "edit"'))
    opened = open_workspace(folder, actor="ana")
    for trust, said in (("candidate", "Write to me."), ("reference", "It is at gate two.")):
        path = write_rows(folder / f"{trust}.jsonl", [{"id": "1", "prompt": "Where is it?", "draft": said}])
        workspace.ingest(opened, path, mapping=Mapping(id="id", completion="draft"), trust=trust)
    return opened


@pytest.mark.parametrize(("kind", "shown"), [("accept", ("completion",)), ("compare", ("a", "b"))])
def test_a_form_shows_what_is_judged_and_brings_the_verdict_back(
    tmp_path: Path, kind: str, shown: tuple[str, ...]
) -> None:
    import csv

    opened = judge_workspace(tmp_path / "w", kind)
    asked, through = current(opened, "judge"), people.files()
    offer.offer(opened, through, asked, 1)
    people.push_open(opened, through, name="judge")
    path = opened.root / people.TASKS_FILE
    with path.open(newline="", encoding="utf-8-sig") as file:
        (row,) = csv.DictReader(file)
    assert all(row[name] for name in shown)
    names = list(row)
    assert names.index("prompt") < names.index(shown[0]) < names.index("answer"), "read from left to right"
    row |= {"answer": "reject" if kind == "accept" else "A", "annotator": "p"}
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerow(row)
    assert people.pull_all(opened, through)["added"] == 1
    (label,) = opened.ledger.labels(kinds={"person"}).to_pylist()
    assert (label["body"], label["question"]) == (row["answer"], "judge")


@pytest.mark.parametrize("kind", ["rubric", "spans"])
def test_a_form_refuses_what_one_cell_cannot_hold_before_anything_is_written(
    tmp_path: Path, kind: str
) -> None:
    opened = judge_workspace(tmp_path / "w", kind)
    asked = current(opened, "judge")
    with pytest.raises(UsageError, match=f"{kind}.*cannot be answered in tasks.csv"):
        offer.offer(opened, people.files(), asked, 1)
    assert opened.ledger.showings() == []
    assert not (opened.root / people.TASKS_FILE).exists()
    offer.offer(opened, people.label_studio(), asked, 1)
    with pytest.raises(UsageError, match="Ask it in Label Studio"):
        people.push_open(opened, people.files(), name="judge")
