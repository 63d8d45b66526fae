"""What a loss is given: a student and its teachers where they predict the same text, checked at the door.

A position is *supervised* where its state predicts a token that is trained on. A pair is a position of the
student and one of a teacher that predict the same token; a chunk is a run of positions of each that predict
the same bytes. All tensors here are flat: nothing knows of rows and columns of a padded batch.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch

from dskd.nn.checks import (
    refuse_is_text,
    refuse_maps,
    refuse_name,
    refuse_states,
    refuse_statistics,
    refuse_teacher,
)
from dskd.nn.heads import Head
from dskd.nn.term import Over, Read

if TYPE_CHECKING:
    from collections.abc import Mapping
    from collections.abc import Set as AbstractSet

    from torch import Tensor

    from dskd.alignment import Aligner
    from dskd.nn.losses.attention import AttentionScales
    from dskd.nn.teacher_statistics import TeacherStatistics
    from dskd.vocabulary import Vocabulary

__all__ = ["Batch", "Chunks", "States", "Teacher", "TeacherModel", "VocabularyMaps"]


# ---- What a teacher is -----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, eq=False)
class VocabularyMaps:
    """What the two vocabularies have in common: `VocabularyMaps.of(aligner)`.

    Attributes:
        to_student: int64 `[V_t]`, the student's id of each teacher id, or -1.
        overlap: int64 `[overlap, 2]`, the ids (teacher, student) of the shared tokens O, each at most once;
            needed where an option speaks of O.
        is_text: bool `[overlap]`, which of O are text and no specials; None: all.
        is_same: whether the two are one vocabulary: an id is the same token on both sides.

    Raises:
        ValueError: one has another shape or dtype, or an id is in O twice.
    """

    to_student: Tensor
    overlap: Tensor | None = None
    is_text: Tensor | None = None
    is_same: bool = False
    _most: int = field(init=False, repr=False, default=-1)

    def __post_init__(self) -> None:
        """Checks them, once: a batch asks for the largest id of the student alone."""
        refuse_maps(self.to_student, self.overlap)
        refuse_is_text(self.is_text, self.overlap)
        overlap = self.to_student if self.overlap is None else self.overlap[:, 1]
        most = max((int(ids.max()) for ids in (self.to_student, overlap) if len(ids)), default=-1)
        object.__setattr__(self, "_most", most)

    @property
    def size(self) -> int:
        """Of the smallest vocabulary of a student that has all ids that are spoken of."""
        return self._most + 1

    @classmethod
    def of(cls, aligner: Aligner, device: torch.device | str | None = None) -> VocabularyMaps:
        """What an aligner's `vocabulary_map` says, in tensors of their own on a device."""
        mapped = aligner.vocabulary_map
        is_text = ~np.isin(mapped.overlap[:, 1], list(aligner.student.roles))
        return cls(
            to_student=torch.tensor(mapped.teacher_to_student, device=device),
            overlap=torch.tensor(mapped.overlap, device=device),
            is_text=torch.tensor(is_text, device=device),
            is_same=_are_one(aligner.teacher, aligner.student),
        )

    @classmethod
    def same(cls, size: int, device: torch.device | str | None = None) -> VocabularyMaps:
        """Those of one vocabulary of so many ids."""
        ids = torch.arange(size, device=device)
        return cls(to_student=ids, overlap=torch.stack([ids, ids], dim=1), is_same=True)

    def shared(self, *, specials: bool = True) -> tuple[Tensor, Tensor]:
        """The ids of the teacher in O, and of the student.

        Args:
            specials: those that are no text too.

        Raises:
            ValueError: there are none.
        """
        if self.overlap is None or not len(self.overlap):
            raise ValueError(
                "the loss speaks of the tokens that both vocabularies have: give "
                "VocabularyMaps.of(aligner), or an overlap that is not empty"
            )
        kept = self.overlap if specials else self._text
        if kept is None or not len(kept):
            raise ValueError("the loss takes text alone, and the two vocabularies share specials and no text")
        return kept[:, 0], kept[:, 1]

    @cached_property
    def _text(self) -> Tensor | None:
        """O without specials."""
        return self.overlap if self.overlap is None or self.is_text is None else self.overlap[self.is_text]


def _are_one(one: Vocabulary, other: Vocabulary) -> bool:
    """Whether no id is known to be two different tokens.

    Of one family of models some define an id that others leave open, or end a turn with another special.
    """
    if one.size != other.size:
        return False
    return one == other or all(_may_be_one(_names(one, i), _names(other, i)) for i in range(one.size))


