"""Log-probabilities of teacher tokens on student tokens: by hand, against plain loops, and the promises."""

from __future__ import annotations

import math
import pickle
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dskd import Aligner, Alignment, PairKind, Ragged, Vocabulary
from sides import Side, align, in_lists
from strategies import Batch, batches, rows

if TYPE_CHECKING:
    from collections.abc import Callable

TEACHER = Vocabulary.from_bytes([b"Hello", b" wor", b"ld", b"!", b"</s>", b"?"], roles={4: {"eos"}})
STUDENT = Vocabulary.from_bytes([b" Hello", b" ", b"w", b"orld", b"!", b"<eos>", b""], roles={5: {"eos"}})
ALIGNER = Aligner(TEACHER, STUDENT)


def carried(found: Alignment, values: Any) -> list[float | None]:
    """The value of each student token, None where it is not covered."""
    result = found.to_student(values)
    return [
        value if covered else None
        for value, covered in zip(result.values.tolist(), result.covered.tolist(), strict=True)
    ]


def test_a_chunk_is_summed_and_spread_and_specials_go_one_to_one() -> None:
    found = ALIGNER.align([0, 1, 2, 3, 4], [0, 1, 2, 3, 4, 5])
    assert carried(found, [-1.0, -2.0, -4.0, -8.0, -16.0]) == [-1.0, -2.0, -2.0, -2.0, -8.0, -16.0]


def test_a_difference_is_not_covered() -> None:
    assert carried(ALIGNER.align([0, 5], [0, 4]), [-1.0, -2.0]) == [-1.0, None]


def test_a_chunk_that_encloses_a_token_without_text_is_left_out() -> None:
    found = ALIGNER.align([0, 1, 2, 3], [0, 1, 6, 2, 3, 4])
    assert carried(found, [-1.0, -2.0, -4.0, -8.0]) == [-1.0, None, None, None, None, -8.0]


def test_a_special_that_does_not_pair_is_not_covered() -> None:
    assert carried(ALIGNER.align([0], [0, 5]), [-1.0]) == [-1.0, None]


def test_what_takes_no_part_is_not_covered_and_not_looked_at() -> None:
    found = ALIGNER.align([-7, 0, 3], [0, 4], teacher_mask=[False, True, True])
    assert carried(found, [math.nan, -1.0, -2.0]) == [-1.0, -2.0]


def test_rows_lie_one_after_the_other() -> None:
    found = ALIGNER.align([[0, 3], [], [4]], [[0, 4], [1], [5, 5]])
    result = found.to_student([[-1.0, -2.0], [], [-4.0]])
    assert result.offsets.tolist() == [0, 2, 3, 5]
    assert result.values.tolist() == [-1.0, -2.0, 0.0, -4.0, 0.0]
    assert result.covered.tolist() == [True, True, False, True, False]
    assert len(result) == 5
    assert carried(found[2], [-4.0]) == [-4.0, None]


def test_no_rows_have_no_values() -> None:
    result = ALIGNER.align([], []).to_student([])
    assert (result.values.tolist(), result.covered.tolist(), result.offsets.tolist()) == ([], [], [0])


def test_values_are_float64_beside_booleans_and_cannot_be_written_to() -> None:
    result = ALIGNER.align([0], [0]).to_student(np.array([-1.0], dtype=np.float16))
    arrays = (result.values, result.covered, result.offsets)
    assert [str(array.dtype) for array in arrays] == ["float64", "bool", "int64"]
    assert not any(array.flags.writeable for array in arrays)


# ---- Against plain loops, and promises -----------------------------------------------------------------


def by_loops(found: Alignment, values: list[float], length: int) -> list[float | None]:
    """One row: what the chunks and the pairs of specials say, token by token."""
    lists = in_lists(found)
    expected: list[float | None] = [None] * length
    for chunk, encloses in zip(lists.chunks, lists.encloses, strict=True):
        if not encloses:
            share = math.fsum(values[chunk[0] : chunk[1]]) / (chunk[3] - chunk[2])
            expected[chunk[2] : chunk[3]] = [share] * (chunk[3] - chunk[2])
    for teacher, student, kind in lists.pairs:
        if kind == PairKind.ROLE:
            expected[student] = values[teacher]
    return expected


def drawn_values(data: st.DataObject, length: int) -> list[float]:
    return data.draw(st.lists(st.floats(-50, 0), min_size=length, max_size=length))


@given(rows(), st.data())
def test_values_equal_plain_loops(row: tuple[Side, Side], data: st.DataObject) -> None:
    found, values = align(*row), drawn_values(data, len(row[0].ids))
    assert carried(found, [values]) == [
        None if value is None else pytest.approx(value, rel=1e-12)
        for value in by_loops(found, values, len(row[1].ids))
    ]


