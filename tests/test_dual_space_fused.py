"""Fused dual-space distillation against its definition: value and every gradient, and what it keeps.

The definition, `dual_space`, is held against its formulas in tests/test_dual_space.py.
"""

from __future__ import annotations

import gc
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from dskd.nn import (
    DIVERGENCES,
    DSKD_UNGATED,
    DualSpaceLoss,
    DualSpaceOptions,
    Head,
    LossParts,
    Reduction,
    dual_space,
    fused_dual_space,
    teacher_statistics,
    weighted,
)
from dskd.nn.linear import ChunkMemory
from dskd.nn.losses.known_teacher import KnownTeacherSpace, block_sizes
from dskd.nn.losses.spaces import Comparison
from dskd.nn.projectors import carried
from leaves import PLAIN, TRANSFORMS, Leaves, Transforms, backward, clearly_said, gradients, random_leaves
from rounding import assert_loses_no_more, losses_by_rounding
from test_dual_space import OPTIONS, TABLE, ungated, with_projectors

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch import Tensor

    from dskd.nn.divergences import Divergence

REDUCTION = Reduction(labels=31, pairs=40, alpha=0.3)

MORE: dict[str, DualSpaceOptions] = {
    **OPTIONS,
    "gated mean": ungated(gate="gold", gated_mean=True),
    "gated mean without a gate": ungated(gated_mean=True),
    "gated mean without a gate, unmapped dropped": ungated(gated_mean=True, drop_unmapped=True),
    "gated mean in the teacher's space": ungated(
        spaces="teacher", gate="gold", gated_mean=True, drop_unmapped=True
    ),
    "gated mean, lifted": ungated(gate="gold", gated_mean=True, gate_threshold=0.05),
    "all that speaks of the overlap": ungated(
        t2s_target="distribution",
        target="exact",
        columns="overlap",
        s2t_columns="overlap",
        temperature=1.3,
        scale_by_temperature_squared=True,
        drop_unmapped=True,
        gate="prediction",
        gate_threshold=0.6,
    ),
}


def by_definition(
    case: Leaves, options: DualSpaceOptions, reduction: Reduction = REDUCTION, **more: Any
) -> LossParts:
    states = replace(case.states(), **more)
    terms = dual_space(states, case.by_name["to_student"], case.by_name["to_teacher"], case.maps, options)
    pairs = len(case.paired)
    kept = pairs - int(terms.counts["unmapped"]) if options.drop_unmapped else pairs
    return weighted(terms, options.weights(reduction, kept, int(terms.counts.get("gated", kept))))


def by_fused(
    case: Leaves,
    options: DualSpaceOptions,
    reduction: Reduction = REDUCTION,
    chunk_memory: int = 0,
    **more: Any,
) -> LossParts:
    """In chunks of 16 rows, the fewest that there are, unless told otherwise."""
    return fused_dual_space(
        replace(case.states(), **more),
        case.by_name["to_student"],
        case.by_name["to_teacher"],
        case.maps,
        options,
        reduction=reduction,
        chunk_memory=chunk_memory,
    )


def assert_equal(
    case: Leaves,
    options: DualSpaceOptions,
    reduction: Reduction = REDUCTION,
    chunk_memory: int = 0,
    **more: Any,
) -> None:
    """Loss, sums, counts, and the gradient of every leaf that wants one: see `assert_equal_gradients`."""
    found = by_fused(case, options, reduction, chunk_memory, **more)
    expected = by_definition(case, options, reduction)
    torch.testing.assert_close(found.loss, expected.loss, rtol=1e-10, atol=1e-13)
    assert set(found.sums) == set(expected.sums)
    for name, value in expected.sums.items():
        torch.testing.assert_close(found.sums[name], value, rtol=1e-10, atol=1e-12)
        assert not found.sums[name].requires_grad
    counts = {name: int(value) for name, value in expected.counts.items()}
    assert {name: int(value) for name, value in found.counts.items()} == counts
    assert_equal_gradients(gradients(found.loss, case.by_name), gradients(expected.loss, case.by_name))


