"""What every way to people and back can do, be it a server or a file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from curation.label_studio.answers import PersonLabel


@dataclass(frozen=True)
class Pulled:
    """One page of answers. ``tasks`` are the remote ids of all tasks that were read, answered or not.

    Once its answers are stored, ``watermark`` may be: pulling since it goes on after this page.
    """

    answers: tuple[PersonLabel, ...]
    tasks: tuple[str, ...]
    watermark: str


class Channel(Protocol):
    """Tasks go out, answers come back. Every method may be called again after any failure; nothing is done
    twice.
    """

    def push(self, tasks: Sequence[Mapping[str, Any]]) -> dict[str, str]:
        """Make each task exist once on the other side. Gives the remote id of each showing."""

    def pull(self, since: str | None = None, *, held: Iterable[PersonLabel] = ()) -> Iterator[Pulled]:
        """The answers of every task that changed after ``since``, page by page; of all tasks where it is
        ``None``.

        ``held`` are the labels taken before: what is gone comes back as a tombstone.
        """

    def vanished(self, tasks: Sequence[str]) -> tuple[str, ...]:
        """Which of these remote tasks exist no longer."""
