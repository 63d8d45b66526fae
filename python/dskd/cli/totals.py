"""Sums over rows, and the report of them."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.cells import cell_len
from rich.text import Text

from dskd.columns import Counts

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from dskd.cli.pair import AlignedRows, TokenizerPair

__all__ = ["Totals", "percent", "report"]


_PLAIN = ("rows", "teacher_ids", "student_ids", "differences", "seconds_aligning", "seconds")


def _no_counts() -> Counts:
    return Counts(*(np.zeros(1, np.int64) for _ in fields(Counts)))


@dataclass(slots=True)
class Totals:
    """Sums over rows; the ratios are quotients of sums.

    Attributes:
        rows: rows.
        teacher_ids: ids of the teacher, specials and all.
        student_ids: the same for the student.
        differences: runs of tokens whose bytes differ.
        counts: the counts of all rows together, as those of one row.
        published: pairs of the published rule, and how many of them are false; None if not counted.
        seconds_aligning: seconds in `Aligner.align`.
        seconds: seconds from the first row read to the file written.
    """

    rows: int = 0
    teacher_ids: int = 0
    student_ids: int = 0
    differences: int = 0
    counts: Counts = field(default_factory=_no_counts)
    published: tuple[int, int] | None = None
    seconds_aligning: float = 0.0
    seconds: float = 0.0

    def add(self, batch: AlignedRows, published: tuple[int, int] | None = None) -> None:
        """Adds the rows of a batch."""
        self.rows += len(batch.alignment)
        self.teacher_ids += len(batch.teacher_ids.values)
        self.student_ids += len(batch.student_ids.values)
        self.differences += len(batch.alignment.differences)
        self.seconds_aligning += batch.seconds
        self._add_counts(batch.alignment.counts.total(), published)

    def add_totals(self, other: Totals) -> None:
        """Adds the sums over other rows."""
        for name in _PLAIN:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self._add_counts(other.counts, other.published)

    def _add_counts(self, counts: Counts, published: tuple[int, int] | None) -> None:
        names = [item.name for item in fields(Counts)]
        self.counts = Counts(*(getattr(self.counts, name) + getattr(counts, name) for name in names))
        if published is not None:
            before = self.published or (0, 0)
            self.published = (before[0] + published[0], before[1] + published[1])

    def to_json(self) -> dict[str, Any]:
        """All that `from_json` needs to make them again."""
        counts = {item.name: int(getattr(self.counts, item.name)[0]) for item in fields(Counts)}
        plain = {name: getattr(self, name) for name in _PLAIN}
        return {**plain, "counts": counts, "published": self.published}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Totals:
        """What `to_json` made."""
        counts = Counts(*(np.array([data["counts"][item.name]]) for item in fields(Counts)))
        published = None if data["published"] is None else (data["published"][0], data["published"][1])
        return cls(**{name: data[name] for name in _PLAIN}, counts=counts, published=published)

    @property
    def pairs(self) -> int:
        """Pairs of all three kinds."""
        return int((self.counts.exact + self.counts.space + self.counts.role)[0])

    @property
    def published_ratio(self) -> float | None:
        """Pairs of the published rule, false ones too / student tokens that have bytes, as of our ratio."""
        if self.published is None:
            return None
        return self.published[0] / max(int(self.counts.student_tokens[0]), 1)

    def numbers(self) -> dict[str, Any]:
        """All of them by name, as JSON has them."""
        coverage, ids = self.counts.coverage, self.teacher_ids + self.student_ids
        return {
            "rows": self.rows,
            "teacher_ids": self.teacher_ids,
            "student_ids": self.student_ids,
            "pairs": self.pairs,
            **{item.name: int(getattr(self.counts, item.name)[0]) for item in fields(Counts)},
            "differences": self.differences,
            "ratio": float(self.counts.ratio[0]),
            "coverage_teacher": float(coverage.teacher[0]),
            "coverage_student": float(coverage.student[0]),
            "published_pairs": self.published and self.published[0],
            "published_false_pairs": self.published and self.published[1],
            "published_ratio": self.published_ratio,
            "seconds_aligning": self.seconds_aligning,
            "seconds": self.seconds,
            "tokens_per_second_aligning": ids / self.seconds_aligning if self.seconds_aligning else 0.0,
            "tokens_per_second": ids / self.seconds if self.seconds else 0.0,
        }

    def phrases(self) -> list[Text]:
        """What one line says of one text."""
        numbers = self.numbers()
        teacher, student = (percent(numbers[f"coverage_{side}"]) for side in ("teacher", "student"))
        said = [
            f"{self.teacher_ids:,} teacher tokens",
            f"{self.student_ids:,} student tokens",
            f"{self.pairs:,} pair{'s' * (self.pairs != 1)} ({_kinds_of_pairs(numbers)})",
            f"ratio {percent(numbers['ratio'])}",
            f"coverage {teacher}" if teacher == student else f"coverage {teacher} teacher, {student} student",
        ]
        if self.published_ratio is not None:
            false_pairs = f" ({self.published[1]:,} false)" if self.published and self.published[1] else ""
            said.append(f"published rule {percent(self.published_ratio)}{false_pairs}")
        return [Text(phrase) for phrase in said]


def report(totals: Totals, tokenizers: TokenizerPair) -> list[str]:
    """The summary of a run: what each side has, what is counted of both, and how fast it was."""
    numbers = totals.numbers()
    sides = [
        ("", "teacher", "student"),
        ("tokenizer", tokenizers.teacher.name, tokenizers.student.name),
        ("tokens", f"{totals.teacher_ids:,}", f"{totals.student_ids:,}"),
        ("coverage", *(percent(numbers[f"coverage_{side}"]) for side in ("teacher", "student"))),
    ]
    width = max(cell_len(student) for _, _, student in sides)
    rows = [(name, teacher, _right(student, width)) for name, teacher, student in sides]
    return _table([*rows, ("", "", ""), *_report_of_both(totals, numbers)])


def _report_of_both(totals: Totals, numbers: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    yield "rows", f"{totals.rows:,}", ""
    yield "pairs", f"{totals.pairs:,}", _kinds_of_pairs(numbers)
    yield "differences", f"{totals.differences:,}", ""
    yield "ratio", percent(numbers["ratio"]), f"of {numbers['student_tokens']:,} student tokens with text"
    if totals.published is not None and totals.published_ratio is not None:
        pairs, false_pairs = totals.published
        note = f"{pairs:,} pairs, {false_pairs:,} of them false, of the same tokens"
        yield "published rule", percent(totals.published_ratio), note
    yield "tokens a second", f"{numbers['tokens_per_second_aligning']:,.0f}", "of both sides, aligning alone"
    everything = "reading, tokenizing and writing" if totals.published is None else "everything else"
    yield "", f"{numbers['tokens_per_second']:,.0f}", f"with {everything}"


def _table(rows: Sequence[tuple[str, str, str]]) -> list[str]:
    """Lines of three columns, the second flush right."""
    widths = [max(cell_len(row[column]) for row in rows) for column in (0, 1)]
    return [
        f"{name}{' ' * (widths[0] - cell_len(name))}  {_right(value, widths[1])}  {note}".rstrip()
        for name, value, note in rows
    ]


def _right(text: str, width: int) -> str:
    return " " * (width - cell_len(text)) + text


def _kinds_of_pairs(numbers: dict[str, Any]) -> str:
    return ", ".join(f"{numbers[kind]:,} {kind}" for kind in ("exact", "space", "role"))


def percent(part: float) -> str:
    """With one digit, and 100.0% for all of it only."""
    return f"{min(part, 0.999) if part < 1 else part:.1%}"
