"""Ids that no tokenizer can emit: no probability, no gradient, and no large number that passes as a loss."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pytest
import torch

from dskd.nn import DIVERGENCES, Head, Over, Read, Term, divergence, teacher_statistics
from dskd.nn.fused import Part, fused, whole
from dskd.nn.losses.known_teacher import known_kl
from rounding import ON_PAPER

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from dskd.nn import View
    from dskd.nn.divergences import Divergence
    from dskd.nn.reduction import LossParts

ROWS, SIZE, WIDTH = 7, 12, 3
UNREACHABLE = torch.arange(SIZE) % 4 == 1
FORMS = [whole, fused, lambda parts: fused(parts, chunk_memory=1)]

each_form = pytest.mark.parametrize("form", FORMS, ids=["whole", "fused", "in chunks"])


def head_of(seed: int, unreachable: Tensor | None = UNREACHABLE) -> Head:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(SIZE, WIDTH, generator=generator, dtype=torch.float64)
    return Head(weight, unreachable=unreachable)


def states_of(seed: int) -> Tensor:
    return torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def run(
    form: Callable[[list[Part]], LossParts], head: Head, losses: Callable[[slice, View], Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """The loss, and its gradient by the states and by the head."""
    states, weight = states_of(1).requires_grad_(), head.weight.detach().clone().requires_grad_()
    over = Over("labels", ROWS)
    read = Read(
        states, Head(weight, unreachable=head.unreachable), over, torch.zeros(ROWS, dtype=torch.int64)
    )
    loss = form([Part(Term("term", over, [read], losses), "term", "labels", 1.0)]).loss
    of_states, of_weight = torch.autograd.grad(loss, [states, weight])
    return loss.detach(), of_states, of_weight


@each_form
def test_a_label_without_probability_is_an_infinite_loss_and_has_no_slope(
    form: Callable[[list[Part]], LossParts],
) -> None:
    ids = torch.tensor([0, 1, 2, 3, 4, 5, 6])[:, None]
    head = head_of(2)
    possible = ~UNREACHABLE[ids[:, 0]]

    def items(rows: slice, view: View) -> Tensor:
        return -view.log_probs_at(ids[rows])[:, 0]

    found, *gradients = run(form, head, items)
    assert found == math.inf
    expected = run(form, head, lambda rows, view: torch.where(possible[rows], items(rows, view), 0))
    assert expected[0].isfinite()
    for gradient, one in zip(gradients, expected[1:], strict=True):
        assert gradient.isfinite().all()
        torch.testing.assert_close(gradient, one, rtol=ON_PAPER, atol=ON_PAPER)


@each_form
@pytest.mark.parametrize("name", DIVERGENCES)
def test_a_divergence_of_heads_that_reach_the_same_ids_is_the_one_of_these(
    form: Callable[[list[Part]], LossParts], name: Divergence
) -> None:
    head, teacher = head_of(2), head_of(3)
    target = teacher.reachable(teacher.logits(states_of(4)))
    found = run(form, head, lambda rows, view: view.divergence(name, target[rows]))
    part = Head(head.weight[~UNREACHABLE])
    rest = target[:, ~UNREACHABLE]
    expected = run(whole, part, lambda rows, view: view.divergence(name, rest[rows]))
    for one, other in (
        (found[0], expected[0]),
        (found[1], expected[1]),
        (found[2][~UNREACHABLE], expected[2]),
    ):
        torch.testing.assert_close(one, other, rtol=ON_PAPER, atol=ON_PAPER)
    assert found[2][UNREACHABLE].eq(0).all()


@each_form
@pytest.mark.parametrize(("name", "of_teacher"), [("kl", None), ("reverse_kl", UNREACHABLE)])
def test_what_one_head_says_and_the_other_cannot_is_infinitely_far(
    form: Callable[[list[Part]], LossParts], name: Divergence, of_teacher: Tensor | None
) -> None:
    of_student = UNREACHABLE if of_teacher is None else None
    teacher = head_of(3, of_teacher)
    target = teacher.reachable(teacher.logits(states_of(4)))
    found, *gradients = run(
        form, head_of(2, of_student), lambda rows, view: view.divergence(name, target[rows])
    )
    assert found == math.inf
    assert all(gradient.eq(0).all() for gradient in gradients)


@pytest.mark.parametrize("unreachable", [UNREACHABLE, torch.arange(SIZE) < SIZE // 2], ids=["some", "a half"])
def test_statistics_of_a_teacher_leave_them_out(unreachable: Tensor) -> None:
    """The divergence from what is known of it, of states that its head reads, three tokens at a time."""
    teacher = head_of(3, unreachable)
    states, hidden = states_of(1).requires_grad_(), states_of(4)
    read = Read(states, teacher.detached(), Over("pairs", ROWS))
    statistics = teacher_statistics(teacher, hidden)
    target = teacher.reachable(teacher.logits(hidden))
    expected = divergence("kl", teacher.reachable(teacher.logits(states)), target)
    (slopes,) = torch.autograd.grad(expected.sum(), states)
    for chunk_memory in (3 * 8, 1 << 20):
        found = known_kl(read, statistics, chunk_memory=chunk_memory)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
        (gradient,) = torch.autograd.grad(found.sum(), states)
        torch.testing.assert_close(gradient, slopes, rtol=1e-12, atol=1e-12)
