"""Approximate likelihood matching: what both models say of the chunks of a text (arXiv 2503.20083).

The likelihood of a chunk, the product of those of its tokens, is all that is compared, so that a chunk may be
of any number of tokens on either side, and nothing is asked of the vocabularies.

Its tokens say nothing of what comes after them. A student whose token of a chunk may be the beginning of a
longer one says something else by the same likelihood; the published code takes that out by the probability
that a pre-token begins after the chunk ("debiasing"). That needs, of both models, the position after each
chunk, which a chunk here does not have: it is not done.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from dskd.nn.divergences import DIVERGENCES, checked_divergence
from dskd.nn.heads import UNREACHABLE
from dskd.nn.loss import Needs
from dskd.nn.losses.comparing import Comparing
from dskd.nn.losses.complement import apart_from_one, log_of_complement
from dskd.nn.term import Term, View

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor, nn

    from dskd.nn.batch import Chunks, States, Teacher

__all__ = ["ALM"]


@dataclass(frozen=True, kw_only=True)
class ALM(Comparing):
    """`D` of two outcomes, that a chunk is written or that it is not, over the chunks.

        p, q = P_t(chunk) ** (1 / tau), P_s(chunk) ** (1 / tau)
        D((p, 1 - p), (q, 1 - q))

    Its gradient is about a tau-th of that of a cross-entropy: `weight` is to make up for it.

    Attributes:
        divergence: D, of the two outcomes; the gradient of kl is that of the published binary cross-entropy.
        temperature: tau, of both; 100 as published.
    """

    temperature: float = 100.0

    @property
    def needs(self) -> Needs:
        """What the teacher says of the chunks, and nothing else of it."""
        return Needs(chunks=True)

    def terms(self, student: States, teacher: Teacher | None, built: nn.Module | None) -> Sequence[Term]:  # noqa: ARG002
        """See `Loss`."""
        if teacher is None or teacher.chunks is None:
            raise ValueError("ALM runs over chunks, and the batch has none: give Teacher(chunks=)")
        chunks: Chunks = teacher.chunks

        def losses(rows: slice, of_me: View) -> Tensor:
            here, local = torch.unique_consecutive(chunks.chunk[rows], return_inverse=True)
            of_student = of_me.gold.new_zeros(len(here)).index_add(0, local, of_me.gold)
            of_teacher = chunks.teacher_log_probs[here].to(of_student)
            return self._between(of_student, of_teacher.clamp(min=UNREACHABLE))

        return [Term("alm", chunks.over, [student.read], losses)]

    def _between(self, of_student: Tensor, of_teacher: Tensor) -> Tensor:
        """The divergence of two log-likelihoods: `[m], [m] -> [m]`."""
        options = checked_divergence(self.divergence, self.mix)
        outcomes = (_outcomes(one, self.temperature) for one in (of_student, of_teacher))
        return DIVERGENCES[self.divergence](*outcomes, **options)


def _outcomes(log_likelihood: Tensor, temperature: float) -> Tensor:
    """`log p` and `log(1 - p)` of `p = P ** (1 / temperature)`: `[m] -> [m, 2]`."""
    log_p = apart_from_one(log_likelihood) / temperature
    return torch.stack([log_p, log_of_complement(log_p)], -1)
