"""Parquet, by row groups: memory holds one batch of rows.

Arrow fills absent fields of a struct with nulls; inside messages they are dropped again, so that no null
appears that nobody wrote. Columns of bytes (pictures, sounds) are left out.
"""

from __future__ import annotations

import datetime
import decimal
import math
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from curation.errors import IntegrityError, UsageError
from curation.formats.rows import Damage
from curation.formats.stream import Stream

ROWS = 1024


def opened_parquet(stream: Stream) -> pq.ParquetFile:
    """The Parquet file of a stream; it must be a plain file. Raises ``UsageError`` and ``IntegrityError``."""
    if stream.packed or not stream.raw.seekable() or stream.name == "standard input":
        raise UsageError(
            "Parquet is read from a plain file alone", where=stream.name, next="Write it to a file"
        )
    try:
        return pq.ParquetFile(stream.name)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as error:
        raise _damaged(stream.name, error) from error


def _damaged(name: str, error: Exception) -> IntegrityError:
    first = str(error).splitlines()[0] if str(error) else type(error).__name__
    return IntegrityError(f"the Parquet data is damaged ({first})", where=name, next="Fetch the file again")


def records(stream: Stream) -> Iterator[dict[str, Any] | Damage]:
    """Every row as an object of JSON's types, or what is wrong with it."""
    try:
        with opened_parquet(stream) as file:
            columns = [field.name for field in file.schema_arrow if not _is_bytes(field.type)]
            for batch in file.iter_batches(ROWS, columns=columns):
                yield from _rows(batch)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as error:
        raise _damaged(stream.name, error) from error


def _is_bytes(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind)


def _rows(batch: pa.RecordBatch) -> Iterator[dict[str, Any] | Damage]:
    try:
        found: list[Any] = batch.to_pylist()
    except (UnicodeDecodeError, ValueError, OverflowError):  # find the row, and keep the others
        found = [_one(batch.slice(i, 1)) for i in range(batch.num_rows)]
    for row in found:
        yield row if isinstance(row, Damage) else {name: _plain(value) for name, value in row.items()}


def _one(row: pa.RecordBatch) -> dict[str, Any] | Damage:
    try:
        return dict(row.to_pylist()[0])
    except UnicodeDecodeError:
        return Damage("not utf-8", "a text of the row is not UTF-8")
    except (ValueError, OverflowError) as error:
        return Damage("wrong type", f"a value of the row cannot be read ({error})")


def _plain(value: Any) -> Any:
    """The value in JSON's types; nulls inside structures are dropped."""
    if value is None or type(value) in (str, int, bool):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items() if v is not None}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, (datetime.datetime, datetime.date, datetime.time)):
        return value.isoformat()
    if isinstance(value, (bytes, memoryview)):
        return None
    return str(value) if isinstance(value, (decimal.Decimal, datetime.timedelta)) else repr(value)
