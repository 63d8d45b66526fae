"""The kernels against the definitions in float64; tests/test_kernels.py runs this in a process of its own.

On a GPU they are compiled; else `TRITON_INTERPRET=1` has to be set before Triton is imported anywhere.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import pytest
import torch

from dskd.nn import (
    Batch,
    CrossEntropy,
    Head,
    Objective,
    SharedVocabulary,
    States,
    Teacher,
    TeacherModel,
    VocabularyMaps,
    divergence,
    kernels,
)
from dskd.nn.divergences import checked_divergence, gradient_by_logits
from rounding import (
    assert_loses_no_more,
    assert_within,
    divergence_bounds,
    losses_by_rounding,
    probabilities_bound,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from dskd.nn.divergences import Divergence

# NumPy, which interprets, warns of what is not chosen afterwards, and of how older Tritons ask it.
pytestmark = [
    pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:Conversion of an array:DeprecationWarning"),
]

BLOCK = 256
"""Numbers at once: the fewest there can be, so that few make several blocks."""

MASKED = -1e30
MIXED: list[Divergence] = ["js", "skew_kl", "skew_reverse_kl"]
NAMES: list[Divergence] = ["kl", "reverse_kl", "tvd", *MIXED]
SHAPES = [(1, 1), (3, 7), (2, BLOCK), (2, BLOCK + 1), (1, 4 * BLOCK - 21)]

Setting: TypeAlias = "tuple[Divergence, float, float | None]"
SETTINGS: list[Setting] = [
    *((name, temperature, None) for name in NAMES for temperature in (0.4, 3.0)),
    *((name, 1.0, mix) for name in MIXED for mix in (0.03, 0.9)),
]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "_BLOCK", BLOCK)


@pytest.fixture
def used(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The kernels that were called, by name."""
    called = []
    for name in ("divergence_and_gradient", "log_probs_and_probabilities"):
        kernel = getattr(kernels, name)

        def spy(*arguments: Tensor, name: str = name, kernel: object = kernel, **options: object) -> object:
            called.append(name)
            return kernel(*arguments, **options)  # type: ignore[operator]

        monkeypatch.setattr(kernels, name, spy)
    return called


def sides_of(rows: int, columns: int, device: str) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(columns)
    sides = torch.randn(2, rows, columns, generator=generator).mul_(3)
    return sides[0].to(device), sides[1].to(device)


def assert_of_the_definition(
    found: tuple[Tensor, Tensor],
    name: Divergence,
    sides: tuple[Tensor, Tensor],
    temperature: float = 1.0,
    mix: float | None = None,
) -> None:
    """Value and gradient, by autograd in float64, but for what rounding may do.

    A logit is multiplied with a rounded reciprocal of the temperature. What that rounds of its size is once
    more what the bound has for differences of logits.
    """
    student, teacher = ((side.double() / temperature).clamp(min=MASKED) for side in sides)
    student.requires_grad_()
    items = divergence(name, student, teacher, mix=mix)
    (gradient,) = torch.autograd.grad(items.sum(), student)
    bounds = divergence_bounds(name, student, teacher, mix, dtype=torch.float32)
    times = 1 if temperature == 1 else 2
    assert_within(found[0], items.detach(), times * bounds.items)
    assert_within(found[1], gradient, times * bounds.gradient)


# ---- Divergences -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_value_and_gradient_are_those_of_the_definition(
    name: Divergence, shape: tuple[int, int], used: list[str], device: str
) -> None:
    sides = sides_of(*shape, device)
    assert_of_the_definition(gradient_by_logits(name, *sides), name, sides)
    assert used == ["divergence_and_gradient"]


@pytest.mark.parametrize(("name", "temperature", "mix"), SETTINGS)
def test_so_they_are_with_a_temperature_and_with_a_mixture(
    name: Divergence, temperature: float, mix: float | None, used: list[str], device: str
) -> None:
    sides = sides_of(2, 300, device)
    found = gradient_by_logits(name, *sides, temperature=temperature, mix=mix)
    assert_of_the_definition(found, name, sides, temperature, mix)
    assert used == ["divergence_and_gradient"]


