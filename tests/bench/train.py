"""How fast the trainer and the scorer are, beside what they replace, in one run.

    python -m tests.bench.train [training|curves|where|scoring] [--base DIR] [--rows 600] [--steps 12] [--repeat 3]
    python -m tests.bench.train scoring [--labels 300] [--pool 1000] [--few 16] [--repeat 3]

`training`: our loop against trl's ``SFTTrainer``, same rows, base, adapter, rows per update and number of updates: tokens
that are not padding per CPU second, and the validation loss that came of it. trl is taken twice: as it comes, and with
gradient checkpointing off and in float32, which is what our loop does on a small model on a CPU. `curves`: trl is given
our updates, row for row, from the same first weights, so that the loss of every update can be compared. `where`: what
trl's step spends its time on. `scoring`: a pool over a closed set of answers, as a prefix tree after cached prompts, one
call at a time (with the head on the answer's tokens alone, and as the model's own forward gives it), and batched without
a cache; with ``--labels`` also by an adapter that has learned so many of them.

Rows are E2E and GSM8K from the real data beside the project where that is (``$TILTH_DATA``), and made-up sentences of
the same lengths where it is not. CPU seconds, since other work on the machine then counts least; the sides take turns,
and each figure has its lowest and highest.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from curation.records import user_message
from training import loss
from training.adapters import attach, open_model
from training.batches import pad
from training.examples import encode, plain_ids, prompt_ids
from training.fit import Task, fit
from training.model import BUNDLED, load_base, resolve_base
from training.recipe import Recipe
from training.rows import encode_rows, split_rows
from training.score import BATCH_TOKENS, log_softmax, plain_class_logprobs, score_classes
from training.train import train

LR = 2e-3
LONGEST = 1024
WORDS = ("card", "payment", "transfer", "account", "balance", "refund", "cash", "fee", "limit", "rate", "pin")

Rows = list[dict[str, str]]


def data() -> Path:
    """Where the real data lies, if it does."""
    return Path(os.environ.get("TILTH_DATA") or Path(__file__).resolve().parents[3] / "shared" / "data")


def e2e() -> Rows:
    """Restaurant facts to a sentence; made up where the data is not."""
    path = data() / "instr-e2e-nlg" / "devset.csv"
    if not path.is_file():
        return made_up(2000, (8, 20), (12, 30))
    with open(path, encoding="utf-8", newline="") as file:
        return [{"prompt": row["mr"], "completion": row["ref"]} for row in csv.DictReader(file)]


def gsm8k() -> Rows:
    """Word problems with worked answers; made up where the data is not."""
    path = data() / "instr-gsm8k" / "train.jsonl"
    if not path.is_file():
        return made_up(2000, (20, 90), (20, 120))
    with open(path, encoding="utf-8") as file:
        return [{"prompt": row["question"], "completion": row["answer"]} for row in map(json.loads, file)]


def made_up(count: int, asked: tuple[int, int], answered: tuple[int, int]) -> Rows:
    """Sentences of so many words."""
    rng = random.Random(0)
    said = lambda span: " ".join(rng.choices(WORDS, k=rng.randint(*span)))  # noqa: E731
    return [{"prompt": said(asked), "completion": said(answered)} for _ in range(count)]


def some(rows: Rows, count: int) -> tuple[Rows, Rows]:
    """So many different rows to learn, and 64 others to measure on."""
    different = list({(row["prompt"], row["completion"]): row for row in rows}.values())
    shuffled = random.Random(0).sample(different, count + 64)
    return shuffled[:count], shuffled[count:]


# ------------------------------------------------------------------------------------------- training


def ours(rows: Rows, base: str, steps: int, batch: int, seed: int = 0) -> dict[str, Any]:
    """Our loop: speed, the loss of every update, which rows each held, and the trained model to measure."""
    model, tokenizer = load_base(resolve_base(base), device="cpu")
    recipe = Recipe(
        lr=LR, schedule="constant", warmup=0.0, max_steps=steps, batch=batch, max_length=LONGEST, seed=seed
    )
    torch.manual_seed(seed)
    model = attach(model, recipe)
    lesson = encode_rows(split_rows(rows, None), tokenizer, LONGEST, "lora")
    losses: list[float] = []
    watch = lambda told: losses.append(told["loss"])  # noqa: E731
    task = Task(lesson, (), recipe, tokenizer.pad_token_id, packing=True, watch=watch)
    cpu, wall = time.process_time(), time.monotonic()
    state = fit(model, task)
    speed = _speed(state.tokens, cpu, wall)
    order = [i for step in range(steps) for i in task.updates.at(step)]
    return speed | {"model": model, "losses": losses, "order": order}


def theirs(rows: Rows, base: str, steps: int, batch: int, **settings: Any) -> dict[str, Any]:
    """trl, prompt and completion given as text."""
    trainer = _trl(rows, base, steps, batch, **settings)
    cpu, wall = time.process_time(), time.monotonic()
    trainer.train()
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    return _speed(trainer._total_train_tokens, cpu, wall) | {"model": trainer.model, "losses": losses}


def _trl(
    rows: Rows,
    base: str,
    steps: int,
    batch: int,
    order: Iterable[int] | None = None,
    seed: int = 0,
    **settings: Any,
) -> Any:
    """trl's trainer on the rows in its own order, or in the one that is given."""
    import datasets
    from transformers import PrinterCallback
    from trl import SFTConfig, SFTTrainer

    datasets.disable_progress_bars()

    class Ordered(SFTTrainer):
        """Takes the rows in the order given, where one is given."""

        def _get_train_sampler(self, *args: Any, **kwargs: Any) -> Any:
            return list(order) if order is not None else super()._get_train_sampler(*args, **kwargs)

    model, tokenizer = load_base(resolve_base(base), device="cpu")
    torch.manual_seed(seed)
    made = SFTConfig(
        output_dir=tempfile.gettempdir(),
        max_steps=steps,
        per_device_train_batch_size=batch,
        learning_rate=LR,
        lr_scheduler_type="constant",
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        **settings,
    )
    spaced = [{"prompt": row["prompt"] + "\n", "completion": row["completion"]} for row in rows]
    trainer = Ordered(
        model=attach(model, Recipe()),
        args=made,
        train_dataset=datasets.Dataset.from_list(spaced),
        processing_class=tokenizer,
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def _speed(tokens: int, cpu: float, wall: float) -> dict[str, Any]:
    return {
        "tokens_per_cpu_second": tokens / (time.process_time() - cpu),
        "tokens_per_second": tokens / (time.monotonic() - wall),
    }


PLAIN = {"gradient_checkpointing": False, "bf16": False}
"""What our loop does on a small model on a CPU."""

SIDES: dict[str, Callable[..., dict[str, Any]]] = {
    "trl_defaults": theirs,
    "trl_same_settings": lambda *a: theirs(*a, **PLAIN),
    "ours": ours,
}


def training(base: str, count: int, steps: int, batch: int, repeat: int) -> dict[str, Any]:
    """Every side on both mixes, in turn; ratios within each turn."""
    report = {}
    for name, source in (("e2e", e2e), ("gsm8k", gsm8k)):
        rows, held = some(source(), count)
        found: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
        for _ in range(repeat):
            for side, run in SIDES.items():
                went = run(rows, base, steps, batch)
                went["eval_loss"] = validation(went.pop("model"), held, base)
                found[side].append(went)
        rates = {side: [one["tokens_per_cpu_second"] for one in runs] for side, runs in found.items()}
        report[name] = {
            "tokens_per_cpu_second": {side: spread(values) for side, values in rates.items()},
            "times_trl_defaults": ratio(rates["ours"], rates["trl_defaults"]),
            "times_trl_same_settings": ratio(rates["ours"], rates["trl_same_settings"]),
            "eval_loss": {side: spread([one["eval_loss"] for one in runs]) for side, runs in found.items()},
        }
    return report


def curves(base: str, steps: int, batch: int, seeds: int) -> dict[str, Any]:
    """The loss of every update by both loops, given the same rows in the same updates from the same first weights."""
    report = {}
    for name, source in (("e2e", e2e), ("gsm8k", gsm8k)):
        rows, held = some(source(), steps * batch)
        runs = []
        for seed in range(seeds):
            one = ours(rows, base, steps, batch, seed)
            two = theirs(rows, base, steps, batch, order=one["order"], seed=seed, logging_steps=1, **PLAIN)
            apart = np.abs(np.subtract(one["losses"], two["losses"]))
            measured = [validation(side["model"], held, base) for side in (one, two)]
            runs.append(
                {
                    "seed": seed,
                    "first_loss": one["losses"][0],
                    "last_ten": [float(np.mean(side["losses"][-10:])) for side in (one, two)],
                    "largest_difference": float(apart.max()),
                    "eval_loss": measured,
                }
            )
        report[name] = {
            "updates": steps,
            "runs": runs,
            "eval_loss_ours_less_trl": spread([r["eval_loss"][0] - r["eval_loss"][1] for r in runs], 5),
        }
    return report


def validation(model: Any, held: Rows, base: str) -> float:
    """Nats per token of held-out answers, measured alike for every side."""
    _, tokenizer = load_base(resolve_base(base), device="cpu")
    lesson = encode_rows(split_rows(held, None), tokenizer, LONGEST, "lora")
    return loss.mean_loss(model, lesson.rows, tokenizer.pad_token_id)


def where(base: str, count: int, batch: int) -> dict[str, Any]:
    """What trl's updates spend their CPU time on: functions of Python, by their own and by their total time."""
    import cProfile
    import pstats

    rows, _ = some(e2e(), count)
    trainer = _trl(rows, base, 4, batch, **PLAIN)
    profile = cProfile.Profile()
    profile.runcall(trainer.train)
    table = pstats.Stats(profile).stats  # type: ignore[attr-defined]
    whole = max(entry[3] for entry in table.values())
    lines = [
        (entry[3] / whole, entry[2] / whole, f"{Path(key[0]).name}:{key[2]}") for key, entry in table.items()
    ]
    return {
        "share_of_time_with_what_it_calls": {
            name: round(t, 3) for t, _, name in sorted(lines, reverse=True)[:45]
        },
        "share_of_time_itself": {
            name: round(o, 3) for _, o, name in sorted(lines, key=lambda line: -line[1])[:20]
        },
    }


# -------------------------------------------------------------------------------------------- scoring


def banking() -> Rows:
    """Customers' questions, each with one of 77 classes; made up where the data is not."""
    path = data() / "intent-banking77" / "train.csv"
    if not path.is_file():
        names = [
            f"{row['completion'].replace(' ', '_')}_{i}" for i, row in enumerate(made_up(77, (1, 1), (3, 3)))
        ]
        asked = made_up(10_000, (6, 20), (1, 1))
        return [row | {"completion": names[i % len(names)]} for i, row in enumerate(asked)]
    with open(path, encoding="utf-8", newline="") as file:
        return [{"prompt": row["text"], "completion": row["category"]} for row in csv.DictReader(file)]


@torch.no_grad()
def batched_without_cache(loaded: Any, prompts: Sequence[str], classes: Sequence[str]) -> np.ndarray:
    """Every prompt with every class as a row of its own, rows of one length together: what a careful batched loop does."""
    tokenizer = loaded.tokenizer
    rows = [encode(user_message(p), c, tokenizer, LONGEST) for p in prompts for c in classes]
    sums = np.zeros(len(rows))
    order = sorted(range(len(rows)), key=lambda i: len(rows[i].input_ids))
    start = 0
    while start < len(order):
        size = max(1, BATCH_TOKENS // len(rows[order[min(start + 128, len(order) - 1)]].input_ids))
        chosen = order[start : start + size]
        made = pad([rows[i] for i in chosen], [1.0] * len(chosen), tokenizer.pad_token_id)
        states = loaded.model.base_model(input_ids=made.input_ids, use_cache=False).last_hidden_state
        learned = made.labels[:, 1:] != -100
        logprobs = log_softmax(loaded.model, states[:, :-1][learned])
        picked = logprobs.gather(1, made.labels[:, 1:][learned][:, None])[:, 0].double()
        line = learned.nonzero()[:, 0]
        sums[chosen] = torch.zeros(len(chosen), dtype=torch.float64).index_add_(0, line, picked).numpy()
        start += size
    return sums.reshape(len(prompts), len(classes))


@torch.no_grad()
def forward_calls(loaded: Any, prompt: Sequence[int], classes: Sequence[str]) -> np.ndarray:
    """Every class by a call of the model's own forward, whose logits are those of every token: the usual loop."""
    found = []
    for name in classes:
        answer = [*plain_ids(name, loaded.tokenizer), loaded.tokenizer.eos_token_id]
        ids = torch.tensor([[*prompt, *answer]])
        logprobs = torch.log_softmax(loaded.model(input_ids=ids).logits[0, :-1].float(), dim=-1)
        asked = logprobs[len(prompt) - 1 :].gather(1, ids[0, len(prompt) :, None])
        found.append(float(asked.double().sum()))
    return np.array(found)


def scoring(base: str, pool: int, few: int, repeat: int) -> dict[str, Any]:
    """Prompts per CPU second, three ways, and how far they differ in nats.

    The slow ways get ``few`` prompts drawn from the pool, since their rate does not depend on how many there are.
    """
    loaded = open_model(base, device="cpu")
    rows = banking()
    classes = sorted({row["completion"] for row in rows})
    rng = random.Random(1)
    asked = [rows[i % len(rows)]["prompt"] for i in range(pool)]
    found: dict[str, list[float]] = {name: [] for name in ("tree", "batched", "single", "forward")}
    apart = 0.0
    for _ in range(repeat):
        drawn = rng.sample(range(len(asked)), few)
        subset = [asked[i] for i in drawn]
        singles = [prompt_ids(user_message(p), loaded.tokenizer) for p in subset[: max(2, few // 4)]]
        ways: dict[str, tuple[int, Callable[[], np.ndarray]]] = {
            "single": (len(singles), lambda s=singles: [plain_class_logprobs(loaded, p, classes) for p in s]),
            "tree": (len(asked), lambda: score_classes(loaded, asked, classes).logprobs),
            "forward": (len(singles), lambda s=singles: [forward_calls(loaded, p, classes) for p in s]),
            "batched": (few, lambda s=subset: batched_without_cache(loaded, s, classes)),
        }
        given = {}
        for name, (count, way) in ways.items():
            cpu = time.process_time()
            given[name] = np.array(way())
            found[name].append(count / (time.process_time() - cpu))
        tree = given.pop("tree")[drawn]
        apart = max(apart, *(float(np.abs(other - tree[: len(other)]).max()) for other in given.values()))
    return {
        "pool": pool,
        "classes": len(classes),
        "prompts_per_cpu_second": {name: spread(values) for name, values in found.items()},
        "times_single_calls": ratio(found["tree"], found["single"]),
        "times_single_forwards": ratio(found["tree"], found["forward"]),
        "times_batched_without_cache": ratio(found["tree"], found["batched"]),
        "largest_difference_nats": apart,
    }


def after_labels(base: str, labels: int, folder: Path) -> str:
    """An adapter on the base that has learned so many of the customers' questions."""
    learned = random.Random(7).sample(banking(), labels)
    return str(train(learned, Recipe(max_length=256), base, folder, device="cpu").adapter)


# ---------------------------------------------------------------------------------------------- common


def spread(values: Sequence[float], digits: int = 3) -> dict[str, float]:
    """The median with the lowest and the highest."""
    return {
        "median": round(statistics.median(values), digits),
        "low": round(min(values), digits),
        "high": round(max(values), digits),
    }


def ratio(one: Sequence[float], two: Sequence[float]) -> dict[str, float]:
    """Turn by turn."""
    return spread([a / b for a, b in zip(one, two, strict=True)])


def main() -> None:
    """Run what was asked for and print one JSON object."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "what", nargs="?", choices=("all", "training", "curves", "where", "scoring"), default="all"
    )
    parser.add_argument("--base", default=BUNDLED)
    parser.add_argument("--rows", type=int, default=600)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--pool", type=int, default=1000)
    parser.add_argument("--few", type=int, default=16)
    parser.add_argument("--repeat", type=int, default=3, help="Turns; seeds of the curves.")
    parser.add_argument("--labels", type=int, default=0, help="Score by an adapter of so many labels, too.")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    base, batch = options.base, options.batch
    report: dict[str, Any] = {"threads": options.threads, "real_data": data().is_dir()}
    if options.what in ("all", "training"):
        report["training"] = training(base, options.rows, options.steps, batch, options.repeat)
    if options.what in ("all", "curves"):
        report["curves"] = curves(base, options.steps, batch, options.repeat)
    if options.what == "where":
        report["where"] = where(base, options.rows, batch)
    if options.what in ("all", "scoring"):
        report["scoring"] = scoring(base, options.pool, options.few, options.repeat)
        if options.labels:
            with tempfile.TemporaryDirectory() as folder:
                adapter = after_labels(base, options.labels, Path(folder) / "adapter")
                report["scoring_after_labels"] = scoring(adapter, options.pool, options.few, options.repeat)
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
