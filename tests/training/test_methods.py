"""Every method learns, and is what it says: rank that moves, weights of four bits, magnitudes, preferences."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from curation import records
from curation.errors import GateRefused, IntegrityError, UsageError
from tests.training.conftest import rows
from training import fit, preferences, registry, search
from training.adapters import attach, load_adapter, load_unmerged, resume
from training.examples import UnfitExample, encode_pair
from training.loss import mean_loss
from training.model import load_base, resolve_base
from training.recipe import Recipe, check_rate, usual_rate
from training.rows import encode_rows, split_rows
from training.train import TrainResult, train

QUICK = Recipe(rank=4, alpha=8, max_steps=40, max_length=64, batch=8, evaluations=1)
METHODS = ("lora", "dora", "adalora", "qlora", "int8", "full")


def learn(base: Path, out: Path, **changes) -> TrainResult:  # type: ignore[no-untyped-def]
    return train(rows(40), dataclasses.replace(QUICK, **changes), base, out, eval_examples=rows(12, seed=1))


def loss_of(model, tokenizer) -> float:  # type: ignore[no-untyped-def]
    held = encode_rows(split_rows(rows(12, seed=1), None), tokenizer, 64, "lora").rows
    return mean_loss(model, held, tokenizer.pad_token_id)


@pytest.fixture(scope="module")
def untrained(base) -> float:
    return loss_of(*load_base(base, device="cpu"))


@pytest.mark.parametrize("method", METHODS)
def test_every_method_learns_and_its_result_can_be_opened(base, tmp_path, untrained, method):
    # AdaLoRA cannot train the embeddings of the answers' tokens along, and is slower without them.
    steps, better = (60, 0.05) if method == "adalora" else (40, 0.5)
    made = learn(base, tmp_path / "a", method=method, max_steps=steps)
    assert made.eval_loss < untrained - better
    opened = load_adapter(made.adapter, device="cpu", bits=made.recipe.bits)
    assert opened.name == made.digest
    assert registry.read(made.adapter)["recipe"]["method"] == method
    assert loss_of(opened.model, opened.tokenizer) == pytest.approx(made.eval_loss, abs=2e-3)


# ----------------------------------------------------------------------------------------------- AdaLoRA


def ranks(folder: Path) -> list[int]:
    """The rank of each layer of a saved adapter: how many singular values it kept."""
    tensors = load_file(folder / "adapter_model.safetensors")
    return [int(value.numel()) for name, value in tensors.items() if "lora_E" in name]


def test_adalora_moves_rank_to_where_it_is_needed(base, tmp_path):
    found = ranks(learn(base, tmp_path / "a", method="adalora").adapter)
    assert len(set(found)) > 1  # no longer the same everywhere
    assert sum(found) == 4 * len(found)  # and on average what was asked for, down from six


def test_without_the_call_after_every_update_adalora_keeps_every_rank(base, tmp_path, monkeypatch):
    monkeypatch.setattr(fit, "_reallocate", lambda model, step: None)
    assert set(ranks(learn(base, tmp_path / "a", method="adalora").adapter)) == {6}


@pytest.mark.filterwarnings("error:The following rank_pattern")
def test_what_adalora_kept_is_opened_and_gone_on_from_as_it_was_saved(base, tmp_path):
    made = learn(base, tmp_path / "a", method="adalora").adapter
    for opened in (
        load_unmerged(made, device="cpu").model,
        resume(load_base(base)[0], made, resolve_base(base)),
    ):
        assert opened.peft_config["default"].rank_pattern
        kept = load_file(made / "adapter_model.safetensors")
        held = {name.replace(".default", ""): value for name, value in opened.state_dict().items()}
        assert all(torch.equal(value, held[name]) for name, value in kept.items())


# ------------------------------------------------------------------------------------------------ others


def test_qlora_trains_on_four_bits_by_an_optimiser_of_eight(base):
    from bitsandbytes.optim import PagedAdamW8bit

    recipe = dataclasses.replace(QUICK, method="qlora").settled(10**5, 40)
    model, _ = load_base(base, method="qlora", device="cpu", bits=recipe.bits)
    kinds = [m for m in model.modules() if type(m).__name__ == "Linear4bit"]
    assert kinds
    assert all(m.weight.quant_state.quant_type == "nf4" and m.weight.quant_state.nested for m in kinds)
    trained = [p for p in attach(model, recipe).parameters() if p.requires_grad]
    assert isinstance(fit.make_optimizer(trained, recipe), PagedAdamW8bit)


def test_dora_learns_magnitudes_and_lora_does_not(base, tmp_path):
    kept = {
        m: load_file(learn(base, tmp_path / m, method=m, max_steps=2).adapter / "adapter_model.safetensors")
        for m in ("lora", "dora")
    }
    assert any("magnitude" in name for name in kept["dora"])
    assert not any("magnitude" in name for name in kept["lora"])


def test_an_adapter_is_gone_on_from_and_the_lineage_says_so(base, tmp_path):
    first = learn(base, tmp_path / "a", max_steps=20)
    options = {"eval_examples": rows(12, seed=1), "start": first.adapter}
    more = train(rows(40), dataclasses.replace(QUICK, max_steps=5, lr=1e-3), base, tmp_path / "b", **options)
    fresh = learn(base, tmp_path / "c", max_steps=5, lr=1e-3)
    assert more.eval_loss < fresh.eval_loss
    assert more.eval_loss <= first.eval_loss + 0.05
    assert first.digest in (more.adapter / "lineage.json").read_text()
    with pytest.raises(UsageError, match="continues no adapter"):
        train(rows(8), dataclasses.replace(QUICK, method="full"), base, tmp_path / "d", start=first.adapter)


def test_an_adapter_of_another_base_is_not_gone_on_from(base, tmp_path):
    first = learn(base, tmp_path / "a", max_steps=2)
    other = Path(shutil.copytree(base, tmp_path / "other"))
    model, _ = load_base(base, method="full", device="cpu")
    with torch.no_grad():
        next(model.parameters()).add_(0.01)
    model.save_pretrained(other)
    with pytest.raises(IntegrityError, match="not the one that the adapter was trained on"):
        train(rows(8), QUICK, other, tmp_path / "b", start=first.adapter)


# ------------------------------------------------------------------------------------------ preferences


def pairs(count: int, seed: int = 0) -> list[dict[str, str]]:
    """A class is preferred to a question thrown back."""
    return [
        {"prompt": r["prompt"], "chosen": r["completion"], "rejected": r["prompt"][:20] + "?"}
        for r in rows(count, seed)
    ]


def test_preferences_are_learned_and_hold_on_rows_that_were_not_seen(base, tmp_path):
    recipe = dataclasses.replace(QUICK, method="dpo", max_steps=12, lr=5e-3)
    made = train(pairs(48), recipe, base, tmp_path / "a", eval_examples=pairs(30, seed=1))
    assert made.eval_loss < np.log(2) - 0.05
    assert made.metrics["eval_margin"] > 0.1
    assert made.metrics["eval_accuracy"] > 0.7
    assert load_adapter(made.adapter, device="cpu").name == made.digest


PREFERRING = dataclasses.replace(QUICK, method="dpo", max_steps=9, lr=5e-3, dropout=0.1)


def prefer_until(base: Path, out: Path, stop: int | None) -> list[tuple[int, float]]:
    """Learn 24 preferences, three updates an epoch, a checkpoint every second; killed after ``stop``. What the log holds."""
    told: list[tuple[int, float]] = []

    def watch(state: dict[str, float]) -> None:
        told.append((int(state["step"]), state["loss"]))
        if state["step"] == stop:
            os.kill(os.getpid(), signal.SIGKILL)

    train(pairs(24), PREFERRING, base, out, progress=watch, save_every=2, device="cpu")
    return told


@pytest.fixture(scope="module")
def preferred(base, tmp_path_factory) -> tuple[dict[int, float], str]:
    """The losses of the run that nothing stops, and what came of it."""
    out = tmp_path_factory.mktemp("preferred") / "a"
    return dict(prefer_until(base, out, None)), registry.read(out)["files"]["adapter_model.safetensors"]


def prefer_killed(base: Path, out: Path) -> list[tuple[int, float]]:
    """Killed after the fifth update, then the same again: the losses of what was left to do."""
    torch.set_num_threads(1)  # a forked process has no second thread
    process = multiprocessing.get_context("fork").Process(target=prefer_until, args=(base, out, 5))
    process.start()
    process.join(timeout=120)
    assert process.exitcode == -signal.SIGKILL
    assert not out.exists()
    return prefer_until(base, out, None)


def test_preferences_that_were_killed_go_on_as_if_nothing_had_happened(base, tmp_path, preferred):
    losses, weights = preferred
    rest = prefer_killed(base, tmp_path / "a")
    assert [step for step, _ in rest] == [5, 6, 7, 8, 9]
    assert [loss for _, loss in rest] == pytest.approx([losses[step] for step in range(5, 10)], abs=1e-5)
    assert registry.read(tmp_path / "a")["files"]["adapter_model.safetensors"] == weights
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_preferences_gone_on_with_but_without_the_optimisers_state_would_be_noticed(
    base, tmp_path, preferred, monkeypatch
):
    monkeypatch.setattr(preferences, "restore_optimizer", lambda *_: None)
    rest = dict(prefer_killed(base, tmp_path / "a"))
    assert abs(rest[9] - preferred[0][9]) > 1e-3


def test_what_we_measure_of_preferences_is_what_trl_measures(base, tmp_path, tokenizer):
    recipe = dataclasses.replace(QUICK, method="dpo", max_steps=1, batch=8, beta=0.3).settled(10**5, 8)
    made, _ = preferences.encode_pairs(split_rows(pairs(8), None), tokenizer, 64)
    torch.manual_seed(0)
    model = attach(load_base(base, device="cpu")[0], recipe)
    for name, p in model.named_parameters():  # an adapter that has moved away from the base
        if "lora_B" in name:
            torch.nn.init.normal_(p, std=0.05)
    own = preferences.logprobs(model, made, tokenizer.pad_token_id, 3).mean(axis=0)
    _, theirs = preferences.prefer(model, tokenizer, made, recipe, tmp_path, None)
    assert own[0] == pytest.approx(theirs["logps_chosen"], abs=1e-2)
    assert own[1] == pytest.approx(theirs["logps_rejected"], abs=1e-2)
    moved = preferences.margins(model, made, tokenizer.pad_token_id, recipe.beta)
    assert theirs["rewards_margins"] == pytest.approx(0.0, abs=1e-2)  # before the step
    assert np.abs(moved).max() < 50  # after it, measured from the adapter as it was, not from the base


def told(prompt: str, *answers: str) -> list[str]:
    """A transcript of hh-rlhf's layout for each answer, after one exchange."""
    return [f"\n\nHuman: hello\n\nAssistant: yes?\n\nHuman: {prompt}\n\nAssistant: {a}" for a in answers]


