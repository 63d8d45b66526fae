"""Distillation on the tokens that both vocabularies have, at exact pairs (arXiv 2610.08448)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional

from dskd.nn.divergences import Divergence, divergence, divergence_and_gradient
from dskd.nn.linear import CHUNK_MEMORY, ChunkMemory, ReadHead, with_gradients
from dskd.nn.losses.cross_entropy import cross_entropy_and_gradient
from dskd.nn.reduction import CROSS_ENTROPY, LossParts, TermSums, weighted

if TYPE_CHECKING:
    from torch import Tensor

    from dskd.nn.positions import AlignedStates
    from dskd.nn.reduction import Reduction

__all__ = ["SharedVocabularyLoss", "fused_shared_vocabulary", "shared_vocabulary"]

SHARED = "shared_kd"


def shared_vocabulary(
    states: AlignedStates,
    overlap: Tensor,
    *,
    divergence_name: Divergence = "kl",
    mix: float | None = None,
    temperature: float = 1.0,
    top_k: int | None = None,
) -> TermSums:
    """`D(p_t, p_s)`, both restricted to the shared tokens K and renormalised there, summed over the pairs.

        z_t, z_s = teacher_logits[:, K_t], student_logits[:, K_s]
        D(softmax(z_t / tau), softmax(z_s / tau))

    Args:
        states: the hidden states and heads.
        overlap: int64 `[overlap, 2]`, the ids (teacher, student) of the shared tokens.
        divergence_name: D.
        mix: the parameter of D, where it has one.
        temperature: tau, on both sides.
        top_k: K is the student's top-k of the shared tokens at each pair (16 in arXiv 2610.08448, with
            `reverse_kl`); None: all of them.

    Returns:
        The sums `cross_entropy`, over the labels, and `shared_kd`.
    """
    logits = states.student_head.logits(states.student_hidden)
    cross_entropy = functional.cross_entropy(logits, states.labels, reduction="sum")
    with torch.no_grad():
        teacher = states.teacher_head.logits(states.teacher_hidden).index_select(-1, overlap[:, 0])
    student = logits[states.paired].index_select(-1, overlap[:, 1])
    if top_k is not None:
        student, kept = student.topk(min(top_k, student.shape[-1]), dim=-1)
        teacher = teacher.gather(-1, kept)
    items = divergence(divergence_name, teacher, student, temperature=temperature, mix=mix)
    return TermSums({CROSS_ENTROPY: cross_entropy, SHARED: items.sum()})


@torch.no_grad()
def fused_shared_vocabulary(
    states: AlignedStates,
    overlap: Tensor,
    *,
    reduction: Reduction,
    divergence_name: Divergence = "kl",
    mix: float | None = None,
    temperature: float = 1.0,
    top_k: int | None = None,
    chunk_memory: int = CHUNK_MEMORY,
) -> LossParts:
    """`weighted(shared_vocabulary(states, ...))`, value and every gradient, computed in the forward.

    Args:
        states: as of `shared_vocabulary`.
        overlap: the same.
        reduction: of the step.
        divergence_name: D.
        mix: its parameter.
        temperature: tau.
        top_k: K.
        chunk_memory: bytes for the logits of one chunk.

    Returns:
        The loss, whose backward can run once.
    """
    head, teacher_head = states.student_head, states.teacher_head.detached()
    dtype = torch.promote_types(head.weight.dtype, teacher_head.weight.dtype)
    dtype = torch.promote_types(dtype, torch.float32)
    size = max(len(head.weight), len(teacher_head.weight))
    memory = ChunkMemory(_MATRICES * size, dtype, states.student_hidden.device, chunk_memory)
    student, teacher = ReadHead("student", head, memory), ReadHead("teacher", teacher_head, memory)
    hidden_gradient = torch.zeros_like(states.student_hidden)
    sums = {name: torch.zeros((), dtype=dtype, device=memory.device) for name in (CROSS_ENTROPY, SHARED)}

    def cross_entropy(positions: Tensor) -> tuple[Tensor, Tensor]:
        logits = student.logits(states.student_hidden[positions])
        gradient = memory.take("gradient", *logits.shape)
        log_probs = torch.log_softmax(logits, -1, out=gradient)
        labels = states.labels[positions]
        sums[CROSS_ENTROPY] += cross_entropy_and_gradient(
            log_probs, labels, reduction.cross_entropy, gradient
        ).sum()
        return logits, gradient

    def backward(positions: Tensor, gradient: Tensor) -> None:
        hidden = states.student_hidden[positions]
        hidden_gradient[positions] = student.backward(hidden, gradient).to(hidden.dtype)

    for rows in memory.chunks(len(states.paired)):
        positions = states.paired[rows]
        logits, gradient = cross_entropy(positions)
        of_student = logits[:, overlap[:, 1]]
        of_teacher = teacher.logits(states.teacher_hidden[rows])[:, overlap[:, 0]]
        columns = overlap[:, 1].expand(of_student.shape)
        if top_k is not None:
            of_student, kept = of_student.topk(min(top_k, of_student.shape[-1]), dim=-1)
            of_teacher, columns = of_teacher.gather(-1, kept), columns.gather(-1, kept)
        log_p, log_q = ((one / temperature).log_softmax(-1) for one in (of_teacher, of_student))
        items, made = divergence_and_gradient(divergence_name, log_p, log_q, mix=mix)
        sums[SHARED] += items.sum()
        gradient.scatter_add_(1, columns, made.mul_(reduction.distillation / temperature))
        backward(positions, gradient)
    unpaired = states.unpaired
    for rows in memory.chunks(len(unpaired)):
        positions = unpaired[rows]
        backward(positions, cross_entropy(positions)[1])
    loss = reduction.cross_entropy * sums[CROSS_ENTROPY] + reduction.distillation * sums[SHARED]
    made_of = [(states.student_hidden, hidden_gradient), (head.weight, student.weight_gradient)]
    if head.bias is not None:
        made_of.append((head.bias, student.bias_gradient))
    with torch.enable_grad():
        return LossParts(with_gradients(loss, made_of), sums)


_MATRICES = 6


class SharedVocabularyLoss(nn.Module):
    """Keeps the options of `shared_vocabulary`.

    Args:
        overlap: int64 `[overlap, 2]`: `aligner.vocabulary_map.overlap`.
        divergence_name: see `shared_vocabulary`, as the others.
        mix: the parameter of D.
        temperature: tau.
        top_k: how many shared tokens a pair, or None for all.
        fused: keep no logits; False: the definition.
    """

    overlap: Tensor

    def __init__(
        self,
        overlap: Tensor,
        *,
        divergence_name: Divergence = "kl",
        mix: float | None = None,
        temperature: float = 1.0,
        top_k: int | None = None,
        fused: bool = True,
    ) -> None:
        """See the class."""
        super().__init__()
        self.register_buffer("overlap", overlap, persistent=False)
        self.options = {
            "divergence_name": divergence_name,
            "mix": mix,
            "temperature": temperature,
            "top_k": top_k,
        }
        self.fused = fused

    def forward(self, states: AlignedStates, reduction: Reduction) -> LossParts:
        """The loss of a micro-batch."""
        if self.fused:
            return fused_shared_vocabulary(states, self.overlap, reduction=reduction, **self.options)
        terms = shared_vocabulary(states, self.overlap, **self.options)
        return weighted(
            terms, {CROSS_ENTROPY: reduction.cross_entropy, SHARED: reduction.distillation}
        )
