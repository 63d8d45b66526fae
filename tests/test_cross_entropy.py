"""The cross-entropy that keeps no logits, against that of PyTorch and numbers worked out by hand."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch.nn import functional

from dskd.nn import Head, Reduction, fused_cross_entropy
from dskd.nn.linear import chunk_memory_of, computing
from dskd.nn.losses.cross_entropy import StudentRows, cross_entropy_and_gradient
from leaves import TRANSFORMS, backward, gradients, random_leaves
from rounding import ON_PAPER, assert_loses_no_more, losses_by_rounding

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from leaves import Leaves

LN3 = math.log(3)


def definition(hidden: Tensor, head: Head, labels: Tensor, *, reduction: Reduction) -> Tensor:
    total = functional.cross_entropy(head.logits(hidden), labels, reduction="sum")
    return (1 - reduction.alpha) * total / max(reduction.labels, 1)


@pytest.mark.parametrize("transforms", TRANSFORMS.values(), ids=TRANSFORMS)
@pytest.mark.parametrize("labels", [0, 1, 16, 17, 50])
@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_value_and_gradients_are_those_of_pytorch(
    alpha: float, labels: int, transforms: Any, device: str
) -> None:
    made = random_leaves(labels=labels, pairs=0, transforms=transforms, device=device)
    arguments = made.by_name["student_hidden"], made.head("student"), made.labels
    reduction = Reduction(labels=31, pairs=7, alpha=alpha)
    found = fused_cross_entropy(*arguments, reduction=reduction, chunk_memory=0)
    expected = definition(*arguments, reduction=reduction)
    torch.testing.assert_close(found.loss, expected, rtol=1e-12, atol=1e-14)
    # the sum is not weighted
    total = functional.cross_entropy(arguments[1].logits(arguments[0]), arguments[2], reduction="sum")
    torch.testing.assert_close(found.sums["cross_entropy"], total.detach(), rtol=1e-12, atol=1e-14)
    trained = {name: leaf for name, leaf in made.trained.items() if name.startswith("student")}
    mine, theirs = gradients(found.loss, trained), gradients(expected, trained)
    torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-13)


def test_two_labels_worked_out_by_hand() -> None:
    """Logits (0, ln 3) and (0, 0): softmaxes (1/4, 3/4) and (1/2, 1/2); labels 1 and 0.

    The sum is ln(4/3) + ln 2 = ln(8/3), over 4 labels with a share of 1/2 an eighth of it. The gradient of
    the logits is softmax minus one-hot, so (1/4, -1/4) and (-1/2, 1/2); of the states, times the second row,
    -1/4 and 1/2; of that row -1/4 ln 3 + 1/2 * 0; each an eighth.
    """
    hidden = torch.tensor([[LN3], [0.0]], dtype=torch.float64, requires_grad=True)
    weight = torch.tensor([[0.0], [1.0]], dtype=torch.float64, requires_grad=True)
    found = fused_cross_entropy(hidden, Head(weight), torch.tensor([1, 0]), reduction=Reduction(4, 9, 0.5))
    assert found.loss.item() == pytest.approx(math.log(8 / 3) / 8, rel=ON_PAPER)
    assert found.sums["cross_entropy"].item() == pytest.approx(math.log(8 / 3), rel=ON_PAPER)
    backward(found.loss)
    assert hidden.grad is not None
    assert weight.grad is not None
    assert hidden.grad.flatten().tolist() == pytest.approx([-1 / 32, 1 / 16])
    assert weight.grad.flatten().tolist() == pytest.approx([LN3 / 32, -LN3 / 32])


def test_without_labels_it_is_a_zero_connected_to_the_student() -> None:
    made = random_leaves(labels=0, pairs=0, transforms=TRANSFORMS["bias and scale"])
    found = fused_cross_entropy(
        made.by_name["student_hidden"], made.head("student"), made.labels, reduction=Reduction(0, 0)
    )
    assert found.loss.item() == 0
    leaves = [made.by_name[name] for name in ("student_hidden", "student_weight", "student_bias")]
    for gradient, leaf in zip(torch.autograd.grad(found.loss, leaves), leaves, strict=True):
        assert torch.equal(gradient, torch.zeros_like(leaf))


def test_one_tensor_that_is_head_and_embedding_gets_both_gradients() -> None:
    made = random_leaves(labels=20, pairs=0, widths=(4, 3))
    weight, ids = made.by_name["student_weight"], torch.arange(20) % 5
    reduction = Reduction(20, 0, 0.0)

    def hidden() -> Tensor:
        return torch.tanh(weight[ids] * 2)

    found = fused_cross_entropy(hidden(), Head(weight), made.labels, reduction=reduction).loss
    expected = definition(hidden(), Head(weight), made.labels, reduction=reduction)
    mine, theirs = (torch.autograd.grad(value, weight)[0] for value in (found, expected))
    torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("weight", [1.0, 0.25])
def test_the_gradient_is_that_of_pytorch_and_labels_below_zero_take_no_part(weight: float) -> None:
    logits = random_leaves(labels=6, widths=(4, 5), pairs=0).by_name["student_hidden"]
    labels = torch.tensor([0, -1, 3, 4, -1, 1])
    items = functional.cross_entropy(logits, labels, ignore_index=-1, reduction="none")
    (expected,) = torch.autograd.grad(weight * items.sum(), logits)
    log_probs = logits.detach().log_softmax(-1)
    for out in (torch.full_like(log_probs, torch.nan), log_probs):  # what it is made of, last
        found = cross_entropy_and_gradient(log_probs, labels, weight, out)
        torch.testing.assert_close(found, items.detach(), rtol=1e-13, atol=0)
        torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-15)


def test_the_gradient_is_the_slope_of_the_value() -> None:
    """Central differences, which know nothing of either."""
    made = random_leaves(labels=3, pairs=0, transforms=TRANSFORMS["all of these"])
    leaves = {name: leaf for name, leaf in made.trained.items() if name.startswith("student")}

    def loss() -> Tensor:
        return fused_cross_entropy(
            made.by_name["student_hidden"],
            made.head("student"),
            made.labels,
            reduction=Reduction(3, 0, 0.0),
        ).loss

    found, step = gradients(loss(), leaves), 1e-5
    for name, leaf in leaves.items():
        for index in range(leaf.numel()):
            slope = 0.0
            for sign in (1, -1):
                with torch.no_grad():
                    leaf.view(-1)[index] += sign * step
                    slope += sign * loss().item() / (2 * step)
                    leaf.view(-1)[index] -= sign * step
            assert found[name].view(-1)[index].item() == pytest.approx(slope, rel=1e-6, abs=1e-9), name


@pytest.mark.parametrize("at_once", [1, 10, 1000])
@pytest.mark.parametrize("normalise", [False, True])
def test_what_others_add_to_the_gradient_is_carried_along(
    normalise: bool, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cross-entropy of some positions and, of others, the sum of all logits, each times its row."""
    monkeypatch.setattr("dskd.nn.elementwise._AT_ONCE", at_once)
    made = random_leaves(labels=9, pairs=0, transforms=TRANSFORMS["bias and scale"])
    hidden, head = made.by_name["student_hidden"], made.head("student")
    memory = chunk_memory_of([(head, 3)], budget=0, most=9)
    first, rest = torch.tensor([7, 2, 5]), torch.tensor([0, 1, 3, 4, 6, 8])
    times = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)[:, None]
    seen = head.logits(hidden)[first]

    def add(some: slice, logits: torch.Tensor, gradient: torch.Tensor) -> None:
        expected = seen[some].log_softmax(-1) if normalise else seen[some]
        torch.testing.assert_close(logits, expected.detach())
        logits.fill_(torch.nan)  # nobody looks at them again
        gradient.add_(times[some])

    with computing(memory):
        rows = StudentRows(hidden, head, made.labels, memory, 0.5)
        rows.compare(first, add, normalise=normalise)
        rows.take(rest)
    expected = (
        definition(hidden, head, made.labels, reduction=Reduction(1, 0, 0.5))
        + (times * head.logits(hidden)[first]).sum()
    )
    leaves = {name: leaf for name, leaf in made.trained.items() if name.startswith("student")}
    found = dict(zip(leaves, [made_of for _, made_of in rows.made()], strict=True))
    torch.testing.assert_close(found, gradients(expected, leaves), rtol=1e-11, atol=1e-13)


