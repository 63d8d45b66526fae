"""Heads read in chunks of rows, their gradients computed on the way: no `[n, V]` tensor outlives a chunk.

A loss over logits needs, for its gradient, nothing of the logits but their own gradient, and that is known as
soon as they are. So each chunk of hidden states is carried through the head, the loss of its rows and the
gradient of their logits are computed at once, and what stays is the gradient of the hidden states `[n, d]`
and of the head `[V, d]`:

    read = ReadHead(0, head, memory)
    for rows in memory.chunks(n):
        logits = read.logits(hidden[rows])
        ...                                       # overwrite the logits with their gradient
        gradient[rows] = read.backward(hidden[rows], logits)
    loss = with_gradients(value, [(hidden, gradient), (head.weight, read.weight_gradient)])

Memory is taken once and written over chunk by chunk: fresh pages cost more than the arithmetic that fills
them.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch.autograd.function import once_differentiable

from dskd.nn.products import linear, linear_into

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor

    from dskd.nn.heads import Head

__all__ = [
    "CHUNK_MEMORY",
    "ChunkMemory",
    "Made",
    "ReadHead",
    "chunk_memory_of",
    "computing",
    "multiplied_in",
    "refuse_sharded",
    "with_gradients",
    "zeros_for",
]

Made: TypeAlias = "tuple[Tensor, Tensor | None]"
"""A tensor, and the gradient of a loss by it."""

CHUNK_MEMORY = 160 * 2**20
"""Bytes for the logits of one chunk and what is made of them."""

_FEWEST_ROWS = 16
"""Below this a product with the head is all reading of the head; other than multiples are slow on a CPU."""

_SHARE_OF_HEAD = 0.75
"""The most that a chunk takes on a CPU of the memory of a head, and so of its gradient beside it."""

_FEW_ROWS_ON_CPU = 64
"""It is more for a narrow head: of 64 rows a row took a tenth to a quarter longer than of 112, by hand."""

_MOST_ROWS_ON_CPU = 128
"""It is less for a wide head: with 144 or 192 rows a loss at d=576, D=896 took no less time, by hand."""


class ChunkMemory:
    """Memory for one chunk at a time, in numbered places, and how many rows a chunk has.

    Matrices of one width have a place each. Those of another width lie over them: a loss is done with one
    vocabulary before it begins with the next.

    Args:
        columns: of all that lives at once in a chunk, in units of the dtype: for two matrices of logits of
            a vocabulary V it is `2 V`.
        dtype: of the logits.
        device: where they are.
        budget: bytes for all of it.
        most: rows that there are.

    Attributes:
        rows: of a chunk, at most.
        numbers: that it holds.
        budget: bytes that it was given.
        autocast: the dtype that autocast multiplies in where this is made, or None.
    """

    def __init__(
        self, columns: int, dtype: torch.dtype, device: torch.device, *, budget: int, most: int
    ) -> None:
        """See the class."""
        self.dtype = dtype
        self.device = device
        self.autocast = _autocast_dtype(device)
        self.budget = budget
        self._step = _FEWEST_ROWS if device.type == "cpu" else 1
        rows = max(_FEWEST_ROWS, budget // max(columns * dtype.itemsize, 1))
        self.rows = min(rows // self._step * self._step, max(most, 1))
        self.numbers = self.rows * columns
        self._kept = torch.empty(self.numbers, dtype=dtype, device=device)

    def chunks(self, count: int) -> Iterator[slice]:
        """Slices that make up so many rows, as few as can be; on a CPU in sixteens but for the last rows."""
        pieces, steps = -(-count // self.rows), -(-count // self._step)
        bounds = [self._step * (steps * piece // pieces) for piece in range(pieces)]
        yield from map(slice, bounds, [*bounds[1:], count])

    def take(self, place: int, rows: int, columns: int) -> Tensor:
        """`[rows, columns]` in this place, from 0; what was there is there still."""
        start = place * rows * columns
        return self._kept[start : start + rows * columns].view(rows, columns)


def _autocast_dtype(device: torch.device) -> torch.dtype | None:
    return torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else None


@contextlib.contextmanager
def computing(memory: ChunkMemory) -> Iterator[None]:
    """Nothing is recorded for autograd, and dtypes are those that are written."""
    with torch.no_grad(), torch.autocast(memory.device.type, enabled=False):
        yield


def chunk_memory_of(matrices: Sequence[tuple[Head, int]], *, budget: int, most: int) -> ChunkMemory:
    """For so many matrices of the logits of each head, one head after the other, in the dtype of logits.

    Args:
        matrices: heads, and how many of their width are there at once. One that caps its logits needs two
            more, for slopes.
        budget: bytes.
        most: rows that there are; on a CPU at most 64 to 128 are in a chunk, by the width of the heads.
    """
    dtype = torch.float32
    for head, _ in matrices:
        dtype = torch.promote_types(dtype, head.weight.dtype)
    columns = max(len(head.weight) * _places(head, count) for head, count in matrices)
    device = matrices[0][0].weight.device
    if device.type == "cpu":
        most = min(most, _most_rows_on_cpu(matrices))
    return ChunkMemory(columns, dtype, device, budget=budget, most=most)


def _most_rows_on_cpu(matrices: Sequence[tuple[Head, int]]) -> int:
    widths = [head.weight.shape[1] / _places(head, count) for head, count in matrices if count]
    rows = int(_SHARE_OF_HEAD * min(widths, default=0)) // _FEWEST_ROWS * _FEWEST_ROWS
    return min(max(rows, _FEW_ROWS_ON_CPU), _MOST_ROWS_ON_CPU)


def _places(head: Head, count: int) -> int:
    return count if head.softcap is None else _SLOPES + 2


_SLOPES = 3
"""How far behind logits the slopes of their caps are."""


class ReadHead:
    """A head for the rows of a chunk: their logits, and from the gradient of these that of all behind them.

    It multiplies in the dtype that the head itself multiplies in, autocast's included, and adds up the
    gradient of the weights in float32 or wider.

    Args:
        place: of its logits in the memory, 0 or 1.
        head: what it reads; its weights get a gradient where they require one.
        memory: of the chunks.

    Raises:
        TypeError: the head is sharded.
    """

    def __init__(self, place: int, head: Head, memory: ChunkMemory) -> None:
        """See the class."""
        refuse_sharded(head)
        dtype = multiplied_in(head, memory)
        self._place = place
        self._head = head
        self._memory = memory
        self._weight = head.weight.detach().to(dtype)
        self._bias = None if head.bias is None else head.bias.detach().to(dtype)
        self.weight_gradient = _accumulator(head.weight)
        self.bias_gradient = None if head.bias is None else _accumulator(head.bias)

    @property
    def size(self) -> int:
        """Of the vocabulary."""
        return self._weight.shape[0]

    def logits(self, hidden: Tensor) -> Tensor:
        """`Head.logits` of `[m, d]`, in the memory of this head: `[m, V]`."""
        logits = self._memory.take(self._place, len(hidden), self.size)
        linear_into(logits, hidden.to(self._weight.dtype), self._weight, self._bias)
        if self._head.scale != 1:
            logits.mul_(self._head.scale)
        if self._head.softcap is not None:
            logits.div_(self._head.softcap).tanh_()
            torch.mul(logits, logits, out=self._slope(logits)).neg_().add_(1)
            logits.mul_(self._head.softcap)
        return logits

    def _slope(self, logits: Tensor) -> Tensor:
        return self._memory.take(self._place + _SLOPES, *logits.shape)

    def reachable_(self, logits: Tensor) -> Tensor:
        """`Head.reachable`, in place."""
        return self._head.reachable_(logits)

    def backward(self, hidden: Tensor, gradient: Tensor) -> Tensor:
        """From the gradient of the logits, which is lost, that of `[m, d]`; that of the weights is added up.

        Args:
            hidden: as it was given to `logits`, last.
            gradient: `[m, V]`, of what `logits` returned.
        """
        if self._head.softcap is not None:
            gradient.mul_(self._slope(gradient))
        if self._head.scale != 1:
            gradient.mul_(self._head.scale)
        if self.bias_gradient is not None:
            self.bias_gradient.add_(gradient.sum(0))
        magnified = _magnified_(gradient) if self._weight.dtype == torch.float16 else None
        gradient = gradient.to(self._weight.dtype)
        if self.weight_gradient is not None:
            hidden = hidden.to(self._weight.dtype)
            if self.weight_gradient.dtype == gradient.dtype:
                self.weight_gradient.addmm_(gradient.T, hidden)
            else:
                made = (gradient.T @ hidden).to(self.weight_gradient.dtype)
                self.weight_gradient.add_(made if magnified is None else made / magnified)
        made = linear(gradient, self._weight.T)
        return made if magnified is None else made.float() / magnified

    def multiplied(self, columns: Tensor) -> Tensor:
        """`columns W`, `[m, V] -> [m, d]`, and nothing else."""
        return linear(columns.to(self._weight.dtype), self._weight.T)


def multiplied_in(head: Head, memory: ChunkMemory) -> torch.dtype:
    """The dtype of products with a head: its own, or autocast's, which leaves float64 as it is."""
    own: torch.dtype = head.weight.dtype
    return own if memory.autocast is None or own == torch.float64 else memory.autocast


