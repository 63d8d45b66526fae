"""The compiled core against the definition, and what an alignment promises to those who use it."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from itertools import accumulate, groupby, pairwise
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pytest
from hypothesis import event, given
from hypothesis import strategies as st

import dskd
from dskd import Aligner, Alignment, PairKind, Vocabulary
from hello import ALIGNER, HELLO, HELLO_PAIRS, STUDENT, TEACHER, large_batch
from sides import COUNTS, Found, Side, align, by_reference, in_lists, ranges, same, tuples
from strategies import Batch, Token, batches, one_text, repeated_rows, rows, side_of, texts, tokenizations

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

# ---- Core and definition -------------------------------------------------------------------------------


SIDES = ("teacher", "student")


@given(rows())
def test_the_core_equals_the_definition(row: tuple[Side, Side]) -> None:
    expected, found = by_reference(*row), in_lists(align(*row))
    say_what_is_in(expected, row)
    assert found == expected


@given(repeated_rows())
def test_the_core_equals_the_definition_where_texts_repeat_themselves(row: tuple[Side, Side]) -> None:
    expected, found = by_reference(*row), in_lists(align(*row))
    say_what_is_in(expected, row)
    assert found == expected


def say_what_is_in(found: Found, row: tuple[Side, Side]) -> None:
    """For `--hypothesis-show-statistics`: how often random rows are interesting."""
    for kind in PairKind:
        event(f"has {kind.name} pairs: {any(pair[2] == kind for pair in found.pairs)}")
    event(f"has chunks of several tokens: {any(sum_of_lengths(chunk) > 2 for chunk in found.chunks)}")
    event(f"has chunks that enclose zero width: {any(found.encloses)}")
    event(f"has differences: {bool(found.differences)}")
    event(f"has chunks and differences: {bool(found.chunks and found.differences)}")
    event(f"has opaque tokens: {found.counts['teacher_opaque'] + found.counts['student_opaque'] > 0}")
    event(f"has surplus segments: {found.counts['segment_mismatch'] > 0}")
    event(
        f"has spaces set aside: {selected_bytes(row) - sum(found.counts[f'{side}_bytes'] for side in SIDES)}"
    )


def selected_bytes(row: tuple[Side, Side]) -> int:
    return sum(
        len(side.vocabulary.token_bytes(token) or b"")
        for side in row
        for token, selected in zip(side.ids, mask_of(side), strict=True)
        if selected
    )


def sum_of_lengths(chunk: tuple[int, ...]) -> int:
    return chunk[1] - chunk[0] + chunk[3] - chunk[2]


# ---- Promises that need no definition to be checked ----------------------------------------------------


def ends_of(tokens: Sequence[Token]) -> dict[int, tuple[int, int]]:
    """For each byte at which a token with text ends: where that token starts, and its column."""
    ends = list(accumulate((len(token.text or b"") for token in tokens), initial=0))
    return {end: (start, at) for at, (start, end) in enumerate(pairwise(ends)) if start < end}


def intersection(teacher: Sequence[Token], student: Sequence[Token]) -> list[tuple[int, ...]]:
    """Chunks of two tokenizations of one text, plainly: what lies between neighbouring shared ends."""
    ends = (ends_of(teacher), ends_of(student))
    places = [0, *sorted(ends[0].keys() & ends[1].keys())]
    chunks = []
    for start, stop in pairwise(places):
        columns = [
            [at for end, (begin, at) in side.items() if start <= begin and end <= stop] for side in ends
        ]
        chunks.append(tuple(edge for side in columns for edge in (min(side), max(side) + 1)))
    return chunks


@given(one_text())
def test_chunks_of_one_text_are_the_plain_intersection_of_spans(
    tokens: tuple[list[Token], list[Token]],
) -> None:
    found = in_lists(align(side_of(tokens[0]), side_of(tokens[1])))
    assert found.chunks == intersection(*tokens)
    assert found.differences == []


@given(one_text())
def test_pairs_of_one_text_are_the_chunks_of_one_token_a_side(
    tokens: tuple[list[Token], list[Token]],
) -> None:
    found = in_lists(align(side_of(tokens[0]), side_of(tokens[1])))
    single = [(chunk[0], chunk[2], PairKind.EXACT) for chunk in found.chunks if sum_of_lengths(chunk) == 2]
    assert [pair for pair in found.pairs if pair[2] != PairKind.ROLE] == single


@given(one_text())
def test_a_chunk_of_one_text_is_flagged_where_it_holds_a_token_without_text(
    tokens: tuple[list[Token], list[Token]],
) -> None:
    found = in_lists(align(side_of(tokens[0]), side_of(tokens[1])))
    inside = [
        [*tokens[0][chunk[0] : chunk[1]], *tokens[1][chunk[2] : chunk[3]]] for chunk in intersection(*tokens)
    ]
    assert found.encloses == [any(not token.text for token in chunk) for chunk in inside]


def plain(text: bytes) -> st.SearchStrategy[list[Token]]:
    """Tokenizations without specials."""
    return tokenizations(text, st.just(Token(b"")))


@st.composite
def plain_pairs(draw: st.DrawFn, head: bytes = b"") -> tuple[list[Token], list[Token]]:
    text = head + draw(texts)
    return draw(plain(text)), draw(plain(text))


@given(plain_pairs())
def test_a_dummy_prefix_as_a_token_of_its_own_shifts_everything_by_one(
    tokens: tuple[list[Token], list[Token]],
) -> None:
    teacher, student = tokens
    without = in_lists(align(side_of(teacher), side_of(student)))
    found = in_lists(align(side_of(teacher), side_of([Token(b" "), *student])))
    assert found.chunks == [(one, two, three + 1, four + 1) for one, two, three, four in without.chunks]
    assert found.pairs == [(one, two + 1, kind) for one, two, kind in without.pairs]
    assert found.counts == without.counts


@given(plain_pairs())
def test_a_dummy_prefix_in_the_first_token_changes_nothing_but_the_kind_of_the_first_pair(
    tokens: tuple[list[Token], list[Token]],
) -> None:
    teacher, student = tokens
    first = next((at for at, token in enumerate(student) if token.text), None)
    if first is None:
        return
    without = in_lists(align(side_of(teacher), side_of(student)))
    student[first] = Token(b" " + (student[first].text or b""))
    found = in_lists(align(side_of(teacher), side_of(student)))
    assert found.chunks == without.chunks
    assert [pair[:2] for pair in found.pairs] == [pair[:2] for pair in without.pairs]
    space = [pair[1] for pair in found.pairs if pair[2] == PairKind.SPACE]
    assert space == [first for pair in without.pairs if pair[1] == first]
    assert found.counts["student_bytes"] == without.counts["student_bytes"]


@given(plain_pairs(b"x"), st.data())
def test_a_truncated_row_keeps_the_chunks_that_end_before_the_cut(
    tokens: tuple[list[Token], list[Token]], data: st.DataObject
) -> None:
    teacher, student = tokens
    left = data.draw(st.integers(0, len(student)))
    whole = in_lists(align(side_of(teacher), side_of(student)))
    found = in_lists(align(side_of(teacher), side_of(student[:left])))
    assert found.chunks == [chunk for chunk in whole.chunks if chunk[3] <= left]
    assert len(found.differences) == (found.chunks != whole.chunks)


@given(rows())
def test_a_segment_alone_gives_what_it_gives_among_others(row: tuple[Side, Side]) -> None:
    runs = [
        [list(run) for selected, run in groupby(range(len(side.ids)), mask_of(side).__getitem__) if selected]
        for side in row
    ]
    if any(side.mask is None for side in row):
        return
    alone: list[tuple[int, ...]] = []
    for columns in zip(*runs, strict=False):
        part = [
            Side(side.vocabulary, [side.ids[column] for column in of_side])
            for side, of_side in zip(row, columns, strict=True)
        ]
        found = in_lists(align(part[0], part[1]))
        alone += [(columns[0][one], columns[1][other], kind) for one, other, kind in found.pairs]
    assert in_lists(align(*row)).pairs == alone


@given(one_text(), st.binary(min_size=32, max_size=80), st.data())
def test_a_long_common_ending_that_stands_nowhere_else_is_found_whole(
    tokens: tuple[list[Token], list[Token]], ending: bytes, data: st.DataObject
) -> None:
    """Whatever stands before it on the two sides; 0xF0 and above stand in no other text."""
    ending = bytes(0xF0 | byte & 0x0F for byte in ending)
    other = data.draw(one_text())[1]
    tails = data.draw(plain(ending)), data.draw(plain(ending))
    heads = tokens[0], other
    found = in_lists(align(side_of([*heads[0], *tails[0]]), side_of([*heads[1], *tails[1]])))
    shift = (len(heads[0]),) * 2 + (len(heads[1]),) * 2
    expected = [tuple(map(sum, zip(chunk, shift, strict=True))) for chunk in intersection(*tails)]
    assert found.chunks[-len(expected) :] == expected


@given(one_text(), st.sampled_from([b"x", b"xy", b"\xff"]), st.sampled_from([b"z", b"zz", b"\xfe"]))
def test_text_behind_a_difference_does_not_change_what_lies_before(
    tokens: tuple[list[Token], list[Token]], teacher_tail: bytes, student_tail: bytes
) -> None:
    teacher, student = [*tokens[0], Token(teacher_tail)], [*tokens[1], Token(student_tail)]
    found = in_lists(align(side_of(teacher), side_of(student)))
    assert found.chunks == intersection(*tokens)
    assert found.differences == [(len(teacher) - 1, len(teacher), len(student) - 1, len(student))]


# ---- Batches, threads, labels --------------------------------------------------------------------------


@given(batches())
def test_a_row_of_a_batch_is_the_row_alone(batch: Batch) -> None:
    found = batch.aligner.align(batch.teacher, batch.student)
    assert len(found) == len(batch.teacher)
    for index, (teacher, student) in enumerate(zip(batch.teacher, batch.student, strict=True)):
        assert same(found[index], batch.aligner.align([teacher], [student]))


@given(batches(), st.data())
def test_it_does_not_matter_where_a_batch_is_split(batch: Batch, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(batch.teacher)))
    found = batch.aligner.align(batch.teacher, batch.student)
    head = batch.aligner.align(batch.teacher[:at], batch.student[:at])
    tail = batch.aligner.align(batch.teacher[at:], batch.student[at:])
    for index in range(len(found)):
        assert same(found[index], head[index] if index < at else tail[index - at])


@given(rows())
def test_labels_are_ids_and_mask_in_one(row: tuple[Side, Side]) -> None:
    labels = [
        [token if selected else -100 for token, selected in zip(side.ids, mask_of(side), strict=True)]
        for side in row
    ]
    aligner = Aligner(row[0].vocabulary, row[1].vocabulary)
    by_labels = aligner.align(teacher_labels=[labels[0]], student_labels=[labels[1]])
    by_masks = aligner.align(
        [row[0].ids], [row[1].ids], teacher_mask=[mask_of(row[0])], student_mask=[mask_of(row[1])]
    )
    assert same(by_labels, by_masks)


def mask_of(side: Side) -> list[bool]:
    return [True] * len(side.ids) if side.mask is None else side.mask


@pytest.mark.parametrize("num_threads", [2, 3, 8, None])
def test_the_number_of_threads_does_not_matter(num_threads: int | None) -> None:
    teacher, student = large_batch()
    alone = ALIGNER.align(teacher, student, num_threads=1)
    assert len(alone.pairs) > 10_000
    assert same(ALIGNER.align(teacher, student, num_threads=num_threads), alone)


# ---- The result ----------------------------------------------------------------------------------------


def test_one_flat_sequence_a_side_is_one_row() -> None:
    found = ALIGNER.align(*HELLO)
    assert len(found) == 1
    assert in_lists(found).pairs == HELLO_PAIRS
    assert ranges(found.chunks) == [(0, 1, 0, 1), (1, 2, 1, 3), (2, 3, 3, 4)]
    assert found.ratio.tolist() == [2 / 4]
    assert found.coverage.teacher.tolist() == found.coverage.student.tolist() == [1.0]


def test_positions_are_int32_and_offsets_int64() -> None:
    found = ALIGNER.align(*HELLO)
    for part in (found.pairs, found.chunks, found.differences):
        for item in fields(part):
            expected = {"offsets": np.int64, "kind": np.uint8, "encloses_zero_width": np.bool_}
            assert getattr(part, item.name).dtype == expected.get(item.name, np.int32), item.name
    assert {getattr(found.counts, name).dtype for name in COUNTS} == {np.dtype(np.int64)}
    assert found.coverage.teacher.dtype == found.ratio.dtype == np.float64


def test_no_rows_give_an_empty_result_of_the_same_types() -> None:
    empty, found = ALIGNER.align([], []), ALIGNER.align(*HELLO)
    assert len(empty) == len(empty.pairs) == len(empty.chunks) == len(empty.differences) == 0
    assert empty.pairs.offsets.tolist() == [0]
    for part in ("pairs", "chunks", "differences", "counts"):
        for item in fields(getattr(found, part)):
            of_empty, of_found = (getattr(getattr(one, part), item.name) for one in (empty, found))
            assert of_empty.dtype == of_found.dtype
    assert empty.ratio.shape == (0,)


def test_what_was_found_cannot_be_written_to() -> None:
    found = ALIGNER.align(*HELLO)
    for part in (found.pairs, found.chunks, found.differences, found.counts):
        for item in fields(part):
            assert not getattr(part, item.name).flags.writeable, item.name


def test_an_alignment_is_indexed_from_both_ends() -> None:
    found = ALIGNER.align([HELLO[0], [0]], [HELLO[1], [0]])
    assert in_lists(found[0]).pairs == HELLO_PAIRS
    assert in_lists(found[1]).pairs == in_lists(found[-1]).pairs == [(0, 0, PairKind.SPACE)]
    assert [len(found[index].pairs) for index in range(len(found))] == [3, 1]


@pytest.mark.parametrize("index", [2, -3, 100])
def test_an_alignment_refuses_an_index_that_is_no_row(index: int) -> None:
    found = ALIGNER.align([HELLO[0], [0]], [HELLO[1], [0]])
    with pytest.raises(IndexError):
        found[index]


def test_an_empty_denominator_gives_zero() -> None:
    found = ALIGNER.align([[], [0]], [[], []])
    assert found.ratio.tolist() == [0.0, 0.0]
    assert found.coverage.teacher.tolist() == [0.0, 0.0]
    assert found.coverage.student.tolist() == [0.0, 0.0]


def test_totals_add_up_counts_and_do_not_average_ratios() -> None:
    # Row 0: 2 of 4 student tokens; row 1: 1 of 1. Together 3 of 5, not the mean of 1/2 and 1.
    found = ALIGNER.align([HELLO[0], [0, 2]], [HELLO[1], [0]])
    total = found.counts.total()
    assert found.ratio.tolist() == [2 / 4, 1.0]
    assert total.ratio.tolist() == [3 / 5]
    # Bytes: Hello world! is 12 a side; row 1 has Hello! (6) against Hello (5).
    assert total.coverage.teacher.tolist() == [17 / 18]
    assert total.coverage.student.tolist() == [1.0]
    assert (total.exact.tolist(), total.space.tolist(), total.role.tolist()) == ([1], [2], [1])


def test_an_id_in_a_surplus_slot_is_opaque_and_not_an_error() -> None:
    student = Vocabulary.from_bytes([b"Hello"], size=8)
    found = Aligner(TEACHER, student).align([0, 1], [0, 7])
    assert in_lists(found).pairs == [(0, 0, PairKind.EXACT)]
    assert in_lists(found).differences == [(1, 2, 1, 2)]
    assert found.counts.student_opaque.tolist() == [1]


def test_specials_pair_by_their_literal() -> None:
    teacher = Vocabulary.from_bytes([b"<|user|>", b"a"], roles={"<|user|>": set()})
    student = Vocabulary.from_bytes([b"a", b"<|user|>"], roles={1: {"bos"}})
    assert in_lists(Aligner(teacher, student).align([0, 1], [1, 0])).pairs[0] == (0, 0, PairKind.ROLE)


def test_padding_does_not_pair_by_its_literal_either() -> None:
    vocabulary = Vocabulary.from_bytes([b"<pad>", b"a"], roles={0: {"pad"}})
    assert len(Aligner(vocabulary, vocabulary).align([1, 0, 0], [1, 0, 0]).pairs) == 1


def test_a_token_that_only_spells_a_special_is_text() -> None:
    teacher = Vocabulary.from_bytes([b"a", b"</s>"], roles={1: {"eos"}})
    student = Vocabulary.from_bytes([b"a", b"</s>"])
    found = in_lists(Aligner(teacher, student).align([0, 1], [0, 1]))
    assert found.pairs == [(0, 0, PairKind.EXACT)]
    assert found.differences == [(2, 2, 1, 2)]


# ---- Predicting positions ------------------------------------------------------------------------------

# Row 0 of the teacher is padded on the left by two; the student begins with its bos. Row 1 has neither.
LEFT_PADDED = ([[3, 3, *HELLO[0]], HELLO[0]], [[4, *HELLO[1]], HELLO[1]])
MASKS = (
    [[False, False, True, True, True, True], [True] * 4],
    [[False, True, True, True, True, True], [True] * 5],
)
ATTENTION = ([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1]], [[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1]])


def left_padded() -> Alignment:
    found = ALIGNER.align(*LEFT_PADDED, teacher_mask=MASKS[0], student_mask=MASKS[1])
    assert in_lists(found[0]).pairs == [(2, 1, 2), (4, 4, 0), (5, 5, 1)]
    assert in_lists(found[1]).pairs == [(0, 0, 2), (2, 3, 0), (3, 4, 1)]
    return found


def predicted(found: dskd.Predicting) -> list[tuple[int, ...]]:
    return tuples(found.row, found.teacher, found.student, found.kind)


def test_a_predicting_position_is_one_step_before_and_column_0_has_none() -> None:
    found = left_padded().predicting()
    assert predicted(found) == [(0, 1, 0, 2), (0, 3, 3, 0), (0, 4, 4, 1), (1, 1, 2, 0), (1, 2, 3, 1)]
    assert found.left_out == 1
    assert len(found) == 5


def test_a_position_outside_the_attention_mask_predicts_nothing() -> None:
    found = left_padded().predicting(*ATTENTION)
    assert predicted(found) == [(0, 3, 3, 0), (0, 4, 4, 1), (1, 1, 2, 0), (1, 2, 3, 1)]
    assert found.left_out == 2


def test_an_attention_mask_of_the_student_is_looked_at_too() -> None:
    student = [[1, 1, 1, 0, 1, 1], [1, 1, 1, 1, 1]]
    found = left_padded().predicting(student_attention_mask=student)
    assert predicted(found) == [(0, 1, 0, 2), (0, 4, 4, 1), (1, 1, 2, 0), (1, 2, 3, 1)]
    assert found.left_out == 2


def test_the_position_before_a_turn_need_not_be_selected() -> None:
    found = ALIGNER.align([2, 0], [3, 0], teacher_mask=[False, True], student_mask=[False, True])
    assert predicted(found.predicting()) == [(0, 0, 0, 2)]


@pytest.mark.parametrize("of", [np.bool_, np.int64, np.int32, np.uint8])
def test_an_attention_mask_may_be_boolean_or_integer(of: type[np.generic]) -> None:
    teacher = [np.array(row, dtype=of) for row in ATTENTION[0]]
    assert predicted(left_padded().predicting(teacher)) == predicted(left_padded().predicting(ATTENTION[0]))


def test_predicting_gives_int64() -> None:
    found = left_padded().predicting()
    assert {column.dtype for column in (found.row, found.teacher, found.student, found.kind)} == {
        np.dtype(np.int64)
    }


@given(batches())
def test_predicting_and_left_out_are_all_pairs_and_no_position_is_negative(batch: Batch) -> None:
    found = batch.aligner.align(batch.teacher, batch.student)
    positions = found.predicting()
    assert len(positions) + positions.left_out == len(found.pairs)
    assert min([*positions.teacher.tolist(), *positions.student.tolist()], default=0) >= 0


def test_no_pairs_predict_nothing() -> None:
    found = ALIGNER.align([[], []], [[], []]).predicting([[], []], [[], []])
    assert predicted(found) == []
    assert found.left_out == 0


# ---- The one-liner -------------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_tokenizers")
def test_the_one_liner_uses_the_pair_that_was_set() -> None:
    dskd.set_tokenizers(TEACHER, STUDENT)
    assert same(dskd.align(*HELLO), ALIGNER.align(*HELLO))
    dskd.set_tokenizers(STUDENT, TEACHER)
    assert same(dskd.align(*HELLO[::-1]), Aligner(STUDENT, TEACHER).align(*HELLO[::-1]))


@pytest.mark.usefixtures("no_tokenizers")
def test_the_one_liner_takes_tokenizers_and_options() -> None:
    mask = [True, False, True, True]
    found = dskd.align(*HELLO, teacher=TEACHER, student=STUDENT, teacher_mask=mask, num_threads=1)
    assert same(found, ALIGNER.align(*HELLO, teacher_mask=mask))


@pytest.mark.usefixtures("no_tokenizers")
def test_tokenizers_given_to_the_one_liner_are_not_those_of_the_next_call() -> None:
    dskd.set_tokenizers(TEACHER, STUDENT)
    dskd.align(*HELLO[::-1], teacher=STUDENT, student=TEACHER)
    assert same(dskd.align(*HELLO), ALIGNER.align(*HELLO))


@pytest.mark.usefixtures("no_tokenizers")
def test_the_one_liner_tells_pairs_apart() -> None:
    other = Vocabulary.from_bytes([b"Hello", b" world", b"?", b"", b""])
    same_as_before = dskd.align([0, 2], [0, 2], teacher=TEACHER, student=TEACHER)
    changed = dskd.align([0, 2], [0, 2], teacher=TEACHER, student=other)
    assert (len(same_as_before.pairs), len(changed.pairs)) == (2, 1)


class Interrupted(Vocabulary):
    """A vocabulary that lets another call with another pair through while it is looked at."""

    __slots__ = ()

    def __len__(self) -> int:
        dskd.align(*HELLO[::-1], teacher=STUDENT, student=TEACHER)
        return super().__len__()


@pytest.mark.usefixtures("no_tokenizers")
def test_another_pair_in_another_thread_does_not_change_that_of_this_call() -> None:
    teacher = Interrupted(TEACHER.core)
    dskd.align(*HELLO, teacher=teacher, student=STUDENT)
    found = dskd.align(*HELLO, teacher=teacher, student=STUDENT)
    assert same(found, ALIGNER.align(*HELLO))


@pytest.mark.usefixtures("no_tokenizers")
def test_the_one_liner_may_be_called_with_different_pairs_from_many_threads() -> None:
    vocabularies = [Vocabulary.from_bytes([letter, b"-"]) for letter in (b"a", b"b")]

    def pairs_with(student: Vocabulary) -> set[int]:
        """How many pairs each of many calls found."""
        both = {"teacher": vocabularies[0], "student": student}
        return {len(dskd.align([0, 1], [0, 1], num_threads=1, **both).pairs) for _ in range(3_000)}

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(pairs_with, vocabularies * 2))
    finally:
        sys.setswitchinterval(before)
    assert found == [{2}, {1}] * 2


@pytest.mark.usefixtures("no_tokenizers")
def test_the_one_liner_without_tokenizers_names_both_ways_out() -> None:
    with pytest.raises(
        RuntimeError, match=r"dskd\.set_tokenizers\(teacher, student\).*align\(\.\.\., teacher="
    ):
        dskd.align(*HELLO)


@pytest.mark.usefixtures("no_tokenizers")
def test_the_one_liner_with_one_tokenizer_asks_for_both() -> None:
    dskd.set_tokenizers(TEACHER, STUDENT)
    with pytest.raises(TypeError, match="give both teacher= and student=, or neither"):
        dskd.align(*HELLO, teacher=TEACHER)
    with pytest.raises(TypeError, match="give both teacher= and student=, or neither"):
        dskd.align(*HELLO, student=STUDENT)


# ---- Malformed input -----------------------------------------------------------------------------------

HOLE: Any = [0, None]
MALFORMED: dict[str, tuple[Callable[[], object], type[Exception], str]] = {
    "a negative id": (
        lambda: ALIGNER.align([[0], [0, -1]], [[0], [0]]),
        ValueError,
        r"^teacher row 1, position 1: id -1 is not in the vocabulary \(size 5\); mask it, or pass size=",
    ),
    "an id that is the size": (
        lambda: ALIGNER.align([[0], [0]], [[0], [0, 1, 5]]),
        ValueError,
        r"^student row 1, position 2: id 5 is not in the vocabulary \(size 5\); mask it, or pass size=",
    ),
    "an id beyond 32 bits": (
        lambda: ALIGNER.align([0, 2**32], [0]),
        ValueError,
        r"^teacher row 0, position 1: id 4294967296 is not in the vocabulary \(size 5\)",
    ),
    "an id beyond 63 bits": (
        lambda: ALIGNER.align([[0], [0, 2**63]], [[0], [0]]),
        ValueError,
        r"^teacher_ids row 1, position 1: 9223372036854775808 does not fit int64",
    ),
    "an id beyond 63 bits beside a negative one": (
        lambda: ALIGNER.align([0, -1, 2**63], [0]),
        ValueError,
        r"^teacher_ids row 0, position 2: 9223372036854775808 does not fit int64",
    ),
    "an id beyond 64 bits": (
        lambda: ALIGNER.align([0], [0, 1, 2**70]),
        ValueError,
        r"^student_ids row 0, position 2: 1180591620717411303424 does not fit int64",
    ),
    "-100 among ids": (
        lambda: ALIGNER.align([0, -100], [0]),
        ValueError,
        r"^teacher row 0, position 1: -100 is not an id; if these are labels, pass them as teacher_labels=",
    ),
    "a label that is no id": (
        lambda: ALIGNER.align(teacher_labels=[-100, 0, 9], student_labels=[0]),
        ValueError,
        r"^teacher row 0, position 2: id 9 is not in the vocabulary \(size 5\)",
    ),
    "a selected id behind ids that are not": (
        lambda: ALIGNER.align([0], [-5, 0, 0, 7], student_mask=[False, True, False, True]),
        ValueError,
        r"^student row 0, position 3: id 7 is not in the vocabulary",
    ),
    "other numbers of rows": (
        lambda: ALIGNER.align([[0], [0]], [[0]]),
        ValueError,
        r"^the teacher has 2 rows and the student 1; give both sides of every row",
    ),
    "boolean ids": (
        lambda: ALIGNER.align([True, False], [0]),
        TypeError,
        r"^teacher_ids holds bool; token ids are integers",
    ),
    "float ids": (
        lambda: ALIGNER.align([0], [0.0, 1.0]),
        TypeError,
        r"^student_ids holds float64; token ids are integers",
    ),
    "ids with a hole": (
        lambda: ALIGNER.align(HOLE, [0]),
        TypeError,
        r"^teacher_ids holds object; token ids are integers",
    ),
    "a mask of other integers": (
        lambda: ALIGNER.align([0, 1], [0], teacher_mask=[1, 2]),
        ValueError,
        r"^teacher_mask row 0, position 1 is 2, and a mask has True and False, .* pass teacher_mask == 1",
    ),
    "a mask of floats": (
        lambda: ALIGNER.align([0, 1], [0], teacher_mask=[1.0, 0.0]),
        TypeError,
        r"^teacher_mask holds float64, and a mask is boolean, or 0 and 1; pass it as mask\.astype\(bool\)",
    ),
    "a mask of fewer rows": (
        lambda: ALIGNER.align([[0], [0]], [[0], [0]], student_mask=[[True]]),
        ValueError,
        r"^student_mask has 1 rows for 2 rows of ids",
    ),
    "a mask with a shorter row": (
        lambda: ALIGNER.align([[0], [0, 1]], [[0], [0]], teacher_mask=[[True], [True]]),
        ValueError,
        r"^teacher_mask row 1 has 1 values for 2 ids; a mask has one value for each id",
    ),
    "labels beside ids": (
        lambda: ALIGNER.align([0], [0], teacher_labels=[0]),
        TypeError,
        r"^teacher_labels stand instead of teacher_ids and teacher_mask; give only one of them",
    ),
    "labels beside a mask": (
        lambda: ALIGNER.align([0], student_labels=[0], student_mask=[True]),
        TypeError,
        r"^student_labels stand instead of student_ids and student_mask; give only one of them",
    ),
    "one side only": (
        lambda: ALIGNER.align([0]),
        TypeError,
        r"^give student_ids or student_labels",
    ),
    "no threads": (
        lambda: ALIGNER.align([0], [0], num_threads=0),
        ValueError,
        r"^num_threads=0; it is at least 1, or None for a default",
    ),
    "an attention mask with a shorter row": (
        lambda: ALIGNER.align([[0], [0, 1]], [[0], [0]]).predicting([[1], [1]]),
        ValueError,
        r"^teacher_attention_mask row 1 has 1 values for 2 ids",
    ),
    "an attention mask of fewer rows": (
        lambda: ALIGNER.align([[0], [0]], [[0], [0]]).predicting(None, [[1]]),
        ValueError,
        r"^student_attention_mask has 1 rows for 2 rows of ids",
    ),
    "an attention mask of floats": (
        lambda: ALIGNER.align([0, 1], [0, 1]).predicting([1.0, 1.0]),
        TypeError,
        r"^teacher_attention_mask holds float64",
    ),
    "a tokenizer that is none": (
        lambda: Aligner(TEACHER, object()),
        TypeError,
        r"^cannot read a builtins\.object: give a tokenizers\.Tokenizer",
    ),
    "a tokenizer that is none, to the one-liner": (
        lambda: dskd.align([0], [0], teacher=TEACHER, student=object()),
        TypeError,
        r"^cannot read a builtins\.object: give a tokenizers\.Tokenizer",
    ),
}


@pytest.mark.parametrize("name", list(MALFORMED))
def test_malformed_input_is_refused_with_place_value_and_way_out(name: str) -> None:
    call, error, message = MALFORMED[name]
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("num_threads", [1, 3])
def test_the_first_error_is_that_of_the_lowest_row(num_threads: int) -> None:
    teacher, student = large_batch()
    for row in (50, 20, 60):
        student[row][-1] = 99
    with pytest.raises(ValueError, match=rf"^student row 20, position {len(student[20]) - 1}: id 99"):
        ALIGNER.align(teacher, student, num_threads=num_threads)


@pytest.mark.parametrize("at", [0, 1, 700, 5_999])
@pytest.mark.parametrize("of_teacher", ["int32", "uint32", "int64"])
@pytest.mark.parametrize("of_student", ["int32", "uint32", "int64"])
def test_an_unknown_id_amid_known_ones_is_refused(of_teacher: str, of_student: str, at: int) -> None:
    teacher = np.resize(np.array(HELLO[0], dtype=of_teacher), 6_000)
    student = np.resize(np.array(HELLO[1], dtype=of_student), 6_000)
    assert len(ALIGNER.align(teacher, student).pairs)
    student[at] = 9
    with pytest.raises(ValueError, match=rf"^student row 0, position {at}: id 9"):
        ALIGNER.align(teacher, student)
    teacher[5_999] = 2**31 - 1
    with pytest.raises(ValueError, match=r"^teacher row 0, position 5999: id 2147483647"):
        ALIGNER.align(teacher, student)


def test_an_unknown_id_in_a_segment_without_counterpart_is_refused() -> None:
    masks: dict[str, Any] = {"teacher_mask": [True, False, False], "student_mask": [True, False, True]}
    assert len(ALIGNER.align([0, 9, 9], [0, 9, 0], **masks).differences) == 1
    with pytest.raises(ValueError, match=r"^student row 0, position 2: id 9"):
        ALIGNER.align([0, 9, 9], [0, 9, 9], **masks)


@given(
    st.lists(st.integers(-1, 6) | st.sampled_from([2**31, 2**32, 2**63, 2**64, 2**70, -(2**64)]), max_size=6)
)
def test_any_integers_are_aligned_or_refused(ids: list[int]) -> None:
    known = all(0 <= token < len(STUDENT) for token in ids)
    try:
        ALIGNER.align([HELLO[0]], [ids])
    except ValueError as error:
        assert not known
        assert "student" in str(error)  # noqa: PT017 - either outcome is right
        assert "row 0" in str(error)  # noqa: PT017
    else:
        assert known


# ---- What cannot be changed ------------------------------------------------------------------------------


def test_an_aligner_and_its_results_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        ALIGNER.teacher = ALIGNER.student  # type: ignore[misc] # that it is refused is the test
    found = ALIGNER.align([[0], [0]], [[0], [0]])
    for array in (found.teacher_lengths, found.pairs.offsets, found[1].pairs.offsets, found.counts.exact):
        assert not array.flags.writeable


def test_an_alignment_is_iterated_row_by_row() -> None:
    found = ALIGNER.align([[0], [0, 0]], [[0], [0, 0]])
    assert [int(row.teacher_lengths[0]) for row in found] == [1, 2]


def test_where_neither_side_has_a_token_there_is_no_difference() -> None:
    found = ALIGNER.align([[]], [[0]], student_mask=[[False]])
    assert len(found.differences) == 0
    assert found.counts.segment_mismatch.tolist() == [1]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: ALIGNER.align("abc", [0]), TypeError, "teacher_ids is a str; give token ids, not text"),
        (
            lambda: ALIGNER.align([0], [0], num_threads=cast("Any", "2")),
            TypeError,
            "num_threads='2'; it is a",
        ),
    ],
)
def test_what_is_no_number_is_refused(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


def test_any_number_of_threads_will_do() -> None:
    assert len(ALIGNER.align([[0]], [[0]], num_threads=10**20).pairs) == 1
