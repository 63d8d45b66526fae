"""What every loss of `LOSSES` keeps to, whatever it says: its line there holds a new loss to all of this.

The definition of a loss is its terms run whole, under plain autograd. What they mean is in a file a loss;
here they are run a chunk of rows after the other, on every kind of head, mask and dtype, cut into
micro-batches, weighted, summed, frozen, and without anything to sum.
"""

from __future__ import annotations

import gc
from dataclasses import replace
from itertools import product
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from dskd.nn import (
    ALM,
    DIVERGENCES,
    LOSSES,
    ULD,
    AttentionScales,
    Batch,
    CrossEntropy,
    CrossModelAttention,
    DualSpace,
    Loss,
    LossParts,
    Objective,
    Reduction,
    SharedVocabulary,
    StrictTopK,
    Weighted,
)
from leaves import (
    PLAIN,
    TRANSFORMS,
    Leaves,
    Transforms,
    all_of,
    backward,
    gradients,
    objective_of,
    random_leaves,
    say_clearly,
)
from rounding import assert_loses_no_more, losses_by_rounding

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch import Tensor

    from dskd.nn.divergences import Divergence

# ---- The losses ------------------------------------------------------------------------------------------


def ungated(**given: Any) -> DualSpace:
    """As published, without the gate, but for these."""
    return DualSpace(**{**DualSpace.presets["dskd_ungated"], **given})


INSTRUCTIVE: dict[str, list[Loss]] = {
    "shared_vocabulary": [
        SharedVocabulary(divergence="js", mix=0.2, temperature=2.0),
    ],
    "strict_top_k": [
        StrictTopK(top_k=2, temperature=1.7, specials=True),
        StrictTopK(top_k=None, divergence="kl"),
    ],
    "alm": [ALM(temperature=1.0), ALM(divergence="js", temperature=3.0)],
    "uld": [ULD(largest=3), ULD(temperature=2.0)],
    "dual_space": [
        ungated(temperature=1.7, scale_by_temperature_squared=True),
        ungated(gate="gold", t2s_target="gold", temperature=0.7),
        ungated(gate="prediction", gate_threshold=0.01),
        ungated(gate="gold", gate_threshold=0.95),
        ungated(drop_unmapped=True, t2s_target="distribution"),
        ungated(t2s_target="distribution", gate="prediction", temperature=2.0),
        ungated(target="exact"),
        ungated(target="exact", gate="gold", t2s_target="gold"),
        ungated(target="exact", divergence="skew_kl", mix=0.3),
        ungated(columns="overlap", s2t_columns="overlap", gate="gold", divergence="js", mix=0.3),
        ungated(spaces="student", gate="prediction"),
        ungated(spaces="teacher", drop_unmapped=True, temperature=0.7),
        ungated(divergence="js", mix=0.2, s2t_divergence="adaptive_kl"),
        ungated(gate="gold", gated_mean=True, gate_threshold=0.05),
        ungated(gated_mean=True, drop_unmapped=True),
        ungated(spaces="teacher", gate="gold", gated_mean=True, drop_unmapped=True),
        ungated(teacher_to_student="solved", columns="overlap"),
        ungated(student_to_teacher="trained", initial="random", bias=True),
        ungated(
            t2s_target="distribution",
            target="exact",
            columns="overlap",
            s2t_columns="overlap",
            temperature=1.3,
            drop_unmapped=True,
            gate="prediction",
            gate_threshold=0.6,
        ),
    ],
    "cross_model_attention": [
        CrossModelAttention(divergence="js", mix=0.2, s2t_divergence="reverse_kl", temperature=0.8),
        CrossModelAttention(teacher_temperature=2.5, gate=None),
        CrossModelAttention(added=None),
        CrossModelAttention(matching="adversarial", kq_rate=0.5),
        CrossModelAttention(matching="transport", kq_rate=0.5),
    ],
}
"""Besides the defaults and every preset: where options meet."""


