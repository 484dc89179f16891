"""Scores: arithmetic by hand, the fast way against the plain way, and no influence of the neighbours."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from curation import records
from curation.acquisition import AcquisitionRule, select
from curation.errors import UsageError
from tests.training.conftest import rows
from training import score as scoring
from training.adapters import Loaded, open_model
from training.examples import plain_ids, prompt_ids
from training.score import ClassTree, Prefill, generate, predict, score_classes, score_pool

CLASSES = ["card_help", "card_lost", "card", "refund_help", "transfer_pending", "x"]


@pytest.fixture(scope="module")
def loaded(base) -> Loaded:
    return open_model(base, device="cpu")


def view(prompts: list[str]) -> object:
    made = [
        {"record": f"r{i}", "messages": records.user_message(p), "prompt": p} for i, p in enumerate(prompts)
    ]
    return records.table(made, records.VIEW)


PROMPTS = [row["prompt"] for row in rows(7)] + ["?", "a much longer question about my card " * 4]


# --------------------------------------------------------------------------------------- arithmetic


def test_mean_nll_is_worked_by_hand():
    logprobs = np.log([[0.5, 0.25, 0.9], [0.1, 0.2, 0.3]])
    found = scoring.mean_nll(logprobs, np.array([[1, 1, 0], [0, 0, 0]]))
    assert found[0] == pytest.approx(1.5 * np.log(2))
    assert np.isnan(found[1])


def test_what_is_masked_cannot_count_even_where_it_is_infinite():
    assert scoring.mean_nll(np.array([[-1.0, -np.inf]]), np.array([[1, 0]]))[0] == pytest.approx(1.0)


def test_probabilities_confidence_margin_and_entropy_are_worked_by_hand():
    p = scoring.class_probabilities(np.log([[0.06, 0.03, 0.01]]) - 1000)
    assert p[0] == pytest.approx([0.6, 0.3, 0.1])
    assert scoring.confidence(p)[0] == pytest.approx(0.6)
    assert scoring.margin(p)[0] == pytest.approx(0.3)
    assert scoring.entropy(np.array([[0.5, 0.5, 0.0]]))[0] == pytest.approx(np.log(2))
    assert scoring.margin(np.array([[1.0]]))[0] == 1.0


# ------------------------------------------------------------------------------------------- classes


def plain(loaded: Loaded, prompts: list[str], classes: list[str]) -> np.ndarray:
    ids = [prompt_ids(records.user_message(p), loaded.tokenizer) for p in prompts]
    return np.array([scoring.plain_class_logprobs(loaded, one, classes) for one in ids])


def test_the_tree_of_classes_gives_what_plain_forwards_give(loaded):
    found = score_classes(loaded, PROMPTS, CLASSES)
    assert np.abs(found.logprobs - plain(loaded, PROMPTS, CLASSES)).max() < 1e-4


def test_a_tree_that_sees_its_siblings_gives_other_numbers(loaded, monkeypatch):
    monkeypatch.setattr(ClassTree, "sees", lambda tree: scoring.torch.ones(tree.nodes, tree.nodes).bool())
    found = score_classes(loaded, PROMPTS, CLASSES)
    assert np.abs(found.logprobs - plain(loaded, PROMPTS, CLASSES)).max() > 1e-2


def test_a_tree_in_pieces_gives_what_it_gives_whole(loaded, monkeypatch):
    whole = score_classes(loaded, PROMPTS, CLASSES)
    monkeypatch.setattr(scoring, "TREE_NODES", 8)
    monkeypatch.setitem(scoring._LOGITS, "cpu", 1)
    monkeypatch.setattr(scoring, "_TILE", 7)
    assert len(ClassTree.of(CLASSES, loaded.tokenizer).pieces()) > 1
    assert np.abs(score_classes(loaded, PROMPTS, CLASSES).logprobs - whole.logprobs).max() < 1e-4


class Shifted(torch.nn.Linear):
    """A head that is more than its matrix, as one with an adapter on it is."""

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return super().forward(states) + torch.linspace(0, 3, self.out_features)


def _shifted(loaded: Loaded) -> Loaded:
    model = copy.deepcopy(loaded.model)
    matrix = model.get_output_embeddings().weight
    head = Shifted(matrix.shape[1], matrix.shape[0], bias=False)
    head.weight = matrix
    model.set_output_embeddings(head)
    return replace(loaded, model=model)


def test_a_head_that_is_more_than_its_matrix_is_asked_as_a_whole(loaded, monkeypatch):
    monkeypatch.setattr(scoring, "_TILE", 7)
    more = _shifted(loaded)
    expected = plain(more, PROMPTS, CLASSES)
    assert np.abs(expected - plain(loaded, PROMPTS, CLASSES)).max() > 1e-2
    assert np.abs(score_classes(more, PROMPTS, CLASSES).logprobs - expected).max() < 1e-4
    monkeypatch.setattr(scoring, "_cuttable", lambda head: True)
    assert np.abs(score_classes(more, PROMPTS, CLASSES).logprobs - expected).max() > 1e-2


def test_a_tree_shares_beginnings_and_spells_every_class(loaded):
    tree = ClassTree.of(CLASSES, loaded.tokenizer)
    spelled = [[t for _, t in path][:-1] for path in tree.paths]
    assert spelled == [plain_ids(c, loaded.tokenizer) for c in CLASSES]
    assert tree.nodes < sum(map(len, spelled))
    assert {path[-1][1] for path in tree.paths} == {loaded.tokenizer.eos_token_id}


def test_equal_and_absent_classes_are_refused(loaded):
    for wrong in ([], ["a", "a"]):
        with pytest.raises(UsageError, match="must be one or more, and differ"):
            score_classes(loaded, ["q"], wrong)


# ---------------------------------------------------------------------------------------- neighbours


@pytest.mark.parametrize("classes", [None, CLASSES])
def test_scores_do_not_depend_on_who_shares_the_batch(loaded, classes):
    together = score_pool(loaded, view(PROMPTS), classes=classes, max_new_tokens=8)
    alone = score_pool(loaded, view(PROMPTS), classes=classes, max_new_tokens=8, batch_tokens=1)
    assert together["completion"].to_pylist() == alone["completion"].to_pylist()
    for name in ("nll", *(("confidence", "margin", "entropy") if classes else ())):
        assert np.allclose(together[name].to_numpy(), alone[name].to_numpy(), atol=1e-4)
    assert np.allclose(together["embedding"].to_pylist(), alone["embedding"].to_pylist(), atol=1e-4)


def test_padding_that_was_not_masked_would_be_noticed(loaded, monkeypatch):
    alone = score_pool(loaded, view(PROMPTS), classes=CLASSES, batch_tokens=1)
    real = Prefill.__init__

    def careless(self, model, prompts):  # type: ignore[no-untyped-def]
        real(self, model, prompts)
        self.mask = scoring.torch.ones_like(self.mask)

    monkeypatch.setattr(Prefill, "__init__", careless)
    together = score_pool(loaded, view(PROMPTS), classes=CLASSES)
    assert not np.allclose(together["nll"].to_numpy(), alone["nll"].to_numpy(), atol=1e-4)


def test_the_order_of_the_pool_changes_no_score(loaded):
    forward, backward = view(PROMPTS), view(PROMPTS).take(list(range(len(PROMPTS)))[::-1])  # type: ignore[attr-defined]
    one, two = score_pool(loaded, forward, classes=CLASSES), score_pool(loaded, backward, classes=CLASSES)
    assert two["record"].to_pylist() == one["record"].to_pylist()[::-1]
    assert one.sort_by("record") == two.sort_by("record")


# -------------------------------------------------------------------------------------------- answers


def test_greedy_answers_are_those_of_the_librarys_own_generate(loaded):
    for prompt, answer in zip(PROMPTS, generate(loaded, PROMPTS, 12), strict=True):
        ids = torch.tensor([prompt_ids(records.user_message(prompt), loaded.tokenizer)])
        theirs = loaded.model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False
        )[0, ids.shape[1] :].tolist()
        assert answer.tokens == len(theirs)
        assert answer.text == loaded.tokenizer.decode(theirs, skip_special_tokens=True)
        assert answer.stopped == (theirs[-1] == loaded.tokenizer.eos_token_id)


def test_the_nll_of_an_answer_is_that_of_a_plain_forward(loaded):
    for prompt, answer in zip(PROMPTS, generate(loaded, PROMPTS, 12), strict=True):
        ids = prompt_ids(records.user_message(prompt), loaded.tokenizer)
        if answer.stopped and plain_ids(answer.text, loaded.tokenizer):
            total = scoring.plain_class_logprobs(loaded, ids, [answer.text])[0]
            assert answer.nll == pytest.approx(-total / answer.tokens, abs=1e-4)


def test_an_answer_stops_where_it_is_told_to(loaded):
    for answer in generate(loaded, PROMPTS, 3):
        assert answer.tokens <= 3
        assert answer.stopped or answer.tokens == 3


def test_predictions_come_in_the_order_of_the_prompts(loaded):
    given = predict(loaded, PROMPTS, CLASSES)
    assert given == [predict(loaded, [p], CLASSES)[0] for p in PROMPTS]
    assert predict(loaded, PROMPTS, max_new_tokens=5) == [a.text for a in generate(loaded, PROMPTS, 5)]


def test_messages_and_texts_are_both_prompts(loaded):
    assert predict(loaded, ["hello"], CLASSES) == predict(loaded, [records.user_message("hello")], CLASSES)


# ----------------------------------------------------------------------------------------------- edges


def test_a_pool_is_asked_by_the_entropy_over_its_classes(loaded):
    pool = view(PROMPTS)
    scores = score_pool(loaded, pool, classes=CLASSES, embeddings=False)
    expected = scoring.entropy(score_classes(loaded, PROMPTS, CLASSES).probabilities)
    assert scores["entropy"].to_numpy() == pytest.approx(expected, abs=1e-4)
    chosen = select(scores, pool, AcquisitionRule("entropy", batch=1, control_share=0.0, blind_share=0.0))
    assert [picked.record for picked in chosen.picked] == [f"r{expected.argmax()}"]
    assert score_pool(loaded, pool, max_new_tokens=2)["entropy"].null_count == len(PROMPTS)


def test_a_pool_gives_one_row_per_record_with_the_view_it_saw(loaded):
    doubled = records.table([*view(["q"]).to_pylist(), *view(["q"]).to_pylist()], records.VIEW)  # type: ignore[attr-defined]
    found = score_pool(loaded, doubled, classes=CLASSES)
    assert found.schema == records.SCORES
    assert found["record"].to_pylist() == ["r0"]
    assert found["view"].to_pylist() == [records.digest(records.canonical_json(records.user_message("q")))]
    assert len(found["embedding"][0].as_py()) == loaded.model.config.hidden_size
    assert found["completion"].to_pylist()[0] in CLASSES
    bare = score_pool(loaded, doubled, classes=CLASSES, embeddings=False)
    assert bare["embedding"].to_pylist() == [None]


def test_an_empty_pool_gives_an_empty_table(loaded):
    assert score_pool(loaded, records.VIEW.empty_table()).schema == records.SCORES
    assert generate(loaded, [], 5) == []
    assert predict(loaded, [], CLASSES) == []


def test_a_prompt_that_does_not_fit_gets_no_score(loaded):
    found = score_pool(loaded, view(["q", "word " * 400]), classes=CLASSES)
    assert found["nll"].to_pylist()[0] is not None
    assert found.to_pylist()[1] | {"view": ""} == {
        "record": "r1", "view": "", "nll": None, "confidence": None, "margin": None, "entropy": None,
        "disagreement": None, "completion": None, "embedding": None,
    }  # fmt: skip


def test_a_long_prompt_loses_its_beginning_and_a_warning_says_so(loaded):
    with pytest.warns(UserWarning, match="1 prompts are longer than"):
        assert len(generate(loaded, ["word " * 400], 4)) == 1
    with pytest.raises(UsageError, match="no room for a prompt"):
        generate(loaded, ["q"], 10_000)


def test_a_vector_is_that_of_its_prompt_whoever_shares_the_batch(loaded):
    together = scoring.embed(loaded, PROMPTS)
    assert together.shape == (len(PROMPTS), loaded.model.config.hidden_size)
    for prompt, vector in zip(PROMPTS, together, strict=True):
        assert scoring.embed(loaded, [prompt])[0] == pytest.approx(vector, abs=1e-4)
    assert len(scoring.embed(loaded, [])) == 0