@given(rows(), st.data())
def test_a_row_adds_up_to_what_its_carried_teacher_tokens_add_up_to(
    row: tuple[Side, Side], data: st.DataObject
) -> None:
    found, values = align(*row), drawn_values(data, len(row[0].ids))
    lists = in_lists(found)
    columns = [pair[0] for pair in lists.pairs if pair[2] == PairKind.ROLE]
    for chunk, encloses in zip(lists.chunks, lists.encloses, strict=True):
        columns += [] if encloses else range(chunk[0], chunk[1])
    assert len(set(columns)) == len(columns)
    result = found.to_student([values])
    assert result.values[result.covered].sum() == pytest.approx(sum(values[column] for column in columns))
    assert (result.values[~result.covered] == 0).all()


@given(rows(), st.data())
def test_back_and_forth_between_the_same_tokens_changes_nothing(
    row: tuple[Side, Side], data: st.DataObject
) -> None:
    side = row[0]
    values = drawn_values(data, len(side.ids))
    result = align(side, side).to_student([values])
    assert result.values[result.covered].tolist() == np.array(values)[result.covered].tolist()


@given(batches(), st.data())
def test_a_row_of_a_batch_is_the_row_alone(batch: Batch, data: st.DataObject) -> None:
    found = batch.aligner.align(batch.teacher, batch.student)
    values = [drawn_values(data, len(row)) for row in batch.teacher]
    alone = [carried(found[index], [values[index]]) for index in range(len(found))]
    assert carried(found, values) == [value for row in alone for value in row]


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_finite_reaches_its_own_chunk_only(wrong: float) -> None:
    found = ALIGNER.align([[0, 1, 2, 3, 4]] * 2, [[0, 1, 2, 3, 4, 5]] * 2)
    values = np.array([[-1.0, wrong, -4.0, -8.0, -16.0], [-1.0, -2.0, -4.0, -8.0, -16.0]])
    result = found.to_student(values)
    assert np.flatnonzero(~np.isfinite(result.values)).tolist() == [1, 2, 3]
    assert result.values[np.isfinite(result.values)].sum() == values[np.isfinite(values)].sum() + 4.0


def test_infinities_that_cancel_and_sums_that_overflow_do_not_warn() -> None:
    found = ALIGNER.align([0, 1, 2], [0, 1, 2, 3])
    assert np.isnan(found.to_student([0.0, math.inf, -math.inf]).values[1:]).all()
    assert np.isinf(found.to_student([0.0, -1.7e308, -1.7e308]).values[1:]).all()


def test_values_go_through_a_pickle() -> None:
    found = pickle.loads(pickle.dumps(ALIGNER.align([0, 1, 2], [0, 1, 2, 3])))  # noqa: S301 - our own
    assert carried(found, [-1.0, -2.0, -4.0]) == [-1.0, -2.0, -2.0, -2.0]


# ---- Containers and malformed input --------------------------------------------------------------------

IN_ROWS: dict[str, Callable[[], Any]] = {
    "lists": lambda: [[-1.0, -2.0], [-4.0]],
    "tuples": lambda: ((-1.0, -2.0), (-4.0,)),
    "a list of float32": lambda: [np.array([-1, -2], dtype=np.float32), np.array([-4], dtype=np.float32)],
    "a list of two types": lambda: [np.array([-1, -2], dtype=np.float16), np.array([-4], dtype=">f8")],
    "integers among floats": lambda: [[-1, -2.0], [-4]],
    "a Ragged": lambda: Ragged.from_lengths(np.array([-1.0, -2.0, -4.0]), [2, 1]),
}


@pytest.mark.parametrize("name", list(IN_ROWS))
def test_values_may_be_held_in_many_ways(name: str) -> None:
    found = ALIGNER.align([[0, 3], [0]], [[0, 4], [0]])
    assert carried(found, IN_ROWS[name]()) == [-1.0, -2.0, -4.0]


def test_tensors_of_bfloat16_that_require_a_gradient_are_read() -> None:
    torch = pytest.importorskip("torch")
    values = torch.tensor([-1.0, -2.0], dtype=torch.bfloat16, requires_grad=True)
    assert carried(ALIGNER.align([0, 3], [0, 4]), values) == [-1.0, -2.0]
    assert carried(ALIGNER.align([[0, 3]], [[0, 4]]), [values]) == [-1.0, -2.0]


MALFORMED: dict[str, tuple[Any, type[Exception], str]] = {
    "integers": ([[0, 3], [0]], TypeError, r"^values holds int64; it is floats, and NaN where there is no"),
    "booleans": ([[True, False], [True]], TypeError, r"^values holds bool; it is floats"),
    "None": ([[None, -1.0], [-1.0]], TypeError, r"^values holds object; it is floats, and NaN where there"),
    "fewer rows": ([[-1.0, -2.0]], ValueError, r"^values has 1 rows for 2 rows of ids"),
    "a short row": (
        [[-1.0, -2.0], []],
        ValueError,
        r"^values row 1 has 0 values for 1 ids; there is one value for each id",
    ),
}


@pytest.mark.parametrize("name", list(MALFORMED))
def test_malformed_values_are_refused_with_their_row(name: str) -> None:
    values, error, message = MALFORMED[name]
    with pytest.raises(error, match=message):
        ALIGNER.align([[0, 3], [0]], [[0, 4], [0]]).to_student(values)
