"""Weak rows: records whose class only labeling functions name. They stand beside those that people labelled, never among
the reserved ones.
"""

from __future__ import annotations

import numpy as np
import pyarrow.compute as pc

from curation import records, voting
from curation.consensus import Consensus
from curation.curate import Rules, load_table
from curation.examples import views_of
from curation.ledger import Question
from curation.workspace import Workspace

# Weak rows, labelled by functions alone, must be this sure, and there may be this many of them for each row that a
# person labelled: enough to teach what nobody has labelled yet, too few to drown what people said.
WEAK_CONFIDENCE = 0.8
WEAK_SHARE = 1.0
# Of so many of them at most (neighbours are sought among all pairs), the share that their neighbours confirm is kept.
WEAK_POOL = 10_000
WEAK_TRUSTED = 0.5


def weak_rows(
    workspace: Workspace, question: Question, usable: list[Consensus], taken: set[str]
) -> list[Consensus]:
    """Rows that only functions labelled, surely enough and like their neighbours; drawn by digest, the same every time."""
    if question.kind != "class":
        return []
    table = load_table(workspace, "probabilities", Rules(workspace).scrub)
    if table is None:
        return []
    found = []
    for row in table.filter(pc.greater(table["weight"], 0)).to_pylist():
        best = int(np.argmax(row["proba"]))
        sure = float(row["proba"][best])
        if sure >= WEAK_CONFIDENCE and row["record"] not in taken:
            found.append(Consensus(row["record"], row["classes"][best], sure, (), (), ("function",), False))
    found.sort(key=lambda c: records.digest("weak" + c.record))
    return _confirmed(workspace, found[:WEAK_POOL])[: int(WEAK_SHARE * len(usable))]


def _confirmed(workspace: Workspace, weak: list[Consensus]) -> list[Consensus]:
    """The half of the rows whose classes the wording of their neighbours confirms best (the cut statistic)."""
    views = views_of(workspace, Rules(workspace), weak)
    texts = dict(zip(views["record"].to_pylist(), views["prompt"].to_pylist(), strict=True))
    told = [c for c in weak if c.record in texts]
    if not told:
        return []
    code = {value: i for i, value in enumerate(dict.fromkeys(c.value for c in told))}
    sure = np.zeros((len(told), len(code)))
    sure[np.arange(len(told)), [code[c.value] for c in told]] = [c.confidence for c in told]
    features = voting.lexical_features([texts[c.record] for c in told])
    keep = voting.trusted(sure, features, WEAK_TRUSTED)
    return [c for c, kept in zip(told, keep.tolist(), strict=True) if kept]
