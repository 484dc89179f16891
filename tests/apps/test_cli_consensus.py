"""`tilth consensus` and `tilth vote` at the command line: the contract that scripts rely on."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest


def run(*args, stdin=""):
    return subprocess.run(
        [sys.executable, "-m", "apps.cli", *args], input=stdin, capture_output=True, text=True, check=False
    )


def lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def answers(items=30):
    draw = np.random.default_rng(0)
    rows = []
    for i in range(items):
        truth = i % 2
        for a in range(5):
            right = draw.random() < (0.95 if a < 3 else 0.5)
            rows.append({"item": i, "annotator": f"a{a}", "label": truth if right else 1 - truth})
    return rows


def test_consensus_writes_one_row_per_item_and_tells_skill_and_agreement(tmp_path):
    out = tmp_path / "agreed.jsonl"
    done = run("--json", "--quiet", "consensus", "-", "--out", str(out), stdin=lines(answers()))
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["items"] == 30
    assert 0 < told["alpha"] < 1
    assert {tuple(a) for a in told["annotators"]} == {("id", "skill", "n")}
    skill = {a["id"]: a["skill"] for a in told["annotators"]}
    assert min(skill["a0"], skill["a1"], skill["a2"]) > max(skill["a3"], skill["a4"])
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [tuple(row) for row in rows] == [("item", "label", "confidence", "needs_review")] * 30
    assert [row["item"] for row in rows] == list(range(30))
    assert np.mean([row["label"] == row["item"] % 2 for row in rows]) > 0.9
    assert all(isinstance(row["needs_review"], bool) and 0 < row["confidence"] <= 1 for row in rows)


def test_consensus_of_free_text_keeps_one_of_the_answers():
    rows = [
        {"item": "s", "annotator": "a", "label": "The train was late by an hour."},
        {"item": "s", "annotator": "b", "label": "the train was an hour late"},
        {"item": "s", "annotator": "c", "label": "I do not know"},
    ]
    done = run("--quiet", "consensus", "-", "--kind", "text", "--out", "-", stdin=lines(rows))
    first = json.loads(done.stdout.splitlines()[0])
    assert first["label"] in {r["label"] for r in rows[:2]}
    seen = run("--json", "consensus", "-", stdin=lines(rows))
    assert json.loads(seen.stdout)["kind"] == "text"
    assert "read as text" in seen.stderr


@pytest.mark.parametrize(
    ("args", "row", "says"),
    [
        ((), {"item": 1, "annotator": "a"}, "row 0: there is no label"),
        ((), {"item": [1], "annotator": "a", "label": 1}, "the item is no single value"),
        (("--kind", "picture"), {"item": 1, "annotator": "a", "label": 1}, "no kind 'picture'"),
        (("--model", "oracle"), {"item": 1, "annotator": "a", "label": 1}, "no consensus model 'oracle'"),
    ],
)
def test_consensus_refuses_in_words(args, row, says):
    done = run("consensus", "-", *args, stdin=lines([row]))
    assert done.returncode == 2
    assert says in done.stderr


def test_consensus_of_nothing_is_nothing():
    done = run("--json", "--quiet", "consensus", "-", stdin="")
    told = json.loads(done.stdout)
    assert (told["items"], told["alpha"], told["annotators"]) == (0, None, [])


def test_vote_learns_from_gold_out_of_fold_and_tells_calibration(tmp_path):
    draw = np.random.default_rng(0)
    truth = draw.integers(0, 2, 300)
    votes = np.where(draw.random((300, 5)) < 0.75, truth[:, None], 1 - truth[:, None])
    votes[draw.random((300, 5)) < 0.4] = -1
    rows = [
        {"id": i, "v": v.tolist(), "y": int(y)} for i, (v, y) in enumerate(zip(votes, truth, strict=True))
    ]
    for model in ("weighted", "triplet", "blend"):
        done = run(
            "--json",
            "--quiet",
            "vote",
            "-",
            "--votes",
            "v",
            "--gold",
            "y",
            "--model",
            model,
            stdin=lines(rows),
        )
        told = json.loads(done.stdout)
        assert told["model"] == model
        assert told["accuracy"] > 0.7
        assert told["calibration_error"] < 0.15
        assert all(f["interval"][0] < f["accuracy"] < f["interval"][1] for f in told["functions"])
    refused = run("vote", "-", "--votes", "v", "--model", "weighted", stdin=lines(rows))
    assert refused.returncode == 2
    assert "--gold FIELD" in refused.stderr


def test_known_labels_measure_a_consensus_and_decide_nothing():
    rows = [{**row, "right": row["item"] % 2} for row in answers()]
    told = json.loads(run("--json", "consensus", "-", "--gold", "right", stdin=lines(rows)).stdout)
    assert told["gold"] == 30
    low, high = told["accuracy"]["ci95"]
    assert low <= told["accuracy"]["value"] <= high
    assert told["accuracy"]["value"] > 0.9
    turned = [{**row, "right": 1 - row["right"]} for row in rows]
    other = json.loads(run("--json", "consensus", "-", "--gold", "right", stdin=lines(turned)).stdout)
    assert other["accuracy"]["value"] == pytest.approx(1 - told["accuracy"]["value"])
    assert other["annotators"] == told["annotators"]
    seen = run("consensus", "-", "--gold", "right", stdin=lines(rows))
    assert "accuracy on 30 known items: 0." in seen.stdout or "accuracy on 30 known items: 1." in seen.stdout


def test_known_texts_give_gleu_and_token_f1_and_two_known_labels_are_refused():
    rows = [
        {"item": f"s{i}", "annotator": a, "label": f"The {a} train was late.", "gold": "the train was late"}
        for i in range(3)
        for a in ("red", "old")
    ]
    told = json.loads(
        run("--json", "consensus", "-", "--kind", "text", "--gold", "gold", stdin=lines(rows)).stdout
    )
    assert told["token_f1"]["value"] == pytest.approx(8 / 9, abs=1e-4)
    assert 0 < told["gleu"]["value"] < told["token_f1"]["value"]
    rows[0]["gold"] = "something else"
    done = run("consensus", "-", "--gold", "gold", stdin=lines(rows))
    assert done.returncode == 2
    assert "two known labels" in done.stderr
    done = run("consensus", "-", "--gold", "truth", stdin=lines(rows))
    assert done.returncode == 2
    assert "no row has a known label" in done.stderr


def test_gleu_is_nltks():
    gleu_score = pytest.importorskip("nltk.translate.gleu_score")
    from curation.consensus import gleu

    draw = np.random.default_rng(0)
    for _ in range(200):
        one, other = (list(draw.choice(list("abcd"), draw.integers(1, 9))) for _ in range(2))
        assert gleu(one, other) == pytest.approx(gleu_score.sentence_gleu([other], one))
    assert gleu([], []) == 1.0
    assert gleu([], ["a"]) == 0.0
