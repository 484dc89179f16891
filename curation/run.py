"""One loop over one workspace: who learns, who answers, and the steps that are done already.

What trains and scores is handed in as a :class:`Learner`, who answers as an :class:`Annotator`: neither torch nor a server
is known here.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import pyarrow as pa

from curation import acquisition
from curation.errors import UsageError
from curation.ledger import Question, Showing
from curation.question import current
from curation.workspace import Progress, Workspace, silent

MAIN, TWIN = "main", "random"


@dataclass(frozen=True)
class Trained:
    """An adapter that a learner made: its digest, its folder in the artifact store, and what training it cost."""

    adapter: str
    base: str
    recipe: Mapping[str, Any]
    metrics: Mapping[str, Any]
    seconds: float
    folder: str


class Learner(Protocol):
    """What trains, scores and measures. Everything it makes goes into the artifact store under its digest."""

    def base(self, texts: Iterator[str], progress: Progress) -> str:
        """Make or find the base model and return its name; ``texts`` are unlabelled, scrubbed prompts."""

    def train(self, snapshot: str, *, base: str, progress: Progress) -> Trained:
        """Train an adapter on a snapshot of the store."""

    def score(self, adapter: str | None, base: str, rows: pa.Table, classes: Sequence[str]) -> pa.Table:
        """SCORES of the rows of a VIEW; by the base alone where ``adapter`` is ``None``."""

    def compare(
        self, adapters: Mapping[str, str], rows: pa.Table, classes: Mapping[str, Sequence[str]], closed: bool
    ) -> dict[str, Any]:
        """``{"metric", "arms": {name: {"value", "ci95"}}, "difference": {"value", "ci95"} | None}`` on EXAMPLES."""


class Annotator(Protocol):
    """Who answers: people behind a channel, or a simulation."""

    name: str
    simulated: bool

    def ask(self, workspace: Workspace, question: Question, showings: Sequence[Showing]) -> int:
        """Bring the showings to the people, each exactly once however often this is called; how many are new."""

    def collect(self, workspace: Workspace, question: Question) -> dict[str, int]:
        """Fetch what they answered and write it to the ledger as Labels that cite their showings; counts of both."""

    def waiting(self, workspace: Workspace, showings: Sequence[str]) -> int:
        """How many of these showings nobody has answered or skipped yet."""

    def where(self, workspace: Workspace) -> str:
        """Where the people find their tasks."""

    def batch(self, workspace: Workspace, question: Question, per_record: int) -> int | None:
        """How many records fit into people's time; ``None`` where nothing limits a batch."""

    def seats(
        self, workspace: Workspace, question: Question, rows: Sequence[tuple[str, str]], per_record: int
    ) -> dict[str, tuple[str, ...]]:
        """Who should see each record: ids of people, or numbers for whoever comes. ``rows`` are (record, words)."""

    def another(
        self,
        workspace: Workspace,
        question: Question,
        rows: Sequence[tuple[str, str]],
        given: Mapping[str, int] | None = None,
    ) -> dict[str, tuple[str, ...]]:
        """Who could give one more answer to each record that has some; nobody where it might be the same person.

        ``given`` are the tasks of the same batch that each person has already.
        """


@dataclass
class Run:
    """One loop over one workspace. ``name`` keys its steps in the ledger: the same name is the same run.

    Raises :class:`UsageError` for a strategy that there is not.
    """

    workspace: Workspace
    learner: Learner
    annotator: Annotator
    name: str
    progress: Progress = silent
    batch: int | None = None
    strategy: str | None = None
    clock: Callable[[], float] = field(default=time.monotonic, repr=False)

    def __post_init__(self) -> None:
        # Before anything is learned or scored, which takes minutes.
        if self.strategy not in (None, *acquisition.STRATEGIES):
            raise UsageError(
                f"{self.strategy!r} is none of {', '.join(acquisition.STRATEGIES)}", where="--strategy"
            )

    def once(self, round: int, step: str, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The output of a step: from the ledger if it was finished before, else worked out now and kept."""
        known = self.workspace.ledger.step(self.name, round, step)
        if known is not None:
            return known
        self.progress(f"round {round}: {step}", 0, None)
        start = self.clock()
        output = work()
        output["seconds"] = round_seconds(self.clock() - start)
        return self.workspace.ledger.finish_step(self.name, round, step, output)

    @property
    def rule(self) -> acquisition.AcquisitionRule:
        """How the next batch is chosen."""
        section = self.workspace.config.acquisition
        return acquisition.AcquisitionRule(
            strategy=self.strategy or section.strategy,
            batch=self.batch or self._fitting() or section.batch,
            control_share=section.control_share,
            blind_share=section.blind_share,
            seed=section.seed,
        )

    def _fitting(self) -> int | None:
        asked = self.workspace.config.the_question[1].annotators_per_record
        return self.annotator.batch(self.workspace, current(self.workspace), asked)


def round_seconds(seconds: float) -> float:
    """Seconds to the tenth: more digits would only pretend."""
    return round(seconds, 1)
