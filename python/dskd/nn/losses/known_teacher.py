"""KL in the teacher's space from what is kept of the teacher, a block of its vocabulary at a time.

With `TeacherStatistics` nothing is needed of a row of the student's logits but its logsumexp and the mean row
of the head under its softmax. Both add up over blocks of tokens, rescaled where a block has a higher maximum
(the online softmax, arXiv 1805.02867). So many rows share a block, none needs to be whole, and a P_st that
is frozen is multiplied into the block.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from dskd.nn.elementwise import exp_
from dskd.nn.heads import UNREACHABLE
from dskd.nn.linear import multiplied_in, refuse_sharded, zeros_for
from dskd.nn.products import linear

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from dskd.nn.heads import Head
    from dskd.nn.linear import ChunkMemory, Made
    from dskd.nn.losses.spaces import Comparison
    from dskd.nn.teacher_statistics import TeacherStatistics

__all__ = ["KnownTeacherSpace", "block_sizes"]

_ROWS = 2048
"""At once on a CPU, where what is made of a block is to stay in its cache."""

_TOKENS = 512
"""Of a block there, 3 % less time than with 256, by hand; elsewhere a block is what the memory holds."""


def block_sizes(count: int, tokens: int, memory: ChunkMemory) -> tuple[int, int]:
    """How many states are worked on at once, of so many, and with how many tokens of the vocabulary."""
    on_cpu = memory.device.type == "cpu"
    most = min(max(memory.numbers // _TOKENS, 1), _ROWS if on_cpu else count)
    groups = max(-(-count // max(most, 1)), 1)
    rows = max(-(-count // groups), 1)
    return rows, max(min(memory.numbers // rows, _TOKENS if on_cpu else tokens), 1)


class KnownTeacherSpace:
    """s2t_kd where the divergence is KL and the statistics are those of its temperature.

    Args:
        states: `[m, D]`, the student's in the teacher's space; `[m, d]` with a projector.
        head: the teacher's.
        how: they are compared, see `Comparison.known_from`.
        weight: of `s2t_kd`.
        statistics: of the teacher at these rows.
        memory: of the chunks, in which a block lies; by oneDNN it lies beside, and is no larger.
        projector: P_st `[d, D]`, which no gradient moves; None: the states are carried already.

    Attributes:
        sum: of the term.
    """

    def __init__(
        self,
        states: Tensor,
        head: Head,
        how: Comparison,
        weight: float,
        statistics: TeacherStatistics,
        *,
        memory: ChunkMemory,
        projector: Tensor | None = None,
    ) -> None:
        """See the class.

        Raises:
            TypeError: the head is sharded.
        """
        refuse_sharded(head)
        self._states, self._head, self._how, self._weight = states, head.detached(), how, weight
        self._statistics, self._memory, self._projector = statistics, memory, projector
        self._dtype = multiplied_in(head, memory)
        self._gradient = zeros_for(states)
        self.sum = torch.zeros((), dtype=memory.dtype, device=memory.device)

    def add(self, kept: Tensor) -> None:
        """All rows, of which those that are kept take part: bool `[m]`."""
        rows, tokens = block_sizes(len(self._states), len(self._head.weight), self._memory)
        for start in range(0, len(self._states), rows):
            part = slice(start, start + rows)
            self._add(part, kept[part], tokens)

    def made(self) -> Made:
        """The states, and their gradient."""
        return self._states, self._gradient

    def _add(self, rows: slice, kept: Tensor, tokens: int) -> None:
        states, known, how, scale = self._states[rows], self._statistics[rows], self._how, self._head.scale
        dtype = self._memory.dtype
        mean_row = known.mean_row.to(dtype)
        if self._projector is not None:
            mean_row = mean_row @ self._projector.to(dtype).T
        log_total, of_student = self._softmax(states, tokens)
        mean = (states.to(dtype) * mean_row).sum(-1) + known.mean_bias
        items = known.negative_entropy - scale / how.temperature * mean + log_total
        self.sum += how.summed(items, kept)
        if of_student is not None:
            slopes = scale * how.slopes(kept, self._weight, dtype)
            self._gradient[rows] = (slopes * (of_student - mean_row)).to(self._gradient.dtype)

    def _softmax(self, states: Tensor, tokens: int) -> tuple[Tensor, Tensor | None]:
        """Logsumexp of the logits by the temperature `[m]`, and the head's mean row under their softmax."""
        count, width = states.shape
        highest = states.new_full((count,), -torch.inf, dtype=self._memory.dtype)
        total = torch.zeros_like(highest)
        mean = highest.new_zeros(count, width) if self._states.requires_grad else None
        for weight, logits in self._blocks(states, tokens):
            above = torch.maximum(highest, logits.amax(-1))
            shrink = torch.exp(highest - above)
            exps, highest = exp_(logits.sub_(above[:, None])), above
            total.mul_(shrink).add_(exps.sum(-1))
            if mean is None:
                continue
            mean.mul_(shrink[:, None])
            if weight.dtype == mean.dtype:
                mean.addmm_(exps, weight)
            else:
                mean.add_(exps.to(weight.dtype) @ weight)
        return highest + total.log(), None if mean is None else mean.div_(total[:, None])

    def _blocks(self, states: Tensor, tokens: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Rows of the head `[tokens, width]`, and logits by the temperature `[m, tokens]`, to write on."""
        head, tau = self._head, self._how.temperature
        rows = states.to(self._dtype)
        kept = self._memory.take(0, len(states), tokens).view(-1)
        for start in range(0, len(head.weight), tokens):
            part = head.rows(slice(start, start + tokens))
            if self._projector is not None:
                part = part.through(self._projector, self._dtype)
            weight = part.weight.to(self._dtype)
            bias = None if part.bias is None else part.bias.to(self._dtype)
            room = kept[: len(rows) * len(weight)].view(len(rows), len(weight))
            logits = linear(rows, weight, bias, room=room)
            if part.scale != tau:
                logits.mul_(part.scale / tau)
            if part.unreachable is not None:
                logits.masked_fill_(part.unreachable, UNREACHABLE)
            yield weight, logits
