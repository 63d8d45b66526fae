"""The projectors against the pseudo-inverse of PyTorch in float64, and what moves them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypedDict

import pytest
import torch
from safetensors.torch import save_file

from dskd.nn import Projectors, gram_inverse, solve_projector
from dskd.nn.projector_files import load_projectors, save_projectors
from dskd.nn.projectors import most_frequent

if TYPE_CHECKING:
    from pathlib import Path

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


def test_more_columns_than_are_multiplied_at_once_are_all_there(device: str) -> None:
    rows = random(700, 600, seed=12).to(device)
    rows[:, 1:] += rows[:, :-1]  # so that no two columns are alike
    torch.testing.assert_close(gram_inverse(rows), torch.linalg.inv(rows.T @ rows), rtol=1e-7, atol=1e-9)


# ---- Weights and centring --------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_weights_are_the_pseudo_inverse_of_rows_times_their_roots(
    shape: tuple[int, int, int], dtype: torch.dtype, device: str
) -> None:
    tokens, wide, narrow = shape
    source = random(tokens, wide, seed=1).to(device, dtype)
    target = random(tokens, narrow, seed=2).to(device, dtype)
    weights = random(tokens, seed=3).abs().to(device) + 0.1
    roots = weights.sqrt()[:, None]
    expected = by_pinv(source.double() * roots, target.double() * roots)
    torch.testing.assert_close(
        solve_projector(source, target, weights=weights), expected, rtol=1e-7, atol=1e-9
    )
    if tokens > max(wide, narrow):
        assert not torch.allclose(solve_projector(source, target), expected, rtol=1e-3)


@pytest.mark.parametrize("centre", [False, True])
def test_whole_weights_are_rows_repeated_so_often(centre: bool, device: str) -> None:
    source, target = random(7, 4, seed=4).to(device), random(7, 3, seed=5).to(device)
    weights = torch.tensor([1, 2, 0, 1, 3, 1, 2], device=device)
    rows = torch.repeat_interleave(torch.arange(7, device=device), weights)
    assert len(rows) == 10
    found = solve_projector(source, target, weights=weights, centre=centre)
    torch.testing.assert_close(found, solve_projector(source[rows], target[rows], centre=centre))


@pytest.mark.parametrize("scale", [1e-30, 7.0, 5e307])
def test_the_scale_of_the_weights_does_not_matter(scale: float, device: str) -> None:
    source, target = random(9, 4, seed=4).to(device), random(9, 3, seed=5).to(device)
    weights = random(9, seed=6).abs().to(device)
    found = solve_projector(source, target, weights=weights * scale, centre=True)
    torch.testing.assert_close(found, solve_projector(source, target, weights=weights, centre=True))


def test_weighted_and_centred_projectors_worked_out_by_hand() -> None:
    # Two tokens, target 1 and 3, source 2 and 3, weights 3 and 1: (3 * 1 * 2 + 3 * 3) / (3 + 9) = 5/4.
    # Weighted means 6/4 and 9/4; from them -1/2, 3/2 and -1/4, 3/4: (3/8 + 9/8) / (3/4 + 9/4) = 1/2.
    source, target = torch.tensor([[2.0], [3.0]]), torch.tensor([[1.0], [3.0]])
    weights = torch.tensor([3.0, 1.0])
    assert solve_projector(source, target, weights=weights).item() == pytest.approx(1.25, rel=1e-12)
    assert solve_projector(source, target, weights=weights, centre=True).item() == pytest.approx(0.5)
    assert solve_projector(source, target, centre=True).item() == pytest.approx(0.5)
    # Without weights the plain solution is (2 + 9) / (1 + 9).
    assert solve_projector(source, target).item() == pytest.approx(1.1, rel=1e-12)


@pytest.mark.parametrize("is_weighted", [False, True])
def test_a_row_added_to_every_row_does_not_move_a_centred_projector(is_weighted: bool, device: str) -> None:
    source, target = random(30, 6, seed=13).to(device), random(30, 4, seed=14).to(device)
    weights = random(30, seed=15).abs().to(device) if is_weighted else None
    moved = source + 5 * random(6, seed=16).to(device), target - 3 * random(4, seed=17).to(device)
    found = solve_projector(source, target, weights=weights, centre=True)
    torch.testing.assert_close(solve_projector(*moved, weights=weights, centre=True), found)
    assert not torch.allclose(solve_projector(*moved, weights=weights), found, rtol=0.01)


def test_a_row_added_to_every_row_of_both_heads_leaves_what_is_said_of_a_projected_state(device: str) -> None:
    source, target = random(30, 6, seed=13).to(device), random(30, 4, seed=14).to(device)
    moved = source + random(6, seed=16).to(device), target - random(4, seed=17).to(device)
    states = random(12, 6, seed=18).to(device)
    said = [
        (states @ solve_projector(*heads, centre=True) @ heads[1].T).softmax(-1)
        for heads in ((source, target), moved)
    ]
    torch.testing.assert_close(said[0], said[1])
    assert torch.equal(said[0].argmax(-1), said[1].argmax(-1))


def test_heads_that_differ_by_a_map_and_a_row_say_the_same_where_they_are_centred(device: str) -> None:
    target, states = random(30, 4, seed=14).to(device), random(12, 6, seed=18).to(device)
    source = target @ random(4, 6, seed=19).to(device) + 4 * random(6, seed=20).to(device)
    expected = (states @ source.T).softmax(-1)
    centred, plain = (
        (states @ solve_projector(source, target, centre=centre) @ target.T).softmax(-1)
        for centre in (True, False)
    )
    torch.testing.assert_close(centred, expected)
    assert not torch.allclose(plain, expected, atol=0.05)


@pytest.mark.parametrize("seed", range(5))
def test_a_centred_head_of_fewer_tokens_than_columns_is_singular_and_solved(seed: int, device: str) -> None:
    source = random(5, 7, seed=seed).to(device, torch.float32)
    target = random(5, 6, seed=seed + 50).to(device, torch.float32)
    centred = source.double() - source.double().mean(0), target.double() - target.double().mean(0)
    assert torch.linalg.matrix_rank(centred[1]) == 4
    found = solve_projector(source, target, centre=True)
    torch.testing.assert_close(found, by_pinv(*centred), rtol=1e-6, atol=1e-8)


ROWS = torch.ones(3, 2)
REFUSED_ROWS: list[tuple[Tensor, Tensor, Tensor | None, str]] = [
    (ROWS, ROWS[:2], None, r"^3 rows of the one head and 2 of the other; give those of the same tokens$"),
    (ROWS, ROWS[:0], None, r"^rows of shape \[0, 2\], torch.float32; give at least one row of a head"),
    (ROWS[0], ROWS, None, r"^rows of shape \[2\], torch.float32; give .* \[overlap, d\], floating point$"),
    (ROWS.int(), ROWS, None, r"^rows of shape \[3, 2\], torch.int32; give .* floating point$"),
    (ROWS, ROWS, torch.ones(2), r"^weights of shape \[2\]; give one for each of the 3 tokens"),
    (ROWS, ROWS, torch.ones(3, 1), r"^weights of shape \[3, 1\]; give one for each of the 3 tokens"),
    (
        ROWS,
        ROWS,
        torch.tensor([1, -0.5, 1]),
        r"^weight -0.5 at row 1; give frequencies, finite and 0 or more$",
    ),
    (ROWS, ROWS, torch.tensor([1, 1, torch.nan]), r"^weight nan at row 2; give frequencies"),
    (ROWS, ROWS, torch.tensor([torch.inf, 1, 1]), r"^weight inf at row 0; give frequencies"),
    (ROWS, ROWS, torch.zeros(3), r"^all weights are 0; give at least one token a weight above 0, or no"),
    (ROWS, ROWS / 0, None, r"^a row of the head is not finite; there is no least-squares solution"),
]


@pytest.mark.parametrize(("source", "target", "weights", "message"), REFUSED_ROWS)
def test_what_cannot_be_solved_is_refused(
    source: Tensor, target: Tensor, weights: Tensor | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        solve_projector(source, target, weights=weights)


def test_the_inverse_of_a_gram_matrix_refuses_the_same() -> None:
    with pytest.raises(ValueError, match=r"^weights of shape \[2\]; give one for each of the 3"):
        gram_inverse(ROWS, weights=torch.ones(2))
    with pytest.raises(ValueError, match=r"^rows of shape \[0, 2\]"):
        gram_inverse(ROWS[:0])


# ---- The module ------------------------------------------------------------------------------------------

OVERLAP = torch.tensor([[7, 0], [2, 8], [3, 3], [0, 6], [5, 1], [6, 2], [9, 4]])
OPTIONS: list[StudentToTeacher] = ["solved", "trained"]


def heads(*, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    return random(10, 4, seed=8).to(dtype), random(9, 3, seed=9).to(dtype)


class Heads(TypedDict):
    student_weight: Tensor
    teacher_weight: Tensor


def named(teacher: Tensor, student: Tensor) -> Heads:
    return {"student_weight": student, "teacher_weight": teacher}


def made(kind: StudentToTeacher = "solved") -> Projectors:
    return Projectors(**named(*heads()), overlap=OVERLAP, student_to_teacher=kind, centre=False)


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
    projectors = Projectors(
        student_weight=student, teacher_weight=teacher, overlap=OVERLAP, student_to_teacher=kind, centre=False
    )
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
    changed = Projectors(
        student_weight=student, teacher_weight=teacher, overlap=OVERLAP, student_to_teacher=kind, centre=False
    )
    plain = made(kind)
    assert torch.equal(changed.teacher_to_student, plain.teacher_to_student)
    assert torch.equal(changed.student_to_teacher, plain.student_to_teacher)
    changed.refresh(student_weight=student, teacher_weight=teacher)
    torch.testing.assert_close(changed.student_to_teacher, plain.student_to_teacher)


@pytest.mark.parametrize("kind", OPTIONS)
def test_identical_heads_give_the_identity(kind: StudentToTeacher) -> None:
    weight, overlap = random(9, 4, seed=10).float(), torch.arange(9).repeat(2, 1).T
    projectors = Projectors(
        student_weight=weight.clone(), teacher_weight=weight, overlap=overlap, student_to_teacher=kind
    )
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
    projectors.refresh(student_weight=moved, teacher_weight=teacher)
    teacher_rows, student_rows = rows_of_overlap(teacher, moved.detach())
    torch.testing.assert_close(projectors.student_to_teacher, by_pinv(student_rows, teacher_rows).float())
    assert torch.equal(projectors.teacher_to_student, forth)
    assert projectors.student_to_teacher is back, "what holds the tensor should see the new values"
    assert not projectors.student_to_teacher.requires_grad


def test_a_refresh_with_the_same_heads_changes_nothing() -> None:
    projectors = made("solved")
    before = projectors.student_to_teacher.clone()
    projectors.student_to_teacher.zero_()
    projectors.refresh(**named(*heads()))
    torch.testing.assert_close(projectors.student_to_teacher, before)


def test_a_trained_projector_is_not_refreshed() -> None:
    projectors, (teacher, student) = made("trained"), heads()
    before = projectors.student_to_teacher.detach().clone()
    projectors.refresh(student_weight=student + 1, teacher_weight=teacher)
    assert torch.equal(projectors.student_to_teacher, before)


def test_no_gradient_reaches_a_head_through_a_projector() -> None:
    teacher, student = (weight.requires_grad_() for weight in heads())
    projectors = Projectors(student_weight=student, teacher_weight=teacher, overlap=OVERLAP, centre=False)
    projectors.refresh(student_weight=student, teacher_weight=teacher)
    assert projectors.teacher_to_student.is_leaf
    assert projectors.student_to_teacher.grad_fn is None


def test_vocabularies_without_a_common_token_are_refused() -> None:
    with pytest.raises(
        ValueError, match="the vocabularies have no token in common; there is nothing to solve"
    ):
        Projectors(**named(*heads()), overlap=torch.empty(0, 2, dtype=torch.int64))


def test_a_frozen_head_is_solved_for_once() -> None:
    projectors, (teacher, student) = made("solved"), heads()
    projectors.refresh(student_weight=student, teacher_weight=teacher)
    projectors.student_to_teacher.zero_()
    projectors.refresh(student_weight=student, teacher_weight=teacher)
    assert not projectors.student_to_teacher.any(), "it was solved again"
    projectors.refresh(student_weight=student.requires_grad_(), teacher_weight=teacher)
    assert projectors.student_to_teacher.any(), "it is not frozen any more"
    projectors.refresh(student_weight=student.detach() + 1, teacher_weight=teacher)
    rows = rows_of_overlap(teacher, student.detach() + 1)
    torch.testing.assert_close(projectors.student_to_teacher, by_pinv(rows[1], rows[0]).float())


# ---- Options of the module -------------------------------------------------------------------------------

WEIGHTS = torch.tensor([0.3, 0.1, 0.2, 0.1, 0.05, 0.1, 0.15])
"""Of the pairs in OVERLAP; their student's ids are 0, 8, 3, 6, 1, 2, 4."""


