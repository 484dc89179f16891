"""How people answer: time, agreement, skill, what suggestions do to them, known answers, and how that changes.

The arithmetic works on :class:`Answer` rows and can be checked by hand; ``gather`` fetches them. Known answers come
from rows reserved for tuning (``dev``), never from the test set. Small numbers are given with their interval or not at
all: nobody is judged on three answers.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import orjson

from curation.calibration import wilson
from curation.consensus import krippendorff_alpha
from curation.curate import Rules, load_table
from curation.people import plan
from curation.question import current
from curation.records import SOURCE_TRUST, digest
from curation.text import normalise
from curation.workspace import Workspace

FEW = 5  # answers below which no share is given


@dataclass(frozen=True)
class Answer:
    """One Label of a person, with what was on their page.

    ``value`` is normalised. ``suggested`` is the digest of the normalised suggestion that was shown or, where ``blind``,
    held back; empty where there was none. ``known`` is the normalised right answer of a honeypot. ``before`` is what
    would stand without people: the functions' class, else the source's draft.
    """

    record: str
    author: str
    value: str
    seconds: float | None = None
    time: str = ""
    suggested: str = ""
    blind: bool = False
    known: str = ""
    before: str = ""


def mark(text: str) -> str:
    """The digest of a normalised text: enough to compare answers, and nothing to read."""
    return digest(normalise(text))


def share(hits: int, of: int) -> dict[str, Any] | None:
    """A share with Wilson's 95% interval (Wilson 1927); ``None`` below :data:`FEW` answers.

    >>> share(8, 10)["share"]
    0.8
    """
    if of < FEW:
        return None
    low, high = wilson(hits, of)
    return {"share": round(hits / of, 4), "ci95": [round(low, 4), round(high, 4)], "n": of}


def anchoring(answers: Iterable[Answer]) -> dict[str, Any]:
    """How often answers equal the suggestion where it was shown and where it was held back, and the difference.

    The difference is what showing does: on blind tasks people agree with the model by themselves. Its interval is
    Newcombe's for two independent shares (Newcombe 1998, method 10). ``None`` where either side has too few answers.
    """
    with_one = [a for a in answers if a.suggested]
    sides = {
        name: [mark(a.value) == a.suggested for a in with_one if a.blind == blind]
        for name, blind in (("shown", False), ("blind", True))
    }
    shown, blind = (share(sum(sides[n]), len(sides[n])) for n in ("shown", "blind"))
    told: dict[str, Any] = {"shown": shown, "blind": blind, "difference": None}
    if shown and blind:
        p, q = shown["share"], blind["share"]
        (pl, ph), (ql, qh) = shown["ci95"], blind["ci95"]
        low = p - q - math.hypot(p - pl, qh - q)
        high = p - q + math.hypot(ph - p, q - ql)
        told["difference"] = {"value": round(p - q, 4), "ci95": [round(low, 4), round(high, 4)]}
    return told


def agreement(answers: Sequence[Answer]) -> dict[str, tuple[int, int]]:
    """Per author: with how many answers of other people theirs agree, and of how many."""
    by_record: dict[str, list[Answer]] = defaultdict(list)
    for answer in answers:
        by_record[answer.record].append(answer)
    found: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for said in by_record.values():
        for one in said:
            for other in said:
                if other.author != one.author:
                    found[one.author][0] += one.value == other.value
                    found[one.author][1] += 1
    return {author: (hits, of) for author, (hits, of) in found.items()}


def skill(answers: Sequence[Answer]) -> dict[str, float]:
    """Per author: the chance to give the answer that most others give, with one right and one wrong answer added.

    The others' majority is the truth here, ties count for nobody; an author whom nobody can be compared with has none.
    """
    by_record: dict[str, list[Answer]] = defaultdict(list)
    for answer in answers:
        by_record[answer.record].append(answer)
    tally: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for said in by_record.values():
        for one in said:
            top = Counter(a.value for a in said if a.author != one.author).most_common(2)
            if top and (len(top) == 1 or top[0][1] > top[1][1]):
                tally[one.author][0] += one.value == top[0][0]
                tally[one.author][1] += 1
    return {author: round((hits + 1) / (of + 2), 4) for author, (hits, of) in tally.items()}


def drift(answers: Sequence[Answer], right: Callable[[Answer], bool | None]) -> dict[str, Any] | None:
    """The earlier half of somebody's answers beside the later half: seconds per item, and how often ``right``.

    ``None`` with fewer than twice :data:`FEW` answers. ``right`` gives ``None`` where nobody can say.
    """
    timed = sorted((a for a in answers if a.time), key=lambda a: (a.time, a.record))
    if len(timed) < 2 * FEW:
        return None
    halves = timed[: len(timed) // 2], timed[len(timed) // 2 :]
    told: dict[str, Any] = {}
    for name, half in zip(("earlier", "later"), halves, strict=True):
        known = [r for r in map(right, half) if r is not None]
        seconds = [a.seconds for a in half if a.seconds is not None]
        told[name] = {
            "seconds": round(statistics.median(seconds), 1) if seconds else None,
            "right": share(sum(known), len(known)),
        }
    return told


def report(answers: Sequence[Answer], names: Mapping[str, str]) -> dict[str, Any]:
    """What can be said of each author and of all together."""
    agreed, skills = agreement(answers), skill(answers)
    usual = _majorities(answers)
    people = []
    for author in dict.fromkeys(a.author for a in answers):
        mine = [a for a in answers if a.author == author]
        known = [a for a in mine if a.known]
        seconds = [a.seconds for a in mine if a.seconds is not None]
        people.append(
            {
                "person": names.get(author) or author,
                "id": author,
                "answers": len(mine),
                "minutes_per_item": round(statistics.median(seconds) / 60, 3) if seconds else None,
                "agreement": share(*agreed.get(author, (0, 0))),
                "skill": skills.get(author),
                "anchoring": anchoring(mine),
                "honeypots": share(sum(a.value == a.known for a in known), len(known)),
                "changed": sum(a.before != "" and a.value != a.before for a in mine),
                "drift": drift(mine, lambda a: _right(a, usual)),
            }
        )
    alpha = krippendorff_alpha((a.record, a.author, a.value) for a in answers)
    return {"people": people, "alpha": alpha, "anchoring": anchoring(answers), "answers": len(answers)}


def _majorities(answers: Sequence[Answer]) -> dict[str, Counter[str]]:
    found: dict[str, Counter[str]] = defaultdict(Counter)
    for answer in answers:
        found[answer.record][answer.value] += 1
    return found


def _right(answer: Answer, usual: Mapping[str, Counter[str]]) -> bool | None:
    if answer.known:
        return answer.value == answer.known
    others = usual[answer.record] - Counter([answer.value])
    if not others and sum(usual[answer.record].values()) < 2:
        return None
    return usual[answer.record][answer.value] > max(others.values(), default=0)


# ---------------------------------------------------------------------------------------------------- the ledger


def gather(workspace: Workspace) -> list[Answer]:
    """Every standing Label of a person under the current question, with what was on its page."""
    question = current(workspace)
    book = workspace.ledger
    showings = {s.id: s for s in book.showings()}
    before, known = _before(workspace), honeypots(workspace)
    rows = book.labels(kinds={"person"})
    names = ("record", "author", "body", "showing", "question", "extra")
    found = []
    for record, author, body, showing, asked, extra in zip(
        *(rows[n].to_pylist() for n in names), strict=True
    ):
        if asked not in (None, question.name):
            continue
        told = orjson.loads(extra) if extra else {}
        shown = showings.get(showing)
        hidden = str((shown.extra or {}).get("hidden", "")) if shown else ""
        suggested = mark(shown.suggestion) if shown and shown.suggestion and not shown.blind else hidden
        found.append(
            Answer(
                record,
                author,
                normalise(body),
                told.get("lead_time"),
                told.get("updated_at") or "",
                suggested,
                bool(shown and shown.blind),
                normalise(known.get(record, "")),
                normalise(before.get(record, "")),
            )
        )
    return found


def honeypots(workspace: Workspace) -> dict[str, str]:
    """The known answer of each ``dev`` record that has exactly one: gold, else reference."""
    items = workspace.ledger.eval_items("dev")["record"].to_pylist()
    if not items:
        return {}
    rows = workspace.ledger.labels(records=items, kinds={"gold", "reference"})
    by_kind: dict[str, dict[str, set[str]]] = {"reference": defaultdict(set), "gold": defaultdict(set)}
    for record, kind, body in zip(*(rows[n].to_pylist() for n in ("record", "kind", "body")), strict=True):
        by_kind[kind][record].add(body)
    chosen = {**by_kind["reference"], **by_kind["gold"]}
    return {record: next(iter(bodies)) for record, bodies in chosen.items() if len(bodies) == 1}


def _before(workspace: Workspace) -> dict[str, str]:
    """What would stand for each record without people: the functions' class, else the source's own completion."""
    rows = workspace.ledger.labels(kinds=set(SOURCE_TRUST) - {"gold"})
    found = dict(zip(rows["record"].to_pylist(), rows["body"].to_pylist(), strict=True))
    table = load_table(workspace, "probabilities", Rules(workspace).scrub)
    for row in table.to_pylist() if table is not None else ():
        if row["label"] and row["weight"]:
            found[row["record"]] = row["label"]
    return {record: body for record, body in found.items() if body}


def people_status(
    workspace: Workspace, channel: str = "label-studio", now: datetime | None = None
) -> dict[str, Any]:
    """The numbers behind ``tilth status --people``: each person's week, and how they answer."""
    team = plan.people(workspace)
    names = {a.id: a.name or "" for a in workspace.ledger.authors()}
    told = report(gather(workspace), names)
    by_id = {row["id"]: row for row in told["people"]}
    since = plan.week_start(now)
    done: Counter[str] = Counter()
    rows = workspace.ledger.labels(kinds={"person"})
    for author, extra in zip(rows["author"].to_pylist(), rows["extra"].to_pylist(), strict=True):
        done[author] += ((orjson.loads(extra) if extra else {}).get("updated_at") or "") >= since
    week = plan.loads(workspace, channel)
    people = []
    for person in team:
        load = week[person.id]
        known = by_id.pop(person.id, {"answers": 0, "agreement": None, "skill": None, "changed": 0})
        people.append(
            {
                **known,
                "person": person.name,
                "id": person.id,
                "active": person.active,
                "expertise": sorted(person.expertise),
                "minutes": person.minutes,
                "minutes_spent": round(load.spent / 60, 1),
                "open": load.open,
                "done_this_week": done[person.id],
            }
        )
    people += [{**row, "done_this_week": done[row["id"]], "active": None} for row in by_id.values()]
    return {**told, "people": people}
