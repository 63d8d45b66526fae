"""What an alignment holds: pairs, chunks, differences and counts of many rows, in flat columns."""

from __future__ import annotations

from dataclasses import dataclass, fields
from enum import IntEnum
from typing import TypeVar

import numpy as np
import numpy.typing as npt

__all__ = ["Chunks", "Counts", "Coverage", "PairKind", "Pairs", "Ranges", "row_of"]


class PairKind(IntEnum):
    """What makes a teacher token and a student token the same token of the text."""

    EXACT = 0
    """Same span, same bytes, not empty: the exact token alignment of arXiv 2504.11426."""
    ROLE = 1
    """Two specials that share a role and stand at the same place."""
    SPACE = 2
    """EXACT but for the one space, which one of the two held."""


@dataclass(frozen=True, slots=True, eq=False)
class Pairs:
    """Token pairs of all rows. Positions are columns of the row.

    Attributes:
        teacher: int32 `[pairs]`.
        student: int32 `[pairs]`.
        kind: uint8 `[pairs]`, a `PairKind` each.
        offsets: int64 `[rows + 1]`; row `i` has the pairs `offsets[i]:offsets[i + 1]`.
    """

    teacher: npt.NDArray[np.int32]
    student: npt.NDArray[np.int32]
    kind: npt.NDArray[np.uint8]
    offsets: npt.NDArray[np.int64]

    def __len__(self) -> int:
        """The number of pairs."""
        return len(self.kind)


@dataclass(frozen=True, slots=True, eq=False)
class Ranges:
    """Ranges of teacher tokens and of student tokens that belong together, half-open.

    Attributes:
        teacher_start: int32 `[ranges]`, and so the other three.
        teacher_end: one past the last teacher token.
        student_start: the first student token.
        student_end: one past the last student token.
        offsets: int64 `[rows + 1]`; row `i` has the ranges `offsets[i]:offsets[i + 1]`.
    """

    teacher_start: npt.NDArray[np.int32]
    teacher_end: npt.NDArray[np.int32]
    student_start: npt.NDArray[np.int32]
    student_end: npt.NDArray[np.int32]
    offsets: npt.NDArray[np.int64]

    def __len__(self) -> int:
        """The number of ranges."""
        return len(self.teacher_start)


@dataclass(frozen=True, slots=True, eq=False)
class Chunks(Ranges):
    """Smallest runs of tokens that cover the same bytes; they tile the common text.

    Attributes:
        encloses_zero_width: bool `[ranges]`; whether a token of zero width stands inside. Losses on
            log-probabilities leave such chunks out.
    """

    encloses_zero_width: npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False)
class Counts:
    """Numerators and denominators, int64 `[rows]` each. Logs add them up and never average ratios.

    Attributes:
        teacher_tokens: selected teacher tokens that have bytes.
        student_tokens: selected student tokens that have bytes.
        teacher_bytes: bytes of the selected teacher text.
        student_bytes: bytes of the selected student text.
        chunk_bytes: bytes in chunks, the same on both sides.
        teacher_opaque: selected teacher tokens whose bytes are unknown.
        student_opaque: selected student tokens whose bytes are unknown.
        exact: pairs of kind EXACT.
        role: pairs of kind ROLE.
        space: pairs of kind SPACE.
        segment_mismatch: 1 where one side has more segments than the other.
    """

    teacher_tokens: npt.NDArray[np.int64]
    student_tokens: npt.NDArray[np.int64]
    teacher_bytes: npt.NDArray[np.int64]
    student_bytes: npt.NDArray[np.int64]
    chunk_bytes: npt.NDArray[np.int64]
    teacher_opaque: npt.NDArray[np.int64]
    student_opaque: npt.NDArray[np.int64]
    exact: npt.NDArray[np.int64]
    role: npt.NDArray[np.int64]
    space: npt.NDArray[np.int64]
    segment_mismatch: npt.NDArray[np.int64]

    @property
    def coverage(self) -> Coverage:
        """Bytes in chunks / bytes of selected text."""
        return Coverage(
            _quotient(self.chunk_bytes, self.teacher_bytes), _quotient(self.chunk_bytes, self.student_bytes)
        )

    @property
    def ratio(self) -> npt.NDArray[np.float64]:
        """Student tokens in EXACT or SPACE pairs / those that have bytes: the paper's align ratio."""
        return _quotient(self.exact + self.space, self.student_tokens)

    def total(self) -> Counts:
        """The counts of all rows together, as those of one row."""
        return Counts(*(getattr(self, item.name).sum(keepdims=True) for item in fields(self)))


@dataclass(frozen=True, slots=True, eq=False)
class Coverage:
    """Bytes in chunks / bytes of selected text, float64 `[rows]`; 0 where there is no text."""

    teacher: npt.NDArray[np.float64]
    student: npt.NDArray[np.float64]


_Columns = TypeVar("_Columns", Pairs, Chunks, Ranges)


def row_of(columns: _Columns, row: int) -> _Columns:
    """The part of one row, as columns of that row alone."""
    start, end = columns.offsets[row : row + 2]
    cut = {item.name: getattr(columns, item.name)[start:end] for item in fields(columns)}
    offsets = np.array([0, end - start], dtype=np.int64)
    offsets.flags.writeable = False
    return type(columns)(**{**cut, "offsets": offsets})


def _quotient(part: npt.NDArray[np.int64], whole: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """The part of the whole, 0 where there is none."""
    return np.divide(part, whole, out=np.zeros(len(whole)), where=whole > 0)
