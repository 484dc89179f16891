"""How to train: one frozen recipe, the choices it leaves open, and what of it is sane. Knows neither torch nor files.

A recipe says what is learned from a row and how fast; it never says where rows come from or where weights go. What is
``None`` is chosen by :meth:`Recipe.settled` for the method, the model's size and the data.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass

from curation.errors import UsageError

LOW_RANK = ("lora", "dora", "adalora", "qlora", "int8")
WHOLE = ("full", "adapt")
METHODS = (*LOW_RANK, *WHOLE, "dpo")
SCHEDULES = ("cosine", "linear", "constant")
PRECISIONS = ("auto", "fp32", "bf16")
BITS: Mapping[str, int] = {"qlora": 4, "int8": 8}
"""The methods that train on a quantised base, and to how many bits."""

SMALL = 50_000_000
"""Below this many parameters a model is small: it learns with higher rates and needs no memory to be saved."""

# LoRA wants about ten times the rate of full training (Schulman et al. 2025, "LoRA without regret"); DPO a tenth of its own.
# Small models are trained for few updates: of the demo's 320 rows the bundled base learns in 60 updates at 3e-3 (accuracy
# 0.67) more than in 120 at 1e-3 (0.65); a LoRA of it gains nothing from a rate above 5e-3.
_SMALL_LR = dict.fromkeys(LOW_RANK, 5e-3) | {"adalora": 2e-2, "full": 3e-3, "adapt": 1e-3, "dpo": 1e-3}
_LARGE_LR = dict.fromkeys(LOW_RANK, 2e-4) | {"adalora": 1e-3, "full": 1e-5, "adapt": 2e-5, "dpo": 5e-6}
_SANE = 20.0
"""A rate this many times above or below the usual one for the method and size is a slip of the pen."""

ENOUGH_STEPS = 300
MOST_EPOCHS = 30.0


@dataclass(frozen=True)
class Recipe:
    """How to train. What is ``None`` is chosen by :meth:`settled` for the method, the model's size and the data.

    ``method``: ``lora`` trains an adapter; ``dora`` one with magnitudes of its own (arXiv 2402.09353); ``adalora`` one
    whose rank moves to the layers that need it, ``rank`` on average (arXiv 2303.10512); ``qlora`` and ``int8`` an adapter
    on a base of 4 or 8 bits (arXiv 2305.14314); ``full`` every weight; ``adapt`` every weight on plain text (continued
    pre-training); ``dpo`` an adapter that prefers one answer to another by ``beta`` (arXiv 2305.18290).

    ``batch`` counts rows per update, of which ``micro_batch`` go through the model at once. ``packing`` lays the rows of
    an update end to end instead of padding them; which rows an update holds, and its loss, stay the same.
    ``length_grouping`` puts rows of about the same length into an update, which saves the padding where rows cannot be
    packed, and learns less per update (E2E, 80 updates: a loss of 1.86 and not 1.79, three seeds). ``lr`` rises
    over the share ``warmup`` of all steps and falls from its peak by ``schedule``. ``patience`` stops once the validation
    loss has not improved at that many measurements in a row, ``evaluations`` of which are made over the run.
    ``answer_tokens`` also trains the embeddings of the tokens that answers are made of: a small base may never have read
    them, and its head is its embedding. ``temperature`` flattens how often rows of different tasks are drawn, and
    ``mixture`` (task, weight) draws a task's rows so many times as often as that; 1 where it names no weight.
    """

    method: str = "lora"
    rank: int = 16
    alpha: int = 32
    dropout: float = 0.0
    target: str = "all-linear"
    answer_tokens: bool | None = None
    epochs: float | None = None
    max_steps: int | None = None
    lr: float | None = None
    batch: int = 16
    micro_batch: int | None = None
    packing: bool | None = None
    length_grouping: bool = False
    checkpointing: bool | None = None
    precision: str = "auto"
    max_length: int = 512
    warmup: float = 0.05
    schedule: str = "cosine"
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    evaluations: int = 5
    patience: int | None = None
    temperature: float = 1.0
    mixture: tuple[tuple[str, float], ...] = ()
    beta: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        problems = [said for wrong, said in self._problems() if wrong]
        if problems:
            raise UsageError("; ".join(problems), where="recipe")

    def _problems(self) -> list[tuple[bool, str]]:
        one_of = {"method": METHODS, "schedule": SCHEDULES, "precision": PRECISIONS}
        at_least_one = ("rank", "alpha", "batch", "micro_batch", "max_steps", "patience")
        low = [name for name in at_least_one if getattr(self, name) is not None and getattr(self, name) < 1]
        return [
            *(
                (getattr(self, name) not in known, f"{name} {getattr(self, name)!r} is not one of {', '.join(known)}")
                for name, known in one_of.items()
            ),
            (bool(low), f"{' and '.join(low)} must be at least 1"),
            (self.max_length < 2, "max_length is at least 2"),
            (self.lr is not None and not 0 < self.lr <= 1, "lr lies above 0 and is at most 1"),
            (self.epochs is not None and not 0 < self.epochs < math.inf, "epochs is above 0"),
            (not 0 <= self.warmup < 1, "warmup is a share of the steps, from 0 to below 1"),
            (not 0 <= self.dropout < 1, "dropout lies from 0 to below 1"),
            (self.evaluations < 0, "evaluations is at least 0"),
            (not 0 < self.temperature < math.inf, "temperature is above 0"),
            (any(not 0 < weight < math.inf for _, weight in self.mixture), "the weight of a task is above 0"),
            (len(dict(self.mixture)) < len(self.mixture), "a task has one weight"),
            (not 0 < self.beta < math.inf, "beta is above 0"),
        ]  # fmt: skip

    @property
    def adapter(self) -> bool:
        """Whether the result is an adapter rather than a whole model."""
        return self.method not in WHOLE

    @property
    def bits(self) -> int | None:
        """To how many bits the base is quantised, or None."""
        return BITS.get(self.method)

    def updates(self, rows: int) -> int:
        """How many updates so many rows come to, one at least; 3 epochs where the recipe leaves it open."""
        return self.max_steps or max(1, math.ceil((self.epochs or 3.0) * rows / self.batch))

    def settled(self, parameters: int, rows: int) -> Recipe:
        """The recipe with every choice made, for a model of so many parameters and so many rows.

        Few rows are seen more often, until :data:`ENOUGH_STEPS` updates were made or a row was seen
        :data:`MOST_EPOCHS` times. Raises ``UsageError`` where the learning rate is not sane for the method and size.
        """
        small = parameters < SMALL
        lr = self.lr or usual_rate(self.method, parameters)
        check_rate(self.method, lr, parameters)
        enough = ENOUGH_STEPS * self.batch / max(rows, 1)
        epochs = self.epochs or (
            min(MOST_EPOCHS, max(3.0, round(enough))) if small and self.method != "dpo" else 3.0
        )
        micro = min(self.batch, self.micro_batch or self.batch)
        fits = self.adapter and self.method not in (
            "adalora",
            "dpo",
        )  # peft's AdaLoRA cannot train single tokens
        tokens = fits and (small if self.answer_tokens is None else self.answer_tokens)
        return dataclasses.replace(self, lr=lr, epochs=epochs, micro_batch=micro, answer_tokens=tokens)


def usual_rate(method: str, parameters: int) -> float:
    """The peak learning rate that is usual for a method on a model of so many parameters."""
    return (_SMALL_LR if parameters < SMALL else _LARGE_LR)[method]


def check_rate(method: str, lr: float, parameters: int) -> None:
    """Refuse a rate that is far from the usual one: too high destroys the base, too low learns nothing, both silently.

    >>> check_rate("full", 2e-4, 8_000_000_000)
    >>> check_rate("full", 5e-3, 8_000_000_000)
    Traceback (most recent call last):
        ...
    curation.errors.UsageError: recipe: a learning rate of 0.005 is 500 times the usual one for full on a model of this \
