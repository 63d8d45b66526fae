"""One row in plain lists: its two sides, aligned by the core and by the definition."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import dskd
from dskd import Aligner, Kind, reference
from dskd.pieces import Pieces
from dskd.vocabulary import _vocabulary

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    import numpy as np

    from dskd import Alignment, Vocabulary


@dataclass(frozen=True)
class Side:
    """One side of a row."""

    vocabulary: Vocabulary
    ids: list[int]
    mask: list[bool] | None = None


@dataclass(frozen=True)
class Found:
    """An alignment of one row in plain lists."""

    pairs: list[tuple[int, ...]]
    chunks: list[tuple[int, ...]]
    encloses: list[bool]
    differences: list[tuple[int, ...]]
    counts: dict[str, int]


def vocabulary_of(
    tokens: Sequence[bytes | None],
    roles: Mapping[int | str, set[str]],
    user_defined: Collection[int],
    *,
    dummy_prefix: bool,
) -> Vocabulary:
    """`Vocabulary.from_bytes`, and some of its tokens are user-defined."""
    kinds = [
        Kind.OPAQUE if token is None else Kind.USER_DEFINED if index in user_defined else Kind.NORMAL
        for index, token in enumerate(tokens)
    ]
    return _vocabulary(Pieces(list(tokens), kinds, dummy_prefix=dummy_prefix), None, roles)


COUNTS = [item.name for item in fields(dskd.Counts)]


def by_reference(teacher: Side, student: Side) -> Found:
    """The row aligned by the definition."""
    row = reference.align(
        teacher.vocabulary, student.vocabulary, teacher.ids, student.ids, teacher.mask, student.mask
    )
    return Found(
        list(row.pairs),
        list(row.chunks),
        row.encloses_zero_width,
        list(row.differences),
        {name: row.counts[name] for name in COUNTS},
    )


def in_lists(found: Alignment) -> Found:
    return Found(
        tuples(found.pairs.teacher, found.pairs.student, found.pairs.kind),
        ranges(found.chunks),
        found.chunks.encloses_zero_width.tolist(),
        ranges(found.differences),
        {name: int(getattr(found.counts, name).sum()) for name in COUNTS},
    )


def tuples(*columns: np.ndarray[Any, Any]) -> list[tuple[int, ...]]:
    return list(zip(*(column.tolist() for column in columns), strict=True))


def ranges(found: dskd.Ranges) -> list[tuple[int, ...]]:
    return tuples(found.teacher_start, found.teacher_end, found.student_start, found.student_end)


def align(teacher: Side, student: Side) -> Alignment:
    return Aligner(teacher.vocabulary, student.vocabulary).align(
        [teacher.ids],
        [student.ids],
        teacher_mask=None if teacher.mask is None else [teacher.mask],
        student_mask=None if student.mask is None else [student.mask],
    )


def same(one: Alignment, other: Alignment) -> bool:
    return columns_of(one) == columns_of(other)


def columns_of(found: Alignment) -> dict[str, list[Any]]:
    parts: dict[str, Any] = {
        "pairs": found.pairs,
        "chunks": found.chunks,
        "differences": found.differences,
        "counts": found.counts,
    }
    columns = {
        f"{name}.{item.name}": getattr(part, item.name).tolist()
        for name, part in parts.items()
        for item in fields(part)
    }
    lengths = {"teacher": found.teacher_lengths.tolist(), "student": found.student_lengths.tolist()}
    return {**columns, **lengths}
