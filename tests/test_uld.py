"""Probabilities compared by rank, against numbers worked out on paper."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from both_forms import HEADS, assert_fused_is_whole, read_by_identity, small
from dskd.nn import (
    ULD,
    Batch,
    CrossEntropy,
    Head,
    Objective,
    States,
    Teacher,
    TeacherModel,
    VocabularyMaps,
    Weighted,
)
from rounding import ON_PAPER


def worked(student: list[float], teacher: list[float]) -> tuple[Batch, Head, TeacherModel]:
    """One pair, of these exponentials of logits."""
    states, head = read_by_identity([student])
    hidden, of_teacher = read_by_identity([teacher])
    model = TeacherModel(of_teacher, VocabularyMaps(to_student=torch.full((len(teacher),), -1)))
    batch = Batch(
        States(states.requires_grad_(), torch.zeros(1, dtype=torch.int64), head),
        {"teacher": Teacher(model, hidden, torch.zeros(1, dtype=torch.int64))},
    )
    return batch, head, model


def run(loss: ULD, student: list[float], teacher: list[float]) -> tuple[float, list[float]]:
    batch, head, model = worked(student, teacher)
    found = Objective([loss], head, model)(batch).loss
    (gradient,) = torch.autograd.grad(found, [batch.student.hidden])
    return float(found.detach()), gradient[0].tolist()


# On paper. The teacher's probabilities are 1/3, 1/6 and 1/2, the student's 1/4 and 3/4: in descending order
# (1/2, 1/3, 1/6) and (3/4, 1/4, 0), 1/4 + 1/12 + 1/6 = 1/2 apart. The student's 3/4 is above and its 1/4
# below, so by its logits the gradient is q (s - sum of q s), s = (-1, 1), sum of q s = 1/2: (-3/8, 3/8).
STUDENT, TEACHER = [1.0, 3.0], [2.0, 1.0, 3.0]


def test_it_is_how_far_apart_ranked_probabilities_are() -> None:
    loss, gradient = run(ULD(), STUDENT, TEACHER)
    assert loss == pytest.approx(1 / 2, rel=ON_PAPER)
    assert gradient == pytest.approx([-3 / 8, 3 / 8], rel=ON_PAPER)


def test_the_shorter_vocabulary_may_be_the_teachers() -> None:
    loss, _ = run(ULD(), TEACHER, STUDENT)
    assert loss == pytest.approx(1 / 2, rel=ON_PAPER)


@pytest.mark.parametrize(("largest", "expected"), [(1, 1 / 4), (2, 1 / 4 + 1 / 12), (3, 1 / 2), (99, 1 / 2)])
def test_the_largest_of_each_side_may_be_all_that_is_compared(largest: int, expected: float) -> None:
    loss, _ = run(ULD(largest=largest), STUDENT, TEACHER)
    assert loss == pytest.approx(expected, rel=ON_PAPER)


def test_a_temperature_is_of_both_sides() -> None:
    # At 2 exponentials are square roots: of 1 and 9 the probabilities 1/4 and 3/4, of 4, 1 and 9 those above.
    loss, _ = run(ULD(temperature=2.0), [1.0, 9.0], [4.0, 1.0, 9.0])
    assert loss == pytest.approx(1 / 2, rel=ON_PAPER)


def test_which_token_has_a_probability_does_not_matter() -> None:
    loss, gradient = run(ULD(), [1.0, 5.0, 2.0], [2.0, 1.0, 7.0])
    other, turned = run(ULD(), [5.0, 2.0, 1.0], [7.0, 2.0, 1.0])
    assert loss == pytest.approx(other, rel=ON_PAPER)
    assert gradient == pytest.approx([turned[2], turned[0], turned[1]], rel=ON_PAPER)


def test_the_published_mix_is_a_weight() -> None:
    batch, head, model = worked(STUDENT, TEACHER)
    loss = Objective([CrossEntropy(), Weighted(ULD(), 1.5)], head, model)(batch).loss
    assert float(loss.detach()) == pytest.approx(
        torch.tensor(4.0).double().log().item() + 1.5 / 2, rel=ON_PAPER
    )


@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("largest", [None, 5])
def test_fused_is_whole(largest: int | None, heads: str) -> None:
    assert_fused_is_whole([ULD(largest=largest, temperature=1.5)], small(**HEADS[heads]))


@pytest.mark.parametrize("heads", ["unreachable ids", "ids at minus infinity"])
def test_what_no_tokenizer_emits_is_not_compared(heads: str) -> None:
    """As if the vocabularies ended before it."""
    made = small(**HEADS[heads])
    student, teacher = made.student, made.teacher.head
    biases = [None if head.bias is None else head.bias[:-1] for head in (student, teacher)]
    shorter = [Head(head.weight[:-1], bias) for head, bias in zip((student, teacher), biases, strict=True)]
    maps = VocabularyMaps(to_student=made.teacher.maps.to_student[:-1])
    model = TeacherModel(shorter[1], maps)
    of_teacher = made.batch.teachers["teacher"]
    batch = Batch(
        States(made.batch.student.hidden, made.batch.student.labels, shorter[0]),
        {"teacher": Teacher(model, of_teacher.hidden, of_teacher.paired)},
    )
    expected = Objective([ULD()], shorter[0], model)(batch).loss
    found, _ = made.run([ULD()])
    assert found.loss.item() == pytest.approx(expected.item(), rel=1e-12)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"largest": 0}, "largest=0; it is a number from 1 on"),
        ({"temperature": -1.0}, r"temperature=-1.0; it is a number above 0"),
    ],
)
def test_options_out_of_their_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ULD(**options)


def test_a_batch_without_pairs_is_refused() -> None:
    batch, head, model = worked(STUDENT, TEACHER)
    with pytest.raises(ValueError, match="the batch has none: give Teacher"):
        Objective([ULD()], head, model)(Batch(batch.student, {"teacher": Teacher(model)}))


def test_nobody_listens_to_no_teacher() -> None:
    batch, _, _ = worked(STUDENT, TEACHER)
    with pytest.raises(ValueError, match="ULD needs a teacher"):
        ULD().terms(batch.student, None, None)
