"""The cross-entropy of a head's logits without keeping them, and what other losses add to their gradient."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from dskd.nn.elementwise import probabilities, row_blocks
from dskd.nn.linear import (
    CHUNK_MEMORY,
    ReadHead,
    chunk_memory_of,
    computing,
    with_gradients,
    zeros_for,
)
from dskd.nn.reduction import CROSS_ENTROPY, LossParts

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from dskd.nn.heads import Head
    from dskd.nn.linear import ChunkMemory, Made
    from dskd.nn.reduction import Reduction

__all__ = ["StudentRows", "cross_entropy_and_gradient", "fused_cross_entropy"]


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
    memory = chunk_memory_of([(head, 1)], budget=chunk_memory, most=len(hidden))
    with computing(memory):
        student = StudentRows(hidden, head, labels, memory, reduction.cross_entropy)
        student.take(torch.arange(len(hidden), device=hidden.device))
    loss = with_gradients(reduction.cross_entropy * student.cross_entropy, student.made())
    return LossParts(loss, {CROSS_ENTROPY: student.cross_entropy}, {})


class StudentRows:
    """The student's side of a fused loss: its logits, and one gradient of them for all terms that have them.

    Args:
        hidden: `[labels, d]`, its states at the supervised positions.
        head: its head, live.
        labels: int64 `[labels]`.
        memory: of the chunks; takes place 0.
        weight: of the cross-entropy.
    """

    def __init__(
        self, hidden: Tensor, head: Head, labels: Tensor, memory: ChunkMemory, weight: float
    ) -> None:
        """See the class."""
        self._hidden, self._head, self._labels = hidden, head, labels
        self._memory = memory
        self._weight = weight
        self._read = ReadHead(0, head, memory)
        self._gradient = zeros_for(hidden)
        self.cross_entropy = torch.zeros((), dtype=memory.dtype, device=hidden.device)

    def compare(
        self,
        positions: Tensor,
        add: Callable[[slice, Tensor, Tensor], None],
        *,
        normalise: bool = False,
    ) -> None:
        """The cross-entropy there, and what others say of the same logits; one gradient for all of them.

        Args:
            positions: int64 `[m]`, of the states, as many as a chunk has at most.
            add: is given which of them, their logits, which are lost, and the gradient of the weighted
                cross-entropy by these, to which it adds its own: both `[rows, V]`. On a CPU it is given some
                rows at once, which stay in a cache.
            normalise: give log-probabilities in place of logits, which are there anyway.
        """
        logits = self._read.logits(self._hidden[positions])
        blocks = row_blocks(logits)
        kept = torch.empty_like(logits[blocks[0]])
        for rows in blocks:
            some = logits[rows]
            gradient = kept[: len(some)]
            log_probs = torch.log_softmax(some, -1, out=some if normalise else gradient)
            self._add(positions[rows], log_probs, gradient)
            add(rows, some, gradient)
            some.copy_(gradient)
        self.backward(positions, logits)

    def _add(self, positions: Tensor, log_probs: Tensor, gradient: Tensor) -> None:
        items = cross_entropy_and_gradient(log_probs, self._labels[positions], self._weight, gradient)
        self.cross_entropy += items.sum()

    @property
    def size(self) -> int:
        """Of the vocabulary."""
        return self._read.size

    @property
    def all_reachable(self) -> bool:
        """Whether a comparison leaves no id out."""
        return self._head.unreachable is None

    def reachable_(self, logits: Tensor) -> Tensor:
        """`Head.reachable` of the head, in place."""
        return self._read.reachable_(logits)

    def backward(self, positions: Tensor, gradient: Tensor) -> None:
        """From the gradient of the logits there to that of the states and the head."""
        hidden = self._hidden[positions]
        self._gradient[positions] = self._read.backward(hidden, gradient).to(self._gradient.dtype)

    def take(self, positions: Tensor) -> None:
        """These positions, for the cross-entropy alone."""
        for rows in self._memory.chunks(len(positions)):
            logits = self._read.logits(self._hidden[positions[rows]])
            self._add(positions[rows], torch.log_softmax(logits, -1, out=logits), logits)
            self.backward(positions[rows], logits)

    def made(self) -> list[Made]:
        """The states and what is trained of the head, each with its gradient."""
        made: list[Made] = [
            (self._hidden, self._gradient),
            (self._head.weight, self._read.weight_gradient),
        ]
        return made if self._head.bias is None else [*made, (self._head.bias, self._read.bias_gradient)]


def cross_entropy_and_gradient(log_probs: Tensor, labels: Tensor, weight: float, out: Tensor) -> Tensor:
    """`-log_probs[labels]`, `[m]`, and in `out` `[m, V]` its gradient by the logits, times the weight.

    `out` may be `log_probs`. A label below zero takes no part: 0, and so is its gradient.
    """
    valid = labels >= 0
    column = labels.clamp(min=0)[:, None]
    items = torch.where(valid, -log_probs.gather(1, column)[:, 0], 0)
    probabilities(log_probs, out=out)
    out.scatter_add_(1, column, out.new_full(column.shape, -1.0))
    out.mul_(weight * valid.to(out.dtype)[:, None])
    return items
