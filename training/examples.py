"""From a conversation and its answer to token ids and the mask that says which of them are learned.

The row is built segment by segment: the ids of the prompt, never learned, then those of the completion and the
end-of-sequence token, always learned. Nothing is searched for in the joined text, so no boundary can be lost, and text
that looks like a control token stays text, whoever typed it.

It refuses what would train silently wrong: a completion that does not fit (nothing is cut off), an empty one, a
tokenizer whose padding is its end-of-sequence token, a row without a learned token or without a learned end.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from curation.errors import TilthError, UsageError
from curation.records import Message, prompt_text

IGNORED = -100
"""The label of a token that is not learned (what torch's cross entropy skips)."""

SEPARATOR = "\n"
"""Between prompt and completion, where the tokenizer has no chat template."""


class UnfitExample(UsageError):
    """One row cannot be trained on; the message says why. The others can."""


@dataclass(frozen=True)
class Encoded:
    """One training row: ``labels[i]`` is ``input_ids[i]`` where it is learned and ``IGNORED`` elsewhere."""

    input_ids: list[int]
    labels: list[int]

    @property
    def supervised(self) -> int:
        """How many tokens are learned."""
        return sum(label != IGNORED for label in self.labels)

    @property
    def targets(self) -> int:
        """How many of them are predicted: all but a first token, before which there is nothing."""
        return sum(label != IGNORED for label in self.labels[1:])


def encode(messages: Sequence[Message], completion: str, tokenizer: Any, max_length: int) -> Encoded:
    """The ids of a prompt and its completion, of which the completion and the end of sequence are learned.

    The prompt is what :func:`prompt_ids` makes of ``messages``, exactly what generation will start from. The
    completion's own white space is kept. Raises :class:`UnfitExample` where the completion is empty or where the row is
    longer than ``max_length`` tokens: a shortened row would teach to answer a question that was not asked.
    """
    if not completion.strip():
        raise UnfitExample("the completion is empty", next="Leave the row out, or give it an answer")
    prompt = prompt_ids(messages, tokenizer)
    answer = [*plain_ids(completion, tokenizer), tokenizer.eos_token_id]
    _fits(len(prompt), len(answer), max_length)
    return Encoded(prompt + answer, [IGNORED] * len(prompt) + answer)


def encode_pair(
    messages: Sequence[Message], chosen: str, rejected: str, tokenizer: Any, max_length: int
) -> tuple[list[int], list[int], list[int]]:
    """The ids of a prompt and of its two answers, each with the end of sequence: what a preference is learned from.

    Raises :class:`UnfitExample` where either answer could not be trained on, or where the two are the same.
    """
    if chosen == rejected:
        raise UnfitExample("both answers are the same", next="Leave the row out: it prefers nothing")
    good, bad = (encode(messages, text, tokenizer, max_length) for text in (chosen, rejected))
    start = len(good.labels) - good.supervised
    return good.input_ids[:start], good.input_ids[start:], bad.input_ids[start:]


def encode_text(text: str, tokenizer: Any, max_length: int) -> list[Encoded]:
    """A document for continued pre-training: every token is learned, long documents give several rows.

    An empty text gives none.
    """
    ids = [*_lead(tokenizer), *plain_ids(text, tokenizer), tokenizer.eos_token_id] if text.strip() else []
    runs = [ids[i : i + max_length] for i in range(0, len(ids), max_length)]
    return [Encoded(run, list(run)) for run in runs if len(run) > 1]


def _fits(prompt: int, answer: int, max_length: int) -> None:
    if prompt + answer <= max_length:
        return
    lost = min(answer, prompt + answer - max_length)
    raise UnfitExample(
        f"prompt and completion are {prompt} + {answer} tokens, the limit is {max_length}: "
        f"{lost} tokens of the completion would be lost",
        next="Raise max_length, or shorten the row",
    )


# ------------------------------------------------------------------------------------------- the prompt

PASSAGES = "Answer from these passages:"


def with_passages(messages: Sequence[Message], passages: Sequence[str] | None) -> list[Message]:
    """The conversation with the passages that it rests on, before its last message; without any, as it is.

    The one place where passages become text: training, scoring and generating call it, so that a model is asked in the
    form that it learned. An empty conversation stays empty.

    >>> with_passages([{"role": "user", "content": "how long?"}], ["Free for 5 days."])
    [{'role': 'user', 'content': 'Answer from these passages:\\n[1] Free for 5 days.\\n\\nhow long?'}]
    """
    kept = [dict(m) for m in messages]
    if passages and kept:
        listed = "\n".join(f"[{i}] {text.strip()}" for i, text in enumerate(passages, 1))
        kept[-1]["content"] = f"{PASSAGES}\n{listed}\n\n{kept[-1]['content']}"
    return kept  # type: ignore[return-value]


def prompt_ids(messages: Sequence[Message], tokenizer: Any) -> list[int]:
    """The ids that the model sees before it answers.

    With a chat template, those of ``apply_chat_template(messages, add_generation_prompt=True)``; without one, the
    tokenizer's own beginning, the prompt as one text and :data:`SEPARATOR`. Control-token text inside a message is
    encoded as the characters it is made of.
    """
    if not tokenizer.chat_template:
        return _lead(tokenizer) + plain_ids(prompt_text(messages) + SEPARATOR, tokenizer)
    conversation = [dict(m) for m in messages]
    if any(control_text(m["content"], tokenizer) for m in conversation):
        return _typed_control_ids(conversation, tokenizer)
    return _ids(_render(conversation, tokenizer), tokenizer, split_special_tokens=False)


def plain_ids(text: str, tokenizer: Any) -> list[int]:
    """The ids of ``text`` as text: nothing is added, and no control token can be typed.

    Raises ``TilthError`` where the tokenizer makes a control token of it all the same.
    """
    ids = _ids(text, tokenizer, split_special_tokens=True)
    if control_ids(tokenizer).intersection(ids):
        raise TilthError(
            f"the tokenizer turns typed text into a control token: {text[:60]!r}",
            next="Use a tokenizer whose control tokens are declared as special",
        )
    return ids


def _ids(text: str, tokenizer: Any, *, split_special_tokens: bool) -> list[int]:
    return tokenizer(text, add_special_tokens=False, split_special_tokens=split_special_tokens)["input_ids"]


def _lead(tokenizer: Any) -> list[int]:
    """What the tokenizer itself puts before a text: the beginning of sequence, or nothing."""
    return [
        i for i in tokenizer("")["input_ids"] if i != tokenizer.eos_token_id or i == tokenizer.bos_token_id
    ]


def control_tokens(tokenizer: Any) -> dict[str, int]:
    """The tokens that steer the model rather than say something: everything the tokenizer declares special."""
    added = {t.content: i for i, t in tokenizer.added_tokens_decoder.items() if t.special}
    return added | dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True))


