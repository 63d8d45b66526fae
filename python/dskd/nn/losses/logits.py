"""Distillation of one vocabulary: two distributions over the same ids are compared as they are.

The teacher speaks by its states and its head, by logits that were stored, or by its most probable tokens and
their log-probabilities, as servers give them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from dskd.nn.checks import refuse_two_vocabularies
from dskd.nn.divergences import DIVERGENCES, checked_divergence
from dskd.nn.heads import UNREACHABLE
from dskd.nn.loss import Needs
from dskd.nn.losses.comparing import Comparing, refuse_no_tokens
from dskd.nn.losses.complement import apart_from_one, log_of_complement
from dskd.nn.term import Term, View

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor, nn

    from dskd.nn.batch import States, Teacher
    from dskd.nn.heads import Head

__all__ = ["Logits"]


@dataclass(frozen=True, kw_only=True)
class Logits(Comparing):
    """`D(softmax(z_t / tau), softmax(z_s / tau))` of models with one vocabulary, over the pairs.

    With `Teacher(top=)`, or `top_k`, over the teacher's most probable tokens and all others as one more.

    Attributes:
        top_k: how many of the teacher's tokens stand alone; None: all, or those that are stored.
    """

    top_k: int | None = None

    def __post_init__(self) -> None:
        """Checks the options."""
        super().__post_init__()
        refuse_no_tokens("top_k", self.top_k)

    @property
    def needs(self) -> Needs:
        """What the teacher says at the pairs, of the student's own ids."""
        return Needs(pairs=True, same_vocabulary=True)

    def terms(self, student: States, teacher: Teacher | None, built: nn.Module | None) -> Sequence[Term]:  # noqa: ARG002
        """See `Loss`."""
        if teacher is None:
            raise ValueError("Logits needs a teacher")
        refuse_two_vocabularies("Logits", student.head, teacher.model, "the batch's teacher")
        if teacher.top is not None:
            return [Term("logits_kd", teacher.pairs, [student.read], self._of_top(*teacher.top))]
        if teacher.logits is not None:
            return [
                Term(
                    "logits_kd", teacher.pairs, [student.read], self._of_stored(teacher.logits, student.head)
                )
            ]
        return [Term("logits_kd", teacher.pairs, [student.read, teacher.read], self._of_live(student.head))]

    def _of_live(self, head: Head) -> Callable[[slice, View, View], Tensor]:
        def losses(_: slice, of_me: View, said: View) -> Tensor:
            return self._of_all(head.reachable(said.logits.to(of_me.logits)), of_me)

        return losses

    def _of_stored(self, logits: Tensor, head: Head) -> Callable[[slice, View], Tensor]:
        def losses(rows: slice, of_me: View) -> Tensor:
            target = logits[rows].to(of_me.logits).clamp(min=UNREACHABLE)  # some mask by -inf
            return self._of_all(head.reachable(target), of_me)

        return losses

    def _of_top(self, ids: Tensor, log_probs: Tensor) -> Callable[[slice, View], Tensor]:
        if self.temperature != 1:
            raise ValueError(
                f"temperature={self.temperature}, and what it makes of the tokens outside of top is not "
                "known: leave it 1, or give logits"
            )

        def losses(rows: slice, of_me: View) -> Tensor:
            return self._with_rest(ids[rows], log_probs[rows].to(of_me.logits), of_me)

        return losses

    def _of_all(self, target: Tensor, of_me: View) -> Tensor:
        """From all the teacher's logits `[m, V]`."""
        if self.top_k is None:
            return of_me.divergence(self.divergence, target, temperature=self.temperature, mix=self.mix)
        log_p = (target.detach() / self.temperature).log_softmax(-1)
        found = log_p.topk(min(self.top_k, log_p.shape[-1]), dim=-1)
        return self._with_rest(found.indices, found.values, of_me)

    def _with_rest(self, ids: Tensor, log_p: Tensor, of_me: View) -> Tensor:
        """From the teacher's log-probabilities `[m, k]` of some ids."""
        if self.top_k is not None and self.top_k < ids.shape[-1]:
            log_p, kept = log_p.topk(self.top_k, dim=-1)
            ids = ids.gather(-1, kept)
        log_q = of_me.log_probs_at(ids, self.temperature)
        # What the student cannot emit is one of the others, on both sides.
        emitted = log_q.detach() > UNREACHABLE
        sides = (_and_rest(torch.where(emitted, side, UNREACHABLE)) for side in (log_q, log_p))
        return DIVERGENCES[self.divergence](*sides, **checked_divergence(self.divergence, self.mix))


def _and_rest(log_probs: Tensor) -> Tensor:
    """Log-probabilities `[m, k]`, and that of all other tokens: `[m, k + 1]`."""
    total = apart_from_one(log_probs.logsumexp(-1, keepdim=True))
    return torch.cat([log_probs, log_of_complement(total)], -1)
