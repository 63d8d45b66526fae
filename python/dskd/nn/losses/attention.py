"""Attention from the positions of one model to those of another, within rows: what each hears of the other.

Which teacher position a student position learns from is not read off the text but learned: every supervised
position of a row attends to those of the other model in the same row (arXiv 2406.17328, section 3.3).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional

if TYPE_CHECKING:
    from torch import Tensor

    from dskd.nn.batch import States

__all__ = ["AttentionProjectors", "AttentionScales", "attend", "attended", "rows_of"]

_MASKED = -1e5
"""The score of a pair that is not to attend, as published: finite, and far enough for a weight of 0."""


# ---- what is compared ------------------------------------------------------------------------------------


def embedded(states: States, tokens: Tensor, dtype: torch.dtype) -> Tensor:
    """e: the model's embeddings of tokens `[n]`, without a gradient: `[n, width]`.

    Raises:
        ValueError: there are none.
    """
    if states.embeddings is None:
        raise ValueError(
            "attention compares embeddings: give States(row=, inputs=, embeddings=) of both models"
        )
    return functional.embedding(tokens, states.embeddings.detach()).to(dtype)


def index_of(states: States, dtype: torch.dtype) -> Tensor:
    """`[e(x); e(y)]`, which of its row's positions each is: `[n, 2 width]`."""
    if states.inputs is None:
        raise ValueError("attention compares tokens: give States(row=, inputs=, embeddings=) of both models")
    return torch.cat([embedded(states, tokens, dtype) for tokens in (states.inputs, states.labels)], -1)


class AttentionProjectors(nn.Module):
    """The three linear maps of cross-model attention, float32, with bias, random at first (as published).

    Args:
        student_width: d.
        teacher_width: D.

    Attributes:
        query: `[2d] -> [2D]`, from the student's embeddings to what the teacher's are compared with.
        teacher_to_student: P_ts, `[D] -> [d]`.
        student_to_teacher: P_st, `[d] -> [D]`.
    """

    def __init__(self, *, student_width: int, teacher_width: int) -> None:
        """See the class."""
        super().__init__()
        self.query = nn.Linear(2 * student_width, 2 * teacher_width)
        self.teacher_to_student = nn.Linear(teacher_width, student_width)
        self.student_to_teacher = nn.Linear(student_width, teacher_width)

    @property
    def dtype(self) -> torch.dtype:
        """That in which the attention is computed: float32, or float64 after `.double()`."""
        return self.query.weight.dtype

    def queries(self, student: States) -> Tensor:
        """`q = Query[e_s(x); e_s(y)]`: `[n, 2D]`."""
        queries: Tensor = self.query(index_of(student, self.dtype))
        return queries

    def keys(self, teacher: States, scale: Tensor | float | None = None) -> Tensor:
        """`k = [e_t(x); e_t(y)] / scale`: `[m, 2D]`; None: their own standard deviation."""
        index = index_of(teacher, self.dtype)
        return index / (_spread(index) if scale is None else scale)


@dataclass(frozen=True, slots=True, eq=False)
class AttentionScales:
    """What the teacher's tensors are divided by, each by one number, so that their sizes agree.

    Attributes:
        keys: a number, or a scalar tensor: of `[e_t(x); e_t(y)]` in the keys.
        hidden: of the states in the values.
        added: of the embeddings that are added to them.
    """

    keys: Tensor | float = 1.0
    hidden: Tensor | float = 1.0
    added: Tensor | float = 1.0

    @classmethod
    def of(cls, index: Tensor, hidden: Tensor, added: Tensor) -> AttentionScales:
        """The standard deviation (that of n - 1) of all numbers of each tensor, of whatever shape.

        Of less than two numbers, and of numbers that are all equal, it is taken as 1. The loss does this by
        itself at the supervised positions; the published code does it over prompt and padding too, for which
        the whole tensors `[batch, columns, ..]` are given here and the result to the loss.

        Args:
            index: `[.., 2D]`, `[e_t(x); e_t(y)]`.
            hidden: `[.., D]`.
            added: `[.., D]`.
        """
        return cls(_spread(index), _spread(hidden), _spread(added))


def _spread(numbers: Tensor) -> Tensor:
    """The standard deviation of all numbers, or 1; float32 or wider, without a gradient."""
    numbers = numbers.detach().to(torch.promote_types(numbers.dtype, torch.float32))
    if numbers.numel() < 2:  # noqa: PLR2004 - of one number there is none
        return torch.ones((), dtype=numbers.dtype, device=numbers.device)
    deviation = numbers.std()
    return torch.where(deviation > 0, deviation, 1.0)


