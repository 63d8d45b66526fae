"""The trainer: a step is the definition, however its rows are split; what it saves opens and resumes."""

from __future__ import annotations

import copy
import itertools
import json
import math
import os
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.utils.data import IterableDataset
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer
from transformers import logging as transformers_logging

import tiny
from dskd.nn import LOSSES, DualSpace, Reduction
from dskd.train import DistillationTrainer
from dskd.train.collator import Tokens
from dskd.train.trainer import PROJECTORS_FILE
from tiny import BESIDE, ROWS, assert_same, built_by, sides_of, step, teacher_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from torch import Tensor, nn

    from dskd.train import Collated

ATTENDING = "cross_model_attention"
"""Divides by the spread of a micro-batch, has dropout and projectors of its own: see test_train_attention."""

OBJECTIVES = ["sft", *(name for name in LOSSES if name not in ("cross_entropy", ATTENDING))]
PROJECTORS = {"teacher_to_student": (24, 16), "student_to_teacher": (16, 24)}


# ---- One step --------------------------------------------------------------------------------------------


def log_softmax(logits: Tensor, dead: Sequence[int], temperature: float = 1.0) -> Tensor:
    """By hand, without the slots that no tokenizer can emit."""
    kept = torch.ones(logits.shape[-1], dtype=torch.bool)
    kept[list(dead)] = False
    scaled = logits / temperature
    return scaled - scaled[..., kept].logsumexp(-1, keepdim=True)


def divergence(name: str, says: Sequence[Tensor], alive: Sequence[int]) -> Tensor:
    """A sum over the ids that count, one after the other."""
    p, q = (log_probs[..., list(alive)] for log_probs in says)
    if name == "reverse_kl":
        p, q = q, p
    total = (p.exp() * (p - q)).sum()
    assert isinstance(total, torch.Tensor)
    return total


def projectors_of(made: Any) -> tuple[Tensor, Tensor]:
    """P_ts and P_st by the pseudo-inverses of the heads on the overlap, as the definition says."""
    pairs = tiny.overlap(*(side.vocabulary for side in sides_of(made)))
    teacher = teacher_of(made).lm_head.weight.detach()[[one for one, _ in pairs]]
    student = made.student.lm_head.weight.detach()[[one for _, one in pairs]]
    if made.model.objective.losses[-1].loss.centre:
        teacher, student = teacher - teacher.mean(0), student - student.mean(0)
    return teacher.T @ torch.linalg.pinv(student.T), student.T @ torch.linalg.pinv(teacher.T)


def eager(  # noqa: C901, PLR0912, PLR0915 - the whole definition in one place
    made: Any, rows: Sequence[Mapping[str, Any]], projectors: tuple[Tensor, Tensor]
) -> dict[str, Tensor]:
    """The sums of one step from the definition: row by row, whole models, all logits; and their counts."""
    how, sides = made.model.objective.losses[-1].loss, sides_of(made)
    mapped = dict(tiny.overlap(sides[0].vocabulary, sides[1].vocabulary))
    sizes = [model.lm_head.weight.shape[0] for model in (teacher_of(made), made.student)]
    dead = [
        [
            token
            for token in range(size)
            if side.vocabulary.token_bytes(token) is None and token not in side.vocabulary.roles
        ]
        for size, side in zip(sizes, sides, strict=True)
    ]
    alive = [sorted(set(range(size)) - set(gone)) for size, gone in zip(sizes, dead, strict=True)]
    totals = {
        name: torch.zeros((), dtype=torch.float64)
        for name in ("cross_entropy", "kd", "t2s_ce", "labels", "pairs")
    }
    for row in rows:
        readings = tiny.read(sides[0], row), tiny.read(sides[1], row)
        outputs = [
            model(torch.tensor([reading.ids]), output_hidden_states=True)
            for model, reading in zip((teacher_of(made), made.student), readings, strict=True)
        ]
        for column in readings[1].columns:
            said = outputs[1].logits[0, column - 1]
            totals["cross_entropy"] += said.logsumexp(-1) - said[readings[1].ids[column]]
            totals["labels"] += 1
        for teacher_column, student_column in tiny.token_pairs(sides, readings, row["completion"]):
            if not teacher_column or not student_column:
                continue
            totals["pairs"] += 1
            z_t = outputs[0].logits[0, teacher_column - 1].detach()
            h_t = outputs[0].hidden_states[-1][0, teacher_column - 1].detach()
            z_s = outputs[1].logits[0, student_column - 1]
            h_s = outputs[1].hidden_states[-1][0, student_column - 1]
            if made.args.objective == "shared_vocabulary":
                shared = [
                    log_softmax(z[[pair[side] for pair in mapped.items()]], [], how.temperature)
                    for side, z in enumerate((z_t, z_s))
                ]
                totals["kd"] = totals["kd"] + divergence(how.divergence, shared, range(len(mapped)))
                continue
            if made.args.objective == "sft":
                continue
            best = alive[0][int(z_t[alive[0]].argmax())]
            y = mapped.get(best, -1) if how.t2s_target == "prediction" else readings[1].ids[student_column]
            shared_ids = list(mapped), list(mapped.values())
            z_ts = (h_t @ projectors[0]) @ made.student.lm_head.weight.detach().T
            gate = {
                None: None,
                "prediction": mapped.get(best, -1),
                "gold": readings[1].ids[student_column],
            }[how.gate]
            if how.spaces != "teacher":
                if how.target == "exact" and gate is None:
                    pass  # nobody asks for z_ts
                elif how.t2s_target == "distribution":
                    says = [log_softmax(z_t[shared_ids[0]], []), log_softmax(z_ts[shared_ids[1]], [])]
                    totals["t2s_ce"] = totals["t2s_ce"] + divergence("kl", says, range(len(mapped)))
                elif y >= 0:
                    totals["t2s_ce"] = totals["t2s_ce"] - log_softmax(z_ts, dead[1])[y]
                if gate is None or alive[1][int(z_ts[alive[1]].argmax())] == gate:
                    says = [log_softmax(z, dead[1], how.temperature) for z in (z_ts.detach(), z_s)]
                    kept: Sequence[int] = alive[1]
                    if how.columns == "overlap":
                        exact = how.target == "exact"
                        target = z_t[shared_ids[0]] if exact else z_ts.detach()[shared_ids[1]]
                        kept = range(len(mapped))
                        says = [log_softmax(z, [], how.temperature) for z in (target, z_s[shared_ids[1]])]
                    totals["kd"] = totals["kd"] + divergence(how.divergence, says, kept)
            if how.spaces != "student":
                z_st = (h_s @ projectors[1]) @ teacher_of(made).lm_head.weight.T
                says = [log_softmax(z, dead[0], how.temperature) for z in (z_t, z_st)]
                kept = alive[0]
                if how.s2t_columns == "overlap":
                    kept = range(len(mapped))
                    says = [log_softmax(z[shared_ids[0]], [], how.temperature) for z in (z_t, z_st)]
                totals["kd"] = totals["kd"] + how.s2t_weight * divergence(how.divergence, says, kept)
    return totals


