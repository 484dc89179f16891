"""What the tests of this room share: a vocabulary and a base of a few thousand weights, made here in a second or two."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from training.model import TinyRule, make_tiny_base  # noqa: E402

torch.set_num_threads(1)  # matrices this small lose more by sharing the work than they win

TOPICS = {
    "card": ("card", "chip", "pin", "blocked", "stolen"),
    "transfer": ("transfer", "money", "abroad", "pending", "account"),
    "refund": ("refund", "shop", "return", "purchase", "wrong"),
}
SMALL = TinyRule(vocab=600, hidden=48, layers=2, heads=2, context=160, batch_tokens=512, window=64, lr=1e-2)


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


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("base") / "tiny"
    texts = [f"{row['prompt']} {row['completion']}" for row in rows(200)]
    make_tiny_base(texts, out, steps=25, rule=SMALL)
    return out


@pytest.fixture(scope="session")
def tokenizer(base: Path):  # type: ignore[no-untyped-def]
    from training.model import load_tokenizer, resolve_base

    return load_tokenizer(resolve_base(base))
