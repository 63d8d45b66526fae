"""Products of few rows with a head, by the library that does them faster where this runs.

For float32 on an x86 CPU PyTorch has two: torch.mm takes MKL, torch.compile takes oneDNN. Which is faster
depends on the processor, on threads, and on which way the head is read. By hand: on an AMD EPYC (Zen 3), in
one thread, the logits of a head took about as long by either, and the way back from them 13 to 40 % longer by
oneDNN; in two, logits took 11 % less by oneDNN. On an Intel machine with AVX-512 MKL was 12 to 22 % faster.
So neither is assumed: at the first product of a kind that is large enough to matter some of it is made by
both, which takes some five milliseconds of a machine at rest, and oneDNN is taken where it gains more than a
busy machine may feign.

What is measured stays in a cache, and a head does not: on that EPYC, busy, in one thread, PyTorch's own was
found faster both ways, and a whole shared-vocabulary loss took 4 % longer by it than by oneDNN.

Two processes may decide differently, and differ in their last bits. Where that must not be, nothing is
measured: with `torch.use_deterministic_algorithms(True)` or `torch.backends.mkldnn.enabled = False` PyTorch's
own product is taken, and the environment variable `DSKD_PRODUCTS` says `torch` or `onednn`. PyTorch's own is
taken too for other dtypes, on other devices and processors, and in a build without the operator that
torch.compile calls.
"""

from __future__ import annotations

import os
import platform
import time
from typing import Literal, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["Library", "linear", "linear_into"]

Library: TypeAlias = Literal["onednn", "torch"]

_TOKENS_AT_ONCE = 2048
"""Columns of a product that are made at once, see `linear_into`.

With 1,024 a dual-space loss took 1 to 4 % longer, by hand; all at once, logits by MKL took 5 to 25 % longer.
"""

_LARGE = 1 << 24
"""Multiplications of half a millisecond: who makes fewer is no matter, and of more as many are measured."""

_TIMES = 3
"""That it is made by each library; the fastest counts, and the first is made besides."""

_GAIN = 1.05
"""By so much oneDNN must be faster, so that of two that are about as fast the same one is taken each time."""


# ---- Products --------------------------------------------------------------------------------------------


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

    Raises:
        ValueError: `DSKD_PRODUCTS` names no library that is there.
    """
    if (room is None or room.dtype == rows.dtype) and library(rows, weight) == "onednn":
        return _by_onednn(rows, weight, bias)
    if room is None:
        return functional.linear(rows, weight, bias)
    if room.dtype != rows.dtype:
        return room.copy_(functional.linear(rows, weight, bias))
    return torch.mm(rows, weight.T, out=room) if bias is None else torch.addmm(bias, rows, weight.T, out=room)


def linear_into(out: Tensor, rows: Tensor, weight: Tensor, bias: Tensor | None = None) -> None:
    """`linear` in memory that is there, `[m, n]`, of any floating dtype."""
    step = _TOKENS_AT_ONCE if _is_float_on_cpu(rows) else max(len(weight), 1)
    for start in range(0, len(weight), step):
        tokens = slice(start, start + step)
        place = out[:, tokens]
        made = linear(rows, weight[tokens], None if bias is None else bias[tokens], room=place)
        if made is not place:
            place.copy_(made)


def _by_onednn(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    made: Tensor = torch.ops.mkldnn._linear_pointwise(  # noqa: SLF001, what the compiler emits
        rows, weight, bias, "none", [], ""
    )
    return made


# ---- Which library ---------------------------------------------------------------------------------------


def library(rows: Tensor, weight: Tensor) -> Library:
    """Who makes this product.

    Raises:
        ValueError: `DSKD_PRODUCTS` names no library that is there.
    """
    if not (_OPERATOR and _is_float_on_cpu(rows) and torch.backends.mkldnn.enabled):
        return "torch"
    if (asked := os.environ.get("DSKD_PRODUCTS")) is not None:
        return _checked(asked)
    if len(rows) * weight.numel() < _LARGE or torch.are_deterministic_algorithms_enabled():
        return "torch"
    kind = weight.is_contiguous(), torch.get_num_threads()
    if kind not in _found:
        _found[kind] = _faster(*_some_of(rows, weight))
    return _found[kind]


_found: dict[tuple[bool, int], Library] = {}
"""In this process, by which way the head is read and in how many threads."""


def _faster(rows: Tensor, weight: Tensor) -> Library:
    """On products that are made in turns, since what else runs comes and goes."""
    by_torch, by_onednn = [], []
    for _ in range(_TIMES + 1):
        start = time.perf_counter()
        functional.linear(rows, weight)
        between = time.perf_counter()
        _by_onednn(rows, weight, None)
        by_torch.append(between - start)
        by_onednn.append(time.perf_counter() - between)
    return "onednn" if _GAIN * min(by_onednn[1:]) < min(by_torch[1:]) else "torch"


def _some_of(rows: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Of a product, as many tokens as are measured: rows of the weight, or columns where it is transposed."""
    count = max(_LARGE // max(len(rows) * min(weight.shape), 1), 1)
    return (rows, weight[:count]) if len(weight) >= weight.shape[1] else (rows[:, :count], weight[:, :count])


def _checked(asked: str) -> Library:
    if asked == "torch":
        return "torch"
    if asked == "onednn":
        return "onednn"
    raise ValueError(f"DSKD_PRODUCTS={asked!r}; it is onednn or torch, or not set: then it is measured")


def _is_float_on_cpu(tensor: Tensor) -> bool:
    return tensor.device.type == "cpu" and tensor.dtype == torch.float32


_OPERATOR = platform.machine() in {"x86_64", "AMD64"} and hasattr(torch.ops.mkldnn, "_linear_pointwise")
