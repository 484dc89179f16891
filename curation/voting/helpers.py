"""Ready-made labeling functions: keyword, pattern, length, look-up, and another model that may abstain.

Each returns a :class:`Function` like a decorated one; give it to a module-level name so that it is found. What decides
its votes (words, pattern, bounds) is part of its digest.
"""

from __future__ import annotations

import csv
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

from curation.errors import UsageError
from curation.text import normalise
from curation.voting.functions import Function, Row, labeling_function

Scorer = Callable[[str], Mapping[str, float]]


def keyword(name: str, label: str, words: Iterable[str], *, field: str = "prompt") -> Function:
    """Votes ``label`` where one of ``words`` stands in the text as a whole word or phrase, whatever its case.

    Raises :class:`UsageError` without words.

    >>> greets = keyword("greets", "greeting", ["hello", "good morning"])
    >>> greets(Row(prompt="Good  morning to you")), greets(Row(prompt="Othello"))
    ('greeting', None)
    """
    wanted = tuple(sorted({normalise(word) for word in words} - {""}))
    if not wanted:
        raise UsageError(f"{name} has no words to look for", next="Give at least one")
    pattern = r"(?<!\w)(?:" + "|".join(map(re.escape, wanted)) + r")(?!\w)"

    def votes(row: Row) -> str | None:
        return label if _search(pattern, normalise(_text(row, field))) else None

    return _made(name, [label], votes, f"Looks for {', '.join(wanted[:5])}.")


def regex(
    name: str, label: str, pattern: str, *, field: str = "prompt", flags: int = re.IGNORECASE
) -> Function:
    """Votes ``label`` where ``pattern`` is found. Raises :class:`UsageError` for a pattern that does not compile."""
    try:
        re.compile(pattern, flags)
    except re.error as error:
        raise UsageError(
            f"the pattern of {name} does not compile: {error}", where=pattern, next="Mend the pattern"
        ) from error

    def votes(row: Row) -> str | None:
        return label if _search(pattern, _text(row, field), flags) else None

    return _made(name, [label], votes, f"Looks for {pattern}.")


def length(
    name: str, label: str, *, at_least: int = 0, at_most: int | None = None, field: str = "prompt"
) -> Function:
    """Votes ``label`` where the text has ``at_least`` and ``at_most`` so many words."""

    def votes(row: Row) -> str | None:
        words = len(_text(row, field).split())
        return label if at_least <= words and (at_most is None or words <= at_most) else None

    return _made(name, [label], votes, f"Counts words: {at_least} to {at_most or 'any number'}.")


def lookup(name: str, file: str | Path, classes: Iterable[str], *, field: str = "prompt") -> Function:
    """Votes the class that a CSV file (``phrase,class`` a line) gives for the longest phrase found in the text.

    Two phrases of one length that speak for different classes make it abstain. ``file`` is read once, where the function
    is made, so its content becomes part of the digest. Raises :class:`UsageError` for a class that is not declared.
    """
    known = tuple(classes)
    with open(file, newline="", encoding="utf-8") as lines:
        table = {
            normalise(row[0]): row[1].strip() for row in csv.reader(lines) if len(row) > 1 and row[0].strip()
        }
    strange = sorted(set(table.values()) - set(known))
    if strange:
        raise UsageError(
            f"{name} would vote {strange[0]!r}, which is not declared",
            where=str(file),
            next=f"Its classes are: {', '.join(known)}",
        )
    entries = tuple(sorted(table.items()))

    def votes(row: Row) -> str | None:
        words = re.findall(r"[^\W_]+", normalise(_text(row, field)))
        text = f" {' '.join(words)} "
        found = [(len(phrase), label) for phrase, label in entries if f" {phrase} " in text]
        longest = max((size for size, _ in found), default=0)
        said = {label for size, label in found if size == longest}
        return said.pop() if len(said) == 1 else None

    return _made(name, known, votes, f"Looks phrases up in {Path(file).name}.")


def model_votes(
    name: str, scorer: Scorer, classes: Iterable[str], *, at_least: float = 0.7, field: str = "prompt"
) -> Function:
    """Votes the likeliest class of another model, and abstains where it is less sure than ``at_least``.

    ``scorer`` maps a text to probabilities by class; it must be a function of the same folder, or of a library, so that a
    digest can cover it. A class that is not declared is never voted for.
    """
    known = tuple(classes)

    def votes(row: Row) -> str | None:
        scores = scorer(_text(row, field))
        best = max(scores, key=lambda label: scores[label], default=None)
        return best if best in known and scores[best] >= at_least else None

    return _made(name, known, votes, f"Asks a model and abstains below {at_least:g}.")


def _made(
    name: str, classes: Iterable[str], votes: Callable[[Row], str | None], description: str
) -> Function:
    """The function, at home in the file that asked for it: there it is found, and there its helpers are looked for."""
    votes.__doc__ = description
    frame = sys._getframe(2)
    return replace(
        labeling_function(classes=classes, name=name)(votes),
        made=(frame.f_code.co_filename, frame.f_lineno),
    )


def _text(row: Row, field: str) -> str:
    if field not in ("prompt", "completion"):
        raise UsageError(f"a labeling function reads no field {field!r}", next="Choose prompt or completion")
    return (row.prompt if field == "prompt" else row.completion) or ""


@lru_cache(maxsize=512)
def _compiled(pattern: str, flags: int) -> re.Pattern[str]:
    return re.compile(pattern, flags)


def _search(pattern: str, text: str, flags: int = 0) -> bool:
    return _compiled(pattern, flags).search(text) is not None
