"""Rows in whatever container, layout and integer type people hold them: the same rows, or a refusal."""

from __future__ import annotations

from array import array
from collections import deque
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dskd import Aligner, Ragged, Vocabulary, _core
from dskd.ragged import boolean_rows, integer_rows, joined

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt

INTEGERS = [np.int8, np.int16, np.int32, np.int64, np.uint8, np.uint16, np.uint32, np.uint64]
READ_AS_IS = [np.int32, np.int64, np.uint32]
"""The types that the core takes; other integers become int64."""

LISTS = [[3, 1, 4], [1, 5, 9]]
RAGGED = [[3, 1, 4], [], [1], [5, 9]]


def read_plainly(data: Any) -> list[list[Any]] | None:
    """What the compiled reader makes of it; None where it leaves it to Python."""
    found = _core.read_ids(data)
    return None if found is None else lists_of(Ragged(joined(found[0]), found[1]))


def lists_of(rows: Ragged) -> list[list[Any]]:
    return [
        rows.values[start:end].tolist() for start, end in zip(rows.offsets, rows.offsets[1:], strict=False)
    ]


def read(data: Any) -> list[list[Any]]:
    """The rows as the core gets them."""
    rows = integer_rows(data, "ids")
    assert rows.values.dtype in READ_AS_IS
    assert rows.values.ndim == 1
    assert rows.values.flags.c_contiguous
    assert rows.values.flags.aligned
    assert rows.offsets.dtype == np.int64
    assert rows.offsets[0] == 0
    assert rows.offsets[-1] == len(rows.values)
    return lists_of(rows)


# ---- Containers ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        LISTS,
        tuple(LISTS),
        [tuple(row) for row in LISTS],
        tuple(tuple(row) for row in LISTS),
        np.array(LISTS),
        [np.array(row) for row in LISTS],
        tuple(np.array(row) for row in LISTS),
        [np.array(LISTS[0]), LISTS[1]],
        [LISTS[0], np.array(LISTS[1], dtype=np.int16)],
        [[np.int64(3), np.int64(1), np.int64(4)], [1, 5, 9]],
        [array("i", row) for row in LISTS],
        np.array(LISTS, dtype=object),
        Ragged(np.array([3, 1, 4, 1, 5, 9]), np.array([0, 3, 6])),
    ],
)
def test_a_batch_may_be_held_in_many_ways(data: Any) -> None:
    assert read(data) == LISTS


@pytest.mark.parametrize(
    "data",
    [
        [3, 1, 4],
        (3, 1, 4),
        range(3, 6),
        np.array([3, 1, 4]),
        array("q", [3, 1, 4]),
        [np.int32(3), np.int32(1), np.int32(4)],
        np.array([3, 1, 4], dtype=object),
        Ragged(np.array([3, 1, 4]), np.array([0, 3])),
    ],
)
def test_one_flat_sequence_is_one_row(data: Any) -> None:
    assert read(data) == [[3, 4, 5] if isinstance(data, range) else [3, 1, 4]]


@pytest.mark.parametrize(
    "data",
    [
        RAGGED,
        [np.array(row, dtype=np.int32) for row in RAGGED],
        [np.array(row) for row in RAGGED],
        [np.array(RAGGED[0], dtype=np.uint8), [], np.array(RAGGED[2], dtype=np.int16), tuple(RAGGED[3])],
        Ragged(np.array([3, 1, 4, 1, 5, 9]), np.array([0, 3, 3, 4, 6])),
        Ragged.from_lengths(np.array([3, 1, 4, 1, 5, 9]), [3, 0, 1, 2]),
    ],
)
def test_rows_may_have_different_lengths(data: Any) -> None:
    assert read(data) == RAGGED


def test_an_object_array_may_hold_arrays() -> None:
    data = np.empty(4, dtype=object)
    data[:] = [np.array(row, dtype=np.int64) for row in RAGGED]
    assert read(data) == RAGGED


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ([], []),
        ((), []),
        (np.zeros((0, 5), dtype=np.int64), []),
        (Ragged(np.zeros(0, dtype=np.int64), np.array([0])), []),
        ([[]], [[]]),
        ([[], []], [[], []]),
        ([(), []], [[], []]),
        (np.zeros((2, 0), dtype=np.int64), [[], []]),
        # Empty arrays are float64 unless told otherwise; there is nothing in them to refuse.
        ([np.array([]), np.array([])], [[], []]),
        ([np.array([]), np.array([1])], [[], [1]]),
        (np.array([], dtype=np.int64), [[]]),
        (Ragged(np.zeros(0, dtype=np.int64), np.array([0, 0, 0])), [[], []]),
    ],
)
def test_no_rows_and_empty_rows_are_told_apart(data: Any, expected: list[list[int]]) -> None:
    assert read(data) == expected


