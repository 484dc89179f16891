"""What the bundled base knows, and what it buys.

    python -m tests.bench.base [--only bits|choices|banking77|e2e] [--labels 500] [--seeds 3]

``bits``: bits per byte on text held out of its training, beside a 5-gram model (Kneser-Ney, the same tokens) of as many
tokens as the base read and one of all the text, and beside an untrained copy. ``choices``: a few steps of the recipe
and of the recipe less one of its ideas, each on the same number of tokens. ``banking77`` and ``e2e``: the default
LoRA recipe on the bundled base and on a copy with random weights, the same seeded splits, tested on what neither saw.
Reads ``../shared/data`` (or $TILTH_DATA), and says so where that is absent. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.bench.ngram import KneserNey
from tests.bench.ngram import bits_per_byte as ngram_bits_per_byte
from training import evaluate, pretrain
from training.model import BUNDLED, load_base, resolve_base
from training.score import predict
from training.train import Recipe, train

DATA = Path(os.environ.get("TILTH_DATA", Path(__file__).resolve().parents[3] / "shared" / "data"))


def random_copy(out: Path, seed: int) -> Path:
    """A base with the bundled one's vocabulary and shape, and weights that read nothing."""
    model, tokenizer = load_base(BUNDLED, device="cpu")
    shape = pretrain.read_recipe(pretrain.RECIPE).shape
    untrained = pretrain.new_model(shape, tokenizer, seed)
    assert untrained.num_parameters() == model.num_parameters()
    untrained.save_pretrained(out)
    tokenizer.save_pretrained(out)
    return out


def bits(most: int) -> dict[str, Any]:
    """Bits per byte of at most ``most`` held-out texts of each source, by each model."""
    recipe = pretrain.read_recipe(pretrain.RECIPE)
    learned, held = pretrain.gather(recipe, DATA)
    model, tokenizer = load_base(BUNDLED, device="cpu")
    read = json.loads((resolve_base(BUNDLED).path / "manifest.json").read_text())["metrics"]["tokens"]
    texts = {name: found[:most] for name, found in pretrain.held_texts(held).items()}
    untrained = pretrain.new_model(recipe.shape, tokenizer, 0)
    models = {
        "base": lambda few: pretrain.bits_per_byte(model, tokenizer, few),
        "untrained": lambda few: pretrain.bits_per_byte(untrained, tokenizer, few),
    }
    pieces = [p for found in learned.values() for p in found]
    rng = np.random.default_rng(0)
    whole = [
        "\n".join(filter(None, (p.text, p.answer))) for p in (pieces[i] for i in rng.permutation(len(pieces)))
    ]
    rows = ids_of(whole, tokenizer)
    sizes = np.cumsum([len(row) for row in rows])
    for name, few in (
        ("5-gram, as many tokens", rows[: int(np.searchsorted(sizes, read))]),
        ("5-gram, all text", rows),
    ):
        grams = KneserNey.learn(few, len(tokenizer))
        models[name] = lambda t, g=grams: ngram_bits_per_byte(g, ids_of(t, tokenizer), t)
    table = {
        name: {source: round(of(few), 3) for source, few in texts.items()} for name, of in models.items()
    }
    for row in table.values():
        row["mean"] = round(sum(row.values()) / len(row), 3)
    return {"bits_per_byte": table, "tokens_read": read, "tokens_of_all_text": int(sizes[-1])}


