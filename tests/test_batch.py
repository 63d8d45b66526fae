"""What is refused where it enters: each would be a wrong number later, or an error about something else."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch

from dskd.nn import Batch, Chunks, Head, Teacher, TeacherModel, VocabularyMaps, teacher_statistics
from leaves import random_leaves

if TYPE_CHECKING:
    from collections.abc import Callable

CASE = random_leaves(sizes=(9, 5))


def with_teacher(**changes: Any) -> Batch:
    batch = CASE.batch()
    return Batch(batch.student, {"teacher": replace(batch.teachers["teacher"], **changes)})


def with_student(**changes: Any) -> Batch:
    batch = CASE.batch()
    return Batch(replace(batch.student, **changes), batch.teachers)


def with_maps(**changes: Any) -> TeacherModel:
    model = CASE.model()
    return replace(model, maps=replace(model.maps, **changes))


PAIRED = CASE.teachers["teacher"].paired
OVERLAP = torch.tensor([[2, 3], [3, 0], [4, 2]])
ZEROS = torch.zeros(3, dtype=torch.int64)
SAYS = torch.zeros(2)

FAULTS: dict[str, tuple[Callable[[], Any], str]] = {
    "the student at all positions": (
        lambda: with_student(hidden=torch.zeros(20, 3, dtype=torch.float64)),
        r"^labels: states of shape \[20, 3\] and labels of shape \[14\]; give the states at the supervised",
    ),
    "rows and columns": (
        lambda: with_student(hidden=torch.zeros(2, 7, 3)),
        r"^labels: states of shape \[2, 7, 3\] and labels of shape \[14\]; ",
    ),
    "the teacher at all positions": (
        lambda: with_teacher(hidden=torch.zeros(14, 4)),
        r"^teacher 'teacher': states of shape \[14, 4\] for pairs of shape \[12\], .* at the pairs alone",
    ),
    "one row for all pairs": (
        lambda: with_teacher(hidden=torch.zeros(1, 4)),
        r"^teacher 'teacher': states of shape \[1, 4\] for pairs of shape \[12\]",
    ),
    "a mask of pairs": (
        lambda: with_teacher(paired=torch.ones(12, dtype=torch.bool)),
        r"pairs of shape \[12\], torch.bool; .* int64 \[pairs\]$",
    ),
    "a pair twice": (
        lambda: with_teacher(paired=torch.cat([PAIRED[:1], PAIRED[:-1]])),
        r"^teacher 'teacher': paired does not ascend from 0 to 13: give each supervised position",
    ),
    "pairs in another order": (lambda: with_teacher(paired=PAIRED.flip(0)), "does not ascend from 0 to 13"),
    "a pair beyond the end": (lambda: with_teacher(paired=PAIRED + 14), "does not ascend from 0 to 13"),
    "pairs without states": (
        lambda: with_teacher(hidden=None),
        "give hidden, or what is stored of it, and paired, or neither$",
    ),
    "states of another width": (
        lambda: with_teacher(hidden=torch.zeros(12, 3)),
        r"states of shape \[12, 3\], and its head reads 4; are the heads swapped\?$",
    ),
    "the student's head swapped": (
        lambda: with_student(head=CASE.head("teacher")),
        r"^labels: states are 3 wide and the head reads 4; are the heads swapped\?$",
    ),
    "the teacher's head swapped": (
        lambda: TeacherModel(CASE.head("student"), CASE.model().maps),
        r"^to_student has 9 ids of the teacher, and its head 5: .* are the heads swapped\?$",
    ),
    "a label beyond the head": (
        lambda: with_student(labels=CASE.labels + 4),
        r"^labels have the id \d, and the head has 0 to 4; are the heads swapped\?$",
    ),
    "labels of another dtype": (lambda: with_student(labels=CASE.labels.int()), r"^labels are torch.int32; "),
    "rows of another number": (
        lambda: with_student(row=CASE.row[:3]),
        r"^row has shape \[3\], and labels \[14\]$",
    ),
    "an overlap that is transposed": (
        lambda: with_maps(overlap=OVERLAP.T),
        r"^overlap has shape \[2, 3\]: give \[overlap, 2\], .*; is it transposed\?$",
    ),
    "an overlap whose columns are swapped": (
        lambda: (
            with_maps(overlap=torch.tensor([[0, 8]])).maps
            and Batch(CASE.batch().student, {"teacher": Teacher(with_maps(overlap=torch.tensor([[0, 8]])))})
        ),
        r"^teacher 'teacher': its maps have the student's id 8, and the student's head has 0 to 4: ",
    ),
    "an overlap beyond the teacher": (
        lambda: with_maps(overlap=torch.tensor([[9, 0]])),
        r"^the overlap has the teacher's id 9, and there are 0 to 8: ",
    ),
    "a token of the teacher twice": (
        lambda: with_maps(overlap=torch.tensor([[2, 3], [2, 0]])),
        r"^overlap has an id of the teacher twice, which would count twice: give each once$",
    ),
    "a token of the student twice": (
        lambda: with_maps(overlap=torch.tensor([[2, 3], [4, 3]])),
        r"^overlap has an id of the student twice",
    ),
    "an overlap of what has no counterpart": (
        lambda: with_maps(overlap=torch.tensor([[2, -1]])),
        r"^overlap has negative ids",
    ),
    "maps that are no tensors": (
        lambda: VocabularyMaps(to_student=OVERLAP[:, 0].numpy()),  # type: ignore[arg-type]
        r"^to_student is no int64 tensor: give torch.tensor\(..\) of what vocabulary_map has$",
    ),
    "maps of another dtype": (
        lambda: with_maps(overlap=OVERLAP.int()),
        r"^overlap is no int64 tensor",
    ),
    "a map of two dimensions": (lambda: with_maps(to_student=OVERLAP), r"^to_student has shape \[3, 2\]: "),
    "statistics of other pairs": (
        lambda: with_teacher(statistics=teacher_statistics(CASE.head("teacher"), torch.zeros(5, 4).double())),
        r"^statistics of 5 positions, and there are 12 pairs$",
    ),
    "states of a teacher that are named as a student's": (
        lambda: with_teacher(states=CASE.batch().student),
        r"^the states of the teacher 'teacher' are named 'labels': give States\(name='teacher_labels'\)$",
    ),
    "states of a student that are named as a teacher's": (
        lambda: with_student(name="teacher_labels"),
        r"^the states of the student are named 'teacher_labels': give States\(name='labels'\)$",
    ),
    "chunks and positions that differ": (
        lambda: with_teacher(chunks=Chunks(ZEROS, ZEROS[:2], SAYS)),
        r"^teacher 'teacher': 3 positions in chunks and 2 chunks of them; give one for each$",
    ),
    "chunks with a gap": (
        lambda: with_teacher(chunks=Chunks(torch.arange(3), torch.tensor([0, 2, 2]), torch.zeros(3))),
        r"^teacher 'teacher': chunks are to be numbered from 0 to 2 in the order of their positions",
    ),
    "chunks that do not begin at 0": (
        lambda: with_teacher(chunks=Chunks(torch.arange(3), torch.tensor([1, 1, 1]), SAYS)),
        "chunks are to be numbered from 0 to 1",
    ),
    "fewer chunks than there are log-probabilities": (
        lambda: with_teacher(chunks=Chunks(torch.arange(3), ZEROS, SAYS)),
        "chunks are to be numbered from 0 to 1",
    ),
    "positions of chunks twice": (
        lambda: with_teacher(chunks=Chunks(ZEROS, torch.tensor([0, 1, 1]), SAYS)),
        "positions, which ascend from 0 to 13$",
    ),
    "chunks without positions": (
        lambda: with_teacher(chunks=Chunks(ZEROS[:0], ZEROS[:0], SAYS)),
        r"^teacher 'teacher': 2 chunks without a position; give none$",
    ),
    "chunks of a mask": (
        lambda: with_teacher(chunks=Chunks(ZEROS.bool(), ZEROS, SAYS)),
        r"^teacher 'teacher': chunks of shape \[3\], torch.bool; give int64 \[positions\]$",
    ),
    "log-probabilities of tokens": (
        lambda: with_teacher(chunks=Chunks(torch.arange(3), torch.tensor([0, 0, 1]), torch.zeros(2, 4))),
        r"^teacher 'teacher': log-probabilities of chunks of shape \[2, 4\]; give one sum a chunk$",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_does_not_fit_is_refused_where_it_enters(fault: str) -> None:
    make, message = FAULTS[fault]
    with pytest.raises(ValueError, match=message):
        make()


def test_what_fits_is_taken_and_counted() -> None:
    batch = random_leaves(teachers=("big", "small")).batch()
    assert batch.counts() == {
        "labels": 14,
        "big/pairs": 12,
        "big/chunks": batch.teachers["big"].chunks.over.count,  # type: ignore[union-attr]
        "big/teacher_labels": 13,
        "small/pairs": 11,
        "small/chunks": batch.teachers["small"].chunks.over.count,  # type: ignore[union-attr]
        "small/teacher_labels": 13,
    }
    assert Batch(batch.student).counts() == {"labels": 14}


def test_a_map_may_end_where_no_tokenizer_speaks_of_the_rest() -> None:
    head = CASE.head("teacher")
    maps = VocabularyMaps(to_student=torch.arange(7) % 5)
    assert TeacherModel(replace(head, unreachable=torch.arange(9) >= 7), maps).maps is maps
    with pytest.raises(ValueError, match=r"^to_student has 7 ids of the teacher, and its head 9: "):
        TeacherModel(replace(head, unreachable=torch.arange(9) >= 8), maps)


def test_labels_below_zero_are_no_labels() -> None:
    assert with_student(labels=torch.full_like(CASE.labels, -100)).student.labels.max() == -100


def test_some_positions_of_states_are_those_of_all_that_they_have() -> None:
    states = CASE.batch(known=1.0).teachers["teacher"].states
    assert states is not None
    keep = torch.arange(13) % 3 == 0
    some = states.where(keep)
    for name in ("hidden", "labels", "row", "inputs"):
        assert torch.equal(getattr(some, name), getattr(states, name)[keep]), name
    assert some.statistics is not None
    assert states.statistics is not None
    assert torch.equal(some.statistics.predicted, states.statistics.predicted[keep])
    assert some.head is states.head


def test_nothing_of_a_teacher_gets_a_gradient() -> None:
    teacher = CASE.batch().teachers["teacher"]
    assert isinstance(teacher.read.head, Head)
    assert not teacher.read.trains
    assert CASE.batch().student.read.trains
