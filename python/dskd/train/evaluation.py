"""How well a model says held-out text: bits per byte, comparable between tokenizers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

from dskd.nn.heads import Head
from dskd.train.collator import content
from dskd.train.model import hidden_states

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from torch import Tensor

    from dskd.train.collator import Encoded, Side

__all__ = ["HeldOut", "held_out"]


@dataclass(frozen=True, slots=True)
class HeldOut:
    """What a model says of the responses of some rows.

    Attributes:
        bits_per_byte: of the responses' text: minus the log2 of its probability / its UTF-8 bytes.
        end_of_turn_bits: minus the log2 of the probability of the end of turn, on average a response.
        rows: responses.
        bytes: of all their text.
    """

    bits_per_byte: float
    end_of_turn_bits: float
    rows: int
    bytes: int


@torch.no_grad()
def held_out(model: Any, side: Side, rows: Iterable[Mapping[str, Any]], *, batch_size: int = 16) -> HeldOut:
    """What a model says of the responses, each behind its prompt.

    Rows whose response is cut by the side's limit are left out, since what is left of them has other bytes
    for every tokenizer.

    Args:
        model: a causal language model of transformers.
        side: how rows become its ids.
        rows: with `prompt` and `completion`.
        batch_size: rows at once; they are sorted by length.

    Raises:
        ValueError: no row is left.
    """
    encoded = [
        (one, len(content(row["completion"]).encode())) for row in rows if (one := side.encode(row)).ends
    ]
    if not encoded:
        raise ValueError("there is no row to evaluate whose response is whole; raise max_response_length")
    encoded.sort(key=lambda pair: len(pair[0].ids))
    was_training = model.training
    model.eval()
    text = end = 0.0
    for start in range(0, len(encoded), batch_size):
        nats, ends = _nats(model, [one for one, _ in encoded[start : start + batch_size]])
        text += float(nats[~ends].sum())
        end += float(nats[ends].sum())
    model.train(was_training)
    size = sum(size for _, size in encoded)
    return HeldOut(text / math.log(2) / size, end / math.log(2) / len(encoded), len(encoded), size)


def _nats(model: Any, rows: Sequence[Encoded]) -> tuple[Tensor, Tensor]:
    """For every token of the responses minus its log-probability, and whether it is the end of turn."""
    device = model.get_output_embeddings().weight.device
    width = max(len(row.ids) for row in rows)
    ids = torch.tensor([[*row.ids, *[0] * (width - len(row.ids))] for row in rows], device=device)
    lengths = torch.tensor([len(row.ids) for row in rows], device=device)[:, None]
    first = lengths - torch.tensor([row.predicted for row in rows], device=device)[:, None]
    columns = torch.arange(width, device=device)
    states = hidden_states(model, ids, (columns < lengths).long())
    predicted = ((columns >= first) & (columns < lengths))[:, 1:]
    logits = Head.of(model).logits(states[:, :-1][predicted])
    nats = functional.cross_entropy(logits, ids[:, 1:][predicted], reduction="none")
    return nats, (columns == lengths - 1)[:, 1:][predicted]
