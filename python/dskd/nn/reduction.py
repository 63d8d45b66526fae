"""From sums to a loss: the one place where a term is divided by its count.

Every term is `sum over its items / N` in float32, N counted over the whole optimizer step (all accumulation
micro-batches, all ranks) before its first backward. So one batch of four rows and four batches of one row
have the same loss and the same gradient, and what has nothing to sum is zero. A fused loss computes its
gradients in the forward, so it is told N before.

A term that is divided by a number of its micro-batch, as the papers' code does, is averaged over the
micro-batches of the step instead.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

__all__ = ["LossParts", "Reduction"]


@dataclass(frozen=True, slots=True)
class Reduction:
    """What the terms of one optimizer step are divided by.

    Attributes:
        counts: of the whole step, by the names of `Batch.counts`.
        micro_batches: that the step has, on all ranks.
    """

    counts: Mapping[str, int]
    micro_batches: int = 1

    def __post_init__(self) -> None:
        """Checks them.

        Raises:
            ValueError: a count is negative, or there is no micro-batch.
        """
        if wrong := {name: count for name, count in self.counts.items() if count < 0}:
            raise ValueError(f"counts {wrong}; they are 0 or more")
        if self.micro_batches < 1:
            raise ValueError(f"micro_batches={self.micro_batches}; a step has at least 1")

    def of(self, over: str, least: int) -> int:
        """The number of the step of this name; at least 1.

        Args:
            over: of `counts`.
            least: how many there are in a micro-batch of it.

        Raises:
            ValueError: the step has not counted it, or has fewer than its micro-batch.
        """
        count = self.counts.get(over)
        if count is None or count < least:
            raise ValueError(
                f"the step has {count} {over}, and the micro-batch has {least}: give "
                f"Reduction(counts={{{over!r}: ...}}) of the whole step, or reduction='mean'"
            )
        return max(count, 1)


class LossParts(NamedTuple):
    """A micro-batch's part of the loss of its step, and what it is made of.

    A tuple, since that is what FSDP2 looks into for the tensor before whose backward it gathers the weights:
    that of PyTorch 2.6 does not look into a dataclass, and gradients would be wrong without a word.

    Attributes:
        loss: a scalar, to be differentiated.
        sums: the terms by name before they were weighted, without gradients.
        counts: numbers for the log by name: how many items a gate let through, and the like.
        over: for each of both the name of the count that it runs over, as in `Reduction.counts`.
    """

    loss: Tensor
    sums: Mapping[str, Tensor]
    counts: Mapping[str, Tensor]
    over: Mapping[str, str]
