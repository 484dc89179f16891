"""Words that hurt, and words that name groups of people, counted by slice: numbers for a curator to look at, no verdict
on a row.

A list of words sees no meaning: it finds neither a polite insult nor a quotation. What it can show is a slice, a source
or a time, that stands out, and a group of people that is mentioned in worse company than others. The lists are short,
English, and meant to be replaced by a workspace's own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

import pyarrow as pa

from curation.calibration import wilson
from curation.text import tokens

# fmt: off
HARSH = frozenset([
    "stupid", "idiot", "idiots", "idiotic", "moron", "morons", "dumb", "loser", "losers", "worthless", "disgusting",
    "pathetic", "hate", "hates", "hated", "trash", "scum", "filthy", "damn", "crap", "shit", "fuck", "fucking",
    "bitch", "bastard", "kill", "killed", "die", "crazy", "insane", "ugly", "liar", "liars", "criminal", "criminals",
])
GROUPS: Mapping[str, frozenset[str]] = {
    "women": frozenset(["woman", "women", "female", "girl", "girls", "she", "her", "mother", "wife"]),
    "men": frozenset(["man", "men", "male", "boy", "boys", "he", "him", "his", "father", "husband"]),
    "religion": frozenset([
        "muslim", "muslims", "jew", "jews", "jewish", "christian", "christians", "hindu", "hindus", "buddhist",
        "atheist", "atheists", "islam", "catholic", "catholics",
    ]),
    "origin": frozenset([
        "immigrant", "immigrants", "foreigner", "foreigners", "refugee", "refugees", "african", "asian", "arab",
        "black", "white", "latino", "mexican", "indian", "chinese", "european",
    ]),
    "disability": frozenset(["disabled", "blind", "deaf", "wheelchair", "autistic", "disability"]),
    "age": frozenset(["elderly", "pensioner", "pensioners", "teenager", "teenagers", "old", "young"]),
    "sexuality": frozenset(["gay", "lesbian", "transgender", "trans", "bisexual", "homosexual", "queer"]),
}
# fmt: on


@dataclass(frozen=True)
class WordRate:
    """Of ``rows`` rows of a slice, ``hits`` hold a harsh word; 95% of such slices lie within ``low`` and ``high``
    (Wilson 1927). ``group`` is empty for all rows of the slice, else only those are counted that name the group."""

    slice: str
    group: str
    rows: int
    hits: int
    low: float
    high: float

    @property
    def rate(self) -> float:
        """The share of rows with a harsh word; 0 of none is 0."""
        return self.hits / self.rows if self.rows else 0.0


def audit_words(
    view: pa.Table,
    by: str = "source",
    *,
    harsh: Collection[str] = HARSH,
    groups: Mapping[str, Collection[str]] = GROUPS,
) -> list[WordRate]:
    """How often the completions of each slice hold a harsh word: of all, and of those that name a group of people.

    ``by`` is a column of the view. A row without a completion is not counted. Slices and groups without rows are left
    out; the worst come first.
    """
    rows: Counter[tuple[str, str]] = Counter()
    hits: Counter[tuple[str, str]] = Counter()
    columns = view[by].to_pylist(), view["completion"].to_pylist()
    for part, completion in zip(*columns, strict=True):
        if completion is None:
            continue
        words = {word.strip(".,;:!?\"'()") for word in tokens(completion)}
        for key in _keys(str(part), words, groups):
            rows[key] += 1
            hits[key] += not words.isdisjoint(harsh)
    made = [WordRate(*key, rows[key], hits[key], *wilson(hits[key], rows[key])) for key in rows]
    return sorted(made, key=lambda rate: (-rate.low, rate.slice, rate.group))


def _keys(part: str, words: set[str], groups: Mapping[str, Collection[str]]) -> Iterator[tuple[str, str]]:
    yield part, ""
    yield from ((part, group) for group, named in groups.items() if not words.isdisjoint(named))