def _may_be_one(names: AbstractSet[bytes], others: AbstractSet[bytes]) -> bool:
    return not (names and others) or not names.isdisjoint(others)


_USES = frozenset({"bos", "eos", "pad", "unk"})


def _names(vocabulary: Vocabulary, token_id: int) -> AbstractSet[bytes]:
    """The bytes of a token, or the literal of a special; nothing where neither is known."""
    text = vocabulary.token_bytes(token_id)
    return {text} if text else {name.encode() for name in vocabulary.roles.get(token_id, _USES) - _USES}


@dataclass(frozen=True, slots=True, eq=False)
class TeacherModel:
    """What of a teacher is the same for all batches.

    Attributes:
        head: with frozen weights.
        maps: of its vocabulary and the student's.
        embeddings: `[V_t, D]`, its input embeddings, for a loss that attends.
    """

    head: Head
    maps: VocabularyMaps
    embeddings: Tensor | None = None

    @classmethod
    def without_weights(cls, size: int, device: torch.device | str | None = None) -> TeacherModel:
        """A teacher with the student's vocabulary, of this size, of whom is stored what it said; no head."""
        return cls(Head(torch.empty(size, 0, device=device)), VocabularyMaps.same(size, device))

    def __post_init__(self) -> None:
        """Checks that the maps are of this vocabulary.

        Raises:
            ValueError: they are not.
        """
        ids, overlap, unreachable = len(self.maps.to_student), self.maps.overlap, self.head.unreachable
        rest_is_unreachable = unreachable is not None and bool(unreachable[ids:].all())
        if ids > self.head.size or (ids < self.head.size and not rest_is_unreachable):
            raise ValueError(
                f"to_student has {ids} ids of the teacher, and its head {self.head.size}: give "
                "Vocabulary(size=) the rows of the head, or a head that says which are unreachable; are the "
                "heads swapped?"
            )
        if overlap is not None and len(overlap) and int(overlap[:, 0].max()) >= ids:
            raise ValueError(
                f"the overlap has the teacher's id {int(overlap[:, 0].max())}, and there are 0 to {ids - 1}: "
                "give pairs (teacher, student), in this order"
            )


# ---- What a batch has ------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class States:
    """One model at its supervised positions.

    Attributes:
        hidden: `[n, width]`, the states there, after the final norm.
        labels: int64 `[n]`, the token that each predicts; below 0 (-100): none.
        head: of the model; the student's live, the teacher's with frozen weights.
        row: int64 `[n]`, the row of the batch that each is in; for a loss that attends, as the next two.
        inputs: int64 `[n]`, the token at the position.
        embeddings: `[V, width]`, the model's input embeddings. No gradient flows to them.
        statistics: of a teacher at these positions, where somebody kept them.
        name: of what a term over them runs over.
    """

    hidden: Tensor
    labels: Tensor
    head: Head
    row: Tensor | None = None
    inputs: Tensor | None = None
    embeddings: Tensor | None = None
    statistics: TeacherStatistics | None = None
    name: str = "labels"

    def __post_init__(self) -> None:
        """Checks the shapes.

        Raises:
            ValueError: one does not fit the others.
        """
        refuse_states(self.name, self.hidden, self.labels, self.head)
        for name in ("row", "inputs"):
            column = getattr(self, name)
            if column is not None and column.shape != self.labels.shape:
                raise ValueError(
                    f"{name} has shape {list(column.shape)}, and {self.name} {list(self.labels.shape)}"
                )
        refuse_statistics(self.name, self.statistics, len(self.labels))

    @cached_property
    def everywhere(self) -> Over:
        """All of them: where the logits are."""
        return Over(self.name, len(self.labels), walk=self.name)

    @cached_property
    def over(self) -> Over:
        """Those that have a label, for a term that runs over each; a label below 0 is none, as in PyTorch."""
        has_label = self.labels >= 0
        if bool(has_label.all()):
            return self.everywhere  # the usual case
        at = has_label.nonzero()[:, 0]
        return Over(self.name, len(at), at=at, walk=self.name)

    def where(self, keep: Tensor) -> States:
        """The positions that a bool mask `[n]` keeps."""
        row, inputs = (None if one is None else one[keep] for one in (self.row, self.inputs))
        known = None if self.statistics is None else self.statistics[keep]
        return replace(
            self,
            hidden=self.hidden[keep],
            labels=self.labels[keep],
            row=row,
            inputs=inputs,
            statistics=known,
        )

    @cached_property
    def read(self) -> Read:
        """Their logits, by the model's head."""
        return Read(self.hidden, self.head, self.everywhere, self.labels)


