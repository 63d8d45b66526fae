"""The two spaces of dual-space distillation over rows of one's choice, without logits kept.

In the student's space rows of the teacher, read by the student's head, meet the student's own; in the
teacher's space rows of the student, read by the teacher's head, meet the teacher's own. Which rows these are
says the loss: pairs that are the same in both (`fused_dual_space`), or positions of each model by itself
(`fused_cross_model_attention`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import torch

from dskd.nn.divergences import divergence_and_gradient
from dskd.nn.elementwise import argmax, row_blocks
from dskd.nn.heads import UNREACHABLE
from dskd.nn.linear import ReadHead, zeros_for
from dskd.nn.losses.cross_entropy import cross_entropy_and_gradient

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor

    from dskd.nn.divergences import Divergence
    from dskd.nn.heads import Head
    from dskd.nn.linear import ChunkMemory, Made
    from dskd.nn.losses.cross_entropy import StudentRows
    from dskd.nn.teacher_statistics import TeacherStatistics

Compared: TypeAlias = "tuple[Tensor, Tensor]"

__all__ = [
    "STUDENT_MATRICES",
    "TEACHER_MATRICES",
    "Comparison",
    "ReadStates",
    "StudentSpace",
    "TeacherSpace",
]

STUDENT_MATRICES = 2
"""Of the width of the student's vocabulary that are there at once: logits of both sides.

Their gradient is made some rows at once, see `StudentRows.compare`; where that is all rows, it is a third.
"""

TEACHER_MATRICES = 2
"""Of the width of the teacher's: logits of both sides; one becomes the gradient."""


_PROJECTED = 1
"""The place of the logits of the teacher's side."""

_GRADIENT = 0
"""The place of their gradient, where the logits of the student's side come to lie afterwards."""


class ReadStates:
    """Hidden states that a head reads which learns nothing from it, and the gradient of the states.

    Args:
        states: `[m, width]`.
        head: of the other model.
        memory: of the chunks.
        place: of their logits in it.
    """

    def __init__(self, states: Tensor, head: Head, memory: ChunkMemory, place: int = _PROJECTED) -> None:
        """See the class."""
        self.states = states
        self._read = ReadHead(place, head.detached(), memory)
        self._gradient = zeros_for(states)

    def logits(self, rows: slice) -> Tensor:
        """Of reachable ids `[m, V]`, in the memory of the head."""
        return self._read.reachable_(self._read.logits(self.states[rows]))

    def backward(self, rows: slice, gradient: Tensor) -> None:
        """From the gradient of the logits, which is lost, to that of the states."""
        if self.states.requires_grad:
            made = self._read.backward(self.states[rows], gradient)
            self._gradient[rows] = made.to(self._gradient.dtype)

    def made(self) -> Made:
        """The states, and their gradient."""
        return self.states, self._gradient


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Comparison:
    """How a space compares its two sides.

    Attributes:
        divergence: D.
        mix: the parameter of D, where it has one.
        temperature: tau, on both sides.
        teacher_temperature: of the teacher's side besides.
        factor: what D is multiplied with.
        columns: int64, the ids that are compared; None: all.
    """

    divergence: Divergence
    mix: float | None = None
    temperature: float = 1.0
    teacher_temperature: float = 1.0
    factor: float = 1.0
    columns: Tensor | None = None

    def known_from(self, statistics: TeacherStatistics | None) -> TeacherStatistics | None:
        """The statistics, where they are all that it needs of the teacher."""
        is_linear = self.divergence == "kl" and self.columns is None
        fits = statistics is not None and is_linear and statistics.temperature == self.temperature
        return statistics if fits else None

    @property
    def is_plain(self) -> bool:
        """Whether the softmaxes are those of the logits as they are."""
        return self.temperature == self.teacher_temperature == 1 and self.columns is None

    def selected(self, logits: Tensor) -> Tensor:
        """Those of the ids that are compared."""
        return logits if self.columns is None else logits[:, self.columns]

    def of_logits(self, target: Tensor, logits: Tensor, kept: Tensor, weight: float) -> Compared:
        """`of_log_probs` of logits that are selected; both are lost."""
        return self._compared(target, logits, kept, weight, normalise=True)

    def of_log_probs(self, log_p: Tensor, log_q: Tensor, kept: Tensor, weight: float) -> Compared:
        """The sum over rows, and its weighted gradient by the student's logits.

        Args:
            log_p: `[m, columns]`, of the teacher's side.
            log_q: of the student's side.
            kept: bool `[m]`, the rows that take part.
            weight: of the sum, in the gradient only.

        Returns:
            A scalar, and `[m, columns]`.
        """
        return self._compared(log_p, log_q, kept, weight, normalise=False)

    def _compared(
        self, target: Tensor, given: Tensor, kept: Tensor, weight: float, *, normalise: bool
    ) -> Compared:
        """Some rows at once, from beginning to end; the gradient lies where the student's side was."""
        slopes, items = self.slopes(kept, weight, given.dtype), []
        for rows in row_blocks(given):
            log_p, log_q = target[rows], given[rows]
            if normalise:
                log_p = _log_probs(log_p, self.temperature * self.teacher_temperature)
                log_q = _log_probs(log_q, self.temperature)
            found, gradient = divergence_and_gradient(self.divergence, log_p, log_q, mix=self.mix)
            gradient.mul_(slopes[rows])
            items.append(found)
        return self.summed(torch.cat(items), kept), given

    def summed(self, items: Tensor, kept: Tensor) -> Tensor:
        """The sum of what takes part."""
        return self.factor * torch.where(kept, items, 0).sum()

    def slopes(self, kept: Tensor, weight: float, dtype: torch.dtype) -> Tensor:
        """`[m, 1]`: what the gradients by logits that were divided by tau are multiplied with."""
        return weight * self.factor / self.temperature * kept.to(dtype)[:, None]