def control_ids(tokenizer: Any) -> set[int]:
    """The ids of :func:`control_tokens`, less the unknown token, which ordinary text may become."""
    return set(control_tokens(tokenizer).values()) - {tokenizer.unk_token_id}


def control_text(text: str, tokenizer: Any) -> str | None:
    """The first control token whose name is typed out in ``text``, or None."""
    return next((token for token in control_tokens(tokenizer) if token in text), None)


def _render(conversation: list[dict[str, str]], tokenizer: Any) -> str:
    try:
        return tokenizer.apply_chat_template(conversation, tokenize=False, add_generation_prompt=True)
    except Exception as error:  # a template is a program of the model's author; it may raise anything
        raise UnfitExample(
            f"the chat template refuses this conversation: {error}",
            next="Check the order of the roles, or use a base whose template allows them",
        ) from error


def _typed_control_ids(conversation: list[dict[str, str]], tokenizer: Any) -> list[int]:
    """The chat template's ids where a message spells out a control token.

    The template is rendered around private-use marks, so that its own control tokens can be told from typed ones.
    Text between two of its control tokens is encoded in one piece, as ``apply_chat_template`` would.
    """
    marks = [f"\ue000{i}\ue001" for i in range(len(conversation))]
    frame = _render([{**m, "content": mark} for m, mark in zip(conversation, marks, strict=True)], tokenizer)
    typed = {mark: m["content"] for m, mark in zip(conversation, marks, strict=True)}
    pieces = re.split("(\ue000\\d+\ue001)", frame)
    if "".join(typed.get(p, p) for p in pieces) != _render(conversation, tokenizer):
        raise UnfitExample(
            "the chat template rewrites messages, and this one spells out a control token",
            next="Remove the control token's text from the message",
        )
    tokens = control_tokens(tokenizer)
    controls = re.compile("(" + "|".join(re.escape(t) for t in sorted(tokens, key=len, reverse=True)) + ")")
    return _encode_pieces(pieces, typed, tokens, controls, tokenizer)


