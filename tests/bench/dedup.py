"""How fast, lean and complete de-duplication is beside plain datasketch, in one run.

    python -m tests.bench.dedup [--texts 20000] [--repeat 3] [--data FILE] [--ours]

Each tool gets the same texts and 256 permutations, and goes all the way: shingles, signatures, buckets, exact
verification, clusters. ``datasketch`` is MinHash.bulk, MinHashLSH with 32 bands of 8, insert, query, verify;
``datasketch, its banding`` lets it choose bands for the threshold. Each run has a process of its own, for its
peak memory. Recall and precision are over the pairs within clusters, against an exact join of all texts.

Texts are generated (130 words with the frequencies of language, three in ten with edited copies) unless
``--data`` names a file of JSON lines with ``text``, or ``prompt`` and ``completion``. Without it, news
articles with planted duplicates are measured too where they lie beside the project.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate, combinations
from pathlib import Path
from typing import Any

import numpy as np

from curation import shingles, text
from curation.minhash import DuplicateRule, components, group

RULE = DuplicateRule()
ARTICLES = Path("dedup-mccormick-articles") / "articles_2500.train"
Labels = Sequence[int]


def generated(count: int, seed: int = 0) -> list[str]:
    """``count`` texts of 130 words, shuffled; edited copies have 0 to 8 words replaced."""
    rng = random.Random(seed)
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ["".join(rng.choices(letters, k=max(1, round(rng.gauss(5.2, 2.2))))) for _ in range(30_000)]
    weights = list(accumulate(1 / (i + 5) for i in range(len(words))))
    texts: list[str] = []
    while len(texts) < count:
        base = rng.choices(words, cum_weights=weights, k=130)
        copies = rng.choice([1, 1, 2, 3]) if rng.random() < 0.3 else 0
        texts += [" ".join(base), *(edited(base, words, rng) for _ in range(copies))]
    del texts[count:]
    rng.shuffle(texts)
    return texts


def edited(base: list[str], words: list[str], rng: random.Random) -> str:
    copy = list(base)
    for _ in range(rng.randint(0, 8)):
        copy[rng.randrange(len(copy))] = rng.choice(words)
    return " ".join(copy)


def from_file(path: Path) -> list[str]:
    """The texts of a file: JSON lines, or lines that begin with an id."""
    lines = path.read_text(encoding="utf-8").splitlines()
    if not lines[0].startswith("{"):
        return [line.partition(" ")[2] for line in lines]
    rows = (json.loads(line) for line in lines)
    return [r["text"] if "text" in r else "\n".join((r["prompt"], r["completion"])) for r in rows]


# --- The tools ------------------------------------------------------------------------------------


def ours(texts: Sequence[str]) -> Labels:
    return [int(label) for label in group(texts, RULE).labels]


def datasketch_ours(texts: Sequence[str]) -> Labels:
    return datasketch(texts, params=(RULE.bands, RULE.rows))


def datasketch(texts: Sequence[str], params: tuple[int, int] | None = None) -> Labels:
    from datasketch import MinHash, MinHashLSH

    sets = [text.shingles(value, RULE.shingle) for value in texts]
    sketches = MinHash.bulk([[s.encode() for s in value] for value in sets], num_perm=256, seed=1)
    index = MinHashLSH(threshold=RULE.threshold, num_perm=256, params=params)
    pairs = []
    for i, sketch in enumerate(sketches):
        near = index.query(sketch)
        pairs += [(i, j) for j in near if text.jaccard(sets[i], sets[j]) >= RULE.threshold]
        index.insert(i, sketch)
    return components(len(texts), np.array(pairs, np.int64)).tolist()


TOOLS: dict[str, Callable[[Sequence[str]], Labels]] = {
    "tilth": ours,
    "datasketch": datasketch_ours,
    "datasketch, its banding": datasketch,
}


# --- The truth ------------------------------------------------------------------------------------


def exact(texts: Sequence[str]) -> Labels:
    """Clusters by all pairs at the threshold, without MinHash.

    Two sets of Jaccard index t share one of the ``size - ceil(t * size) + 1`` rarest members of each (prefix
    filtering, Bayardo, Ma, Srikant 2007), so only those are looked up.
    """
    sets = shingles.as_sets(shingles.shingle_hashes(texts, RULE.shingle))
    _, codes, holders = np.unique(sets[0], return_inverse=True, return_counts=True)
    index: dict[int, list[int]] = {}
    proposed: set[tuple[int, int]] = set()
    for i, (start, end) in enumerate(zip(sets[1][:-1], sets[1][1:], strict=True)):
        row = codes[start:end]
        rarest = row[np.lexsort((row, holders[row]))]
        for code in rarest[: len(row) - int(np.ceil(RULE.threshold * len(row) - 1e-9)) + 1].tolist():
            proposed.update((j, i) for j in index.get(code, ()))
            index.setdefault(code, []).append(i)
    pairs = np.array(sorted(proposed), np.int64).reshape(-1, 2)
    near = pairs[shingles.pair_jaccard(sets, pairs) >= RULE.threshold]
    return components(len(texts), near).tolist()


def pairs_of(labels: Labels) -> set[tuple[int, int]]:
    members: dict[int, list[int]] = {}
    for i, label in enumerate(labels):
        members.setdefault(label, []).append(i)
    return {pair for cluster in members.values() for pair in combinations(cluster, 2)}


def scores(labels: Labels, truth: set[tuple[int, int]]) -> dict[str, float]:
    found = pairs_of(labels)
    both = len(found & truth)
    return {"recall": both / max(len(truth), 1), "precision": both / max(len(found), 1)}


# --- Runs -----------------------------------------------------------------------------------------


def measure(tool: str, texts: Sequence[str], labels_to: Path) -> dict[str, float]:
    """CPU seconds and peak memory of this process, which should run nothing else."""
    before = peak_memory()
    start, wall = time.process_time(), time.perf_counter()
    labels = TOOLS[tool](texts)
    cpu, wall = time.process_time() - start, time.perf_counter() - wall
    labels_to.write_text(json.dumps(labels))
    return {"cpu_s": cpu, "wall_s": wall, "peak_mb": peak_memory(), "before_mb": before}


def peak_memory() -> float:
    """The most resident memory of this process so far, in MB.

    From the kernel where it tells: ``ru_maxrss`` begins with the size of the process that started this one.
    """
    status = Path("/proc/self/status")
    if status.exists():
        return int(status.read_text().split("VmHWM:")[1].split()[0]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def alone(tool: str, arguments: Iterable[str], labels_to: Path) -> dict[str, float]:
    """:func:`measure` in a process of its own, on one core."""
    command = [
        sys.executable,
        "-m",
        "tests.bench.dedup",
        "--one",
        tool,
        "--labels",
        str(labels_to),
        *arguments,
    ]
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    done = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, **threads})
    return dict(json.loads(done.stdout))


def compare(
    name: str, texts: list[str], arguments: list[str], tools: Iterable[str], repeat: int
) -> list[str]:
    """One line per tool: medians, and the spread of CPU time."""
    import tempfile

    truth = pairs_of(exact(texts))
    lines = [f"{name}: {len(texts):,} texts, {len(truth):,} pairs within clusters"]
    with tempfile.TemporaryDirectory() as folder:
        labels = Path(folder) / "labels.json"
        for tool in tools:
            runs = [alone(tool, arguments, labels) for _ in range(repeat)]
            quality = scores(json.loads(labels.read_text()), truth)
            lines.append(line_of(tool, runs, quality))
    return lines


def line_of(tool: str, runs: list[dict[str, float]], quality: dict[str, float]) -> str:
    cpu = [run["cpu_s"] for run in runs]
    peak = statistics.median(run["peak_mb"] for run in runs)
    over = statistics.median(run["peak_mb"] - run["before_mb"] for run in runs)
    return (
        f"  {tool:24} {statistics.median(cpu):8.2f} s CPU"
        f" ({min(cpu):.2f} to {max(cpu):.2f}, {len(cpu)} runs)"
        f"  peak {peak:6.0f} MB (+{over:.0f})"
        f"  recall {quality['recall']:.4f}  precision {quality['precision']:.4f}"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the comparison; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.dedup")
    parser.add_argument("--texts", type=int, default=20_000)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--ours", action="store_true", help="leave datasketch out")
    parser.add_argument("--one", choices=TOOLS, help=argparse.SUPPRESS)
    parser.add_argument("--labels", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    texts = from_file(options.data) if options.data else generated(options.texts)
    if options.one:
        print(json.dumps(measure(options.one, texts, options.labels)))
        return 0
    tools = ["tilth"] if options.ours else list(TOOLS)
    for name, corpus, passed in corpora(options, texts):
        print("\n".join(compare(name, corpus, passed, tools, options.repeat)), flush=True)
    return 0


def corpora(options: Any, texts: list[str]) -> Iterable[tuple[str, list[str], list[str]]]:
    """What is measured: a name, the texts, and the arguments that make a run read the same ones."""
    if options.data:
        yield str(options.data), texts, ["--data", str(options.data)]
        return
    yield "generated", texts, ["--texts", str(options.texts)]
    beside = Path(os.environ.get("TILTH_DATA") or Path(__file__).parents[2].parent / "shared" / "data")
    if (beside / ARTICLES).exists():
        yield ARTICLES.name, from_file(beside / ARTICLES), ["--data", str(beside / ARTICLES)]


if __name__ == "__main__":
    sys.exit(main())
