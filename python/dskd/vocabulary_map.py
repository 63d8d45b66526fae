"""Which token of one vocabulary is which token of the other, by bytes and by role."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from dskd.vocabulary import Kind

if TYPE_CHECKING:
    from collections.abc import Iterator
    from collections.abc import Set as AbstractSet

    from dskd.vocabulary import Vocabulary

__all__ = ["VocabularyMap", "vocabulary_map"]

UNMAPPED = -1
"""Where the other vocabulary has no such token."""


@dataclass(frozen=True, slots=True, eq=False)
class VocabularyMap:
    """Maps between the ids of two vocabularies; what they map to is always canonical.

    Attributes:
        teacher_to_student: int64 `[teacher size]`, the student's id with the same bytes or, for a special,
            the same role; -1 where there is none, and never `unk`.
        student_to_teacher: int64 `[student size]`, the other way.
        overlap: int64 `[overlap, 2]`, the pairs of canonical ids (teacher, student) that map to each other,
            by teacher id: each id at most once.
    """

    teacher_to_student: npt.NDArray[np.int64]
    student_to_teacher: npt.NDArray[np.int64]
    overlap: npt.NDArray[np.int64]


def vocabulary_map(teacher: Vocabulary, student: Vocabulary) -> VocabularyMap:
    """The map between two vocabularies."""
    forth, back = _mapped(teacher, student), _mapped(student, teacher)
    ids = np.flatnonzero(forth != UNMAPPED)
    overlap = np.stack([ids, forth[ids]], axis=1)
    overlap = overlap[back[overlap[:, 1]] == overlap[:, 0]]
    for array in (forth, back, overlap):
        array.flags.writeable = False
    return VocabularyMap(forth, back, overlap)


def _mapped(source: Vocabulary, target: Vocabulary) -> npt.NDArray[np.int64]:
    by_bytes = {target.token_bytes(token): token for token in _canonical(target)}
    found = (by_bytes.get(source.token_bytes(token), UNMAPPED) for token in range(source.size))
    mapped = np.fromiter(found, np.int64, source.size)
    by_role = _by_role(target)
    for token, roles in source.roles.items():
        if source.kind(token) == Kind.SPECIAL:
            found_ids = (by_role[role] for role in _in_order(roles) if role in by_role)
            mapped[token] = next(found_ids, UNMAPPED)
    return mapped


def _canonical(vocabulary: Vocabulary) -> list[int]:
    """The ids that stand for their bytes; specials and unknown bytes have none."""
    ids = np.arange(vocabulary.size)
    canonical: list[int] = ids[vocabulary.canonical_ids == ids].tolist()
    return canonical


def _by_role(vocabulary: Vocabulary) -> dict[str, int]:
    """The lowest id of each role."""
    specials = sorted(vocabulary.roles.items(), reverse=True)
    return {
        role: token for token, roles in specials if vocabulary.kind(token) == Kind.SPECIAL for role in roles
    }


def _in_order(roles: AbstractSet[str]) -> Iterator[str]:
    """End of sequence before a token's own literal before beginning; padding and unknown text never."""
    named = {"bos", "eos", "pad", "unk"}
    yield from (role for role in ("eos",) if role in roles)
    yield from sorted(roles - named)
    yield from (role for role in ("bos",) if role in roles)
