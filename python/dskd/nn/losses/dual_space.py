"""Dual-space knowledge distillation over exact pairs (arXiv 2406.17328, 2504.11426)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypeAlias

import torch
from torch import nn
from torch.nn import functional

from dskd.nn.divergences import Divergence, divergence
from dskd.nn.reduction import TermSums

if TYPE_CHECKING:
    from torch import Tensor

    from dskd.nn.positions import AlignedStates
    from dskd.nn.projectors import Projectors

__all__ = ["DualSpaceLoss", "Gate", "Spaces", "dual_space"]

Gate: TypeAlias = Literal["prediction", "gold"]
Spaces: TypeAlias = Literal["both", "student", "teacher"]
Target: TypeAlias = Literal["prediction", "gold"]


def dual_space(  # noqa: PLR0913 - the options of the papers
    states: AlignedStates,
    teacher_to_student: Tensor,
    student_to_teacher: Tensor,
    vocabulary_map: Tensor,
    *,
    divergence_name: Divergence = "kl",
    temperature: float = 1.0,
    gate: Gate | None = None,
    spaces: Spaces = "both",
    target: Target = "prediction",
) -> TermSums:
    """The three terms, each summed over the pairs.

    In the student's space `z_ts = (h_t P_ts) sg(W_s)^T`, in the teacher's `z_st = (h_s P_st) W_t^T`, with
    each head's own transforms:

        t2s_ce = CE(z_ts, y)                                     moves P_ts only
        t2s_kd = D(softmax(sg(z_ts) / tau), softmax(z_s / tau))  moves the student, its head too
        s2t_kd = D(softmax(z_t / tau), softmax(z_st / tau))      moves the student's body, and P_st if trained

    Args:
        states: the hidden states and heads at the pairs.
        teacher_to_student: P_ts `[D, d]`.
        student_to_teacher: P_st `[d, D]`.
        vocabulary_map: int64 `[V_t]`, the student's id of each teacher id, or -1.
        divergence_name: D.
        temperature: tau, of the divergences on both sides.
        gate: which pairs take part in t2s_kd: those where argmax z_ts is the teacher's `prediction` in the
            student's vocabulary, or the `gold` token; None: all.
        spaces: `student` has the first two terms, `teacher` the last.
        target: y; the teacher's `prediction` (its argmax, the lowest id of several) in the student's
            vocabulary, or the `gold` token. Where the prediction has no counterpart there, the pair leaves
            t2s_ce, and t2s_kd if that is gated by the prediction.

    Returns:
        Sums `t2s_ce`, `t2s_kd`, `s2t_kd`; counts `unmapped` (predictions without a counterpart), `agreed`
        (pairs where argmax z_ts is y) and, with a gate, `gated` (those it lets through).
    """
    with torch.no_grad():
        teacher_logits = states.teacher_head.reachable(states.teacher_head.logits(states.teacher_hidden))
        predicted = vocabulary_map[teacher_logits.argmax(-1)]
    sums, counts = {}, {"unmapped": (predicted < 0).sum()}
    if spaces != "teacher":
        y = predicted if target == "prediction" else states.labels
        projected = states.teacher_hidden.detach().to(teacher_to_student.dtype) @ teacher_to_student
        head = states.student_head.detached()
        z_ts = head.reachable(head.logits(projected))
        sums["t2s_ce"] = functional.cross_entropy(z_ts, y, ignore_index=-1, reduction="sum")
        z_s = states.student_head.reachable(states.student_logits)
        items = divergence(divergence_name, z_ts.detach(), z_s, temperature=temperature)
        said = z_ts.argmax(-1)
        counts["agreed"] = (said == y).sum()
        if gate is not None:
            passed = said == (predicted if gate == "prediction" else states.labels)
            items = items * passed
            counts["gated"] = passed.sum()
        sums["t2s_kd"] = items.sum()
    if spaces != "student":
        projected = states.student_hidden.to(student_to_teacher.dtype) @ student_to_teacher
        head = states.teacher_head.detached()
        z_st = head.reachable(head.logits(projected))
        sums["s2t_kd"] = divergence(divergence_name, teacher_logits, z_st, temperature=temperature).sum()
    return TermSums(sums, counts)


class DualSpaceLoss(nn.Module):
    """Keeps the options of `dual_space`, and its projectors.

    Args:
        projectors: of the two models.
        vocabulary_map: int64 `[V_t]`: `aligner.vocabulary_map.teacher_to_student`.
        divergence_name: see `dual_space`, as the others.
        temperature: tau.
        gate: of t2s_kd.
        spaces: which terms there are.
        target: y.
    """

    vocabulary_map: Tensor

    def __init__(
        self,
        projectors: Projectors,
        vocabulary_map: Tensor,
        *,
        divergence_name: Divergence = "kl",
        temperature: float = 1.0,
        gate: Gate | None = None,
        spaces: Spaces = "both",
        target: Target = "prediction",
    ) -> None:
        """See the class."""
        super().__init__()
        self.projectors = projectors
        self.register_buffer("vocabulary_map", vocabulary_map, persistent=False)
        self.divergence_name = divergence_name
        self.temperature = temperature
        self.gate = gate
        self.spaces = spaces
        self.target = target

    def forward(self, states: AlignedStates) -> TermSums:
        """The terms over the pairs of a micro-batch."""
        return dual_space(
            states,
            self.projectors.teacher_to_student,
            self.projectors.student_to_teacher,
            self.vocabulary_map,
            divergence_name=self.divergence_name,
            temperature=self.temperature,
            gate=self.gate,
            spaces=self.spaces,
            target=self.target,
        )
