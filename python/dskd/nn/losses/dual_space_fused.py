"""Dual-space distillation without logits kept: `dual_space`, a chunk of pairs at a time.

Per chunk and space there are the logits of both sides; they become log-probabilities, the divergence and the
gradient of the student's side in the same memory, and one product with the head carries that gradient to the
hidden states. The student's logits serve the cross-entropy and t2s_kd at once, with one gradient for both.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import torch

from dskd.nn.elementwise import argmax
from dskd.nn.linear import (
    CHUNK_MEMORY,
    ReadHead,
    chunk_memory_of,
    computing,
    multiplied_in,
    refuse_sharded,
    with_gradients,
    zeros_for,
)
from dskd.nn.losses.cross_entropy import StudentRows
from dskd.nn.losses.known_teacher import KnownTeacherSpace, block_sizes
from dskd.nn.losses.spaces import (
    STUDENT_MATRICES,
    TEACHER_MATRICES,
    Comparison,
    ReadStates,
    StudentSpace,
    TeacherSpace,
)
from dskd.nn.projectors import carried
from dskd.nn.reduction import CROSS_ENTROPY, LossParts

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from dskd.nn.divergences import Divergence
    from dskd.nn.linear import ChunkMemory, Made
    from dskd.nn.losses.dual_space_options import DualSpaceOptions, VocabularyMaps
    from dskd.nn.positions import AlignedStates
    from dskd.nn.reduction import Reduction

__all__ = ["fused_dual_space"]


def fused_dual_space(
    states: AlignedStates,
    to_student: Tensor,
    to_teacher: Tensor,
    maps: VocabularyMaps,
    options: DualSpaceOptions,
    *,
    reduction: Reduction,
    projector: Tensor | None = None,
    chunk_memory: int = CHUNK_MEMORY,
) -> LossParts:
    """`weighted(dual_space(states, ...))`, value and every gradient, computed in the forward.

    Where P_st is given, it may be multiplied into the teacher's head instead of the states,
    `h_s (P_st W_t^T)`: a head of the student's width takes less time, once there are rows enough for it.

    Args:
        states: as of `dual_space`.
        to_student: `[pairs, d]`.
        to_teacher: `[pairs, D]`; with a projector `[pairs, d]`, the student's states themselves.
        maps: of the two vocabularies.
        options: those of `dual_space`.
        reduction: of the step.
        projector: P_st `[d, D]`, without a bias, which gets no gradient; None: `to_teacher` is carried.
        chunk_memory: bytes for the logits of one chunk, and for a head that is made as above.

    Returns:
        The loss, whose backward can run once; it reaches the student's states and head, `to_student` and
        `to_teacher`, with zeros where nothing is to be summed.

    Raises:
        ValueError: the options need an overlap that is not there.
        TypeError: a head is sharded.
    """
    options.require(maps)
    refuse_sharded(states.teacher_head)
    of_teacher = _in_teacher_space(options, maps)
    is_known = of_teacher.known_from(states.statistics) is not None
    memory = chunk_memory_of(
        [
            (states.student_head, STUDENT_MATRICES + (options.speaks_of_overlap and _COPIES)),
            (states.teacher_head, _teacher_matrices(of_teacher, options, is_known=is_known)),
        ],
        budget=chunk_memory,
        most=len(states.labels),
    )
    projector = None if projector is None else projector.detach()
    if projector is not None and not _is_worth_reading_through(projector, states, memory, is_known):
        to_teacher, projector = carried(to_teacher, projector), None
    with computing(memory):
        fused = _Fused(states, to_student, to_teacher, maps, options, memory=memory, projector=projector)
        parts = fused.run(reduction)
    return parts._replace(loss=with_gradients(parts.loss, fused.made()))


_COPIES = 2
"""Of columns, of both sides, where only some are compared."""


def _teacher_matrices(how: Comparison, options: DualSpaceOptions, *, is_known: bool) -> int:
    """That are there at once; where it is known, at most the logits of which the student's space has O."""
    if is_known:
        return int(options.needs_teacher)
    return TEACHER_MATRICES + (how.columns is not None and _COPIES)