def by_definition(
    made: Any, rows: Sequence[Mapping[str, Any]], teacher_to_student: Tensor | None = None
) -> tuple[float, dict[str, Tensor | None]]:
    """The loss of one step and its gradients, written out; P_ts as given, or as solved."""
    solved = (torch.empty(0), torch.empty(0))
    if made.args.objective == "dual_space":
        solved = projectors_of(made)
    if teacher_to_student is not None:
        solved = teacher_to_student.detach(), solved[1]
    trained: dict[str, Tensor] = {}
    given = list(solved)
    for index, name in enumerate(PROJECTORS if made.args.objective == "dual_space" else ()):
        if getattr(built_by(made), name).requires_grad:
            given[index] = trained[BESIDE + name] = solved[index].clone().requires_grad_()
    totals = eager(made, rows, (given[0], given[1]))
    alpha = 0.0 if made.args.objective == "sft" else made.args.alpha
    loss = (1 - alpha) * totals["cross_entropy"] / totals["labels"]
    loss = loss + alpha * (totals["kd"] + totals["t2s_ce"]) / totals["pairs"].clamp(min=1)
    of_student = {f"student.{name}": one for name, one in made.student.named_parameters()}
    wanted = {**of_student, **trained}
    grads = torch.autograd.grad(loss, list(wanted.values()), allow_unused=True, materialize_grads=True)
    return float(loss.detach()), dict(zip(wanted, grads, strict=True))


DEFAULTS = {name: getattr(DualSpace(), name) for name in tiny.UNGATED}
"""Of dual space, where tests have `tiny.UNGATED`."""

STEPS: list[dict[str, Any]] = [
    {},
    {"alpha": 0.3, "divergence": "reverse_kl", "temperature": 2.0},
    {"gate": "gold", "t2s_target": "gold", "alpha": 1.0},
    {"student_to_teacher": "trained", "t2s_target": "distribution", "columns": "overlap"},
    {"spaces": "teacher", "centre": True, "s2t_columns": "overlap"},
    DEFAULTS,
    {"objective": "shared_vocabulary", "temperature": 0.7},
    {"objective": "sft"},
]
"""A way of each kind from a line of options to a loss; all others are in tests/frozen."""


@pytest.mark.parametrize("given", STEPS, ids=str)
def test_one_step_is_the_definition_written_out(given: dict[str, Any], tmp_path: Path) -> None:
    made = tiny.trainer(tmp_path, **given)
    assert_a_step_is_the_definition(made)


def set_exactly(made: Any) -> None:
    """The projectors without the rounding to float32 in which they come; they were right but for that."""
    if made.args.objective == "dual_space":
        for name, solved in zip(PROJECTORS, projectors_of(made), strict=True):
            own = getattr(built_by(made), name)
            assert torch.allclose(own.detach(), solved, rtol=1e-5, atol=1e-6), name
            with torch.no_grad():
                own.copy_(solved)


def assert_a_step_is_the_definition(made: Any) -> None:
    """Loss and every gradient of one step on all rows, the projectors as exact as they can be."""
    set_exactly(made)
    loss, gradients = step(made, tiny.batch_of(made, ROWS))
    expected_loss, expected = by_definition(made, ROWS)
    assert loss == pytest.approx(expected_loss, rel=1e-9)
    assert_same(gradients, expected, relative=1e-9)


def open_in_part(made: Any, batch: Collated, gate: str) -> Tensor:
    """A P_ts that is fitted to say what opens the gate, and has too few rows to say it at every pair; set."""
    places, tokens = batch.places.teachers["teacher"], batch.teachers["teacher"]
    states = teacher_of(made).model(tokens.input_ids, tokens.attention_mask).last_hidden_state
    states = states[places.row, places.column].detach()
    said = batch.places.student.labels[places.paired]
    if gate == "prediction":
        mapped = dict(tiny.overlap(*(side.vocabulary for side in sides_of(made))))
        best = teacher_of(made).lm_head(states).argmax(-1).tolist()
        said = torch.tensor([mapped.get(token, 0) for token in best])
    projector: Tensor = torch.linalg.pinv(states) @ made.student.lm_head.weight.detach()[said] * 10
    with torch.no_grad():
        built_by(made).teacher_to_student.copy_(projector)
    return projector


@pytest.mark.parametrize("gate", ["prediction", "gold"])
def test_a_gate_that_is_open_in_part_is_the_definition_too(gate: str, tmp_path: Path) -> None:
    made = tiny.trainer(tmp_path, gate=gate, spaces="student")
    batch = tiny.batch_of(made, ROWS)
    projector = open_in_part(made, batch, gate)
    loss, gradients = step(made, batch)
    expected_loss, expected = by_definition(made, ROWS, teacher_to_student=projector)
    assert loss == pytest.approx(expected_loss, rel=1e-9)
    assert_same(gradients, expected, relative=1e-9)
    closed_and_open = [
        float(
            eager(tiny.trainer(tmp_path, gate=one, spaces="student"), ROWS, (projector, projector.T))[
                "kd"
            ].detach()
        )
        for one in (gate, None)
    ]
    assert 0 < closed_and_open[0] < closed_and_open[1]


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_four_rows_at_once_are_four_rows_one_after_the_other(objective: str, tmp_path: Path) -> None:
    at_once = tiny.trainer(tmp_path, objective=objective, weight_decay=0.01)
    in_turn = tiny.trainer(
        tmp_path,
        objective=objective,
        weight_decay=0.01,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=4,
    )
    before = {name: one.clone() for name, one in at_once.model.state_dict().items()}
    for made in (at_once, in_turn):
        made.train()
        assert made.state.global_step == 3
    assert_same(in_turn.model.state_dict(), at_once.model.state_dict(), relative=1e-10)
    moved = [name for name, one in at_once.model.state_dict().items() if not torch.equal(one, before[name])]
    assert len(moved) == len(before)
    for one, other in zip(tiny.steps_logged(at_once), tiny.steps_logged(in_turn), strict=True):
        for name in ("loss", "grad_norm", "cross_entropy", "labels", "pairs", "ratio"):
            assert one[name] == pytest.approx(other[name], rel=1e-6), name


