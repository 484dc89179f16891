"""``make bench``: every benchmark in turn, each in a process of its own, so that peaks of memory are its own."""

from __future__ import annotations

import subprocess
import sys

BENCHES = (
    *("dedup", "pii", "voting", "label_models", "consensus", "train", "base"),
    *("snapshot", "ledger", "workspace", "label_studio"),
)


def main() -> None:
    """Run the named benchmarks, or all of them."""
    for name in sys.argv[1:] or BENCHES:
        print(f"== {name}", flush=True)
        subprocess.run([sys.executable, "-m", f"tests.bench.{name}"], check=False)


if __name__ == "__main__":
    main()
