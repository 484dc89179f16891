"""What holds of every stage, whatever it decides: invariants that each stage's tests run over it.

A stage here is a function from a view to decisions, with its rule already given.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from typing import Any

import orjson
import pyarrow as pa

from curation import records

Stage = Callable[[pa.Table], pa.Table]


def example(record: str, prompt: str, completion: str | None = None, **more: Any) -> dict[str, Any]:
    """A row of a view; ``label`` and ``trust`` follow from there being a completion unless they are given."""
    row = {
        "record": record,
        "label": None if completion is None else f"{record}/label",
        "messages": records.user_message(prompt),
        "prompt": prompt,
        "completion": completion,
        "trust": None if completion is None else "candidate",
        "source": "test",
    }
    return {**row, **more}


def view_of(rows: Iterable[dict[str, Any]]) -> pa.Table:
    """Rows as a view."""
    return records.table(rows, records.VIEW)


def decided(decisions: pa.Table) -> dict[tuple[str, str | None], tuple[str, dict[str, Any]]]:
    """Action and evidence by (record, label)."""
    return {
        (row["record"], row["label"]): (row["action"], orjson.loads(row["evidence"]))
        for row in decisions.to_pylist()
    }


def check_invariants(stage: Stage, view: pa.Table, *, seeds: int = 3) -> pa.Table:
    """Run every invariant over one stage; ``view`` must make it decide on something. Gives its decisions."""
    found = stage(view)
    assert found.num_rows > 0, "a stage that decides on nothing cannot show that it keeps its promises"
    check_decisions(found, view)
    check_empty_input(stage)
    check_order_of_rows(stage, view, found, seeds)
    check_idempotence(stage, view, found)
    check_no_mutation(stage, view)
    return found


def check_decisions(found: pa.Table, view: pa.Table) -> None:
    """One decision at most per row of the view, each complete: a known action, a reason of one line,
    evidence."""
    assert found.schema.equals(records.DECISIONS)
    keys = [(row["record"], row["label"]) for row in found.to_pylist()]
    assert len(set(keys)) == len(keys)
    assert set(keys) <= set(zip(view["record"].to_pylist(), view["label"].to_pylist(), strict=True))
    for row in found.to_pylist():
        assert row["action"] in set(records.ACTIONS) - {"keep"}
        assert row["reason"].strip()
        assert "\n" not in row["reason"]
        assert orjson.loads(row["evidence"])


def check_empty_input(stage: Stage) -> None:
    """No rows, no decisions."""
    found = stage(view_of([]))
    assert found.num_rows == 0
    assert found.schema.equals(records.DECISIONS)


def check_order_of_rows(stage: Stage, view: pa.Table, found: pa.Table, seeds: int) -> None:
    """Rows in another order are decided in the same way, evidence included."""
    for seed in range(seeds):
        order = list(range(view.num_rows))
        random.Random(seed).shuffle(order)
        assert decided(stage(view.take(order))) == decided(found)


def check_idempotence(stage: Stage, view: pa.Table, found: pa.Table) -> None:
    """The same view again gives the same decisions; without the rows decided on, nothing is left to
    decide."""
    assert stage(view).equals(found)
    gone = {(row["record"], row["label"]) for row in found.to_pylist()}
    rest = [row for row in view.to_pylist() if (row["record"], row["label"]) not in gone]
    assert stage(view_of(rest)).num_rows == 0


def check_no_mutation(stage: Stage, view: pa.Table) -> None:
    """The view is as it was."""
    before = view.to_pylist()
    stage(view)
    assert view.to_pylist() == before
