"""Alignment of two tokenizations: the aligner, what it returns, and the one-liner."""

from __future__ import annotations

import multiprocessing
import operator
import os
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Self, TypeAlias

import numpy as np
import numpy.typing as npt

from dskd import _core
from dskd.columns import Chunks, Counts, Coverage, Pairs, Ranges, row_of
from dskd.overlaps import Overlaps, Tokens, byte_lengths, overlaps, rows_of
from dskd.ragged import (
    Ids,
    Ragged,
    RowsLike,
    boolean_rows,
    float_rows,
    id_rows,
    integer_rows,
    is_nothing,
    is_one_row,
    is_read_as_is,
    joined,
    masked_id_rows,
)
from dskd.student_values import StudentValues, student_values
from dskd.tensors import AlignmentTensors, PredictingTensors, alignment_tensors, predicting_tensors
from dskd.vocabulary import Vocabulary
from dskd.vocabulary_map import VocabularyMap, vocabulary_map

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch

__all__ = ["Aligner", "Alignment", "Predicting", "align", "set_tokenizers"]

IGNORED_LABEL = -100
"""The label of a position that takes no part, as in transformers."""


@dataclass(frozen=True, slots=True, eq=False)
class Predicting:
    """For each pair the positions whose hidden states predict its two tokens: one step before them.

    Attributes:
        row: int64 `[n]`, as are the next two.
        teacher: column on the teacher's side.
        student: column on the student's side.
        kind: int64 `[n]`, a `PairKind` each.
        left_out: pairs that no position predicts.
    """

    row: npt.NDArray[np.int64]
    teacher: npt.NDArray[np.int64]
    student: npt.NDArray[np.int64]
    kind: npt.NDArray[np.int64]
    left_out: int

    def __len__(self) -> int:
        """The number of pairs that are predicted."""
        return len(self.row)

    def to(self, device: torch.device | str | int) -> PredictingTensors:
        """The same in torch tensors on a device.

        Raises:
            ImportError: there is no torch.
        """
        return predicting_tensors(self, device)


