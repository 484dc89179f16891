"""Filters that can be explained: each measures one thing about a row, and says what it measured and where the
limit is.

Nothing here asks a model, and nothing here rewrites text. A filter speaks only of what is plainly wrong:
damage is dropped, what a person should see is held. Class labels are not judged as prose: of a short answer
only its being empty or damaged matters.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from curation import records
from curation.quality.measures import (
    Measured,
    QualityRule,
    automatic,
    boilerplate,
    broken_json,
    empty,
    longest_run,
    loop,
    lost_characters,
    mojibake,
    placeholder,
    prompt_echo,
    refusal,
    repetition,
    too_long,
    truncated,
    wrong_script,
)
from curation.text import tokens


@dataclass(frozen=True)
class Finding:
    """One filter that a row fails: what was measured, the limit it broke, and what follows."""

    filter: str
    field: str
    measure: float
    limit: float
    action: str  # drop: damaged beyond use; hold: a person decides
    reason: str


# --- Rows -----------------------------------------------------------------------------------------

Filter = Callable[[str, QualityRule], Measured | None]

# Name, filter, action, and the reason in words. The first that a row fails is the one its decision names.
_ANY_TEXT: tuple[tuple[str, Filter, str, str], ...] = (
    ("empty", empty, "drop", "nothing in it"),
    ("lost_characters", lost_characters, "drop", "characters were lost in decoding"),
    ("mojibake", mojibake, "drop", "text was decoded with the wrong encoding"),
    ("too_long", too_long, "hold", "longer than one document should be"),
)
_ASKED: tuple[tuple[str, Filter, str, str], ...] = (
    ("automatic", automatic, "hold", "an automatic mail: nobody asks anything"),
)
_PROSE: tuple[tuple[str, Filter, str, str], ...] = (
    ("loop", loop, "drop", "the same words again and again"),
    ("repetition", repetition, "hold", "much of it is repetition"),
    ("boilerplate", boilerplate, "hold", "leftovers of a web page or a chat window"),
    ("refusal", refusal, "hold", "declines instead of answering"),
    ("placeholder", placeholder, "hold", "a placeholder was left in"),
    ("broken_json", broken_json, "hold", "begins like JSON and does not parse"),
    ("truncated", truncated, "hold", "stops in the middle"),
)


def explain(row: Mapping[str, Any], rule: QualityRule) -> list[Finding]:
    """Every filter that a row (``prompt``, ``completion``, ``lang``) fails, the worst first; none for a good
    row.

    A completion of None is not judged; the record is waiting for one.
    """
    prompt, completion = row.get("prompt") or "", row.get("completion")
    found = _run((*_ANY_TEXT, *_ASKED), "prompt", prompt, rule)
    if measured := wrong_script(prompt, rule, row.get("lang")):
        found.append(
            Finding("wrong_script", "prompt", *measured, "hold", "not in the script of its language")
        )
    if completion is not None:
        found += _explain_completion(prompt, completion, rule)
    return sorted(found, key=lambda finding: finding.action != "drop")


def _explain_completion(prompt: str, completion: str, rule: QualityRule) -> list[Finding]:
    found = _run(_ANY_TEXT, "completion", completion, rule)
    if not rule.free_text or found or len(tokens(completion)) < rule.short:
        return found
    found = _run(_PROSE, "completion", completion, rule)
    if measured := prompt_echo(prompt, completion, rule):
        found.append(Finding("prompt_echo", "completion", *measured, "drop", "repeats the prompt"))
    return found


def _run(
    filters: Sequence[tuple[str, Filter, str, str]], field: str, text: str, rule: QualityRule
) -> list[Finding]:
    measured = ((name, check(text, rule), action, reason) for name, check, action, reason in filters)
    return [Finding(name, field, *found, action, reason) for name, found, action, reason in measured if found]


def find_low_quality(view: pa.Table, rule: QualityRule) -> pa.Table:
    """One decision per row that fails a filter, naming the worst one, what it measured and its limit.

    Evidence also lists the other filters that the row fails. Good rows get none; an empty view gives none.
    """
    columns = (view[name].to_pylist() for name in ("record", "label", "prompt", "completion", "lang"))
    found = []
    for record, label, prompt, completion, lang in zip(*columns, strict=True):
        failed = explain({"prompt": prompt, "completion": completion, "lang": lang}, rule)
        if failed:
            found.append(_decision(record, label, failed))
    return records.table(found, records.DECISIONS)


def _decision(record: str, label: str | None, failed: list[Finding]) -> dict[str, Any]:
    worst = failed[0]
    evidence = {
        "filter": worst.filter,
        "field": worst.field,
        "measure": worst.measure,
        "limit": worst.limit,
        "also": [f"{other.field}: {other.filter}" for other in failed[1:]],
    }
    return records.decision(
        record, worst.action, f"{worst.field}: {worst.reason}", label=label, evidence=evidence
    )


# --- Limits from data, and every filter in one line ---------------------------------------------------

TRUSTED = ("gold", "curator", "person", "reference")
ENOUGH = 200  # trusted rows from which limits can be read


def fitted(view: pa.Table, rule: QualityRule, share: float = 0.001) -> QualityRule:
    """The rule with its limits moved to where at most ``share`` of the trusted rows break one.

    What people wrote and vouched for is taken for good: a limit that many of their rows break is wrong for this data,
    and one that all of them stay far under is looser than it need be. Lengths get twice the quantile, since the longest
    good row was not seen yet. Under 200 trusted completions the rule stays as it is. The given limit of repeats, below
    which ordinary speech lies, is never undercut.
    """
    good = [
        row
        for row in view.select(["prompt", "completion", "trust"]).to_pylist()
        if row["completion"] and row["trust"] in TRUSTED
    ]
    if len(good) < ENOUGH:
        return rule
    lengths = [len(tokens(row[name] or "")) for row in good for name in ("prompt", "completion")]
    repeats = [_most_repeats(tokens(row["completion"])) for row in good]
    return replace(
        rule,
        max_words=max(2 * _quantile(lengths, share), 1),
        repeats=max(_quantile(repeats, share), rule.repeats),
    )


def _most_repeats(words: Sequence[str]) -> int:
    return max((longest_run(words, n) for n in range(1, 11)), default=0)


def _quantile(values: Sequence[int], share: float) -> int:
    """The least value that at most ``share`` of the values are over."""
    ordered = sorted(values)
    return ordered[min(int(len(ordered) * (1 - share)), len(ordered) - 1)]


def _first_line(filter: Any) -> str:
    return (filter.__doc__ or "").strip().split("\n\n")[0].replace("\n", " ")


_SOURCES = {
    "repetition": "Rae et al. 2021 (Gopher), table A1",
    "boilerplate": "Raffel et al. 2020 (C4), section 2.2",
    "automatic": "RFC 3834",
    "too_long": "Rae et al. 2021 (Gopher), table A1, for the idea of a word limit",
}

CATALOGUE: dict[str, tuple[str, str]] = {
    name: (" ".join(_first_line(check).split()), _SOURCES.get(name, ""))
    for name, check in (
        *((name, check) for name, check, _, _ in (*_ANY_TEXT, *_ASKED, *_PROSE)),
        ("wrong_script", wrong_script),
        ("prompt_echo", prompt_echo),
    )
}
"""Every filter: what it finds, in a line, and where its limit was published, if it was."""
