"""The cross-entropy that keeps no logits, against that of PyTorch and numbers worked out by hand."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch.nn import functional

from dskd.nn import Batch, CrossEntropy, Head, Objective, Reduction, States
from leaves import TRANSFORMS, Leaves, backward, gradients, objective_of, random_leaves
from rounding import ON_PAPER

if TYPE_CHECKING:
    from torch import Tensor

LN3 = math.log(3)


def by_pytorch(case: Leaves, labels: Tensor) -> Tensor:
    logits = case.head("student").logits(case.by_name["student_hidden"])
    return functional.cross_entropy(logits, labels, reduction="sum")


@pytest.mark.parametrize("transforms", TRANSFORMS.values(), ids=TRANSFORMS)
@pytest.mark.parametrize("labels", [0, 1, 16, 17, 50])
@pytest.mark.parametrize("fused", [True, False])
def test_value_and_gradients_are_those_of_pytorch(
    fused: bool, labels: int, transforms: Any, device: str
) -> None:
    """Over all ids, those that no tokenizer can emit too: what a model is trained with."""
    case = random_leaves(labels=labels, pairs=0, transforms=transforms, device=device)
    found = objective_of(case, CrossEntropy(), fused=fused)(case.batch(), Reduction({"labels": 70}))
    expected = by_pytorch(case, case.labels)
    torch.testing.assert_close(found.loss, expected / 70, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(found.sums["cross_entropy"], expected.detach(), rtol=1e-12, atol=1e-14)
    mine, theirs = gradients(found.loss, case.trained), gradients(expected / 70, case.trained)
    torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("fused", [True, False])
def test_two_labels_worked_out_by_hand(fused: bool) -> None:
    """Logits (0, ln 3) and (0, 0): softmaxes (1/4, 3/4) and (1/2, 1/2); labels 1 and 0.

    The sum is ln(4/3) + ln 2 = ln(8/3), over 4 labels a quarter of it. The gradient of the logits is softmax
    minus one-hot, so (1/4, -1/4) and (-1/2, 1/2); of the states, times the second row, -1/4 and 1/2; of that
    row -1/4 ln 3 + 1/2 * 0; each a quarter.
    """
    hidden = torch.tensor([[LN3], [0.0]], dtype=torch.float64, requires_grad=True)
    weight = torch.tensor([[0.0], [1.0]], dtype=torch.float64, requires_grad=True)
    batch = Batch(States(hidden, torch.tensor([1, 0]), Head(weight)))
    objective = Objective([CrossEntropy()], Head(weight), fused=fused)
    found = objective(batch, Reduction({"labels": 4}))
    assert found.loss.item() == pytest.approx(math.log(8 / 3) / 4, rel=ON_PAPER)
    assert found.sums["cross_entropy"].item() == pytest.approx(math.log(8 / 3), rel=ON_PAPER)
    backward(found.loss)
    assert hidden.grad is not None
    assert weight.grad is not None
    assert hidden.grad.flatten().tolist() == pytest.approx([-1 / 16, 1 / 8], rel=ON_PAPER)
    assert weight.grad.flatten().tolist() == pytest.approx([LN3 / 16, -LN3 / 16], rel=ON_PAPER)


def test_it_needs_no_teacher_and_trains_nothing_beside_the_student() -> None:
    assert not CrossEntropy().needs.teacher
    assert not list(Objective([CrossEntropy()], Head(torch.ones(2, 1))).parameters())


def test_the_gradient_is_the_slope_of_the_value() -> None:
    """Central differences, which know nothing of either."""
    case = random_leaves(labels=3, pairs=0, transforms=TRANSFORMS["all of these"])
    objective = objective_of(case, CrossEntropy())
    found, step = gradients(objective(case.batch()).loss, case.trained), 1e-5
    for name, leaf in case.trained.items():
        for index in range(leaf.numel()):
            slope = 0.0
            for sign in (1, -1):
                with torch.no_grad():
                    leaf.view(-1)[index] += sign * step
                    slope += sign * objective(case.batch()).loss.item() / (2 * step)
                    leaf.view(-1)[index] -= sign * step
            assert found[name].view(-1)[index].item() == pytest.approx(slope, rel=1e-6, abs=1e-9), name


def test_in_float16_a_scaled_loss_loses_no_more_than_that_of_pytorch(device: str) -> None:
    """Of 4,000 labels over 2,000 ids a gradient of the logits is mostly below 1e-7, where float16 ends.

    What 64,000 numbers are off together is no draw of a kernel: rounded twice as often, it is sqrt(2) of it.
    """
    case = random_leaves(labels=4000, pairs=0, sizes=(2, 2000), widths=(1, 16), device=device)
    case, scale = case.cast(torch.float32), 2.0**16
    exact = gradients(by_pytorch(case, case.labels) / 4000, case.trained)["student_hidden"]
    objective, lost = objective_of(case, CrossEntropy(), dtype=torch.float32), []
    for mine in (True, False):
        with torch.autocast(device, torch.float16):
            loss = objective(case.batch()).loss if mine else by_pytorch(case, case.labels) / 4000
        (found,) = torch.autograd.grad(scale * loss, case.by_name["student_hidden"])
        lost.append(float((found / scale - exact).norm()))
    assert lost[0] <= 1.5 * lost[1]
