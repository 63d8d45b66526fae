"""A step of training in the benches: a student and its objective, at the places of a collated batch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from dskd.nn import Batch, States, Teacher
from dskd.train.model import hidden_states

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from dskd.nn import Head, LossParts, Objective, TeacherModel

__all__ = ["Distilled", "teacher_states"]


class Distilled(nn.Module):
    """A student and what it is trained by.

    Args:
        student: a causal language model of transformers.
        student_head: its head.
        teacher: what of the teacher is the same for all batches; the model itself stays outside.
        objective: of one teacher, or of none.
    """

    def __init__(self, student: Any, student_head: Head, teacher: TeacherModel, objective: Objective) -> None:
        """See the class."""
        super().__init__()
        self.student, self.student_head, self.teacher = student, student_head, teacher
        self.objective = objective

    def forward(self, batch: Mapping[str, Tensor], teacher_hidden: Tensor | None, step: int) -> LossParts:
        """The loss of a batch that is a step.

        Args:
            batch: of `DistillationCollator`.
            teacher_hidden: `teacher_states`; None where there is no loss beside cross-entropy.
            step: its number.
        """
        states = hidden_states(self.student, batch["student_input_ids"], batch["student_attention_mask"])
        student = States(states[batch["row"], batch["column"]], batch["labels"], self.student_head)
        teachers = {}
        if teacher_hidden is not None:
            teachers["teacher"] = Teacher(self.teacher, teacher_hidden, batch["paired"])
        parts: LossParts = self.objective(Batch(student, teachers), step=step)
        return parts


@torch.no_grad()
def teacher_states(teacher: Any, batch: Mapping[str, Tensor]) -> Tensor:
    """`[pairs, D]`, of a model of transformers at the pairs of a batch."""
    states = hidden_states(teacher, batch["teacher_input_ids"], batch["teacher_attention_mask"])
    at_pairs: Tensor = states[batch["teacher_row"], batch["teacher_column"]]
    return at_pairs
