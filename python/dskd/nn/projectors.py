"""Linear maps between the hidden spaces of teacher and student, solved on the tokens that both have.

`P_ts` carries a teacher state into the student's space so that the student's head says of it, on the overlap
O of the vocabularies, what the teacher's head says: `P_ts = W_t[O]^T pinv(W_s[O]^T)`, the least-squares
solution of `P_ts W_s[O]^T = W_t[O]^T` (arXiv 2504.11426, section 3.2); `P_st` the other way.

With `G = W_s[O]^T W_s[O]` the pseudo-inverse is `W_s[O] G^+`, and G is only d x d: an eigendecomposition in
float64 in place of a singular value decomposition of a matrix of vocabulary size.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypeAlias

import torch
from torch import nn

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Projectors", "gram_inverse", "solve_projector"]

StudentToTeacher: TypeAlias = Literal["solved", "trained"]

_ROWS_AT_ONCE = 8192
"""Rows of a head that are multiplied at once: what bounds the memory of a solution."""


def solve_projector(source: Tensor, target: Tensor) -> Tensor:
    """The projector P that minimises `|P target^T - source^T|`: `source^T pinv(target^T)`.

    Args:
        source: `[overlap, D]`, the rows of the head in whose space the states are.
        target: `[overlap, d]`, the rows, of the same tokens, of the head that is to read them.

    Returns:
        float64 `[D, d]`; the solution of least norm where the target's rows do not span its space.
    """
    return _gram(source, target) @ gram_inverse(target)


def gram_inverse(rows: Tensor) -> Tensor:
    """`(rows^T rows)^+`, float64 `[d, d]`, with the cut-off that `pinv` has for `rows` in its own dtype.

    What `pinv` drops is where a singular value is at most `max(n, d) eps` of the largest; the Gram matrix has
    the squares, and below `d eps` of float64 nothing but rounding.
    """
    gram = _gram(rows, rows)
    values, vectors = torch.linalg.eigh(gram)
    # pinv knows no half precision; float32 is what it would be given.
    relative = max(rows.shape) * torch.finfo(torch.promote_types(rows.dtype, torch.float32)).eps
    rounding = len(gram) * torch.finfo(torch.float64).eps
    keep = values > values.amax() * max(relative**2, rounding)
    inverse: Tensor = (vectors * torch.where(keep, 1 / values, 0.0)) @ vectors.mT
    return inverse


def _gram(left: Tensor, right: Tensor) -> Tensor:
    """`left^T right` in float64 over their rows, a block of rows at a time."""
    product = left.new_zeros(left.shape[1], right.shape[1], dtype=torch.float64)
    for start in range(0, len(left), _ROWS_AT_ONCE):
        rows = slice(start, start + _ROWS_AT_ONCE)
        product.addmm_(left[rows].mT.double(), right[rows].double())
    return product


class Projectors(nn.Module):
    """Both projectors of a pair of models, float32, solved on their heads as they are now.

    Args:
        teacher_weight: `[V_t, D]`, the teacher's head.
        student_weight: `[V_s, d]`, the student's head.
        overlap: int64 `[overlap, 2]`, the ids (teacher, student) of the tokens that both have:
            `aligner.vocabulary_map.overlap`.
        student_to_teacher: `solved`: follows the student's head, whenever `refresh` is called, without a
            gradient (arXiv 2504.11426); `trained`: a parameter that begins there.

    Attributes:
        teacher_to_student: P_ts `[D, d]`, a parameter.
        student_to_teacher: P_st `[d, D]`, a buffer or a parameter.
    """

    teacher_to_student: nn.Parameter
    student_to_teacher: Tensor
    _overlap: Tensor
    _teacher_inverse: Tensor

    def __init__(
        self,
        teacher_weight: Tensor,
        student_weight: Tensor,
        overlap: Tensor,
        *,
        student_to_teacher: StudentToTeacher = "solved",
    ) -> None:
        """See the class.

        Raises:
            ValueError: the vocabularies have no token in common.
        """
        super().__init__()
        if not len(overlap):
            raise ValueError("the vocabularies have no token in common; there is nothing to solve on")
        self.register_buffer("_overlap", overlap.to(student_weight.device), persistent=False)
        with torch.no_grad():
            teacher, student = self._on_overlap(teacher_weight, student_weight)
            self.teacher_to_student = nn.Parameter(solve_projector(teacher, student).float())
            self.register_buffer("_teacher_inverse", gram_inverse(teacher), persistent=False)
            solved = self._solved(teacher, student).float()
        if student_to_teacher == "trained":
            self.student_to_teacher = nn.Parameter(solved)
        else:
            self.register_buffer("student_to_teacher", solved)
        self._is_solved = student_to_teacher == "solved"

    @torch.no_grad()
    def refresh(self, teacher_weight: Tensor, student_weight: Tensor) -> None:
        """Solves P_st again for the student's head as it is now; nothing where it is trained."""
        if self._is_solved:
            self.student_to_teacher.copy_(self._solved(*self._on_overlap(teacher_weight, student_weight)))

    def _on_overlap(self, teacher_weight: Tensor, student_weight: Tensor) -> tuple[Tensor, Tensor]:
        """The rows of both heads for the tokens that both have, on the student's device."""
        teacher = teacher_weight.index_select(0, self._overlap[:, 0].to(teacher_weight.device))
        return teacher.to(student_weight.device), student_weight.index_select(0, self._overlap[:, 1])

    def _solved(self, teacher: Tensor, student: Tensor) -> Tensor:
        """P_st, from both heads' rows; what it needs of the teacher's alone was inverted once."""
        return _gram(student, teacher) @ self._teacher_inverse.double()
