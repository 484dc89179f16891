"""How fast, lean and complete de-duplication is beside the tools that people use, in one run.

    python -m tests.bench.dedup [--texts 20000] [--repeat 3] [--data FILE] [--ours]
    python -m tests.bench.dedup --grow 10000,30000,100000      # the exponent of growth
    python -m tests.bench.dedup --file 1000000                 # JSONL in, JSONL out, on all cores
    python -m tests.bench.dedup --gold                         # precision and recall on real families and pairs

Each tool gets the same texts, 256 permutations and a core, and goes all the way: shingles, signatures, buckets,
exact verification, clusters. ``datasketch`` is MinHash.bulk, MinHashLSH with 32 bands of 8, insert, query, verify;
``datasketch, its banding`` lets it choose bands for the threshold. text-dedup, rensa and daft run in an environment
of their own (``make bench-peers``), do not verify, and daft's is signatures alone. Each run has a process of its
own, for its peak memory. Recall and precision are over the pairs within clusters, against an exact join of all texts.

Texts have 130 words, three in ten with edited copies: sentences of novels where these lie beside the project, else
words with the frequencies of language; or those of ``--data``, a file of JSON lines with ``text``, or ``prompt``
and ``completion``.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import random
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate, combinations
from pathlib import Path

import numpy as np

from curation import shingles, text
from curation.grouping import components, group
from curation.minhash import DuplicateRule

RULE = DuplicateRule()
ROOT = Path(__file__).parents[2]
SHARED = Path(os.environ.get("TILTH_DATA") or ROOT.parent / "shared" / "data")
PEERS = ROOT / ".venv-bench" / "bin" / "python"
PEER_TOOLS = ("text-dedup", "rensa deduplicator", "daft minhash (signatures only)")
Labels = Sequence[int]


def texts_made(count: int) -> list[str]:
    """Texts of 130 words: of real sentences where there are some."""
    return composed(count) if (SHARED / "text-eltec-eng").exists() else generated(count)


def composed(count: int, seed: int = 0) -> list[str]:
    """``count`` texts of 130 words, shuffled: sentences of novels in any order; three in ten with edited copies."""
    rng = random.Random(seed)
    with gzip.open(SHARED / "text-eltec-eng" / "novels.txt.gz", "rt", encoding="utf-8") as file:
        sentences = [s.split() for s in re.split(r"(?<=[.!?])\s+", file.read())]
    sentences = [sentence for sentence in sentences if len(sentence) > 3]
    words = [rng.choice(rng.choice(sentences)) for _ in range(30_000)]

    def base() -> list[str]:
        text: list[str] = []
        while len(text) < 130:
            text += rng.choice(sentences)
        return text[:130]

    return _with_copies(count, base, words, rng)


def _with_copies(
    count: int, base: Callable[[], list[str]], words: list[str], rng: random.Random
) -> list[str]:
    texts: list[str] = []
    while len(texts) < count:
        original = base()
        copies = rng.choice([1, 1, 2, 3]) if rng.random() < 0.3 else 0
        texts += [" ".join(original), *(edited(original, words, rng) for _ in range(copies))]
    del texts[count:]
    rng.shuffle(texts)
    return texts


def generated(count: int, seed: int = 0) -> list[str]:
    """``count`` texts of 130 words, shuffled; edited copies have 0 to 8 words replaced."""
    rng = random.Random(seed)
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ["".join(rng.choices(letters, k=max(1, round(rng.gauss(5.2, 2.2))))) for _ in range(30_000)]
    weights = list(accumulate(1 / (i + 5) for i in range(len(words))))
    return _with_copies(count, lambda: rng.choices(words, cum_weights=weights, k=130), words, rng)


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


def alone(tool: str, path: Path, labels_to: Path) -> dict[str, float]:
    """:func:`measure` in a process of its own, on one core."""
    if tool in PEER_TOOLS:
        command = [
            str(PEERS),
            str(Path(__file__).with_name("dedup_peers.py")),
            tool,
            str(path),
            str(labels_to),
        ]
    else:
        command = [sys.executable, "-m", "tests.bench.dedup", "--one", tool, "--labels", str(labels_to)]
        command += ["--data", str(path)]
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS", "NUMBA_NUM_THREADS")
    quiet = {"HF_HUB_OFFLINE": "1", "DAFT_PROGRESS_BAR": "0", **dict.fromkeys(names, "1")}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **quiet})
    if done.returncode:
        raise RuntimeError(f"{tool} failed: {done.stderr[-500:]}")
    return dict(json.loads(done.stdout.strip().splitlines()[-1]))


def write_texts(texts: Sequence[str], path: Path) -> None:
    with path.open("w", encoding="utf-8") as file:
        for number, value in enumerate(texts):
            file.write(json.dumps({"id": f"r{number}", "text": value}, ensure_ascii=False) + "\n")


def compare(name: str, texts: list[str], tools: Iterable[str], repeat: int) -> Iterable[str]:
    """One line per tool: medians, the spread of CPU time, and how many times the CPU of the first."""
    truth = pairs_of(exact(texts))
    yield f"{name}: {len(texts):,} texts, {len(truth):,} pairs within clusters"
    first = 0.0
    with tempfile.TemporaryDirectory() as folder:
        labels, path = Path(folder) / "labels.json", Path(folder) / "texts.jsonl"
        write_texts(texts, path)
        for tool in tools:
            if tool in PEER_TOOLS and not PEERS.exists():
                yield f"  {tool:30} not installed: make bench-peers"
                continue
            runs = [alone(tool, path, labels) for _ in range(repeat)]
            first = first or statistics.median(run["cpu_s"] for run in runs)
            found = json.loads(labels.read_text())
            yield line_of(tool, runs, None if found is None else scores(found, truth), first)


def line_of(tool: str, runs: list[dict[str, float]], quality: dict[str, float] | None, first: float) -> str:
    cpu = [run["cpu_s"] for run in runs]
    peak = statistics.median(run["peak_mb"] for run in runs)
    told = f"recall {quality['recall']:.4f}  precision {quality['precision']:.4f}" if quality else ""
    return (
        f"  {tool:30} {statistics.median(cpu):8.2f} s CPU"
        f" ({min(cpu):.2f} to {max(cpu):.2f}, {len(cpu)} runs)"
        f"  {statistics.median(cpu) / first:5.1f} x  peak {peak:6.0f} MB  {told}"
    )


def growth(sizes: Sequence[int], repeat: int) -> Iterable[str]:
    """CPU seconds by size, and the exponent of a power law through them, without what a process costs to start."""
    points = []
    with tempfile.TemporaryDirectory() as folder:
        labels, path = Path(folder) / "labels.json", Path(folder) / "texts.jsonl"
        write_texts(texts_made(100), path)
        start = min(alone("tilth", path, labels)["cpu_s"] for _ in range(3))
        for size in sizes:
            write_texts(texts_made(size), path)
            cpu = [alone("tilth", path, labels)["cpu_s"] for _ in range(repeat)]
            points.append((size, statistics.median(cpu)))
            yield f"  {size:>9,} texts  {points[-1][1]:7.2f} s CPU ({min(cpu):.2f} to {max(cpu):.2f})"
    x, y = np.log([size for size, _ in points]), np.log([max(cpu - start, 0.001) for _, cpu in points])
    slope = np.polyfit(x, y, 1)[0]
    yield f"  grows with the number of texts to the power of {slope:.2f} (start of {start:.2f} s left out)"


def whole_file(count: int, repeat: int) -> Iterable[str]:
    """``tilth dedup``, JSON lines in and out, here and in processes: wall, CPU, peak memory of the largest process."""
    with tempfile.TemporaryDirectory() as folder:
        path, out = Path(folder) / "texts.jsonl", Path(folder) / "kept.jsonl"
        write_texts(texts_made(count), path)
        yield f"{count:,} texts of 130 words, {path.stat().st_size / 1e9:.2f} GB of JSON lines"
        for engine in ("processes", "here"):
            runs = [_one_file(path, out, engine) for _ in range(repeat)]
            wall, cpu, peak = (statistics.median(run[i] for run in runs) for i in range(3))
            yield (
                f"  --engine {engine:10} {wall:6.1f} s wall ({min(r[0] for r in runs):.1f} to"
                f" {max(r[0] for r in runs):.1f})  {cpu:6.1f} s CPU  {peak / 1024:.2f} GB in all processes at once"
            )


def _one_file(path: Path, out: Path, engine: str) -> tuple[float, float, float]:
    command = [sys.executable, "-m", "apps.cli", "--quiet", "dedup", str(path), "--out", str(out)]
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    child = subprocess.Popen([*command, "--engine", engine], stdout=subprocess.DEVNULL, cwd=ROOT)
    peak = 0.0
    while child.poll() is None:
        peak = max(peak, _resident(child.pid))
        time.sleep(0.2)
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    if child.returncode:
        raise RuntimeError(f"tilth dedup ended with {child.returncode}")
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, peak


def _resident(pid: int) -> float:
    """Resident memory of a process and its children in MB; 0 where the kernel does not tell."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return 0.0
    found = re.search(r"VmRSS:\s+(\d+)", status)
    return (int(found[1]) / 1024 if found else 0.0) + sum(_resident(int(child)) for child in children)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the comparison; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.dedup")
    parser.add_argument("--texts", type=int, default=20_000)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--ours", action="store_true", help="leave the other tools out")
    parser.add_argument("--tools", default="", help="these tools alone, by comma")
    parser.add_argument("--grow", default="", help="sizes, by comma")
    parser.add_argument("--file", type=int, default=0, help="texts of a file that is read and written")
    parser.add_argument("--gold", action="store_true", help="real families and pairs")
    parser.add_argument("--one", choices=TOOLS, help=argparse.SUPPRESS)
    parser.add_argument("--labels", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.one:
        print(json.dumps(measure(options.one, from_file(options.data), options.labels)))
        return 0
    for line in _lines(options):
        print(line, flush=True)
    return 0


def _lines(options: argparse.Namespace) -> Iterable[str]:
    if options.grow:
        return growth([int(size) for size in options.grow.split(",")], options.repeat)
    if options.file:
        return whole_file(options.file, options.repeat)
    if options.gold:
        from tests.bench import dedup_gold

        return dedup_gold.lines()
    tools = options.tools.split(",") if options.tools else [*TOOLS, *PEER_TOOLS]
    tools = ["tilth"] if options.ours else tools
    texts = from_file(options.data) if options.data else texts_made(options.texts)
    return compare(str(options.data or "made texts"), texts, tools, options.repeat)


if __name__ == "__main__":
    sys.exit(main())
