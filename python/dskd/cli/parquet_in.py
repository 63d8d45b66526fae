"""Rows of a Parquet file: texts, or ids, which reach the aligner without becoming objects of Python's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dskd.cli.pair import Ids
from dskd.cli.rows import MOST_BYTES, InputError, Part, Place
from dskd.ragged import integer_rows

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import numpy.typing as npt

__all__ = ["ParquetRows"]

_IDS = ("teacher_ids", "student_ids")
_ROWS_DECODED = 256  # at a time
_READ_AHEAD = 1 << 20  # bytes of each column; without it a whole column of a row group is read at once


class ParquetRows:
    """The columns teacher_ids and student_ids where there are both, or else a column of texts."""

    def __init__(self, file: Path, field: str | None, place: Place) -> None:
        """Opens it and goes to the place.

        Raises:
            InputError: it is no Parquet, or has no such column.
        """
        self.place = place
        self._name = file
        try:
            self._parquet = pq.ParquetFile(file, buffer_size=_READ_AHEAD, pre_buffer=False)
        except pa.ArrowInvalid as error:
            raise InputError(f"{file} is no Parquet: {error}") from error
        self._columns = self._columns_to_read(field)
        self.kind = f"Parquet, {' and '.join(self._columns)}"
        self.reads_text = len(self._columns) == 1
        self._batches = self._batches_from(place.rows)
        self._waiting = self._parquet.schema_arrow.empty_table().select(self._columns)

    def _columns_to_read(self, field: str | None) -> list[str]:
        schema = self._parquet.schema_arrow
        if field is None and all(name in schema.names for name in _IDS):
            for name in _IDS:
                right = _is_list_of_integers(schema.field(name).type)
                self._refuse_other_type(name, right, "lists of integers")
            return list(_IDS)
        name = field or "text"
        if name not in schema.names:
            having = ", ".join(schema.names) or "none"
            neither = "" if field else ", nor teacher_ids and student_ids"
            raise InputError(
                f"{self._name}: no column {name!r}{neither}; its columns are {having}: name one with --field"
            )
        self._refuse_other_type(name, _is_text(schema.field(name).type), "strings")
        return [name]

    def _refuse_other_type(self, name: str, right: bool, wanted: str) -> None:
        if not right:
            found = self._parquet.schema_arrow.field(name).type
            raise InputError(f"{self._name}: column {name!r} is {found}, not {wanted}")

    def _batches_from(self, row: int) -> Iterator[pa.RecordBatch]:
        """What lies behind so many rows; row groups that end before are not read."""
        metadata = self._parquet.metadata
        sizes = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
        starts = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
        first = max(int(np.searchsorted(starts, row, side="right")) - 1, 0)
        surplus = row - int(starts[first])
        groups = list(range(first, len(sizes)))
        for batch in self._parquet.iter_batches(_ROWS_DECODED, row_groups=groups, columns=self._columns):
            if surplus < len(batch):
                yield batch.slice(surplus)
            surplus = max(surplus - len(batch), 0)

    def read(self, count: int) -> Part:
        """See `Rows`."""
        rows = self._next(count)
        start = self.place.rows
        self.place = Place(start + len(rows))
        try:
            return _texts(rows.column(0), start) if self.reads_text else _ids(rows)
        except (TypeError, ValueError) as error:  # a null, above all
            raise InputError(f"{self._name}, in the rows from {start} on: {error}") from error

    def _next(self, count: int) -> pa.Table:
        waiting = [self._waiting]
        missing = count - len(self._waiting)
        while missing > 0 and (batch := next(self._batches, None)) is not None:
            waiting.append(pa.Table.from_batches([batch]))
            missing -= len(batch)
        rows = pa.concat_tables(waiting)
        fitting = _fitting(rows.slice(0, count))
        self._waiting = rows.slice(fitting)
        return rows.slice(0, fitting)

    def share(self) -> float:
        """See `Rows`."""
        rows: int = self._parquet.metadata.num_rows
        return self.place.rows / max(rows, 1)

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Closes the file."""
        self._parquet.close()


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        return _is_text(kind.value_type)
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _is_list_of_integers(kind: pa.DataType) -> bool:
    is_list = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    return any(test(kind) for test in is_list) and pa.types.is_integer(kind.value_type)


def _fitting(rows: pa.Table) -> int:
    """How many of these rows are read at a time: as many as have `MOST_BYTES`, or a single one."""
    sizes = np.zeros(len(rows), np.int64)
    for column in rows.columns:
        sizes += _sizes(column)
    return max(int(np.searchsorted(np.cumsum(sizes), MOST_BYTES, side="right")), min(len(rows), 1))


def _sizes(column: pa.ChunkedArray) -> npt.NDArray[np.int64]:
    """The bytes of each row; those of an id are 4."""
    if pa.types.is_nested(column.type):
        lengths, each = pc.list_value_length(column), 4
    else:
        lengths, each = pc.binary_length(column.cast(pa.large_string())), 1
    sizes: npt.NDArray[np.int64] = pc.fill_null(lengths, 0).to_numpy().astype(np.int64) * each
    return sizes


def _ids(rows: pa.Table) -> Ids:
    return Ids(*(integer_rows(rows.column(name), name) for name in _IDS))


def _texts(column: pa.ChunkedArray, first_row: int) -> list[str]:
    if column.null_count:
        row = first_row + int(np.flatnonzero(np.asarray(column.is_null()))[0])
        raise ValueError(f"row {row} is null, not a string; drop it, or make it an empty string")
    texts: list[str] = column.to_pylist()
    return texts