class Alignment:
    """What aligning a batch of rows found. Immutable; its arrays are made when they are first asked for.

    What needs the ids again (`overlaps`, a pickle) reads them where they were given: they are not copied.
    """

    __slots__ = (
        "_aligner",
        "_chunks",
        "_counts",
        "_differences",
        "_found",
        "_pairs",
        "_student",
        "_student_side",
        "_teacher",
        "_teacher_side",
    )

    def __init__(self, found: _core.Found, aligner: Aligner, teacher: _Side, student: _Side) -> None:
        """Made by `Aligner.align`."""
        self._found = found
        self._aligner = aligner
        self._teacher_side = teacher
        self._student_side = student
        self._pairs: Pairs | None = None
        self._chunks: Chunks | None = None
        self._differences: Ranges | None = None
        self._counts: Counts | None = None
        self._teacher: Tokens | None = None
        self._student: Tokens | None = None

    @classmethod
    def _of(cls, *parts: Any) -> Alignment:
        """One whose parts are there already: pairs, chunks, differences, counts, tokens of both sides."""
        alignment = cls.__new__(cls)
        alignment.__setstate__(parts)
        return alignment

    def __getstate__(self) -> tuple[Any, ...]:
        """All its parts; neither the ids nor the aligner."""
        return self.pairs, self.chunks, self.differences, self.counts, self._tokens(0), self._tokens(1)

    def __setstate__(self, parts: tuple[Any, ...]) -> None:
        """From all its parts."""
        self._pairs, self._chunks, self._differences, self._counts, self._teacher, self._student = parts

    @property
    def pairs(self) -> Pairs:
        """The same tokens of the text, in the order of the text."""
        made = self._pairs
        if made is None:
            made = self._pairs = Pairs(*self._found.pairs())
        return made

    @property
    def chunks(self) -> Chunks:
        """Smallest runs of tokens that cover the same bytes, in the order of the text."""
        made = self._chunks
        if made is None:
            made = self._chunks = Chunks(*self._found.chunks())
        return made

    @property
    def differences(self) -> Ranges:
        """Runs of tokens whose bytes differ; none of them is in a chunk."""
        made = self._differences
        if made is None:
            made = self._differences = Ranges(*self._found.differences())
        return made

    @property
    def counts(self) -> Counts:
        """Numerators and denominators, a row each."""
        made = self._counts
        if made is None:
            made = self._counts = Counts(**dict(zip(_core.COUNTS, self._found.counts(), strict=True)))
        return made

    @property
    def teacher_lengths(self) -> npt.NDArray[np.int64]:
        """Ids in each teacher row, int64 `[rows]`."""
        return self._tokens(0).row_lengths

    @property
    def student_lengths(self) -> npt.NDArray[np.int64]:
        """Ids in each student row, int64 `[rows]`."""
        return self._tokens(1).row_lengths

    def _tokens(self, side: int) -> Tokens:
        """The ids of a side and how long they are: 0 is the teacher's, 1 the student's."""
        if self._teacher is None or self._student is None:
            self._teacher = _tokens(self._teacher_side, self._aligner.byte_lengths[0])
            self._student = _tokens(self._student_side, self._aligner.byte_lengths[1])
        return self._student if side else self._teacher

    def __repr__(self) -> str:
        """Its public parts."""
        names = ("pairs", "chunks", "differences", "counts", "teacher_lengths", "student_lengths")
        return f"Alignment({', '.join(f'{name}={getattr(self, name)!r}' for name in names)})"

    def __len__(self) -> int:
        """The number of rows."""
        return len(self.teacher_lengths)

    def __getitem__(self, row: int) -> Alignment:
        """One row, as an alignment of that row alone.

        Raises:
            IndexError: there is no such row.
        """
        index = range(len(self))[operator.index(row)]
        return self._of(
            row_of(self.pairs, index),
            row_of(self.chunks, index),
            row_of(self.differences, index),
            Counts(*(getattr(self.counts, item.name)[index : index + 1] for item in fields(Counts))),
            self._tokens(0).row(index),
            self._tokens(1).row(index),
        )

    def __iter__(self) -> Iterator[Alignment]:
        """The rows, each as an alignment of its own."""
        return (self[row] for row in range(len(self)))

    @property
    def coverage(self) -> Coverage:
        """Bytes in chunks / bytes of selected text, per row and side."""
        return self.counts.coverage

    @property
    def ratio(self) -> npt.NDArray[np.float64]:
        """Student tokens in EXACT or SPACE pairs / student tokens that have bytes, per row."""
        return self.counts.ratio

    def predicting(
        self,
        teacher_attention_mask: RowsLike | None = None,
        student_attention_mask: RowsLike | None = None,
    ) -> Predicting:
        """The positions whose hidden states predict the paired tokens: `hidden[row, teacher]`.

        A position predicts the token after it. A pair in column 0, or behind a position that the
        attention mask excludes, is predicted by nothing: it is left out and counted. The position before
        a turn's first token is the prompt's last and need not have been selected.

        Args:
            teacher_attention_mask: booleans or 0 and 1, shaped as the teacher's ids.
            student_attention_mask: the same for the student.

        Raises:
            ValueError: a mask has another shape than the ids; the row is named.
        """
        row = rows_of(self.pairs.offsets)
        teacher = self.pairs.teacher.astype(np.int64) - 1
        student = self.pairs.student.astype(np.int64) - 1
        keep = (teacher >= 0) & (student >= 0)
        keep &= _attended(
            teacher_attention_mask, "teacher_attention_mask", self.teacher_lengths, row, teacher
        )
        keep &= _attended(
            student_attention_mask, "student_attention_mask", self.student_lengths, row, student
        )
        kind = self.pairs.kind.astype(np.int64)
        return Predicting(row[keep], teacher[keep], student[keep], kind[keep], int((~keep).sum()))

    def overlaps(self, side: str) -> Overlaps:
        """For each token of a side the columns of the other side with which it shares bytes of common text.

        The offset map between two vocabularies: a token in a pair EXACT or SPACE has exactly its partner; a
        token without text, of unknown text, in a difference or not selected has the empty range. It is
        worked out anew at every call, from the ids where they were given.

        Args:
            side: "teacher" or "student", whose tokens are mapped.

        Raises:
            ValueError: `side` is neither; or the ids were written to since they were aligned.
        """
        if side not in {"teacher", "student"}:
            raise ValueError(f'side={side!r}; it is "teacher" or "student"')
        return overlaps(self.chunks, self.counts.chunk_bytes, self._tokens(0), self._tokens(1), side)

    def to_student(self, values: RowsLike) -> StudentValues:
        """Log-probabilities of the teacher's tokens, carried to the student's tokens of the same text.

        Summed over a chunk's teacher tokens and spread evenly over its student tokens; specials that pair
        are carried one to one. Chunks that enclose a token without text, differences and what was not
        selected are not covered. In a row, what the covered student tokens add up to is what the teacher
        tokens that were carried add up to. A value that is not finite reaches its own chunk only.

        Args:
            values: floats of any type shaped as the teacher's ids: the log-probability of the token *at*
                each position. What stands at a position that is not carried does not matter (NaN, say).

        Raises:
            TypeError: the values are not floats.
            ValueError: they have another shape than the teacher's ids; the row is named.
        """
        teacher, student = self._tokens(0), self._tokens(1)
        flat = float_rows(values, "values", Ragged(teacher.ids, teacher.offsets))
        return student_values(self.chunks, self.pairs, teacher, student, flat)

    def to(self, device: torch.device | str | int) -> AlignmentTensors:
        """Its arrays as torch tensors on a device: the same attributes, of the same types.

        Raises:
            ImportError: there is no torch.
        """
        return alignment_tensors(self, device)


