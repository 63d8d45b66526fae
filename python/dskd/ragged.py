"""Rows of different lengths, and how the containers that people hold become them."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any, TypeAlias, TypeGuard

import numpy as np
import numpy.typing as npt

from dskd import _core
from dskd.arrow_rows import flat_values, is_arrow, is_flat, values_and_lengths

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "Ragged",
    "RowsLike",
    "boolean_rows",
    "float_rows",
    "id_rows",
    "integer_rows",
    "is_nothing",
    "is_one_row",
    "is_read_as_is",
    "joined",
    "masked_id_rows",
]

RowsLike: TypeAlias = "Ragged | npt.ArrayLike | Sequence[npt.ArrayLike]"
"""One sequence (a flat list, a 1-D array) or a batch: nested lists, a list of arrays, a 2-D array, a
tensor on the CPU, an Arrow list array, a `Ragged`. `[]` is no rows; `[[]]`, and an empty 1-D array, is one
empty row. Beside one flat sequence on the other side `[]` is one empty row, too."""

Ids: TypeAlias = "npt.NDArray[Any] | list[npt.NDArray[Any]]"
"""The ids of all rows as the core takes them: in one array, or each row in its own."""

_NO_VALUES = np.empty(0)
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
        if len(lengths) == 1:  # the most common by far where calls are small
            return cls(values, np.array([0, lengths[0]], dtype=np.int64))
        offsets = np.zeros(len(lengths) + 1, dtype=np.int64)
        np.cumsum(lengths, out=offsets[1:])
        return cls(values, offsets)


def is_read_as_is(data: object) -> TypeGuard[npt.NDArray[Any]]:
    """Whether it is one row of ids that needs nothing done: the most common call by far, and the smallest."""
    if type(data) is not np.ndarray or data.ndim != 1:
        return False
    return data.dtype in _READ_AS_IS and data.flags.carray


def integer_rows(data: RowsLike, name: str) -> Ragged:
    """The rows of `data` as one of the integer types that the core reads without a copy.

    Args:
        data: rows of integers.
        name: what to call it in an error.

    Raises:
        TypeError: it holds booleans, floats or anything else but integers, or is on another device.
        ValueError: an integer does not fit int64, or the shape is not that of rows.
    """
    plain = _core.read_ids(_with_arrays_for_tensors(data))
    if plain is not None:
        return Ragged(joined(plain[0]), plain[1])
    return _read_as_is(_integers(data, name), name, None)


def id_rows(data: RowsLike, name: str) -> tuple[Ids, npt.NDArray[np.int64]]:
    """As `integer_rows`, values and offsets; but arrays are not joined that the core can read as they are."""
    plain = _core.read_ids(_with_arrays_for_tensors(data))
    if plain is not None:
        return plain
    rows = _read_as_is(_integers(data, name), name, None)
    return rows.values, rows.offsets


def masked_id_rows(
    data: RowsLike, name: str, mask: RowsLike, mask_name: str
) -> tuple[Ids, npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """As `id_rows`, and the values of a mask over them.

    An integer that does not fit int64 is none of our business where the mask leaves it out; 0 is read there.
    """
    plain = _core.read_ids(_with_arrays_for_tensors(data))
    if plain is not None:
        ids, offsets = plain
        return ids, offsets, boolean_rows(mask, mask_name, Ragged(_NO_VALUES, offsets))
    rows = _integers(data, name)
    selected = boolean_rows(mask, mask_name, rows)
    rows = _read_as_is(rows, name, selected)
    return rows.values, rows.offsets, selected


def joined(ids: Ids) -> npt.NDArray[Any]:
    """The ids of all rows in one array."""
    return np.concatenate(ids) if isinstance(ids, list) else ids


def is_nothing(data: RowsLike | None) -> bool:
    """Whether it is an empty list or tuple: no rows, or one empty row beside one row."""
    return isinstance(data, (list, tuple)) and not data


def is_one_row(data: RowsLike | None) -> bool:
    """Whether it is one flat sequence, and not rows."""
    if isinstance(data, Ragged) or data is None or is_nothing(data):
        return False
    if isinstance(data, (list, tuple)):
        return not _is_row(data[0])
    if is_arrow(data):
        return is_flat(data, "")
    return getattr(data, "ndim", 1) == 1 and not _holds_rows(data)


def float_rows(data: RowsLike, name: str, like: Ragged) -> npt.NDArray[np.float64]:
    """The values of rows of floats over `like`, row after row.

    Args:
        data: rows of floats of any type, as long as those of `like`.
        name: what to call it in an error.
        like: the rows that they are for.

    Raises:
        TypeError: it holds something else but floats.
        ValueError: its rows are not as many or not as long; the row is named.
    """
    rows = _rows(data, name)
    if rows.values.dtype.kind != "f" and rows.values.size:
        raise TypeError(f"{name} holds {rows.values.dtype}; it is floats, and NaN where there is no value")
    _refuse_other_shape(rows, name, like, "there is one value")
    return rows.values.astype(np.float64)


def boolean_rows(data: RowsLike, name: str, like: Ragged) -> npt.NDArray[np.bool_]:
    """The values of a mask over `like`, row after row.

    Args:
        data: rows of booleans, or of 0 and 1 of any integer type, as long as those of `like`.
        name: what to call it in an error.
        like: the rows that the mask is for.

    Raises:
        TypeError: it holds something else but booleans and integers.
        ValueError: its rows are not as many or not as long, or there is a number in it that is neither 0 nor
            1; the row is named.
    """
    plain = _core.read_flags(_with_arrays_for_tensors(data))
    if plain is not None:
        rows = Ragged(*plain)
        _refuse_other_shape(rows, name, like)
        return plain[0]
    rows = _rows(data, name)
    values = rows.values
    if values.dtype.kind not in "biu" and values.size:
        raise TypeError(
            f"{name} holds {values.dtype}, and a mask is boolean, or 0 and 1; pass it as mask.astype(bool)"
        )
    _refuse_other_shape(rows, name, like)
    selected = np.ascontiguousarray(values, dtype=np.bool_)
    strange = np.flatnonzero(selected != values)
    if strange.size:
        raise ValueError(
            f"{name} {_place(rows, int(strange[0]))} is {values[strange[0]]}, and a mask has True and False, "
            f"or 1 and 0; say which ids take part: pass {name} == 1 or {name} != 0"
        )
    return selected


def _integers(data: RowsLike, name: str) -> Ragged:
    """Rows of integers of any type, or of Python's."""
    rows = _rows(data, name)
    values = rows.values
    if values.dtype.kind not in "iu" and values.size:
        whole = values.dtype == object and all(isinstance(value, (int, np.integer)) for value in values)
        if not whole:
            raise TypeError(f"{name} holds {values.dtype}; token ids are integers")
    return rows


