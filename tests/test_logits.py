"""Distillation of one vocabulary, live and stored, against numbers worked out on paper."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch

from both_forms import HEADS, OF_STUDENT, Small, assert_fused_is_whole, read_by_identity, small
from dskd import Aligner, Vocabulary
from dskd.nn import (
    DIVERGENCES,
    Batch,
    Head,
    Logits,
    Objective,
    States,
    Teacher,
    TeacherModel,
    VocabularyMaps,
    divergence,
)
from rounding import ON_PAPER

if TYPE_CHECKING:
    from dskd.nn.divergences import Divergence

ONE = torch.zeros(1, dtype=torch.int64)

# On paper. q = (1/2, 1/4, 1/8, 1/8), p = (1/8, 1/2, 1/4, 1/8).
#     KL(p, q) = 1/8 log(1/4) + 1/2 log 2 + 1/4 log 2 + 0 = 1/2 log 2
# The teacher's two most probable are ids 1 and 2, 1/4 is left to the others, where the student has 5/8:
#     1/2 log 2 + 1/4 log 2 + 1/4 log(2/5)
# By the logits the gradient is q - p on what stands alone, and of what shares the rest q - q 8/5 1/4 = 3/5 q.
STUDENT, TEACHER = [4.0, 2.0, 1.0, 1.0], [1.0, 4.0, 2.0, 1.0]
FULL, TOP_TWO = math.log(2) / 2, 3 / 4 * math.log(2) + math.log(2 / 5) / 4
SLOPE = [3 / 10, 1 / 4 - 1 / 2, 1 / 8 - 1 / 4, 3 / 40]


def teachers() -> dict[str, Teacher]:
    """The same, in four ways."""
    hidden, head = read_by_identity([TEACHER])
    live, stored = TeacherModel(head, VocabularyMaps.same(4)), TeacherModel.without_weights(4)
    log_probs = hidden.log_softmax(-1)
    ids, everyone = torch.tensor([[2, 1]]), torch.tensor([[3, 1, 0, 2]])
    return {
        "live": Teacher(live, hidden, ONE),
        "logits": Teacher(stored, paired=ONE, logits=hidden + 3),
        "all log-probabilities": Teacher(stored, paired=ONE, top=(everyone, log_probs.gather(1, everyone))),
        "top": Teacher(stored, paired=ONE, top=(ids, log_probs.gather(1, ids))),
    }


def run(loss: Logits, teacher: Teacher, *, student: list[float] = STUDENT) -> tuple[float, list[float]]:
    states, head = read_by_identity([student])
    batch = Batch(States(states.requires_grad_(), ONE, head), {"teacher": teacher})
    found = Objective([loss], head, teacher.model)(batch).loss
    (gradient,) = torch.autograd.grad(found, [states])
    return found.item(), gradient[0].tolist()


@pytest.mark.parametrize("way", ["live", "logits", "all log-probabilities"])
def test_all_logits_are_compared(way: str) -> None:
    loss, gradient = run(Logits(), teachers()[way])
    assert loss == pytest.approx(FULL, rel=ON_PAPER)
    assert gradient == pytest.approx([3 / 8, -1 / 4, -1 / 8, 0], rel=ON_PAPER, abs=ON_PAPER)


@pytest.mark.parametrize("way", ["live", "logits", "all log-probabilities", "top"])
def test_the_teachers_most_probable_tokens_are_compared_and_the_others_as_one(way: str) -> None:
    loss, gradient = run(Logits(top_k=2), teachers()[way])
    assert loss == pytest.approx(TOP_TWO, rel=ON_PAPER)
    assert gradient == pytest.approx(SLOPE, rel=ON_PAPER)


@pytest.mark.parametrize(("top_k", "expected"), [(None, FULL), (2, TOP_TWO)])
def test_a_temperature_is_of_both_sides(top_k: int | None, expected: float) -> None:
    """At 2 the squares of the numbers above are what these are."""
    hidden, _ = read_by_identity([[one**2 for one in TEACHER]])
    teacher = Teacher(TeacherModel.without_weights(4), paired=ONE, logits=hidden)
    loss, _ = run(Logits(top_k=top_k, temperature=2.0), teacher, student=[one**2 for one in STUDENT])
    assert loss == pytest.approx(expected, rel=ON_PAPER)


def test_what_is_stored_says_how_many_there_are() -> None:
    loss, gradient = run(Logits(), teachers()["top"])
    assert loss == pytest.approx(TOP_TWO, rel=ON_PAPER)
    assert gradient == pytest.approx(SLOPE, rel=ON_PAPER)


def test_what_a_stored_teacher_rules_out_is_finite() -> None:
    # p = (1/7, 4/7, 2/7, 0): p / q is 2/7, 16/7, 16/7 and 0; the gradient is q - p.
    stored = torch.tensor([[1.0, 4.0, 2.0, 0.0]], dtype=torch.float64).log()
    loss, gradient = run(Logits(), Teacher(TeacherModel.without_weights(4), paired=ONE, logits=stored))
    assert loss == pytest.approx(math.log(2 / 7) / 7 + 6 / 7 * math.log(16 / 7), rel=ON_PAPER)
    assert gradient == pytest.approx([5 / 14, -9 / 28, -9 / 56, 1 / 8], rel=ON_PAPER)


def one_vocabulary(way: str, heads: dict[str, Any]) -> Small:
    """60 positions, 41 pairs; the teacher speaks as it does in `way`."""
    made = small(**heads)
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(OF_STUDENT, 8, generator=generator, dtype=torch.float64)
    head = Head(weight, unreachable=made.student.unreachable)
    known = made.batch.teachers["teacher"]
    assert known.hidden is not None
    logits = head.logits(known.hidden)
    if made.student.unreachable is not None or "infinite" in heads:
        logits[:, -1] = -torch.inf
    log_probs = logits.log_softmax(-1).float().topk(7)
    said: dict[str, dict[str, Any]] = {
        "live": {"hidden": known.hidden},
        "logits": {"logits": logits.float()},
        "top": {"top": (log_probs.indices, log_probs.values)},
    }
    model = TeacherModel(head, VocabularyMaps.same(OF_STUDENT))
    if way != "live":
        model = TeacherModel.without_weights(OF_STUDENT)
    teacher = Teacher(model, paired=known.paired, **said[way])
    return replace(made, batch=Batch(made.batch.student, {"teacher": teacher}), teacher=model)


@pytest.mark.parametrize("heads", [name for name in HEADS if name != "ids at minus infinity"])
@pytest.mark.parametrize("top_k", [None, 5])
@pytest.mark.parametrize("way", ["live", "logits", "top"])
def test_fused_is_whole(way: str, top_k: int | None, heads: str) -> None:
    assert_fused_is_whole([Logits(top_k=top_k)], one_vocabulary(way, HEADS[heads]))


@pytest.mark.parametrize("name", DIVERGENCES)
def test_fused_is_whole_by_any_divergence(name: Divergence) -> None:
    assert_fused_is_whole([Logits(top_k=5, divergence=name, temperature=2.0)], one_vocabulary("live", {}))


def test_as_many_tokens_as_there_are_leave_nothing_to_the_others() -> None:
    made = one_vocabulary("live", {})
    teacher, student = made.batch.teachers["teacher"], made.batch.student
    assert teacher.paired is not None
    assert teacher.hidden is not None
    logits = student.head.logits(student.hidden)[teacher.paired]
    expected = divergence("kl", logits, made.teacher.head.logits(teacher.hidden)).mean()
    for top_k in (None, OF_STUDENT, 99):
        found, _ = made.run([Logits(top_k=top_k)])
        # What is next to nothing is taken as an epsilon of float64, of both.
        assert found.loss.item() == pytest.approx(expected.item(), rel=1e-12)


@pytest.mark.parametrize("heads", ["unreachable ids", "ids at minus infinity"])
def test_a_token_that_the_student_cannot_emit_is_one_of_the_others(heads: str) -> None:
    """The teacher's server may: its probability stays, and goes to the rest."""
    made = one_vocabulary("top", HEADS[heads])
    teacher = made.batch.teachers["teacher"]
    assert teacher.top is not None
    ids, log_probs = (one.clone() for one in teacher.top)
    ids[:, 0] = OF_STUDENT - 1
    with_it, without = (
        replace(made, batch=Batch(made.batch.student, {"teacher": replace(teacher, top=top)}))
        for top in ((ids, log_probs), (ids[:, 1:], log_probs[:, 1:]))
    )
    (found, gradients), (expected, slopes) = with_it.run([Logits()]), without.run([Logits()])
    assert found.loss.item() == pytest.approx(expected.loss.item(), rel=1e-12)
    assert math.isfinite(found.loss.item())
    for one, other in zip(gradients, slopes, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("top_k", [None, 5])
def test_what_is_stored_of_an_id_that_no_tokenizer_emits_does_not_matter(top_k: int | None) -> None:
    made = one_vocabulary("logits", HEADS["unreachable ids"])
    teacher = made.batch.teachers["teacher"]
    assert teacher.logits is not None
    logits = teacher.logits.clone()
    logits[:, -1] = 9.0  # by far the largest
    changed = replace(made, batch=Batch(made.batch.student, {"teacher": replace(teacher, logits=logits)}))
    (found, gradients), (expected, slopes) = (
        changed.run([Logits(top_k=top_k)]),
        made.run([Logits(top_k=top_k)]),
    )
    assert found.loss.item() == expected.loss.item()
    assert all(torch.equal(one, other) for one, other in zip(gradients, slopes, strict=True))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"logits": torch.zeros(2, 4)}, r"logits of shape \[2, 4\] for 1 pairs and a vocabulary of 4"),
        ({"logits": torch.zeros(1, 5)}, r"logits of shape \[1, 5\] for 1 pairs and a vocabulary of 4"),
        ({"top": (torch.tensor([[1, 4]]), torch.zeros(1, 2) - 3)}, "ids that are not in a vocabulary of 4"),
        ({"top": (torch.tensor([[1.0]]), torch.zeros(1, 1))}, r"torch.float32.*give int64 \[pairs, k\]"),
        (
            {"top": (torch.tensor([[1, 2]]), torch.zeros(1, 1))},
            r"shape \[1, 2\].*of shape \[1, 1\], for 1 pairs",
        ),
        ({"top": (torch.tensor([[1, 2]]), torch.tensor([[0.6, 0.3]]))}, "give their natural logarithms"),
        ({"top": (torch.tensor([[1, 1]]), torch.tensor([[-0.1, -0.1]]))}, "each token once"),
        ({"logits": torch.zeros(1, 4), "paired": None}, "and paired, or neither"),
        ({}, "and paired, or neither"),
        ({"logits": torch.zeros(1, 4), "paired": torch.tensor([1])}, "paired does not ascend from 0 to 0"),
    ],
)
def test_what_is_stored_of_other_pairs_is_refused(changes: dict[str, Any], message: str) -> None:
    states, head = read_by_identity([STUDENT])
    teacher = Teacher(TeacherModel.without_weights(4), **{"paired": ONE, **changes})
    with pytest.raises(ValueError, match=message):
        Batch(States(states, ONE, head), {"teacher": teacher})


