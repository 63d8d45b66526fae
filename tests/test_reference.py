"""The definition and the compiled core against named cases and values worked out by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dskd import Kind, PairKind, Vocabulary, reference
from sides import Found, Side, align, by_reference, in_lists, vocabulary_of

TABLES = Path(__file__).parent / "cases"
KEYS = {
    *("name", "teacher", "student", "teacher_mask", "student_mask", "dummy_prefix"),
    *("pairs", "chunks", "differences", "tokens", "bytes", "chunk_bytes", "opaque", "segment_mismatch"),
}
ENCLOSES = "encloses"


def _cases() -> list[dict[str, Any]]:
    cases = [case for table in sorted(TABLES.glob("*.json")) for case in json.loads(table.read_text("utf-8"))]
    for case in cases:
        assert set(case) <= KEYS, f"{case['name']}: unknown keys {set(case) - KEYS}"
    return cases


CASES = _cases()
EVERY_CASE = pytest.mark.parametrize("case", CASES, ids=[case["name"] for case in CASES])


def _side(case: dict[str, Any], side: str) -> Side:
    """Tokens that are written alike are one id; `{"id": n}` is an id that the vocabulary need not have.

    `dummy_prefix` names the sides whose tokenizers put one.
    """
    ids: list[int] = []
    spellings: list[str] = []
    tokens: list[bytes | None] = []
    roles: dict[int | str, set[str]] = {}
    for token in case[side]:
        if isinstance(token, dict) and "id" in token:
            ids.append(token["id"])
            continue
        spelling = json.dumps(token)
        if spelling not in spellings:
            spellings.append(spelling)
            tokens.append(_bytes_of(token))
            if isinstance(token, dict) and "special" in token:
                roles[len(tokens) - 1] = set(token["special"])
        ids.append(spellings.index(spelling))
    user_defined = {index for index, spelling in enumerate(spellings) if "user_defined" in spelling}
    prefix = side in case.get("dummy_prefix", [])
    return Side(
        vocabulary_of(tokens, roles, user_defined, dummy_prefix=prefix), ids, case.get(f"{side}_mask")
    )


def _bytes_of(token: str | dict[str, Any]) -> bytes | None:
    if isinstance(token, str):
        return token.encode()
    if "user_defined" in token:
        return str(token["user_defined"]).encode()
    return bytes.fromhex(token["hex"]) if "hex" in token else None


def _expected(case: dict[str, Any]) -> Found:
    kinds = [kind for _, _, kind in case["pairs"]]
    opaque = case.get("opaque", [0, 0])
    return Found(
        pairs=[(teacher, student, PairKind[kind]) for teacher, student, kind in case["pairs"]],
        chunks=[tuple(chunk[:4]) for chunk in case["chunks"]],
        encloses=[ENCLOSES in chunk for chunk in case["chunks"]],
        differences=[tuple(difference) for difference in case["differences"]],
        counts={
            "teacher_tokens": case["tokens"][0],
            "student_tokens": case["tokens"][1],
            "teacher_bytes": case["bytes"][0],
            "student_bytes": case["bytes"][1],
            "chunk_bytes": case["chunk_bytes"],
            "teacher_opaque": opaque[0],
            "student_opaque": opaque[1],
            "exact": kinds.count("EXACT"),
            "role": kinds.count("ROLE"),
            "space": kinds.count("SPACE"),
            "segment_mismatch": case.get("segment_mismatch", 0),
        },
    )


def test_the_table_of_cases_is_not_empty_and_names_are_unique() -> None:
    names = [case["name"] for case in CASES]
    assert len(names) > 100
    assert len(set(names)) == len(names)


@EVERY_CASE
def test_the_reference_finds_what_was_worked_out_by_hand(case: dict[str, Any]) -> None:
    assert by_reference(_side(case, "teacher"), _side(case, "student")) == _expected(case)


@EVERY_CASE
def test_the_core_finds_what_was_worked_out_by_hand(case: dict[str, Any]) -> None:
    assert in_lists(align(_side(case, "teacher"), _side(case, "student"))) == _expected(case)


@EVERY_CASE
def test_coverage_and_ratio_follow_from_the_counts(case: dict[str, Any]) -> None:
    found = align(_side(case, "teacher"), _side(case, "student"))
    in_pairs = sum(kind != "ROLE" for _, _, kind in case["pairs"])
    assert found.coverage.teacher.tolist() == [_quotient(case["chunk_bytes"], case["bytes"][0])]
    assert found.coverage.student.tolist() == [_quotient(case["chunk_bytes"], case["bytes"][1])]
    assert found.ratio.tolist() == [_quotient(in_pairs, case["tokens"][1])]


def _quotient(part: int, whole: int) -> float:
    return part / whole if whole else 0.0


# ---- spans ---------------------------------------------------------------------------------------------

TEXT = Vocabulary.from_bytes([b"Hello", b" world", b"\xe4\xbd", b"\xa0", None, b"", None], roles={4: {"eos"}})
PREFIXED = Vocabulary.from_bytes(
    [b" Hello", b" ", b"  a", b"b", None, b"", None], roles={4: {"bos"}}, dummy_prefix=True
)

SPANS = [
    (TEXT, [0, 1], [(0, 5), (5, 11)]),
    (TEXT, [2, 3, 0], [(0, 2), (2, 3), (3, 8)]),
    (TEXT, [], []),
    (TEXT, [4, 0, 4, 5, 1, 4], [(0, 0), (0, 5), (5, 5), (5, 5), (5, 11), (11, 11)]),
    # Opaque: unknown, and later spans count known bytes only.
    (TEXT, [0, 6, 1, 6], [(0, 5), (-1, -1), (5, 11), (-1, -1)]),
    # Without the flag no space is dropped.
    (TEXT, [1, 1], [(0, 6), (6, 12)]),
    # With it one space goes, at the start of the text and only there.
    (PREFIXED, [0, 0], [(0, 5), (5, 11)]),
    (PREFIXED, [1, 0], [(0, 0), (0, 6)]),
    (PREFIXED, [1, 1, 3], [(0, 0), (0, 1), (1, 2)]),
    (PREFIXED, [2, 2], [(0, 2), (2, 5)]),
    (PREFIXED, [3, 0], [(0, 1), (1, 7)]),
    # Tokens without bytes are not yet the text.
    (PREFIXED, [4, 5, 0], [(0, 0), (0, 0), (0, 5)]),
]


@pytest.mark.parametrize(("vocabulary", "ids", "expected"), SPANS)
def test_reference_spans_are_those_worked_out_by_hand(
    vocabulary: Vocabulary, ids: list[int], expected: list[tuple[int, int]]
) -> None:
    assert reference.spans(vocabulary, ids) == expected


@pytest.mark.parametrize(("vocabulary", "ids", "expected"), SPANS)
def test_vocabulary_spans_are_those_worked_out_by_hand(
    vocabulary: Vocabulary, ids: list[int], expected: list[tuple[int, int]]
) -> None:
    spans = vocabulary.spans(ids)
    assert spans.dtype == np.int64
    assert spans.shape == (len(ids), 2)
    assert [tuple(span) for span in spans.tolist()] == expected


def test_an_opaque_token_is_text_that_is_unknown_so_no_space_behind_it_is_dropped() -> None:
    assert reference.spans(PREFIXED, [6, 0]) == [(-1, -1), (0, 6)]
    assert PREFIXED.spans([6, 0]).tolist() == [[-1, -1], [0, 6]]


def test_at_the_start_alignment_knows_no_flag_the_dummy_prefix_is_the_one_space() -> None:
    student = Vocabulary.from_bytes([b"Hello"])
    row = reference.align(PREFIXED, student, [0], [0])
    assert row.pairs == [(0, 0, PairKind.SPACE)]


# ---- token bytes ---------------------------------------------------------------------------------------

BYTE_LEVEL = [("byte_level", "", "")]
SENTENCEPIECE = [("replace", "▁", " "), ("byte_fallback", "", "")]


def test_the_byte_level_alphabet_names_every_byte_once() -> None:
    alphabet = reference.byte_level_alphabet()
    assert sorted(alphabet.values()) == list(range(256))
    assert all(len(character) == 1 for character in alphabet)


@pytest.mark.parametrize(
    ("character", "byte"),
    [
        *[("!", 0x21), ("A", 0x41), ("~", 0x7E)],
        *[("¡", 0xA1), ("¬", 0xAC), ("®", 0xAE), ("ÿ", 0xFF)],
        # The 68 others in order: 00..20, 7F..A0, AD.
        *[("Ā", 0x00), ("ĉ", 0x09), ("Ċ", 0x0A), ("č", 0x0D), ("Ġ", 0x20)],
        *[("ġ", 0x7F), ("Ģ", 0x80), ("ł", 0xA0), ("Ń", 0xAD)],
    ],
)
def test_the_byte_level_alphabet_is_gpt2s(character: str, byte: int) -> None:
    assert reference.byte_level_alphabet()[character] == byte


@pytest.mark.parametrize(
    ("spelling", "kind", "steps", "expected"),
    [
        ("Ġthe", Kind.NORMAL, BYTE_LEVEL, b" the"),
        ("ĊĊ", Kind.NORMAL, BYTE_LEVEL, b"\n\n"),
        ("ä½ł", Kind.NORMAL, BYTE_LEVEL, "你".encode()),
        ("ä½", Kind.NORMAL, BYTE_LEVEL, b"\xe4\xbd"),
        ("", Kind.NORMAL, BYTE_LEVEL, b""),
        # `▁` is not in the table: the token is its UTF-8.
        ("▁the", Kind.NORMAL, BYTE_LEVEL, "▁the".encode()),
        # An added token is its content and does not go through the table.
        ("Ġx", Kind.USER_DEFINED, BYTE_LEVEL, "Ġx".encode()),
        ("<tool>", Kind.USER_DEFINED, BYTE_LEVEL, b"<tool>"),
        ("▁the", Kind.NORMAL, SENTENCEPIECE, b" the"),
        ("▁▁", Kind.NORMAL, SENTENCEPIECE, b"  "),
        ("Ġ", Kind.NORMAL, SENTENCEPIECE, "Ġ".encode()),
        ("你", Kind.NORMAL, SENTENCEPIECE, "你".encode()),
        ("<0xE2>", Kind.BYTE, SENTENCEPIECE, b"\xe2"),
        ("<0x0A>", Kind.NORMAL, SENTENCEPIECE, b"\n"),
        ("<0x0A>", Kind.USER_DEFINED, SENTENCEPIECE, b"<0x0A>"),
        ("a<0x0A>", Kind.NORMAL, SENTENCEPIECE, b"a<0x0A>"),
        ("▁x", Kind.USER_DEFINED, SENTENCEPIECE, b" x"),
    ],
)
def test_token_bytes_are_what_the_decoder_adds_to_the_text(
    spelling: str, kind: Kind, steps: list[tuple[str, str, str]], expected: bytes
) -> None:
    assert reference.token_bytes(spelling, kind, steps) == expected


# ---- the published rule, faults included -----------------------------------------------------------------


def test_published_eta_pairs_equal_tokens_behind_equal_histories() -> None:
    assert reference.published_eta(["Hello", "Ġworld"], ["▁Hello", "▁world"]) == [(0, 0), (1, 1)]


def test_published_eta_walks_on_where_one_history_is_shorter() -> None:
    # ab | c against a | b | c: unequal at first, both step; then the student catches up, then c pairs.
    assert reference.published_eta(["ab", "c"], ["a", "b", "c"]) == [(1, 2)]
    assert reference.published_eta(["a", "b", "c"], ["ab", "c"]) == [(2, 1)]


def test_published_eta_pairs_ends_of_sequence_that_are_spelled_differently() -> None:
    teacher, student = ["a", "<|im_end|>"], ["a", "</s>"]
    assert reference.published_eta(teacher, student) == [(0, 0)]
    assert reference.published_eta(teacher, student, teacher_eos="<|im_end|>", student_eos="</s>") == [
        (0, 0),
        (1, 1),
    ]


def test_published_eta_does_not_pair_ends_behind_different_histories() -> None:
    assert reference.published_eta(["a", "E"], ["b", "F"], teacher_eos="E", student_eos="F") == []


def test_published_eta_stops_where_either_side_ends() -> None:
    assert reference.published_eta(["a", "b"], ["a"]) == [(0, 0)]
    assert reference.published_eta([], ["a"]) == []


def test_published_eta_loses_the_rest_of_the_row_behind_a_newline_that_is_spelled_differently() -> None:
    teacher = ["a", "Ċ", "b", "Ġc", "d"]
    student = ["▁a", "<0x0A>", "b", "▁c", "d"]
    assert reference.published_eta(teacher, student) == [(0, 0)]


def test_published_eta_pairs_runs_of_spaces_of_different_length() -> None:
    # Both spell "" once the spaces are deleted, though one has a space and the other four.
    assert reference.published_eta(["a", "Ġ", "b"], ["▁a", "▁▁▁▁", "b"]) == [(0, 0), (1, 1), (2, 2)]


def test_published_eta_pairs_a_word_with_and_without_its_space() -> None:
    assert reference.published_eta(["a", "Ġb"], ["a", "b"]) == [(0, 0), (1, 1)]


def test_published_eta_misses_a_token_behind_a_space_token_of_one_side() -> None:
    # "" against b: histories equal, tokens different, so both step and b is behind the student.
    assert reference.published_eta(["a", "ĠĠ", "b"], ["▁a", "b"]) == [(0, 0)]


def test_published_eta_merges_a_literal_marker_with_the_space() -> None:
    assert reference.published_eta(["Ġ"], ["▁"]) == [(0, 0)]
