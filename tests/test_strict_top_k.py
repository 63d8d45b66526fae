"""Distillation on the shared tokens that the student expects, against numbers worked out on paper."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch

import dskd
from both_forms import HEADS, assert_fused_is_whole, read_by_identity, small
from dskd import PairKind
from dskd.nn import (
    DIVERGENCES,
    Batch,
    Head,
    Objective,
    SharedVocabulary,
    States,
    StrictTopK,
    Teacher,
    TeacherModel,
    VocabularyMaps,
    divergence,
)
from rounding import ON_PAPER

if TYPE_CHECKING:
    from dskd.nn.divergences import Divergence

EXACT, ROLE, SPACE = (int(kind) for kind in PairKind)
OVERLAP = torch.tensor([[0, 3], [1, 2], [2, 1], [3, 0]])
"""Of 4 teacher ids and 5 student ids; the student's 4 has no counterpart, and the last here is a special."""


def maps(**changes: Any) -> VocabularyMaps:
    kept = {"overlap": OVERLAP, "is_text": torch.tensor([True, True, True, False])}
    return VocabularyMaps(to_student=torch.tensor([3, 2, 1, 0]), **{**kept, **changes})


def worked(kinds: list[int] | None, **of_maps: Any) -> tuple[Batch, Head, TeacherModel]:
    """Two equal pairs."""
    states, head = read_by_identity(2 * [[8, 4, 2, 1, 16]])
    hidden, of_teacher = read_by_identity(2 * [[9, 3, 1, 5]])
    model = TeacherModel(of_teacher, maps(**of_maps))
    teacher = Teacher(
        model,
        hidden,
        torch.arange(2),
        kinds=None if kinds is None else torch.tensor(kinds, dtype=torch.uint8),
    )
    return (
        Batch(States(states.requires_grad_(), torch.tensor([0, 1]), head), {"teacher": teacher}),
        head,
        model,
    )


def run(loss: StrictTopK, kinds: list[int] | None = None) -> Any:
    batch, head, model = worked(kinds)
    parts = Objective([loss], head, model)(batch)
    parts.loss.backward()
    return parts, batch.student.hidden.grad


# On paper. The student's exponentials of its shared tokens that are text are 4, 2 and 1 at ids 1, 2 and 3,
# so K = {1, 2} and q = (2/3, 1/3). The teacher's ids of these are 2 and 1, its exponentials 1 and 3,
# p = (1/4, 3/4).
#     KL(q, p) = 2/3 log(8/3) + 1/3 log(4/9)
# By the logits its gradient is q (log q - log p - KL): at 1 it is 2/3 (log(8/3) - KL) = 2/9 log 6, at 2 minus
# that.
STRICT = 2 / 3 * math.log(8 / 3) + 1 / 3 * math.log(4 / 9)


def test_it_is_the_divergence_on_the_tokens_that_the_student_expects() -> None:
    parts, gradient = run(StrictTopK(top_k=2))
    assert parts.loss.item() == pytest.approx(STRICT, rel=ON_PAPER)
    slope = 2 / 9 * math.log(6) / 2  # of two pairs
    expected = torch.tensor(2 * [[0, slope, -slope, 0, 0]], dtype=torch.float64)
    torch.testing.assert_close(gradient, expected, rtol=ON_PAPER, atol=ON_PAPER)


def test_specials_can_be_in_k() -> None:
    # The student's 8 and 4 at 0 and 1, q = (2/3, 1/3); the teacher's 5 and 1 at 3 and 2, p = (5/6, 1/6).
    parts, _ = run(StrictTopK(top_k=2, specials=True))
    expected = 2 / 3 * math.log(4 / 5) + 1 / 3 * math.log(2)
    assert parts.loss.item() == pytest.approx(expected, rel=ON_PAPER)


def test_a_pair_but_for_one_space_counts_as_a_pair_without_a_loss() -> None:
    parts, gradient = run(StrictTopK(top_k=2), [ROLE, SPACE])
    assert parts.loss.item() == pytest.approx(STRICT / 2, rel=ON_PAPER)
    assert not gradient[1].any()
    assert gradient[0].any()
    assert int(parts.counts["strict"]) == 1


