"""A base from supplied text: what is read and what never is, a run that is killed, and what comes out."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from curation.errors import IntegrityError, UsageError  # noqa: E402
from tests.bench.ngram import KneserNey, _grams  # noqa: E402
from training import pretrain, registry, sources  # noqa: E402
from training.model import load_base, resolve_base  # noqa: E402

torch.set_num_threads(1)

RECIPE = """
[shape]
vocab = 400
hidden = 32
layers = 2
heads = 2
kv_heads = 1
inner = 64
context = 128

[schedule]
batch_tokens = 256
micro_tokens = 128
window = 64
corpus_tokens = 6000
warmup_steps = 2

[[source]]
name = "letters"
kind = "documents"
files = ["*.txt"]
share = 0.6
licence = "ours"
practice = { read = 2, copy = 1, name = 1, compose = 1, after = 1 }

[[source]]
name = "questions"
kind = "pairs"
files = ["*.jsonl"]
share = 0.4
licence = "ours"
practice = { answer = 1 }
"""
NOUNS = ("ship", "port", "crate", "paper", "clerk", "seal", "crane", "rope", "buoy", "harbour")
VERBS = ("carries", "loads", "signs", "weighs", "moors", "lifts")


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("texts")
    rng = random.Random(0)
    said = [f"The {rng.choice(NOUNS)} {rng.choice(VERBS)} the {rng.choice(NOUNS)} today." for _ in range(600)]
    letters = [" ".join(said[i : i + 10]) for i in range(0, 600, 10)]
    (folder / "letters.txt").write_text(f"\n{sources.DOCUMENT}\n".join(letters))
    pairs = [
        {"prompt": f"What {rng.choice(VERBS)}?", "completion": f"{rng.choice(NOUNS)}<|endoftext|>"}
        for _ in said
    ]
    (folder / "questions.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    (folder / "recipe.toml").write_text(RECIPE)
    return folder


@pytest.fixture(scope="module")
def recipe(texts: Path) -> pretrain.BaseRecipe:
    return pretrain.read_recipe(texts / "recipe.toml")


@pytest.fixture(scope="module")
def made(texts: Path, recipe: pretrain.BaseRecipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("made") / "base"
    pretrain.make_base(recipe, texts, out, steps=24)
    return out


def test_a_base_made_of_supplied_text_loads_and_knows_more_than_nothing(made, texts, recipe):
    model, tokenizer = load_base(resolve_base(made))
    _, held = pretrain.gather(recipe, texts)
    few = pretrain.held_texts(held)["letters"]
    untrained = pretrain.new_model(recipe.shape, tokenizer, 0)
    assert pretrain.bits_per_byte(model, tokenizer, few) < 0.7 * pretrain.bits_per_byte(
        untrained, tokenizer, few
    )


def test_the_base_is_sealed_with_its_card_and_loss_curve(made, recipe):
    manifest = registry.verify(made)
    assert manifest["metrics"]["steps"] == 24
    assert manifest["metrics"]["curve"][-1]["bits_per_byte"] > 0
    said = (made / "README.md").read_text()
    assert all(source.name in said and source.licence in said for source in recipe.sources)


def test_what_is_held_out_is_never_prepared(texts, recipe):
    learned, held = pretrain.gather(recipe, texts)
    assert all(held.values())
    assert not {p.group for p in learned["letters"]} & {p.group for p in held["letters"]}
    marked = {
        name: [dataclasses.replace(p, text=p.text + " zebra") for p in few] for name, few in held.items()
    }
    tokenizer = pretrain.make_tokenizer(recipe, learned)
    rows = pretrain.prepare(recipe, learned, tokenizer)
    assert "zebra" not in tokenizer.decode(rows.ids)
    leaked = pretrain.prepare(recipe, {n: [*learned[n], *marked[n]] for n in learned}, tokenizer)
    assert "zebra" in tokenizer.decode(leaked.ids)  # the control: what is handed in is seen


def test_a_run_killed_between_checkpoints_ends_with_the_same_weights(texts, made, tmp_path):
    out = tmp_path / "base"
    command = [sys.executable, "-c", _SLOW, str(texts), str(out)]
    checkpoint = tmp_path / "base.checkpoint.safetensors"
    running = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"})
    while not checkpoint.exists():
        assert running.poll() is None, "it ended before it was killed"
        time.sleep(0.05)
    os.kill(running.pid, signal.SIGKILL)
    running.wait()
    assert not out.exists()
    pretrain.make_base(pretrain.read_recipe(texts / "recipe.toml"), texts, out, steps=24)
    assert registry.file_digest(out / "model.safetensors") == registry.file_digest(made / "model.safetensors")
    assert not checkpoint.exists()


_SLOW = """
import sys, time
from pathlib import Path
from training import pretrain
texts, out = map(Path, sys.argv[1:])
pretrain.make_base(pretrain.read_recipe(texts / "recipe.toml"), texts, out, steps=24, every=0,
                   progress=lambda state: time.sleep(60))
