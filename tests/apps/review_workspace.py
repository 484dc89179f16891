"""A small freight desk with what a curator meets: disagreement, conflict, a held draft, an unscanned text."""

from __future__ import annotations

from pathlib import Path

from curation import records
from curation.curate import Rules, curate, save_table
from curation.ledger import NewLabel, NewRecord, Question, Showing
from curation.opinions import settle
from curation.question import current
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


QUARREL = (
    "The crate we ordered stands at the border since Tuesday. They want a paper from us that nobody here has ever "
    "heard of, and meanwhile you bill us for storage. Who sorts this out?"
)
CLASSES = ("billing", "claims", "customs")


def quarrel(root: Path) -> str:
    """A workspace in which two people disagree on a class, one of whom was shown what a model proposed; its record.

    On nine other records Ines agrees with two more people and Tom does not, so that their words weigh differently.
    """
    init(root, actor="mara", name="freight-desk")
    text = (root / "tilth.toml").read_text()
    kind = f'kind = "class"\nclasses = [{", ".join(f"{name!r}" for name in CLASSES)}]'.replace("'", '"')
    (root / "tilth.toml").write_text(text.replace('kind = "auto"', kind))
    with open_workspace(root, actor="mara") as workspace:
        book = workspace.ledger
        ingest = book.begin_ingest("mail", "mail.jsonl", "0" * 32, format="jsonl")
        texts = [QUARREL, *(f"Question number {i} about crate {i}{i}." for i in range(9))]
        ids = [record_id("mail", key=str(i)) for i in range(len(texts))]
        book.add_rows(
            ingest,
            [
                NewRecord(i, "mail", str(n), canonical_json(user_message(said)), lang="en")
                for n, (i, said) in enumerate(zip(ids, texts, strict=True))
            ],
        )
        book.end_ingest(ingest)
        question = current(workspace)
        for n, record in enumerate(ids[1:]):
            right, other = CLASSES[n % 3], CLASSES[(n + 1) % 3]
            for who in ("ines", "uma", "sol"):
                _say(workspace, question, record, who, right, 14.0)
            _say(workspace, question, record, "tom", other if n % 2 else right, 6.0)
        _say(workspace, question, ids[0], "tom", "billing", 5.0, suggestion="billing")
        _say(workspace, question, ids[0], "kim", "customs", 41.0)
        curate(workspace)
        settle(workspace)
        votes = [{"record": ids[0], "function": "mentions_the_border", "vote": "customs"}]
        save_table(workspace, "votes", Rules(workspace).scrub, records.table(votes, records.VOTES))
    return ids[0]


def _say(
    workspace: Workspace,
    question: Question,
    record: str,
    who: str,
    answer: str,
    seconds: float,
    suggestion: str | None = None,
) -> None:
    book = workspace.ledger
    author = book.add_author(who, "person")
    by = "5f0c9a1db2e7" if suggestion else None
    told = {"confidence": 0.83} if suggestion else {}
    showing = Showing(
        record, question.name, question.version, record, suggestion, by, annotator=author, extra=told
    )
    (shown,) = book.add_showings([showing])
    extra = {"lead_time": seconds, "updated_at": "2026-03-01T10:00:00.000000Z"}
    label = NewLabel(
        record, question.name, question.version, "person", author, answer, showing=shown, extra=extra
    )
    book.add_labels([label])