def on(device: str, **options: Any) -> Projectors:
    teacher, student = (weight.to(device) for weight in heads())
    return Projectors(
        student_weight=student,
        teacher_weight=teacher,
        overlap=OVERLAP.to(device),
        **{"centre": False, **options},
    )


def test_they_are_centred_unless_told_otherwise() -> None:
    usual = Projectors(**named(*heads()), overlap=OVERLAP).teacher_to_student
    torch.testing.assert_close(usual, on("cpu", centre=True).teacher_to_student)
    assert not torch.allclose(usual, on("cpu").teacher_to_student)


def assert_solved(found: Tensor, source: Tensor, target: Tensor, **options: Any) -> None:
    expected = solve_projector(source, target, **options).float()
    torch.testing.assert_close(found.detach().cpu(), expected)


@pytest.mark.parametrize("kind", OPTIONS)
@pytest.mark.parametrize("centre", [False, True])
@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["plain", "weighted"])
def test_both_are_solved_with_the_options_given(
    kind: StudentToTeacher, centre: bool, weights: Tensor | None, device: str
) -> None:
    options: dict[str, Any] = {"centre": centre, "weights": weights}
    projectors, (teacher, student) = on(device, student_to_teacher=kind, **options), heads()
    rows = rows_of_overlap(teacher, student)
    assert_solved(projectors.teacher_to_student, *rows, **options)
    assert_solved(projectors.student_to_teacher, *rows[::-1], **options)
    moved = (student + random(9, 3, seed=11).float()).requires_grad_()
    projectors.refresh(student_weight=moved.to(device), teacher_weight=teacher.to(device))
    then = rows[1] if kind == "trained" else rows_of_overlap(teacher, moved.detach())[1]
    assert_solved(projectors.student_to_teacher, then, rows[0], **options)
    assert_solved(projectors.teacher_to_student, *rows, **options)


