"""What a loss is given: a student and its teachers where they predict the same text, checked at the door.

A position is *supervised* where its state predicts a token that is trained on. A pair is a position of the
student and one of a teacher that predict the same token; a chunk is a run of positions of each that predict
the same bytes. All tensors here are flat: nothing knows of rows and columns of a padded batch.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING

import torch

from dskd.nn.term import Over, Read

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from dskd.nn.heads import Head
    from dskd.nn.losses.attention import AttentionScales
    from dskd.nn.teacher_statistics import TeacherStatistics

__all__ = ["Batch", "Chunks", "States", "Teacher", "TeacherModel", "VocabularyMaps"]


# ---- What a teacher is -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class VocabularyMaps:
    """What the two vocabularies have in common.

    Attributes:
        to_student: int64 `[V_t]`, the student's id of each teacher id, or -1:
            `aligner.vocabulary_map.teacher_to_student`.
        overlap: int64 `[overlap, 2]`, the ids (teacher, student) of the shared tokens O:
            `aligner.vocabulary_map.overlap`; needed where an option speaks of O.
    """

    to_student: Tensor
    overlap: Tensor | None = None
    _most: int = field(init=False, repr=False, default=-1)

    def __post_init__(self) -> None:
        """Checks them, once: a batch asks for the largest id of the student alone.

        Raises:
            ValueError: a shape or dtype is another, an id is negative, or a token is there twice.
        """
        _refuse_maps(self.to_student, self.overlap)
        overlap = self.to_student if self.overlap is None else self.overlap[:, 1]
        most = max((int(ids.max()) for ids in (self.to_student, overlap) if len(ids)), default=-1)
        object.__setattr__(self, "_most", most)

    @property
    def size(self) -> int:
        """Of the smallest vocabulary of a student that has all ids that are spoken of."""
        return self._most + 1

    def shared(self) -> tuple[Tensor, Tensor]:
        """The ids of the teacher in O, and of the student.

        Raises:
            ValueError: there is no overlap.
        """
        if self.overlap is None or not len(self.overlap):
            raise ValueError(
                "the loss speaks of the tokens that both vocabularies have: give "
                "VocabularyMaps(overlap=aligner.vocabulary_map.overlap), not empty"
            )
        return self.overlap[:, 0], self.overlap[:, 1]


@dataclass(frozen=True, slots=True, eq=False)
class TeacherModel:
    """What of a teacher is the same for all batches.

    Attributes:
        head: with frozen weights.
        maps: of its vocabulary and the student's.
        embeddings: `[V_t, D]`, its input embeddings, for a loss that attends.
    """

    head: Head
    maps: VocabularyMaps
    embeddings: Tensor | None = None

    def __post_init__(self) -> None:
        """Checks that the maps are of this vocabulary.

        Raises:
            ValueError: they are not.
        """
        ids, overlap, unreachable = len(self.maps.to_student), self.maps.overlap, self.head.unreachable
        rest_is_unreachable = unreachable is not None and bool(unreachable[ids:].all())
        if ids > self.head.size or (ids < self.head.size and not rest_is_unreachable):
            raise ValueError(
                f"to_student has {ids} ids of the teacher, and its head {self.head.size}: give "
                "Vocabulary(size=) the rows of the head, or a head that says which are unreachable; are the "
                "heads swapped?"
            )
        if overlap is not None and len(overlap) and int(overlap[:, 0].max()) >= ids:
            raise ValueError(
                f"the overlap has the teacher's id {int(overlap[:, 0].max())}, and there are 0 to {ids - 1}: "
                "give pairs (teacher, student), in this order"
            )


# ---- What a batch has ------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class States:
    """One model at its supervised positions.

    Attributes:
        hidden: `[n, width]`, the states there, after the final norm.
        labels: int64 `[n]`, the token that each predicts.
        head: of the model; the student's live, the teacher's with frozen weights.
        row: int64 `[n]`, the row of the batch that each is in; for a loss that attends, as the next two.
        inputs: int64 `[n]`, the token at the position.
        embeddings: `[V, width]`, the model's input embeddings. No gradient flows to them.
        statistics: of a teacher at these positions, where somebody kept them.
        name: of what a term over them runs over.
    """

    hidden: Tensor
    labels: Tensor
    head: Head
    row: Tensor | None = None
    inputs: Tensor | None = None
    embeddings: Tensor | None = None
    statistics: TeacherStatistics | None = None
    name: str = "labels"

    def __post_init__(self) -> None:
        """Checks the shapes.

        Raises:
            ValueError: one does not fit the others.
        """
        _refuse_states(self.name, self.hidden, self.labels, self.head)
        for name in ("row", "inputs"):
            column = getattr(self, name)
            if column is not None and column.shape != self.labels.shape:
                raise ValueError(
                    f"{name} has shape {list(column.shape)}, and {self.name} {list(self.labels.shape)}"
                )
        _refuse_statistics(self.name, self.statistics, len(self.labels))

    @cached_property
    def over(self) -> Over:
        """All of them, for a term that runs over each."""
        return Over(self.name, len(self.labels), walk=self.name)

    def where(self, keep: Tensor) -> States:
        """The positions that a bool mask `[n]` keeps."""
        row, inputs = (None if one is None else one[keep] for one in (self.row, self.inputs))
        known = None if self.statistics is None else self.statistics[keep]
        return replace(
            self,
            hidden=self.hidden[keep],
            labels=self.labels[keep],
            row=row,
            inputs=inputs,
            statistics=known,
        )

    @cached_property
    def read(self) -> Read:
        """Their logits, by the model's head."""
        return Read(self.hidden, self.head, self.over, self.labels)


