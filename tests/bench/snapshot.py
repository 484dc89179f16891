"""How long freezing takes, and how much memory: ``python tests/bench/snapshot.py [--rows 1000000]``.

Rows have prompts of about 60 words and completions of about 40. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from curation import records, snapshot
from curation.artifacts import Store

FACTS = {
    "pii": {"unscanned": 0, "open_spans": 0, "collisions": 0, "marked": 0, "layers": ["patterns"]},
    "leakage": {"leaks": 0, "eval_sets": []},
    "coverage": {"gaps": {}},
}
WORDS = [f"word{i:04d}" for i in range(5_000)]
BATCH = 10_000


def tables(rows: int, seed: int = 0, changed: int = 0) -> Iterator[pa.Table]:
    """``rows`` examples in tables of :data:`BATCH`; the first ``changed`` have other completions."""
    for start in range(0, rows, BATCH):
        yield _table(range(start, min(rows, start + BATCH)), random.Random(seed + start), changed)


def _table(numbers: range, draw: random.Random, changed: int) -> pa.Table:
    prompts = [f"{' '.join(draw.choices(WORDS, k=60))} {n}" for n in numbers]
    answers = [f"{' '.join(draw.choices(WORDS, k=40))}{'!' if n < changed else ''}" for n in numbers]
    return records.table(
        (
            {
                "record": records.digest(str(n)),
                "messages": records.user_message(prompt),
                "completion": answer,
                "split": ("train", "train", "validation", "test")[n % 4],
                "weight": 1.0,
                "labels": [records.digest(answer)],
                "authors": ["a-0123456789ab"],
                "author_kinds": ["person"],
                "functions": [],
                "arm": "strategy",
                "round": n % 7,
                "source": "bench",
            }
            for n, prompt, answer in zip(numbers, prompts, answers, strict=True)
        ),
        records.EXAMPLES,
    )


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds of the wall clock, and what ``work`` returned."""
    start = time.perf_counter()
    found = work()
    return round(time.perf_counter() - start, 2), found


def main() -> None:
    """Freeze, freeze again, verify, load, diff, export; print the seconds of each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument(
        "--dir", type=Path, default=None, help="where the store is made (default: a temporary folder)"
    )
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.dir) as folder:
        print(json.dumps(measure(arguments.rows, Path(folder)), indent=2))


def measure(rows: int, folder: Path) -> dict[str, Any]:
    """The figures for ``rows`` rows in a store below ``folder``."""
    store = Store(folder)
    making, _ = timed(lambda: [None for _ in tables(rows)])
    whole, first = timed(lambda: snapshot.freeze(tables(rows), store, facts=FACTS))
    found: dict[str, Any] = {"rows": rows, "making the rows": making, "freeze": round(whole - making, 2)}
    found["freeze: peak GiB"] = _peak()
    found["bytes"] = sum(file["size"] for file in first.manifest["files"].values())
    found["verify, files"] = timed(lambda: snapshot.verify(store, first.name, deep=False))[0]
    found["verify --deep"] = timed(lambda: snapshot.verify(store, first.name))[0]
    found["scan"] = timed(lambda: sum(t.num_rows for t in snapshot.scan(store, first.name)))[0]
    second = snapshot.freeze(tables(rows, changed=100), store, facts={**FACTS, "parent": first.name})
    found["diff of 100 changes"], difference = timed(
        lambda: snapshot.diff((store, first.name), (store, second.name))
    )
    found["changes"] = difference.counts()
    found["all: peak GiB"] = _peak()
    return found


def _peak() -> float:
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20), 2)


if __name__ == "__main__":
    main()