@pytest.mark.parametrize(
    ("k", "rows"),
    # Of the three of weight 0.1 (rows 1, 3, 5) the student's ids are 8, 6 and 2: lowest first.
    [(1, [0]), (2, [0, 2]), (3, [0, 2, 6]), (4, [0, 2, 5, 6]), (5, [0, 2, 3, 5, 6]), (9, list(range(7)))],
)
def test_the_most_frequent_are_kept_and_of_equal_ones_the_lower_id(
    k: int, rows: list[int], device: str
) -> None:
    assert most_frequent(OVERLAP.to(device), WEIGHTS.to(device), k).tolist() == rows
    shuffled = torch.tensor([3, 6, 1, 0, 5, 2, 4])
    found = shuffled[most_frequent(OVERLAP[shuffled], WEIGHTS[shuffled], k)]
    assert found.sort().values.tolist() == rows
    projectors = on(device, weights=WEIGHTS, top_k=k)
    sides = [side[rows] for side in rows_of_overlap(*heads())]
    assert_solved(projectors.teacher_to_student, *sides, weights=WEIGHTS[rows])
    assert_solved(projectors.student_to_teacher, *sides[::-1], weights=WEIGHTS[rows])


def test_of_many_equally_frequent_tokens_the_lowest_ids_are_kept(device: str) -> None:
    ids = torch.randperm(5000, generator=torch.Generator().manual_seed(5))
    overlap = torch.stack([torch.arange(5000), ids], dim=1).to(device)
    kept = most_frequent(overlap, torch.ones(5000, device=device), 100)
    assert overlap[kept, 1].sort().values.tolist() == list(range(100))


