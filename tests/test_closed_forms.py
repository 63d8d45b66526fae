"""Gradients in closed form and by autograd, of the same logits, come to those of the definition."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
import torch

from dskd.nn import (
    Batch,
    CrossEntropy,
    Head,
    Loss,
    Needs,
    Objective,
    States,
    Teacher,
    TeacherModel,
    Term,
    VocabularyMaps,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor, nn

    from dskd.nn import View

COLUMNS = torch.tensor([5, 0, 3])


def gold(view: View) -> Tensor:
    return -view.gold


def at_ids(view: View) -> Tensor:
    ids = torch.stack([view.labels, (view.labels + 2) % 7], 1)
    return -view.log_probs_at(ids, temperature=2.0).sum(-1)


def over_all(view: View) -> Tensor:
    return view.divergence("kl", torch.arange(7.0, dtype=torch.float64).expand(len(view.labels), -1))


def over_some(view: View) -> Tensor:
    target = torch.arange(3.0, dtype=torch.float64).expand(len(view.labels), -1)
    return view.divergence("js", target, COLUMNS, temperature=0.5)


def by_autograd(view: View) -> Tensor:
    return view.logits.square().mean(-1)


WAYS = (gold, at_ids, over_all, over_some, by_autograd)


@dataclass(frozen=True, kw_only=True)
class Several(Loss):
    """The product of two ways, so that the gradient by each is another number a row."""

    ways: tuple[Callable[[View], Tensor], Callable[[View], Tensor]]

    @property
    def needs(self) -> Needs:
        return Needs(pairs=True)

    def terms(self, student: States, teacher: Teacher | None, built: nn.Module | None) -> Sequence[Term]:  # noqa: ARG002
        assert teacher is not None

        def losses(_: slice, view: View) -> Tensor:
            return self.ways[0](view) * self.ways[1](view)

        return [Term("several", teacher.pairs, [student.read], losses)]


@pytest.mark.parametrize("paired", [range(9), (0, 2, 3, 7)], ids=["every row", "some rows"])
@pytest.mark.parametrize("second", WAYS)
@pytest.mark.parametrize("first", WAYS)
def test_two_ways_to_a_gradient_of_the_same_logits_add_up(
    first: Callable[[View], Tensor], second: Callable[[View], Tensor], paired: Sequence[int]
) -> None:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    hidden, weight = normal(9, 4).requires_grad_(), normal(7, 4).requires_grad_()
    labels = torch.randint(7, (9,), generator=generator)
    model = TeacherModel(Head(normal(7, 5)), VocabularyMaps(to_student=torch.arange(7)))
    teacher = Teacher(model, normal(len(paired), 5), torch.tensor(paired))
    batch = Batch(States(hidden, labels, Head(weight)), {"teacher": teacher})
    losses = [Several(ways=(first, second)), CrossEntropy()]

    def found(*, fused: bool) -> list[Tensor]:
        objective = Objective(losses, Head(weight), model, fused=fused, chunk_memory=1)
        loss = objective(batch).loss
        return [loss.detach(), *torch.autograd.grad(loss, [hidden, weight])]

    torch.testing.assert_close(found(fused=True), found(fused=False))
