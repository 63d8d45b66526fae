"""A thousand real rows, byte-level BPE to SentencePiece or back: all pairs and chunks equal the reference."""

from __future__ import annotations

import functools

import pytest
import sentencepiece
import tokenizers

import assets
from conftest import needs_assets
from dskd import Aligner, reference
from sides import Side, by_reference, in_lists, tuples

ROWS = 500


@functools.cache
def texts() -> list[str]:
    return needs_assets(lambda: assets.instruction_rows(ROWS) + assets.source_rows(ROWS))


@functools.cache
def byte_level() -> tokenizers.Tokenizer:
    folder = needs_assets(lambda: assets.tokenizer("deepseek-v3"))
    return tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))


@functools.cache
def sentencepiece_bpe() -> sentencepiece.SentencePieceProcessor:
    folder = needs_assets(lambda: assets.tokenizer("mistral-v1"))
    return sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))


@functools.cache
def tokenized(family: str) -> list[list[int]]:
    if family == "byte-level":
        return [row.ids for row in byte_level().encode_batch(texts(), add_special_tokens=False)]
    return [list(row) for row in sentencepiece_bpe().encode(texts())]


def aligner(teacher: str) -> Aligner:
    sides = (byte_level(), sentencepiece_bpe())
    return Aligner(*sides) if teacher == "byte-level" else Aligner(*reversed(sides))


@pytest.mark.parametrize(
    ("teacher", "student"), [("byte-level", "sentencepiece"), ("sentencepiece", "byte-level")]
)
def test_core_equals_reference_on_real_rows(teacher: str, student: str) -> None:
    """Each row one way: every other one goes there, the rest back."""
    those = slice(teacher == "sentencepiece", None, 2)
    teacher_ids, student_ids = tokenized(teacher)[those], tokenized(student)[those]
    core = aligner(teacher)
    found = core.align(teacher_ids, student_ids)
    assert len(found) == ROWS
    for index, row in enumerate(found):
        sides = Side(core.teacher, teacher_ids[index]), Side(core.student, student_ids[index])
        assert in_lists(row) == by_reference(*sides)
        assert len(row.differences) == 0


@pytest.mark.parametrize(
    ("teacher", "student"), [("byte-level", "sentencepiece"), ("sentencepiece", "byte-level")]
)
def test_overlaps_equal_reference_on_real_rows(teacher: str, student: str) -> None:
    teacher_ids, student_ids = tokenized(teacher)[::10], tokenized(student)[::10]
    core = aligner(teacher)
    found = core.align(teacher_ids, student_ids)
    sides = found.overlaps("teacher"), found.overlaps("student")
    for index, ids in enumerate(zip(teacher_ids, student_ids, strict=True)):
        row = reference.align(core.teacher, core.student, *ids)
        for side, expected in zip(
            sides, reference.overlaps(core.teacher, core.student, *ids, row), strict=True
        ):
            of_row = slice(*side.offsets[index : index + 2])
            assert tuples(side.start[of_row], side.end[of_row]) == expected


def test_all_text_of_real_rows_is_common_text() -> None:
    total = aligner("byte-level").align(tokenized("byte-level"), tokenized("sentencepiece")).counts.total()
    assert total.coverage.teacher[0] == total.coverage.student[0] == 1
    assert total.space[0] > 0