class Tensor:
    """What a tensor looks like from here: an array interface and a device."""

    def __init__(self, data: Any, device: str = "cpu") -> None:
        self.data = np.array(data)
        self.device = SimpleNamespace(type=device)
        self.ndim = self.data.ndim

    def __array__(self, dtype: Any = None, copy: Any = None) -> npt.NDArray[Any]:
        assert self.device.type == "cpu", "a tensor elsewhere must not be read"
        return self.data

    def __len__(self) -> int:
        return len(self.data)


@pytest.mark.parametrize("data", [Tensor(LISTS), [Tensor(row) for row in LISTS]])
def test_tensors_on_the_cpu_are_read(data: Any) -> None:
    assert read(data) == LISTS


# ---- Types and layouts ---------------------------------------------------------------------------------


@pytest.mark.parametrize("of", INTEGERS)
@pytest.mark.parametrize("order", ["=", "<", ">"])
def test_every_integer_type_is_read_in_either_byte_order(of: type[np.integer[Any]], order: str) -> None:
    assert read(np.array(LISTS, dtype=np.dtype(of).newbyteorder(order))) == LISTS  # type: ignore[arg-type]


@pytest.mark.parametrize("of", INTEGERS)
def test_the_largest_values_of_a_type_are_kept_or_refused(of: type[np.integer[Any]]) -> None:
    bounds = np.iinfo(of)
    if bounds.max > np.iinfo(np.int64).max:
        with pytest.raises(
            ValueError, match=r"^ids row 0, position 1: 18446744073709551615 does not fit int64"
        ):
            integer_rows(np.array([bounds.min, bounds.max], dtype=of), "ids")
    else:
        assert read(np.array([bounds.min, bounds.max], dtype=of)) == [[bounds.min, bounds.max]]


def test_rows_of_different_integer_types_are_read() -> None:
    assert (
        read([np.array(row, dtype=of) for row, of in zip(LISTS, (np.uint64, np.int8), strict=True)]) == LISTS
    )


def read_only() -> npt.NDArray[Any]:
    data = np.array(LISTS)
    data.flags.writeable = False
    return data


def misaligned() -> npt.NDArray[Any]:
    data = np.frombuffer(b"\0" + np.array(LISTS).tobytes(), dtype=np.uint8)[1:].view(np.int64).reshape(2, 3)
    assert not data.flags.aligned
    return data


LAYOUTS: dict[str, Callable[[], Any]] = {
    "read-only": read_only,
    "Fortran order": lambda: np.array(LISTS, order="F"),
    "transposed": lambda: np.array(LISTS).T.copy().T,
    "negative strides": lambda: np.array([row[::-1] for row in LISTS])[:, ::-1],
    "rows from the end": lambda: np.array(LISTS[::-1])[::-1],
    "every other column": lambda: np.repeat(np.array(LISTS), 2, axis=1)[:, ::2],
    "misaligned": misaligned,
    "misaligned and big-endian": lambda: misaligned().byteswap().view(">i8"),
    "a column of records": lambda: np.array(
        [[(3, 0), (1, 0), (4, 0)], [(1, 0), (5, 0), (9, 0)]], dtype=[("id", "<i4"), ("other", "i1")]
    )["id"],
    "broadcast": lambda: np.broadcast_to(np.array([[1], [2]]), (2, 3)),
}


@pytest.mark.parametrize("layout", list(LAYOUTS))
def test_every_layout_is_read(layout: str) -> None:
    assert read(LAYOUTS[layout]()) == ([[1, 1, 1], [2, 2, 2]] if layout == "broadcast" else LISTS)


@pytest.mark.parametrize("layout", list(LAYOUTS))
def test_every_layout_of_a_row_among_rows_is_read(layout: str) -> None:
    rows = LAYOUTS[layout]()
    assert read([rows[0], rows[1]]) == rows.tolist()


