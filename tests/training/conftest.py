"""What the tests of this room share: a vocabulary and a base of a few thousand weights, made here in a second or two."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from training import pretrain  # noqa: E402
from training.lessons import BaseRecipe, Schedule, Shape, exercises, lessons_of, train_tokenizer  # noqa: E402
from training.sources import Piece  # noqa: E402

torch.set_num_threads(1)  # matrices this small lose more by sharing the work than they win

TOPICS = {
    "card": ("card", "chip", "pin", "blocked", "stolen"),
    "transfer": ("transfer", "money", "abroad", "pending", "account"),
    "refund": ("refund", "shop", "return", "purchase", "wrong"),
}
SHAPE = Shape(vocab=600, hidden=48, layers=2, heads=2, kv_heads=2, inner=144, context=160)
SCHEDULE = Schedule(batch_tokens=512, micro_tokens=512, window=64, lr=1e-2, warmup_steps=5, reading=0.2)


def rows(count: int, seed: int = 0) -> list[dict[str, str]]:
    """Toy questions whose class is the topic that their words come from."""
    rng = random.Random(seed)
    made = []
    for _ in range(count):
        topic = rng.choice(sorted(TOPICS))
        words = rng.sample(TOPICS[topic], 2)
        made.append(
            {"prompt": f"my {words[0]} is about the {words[1]}, please help", "completion": f"{topic}_help"}
        )
    return made


def tiny_base(texts: Sequence[str], out: Path, steps: int) -> Path:
    """A base that read and practised on ``texts`` alone."""
    tokenizer = train_tokenizer(texts, SHAPE.vocab)
    pieces = [Piece(text, str(i)) for i, text in enumerate(texts)]
    wanted, rng = steps * SCHEDULE.batch_tokens, np.random.default_rng(0)
    made = exercises(pieces, {"name": 3.0, "copy": 1.0}, wanted, tokenizer, SCHEDULE.window, rng)
    model = pretrain.new_model(SHAPE, tokenizer, 0)
    run = pretrain.Run(model, pretrain.optimizers(model, SCHEDULE), "tiny")
    pretrain.learn(run, lessons_of(list(made), {}), SCHEDULE, steps=steps)
    pretrain.write_base(model, tokenizer, BaseRecipe(SHAPE, SCHEDULE, ()), run, {}, out)
    return out


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("base") / "tiny"
    texts = [f"{row['prompt']} {row['completion']}" for row in rows(200)]
    return tiny_base(texts, out, steps=25)


@pytest.fixture(scope="session")
def tokenizer(base: Path):  # type: ignore[no-untyped-def]
    from training.model import load_tokenizer, resolve_base

    return load_tokenizer(resolve_base(base))
