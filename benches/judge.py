"""What dskd and the published rule find on rows of text, judged by the oracle of byte spans."""

from __future__ import annotations

import functools
import itertools
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

import oracle
import slides
from corpus import ragged
from dskd import Aligner, PairKind
from dskd.reference import published_eta
from oracle import Ints, Piece, Score, share

if TYPE_CHECKING:
    from collections.abc import Sequence

    from corpus import Tokenizer
    from dskd import Ragged
    from oracle import Change
    from slides import Box, Undecided

HERE = Path(__file__).resolve().parent

Ids = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Row:
    """What each side reads, the pieces that the two texts share, and where that is not known."""

    teacher: str
    student: str
    same: list[Piece]
    undecided: list[Box] = field(default_factory=list)

    def swapped(self) -> Row:
        """The same row with teacher and student exchanged."""
        boxes = [box.swapped() for box in self.undecided]
        return Row(self.student, self.teacher, oracle.swapped(self.same), boxes)


def same_row(text: str) -> Row:
    """A row that both sides read."""
    return Row(text, text, oracle.pieces(text, []))


def changed_row(text: str, changes: Sequence[Change], *, values: bool = False) -> Row:
    """The teacher reads the text, the student the changed one.

    Pairs are not judged where a change can slide; with `values`, inside of a change neither.
    """
    student, same = oracle.changed(text, changes), oracle.pieces(text, changes)
    raw = text.encode(), student.encode()
    boxes = slides.slides(*raw, same)
    if values:
        boxes += slides.gaps(same, (len(raw[0]), len(raw[1])))
    return Row(text, student, same, slides.united(boxes))


@dataclass(frozen=True, slots=True)
class Rewritten:
    """Ids in place of a row's.

    Attributes:
        ids: the ids.
        same: what their bytes share with the bytes of those that they replace.
    """

    ids: Ids
    same: list[Piece]


