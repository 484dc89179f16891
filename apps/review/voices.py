"""Who stands behind an answer on the curators' page: how skilled, how fast, when, and what was on their screen.

People appear by a short opaque id: their names should not sway. Nothing here decides anything.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from curation.ledger import Ledger, Showing
from curation.records import JUDGING


@dataclass(frozen=True)
class Voice:
    """Somebody who gave an answer. ``skill`` is what consensus makes of a person's word, in [0, 1]; ``seconds`` they took;
    ``time`` (ISO 8601) when; ``saw`` what their screen suggested, in words.
    """

    kind: str
    name: str
    confidence: float | None = None
    skill: float | None = None
    seconds: float | None = None
    time: str = ""
    saw: str = ""


@dataclass(frozen=True)
class Voices:
    """The voices of some records by Label, Labels that are no answers, and what a model proposed for each record."""

    by_label: Mapping[str, Voice]
    judgements: frozenset[str]
    proposals: Mapping[str, Mapping[str, Voice]]


def gather(ledger: Ledger, records: Sequence[str], skills: Mapping[str, float]) -> Voices:
    """Everybody who spoke on the records."""
    names = {author.id: author.name for author in ledger.authors()}
    judging = {q.name for q in ledger.questions() if q.kind in JUDGING}
    shown = {s.id: s for record in records for s in ledger.showings(record=record)}
    rows = ledger.labels(records=records).to_pylist()
    proposals: dict[str, dict[str, Voice]] = {}
    for showing in shown.values():
        if showing.suggestion and _is_model(showing) and showing.question not in judging:
            sure = (showing.extra or {}).get("confidence")
            voice = Voice("model", (showing.suggestion_by or "")[:6], sure)
            proposals.setdefault(showing.record, {})[showing.suggestion] = voice
    return Voices(
        {row["label"]: _voice(row, names, shown.get(row["showing"] or ""), skills) for row in rows},
        frozenset(row["label"] for row in rows if row["question"] in judging),
        proposals,
    )


def _is_model(showing: Showing) -> bool:
    return showing.suggestion_by not in (None, "source", "functions")


def _voice(
    row: Mapping[str, str],
    names: Mapping[str, str | None],
    showing: Showing | None,
    skills: Mapping[str, float],
) -> Voice:
    author = row["author"] or ""
    is_person = row["kind"] in ("person", "curator")
    shown = author[:6] if is_person else names.get(author) or author[:6]
    confidence = row["confidence"]
    voice = Voice(row["kind"], shown, None if confidence is None else float(confidence))
    if row["kind"] != "person":
        return voice
    told = json.loads(row["extra"] or "{}")
    return replace(
        voice,
        skill=skills.get(author),
        seconds=told.get("lead_time"),
        time=told.get("updated_at") or "",
        saw=_saw(showing),
    )


def _saw(showing: Showing | None) -> str:
    if showing is None:
        return ""
    if showing.suggestion is None:
        return "saw no suggestion"
    return f"was shown “{_short(showing.suggestion)}”"


def _short(text: str, most: int = 40) -> str:
    line = " ".join(text.split())
    return line if len(line) <= most else f"{line[: most - 1]}…"


def in_words(voice: Voice) -> str:
    """One line about somebody who gave an answer."""
    parts = [f"{voice.kind} {voice.name}"]
    parts += [f"{voice.confidence:.0%} sure"] if voice.confidence is not None else []
    parts += [f"skill {voice.skill:.2f}"] if voice.skill is not None else []
    parts += [f"{voice.seconds:.0f} s"] if voice.seconds is not None else []
    parts += [voice.time[:16].replace("T", " ")] if voice.time else []
    parts += [voice.saw] if voice.saw else []
    return "  ·  ".join(parts)
