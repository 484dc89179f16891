"""Preference pairs for training, from what people said of two answers to a record of a snapshot.

Only records of the training rows are taken, so what was reserved stays out. The answers that were compared are no rows
of the snapshot, so its gates have not seen them: a pair counts only while both of its texts stand in the ledger as they
were shown, scanned under the current rule and without anything that people marked since.
"""

from __future__ import annotations

from typing import Any

from curation import pii, snapshot
from curation.curate import Rules, require_covered, scrubbed_labels
from curation.judging import Preference, judgements, preferences
from curation.marks import marked
from curation.workspace import Workspace

_SHOWN = {"candidate", "reference"}  # the kinds of Labels that are put side by side


def preference_rows(workspace: Workspace, name: str) -> list[dict[str, Any]]:
    """Rows of ``id``, ``prompt``, ``chosen`` and ``rejected``, as texts; none where nobody compared anything.

    Where a prompt has more than one message all rows hold whole transcripts as ``chosen`` and ``rejected`` instead, which
    share their beginning: one shape a file. Raises :class:`GateRefused` where scrubbing has not seen every row.
    """
    rules = Rules(workspace)
    require_covered(workspace, rules)
    columns = ["record", "prompt", "messages"]
    rows = [r for t in snapshot.scan(workspace.store, name, "train", columns) for r in t.to_pylist()]
    prompts = {row["record"]: row for row in rows}
    said = [j for j in judgements(workspace, "compare") if j.record in prompts]
    clean = _clean_texts(workspace, rules, sorted({j.record for j in said}))
    pairs = preferences([j for j in said if {(j.record, j.text), (j.record, j.rival)} <= clean])
    plain = all(len(prompts[pair.record]["messages"]) == 1 for pair in pairs)
    return [_row(pair, prompts[pair.record], plain) for pair in pairs]


def _clean_texts(workspace: Workspace, rules: Rules, records: list[str]) -> set[tuple[str, str]]:
    """(record, text) of every answer of a source as scrubbing left it, less those in which a mark still stands."""
    marks = marked(workspace)
    labels = scrubbed_labels(workspace, rules, _SHOWN, records)
    pairs = zip(labels["record"].to_pylist(), labels["body"].to_pylist(), strict=True)
    return {
        (record, text)
        for record, text in pairs
        if text is not None and not any(pii.stands_in(text, mark) for mark in marks.get(record, ()))
    }


def _row(pair: Preference, row: dict[str, Any], plain: bool) -> dict[str, Any]:
    if plain:
        sides = {"chosen": pair.chosen, "rejected": pair.rejected}
        return {"id": pair.record, "prompt": row["prompt"], **sides}
    told = {
        side: [*row["messages"], {"role": "assistant", "content": text}]
        for side, text in (("chosen", pair.chosen), ("rejected", pair.rejected))
    }
    return {"id": pair.record, **told}
