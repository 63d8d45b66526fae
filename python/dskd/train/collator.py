"""From rows of text to a batch: both tokenizations, what is supervised, and which tokens are the same.

Runs in the workers of a `DataLoader`. Prompt and response are tokenised apart on each side, so that no token
straddles them, and the response ends with each side's end-of-sequence token: the two are a pair.

`encode` makes ids of a row, `collate` makes a batch of ids: those that a model sampled enter there.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from dskd.columns import Counts
from dskd.nn.loss import Needs
from dskd.nn.places import IGNORED, Moved, Places

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from dskd.alignment import Aligner
    from dskd.vocabulary import Vocabulary

__all__ = [
    "Collated",
    "DistillationCollator",
    "Encoded",
    "EncodedRow",
    "Side",
    "TeacherSide",
    "Tokens",
    "content",
]


# ---- Rows ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Encoded:
    """One row on one side.

    Attributes:
        ids: prompt, response, end of turn.
        response: how many of the ids, at the end, are the response and its end.
        ends: whether the last id is the end of turn; not where the response was cut.
    """

    ids: list[int]
    response: int
    ends: bool

    @property
    def predicted(self) -> int:
        """How many of the response's ids a position predicts: all but one that nothing precedes."""
        return min(self.response, len(self.ids) - 1)

    def labels(self) -> list[int]:
        """The id at each position of the response and its end, -100 before it."""
        first = len(self.ids) - self.response
        return [*[IGNORED] * first, *self.ids[first:]]


@dataclass(frozen=True, slots=True)
class EncodedRow:
    """One row on all sides.

    Attributes:
        student: on the student's.
        teachers: on each teacher's, by its name.
    """

    student: Encoded
    teachers: Mapping[str, Encoded]


@dataclass(frozen=True, slots=True)
class Side:
    """How rows become ids for one of the models.

    Attributes:
        tokenizer: of transformers, fast.
        vocabulary: what the aligner knows of it.
        max_prompt_length: in tokens; a longer prompt loses its beginning, though not its `bos`.
        max_response_length: in tokens; a longer response loses its end, and so has no end of turn.
    """

    tokenizer: Any
    vocabulary: Vocabulary
    max_prompt_length: int = 512
    max_response_length: int = 512

    def encode(self, row: Mapping[str, Any]) -> Encoded:
        """A row with a `prompt` and a `completion`, see `dskd.train.data`."""
        prompt = self._prompt(row["prompt"])
        response = self._text(content(row["completion"]))
        refuse_ids_beyond(self.vocabulary.size, [*prompt, *response], row)
        ends = len(response) < self.max_response_length
        response = [*response, self.tokenizer.eos_token_id] if ends else response[: self.max_response_length]
        return Encoded([*prompt, *response], len(response), ends)

    def _prompt(self, prompt: str | list[dict[str, str]]) -> list[int]:
        if isinstance(prompt, str):
            opening = self._opening()
            return [*opening, *_last(self._text(prompt), self.max_prompt_length - len(opening))]
        text = self.tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
        return _last(self.tokenizer(text, add_special_tokens=False)["input_ids"], self.max_prompt_length)

    def _opening(self) -> list[int]:
        """What the tokenizer puts before a text by itself: its beginning of sequence, or nothing."""
        ids: list[int] = self.tokenizer("")["input_ids"]
        bos = self.tokenizer.bos_token_id
        return [bos] if bos in ids else []

    def _text(self, text: str) -> list[int]:
        """The ids with the text's bytes: a space that the tokenizer adds by itself is not given to it."""
        if self.vocabulary.dummy_prefix and text.startswith(" "):
            text = text[1:]
        ids: list[int] = self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)[
            "input_ids"
        ]
        return ids


@dataclass(frozen=True, slots=True)
class TeacherSide:
    """A teacher's side, and how it meets the student's.

    Attributes:
        side: how rows become its ids.
        aligner: of its vocabulary and the student's.
        needs: what the losses need of it.
    """

    side: Side
    aligner: Aligner
    needs: Needs = Needs(pairs=True)  # noqa: RUF009 - it is frozen


def _last(ids: list[int], count: int) -> list[int]:
    return ids[max(len(ids) - max(count, 0), 0) :]


