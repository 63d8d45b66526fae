"""Which tokens of the other side share text with a token: the cross-vocabulary offset map."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from dskd.columns import Chunks
    from dskd.vocabulary import Vocabulary

__all__ = ["Overlaps", "Tokens", "byte_lengths", "columns_in", "overlaps", "places_in", "rows_of"]

_Indices = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Overlaps:
    """For every token of one side the columns of the other side with which it shares bytes of common text.

    The range is empty, `start == end == 0`, for a token without text or of unknown text, for one in a
    difference and for one that takes no part. Tokens without text may stand inside a range.

    Attributes:
        start: int32 `[tokens]`, all columns of all rows, one row after the other; half-open.
        end: int32 `[tokens]`.
        offsets: int64 `[rows + 1]`; row `i` has the tokens `offsets[i]:offsets[i + 1]`.
    """

    start: npt.NDArray[np.int32]
    end: npt.NDArray[np.int32]
    offsets: npt.NDArray[np.int64]

    def __len__(self) -> int:
        """The number of tokens."""
        return len(self.start)


@dataclass(frozen=True, slots=True, eq=False)
class Tokens:
    """The ids of one side as they were given, and how many bytes each has: looked up when it is asked for.

    A pickle holds the lengths and not the vocabulary.

    Attributes:
        ids: integers `[tokens]`; where `of_id` is None they are the lengths themselves.
        offsets: int64 `[rows + 1]`, from 0.
        of_id: int32 `[size + 1]`, the bytes of each id and one 0 more; it is shared.
    """

    ids: npt.NDArray[Any]
    offsets: npt.NDArray[np.int64]
    of_id: npt.NDArray[np.int32] | None

    def __len__(self) -> int:
        """The number of tokens of all rows."""
        return len(self.ids)

    @property
    def row_lengths(self) -> _Indices:
        """The tokens in each row."""
        lengths = np.diff(self.offsets)
        lengths.flags.writeable = False
        return lengths

    def row(self, index: int) -> Tokens:
        """The tokens of one row."""
        start, end = self.offsets[index : index + 2]
        return Tokens(self.ids[start:end], np.array([0, end - start], dtype=np.int64), self.of_id)

    def lengths(self, places: _Indices | slice = slice(None)) -> _Indices:
        """The bytes of the tokens at these places of all rows; any number for an id that is none."""
        ids = self.ids[places]
        found = ids if self.of_id is None else self.of_id.take(ids, mode="clip")
        return found.astype(np.int64)

    def __reduce__(self) -> tuple[type[Tokens], tuple[npt.NDArray[np.int32], npt.NDArray[np.int64], None]]:
        """Pickled as the length of each token."""
        return Tokens, (self.lengths().astype(np.int32), self.offsets, None)


def byte_lengths(vocabulary: Vocabulary) -> npt.NDArray[np.int32]:
    """The bytes of each id and one 0 more, int32 `[size + 1]`, read-only; specials and unknown ids have 0."""
    lengths = np.append(vocabulary.core.parts()[1].astype(np.int32), np.int32(0))
    lengths.flags.writeable = False
    return lengths


def columns_in(start: npt.NDArray[np.int32], end: npt.NDArray[np.int32]) -> _Indices:
    """The columns of these ranges, one range after the other: `concatenate(map(arange, start, end))`."""
    sizes = (end - start).astype(np.int64)
    behind = np.cumsum(sizes)
    columns: _Indices = np.arange(sizes.sum()) + np.repeat(start - (behind - sizes), sizes)
    return columns


def rows_of(offsets: _Indices) -> _Indices:
    """The row of each item of rows with these offsets."""
    return np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))


def places_in(
    start: npt.NDArray[np.int32], end: npt.NDArray[np.int32], row: _Indices, tokens: Tokens
) -> _Indices:
    """The tokens of these ranges, one range after the other, as indices into the tokens of all rows.

    Args:
        start: the first column of each range.
        end: one past its last column.
        row: the row of each range.
        tokens: the tokens of all rows.
    """
    row_starts = np.repeat(tokens.offsets[row], end - start)
    return columns_in(start, end) + row_starts


@dataclass(frozen=True, slots=True)
class _Spelled:
    """The tokens of one side that are in chunks, and how many bytes of the text of all chunks each has."""

    places: _Indices
    columns: _Indices
    lengths: _Indices
    """Bytes of each token; the one space is taken off in place."""
    firsts: _Indices
    """Which of these tokens is the first of each chunk."""

    def chunk_lengths(self) -> _Indices:
        return np.add.reduceat(self.lengths, self.firsts) if len(self.firsts) else self.firsts


def overlaps(chunks: Chunks, chunk_bytes: _Indices, teacher: Tokens, student: Tokens, side: str) -> Overlaps:
    """For every token of one side the columns of the other with which it shares bytes of common text.

    Both sides have the same text in the same chunks, so the bytes of all chunks, one after the other, say
    which tokens meet: the range runs from the other token that has the first byte to the one that has the
    last. Only the one space is on one side alone: where a chunk is one byte longer there, its first token
    lost that byte.

    Args:
        chunks: the chunks of all rows.
        chunk_bytes: int64 `[rows]`, bytes in the chunks of each row.
        teacher: its tokens.
        student: its tokens.
        side: "teacher" or "student", whose tokens are mapped.

    Raises:
        ValueError: the ids were written to since they were aligned.
    """
    sides = (
        _spelled(chunks.teacher_start, chunks.teacher_end, chunks.offsets, teacher),
        _spelled(chunks.student_start, chunks.student_end, chunks.offsets, student),
    )
    _take_off_spaces(*sides)
    _refuse_other_lengths(chunks, chunk_bytes, *sides)
    (mapped, others), tokens = (sides, teacher) if side == "teacher" else (sides[::-1], student)
    has_text = mapped.lengths > 0
    places, ends = mapped.places[has_text], np.cumsum(mapped.lengths)[has_text]
    column_of_byte = np.repeat(others.columns.astype(np.int32), others.lengths)
    start, end = np.zeros((2, len(tokens)), dtype=np.int32)
    start[places] = column_of_byte[ends - mapped.lengths[has_text]]
    end[places] = column_of_byte[ends - 1] + 1
    for array in (start, end):
        array.flags.writeable = False
    return Overlaps(start, end, tokens.offsets)


def _spelled(
    start: npt.NDArray[np.int32], end: npt.NDArray[np.int32], offsets: _Indices, tokens: Tokens
) -> _Spelled:
    places = places_in(start, end, rows_of(offsets), tokens)
    sizes = (end - start).astype(np.int64)
    return _Spelled(places, columns_in(start, end), tokens.lengths(places), np.cumsum(sizes) - sizes)


def _take_off_spaces(teacher: _Spelled, student: _Spelled) -> None:
    """A chunk begins with text, so it is its first token that lost the space."""
    longer = teacher.chunk_lengths() - student.chunk_lengths()
    teacher.lengths[teacher.firsts[longer == 1]] -= 1
    student.lengths[student.firsts[longer == -1]] -= 1


def _refuse_other_lengths(
    chunks: Chunks, chunk_bytes: _Indices, teacher: _Spelled, student: _Spelled
) -> None:
    """Ids are not copied: that somebody wrote to them shows in what the chunks add up to."""
    of_teacher, of_student = teacher.chunk_lengths(), student.chunk_lengths()
    total = np.cumsum(np.append(0, of_teacher))[chunks.offsets]
    if (of_teacher != of_student).any() or (np.diff(total) != chunk_bytes).any():
        raise ValueError(
            "the ids were written to since they were aligned, and their bytes are looked up only now; "
            "ask before you reuse their memory, or align a copy"
        )