def _log_probs(logits: Tensor, temperature: float) -> Tensor:
    """At the temperature, in place."""
    if temperature != 1:
        logits.div_(temperature)
    return torch.log_softmax(logits, -1, out=logits)


class StudentSpace:
    """t2s_kd, what trains the projector, and the cross-entropy of the positions that take part.

    Args:
        projected: the teacher's rows in the student's space, read by the student's head; None where the
            target is exact and there is no gate.
        student: the student's rows.
        how: they are compared; its `columns` are ids of the student.
        weights: of `t2s_ce` or `t2s_kl`, and of `t2s_kd`.
        memory: of the chunks.
        overlap: int64, the ids of the student in O, where the next two need it.
        by_distribution: train the projector by the teacher's distribution on O, not by a label.
        exact: compare with the teacher's own logits on O, not with the projected ones.

    Attributes:
        sums: of the terms.
        counts: `agreed`, rows where the projected teacher says y; `gated`, those that the gate lets through.
    """

    def __init__(
        self,
        projected: ReadStates | None,
        student: StudentRows,
        how: Comparison,
        weights: Mapping[str, float],
        memory: ChunkMemory,
        *,
        overlap: Tensor | None = None,
        by_distribution: bool = False,
        exact: bool = False,
    ) -> None:
        """See the class."""
        self._projected, self._student, self._how = projected, student, how
        self._weights, self._memory = weights, memory
        self._by_distribution, self._exact = by_distribution, exact
        # The softmaxes of t2s_kd are then those of both cross-entropies, and made once.
        self._as_they_are = how.is_plain and not exact and student.all_reachable
        zero = torch.zeros((), dtype=memory.dtype, device=memory.device)
        none = torch.zeros((), dtype=torch.int64, device=memory.device)
        self._overlap = none[None][:0] if overlap is None else overlap
        trained = "t2s_kl" if by_distribution else "t2s_ce"
        self.sums = ({} if projected is None else {trained: zero}) | {"t2s_kd": zero.clone()}
        self.counts = ({} if projected is None else {"agreed": none}) | {"gated": none.clone()}

    def add(
        self,
        rows: slice,
        positions: Tensor,
        y: Tensor,
        kept: Tensor,
        gate: Callable[[Tensor], Tensor],
        teacher: Tensor | None = None,
    ) -> None:
        """One chunk.

        Args:
            rows: of the projected states.
            positions: int64 `[m]`, of the student's states, one for each row.
            y: int64 `[m]`, what the projected teacher is to say.
            kept: bool `[m]`, the rows whose y trains the projector.
            gate: which rows take part in t2s_kd, of what the projected teacher says, int64 `[m]`.
            teacher: `[m, overlap]`, its logits on O, where these train the projector or are the target.
        """
        teacher = torch.zeros(len(kept), 0, device=kept.device) if teacher is None else teacher
        projected, passed = None, kept
        if self._projected is not None:
            projected, passed = self._project(self._projected, rows, y, kept, gate, teacher)
        target = self._target(teacher, projected)

        def add_t2s_kd(some: slice, logits: Tensor, gradient: Tensor) -> None:
            self._t2s_kd(target[some], logits, gradient, passed[some])

        self._student.compare(positions, add_t2s_kd, normalise=self._as_they_are)

    def _project(
        self,
        read: ReadStates,
        rows: slice,
        y: Tensor,
        kept: Tensor,
        gate: Callable[[Tensor], Tensor],
        teacher: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Trains the projector. Its logits, or log-probabilities, and what the gate lets through."""
        projected = read.logits(rows)
        said = argmax(projected)
        passed = gate(said)
        self.counts["agreed"] += (said == y).sum()
        self.counts["gated"] += passed.sum()
        if self._as_they_are:
            projected = torch.log_softmax(projected, -1, out=projected)
        if self._by_distribution:
            self._train_by_distribution(read, rows, projected, teacher, kept)
        else:
            self._train_by_label(read, rows, projected, y.where(kept, -1))
        return projected, passed

    def _target(self, teacher: Tensor, projected: Tensor | None) -> Tensor:
        """The teacher's side of t2s_kd, of the ids that are compared."""
        if projected is not None and not self._exact:
            return self._how.selected(projected)
        if self._how.columns is not None:
            return teacher  # compared on O, which is what it speaks of
        target = self._memory.take(_PROJECTED, len(teacher), self._student.size)
        return target.fill_(UNREACHABLE).index_copy_(1, self._overlap, teacher)

    def _train_by_label(self, read: ReadStates, rows: slice, projected: Tensor, y: Tensor) -> None:
        """t2s_ce; the projected logits, or log-probabilities, stay."""
        gradient = self._memory.take(_GRADIENT, *projected.shape)
        log_probs = projected if self._as_they_are else torch.log_softmax(projected, -1, out=gradient)
        items = cross_entropy_and_gradient(log_probs, y, self._weights["t2s_ce"], gradient)
        self.sums["t2s_ce"] += items.sum()
        read.backward(rows, gradient)

    def _train_by_distribution(
        self, read: ReadStates, rows: slice, projected: Tensor, teacher: Tensor, kept: Tensor
    ) -> None:
        """t2s_kl; the projected logits, or log-probabilities, stay."""
        on_overlap = Comparison(divergence="kl", columns=None)
        log_p, log_q = teacher.log_softmax(-1), projected[:, self._overlap].log_softmax(-1)
        total, of_shared = on_overlap.of_log_probs(log_p, log_q, kept, self._weights["t2s_kl"])
        self.sums["t2s_kl"] += total
        gradient = self._memory.take(_GRADIENT, *projected.shape).zero_()
        read.backward(rows, gradient.index_copy_(1, self._overlap, of_shared))

    def _t2s_kd(self, target: Tensor, logits: Tensor, gradient: Tensor, passed: Tensor) -> None:
        """The divergence of some of the student's logits, which are lost as the target is."""
        if self._as_they_are:
            total, made = self._how.of_log_probs(target, logits, passed, self._weights["t2s_kd"])
        else:
            selected = self._how.selected(self._student.reachable_(logits))
            total, made = self._how.of_logits(target, selected, passed, self._weights["t2s_kd"])
        self.sums["t2s_kd"] += total
        if self._how.columns is None:
            gradient.add_(made)
        else:
            gradient.index_add_(1, self._how.columns, made)


class TeacherSpace:
    """s2t_kd of the teacher's logits; of its statistics, where these are enough, see `KnownTeacherSpace`.

    Args:
        carried: the student's rows in the teacher's space, read by the teacher's head.
        how: they are compared; its `columns` are ids of the teacher.
        weight: of `s2t_kd`.
        memory: of the chunks.

    Attributes:
        sum: of the term.
    """

    def __init__(
        self,
        carried: ReadStates,
        how: Comparison,
        weight: float,
        memory: ChunkMemory,
    ) -> None:
        """See the class."""
        self._carried, self._how, self._weight = carried, how, weight
        self.sum = torch.zeros((), dtype=memory.dtype, device=memory.device)

    def add(self, rows: slice, teacher: Tensor, kept: Tensor) -> None:
        """One chunk.

        Args:
            rows: of the carried states.
            teacher: `[m, V_t]`, its logits of reachable ids, which are lost.
            kept: bool `[m]`, the rows that take part.
        """
        logits = self._carried.logits(rows)
        selected = self._how.selected(teacher), self._how.selected(logits)
        total, gradient = self._how.of_logits(*selected, kept, self._weight)
        self.sum += total
        if self._how.columns is not None:
            gradient = logits.zero_().index_copy_(1, self._how.columns, gradient)
        self._carried.backward(rows, gradient)

    def made(self) -> Made:
        """The carried states, and their gradient."""
        return self._carried.made()
