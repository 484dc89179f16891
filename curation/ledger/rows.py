"""What goes into the ledger and what comes out of it: small frozen dataclasses and two Arrow schemas.

No statement and no connection here, so every other room may hold these values.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from curation.errors import ConflictError
from curation.records import canonical_json, digest

LABELS = pa.schema(
    [
        ("record", pa.string()),
        ("label", pa.string()),
        ("kind", pa.string()),
        ("author", pa.string()),
        ("body", pa.string()),
        ("confidence", pa.float64()),
        ("question", pa.string()),
        ("question_version", pa.int64()),
        ("showing", pa.string()),
        ("seq", pa.int64()),
        ("extra", pa.string()),
    ]
)
"""Labels as they were given; ``seq`` is the commit order, ``extra`` JSON or null."""

STORED_DECISIONS = pa.schema(
    [
        ("record", pa.string()),
        ("label", pa.string()),
        ("stage", pa.string()),
        ("rule", pa.string()),
        ("action", pa.string()),
        ("reason", pa.string()),
        ("evidence", pa.string()),
        ("output", pa.string()),
        ("run", pa.string()),
        ("seq", pa.int64()),
    ]
)
"""Decisions as stored; ``output`` is the rewritten body, null where there is none or it was erased."""


@dataclass(frozen=True, slots=True)
class NewRecord:
    """One row of a source. ``payload_body`` is ``canonical_json(messages)``; ``labels`` are (kind, body, confidence)."""

    id: str
    source: str
    key: str | None
    payload_body: bytes
    lang: str | None = None
    group: str | None = None
    time: str | None = None
    tags: Mapping[str, Any] | Sequence[str] | None = None
    occurrence: int = 0
    labels: Sequence[tuple[str, str, float | None]] = ()


@dataclass(frozen=True, slots=True)
class NewQuarantine:
    """One row that was set aside: where it stood, the code and the words of the reason, and its raw bytes."""

    file: str
    line: int
    offset: int
    reason: str
    message: str
    raw: bytes = b""


@dataclass(frozen=True)
class Added:
    """What became of a batch: rows accepted, rows already known, and (index in the batch, reason) of conflicts."""

    accepted: int
    unchanged: int
    conflicts: list[tuple[int, str]] = field(default_factory=list)


@dataclass(frozen=True)
class Ingest:
    """One import of one file. The three counts are null until it ended; ``undone`` after it was taken back."""

    id: str
    source: str
    file_name: str
    file_digest: str
    format: str
    rule: Mapping[str, Any]
    trust: str
    actor: str
    time: str
    accepted: int | None
    unchanged: int | None
    quarantined: int | None
    undone: bool


@dataclass(frozen=True)
class Page:
    """A page of the view. ``hi`` is the last ``records.seq`` it saw, ``label_hi`` the last ``labels.seq`` then known."""

    table: pa.Table
    hi: int
    label_hi: int


@dataclass(frozen=True)
class NewLabel:
    """An opinion to be stored. ``revision`` tells apart a changed mind about the same showing (a remote's version)."""

    record: str
    question: str | None
    question_version: int | None
    kind: str
    author: str
    body: str
    confidence: float | None = None
    showing: str | None = None
    extra: Mapping[str, Any] | None = None
    revision: str = ""

    @property
    def id(self) -> str:
        """The digest of what makes it this opinion; neither time nor ``extra`` nor confidence is part of it."""
        return label_id(
            self.record,
            self.question,
            self.question_version,
            self.kind,
            self.author,
            digest(self.body),
            self.showing,
            self.revision,
        )


def label_id(
    record: str,
    question: str | None,
    version: int | None,
    kind: str,
    author: str,
    payload: str,
    showing: str | None = None,
    revision: str = "",
) -> str:
    """The identity of a Label: who said what about which record, asked which question, seeing which showing."""
    return digest(
        f"{record}\0{question or ''}\0{version or 0}\0{kind}\0{author}\0{payload}\0{showing or ''}\0{revision}"
    )


@dataclass(frozen=True)
class Author:
    """``name`` is null after it was erased; ``id`` is opaque and stays."""

    id: str
    name: str | None
    kind: str


@dataclass(frozen=True)
class Question:
    """What people are asked. ``mapping`` gives each old class its new one, or null where it must be asked again."""

    name: str
    version: int
    kind: str
    classes: tuple[str, ...] = ()
    rubric: str = ""
    guideline: str = ""
    mapping: Mapping[str, str | None] = field(default_factory=dict)


@dataclass(frozen=True)
class Passage:
    """A chunk of a document that an answer may rest on."""

    id: str
    document: str
    version: str
    heading: tuple[str, ...]
    body: str


@dataclass(frozen=True)
class Function:
    """A labeling function as it stood when it voted."""

    digest: str
    name: str
    path: str
    source: str
    classes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Showing:
    """What was on whose screen. ``id`` is derived; leave it empty when adding."""

    record: str
    question: str
    question_version: int
    view: str
    suggestion: str | None = None
    suggestion_by: str | None = None
    passages: tuple[str, ...] = ()
    blind: bool = False
    selection: str | None = None
    annotator: str | None = None
    extra: Mapping[str, Any] | None = None
    id: str = ""

    def identity(self) -> str:
        """The digest of everything that was shown."""
        parts = (
            self.record,
            self.question,
            self.question_version,
            self.view,
            self.suggestion,
            self.suggestion_by,
            self.passages,
            self.blind,
            self.selection,
            self.annotator,
        )
        return digest(canonical_json(parts))


@dataclass(frozen=True)
class Task:
    """A showing on its way to a person. ``remote`` is the other side's id; ``state`` is open, done or skipped."""

    showing: str
    channel: str
    remote: str
    state: str = "open"
    id: str = ""


@dataclass(frozen=True)
class SelectionItem:
    """One chosen record: the arm that chose it, why in words, and its expected cost (minutes or tokens)."""

    record: str
    arm: str
    reason: str
    cost: float | None = None


@dataclass(frozen=True)
class Selection:
    """The records that one acquisition chose, in order."""

    id: str
    round: int
    run: str
    strategy: str
    adapter: str | None
    items: tuple[SelectionItem, ...] = ()


@dataclass(frozen=True)
class Snapshot:
    """A frozen set of rows. ``parent`` is "" for the first; ``verdict`` the latest approval, or null."""

    name: str
    parent: str
    round: int | None
    rows: int
    manifest_digest: str
    time: str
    actor: str
    verdict: str | None = None
    by: str | None = None
    reason: str | None = None


@dataclass(frozen=True)
class Adapter:
    """Trained weights and where they come from."""

    digest: str
    snapshot: str | None
    base: str
    recipe: Mapping[str, Any]
    metrics: Mapping[str, Any]
    path: str
    arm: str | None = None
    time: str = ""


@dataclass(frozen=True)
class VoteRun:
    """One run of the labeling functions; the votes themselves lie in the Parquet artifact."""

    id: str
    artifact: str
    rule: str
    record_hi: int
    functions: tuple[str, ...]


@dataclass(frozen=True)
class ScoreRun:
    """One scoring of the pool under an adapter; the scores themselves lie in the Parquet artifact."""

    id: str
    adapter: str
    artifact: str
    view_rule: str
    record_hi: int


@dataclass(frozen=True)
class Covered:
    """A stage has seen everything in the half-open range (lo, hi] of ``records.seq`` or ``labels.seq``."""

    what: str
    lo: int
    hi: int


@dataclass(frozen=True)
class Review:
    """One entry of a record's review log. ``body`` is what was accepted or written; null for reject, skip and undo."""

    id: str
    record: str
    version: int
    action: str
    label: str | None
    body: str | None
    reason: str
    author: str
    actor: str
    time: str


@dataclass(frozen=True)
class ReviewResult:
    """What a review led to: the record's new version, and the curator's Label where it made one."""

    record: str
    version: int
    action: str
    label: str | None
    repeated: bool = False


class ReviewConflict(ConflictError):
    """Somebody else decided first. ``theirs`` is their decision, ``diff`` what separates it from the refused one."""

    def __init__(self, what: str, *, theirs: Review, diff: str, where: str = "", next: str = "") -> None:
        super().__init__(what, where=where, next=next)
        self.theirs, self.diff = theirs, diff


@dataclass(frozen=True)
class Event:
    """Something a person or a command did that no other table tells."""

    seq: int
    kind: str
    subject: str
    detail: Mapping[str, Any]
    actor: str
    time: str


@dataclass(frozen=True)
class Alias:
    """A pseudonym: the keyed hash of what it stands for, never the text itself."""

    entity_type: str
    hash: str
    alias: str


@dataclass(frozen=True)
class Transaction:
    """One write: who, when, with which command."""

    seq: int
    workspace: str
    actor: str
    time: str
    command: str


@dataclass(frozen=True)
class Audit:
    """What a verification of the chain found; ``head`` is the value to keep elsewhere. Sound when ``problems`` is empty."""

    transactions: int
    rows: int
    head: str
    problems: tuple[str, ...]
