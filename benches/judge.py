"""What dskd and the published rule find on rows of text, judged by the oracle of byte spans."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

import dskd
import oracle
from corpus import ragged
from dskd import Aligner, PairKind
from dskd.reference import published_eta
from oracle import Ints, Piece, Score, share

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from corpus import Tokenizer
    from dskd import Ragged

HERE = Path(__file__).resolve().parent
PAGE = HERE / "proof.md"

Ids = list[npt.NDArray[np.int32]]


@dataclass(frozen=True, slots=True)
class Row:
    """What each side reads, and the pieces that the two texts share."""

    teacher: str
    student: str
    same: list[Piece]


def same_row(text: str) -> Row:
    """A row that both sides read."""
    return Row(text, text, oracle.pieces(text, []))


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows in ids of both sides, and the pairs that exist.

    Attributes:
        rows: the places of these rows among those that were asked for; the others are not read as they are
            by one of the tokenizers, which its vocabulary's bytes show.
        exact: numbers of the pairs of the oracle.
        allowed: numbers of pairs at one place of the text but for a leading space that one of them has.
    """

    teacher_side: Tokenizer
    student_side: Tokenizer
    rows: list[int]
    teacher: Ragged
    student: Ragged
    exact: Ints
    allowed: Ints

    def numbered(self, row: Ints, teacher: Ints, student: Ints) -> Ints:
        """One number for each pair; tokens are given as columns of their rows."""
        tokens = (teacher + self.teacher.offsets[row], student + self.student.offsets[row])
        return oracle.numbered(tokens, len(self.student.values))


def space_before(side: Tokenizer, ids: npt.NDArray[np.int32], text: str) -> bool | None:
    """Whether the ids say the text with one more space in front; None where they do not say it."""
    said, written = side.text_of(ids), text.encode()
    if said == written:
        return False
    return True if said == b" " + written else None


def batch_of(
    teacher: Tokenizer,
    student: Tokenizer,
    rows: Sequence[Row],
    respell: Callable[[Tokenizer, Ids], Ids] | None = None,
) -> Batch:
    """The rows in ids; `respell` replaces the student's by others of the same bytes."""
    teacher_ids = teacher.rows([row.teacher for row in rows])
    student_ids = student.rows([row.student for row in rows])
    if respell:
        student_ids = respell(student, student_ids)
    before = [
        (
            space_before(teacher, teacher_ids[index], row.teacher),
            space_before(student, student_ids[index], row.student),
        )
        for index, row in enumerate(rows)
    ]
    kept = [index for index, spaces in enumerate(before) if None not in spaces]
    both = [before[index] == (True, True) for index in kept]
    same = [
        oracle.leading(rows[index].same) if held else rows[index].same
        for index, held in zip(kept, both, strict=True)
    ]
    sides = (ragged([teacher_ids[index] for index in kept]), ragged([student_ids[index] for index in kept]))
    held_back = [
        np.array([bool(before[index][side]) and not held for index, held in zip(kept, both, strict=True)], bool)
        for side in (0, 1)
    ]
    spans = [
        oracle.spans(tokenizer.lengths[ids.values], ids.offsets, held)
        for tokenizer, ids, held in zip((teacher, student), sides, held_back, strict=True)
    ]
    row_bytes = [_row_bytes(side_spans, ids) for side_spans, ids in zip(spans, sides, strict=True)]
    laid = oracle.laid_out(same, *row_bytes)
    students = len(sides[1].values)
    opens = [
        side.numbers_without_space[ids.values] >= 0
        for side, ids in zip((teacher, student), sides, strict=True)
    ]
    less = [
        oracle.without_space(side_spans, space) for side_spans, space in zip(spans, opens, strict=True)
    ]
    allowed = [
        oracle.exact_pairs(spans[0], spans[1], laid),
        oracle.exact_pairs(less[0], spans[1], laid),
        oracle.exact_pairs(spans[0], less[1], laid),
    ]
    numbers = [oracle.numbered(pairs, students) for pairs in allowed]
    return Batch(teacher, student, kept, *sides, numbers[0], np.unique(np.concatenate(numbers)))


def _row_bytes(spans: oracle.Spans, ids: Ragged) -> Ints:
    ends = np.concatenate([[0], spans.ends])[ids.offsets]
    return np.diff(ends)


# ---- What is found ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Found:
    """Pairs that a rule found, judged.

    Attributes:
        score: the oracle's judgement.
        ratio: pairs over student tokens that have bytes.
        false: pairs whose bytes differ by more than one leading space, or whose kind says otherwise.
        coverage: bytes in chunks over bytes of the text, teacher and student; None for the published rule.
        missed: for each row of the batch, the pairs that exist and were not found.
    """

    score: Score
    ratio: float
    false: int
    coverage: tuple[float, float] | None
    missed: Ints

    def as_json(self) -> dict[str, Any]:
        """The numbers, ready for JSON."""
        numbers = {
            "recall": self.score.recall,
            "precision": self.score.precision,
            "ratio": self.ratio,
            "pairs": self.score.found,
            "elsewhere": self.score.found - self.score.true,
            "false": self.false,
        }
        if self.coverage:
            numbers |= {"teacher_coverage": self.coverage[0], "student_coverage": self.coverage[1]}
        return numbers


_aligners: dict[tuple[str, str], Aligner] = {}


