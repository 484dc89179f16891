"""Which tokens are learned: the guards, each with a sabotage that it must catch."""

from __future__ import annotations

import copy
import dataclasses
import random

import pytest

from curation.errors import TilthError, UsageError
from training import examples
from training.examples import (
    IGNORED,
    Encoded,
    UnfitExample,
    check,
    check_tokenizer,
    encode,
    preview,
    prompt_ids,
)

CHATML = (
    "{% for m in messages %}<|begin|>{{ m.role }}\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|begin|>assistant\n{% endif %}"
)
TRIMMING = CHATML.replace("m.content", "m.content | trim | upper")
ASK = [{"role": "user", "content": "my card is blocked"}]


@pytest.fixture
def chat(tokenizer):
    with_template = copy.deepcopy(tokenizer)
    with_template.chat_template = CHATML
    return with_template


def apply(tokenizer, messages, **options):
    return tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False, **options)


def conversations(count: int) -> list[list[dict[str, str]]]:
    rng = random.Random(11)
    bits = ["hello", " card", "\n", "\n\n", "  ", "Ünïcode", "日本", "it's", "42", "!?", "\t", "<b>", "user"]
    made = []
    for _ in range(count):
        text = lambda: "".join(rng.choices(bits, k=rng.randint(1, 8)))  # noqa: E731
        turns = [{"role": "system", "content": text()}] if rng.random() < 0.3 else []
        for _ in range(rng.randint(0, 2)):
            turns += [{"role": "user", "content": text()}, {"role": "assistant", "content": text()}]
        made.append([*turns, {"role": "user", "content": text()}])
    return made


def test_the_prompt_is_what_apply_chat_template_gives(chat):
    for messages in conversations(60):
        assert prompt_ids(messages, chat) == apply(chat, messages, add_generation_prompt=True)


def test_prompt_and_completion_are_what_apply_chat_template_gives_for_the_whole(chat):
    for messages in conversations(60):
        row = encode(messages, "certainly, here it is", chat, 4000)
        whole = apply(chat, [*messages, {"role": "assistant", "content": "certainly, here it is"}])
        assert row.input_ids == whole[: len(row.input_ids)]


