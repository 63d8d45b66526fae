"""Other ids in place of a row's: split into two, dropped, or unknown."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

import oracle
from judge import Rewritten

if TYPE_CHECKING:
    from collections.abc import Mapping

    from corpus import Tokenizer
    from judge import Ids

SPLIT_SHARE = 0.2
LOST_SHARE = 0.1


def split_ids(side: Tokenizer, row: Ids) -> Rewritten:
    """A fifth of the ids, drawn, each as two other ids of the vocabulary with the same bytes."""
    rng = np.random.default_rng([4, len(row)])
    chosen = rng.random(len(row)) < SPLIT_SHARE
    found: list[int] = []
    for token_id, splits in zip(row.tolist(), chosen.tolist(), strict=True):
        ways = ways_to_split(side.tokens[token_id], side.ids_of) if splits else []
        found.extend(ways[int(rng.integers(len(ways)))] if ways else (token_id,))
    return Rewritten(np.array(found, dtype=np.int32), [(0, 0, len(side.text_of(row)))])


def ids_dropped(side: Tokenizer, row: Ids) -> Rewritten:
    """One id in ten, drawn, is not there; the first, which may hold a space that is no text, always is."""
    return _lost(side, row, instead=None, seed=7)


def ids_unknown(side: Tokenizer, row: Ids, seed: int = 8) -> Rewritten:
    """In place of one id in ten, drawn, one whose bytes nobody knows; the first stays."""
    opaque = next(index for index in range(len(side.tokens)) if side.vocabulary.token_bytes(index) is None)
    return _lost(side, row, instead=opaque, seed=seed)


def other_ids_unknown(side: Tokenizer, row: Ids) -> Rewritten:
    """The same at other places."""
    return ids_unknown(side, row, seed=9)


def _lost(side: Tokenizer, row: Ids, instead: int | None, seed: int) -> Rewritten:
    """The row without one id in ten, or with `instead` in its place."""
    lost = np.random.default_rng([seed, len(row)]).random(len(row)) < LOST_SHARE
    lost[:1] = False
    lengths = side.lengths[row]
    old = lengths.cumsum() - lengths
    new = np.where(lost, 0, lengths).cumsum() - lengths
    kept = np.stack([old, new, lengths], axis=1)[~lost & (lengths > 0)]
    same = oracle.merged(tuple(piece) for piece in kept.tolist())
    if instead is None:
        return Rewritten(row[~lost], same)
    return Rewritten(np.where(lost, instead, row).astype(np.int32), same)


def ways_to_split(token: bytes, ids_of: Mapping[bytes, int]) -> list[tuple[int, int]]:
    """All pairs of ids whose bytes joined are those of the token."""
    halves = ((token[:cut], token[cut:]) for cut in range(1, len(token)))
    return [(ids_of[left], ids_of[right]) for left, right in halves if left in ids_of and right in ids_of]