def test_the_trainer_that_is_installed_asks_whether_a_loss_is_scaled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that does not know the attribute divides by the micro-batches, whatever a trainer says."""
    assert Trainer.loss_is_scaled_for_ga is None
    moved = []
    for is_scaled in (True, False):
        monkeypatch.setattr(DistillationTrainer, "loss_is_scaled_for_ga", is_scaled)
        made = tiny.trainer(
            tmp_path,
            objective="sft",
            max_steps=1,
            per_device_train_batch_size=1,
            gradient_accumulation_steps=4,
        )
        before = made.student.lm_head.weight.detach().clone()
        made.train()
        moved.append(made.student.lm_head.weight.detach() - before)
    assert torch.allclose(moved[0], 4 * moved[1], rtol=1e-6, atol=1e-12)
    assert moved[0].abs().max() > 1e-3


@pytest.mark.parametrize("preset", ["dskd_v2", "dskd_v2_same_vocabulary"])
def test_what_divides_by_the_micro_batch_moves_as_far_in_four_equal_ones_as_in_one(
    preset: str, tmp_path: Path
) -> None:
    """Summed over them in place of averaged, the projector would move four times as far."""
    found, rows = [], [ROWS[1]]
    for count in (1, 4):
        made = tiny.trainer(
            tmp_path,
            preset=preset,
            rows=rows * count,
            max_steps=1,
            per_device_train_batch_size=1,
            gradient_accumulation_steps=count,
        )
        before = open_in_part(made, tiny.batch_of(made, rows), "prediction")
        made.train()
        assert (built_by(made).teacher_to_student - before).abs().max() > 1e-3
        (line,) = tiny.steps_logged(made)
        assert 0 < line["gated"] < 1
        found.append(made.model.state_dict())
    assert_same(found[1], found[0], relative=1e-10)


TRAJECTORIES: list[dict[str, Any]] = [
    {},
    {"preset": "dskd_v1"},
    {"preset": "dskd_v2", "temperature": 2.0},
    {"teacher_to_student": "solved", "t2s_target": "distribution", "columns": "overlap"},
    *({"objective": name} for name in OBJECTIVES if name not in ("sft", "dual_space")),
]


@pytest.mark.parametrize("given", TRAJECTORIES, ids=str)
def test_the_fused_loss_trains_as_its_definition_does(given: dict[str, Any], tmp_path: Path) -> None:
    """Every preset too: some steps of Adam, at the end of which all weights are the same."""
    made = [tiny.trainer(tmp_path, optim="adamw_torch", learning_rate=0.01, **given) for _ in range(2)]
    before = {name: one.clone() for name, one in made[0].model.state_dict().items()}
    for one, fused in zip(made, (False, True), strict=True):
        assert one.model.objective.fused
        one.model.objective.fused = fused
        one.train()
    assert_same(made[1].model.state_dict(), made[0].model.state_dict(), relative=1e-8)
    assert all(
        not torch.equal(one, before[name])
        for name, one in made[1].model.student.state_dict(prefix="student.").items()
    )
    for line, other in zip(*(tiny.steps_logged(one) for one in made), strict=True):
        assert set(line) == set(other)
        for name in ("loss", *made[1].terms):
            assert line[name] == pytest.approx(other[name], rel=1e-6, abs=1e-9), name


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_in_float32_too_and_with_a_last_step_that_is_shorter(objective: str, tmp_path: Path) -> None:
    """Seven rows: the second step has three micro-batches."""
    found = []
    for size, accumulated in ((4, 1), (1, 4)):
        made = tiny.trainer(
            tmp_path,
            objective=objective,
            rows=ROWS[:7],
            per_device_train_batch_size=size,
            gradient_accumulation_steps=accumulated,
            max_steps=-1,
            num_train_epochs=2,
            dtype=torch.float32,
        )
        made.train()
        assert made.state.global_step == 4
        found.append(made.model.state_dict())
    assert_same(found[1], found[0], relative=1e-5)


def padded(tokens: Tokens) -> Tokens:
    """The same, with something else in more columns of padding."""
    ids, mask = tokens.input_ids, tokens.attention_mask
    junk = torch.arange(5, 12).expand(3, 7)
    ids = torch.cat([torch.where(mask.bool(), ids, 9), junk], dim=1)
    return Tokens(ids, torch.cat([mask, torch.zeros_like(junk)], dim=1))


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_padding_changes_nothing_whatever_stands_in_it(objective: str, tmp_path: Path) -> None:
    made = tiny.trainer(tmp_path, objective=objective)
    batch = tiny.batch_of(made, ROWS[:3])
    wider = replace(
        batch,
        student=padded(batch.student),
        teachers={name: padded(tokens) for name, tokens in batch.teachers.items()},
    )
    loss, gradients = step(made, batch)
    other_loss, other = step(made, wider)
    assert other_loss == pytest.approx(loss, rel=1e-10)
    assert_same(other, gradients, relative=1e-10)


# ---- The teacher -----------------------------------------------------------------------------------------


def test_the_teacher_is_frozen_and_in_eval_mode_also_while_the_student_trains(tmp_path: Path) -> None:
    teacher = tiny.gpt2(len(tiny.teacher_tokenizer()), 24, resid_pdrop=0.5, embd_pdrop=0.5, attn_pdrop=0.5)
    teacher.train()
    before = copy.deepcopy(teacher.state_dict())
    made = tiny.trainer(tmp_path, teacher=teacher, objective="shared_vocabulary")
    batch = tiny.batch_of(made, ROWS)
    assert step(made, batch)[0] == step(made, batch)[0]
    made.train()
    assert not any(module.training for module in teacher.modules())
    assert all(not one.requires_grad and one.grad is None for one in teacher.parameters())
    assert_same(teacher.state_dict(), before, relative=0)


def test_the_teacher_is_in_neither_the_trained_module_nor_what_is_saved(tmp_path: Path) -> None:
    made = tiny.trainer(tmp_path)
    own = {id(one) for one in teacher_of(made).parameters()}
    assert own.isdisjoint(id(one) for one in made.model.parameters())
    made.save_model()
    saved = load_file(tmp_path / "model.safetensors")
    assert set(saved) == set(made.student.state_dict())
    for name, value in saved.items():
        assert torch.equal(value, made.student.state_dict()[name])


@pytest.mark.parametrize("given", [{"objective": "sft"}, {"objective": "sft", "alpha": 1.0}])
def test_cross_entropy_alone_never_runs_the_teacher(given: dict[str, Any], tmp_path: Path) -> None:
    made = tiny.trainer(tmp_path, **given)
    with made_fail(made):
        made.train()
    assert [line["loss"] for line in tiny.steps_logged(made)] == [
        pytest.approx(line["cross_entropy"], rel=1e-6) for line in tiny.steps_logged(made)
    ]
    assert len(made.model.objective.built) == 0


class made_fail:  # noqa: N801 - reads as a statement
    """While it lasts, running the teacher is an error."""

    def __init__(self, made: Any) -> None:
        self._made = made

    def __enter__(self) -> None:
        def refuse(*_: Any) -> None:
            raise AssertionError("the teacher ran")

        self._handle = teacher_of(self._made).get_input_embeddings().register_forward_hook(refuse)

    def __exit__(self, *_: object) -> None:
        self._handle.remove()


# ---- Projectors ------------------------------------------------------------------------------------------


def groups_with(made: Any, parameter: Tensor) -> list[dict[str, Any]]:
    optimizer = made.create_optimizer()
    return [group for group in optimizer.param_groups if any(one is parameter for one in group["params"])]


@pytest.mark.parametrize(
    ("given", "trained"),
    [
        ({}, ["teacher_to_student"]),
        ({"student_to_teacher": "trained"}, ["teacher_to_student", "student_to_teacher"]),
        ({"spaces": "teacher"}, []),
        ({"target": "exact"}, []),
        ({"target": "exact", "gate": "gold"}, ["teacher_to_student"]),
        ({"teacher_to_student": "solved", "student_to_teacher": "trained"}, ["student_to_teacher"]),
        ({"spaces": "student", "student_to_teacher": "trained"}, ["teacher_to_student"]),
    ],
    ids=str,
)
def test_trained_projectors_are_once_in_the_optimizer_with_their_own_rate_and_no_decay(
    given: dict[str, Any], trained: list[str], tmp_path: Path
) -> None:
    made = tiny.trainer(tmp_path, weight_decay=0.1, projector_learning_rate=0.003, **given)
    for name in PROJECTORS:
        groups = groups_with(made, getattr(built_by(made), name))
        assert len(groups) == (name in trained)
        assert all((one["lr"], one["weight_decay"]) == (0.003, 0.0) for one in groups)
    optimizer = made.create_optimizer()
    held = [id(one) for group in optimizer.param_groups for one in group["params"]]
    assert len(held) == len(set(held))
    assert set(held) == {id(one) for one in made.model.parameters() if one.requires_grad}
    assert {group["lr"] for group in optimizer.param_groups if group["params"]} <= {0.1, 0.003}


def test_a_schedule_moves_the_rate_of_the_projectors_with_the_rest(tmp_path: Path) -> None:
    made = tiny.trainer(tmp_path, lr_scheduler_type="linear", max_steps=4, projector_learning_rate=0.02)
    made.create_optimizer_and_scheduler(4)
    rates = []
    for _ in range(4):
        rates.append(sorted({group["lr"] for group in made.optimizer.param_groups if group["params"]}))
        made.optimizer.step()
        made.lr_scheduler.step()
    assert rates == [
        [pytest.approx(0.02 * share), pytest.approx(0.1 * share)] for share in (1, 0.75, 0.5, 0.25)
    ]


def test_the_solved_projector_follows_the_head_of_the_student(tmp_path: Path) -> None:
    made = tiny.trainer(tmp_path, max_steps=2)
    projectors = built_by(made)
    first = projectors.student_to_teacher.clone()
    made.train()
    assert not torch.allclose(projectors.student_to_teacher, first, rtol=1e-3)
    step(made, tiny.batch_of(made, ROWS))
    assert torch.allclose(projectors.student_to_teacher, projectors_of(made)[1], rtol=1e-6, atol=1e-9)


def test_a_solved_projector_of_the_teacher_follows_the_head_weighted_by_what_the_teacher_expects(
    tmp_path: Path,
) -> None:
    """`argmin sum f_v |P W_s[v] - W_t[v]|^2`, f_v the teacher's mean probability at the pairs."""
    made = tiny.trainer(tmp_path, teacher_to_student="solved", max_steps=2)
    projectors = built_by(made)
    first = projectors.teacher_to_student.clone()
    made.train()
    assert not torch.allclose(projectors.teacher_to_student, first, rtol=1e-3)
    assert isinstance(projectors.teacher_probability_sums, torch.Tensor)
    seen, count = projectors.teacher_probability_sums.clone(), int(projectors.teacher_probability_count)
    assert count == sum(line["pairs"] for line in tiny.steps_logged(made))
    batch = tiny.batch_of(made, ROWS)
    step(made, batch)
    places, tokens = batch.places.teachers["teacher"], batch.teachers["teacher"]
    logits = teacher_of(made)(tokens.input_ids, tokens.attention_mask).logits
    said = logits[places.row, places.column].softmax(-1).sum(0)
    pairs = torch.tensor(tiny.overlap(*(side.vocabulary for side in sides_of(made))))
    seen += said[pairs[:, 0]]
    assert torch.allclose(projectors.teacher_probability_sums, seen, rtol=1e-10)
    roots = (seen / (count + len(places.paired))).clamp(min=1e-6).sqrt()[:, None]
    weights = teacher_of(made).lm_head.weight.detach(), made.student.lm_head.weight.detach()
    teacher, student = (roots * one[pairs[:, side]] for side, one in enumerate(weights))
    expected = torch.linalg.lstsq(student, teacher).solution.T
    assert torch.allclose(projectors.teacher_to_student, expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_is_solved_also_where_the_whole_module_was_cast(dtype: torch.dtype, tmp_path: Path) -> None:
    made = tiny.trainer(tmp_path)
    projectors = built_by(made)
    expected = projectors.student_to_teacher.clone()
    made.model.to(dtype)
    with torch.no_grad():
        projectors.student_to_teacher.zero_()
    projectors.refresh(
        student_weight=made.student.lm_head.weight, teacher_weight=teacher_of(made).lm_head.weight
    )
    assert torch.allclose(projectors.student_to_teacher.double(), expected, rtol=0.05, atol=0.02)


def test_it_is_solved_again_only_every_so_many_steps(tmp_path: Path) -> None:
    seen: list[Tensor] = []
    made = tiny.trainer(tmp_path, max_steps=5, refresh_every=2, gradient_accumulation_steps=2)
    projectors = built_by(made)
    made.model.register_forward_hook(lambda *_: seen.append(projectors.student_to_teacher.clone()))
    made.train()
    assert len(seen) == 10
    same = [bool(torch.equal(one, other)) for one, other in itertools.pairwise(seen)]
    # Of two micro-batches a step, steps 0 and 1 share one projector, so do 2 and 3; 4 has its own.
    assert same == [True, True, True, False, True, True, True, False, True]


def test_a_trained_one_begins_where_the_solved_one_does_and_is_moved_by_gradients(tmp_path: Path) -> None:
    made = tiny.trainer(tmp_path, student_to_teacher="trained")
    projector = built_by(made).student_to_teacher
    assert torch.allclose(projector.detach(), projectors_of(made)[1], rtol=1e-5, atol=1e-6)
    before, (_, gradients) = projector.detach().clone(), step(made, tiny.batch_of(made, ROWS))
    gradient = gradients[BESIDE + "student_to_teacher"]
    assert gradient is not None
    optimizer = made.create_optimizer()
    optimizer.step()
    assert torch.allclose(projector.detach(), before - 0.05 * gradient, rtol=1e-10)


def test_only_the_students_own_terms_move_the_student(tmp_path: Path) -> None:
    """t2s_ce moves P_ts alone: with its target another, the student's gradients are the same."""
    found = [
        step(made, tiny.batch_of(made, ROWS))[1]
        for made in (tiny.trainer(tmp_path, t2s_target=y) for y in ("prediction", "gold", "distribution"))
    ]
    for one, other in itertools.combinations(found, 2):
        for name, gradient in one.items():
            another = other[name]
            assert gradient is not None
            assert another is not None
            assert torch.equal(gradient, another) == name.startswith("student."), name


def test_the_teachers_space_leaves_the_head_of_the_student_alone(tmp_path: Path) -> None:
    made = tiny.trainer(tmp_path, spaces="teacher", alpha=1.0)
    _, gradients = step(made, tiny.batch_of(made, ROWS))
    head, body = gradients["student.lm_head.weight"], gradients["student.model.norm.weight"]
    assert head is not None
    assert body is not None
    assert not head.any()
    assert body.abs().max() > 1e-4


# ---- Batches without a pair, and losses that are no numbers ----------------------------------------------

# Cut behind the first token, which is ` Paris` for one and a letter, after its space, for the other.
UNPAIRED = [{"prompt": "The", "completion": " forty"}, {"prompt": "A", "completion": " world"}]


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"student_to_teacher": "trained"},
        {"spaces": "student", "gate": "prediction"},
        {"spaces": "teacher"},
        {"preset": "dskd_v1"},
        {"preset": "dskd_v2"},
        {"teacher_to_student": "solved"},
        {"t2s_target": "distribution", "columns": "overlap", "s2t_columns": "overlap"},
        *(
            {"objective": name}
            for name in OBJECTIVES
            if name not in ("sft", "dual_space", *tiny.ONE_VOCABULARY)  # all of one vocabulary is a pair
        ),
    ],
    ids=str,
)
def test_a_batch_without_a_pair_is_finite_and_connected(given: dict[str, Any], tmp_path: Path) -> None:
    made = tiny.trainer(tmp_path, rows=UNPAIRED, max_response_length=1, max_steps=1, **given)
    batch = tiny.batch_of(made, UNPAIRED)
    counts = batch.places.counts()
    assert (counts["labels"], counts["pairs"], counts.get("chunks", 0)) == (2, 0, 0)
    loss, gradients = step(made, batch)
    assert loss == pytest.approx(0.5 * cross_entropy(made, batch), rel=1e-10)
    for name, gradient in gradients.items():
        assert gradient is not None, name
        assert gradient.isfinite().all(), name
        assert bool(gradient.any()) == name.startswith("student."), name
    made.train()
    assert tiny.steps_logged(made)[0]["pairs"] == 0
    assert math.isfinite(tiny.steps_logged(made)[0]["loss"])