@pytest.mark.parametrize(
    ("loss", "kinds"), [(StrictTopK(top_k=2, strict=False), [SPACE, SPACE]), (StrictTopK(top_k=2), None)]
)
def test_all_pairs_take_part_where_that_is_wanted_or_nobody_knows_their_kinds(
    loss: StrictTopK, kinds: list[int] | None
) -> None:
    parts, _ = run(loss, kinds)
    assert parts.loss.item() == pytest.approx(STRICT, rel=ON_PAPER)
    assert int(parts.counts["strict"]) == 2


def test_more_than_there_are_is_all_that_are_text() -> None:
    # q = (4, 2, 1) / 7 at the student's 1, 2, 3 and p = (1, 3, 9) / 13 at the teacher's 2, 1, 0.
    q, p = [4 / 7, 2 / 7, 1 / 7], [1 / 13, 3 / 13, 9 / 13]
    expected = sum(one * math.log(one / other) for one, other in zip(q, p, strict=True))
    for top_k in (3, 99, None):
        parts, _ = run(StrictTopK(top_k=top_k))
        assert parts.loss.item() == pytest.approx(expected, rel=ON_PAPER)


def test_all_tokens_of_all_pairs_are_the_shared_vocabulary() -> None:
    made = small()
    loose = StrictTopK(top_k=None, strict=False, specials=True, divergence="js", mix=0.3, temperature=2.0)
    shared = SharedVocabulary(divergence="js", mix=0.3, temperature=2.0)
    (found, gradients), (expected, slopes) = made.run([loose]), made.run([shared])
    assert found.loss.item() == expected.loss.item()
    assert all(torch.equal(one, other) for one, other in zip(gradients, slopes, strict=True))


@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("specials", [True, False])
def test_it_is_its_definition_from_all_logits(specials: bool, heads: str) -> None:
    made = small(**HEADS[heads])
    student, teacher = made.batch.student, made.batch.teachers["teacher"]
    assert teacher.hidden is not None
    assert teacher.kinds is not None
    of_teacher, of_student = teacher.model.maps.shared(specials=specials)
    mine = student.head.logits(student.hidden)[teacher.paired][:, of_student]
    top, kept = mine.topk(4)
    target = teacher.model.head.logits(teacher.hidden)[:, of_teacher].gather(1, kept)
    items = divergence("js", top, target, temperature=2.0)
    expected = items[teacher.kinds != SPACE].sum() / len(items)
    loss = StrictTopK(top_k=4, specials=specials, divergence="js", temperature=2.0)
    found, gradients = made.run([loss])
    assert found.loss.item() == pytest.approx(expected.item(), rel=1e-12)
    for one, other in zip(gradients, torch.autograd.grad(expected, made.moved), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("top_k", [1, 4, None])
def test_fused_is_whole(top_k: int | None, heads: str) -> None:
    assert_fused_is_whole([StrictTopK(top_k=top_k)], small(**HEADS[heads]))


@pytest.mark.parametrize("name", DIVERGENCES)
def test_fused_is_whole_by_any_divergence_at_a_temperature(name: Divergence) -> None:
    assert_fused_is_whole([StrictTopK(top_k=4, divergence=name, temperature=2.0)], small())


@pytest.mark.parametrize("heads", HEADS)
def test_few_logits_of_a_teacher_are_those_of_all_its_logits(heads: str) -> None:
    teacher = small(**HEADS[heads]).batch.teachers["teacher"]
    assert teacher.hidden is not None
    ids = torch.tensor([[3, 7, 0]]).expand(len(teacher.hidden), -1)
    expected = teacher.model.head.logits(teacher.hidden).gather(-1, ids)
    torch.testing.assert_close(
        teacher.model.head.logits_at(teacher.hidden, ids), expected, rtol=1e-12, atol=1e-12
    )


def test_without_pairs_it_is_zero_and_reaches_the_student() -> None:
    batch, head, model = worked(None)
    nobody = Teacher(model, torch.zeros(0, 4, dtype=torch.float64), torch.empty(0, dtype=torch.int64))
    for fused in (True, False):
        objective = Objective([StrictTopK()], head, model, fused=fused)
        loss = objective(replace(batch, teachers={"teacher": nobody})).loss
        assert float(loss.detach()) == 0
        (gradient,) = torch.autograd.grad(loss, [batch.student.hidden])
        assert not gradient.any()


# ---- What is known of vocabularies -----------------------------------------------------------------------


def test_an_aligner_says_what_is_shared_and_what_of_it_is_text() -> None:
    teacher = dskd.Vocabulary.from_bytes([b"a", b"b", None, b"c"], roles={2: {"eos"}})
    student = dskd.Vocabulary.from_bytes([None, b"c", b"a", b"a"], roles={0: {"eos"}})
    found = VocabularyMaps.of(dskd.Aligner(teacher, student))
    assert found.to_student.tolist() == [2, -1, 0, 1]
    assert found.overlap is not None
    assert found.is_text is not None
    assert dict(zip(map(tuple, found.overlap.tolist()), found.is_text.tolist(), strict=True)) == {
        (0, 2): True,  # the canonical one of the two
        (2, 0): False,
        (3, 1): True,
    }
    assert [ids.tolist() for ids in found.shared(specials=False)] == [[0, 3], [2, 1]]
    found.to_student[1] = 0  # a tensor of its own


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"overlap": OVERLAP.T}, r"overlap has shape \[2, 4\]: give \[overlap, 2\]"),
        ({"overlap": OVERLAP.float()}, "overlap is no int64 tensor"),
        ({"overlap": OVERLAP[[0, 1, 1, 2]]}, "overlap has an id of the teacher twice"),
        ({"is_text": torch.ones(3, dtype=torch.bool)}, r"is_text has shape \[3\].*beside an overlap of 4"),
        ({"is_text": torch.ones(4)}, r"is_text has shape \[4\], torch.float32.*bool \[overlap\]"),
        ({"overlap": None}, "beside an overlap of 0"),
    ],
)
def test_maps_that_fit_no_vocabularies_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        maps(**changes)


