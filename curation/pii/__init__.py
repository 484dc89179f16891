"""Personal data: found by rules and checksums, replaced by keyed aliases that stay the same everywhere.

A :class:`ScrubRule` says what is scanned; a :class:`Scrubber` is a rule with a key; :func:`scrub_view` gives
the Decisions of a view and the aliases to register, :func:`scrub_texts` scrubs the fields of one row. The
layer ``patterns`` finds what has a form: addresses, numbers, accounts, devices. ``names`` and models from outside find
people and places. A rule that lists a layer that cannot be used quarantines every row rather than pretending.

Nothing here sends a byte over a network, lets an unscanned text pass, or keeps a value where an alias would
do.
"""

from __future__ import annotations

from curation.pii.aliases import Alias, Aliaser, AliasIndex, Collision, collisions
from curation.pii.outside import PACKAGES, located, split
from curation.pii.rule import KEPT_TYPES, MODES, THRESHOLD, ScrubRule, rule_digest
from curation.pii.scan import LAYERS, Scanner
from curation.pii.scrub import (
    Scrubbed,
    Scrubber,
    Unit,
    is_telling,
    scrub_texts,
    scrub_view,
    stand_ins,
    stands_in,
)
from curation.pii.spans import Edit, Mark, Span, Unscanned, resolve

__all__ = [
    "KEPT_TYPES",
    "LAYERS",
    "MODES",
    "PACKAGES",
    "THRESHOLD",
    "Alias",
    "AliasIndex",
    "Aliaser",
    "Collision",
    "Edit",
    "Mark",
    "Scanner",
    "ScrubRule",
    "Scrubbed",
    "Scrubber",
    "Span",
    "Unit",
    "Unscanned",
    "collisions",
    "is_telling",
    "located",
    "resolve",
    "rule_digest",
    "scrub_texts",
    "scrub_view",
    "split",
    "stand_ins",
    "stands_in",
]
