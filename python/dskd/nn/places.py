"""From an alignment to a batch: where states are gathered, and what each predicts.

Two steps, since the first needs no model and is done where batches are collated, in another process perhaps:

    places = Places.of(alignment, student_labels)                 # flat indices, on the CPU
    batch = places.batch(student_hidden, student_head, teacher_hidden, teacher_model)

Positions are in the order in which a loss walks them: those that a teacher speaks to come first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from dskd.nn.batch import ONLY_TEACHER, Batch, Chunks, States, Teacher, named
from dskd.nn.teacher_statistics import label_log_probs
from dskd.overlaps import columns_in, rows_of
from dskd.ragged import integer_rows

if TYPE_CHECKING:
    from typing import Self

    from torch import Tensor

    from dskd.alignment import Alignment
    from dskd.nn.batch import TeacherModel
    from dskd.nn.heads import Head
    from dskd.nn.loss import Needs

__all__ = ["ChunkPlaces", "Moved", "Places", "Supervised", "TeacherPlaces"]

Indices: TypeAlias = npt.NDArray[np.int64]

IGNORED = -100
"""The label of a token that takes no part, as in transformers."""


class Moved:
    """A dataclass of tensors that moves as one, to a device or to pinned memory."""

    def to(self, device: Any, *, non_blocking: bool = False) -> Self:
        """The same on a device."""
        return self._each(lambda one: one.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Self:
        """The same in pinned memory."""
        return self._each(lambda one: one.pin_memory())

    def _each(self, move: Any) -> Self:
        return replace(self, **{one.name: _moved(getattr(self, one.name), move) for one in fields(self)})  # type: ignore[type-var,arg-type]


def _moved(value: Any, move: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _moved(one, move) for name, one in value.items()}
    if isinstance(value, Moved):
        return value._each(move)  # noqa: SLF001 - the same class
    return move(value) if isinstance(value, torch.Tensor) else value


@dataclass(frozen=True, eq=False)
class Supervised(Moved):
    """Positions of one model whose states predict a token that is trained on.

    Attributes:
        row: int64 `[n]`, rows of the batch.
        column: int64 `[n]`, columns; the token of the next column is predicted.
        labels: int64 `[n]`, that token.
    """

    row: Tensor
    column: Tensor
    labels: Tensor

    def of(self, values: Tensor) -> Tensor:
        """The values there, of `[batch, columns, ..]`: `[n, ..]`."""
        return values[self.row, self.column]


@dataclass(frozen=True, eq=False)
class ChunkPlaces(Moved):
    """Chunks of which every token is predicted on both sides, and none has zero width.

    Attributes:
        positions: int64 `[m]`, ascending, of the student's supervised positions.
        chunk: int64 `[m]`, which chunk each is in, ascending from 0.
        teacher: where the teacher predicts its tokens of chunks.
        teacher_chunk: int64, which chunk each of these is in.
        count: of chunks.
    """

    positions: Tensor
    chunk: Tensor
    teacher: Supervised
    teacher_chunk: Tensor
    count: int


@dataclass(frozen=True, eq=False)
class TeacherPlaces(Moved):
    """Where one teacher speaks to the student.

    Attributes:
        paired: int64 `[pairs]`, ascending, of the student's supervised positions.
        row: int64 `[pairs]`, where the teacher predicts its token of the pair.
        column: int64 `[pairs]`.
        kind: int64 `[pairs]`, a `dskd.PairKind` each.
        supervised: all of its own supervised positions; None: nobody asked for them.
        chunks: None: nobody asked for them.
    """

    paired: Tensor
    row: Tensor
    column: Tensor
    kind: Tensor
    supervised: Supervised | None = None
    chunks: ChunkPlaces | None = None


@dataclass(frozen=True, eq=False)
class Places(Moved):
    """Where a batch is supervised, and where its teachers speak to it.

    Attributes:
        student: the supervised positions, those that a teacher speaks to first.
        teachers: by name.
    """

    student: Supervised
    teachers: Mapping[str, TeacherPlaces]

    @classmethod
    def of(
        cls,
        alignments: Alignment | Mapping[str, Alignment],
        student_labels: Any,
        teacher_labels: Any = None,
        *,
        needs: Mapping[str, Needs] | None = None,
    ) -> Places:
        """The places of an alignment.

        Args:
            alignments: what `Aligner.align` found between these labels, teacher first; by the teacher's name
                where there are several.
            student_labels: `[batch, columns]`, unshifted as in transformers: the token at each position, -100
                where it takes no part. Rows may have lengths of their own.
            teacher_labels: the same of the teacher, or by its name; for a loss that attends or speaks of
                chunks.
            needs: of the losses, by the teacher's name (`Objective.needs`); None: pairs alone.

        Raises:
            ValueError: a loss needs teacher_labels, or the alignment has other rows than the labels.
        """
        by_name = alignments if isinstance(alignments, Mapping) else {ONLY_TEACHER: alignments}
        labels = teacher_labels if isinstance(alignments, Mapping) else {ONLY_TEACHER: teacher_labels}
        student = _Flat(student_labels)
        found = {
            name: _Spoken(name, alignment, student, (labels or {}).get(name), (needs or {}).get(name))
            for name, alignment in by_name.items()
        }
        order = _order(len(student.labels), list(found.values()))
        rank = np.empty_like(order)
        rank[order] = np.arange(len(order))
        return cls(student.supervised(order), {name: one.places(rank) for name, one in found.items()})

    def counts(self) -> dict[str, int]:
        """How many there are of all that a term may run over, as `Batch.counts`."""
        found = {"labels": len(self.student.labels)}
        for name, one in self.teachers.items():
            found[named(name, "pairs")] = len(one.paired)
            if one.chunks is not None:
                found[named(name, "chunks")] = one.chunks.count
            if one.supervised is not None:
                found[named(name, "teacher_labels")] = len(one.supervised.labels)
        return found

    # ---- Gathering -----------------------------------------------------------------------------------------

    def batch(
        self,
        student_hidden: Tensor,
        student_head: Head,
        teacher_hidden: Tensor,
        teacher: TeacherModel,
        *,
        student_inputs: Tensor | None = None,
        student_embeddings: Tensor | None = None,
        teacher_inputs: Tensor | None = None,
    ) -> Batch:
        """The batch of one teacher; of several, give `of_student` and `of_teacher` to `Batch`.

        Args:
            student_hidden: `[batch, columns, d]`, after its final norm.
            student_head: live.
            teacher_hidden: `[batch, columns, D]`, after its final norm.
            teacher: its head and vocabulary.
            student_inputs: int64 `[batch, columns]`, its ids; for a loss that attends, as the next two.
            student_embeddings: `[V_s, d]`, its input embeddings.
            teacher_inputs: int64 `[batch, columns]`, the teacher's ids.
        """
        of_student = self.of_student(
            student_hidden, student_head, inputs=student_inputs, embeddings=student_embeddings
        )
        spoken = self.of_teacher(ONLY_TEACHER, teacher_hidden, teacher, inputs=teacher_inputs)
        return Batch(of_student, {ONLY_TEACHER: spoken})

    def of_student(
        self,
        hidden: Tensor,
        head: Head,
        *,
        inputs: Tensor | None = None,
        embeddings: Tensor | None = None,
    ) -> States:
        """The student at its supervised positions; see `batch`."""
        return _states("labels", self.student, hidden, head, inputs, embeddings)

    def of_teacher(
        self, name: str, hidden: Tensor, model: TeacherModel, *, inputs: Tensor | None = None
    ) -> Teacher:
        """The teacher of this name where it speaks to the student; see `batch`.

        Raises:
            ValueError: there is no such teacher.
        """
        if name not in self.teachers:
            raise ValueError(f"there is no teacher {name!r}; there is {', '.join(map(repr, self.teachers))}")
        places = self.teachers[name]
        states = None
        if places.supervised is not None:
            states = _states(
                "teacher_labels", places.supervised, hidden, model.head, inputs, model.embeddings
            )
        return Teacher(
            model,
            hidden[places.row, places.column],
            places.paired,
            chunks=None if places.chunks is None else _chunks_of(places.chunks, hidden, model.head),
            states=states,
            kinds=places.kind,
        )


def _states(
    name: str,
    at: Supervised,
    hidden: Tensor,
    head: Head,
    inputs: Tensor | None,
    embeddings: Tensor | None,
) -> States:
    return States(
        at.of(hidden),
        at.labels,
        head,
        row=at.row,
        inputs=None if inputs is None else at.of(inputs),
        embeddings=embeddings,
        name=name,
    )


def _chunks_of(places: ChunkPlaces, hidden: Tensor, head: Head) -> Chunks:
    """With what the teacher says of each chunk, in chunk memory."""
    said = label_log_probs(head, places.teacher.of(hidden), places.teacher.labels)
    total = said.new_zeros(places.count).index_add_(0, places.teacher_chunk, said)
    return Chunks(places.positions, places.chunk, total)


# ---- How places are found --------------------------------------------------------------------------------


class _Flat:
    """Supervised positions of rows of labels, row after row."""

    def __init__(self, labels: Any) -> None:
        rows = integer_rows(labels, "labels")
        lengths = rows.lengths()
        row = np.repeat(np.arange(len(lengths)), lengths)
        column = np.arange(len(rows.values)) - np.repeat(rows.offsets[:-1], lengths)
        keep = (rows.values != IGNORED) & (column > 0)  # nothing precedes the token of column 0
        self.lengths = lengths
        self.row, self.column = row[keep], column[keep] - 1
        self.labels = rows.values[keep].astype(np.int64)
        # The index of each token's prediction among all, or of the next one's where it has none.
        self._index = np.cumsum(keep) - keep
        self._offsets, self._keep = rows.offsets[:-1], keep

    def index(self, row: Indices, column: Indices) -> Indices:
        """Which of the positions predicts the token of each row and column, or -1."""
        at = self._offsets[row] + column
        return np.where(self._keep[at], self._index[at], -1)

    def supervised(self, order: Indices | slice = slice(None)) -> Supervised:
        """As tensors, in this order."""
        return Supervised(*(torch.from_numpy(one[order]) for one in (self.row, self.column, self.labels)))


class _Spoken:
    """What one teacher says to the positions of the student, before these are ordered."""

    def __init__(
        self, name: str, alignment: Alignment, student: _Flat, labels: Any, needs: Needs | None
    ) -> None:
        lengths = np.asarray(alignment.student_lengths)
        if not np.array_equal(lengths, student.lengths):
            raise ValueError(
                f"teacher {name!r}: the alignment has rows of {lengths.tolist()[:5]} student tokens, and the "
                f"labels of {student.lengths.tolist()[:5]}; give the labels that were aligned"
            )
        predicting = alignment.predicting()
        self.paired = student.index(predicting.row, predicting.student + 1)
        known = self.paired >= 0
        self.paired = self.paired[known]
        self.row, self.column = predicting.row[known], predicting.teacher[known]
        self.kind = predicting.kind[known]
        self.supervised: _Flat | None = None
        self.chunks: tuple[Indices, Indices, Indices, Indices] | None = None
        if needs is not None and (needs.positions or needs.chunks):
            if labels is None:
                raise ValueError(f"teacher {name!r}: a loss needs its labels: give teacher_labels=")
            flat = _Flat(labels)
            self.supervised = flat
            if needs.chunks:
                self.chunks = _chunks(alignment, student, flat)
            self._needs = needs

    def places(self, rank: Indices) -> TeacherPlaces:
        """With the student's positions as they are numbered in the end."""
        paired = rank[self.paired]
        order = paired.argsort()
        columns = (torch.from_numpy(one[order]) for one in (paired, self.row, self.column, self.kind))
        at, row, column, kind = columns
        wants_all = self.supervised is not None and self._needs.positions
        everywhere = self.supervised.supervised() if wants_all and self.supervised is not None else None
        return TeacherPlaces(at, row, column, kind, everywhere, self._chunk_places(rank))

    def _chunk_places(self, rank: Indices) -> ChunkPlaces | None:
        if self.chunks is None or self.supervised is None:
            return None
        student, of_student, teacher, of_teacher = self.chunks
        positions = rank[student]
        order = positions.argsort()
        # Chunks are numbered in the order of their positions.
        firsts, numbers = np.unique(of_student[order], return_index=True)
        renumbered = np.empty(len(firsts), dtype=np.int64)
        renumbered[numbers.argsort()] = np.arange(len(firsts))
        return ChunkPlaces(
            torch.from_numpy(positions[order]),
            torch.from_numpy(renumbered[of_student[order]]),
            self.supervised.supervised(teacher),
            torch.from_numpy(renumbered[of_teacher]),
            len(firsts),
        )


