"""The bounds on rounding can fail: what goes wrong in practice is larger than they allow."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch.nn import functional

from dskd.nn import DualSpace, divergence_and_gradient
from dskd.nn.linear import ReadHead
from leaves import Transforms, all_of, objective_of, random_leaves, say_clearly
from rounding import divergence_bounds, losses_by_rounding, product_bound
from test_divergences import SETTINGS, by_autograd, each_setting, random_logits

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from dskd.nn import Objective
    from dskd.nn.divergences import Divergence
    from leaves import Leaves

# ---- Divergences -----------------------------------------------------------------------------------------


def through_bfloat16(log_probs: Tensor) -> Tensor:
    return log_probs.bfloat16().to(log_probs.dtype)


def to_eleven_bits(log_probs: Tensor) -> Tensor:
    """As TF32 has, and float16."""
    scale = 2.0 ** (log_probs.abs().log2().floor() - 10)
    return (log_probs / scale).round() * scale


FAULTS: dict[str, Callable[[Tensor], Tensor]] = {
    "log-probabilities in bfloat16": through_bfloat16,
    "log-probabilities in TF32": to_eleven_bits,
    "a temperature of 1.001": lambda log_probs: (log_probs / 1.001).log_softmax(-1),
}


@each_setting(SETTINGS)
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_in_a_divergence_is_larger_than_its_bound(
    name: Divergence, mix: float | None, fault: str
) -> None:
    student, teacher = random_logits(32, 5, 3000, dtype=torch.float32)
    items, gradient = by_autograd(name, student.double(), teacher.double(), mix)
    bounds = divergence_bounds(name, student, teacher, mix, dtype=torch.float32)
    found = divergence_and_gradient(
        name, FAULTS[fault](student.log_softmax(-1)), teacher.log_softmax(-1), mix=mix
    )
    beyond = ((found[0] - items).abs() > bounds.items).any()
    assert beyond or ((found[1] - gradient).abs() > bounds.gradient).any()


@each_setting(SETTINGS)
def test_a_logit_in_float32_where_it_is_said_to_be_in_float64_is_larger_than_the_bound(
    name: Divergence, mix: float | None
) -> None:
    student, teacher = random_logits(32, 5, 300)
    _, gradient = by_autograd(name, student, teacher, mix)
    bounds = divergence_bounds(name, student, teacher, mix, dtype=torch.float64)
    _, found = by_autograd(name, student.float().double(), teacher, mix)
    assert ((found - gradient).abs() > bounds.gradient).any()


# ---- Products --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "lower"),
    [
        (torch.float64, torch.float32),
        (torch.float32, torch.bfloat16),
        (torch.bfloat16, torch.float8_e4m3fn),
    ],
    ids=str,
)
def test_a_product_in_less_precision_is_larger_than_its_bound(dtype: torch.dtype, lower: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(1)
    rows, weight = (torch.randn(9, 256, generator=generator, dtype=torch.float64).to(dtype) for _ in range(2))
    exact = functional.linear(rows.double(), weight.double())
    found = functional.linear(rows.to(lower).double(), weight.to(lower).double())
    assert ((found - exact).abs() > product_bound(rows, weight, None, dtype)).any()


# ---- Whole losses ----------------------------------------------------------------------------------------


UNGATED = DualSpace(**DualSpace.presets["dskd_ungated"])


def beyond(dtype: torch.dtype, options: DualSpace = UNGATED) -> dict[str, float]:
    """How many times of what is allowed a fused loss and its gradients are off, of models in this dtype."""
    transforms = Transforms(bias=True, scale=0.7, softcap=3.0)
    sizes: dict[str, Any] = {"labels": 64, "pairs": 50, "sizes": (120, 101), "widths": (48, 32)}
    case = random_leaves(13, transforms=(transforms, transforms), **sizes)
    of_right = objective_of(case, UNGATED, noise=0.02)
    say_clearly(case, of_right.state_dict()["built.0.teacher_to_student"])
    low = case.cast(dtype)
    exact = low.cast(torch.float64)

    def computed(leaves: Leaves, objective: Objective, *, fused: bool) -> dict[str, Tensor]:
        objective.load_state_dict(of_right.state_dict())
        objective.fused = fused
        return all_of(objective(leaves.batch()), leaves.trained)

    of_right.float().double()
    expected = computed(exact, of_right, fused=False)
    narrow, other = (objective_of(case, one, dtype=torch.float32) for one in (UNGATED, options))
    allowed = losses_by_rounding(lambda: computed(low, narrow, fused=False), expected)
    found = computed(low, other, fused=True)
    return {
        name: float((found[name].double() - one).norm()) / allowed[name]
        for name, one in expected.items()
        if one.any()
    }


def test_without_a_fault_a_loss_is_within_its_bound() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        assert max(beyond(dtype).values()) < 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_wrong_temperature_in_a_loss_is_beyond_it(dtype: torch.dtype) -> None:
    found = beyond(dtype, replace(UNGATED, temperature=1.03))
    assert found["loss"] > 1
    assert found["student_hidden"] > 1


def test_logits_in_bfloat16_in_a_loss_in_float32_is_beyond_it(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = ReadHead.logits

    def rounded(read: ReadHead, hidden: Tensor) -> Tensor:
        made = plain(read, hidden)
        return made.copy_(through_bfloat16(made))

    monkeypatch.setattr(ReadHead, "logits", rounded)
    assert min(beyond(torch.float32).values()) > 1


def test_gradients_added_up_in_bfloat16_in_a_loss_in_float32_are_beyond_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def accumulator(parameter: Tensor) -> Tensor | None:
        return torch.zeros_like(parameter, dtype=torch.bfloat16) if parameter.requires_grad else None

    monkeypatch.setattr("dskd.nn.linear._accumulator", accumulator)
    found = beyond(torch.float32)
    assert found["student_weight"] > 1
    assert found["student_bias"] > 1
