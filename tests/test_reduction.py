"""From sums to a loss: the formula, and that splitting a step into micro-batches changes nothing."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import pytest
import torch
from torch.utils._pytree import tree_flatten

from dskd.nn import LossParts, Reduction, TermSums, weighted
from rounding import ON_PAPER

if TYPE_CHECKING:
    from torch import Tensor


def scalar(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64, requires_grad=True)


def by_reduction(sums: dict[str, Tensor], reduction: Reduction) -> LossParts:
    """The cross-entropy by its share, every other term by that of distillation."""
    weights = dict.fromkeys(sums, reduction.distillation) | {"cross_entropy": reduction.cross_entropy}
    return weighted(TermSums(sums), weights)


@pytest.mark.parametrize(
    ("alpha", "expected"),
    # cross-entropy 12 / 4 = 3, terms (5 + 7 + 8) / 2 = 10
    [(0.5, 6.5), (0.0, 3.0), (1.0, 10.0), (0.25, 4.75)],
)
def test_the_loss_is_its_formula(alpha: float, expected: float) -> None:
    sums = {"cross_entropy": scalar(12), "t2s_ce": scalar(5), "t2s_kd": scalar(7), "s2t_kd": scalar(8)}
    found = by_reduction(sums, Reduction(labels=4, pairs=2, alpha=alpha))
    assert found.loss.shape == ()
    assert found.loss.item() == pytest.approx(expected, rel=ON_PAPER)


def test_the_share_of_distillation_is_a_half_unless_told_otherwise() -> None:
    reduction = Reduction(labels=4, pairs=2)
    assert (reduction.cross_entropy, reduction.distillation) == (0.5 / 4, 0.5 / 2)


def test_nothing_is_divided_by_zero() -> None:
    reduction = Reduction(labels=0, pairs=0, alpha=0.25)
    assert (reduction.cross_entropy, reduction.distillation) == (0.75, 0.25)


def test_the_gradient_is_the_weight_of_the_term() -> None:
    leaves = {"cross_entropy": scalar(12), "a": scalar(5), "b": scalar(7)}
    found = by_reduction(leaves, Reduction(labels=4, pairs=5, alpha=0.2))
    gradients = torch.autograd.grad(found.loss, list(leaves.values()))
    assert [item.item() for item in gradients] == pytest.approx([0.8 / 4, 0.2 / 5, 0.2 / 5], rel=ON_PAPER)


def test_the_sums_are_kept_as_they_were_without_gradients_and_the_counts_too() -> None:
    counts = {"gated": torch.tensor(3)}
    terms = TermSums({"cross_entropy": scalar(12), "a": scalar(5)}, counts)
    found = weighted(terms, {"cross_entropy": 0.5, "a": 2.0, "b": 7.0})
    assert found.loss.item() == 16
    assert {name: value.item() for name, value in found.sums.items()} == {"cross_entropy": 12, "a": 5}
    assert not any(value.requires_grad for value in found.sums.values())
    assert found.counts == counts


def test_the_loss_is_found_by_who_looks_for_tensors_in_what_a_module_returns() -> None:
    """As FSDP2 does; PyTorch 2.6 does not look into dataclasses."""
    found = by_reduction({"cross_entropy": scalar(12)}, Reduction(labels=4, pairs=0))
    assert any(one is found.loss for one in tree_flatten(found)[0])


def test_without_other_terms_there_is_the_share_of_cross_entropy() -> None:
    found = by_reduction({"cross_entropy": scalar(12)}, Reduction(labels=4, pairs=0, alpha=0.25))
    assert found.loss.item() == pytest.approx(2.25)


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(("labels", "pairs"), [(0, 0), (3, 0)])
def test_nothing_to_sum_is_a_finite_zero_connected_to_everything(
    labels: int, pairs: int, alpha: float
) -> None:
    student, projector = torch.ones(3, requires_grad=True), torch.ones(2, requires_grad=True)
    sums = {
        "cross_entropy": student[:0].sum(),
        "t2s_ce": projector[:0].sum(),
        "t2s_kd": student[:0].sum(),
    }
    loss = by_reduction(sums, Reduction(labels, pairs, alpha)).loss
    gradients = torch.autograd.grad(loss, [student, projector])
    assert loss.item() == 0
    assert [item.tolist() for item in gradients] == [[0.0] * 3, [0.0] * 2]


# The rows of one optimizer step, cut at these places; two have parts with nothing in them.
CUTS = {
    "halves": [0, 6, 12],
    "singles": list(range(13)),
    "uneven": [0, 1, 4, 12],
    "an empty part": [0, 5, 5, 12],
    "empty at both ends": [0, 0, 12, 12],
}


def sums_of(weight: Tensor, inputs: Tensor, rows: slice) -> dict[str, Tensor]:
    """A cross-entropy over all rows and two terms over every third, as functions of a weight."""
    log_probs = (inputs[rows] @ weight).log_softmax(-1)
    paired = log_probs[torch.arange(len(inputs))[rows] % 3 == 0]
    kd, ce = (paired.exp() * paired).sum(), -paired[:, 1].sum()
    return {"cross_entropy": -log_probs[:, 0].sum(), "kd": kd, "ce": ce}


@pytest.mark.parametrize("cuts", CUTS.values(), ids=CUTS)
def test_micro_batches_add_up_to_the_loss_and_gradient_of_the_step(cuts: list[int]) -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(12, 3, generator=generator, dtype=torch.float64)
    weight = torch.randn(3, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    reduction = Reduction(labels=12, pairs=4, alpha=0.3)

    def of(rows: slice) -> tuple[float, Tensor]:
        loss = by_reduction(sums_of(weight, inputs, rows), reduction).loss
        (gradient,) = torch.autograd.grad(loss, weight)
        return loss.item(), gradient

    loss, gradient = of(slice(0, 12))
    parts = [of(slice(start, stop)) for start, stop in pairwise(cuts)]
    assert sum(part for part, _ in parts) == pytest.approx(loss, rel=1e-12)
    together = torch.stack([part for _, part in parts]).sum(0)
    torch.testing.assert_close(together, gradient, rtol=1e-12, atol=1e-14)