def cross_entropy(made: Any, batch: Collated) -> float:
    """Of one label a row, behind its last id but one."""
    ids, mask = batch.student.input_ids, batch.student.attention_mask
    logits = made.student(ids, mask).logits
    columns = mask.sum(1) - 1
    rows = torch.arange(len(columns))
    labels = ids[rows, columns]
    said = logits[rows, columns - 1].log_softmax(-1)[rows, labels]
    return -float(said.mean().detach())


def test_a_micro_batch_without_a_pair_beside_one_with_pairs(tmp_path: Path) -> None:
    made = tiny.trainer(tmp_path, max_response_length=1)
    paired = [{"prompt": "A", "completion": " Paris"}]
    batches = [tiny.batch_of(made, rows) for rows in (UNPAIRED, paired)]
    assert [batch.places.counts()["pairs"] for batch in batches] == [0, 1]
    loss, gradients = step(made, *batches)
    other_loss, other = step(made, tiny.batch_of(made, [*UNPAIRED, *paired]))
    assert loss == pytest.approx(other_loss, rel=1e-10)
    assert_same(gradients, other, relative=1e-10)


@pytest.mark.parametrize(
    ("given", "poisoned", "named"),
    [
        ({"objective": "sft"}, "student.model.norm.weight", "cross_entropy"),
        ({"objective": "shared_vocabulary"}, "student.lm_head.weight", "cross_entropy, shared_kd"),
        ({}, BESIDE + "teacher_to_student", "t2s_ce, t2s_kd"),
        ({"student_to_teacher": "trained"}, BESIDE + "student_to_teacher", "s2t_kd"),
        ({"t2s_target": "distribution"}, BESIDE + "teacher_to_student", "t2s_kl, t2s_kd"),
        (
            {"target": "exact", "columns": "overlap", "gate": "gold"},
            BESIDE + "teacher_to_student",
            "t2s_ce",
        ),
    ],
)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_no_number_stops_and_is_named(
    given: dict[str, Any], poisoned: str, named: str, value: float, tmp_path: Path
) -> None:
    made = tiny.trainer(tmp_path, **given)
    with torch.no_grad():
        made.model.get_parameter(poisoned)[...] = value
    before = {name: one.clone() for name, one in made.model.state_dict().items()}
    with pytest.raises(FloatingPointError, match=rf"^step 0: {named} is not finite") as raised:
        made.train()
    assert "Lower the learning rate" in str(raised.value)
    for name, one in made.model.state_dict().items():
        if name != BESIDE + "student_to_teacher":
            assert torch.equal(one.nan_to_num(), before[name].nan_to_num()), name