def _name_of(name: str, loss: Loss) -> str:
    usual = {**vars(type(loss)()), **type(loss).presets.get("dskd_ungated", {})}
    options = [f"{key}={value}" for key, value in vars(loss).items() if value != usual[key]]
    return f"{name} {', '.join(options)}"


OF_TWO_VOCABULARIES = {name: loss for name, loss in LOSSES.items() if name != "logits"}
"""The other one is held to the same in test_logits.py."""

EVERY: dict[str, Loss] = {
    **{name: loss() for name, loss in OF_TWO_VOCABULARIES.items()},
    **{
        f"{name} {preset}": loss(**given)
        for name, loss in OF_TWO_VOCABULARIES.items()
        for preset, given in loss.presets.items()
    },
    **{_name_of(name, loss): loss for name, losses in INSTRUCTIVE.items() for loss in losses},
}
each_loss = pytest.mark.parametrize("loss", EVERY.values(), ids=EVERY)
each_name = pytest.mark.parametrize(
    "loss", [loss() for loss in OF_TWO_VOCABULARIES.values()], ids=OF_TWO_VOCABULARIES
)
"""With its usual options: where what options say of rows and columns makes no difference."""

MASKS: dict[str, dict[str, Any]] = {
    "no label, but a teacher": {"labels": 0, "pairs": 0, "teacher_labels": 5},
    "labels without a pair": {"labels": 33, "pairs": 0, "teacher_labels": 0},
    "one label": {"labels": 1, "pairs": 1, "teacher_labels": 1},
    "one pair of many labels": {"labels": 40, "pairs": 1, "teacher_labels": 20, "rows": 7},
    "every label paired": {"labels": 37, "pairs": 37, "teacher_labels": 37, "rows": 1},
    "rows of one model": {"labels": 20, "pairs": 18, "teacher_labels": 19, "rows": 5, "apart": 2},
    "no row of both": {"labels": 20, "pairs": 18, "teacher_labels": 19, "apart": 3},
}
SHAPES: dict[str, dict[str, Any]] = {
    "nothing": {"labels": 0, "pairs": 0, "teacher_labels": 0},
    "a chunk and one": {"labels": 17, "pairs": 17, "teacher_labels": 17},
    "width 1": {"labels": 20, "pairs": 18, "widths": (1, 1)},
    "a wide student": {"labels": 20, "pairs": 18, "widths": (2, 7)},
    "two ids against many": {"labels": 20, "pairs": 18, "sizes": (3, 31)},
    "many ids against two": {"labels": 20, "pairs": 18, "sizes": (31, 2)},
}


def case_of(seed: int = 3, **more: Any) -> Leaves:
    """Three chunks of logits of uneven size, with positions that no pair has, and rows of both models."""
    given = {"labels": 50, "pairs": 37, "teacher_labels": 41, "rows": 4, "sizes": (19, 13)}
    return random_leaves(seed, **{**given, **more})


# ---- How two answers are compared ------------------------------------------------------------------------

WITHIN = 1e-12
"""Of its norm may a gradient be off in float64: ten thousand roundings."""


def movable(case: Leaves, objective: Objective) -> dict[str, Tensor]:
    """All leaves that want a gradient, the teachers' too, and what the losses train."""
    everything = {**case.by_name, **dict(objective.named_parameters())}
    return {name: leaf for name, leaf in everything.items() if leaf.requires_grad}


def trainable(objective: Objective) -> dict[str, Tensor]:
    return {name: one for name, one in objective.named_parameters() if one.requires_grad}


def assert_same(found: LossParts, expected: LossParts, leaves: Mapping[str, Tensor]) -> None:
    """Value, sums, counts, and the gradient of every leaf."""
    torch.testing.assert_close(found.loss, expected.loss, rtol=WITHIN, atol=1e-13)
    assert set(found.sums) == set(expected.sums)
    for name, value in expected.sums.items():
        torch.testing.assert_close(found.sums[name], value, rtol=WITHIN, atol=1e-13)
        assert not found.sums[name].requires_grad
    counts = [{name: int(count) for name, count in one.counts.items()} for one in (found, expected)]
    assert counts[0] == counts[1]
    assert_same_gradients(gradients(found.loss, leaves), gradients(expected.loss, leaves))


