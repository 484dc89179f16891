"""The passages that an answer may rest on: found in what was ingested, for the page of whoever answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache

from curation import retrieval
from curation.curate import Rules
from curation.ledger import Passage
from curation.workspace import Workspace

SHOWN = 3  # passages on a page: more would be scrolled past


def prompts_of(workspace: Workspace, records: Sequence[str]) -> dict[str, str]:
    """The scrubbed prompt of each record."""
    found: dict[str, str] = {}
    pages = workspace.ledger.view_pages(
        scrub_rule=Rules(workspace).scrub, records=list(dict.fromkeys(records)), kinds=set()
    )
    for page in pages:
        columns = (page.table[name].to_pylist() for name in ("record", "prompt"))
        found |= dict(zip(*columns, strict=True))
    return found


def passages_for(workspace: Workspace, record: str, count: int = SHOWN) -> tuple[str, ...]:
    """The ids of the passages that the answer to a record may rest on, best first."""
    return passages_of(workspace, {record: prompts_of(workspace, [record]).get(record, "")}, count)[record]


def passages_of(
    workspace: Workspace, prompts: Mapping[str, str], count: int = SHOWN
) -> dict[str, tuple[str, ...]]:
    """The passages for each prompt, best first; of a document that came in several versions only the newest counts."""
    library = workspace.ledger.passages()
    newest = {passage.document: passage.version for passage in library}  # oldest first, so the last one stays
    live = tuple(p for p in library if newest[p.document] == p.version)
    if not live:
        return dict.fromkeys(prompts, ())
    index = _index(live)
    return {
        record: tuple(live[found.place].id for found in index.search(prompt, count))
        for record, prompt in prompts.items()
    }


@lru_cache(maxsize=2)
def _index(passages: tuple[Passage, ...]) -> retrieval.Index:
    return retrieval.index([f"{' '.join(p.heading)} {p.body}" for p in passages])