def test_a_random_beginning_is_that_of_a_linear_layer_and_the_generators(device: str) -> None:
    teacher, student = random(40, 25, seed=1).float().to(device), random(40, 16, seed=2).float().to(device)
    overlap = torch.arange(40, device=device).repeat(2, 1).T
    one, same, other = (
        Projectors(
            student_weight=student,
            teacher_weight=teacher,
            overlap=overlap,
            student_to_teacher="trained",
            initial="random",
            generator=torch.Generator().manual_seed(seed),
        )
        for seed in (3, 3, 4)
    )
    for name, shape, bound in (
        ("teacher_to_student", (25, 16), 1 / 5),
        ("student_to_teacher", (16, 25), 1 / 4),
    ):
        found = getattr(one, name)
        assert found.shape == shape
        assert bound * 0.95 < found.abs().max() <= bound
        assert found.mean().abs() < 0.05 * bound
        assert found.requires_grad
        assert torch.equal(found, getattr(same, name))
        assert not torch.equal(found, getattr(other, name))


def test_a_random_beginning_is_for_what_is_trained(device: str) -> None:
    projectors = on(device, initial="random")
    rows = rows_of_overlap(*heads())
    assert_solved(projectors.student_to_teacher, *rows[::-1])
    assert projectors.teacher_to_student.abs().max() <= 0.5
    projectors = on(device, initial="random", teacher_to_student="solved", student_to_teacher="trained")
    assert_solved(projectors.teacher_to_student, *rows)
    assert projectors.student_to_teacher.abs().max() <= 3**-0.5