class Aligner:
    """Aligns token ids of a teacher with those of a student; built once, immutable, thread-safe.

    Args:
        teacher: the teacher's tokenizer, or its `Vocabulary`.
        student: the student's tokenizer, or its `Vocabulary`.

    Raises:
        TypeError: one of them is no tokenizer of a known kind.
        ValueError: a tokenizer's family cannot be read exactly.
    """

    __slots__ = ("_byte_lengths", "_core", "_map", "_student", "_teacher")

    def __init__(self, teacher: Any, student: Any) -> None:
        """See the class."""
        self._teacher = _vocabulary_of(teacher)
        self._student = _vocabulary_of(student)
        self._core = _core.Aligner(self._teacher.core, self._student.core)
        self._byte_lengths: tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]] | None = None
        self._map: VocabularyMap | None = None

    @property
    def teacher(self) -> Vocabulary:
        """The teacher's vocabulary."""
        return self._teacher

    @property
    def student(self) -> Vocabulary:
        """The student's vocabulary."""
        return self._student

    @property
    def byte_lengths(self) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
        """Bytes of each id of the teacher and of the student, int32 `[size + 1]`, and one 0 more."""
        if self._byte_lengths is None:
            self._byte_lengths = (byte_lengths(self._teacher), byte_lengths(self._student))
        return self._byte_lengths

    @property
    def vocabulary_map(self) -> VocabularyMap:
        """Which token of the one is which token of the other; made at the first call."""
        if self._map is None:
            self._map = vocabulary_map(self._teacher, self._student)
        return self._map

    def align(
        self,
        teacher_ids: RowsLike | None = None,
        student_ids: RowsLike | None = None,
        *,
        teacher_mask: RowsLike | None = None,
        student_mask: RowsLike | None = None,
        teacher_labels: RowsLike | None = None,
        student_labels: RowsLike | None = None,
        num_threads: int | None = None,
    ) -> Alignment:
        """Aligns row `i` of the teacher with row `i` of the student.

        Args:
            teacher_ids: one sequence of ids or a batch of them, see `dskd.ragged.RowsLike`.
            student_ids: the same for the student.
            teacher_mask: booleans, or 0 and 1, shaped as the ids; a maximal run of selected positions is a
                segment, and the k-th segment of one side is aligned with the k-th of the other. Ids that are
                not selected are not looked at. Without a mask a row is one segment.
            student_mask: the same for the student.
            teacher_labels: instead of ids and mask, the token at each position (unshifted), or -100 where
                it takes no part.
            student_labels: the same for the student.
            num_threads: how many rows are aligned at once at most; by default as many as there are
                processors, and 1 in a child process. The result does not depend on it.

        Raises:
            TypeError: ids are not integers, a mask holds neither booleans nor integers, or a tensor is not on
                the CPU.
            ValueError: a selected id is not in the vocabulary, a mask has another shape than its ids or other
                numbers than 0 and 1, the sides have different numbers of rows, or a row has more than
                2**31 - 1 ids; side, row and position are named.
            MemoryError: what is found does not fit the memory; so do the arrays of the result.
            KeyboardInterrupt: Ctrl-C ends a call soon, as it ends the making of the arrays.
        """
        threads = _default_threads if num_threads is None else _thread_count(num_threads)
        teacher = _side("teacher", teacher_ids, teacher_mask, teacher_labels)
        student = _side("student", student_ids, student_mask, student_labels)
        if teacher[1] is not student[1]:  # they are not two plain arrays, as is usual where calls are small
            given = (_given(teacher_ids, teacher_labels), _given(student_ids, student_labels))
            teacher = _beside(teacher, *given)
            student = _beside(student, *reversed(given))
        # Named one by one: to unpack them takes longer, which tells where rows are short.
        found = self._core.align(
            teacher[0], teacher[1], teacher[2], student[0], student[1], student[2], threads
        )
        return Alignment(found, self, teacher, student)

    def __reduce__(self) -> tuple[type[Self], tuple[Vocabulary, Vocabulary]]:
        """Pickled as its two vocabularies."""
        return type(self), (self.teacher, self.student)

    def __eq__(self, other: object) -> bool:
        """Whether both align the same vocabularies."""
        return isinstance(other, Aligner) and (self.teacher, self.student) == (other.teacher, other.student)

    def __hash__(self) -> int:
        """A hash of the content of both vocabularies, the same in every process."""
        return hash((self.teacher, self.student))

    def __repr__(self) -> str:
        """Its two vocabularies."""
        return f"Aligner(teacher={self.teacher!r}, student={self.student!r})"


