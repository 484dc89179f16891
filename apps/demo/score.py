"""The product scored against a corpus whose faults are known: what was planted, what was found, how sure that is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from apps.demo.corpus import Truth
from curation import snapshot
from curation.calibration import wilson
from curation.curate import BLOCKING, Rules
from curation.records import record_id
from curation.workspace import Workspace

NAMES = frozenset({"PERSON"})  # found by the names layer alone


def line(what: str, found: int, known: int, note: str = "") -> dict[str, Any]:
    """One row of the card."""
    recall = found / known if known else 0.0
    return {
        "what": what,
        "found": found,
        "known": known,
        "recall": recall,
        "ci95": list(wilson(found, known)),
        "note": note,
    }


def card(workspace: Workspace, truth: Truth, result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every kind of planted fault with what became of it, and the labels with how many are right."""
    rules = Rules(workspace)
    out = {
        stage: _stopped(workspace, rules, stage) for stage in ("exact", "near", "conflict", "quality", "leak")
    }
    repeats = out["exact"] | out["near"] | out["leak"]
    return [
        _malformed(workspace, truth),
        line("exact duplicates", _pairs(truth.exact, repeats), len(truth.exact)),
        line(
            "near-duplicates", _pairs(truth.near, repeats | out["conflict"]), len(truth.near), _alike(truth)
        ),
        line("contradictory answers", _groups(truth, out["conflict"] | repeats), len(truth.contradictions)),
        line("boilerplate mails", len(_ids(truth.boilerplate) & out["quality"]), len(truth.boilerplate)),
        line(
            "evaluation leaks",
            len(_ids(leak["id"] for leak in truth.leaks) & (out["leak"] | repeats)),
            len(truth.leaks),
        ),
        *_personal(workspace, rules, truth),
        *_labels(workspace, truth, result),
    ]


def _ids(keys: Iterable[str]) -> set[str]:
    return {record_id("desk", key=key) for key in keys}


def _stopped(workspace: Workspace, rules: Rules, stage: str) -> set[str]:
    rows = workspace.ledger.decisions(stage=stage, rule=rules.of(stage)).to_pylist()
    return {row["record"] for row in rows if row["action"] in BLOCKING}


def _pairs(planted: Iterable[Mapping[str, Any]], stopped: set[str]) -> int:
    """Pairs of which at least one side was stopped: which of two equals stays is the keep policy's business."""
    return sum(bool(_ids((pair["id"], pair["of"])) & stopped) for pair in planted)


def _groups(truth: Truth, stopped: set[str]) -> int:
    """Contradictions of which no two sides are left to train on together."""
    return sum(len(_ids(group["ids"]) - stopped) < 2 for group in truth.contradictions)


def _alike(truth: Truth) -> str:
    hard = sum(pair["similarity"] < 0.8 for pair in truth.near)
    return f"{hard} of them lie under the threshold of 0.8" if hard else ""


def _malformed(workspace: Workspace, truth: Truth) -> dict[str, Any]:
    aside = {row.line for row in workspace.ledger.quarantined() if row.file == "inquiries.jsonl"}
    planted = {bad["line"] for bad in truth.malformed}
    extra = len(aside - planted)
    return line(
        "malformed lines", len(aside & planted), len(planted), f"{extra} good lines refused" if extra else ""
    )


def _personal(workspace: Workspace, rules: Rules, truth: Truth) -> list[dict[str, Any]]:
    """Spans of personal data whose text is gone from the scrubbed prompt, by the layer that finds it."""
    clean: dict[str, str] = {}
    for page in workspace.ledger.view_pages(scrub_rule=rules.scrub):
        clean.update(zip(page.table["record"].to_pylist(), page.table["prompt"].to_pylist(), strict=True))
    known: Counter[bool] = Counter()
    gone: Counter[bool] = Counter()
    for person in truth.personal:
        text = clean.get(record_id("desk", key=person["id"]))
        if text is None:
            continue
        name = person["entity_type"] in NAMES
        known[name] += 1
        gone[name] += person["text"] not in text
    lines = [line("personal data, by pattern", gone[False], known[False])]
    if known[True]:
        lines.append(line("personal data, names", gone[True], known[True], "by the bundled model"))
    return lines


def _labels(workspace: Workspace, truth: Truth, result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Training labels that agree with the truth, by who gave them, beside the drafts that came with the source."""
    gold = {record_id("desk", key=key): label for key, label in truth.gold.items()}
    rows = snapshot.load(workspace.store, result["rounds"][-1]["snapshot"], split="train").to_pylist()
    kinds: dict[bool, list[bool]] = {True: [], False: []}
    for row in rows:
        if row["record"] in gold:
            kinds["person" in row["author_kinds"]].append(row["completion"] == gold[row["record"]])
    drafts = workspace.ledger.labels(kinds={"candidate"})
    right = [
        gold[record] == body
        for record, body in zip(drafts["record"].to_pylist(), drafts["body"].to_pylist(), strict=True)
        if record in gold
    ]
    return [
        line("labels right: source's drafts", sum(right), len(right), "none of them is trained on"),
        line(
            "labels right: functions alone", sum(kinds[False]), len(kinds[False]), "trained on, weighed down"
        ),
        line("labels right: simulated people", sum(kinds[True]), len(kinds[True])),
    ]
