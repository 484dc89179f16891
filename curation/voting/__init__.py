"""Weak supervision: labeling functions vote, a label model weighs the votes into one probability per class.

``functions`` finds them by path and names each by a digest of everything that decides its votes; ``helpers`` are
ready-made ones; ``apply`` runs them (Snorkel's applier), here or in a process with limits; ``matrix`` holds the votes and
describes them; ``models`` are what weighs them, ``fitting`` and ``snorkel`` learn those, ``heldout`` judges them by votes
they were not shown, and ``labelling`` chooses one and says why; ``trust`` turns confidence into weights and picks the
rows to believe. Nothing here writes a file or knows the ledger, no label is ever decided by its own gold, and no
parameter is stored by pickle. Labeling functions are code of a trusted operator: the limits stop accidents, not attackers.
"""

from curation.voting.apply import Limits, apply_functions
from curation.voting.functions import Function, Row, find_functions, functions_for, labeling_function
from curation.voting.helpers import keyword, length, lookup, model_votes, regex
from curation.voting.labelling import MODELS, Report, label
from curation.voting.matrix import ABSTAIN, Failures, Votes, analyse, read_gold, read_votes, worst_examples
from curation.voting.models import model_from_parameters
from curation.voting.trust import cut_statistic, lexical_features, loss_weight, priority, trusted

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
    "cut_statistic",
    "find_functions",
    "functions_for",
    "keyword",
    "label",
    "labeling_function",
    "length",
    "lexical_features",
    "lookup",
    "loss_weight",
    "model_from_parameters",
    "model_votes",
    "priority",
    "read_gold",
    "read_votes",
    "regex",
    "trusted",
    "worst_examples",
]