def test_vocabularies_of_two_sizes_are_refused_before_there_is_a_batch() -> None:
    made = small()
    message = r"^Logits .* same ids, and the student has 40 and the teacher 'teacher' 50: take Shared\w+$"
    with pytest.raises(ValueError, match=message):
        Objective([Logits()], made.student, made.teacher)


def test_so_are_two_of_one_size_unless_somebody_says_that_they_are_one() -> None:
    _, head = read_by_identity([STUDENT])
    ids = torch.arange(4)
    maps = VocabularyMaps(to_student=ids, overlap=torch.stack([ids, ids], dim=1))
    teacher = TeacherModel(head, maps)
    message = (
        r"same ids, and the student's vocabulary of 4 is not that of the teacher 'teacher': take Shared.*; "
        r"where every id is the same token on both sides, give the teacher VocabularyMaps\.same\(4\)$"
    )
    with pytest.raises(ValueError, match=message):
        Objective([Logits()], head, teacher)
    Objective([Logits()], head, replace(teacher, maps=replace(maps, is_same=True)))
    Objective([Logits()], head, replace(teacher, maps=VocabularyMaps.same(4)))


def test_a_batch_with_another_teacher_than_the_objective_was_given_is_refused() -> None:
    hidden, head = read_by_identity([TEACHER])
    other = TeacherModel(head, VocabularyMaps(to_student=torch.arange(4)))
    batch = Batch(States(hidden, ONE, head), {"teacher": Teacher(other, hidden, ONE)})
    with pytest.raises(ValueError, match="vocabulary of 4 is not that of the batch's teacher: take Shared"):
        Objective([Logits()], head, TeacherModel(head, VocabularyMaps.same(4)))(batch)


