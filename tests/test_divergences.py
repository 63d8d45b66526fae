"""The divergences against numbers worked out on paper, PyTorch's own, and a definition in plain loops."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
import torch
from torch.nn import functional

from dskd.nn import DIVERGENCES, Head, divergence, kl, reverse_kl

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from dskd.nn.divergences import Divergence

NAMES: list[Divergence] = ["kl", "reverse_kl"]
MASKED = -1e30


@dataclass(frozen=True)
class Case:
    """Two distributions, teacher and student, and their divergences worked out by hand."""

    name: str
    teacher: Sequence[float]
    student: Sequence[float]
    kl: float
    reverse_kl: float


LN2, LN3 = math.log(2), math.log(3)
CASES = [
    Case(
        "one half, one half against one quarter",
        [1 / 2, 1 / 2],
        [1 / 4, 3 / 4],
        LN2 - LN3 / 2,
        0.75 * LN3 - LN2,
    ),
    Case("powers of two", [1 / 2, 1 / 4, 1 / 8, 1 / 8], [1 / 4] * 4, LN2 / 4, LN2 / 4),
    Case("thirds", [1 / 3, 2 / 3], [2 / 3, 1 / 3], LN2 / 3, LN2 / 3),
    Case("a third and a half", [1 / 3] * 3, [1 / 2, 1 / 4, 1 / 4], 5 / 3 * LN2 - LN3, LN3 - 1.5 * LN2),
    Case("equal", [1 / 3, 2 / 3], [1 / 3, 2 / 3], 0.0, 0.0),
]


def by_loop(name: str, teacher_logits: Tensor, student_logits: Tensor, temperature: float) -> list[float]:
    """The definition, a number at a time in Python's own floats."""
    return [
        of_rows(name, [z / temperature for z in teacher], [z / temperature for z in student])
        for teacher, student in zip(teacher_logits.tolist(), student_logits.tolist(), strict=True)
    ]


def of_rows(name: str, teacher: list[float], student: list[float]) -> float:
    log_p, log_q = log_softmax(teacher), log_softmax(student)
    if name == "reverse_kl":
        log_p, log_q = log_q, log_p
    return math.fsum(math.exp(left) * (left - right) for left, right in zip(log_p, log_q, strict=True))


def log_softmax(logits: list[float]) -> list[float]:
    top = max(logits)
    total = top + math.log(math.fsum(math.exp(logit - top) for logit in logits))
    return [logit - total for logit in logits]


def random_logits(seed: int, *, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    teacher, student = 3 * torch.randn(2, 6, 7, generator=generator, dtype=torch.float64)
    return teacher.to(dtype), student.to(dtype)


def test_there_are_the_divergences_of_the_definition() -> None:
    assert dict(DIVERGENCES) == {"kl": kl, "reverse_kl": reverse_kl}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_numbers_worked_out_by_hand(case: Case) -> None:
    teacher = torch.tensor(case.teacher, dtype=torch.float64).log()
    student = torch.tensor(case.student, dtype=torch.float64).log()
    assert kl(teacher, student).item() == pytest.approx(case.kl, abs=1e-14)
    assert reverse_kl(teacher, student).item() == pytest.approx(case.reverse_kl, abs=1e-14)


def test_a_certain_side_costs_the_logarithm_of_what_the_other_says() -> None:
    certain, even = torch.tensor([0.0, MASKED]), torch.tensor([0.5, 0.5]).log()
    assert kl(certain, even).item() == pytest.approx(LN2)
    assert reverse_kl(even, certain).item() == pytest.approx(LN2)


def test_logits_may_be_shifted_by_any_constant() -> None:
    shifts = torch.tensor([0.0, 5.0, -3.0, 100.0, 0.5, 7.0], dtype=torch.float64).unsqueeze(1)
    teacher, student = random_logits(1)
    for name in NAMES:
        torch.testing.assert_close(
            divergence(name, teacher + shifts, student - shifts), divergence(name, teacher, student)
        )


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("name", NAMES)
def test_it_equals_its_definition(name: Divergence, temperature: float) -> None:
    teacher, student = random_logits(2)
    found = divergence(name, teacher, student, temperature=temperature)
    assert found.tolist() == pytest.approx(by_loop(name, teacher, student, temperature), rel=1e-12)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_it_equals_the_one_of_pytorch(temperature: float) -> None:
    teacher, student = random_logits(3)
    log_p, log_q = (logits.div(temperature).log_softmax(-1) for logits in (teacher, student))
    forward = functional.kl_div(log_q, log_p, log_target=True, reduction="none").sum(-1)
    backward = functional.kl_div(log_p, log_q, log_target=True, reduction="none").sum(-1)
    torch.testing.assert_close(divergence("kl", teacher, student, temperature=temperature), forward)
    torch.testing.assert_close(divergence("reverse_kl", teacher, student, temperature=temperature), backward)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("name", NAMES)
def test_its_gradient_is_the_one_of_differences(name: Divergence, temperature: float) -> None:
    teacher, student = (logits.requires_grad_() for logits in random_logits(4))
    assert torch.autograd.gradcheck(
        lambda left, right: divergence(name, left, right, temperature=temperature), (teacher, student)
    )


def test_the_gradient_of_kl_is_the_difference_of_the_distributions() -> None:
    teacher, student = random_logits(5)
    student.requires_grad_()
    (found,) = torch.autograd.grad(divergence("kl", teacher, student, temperature=2.0).sum(), student)
    torch.testing.assert_close(found, ((student / 2).softmax(-1) - (teacher / 2).softmax(-1)).detach() / 2)


def test_no_factor_of_the_squared_temperature() -> None:
    teacher, student = torch.tensor([[0.0, 2 * LN2]]), torch.tensor([[0.0, 0.0]])
    found = divergence("kl", teacher, student, temperature=2.0)
    assert found.item() == pytest.approx(math.log(2 / 3) / 3 + math.log(4 / 3) * 2 / 3)


@pytest.mark.parametrize("name", NAMES)
def test_it_is_zero_for_equal_distributions_and_so_is_its_gradient(name: Divergence) -> None:
    logits, _ = random_logits(6)
    student = logits.clone().requires_grad_()
    found = divergence(name, logits + 3, student)
    (gradient,) = torch.autograd.grad(found.sum(), student)
    torch.testing.assert_close(found, torch.zeros_like(found), rtol=0, atol=1e-12)
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-12)


