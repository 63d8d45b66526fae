"""From sums to a loss: the one place where a term is divided by its count.

Every term is `sum over its items / N` in float32, N counted over the whole optimizer step (all accumulation
micro-batches, all ranks) before its first backward. So one batch of four rows and four batches of one row
have the same loss and the same gradient, and what has nothing to sum is zero. A fused loss computes its
gradients in the forward, so it is told N and the shares before.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

__all__ = ["LossParts", "Reduction", "TermSums", "weighted"]

CROSS_ENTROPY = "cross_entropy"
"""The name of its sum; every other term is one of distillation."""


@dataclass(frozen=True, slots=True)
class Reduction:
    """What the terms of one optimizer step are divided by, and their shares.

    Attributes:
        labels: student tokens that are supervised: N of the cross-entropy.
        pairs: aligned pairs that are predicted: N of the distillation terms.
        alpha: the share of distillation; 1 - alpha is the share of the cross-entropy.
        teacher_labels: teacher tokens that are supervised: N of what runs over the teacher's positions, where
            these are no pairs (`CrossModelAttentionLoss`).
    """

    labels: int
    pairs: int
    alpha: float = 0.5
    teacher_labels: int = 0

    @property
    def cross_entropy(self) -> float:
        """What the sum of the cross-entropy is multiplied with."""
        return (1 - self.alpha) / max(self.labels, 1)

    @property
    def distillation(self) -> float:
        """What the sum of a distillation term is multiplied with."""
        return self.alpha / max(self.pairs, 1)


@dataclass(frozen=True, slots=True)
class TermSums:
    """The terms of a loss, each summed over the items of a micro-batch.

    Attributes:
        sums: scalars by name, with gradients.
        counts: numbers for the log by name, without gradients: how many items a gate let through, and the
            like.
    """

    sums: Mapping[str, Tensor]
    counts: Mapping[str, Tensor] = field(default_factory=dict)


class LossParts(NamedTuple):
    """A micro-batch's part of the loss of its step, and what it is made of.

    A tuple, since that is what FSDP2 looks into for the tensor before whose backward it gathers the weights:
    that of PyTorch 2.6 does not look into a dataclass, and gradients would be wrong without a word.

    Attributes:
        loss: a scalar, to be differentiated.
        sums: the terms by name before they were weighted, without gradients.
        counts: as those of `TermSums`.
    """

    loss: Tensor
    sums: Mapping[str, Tensor]
    counts: Mapping[str, Tensor]


def weighted(terms: TermSums, weights: Mapping[str, float]) -> LossParts:
    """The sum of the terms, each multiplied with its weight.

    Args:
        terms: at least one.
        weights: one for each, by name; others are not looked at.
    """
    first, *others = (weights[name] * value for name, value in terms.sums.items())
    detached = {name: value.detach() for name, value in terms.sums.items()}
    return LossParts(sum(others, start=first), detached, terms.counts)
