"""The cross-entropy with the gold token: a loss like any other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dskd.nn.loss import Loss
from dskd.nn.term import Term, View

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor, nn

    from dskd.nn.batch import States, Teacher

__all__ = ["CrossEntropy"]


@dataclass(frozen=True, kw_only=True)
class CrossEntropy(Loss):
    """`-log q(label)`, over the supervised positions of the student; it has no options."""

    def terms(self, student: States, teacher: Teacher | None, built: nn.Module | None) -> Sequence[Term]:  # noqa: ARG002
        """See `Loss`."""

        def losses(_: slice, of_student: View) -> Tensor:
            return -of_student.gold

        return [Term("cross_entropy", student.over, [student.read], losses)]
