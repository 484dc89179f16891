"""Accept or reject: each function on an answer that it must judge, and all on one that is simply good."""

from __future__ import annotations

import pytest

from curation.voting import Row, find_functions
from labeling_functions import quality
from labeling_functions.quality import ACCEPT, REJECT

PROMPT = (
    "Good morning, our container with coffee beans has been standing in Hamburg since Monday. Could you tell us "
    "which documents customs still requires before the release?"
)
GOOD = (
    "Customs still requires the certificate of origin and a signed power of attorney. Please mail both documents "
    "today; the release of the container follows within one working day."
)
JUDGED = {
    "empty": (" \n", REJECT),
    "too_short": ("Yes.", REJECT),
    "echo": (PROMPT.upper(), REJECT),
    "hollow": ("Dear [customer name], your container is on its way.", REJECT),
    "refusal": ("I’m sorry, but I cannot discuss the matter of containers.", REJECT),
    "repeats_itself": ("the box is here " * 10, REJECT),
    "cut_off": ("word after word " * 15 + "and the", REJECT),
    "markup": ("See <br> below.", REJECT),
    "speaks_to_the_prompt": (GOOD, ACCEPT),
    "well_formed": (GOOD, ACCEPT),
}


@pytest.fixture(scope="module")
def functions():
    return {f.name: f for f in find_functions(quality.__file__)}


def test_there_is_an_example_for_every_function(functions):
    assert set(functions) == set(JUDGED)


@pytest.mark.parametrize("name", JUDGED)
def test_each_function_judges_its_own_fault(name, functions):
    completion, verdict = JUDGED[name]
    assert functions[name](Row(prompt=PROMPT, completion=completion)) == verdict


def test_nothing_rejects_a_good_answer(functions):
    row = Row(prompt=PROMPT, completion=GOOD)
    assert [f.name for f in functions.values() if f(row) == REJECT] == []


def test_a_record_without_a_completion_gets_no_vote(functions):
    assert [f.name for f in functions.values() if f(Row(prompt=PROMPT))] == []


def test_a_short_answer_to_a_short_question_is_not_too_short(functions):
    assert functions["too_short"](Row(prompt="Is it late?", completion="Yes.")) is None
