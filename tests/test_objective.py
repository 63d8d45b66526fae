"""Sums of losses: who listens to whom, what is built, and what is refused."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
import torch

from dskd.nn import (
    Aside,
    Batch,
    CrossEntropy,
    CrossModelAttention,
    DualSpace,
    Needs,
    Objective,
    Over,
    Reduction,
    SharedVocabulary,
    Term,
    Weighted,
)
from dskd.nn.fused import Part, fused, whole
from dskd.nn.loss import Loss
from leaves import backward, objective_of, random_leaves


def test_no_loss_is_refused() -> None:
    case = random_leaves()
    with pytest.raises(ValueError, match=r"^there is no loss: give at least one, CrossEntropy\(\) say$"):
        Objective([], case.head("student"), case.model())


def test_a_teacher_that_there_is_not_is_refused_by_name() -> None:
    case = random_leaves(teachers=("big", "small"))
    message = (
        r"^SharedVocabulary listens to the teacher 'teacher', and there is 'big', 'small': name one of these"
    )
    with pytest.raises(ValueError, match=message):
        Objective([SharedVocabulary()], case.head("student"), case.models)
    with pytest.raises(ValueError, match=r"'big', and there is none: name one of these, or give it$"):
        Objective([Weighted(SharedVocabulary(), teacher="big")], case.head("student"))


def test_a_loss_that_needs_no_teacher_looks_at_none() -> None:
    case = random_leaves(teachers=())
    objective = Objective([Weighted(CrossEntropy(), teacher="nobody")], case.head("student"))
    assert not objective.needs
    assert objective(case.batch()).loss > 0


def test_what_is_needed_of_a_teacher_is_what_its_losses_need_together() -> None:
    case = random_leaves(teachers=("big", "small"))
    losses: list[Weighted | Loss] = [
        CrossEntropy(),
        Weighted(SharedVocabulary(), teacher="big"),
        Weighted(DualSpace(spaces="teacher"), teacher="big"),
        Weighted(DualSpace(spaces="teacher"), teacher="small"),
    ]
    needs = Objective(losses, case.head("student"), case.models).needs
    assert needs == {"big": Needs(pairs=True, overlap=True), "small": Needs(pairs=True)}


def test_a_batch_without_the_teacher_or_its_pairs_is_refused() -> None:
    case = random_leaves()
    objective = objective_of(case, SharedVocabulary())
    batch = case.batch()
    with pytest.raises(
        ValueError, match=r"^the batch has no teacher 'teacher', to whom SharedVocabulary listens$"
    ):
        objective(Batch(batch.student))
    none = type(batch.teachers["teacher"])(case.model())
    with pytest.raises(ValueError, match=r"give Teacher\(hidden=, paired=\)$"):
        objective(Batch(batch.student, {"teacher": none}))


def test_a_reduction_that_there_is_not_is_refused() -> None:
    case = random_leaves()
    wrong: Any = "batchmean"
    message = r"^reduction='batchmean'; it is 'mean', 'sum', 'none', or the Reduction of a step$"
    with pytest.raises(ValueError, match=message):
        objective_of(case, CrossEntropy())(case.batch(), wrong)


def test_what_is_built_is_saved_by_the_number_of_its_loss() -> None:
    case = random_leaves()
    objective = Objective([CrossEntropy(), DualSpace()], case.head("student"), case.model())
    names = {name.split(".")[1] for name in objective.state_dict()}
    assert list(objective.built) == ["1"]
    assert names == {"1"}


def test_two_losses_whose_terms_have_one_name_are_weighted_each_and_logged_together() -> None:
    case = random_leaves()
    both = objective_of(
        case, Weighted(SharedVocabulary(), 0.25), Weighted(SharedVocabulary(temperature=2.0), 4.0)
    )
    alone = [
        objective_of(case, loss)(case.batch())
        for loss in (SharedVocabulary(), SharedVocabulary(temperature=2.0))
    ]
    found = both(case.batch())
    expected = 0.25 * alone[0].loss + 4.0 * alone[1].loss
    torch.testing.assert_close(found.loss, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(
        found.sums["shared_kd"], alone[0].sums["shared_kd"] + alone[1].sums["shared_kd"]
    )


@pytest.mark.parametrize("run", [whole, fused])
def test_nothing_to_run_is_refused(run: Any) -> None:
    with pytest.raises(ValueError, match=r"^there is nothing to sum: give at least one loss$"):
        run([])


class Doubled(Loss):
    """A stranger's loss, of parts that no loss here has: a trained factor, items of two rows, an aside."""

    trained: ClassVar[torch.nn.Parameter]

    def terms(self, student: Any, teacher: Any, built: Any) -> list[Term | Aside]:  # noqa: ARG002
        count = len(student.labels)
        item = torch.arange(count) // 2
        pairs = Over("labels", -(-count // 2), at=torch.arange(count), item=item)

        def losses(rows: slice, view: Any) -> Any:
            first = item[rows] - int(item[rows][0]) if rows.stop > rows.start else item[rows]
            size = int(first[-1]) + 1 if len(first) else 0
            sums = view.gold.new_zeros(size).index_add(0, first, view.gold)
            return self.trained * sums.square(), {"seen": torch.tensor(len(sums))}

        aside = Aside("aside", student.over, student.hidden.square().sum(), 0.5, per=1)
        return [Term("doubled", pairs, [student.read], losses, trained=[self.trained]), aside]


@pytest.mark.parametrize("count", [0, 1, 2, 37])
@pytest.mark.parametrize("rows", [1, 2, 3, 16])
def test_items_of_several_rows_are_never_parted_and_what_is_trained_inside_gets_its_gradient(
    rows: int, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A square of a sum says whether its rows came together."""
    monkeypatch.setattr("dskd.nn.fused._AT_ONCE", 1)
    monkeypatch.setattr("dskd.nn.elementwise._AT_ONCE", 1)
    monkeypatch.setattr("dskd.nn.fused.rows_at_once", lambda *_, **__: rows)
    case, found = random_leaves(labels=count, pairs=0), []
    Doubled.trained = torch.nn.Parameter(torch.tensor(1.5, dtype=torch.float64))
    for by_walk in (True, False):
        Doubled.trained.grad = case.by_name["student_hidden"].grad = case.by_name["student_weight"].grad = (
            None
        )
        objective = objective_of(case, CrossEntropy(), Doubled(), fused=by_walk)
        parts = objective(case.batch(), Reduction({"labels": 50}))
        backward(parts.loss)
        leaves = [Doubled.trained, *case.trained.values()]
        assert int(parts.counts["seen"]) == -(-count // 2)
        found.append([parts.loss.detach(), *(leaf.grad for leaf in leaves)])
    torch.testing.assert_close(found[0], found[1], rtol=1e-11, atol=1e-13)


def test_a_read_of_other_rows_than_the_term_runs_over_is_refused() -> None:
    case = random_leaves()
    batch = case.batch()
    teacher = batch.teachers["teacher"]
    term = Term("wrong", batch.student.over, [teacher.read], lambda _, view: view.logits.sum(-1))
    for run in (whole, fused):
        with pytest.raises(ValueError, match=r"^a term over labels cannot read states that are at pairs: "):
            run([Part(term, "wrong", "pairs", 1.0)])


@pytest.mark.parametrize("fused", [True, False])
def test_terms_of_one_name_over_different_things_are_refused(fused: bool) -> None:
    case = random_leaves()
    gated = CrossModelAttention(), DualSpace(target="projected")
    with pytest.raises(ValueError, match=r"^two losses speak of \w+, one over \w+ and one over pairs"):
        objective_of(case, *gated, fused=fused)(case.batch())
