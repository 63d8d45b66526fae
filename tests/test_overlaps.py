"""The offset map between two vocabularies: against its definition, by hand, and what it promises."""

from __future__ import annotations

import pickle
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import event, given

from dskd import Aligner, PairKind, Vocabulary, reference
from sides import Side, align, in_lists, ranges, tuples
from strategies import Batch, Token, batches, one_text, rows, side_of

if TYPE_CHECKING:
    from dskd import Alignment, Overlaps

Range = tuple[int, ...]


def in_ranges(found: Overlaps) -> list[Range]:
    return tuples(found.start, found.end)


def both(found: Alignment) -> tuple[list[Range], list[Range]]:
    return in_ranges(found.overlaps("teacher")), in_ranges(found.overlaps("student"))


def of_bytes(*tokens: bytes | None) -> Side:
    """A row of these tokens; None is an end of sequence."""
    return side_of(
        [Token(token) if token is not None else Token(roles=frozenset({"eos"})) for token in tokens]
    )


# ---- By hand -------------------------------------------------------------------------------------------

BY_HAND: dict[str, tuple[Side, Side, list[Range], list[Range]]] = {
    "the same tokens": (of_bytes(b"a", b"b"), of_bytes(b"a", b"b"), [(0, 1), (1, 2)], [(0, 1), (1, 2)]),
    "tokens that straddle": (
        of_bytes(b"ab", b"cd", b"ef"),
        of_bytes(b"a", b"bcd", b"e", b"f"),
        [(0, 2), (1, 2), (2, 4)],
        [(0, 1), (0, 2), (2, 3), (2, 3)],
    ),
    "the one space is a token of its own": (
        of_bytes(b"ab"),
        of_bytes(b" ", b"a", b"b"),
        [(1, 3)],
        [(0, 0), (0, 1), (0, 1)],
    ),
    "the one space is in the first token": (
        of_bytes(b"a", b"bc"),
        of_bytes(b" ab", b"c"),
        [(0, 1), (0, 2)],
        [(0, 2), (1, 2)],
    ),
    "a token without text stands inside": (
        of_bytes(b"abc"),
        of_bytes(b"a", None, b"", b"bc"),
        [(0, 4)],
        [(0, 1), (0, 0), (0, 0), (0, 1)],
    ),
    "specials that pair share no text": (
        of_bytes(b"a", None),
        of_bytes(b"a", None),
        [(0, 1), (0, 0)],
        [(0, 1), (0, 0)],
    ),
    "a difference": (of_bytes(b"a", b"x"), of_bytes(b"a", b"y"), [(0, 1), (0, 0)], [(0, 1), (0, 0)]),
    "no tokens": (of_bytes(), of_bytes(b"a"), [], [(0, 0)]),
}


@pytest.mark.parametrize("name", list(BY_HAND))
def test_by_hand(name: str) -> None:
    teacher, student, of_teacher, of_student = BY_HAND[name]
    assert both(align(teacher, student)) == (of_teacher, of_student)


def test_positions_that_take_no_part_share_nothing_and_are_not_looked_at() -> None:
    vocabulary = Vocabulary.from_bytes([b"a", b"b"])
    side = Side(vocabulary, [-100, 0, 1, 2**40], [False, True, True, False])
    expected = [(0, 0), (1, 2), (2, 3), (0, 0)]
    assert both(align(side, side)) == (expected, expected)


def test_an_opaque_token_shares_nothing() -> None:
    side = Side(Vocabulary.from_bytes([b"a"], size=2), [0, 1])
    assert both(align(side, side)) == ([(0, 1), (0, 0)], [(0, 1), (0, 0)])


# ---- Against the definition ----------------------------------------------------------------------------


@given(rows())
def test_overlaps_equal_the_definition(row: tuple[Side, Side]) -> None:
    teacher, student = row
    spelled = (teacher.vocabulary, student.vocabulary, teacher.ids, student.ids)
    found = align(teacher, student)
    chunks = [(one, two, three, four) for one, two, three, four in ranges(found.chunks)]
    expected = reference.overlaps(*spelled, reference.Row(chunks=chunks))
    event(f"has tokens that meet several: {any(end - start > 1 for start, end in expected[0] + expected[1])}")
    assert both(found) == expected


@given(one_text())
def test_overlaps_of_one_text_are_the_plain_intersection_of_spans(
    tokens: tuple[list[Token], list[Token]],
) -> None:
    spans = [
        list(pairwise(accumulate((len(token.text or b"") for token in side), initial=0))) for side in tokens
    ]
    for of, others, found in zip(
        spans, spans[::-1], both(align(side_of(tokens[0]), side_of(tokens[1]))), strict=True
    ):
        for (start, end), at in zip(of, found, strict=True):
            met = [index for index, span in enumerate(others) if max(start, span[0]) < min(end, span[1])]
            assert at == ((met[0], met[-1] + 1) if met else (0, 0))


