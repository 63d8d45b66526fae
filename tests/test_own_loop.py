"""A loop of one's own: an alignment, a batch, an objective and PyTorch's optimizer, without the trainer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
import torch

import tiny
from dskd import Aligner, Vocabulary
from dskd.nn import (
    LOSSES,
    Batch,
    CrossEntropy,
    DualSpace,
    Head,
    Objective,
    Places,
    Reduction,
    TeacherModel,
    VocabularyMaps,
    Weighted,
    loss_of,
)
from dskd.train import Side
from tiny import ROWS, UNGATED, assert_same

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from torch import Tensor

    from dskd.nn import Loss

OBJECTIVES = [name for name in LOSSES if name != "cross_entropy"]


@dataclass(frozen=True)
class Loop:
    """What a loop of one's own holds."""

    sides: tuple[Side, Side]
    student: Any
    teacher: Any
    aligner: Aligner
    model: TeacherModel
    objective: Objective

    def batch(self, rows: Sequence[Mapping[str, Any]]) -> Batch:
        """Row by row tokenised, aligned, run through both models."""
        readings = [[tiny.read(side, row) for row in rows] for side in self.sides]
        labels = [[[-100] * one.first + one.ids[one.first :] for one in of_side] for of_side in readings]
        alignment = self.aligner.align(teacher_labels=labels[0], student_labels=labels[1])
        places = Places.of(alignment, labels[1], labels[0], needs=self.objective.needs)
        ids, masks = zip(*(padded([one.ids for one in of_side]) for of_side in readings), strict=True)
        with torch.no_grad():
            of_teacher = self.teacher.model(ids[0], masks[0]).last_hidden_state
        return places.batch(
            self.student.model(ids[1], masks[1]).last_hidden_state,
            Head.of(self.student),
            of_teacher,
            self.model,
            student_inputs=ids[1],
            student_embeddings=self.student.get_input_embeddings().weight,
            teacher_inputs=ids[0],
        )

    def optimizer(
        self, make: Callable[..., torch.optim.Optimizer] = torch.optim.SGD
    ) -> torch.optim.Optimizer:
        """With the rates of `tiny.options`."""
        beside = [one for one in self.objective.parameters() if one.requires_grad]
        groups = [{"params": list(self.student.parameters()), "lr": 0.1}]
        return make([*groups, {"params": beside, "lr": 0.05}] if beside else groups)


def side_of(tokenizer: Any) -> Side:
    return Side(tokenizer, Vocabulary.from_tokenizer(tokenizer))


