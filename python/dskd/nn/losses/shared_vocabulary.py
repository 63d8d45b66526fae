"""Distillation on the tokens that both vocabularies have, at exact pairs (arXiv 2610.08448)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from dskd.nn.divergences import Divergence, divergence
from dskd.nn.reduction import TermSums

if TYPE_CHECKING:
    from torch import Tensor

    from dskd.nn.positions import AlignedStates

__all__ = ["SharedVocabularyLoss", "shared_vocabulary"]


def shared_vocabulary(
    states: AlignedStates,
    overlap: Tensor,
    *,
    divergence_name: Divergence = "kl",
    temperature: float = 1.0,
    top_k: int | None = None,
) -> TermSums:
    """`D(p_t, p_s)`, both restricted to the shared tokens K and renormalised there, summed over the pairs.

        z_t, z_s = teacher_logits[:, K_t], student_logits[:, K_s]
        D(softmax(z_t / tau), softmax(z_s / tau))

    Args:
        states: the hidden states and heads at the pairs.
        overlap: int64 `[overlap, 2]`, the ids (teacher, student) of the shared tokens.
        divergence_name: D.
        temperature: tau, on both sides.
        top_k: K is the student's top-k of the shared tokens at each pair (16 in arXiv 2610.08448, with
            `reverse_kl`); None: all of them.

    Returns:
        The sum `shared_kd`.
    """
    with torch.no_grad():
        teacher = states.teacher_head.logits(states.teacher_hidden).index_select(-1, overlap[:, 0])
    student = states.student_logits.index_select(-1, overlap[:, 1])
    if top_k is not None:
        student, kept = student.topk(min(top_k, student.shape[-1]), dim=-1)
        teacher = teacher.gather(-1, kept)
    items = divergence(divergence_name, teacher, student, temperature=temperature)
    return TermSums({"shared_kd": items.sum()})


class SharedVocabularyLoss(nn.Module):
    """Keeps the options of `shared_vocabulary`.

    Args:
        overlap: int64 `[overlap, 2]`: `aligner.vocabulary_map.overlap`.
        divergence_name: see `shared_vocabulary`, as the others.
        temperature: tau.
        top_k: how many shared tokens a pair, or None for all.
    """

    overlap: Tensor

    def __init__(
        self,
        overlap: Tensor,
        *,
        divergence_name: Divergence = "kl",
        temperature: float = 1.0,
        top_k: int | None = None,
    ) -> None:
        """See the class."""
        super().__init__()
        self.register_buffer("overlap", overlap, persistent=False)
        self.divergence_name = divergence_name
        self.temperature = temperature
        self.top_k = top_k

    def forward(self, states: AlignedStates) -> TermSums:
        """The term over the pairs of a micro-batch."""
        return shared_vocabulary(
            states,
            self.overlap,
            divergence_name=self.divergence_name,
            temperature=self.temperature,
            top_k=self.top_k,
        )
