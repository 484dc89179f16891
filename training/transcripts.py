"""Preferences as whole conversations: two transcripts with one beginning, of which the last answers are compared.

A transcript is a list of messages, or a text whose turns begin with ``Human:`` and ``Assistant:`` after an empty line
(the layout of hh-rlhf: Bai et al. 2022, arXiv 2204.05862). Pairs that part before the last answer compare more than an
answer and are refused.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise

from curation.errors import UsageError
from curation.records import Message

Transcript = str | Sequence[Message]

_TURN = re.compile(r"(?:^|\n\n)(Human|Assistant):[ \n]?")
_ROLES = {"Human": "user", "Assistant": "assistant"}


def turns(text: str) -> list[Message]:
    """The messages of a transcript in text. Raises ``UsageError`` where it does not begin with a turn.

    >>> turns("\\n\\nHuman: Where is it?\\n\\nAssistant: On its way.")[1]
    {'role': 'assistant', 'content': 'On its way.'}
    """
    marks = list(_TURN.finditer(text))
    if not marks or text[: marks[0].start()].strip():
        raise UsageError("this is no transcript: it does not begin with 'Human:' or 'Assistant:'")
    ends = [*(after.start() for _, after in pairwise(marks)), len(text)]
    return [
        {"role": _ROLES[mark[1]], "content": text[mark.end() : end].strip()}
        for mark, end in zip(marks, ends, strict=True)
    ]


def compared(chosen: Transcript, rejected: Transcript) -> tuple[list[Message], str, str]:
    """The shared messages of two transcripts, the answer that was preferred, and the other.

    Raises ``UsageError`` where one does not end with an answer, nothing comes before it, or the beginnings differ.
    """
    good, bad = (turns(side) if isinstance(side, str) else _plain(side) for side in (chosen, rejected))
    for side in (good, bad):
        if len(side) < 2 or side[-1]["role"] != "assistant":
            raise UsageError("a transcript ends with an answer, and something comes before it")
    if good[:-1] != bad[:-1]:
        raise UsageError("the two transcripts part before their last answer")
    return good[:-1], good[-1]["content"], bad[-1]["content"]


def _plain(messages: Sequence[Message]) -> list[Message]:
    return [{"role": m["role"], "content": m["content"]} for m in messages]
