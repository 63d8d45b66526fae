"""Which pairs exist, by byte spans and by what is known of the text; no alignment is asked.

Both sides of a batch are laid out as two long texts, row behind row, and tokens are intervals of bytes in
them. What the two texts share is given as pieces: intervals that are the same text on both sides. A pair
exists where a teacher token lies inside a piece and the piece carries it onto exactly one student token.
Nothing of `dskd` is used: the bytes of the ids come in from outside.
"""

from __future__ import annotations

import itertools
import unicodedata
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import re
    from collections.abc import Iterable, Sequence

Ints = npt.NDArray[np.int64]
Piece = tuple[int, int, int]
"""Where it starts in the teacher's text, where in the student's, and its length; bytes."""


@dataclass(frozen=True, slots=True)
class Change:
    """`text[start:end]` is replaced by `new`; characters."""

    start: int
    end: int
    new: str


@dataclass(frozen=True, slots=True)
class Spans:
    """Where each token of a batch lies in the text of the whole batch, int64 `[tokens]` each."""

    starts: Ints
    ends: Ints


@dataclass(frozen=True, slots=True)
class Score:
    """What became of the pairs that exist.

    Attributes:
        exist: pairs of the oracle.
        hit: those of them that were found.
        found: all pairs that were found, less those of which it is not known whether they are true.
        true: pairs found that the correspondence allows: those that were hit, and those whose two tokens are
            at one place but for a leading space.
    """

    exist: int
    hit: int
    found: int
    true: int

    @property
    def recall(self) -> float:
        """Rounded down, so that 1 means all."""
        return share(self.hit, self.exist)

    @property
    def precision(self) -> float:
        """Rounded down, so that 1 means all."""
        return share(self.true, self.found)


def share(part: int, whole: int) -> float:
    """Rounded down to five digits, so that 1 means all of them; 0 of none."""
    return part * 100_000 // max(whole, 1) / 100_000


