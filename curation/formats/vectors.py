"""Vectors that somebody's encoder made, one per row: an array of numpy (``.npy``), or a list column of Parquet."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from curation.errors import IntegrityError, UsageError, storage_errors

NAME = "embedding"  # the column that is taken where there are several


def read_vectors(path: Path, rows: int) -> NDArray[np.float32]:
    """The vectors of ``rows`` rows, shape (rows, dimensions). Raises ``UsageError`` where the file holds anything else,
    and ``IntegrityError`` where it is damaged; an array of objects is never unpickled."""
    with storage_errors(path):
        try:
            made = np.load(path, allow_pickle=False) if path.suffix == ".npy" else _column(path)
        except (ValueError, EOFError, pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            first = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise IntegrityError(f"the vectors cannot be read ({first})", where=str(path)) from error
    if made.ndim != 2 or not np.issubdtype(made.dtype, np.floating):
        raise UsageError(
            f"an array of shape {made.shape} and type {made.dtype} holds no vectors",
            where=str(path),
            next="Write one vector of floating-point numbers per row",
        )
    if len(made) != rows:
        raise UsageError(
            f"{len(made):,} vectors do not fit {rows:,} rows", where=str(path), next="Give one vector per row"
        )
    return made.astype(np.float32)


def _column(path: Path) -> NDArray[Any]:
    """The one column of a Parquet file that holds lists of numbers, or that of several which is named so."""
    kinds = pq.read_schema(path)
    lists = [field.name for field in kinds if _is_vectors(field.type)]
    name = NAME if NAME in lists else lists[0] if len(lists) == 1 else ""
    if not name:
        raise UsageError(
            f"{len(lists)} columns hold lists of numbers", where=str(path), next=f"Name one of them {NAME}"
        )
    column = pq.read_table(path, columns=[name])[name].combine_chunks()
    sizes = np.unique(column.value_lengths().to_numpy(zero_copy_only=False))
    if column.null_count or len(sizes) != 1:
        raise UsageError("the vectors differ in length", where=f"{path}: {name}", next="Encode every row")
    return column.flatten().to_numpy(zero_copy_only=False).reshape(len(column), -1)


def _is_vectors(kind: pa.DataType) -> bool:
    some = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    return some and pa.types.is_floating(kind.value_type)