@pytest.mark.parametrize("of", READ_AS_IS)
def test_what_the_core_takes_as_it_is_is_not_copied(of: type[np.integer[Any]]) -> None:
    flat, rows = np.array([3, 1, 4], dtype=of), np.array(LISTS, dtype=of)
    assert np.shares_memory(integer_rows(flat, "ids").values, flat)
    assert np.shares_memory(integer_rows(rows, "ids").values, rows)
    assert np.shares_memory(integer_rows(Ragged.from_lengths(flat, [1, 2]), "ids").values, flat)


def test_what_is_read_is_not_changed() -> None:
    data = np.array(LISTS, dtype=">i4")
    before = data.copy()
    integer_rows(data, "ids")
    assert data.dtype == before.dtype
    assert (data == before).all()


LETTERS = Vocabulary.from_bytes([bytes([97 + index]) for index in range(10)])


@pytest.mark.parametrize("of", INTEGERS)
@pytest.mark.parametrize("layout", list(LAYOUTS))
def test_alignment_does_not_depend_on_type_and_layout(of: type[np.integer[Any]], layout: str) -> None:
    aligner = Aligner(LETTERS, LETTERS)
    rows = LAYOUTS[layout]()
    found = aligner.align(rows.astype(of, order="K"), rows)
    assert found.pairs.teacher.tolist() == found.pairs.student.tolist() == [0, 1, 2] * 2
    assert found.pairs.offsets.tolist() == [0, 3, 6]


@given(st.lists(st.lists(st.integers(0, 9), max_size=5), max_size=5), st.sampled_from(INTEGERS))
def test_every_container_gives_the_same_rows(rows: list[list[int]], of: type[np.integer[Any]]) -> None:
    values = np.array([item for row in rows for item in row], dtype=of)
    assert read(rows) == rows
    assert read([np.array(row, dtype=of) for row in rows]) == rows
    assert read(Ragged.from_lengths(values, [len(row) for row in rows])) == rows


# ---- What the core reads by itself ---------------------------------------------------------------------

PLAIN: dict[str, Any] = {
    "lists": RAGGED,
    "tuples": tuple(map(tuple, RAGGED)),
    "lists and tuples": [RAGGED[0], *map(tuple, RAGGED[1:])],
    **{f"arrays of {of.__name__}": [np.array(row, dtype=of) for row in RAGGED] for of in READ_AS_IS},
    "arrays that may not be written to": [np.frombuffer(np.array(row).tobytes(), np.int64) for row in RAGGED],
}


@pytest.mark.parametrize("name", list(PLAIN))
def test_what_tokenizers_return_is_read_in_the_core(name: str) -> None:
    assert read_plainly(PLAIN[name]) == RAGGED


def test_a_flat_list_and_no_rows_are_read_in_the_core() -> None:
    assert read_plainly([3, 1, 4]) == [[3, 1, 4]]
    assert read_plainly([]) == []
    assert read_plainly([[], []]) == [[], []]


class Whole(int):
    """An integer of a class of its own."""


class Listed(list[int]):
    """A list of a class of its own."""


STRANGE: dict[str, Any] = {
    "a boolean": [[1, True]],
    "a float": [[1, 2.0]],
    "None": [[1, None]],
    "text": [[1, "2"]],
    "a number in the place of a row": [[1], 2],
    "a row in the place of a number": [1, [2]],
    "a list in a row": [[[1]]],
    "an id beyond int64": [[1, 2**63]],
    "an id far below zero": [[-(2**70)]],
    "an integer of another class": [[1, Whole(2)]],
    "a list of another class": [[1], Listed([2])],
    "an integer of numpy's": [[1, np.int64(2)]],
    "arrays of different types": [np.array([1]), np.array([2], dtype=np.int32)],
    "an array beside a list": [np.array([1]), [2]],
    "a list beside an array": [[1], np.array([2])],
    "an array of two dimensions": [np.array([[1]])],
    "an array of booleans": [np.array([True])],
    "an array of small integers": [np.array([1], dtype=np.int8)],
    "an array in the other byte order": [np.array([1]).astype(">i8")],
    "an array with gaps": [np.arange(6)[::2]],
    "a masked array": [np.ma.array([1, 2], mask=[False, True])],
    "an array that is not aligned": [misaligned()[0]],
    "an array by itself": np.array([1]),
    "a set": {1, 2},
    "text by itself": "12",
}


@pytest.mark.parametrize("name", list(STRANGE))
def test_of_what_is_not_plain_the_core_says_nothing(name: str) -> None:
    assert _core.read_ids(STRANGE[name]) is None


