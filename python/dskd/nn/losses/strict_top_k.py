"""Distillation on the few shared tokens that the student expects, at strict pairs (arXiv 2610.08448)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from dskd.columns import PairKind
from dskd.nn.divergences import Divergence, divergence
from dskd.nn.linear import refuse_sharded
from dskd.nn.loss import Needs
from dskd.nn.losses.comparing import Comparing, refuse_no_tokens
from dskd.nn.term import Items, Term, View

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor, nn

    from dskd.nn.batch import States, Teacher

__all__ = ["StrictTopK"]


@dataclass(frozen=True, kw_only=True)
class StrictTopK(Comparing):
    """`D(p_t, p_s)`, both restricted to K and renormalised there, over the strict pairs.

        K = the top_k of the student's logits, of the shared tokens that are text; at each pair its own
        z_t, z_s = teacher_logits[K_t], student_logits[K_s]
        D(softmax(z_t / tau), softmax(z_s / tau))

    A pair that takes no part has a loss of 0 and stays in the number of pairs by which the sum is divided, so
    that a pair weighs as much in a batch that has few strict ones. `strict` in the log is how many took part.

    Attributes:
        divergence: D, of the student's distribution from the teacher's; reverse_kl as published.
        top_k: how many tokens K has; None: all, which costs the teacher's whole logits.
        strict: leave out pairs that are equal but for one space (`PairKind.SPACE`), where a batch knows them.
        specials: take K from all shared tokens, specials too.
    """

    divergence: Divergence = "reverse_kl"
    top_k: int | None = 16
    strict: bool = True
    specials: bool = False

    def __post_init__(self) -> None:
        """Checks them, as `Comparing` does."""
        super().__post_init__()
        refuse_no_tokens("top_k", self.top_k)

    @property
    def needs(self) -> Needs:
        """The teacher at the pairs, and tokens in common."""
        return Needs(pairs=True, overlap=True)

    def terms(self, student: States, teacher: Teacher | None, built: nn.Module | None) -> Sequence[Term]:  # noqa: ARG002
        """See `Loss`."""
        if teacher is None:
            raise ValueError("StrictTopK needs a teacher")
        if self.top_k is None:
            return [Term("strict_kd", teacher.pairs, [student.read, teacher.read], self._among_all(teacher))]
        refuse_sharded(teacher.model.head)
        return [Term("strict_kd", teacher.pairs, [student.read], self._among_few(teacher, self.top_k))]

    def _among_all(self, teacher: Teacher) -> Callable[[slice, View, View], Items]:
        """With K all shared tokens."""
        of_teacher, of_student = teacher.model.maps.shared(specials=self.specials)
        tau, mix = self.temperature, self.mix

        def losses(rows: slice, of_me: View, said: View) -> Items:
            target = said.logits.index_select(-1, of_teacher)
            items = of_me.divergence(self.divergence, target, of_student, temperature=tau, mix=mix)
            return self._counted(items, teacher, rows)

        return losses

    def _among_few(self, teacher: Teacher, top_k: int) -> Callable[[slice, View], Items]:
        """With K a pair's own: of the teacher's logits no others are made."""
        of_teacher, of_student = teacher.model.maps.shared(specials=self.specials)
        head, states = teacher.model.head.detached(), teacher.read.states
        size = min(top_k, len(of_student))

        def losses(rows: slice, of_me: View) -> Items:
            few = of_me.logits.detach().index_select(-1, of_student).topk(size, dim=-1).indices
            # Of all logits, since the gradient is then a scatter, and of those of the shared no matrix more.
            mine = of_me.logits.gather(-1, of_student[few])
            target = head.logits_at(states[rows], of_teacher[few]).to(mine)
            items = divergence(self.divergence, mine, target, temperature=self.temperature, mix=self.mix)
            return self._counted(items, teacher, rows)

        return losses

    def _counted(self, items: Tensor, teacher: Teacher, rows: slice) -> Items:
        """The losses of these pairs, 0 of those that take no part, and how many do."""
        if not self.strict or teacher.kinds is None:
            return items, {"strict": torch.tensor(len(items), device=items.device)}
        taken = teacher.kinds[rows] != PairKind.SPACE
        return torch.where(taken, items, 0), {"strict": taken.sum()}
