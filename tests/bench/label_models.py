"""Label models on real votes: accuracy with and without gold, calibration, and paired bootstraps against majority and Snorkel.

Run: python -m tests.bench.label_models. Needs ../shared/data (or $TILTH_DATA). Whatever learns from gold is cross-validated.
Majority is scored with its ties shared out evenly, so that no order of classes flatters or harms it. Prints one JSON object.
"""

from __future__ import annotations

import csv
import json
import re
import sys
from typing import Any

import numpy as np

from curation.calibration import calibration_error
from curation.voting import ABSTAIN, MODELS, Votes, label, read_gold, read_votes
from curation.voting.matrix import class_counts
from tests.bench.consensus import DATA, interval


def youtube() -> tuple[Votes, np.ndarray]:
    """1,586 comments, ten functions."""
    rows = json.loads((DATA / "ws-wrench-youtube" / "train.json").read_text(encoding="utf-8")).values()
    votes = read_votes([row["weak_labels"] for row in rows])
    return votes, read_gold([row["label"] for row in rows], votes.classes)


def sms() -> tuple[Votes, np.ndarray]:
    """4,502 messages, 73 rules that people wrote."""
    folder = DATA / "ws-lfr-sms"
    with open(folder / "train.csv", newline="", encoding="utf-8", errors="replace") as file:
        rows = list(csv.DictReader(file))
    lines = (folder / "rule.txt").read_text(encoding="utf-8", errors="replace").splitlines()
    rules = [(line.split("\t")[0], re.compile(line.split("\t")[1])) for line in lines if "\t" in line]
    said = [[name if rule.search(row["v2"].lower()) else None for name, rule in rules] for row in rows]
    votes = read_votes(said, classes=["ham", "spam"])
    return votes, read_gold([row["v1"] for row in rows], votes.classes)


def head_count(votes: Votes, gold: np.ndarray) -> np.ndarray:
    """How right the majority is on each row: 1, 0, or a share where classes tie."""
    counts = class_counts(votes.matrix, len(votes.classes))
    top = counts == counts.max(1, keepdims=True)
    return top[np.arange(len(gold)), gold] / top.sum(1)


def measure(votes: Votes, gold: np.ndarray) -> dict[str, Any]:
    """Every model without gold, and the ones that use it; on rows with a vote."""
    voted = (votes.matrix != ABSTAIN).any(1)
    majority = head_count(votes, gold)[voted]
    right: dict[str, np.ndarray] = {}
    told: dict[str, Any] = {"majority, ties shared": round(float(majority.mean()), 4)}
    runs = [(model, None) for model in MODELS if model != "weighted"] + [("auto", gold), ("weighted", gold)]
    for model, known in runs:
        table, report = label(votes, model, gold=known)
        codes = np.array([votes.classes.index(c) if c else ABSTAIN for c in table["label"].to_pylist()])
        name = model if known is None else f"{model} with gold, cross-validated"
        right[name] = (codes == gold)[voted].astype(float)
        error = calibration_error(table["weight"].to_numpy()[voted], right[name])
        told[name] = {"accuracy": round(float(right[name].mean()), 4), "ece": round(error or 0.0, 4)}
        told[name] |= {"minus majority [95%]": interval(right[name] - majority)}
        if model == "auto":
            told[name]["chose"] = report.model
    for name in right:
        if name.startswith(("auto", "weighted")):
            told[name]["minus Snorkel [95%]"] = interval(right[name] - right["snorkel"])
    return {"rows": len(gold), "voted": int(voted.sum()), **told}


def main() -> None:
    """Measure and print."""
    if not DATA.is_dir():
        print(f"no data at {DATA}: nothing to measure", file=sys.stderr)
        return
    print(json.dumps({"youtube": measure(*youtube()), "sms": measure(*sms())}, indent=1))


if __name__ == "__main__":
    main()
