"""Filters: they need no workspace, read a file or ``-``, and are useful alone: vote, convert; and what all of them share.
Those that compare rows stand in ``cleaning``, the one for personal data in ``scrub``."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
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

    if not out or dry_run:
        yield lambda row: None
        return
    with _target(out) as file:
        yield _writer(file, orjson.dumps)


@contextmanager
def lines_to(out: str, dry_run: bool) -> Iterator[Callable[[bytes], Any]]:
    """Somewhere to write whole lines to, as :func:`sink` does objects."""
    if not out or dry_run:
        yield lambda lines: None
        return
    with _target(out) as file:
        yield file.write


def _target(out: str) -> AbstractContextManager[IO[bytes]]:
    from curation.formats.write import target_file

    session.rows_on_stdout |= out == "-"
    return target_file(out)


def apart(outs: Mapping[str, str], reads: Iterable[str]) -> None:
    """Raise ``UsageError`` where two of the outputs (option to path) are one file, or one is a file that is read.

    Written last, the second would take the place of the first. Pipes and devices may be named twice.
    """
    from curation.errors import UsageError

    taken = {os.path.realpath(path): "read" for path in reads if path != "-"}
    for option, path in outs.items():
        final = path if path == "-" else os.path.realpath(path)
        if not path or (Path(final).exists() and not Path(final).is_file()):
            continue
        if final in taken:
            used = "is read by this command" if taken[final] == "read" else f"is {taken[final]} already"
            raise UsageError(f"{path} {used}", where=option, next="Name another file")
        taken[final] = option


def _writer(file: IO[bytes], dumps: Callable[[Any], bytes]) -> Callable[[Mapping[str, Any]], None]:
    return lambda row: _write(file, dumps(row))


def _write(file: IO[bytes], line: bytes) -> None:
    file.write(line + b"\n")


def report(result: dict[str, Any], start: float, dry_run: bool) -> None:
    """The result with the seconds since ``start``, and whether it was only tried."""
    done = {**result, "seconds": round(time.perf_counter() - start, 3)}
    session.report({**done, "dry_run": dry_run} if dry_run else done, lines(done))


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
    from curation import engine, formats, records, voting
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
        matrix = voting.apply_functions(
            voting.find_functions(lfs), view, limits=voting.Limits(), processes=engine.cores()
        )
    if gold and not any(gold in row for _, row in objects):
        raise UsageError(f"there is no field {gold!r}", where=f"--gold: {source}")
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
    session.rows_on_stdout |= where == "-"
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
