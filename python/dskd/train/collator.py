"""From rows of text to a batch: both tokenizations, what is supervised, and which tokens are the same.

Runs in the workers of a `DataLoader`. `encode` makes ids of a row (see `fitting`, `side`, `rendering`),
`collate` makes a batch of ids: those that a model sampled enter there.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from dskd.columns import Counts
from dskd.nn.loss import Needs
from dskd.nn.places import Moved, Places
from dskd.train.fitting import fit
from dskd.train.rows import read_row
from dskd.train.side import STUDENT

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from torch import Tensor

    from dskd.alignment import Aligner, Alignment
    from dskd.train.side import Encoded, Side

__all__ = ["Collated", "DistillationCollator", "EncodedRow", "TeacherSide", "Tokens"]

# ---- Rows ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class EncodedRow:
    """One row on all sides.

    Attributes:
        student: on the student's.
        teachers: on each teacher's, by its name; as many turns.
        shortened: whether its prompt lost something.
    """

    student: Encoded
    teachers: Mapping[str, Encoded]
    shortened: bool = False


@dataclass(frozen=True, slots=True)
class TeacherSide:
    """A teacher's side, and how it meets the student's.

    Attributes:
        side: how rows become its ids.
        aligner: of its vocabulary and the student's.
        needs: what the losses need of it.
    """

    side: Side
    aligner: Aligner
    needs: Needs = Needs(pairs=True)  # noqa: RUF009 - it is frozen


# ---- Batches ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Tokens(Moved):
    """The ids of one model, padded on the right.

    Attributes:
        input_ids: int64 `[batch, columns]`; what fills the padding is looked at by nobody.
        attention_mask: int64 `[batch, columns]`, 1 where there is a token.
    """

    input_ids: Tensor
    attention_mask: Tensor


@dataclass(frozen=True, eq=False)
class Collated(Moved):
    """A batch of rows.

    Attributes:
        student: its ids.
        teachers: those of each teacher, by its name.
        places: where it is supervised, and where its teachers speak to it.
        alignment_counts: int64 `[fields of Counts]` of each teacher, summed over the batch.
        cut: int64 each, by name: responses that lost their end, of the `student` and of each teacher;
            `shortened` prompts; `straddled` beginnings of turns, of all sides, see `Encoded`.
    """

    student: Tokens
    teachers: Mapping[str, Tokens]
    places: Places
    alignment_counts: Mapping[str, Tensor]
    cut: Mapping[str, Tensor]

    def __len__(self) -> int:
        """The number of rows."""
        return len(self.student.input_ids)


@dataclass(frozen=True, slots=True)
class DistillationCollator:
    """Makes the batches of `DistillationTrainer`; picklable.

    Attributes:
        student: the student's side.
        teachers: those of the teachers, by name; one teacher is `teacher`.
    """

    student: Side
    teachers: Mapping[str, TeacherSide]

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> Collated:
        """A batch of rows of text, see `dskd.train.rows`."""
        return self.collate([encoded for row in rows for encoded in self.encode(row)])

    def encode(self, row: Mapping[str, Any]) -> list[EncodedRow]:
        """A row of text in the ids of all sides; several where one cannot show all turns.

        Raises:
            ValueError: what is wrong with the row, or on which side it cannot be told what is to be learnt.
        """
        sides = {STUDENT: self.student, **{name: one.side for name, one in self.teachers.items()}}
        try:
            fitted = fit(read_row(row), sides)
        except ValueError as error:
            raise ValueError(f"{error}; the row is {shown(row)}") from error
        return [
            EncodedRow(one.sides[STUDENT], {name: one.sides[name] for name in self.teachers}, one.shortened)
            for one in fitted
        ]

    def refuse(self, rows: Any, name: str) -> None:
        """Looks at the first rows of a data set that is no stream: what is wrong with them is said early.

        Raises:
            ValueError: see `encode`; with the data set and the row.
        """
        for index in range(min(len(rows), _LOOKED_AT) if hasattr(rows, "__len__") else 0):
            try:
                self.encode(rows[index])
            except ValueError as error:
                raise ValueError(f"{name}, row {index} (from 0): {error}") from error

    def collate(self, rows: Sequence[EncodedRow]) -> Collated:
        """A batch of rows of ids: encoded texts, or what a model sampled."""
        student = [row.student for row in rows]
        teachers = {name: [row.teachers[name] for row in rows] for name in self.teachers}
        alignments = {
            name: _alignment(one.aligner, teachers[name], student) for name, one in self.teachers.items()
        }
        needs = {name: one.needs for name, one in self.teachers.items()}
        totals = {name: alignment.counts.total() for name, alignment in alignments.items()}
        teacher_labels = {name: [row.labels() for row in side] for name, side in teachers.items()}
        return Collated(
            _padded(student),
            {name: _padded(side) for name, side in teachers.items()},
            Places.of(alignments, [row.labels() for row in student], teacher_labels, needs=needs),
            {name: _counted(total) for name, total in totals.items()},
            _cuts(rows, student, teachers),
        )


def shown(row: Mapping[str, Any]) -> str:
    """A row as an error names it."""
    said = str(dict(row))
    return said if len(said) <= _SAID else f"{said[:_SAID]} ..."


_SAID = 200
"""Characters of a row in an error."""

_LOOKED_AT = 32
"""Rows of a data set that are looked at before a run."""


def _alignment(aligner: Aligner, teacher: Sequence[Encoded], student: Sequence[Encoded]) -> Alignment:
    """Of what both sides may share of each turn: reasoning too where both have it."""
    flags = [list(_both_reason(*row)) for row in zip(teacher, student, strict=True)]
    return aligner.align(
        teacher_labels=[row.shared_labels(both) for row, both in zip(teacher, flags, strict=True)],
        student_labels=[row.shared_labels(both) for row, both in zip(student, flags, strict=True)],
    )


def _both_reason(teacher: Encoded, student: Encoded) -> Iterator[bool]:
    for one, other in zip(teacher.turns, student.turns, strict=True):
        yield one.reasoning is not None and other.reasoning is not None


def _cuts(
    rows: Sequence[EncodedRow], student: Sequence[Encoded], teachers: Mapping[str, Sequence[Encoded]]
) -> dict[str, Tensor]:
    """What was cut: see `Collated`."""
    sides = {STUDENT: student, **teachers}
    found = {name: sum(not one.is_whole for one in side) for name, side in sides.items()}
    found["shortened"] = sum(row.shortened for row in rows)
    found["straddled"] = sum(one.straddled for side in sides.values() for one in side)
    return {name: torch.tensor(value) for name, value in found.items()}


def _counted(total: Counts) -> Tensor:
    return torch.tensor([int(getattr(total, item.name)[0]) for item in fields(Counts)])


def _padded(rows: Sequence[Encoded]) -> Tokens:
    shape = len(rows), max(len(row.ids) for row in rows)
    ids, mask = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.int64)
    for index, row in enumerate(rows):
        ids[index, : len(row.ids)] = row.ids
        mask[index, : len(row.ids)] = 1
    return Tokens(torch.from_numpy(ids), torch.from_numpy(mask))
