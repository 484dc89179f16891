"""Consensus: many opinions become one probability, and numbers say how far people agree.

``answers`` holds who said what as columns of numbers; ``classes`` weighs annotators (``annotators`` are its models),
``texts`` chooses among free-text answers, ``grades`` pools ordinal ones and ranks pairs, ``agreement`` measures,
``scoring`` compares with known answers, ``opinions`` joins people, functions and sources for a workspace, ``worth`` says
what one more label would be worth. Nothing here reads a file or a ledger, and free text is never rewritten.
"""

from curation.consensus.agreement import (
    by_slice,
    cohen_kappa,
    fleiss_kappa,
    krippendorff_alpha,
    pairwise_kappa,
    with_interval,
)
from curation.consensus.answers import Answers, Names
from curation.consensus.classes import MODELS, Agreed, agree
from curation.consensus.grades import bradley_terry, grade
from curation.consensus.opinions import (
    Consensus,
    ConsensusRule,
    Opinion,
    class_consensus,
    posterior,
    skills,
    text_consensus,
)
from curation.consensus.scoring import gleu, score_classes, score_texts, token_f1
from curation.consensus.texts import TextAgreed, TextRule, agree_on_text, text_alpha
from curation.consensus.worth import relabel_or_new

__all__ = [
    "MODELS",
    "Agreed",
    "Answers",
    "Consensus",
    "ConsensusRule",
    "Names",
    "Opinion",
    "TextAgreed",
    "TextRule",
    "agree",
    "agree_on_text",
    "bradley_terry",
    "by_slice",
    "class_consensus",
    "cohen_kappa",
    "fleiss_kappa",
    "gleu",
    "grade",
    "krippendorff_alpha",
    "pairwise_kappa",
    "posterior",
    "relabel_or_new",
    "score_classes",
    "score_texts",
    "skills",
    "text_alpha",
    "text_consensus",
    "token_f1",
    "with_interval",
]
