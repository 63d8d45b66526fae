"""Bits per byte of held-out responses, against a loop over rows and tokens."""

from __future__ import annotations

import copy
import math
from typing import TYPE_CHECKING, Any

import pytest
import torch

import tiny
from dskd import Vocabulary
from dskd.train import HeldOut, Side, held_out
from tiny import ROWS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


def side_of(tokenizer: Any, **limits: Any) -> Side:
    return Side(tokenizer, Vocabulary.from_tokenizer(tokenizer), **limits)


SIDES = {"student": tiny.student_tokenizer, "teacher": tiny.teacher_tokenizer}


def model_for(name: str) -> Any:
    return tiny.llama(len(SIDES[name]()), 16)


def slowly(model: Any, side: Side, rows: Sequence[Mapping[str, Any]]) -> HeldOut:
    """A row at a time, a token at a time, but for a first token that nothing precedes: no bit, no byte."""
    text = end = 0.0
    size = 0
    model.eval()
    for row in rows:
        reading = tiny.read(side, row)
        with torch.no_grad():
            said = model(torch.tensor([reading.ids])).logits[0].log_softmax(-1)
        bits = [-float(said[column - 1, reading.ids[column]]) / math.log(2) for column in reading.columns]
        text, end = text + sum(bits[:-1]), end + bits[-1]
        size += len(row["completion"].encode())
        if reading.first == 0:
            size -= len(side.vocabulary.token_bytes(reading.ids[0]) or b"")
    return HeldOut(text / size, end / len(rows), len(rows), size)


@pytest.mark.parametrize("name", SIDES)
@pytest.mark.parametrize("size", [1, 3, 100])
def test_it_is_the_slow_loop_whatever_the_batch_size(name: str, size: int) -> None:
    side, model = side_of(SIDES[name]()), model_for(name)
    found, expected = held_out(model, side, ROWS, batch_size=size), slowly(model, side, ROWS)
    assert found.bits_per_byte == pytest.approx(expected.bits_per_byte, rel=1e-9)
    assert found.end_of_turn_bits == pytest.approx(expected.end_of_turn_bits, rel=1e-9)
    assert (found.rows, found.bytes) == (expected.rows, expected.bytes)
    left_out = sum(len(row["completion"].encode()) for row in ROWS) - found.bytes
    assert left_out == (len("Paris") if name == "teacher" else 0)  # what nothing precedes


def test_a_model_that_knows_nothing_needs_the_same_bits_for_every_token() -> None:
    side, model = side_of(tiny.student_tokenizer()), model_for("student")
    with torch.no_grad():
        model.lm_head.weight.zero_()
    rows = [row for row in ROWS if row["prompt"]]
    tokens = sum(len(tiny.read(side, row).columns) - 1 for row in rows)
    size = sum(len(row["completion"].encode()) for row in rows)
    found = held_out(model, side, rows)
    assert found.bits_per_byte == pytest.approx(math.log2(len(tiny.student_tokenizer())) * tokens / size)
    assert found.end_of_turn_bits == pytest.approx(math.log2(len(tiny.student_tokenizer())))


def test_the_end_of_turn_is_apart_from_the_text() -> None:
    """A head that never ends a turn has another cost of it, and hardly another of the text."""
    side, model = side_of(tiny.teacher_tokenizer()), tiny.llama(len(tiny.teacher_tokenizer()), 16)
    rows = [row for row in ROWS if row["prompt"]]
    before = held_out(model, side, rows)
    linear = torch.nn.Linear(16, len(tiny.teacher_tokenizer()), dtype=torch.float64)
    with torch.no_grad():
        linear.weight.copy_(model.lm_head.weight)
        linear.bias.zero_()
        linear.bias[side.tokenizer.eos_token_id] = -40.0
    model.lm_head = linear
    after = held_out(model, side, rows)
    assert after.end_of_turn_bits == pytest.approx(before.end_of_turn_bits + 40 / math.log(2), abs=0.5)
    assert abs(after.bits_per_byte - before.bits_per_byte) < 0.2


def test_a_text_that_is_one_token_behind_nothing_has_no_bits_and_no_bytes() -> None:
    side, model = side_of(tiny.teacher_tokenizer()), model_for("teacher")
    found = held_out(model, side, [{"text": "Paris"}])
    assert (found.bits_per_byte, found.bytes, found.rows) == (0.0, 0, 1)
    assert found.end_of_turn_bits > 0


def test_every_turn_of_a_conversation_counts() -> None:
    """One row of several turns is what they cost as rows of their own, which the same stands before."""
    side, model = side_of(with_ends()), tiny.llama(len(with_ends()), 16)
    messages = [
        {"role": role, "content": text}
        for role, text in (
            ("user", "Is it"),
            ("assistant", "Paris"),
            ("user", "What"),
            ("assistant", "world is"),
        )
    ]
    found = held_out(model, side, [{"messages": messages}])
    alone = [
        held_out(model, side, [{"prompt": messages[:place], "completion": messages[place : place + 1]}])
        for place in (1, 3)
    ]
    size = sum(one.bytes for one in alone)
    assert (found.rows, found.bytes) == (2, size)
    assert found.bits_per_byte * size == pytest.approx(sum(one.bits_per_byte * one.bytes for one in alone))
    assert found.end_of_turn_bits == pytest.approx(sum(one.end_of_turn_bits for one in alone) / 2)


def with_ends() -> Any:
    """A tokenizer whose template ends every turn."""
    tokenizer = copy.deepcopy(tiny.teacher_tokenizer())
    tokenizer.chat_template = tiny.CHAT.replace("\n{% endfor %}", "</s>\n{% endfor %}")
    return tokenizer


def test_cut_responses_are_left_out() -> None:
    whole, cut = (side_of(tiny.student_tokenizer(), max_response_length=limit) for limit in (512, 7))
    kept = [row for row in ROWS if len((one := tiny.read(whole, row)).ids) - one.first <= 7]
    assert 0 < len(kept) < len(ROWS)
    model = model_for("student")
    found, expected = held_out(model, cut, ROWS), slowly(model, whole, kept)
    assert found.bits_per_byte == pytest.approx(expected.bits_per_byte, rel=1e-9)
    assert (found.rows, found.bytes) == (expected.rows, expected.bytes)


@pytest.mark.parametrize("rows", [ROWS, []], ids=["all cut", "none"])
def test_no_row_that_is_left_is_an_error(rows: list[dict[str, str]]) -> None:
    with pytest.raises(
        ValueError, match="no row to evaluate whose response is whole; raise max_response_length"
    ):
        held_out(model_for("student"), side_of(tiny.student_tokenizer(), max_response_length=1), rows)


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_as_it_was_and_drops_nothing_out_meanwhile(training: bool) -> None:
    model = tiny.gpt2(len(tiny.student_tokenizer()), 16, resid_pdrop=0.5, embd_pdrop=0.5, attn_pdrop=0.5)
    model.train(training)
    side = side_of(tiny.student_tokenizer())
    found = [held_out(model, side, ROWS) for _ in range(2)]
    assert found[0] == found[1]
    assert model.training == training
    assert all(module.training == training for module in model.modules())
    assert all(one.grad is None for one in model.parameters())
    assert found[0].bits_per_byte == pytest.approx(slowly(model, side, ROWS).bits_per_byte, rel=1e-9)
