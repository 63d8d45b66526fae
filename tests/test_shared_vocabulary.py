"""Distillation on the shared tokens against its formula: one pair and one number at a time, in float64."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pytest
import torch

from dskd.nn import (
    Batch,
    Head,
    Loss,
    Objective,
    SharedVocabulary,
    States,
    StrictTopK,
    Teacher,
    TeacherModel,
    VocabularyMaps,
)
from leaves import gradients, term_of
from rounding import ON_PAPER

if TYPE_CHECKING:
    from torch import Tensor

    from dskd.nn.divergences import Divergence

TWO: list[Divergence] = ["kl", "reverse_kl"]
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


def batch_of(
    leaves: dict[str, Tensor],
    overlap: list[list[int]] = OVERLAP,
    *,
    unreachable: bool = False,
    **transforms: Any,
) -> Batch:
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
    maps = VocabularyMaps(to_student=torch.full((6,), -1), overlap=torch.tensor(overlap))
    labels = torch.zeros(len(leaves["student_hidden"]), dtype=torch.int64)
    return joined(States(leaves["student_hidden"], labels, student), leaves["teacher_hidden"], teacher, maps)


def joined(student: States, hidden: Tensor, head: Head, maps: VocabularyMaps) -> Batch:
    """Every position of the student is that of a pair."""
    teacher = Teacher(TeacherModel(head, maps), hidden, torch.arange(len(hidden)))
    return Batch(student, {"teacher": teacher})


def by_library(batch: Batch, *, top_k: int | None = None, **options: Any) -> Tensor:
    """On a few of the shared tokens it is another loss, told to take all pairs and tokens."""
    teacher = batch.teachers["teacher"]
    loss: Loss = SharedVocabulary(**options)
    if top_k is not None:
        loss = StrictTopK(**{"divergence": "kl"} | options, top_k=top_k, strict=False, specials=True)
    objective = Objective([loss], batch.student.head, teacher.model)
    (name,) = objective(batch).sums
    return term_of(objective, batch, name)


def by_definition(
    leaves: dict[str, Tensor],
    overlap: list[list[int]] = OVERLAP,
    *,
    divergence: str = "kl",
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
        if divergence == "reverse_kl":
            log_p, log_q = log_q, log_p
        for left, right in zip(log_p, log_q, strict=True):
            total = total + left.exp() * (left - right)
    return total


def log_softmax(logits: list[Tensor]) -> list[Tensor]:
    total = torch.stack([logit.exp() for logit in logits]).sum().log()
    return [logit - total for logit in logits]


def test_there_are_pairs_whose_largest_tokens_differ_and_pairs_where_the_rest_is_larger() -> None:
    leaves = random_leaves()
    logits = batch_of(leaves).student.head.logits(leaves["student_hidden"])
    shared = logits[:, [student for _, student in OVERLAP]]
    assert len(set(shared.argmax(-1).tolist())) > 1
    assert 0 < (logits.argmax(-1) == 2).sum() < len(logits)


@pytest.mark.parametrize("transforms", TRANSFORMS.values(), ids=TRANSFORMS)
@pytest.mark.parametrize("top_k", [None, 1, 2, 3])
@pytest.mark.parametrize("temperature", [1.0, 1.7])
@pytest.mark.parametrize("divergence", TWO)
def test_value_and_gradients_equal_the_definition(
    divergence: Divergence, temperature: float, top_k: int | None, transforms: dict[str, Any]
) -> None:
    leaves = random_leaves(1)
    options: dict[str, Any] = {
        "divergence": divergence,
        "temperature": temperature,
        "top_k": top_k,
    }
    formula = {name: value for name, value in transforms.items() if name != "unreachable"}
    found, expected = (
        by_library(batch_of(leaves, **transforms), **options),
        by_definition(leaves, **options, **formula),
    )
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-12)
    students = {name: leaves[name] for name in OF_STUDENT}
    mine, theirs = gradients(found, students), gradients(expected, students)
    torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-12)  # names the leaf that differs


@pytest.mark.parametrize("divergence", TWO)
@pytest.mark.parametrize("top_k", [None, 2])
def test_it_moves_the_student_and_its_head_and_nothing_of_the_teacher(
    divergence: Divergence, top_k: int | None
) -> None:
    leaves = random_leaves(2)
    found = gradients(by_library(batch_of(leaves), divergence=divergence, top_k=top_k), leaves)
    moved = {name for name, gradient in found.items() if gradient.ne(0).any()}
    assert moved == set(OF_STUDENT)


def test_tokens_of_one_side_only_change_nothing_and_get_no_gradient() -> None:
    leaves = random_leaves(3)
    before = by_library(batch_of(leaves))
    found = gradients(before, leaves)["student_weight"]
    assert found[2].eq(0).all()
    with torch.no_grad():
        leaves["teacher_bias"][[1, 4]] = 50.0
        leaves["student_bias"][2] = -50.0
    torch.testing.assert_close(by_library(batch_of(leaves)), before)


@pytest.mark.parametrize("divergence", TWO)
@pytest.mark.parametrize("top_k", [4, 100])
def test_as_many_as_there_are_is_all_of_them(divergence: Divergence, top_k: int) -> None:
    states = batch_of(random_leaves(4))
    every = by_library(states, divergence=divergence)
    torch.testing.assert_close(by_library(states, divergence=divergence, top_k=top_k), every)


def test_the_one_token_that_is_largest_leaves_nothing_to_say() -> None:
    assert by_library(batch_of(random_leaves(5)), top_k=1).item() == 0


def test_the_kept_tokens_are_the_largest_of_the_student_and_not_of_the_teacher() -> None:
    """Student (1/2, 1/3, 1/6), teacher (1/6, 1/3, 1/2): of the first two KL is of (1/3, 2/3), (3/5, 2/5)."""
    probabilities = torch.tensor([[1 / 6, 1 / 3, 1 / 2]], dtype=torch.float64)
    eye = Head(torch.eye(3, dtype=torch.float64))

    def found(overlap: list[list[int]], **options: Any) -> float:
        maps = VocabularyMaps(to_student=torch.arange(3), overlap=torch.tensor(overlap))
        student = States(probabilities.flip(1).log(), torch.tensor([0]), eye)
        return by_library(joined(student, probabilities.log(), eye, maps), **options).item()

    overlap = [[0, 0], [1, 1], [2, 2]]
    expected = math.log(5 / 9) / 3 + math.log(5 / 3) * 2 / 3
    assert found(overlap, top_k=2) == pytest.approx(expected, rel=ON_PAPER)
    # of all three: 1/6 ln(1/3) + 1/2 ln 3
    assert found(overlap) == pytest.approx(math.log(3) / 3, rel=ON_PAPER)
    # of the first two columns, whatever their order, the others are not there
    assert found(overlap[1::-1]) == pytest.approx(expected, rel=ON_PAPER)


def test_the_order_of_the_overlap_does_not_matter() -> None:
    leaves = random_leaves(6)
    for top_k in (None, 2):
        turned = by_library(batch_of(leaves, OVERLAP[::-1]), top_k=top_k)
        torch.testing.assert_close(turned, by_library(batch_of(leaves), top_k=top_k))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"divergence": "l2"}, r"^there is no divergence 'l2'; take one of kl, "),
        ({"temperature": 0.0}, r"^temperature=0.0; it is a number above 0$"),
        ({"temperature": math.nan}, r"^temperature=nan; it is a number above 0$"),
        ({"temperature": -1.0}, r"^temperature=-1.0; it is a number above 0$"),
    ],
    ids=str,
)
def test_options_out_of_range_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SharedVocabulary(**given)


def test_shared_tokens_worked_out_by_hand() -> None:
    """Teacher (1, 2, 4) / 7, student (1, 9, 3) / 13 in its order; shared (1, 2) and (2, 1).

    On those the teacher is (1/3, 2/3), the student (1/4, 3/4): 1/3 ln(4/3) + 2/3 ln(8/9). The gradient of the
    student's state is (3/4 - 2/3) 2 + (1/4 - 1/3) 1 = 1/12.
    """
    hidden = torch.tensor([[math.log(3)]], dtype=torch.float64, requires_grad=True)
    rows = torch.tensor([[0.0], [1.0], [2.0]], dtype=torch.float64)
    student = States(hidden, torch.tensor([0]), Head(rows[[0, 2, 1]]))
    maps = VocabularyMaps(to_student=torch.tensor([-1, 2, 1]), overlap=torch.tensor([[1, 2], [2, 1]]))
    batch = joined(student, torch.tensor([[math.log(2)]], dtype=torch.float64), Head(rows), maps)
    for fused in (False, True):
        model = batch.teachers["teacher"].model
        loss = Objective([SharedVocabulary()], student.head, model, fused=fused)(batch).loss
        assert loss.item() == pytest.approx(math.log(4 / 3) / 3 + math.log(8 / 9) * 2 / 3, rel=ON_PAPER)
        (moved,) = torch.autograd.grad(loss, hidden)
        assert moved.item() == pytest.approx(1 / 12, rel=ON_PAPER)
