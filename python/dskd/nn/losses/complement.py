"""The logarithm of what is left beside a probability, also where next to nothing is."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["apart_from_one", "log_of_complement"]


def apart_from_one(log_p: Tensor) -> Tensor:
    """`log p`, which is no nearer to 0 than rounding lets it be told from 0: its epsilon.

    So `1 - p` is never 0. The gradient is as if nothing had been changed: with that of the softmax behind it,
    which is as near to 0, it is finite, and none would leave a student sure of what its teacher is not.
    """
    beyond = (log_p.detach() + torch.finfo(log_p.dtype).eps).clamp(min=0)
    return log_p - beyond


def log_of_complement(log_p: Tensor) -> Tensor:
    """`log(1 - p)`, from whichever of two forms is exact there; p is below 1."""
    half = -math.log(2)
    is_near = log_p > half
    near, far = torch.where(is_near, log_p, half), torch.where(is_near, half, log_p)
    return torch.where(is_near, torch.log(-torch.expm1(near)), torch.log1p(-torch.exp(far)))
