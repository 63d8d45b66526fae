"""KL in the teacher's space from what is kept of the teacher, a block of its vocabulary at a time.

With `TeacherStatistics` nothing is needed of a row of the student's logits but its logsumexp and the mean row
of the head under its softmax. Both add up over blocks of tokens, rescaled where a block has a higher maximum
(the online softmax, arXiv 1805.02867). So many rows share a block, none needs to be whole, and a P_st that
is frozen is multiplied into the block.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from dskd.nn.elementwise import exp_
from dskd.nn.heads import UNREACHABLE
from dskd.nn.linear import CHUNK_MEMORY, computing, dtype_of_logits, multiplied_in, refuse_sharded, zeros_for
from dskd.nn.products import linear
from dskd.nn.projectors import carried

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from dskd.nn.heads import Head
    from dskd.nn.teacher_statistics import TeacherStatistics
    from dskd.nn.term import Read

__all__ = ["is_enough", "known_kl"]

_ROWS = 2048
"""At once on a CPU, where what is made of a block is to stay in its cache."""

_TOKENS = 512
"""Of a block there, 3 % less time than with 256, by hand; elsewhere a block is what the memory holds."""


def is_enough(statistics: TeacherStatistics, head: Head, temperature: float) -> bool:
    """Whether KL at this temperature needs nothing else of the teacher."""
    return statistics.temperature == temperature and head.softcap is None


def known_kl(read: Read, statistics: TeacherStatistics, *, chunk_memory: int = CHUNK_MEMORY) -> Tensor:
    """`KL(p, softmax(logits / temperature))` of each row, p the teacher's that is kept: `[n]`.

    Args:
        read: the student's states, read by the teacher's head, whose weights get no gradient.
        statistics: of the teacher at these rows; their temperature counts.
        chunk_memory: bytes for the logits of a block.

    Raises:
        TypeError: the head is sharded.
    """
    refuse_sharded(read.head)
    states, projector = read.states, read.projector
    if projector is not None:
        # Multiplied into each block, of which so many rows share one.
        times = -(-len(states) // _sizes(len(states), read.head, chunk_memory)[0])
        if not read.is_cheaper_in_head(times):
            states, projector = carried(states, projector), None
    found: Tensor = _Known.apply(states, _Blocks(read.head.detached(), statistics, projector, chunk_memory))
    return found


def _sizes(count: int, head: Head, chunk_memory: int) -> tuple[int, int]:
    """How many states are worked on at once, of so many, and with how many tokens of the vocabulary."""
    on_cpu = head.weight.device.type == "cpu"
    numbers = max(chunk_memory // dtype_of_logits(head).itemsize, 1)
    most = min(max(numbers // _TOKENS, 1), _ROWS if on_cpu else count)
    groups = max(-(-count // max(most, 1)), 1)
    rows = max(-(-count // groups), 1)
    return rows, max(min(numbers // rows, _TOKENS if on_cpu else head.size), 1)


class _Known(torch.autograd.Function):
    """Items, and in the forward the gradient of each by its state."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, blocks: _Blocks) -> Tensor:
        items, slopes = blocks.run(states.detach(), needs_gradient=ctx.needs_input_grad[0])
        ctx.slopes, ctx.dtype = slopes, states.dtype
        return items

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, None]:
        slopes, ctx.slopes = ctx.slopes, None
        return None if slopes is None else slopes.mul_(outer[0][:, None]).to(ctx.dtype), None


class _Blocks:
    """The head's vocabulary, a block of tokens after the other."""

    def __init__(
        self, head: Head, statistics: TeacherStatistics, projector: Tensor | None, chunk_memory: int
    ) -> None:
        self._head, self._statistics, self._projector = head, statistics, projector
        self._chunk_memory = chunk_memory
        self._in = multiplied_in(head)
        self._dtype = dtype_of_logits(head)

    def run(self, states: Tensor, *, needs_gradient: bool) -> tuple[Tensor, Tensor | None]:
        """`[n]`, and `[n, width]`."""
        items = torch.empty(len(states), dtype=self._dtype, device=states.device)
        slopes = zeros_for(states) if needs_gradient else None
        rows, tokens = _sizes(len(states), self._head, self._chunk_memory)
        room = torch.empty(rows * tokens, dtype=self._dtype, device=states.device)
        with computing(states.device):
            for start in range(0, len(states), rows):
                part = slice(start, start + rows)
                self._some(states[part], part, tokens, room, (items, slopes))
        return items, slopes

    def _some(
        self, states: Tensor, rows: slice, tokens: int, room: Tensor, into: tuple[Tensor, Tensor | None]
    ) -> None:
        items, slopes = into
        known, tau, scale = self._statistics[rows], self._statistics.temperature, self._head.scale
        mean_row = known.mean_row.to(self._dtype)
        if self._projector is not None:
            mean_row = mean_row @ self._projector.to(self._dtype).T
        log_total, of_student = self._softmax(states, tokens, room, needs_mean=slopes is not None)
        mean = (states.to(self._dtype) * mean_row).sum(-1) + known.mean_bias
        items[rows] = known.negative_entropy - scale / tau * mean + log_total
        if slopes is not None and of_student is not None:
            slopes[rows] = (scale / tau * (of_student - mean_row)).to(slopes.dtype)

    def _softmax(
        self, states: Tensor, tokens: int, room: Tensor, *, needs_mean: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Logsumexp of the logits by the temperature `[m]`, and the head's mean row under their softmax."""
        count, width = states.shape
        # Finite: a block may have no id that can be reached, and infinities have no difference.
        highest = states.new_full((count,), torch.finfo(self._dtype).min, dtype=self._dtype)
        total = torch.zeros_like(highest)
        mean = highest.new_zeros(count, width) if needs_mean else None
        for weight, logits in self._blocks(states, tokens, room):
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

    def _blocks(self, states: Tensor, tokens: int, room: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Rows of the head `[tokens, width]`, and logits by the temperature `[m, tokens]`, to write on."""
        head, tau = self._head, self._statistics.temperature
        rows = states.to(self._in)
        for start in range(0, head.size, tokens):
            part = head.rows(slice(start, start + tokens))
            if self._projector is not None:
                part = part.through(self._projector, self._in)
            weight = part.weight.to(self._in)
            bias = None if part.bias is None else part.bias.to(self._in)
            place = room[: len(rows) * len(weight)].view(len(rows), len(weight))
            logits = linear(rows, weight, bias, room=place)
            if part.scale != tau:
                logits.mul_(part.scale / tau)
            if part.unreachable is not None:
                logits.masked_fill_(part.unreachable, UNREACHABLE)
            yield weight, logits
