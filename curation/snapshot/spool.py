"""Sorting more rows than fit in memory: sorted runs on disk, read back one slice of the digest space at a time.

Every run holds the same slices in the same order, one record batch each, so merging is reading one small
batch from every run. The folder is handed in; nothing here survives the freeze that uses it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curation.artifacts import Sink
from curation.records import SPLITS

SLICE_BITS = 6  # 64 slices per split: at 10 GB of rows a slice is some 150 MB
DIGEST = "digest"


class Spool:
    """Rows with their digests, given back sorted by digest, split by split. Holds about ``limit`` bytes in memory."""

    def __init__(self, folder: Path, limit: int) -> None:
        self._folder, self._limit = folder, limit
        self._held: list[pa.Table] = []
        self._bytes = 0
        self._runs: list[Path] = []

    def add(self, examples: pa.Table, row_digests: bytes) -> None:
        """Take rows and their digests, end to end in the same order. Raises ``OSError`` when the disk is full."""
        width = len(row_digests) // max(1, examples.num_rows)
        column = pa.Array.from_buffers(pa.binary(width), examples.num_rows, [None, pa.py_buffer(row_digests)])
        self._held.append(examples.append_column(DIGEST, column))
        self._bytes += examples.nbytes
        if self._bytes > self._limit:
            self._spill()

    def rows(self, split: str) -> Iterator[pa.Table]:
        """The rows of one split in the order of their digests (then records), in tables of one slice each."""
        if not self._runs:
            held = [table.filter(pc.equal(table["split"], split)) for table in self._held]
            yield _ordered(held).drop_columns([DIGEST])
            return
        if self._held:
            self._spill()
        with ExitStack() as stack:
            files = [stack.enter_context(pa.OSFile(str(path))) for path in self._runs]
            readers = [stack.enter_context(pa.ipc.open_file(file)) for file in files]
            for number in _slices_of(split):
                batches = [reader.get_batch(number) for reader in readers]
                if any(batch.num_rows for batch in batches):
                    yield _ordered([pa.Table.from_batches(batches)]).drop_columns([DIGEST])

    def _spill(self) -> None:
        table = _ordered(self._held)
        path = self._folder / f"run-{len(self._runs):05d}.arrow"
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            sink = Sink(handle)
            _write_run(sink, table)
            sink.flush()  # no sync: a run does not outlive the process
        finally:
            os.close(handle)
        self._runs.append(path)
        self._held, self._bytes = [], 0


def _ordered(tables: list[pa.Table]) -> pa.Table:
    table = pa.concat_tables(tables).combine_chunks()
    order = pc.sort_indices(table, [(DIGEST, "ascending"), ("record", "ascending")])
    return table.take(order).combine_chunks()


def _write_run(sink: Sink, table: pa.Table) -> None:
    numbers = _slice_numbers(table)
    order = np.argsort(
        numbers, kind="stable"
    )  # stable, so that the order of the digests survives inside each slice
    edges = np.searchsorted(numbers[order], np.arange(_slices_of(SPLITS[-1]).stop + 1)).tolist()
    (whole,) = table.to_batches()
    with pa.ipc.new_file(sink, table.schema) as writer:
        for start, stop in pairwise(edges):
            # Taken, and not sliced: a slice of nested lists is written with all the children of the whole.
            writer.write_batch(whole.take(pa.array(order[start:stop])))


def _slice_numbers(table: pa.Table) -> np.ndarray:
    """Which slice each row belongs to: first by split, then by the leading bits of its digest."""
    leading = np.array([digest[0] for digest in table[DIGEST].to_pylist()], dtype=np.int64)
    split = pc.index_in(table["split"], pa.array(SPLITS)).to_numpy()
    return (split << SLICE_BITS) | (leading >> (8 - SLICE_BITS))


def _slices_of(split: str) -> range:
    first = SPLITS.index(split) << SLICE_BITS
    return range(first, first + (1 << SLICE_BITS))
