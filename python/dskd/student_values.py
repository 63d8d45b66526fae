"""Log-probabilities of a teacher's tokens, carried to the student's tokens of the same text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from dskd.columns import PairKind
from dskd.overlaps import places_in, rows_of

if TYPE_CHECKING:
    from dskd.columns import Chunks, Pairs
    from dskd.overlaps import Tokens

__all__ = ["StudentValues", "student_values"]


@dataclass(frozen=True, slots=True, eq=False)
class StudentValues:
    """A value for each student token whose text the teacher gave a value.

    Attributes:
        values: float64 `[tokens]`, all columns of all rows, one row after the other; 0 where not covered.
        covered: bool `[tokens]`, whether the token has a value.
        offsets: int64 `[rows + 1]`; row `i` has the tokens `offsets[i]:offsets[i + 1]`.
    """

    values: npt.NDArray[np.float64]
    covered: npt.NDArray[np.bool_]
    offsets: npt.NDArray[np.int64]

    def __len__(self) -> int:
        """The number of tokens."""
        return len(self.values)


def student_values(
    chunks: Chunks, pairs: Pairs, teacher: Tokens, student: Tokens, values: npt.NDArray[np.float64]
) -> StudentValues:
    """The values of the teacher's tokens, summed over each chunk and spread evenly over its student tokens.

    Chunks that enclose a token without text are left out: the teacher gave that token a probability too. A
    pair of specials is carried as a chunk of one and one.

    Args:
        chunks: of all rows.
        pairs: of all rows.
        teacher: its tokens.
        student: its tokens.
        values: float64 `[teacher tokens]`.
    """
    keep, special = ~chunks.encloses_zero_width, pairs.kind == PairKind.ROLE
    row = np.concatenate([rows_of(chunks.offsets)[keep], rows_of(pairs.offsets)[special]])
    teacher_start = np.concatenate([chunks.teacher_start[keep], pairs.teacher[special]])
    teacher_end = np.concatenate([chunks.teacher_end[keep], pairs.teacher[special] + 1])
    student_start = np.concatenate([chunks.student_start[keep], pairs.student[special]])
    student_end = np.concatenate([chunks.student_end[keep], pairs.student[special] + 1])

    totals = _sums(values[places_in(teacher_start, teacher_end, row, teacher)], teacher_end - teacher_start)
    places, sizes = places_in(student_start, student_end, row, student), student_end - student_start
    carried, covered = np.zeros(len(student)), np.zeros(len(student), dtype=np.bool_)
    carried[places] = np.repeat(totals / sizes, sizes)
    covered[places] = True
    for array in (carried, covered):
        array.flags.writeable = False
    return StudentValues(carried, covered, student.offsets)


def _sums(values: npt.NDArray[np.float64], sizes: npt.NDArray[np.int32]) -> npt.NDArray[np.float64]:
    """The sum of each run of values; a value that is not finite stays in its run, as in no running sum."""
    starts = np.cumsum(sizes, dtype=np.int64) - sizes
    with np.errstate(invalid="ignore", over="ignore"):
        sums: npt.NDArray[np.float64] = np.add.reduceat(values, starts) if len(starts) else np.empty(0)
    return sums
