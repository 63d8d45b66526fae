"""From rows of text to a batch: both tokenizations, what is supervised, and which tokens are the same.

Runs in the workers of a `DataLoader`. Prompt and response are tokenised apart on each side, so that no token
straddles them, and the response ends with each side's end-of-sequence token: the two are a pair.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from dskd.columns import Counts
from dskd.nn.positions import Positions

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from dskd.alignment import Aligner
    from dskd.vocabulary import Vocabulary

__all__ = ["DistillationCollator", "Encoded", "Side", "content", "positions_of"]

_Indices: TypeAlias = npt.NDArray[np.int64]


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

    def mask(self) -> list[bool]:
        """Which ids are the response and its end."""
        return [False] * (len(self.ids) - self.response) + [True] * self.response


@dataclass(frozen=True, slots=True)
class Side:
    """How rows become ids for one of the two models.

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


def _last(ids: list[int], count: int) -> list[int]:
    return ids[max(len(ids) - max(count, 0), 0) :]


def content(completion: str | list[dict[str, str]]) -> str:
    """The text of a completion."""
    return completion if isinstance(completion, str) else completion[0]["content"]


@dataclass(frozen=True, slots=True)
class DistillationCollator:
    """Makes the batches of `DistillationTrainer`; picklable.

    Attributes:
        teacher: the teacher's side.
        student: the student's side.
        aligner: of the two vocabularies.
    """

    teacher: Side
    student: Side
    aligner: Aligner

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """A batch of rows.

        Returns:
            `student_input_ids`, `student_attention_mask`, `teacher_input_ids`, `teacher_attention_mask`:
            int64 `[batch, columns]`, padded on the right. The fields of `Positions`. `alignment_counts` int64
            `[fields of Counts]`, summed over the batch; `cut` int64 `[2]`, responses that lost their end on
            the teacher's and on the student's side.
        """
        teacher = [self.teacher.encode(row) for row in rows]
        student = [self.student.encode(row) for row in rows]
        alignment = self.aligner.align(
            [row.ids for row in teacher],
            [row.ids for row in student],
            teacher_mask=[row.mask() for row in teacher],
            student_mask=[row.mask() for row in student],
        )
        predicting = alignment.predicting()
        row, column, labels = _supervised(student)
        attended_row, attended_column, teacher_labels = _supervised(teacher)
        total = alignment.counts.total()
        arrays = {
            "row": row,
            "column": column,
            "labels": labels,
            "paired": _index_of(predicting.row, predicting.student, student),
            "teacher_row": predicting.row,
            "teacher_column": predicting.teacher,
            "attended_row": attended_row,
            "attended_column": attended_column,
            "teacher_labels": teacher_labels,
            "alignment_counts": np.array([getattr(total, item.name)[0] for item in fields(Counts)]),
            "cut": np.array([sum(not one.ends for one in side) for side in (teacher, student)]),
        }
        return {
            **_padded("student", student),
            **_padded("teacher", teacher),
            **{name: torch.from_numpy(array) for name, array in arrays.items()},
        }


def positions_of(batch: Mapping[str, Tensor]) -> Positions:
    """The positions of a batch that `DistillationCollator` made."""
    return Positions(*(batch[item.name] for item in fields(Positions)))


def _supervised(rows: Sequence[Encoded]) -> tuple[_Indices, _Indices, _Indices]:
    """Row, column and label of every position that predicts a token of a response."""
    counts = [encoded.predicted for encoded in rows]
    row = np.repeat(np.arange(len(rows)), counts)
    labels = [token for encoded in rows for token in encoded.ids[len(encoded.ids) - encoded.predicted :]]
    column = np.arange(len(labels)) + np.repeat(_shifts(rows), counts)
    return row, column, np.array(labels, dtype=np.int64)


def _index_of(row: _Indices, column: _Indices, rows: Sequence[Encoded]) -> _Indices:
    """Which of the supervised positions each (row, column) is."""
    return column - _shifts(rows)[row]


def _shifts(rows: Sequence[Encoded]) -> _Indices:
    """For each row what is between a supervised position's index and its column: they run on by one."""
    firsts = np.array([len(encoded.ids) - encoded.predicted - 1 for encoded in rows])
    before = np.cumsum([0, *(encoded.predicted for encoded in rows)])[:-1]
    shifts: _Indices = firsts - before
    return shifts


def _padded(side: str, rows: Sequence[Encoded]) -> dict[str, Tensor]:
    """Ids and attention mask, padded on the right; what fills the padding is looked at by nobody."""
    shape = len(rows), max(len(row.ids) for row in rows)
    ids, mask = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.int64)
    for index, row in enumerate(rows):
        ids[index, : len(row.ids)] = row.ids
        mask[index, : len(row.ids)] = 1
    return {f"{side}_input_ids": torch.from_numpy(ids), f"{side}_attention_mask": torch.from_numpy(mask)}
