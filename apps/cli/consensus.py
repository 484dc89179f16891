"""``tilth consensus``: what several people's answers to the same items amount to."""

from __future__ import annotations

import time
from typing import Annotated, Any

import typer

from apps.cli import app, session
from apps.cli.data import DryRun
from apps.cli.filters import Out, Source, sink
from apps.cli.session import grid


@app.command(epilog="Example: tilth consensus answers.jsonl --out agreed.jsonl")
def consensus(
    source: Source,
    out: Out = "",
    kind: Annotated[str, typer.Option(help="class or text; without it, found out from the answers.")] = "",
    model: Annotated[
        str,
        typer.Option(help="For classes: auto, majority, one-coin, mace, glad, dawid-skene or hierarchical."),
    ] = "auto",
    min_confidence: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Below it, where people differ, a curator should look.")
    ] = 0.6,
    gold: Annotated[
        str, typer.Option(help="A field with the known label, to measure by; it decides nothing.")
    ] = "",
    dry_run: DryRun = False,
) -> None:
    """Agree on one label per item from rows of item, annotator and label; and say how far people agree."""
    from curation.errors import UsageError

    if kind not in ("", "class", "text"):
        raise UsageError(f"there is no kind {kind!r}", where="tilth consensus", next="Choose class or text")
    began = time.perf_counter()
    with session.progress() as meter:
        table = _Table(source, meter, gold)
        chosen = kind or table.kind()
        meter("agreeing", 0, None)
        result = table.texts(min_confidence) if chosen == "text" else table.classes(model, min_confidence)
    labels = result.pop("labels")
    scored = table.scores(labels, chosen) if gold else {}
    with sink(out, dry_run) as write:
        for row in result.pop("rows"):
            write(row)
    told = {**result, **scored, "kind": chosen, "seconds": round(time.perf_counter() - began, 3)}
    session.report({**told, "dry_run": dry_run} if dry_run else told, _text(told))