# ---- Vocabularies and models -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "given", [{}, {"divergence": "reverse_kl"}, {"objective": "shared_vocabulary"}], ids=str
)
def test_padded_slots_of_a_model_have_no_probability_in_distillation(
    given: dict[str, Any], tmp_path: Path
) -> None:
    """The definition of the step leaves them out; that they would be likely otherwise is seen to."""
    sizes = {name: getattr(tiny, f"{name}_tokenizer")() for name in ("teacher", "student")}
    teacher = tiny.llama(len(sizes["teacher"]) + 5, 24, seed=2)
    student = tiny.llama(len(sizes["student"]) + 3, 16, seed=1)
    with torch.no_grad():
        teacher.lm_head.weight[-5:] *= 10
        student.lm_head.weight[-3:] *= 10
    made = tiny.trainer(tmp_path, teacher=teacher, student=student, **given)
    assert_a_step_is_the_definition(made)
    made.train()


@pytest.mark.parametrize("side", ["teacher", "student"])
def test_a_tokenizer_whose_every_row_has_an_id_that_its_model_lacks_is_refused(
    side: str, tmp_path: Path
) -> None:
    size = len(getattr(tiny, f"{side}_tokenizer")())
    with pytest.raises(ValueError, match=rf"^the {side}'s tokenizer: .*{size - 1}"):
        tiny.trainer(tmp_path, **{side: tiny.llama(size - 1, 16)})


@pytest.mark.parametrize("side", ["teacher", "student"])
def test_a_tokenizer_without_an_end_of_sequence_is_refused(side: str, tmp_path: Path) -> None:
    without = copy.deepcopy(getattr(tiny, f"{side}_tokenizer")())
    without.eos_token = None
    given = {
        "processing_class": tiny.student_tokenizer(),
        "teacher_processing_class": tiny.teacher_tokenizer(),
    }
    given["processing_class" if side == "student" else "teacher_processing_class"] = without
    student, teacher = (
        tiny.llama(len(one), 16) for one in (given["processing_class"], given["teacher_processing_class"])
    )
    with pytest.raises(
        ValueError, match=rf"^the {side}'s tokenizer has no end of sequence; set its eos_token$"
    ):
        DistillationTrainer(student, teacher, tiny.options(tmp_path), **given)


def test_a_model_without_a_linear_head_is_refused(tmp_path: Path) -> None:
    student = tiny.llama(len(tiny.student_tokenizer()), 16)
    original = student.lm_head.forward
    student.lm_head.forward = lambda hidden: original(hidden) + 3.0
    with pytest.raises(ValueError, match="LlamaForCausalLM are not those of a linear head"):
        tiny.trainer(tmp_path, student=student)


