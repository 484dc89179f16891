"""What must hold before rows may be trained on, and in what words it did not.

A gate looks at facts that others have counted (scans, leaks, gaps, agreement) and passes, refuses, or says
that nobody measured. A fact that is missing refuses: silence is not a clean report. Nothing here counts,
scans or reads rows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from curation.errors import GateRefused

PASSED, REFUSED, OFF, NOT_MEASURED, PENDING = "passed", "refused", "off", "not measured", "pending"
GATES = ("pii", "leakage", "coverage", "agreement", "approval")


@dataclass(frozen=True)
class GateRule:
    """Which gates stand. ``min_alpha`` of 0 or ``None`` asks for no agreement; ``approval`` is gates or curator."""

    pii: bool = True
    leakage: bool = True
    min_alpha: float | None = None
    approval: str = "gates"


@dataclass(frozen=True)
class GateResult:
    """One gate's answer: ``status`` is passed, refused, off, not measured or pending; ``detail`` says it in words."""

    gate: str
    status: str
    detail: str

    def to_dict(self) -> dict[str, str]:
        """The answer as it stands in a manifest."""
        return asdict(self)


def check_gates(facts: Mapping[str, Any], rule: GateRule) -> list[GateResult]:
    """Every gate's answer, in the order of :data:`GATES`. Reads the facts ``pii``, ``leakage``, ``coverage``
    and ``agreement`` as :func:`curation.snapshot.freeze` describes them.
    """
    return [
        _pii(facts.get("pii"), rule),
        _leakage(facts.get("leakage"), rule),
        _coverage(facts.get("coverage")),
        _agreement(facts.get("agreement"), rule),
        _approval(rule),
    ]


def refuse(results: Sequence[GateResult]) -> None:
    """Raise :class:`GateRefused` that names every gate that refused; do nothing where none did."""
    bad = [result for result in results if result.status == REFUSED]
    if bad:
        raise GateRefused(
            "; ".join(f"the {result.gate} gate refuses: {result.detail}" for result in bad),
            where="snapshot",
            next="Nothing was frozen; mend what is named, then freeze again",
        )


def _zero(facts: Mapping[str, Any] | None, wanted: Mapping[str, str]) -> str:
    """What is wrong with counts that must be there and be 0, in words; empty where nothing is."""
    if facts is None:
        return "nobody has looked"
    wrong = [f"{words} was not counted" for key, words in wanted.items() if facts.get(key) is None]
    wrong += [f"{words}: {facts[key]:,}" for key, words in wanted.items() if facts.get(key)]
    return ", ".join(wrong)


def _pii(facts: Mapping[str, Any] | None, rule: GateRule) -> GateResult:
    if not rule.pii:
        return GateResult("pii", OFF, "switched off by [gates] pii")
    wanted = {
        "unscanned": "rows without a scan under the current rule",
        "open_spans": "personal data without an alias",
        "collisions": "aliases that two people share or that occur in the text",
        "marked": "records with personal data that people marked and that still stands there",
    }
    wrong = _zero(facts, wanted)
    if named := (facts or {}).get("marked_records"):
        wrong += f" ({', '.join(named)})"
    layers = ", ".join((facts or {}).get("layers", ())) or "none named"
    return GateResult(
        "pii", REFUSED if wrong else PASSED, wrong or f"every row was scanned; layers: {layers}"
    )


def _leakage(facts: Mapping[str, Any] | None, rule: GateRule) -> GateResult:
    if not rule.leakage:
        return GateResult("leakage", OFF, "switched off by [gates] leakage")
    wrong = _zero(facts, {"leaks": "training rows that an evaluation set holds"})
    sets = len((facts or {}).get("eval_sets", ()))
    good = f"no training row is in an evaluation set ({sets} compared)"
    return GateResult("leakage", REFUSED if wrong else PASSED, wrong or good)


def _coverage(facts: Mapping[str, Any] | None) -> GateResult:
    if facts is None or facts.get("gaps") is None:
        return GateResult("coverage", REFUSED, "nobody has looked for rows that a stage has not seen")
    gaps = {stage: count for stage, count in facts["gaps"].items() if count}
    words = ", ".join(f"{stage} has not seen {count:,} rows" for stage, count in sorted(gaps.items()))
    return GateResult("coverage", REFUSED if gaps else PASSED, words or "every stage has seen every row")


def _agreement(facts: Mapping[str, Any] | None, rule: GateRule) -> GateResult:
    alpha = (facts or {}).get("alpha")
    if alpha is None or math.isnan(alpha):
        status = REFUSED if rule.min_alpha else NOT_MEASURED
        return GateResult("agreement", status, "agreement between people was not measured")
    words = f"Krippendorff's alpha is {alpha:.3f}"
    if not rule.min_alpha:
        return GateResult("agreement", OFF, f"{words}; none is asked for")
    status = PASSED if alpha >= rule.min_alpha else REFUSED
    return GateResult("agreement", status, f"{words}; {rule.min_alpha:.3f} is asked for")


def _approval(rule: GateRule) -> GateResult:
    if rule.approval == "gates":
        return GateResult("approval", PASSED, "the gates approve")
    return GateResult("approval", PENDING, "a curator must approve it before anything is trained on it")
