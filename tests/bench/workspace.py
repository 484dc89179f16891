"""A million rows through a workspace: ingest of a file, and freezing of rows that every stage has seen.

    python -m tests.bench.workspace [--rows 1000000] [--url postgresql+psycopg://…]

Prints one JSON line per store: rows/s of the ingest, seconds of the freeze, peak memory of the process. The stages are
marked as having seen every row, since what is measured is the freeze and not the scan.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import tempfile
import time
from pathlib import Path

from curation import assemble, workspace
from curation.curate import STAGES, Rules
from curation.records import DECISIONS

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
    """The most memory that this process has held, in GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20)


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
        start = time.perf_counter()
        done = workspace.ingest(opened, source, mapping=Mapping(id="id", group="group"), trust="reference")
        ingest = time.perf_counter() - start
        assert done.accepted == rows
        rules = Rules(opened)
        everything = [("record", 0, opened.ledger.records_seen()), ("label", 0, opened.ledger.labels_seen())]
        for stage in STAGES:
            opened.ledger.decide(stage, rules.of(stage), DECISIONS.empty_table(), covered=everything)
        start = time.perf_counter()
        frozen = assemble.freeze(opened, assemble.compose(opened))
        freeze = time.perf_counter() - start
        assert frozen.rows == rows
    return {
        "store": "postgresql" if url else "sqlite",
        "rows": rows,
        "ingest_rows_per_second": round(rows / ingest),
        "freeze_seconds": round(freeze, 1),
        "peak_gib": round(peak(), 2),
    }


def main() -> None:
    """Measure one store and print what was found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--url", default=None, help="a PostgreSQL URL; SQLite by default")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(measure(Path(folder) / "w", options.rows, options.url)), flush=True)


if __name__ == "__main__":
    main()
