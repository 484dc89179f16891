"""Presidio's package, imported without the libraries that run models.

``import presidio_analyzer`` imports transformers and torch wherever they are installed, for recognisers that nothing here
uses: 6.2 CPU seconds, and 1.1 without them. Every command that scans would pay that before its first row, and so would
every process of an engine.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from curation.errors import MissingExtra

HEAVY = ("torch", "transformers")
"""What Presidio and spaCy look for and do without."""


def import_alone() -> None:
    """Import Presidio as it is without :data:`HEAVY`; what was imported before stays, and is used as ever.

    spaCy, which Presidio imports, then runs no pipeline made with torch for as long as this process lives: not for rules
    with a layer of spaCy's. Raises :class:`MissingExtra` without Presidio.
    """
    try:
        with _hidden(HEAVY):
            import presidio_analyzer  # noqa: F401
    except ImportError:
        raise MissingExtra("pii", "presidio-analyzer") from None


@contextmanager
def _hidden(names: tuple[str, ...]) -> Iterator[None]:
    """Make packages that nobody imported yet look as if they were not installed; only where no other thread could ask."""
    modules: Any = sys.modules
    hidden = [name for name in names if name not in modules and threading.active_count() == 1]
    modules.update(dict.fromkeys(hidden))  # None stands for: cannot be imported
    try:
        yield
    finally:
        for name in hidden:
            del modules[name]