BASE = [b"a", b" b", b"c", b"<end>", b"<turn>"]


@pytest.mark.parametrize(
    ("tokens", "roles", "is_same"),
    [
        (BASE, {3: {"eos"}}, True),
        (BASE, {3: {"bos"}, 4: {"eos"}}, True),
        ([b"a", b" b", b"c", b"<end>", None], {3: {"eos"}}, True),
        ([b"a", b" b", b"c", b"<end>", b"<turn>"], {4: {"pad"}}, True),
        ([b"a", b"c", b" b", b"<end>", b"<turn>"], {3: {"eos"}}, False),
        ([b"a", b" b", b"c", b"<turn>", b"<end>"], {3: {"eos"}}, False),
        ([b"a", b" b", b"c", b"<end>", b"<else>"], {4: {"eos"}}, False),
        ([*BASE, None], {3: {"eos"}}, False),
        (BASE[:4], {3: {"eos"}}, False),
    ],
)
def test_vocabularies_are_one_where_no_id_is_two_tokens(
    tokens: list[bytes | None], roles: dict[int, set[str]], is_same: bool
) -> None:
    """Whatever their specials are for, and where one leaves an id open, both ways."""
    sides = Vocabulary.from_bytes(BASE, roles={3: {"eos"}}), Vocabulary.from_bytes(tokens, roles=roles)
    assert VocabularyMaps.of(Aligner(*sides)).is_same is is_same
    assert VocabularyMaps.of(Aligner(*reversed(sides))).is_same is is_same


def test_a_temperature_is_refused_beside_stored_probabilities() -> None:
    with pytest.raises(ValueError, match=r"temperature=2\.0, and what it makes of the tokens outside of top"):
        run(Logits(temperature=2.0), teachers()["top"])


def test_options_out_of_their_range_are_refused() -> None:
    with pytest.raises(ValueError, match="top_k=0; it is a number from 1 on"):
        Logits(top_k=0)


def test_nobody_listens_to_no_teacher() -> None:
    states, head = read_by_identity([STUDENT])
    with pytest.raises(ValueError, match="Logits needs a teacher"):
        Logits().terms(States(states, ONE, head), None, None)
