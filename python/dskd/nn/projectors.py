"""Linear maps between the hidden spaces of teacher and student, solved on the tokens that both have.

`P_ts` carries a teacher state into the student's space so that the student's head says of it, on the overlap
O of the vocabularies, what the teacher's head says: `P_ts = W_t[O]^T pinv(W_s[O]^T)`, the least-squares
solution of `P_ts W_s[O]^T = W_t[O]^T` (arXiv 2504.11426, section 3.2); `P_st` the other way. Tokens may be
weighted by how frequent they are, and both heads centred first: what that adds to the logits is the same
for every token of O, which a softmax over O does not see.

With `G = W_s[O]^T W_s[O]` the pseudo-inverse is `W_s[O] G^+`, and G is only d x d: an eigendecomposition in
float64 in place of a singular value decomposition of a matrix of vocabulary size. `C = W_t[O]^T W_s[O]`
serves both ways: `P_ts = C G_s^+`, `P_st = C^T G_t^+`.

G is summed in float64. Blocks multiplied in float32 would take half the time, but G has the square of the
head's condition: SmolLM2's is 91, its square 8,300, and the rounding of float32 times that is about the 1e-5
that a projector may be off. Whitening the rows first in float32 costs as much as float64 does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypeAlias, get_args

import torch
from torch import nn

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Projectors", "carried", "gram_inverse", "most_frequent", "solve_projector"]

StudentToTeacher: TypeAlias = Literal["solved", "trained"]
TeacherToStudent: TypeAlias = Literal["trained", "solved"]
Initial: TypeAlias = Literal["solved", "random"]

_ROWS_AT_ONCE = 1024
"""Rows of a head that are multiplied at once: what bounds the memory of a solution, and stays in a cache."""
_COLUMNS_AT_ONCE = 288
"""Of a Gram matrix, which is symmetric: strips of so many columns, down to the diagonal."""
_LEAST_FREQUENCY = 1e-6
"""A token that the teacher never expects still holds its place in a solution."""


# ---- Least squares ---------------------------------------------------------------------------------------


def solve_projector(
    source: Tensor, target: Tensor, *, weights: Tensor | None = None, centre: bool = False
) -> Tensor:
    """The projector P that minimises `sum over v of f_v |P target_v - source_v|^2`.

    It is `(sqrt(f) source)^T pinv((sqrt(f) target)^T)`.

    Args:
        source: `[overlap, D]`, the rows of the head in whose space the states are.
        target: `[overlap, d]`, the rows, of the same tokens, of the head that is to read them.
        weights: f `[overlap]`, not negative, on any scale; None: all alike.
        centre: subtracts from the rows of both heads their mean, weighted alike, before.

    Returns:
        float64 `[D, d]`; the solution of least norm where the target's rows do not span its space.

    Raises:
        ValueError: there are no rows, not as many of both, or not as many weights; a row is not finite; a
            weight is negative or not finite, or all are 0.
    """
    _refuse_rows(source, target)
    weights = _checked_weights(weights, source)
    return _gram(source, target, weights, centre) @ _inverse(target, weights, centre)


def gram_inverse(rows: Tensor, *, weights: Tensor | None = None, centre: bool = False) -> Tensor:
    """`(rows^T diag(f) rows)^+`, float64 `[d, d]`, with the cut-off of `pinv` for `sqrt(f) rows`.

    The cut-off is the one that it has in the dtype of the rows. What it drops is where a singular value is at
    most `max(n, d) eps` of the largest; the Gram matrix has the squares, and below `d eps` of float64 nothing
    but rounding.

    Args:
        rows: `[n, d]`.
        weights: f `[n]`, see `solve_projector`, as for `centre`.
        centre: subtracts the weighted mean row before.

    Raises:
        ValueError: as `solve_projector`.
    """
    _refuse_rows(rows, rows)
    return _inverse(rows, _checked_weights(weights, rows), centre)


def _inverse(rows: Tensor, weights: Tensor | None, centre: bool) -> Tensor:
    gram = _gram(rows, rows, weights, centre)
    if not gram.isfinite().all():
        raise ValueError("a row of the head is not finite; there is no least-squares solution on such rows")
    values, vectors = torch.linalg.eigh(gram)
    # pinv knows no half precision; float32 is what it would be given.
    relative = max(rows.shape) * torch.finfo(torch.promote_types(rows.dtype, torch.float32)).eps
    rounding = len(gram) * torch.finfo(torch.float64).eps
    keep = values > values.amax() * max(relative**2, rounding)
    inverse: Tensor = (vectors * torch.where(keep, 1 / values, 0.0)) @ vectors.mT
    return inverse


def _gram(left: Tensor, right: Tensor, weights: Tensor | None, centre: bool) -> Tensor:
    """`left^T diag(f) right` in float64 over their rows, centred if asked, a block of rows at a time."""
    is_symmetric = left is right
    means = [_mean(rows, weights) if centre else None for rows in (left, right)]
    product = left.new_zeros(left.shape[1], right.shape[1], dtype=torch.float64)
    strip = _COLUMNS_AT_ONCE if is_symmetric else right.shape[1]
    for start in range(0, len(left), _ROWS_AT_ONCE):
        block = slice(start, start + _ROWS_AT_ONCE)
        columns = _block(right, block, means[1])
        weighted = columns if is_symmetric else _block(left, block, means[0])
        if weights is not None:
            weighted = weighted * weights[block, None]
        for first in range(0, right.shape[1], strip):
            last = first + strip
            down_to = last if is_symmetric else None
            product[:down_to, first:last].addmm_(weighted[:, :down_to].mT, columns[:, first:last])
    return product.triu() + product.triu(1).mT if is_symmetric else product


def _block(rows: Tensor, block: slice, mean: Tensor | None) -> Tensor:
    wide = rows[block].double()
    return wide if mean is None else wide - mean


def _mean(rows: Tensor, weights: Tensor | None) -> Tensor:
    """The weighted mean row, float64 `[d]`."""
    total = rows.new_zeros(rows.shape[1], dtype=torch.float64)
    for start in range(0, len(rows), _ROWS_AT_ONCE):
        block = slice(start, start + _ROWS_AT_ONCE)
        wide = rows[block].double()
        total += wide.sum(0) if weights is None else weights[block] @ wide
    return total / (len(rows) if weights is None else weights.sum())


def most_frequent(overlap: Tensor, weights: Tensor, k: int) -> Tensor:
    """The rows of the overlap whose tokens are the k most frequent, in their order; all where k is larger.

    Args:
        overlap: int64 `[overlap, 2]`, ids of teacher and student.
        weights: `[overlap]`, how frequent each is; of equal ones the lower student id comes first.
        k: how many (KDFlow has 20,000).

    Returns:
        int64 `[min(k, overlap)]`, indices of rows.

    Raises:
        ValueError: k is below 1, or the weights are not as many as the rows, negative or not finite.
    """
    if k < 1:
        raise ValueError(f"top_k={k}; give a number of tokens from 1 on, or None for all")
    weights = _checked(weights, len(overlap))
    by_student = overlap[:, 1].argsort(stable=True).to(weights.device)
    by_weight = by_student[weights[by_student].argsort(descending=True, stable=True)]
    return by_weight[:k].sort().values


# ---- The module ------------------------------------------------------------------------------------------


class Projectors(nn.Module):
    """Both projectors of a pair of models, float32, solved on their heads as they are now.

    One that is `solved` is a buffer without a gradient: `refresh` solves it again for the student's head as
    that is then. One that is `trained` is a parameter, and begins as `initial` says. Those of the first paper
    (arXiv 2406.17328) are `student_to_teacher="trained", initial="random", bias=True`.

    Args:
        student_weight: `[V_s, d]`, the student's head.
        teacher_weight: `[V_t, D]`, the teacher's head.
        overlap: int64 `[overlap, 2]`, the ids (teacher, student) of the tokens that both have:
            `aligner.vocabulary_map.overlap`.
        student_to_teacher: `solved` (arXiv 2504.11426) or `trained`.
        teacher_to_student: `trained`, or `solved`: then its tokens are weighted by what `observe` was told,
            and by `weights` until then.
        initial: `solved` or `random`: where those begin that are trained; random is uniform within
            1/sqrt(columns in), as of `nn.Linear`.
        bias: gives those that are trained a bias, which begins at 0; `to_student` and `to_teacher` add it.
        centre: solves on centred heads, see `solve_projector`; the papers do not.
        weights: `[overlap]`, how much each token counts in a solution: how frequent it is.
        top_k: solves on so many tokens only, see `most_frequent`; needs `weights`, which then still weigh.
            For plain least squares on them, give `overlap[most_frequent(overlap, weights, k)]` alone.
        generator: of the random beginning, on the CPU; None: the one of PyTorch.

    Attributes:
        teacher_to_student: P_ts `[D, d]`, a parameter or a buffer.
        student_to_teacher: P_st `[d, D]`, likewise.
        teacher_to_student_bias: `[d]`, a parameter or None.
        student_to_teacher_bias: `[D]`, likewise.
    """

    teacher_to_student: Tensor
    student_to_teacher: Tensor
    teacher_to_student_bias: nn.Parameter | None
    student_to_teacher_bias: nn.Parameter | None
    teacher_probability_sums: Tensor | None
    teacher_probability_count: Tensor | None
    _overlap: Tensor
    _weights: Tensor | None
    _teacher_inverse: Tensor | None

    def __init__(  # noqa: PLR0913 - what the papers and the public code do differently
        self,
        *,
        student_weight: Tensor,
        teacher_weight: Tensor,
        overlap: Tensor,
        student_to_teacher: StudentToTeacher = "solved",
        teacher_to_student: TeacherToStudent = "trained",
        initial: Initial = "solved",
        bias: bool = False,
        centre: bool = True,
        weights: Tensor | None = None,
        top_k: int | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        """See the class.

        Raises:
            ValueError: the vocabularies have no token in common; a shape, an id, a weight or an option is not
                as above.
        """
        super().__init__()
        _refuse_choice("student_to_teacher", student_to_teacher, get_args(StudentToTeacher))
        _refuse_choice("teacher_to_student", teacher_to_student, get_args(TeacherToStudent))
        _refuse_choice("initial", initial, get_args(Initial))
        self._is_solved = {
            "teacher_to_student": teacher_to_student == "solved",
            "student_to_teacher": student_to_teacher == "solved",
        }
        if all(self._is_solved.values()) and (bias or initial == "random"):
            given = "bias=True" if bias else 'initial="random"'
            raise ValueError(
                f"{given} is for projectors that are trained, and both are solved; leave it out, or train one"
            )
        _refuse_overlap(overlap, student_weight, teacher_weight)
        self._centre = centre
        self._teacher_size = len(teacher_weight)
        self._is_settled = False
        self._keep_rows(overlap.to(student_weight.device), weights, top_k)
        with torch.no_grad():
            begun = self._begun(student_weight, teacher_weight, initial, generator)
        for name, beginning in begun.items():
            has_bias = bias and not self._is_solved[name]
            zeros = torch.zeros(beginning.shape[1], device=beginning.device)
            self.register_parameter(f"{name}_bias", nn.Parameter(zeros) if has_bias else None)
            if self._is_solved[name]:
                self.register_buffer(name, beginning)
            else:
                self.register_parameter(name, nn.Parameter(beginning))

    def _keep_rows(self, overlap: Tensor, weights: Tensor | None, top_k: int | None) -> None:
        """Keeps the tokens that are solved on, their weights, and where their frequencies are summed."""
        if weights is not None:
            weights = _checked(weights, len(overlap)).to(overlap.device)
        if top_k is not None:
            if weights is None:
                raise ValueError(
                    f"top_k={top_k} without weights: give weights [{len(overlap)}], how frequent each token "
                    "of the overlap is, or leave top_k out"
                )
            kept = most_frequent(overlap, weights, top_k)
            overlap, weights = overlap[kept], weights[kept]
        self.register_buffer("_overlap", overlap, persistent=False)
        self.register_buffer("_weights", weights, persistent=False)
        sums = torch.zeros(len(overlap), dtype=torch.float64, device=overlap.device)
        observes = self._is_solved["teacher_to_student"]
        self.register_buffer("teacher_probability_sums", sums if observes else None)
        self.register_buffer("teacher_probability_count", sums.new_zeros(()) if observes else None)

    def _begun(
        self,
        student_weight: Tensor,
        teacher_weight: Tensor,
        initial: Initial,
        generator: torch.Generator | None,
    ) -> dict[str, Tensor]:
        """Both as they begin, float32; keeps what the solutions need of the teacher's head alone."""
        at_random = initial == "random"
        solved = {name for name, is_solved in self._is_solved.items() if is_solved or not at_random}
        student, teacher = self._on_overlap(student_weight, teacher_weight)
        inverse = None
        if "student_to_teacher" in solved:
            inverse = gram_inverse(teacher, weights=self._weights, centre=self._centre)
        self.register_buffer("_teacher_inverse", inverse, persistent=False)
        found = self._solutions(student, teacher, solved)
        sizes = teacher.shape[1], student.shape[1]
        for name, (columns_in, columns_out) in zip(_NAMES, (sizes, sizes[::-1]), strict=True):
            if name not in solved:
                bound = columns_in**-0.5
                drawn = torch.empty(columns_in, columns_out).uniform_(-bound, bound, generator=generator)
                found[name] = drawn.to(student.device)
        return {name: found[name].float() for name in _NAMES}

    @property
    def observes(self) -> bool:
        """Whether P_ts is solved, on what `observe` is told."""
        return self._is_solved["teacher_to_student"]

    # ---- Solutions ---------------------------------------------------------------------------------------

    @torch.no_grad()
    def refresh(self, *, student_weight: Tensor, teacher_weight: Tensor) -> None:
        """Solves again what is solved, for the student's head as it is now; nothing where both are trained.

        A head that is frozen (`student_weight.requires_grad` is False) is solved for once: give the parameter
        itself, not a detached copy. The teacher's head is taken to be the one of the beginning, of which half
        of a solution is kept.

        Args:
            student_weight: `[V_s, d]`.
            teacher_weight: `[V_t, D]`.
        """
        is_frozen = not student_weight.requires_grad
        names = {name for name, is_solved in self._is_solved.items() if is_solved}
        if not names or (is_frozen and self._is_settled):
            return
        found = self._solutions(*self._on_overlap(student_weight, teacher_weight), names)
        for name, solution in found.items():
            getattr(self, name).copy_(solution)
        self._is_settled = is_frozen

    @torch.no_grad()
    def observe(self, probability_sums: Tensor, count: int) -> None:
        """Adds to the frequencies f_v that weigh a solved P_ts: the teacher's mean probability of each token.

        In a run of several processes, give what all of them saw, so that they solve alike.

        Args:
            probability_sums: `[V_t]`, the teacher's probabilities summed over positions.
            count: how many positions.

        Raises:
            ValueError: P_ts is trained; the sums are of another length, negative or not finite; the count is
                negative.
        """
        if self.teacher_probability_sums is None or self.teacher_probability_count is None:
            raise ValueError(
                "observe: P_ts is trained, and no frequency weighs it; make it with "
                'teacher_to_student="solved"'
            )
        if probability_sums.shape != (self._teacher_size,):
            raise ValueError(
                f"probability sums of shape {list(probability_sums.shape)}; give one for each of the "
                f"teacher's {self._teacher_size} ids, summed over positions"
            )
        if count < 0:
            raise ValueError(f"count={count}; give the number of positions that were summed, 0 or more")
        if not ((probability_sums >= 0) & probability_sums.isfinite()).all():
            raise ValueError("probability sums are negative or not finite; give sums of a softmax")
        sums = probability_sums.to(self._overlap.device).index_select(0, self._overlap[:, 0])
        self.teacher_probability_sums += sums
        self.teacher_probability_count += count

    def _frequencies(self) -> Tensor | None:
        """What weighs P_ts: the mean probabilities observed, or the weights given where there are none."""
        if self.teacher_probability_sums is None or not self.teacher_probability_count:
            return self._weights
        mean = self.teacher_probability_sums.double() / self.teacher_probability_count.double()
        return mean.clamp(min=_LEAST_FREQUENCY)

    def _on_overlap(self, student_weight: Tensor, teacher_weight: Tensor) -> tuple[Tensor, Tensor]:
        """The rows of both heads for the tokens that are solved on, on the student's device."""
        teacher = teacher_weight.index_select(0, self._overlap[:, 0].to(teacher_weight.device))
        return student_weight.index_select(0, self._overlap[:, 1]), teacher.to(student_weight.device)

    def _solutions(self, student: Tensor, teacher: Tensor, names: set[str]) -> dict[str, Tensor]:
        """Those of both heads' rows that are named, float64."""
        found, frequencies = {}, self._frequencies()
        cross = None
        if "teacher_to_student" in names:
            cross = _gram(teacher, student, frequencies, self._centre)
            found["teacher_to_student"] = cross @ _inverse(student, frequencies, self._centre)
        if "student_to_teacher" in names and self._teacher_inverse is not None:
            if cross is None or frequencies is not self._weights:
                cross = _gram(teacher, student, self._weights, self._centre)
            found["student_to_teacher"] = cross.mT @ self._teacher_inverse.double()
        return found

    @property
    def settled_to_teacher(self) -> Tensor | None:
        """P_st `[d, D]` where nothing but `refresh` changes it: solved, without a bias."""
        return self.student_to_teacher if self._is_solved["student_to_teacher"] else None

    # ---- Carrying states ---------------------------------------------------------------------------------

    def to_student(self, hidden: Tensor) -> Tensor:
        """Teacher states `[n, D]` in the student's space: `hidden P_ts + bias`, `[n, d]`, float32."""
        return carried(hidden, self.teacher_to_student, self.teacher_to_student_bias)

    def to_teacher(self, hidden: Tensor) -> Tensor:
        """Student states `[n, d]` in the teacher's space: `hidden P_st + bias`, `[n, D]`, float32."""
        return carried(hidden, self.student_to_teacher, self.student_to_teacher_bias)


