"""Weak supervision: labeling functions vote, a label model weighs the votes into one probability per class.

``functions`` finds them by path and names each by a digest of everything that decides its votes; ``apply``
runs them (Snorkel's applier), here or in a process with limits; ``matrix`` holds the votes and describes
them; ``models`` are what weighs them, ``fitting`` and ``snorkel`` learn those, ``heldout`` judges them by votes they
were not shown, and ``labelling`` chooses one and says why. Nothing here writes a file or knows the ledger, no label is
ever decided by its own gold, and no parameter is stored by pickle. Labeling functions are code of a trusted operator:
the limits stop accidents, not attackers.
"""

from curation.voting.apply import Limits, apply_functions
from curation.voting.functions import Function, Row, find_functions, functions_for, labeling_function
from curation.voting.labelling import MODELS, Report, label
from curation.voting.matrix import ABSTAIN, Failures, Votes, analyse, read_gold, read_votes
from curation.voting.models import model_from_parameters

__all__ = [
    "ABSTAIN",
    "MODELS",
    "Failures",
    "Function",
    "Limits",
    "Report",
    "Row",
    "Votes",
    "analyse",
    "apply_functions",
    "find_functions",
    "functions_for",
    "label",
    "labeling_function",
    "model_from_parameters",
    "read_gold",
    "read_votes",
]
