"""Heads read in chunks of rows, their gradients computed on the way: no `[n, V]` tensor outlives a chunk.

A loss over logits needs, for its gradient, nothing of the logits but their own gradient, and that is known as
soon as they are. So each chunk of hidden states is carried through the head, the loss of its rows and the
gradient of their logits are computed at once, and what stays is the gradient of the hidden states `[n, d]`
and of the head `[V, d]`:

    read = ReadHead("logits", head, memory)
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
from torch.nn import functional

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
    "refuse_sharded",
    "with_gradients",
]

Made: TypeAlias = "tuple[Tensor, Tensor | None]"
"""A tensor, and the gradient of a loss by it."""

CHUNK_MEMORY = 128 * 2**20
"""Bytes for the logits of one chunk and what is made of them."""

_FEWEST_ROWS = 16
"""Below this a product with the head is all reading of the head."""


class ChunkMemory:
    """Memory for one chunk at a time, by name, and how many rows a chunk has.

    Args:
        columns: of all that lives at once in a chunk, in units of the dtype: for two matrices of logits of
            a vocabulary V it is `2 V`.
        dtype: of the logits.
        device: where they are.
        budget: bytes for all of it.

    Attributes:
        rows: of a chunk, at most.
        autocast: the dtype that autocast multiplies in where this is made, or None.
    """

    def __init__(self, columns: int, dtype: torch.dtype, device: torch.device, budget: int) -> None:
        """See the class."""
        self.dtype = dtype
        self.device = device
        self.autocast = _autocast_dtype(device)
        self.rows = max(_FEWEST_ROWS, budget // max(columns * dtype.itemsize, 1))
        self._kept: dict[str, Tensor] = {}

    def chunks(self, count: int) -> Iterator[slice]:
        """Slices that make up so many rows, of nearly the same size."""
        pieces = -(-count // self.rows)
        bounds = [count * piece // pieces for piece in range(pieces + 1)] if pieces else [0]
        yield from map(slice, bounds, bounds[1:])

    def take(self, name: str, rows: int, columns: int) -> Tensor:
        """`[rows, columns]` of what has this name; what was there is lost."""
        kept = self._kept.get(name)
        if kept is None or kept.numel() < rows * columns:
            kept = torch.empty(rows * columns, dtype=self.dtype, device=self.device)
            self._kept[name] = kept
        return kept[: rows * columns].view(rows, columns)


def _autocast_dtype(device: torch.device) -> torch.dtype | None:
    return torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else None


@contextlib.contextmanager
def computing(memory: ChunkMemory) -> Iterator[None]:
    """Nothing is recorded for autograd, and dtypes are those that are written."""
    with torch.no_grad(), torch.autocast(memory.device.type, enabled=False):
        yield


def chunk_memory_of(student: Head, teacher: Head, matrices: int, budget: int) -> ChunkMemory:
    """For so many matrices of logits of either head at once, in the dtype of their logits."""
    dtype = torch.promote_types(student.weight.dtype, teacher.weight.dtype)
    size = max(len(student.weight), len(teacher.weight))
    dtype = torch.promote_types(dtype, torch.float32)
    return ChunkMemory(matrices * size, dtype, student.weight.device, budget)


class ReadHead:
    """A head for the rows of a chunk: their logits, and from the gradient of these that of all behind them.

    It multiplies in the dtype that the head itself multiplies in, autocast's included, and adds up the
    gradient of the weights in float32 or wider.

    Args:
        name: of its memory.
        head: what it reads; its weights get a gradient where they require one.
        memory: of the chunks.

    Raises:
        TypeError: the head is sharded.
    """

    def __init__(self, name: str, head: Head, memory: ChunkMemory) -> None:
        """See the class."""
        refuse_sharded(head)
        # Autocast leaves float64 as it is.
        is_cast = memory.autocast is not None and head.weight.dtype != torch.float64
        dtype = memory.autocast if is_cast else head.weight.dtype
        self.scale = head.scale
        self._name = name
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
        logits = self._memory.take(self._name, len(hidden), self.size)
        hidden = hidden.to(self._weight.dtype)
        if self._weight.dtype != logits.dtype:
            logits.copy_(functional.linear(hidden, self._weight, self._bias))
        elif self._bias is None:
            torch.mm(hidden, self._weight.T, out=logits)
        else:
            torch.addmm(self._bias, hidden, self._weight.T, out=logits)
        if self._head.scale != 1:
            logits.mul_(self._head.scale)
        if self._head.softcap is not None:
            logits.div_(self._head.softcap).tanh_()
            slope = self._memory.take(f"{self._name} slope", *logits.shape)
            torch.mul(logits, logits, out=slope).neg_().add_(1)
            logits.mul_(self._head.softcap)
        return logits

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
            gradient.mul_(self._memory.take(f"{self._name} slope", *gradient.shape))
        if self._head.scale != 1:
            gradient.mul_(self._head.scale)
        if self.bias_gradient is not None:
            self.bias_gradient.add_(gradient.sum(0))
        gradient = gradient.to(self._weight.dtype)
        if self.weight_gradient is not None:
            hidden = hidden.to(self._weight.dtype)
            if self.weight_gradient.dtype == gradient.dtype:
                self.weight_gradient.addmm_(gradient.T, hidden)
            else:
                self.weight_gradient.add_(gradient.T @ hidden)
        return gradient @ self._weight

    def multiplied(self, columns: Tensor) -> Tensor:
        """`columns W`, `[m, V] -> [m, d]`, and nothing else."""
        return columns.to(self._weight.dtype) @ self._weight


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
    # Of the input's dtype: what autograd is given.
    gradients = [
        gradient.to(one.dtype) if gradient is not None and one.requires_grad else None
        for one, gradient in made
    ]
    result: Tensor = _WithGradients.apply(value, gradients, *inputs)
    return result


class _WithGradients(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, gradients: Sequence[Tensor | None], *_: Tensor) -> Tensor:
        ctx.gradients = gradients
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
        scaled = (one if one is None or is_one else one.mul_(outer.to(one.dtype)) for one in gradients)
        return None, None, *scaled
