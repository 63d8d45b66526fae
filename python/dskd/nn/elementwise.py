"""Passes over logits, as a CPU does them fast; elsewhere they are what PyTorch has.

The figures here were taken by hand, in two threads of the AMD machine of benches/README.md; what they come to
in a loss is in the table there.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["argmax", "exp_", "probabilities", "row_blocks"]

_AT_ONCE = 1 << 17
"""Numbers of a side that a thread of a CPU works on at once, so that they stay in its cache.

A softmax is a thread's for each row: a block has rows for all of them, which halves the time of KL over
151,936 tokens beside one row at once. From 2^17 to 2^19 numbers take about as long.
"""

_MOST_THREADS = 16
"""For which a block has rows: what is made of it lies outside of a loss's chunk."""

_GROUP = 256
"""Numbers of which the largest is found first, see `argmax`; 64 to 1,024 take about as long."""


def row_blocks(matrix: Tensor) -> list[slice]:
    """All rows of `[n, V]`; on a CPU some at once, so that what is made of them stays in its cache."""
    rows, columns = matrix.shape
    if matrix.device.type == "cpu":
        size = min(torch.get_num_threads(), _MOST_THREADS) * max(1, _AT_ONCE // max(1, columns))
    else:
        size = max(1, rows)
    return [slice(start, min(start + size, rows)) for start in range(0, rows, size)] or [slice(0, 0)]


def probabilities(log_probs: Tensor, *, out: Tensor) -> Tensor:
    """`torch.exp(log_probs, out=out)` of `[n, V]`, of a softmax; `out` may be `log_probs`.

    On a CPU that may be MKL's, which takes 0.49 ns a number; a whole softmax, whose exp is another, takes
    0.32.
    """
    if log_probs.device.type != "cpu":
        return torch.exp(log_probs, out=out)
    return torch.softmax(log_probs, -1, out=out)


def exp_(values: Tensor) -> Tensor:
    """`values.exp_()` of what is at most 0, the largest near it.

    On a CPU by powers of two, which take less than half as long (see `probabilities`) and lose more the
    further a value is from 0.
    """
    return values.exp_() if values.device.type != "cpu" else values.mul_(math.log2(math.e)).exp2_()


def argmax(rows: Tensor) -> Tensor:
    """`rows.argmax(-1)` of `[n, V]`, the first of several: int64 `[n]`.

    On a CPU PyTorch finds where the largest is in 0.5 ns a number, and what it is in 0.04.
    """
    columns = rows.shape[-1]
    if rows.device.type != "cpu" or columns < _GROUP:
        return rows.argmax(-1)
    whole = columns // _GROUP
    groups = rows[:, : whole * _GROUP].reshape(len(rows), whole, _GROUP).amax(-1)
    last = rows[:, -_GROUP:].amax(-1, keepdim=True)  # what is in a whole group too is not the first there
    start = torch.cat([groups, last], 1).argmax(-1, keepdim=True).mul_(_GROUP).clamp_(max=columns - _GROUP)
    return rows.gather(1, start + torch.arange(_GROUP, device=rows.device)).argmax(-1) + start[:, 0]