def _read_as_is(rows: Ragged, name: str, selected: npt.NDArray[np.bool_] | None) -> Ragged:
    """The rows in a type and layout that the core reads; copied only if they are in no such."""
    values = rows.values
    if is_read_as_is(values):
        return rows
    if values.dtype.newbyteorder("=") not in _READ_AS_IS:
        values = _without_too_large(rows, name, selected).astype(np.int64)
    return Ragged(np.require(values, values.dtype.newbyteorder("="), ["C", "A"]), rows.offsets)


def _rows(data: RowsLike, name: str) -> Ragged:
    if type(data) is np.ndarray and data.dtype != object:
        return _rows_of_array(data, name)
    if isinstance(data, Ragged):
        return _trimmed(data, name)
    if isinstance(data, np.ma.MaskedArray):
        raise TypeError(f"{name} is a masked array; give its data, and the mask apart")
    if isinstance(data, (str, bytes)):
        raise TypeError(f"{name} is a {type(data).__name__}; give token ids, not text")
    if isinstance(data, Mapping):
        raise TypeError(f'{name} is a {type(data).__name__}; give its ids: {name}["input_ids"], say')
    if isinstance(data, (list, tuple)):
        return _rows_of_sequence(data, name)
    if is_arrow(data):
        return Ragged.from_lengths(*values_and_lengths(data, name))
    array = _array(data, name)
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
    if offsets[0] == 0 and offsets[-1] == len(values) and not (offsets[1:] < offsets[:-1]).any():
        return Ragged(values, offsets)
    wrong = np.flatnonzero((np.diff(offsets) < 0) | (offsets[:-1] < 0) | (offsets[1:] > len(values)))
    if wrong.size or not 0 <= offsets[0] <= len(values):
        row = int(wrong[0]) if wrong.size else 0
        raise ValueError(
            f"{name} row {row}: offsets {offsets[row : row + 2].tolist()} leave "
            f"the {len(values)} values or fall"
        )
    return Ragged(values[offsets[0] : offsets[-1]], offsets - offsets[0])


