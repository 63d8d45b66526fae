"""Rows of different lengths, and how the containers that people hold become them."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Ragged", "RowsLike", "boolean_rows", "integer_rows"]

RowsLike: TypeAlias = "Ragged | npt.ArrayLike | Sequence[npt.ArrayLike]"
"""One sequence (a flat list, a 1-D array) or a batch: nested lists, a list of arrays, a 2-D array, a
tensor on the CPU, a `Ragged`. `[]` is no rows; `[[]]`, and an empty 1-D array, is one empty row."""

_READ_AS_IS = (np.dtype(np.int64), np.dtype(np.int32), np.dtype(np.uint32))


@dataclass(frozen=True, slots=True, eq=False)
class Ragged:
    """Rows that lie one after the other in one array.

    Attributes:
        values: the items of all rows, `[items]`.
        offsets: int64 `[rows + 1]`; row `i` is `values[offsets[i]:offsets[i + 1]]`.
    """

    values: npt.NDArray[Any]
    offsets: npt.NDArray[np.int64]

    def __len__(self) -> int:
        """The number of rows."""
        return len(self.offsets) - 1

    def lengths(self) -> npt.NDArray[np.int64]:
        """Items in each row, int64 `[rows]`."""
        return np.diff(self.offsets)

    @classmethod
    def from_lengths(cls, values: npt.NDArray[Any], lengths: Sequence[int]) -> Ragged:
        """Rows of these lengths, cut from `values` one after the other."""
        offsets = np.zeros(len(lengths) + 1, dtype=np.int64)
        np.cumsum(lengths, out=offsets[1:])
        return cls(values, offsets)


def integer_rows(data: RowsLike, name: str) -> Ragged:
    """The rows of `data` as one of the integer types that the core reads without a copy.

    Args:
        data: rows of integers.
        name: what to call it in an error.

    Raises:
        TypeError: it holds booleans, floats or anything else but integers, or is on another device.
        ValueError: an integer does not fit int64, or the shape is not that of rows.
    """
    rows = _rows(data, name)
    values = rows.values
    if values.dtype.kind not in "iu" and values.size:
        values = _integers_of_objects(rows, name)
    if values.dtype.newbyteorder("=") not in _READ_AS_IS:
        _refuse_too_large(values, rows, name)
        values = values.astype(np.int64)
    return Ragged(np.require(values, values.dtype.newbyteorder("="), ["C", "A"]), rows.offsets)


def boolean_rows(data: RowsLike, name: str, like: Ragged, *, integers: bool = False) -> npt.NDArray[np.bool_]:
    """The values of a mask over `like`, row after row.

    Args:
        data: rows of booleans, as long as those of `like`.
        name: what to call it in an error.
        like: the rows that the mask is for.
        integers: whether 0 and 1 will do, as in an attention mask.

    Raises:
        TypeError: it holds something else but booleans.
        ValueError: its rows are not as many or not as long, the row is named; or an attention mask has
            other numbers than 0 and 1.
    """
    rows = _rows(data, name)
    values = rows.values
    if values.dtype.kind not in ("biu" if integers else "b") and values.size:
        raise TypeError(f"{name} holds {values.dtype}, and a mask is boolean; pass it as mask.astype(bool)")
    _refuse_other_shape(rows, name, like)
    if values.dtype != np.bool_ and not np.isin(values, (0, 1)).all():
        raise ValueError(f"{name} has other values than 0 and 1; an attention mask has no others")
    return np.ascontiguousarray(values, dtype=np.bool_)


def _rows(data: RowsLike, name: str) -> Ragged:
    if isinstance(data, Ragged):
        return _trimmed(data, name)
    if isinstance(data, np.ma.MaskedArray):
        raise TypeError(f"{name} is a masked array; give its data, and the mask apart")
    if isinstance(data, (str, bytes)):
        raise TypeError(f"{name} is a {type(data).__name__}; give token ids, not text")
    _refuse_other_device(data, name)
    if isinstance(data, (list, tuple)):
        return _rows_of_sequence(data, name)
    array = np.asarray(data)
    if array.dtype == object and array.ndim == 0:
        raise TypeError(f"{name} is a {type(data).__name__}; give one sequence or rows of them")
    if array.dtype == object:
        return _rows_of_sequence(list(array), name)
    return _rows_of_array(array, name)


def _trimmed(rows: Ragged, name: str) -> Ragged:
    """The same rows with nothing before the first and nothing behind the last."""
    offsets = np.asarray(rows.offsets)
    values = np.asarray(rows.values)
    if offsets.ndim != 1 or offsets.size == 0 or offsets.dtype.kind not in "iu" or values.ndim != 1:
        raise ValueError(f"{name}: a Ragged has 1-D values and 1-D integer offsets, one more than rows")
    offsets = offsets.astype(np.int64)
    wrong = np.flatnonzero((np.diff(offsets) < 0) | (offsets[:-1] < 0) | (offsets[1:] > len(values)))
    if wrong.size or not 0 <= offsets[0] <= len(values):
        row = int(wrong[0]) if wrong.size else 0
        raise ValueError(
            f"{name} row {row}: offsets {offsets[row : row + 2].tolist()} leave "
            f"the {len(values)} values or fall"
        )
    return Ragged(values[offsets[0] : offsets[-1]], offsets - offsets[0])


def _rows_of_array(array: npt.NDArray[Any], name: str) -> Ragged:
    if array.ndim == 1:
        return Ragged.from_lengths(array, [len(array)])
    if array.ndim == 2:  # noqa: PLR2004 - rows and columns
        return Ragged.from_lengths(array.reshape(-1), [array.shape[1]] * array.shape[0])
    raise ValueError(f"{name} has {array.ndim} dimensions; give one sequence or rows of them")


def _rows_of_sequence(items: Sequence[Any], name: str) -> Ragged:
    if not items:
        return Ragged.from_lengths(np.empty(0, dtype=np.int64), [])
    if not _is_row(items[0]):
        return Ragged.from_lengths(_flat_array(items, name), [len(items)])
    strange = next((index for index, item in enumerate(items) if not _is_row(item)), None)
    if strange is not None:
        raise ValueError(f"{name} row {strange} is {items[strange]!r}; the rows before it are sequences")
    if all(isinstance(row, (list, tuple)) for row in items):
        values = _flat_array(list(chain.from_iterable(items)), name)
        return Ragged.from_lengths(values, [len(row) for row in items])
    return _rows_of_arrays(items, name)


def _rows_of_arrays(items: Sequence[Any], name: str) -> Ragged:
    for item in items:
        _refuse_other_device(item, name)
    arrays = [np.asarray(item) for item in items]
    deep = next((index for index, array in enumerate(arrays) if array.ndim != 1), None)
    if deep is not None:
        raise ValueError(f"{name} row {deep} has {arrays[deep].ndim} dimensions; a row has one")
    full = [array for array in arrays if array.size] or arrays[:1]
    dtypes = {array.dtype for array in full}
    if len(dtypes) > 1 and np.dtype(np.bool_) in dtypes:
        raise TypeError(f"{name} has rows of booleans beside rows of numbers")
    if len(dtypes) > 1 and all(dtype.kind in "iu" for dtype in dtypes):
        rows = (integer_rows(array, f"{name} row {index}") for index, array in enumerate(arrays))
        full = [row.values.astype(np.int64) for row in rows]
    return Ragged.from_lengths(np.concatenate(full), [len(array) for array in arrays])


def _is_row(item: Any) -> bool:
    return hasattr(item, "__len__") and getattr(item, "ndim", 1) > 0


def _flat_array(items: Sequence[Any], name: str) -> npt.NDArray[Any]:
    try:
        array = np.asarray(items)
    except ValueError:
        array = None
    if array is None or array.ndim != 1 or array.dtype.kind in "USV":
        raise TypeError(f"{name} mixes numbers with something else; give one sequence or rows of them")
    types = set(map(type, items))
    if bool in types and array.dtype.kind in "iuf":
        raise TypeError(f"{name} mixes booleans with something else")
    if array.dtype.kind == "f" and all(issubclass(kind, (int, np.integer)) for kind in types):
        return np.array(items, dtype=object)  # int64 and uint64 side by side: numpy makes them floats
    return array


def _refuse_other_device(data: Any, name: str) -> None:
    device = getattr(getattr(data, "device", None), "type", "cpu")
    if device != "cpu":
        raise TypeError(f"{name} is on {device}; the aligner works on the CPU: pass {name}.cpu()")


def _integers_of_objects(rows: Ragged, name: str) -> npt.NDArray[Any]:
    values = rows.values
    if values.dtype != object or not all(isinstance(value, (int, np.integer)) for value in values):
        raise TypeError(f"{name} holds {values.dtype}; token ids are integers")
    _refuse_too_large(values, rows, name)
    return values.astype(np.int64)


def _refuse_too_large(values: npt.NDArray[Any], rows: Ragged, name: str) -> None:
    bounds = np.iinfo(np.int64)
    if values.dtype.kind == "i" or not values.size:
        return
    index = int(np.argmax((values > bounds.max) | (values < bounds.min)))
    value = int(values[index])
    if not bounds.min <= value <= bounds.max:
        row = int(np.searchsorted(rows.offsets, index, side="right")) - 1
        column = index - int(rows.offsets[row])
        raise ValueError(
            f"{name} row {row}, position {column}: {value} does not fit int64 and is no token id"
        )


def _refuse_other_shape(rows: Ragged, name: str, like: Ragged) -> None:
    if len(rows) != len(like):
        raise ValueError(f"{name} has {len(rows)} rows for {len(like)} rows of ids")
    wrong = np.flatnonzero(rows.lengths() != like.lengths())
    if wrong.size:
        row = int(wrong[0])
        raise ValueError(
            f"{name} row {row} has {rows.lengths()[row]} values for {like.lengths()[row]} ids; "
            "a mask has one value for each id"
        )