@dataclass(frozen=True, slots=True, eq=False)
class _Latest:
    """The aligner that `align` built last, and what it was built of."""

    tokenizers: tuple[Any, Any]
    states: tuple[Any, Any]
    """Tokens may be added to a tokenizer and its specials changed; its aligner is stale then."""
    aligner: Aligner

    def is_of(self, teacher: Any, student: Any) -> bool:
        """Whether it was built of these very objects, as they are now."""
        same = self.tokenizers[0] is teacher and self.tokenizers[1] is student
        return same and self.states == (_state_of(teacher), _state_of(student))


_default: Aligner | None = None
_latest: _Latest | None = None


def set_tokenizers(teacher: Any, student: Any) -> None:
    """Sets the pair that `align` uses in this process, as it is now; a spawned child sets its own.

    Args:
        teacher: the teacher's tokenizer, or its `Vocabulary`.
        student: the student's tokenizer, or its `Vocabulary`.

    Raises:
        TypeError: one of them is no tokenizer of a known kind.
        ValueError: a tokenizer's family cannot be read exactly.
    """
    global _default  # noqa: PLW0603 - the process-wide default is what this function is for
    _default = Aligner(teacher, student)


def align(
    teacher_ids: RowsLike | None = None,
    student_ids: RowsLike | None = None,
    *,
    teacher: Any = None,
    student: Any = None,
    **options: Any,
) -> Alignment:
    """Aligns as `Aligner.align` does, with the pair of `set_tokenizers` or the one given here.

    Args:
        teacher_ids: one sequence of ids or a batch of them.
        student_ids: the same for the student.
        teacher: the teacher's tokenizer or `Vocabulary`; the aligner of the latest pair is kept.
        student: the student's tokenizer or `Vocabulary`.
        **options: masks, labels and `num_threads`, as in `Aligner.align`.

    Raises:
        RuntimeError: no tokenizers were set and none are given.
        TypeError: as in `Aligner.align`, or only one tokenizer is given.
        ValueError: as in `Aligner.align`.
    """
    return _aligner_for(teacher, student).align(teacher_ids, student_ids, **options)