# ---- the attention ---------------------------------------------------------------------------------------


def attend(
    queries: Tensor,
    keys: Tensor,
    student_values: Tensor,
    teacher_values: Tensor,
    student_row: Tensor,
    teacher_row: Tensor,
) -> tuple[Tensor, Tensor]:
    """The values of each side, as each position of the other mixes them, within rows.

        A = queries keys^T / sqrt(2D)
        softmax(A) teacher_values, softmax(A^T) student_values

    Args:
        queries: `[n, 2D]`, of the student's positions.
        keys: `[m, 2D]`, of the teacher's.
        student_values: `[n, D]`.
        teacher_values: `[m, d]`.
        student_row: int64 `[n]`, the row of each position.
        teacher_row: int64 `[m]`. Every row has positions of both sides, or of none.

    Returns:
        `[n, d]` and `[m, D]`.
    """
    rows = 1 + max((int(row.max()) for row in (student_row, teacher_row) if len(row)), default=-1)
    student, teacher = _Rows.of(student_row, rows), _Rows.of(teacher_row, rows)
    # A block a row, [rows, longest n, longest m], so that no position is compared with those of other rows.
    scores = student.padded(queries) @ teacher.padded(keys).mT / math.sqrt(queries.shape[-1])
    pairs = student.filled[:, :, None] & teacher.filled[:, None, :]
    scores = scores.masked_fill(~pairs, _MASKED)
    to_student = scores.softmax(-1) @ teacher.padded(teacher_values)
    to_teacher = scores.mT.softmax(-1) @ student.padded(student_values)
    return student.flat(to_student), teacher.flat(to_teacher)


@dataclass(frozen=True, slots=True, eq=False)
class _Rows:
    """Flat positions as padded rows: position i is at `(row[i], slot[i])`.

    `filled`, bool `[rows, longest]`, says where there is one.
    """

    row: Tensor
    slot: Tensor
    filled: Tensor

    @classmethod
    def of(cls, row: Tensor, rows: int) -> _Rows:
        """A position's slot is the number of positions of its row before it."""
        order = row.argsort(stable=True)
        counts = torch.bincount(row, minlength=rows)
        starts = counts.cumsum(0) - counts
        slot = torch.empty_like(row)
        slot[order] = torch.arange(len(row), device=row.device) - starts[row[order]]
        longest = int(counts.max()) if rows else 0
        filled = torch.arange(longest, device=row.device) < counts[:, None]
        return cls(row, slot, filled)

    def padded(self, values: Tensor) -> Tensor:
        """`[n, width]` as `[rows, longest, width]`, zero where no position is."""
        blank = values.new_zeros(*self.filled.shape, values.shape[-1])
        return blank.index_put((self.row, self.slot), values)

    def flat(self, values: Tensor) -> Tensor:
        """The inverse of `padded`."""
        return values[self.row, self.slot]


def attended(
    student: States,
    teacher: States,
    projectors: AttentionProjectors,
    tokens: Tensor | None,
    scales: AttentionScales | None,
) -> tuple[Tensor, Tensor]:
    """What the heads read: softmax(A) v_t `[n, d]` and softmax(A^T) v_s `[m, D]`.

    In the projectors' dtype, under autocast too.

    Args:
        student: of rows where both models have positions.
        teacher: likewise.
        projectors: Query, P_ts and P_st.
        tokens: int64 `[m]`, those whose embeddings are added to the teacher's states; None: none are.
        scales: the three std; None: over these positions.
    """
    dtype = projectors.dtype
    with torch.autocast(teacher.hidden.device.type, enabled=False):
        hidden = teacher.hidden.detach().to(dtype)
        added = torch.zeros_like(hidden) if tokens is None else embedded(teacher, tokens, dtype)
        scales = scales or AttentionScales.of(index_of(teacher, dtype), hidden, added)
        return attend(
            projectors.queries(student),
            projectors.keys(teacher, scales.keys),
            projectors.student_to_teacher(student.hidden.to(dtype)),
            projectors.teacher_to_student(hidden / scales.hidden + added / scales.added),
            rows_of(student),
            rows_of(teacher),
        )


def rows_of(states: States) -> Tensor:
    """The row of each position: int64 `[n]`.

    Raises:
        ValueError: they are not there.
    """
    if states.row is None:
        raise ValueError("attention is within rows: give States(row=, inputs=, embeddings=) of both models")
    return states.row
