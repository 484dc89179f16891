"""Consensus against other implementations, in one run: classes on crowd-snow2008, free text on crowd-wsa2019, a million answers.

Run: python -m tests.bench.consensus [scale|classes|texts]. Prints one JSON object. Without ../shared/data (or
$TILTH_DATA) the real sets are left out, saying so. crowd-kit's text aggregators get TF-IDF vectors of words and of
characters, each; its HRRASA needs a small repair to run on pandas 3.
"""

from __future__ import annotations

import csv
import json
import os
import re
import resource
import sys
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from curation.calibration import calibration_error
from curation.consensus import MODELS, Answers, TextRule, agree, agree_on_text

DATA = Path(os.environ.get("TILTH_DATA", Path(__file__).resolve().parents[3] / "shared" / "data"))


def table(path: Path) -> list[dict[str, str]]:
    """The rows of a tab-separated file."""
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))


# Classes ----------------------------------------------------------------------------------------------------


def classes(name: str) -> dict[str, Any]:
    """Accuracy and calibration error of every model, and crowd-kit's accuracy beside them."""
    import pandas as pd
    from crowdkit import aggregation

    rows = [(r["orig_id"], r["!amt_worker_ids"], r["response"], r["gold"]) for r in table(DATA / name)]
    gold = {item: right for item, _, _, right in rows}
    answers = Answers.of(row[:3] for row in rows)
    ours = {}
    for model in MODELS:
        found = agree(answers, model)
        right = [answers.labels[x] == gold[i] for i, x in zip(answers.items, found.label, strict=True)]
        ours[model] = {
            "accuracy": mean(right),
            "ece": round(calibration_error(found.confidence, right) or 0, 4),
        }
    frame = pd.DataFrame([row[:3] for row in rows], columns=["task", "worker", "label"])
    theirs = {}
    for kit in ("MajorityVote", "DawidSkene", "MACE", "GLAD"):
        labels = getattr(aggregation, kit)().fit_predict(frame)
        theirs[kit] = mean([label == gold[item] for item, label in labels.items()])
    return {"items": len(gold), "answers": len(rows), "ours": ours, "crowd-kit": theirs}


# Free text --------------------------------------------------------------------------------------------------


def texts(task: str) -> dict[str, Any]:
    """Mean GLEU and token F1 to gold of ours and of others, and how far ours is ahead of each, by paired bootstrap."""
    folder = DATA / "crowd-wsa2019"
    rows = table(folder / f"CrowdWSA2019_{task}_label_anonymous.tsv")
    triples = [(r["sentence"], r["worker"], r["workeranswer"]) for r in rows]
    gold = {r["sentence"]: r["trueanswer"] for r in table(folder / f"CrowdWSA2019_{task}_gt.tsv")}
    answers = Answers.of(triples)
    scored = {
        "ours": scores(kept(answers, None), gold),
        "plain medoid": scores(kept(answers, TextRule(sharpness=0.0, rounds=0)), gold),
        **{name: scores(found, gold) for name, found in crowd_kit(triples).items()},
    }
    anyone: dict[str, list[tuple[float, float]]] = {}
    for item, _, text in triples:
        anyone.setdefault(item, []).append(nearness(text, gold[item]))
    scored["random annotator"] = np.array([np.mean(anyone[item], axis=0) for item in gold])
    return {
        "mean": {name: [round(float(x), 4) for x in one.mean(0)] for name, one in scored.items()},
        "ours minus each [95%]": {
            name: compared(scored["ours"], other) for name, other in scored.items() if name != "ours"
        },
    }


def compared(ours: np.ndarray, other: np.ndarray) -> dict[str, Any]:
    """The difference in GLEU and in token F1 with its 95% interval, and on how many items the two differ at all."""
    apart = ours - other
    return {
        "GLEU": interval(apart[:, 0]),
        "token F1": interval(apart[:, 1]),
        "items": int((np.abs(apart) > 1e-12).any(1).sum()),
    }


def kept(answers: Answers, rule: TextRule | None) -> dict[str, str]:
    """The text that stands for each item."""
    found = agree_on_text(answers, rule)
    return {
        item: answers.labels[answers.label[row]]
        for item, row in zip(answers.items, found.chosen, strict=True)
    }


def crowd_kit(triples: list[tuple[str, str, str]]) -> dict[str, dict[str, str]]:
    """What crowd-kit's text aggregators choose (ROVER composes), by name and kind of vector."""
    import pandas as pd
    from crowdkit.aggregation import ROVER, TextHRRASA, TextRASA
    from sklearn.feature_extraction.text import TfidfVectorizer

    repair_hrrasa()
    frame = pd.DataFrame(triples, columns=["task", "worker", "text"])
    found = {"crowd-kit ROVER": dict(ROVER(words, " ".join).fit_predict(frame))}
    kinds = {"words": {"ngram_range": (1, 2)}, "characters": {"analyzer": "char_wb", "ngram_range": (2, 4)}}
    for kind, options in kinds.items():
        vectors = TfidfVectorizer(**options).fit(frame.text)

        def encode(text: str, vectors: Any = vectors) -> Any:
            return vectors.transform([text]).toarray()[0]

        for aggregator in (TextRASA, TextHRRASA):
            name = f"crowd-kit {aggregator.__name__}, {kind}"
            found[name] = dict(aggregator(encoder=encode).fit_predict(frame, None))
    return found


