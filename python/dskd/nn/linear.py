"""Heads read in chunks of rows, their gradients computed on the way: no `[n, V]` tensor outlives a chunk.

A loss over logits needs, for its gradient, nothing of the logits but their own gradient, and that is known as
soon as they are. So each chunk of hidden states is carried through the head, the loss of its rows and the
gradient of their logits are computed at once, and what stays is the gradient of the hidden states `[n, d]`
and of the head `[V, d]`:

    read = ReadHead(head, rows)
    for some in chunks(n, rows):
        logits = read.logits(hidden[some])
        ...                                       # overwrite the logits with their gradient
        gradient[some] = read.backward(hidden[some], logits)
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
    "Made",
    "ReadHead",
    "chunk_memory_on",
    "chunks",
    "computing",
    "dtype_of_logits",
    "multiplied_in",
    "refuse_sharded",
    "rows_at_once",
    "with_gradients",
    "zeros_for",
]

Made: TypeAlias = "tuple[Tensor, Tensor | None]"
"""A tensor, and the gradient of a loss by it."""

CHUNK_MEMORY = 160 * 2**20
"""Bytes for the logits of one chunk and what is made of them; on a GPU see `chunk_memory_on`."""

_SHARE_OF_FREE = 8
"""One part in so many of a GPU's free memory is a chunk's."""

_FEW_ROWS_ON_GPU = 256
"""Where nobody says how much memory there is: a product of fewer is all reading of the head."""

_MOST_ROWS_ON_GPU = 4096
"""A number of the head's gradient in bfloat16 is written, read, widened, and added to one in float32: some 20
bytes, for two operations a row. So many rows make 400 a byte, and a card has some 300. By reckoning.
"""

STEP = 16
"""Of fewer rows a product with a head is all reading of it; other than multiples are slow on a CPU."""

_SHARE_OF_HEADS = 1.0
"""The most that a chunk takes on a CPU of the memory of its heads, the smallest in place of each.

With 0.6 dual space without its gate took a third longer in two threads at d=256, D=512, by hand.
"""

_FEW_ROWS_ON_CPU = 64
"""It is more for a narrow head: of 64 rows a row took a tenth to a quarter longer than of 112, by hand."""

_MOST_ROWS_ON_CPU = 128
"""It is less for a wide head: with 144 or 192 rows a loss at d=576, D=896 took no less time, by hand."""


# ---- How many rows at once -------------------------------------------------------------------------------


def chunk_memory_on(device: torch.device) -> int:
    """Bytes for a chunk where nobody says: on a GPU an eighth of what is free, down to a power of two.

    Free is what the driver has and what PyTorch keeps unused. The power of two keeps chunks, and so what is
    rounded, the same from step to step; give the bytes where two runs have to be equal to the last digit.
    """
    if device.type != "cuda":
        return CHUNK_MEMORY
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    free = torch.cuda.mem_get_info(device)[0] + kept
    return int(1 << max(free // _SHARE_OF_FREE, 1).bit_length() - 1)


def rows_at_once(heads: Sequence[tuple[Head, int]], *, budget: int | None, most: int) -> int:
    """Rows of a chunk of which so many matrices of each head's width are there at once.

    Args:
        heads: each with its number of matrices. One that caps its logits needs another, for slopes.
        budget: bytes for all of them; None: by the device, and on a GPU from 256 to 4,096 rows.
        most: rows that there are; on a CPU at most 64 to 128 are in a chunk, by the width of the heads.
    """
    columns = sum(len(head.weight) * (count + (head.softcap is not None)) for head, count in heads)
    size = max((dtype_of_logits(head).itemsize for head, _ in heads), default=4)
    device = heads[0][0].weight.device
    memory = chunk_memory_on(device) if budget is None else budget
    rows = max(STEP, memory // max(columns * size, 1))
    if budget is None and device.type == "cuda":
        rows = min(max(rows // STEP * STEP, _FEW_ROWS_ON_GPU), _MOST_ROWS_ON_GPU)
    if device.type == "cpu":
        rows = min(rows // STEP * STEP, _most_rows_on_cpu([head for head, _ in heads], columns))
    return min(rows, max(most, 1))


def _most_rows_on_cpu(heads: Sequence[Head], columns: int) -> int:
    sizes = {head.weight.data_ptr(): head.weight.numel() for head in heads}  # one may be read several times
    numbers = min(sizes.values()) * len(sizes)
    rows = int(_SHARE_OF_HEADS * numbers / max(columns, 1)) // STEP * STEP
    return min(max(rows, _FEW_ROWS_ON_CPU), _MOST_ROWS_ON_CPU)


def chunks(count: int, rows: int, step: int = STEP) -> Iterator[slice]:
    """Slices of at most so many rows that make up the count: few, and in sixteens but for the last."""
    step = min(step, rows)
    pieces, steps = -(-count // rows), -(-count // step)
    bounds = [step * (steps * piece // pieces) for piece in range(pieces)]
    yield from map(slice, bounds, [*bounds[1:], count])


# ---- Dtypes ----------------------------------------------------------------------------------------------


def dtype_of_logits(head: Head) -> torch.dtype:
    """Float32, or wider where the head is."""
    return torch.promote_types(head.weight.dtype, torch.float32)


def multiplied_in(head: Head) -> torch.dtype:
    """The dtype of products with a head: its own, or autocast's, which leaves float64 as it is."""
    own: torch.dtype = head.weight.dtype
    device = head.weight.device.type
    if own == torch.float64 or not torch.is_autocast_enabled(device):
        return own
    return torch.get_autocast_dtype(device)