def test_a_student_of_another_family_with_a_tied_head_trains(tmp_path: Path) -> None:
    student = tiny.gpt2(len(tiny.student_tokenizer()), 16, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
    assert student.lm_head.weight is student.transformer.wte.weight
    made = tiny.trainer(tmp_path, student=student)
    assert_a_step_is_the_definition(made)
    made.train()
    made.save_model()
    assert torch.equal(AutoModelForCausalLM.from_pretrained(tmp_path).lm_head.weight, student.lm_head.weight)


@pytest.mark.filterwarnings(
    # transformers 5.24 has another name for it, and 5.0 has not.
    "ignore:.*gradient_checkpointing.* deprecated:FutureWarning"
)
def test_gradient_checkpointing_changes_nothing(tmp_path: Path) -> None:
    found, forwards = [], []
    for checkpointing in (False, True):
        made = tiny.trainer(tmp_path, gradient_checkpointing=checkpointing)
        ran: list[int] = []
        made.student.model.layers[0].self_attn.register_forward_hook(lambda *_, ran=ran: ran.append(1))
        made.train()
        forwards.append(len(ran))
        found.append(made.model.state_dict())
    assert forwards == [3, 6]
    assert_same(found[1], found[0], relative=1e-10)


def test_frozen_parts_of_the_student_stay(tmp_path: Path) -> None:
    student = tiny.llama(len(tiny.student_tokenizer()), 16)
    student.lm_head.requires_grad_(requires_grad=False)
    before = student.lm_head.weight.clone()
    made = tiny.trainer(tmp_path, student=student)
    made.train()
    assert torch.equal(student.lm_head.weight, before)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"alpha": 1.5}, r"alpha=1.5; it is a share, from 0 to 1"),
        ({"alpha": -0.1}, r"alpha=-0.1; it is a share, from 0 to 1"),
        ({"temperature": 0.0}, r"temperature=0.0; it is a number above 0"),
        ({"temperature": math.nan}, r"temperature=nan; it is a number above 0"),
        ({"refresh_every": 0}, r"refresh_every=0; it is a number from 1 on"),
        ({"s2t_weight": -1.0}, r"s2t_weight=-1.0; it is a number from 0 on"),
        ({"projector_learning_rate": -1.0}, r"projector_learning_rate=-1.0; it is a number from 0 on"),
        (
            {"gate": "open"},
            r"dual_space: gate='open'; it is one of (prediction, gold|gold, prediction), none",
        ),
        (
            {"target": "exact", "divergence": "reverse_kl"},
            r"divergence='reverse_kl' is infinite outside .* set columns='overlap', or take another .*",
        ),
        ({"max_prompt_length": 0}, r"max_prompt_length=0; it is at least 1"),
        ({"max_response_length": 0}, r"max_response_length=0; it is at least 1"),
    ],
)
def test_options_out_of_range_are_refused(given: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        tiny.options(tmp_path, **given)


# ---- Logs and evaluation ---------------------------------------------------------------------------------


def test_what_is_logged_is_the_sums_over_the_counts_since_the_last_time(tmp_path: Path) -> None:
    """Two steps of two micro-batches in one line: eight rows, all of them."""
    made = tiny.trainer(
        tmp_path,
        learning_rate=0.0,
        projector_learning_rate=0.0,
        logging_steps=2,
        max_steps=2,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
    )
    totals = {name: one.item() for name, one in eager(made, ROWS, projectors_of(made)).items()}
    made.train()
    (line,) = tiny.steps_logged(made)
    sides = sides_of(made)
    assert line["labels"] == totals["labels"]
    assert line["pairs"] == totals["pairs"]
    assert line["cross_entropy"] == pytest.approx(totals["cross_entropy"] / totals["labels"], rel=1e-6)
    assert line["t2s_ce"] == pytest.approx(totals["t2s_ce"] / totals["pairs"], rel=1e-6)
    assert line["t2s_kd"] + line["s2t_kd"] == pytest.approx(totals["kd"] / totals["pairs"], rel=1e-5)
    readings = [(tiny.read(sides[0], row), tiny.read(sides[1], row)) for row in ROWS]
    text_pairs = sum(
        len(tiny.token_pairs(sides, one, row["completion"])) - 1
        for one, row in zip(readings, ROWS, strict=True)
    )
    text_tokens = sum(
        len(tiny.spans_of(sides[1], one[1], row["completion"].encode())) - 1
        for one, row in zip(readings, ROWS, strict=True)
    )
    assert line["ratio"] == pytest.approx(text_pairs / text_tokens)
    assert (line["coverage_teacher"], line["coverage_student"]) == (1, 1)
    assert "student_cut" not in line


@pytest.mark.parametrize(("counted", "padding"), [("all", True), ("non_padding", False)])
def test_the_students_tokens_are_counted(counted: str, padding: bool, tmp_path: Path) -> None:
    made = tiny.trainer(
        tmp_path,
        include_num_input_tokens_seen=counted,
        max_steps=1,
        per_device_train_batch_size=len(ROWS),
    )
    made.train()
    tokens = tiny.batch_of(made, ROWS).student
    expected = tokens.input_ids.numel() if padding else int(tokens.attention_mask.sum())
    assert made.state.num_input_tokens_seen == expected


def test_cut_responses_are_logged(tmp_path: Path) -> None:
    made = tiny.trainer(tmp_path, max_response_length=6, max_steps=2)
    made.train()
    sides = sides_of(made)
    cut = [sum(len((one := tiny.read(side, row)).ids) - one.first > 6 for row in ROWS) for side in sides]
    found = [
        sum(line.get(f"{side}_cut", 0) for line in tiny.steps_logged(made)) for side in ("teacher", "student")
    ]
    assert found == cut
    assert 0 < cut[0] < cut[1]


def test_evaluation_says_bits_per_byte_and_logs_them(tmp_path: Path) -> None:
    made = tiny.trainer(tmp_path, more={"eval_dataset": ROWS[:5]})
    with pytest.raises(AssertionError), made_fail(made):
        teacher_of(made)(torch.tensor([[1]]))
    with made_fail(made):
        metrics = made.evaluate()
    assert made.student.training is False or made.model.training
    assert {name for name in metrics if name != "epoch"} == {
        "eval_bits_per_byte",
        "eval_end_of_turn_bits",
        "eval_rows",
        "eval_bytes",
        "eval_loss",
    }
    assert metrics["eval_loss"] == metrics["eval_bits_per_byte"]
    assert (metrics["eval_rows"], metrics["eval_bytes"]) == (
        5,
        sum(len(row["completion"].encode()) for row in ROWS[:5]),
    )
    assert metrics["eval_bits_per_byte"] == pytest.approx(bits_per_byte(made, ROWS[:5]), rel=1e-6)
    assert made.state.log_history[-1]["eval_bits_per_byte"] == metrics["eval_bits_per_byte"]
    other = made.evaluate(ROWS[5:], metric_key_prefix="test")
    assert other["test_bits_per_byte"] == pytest.approx(bits_per_byte(made, ROWS[5:]), rel=1e-6)


def bits_per_byte(made: Any, rows: Sequence[Mapping[str, Any]]) -> float:
    bits, size = 0.0, 0
    for row in rows:
        reading = tiny.read(sides_of(made)[1], row)
        with torch.no_grad():
            said = made.student(torch.tensor([reading.ids])).logits[0].log_softmax(-1)
        bits -= sum(
            float(said[column - 1, reading.ids[column]]) for column in reading.columns[:-1]
        ) / math.log(2)
        size += len(row["completion"].encode())
    return bits / size


def test_several_sets_of_rows_are_evaluated_apart(tmp_path: Path) -> None:
    made = tiny.trainer(tmp_path, more={"eval_dataset": {"short": ROWS[:2], "long": ROWS[2:5]}})
    metrics = made.evaluate()
    for name, rows in made.eval_dataset.items():
        alone = made.evaluate(rows)
        assert metrics[f"eval_{name}_bits_per_byte"] == alone["eval_bits_per_byte"]


def test_evaluation_without_rows_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nothing to evaluate: give eval_dataset"):
        tiny.trainer(tmp_path).evaluate()


def test_the_best_model_by_bits_per_byte_is_loaded_at_the_end(tmp_path: Path) -> None:
    """The rate is so high that the first of three is the best."""
    made = tiny.trainer(
        tmp_path,
        learning_rate=20.0,
        save_strategy="steps",
        save_steps=1,
        eval_strategy="steps",
        eval_steps=1,
        load_best_model_at_end=True,
        metric_for_best_model="bits_per_byte",
        greater_is_better=False,
        more={"eval_dataset": ROWS},
    )
    made.train()
    said = [line["eval_bits_per_byte"] for line in made.state.log_history if "eval_bits_per_byte" in line]
    best = min(range(len(said)), key=said.__getitem__)
    assert best < len(said) - 1, said
    saved = load_file(tmp_path / f"checkpoint-{best + 1}" / "model.safetensors")
    assert_same(made.student.state_dict(), saved, relative=0)


# ---- Files -----------------------------------------------------------------------------------------------


@pytest.fixture
def all_that_is_said(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """Transformers' own logger goes nowhere else than to its handler; here it is heard."""
    transformers_logging.enable_propagation()
    yield caplog
    transformers_logging.disable_propagation()


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_saved_student_opens_like_any_other_and_says_the_same(
    objective: str, tmp_path: Path, all_that_is_said: pytest.LogCaptureFixture
) -> None:
    made = tiny.trainer(tmp_path, objective=objective)
    made.train()
    made.save_model()
    all_that_is_said.clear()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            tmp_path, output_loading_info=True, dtype=torch.float64
        )
        tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    opened, how = loaded
    assert not caught
    assert [record.getMessage() for record in all_that_is_said.records if record.levelname != "INFO"] == []
    assert not any(how.values()), how
    ids = torch.tensor([[3, 1, 4, 1, 5]])
    made.student.eval()
    opened.eval()
    assert torch.allclose(opened(ids).logits, made.student(ids).logits, rtol=1e-4, atol=1e-5)
    assert_same(opened.state_dict(), made.student.state_dict(), relative=0)
    for row in ROWS:
        text = row["prompt"] + row["completion"]
        assert tokenizer(text)["input_ids"] == tiny.student_tokenizer()(text)["input_ids"]
    assert tokenizer.eos_token_id == tiny.student_tokenizer().eos_token_id
    assert opened.config.eos_token_id == tokenizer.eos_token_id


def test_projectors_are_saved_beside_the_student_and_say_what_they_belong_to(tmp_path: Path) -> None:
    made = tiny.trainer(tmp_path)
    made.train()
    made.save_model()
    saved = load_file(tmp_path / PROJECTORS_FILE)
    assert {name: tuple(one.shape) for name, one in saved.items()} == PROJECTORS
    for name, one in saved.items():
        assert torch.equal(one, getattr(built_by(made), name))
    with safe_open(tmp_path / PROJECTORS_FILE, "pt") as file:
        about = file.metadata()
    assert about == {
        f"{name}_vocabulary": side.vocabulary.content_hash
        for name, side in zip(("teacher", "student"), sides_of(made), strict=True)
    }


@pytest.mark.parametrize("objective", [name for name in OBJECTIVES if name != "dual_space"])
def test_without_projectors_there_is_no_file_of_them(objective: str, tmp_path: Path) -> None:
    tiny.trainer(tmp_path, objective=objective).save_model()
    assert not (tmp_path / PROJECTORS_FILE).exists()
    assert (tmp_path / "model.safetensors").exists()


RESUMED: list[dict[str, Any]] = [
    {"student_to_teacher": "trained", "optim": "adamw_torch", "lr_scheduler_type": "linear"},
    {"refresh_every": 4},
    {"teacher_to_student": "solved", "refresh_every": 2, "optim": "adamw_torch"},
    {"preset": "dskd_v2"},
    *({"objective": name, "optim": "adamw_torch"} for name in OBJECTIVES),
]


@pytest.mark.parametrize("given", RESUMED, ids=str)
def test_a_resumed_run_is_the_uninterrupted_one(given: dict[str, Any], tmp_path: Path) -> None:
    usual = {"max_steps": 6, "save_strategy": "steps", "save_steps": 3, "learning_rate": 0.01, **given}
    whole = tiny.trainer(tmp_path, **usual)
    whole.train()
    resumed = tiny.trainer(tmp_path, **usual)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert_same(resumed.model.state_dict(), whole.model.state_dict(), relative=1e-12)
    assert [(line["step"], line["loss"]) for line in tiny.steps_logged(resumed)] == [
        (line["step"], line["loss"]) for line in tiny.steps_logged(whole)
    ]


def test_resuming_where_the_projectors_are_missing_is_an_error(tmp_path: Path) -> None:
    usual: dict[str, Any] = {"save_strategy": "steps", "save_steps": 2}
    tiny.trainer(tmp_path, **usual).train()
    (tmp_path / "checkpoint-2" / PROJECTORS_FILE).unlink()
    with pytest.raises(FileNotFoundError, match=rf"checkpoint-2/{PROJECTORS_FILE} is missing"):
        tiny.trainer(tmp_path, **usual).train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))


