"""100,000 records x 20 labeling functions: seconds to vote and to weigh the votes.

Run: python -m tests.bench.voting [rows]. Prints one JSON object; talk goes to stderr.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa

from apps.demo import corpus
from curation.records import VIEW, table, user_message
from curation.voting import Limits, apply_functions, find_functions, label, read_gold
from labeling_functions import freight

THREE_MORE = """
from curation.voting import labeling_function

@labeling_function(classes=["billing_dispute"])
def mentions_invoice(row):
    return "billing_dispute" if "invoice" in row.prompt.lower() else None

@labeling_function(classes=["route_delay"])
def mentions_vessel(row):
    return "route_delay" if "mv " in row.prompt.lower() else None

@labeling_function(classes=["claim_damage"])
def mentions_claim(row):
    return "claim_damage" if "claim" in row.prompt.lower() else None
"""


def timed(what: str, call: Callable[[], Any], seconds: dict[str, float]) -> Any:
    """The result of a call, its wall time noted."""
    print(what, file=sys.stderr)
    began = time.perf_counter()
    result = call()
    seconds[what] = round(time.perf_counter() - began, 2)
    return result


def pool(rows: int, folder: Path) -> tuple[pa.Table, list[str | None]]:
    """A made-up month, repeated to the wanted size."""
    truth = corpus.generate(folder)
    broken = {fault["line"] for fault in truth.malformed}
    lines = (folder / "inquiries.jsonl").read_bytes().splitlines()
    month = [json.loads(line) for number, line in enumerate(lines, 1) if number not in broken]
    many = [month[i % len(month)] for i in range(rows)]
    view = [
        {"record": f"r{i}", "prompt": r["prompt"], "messages": user_message(r["prompt"])}
        for i, r in enumerate(many)
    ]
    return table(view, VIEW), [r["gold"] for r in many]


def main(rows: int) -> None:
    """Measure and print."""
    seconds: dict[str, float] = {}
    with TemporaryDirectory() as name:
        folder = Path(name)
        view, answers = pool(rows, folder)
        (folder / "more.py").write_text(THREE_MORE, encoding="utf-8")
        functions = [*find_functions(freight.__file__), *find_functions(folder / "more.py")]
        votes = timed("apply here", lambda: apply_functions(functions, view), seconds)
        timed("apply apart, with limits", lambda: apply_functions(functions, view, limits=Limits()), seconds)
    gold = read_gold(answers, votes.classes)
    accuracy = {}
    for model in ("majority", "dawid-skene", "triplet", "snorkel"):
        _, report = timed(model, partial(label, votes, model, gold=gold), seconds)
        accuracy[model] = round(report.accuracy or 0.0, 4)
    timed("auto, without gold", lambda: label(votes, "auto"), seconds)
    timed("auto, with gold", lambda: label(votes, "auto", gold=gold), seconds)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    result = {
        "rows": rows,
        "functions": len(functions),
        "seconds": seconds,
        "accuracy": accuracy,
        "peak_mib": peak,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 100_000)
