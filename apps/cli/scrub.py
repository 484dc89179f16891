"""``tilth scrub``: personal data out of a file of rows, one row at a time, however long the file is."""

from __future__ import annotations

import secrets
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from apps.cli import app, session
from apps.cli.data import DryRun
from apps.cli.filters import Fields, Out, Source, report, sink

if TYPE_CHECKING:
    from curation.pii import Scrubber

# What names a row, or says how to read it: never text of the row, and other rows and tools refer to it.
_NAMES_OF_ROWS = frozenset({"id", "lang", "language", "role", "split"})
_BLOCK = 1 << 20
_DEEPEST = 20

Steps = tuple[str | int, ...]


class Part(NamedTuple):
    """A text of a row: where it is, and whether it is a tag or the like rather than prose."""

    path: Steps
    text: str
    terse: bool

    @property
    def field(self) -> str:
        """The place as spans name it: ``prompt``, ``messages.0``, ``meta.agent``."""
        return ".".join(str(step) for step in self.path if step != "content")


@app.command(epilog="Example: tilth scrub mails.jsonl --out clean.jsonl --spans spans.jsonl --mode mask")
def scrub(
    source: Source,
    out: Out = "",
    spans: Annotated[str, typer.Option(help="Where spans go, with offsets in the original.")] = "",
    mode: Annotated[str, typer.Option(help="pseudonym, mask, or drop the row.")] = "pseudonym",
    layers: Annotated[str, typer.Option(help="patterns, names, both by comma, or all.")] = "all",
    fields: Fields = "",
    language: Annotated[str, typer.Option(help="The rows' language where they do not say.")] = "en",
    dry_run: DryRun = False,
) -> None:
    """Replace personal data in texts and in every other field of a row. A row that cannot be scanned is held back."""
    from curation import formats

    start = time.perf_counter()
    scrubber = _scrubber(layers, mode, language)
    wanted = [name for name in fields.split(",") if name]
    counts: Counter[str] = Counter()
    types: Counter[str] = Counter()
    total = count_lines(source)
    with session.progress() as meter, sink(out, dry_run) as write, sink(spans, dry_run) as tell:
        for id, row in formats.read_objects(source):
            fresh, found, unscanned, replaced = scrub_row(row, parts_of(row, wanted), scrubber)
            counts.update(rows=1, spans=len(found), unscanned=bool(unscanned))
            types.update(span["entity_type"] for span in found)
            for span in found:
                tell({"id": id, **span})
            if unscanned:
                session.say(f"row {id} is held back: {unscanned}")
            elif not (mode == "drop" and replaced):
                write(fresh)
            meter("scrubbing", counts["rows"], total)
    result = {key: counts[key] for key in ("rows", "spans")} | {"by_type": dict(types.most_common())}
    report(result | {"unscanned": counts["unscanned"]}, start, dry_run)


def count_lines(source: str) -> int | None:
    """How many rows a file of one row a line holds, for the time left; None for what cannot be read twice."""
    path = Path(source)
    if source == "-" or path.suffix not in (".jsonl", ".ndjson") or not path.is_file():
        return None
    with path.open("rb") as file:
        return sum(block.count(b"\n") for block in iter(lambda: file.read(_BLOCK), b""))


def _scrubber(layers: str, mode: str, language: str) -> Scrubber:
    """The rule of the command line, with the workspace's lists and key where the command runs in one."""
    from curation import config, pii, workspace

    names = tuple(pii.LAYERS) if layers == "all" else tuple(name for name in layers.split(",") if name)
    if (session.root / config.FILE).is_file():
        section = config.load(session.root).pii
        key = workspace.read_key(session.root)
    else:
        session.say("no workspace: aliases are consistent within this run only")
        section, key = config.PiiSection(), secrets.token_bytes(32)
    rule = pii.ScrubRule(
        layers=names,
        mode=mode,
        languages=(language,),
        deny=section.deny,
        allow=section.allow,
        kept=section.keep,
    )
    return pii.Scrubber(rule, key)


def parts_of(row: Mapping[str, Any], wanted: Sequence[str] = ()) -> list[Part]:
    """Every text of a row: its text fields first, then whatever else travels with it, keys and identities apart.

    With ``wanted`` those fields alone. A text of the other fields is terse where it holds no white space.
    """
    from curation import formats

    names = formats.text_fields(row, wanted)
    parts = [Part(path, text, False) for name in names for path, text in _texts((name,), row.get(name))]
    if wanted:
        return parts
    others = [name for name in row if name not in names and name not in _NAMES_OF_ROWS]
    for name in others:
        parts += [
            Part(path, text, not any(map(str.isspace, text))) for path, text in _texts((name,), row[name])
        ]
    return parts


def _texts(path: Steps, value: Any) -> Iterator[tuple[Steps, str]]:
    """The texts below a value, each with the way to it; numbers and nulls hold none."""
    if isinstance(value, str):
        yield path, value
    elif len(path) > _DEEPEST:
        return
    elif isinstance(value, Mapping):
        for name, below in value.items():
            if name not in _NAMES_OF_ROWS:
                yield from _texts((*path, name), below)
    elif isinstance(value, list):
        for index, below in enumerate(value):
            yield from _texts((*path, index), below)


def scrub_row(
    row: dict[str, Any], parts: Sequence[Part], scrubber: Scrubber
) -> tuple[dict[str, Any], list[dict[str, Any]], str, bool]:
    """The scrubbed row, its spans by field, why it could not be scanned, and whether anything was replaced."""
    from curation.pii import Unscanned
    from curation.pii.spans import Edit

    terse = [index for index, part in enumerate(parts) if part.terse]
    try:
        done = scrubber.scrub([part.text for part in parts], row.get("lang"), terse=terse)
    except Unscanned as why:
        return row, [], str(why) or "the scan failed", False
    fresh: Any = row
    found = []
    for part, text, edits, kept in zip(parts, done.texts, done.edits, done.kept, strict=True):
        if edits:
            fresh = _with(fresh, part.path, text)
        left = [Edit(*span, part.text[span.start : span.end]) for span in kept]
        found += [{"field": part.field, **edit._asdict()} for edit in sorted([*edits, *left])]
    return fresh, found, "", any(done.edits)


def _with(value: Any, path: Steps, text: str) -> Any:
    """A copy of ``value`` with the text at ``path`` replaced; what is not on the way is shared."""
    if not path:
        return text
    fresh: Any = list(value) if isinstance(value, list) else dict(value)
    fresh[path[0]] = _with(fresh[path[0]], path[1:], text)
    return fresh
