"""Duplicates and leaks in a file that need not fit into memory: read once to sketch each row, compared, and read again
to write what stays.

These join the files to the stages; they decide nothing about a row themselves. Memory holds about 100 bytes per row
and a few blocks; while duplicates are compared, a folder holds up to twice the file's size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from curation import contained, engine, formats, grouping, leakage, minhash, neighbours, recall, shingles
from curation.errors import storage_errors
from curation.formats import Block, Repeatable
from curation.minhash import DuplicateRule

Progress = Callable[[str, int, int | None], None]
Chosen = NDArray[np.bool_]

ALONE = 32 << 20  # bytes of a file that are not worth the start of other processes
_NUMBERS = 1 << 20  # shingles read at once: 8 MB, and a few times that in working arrays


def processes(wanted: str, size: int) -> int:
    """How many processes an engine's name means for a file of ``size`` bytes: ``here`` is this one, ``processes`` all
    cores, ``auto`` whichever is faster."""
    return 1 if wanted == "here" or (wanted == "auto" and size < ALONE) else engine.cores()


def texts_of(block: Block, fields: Sequence[str]) -> list[str]:
    """The text of each row of a block. Raises ``UsageError`` that names the line, or the field that is missing."""
    rows = block.objects()
    return [formats.text_of(row, formats.text_fields(row, fields)) for row in rows]


def compared_by(source: Repeatable, fields: Sequence[str]) -> tuple[str, ...] | None:
    """The fields whose text stands for a row, as its first row has them; ``None`` where there is no row."""
    for block in source.blocks():
        for row in block.objects():
            return formats.text_fields(row, fields)
    return None


def _about(rows: int, share: float) -> int | None:
    """How many rows there will be, to two digits: the share of the bytes that is behind tells no more."""
    if not share:
        return None
    unit = 10 ** max(len(str(round(rows / share))) - 2, 0)
    return rows if share == 1 else max(round(rows / share / unit) * unit, rows)


# --- Sketches on disk -------------------------------------------------------------------------------


class Sketches:
    """A :class:`curation.grouping.Corpus` in a folder: one file for each band's keys, one for all shingles."""

    def __init__(self, folder: Path, bands: int) -> None:
        self.folder = folder
        self.names: shingles.Hashes = np.empty((0, 2), np.uint64)
        self._names: list[shingles.Hashes] = []
        self._ends: list[NDArray[np.int64]] = [np.zeros(1, np.int64)]
        self._made = 0
        self._stack = ExitStack()
        with storage_errors(folder):
            self._bands = [self._open(f"band-{number}") for number in range(bands)]
            self._flat = self._open("shingles")

    def _open(self, name: str) -> Any:
        return self._stack.enter_context(open(self.folder / name, "w+b", buffering=0))

    def __enter__(self) -> Sketches:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stack.close()

    def add(self, made: pa.RecordBatch) -> None:
        """Put the sketches of a batch behind those that are there."""
        flat, offsets = minhash.shingles_of(made)
        self._names.append(minhash.names_of(made))
        self._ends.append(offsets[1:] + self._ends[-1][-1])
        with storage_errors(self.folder):
            for file, keys in zip(self._bands, minhash.keys_of(made).T, strict=True):
                file.write(np.ascontiguousarray(keys).data)
            self._flat.write(flat.data)

    def close(self) -> None:
        """No batch will follow: the columns can be read."""
        self.names = np.concatenate([self.names, *self._names])
        self.offsets = np.concatenate(self._ends)
        self._names, self._ends = [], []

    def band(self, number: int) -> shingles.Hashes:
        """The keys of one band, one per row."""
        return np.fromfile(self.folder / f"band-{number}", np.uint64)

    def sets(self, rows: NDArray[np.int64]) -> shingles.Ragged:
        """The sorted sets of some rows; they lie in a file that is mapped into memory."""
        ends = [np.zeros(1, np.int64)]
        self._made += 1
        place = self.folder / f"sets-{self._made}"  # a file of its own: those before may still be mapped
        flat = _mapped(self.folder / "shingles")
        with storage_errors(self.folder), open(place, "wb") as file:
            sizes = self.offsets[rows + 1] - self.offsets[rows]
            for some in _parts(np.concatenate([[0], np.cumsum(sizes)])):
                taken = shingles.take_sizes(flat, self.offsets[rows[some]], sizes[some])
                found, offsets = shingles.as_sets(taken)
                file.write(found.data)
                ends.append(offsets[1:] + ends[-1][-1])
        return _mapped(place), np.concatenate(ends)

    def batches(self) -> Iterator[shingles.Ragged]:
        """The shingles of all rows, in order, a part at a time."""
        flat = _mapped(self.folder / "shingles")
        for some in _parts(self.offsets):
            low, high = self.offsets[some.start], self.offsets[some.stop]
            yield np.array(flat[low:high]), self.offsets[some.start : some.stop + 1] - low


