"""Dual-space distillation without logits kept: `dual_space`, a chunk of pairs at a time.

Per chunk and space there are the logits of both sides; they become log-probabilities, the divergence and the
gradient of the student's side in the same memory, and one product with the head carries that gradient to the
hidden states. The student's logits serve the cross-entropy and t2s_kd at once, with one gradient for both.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from dskd.nn.linear import (
    CHUNK_MEMORY,
    ReadHead,
    chunk_memory_of,
    computing,
    with_gradients,
    zeros_for,
)
from dskd.nn.losses.cross_entropy import StudentRows
from dskd.nn.losses.spaces import (
    STUDENT_MATRICES,
    TEACHER_MATRICES,
    Comparison,
    ReadStates,
    StudentSpace,
    TeacherSpace,
)
from dskd.nn.reduction import CROSS_ENTROPY, LossParts

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from dskd.nn.divergences import Divergence
    from dskd.nn.linear import ChunkMemory, Made
    from dskd.nn.losses.dual_space_options import DualSpaceOptions, VocabularyMaps
    from dskd.nn.positions import AlignedStates
    from dskd.nn.reduction import Reduction
    from dskd.nn.teacher_statistics import TeacherStatistics

__all__ = ["fused_dual_space"]


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
    of_teacher = _in_teacher_space(options, maps)
    memory = chunk_memory_of(
        [
            (states.student_head, STUDENT_MATRICES + (options.speaks_of_overlap and _COPIES)),
            (states.teacher_head, _teacher_matrices(of_teacher, states.statistics)),
        ],
        budget=chunk_memory,
        most=len(states.labels),
    )
    with computing(memory):
        fused = _Fused(states, to_student, to_teacher, maps, options, memory)
        parts = fused.run(reduction)
    return parts._replace(loss=with_gradients(parts.loss, fused.made()))


_COPIES = 2
"""Of columns, of both sides, where only some are compared."""


def _teacher_matrices(how: Comparison, statistics: TeacherStatistics | None) -> int:
    if how.is_known_by(statistics):
        return 1
    return TEACHER_MATRICES + (how.columns is not None and _COPIES)


def _in_teacher_space(options: DualSpaceOptions, maps: VocabularyMaps) -> Comparison:
    on_overlap = options.s2t_columns == "overlap" and options.spaces != "student"
    return _comparison(options, options.of_teacher_space, maps.shared()[0] if on_overlap else None)


def _comparison(options: DualSpaceOptions, divergence: Divergence, columns: Tensor | None) -> Comparison:
    return Comparison(
        divergence=divergence,
        mix=options.mix_of(divergence),
        temperature=options.temperature,
        factor=options.of_divergences,
        columns=columns,
    )


class _Fused:
    """One call: the gate, both spaces over the same pairs, and the chunks."""

    def __init__(
        self,
        states: AlignedStates,
        to_student: Tensor,
        to_teacher: Tensor,
        maps: VocabularyMaps,
        options: DualSpaceOptions,
        memory: ChunkMemory,
    ) -> None:
        self.states, self.maps, self.options, self.memory = states, maps, options, memory
        # The two spaces are worked on one after the other, in the same memory.
        self.projected = ReadStates(to_student, states.student_head, memory) if options.projects else None
        self.unprojected = (to_student, zeros_for(to_student))
        self.of_teacher = _in_teacher_space(options, maps)
        place = 0 if self.of_teacher.is_known_by(states.statistics) else 1
        self.carried = ReadStates(to_teacher, states.teacher_head, memory, place)
        self.teacher = ReadHead(0, states.teacher_head.detached(), memory)
        self.unmapped = torch.zeros((), dtype=torch.int64, device=memory.device)

    def run(self, reduction: Reduction) -> LossParts:
        """All chunks."""
        states, options, pairs = self.states, self.options, len(self.states.paired)
        passed, weights = None, options.weights(reduction, pairs, pairs)
        if self._weights_need_all_pairs():
            kept, passed = self._look_at_all_pairs()
            weights = options.weights(reduction, int(kept.sum()), int(passed.sum()))
        self.student = StudentRows(
            states.student_hidden, states.student_head, states.labels, self.memory, reduction.cross_entropy
        )
        in_student = None if options.spaces == "teacher" else self._student_space(weights)
        in_teacher = None if options.spaces == "student" else self._teacher_space(weights)
        for rows in self.memory.chunks(pairs):
            self._pairs(rows, in_student, in_teacher, None if passed is None else passed[rows])
        self.student.take(states.unpaired)
        sums, counts = {CROSS_ENTROPY: self.student.cross_entropy}, {"unmapped": self.unmapped}
        if in_student is not None:
            sums |= in_student.sums
            counts |= in_student.counts
            if options.gate is None:
                del counts["gated"]
        if in_teacher is not None:
            sums["s2t_kd"] = in_teacher.sum
        loss = torch.stack([weights[name] * value for name, value in sums.items()]).sum()
        return LossParts(loss, sums, counts)

    def made(self) -> list[Made]:
        """What the loss is a function of, each with its gradient."""
        projected = self.unprojected if self.projected is None else self.projected.made()
        return [*self.student.made(), projected, self.carried.made()]

    def _student_space(self, weights: Mapping[str, float]) -> StudentSpace:
        options = self.options
        overlap = self.maps.shared()[1] if options.speaks_of_overlap else None
        return StudentSpace(
            self.projected,
            self.student,
            _comparison(options, options.divergence, overlap if options.columns == "overlap" else None),
            weights,
            self.memory,
            overlap=overlap,
            by_distribution=options.t2s_target == "distribution",
            exact=options.target == "exact",
        )

    def _teacher_space(self, weights: Mapping[str, float]) -> TeacherSpace:
        weight, statistics = weights["s2t_kd"], self.states.statistics
        return TeacherSpace(self.carried, self.of_teacher, weight, self.memory, statistics)

    # ---- The gate, and what is dropped -------------------------------------------------------------------

    def _weights_need_all_pairs(self) -> bool:
        """Whether what a pair weighs depends on all of them: on how many there are, or on the gate."""
        options = self.options
        counted = options.gated_mean or options.normaliser == "micro_batch"
        gated = options.gate is not None and options.spaces != "teacher"
        return (options.drop_unmapped and counted) or (
            gated and (options.gated_mean or options.gate_threshold < 1)
        )

    def _look_at_all_pairs(self) -> tuple[Tensor, Tensor]:
        """Before the first is weighed: which of them are not dropped, and which take part in t2s_kd."""
        chunks = list(self.memory.chunks(len(self.states.paired)))
        none = self.states.paired[:0]
        predicted = torch.cat([none, *(self._teacher(rows, needs_logits=False)[1] for rows in chunks)])
        kept = self.options.kept(predicted)
        if self.options.gate is None or self.options.spaces == "teacher" or self.projected is None:
            return kept, kept
        projected = self.projected
        said = torch.cat([none, *(projected.logits(rows).argmax(-1) for rows in chunks)])
        return kept, self._let_through(said, predicted, slice(None))

    def _let_through(self, said: Tensor, predicted: Tensor, rows: slice) -> Tensor:
        return self.options.let_through(said, predicted, self._gold(rows))

    def _gold(self, rows: slice) -> Tensor:
        return self.states.labels[self.states.paired[rows]]

    # ---- One chunk ---------------------------------------------------------------------------------------

    def _pairs(
        self,
        rows: slice,
        in_student: StudentSpace | None,
        in_teacher: TeacherSpace | None,
        passed: Tensor | None,
    ) -> None:
        """The pairs of these rows, in both spaces."""
        needs_overlap = in_student is not None and in_student.needs_teacher
        needs_logits = needs_overlap or (in_teacher is not None and in_teacher.needs_teacher)
        teacher, predicted = self._teacher(rows, needs_logits=needs_logits)
        self.unmapped += (predicted < 0).sum()
        kept = self.options.kept(predicted)
        on_overlap = teacher[:, self.maps.shared()[0]] if needs_overlap else None
        if in_teacher is not None:
            in_teacher.add(rows, teacher, kept)
        positions = self.states.paired[rows]
        if in_student is None:
            self.student.take(positions)
            return
        y = self._gold(rows) if self.options.t2s_target == "gold" else predicted

        def gate(said: Tensor) -> Tensor:
            return self._let_through(said, predicted, rows) if passed is None else passed

        in_student.add(rows, positions, y, kept, gate, on_overlap)

    def _teacher(self, rows: slice, *, needs_logits: bool) -> tuple[Tensor, Tensor]:
        """Its logits, none where nobody needs them, and its predictions in the student's vocabulary."""
        statistics, hidden = self.states.statistics, self.states.teacher_hidden[rows]
        if statistics is not None and not needs_logits:
            return hidden[:0], self.maps.to_student[statistics.predicted[rows]]
        logits = self.teacher.reachable_(self.teacher.logits(hidden))
        predicted = logits.argmax(-1) if statistics is None else statistics.predicted[rows]
        return logits, self.maps.to_student[predicted]