def refuse_ids_beyond(size: int, ids: Sequence[int], row: Mapping[str, Any]) -> None:
    """Refuses a row with an id that its tokenizer defines and its model has no row for.

    Raises:
        ValueError: there is one.
    """
    if max(ids, default=-1) >= size:
        column = next(index for index, one in enumerate(ids) if one >= size)
        raise ValueError(
            f"the row {shortened(row)} has the id {ids[column]} at position {column}, and the model has ids "
            f"0 to {size - 1}: leave the row out, or that token's text"
        )


def shortened(row: Mapping[str, Any]) -> str:
    """A row as an error names it."""
    said = str(dict(row))
    return said if len(said) <= _SAID else f"{said[:_SAID]} ..."


_SAID = 120
"""Characters of a row in an error."""


def content(completion: str | list[dict[str, str]]) -> str:
    """The text of a completion."""
    return completion if isinstance(completion, str) else completion[0]["content"]


# ---- Batches ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Tokens(Moved):
    """The ids of one model, padded on the right.

    Attributes:
        input_ids: int64 `[batch, columns]`; what fills the padding is looked at by nobody.
        attention_mask: int64 `[batch, columns]`, 1 where there is a token.
    """

    input_ids: Tensor
    attention_mask: Tensor


@dataclass(frozen=True, eq=False)
class Collated(Moved):
    """A batch of rows.

    Attributes:
        student: its ids.
        teachers: those of each teacher, by its name.
        places: where it is supervised, and where its teachers speak to it.
        alignment_counts: int64 `[fields of Counts]` of each teacher, summed over the batch.
        cut: int64, responses that lost their end, of the `student` and of each teacher.
    """

    student: Tokens
    teachers: Mapping[str, Tokens]
    places: Places
    alignment_counts: Mapping[str, Tensor]
    cut: Mapping[str, Tensor]

    def __len__(self) -> int:
        """The number of rows."""
        return len(self.student.input_ids)


@dataclass(frozen=True, slots=True)
class DistillationCollator:
    """Makes the batches of `DistillationTrainer`; picklable.

    Attributes:
        student: the student's side.
        teachers: those of the teachers, by name; one teacher is `teacher`.
    """

    student: Side
    teachers: Mapping[str, TeacherSide]

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> Collated:
        """A batch of rows of text, see `dskd.train.data`."""
        return self.collate([self.encode(row) for row in rows])

    def encode(self, row: Mapping[str, Any]) -> EncodedRow:
        """A row of text in the ids of all sides."""
        return EncodedRow(
            self.student.encode(row), {name: one.side.encode(row) for name, one in self.teachers.items()}
        )

    def collate(self, rows: Sequence[EncodedRow]) -> Collated:
        """A batch of rows of ids: encoded texts, or what a model sampled."""
        student = [row.student for row in rows]
        teachers = {name: [row.teachers[name] for row in rows] for name in self.teachers}
        student_labels = [row.labels() for row in student]
        teacher_labels = {name: [row.labels() for row in side] for name, side in teachers.items()}
        alignments = {
            name: one.aligner.align(teacher_labels=teacher_labels[name], student_labels=student_labels)
            for name, one in self.teachers.items()
        }
        needs = {name: one.needs for name, one in self.teachers.items()}
        totals = {name: alignment.counts.total() for name, alignment in alignments.items()}
        return Collated(
            _padded(student),
            {name: _padded(side) for name, side in teachers.items()},
            Places.of(alignments, student_labels, teacher_labels, needs=needs),
            {name: _counted(total) for name, total in totals.items()},
            {name: _cut(side) for name, side in {"student": student, **teachers}.items()},
        )


def _counted(total: Counts) -> Tensor:
    return torch.tensor([int(getattr(total, item.name)[0]) for item in fields(Counts)])


def _cut(rows: Sequence[Encoded]) -> Tensor:
    return torch.tensor(sum(not one.ends for one in rows))


def _padded(rows: Sequence[Encoded]) -> Tokens:
    shape = len(rows), max(len(row.ids) for row in rows)
    ids, mask = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.int64)
    for index, row in enumerate(rows):
        ids[index, : len(row.ids)] = row.ids
        mask[index, : len(row.ids)] = 1
    return Tokens(torch.from_numpy(ids), torch.from_numpy(mask))