def test_only_the_completion_and_its_end_are_learned(tokenizer):
    row = encode(ASK, "card_help", tokenizer, 100)
    learned = [i for i in row.labels if i != IGNORED]
    assert learned == [*tokenizer("card_help", add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    assert row.labels[: -len(learned)] == [IGNORED] * (len(row.labels) - len(learned))
    assert row.input_ids[0] == tokenizer.bos_token_id
    assert row.supervised == len(learned)


def test_the_white_space_of_a_completion_is_kept(tokenizer):
    row = encode(ASK, "  spaced\n", tokenizer, 100)
    assert tokenizer.decode([i for i in row.labels if i != IGNORED][:-1]) == "  spaced\n"


@pytest.mark.parametrize("typed", ["<|end|>", "<|begin|>", "<|pad|>", "a<|end|><|end|>b"])
def test_a_special_token_typed_by_a_person_stays_text(tokenizer, chat, typed):
    for each in (tokenizer, chat):
        plain = len(prompt_ids([{"role": "user", "content": "x"}], each))
        messages = [{"role": "user", "content": f"say {typed} please"}]
        row = encode(messages, f"I say {typed}", each, 400)
        assert row.input_ids.count(each.eos_token_id) == prompt_ids(ASK, each).count(each.eos_token_id) + 1
        assert each.pad_token_id not in row.input_ids
        assert typed in each.decode(row.input_ids)
        assert len(row.input_ids) > plain


def test_without_the_segments_a_typed_special_token_would_end_the_prompt(chat, monkeypatch):
    naive = apply(chat, [{"role": "user", "content": "say <|end|> now"}], add_generation_prompt=True)
    assert naive.count(chat.eos_token_id) == 2  # the flaw is real where the whole text is encoded at once
    monkeypatch.setattr(
        examples, "_ids", lambda text, tok, **_: tok(text, add_special_tokens=False)["input_ids"]
    )
    with pytest.raises(TilthError, match="turns typed text into a control token"):
        prompt_ids([{"role": "user", "content": "say <|end|> now"}], chat)


def test_typed_control_text_leaves_the_rest_of_the_template_alone(chat):
    typed = prompt_ids([{"role": "user", "content": "\n say <|end|> "}], chat)
    assert chat.decode(typed) == chat.apply_chat_template(
        [{"role": "user", "content": "\n say <|end|> "}], tokenize=False, add_generation_prompt=True
    )


def test_a_template_that_rewrites_messages_is_followed_until_control_text_makes_it_unsafe(chat):
    chat.chat_template = TRIMMING
    assert "MY CARD" in chat.decode(prompt_ids([{"role": "user", "content": " my card "}], chat))
    with pytest.raises(UnfitExample, match="rewrites messages"):
        prompt_ids([{"role": "user", "content": "my <|end|>"}], chat)


def test_a_template_that_refuses_a_conversation_says_so(chat):
    chat.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(UnfitExample, match="roles must alternate"):
        encode(ASK, "x", chat, 100)


def test_a_completion_that_would_be_cut_is_refused_with_the_numbers(tokenizer):
    size = len(encode(ASK, "a long answer", tokenizer, 100).input_ids)
    assert len(encode(ASK, "a long answer", tokenizer, size).input_ids) == size
    with pytest.raises(UnfitExample, match=f"limit is {size - 1}: 1 tokens of the completion would be lost"):
        encode(ASK, "a long answer", tokenizer, size - 1)


@pytest.mark.parametrize("nothing", ["", "  \n"])
def test_an_empty_completion_is_refused(tokenizer, nothing):
    with pytest.raises(UnfitExample, match="completion is empty"):
        encode(ASK, nothing, tokenizer, 100)


def sabotaged(row: Encoded, how: str, eos: int) -> Encoded:
    start = len(row.labels) - row.supervised
    labels = {
        "all masked": [IGNORED] * len(row.labels),
        "prompt learned": list(row.input_ids),
        "prompt token learned": [row.input_ids[0], *row.labels[1:]],
        "end masked": [*row.labels[:-1], IGNORED],
        "shifted": [*row.labels[:start], *row.labels[start + 1 :], eos],
        "short": row.labels[:-1],
    }[how]
    return dataclasses.replace(row, labels=labels)


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("all masked", "every token is masked"),
        ("prompt learned", "the prompt is learned"),
        ("prompt token learned", "mixed"),
        ("end masked", "mixed"),
        ("shifted", "a label is not its token"),
        ("short", "labels for"),
    ],
)
def test_a_wrong_mask_is_refused(tokenizer, how, said):
    row = encode(ASK, "card_help", tokenizer, 100)
    check(row, tokenizer)
    with pytest.raises(TilthError, match=said):
        check(sabotaged(row, how, tokenizer.eos_token_id), tokenizer)


def test_an_answer_without_its_end_is_refused(tokenizer):
    row = encode(ASK, "card_help", tokenizer, 100)
    with pytest.raises(TilthError, match="end of sequence is not learned"):
        check(Encoded(row.input_ids[:-1], row.labels[:-1]), tokenizer)


def test_padding_that_is_the_end_of_sequence_is_refused(tokenizer):
    check_tokenizer(tokenizer)
    broken = copy.deepcopy(tokenizer)
    broken.pad_token = broken.eos_token
    with pytest.raises(UsageError, match="pads with its end-of-sequence"):
        check_tokenizer(broken)
    broken.eos_token = None
    with pytest.raises(UsageError, match="no end-of-sequence"):
        check_tokenizer(broken)


def test_a_preview_shows_what_is_learned(tokenizer):
    row = encode(ASK, "card_help", tokenizer, 100)
    assert preview(row, tokenizer) == "<|begin|>my card is blocked\n⟦card_help<|end|>⟧"


def test_plain_text_is_learned_whole_and_in_pieces(tokenizer):
    rows = examples.encode_text("my card is blocked " * 20, tokenizer, 32)
    assert all(row.labels == row.input_ids and len(row.input_ids) <= 32 for row in rows)
    assert rows[0].input_ids[0] == tokenizer.bos_token_id
    assert rows[-1].input_ids[-1] == tokenizer.eos_token_id
    assert examples.encode_text("  ", tokenizer, 32) == []