def _aligner_for(teacher: Any, student: Any) -> Aligner:
    global _latest  # noqa: PLW0603 - building an aligner takes a second, and loops call align
    if teacher is None and student is None:
        if _default is None:
            raise RuntimeError(
                "no tokenizers in this process: call dskd.set_tokenizers(teacher, student) first, or pass "
                "align(..., teacher=tokenizer, student=tokenizer)"
            )
        return _default
    if teacher is None or student is None:
        raise TypeError("give both teacher= and student=, or neither")
    latest = _latest
    if latest is None or not latest.is_of(teacher, student):
        states = (_state_of(teacher), _state_of(student))
        latest = _latest = _Latest((teacher, student), states, Aligner(teacher, student))
    return latest.aligner


def _state_of(tokenizer: Any) -> tuple[Any, ...]:
    """What may change about it: how many tokens it has, and which of them are special."""
    if hasattr(tokenizer, "get_vocab_size"):
        return (tokenizer.get_vocab_size(),)
    size = len(tokenizer) if hasattr(tokenizer, "__len__") else None
    return size, getattr(tokenizer, "special_tokens_map", None), getattr(tokenizer, "all_special_ids", None)


def _vocabulary_of(tokenizer: Any) -> Vocabulary:
    return tokenizer if isinstance(tokenizer, Vocabulary) else Vocabulary.from_tokenizer(tokenizer)


_Side: TypeAlias = "tuple[Ids, npt.NDArray[np.int64] | None, npt.NDArray[np.bool_] | None]"
"""One side as the core takes it: ids, offsets (None: they are one row), and which take part (None: all)."""


def _side(side: str, ids: RowsLike | None, mask: RowsLike | None, labels: RowsLike | None) -> _Side:
    if labels is None and mask is None and is_read_as_is(ids):
        return ids, None, None
    if labels is not None:
        if ids is not None or mask is not None:
            raise TypeError(
                f"{side}_labels stand instead of {side}_ids and {side}_mask; give only one of them"
            )
        rows = integer_rows(labels, f"{side}_labels")
        return rows.values, rows.offsets, rows.values != IGNORED_LABEL
    if ids is None:
        raise TypeError(f"give {side}_ids or {side}_labels")
    if mask is None:
        return *id_rows(ids, f"{side}_ids"), None
    return masked_id_rows(ids, f"{side}_ids", mask, f"{side}_mask")


def _given(ids: RowsLike | None, labels: RowsLike | None) -> RowsLike | None:
    return ids if labels is None else labels


def _beside(side: _Side, given: RowsLike | None, other: RowsLike | None) -> _Side:
    """The side; where nothing was given beside one row, it is one empty row."""
    return (side[0], None, side[2]) if is_nothing(given) and is_one_row(other) else side


def _tokens(side: _Side, byte_lengths: npt.NDArray[np.int32]) -> Tokens:
    ids, offsets, _ = side
    if offsets is None:
        offsets = np.array([0, len(ids)], dtype=np.int64)
    offsets.flags.writeable = False
    return Tokens(joined(ids), offsets, byte_lengths)


_ALL_PROCESSORS = 0
_MOST_THREADS = 1 << 16


def _thread_count(num_threads: int) -> int:
    """As the core takes it; never more than there are processors."""
    if not hasattr(num_threads, "__index__"):
        raise TypeError(f"num_threads={num_threads!r}; it is a number, or None for a default")
    if num_threads < 1:
        raise ValueError(f"num_threads={num_threads}; it is at least 1, or None for a default")
    return min(operator.index(num_threads), _MOST_THREADS)


_default_threads = _ALL_PROCESSORS if multiprocessing.parent_process() is None else 1


def _work_alone() -> None:
    """A child is one of many, and each would take all processors."""
    global _default_threads  # noqa: PLW0603 - the default of this process
    _default_threads = 1


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_work_alone)


def _attended(
    mask: RowsLike | None,
    name: str,
    lengths: npt.NDArray[np.int64],
    row: npt.NDArray[np.int64],
    column: npt.NDArray[np.int64],
) -> npt.NDArray[np.bool_] | bool:
    """Whether the mask lets each position take part; column -1 reads some value that nobody uses."""
    if mask is None:
        return True
    like = Ragged.from_lengths(np.empty(0), lengths.tolist())
    values = boolean_rows(mask, name, like)
    return values[like.offsets[row] + np.maximum(column, 0)] if len(row) else True
