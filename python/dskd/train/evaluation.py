"""How well a model says held-out text: bits per byte, comparable between tokenizers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

from dskd.nn.heads import Head
from dskd.train.fitting import fit
from dskd.train.model import hidden_states
from dskd.train.rows import read_row
from dskd.train.side import STUDENT

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from torch import Tensor

    from dskd.train.side import Encoded, EncodedTurn, Side

__all__ = ["HeldOut", "held_out"]


@dataclass(frozen=True, slots=True)
class HeldOut:
    """What a model says of the responses of some rows.

    Attributes:
        bits_per_byte: of the responses' text: minus the log2 of its probability / its UTF-8 bytes, without a
            first token that nothing precedes.
        end_of_turn_bits: minus the log2 of the probability of the end of turn, on average a response.
        rows: responses: turns of the assistant.
        bytes: of all their text.
    """

    bits_per_byte: float
    end_of_turn_bits: float
    rows: int
    bytes: int


@torch.no_grad()
def held_out(model: Any, side: Side, rows: Iterable[Mapping[str, Any]], *, batch_size: int = 16) -> HeldOut:
    """What a model says of the responses, each behind its prompt.

    What counts is reasoning and content and the marker that ends the turn, not what the side's template alone
    writes before them. Rows whose response is cut by the side's limit are left out, since what is left of
    them has other bytes for every tokenizer.

    Args:
        model: a causal language model of transformers.
        side: how rows become its ids.
        rows: of text, see `dskd.train.rows`.
        batch_size: rows at once; they are sorted by length.

    Raises:
        ValueError: no row is left, or one cannot be read.
    """
    found = [fitted.sides[STUDENT] for row in rows for fitted in fit(read_row(row), {STUDENT: side})]
    encoded = [one for one in found if one.is_whole]
    if not encoded:
        raise ValueError("there is no row to evaluate whose response is whole; raise max_response_length")
    encoded.sort(key=lambda one: len(one.ids))
    was_training = model.training
    model.eval()
    text = end = 0.0
    for start in range(0, len(encoded), batch_size):
        nats, ends = _nats(model, encoded[start : start + batch_size])
        text += float(nats[~ends].sum())
        end += float(nats[ends].sum())
    model.train(was_training)
    turns = sum(len(one.turns) for one in encoded)
    size = sum(_size(side, one, turn) for one in encoded for turn in one.turns)
    return HeldOut(text / math.log(2) / max(size, 1), end / math.log(2) / turns, turns, size)


def _size(side: Side, row: Encoded, turn: EncodedTurn) -> int:
    """Of the text of a turn that positions predict, in bytes."""
    first, last = _first(turn), turn.end - 1
    if row.places is None:
        return sum(len(side.vocabulary.token_bytes(token) or b"") for token in row.ids[first:last])
    return row.places[last - 1] - row.places[first - 1] if last > first else 0


def _first(turn: EncodedTurn) -> int:
    """The first id that counts; nothing predicts that of a row."""
    return max(turn.opens(with_reasoning=True), 1)


def _nats(model: Any, rows: Sequence[Encoded]) -> tuple[Tensor, Tensor]:
    """For every token of the responses minus its log-probability, and whether it is the end of turn."""
    device = model.get_output_embeddings().weight.device
    width = max(len(row.ids) for row in rows)
    ids = torch.zeros(len(rows), width, dtype=torch.int64)
    counts, ends = torch.zeros_like(ids, dtype=torch.bool), torch.zeros_like(ids, dtype=torch.bool)
    for index, row in enumerate(rows):
        ids[index, : len(row.ids)] = torch.tensor(row.ids)
        for turn in row.turns:
            counts[index, _first(turn) : turn.end] = True
            ends[index, turn.end - 1] = True
    lengths = torch.tensor([len(row.ids) for row in rows])[:, None]
    mask = (torch.arange(width) < lengths).long()
    counts = counts[:, 1:]
    states = hidden_states(model, ids.to(device), mask.to(device))
    logits = Head.of(model).logits(states[:, :-1][counts.to(device)])
    nats = functional.cross_entropy(logits, ids[:, 1:][counts].to(logits.device), reduction="none")
    return nats.cpu(), ends[:, 1:][counts]
