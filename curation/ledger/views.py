"""Reading in pages: what every stage sees. Each page is one short read; between pages no cursor is open.

An open read cursor would keep a writer from committing (SQLite's rollback journal), so nothing here yields inside one.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Any

import orjson
import pyarrow as pa

from curation.ledger import schema
from curation.ledger.lookups import VISIBLE_LABEL, VISIBLE_RECORD, bodies_of, in_kinds, record_seqs
from curation.ledger.rows import LABELS, Page
from curation.ledger.store import Reader, Store
from curation.records import JUDGING, MESSAGE, VIEW, prompt_text

RECORDS = pa.schema(
    [
        ("record", pa.string()),
        ("seq", pa.int64()),
        ("source", pa.string()),
        ("key", pa.string()),
        ("payload", pa.string()),
        ("lang", pa.string()),
        ("group", pa.string()),
        ("time", pa.string()),
        ("tags", pa.string()),
        ("occurrence", pa.int64()),
        ("ingest", pa.string()),
        ("file_name", pa.string()),
        ("actor", pa.string()),
        ("added", pa.string()),
        ("visible", pa.bool_()),
    ]
)
"""Where records come from: ``tags`` is JSON, ``added`` the time of the write, ``visible`` false after an undo."""


class Views(Store):
    """The view that stages read, labels, and texts."""

    def view_pages(
        self,
        *,
        scrub_rule: str | None,
        after: int = 0,
        size: int = 20_000,
        kinds: Collection[str] | None = None,
        records: Sequence[str] | None = None,
        labels_after: int = 0,
    ) -> Iterator[Page]:
        """Candidate examples, record by record, in commit order: tables of :data:`curation.records.VIEW`.

        One row per record and label of ``kinds`` (by default all but gold); a record without any gives one row with
        neither label nor completion. What people said about an answer (:data:`JUDGING`) is none. Records of undone
        ingests, erased texts and withdrawn labels are left out. With ``scrub_rule``, messages and completions are as
        the latest ``scrub`` decision of that rule rewrote them: a decision without label holds messages as canonical
        JSON, one with a label the completion. ``after`` is a ``records.seq``; ``records`` restricts to those ids;
        ``labels_after`` to labels with a higher ``seq``.
        """
        wanted = None if records is None else self._numbers(records)
        while True:
            with self._read() as reader:
                reader.prefer_indexes()
                page = _page(reader, after, size, wanted, in_kinds(kinds), scrub_rule, labels_after)
            if page is None:
                return
            yield page
            after = page.hi

    def _numbers(self, records: Sequence[str]) -> list[int]:
        with self._read() as reader:
            return sorted(record_seqs(reader, records).values())

    def label_pages(
        self,
        *,
        after: int = 0,
        size: int = 50_000,
        records: Sequence[str] | None = None,
        kinds: Collection[str] | None = None,
    ) -> Iterator[pa.Table]:
        """Standing labels of visible records in commit order: tables of ``LABELS``. Default: all kinds but gold."""
        wanted = None if records is None else self._numbers(records)
        while True:
            with self._read() as reader:
                reader.prefer_indexes()
                rows = _label_rows(reader, after, size, in_kinds(kinds), wanted)
            if not rows:
                return
            yield _label_table(rows)
            after = rows[-1][9]

    def labels(self, records: Sequence[str] | None = None, kinds: Collection[str] | None = None) -> pa.Table:
        """:meth:`label_pages` as one table; empty where there are none."""
        return pa.concat_tables([LABELS.empty_table(), *self.label_pages(records=records, kinds=kinds)])

    def records(self, ids: Sequence[str] | None = None) -> pa.Table:
        """Where records come from, visible or not: a table of ``RECORDS``. Unknown ids are left out."""
        statement = (
            "SELECT r.id, r.seq, r.source, r.key, r.payload, r.lang, r.grp, r.time_of, r.tags, r.occurrence, i.id, "
            f"i.file_name, t.actor, t.time, {VISIBLE_RECORD} FROM records r JOIN ingests i ON i.seq = r.ingest "
            "JOIN transactions t ON t.seq = r.tx"
        )
        with self._read() as reader:
            if ids is None:
                rows = reader.all(f"{statement} ORDER BY r.seq")
            else:
                rows = reader.rows_in(f"{statement} WHERE r.id {{items}}", ids)
        columns = list(zip(*rows, strict=True)) or [()] * len(RECORDS)
        return pa.table(
            [
                pa.array(map(bool, c) if f.name == "visible" else c, f.type)
                for f, c in zip(RECORDS, columns, strict=True)
            ],
            RECORDS,
        )

    def groups(self) -> dict[str, str]:
        """The group of every record that has one, visible or not."""
        with self._read() as reader:
            rows = reader.all("SELECT id, grp FROM records WHERE grp IS NOT NULL")
        return dict(map(tuple, rows))

    def records_seen(self) -> int:
        """The highest ``records.seq``: what a stage that saw everything covers up to."""
        with self._read() as reader:
            return reader.top(schema.records)

    def labels_seen(self) -> int:
        """The highest ``labels.seq``."""
        with self._read() as reader:
            return reader.top(schema.labels)

    def payload(self, digest: str) -> str | None:
        """The text behind a digest; ``None`` where it was erased or never stored."""
        return self.payloads([digest]).get(digest)

    def payloads(self, digests: Sequence[str]) -> dict[str, str]:
        """The texts behind digests; erased and unknown ones are missing."""
        with self._read() as reader:
            return bodies_of(reader, digests)


_RECORD_COLUMNS = f"r.seq, r.id, r.source, r.lang, r.grp, r.time_of, p.body, {VISIBLE_RECORD}"
_RECORD_FROM = "FROM records r JOIN payloads p ON p.digest = r.payload"


def _page(
    reader: Reader,
    after: int,
    size: int,
    wanted: list[int] | None,
    kinds: str,
    scrub: str | None,
    labels_after: int,
) -> Page | None:
    rows = _record_rows(reader, after, size, wanted)
    if not rows:
        return None
    hi = rows[-1][0]
    visible = [row for row in rows if row[7] and row[6] is not None]
    span = _Span(after, hi, None if wanted is None else [row[0] for row in visible])
    labels = _completions(reader, span, kinds, labels_after)
    rewritten = {} if scrub is None else _rewritten(reader, span, scrub)
    columns = _Columns(only_labelled=labels_after > 0)
    for row in visible:
        columns.add(row, labels.get(row[0], ()), rewritten)
    return Page(columns.table(), hi, reader.top(schema.labels))


def _record_rows(reader: Reader, after: int, size: int, wanted: list[int] | None) -> list[Any]:
    if wanted is None:
        statement = f"SELECT {_RECORD_COLUMNS} {_RECORD_FROM} WHERE r.seq > :after ORDER BY r.seq LIMIT :size"
        return reader.all(statement, after=after, size=size)
    chunk = [number for number in wanted if number > after][:size]
    return sorted(
        reader.rows_in(f"SELECT {_RECORD_COLUMNS} {_RECORD_FROM} WHERE r.seq {{items}}", chunk),
        key=lambda r: r[0],
    )


class _Span:
    """Which records a page is about: a range of numbers, or a list of them."""

    def __init__(self, lo: int, hi: int, numbers: list[int] | None) -> None:
        self.lo, self.hi, self.numbers = lo, hi, numbers

    def ask(self, reader: Reader, statement: str, column: str, order: str, **values: Any) -> list[Any]:
        """The rows of ``statement`` whose ``column`` is in the span."""
        if self.numbers is None:
            ranged = f"{statement} AND {column} > :lo AND {column} <= :hi ORDER BY {order}"
            return reader.all(ranged, lo=self.lo, hi=self.hi, **values)
        return reader.rows_in(f"{statement} AND {column} {{items}} ORDER BY {order}", self.numbers, **values)


def _completions(
    reader: Reader, span: _Span, kinds: str, labels_after: int
) -> dict[int, list[tuple[str, str, str]]]:
    newer = "AND l.seq > :after" if labels_after else ""
    judging = "FROM questions q WHERE q.kind IN (" + ", ".join(f"'{kind}'" for kind in JUDGING) + ")"
    answers = ""
    if reader.all(f"SELECT 1 {judging} LIMIT 1"):
        asked = f"SELECT 1 {judging} AND q.name = l.question AND q.version = l.question_version"
        answers = f"AND (l.question IS NULL OR NOT EXISTS ({asked}))"
    statement = (
        "SELECT l.record_seq, l.id, l.kind, p.body FROM labels l JOIN payloads p ON p.digest = l.payload "
        f"WHERE {kinds} {newer} {answers} AND p.body IS NOT NULL AND {VISIBLE_LABEL}"
    )
    values = {"after": labels_after} if labels_after else {}
    found: dict[int, list[tuple[str, str, str]]] = {}
    for number, label, kind, body in span.ask(
        reader, statement, "l.record_seq", "l.record_seq, l.seq", **values
    ):
        found.setdefault(number, []).append((label, kind, bytes(body).decode()))
    return found


def _rewritten(reader: Reader, span: _Span, rule: str) -> dict[tuple[int, str | None], bytes | None]:
    """The latest scrub decision per record and label: its output, or ``None`` where it was no rewrite (any more)."""
    statement = (
        "SELECT d.record_seq, d.label, d.action, p.body FROM decisions d LEFT JOIN payloads p ON p.digest = d.output "
        "WHERE d.stage = 'scrub' AND d.rule = :rule"
    )
    rows = span.ask(reader, statement, "d.record_seq", "d.record_seq, d.seq", rule=rule)
    return {
        (row[0], row[1]): bytes(row[3]) if row[2] == "rewrite" and row[3] is not None else None
        for row in rows
    }


class _Columns:
    """The columns of VIEW, filled row by row; messages are kept flat, which is what makes a page fast."""

    def __init__(self, only_labelled: bool) -> None:
        self.only_labelled = only_labelled
        self.record: list[str] = []
        self.label: list[str | None] = []
        self.prompt: list[str] = []
        self.completion: list[str | None] = []
        self.trust: list[str | None] = []
        self.rest: list[tuple[Any, ...]] = []
        self.offsets, self.roles, self.contents = [0], [], []  # type: ignore[var-annotated]

    def add(
        self, row: Any, labels: Sequence[tuple[str, str, str]], rewritten: dict[Any, bytes | None]
    ) -> None:
        """The rows of one record."""
        number, record = row[0], row[1]
        body = (rewritten.get((number, None)) if rewritten else None) or row[6]
        messages = orjson.loads(bytes(body))
        prompt = prompt_text(messages)
        rest = (row[3], row[4], row[5], row[2])
        for label, kind, completion in labels:
            if rewritten:
                scrubbed = rewritten.get((number, label))
                completion = completion if scrubbed is None else scrubbed.decode()
            self._row(record, label, messages, prompt, completion, kind, rest)
        if not labels and not self.only_labelled:
            self._row(record, None, messages, prompt, None, None, rest)

    def _row(
        self,
        record: str,
        label: str | None,
        messages: Any,
        prompt: str,
        completion: str | None,
        kind: str | None,
        rest: Any,
    ) -> None:
        self.record.append(record)
        self.label.append(label)
        self.prompt.append(prompt)
        self.completion.append(completion)
        self.trust.append(kind)
        self.rest.append(rest)
        for message in messages:
            self.roles.append(message["role"])
            self.contents.append(message["content"])
        self.offsets.append(len(self.roles))

    def table(self) -> pa.Table:
        """The page as a table."""
        texts = [pa.array(self.roles, pa.string()), pa.array(self.contents, pa.string())]
        structs = pa.StructArray.from_arrays(texts, fields=list(MESSAGE))
        messages = pa.ListArray.from_arrays(pa.array(self.offsets, pa.int32()), structs)
        lang, group, time, source = list(zip(*self.rest, strict=True)) or [()] * 4
        columns = [
            self.record,
            self.label,
            messages,
            self.prompt,
            self.completion,
            self.trust,
            lang,
            group,
            time,
            source,
        ]
        arrays = [
            c if isinstance(c, pa.Array) else pa.array(c, f.type) for c, f in zip(columns, VIEW, strict=True)
        ]
        return pa.Table.from_arrays(arrays, schema=VIEW)


def _label_rows(reader: Reader, after: int, size: int, kinds: str, wanted: list[int] | None) -> list[Any]:
    statement = (
        "SELECT r.id, l.id, l.kind, l.author, p.body, l.confidence, l.question, l.question_version, l.showing, l.seq, l.extra "
        "FROM labels l JOIN records r ON r.seq = l.record_seq JOIN payloads p ON p.digest = l.payload "
        f"WHERE {kinds} AND p.body IS NOT NULL AND {VISIBLE_LABEL} AND {VISIBLE_RECORD}"
    )
    if wanted is None:
        return reader.all(
            f"{statement} AND l.seq > :after ORDER BY l.seq LIMIT :size", after=after, size=size
        )
    rows = reader.rows_in(f"{statement} AND l.record_seq {{items}} AND l.seq > :after", wanted, after=after)
    return sorted(rows, key=lambda row: row[9])


def _label_table(rows: list[Any]) -> pa.Table:
    columns = list(zip(*rows, strict=True))
    columns[4] = tuple(bytes(body).decode() for body in columns[4])
    return pa.Table.from_arrays(
        [pa.array(c, f.type) for c, f in zip(columns, LABELS, strict=True)], schema=LABELS
    )