def assert_equal_gradients(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """To 1e-10 of each norm, a million roundings; where it cancels, to a thousand of the largest of all."""
    largest = max(float(one.norm()) for one in expected.values())
    for name, one in expected.items():
        gap, size = float((found[name] - one).norm()), float(one.norm())
        assert gap <= 1e-10 * size + 1e-13 * largest, (name, gap, size)


# ---- Value and every gradient ----------------------------------------------------------------------------


@pytest.mark.parametrize("options", MORE.values(), ids=MORE)
@pytest.mark.parametrize("transforms", TRANSFORMS.values(), ids=TRANSFORMS)
def test_value_and_every_gradient_equal_the_definition(
    transforms: tuple[Transforms, Transforms], options: DualSpaceOptions, device: str
) -> None:
    """In three chunks of uneven size, with positions that no pair has."""
    case = random_leaves(1, labels=50, pairs=37, sizes=(19, 13), transforms=transforms, device=device)
    assert_equal(case, options)


@pytest.mark.parametrize("options", MORE.values(), ids=MORE)
@pytest.mark.parametrize("name", DIVERGENCES)
def test_every_divergence_with_every_option(name: Divergence, options: DualSpaceOptions, device: str) -> None:
    if options.target == "exact" and options.columns == "all" and name in ("reverse_kl", "adaptive_kl"):
        return  # refused, as infinite
    options = replace(options, divergence=name, mix=None)
    case = random_leaves(2, labels=40, pairs=21, transforms=TRANSFORMS["all of these"], device=device)
    assert_equal(case, options)


SHAPES: dict[str, dict[str, Any]] = {
    "nothing": {"labels": 0, "pairs": 0},
    "one label": {"labels": 1, "pairs": 0},
    "labels without a pair": {"labels": 33, "pairs": 0},
    "one pair": {"labels": 1, "pairs": 1},
    "one pair of many labels": {"labels": 40, "pairs": 1},
    "every label paired": {"labels": 37, "pairs": 37},
    "a chunk and one": {"labels": 17, "pairs": 17},
    "width 1": {"labels": 20, "pairs": 18, "widths": (1, 1)},
    "a wide student": {"labels": 20, "pairs": 18, "widths": (2, 7)},
    "two ids against many": {"labels": 20, "pairs": 18, "sizes": (2, 31)},
    "many ids against two": {"labels": 20, "pairs": 18, "sizes": (31, 2)},
    "the same size": {"labels": 20, "pairs": 18, "sizes": (9, 9), "widths": (5, 5)},
}


@pytest.mark.parametrize("options", MORE.values(), ids=MORE)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_odd_shapes(shape: dict[str, Any], options: DualSpaceOptions) -> None:
    transforms = Transforms(bias=True, scale=0.7, softcap=3.0)
    assert_equal(random_leaves(3, transforms=(transforms, transforms), **shape), options)


@pytest.mark.parametrize(
    "options", ["defaults", "ungated", "v2", "gate lifted", "all that speaks of the overlap"]
)
@pytest.mark.parametrize("rows", [1, 2, 3, 7, 37, 100])
def test_how_rows_are_cut_into_chunks_changes_nothing(
    rows: int, options: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dskd.nn.linear._FEWEST_ROWS", rows)
    case = random_leaves(4, labels=50, pairs=37, transforms=TRANSFORMS["all of these"])
    assert_equal(case, MORE[options])


@pytest.mark.parametrize("at_once", [1, 11, 31])
@pytest.mark.parametrize("options", MORE.values(), ids=MORE)
@pytest.mark.parametrize("transforms", ["plain", "all of these"])
def test_how_many_rows_of_a_chunk_are_looked_at_together_changes_nothing(
    transforms: str, options: DualSpaceOptions, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dskd.nn.elementwise._AT_ONCE", at_once)
    assert_equal(random_leaves(4, labels=50, pairs=37, transforms=TRANSFORMS[transforms]), options)


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("options", ["ungated", "v2", "distribution"])
def test_the_shares(options: str, alpha: float) -> None:
    case = random_leaves(5, labels=20, pairs=18)
    assert_equal(case, MORE[options], Reduction(7, 5, alpha))
    moved = gradients(by_fused(case, MORE[options], Reduction(7, 5, alpha)).loss, case.trained)
    assert bool(moved["to_student"].any()) == bool(moved["to_teacher"].any()) == (alpha > 0)


@pytest.mark.parametrize("options", ["defaults", "ungated", "v2"])
def test_a_head_that_is_the_embedding_too_gets_both_gradients(options: str) -> None:
    """Its rows make the states, which make what is carried to the teacher: all of it comes together."""
    case = random_leaves(6, labels=20, pairs=18, widths=(4, 3))
    weight, ids = case.by_name["student_weight"], torch.arange(20) % 5
    projector = torch.randn(3, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def tied() -> Leaves:
        hidden = torch.tanh(2 * weight[ids])
        carried = hidden[case.paired] @ projector
        return replace(case, by_name={**case.by_name, "student_hidden": hidden, "to_teacher": carried})

    found, expected = (call(tied(), MORE[options]).loss for call in (by_fused, by_definition))
    mine, theirs = (torch.autograd.grad(value, weight)[0] for value in (found, expected))
    torch.testing.assert_close(mine, theirs, rtol=1e-11, atol=1e-14)


# ---- What is frozen --------------------------------------------------------------------------------------

FROZEN: dict[str, list[str]] = {
    "the head": ["student_weight", "student_bias"],
    "the weight": ["student_weight"],
    "the bias": ["student_bias"],
    "the body": ["student_hidden", "to_teacher"],
    "what is carried to the student": ["to_student"],
    "what is carried to the teacher": ["to_teacher"],
    "what is carried": ["to_student", "to_teacher"],
    "all but the head": ["student_hidden", "student_bias", "to_student", "to_teacher"],
    "all but what is carried to the student": [
        "student_hidden",
        "student_weight",
        "student_bias",
        "to_teacher",
    ],
}


@pytest.mark.parametrize("names", FROZEN.values(), ids=FROZEN)
@pytest.mark.parametrize(
    "options", ["defaults", "ungated", "v2", "all that speaks of the overlap", "overlap in both"]
)
def test_what_is_frozen_has_no_gradient_and_the_rest_its_own(options: str, names: list[str]) -> None:
    transforms = TRANSFORMS["all of these"]
    case = random_leaves(7, labels=20, pairs=18, transforms=transforms).frozen(names)
    trained = {name: leaf for name, leaf in case.by_name.items() if leaf.requires_grad}
    expected = gradients(by_definition(case, MORE[options]).loss, trained)
    backward(by_fused(case, MORE[options]).loss)
    for name, leaf in case.by_name.items():
        if name in names or name.startswith("teacher"):
            assert leaf.grad is None, name
        else:
            assert leaf.grad is not None, name
            torch.testing.assert_close(leaf.grad, expected[name], rtol=1e-10, atol=1e-14)


def test_where_nothing_is_trained_there_is_a_value_and_no_graph() -> None:
    case = random_leaves(7).frozen(random_leaves(7).by_name)
    found = by_fused(case, ungated())
    assert not found.loss.requires_grad
    assert found.loss.item() == pytest.approx(by_definition(case, ungated()).loss.item(), rel=1e-12)


# ---- What each term moves --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Only(DualSpaceOptions):
    """The loss is this term alone; the cross-entropy needs an alpha of 0 besides, the others one of 1."""

    term: str

    def weights(self, *_: Any) -> Mapping[str, float]:
        return {name: float(name == self.term) for name in TABLE}


def alone(term: str, **given: Any) -> tuple[Only, Reduction]:
    return Only(
        term=term, **{"target": "projected", "columns": "all", "s2t_weight": 1.0, **given}
    ), Reduction(1, 1, alpha=0.0 if term == "cross_entropy" else 1.0)


HOWEVER: list[dict[str, Any]] = [
    {},
    {"temperature": 2.0, "gate": "gold"},
    {"columns": "overlap", "s2t_columns": "overlap", "gate": "prediction", "gate_threshold": 0.0},
    {"target": "exact"},
    *({"divergence": name} for name in DIVERGENCES),
]


@pytest.mark.parametrize("given", HOWEVER, ids=str)
@pytest.mark.parametrize("term", TABLE)
def test_a_term_alone_moves_what_the_table_says(term: str, given: dict[str, Any]) -> None:
    if term == "t2s_kl":
        given = {**given, "t2s_target": "distribution"}
    if term.startswith("t2s_") and given.get("target") == "exact":
        given = {**given, "gate": "gold", "gate_threshold": 0.0}  # else nothing is projected
    case = random_leaves(8, labels=20, pairs=18, transforms=TRANSFORMS["bias and scale"])
    options, reduction = alone(term, **given)
    assert_equal(case, options, reduction)
    found = gradients(by_fused(case, options, reduction).loss, case.by_name)
    assert {name for name, gradient in found.items() if gradient.ne(0).any()} == TABLE[term]


@pytest.mark.parametrize("term", TABLE)
@pytest.mark.parametrize("trained", [True, False])
@pytest.mark.parametrize("fused", [False, True])
def test_a_term_of_the_module_moves_the_projectors_that_are_trained(
    fused: bool, trained: bool, term: str
) -> None:
    """Projectors that are solved are buffers, which nothing moves; the heads have a bias."""
    more: dict[str, Any] = {"t2s_target": "distribution"} if term == "t2s_kl" else {}
    options, reduction = alone(term, **more)
    case, module = with_projectors(trained=trained, options=options, fused=fused)
    leaves = {**case.by_name, **dict(module.projectors.named_parameters())}
    assert len(leaves) == len(case.by_name) + (4 if trained else 0)
    wanted = set(TABLE[term])
    if term in ("t2s_ce", "t2s_kl"):
        wanted = {"teacher_to_student", "teacher_to_student_bias"} & set(leaves)
    if term == "s2t_kd":
        wanted = {"student_hidden", "student_to_teacher", "student_to_teacher_bias"} & set(leaves)
    found = gradients(module(case.states(), reduction).loss, leaves)
    assert {name for name, gradient in found.items() if gradient.ne(0).any()} == wanted
    assert not any(buffer.requires_grad for buffer in module.buffers())


@pytest.mark.parametrize("options", MORE.values(), ids=MORE)
@pytest.mark.parametrize("trained", [True, False])
def test_the_module_fused_is_the_module_as_defined(trained: bool, options: DualSpaceOptions) -> None:
    found = []
    for fused in (False, True):
        case, module = with_projectors(trained=trained, options=options, fused=fused, chunk_memory=0)
        loss = module(case.states(), REDUCTION).loss
        leaves = {**case.by_name, **dict(module.projectors.named_parameters())}
        found.append({"loss": loss.detach(), **gradients(loss, leaves)})
    torch.testing.assert_close(found[1], found[0], rtol=1e-10, atol=1e-14)


# ---- Nothing to sum --------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", MORE.values(), ids=MORE)
@pytest.mark.parametrize("labels", [0, 3])
def test_without_pairs_the_loss_is_finite_and_connected_to_every_parameter(
    labels: int, options: DualSpaceOptions
) -> None:
    """As DDP needs it: a gradient of zeros for each."""
    case = random_leaves(labels=labels, pairs=0, transforms=TRANSFORMS["all of these"])
    found = by_fused(case, options, Reduction(0, 0, 0.5))
    assert {name: int(count) for name, count in found.counts.items()} == dict.fromkeys(found.counts, 0)
    assert all(value.item() == 0 for name, value in found.sums.items() if name != "cross_entropy")
    assert found.loss.isfinite()
    assert (found.loss.item() == 0) == (labels == 0)
    backward(found.loss)
    for name, leaf in case.trained.items():
        assert leaf.grad is not None, name
        is_moved = labels > 0 and name.startswith("student")
        assert bool(leaf.grad.any()) == is_moved, name


@pytest.mark.parametrize("labels", [0, 3])
def test_without_pairs_trained_projectors_get_gradients_of_zeros(labels: int) -> None:
    _, module = with_projectors(options=DSKD_UNGATED)
    case = random_leaves(labels=labels, pairs=0, transforms=TRANSFORMS["bias and scale"])
    backward(module(case.states(), Reduction(labels, 0, 0.5)).loss)
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None, name
        assert not parameter.grad.any(), name


# ---- Statistics of the teacher ---------------------------------------------------------------------------

LINEAR: dict[str, tuple[Transforms, Transforms]] = {
    **{name: pair for name, pair in TRANSFORMS.items() if pair[0].softcap is None},
    "bias, scale and unreachable ids": (Transforms(bias=True, scale=2.0, unreachable=(1, 5)), PLAIN),
}
FITTING: dict[str, DualSpaceOptions] = {
    "ungated": ungated(),
    "temperature": ungated(temperature=1.7, scale_by_temperature_squared=True),
    "gate": ungated(gate="prediction", gate_threshold=0.4, gated_mean=True),
    "unmapped dropped": ungated(drop_unmapped=True),
    "another divergence in the student's space": ungated(divergence="js", s2t_divergence="kl"),
    "overlap": ungated(columns="overlap"),
    "student space": ungated(spaces="student"),
    "teacher space": ungated(spaces="teacher", temperature=0.7),
}
NOT_FITTING: dict[str, DualSpaceOptions] = {
    "defaults, whose target is exact": DualSpaceOptions(),
    "another divergence": ungated(divergence="js"),
    "another divergence in the teacher's space": ungated(s2t_divergence="tvd"),
    "overlap in the teacher's space": ungated(s2t_columns="overlap"),
    "exact": ungated(target="exact"),
    "distribution": ungated(t2s_target="distribution", spaces="student"),
}
EITHER = FITTING | NOT_FITTING


def statistics_of(case: Leaves, temperature: float) -> dict[str, Any]:
    head, hidden = case.head("teacher"), case.by_name["teacher_hidden"]
    return {"statistics": teacher_statistics(head, hidden, temperature=temperature, chunk_memory=0)}


@pytest.mark.parametrize("options", FITTING.values(), ids=FITTING)
@pytest.mark.parametrize("transforms", LINEAR.values(), ids=LINEAR)
def test_what_was_kept_of_the_teacher_stands_for_its_states(
    transforms: tuple[Transforms, Transforms],
    options: DualSpaceOptions,
    device: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """To which nobody looks then: they are no numbers. The vocabulary is five blocks, the rows are three."""
    monkeypatch.setattr("dskd.nn.losses.known_teacher._TOKENS", 16)
    monkeypatch.setattr("dskd.nn.losses.known_teacher._ROWS", 16)
    case = random_leaves(9, labels=40, pairs=37, sizes=(70, 61), transforms=transforms, device=device)
    kept = statistics_of(case, options.temperature)
    unseen = torch.full_like(case.by_name["teacher_hidden"], torch.nan)
    assert_equal(case, options, **kept, teacher_hidden=unseen)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("options", EITHER.values(), ids=EITHER)
def test_where_it_does_not_fit_the_states_are_looked_at(
    options: DualSpaceOptions, temperature: float
) -> None:
    case = random_leaves(10, labels=40, pairs=37, transforms=LINEAR["bias and scale"])
    assert_equal(case, options, **statistics_of(case, temperature))


@pytest.mark.parametrize(("rows", "tokens"), [(1, 1), (16, 100), (20, 7), (37, 2_500), (2_048, 512)])
def test_how_a_known_teacher_is_cut_into_blocks_changes_nothing(
    rows: int, tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor do logits that are far apart overflow."""
    monkeypatch.setattr("dskd.nn.losses.known_teacher._ROWS", rows)
    monkeypatch.setattr("dskd.nn.losses.known_teacher._TOKENS", tokens)
    case = random_leaves(10, labels=40, pairs=37, sizes=(250, 61))
    for name in ("to_teacher", "teacher_weight"):
        case.by_name[name].detach().mul_(30)
    assert_equal(case, ungated(), chunk_memory=10**7, **statistics_of(case, 1.0))


@pytest.mark.parametrize(
    ("count", "device", "numbers", "expected"),
    [
        (0, "cpu", 2 * 10**6, (1, 512)),
        (37, "cpu", 2 * 10**6, (37, 512)),
        (2_049, "cpu", 2 * 10**6, (1_025, 512)),
        (6_000, "cpu", 2 * 10**6, (2_000, 512)),
        (6_000, "cpu", 200_000, (375, 512)),
        (37, "cpu", 100, (1, 100)),
        (8_192, "cuda", 40_000_000, (8_192, 4_882)),
        (200, "cuda", 40_000_000, (200, 50_000)),
    ],
)
def test_a_block_fits_in_the_memory_of_a_chunk(
    count: int, device: str, numbers: int, expected: tuple[int, int]
) -> None:
    """Where there is no GPU, the numbers of one are worked out all the same."""
    memory = ChunkMemory(1, torch.float32, torch.device("cpu"), budget=0, most=1)
    memory.device, memory.numbers = torch.device(device), numbers
    rows, tokens = block_sizes(count, 50_000, memory)
    assert (rows, tokens) == expected
    assert rows * tokens <= numbers


def test_statistics_kept_in_half_precision_are_computed_with_in_full() -> None:
    case = random_leaves(10, labels=40, pairs=37, dtype=torch.float32)
    kept = statistics_of(case, 1.0)["statistics"]
    halved = replace(kept, mean_row=kept.mean_row.bfloat16())
    widened = replace(halved, mean_row=halved.mean_row.float())
    found, expected = (
        all_of(by_fused(case, ungated(), statistics=one), case.trained) for one in (halved, widened)
    )
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize("options", FITTING.values(), ids=FITTING)
def test_without_pairs_nothing_was_kept_and_nothing_is_missed(options: DualSpaceOptions) -> None:
    case = random_leaves(labels=3, pairs=0)
    assert_equal(case, options, **statistics_of(case, options.temperature))


# ---- A projector that stays as it is ---------------------------------------------------------------------


@dataclass(frozen=True)
class Uncarried:
    """The student's states at the pairs, a leaf, and P_st, which is none."""

    case: Leaves
    states: Tensor
    projector: Tensor

    def by_fused(self, options: DualSpaceOptions, chunk_memory: int, **more: Any) -> LossParts:
        return fused_dual_space(
            replace(self.case.states(), **more),
            self.case.by_name["to_student"],
            self.states,
            self.case.maps,
            options,
            reduction=REDUCTION,
            projector=self.projector,
            chunk_memory=chunk_memory,
        )

    def by_definition(self, options: DualSpaceOptions) -> LossParts:
        to_teacher = carried(self.states, self.projector)
        case = replace(self.case, by_name={**self.case.by_name, "to_teacher": to_teacher})
        return by_definition(case, options)

    @property
    def leaves(self) -> dict[str, Tensor]:
        used = {name: leaf for name, leaf in self.case.trained.items() if name != "to_teacher"}
        return {**used, "states": self.states}


def uncarried(
    pairs: int = 37, widths: tuple[int, int] = (7, 3), device: str = "cpu", **more: Any
) -> Uncarried:
    case = random_leaves(16, labels=pairs + 3, pairs=pairs, widths=widths, device=device, **more)
    generator = torch.Generator().manual_seed(16)
    states = torch.randn(pairs, widths[1], generator=generator, dtype=torch.float64)
    projector = torch.randn(*widths[::-1], generator=generator, dtype=torch.float64) * widths[1] ** -0.5
    return Uncarried(case, states.to(device).requires_grad_(), projector.to(device))


@pytest.mark.parametrize("chunk_memory", [0, 10**6])
@pytest.mark.parametrize("options", EITHER.values(), ids=EITHER)
@pytest.mark.parametrize("transforms", TRANSFORMS.values(), ids=TRANSFORMS)
def test_read_through_a_projector_or_carried_by_it_is_the_same(
    transforms: tuple[Transforms, Transforms],
    options: DualSpaceOptions,
    chunk_memory: int,
    device: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("dskd.nn.losses.known_teacher._TOKENS", 16)
    given = uncarried(transforms=transforms, sizes=(70, 61), device=device)
    known = {} if transforms[0].softcap else statistics_of(given.case, options.temperature)
    expected = given.by_definition(options)
    theirs = gradients(expected.loss, given.leaves)
    for more in ({}, known):
        found = given.by_fused(options, chunk_memory, **more)
        torch.testing.assert_close(found.loss, expected.loss, rtol=1e-10, atol=1e-13)
        assert_equal_gradients(gradients(found.loss, given.leaves), theirs)


@pytest.mark.parametrize(
    ("given", "chunk_memory", "options", "read"),
    [
        (uncarried(), 10**6, ungated(), True),
        (uncarried(), 6 * 3 * 8, ungated(), True),
        (uncarried(), 6 * 3 * 8 - 1, ungated(), False),  # the head [6, 3] does not fit
        (uncarried(pairs=3), 10**6, ungated(), True),  # 3 x 7 < 2 x 3 x 4
        (uncarried(pairs=2), 10**6, ungated(), False),
        (uncarried(widths=(3, 3)), 10**6, ungated(), False),
        (uncarried(widths=(3, 7)), 10**6, ungated(), False),
        (uncarried(), 10**6, ungated(spaces="student"), False),
    ],
    ids=["large", "fits", "does not fit", "enough pairs", "few pairs", "as wide", "wider", "not compared"],
)
def test_a_head_is_multiplied_by_a_projector_where_that_saves_products(
    given: Uncarried,
    chunk_memory: int,
    options: DualSpaceOptions,
    read: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    through, seen = Head.through, list[Head]()

    def noted(head: Head, *more: Any) -> Head:
        seen.append(head)
        return through(head, *more)

    monkeypatch.setattr(Head, "through", noted)
    given.by_fused(options, chunk_memory)
    assert len(seen) == read


def test_where_the_teacher_is_known_no_such_head_is_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    given = uncarried(sizes=(70, 61))
    monkeypatch.setattr("dskd.nn.losses.known_teacher._TOKENS", 16)
    monkeypatch.setattr("dskd.nn.losses.known_teacher._ROWS", 20)
    through, sizes = Head.through, list[int]()

    def noted(head: Head, *more: Any) -> Head:
        sizes.append(len(head.weight))
        return through(head, *more)

    monkeypatch.setattr(Head, "through", noted)
    given.by_fused(ungated(), 0, **statistics_of(given.case, 1.0))
    assert sizes == 2 * [16, 16, 16, 16, 6]


def test_a_projector_gets_no_gradient_whichever_way_it_is_taken() -> None:
    for given in (uncarried(), uncarried(pairs=2)):
        given.projector.requires_grad_()
        backward(given.by_fused(ungated(), 10**6).loss)
        assert given.projector.grad is None
        assert given.states.grad is not None
        given.projector.requires_grad_(False)


def test_a_sharded_teacher_is_refused_by_name_where_it_is_known_too() -> None:
    class Sharded(torch.Tensor):
        def full_tensor(self) -> None: ...

    case = random_leaves(11)
    kept = statistics_of(case, 1.0)["statistics"]
    head = Head(case.by_name["teacher_weight"].detach().as_subclass(Sharded))
    message = r"^the head is sharded \(Sharded\): compute the loss inside the forward"
    with pytest.raises(TypeError, match=message):
        by_fused(case, ungated(), statistics=kept, teacher_head=head)
    memory = ChunkMemory(10, torch.float64, torch.device("cpu"), budget=0, most=10)
    to_teacher, how = case.by_name["to_teacher"], Comparison(divergence="kl")
    with pytest.raises(TypeError, match=message):
        KnownTeacherSpace(to_teacher, head, how, 1.0, kept, memory=memory)


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("known", [False, True])
def test_a_head_that_is_multiplied_loses_no_more_than_rounding_may_either(
    known: bool, dtype: torch.dtype, autocast: bool
) -> None:
    made = uncarried(pairs=250, widths=(48, 32), sizes=(120, 101))
    case, states = clearly_said(made.case).cast(dtype), made.states.detach().to(dtype)
    given = Uncarried(case, states.clone().requires_grad_(), made.projector.float())
    exact = Uncarried(case.cast(torch.float64), states.double().requires_grad_(), given.projector.double())
    expected = all_of(exact.by_definition(ungated()), exact.leaves)
    more = statistics_of(case, 1.0) if known else {}
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        found = given.by_fused(ungated(), 10**6, **more)
        allowed = losses_by_rounding(lambda: all_of(given.by_definition(ungated()), given.leaves), expected)
    assert_loses_no_more(all_of(found, given.leaves), expected, allowed)


# ---- Backward --------------------------------------------------------------------------------------------


def test_a_factor_scales_the_gradients_and_losses_add_up() -> None:
    case = random_leaves(11, labels=20, pairs=18)
    one = gradients(by_fused(case, ungated()).loss, case.trained)
    both = 3 * by_fused(case, ungated()).loss - by_fused(case, ungated()).loss / 4
    found = gradients(both, case.trained)
    torch.testing.assert_close(found, {name: 2.75 * value for name, value in one.items()})


def test_gradients_are_added_to_those_that_are_there() -> None:
    case = random_leaves(11, labels=20, pairs=18)
    for _ in range(2):
        backward(by_fused(case, ungated()).loss)
    once = gradients(by_fused(case, ungated()).loss, case.trained)
    for name, leaf in case.trained.items():
        assert leaf.grad is not None
        torch.testing.assert_close(leaf.grad, 2 * once[name])


def test_a_second_backward_is_refused_with_the_way_out() -> None:
    loss = by_fused(random_leaves(11), ungated()).loss
    backward(loss, retain_graph=True)
    with pytest.raises(
        RuntimeError, match=r"^backward ran twice .*: call the loss again, or use fused=False$"
    ):
        backward(loss)


def test_it_cannot_be_differentiated_twice() -> None:
    case = random_leaves(11)
    loss = by_fused(case, ungated()).loss
    (gradient,) = torch.autograd.grad(loss.exp(), case.by_name["student_hidden"], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        backward(gradient.sum())


def test_what_it_was_given_is_left_as_it_was() -> None:
    case = random_leaves(11, labels=20, pairs=18, transforms=TRANSFORMS["all of these"])
    before = case.cast({})
    for options in MORE.values():
        backward(by_fused(case, options).loss)
    for name, leaf in before.by_name.items():
        assert torch.equal(leaf, case.by_name[name]), name


@pytest.mark.parametrize("term", [term for term in TABLE if term != "t2s_kl"])
def test_the_gradient_of_a_term_is_the_slope_of_its_value(term: str) -> None:
    """Central differences, which know nothing of autograd, of what the term moves.

    Where the head stands in the target too, behind a `sg`, the slope is another: here it does not.
    """
    case = random_leaves(12, labels=3, pairs=2, transforms=TRANSFORMS["all of these"])
    options, reduction = alone(term, temperature=1.5, divergence="js", target="exact")
    leaves = {name: case.by_name[name] for name in TABLE[term]}
    found, step = gradients(by_fused(case, options, reduction).loss, leaves), 1e-5
    for name, leaf in leaves.items():
        for index in range(leaf.numel()):
            slope = 0.0
            for sign in (1, -1):
                with torch.no_grad():
                    leaf.view(-1)[index] += sign * step
                    slope += sign * by_fused(case, options, reduction).loss.item() / (2 * step)
                    leaf.view(-1)[index] -= sign * step
            assert found[name].view(-1)[index].item() == pytest.approx(slope, rel=1e-6, abs=1e-9), name


# ---- Dtypes ----------------------------------------------------------------------------------------------

FLOAT32 = dict.fromkeys(random_leaves().by_name, torch.float32)
OF_TEACHER = [name for name in FLOAT32 if name.startswith("teacher")]
OF_STUDENT = [name for name in FLOAT32 if name.startswith("student")]
DTYPES: dict[str, dict[str, torch.dtype]] = {
    "float32": FLOAT32,
    "bfloat16": dict.fromkeys(FLOAT32, torch.bfloat16),
    "bfloat16, carried in float32": FLOAT32 | dict.fromkeys([*OF_TEACHER, *OF_STUDENT], torch.bfloat16),
    "a teacher in bfloat16": FLOAT32 | dict.fromkeys(OF_TEACHER, torch.bfloat16),
    "a student in bfloat16": FLOAT32 | dict.fromkeys(OF_STUDENT, torch.bfloat16),
    "a student in float64": FLOAT32 | dict.fromkeys(OF_STUDENT, torch.float64),
    "states in bfloat16": FLOAT32 | dict.fromkeys(["student_hidden", "teacher_hidden"], torch.bfloat16),
}
LOSSES: dict[str, DualSpaceOptions] = {
    **{name: ungated(divergence=name) for name in DIVERGENCES},
    **{name: OPTIONS[name] for name in ("defaults", "temperature squared", "overlap in both", "v1")},
}


def all_of(found: LossParts, leaves: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The loss and its gradients."""
    return {"loss": found.loss.detach(), **gradients(found.loss, leaves)}


EVERY_LOSS = [(dtypes, options) for dtypes in ("float32", "bfloat16") for options in LOSSES]
MIXED = [(dtypes, options) for dtypes in DTYPES for options in ("kl", "js", "v1")]


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize(("dtypes_", "options_"), sorted({*EVERY_LOSS, *MIXED}))
def test_it_loses_no_more_than_rounding_may(dtypes_: str, options_: str, autocast: bool, device: str) -> None:
    dtypes, options = DTYPES[dtypes_], LOSSES[options_]
    transforms = Transforms(bias=True, scale=0.7, softcap=3.0)
    sizes: dict[str, Any] = {"labels": 64, "pairs": 50, "sizes": (120, 101), "widths": (48, 32)}
    case = clearly_said(random_leaves(13, transforms=(transforms, transforms), device=device, **sizes))
    case = case.cast(dtypes)
    exact = case.cast(torch.float64)
    expected = all_of(by_definition(exact, options), exact.trained)

    def defined() -> LossParts:
        return by_definition(case, options)

    with torch.autocast(device, torch.bfloat16, enabled=autocast):
        found, eager = by_fused(case, options), defined()
        allowed = losses_by_rounding(lambda: all_of(defined(), case.trained), expected)
    assert found.loss.dtype == eager.loss.dtype
    for one in (found, eager):
        assert_loses_no_more(all_of(one, case.trained), expected, allowed)


@pytest.mark.parametrize("dtypes", DTYPES.values(), ids=DTYPES)
def test_gradients_have_the_dtype_of_what_they_are_of(dtypes: dict[str, torch.dtype]) -> None:
    case = random_leaves(13, transforms=TRANSFORMS["bias and scale"]).cast(dtypes)
    backward(by_fused(case, ungated()).loss)
    for name, leaf in case.trained.items():
        assert leaf.grad is not None
        assert leaf.grad.dtype == leaf.dtype, name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_statistics_lose_no_more_either(dtype: torch.dtype) -> None:
    sizes: dict[str, Any] = {"labels": 64, "pairs": 50, "sizes": (120, 101), "widths": (48, 32)}
    case = clearly_said(random_leaves(14, **sizes)).cast(dtype)
    exact = case.cast(torch.float64)
    expected = all_of(by_definition(exact, ungated()), exact.trained)
    found = by_fused(case, ungated(), **statistics_of(case, 1.0))
    allowed = losses_by_rounding(lambda: all_of(by_definition(case, ungated()), case.trained), expected)
    assert_loses_no_more(all_of(found, case.trained), expected, allowed)


# ---- What is kept ----------------------------------------------------------------------------------------


class Largest(TorchDispatchMode):  # type: ignore[no-untyped-call] # PyTorch gives it no types
    """Notes the largest tensor that an operation makes."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        made = func(*args, **(kwargs or {}))
        for one in made if isinstance(made, tuple | list) else [made]:
            if isinstance(one, torch.Tensor):
                self.numbers = max(self.numbers, one.numel())
        return made


WIDE: dict[str, Any] = {"labels": 300, "pairs": 250, "sizes": (210, 190), "widths": (6, 5)}


@pytest.mark.parametrize("options", MORE.values(), ids=MORE)
def test_there_is_never_a_tensor_of_all_logits(options: DualSpaceOptions) -> None:
    """What is largest are five matrices, two of them slopes, with the rows of a chunk, 16."""
    case = random_leaves(15, transforms=TRANSFORMS["all of these"], **WIDE)
    with Largest() as fused:
        backward(by_fused(case, options).loss)
    with Largest() as eager:
        backward(by_definition(case, options).loss)
    assert fused.numbers <= 5 * 16 * 210
    assert eager.numbers >= 250 * 190


def test_what_outlives_the_forward_is_gradients_alone() -> None:
    """Of the states, the head and what is carried; no logits of a chunk either."""
    case = random_leaves(15, transforms=TRANSFORMS["bias and scale"], **WIDE)
    gc.collect()
    before = {id(one) for one in tensors()}
    found = by_fused(case, ungated())
    gc.collect()
    kept = sorted(tuple(one.shape) for one in tensors() if id(one) not in before and one.numel() > 1)
    assert kept == sorted(tuple(leaf.shape) for leaf in case.trained.values())
    backward(found.loss)
    gc.collect()
    own = {id(leaf.grad) for leaf in case.trained.values()}
    left = [one for one in tensors() if id(one) not in before | own and one.numel() > 1]
    assert not left


def tensors() -> Iterator[Tensor]:
    return (one for one in gc.get_objects() if type(one) is torch.Tensor)


class Sums(TorchDispatchMode):  # type: ignore[no-untyped-call] # PyTorch gives it no types
    """Notes what is begun with zeros, to add up."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.shapes: list[tuple[int, ...]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        made = func(*args, **(kwargs or {}))
        if "zeros_like" in str(func):
            self.shapes.append(tuple(made.shape))
        return made


@pytest.mark.parametrize("frozen", [False, True])
def test_a_gradient_of_a_head_is_made_for_the_student_where_it_is_trained_and_for_no_other(
    frozen: bool,
) -> None:
    """Three of the four times that a head is read it stands behind a `sg`."""
    case = random_leaves(15, **WIDE).frozen(["student_weight"] if frozen else [])
    with Sums() as sums:
        by_fused(case, ungated())
    heads = {tuple(case.by_name[f"{side}_weight"].shape) for side in ("teacher", "student")}
    assert sum(shape in heads for shape in sums.shapes) == (0 if frozen else 1)


def test_the_module_takes_the_memory_that_it_is_told() -> None:
    case, module = with_projectors(chunk_memory=7)
    assert isinstance(module, DualSpaceLoss)
    assert (module.fused, module.chunk_memory) == (True, 7)
    assert module(case.states(), REDUCTION).loss.isfinite()
