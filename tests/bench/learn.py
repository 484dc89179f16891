"""What each method learns on a CPU, over the base it starts from, each with its interval.

    python -m tests.bench.learn [--base DIR] [--methods lora,qlora,adalora,dora,full,dpo] [--labels 300] [--test 200]

banking77: closed-set accuracy over 77 intents, trained on ``--labels`` questions, measured on others. hh-rlhf: the share of
held-out pairs whose chosen answer gained more likelihood than the rejected one, and the reward margin in nats. The
interval of the difference to the base is a paired bootstrap. Needs the real data beside the project (``$TILTH_DATA``).
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import random
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from curation.errors import UsageError
from tests.bench.train import data
from training import evaluate, preferences
from training.adapters import load_unmerged
from training.model import BUNDLED
from training.recipe import Recipe
from training.rows import split_rows
from training.score import predict
from training.train import train
from training.transcripts import compared


def banking(labels: int, test: int) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """Rows to learn and rows to measure on, by a seeded split."""
    with open(data() / "intent-banking77" / "train.csv", encoding="utf-8", newline="") as file:
        rows = [{"prompt": r["text"], "completion": r["category"]} for r in csv.DictReader(file)]
    drawn = random.Random(7).sample(rows, labels + test)
    return drawn[:labels], drawn[labels:]


def classes(base: str, method: str, labels: int, test: int, epochs: float, work: Path) -> dict[str, Any]:
    """Accuracy of a method over that of the base."""
    learned, held = banking(labels, test)
    names = sorted({row["completion"] for row in [*learned, *held]})
    prompts, references = [row["prompt"] for row in held], [[row["completion"]] for row in held]
    begun = time.process_time()
    made = train(
        learned, Recipe(method=method, epochs=epochs, max_length=256), base, work / method, device="cpu"
    )
    spent = time.process_time() - begun
    before = evaluate.row_statistics(predict(base, prompts, names), references, "accuracy")
    after = evaluate.row_statistics(predict(made.adapter, prompts, names), references, "accuracy")
    value, ci95 = evaluate.interval(after)
    return {
        "accuracy": value,
        "ci95": ci95,
        "base": evaluate.interval(before)[0],
        "difference": evaluate.paired_difference(before, after),
        "cpu_seconds": round(spent, 1),
    }


def _whole(row: dict[str, str]) -> bool:
    """Whether both transcripts end with an answer to the same messages."""
    try:
        return all(compared(row["chosen"], row["rejected"])[1:])
    except UsageError:
        return False


def pairs(count: int) -> list[dict[str, Any]]:
    """Preference rows whose answers are short enough for a small base."""
    found = []
    with gzip.open(data() / "pref-hh-rlhf" / "helpful-base-test.jsonl.gz", "rt", encoding="utf-8") as file:
        for line in file:
            row = json.loads(line)
            if len(row["chosen"]) < 700 > len(row["rejected"]) and _whole(row):
                found.append(row)
    return random.Random(7).sample(found, min(count, len(found)))


def preferred(base: str, labels: int, test: int, epochs: float, work: Path) -> dict[str, Any]:
    """Reward margin and accuracy on held-out pairs; the base's are 0 and a coin's."""
    rows = pairs(labels + test)
    learned, held = rows[:-test], rows[-test:]
    recipe = Recipe(method="dpo", epochs=epochs, max_length=512, batch=8)
    begun = time.process_time()
    made = train(learned, recipe, base, work / "dpo", device="cpu")
    spent = time.process_time() - begun
    loaded = load_unmerged(made.adapter, device="cpu")
    encoded, _ = preferences.encode_pairs(split_rows(held, None), loaded.tokenizer, 512)
    margin = preferences.margins(loaded.model, encoded, loaded.tokenizer.pad_token_id, recipe.beta)
    draws = np.random.default_rng(0).integers(0, len(margin), (2000, len(margin)))
    means, wins = margin[draws].mean(axis=1), (margin > 0)[draws].mean(axis=1)
    return {
        "pairs": len(margin),
        "margin": float(margin.mean()),
        "margin_ci95": np.quantile(means, [0.025, 0.975]).tolist(),
        "accuracy": float((margin > 0).mean()),
        "accuracy_ci95": np.quantile(wins, [0.025, 0.975]).tolist(),
        "cpu_seconds": round(spent, 1),
    }


def main() -> None:
    """Run every method and print one JSON object."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--base", default=BUNDLED)
    parser.add_argument("--methods", default="lora,qlora,adalora,dora,full,dpo")
    parser.add_argument("--labels", type=int, default=300)
    parser.add_argument("--test", type=int, default=200)
    parser.add_argument("--epochs", type=float, default=8)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    report = {}
    with tempfile.TemporaryDirectory() as work:
        for method in options.methods.split(","):
            if method == "dpo":
                report[method] = preferred(options.base, options.labels, options.test, 3, Path(work))
            else:
                report[method] = classes(
                    options.base, method, options.labels, options.test, options.epochs, Path(work)
                )
            print(json.dumps({method: report[method]}), flush=True)


if __name__ == "__main__":
    main()
