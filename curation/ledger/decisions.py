"""What stages did, and what they have seen. The latest decision of a stage under a rule wins.

Coverage is as important as decisions: a row that no stage has seen is not a clean one. Nothing here decides anything.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from curation.errors import ConflictError, UsageError
from curation.ledger import schema
from curation.ledger.lookups import VISIBLE_LABEL, VISIBLE_RECORD, bodies_of, put_payloads, record_seqs
from curation.ledger.rows import STORED_DECISIONS, Alias, Covered
from curation.ledger.store import Reader, Store, Writer
from curation.records import ACTIONS

_BATCH = 20_000
_NO_LONGER = "the rule does not touch this row any more"


class Decisions(Store):
    """Decisions, coverage and the aliases that scrubbing hands out."""

    def decide(
        self,
        stage: str,
        rule: str,
        decisions: pa.Table,
        *,
        covered: Sequence[tuple[str, int, int]],
        inputs: Mapping[str, str] | None = None,
        run: str | None = None,
        supersede: bool = True,
    ) -> int:
        """Store what a stage did (a table of ``DECISIONS``) and what it saw, in one transaction; returns the rows added.

        ``covered`` holds ``("record" | "label", lo, hi)`` ranges, half-open (lo, hi], of ``records.seq`` or
        ``labels.seq``. What is covered and not in the table is kept: an earlier decision of this stage and rule on such
        a row is taken back by a ``keep``, unless ``supersede`` is off (for a caller who hands in one range in parts).
        ``inputs`` gives the digest of what the stage saw per record. ``UsageError`` for unknown records and actions.
        """
        _check(decisions, covered)
        with self._write(f"decide {stage}", bulk=True) as writer:
            named: set[tuple[int, str | None]] = set()
            for batch in decisions.to_batches(max_chunksize=_BATCH):
                named |= _store(writer, stage, rule, batch.to_pydict(), inputs or {}, run)
            taken_back = _take_back(writer, stage, rule, covered, named, run) if supersede else 0
            writer.insert(
                schema.coverage, [(stage, rule, what, lo, hi) for what, lo, hi in covered if hi > lo]
            )
        return decisions.num_rows + taken_back

    def decisions(
        self,
        stage: str | None = None,
        rule: str | None = None,
        latest: bool = True,
        records: Sequence[str] | None = None,
    ) -> pa.Table:
        """Decisions in commit order, as a table of ``STORED_DECISIONS``.

        With ``latest`` only the last per record, label, stage and rule, and of those no ``keep``: what stands now.
        """
        with self._read() as reader:
            rows = _decision_rows(reader, stage, rule, records)
            if latest:
                last = {(row[0], row[1], row[2], row[3]): row for row in rows}
                rows = sorted((row for row in last.values() if row[4] != "keep"), key=lambda row: row[9])
            bodies = bodies_of(reader, [row[7] for row in rows])
        columns = list(zip(*rows, strict=True)) or [()] * len(STORED_DECISIONS)
        columns[7] = tuple(bodies.get(output) for output in columns[7])
        return pa.table(
            [pa.array(c, f.type) for c, f in zip(columns, STORED_DECISIONS, strict=True)], STORED_DECISIONS
        )

    def coverage(self, stage: str, rule: str) -> list[Covered]:
        """What a stage has seen under a rule: merged half-open ranges, records first."""
        with self._read() as reader:
            return [
                Covered(what, lo, hi)
                for what in ("record", "label")
                for lo, hi in _ranges(reader, stage, rule, what)
            ]

    def gaps(self, stage: str, rule: str) -> list[Covered]:
        """Ranges that hold visible records, or standing labels other than gold, which the stage has not seen."""
        with self._read() as reader:
            return [gap for what in ("record", "label") for gap in _gaps(reader, stage, rule, what)]

    def aliases(self) -> list[Alias]:
        """Every alias handed out so far, oldest first."""
        with self._read() as reader:
            return [
                Alias(*row) for row in reader.all("SELECT entity_type, hash, alias FROM aliases ORDER BY seq")
            ]

    def add_aliases(self, aliases: Sequence[Alias]) -> list[Alias]:
        """Register aliases and return those that hold, in order: where another process was first, its alias.

        ``ConflictError`` when a new alias is already somebody else's; choose another and try again.
        """
        with self._write("alias") as writer:
            held = _held_aliases(writer, [a.hash for a in aliases])
            fresh = {(a.entity_type, a.hash): a for a in aliases if (a.entity_type, a.hash) not in held}
            names = Counter(a.alias for a in fresh.values())
            taken = writer.rows_in("SELECT alias FROM aliases WHERE alias {items}", list(names))
            doubled = {row[0] for row in taken} | {name for name, count in names.items() if count > 1}
            if doubled:
                raise ConflictError(
                    f"the alias {min(doubled)!r} already stands for something else",
                    next="Choose another alias",
                )
            writer.insert(schema.aliases, [(a.entity_type, a.hash, a.alias) for a in fresh.values()])
            held |= fresh
            return [held[a.entity_type, a.hash] for a in aliases]


def _held_aliases(reader: Reader, hashes: Sequence[str]) -> dict[tuple[str, str], Alias]:
    rows = reader.rows_in("SELECT entity_type, hash, alias FROM aliases WHERE hash {items}", hashes)
    return {(row[0], row[1]): Alias(*row) for row in rows}


def _check(decisions: pa.Table, covered: Sequence[tuple[str, int, int]]) -> None:
    unknown = {a for a in decisions["action"].unique().to_pylist() if a not in ACTIONS}
    if unknown:
        raise UsageError(
            f"unknown action {unknown.pop()!r} in a decision", next=f"Use one of {', '.join(ACTIONS)}"
        )
    wrong = [what for what, _lo, _hi in covered if what not in ("record", "label")]
    if wrong:
        raise UsageError(f"coverage of {wrong[0]!r} is not known", next="Cover 'record' or 'label'")


def _store(
    writer: Writer,
    stage: str,
    rule: str,
    rows: dict[str, list[Any]],
    inputs: Mapping[str, str],
    run: str | None,
) -> set[tuple[int, str | None]]:
    """Add one batch and return which (record number, label) it named."""
    numbers = record_seqs(writer, rows["record"])
    outputs = iter(put_payloads(writer, [output for output in rows["output"] if output is not None]))
    made = []
    for record, label, action, reason, evidence, output in zip(*rows.values(), strict=True):
        where = (numbers[record], label, stage, rule, inputs.get(record), action, reason, evidence or "{}")
        made.append((*where, None if output is None else next(outputs), run))
    writer.insert(schema.decisions, made)
    return {(row[0], row[1]) for row in made}


def _take_back(
    writer: Writer,
    stage: str,
    rule: str,
    covered: Sequence[tuple[str, int, int]],
    named: set[tuple[int, str | None]],
    run: str | None,
) -> int:
    """Add a ``keep`` for what this stage and rule touched before, within the covered ranges, and touches no more."""
    by_label = any(what == "label" for what, _lo, _hi in covered)
    before: dict[tuple[int, str | None], str] = {}
    for what, lo, hi in covered:
        for number, label, action in _earlier(writer, stage, rule, what, lo, hi, by_label):
            before[number, label] = action
    gone = [key for key, action in before.items() if action != "keep" and key not in named]
    rows = [(number, label, stage, rule, None, "keep", _NO_LONGER, "{}", None, run) for number, label in gone]
    writer.insert(schema.decisions, rows)
    return len(rows)


def _earlier(writer: Writer, stage: str, rule: str, what: str, lo: int, hi: int, by_label: bool) -> list[Any]:
    """Earlier decisions in a range. Where labels are covered on their own, a record range speaks of records alone."""
    if what == "label":
        where = "JOIN labels l ON l.id = d.label WHERE l.seq > :lo AND l.seq <= :hi"
    else:
        where = "WHERE d.record_seq > :lo AND d.record_seq <= :hi" + (
            " AND d.label IS NULL" if by_label else ""
        )
    return writer.all(
        f"SELECT d.record_seq, d.label, d.action FROM decisions d {where} AND d.stage = :stage AND d.rule = :rule ORDER BY d.seq",
        lo=lo,
        hi=hi,
        stage=stage,
        rule=rule,
    )


def _decision_rows(
    reader: Reader, stage: str | None, rule: str | None, records: Sequence[str] | None
) -> list[Any]:
    where = ["1 = 1"] + (["d.stage = :stage"] if stage else []) + (["d.rule = :rule"] if rule else [])
    values = {name: value for name, value in (("stage", stage), ("rule", rule)) if value}
    statement = (
        "SELECT r.id, d.label, d.stage, d.rule, d.action, d.reason, d.evidence, d.output, d.run, d.seq "
        f"FROM decisions d JOIN records r ON r.seq = d.record_seq WHERE {' AND '.join(where)}"
    )
    if records is None:
        return reader.all(f"{statement} ORDER BY d.seq", **values)
    return sorted(
        reader.rows_in(f"{statement} AND r.id {{items}}", records, **values), key=lambda row: row[9]
    )


def _ranges(reader: Reader, stage: str, rule: str, what: str) -> list[tuple[int, int]]:
    rows = reader.all(
        "SELECT lo, hi FROM coverage WHERE stage = :stage AND rule = :rule AND what = :what ORDER BY lo, hi",
        stage=stage,
        rule=rule,
        what=what,
    )
    return merge_ranges([(row[0], row[1]) for row in rows])


def merge_ranges(ranges: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Half-open ranges, joined where they touch or overlap.

    >>> merge_ranges([(5, 7), (0, 3), (3, 4)])
    [(0, 4), (5, 7)]
    """
    merged: list[tuple[int, int]] = []
    for lo, hi in sorted(ranges):
        if merged and lo <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(hi, merged[-1][1]))
        elif hi > lo:
            merged.append((lo, hi))
    return merged