def _encode_pieces(
    pieces: list[str],
    typed: dict[str, str],
    tokens: dict[str, int],
    controls: re.Pattern[str],
    tokenizer: Any,
) -> list[int]:
    ids: list[int] = []
    run = ""
    for piece in pieces:
        for part in [piece] if piece in typed else controls.split(piece):
            if part in tokens:
                ids += [*plain_ids(run, tokenizer), tokens[part]]
                run = ""
            else:
                run += typed.get(part, part)
    return ids + plain_ids(run, tokenizer)


# --------------------------------------------------------------------------------------------- guards


def check_tokenizer(tokenizer: Any) -> None:
    """Refuse a tokenizer without an end of sequence, or whose padding is that end.

    A collator that masks the padding would then mask the end of every answer, and the model would never learn to stop.
    """
    if tokenizer.eos_token_id is None:
        raise UsageError(
            "the tokenizer has no end-of-sequence token", next="Use a base whose tokenizer declares one"
        )
    if tokenizer.pad_token_id in (None, tokenizer.eos_token_id):
        raise UsageError(
            "the tokenizer pads with its end-of-sequence token, or with nothing",
            next="Load it with training.model.load_base, which chooses another token for padding",
        )


def check(row: Encoded, tokenizer: Any) -> None:
    """Refuse a row whose mask would train silently wrong; says which rule it breaks.

    The rules: labels repeat the ids or are ignored; something is learned; all that is learned stands at the end, in one
    run, after a prompt; and the last learned token is the end of sequence.
    """
    fault = _fault(row, tokenizer)
    if fault:
        raise TilthError(f"the training mask is wrong: {fault}", next="Do not train on this; report it")


def _fault(row: Encoded, tokenizer: Any) -> str | None:
    if len(row.input_ids) != len(row.labels):
        return f"{len(row.labels)} labels for {len(row.input_ids)} tokens"
    if not row.supervised:
        return "every token is masked"
    start = len(row.labels) - row.supervised
    if any(label != IGNORED for label in row.labels[:start]):
        return "learned and masked tokens are mixed"
    if start == 0:
        return "the prompt is learned"
    if row.labels[start:] != row.input_ids[start:]:
        return "a label is not its token"
    if row.labels[-1] != tokenizer.eos_token_id:
        return "the end of sequence is not learned"
    return None


def preview(row: Encoded, tokenizer: Any) -> str:
    """The row as text, with what is learned between ``⟦`` and ``⟧``; control tokens are shown.

    For a person who wants to see, before an hour of training, that the right part is learned.
    """
    pairs = zip(row.input_ids, row.labels, strict=True)
    runs = groupby(pairs, key=lambda pair: pair[1] != IGNORED)
    return "".join(_shown([i for i, _ in run], learned, tokenizer) for learned, run in runs)


def _shown(ids: list[int], learned: bool, tokenizer: Any) -> str:
    text = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return f"⟦{text}⟧" if learned else text
