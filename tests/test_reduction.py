"""From sums to a loss: what a term is divided by, and who finds the loss."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._pytree import tree_flatten

from dskd.nn import Batch, CrossEntropy, Head, LossParts, Objective, Reduction, States


def test_a_term_is_divided_by_the_number_of_its_name() -> None:
    step = Reduction({"labels": 4, "pairs": 2, "big/pairs": 3})
    assert [step.of(name, 1) for name in ("labels", "pairs", "big/pairs")] == [4, 2, 3]


def test_nothing_is_divided_by_zero() -> None:
    assert Reduction({"labels": 0}).of("labels", 0) == 1


@pytest.mark.parametrize(
    "counts", [{}, {"labels": 4}, {"labels": 4, "pairs": 0}, {"labels": 4, "pairs": 1}], ids=str
)
def test_a_step_that_has_not_counted_what_its_micro_batch_has_is_refused(counts: dict[str, int]) -> None:
    message = (
        rf"^the step has {counts.get('pairs')} pairs, and the micro-batch has 2: give "
        r"Reduction\(counts=\{'pairs': \.\.\.\}\) of the whole step, or reduction='mean'$"
    )
    with pytest.raises(ValueError, match=message):
        Reduction(counts).of("pairs", 2)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"counts": {"labels": 3, "pairs": -1}}, r"^counts \{'pairs': -1\}; they are 0 or more$"),
        ({"counts": {}, "micro_batches": 0}, r"^micro_batches=0; a step has at least 1$"),
    ],
    ids=str,
)
def test_numbers_out_of_range_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Reduction(**given)


def test_the_loss_is_found_by_who_looks_for_tensors_in_what_a_module_returns() -> None:
    """As FSDP2 does; PyTorch 2.6 does not look into dataclasses."""
    head = Head(torch.ones(2, 3, requires_grad=True))
    batch = Batch(States(torch.ones(4, 3), torch.zeros(4, dtype=torch.int64), head))
    found = Objective([CrossEntropy()], head)(batch)
    assert isinstance(found, LossParts)
    assert any(one is found.loss for one in tree_flatten(found)[0])
