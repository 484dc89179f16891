"""Filters: they need no workspace, read a file or ``-``, and are useful alone: scrub, vote, convert; and what all
of them share. Those that compare rows stand in ``cleaning``."""

from __future__ import annotations

import secrets
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Annotated, Any

import typer

from apps.cli import app, session
from apps.cli.data import DryRun, votes_text
from apps.cli.session import lines

Source = Annotated[
    str, typer.Argument(metavar="IN", help="A file of rows (JSONL, CSV, Parquet), or - for stdin.")
]
Out = Annotated[str, typer.Option("--out", help="Where the rows go; - is stdout.")]
Fields = Annotated[
    str, typer.Option("--fields", help="Fields to look at, by comma; found by name otherwise.")
]


@contextmanager
def sink(out: str, dry_run: bool) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """Somewhere to write rows to, one JSON object a line; a file appears whole at the end, or not at all."""
    import orjson

    from curation.formats.write import target_file

    if not out or dry_run:
        yield lambda row: None
        return
    with target_file(out) as file:
        yield _writer(file, orjson.dumps)


@contextmanager
def lines_to(out: str, dry_run: bool) -> Iterator[Callable[[bytes], Any]]:
    """Somewhere to write whole lines to, as :func:`sink` does objects."""
    from curation.formats.write import target_file

    if not out or dry_run:
        yield lambda lines: None
        return
    with target_file(out) as file:
        yield file.write


def _writer(file: IO[bytes], dumps: Callable[[Any], bytes]) -> Callable[[Mapping[str, Any]], None]:
    return lambda row: _write(file, dumps(row))


def _write(file: IO[bytes], line: bytes) -> None:
    file.write(line + b"\n")


def report(result: dict[str, Any], start: float, dry_run: bool) -> None:
    """The result with the seconds since ``start``, and whether it was only tried."""
    done = {**result, "seconds": round(time.perf_counter() - start, 3)}
    session.report({**done, "dry_run": dry_run} if dry_run else done, lines(done))


@app.command(epilog="Example: tilth scrub mails.jsonl --out clean.jsonl --spans spans.jsonl --mode mask")
def scrub(
    source: Source,
    out: Out = "",
    spans: Annotated[str, typer.Option(help="Where spans go, with offsets in the original.")] = "",
    mode: Annotated[str, typer.Option(help="pseudonym, mask, or drop the row.")] = "pseudonym",
    layers: Annotated[str, typer.Option(help="patterns, or all that are installed.")] = "all",
    fields: Fields = "",
    language: Annotated[str, typer.Option(help="The rows' language where they do not say.")] = "en",
    dry_run: DryRun = False,
) -> None:
    """Replace personal data. A row that cannot be scanned is held back, never passed on."""
    from curation import formats, pii

    start = time.perf_counter()
    rule = pii.ScrubRule(layers=_layers(layers), mode=mode, languages=(language,))
    scrubber = pii.Scrubber(rule, _key())
    wanted = [name for name in fields.split(",") if name]
    counts: Counter[str] = Counter()
    types: Counter[str] = Counter()
    with session.progress() as meter, sink(out, dry_run) as write, sink(spans, dry_run) as tell:
        for id, row in formats.read_objects(source):
            names = formats.text_fields(row, wanted)
            done = _scrub_row(row, names, scrubber)
            counts.update(rows=1, spans=len(done["spans"]), unscanned=bool(done["unscanned"]))
            types.update(span["entity_type"] for span in done["spans"])
            for span in done["spans"]:
                tell({"id": id, **span})
            if done["unscanned"]:
                session.say(f"row {id} is held back: {done['unscanned']}")
            elif not (mode == "drop" and done["spans"]):
                write(done["row"])
            meter("scrubbing", counts["rows"], None)
    result = {key: counts[key] for key in ("rows", "spans")} | {"by_type": dict(types.most_common())}
    report(result | {"unscanned": counts["unscanned"]}, start, dry_run)


def _layers(wanted: str) -> tuple[str, ...]:
    from curation.pii import LAYERS

    return tuple(LAYERS) if wanted == "all" else tuple(name for name in wanted.split(",") if name)


