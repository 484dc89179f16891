"""Documents to passages: chunks of a policy or a manual that an answer may rest on.

A chunk never crosses a heading, and no text is lost: the chunks of a document are its paragraphs, in order.
Plain text and Markdown alone; a document in another format is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from curation.errors import UsageError
from curation.formats.stream import opened
from curation.records import digest

LENGTH = 1200
"""About how many characters a passage has; what a person reads beside a question without scrolling."""

_FENCE = re.compile(r" {0,3}(```+|~~~+)")
_HEADING = re.compile(r" {0,3}(#{1,6})(?:[ \t]+(.*?))?(?:[ \t]+#+)?[ \t]*$")
_UNDERLINE = re.compile(r" {0,3}(=+|-{2,})[ \t]*$")
_SENTENCE = re.compile(r"(?<=[.!?。！？])\s+")


@dataclass(frozen=True)
class Passage:
    """A chunk of a document: the file's name, the digest of the file, the headings above it, its text."""

    document: str
    version: str
    heading: list[str]
    text: str


def passages(path: str | Path, length: int = LENGTH) -> list[Passage]:
    """The passages of a ``.txt`` or ``.md`` file, in order; an empty file has none.

    Paragraphs under one heading are joined while they fit ``length`` characters; a longer paragraph is cut
    between sentences, or between words. Raises ``UsageError`` for another kind of file, or one that is not
    UTF-8.
    """
    path = Path(path)
    if path.suffix.lower() not in (".txt", ".md", ".markdown"):
        raise UsageError(
            "passages are read from .txt and .md files", where=str(path), next="Convert the document"
        )
    with opened(path) as stream:
        data = b"".join(stream.blocks())
    text = _decoded(data, path)
    sections = _sections(text) if path.suffix.lower() != ".txt" else [([], text)]
    version = digest(data)
    return [
        Passage(path.name, version, heading, chunk)
        for heading, body in sections
        for chunk in chunks(body, length)
    ]


def _decoded(data: bytes, path: Path) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        where = f"{path}: byte {error.start}"
        raise UsageError("the document is not UTF-8", where=where, next="Save it as UTF-8") from None


def _sections(text: str) -> list[tuple[list[str], str]]:
    """The headings above each part of a Markdown text, and the part. Fenced code holds no headings."""
    found: list[tuple[list[str], str]] = []
    path: dict[int, str] = {}
    body: list[str] = []
    for level, title, line in _marked(text.splitlines()):
        if level == 0:
            body.append(line)
            continue
        found.append((list(path.values()), "\n".join(body)))
        path = {deep: name for deep, name in path.items() if deep < level}
        path[level], body = title, []
    return [*found, (list(path.values()), "\n".join(body))]


def _marked(lines: list[str]) -> Iterator[tuple[int, str, str]]:
    """Every line with the level and title of the heading it is; level 0 for body. An underlined title is one
    line.
    """
    fence = ""
    skip = False
    for line, after in zip(lines, [*lines[1:], ""], strict=True):
        if skip:
            skip = False
            continue
        mark = _FENCE.match(line)
        if fence or mark:
            fence = _next_fence(fence, mark.group(1) if mark else "")
            yield 0, "", line
        elif heading := _HEADING.match(line):
            yield len(heading.group(1)), heading.group(2) or "", line
        elif (
            line.strip()
            and (under := _UNDERLINE.match(after))
            and not line.lstrip().startswith(("-", "|", ">"))
        ):
            skip = True
            yield 1 if "=" in under.group(1) else 2, line.strip(), line
        else:
            yield 0, "", line


def _next_fence(fence: str, mark: str) -> str:
    """The fence that is open after a line: one closes at a mark of its kind that is as long."""
    if not fence:
        return mark
    return "" if mark[:1] == fence[0] and len(mark) >= len(fence) else fence


def chunks(text: str, length: int = LENGTH) -> list[str]:
    """The paragraphs of a text, joined by blank lines while they fit ``length`` characters."""
    found: list[str] = []
    for paragraph in re.split(r"\n\s*\n", text):
        for part in _cut(paragraph.strip("\n\r"), length):
            if found and len(found[-1]) + 2 + len(part) <= length:
                found[-1] += f"\n\n{part}"
            else:
                found.append(part)
    return found


def _cut(paragraph: str, length: int) -> list[str]:
    """A paragraph in parts that fit: cut between sentences, else between words, else anywhere."""
    found: list[str] = []
    start = 0
    while len(paragraph) - start > length:
        end = start + _place(paragraph[start : start + length])
        found.append(paragraph[start:end])
        start = end + len(paragraph[end : end + length]) - len(paragraph[end : end + length].lstrip())
    rest = paragraph[start:]
    return [part for part in (*found, rest) if part.strip()]


def _place(window: str) -> int:
    """Where to cut a window of text, more than 0."""
    ends = [m.start() for m in _SENTENCE.finditer(window)] or [m.start() for m in re.finditer(r"\s+", window)]
    return max((end for end in ends if end > 0), default=len(window))