def _parts(offsets: NDArray[np.int64]) -> Iterator[slice]:
    """Runs of rows that hold about ``_NUMBERS`` shingles; a row of more stands alone."""
    row = 0
    while row < len(offsets) - 1:
        end = max(int(np.searchsorted(offsets, offsets[row] + _NUMBERS, "right")) - 1, row + 1)
        yield slice(row, end)
        row = end


def _mapped(path: Path) -> shingles.Hashes:
    if not path.stat().st_size:
        return np.empty(0, np.uint64)
    return np.memmap(path, np.uint64, "r+").view(np.ndarray)


def _sketch(
    rule: DuplicateRule, fields: Sequence[str], size: int, block: Block
) -> tuple[pa.RecordBatch, float]:
    shingles.kernels(size)
    return minhash.sketch(texts_of(block, fields), rule), block.read


# --- Duplicates -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Copies:
    """What is a copy of what in a file: ``labels[i]`` is the first row of ``i``'s cluster, which is kept. The first
    ``before`` rows are those of the files that it was compared with."""

    labels: NDArray[np.int64]
    groups: grouping.Groups
    check: recall.Check | None
    within: contained.Contained | None = None
    before: int = 0

    @cached_property
    def stays(self) -> Chosen:
        """Whether each row is the first of its cluster."""
        return self.labels == np.arange(len(self.labels))

    @cached_property
    def shared(self) -> Chosen:
        """Whether each row is in a cluster of two or more rows, one of them of the file itself."""
        size, own = (np.bincount(some, minlength=len(self.labels)) for some in (self.labels, self._own))
        return ((size > 1) & (own > 0))[self.labels]

    @property
    def _own(self) -> NDArray[np.int64]:
        return self.labels[self.before :]

    @property
    def clusters(self) -> int:
        """How many such clusters there are."""
        return int(np.count_nonzero(self.stays & self.shared))


def find_copies(
    source: Repeatable,
    fields: Sequence[str],
    rule: DuplicateRule,
    folder: Path,
    *,
    before: Sequence[Repeatable] = (),
    workers: int = 1,
    sample: int = 0,
    within: bool = False,
    progress: Progress = lambda what, done, total: None,
) -> Copies:
    """The clusters of a file's rows. Columns go to ``folder``, where nothing is left that a caller may not delete.

    ``sample`` rows are compared exactly with all others, to tell what was missed; 0 leaves that out. ``within``: also
    look for rows that stay and of which a good part lies in another. The rows of the files ``before`` come before those
    of ``source``, and so stay.
    """
    size = source.size + sum(held.size for held in before)
    with Sketches(folder, rule.bands) as corpus:
        work = partial(_sketch, rule, fields, size)
        earlier = sum(_read(held, corpus, work, workers, progress) for held in before)
        _read(source, corpus, work, workers, progress)
        corpus.close()
        shingles.kernels(size)
        groups = grouping.cluster(corpus, rule, lambda done, total: progress("comparing", done, total))
        check = recall.check(corpus, groups, rule, sample) if sample else None
        stays = groups.labels == np.arange(len(groups.labels))
        held = contained.find_contained(corpus, stays).of(earlier) if within else None
    return Copies(groups.labels, groups, check, held, earlier)


def _read(
    source: Repeatable,
    corpus: Sketches,
    work: Callable[[Block], tuple[pa.RecordBatch, float]],
    workers: int,
    progress: Progress,
) -> int:
    """Sketch the rows of a file; how many they are."""
    rows = 0
    for made, share in engine.run_batches(work, source.blocks(), processes=workers):
        corpus.add(made)
        rows += len(made)
        progress("reading", rows, _about(rows, share))
    return rows


def kept_lines(
    source: Repeatable, stays: Chosen, named: Chosen, ids: dict[int, Any], first: int = 0
) -> Iterator[bytes]:
    """The rows that stay, as they stand in the file, a block of them at a time. Fills ``ids`` with the id of each row
    that is to be ``named``. The file's rows are those from ``first`` on."""
    row = first
    for block in source.blocks():
        lines = block.rows()
        for place in np.flatnonzero(named[row : row + len(lines)]).tolist():
            ids[row + place] = id_of(lines[place], row + place - first)
        yield _joined([lines[i] for i in np.flatnonzero(stays[row : row + len(lines)]).tolist()])
        row += len(lines)


def name_rows(held: Sequence[Repeatable], named: Chosen, ids: dict[int, Any]) -> None:
    """Fill ``ids`` with the file and id of each row of the files that were compared with, where it is to be named."""
    first = 0
    for source in held:
        own: dict[int, Any] = {}
        for _ in kept_lines(source, named, named, own, first):
            pass
        ids.update({row: f"{source.name}:{identity}" for row, identity in own.items()})
        first += sum(len(block.rows()) for block in source.blocks())


