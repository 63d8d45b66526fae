"""Who runs terms: `whole` over all rows at once, under plain autograd; `fused` a chunk of rows at a time.

`fused` makes the logits of every Read once for a chunk, for all terms that have it; the terms run on blocks
of some rows of these, small enough to stay in a cache; autograd finds the gradient of the block's logits,
which is written over them; and two products a chunk carry it back to the states and the head. So its value
and every gradient are those of `whole`, and no `[n, V]` outlives a chunk.

Two things have their gradient in closed form, since autograd would keep several matrices for each:
log-probabilities at given ids, and divergences.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch

from dskd.nn import kernels
from dskd.nn.divergences import divergence, gradient_by_logits
from dskd.nn.elementwise import row_blocks
from dskd.nn.linear import (
    STEP,
    ReadHead,
    chunk_memory_on,
    computing,
    dtype_of_logits,
    multiplied_in,
    rows_at_once,
    with_gradients,
    zeros_for,
)
from dskd.nn.projectors import carried
from dskd.nn.reduction import LossParts
from dskd.nn.term import Aside, Read, Term

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from torch import Tensor

    from dskd.nn.divergences import Divergence
    from dskd.nn.heads import Head
    from dskd.nn.linear import Made
    from dskd.nn.term import Items, Over

__all__ = ["Part", "by_position", "fused", "whole"]


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """A term of a sum.

    Attributes:
        term: as its loss made it.
        name: in the log.
        over: the name of the count that it runs over.
        weight: what its sum is multiplied with.
    """

    term: Term | Aside
    name: str
    over: str
    weight: float


def whole(parts: Sequence[Part]) -> LossParts:
    """The definition: all logits there are, and autograd."""
    logits: dict[Read, Tensor] = {}
    log, found = _Log(), []
    for part in parts:
        term = part.term
        total = term.sum if isinstance(term, Aside) else _whole_items(part, term, logits, log).sum()
        log.add(part, total)
        if isinstance(term, Aside):
            log.count(part, term.counts)
        found.append(part.weight * total)
    if not found:
        raise ValueError("there is nothing to sum: give at least one loss")
    return log.parts(torch.stack(found).sum())


def by_position(parts: Sequence[Part], count: int) -> LossParts:
    """As `whole`, but the loss is what each of so many positions of the student adds: `[count]`.

    A chunk's stands at its first position.

    Raises:
        ValueError: a term is none of the student's positions.
    """
    logits: dict[Read, Tensor] = {}
    log, loss = _Log(), torch.zeros(())
    for part in parts:
        term = part.term
        if isinstance(term, Aside) or term.over.walk != "labels":
            raise ValueError(
                f"{part.name} is not of the student's positions, so that there is no loss of each"
            )
        items = _whole_items(part, term, logits, log)
        log.add(part, items.sum())
        loss = loss if loss.ndim else items.new_zeros(count)
        loss = loss.index_add(0, _positions(term.over, items.device), part.weight * items)
    return log.parts(loss)


def _whole_items(part: Part, term: Term, logits: dict[Read, Tensor], log: _Log) -> Tensor:
    """A loss for each item, of all rows at once."""
    views = [_whole_view(read, term.over, logits) for read in term.reads]
    items, numbers = _items(term.losses(slice(0, _rows_of(term.over)), *views))
    log.count(part, numbers)
    return items


def _positions(over: Over, device: torch.device) -> Tensor:
    """The first position of each item."""
    at = torch.arange(_rows_of(over), device=device) if over.at is None else over.at
    if over.item is None:
        return at
    return at[torch.cat([over.item.new_ones(1, dtype=torch.bool), over.item.diff() > 0])[: len(at)]]


def fused(parts: Sequence[Part], *, chunk_memory: int | None = None) -> LossParts:
    """`whole`, value and every gradient, computed in the forward; its backward can run once.

    Args:
        parts: at least one.
        chunk_memory: bytes for the logits of one chunk; None: by the device, see `dskd.nn.linear`.

    Raises:
        TypeError: a head is sharded.
    """
    log, made, values, asides = _Log(), [], [], []
    walks: dict[str, list[tuple[Part, Term]]] = {}
    for part in parts:
        if isinstance(part.term, Aside):
            asides.append(part.weight * part.term.sum)
            log.add(part, part.term.sum)
            log.count(part, part.term.counts)
        else:
            walks.setdefault(part.term.over.walk, []).append((part, part.term))
    for along in walks.values():
        walk = _Walk(along, chunk_memory)
        values.append(walk.run(log))
        made += walk.made()
    walked = [with_gradients(torch.stack(values).sum(), made)] if values else []
    if not (walked or asides):
        raise ValueError("there is nothing to sum: give at least one loss")
    return log.parts(torch.stack([*walked, *asides]).sum())


class _Log:
    """Sums and numbers by name, without gradients."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, Tensor] = {}
        self._over: dict[str, str] = {}

    def add(self, part: Part, found: Tensor) -> None:
        self._put(self._sums, part.name, found.detach(), part)

    def count(self, part: Part, numbers: Mapping[str, Tensor]) -> None:
        """Numbers of a term, of whose teacher they are, too."""
        beside = part.name[: part.name.rfind("/") + 1]
        for name, number in numbers.items():
            self._put(self._counts, beside + name, number, part)

    def _put(self, into: dict[str, Tensor], name: str, value: Tensor, part: Part) -> None:
        if (over := self._over.setdefault(name, part.over)) != part.over:
            raise ValueError(
                f"two losses speak of {name}, one over {over} and one over {part.over}, which do not add up "
                "in a log: train by one of them, or let them listen to teachers of different names"
            )
        into[name] = into[name] + value if name in into else value

    def parts(self, loss: Tensor) -> LossParts:
        return LossParts(loss, self._sums, self._counts, self._over)


