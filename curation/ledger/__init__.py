"""The ledger: the only state, and the only SQL in the project. SQLite by default, PostgreSQL by URL.

Append-only tables with a hash chain over them; text lives in one table of payloads, where it can be erased. It stores
what it is told and answers what it holds; it refuses to judge: no rule, threshold or model lives here.
"""

from __future__ import annotations

from curation.ledger.incoming import NewRecords
from curation.ledger.journal import choose_journal, network_filesystem
from curation.ledger.ledger import Ledger, restore
from curation.ledger.rows import (
    LABELS,
    STORED_DECISIONS,
    Adapter,
    Added,
    Alias,
    Audit,
    Author,
    Covered,
    Event,
    Function,
    Ingest,
    NewLabel,
    NewQuarantine,
    NewRecord,
    Page,
    Passage,
    Question,
    Review,
    ReviewConflict,
    ReviewResult,
    ScoreRun,
    Selection,
    SelectionItem,
    Showing,
    Snapshot,
    Task,
    Transaction,
    VoteRun,
    label_id,
)

__all__ = [
    "LABELS",
    "STORED_DECISIONS",
    "Adapter",
    "Added",
    "Alias",
    "Audit",
    "Author",
    "Covered",
    "Event",
    "Function",
    "Ingest",
    "Ledger",
    "NewLabel",
    "NewQuarantine",
    "NewRecord",
    "NewRecords",
    "Page",
    "Passage",
    "Question",
    "Review",
    "ReviewConflict",
    "ReviewResult",
    "ScoreRun",
    "Selection",
    "SelectionItem",
    "Showing",
    "Snapshot",
    "Task",
    "Transaction",
    "VoteRun",
    "choose_journal",
    "label_id",
    "network_filesystem",
    "restore",
]
