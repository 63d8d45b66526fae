"""A text in ids, and where in the text every id stands: by bytes, a marker by its literal.

Offsets of a tokenizer are not asked: normalisers shift them, and slow tokenizers have none.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from dskd.vocabulary import Vocabulary

__all__ = ["Laid", "Layer"]

_SPACE = re.compile(rb"\s*")
_BEFORE = ("\n", "\t", ":")
"""Of which one is put before a text whose first token shall not get a space."""

_Dummy: TypeAlias = Literal["nowhere", "at the start", "behind markers too"]
_DUMMIES: tuple[_Dummy, ...] = ("nowhere", "at the start", "behind markers too")


@dataclass(frozen=True, slots=True)
class Laid:
    """Ids, and their places in a text, in bytes.

    Attributes:
        ids: of the tokens.
        starts: where each begins.
        ends: where each ends; neither descends.
        is_exact: whether places are those of each token, or of the piece of text that it lies in.
    """

    ids: list[int]
    starts: list[int]
    ends: list[int]
    is_exact: bool = True

    def index(self, place: int) -> int:
        """The id that lies across a place, or else the first that begins there or behind it.

        A space that the tokenizer adds by itself has no width: it belongs to what follows.
        """
        index = bisect_left(self.starts, place)
        return index - 1 if index and self.ends[index - 1] > place else index

    def parts(self, place: int) -> bool:
        """Whether no token lies across it."""
        index = self.index(place)
        return index == len(self.ids) or self.starts[index] >= place


@dataclass(frozen=True, slots=True)
class _Piece:
    """What an id writes: its bytes, of a marker the literal."""

    text: bytes
    is_marker: bool = False
    eats_before: bool = False
    eats_behind: bool = False


class Layer:
    """Lays texts on the tokens of one tokenizer.

    Args:
        tokenizer: of transformers.
        vocabulary: what the aligner knows of it.
    """

    def __init__(self, tokenizer: Any, vocabulary: Vocabulary) -> None:
        """See the class."""
        self._tokenizer = tokenizer
        self._vocabulary = vocabulary
        self._pieces = {
            token: _Piece(
                str(added.content).encode(),
                is_marker=True,
                eats_before=bool(added.lstrip),
                eats_behind=bool(added.rstrip),
            )
            for token, added in tokenizer.added_tokens_decoder.items()
        }

    def lay(self, text: str, cuts: Iterable[int] = (), *, as_text: Iterable[tuple[int, int]] = ()) -> Laid:
        """A text, cut before it is tokenised.

        Args:
            text: of a whole row.
            cuts: places, in characters, at which no token may lie across.
            as_text: spans, in characters, in which the literal of a marker is text.
        """
        literal = list(as_text)
        edges = sorted({0, len(text), *cuts, *(place for span in literal for place in span)})
        ids: list[int] = []
        starts: list[int] = []
        ends: list[int] = []
        is_exact = True
        offset = 0
        for start, end in pairwise(edges):
            parse = not any(first <= start and end <= last for first, last in literal)
            piece = self._piece(text[start:end], parse=parse, is_first=start == 0)
            ids += piece.ids
            starts += [offset + place for place in piece.starts]
            ends += [offset + place for place in piece.ends]
            is_exact &= piece.is_exact
            offset += len(text[start:end].encode())
        return Laid(ids, starts, ends, is_exact)

    def _piece(self, text: str, *, parse: bool, is_first: bool) -> Laid:
        data = text.encode()
        ids = self._ids(text, parse=parse) if is_first else self._apart(text, parse=parse)
        for dummy in _DUMMIES if self._vocabulary.dummy_prefix else _DUMMIES[:1]:
            if (places := self._places(ids, data, dummy)) is not None:
                return Laid(ids, *places)
        return Laid(ids, [0] * len(ids), [len(data)] * len(ids), is_exact=False)

    def _ids(self, text: str, *, parse: bool) -> list[int]:
        ids: list[int] = self._tokenizer(
            text, add_special_tokens=False, split_special_tokens=not parse, verbose=False
        )["input_ids"]
        return ids

    def _apart(self, text: str, *, parse: bool) -> list[int]:
        """The ids of a text that is not the first of its row: without a space that the tokenizer adds."""
        if not self._vocabulary.dummy_prefix or not text:
            return self._ids(text, parse=parse)
        data = text.encode()
        if text.startswith(" ") and self._places(ids := self._ids(text[1:], parse=parse), data, "nowhere"):
            return ids
        for before in _BEFORE:
            ids = self._ids(before + text, parse=parse)
            for count in range(1, min(len(ids), 4)):
                if self._places(ids[count:], data, "nowhere") is not None:
                    return ids[count:]
        return self._ids(text, parse=parse)

    def _places(self, ids: Sequence[int], data: bytes, dummy: _Dummy) -> tuple[list[int], list[int]] | None:
        """Where ids begin and end in a text; None: they do not have its bytes."""
        starts, ends = [], []
        place, is_fresh = 0, dummy != "nowhere"
        for token in ids:
            piece = self._written(token)
            if piece.eats_before:
                place = _behind_space(data, place)
            text = piece.text[1:] if is_fresh and piece.text[:1] == b" " else piece.text
            if not data.startswith(text, place):
                return None
            starts.append(place)
            place += len(text)
            ends.append(place)
            if piece.eats_behind:
                place = _behind_space(data, place)
            is_fresh = (is_fresh and not piece.text) or (piece.is_marker and dummy == "behind markers too")
        return (starts, ends) if place == len(data) else None

    def _written(self, token: int) -> _Piece:
        if token not in self._pieces:
            self._pieces[token] = _Piece(self._vocabulary.token_bytes(token) or b"")
        return self._pieces[token]


def _behind_space(data: bytes, place: int) -> int:
    found = _SPACE.match(data, place)
    return place if found is None else found.end()