@dataclass(frozen=True, eq=False)
class Chunks:
    """Runs of positions of both models that predict the same bytes.

    Attributes:
        positions: int64 `[m]`, ascending, those of the student's supervised positions that are in a chunk.
        chunk: int64 `[m]`, which chunk each is in: from 0, ascending without gaps.
        teacher_log_probs: `[chunks]`, what the teacher says of the tokens that it has there, summed.
    """

    positions: Tensor
    chunk: Tensor
    teacher_log_probs: Tensor

    @cached_property
    def over(self) -> Over:
        """The chunks, for a term that runs over each."""
        return Over("chunks", len(self.teacher_log_probs), at=self.positions, item=self.chunk)


@dataclass(frozen=True, eq=False)
class Teacher:
    """One teacher, where it speaks to the student.

    Attributes:
        model: its head and vocabulary.
        hidden: `[pairs, D]`, its states at the pairs, after the final norm.
        paired: int64 `[pairs]`, ascending: which of the student's supervised positions predicts the token of
            each pair.
        statistics: of it at the pairs, where somebody kept them.
        chunks: for a loss over chunks.
        states: at its own supervised positions, for a loss that attends; their name is `teacher_labels`.
        scales: what a loss that attends divides the teacher's tensors by; None: by their own spread.
    """

    model: TeacherModel
    hidden: Tensor | None = None
    paired: Tensor | None = None
    statistics: TeacherStatistics | None = None
    chunks: Chunks | None = None
    states: States | None = None
    scales: AttentionScales | None = None

    @cached_property
    def pairs(self) -> Over:
        """The pairs, for a term that runs over each.

        Raises:
            ValueError: the batch has none.
        """
        if self.paired is None:
            raise ValueError(
                "the loss runs over pairs, and the batch has none: give Teacher(hidden=, paired=)"
            )
        return Over("pairs", len(self.paired), at=self.paired)

    @cached_property
    def read(self) -> Read:
        """The teacher's logits at the pairs.

        Raises:
            ValueError: the batch has none.
        """
        if self.hidden is None:
            raise ValueError(
                "the loss needs the teacher's states at the pairs: give Teacher(hidden=, paired=)"
            )
        return Read(self.hidden.detach(), self.model.head.detached(), self.pairs)

    @property
    def shared(self) -> tuple[Tensor, Tensor]:
        """The ids of the tokens that both vocabularies have, of the teacher and of the student."""
        return self.model.maps.shared()


