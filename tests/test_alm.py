"""Likelihoods of chunks compared, against numbers worked out on paper."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch

from both_forms import HEADS, assert_fused_is_whole, read_by_identity, small
from dskd.nn import (
    ALM,
    DIVERGENCES,
    Batch,
    Chunks,
    Head,
    Objective,
    States,
    Teacher,
    TeacherModel,
    VocabularyMaps,
)
from rounding import ON_PAPER

if TYPE_CHECKING:
    from torch import Tensor

    from dskd.nn.divergences import Divergence

MODEL = TeacherModel(Head(torch.eye(2)), VocabularyMaps(to_student=torch.tensor([-1, -1])))
"""Of which nothing is asked."""


def batch_of(states: Tensor, head: Head, chunks: Chunks) -> Batch:
    labels = torch.zeros(len(states), dtype=torch.int64)
    return Batch(States(states.requires_grad_(), labels, head), {"teacher": Teacher(MODEL, chunks=chunks)})


def run(loss: ALM, batch: Batch, *, fused: bool = True) -> tuple[float, Tensor]:
    found = Objective([loss], batch.student.head, MODEL, fused=fused)(batch).loss
    (gradient,) = torch.autograd.grad(found, [batch.student.hidden])
    return float(found.detach()), gradient


def one_token(log_likelihood: float, teacher: float, dtype: torch.dtype = torch.float64) -> Batch:
    """A chunk of one token of the student, id 0, at this logit above one other id."""
    log_odds = log_likelihood - math.log(-math.expm1(log_likelihood)) if log_likelihood < 0 else 60.0
    states = torch.tensor([[log_odds, 0.0]], dtype=dtype)
    position = torch.zeros(1, dtype=torch.int64)
    return batch_of(
        states,
        Head(torch.eye(2, dtype=dtype)),
        Chunks(position, position, torch.tensor([teacher], dtype=dtype)),
    )


# On paper. Tau is 2. The student has two tokens in the chunk, each of probability 1/3, so that P_s = 1/9 and
# q = 1/3; the teacher says 1/4, p = 1/2.
#     KL = 1/2 log((1/2) / (1/3)) + 1/2 log((1/2) / (2/3)) = 1/2 log(9/8)
# By log P_s its gradient is (q - p) / (1 - q) / tau = -1/8, by a token's own logit -1/8 (1 - 1/3), by the two
# others 1/8 1/3.
def worked() -> Batch:
    """Of three positions, the second is in no chunk."""
    states, head = read_by_identity([[1, 1, 1], [5, 1, 1], [2, 2, 2]])
    positions, chunk = torch.tensor([0, 2]), torch.tensor([0, 0])
    return batch_of(states, head, Chunks(positions, chunk, torch.tensor([1 / 4], dtype=torch.float64).log()))


@pytest.mark.parametrize("fused", [True, False])
def test_it_is_the_divergence_of_what_both_say_of_a_chunk(fused: bool) -> None:
    loss, gradient = run(ALM(temperature=2.0), worked(), fused=fused)
    assert loss == pytest.approx(math.log(9 / 8) / 2, rel=ON_PAPER)
    rows = [[-1 / 12, 1 / 24, 1 / 24], [0, 0, 0], [-1 / 12, 1 / 24, 1 / 24]]
    expected = torch.tensor(rows, dtype=torch.float64)
    torch.testing.assert_close(gradient, expected, rtol=ON_PAPER, atol=ON_PAPER)


def test_the_binary_cross_entropy_of_the_code_has_the_same_gradient() -> None:
    batch = worked()
    _, gradient = run(ALM(temperature=2.0), batch)
    chunks = batch.teachers["teacher"].chunks
    assert chunks is not None
    gold = batch.student.hidden[[0, 2]].log_softmax(-1)[:, 0]
    p, q = (chunks.teacher_log_probs / 2).exp(), (gold.sum() / 2).exp()
    entropy = -(p * q.log() + (1 - p) * (1 - q).log()).sum()
    (expected,) = torch.autograd.grad(entropy, [batch.student.hidden])
    torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=ON_PAPER)


def test_a_chunk_counts_as_one_whatever_its_tokens() -> None:
    # Two chunks of one token each, of which the first is said alike: 0, and the second 1/2 log(9/8) as above.
    states, head = read_by_identity([[1, 1, 2], [1, 4, 4]])
    there = torch.arange(2)
    chunks = Chunks(there, there, torch.tensor([1 / 4, 1 / 4], dtype=torch.float64).log())
    loss, _ = run(ALM(temperature=2.0), batch_of(states, head, chunks))
    assert loss == pytest.approx(math.log(9 / 8) / 2 / 2, rel=ON_PAPER)


def test_what_both_say_alike_costs_nothing() -> None:
    loss, gradient = run(ALM(), one_token(-0.7, -0.7))
    assert abs(loss) < ON_PAPER
    assert float(gradient.abs().max()) < ON_PAPER


@pytest.mark.parametrize("heads", HEADS)
def test_fused_is_whole_and_parts_no_chunk(heads: str) -> None:
    assert_fused_is_whole([ALM(temperature=3.0)], small(**HEADS[heads]))


@pytest.mark.parametrize("name", DIVERGENCES)
def test_fused_is_whole_by_any_divergence(name: Divergence) -> None:
    assert_fused_is_whole([ALM(divergence=name)], small())


def test_without_chunks_it_is_zero_and_reaches_the_student() -> None:
    nothing = torch.empty(0, dtype=torch.int64)
    batch = worked()
    none = Teacher(MODEL, chunks=Chunks(nothing, nothing, torch.empty(0)))
    for fused in (True, False):
        loss, gradient = run(ALM(), replace(batch, teachers={"teacher": none}), fused=fused)
        assert loss == 0
        assert not gradient.any()


# ---- Where a likelihood is 1, or 0 -----------------------------------------------------------------------


def test_of_a_teacher_that_is_sure_it_is_the_cross_entropy_of_the_chunk() -> None:
    # p = 1, up to what float64 tells from it: log p - log q = -log(P_s) / 100, whose gradient by the logit of
    # a token of probability 1/2 is -1/100 (1 - 1/2).
    loss, gradient = run(ALM(), one_token(math.log(1 / 2), 0.0))
    assert loss == pytest.approx(math.log(2) / 100, rel=1e-12)
    assert gradient[0].tolist() == pytest.approx([-1 / 200, 1 / 200], rel=1e-12)


def test_of_a_teacher_that_rules_a_chunk_out_it_is_finite() -> None:
    # p = 0: -log(1 - q) = log 2 at q = 1/2, whose gradient by log P_s is q / (1 - q) = 1 at tau 1.
    loss, gradient = run(ALM(temperature=1.0), one_token(math.log(1 / 2), -math.inf))
    assert loss == pytest.approx(math.log(2), rel=ON_PAPER)
    assert gradient[0].tolist() == pytest.approx([1 / 2, -1 / 2], rel=ON_PAPER)


@pytest.mark.parametrize("log_likelihood", [-1e-3, -1e-6, -1e-9])
@pytest.mark.parametrize("tau", [1.0, 100.0])
def test_a_student_that_is_surer_than_its_teacher_unlearns_it(log_likelihood: float, tau: float) -> None:
    """In float32 log P_s is off by eps near 0, and the last of these is 0. Between what those give it is."""
    eps, log_p = torch.finfo(torch.float32).eps, -1.0 / tau
    loss, gradient = run(ALM(temperature=tau), one_token(log_likelihood, -1.0, torch.float32))

    def exact(log_s: float) -> float:
        log_q = log_s / tau
        not_p, not_q = -math.expm1(log_p), -math.expm1(log_q)
        return math.exp(log_p) * (log_p - log_q) + not_p * math.log(not_p / not_q)

    def slope(log_s: float) -> float:
        """Of the other token's logit, downwards: (q - p) / (1 - q) / tau, times 1 - P_s."""
        q = math.exp(log_s / tau)
        return (q - math.exp(log_p)) / -math.expm1(log_s / tau) / tau * -math.expm1(log_likelihood)

    less, more = log_likelihood - eps, min(log_likelihood + eps, -eps)
    # Of a difference from 1 of about 1/100 float32 has five digits.
    assert exact(less) * (1 - 1e-4) < loss < exact(more) * (1 + 1e-4)
    assert slope(less) * (1 - 1e-4) < -float(gradient[0, 1]) < slope(more) * (1 + 1e-4)


