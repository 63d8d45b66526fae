"""Distillation on the shared tokens against its definition: one pair and one number at a time, in float64."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pytest
import torch

from dskd.nn import (
    DIVERGENCES,
    AlignedStates,
    Head,
    Reduction,
    SharedVocabularyLoss,
    SharedVocabularyOptions,
    VocabularyMaps,
    fused_shared_vocabulary,
    shared_vocabulary,
    weighted,
)
from leaves import TRANSFORMS as OF_HEADS
from leaves import Leaves
from leaves import gradients as gradients_of
from leaves import random_leaves as random_case
from rounding import ON_PAPER, assert_loses_no_more, losses_by_rounding

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
        labels=torch.zeros(len(hidden), dtype=torch.int64),
        paired=torch.arange(len(hidden)),
        teacher_head=teacher,
        student_head=student,
    )


def by_library(states: AlignedStates, overlap: list[list[int]] = OVERLAP, **options: Any) -> Tensor:
    terms = shared_vocabulary(states, torch.tensor(overlap), SharedVocabularyOptions(**options))
    assert set(terms.sums) == {"cross_entropy", "shared_kd"}
    return terms.sums["shared_kd"]


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


def gradients(term: Tensor, leaves: dict[str, Tensor]) -> dict[str, Tensor | None]:
    found = torch.autograd.grad(term, list(leaves.values()), allow_unused=True)
    return dict(zip(leaves, found, strict=True))


def test_there_are_pairs_whose_largest_tokens_differ_and_pairs_where_the_rest_is_larger() -> None:
    leaves = random_leaves()
    logits = aligned(leaves).student_head.logits(leaves["student_hidden"])
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
        by_library(aligned(leaves, **transforms), **options),
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
    found = gradients(by_library(aligned(leaves), divergence=divergence, top_k=top_k), leaves)
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


@pytest.mark.parametrize("divergence", TWO)
@pytest.mark.parametrize("top_k", [4, 100])
def test_as_many_as_there_are_is_all_of_them(divergence: Divergence, top_k: int) -> None:
    states = aligned(random_leaves(4))
    every = by_library(states, divergence=divergence)
    torch.testing.assert_close(by_library(states, divergence=divergence, top_k=top_k), every)


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
        labels=torch.tensor([0]),
        paired=torch.tensor([0]),
        teacher_head=eye,
        student_head=eye,
    )
    overlap = [[0, 0], [1, 1], [2, 2]]
    expected = math.log(5 / 9) / 3 + math.log(5 / 3) * 2 / 3
    assert by_library(states, overlap, top_k=2).item() == pytest.approx(expected, rel=ON_PAPER)
    # of all three: 1/6 ln(1/3) + 1/2 ln 3
    assert by_library(states, overlap).item() == pytest.approx(math.log(3) / 3, rel=ON_PAPER)
    # of the first two columns, whatever their order, the others are not there
    assert by_library(states, overlap[1::-1]).item() == pytest.approx(expected, rel=ON_PAPER)


def test_the_order_of_the_overlap_does_not_matter() -> None:
    states = aligned(random_leaves(6))
    for top_k in (None, 2):
        turned = by_library(states, OVERLAP[::-1], top_k=top_k)
        torch.testing.assert_close(turned, by_library(states, top_k=top_k))


@pytest.mark.parametrize("top_k", [None, 2])
@pytest.mark.parametrize("divergence", TWO)
def test_without_pairs_it_is_a_zero_connected_to_the_student(
    divergence: Divergence, top_k: int | None
) -> None:
    leaves = random_leaves(pairs=0)
    found = by_library(aligned(leaves), divergence=divergence, top_k=top_k)
    assert found.item() == 0
    for name, gradient in gradients(found, {name: leaves[name] for name in OF_STUDENT}).items():
        assert gradient is not None, f"{name} is not connected"
        assert gradient.eq(0).all(), f"{name}: {gradient}"


@pytest.mark.parametrize("divergence", TWO)
def test_models_in_bfloat16_have_a_float32_sum_off_by_what_rounding_may_do(divergence: Divergence) -> None:
    half = {name: leaf.detach().bfloat16().requires_grad_() for name, leaf in random_leaves(7).items()}
    exact = {name: leaf.detach().double() for name, leaf in half.items()}
    found = by_library(aligned(half), divergence=divergence)
    assert found.dtype == torch.float32
    right = {"sum": by_definition(exact, divergence=divergence)}
    allowed = losses_by_rounding(lambda: {"sum": by_library(aligned(half), divergence=divergence)}, right)
    assert_loses_no_more({"sum": found}, right, allowed)


OPTIONS: dict[str, dict[str, Any]] = {
    "as it is": {},
    "reverse": {"divergence": "reverse_kl"},
    "temperature": {"temperature": 2.0},
    "top 2": {"top_k": 2},
}


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_the_module_is_the_function_with_its_options_weighted(options: dict[str, Any], fused: bool) -> None:
    states, reduction = aligned(random_leaves(8)), Reduction(31, 17, 0.3)
    module = SharedVocabularyLoss(torch.tensor(OVERLAP), SharedVocabularyOptions(**options), fused=fused)
    terms = shared_vocabulary(states, torch.tensor(OVERLAP), SharedVocabularyOptions(**options))
    found = module(states, reduction)
    sums = {name: value.item() for name, value in terms.sums.items()}
    assert {name: value.item() for name, value in found.sums.items()} == pytest.approx(sums, rel=1e-12)
    assert (sums["shared_kd"] == by_library(states).item()) == (not options)
    expected = 0.7 * sums["cross_entropy"] / 31 + 0.3 * sums["shared_kd"] / 17
    assert found.loss.item() == pytest.approx(expected, rel=1e-12)


def test_the_module_saves_nothing_and_has_nothing_to_train() -> None:
    module = SharedVocabularyLoss(torch.tensor(OVERLAP))
    assert not module.state_dict()
    assert not list(module.parameters())
    assert "overlap" in dict(module.named_buffers()), "it should follow the module to its device"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"divergence": "l2"}, r"^divergence='l2'; it is one of \('kl', "),
        ({"temperature": 0.0}, r"^temperature=0.0; it is above 0$"),
        ({"temperature": math.nan}, r"^temperature=nan; it is above 0$"),
        ({"top_k": 0}, r"^top_k=0; it is at least 1, or None for all$"),
    ],
    ids=str,
)
def test_options_out_of_range_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SharedVocabularyOptions(**given)


# ---- The fused form --------------------------------------------------------------------------------------

REDUCTION = Reduction(labels=31, pairs=40, alpha=0.3)
FUSED: dict[str, SharedVocabularyOptions] = {
    name: SharedVocabularyOptions(**given)
    for name, given in {
        **OPTIONS,
        "top 2, warm": {"top_k": 2, "temperature": 1.7},
        "more than there are": {"top_k": 100},
        "js": {"divergence": "js", "mix": 0.2},
    }.items()
}


def assert_fused_equals(
    case: Leaves, options: SharedVocabularyOptions, reduction: Reduction = REDUCTION, memory: int = 0
) -> None:
    """Loss, sums and the gradient of every leaf, in chunks of 16 rows."""
    states, overlap = case.states(), case.maps.overlap
    assert overlap is not None
    terms = shared_vocabulary(states, overlap, options)
    weights = {"cross_entropy": reduction.cross_entropy, "shared_kd": reduction.distillation}
    expected = weighted(terms, weights)
    found = fused_shared_vocabulary(states, overlap, options, reduction=reduction, chunk_memory=memory)
    torch.testing.assert_close(found.loss, expected.loss, rtol=1e-10, atol=1e-13)
    for name, value in expected.sums.items():
        torch.testing.assert_close(found.sums[name], value, rtol=1e-10, atol=1e-12)
    mine, theirs = (gradients_of(one.loss, case.by_name) for one in (found, expected))
    torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("options", FUSED.values(), ids=FUSED)
@pytest.mark.parametrize("transforms", OF_HEADS.values(), ids=OF_HEADS)
def test_fused_value_and_every_gradient_equal_the_definition(
    transforms: Any, options: SharedVocabularyOptions, device: str
) -> None:
    case = random_case(1, labels=50, pairs=37, sizes=(19, 13), transforms=transforms, device=device)
    assert_fused_equals(case, options)


@pytest.mark.parametrize("top_k", [None, 2])
@pytest.mark.parametrize("name", DIVERGENCES)
def test_fused_every_divergence(name: Divergence, top_k: int | None) -> None:
    case = random_case(2, labels=20, pairs=18, transforms=OF_HEADS["all of these"])
    assert_fused_equals(case, SharedVocabularyOptions(divergence=name, top_k=top_k, temperature=1.7))


@pytest.mark.parametrize("options", FUSED.values(), ids=FUSED)
@pytest.mark.parametrize(("labels", "pairs"), [(0, 0), (1, 0), (1, 1), (33, 0), (40, 1), (17, 17), (37, 37)])
def test_fused_odd_shapes(labels: int, pairs: int, options: SharedVocabularyOptions) -> None:
    assert_fused_equals(random_case(3, labels=labels, pairs=pairs), options)


@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_fused_shares(alpha: float) -> None:
    assert_fused_equals(random_case(4, labels=20, pairs=18), FUSED["as it is"], Reduction(7, 5, alpha))


@pytest.mark.parametrize(
    "frozen", [["student_weight", "student_bias"], ["student_hidden"], ["student_weight"]]
)
def test_fused_what_is_frozen_has_no_gradient(frozen: list[str]) -> None:
    case = random_case(5, labels=20, pairs=18, transforms=OF_HEADS["bias and scale"]).frozen(frozen)
    assert case.maps.overlap is not None
    loss = fused_shared_vocabulary(case.states(), case.maps.overlap, reduction=REDUCTION).loss
    trained = {name: leaf for name, leaf in case.by_name.items() if leaf.requires_grad}
    found = gradients_of(loss, trained)
    moved = {name for name, gradient in found.items() if gradient.any()}
    assert moved == set(OF_STUDENT) - set(frozen)


def test_fused_shared_tokens_worked_out_by_hand() -> None:
    """Teacher (1, 2, 4) / 7, student (1, 9, 3) / 13 in its order; shared (1, 2) and (2, 1).

    On those the teacher is (1/3, 2/3), the student (1/4, 3/4): 1/3 ln(4/3) + 2/3 ln(8/9), halved. The label
    is id 0: ln 13, a quarter of it as one of two labels. The gradient of the student's state is half of
    (3/4 - 2/3) 2 + (1/4 - 1/3) 1 = 1/12, and a quarter of (18 + 3) / 13.
    """
    leaves = {
        "teacher_hidden": [[math.log(2)]],
        "student_hidden": [[math.log(3)]],
        "teacher_weight": [[0.0], [1.0], [2.0]],
        "student_weight": [[0.0], [2.0], [1.0]],
        "teacher_bias": [0.0] * 3,
        "student_bias": [0.0] * 3,
    }
    by_name = {name: torch.tensor(one, dtype=torch.float64).requires_grad_() for name, one in leaves.items()}
    nothing, maps = torch.zeros(1, dtype=torch.int64), VocabularyMaps(to_student=torch.tensor([-1, 2, 1]))
    case = Leaves(by_name, nothing, nothing, maps)
    overlap, reduction = torch.tensor([[1, 2], [2, 1]]), Reduction(2, 1, 0.5)
    for fused in (False, True):
        loss = SharedVocabularyLoss(overlap, fused=fused)(case.states(), reduction).loss
        kd = math.log(4 / 3) / 3 + math.log(8 / 9) * 2 / 3
        assert loss.item() == pytest.approx(kd / 2 + math.log(13) / 4, rel=ON_PAPER)
        (moved,) = torch.autograd.grad(loss, by_name["student_hidden"])
        assert moved.item() == pytest.approx(1 / 24 + 21 / 52, rel=ON_PAPER)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("options", ["as it is", "temperature", "js"])
def test_fused_loses_no_more_than_rounding_may(
    options: str, autocast: bool, dtype: torch.dtype, device: str
) -> None:
    sizes: dict[str, Any] = {"labels": 64, "pairs": 50, "sizes": (120, 101), "widths": (48, 32)}
    case = random_case(6, transforms=OF_HEADS["bias and scale"], device=device, **sizes).cast(dtype)
    overlap = torch.arange(0, 100, 2, device=device)[:, None] + torch.tensor([0, 1], device=device)

    def made(one: Leaves, *, fused: bool) -> dict[str, Tensor]:
        loss = SharedVocabularyLoss(overlap, FUSED[options], fused=fused)(one.states(), REDUCTION).loss
        trained = {name: leaf for name, leaf in one.trained.items() if name.startswith("student")}
        return {"loss": loss.detach(), **gradients_of(loss, trained)}

    expected = made(case.cast(torch.float64), fused=False)
    with torch.autocast(device, torch.bfloat16, enabled=autocast):
        found = made(case, fused=True)
        allowed = losses_by_rounding(lambda: made(case, fused=False), expected)
    assert_loses_no_more(found, expected, allowed)