def assert_same_gradients(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Relative to each norm; where it cancels, to a hundredth of that of the largest."""
    largest = max((float(one.norm()) for one in expected.values()), default=0.0)
    for name, one in expected.items():
        gap, size = float((found[name] - one).norm()), float(one.norm())
        assert gap <= WITHIN * (size + largest / 100), (name, gap, size)


def assert_fused_is_whole(
    case: Leaves, objective: Objective, step: Reduction | Any = "mean", *, memory: int = 1, **more: Any
) -> None:
    objective.chunk_memory = memory
    found, expected = both_forms(objective, case.batch(**more), case.batch(), step)
    assert_same(found, expected, movable(case, objective))


def both_forms(
    objective: Objective, batch: Batch, plain: Batch | None = None, step: Reduction | Any = "mean"
) -> tuple[LossParts, LossParts]:
    """Fused, and the definition."""
    objective.fused = True
    found = objective(batch, step)
    objective.fused = False
    return found, objective(batch if plain is None else plain, step)


# ---- Value and every gradient ----------------------------------------------------------------------------


@each_loss
@pytest.mark.parametrize("transforms", TRANSFORMS.values(), ids=TRANSFORMS)
def test_fused_is_the_definition_on_every_head(
    transforms: tuple[Transforms, Transforms], loss: Loss, device: str
) -> None:
    case = case_of(transforms=transforms, device=device)
    assert_fused_is_whole(case, objective_of(case, CrossEntropy(), Weighted(loss, 0.7)).to(device))


@each_loss
@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_fused_is_the_definition_on_every_mask(mask: dict[str, Any], loss: Loss) -> None:
    transforms = Transforms(bias=True, scale=0.7, softcap=3.0)
    case = random_leaves(3, transforms=(transforms, transforms), **mask)
    assert_fused_is_whole(case, objective_of(case, CrossEntropy(), Weighted(loss, 0.7)))


@each_name
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_fused_is_the_definition_in_every_shape(shape: dict[str, Any], loss: Loss) -> None:
    case = random_leaves(3, transforms=TRANSFORMS["soft cap"], **shape)
    assert_fused_is_whole(case, objective_of(case, CrossEntropy(), Weighted(loss, 0.7)))


COMPARING: list[dict[str, Any]] = [
    {"loss": StrictTopK, "top_k": 3},
    {"loss": SharedVocabulary},
    {"loss": DualSpace, **DualSpace.presets["dskd_v2"], "temperature": 1.7},
    {"loss": DualSpace, "s2t_columns": "overlap"},
    {"loss": CrossModelAttention, "gate": None},
]


@pytest.mark.parametrize("given", COMPARING, ids=str)
@pytest.mark.parametrize("name", DIVERGENCES)
def test_fused_is_the_definition_with_every_divergence(name: Divergence, given: dict[str, Any]) -> None:
    options = {key: value for key, value in given.items() if key != "loss"}
    case = case_of(transforms=TRANSFORMS["all of these"])
    assert_fused_is_whole(case, objective_of(case, given["loss"](divergence=name, **options)))


@each_loss
@pytest.mark.parametrize("memory", [40 * 8 * 24, 10**8], ids=["some", "all"])
def test_how_many_rows_there_are_at_once_changes_nothing(memory: int, loss: Loss) -> None:
    case = case_of(transforms=TRANSFORMS["all of these"])
    assert_fused_is_whole(case, objective_of(case, CrossEntropy(), loss), memory=memory)


@each_loss
@pytest.mark.parametrize("rows", [1, 3])
def test_how_many_rows_a_term_sees_at_once_changes_nothing(
    rows: int, loss: Loss, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Chunks of one and of three rows, which blocks cut into single ones."""
    monkeypatch.setattr("dskd.nn.fused._AT_ONCE", 1)
    monkeypatch.setattr("dskd.nn.elementwise._AT_ONCE", 1)
    monkeypatch.setattr("dskd.nn.fused.rows_at_once", lambda *_, **__: rows)
    case = case_of(transforms=TRANSFORMS["bias and scale"])
    assert_fused_is_whole(case, objective_of(case, CrossEntropy(), loss))


@each_loss
@pytest.mark.parametrize("known", [1.0, 1.7])
def test_what_was_kept_of_the_teacher_changes_nothing(
    known: float, loss: Loss, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its vocabulary is five blocks, its rows are three. The definition has it from the states."""
    monkeypatch.setattr("dskd.nn.losses.known_teacher._TOKENS", 16)
    monkeypatch.setattr("dskd.nn.losses.known_teacher._ROWS", 16)
    transforms = Transforms(bias=True, scale=2.0, unreachable=(1, 5)), PLAIN
    case = case_of(transforms=transforms, sizes=(70, 61))
    assert_fused_is_whole(case, objective_of(case, loss), known=known)
    assert_fused_is_whole(case, objective_of(case, loss), known=known, memory=10**8)


@each_loss
def test_a_head_that_is_the_embedding_too_gets_both_gradients(loss: Loss) -> None:
    """Its rows make the states, which are carried to the teacher: all of it comes together."""
    case = case_of()
    weight, ids = case.by_name["student_weight"], torch.arange(len(case.labels)) % 13
    objective, found = objective_of(case, CrossEntropy(), loss), []
    for fused in (True, False):
        tied = {"student_hidden": torch.tanh(2 * weight[ids]), "student_embeddings": weight}
        objective.fused = fused
        parts = objective(replace(case, by_name={**case.by_name, **tied}).batch())
        found.append(gradients(parts.loss, {"weight": weight}))
    assert_same_gradients(*found)


# ---- What is frozen, and nothing to sum ------------------------------------------------------------------

FROZEN: dict[str, list[str]] = {
    "the head": ["student_weight", "student_bias"],
    "the body": ["student_hidden"],
    "all": ["student_hidden", "student_weight", "student_bias"],
}


@each_loss
@pytest.mark.parametrize("names", FROZEN.values(), ids=FROZEN)
def test_what_is_frozen_has_no_gradient_and_the_rest_its_own(names: list[str], loss: Loss) -> None:
    case = random_leaves(7, transforms=TRANSFORMS["all of these"]).frozen(names)
    objective = objective_of(case, CrossEntropy(), loss)
    if names == FROZEN["all"]:
        objective.requires_grad_(requires_grad=False)
    found, expected = both_forms(objective, case.batch())
    assert found.loss.requires_grad == expected.loss.requires_grad == (names != FROZEN["all"])
    assert_same(found, expected, movable(case, objective))


def reached(loss: Tensor, leaves: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Those of the leaves that autograd comes by, with their gradients."""
    found = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
    return {name: one for name, one in zip(leaves, found, strict=True) if one is not None}


@each_loss
@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("labels", [0, 3])
def test_without_anything_to_sum_a_loss_is_a_zero_that_reaches_all_that_it_trains(
    labels: int, fused: bool, loss: Loss
) -> None:
    """As DDP needs it: a gradient of zeros for each parameter."""
    nothing: dict[str, Any] = {"labels": labels, "pairs": 0, "teacher_labels": 0}
    case = random_leaves(transforms=TRANSFORMS["all of these"], **nothing)
    if labels and not loss.needs.teacher:
        return  # there is something to sum
    if loss.needs.chunks:
        case = case.part([])
    objective = objective_of(case, loss, fused=fused)
    found = objective(case.batch())
    assert found.loss.item() == 0
    assert dict.fromkeys(found.counts, 0) == {name: int(count) for name, count in found.counts.items()}
    full = random_leaves(transforms=TRANSFORMS["all of these"])
    expected = reached(objective(full.batch()).loss, movable(full, objective))
    assert set(dict(objective.named_parameters())) - set(expected) == {
        name for name, parameter in objective.named_parameters() if not parameter.requires_grad
    }
    for name, gradient in reached(found.loss, movable(case, objective)).items():
        assert not gradient.any(), name
        expected.pop(name)
    assert not expected


# ---- Micro-batches ---------------------------------------------------------------------------------------

SCALES = AttentionScales(1.3, 0.7, 2.0)
"""Given: those of a loss that attends are by what is in the micro-batch otherwise."""

PARTS = [[2], [], [3, 0, 1]]
"""Rows of each micro-batch: uneven, out of order, and one has none."""


def depends_on_the_micro_batch(loss: Loss) -> bool:
    """What is said to: a normaliser or a mean of it, a gate that is lifted by it, points that all meet."""
    if isinstance(loss, DualSpace):
        return loss.normaliser == "micro_batch" or loss.gated_mean or loss.gate_threshold < 1
    return isinstance(loss, CrossModelAttention) and loss.matching in ("transport", "frozen")


@each_loss
@pytest.mark.parametrize("fused", [True, False])
def test_micro_batches_add_up_to_the_loss_and_gradient_of_the_step(fused: bool, loss: Loss) -> None:
    if depends_on_the_micro_batch(loss):
        return
    case = case_of(transforms=TRANSFORMS["bias and scale"])
    objective = objective_of(case, CrossEntropy(), Weighted(loss, 0.7), fused=fused)
    leaves = movable(case, objective)
    step = objective(case.batch(scales=SCALES))
    reduction = Reduction(case.batch().counts(), micro_batches=len(PARTS))
    parts = [objective(case.part(some).batch(scales=SCALES), reduction) for some in PARTS]
    together = torch.stack([part.loss for part in parts]).sum()
    torch.testing.assert_close(together, step.loss, rtol=WITHIN, atol=0)
    assert_same_gradients(gradients(together, leaves), gradients(step.loss, leaves))


@each_loss
@pytest.mark.parametrize("fused", [True, False])
def test_a_step_of_four_equal_micro_batches_has_the_gradient_of_one(fused: bool, loss: Loss) -> None:
    """Also where a term is divided by a number of its micro-batch: such are averaged, not summed."""
    case = case_of()
    objective = objective_of(case, CrossEntropy(), Weighted(loss, 0.7), fused=fused)
    leaves = movable(case, objective)
    counts = {name: 4 * count for name, count in case.batch().counts().items()}
    four = torch.stack(
        [objective(case.batch(), Reduction(counts, micro_batches=4)).loss for _ in range(4)]
    ).sum()
    one = objective(case.batch()).loss
    torch.testing.assert_close(four, one, rtol=WITHIN, atol=0)
    assert_same_gradients(gradients(four, leaves), gradients(one, leaves))


@each_loss
def test_mean_divides_by_what_is_in_the_batch_and_sum_by_nothing(loss: Loss) -> None:
    case = case_of()
    objective = objective_of(case, loss, noise=0.0)
    batch = case.batch()
    mean, everything = objective(batch, "mean"), objective(batch, "sum")
    assert list(mean.sums) == list(everything.sums)
    for name, value in mean.sums.items():
        assert torch.equal(value, everything.sums[name])
    weighted = {part.name: part.weight for part in objective.parts(batch, "sum")}
    expected = sum(weighted[name] * value for name, value in everything.sums.items())
    torch.testing.assert_close(everything.loss, expected, rtol=WITHIN, atol=0)
    by_step = objective(batch, Reduction(batch.counts())).loss
    assert torch.equal(mean.loss.detach(), by_step.detach())


# ---- Sums, and several teachers --------------------------------------------------------------------------


@each_loss
@pytest.mark.parametrize("fused", [True, False])
def test_a_sum_is_the_weighted_sum_of_its_losses(fused: bool, loss: Loss) -> None:
    case = case_of(transforms=TRANSFORMS["all of these"])
    batch = case.batch()
    alone = [objective_of(case, one, fused=fused) for one in (CrossEntropy(), loss)]
    both = objective_of(case, Weighted(CrossEntropy(), 0.3), Weighted(loss, 0.6), fused=fused)
    found, parts = both(batch), [one(batch) for one in alone]
    expected = 0.3 * parts[0].loss + 0.6 * parts[1].loss
    torch.testing.assert_close(found.loss, expected, rtol=WITHIN, atol=0)
    assert found.sums.keys() == parts[0].sums.keys() | parts[1].sums.keys()
    mine = gradients(found.loss, movable(case, both))
    theirs = gradients(expected, movable(case, alone[1]))
    assert_same_gradients({name.replace("built.1", "built.0"): one for name, one in mine.items()}, theirs)


@each_loss
def test_two_teachers_of_different_vocabularies_are_heard_each_by_its_name(loss: Loss) -> None:
    if not loss.needs.teacher:
        return
    case = case_of(transforms=TRANSFORMS["bias and scale"], teachers=("big", "small"))
    losses = [Weighted(loss, 0.7, "big"), Weighted(loss, 0.4, "small")]
    objective = objective_of(case, CrossEntropy(), *losses)
    found, expected = both_forms(objective, case.batch())
    assert_same(found, expected, movable(case, objective))
    alone = 0.0
    for index, one in enumerate(losses):
        other = objective_of(case, one)
        other.load_state_dict(
            {
                name.replace(f"built.{index + 1}", "built.0"): value
                for name, value in objective.state_dict().items()
                if name.startswith(f"built.{index + 1}")
            }
        )
        parts = other(case.batch())
        alone = alone + parts.loss
        assert set(parts.sums) == {name for name in found.sums if name.startswith(one.teacher)}
        for name, value in parts.sums.items():
            torch.testing.assert_close(found.sums[name], value, rtol=WITHIN, atol=1e-13)
        assert all(name.startswith(f"{one.teacher}/") for name in [*parts.sums, *parts.counts])
    cross_entropy = found.sums["cross_entropy"] / len(case.labels)
    torch.testing.assert_close(found.loss, cross_entropy + alone, rtol=WITHIN, atol=0)


# ---- Backward --------------------------------------------------------------------------------------------


@each_name
def test_a_second_backward_is_refused_and_a_call_again_adds_the_same(loss: Loss) -> None:
    case = random_leaves(13, transforms=TRANSFORMS["all of these"])
    objective = objective_of(case, CrossEntropy(), loss)
    found = objective(case.batch()).loss
    backward(found, retain_graph=True)
    once = {name: leaf.grad.clone() for name, leaf in case.trained.items() if leaf.grad is not None}
    assert set(once) == set(case.trained)
    message = r"^backward ran twice .*: call the loss again, or use fused=False$"
    with pytest.raises(RuntimeError, match=message):
        backward(found)
    for leaf in case.by_name.values():
        leaf.grad = None
    for _ in range(2):
        backward(objective(case.batch()).loss)
    assert_same_gradients(
        {name: leaf.grad for name, leaf in case.trained.items() if leaf.grad is not None},
        {name: 2 * one for name, one in once.items()},
    )


@each_name
def test_a_factor_scales_every_gradient(loss: Loss) -> None:
    case = random_leaves(13)
    objective = objective_of(case, CrossEntropy(), loss)
    leaves = movable(case, objective)
    one = gradients(objective(case.batch()).loss, leaves)
    both = 3 * objective(case.batch()).loss - objective(case.batch()).loss / 4
    assert_same_gradients(gradients(both, leaves), {name: 2.75 * value for name, value in one.items()})


@each_loss
def test_what_it_was_given_is_left_as_it_was(loss: Loss) -> None:
    case = case_of(transforms=TRANSFORMS["all of these"])
    before = case.cast({})
    backward(objective_of(case, CrossEntropy(), loss)(case.batch(known=1.0)).loss)
    for name, leaf in before.by_name.items():
        assert torch.equal(leaf, case.by_name[name]), name


@each_name
@pytest.mark.parametrize("reentrant", [True, False])
def test_under_gradient_checkpointing_it_is_the_same(reentrant: bool, loss: Loss) -> None:
    case = random_leaves(15)
    objective = objective_of(case, CrossEntropy(), loss)

    def run(hidden: Tensor) -> Tensor:
        made: Tensor = objective(
            replace(case, by_name={**case.by_name, "student_hidden": torch.tanh(hidden)}).batch()
        ).loss
        return made

    hidden = case.by_name["student_hidden"]
    expected = gradients(run(hidden), movable(case, objective))
    found = checkpoint(run, hidden, use_reentrant=reentrant)
    backward(found)
    made = {
        name: torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
        for name, leaf in movable(case, objective).items()
    }
    assert_same_gradients(made, expected)


# ---- Dtypes ----------------------------------------------------------------------------------------------

DTYPES: dict[str, dict[str, torch.dtype]] = {
    "float32": dict.fromkeys(random_leaves().by_name, torch.float32),
    "bfloat16": dict.fromkeys(random_leaves().by_name, torch.bfloat16),
}
for side in ("teacher", "student"):
    one = {name: torch.bfloat16 if name.startswith(side) else torch.float32 for name in DTYPES["float32"]}
    DTYPES[f"{side} in bfloat16"] = one

ROUNDED: dict[str, Loss] = {
    **{name: loss for name, loss in EVERY.items() if not isinstance(loss, CrossModelAttention)},
    "cross_model_attention without a gate": CrossModelAttention(gate=None),
    "cross_model_attention of predictions": CrossModelAttention(gate=None, added="prediction"),
}
"""Whether attention's gate lets a position through may hang on a rounding."""


def is_in_doubt(loss: Loss) -> bool:
    """Where what is compared may be another by a rounding: the largest k of a student, a head of tokens."""
    if isinstance(loss, StrictTopK) or (isinstance(loss, ULD) and loss.largest is not None):
        return True
    return "adaptive_kl" in (getattr(loss, "divergence", None), getattr(loss, "s2t_divergence", None))


IN_ONE_DTYPE = ["float32", "bfloat16"]
MIXED = [name for name in DTYPES if name not in IN_ONE_DTYPE]
SAMPLE = ["cross_entropy", "shared_vocabulary", "dual_space", "dual_space dskd_v1", "dual_space dskd_v2"]


@pytest.mark.parametrize(
    ("dtypes_", "loss_", "autocast"),
    [
        *product(IN_ONE_DTYPE, [name for name, loss in ROUNDED.items() if not is_in_doubt(loss)], [False]),
        *product(IN_ONE_DTYPE, SAMPLE, [True]),
        *product(MIXED, SAMPLE, [False]),
    ],
)
def test_it_loses_no_more_than_rounding_may(dtypes_: str, loss_: str, autocast: bool, device: str) -> None:
    """Neither fused nor whole, in value and every gradient."""
    transforms = Transforms(bias=True, scale=0.7, softcap=3.0)
    sizes: dict[str, Any] = {"labels": 64, "pairs": 50, "teacher_labels": 45, "rows": 4}
    case = random_leaves(
        13, transforms=(transforms, transforms), sizes=(120, 101), widths=(48, 32), device=device, **sizes
    )
    built = objective_of(case, ROUNDED[loss_], noise=0.02)
    projectors = [one for name, one in built.state_dict().items() if name.endswith("teacher_to_student")]
    say_clearly(case, projectors[0] if projectors else None)
    low = case.cast(DTYPES[dtypes_])
    exact, objective = low.cast(torch.float64), objective_of(case, ROUNDED[loss_], dtype=torch.float32)
    objective.load_state_dict(built.state_dict())
    built.load_state_dict(objective.state_dict())  # the same numbers, rounded
    built.fused = False
    expected = built(exact.batch())
    theirs, mine = (of.trained | trainable(of_) for of, of_ in ((exact, built), (low, objective)))

    def computed(*, fused: bool) -> LossParts:
        objective.fused = fused
        made: LossParts = objective(low.batch())
        return made

    right = all_of(expected, theirs)
    with torch.autocast(device, torch.bfloat16, enabled=autocast):
        found = [computed(fused=True), computed(fused=False)]
        allowed = losses_by_rounding(lambda: all_of(computed(fused=False), mine), right)
    for one in found:
        counts = [{name: int(count) for name, count in each.counts.items()} for each in (one, expected)]
        assert counts[0] == counts[1], "what is decided should not hang on a rounding"
        assert_loses_no_more(all_of(one, mine), right, allowed)


@pytest.mark.parametrize("dtypes", DTYPES.values(), ids=DTYPES)
@each_name
def test_gradients_have_the_dtype_of_what_they_are_of_and_sums_are_wide(
    loss: Loss, dtypes: dict[str, torch.dtype]
) -> None:
    case = random_leaves(13, transforms=TRANSFORMS["bias and scale"]).cast(dtypes)
    found = objective_of(case, CrossEntropy(), loss, dtype=torch.float32)(case.batch())
    assert {one.dtype for one in [found.loss, *found.sums.values()]} == {torch.float32}
    backward(found.loss)
    for name, leaf in case.trained.items():
        assert leaf.grad is not None, name
        assert leaf.grad.dtype == leaf.dtype, name


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


WIDE: dict[str, Any] = {"labels": 150, "pairs": 140, "teacher_labels": 130, "rows": 25, "sizes": (510, 490)}


@each_loss
@pytest.mark.parametrize("known", [None, 1.0])
def test_there_is_never_a_tensor_of_all_logits(
    known: float | None, loss: Loss, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is largest has the rows of a chunk, 64 at most; of a known teacher all share a block of 64 tokens.

    A loss that brings all points together with all others is none over logits.
    """
    if isinstance(loss, CrossModelAttention) and loss.matching is not None:
        return
    monkeypatch.setattr("dskd.nn.losses.known_teacher._TOKENS", 64)
    case = case_of(transforms=TRANSFORMS["bias and scale"], **WIDE)
    objective, batch = objective_of(case, loss), case.batch(known=known)
    with Largest() as largest:
        backward(objective(batch).loss)
    assert largest.numbers <= 64 * 510
    objective.fused = False
    with Largest() as largest:
        backward(objective(case.batch()).loss)
    assert largest.numbers >= 130 * 490


@pytest.mark.parametrize(
    "name", ["cross_entropy", "shared_vocabulary", "dual_space dskd_v2", "cross_model_attention"]
)
def test_what_outlives_the_forward_is_gradients_alone(name: str) -> None:
    """No logits of a chunk either."""
    case = case_of(transforms=TRANSFORMS["bias and scale"], **WIDE)
    objective, batch = objective_of(case, CrossEntropy(), EVERY[name]), case.batch()
    gc.collect()
    before = {id(one) for one in tensors()}
    found = objective(batch)
    gc.collect()
    kept = [one for one in tensors() if id(one) not in before]
    assert not [one.shape for one in kept if one.ndim > 1 and one.shape[-1] in (510, 490)]
    backward(found.loss)


def tensors() -> Iterator[Tensor]:
    return (one for one in gc.get_objects() if type(one) is torch.Tensor)


# ---- Cases that could not fail ---------------------------------------------------------------------------


def test_the_cases_have_pairs_on_both_sides_of_every_choice() -> None:
    for transforms in TRANSFORMS.values():
        case = case_of(transforms=transforms)
        for name, loss in EVERY.items():
            counts = objective_of(case, loss)(case.batch()).counts
            if "gated" in counts and getattr(loss, "gate_threshold", 1) == 1:
                assert 0 < int(counts["gated"]) < 37, name
            if "unmapped" in counts:
                assert 0 < int(counts["unmapped"]) < 37, name
    assert case_of(transforms=(PLAIN, PLAIN)).teachers["teacher"].chunks.over.count > 9


@each_loss
def test_every_loss_says_something(loss: Loss) -> None:
    """A term that is always zero would be equal to itself everywhere above."""
    case = case_of()
    for name, value in objective_of(case, loss)(case.batch()).sums.items():
        assert value.abs() > 1e-3, name
