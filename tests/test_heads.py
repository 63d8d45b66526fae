"""A head's logits against their formula, and against those of transformers' own models."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers

from dskd.nn import Head, kl
from leaves import TRANSFORMS, Transforms, random_leaves


def random_head(**options: Any) -> Head:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(5, 3, generator=generator, dtype=torch.float64)
    bias = torch.randn(5, generator=generator, dtype=torch.float64)
    return Head(weight, bias if options.pop("bias", False) else None, **options)


HIDDEN = torch.tensor([[1.0, -2.0, 0.5], [0.0, 3.0, 1.0]], dtype=torch.float64)


def by_loop(head: Head, hidden: list[float]) -> list[float]:
    """The logits of one state, a number at a time."""
    logits = []
    for token, row in enumerate(head.weight.tolist()):
        logit = sum(left * right for left, right in zip(row, hidden, strict=True))
        logit += 0.0 if head.bias is None else float(head.bias[token])
        logit *= head.scale
        logits.append(logit if head.softcap is None else head.softcap * math.tanh(logit / head.softcap))
    return logits


@pytest.mark.parametrize("softcap", [None, 1.5])
@pytest.mark.parametrize("scale", [1.0, 0.25])
@pytest.mark.parametrize("bias", [False, True], ids=["no bias", "bias"])
def test_logits_equal_their_formula(bias: bool, scale: float, softcap: float | None) -> None:
    head = random_head(bias=bias, scale=scale, softcap=softcap)
    expected = [by_loop(head, row) for row in HIDDEN.tolist()]
    torch.testing.assert_close(head.logits(HIDDEN), torch.tensor(expected, dtype=torch.float64))


def test_logits_worked_out_by_hand() -> None:
    head = Head(torch.tensor([[1.0, 2.0], [0.0, 1.0]]), torch.tensor([0.5, -1.0]), scale=2.0, softcap=10.0)
    # (1 + 2 + 0.5) * 2 = 7 and (1 - 1) * 2 = 0
    expected = torch.tensor([[10 * math.tanh(0.7), 0.0]])
    torch.testing.assert_close(head.logits(torch.tensor([[1.0, 1.0]])), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64], ids=str)
def test_logits_are_float32_or_wider(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(1)
    weight, hidden = torch.randn(5, 3, generator=generator), torch.randn(2, 3, generator=generator)
    found = Head(weight.to(dtype), softcap=2.0).logits(hidden.to(dtype))
    assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    exact = 2 * torch.tanh(hidden.to(dtype).double() @ weight.to(dtype).double().T / 2)
    torch.testing.assert_close(found.double(), exact, rtol=0, atol=8 * torch.finfo(dtype).eps + 1e-6)


def test_cap_and_scale_are_taken_in_float32() -> None:
    head = Head(torch.tensor([[256.0], [2.0]], dtype=torch.bfloat16), scale=1 / 3, softcap=30.0)
    found = head.logits(torch.tensor([[1.0]], dtype=torch.bfloat16))
    torch.testing.assert_close(found, torch.tensor([[256.0, 2.0]]).div(90).tanh() * 30, rtol=1e-6, atol=1e-6)


def test_a_float32_state_meets_a_bfloat16_head_in_bfloat16() -> None:
    weight, hidden = torch.tensor([[1.0], [3.0]], dtype=torch.bfloat16), torch.tensor([[1.001]])
    assert Head(weight).logits(hidden).tolist() == [[1.0, 3.0]]


UNREACHABLE = torch.tensor([False, True, False, False, True])


def test_unreachable_ids_have_no_probability_and_the_others_all_of_it() -> None:
    head = random_head(bias=True, softcap=2.0, unreachable=UNREACHABLE)
    logits = head.logits(HIDDEN)
    probabilities = head.reachable(logits).softmax(-1)
    assert probabilities[:, UNREACHABLE].eq(0).all()
    torch.testing.assert_close(probabilities[:, ~UNREACHABLE], logits[:, ~UNREACHABLE].softmax(-1))


def test_unreachable_ids_get_no_gradient_and_leave_that_of_the_others_finite() -> None:
    head = random_head(bias=True, unreachable=UNREACHABLE)
    assert head.bias is not None
    leaves = [head.weight.requires_grad_(), head.bias.requires_grad_(), HIDDEN.clone().requires_grad_()]
    log_probs = head.reachable(head.logits(leaves[2])).log_softmax(-1)
    assert log_probs[:, UNREACHABLE].eq(-math.inf).all()
    loss = kl(log_probs, log_probs.detach().roll(1, 0)).sum() + log_probs[:, 0].sum()
    weight, bias, hidden = torch.autograd.grad(loss, leaves)
    assert weight[UNREACHABLE].eq(0).all()
    assert bias[UNREACHABLE].eq(0).all()
    assert weight[~UNREACHABLE].ne(0).all()
    assert hidden.isfinite().all()


def test_in_place_the_same_ids_have_none() -> None:
    head = random_head(unreachable=UNREACHABLE)
    logits = head.logits(HIDDEN)
    expected = head.reachable(logits)
    assert head.reachable_(logits) is logits
    assert torch.equal(logits, expected)
    plain = random_head()
    assert torch.equal(plain.reachable_(plain.logits(HIDDEN)), plain.logits(HIDDEN))


def test_without_unreachable_ids_the_logits_stay_as_they_are() -> None:
    head = random_head()
    logits = head.logits(HIDDEN)
    assert torch.equal(head.reachable(logits), logits)


def test_logits_themselves_do_not_hide_unreachable_ids() -> None:
    assert torch.equal(random_head(unreachable=UNREACHABLE).logits(HIDDEN), random_head().logits(HIDDEN))


def test_a_detached_head_says_the_same_and_gets_no_gradient() -> None:
    head = random_head(bias=True, scale=0.5, softcap=2.0, unreachable=UNREACHABLE)
    assert head.bias is not None
    head.weight.requires_grad_()
    head.bias.requires_grad_()
    detached = head.detached()
    found = detached.logits(HIDDEN)
    assert torch.equal(found, head.logits(HIDDEN))
    assert torch.equal(detached.reachable(found), head.reachable(found))
    assert not found.requires_grad
    assert head.logits(HIDDEN).requires_grad


# ---- transformers ----------------------------------------------------------------------------------------

SIZES = {
    "vocab_size": 23,
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 4,
    "max_position_embeddings": 16,
    "initializer_range": 1.0,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
MODELS: dict[str, tuple[Any, dict[str, Any]]] = {
    "llama": (transformers.LlamaConfig, {}),
    "gemma2, soft cap 2": (transformers.Gemma2Config, {"final_logit_softcapping": 2.0}),
    "gemma2, no soft cap": (transformers.Gemma2Config, {"final_logit_softcapping": None}),
    "cohere, scale 1/4": (transformers.CohereConfig, {"logit_scale": 0.25}),
    "granite, divided by 8": (transformers.GraniteConfig, {"logits_scaling": 8.0}),
    "phi, with a bias": (transformers.PhiConfig, {}),
}


def tiny(name: str, *, tied: bool) -> Any:
    make, options = MODELS[name]
    torch.manual_seed(0)
    config = make(**SIZES, **options, tie_word_embeddings=tied)
    auto: Any = transformers.AutoModelForCausalLM
    model = auto.from_config(config).eval()
    bias = getattr(model.get_output_embeddings(), "bias", None)
    if bias is not None:  # as initialised it is zero, which hides whether it is there
        torch.nn.init.normal_(bias)
    return model


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("name", MODELS)
def test_the_head_of_a_model_makes_the_logits_of_the_model(name: str, tied: bool) -> None:
    model = tiny(name, tied=tied)
    ids = torch.arange(3, 9).view(2, 3)
    with torch.no_grad():
        hidden, expected = model.base_model(ids).last_hidden_state, model(ids).logits
        torch.testing.assert_close(Head.of(model).logits(hidden), expected)
        plain = hidden @ model.get_output_embeddings().weight.T
    transformed = name not in ("llama", "gemma2, no soft cap")
    assert transformed != torch.allclose(plain, expected), "the model's transforms should matter here"


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_the_head_of_a_model_is_its_own_weight_and_not_a_copy(tied: bool) -> None:
    model = tiny("llama", tied=tied)
    head = Head.of(model)
    assert head.weight is model.lm_head.weight
    assert (head.weight is model.get_input_embeddings().weight) == tied


def test_the_head_of_a_model_keeps_which_ids_are_unreachable() -> None:
    unreachable = torch.arange(23) > 20
    assert Head.of(tiny("llama", tied=False), unreachable).unreachable is unreachable


def test_the_head_of_a_model_in_bfloat16_gives_float32_logits() -> None:
    model = tiny("gemma2, soft cap 2", tied=True).bfloat16()
    with torch.no_grad():
        hidden = model.base_model(torch.tensor([[3, 4]])).last_hidden_state
        found = Head.of(model).logits(hidden)
    assert hidden.dtype == torch.bfloat16
    assert found.dtype == torch.float32


@pytest.mark.parametrize("head", [None, SimpleNamespace()], ids=["none", "one without a weight"])
def test_a_model_without_a_linear_head_is_refused(head: Any) -> None:
    model = SimpleNamespace(get_output_embeddings=lambda: head)
    with pytest.raises(ValueError, match="SimpleNamespace has no linear head; give a causal language model"):
        Head.of(model)


@pytest.mark.parametrize("transforms", TRANSFORMS.values(), ids=TRANSFORMS)
def test_the_head_of_some_tokens_has_their_logits_and_through_a_projector_those_of_carried_states(
    transforms: tuple[Transforms, Transforms],
) -> None:
    case = random_leaves(transforms=transforms)
    head, hidden = case.head("teacher"), case.by_name["teacher_hidden"]
    part = head.rows(slice(2, 6))
    torch.testing.assert_close(part.logits(hidden), head.logits(hidden)[:, 2:6])
    torch.testing.assert_close(
        part.reachable(part.logits(hidden)), head.reachable(head.logits(hidden))[:, 2:6]
    )
    projector = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    states = case.by_name["student_hidden"]
    narrow = head.through(projector, torch.float64)
    assert not narrow.weight.requires_grad
    torch.testing.assert_close(narrow.logits(states), head.logits(states @ projector))
    assert head.through(projector, torch.bfloat16).weight.dtype == torch.bfloat16


def test_a_head_in_half_precision_is_multiplied_in_float32_by_a_projector_in_half_precision() -> None:
    case = random_leaves(sizes=(500, 5), widths=(64, 48))
    head, projector = Head(case.by_name["teacher_weight"].bfloat16()), torch.randn(48, 64).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        found = head.through(projector, torch.float32).weight
    torch.testing.assert_close(found, head.weight.detach().float() @ projector.float().T)
