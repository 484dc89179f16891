"""A learner without torch, for tests of the loop: it counts words per class, and is right where a model would be.

Everything a real learner promises is kept: results depend on the snapshot alone, and an adapter is named by its digest.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from curation import records, snapshot
from curation.records import SCORES, digest, table
from curation.run import MAIN, TWIN, Trained
from curation.text import tokens
from curation.workspace import Progress, Workspace

CLASSES = ("billing", "claims", "customs", "hazmat")
# So many words that a few labels cannot have shown them all: more labels must help.
WORDS = {name: tuple(f"{name}{i}" for i in range(60)) for name in CLASSES}


def inquiries(count: int, seed: int = 0) -> list[dict[str, str]]:
    """Rows whose class is told by their words, each of its own wording; the last class is rare."""
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(count):
        name = CLASSES[int(rng.choice(4, p=(0.4, 0.3, 0.2, 0.1)))]
        said = [str(rng.choice(WORDS[name])) for _ in range(3)]
        noise = [f"w{int(rng.integers(10_000))}" for _ in range(9)]
        text = " ".join([*said, *noise, f"case {i}"])
        rows.append({"id": f"R{i:04d}", "prompt": text, "gold": name})
    return rows


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


class ToyLearner:
    """Counts words per class; a prompt gets the class whose words it shares most."""

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace
        self.trainings = 0

    def base(self, texts: Iterator[str], progress: Progress) -> str:
        return digest("".join(sorted(texts)))

    def train(self, name: str, *, base: str, progress: Progress) -> Trained:
        snapshot.require_trainable(self.workspace.store, name)
        rows = snapshot.load(self.workspace.store, name, split="train").to_pylist()
        counts: dict[str, Counter[str]] = defaultdict(Counter)
        for row in rows:
            counts[row["completion"]].update(tokens(row["prompt"]))
        body = records.canonical_json({name: dict(sorted(c.items())) for name, c in counts.items()})
        adapter = digest(body + base.encode())
        folder = self.workspace.store.root / "adapters" / adapter
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "words.json").write_bytes(body)
        self.trainings += 1
        return Trained(adapter, base, {"method": "words"}, {"rows": len(rows)}, 0.0, f"adapters/{adapter}")

    def _weights(self, adapter: str) -> dict[str, dict[str, int]]:
        return json.loads((self.workspace.store.root / "adapters" / adapter / "words.json").read_bytes())

    def _proba(self, adapter: str, prompt: str, classes: Sequence[str]) -> np.ndarray:
        weights = self._weights(adapter)
        shared = [sum(weights.get(name, {}).get(word, 0) > 0 for word in tokens(prompt)) for name in classes]
        scores = np.array(shared, dtype=float) + 0.1
        return scores / scores.sum()

    def score(self, adapter: str | None, base: str, rows: pa.Table, classes: Sequence[str]) -> pa.Table:
        scored = []
        for record, prompt in zip(rows["record"].to_pylist(), rows["prompt"].to_pylist(), strict=True):
            p = self._proba(adapter, prompt, classes) if adapter and classes else np.array([1.0])
            best = int(p.argmax())
            scored.append(
                {
                    "record": record,
                    "view": digest(prompt),
                    "nll": float(-np.log(p[best])),
                    "confidence": float(p[best]),
                    "margin": float(np.sort(p)[-1] - (np.sort(p)[-2] if len(p) > 1 else 0)),
                    "entropy": float(-(p * np.log(p)).sum()),
                    "completion": classes[best] if adapter and classes else None,
                    "embedding": _embedding(prompt),
                }
            )
        return table(scored, SCORES)

    def compare(
        self, adapters: Mapping[str, str], rows: pa.Table, classes: Mapping[str, Sequence[str]], closed: bool
    ) -> dict[str, Any]:
        hits = {}
        for arm, adapter in adapters.items():
            told = [
                classes[arm][int(self._proba(adapter, p, classes[arm]).argmax())]
                for p in rows["prompt"].to_pylist()
            ]
            hits[arm] = np.array(
                [a == b for a, b in zip(told, rows["completion"].to_pylist(), strict=True)], float
            )
        arms = {arm: {"value": float(h.mean()), "ci95": [float(h.mean())] * 2} for arm, h in hits.items()}
        both = {MAIN, TWIN} <= hits.keys()
        gain = float((hits[MAIN] - hits[TWIN]).mean()) if both else 0.0
        return {
            "metric": "accuracy",
            "arms": arms,
            "difference": {"value": gain, "ci95": [gain, gain]} if both else None,
            "rows": rows.num_rows,
        }


def _embedding(prompt: str) -> list[float]:
    vector = np.zeros(16, np.float32)
    for word in tokens(prompt):
        vector[int(digest(word)[:4], 16) % 16] += 1
    return (vector / max(np.linalg.norm(vector), 1e-6)).tolist()
