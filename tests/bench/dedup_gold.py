"""What de-duplication finds where people know what is the same: prompts made from one example under many templates,
bibliographic records of one paper, descriptions of one set of facts. For :mod:`tests.bench.dedup`.

The default rule, and the best of a grid chosen on other rows than those it is scored on (even against odd examples;
the set's validation pairs against its test pairs), beside datasketch as its README uses it: 128 permutations,
threshold 0.8, no verification.
"""

from __future__ import annotations

import csv
import json
import random
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import combinations
from pathlib import Path

import numpy as np

from curation import neighbours, shingles, text
from curation.grouping import components, group
from curation.minhash import DuplicateRule
from tests.bench.dedup import SHARED

Pair = tuple[int, int]
Labeller = Callable[[Sequence[str]], Sequence[int]]
THRESHOLDS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
SHINGLES = (1, 2, 3, 5)
FAMILIES = (
    *("adversarial_qa_dbert", "adversarial_qa_dbidaf", "common_gen", "commonsense_qa", "cosmos_qa"),
    *("dbpedia_14", "paws_labeled_final", "quartz", "ropes", "wiki_bio", "wiqa"),
)


def ours(threshold: float, shingle: int) -> Labeller:
    rule = DuplicateRule(threshold=threshold, shingle=shingle)
    return lambda texts: group(texts, rule).labels.tolist()


def datasketch_default(texts: Sequence[str]) -> Sequence[int]:
    from datasketch import MinHash, MinHashLSH

    sets = [[s.encode() for s in text.shingles(value, 5)] for value in texts]
    index, pairs = MinHashLSH(threshold=0.8, num_perm=128), []
    for i, sketch in enumerate(MinHash.bulk(sets, num_perm=128)):
        pairs += [(i, j) for j in index.query(sketch)]
        index.insert(i, sketch)
    return components(len(texts), np.array(pairs, np.int64)).tolist()


def score(
    labels: Sequence[int], gold: set[Pair], asked: set[Pair] | None = None
) -> tuple[float, float, float]:
    """(precision, recall, F1) of the pairs within clusters, or of the pairs ``asked`` alone."""
    members: dict[int, list[int]] = {}
    for i, label in enumerate(labels):
        members.setdefault(label, []).append(i)
    pairs = {pair for cluster in members.values() for pair in combinations(cluster, 2)}
    found = pairs if asked is None else pairs & asked
    right = len(found & gold)
    precision, recall = right / max(len(found), 1), right / max(len(gold), 1)
    return precision, recall, 2 * precision * recall / max(precision + recall, 1e-9)


# --- Prompts of one example under many templates ----------------------------------------------------


def family(name: str) -> list[list[str]]:
    """The examples of a family, each under every template whose file is in step with the first."""
    folder = SHARED / "instr-p3-permissive"
    files = [_rows(path) for path in sorted(folder.glob(f"{name}_*.jsonl"))]
    count = min(map(len, files))
    aligned = [rows for rows in files if rows is files[0] or _in_step(files[0], rows, count)]
    return [[rows[i] for rows in aligned] for i in range(count)]


def _rows(path: Path) -> list[str]:
    rows = (json.loads(line) for line in path.read_text(encoding="utf-8").splitlines())
    return [f"{row['prompt']}\n{row['completion']}" for row in rows]