@given(st.lists(st.lists(st.booleans(), max_size=5), max_size=5))
def test_masks_of_booleans_and_of_zero_and_one_are_read_in_the_core(rows: list[list[bool]]) -> None:
    numbers = [[int(value) for value in row] for row in rows]
    arrays = [np.array(row, dtype=np.int64) for row in rows]
    held: list[Any] = [rows, numbers, tuple(map(tuple, rows)), arrays, [array == 1 for array in arrays]]
    for mask in held:
        found = _core.read_flags(mask)
        assert found is not None
        assert lists_of(Ragged(*found)) == rows


@pytest.mark.parametrize(
    "mask", [[[True, 1]], [[0, 2]], [[None]], [[1.0]], [np.array([3])], [np.array([0.0])]]
)
def test_of_what_is_no_plain_mask_the_core_says_nothing(mask: Any) -> None:
    assert _core.read_flags(mask) is None


def test_arrays_that_the_core_reads_as_they_are_are_not_copied() -> None:
    rows = [np.array(row, dtype=np.int64) for row in RAGGED]
    found = _core.read_ids(rows)
    assert found is not None
    assert found[0] is not rows
    assert all(one is other for one, other in zip(found[0], rows, strict=True))


# ---- Ragged --------------------------------------------------------------------------------------------


def test_a_ragged_knows_its_rows() -> None:
    rows = Ragged.from_lengths(np.arange(6), [3, 0, 1, 2])
    assert len(rows) == 4
    assert rows.offsets.tolist() == [0, 3, 3, 4, 6]
    assert rows.lengths().tolist() == [3, 0, 1, 2]


def test_a_ragged_may_be_cut_out_of_longer_values() -> None:
    assert read(Ragged(np.array([7, 7, 3, 1, 4, 1, 7]), np.array([2, 5, 5, 6]))) == [[3, 1, 4], [], [1]]


@pytest.mark.parametrize("of", INTEGERS)
def test_offsets_may_be_of_any_integer_type(of: type[np.integer[Any]]) -> None:
    offsets: Any = np.array([0, 3, 4], dtype=of)
    assert read(Ragged(np.array([3, 1, 4, 1]), offsets)) == [[3, 1, 4], [1]]


