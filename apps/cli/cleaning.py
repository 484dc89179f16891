"""Filters that compare rows: dedup and decontaminate. Input may be larger than memory; what stays is written as it
came."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer

from apps.cli import app, session
from apps.cli.data import DryRun
from apps.cli.filters import Fields, Out, Source, lines_to, report, sink
from curation.errors import UsageError

ENGINES = ("auto", "here", "processes")
Engine = Annotated[
    str,
    typer.Option(help="Where the work is done: here, processes (all cores), or auto, whichever is faster."),
]


@contextmanager
def working_folder(out: str) -> Iterator[Path]:
    """A folder for large columns, beside the output where there is one: it is then sure to have the room."""
    beside = Path(out).absolute().parent if out and out != "-" else None
    with TemporaryDirectory(prefix=".tilth-", dir=beside if beside and beside.is_dir() else None) as folder:
        yield Path(folder)


def workers(engine: str, size: int) -> int:
    """The number of processes for ``--engine``. Raises ``UsageError`` for a name that is not known."""
    from curation import filters

    if engine not in ENGINES:
        raise UsageError(
            f"there is no engine {engine!r}", where="--engine", next=f"Use one of {', '.join(ENGINES)}"
        )
    return filters.processes(engine, size)


@app.command(epilog="Example: tilth dedup rows.jsonl --out kept.jsonl --clusters clusters.jsonl")
def dedup(
    source: Source,
    out: Out = "",
    clusters: Annotated[str, typer.Option(help="Where clusters go: cluster, members, kept.")] = "",
    threshold: Annotated[
        float, typer.Option(min=0.5, max=1.0, help="Jaccard index of the shingle sets.")
    ] = 0.8,
    shingle: Annotated[int, typer.Option(min=1, help="Words in a shingle.")] = 5,
    fields: Fields = "",
    engine: Engine = "auto",
    sample: Annotated[
        int,
        typer.Option(min=0, help="Rows compared exactly with all others, to tell what was missed; 0: none."),
    ] = 500,
    dry_run: DryRun = False,
) -> None:
    """Drop exact and near-duplicates; the first of each cluster stays. Every pair is verified by exact Jaccard."""
    from curation import filters, formats
    from curation.minhash import DuplicateRule

    start = time.perf_counter()
    rule = DuplicateRule(threshold=threshold, shingle=shingle)
    wanted = [name for name in fields.split(",") if name]
    ids: dict[int, Any] = {}
    with (
        session.progress() as meter,
        working_folder(out) as folder,
        formats.repeatable(source, folder) as rows,
    ):
        found = filters.find_copies(
            rows,
            wanted,
            rule,
            folder,
            workers=workers(engine, rows.size),
            sample=sample,
            progress=meter,
        )
        with lines_to(out, dry_run) as write:
            for lines in filters.kept_lines(rows, found, ids if clusters else None):
                write(lines)
    if clusters:
        with sink(clusters, dry_run) as tell:
            for cluster in filters.clusters(found, ids):
                tell(cluster)
    result = {"rows": len(found.labels), "kept": found.kept, "clusters": found.clusters}
    report(result | _checked(found), start, dry_run)


def _checked(found: Any) -> dict[str, Any]:
    """What verification and the exact comparison of a sample say about this very file."""
    told = {
        "pairs_compared": found.groups.compared,
        "pairs_verified": sum(len(p) for p, _ in found.groups.verified),
    }
    if found.check is None:
        return told
    check = found.check
    names = ("sample", "pairs", "found")
    return told | {
        "check": {name: getattr(check, name) for name in names} | {"recall": round(check.recall, 4)}
    }


@app.command(
    epilog="Example: tilth decontaminate train.jsonl --against test.jsonl --out clean.jsonl --report leaks.jsonl"
)
def decontaminate(
    source: Source,
    against: Annotated[list[str], typer.Option(help="An evaluation set; may be given again.")],
    out: Out = "",
    matches: Annotated[
        str, typer.Option("--report", help="Where matches go: id, matched, method, score.")
    ] = "",
    threshold: Annotated[
        float, typer.Option(min=0.5, max=1.0, help="Jaccard index of near-duplicates.")
    ] = 0.8,
    ngram: Annotated[int, typer.Option(min=2, help="Words of an overlap that counts.")] = 13,
    fields: Fields = "",
    engine: Engine = "auto",
    dry_run: DryRun = False,
) -> None:
    """Drop rows that an evaluation set holds: the same text, a near-duplicate, a long overlap, or most of its words."""
    from curation import filters, formats
    from curation.leakage import LeakageRule

    start = time.perf_counter()
    rule = LeakageRule(ngram=ngram, threshold=threshold)
    wanted = [name for name in fields.split(",") if name]
    ids: dict[int, Any] = {}
    with session.progress() as meter, working_folder(out) as folder, ExitStack() as stack:
        rows = stack.enter_context(formats.repeatable(source, folder))
        sets = [stack.enter_context(formats.repeatable(path, folder)) for path in against]
        found = filters.find_leaks(
            rows, sets, wanted, rule, workers=workers(engine, rows.size), progress=meter
        )
        with lines_to(out, dry_run) as write:
            for lines in filters.clean_lines(rows, found, ids):
                write(lines)
    with sink(matches, dry_run) as tell:
        for row, leak in found.leaks.items():
            told = {"id": ids[row], "matched": found.matched[leak.matched]}
            tell(told | {"method": leak.method, "score": leak.score})
    methods = Counter(leak.method for leak in found.leaks.values())
    result = {"rows": found.rows, "removed": len(found.leaks), "by_method": dict(methods)}
    report(result, start, dry_run)
