"""What a curator may see and do, without a screen: the queue, one item, and the decisions about it.

Every call checks who asks. A decision names the version of the record that it was made against, and is
written to the ledger before the call returns; the same decision sent twice is one. Text that no scan has seen
is not handed out. Refuses to accept what was not on the screen.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from apps.review import voices
from apps.review.voices import Voice
from curation.errors import GateRefused, UsageError
from curation.ledger import Ledger, Review, ReviewResult
from curation.records import canonical_json, digest

KINDS = ("disagreement", "conflict", "held", "quarantined")
MAY = {"curator": {"look", "decide"}, "viewer": {"look"}, "annotator": set[str]()}
ROLE = "role"  # the kind of the ledger's events that give a person a role
UNSCANNED = "scrub"  # the stage whose quarantine means: nobody knows what personal data is in it
_STAGE_KINDS = {"consensus": "disagreement", "conflict": "conflict"}
_FINAL = ("accept", "edit", "reject")
_WAITING = pa.array(["hold", "quarantine"])

Votes = Callable[[str], Sequence[tuple[str, str]]]
"""The labeling functions' votes on a record, as (function, vote)."""
Skills = Callable[[], Mapping[str, float]]
"""What each author's word is worth, where enough is known of them."""


@dataclass(frozen=True)
class Reason:
    """Why a record waits: one of :data:`KINDS`, the stage that stopped it, and the stage's words."""

    kind: str
    stage: str
    words: str


@dataclass(frozen=True)
class Entry:
    """A record of the queue. ``state`` is empty while it waits, else the review action that stands."""

    record: str
    reasons: tuple[Reason, ...]
    state: str = ""

    @property
    def kinds(self) -> set[str]:
        """The kinds of its reasons."""
        return {reason.kind for reason in self.reasons}


@dataclass(frozen=True)
class Answer:
    """One of the competing completions, and who gave it."""

    text: str
    voices: tuple[Voice, ...]

    @property
    def weight(self) -> float:
        """The skill of the people behind it, together; whose skill nobody knows counts half."""
        return sum(0.5 if v.skill is None else v.skill for v in self.voices if v.kind == "person")


@dataclass(frozen=True)
class Item:
    """What is on the screen about one record. ``hidden`` says why its text is withheld, if it is."""

    record: str
    prompt: str
    source: str
    reasons: tuple[Reason, ...]
    answers: tuple[Answer, ...]
    votes: tuple[tuple[str, str], ...]
    version: int
    history: tuple[Review, ...]
    hidden: str = ""


@dataclass(frozen=True)
class Progress:
    """How far the queue is: decided and skipped of ``total``."""

    decided: int
    skipped: int
    total: int


