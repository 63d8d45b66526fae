"""An alignment as Arrow columns. Arrow's arrays as rows of ids are read by `dskd.arrow_rows`.

No value becomes an object of Python's, and none is copied where Arrow and numpy have it alike.
"""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any

from dskd.columns import Counts

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pyarrow as pa

    from dskd.alignment import Alignment

__all__ = ["list_array", "record_batch"]


def record_batch(alignment: Alignment) -> pa.RecordBatch:
    """An alignment as Arrow columns, a row for each of its rows.

    Lists: `pair_teacher`, `pair_student` (int32), `pair_kind` (uint8); `chunk_teacher_start`, `_teacher_end`,
    `_student_start`, `_student_end` (int32), `chunk_encloses_zero_width` (bool); `difference_teacher_start`
    and so on (int32). Numbers: the counts (int64, see `dskd.Counts`), `coverage_teacher`,
    `coverage_student` and `ratio` (float64). Only offsets and booleans are copied.

    Raises:
        ImportError: there is no pyarrow.
        pyarrow.ArrowInvalid: there are more than 2**31 - 1 pairs or chunks; align fewer rows at a time.
    """
    import pyarrow as pa  # noqa: PLC0415 - the library does without

    ends = ("teacher_start", "teacher_end", "student_start", "student_end")
    groups = (
        ("pair", alignment.pairs, ("teacher", "student", "kind")),
        ("chunk", alignment.chunks, (*ends, "encloses_zero_width")),
        ("difference", alignment.differences, ends),
    )
    lists = {
        f"{prefix}_{name}": list_array(getattr(found, name), found.offsets)
        for prefix, found, names in groups
        for name in names
    }
    numbers = {
        **{item.name: getattr(alignment.counts, item.name) for item in fields(Counts)},
        "coverage_teacher": alignment.coverage.teacher,
        "coverage_student": alignment.coverage.student,
        "ratio": alignment.ratio,
    }
    return pa.record_batch({**lists, **numbers})


def list_array(values: npt.NDArray[Any], offsets: npt.NDArray[np.int64]) -> pa.ListArray:
    """Rows that lie one after the other as an Arrow array of lists; the values are not copied.

    Raises:
        ImportError: there is no pyarrow.
        pyarrow.ArrowInvalid: there are more than 2**31 - 1 values.
    """
    import pyarrow as pa  # noqa: PLC0415 - the library does without

    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(values))
