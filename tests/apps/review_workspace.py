"""A small freight desk with what a curator meets: disagreement, conflict, a held draft, an unscanned text."""

from __future__ import annotations

from pathlib import Path

from curation import records
from curation.curate import Rules
from curation.ledger import NewLabel, NewRecord
from curation.records import canonical_json, record_id, user_message
from curation.workspace import Workspace, init, open_workspace

PARCEL = (
    "Hello, my parcel 4471 was due on Monday and the tracking page has not moved since. "
    "When will it arrive?\n\nAnna"
)
PROMPTS = {
    "parcel": PARCEL,
    "refund": "The crate arrived with two broken pallets. Do you pay for that, and by when must I claim?",
    "refund-twin": "Two pallets were broken when the crate came. Will you pay, and by when must I claim?",
    "customs": "Why do you ask for a commercial invoice? It is a gift to my brother in Bergen.",
    "unscanned": "私の荷物はどこですか。",
}
ANSWERS = {
    "parcel": "Dear Anna,\n\nthank you for writing. Parcel 4471 left our hub and is due on Thursday.",
    "refund": "Yes. Claim within 7 days of delivery with photographs; we pay the invoice value.",
    "refund-twin": "Damage must be noted on delivery. Later claims cannot be accepted.",
    "customs": "Just declare it as a gift, nobody checks these anyway.",
    "unscanned": "東京にあります。",
}

SECOND = "Dear Anna,\n\nparcel 4471 left our hub today and will be with you on Thursday by noon."


def build(root: Path, *, actor: str = "mara", extra: int = 0) -> dict[str, str]:
    """Make the workspace at ``root``. Gives the id of each record; ``extra`` adds that many held drafts."""
    init(root, actor=actor, name="freight-desk")
    with open_workspace(root, actor=actor) as workspace:
        ids = _fill(workspace, extra)
        _label(workspace, ids)
        _decide(workspace, ids)
    return ids


def _fill(workspace: Workspace, extra: int) -> dict[str, str]:
    texts = PROMPTS | {f"draft-{i}": f"Where is container {i:03d}?" for i in range(extra)}
    ids = {name: record_id("mail", key=name) for name in texts}
    book = workspace.ledger
    ingest = book.begin_ingest("mail", "mail.jsonl", "0" * 32, format="jsonl")
    rows = [
        NewRecord(
            ids[name],
            "mail",
            name,
            canonical_json(user_message(text)),
            lang="en",
            labels=[("candidate", ANSWERS.get(name, f"It is at sea, see page {name}."), None)],
        )
        for name, text in texts.items()
    ]
    book.add_rows(ingest, rows)
    book.end_ingest(ingest)
    return ids


def _label(workspace: Workspace, ids: dict[str, str]) -> None:
    book = workspace.ledger
    said = {
        "ines": SECOND,
        "tom": "Please call the depot.",
    }
    book.add_labels(
        [
            NewLabel(ids["parcel"], None, None, "person", book.add_author(name, "person"), text)
            for name, text in said.items()
        ]
    )


def _decide(workspace: Workspace, ids: dict[str, str]) -> None:
    rules, book = Rules(workspace), workspace.ledger
    drafts = [name for name in ids if name.startswith("draft-")]
    found = {
        "scrub": [("unscanned", "quarantine", "no scanner for the language ja", {})],
        "conflict": [
            (
                "refund",
                "hold",
                "the same question has a contradicting answer in another record",
                {"against": ids["refund-twin"]},
            )
        ],
        "quality": [("customs", "hold", "the answer tells the reader to break a rule", {})]
        + [(name, "hold", "the answer names a page that it does not hold", {}) for name in drafts],
        "consensus": [("parcel", "hold", "two people disagree: agreement 0.21, below 0.60", {})],
    }
    for stage, rows in found.items():
        table = records.table(
            [records.decision(ids[name], action, why, evidence=facts) for name, action, why, facts in rows],
            records.DECISIONS,
        )
        book.decide(stage, rules.of(stage), table, covered=[("record", 0, book.records_seen())])
