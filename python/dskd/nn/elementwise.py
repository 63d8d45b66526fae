"""Passes over logits, as a CPU does them fast; elsewhere they are what PyTorch has."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["argmax", "exp_", "probabilities", "row_blocks"]

_AT_ONCE = 1 << 18
"""Numbers of a side that a CPU works on at once, so that they stay in its cache."""

_GROUP = 256
"""Numbers of which the largest is found first, see `argmax`."""


def row_blocks(matrix: Tensor) -> list[slice]:
    """All rows of `[n, V]`; on a CPU some at once, so that what is made of them stays in its cache."""
    rows, columns = matrix.shape
    size = max(1, _AT_ONCE // max(1, columns) if matrix.device.type == "cpu" else rows)
    return [slice(start, min(start + size, rows)) for start in range(0, rows, size)] or [slice(0, 0)]


def probabilities(log_probs: Tensor, *, out: Tensor) -> Tensor:
    """`torch.exp(log_probs, out=out)` of `[n, V]`, of a softmax; `out` may be `log_probs`.

    On a CPU that is MKL's, which on an AMD machine takes longer than a softmax, whose exp is another.
    """
    if log_probs.device.type != "cpu":
        return torch.exp(log_probs, out=out)
    return torch.softmax(log_probs, -1, out=out)


def exp_(values: Tensor) -> Tensor:
    """`values.exp_()` of what is at most 0, the largest near it.

    On a CPU by powers of two, which take a third as long (see `probabilities`) and lose more the further a
    value is from 0.
    """
    return values.exp_() if values.device.type != "cpu" else values.mul_(math.log2(math.e)).exp2_()


def argmax(rows: Tensor) -> Tensor:
    """`rows.argmax(-1)` of `[n, V]`, the first of several: int64 `[n]`.

    On a CPU PyTorch finds where the largest is a number at a time, and what it is many times faster.
    """
    columns = rows.shape[-1]
    if rows.device.type != "cpu" or columns < _GROUP:
        return rows.argmax(-1)
    whole = columns // _GROUP
    groups = rows[:, : whole * _GROUP].reshape(len(rows), whole, _GROUP).amax(-1)
    last = rows[:, -_GROUP:].amax(-1, keepdim=True)  # what is in a whole group too is not the first there
    start = torch.cat([groups, last], 1).argmax(-1, keepdim=True).mul_(_GROUP).clamp_(max=columns - _GROUP)
    return rows.gather(1, start + torch.arange(_GROUP)).argmax(-1) + start[:, 0]