def _key() -> bytes:
    """The workspace's key where the command runs in one, so that aliases agree; else one for this run alone."""
    from curation import config, workspace

    if (session.root / config.FILE).is_file():
        return workspace.read_key(session.root)
    session.say("no workspace: aliases are consistent within this run only")
    return secrets.token_bytes(32)


def _scrub_row(row: dict[str, Any], names: Sequence[str], scrubber: Any) -> dict[str, Any]:
    """A row with its text fields scrubbed together, its spans by field, and why it could not be scanned."""
    from curation.pii import Unscanned

    parts = [(name, index, text) for name in names for index, text in _texts(row.get(name))]
    try:
        done = scrubber.scrub([text for _, _, text in parts], row.get("lang"))
    except Unscanned as why:
        return {"row": row, "spans": [], "unscanned": str(why) or "the scan failed"}
    fresh = dict(row)
    spans = []
    for (name, index, _), text, edits in zip(parts, done.texts, done.edits, strict=True):
        fresh[name] = _with(fresh[name], index, text)
        field = name if index is None else f"{name}.{index}"
        spans += [{"field": field, **edit._asdict()} for edit in edits]
    return {"row": fresh, "spans": spans, "unscanned": ""}


def _texts(value: Any) -> Iterable[tuple[int | None, str]]:
    """The texts of a field: itself, or the contents of its messages by place; numbers and nulls hold none."""
    if isinstance(value, str):
        yield None, value
    elif isinstance(value, list):
        for index, message in enumerate(value):
            content = message.get("content") if isinstance(message, dict) else None
            if isinstance(content, str):
                yield index, content


def _with(value: Any, index: int | None, text: str) -> Any:
    if index is None:
        return text
    fresh = list(value)
    fresh[index] = {**fresh[index], "content": text}
    return fresh


@app.command(
    epilog="Example: tilth vote rows.jsonl --lfs labeling_functions/freight.py --gold gold --out labels.jsonl"
)
def vote(
    source: Annotated[
        str, typer.Argument(metavar="[IN]", help="A file of rows, or -; without it, the workspace's records.")
    ] = "",
    lfs: Annotated[Path | None, typer.Option(help="A module or folder of labeling functions.")] = None,
    votes: Annotated[str, typer.Option(help="A field that holds votes; -1 abstains.")] = "",
    gold: Annotated[str, typer.Option(help="A field that holds the right answer, to measure with.")] = "",
    model: Annotated[
        str, typer.Option(help="auto, majority, weighted, dawid-skene, triplet, snorkel or blend.")
    ] = "auto",
    sample: Annotated[int, typer.Option(min=0, help="Look at this many records of the workspace only.")] = 0,
    out: Out = "",
    dry_run: DryRun = False,
) -> None:
    """Let labeling functions vote and weigh their votes into one probability per row; or try a function at once."""
    from curation.errors import UsageError

    if source and (lfs is None) == (not votes):
        raise UsageError("name either --lfs PATH or --votes FIELD", where="tilth vote")
    probabilities, report = (
        _vote_file(source, lfs, votes, gold, model) if source else _vote_sample(lfs, model, sample)
    )
    with sink(out, dry_run) as write:
        for row in probabilities.to_pylist():
            proba = dict(zip(row["classes"], row["proba"], strict=True))
            write({"id": row["record"], "label": row["label"], "proba": proba, "weight": row["weight"]})
    found = report.as_dict()
    for warning in found.get("warnings", []):
        session.say(warning)
    session.report({**found, "dry_run": dry_run} if dry_run else found, votes_text(found))


