"""Quality: filters that can be explained, limits from data, conventions of format, an audit of words, and scores made of
a model's log-probabilities.

Nothing here asks a model: what a model made of a row comes in as arrays.
"""

from curation.quality.audit import WordRate, audit_words
from curation.quality.conventions import Convention, conventions, find_inconsistent, standardise
from curation.quality.filters import (
    CATALOGUE,
    Finding,
    explain,
    find_low_quality,
    fitted,
)
from curation.quality.measures import QualityRule
from curation.quality.scores import find_unhelped, ifd, perplexity, perplexity_ratio

__all__ = [
    "CATALOGUE",
    "Convention",
    "Finding",
    "QualityRule",
    "WordRate",
    "audit_words",
    "conventions",
    "explain",
    "find_inconsistent",
    "find_low_quality",
    "find_unhelped",
    "fitted",
    "ifd",
    "perplexity",
    "perplexity_ratio",
    "standardise",
]
