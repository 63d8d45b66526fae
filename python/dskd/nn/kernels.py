"""Passes over rows of logits as one kernel a block, in place of the several that PyTorch makes of them.

A kernel reads a row twice or three times and writes it once, where PyTorch reads and writes it a dozen times.
Who calls asks `takes` first, and else does the same with PyTorch: tests/test_kernels.py holds both against
the definition. Triton is imported where the first matrix on a GPU is asked for, or under
`TRITON_INTERPRET=1`, by which the kernels run on a CPU, slowly, for the tests. `DSKD_KERNELS=0` leaves
everything to PyTorch.

They ran on no GPU yet: see docs/losses.md.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch import Tensor

__all__ = ["DIVERGENCES", "divergence_and_gradient", "log_probs_and_probabilities", "takes"]

DIVERGENCES = ("kl", "reverse_kl", "js", "skew_kl", "skew_reverse_kl", "tvd")
"""Those that are a sum over tokens of what one token says; `adaptive_kl` sorts."""

_WARPS = 8
"""Of 32 threads, of a program."""

OPTIONS: Mapping[str, Any] = {"num_warps": _WARPS, "enable_fp_fusion": True}
"""Of Triton's compiler; whether products and sums are rounded once has to be said, or 3.9 warns."""

_BLOCK = 2048
"""Numbers of a row that a program works on at once, at most: 8 to a thread.

Compiled for sm_90, js takes 64 registers a thread then, so that four rows are at work on a multiprocessor;
with 4,096 it takes 152, and one row is.
"""

_LEAST_BLOCK = 32 * _WARPS
"""A number to a thread: where two hold one, the one may have written what the other is yet to read."""


def takes(*matrices: Tensor) -> bool:
    """Whether a kernel can read these: float32 `[n, V]`, of one shape, not empty, on a GPU with Triton."""
    first = matrices[0]
    is_there = first.is_cuda or (first.is_cpu and os.environ.get("TRITON_INTERPRET") == "1")
    if not is_there or os.environ.get("DSKD_KERNELS") == "0":
        return False
    fits = all(
        one.dtype == torch.float32
        and one.device == first.device
        and one.shape == first.shape
        and one.stride(-1) == 1
        for one in matrices
    )
    return fits and first.ndim == 2 and first.numel() > 0 and _rows() is not None  # noqa: PLR2004


@torch.no_grad()
def divergence_and_gradient(
    name: str,
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    temperature: float = 1.0,
    mix: float | None = None,
    out: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The divergences of rows of `softmax(logits / temperature)`, and the gradient by the student's quotient.

    See `dskd.nn.divergences`; computed in float32. A row whose divergence is infinite has gradient 0.

    Args:
        name: of `DIVERGENCES`.
        student_logits: `[n, V]`, see `takes`; minus infinity where there is no probability.
        teacher_logits: the same.
        temperature: of both.
        mix: of those that have one, settled.
        out: `[n, V]`, where the gradient is written; it may be the student's logits. None: new memory.

    Returns:
        `[n]` and `[n, V]`, which is `out`; to have the gradient by the logits, divide it by the temperature.
    """
    gradient = torch.empty_like(student_logits) if out is None else out
    rows, columns = student_logits.shape
    items = student_logits.new_empty(rows)
    with _on(student_logits):
        _rows().divergence_rows[(rows,)](
            student_logits,
            teacher_logits,
            gradient,
            items,
            student_logits.stride(0),
            teacher_logits.stride(0),
            gradient.stride(0),
            columns,
            1 / temperature,
            0.0 if mix is None else float(mix),
            NAME=name,
            BLOCK=_block(columns),
            **OPTIONS,
        )
    return items, gradient


@torch.no_grad()
def log_probs_and_probabilities(
    logits: Tensor, ids: Tensor, *, temperature: float = 1.0, out: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """`log_softmax(logits / temperature)` at ids, and `softmax(logits / temperature)`.

    Args:
        logits: `[n, V]`, see `takes`.
        ids: int64 `[n, k]`.
        temperature: positive.
        out: `[n, V]`, where the probabilities are written; it may be the logits. None: new memory.

    Returns:
        `[n, k]` and `[n, V]`, which is `out`.
    """
    probs = torch.empty_like(logits) if out is None else out
    rows, columns = logits.shape
    # Of each row, the largest quotient and the logarithm of the sum: apart, since their sum would be rounded.
    largest, log_sum = logits.new_empty(2, rows, 1).unbind()
    chosen = logits.gather(-1, ids)
    with _on(logits):
        _rows().softmax_rows[(rows,)](
            logits,
            probs,
            largest,
            log_sum,
            logits.stride(0),
            probs.stride(0),
            columns,
            1 / temperature,
            BLOCK=_block(columns),
            **OPTIONS,
        )
    return chosen.mul_(1 / temperature).sub_(largest).sub_(log_sum), probs


def _block(columns: int) -> int:
    """A power of two, as Triton wants it."""
    return max(min(_BLOCK, 1 << (columns - 1).bit_length()), _LEAST_BLOCK)


@functools.cache
def _rows() -> Any:
    """The module of the kernels; None where there is no Triton."""
    try:
        return importlib.import_module("dskd.nn.kernel_rows")
    except ImportError:
        return None


@contextlib.contextmanager
def _on(matrix: Tensor) -> Iterator[None]:
    """Triton starts kernels on the current device, whatever it is given."""
    with torch.cuda.device(matrix.device) if matrix.is_cuda else contextlib.nullcontext():
        yield