@dataclass(frozen=True, eq=False)
class Batch:
    """A student, and the teachers that speak to it, by name.

    Attributes:
        student: at its supervised positions.
        teachers: by name; one teacher is `teacher`.

    Raises:
        ValueError: shapes do not fit, pairs are not ascending, or an id is not in the vocabulary.
    """

    student: States
    teachers: Mapping[str, Teacher] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """See the class."""
        _refuse_name("student", self.student, "labels")
        for name, teacher in self.teachers.items():
            _refuse_teacher(name, teacher, self.student)

    def counts(self) -> dict[str, int]:
        """How many there are of all that a term may run over, by name (see `named`)."""
        found = {"labels": len(self.student.labels)}
        for name, teacher in self.teachers.items():
            overs = {
                "pairs": None if teacher.paired is None else len(teacher.paired),
                "chunks": None if teacher.chunks is None else teacher.chunks.over.count,
                "teacher_labels": None if teacher.states is None else len(teacher.states.labels),
            }
            found |= {named(name, over): count for over, count in overs.items() if count is not None}
        return found


def named(teacher: str, name: str) -> str:
    """What a term or a count of this teacher is called: `name`, or `teacher/name` where there are several."""
    return name if teacher == ONLY_TEACHER else f"{teacher}/{name}"


ONLY_TEACHER = "teacher"
"""The name of a teacher that needs none."""


# ---- What is refused -------------------------------------------------------------------------------------


def _refuse_states(name: str, hidden: Tensor, labels: Tensor, head: Head) -> None:
    if hidden.ndim != 2 or labels.ndim != 1 or len(hidden) != len(labels):  # noqa: PLR2004
        raise ValueError(
            f"{name}: states of shape {list(hidden.shape)} and labels of shape {list(labels.shape)}; give "
            "the states at the supervised positions alone, [n, width], and the token that each predicts, [n]"
        )
    if hidden.shape[1] != head.width:
        raise ValueError(
            f"{name}: states are {hidden.shape[1]} wide and the head reads {head.width}; are the heads "
            "swapped?"
        )
    if labels.dtype != torch.int64:
        raise ValueError(f"{name} are {labels.dtype}; give token ids, int64")
    if len(labels) and int(labels.max()) >= head.size:
        raise ValueError(
            f"{name} have the id {int(labels.max())}, and the head has 0 to {head.size - 1}; are the heads "
            "swapped?"
        )


def _refuse_name(of: str, states: States, name: str) -> None:
    if states.name != name:
        raise ValueError(f"the states of the {of} are named {states.name!r}: give States(name={name!r})")


def _refuse_statistics(name: str, statistics: TeacherStatistics | None, count: int) -> None:
    if statistics is not None and len(statistics.predicted) != count:
        raise ValueError(f"statistics of {len(statistics.predicted)} positions, and there are {count} {name}")


def _refuse_maps(to_student: Tensor, overlap: Tensor | None) -> None:
    whole = {"to_student": to_student} if overlap is None else {"to_student": to_student, "overlap": overlap}
    for name, ids in whole.items():
        if not isinstance(ids, torch.Tensor) or ids.dtype != torch.int64:
            raise ValueError(f"{name} is no int64 tensor: give torch.tensor(..) of what vocabulary_map has")
    if to_student.ndim != 1:
        raise ValueError(
            f"to_student has shape {list(to_student.shape)}: give one id for each of the teacher's"
        )
    if overlap is None:
        return
    if overlap.ndim != 2 or overlap.shape[1] != 2:  # noqa: PLR2004
        raise ValueError(
            f"overlap has shape {list(overlap.shape)}: give [overlap, 2], a row (teacher, student) a token; "
            "is it transposed?"
        )
    if bool((overlap < 0).any()):
        raise ValueError("overlap has negative ids: give the tokens alone that both vocabularies have")
    for side, ids in zip(("teacher", "student"), overlap.T, strict=True):
        if len(ids.unique()) != len(ids):
            raise ValueError(
                f"overlap has an id of the {side} twice, which would count twice: give each once"
            )