def refuse_sharded(head: Head) -> None:
    """Refuses a head of which this process has a part.

    Raises:
        TypeError: it is sharded.
    """
    if hasattr(head.weight, "full_tensor"):
        raise TypeError(
            f"the head is sharded ({type(head.weight).__name__}): compute the loss inside the forward of "
            "the module that FSDP2 gathers, or give a head of weight.full_tensor()"
        )


def _magnified_(gradient: Tensor) -> Tensor:
    """What a gradient was multiplied with, in place, to be as large as 1.

    The scale of a `GradScaler` comes too late for what is rounded to float16 in the forward.
    """
    largest = gradient.abs().amax() if gradient.numel() else gradient.new_zeros(())
    factor = torch.where(largest > 0, 1 / largest.clamp(min=torch.finfo(gradient.dtype).tiny), 1.0)
    gradient.mul_(factor)
    return factor


def _accumulator(parameter: Tensor) -> Tensor | None:
    if not parameter.requires_grad:
        return None
    return torch.zeros_like(parameter, dtype=torch.promote_types(parameter.dtype, torch.float32))


def with_gradients(value: Tensor, made: Sequence[Made]) -> Tensor:
    """The value, as a function of its inputs that has these gradients.

    Args:
        value: a scalar.
        made: each input, and the gradient of the value by it, of its shape, which is given away; one that
            requires none gets none.

    Returns:
        The value. Its backward can run once, and cannot be differentiated.
    """
    inputs = [one for one, _ in made]
    gradients = [
        _kept(gradient, one.dtype) if gradient is not None and one.requires_grad else None
        for one, gradient in made
    ]
    result: Tensor = _WithGradients.apply(value, gradients, *inputs)
    return result


def zeros_for(tensor: Tensor) -> Tensor:
    """For the gradient of a tensor, of its shape; in float32 for float16, see `with_gradients`."""
    return torch.zeros_like(tensor, dtype=torch.float32 if tensor.dtype == torch.float16 else tensor.dtype)


def _kept(gradient: Tensor, dtype: torch.dtype) -> Tensor:
    """In the input's dtype, which autograd is given; float16 only once the loss's scale is in it."""
    return gradient if dtype == torch.float16 else gradient.to(dtype)


class _WithGradients(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, gradients: Sequence[Tensor | None], *inputs: Tensor) -> Tensor:
        ctx.gradients = gradients
        ctx.dtypes = [one.dtype for one in inputs]
        return value.detach().clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor | None, ...]:
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:
            raise RuntimeError(
                "backward ran twice through a fused loss, whose gradients were given away the first time: "
                "call the loss again, or use fused=False"
            )
        is_one = outer.device.type == "cpu" and outer.item() == 1
        scaled = [one if one is None or is_one else one.mul_(outer.to(one.dtype)) for one in gradients]
        of_inputs = zip(scaled, ctx.dtypes, strict=True)
        return None, None, *(None if one is None else one.to(dtype) for one, dtype in of_inputs)
