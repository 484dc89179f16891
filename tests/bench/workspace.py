"""A million rows through a workspace: ingest of a file, and freezing of rows that every stage has seen.

    python -m tests.bench.workspace [--rows 1000000] [--stores sqlite,postgres] [--repeat 1]

Prints one JSON line per store: rows/s of the ingest, seconds of the freeze (composing and committing), CPU seconds of
this side, and peak memory of the largest process. Each store is measured in a process of its own; PostgreSQL is a
cluster made for it, with every commit synced and 1 GB of shared buffers. The stages are marked as having seen every
row, since what is measured is the freeze and not the scan.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from curation import assemble, workspace
from curation.curate import STAGES, Rules
from curation.records import DECISIONS
from tests import postgres

WORDS = [f"word{i}" for i in range(2_000)]


def write_rows(path: Path, rows: int) -> None:
    """Rows of about 30 words, each with its own id, reply and thread."""
    draw = random.Random(7)
    with path.open("w", encoding="utf-8") as file:
        for i in range(rows):
            prompt = " ".join(draw.choices(WORDS, k=22))
            row = {
                "id": i,
                "prompt": f"{prompt} {i}",
                "completion": " ".join(draw.choices(WORDS, k=8)),
                "group": i // 2,
            }
            file.write(json.dumps(row) + "\n")


def peak() -> float:
    """The most memory that one process of this benchmark has held, in GiB."""
    return max(usage.ru_maxrss for usage in _usages()) / (1 << 20)


def cpu() -> float:
    """CPU seconds of this process and of those it has waited for."""
    return sum(usage.ru_utime + usage.ru_stime for usage in _usages())


def _usages() -> list[resource.struct_rusage]:
    return [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]


def measure(folder: Path, rows: int, url: str | None) -> dict[str, float | str]:
    """One store: ingest, mark as seen, freeze."""
    from curation.formats import Mapping

    workspace.init(folder, actor="bench", name="bench")
    if url:
        text = (folder / "tilth.toml").read_text().replace("sqlite:///ledger.db", url)
        (folder / "tilth.toml").write_text(text)
    source = folder / "rows.jsonl"
    write_rows(source, rows)
    with workspace.open_workspace(folder, actor="bench") as opened:
        start, cpu_start = time.perf_counter(), cpu()
        done = workspace.ingest(
            opened, source, mapping=Mapping(id="id", group="group"), trust="reference", processes=2
        )
        ingest, ingest_cpu = time.perf_counter() - start, cpu() - cpu_start
        assert done.accepted == rows
        rules = Rules(opened)
        everything = [("record", 0, opened.ledger.records_seen()), ("label", 0, opened.ledger.labels_seen())]
        for stage in STAGES:
            opened.ledger.decide(stage, rules.of(stage), DECISIONS.empty_table(), covered=everything)
        start, cpu_start = time.perf_counter(), cpu()
        frozen = assemble.freeze(opened, assemble.compose(opened))
        freeze, freeze_cpu = time.perf_counter() - start, cpu() - cpu_start
        assert frozen.rows == rows
    return {
        "store": "postgresql" if url else "sqlite",
        "rows": rows,
        "ingest_rows_per_second": round(rows / ingest),
        "ingest_cpu_seconds": round(ingest_cpu, 1),
        "freeze_seconds": round(freeze, 1),
        "freeze_cpu_seconds": round(freeze_cpu, 1),
        "peak_gib": round(peak(), 2),
    }


def _alone(rows: int, url: str | None) -> None:
    """One measurement in a process of its own."""
    command = [sys.executable, "-m", "tests.bench.workspace", "--rows", str(rows), "--url", url or "sqlite"]
    subprocess.run(command, check=True)


def main() -> None:
    """Measure each store and print what was found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--stores", default="sqlite,postgres")
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("--url", default=None, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.url:
        url = None if options.url == "sqlite" else options.url
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(measure(Path(folder) / "w", options.rows, url)), flush=True)
        return
    for _ in range(options.repeat):
        if "sqlite" in options.stores:
            _alone(options.rows, None)
        if "postgres" in options.stores:
            with postgres.server(durable=True) as made:
                _alone(options.rows, made)


if __name__ == "__main__":
    main()
