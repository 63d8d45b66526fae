"""What `make proof` asks where texts differ, part by part: which rows, who reads them, what must be found."""

from __future__ import annotations

import functools
import itertools
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

import corpus
import kinds
import repeats
import rewrites
from judge import Row, same_row, space_before
from real_text import (
    CHARACTERS,
    rows_in_nfd,
    rows_of_source,
    rows_with_composed_nukta,
    rows_with_edits,
    rows_with_thoughts,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from judge import Rewrite

    Pairs = Sequence[tuple[str, str]]

TOKENIZER_PAIRS = (
    ("deepseek-v3", "mistral-v1"),
    ("gpt2", "qwen2"),
    ("mistral-v3", "qwen2"),
    ("llama3", "gemma4"),
    ("llama2", "gpt-neox"),
    ("deepseek-llm", "phi3"),
    ("falcon", "smollm2"),
    ("qwen2", "smollm2"),
    ("gemma4", "deepseek-v3"),
    ("starcoder", "llama2"),
)
NFC_PAIRS = (("deepseek-v3", "qwen2"), ("llama3", "qwen2"), ("mistral-v1", "qwen2"))
"""The students turn NFD into NFC, the teachers read it as it is."""
KIND_PAIRS = (("deepseek-v3", "mistral-v1"), ("llama3", "gemma4"), (corpus.BYTES, corpus.BYTES))
UNKNOWN_PAIRS = (("mistral-v1", "gemma4"), (corpus.BYTES, corpus.BYTES))
"""Both have an id whose bytes nobody knows."""
NORMALISER_PAIRS = {
    "NFKC and white space by XLM-R": (("deepseek-v3", "xlm-r"), ("mistral-v1", "xlm-r")),
    "lower case by BERT": (("llama3", "bert"), ("mistral-v1", "minilm")),
    "NFC by Qwen": NFC_PAIRS,
}
LANGUAGES_WITH_MARKS = {"French": "fr", "Vietnamese": "vi", "Hindi": "hi"}

FOUND, WRONG = 0.99, 0.001
"""The targets of repetitive text: least found at their place, most at wrong places."""


@dataclass(frozen=True, slots=True)
class Part:
    """One kind of difference.

    Attributes:
        name: what is different.
        make: what the sides read.
        pairs: teachers and students.
        target: the lowest share of the existing pairs that must be found; None where none is set.
        most_wrong: the highest share of the pairs found that may be at wrong places; None where none is set.
        rewrite: what replaces the student's ids, if anything.
        rewrite_teacher: what replaces the teacher's.
        normalises: whether the students' tokenizers make of the teacher's text what these rows say of them.
        repeats: whether it is repetitive text, the targets of which hold for each tokenizer pair by itself.
    """

    name: str
    make: Callable[[], Sequence[Row]]
    pairs: Pairs
    target: float | None = None
    most_wrong: float | None = None
    rewrite: Rewrite | None = None
    rewrite_teacher: Rewrite | None = None
    normalises: bool = False
    repeats: bool = False

    def rows(self) -> Sequence[Row]:
        """What the sides read.

        Raises:
            RuntimeError: a student's tokenizer makes something else of the teacher's text.
        """
        rows = self.make()
        if self.normalises:
            for name in {student for _, student in self.pairs}:
                _refuse_unless_normalised(name, rows)
        return rows


def _refuse_unless_normalised(student: str, rows: Sequence[Row]) -> None:
    """The student shall read the teacher's text as these rows say."""
    side = corpus.tokenizer(student)
    originals = side.rows([row.teacher for row in rows])
    normalised = side.rows([row.student for row in rows])
    for row, one, other in zip(rows, originals, normalised, strict=True):
        if one.tolist() != other.tolist() or space_before(side, one, row.student) is None:
            said, expected = side.text_of(one).decode(errors="replace"), row.student
            raise RuntimeError(f"{student} reads {said[:200]!r}, not {expected[:200]!r}")


def parts(rows: int) -> Iterator[Part]:
    """All that is measured: `rows` of edited text, a fifth as many of a repetitive kind, a tenth of the rest.

    Rows of repetitive text of which more than a third differs are a part by themselves.
    """
    yield from of_real_text(rows, max(1, rows // 10))
    many, few = max(2, rows // 5), max(2, rows // 10)
    yield from of_repetitive_text(many)
    yield from of_normalised_text(few)
    large = functools.partial(repeats.large, many, few)
    yield Part("of any kind, more than a third changed", large, KIND_PAIRS, repeats=True)
    for name in kinds.UNDECIDED:
        yield Part(name, functools.partial(repeats.rows_of_kind, name, many), KIND_PAIRS, repeats=True)


def of_real_text(rows: int, few: int) -> Iterator[Part]:
    """Real text; `rows` of edited text, `few` of the rest."""
    rest = functools.partial(Part, pairs=TOKENIZER_PAIRS, target=0.95)
    for name, edits, target in (("one edit", 1, 0.9999), ("five edits", 5, 0.999)):
        yield Part(name, functools.partial(rows_with_edits, rows, edits, seed=edits), TOKENIZER_PAIRS, target)
    nfc = functools.partial(Part, pairs=NFC_PAIRS, target=0.95, normalises=True)
    for name, language in LANGUAGES_WITH_MARKS.items():
        yield nfc(f"NFD and NFC, {name}", functools.partial(rows_in_nfd, language, few))
    yield nfc("composed nukta and NFC, Hindi", functools.partial(rows_with_composed_nukta, few))
    yield rest("white space collapsed to one space", functools.partial(rows_of_source, few, r"\s+", " "))
    yield rest("indentation dropped", functools.partial(rows_of_source, few, r"(?m)^[ \t]+", ""))
    for side in ("teacher", "student"):
        thoughts = functools.partial(rows_with_thoughts, few, teacher_thinks=side == "teacher")
        yield Part(f"a <think> block, {side} only", thoughts, TOKENIZER_PAIRS)
    same = functools.partial(_same_passages, few)
    yield Part("20 % of the student's ids split", same, TOKENIZER_PAIRS, 1.0, rewrite=rewrites.split_ids)


def _same_passages(count: int) -> list[Row]:
    rng = random.Random(6)  # noqa: S311 - the same at every run is the point
    return [same_row(text) for _, text in corpus.passages(count, CHARACTERS, rng)]


_repetitive = functools.partial(Part, pairs=KIND_PAIRS, target=FOUND, most_wrong=WRONG, repeats=True)


def of_repetitive_text(count: int) -> Iterator[Part]:
    """So many rows of each kind, less those of which more than a third differs."""
    bytes_only = ((corpus.BYTES, corpus.BYTES),)
    for name in repeats.makers():
        yield _repetitive(name, functools.partial(_with_targets, name, count))
    same = functools.partial(_same_repeats, count)
    yield _repetitive("one id in ten dropped", same, rewrite=rewrites.ids_dropped)
    yield _repetitive("one id in ten unknown", same, rewrite=rewrites.ids_unknown)
    # No target: the one byte that stands for an unknown token equals nothing: where digits repeat a shift by
    # one agrees on more than the truth does.
    unknown = functools.partial(Part, rewrite=rewrites.ids_unknown, pairs=UNKNOWN_PAIRS, repeats=True)
    yield unknown("one id in ten unknown on both sides", same, rewrite_teacher=rewrites.other_ids_unknown)
    yield _repetitive("small cases", lambda: list(repeats.small_cases().values()), pairs=bytes_only)


def _with_targets(name: str, count: int) -> list[Row]:
    return [row for row in repeats.rows_of_kind(name, count) if not repeats.is_large(row)]


def _same_repeats(count: int) -> list[Row]:
    return [same_row(text) for text in repeats.unchanged(count)]


def of_normalised_text(count: int) -> Iterator[Part]:
    """So many rows each of lists, logs and tables, which the student's own tokenizer reads differently."""
    for normaliser, kind in itertools.product(repeats.NORMALISERS, repeats.NORMALISED):
        make = functools.partial(_normalised, kind, normaliser, count)
        yield _repetitive(f"{kind}, {normaliser}", make, pairs=NORMALISER_PAIRS[normaliser], normalises=True)


def _normalised(kind: str, normaliser: str, count: int) -> list[Row]:
    return [row for row in repeats.rows_normalised(kind, normaliser, count) if not repeats.is_large(row)]
