"""Who has how much time, what they know, and who should see which record. The arithmetic is pure; the rest reads the
ledger's events, where a person is an opaque author id and the name can be erased.

A person gets a project of their own on the server. The free edition deals tasks to whoever asks next: copies of a task
in one project would reach one person twice, and nothing there keeps a record for somebody who knows the subject.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson

from curation.errors import UsageError
from curation.ledger import Question
from curation.retrieval import words
from curation.workspace import Workspace

EVENT = "person"
# Seconds for one answer before anybody has given one; measured times replace them as soon as there are some.
USUAL = {"edit": 120.0, "accept": 30.0, "class": 20.0, "compare": 45.0, "rubric": 75.0, "spans": 45.0}
ENOUGH = 5  # answers of one person before their own pace is believed
LONGEST = 1_800.0  # seconds; a page that stood open over lunch says nothing about work


@dataclass(frozen=True)
class Person:
    """Somebody who answers: ``id`` is the ledger's author, ``minutes`` their time a week, ``expertise`` what they know.

    ``email`` is their login on the server; empty where nobody said. Who has stopped is not ``active``.
    """

    id: str
    name: str
    minutes: int
    expertise: frozenset[str] = frozenset()
    email: str = ""
    active: bool = True


@dataclass(frozen=True)
class Load:
    """A person's week: seconds given, seconds spent on answers, and open tasks."""

    given: float
    spent: float
    open: int


def people(workspace: Workspace) -> list[Person]:
    """Everybody who was added, in the order of their first mention; erased names are empty."""
    names = {author.id: author.name or "" for author in workspace.ledger.authors()}
    latest = {event.subject: event.detail for event in workspace.ledger.events(EVENT)}
    return [
        Person(
            person,
            names.get(person, ""),
            int(told["minutes"]),
            frozenset(told["expertise"]),
            names.get(told["email"], ""),
            bool(told["active"]),
        )
        for person, told in latest.items()
    ]


def add(
    workspace: Workspace, name: str, *, minutes: int, expertise: Iterable[str] = (), email: str = ""
) -> Person:
    """Add somebody, or change what is known of them. Who had stopped goes on."""
    if not name.strip() or minutes < 1:
        raise UsageError(
            "a person has a name and at least one minute a week",
            where="tilth people add",
            next="Example: tilth people add Ines --minutes 90 --expertise hazmat,customs",
        )
    book = workspace.ledger
    known = {term.strip().casefold() for term in expertise} - {""}
    person = Person(book.add_author(name.strip(), "person"), name.strip(), minutes, frozenset(known), email)
    return _write(workspace, person)


def stop(workspace: Workspace, name: str) -> Person:
    """Note that somebody has stopped. Raises :class:`UsageError` for a name that nobody has."""
    return _write(workspace, replace(find(workspace, name), active=False))


def find(workspace: Workspace, name: str) -> Person:
    """The person of this name. Raises :class:`UsageError` where there is none."""
    found = [person for person in people(workspace) if person.name == name]
    if not found:
        known = ", ".join(person.name for person in people(workspace)) or "nobody"
        raise UsageError(
            f"there is no person {name!r}", next=f"Known: {known}. Add one: tilth people add NAME"
        )
    return found[-1]


def _write(workspace: Workspace, person: Person) -> Person:
    book = workspace.ledger
    email = book.add_author(person.email, "email") if person.email else ""
    told = {"minutes": person.minutes, "expertise": sorted(person.expertise), "active": person.active}
    book.event(EVENT, person.id, {**told, "email": email})
    return person


# ----------------------------------------------------------------------------------------------------- arithmetic


def seconds_for(kind: str, times: Sequence[float], own: Sequence[float] = ()) -> float:
    """What one answer costs: the median of the person's ``own`` times where there are enough, else of all ``times``.

    Times above :data:`LONGEST` and below a tenth of a second are no work and are left out.

    >>> seconds_for("class", [10, 12, 11, 9000]), seconds_for("class", [])
    (11, 20.0)
    """
    for known in (own, times):
        real = [t for t in known if 0.1 <= t <= LONGEST]
        if len(real) >= (ENOUGH if known is own else 1):
            return statistics.median(real)
    return USUAL.get(kind, USUAL["edit"])


