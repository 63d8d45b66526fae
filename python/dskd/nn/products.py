"""Products of few rows with a head, by the library that does them faster on this processor.

For float32 on an x86 CPU PyTorch has two: torch.mm takes MKL, torch.compile takes oneDNN. MKL takes its
kernels by who made the processor. On the AMD machine of benches/README.md oneDNN makes 174 GFLOP a second
of 112 rows times 49,152 tokens of 576 numbers, in two threads, and MKL 155; on an Intel one with AVX-512
MKL was 12 to 22 % faster (both by hand). So the maker is asked: oneDNN multiplies where it is AMD, or
Hygon, whose cores are AMD's; PyTorch's own product does everywhere else, for other dtypes, on other
devices, in a build without the operator that torch.compile calls, and where `torch.backends.mkldnn` is
switched off. The environment variable `DSKD_PRODUCTS`, `onednn` or `torch`, says otherwise.

Both could be measured once a process, and were for a while: alone a product was judged otherwise than
inside of a loss, whose head does not stay in a cache, and two processes could multiply by different
libraries and differ in their last bits. The maker is the same each time.
"""

from __future__ import annotations

import functools
import os
import platform
from pathlib import Path
from typing import Literal, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["Library", "library", "linear", "linear_into"]

Library: TypeAlias = Literal["onednn", "torch"]

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
    if _by_onednn(rows) and (room is None or room.dtype == rows.dtype):
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
    step = _TOKENS_AT_ONCE if _by_onednn(rows) else max(len(weight), 1)
    for start in range(0, len(weight), step):
        tokens = slice(start, start + step)
        place = out[:, tokens]
        made = linear(rows, weight[tokens], None if bias is None else bias[tokens], room=place)
        if made is not place:
            place.copy_(made)


def library() -> Library:
    """Which library multiplies float32 on a CPU, while `torch.backends.mkldnn` is on.

    Raises:
        ValueError: `DSKD_PRODUCTS` names none, or oneDNN where this build of PyTorch has no such operator.
    """
    asked = os.environ.get("DSKD_PRODUCTS")
    if asked is None:
        return _of_this_processor()
    if asked == "torch":
        return "torch"
    if asked != "onednn":
        raise ValueError(f"DSKD_PRODUCTS={asked!r}; it is onednn or torch, or not set: then by the processor")
    if not _OPERATOR:
        raise ValueError(
            "DSKD_PRODUCTS='onednn', which this build of PyTorch has not; take torch, or do not set it"
        )
    return "onednn"


@functools.cache
def _of_this_processor() -> Library:
    return "onednn" if _OPERATOR and any(maker in _maker() for maker in _FASTER_BY_ONEDNN) else "torch"


def _by_onednn(tensor: Tensor) -> bool:
    is_float = tensor.device.type == "cpu" and tensor.dtype == torch.float32
    return is_float and bool(torch.backends.mkldnn.enabled) and library() == "onednn"


_FASTER_BY_ONEDNN = ("AuthenticAMD", "HygonGenuine")

_OPERATOR = platform.machine() in {"x86_64", "AMD64"} and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def _maker() -> str:
    """The processor's maker, as it calls itself, among other words; empty where nobody says."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor()  # on Windows it ends with the maker
    return next((line for line in lines if line.startswith("vendor_id")), "")