size (8,000.0 million parameters). Choose one between 5e-07 and 0.0002.
    """
    usual = usual_rate(method, parameters)
    if usual / _SANE <= lr <= usual * _SANE:
        return
    times = f"{lr / usual:.0f} times" if lr > usual else f"a {usual / lr:.0f}th of"
    raise UsageError(
        f"a learning rate of {lr:g} is {times} the usual one for {method} on a model of this size "
        f"({parameters / 1e6:,.1f} million parameters)",
        where="recipe",
        next=f"Choose one between {usual / _SANE:g} and {usual * _SANE:g}",
    )


def pace(step: int, steps: int, recipe: Recipe) -> float:
    """The share of the peak learning rate that update ``step`` (from 0) of ``steps`` is made with.

    It rises in equal strides over the warm-up, then falls to zero by a cosine (Loshchilov and Hutter 2017) or a line, or
    stays.

    >>> [round(pace(i, 4, Recipe(warmup=0.0)), 3) for i in range(4)]
    [1.0, 0.854, 0.5, 0.146]
    """
    warm = math.ceil(recipe.warmup * steps)
    if step < warm:
        return (step + 1) / (warm + 1)
    gone = (step - warm) / max(1, steps - warm)
    falls = {"constant": 1.0, "linear": 1.0 - gone, "cosine": 0.5 * (1 + math.cos(math.pi * gone))}
    return falls[recipe.schedule]