@pytest.mark.parametrize("offset", [-900.0, 5e4])
@pytest.mark.parametrize("name", ["kl", "skew_reverse_kl"])
def test_what_all_logits_have_more_says_nothing(name: Divergence, offset: float, device: str) -> None:
    sides = sides_of(2, 300, device)
    rounded = tuple((side + offset) - offset for side in sides)
    found = gradient_by_logits(name, sides[0] + offset, sides[1] + offset)
    assert_of_the_definition(found, name, (rounded[0], rounded[1]))


@pytest.mark.parametrize("nothing", [MASKED, -torch.inf])
@pytest.mark.parametrize("name", NAMES)
def test_what_neither_side_has_is_not_there(name: Divergence, nothing: float, device: str) -> None:
    sides = sides_of(2, 3 * BLOCK, device)
    gone = torch.zeros(3 * BLOCK, dtype=torch.bool, device=device)
    gone[::5] = True
    gone[:BLOCK] = True  # a whole block, the first
    for side in sides:
        side[:, gone] = nothing
    items, gradient = gradient_by_logits(name, *sides)
    left = sides[0][:, ~gone], sides[1][:, ~gone]
    assert_of_the_definition((items, gradient[:, ~gone]), name, left)
    assert not gradient[:, gone].any()


@pytest.mark.parametrize("name", NAMES)
def test_what_one_side_has_alone_makes_a_divergence_infinite_or_is_counted(
    name: Divergence, device: str
) -> None:
    sides = sides_of(3, 300, device)
    sides[0][1, 7] = sides[1][2, 280] = -torch.inf
    items, gradient = gradient_by_logits(name, *sides)
    endless = {"kl": 1, "reverse_kl": 2}.get(name)
    assert items.isinf().tolist() == [row == endless for row in range(3)]
    assert gradient.isfinite().all()
    if endless is not None:
        assert not gradient[endless].any()
    finite = [row for row in range(3) if row != endless]
    # Beside the others e^-80 is nothing, and the bound knows what it is.
    near = sides[0][finite].clamp(min=-80), sides[1][finite].clamp(min=-80)
    assert_of_the_definition((items[finite], gradient[finite]), name, near)


@pytest.mark.parametrize("name", NAMES)
def test_a_side_that_equals_the_other_is_at_no_distance(name: Divergence, device: str) -> None:
    teacher, _ = sides_of(2, 300, device)
    sides = teacher, teacher.clone()
    assert_of_the_definition(gradient_by_logits(name, *sides), name, sides)


@pytest.mark.parametrize("side", [0, 1], ids=["student", "teacher"])
@pytest.mark.parametrize("name", NAMES)
def test_what_is_no_number_is_passed_on(name: Divergence, side: int, device: str) -> None:
    sides = sides_of(2, 300, device)
    sides[side][0, 270] = torch.nan
    items, gradient = gradient_by_logits(name, *sides)
    assert items.isnan().tolist() == [True, False]
    assert not gradient[1].isnan().any()


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_the_gradient_may_lie_where_the_logits_were(name: Divergence, overwrite: bool, device: str) -> None:
    sides = sides_of(2, 300, device)
    given = sides[0].clone(), sides[1].clone()
    found = gradient_by_logits(name, *given, overwrite=overwrite)
    assert_of_the_definition(found, name, sides)
    assert (found[1].data_ptr() == given[0].data_ptr()) is overwrite
    assert overwrite or torch.equal(given[0], sides[0])
    assert torch.equal(given[1], sides[1])


def test_rows_may_be_parts_of_wider_ones(used: list[str], device: str) -> None:
    wide = sides_of(4, 700, device)
    sides = wide[0][1:, 5:305], wide[1][:3, 3:303]
    assert_of_the_definition(gradient_by_logits("kl", *sides), "kl", sides)
    around = wide[0].clone()
    gradient_by_logits("js", *sides, overwrite=True)
    around[1:, 5:305] = sides[0]
    assert torch.equal(wide[0], around)
    assert len(used) == 2


def test_adaptive_kl_is_left_to_pytorch(used: list[str], device: str) -> None:
    sides = sides_of(2, 300, device)
    assert_of_the_definition(gradient_by_logits("adaptive_kl", *sides), "adaptive_kl", sides)
    assert not used


def test_options_are_checked_before_a_kernel_runs(device: str) -> None:
    with pytest.raises(ValueError, match=r"mix is 0\.5, but kl has none"):
        gradient_by_logits("kl", *sides_of(2, 300, device), mix=0.5)
    assert checked_divergence("js") == {"mix": 0.5}