def choices(steps: int, most: int) -> dict[str, Any]:
    """Mean bits per byte on held-out text after ``steps`` steps of the recipe, and less one of its ideas at a time."""
    recipe = pretrain.read_recipe(pretrain.RECIPE)
    short = replace(
        recipe.schedule, corpus_tokens=steps * recipe.schedule.batch_tokens, warmup_steps=steps // 4
    )
    recipe = replace(recipe, schedule=short)
    reading = replace(recipe, sources=tuple(replace(s, practice={"read": 1.0}) for s in recipe.sources))
    learned, held = pretrain.gather(recipe, DATA)
    tokenizer = load_base(BUNDLED, device="cpu")[1]
    texts = [text for found in pretrain.held_texts(held).values() for text in found[: most // 5]]
    found = {}
    for name, one, placed, muon in (
        ("as it is", recipe, True, True),
        ("random embeddings", recipe, False, True),
        ("AdamW alone", recipe, True, False),
        ("reading alone", reading, True, True),
    ):
        model = pretrain.new_model(recipe.shape, tokenizer, 0)
        if placed:
            pretrain.place_embeddings(model, tokenizer, learned)
        kinds = pretrain.optimizers(model, short)
        if not muon:
            kinds = [torch.optim.AdamW(model.parameters(), lr=short.lr, betas=(0.9, 0.95), weight_decay=0.05)]
        run = pretrain.Run(model, kinds, name)
        pretrain.learn(run, pretrain.prepare(one, learned, tokenizer), short, steps=steps)
        found[name] = round(pretrain.bits_per_byte(model, tokenizer, texts), 3)
        print(name, found[name], file=sys.stderr, flush=True)
    return {"steps": steps, "bits_per_byte": found}


def ids_of(texts: Sequence[str], tokenizer: Any) -> list[list[int]]:
    """Ids without beginning or end."""
    return tokenizer(list(texts), add_special_tokens=False, split_special_tokens=True)["input_ids"]


def banking77(base: str | Path, seed: int, labels: int, out: Path) -> dict[str, Any]:
    """Accuracy over the 77 intents on 300 questions, after ``labels`` others."""
    with open(next((DATA / "intent-banking77").glob("*.csv")), encoding="utf-8") as file:
        rows = [{"prompt": r["text"], "completion": r["category"]} for r in csv.DictReader(file)]
    classes = sorted({row["completion"] for row in rows})
    random.Random(seed).shuffle(rows)
    test, learn = rows[:300], rows[300 : 300 + labels]
    made = train(learn, Recipe(seed=seed), base, out)
    answers = predict(out, [row["prompt"] for row in test], classes=classes)
    return scored(answers, [[row["completion"]] for row in test], "accuracy", made.seconds)


def e2e(base: str | Path, seed: int, labels: int, out: Path) -> dict[str, Any]:
    """BLEU on 80 sets of facts against all their references, after ``labels`` sentences about other facts."""
    with open(DATA / "instr-e2e-nlg" / "devset.csv", encoding="utf-8") as file:
        rows = [(r["mr"], r["ref"]) for r in csv.DictReader(file)]
    facts = sorted({mr for mr, _ in rows})
    random.Random(seed).shuffle(facts)
    test = facts[:80]
    learn = [{"prompt": mr, "completion": ref} for mr, ref in rows if mr not in set(test)]
    random.Random(seed).shuffle(learn)
    made = train(learn[:labels], Recipe(seed=seed), base, out)
    references = [[ref for mr, ref in rows if mr == one] for one in test]
    return scored(predict(out, test), references, "bleu", made.seconds)


def scored(
    answers: Sequence[str], references: Sequence[Sequence[str]], metric: str, seconds: float
) -> dict[str, Any]:
    """The metric with its interval over rows."""
    value, ci95 = evaluate.interval(evaluate.row_statistics(answers, references, metric))
    return {
        metric: round(value, 4),
        "ci95": [round(end, 4) for end in ci95],
        "training_seconds": round(seconds, 1),
    }


TASKS = {"banking77": banking77, "e2e": e2e}


def main() -> None:
    """Measure and print one JSON object; what is under way goes to stderr."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=("bits", "choices", *TASKS))
    parser.add_argument("--labels", type=int, default=500)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--texts", type=int, default=300, help="held-out texts of each source")
    parser.add_argument("--steps", type=int, default=60, help="of each of the choices")
    parser.add_argument("--no-random", action="store_true", help="leave the random base out")
    options = parser.parse_args()
    if not DATA.is_dir():
        sys.exit(f"the data is not there: {DATA}. Set TILTH_DATA to its folder")
    report: dict[str, Any] = {"labels": options.labels}
    if options.only in (None, "bits"):
        report |= bits(options.texts)
    if options.only in (None, "choices"):
        report["choices"] = choices(options.steps, options.texts)
    for name, task in TASKS.items():
        if options.only in (None, name):
            report[name] = [both(task, seed, options) for seed in range(options.seeds)]
    print(json.dumps(report, indent=2))


def both(task: Any, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """One seed on the bundled base and on its random copy."""
    with tempfile.TemporaryDirectory() as work:
        bases = {"bundled": BUNDLED}
        if not options.no_random:
            bases["random"] = random_copy(Path(work) / "random", seed)
        found = {"seed": seed}
        for name, base in bases.items():
            begun = time.process_time()
            found[name] = task(base, seed, options.labels, Path(work) / f"adapter-{name}")
            found[name]["cpu_seconds"] = round(time.process_time() - begun, 1)
            print(name, found[name], file=sys.stderr, flush=True)
        return found


if __name__ == "__main__":
    main()
