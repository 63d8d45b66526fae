"""Dual-space distillation without logits kept: `dual_space`, a chunk of pairs at a time.

Per chunk and space there are the logits of both sides; they become log-probabilities, the divergence and the
gradient of the student's side in the same memory, and one product with the head carries that gradient to the
hidden states. The student's logits serve the cross-entropy and t2s_kd at once, with one gradient for both.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from dskd.nn.divergences import divergence_and_gradient
from dskd.nn.linear import CHUNK_MEMORY, ReadHead, chunk_memory_of, computing, with_gradients
from dskd.nn.losses.cross_entropy import StudentRows, cross_entropy_and_gradient
from dskd.nn.reduction import CROSS_ENTROPY, LossParts

if TYPE_CHECKING:
    from torch import Tensor

    from dskd.nn.divergences import Divergence
    from dskd.nn.linear import ChunkMemory, Made
    from dskd.nn.losses.dual_space_options import DualSpaceOptions, VocabularyMaps
    from dskd.nn.positions import AlignedStates
    from dskd.nn.reduction import Reduction
    from dskd.nn.teacher_statistics import TeacherStatistics

__all__ = ["fused_dual_space"]

_NOTHING = -1e30
"""A logit without probability: finite, so that 0 times it is 0."""


def fused_dual_space(
    states: AlignedStates,
    to_student: Tensor,
    to_teacher: Tensor,
    maps: VocabularyMaps,
    options: DualSpaceOptions,
    *,
    reduction: Reduction,
    chunk_memory: int = CHUNK_MEMORY,
) -> LossParts:
    """`weighted(dual_space(states, ...))`, value and every gradient, computed in the forward.

    Args:
        states: as of `dual_space`.
        to_student: `[pairs, d]`.
        to_teacher: `[pairs, D]`.
        maps: of the two vocabularies.
        options: those of `dual_space`.
        reduction: of the step.
        chunk_memory: bytes for the logits of one chunk.

    Returns:
        The loss, whose backward can run once; it reaches the student's states and head, `to_student` and
        `to_teacher`, with zeros where nothing is to be summed.
    """
    options.require(maps)
    memory = chunk_memory_of(states.student_head, states.teacher_head, _MATRICES, chunk_memory)
    with computing(memory):
        fused = _Fused(states, to_student, to_teacher, maps, options, memory)
        parts = fused.run(reduction)
    return parts._replace(loss=with_gradients(parts.loss, fused.made()))


class _Fused:
    """One call: the heads, what is added up, and the chunks."""

    def __init__(
        self,
        states: AlignedStates,
        to_student: Tensor,
        to_teacher: Tensor,
        maps: VocabularyMaps,
        options: DualSpaceOptions,
        memory: ChunkMemory,
    ) -> None:
        self.states, self.maps, self.options = states, maps, options
        self.to_student, self.to_teacher = to_student, to_teacher
        student, teacher = states.student_head, states.teacher_head.detached()
        self.memory = memory
        # The two spaces are worked on one after the other, in the same memory.
        self.projected = ReadHead("others", student.detached(), memory)
        self.teacher = ReadHead("logits", teacher, memory)
        self.carried = ReadHead("others", teacher, memory)
        self.to_student_gradient = torch.zeros_like(to_student)
        self.to_teacher_gradient = torch.zeros_like(to_teacher)
        self.sums = {
            name: torch.zeros((), dtype=memory.dtype, device=memory.device) for name in self._terms()
        }
        none = torch.zeros((), dtype=torch.int64, device=memory.device)
        self.counts = {name: none.clone() for name in self._counted()}

    def _terms(self) -> list[str]:
        options = self.options
        trained = "t2s_kl" if options.t2s_target == "distribution" else "t2s_ce"
        student = [] if options.spaces == "teacher" else [trained, "t2s_kd"]
        return student if options.spaces == "student" else [*student, "s2t_kd"]

    def _counted(self) -> list[str]:
        student = [] if self.options.spaces == "teacher" else ["agreed"]
        return ["unmapped", *student, *(["gated"] if student and self.options.gate is not None else [])]

    def run(self, reduction: Reduction) -> LossParts:
        """All chunks."""
        states, pairs = self.states, len(self.states.paired)
        passed = self._pass_gate() if self._gate_needs_all_pairs() else None
        self.weights = self.options.weights(reduction, pairs, pairs if passed is None else passed.sum())
        self.student = StudentRows(
            states.student_hidden, states.student_head, states.labels, self.memory, reduction.cross_entropy
        )
        for rows in self.memory.chunks(pairs):
            self._pairs(rows, None if passed is None else passed[rows])
        self.student.take(states.unpaired)
        sums = {CROSS_ENTROPY: self.student.cross_entropy, **self.sums}
        loss = torch.stack([self.weights[name] * value for name, value in sums.items()]).sum()
        return LossParts(loss, sums, self.counts)

    def made(self) -> list[Made]:
        """What the loss is a function of, each with its gradient."""
        carried = [(self.to_student, self.to_student_gradient), (self.to_teacher, self.to_teacher_gradient)]
        return [*self.student.made(), *carried]

    # ---- The gate ----------------------------------------------------------------------------------------

    def _gate_needs_all_pairs(self) -> bool:
        """Whether what a pair weighs depends on how the gate goes for all of them."""
        options = self.options
        if options.gate is None or options.spaces == "teacher":
            return options.gated_mean and options.drop_unmapped
        return options.gated_mean or options.gate_threshold < 1

    def _pass_gate(self) -> Tensor:
        """Looks at all pairs before the first is weighed: which of them take part in t2s_kd."""
        chunks = list(self.memory.chunks(len(self.states.paired)))
        predicted = [self._teacher(rows)[1] for rows in chunks]
        said = [self._projected_logits(rows).argmax(-1) for rows in chunks]
        none = self.states.paired[:0]
        return self._let_through(torch.cat([none, *said]), torch.cat([none, *predicted]), slice(None))

    def _let_through(self, said: Tensor, predicted: Tensor, rows: slice) -> Tensor:
        kept = self._kept(predicted)
        if self.options.gate is None:
            return kept
        return self.options.let_through(said, predicted, self._gold(rows)) & kept

    def _kept(self, predicted: Tensor) -> Tensor:
        return predicted >= 0 if self.options.drop_unmapped else torch.ones_like(predicted, dtype=torch.bool)

    # ---- One chunk ---------------------------------------------------------------------------------------

    def _pairs(self, rows: slice, passed: Tensor | None) -> None:
        """The pairs of these rows, in both spaces."""
        teacher, predicted = self._teacher(rows)
        self.counts["unmapped"] += (predicted < 0).sum()
        kept = self._kept(predicted)
        needs_overlap = self._student_space_needs_overlap()
        on_overlap = teacher[:, self.maps.shared()[0]] if needs_overlap else teacher[:0]
        if self.options.spaces != "student":
            self._teacher_space(rows, teacher, kept)
        positions = self.states.paired[rows]
        logits, gradient = self.student.logits(positions)
        if self.options.spaces != "teacher":
            projected = self._projected_logits(rows)
            passed = self._counted_through(projected.argmax(-1), predicted, rows, passed)
            self._train_projector(rows, projected, predicted, on_overlap)
            if self.options.target == "exact":
                projected.fill_(_NOTHING).index_copy_(1, self.maps.shared()[1], on_overlap)
            self._t2s_kd(projected, logits, gradient, passed)
        self.student.backward(positions, gradient)

    def _teacher(self, rows: slice) -> tuple[Tensor, Tensor]:
        """Its logits, none where they are not needed, and its predictions in the student's vocabulary."""
        statistics = self.states.statistics
        if statistics is None:
            logits = self._teacher_logits(rows)
            return logits, self.maps.to_student[logits.argmax(-1)]
        logits = self._teacher_logits(rows) if self._needs_teacher_logits() else self.to_teacher[:0]
        return logits, self.maps.to_student[statistics.predicted[rows]]

    def _needs_teacher_logits(self) -> bool:
        """Although there are statistics."""
        in_teacher_space = self.options.spaces != "student" and not self._keeps_teacher_statistics()
        return in_teacher_space or self._student_space_needs_overlap()

    def _student_space_needs_overlap(self) -> bool:
        options = self.options
        needs = options.t2s_target == "distribution" or options.target == "exact"
        return options.spaces != "teacher" and needs

    def _keeps_teacher_statistics(self) -> bool:
        """Whether the statistics are all that the teacher's space needs to know of the teacher."""
        statistics, options = self.states.statistics, self.options
        is_linear = options.of_teacher_space == "kl" and options.s2t_columns == "all"
        return statistics is not None and is_linear and statistics.temperature == options.temperature

    def _teacher_logits(self, rows: slice) -> Tensor:
        return self.teacher.reachable_(self.teacher.logits(self.states.teacher_hidden[rows]))

    def _projected_logits(self, rows: slice) -> Tensor:
        return self.projected.reachable_(self.projected.logits(self.to_student[rows]))

    # ---- The student's space -----------------------------------------------------------------------------

    def _counted_through(self, said: Tensor, predicted: Tensor, rows: slice, passed: Tensor | None) -> Tensor:
        """Which of the pairs take part in t2s_kd; counts them, and those where z_ts says y."""
        y = self._gold(rows) if self.options.t2s_target == "gold" else predicted
        self.counts["agreed"] += (said == y).sum()
        passed = self._let_through(said, predicted, rows) if passed is None else passed
        if self.options.gate is not None:
            self.counts["gated"] += passed.sum()
        return passed

    def _gold(self, rows: slice) -> Tensor:
        return self.states.labels[self.states.paired[rows]]

    def _train_projector(self, rows: slice, projected: Tensor, predicted: Tensor, on_overlap: Tensor) -> None:
        """t2s_ce or t2s_kl; the projected logits stay."""
        kept = self._kept(predicted)
        if self.options.t2s_target == "distribution":
            self._train_by_distribution(rows, projected, on_overlap, kept)
        else:
            y = self._gold(rows) if self.options.t2s_target == "gold" else predicted
            self._train_by_label(rows, projected, y.where(kept, -1))

    def _train_by_label(self, rows: slice, projected: Tensor, y: Tensor) -> None:
        gradient = self.memory.take("spare", *projected.shape)
        log_probs = torch.log_softmax(projected, -1, out=gradient)
        items = cross_entropy_and_gradient(log_probs, y, self.weights["t2s_ce"], gradient)
        self.sums["t2s_ce"] += items.sum()
        self._projected_backward(rows, gradient)

    def _train_by_distribution(
        self, rows: slice, projected: Tensor, on_overlap: Tensor, kept: Tensor
    ) -> None:
        shared = self.maps.shared()[1]
        log_p, log_q = on_overlap.log_softmax(-1), projected[:, shared].log_softmax(-1)
        items, of_shared = divergence_and_gradient("kl", log_p, log_q)
        self.sums["t2s_kl"] += torch.where(kept, items, 0).sum()
        of_shared.mul_(self.weights["t2s_kl"] * kept.to(of_shared.dtype)[:, None])
        gradient = self.memory.take("spare", *projected.shape).zero_()
        self._projected_backward(rows, gradient.index_copy_(1, shared, of_shared))

    def _projected_backward(self, rows: slice, gradient: Tensor) -> None:
        if self.to_student.requires_grad:
            made = self.projected.backward(self.to_student[rows], gradient)
            self.to_student_gradient[rows] = made.to(self.to_student.dtype)

    def _t2s_kd(self, target: Tensor, logits: Tensor, gradient: Tensor, passed: Tensor) -> None:
        """The divergence of the student's logits, which are lost as the target is."""
        options = self.options
        self.projected.reachable_(logits)
        shared = self.maps.shared()[1] if options.columns == "overlap" else None
        if shared is not None:
            target, logits = target[:, shared], logits[:, shared]
        items, made = self._divergence(options.divergence, target, logits)
        self.sums["t2s_kd"] += options.of_divergences * torch.where(passed, items, 0).sum()
        made.mul_(self._row_weights("t2s_kd", passed))
        if shared is None:
            gradient.add_(made)
        else:
            gradient.index_add_(1, shared, made)

    def _divergence(self, name: Divergence, target: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Items and the gradient by the tempered logits; both matrices are lost."""
        if self.options.temperature != 1:
            target.div_(self.options.temperature)
            logits.div_(self.options.temperature)
        log_p = torch.log_softmax(target, -1, out=target)
        log_q = torch.log_softmax(logits, -1, out=logits)
        return divergence_and_gradient(name, log_p, log_q, mix=self.options.mix_of(name))

    def _row_weights(self, term: str, kept: Tensor) -> Tensor:
        weight = self.weights[term] * self.options.of_divergences / self.options.temperature
        return weight * kept.to(self.memory.dtype)[:, None]

    # ---- The teacher's space -----------------------------------------------------------------------------

    def _teacher_space(self, rows: slice, teacher: Tensor, kept: Tensor) -> None:
        """s2t_kd; the teacher's logits are lost."""
        states = self.to_teacher[rows]
        logits = self.carried.reachable_(self.carried.logits(states))
        if self.states.statistics is not None and self._keeps_teacher_statistics():
            self._s2t_kd_by_statistics(rows, self.states.statistics[rows], logits, kept)
            return
        shared = self.maps.shared()[0] if self.options.s2t_columns == "overlap" else None
        of_shared = logits if shared is None else logits[:, shared]
        target = teacher if shared is None else teacher[:, shared]
        items, gradient = self._divergence(self.options.of_teacher_space, target, of_shared)
        self.sums["s2t_kd"] += self.options.of_divergences * torch.where(kept, items, 0).sum()
        if self.to_teacher.requires_grad:
            gradient.mul_(self._row_weights("s2t_kd", kept))
            if shared is not None:
                gradient = logits.zero_().index_copy_(1, shared, gradient)
            made = self.carried.backward(states, gradient)
            self.to_teacher_gradient[rows] = made.to(states.dtype)

    def _s2t_kd_by_statistics(
        self, rows: slice, statistics: TeacherStatistics, logits: Tensor, kept: Tensor
    ) -> None:
        """KL from what is kept of the teacher, see `TeacherStatistics`."""
        states, tau = self.to_teacher[rows], self.options.temperature
        highest = logits.amax(-1, keepdim=True)
        logits.sub_(highest).div_(tau).exp_()
        total = logits.sum(-1)
        log_total = highest[:, 0] / tau + total.log()
        slope = self.carried.scale / tau
        mean = slope * ((states.to(total.dtype) * statistics.mean_row).sum(-1) + statistics.mean_bias)
        items = statistics.negative_entropy - mean + log_total
        self.sums["s2t_kd"] += self.options.of_divergences * torch.where(kept, items, 0).sum()
        if self.to_teacher.requires_grad:
            # logits / total is the softmax; its rows are divided where they are short.
            made = self.carried.multiplied(logits) / total[:, None] - statistics.mean_row
            weight = self._row_weights("s2t_kd", kept) * self.carried.scale
            self.to_teacher_gradient[rows] = (weight * made).to(states.dtype)


_MATRICES = 5
"""Of a vocabulary's width that are there at once: four by name, and one inside of a divergence."""
