"""From sums to a loss: the formula, and that splitting a step into micro-batches changes nothing."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import pytest
import torch

from dskd.nn import StepCounts, distillation_loss

if TYPE_CHECKING:
    from torch import Tensor


def scalar(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize(
    ("alpha", "expected"),
    # cross-entropy 12 / 4 = 3, terms (5 + 7 + 8) / 2 = 10
    [(0.5, 6.5), (0.0, 3.0), (1.0, 10.0), (0.25, 4.75)],
)
def test_the_loss_is_its_formula(alpha: float, expected: float) -> None:
    terms = {"t2s_ce": scalar(5), "t2s_kd": scalar(7), "s2t_kd": scalar(8)}
    loss = distillation_loss(scalar(12), terms, StepCounts(labels=4, pairs=2), alpha=alpha)
    assert loss.shape == ()
    assert loss.item() == pytest.approx(expected, rel=1e-15)


def test_the_gradient_is_the_share_over_the_count() -> None:
    cross_entropy, one, two = scalar(12), scalar(5), scalar(7)
    loss = distillation_loss(cross_entropy, {"a": one, "b": two}, StepCounts(labels=4, pairs=5), alpha=0.2)
    gradients = torch.autograd.grad(loss, [cross_entropy, one, two])
    assert [item.item() for item in gradients] == pytest.approx([0.8 / 4, 0.2 / 5, 0.2 / 5], rel=1e-15)


def test_without_terms_there_is_the_share_of_cross_entropy() -> None:
    assert distillation_loss(scalar(12), {}, StepCounts(4, 0), alpha=0.25).item() == pytest.approx(2.25)


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("counts", [StepCounts(0, 0), StepCounts(3, 0)], ids=str)
def test_nothing_to_sum_is_a_finite_zero_connected_to_everything(counts: StepCounts, alpha: float) -> None:
    student, projector = torch.ones(3, requires_grad=True), torch.ones(2, requires_grad=True)
    terms = {"t2s_ce": projector[:0].sum(), "t2s_kd": student[:0].sum()}
    loss = distillation_loss(student[:0].sum(), terms, counts, alpha=alpha)
    gradients = torch.autograd.grad(loss, [student, projector])
    assert loss.item() == 0
    assert [item.tolist() for item in gradients] == [[0.0] * 3, [0.0] * 2]


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_a_share_of_nothing_keeps_its_gradient(alpha: float) -> None:
    cross_entropy, term = scalar(1), scalar(2)
    loss = distillation_loss(cross_entropy, {"term": term}, StepCounts(1, 1), alpha=alpha)
    gradients = torch.autograd.grad(loss, [cross_entropy, term])
    assert [item.item() for item in gradients] == [1 - alpha, alpha]


# The rows of one optimizer step, cut at these places; two have parts with nothing in them.
CUTS = {
    "halves": [0, 6, 12],
    "singles": list(range(13)),
    "uneven": [0, 1, 4, 12],
    "an empty part": [0, 5, 5, 12],
    "empty at both ends": [0, 0, 12, 12],
}


def sums(weight: Tensor, inputs: Tensor, rows: slice) -> tuple[Tensor, dict[str, Tensor]]:
    """A cross-entropy over all rows and two terms over every third, as functions of a weight."""
    log_probs = (inputs[rows] @ weight).log_softmax(-1)
    paired = log_probs[torch.arange(len(inputs))[rows] % 3 == 0]
    return -log_probs[:, 0].sum(), {"kd": (paired.exp() * paired).sum(), "ce": -paired[:, 1].sum()}


@pytest.mark.parametrize("cuts", CUTS.values(), ids=CUTS)
def test_micro_batches_add_up_to_the_loss_and_gradient_of_the_step(cuts: list[int]) -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(12, 3, generator=generator, dtype=torch.float64)
    weight = torch.randn(3, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    counts = StepCounts(labels=12, pairs=4)

    def of(rows: slice) -> tuple[float, Tensor]:
        loss = distillation_loss(*sums(weight, inputs, rows), counts, alpha=0.3)
        (gradient,) = torch.autograd.grad(loss, weight)
        return loss.item(), gradient

    loss, gradient = of(slice(0, 12))
    parts = [of(slice(start, stop)) for start, stop in pairwise(cuts)]
    assert sum(part for part, _ in parts) == pytest.approx(loss, rel=1e-12)
    together = torch.stack([part for _, part in parts]).sum(0)
    torch.testing.assert_close(together, gradient, rtol=1e-12, atol=1e-14)