@pytest.mark.parametrize("side", ["teacher", "student"])
def test_resuming_with_another_tokenizer_is_an_error_that_names_the_side(side: str, tmp_path: Path) -> None:
    usual: dict[str, Any] = {"save_strategy": "steps", "save_steps": 2}
    tiny.trainer(tmp_path, **usual).train()
    path = tmp_path / "checkpoint-2" / PROJECTORS_FILE
    with safe_open(path, "pt") as file:
        about = file.metadata()
    save_file(load_file(path), path, metadata={**about, f"{side}_vocabulary": "0" * 64})
    with pytest.raises(ValueError, match=rf"belongs to another {side} vocabulary: .* 0{{64}}, and"):
        tiny.trainer(tmp_path, **usual).train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))


# ---- Workers and processes -------------------------------------------------------------------------------


@pytest.mark.filterwarnings(
    # Python 3.12 says it of every fork of a process with threads; the workers of a DataLoader are forked.
    "ignore:This process .* is multi-threaded, use of fork:DeprecationWarning"
)
def test_a_run_with_workers_is_the_run_without(tmp_path: Path) -> None:
    found = []
    for workers in (0, 2):
        made = tiny.trainer(tmp_path, dataloader_num_workers=workers)
        made.train()
        found.append(made.model.state_dict())
    assert_same(found[1], found[0], relative=1e-12)


def test_streamed_rows_are_trained_on_as_those_of_a_list(tmp_path: Path) -> None:
    found = []
    for rows in (ROWS, Stream(ROWS)):
        made = tiny.trainer(tmp_path, per_device_train_batch_size=len(ROWS), more={"train_dataset": rows})
        made.train()
        found.append(made.model.state_dict())
    assert_same(found[1], found[0], relative=1e-10)


class Stream(IterableDataset[Any]):
    """Rows, one after the other."""

    def __init__(self, rows: Sequence[Mapping[str, Any]]) -> None:
        self._rows = rows

    def __iter__(self) -> Iterator[Any]:
        return iter(self._rows)


