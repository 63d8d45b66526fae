"""Universal logit distillation: probabilities are compared by rank, not by token (arXiv 2402.12030)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch.nn import functional

from dskd.nn.loss import Loss, Needs
from dskd.nn.losses.comparing import refuse_no_tokens, refuse_other
from dskd.nn.term import Term, View

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor, nn

    from dskd.nn.batch import States, Teacher

__all__ = ["ULD"]


@dataclass(frozen=True, kw_only=True)
class ULD(Loss):
    """The L1 distance of both models' probabilities in descending order, over the pairs.

        p, q = sorted(softmax(z_t / tau)), sorted(softmax(z_s / tau)), the shorter one followed by zeros
        sum of |p - q|

    arXiv 2402.12030 adds 1.5 of it to the cross-entropy, and pairs positions by their number in the row where
    here the alignment does.

    Attributes:
        temperature: tau, of both.
        largest: compare so many of the largest probabilities of each side, which costs much less than to sort
            all of them; None: all.
    """

    temperature: float = 1.0
    largest: int | None = None

    def __post_init__(self) -> None:
        """Checks them.

        Raises:
            ValueError: one is out of its range.
        """
        refuse_other("temperature", self.temperature, above=0)
        refuse_no_tokens("largest", self.largest)

    @property
    def needs(self) -> Needs:
        """The teacher at the pairs; the vocabularies need nothing in common."""
        return Needs(pairs=True)

    def terms(self, student: States, teacher: Teacher | None, built: nn.Module | None) -> Sequence[Term]:  # noqa: ARG002
        """See `Loss`."""
        if teacher is None:
            raise ValueError("ULD needs a teacher")

        def losses(_: slice, of_me: View, said: View) -> Tensor:
            p, q = self._ranked(said.reachable), self._ranked(of_me.reachable)
            width = max(p.shape[-1], q.shape[-1])
            p, q = (functional.pad(side, (0, width - side.shape[-1])) for side in (p, q))
            return (p - q).abs().sum(-1)

        return [Term("uld", teacher.pairs, [student.read, teacher.read], losses)]

    def _ranked(self, logits: Tensor) -> Tensor:
        """Probabilities of `[m, V]` in descending order."""
        probs = (logits / self.temperature).softmax(-1)
        if self.largest is None or self.largest >= probs.shape[-1]:
            return probs.sort(-1, descending=True).values
        return probs.topk(self.largest, -1).values
