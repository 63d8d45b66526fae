"""What a loss is made of: terms over rows of logits that are never whole.

A `Read` names logits without making them, a `Term` is a function of some rows of them, and who runs it (see
`fused`) decides how many rows there are at once. So a loss is written once: over all rows it is its own
definition, over a few at a time it keeps no logits.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import Tensor

    from dskd.nn.divergences import Divergence
    from dskd.nn.heads import Head

__all__ = ["Aside", "Items", "Over", "Read", "Term", "View"]


@dataclass(frozen=True, slots=True, eq=False)
class Over:
    """What a term runs over.

    Attributes:
        name: `labels`, `pairs`, `chunks` or `teacher_labels`: whose number in the step a term is divided by.
        count: how many there are in this batch.
        at: int64 `[rows]`, ascending: the positions of the walk at which there are rows; None: all.
        item: int64 `[rows]`, ascending: rows of one item are never parted; None: a row is an item.
        walk: along the positions of which model: `labels`, or `teacher_labels`.
    """

    name: str
    count: int
    at: Tensor | None = None
    item: Tensor | None = None
    walk: str = "labels"


@dataclass(frozen=True, slots=True, eq=False)
class Read:
    """States that a head reads: logits `[n, V]`. Terms with the same Read share them, by identity.

    Attributes:
        states: `[n, width]`, a row for each row of `over`.
        head: whose weights get a gradient where they require one.
        over: where the states are.
        labels: int64 `[n]`, the token that each predicts; below 0: none.
        projector: `[width, head's width]`, to which no gradient flows, between states and head; the logits
            are those of `states @ projector`.
    """

    states: Tensor
    head: Head
    over: Over
    labels: Tensor | None = None
    projector: Tensor | None = None

    @property
    def trains(self) -> bool:
        """Whether somebody wants the gradient of the logits."""
        bias = self.head.bias is not None and self.head.bias.requires_grad
        return self.states.requires_grad or self.head.weight.requires_grad or bias

    def is_cheaper_in_head(self, times: int = 1) -> bool:
        """Whether products are saved by multiplying the projector into the head, so many times.

        That takes `d D` a token of the head, and saves `D - d` twice a row: in the forward and the backward.
        """
        if self.projector is None:
            return False
        narrow, wide = self.projector.shape
        return times * narrow * wide < 2 * len(self.states) * (wide - narrow)


class View(Protocol):
    """Rows of the logits of a Read, as a term sees them: to read, never to write on."""

    @property
    def logits(self) -> Tensor:
        """`[m, V]`, float32 or wider, differentiable."""

    @property
    def reachable(self) -> Tensor:
        """The same; minus infinity, no probability, of ids that no tokenizer can emit.

        `p log p` of such an id is no number: mask it, or take `divergence`, which knows.
        """

    @property
    def labels(self) -> Tensor:
        """int64 `[m]`."""

    @property
    def gold(self) -> Tensor:
        """Log-probabilities of the labels `[m]`, 0 where there is none; made once for all terms."""

    def log_probs_at(self, ids: Tensor, temperature: float = 1.0) -> Tensor:
        """`log_softmax(logits / temperature)` at ids `[m, k]`; the gradient in closed form."""

    def divergence(
        self,
        name: Divergence,
        target: Tensor,
        columns: Tensor | None = None,
        *,
        temperature: float = 1.0,
        mix: float | None = None,
    ) -> Tensor:
        """`D(softmax(target / tau), softmax(reachable[:, columns] / tau))`: `[m]`; gradient in closed form.

        Args:
            name: of the divergence.
            target: `[m, columns]`, logits of the other side, constant.
            columns: int64, the ids that are compared; None: all.
            temperature: tau, of both.
            mix: see `dskd.nn.divergence`.
        """


Items: TypeAlias = "Tensor | tuple[Tensor, Mapping[str, Tensor]]"
"""A loss per item, or that and numbers for the log."""


@dataclass(frozen=True, slots=True, eq=False)
class Term:
    """`weight / N` times the sum of a loss per item, N the number in the step of what it runs over.

    Attributes:
        name: in the log.
        over: what it runs over.
        reads: whose logits it sees.
        losses: `(rows, *views) -> [items]`: `rows` is a slice of the rows of `over`, and there is one view
            for each read, of exactly these rows. It may return numbers for the log besides, by name.
        weight: of the term.
        per: what the sum is divided by in place of N: another number of the step, by its name, or a number of
            this micro-batch; what comes of that is averaged over the micro-batches of the step.
        trained: parameters inside `losses`.
    """

    name: str
    over: Over
    reads: Sequence[Read]
    losses: Callable[..., Items]
    weight: float = 1.0
    per: str | int | None = None
    trained: Sequence[Tensor] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Aside:
    """A term that is no function of rows of logits: its sum is there already, with what autograd knows of it.

    Attributes:
        name: in the log.
        over: what it runs over.
        sum: a scalar.
        weight: see `Term`.
        per: see `Term`.
        counts: numbers for the log, by name.
    """

    name: str
    over: Over
    sum: Tensor
    weight: float = 1.0
    per: str | int | None = None
    counts: Mapping[str, Any] = field(default_factory=dict)