def test_whole_transcripts_are_learned_as_the_answers_that_end_them(tokenizer):
    asked = [("user", "hello"), ("assistant", "yes?"), ("user", "my card\n\nis gone")]
    messages = [{"role": role, "content": content} for role, content in asked]
    good, bad = told("my card\n\nis gone", "card_help", "no")
    listed = [[*messages, {"role": "assistant", "content": answer}] for answer in ("card_help", "no")]
    parted = told("my pin", "pin_help")[0]
    rows = split_rows(
        [
            {"messages": messages, "chosen": "card_help", "rejected": "no"},
            {"chosen": good, "rejected": bad},
            {"chosen": listed[0], "rejected": listed[1]},
            {"chosen": good, "rejected": parted},
            {"chosen": "no turns here", "rejected": bad},
            {"chosen": good, "rejected": good},
        ],
        None,
    )
    made, refused = preferences.encode_pairs(rows, tokenizer, 128)
    assert made == [made[0]] * 3
    assert [i for i, _ in refused] == [3, 4, 5]
    assert "part before their last answer" in refused[0][1]
    assert "no transcript" in refused[1][1]
    assert [i for i, _ in encode_rows(rows, tokenizer, 128, "lora").refused] == [3, 4]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"prompt": "q", "completion": "a"}, "a preference has prompt, chosen and rejected"),
        ({"prompt": "q", "chosen": "a", "rejected": "b", "weight": 0.5}, "learned without weights"),
        ({"prompt": "q", "chosen": "a", "rejected": "a"}, "both answers are the same"),
        ({"prompt": "q", "chosen": "a", "rejected": " "}, "completion is empty"),
        ({"prompt": "word " * 90, "chosen": "a", "rejected": "b"}, "would be lost"),
    ],
)
def test_a_preference_that_cannot_be_learned_is_refused(base, tmp_path, row, said):
    with pytest.raises(UsageError, match=said):
        train([row], dataclasses.replace(QUICK, method="dpo"), base, tmp_path / "a")
    assert list(tmp_path.iterdir()) == []