@pytest.mark.parametrize(
    ("values", "offsets", "message"),
    [
        (np.arange(3), np.array([0, 2, 1]), r"^ids row 1: offsets \[2, 1\] leave the 3 values or fall"),
        (np.arange(3), np.array([0, 2, 4]), r"^ids row 1: offsets \[2, 4\] leave the 3 values or fall"),
        (np.arange(3), np.array([-1, 2]), r"^ids row 0: offsets \[-1, 2\] leave the 3 values or fall"),
        (np.arange(3), np.array([4]), r"^ids row 0: offsets \[4\] leave the 3 values or fall"),
        (
            np.arange(3),
            np.array([], dtype=np.int64),
            r"^ids: a Ragged has 1-D values and 1-D integer offsets",
        ),
        (np.arange(3), np.array([0.0, 3.0]), r"^ids: a Ragged has 1-D values and 1-D integer offsets"),
        (np.arange(3), np.array([[0, 3]]), r"^ids: a Ragged has 1-D values and 1-D integer offsets"),
        (np.zeros((2, 2), dtype=np.int64), np.array([0, 2]), r"^ids: a Ragged has 1-D values and 1-D"),
        (
            np.arange(3),
            np.array([0, 2**63 + 1], dtype=np.uint64),
            r"^ids row 0: offsets .*leave the 3 values",
        ),
    ],
)
def test_a_ragged_with_wrong_offsets_is_refused(values: Any, offsets: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        integer_rows(Ragged(values, offsets), "ids")


# ---- Refusals ------------------------------------------------------------------------------------------


def object_array(*items: object) -> npt.NDArray[Any]:
    data = np.empty(len(items), dtype=object)
    data[:] = items
    return data


EITHER = (TypeError, ValueError)
REFUSED: dict[str, tuple[Any, type[Exception] | tuple[type[Exception], ...], str]] = {
    "booleans": ([True, False], TypeError, r"^ids holds bool; token ids are integers"),
    "a boolean array": (np.array([[True]]), TypeError, r"^ids holds bool; token ids are integers"),
    "floats": ([[1.0, 2.0]], TypeError, r"^ids holds float64; token ids are integers"),
    "a float array": (np.zeros((2, 2), dtype=np.float32), TypeError, r"^ids holds float32; token ids are"),
    "a float among integers": ([1, 2.0], TypeError, r"^ids holds float64; token ids are integers"),
    "a row of floats among rows": (
        [np.array([1]), np.array([1.5])],
        TypeError,
        r"^ids .*token ids are integers",
    ),
    "complex numbers": (
        np.zeros(2, dtype=complex),
        TypeError,
        r"^ids holds complex128; token ids are integers",
    ),
    "dates": (np.zeros(2, dtype="M8[s]"), TypeError, r"^ids holds datetime64\[s\]; token ids are integers"),
    "None": ([1, None], TypeError, r"^ids holds object; token ids are integers"),
    "objects that are no integers": (
        object_array(1, 2.5),
        TypeError,
        r"^ids holds (object|float64); token ids are",
    ),
    "a row of booleans beside rows": (
        [np.array([1, 0]), np.array([True, False])],
        TypeError,
        r"^ids has rows of booleans beside rows of numbers",
    ),
    "a boolean among integers": ([[1, 2], [True, 0]], TypeError, r"^ids mixes booleans with something else"),
    "a masked array": (
        np.ma.array([1, 2], mask=[False, True]),
        TypeError,
        r"^ids is a masked array; give its data",
    ),
    "a string": ("abc", EITHER, r"^ids"),
    "strings": (["a", "b"], EITHER, r"^ids"),
    "bytes": (b"abc", EITHER, r"^ids"),
    "a dictionary": ({"input_ids": [[1]]}, EITHER, r"^ids"),
    "a generator": ((index for index in range(3)), EITHER, r"^ids"),
    "a set": ({1, 2}, EITHER, r"^ids"),
    "one number": (7, ValueError, r"^ids has 0 dimensions; give one sequence or rows of them"),
    "three dimensions": (np.zeros((1, 1, 1), dtype=np.int64), ValueError, r"^ids has 3 dimensions; give one"),
    "three levels of lists": ([[[1]]], EITHER, r"^ids"),
    "rows of two dimensions": (
        [np.ones((1, 1), int)],
        ValueError,
        r"^ids row 0 has 2 dimensions; a row has one",
    ),
    "a number among rows": ([[1], 2], ValueError, r"^ids row 1 is 2; the rows before it are sequences"),
    "a row among numbers": ([1, [2]], TypeError, r"^ids mixes numbers with something else"),
    "a tensor elsewhere": (
        Tensor([1], device="cuda"),
        TypeError,
        r"^ids is on cuda; the aligner works on the CPU: pass ids\.cpu\(\)",
    ),
    "a tensor elsewhere among rows": (
        [Tensor([1]), Tensor([1], device="cuda")],
        TypeError,
        r"^ids.* is on cuda; the aligner works on the CPU",
    ),
    "a value beyond int64 in a later row": (
        [[1, 2], [], [3, 2**64]],
        ValueError,
        r"^ids row 2, position 1: 18446744073709551616 does not fit int64",
    ),
    "a value beyond int64 in an array of unsigned": (
        np.array([[1, 2], [2**64 - 1, 2**63]], dtype=np.uint64),
        ValueError,
        r"^ids row 1, position 0: 18446744073709551615 does not fit int64",
    ),
    "a value far below zero": (
        [0, -(2**65)],
        ValueError,
        r"^ids row 0, position 1: -36893488147419103232 does not",
    ),
}


@pytest.mark.parametrize("name", list(REFUSED))
def test_what_is_no_rows_of_integers_is_refused_by_name(name: str) -> None:
    data, error, message = REFUSED[name]
    with pytest.raises(error, match=message):
        integer_rows(data, "ids")


def test_a_sequence_of_another_kind_is_read_or_refused_by_name() -> None:
    try:
        assert read(deque([3, 1, 4])) == [[3, 1, 4]]
    except TypeError as error:
        assert "ids" in str(error)  # noqa: PT017 - either will do, silence or a bare numpy error will not


# ---- Masks ---------------------------------------------------------------------------------------------

LIKE = Ragged.from_lengths(np.zeros(3), [2, 1])


@pytest.mark.parametrize(
    "mask",
    [
        [[True, False], [True]],
        [(True, False), (True,)],
        [np.array([True, False]), np.array([True])],
        [np.array([True, False]), [True]],
        Ragged(np.array([True, False, True]), np.array([0, 2, 3])),
        Ragged(np.array([False, True, False, True]), np.array([1, 3, 4])),
    ],
)
def test_masks_are_read_from_the_same_containers(mask: Any) -> None:
    assert boolean_rows(mask, "mask", LIKE).tolist() == [True, False, True]


def test_a_two_dimensional_mask_of_any_layout_is_read() -> None:
    like = Ragged.from_lengths(np.zeros(6), [3, 3])
    mask = np.array([[True, False, False], [False, True, False]])
    for other in (mask, np.asfortranarray(mask), np.repeat(mask, 2, axis=1)[:, ::2]):
        read = boolean_rows(other, "mask", like)
        assert read.tolist() == mask.reshape(-1).tolist()
        assert read.flags.c_contiguous


def test_a_mask_over_no_rows_or_empty_rows_is_read() -> None:
    assert boolean_rows([], "mask", Ragged.from_lengths(np.zeros(0), [])).tolist() == []
    assert boolean_rows([[], []], "mask", Ragged.from_lengths(np.zeros(0), [0, 0])).tolist() == []


def test_a_flat_mask_is_for_one_row() -> None:
    assert boolean_rows([True, False], "mask", Ragged.from_lengths(np.zeros(2), [2])).tolist() == [
        True,
        False,
    ]


@pytest.mark.parametrize("of", INTEGERS)
def test_zero_and_one_of_any_integer_type_will_do(of: type[np.integer[Any]]) -> None:
    rows = [np.array([1, 0], dtype=of), np.array([1], dtype=of)]
    for mask in (rows, tuple(rows), Ragged.from_lengths(np.concatenate(rows), [2, 1])):
        assert boolean_rows(mask, "mask", LIKE).tolist() == [True, False, True]
    square = Ragged.from_lengths(np.zeros(4), [2, 2])
    assert boolean_rows(np.eye(2, dtype=of), "mask", square).tolist() == [True, False, False, True]


@pytest.mark.parametrize("mask", [[[1, 0], [1]], [(1, 0), (1,)], [[np.int64(1), np.int64(0)], [1]]])
def test_zero_and_one_of_python_will_do(mask: Any) -> None:
    assert boolean_rows(mask, "mask", LIKE).tolist() == [True, False, True]


WRONG_MASKS: dict[str, tuple[Any, type[Exception], str]] = {
    "a number beside 0 and 1": (
        [[1, 0], [2]],
        ValueError,
        r"^mask row 1, position 0 is 2, and a mask has True and False, or 1 and 0; .* pass mask == 1 or",
    ),
    "a number below 0": (
        [np.array([1, -100]), np.array([0])],
        ValueError,
        r"^mask row 0, position 1 is -100, and a mask has",
    ),
    "a number that no type holds": (
        [[1, 2**64], [1]],
        TypeError,
        r"^mask holds object, and a mask is boolean",
    ),
    "booleans beside integers": ([[True, 0], [1]], TypeError, r"^mask mixes booleans with something else"),
    "floats": (
        [[1.0, 0.0], [1.0]],
        TypeError,
        r"^mask holds float64, and a mask is boolean, or 0 and 1; pass",
    ),
    "fewer rows": ([[True, False]], ValueError, r"^mask has 1 rows for 2 rows of ids"),
    "more rows": ([[True, False], [True], []], ValueError, r"^mask has 3 rows for 2 rows of ids"),
    "a flat mask for two rows": ([True, False, True], ValueError, r"^mask has 1 rows for 2 rows of ids"),
    "a short row": (
        [[True], [True]],
        ValueError,
        r"^mask row 0 has 1 values for 2 ids; a mask has one value",
    ),
    "a long row": (
        [[True, True], [True] * 2],
        ValueError,
        r"^mask row 1 has 2 values for 1 ids; a mask has one",
    ),
    "as many values, cut differently": (
        [[True], [True, True]],
        ValueError,
        r"^mask row 0 has 1 values for 2 ids",
    ),
    "None": ([[True, None], [True]], TypeError, r"^mask holds object, and a mask is boolean"),
}


@pytest.mark.parametrize("name", list(WRONG_MASKS))
def test_a_wrong_mask_is_refused_with_its_row(name: str) -> None:
    mask, error, message = WRONG_MASKS[name]
    with pytest.raises(error, match=message):
        boolean_rows(mask, "mask", LIKE)
