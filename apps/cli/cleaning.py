"""Filters that compare rows: dedup and decontaminate. Input may be larger than memory; what stays is written as it
came."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

import typer

from apps.cli import app, session
from apps.cli.data import DryRun
from apps.cli.filters import Fields, Out, Source, apart, lines_to, report, sink
from apps.cli.session import Meter
from curation.errors import UsageError

if TYPE_CHECKING:
    from curation.filters import Copies
    from curation.formats import Repeatable
    from curation.neighbours import Vectors

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


@contextmanager
def opened(out: str, *sources: str) -> Iterator[tuple[Meter, Path, list[Repeatable]]]:
    """A meter, a folder to work in, and the files to be read several times."""
    from curation import formats

    with session.progress() as meter, working_folder(out) as folder, ExitStack() as stack:
        yield meter, folder, [stack.enter_context(formats.repeatable(path, folder)) for path in sources]


def named(fields: str) -> list[str]:
    """The fields that ``--fields`` names."""
    return [name for name in fields.split(",") if name]


def write_lines(out: str, dry_run: bool, parts: Iterator[bytes]) -> None:
    """Whole lines to the output; they are read to the end where there is none, for what reading them finds."""
    with lines_to(out, dry_run) as write:
        for lines in parts:
            write(lines)


def tell_all(out: str, dry_run: bool, rows: Iterable[dict[str, Any]]) -> None:
    """Objects to a file, one a line; nothing without a file."""
    if out:
        with sink(out, dry_run) as tell:
            for row in rows:
                tell(row)


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
    against: Annotated[
        list[str] | None,
        typer.Option(help="Rows that are there already: their copies are dropped. May be given again."),
    ] = None,
    contained: Annotated[
        str,
        typer.Option(
            help="Where rows go of which a good part lies in another: id, within, share. They stay."
        ),
    ] = "",
    semantic: Annotated[
        str, typer.Option(help="Look for other words too, with this encoder: bundled, a base or an adapter.")
    ] = "",
    vectors: Annotated[
        Path | None, typer.Option(help="The same with vectors that you have: .npy or Parquet, one per row.")
    ] = None,
    cosine: Annotated[float, typer.Option(min=0.0, max=1.0, help="From which vectors mean the same.")] = 0.95,
    resembling: Annotated[str, typer.Option(help="Where these go: id, resembles, score.")] = "",
    drop_resembling: Annotated[
        bool, typer.Option("--drop-resembling", help="Drop them too; they are only shown otherwise.")
    ] = False,
    dry_run: DryRun = False,
) -> None:
    """Drop exact and near-duplicates; the first of each cluster stays. Every pair is verified by exact Jaccard."""
    from curation import filters
    from curation.minhash import DuplicateRule

    if semantic and vectors:
        raise UsageError("vectors come from an encoder or from a file", where="--vectors", next="Name one")
    beside = {"--clusters": clusters, "--resembling": resembling, "--contained": contained}
    apart({"--out": out, **beside}, against or ())
    apart(beside, [source])
    start = time.perf_counter()
    rule = DuplicateRule(threshold=threshold, shingle=shingle)
    ids: dict[int, Any] = {}
    with opened(out, source, *(against or ())) as (meter, folder, (rows, *before)):
        many = workers(engine, rows.size)
        found = filters.find_copies(
            rows,
            named(fields),
            rule,
            folder,
            before=before,
            workers=many,
            sample=sample,
            within=bool(contained),
            progress=meter,
        )
        made = _vectors(semantic, vectors, rows, found, named(fields), meter)
        alike = {} if made is None else filters.find_resembling(made, found, cosine, meter)
        stays, shown = _marked(found, alike, clusters=bool(clusters), dropping=drop_resembling)
        filters.name_rows(before, shown, ids)
        write_lines(out, dry_run, filters.kept_lines(rows, stays, shown, ids, found.before))
    tell_all(clusters, dry_run, filters.clusters(found, ids) if clusters else ())
    tell_all(resembling, dry_run, filters.resembling(alike, ids))
    tell_all(contained, dry_run, filters.within(found, ids))
    own = stays[found.before :]
    result = {"rows": len(own), "kept": int(own.sum()), "clusters": found.clusters}
    more = {} if made is None else {"resembling": len(alike)}
    if found.within:
        more |= {"contained": len(found.within.pairs), "contained_partial": found.within.partial}
    report(result | more | _checked(found), start, dry_run)


def _marked(
    found: Copies, alike: dict[int, tuple[int, float]], *, clusters: bool, dropping: bool
) -> tuple[Any, Any]:
    """Which rows stay, and which will be shown by their ids."""
    stays, shown = found.stays.copy(), found.shared & clusters
    if dropping:
        stays[list(alike)] = False
    shown[[row for one, (other, _) in alike.items() for row in (one, other)]] = True
    if found.within:
        shown[found.within.pairs] = True
    return stays, shown


def _vectors(
    semantic: str, path: Path | None, rows: Repeatable, found: Copies, fields: list[str], meter: Meter
) -> Vectors | None:
    """One vector for each row that stays: read, or made by an encoder; nothing where neither was asked for."""
    if path:
        from curation import formats

        own = found.stays[found.before :]
        return formats.read_vectors(path, len(own))[own]
    if not semantic:
        return None
    from apps import models
    from curation import filters

    encode = models.encoder(session, semantic, meter)
    return encode(filters.kept_texts(rows, found, fields))


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
    from curation import filters
    from curation.leakage import LeakageRule

    apart({"--out": out, "--report": matches}, against)
    apart({"--report": matches}, [source])
    start = time.perf_counter()
    rule = LeakageRule(ngram=ngram, threshold=threshold)
    ids: dict[int, Any] = {}
    with opened(out, source, *against) as (meter, _, (rows, *sets)):
        many = workers(engine, rows.size)
        warnings = list(_unlike(rows, sets, named(fields)))
        for warning in warnings:
            session.say(warning)
        found = filters.find_leaks(rows, sets, named(fields), rule, workers=many, progress=meter)
        write_lines(out, dry_run, filters.clean_lines(rows, found, ids))
    tell_all(matches, dry_run, filters.leaks(found, ids))
    methods = Counter(leak.method for leak in found.leaks.values())
    result = {"rows": found.rows, "removed": len(found.leaks), "by_method": dict(methods)}
    report(result | ({"warnings": warnings} if warnings else {}), start, dry_run)


def _unlike(rows: Repeatable, sets: Iterable[Repeatable], fields: list[str]) -> Iterator[str]:
    """Which evaluation sets are compared by other fields than the rows are, in words. Raises ``UsageError`` for a set
    without a row: nothing would be found, and that would look like no leak."""
    from curation import filters

    own = filters.compared_by(rows, fields)
    for held in sets:
        theirs = filters.compared_by(held, fields)
        if theirs is None:
            raise UsageError(
                "the evaluation set holds no row", where=f"--against {held.name}", next="Give one with rows"
            )
        if own is not None and own != theirs:
            yield (
                f"{held.name} is compared by its {' and '.join(theirs)}, {rows.name} by its {' and '.join(own)}: "
                "equal texts may differ; name the fields that both hold with --fields"
            )
