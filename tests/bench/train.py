"""How fast the trainer and the scorer are, beside what they replace, in one run.

    python -m tests.bench.train [--rows 160] [--prompts 60] [--steps 20]

Training: our settings against trl's defaults, same rows, base, adapter and number of updates, in tokens a second without
padding. Scoring: 40 classes for every prompt, as one prefix tree and as one plain forward per class.
Everything is made here from toy sentences; no data is read.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from pathlib import Path
from typing import Any

from training.model import attach, load_base, make_tiny_base, open_model, resolve_base
from training.train import Recipe, train

WORDS = ("card", "payment", "transfer", "account", "balance", "refund", "cash", "fee", "limit", "rate", "pin")


def rows(count: int) -> list[dict[str, str]]:
    """Questions of 6 to 40 words, and an answer of three."""
    rng = random.Random(0)
    made = []
    for _ in range(count):
        said = rng.choices(WORDS, k=rng.randint(6, 40))
        made.append({"prompt": f"why is my {' '.join(said)}?", "completion": "_".join(said[:3])})
    return made


def ours(examples: list[dict[str, str]], base: Path, out: Path, steps: int) -> float:
    """Tokens a second of our trainer."""
    return train(examples, Recipe(max_steps=steps, lr=1e-3), base, out).tokens_per_second


def theirs(examples: list[dict[str, str]], base: Path, out: Path, steps: int) -> float:
    """Tokens a second of trl as it comes, prompt and completion given as text."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    model, tokenizer = load_base(resolve_base(base), device="cpu")
    settings = SFTConfig(
        output_dir=str(out),
        max_steps=steps,
        per_device_train_batch_size=16,
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
    )
    data = Dataset.from_list(examples)
    trainer = SFTTrainer(
        model=attach(model, Recipe()), args=settings, train_dataset=data, processing_class=tokenizer
    )
    begun = time.monotonic()
    trainer.train()
    return trainer._total_train_tokens / (time.monotonic() - begun)


def scoring(examples: list[dict[str, str]], base: Path, prompts: int) -> dict[str, Any]:
    """Prompts a second, both ways, and how far the two differ in nats."""
    import numpy as np

    from curation.records import user_message
    from training.examples import prompt_ids
    from training.score import plain_class_logprobs, score_classes

    loaded = open_model(base)
    classes = sorted({row["completion"] for row in examples})[:40]
    asked = [row["prompt"] for row in examples[:prompts]]
    begun = time.monotonic()
    tree = score_classes(loaded, asked, classes).logprobs
    fast = len(asked) / (time.monotonic() - begun)
    few = asked[
        : max(1, prompts // 10)
    ]  # one by one is slow, and its rate does not depend on how many there are
    begun = time.monotonic()
    plain = [
        plain_class_logprobs(loaded, prompt_ids(user_message(p), loaded.tokenizer), classes) for p in few
    ]
    slow = len(few) / (time.monotonic() - begun)
    apart = float(np.abs(np.array(plain) - tree[: len(few)]).max())
    return {"tree": fast, "one_by_one": slow, "speedup": fast / slow, "largest_difference_nats": apart}


def main() -> None:
    """Run both comparisons and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=160)
    parser.add_argument("--prompts", type=int, default=60)
    parser.add_argument("--steps", type=int, default=20)
    options = parser.parse_args()
    examples = rows(options.rows)
    with tempfile.TemporaryDirectory() as work:
        base = Path(work) / "base"
        make_tiny_base([row["prompt"] for row in examples], base, steps=5)
        speeds: dict[str, list[float]] = {"ours": [], "trl_defaults": []}
        for i in range(2):  # in turn, so that other work on the machine hits both
            speeds["trl_defaults"].append(theirs(examples, base, Path(work) / "theirs", options.steps))
            speeds["ours"].append(ours(examples, base, Path(work) / f"ours{i}", options.steps))
        best = {name: max(found) for name, found in speeds.items()}
        report = {
            "training_tokens_per_second": best,
            "training_speedup": best["ours"] / best["trl_defaults"],
            "scoring_prompts_per_second": scoring(examples, base, options.prompts),
        }
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