def aligner_of(teacher: Tokenizer, student: Tokenizer) -> Aligner:
    """The aligner of the two, built once."""
    names = (teacher.name, student.name)
    if names not in _aligners:
        _aligners[names] = Aligner(teacher.vocabulary, student.vocabulary)
    return _aligners[names]


def by_dskd(batch: Batch) -> Found:
    """What `Aligner.align` finds; roles aside, since no specials are in the rows."""
    found = aligner_of(batch.teacher_side, batch.student_side).align(batch.teacher, batch.student, num_threads=1)
    row = np.repeat(np.arange(len(found)), np.diff(found.pairs.offsets))
    text = found.pairs.kind != PairKind.ROLE
    teacher, student = found.pairs.teacher.astype(np.int64), found.pairs.student.astype(np.int64)
    total = found.counts.total()
    coverage = (_floor(total.coverage.teacher[0]), _floor(total.coverage.student[0]))
    kinds = found.pairs.kind[text]
    return _judged(batch, row[text], teacher[text], student[text], kinds, coverage)


def by_published_rule(batch: Batch) -> Found:
    """What the published rule finds on the spellings of the same ids."""
    pairs = [
        published_eta(batch.teacher_side.spell(teacher), batch.student_side.spell(student))
        for teacher, student in zip(_lists(batch.teacher), _lists(batch.student), strict=True)
    ]
    row = np.repeat(np.arange(len(pairs)), [len(found) for found in pairs])
    flat = np.array([pair for found in pairs for pair in found], dtype=np.int64).reshape(-1, 2)
    return _judged(batch, row, flat[:, 0], flat[:, 1], None, None)


def _judged(
    batch: Batch,
    row: Ints,
    teacher: Ints,
    student: Ints,
    kinds: npt.NDArray[np.uint8] | None,
    coverage: tuple[float, float] | None,
) -> Found:
    numbers = batch.numbered(row, teacher, student)
    hit = np.isin(batch.exact, numbers, assume_unique=True)
    score = Score(
        exist=len(batch.exact),
        hit=int(hit.sum()),
        found=len(numbers),
        true=int(np.isin(numbers, batch.allowed, assume_unique=True).sum()),
    )
    ids = (
        batch.teacher.values[teacher + batch.teacher.offsets[row]],
        batch.student.values[student + batch.student.offsets[row]],
    )
    with_bytes = int((batch.student_side.lengths[batch.student.values] > 0).sum())
    missed_rows = batch.student.offsets[1:].searchsorted(
        batch.exact[~hit] % max(len(batch.student.values), 1), side="right"
    )
    return Found(
        score,
        share(len(numbers), with_bytes),
        int((~_true_bytes(batch, *ids, kinds)).sum()),
        coverage,
        np.bincount(missed_rows, minlength=len(batch.rows)),
    )


def _true_bytes(
    batch: Batch, teacher: Ints, student: Ints, kinds: npt.NDArray[np.uint8] | None
) -> npt.NDArray[np.bool_]:
    """Whether the bytes are equal, or differ by one leading space and the kind is SPACE."""
    sides = (batch.teacher_side, batch.student_side)
    numbers = [side.numbers[ids] for side, ids in zip(sides, (teacher, student), strict=True)]
    behind = [side.numbers_without_space[ids] for side, ids in zip(sides, (teacher, student), strict=True)]
    equal: npt.NDArray[np.bool_] = numbers[0] == numbers[1]
    but_one: npt.NDArray[np.bool_] = (behind[0] == numbers[1]) | (numbers[0] == behind[1])
    if kinds is None:
        return equal | but_one
    return np.where(kinds == PairKind.EXACT, equal, but_one)


def _lists(ids: Ragged) -> list[list[int]]:
    return [row.tolist() for row in np.split(ids.values, ids.offsets[1:-1])] if len(ids) else []


def _floor(part: float) -> float:
    return int(part * 100_000) / 100_000


# ---- Reports ---------------------------------------------------------------------------------------------


def machine() -> dict[str, Any]:
    """With what this was made."""
    libraries = ("numpy", "tokenizers", "sentencepiece")
    return {
        "python": platform.python_version(),
        **{library: version(library) for library in libraries},
        "dskd": dskd.__version__,
        "revision": revision(),
        "cores": os.cpu_count(),
    }


def revision() -> str:
    """What git calls this checkout; `-dirty` where files differ from it."""
    git = shutil.which("git")
    if git is None:
        return "unknown"
    command = [git, "-C", str(HERE), "describe", "--always", "--dirty"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    return found.stdout.strip() or "unknown"


def table(head: Sequence[str], body: Iterable[Sequence[str]], names: int = 2) -> str:
    """A Markdown table; all columns but the first `names` are numbers."""
    lines = [head, ["---"] * names + ["---:"] * (len(head) - names), *body]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def write_json(file: Path, results: Mapping[str, Any]) -> None:
    """Writes the results, and the folder if it is not there."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def write_page(name: str, tables: str) -> None:
    """Puts the tables between the marks of `name` in proof.md."""
    marks = (f"<!-- tables from results/{name}.json -->\n", f"<!-- end of {name} -->")
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(marks[0])
    after = rest.partition(marks[1])[2]
    PAGE.write_text(f"{before}{marks[0]}\n{tables}\n\n{marks[1]}{after}", encoding="utf-8")
