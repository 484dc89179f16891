"""Make the names model: ``python -m training.names --out curation/pii``. Half an hour on one core.

With ``--data`` (by default the shared data beside the project, where it is there) real text is read for what is no name;
without it the model is made of generated text alone, and says so in its metadata.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from training.names import fit, sentences, silver

DATA = Path(__file__).parents[2].parent / "shared" / "data"
HELD_OUT = 3000


def main(arguments: Sequence[str] | None = None) -> int:
    """Make text, train, write ``names.safetensors`` to ``--out``."""
    parser = argparse.ArgumentParser(prog="python -m training.names", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("curation") / "pii")
    parser.add_argument(
        "--data", type=Path, default=DATA, help="The shared data; skipped where it is absent."
    )
    parser.add_argument("--examples", type=int, default=160_000)
    parser.add_argument("--real", type=int, default=60_000)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    made = sentences.examples(options.examples, options.seed)
    real = options.data.is_dir()
    lexicon = fit.make_lexicon(list(silver.real_texts(options.data)) if real else sentences.plain_words())
    types = fit.Types(lexicon)
    rows = fit.example_rows(made, types)
    if real:
        rows += fit.tagged_rows(silver.silver(options.data, lexicon, options.real, options.seed), types)
    print(
        f"{len(rows):,} texts, {sum(len(r.types) for r in rows):,} tokens, {len(types.known):,} words",
        flush=True,
    )
    recipe = fit.Recipe(epochs=options.epochs, seed=options.seed)
    network = fit.train(rows, types, recipe, lambda line: print(line, flush=True))
    told = {
        "recipe": repr(recipe),
        "examples": str(options.examples),
        "real": str(len(rows) - options.examples),
    }
    fit.save(network, lexicon, options.out / "names.safetensors", told)
    return 0


if __name__ == "__main__":
    sys.exit(main())