def _vote_file(source: str, lfs: Path | None, votes: str, gold: str, model: str) -> tuple[Any, Any]:
    from curation import formats, records, voting
    from curation.errors import UsageError

    objects = list(formats.read_objects(source))
    ids = [str(id) for id, _ in objects]
    if lfs is None:
        missing = next((i for i, (_, row) in enumerate(objects) if votes not in row), None)
        if missing is not None:
            raise UsageError(f"there is no field {votes!r}", where=f"{source}: row {missing}")
        matrix = voting.read_votes([row[votes] for _, row in objects], records=ids, where=source)
    else:
        view = records.table(
            (_view_row(id, row) for id, row in zip(ids, (r for _, r in objects), strict=True)), records.VIEW
        )
        matrix = voting.apply_functions(voting.find_functions(lfs), view, limits=voting.Limits())
    truth = voting.read_gold([row.get(gold) for _, row in objects], matrix.classes) if gold else None
    return voting.label(matrix, model=model, gold=truth)


def _view_row(id: str, row: Mapping[str, Any]) -> dict[str, Any]:
    from curation import formats, records

    fields = formats.text_fields(row)
    name = "prompt" if "prompt" in fields else fields[0]
    messages = row["messages"] if name == "messages" else records.user_message(formats.field_text(row[name]))
    completion = row.get("completion")
    return {
        "record": id,
        "messages": messages,
        "prompt": records.prompt_text(messages),
        "completion": None if completion is None else formats.field_text(completion),
        "source": "file",
    }


def _vote_sample(lfs: Path | None, model: str, sample: int) -> tuple[Any, Any]:
    """The functions on a sample of the workspace's records: the way to try a new one."""
    from curation import assemble, voting
    from curation.curate import Rules

    with session.workspace() as opened:
        functions = voting.find_functions(lfs) if lfs else assemble.find_functions(opened)
        page = next(
            opened.ledger.view_pages(scrub_rule=Rules(opened).scrub, size=sample or 1_000_000_000), None
        )
    if page is None or not functions:
        from curation.errors import UsageError

        what = "there is no record to vote on" if functions else "there is no labeling function"
        raise UsageError(
            what, where=str(session.root), next="Ingest rows, and write functions to labeling_functions/"
        )
    matrix = voting.apply_functions(functions, assemble.one_per_record(page.table), limits=voting.Limits())
    if sample:
        _show_votes(matrix, page.table)
    return voting.label(matrix, model=model)


def _show_votes(matrix: Any, rows: Any) -> None:
    """What each function said of each record, for people."""
    prompts = dict(zip(rows["record"].to_pylist(), rows["prompt"].to_pylist(), strict=True))
    for record, codes in zip(matrix.records, matrix.matrix, strict=True):
        said = [f"{f}={matrix.classes[c]}" for f, c in zip(matrix.functions, codes, strict=True) if c >= 0]
        text = " ".join(prompts[record].split())
        session.say(f"{record[:12]}  {text[:70]!r}  {', '.join(said) or 'nobody voted'}")


@app.command(
    epilog="Example: tilth convert rows.csv rows.jsonl --to chat --map prompt=question --map completion=answer"
)
def convert(
    source: Source,
    target: Annotated[
        str, typer.Argument(metavar="OUT", help="The file to write; its ending says the container.")
    ],
    to: Annotated[
        str, typer.Option(help="chat, alpaca, sharegpt, trl, label-studio, jsonl, csv or parquet.")
    ] = "",
    map: Annotated[list[str] | None, typer.Option("--map", help="ROLE=FIELD, as for ingest.")] = None,
    format: Annotated[str, typer.Option(help="Force the source's format.")] = "",
    lossless: Annotated[
        bool, typer.Option("--lossless", help="Leave cells that a spreadsheet would run as they are.")
    ] = False,
    dry_run: DryRun = False,
) -> None:
    """Write the same rows in another format. Rows that it cannot hold are told with their reason."""
    from curation import formats

    bad: list[Any] = []
    mapping = formats.Mapping.parse(map or [])
    where = "/dev/null" if dry_run else target
    done = formats.convert(
        source,
        where,
        to or None,
        mapping=mapping,
        format=format or None,
        neutralise=not lossless,
        on_bad=bad.append,
    )
    for row in bad[:20]:
        session.say(f"{source}:{row.line}: {row.reason}: {row.message}")
    result = {"rows": done.rows, "quarantined": done.quarantined}
    session.report({**result, "dry_run": dry_run} if dry_run else result, lines(result))
