"""pyarrow's arrays as flat values and the lengths of their rows.

No value becomes an object of Python's, and none is copied where Arrow and numpy have it alike. pyarrow is
not imported: whoever holds an array of its has done so.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt

__all__ = ["flat_values", "is_arrow", "is_flat", "values_and_lengths"]


def is_arrow(data: Any) -> bool:
    """Whether it is something of pyarrow's."""
    return type(data).__module__.partition(".")[0] == "pyarrow"


def is_flat(data: Any, name: str) -> bool:
    """Whether it holds values, and not rows of them.

    Raises:
        TypeError: it is no array: a table, say.
    """
    return not hasattr(_whole(data, name), "value_lengths")


def values_and_lengths(data: Any, name: str) -> tuple[npt.NDArray[Any], list[int]]:
    """The values of all rows and the length of each row.

    Args:
        data: an array of lists (of any size, large, fixed-size or views), or a flat one, which is one row;
            whole, sliced or in chunks, of an extension type or plain.
        name: what to call it in an error.

    Raises:
        TypeError: it is no array: a table, say.
        ValueError: a row or a value is null, or lists hold lists.
    """
    array = _whole(data, name)
    if is_flat(array, name):
        values = flat_values(array, f"{name} row 0")
        return values, [len(values)]
    _refuse_nulls(array, name, lambda row: f" row {row}")
    lengths = array.value_lengths().to_numpy(zero_copy_only=False)
    values = array.flatten()
    _refuse_lists(values, name)
    _refuse_nulls(values, name, lambda index: _place(index, lengths))
    return values.to_numpy(zero_copy_only=False), lengths.tolist()


def flat_values(data: Any, name: str) -> npt.NDArray[Any]:
    """The values of one row.

    Raises:
        TypeError: as above.
        ValueError: a value is null, or it holds lists.
    """
    array = _whole(data, name)
    _refuse_lists(array, name)
    _refuse_nulls(array, name, lambda index: f", position {index}")
    values: npt.NDArray[Any] = array.to_numpy(zero_copy_only=False)
    return values


def _whole(data: Any, name: str) -> Any:
    """One array of a plain type."""
    if not hasattr(data, "null_count"):
        raise TypeError(f"{name} is a pyarrow {type(data).__name__}; give one of its columns, or an array")
    if hasattr(data, "chunks"):
        data = data.chunk(0) if data.num_chunks == 1 else data.combine_chunks()
    return getattr(data, "storage", data)


def _refuse_lists(array: Any, name: str) -> None:
    if hasattr(array, "value_lengths"):
        raise ValueError(f"{name} has lists in its rows; give one sequence or rows of them")


def _refuse_nulls(array: Any, name: str, place: Callable[[int], str]) -> None:
    if array.null_count:
        index = int(np.flatnonzero(np.asarray(array.is_null()))[0])
        raise ValueError(
            f"{name}{place(index)} is null; fill or drop it (a row without tokens is an empty list)"
        )


def _place(index: int, lengths: npt.NDArray[Any]) -> str:
    ends = np.cumsum(lengths)
    row = int(np.searchsorted(ends, index, side="right"))
    return f" row {row}, position {index - int(ends[row] - lengths[row])}"