def _refuse_teacher(name: str, teacher: Teacher, student: States) -> None:
    """What is wrong with a teacher beside this student."""
    if (teacher.hidden is None) != (teacher.paired is None):
        raise ValueError(f"teacher {name!r}: give hidden and paired, or neither")
    ids, size = teacher.model.maps.size, student.head.size
    if ids > size:
        raise ValueError(
            f"teacher {name!r}: its maps have the student's id {ids - 1}, and the student's head has 0 to "
            f"{size - 1}: give pairs (teacher, student), in this order, of these two models"
        )
    if teacher.states is not None:
        _refuse_name(f"teacher {name!r}", teacher.states, "teacher_labels")
    if teacher.hidden is not None and teacher.paired is not None:
        _refuse_statistics("pairs", teacher.statistics, len(teacher.paired))
        _refuse_pairs(name, teacher.hidden, teacher.paired, teacher.model, len(student.labels))
    if teacher.chunks is not None:
        _refuse_chunks(name, teacher.chunks, len(student.labels))


def _refuse_pairs(name: str, hidden: Tensor, paired: Tensor, model: TeacherModel, labels: int) -> None:
    if paired.ndim != 1 or paired.dtype != torch.int64 or hidden.shape[:1] != paired.shape:
        raise ValueError(
            f"teacher {name!r}: states of shape {list(hidden.shape)} for pairs of shape "
            f"{list(paired.shape)}, {paired.dtype}; give its states at the pairs alone, [pairs, D], and "
            "int64 [pairs]"
        )
    if hidden.ndim != 2 or hidden.shape[1] != model.head.width:  # noqa: PLR2004
        raise ValueError(
            f"teacher {name!r}: states of shape {list(hidden.shape)}, and its head reads {model.head.width}; "
            "are the heads swapped?"
        )
    if len(paired) and not _ascends(paired, labels):
        raise ValueError(
            f"teacher {name!r}: paired does not ascend from 0 to {labels - 1}: give each supervised position "
            "of the student once, in order, and the teacher's states in the same order"
        )


def _refuse_chunks(name: str, chunks: Chunks, labels: int) -> None:
    count = len(chunks.teacher_log_probs)
    for column in (chunks.positions, chunks.chunk):
        if column.ndim != 1 or column.dtype != torch.int64:
            raise ValueError(
                f"teacher {name!r}: chunks of shape {list(column.shape)}, {column.dtype}; give int64 "
                "[positions]"
            )
    if chunks.teacher_log_probs.ndim != 1:
        raise ValueError(
            f"teacher {name!r}: log-probabilities of chunks of shape {list(chunks.teacher_log_probs.shape)}; "
            "give one sum a chunk"
        )
    if chunks.positions.shape != chunks.chunk.shape:
        raise ValueError(
            f"teacher {name!r}: {len(chunks.positions)} positions in chunks and {len(chunks.chunk)} chunks "
            "of them; give one for each"
        )
    if not len(chunks.chunk):
        if count:
            raise ValueError(f"teacher {name!r}: {count} chunks without a position; give none")
        return
    steps = chunks.chunk.diff()
    whole = int(chunks.chunk[0]) == 0 and int(chunks.chunk[-1]) == count - 1
    if not whole or bool(((steps < 0) | (steps > 1)).any()) or not _ascends(chunks.positions, labels):
        raise ValueError(
            f"teacher {name!r}: chunks are to be numbered from 0 to {count - 1} in the order of their "
            f"positions, which ascend from 0 to {labels - 1}"
        )


def _ascends(indices: Tensor, size: int) -> bool:
    """Whether they are below the size, each once, in order; asks the device once."""
    is_wrong = (indices.diff() <= 0).any() | (indices[0] < 0) | (indices[-1] >= size)
    return not bool(is_wrong)