def _joined(lines: list[bytes]) -> bytes:
    return b"\n".join([*lines, b""])


def id_of(line: bytes, number: int) -> Any:
    """A row's ``id`` field, or its number."""
    identity = formats.parse(line).get("id")
    return number if identity is None else identity


def clusters(copies: Copies, ids: Mapping[int, Any]) -> Iterable[dict[str, Any]]:
    """Each cluster of two or more rows by their ids; the first is the one that is kept."""
    own = (members for members in copies.groups.clusters() if members[-1] >= copies.before)
    for number, members in enumerate(own):
        named = [ids[i] for i in members.tolist()]
        yield {"cluster": number, "members": named, "kept": named[0]}


def within(copies: Copies, ids: Mapping[int, Any]) -> Iterator[dict[str, Any]]:
    """Each row of which a good part lies in another, which one that is, and how much of it."""
    if found := copies.within:
        for (row, other), share in zip(found.pairs.tolist(), found.share.tolist(), strict=True):
            yield {"id": ids[row], "within": ids[other], "share": round(share, 4)}


# --- Other words ------------------------------------------------------------------------------------


def find_resembling(
    vectors: neighbours.Vectors, copies: Copies, cosine: float, progress: Progress
) -> dict[int, tuple[int, float]]:
    """Rows that stay and yet mean what an earlier one does, by the vectors of all that stay: the row, which one it
    resembles, and their cosine (:func:`curation.neighbours.followers`). Grows with the square of the rows."""
    kept = (np.flatnonzero(copies.stays[copies.before :]) + copies.before).tolist()
    found = neighbours.followers(vectors, cosine, partial(progress, "comparing vectors"))
    return {kept[row]: (kept[like], score) for row, (like, score) in sorted(found.items())}


def resembling(alike: Mapping[int, tuple[int, float]], ids: Mapping[int, Any]) -> Iterator[dict[str, Any]]:
    """What :func:`find_resembling` found, with ids for rows."""
    for row, (like, score) in alike.items():
        yield {"id": ids[row], "resembles": ids[like], "score": round(score, 4)}


def kept_texts(source: Repeatable, copies: Copies, fields: Sequence[str]) -> list[str]:
    """The texts of the rows that stay, which an encoder reads; they are held in memory."""
    texts: list[str] = []
    start = copies.before
    for block in source.blocks():
        some = texts_of(block, fields)
        texts += [some[i] for i in np.flatnonzero(copies.stays[start : start + len(some)]).tolist()]
        start += len(some)
    return texts


# --- Leaks ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Overlaps:
    """The leaks of a file by row, and what each row is matched with: ``matched`` names the reserved texts."""

    rows: int
    leaks: dict[int, leakage.Leak]
    matched: list[str]


def find_leaks(
    source: Repeatable,
    against: Sequence[Repeatable],
    fields: Sequence[str],
    rule: leakage.LeakageRule,
    *,
    workers: int = 1,
    progress: Progress = lambda what, done, total: None,
) -> Overlaps:
    """The rows of a file that one of the files ``against``, which are held in memory, has reserved."""
    names: list[str] = []
    texts: list[str] = []
    for held in against:
        start = len(names)
        for block in held.blocks():
            lines = block.rows()
            names += [f"{held.name}:{id_of(line, len(names) - start + i)}" for i, line in enumerate(lines)]
            texts += texts_of(block, fields)
    shingles.kernels(source.size)
    reserved = leakage.reserve(texts, rule)
    work = partial(_hit, reserved, fields, source.size)
    parts, rows = [], 0
    for hits, share in engine.run_batches(work, source.blocks(), processes=workers):
        parts.append(hits)
        rows += hits.rows
        progress("reading", rows, _about(rows, share))
    return Overlaps(rows, {leak.row: leak for leak in leakage.decide(reserved, parts, rule)}, names)


def _hit(
    reserved: leakage.Reserved, fields: Sequence[str], size: int, block: Block
) -> tuple[leakage.Hits, float]:
    shingles.kernels(size)
    return leakage.find_hits(texts_of(block, fields), reserved), block.read


def clean_lines(source: Repeatable, found: Overlaps, ids: dict[int, Any]) -> Iterator[bytes]:
    """The rows that do not leak, as they stand in the file, a block of them at a time. Fills ``ids`` with the id of
    each row that does."""
    row = 0
    for block in source.blocks():
        clean = []
        for line in block.rows():
            if row in found.leaks:
                ids[row] = id_of(line, row)
            else:
                clean.append(line)
            row += 1
        yield _joined(clean)


def leaks(found: Overlaps, ids: Mapping[int, Any]) -> Iterator[dict[str, Any]]:
    """Each row that leaks by its id, what it is matched with, and by which method."""
    for row, leak in found.leaks.items():
        told = {"id": ids[row], "matched": found.matched[leak.matched]}
        yield told | {"method": leak.method, "score": leak.score}