def _in_step(first: list[str], other: list[str], count: int) -> bool:
    """Whether row i of both is the same example: it shares more words with it than with one far away."""

    def alike(shift: int) -> float:
        pairs = (
            (set(text.tokens(first[i])), set(text.tokens(other[(i + shift) % count]))) for i in range(count)
        )
        return sum(text.jaccard(a, b) for a, b in pairs) / count

    return alike(0) > 1.2 * alike(count // 2)


def shuffled(examples: Sequence[Sequence[str]], seed: int = 0) -> tuple[list[str], set[Pair]]:
    """All texts in random order, and the pairs that are one example."""
    items = [(number, value) for number, row in enumerate(examples) for value in row]
    random.Random(seed).shuffle(items)
    places: dict[int, list[int]] = {}
    for place, (number, _) in enumerate(items):
        places.setdefault(number, []).append(place)
    return [value for _, value in items], {p for same in places.values() for p in combinations(same, 2)}


def best_of(texts: Sequence[str], gold: set[Pair], asked: set[Pair] | None = None) -> tuple[float, int]:
    """The threshold and shingle of the best F1."""
    grid = [(t, n) for t in THRESHOLDS for n in SHINGLES]
    return max(grid, key=lambda point: score(ours(*point)(texts), gold, asked)[2])


def families() -> Iterator[str]:
    yield "instr-p3-permissive: precision, recall and F1 of pairs of one example under two templates"
    for name in FAMILIES:
        examples = family(name)
        tuned, scored = shuffled(examples[::2]), shuffled(examples[1::2])
        best = best_of(*tuned)
        count = f"{len(examples)} x {len(examples[0])}"
        yield _line(name, count, best, lambda labeller, scored=scored: score(labeller(scored[0]), scored[1]))


def _line(
    name: str, count: str, best: tuple[float, int], scored: Callable[[Labeller], tuple[float, float, float]]
) -> str:
    parts = (
        ("0.8", ours(0.8, 5)),
        (f"best {best[0]}, {best[1]}-word", ours(*best)),
        ("datasketch", datasketch_default),
    )
    told = "  ".join("{}: {:.2f} {:.2f} {:.2f}".format(label, *scored(labeller)) for label, labeller in parts)
    return f"  {name:22} {count:>9}  {told}"


# --- Records of one paper ---------------------------------------------------------------------------


def papers(split: str) -> tuple[list[str], set[Pair], set[Pair]]:
    """The texts of a split of DBLP-ACM, the pairs that are one paper, and all pairs that were judged."""
    places: dict[str, int] = {}
    gold, asked = set(), set()
    path = SHARED / "dedup-er-magellan" / "Structured-DBLP-ACM" / f"{split}.txt"
    for line in path.read_text(encoding="utf-8").splitlines():
        one, other, same = line.split("\t")
        a, b = (places.setdefault(_plain(side), len(places)) for side in (one, other))
        asked.add((min(a, b), max(a, b)))
        if same == "1":
            gold.add((min(a, b), max(a, b)))
    return list(places), gold, asked


def _plain(record: str) -> str:
    return re.sub(r"\bCOL \w+ VAL\b", " ", record)


def records() -> Iterator[str]:
    yield "dedup-er-magellan, DBLP-ACM: precision, recall and F1 on the judged pairs of the test split"
    best = best_of(*papers("valid"))
    texts, gold, asked = papers("test")
    yield _line("Structured-DBLP-ACM", str(len(asked)), best, lambda made: score(made(texts), gold, asked))


# --- One meaning in other words ---------------------------------------------------------------------


def other_words(count: int = 1500) -> Iterator[str]:
    """Descriptions of restaurants: two of one set of facts mean the same. By hidden states of the bundled base, as they
    are and without what all of them share."""
    from training.score import embed

    (path,) = (SHARED / "instr-e2e-nlg").glob("*dev*.csv")
    with path.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    random.Random(0).shuffle(rows)
    facts = np.array([row["mr"] for row in rows[:count]])
    same = facts[:, None] == facts[None]
    gold = (int(same.sum()) - count) // 2
    states = embed("bundled", [row["ref"] for row in rows[:count]])
    yield f"instr-e2e-nlg, {count} texts: pairs of one set of facts, precision and recall by cosine"
    for name, vectors in (("as they are", states), ("isotropic", neighbours.isotropic(states))):
        pairs, cosine = neighbours.alike(vectors, 0.8)
        right = same[pairs[:, 0], pairs[:, 1]]
        told = (
            f"{least}: {right[cosine >= least].mean():.2f} {right[cosine >= least].sum() / gold:.3f}"
            for least in (0.8, 0.9, 0.95)
        )
        yield f"  {name:12} {'  '.join(told)}"


def lines() -> Iterable[str]:
    """All, or a word that the data is not there."""
    if not SHARED.exists():
        yield f"no data at {SHARED}"
        return
    shingles.kernels(shingles.WORTH_COMPILING)  # small sets, but a grid of rules over each
    yield from records()
    yield from other_words()
    yield from families()
