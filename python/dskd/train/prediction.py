"""What `DistillationTrainer.predict` says: the student's likeliest id at every supervised place."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from dskd.nn.heads import Head
from dskd.nn.places import IGNORED
from dskd.train.model import hidden_states

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import numpy.typing as npt

    from dskd.train.collator import Collated, DistillationCollator

__all__ = ["likeliest"]


@torch.no_grad()
def likeliest(
    model: Any, collator: DistillationCollator, rows: Iterable[Mapping[str, Any]], *, batch_size: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The likeliest ids and the labels, int64 `[rows, columns]` each, -100 where nothing is supervised.

    The label of a column is the token there, and the id what the model takes for likeliest before it sees
    that token: where the two agree, greedy decoding goes on as the row does.

    Args:
        model: the student.
        collator: that it is trained with.
        rows: see `dskd.train.data`.
        batch_size: rows at once.
    """
    was_training = model.training
    model.eval()
    remaining, batches = iter(rows), []
    while taken := list(itertools.islice(remaining, batch_size)):
        batches.append(_of_batch(model, collator(taken)))
    model.train(was_training)
    ids, labels = (_stacked([batch[index] for batch in batches]) for index in (0, 1))
    return ids, labels


def _of_batch(model: Any, batch: Collated) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    device = model.get_output_embeddings().weight.device
    tokens, at = batch.student.to(device), batch.places.student.to(device)
    states = hidden_states(model, tokens.input_ids, tokens.attention_mask)
    said = Head.of(model).logits(at.of(states)).argmax(-1)
    found = []
    for values in (said, at.labels):
        table = torch.full_like(tokens.input_ids, IGNORED)
        table[at.row, at.column + 1] = values
        found.append(table.cpu().numpy())
    return found[0], found[1]


def _stacked(tables: Sequence[npt.NDArray[np.int64]]) -> npt.NDArray[np.int64]:
    """One table, as wide as the widest."""
    width = max((table.shape[1] for table in tables), default=0)
    padded = [
        np.pad(table, ((0, 0), (0, width - table.shape[1])), constant_values=IGNORED) for table in tables
    ]
    return np.concatenate(padded) if padded else np.empty((0, 0), dtype=np.int64)