Rewrite = Callable[["Tokenizer", Ids], Rewritten]


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows in ids of both sides, and the pairs that exist.

    Attributes:
        sides: the teacher's tokenizer and the student's.
        rows: the places of these rows among those that were asked for; the others are not read as they are
            by one of the tokenizers, which its vocabulary's bytes show.
        teacher: the teacher's ids.
        student: the student's ids.
        exact: numbers of the pairs of the oracle.
        allowed: numbers of pairs at one place of the text but for a leading space, which one of the two has,
            or both have and it belongs to what was changed.
        undecided: where it is not known what corresponds to what.
    """

    sides: tuple[Tokenizer, Tokenizer]
    rows: list[int]
    teacher: Ragged
    student: Ragged
    exact: Ints
    allowed: Ints
    undecided: Undecided

    @property
    def students(self) -> int:
        """Student tokens of all rows."""
        return len(self.student.values)

    def exist_in_row(self) -> Ints:
        """How many pairs of the oracle each row has."""
        return self.count_by_row(self.exact)

    def count_by_row(self, numbers: Ints) -> Ints:
        """How many of the pairs with these numbers each row has."""
        row = self.student.offsets[1:].searchsorted(numbers % max(self.students, 1), side="right")
        return np.bincount(row, minlength=len(self.rows))


def batch_of(
    teacher: Tokenizer,
    student: Tokenizer,
    rows: Sequence[Row],
    rewrite: Rewrite | None = None,
    rewrite_teacher: Rewrite | None = None,
) -> Batch:
    """The rows in ids; `rewrite` and `rewrite_teacher` put others in place of the student's and teacher's."""
    sides = (teacher, student)
    texts = [row.teacher for row in rows], [row.student for row in rows]
    ids = [side.rows(said) for side, said in zip(sides, texts, strict=True)]
    before = [
        (space_before(teacher, ids[0][index], row.teacher), space_before(student, ids[1][index], row.student))
        for index, row in enumerate(rows)
    ]
    kept = [index for index, spaces in enumerate(before) if None not in spaces]
    spaces = np.array([before[index] for index in kept], dtype=np.bool_).reshape(-1, 2)
    known = [rows[index] for index in kept]
    teacher_ids, student_ids = ([row_ids[index] for index in kept] for row_ids in ids)
    if rewrite:
        known, student_ids = _rewritten(student, known, student_ids, spaces[:, 1], rewrite)
    if rewrite_teacher:
        known = [row.swapped() for row in known]
        known, teacher_ids = _rewritten(teacher, known, teacher_ids, spaces[:, 0], rewrite_teacher)
        known = [row.swapped() for row in known]
    both = ragged(teacher_ids), ragged(student_ids)
    exact, allowed, undecided = _existing(sides, both, spaces, known)
    return Batch(sides, kept, *both, exact, allowed, undecided)


def _rewritten(
    side: Tokenizer, rows: Sequence[Row], ids: Sequence[Ids], spaces: npt.NDArray[np.bool_], rewrite: Rewrite
) -> tuple[list[Row], list[Ids]]:
    """What the rows are with other ids of the student, and these; their texts stay what was tokenized.

    Rows that begin with a space which the text has not keep it.
    """
    found: list[Row] = []
    new = [rewrite(side, row_ids) for row_ids in ids]
    for row, rewritten, space in zip(rows, new, spaces.tolist(), strict=True):
        said = side.text_of(rewritten.ids)[space:]
        kept = [(old - space, at - space, length) for old, at, length in rewritten.same]
        same = oracle.composed(row.same, kept)
        undecided = slides.slides(row.teacher.encode(), said, same)
        found.append(Row(row.teacher, row.student, same, undecided))
    return found, [rewritten.ids for rewritten in new]


def space_before(side: Tokenizer, ids: Ids, text: str) -> bool | None:
    """Whether the ids say the text with one more space in front; None where they do not say it."""
    said, written = side.text_of(ids), text.encode()
    if said == written:
        return False
    return True if said == b" " + written else None


def _existing(
    sides: tuple[Tokenizer, Tokenizer],
    ids: tuple[Ragged, Ragged],
    spaces: npt.NDArray[np.bool_],
    rows: Sequence[Row],
) -> tuple[Ints, Ints, Undecided]:
    """Numbers of the pairs that exist, and of those that are allowed, and what is undecided.

    `spaces` are before a row's sides.

    A space that both sides have in front is text like any other; one that only one has is held back.
    """
    both = spaces[:, 0] & spaces[:, 1]
    lengths = [side.lengths[row_ids.values] for side, row_ids in zip(sides, ids, strict=True)]
    teacher, student = (
        oracle.spans(lengths[side], ids[side].offsets, spaces[:, side] & ~both) for side in (0, 1)
    )
    row_bytes = (_row_bytes(teacher, ids[0]), _row_bytes(student, ids[1]))
    with_space = list(zip(rows, both.tolist(), strict=True))
    pieces = [oracle.leading(row.same) if held else row.same for row, held in with_space]
    boxes = [[box.moved(held, held) for box in row.undecided] for row, held in with_space]
    laid_out = oracle.laid_out(pieces, *row_bytes)
    teacher_less, student_less = (
        oracle.without_space(spans, side.numbers_without_space[row_ids.values] >= 0)
        for spans, side, row_ids in zip((teacher, student), sides, ids, strict=True)
    )
    combined = (
        (teacher, student),
        (teacher_less, student),
        (teacher, student_less),
        (teacher_less, student_less),
    )
    exact, *but_a_space = (oracle.exact_pairs(one, other, laid_out) for one, other in combined)
    undecided = slides.undecided(teacher, student, boxes, row_bytes)
    unknown = undecided.among(exact)
    students = len(ids[1].values)
    decided = oracle.numbered((exact[0][~unknown], exact[1][~unknown]), students)
    numbers = [oracle.numbered(pairs, students) for pairs in (exact, *but_a_space)]
    return decided, _once(np.concatenate(numbers)), undecided


def _once(numbers: Ints) -> Ints:
    """The numbers in order, each once, as `np.unique` has them, which takes several times as long."""
    ordered = np.sort(numbers)
    return ordered[np.diff(ordered, prepend=-1) > 0]


def _row_bytes(spans: oracle.Spans, ids: Ragged) -> Ints:
    return np.diff(np.concatenate([[0], spans.ends])[ids.offsets])


# ---- What is found ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Found:
    """Pairs that a rule found, judged.

    Attributes:
        score: the oracle's judgement.
        ratio: pairs over student tokens that have bytes.
        false: pairs whose bytes differ by more than one leading space, or whose kind says otherwise.
        coverage: bytes in chunks over bytes of the text, teacher and student; None for the published rule.
        undecided: pairs of which it is not known whether they are true; they are not in the score.
        missed: for each row of the batch, the pairs that exist and were not found.
        tokens_a_second: of both sides, in processor time; 0 for the published rule.
    """

    score: Score
    ratio: float
    false: int
    coverage: tuple[float, float] | None
    missed: Ints
    undecided: int = 0
    tokens_a_second: float = 0.0

    def as_json(self) -> dict[str, Any]:
        """The numbers, ready for JSON."""
        numbers = {
            "recall": self.score.recall,
            "precision": self.score.precision,
            "ratio": self.ratio,
            "pairs": self.score.found + self.undecided,
            "judged": self.score.found,
            "elsewhere": self.score.found - self.score.true,
            "undecided": self.undecided,
            "false": self.false,
        }
        if self.coverage:
            numbers |= {"teacher_coverage": self.coverage[0], "student_coverage": self.coverage[1]}
            numbers |= {"tokens_a_second": round(self.tokens_a_second)}
        return numbers


@functools.cache
def aligner_of(teacher: Tokenizer, student: Tokenizer) -> Aligner:
    """The aligner of the two, built once."""
    return Aligner(teacher.vocabulary, student.vocabulary)


def by_dskd(batch: Batch) -> Found:
    """What `Aligner.align` finds; roles aside, since no specials are in the rows."""
    aligner = aligner_of(*batch.sides)
    started = time.process_time()
    found = aligner.align(batch.teacher, batch.student, num_threads=1)
    seconds = time.process_time() - started
    row = np.repeat(np.arange(len(found)), np.diff(found.pairs.offsets))
    teacher = found.pairs.teacher + batch.teacher.offsets[row]
    student = found.pairs.student + batch.student.offsets[row]
    of_text = found.pairs.kind != PairKind.ROLE
    total = found.counts.total()
    coverage = (_floor(total.coverage.teacher[0]), _floor(total.coverage.student[0]))
    judged = _judged(batch, (teacher[of_text], student[of_text]), found.pairs.kind[of_text], coverage)
    tokens = len(batch.teacher.values) + len(batch.student.values)
    return replace(judged, tokens_a_second=tokens / max(seconds, 1e-9))


def by_published_rule(batch: Batch) -> Found:
    """What the published rule finds on the spellings of the same ids."""
    pairs = published_pairs(*batch.sides, _lists(batch.teacher), _lists(batch.student))
    row = np.repeat(np.arange(len(pairs)), [len(found) for found in pairs])
    flat = np.array([pair for found in pairs for pair in found], dtype=np.int64).reshape(-1, 2)
    tokens = (flat[:, 0] + batch.teacher.offsets[row], flat[:, 1] + batch.student.offsets[row])
    return _judged(batch, tokens)


def published_pairs(
    teacher: Tokenizer, student: Tokenizer, teacher_ids: Sequence[list[int]], student_ids: Sequence[list[int]]
) -> list[list[tuple[int, int]]]:
    """The published rule's pairs of each row."""
    rows = zip(teacher_ids, student_ids, strict=True)
    return [published_eta(*while_they_agree(teacher.spell(one), student.spell(other))) for one, other in rows]