# ---- Promises ------------------------------------------------------------------------------------------


@given(rows())
def test_a_pair_of_text_maps_to_exactly_its_partner(row: tuple[Side, Side]) -> None:
    aligned = align(*row)
    found = both(aligned)
    for teacher, student, kind in in_lists(aligned).pairs:
        alone = (student, student + 1), (teacher, teacher + 1)
        assert (found[0][teacher], found[1][student]) == (
            alone if kind != PairKind.ROLE else ((0, 0), (0, 0))
        )


@given(rows())
def test_the_ends_of_a_range_map_back_to_the_token(row: tuple[Side, Side]) -> None:
    found = both(align(*row))
    for of, other in (found, found[::-1]):
        for column, (start, end) in enumerate(of):
            if start < end:
                assert all(other[at][0] <= column < other[at][1] for at in (start, end - 1))


@given(batches())
def test_rows_of_a_batch_lie_one_after_the_other(batch: Batch) -> None:
    found = batch.aligner.align(batch.teacher, batch.student)
    for side, ids in (("teacher", batch.teacher), ("student", batch.student)):
        flat = found.overlaps(side)
        assert np.diff(flat.offsets).tolist() == [len(row) for row in ids]
        assert in_ranges(flat) == [item for row in found for item in in_ranges(row.overlaps(side))]


TEACHER = Vocabulary.from_bytes([b"Hello", b" world", b"!"])
STUDENT = Vocabulary.from_bytes([b" Hello", b" wor", b"ld", b"!"])
ALIGNER = Aligner(TEACHER, STUDENT)
HELLO = ([0, 1, 2], [0, 1, 2, 3])
EXPECTED = ([(0, 1), (1, 3), (3, 4)], [(0, 1), (1, 2), (1, 2), (2, 3)])


def test_overlaps_are_int32_columns_and_int64_offsets_that_cannot_be_written_to() -> None:
    found = ALIGNER.align(*HELLO).overlaps("teacher")
    assert [str(array.dtype) for array in (found.start, found.end, found.offsets)] == [
        "int32",
        "int32",
        "int64",
    ]
    assert len(found) == 3
    assert not any(array.flags.writeable for array in (found.start, found.end, found.offsets))


def test_no_rows_have_no_overlaps() -> None:
    found = ALIGNER.align([], []).overlaps("student")
    assert (len(found), found.offsets.tolist()) == (0, [0])


@pytest.mark.parametrize("of", [np.int64, np.int32, np.uint32, np.uint8])
def test_overlaps_do_not_depend_on_the_type_of_the_ids(of: type[np.generic]) -> None:
    assert both(ALIGNER.align(*(np.array(ids, dtype=of) for ids in HELLO))) == EXPECTED


def test_labels_have_overlaps_too() -> None:
    found = ALIGNER.align(teacher_labels=[-100, *HELLO[0]], student_labels=HELLO[1])
    assert both(found)[1] == [(start + 1, end + 1) for start, end in EXPECTED[1]]


def test_a_side_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^side='pupil'; it is \"teacher\" or \"student\""):
        ALIGNER.align(*HELLO).overlaps("pupil")


@pytest.mark.parametrize("other", [[0, 2, 2], [2, 1, 0], [0, 1, 2**40], [-7, 0, 2]])
def test_ids_that_were_written_to_since_are_noticed(other: list[int]) -> None:
    ids = np.array(HELLO[0])
    found = ALIGNER.align(ids, HELLO[1])
    assert both(found) == EXPECTED
    ids[:] = other
    with pytest.raises(ValueError, match="the ids were written to since they were aligned"):
        found.overlaps("student")


def test_a_pickle_of_an_alignment_has_its_overlaps_and_no_vocabulary() -> None:
    large = Vocabulary.from_bytes([*(b"%d" % index for index in range(50_000)), b"Hello"])
    found = Aligner(large, STUDENT).align([[50_000], [50_000]], [[0], [0]])
    pickled = pickle.dumps(found)
    assert len(pickled) < 10_000
    again = pickle.loads(pickled)  # noqa: S301 - our own
    assert both(again) == both(found) == ([(0, 1)] * 2, [(0, 1)] * 2)
    assert both(again[1]) == ([(0, 1)], [(0, 1)])
    assert pickle.dumps(again) == pickle.dumps(pickle.loads(pickle.dumps(again)))  # noqa: S301 - our own


def test_a_pickle_does_not_look_at_ids_that_take_no_part() -> None:
    found = ALIGNER.align([-5, 0, 2**40], [0], teacher_mask=[False, True, False])
    again = pickle.loads(pickle.dumps(found))  # noqa: S301 - our own
    assert both(again) == ([(0, 0), (0, 1), (0, 0)], [(1, 2)])
