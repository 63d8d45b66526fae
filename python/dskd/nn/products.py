"""Products of few rows with a head, as a CPU does them fast.

torch.mm takes MKL there, torch.compile takes oneDNN: of 112 rows times 49,152 tokens of 576 numbers the
second makes 174 GFLOP a second in two threads of the AMD machine of benches/README.md, and the first 155 (by
hand). It is called by the operator that torch.compile calls; where a build of PyTorch has it not, on other
processors than x86, or where `torch.backends.mkldnn` is switched off, PyTorch's own product does the same.
"""

from __future__ import annotations

import platform

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["linear", "linear_into"]

_TOKENS_AT_ONCE = 2048
"""Columns of a product that are made before they are copied to where they belong, see `linear_into`.

With 1,024 a dual-space loss took 1 to 4 % longer, by hand.
"""


@torch.no_grad()
def linear(rows: Tensor, weight: Tensor, bias: Tensor | None = None, *, room: Tensor | None = None) -> Tensor:
    """`functional.linear`, of which nothing is recorded: `[m, k], [n, k], [n] -> [m, n]`.

    Args:
        rows: `[m, k]`.
        weight: `[n, k]`, of the same dtype; a transposed view costs nothing: `linear(rows, weight.T)` is
            `rows @ weight`.
        bias: `[n]`.
        room: `[m, n]`, contiguous or a part of its columns: memory in which the product may be made, of the
            dtype that it is to have; oneDNN makes it beside that. None: it is made anew, in that of `rows`.

    Returns:
        `[m, n]`: `room`, or new memory.
    """
    if _has_onednn(rows) and (room is None or room.dtype == rows.dtype):
        made: Tensor = torch.ops.mkldnn._linear_pointwise(  # noqa: SLF001, what the compiler emits
            rows, weight, bias, "none", [], ""
        )
        return made
    if room is None:
        return functional.linear(rows, weight, bias)
    if room.dtype != rows.dtype:
        return room.copy_(functional.linear(rows, weight, bias))
    return torch.mm(rows, weight.T, out=room) if bias is None else torch.addmm(bias, rows, weight.T, out=room)


def linear_into(out: Tensor, rows: Tensor, weight: Tensor, bias: Tensor | None = None) -> None:
    """`linear` in memory that is there, `[m, n]`, of any floating dtype."""
    step = _TOKENS_AT_ONCE if _has_onednn(rows) else max(len(weight), 1)
    for start in range(0, len(weight), step):
        tokens = slice(start, start + step)
        place = out[:, tokens]
        made = linear(rows, weight[tokens], None if bias is None else bias[tokens], room=place)
        if made is not place:
            place.copy_(made)


def _has_onednn(tensor: Tensor) -> bool:
    is_float = tensor.device.type == "cpu" and tensor.dtype == torch.float32
    return is_float and bool(torch.backends.mkldnn.enabled) and _OPERATOR


_OPERATOR = platform.machine() in {"x86_64", "AMD64"} and hasattr(torch.ops.mkldnn, "_linear_pointwise")