"""


def run_of(recipe: pretrain.BaseRecipe, made: Path, name: str = "mine") -> pretrain.Run:
    model, _ = load_base(resolve_base(made))
    return pretrain.Run(model, pretrain.optimizers(model, recipe.schedule), name)


def test_a_checkpoint_of_another_recipe_or_text_is_refused(recipe, made, tmp_path):
    path = tmp_path / "checkpoint.safetensors"
    pretrain.save_checkpoint(run_of(recipe, made), path)
    with pytest.raises(IntegrityError, match="another recipe"):
        pretrain.load_checkpoint(run_of(recipe, made, "yours"), path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(IntegrityError, match="damaged"):
        pretrain.load_checkpoint(run_of(recipe, made), path)


def test_practice_on_own_text_starts_from_the_base_and_gives_the_same_weights_again(made, texts, tmp_path):
    said = ["The glider circles the meadow.", "A glider lands on the meadow at dawn."] * 20
    one = pretrain.practise_base(said, tmp_path / "one", steps=6, base=str(made))
    two = pretrain.practise_base(said, tmp_path / "two", steps=6, base=str(made))
    assert one["digest"] == two["digest"]
    assert one["start"] == resolve_base(made).digest
    before, tokenizer = load_base(resolve_base(made))
    after, _ = load_base(resolve_base(tmp_path / "one"))
    assert pretrain.bits_per_byte(after, tokenizer, said) < pretrain.bits_per_byte(before, tokenizer, said)


def test_practice_without_any_text_is_refused(made, tmp_path):
    with pytest.raises(UsageError, match="no text"):
        pretrain.practise_base(["", " "], tmp_path / "none", steps=2, base=str(made))


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('kind = "pairs"', 'kind = "pears"', "unknown kind"),
        ("practice = { answer = 1 }", "practice = { guess = 1 }", "unknown exercise"),
        ("hidden = 32", "hidden = 32\nhiden = 3", "not a recipe"),
    ],
)
def test_a_recipe_with_something_unknown_is_refused(tmp_path, old, new, said):
    path = tmp_path / "recipe.toml"
    path.write_text(RECIPE.replace(old, new))
    with pytest.raises(UsageError, match=said):
        pretrain.read_recipe(path)


def test_a_pattern_that_matches_no_file_is_named(recipe, tmp_path):
    with pytest.raises(UsageError, match="no such text") as caught:
        pretrain.gather(recipe, tmp_path)
    assert "*.txt" in str(caught.value)


def test_the_bundled_recipe_reads_and_its_shares_are_a_whole():
    shipped = pretrain.read_recipe(pretrain.RECIPE)
    assert sum(source.share for source in shipped.sources) == pytest.approx(1.0)
    assert all(source.licence for source in shipped.sources)


def test_turns_with_personal_values_are_left_out_and_intents_are_answers():
    lines = [
        "conversationId\tturnNumber\tutterance\tslot-labels\tintent",
        "a\t1\ti lost my card today\tO O O O O\treportlostcard",
        "a\t2\tmy name is ada byron\tO O O name name\tcontentonly",
        "a\t3\tthe number is 4711 0815 ok\tO O O O O O\tcontentonly",
        "a\t4\tthank you very much\tO O O O\tthankyou",
        "b\t1\tthank you very much\tO O O O\tthankyou",
    ]
    found = sources.turns("\n".join(lines), Path("train.tsv"))
    assert [p.text for p in found] == ["i lost my card today", "thank you very much"]
    assert found[0].answer == "reportlostcard"
    assert found[0].after == "thank you very much"


def test_end_markers_of_other_models_are_no_text():
    made = sources.pairs(json.dumps({"prompt": "why?", "completion": "so<|endoftext|>"}), Path("x.jsonl"))
    assert made[0].answer == "so"


def test_telling_words_are_the_rarer_ones_in_their_order():
    rng = np.random.default_rng(0)
    rarity = {"the": 1e-3, "card": 5.0, "is": 1e-3, "lost": 5.0}
    drawn = [tuple(sources.telling(["the", "card", "is", "lost"], rarity, 2, rng)) for _ in range(200)]
    assert drawn.count(("card", "lost")) > 190


def test_vectors_put_words_that_keep_the_same_company_side_by_side():
    rng = random.Random(0)
    # 1 and 2 stand among 3..6, 11 and 12 among 13..16
    rows = [[rng.choice((1, 2)), rng.randint(3, 6)] for _ in range(400)]
    rows += [[rng.choice((11, 12)), rng.randint(13, 16)] for _ in range(400)]
    found = pretrain.vectors(pretrain.cooccurrence(rows, 17), 4)
    unit = found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-9)
    assert unit[1] @ unit[2] > 0.9
    assert abs(unit[1] @ unit[11]) < 0.1
    assert not found[7].any()


def test_cooccurrence_does_not_reach_into_the_next_row():
    counts = pretrain.cooccurrence([[1, 2], [3]], 4)
    assert counts[1, 2] == counts[2, 1] == 1
    assert counts[2, 3] == 0


def test_kneser_ney_probabilities_sum_to_one_and_beat_chance():
    rng = random.Random(1)
    rows = [[1 + (i * rng.choice((1, 2))) % 6 for i in range(20)] for _ in range(50)]
    model = KneserNey.learn(rows, 7, order=3)
    for context in ([1, 2], [5, 5], [0, 0]):
        grams = np.array([(context[0] * 7 + context[1]) * 7 + token for token in range(7)])
        assert model.probabilities(grams).sum() == pytest.approx(1.0)
    assert model.bits(rows) < len(_grams(rows, 7, 3)) * np.log2(6)