class _Table:
    """The answers of a file as numbers, and the values that items and labels had there; ``gold`` by item, where a field
    of that name holds it.
    """

    def __init__(self, source: str, meter: Any, gold: str = "") -> None:
        import numpy as np

        from curation import formats
        from curation.consensus import Answers, Names

        names = {field: Names() for field in ("item", "annotator", "label")}
        columns: dict[str, list[int]] = {field: [] for field in names}
        self.values: dict[str, list[Any]] = {"item": [], "label": []}
        self.gold: dict[str, str] = {}
        for number, (_, row) in enumerate(formats.read_objects(source)):
            for field, known in names.items():
                value = row.get(field)
                code = known[_name(value, field, source, number)]
                columns[field].append(code)
                if field in self.values and code == len(self.values[field]):
                    self.values[field].append(value)
            if gold and row.get(gold) is not None:
                self._learn(str(row["item"]), _name(row[gold], gold, source, number), source, number)
            meter("reading", number + 1, None)
        coded = [np.array(columns[field], np.int64) for field in names]
        self.label_of = {str(value): value for value in self.values["label"]}
        self.answers = Answers.coded(
            coded[0], coded[1], coded[2], names["item"], names["annotator"], names["label"]
        )

    def _learn(self, item: str, right: str, source: str, number: int) -> None:
        from curation.errors import UsageError

        if self.gold.setdefault(item, right) != right:
            raise UsageError(
                f"item {item!r} has two known labels, {self.gold[item]!r} and {right!r}",
                where=f"{source}: row {number}",
                next="Give each item one",
            )

    def scores(self, labels: list[str], kind: str) -> dict[str, Any]:
        """How near the agreed labels come to the known ones."""
        from curation.consensus import score_classes, score_texts
        from curation.errors import UsageError

        if not self.gold:
            raise UsageError("no row has a known label", where="--gold", next="Name the field that holds it")
        found = dict(zip(self.answers.items, labels, strict=True))
        return (score_texts if kind == "text" else score_classes)(found, self.gold)

    def kind(self) -> str:
        """Text where most items have answers of their own, in several words."""
        labels = self.answers.labels
        worded = sum(" " in label.strip() for label in labels)
        free = len(labels) > len(self.answers.items) / 2 and worded > len(labels) / 2
        session.say(f"answers are read as {'text' if free else 'class'}; --kind says otherwise")
        return "text" if free else "class"

    def classes(self, model: str, min_confidence: float) -> dict[str, Any]:
        """What :func:`curation.consensus.agree` makes of them, as rows and a report."""
        from curation.consensus import agree, krippendorff_alpha

        found = agree(self.answers, model)
        disputed = found.disputed(min_confidence)
        labels = [self.answers.labels[code] for code in found.label.tolist()]
        return {
            "labels": labels,
            "rows": self._rows(labels, found.confidence, disputed),
            "items": len(labels),
            "answers": len(self.answers),
            "alpha": krippendorff_alpha(self.answers),
            "model": found.model,
            "why": found.why,
            "needs_review": int(disputed.sum()),
            "annotators": self._annotators(found.skill, found.given),
        }

    def texts(self, min_confidence: float) -> dict[str, Any]:
        """What :func:`curation.consensus.agree_on_text` makes of them, as rows and a report."""
        from curation.consensus import TextRule, agree_on_text, text_alpha

        # Two good translations of one sentence share about half of their words: half of what classes ask is enough.
        rule = TextRule(min_confidence=min_confidence / 2)
        found = agree_on_text(self.answers, rule)
        labels = [self.answers.labels[self.answers.label[row]] for row in found.chosen.tolist()]
        return {
            "labels": labels,
            "rows": self._rows(labels, found.confidence, found.disputed),
            "items": len(labels),
            "answers": len(self.answers),
            "alpha": text_alpha(self.answers),
            "model": "medoid",
            "why": "the answer closest to skilled annotators' answers",
            "needs_review": int(found.disputed.sum()),
            "annotators": self._annotators(found.skill, found.given),
        }

    def _rows(self, labels: list[str], confidence: Any, disputed: Any) -> Any:
        of = zip(self.values["item"], labels, confidence.tolist(), disputed.tolist(), strict=True)
        return (
            {
                "item": item,
                "label": self.label_of[label],
                "confidence": round(sure, 6),
                "needs_review": review,
            }
            for item, label, sure, review in of
        )

    def _annotators(self, skill: Any, given: Any) -> list[dict[str, Any]]:
        of = zip(self.answers.annotators, skill.tolist(), given.tolist(), strict=True)
        return [{"id": name, "skill": round(worth, 6), "n": n} for name, worth, n in of]


def _name(value: Any, field: str, source: str, number: int) -> str:
    from curation.errors import UsageError

    if value is None or isinstance(value, (dict, list)):
        raise UsageError(
            f"there is no {field}" if value is None else f"the {field} is no single value",
            where=f"{source}: row {number}",
            next="Rows need item, annotator and label",
        )
    return str(value)


def _text(found: dict[str, Any]) -> str:
    alpha = "-" if found["alpha"] is None else f"{found['alpha']:.3f}"
    head = [
        f"{found['items']:,} items, {found['answers']:,} answers, {found['needs_review']:,} for a curator",
        f"agreement (Krippendorff's alpha): {alpha}",
        f"model: {found['model']} ({found['why']})",
    ]
    for name in ("accuracy", "gleu", "token_f1"):
        if score := found.get(name):
            low, high = score["ci95"]
            head.append(
                f"{name} on {found['gold']:,} known items: {score['value']:.3f} [{low:.3f}, {high:.3f}]"
            )
    best = sorted(found["annotators"], key=lambda a: -a["n"])[:20]
    shown = [(a["id"], a["skill"], a["n"]) for a in best]
    return "\n".join([*head, "", grid(shown, ("annotator", "skill", "answers"))])
