"""``tilth scrub``: personal data out of a file of rows, one row at a time, however long the file is."""

from __future__ import annotations

import secrets
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from apps.cli import app, session
from apps.cli.data import DryRun
from apps.cli.filters import Fields, Out, Source, apart, report, sink
from curation.errors import UsageError

if TYPE_CHECKING:
    from curation.pii import Scrubbed, Scrubber

# What names a row, or says how to read it: never text of the row, and other rows and tools refer to it.
_NAMES_OF_ROWS = frozenset({"id", "lang", "language", "role", "split"})
_BLOCK = 1 << 20
_DEEPEST = 20
MODES = ("pseudonym", "mask", "drop", "keep")
_TOGETHER = 64  # rows that are scanned together

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
    layers: Annotated[
        str,
        typer.Option(help="patterns, names, spacy:NAME, transformers:FOLDER by comma; all: the first two."),
    ] = "all",
    fields: Fields = "",
    language: Annotated[str, typer.Option(help="The rows' language where they do not say.")] = "en",
    dry_run: DryRun = False,
) -> None:
    """Replace personal data in texts and in every other field of a row. A row that cannot be scanned is held back."""
    from curation import formats

    apart({"--out": out, "--spans": spans}, ())
    apart({"--spans": spans}, [source])
    start = time.perf_counter()
    scrubber = _scrubber(layers, mode, language)
    wanted = [name for name in fields.split(",") if name]
    counts: Counter[str] = Counter()
    types: Counter[str] = Counter()
    total = count_lines(source)
    with session.progress() as meter, sink(out, dry_run) as write, sink(spans, dry_run) as tell:
        for id, fresh, found, unscanned, replaced in scrubbed(formats.read_objects(source), wanted, scrubber):
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
    kinds = [f"{kind}:MODEL" for kind in pii.PACKAGES]
    own = [name for name in names if pii.split(name) is None]
    for option, given, known in (("--layers", own, pii.LAYERS), ("--mode", (mode,), MODES)):
        if wrong := [name for name in given if name not in known]:
            what = f"there is no {option[2:].rstrip('s')} {wrong[0]!r}"
            use = ", ".join([*known, *(kinds if option == "--layers" else ())])
            raise UsageError(what, where=option, next=f"Use one of {use}")
    if (session.root / config.FILE).is_file():
        section = config.load(session.root).pii
        key = workspace.read_key(session.root)
    else:
        session.say("no workspace: aliases are consistent within this run only")
        section, key = config.PiiSection(), secrets.token_bytes(32)
    rule = pii.ScrubRule(
        layers=pii.located(names, Path.cwd()),
        mode=mode,
        languages=(language,),
        deny=section.deny,
        allow=section.allow,
        kept=section.keep,
    )
    made = pii.Scrubber(rule, key)
    for note in made.scanner.notes:
        session.say(note)
    return made


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


class Row(NamedTuple):
    """A row after scrubbing: its spans by field, why it could not be scanned, and whether anything was replaced."""

    id: Any
    fresh: dict[str, Any]
    spans: list[dict[str, Any]]
    unscanned: str
    replaced: bool


def scrubbed(
    rows: Iterable[tuple[Any, dict[str, Any]]], wanted: Sequence[str], scrubber: Scrubber
) -> Iterator[Row]:
    """The rows in their order, some dozens at a time, since texts are scanned faster together."""
    from curation.pii import Unit, Unscanned

    for some in _blocks(rows):
        parts = [parts_of(row, wanted) for _, row in some]
        units = [
            Unit([p.text for p in texts], row.get("lang"), [i for i, p in enumerate(texts) if p.terse])
            for texts, (_, row) in zip(parts, some, strict=True)
        ]
        for (id, row), texts, done in zip(some, parts, scrubber.scrub_all(units), strict=True):
            if isinstance(done, Unscanned):
                yield Row(id, row, [], str(done) or "the scan failed", False)
            else:
                yield _row(id, row, texts, done)


def _blocks(rows: Iterable[tuple[Any, dict[str, Any]]]) -> Iterator[list[tuple[Any, dict[str, Any]]]]:
    left = iter(rows)
    while block := list(islice(left, _TOGETHER)):
        yield block


def _row(id: Any, row: dict[str, Any], parts: Sequence[Part], done: Scrubbed) -> Row:
    from curation.pii.spans import Edit

    fresh: Any = row
    found = []
    for part, text, edits, kept in zip(parts, done.texts, done.edits, done.kept, strict=True):
        if edits:
            fresh = _with(fresh, part.path, text)
        left = [Edit(*span, part.text[span.start : span.end]) for span in kept]
        found += [{"field": part.field, **edit._asdict()} for edit in sorted([*edits, *left])]
    return Row(id, fresh, found, "", any(done.edits))


def _with(value: Any, path: Steps, text: str) -> Any:
    """A copy of ``value`` with the text at ``path`` replaced; what is not on the way is shared."""
    if not path:
        return text
    fresh: Any = list(value) if isinstance(value, list) else dict(value)
    fresh[path[0]] = _with(fresh[path[0]], path[1:], text)
    return fresh
