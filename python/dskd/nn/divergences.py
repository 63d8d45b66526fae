"""Divergences of a student's distribution from a teacher's, per token."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor

__all__ = ["DIVERGENCES", "Divergence", "divergence", "kl", "reverse_kl"]

Divergence: TypeAlias = Literal["kl", "reverse_kl"]


def kl(teacher_log_probs: Tensor, student_log_probs: Tensor) -> Tensor:
    """`KL(p, q) = sum of p (log p - log q)`, p the teacher's: `[..., V] -> [...]`."""
    return (teacher_log_probs.exp() * (teacher_log_probs - student_log_probs)).sum(-1)


def reverse_kl(teacher_log_probs: Tensor, student_log_probs: Tensor) -> Tensor:
    """`KL(q, p) = sum of q (log q - log p)`, q the student's: `[..., V] -> [...]`."""
    return kl(student_log_probs, teacher_log_probs)


DIVERGENCES: Mapping[Divergence, Callable[[Tensor, Tensor], Tensor]] = {"kl": kl, "reverse_kl": reverse_kl}


def divergence(
    name: Divergence, teacher_logits: Tensor, student_logits: Tensor, *, temperature: float = 1.0
) -> Tensor:
    """`D(softmax(teacher_logits / temperature), softmax(student_logits / temperature))`.

    Args:
        name: one of `DIVERGENCES`.
        teacher_logits: `[..., V]`, float32 or wider, finite.
        student_logits: the same shape.
        temperature: of both softmaxes, positive.

    Returns:
        `[...]`, a divergence a token.
    """
    teacher, student = ((logits / temperature).log_softmax(-1) for logits in (teacher_logits, student_logits))
    return DIVERGENCES[name](teacher, student)