def test_projectors_of_the_first_paper_are_two_linear_layers(device: str) -> None:
    projectors = on(device, student_to_teacher="trained", initial="random", bias=True)
    names = ["teacher_to_student", "student_to_teacher"]
    assert set(dict(projectors.named_parameters())) == {*names, *(f"{name}_bias" for name in names)}
    for name, carry, given in (
        (names[0], projectors.to_student, random(5, 4, seed=21)),
        (names[1], projectors.to_teacher, random(5, 3, seed=22)),
    ):
        hidden = given.float().to(device).requires_grad_()
        weight, bias = getattr(projectors, name), getattr(projectors, f"{name}_bias")
        assert not bias.any()
        torch.testing.assert_close(carry(hidden), hidden @ weight)
        with torch.no_grad():
            bias += torch.arange(len(bias), device=device)
        expected = torch.nn.functional.linear(hidden, weight.T, bias)
        torch.testing.assert_close(carry(hidden), expected)
        found = torch.autograd.grad(carry(hidden).square().sum(), [hidden, weight, bias])
        for one, same in zip(
            found, torch.autograd.grad(expected.square().sum(), [hidden, weight, bias]), strict=True
        ):
            torch.testing.assert_close(one, same)


def test_only_a_trained_projector_has_a_bias(device: str) -> None:
    projectors = on(device, bias=True)
    assert projectors.teacher_to_student_bias is not None
    assert projectors.student_to_teacher_bias is None
    assert set(projectors.state_dict()) == {
        "teacher_to_student",
        "teacher_to_student_bias",
        "student_to_teacher",
    }


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_states_are_carried_in_float32_under_autocast_as_well(dtype: torch.dtype, device: str) -> None:
    projectors = on(device)
    teacher, student = random(5, 4, seed=21).to(device, dtype), random(5, 3, seed=22).to(device, dtype)
    with torch.autocast(device, dtype=torch.bfloat16):
        carried = projectors.to_student(teacher), projectors.to_teacher(student)
    assert torch.equal(carried[0], teacher.float() @ projectors.teacher_to_student)
    assert torch.equal(carried[1], student.float() @ projectors.student_to_teacher)


