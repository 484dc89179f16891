"""100,000 records x 20 labeling functions: seconds to vote and to weigh the votes, file to file and in a workspace.

Run: python -m tests.bench.voting [rows] [commands|models]. Prints one JSON object, each part as [seconds on the clock, CPU
seconds]; talk goes to stderr. ``filter`` is `tilth vote` on a file, ``workspace`` is `tilth label` on
ingested records, both with limited processes, start-up included. A made-up month repeats itself, which models profit
from; so they are measured on as many generated rows that hardly ever vote alike, too: without gold, with gold for one
row in twenty, and with gold for all.
"""

from __future__ import annotations

import json
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from apps.demo import corpus
from curation import workspace
from curation.formats import Mapping
from curation.voting import Votes, label
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


def timed(what: str, call: Callable[[], Any]) -> tuple[float, float]:
    """Seconds on the clock, and CPU seconds of this process and those it waited for."""
    began, cpu = time.perf_counter(), _cpu()
    call()
    taken = round(time.perf_counter() - began, 1), round(_cpu() - cpu, 1)
    print(what, *taken, file=sys.stderr)
    return taken


def _cpu() -> float:
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def write_pool(folder: Path, rows: int) -> Path:
    """A made-up month, repeated to the wanted size, each row with an id of its own."""
    broken = {fault["line"] for fault in corpus.generate(folder).malformed}
    lines = (folder / "inquiries.jsonl").read_bytes().splitlines()
    month = [json.loads(line) for number, line in enumerate(lines, 1) if number not in broken]
    path = folder / "pool.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for i in range(rows):
            row = month[i % len(month)]
            file.write(json.dumps({"id": f"r{i}", "prompt": row["prompt"]}) + "\n")
    return path


def write_functions(folder: Path) -> None:
    """The demo's functions and three more: twenty."""
    source = Path(freight.__file__)
    folder.mkdir(exist_ok=True)
    for path in (source, source.with_name("un_numbers.csv")):
        shutil.copy(path, folder)
    (folder / "more.py").write_text(THREE_MORE, encoding="utf-8")


def tilth(*arguments: object) -> None:
    """One command of the product, in a process of its own."""
    command = [sys.executable, "-m", "apps.cli", "--quiet", "--json", *map(str, arguments)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def make_workspace(folder: Path, pool: Path) -> Path:
    """A workspace that holds the pool and the functions."""
    root = folder / "workspace"
    workspace.init(root, actor="bench", name="bench")
    settings = (root / "tilth.toml").read_text().replace('kind = "auto"', 'kind = "class"')
    (root / "tilth.toml").write_text(settings)
    write_functions(root / "labeling_functions")
    with workspace.open_workspace(root, actor="bench") as opened:
        workspace.ingest(opened, pool, mapping=Mapping(id="id"), trust="candidate")
    return root


def varied_votes(rows: int, functions: int = 20, classes: int = 8) -> tuple[Votes, np.ndarray]:
    """Independent functions, each with its own coverage and accuracy, and the truth."""
    draw = np.random.default_rng(1)
    truth = draw.choice(classes, rows, p=np.array([6, 4, 3, 2, 2, 1, 1, 1]) / 20)
    shape, right, cover = (
        (rows, functions),
        draw.uniform(0.5, 0.9, functions),
        draw.uniform(0.1, 0.6, functions),
    )
    said = np.where(draw.random(shape) < right, truth[:, None], draw.integers(0, classes, shape))
    matrix = np.where(draw.random(shape) < cover, said, -1).astype(np.int16)
    names = [tuple(map(str, range(n))) for n in (classes, functions, rows)]
    return Votes(matrix, *names), truth


def commands(folder: Path, rows: int) -> dict[str, Any]:
    """The product's own two ways to vote and weigh, each in a process of its own."""
    pool, functions = write_pool(folder, rows), folder / "functions"
    write_functions(functions)
    root, out = make_workspace(folder, pool), folder / "labels.jsonl"
    return {
        "filter": timed("tilth vote", partial(tilth, "vote", pool, "--lfs", functions, "--out", out)),
        "workspace": timed("tilth label", partial(tilth, "--workspace", root, "label")),
        "peak_mib": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024,
    }


def models(folder: Path, rows: int) -> dict[str, Any]:
    """Weighing alone, where hardly two rows are voted on alike."""
    votes, truth = varied_votes(rows)
    some = np.where(np.arange(rows) % 20 == 0, truth, -1)
    return {
        "varied": timed("models", partial(label, votes)),
        "varied, some gold": timed("models, some gold", partial(label, votes, gold=some)),
        "varied, all gold": timed("models, all gold", partial(label, votes, gold=truth)),
    }


def main(rows: str = "100000", *parts: str) -> None:
    """Measure and print."""
    result: dict[str, Any] = {"rows": int(rows)}
    for part in (commands, models):
        if not parts or part.__name__ in parts:
            with TemporaryDirectory() as name:
                result |= part(Path(name), int(rows))
    print(json.dumps(result))


if __name__ == "__main__":
    main(*sys.argv[1:])
