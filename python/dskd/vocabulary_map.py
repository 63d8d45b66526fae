"""Which token of one vocabulary is which token of the other, by bytes and by role."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
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


@dataclass(frozen=True, eq=False)  # no slots: what is made at its first use is kept in the dictionary
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
    _teacher: Vocabulary = field(repr=False)
    _student: Vocabulary = field(repr=False)

    @cached_property
    def teacher_to_student_prefix(self) -> npt.NDArray[np.int64]:
        """For each teacher id the longest student token with which its bytes begin, int64 `[teacher size]`.

        A special has its counterpart, as in `teacher_to_student`; -1 where there is none. It is made at the
        first use.
        """
        mapped = _mapped_by_prefix(self._teacher, self._student)
        _map_specials(self._teacher, self._student, mapped)
        mapped.flags.writeable = False
        return mapped


def vocabulary_map(teacher: Vocabulary, student: Vocabulary) -> VocabularyMap:
    """The map between two vocabularies."""
    forth, back = _mapped(teacher, student), _mapped(student, teacher)
    ids = np.flatnonzero(forth != UNMAPPED)
    overlap = np.stack([ids, forth[ids]], axis=1)
    overlap = overlap[back[overlap[:, 1]] == overlap[:, 0]]
    for array in (forth, back, overlap):
        array.flags.writeable = False
    return VocabularyMap(forth, back, overlap, teacher, student)


def _mapped(source: Vocabulary, target: Vocabulary) -> npt.NDArray[np.int64]:
    by_bytes = _by_bytes(target)
    found = (by_bytes.get(source.token_bytes(token), UNMAPPED) for token in range(source.size))
    mapped = np.fromiter(found, np.int64, source.size)
    _map_specials(source, target, mapped)
    return mapped


def _mapped_by_prefix(source: Vocabulary, target: Vocabulary) -> npt.NDArray[np.int64]:
    """The longest target token with which each source token begins; only lengths that there are are tried."""
    by_bytes = _by_bytes(target)
    lengths = sorted({len(token) for token in by_bytes if token}, reverse=True)

    def longest(token: bytes) -> int:
        prefixes = (token[:length] for length in lengths if length <= len(token))
        return next((by_bytes[prefix] for prefix in prefixes if prefix in by_bytes), UNMAPPED)

    found = (longest(source.token_bytes(token) or b"") for token in range(source.size))
    return np.fromiter(found, np.int64, source.size)


def _map_specials(source: Vocabulary, target: Vocabulary, mapped: npt.NDArray[np.int64]) -> None:
    """Writes the id of the same role over that of every special."""
    by_role = _by_role(target)
    for token, roles in source.roles.items():
        if source.kind(token) == Kind.SPECIAL:
            found_ids = (by_role[role] for role in _in_order(roles) if role in by_role)
            mapped[token] = next(found_ids, UNMAPPED)


def _by_bytes(vocabulary: Vocabulary) -> dict[bytes | None, int]:
    """The ids that stand for their bytes; specials and unknown bytes have none."""
    ids = np.arange(vocabulary.size)
    canonical: list[int] = ids[vocabulary.canonical_ids == ids].tolist()
    return {vocabulary.token_bytes(token): token for token in canonical}


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
