"""Programs that the concurrency tests run beside each other, and kill.

Each acknowledged call is written to the worker's own log and synced before the next one starts: what the log holds, the
ledger must hold.
"""

from __future__ import annotations

import json
import os
import random
import sys
import time
from pathlib import Path

from curation.errors import ConflictError
from curation.ledger import Ledger


def acknowledge(log: int, **entry: object) -> None:
    os.write(log, json.dumps(entry).encode() + b"\n")
    os.fsync(log)


def review(url: str, log: int, worker: str, wanted: int, records: list[str]) -> None:
    """Decide about random records until ``wanted`` decisions are acknowledged, whatever others do meanwhile."""
    draw = random.Random(f"{worker}{os.getpid()}")
    with Ledger.open(url, actor=worker, busy_seconds=120) as ledger:
        for number in range(wanted):
            key = f"{worker}-{os.getpid()}-{number}"
            record = draw.choice(records)
            while True:
                version, _history = ledger.review_state(record)
                start = time.perf_counter()
                try:
                    done = ledger.review(record, version=version, action="edit", body=key, key=key)
                except ConflictError as lost:
                    if "locked" in str(lost):
                        raise
                    continue
                break
            seconds = time.perf_counter() - start
            acknowledge(log, key=key, record=record, version=done.version, seconds=seconds)
            time.sleep(draw.random() / 500)


def commit_snapshots(url: str, log: int, worker: str, wanted: int, records: list[str]) -> None:
    """Commit ``wanted`` snapshots, each on top of the head that was read before."""
    with Ledger.open(url, actor=worker, busy_seconds=120) as ledger:
        for number in range(wanted):
            name = f"{worker}-{os.getpid()}-{number}"
            while True:
                held = ledger.snapshots()
                parent = held[-1].name if held else ""
                try:
                    ledger.add_snapshot(name, rows=1, manifest_digest="d", parent=parent)
                except ConflictError as lost:
                    if "locked" in str(lost):
                        raise
                    continue
                break
            acknowledge(log, name=name)


def main() -> None:
    job, url, log_path, worker, wanted, records = sys.argv[1:7]
    log = os.open(log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    ids = Path(records).read_text().split()
    {"review": review, "snapshots": commit_snapshots}[job](url, log, worker, int(wanted), ids)


if __name__ == "__main__":
    main()
