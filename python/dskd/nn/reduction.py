"""From sums to a loss: the one place where a term is divided by its count.

Every term is `sum over its items / N` in float32, N counted over the whole optimizer step (all accumulation
micro-batches, all ranks) before its first backward. So one batch of four rows and four batches of one row
have the same loss and the same gradient, and what has nothing to sum is zero.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

__all__ = ["StepCounts", "TermSums", "distillation_loss"]


@dataclass(frozen=True, slots=True)
class StepCounts:
    """What the terms of one optimizer step are divided by.

    Attributes:
        labels: student tokens that are supervised: N of the cross-entropy.
        pairs: aligned pairs that are predicted: N of the distillation terms.
    """

    labels: int
    pairs: int


@dataclass(frozen=True, slots=True)
class TermSums:
    """The terms of a distillation loss, each summed over the items of a micro-batch.

    Attributes:
        sums: scalars by name, with gradients; the loss is the sum of them all.
        counts: numbers for the log by name, without gradients: how many items a gate let through, and the
            like.
    """

    sums: Mapping[str, Tensor]
    counts: Mapping[str, Tensor] = field(default_factory=dict)


def distillation_loss(
    cross_entropy: Tensor, terms: Mapping[str, Tensor], counts: StepCounts, *, alpha: float
) -> Tensor:
    """`(1 - alpha) * CE / labels + alpha * (sum of the terms) / pairs`, a scalar.

    Args:
        cross_entropy: the sum over the supervised student tokens of the micro-batch.
        terms: the sums of the distillation terms over the pairs of the micro-batch; may be empty.
        counts: of the whole optimizer step.
        alpha: the share of distillation.
    """
    distillation = sum(terms.values(), start=0 * cross_entropy)
    return (1 - alpha) * cross_entropy / max(counts.labels, 1) + alpha * distillation / max(counts.pairs, 1)
