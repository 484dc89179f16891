"""Which records say the same thing: exact duplicates, near-duplicates, and records that contradict each
other.

Duplicates are found by :mod:`curation.grouping`: proposed by MinHash, verified by the exact Jaccard index.
What stays follows a rank and then ids, so the order in which records arrived changes nothing.

Nothing here compares the completions of one record with each other: several references of a record are what
they are. And nothing here drops a row whose answer differs from the kept one's: that is a conflict, and a
person's to decide.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from curation import records
from curation.errors import UsageError
from curation.grouping import Groups, group
from curation.minhash import DuplicateRule, exact_key
from curation.text import normalise, tokens

Rank = Mapping[str, Any]

CLUSTERS = pa.schema([("record", pa.string()), ("cluster", pa.string())])
"""A record and the cluster of near-duplicate prompts it belongs to; records alone in their cluster are left
out."""


@dataclass(frozen=True)
class Cluster:
    """Texts that are duplicates of each other: ``members`` in the order given, the one kept, and the exact
    Jaccard index of each member with it. An index under the threshold means that others connect the two."""

    members: tuple[Any, ...]
    kept: Any
    similarity: tuple[float, ...]


@dataclass(frozen=True)
class Duplicates:
    """The clusters of a corpus; ``dropped`` holds every member but the kept ones. ``partial`` as in
    :class:`Groups`."""

    clusters: tuple[Cluster, ...]
    partial: int = 0

    @property
    def dropped(self) -> set[Any]:
        """The ids that a de-duplicated corpus leaves out."""
        return {m for cluster in self.clusters for m in cluster.members if m != cluster.kept}


def find_duplicates(
    ids: Sequence[Hashable], texts: Sequence[str], rule: DuplicateRule, rank: Sequence[Any] | None = None
) -> Duplicates:
    """Exact and near-duplicates among ``texts``; of each cluster one is kept: the lowest ``rank``, then the
    first.

    No texts give no clusters. Raises :class:`UsageError` where the lengths differ or an id stands twice.
    """
    _check_lengths(ids, texts, rank)
    groups = group(texts, rule)
    clusters = [members.tolist() for members in groups.clusters()]
    kept = [min(places, key=lambda i: (rank[i], i)) if rank is not None else places[0] for places in clusters]
    pairs = [(best, i) for best, places in zip(kept, clusters, strict=True) for i in places]
    similarity = iter(groups.similarity(np.array(pairs, np.int64).reshape(-1, 2)).tolist())
    found = (
        Cluster(tuple(ids[i] for i in places), ids[best], tuple(next(similarity) for _ in places))
        for best, places in zip(kept, clusters, strict=True)
    )
    return Duplicates(tuple(found), groups.partial)


def _check_lengths(ids: Sequence[Hashable], texts: Sequence[str], rank: Sequence[Any] | None) -> None:
    if len(ids) != len(texts) or (rank is not None and len(rank) != len(texts)):
        raise UsageError(
            f"{len(ids)} ids and {len(texts)} texts do not match", next="Give one id and rank per text"
        )
    if len(set(ids)) != len(ids):
        raise UsageError("an id stands twice", next="Give every text an id of its own")


# --- Stages over a workspace's view ---------------------------------------------------------------

TRUST = ("curator", "gold", "person", "reference", "consensus", "candidate", "model", "function")


@dataclass(frozen=True)
class Row:
    """One row of a view: a record with one of its completions."""

    record: str
    label: str | None
    prompt: str
    completion: str | None
    trust: int  # place in TRUST, lower is better
    time: str
    system: str  # the content of its system messages

    def text(self, fields: Sequence[str]) -> str:
        """The fields that near-duplicates are compared by, joined by a newline."""
        parts = {"prompt": self.prompt, "completion": self.completion}
        return "\n".join(part for name in fields if (part := parts[name]) is not None)


def rows_of(view: pa.Table) -> list[Row]:
    """The rows of a view. System messages are taken out of the prompt.

    They instruct the model and are the same for a whole desk: compared with the rest, a long one would make
    all of its records near-duplicates of each other.
    """
    names = ("record", "label", "messages", "prompt", "completion", "trust", "time")
    return [_row(*values) for values in zip(*(view[name].to_pylist() for name in names), strict=True)]


def _row(
    record: str,
    label: str | None,
    messages: list[dict[str, str]] | None,
    prompt: str | None,
    completion: str | None,
    trust: str | None,
    time: str | None,
) -> Row:
    place = TRUST.index(trust) if trust in TRUST else len(TRUST)
    system = [m["content"] or "" for m in messages or () if m["role"] == "system"]
    if system and messages:
        prompt = records.prompt_text([m for m in messages if m["role"] != "system"])
    return Row(record, label, prompt or "", completion, place, time or "9999", "\n".join(system))


def default_rank(rows: Iterable[Row]) -> dict[str, tuple[Any, ...]]:
    """Which record stays, lowest first: the best trusted, then the oldest; ids break ties elsewhere."""
    best: dict[str, tuple[Any, ...]] = {}
    for row in rows:
        best[row.record] = min(best.get(row.record, (row.trust, row.time)), (row.trust, row.time))
    return best


def keeping_order(rows: Sequence[Row], rank: Rank | None) -> list[Row]:
    """Rows, best first: with a completion before without, then by ``rank`` of the record, then by ids.

    A record that ``rank`` lacks comes last. The order of ``rows`` plays no part.
    """
    ranks = default_rank(rows) if rank is None else rank

    def key(row: Row) -> tuple[Any, ...]:
        known = row.record in ranks
        return (
            row.completion is None,
            not known,
            ranks[row.record] if known else 0,
            row.record,
            row.label or "",
        )

    return sorted(rows, key=key)


def exact_duplicates(view: pa.Table, rank: Rank | None = None) -> pa.Table:
    """Drop rows whose prompt and completion equal another record's after normalising, system messages
    included.

    One decision per dropped row, naming the kept record. ``rank`` maps records to something comparable,
    lowest is kept; without it the better trusted, then the older record stays. An empty view gives no
    decisions.
    """
    kept: dict[tuple[Any, ...], Row] = {}
    found = []
    for row in keeping_order(rows_of(view), rank):
        answer = None if row.completion is None else exact_key(row.completion)
        holder = kept.setdefault((exact_key(row.system), exact_key(row.prompt), answer), row)
        if holder.record != row.record:
            found.append(_drop(row, holder, "the same text as another record", 1.0))
    return records.table(found, records.DECISIONS)


def _drop(row: Row, holder: Row, reason: str, similarity: float, **more: Any) -> dict[str, Any]:
    evidence = {"kept": holder.record, "kept_label": holder.label, "similarity": round(similarity, 6), **more}
    return records.decision(row.record, "drop", reason, label=row.label, evidence=evidence)


def near_duplicates(
    view: pa.Table, rule: DuplicateRule, rank: Rank | None = None
) -> tuple[pa.Table, pa.Table]:
    """Drop near-duplicates: (decisions, clusters of prompts).

    A row is dropped in favour of a row of *another* record in its cluster that gives the same answer: rows
    whose short answers, yes or no, or numbers of their own differ are left to :func:`conflicts`, however
    alike the rest is. ``rank`` as in :func:`exact_duplicates`. The second table is :func:`prompt_clusters`.
    """
    rows = keeping_order(rows_of(view), rank)
    groups = group([row.text(rule.fields) for row in rows], rule)
    drops = [pair for members in groups.clusters() for pair in _drops(rows, members.tolist())]
    similarity = groups.similarity(np.array(drops, np.int64).reshape(-1, 2)).tolist()
    found = [
        _drop(
            rows[i],
            rows[holder],
            "nearly the same text as another record",
            value,
            **_link(rows, groups, i, value, rule),
        )
        for (i, holder), value in zip(drops, similarity, strict=True)
    ]
    return records.table(found, records.DECISIONS), prompt_clusters(view, rule)


def _drops(rows: Sequence[Row], members: Iterable[int]) -> Iterator[tuple[int, int]]:
    """(row, the row kept for it) within one cluster, whose members come best first."""
    holders: dict[Hashable, int] = {}
    for i in members:
        row = rows[i]
        key = (normalise(row.system), answer(row))
        if row.completion is None and holders:
            holder = next(iter(holders.values()))
        else:
            holder = holders.setdefault(key, i)
        if rows[holder].record != row.record:
            yield i, holder


def _link(
    rows: Sequence[Row], groups: Groups, i: int, similarity: float, rule: DuplicateRule
) -> dict[str, Any]:
    """What connects a row with the kept one where their own similarity is under the threshold."""
    if similarity >= rule.threshold or i not in groups.links:
        return {}
    other, value = groups.links[i]
    return {"through": rows[other].record, "through_similarity": round(value, 6)}


def prompt_clusters(view: pa.Table, rule: DuplicateRule) -> pa.Table:
    """Records whose prompts are equal or near-duplicates, for splits that must keep them on one side.

    One row per record that shares a cluster; a cluster is named by its smallest record id, so that neither
    the order of the rows nor of their arrival matters.
    """
    prompts = {row.record: row.prompt for row in rows_of(view)}
    ids = sorted(prompts)
    groups = group([prompts[i] for i in ids], rule)
    found = [
        {"record": ids[i], "cluster": ids[members[0]]}
        for members in groups.clusters()
        for i in members.tolist()
    ]
    return records.table(found, CLUSTERS)


# --- Answers that contradict each other -----------------------------------------------------------

SHORT = 3  # an answer of so many words is compared as a whole: a class, a name, an amount
MOST_ANSWERS = 64  # different answers to one question that each row is compared with

# The opening word of an answer to a yes-or-no question, in a few languages.
YES = frozenset(["yes", "yeah", "yep", "correct", "true", "ja", "oui", "sí", "sì", "sim", "да"])
NO = frozenset(["no", "nope", "incorrect", "false", "nein", "non", "nee", "não", "нет"])


def _bare(word: str) -> str:
    return word.strip(".,;:!?\"'()[]{}<>«»„“”‚‘’。、，！？¡¿*_`")


def numbers(text: str) -> frozenset[str]:
    """The tokens of ``text`` that hold a digit, without the punctuation around them.

    >>> sorted(numbers("Refund of £40, within 14 days."))
    ['14', '£40']
    """
    return frozenset(
        bare for word in tokens(text) if (bare := _bare(word)) and any(c.isdigit() for c in bare)
    )


@dataclass(frozen=True)
class Answer:
    """What decides in a completion: all of a short one; else whether it opens with yes or no, and its own
    numbers."""

    short: str | None
    polarity: int  # 1 yes, -1 no, 0 neither
    own: frozenset[str]  # numbers that the prompt does not hold

    def contradicts(self, other: Answer) -> bool:
        """Whether both cannot be right: another short answer, yes against no, or each with a number of its
        own.

        Two free texts in other words do not contradict each other: a question has many good answers.
        """
        if self.short is not None and other.short is not None:
            return self.short != other.short
        if self.polarity * other.polarity < 0:
            return True
        return bool(self.own - other.own and other.own - self.own)


def answer(row: Row, *, closed: bool = False) -> Answer | None:
    """The :class:`Answer` of a row; None without a completion. ``closed``: completions are classes of any
    length."""
    if row.completion is None:
        return None
    words = [bare for word in tokens(row.completion) if (bare := _bare(word))]
    polarity = 1 if words and words[0] in YES else -1 if words and words[0] in NO else 0
    if closed or len(words) <= SHORT:
        return Answer(" ".join(words), polarity, frozenset())
    return Answer(None, polarity, numbers(row.completion) - numbers(row.prompt))


def conflicts(view: pa.Table, rule: DuplicateRule, *, closed: bool = False) -> pa.Table:
    """Hold rows that answer the same question as another record and contradict it
    (:meth:`Answer.contradicts`).

    The same question: prompts in one cluster, with the same numbers and the same system messages. Completions
    within one record, several references or votes, never conflict here; and a record that also holds the
    other's answer does not contradict it. A row is held only by one that is trusted at least as much: a draft
    cannot put a person's answer on hold. Each row is compared with the 64 best trusted different answers to
    its question.
    """
    rows = [row for row in keeping_order(rows_of(view), None) if row.completion is not None]
    cluster = dict(zip(*(column.to_pylist() for column in prompt_clusters(view, rule)), strict=True))
    questions: dict[Hashable, list[Row]] = {}
    for row in rows:
        if row.record in cluster:
            key = cluster[row.record], numbers(row.prompt), normalise(row.system)
            questions.setdefault(key, []).append(row)
    found = [held for same in questions.values() for held in _held(same, closed)]
    return records.table(found, records.DECISIONS)


def _held(rows: Sequence[Row], closed: bool) -> Iterator[dict[str, Any]]:
    """Decisions on the rows of one question, best trusted first."""
    answers = [answer(row, closed=closed) for row in rows]
    by_answer: dict[Answer, list[Row]] = {}
    by_record: dict[str, set[Answer]] = {}
    for row, given in zip(rows, answers, strict=True):
        if given is not None:
            by_answer.setdefault(given, []).append(row)
            by_record.setdefault(row.record, set()).add(given)
    rivals = list(by_answer.items())[:MOST_ANSWERS]
    for row, given in zip(rows, answers, strict=True):
        if given is not None and (rival := _rival(row, given, rivals, by_record)):
            yield _hold(row, rival)


def _rival(
    row: Row, given: Answer, rivals: list[tuple[Answer, list[Row]]], by_record: dict[str, set[Answer]]
) -> Row | None:
    """The best trusted row of another record that contradicts ``row``."""
    for other, holders in rivals:
        if other in by_record[row.record] or not given.contradicts(other):
            continue
        for holder in holders:
            if holder.trust > row.trust:
                break
            if holder.record != row.record and given not in by_record[holder.record]:
                return holder
    return None


def _hold(row: Row, rival: Row) -> dict[str, Any]:
    evidence = {
        "against": rival.record,
        "against_label": rival.label,
        "answer": row.completion,
        "other_answer": rival.completion,
    }
    reason = "the same question has a contradicting answer in another record"
    return records.decision(row.record, "hold", reason, label=row.label, evidence=evidence)