def _items(found: Items) -> tuple[Tensor, Mapping[str, Tensor]]:
    return found if isinstance(found, tuple) else (found, {})


def _rows_of(over: Over) -> int:
    return over.count if over.at is None else len(over.at)


# ---- What a term sees ------------------------------------------------------------------------------------


class _View:
    """Rows of logits, see `dskd.nn.term.View`.

    Args:
        logits: `[m, V]`.
        head: that made them.
        labels: int64 `[m]`.
        closed: where closed forms put their gradients; None: autograd finds all of them.
        of: the view of all rows of the block, and which of them these are.
    """

    def __init__(
        self,
        logits: Tensor,
        head: Head,
        labels: Tensor | None,
        closed: _Closed | None = None,
        of: tuple[_View, Tensor] | None = None,
    ) -> None:
        self.logits, self.head, self._labels, self._closed, self._of = logits, head, labels, closed, of

    @property
    def labels(self) -> Tensor:
        if self._labels is None:
            raise ValueError("these logits predict no labels")
        return self._labels

    @property
    def reachable(self) -> Tensor:
        return self.head.reachable(self.logits)

    @cached_property
    def gold(self) -> Tensor:
        if self._of is not None:
            everything, rows = self._of
            return everything.gold[rows]
        found = self._log_probs_at(self.logits, self.labels.clamp(min=0)[:, None], 1.0)[:, 0]
        return torch.where(self.labels >= 0, found, 0)

    def log_probs_at(self, ids: Tensor, temperature: float = 1.0) -> Tensor:
        """See `View`; minus infinity of what has no probability."""
        found = self._log_probs_at(self.reachable, ids, temperature)
        if self.head.unreachable is None:
            return found
        return found.masked_fill(self.head.unreachable[ids], -torch.inf)  # and no slope

    def _log_probs_at(self, logits: Tensor, ids: Tensor, temperature: float) -> Tensor:
        if self._closed is None:
            logits = logits if temperature == 1 else logits / temperature
            return logits.log_softmax(-1).gather(-1, ids)
        items, probs = _log_probs_and_probabilities(logits.detach(), ids, temperature)

        def gradient(outer: Tensor) -> _Gradient:
            outer = outer / temperature
            return _Gradient(-outer.sum(-1), probs, at=(ids, outer))

        return self._closed.add(items, gradient, self._rows)

    def divergence(
        self,
        name: Divergence,
        target: Tensor,
        columns: Tensor | None = None,
        *,
        temperature: float = 1.0,
        mix: float | None = None,
    ) -> Tensor:
        target = target.detach()
        logits = self.reachable if self._closed is None else self.head.reachable(self.logits.detach())
        if columns is not None:
            logits = logits.index_select(-1, columns)
        if self._closed is None:
            return divergence(name, logits, target, temperature=temperature, mix=mix)
        is_copy = columns is not None or self.head.unreachable is not None
        items, of_items = gradient_by_logits(
            name, logits, target, temperature=temperature, mix=mix, overwrite=is_copy
        )

        def gradient(outer: Tensor) -> _Gradient:
            return _Gradient(outer / temperature, of_items, columns)

        return self._closed.add(items, gradient, self._rows)

    @property
    def _rows(self) -> Tensor | None:
        # Not the view itself: what a gradient's closure holds lives until the collector runs.
        return None if self._of is None else self._of[1]