def test_student_and_teacher_that_are_both_sure_agree() -> None:
    for dtype in (torch.float32, torch.float64):
        loss, gradient = run(ALM(), one_token(0.0, 0.0, dtype))
        assert abs(loss) < 1e-9
        assert float(gradient.abs().max()) < 1e-9


def test_a_chunk_that_the_student_does_not_expect_at_all_is_finite() -> None:
    # log q = -1000, p = 1/2, tau 1: 1/2 (log(1/2) + 1000) + 1/2 log(1/2).
    loss, gradient = run(ALM(temperature=1.0), one_token(-1000.0, math.log(1 / 2)))
    assert loss == pytest.approx(500 - math.log(2), rel=1e-12)
    assert gradient[0].tolist() == pytest.approx([-1 / 2, 1 / 2], rel=1e-9)


# ---- What is refused -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.0}, "temperature=0.0; it is a number above 0"),
        ({"divergence": "binary"}, "there is no divergence 'binary'"),
        ({"mix": 0.5}, "kl has none"),
    ],
)
def test_options_out_of_their_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ALM(**options)


@pytest.mark.parametrize("said", [0.25, math.nan])
def test_what_is_no_logarithm_of_a_probability_is_refused(said: float) -> None:
    there = torch.arange(2)
    with pytest.raises(ValueError, match=f"of a chunk it says {said}; give logarithms of probabilities"):
        batch_of(*read_by_identity([[1, 1], [1, 1]]), Chunks(there, there, torch.tensor([-1.0, said])))


def test_a_batch_without_chunks_is_refused() -> None:
    batch = worked()
    with pytest.raises(
        ValueError, match=r"ALM runs over chunks, and the batch has none: give Teacher\(chunks=\)"
    ):
        run(ALM(), Batch(batch.student, {"teacher": Teacher(MODEL)}))


def test_nobody_listens_to_no_teacher() -> None:
    with pytest.raises(ValueError, match="ALM runs over chunks"):
        ALM().terms(worked().student, None, None)
