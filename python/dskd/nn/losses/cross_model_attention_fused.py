"""Cross-model attention without logits kept: `cross_model_attention`, a chunk of positions at a time.

What the attention makes, a row for every position of each side, is computed as written and left to autograd;
what the heads make of it, `[positions, V]`, is not kept.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from dskd.nn.elementwise import argmax
from dskd.nn.linear import CHUNK_MEMORY, ReadHead, chunk_memory_of, computing, with_gradients
from dskd.nn.losses.attention import attended
from dskd.nn.losses.cross_entropy import StudentRows
from dskd.nn.losses.cross_model_attention_options import CrossModelAttentionOptions
from dskd.nn.losses.known_teacher import KnownTeacherSpace
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

    from dskd.nn.linear import ChunkMemory
    from dskd.nn.losses.attention import AttendedStates, AttentionProjectors, AttentionScales
    from dskd.nn.reduction import Reduction

__all__ = ["fused_cross_model_attention"]


def fused_cross_model_attention(
    states: AttendedStates,
    projectors: AttentionProjectors,
    options: CrossModelAttentionOptions | None = None,
    *,
    reduction: Reduction,
    scales: AttentionScales | None = None,
    chunk_memory: int = CHUNK_MEMORY,
) -> LossParts:
    """`weighted(cross_model_attention(states, ...))`, value and every gradient, without logits kept.

    Args:
        states: as of `cross_model_attention`.
        projectors: the same.
        options: the same.
        reduction: of the step.
        scales: as of `cross_model_attention`.
        chunk_memory: bytes for the logits of one chunk.

    Returns:
        The loss, whose backward can run once; it reaches the student's states and head and the projectors,
        with zeros where nothing is to be summed.

    Raises:
        ValueError: the reduction does not count the teacher's positions, and the options need them.
    """
    options = options or CrossModelAttentionOptions()
    weights = options.weights(reduction, len(states.teacher.row))
    student, teacher = states.student.head, states.teacher.head
    memory = chunk_memory_of(
        [(student, STUDENT_MATRICES), (teacher, TEACHER_MATRICES)],
        budget=chunk_memory,
        most=max(len(states.student.row), len(states.teacher.row)),
    )
    both = states.of_rows_with_both()
    to_student, to_teacher = attended(both, projectors, _added(both, options, memory), scales)
    with computing(memory):
        projected = ReadStates(to_student, student, memory)
        rows = StudentRows(
            states.student.hidden, student, states.student.labels, memory, weights[CROSS_ENTROPY]
        )
        in_student = _student_space(states, projected, rows, options, weights, memory)
        in_teacher = _teacher_space(both, to_teacher, options, weights, memory)
        sums = {CROSS_ENTROPY: rows.cross_entropy, **in_student.sums, "s2t_kd": in_teacher.sum}
        loss = torch.stack([weights[name] * value for name, value in sums.items()]).sum()
    counts = {**_counted(both), **in_student.counts}
    if options.gate is None:
        del counts["gated"]
    return LossParts(with_gradients(loss, [*rows.made(), projected.made(), in_teacher.made()]), sums, counts)


def _added(states: AttendedStates, options: CrossModelAttentionOptions, memory: ChunkMemory) -> Tensor | None:
    """The tokens whose embeddings are added to the teacher's states; where it is asked, its logits once."""
    teacher = states.teacher
    if options.added != "prediction":
        return None if options.added is None else teacher.labels
    if states.statistics is not None:
        return states.statistics.predicted
    read = ReadHead(0, teacher.head.detached(), memory)
    with computing(memory):
        said = [
            argmax(read.reachable_(read.logits(teacher.hidden[rows])))
            for rows in memory.chunks(len(teacher.row))
        ]
    return torch.cat([teacher.labels[:0], *said])


def _student_space(
    states: AttendedStates,
    projected: ReadStates,
    student: StudentRows,
    options: CrossModelAttentionOptions,
    weights: Mapping[str, float],
    memory: ChunkMemory,
) -> StudentSpace:
    """All of the student's positions; those that attend to nothing for the cross-entropy alone."""
    how = Comparison(
        divergence=options.divergence,
        mix=options.mix,
        temperature=options.temperature,
        teacher_temperature=options.teacher_temperature,
    )
    space = StudentSpace(projected, student, how, weights, memory)
    meeting = states.meeting()
    positions = meeting.nonzero()[:, 0]
    for rows in memory.chunks(len(positions)):
        gold = states.student.labels[positions[rows]]
        everything = torch.ones_like(gold, dtype=torch.bool)

        def gate(said: Tensor, gold: Tensor = gold, everything: Tensor = everything) -> Tensor:
            return everything if options.gate is None else said == gold

        space.add(rows, positions[rows], gold, everything, gate)
    student.take((~meeting).nonzero()[:, 0])
    return space


def _teacher_space(
    states: AttendedStates,
    to_teacher: Tensor,
    options: CrossModelAttentionOptions,
    weights: Mapping[str, float],
    memory: ChunkMemory,
) -> TeacherSpace | KnownTeacherSpace:
    """All of the teacher's positions that attend to something."""
    name, teacher, weight = options.of_teacher_space, states.teacher, weights["s2t_kd"]
    how = Comparison(divergence=name, mix=options.mix_of(name), temperature=options.temperature)
    everything = torch.ones(len(teacher.row), dtype=torch.bool, device=teacher.row.device)
    if (known := how.known_from(states.statistics)) is not None:
        by_blocks = KnownTeacherSpace(to_teacher, teacher.head, how, weight, known, memory=memory)
        by_blocks.add(everything)
        return by_blocks
    space = TeacherSpace(ReadStates(to_teacher, teacher.head, memory), how, weight, memory)
    read = ReadHead(0, teacher.head.detached(), memory)
    for rows in memory.chunks(len(teacher.row)):
        space.add(rows, read.reachable_(read.logits(teacher.hidden[rows])), everything[rows])
    return space


def _counted(states: AttendedStates) -> dict[str, Tensor]:
    sides = {"student_positions": states.student, "teacher_positions": states.teacher}
    return {name: torch.tensor(len(side.row), device=side.row.device) for name, side in sides.items()}