def _chunks(
    alignment: Alignment, student: _Flat, teacher: _Flat
) -> tuple[Indices, Indices, Indices, Indices]:
    """Positions of the student and of the teacher in chunks, and which chunk each is in.

    Left out are chunks that enclose a token of zero width, and those of which a token is not predicted.
    """
    chunks = alignment.chunks
    row = rows_of(chunks.offsets)
    plain = ~chunks.encloses_zero_width
    found = []
    for flat, starts, ends in (
        (student, chunks.student_start, chunks.student_end),
        (teacher, chunks.teacher_start, chunks.teacher_end),
    ):
        chunk = np.repeat(np.arange(len(row)), ends - starts)
        index = flat.index(row[chunk], columns_in(starts, ends))
        plain &= np.bincount(chunk[index < 0], minlength=len(row)) == 0
        found.append((index, chunk))
    numbers = np.cumsum(plain) - 1
    (student_index, of_student), (teacher_index, of_teacher) = found
    mine, theirs = plain[of_student], plain[of_teacher]
    return student_index[mine], numbers[of_student[mine]], teacher_index[theirs], numbers[of_teacher[theirs]]


def _order(count: int, teachers: Sequence[_Spoken]) -> Indices:
    """The student's positions, those that most teachers speak to first, else as they were.

    A loss makes a chunk's logits of all who speak there, so that what is alone is best left to the end. The
    positions of a chunk stay together where there is one teacher, since it pairs all or none of them.
    """
    if len(teachers) > 1 and any(one.chunks is not None for one in teachers):
        return np.arange(count)
    spoken = np.zeros(count, dtype=np.int64)
    for one in teachers:
        spoken[one.paired] += 1
    return np.argsort(-spoken, kind="stable")