@pytest.mark.parametrize("seed", range(7, 12))
@pytest.mark.parametrize("name", NAMES)
def test_it_is_positive_for_distributions_that_differ(name: Divergence, seed: int) -> None:
    assert divergence(name, *random_logits(seed)).min() > 1e-3


@pytest.mark.parametrize("name", NAMES)
def test_it_has_a_value_a_token_whatever_the_shape(name: Divergence) -> None:
    teacher, student = random_logits(12)
    found = divergence(name, teacher.view(2, 3, 7), student.view(2, 3, 7))
    torch.testing.assert_close(found, divergence(name, teacher, student).view(2, 3))
    assert divergence(name, teacher[:0], student[:0]).shape == (0,)


@pytest.mark.parametrize("name", NAMES)
def test_float32_logits_give_float32_close_to_float64(name: Divergence) -> None:
    teacher, student = random_logits(13, dtype=torch.float32)
    found = divergence(name, teacher, student, temperature=1.5)
    assert found.dtype == torch.float32
    assert found.tolist() == pytest.approx(by_loop(name, teacher, student, 1.5), rel=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_heads_in_bfloat16_lose_no_more_than_their_logits_did(name: Divergence) -> None:
    generator = torch.Generator().manual_seed(14)
    hidden = torch.randn(6, 4, generator=generator).bfloat16()
    teacher, student = (
        Head(torch.randn(7, 4, generator=generator).bfloat16()).logits(hidden) for _ in range(2)
    )
    found = divergence(name, teacher, student)
    assert found.dtype == torch.float32
    assert found.tolist() == pytest.approx(by_loop(name, teacher, student, 1.0), rel=1e-5)


EXTREMES = {
    "both certain, of the same": ([1e4, 0.0, MASKED], [1e4, 0.0, MASKED]),
    "both certain, of another": ([1e4, 0.0, MASKED], [0.0, 1e4, MASKED]),
    "the teacher certain": ([1e4, 0.0, MASKED], [0.0, 0.5, MASKED]),
    "the student certain": ([0.0, 0.5, MASKED], [1e4, 0.0, MASKED]),
    "all but one masked": ([1.0, MASKED, MASKED], [-1.0, MASKED, MASKED]),
    "very negative": ([-1e4, -2e4, MASKED], [-2e4, -1e4, MASKED]),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("temperature", [0.1, 1.0])
@pytest.mark.parametrize("logits", EXTREMES.values(), ids=EXTREMES)
@pytest.mark.parametrize("name", NAMES)
def test_extreme_logits_have_a_finite_value_and_gradient(
    name: Divergence, logits: tuple[list[float], list[float]], temperature: float, dtype: torch.dtype
) -> None:
    teacher, student = (torch.tensor([row], dtype=dtype) for row in logits)
    student.requires_grad_()
    found = divergence(name, teacher, student, temperature=temperature)
    (gradient,) = torch.autograd.grad(found.sum(), student)
    assert found.tolist() == pytest.approx(by_loop(name, teacher, student, temperature), rel=1e-5, abs=1e-6)
    assert gradient.isfinite().all(), gradient
    assert gradient[0][torch.tensor(logits[1]) == MASKED].eq(0).all(), gradient


@pytest.mark.parametrize("name", NAMES)
def test_columns_masked_on_both_sides_do_not_exist(name: Divergence) -> None:
    teacher, student = random_logits(15)
    masked = torch.tensor([False, True, False, False, True, False, False])
    found = divergence(name, teacher.masked_fill(masked, MASKED), student.masked_fill(masked, MASKED))
    torch.testing.assert_close(found, divergence(name, teacher[:, ~masked], student[:, ~masked]))