def places(load: Load, seconds: float) -> int:
    """How many more tasks of ``seconds`` fit into somebody's week."""
    return max(0, int((load.given - load.spent - load.open * seconds) // seconds))


def batch_size(room: Sequence[int], per_record: int) -> int:
    """How many records fit where each is shown to ``per_record`` different people who have ``room`` for so many tasks.

    The most ``n`` with ``sum(min(room_i, n)) >= n * per_record``: nobody can see one record twice. Fewer people than
    ``per_record`` are all shown every record.

    >>> batch_size([10, 10], 1), batch_size([10, 2], 2), batch_size([], 2)
    (20, 2, 0)
    """
    want = min(per_record, sum(r > 0 for r in room))
    if not want:
        return 0
    low, high = 0, sum(room)
    while low < high:
        n = (low + high + 1) // 2
        fits = sum(min(r, n) for r in room) >= n * want
        low, high = (n, high) if fits else (low, n - 1)
    return low


def assign(
    records: Sequence[str],
    team: Sequence[Person],
    room: Mapping[str, int],
    *,
    per_record: int,
    topics: Mapping[str, frozenset[str]] | None = None,
    seen: Mapping[str, frozenset[str]] | None = None,
) -> dict[str, tuple[str, ...]]:
    """Who should see each record: up to ``per_record`` active people with room who have not seen it.

    Experts in one of the record's topics come first, then people without a speciality, then other experts; among
    equals whoever has the largest share of their room left. A record that fits nobody gets nobody.
    """
    left = {person.id: room.get(person.id, 0) for person in team if person.active}
    whole = {person: max(count, 1) for person, count in left.items()}
    order = {person.id: place for place, person in enumerate(team)}
    found = {}
    for record in records:
        about, before = (topics or {}).get(record, frozenset()), (seen or {}).get(record, frozenset())
        free = [p for p in team if left.get(p.id, 0) > 0 and p.id not in before]
        free.sort(key=lambda p: (_distance(p, about), -left[p.id] / whole[p.id], order[p.id]))
        chosen = tuple(p.id for p in free[:per_record])
        for person in chosen:
            left[person] -= 1
        found[record] = chosen
    return found


def _distance(person: Person, about: frozenset[str]) -> int:
    if person.expertise & about:
        return 0
    return 1 if not person.expertise else 2


# ---------------------------------------------------------------------------------------------------- the ledger


def week_start(now: datetime | None = None) -> str:
    """The last Monday, 00:00 UTC, as the server writes times."""
    now = (now or datetime.now(UTC)).astimezone(UTC)
    monday = (now - timedelta(days=now.weekday())).replace(hour=0, minute=0, second=0, microsecond=0)
    return monday.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


@dataclass(frozen=True)
class Times:
    """What answers took: seconds by kind of question, by person and kind, and spent by each person this week."""

    kinds: Mapping[str, list[float]]
    own: Mapping[tuple[str, str], list[float]]
    spent: Mapping[str, float]

    def seconds(self, kind: str, person: str = "") -> float:
        """What one answer of a kind costs, for a person or for anybody."""
        return seconds_for(kind, self.kinds.get(kind, ()), self.own.get((person, kind), ()))


def times(workspace: Workspace, now: datetime | None = None) -> Times:
    """The lead times of every standing Label of a person."""
    kinds_of = {q.name: q.kind for q in workspace.ledger.questions()}
    since = week_start(now)
    kinds, own = defaultdict(list), defaultdict(list)
    spent: dict[str, float] = defaultdict(float)
    rows = workspace.ledger.labels(kinds={"person"})
    columns = (rows[name].to_pylist() for name in ("author", "question", "extra"))
    for author, question, extra in zip(*columns, strict=True):
        told = orjson.loads(extra) if extra else {}
        seconds, kind = told.get("lead_time"), kinds_of.get(question, "edit")
        if seconds is None:
            continue
        kinds[kind].append(seconds)
        own[author, kind].append(seconds)
        if (told.get("updated_at") or "") >= since:
            spent[author] += min(seconds, LONGEST)
    return Times(kinds, own, spent)


def loads(workspace: Workspace, channel: str, known: Times | None = None) -> dict[str, Load]:
    """Everybody's week as it stands."""
    known = known or times(workspace)
    open_tasks = {task.showing for task in workspace.ledger.tasks(state="open", channel=channel)}
    waiting: dict[str, int] = defaultdict(int)
    for showing in workspace.ledger.showings():
        if showing.annotator and showing.id in open_tasks:
            waiting[showing.annotator] += 1
    return {
        person.id: Load(60.0 * person.minutes, known.spent.get(person.id, 0.0), waiting[person.id])
        for person in people(workspace)
    }


def room_of(workspace: Workspace, question: Question, channel: str) -> dict[str, int]:
    """How many more tasks of a question fit into each active person's week."""
    known = times(workspace)
    week = loads(workspace, channel, known)
    return {
        person.id: places(week[person.id], known.seconds(question.kind, person.id))
        for person in people(workspace)
        if person.active
    }


def seen_by(workspace: Workspace) -> dict[str, frozenset[str]]:
    """Who has been shown, or has answered, each record."""
    found: dict[str, set[str]] = defaultdict(set)
    for showing in workspace.ledger.showings():
        if showing.annotator:
            found[showing.record].add(showing.annotator)
    rows = workspace.ledger.labels(kinds={"person"})
    for record, author in zip(rows["record"].to_pylist(), rows["author"].to_pylist(), strict=True):
        found[record].add(author)
    return {record: frozenset(who) for record, who in found.items()}


def topics_of(
    workspace: Workspace, records: Sequence[str], texts: Mapping[str, str], team: Sequence[Person]
) -> dict[str, frozenset[str]]:
    """Which of the team's subjects each record touches: named in its tags, its class, or its prompt.

    ``texts`` holds per record what is known of it in words (the prompt, and the class that is suggested). A subject of
    several words is touched where all of its words are.
    """
    subjects = {term: frozenset(words(term)) for person in team for term in person.expertise}
    tags = workspace.ledger.records(records)
    named: dict[str, Any] = dict(zip(tags["record"].to_pylist(), tags["tags"].to_pylist(), strict=True))
    found = {}
    for record in records:
        known = set(words(f"{texts.get(record, '')} {_tag_words(named.get(record))}"))
        found[record] = frozenset(term for term, parts in subjects.items() if parts and parts <= known)
    return found


def _tag_words(tags: str | None) -> str:
    """The tags' values in words; a key tells nothing that every record does not share."""
    told = orjson.loads(tags) if tags else {}
    values = list(told.values()) if isinstance(told, dict) else told
    return " ".join(value for value in values if isinstance(value, str))
