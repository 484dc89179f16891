"""Where a URL really starts and ends, and when a full stop without a space is not one.

Presidio's pattern ends at the first thing that is a top-level domain, even inside a word, and leaves a port,
a query or a password standing. Each correction here is listed in :func:`mend`.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from curation.pii.spans import Span

_HEAD = re.compile(r"[a-z][a-z0-9+.\-]{1,15}://(?:[^\s/@]{1,200}@)?$", re.IGNORECASE)
_HOST = re.compile(r"[a-z0-9\-]*(?:\.[a-z0-9\-]+)*", re.IGNORECASE)
_TAIL = re.compile(r"(?::\d{1,5})?(?:[/?#][^\s()<>\"']*)?")
_SCHEME = re.compile(r"[a-z][a-z0-9+.\-]{1,15}://(?:[^\s/@]{1,200}@)?", re.IGNORECASE)
# Top-level domains that are also words which often start an English sentence.
_WORDS = frozenset(
    {"Am", "As", "At", "Be", "Best", "By", "Click", "Do", "How", "In", "Is", "It", "Live", "Me", "My", "New"}
    | {"No", "Now", "One", "Plus", "So", "To", "Today", "Us", "You"}
)


def mend(text: str, span: Span, is_domain: Callable[[str], bool]) -> Span | None:
    """The URL as it is meant, or None where there is none. ``is_domain`` knows the public suffix list.

    1. A scheme and a password before the host, a port, query and fragment after it belong to the URL.
    2. A host that was cut in the middle of a word ("shop.company" at ".com") is read to its end; if the whole
       is no domain, it is shortened label by label until it is; if nothing is left ("order.Please"), it is no
       URL.
    3. A full stop, comma, colon, semicolon, exclamation or question mark at the very end belongs to the
       sentence.
    4. "thanks.So" is two sentences: a bare two-label host whose second label is a capitalised English word.
    """
    start, end = span.start, span.end
    scheme = _SCHEME.match(text, start, end)
    host_start = scheme.end() if scheme else start
    slash = text.find("/", host_start, end)
    if slash < 0:
        grown = _HOST.match(text, end)
        whole = grown.end() if grown else end
        host = text[host_start:whole].rstrip(".-")
        if host_start + len(host) != end:
            host = _shortened(host, is_domain)
        if not host or (not scheme and _two_sentences(host)):
            return None
        end = host_start + len(host)
        if end == whole or text[end] not in ".-":
            end = _TAIL.match(text, end).end()  # type: ignore[union-attr]  # the pattern matches the empty string
    head = _HEAD.search(text, max(0, start - 220), start)
    start = head.start() if head else start
    end = start + len(text[start:end].rstrip(".,:;!?"))
    return Span(start, end, span.entity_type, span.score)


def _shortened(host: str, is_domain: Callable[[str], bool]) -> str:
    labels = host.split(".")
    while len(labels) > 1:
        if is_domain(".".join(labels)):
            return ".".join(labels)
        labels.pop()
    return ""


def _two_sentences(host: str) -> bool:
    labels = host.split(".")
    return len(labels) == 2 and labels[1] in _WORDS