def _gaps(reader: Reader, stage: str, rule: str, what: str) -> list[Covered]:
    top = reader.top(schema.records if what == "record" else schema.labels)
    seen = _ranges(reader, stage, rule, what)
    edges = [0, *(edge for span in seen for edge in span), top]
    holes = [(lo, hi) for lo, hi in zip(edges[::2], edges[1::2], strict=True) if hi > lo]
    trimmed = [_trim(reader, what, lo, hi) for lo, hi in holes]
    return [Covered(what, lo - 1, hi) for lo, hi in trimmed if lo is not None]


def _trim(reader: Reader, what: str, lo: int, hi: int) -> Any:
    """The first and last visible number in (lo, hi], or nulls."""
    if what == "record":
        statement = f"SELECT min(r.seq), max(r.seq) FROM records r WHERE r.seq > :lo AND r.seq <= :hi AND {VISIBLE_RECORD}"
    else:
        statement = (
            "SELECT min(l.seq), max(l.seq) FROM labels l JOIN records r ON r.seq = l.record_seq "
            "WHERE l.seq > :lo AND l.seq <= :hi "
            f"AND l.kind <> 'gold' AND {VISIBLE_LABEL} AND {VISIBLE_RECORD}"
        )
    return reader.one(statement, lo=lo, hi=hi)
