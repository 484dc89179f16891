"""What is said of records, and what it amounts to: everybody's standing Labels, weighed into one answer, and what is left
to a curator.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curation import consensus, judging, records
from curation.consensus import Consensus, Opinion
from curation.curate import Rules, changes, load_table, scrubbed_labels
from curation.ledger import Question
from curation.question import current
from curation.records import SOURCE_TRUST
from curation.workspace import Workspace


@dataclass(frozen=True)
class Voices:
    """Whose Labels count: everybody's less ``silent``, or only those of ``only``; functions too where ``weak``.

    Two arms of one experiment train on the same records' worth of different people's Labels, so an author can be left
    out by opaque id, and so can what was answered on given ``unheard`` Showings.
    """

    only: frozenset[str] = frozenset()
    silent: frozenset[str] = frozenset()
    records: frozenset[str] | None = None
    unheard: frozenset[str] = frozenset()
    weak: bool = True
    sources: bool = True

    def hears(self, author: str) -> bool:
        """Whether the Labels of ``author`` count."""
        return author in self.only if self.only else author not in self.silent


def opinions(
    workspace: Workspace,
    question: Question,
    voices: Voices,
    kinds: set[str],
    records: Sequence[str] | None = None,
) -> list[Opinion]:
    """The latest Label of each author on each record, as seen after scrubbing, of the given kinds.

    What people said under another question is no answer to this one. Whoever accepts an answer stands behind its text;
    an answer that at least as many reject as accept is nobody's.
    """
    rows = scrubbed_labels(workspace, Rules(workspace), kinds, records)
    latest: dict[tuple[str, str, str], Opinion] = {}
    shown = _accepted(workspace, question, rows) if question.kind == "accept" else {}
    names = ("record", "label", "author", "kind", "body", "question", "showing")
    columns = (rows[name].to_pylist() for name in names)
    for record, label, author, kind, body, asked, showing in zip(*columns, strict=True):
        if kind == "person" and question.name and asked not in (None, question.name):
            continue
        if kind == "person" and question.kind == "accept":
            body = shown.get(label)
        value = None if body is None else question_value(question, body)
        if value is None or not voices.hears(author) or showing in voices.unheard:
            continue
        if voices.records is not None and record not in voices.records:
            continue
        # A source may give several references; a person's newer answer replaces the older one.
        key = label if kind in SOURCE_TRUST else author
        latest[record, kind, key] = Opinion(record, label, author, kind, value)
    return list(latest.values())


def _accepted(workspace: Workspace, question: Question, rows: pa.Table) -> dict[str, str]:
    """The text that each accepting Label stands behind, for records that more people accept than reject."""
    people = [
        row
        for row in rows.to_pylist()
        if row["kind"] == "person" and row["showing"] and row["question"] in (None, question.name)
    ]
    shown = {s.id: s.suggestion for s in workspace.ledger.showings([row["showing"] for row in people])}
    votes: dict[tuple[str, str], int] = {}
    for row in people:
        key = (row["record"], shown.get(row["showing"]) or "")
        votes[key] = votes.get(key, 0) + (1 if row["body"] == "accept" else -1)
    return {
        row["label"]: text
        for row in people
        if (text := shown.get(row["showing"])) and row["body"] == "accept" and votes[row["record"], text] > 0
    }


def question_value(question: Question, value: str) -> str | None:
    """The answer as the question knows it; ``None`` where a class is not (or no longer) one of its classes.

    A class that a revision renamed or merged counts as the new one.
    """
    if question.kind in ("compare", "rubric", "spans"):
        return None  # an opinion about an answer is no answer
    if question.kind != "class":
        return value
    value = question.mapping.get(value) or value
    return value if value in question.classes else None


def training_kinds(voices: Voices) -> set[str]:
    """The kinds of Labels that may be trained on: people's, and references of a source where sources are heard."""
    return {"person", "curator"} | ({"reference"} if voices.sources else set())


def agree(workspace: Workspace, question: Question, heard: list[Opinion]) -> list[Consensus]:
    """One answer a record, or several of free text, each weighed also by what people think of it."""
    if question.kind == "class":
        skill = consensus.skills(heard, question.classes)
        agreed = consensus.class_consensus(heard, question.classes, priors(workspace, question), skill=skill)
    else:
        agreed = consensus.text_consensus(heard, skill=consensus.skills(heard, None))
    return judging.weighed(agreed, judging.judged(workspace))


def people_skills(workspace: Workspace) -> dict[str, float]:
    """What each person's word on the loop's question is worth; empty where their answers meet too rarely."""
    question = current(workspace)
    heard = opinions(workspace, question, Voices(), {"person"})
    return consensus.skills(heard, question.classes if question.kind == "class" else None)


def settle(workspace: Workspace) -> int:
    """Leave to a curator the records that people disagree on or call poor, and lift what is settled by now; how many are
    held.

    A Label of a curator, and a record let in by one, ends the matter.
    """
    rules, question = Rules(workspace), current(workspace)
    spoken = sorted(set(workspace.ledger.labels(kinds={"person"})["record"].to_pylist()))
    heard = opinions(workspace, question, Voices(), training_kinds(Voices()), spoken) if spoken else []
    held = {c.record: c for c in agree(workspace, question, heard) if c.needs_review}
    found = [records.decision(c.record, "hold", c.reason) for c in held.values()]
    standing = workspace.ledger.decisions(stage="consensus", rule=rules.consensus)
    new = changes(standing, records.table(found, records.DECISIONS))
    if new.num_rows:
        workspace.ledger.decide("consensus", rules.consensus, new, covered=[], supersede=False)
    return len(held)


def priors(workspace: Workspace, question: Question) -> dict[str, np.ndarray]:
    """The label model's distribution over the question's classes, for the records that functions voted on."""
    table = load_table(workspace, "probabilities", Rules(workspace).scrub)
    if table is None or not table.num_rows:
        return {}
    index = {name: i for i, name in enumerate(question.classes)}
    priors = {}
    for row in table.filter(pc.greater(table["weight"], 0)).to_pylist():
        prior = np.full(len(index), 1e-3 / len(index))
        for name, p in zip(row["classes"], row["proba"], strict=True):
            if name in index:
                prior[index[name]] += p
        priors[row["record"]] = prior / prior.sum()
    return priors
