"""Who answers: people behind a channel (Label Studio or files), or a simulation that reads the hidden gold.

All write the same thing: Labels that cite the Showing they answer. ``plan`` knows who has time and for what.
"""

from __future__ import annotations

from curation.people.intake import held, pull
from curation.people.plan import Person, add, people, stop
from curation.people.showing import make_tasks
from curation.people.simulated import Simulated, answered
from curation.people.through import (
    TASKS_FILE,
    Through,
    chosen,
    files,
    label_studio,
    pull_all,
    push_open,
    server,
)

__all__ = [
    "TASKS_FILE",
    "Person",
    "Simulated",
    "Through",
    "add",
    "answered",
    "chosen",
    "files",
    "held",
    "label_studio",
    "make_tasks",
    "people",
    "pull",
    "pull_all",
    "push_open",
    "server",
    "stop",
]
