"""Labeling functions that accept or reject a completion, whatever the domain: is this an answer at all?

Each looks at one plain property; none judges whether the answer is true. A record without a completion gets
no vote.
"""

from __future__ import annotations

import re

from curation.text import jaccard, normalise, tokens
from curation.voting import Row, labeling_function

ACCEPT, REJECT = "ACCEPT", "REJECT"

HOLLOW = re.compile(
    r"\b(lorem ipsum|todo|tbd|xxx+|asdf|n/a|insert .{1,30} here|your (name|company) here)\b"
    r"|\[[a-z _]+\]|\{\w+\}"
)
REFUSAL = re.compile(
    r"\b(as an ai|i am an ai|i'?m (sorry|afraid)[, ].{0,30}(can'?t|cannot|unable)"
    r"|i (can'?t|cannot) (help|assist|answer))\b"
)
ENDING = re.compile(r"[.!?…:)\]\"'»”。！？]\s*$")


def words(row: Row) -> list[str]:
    """The words of the completion; none where there is no completion."""
    return tokens(row.completion or "")


@labeling_function(classes=[REJECT])
def empty(row: Row) -> str | None:
    """Nothing but white space."""
    return REJECT if row.completion is not None and not row.completion.strip() else None


@labeling_function(classes=[REJECT])
def too_short(row: Row) -> str | None:
    """One or two words, to a prompt of twenty or more."""
    return REJECT if 0 < len(words(row)) < 3 and len(tokens(row.prompt)) >= 20 else None


@labeling_function(classes=[REJECT])
def echo(row: Row) -> str | None:
    """Says the prompt again: nine tenths of the distinct words are the same."""
    said = words(row)
    return REJECT if len(said) >= 3 and jaccard(set(said), set(tokens(row.prompt))) >= 0.9 else None


@labeling_function(classes=[REJECT])
def hollow(row: Row) -> str | None:
    """A form that nobody filled in."""
    return REJECT if row.completion and HOLLOW.search(normalise(row.completion)) else None


@labeling_function(classes=[REJECT])
def refusal(row: Row) -> str | None:
    """A machine that declines."""
    return REJECT if row.completion and REFUSAL.search(normalise(row.completion).replace("’", "'")) else None


@labeling_function(classes=[REJECT])
def repeats_itself(row: Row) -> str | None:
    """Fewer than three in ten words are distinct, in twenty or more."""
    said = words(row)
    return REJECT if len(said) >= 20 and len(set(said)) < 0.3 * len(said) else None


@labeling_function(classes=[REJECT])
def cut_off(row: Row) -> str | None:
    """Long, and stops without a full stop."""
    return REJECT if len(words(row)) >= 30 and not ENDING.search(row.completion or "") else None


@labeling_function(classes=[REJECT])
def markup(row: Row) -> str | None:
    """Remains of a web page or a prompt format."""
    found = re.search(
        r"</?(div|span|br|p|html)\b|<\|[a-z_]+\|>|\[/?inst\]|&(nbsp|amp);", (row.completion or "").lower()
    )
    return REJECT if found else None


@labeling_function(classes=[ACCEPT])
def speaks_to_the_prompt(row: Row) -> str | None:
    """A full answer that takes up several longer words of the prompt without repeating it."""
    said = {w for w in words(row) if len(w) > 5}
    shared = said & {w for w in tokens(row.prompt) if len(w) > 5}
    return ACCEPT if len(words(row)) >= 12 and len(shared) >= 2 and len(shared) < 0.8 * len(said) else None


@labeling_function(classes=[ACCEPT])
def well_formed(row: Row) -> str | None:
    """Two sentences or more, ended properly, begun with a capital or digit."""
    answer = (row.completion or "").strip()
    ended = len(re.findall(r"[.!?](\s|$)", answer)) >= 2 and ENDING.search(answer)
    return ACCEPT if ended and (answer[0].isupper() or answer[0].isdigit()) else None