# ---- Log-probabilities -----------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [1.0, 0.4, 3.0])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_log_probabilities_at_ids_and_probabilities(
    shape: tuple[int, int], temperature: float, device: str
) -> None:
    logits, _ = sides_of(*shape, device)
    ids = torch.arange(2 * shape[0], device=device).mul_(7919).remainder_(shape[1]).view(-1, 2)
    found, probs = kernels.log_probs_and_probabilities(logits, ids, temperature=temperature)
    quotients = logits.double() / temperature
    exact = quotients.log_softmax(-1)
    bound = probabilities_bound(quotients, dtype=torch.float32) * (1 if temperature == 1 else 2)
    assert_within(probs, exact.exp(), bound)
    assert_within(found, exact.gather(1, ids), (bound / exact.exp()).gather(1, ids))


@pytest.mark.parametrize("nothing", [MASKED, -torch.inf])
def test_of_what_cannot_be_said_there_is_no_probability(nothing: float, device: str) -> None:
    logits, _ = sides_of(2, 300, device)
    logits[:, 280:] = nothing
    ids = torch.tensor([[0, 280], [299, 5]], device=device)
    found, probs = kernels.log_probs_and_probabilities(logits, ids)
    assert found[0, 1] <= MASKED
    assert found[1, 0] <= MASKED
    assert not probs[:, 280:].any()
    quotients = logits[:, :280].double()
    assert_within(probs[:, :280], quotients.softmax(-1), probabilities_bound(quotients, dtype=torch.float32))


# ---- Who takes them --------------------------------------------------------------------------------------


def test_what_a_kernel_cannot_read_it_does_not_take(monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    student, teacher = sides_of(2, 300, device)
    assert kernels.takes(student, teacher)
    for left, right in (
        (student, teacher.double()),
        (student.bfloat16(), teacher.bfloat16()),
        (student, teacher[:, :299]),
        (student, teacher.T.contiguous().T),
        (student[:0], teacher[:0]),
        (student[:, :0], teacher[:, :0]),
        (student[None], teacher[None]),
    ):
        assert not kernels.takes(left, right)
    monkeypatch.setenv("DSKD_KERNELS", "0")
    assert not kernels.takes(student, teacher)


# ---- In a loss -------------------------------------------------------------------------------------------


def objective_and_leaves(dtype: torch.dtype, device: str) -> tuple[Objective, Batch, Mapping[str, Tensor]]:
    """Cross-entropy and the shared vocabulary, over heads with ids that nobody can emit."""
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(device, dtype)

    unreachable = (torch.arange(300) >= 290).to(device)
    weight, hidden = drawn(300, 8).requires_grad_(), drawn(6, 8).requires_grad_()
    head = Head(weight, unreachable=unreachable)
    overlap = torch.arange(280, device=device)[:, None].expand(-1, 2)
    to_student = torch.arange(320, device=device).masked_fill_(torch.arange(320, device=device) >= 280, -1)
    teacher = TeacherModel(Head(drawn(320, 5)), VocabularyMaps(to_student=to_student, overlap=overlap))
    labels = torch.randint(290, (6,), generator=generator).to(device)
    paired = torch.tensor([0, 2, 3, 5], device=device)
    batch = Batch(States(hidden, labels, head), {"teacher": Teacher(teacher, drawn(4, 5), paired)})
    losses = [CrossEntropy(), SharedVocabulary(divergence="js", temperature=2.0)]
    return Objective(losses, head, teacher, chunk_memory=1), batch, {"weight": weight, "hidden": hidden}


def test_a_fused_loss_by_kernels_is_the_definition(used: list[str], device: str) -> None:
    def computed(dtype: torch.dtype, *, fused: bool) -> Mapping[str, Tensor]:
        objective, batch, leaves = objective_and_leaves(dtype, device)
        objective.fused = fused
        loss = objective(batch).loss
        gradients = torch.autograd.grad(loss, list(leaves.values()))
        return {"loss": loss.detach(), **dict(zip(leaves, gradients, strict=True))}

    exact = computed(torch.float64, fused=False)
    assert not used
    allowed = losses_by_rounding(lambda: computed(torch.float32, fused=False), exact)
    assert not used
    assert_loses_no_more(computed(torch.float32, fused=True), exact, allowed)
    assert set(used) == {"divergence_and_gradient", "log_probs_and_probabilities"}
