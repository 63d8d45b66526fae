"""Where a batch is supervised and where it is aligned: the hidden states that a loss needs, and no others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from dskd.nn.heads import Head

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
    """

    row: Tensor
    column: Tensor
    labels: Tensor
    paired: Tensor
    teacher_row: Tensor
    teacher_column: Tensor

    def of_student(self, hidden_states: Tensor) -> Tensor:
        """The supervised states of `[batch, columns, d]`: `[labels, d]`."""
        return hidden_states[self.row, self.column]

    def of_teacher(self, hidden_states: Tensor) -> Tensor:
        """The paired states of `[batch, columns, D]`: `[pairs, D]`."""
        return hidden_states[self.teacher_row, self.teacher_column]


@dataclass(frozen=True, slots=True, eq=False)
class AlignedStates:
    """What a loss over exact pairs needs of both models, one row a pair.

    Attributes:
        teacher_hidden: `[pairs, D]`, after the teacher's final norm.
        student_hidden: `[pairs, d]`, after the student's final norm.
        student_logits: `[pairs, V_s]`, `student_head.logits(student_hidden)`: whoever has a cross-entropy has
            them.
        labels: int64 `[pairs]`, the student's gold token of each pair.
        teacher_head: with frozen weights.
        student_head: live.
    """

    teacher_hidden: Tensor
    student_hidden: Tensor
    student_logits: Tensor
    labels: Tensor
    teacher_head: Head
    student_head: Head
