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

from dskd.nn.linear import CHUNK_MEMORY, ChunkMemory, ReadHead

if TYPE_CHECKING:
    from torch import Tensor

    from dskd.nn.heads import Head

__all__ = ["TeacherStatistics", "teacher_statistics"]


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
    head: Head, hidden: Tensor, *, temperature: float = 1.0, chunk_memory: int = CHUNK_MEMORY
) -> TeacherStatistics:
    """The statistics of a teacher at its hidden states.

    Args:
        head: the teacher's.
        hidden: `[pairs, D]`, after its final norm.
        temperature: of the divergence that they are for.
        chunk_memory: bytes for the logits of one chunk.

    Raises:
        ValueError: the head caps its logits, which are then not linear in its rows.
    """
    if head.softcap is not None:
        raise ValueError(
            f"a head that caps its logits (softcap={head.softcap}) has no such statistics: give hidden states only"
        )
    head = head.detached()
    dtype = torch.promote_types(head.weight.dtype, torch.float32)
    memory = ChunkMemory(2 * len(head.weight), dtype, hidden.device, chunk_memory)
    read = ReadHead("logits", head, memory)
    made = [_of_chunk(read, head, hidden[rows], temperature) for rows in memory.chunks(len(hidden))]
    predicted = torch.cat([one[0] for one in made]) if made else hidden.new_zeros(0, dtype=torch.int64)
    empty = hidden.new_zeros(0, dtype=dtype), hidden.new_zeros(0, hidden.shape[1], dtype=dtype)
    columns = [torch.cat([one[1][at] for one in made]) if made else empty[at == 1] for at in range(3)]
    return TeacherStatistics(predicted, *columns, temperature)


def _of_chunk(
    read: ReadHead, head: Head, hidden: Tensor, temperature: float
) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
    logits = read.reachable_(read.logits(hidden))
    predicted = logits.argmax(-1)
    log_p = torch.log_softmax(logits.div_(temperature), -1, out=logits)
    p = log_p.exp()
    negative_entropy = (p * log_p).sum(-1)
    weight = head.weight.to(p.dtype)
    mean_bias = p.new_zeros(len(p)) if head.bias is None else p @ head.bias.to(p.dtype)
    return predicted, (negative_entropy, p @ weight, mean_bias)
