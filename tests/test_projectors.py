"""The projectors against the pseudo-inverse of PyTorch in float64, and what moves them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from dskd.nn import Projectors, gram_inverse, solve_projector

if TYPE_CHECKING:
    from torch import Tensor

    from dskd.nn.projectors import StudentToTeacher


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def by_pinv(source: Tensor, target: Tensor) -> Tensor:
    """`source^T pinv(target^T)`, the definition."""
    inverse: Tensor = torch.linalg.pinv(target.double().T)
    return source.double().T @ inverse


SHAPES = {
    "smaller student": (20, 7, 3),
    "larger student": (20, 3, 7),
    "equal": (20, 5, 5),
    "as many tokens as columns": (5, 5, 5),
    "overlap smaller than the student's space": (4, 3, 6),
    "overlap smaller than the teacher's space": (4, 6, 3),
    "overlap smaller than both": (3, 7, 5),
    "one token": (1, 4, 3),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_a_projector_is_the_product_with_the_pseudo_inverse(
    shape: tuple[int, int, int], dtype: torch.dtype
) -> None:
    tokens, wide, narrow = shape
    source, target = random(tokens, wide, seed=1).to(dtype), random(tokens, narrow, seed=2).to(dtype)
    found = solve_projector(source, target)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, by_pinv(source, target), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_a_singular_gram_matrix_is_inverted_where_it_is_not(seed: int, dtype: torch.dtype) -> None:
    rows = random(6, 3, seed=seed).to(dtype)[[0, 1, 1, 2, 0, 2]]
    target = torch.cat([rows, rows, rows[:, :1]], dim=1)  # rank 3 of 7 columns
    source = random(6, 4, seed=seed + 100).to(dtype)
    assert torch.linalg.matrix_rank(target.double()) == 3
    torch.testing.assert_close(solve_projector(source, target), by_pinv(source, target), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_the_inverse_of_a_gram_matrix_has_the_properties_of_a_pseudo_inverse(dtype: torch.dtype) -> None:
    rows = random(9, 5, seed=3).to(dtype)
    rows[:, 4] = 2 * rows[:, 0]
    gram, inverse = rows.double().T @ rows.double(), gram_inverse(rows)
    torch.testing.assert_close(gram @ inverse @ gram, gram)
    torch.testing.assert_close(inverse @ gram @ inverse, inverse)
    torch.testing.assert_close(gram @ inverse, (gram @ inverse).T)


def test_repeated_rows_weigh_as_often_as_they_are_repeated() -> None:
    source, target = random(6, 4, seed=4), random(6, 3, seed=5)
    rows = [0, 1, 1, 2, 3, 3, 3, 4, 5]
    found = solve_projector(source[rows], target[rows])
    torch.testing.assert_close(found, by_pinv(source[rows], target[rows]))
    assert not torch.allclose(found, by_pinv(source, target))


def test_a_projector_worked_out_by_hand() -> None:
    target = torch.tensor([[1.0], [2.0], [2.0]])  # pinv of its transpose: [1, 2, 2] / 9
    source = torch.tensor([[9.0, 0.0], [0.0, 9.0], [9.0, 9.0]])
    assert solve_projector(source, target).flatten().tolist() == pytest.approx([3.0, 4.0], rel=1e-12)


# A float32 matrix [8, 4] has the cut-off 8 * 2^-23 = 9.5e-7 of its largest singular value.
@pytest.mark.parametrize(("smallest", "kept"), [(1.3e-6, True), (0.7e-6, False)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_cut_off_is_the_one_of_pinv_in_float32(smallest: float, kept: bool, dtype: torch.dtype) -> None:
    rows = torch.zeros(8, 4, dtype=dtype)
    rows.diagonal().copy_(torch.tensor([4.0, 2.0, 1.0, 4 * smallest]))
    inverse = gram_inverse(rows)
    expected = torch.linalg.pinv(rows.float().T)[:4].double().diagonal()
    torch.testing.assert_close(inverse.diagonal().sqrt(), expected, rtol=1e-5, atol=0)
    assert (inverse[3, 3] > 0) == kept


def test_more_rows_than_are_multiplied_at_once_are_all_counted() -> None:
    source, target = random(20_000, 3, seed=6).float(), random(20_000, 2, seed=7).float()
    target[8192:] += 1  # so that no block is like another
    torch.testing.assert_close(solve_projector(source, target), by_pinv(source, target))


# ---- the module ------------------------------------------------------------------------------------------

OVERLAP = torch.tensor([[7, 0], [2, 8], [3, 3], [0, 6], [5, 1], [6, 2], [9, 4]])
OPTIONS: list[StudentToTeacher] = ["solved", "trained"]


def heads(*, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    return random(10, 4, seed=8).to(dtype), random(9, 3, seed=9).to(dtype)


def made(kind: StudentToTeacher = "solved") -> Projectors:
    return Projectors(*heads(), OVERLAP, student_to_teacher=kind)


def rows_of_overlap(teacher: Tensor, student: Tensor) -> tuple[Tensor, Tensor]:
    """The rows of both heads, pair after pair."""
    pairs = OVERLAP.tolist()
    return torch.stack([teacher[left] for left, _ in pairs]), torch.stack(
        [student[right] for _, right in pairs]
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", OPTIONS)
def test_both_are_solved_on_the_overlap_alone(kind: StudentToTeacher, dtype: torch.dtype) -> None:
    teacher, student = heads(dtype=dtype)
    projectors = Projectors(teacher, student, OVERLAP, student_to_teacher=kind)
    teacher_rows, student_rows = rows_of_overlap(teacher, student)
    forth, back = by_pinv(teacher_rows, student_rows).float(), by_pinv(student_rows, teacher_rows).float()
    assert forth.shape == (4, 3)
    assert back.shape == (3, 4)
    torch.testing.assert_close(projectors.teacher_to_student.detach(), forth)
    torch.testing.assert_close(projectors.student_to_teacher.detach(), back)


@pytest.mark.parametrize("kind", OPTIONS)
def test_ids_outside_the_overlap_do_not_matter(kind: StudentToTeacher) -> None:
    teacher, student = heads()
    for weight, ids in zip((teacher, student), OVERLAP.T.tolist(), strict=True):
        outside = sorted(set(range(len(weight))) - set(ids))
        assert outside
        weight[outside] = float("inf")
    changed, plain = Projectors(teacher, student, OVERLAP, student_to_teacher=kind), made(kind)
    assert torch.equal(changed.teacher_to_student, plain.teacher_to_student)
    assert torch.equal(changed.student_to_teacher, plain.student_to_teacher)
    changed.refresh(teacher, student)
    torch.testing.assert_close(changed.student_to_teacher, plain.student_to_teacher)


@pytest.mark.parametrize("kind", OPTIONS)
def test_identical_heads_give_the_identity(kind: StudentToTeacher) -> None:
    weight, overlap = random(9, 4, seed=10).float(), torch.arange(9).repeat(2, 1).T
    projectors = Projectors(weight, weight.clone(), overlap, student_to_teacher=kind)
    torch.testing.assert_close(projectors.teacher_to_student.detach(), torch.eye(4))
    torch.testing.assert_close(projectors.student_to_teacher.detach(), torch.eye(4))


@pytest.mark.parametrize(
    ("kind", "parameters"),
    [("solved", {"teacher_to_student"}), ("trained", {"teacher_to_student", "student_to_teacher"})],
)
def test_a_solved_projector_is_a_buffer_and_a_trained_one_a_parameter(
    kind: StudentToTeacher, parameters: set[str]
) -> None:
    projectors = made(kind)
    assert {name for name, _ in projectors.named_parameters()} == parameters
    assert projectors.teacher_to_student.requires_grad
    assert projectors.student_to_teacher.requires_grad == (kind == "trained")
    assert projectors.teacher_to_student.dtype == projectors.student_to_teacher.dtype == torch.float32


@pytest.mark.parametrize("kind", OPTIONS)
def test_the_state_dict_is_both_projectors_and_comes_back(kind: StudentToTeacher) -> None:
    projectors, other = made(kind), made(kind)
    saved = projectors.state_dict()
    assert set(saved) == {"teacher_to_student", "student_to_teacher"}
    other.load_state_dict({name: value + 1 for name, value in saved.items()})
    assert torch.equal(other.teacher_to_student, saved["teacher_to_student"] + 1)
    assert torch.equal(other.student_to_teacher, saved["student_to_teacher"] + 1)


def test_a_refreshed_projector_follows_the_students_head() -> None:
    projectors, (teacher, student) = made("solved"), heads()
    forth, back = projectors.teacher_to_student.clone(), projectors.student_to_teacher
    moved = (student + random(9, 3, seed=11).float()).requires_grad_()
    projectors.refresh(teacher, moved)
    teacher_rows, student_rows = rows_of_overlap(teacher, moved.detach())
    torch.testing.assert_close(projectors.student_to_teacher, by_pinv(student_rows, teacher_rows).float())
    assert torch.equal(projectors.teacher_to_student, forth)
    assert projectors.student_to_teacher is back, "what holds the tensor should see the new values"
    assert not projectors.student_to_teacher.requires_grad


def test_a_refresh_with_the_same_heads_changes_nothing() -> None:
    projectors = made("solved")
    before = projectors.student_to_teacher.clone()
    projectors.student_to_teacher.zero_()
    projectors.refresh(*heads())
    torch.testing.assert_close(projectors.student_to_teacher, before)


def test_a_trained_projector_is_not_refreshed() -> None:
    projectors, (teacher, student) = made("trained"), heads()
    before = projectors.student_to_teacher.detach().clone()
    projectors.refresh(teacher, student + 1)
    assert torch.equal(projectors.student_to_teacher, before)


def test_no_gradient_reaches_a_head_through_a_projector() -> None:
    teacher, student = (weight.requires_grad_() for weight in heads())
    projectors = Projectors(teacher, student, OVERLAP)
    projectors.refresh(teacher, student)
    assert projectors.teacher_to_student.is_leaf
    assert projectors.student_to_teacher.grad_fn is None


def test_vocabularies_without_a_common_token_are_refused() -> None:
    with pytest.raises(
        ValueError, match="the vocabularies have no token in common; there is nothing to solve"
    ):
        Projectors(*heads(), torch.empty(0, 2, dtype=torch.int64))
