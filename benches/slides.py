"""Where the truth is not known: what was put in or left out, and could as well have been so elsewhere.

Of many equal lines any could be the one that is gone; inside of a value that stands in another's place
nothing corresponds for certain. Such a stretch of the two texts is a box, and a pair of tokens that reaches
into one box on both sides is not judged.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from oracle import Piece, Spans

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Box:
    """A stretch of either text, in bytes, inside of which it is not known what corresponds to what."""

    teacher_start: int
    teacher_end: int
    student_start: int
    student_end: int

    def moved(self, teacher: int, student: int) -> Box:
        """The box so many bytes further on in either text."""
        return Box(
            self.teacher_start + teacher,
            self.teacher_end + teacher,
            self.student_start + student,
            self.student_end + student,
        )

    def widened(self, left: int, right: int) -> Box:
        """The box with so many more bytes of both texts at either end."""
        return Box(
            self.teacher_start - left,
            self.teacher_end + right,
            self.student_start - left,
            self.student_end + right,
        )

    def around(self, other: Box) -> Box:
        """The smallest box that holds both."""
        return Box(
            min(self.teacher_start, other.teacher_start),
            max(self.teacher_end, other.teacher_end),
            min(self.student_start, other.student_start),
            max(self.student_end, other.student_end),
        )

    def swapped(self) -> Box:
        """The box with teacher and student exchanged."""
        return Box(self.student_start, self.student_end, self.teacher_start, self.teacher_end)


# ---- Of a row --------------------------------------------------------------------------------------------


def gaps(same: Sequence[Piece], lengths: tuple[int, int]) -> list[Box]:
    """What lies between neighbouring pieces, before the first and behind the last.

    Args:
        same: the pieces, in order.
        lengths: of the two texts, in bytes.
    """
    ends = [(0, 0), *((teacher + length, student + length) for teacher, student, length in same)]
    starts = [*((teacher, student) for teacher, student, _ in same), lengths]
    between = zip(ends, starts, strict=True)
    return [Box(end[0], start[0], end[1], start[1]) for end, start in between if end != start]


def slides(teacher: bytes, student: bytes, same: Sequence[Piece]) -> list[Box]:
    """What could as well have been put in, or left out, a little further on or back; one box for each.

    Text that only one side has slides to the left as long as the byte before it equals its last one, and to
    the right as long as the byte behind it equals its first one: what both sides say stays the same. A box
    holds all that it can reach between the changes next to it; where it reaches one of them, they are one.
    """
    found: list[Box] = []
    before = {(one + length, other + length): length for one, other, length in same}
    behind = {(one, other): length for one, other, length in same}
    for gap in gaps(same, (len(teacher), len(student))):
        room = (
            before.get((gap.teacher_start, gap.student_start), 0),
            behind.get((gap.teacher_end, gap.student_end), 0),
        )
        left = right = 0
        if gap.student_start == gap.student_end:
            left, right = _slide(teacher, gap.teacher_start, gap.teacher_end, *room)
        elif gap.teacher_start == gap.teacher_end:
            left, right = _slide(student, gap.student_start, gap.student_end, *room)
        if left or right:
            found.append(gap.widened(left, right))
    return united(found)


def _slide(text: bytes, start: int, end: int, most_left: int, most_right: int) -> tuple[int, int]:
    """By how many bytes `text[start:end]` can go to the left, and to the right, with the rest as it is."""
    left = right = 0
    while left < most_left and text[start - 1 - left] == text[end - 1 - left]:
        left += 1
    while right < most_right and text[start + right] == text[end + right]:
        right += 1
    return left, right


def united(boxes: Iterable[Box]) -> list[Box]:
    """The boxes in order, and those that touch on both sides made one."""
    found: list[Box] = []
    for box in sorted(boxes, key=lambda box: (box.teacher_start, box.student_start)):
        last = found[-1] if found else None
        if last and box.teacher_start <= last.teacher_end and box.student_start <= last.student_end:
            found[-1] = last.around(box)
        else:
            found.append(box)
    return found


# ---- Of a batch ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Undecided:
    """Which boxes the tokens of a batch reach into: from the first, up to the last; `[tokens]` a side."""

    teacher: tuple[Ints, Ints]
    student: tuple[Ints, Ints]

    def among(self, pairs: tuple[Ints, Ints]) -> npt.NDArray[np.bool_]:
        """Which of these pairs of tokens reach into one box on both sides."""
        first = np.maximum(self.teacher[0][pairs[0]], self.student[0][pairs[1]])
        last = np.minimum(self.teacher[1][pairs[0]], self.student[1][pairs[1]])
        inside: npt.NDArray[np.bool_] = first < last
        return inside


def undecided(
    teacher: Spans, student: Spans, rows: Sequence[list[Box]], row_bytes: tuple[Ints, Ints]
) -> Undecided:
    """What is not known of a batch whose rows have these boxes, and so many bytes a side."""
    ends = [[0, *lengths.cumsum().tolist()] for lengths in row_bytes]
    starts = zip(*ends, strict=True)
    laid_out = [box.moved(*start) for boxes, start in zip(rows, starts, strict=False) for box in boxes]
    teacher_boxes = [(box.teacher_start, box.teacher_end) for box in laid_out]
    student_boxes = [(box.student_start, box.student_end) for box in laid_out]
    return Undecided(_reached(teacher, teacher_boxes), _reached(student, student_boxes))


def _reached(spans: Spans, boxes: Sequence[tuple[int, int]]) -> tuple[Ints, Ints]:
    """The first box that each token reaches into, and the first behind the last one."""
    starts, ends = np.array(boxes, dtype=np.int64).reshape(-1, 2).T
    return ends.searchsorted(spans.starts, side="right"), starts.searchsorted(spans.ends, side="left")
