"""Rows of EXAMPLES: what was agreed of each record, beside its scrubbed messages and where the row comes from."""

from __future__ import annotations

import hmac
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curation import records, voting
from curation.consensus import Consensus
from curation.curate import Rules, load_table
from curation.workspace import Workspace

PAGE = 20_000


@dataclass(frozen=True)
class Lineage:
    """What the rows of a snapshot carry about where they come from."""

    arms: dict[str, tuple[str, int]]
    clusters: dict[str, str]
    functions: dict[str, list[str]]

    @classmethod
    def of(cls, workspace: Workspace, rules: Rules) -> Lineage:
        """As the ledger and the tables of the stages tell it now."""
        clusters = load_table(workspace, "clusters", rules.near)
        votes = load_table(workspace, "votes", rules.scrub)
        functions: dict[str, list[str]] = {}
        if votes is not None:
            given = votes.filter(pc.is_valid(votes["vote"]))
            for record, function in zip(
                given["record"].to_pylist(), given["function"].to_pylist(), strict=True
            ):
                functions.setdefault(record, []).append(function)
        return cls(
            arms=arms(workspace),
            clusters={}
            if clusters is None
            else dict(zip(clusters["record"].to_pylist(), clusters["cluster"].to_pylist(), strict=True)),
            functions=functions,
        )


def arms(workspace: Workspace) -> dict[str, tuple[str, int]]:
    """The arm and the round in which each record was first chosen."""
    found: dict[str, tuple[str, int]] = {}
    for selection in workspace.ledger.selections():
        for item in selection.items:
            found.setdefault(item.record, (item.arm, selection.round))
    return found


def example_tables(
    workspace: Workspace,
    rules: Rules,
    rows: Sequence[Consensus],
    split: str,
    lineage: Lineage,
    classes: int | None,
) -> Iterator[pa.Table]:
    """Consensus rows joined with the scrubbed messages of their records, a page at a time."""
    for start in range(0, len(rows), PAGE):
        page = rows[start : start + PAGE]
        views = _with_opaque_groups(views_of(workspace, rules, page), workspace.key)
        places = pc.index_in(pa.array([c.record for c in page], pa.string()), value_set=views["record"])
        if places.null_count:  # not in view any more: undone, or erased
            page = [c for c, place in zip(page, places.to_pylist(), strict=True) if place is not None]
            places = places.drop_null()
        yield _example_table(page, views.take(places), split, lineage, classes)


def views_of(workspace: Workspace, rules: Rules, page: Sequence[Consensus]) -> pa.Table:
    """The scrubbed VIEW of the records of a page, one row each, without completions."""
    ids = list(dict.fromkeys(c.record for c in page))
    pages = workspace.ledger.view_pages(scrub_rule=rules.scrub, records=ids, kinds=())
    return pa.concat_tables([records.VIEW.empty_table(), *(p.table for p in pages)]).combine_chunks()


def _with_opaque_groups(views: pa.Table, key: bytes) -> pa.Table:
    """The views with a keyed hash in the place of each group, which may be a customer's name or address: the same group
    has the same hash in every snapshot of the workspace, and nobody without its key can tell whose it is."""
    column = views["group"]
    known = {
        group: "group-"
        + hmac.digest(key, b"group\0" + group.encode("utf-8", "surrogatepass"), "sha256").hex()[:20]
        for group in pc.unique(column).to_pylist()
        if group is not None
    }
    hashed = pa.array([known.get(group) for group in column.to_pylist()], pa.string())
    return views.set_column(views.column_names.index("group"), "group", hashed)


def _example_table(
    agreed: Sequence[Consensus], views: pa.Table, split: str, lineage: Lineage, classes: int | None
) -> pa.Table:
    """One row of EXAMPLES per consensus; ``views`` holds the record of each, in the same order.

    Among so many ``classes`` confidence counts from a guess upwards; a free text has as much weight as confidence.
    """
    sure = np.array([c.confidence for c in agreed])
    weight = sure if classes is None or split != "train" else voting.loss_weight(sure, classes)
    chosen = [lineage.arms.get(c.record, (None, None)) for c in agreed]
    train = split == "train"
    columns: dict[str, Any] = {
        **{name: views[name] for name in ("record", "messages", "prompt", "source", "group")},
        "completion": [c.value for c in agreed],
        "split": [split] * len(agreed),
        "weight": np.round(weight, 6),
        "labels": [c.labels for c in agreed],
        "authors": [c.authors for c in agreed],
        "author_kinds": [c.kinds for c in agreed],
        "functions": [sorted(lineage.functions.get(c.record, ())) if train else () for c in agreed],
        "arm": [arm for arm, _ in chosen],
        "round": [number for _, number in chosen],
        "cluster": [lineage.clusters.get(c.record) for c in agreed],
    }
    arrays = [
        column if isinstance(column, pa.ChunkedArray) else pa.array(column, field.type)
        for field in records.EXAMPLES
        for column in (columns[field.name],)
    ]
    return pa.Table.from_arrays(arrays, schema=records.EXAMPLES)
