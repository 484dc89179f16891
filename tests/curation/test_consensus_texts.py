"""Free text, grades and preferences: the answer to keep, the grade in the middle, the better of two."""

from __future__ import annotations

import csv

import numpy as np
import pytest

from curation.consensus import Answers, agree_on_text, bradley_terry, grade, text_alpha

SENTENCES = (
    "the shipment was delayed at the border because a customs form was missing",
    "please send the corrected invoice to our accounting department before friday",
    "the driver arrived at the warehouse early and waited two hours for a dock",
    "we cannot accept the pallet since its seal was broken on arrival",
)


def spoiled(text, share, draw):
    """The sentence with a share of its words replaced by ones of another."""
    words, strange = text.split(), ["lorem", "ipsum", "dolor", "sit", "amet"]
    return " ".join(draw.choice(strange) if draw.random() < share else word for word in words)


def crowd(seed=0, items=60):
    draw = np.random.default_rng(seed)
    faults = np.array([0.05, 0.1, 0.3, 0.5, 0.7, 0.8])
    triples, truth = [], {}
    for i in range(items):
        truth[f"i{i}"] = f"{SENTENCES[i % 4]} case {i}"
        for a, fault in enumerate(faults):
            triples.append((f"i{i}", f"a{a}", spoiled(truth[f"i{i}"], fault, draw)))
    return Answers.of(triples), truth, faults


def chosen(found):
    return {
        item: found.answers.labels[found.answers.label[row]]
        for item, row in zip(found.answers.items, found.chosen, strict=True)
    }


def overlap(a, b):
    one, other = set(a.split()), set(b.split())
    return len(one & other) / len(one | other)


def test_the_answer_of_careful_people_is_chosen_and_they_are_found_to_be_careful():
    answers, truth, faults = crowd()
    found = agree_on_text(answers)
    mean = np.mean([overlap(text, truth[item]) for item, text in chosen(found).items()])
    by_rows = [
        overlap(answers.labels[x], truth[answers.items[i]])
        for i, x in zip(answers.item, answers.label, strict=True)
    ]
    assert mean > np.mean(by_rows) + 0.3
    skill = [found.skill[answers.annotators.index(f"a{a}")] for a in range(len(faults))]
    assert np.corrcoef(skill, -faults)[0, 1] > 0.9


def test_without_skill_the_choice_is_worse(monkeypatch):
    """Negative control: with every annotator worth the same, two alike but careless ones can win."""
    triples = []
    draw = np.random.default_rng(1)
    for i in range(40):
        right = f"{SENTENCES[i % 4]} number {i}"
        triples += [(f"i{i}", f"good{a}", spoiled(right, 0.05, draw)) for a in range(3)]
        if i % 4 == 0:  # on some items the careless outnumber the careful and copy each other
            triples = triples[:-2] + [(f"i{i}", f"bad{a}", "no idea at all sorry") for a in range(2)]
        else:
            triples += [(f"i{i}", f"bad{a}", spoiled(right, 0.9, draw)) for a in range(2)]
    answers = Answers.of(triples)
    from curation.consensus import texts

    def careless(found):
        return sum("sorry" in text for text in chosen(found).values())

    assert careless(agree_on_text(answers)) == 0
    monkeypatch.setattr(
        texts, "_skills", lambda answers, quality, prior: np.full(len(answers.annotators), 0.5)
    )
    assert careless(agree_on_text(answers)) == 10


def test_answers_that_are_the_same_once_normalised_are_one_answer():
    found = agree_on_text(Answers.of([("1", "a", "Dear Sir"), ("1", "b", "dear  sir"), ("1", "c", "Hello")]))
    assert chosen(found)["1"] in ("Dear Sir", "dear  sir")
    same = agree_on_text(Answers.of([("1", "a", "Yes."), ("1", "b", "yes.")]))
    assert same.confidence.tolist() == pytest.approx([1.0])
    assert not same.disputed.any()


def test_answers_with_nothing_in_common_go_to_a_curator():
    found = agree_on_text(Answers.of([("1", "a", "send it today"), ("1", "b", "never call again")]))
    assert found.disputed.tolist() == [True]
    assert found.confidence[0] < 0.1


def test_scripts_without_spaces_are_compared_by_characters():
    found = agree_on_text(
        Answers.of(
            [("1", "a", "二時間も待たされた"), ("1", "b", "二時間待たされた"), ("1", "c", "雨が降りそうだ")]
        )
    )
    assert "待" in chosen(found)["1"]


