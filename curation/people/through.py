"""People behind a channel (Label Studio or a file): what they are shown, what they say, and what follows a skip.

Whoever was added with ``tilth people add`` has a project of their own; without anybody, all share one.
"""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from curation.errors import UsageError
from curation.label_studio import FORM_KINDS, KINDS, Channel, FileChannel, ProjectChannel, connect
from curation.label_studio import channel as project_channel
from curation.ledger import Question, Showing, Task
from curation.passages import passages_for
from curation.people import plan
from curation.people.adopt import adopted_channel
from curation.people.intake import anybody, pull
from curation.people.plan import Person
from curation.people.showing import make_tasks, record_drops
from curation.people.simulated import answered, numbered
from curation.question import current
from curation.workspace import Workspace

PAGE = 5_000
AGAIN = "again"  # the key of a Showing's ``extra`` that names the Showing it follows
MORE_PASSAGES = 8


@dataclass
class Through:
    """People behind a channel. ``open`` makes the channel for a question and a person (``None``: whoever comes); it is
    called once per question version and person.
    """

    name: str
    place: str
    open: Callable[[Workspace, Question, Person | None], Channel]
    planned: bool = False  # whether people have a place of their own
    kinds: Sequence[str] = KINDS  # of questions that can be asked there
    simulated: bool = False
    channels: dict[str, Channel] = field(default_factory=dict, repr=False)

    # ------------------------------------------------------------------------------------------ who sees what

    def batch(self, workspace: Workspace, question: Question, per_record: int) -> int | None:
        """How many records fit into people's time this week; ``None`` where nobody was added.

        Raises :class:`UsageError` where nobody has time left.
        """
        team = self.team(workspace)
        if not team:
            return None
        room = plan.room_of(workspace, question, self.name)
        size = plan.batch_size(list(room.values()), per_record)
        if not size:
            raise UsageError(
                "nobody has time left this week",
                where="tilth people",
                next="See tilth status --people; give somebody more minutes, or pass --batch",
            )
        return size

    def seats(
        self,
        workspace: Workspace,
        question: Question,
        rows: Sequence[tuple[str, str]],
        per_record: int,
        given: Mapping[str, int] | None = None,
    ) -> dict[str, tuple[str, ...]]:
        """Who should see each record; ``rows`` are (record, what is known of it in words). Numbers where nobody was added.

        ``given`` are tasks of the same batch that the ledger does not know of yet, by person: they take their time too.
        Where the batch is larger than people's time allows, time is stretched evenly and nobody sees a record twice.
        """
        records = [record for record, _ in rows]
        team = self.team(workspace)
        if not team:
            # A server deals one task to several people; on a form every opinion needs a line of its own.
            seats = (anybody(per_record),) if self.planned and per_record > 1 else numbered(per_record)
            return dict.fromkeys(records, seats)
        room = {
            person: max(0, count - (given or {}).get(person, 0))
            for person, count in plan.room_of(workspace, question, self.name).items()
        }
        short = len(records) * per_record - sum(room.values())
        if short > 0:
            room = {person: count + -(-short // len(room)) + per_record for person, count in room.items()}
        return plan.assign(
            records,
            team,
            room,
            per_record=per_record,
            topics=plan.topics_of(workspace, records, dict(rows), team),
            seen=plan.seen_by(workspace),
        )

    def another(
        self,
        workspace: Workspace,
        question: Question,
        rows: Sequence[tuple[str, str]],
        given: Mapping[str, int] | None = None,
    ) -> dict[str, tuple[str, ...]]:
        """Somebody who has not seen the record, for one more opinion on each; on a form, its next line. ``given`` as for
        :meth:`seats`.

        Nobody where all share one project: it would deal the task to whoever asks, and that may be the same person.
        """
        if self.team(workspace):
            return self.seats(workspace, question, rows, 1, given)
        if self.planned:
            return {record: () for record, _ in rows}
        lines = Counter(s.record for s in workspace.ledger.showings() if s.question == question.name)
        return {record: (str(lines[record]),) for record, _ in rows}

    def require(self, question: Question) -> None:
        """Raise :class:`UsageError` for a kind of question that cannot be asked there; nothing has been written then."""
        if question.kind not in self.kinds:
            raise UsageError(
                f"a question of kind {question.kind!r} cannot be answered in {TASKS_FILE}: one cell does not hold it",
                where=f"question {question.name}",
                next=f"Ask it in Label Studio (`make label-studio`); a form takes {', '.join(self.kinds)}",
            )

    def team(self, workspace: Workspace) -> list[Person]:
        """Whoever was added and has not stopped, where people have a place of their own."""
        return [person for person in plan.people(workspace) if person.active] if self.planned else []

    # ---------------------------------------------------------------------------------------- there and back

    def _channel(self, workspace: Workspace, question: Question, person: Person | None) -> Channel:
        key = f"{question.name}-{question.version}-{person.id if person else ''}"
        if key not in self.channels:
            self.channels[key] = self.open(workspace, question, person)
        return self.channels[key]

    def renew(self, workspace: Workspace, question: Question, person: Person | None) -> None:
        """Bring the interface of a person's project up to date with the question."""
        self._channel(workspace, question, person)

    def ask(self, workspace: Workspace, question: Question, showings: Sequence[Showing]) -> int:
        """Push what is not on the other side yet, and remember each task once it is known to be there."""
        self.require(question)
        known = {task.showing for task in workspace.ledger.tasks(channel=self.name)}
        new = [s for s in showings if s.id not in known]
        for person, mine in self._by_person(workspace, new).items():
            channel = self._channel(workspace, question, person)
            for start in range(0, len(mine), PAGE):
                page = mine[start : start + PAGE]
                remote = channel.push(make_tasks(workspace, question, page, files=not self.planned))
                workspace.ledger.add_tasks(
                    [Task(showing=s.id, channel=self.name, remote=remote[s.id]) for s in page]
                )
        return len(new)

    def _by_person(
        self, workspace: Workspace, showings: Sequence[Showing]
    ) -> dict[Person | None, list[Showing]]:
        team = {person.id: person for person in plan.people(workspace)} if self.planned else {}
        found: dict[Person | None, list[Showing]] = defaultdict(list)
        for showing in showings:
            found[team.get(showing.annotator or "")].append(showing)
        return found

    def collect(self, workspace: Workspace, question: Question) -> dict[str, int]:
        """Pull from everybody since the last time, then do what the skips ask for."""
        totals: dict[str, int] = defaultdict(int)
        mine = [s for s in workspace.ledger.showings() if s.question == question.name]
        sent = {task.showing: task.remote for task in workspace.ledger.tasks(channel=self.name)}
        places = self._by_person(workspace, [s for s in mine if s.id in sent])
        for person in places or {None: []}:
            channel = self._channel(workspace, question, person)
            gone = self._gone(workspace, channel, [sent[s.id] for s in places.get(person, [])])
            mark = f"{self.name}:{question.name}" + (f":{person.id}" if person else "")
            got = pull(
                workspace,
                channel,
                self.name,
                mark=mark,
                namer=self._namer(workspace, channel, person),
                deleted=gone,
            )
            for key, count in got.items():
                totals[key] += count
        totals["asked_again"] = self.follow(workspace, question)
        return dict(totals)

    def _gone(self, workspace: Workspace, channel: Channel, sent: Sequence[str]) -> tuple[str, ...]:
        """Tasks that were deleted on the server: looked for only where it holds fewer than it was sent."""
        if not isinstance(channel, ProjectChannel) or not sent:
            return ()
        taken = {
            task.remote for task in workspace.ledger.tasks(channel=self.name) if task.state == "withdrawn"
        }
        wanted = [remote for remote in sent if remote not in taken]
        return channel.vanished(wanted) if channel.client.task_count(channel.project) < len(wanted) else ()

    def _namer(
        self, workspace: Workspace, channel: Channel, owner: Person | None
    ) -> Callable[[str], str] | None:
        """Names people of the server as people of the ledger: by their login, else by whose project it is."""
        if not isinstance(channel, ProjectChannel):
            return None
        by_email = {p.email.casefold(): p.id for p in plan.people(workspace) if p.email}
        members: dict[str, str] = {}

        def name(remote: str) -> str:
            if by_email and not members:
                members.update(channel.client.members())
            known = by_email.get(members.get(remote, "").casefold())
            return known or (owner.id if owner and not owner.email else "")

        return name

    def waiting(self, workspace: Workspace, showings: Sequence[str]) -> int:
        """How many of these showings nobody has answered or skipped."""
        closed = {t.showing for t in workspace.ledger.tasks(channel=self.name) if t.state != "open"}
        return len(set(showings) - closed)

    def where(self, workspace: Workspace) -> str:
        """Where the people find their tasks."""
        places = [
            f"{channel.client.url}/projects/{channel.project}/data?labeling=1"
            for channel in self.channels.values()
            if isinstance(channel, ProjectChannel)
        ]
        return ", ".join(places) or self.place

    # ------------------------------------------------------------------------------------------- after a skip

    def follow(self, workspace: Workspace, question: Question) -> int:
        """Do what each skip asks for, once: drop a bad question, ask somebody else, or show more passages.

        Returns how many showings were made. Whom nobody can replace leaves the record to a curator.
        """
        book = workspace.ledger
        skips = {event.subject: event.detail for event in book.events("skipped")}
        states = {task.showing: task.state for task in book.tasks(channel=self.name)}
        showings = {s.id: s for s in book.showings() if s.question == question.name}
        followed = {(s.extra or {}).get(AGAIN) for s in showings.values()}
        due = [
            (showings[i], told["why"])
            for i, told in skips.items()
            if i in showings and i not in followed and states.get(i) == "skipped"
        ]
        again: list[Showing] = []
        drops: dict[str, str] = {}
        for showing, why in due:
            new = None if why == "bad question" else self._again(workspace, question, showing, why, again)
            if new:
                again.append(new)
            else:
                drops[showing.record] = why
        record_drops(workspace, drops, open_to=answered(workspace))
        ids = book.add_showings(again)
        self.ask(workspace, question, [replace(s, id=i) for s, i in zip(again, ids, strict=True)])
        return len(again)

    def _again(
        self, workspace: Workspace, question: Question, showing: Showing, why: str, pending: list[Showing]
    ) -> Showing | None:
        """The showing that follows a skip, or ``None`` where nothing more can be done for it."""
        extra = {**(showing.extra or {}), AGAIN: showing.id}
        if why == "needs context":
            found = passages_for(workspace, showing.record, MORE_PASSAGES)
            more = tuple(dict.fromkeys([*showing.passages, *found]))
            return None if more == showing.passages else replace(showing, passages=more, extra=extra, id="")
        if not self.planned:
            return None
        seen = plan.seen_by(workspace).get(showing.record, frozenset())
        seen |= {s.annotator or "" for s in pending if s.record == showing.record}
        room = {person.id: 1 for person in self.team(workspace)}
        words = {showing.record: showing.suggestion or ""}
        team = self.team(workspace)
        chosen = plan.assign(
            [showing.record],
            team,
            room,
            per_record=1,
            topics=plan.topics_of(workspace, [showing.record], words, team),
            seen={showing.record: frozenset(seen)},
        )[showing.record]
        return replace(showing, annotator=chosen[0], extra=extra, id="") if chosen else None

    def rebalance(self, workspace: Workspace, question: Question, person: Person) -> dict[str, int]:
        """Give the open tasks of somebody who has stopped to others; what nobody can take is given up.

        A task that has been answered meanwhile stays where it is: the next pull brings the answer.
        """
        book = workspace.ledger
        tasks = {task.showing: task for task in book.tasks(state="open", channel=self.name)}
        mine = [
            s
            for s in book.showings()
            if s.annotator == person.id and s.question == question.name and s.id in tasks
        ]
        if not mine:
            return {"moved": 0, "given_up": 0}
        channel = self._channel(workspace, question, person)
        free = {tasks[s.id].remote for s in mine}
        if isinstance(channel, ProjectChannel):
            free = set(channel.withdraw(sorted(free)))
        leaving = [s for s in mine if tasks[s.id].remote in free]
        book.finish_tasks([tasks[s.id].id for s in leaving], "withdrawn")
        rows = [(s.record, s.suggestion or "") for s in leaving]
        seats = self.seats(workspace, question, rows, 1) if self.team(workspace) else {}
        again = [
            replace(s, annotator=seats[s.record][0], extra={**(s.extra or {}), AGAIN: s.id}, id="")
            for s in leaving
            if seats.get(s.record)
        ]
        ids = book.add_showings(again)
        self.ask(workspace, question, [replace(s, id=i) for s, i in zip(again, ids, strict=True)])
        return {"moved": len(again), "given_up": len(leaving) - len(again)}


# ------------------------------------------------------------------------------------------- channels by name

TASKS_FILE = "tasks.csv"


def files() -> Through:
    """People who fill in a form: one row per task in ``tasks.csv`` of the workspace."""
    return Through("files", f"{TASKS_FILE}: write into the answer column", _file_channel, kinds=FORM_KINDS)


def _file_channel(workspace: Workspace, question: Question, person: Person | None) -> Channel:
    return FileChannel(workspace.root / TASKS_FILE, question, author="form", form=True)


def label_studio() -> Through:
    """People in Label Studio, at the URL of the configuration or the environment."""
    return Through("label-studio", "Label Studio", _project_channel, planned=True)


def server(workspace: Workspace) -> Any:
    """A client of the configured server. Raises :class:`UsageError` where none is configured."""
    url = os.environ.get("LABEL_STUDIO_URL") or workspace.config.label_studio.url
    if not url:
        raise UsageError(
            "no Label Studio is configured",
            where=str(workspace.root),
            next="Start one with `make label-studio` and set [label_studio] url, or pass --annotator files",
        )
    return connect(url, os.environ.get("LABEL_STUDIO_API_KEY", ""), allow=workspace.config.egress.allow)


def project_title(workspace: Workspace, question: Question, person: Person | None) -> str:
    """What a project is called: the workspace and the question, and whose it is."""
    title = f"{workspace.config.workspace.name} {question.name}"
    return f"{title} · {person.name or person.id}" if person else title


def _project_channel(workspace: Workspace, question: Question, person: Person | None) -> Channel:
    client = server(workspace)
    taken_over = None if person else adopted_channel(workspace, client, question)
    return taken_over or project_channel(
        client,
        question,
        title=project_title(workspace, question, person),
        passages=bool(workspace.ledger.passages()),
        overlap=1 if person else workspace.config.question[question.name].annotators_per_record,
    )


def chosen(workspace: Workspace) -> bool:
    """Whether some showing of the loop's question waits for an answer: then there is no need to choose more."""
    name, _ = workspace.config.the_question
    closed = {task.showing for task in workspace.ledger.tasks() if task.state != "open"} | answered(workspace)
    return any(s.question == name and s.id not in closed for s in workspace.ledger.showings())


def push_open(
    workspace: Workspace, through: Any, *, name: str | None = None, dry_run: bool = False
) -> dict[str, Any]:
    """Bring every showing that nobody has answered to the people; what is there already is not brought again."""
    done = answered(workspace)
    question = current(workspace, name)
    known = {task.showing for task in workspace.ledger.tasks(channel=through.name)}
    todo = [
        s
        for s in workspace.ledger.showings()
        if s.id not in done and s.id not in known and s.question == question.name
    ]
    if todo and not dry_run:
        through.ask(workspace, question, todo)
    return {"pushed": len(todo), "where": through.where(workspace)}


def pull_all(workspace: Workspace, through: Any, *, dry_run: bool = False) -> dict[str, int]:
    """Fetch what people did since the last time, under every question that they were asked."""
    totals: dict[str, int] = {"added": 0, "withdrawn": 0, "unusable": 0}
    asked = {showing.question for showing in workspace.ledger.showings()}
    first, _ = workspace.config.the_question
    for name in () if dry_run else workspace.config.question:
        if name == first or name in asked:
            for key, count in through.collect(workspace, current(workspace, name)).items():
                totals[key] = totals.get(key, 0) + count
    return totals
