"""Distillation on the shared tokens against its definition: one pair and one number at a time, in float64."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pytest
import torch

from dskd.nn import AlignedStates, Head, SharedVocabularyLoss, shared_vocabulary

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from dskd.nn.divergences import Divergence

DIVERGENCES: list[Divergence] = ["kl", "reverse_kl"]
LEAVES = [
    "teacher_hidden",
    "student_hidden",
    "teacher_weight",
    "teacher_bias",
    "student_weight",
    "student_bias",
]
OF_STUDENT = ["student_hidden", "student_weight", "student_bias"]
OVERLAP = [[5, 0], [0, 4], [3, 3], [2, 1]]
"""Of 6 teacher ids and 5 student ids; teacher 1 and 4 and student 2 have no counterpart."""


def random_leaves(seed: int = 0, *, pairs: int = 7) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = [(pairs, 4), (pairs, 3), (6, 4), (6,), (5, 3), (5,)]
    return {
        name: torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()
        for name, shape in zip(LEAVES, shapes, strict=True)
    }


TRANSFORMS: dict[str, dict[str, Any]] = {
    "plain": {},
    "scale": {"scale": 0.5},
    "soft cap": {"softcap": 1.2},
    "unreachable ids": {"unreachable": True},
}


def aligned(leaves: dict[str, Tensor], *, unreachable: bool = False, **transforms: Any) -> AlignedStates:
    """Unreachable is what has no counterpart, of either side."""
    masks = {"teacher": torch.zeros(6, dtype=torch.bool), "student": torch.zeros(5, dtype=torch.bool)}
    masks["teacher"][[1, 4]] = True
    masks["student"][2] = True
    teacher, student = (
        Head(
            leaves[f"{side}_weight"],
            leaves[f"{side}_bias"],
            unreachable=masks[side] if unreachable else None,
            **transforms,
        )
        for side in ("teacher", "student")
    )
    hidden = leaves["student_hidden"]
    return AlignedStates(
        teacher_hidden=leaves["teacher_hidden"],
        student_hidden=hidden,
        student_logits=student.logits(hidden),
        labels=torch.zeros(len(hidden), dtype=torch.int64),
        teacher_head=teacher,
        student_head=student,
    )


def by_library(states: AlignedStates, overlap: list[list[int]] = OVERLAP, **options: Any) -> Tensor:
    terms = shared_vocabulary(states, torch.tensor(overlap), **options)
    assert set(terms.sums) == {"shared_kd"}
    return terms.sums["shared_kd"]


def by_definition(
    leaves: dict[str, Tensor],
    overlap: list[list[int]] = OVERLAP,
    *,
    divergence_name: str = "kl",
    temperature: float = 1.0,
    top_k: int | None = None,
    scale: float = 1.0,
    softcap: float | None = None,
) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)

    def logit(side: str, hidden: Tensor, token: int) -> Tensor:
        made: Tensor = scale * (
            (leaves[f"{side}_weight"][token] * hidden).sum() + leaves[f"{side}_bias"][token]
        )
        return made if softcap is None else softcap * torch.tanh(made / softcap)

    for h_t, h_s in zip(leaves["teacher_hidden"], leaves["student_hidden"], strict=True):
        shared = [(logit("teacher", h_t, t).detach(), logit("student", h_s, s)) for t, s in overlap]
        shared.sort(key=lambda both: -both[1].item())
        kept = shared if top_k is None else shared[:top_k]
        log_p = log_softmax([teacher / temperature for teacher, _ in kept])
        log_q = log_softmax([student / temperature for _, student in kept])
        if divergence_name == "reverse_kl":
            log_p, log_q = log_q, log_p
        for left, right in zip(log_p, log_q, strict=True):
            total = total + left.exp() * (left - right)
    return total


def log_softmax(logits: list[Tensor]) -> list[Tensor]:
    total = torch.stack([logit.exp() for logit in logits]).sum().log()
    return [logit - total for logit in logits]


def gradients(term: Tensor, leaves: dict[str, Tensor]) -> dict[str, Tensor | None]:
    found = torch.autograd.grad(term, list(leaves.values()), allow_unused=True)
    return dict(zip(leaves, found, strict=True))


def test_there_are_pairs_whose_largest_tokens_differ_and_pairs_where_the_rest_is_larger() -> None:
    leaves = random_leaves()
    logits = aligned(leaves).student_logits
    shared = logits[:, [student for _, student in OVERLAP]]
    assert len(set(shared.argmax(-1).tolist())) > 1
    assert 0 < (logits.argmax(-1) == 2).sum() < len(logits)


@pytest.mark.parametrize("transforms", TRANSFORMS.values(), ids=TRANSFORMS)
@pytest.mark.parametrize("top_k", [None, 1, 2, 3])
@pytest.mark.parametrize("temperature", [1.0, 1.7])
@pytest.mark.parametrize("divergence_name", DIVERGENCES)
def test_value_and_gradients_equal_the_definition(
    divergence_name: Divergence, temperature: float, top_k: int | None, transforms: dict[str, Any]
) -> None:
    leaves = random_leaves(1)
    options: dict[str, Any] = {
        "divergence_name": divergence_name,
        "temperature": temperature,
        "top_k": top_k,
    }
    formula = {name: value for name, value in transforms.items() if name != "unreachable"}
    found, expected = (
        by_library(aligned(leaves, **transforms), **options),
        by_definition(leaves, **options, **formula),
    )
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-12)
    students = {name: leaves[name] for name in OF_STUDENT}
    mine, theirs = gradients(found, students), gradients(expected, students)
    torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-12)  # names the leaf that differs


@pytest.mark.parametrize("divergence_name", DIVERGENCES)
@pytest.mark.parametrize("top_k", [None, 2])
def test_it_moves_the_student_and_its_head_and_nothing_of_the_teacher(
    divergence_name: Divergence, top_k: int | None
) -> None:
    leaves = random_leaves(2)
    found = gradients(by_library(aligned(leaves), divergence_name=divergence_name, top_k=top_k), leaves)
    moved = {name for name, gradient in found.items() if gradient is not None and gradient.ne(0).any()}
    assert moved == set(OF_STUDENT)


def test_tokens_of_one_side_only_change_nothing_and_get_no_gradient() -> None:
    leaves = random_leaves(3)
    before = by_library(aligned(leaves))
    found = gradients(before, leaves)["student_weight"]
    assert found is not None
    assert found[2].eq(0).all()
    with torch.no_grad():
        leaves["teacher_bias"][[1, 4]] = 50.0
        leaves["student_bias"][2] = -50.0
    torch.testing.assert_close(by_library(aligned(leaves)), before)


@pytest.mark.parametrize("divergence_name", DIVERGENCES)
@pytest.mark.parametrize("top_k", [4, 100])
def test_as_many_as_there_are_is_all_of_them(divergence_name: Divergence, top_k: int) -> None:
    states = aligned(random_leaves(4))
    every = by_library(states, divergence_name=divergence_name)
    torch.testing.assert_close(by_library(states, divergence_name=divergence_name, top_k=top_k), every)


def test_the_one_token_that_is_largest_leaves_nothing_to_say() -> None:
    assert by_library(aligned(random_leaves(5)), top_k=1).item() == 0


def test_the_kept_tokens_are_the_largest_of_the_student_and_not_of_the_teacher() -> None:
    """Student (1/2, 1/3, 1/6), teacher (1/6, 1/3, 1/2): of the first two KL is of (1/3, 2/3), (3/5, 2/5)."""
    probabilities = torch.tensor([[1 / 6, 1 / 3, 1 / 2]], dtype=torch.float64)
    eye = Head(torch.eye(3, dtype=torch.float64))
    student = probabilities.flip(1).log()
    states = AlignedStates(
        teacher_hidden=probabilities.log(),
        student_hidden=student,
        student_logits=student,
        labels=torch.tensor([0]),
        teacher_head=eye,
        student_head=eye,
    )
    overlap = [[0, 0], [1, 1], [2, 2]]
    expected = math.log(5 / 9) / 3 + math.log(5 / 3) * 2 / 3
    assert by_library(states, overlap, top_k=2).item() == pytest.approx(expected, rel=1e-13)
    # of all three: 1/6 ln(1/3) + 1/2 ln 3
    assert by_library(states, overlap).item() == pytest.approx(math.log(3) / 3, rel=1e-13)
    # of the first two columns, whatever their order, the others are not there
    assert by_library(states, overlap[1::-1]).item() == pytest.approx(expected, rel=1e-13)


def test_the_order_of_the_overlap_does_not_matter() -> None:
    states = aligned(random_leaves(6))
    for top_k in (None, 2):
        turned = by_library(states, OVERLAP[::-1], top_k=top_k)
        torch.testing.assert_close(turned, by_library(states, top_k=top_k))


@pytest.mark.parametrize("top_k", [None, 2])
@pytest.mark.parametrize("divergence_name", DIVERGENCES)
def test_without_pairs_it_is_a_zero_connected_to_the_student(
    divergence_name: Divergence, top_k: int | None
) -> None:
    leaves = random_leaves(pairs=0)
    found = by_library(aligned(leaves), divergence_name=divergence_name, top_k=top_k)
    assert found.item() == 0
    for name, gradient in gradients(found, {name: leaves[name] for name in OF_STUDENT}).items():
        assert gradient is not None, f"{name} is not connected"
        assert gradient.eq(0).all(), f"{name}: {gradient}"


@pytest.mark.parametrize("divergence_name", DIVERGENCES)
def test_models_in_bfloat16_have_a_float32_sum_close_to_the_definition(divergence_name: Divergence) -> None:
    half = {name: leaf.detach().bfloat16().requires_grad_() for name, leaf in random_leaves(7).items()}
    exact = {name: leaf.detach().double() for name, leaf in half.items()}
    found = by_library(aligned(half), divergence_name=divergence_name)
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(
        by_definition(exact, divergence_name=divergence_name).item(), rel=0.03
    )


OPTIONS: dict[str, dict[str, Any]] = {
    "as it is": {},
    "reverse": {"divergence_name": "reverse_kl"},
    "temperature": {"temperature": 2.0},
    "top 2": {"top_k": 2},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_the_module_equals_the_function_with_its_options(options: dict[str, Any]) -> None:
    states = aligned(random_leaves(8))
    module = SharedVocabularyLoss(torch.tensor(OVERLAP), **options)
    found = module(states).sums["shared_kd"].item()
    assert found == by_library(states, **options).item()
    assert (found == by_library(states).item()) == (not options)


def test_the_module_saves_nothing_and_has_nothing_to_train() -> None:
    module = SharedVocabularyLoss(torch.tensor(OVERLAP))
    assert not module.state_dict()
    assert not list(module.parameters())
    assert "overlap" in dict(module.named_buffers()), "it should follow the module to its device"


def test_the_function_and_the_module_agree_on_gradients() -> None:
    both: list[Callable[[AlignedStates], Tensor]] = [
        lambda states: by_library(states, top_k=3),
        lambda states: SharedVocabularyLoss(torch.tensor(OVERLAP), top_k=3)(states).sums["shared_kd"],
    ]
    leaves = random_leaves(9)
    left, right = (gradients(call(aligned(leaves)), leaves) for call in both)
    for name in OF_STUDENT:
        torch.testing.assert_close(left[name], right[name])
