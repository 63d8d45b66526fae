"""What goes wrong with input, row by row of the table of faults, as a user of the aligner meets it.

`test_ragged.py` has every container, type and layout by itself, `test_align.py` every message of malformed
input; here each goes all the way through `align`, on either side, to what comes out.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from dskd import Aligner, Alignment, PairKind, Ragged, Vocabulary
from dskd.ragged import float_rows, integer_rows
from sides import in_lists, tuples
from test_ragged import INTEGERS, LAYOUTS, READ_AS_IS, lists_of

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt

LETTERS = Vocabulary.from_bytes([bytes([97 + index]) for index in range(10)])
ALIGNER = Aligner(LETTERS, LETTERS)
ROWS = [[3, 1, 4], [1], [], [5, 9]]
SIDES = ("teacher", "student")


def on(side: str, ids: Any, other: Any, **options: Any) -> Alignment:
    """Aligns with these ids on one side and the other ids on the other."""
    return ALIGNER.align(*((ids, other) if side == "teacher" else (other, ids)), **options)


def pairs_of(found: Alignment) -> list[list[tuple[int, int]]]:
    return [tuples(row.pairs.teacher, row.pairs.student) for row in found]  # type: ignore[misc] # pairs are pairs


WHOLE = [[(column, column) for column in range(len(row))] for row in ROWS]

# ---- Ids that are none ---------------------------------------------------------------------------------

NO_IDS: dict[str, tuple[int, str]] = {
    "negative": (-1, r"id -1 is not in the vocabulary \(size 10\); mask it, or pass size="),
    "a label that was left in": (
        -100,
        r"-100 is not an id; if these are labels, pass them as teacher_labels=",
    ),
    "the size": (10, r"id 10 is not in the vocabulary \(size 10\); mask it, or pass size="),
    "beyond 32 bits": (2**32 + 1, r"id 4294967297 is not in the vocabulary \(size 10\)"),
    "far below zero": (-(2**63), r"id -9223372036854775808 is not in the vocabulary"),
}


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("name", list(NO_IDS))
def test_an_id_that_is_none_is_refused_with_side_row_position_and_value(name: str, side: str) -> None:
    value, message = NO_IDS[name]
    ids = [*ROWS[:3], [5, value]]
    with pytest.raises(ValueError, match=rf"^{side} row 3, position 1: {message}"):
        on(side, ids, ROWS)


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("value", [*(value for value, _ in NO_IDS.values()), 2**63, 2**64 - 1, 2**70])
def test_an_id_that_is_none_is_not_looked_at_where_it_takes_no_part(value: int, side: str) -> None:
    masked = {f"{side}_mask": [[True] * 3, [True, False], [False], [True] * 2]}
    assert pairs_of(on(side, [[3, 1, 4], [1, value], [value], [5, 9]], ROWS, **masked)) == WHOLE


@pytest.mark.parametrize("value", [2**63, 2**64 - 1])
def test_a_mask_leaves_out_what_does_not_fit_in_every_container(value: int) -> None:
    ids, mask = np.array([3, value, 4], dtype=np.uint64), [True, False, True]
    held: list[Any] = [ids, ids.astype(">u8"), ids.tolist(), [ids], [ids.tolist()], ids.astype(object)]
    for data in held:
        found = ALIGNER.align(data, [3, 0, 4], teacher_mask=mask, student_mask=mask)
        assert pairs_of(found) == [[(0, 0), (2, 2)]]
        with pytest.raises(ValueError, match=rf"^teacher_ids row 0, position 1: {value} does not fit int64"):
            ALIGNER.align(data, [3, 0, 4], teacher_mask=[True] * 3)
    assert ids[1] == value


def test_large_unsigned_ids_among_rows_of_other_types_have_their_place() -> None:
    ids: list[Any] = [np.array([3], dtype=np.int8), np.array([1, 2**63], dtype=np.uint64)]
    with pytest.raises(ValueError, match=r"^teacher_ids row 1, position 1: 9223372036854775808 does not fit"):
        ALIGNER.align(ids, [[3], [1]])
    assert pairs_of(ALIGNER.align(ids, [[3], [1]], teacher_mask=[[True], [True, False]])) == [[(0, 0)]] * 2


# ---- Slots that a model has and its tokenizer has not --------------------------------------------------


def test_an_unused_slot_is_an_error_unless_the_size_says_that_there_is_one() -> None:
    padded = Vocabulary.from_bytes([bytes([97 + index]) for index in range(10)], size=16)
    with pytest.raises(ValueError, match=r"^student row 0, position 1: id 12 .* pass size= if the model has"):
        ALIGNER.align([3, 1, 4], [3, 12, 4])
    found = Aligner(LETTERS, padded).align([3, 1, 4], [3, 12, 4])
    assert in_lists(found).pairs[0] == (0, 0, PairKind.EXACT)
    assert 1 not in found.pairs.student
    assert found.counts.student_opaque.tolist() == [1]
    assert tuples(found.overlaps("student").start, found.overlaps("student").end)[1] == (0, 0)
    assert not found.to_student([-1.0, -2.0, -3.0]).covered[1]


# ---- Types, layouts and containers ---------------------------------------------------------------------


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("of", INTEGERS)
@pytest.mark.parametrize("layout", list(LAYOUTS))
def test_every_integer_type_in_every_layout_aligns(of: type[np.integer[Any]], layout: str, side: str) -> None:
    rows = LAYOUTS[layout]()
    found = on(side, rows.astype(of, order="K"), rows.tolist())
    assert pairs_of(found) == [[(0, 0), (1, 1), (2, 2)]] * 2


NO_INTEGERS: dict[str, Callable[[], Any]] = {
    "bool": lambda: [np.array([True, False])],
    "float": lambda: [[1.0, 2.0]],
    "float16": lambda: np.zeros((1, 2), dtype=np.float16),
    "object": lambda: np.array([[1, None]], dtype=object),
    "str": lambda: [["a", "b"]],
    "a tensor of bool": lambda: pytest.importorskip("torch").tensor([[True, False]]),
    "a tensor of float": lambda: pytest.importorskip("torch").tensor([[1.0, 2.0]]),
    "a tensor of bfloat16": lambda: (t := pytest.importorskip("torch")).zeros((1, 2), dtype=t.bfloat16),
    "an Arrow array of bool": lambda: pytest.importorskip("pyarrow").array([[True, False]]),
    "an Arrow array of float": lambda: pytest.importorskip("pyarrow").array([[1.0]]),
    "an Arrow array of str": lambda: pytest.importorskip("pyarrow").array([["a"]]),
    "an Arrow table": lambda: pytest.importorskip("pyarrow").table({"ids": [[1]]}),
    "a dictionary": lambda: {"input_ids": [[1, 2]]},
}


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("name", list(NO_INTEGERS))
def test_what_is_no_integer_is_a_type_error_that_names_the_side(name: str, side: str) -> None:
    with pytest.raises(TypeError, match=rf"^{side}_ids "):
        on(side, NO_INTEGERS[name](), [[0]])


def arrow(rows: Any, of: Callable[[Any], Any] = lambda pa: pa.list_(pa.int64())) -> Any:
    """An Arrow array of this type."""
    pa = pytest.importorskip("pyarrow")
    return pa.array(rows, of(pa))


def chunked(*parts: Any) -> Any:
    pa = pytest.importorskip("pyarrow")
    return pa.chunked_array([arrow(part) for part in parts], pa.list_(pa.int64()))


def tensors(rows: Any) -> list[Any]:
    torch = pytest.importorskip("torch")
    return [torch.tensor(row, dtype=torch.int32) for row in rows]


CONTAINERS: dict[str, Callable[[], Any]] = {
    "lists": lambda: ROWS,
    "tuples": lambda: tuple(map(tuple, ROWS)),
    "a list of arrays": lambda: [np.array(row, dtype=np.int64) for row in ROWS],
    "a list of arrays of different types": lambda: [
        np.array(row, dtype=of) for row, of in zip(ROWS, ["u8", ">i2", "i1", "u4"], strict=True)
    ],
    "a Ragged": lambda: Ragged.from_lengths(np.array([3, 1, 4, 1, 5, 9]), [3, 1, 0, 2]),
    "a list of tensors": lambda: tensors(ROWS),
    "a tuple of tensors": lambda: tuple(tensors(ROWS)),
    "a list of Arrow arrays": lambda: [arrow(row, lambda pa: pa.int32()) for row in ROWS],
    "Arrow lists": lambda: arrow(ROWS),
    "Arrow lists of uint8": lambda: arrow(ROWS, lambda pa: pa.list_(pa.uint8())),
    "large Arrow lists": lambda: arrow(ROWS, lambda pa: pa.large_list(pa.int32())),
    "views of Arrow lists": lambda: arrow(ROWS, lambda pa: pa.list_view(pa.int64())),
    "a slice of Arrow lists": lambda: arrow([[7, 7], *ROWS, [7]])[1:-1],
    "Arrow lists in chunks": lambda: chunked(ROWS[:1], ROWS[1:3], [], ROWS[3:]),
    "a slice of Arrow lists in chunks": lambda: chunked([[7], *ROWS[:2]], [*ROWS[2:], [7]])[1:-1],
    "a column of an Arrow table": lambda: pytest.importorskip("pyarrow").table({"ids": ROWS}).column("ids"),
}


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("name", list(CONTAINERS))
def test_every_container_aligns(name: str, side: str) -> None:
    found = on(side, CONTAINERS[name](), ROWS)
    assert pairs_of(found) == WHOLE
    assert found.teacher_lengths.tolist() == found.student_lengths.tolist() == list(map(len, ROWS))
    assert found.overlaps(side).end.tolist() == [1, 2, 3, 1, 1, 2]


EQUAL = [[3, 1], [4, 1]]
RECTANGLES: dict[str, Callable[[], Any]] = {
    "a 2-D array": lambda: np.array(EQUAL),
    "a 2-D tensor": lambda: pytest.importorskip("torch").tensor(EQUAL),
    "a transposed tensor": lambda: pytest.importorskip("torch").tensor(EQUAL).T.contiguous().T,
    "a tensor of uint8": lambda: (t := pytest.importorskip("torch")).tensor(EQUAL, dtype=t.uint8),
    "Arrow lists of a fixed size": lambda: arrow(EQUAL, lambda pa: pa.list_(pa.int16(), 2)),
    "a slice of them": lambda: arrow([[7, 7], *EQUAL], lambda pa: pa.list_(pa.int64(), 2))[1:],
    "Arrow tensors": lambda: pytest.importorskip("pyarrow").FixedShapeTensorArray.from_numpy_ndarray(
        np.array(EQUAL)
    ),
    "a BatchEncoding's ids": lambda: encoding()["input_ids"],
    "a BatchEncoding's tensor of ids": lambda: encoding("pt")["input_ids"],
    "a BatchEncoding's array of ids": lambda: encoding("np")["input_ids"],
}


def encoding(tensor_type: str | None = None) -> Any:
    transformers = pytest.importorskip("transformers")
    return transformers.BatchEncoding({"input_ids": EQUAL}, tensor_type=tensor_type)


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("name", list(RECTANGLES))
def test_every_container_of_rows_of_one_length_aligns(name: str, side: str) -> None:
    assert pairs_of(on(side, RECTANGLES[name](), EQUAL)) == [[(0, 0), (1, 1)]] * 2


FLAT: dict[str, Callable[[], Any]] = {
    "a tensor": lambda: pytest.importorskip("torch").tensor([3, 1]),
    "a list of tensors without dimensions": lambda: list(pytest.importorskip("torch").tensor([3, 1])),
    "an Arrow array": lambda: arrow([3, 1], lambda pa: pa.uint16()),
    "an Arrow array in chunks": lambda: pytest.importorskip("pyarrow").chunked_array([[3], [1]]),
}


@pytest.mark.parametrize("name", list(FLAT))
def test_every_flat_container_is_one_row(name: str) -> None:
    assert pairs_of(ALIGNER.align(FLAT[name](), [3, 1])) == [[(0, 0), (1, 1)]]


def test_arrow_arrays_of_nothing_are_no_rows_or_an_empty_row() -> None:
    assert lists_of(integer_rows(arrow([]), "ids")) == []
    assert lists_of(integer_rows(chunked(), "ids")) == []
    assert lists_of(integer_rows(chunked([], [[]]), "ids")) == [[]]
    assert lists_of(integer_rows(arrow([], lambda pa: pa.int64()), "ids")) == [[]]


WRONG_ARROW: dict[str, tuple[Callable[[], Any], str]] = {
    "a row that is null": (lambda: arrow([[1], None, [2]]), r"^ids row 1 is null; fill or drop it"),
    "a value that is null": (
        lambda: arrow([[], [1, 2], [], [3, None]]),
        r"^ids row 3, position 1 is null; fill or drop it",
    ),
    "a null in a later chunk": (lambda: chunked([[1]], [[2], [None]]), r"^ids row 2, position 0 is null"),
    "a null in a fixed size": (
        lambda: arrow([[1, 2], None], lambda pa: pa.list_(pa.int64(), 2)),
        r"^ids row 1 is null",
    ),
    "a null in a flat array": (
        lambda: arrow([1, None], lambda pa: pa.int64()),
        r"^ids row 0, position 1 is null",
    ),
    "a null in a row among rows": (
        lambda: [arrow([1], lambda pa: pa.int64()), arrow([None], lambda pa: pa.int64())],
        r"^ids row 1, position 0 is null",
    ),
    "lists of lists": (
        lambda: arrow([[[1]]], lambda pa: pa.list_(pa.list_(pa.int64()))),
        r"^ids has lists in its rows; give one sequence or rows of them",
    ),
    "lists of lists among rows": (lambda: [arrow([[1], [2]])], r"^ids row 0 has lists in its rows"),
}


@pytest.mark.parametrize("name", list(WRONG_ARROW))
def test_nulls_and_deeper_lists_of_arrow_are_refused_with_their_place(name: str) -> None:
    make, message = WRONG_ARROW[name]
    with pytest.raises(ValueError, match=message):
        integer_rows(make(), "ids")


def test_masks_come_in_the_same_containers() -> None:
    torch = pytest.importorskip("torch")
    lists = [[True, False], [True, True]]
    expected = [[(0, 0)], [(0, 0), (1, 1)]]
    for mask in (
        np.array(lists),
        torch.tensor(lists),
        [torch.tensor(row) for row in lists],
        arrow(lists, lambda pa: pa.list_(pa.bool_())),
        arrow(lists, lambda pa: pa.list_(pa.bool_(), 2)),
    ):
        assert pairs_of(ALIGNER.align(EQUAL, EQUAL, teacher_mask=mask, student_mask=mask)) == expected


def test_an_attention_mask_as_a_tokenizer_returns_it_is_a_mask() -> None:
    torch = pytest.importorskip("torch")
    lists = [[1, 0], [1, 1]]
    expected = [[(0, 0)], [(0, 0), (1, 1)]]
    for mask in (
        lists,
        np.array(lists),
        np.array(lists, dtype=np.uint8),
        [np.array(row) for row in lists],
        torch.tensor(lists),
        [torch.tensor(row) for row in lists],
        arrow(lists),
        Ragged(np.array([1, 0, 1, 1]), np.array([0, 2, 4])),
    ):
        assert pairs_of(ALIGNER.align(EQUAL, EQUAL, teacher_mask=mask, student_mask=mask)) == expected


# ---- Nothing is copied that need not be ----------------------------------------------------------------


class Watched:
    """The compiled aligner, and what reached it."""

    def __init__(self, core: Any) -> None:
        self.core = core
        self.arrays: list[Any] = []

    def align(self, *arrays: Any) -> Any:
        self.arrays = list(arrays)
        return self.core.align(*arrays)


def reaching_the_core(ids: Any) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """The ids of both sides as the core gets them."""
    aligner: Any = Aligner(LETTERS, LETTERS)
    aligner._core = watched = Watched(aligner._core)  # noqa: SLF001 - what reaches it is the question
    aligner.align(ids, ids)
    return watched.arrays[0], watched.arrays[3]


@pytest.mark.parametrize("of", READ_AS_IS)
@pytest.mark.parametrize("shape", [(6,), (2, 3), (6, 1)])
def test_numpy_ids_reach_the_core_without_a_copy(of: type[np.generic], shape: tuple[int, ...]) -> None:
    ids = np.arange(6, dtype=of).reshape(shape)
    ids.flags.writeable = False
    assert all(np.shares_memory(reached, ids) for reached in reaching_the_core(ids))
    assert all(np.shares_memory(reached, ids) for reached in reaching_the_core(ids[1:]))
    assert all(np.shares_memory(reached, ids) for reached in reaching_the_core([ids.reshape(-1)]))
    ragged = Ragged.from_lengths(ids.reshape(-1), [2, 0, 4])
    assert all(np.shares_memory(reached, ids) for reached in reaching_the_core(ragged))


@pytest.mark.parametrize("of", ["int64", "int32", "uint32"])
@pytest.mark.parametrize("shape", [(6,), (2, 3)])
def test_tensors_reach_the_core_without_a_copy(of: str, shape: tuple[int, ...]) -> None:
    torch = pytest.importorskip("torch")
    ids = torch.arange(6).to(getattr(torch, of)).reshape(shape)
    assert all(np.shares_memory(reached, ids.numpy()) for reached in reaching_the_core(ids))


@pytest.mark.parametrize("of", READ_AS_IS)
def test_arrow_lists_reach_the_core_without_a_copy(of: type[np.generic]) -> None:
    pa = pytest.importorskip("pyarrow")
    ids = np.arange(6, dtype=of)
    rows = pa.ListArray.from_arrays(pa.array([0, 2, 6], pa.int32()), pa.array(ids))
    for data in (rows, rows[1:], pa.chunked_array([rows]), pa.table({"ids": rows}).column("ids")):
        assert all(np.shares_memory(reached, ids) for reached in reaching_the_core(data))


# ---- Masks and padding ---------------------------------------------------------------------------------

PAD = Vocabulary.from_bytes([b"a", b"b", b"<pad>"], roles={2: {"pad", "eos"}})
PADDED = Aligner(PAD, PAD)


@pytest.mark.parametrize(
    ("ids", "mask", "first"),
    [([2, 2, 0, 1], [False, False, True, True], 2), ([0, 1, 2, 2], [True, True, False, False], 0)],
    ids=["on the left", "on the right"],
)
def test_the_mask_decides_what_is_padding(ids: list[int], mask: list[bool], first: int) -> None:
    found = PADDED.align(np.array([ids]), [[0, 1]], teacher_mask=np.array([mask]))
    assert pairs_of(found) == [[(first, 0), (first + 1, 1)]]
    assert len(found.differences) == 0


def test_an_end_of_sequence_that_also_pads_pairs_where_the_mask_selects_it() -> None:
    mask = [[True, True, False]]
    found = PADDED.align([[0, 2, 2]], [[0, 2, 2]], teacher_mask=mask, student_mask=mask)
    assert in_lists(found).pairs == [(0, 0, PairKind.EXACT), (1, 1, PairKind.ROLE)]


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize(
    ("mask", "message"),
    [
        ([[True] * 3, [True], [], [True]], r"row 3 has 1 values for 2 ids; a mask has one value for each id"),
        ([[True] * 3, [True]], r"has 2 rows for 4 rows of ids"),
        (
            [[1, 1, 0], [1], [], [1, 2]],
            r"row 3, position 1 is 2, and a mask has True and False, or 1 and 0",
        ),
        (
            [[1.0] * 3, [1.0], [], [1.0, 0.5]],
            r"holds float64, and a mask is boolean, or 0 and 1; pass it as mask\.astype\(bool\)",
        ),
    ],
)
def test_a_mask_that_is_none_is_refused_with_side_and_row(mask: Any, message: str, side: str) -> None:
    with pytest.raises((ValueError, TypeError), match=rf"^{side}_mask {message}"):
        on(side, ROWS, ROWS, **{f"{side}_mask": mask})


def test_segments_without_a_counterpart_are_differences_and_counted() -> None:
    mask = [True, False, True, False, True]
    found = ALIGNER.align([3, 0, 1, 0, 4], [3, 0, 1], teacher_mask=mask, student_mask=mask[:3])
    assert pairs_of(found) == [[(0, 0), (2, 2)]]
    assert in_lists(found).differences == [(4, 5, 3, 3)]
    assert found.counts.segment_mismatch.tolist() == [1]


# ---- Predicting positions ------------------------------------------------------------------------------

LEFT = ([[0, 0, 3, 1], [5, 9, 3, 1]], [[0, 3, 1], [5, 9, 3]])
"""Padded on the left by two and by one; the second row is full."""
ATTENDED = ([[0, 0, 1, 1], [1, 1, 1, 1]], [[0, 1, 1], [1, 1, 1]])


def padded_on_the_left() -> Alignment:
    masks = [[[value == 1 for value in row] for row in side] for side in ATTENDED]
    found = ALIGNER.align(*LEFT, teacher_mask=masks[0], student_mask=masks[1])
    assert pairs_of(found) == [[(2, 1), (3, 2)], [(0, 0), (1, 1), (2, 2)]]
    return found


def test_a_pair_in_column_0_or_behind_padding_is_left_out_and_counted() -> None:
    found = padded_on_the_left().predicting(*ATTENDED)
    assert tuples(found.row, found.teacher, found.student) == [(0, 2, 1), (1, 0, 0), (1, 1, 1)]
    assert found.left_out == 2


def test_without_an_attention_mask_only_column_0_is_left_out() -> None:
    found = padded_on_the_left().predicting()
    assert tuples(found.row, found.teacher, found.student)[0] == (0, 1, 0)
    assert found.left_out == 1


def test_a_pair_in_column_0_of_one_side_alone_is_left_out() -> None:
    found = ALIGNER.align([3, 1], [0, 3, 1], student_mask=[False, True, True]).predicting()
    assert tuples(found.teacher, found.student) == [(0, 1)]
    assert found.left_out == 1
    assert np.concatenate([found.teacher, found.student]).min() >= 0


def test_attention_masks_come_in_the_same_containers() -> None:
    torch = pytest.importorskip("torch")
    found = padded_on_the_left()
    expected = found.predicting(*ATTENDED)
    makers: list[Callable[[Any], Any]] = [
        np.array,
        torch.tensor,
        lambda rows: torch.tensor(rows).bool(),
        lambda rows: [torch.tensor(row) for row in rows],
        arrow,
        lambda rows: arrow(rows, lambda pa: pa.list_(pa.uint8())),
    ]
    for make in makers:
        masks: Any = [make(side) for side in ATTENDED]
        again = found.predicting(*masks)
        assert again.left_out == expected.left_out
        assert (again.teacher == expected.teacher).all()


# ---- Rows that are not there ---------------------------------------------------------------------------


def test_different_numbers_of_rows_are_refused_and_both_are_named() -> None:
    with pytest.raises(ValueError, match=r"^the teacher has 4 rows and the student 3; give both sides"):
        ALIGNER.align(ROWS, ROWS[:3])


@pytest.mark.parametrize(
    ("teacher", "student", "rows"),
    [([], [], 0), ([[]], [[]], 1), ([[], [3]], [[3], []], 2), (np.zeros((0, 4), int), [], 0)],
)
def test_nothing_gives_an_empty_result_of_the_right_types(teacher: Any, student: Any, rows: int) -> None:
    found = ALIGNER.align(teacher, student)
    assert len(found) == rows
    arrays: dict[str, list[npt.NDArray[Any]]] = {
        "int32": [found.pairs.teacher, found.chunks.student_end, found.overlaps("teacher").start],
        "uint8": [found.pairs.kind],
        "int64": [found.pairs.offsets, found.counts.exact, found.predicting().row, found.teacher_lengths],
        "float64": [found.ratio, found.coverage.teacher],
    }
    assert all(array.dtype == name for name, same in arrays.items() for array in same)
    assert len(found.pairs) == len(found.chunks) == len(found.predicting()) == 0
    assert found.pairs.offsets.tolist() == [0] * (rows + 1)
    assert found.ratio.tolist() == [0.0] * rows


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize(
    "row", [[3, 1], (3, 1), np.array([3, 1]), np.array([3, 1], dtype=object), [np.int64(3), np.int64(1)]]
)
@pytest.mark.parametrize("nothing", [[], ()])
def test_nothing_beside_one_row_is_an_empty_row(nothing: Any, row: Any, side: str) -> None:
    found = on(side, row, nothing)
    assert pairs_of(found) == [[]]
    assert in_lists(found).differences == [(0, 2, 0, 0) if side == "teacher" else (0, 0, 0, 2)]
    assert [len(found.teacher_lengths), found.teacher_lengths[0] + found.student_lengths[0]] == [1, 2]


def test_nothing_beside_one_row_of_labels_or_with_an_empty_mask_is_an_empty_row() -> None:
    assert len(ALIGNER.align(teacher_labels=[3, -100], student_labels=[])) == 1
    assert len(ALIGNER.align([], [3], teacher_mask=[], student_mask=[True])) == 1
    assert len(ALIGNER.align(FLAT["an Arrow array"](), [])) == 1


@pytest.mark.parametrize(
    "rows", [[[3]], [np.array([3])], np.array([[3]]), Ragged(np.array([3]), np.array([0, 1])), [(3,)]]
)
def test_nothing_beside_rows_is_no_rows(rows: Any) -> None:
    with pytest.raises(ValueError, match=r"^the teacher has 1 rows and the student 0; give both sides"):
        ALIGNER.align(rows, [])


def test_a_row_that_is_empty_on_one_side_is_a_difference_and_the_others_go_on() -> None:
    found = ALIGNER.align([[3], [1, 4], []], [[3], [], [5]])
    assert pairs_of(found) == [[(0, 0)], [], []]
    assert in_lists(found[1]).differences == [(0, 2, 0, 0)]
    assert in_lists(found[2]).differences == [(0, 0, 0, 1)]


# ---- Long rows -----------------------------------------------------------------------------------------


def seconds_for(tokens: int) -> float:
    """The fastest of three runs over one token, repeated; the student has it in pieces of three."""
    aligner = Aligner(Vocabulary.from_bytes([b"aa"]), Vocabulary.from_bytes([b"aaa"]))
    teacher, student = np.zeros(tokens, np.int32), np.zeros(tokens * 2 // 3, np.int32)
    times = []
    for _ in range(3):
        before = time.process_time()
        found = aligner.align(teacher, student, num_threads=1)
        times.append(time.process_time() - before)
        assert len(found.chunks) == tokens // 3
        assert found.coverage.teacher.tolist() == [1.0]
    return min(times)


def test_one_token_a_million_times_takes_linear_time() -> None:
    assert seconds_for(999_999) < 60 * max(seconds_for(99_999), 1e-3)  # ten times as long, and some slack


def test_ten_million_tokens_in_a_row_align() -> None:
    ids = np.zeros(10_000_000, dtype=np.int32)
    found = ALIGNER.align(ids, ids)
    assert found.pairs.offsets.tolist() == [0, 10_000_000]
    assert found.pairs.teacher[-1] == found.pairs.student[-1] == 9_999_999
    assert found.ratio.tolist() == [1.0]


def test_a_million_tokens_in_a_row_overlap_and_carry_values() -> None:
    ids = np.zeros(1_000_000, dtype=np.int32)
    found = ALIGNER.align(ids, ids)
    assert (found.overlaps("teacher").start == np.arange(1_000_000)).all()
    assert found.to_student(np.ones(1_000_000)).values.sum() == 1_000_000


def test_a_row_beyond_32_bits_is_refused_and_nothing_of_it_is_read() -> None:
    try:
        ids = np.zeros(2**31, dtype=np.int32)  # the system lends these pages, and nobody touches them
    except MemoryError:
        pytest.skip("8 GiB of address space are not to be had here")
    with pytest.raises(ValueError, match=r"^student row 0 has 2147483648 ids, and a row can have 2147483647"):
        ALIGNER.align([3], ids)


# ---- Other devices -------------------------------------------------------------------------------------


def elsewhere(values: Any) -> Any:
    """A tensor on a device that has no memory: reading it would be an error of another kind."""
    return pytest.importorskip("torch").tensor(values, device="meta")


ELSEWHERE: dict[str, tuple[Callable[[], object], str]] = {
    "ids": (
        lambda: ALIGNER.align(elsewhere([[3, 1]]), [[3, 1]]),
        r"^teacher_ids is on meta; the aligner works on the CPU: pass teacher_ids\.cpu\(\)",
    ),
    "ids of the student": (
        lambda: ALIGNER.align([[3, 1]], elsewhere([[3, 1]])),
        r"^student_ids is on meta; the aligner works on the CPU: pass student_ids\.cpu\(\)",
    ),
    "a row among rows": (
        lambda: ALIGNER.align([[3], [1]], [np.array([3]), elsewhere([1])]),
        r"^student_ids row 1 is on meta; .* pass \[row\.cpu\(\) for row in student_ids\]",
    ),
    "a list of numbers": (
        lambda: ALIGNER.align([elsewhere(3), elsewhere(1)], [3, 1]),
        r"^teacher_ids is on meta; .* pass teacher_ids\.cpu\(\)",
    ),
    "a mask": (
        lambda: ALIGNER.align([[3]], [[3]], teacher_mask=elsewhere([[True]])),
        r"^teacher_mask is on meta; .* pass teacher_mask\.cpu\(\)",
    ),
    "labels": (
        lambda: ALIGNER.align(teacher_labels=[[3]], student_labels=elsewhere([[3]])),
        r"^student_labels is on meta; .* pass student_labels\.cpu\(\)",
    ),
    "an attention mask": (
        lambda: ALIGNER.align([[3]], [[3]]).predicting(elsewhere([[1]])),
        r"^teacher_attention_mask is on meta; .* pass teacher_attention_mask\.cpu\(\)",
    ),
    "values": (
        lambda: ALIGNER.align([[3]], [[3]]).to_student(elsewhere([[1.0]])),
        r"^values is on meta; .* pass values\.cpu\(\)",
    ),
    "values in bfloat16": (
        lambda: float_rows(elsewhere([1.0]).bfloat16(), "values", Ragged.from_lengths(np.zeros(1), [1])),
        r"^values is on meta; .* pass values\.cpu\(\)",
    ),
}


@pytest.mark.parametrize("name", list(ELSEWHERE))
def test_a_tensor_on_another_device_is_refused_and_the_way_out_named(name: str) -> None:
    call, message = ELSEWHERE[name]
    with pytest.raises(TypeError, match=message):
        call()