def test_a_map_of_ids_has_whole_numbers() -> None:
    with pytest.raises(ValueError, match="to_student is no int64 tensor"):
        VocabularyMaps(to_student=torch.zeros(3))


@pytest.mark.parametrize("kinds", [torch.zeros(3, dtype=torch.uint8), torch.zeros(2), torch.zeros(2).bool()])
def test_kinds_that_are_none_of_the_pairs_are_refused(kinds: torch.Tensor) -> None:
    batch, _, _ = worked(None)
    teacher = replace(batch.teachers["teacher"], kinds=kinds)
    with pytest.raises(ValueError, match=r"for 2 pairs; give a dskd\.PairKind for each, an integer"):
        Batch(batch.student, {"teacher": teacher})


def test_kinds_without_pairs_are_refused() -> None:
    batch, _, model = worked(None)
    with pytest.raises(ValueError, match="for 0 pairs"):
        Batch(batch.student, {"teacher": Teacher(model, kinds=torch.zeros(2, dtype=torch.uint8))})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top_k": 0}, "top_k=0; it is a number from 1 on"),
        ({"temperature": 0.0}, "temperature=0.0; it is a number above 0"),
        ({"divergence": "kld"}, "there is no divergence 'kld'"),
        ({"mix": 0.5}, "reverse_kl has none"),
    ],
)
def test_options_out_of_their_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        StrictTopK(**options)


def test_vocabularies_with_nothing_in_common_are_refused() -> None:
    batch, head, _ = worked(None)
    model = TeacherModel(batch.teachers["teacher"].model.head, maps(overlap=None, is_text=None))
    with pytest.raises(ValueError, match=r"the tokens that both vocabularies have: give VocabularyMaps\.of"):
        Objective([StrictTopK()], head, model)


def test_vocabularies_that_share_specials_only_are_refused() -> None:
    batch, head, model = worked(None, is_text=torch.zeros(4, dtype=torch.bool))
    with pytest.raises(ValueError, match="the loss takes text alone"):
        Objective([StrictTopK()], head, model)(batch)


def test_a_batch_without_pairs_is_refused() -> None:
    batch, head, model = worked(None)
    objective = Objective([StrictTopK()], head, model)
    with pytest.raises(ValueError, match="the batch has none: give Teacher"):
        objective(Batch(batch.student, {"teacher": Teacher(model)}))


def test_nobody_listens_to_no_teacher() -> None:
    batch, _, _ = worked(None)
    with pytest.raises(ValueError, match="StrictTopK needs a teacher"):
        StrictTopK().terms(batch.student, None, None)