@dataclass(frozen=True, eq=False)
class Chunks:
    """Runs of positions of both models that predict the same bytes.

    Attributes:
        positions: int64 `[m]`, ascending, those of the student's supervised positions that are in a chunk.
        chunk: int64 `[m]`, which chunk each is in: from 0, ascending without gaps.
        teacher_log_probs: `[chunks]`, what the teacher says of the tokens that it has there, summed.
    """

    positions: Tensor
    chunk: Tensor
    teacher_log_probs: Tensor

    @cached_property
    def over(self) -> Over:
        """The chunks, for a term that runs over each."""
        return Over("chunks", len(self.teacher_log_probs), at=self.positions, item=self.chunk)


@dataclass(frozen=True, eq=False)
class Teacher:
    """One teacher, where it speaks to the student.

    Attributes:
        model: its head and vocabulary.
        hidden: `[pairs, D]`, its states at the pairs, after the final norm.
        paired: int64 `[pairs]`, ascending: which of the student's supervised positions predicts the token of
            each pair.
        statistics: of it at the pairs, where somebody kept them.
        chunks: for a loss over chunks.
        states: at its own supervised positions, for a loss that attends; their name is `teacher_labels`.
        scales: what a loss that attends divides the teacher's tensors by; None: by their own spread.
        kinds: integers `[pairs]`, a `dskd.PairKind` each (`alignment.predicting().kind`); None: nobody knows.
        logits: `[pairs, V_t]`, its logits at the pairs, for a loss that takes stored ones.
        top: int64 `[pairs, k]` and `[pairs, k]`, its most probable tokens at the pairs and their
            log-probabilities, likewise.
    """

    model: TeacherModel
    hidden: Tensor | None = None
    paired: Tensor | None = None
    statistics: TeacherStatistics | None = None
    chunks: Chunks | None = None
    states: States | None = None
    scales: AttentionScales | None = None
    kinds: Tensor | None = None
    logits: Tensor | None = None
    top: tuple[Tensor, Tensor] | None = None

    @cached_property
    def pairs(self) -> Over:
        """The pairs, for a term that runs over each.

        Raises:
            ValueError: the batch has none.
        """
        if self.paired is None:
            raise ValueError(
                "the loss runs over pairs, and the batch has none: give Teacher(hidden=, paired=)"
            )
        return Over("pairs", len(self.paired), at=self.paired)

    @cached_property
    def read(self) -> Read:
        """The teacher's logits at the pairs.

        Raises:
            ValueError: the batch has none.
        """
        if self.hidden is None:
            raise ValueError(
                "the loss needs the teacher's states at the pairs: give Teacher(hidden=, paired=)"
            )
        return Read(self.hidden.detach(), self.model.head.detached(), self.pairs)

    @property
    def shared(self) -> tuple[Tensor, Tensor]:
        """The ids of the tokens that both vocabularies have, of the teacher and of the student."""
        return self.model.maps.shared()


@dataclass(frozen=True, eq=False)
class Batch:
    """A student, and the teachers that speak to it, by name.

    Attributes:
        student: at its supervised positions.
        teachers: by name; one teacher is `teacher`.

    Raises:
        ValueError: shapes do not fit, pairs are not ascending, or an id is not in the vocabulary.
    """

    student: States
    teachers: Mapping[str, Teacher] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """See the class."""
        refuse_name("student", self.student, "labels")
        for name, teacher in self.teachers.items():
            refuse_teacher(name, self.student, teacher)

    def counts(self) -> dict[str, int]:
        """How many there are of all that a term may run over, by name (see `named`)."""
        found = {"labels": self.student.over.count}
        for name, teacher in self.teachers.items():
            overs = {
                "pairs": None if teacher.paired is None else len(teacher.paired),
                "chunks": None if teacher.chunks is None else teacher.chunks.over.count,
                "teacher_labels": None if teacher.states is None else teacher.states.over.count,
            }
            found |= {named(name, over): count for over, count in overs.items() if count is not None}
        return found


def named(teacher: str, name: str) -> str:
    """What a term or a count of this teacher is called: `name`, or `teacher/name` where there are several."""
    return name if teacher == ONLY_TEACHER else f"{teacher}/{name}"


ONLY_TEACHER = "teacher"
"""The name of a teacher that needs none."""
