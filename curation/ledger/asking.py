"""Asking people: questions, what was shown to whom, the tasks on their way, and who was chosen to be asked about.

It also holds what must never be asked about or trained on by accident: the evaluation sets and the splits, which are
sticky. Nothing here chooses.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import orjson
import pyarrow as pa

from curation.errors import ConflictError, UsageError
from curation.ledger import schema
from curation.ledger.incoming import json_text
from curation.ledger.lookups import bodies_of, known, put_payloads, record_seqs
from curation.ledger.rows import Question, Selection, SelectionItem, Showing, Task
from curation.ledger.store import Reader, Store, Writer
from curation.records import SPLITS, digest

EVAL_ITEMS = pa.schema([("record", pa.string()), ("role", pa.string())])
SPLIT_ITEMS = pa.schema([("record", pa.string()), ("split", pa.string())])
SELECTED = pa.schema(
    [
        ("record", pa.string()),
        ("selection", pa.string()),
        ("round", pa.int64()),
        ("run", pa.string()),
        ("arm", pa.string()),
        ("reason", pa.string()),
        ("position", pa.int64()),
    ]
)
TASK_STATES = ("open", "done", "skipped", "withdrawn")
HELD = "held"  # the split of a newcomer that would bridge two sides; the only one that may still change


class Asking(Store):
    """Questions, showings, tasks, selections, evaluation sets and splits."""

    def add_question(self, question: Question) -> Question:
        """Store a question, or a revision of one (``version`` counts from 1, without gaps).

        The same question again changes nothing. ``ConflictError`` for another text under a version that is there.
        """
        with self._write("question") as writer:
            held = [q for q in _questions(writer) if q.name == question.name]
            same = [q for q in held if q.version == question.version]
            if same and same[0] != question:
                raise ConflictError(
                    f"question {question.name!r} version {question.version} is already there, and reads differently",
                    next=f"Store it as version {held[-1].version + 1}",
                )
            if not same:
                if question.version != len(held) + 1:
                    raise UsageError(
                        f"question {question.name!r} is at version {len(held)}",
                        next=f"Store it as version {len(held) + 1}",
                    )
                guideline = put_payloads(writer, [question.guideline])[0]
                row = (
                    question.name,
                    question.version,
                    question.kind,
                    json_text(question.classes),
                    question.rubric,
                )
                writer.insert(schema.questions, [(*row, guideline, json_text(dict(question.mapping)))])
        return question

    def questions(self) -> list[Question]:
        """Every version of every question, oldest first."""
        with self._read() as reader:
            return _questions(reader)

    def question(self, name: str, version: int | None = None) -> Question:
        """One question, by default its latest version; ``UsageError`` for one that is not there."""
        found = [q for q in self.questions() if q.name == name and version in (None, q.version)]
        if not found:
            raise UsageError(
                f"there is no question {name!r}" + (f" version {version}" if version else ""),
                next="See: tilth question",
            )
        return found[-1]

    def add_showings(self, showings: Sequence[Showing]) -> list[str]:
        """Note what is put on whose screen and return the ids, in order; the same showing twice is one."""
        with self._write("showing") as writer:
            return _store_showings(writer, showings)

    def showings(self, ids: Sequence[str] | None = None, record: str | None = None) -> list[Showing]:
        """Showings, oldest first: all, those of ``ids``, or those of one record."""
        statement = f"{_SHOWINGS} WHERE 1 = 1" + (" AND r.id = :record" if record else "")
        values = {"record": record} if record else {}
        with self._read() as reader:
            if ids is None:
                rows = reader.all(f"{statement} ORDER BY s.seq", **values)
            else:
                rows = sorted(
                    reader.rows_in(f"{statement} AND s.id {{items}}", ids, **values), key=lambda r: r[12]
                )
            bodies = bodies_of(reader, [row[5] for row in rows])
        return [_showing(row, bodies) for row in rows]

    def add_tasks(self, tasks: Sequence[Task]) -> list[str]:
        """Note where showings were sent and return the ids, in order; the same task twice is one."""
        ids = [digest(f"{t.showing}\0{t.channel}\0{t.remote}") for t in tasks]
        with self._write("task") as writer:
            held = known(writer, "tasks", "id", ids)
            fresh = {i: t for i, t in zip(ids, tasks, strict=True) if i not in held}
            writer.insert(schema.tasks, [(i, t.showing, t.channel, t.remote) for i, t in fresh.items()])
        return ids

    def tasks(self, state: str | None = None, channel: str | None = None) -> list[Task]:
        """Tasks, oldest first, with the state they are in now."""
        with self._read() as reader:
            rows = reader.all(_TASKS)
        found = [Task(*row) for row in rows]
        return [t for t in found if state in (None, t.state) and channel in (None, t.channel)]

    def finish_tasks(self, ids: Sequence[str], state: str = "done") -> int:
        """Move tasks to ``done``, ``skipped``, ``withdrawn`` (taken back) or ``open``; returns how many were not there yet."""
        if state not in TASK_STATES:
            raise UsageError(f"unknown state {state!r}", next=f"Use one of {', '.join(TASK_STATES)}")
        with self._write("task state") as writer:
            now = {row[4]: row[3] for row in writer.all(_TASKS)}
            missing = [task for task in ids if task not in now]
            if missing:
                raise UsageError(f"the ledger holds no task {missing[0]!r}", next="Add it first")
            moving = [task for task in dict.fromkeys(ids) if now[task] != state]
            writer.insert(schema.task_events, [(task, state) for task in moving])
            return len(moving)

    def add_selection(
        self,
        *,
        round: int,
        run: str,
        strategy: str,
        adapter: str | None,
        items: Sequence[SelectionItem],
        showings: Sequence[Showing] = (),
    ) -> str:
        """Store what one acquisition chose, in order, and return its id; the same again changes nothing.

        ``showings`` are what people will see of it. They will cite its id, and are stored with it or not at all: records
        that were chosen and never shown would be asked about by nobody.
        """
        picked = [(i.record, i.arm, i.reason) for i in items]
        selection = digest(json_text([run, round, strategy, adapter, picked]))
        with self._write("select") as writer:
            if known(writer, "selections", "id", [selection]):
                return selection
            numbers = record_seqs(writer, [i.record for i in items])
            writer.insert(schema.selections, [(selection, round, run, strategy, adapter)])
            rows = [
                (
                    selection,
                    position,
                    numbers[i.record],
                    i.arm,
                    i.reason,
                    None if i.cost is None else float(i.cost),
                )
                for position, i in enumerate(items)
            ]
            writer.insert(schema.selection_items, rows)
            _store_showings(writer, [replace(showing, selection=selection) for showing in showings])
        return selection

    def selections(self, run: str | None = None) -> list[Selection]:
        """Every selection with its items, oldest first; of one run where it is named."""
        with self._read() as reader:
            heads = reader.all("SELECT id, round, run, strategy, adapter FROM selections ORDER BY seq")
            rows = reader.all(
                "SELECT i.selection, r.id, i.arm, i.reason, i.cost FROM selection_items i JOIN records r ON r.seq = i.record_seq "
                "ORDER BY i.seq"
            )
        items: dict[str, list[SelectionItem]] = {}
        for row in rows:
            items.setdefault(row[0], []).append(SelectionItem(*row[1:]))
        found = [Selection(*head) for head in heads if run in (None, head[2])]
        return [replace(chosen, items=tuple(items.get(chosen.id, ()))) for chosen in found]

    def selected_records(self, run: str | None = None) -> pa.Table:
        """Every record that was ever chosen (by one run where it is named): a table of ``SELECTED``."""
        rows = [
            (item.record, chosen.id, chosen.round, chosen.run, item.arm, item.reason, position)
            for chosen in self.selections(run)
            for position, item in enumerate(chosen.items)
        ]
        return _table(rows, SELECTED)

    def reserve(
        self, name: str, rows: Sequence[tuple[str, str]], rule: Mapping[str, Any] | None = None
    ) -> str:
        """Set records aside for evaluation, as (record, ``dev`` | ``test``), and return the set's digest.

        A record has one role for ever: the same again changes nothing, another role is a ``ConflictError``.
        """
        wrong = [role for _record, role in rows if role not in ("dev", "test")]
        if wrong:
            raise UsageError(f"unknown role {wrong[0]!r}", next="Use dev or test")
        name_digest = digest(json_text([name, sorted(set(rows))]))
        with self._write("reserve") as writer:
            numbers = record_seqs(writer, [record for record, _role in rows])
            held = {row[0]: row[1] for row in writer.all("SELECT record_seq, role FROM eval_items")}
            fresh = _sticky({numbers[record]: role for record, role in rows}, held, rows, numbers)
            if not known(writer, "eval_sets", "digest", [name_digest]):
                writer.insert(schema.eval_sets, [(name_digest, name, json_text(dict(rule or {})))])
            writer.insert(schema.eval_items, [(name_digest, number, role) for number, role in fresh.items()])
        return name_digest

    def eval_items(self, role: str | None = None) -> pa.Table:
        """Every record set aside, with its role: a table of record and role."""
        with self._read() as reader:
            rows = reader.all(
                "SELECT r.id, e.role FROM eval_items e JOIN records r ON r.seq = e.record_seq ORDER BY e.seq"
            )
        return _table([tuple(row) for row in rows if role in (None, row[1])], EVAL_ITEMS)

    def splits(self) -> pa.Table:
        """The split of every record that has one: a table of record and split (train, validation, test, held)."""
        with self._read() as reader:
            rows = reader.all(
                "SELECT r.id, s.split FROM splits s JOIN records r ON r.seq = s.record_seq ORDER BY s.seq"
            )
        return _table(list({row[0]: tuple(row) for row in rows}.values()), SPLIT_ITEMS)

    def set_splits(self, rows: Sequence[tuple[str, str]]) -> int:
        """Give records their split, once for all; returns how many were new or no longer held.

        ``held`` may become another split later; any other change is a ``ConflictError``.
        """
        wrong = [split for _record, split in rows if split not in (*SPLITS, HELD)]
        if wrong:
            raise UsageError(f"unknown split {wrong[0]!r}", next=f"Use one of {', '.join((*SPLITS, HELD))}")
        with self._write("split") as writer:
            numbers = record_seqs(writer, [record for record, _split in rows])
            held = {row[0]: row[1] for row in writer.all("SELECT record_seq, split FROM splits ORDER BY seq")}
            settled = {number: split for number, split in held.items() if split != HELD}
            fresh = _sticky({numbers[record]: split for record, split in rows}, settled, rows, numbers)
            fresh = {number: split for number, split in fresh.items() if held.get(number) != split}
            writer.insert(schema.splits, list(fresh.items()))
        return len(fresh)


def _table(rows: Sequence[tuple[Any, ...]], shape: pa.Schema) -> pa.Table:
    columns = list(zip(*rows, strict=True)) or [()] * len(shape)
    return pa.Table.from_arrays(
        [pa.array(c, f.type) for c, f in zip(columns, shape, strict=True)], schema=shape
    )


def _sticky(
    wanted: dict[int, str], held: dict[int, str], rows: Sequence[tuple[str, str]], numbers: dict[str, int]
) -> dict[int, str]:
    """What is new among ``wanted``; ``ConflictError`` naming the first record that would change sides."""
    for record, side in rows:
        before = held.get(numbers[record], wanted[numbers[record]])
        if before != side:
            raise ConflictError(
                f"the record is already in {before!r} and cannot move to {side!r}",
                where=record,
                next="Leave it where it is: moving it would leak",
            )
    return {number: side for number, side in wanted.items() if number not in held}


def _store_showings(writer: Writer, showings: Sequence[Showing]) -> list[str]:
    """Store the showings that are new; the ids of all, in order."""
    ids = [showing.identity() for showing in showings]
    held = known(writer, "showings", "id", ids)
    fresh = {i: s for i, s in zip(ids, showings, strict=True) if i not in held}
    numbers = record_seqs(writer, [s.record for s in fresh.values()])
    texts = [s.suggestion for s in fresh.values() if s.suggestion is not None]
    suggestions = iter(put_payloads(writer, texts))
    rows = [
        _showing_row(i, s, numbers[s.record], None if s.suggestion is None else next(suggestions))
        for i, s in fresh.items()
    ]
    writer.insert(schema.showings, rows)
    return ids


def _questions(reader: Reader) -> list[Question]:
    rows = reader.all(
        "SELECT q.name, q.version, q.kind, q.classes, q.rubric, p.body, q.mapping FROM questions q "
        "LEFT JOIN payloads p ON p.digest = q.guideline ORDER BY q.seq"
    )
    return [
        Question(
            r[0], r[1], r[2], tuple(orjson.loads(r[3])), r[4], bytes(r[5] or b"").decode(), orjson.loads(r[6])
        )
        for r in rows
    ]


_SHOWINGS = (
    "SELECT r.id, s.question, s.question_version, s.view_digest, s.id, s.suggestion, s.suggestion_by, s.passages, s.blind, "
    "s.selection, s.annotator, s.extra, s.seq FROM showings s JOIN records r ON r.seq = s.record_seq"
)
_TASKS = (
    "SELECT t.showing, t.channel, t.remote, coalesce((SELECT e.state FROM task_events e WHERE e.task = t.id "
    "ORDER BY e.seq DESC LIMIT 1), 'open'), t.id FROM tasks t ORDER BY t.seq"
)


def _showing_row(showing: str, s: Showing, number: int, suggestion: str | None) -> tuple[Any, ...]:
    what = (
        showing,
        number,
        s.question,
        s.question_version,
        s.view,
        suggestion,
        s.suggestion_by,
        json_text(s.passages),
    )
    return (
        *what,
        int(s.blind),
        s.selection,
        s.annotator,
        None if s.extra is None else json_text(dict(s.extra)),
    )


def _showing(row: Any, bodies: dict[str, str]) -> Showing:
    bare = Showing(
        row[0],
        row[1],
        row[2],
        row[3],
        suggestion=bodies.get(row[5]) if row[5] else None,
        suggestion_by=row[6],
    )
    return replace(
        bare,
        passages=tuple(orjson.loads(row[7])),
        blind=bool(row[8]),
        selection=row[9],
        annotator=row[10],
        extra=None if row[11] is None else orjson.loads(row[11]),
        id=row[4],
    )