def _log_probs_and_probabilities(logits: Tensor, ids: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Of `logits / temperature`, at ids and everywhere; the second may be written on."""
    if kernels.takes(logits):
        return kernels.log_probs_and_probabilities(logits, ids, temperature=temperature)
    logits = logits if temperature == 1 else logits / temperature
    # One softmax for both: what all logits have more is told by the largest.
    probs = logits.softmax(-1)
    log_total = logits.amax(-1, keepdim=True) - probs.amax(-1, keepdim=True).log_()
    return logits.gather(-1, ids) - log_total, probs


@dataclass(frozen=True, slots=True, eq=False)
class _Gradient:
    """Of some logits in closed form: `factor[:, None] * matrix`.

    Attributes:
        factor: `[m]`.
        matrix: `[m, columns]`, to be written on.
        columns: int64, which of the logits' they are; None: all.
        at: int64 `[m, k]` and `[m, k]`: what is added at these columns besides.
    """

    factor: Tensor
    matrix: Tensor
    columns: Tensor | None = None
    at: tuple[Tensor, Tensor] | None = None

    def over(self, place: Tensor) -> None:
        """Writes it over all that is there."""
        if self.columns is not None:
            self.into(place.zero_())
            return
        torch.mul(self.matrix, self.factor[:, None], out=place)
        self._at(place)

    def into(self, place: Tensor) -> None:
        """Adds it to what is there."""
        if self.columns is None:
            place.addcmul_(self.matrix, self.factor[:, None])
        else:
            place.index_add_(1, self.columns, self.matrix.mul_(self.factor[:, None]))
        self._at(place)

    def _at(self, place: Tensor) -> None:
        if self.at is not None:
            place.scatter_add_(1, *self.at)


class _Closed:
    """Of a block of logits: items of which the gradient is known in closed form.

    To autograd they are leaves. Once it has said what the loss's gradient by each is, nobody needs the logits
    any more, and the gradient is written over them.
    """

    def __init__(self) -> None:
        self.items: list[Tensor] = []
        self._gradients: list[tuple[Callable[[Tensor], _Gradient], Tensor | None]] = []

    def add(self, items: Tensor, gradient: Callable[[Tensor], _Gradient], rows: Tensor | None) -> Tensor:
        """The items; `gradient` makes that of these rows of the logits, None: all, from that of the items."""
        self.items.append(items.requires_grad_())
        self._gradients.append((gradient, rows))
        return items

    def leave(self, place: Tensor, outer: Sequence[Tensor | None], by_autograd: Tensor | None) -> None:
        """Writes the whole gradient over the logits.

        Args:
            place: the logits.
            outer: the gradient by each of the items; None: nobody used them.
            by_autograd: of the logits, for what is not in closed form.
        """
        is_empty = by_autograd is None
        if by_autograd is not None:
            place.copy_(by_autograd)
        for (gradient, rows), of_items in zip(self._gradients, outer, strict=True):
            if of_items is None:
                continue
            if rows is None and is_empty:
                gradient(of_items).over(place)
            elif rows is None:
                gradient(of_items).into(place)
            else:
                place = place.zero_() if is_empty else place
                some = place.new_empty(len(rows), place.shape[1])
                gradient(of_items).over(some)
                place.index_add_(0, rows, some)
            is_empty = False
        if is_empty:
            place.zero_()


def _whole_view(read: Read, over: Over, logits: dict[Read, Tensor]) -> _View:
    """All rows of what a term runs over."""
    if read not in logits:
        states = read.states if read.projector is None else carried(read.states, read.projector)
        logits[read] = read.head.logits(states)
    if read.over is over:
        return _View(logits[read], read.head, read.labels)
    rows = _among_all(read, over)
    labels = None if read.labels is None else read.labels[rows]
    return _View(logits[read].index_select(0, rows), read.head, labels)


def _among_all(read: Read, over: Over) -> Tensor:
    """Where in the rows of a Read those of a term are."""
    if read.over.at is not None or read.over.walk != over.walk or over.at is None:
        raise ValueError(
            f"a term over {over.name} cannot read states that are at {read.over.name}: give a Read of the "
            "rows that it runs over, or of all positions"
        )
    return over.at


# ---- The walk --------------------------------------------------------------------------------------------


class _Walk:
    """One call of `fused`, along the positions of one model."""

    def __init__(self, parts: Sequence[tuple[Part, Term]], chunk_memory: int | None) -> None:
        self._parts = parts
        reads = dict.fromkeys(read for _, term in self._parts for read in term.reads)
        overs = [*(read.over for read in reads), *(term.over for _, term in self._parts)]
        self._at = {over: None if over.at is None else over.at.tolist() for over in dict.fromkeys(overs)}
        self._count = max(_extent(over.count, at) for over, at in self._at.items())
        self._cuts = _cuts([term.over for _, term in self._parts], self._count)
        self._size = rows_at_once(
            [(read.head, _matrices(read)) for read in reads], budget=chunk_memory, most=self._count
        )
        self._device = next(iter(reads)).states.device
        memory = chunk_memory_on(self._device) if chunk_memory is None else chunk_memory
        self._reads = {read: _Reading(read, self._size, memory) for read in reads}
        dtypes = [dtype_of_logits(read.head) for read in reads]
        self._sums = [torch.zeros((), dtype=max(dtypes, key=_itemsize), device=self._device) for _ in parts]
        trained = {id(one): one for _, term in self._parts for one in term.trained if one.requires_grad}
        self._trained = {one: torch.zeros_like(one) for one in trained.values()}

    def run(self, log: _Log) -> Tensor:
        """The weighted sum of all terms."""
        with computing(self._device):
            for start, stop in _pieces(0, self._count, self._size, self._cuts):
                self._chunk(start, stop, log)
        weighted = []
        for (part, _), found in zip(self._parts, self._sums, strict=True):
            log.add(part, found)
            weighted.append(part.weight * found)
        return torch.stack(weighted).sum()

    def made(self) -> list[Made]:
        """What the sum is a function of, each with its gradient."""
        found = [made for reading in self._reads.values() for made in reading.made()]
        return [*found, *self._trained.items()]

    def _chunk(self, start: int, stop: int, log: _Log) -> None:
        """The logits of all reads, the terms on blocks of them, and back."""
        spans = {read: self.span(read.over, start, stop) for read in self._reads}
        logits = {read: self._reads[read].logits(span) for read, span in spans.items()}
        widest = max(logits.values(), key=lambda matrix: matrix.shape[-1])
        for first, last in _pieces(start, stop, _block_rows(widest, stop - start), self._cuts):
            self._block(_Block(first, last, logits, spans, self), log)
        for read, gradient in logits.items():
            self._reads[read].backward(spans[read], gradient)

    @torch.enable_grad()
    def _block(self, block: _Block, log: _Log) -> None:
        """The terms on some rows; leaves the gradient of their logits in place of these."""
        total: Tensor | None = None
        for index, (part, term) in enumerate(self._parts):
            rows = self.span(term.over, block.first, block.last)
            # A term without any rows runs once all the same, for its numbers of 0 in the log.
            if rows.start == rows.stop and (block.first or _rows_of(term.over)):
                continue
            items, numbers = _items(term.losses(rows, *(block.view(read, term.over) for read in term.reads)))
            found = items.sum()
            self._sums[index] += found.detach()
            log.count(part, numbers)
            weighted = part.weight * found
            total = weighted if total is None else total + weighted
        block.leave_gradients(total, self._trained)

    def span(self, over: Over, start: int, stop: int) -> slice:
        """The rows of what is walked over that lie between these positions."""
        at = self._at[over]
        return slice(start, stop) if at is None else slice(bisect_left(at, start), bisect_left(at, stop))


def _extent(count: int, at: list[int] | None) -> int:
    """Up to which position it reaches."""
    if at is None:
        return count
    return at[-1] + 1 if at else 0


def _matrices(read: Read) -> int:
    """Of its width that are there at once: the logits; where a block is a chunk, what is made of them too."""
    return 1 if read.states.device.type == "cpu" or not read.trains else 3


def _itemsize(dtype: torch.dtype) -> int:
    return dtype.itemsize


_AT_ONCE = 1 << 20
"""Numbers of the logits of a block on a CPU; of 2^17 Python takes longer than what it runs, and in two
threads 2^19 took 6 to 10 % longer, by hand.
"""


def _block_rows(widest: Tensor, rows: int) -> int:
    """Of a block: some on a CPU, where they are to stay in a cache; elsewhere all of the chunk."""
    if widest.device.type != "cpu":
        return max(rows, 1)
    return max(int(row_blocks(widest)[0].stop), _AT_ONCE // max(widest.shape[-1], 1), 1)


class _Reading:
    """A Read as the walk goes along it: the head's memory, and the gradient of the states."""

    def __init__(self, read: Read, rows: int, chunk_memory: int) -> None:
        states, head = read.states, read.head
        if read.projector is not None:
            size = read.head.size * read.projector.shape[0] * multiplied_in(head).itemsize
            if size <= chunk_memory and read.is_cheaper_in_head():
                head = head.through(read.projector, multiplied_in(head))
            else:
                states = carried(states, read.projector)
        self._states = states
        self._trains = read.trains
        self._head = ReadHead(head, rows)
        self._gradient = zeros_for(states) if states.requires_grad else None

    def logits(self, rows: slice) -> Tensor:
        """`[m, V]`, in the head's memory."""
        count = rows.stop - rows.start
        if count > self._head.rows:
            self._head.make_room(count)
        return self._head.logits(self._states[rows])

    def backward(self, rows: slice, gradient: Tensor) -> None:
        """From the gradient of the logits, which is lost."""
        if not self._trains or rows.start == rows.stop:
            return
        made = self._head.backward(self._states[rows], gradient)
        if self._gradient is not None:
            self._gradient[rows] = made.to(self._gradient.dtype)

    def made(self) -> list[Made]:
        """States and head, each with its gradient."""
        return [(self._states, self._gradient), *self._head.made()] if self._trains else []


class _Block:
    """Some rows of a chunk: leaves for autograd, and the views of terms on them."""

    def __init__(
        self, first: int, last: int, logits: Mapping[Read, Tensor], spans: Mapping[Read, slice], walk: _Walk
    ) -> None:
        self.first, self.last, self._walk = first, last, walk
        self._places, self._views = {}, {}
        self._closed: dict[Read, _Closed] = {}
        self._leaves: dict[Read, Tensor] = {}
        for read, matrix in logits.items():
            span, whole_span = walk.span(read.over, first, last), spans[read]
            place = matrix[span.start - whole_span.start : span.stop - whole_span.start]
            leaf = place.detach()
            if read.trains:
                self._leaves[read] = leaf.requires_grad_()
                self._closed[read] = _Closed()
                self._places[read] = place
            labels = None if read.labels is None else read.labels[span]
            self._views[read, read.over] = _View(leaf, read.head, labels, self._closed.get(read))

    def view(self, read: Read, over: Over) -> _View:
        """Of the rows of what a term runs over."""
        if (read, over) not in self._views:
            whole_view = self._views[read, read.over]
            at = _among_all(read, over)[self._walk.span(over, self.first, self.last)] - self.first
            if len(at) == len(whole_view.logits):
                self._views[read, over] = whole_view
            else:
                labels = None if read.labels is None else whole_view.labels[at]
                logits, closed = whole_view.logits.index_select(0, at), self._closed.get(read)
                self._views[read, over] = _View(logits, read.head, labels, closed, (whole_view, at))
        found: _View = self._views[read, over]
        return found

    def leave_gradients(self, total: Tensor | None, trained: Mapping[Tensor, Tensor]) -> None:
        """Writes the gradient of each Read's logits over them, and adds those of what is trained besides."""
        items = [one for closed in self._closed.values() for one in closed.items]
        sources = [*self._leaves.values(), *trained, *items]
        found: list[Tensor | None] = [None] * len(sources)
        if total is not None and total.requires_grad:
            found = list(torch.autograd.grad(total, sources, allow_unused=True))
        with torch.no_grad():
            left = iter(found)
            by_autograd = {read: next(left) for read in self._leaves}
            for kept in trained.values():
                if (made := next(left)) is not None:
                    kept.add_(made)
            for read, closed in self._closed.items():
                outer = [next(left) for _ in closed.items]
                closed.leave(self._places[read], outer, by_autograd.pop(read))


# ---- Where it may be cut ---------------------------------------------------------------------------------


def _cuts(overs: Sequence[Over], count: int) -> list[int] | None:
    """The positions before which the walk may be cut, ascending; None: before any."""
    together = [over for over in overs if over.item is not None and len(over.item)]
    if not together:
        return None
    change = torch.zeros(count + 1, dtype=torch.int64)
    for over in together:
        item = over.item.cpu() if over.item is not None else torch.empty(0)
        at = torch.arange(len(item)) if over.at is None else over.at.cpu()
        edge = item[1:] != item[:-1]
        one = torch.ones(1, dtype=torch.bool)
        first, last = at[torch.cat([one, edge])], at[torch.cat([edge, one])]
        # Between first + 1 and last, both included, an item would be parted.
        change.index_add_(0, first + 1, torch.ones_like(first))
        change.index_add_(0, last + 1, -torch.ones_like(last))
    allowed: list[int] = (change.cumsum(0) == 0).nonzero()[:, 0].tolist()
    return allowed


def _pieces(start: int, stop: int, size: int, cuts: list[int] | None) -> Iterator[tuple[int, int]]:
    """As few as may be, of about as many rows, and one where there are none.

    An item that is longer than the size is a piece by itself.
    """
    if stop <= start:
        yield start, stop
        return
    even = -(-(stop - start) // -(-(stop - start) // size))
    size = min(-(-even // STEP) * STEP, size) if size >= STEP else size
    while start < stop:
        end = min(start + size, stop)
        if cuts is not None and end < stop:
            index = bisect_left(cuts, end + 1)
            end = cuts[index - 1] if cuts[index - 1] > start else cuts[index]
        yield start, end
        start = end