@dataclass(frozen=True)
class Desk:
    """One curator at one ledger. ``rules`` is the current rule of each stage; decisions of older rules are
    past.
    """

    ledger: Ledger
    rules: Mapping[str, str]
    votes: Votes = lambda record: ()
    skills: Skills = dict

    @property
    def actor(self) -> str:
        """Who decides here."""
        return self.ledger.actor

    def role(self) -> str:
        """The actor's role, read anew each time: a role taken away counts at once.

        A workspace where nobody was given a role belongs to whoever can open its ledger.
        """
        given = {event.subject: str(event.detail.get("role", "")) for event in self.ledger.events(kind=ROLE)}
        return given.get(self.actor, "") if given else "curator"

    def require(self, what: str) -> None:
        """Raise :class:`GateRefused` unless the actor may ``look`` or ``decide``."""
        role = self.role()
        if what not in MAY.get(role, set()):
            raise GateRefused(
                f"{self.actor} is {role or 'not known here'} and may not {what}",
                where=f"workspace {self.ledger.workspace}",
                next="Ask a curator of this workspace for the role",
            )

    def grant(self, person: str, role: str) -> None:
        """Give ``person`` a role. The first grant also keeps the giver a curator."""
        self.require("decide")
        if role not in MAY:
            raise UsageError(f"there is no role {role!r}", next=f"Use one of {', '.join(MAY)}")
        if not self.ledger.events(kind=ROLE) and person != self.actor:
            self.ledger.event(ROLE, self.actor, {"role": "curator", "by": self.actor})
        self.ledger.event(ROLE, person, {"role": role, "by": self.actor})

    def queue(self) -> list[Entry]:
        """Every record that a stage holds or quarantines now, decided or not, by :data:`KINDS`."""
        self.require("look")
        states = {row["record"]: row["action"] for row in self.ledger.review_states().to_pylist()}
        reasons: dict[str, list[Reason]] = {}
        for stage, rule in self.rules.items():
            for row in self._standing(stage, rule):
                known = reasons.setdefault(row["record"], [])
                reason = Reason(_kind(stage, row["action"]), stage, row["reason"])
                if reason not in known:
                    known.append(reason)
        entries = [Entry(record, tuple(why), states.get(record, "")) for record, why in reasons.items()]
        return sorted(entries, key=lambda entry: min(KINDS.index(kind) for kind in entry.kinds))

    def _standing(self, stage: str, rule: str) -> list[dict[str, str]]:
        found = self.ledger.decisions(stage=stage, rule=rule)
        waiting = found.filter(pc.is_in(found["action"], value_set=_WAITING))
        return list(waiting.select(["record", "action", "reason"]).to_pylist())

    def item(self, entry: Entry) -> Item:
        """What the screen shows of one record. Raises :class:`UsageError` where it is gone."""
        self.require("look")
        version, history = self.ledger.review_state(entry.record)
        rows = self._rows([entry.record])
        if not rows:
            raise UsageError(
                "the record is gone: its text was erased or its import undone",
                where=entry.record,
                next="Go on to the next one",
            )
        first = rows[0]
        hidden = _hidden(entry)
        return Item(
            record=entry.record,
            prompt="" if hidden else first["prompt"],
            source=first["source"],
            reasons=entry.reasons,
            answers=() if hidden else self._answers(entry, rows),
            votes=() if hidden else tuple(self.votes(entry.record)),
            version=version,
            history=tuple(history),
            hidden=hidden,
        )

    def _rows(self, records: Sequence[str]) -> list[dict[str, str]]:
        pages = self.ledger.view_pages(scrub_rule=self.rules.get(UNSCANNED), records=records)
        return [row for page in pages for row in page.table.to_pylist()]

    def _answers(self, entry: Entry, rows: Sequence[Mapping[str, str]]) -> tuple[Answer, ...]:
        """The record's own completions, those of its rivals, and what a model proposed, each with everybody behind it."""
        found: dict[str, list[Voice]] = {}
        rivals = self._rows(self._rivals(entry))
        known = voices.gather(self.ledger, [entry.record, *{row["record"] for row in rivals}], self.skills())
        for row in rows:
            self._add(found, row, known, "")
        for row in rivals:
            self._add(found, row, known, "other record: ")
        for text, voice in known.proposals.get(entry.record, {}).items():
            found.setdefault(text, []).append(voice)
        for function, vote in self.votes(entry.record):
            if vote in found:
                found[vote].append(Voice("function", function))
        answers = [Answer(text, tuple(sorted(said, key=_place))) for text, said in found.items()]
        if "disagreement" in entry.kinds and any(v.skill is not None for a in answers for v in a.voices):
            answers.sort(
                key=lambda answer: -answer.weight
            )  # what one key accepts is the side that more speaks for
        return tuple(answers)

    @staticmethod
    def _add(
        found: dict[str, list[Voice]], row: Mapping[str, str], known: voices.Voices, origin: str
    ) -> None:
        if row["completion"] is None or row["label"] in known.judgements:
            return
        voice = known.by_label.get(row["label"]) or Voice(row["trust"] or "source", row["source"])
        if origin:
            voice = replace(voice, kind=origin + voice.kind)
        found.setdefault(row["completion"], []).append(voice)

    def _rivals(self, entry: Entry) -> list[str]:
        """Records that a stage named as contradicting this one, less those whose text no scan has seen."""
        named: dict[str, None] = {}
        for reason in entry.reasons:
            rows = self.ledger.decisions(
                stage=reason.stage, rule=self.rules[reason.stage], records=[entry.record]
            )
            for evidence in rows["evidence"].to_pylist():
                other = json.loads(evidence or "{}").get("against")
                if isinstance(other, str):
                    named[other] = None
        others = [other for other in named if other != entry.record]
        if not others or UNSCANNED not in self.rules:
            return others
        unscanned = self.ledger.decisions(stage=UNSCANNED, rule=self.rules[UNSCANNED], records=others)
        stopped = {row["record"] for row in unscanned.to_pylist() if row["action"] != "rewrite"}
        return [other for other in others if other not in stopped]

    def progress(self, entries: Sequence[Entry]) -> Progress:
        """How many of ``entries`` are decided and skipped."""
        states = [entry.state for entry in entries]
        return Progress(sum(state in _FINAL for state in states), states.count("skip"), len(states))

    def accept(self, item: Item, text: str, *, reason: str = "") -> ReviewResult:
        """Take ``text``, one of the answers on the screen, as the record's answer."""
        if text not in {answer.text for answer in item.answers}:
            raise UsageError(
                "this answer was not on the screen", where=item.record, next="Choose one that is, or edit"
            )
        return self._review(item, "accept", text, reason)

    def edit(self, item: Item, text: str, *, reason: str = "") -> ReviewResult:
        """Write the record's answer anew. An empty text is refused: reject says that."""
        if not text.strip():
            raise UsageError("the new answer is empty", where=item.record, next="Write one, or reject")
        return self._review(item, "edit", text, reason)

    def reject(self, item: Item, *, reason: str = "") -> ReviewResult:
        """Keep the record out of every snapshot."""
        return self._review(item, "reject", None, reason)

    def skip(self, item: Item, *, reason: str = "") -> ReviewResult:
        """Leave the record to somebody else; it stays in the queue, at the end."""
        return self._review(item, "skip", None, reason)

    def _review(self, item: Item, action: str, text: str | None, reason: str) -> ReviewResult:
        self.require("decide")
        if item.hidden and action in ("accept", "edit"):
            raise UsageError(f"nobody can answer for it: {item.hidden}", where=item.record, next="Skip it")
        key = _key(self.actor, item.record, item.version, action, text)
        return self.ledger.review(
            item.record, version=item.version, action=action, body=text, reason=reason, key=key
        )

    def undo(self) -> ReviewResult:
        """Take back the actor's latest decision that stands; again for the one before it.

        Raises :class:`UsageError` where none is left, and :class:`~curation.errors.ConflictError` where
        somebody has decided since.
        """
        self.require("decide")
        mine = self._latest_of_mine()
        if mine is None:
            raise UsageError("there is nothing of yours to undo", next="Decide something first")
        version, _ = self.ledger.review_state(mine.record)
        key = _key(self.actor, mine.record, version, "undo", None)
        return self.ledger.undo_review(mine.record, version=version, key=key)

    def _latest_of_mine(self) -> Review | None:
        """The actor's newest decision that is the one standing on its record."""
        stacks: dict[str, list[tuple[int, Review]]] = {}
        for place, entry in enumerate(self.ledger.reviews()):
            stack = stacks.setdefault(entry.record, [])
            if entry.action != "undo":
                stack.append((place, entry))
            elif stack:
                stack.pop()
        tops = [stack[-1] for stack in stacks.values() if stack]
        mine = [top for top in tops if top[1].actor == self.actor]
        return max(mine, key=lambda top: top[0])[1] if mine else None


