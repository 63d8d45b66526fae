"""What a frozen teacher's distribution comes to, kept so that its logits need not be made again.

The forward KL of a student read by the teacher's head is linear in what the teacher says:

    KL(p, softmax(z / tau)) = sum p log p - sum p z / tau + logsumexp(z / tau)
    sum p z = scale (x . sum p W_t + sum p b),    z = scale (x W_t^T + b)

so that of `p [V_t]` nothing is needed but its entropy, its mean row of the head `[D]` and its mean bias; its
gradient with respect to x is `scale / tau (softmax(z / tau) W_t - sum p W_t)`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from dskd.nn.elementwise import argmax, probabilities
from dskd.nn.linear import ReadHead, chunks, computing, dtype_of_logits, rows_at_once

if TYPE_CHECKING:
    from torch import Tensor

    from dskd.nn.heads import Head

__all__ = ["TeacherStatistics", "label_log_probs", "predictions", "probability_sums", "teacher_statistics"]


@dataclass(frozen=True, slots=True, eq=False)
class TeacherStatistics:
    """One row a pair; p is the teacher's distribution at a temperature.

    Attributes:
        predicted: int64 `[pairs]`, the teacher's argmax, the lowest id of several.
        negative_entropy: `[pairs]`, `sum p log p`.
        mean_row: `[pairs, D]`, `sum p W_t`.
        mean_bias: `[pairs]`, `sum p b`; zero without a bias.
        temperature: of p.
    """

    predicted: Tensor
    negative_entropy: Tensor
    mean_row: Tensor
    mean_bias: Tensor
    temperature: float

    def __getitem__(self, rows: slice | Tensor) -> TeacherStatistics:
        """Those of some pairs."""
        return TeacherStatistics(
            self.predicted[rows],
            self.negative_entropy[rows],
            self.mean_row[rows],
            self.mean_bias[rows],
            self.temperature,
        )


@torch.no_grad()
def teacher_statistics(
    head: Head, hidden: Tensor, *, temperature: float = 1.0, chunk_memory: int | None = None
) -> TeacherStatistics:
    """The statistics of a teacher at its hidden states.

    Args:
        head: the teacher's.
        hidden: `[pairs, D]`, after its final norm.
        temperature: of the divergence that they are for.
        chunk_memory: bytes for the logits of one chunk; None: by the device.

    Raises:
        ValueError: the head caps its logits, which are then not linear in its rows.
    """
    if head.softcap is not None:
        raise ValueError(
            f"a head that caps its logits (softcap={head.softcap}) has no such statistics: give hidden "
            "states only"
        )
    head = head.detached()
    dtype = dtype_of_logits(head)
    rows_of_chunk = rows_at_once([(head, 2)], budget=chunk_memory, most=len(hidden))
    read = ReadHead(head, rows_of_chunk)
    room = torch.empty(rows_of_chunk, head.size, dtype=dtype, device=hidden.device)
    found = TeacherStatistics(
        predicted=torch.empty(len(hidden), dtype=torch.int64, device=hidden.device),
        negative_entropy=torch.empty(len(hidden), dtype=dtype, device=hidden.device),
        mean_row=torch.empty(hidden.shape, dtype=dtype, device=hidden.device),
        mean_bias=torch.zeros(len(hidden), dtype=dtype, device=hidden.device),
        temperature=temperature,
    )
    with computing(hidden.device):
        for rows in chunks(len(hidden), rows_of_chunk):
            logits = head.reachable_(read.logits(hidden[rows]))
            found.predicted[rows] = argmax(logits)
            log_p = torch.log_softmax(logits.div_(temperature), -1, out=logits)
            p = probabilities(log_p, out=room[: len(log_p)])
            if head.unreachable is not None:
                log_p.masked_fill_(head.unreachable, 0)  # 0 log 0 is 0
            found.negative_entropy[rows] = log_p.mul_(p).sum(-1)
            found.mean_row[rows] = read.multiplied(p).to(dtype)
            if head.bias is not None:
                found.mean_bias[rows] = p @ head.bias.to(dtype)
    return found


@torch.no_grad()
def predictions(head: Head, hidden: Tensor, *, chunk_memory: int | None = None) -> Tensor:
    """The reachable id that a head says of each state `[n, width]`: int64 `[n]`, the lowest of several."""
    rows_of_chunk = rows_at_once([(head, 1)], budget=chunk_memory, most=len(hidden))
    read = ReadHead(head.detached(), rows_of_chunk)
    found = torch.empty(len(hidden), dtype=torch.int64, device=hidden.device)
    with computing(hidden.device):
        for rows in chunks(len(hidden), rows_of_chunk):
            found[rows] = argmax(head.reachable_(read.logits(hidden[rows])))
    return found


@torch.no_grad()
def label_log_probs(head: Head, hidden: Tensor, labels: Tensor, *, chunk_memory: int | None = None) -> Tensor:
    """What a head says of the token that each state `[n, width]` predicts: log-probabilities `[n]`."""
    rows_of_chunk = rows_at_once([(head, 1)], budget=chunk_memory, most=len(hidden))
    read = ReadHead(head.detached(), rows_of_chunk)
    found = torch.empty(len(hidden), dtype=dtype_of_logits(head), device=hidden.device)
    with computing(hidden.device):
        for rows in chunks(len(hidden), rows_of_chunk):
            logits = read.logits(hidden[rows])
            found[rows] = logits.gather(1, labels[rows, None])[:, 0] - logits.logsumexp(-1)
    return found


@torch.no_grad()
def probability_sums(head: Head, hidden: Tensor, *, chunk_memory: int | None = None) -> Tensor:
    """A teacher's probabilities, summed over its positions: `[V_t]`.

    Args:
        head: the teacher's.
        hidden: `[positions, D]`, after its final norm.
        chunk_memory: bytes for the logits of one chunk; None: by the device.
    """
    rows_of_chunk = rows_at_once([(head, 1)], budget=chunk_memory, most=len(hidden))
    read = ReadHead(head.detached(), rows_of_chunk)
    sums = torch.zeros(head.size, dtype=dtype_of_logits(head), device=hidden.device)
    with computing(hidden.device):
        for rows in chunks(len(hidden), rows_of_chunk):
            logits = head.reachable_(read.logits(hidden[rows]))
            sums += torch.softmax(logits, -1, out=logits).sum(0)
    return sums
