"""The cross-entropy of a head's logits, without keeping them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from dskd.nn.linear import CHUNK_MEMORY, ChunkMemory, ReadHead, with_gradients
from dskd.nn.reduction import CROSS_ENTROPY, LossParts

if TYPE_CHECKING:
    from torch import Tensor

    from dskd.nn.heads import Head
    from dskd.nn.reduction import Reduction

__all__ = ["cross_entropy_and_gradient", "fused_cross_entropy"]


def fused_cross_entropy(
    hidden: Tensor, head: Head, labels: Tensor, *, reduction: Reduction, chunk_memory: int = CHUNK_MEMORY
) -> LossParts:
    """`functional.cross_entropy(head.logits(hidden), labels, reduction="sum") / reduction.labels`.

    Args:
        hidden: `[labels, d]`, the student's states at the supervised positions.
        head: the student's.
        labels: int64 `[labels]`, the token that each predicts.
        reduction: of the step.
        chunk_memory: bytes for the logits of one chunk.

    Returns:
        The loss, whose backward can run once, and the sum `cross_entropy`.
    """
    with torch.no_grad():
        dtype = torch.promote_types(head.weight.dtype, torch.float32)
        memory = ChunkMemory(len(head.weight), dtype, hidden.device, chunk_memory)
        read = ReadHead("logits", head, memory)
        gradient = torch.zeros_like(hidden)
        total = torch.zeros((), dtype=dtype, device=hidden.device)
        for rows in memory.chunks(len(hidden)):
            logits = read.logits(hidden[rows])
            log_probs = torch.log_softmax(logits, -1, out=logits)
            items = cross_entropy_and_gradient(log_probs, labels[rows], reduction.cross_entropy, logits)
            total += items.sum()
            gradient[rows] = read.backward(hidden[rows], logits).to(hidden.dtype)
    made = [(hidden, gradient), (head.weight, read.weight_gradient)]
    if head.bias is not None:
        made.append((head.bias, read.bias_gradient))
    loss = with_gradients(total * reduction.cross_entropy, made)
    return LossParts(loss, {CROSS_ENTROPY: total})


def cross_entropy_and_gradient(log_probs: Tensor, labels: Tensor, weight: float, out: Tensor) -> Tensor:
    """`-log_probs[labels]`, `[m]`, and in `out` `[m, V]` its gradient by the logits, times the weight.

    `out` may be `log_probs`.

    A label below zero takes no part: 0, and so is its gradient.
    """
    valid = labels >= 0
    column = labels.clamp(min=0)[:, None]
    items = torch.where(valid, -log_probs.gather(1, column)[:, 0], 0)
    torch.exp(log_probs, out=out)
    out.scatter_add_(1, column, out.new_full(column.shape, -1.0))
    out.mul_(weight * valid.to(out.dtype)[:, None])
    return items
