"""Where a batch is supervised and where it is aligned: the hidden states that a loss needs, and no others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from dskd.nn.heads import Head
    from dskd.nn.teacher_statistics import TeacherStatistics

__all__ = ["AlignedStates", "Positions"]


@dataclass(frozen=True, slots=True, eq=False)
class Positions:
    """Flat int64 indices of predicting positions: the state there predicts the token of the next column.

    Attributes:
        row: `[labels]`, rows of the supervised student positions.
        column: `[labels]`, their columns.
        labels: `[labels]`, the token that each predicts.
        paired: `[pairs]`, which of the supervised positions predicts the student token of each pair.
        teacher_row: `[pairs]`, where the teacher predicts its token of the pair.
        teacher_column: `[pairs]`.
        attended_row: `[teacher_labels]`, rows of the supervised teacher positions.
        attended_column: `[teacher_labels]`, their columns.
        teacher_labels: `[teacher_labels]`, the token that each predicts.
    """

    row: Tensor
    column: Tensor
    labels: Tensor
    paired: Tensor
    teacher_row: Tensor
    teacher_column: Tensor
    attended_row: Tensor
    attended_column: Tensor
    teacher_labels: Tensor

    def of_student(self, values: Tensor) -> Tensor:
        """The supervised values of the student's `[batch, columns, ..]`: `[labels, ..]`."""
        return values[self.row, self.column]

    def of_teacher(self, hidden_states: Tensor) -> Tensor:
        """The paired states of `[batch, columns, D]`: `[pairs, D]`."""
        return hidden_states[self.teacher_row, self.teacher_column]

    def of_attended(self, values: Tensor) -> Tensor:
        """The supervised values of the teacher's `[batch, columns, ..]`: `[teacher_labels, ..]`."""
        return values[self.attended_row, self.attended_column]


@dataclass(frozen=True, slots=True, eq=False)
class AlignedStates:
    """What a loss over exact pairs needs of both models.

    Attributes:
        student_hidden: `[labels, d]`, after the student's final norm, at every supervised position.
        labels: int64 `[labels]`, the token that each predicts.
        paired: int64 `[pairs]`, which of them predicts the student's token of each pair; each once.
        teacher_hidden: `[pairs, D]`, after the teacher's final norm.
        teacher_head: with frozen weights.
        student_head: live.
        statistics: of the teacher at the pairs, where somebody kept them.
    """

    student_hidden: Tensor
    labels: Tensor
    paired: Tensor
    teacher_hidden: Tensor
    teacher_head: Head
    student_head: Head
    statistics: TeacherStatistics | None = None

    @property
    def unpaired(self) -> Tensor:
        """int64 `[labels - pairs]`, the supervised positions that no pair has."""
        alone = torch.ones(len(self.labels), dtype=torch.bool, device=self.labels.device)
        alone[self.paired] = False
        return alone.nonzero()[:, 0]
