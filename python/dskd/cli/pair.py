"""Two tokenizers side by side: texts or ids in, aligned rows out; what the published rule finds in them."""

from __future__ import annotations

import time
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np

from dskd.alignment import Aligner
from dskd.cli.loading import LoadedTokenizer, load_tokenizer
from dskd.ragged import Ragged
from dskd.reference import published_eta

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dskd.alignment import Alignment

__all__ = ["AlignedRows", "Ids", "TokenizerPair", "published_pairs"]


@dataclass(frozen=True, slots=True)
class Ids:
    """Rows of ids of both sides, as many of the one as of the other."""

    teacher: Ragged
    student: Ragged

    def __len__(self) -> int:
        """The number of rows."""
        return len(self.teacher)


@dataclass(frozen=True, slots=True)
class AlignedRows:
    """Rows of ids of both sides, their alignment, and the seconds that aligning took."""

    teacher_ids: Ragged
    student_ids: Ragged
    alignment: Alignment
    seconds: float


@dataclass(frozen=True, slots=True)
class TokenizerPair:
    """The teacher's tokenizer and the student's."""

    teacher: LoadedTokenizer
    student: LoadedTokenizer
    aligner: Aligner

    @classmethod
    def load(cls, teacher: str, student: str, *, parse_special: bool) -> TokenizerPair:
        """Both by name, see `load_tokenizer`."""
        sides = [load_tokenizer(name, parse_special=parse_special) for name in (teacher, student)]
        return cls(sides[0], sides[1], Aligner(sides[0].vocabulary, sides[1].vocabulary))

    def about(self) -> dict[str, dict[str, str]]:
        """Which tokenizers they are, for a file that holds their ids."""
        return {
            side: {"name": tokenizer.name, "content_hash": tokenizer.vocabulary.content_hash}
            for side, tokenizer in (("teacher", self.teacher), ("student", self.student))
        }

    def align(self, rows: Sequence[str] | Ids, num_threads: int | None = None) -> AlignedRows:
        """Aligns rows of ids; texts are tokenized on both sides first.

        Raises:
            ValueError: an id is not in its vocabulary.
        """
        ids = rows if isinstance(rows, Ids) else self._ids_of(rows)
        start = time.perf_counter()
        alignment = self.aligner.align(ids.teacher, ids.student, num_threads=num_threads)
        return AlignedRows(ids.teacher, ids.student, alignment, time.perf_counter() - start)

    def _ids_of(self, texts: Sequence[str]) -> Ids:
        return Ids(*(_ragged(side.encode_batch(texts)) for side in (self.teacher, self.student)))


def _ragged(rows: Sequence[Sequence[int]]) -> Ragged:
    values = np.fromiter(chain.from_iterable(rows), np.int32, sum(map(len, rows)))
    return Ragged.from_lengths(values, [len(row) for row in rows])


def published_pairs(tokenizers: TokenizerPair, batch: AlignedRows) -> tuple[int, int]:
    """How many pairs the published rule makes, and how many of them are none by the definition.

    Counted are its pairs whose student token has bytes: what the ratio counts of ours.
    """
    has_bytes = tokenizers.student.vocabulary.canonical_ids >= 0
    pairs = false_pairs = 0
    for row in range(len(batch.alignment)):
        teacher, student = _row(batch.teacher_ids, row), _row(batch.student_ids, row)
        found = published_eta(
            tokenizers.teacher.spellings(teacher),
            tokenizers.student.spellings(student),
            teacher_eos=tokenizers.teacher.eos,
            student_eos=tokenizers.student.eos,
        )
        ours = batch.alignment[row].pairs
        true_pairs = set(zip(ours.teacher.tolist(), ours.student.tolist(), strict=True))
        text_pairs = [pair for pair in found if has_bytes[student[pair[1]]]]
        pairs += len(text_pairs)
        false_pairs += sum(pair not in true_pairs for pair in text_pairs)
    return pairs, false_pairs


def _row(rows: Ragged, row: int) -> list[int]:
    ids: list[int] = rows.values[rows.offsets[row] : rows.offsets[row + 1]].tolist()
    return ids
