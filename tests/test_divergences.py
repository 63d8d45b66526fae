"""The divergences against numbers worked out on paper, PyTorch's own, and definitions in plain loops.

The forms in place are held against autograd of the definitions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import pytest
import torch
from torch.nn import functional

from dskd.nn import (
    DIVERGENCES,
    Head,
    SharedVocabulary,
    adaptive_kl,
    divergence,
    divergence_and_gradient,
    js,
    kl,
    reverse_kl,
    skew_kl,
    skew_reverse_kl,
    tvd,
)
from rounding import ON_PAPER, assert_within, divergence_bounds, unit

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from dskd.nn.divergences import Divergence

NAMES: list[Divergence] = ["kl", "reverse_kl", "js", "skew_kl", "skew_reverse_kl", "adaptive_kl", "tvd"]
MIXED: list[Divergence] = ["js", "skew_kl", "skew_reverse_kl", "adaptive_kl"]
PLAIN: list[Divergence] = ["kl", "reverse_kl", "tvd"]
DEFAULTS = {"js": 0.5, "skew_kl": 0.1, "skew_reverse_kl": 0.1, "adaptive_kl": 0.5}
MASKED = -1e30
NONE = -math.inf

Setting: TypeAlias = "tuple[Divergence, float | None]"
SETTINGS: list[Setting] = [
    *((name, None) for name in NAMES),
    *((name, mix) for name in MIXED for mix in (0.03, 0.9)),
]

every_name = pytest.mark.parametrize("name", NAMES)


def each_setting(settings: list[Setting]) -> pytest.MarkDecorator:
    ids = [name + ("" if mix is None else f"-{mix}") for name, mix in settings]
    return pytest.mark.parametrize(("name", "mix"), settings, ids=ids)


every_setting = each_setting(SETTINGS)


@dataclass(frozen=True)
class Case:
    """Two distributions, and divergences of them worked out by hand."""

    name: str
    teacher: Sequence[float]
    student: Sequence[float]
    expected: Mapping[Setting, float]


LN2, LN3, LN5, LN7, LN11, LN19, LN29 = (math.log(prime) for prime in (2, 3, 5, 7, 11, 19, 29))
CASES = [
    # m of js at 1/2, of both skews at 1/2: (3/8, 3/8, 1/4).
    #   KL(p, m) = 1/2 ln(4/3) + 1/4 ln(2/3) = 5/4 ln 2 - 3/4 ln 3; KL(q, m) mirrors it.
    # js at 1/4: m = (5/16, 7/16, 1/4).
    #   KL(p, m) = 1/2 ln(8/5) + 1/4 ln(4/7) = 2 ln 2 - 1/2 ln 5 - 1/4 ln 7
    #   KL(q, m) = 1/4 ln(4/5) + 1/2 ln(8/7) = 2 ln 2 - 1/4 ln 5 - 1/2 ln 7
    #   a quarter of the one and three quarters of the other: 2 ln 2 - 5/16 ln 5 - 7/16 ln 7.
    # skew_kl at 1/10: m = (11/40, 19/40, 1/4), KL(p, m) = 1/2 ln(20/11) + 1/4 ln(10/19)
    #   = 5/4 ln 2 + 3/4 ln 5 - 1/2 ln 11 - 1/4 ln 19; the reverse mirrors it.
    # adaptive_kl: the tail is both quarters (1/4 + 1/4 <= 1/2), the head the half: a = 1/4 / (1/4 + 1/4),
    #   and both KL are the same.
    # tvd: half of 1/4 + 1/4 + 0.
    Case(
        "a half and two quarters, the half elsewhere",
        [1 / 2, 1 / 4, 1 / 4],
        [1 / 4, 1 / 2, 1 / 4],
        {
            ("kl", None): LN2 / 4,
            ("reverse_kl", None): LN2 / 4,
            ("js", None): 5 / 4 * LN2 - 3 / 4 * LN3,
            ("js", 0.25): 2 * LN2 - 5 / 16 * LN5 - 7 / 16 * LN7,
            ("skew_kl", 0.5): 5 / 4 * LN2 - 3 / 4 * LN3,
            ("skew_kl", None): 5 / 4 * LN2 + 3 / 4 * LN5 - LN11 / 2 - LN19 / 4,
            ("skew_reverse_kl", 0.5): 5 / 4 * LN2 - 3 / 4 * LN3,
            ("skew_reverse_kl", None): 5 / 4 * LN2 + 3 / 4 * LN5 - LN11 / 2 - LN19 / 4,
            ("adaptive_kl", None): LN2 / 4,
            ("tvd", None): 1 / 4,
        },
    ),
    # KL(p, q) = 1/2 ln 2 + 1/2 ln(2/3); KL(q, p) = 1/4 ln(1/2) + 3/4 ln(3/2).
    # At 1/2, m = (3/8, 5/8): KL(p, m) = 1/2 ln(4/3) + 1/2 ln(4/5), KL(q, m) = 1/4 ln(2/3) + 3/4 ln(6/5).
    # skew_kl at 1/10: m = (11/40, 29/40), 1/2 ln(20/11) + 1/2 ln(20/29).
    # skew_reverse_kl at 1/10: m = (19/40, 21/40), 1/4 ln(10/19) + 3/4 ln(10/7).
    # adaptive_kl: of equal p the first is the tail (1/2 <= 1/2), with half the gap: the mean of both KL.
    Case(
        "halves against a quarter and three",
        [1 / 2, 1 / 2],
        [1 / 4, 3 / 4],
        {
            ("kl", None): LN2 - LN3 / 2,
            ("reverse_kl", None): 3 / 4 * LN3 - LN2,
            ("js", None): 3 / 2 * LN2 - 5 / 8 * LN5,
            ("skew_kl", 0.5): 2 * LN2 - LN3 / 2 - LN5 / 2,
            ("skew_kl", None): 2 * LN2 + LN5 - LN11 / 2 - LN29 / 2,
            ("skew_reverse_kl", 0.5): LN2 + LN3 / 2 - 3 / 4 * LN5,
            ("skew_reverse_kl", None): LN2 + LN5 - LN19 / 4 - 3 / 4 * LN7,
            ("adaptive_kl", None): LN3 / 8,
            ("tvd", None): 1 / 4,
        },
    ),
    # KL(p, q) = 1/3 (ln(2/3) + 2 ln(4/3)) = 5/3 ln 2 - ln 3; KL(q, p) = 1/2 ln(3/2) + 1/2 ln(3/4).
    # js: m = (5/12, 7/24, 7/24), KL(p, m) = 1/3 ln(4/5) + 2/3 ln(8/7), KL(q, m) = 1/2 ln(6/5) + 1/2 ln(6/7).
    # adaptive_kl: the tail is the first third alone, gaps are 1/6, 1/12, 1/12: a = (1/6) / (1/3).
    Case(
        "thirds, the first apart",
        [1 / 3] * 3,
        [1 / 2, 1 / 4, 1 / 4],
        {
            ("kl", None): 5 / 3 * LN2 - LN3,
            ("reverse_kl", None): LN3 - 3 / 2 * LN2,
            ("js", None): 11 / 6 * LN2 + LN3 / 2 - 5 / 12 * LN5 - 7 / 12 * LN7,
            ("adaptive_kl", None): LN2 / 12,
            ("tvd", None): 1 / 6,
        },
    ),
    # The same numbers elsewhere: the first third is still the tail, its gap now 1/12, so a = (1/4) / (1/3),
    # 3/4 KL(p, q) + 1/4 KL(q, p) = 7/8 ln 2 - 1/2 ln 3. At 0.7 the first two are the tail: a = 1/2 again.
    # At 0.3 nothing is, a = 1: KL(p, q).
    Case(
        "thirds, the last apart",
        [1 / 3] * 3,
        [1 / 4, 1 / 4, 1 / 2],
        {
            ("kl", None): 5 / 3 * LN2 - LN3,
            ("adaptive_kl", None): 7 / 8 * LN2 - LN3 / 2,
            ("adaptive_kl", 0.7): LN2 / 12,
            ("adaptive_kl", 0.3): 5 / 3 * LN2 - LN3,
        },
    ),
    # KL(p, q) = 1/2 ln 2 + 0 + 2/8 ln(1/2) = KL(q, p) = 1/4 ln(1/2) + 0 + 2/4 ln 2.
    Case(
        "powers of two",
        [1 / 2, 1 / 4, 1 / 8, 1 / 8],
        [1 / 4] * 4,
        {("kl", None): LN2 / 4, ("reverse_kl", None): LN2 / 4, ("tvd", None): 1 / 4},
    ),
    Case("equal", [1 / 3, 2 / 3], [1 / 3, 2 / 3], dict.fromkeys(SETTINGS, 0.0)),
]
BY_HAND = [
    pytest.param(case, name, mix, value, id=f"{case.name}-{name}-{mix}")
    for case in CASES
    for (name, mix), value in case.expected.items()
]


# --- definitions, a number at a time in Python's own floats ---


def by_loop(
    name: Divergence,
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    temperature: float = 1.0,
    mix: float | None = None,
) -> list[float]:
    return [
        of_rows(name, [z / temperature for z in student], [z / temperature for z in teacher], mix)
        for student, teacher in zip(student_logits.tolist(), teacher_logits.tolist(), strict=True)
    ]


def of_rows(name: Divergence, student: list[float], teacher: list[float], mix: float | None) -> float:
    log_p, log_q = log_softmax(teacher), log_softmax(student)
    weight = DEFAULTS.get(name, 0.0) if mix is None else mix
    match name:
        case "kl":
            value = kl_of(log_p, log_q)
        case "reverse_kl":
            value = kl_of(log_q, log_p)
        case "js":
            middle = log_mixture(log_p, log_q, weight)
            value = weight * kl_of(log_p, middle) + (1 - weight) * kl_of(log_q, middle)
        case "skew_kl":
            value = kl_of(log_p, log_mixture(log_p, log_q, weight))
        case "skew_reverse_kl":
            value = kl_of(log_q, log_mixture(log_q, log_p, weight))
        case "adaptive_kl":
            share = head_share(log_p, log_q, weight)
            value = share * kl_of(log_p, log_q) + (1 - share) * kl_of(log_q, log_p)
        case "tvd":
            value = math.fsum(gaps_of(log_p, log_q)) / 2
    return value


def log_softmax(logits: list[float]) -> list[float]:
    total = log_sum_exp(logits)
    return [logit - total for logit in logits]


def log_sum_exp(logits: list[float]) -> float:
    top = max(logits)
    if top == NONE:
        return NONE
    return top + math.log(math.fsum(math.exp(logit - top) for logit in logits))


def kl_of(log_p: list[float], log_q: list[float]) -> float:
    """Of what has no probability nothing."""
    sides = zip(log_p, log_q, strict=True)
    return math.fsum(math.exp(left) * (left - right) for left, right in sides if left > NONE)


def log_mixture(log_p: list[float], log_q: list[float], weight: float) -> list[float]:
    return [
        log_sum_exp([left + math.log(weight), right + math.log(1 - weight)])
        for left, right in zip(log_p, log_q, strict=True)
    ]


def gaps_of(log_p: list[float], log_q: list[float]) -> list[float]:
    return [abs(math.exp(left) - math.exp(right)) for left, right in zip(log_p, log_q, strict=True)]


def head_share(log_p: list[float], log_q: list[float], threshold: float) -> float:
    """a of `adaptive_kl`."""
    tail, cumulative = set(), 0.0
    for token in sorted(range(len(log_p)), key=lambda token: log_p[token]):
        cumulative += math.exp(log_p[token])
        if cumulative <= threshold + 1e-12:
            tail.add(token)
    gaps = gaps_of(log_p, log_q)
    whole = math.fsum(gaps)
    head = math.fsum(gap for token, gap in enumerate(gaps) if token not in tail)
    return head / whole if whole else 0.5


# --- input ---


def random_logits(
    seed: int,
    rows: int = 6,
    columns: int = 7,
    *,
    scale: float = 3.0,
    dtype: torch.dtype = torch.float64,
    device: str = "cpu",
) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    teacher, student = scale * torch.randn(2, rows, columns, generator=generator, dtype=torch.float64)
    return student.to(device, dtype), teacher.to(device, dtype)


def log_probs(probabilities: Sequence[float], device: str) -> Tensor:
    return torch.tensor([probabilities], dtype=torch.float64, device=device).log()


def by_autograd(
    name: Divergence, student_logits: Tensor, teacher_logits: Tensor, mix: float | None = None
) -> tuple[Tensor, Tensor]:
    """What `divergence_and_gradient` is to return."""
    student = student_logits.detach().clone().requires_grad_()
    items = divergence(name, student, teacher_logits, mix=mix)
    (gradient,) = torch.autograd.grad(items.sum(), student)
    return items.detach(), gradient


def in_place(
    name: Divergence, student_logits: Tensor, teacher_logits: Tensor, mix: float | None = None
) -> tuple[Tensor, Tensor]:
    return divergence_and_gradient(
        name, student_logits.log_softmax(-1), teacher_logits.log_softmax(-1), mix=mix
    )


def assert_items(
    found: Tensor,
    expected: Sequence[float] | Tensor,
    name: Divergence,
    logits: tuple[Tensor, Tensor],
    mix: float | None = None,
) -> None:
    """Within what the dtype of what was found may round, of logits that are divided by their temperature.

    What is expected was itself found in float64.
    """
    wide = torch.as_tensor(expected, dtype=torch.float64, device=found.device)
    bounds = [divergence_bounds(name, *logits, mix, dtype=dtype).items for dtype in (found.dtype, wide.dtype)]
    assert_within(found, wide, bounds[0] + bounds[1])


# --- values ---


def test_there_are_the_divergences_of_the_definition() -> None:
    assert dict(DIVERGENCES) == {
        "kl": kl,
        "reverse_kl": reverse_kl,
        "js": js,
        "skew_kl": skew_kl,
        "skew_reverse_kl": skew_reverse_kl,
        "adaptive_kl": adaptive_kl,
        "tvd": tvd,
    }


@pytest.mark.parametrize(("case", "name", "mix", "value"), BY_HAND)
def test_numbers_worked_out_by_hand(
    case: Case, name: Divergence, mix: float | None, value: float, device: str
) -> None:
    student, teacher = log_probs(case.student, device), log_probs(case.teacher, device)
    options = {} if mix is None else {"mix": mix}
    for found in (
        DIVERGENCES[name](student, teacher, **options),
        divergence(name, student, teacher, mix=mix),
        in_place(name, student, teacher, mix)[0],
        in_place(name, student.float(), teacher.float(), mix)[0],
    ):
        assert_items(found, [value], name, (student, teacher), mix)


def test_every_divergence_has_a_number_worked_out_by_hand() -> None:
    assert {name for case in CASES if case.name != "equal" for name, _ in case.expected} == set(NAMES)


def test_a_certain_side_costs_the_logarithm_of_what_the_other_says(device: str) -> None:
    certain = torch.tensor([0.0, MASKED], device=device)
    even = torch.tensor([0.5, 0.5], device=device).log()
    # js, m = (3/4, 1/4): 1/2 ln(4/3) + 1/2 (1/2 ln(2/3) + 1/2 ln 2) = 3/2 ln 2 - 3/4 ln 3.
    # In a skew the other says nothing of one half: that half costs ln(1 / lambda), the rest ln(1/2 / m).
    #   skew_kl of p even, q certain: m = (19/20, 1/20), 1/2 ln(10/19) + 1/2 ln 10.
    cases: list[tuple[Divergence, tuple[Tensor, Tensor], float]] = [
        ("kl", (even, certain), LN2),
        ("reverse_kl", (certain, even), LN2),
        ("js", (even, certain), 3 / 2 * LN2 - 3 / 4 * LN3),
        ("skew_kl", (certain, even), math.log(100 / 19) / 2),
        ("skew_reverse_kl", (even, certain), math.log(100 / 19) / 2),
        ("tvd", (even, certain), 0.5),
    ]
    for name, sides, expected in cases:
        assert_items(DIVERGENCES[name](*sides)[None], [expected], name, (sides[0][None], sides[1][None]))


@every_setting
def test_it_equals_its_definition(name: Divergence, mix: float | None, device: str) -> None:
    student, teacher = random_logits(2, device=device)
    temperature = 2.0
    found = divergence(name, student, teacher, temperature=temperature, mix=mix)
    expected = by_loop(name, student, teacher, temperature=temperature, mix=mix)
    assert_items(found, expected, name, (student / temperature, teacher / temperature), mix)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_it_equals_the_one_of_pytorch(temperature: float, device: str) -> None:
    student, teacher = random_logits(3, device=device)
    log_q, log_p = (logits.div(temperature).log_softmax(-1) for logits in (student, teacher))
    forward = functional.kl_div(log_q, log_p, log_target=True, reduction="none").sum(-1)
    backward = functional.kl_div(log_p, log_q, log_target=True, reduction="none").sum(-1)
    torch.testing.assert_close(divergence("kl", student, teacher, temperature=temperature), forward)
    torch.testing.assert_close(divergence("reverse_kl", student, teacher, temperature=temperature), backward)


def test_no_factor_of_the_squared_temperature() -> None:
    student, teacher = torch.tensor([[[0.0, 0.0]], [[0.0, 2 * LN2]]], dtype=torch.float64)
    found = divergence("kl", student, teacher, temperature=2.0)
    assert found.item() == pytest.approx(math.log(2 / 3) / 3 + math.log(4 / 3) * 2 / 3)


@every_name
def test_logits_may_be_shifted_by_any_constant(name: Divergence) -> None:
    shifts = torch.tensor([0.0, 5.0, -3.0, 100.0, 0.5, 7.0], dtype=torch.float64).unsqueeze(1)
    student, teacher = random_logits(1)
    shifted = divergence(name, student - shifts, teacher + shifts)
    torch.testing.assert_close(shifted, divergence(name, student, teacher))


@every_name
def test_it_has_a_value_a_token_whatever_the_shape(name: Divergence, device: str) -> None:
    student, teacher = random_logits(12, device=device)
    found = divergence(name, student.view(2, 3, 7), teacher.view(2, 3, 7))
    torch.testing.assert_close(found, divergence(name, student, teacher).view(2, 3))
    assert divergence(name, student[0], teacher[0]).shape == ()
    assert divergence(name, student[:0], teacher[:0]).shape == (0,)


# --- properties ---


@every_setting
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_it_is_zero_for_equal_distributions_and_so_is_its_gradient(
    name: Divergence, mix: float | None, dtype: torch.dtype, device: str
) -> None:
    logits, _ = random_logits(6, dtype=dtype, device=device)
    bounds = divergence_bounds("kl" if name == "tvd" else name, logits, logits, mix, dtype=dtype)
    for found, gradient in (by_autograd(name, logits, logits, mix), in_place(name, logits, logits, mix)):
        assert_within(found, torch.zeros_like(bounds.items), bounds.items)
        assert_within(gradient, torch.zeros_like(bounds.gradient), bounds.gradient)


@every_setting
def test_it_is_positive_for_distributions_that_differ(name: Divergence, mix: float | None) -> None:
    assert divergence(name, *random_logits(7, rows=30), mix=mix).min() > 1e-4


def test_js_at_one_half_and_tvd_are_symmetric() -> None:
    student, teacher = (logits.log_softmax(-1) for logits in random_logits(20))
    torch.testing.assert_close(js(student, teacher), js(teacher, student))
    torch.testing.assert_close(tvd(student, teacher), tvd(teacher, student))
    assert (js(student, teacher, mix=0.2) - js(teacher, student, mix=0.2)).abs().min() > 1e-4


def test_js_mirrored_is_js_of_the_other_mix() -> None:
    student, teacher = (logits.log_softmax(-1) for logits in random_logits(21))
    torch.testing.assert_close(js(student, teacher, mix=0.2), js(teacher, student, mix=0.8))


def test_the_skews_mirror_each_other() -> None:
    student, teacher = (logits.log_softmax(-1) for logits in random_logits(22))
    torch.testing.assert_close(skew_kl(student, teacher, mix=0.2), skew_reverse_kl(teacher, student, mix=0.2))


def test_a_skew_of_almost_nothing_is_a_kl_and_one_of_almost_all_is_zero() -> None:
    student, teacher = (logits.log_softmax(-1) for logits in random_logits(23))
    for skew, limit in ((skew_kl, kl), (skew_reverse_kl, reverse_kl)):
        expected = limit(student, teacher)
        torch.testing.assert_close(skew(student, teacher, mix=1e-10), expected, rtol=1e-6, atol=0)
        assert skew(student, teacher, mix=1 - 1e-10).abs().max() < 1e-8


def test_js_by_its_mix_tends_to_either_kl() -> None:
    student, teacher = (logits.log_softmax(-1) for logits in random_logits(24, scale=1.0))
    for mix, limit in ((1e-7, kl), (1 - 1e-7, reverse_kl)):
        found = js(student, teacher, mix=mix) / 1e-7
        torch.testing.assert_close(found, limit(student, teacher), rtol=1e-5, atol=0)


def test_bounds_that_hold_for_any_two_distributions() -> None:
    student, teacher = (logits.log_softmax(-1) for logits in random_logits(25, 50, 5, scale=20))
    rounding = 1e-12
    assert js(student, teacher).max() <= LN2 + rounding
    assert skew_kl(student, teacher).max() <= math.log(10) + rounding
    assert skew_reverse_kl(student, teacher).max() <= math.log(10) + rounding
    assert tvd(student, teacher).max() <= 1 + rounding
    # Pinsker: KL >= 2 tvd^2.
    assert (kl(student, teacher) >= 2 * tvd(student, teacher) ** 2).all()


# --- gradients ---


# The share of adaptive_kl is a constant to autograd, so differences are not its gradient: see the next test.
@each_setting([(name, mix) for name, mix in SETTINGS if name != "adaptive_kl"])
def test_its_gradient_is_the_one_of_differences(name: Divergence, mix: float | None) -> None:
    student, teacher = (logits.requires_grad_() for logits in random_logits(4))
    assert torch.autograd.gradcheck(
        lambda left, right: divergence(name, left, right, temperature=0.5, mix=mix),
        (student, teacher),
    )


@pytest.mark.parametrize("mix", [None, 0.1, 0.8])
def test_the_gradient_of_adaptive_kl_holds_its_share(mix: float | None, device: str) -> None:
    student, teacher = random_logits(26, device=device)
    share = torch.tensor(
        [
            head_share(log_p, log_q, mix or 0.5)
            for log_p, log_q in zip(
                teacher.log_softmax(-1).tolist(), student.log_softmax(-1).tolist(), strict=True
            )
        ],
        dtype=torch.float64,
        device=device,
    ).unsqueeze(1)
    assert share.min() < share.max()
    expected = share * by_autograd("kl", student, teacher)[1]
    expected += (1 - share) * by_autograd("reverse_kl", student, teacher)[1]
    torch.testing.assert_close(by_autograd("adaptive_kl", student, teacher, mix)[1], expected)


def test_the_gradient_of_kl_is_the_difference_of_the_distributions() -> None:
    student, teacher = random_logits(5)
    student.requires_grad_()
    (found,) = torch.autograd.grad(divergence("kl", student, teacher, temperature=2.0).sum(), student)
    torch.testing.assert_close(found, ((student / 2).softmax(-1) - (teacher / 2).softmax(-1)).detach() / 2)


# p = (1/2, 1/2), q = (1/4, 3/4). With two tokens a gradient is (x, -x), and x is dD/dq_0 - dD/dq_1 times
# q_0 q_1 = 3/16.
#   kl: q - p = -1/4.  reverse_kl: ln(1/2) - ln(3/2) = -ln 3.
#   js, m = (3/8, 5/8): 1/2 (ln(2/3) - ln(6/5)) = 1/2 ln(5/9).
#   skew_kl at 1/2: -1/2 (4/3 - 4/5) = -4/15.
#   skew_reverse_kl at 1/2: ln(2/3) - ln(6/5) - 1/2 (2/3 - 6/5) = ln(5/9) + 4/15.
#   adaptive_kl: half of kl and half of reverse_kl.  tvd: (-1 - 1) / 2 = -1.
GRADIENTS: list[tuple[Divergence, float | None, float]] = [
    ("kl", None, -1 / 4),
    ("reverse_kl", None, -3 / 16 * LN3),
    ("js", None, 3 / 32 * (LN5 - 2 * LN3)),
    ("skew_kl", 0.5, -1 / 20),
    ("skew_reverse_kl", 0.5, 3 / 16 * (LN5 - 2 * LN3) + 1 / 20),
    ("adaptive_kl", None, -1 / 8 - 3 / 32 * LN3),
    ("tvd", None, -3 / 16),
]


@pytest.mark.parametrize(("name", "mix", "value"), GRADIENTS)
def test_gradients_worked_out_by_hand(name: Divergence, mix: float | None, value: float, device: str) -> None:
    student, teacher = log_probs([1 / 4, 3 / 4], device), log_probs([1 / 2, 1 / 2], device)
    for _, gradient in (by_autograd(name, student, teacher, mix), in_place(name, student, teacher, mix)):
        assert gradient[0].tolist() == pytest.approx([value, -value], rel=ON_PAPER)


def test_where_both_are_equal_tvd_has_no_slope(device: str) -> None:
    # Signs of q - p are (1, -1, 0). dD/dlog q is q times half of them: (1/4, -1/8, 0), which adds up to 1/8;
    # through the softmax: (1/4 - 1/16, -1/8 - 1/32, -1/32).
    student, teacher = log_probs([1 / 2, 1 / 4, 1 / 4], device), log_probs([1 / 4, 1 / 2, 1 / 4], device)
    student.requires_grad_()
    (gradient,) = torch.autograd.grad(tvd(student, teacher).sum(), student)
    assert gradient[0].tolist() == pytest.approx([1 / 4, -1 / 8, 0])
    _, gradient = divergence_and_gradient("tvd", student, teacher)
    assert gradient[0].tolist() == pytest.approx([3 / 16, -5 / 32, -1 / 32])


@every_setting
@pytest.mark.parametrize(("rows", "columns"), [(0, 5), (4, 1), (1, 2), (7, 13)])
def test_in_place_it_equals_autograd_of_the_definition(
    name: Divergence, mix: float | None, rows: int, columns: int, device: str
) -> None:
    for seed, scale in enumerate((0.01, 5.0, 30.0)):
        logits = random_logits(seed, rows, columns, scale=scale, device=device)
        assert_in_place_equals(name, *logits, mix)


@every_setting
def test_in_place_it_equals_autograd_where_ids_are_masked(
    name: Divergence, mix: float | None, device: str
) -> None:
    student, teacher = random_logits(30, 7, 13, device=device)
    masked = torch.arange(13, device=device) % 3 == 1
    student, teacher = student.masked_fill(masked, MASKED), teacher.masked_fill(masked, MASKED)
    _, gradient = assert_in_place_equals(name, student, teacher, mix)
    assert gradient[:, masked].eq(0).all()


@every_setting
@pytest.mark.parametrize(
    "kind", ["equal", "uniform teacher", "uniform student", "one-hot", "other one-hot", "near"]
)
def test_in_place_it_equals_autograd_at_special_distributions(
    name: Divergence, mix: float | None, kind: str, device: str
) -> None:
    student, teacher = random_logits(31, 7, 13, device=device)
    peak = 40 * torch.eye(13, device=device, dtype=torch.float64)[:7]
    student, teacher = {
        "equal": (teacher, teacher),
        "uniform teacher": (student, torch.zeros_like(teacher)),
        "uniform student": (torch.zeros_like(student), teacher),
        "one-hot": (student + peak, teacher + peak),
        "other one-hot": (student + peak.flip(0), teacher + peak),
        "near": (teacher + 1e-6 * student, teacher),
    }[kind]
    assert_in_place_equals(name, student, teacher, mix)


def assert_in_place_equals(
    name: Divergence, student: Tensor, teacher: Tensor, mix: float | None
) -> tuple[Tensor, Tensor]:
    """To what both may round."""
    items, gradient = in_place(name, student, teacher, mix)
    expected_items, expected_gradient = by_autograd(name, student, teacher, mix)
    bounds = divergence_bounds(name, student, teacher, mix, dtype=torch.float64)
    assert_within(items, expected_items, 2 * bounds.items)
    assert_within(gradient, expected_gradient, 2 * bounds.gradient)
    return items, gradient


@every_setting
@pytest.mark.parametrize(
    ("scale", "rounded"), [(0.3, False), (12.0, False), (3.0, True)], ids=["flat", "steep", "of bfloat16"]
)
def test_in_float32_neither_form_loses_more_than_rounding_may(
    name: Divergence, mix: float | None, scale: float, rounded: bool, device: str
) -> None:
    logits = random_logits(32, 5, 3000, scale=scale, dtype=torch.float32, device=device)
    student, teacher = (each.bfloat16().float() if rounded else each for each in logits)
    items, gradient = by_autograd(name, student.double(), teacher.double(), mix)
    bounds = divergence_bounds(name, student, teacher, mix, dtype=torch.float32)
    for found in (by_autograd(name, student, teacher, mix), in_place(name, student, teacher, mix)):
        assert found[0].dtype == found[1].dtype == torch.float32
        assert_within(found[0], items, bounds.items)
        assert_within(found[1], gradient, bounds.gradient)


@every_name
@pytest.mark.parametrize("at_once", [1, 40])
def test_in_place_it_is_the_same_in_blocks_of_any_size(
    name: Divergence, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dskd.nn.elementwise._AT_ONCE", at_once)
    assert_in_place_equals(name, *random_logits(37, 7, 13), None)


def test_in_place_the_gradient_lies_where_the_students_log_probabilities_were(device: str) -> None:
    for name in NAMES:
        student, teacher = (logits.log_softmax(-1) for logits in random_logits(33, device=device))
        _, gradient = divergence_and_gradient(name, student, teacher)
        assert gradient.data_ptr() == student.data_ptr()


@every_name
def test_in_place_nothing_is_recorded_for_autograd(name: Divergence) -> None:
    student, teacher = (logits.requires_grad_().log_softmax(-1) for logits in random_logits(34))
    for found in divergence_and_gradient(name, student, teacher):
        assert found.grad_fn is None
        assert not found.is_inference()


# --- the head of adaptive_kl ---


def test_of_equal_probabilities_the_lowest_ids_are_the_tail(device: str) -> None:
    # Eight of 1/8: the first four add up to 1/2. The student is apart by two logits of which the exps add up
    # to 2, so that the other six stay 1/8: in the head (a = 1), then in the tail (a = 0).
    teacher = torch.zeros(2, 8, device=device, dtype=torch.float64)
    student = torch.zeros_like(teacher)
    student[0, 4] = student[1, 0] = math.log(1.9)
    student[0, 5] = student[1, 1] = math.log(0.1)
    forward, reverse = divergence("kl", student, teacher), divergence("reverse_kl", student, teacher)
    assert (forward - reverse).abs().min() > 1e-3
    expected = torch.stack([forward[0], reverse[1]])
    torch.testing.assert_close(divergence("adaptive_kl", student, teacher), expected)
    torch.testing.assert_close(in_place("adaptive_kl", student, teacher)[0], expected)


@pytest.mark.parametrize("largest", [1, 5, 1024])
@pytest.mark.parametrize("mix", [1e-6, 0.5, 0.999])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_head_is_the_same_however_many_of_the_largest_are_looked_at(
    largest: int, mix: float, dtype: torch.dtype, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dskd.nn.divergences._LARGEST", largest)
    for seed in range(5):
        # Whole numbers, so that many are equal.
        student, teacher = random_logits(seed, 11, 13, scale=1.5, dtype=dtype, device=device)
        teacher = teacher.round()
        found, _ = in_place("adaptive_kl", student, teacher, mix)
        expected = by_loop("adaptive_kl", student, teacher, mix=mix)
        # The share is a quotient of sums of 13 gaps, off by some hundred roundings of their p and q each; a
        # token more or less in the head is a hundredth of it and more.
        near = 1024 * unit(dtype)
        assert found.tolist() == pytest.approx(expected, rel=near, abs=near)
        assert divergence("adaptive_kl", student, teacher, mix=mix).tolist() == pytest.approx(
            expected, rel=near, abs=near
        )


@pytest.mark.parametrize("scale", [0.01, 1.0, 4.0])
def test_a_head_of_more_than_the_largest_looked_at(scale: float, device: str) -> None:
    student, teacher = random_logits(35, 3, 5000, scale=scale, device=device)
    found, _ = in_place("adaptive_kl", student, teacher)
    assert_items(found, by_loop("adaptive_kl", student, teacher), "adaptive_kl", (student, teacher))


# --- what is extreme ---


@every_name
def test_float32_logits_give_float32_close_to_float64(name: Divergence, device: str) -> None:
    student, teacher = random_logits(13, dtype=torch.float32, device=device)
    found = divergence(name, student, teacher, temperature=1.5)
    assert found.dtype == torch.float32
    expected = by_loop(name, student, teacher, temperature=1.5)
    assert_items(found, expected, name, (student / 1.5, teacher / 1.5))


@every_name
def test_heads_in_bfloat16_lose_no_more_than_their_logits_did(name: Divergence, device: str) -> None:
    generator = torch.Generator().manual_seed(14)
    hidden = torch.randn(6, 4, generator=generator).bfloat16().to(device)
    student, teacher = (
        Head(torch.randn(7, 4, generator=generator).bfloat16().to(device)).logits(hidden) for _ in range(2)
    )
    found = divergence(name, student, teacher)
    assert found.dtype == torch.float32
    assert_items(found, by_loop(name, student, teacher), name, (student, teacher))


EXTREMES = {
    "both certain, of the same": ([1e4, 0.0, MASKED], [1e4, 0.0, MASKED]),
    "both certain, of another": ([0.0, 1e4, MASKED], [1e4, 0.0, MASKED]),
    "the teacher certain": ([0.0, 0.5, MASKED], [1e4, 0.0, MASKED]),
    "the student certain": ([1e4, 0.0, MASKED], [0.0, 0.5, MASKED]),
    "all but one masked": ([-1.0, MASKED, MASKED], [1.0, MASKED, MASKED]),
    "very negative": ([-2e4, -1e4, MASKED], [-1e4, -2e4, MASKED]),
    "below the least float32": ([0.0, -100.0, -95.0, MASKED], [0.0, -95.0, -100.0, MASKED]),
    "below it on one side": ([-95.0, 0.0, -3.0, MASKED], [0.0, -95.0, -200.0, MASKED]),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@every_setting
def test_extreme_logits_have_a_finite_value_and_gradient(
    name: Divergence, mix: float | None, dtype: torch.dtype, device: str
) -> None:
    for case, logits in EXTREMES.items():
        student, teacher = (torch.tensor([row], dtype=dtype, device=device) for row in logits)
        expected = by_loop(name, student, teacher, mix=mix)
        for form in (by_autograd, in_place):
            found, gradient = form(name, student, teacher, mix)
            assert_items(found, expected, name, (student, teacher), mix)
            assert gradient.isfinite().all(), (case, gradient)
            assert gradient[0, torch.tensor(logits[0]) == MASKED].eq(0).all(), (case, gradient)


@every_setting
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_ids_masked_on_one_side_only_have_a_finite_gradient(
    name: Divergence, mix: float | None, dtype: torch.dtype, device: str
) -> None:
    student, teacher = random_logits(36, dtype=dtype, device=device)
    teacher[:, 2] = student[:, 4] = MASKED
    for found, gradient in (by_autograd(name, student, teacher, mix), in_place(name, student, teacher, mix)):
        assert found.isfinite().all(), found
        assert gradient.isfinite().all(), gradient


@every_setting
def test_columns_masked_on_both_sides_do_not_exist(name: Divergence, mix: float | None) -> None:
    student, teacher = random_logits(15)
    masked = torch.tensor([False, True, False, False, True, False, False])
    found = divergence(
        name, student.masked_fill(masked, MASKED), teacher.masked_fill(masked, MASKED), mix=mix
    )
    torch.testing.assert_close(found, divergence(name, student[:, ~masked], teacher[:, ~masked], mix=mix))


# --- no probability ---

# What the student is not allowed to say and the teacher says, the other way round, and what neither says.
SIDES: dict[str, tuple[list[float], list[float]]] = {
    "neither": ([1.0, 0.0, NONE, 0.3], [0.0, 1.0, NONE, 0.5]),
    "the teacher not": ([1.0, 0.0, 2.0, 0.3], [0.0, 1.0, NONE, 0.5]),
    "the student not": ([1.0, 0.0, NONE, 0.3], [0.0, 1.0, 2.0, 0.5]),
    "each something else not": ([1.0, 0.0, NONE, NONE], [NONE, 1.0, 2.0, NONE]),
    "nothing in common": ([NONE, 0.0, NONE, NONE], [0.0, NONE, NONE, NONE]),
    "everything": ([3.0, 2.0, 1.0, 0.0], [0.0, 1.0, 2.0, 3.0]),
}
NO_KL = ["the student not", "each something else not", "nothing in common"]
NO_REVERSE_KL = ["the teacher not", "each something else not", "nothing in common"]
INFINITE: dict[str, list[str]] = {
    "kl": NO_KL,
    "reverse_kl": NO_REVERSE_KL,
    "adaptive_kl": sorted({*NO_KL, *NO_REVERSE_KL}),
}


def sides(dtype: torch.dtype, device: str) -> tuple[Tensor, Tensor]:
    student, teacher = (
        torch.tensor([rows[side] for rows in SIDES.values()], dtype=dtype, device=device) for side in (0, 1)
    )
    return student, teacher


@every_setting
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_it_is_infinite_where_its_definition_is_and_there_alone(
    name: Divergence, mix: float | None, dtype: torch.dtype, device: str
) -> None:
    student, teacher = sides(dtype, device)
    expected = by_loop(name, student, teacher, mix=mix)
    infinite = [case for case, value in zip(SIDES, expected, strict=True) if value == math.inf]
    assert sorted(infinite) == sorted(INFINITE.get(name, []))
    for form in (by_autograd, in_place):
        found, gradient = form(name, student, teacher, mix)
        assert found.tolist() == pytest.approx(expected, rel=64 * unit(dtype), abs=64 * unit(dtype))
        assert gradient.isfinite().all(), gradient
        assert gradient[found.isinf()].eq(0).all()
        has_choice = (student > NONE).sum(-1) > 1
        assert gradient[found.isfinite() & has_choice].ne(0).any(-1).all()
        assert gradient[student == NONE].eq(0).all()


@every_setting
def test_of_a_masked_vocabulary_it_is_the_one_of_the_rest(
    name: Divergence, mix: float | None, device: str
) -> None:
    logits = random_logits(38, 7, 13, device=device)
    masked = torch.arange(13, device=device) % 3 == 1
    rest = [side[:, ~masked] for side in logits]
    student, teacher = (side.masked_fill(masked, NONE) for side in logits)
    bounds = divergence_bounds(name, rest[0], rest[1], mix, dtype=torch.float64)
    items, slopes = by_autograd(name, rest[0], rest[1], mix)
    for form in (by_autograd, in_place):
        found, gradient = form(name, student, teacher, mix)
        assert_within(found, items, 2 * bounds.items)
        assert_within(gradient[:, ~masked], slopes, 2 * bounds.gradient)
        assert gradient[:, masked].eq(0).all()


@every_name
def test_rows_that_are_left_out_leave_no_trace_though_they_are_infinite(
    name: Divergence, device: str
) -> None:
    student, teacher = (side.requires_grad_() for side in sides(torch.float64, device))
    items = divergence(name, student, teacher)
    kept = torch.where(items.detach().isfinite(), items, 0)
    for gradient in torch.autograd.grad(kept.sum(), [student, teacher]):
        assert gradient.isfinite().all(), gradient


def test_a_kl_that_counts_0_times_may_be_infinite(device: str) -> None:
    # The head is the half, where both are equal: a = 0. KL(p, q) is infinite, KL(q, p) is 1/2 ln 2. The
    # gradient is q (log q - log p - KL(q, p)): (-1/4 ln 2, 1/4 ln 2, 0).
    student, teacher = log_probs([1 / 2, 1 / 2, 0], device), log_probs([1 / 2, 1 / 4, 1 / 4], device)
    for form in (by_autograd, in_place):
        found, gradient = form("adaptive_kl", student, teacher)
        assert found.tolist() == pytest.approx([LN2 / 2], rel=ON_PAPER)
        assert gradient[0].tolist() == pytest.approx([-LN2 / 4, LN2 / 4, 0], rel=ON_PAPER)


def test_a_share_that_rounds_to_1_leaves_the_other_kl_alone(device: str) -> None:
    # What the teacher never says the student says once in 10^20: KL(q, p) is infinite, and a rounds to 1.
    # KL(p, q) is 1/2 ln 2 + 1/2 ln(2/3), its gradient q - p.
    student, teacher = log_probs([1 / 4, 3 / 4, 1e-20], device), log_probs([1 / 2, 1 / 2, 0], device)
    for form in (by_autograd, in_place):
        found, gradient = form("adaptive_kl", student, teacher, 0.1)
        assert found.tolist() == pytest.approx([LN2 - LN3 / 2], rel=ON_PAPER)
        assert gradient[0].tolist() == pytest.approx([-1 / 4, 1 / 4, 0], rel=ON_PAPER, abs=1e-19)


@every_name
def test_what_is_not_a_number_stays_none(name: Divergence, device: str) -> None:
    student, teacher = sides(torch.float32, device)
    teacher[0, 1] = student[5, 2] = math.nan
    for form in (by_autograd, in_place):
        found, gradient = form(name, student, teacher)
        assert found.isnan().tolist() == [row in (0, 5) for row in range(6)]
        assert gradient[1:5].isfinite().all()


# --- dtypes ---


@every_setting
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_is_computed_in_float32(
    name: Divergence, mix: float | None, dtype: torch.dtype, device: str
) -> None:
    options = {} if mix is None else {"mix": mix}
    half = random_logits(43, dtype=dtype, device=device)
    wide = [side.float() for side in half]

    def of(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        """From logits, and of what lies there as logarithms."""
        student = student.clone().requires_grad_()
        found = torch.stack(
            [divergence(name, student, teacher, mix=mix), DIVERGENCES[name](student, teacher, **options)]
        )
        (gradient,) = torch.autograd.grad(found.sum(), student)
        return found, gradient

    (found, gradient), (expected, slopes) = of(*half), of(*wide)
    assert (found.dtype, gradient.dtype) == (torch.float32, dtype)
    assert torch.equal(found, expected)
    # Of two parts, each is rounded as it is given back, and their sum.
    torch.testing.assert_close(gradient.float(), slopes, rtol=4 * unit(dtype), atol=4 * unit(dtype))
    for one, other in zip(
        divergence_and_gradient(name, *half, mix=mix),
        divergence_and_gradient(name, *wide, mix=mix),
        strict=True,
    ):
        assert one.dtype == torch.float32
        assert torch.equal(one, other)


@every_name
def test_the_wider_dtype_of_both_is_computed_in(name: Divergence, device: str) -> None:
    student, teacher = random_logits(44, dtype=torch.bfloat16, device=device)
    expected = divergence(name, student.double(), teacher.double())
    for sides_of_1 in ((student.double(), teacher), (student, teacher.double())):
        found = divergence(name, *sides_of_1)
        assert found.dtype == torch.float64
        assert torch.equal(found, expected)
        logs = [side.double().log_softmax(-1).to(side.dtype) for side in sides_of_1]
        assert {made.dtype for made in divergence_and_gradient(name, *logs)} == {torch.float64}


# --- what is refused ---


@pytest.mark.parametrize("name", MIXED)
@pytest.mark.parametrize("mix", [0.0, 1.0, math.nan])
def test_a_mix_that_is_not_between_0_and_1_is_refused(name: Divergence, mix: float) -> None:
    student, teacher = random_logits(40)
    says = rf"mix of {name} is {mix}; give a number above 0 and below 1, or None for {DEFAULTS[name]}"
    for call in (divergence, divergence_and_gradient):
        with pytest.raises(ValueError, match=says):
            call(name, student, teacher, mix=mix)
    with pytest.raises(ValueError, match=says):
        DIVERGENCES[name](student, teacher, mix=mix)


@pytest.mark.parametrize("name", PLAIN)
def test_a_mix_of_a_divergence_that_has_none_is_refused(name: Divergence) -> None:
    student, teacher = random_logits(41)
    for call in (divergence, divergence_and_gradient):
        with pytest.raises(
            ValueError, match=rf"mix is 0\.5, but {name} has none; leave it None, or take js, "
        ):
            call(name, student, teacher, mix=0.5)


def test_an_unknown_divergence_is_refused() -> None:
    student, teacher = random_logits(42)
    for call in (divergence, divergence_and_gradient):
        with pytest.raises(
            ValueError, match="there is no divergence 'jsd'; take one of kl, reverse_kl, js, "
        ):
            call("jsd", student, teacher)  # type: ignore[arg-type]


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan, math.inf])
def test_a_temperature_that_is_not_positive_and_finite_is_refused(temperature: float) -> None:
    student, teacher = random_logits(45)
    with pytest.raises(ValueError, match=rf"temperature={temperature}; it is a number above 0"):
        divergence("kl", student, teacher, temperature=temperature)
    with pytest.raises(ValueError, match=rf"temperature={temperature}; it is a number above 0"):
        SharedVocabulary(temperature=temperature)


def test_a_loss_refuses_a_mix_as_its_divergence_does() -> None:
    with pytest.raises(ValueError, match=r"mix of js is 1\.5; give a number above 0 and below 1"):
        SharedVocabulary(divergence="js", mix=1.5)


def test_sides_of_different_shapes_are_refused() -> None:
    student, teacher = random_logits(46)
    for call in (divergence, divergence_and_gradient):
        with pytest.raises(ValueError, match=r"student's are \[6, 7\] and the teacher's \[1, 7\]; both are"):
            call("kl", student, teacher[:1])
