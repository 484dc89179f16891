"""What the loop made: snapshots in one line of descent, adapters, finished steps; and the bookkeeping around them.

Leases and watermarks are the only rows that are changed in place; they are no history. Nothing here runs a step.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import orjson

from curation.errors import ConflictError, UsageError
from curation.ledger import schema
from curation.ledger.incoming import json_text
from curation.ledger.lookups import VISIBLE_LABEL, VISIBLE_RECORD, known
from curation.ledger.rows import Adapter, Event, Snapshot, Transaction
from curation.ledger.store import Reader, Store

T = TypeVar("T")

HEAD = "head"


class Lease:
    """A name held for a while. ``token`` rises with every holder: hand it to what must refuse a late writer."""

    def __init__(self, store: Registry, name: str, holder: str, token: int, seconds: float) -> None:
        self._store, self.name, self.holder, self.token, self.seconds = store, name, holder, token, seconds

    def renew(self) -> None:
        """Hold it for another while; ``ConflictError`` when it ran out and somebody else has it."""
        with self._store._write("lease renew") as writer:
            self._still_mine(writer)
            writer.run(
                "UPDATE leases SET expires = :e WHERE name = :n", e=time.time() + self.seconds, n=self.name
            )

    def check(self) -> None:
        """``ConflictError`` unless it is still held."""
        with self._store._read() as reader:
            self._still_mine(reader)

    def _still_mine(self, reader: Reader) -> None:
        row = reader.one("SELECT token, expires FROM leases WHERE name = :n", n=self.name)
        if row is None or row[0] != self.token or row[1] < time.time():
            raise ConflictError(f"the lease {self.name!r} was lost", next="Stop, and start the command again")

    def release(self) -> None:
        """Give it back; the token stays, so that it never repeats."""
        with self._store._write("lease release") as writer:
            writer.run(
                "UPDATE leases SET expires = 0 WHERE name = :n AND token = :t", n=self.name, t=self.token
            )


class Registry(Store):
    """Snapshots, adapters, steps, leases, watermarks, events and counts."""

    def add_snapshot(
        self, name: str, *, rows: int, manifest_digest: str, round: int | None = None, parent: str = HEAD
    ) -> Snapshot:
        """Add a snapshot to the end of the one line of descent; one that is known by name is returned as it is.

        ``parent`` names what it was made from: ``ConflictError`` when that is no longer the head. By default the head.
        """
        with self._write("snapshot") as writer:
            held = _snapshots(writer)
            same = [s for s in held if s.name == name]
            if same:
                return same[0]
            head = held[-1].name if held else ""
            if parent not in (HEAD, head):
                raise ConflictError(
                    f"another snapshot, {head!r}, was committed since {parent!r}",
                    where=name,
                    next="Freeze again on top of it",
                )
            writer.insert(schema.snapshots, [(name, head, round, rows, manifest_digest)])
        return self.snapshot(name)

    def snapshots(self) -> list[Snapshot]:
        """Every snapshot, oldest first, with its latest verdict."""
        with self._read() as reader:
            return _snapshots(reader)

    def snapshot(self, name: str) -> Snapshot:
        """One snapshot by its name, or by a beginning of it that fits only one; ``UsageError`` otherwise."""
        found = [s for s in self.snapshots() if s.name.startswith(name)]
        exact = [s for s in found if s.name == name] or found
        if not name or len(exact) != 1:
            raise UsageError(
                f"{len(exact) if name else 'no'} snapshots are named {name!r}",
                next="See: tilth snapshot list",
            )
        return exact[0]

    def approve(self, snapshot: str, verdict: str, *, by: str, reason: str) -> None:
        """Note a verdict (``approved`` or ``refused``) on a snapshot, by the gates or by a curator."""
        if verdict not in ("approved", "refused"):
            raise UsageError(f"unknown verdict {verdict!r}", next="Use approved or refused")
        name = self.snapshot(snapshot).name
        with self._write("snapshot approve") as writer:
            writer.insert(schema.approvals, [(name, verdict, by, reason)])

    def add_adapter(self, adapter: Adapter) -> str:
        """Note trained weights and return their digest; one that is known by digest is left as it is."""
        self.add_returned(adapter, ())
        return adapter.digest

    def add_returned(self, adapter: Adapter, events: Sequence[tuple[str, str, Mapping[str, Any]]]) -> bool:
        """Note weights with the events (kind, subject, detail) of the run that made them, in one transaction: both or none.

        Whether they are new; of weights that are known by digest nothing is noted again.
        """
        with self._write("adapter") as writer:
            if known(writer, "adapters", "digest", [adapter.digest]):
                return False
            recipe, metrics = json_text(dict(adapter.recipe)), json_text(dict(adapter.metrics))
            row = (adapter.digest, adapter.snapshot, adapter.base, recipe, metrics, adapter.path, adapter.arm)
            writer.insert(schema.adapters, [row])
            told = [(kind, subject, json_text(dict(detail))) for kind, subject, detail in events]
            if told:
                writer.insert(schema.events, told)
        return True

    def adapters(self) -> list[Adapter]:
        """Every adapter, oldest first."""
        with self._read() as reader:
            rows = reader.all(
                "SELECT a.digest, a.snapshot, a.base, a.recipe, a.metrics, a.path, a.arm, t.time FROM adapters a "
                "JOIN transactions t ON t.seq = a.tx ORDER BY a.seq"
            )
        return [_parsed(Adapter, row, 3, 4) for row in rows]

    def step(self, run: str, round: int, step: str) -> Any | None:
        """What a finished step of a run left behind; ``None`` where it has not finished."""
        with self._read() as reader:
            return _step(reader, run, round, step)

    def finish_step(self, run: str, round: int, step: str, output: Any) -> Any:
        """Note that a step finished, and with what. The first writer wins: its output is returned to everybody.

        ``UsageError`` for ``None``, which would read as unfinished.
        """
        if output is None:
            raise UsageError(
                f"step {step!r} finished without an output", next="Give at least an empty table: {}"
            )
        with self._write(f"step {step}") as writer:
            earlier = _step(writer, run, round, step)
            if earlier is not None:
                return earlier
            text = json_text(output)
            writer.insert(schema.steps, [(run, round, step, text)])
            return orjson.loads(text)

    def steps(self, run: str | None = None) -> list[tuple[str, int, str, Any]]:
        """Every finished step as (run, round, step, output), oldest first."""
        with self._read() as reader:
            rows = reader.all("SELECT run, round, step, output FROM steps ORDER BY seq")
        return [(r[0], r[1], r[2], orjson.loads(r[3])) for r in rows if run in (None, r[0])]

    def watermark(self, name: str) -> str | None:
        """How far something was read, in its own words; ``None`` at first."""
        with self._read() as reader:
            value = reader.value("SELECT value FROM watermarks WHERE name = :n", n=name)
        return None if value is None else str(value)

    def set_watermark(self, name: str, value: str) -> None:
        """Note how far something was read."""
        with self._write("watermark") as writer:
            writer.run(
                "INSERT INTO watermarks (name, value) VALUES (:n, :v) ON CONFLICT (name) DO UPDATE SET value = excluded.value",
                n=name,
                v=value,
            )

    @contextmanager
    def lease(self, name: str, seconds: float = 60.0) -> Iterator[Lease]:
        """Hold a name for ``seconds`` (renew it meanwhile); ``ConflictError`` naming the holder while another has it."""
        lease = self._take(name, seconds)
        try:
            yield lease
        finally:
            lease.release()

    def _take(self, name: str, seconds: float) -> Lease:
        holder = f"{self.actor}@{socket.gethostname()}:{os.getpid()}"
        with self._write("lease") as writer:
            row = writer.one("SELECT holder, token, expires FROM leases WHERE name = :n", n=name)
            if row is not None and row[2] > time.time():
                left = row[2] - time.time()
                raise ConflictError(
                    f"{row[0]} holds {name!r} for another {left:.0f} seconds at most",
                    next="Wait for it, then run the command again",
                )
            token = 1 if row is None else row[1] + 1
            writer.run(
                "INSERT INTO leases (name, holder, token, expires) VALUES (:n, :h, :t, :e) ON CONFLICT (name) "
                "DO UPDATE SET holder = excluded.holder, token = excluded.token, expires = excluded.expires",
                n=name,
                h=holder,
                t=token,
                e=time.time() + seconds,
            )
        return Lease(self, name, holder, token, seconds)

    def event(self, kind: str, subject: str, detail: Mapping[str, Any] | None = None) -> None:
        """Note something that a person or a command did."""
        with self._write(kind) as writer:
            writer.insert(schema.events, [(kind, subject, json_text(dict(detail or {})))])

    def events(self, kind: str | None = None, subject: str | None = None) -> list[Event]:
        """Events, oldest first; of one kind or about one subject where they are named."""
        with self._read() as reader:
            rows = reader.all(
                "SELECT e.seq, e.kind, e.subject, e.detail, t.actor, t.time FROM events e "
                "JOIN transactions t ON t.seq = e.tx ORDER BY e.seq"
            )
        found = [_parsed(Event, row, 3) for row in rows]
        return [e for e in found if kind in (None, e.kind) and subject in (None, e.subject)]

    def transactions(self, after: int = 0) -> list[Transaction]:
        """Who wrote when with which command, oldest first."""
        statement = (
            "SELECT seq, workspace, actor, time, command FROM transactions WHERE seq > :after ORDER BY seq"
        )
        with self._read() as reader:
            return [Transaction(*row) for row in reader.all(statement, after=after)]

    def counts(self) -> dict[str, Any]:
        """What the ledger holds, for a status line: counts of visible records, standing labels by kind, and so on."""
        with self._read() as reader:
            return {
                "records": reader.value(f"SELECT count(*) FROM records r WHERE {VISIBLE_RECORD}"),
                "labels": _tally(reader, _LABELS_BY_KIND),
                "decisions": _tally(
                    reader, "SELECT stage, count(*) FROM decisions GROUP BY stage ORDER BY stage"
                ),
                "reserved": _tally(
                    reader, "SELECT role, count(*) FROM eval_items GROUP BY role ORDER BY role"
                ),
                "erased": reader.value("SELECT count(*) FROM erasures"),
                **{name: reader.value(f'SELECT count(*) FROM "{name}"') for name in _COUNTED},
            }


_LABELS_BY_KIND = f"""SELECT l.kind, count(*) FROM labels l JOIN records r ON r.seq = l.record_seq
    WHERE {VISIBLE_LABEL} AND {VISIBLE_RECORD} GROUP BY l.kind ORDER BY l.kind"""
_COUNTED = (
    "ingests",
    "quarantine",
    "passages",
    "questions",
    "functions",
    "showings",
    "tasks",
    "reviews",
    "selections",
    "snapshots",
    "adapters",
    "transactions",
)


def _parsed(made: Callable[..., T], row: Sequence[Any], *places: int) -> T:
    """A row as a value; what stands at ``places`` is JSON."""
    return made(*(orjson.loads(cell) if i in places else cell for i, cell in enumerate(row)))


def _tally(reader: Reader, statement: str) -> dict[str, int]:
    return {row[0]: row[1] for row in reader.all(statement)}


def _step(reader: Reader, run: str, round: int, step: str) -> Any | None:
    output = reader.value(
        "SELECT output FROM steps WHERE run = :run AND round = :round AND step = :step",
        run=run,
        round=round,
        step=step,
    )
    return None if output is None else orjson.loads(output)


def _snapshots(reader: Reader) -> list[Snapshot]:
    rows = reader.all(
        "SELECT s.name, s.parent, s.round, s.rows, s.manifest_digest, t.time, t.actor, a.verdict, a.by, a.reason "
        "FROM snapshots s "
        "JOIN transactions t ON t.seq = s.tx LEFT JOIN approvals a ON a.seq = "
        "(SELECT max(b.seq) FROM approvals b WHERE b.snapshot = s.name) ORDER BY s.seq"
    )
    return [Snapshot(*row) for row in rows]