# ---- P_ts solved again -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", OPTIONS)
def test_a_solved_projector_to_the_student_has_no_gradient_and_no_rate(
    kind: StudentToTeacher, device: str
) -> None:
    projectors = on(device, teacher_to_student="solved", student_to_teacher=kind)
    names = {name for name, _ in projectors.named_parameters()}
    assert names == ({"student_to_teacher"} if kind == "trained" else set())
    teacher, student = (weight.to(device).requires_grad_() for weight in heads())
    projectors.refresh(student_weight=student, teacher_weight=teacher)
    assert not projectors.teacher_to_student.requires_grad
    assert projectors.teacher_to_student.grad_fn is None
    hidden = random(2, 4, seed=1).float().to(device).requires_grad_()
    carried = projectors.to_student(hidden).sum()
    gradients = torch.autograd.grad(carried, [hidden, teacher, student], allow_unused=True)
    assert [gradient is None for gradient in gradients] == [False, True, True]


@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["plain", "weighted"])
@pytest.mark.parametrize("centre", [False, True])
def test_it_follows_the_students_head_and_what_the_teacher_was_seen_to_expect(
    weights: Tensor | None, centre: bool, device: str
) -> None:
    projectors = on(device, teacher_to_student="solved", weights=weights, centre=centre)
    held, (teacher, student) = projectors.teacher_to_student, heads()
    options: dict[str, Any] = {"weights": weights, "centre": centre}
    rows = rows_of_overlap(teacher, student)
    assert_solved(held, *rows, **options)
    moved = (student + random(9, 3, seed=11).float()).requires_grad_()
    moved_rows = rows_of_overlap(teacher, moved.detach())
    projectors.refresh(student_weight=moved.to(device), teacher_weight=teacher.to(device))
    assert_solved(held, *moved_rows, **options)
    probabilities = random(6, 10, seed=23).softmax(-1)
    for batch in (probabilities[:2], probabilities[2:]):
        projectors.observe(batch.sum(0).float().to(device), len(batch))
    assert_solved(held, *moved_rows, **options)  # nothing before it is refreshed
    projectors.refresh(student_weight=moved.to(device), teacher_weight=teacher.to(device))
    observed = probabilities.mean(0)[OVERLAP[:, 0]]
    assert_solved(held, *moved_rows, weights=observed, centre=centre)
    # P_st has the weights that were given, before and after.
    assert_solved(projectors.student_to_teacher, *moved_rows[::-1], **options)


def test_a_token_that_the_teacher_never_expects_weighs_a_millionth(device: str) -> None:
    projectors, (teacher, student) = on(device, teacher_to_student="solved"), heads()
    sums = torch.zeros(10, device=device)
    sums[7], sums[2] = 300, 100  # rows 0 and 1 of the overlap
    projectors.observe(sums, 400)
    projectors.refresh(student_weight=student.to(device), teacher_weight=teacher.to(device))
    weights = torch.tensor([0.75, 0.25, 1e-6, 1e-6, 1e-6, 1e-6, 1e-6], dtype=torch.float64)
    assert_solved(projectors.teacher_to_student, *rows_of_overlap(teacher, student), weights=weights)


def test_frequencies_of_the_most_frequent_tokens_are_of_those_tokens(device: str) -> None:
    projectors = on(device, teacher_to_student="solved", weights=WEIGHTS, top_k=4)
    teacher, student = heads()
    sums = torch.arange(10.0, device=device) + 1
    projectors.observe(sums, 55)
    projectors.refresh(student_weight=student.to(device), teacher_weight=teacher.to(device))
    kept = [0, 2, 5, 6]  # teacher ids 7, 3, 6, 9
    sides = [side[kept] for side in rows_of_overlap(teacher, student)]
    assert_solved(projectors.teacher_to_student, *sides, weights=torch.tensor([8.0, 4, 7, 10]))