def share_up(part: int, whole: int) -> float:
    """Rounded up to five digits, so that 0 means none of them."""
    return -(-part * 100_000 // max(whole, 1)) / 100_000


# ---- What two texts share --------------------------------------------------------------------------------


def changed(text: str, changes: Sequence[Change]) -> str:
    """The text after all changes, which come in order and do not overlap."""
    ends = [0, *(change.end for change in changes)]
    starts = [*(change.start for change in changes), len(text)]
    kept = [text[end:start] for end, start in zip(ends, starts, strict=True)]
    return "".join(
        itertools.chain(*itertools.zip_longest(kept, (change.new for change in changes), fillvalue=""))
    )


def pieces(text: str, changes: Sequence[Change]) -> list[Piece]:
    """What `text` (the teacher's) and `changed(text, changes)` (the student's) share."""
    found: list[Piece] = []
    done = teacher = student = 0
    for change in [*changes, Change(len(text), len(text), "")]:
        length = len(text[done : change.start].encode())
        if length:
            found.append((teacher, student, length))
        teacher += length + len(text[change.start : change.end].encode())
        student += length + len(change.new.encode())
        done = change.end
    return merged(found)


def swapped(same: Iterable[Piece]) -> list[Piece]:
    """The same pieces with teacher and student exchanged."""
    return [(student, teacher, length) for teacher, student, length in same]


def composed(first: Sequence[Piece], second: Sequence[Piece]) -> list[Piece]:
    """What a text shares with a third, by what it shares with a second and that one with the third."""
    found: list[Piece] = []
    one = other = 0
    while one < len(first) and other < len(second):
        start, middle, length = first[one]
        again, third, long = second[other]
        left, right = max(middle, again), min(middle + length, again + long)
        if left < right:
            found.append((start + left - middle, third + left - again, right - left))
        if middle + length < again + long:
            one += 1
        else:
            other += 1
    return merged(found)


def merged(same: Iterable[Piece]) -> list[Piece]:
    """Pieces that touch each other on both sides become one."""
    found: list[Piece] = []
    for teacher, student, length in same:
        if found and (found[-1][0] + found[-1][2], found[-1][1] + found[-1][2]) == (teacher, student):
            found[-1] = (*found[-1][:2], found[-1][2] + length)
        else:
            found.append((teacher, student, length))
    return found


def decompositions(text: str) -> list[Change]:
    """What NFD changes in a text in NFC: one change for each cluster of a starter and its marks.

    Marks change places only among themselves, never across a starter; so each cluster becomes its own NFD.

    Raises:
        ValueError: the text is not in NFC, or its clusters do not decompose one by one.
    """
    starts = [index for index, character in enumerate(text) if not unicodedata.combining(character)]
    bounds = sorted({0, *starts, len(text)})
    clusters = [(start, end, text[start:end]) for start, end in itertools.pairwise(bounds)]
    changes = [
        Change(start, end, decomposed)
        for start, end, cluster in clusters
        if (decomposed := unicodedata.normalize("NFD", cluster)) != cluster
    ]
    whole = unicodedata.normalize("NFD", text)
    if changed(text, changes) != whole or unicodedata.normalize("NFC", whole) != text:
        raise ValueError(f"not in NFC: {text[:40]!r}")
    return changes


def substitutions(text: str, pattern: re.Pattern[str], new: str) -> list[Change]:
    """What `pattern.sub(new, text)` changes; `new` is literal."""
    return [Change(*match.span(), new) for match in pattern.finditer(text) if match[0] != new]


# ---- From rows to batches --------------------------------------------------------------------------------


def spans(lengths: Ints, offsets: Ints, held_back: npt.NDArray[np.bool_]) -> Spans:
    """The interval of each token; in rows of `held_back` the first byte is not counted.

    Args:
        lengths: bytes of each token `[tokens]`.
        offsets: row `i` has the tokens `offsets[i]:offsets[i + 1]`.
        held_back: rows that begin with a space which the text has not.
    """
    lengths = lengths.copy()
    lengths[offsets[:-1][held_back]] -= 1
    ends = lengths.cumsum()
    return Spans(ends - lengths, ends)


def leading(same: list[Piece]) -> list[Piece]:
    """The pieces of a row both of whose texts have one more space in front."""
    return merged([(0, 0, 1), *((teacher + 1, student + 1, length) for teacher, student, length in same)])


def laid_out(rows: Sequence[list[Piece]], teacher_bytes: Ints, student_bytes: Ints) -> Ints:
    """The pieces of all rows in the texts of the whole batch, int64 `[pieces, 3]`."""
    counts = [len(row) for row in rows]
    flat = np.array([piece for row in rows for piece in row], dtype=np.int64).reshape(-1, 3)
    for side, row_bytes in enumerate((teacher_bytes, student_bytes)):
        flat[:, side] += np.repeat(row_bytes.cumsum() - row_bytes, counts)
    return flat


def exact_pairs(teacher: Spans, student: Spans, same: Ints) -> tuple[Ints, Ints]:
    """Teacher and student tokens with bytes, of which a piece carries the one onto the other."""
    starts, ends = teacher.starts, teacher.ends
    piece = same[:, 0].searchsorted(starts, side="right") - 1
    inside = (piece >= 0) & (ends > starts)
    inside[inside] &= ends[inside] <= (same[:, 0] + same[:, 2])[piece[inside]]
    tokens = inside.nonzero()[0]
    shift = (same[:, 1] - same[:, 0])[piece[tokens]]
    students = (student.ends > student.starts).nonzero()[0]
    if not len(students):
        return tokens[:0], tokens[:0]
    place = student.starts[students].searchsorted(starts[tokens] + shift)
    other = students[np.minimum(place, len(students) - 1)]
    equal = (student.starts[other] == starts[tokens] + shift) & (student.ends[other] == ends[tokens] + shift)
    return tokens[equal], other[equal]


def without_space(side: Spans, opens_with_space: npt.NDArray[np.bool_]) -> Spans:
    """The same tokens, less the space with which one opens; tokens without one are empty."""
    starts = np.where(opens_with_space, side.starts + 1, side.ends)
    return Spans(np.minimum(starts, side.ends), side.ends)


def numbered(pairs: tuple[Ints, Ints], students: int) -> Ints:
    """One number for each pair."""
    return pairs[0] * students + pairs[1]