def test_an_encoder_that_is_handed_in_is_heard():
    answers = Answers.of([("1", "a", "alpha"), ("1", "b", "beta"), ("1", "c", "gamma")])
    near = {"alpha": [1.0, 0.0], "beta": [0.2, 1.0], "gamma": [0.1, 1.0]}
    found = agree_on_text(answers, encoder=lambda texts: np.array([near[t] for t in texts]))
    assert chosen(found)["1"] in ("beta", "gamma")


def test_no_answers_and_one_answer():
    assert len(agree_on_text(Answers.of([])).chosen) == 0
    (only,) = agree_on_text(Answers.of([("1", "a", "x y")])).chosen
    assert only == 0
    assert text_alpha(Answers.of([("1", "a", "x y")])) is None


def test_alpha_of_texts_is_high_for_the_alike_and_about_zero_for_strangers():
    answers, _, _ = crowd()
    assert text_alpha(answers) > 0.12
    mixed = np.random.default_rng(0).permutation(answers.label)
    strangers = Answers(
        answers.item, answers.annotator, mixed, answers.items, answers.annotators, answers.labels
    )
    assert abs(text_alpha(strangers)) < 0.05


# Grades and preferences -------------------------------------------------------------------------------------


def test_a_strict_grader_and_a_careless_one_are_allowed_for():
    draw = np.random.default_rng(0)
    truth = draw.integers(0, 5, 200)
    said = {
        "fair": truth + draw.choice([0, 0, 0, 1, -1], 200),
        "strict": truth - 1 + draw.choice([0, 0, 0, 1, -1], 200),
        "careless": draw.integers(0, 5, 200),
    }
    triples = [(str(i), who, str(np.clip(v[i], 0, 4))) for who, v in said.items() for i in range(200)]
    found = grade(triples, ["0", "1", "2", "3", "4"])
    who = found.answers.annotators
    assert found.leaning[who.index("strict")] < found.leaning[who.index("fair")] - 0.5
    assert found.weight[who.index("careless")] == found.weight.min()
    plain = np.mean([np.clip(v, 0, 4) for v in said.values()], axis=0)
    assert np.corrcoef(found.mean, truth)[0, 1] > np.corrcoef(plain, truth)[0, 1] + 0.05
    assert (np.abs(found.label - np.rint(found.mean)) == 0).all()


def test_strengths_are_recovered_from_who_beat_whom_and_agree_with_crowd_kits():
    draw = np.random.default_rng(0)
    strength = np.array([8.0, 4.0, 2.0, 1.0])
    pairs = []
    for _ in range(4000):
        a, b = draw.choice(4, 2, replace=False)
        pairs.append((a, b) if draw.random() < strength[a] / (strength[a] + strength[b]) else (b, a))
    found = bradley_terry([(f"t{a}", f"t{b}") for a, b in pairs])
    ours = np.array([found[f"t{i}"] for i in range(4)])
    assert ours == pytest.approx(strength / strength.sum(), rel=0.15)
    pd = pytest.importorskip("pandas")
    aggregation = pytest.importorskip("crowdkit.aggregation")
    rows = [{"worker": "w", "left": f"t{a}", "right": f"t{b}", "label": f"t{a}"} for a, b in pairs]
    theirs = aggregation.BradleyTerry(n_iter=200).fit_predict(pd.DataFrame(rows))
    assert sorted(found, key=found.get) == sorted(found, key=lambda name: theirs[name])


def test_one_that_never_lost_stays_finite_and_nothing_gives_nothing():
    found = bradley_terry([("a", "b"), ("c", "d")])
    assert all(0 < s < 1 for s in found.values())
    assert sum(found.values()) == pytest.approx(1.0)
    assert bradley_terry([]) == {}


@pytest.mark.shared_data
@pytest.mark.parametrize("task", ["T1", "T2"])
def test_on_real_translations_the_choice_is_nearer_to_gold_than_a_random_one(shared_data, task):
    def read(name):
        path = shared_data / "crowd-wsa2019" / f"CrowdWSA2019_{task}_{name}.tsv"
        with open(path, newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))

    rows = read("label_anonymous")
    gold = {row["sentence"]: row["trueanswer"] for row in read("gt")}
    found = agree_on_text(Answers.of((r["sentence"], r["worker"], r["workeranswer"]) for r in rows))

    def near(text, item):
        return overlap("".join(c for c in text.lower() if c.isalnum() or c == " "), gold[item])

    ours = np.mean([near(text, item) for item, text in chosen(found).items()])
    anyone = np.mean([near(r["workeranswer"], r["sentence"]) for r in rows])
    assert ours > anyone + 0.08
