"""What the scrubber finds on sets with gold spans that it was never trained or tuned on.

    python -m tests.bench.pii_names [--layers patterns,names] [--data DIR]

On ``pii-presidio-synth-v2`` the score is presidio-evaluator's (``pip install --no-deps presidio-evaluator`` and python-dotenv,
plotly, xmltodict: it pins a numpy that nothing else here takes): spans that agree in nine tenths of their characters,
whatever their type (its "pii" level), and by type. Labels are compared by :mod:`tests.bench.pii_labels`. On
``support-multidogo`` airline and ``pii-restaurant8k`` recall and precision of names are counted by word. Sets that are not
there are passed over, saying so.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from curation.pii.rule import ScrubRule
from curation.pii.scan import Scanner
from curation.pii.spans import Span
from tests.bench.pii_labels import MULTIDOGO, RESTAURANT, STRUCTURED, common

DATA = Path(os.environ.get("TILTH_DATA", Path(__file__).parents[2].parent / "shared" / "data"))
Gold = tuple[str, list[tuple[int, int, str]]]


def synth(data: Path) -> list[Gold]:
    """Texts of presidio-research's synthetic set with their spans."""
    rows = json.loads((data / "pii-presidio-synth-v2" / "synth_dataset_v2.json").read_text(encoding="utf-8"))
    return [
        (row["full_text"], [(s["start_position"], s["end_position"], s["entity_type"]) for s in row["spans"]])
        for row in rows
    ]


def multidogo(data: Path) -> list[Gold]:
    """Customers' turns of the airline domain with the words that are names."""
    found = []
    for split in ("train", "dev", "test"):
        path = data / "support-multidogo" / "airline" / f"{split}.tsv"
        with path.open(encoding="utf-8") as file:
            for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE):
                said, slots = (row.get("utterance") or "").split(), (row.get("slot-labels") or "").split()
                if said and len(said) == len(slots):
                    found.append(_by_word(said, slots))
    return found


def _by_word(said: Sequence[str], slots: Sequence[str]) -> Gold:
    spans, at = [], 0
    for word, slot in zip(said, slots, strict=True):
        if slot in MULTIDOGO:
            spans.append((at, at + len(word), MULTIDOGO[slot]))
        at += len(word) + 1
    return " ".join(said), spans


def restaurant(data: Path) -> list[Gold]:
    """What people say when they book a table, with their names; a missing start is 0."""
    rows = json.loads((data / "pii-restaurant8k" / "train_0.json").read_text(encoding="utf-8"))
    found = []
    for row in rows:
        labels = [(label["slot"], label.get("valueSpan", {})) for label in row.get("labels", ())]
        spans = [
            (int(at.get("startIndex", 0)), int(at["endIndex"]), RESTAURANT[slot])
            for slot, at in labels
            if slot in RESTAURANT and "endIndex" in at
        ]
        found.append((row["userInput"]["text"], spans))
    return found


def by_word(texts: Sequence[Gold], spans: Sequence[Sequence[Span]], kind: str) -> dict[str, float]:
    """Recall and precision of one type, over the words that gold or the scan marks."""
    counts: Counter[str] = Counter()
    for (text, gold), found in zip(texts, spans, strict=True):
        at = 0
        for word in text.split():
            start = text.index(word, at)
            at = start + len(word)
            meant = any(s < at and e > start and k == kind for s, e, k in gold)
            hit = any(s.start < at and s.end > start and s.entity_type == kind for s in found)
            counts["hit" if meant and hit else "miss" if meant else "alarm" if hit else "clear"] += 1
    return {
        "words": counts["hit"] + counts["miss"],
        "recall": counts["hit"] / max(1, counts["hit"] + counts["miss"]),
        "precision": counts["hit"] / max(1, counts["hit"] + counts["alarm"]),
    }


def covered(texts: Sequence[Gold], spans: Sequence[Sequence[Span]]) -> dict[str, tuple[int, int]]:
    """Gold spans by label, and how many of them are covered wholly (letters and digits), by whatever type."""
    counts: dict[str, list[int]] = {}
    for (text, gold), found in zip(texts, spans, strict=True):
        for start, end, kind in gold:
            inside = [i for i in range(start, end) if text[i].isalnum()]
            whole = all(any(s.start <= i < s.end for s in found) for i in inside)
            tally = counts.setdefault(kind, [0, 0])
            tally[0] += 1
            tally[1] += whole
    return {kind: (n, hits) for kind, (n, hits) in sorted(counts.items())}


def evaluated(texts: Sequence[Gold], spans: Sequence[Sequence[Span]]) -> Any:
    """presidio-evaluator's result: its tokens are spaCy's, without a model."""
    import pandas as pd
    import spacy
    from presidio_evaluator.evaluation import SpanEvaluator

    blank = spacy.blank("en")
    rows = []
    for number, ((text, gold), found) in enumerate(zip(texts, spans, strict=True)):
        told = [(s.start, s.end, s.entity_type) for s in found]
        for token in blank.make_doc(text):
            rows.append(
                {
                    "sentence_id": number,
                    "token": token.text,
                    "annotation": _tag(token.idx, len(token), gold),
                    "prediction": _tag(token.idx, len(token), told),
                    "start_indices": token.idx,
                }
            )
    return SpanEvaluator().calculate_score_on_df(pd.DataFrame(rows))


def _tag(start: int, length: int, spans: Sequence[tuple[int, int, str]]) -> str:
    return next((common(kind) for s, e, kind in spans if s < start + length and e > start), "O")


def report(data: Path, layers: Sequence[str]) -> Iterator[str]:
    """The lines of the report."""
    scanner = Scanner(ScrubRule(layers=tuple(layers), timeout=60.0))

    def scan(texts: Sequence[Gold]) -> list[list[Span]]:
        return [scanner.scan(text, "en") for text, _ in texts]

    if (data / "pii-presidio-synth-v2").is_dir():
        yield from _synth_lines(synth(data), scan)
    else:
        yield f"pii-presidio-synth-v2 is not in {data}"
    for name, read in (("support-multidogo", multidogo), ("pii-restaurant8k", restaurant)):
        if not (data / name).is_dir():
            yield f"{name} is not in {data}"
            continue
        texts = read(data)
        found = by_word(texts, scan(texts), "PERSON")
        yield f"{name}: {len(texts):,} texts, {found['words']:,} name words"
        yield f"  recall {found['recall']:.3f}  precision {found['precision']:.3f}"


def _synth_lines(texts: Sequence[Gold], scan: Any) -> Iterator[str]:
    spans = scan(texts)
    got = evaluated(texts, spans)
    yield f"pii-presidio-synth-v2: {len(texts):,} texts; presidio-evaluator, spans at IoU 0.9"
    yield f"  any type   precision {got.pii_precision:.3f}  recall {got.pii_recall:.3f}  F2 {got.pii_f:.3f}"
    for kind, told in sorted(got.per_type.items()):
        figures = f"precision {told.precision:.3f}  recall {told.recall:.3f}  F2 {told.f_beta:.3f}"
        yield f"  {kind:<20} n {told.num_annotated:>5}  {figures}"
    whole = covered(texts, spans)
    n, hits = (sum(whole[k][i] for k in whole if k in STRUCTURED) for i in (0, 1))
    yield f"  structured types, covered wholly: {hits} of {n} ({hits / n:.4f})"
    yield "  covered wholly by label: " + ", ".join(f"{k} {h}/{n}" for k, (n, h) in whole.items())


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the scores; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.pii_names")
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--layers", default="patterns,names")
    options = parser.parse_args(arguments)
    for line in report(options.data, options.layers.split(",")):
        print(line, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
