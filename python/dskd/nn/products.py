"""Products of few rows with a head, as a CPU does them fast.

torch.mm takes MKL there, torch.compile takes oneDNN; for some hundred rows times many the second is a fifth
faster on the AMD machine of benches/README.md. It is called by the operator that torch.compile calls; where
a build of PyTorch has it not, or `torch.backends.mkldnn` is switched off, torch.mm does the same.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["linear", "linear_into"]

_TOKENS_AT_ONCE = 2048
"""Columns of a product that are made before they are copied to where they belong, see `linear_into`."""


def linear(rows: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`functional.linear`, of which nothing is recorded: `[m, k], [n, k], [n] -> [m, n]`.

    `weight` may be a transposed view, so `linear(rows, weight.T)` is `rows @ weight`.
    """
    if _has_onednn(rows):
        made: Tensor = torch.ops.mkldnn._linear_pointwise(  # noqa: SLF001
            rows, weight, bias, "none", [], ""
        )
        return made
    return functional.linear(rows, weight, bias)


def linear_into(out: Tensor, rows: Tensor, weight: Tensor, bias: Tensor | None = None) -> None:
    """`linear` in memory that is there, `[m, n]`, of any floating dtype."""
    if out.dtype != rows.dtype:
        out.copy_(functional.linear(rows, weight, bias))
    elif _has_onednn(rows):
        for start in range(0, len(weight), _TOKENS_AT_ONCE):
            tokens = slice(start, start + _TOKENS_AT_ONCE)
            out[:, tokens] = linear(rows, weight[tokens], None if bias is None else bias[tokens])
    elif bias is None:
        torch.mm(rows, weight.T, out=out)
    else:
        torch.addmm(bias, rows, weight.T, out=out)


def _has_onednn(tensor: Tensor) -> bool:
    is_float = tensor.device.type == "cpu" and tensor.dtype == torch.float32
    return is_float and bool(torch.backends.mkldnn.enabled) and _OPERATOR


_OPERATOR = hasattr(torch.ops.mkldnn, "_linear_pointwise")