def while_they_agree(teacher: list[str], student: list[str]) -> tuple[list[str], list[str]]:
    """The spellings up to where the published rule can pair no more.

    It compares all that was spelled before, which takes the square of a row's length; where that has differed
    once it differs to the end.
    """
    bare = [list(map(_bare, side)) for side in (teacher, student)]
    characters = enumerate(itertools.zip_longest(*("".join(side) for side in bare)))
    agree = next((at for at, (one, other) in characters if one != other), sys.maxsize)
    lengths = (itertools.accumulate(map(len, side), initial=0) for side in bare)
    counts = [sum(1 for _ in itertools.takewhile(lambda length: length <= agree, side)) for side in lengths]
    return teacher[: counts[0]], student[: counts[1]]


@functools.cache
def _bare(spelled: str) -> str:
    """As the published rule compares it."""
    return spelled.replace("▁", "").replace("Ġ", "")


def _judged(
    batch: Batch,
    tokens: tuple[Ints, Ints],
    kinds: npt.NDArray[np.uint8] | None = None,
    coverage: tuple[float, float] | None = None,
) -> Found:
    """The judgement of pairs of tokens, counted through the whole batch."""
    numbers = oracle.numbered(tokens, batch.students)
    hit = np.isin(batch.exact, numbers, assume_unique=True)
    true = np.isin(numbers, batch.allowed, assume_unique=True)
    undecided = batch.undecided.among(tokens)
    with_bytes = int((batch.sides[1].lengths[batch.student.values] > 0).sum())
    return Found(
        score=Score(len(hit), int(hit.sum()), int((~undecided).sum()), int(true[~undecided].sum())),
        ratio=share(len(numbers), with_bytes),
        false=false_pairs(batch, tokens, kinds),
        coverage=coverage,
        missed=batch.count_by_row(batch.exact[~hit]),
        undecided=int(undecided.sum()),
    )


def false_pairs(batch: Batch, tokens: tuple[Ints, Ints], kinds: npt.NDArray[np.uint8] | None = None) -> int:
    """Pairs whose bytes are not equal; nor do they differ by one leading space, and the kind is SPACE."""
    teacher, student = batch.teacher.values[tokens[0]], batch.student.values[tokens[1]]
    one, other = batch.sides
    equal: npt.NDArray[np.bool_] = one.numbers[teacher] == other.numbers[student]
    but_one: npt.NDArray[np.bool_] = one.numbers_without_space[teacher] == other.numbers[student]
    but_one |= one.numbers[teacher] == other.numbers_without_space[student]
    true = equal | but_one if kinds is None else np.where(kinds == PairKind.EXACT, equal, but_one)
    return int((~true).sum())


def _lists(ids: Ragged) -> list[list[int]]:
    return [row.tolist() for row in np.split(ids.values, ids.offsets[1:-1])] if len(ids) else []


def _floor(part: float) -> float:
    return int(part * 100_000) / 100_000
