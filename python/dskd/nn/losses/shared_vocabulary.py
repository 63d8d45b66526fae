"""Distillation on the tokens that both vocabularies have, at exact pairs (arXiv 2610.08448)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional

from dskd.nn.divergences import DIVERGENCES, Divergence, divergence, divergence_and_gradient
from dskd.nn.linear import CHUNK_MEMORY, ReadHead, chunk_memory_of, computing, with_gradients
from dskd.nn.losses.cross_entropy import StudentRows
from dskd.nn.reduction import CROSS_ENTROPY, LossParts, TermSums, weighted

if TYPE_CHECKING:
    from torch import Tensor

    from dskd.nn.positions import AlignedStates
    from dskd.nn.reduction import Reduction

__all__ = [
    "SharedVocabularyLoss",
    "SharedVocabularyOptions",
    "fused_shared_vocabulary",
    "shared_vocabulary",
]

SHARED = "shared_kd"


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedVocabularyOptions:
    """How two models are compared on the tokens that both have.

    Attributes:
        divergence: D.
        mix: the parameter of D, where it has one.
        temperature: tau, on both sides.
        top_k: K is the student's top-k of the shared tokens at each pair (16 in arXiv 2610.08448, with
            `reverse_kl`); None: all of them.
    """

    divergence: Divergence = "kl"
    mix: float | None = None
    temperature: float = 1.0
    top_k: int | None = None

    def __post_init__(self) -> None:
        """Checks them.

        Raises:
            ValueError: one is out of its range.
        """
        if self.divergence not in DIVERGENCES:
            raise ValueError(f"divergence={self.divergence!r}; it is one of {tuple(DIVERGENCES)}")
        if not self.temperature > 0:
            raise ValueError(f"temperature={self.temperature}; it is above 0")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k={self.top_k}; it is at least 1, or None for all")

    def of_top(self, teacher: Tensor, student: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """The logits on K, of those on all shared tokens, and which these are; None: all."""
        if self.top_k is None:
            return teacher, student, None
        student, kept = student.topk(min(self.top_k, student.shape[-1]), dim=-1)
        return teacher.gather(-1, kept), student, kept


def shared_vocabulary(
    states: AlignedStates, overlap: Tensor, options: SharedVocabularyOptions | None = None
) -> TermSums:
    """`D(p_t, p_s)`, both restricted to the shared tokens K and renormalised there, summed over the pairs.

        z_t, z_s = teacher_logits[:, K_t], student_logits[:, K_s]
        D(softmax(z_t / tau), softmax(z_s / tau))

    Args:
        states: the hidden states and heads.
        overlap: int64 `[overlap, 2]`, the ids (teacher, student) of the shared tokens.
        options: None: the defaults.

    Returns:
        The sums `cross_entropy`, over the labels, and `shared_kd`.
    """
    options = options or SharedVocabularyOptions()
    logits = states.student_head.logits(states.student_hidden)
    cross_entropy = functional.cross_entropy(logits, states.labels, reduction="sum")
    with torch.no_grad():
        teacher = states.teacher_head.logits(states.teacher_hidden).index_select(-1, overlap[:, 0])
    student = logits[states.paired].index_select(-1, overlap[:, 1])
    teacher, student, _ = options.of_top(teacher, student)
    items = divergence(options.divergence, teacher, student, temperature=options.temperature, mix=options.mix)
    return TermSums({CROSS_ENTROPY: cross_entropy, SHARED: items.sum()})


def fused_shared_vocabulary(
    states: AlignedStates,
    overlap: Tensor,
    options: SharedVocabularyOptions | None = None,
    *,
    reduction: Reduction,
    chunk_memory: int = CHUNK_MEMORY,
) -> LossParts:
    """The weighted sum of `shared_vocabulary`, value and every gradient, computed in the forward.

    Args:
        states: as of `shared_vocabulary`.
        overlap: the same.
        options: the same.
        reduction: of the step.
        chunk_memory: bytes for the logits of one chunk.

    Returns:
        The loss, whose backward can run once.
    """
    options = options or SharedVocabularyOptions()
    memory = chunk_memory_of(
        [(states.student_head, _MATRICES), (states.teacher_head, 1)],
        budget=chunk_memory,
        most=len(states.labels),
    )
    with computing(memory):
        teacher = ReadHead(0, states.teacher_head.detached(), memory)
        student = StudentRows(
            states.student_hidden, states.student_head, states.labels, memory, reduction.cross_entropy
        )
        total = torch.zeros_like(student.cross_entropy)
        for rows in memory.chunks(len(states.paired)):
            positions = states.paired[rows]
            # A copy: the student's logits come to lie where the teacher's are.
            of_teacher = teacher.logits(states.teacher_hidden[rows])[:, overlap[:, 0]]

            def add(some: slice, logits: Tensor, gradient: Tensor, of_teacher: Tensor = of_teacher) -> None:
                total.add_(
                    _add_gradient(
                        of_teacher[some], logits, gradient, overlap[:, 1], options, reduction.distillation
                    )
                )

            student.compare(positions, add)
        student.take(states.unpaired)
        loss = reduction.cross_entropy * student.cross_entropy + reduction.distillation * total
    sums = {CROSS_ENTROPY: student.cross_entropy, SHARED: total}
    return LossParts(with_gradients(loss, student.made()), sums, {})


def _add_gradient(
    teacher: Tensor,
    student: Tensor,
    gradient: Tensor,
    columns: Tensor,
    options: SharedVocabularyOptions,
    weight: float,
) -> Tensor:
    """The sum over a chunk; adds its weighted gradient by the student's logits.

    Args:
        teacher: `[m, overlap]`, its logits on the shared tokens, which are lost.
        student: `[m, V_s]`.
        gradient: `[m, V_s]`, added to.
        columns: int64 `[overlap]`, the student's ids of the shared tokens.
        options: of the loss.
        weight: of the sum, in the gradient only.
    """
    teacher, student, kept = options.of_top(teacher, student[:, columns])
    for logits in (teacher, student):
        torch.log_softmax(logits.div_(options.temperature), -1, out=logits)
    items, made = divergence_and_gradient(options.divergence, teacher, student, mix=options.mix)
    made.mul_(weight / options.temperature)
    if kept is None:
        gradient.index_add_(1, columns, made)
    else:
        gradient.scatter_add_(1, columns[kept], made)
    return items.sum()


_MATRICES = 2
"""Of a vocabulary's width that are there at once: the logits, and the teacher's on the overlap."""


class SharedVocabularyLoss(nn.Module):
    """Keeps the options of `shared_vocabulary`.

    Args:
        overlap: int64 `[overlap, 2]`: `aligner.vocabulary_map.overlap`.
        options: None: the defaults.
        fused: keep no logits, see `fused_shared_vocabulary`; False: the definition.
        chunk_memory: bytes for the logits of one chunk of the fused form.
    """

    overlap: Tensor

    def __init__(
        self,
        overlap: Tensor,
        options: SharedVocabularyOptions | None = None,
        *,
        fused: bool = True,
        chunk_memory: int = CHUNK_MEMORY,
    ) -> None:
        """See the class."""
        super().__init__()
        self.register_buffer("overlap", overlap, persistent=False)
        self.options = options or SharedVocabularyOptions()
        self.fused = fused
        self.chunk_memory = chunk_memory

    def forward(self, states: AlignedStates, reduction: Reduction) -> LossParts:
        """The loss of a micro-batch."""
        if self.fused:
            return fused_shared_vocabulary(
                states, self.overlap, self.options, reduction=reduction, chunk_memory=self.chunk_memory
            )
        terms = shared_vocabulary(states, self.overlap, self.options)
        return weighted(terms, {CROSS_ENTROPY: reduction.cross_entropy, SHARED: reduction.distillation})