def repair_hrrasa() -> None:
    """crowd-kit 1.4.2 asks pandas for a float column of arrays, which pandas 3 refuses: let such a column be."""
    import pandas as pd
    from crowdkit.aggregation.embeddings import hrrasa

    class Lenient:
        def __getattr__(self, name: str) -> Any:
            return getattr(pd, name)

        @staticmethod
        def Series(data: Any = None, *args: Any, dtype: Any = None, **options: Any) -> Any:
            try:
                return pd.Series(data, *args, dtype=dtype, **options)
            except (TypeError, ValueError):
                return pd.Series(data, *args, **options)

    hrrasa.pd = Lenient()


def words(text: str) -> list[str]:
    """Lower-case words and signs; an apostrophe stays with what follows it, as in the sets' gold."""
    return re.findall(r"[a-z0-9']+|[^\sa-z0-9]", text.lower().replace(" '", "'"))


def nearness(text: str, gold: str) -> tuple[float, float]:
    """GLEU (Wu et al. 2016) and F1 of the bags of words."""
    from nltk.translate.gleu_score import sentence_gleu

    ours, right = words(text), words(gold)
    shared = sum((Counter(ours) & Counter(right)).values())
    return sentence_gleu([right], ours), 2 * shared / (len(ours) + len(right))


def scores(found: Mapping[str, str], gold: Mapping[str, str]) -> np.ndarray:
    """``(items, 2)``: GLEU and token F1 to gold."""
    return np.array([nearness(found[item], right) for item, right in gold.items()])


def interval(differences: np.ndarray, draws: int = 2000) -> list[float]:
    """Mean and 95% bounds by resampling items."""
    rng = np.random.default_rng(0)
    again = differences[rng.integers(0, len(differences), (draws, len(differences)))].mean(1)
    return [round(float(x), 4) for x in (differences.mean(), *np.percentile(again, [2.5, 97.5]))]


# Scale ------------------------------------------------------------------------------------------------------


def scale(rows: int = 1_000_000) -> dict[str, Any]:
    """The command over so many answers: 200,000 items, 2,000 annotators, four classes."""
    import subprocess

    draw = np.random.default_rng(0)
    item = np.repeat(np.arange(rows // 5), 5)
    truth = draw.integers(0, 4, rows // 5)
    annotator = draw.integers(0, 2000, rows)
    right = draw.random(rows) < draw.beta(6, 2, 2000)[annotator]
    label = np.where(right, truth[item], draw.integers(0, 4, rows))
    with TemporaryDirectory() as folder:
        source, out = Path(folder) / "answers.jsonl", Path(folder) / "agreed.jsonl"
        with open(source, "w", encoding="utf-8") as file:
            for i, a, x in zip(item.tolist(), annotator.tolist(), label.tolist(), strict=True):
                file.write(f'{{"item":"i{i}","annotator":"a{a}","label":"c{x}"}}\n')
        began = time.perf_counter()
        command = [
            sys.executable,
            "-m",
            "apps.cli",
            "--json",
            "--quiet",
            "consensus",
            str(source),
            "--out",
            str(out),
        ]
        told = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
        seconds = time.perf_counter() - began
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        found = [json.loads(line) for line in out.read_text().splitlines()]
    hits = [row["label"] == f"c{truth[int(row['item'][1:])]}" for row in found]
    return {
        "answers": rows,
        "wall_seconds": round(seconds, 1),
        "cpu_seconds": round(used.ru_utime + used.ru_stime, 1),
        "peak_mib": used.ru_maxrss // 1024,
        "accuracy": mean(hits),
        "model": told["model"],
    }


def mean(hits: list[bool]) -> float:
    """A share, to four places."""
    return round(float(np.mean(hits)), 4)


def main() -> None:
    """Measure and print."""
    parts = sys.argv[1:] or ["scale", "classes", "texts"]
    result: dict[str, Any] = {"scale": scale()} if "scale" in parts else {}
    if not DATA.is_dir():
        print(f"no data at {DATA}: the real sets are left out", file=sys.stderr)
        parts = []
    for name in ("rte", "wsd") if "classes" in parts else ():
        result[name] = classes(f"crowd-snow2008/{name}.standardized.tsv")
    for task in ("T1", "T2") if "texts" in parts else ():
        result[task] = texts(task)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
