"""What a curator should see of all rows of a workspace together. Nothing here decides anything: each finding is an
opinion, a count or a measure, and a person acts on it."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curation import contained, dedup, grouping, neighbours, quality
from curation.curate import Rules, blocked, without
from curation.errors import UsageError
from curation.workspace import Workspace, view

Findings = dict[str, list[dict[str, Any]]]


def audit(workspace: Workspace, by: str) -> Findings:
    """The limits that trusted rows suggest, formats that nearly all keep and some break, and harsh words by slice of the
    column ``by``."""
    rules = Rules(workspace)
    rows = view(workspace, rule=rules.scrub)
    if by not in rows.column_names:
        raise UsageError(f"there is no column {by!r}", where="--audit", next="Use source, lang or group")
    fitted = quality.fitted(rows, rules.filters)
    limits = [
        {"limit": name, "now": getattr(rules.filters, name), "by trusted rows": getattr(fitted, name)}
        for name in ("max_words", "repeats")
    ]
    formats = [asdict(found) for found in quality.conventions(rows)]
    words = [asdict(found) | {"rate": round(found.rate, 4)} for found in quality.audit_words(rows, by)]
    return {"limits": limits, "formats": formats, "harsh_words": words}


def resembling(workspace: Workspace, encode: neighbours.Encoder, cosine: float) -> Findings:
    """Records that mean what another one does, and those nearest to what is reserved for evaluation, by the vectors of an
    encoder. Records that a stage keeps out are left out."""
    rules = Rules(workspace)
    reserved = workspace.ledger.eval_items()["record"].combine_chunks()
    rows = view(workspace, rule=rules.scrub)
    held_out = pc.is_in(rows["record"], value_set=reserved)
    pool = without(rows.filter(pc.invert(held_out)), blocked(workspace, rules))
    once = _encoded_once(rows, encode)
    return {
        "resembling": _shown(neighbours.semantic_duplicates(pool, once, cosine)),
        "near_reserved": _shown(
            neighbours.paraphrased_leaks(pool, rows.filter(held_out), once, least=cosine)
        ),
    }


def _encoded_once(rows: pa.Table, encode: neighbours.Encoder) -> neighbours.Encoder:
    """An encoder that looks up the prompts of ``rows``: encoded together, since what they have in common is taken out."""
    texts = sorted({prompt or "" for prompt in rows["prompt"].to_pylist()})
    places = {text: place for place, text in enumerate(texts)}
    vectors = encode(texts)
    return lambda wanted: vectors[[places[text] for text in wanted]]


def _shown(decisions: pa.Table) -> list[dict[str, Any]]:
    """One finding per record: which other one it resembles, and how much."""
    found = {row["record"]: json.loads(row["evidence"]) for row in decisions.to_pylist()}
    return [
        {"record": record, "resembles": told.get("resembles", told.get("matched")), "score": told["score"]}
        for record, told in found.items()
    ]


def within(workspace: Workspace) -> Findings:
    """Records of which a good part lies in another: a mail quoted in a thread (:mod:`curation.contained`)."""
    rules = Rules(workspace)
    rows = without(view(workspace, rule=rules.scrub), blocked(workspace, rules))
    texts: dict[str, str] = {}
    for row in dedup.keeping_order(dedup.rows_of(rows), None):
        texts.setdefault(row.record, row.text(rules.duplicates.fields))
    names = sorted(texts)
    corpus = grouping.InMemory([texts[name] for name in names], rules.duplicates)
    made = contained.find_contained(corpus, np.ones(len(names), bool))
    return {
        "contained": [
            {"record": names[a], "within": names[b], "share": round(share, 4)}
            for (a, b), share in zip(made.pairs.tolist(), made.share.tolist(), strict=True)
        ]
    }