STREAMED = "streamed rows"
TWO_TEACHERS = "two teachers"
MICRO_BATCHES = "what divides by the micro-batch"
PROCESSES: dict[str, dict[str, Any]] = {
    "dual_space": {},
    "projectors that are solved": {"teacher_to_student": "solved"},
    "projectors that are trained": {"student_to_teacher": "trained", "t2s_target": "distribution"},
    "steps of two micro-batches": {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2},
    "shared_vocabulary": {"objective": "shared_vocabulary"},
    "sft": {"objective": "sft"},
    STREAMED: {},
    TWO_TEACHERS: {
        "losses": [
            {"loss": "cross_entropy"},
            {"loss": "dual_space", "teacher": "big", "teacher_to_student": "solved", "target": "projected"},
            {"loss": "dual_space", "teacher": "other", **tiny.UNGATED},
        ]
    },
    MICRO_BATCHES: {
        "preset": "dskd_v2",
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
    },
    "a process without a pair": {
        "rows": [UNPAIRED[0], {"prompt": "A", "completion": " Paris"}],
        "max_response_length": 1,
        "per_device_train_batch_size": 2,
    },
}
"""Runs of two processes that are to be those of one."""

SHARDED = ["all at once", "by layers", "given back after the forward"]
REFUSED = ["the student alone", "the head alone"]


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `python tests/test_trainer.py` leaves in two processes over gloo."""
    folder = tmp_path_factory.mktemp("two")
    line = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(
            [
                *(str(Path(__file__).parent / name) for name in (".", "../examples")),
                os.environ.get("PYTHONPATH", ""),
            ]
        ),
    }
    found = subprocess.run(
        [*line, __file__, str(folder)], capture_output=True, text=True, check=False, env=environment
    )
    assert found.returncode == 0, found.stderr[-3000:]
    return folder


@pytest.mark.parametrize("name", PROCESSES)
def test_two_processes_are_one_with_the_same_global_batch(
    name: str, two_processes: Path, tmp_path: Path
) -> None:
    made = in_process(tmp_path, name, processes=1)
    found = load_file(two_processes / name / "trained.safetensors")
    expected = {key: one.contiguous() for key, one in made.model.state_dict().items()}
    assert_same(found, expected, relative=1e-9)
    saved = load_file(two_processes / name / "model.safetensors")
    assert {f"student.{key}" for key in saved} == {key for key in found if key.startswith("student.")}
    assert (two_processes / name / PROJECTORS_FILE).is_file() == (made.args.objective == "dual_space")
    logged = json.loads((two_processes / name / "logs.json").read_text(encoding="utf-8"))
    for one, other in zip(logged, tiny.steps_logged(made), strict=True):
        for key in {"loss", "labels", "pairs", "ratio", *made.terms} & set(other):
            assert one[key] == pytest.approx(other[key], rel=1e-5), key


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("how", SHARDED)
def test_sharded_over_two_processes_the_gradients_are_those_of_one(
    how: str, tied: bool, two_processes: Path, tmp_path: Path
) -> None:
    """FSDP2 of the module that has the loss in its forward."""
    expected = gradients_of(trainer_with_head(tmp_path, tied=tied), ROWS[:4])
    found = load_file(two_processes / f"{how}, {tied}.safetensors")
    assert_same(found, expected, relative=1e-10)


@pytest.mark.parametrize("how", REFUSED)
def test_sharded_otherwise_is_refused_with_the_way_out(how: str, two_processes: Path) -> None:
    said = json.loads((two_processes / f"{how}.json").read_text(encoding="utf-8"))
    assert said == ["TypeError", said[1]]
    assert said[1].startswith("the head is sharded (DTensor): compute the loss inside the forward")


def in_process(folder: Path, name: str, *, processes: int) -> Any:
    """Three steps of four rows each, on so many processes."""
    given = {"rows": ROWS[:4], "per_device_train_batch_size": 4, **PROCESSES[name]}
    if name == STREAMED:
        given["more"] = {"train_dataset": Stream(ROWS[:4])}
    if name == TWO_TEACHERS:
        given["teacher"] = tiny.two_teachers()
    # The second of one process is that of the second process.
    divided = "gradient_accumulation_steps" if name == MICRO_BATCHES else "per_device_train_batch_size"
    given[divided] //= processes
    made = tiny.trainer(folder, ddp_backend="gloo" if processes > 1 else None, **given)
    made.train()
    made.save_model()
    return made


def trainer_with_head(folder: Path, *, tied: bool, **given: Any) -> Any:
    student = tiny.llama(len(tiny.student_tokenizer()), 16, seed=1, tie_word_embeddings=tied)
    return tiny.trainer(folder, student=student, **given)


def gradients_of(made: Any, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor | None]:
    """Of a step of four rows, of which these are some."""
    made.model.zero_grad()
    reduction = Reduction(tiny.batch_of(made, ROWS[:4]).places.counts())
    batch = tiny.batch_of(made, rows)
    parts = made.model(batch, made._spoken(batch), reduction, step=0)  # noqa: SLF001 - of Trainer
    (parts.loss * (4 // len(rows))).backward()
    return {name: one.grad for name, one in made.model.named_parameters() if one.requires_grad}


def shard(model: Any, how: str) -> None:
    mesh = init_device_mesh("cpu", (2,))
    if how == "by layers":
        for layer in model.student.model.layers:
            fully_shard(layer, mesh=mesh)
    alone = {"the student alone": model.student, "the head alone": model.student.lm_head}
    reshard = True if how == "given back after the forward" else None
    fully_shard(alone.get(how, model), mesh=mesh, reshard_after_forward=reshard)


def main() -> None:
    """All runs of two processes, in one go, since to start them takes longest."""
    folder, rank = Path(sys.argv[1]), int(os.environ["RANK"])
    for name in PROCESSES:
        made = in_process(folder / name, name, processes=2)
        if rank == 0:
            whole: nn.Module = made.accelerator.unwrap_model(made.model)
            state = {key: one.contiguous() for key, one in whole.state_dict().items()}
            save_file(state, folder / name / "trained.safetensors")
            logs = json.dumps(tiny.steps_logged(made))
            (folder / name / "logs.json").write_text(logs, encoding="utf-8")
    rows = ROWS[2 * rank : 2 * rank + 2]
    for how, tied in itertools.product(SHARDED, (False, True)):
        made = trainer_with_head(folder, tied=tied, ddp_backend="gloo")
        shard(made.model, how)
        found: dict[str, Any] = dict(gradients_of(made, rows))
        found = {name: one.full_tensor().contiguous() for name, one in found.items()}
        if rank == 0:
            save_file(found, folder / f"{how}, {tied}.safetensors")
    for how in REFUSED:
        made = trainer_with_head(folder, tied=False, ddp_backend="gloo")
        shard(made.model, how)
        said: list[str] = []
        try:
            gradients_of(made, rows)
        except TypeError as error:
            said = [type(error).__name__, str(error)]
        if rank == 0:
            (folder / f"{how}.json").write_text(json.dumps(said), encoding="utf-8")
    distributed.barrier()
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