def open_desk(root: Path, *, actor: str) -> Desk:
    """A desk at the workspace ``root``, with the rules and votes that hold now. It keeps the ledger open."""
    from curation.curate import STAGES, Rules, load_table
    from curation.opinions import people_skills
    from curation.workspace import open_workspace

    workspace = open_workspace(root, actor=actor)
    rules = Rules(workspace)

    def votes(record: str) -> list[tuple[str, str]]:
        table = load_table(workspace, "votes", rules.scrub)
        if table is None:
            return []
        rows = table.filter(pc.equal(table["record"], record)).to_pylist()
        return [(row["function"], row["vote"]) for row in rows if row["vote"] is not None]

    known: dict[int, dict[str, float]] = {}

    def skills() -> dict[str, float]:
        """Anew as soon as there is another Label: everybody's answers are weighed against each other."""
        seen = workspace.ledger.labels_seen()
        if seen not in known:
            known.clear()
            known[seen] = people_skills(workspace)
        return known[seen]

    return Desk(workspace.ledger, {stage: rules.of(stage) for stage in STAGES}, votes, skills)


def waiting(entries: Sequence[Entry], kind: str = "") -> list[Entry]:
    """The entries that nobody has decided, skipped ones last; of one kind where it is given."""
    undecided = [e for e in entries if e.state not in _FINAL and (not kind or kind in e.kinds)]
    return sorted(undecided, key=lambda entry: entry.state == "skip")


def _kind(stage: str, action: str) -> str:
    return _STAGE_KINDS.get(stage, "quarantined" if action == "quarantine" else "held")


def _place(voice: Voice) -> int:
    """People first, then functions, then models, then sources."""
    order = ("curator", "person", "function", "model")
    return order.index(voice.kind) if voice.kind in order else len(order)


def _hidden(entry: Entry) -> str:
    if not any(reason.stage == UNSCANNED for reason in entry.reasons):
        return ""
    return "it has not been scanned for personal data, so its text is not shown"


def _key(actor: str, record: str, version: int, action: str, text: str | None) -> str:
    """The same decision of the same person on the same version has one key, however often it is sent."""
    return digest(canonical_json([actor, record, version, action, text]))