@contextlib.contextmanager
def computing(device: torch.device) -> Iterator[None]:
    """Nothing is recorded for autograd, and dtypes are those that are written."""
    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        yield


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


# ---- A head ----------------------------------------------------------------------------------------------


class ReadHead:
    """A head for the rows of a chunk: their logits, and from the gradient of these that of all behind them.

    It multiplies in the dtype that the head itself multiplies in, autocast's included (that of where it is
    made), and adds up the gradient of the weights in float32 or wider.

    Args:
        head: what it reads; its weights get a gradient where they require one.
        rows: of a chunk, at most, for which memory is taken.

    Raises:
        TypeError: the head is sharded.
    """

    def __init__(self, head: Head, rows: int) -> None:
        """See the class."""
        refuse_sharded(head)
        dtype = multiplied_in(head)
        self._head = head
        self._weight = head.weight.detach().to(dtype)
        self._bias = None if head.bias is None else head.bias.detach().to(dtype)
        self.weight_gradient = _accumulator(head.weight)
        self.bias_gradient = None if head.bias is None else _accumulator(head.bias)
        self.make_room(rows)

    def make_room(self, rows: int) -> None:
        """Takes memory for chunks of so many rows."""
        shape = rows, len(self._weight)
        dtype, device = dtype_of_logits(self._head), self._weight.device
        self._logits = torch.empty(shape, dtype=dtype, device=device)
        self._slopes = None if self._head.softcap is None else torch.empty_like(self._logits)

    @property
    def rows(self) -> int:
        """Of a chunk, at most."""
        return len(self._logits)

    def logits(self, hidden: Tensor) -> Tensor:
        """`Head.logits` of `[m, d]`, in the memory of this head: `[m, V]`."""
        logits = self._logits[: len(hidden)]
        linear_into(logits, hidden.to(self._weight.dtype), self._weight, self._bias)
        if self._head.scale != 1:
            logits.mul_(self._head.scale)
        if self._head.softcap is not None and self._slopes is not None:
            logits.div_(self._head.softcap).tanh_()
            torch.mul(logits, logits, out=self._slopes[: len(hidden)]).neg_().add_(1)
            logits.mul_(self._head.softcap)
        return logits

    def backward(self, hidden: Tensor, gradient: Tensor) -> Tensor:
        """From the gradient of the logits, which is lost, that of `[m, d]`; that of the weights is added up.

        Args:
            hidden: as it was given to `logits`, last.
            gradient: `[m, V]`, of what `logits` returned.
        """
        if self._slopes is not None:
            gradient.mul_(self._slopes[: len(gradient)])
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

    def made(self) -> list[Made]:
        """The weights, and their gradients."""
        made: list[Made] = [(self._head.weight, self.weight_gradient)]
        return made if self._head.bias is None else [*made, (self._head.bias, self.bias_gradient)]


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


# ---- Gradients that are known already --------------------------------------------------------------------


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
