"""Other people's de-duplication over the same texts, for :mod:`tests.bench.dedup`: run by the Python of the
environment that ``make bench-peers`` makes, which has none of this project in it.

    python dedup_peers.py TOOL TEXTS.jsonl LABELS.json

Prints CPU seconds and peak memory as JSON; LABELS gets the smallest member of each text's cluster, or null where the
tool makes signatures alone.
"""

from __future__ import annotations

import json
import re
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

PERMUTATIONS, BANDS, SHINGLE, THRESHOLD = 256, 32, 5, 0.8
Labels = list[int] | None


def shingled(text: str) -> list[str]:
    words = text.lower().split()
    return list({" ".join(words[i : i + SHINGLE]) for i in range(max(len(words) - SHINGLE + 1, 1))})


def rensa(texts: list[str], path: Path) -> Labels:
    """rensa's deduplicator: shingles in Python, everything else in Rust; no exact verification."""
    from rensa import RMinHash, RMinHashDeduplicator

    sketches = RMinHash.from_token_sets([shingled(text) for text in texts], PERMUTATIONS, 42)
    index = RMinHashDeduplicator(
        threshold=THRESHOLD, num_perm=PERMUTATIONS, use_lsh=True, num_bands=BANDS, seed=42
    )
    fresh = index.add_pairs([(str(i), sketch) for i, sketch in enumerate(sketches)])
    labels = list(range(len(texts)))
    for i, is_fresh in enumerate(fresh):
        if not is_fresh:
            labels[i] = min([labels[int(key)] for key in index.get_duplicates(sketches[i])], default=i)
    return labels


def daft(texts: list[str], path: Path) -> Labels:
    """daft's minhash: signatures alone, with its own shingling; buckets and clusters would come on top."""
    import daft as package

    frame = package.from_pydict({"text": texts})
    column = package.col("text").minhash(num_hashes=PERMUTATIONS, ngram_size=SHINGLE, seed=1)
    frame.select(column).to_arrow()
    return None


def text_dedup(texts: list[str], path: Path) -> Labels:
    """text-dedup's MinHash script, reading and writing files as it does; no exact verification."""
    from text_dedup import minhash

    with tempfile.TemporaryDirectory() as folder:
        given = {
            "path": "json",
            "data_files": str(path),
            "split": "train",
            "column": "text",
            "cache_dir": f"{folder}/cache",
            "output": f"{folder}/out",
            "num_perm": PERMUTATIONS,
            "ngram": SHINGLE,
            "threshold": THRESHOLD,
            "b": BANDS,
            "r": PERMUTATIONS // BANDS,
            "min_length": 0,
            "num_proc": 1,
        }
        arguments = [part for name, value in given.items() for part in (f"--{name}", str(value))]
        minhash.main(arguments, standalone_mode=False)
    return [minhash.uf.find(i) for i in range(len(texts))]


TOOLS = {"text-dedup": text_dedup, "rensa deduplicator": rensa, "daft minhash (signatures only)": daft}


def cpu() -> float:
    """CPU seconds of this process and of those that it has waited for."""
    both = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(used.ru_utime + used.ru_stime for used in both)


def main(tool: str, path: str, labels_to: str) -> None:
    texts: list[str] = [json.loads(line)["text"] for line in Path(path).read_text().splitlines()]
    start, wall = cpu(), time.perf_counter()
    labels: Any = TOOLS[tool](texts, Path(path))
    used, wall = cpu() - start, time.perf_counter() - wall
    Path(labels_to).write_text(json.dumps(labels))
    status = Path("/proc/self/status")
    found = re.search(r"VmHWM:\s+(\d+)", status.read_text()) if status.exists() else None
    peak = int(found[1]) / 1024 if found else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print("\n" + json.dumps({"cpu_s": used, "wall_s": wall, "peak_mb": peak, "before_mb": 0.0}))


if __name__ == "__main__":
    main(*sys.argv[1:])
