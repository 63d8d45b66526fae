"""Options that several losses have."""

from __future__ import annotations

import math
from dataclasses import dataclass

from dskd.nn.divergences import Divergence, checked_divergence
from dskd.nn.loss import Loss

__all__ = ["Comparing", "refuse_no_tokens", "refuse_other"]


@dataclass(frozen=True, kw_only=True)
class Comparing(Loss):
    """A loss that compares two distributions by a divergence.

    Attributes:
        divergence: D, of the student's distribution from the teacher's: kl, reverse_kl, js, skew_kl,
            skew_reverse_kl, adaptive_kl or tvd.
        mix: the parameter of D, where it has one: beta of js, lambda of the skewed ones, the threshold of
            adaptive_kl; None: its default.
        temperature: tau, of both.
    """

    divergence: Divergence = "kl"
    mix: float | None = None
    temperature: float = 1.0

    def __post_init__(self) -> None:
        """Checks them.

        Raises:
            ValueError: one is out of its range.
        """
        checked_divergence(self.divergence, self.mix)
        refuse_other("temperature", self.temperature, above=0)


def refuse_other(name: str, value: float, *, above: float | None = None, least: float = 0) -> None:
    """Refuses a number that is out of its range, or none.

    Raises:
        ValueError: it is.
    """
    if above is not None:
        if not above < value < math.inf:
            raise ValueError(f"{name}={value}; it is a number above {above}")
    elif not least <= value < math.inf:
        raise ValueError(f"{name}={value}; it is a number from {least} on")


def refuse_no_tokens(name: str, count: int | None) -> None:
    """Refuses a number of tokens that is below 1; None is all.

    Raises:
        ValueError: it is.
    """
    if count is not None and count < 1:
        raise ValueError(f"{name}={count}; it is a number from 1 on, or None for all")
