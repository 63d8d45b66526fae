"""What is kept of a teacher, against its distribution and numbers worked out by hand."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pytest
import torch

from dskd.nn import Head, TeacherStatistics, kl, teacher_statistics
from dskd.nn.teacher_statistics import probability_sums
from leaves import TRANSFORMS, Transforms, random_leaves
from rounding import ON_PAPER, assert_within, probabilities_bound, product_bound, unit

if TYPE_CHECKING:
    from torch import Tensor

LN2, LN3 = math.log(2), math.log(3)
LINEAR = {name: teacher for name, (teacher, _) in TRANSFORMS.items() if teacher.softcap is None}
ALL = {"bias, scale and unreachable ids": Transforms(bias=True, scale=2.0, unreachable=(1, 5)), **LINEAR}


def of_teacher(transforms: Transforms, device: str = "cpu", pairs: int = 40) -> tuple[Head, Tensor]:
    leaves = random_leaves(3, labels=pairs, pairs=pairs, transforms=(transforms, Transforms()), device=device)
    return leaves.head("teacher"), leaves.by_name["teacher_hidden"]


@pytest.mark.parametrize("temperature", [1.0, 1.7])
@pytest.mark.parametrize("transforms", ALL.values(), ids=ALL)
def test_they_are_sums_over_the_distribution(transforms: Transforms, temperature: float, device: str) -> None:
    head, hidden = of_teacher(transforms, device)
    found = teacher_statistics(head, hidden, temperature=temperature, chunk_memory=0)
    logits = head.reachable(head.logits(hidden)).detach()
    log_p = (logits / temperature).log_softmax(-1)
    p = log_p.exp()
    bias = torch.zeros_like(head.weight[:, 0]) if head.bias is None else head.bias
    assert torch.equal(found.predicted, logits.argmax(-1))
    torch.testing.assert_close(found.negative_entropy, torch.xlogy(p, p).sum(-1), rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(found.mean_row, p @ head.weight.detach(), rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(found.mean_bias, p @ bias.detach(), rtol=1e-12, atol=1e-13)
    assert found.temperature == temperature


@pytest.mark.parametrize("temperature", [1.0, 1.7])
@pytest.mark.parametrize("transforms", ALL.values(), ids=ALL)
def test_the_divergence_that_they_are_for_is_the_formula_of_the_module(
    transforms: Transforms, temperature: float
) -> None:
    """`sum p log p - sum p z / tau + logsumexp(z / tau)`, `sum p z = scale (x . sum p W + sum p b)`."""
    head, hidden = of_teacher(transforms)
    found = teacher_statistics(head, hidden, temperature=temperature)
    states = hidden.detach().flip(0)
    z, log_p = (
        (head.reachable(head.logits(one)).detach() / temperature).log_softmax(-1) for one in (states, hidden)
    )
    total = (head.reachable(head.logits(states)).detach() / temperature).logsumexp(-1)
    said = head.scale / temperature * ((states * found.mean_row).sum(-1) + found.mean_bias)
    torch.testing.assert_close(found.negative_entropy - said + total, kl(z, log_p), rtol=1e-11, atol=1e-12)


def test_one_state_worked_out_by_hand() -> None:
    """Rows 0, 1, 1 with bias 0, 0, ln 3 and the state ln 2: logits (0, ln 2, ln 6), p = (1, 2, 6) / 9.

    The mean row is 8/9, the mean bias 6/9 ln 3, and sum p log p = 2/9 ln 2 + 6/9 ln 6 - ln 9.
    At temperature 2 with the state 2 ln 2 and bias 2 ln 3 the distribution is the same.
    """
    weight = torch.tensor([[0.0], [1.0], [1.0]], dtype=torch.float64)
    bias = torch.tensor([0.0, 0.0, LN3], dtype=torch.float64)
    state = torch.tensor([[LN2]], dtype=torch.float64)
    for factor in (1.0, 2.0):
        found = teacher_statistics(Head(weight, factor * bias), factor * state, temperature=factor)
        assert found.predicted.tolist() == [2]
        assert found.mean_row.item() == pytest.approx(8 / 9, rel=ON_PAPER)
        assert found.mean_bias.item() == pytest.approx(factor * 6 / 9 * LN3, rel=ON_PAPER)
        entropy = -2 / 9 * LN2 - 6 / 9 * math.log(6) + math.log(9)
        assert found.negative_entropy.item() == pytest.approx(-entropy, rel=ON_PAPER)


def test_of_ids_that_tie_the_lowest_is_predicted() -> None:
    found = teacher_statistics(Head(torch.tensor([[0.0], [1.0], [1.0]])), torch.tensor([[2.0], [-2.0]]))
    assert found.predicted.tolist() == [1, 0]


def test_none_of_it_wants_a_gradient_and_a_part_is_that_of_its_rows() -> None:
    head, hidden = of_teacher(ALL["bias and scale"])
    found = teacher_statistics(head, hidden)
    rows = torch.tensor([3, 0, 7])
    for part, those in ((found[2:5], slice(2, 5)), (found[rows], rows)):
        assert part.temperature == found.temperature
        for name in ("predicted", "negative_entropy", "mean_row", "mean_bias"):
            assert not getattr(found, name).requires_grad
            assert torch.equal(getattr(part, name), getattr(found, name)[those])


def test_without_pairs_they_are_empty() -> None:
    head, hidden = of_teacher(Transforms(), pairs=0)
    found = teacher_statistics(head, hidden)
    assert isinstance(found, TeacherStatistics)
    assert found.predicted.shape == found.negative_entropy.shape == found.mean_bias.shape == (0,)
    assert found.mean_row.shape == (0, 4)


def test_a_head_that_caps_its_logits_has_none() -> None:
    head, hidden = of_teacher(Transforms(softcap=1.5))
    message = r"caps its logits \(softcap=1\.5\) has no such statistics: give hidden states only"
    with pytest.raises(ValueError, match=message):
        teacher_statistics(head, hidden)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_they_are_float32_or_wider_and_as_right_as_the_head(dtype: torch.dtype) -> None:
    """Where logits are off by e at most, p is by `2 e p`, and so is what is summed over it.

    A mean of rows or of the bias is a product besides.
    """
    made, states = of_teacher(ALL["bias and scale"])
    assert made.bias is not None
    weight, bias = made.weight.detach().to(dtype), made.bias.detach().to(dtype)
    low, head = (Head(weight.to(one), bias.to(one), scale=0.5) for one in (dtype, torch.float64))
    hidden = states.detach().to(dtype)
    found, exact = teacher_statistics(low, hidden), teacher_statistics(head, hidden.double())
    logits = head.logits(hidden.double())
    p, log_p = logits.softmax(-1), logits.log_softmax(-1)
    products = product_bound(hidden, weight, bias, dtype)
    off = 2 * (products.amax(-1) * head.scale + probabilities_bound(logits, dtype=torch.float32).sum(-1))
    rounded = (off + unit(dtype))[:, None]  # p is, as it is multiplied
    columns = torch.cat([weight, bias[:, None]], dim=1)
    means = rounded * (p @ columns.double().abs()) + product_bound(p, columns.T, None, dtype)
    bounds = {
        "negative_entropy": off * (1 + (p * log_p.abs()).sum(-1)),
        "mean_row": means[:, :-1],
        "mean_bias": means[:, -1],
    }
    for name, bound in bounds.items():
        assert getattr(found, name).dtype == torch.float32
        assert_within(getattr(found, name), getattr(exact, name), bound)


# ---- Sums of probabilities -------------------------------------------------------------------------------


@pytest.mark.parametrize("transforms", TRANSFORMS.values(), ids=TRANSFORMS)
@pytest.mark.parametrize("pairs", [0, 1, 40])
def test_probabilities_are_summed_over_positions(transforms: Any, pairs: int, device: str) -> None:
    head, hidden = of_teacher(transforms[0], device, pairs)
    found = probability_sums(head, hidden, chunk_memory=0)
    expected = head.reachable(head.logits(hidden)).softmax(-1).sum(0).detach()
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-13)
    assert not found.requires_grad
    assert found.sum().item() == pytest.approx(pairs, abs=1e-9)
