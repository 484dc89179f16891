"""Which rank, rate and number of epochs suit the data: successive halving (Jamieson and Talwalkar 2016, arXiv 1502.07943).

Many recipes are tried on a small budget of updates, the better third on three times as many, and so on; the last one
gets all of it and becomes the adapter. Recipes are drawn from the seed alone. Judged is the loss on held-out rows, so
without such rows nothing is searched. A library of samplers would bring nothing for three dimensions and this few trials.
"""

from __future__ import annotations

import dataclasses
import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from curation.errors import UsageError
from training.recipe import Recipe, usual_rate

ETA = 3
"""Of how many trials one goes on to the next rung, which is that many times as long."""

RANKS = (4, 8, 16, 32, 64)
RATE_SPREAD = 5.0
EPOCH_SPREAD = 2.0


@dataclass(frozen=True)
class Trial:
    """One recipe on one rung: the share of its updates that it got, and the validation loss that came of it."""

    number: int
    rung: int
    share: float
    recipe: Recipe
    loss: float

    def told(self) -> dict[str, Any]:
        """For a log or a ledger."""
        chosen = {name: getattr(self.recipe, name) for name in ("rank", "lr", "epochs", "max_steps")}
        return {"trial": self.number, "rung": self.rung, "share": self.share, "loss": self.loss, **chosen}


def draw(recipe: Recipe, count: int, parameters: int) -> list[Recipe]:
    """``count`` recipes, the given one first: rank from :data:`RANKS`, rate and epochs around theirs, by logarithm.

    What the recipe's method has no use for (a rank in full training) stays as it is.
    """
    rng = np.random.default_rng(recipe.seed)
    lr = recipe.lr or usual_rate(recipe.method, parameters)
    epochs = recipe.epochs or 3.0
    drawn = [dataclasses.replace(recipe, lr=lr, epochs=epochs)]
    for _ in range(count - 1):
        rank = int(rng.choice(RANKS)) if recipe.adapter else recipe.rank
        rate = lr * math.exp(rng.uniform(-1, 1) * math.log(RATE_SPREAD))
        length = epochs * math.exp(rng.uniform(-1, 1) * math.log(EPOCH_SPREAD))
        drawn.append(dataclasses.replace(recipe, rank=rank, alpha=2 * rank, lr=rate, epochs=round(length, 2)))
    return drawn


def rungs(count: int) -> list[tuple[int, float]]:
    """How many trials each rung has, and what share of their updates they get; the last has one and all of them.

    >>> rungs(9)
    [(9, 0.111), (3, 0.333), (1, 1.0)]
    """
    sizes = [count]
    while sizes[-1] > 1:
        sizes.append(max(1, sizes[-1] // ETA))
    return [(size, round(ETA ** -(len(sizes) - 1 - i), 3)) for i, size in enumerate(sizes)]


def search(
    recipes: Sequence[Recipe],
    rows: int,
    run: Callable[[Recipe, Path], float | None],
    note: Callable[[Trial], None],
) -> Recipe:
    """The recipe that survives on so many ``rows``. ``run`` trains one into a folder and gives the validation loss;
    ``note`` is told of every trial.

    The survivor is not trained in full here: train it for good with what comes back. Raises ``UsageError`` on no recipe,
    or where there are no held-out rows to judge by.
    """
    if not recipes:
        raise UsageError("there is no recipe to try", where="search")
    alive = list(enumerate(recipes))
    for rung, (size, share) in enumerate(rungs(len(recipes))[:-1]):
        losses = {}
        for number, recipe in alive[:size]:
            short = dataclasses.replace(recipe, max_steps=max(1, math.ceil(share * recipe.updates(rows))))
            with tempfile.TemporaryDirectory() as work:
                loss = run(short, Path(work) / "trial")
            if loss is None:
                raise UsageError(
                    "recipes are compared by their loss on held-out rows, and there are none",
                    where="search",
                    next="Give --eval FILE, or a snapshot with a validation split",
                )
            losses[number] = loss if math.isfinite(loss) else math.inf
            note(Trial(number, rung, share, short, loss))
        alive = sorted(alive[:size], key=lambda one: losses[one[0]])[: rungs(len(recipes))[rung + 1][0]]
    return alive[0][1]