def test_in_float16_a_scaled_loss_loses_no_more_either(device: str) -> None:
    """Of 4,000 labels over 2,000 ids a gradient of the logits is mostly below 1e-7, where float16 ends.

    What 64,000 numbers are off together is no draw of a kernel: rounded twice as often, it is sqrt(2) of it.
    """
    made = random_leaves(labels=4000, pairs=0, sizes=(2, 2000), widths=(1, 16), device=device)
    made = made.cast(torch.float32)
    reduction, scale = Reduction(4000, 0, 0.0), 2.0**16
    hidden, head = made.by_name["student_hidden"], made.head("student")
    exact = gradients(definition(hidden, head, made.labels, reduction=reduction), made.trained)
    lost = []
    for call in (lambda *given, **more: fused_cross_entropy(*given, **more).loss, definition):
        with torch.autocast(device, torch.float16):
            loss = scale * call(hidden, head, made.labels, reduction=reduction)
        (found,) = torch.autograd.grad(loss, hidden)
        lost.append(float((found / scale - exact["student_hidden"]).norm()))
    assert lost[0] <= 1.5 * lost[1]


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_it_loses_no_more_than_rounding_may(dtype: torch.dtype, autocast: bool, device: str) -> None:
    made = random_leaves(labels=64, pairs=0, sizes=(9, 101), widths=(4, 32), device=device)
    reduction = Reduction(64, 0, 0.0)
    low = made.cast(dtype)

    def of(one: Leaves, call: Callable[..., Tensor]) -> dict[str, Tensor]:
        leaves = {name: one.by_name[name] for name in ("student_hidden", "student_weight")}
        loss = call(leaves["student_hidden"], one.head("student"), one.labels, reduction=reduction)
        return {"loss": loss.detach(), **gradients(loss, leaves)}

    expected = of(low.cast(torch.float64), definition)
    with torch.autocast(device, torch.bfloat16, enabled=autocast):
        mine = of(low, lambda *given, **more: fused_cross_entropy(*given, **more).loss)
        theirs = of(low, definition)
        allowed = losses_by_rounding(lambda: of(low, definition), expected)
    assert [one.dtype for one in mine.values()] == [one.dtype for one in theirs.values()]
    assert_loses_no_more(mine, expected, allowed)