def test_both_answers_follow_the_same_prompt_and_end(tokenizer):
    prompt, good, bad = encode_pair(records.user_message("q"), "yes", "no no", tokenizer, 50)
    assert good[-1] == bad[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(prompt).endswith("q\n")
    with pytest.raises(UnfitExample):
        encode_pair(records.user_message("q"), "yes", "no " * 60, tokenizer, 50)


# ------------------------------------------------------------------------------------------------ rates


@pytest.mark.parametrize("method", ["lora", "full", "adalora", "dpo"])
@pytest.mark.parametrize("size", [10**6, 8 * 10**9])
def test_a_rate_far_from_the_usual_one_is_refused_before_anything_is_loaded(method, size):
    usual = usual_rate(method, size)
    for sane in (usual, usual * 10, usual / 10):
        check_rate(method, sane, size)
    for slip in (usual * 50, usual / 50):
        with pytest.raises(UsageError, match="times the usual one|th of the usual one"):
            check_rate(method, slip, size)


def test_the_rate_of_lora_is_not_one_for_full_training_of_a_large_model():
    with pytest.raises(UsageError, match="Choose one between"):
        Recipe(method="full", lr=2e-3).settled(8 * 10**9, 100)
    assert Recipe(method="lora", lr=2e-3).settled(8 * 10**9, 100).lr == 2e-3


# ----------------------------------------------------------------------------------------------- search


def test_halving_gives_the_longest_run_to_the_best_and_tells_every_trial(base, tmp_path):
    told: list[search.Trial] = []

    def score(recipe: Recipe, out: Path) -> float:
        return abs(np.log(recipe.lr / 3e-3)) + 1 / (recipe.max_steps or 1)

    drawn = search.draw(dataclasses.replace(QUICK, max_steps=None, epochs=3.0), 9, 10**5)
    recipes = [dataclasses.replace(one, epochs=3.0) for one in drawn]  # 90 updates each, of 240 rows
    best = search.search(recipes, 240, score, told.append)
    assert [t.rung for t in told] == [0] * 9 + [1] * 3
    assert {t.recipe.max_steps for t in told if t.rung == 0} == {10}
    assert best.lr == min(recipes, key=lambda r: abs(np.log(r.lr / 3e-3))).lr
    assert best.max_steps is None
    assert search.draw(drawn[0], 9, 10**5) == drawn  # by the seed alone


def test_a_search_without_held_out_rows_is_refused():
    with pytest.raises(UsageError, match="held-out rows"):
        search.search([QUICK, QUICK], 9, lambda r, out: None, lambda t: None)
    with pytest.raises(UsageError, match="no recipe"):
        search.search([], 9, lambda r, out: None, lambda t: None)


# ----------------------------------------------------------------------------------------------- merging


def test_a_merged_model_answers_as_the_adapter_does_and_says_where_it_comes_from(base, tmp_path):
    from training.merge import merge
    from training.score import score_classes

    made = learn(base, tmp_path / "a", max_steps=20)
    manifest = merge(made.adapter, tmp_path / "whole", device="cpu")
    assert manifest["merged"]["adapter"] == made.digest
    assert manifest["merged"]["apart_nats"] < 1e-3
    asked = [[r["prompt"] for r in rows(4)], ["card_help", "refund_help"]]
    one, two = score_classes(tmp_path / "whole", *asked), score_classes(made.adapter, *asked)
    assert np.abs(one.logprobs - two.logprobs).max() < 1e-3
    with pytest.raises(UsageError, match="whole model already"):
        merge(tmp_path / "whole", tmp_path / "again")


def test_a_merge_that_rounds_the_adapter_away_is_refused(base, tmp_path, monkeypatch):
    from training import merge as merging

    made = learn(base, tmp_path / "a", max_steps=20)
    real = merging._reloaded
    monkeypatch.setattr(
        merging, "_reloaded", lambda folder, *rest: real(base, *rest)
    )  # as if nothing were merged
    with pytest.raises(GateRefused, match="nats from the adapter"):
        merging.merge(made.adapter, tmp_path / "whole", device="cpu")
    assert not (tmp_path / "whole").exists()


def test_a_merge_in_half_precision_is_measured_too(base, tmp_path):
    from training.merge import merge

    made = learn(base, tmp_path / "a", max_steps=20)
    manifest = merge(made.adapter, tmp_path / "whole", device="cpu", dtype=torch.bfloat16)
    assert 1e-4 < manifest["merged"]["apart_nats"] < 0.1
    assert "bfloat16" in manifest["merged"]["dtype"]
