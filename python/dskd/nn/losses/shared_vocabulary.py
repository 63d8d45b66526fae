"""Distillation on the tokens that both vocabularies have, at pairs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dskd.nn.loss import Needs
from dskd.nn.losses.comparing import Comparing
from dskd.nn.term import Term, View

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor, nn

    from dskd.nn.batch import States, Teacher

__all__ = ["SharedVocabulary"]


@dataclass(frozen=True, kw_only=True)
class SharedVocabulary(Comparing):
    """`D(p_t, p_s)`, both restricted to the shared tokens O and renormalised there, over the pairs.

        z_t, z_s = teacher_logits[:, O_t], student_logits[:, O_s]
        D(softmax(z_t / tau), softmax(z_s / tau))

    On a few of them at each pair: `strict_top_k`.
    """

    @property
    def needs(self) -> Needs:
        """The teacher's logits at the pairs, and tokens in common."""
        return Needs(pairs=True, overlap=True)

    def terms(self, student: States, teacher: Teacher | None, built: nn.Module | None) -> Sequence[Term]:  # noqa: ARG002
        """See `Loss`."""
        if teacher is None:
            raise ValueError("SharedVocabulary needs a teacher")
        of_teacher, of_student = teacher.shared

        def losses(_: slice, of_me: View, said: View) -> Tensor:
            target = said.logits.index_select(-1, of_teacher)
            return of_me.divergence(
                self.divergence, target, of_student, temperature=self.temperature, mix=self.mix
            )

        return [Term("shared_kd", teacher.pairs, [student.read, teacher.read], losses)]
