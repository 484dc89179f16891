"""How fast a ledger takes in and gives out records, and how much memory that needs.

    python -m tests.bench.ledger --rows 1000000 --stores sqlite,postgres

Prints one JSON object per store: rows/s of ``add_rows`` (records with prompt and completion, digests included), seconds
of ``view_pages`` over all of them, seconds of a second, unchanged import, seconds of the audit, and the peak resident
memory of the process in MiB. Each store runs in a process of its own. The rows are generated, which takes part of
``take_in_cpu_seconds``; the CPU time of a PostgreSQL server is in no figure but the wall-clock ones.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from curation.ledger import Ledger, NewRecord
from curation.records import canonical_json, record_id, user_message
from tests import postgres

_TEXT = """the parcel shipment customs broker invoice pallet truck driver depot route delay weather port container
label weight refund order number address signed received damaged missing late early today tomorrow please could you
tell me where is my why was it held at who can I call about"""
_WORDS = _TEXT.split()


def batches(rows: int, size: int) -> Iterator[list[NewRecord]]:
    """``rows`` records of about 25 words with a completion of about 30, the same every time."""
    draw = random.Random(7)
    texts = [" ".join(draw.choices(_WORDS, k=k)) for k in [18, 22, 25, 28, 32] * 400]
    for start in range(0, rows, size):
        yield [_record(n, texts) for n in range(start, min(start + size, rows))]


def _record(number: int, texts: list[str]) -> NewRecord:
    key = str(number)
    body = canonical_json(user_message(f"{texts[number * 7 % 2000]} {number}"))
    completion = f"{texts[number * 11 % 2000]} {number} {texts[number * 3 % 2000][:40]}"
    return NewRecord(
        record_id("bench", key=key), "bench", key, body, labels=[("candidate", completion, None)]
    )


def take_in(ledger: Ledger, rows: int, size: int) -> tuple[float, float]:
    """Seconds within ``add_rows``, and the longest of them, which is what a reviewer would wait for."""
    ingest = ledger.begin_ingest("bench", "bench.jsonl", "0" * 64, format="jsonl")
    spent, longest = 0.0, 0.0
    for batch in batches(rows, size):
        start = time.perf_counter()
        ledger.add_rows(ingest, batch)
        longest = max(longest, time.perf_counter() - start)
        spent += time.perf_counter() - start
    ledger.end_ingest(ingest)
    return spent, longest


def measure(url: str, rows: int, size: int) -> dict[str, float | int | str]:
    """All figures of one store."""
    with Ledger.create(url, workspace="bench", actor="bench") as ledger:
        cpu = time.process_time()
        added, longest = take_in(ledger, rows, size)
        added_cpu = time.process_time() - cpu
        start, cpu = time.perf_counter(), time.process_time()
        seen = sum(page.table.num_rows for page in ledger.view_pages(scrub_rule=None))
        paged, paged_cpu = time.perf_counter() - start, time.process_time() - cpu
        again, _ = take_in(ledger, rows, size)
        start = time.perf_counter()
        sound = not ledger.audit().problems
        audited = time.perf_counter() - start
    return {
        "store": "sqlite" if url.startswith("sqlite") else "postgres",
        "rows": rows,
        "batch": size,
        "add_rows_per_second": round(rows / added),
        "add_rows_seconds": round(added, 1),
        "take_in_cpu_seconds": round(added_cpu, 1),
        "longest_batch_seconds": round(longest, 2),
        "again_rows_per_second": round(rows / again),
        "view_rows": seen,
        "view_seconds": round(paged, 1),
        "view_cpu_seconds": round(paged_cpu, 1),
        "audit_seconds": round(audited, 1),
        "audit_sound": int(sound),
        "peak_rss_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }


def _child(url: str, rows: int, size: int) -> None:
    arguments = [
        sys.executable,
        "-m",
        "tests.bench.ledger",
        "--url",
        url,
        "--rows",
        str(rows),
        "--batch",
        str(size),
    ]
    subprocess.run(arguments, check=True)


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--batch", type=int, default=50_000)
    parser.add_argument("--stores", default="sqlite,postgres")
    parser.add_argument(
        "--folder", default=None, help="where the SQLite file goes; default: a temporary folder"
    )
    parser.add_argument("--url", default=None, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.url:
        print(json.dumps(measure(given.url, given.rows, given.batch)), flush=True)
        return
    if "sqlite" in given.stores:
        with tempfile.TemporaryDirectory(dir=given.folder) as folder:
            path = Path(folder) / "ledger.db"
            _child(f"sqlite:///{path}", given.rows, given.batch)
            print(json.dumps({"file_mib": os.path.getsize(path) >> 20}), flush=True)
    if "postgres" in given.stores:
        with postgres.server() as url:
            _child(url, given.rows, given.batch)


if __name__ == "__main__":
    main()