def padded(rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    width = max(map(len, rows))
    ids = torch.tensor([[*row, *[0] * (width - len(row))] for row in rows])
    return ids, torch.tensor([[int(column < len(row)) for column in range(width)] for row in rows])


def loop_of(loss: Loss) -> Loop:
    """Half cross-entropy and half a loss, of the models of `tiny.trainer`."""
    alike = type(loss) in [LOSSES.get(name) for name in tiny.ONE_VOCABULARY]
    of_teacher = tiny.student_tokenizer() if alike else tiny.teacher_tokenizer()
    sides = side_of(of_teacher), side_of(tiny.student_tokenizer())
    student = tiny.llama(len(tiny.student_tokenizer()), tiny.HIDDEN["student"], seed=1)
    teacher = tiny.llama(len(of_teacher), tiny.HIDDEN["teacher"], seed=2)
    teacher.requires_grad_(requires_grad=False)
    aligner = Aligner(sides[0].vocabulary, sides[1].vocabulary)
    embeddings = teacher.get_input_embeddings().weight
    model = TeacherModel(Head.of(teacher), VocabularyMaps.of(aligner), embeddings)
    halves = [Weighted(CrossEntropy(), 0.5), Weighted(loss, 0.5)]
    return Loop(sides, student, teacher, aligner, model, Objective(halves, Head.of(student), model).double())


def run(loop: Loop, batches: Sequence[Sequence[Mapping[str, Any]]], steps: int) -> dict[str, Tensor]:
    """So many steps over these micro-batches, each step over all."""
    optimizer = loop.optimizer()
    for _ in range(steps):
        made = [loop.batch(rows) for rows in batches]
        counts = [batch.counts() for batch in made]
        total = {name: sum(one[name] for one in counts) for name in counts[0]}
        optimizer.zero_grad()
        for batch in made:
            loop.objective(batch, Reduction(total, len(made))).loss.backward()
        optimizer.step()
    student = {f"student.{name}": one for name, one in loop.student.state_dict().items()}
    return student | {f"objective.{name}": one for name, one in loop.objective.state_dict().items()}


SOLVED = {**UNGATED, "teacher_to_student": "solved", "refresh_every": 3}

GIVEN: list[dict[str, Any]] = [
    *({"objective": name} for name in OBJECTIVES if name != "dual_space"),
    UNGATED,
    {**UNGATED, "refresh_every": 2},
    SOLVED,
    {"preset": "dskd_v2"},
]


@pytest.mark.parametrize("given", GIVEN, ids=str)
def test_a_loop_of_ones_own_ends_where_the_trainer_does(given: dict[str, Any], tmp_path: Path) -> None:
    """Nobody tells the objective which step it is: what is solved sees the student's head move."""
    options = {name: value for name, value in given.items() if name not in ("objective", "preset")}
    loss = loss_of(given.get("objective", "dual_space"), options, preset=given.get("preset"))
    loop = loop_of(loss)
    made = tiny.trainer(tmp_path, max_steps=4, per_device_train_batch_size=len(ROWS), **given)
    assert made.model.objective.losses == loop.objective.losses
    made.model.objective.load_state_dict(loop.objective.state_dict())  # what is random is the same
    found = run(loop, [ROWS], steps=4)
    made.train()
    assert_same(found, made.model.state_dict(), relative=1e-9)


def test_four_micro_batches_are_one_step_to_what_is_solved() -> None:
    given: dict[str, Any] = {**UNGATED, "refresh_every": 2}
    whole = run(loop_of(DualSpace(**given)), [ROWS[:4]], steps=3)
    parts = run(loop_of(DualSpace(**given)), [[row] for row in ROWS[:4]], steps=3)
    assert_same(parts, whole, relative=1e-9)


def plain(groups: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(groups, foreach=False)


def foreach(groups: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups, foreach=True)


def fused(groups: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups, fused=True)


@pytest.mark.parametrize("make", [plain, foreach, fused])
@pytest.mark.parametrize("every", [1, 2, 3])
def test_what_is_solved_is_solved_again_after_so_many_steps_of_any_optimizer(
    every: int, make: Callable[..., torch.optim.Optimizer]
) -> None:
    loop = loop_of(DualSpace(**{**UNGATED, "refresh_every": every}))
    optimizer = loop.optimizer(make)
    seen: list[Tensor] = []
    for _ in range(5):
        for _ in range(2):  # the head has not moved between them
            loop.objective(loop.batch(ROWS[5:6])).loss.backward()
            seen.append(loop.objective.built["1"].get_buffer("student_to_teacher").clone())
        optimizer.step()
    changed = [step for step in range(1, 10) if not torch.equal(seen[step], seen[step - 1])]
    assert changed == [2 * step for step in range(every, 5, every)]


def test_nothing_is_solved_again_while_it_is_evaluated() -> None:
    loop = loop_of(DualSpace(**UNGATED))
    solved = loop.objective.built["1"].get_buffer("student_to_teacher")
    before = solved.clone()
    with torch.no_grad():
        loop.student.lm_head.weight.mul_(2)
    loop.objective.eval()
    loop.objective(loop.batch(ROWS[5:6]))
    assert torch.equal(solved, before)
    loop.objective.train()
    loop.objective(loop.batch(ROWS[5:6]))
    assert torch.allclose(solved, before * 2, rtol=1e-4)