def test_nothing_observed_changes_nothing(device: str) -> None:
    projectors = on(device, teacher_to_student="solved", weights=WEIGHTS)
    projectors.observe(torch.zeros(10, device=device), 0)
    projectors.refresh(**named(*(weight.to(device) for weight in heads())))
    assert_solved(projectors.teacher_to_student, *rows_of_overlap(*heads()), weights=WEIGHTS)


def test_frequencies_are_saved_and_go_on_where_they_were(device: str) -> None:
    one, other = (on(device, teacher_to_student="solved") for _ in range(2))
    sums = random(2, 10, seed=24).abs().to(device)
    one.observe(sums[0], 3)
    other.load_state_dict(one.state_dict())
    for projectors in (one, other):
        projectors.observe(sums[1], 5)
        projectors.refresh(**named(*(weight.to(device) for weight in heads())))
    assert torch.equal(one.teacher_to_student, other.teacher_to_student)
    observed = sums.sum(0).cpu()[OVERLAP[:, 0]] / 8
    assert_solved(other.teacher_to_student, *rows_of_overlap(*heads()), weights=observed)


# ---- Refused options -------------------------------------------------------------------------------------

TEACHER, STUDENT = heads()
ELSEWHERE = OVERLAP.clone()
ELSEWHERE[3, 1] = 9
REFUSED: list[tuple[tuple[Tensor, Tensor, Tensor], dict[str, Any], str]] = [
    (
        (TEACHER, STUDENT, OVERLAP.int()),
        {},
        r"^overlap of shape \[7, 2\], torch.int32; give ids of .* int64$",
    ),
    ((TEACHER, STUDENT, OVERLAP.T), {}, r"^overlap of shape \[2, 7\], torch.int64; give .* \[overlap, 2\]"),
    (
        (TEACHER, STUDENT, ELSEWHERE),
        {},
        r"^the overlap has the student id 9, and its head has ids 0 to 8; give",
    ),
    (
        (TEACHER, STUDENT, OVERLAP - 1),
        {},
        r"^the overlap has the teacher id -1, and its head has ids 0 to 9; give",
    ),
    ((TEACHER[:9], STUDENT, OVERLAP), {}, r"^the overlap has the teacher id 9, and its head has ids 0 to 8"),
    (
        (TEACHER[0], STUDENT, OVERLAP),
        {},
        r"^the teacher's head has shape \[4\], torch.float32; give its weight",
    ),
    ((TEACHER, STUDENT.int(), OVERLAP), {}, r"^the student's head has shape \[9, 3\], torch.int32; give its"),
    (
        (TEACHER, STUDENT, OVERLAP),
        {"top_k": 3},
        r"^top_k=3 without weights: give weights \[7\], how frequent",
    ),
    (
        (TEACHER, STUDENT, OVERLAP),
        {"top_k": 0, "weights": WEIGHTS},
        r"^top_k=0; give a number of tokens from 1",
    ),
    ((TEACHER, STUDENT, OVERLAP), {"weights": WEIGHTS[:6]}, r"^weights of shape \[6\]; give one .* 7 tokens"),
    ((TEACHER, STUDENT, OVERLAP), {"weights": -WEIGHTS}, r"^weight -0.3 at row 0; give frequencies"),
    (
        (TEACHER, STUDENT, OVERLAP),
        {"student_to_teacher": "solve"},
        r"^student_to_teacher='solve'; give 'solved' or 'trained'$",
    ),
    (
        (TEACHER, STUDENT, OVERLAP),
        {"teacher_to_student": None},
        r"^teacher_to_student=None; give 'trained' or 'solved'$",
    ),
    ((TEACHER, STUDENT, OVERLAP), {"initial": "zero"}, r"^initial='zero'; give 'solved' or 'random'$"),
    (
        (TEACHER, STUDENT, OVERLAP),
        {"bias": True, "teacher_to_student": "solved"},
        r"^bias=True is for projectors that are trained, and both are solved; leave it out, or train one$",
    ),
    (
        (TEACHER, STUDENT, OVERLAP),
        {"initial": "random", "teacher_to_student": "solved"},
        r'^initial="random" is for projectors that are trained, and both are solved',
    ),
]