def _array(data: Any, name: str) -> npt.NDArray[Any]:
    """What numpy makes of it, without a copy where it can."""
    _refuse_other_device(data, name)
    if is_arrow(data):
        return flat_values(data, name)
    if getattr(data, "requires_grad", False):
        data = data.detach()
    if str(getattr(data, "dtype", "")) == "torch.bfloat16":
        data = data.float()  # numpy has no such type
    return np.asarray(data)


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
        _refuse_other_device(items[0], name)
        return Ragged.from_lengths(_flat_array(items, name), [len(items)])
    strange = next((index for index, item in enumerate(items) if not _is_row(item)), None)
    if strange is not None:
        raise ValueError(f"{name} row {strange} is {items[strange]!r}; the rows before it are sequences")
    if all(isinstance(row, (list, tuple)) for row in items):
        values = _flat_array(list(chain.from_iterable(items)), name)
        return Ragged.from_lengths(values, [len(row) for row in items])
    return _rows_of_arrays(items, name)


def _rows_of_arrays(items: Sequence[Any], name: str) -> Ragged:
    arrays = [_array(item, f"{name} row {index}") for index, item in enumerate(items)]
    deep = next((index for index, array in enumerate(arrays) if array.ndim != 1), None)
    if deep is not None:
        raise ValueError(f"{name} row {deep} has {arrays[deep].ndim} dimensions; a row has one")
    full = [array for array in arrays if array.size] or arrays[:1]
    dtypes = {array.dtype for array in full}
    if len(dtypes) > 1 and np.dtype(np.bool_) in dtypes:
        raise TypeError(f"{name} has rows of booleans beside rows of numbers")
    if len(dtypes) > 1 and all(dtype.kind in "iu" for dtype in dtypes):
        full = [_signed(array) for array in full]  # int64 beside uint64: numpy would make them floats
    values = full[0] if len(full) == 1 else np.concatenate(full)
    return Ragged.from_lengths(values, [len(array) for array in arrays])


def _signed(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Integers as int64, or as Python's if they do not fit."""
    return array.astype(np.int64 if array.max() <= np.iinfo(np.int64).max else object)


def _with_arrays_for_tensors(data: Any) -> Any:
    """The same, with an array for each tensor where it is a list of tensors whose memory numpy can read."""
    torch = sys.modules.get("torch")
    if torch is None or not isinstance(data, (list, tuple)) or not data or type(data[0]) is not torch.Tensor:
        return data
    try:
        return [row.numpy() for row in data]
    except (AttributeError, RuntimeError, TypeError):
        return data  # no tensors, on another device, with a gradient, of a type that numpy has not


def _holds_rows(data: Any) -> bool:
    """Whether it is an array of objects that are rows."""
    return isinstance(data, np.ndarray) and data.dtype == object and len(data) > 0 and _is_row(data[0])


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
        whole = name.partition(" row ")[0]
        way_out = f"{name}.cpu()" if whole == name else f"[row.cpu() for row in {whole}]"
        raise TypeError(f"{name} is on {device}; the aligner works on the CPU: pass {way_out}")


def _without_too_large(rows: Ragged, name: str, selected: npt.NDArray[np.bool_] | None) -> npt.NDArray[Any]:
    """The values, 0 for those beyond int64 that are not selected; one that is selected is refused."""
    values, bounds = rows.values, np.iinfo(np.int64)
    if values.dtype.kind == "i" or not values.size:
        return values
    too_large = np.asarray((values > bounds.max) | (values < bounds.min), dtype=np.bool_)
    refused = too_large if selected is None else too_large & selected
    if refused.any():
        index = int(np.argmax(refused))
        raise ValueError(
            f"{name} {_place(rows, index)}: {values[index]} does not fit int64 and is no token id"
        )
    return np.where(too_large, 0, values) if too_large.any() else values


def _place(rows: Ragged, index: int) -> str:
    """Where in its rows a value stands."""
    row = int(np.searchsorted(rows.offsets, index, side="right")) - 1
    return f"row {row}, position {index - int(rows.offsets[row])}"


def _refuse_other_shape(rows: Ragged, name: str, like: Ragged, what: str = "a mask has one value") -> None:
    if len(rows) != len(like):
        raise ValueError(f"{name} has {len(rows)} rows for {len(like)} rows of ids")
    if np.array_equal(rows.offsets, like.offsets):
        return
    wrong = np.flatnonzero(rows.lengths() != like.lengths())
    if wrong.size:
        row = int(wrong[0])
        raise ValueError(
            f"{name} row {row} has {rows.lengths()[row]} values for {like.lengths()[row]} ids; "
            f"{what} for each id"
        )