_NAMES = ("teacher_to_student", "student_to_teacher")


def carried(hidden: Tensor, projector: Tensor, bias: Tensor | None = None) -> Tensor:
    """`hidden projector + bias`, float32 or wider, whatever autocast says."""
    dtype = torch.promote_types(projector.dtype, torch.float32)
    with torch.autocast(hidden.device.type, enabled=False):
        made = hidden.to(dtype) @ projector.to(dtype)
        return made if bias is None else made + bias.to(dtype)


# ---- What is refused -------------------------------------------------------------------------------------


def _refuse_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name}={value!r}; give {' or '.join(map(repr, choices))}")


def _refuse_rows(source: Tensor, target: Tensor) -> None:
    for rows in (source, target):
        if rows.ndim != 2 or not rows.is_floating_point() or not len(rows):  # noqa: PLR2004
            raise ValueError(
                f"rows of shape {list(rows.shape)}, {rows.dtype}; give at least one row of a head, "
                "[overlap, d], floating point"
            )
    if len(source) != len(target):
        raise ValueError(
            f"{len(source)} rows of the one head and {len(target)} of the other; give those of the "
            "same tokens"
        )


def _refuse_overlap(overlap: Tensor, student_weight: Tensor, teacher_weight: Tensor) -> None:
    if not len(overlap):
        raise ValueError("the vocabularies have no token in common; there is nothing to solve on")
    if overlap.ndim != 2 or overlap.shape[1] != 2 or overlap.dtype != torch.int64:  # noqa: PLR2004
        raise ValueError(
            f"overlap of shape {list(overlap.shape)}, {overlap.dtype}; give ids of teacher and student, "
            "[overlap, 2], int64"
        )
    for side, weight, ids in zip(
        ("teacher", "student"), (teacher_weight, student_weight), overlap.mT, strict=True
    ):
        if weight.ndim != 2 or not weight.is_floating_point():  # noqa: PLR2004
            raise ValueError(
                f"the {side}'s head has shape {list(weight.shape)}, {weight.dtype}; give its weight, a row "
                "per token, floating point"
            )
        low, high = int(ids.min()), int(ids.max())
        if low < 0 or high >= len(weight):
            raise ValueError(
                f"the overlap has the {side} id {low if low < 0 else high}, and its head has ids 0 to "
                f"{len(weight) - 1}; give the overlap of these two models"
            )


def _checked_weights(weights: Tensor | None, rows: Tensor) -> Tensor | None:
    return None if weights is None else _checked(weights, len(rows)).to(rows.device)


def _checked(weights: Tensor, count: int) -> Tensor:
    """The weights in float64, the largest 1."""
    if weights.shape != (count,):
        raise ValueError(
            f"weights of shape {list(weights.shape)}; give one for each of the {count} tokens of the overlap"
        )
    weights = weights.double()
    wrong = (~(weights.isfinite() & (weights >= 0))).nonzero()
    if len(wrong):
        row = int(wrong[0])
        raise ValueError(
            f"weight {weights[row].item():g} at row {row}; give frequencies, finite and 0 or more"
        )
    if not weights.any():
        raise ValueError("all weights are 0; give at least one token a weight above 0, or no weights")
    return weights / weights.amax()