@pytest.mark.parametrize(("given", "options", "message"), REFUSED)
def test_wrong_arguments_are_refused(
    given: tuple[Tensor, Tensor, Tensor], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Projectors(**named(*given[:2]), overlap=given[2], **options)


@pytest.mark.parametrize(
    ("sums", "count", "message"),
    [
        (torch.ones(9), 1, r"^probability sums of shape \[9\]; give one for each of the teacher's 10 ids"),
        (torch.ones(10), -1, r"^count=-1; give the number of positions that were summed, 0 or more$"),
        (-torch.ones(10), 1, r"^probability sums are negative or not finite; give sums of a softmax$"),
        (torch.ones(10) / 0, 1, r"^probability sums are negative or not finite"),
        (torch.full([10], torch.nan), 1, r"^probability sums are negative or not finite"),
    ],
)
def test_wrong_observations_are_refused(sums: Tensor, count: int, message: str) -> None:
    projectors = Projectors(**named(*heads()), overlap=OVERLAP, teacher_to_student="solved")
    with pytest.raises(ValueError, match=message):
        projectors.observe(sums, count)
    assert projectors.teacher_probability_sums is not None
    assert not projectors.teacher_probability_sums.any()


def test_a_trained_projector_observes_nothing() -> None:
    with pytest.raises(ValueError, match=r'make it with teacher_to_student="solved"$'):
        made().observe(torch.ones(10), 1)


# ---- Files -----------------------------------------------------------------------------------------------

HASHES = {"teacher_hash": "a" * 64, "student_hash": "b" * 64}


@pytest.mark.parametrize(
    "options",
    [{}, {"bias": True, "student_to_teacher": "trained"}, {"teacher_to_student": "solved"}],
    ids=str,
)
def test_projectors_come_back_from_their_file(options: dict[str, Any], tmp_path: Path, device: str) -> None:
    projectors = on(device, **options)
    if options.get("teacher_to_student") == "solved":
        projectors.observe(torch.ones(10, device=device), 10)
    save_projectors(tmp_path / "projectors.safetensors", projectors.state_dict(), **HASHES)
    loaded = load_projectors(tmp_path / "projectors.safetensors", **HASHES)
    assert set(loaded) == set(projectors.state_dict())
    other = on(device, **options)
    with torch.no_grad():
        other.teacher_to_student.zero_()
    other.load_state_dict(loaded)
    for name, value in projectors.state_dict().items():
        assert torch.equal(other.state_dict()[name], value), name


@pytest.mark.parametrize("side", ["teacher", "student"])
def test_the_projectors_of_others_are_refused(side: str, tmp_path: Path) -> None:
    path = tmp_path / "projectors.safetensors"
    save_projectors(path, made().state_dict(), **HASHES)
    mine = {**HASHES, f"{side}_hash": "c" * 64}
    saved = HASHES[f"{side}_hash"]
    message = (
        rf"another {side} vocabulary: the content hash of that is {saved}, and this run's is c{{64}}; res"
    )
    with pytest.raises(ValueError, match=message):
        load_projectors(path, **mine)


def test_a_file_that_says_nothing_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "projectors.safetensors"
    save_file({"teacher_to_student": torch.ones(2, 2)}, path)
    with pytest.raises(ValueError, match=r"another teacher vocabulary: the content hash of that is None"):
        load_projectors(path, **HASHES)


def test_a_missing_and_a_broken_file_are_named(tmp_path: Path) -> None:
    path = tmp_path / "projectors.safetensors"
    with pytest.raises(
        FileNotFoundError, match=r"projectors.safetensors is missing: the run to resume had no"
    ):
        load_projectors(path, **HASHES)
    save_projectors(path, made().state_dict(), **HASHES)
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(
        ValueError, match=r"projectors.safetensors is no whole safetensors file \(.*; copy it"
    ):
        load_projectors(path, **HASHES)
