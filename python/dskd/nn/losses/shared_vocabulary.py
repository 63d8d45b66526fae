"""Distillation on the tokens that both vocabularies have, at exact pairs (arXiv 2610.08448)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from dskd.nn.divergences import divergence
from dskd.nn.loss import Needs
from dskd.nn.losses.comparing import Comparing
from dskd.nn.term import Term, View

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor, nn

    from dskd.nn.batch import States, Teacher

__all__ = ["SharedVocabulary"]


@dataclass(frozen=True, kw_only=True)
class SharedVocabulary(Comparing):
    """`D(p_t, p_s)`, both restricted to the shared tokens K and renormalised there, over the pairs.

        z_t, z_s = teacher_logits[:, K_t], student_logits[:, K_s]
        D(softmax(z_t / tau), softmax(z_s / tau))

    Attributes:
        top_k: K is the student's top-k of the shared tokens at each pair, special tokens left out (16 in
            arXiv 2610.08448, with reverse_kl: the preset `strict`); None: all of them.
    """

    top_k: int | None = None

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"strict": {"top_k": 16, "divergence": "reverse_kl"}}

    def __post_init__(self) -> None:
        """Checks them.

        Raises:
            ValueError: one is out of its range.
        """
        super().__post_init__()
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k={self.top_k}; it is at least 1, or None for all")

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
            if self.top_k is None:
                return of_me.divergence(
                    self.divergence, target, of_student, temperature=self.temperature, mix=self.mix
                )
            shared = of_me.logits.index_select(-1, of_student)
            top, kept = shared.topk(min(self.top_k, shared.shape[-1]), dim=-1)
            return divergence(
                self.divergence, target.gather(-1, kept), top, temperature=self.temperature, mix=self.mix
            )

        return [Term("shared_kd", teacher.pairs, [student.read, teacher.read], losses)]