def _is_worth_reading_through(
    projector: Tensor, states: AlignedStates, memory: ChunkMemory, is_known: bool
) -> bool:
    """Whether products are saved by a head of the student's width, and where it must be whole, it fits.

    That head takes `d D` a token each time that it is made, and saves `D - d` twice a row: in the forward and
    the backward.
    """
    narrow, wide = projector.shape
    head, pairs, times = states.teacher_head, len(states.paired), 1
    fits = is_known or len(head.weight) * narrow * multiplied_in(head, memory).itemsize <= memory.budget
    if is_known:
        times = -(-pairs // block_sizes(pairs, len(head.weight), memory)[0])
    return fits and times * narrow * wide < 2 * pairs * (wide - narrow)


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


def _unread(states: Tensor) -> Made:
    return states, zeros_for(states)


class _Fused:
    """One call: the gate, both spaces over the same pairs, and the chunks."""

    def __init__(
        self,
        states: AlignedStates,
        to_student: Tensor,
        to_teacher: Tensor,
        maps: VocabularyMaps,
        options: DualSpaceOptions,
        *,
        memory: ChunkMemory,
        projector: Tensor | None,
    ) -> None:
        self.states, self.maps, self.options, self.memory = states, maps, options, memory
        # The two spaces are worked on one after the other, in the same memory.
        self.projected = ReadStates(to_student, states.student_head, memory) if options.projects else None
        self.of_teacher = _in_teacher_space(options, maps)
        self.to_student, self.to_teacher, self.projector = to_student, to_teacher, projector
        self.in_teacher: TeacherSpace | KnownTeacherSpace | None = None
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
        if options.spaces != "student":
            self.in_teacher = self._teacher_space(weights)
        by_rows = self.in_teacher if isinstance(self.in_teacher, TeacherSpace) else None
        for rows in self.memory.chunks(pairs):
            self._pairs(rows, in_student, by_rows, None if passed is None else passed[rows])
        self.student.take(states.unpaired)
        sums, counts = {CROSS_ENTROPY: self.student.cross_entropy}, {"unmapped": self.unmapped}
        if in_student is not None:
            sums |= in_student.sums
            counts |= in_student.counts
            if options.gate is None:
                del counts["gated"]
        if self.in_teacher is not None:
            sums["s2t_kd"] = self.in_teacher.sum
        loss = torch.stack([weights[name] * value for name, value in sums.items()]).sum()
        return LossParts(loss, sums, counts)

    def made(self) -> list[Made]:
        """What the loss is a function of, each with its gradient."""
        projected = _unread(self.to_student) if self.projected is None else self.projected.made()
        in_teacher = _unread(self.to_teacher) if self.in_teacher is None else self.in_teacher.made()
        return [*self.student.made(), projected, in_teacher]

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

    def _teacher_space(self, weights: Mapping[str, float]) -> TeacherSpace | KnownTeacherSpace:
        """Done, where the teacher is known; else for one chunk after the other."""
        head, how, weight = self.states.teacher_head, self.of_teacher, weights["s2t_kd"]
        if (known := how.known_from(self.states.statistics)) is not None:
            space = KnownTeacherSpace(
                self.to_teacher, head, how, weight, known, memory=self.memory, projector=self.projector
            )
            space.add(self.options.kept(self.maps.to_student[known.predicted]))
            return space
        if self.projector is not None:
            head = head.through(self.projector, multiplied_in(head, self.memory))
        return TeacherSpace(ReadStates(self.to_teacher, head, self.memory), how, weight, self.memory)

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
        said = torch.cat([none, *(argmax(projected.logits(rows)) for rows in chunks)])
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
        needs_overlap = self.options.needs_teacher
        teacher, predicted = self._teacher(rows, needs_logits=needs_overlap or in_teacher is not None)
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

    @functools.cached_property
    def _read_teacher(self) -> ReadHead:
        """Its head: where all is known of it, nobody reads it, and no copy in another dtype is made."""
        return ReadHead(0, self.states.teacher_head.detached(), self.memory)

    def _teacher(self, rows: slice, *, needs_logits: bool) -> tuple[Tensor, Tensor]:
        """Its logits, none where nobody needs them, and its predictions in the student's vocabulary."""
        statistics, hidden = self.states.statistics, self.states.teacher_hidden[rows]
        if statistics is not None and not needs_logits:
            return hidden[:0], self.maps.to_student[statistics.predicted[rows]]
        logits = self._read_teacher.reachable_(self._read_teacher.logits(hidden))
        predicted = argmax(logits) if statistics is None else statistics.predicted[rows]
        return logits, self.maps.to_student[predicted]
