"""What goes wrong with tokenizers, row by row of the table of faults, on real ones where they show it.

What has a test elsewhere is not repeated:

    two ids, one byte string         test_tokenizers.py: 96 of them in Llama 2 and Phi-3, and who stands first
                                     test_vocabulary_map.py: every duplicate maps to the canonical id
    BOS, markers, literal text       cases/specials.json, by core and definition; test_loading.py and
                                     test_collator.py: literals of specials in a text stay text
    one text, two tokenizers         test_every_pair.py: every ordered pair of 14 equals the oracle
    normalisers                      test_proof.py and benches/differences.py: the large runs
    SentencePiece                    test_tokenizers.py: dummy prefix, byte fallback, every kind of model
    unk                              test_tokenizers.py: opaque in every family
    predictions without counterpart  test_vocabulary_map.py: padding and unknown text never map
    chat templates                   test_collator.py: messages go through the template of each side
    straddling tokens                test_collator.py: prompt and response are tokenised apart
    surrogates, NUL, BOM, U+2028     test_tokenizers.py: texts with them; a spelling that is no Unicode text
    slow and hostile tokenizers      test_tokenizers.py: slow ones are read or refused; hostile files
                                     test_decoder_chain.py: decoder steps in any order, and too many of them
    content hash                     test_vocabulary.py, test_tokenizers.py: one by two roads and everywhere;
                                     test_trainer.py: resuming with another tokenizer is an error
"""

from __future__ import annotations

import functools
import json
import unicodedata
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import tokenizers
import transformers

import corpus
import oracle
from conftest import needs_assets
from dskd import Aligner, Kind, PairKind, Vocabulary
from dskd.cli.loading import LoadedTokenizer, TokenizerError, load_tokenizer
from judge import Row, batch_of, by_dskd
from oracle import Change
from real_tokenizers import encode, folder_of, tokenizer_of, vocabulary_of
from sides import Side, in_lists

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from dskd import Alignment

BYTE_LEVEL = ("gpt2", "qwen2", "llama3")
SENTENCEPIECE = ("llama2", "mistral-v1", "phi3", "gemma4")


@functools.cache
def loaded(name: str) -> LoadedTokenizer:
    """With the roles that transformers names; literals of specials in a text are text."""
    return load_tokenizer(str(folder_of(name)))


@functools.cache
def pretrained(name: str) -> Any:
    return transformers.AutoTokenizer.from_pretrained(folder_of(name))


@functools.cache
def aligner_of(teacher: str, student: str) -> Aligner:
    return Aligner(loaded(teacher).vocabulary, loaded(student).vocabulary)


def special(name: str, role: str) -> int:
    """The lowest id with this role."""
    return min(token_id for token_id, roles in loaded(name).vocabulary.roles.items() if role in roles)


def pairs_of(found: Alignment, *kinds: PairKind) -> list[tuple[int, int]]:
    """The pairs of these kinds, or all."""
    pairs = in_lists(found).pairs
    return [(pair[0], pair[1]) for pair in pairs if not kinds or pair[2] in kinds]


def said(vocabulary: Vocabulary, ids: Sequence[int]) -> bytes:
    return b"".join(vocabulary.token_bytes(token_id) or b"" for token_id in ids)


# ---- Two ids, one byte string --------------------------------------------------------------------------


def doubled(vocabulary: Vocabulary) -> list[tuple[int, int]]:
    """Ids with bytes that are not canonical, and the canonical ids."""
    canonical = vocabulary.canonical_ids.tolist()
    return [(i, first) for i, first in enumerate(canonical) if first not in {-1, i}]


@pytest.mark.parametrize("name", ["llama2", "phi3"])
def test_a_byte_fallback_pairs_with_the_piece_of_the_same_byte(name: str) -> None:
    vocabulary = vocabulary_of(name)
    both = doubled(vocabulary)
    found = Aligner(vocabulary, vocabulary).align([[i] for i, _ in both], [[first] for _, first in both])
    assert found.pairs.kind.tolist() == [PairKind.EXACT] * 96


@pytest.mark.parametrize("name", ["llama2", "phi3"])
def test_text_spelled_in_byte_fallbacks_aligns_and_maps_as_text(name: str) -> None:
    vocabulary, other = vocabulary_of(name), vocabulary_of("gpt2")
    fallback = {vocabulary.token_bytes(i): i for i, _ in doubled(vocabulary)}
    text = b"x = {1: 'y'}"
    ids = [fallback[bytes([byte])] for byte in text]
    letters = [encode("gpt2", chr(byte))[0] for byte in text]
    aligner = Aligner(vocabulary, other)
    assert pairs_of(aligner.align(ids, letters)) == [(at, at) for at in range(len(text))]
    assert aligner.vocabulary_map.teacher_to_student[ids].tolist() == letters
    assert not set(aligner.vocabulary_map.student_to_teacher[letters].tolist()) & set(ids)


def test_the_sign_of_a_space_and_a_literal_g_with_a_dot_are_two_tokens() -> None:
    aligner = Aligner(vocabulary_of("llama2"), vocabulary_of("gpt2"))
    space, literal = (tokenizer_of("llama2").token_to_id(spelling) for spelling in ("▁", "Ġ"))
    (space_of_gpt2,) = encode("gpt2", " ")
    assert [aligner.teacher.token_bytes(i) for i in (space, literal)] == [b" ", "Ġ".encode()]
    assert len(aligner.align([literal], [space_of_gpt2]).pairs) == 0
    assert aligner.vocabulary_map.teacher_to_student[[space, literal]].tolist() == [space_of_gpt2, -1]


def test_text_with_a_literal_g_with_a_dot_is_common_text() -> None:
    found = aligner_of("llama2", "gpt2").align(
        *(loaded(name).encode("aĠ Ġ is") for name in ("llama2", "gpt2"))
    )
    assert found.coverage.teacher.tolist() == found.coverage.student.tolist() == [1.0]
    assert len(found.differences) == 0


# ---- Padding that is also an end -----------------------------------------------------------------------


PAD_IS_EOS = ["qwen2", "phi3", "smollm2", "deepseek-llm"]


def padded(name: str, text: str, count: int) -> tuple[list[int], list[bool]]:
    """The text and its end, so many times the padding token, and the mask."""
    tokenizer = pretrained(name)
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    ids = [*loaded(name).encode(text), tokenizer.eos_token_id]
    return ids + [tokenizer.pad_token_id] * count, [True] * len(ids) + [False] * count


@pytest.mark.parametrize("name", PAD_IS_EOS)
def test_padding_that_is_also_the_end_pairs_nowhere_but_at_the_end(name: str) -> None:
    (ids, mask), (other, other_mask) = padded(name, "One two.", 5), padded("phi3", "One two.", 9)
    found = aligner_of(name, "phi3").align(ids, other, teacher_mask=mask, student_mask=other_mask)
    assert pairs_of(found, PairKind.ROLE) == [(len(ids) - 6, len(other) - 10)]


@pytest.mark.parametrize("name", PAD_IS_EOS)
def test_without_a_mask_only_the_first_of_a_run_of_ends_pairs(name: str) -> None:
    (ids, _), (other, _) = padded(name, "One two.", 5), padded("phi3", "One two.", 9)
    found = aligner_of(name, "phi3").align(ids, other)
    assert pairs_of(found, PairKind.ROLE) == [(len(ids) - 6, len(other) - 10)]
    assert len(found.differences) == 0


# ---- Specials on one side, by other names, and as text -------------------------------------------------


def test_a_beginning_on_one_side_costs_nothing_and_is_at_no_edge_of_a_chunk() -> None:
    text = "Hello world, how are you?"
    ids, other = loaded("llama2").encode(text), loaded("gpt2").encode(text)
    aligner = aligner_of("llama2", "gpt2")
    without, found = aligner.align(ids, other), aligner.align([special("llama2", "bos"), *ids], other)
    assert pairs_of(found) == [(one + 1, two) for one, two in pairs_of(without)]
    assert found.chunks.teacher_start.tolist() == [at + 1 for at in without.chunks.teacher_start.tolist()]
    assert len(found.differences) == 0
    assert found.coverage.teacher.tolist() == [1.0]


@pytest.mark.parametrize(
    ("teacher", "student"), [("llama2", "llama3"), ("gemma4", "qwen2"), ("xlm-r", "gpt2")]
)
def test_different_markers_pair_by_role(teacher: str, student: str) -> None:
    names = (teacher, student)
    rows = [[special(name, "bos"), *loaded(name).encode("so it is"), special(name, "eos")] for name in names]
    ends = [loaded(name).spellings(row[-1:]) for name, row in zip(names, rows, strict=True)]
    assert ends[0] != ends[1]
    found = aligner_of(teacher, student).align(*rows)
    assert pairs_of(found, PairKind.ROLE) == [(0, 0), (len(rows[0]) - 1, len(rows[1]) - 1)]


def test_text_that_contains_a_marker_is_text_and_the_marker_behind_it_pairs() -> None:
    text = "HTML has no </s> and no <|endoftext|>, <s> is a tag and <pad> is nothing"
    ids, other = ([*loaded(name).encode(text), special(name, "eos")] for name in ("llama2", "gpt2"))
    found = aligner_of("llama2", "gpt2").align(ids, other)
    assert found.coverage.teacher.tolist() == found.coverage.student.tolist() == [1.0]
    assert pairs_of(found, PairKind.ROLE) == [(len(ids) - 1, len(other) - 1)]


# ---- Normalisers: only the tokens that hold a difference are lost --------------------------------------


def each_character(text: str, new: Callable[[str], str]) -> list[Change]:
    """What becomes of a text if each of its characters is replaced by itself."""
    return [Change(at, at + 1, new(char)) for at, char in enumerate(text) if new(char) != char]


def without_accents(char: str) -> str:
    return "".join(part for part in unicodedata.normalize("NFD", char) if not unicodedata.combining(part))


def read(*names: str) -> list[corpus.Tokenizer]:
    return [needs_assets(functools.partial(corpus.tokenizer, name)) for name in names]


def nothing_else_is_lost(teacher: str, student: str, text: str, changes: list[Change]) -> None:
    """All pairs that the oracle knows are found, no other, and they go on behind the last change.

    The student's own tokenizer makes the changes.
    """
    sides = read(teacher, student)
    row = Row(text, oracle.changed(text, changes), oracle.pieces(text, changes))
    assert sides[1].rows([row.teacher])[0].tolist() == sides[1].rows([row.student])[0].tolist()
    batch = batch_of(sides[0], sides[1], [row])
    assert batch.rows == [0]
    found = by_dskd(batch)
    assert (found.score.hit, found.score.found, found.false) == (found.score.exist, found.score.true, 0)
    aligned = Aligner(sides[0].vocabulary, sides[1].vocabulary).align(batch.teacher, batch.student)
    assert 0 < len(aligned.differences) <= len(changes)
    assert aligned.pairs.teacher[-1] == len(batch.teacher.values) - 1
    assert aligned.coverage.teacher[0] < 1


DECOMPOSED = {
    "French": "le café de la gare est très fermé, il faut aller à la maison",
    "Vietnamese": "một hai ba năm, người Việt Nam đi thăm thành phố Huế và biển",
    "German": "die Tür ist über Nacht offen geblieben, und niemand hat es gehört heute",
}


@pytest.mark.parametrize("language", list(DECOMPOSED))
@pytest.mark.parametrize("teacher", ["gpt2", "llama2"])
def test_a_side_that_composes_loses_only_the_characters_that_it_composes(teacher: str, language: str) -> None:
    composed = DECOMPOSED[language]
    changes = oracle.decompositions(composed)
    sides = read(teacher, "qwen2")
    decomposed = oracle.changed(composed, changes)
    assert sides[1].rows([decomposed])[0].tolist() == sides[1].rows([composed])[0].tolist()
    batch = batch_of(
        sides[0], sides[1], [Row(decomposed, composed, oracle.swapped(oracle.pieces(composed, changes)))]
    )
    found = by_dskd(batch)
    assert len(changes) > 2
    assert found.score.hit == found.score.exist > 2
    assert (found.score.found, found.false) == (found.score.true, 0)


def test_marks_in_another_order_lose_only_themselves() -> None:
    ordered = "q\u0323\u0307"  # as NFC has them
    text = f"before it {ordered} stands a word, and many words stand behind it"
    other = text.replace(ordered, "q\u0307\u0323")
    same = oracle.pieces(other, [Change(11, 13, "\u0323\u0307")])
    sides = read("llama3", "qwen2")
    assert sides[1].rows([other])[0].tolist() == sides[1].rows([text])[0].tolist()
    found = by_dskd(batch_of(sides[0], sides[1], [Row(other, text, same)]))
    assert found.score.hit == found.score.exist > 10
    assert found.false == 0
    assert found.score.found <= found.score.true + 1  # one of the marks may pair with itself


def test_a_side_that_makes_compatible_characters_plain_loses_only_those() -> None:
    text = "the ﬁrst café… is open, ① of the ＡＢＣ in Zürich ½ closed for the day"
    nothing_else_is_lost(
        "gpt2", "xlm-r", text, each_character(text, lambda c: unicodedata.normalize("NFKC", c))
    )


@pytest.mark.parametrize("student", ["bert", "minilm"])
def test_a_side_that_folds_case_and_strips_accents_loses_only_those_words(student: str) -> None:
    text = "the Café in ZÜRICH stays open until nine, and then the Opera begins with a naïve song"
    changes = each_character(text, lambda char: without_accents(char).lower())
    nothing_else_is_lost("gpt2", student, text, changes)


# ---- SentencePiece -------------------------------------------------------------------------------------


def spelled_pairs(teacher: str, student: str, text: str) -> list[bytes]:
    """The bytes of the student's token of each pair."""
    rows = [loaded(name).encode(text) for name in (teacher, student)]
    found = aligner_of(teacher, student).align(*rows)
    assert found.coverage.teacher.tolist() == found.coverage.student.tolist() == [1.0]
    assert len(found.differences) == 0
    tokens = [loaded(student).vocabulary.token_bytes(rows[1][two]) for _, two in pairs_of(found)]
    return [token for token in tokens if token]


@pytest.mark.parametrize("student", SENTENCEPIECE)
def test_a_first_word_pairs_whether_or_not_a_space_is_put_before_it(student: str) -> None:
    prefixed = loaded(student).vocabulary.dummy_prefix
    assert prefixed is (student != "gemma4")
    pairs = spelled_pairs("gpt2", student, "Hello world, it is the last day")
    first = b" Hello" if prefixed else b"Hello"
    assert pairs == [first, b" world", b",", b" it", b" is", b" the", b" last", b" day"]


@pytest.mark.parametrize("student", SENTENCEPIECE)
@pytest.mark.parametrize("teacher", BYTE_LEVEL)
def test_runs_of_spaces_and_lines_are_common_text(teacher: str, student: str) -> None:
    text = "def f(x):\n    if x:\n        return  x\n\n\n  y   =     1 \n"
    assert {b"def", b"x"} <= {token.strip() for token in spelled_pairs(teacher, student, text)}


@pytest.mark.parametrize("student", SENTENCEPIECE)
@pytest.mark.parametrize("teacher", BYTE_LEVEL)
def test_bytes_that_one_side_falls_back_to_are_common_text(teacher: str, student: str) -> None:
    text = "a 🦙🫠 and 𓀀 and ꙮ, then it goes on"
    assert spelled_pairs(teacher, student, text)[-3:] == [b" it", b" goes", b" on"]


# ---- Characters that are split -------------------------------------------------------------------------

SPLIT = {
    "a family": "👩‍👩‍👧‍👦🏽",
    "rare characters": "𠀀𪚥龘",
    "Tamil": "நிலைமை",
    "Burmese": "မြန်မာ",
    "Devanagari": "क्षत्रिय",
}


@pytest.mark.parametrize("student", ["llama2", "gemma4"])
@pytest.mark.parametrize("name", list(SPLIT))
def test_chunks_of_split_characters_have_the_same_bytes_on_both_sides(name: str, student: str) -> None:
    rows = [encode(side, SPLIT[name]) for side in ("gpt2", student)]
    teacher, other = vocabulary_of("gpt2"), vocabulary_of(student)
    found = Aligner(teacher, other).align(*rows)
    assert found.coverage.teacher.tolist() == found.coverage.student.tolist() == [1.0]
    chunks = in_lists(found).chunks
    for start, end, of_student, to_student in chunks:
        text = said(other, rows[1][of_student:to_student])
        assert said(teacher, rows[0][start:end]) == (text.removeprefix(b" ") if of_student == 0 else text)
    ends = np.cumsum([len(teacher.token_bytes(i) or b"") for i in rows[0]])
    assert found.chunks.teacher_end[-1] == len(rows[0])
    assert ends[-1] == len(SPLIT[name].encode())


@pytest.mark.parametrize("name", list(SPLIT))
def test_of_text_that_is_cut_inside_a_character_the_part_that_both_have_is_kept(name: str) -> None:
    text = f"so: {SPLIT[name]}"
    ids, other = encode("gpt2", text), encode("llama2", text)
    aligner = Aligner(vocabulary_of("gpt2"), vocabulary_of("llama2"))
    whole = in_lists(aligner.align(ids, other)).chunks
    for left in range(1, len(ids)):
        found = in_lists(aligner.align(ids[:left], other))
        assert found.chunks == [chunk for chunk in whole if chunk[1] <= left]
        assert len(found.differences) == 1
        assert found.differences[0][0] == max((chunk[1] for chunk in found.chunks), default=0)


# ---- Unknown tokens ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "unknown"), [("bert", "🦙"), ("minilm", "🦙"), ("xlm-r", "𓀀")])
def test_an_unknown_token_is_in_no_pair_is_counted_and_pairs_go_on_behind_it(name: str, unknown: str) -> None:
    text = f"the cat saw {unknown} and ran away from the house, then it came back to the garden"
    ids, other = encode("gpt2", text), encode(name, text)
    vocabulary = vocabulary_of(name)
    opaque = [at for at, token_id in enumerate(other) if vocabulary.kind(token_id) == Kind.OPAQUE]
    assert len(opaque) == 1
    found = Aligner(vocabulary_of("gpt2"), vocabulary).align(ids, other)
    assert found.counts.student_opaque.tolist() == [1]
    assert opaque[0] not in found.pairs.student
    assert in_lists(found).differences[0][2:] == (opaque[0], opaque[0] + 1)
    assert len(found.differences) == 1
    assert sum(two > opaque[0] for two in found.pairs.student.tolist()) >= 12
    assert pairs_of(found)[-1] == (len(ids) - 1, len(other) - 1)


@pytest.mark.parametrize("name", ["starcoder", "gpt-neox"])
def test_an_unknown_token_that_is_also_the_end_is_the_end(name: str) -> None:
    tokenizer = pretrained(name)
    assert tokenizer.unk_token_id == tokenizer.eos_token_id
    assert loaded(name).vocabulary.kind(tokenizer.unk_token_id) == Kind.SPECIAL
    ids, other = ([*loaded(side).encode("so it is"), special(side, "eos")] for side in (name, "llama2"))
    found = aligner_of(name, "llama2").align(ids, other)
    assert pairs_of(found, PairKind.ROLE) == [(len(ids) - 1, len(other) - 1)]
    assert found.counts.teacher_opaque.tolist() == [0]


# ---- Predictions ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("teacher", "student"), [("qwen2", "llama2"), ("llama3", "xlm-r"), ("gpt2", "bert")])
def test_a_prediction_without_a_counterpart_is_minus_one_and_never_unknown_or_the_end(
    teacher: str, student: str
) -> None:
    sides = [loaded(name).vocabulary for name in (teacher, student)]
    mapped = aligner_of(teacher, student).vocabulary_map.teacher_to_student
    known = {sides[1].token_bytes(i) for i in range(len(sides[1])) if sides[1].kind(i) < Kind.SPECIAL}
    text = [i for i in range(len(sides[0])) if sides[0].kind(i) < Kind.SPECIAL]
    lost = [i for i in text if sides[0].token_bytes(i) not in known or not sides[0].token_bytes(i)]
    assert len(lost) > 1000
    assert set(mapped[lost].tolist()) == {-1}
    assert not set(sides[1].roles) & set(mapped[text].tolist())


# ---- Chat templates ------------------------------------------------------------------------------------

TURNS = [
    {"role": "user", "content": "What is the capital of France?"},
    {"role": "assistant", "content": "The capital of France is Paris."},
    {"role": "user", "content": "And of Vietnam, por favor?"},
    {"role": "assistant", "content": "Hà Nội is the capital of Vietnam, with 8 million people."},
]
CHATS = ["qwen2", "smollm2", "phi3", "gemma4"]


def conversation(name: str, rendered: str, turns: Sequence[str]) -> Side:
    """A conversation in one's own ids, and the mask of what the assistant says."""
    encoded = pretrained(name)(rendered, add_special_tokens=False, return_offsets_mapping=True)
    spans, at = [], 0
    for turn in turns:
        at = rendered.index(turn, at)
        spans.append((at, at := at + len(turn)))
    mask = [
        any(start <= first and last <= end for start, end in spans) for first, last in encoded.offset_mapping
    ]
    return Side(loaded(name).vocabulary, list(encoded.input_ids), mask)


def chat(name: str, messages: Sequence[dict[str, Any]] = TURNS) -> Side:
    """The conversation in the template that comes with the tokenizer."""
    rendered = pretrained(name).apply_chat_template(list(messages), tokenize=False)
    return conversation(name, rendered, [turn["content"] for turn in messages if turn["role"] == "assistant"])


def align_masked(teacher: Side, student: Side) -> Alignment:
    aligner = Aligner(teacher.vocabulary, student.vocabulary)
    return aligner.align(teacher.ids, student.ids, teacher_mask=teacher.mask, student_mask=student.mask)


@pytest.mark.parametrize("student", CHATS)
@pytest.mark.parametrize("teacher", CHATS)
def test_what_the_assistant_says_aligns_whole_under_any_two_chat_templates(
    teacher: str, student: str
) -> None:
    sides = chat(teacher), chat(student)
    assert all(0 < sum(side.mask or []) < len(side.ids) for side in sides)
    found = align_masked(*sides)
    assert found.counts.segment_mismatch.tolist() == [0]
    assert found.coverage.teacher.tolist() == found.coverage.student.tolist() == [1.0]
    assert found.ratio[0] > 0.6
    for teacher_at, student_at in pairs_of(found):
        assert (sides[0].mask or [])[teacher_at]
        assert (sides[1].mask or [])[student_at]


@pytest.mark.parametrize(("teacher", "student"), [("qwen2", "phi3"), ("gemma4", "smollm2")])
def test_turns_pair_by_their_order_and_a_conversation_that_is_cut_is_counted(
    teacher: str, student: str
) -> None:
    whole, cut = chat(teacher), chat(student, TURNS[:2])
    found, first = align_masked(whole, cut), align_masked(chat(teacher, TURNS[:2]), cut)
    assert pairs_of(found) == pairs_of(first)
    assert found.counts.segment_mismatch.tolist() == [1]
    assert found.coverage.student.tolist() == [1.0]
    assert len(found.differences) == 1


def test_the_ends_of_turns_pair_where_a_role_says_what_they_are() -> None:
    ends = {"qwen2": "<|im_end|>", "phi3": "<|end|>"}
    sides = []
    for name, end in ends.items():
        side = chat(name, TURNS[:2])
        vocabulary = Vocabulary.from_tokenizer(pretrained(name), roles={end: {"eos"}})
        last = max(at for at, selected in enumerate(side.mask or []) if selected) + 1
        assert side.ids[last] == pretrained(name).convert_tokens_to_ids(end)
        sides.append(
            Side(vocabulary, side.ids, [*(side.mask or [])[:last], True, *(side.mask or [])[last + 1 :]])
        )
    found = align_masked(*sides)
    assert len(pairs_of(found, PairKind.ROLE)) == 1
    assert found.coverage.teacher.tolist() == [1.0]


# ---- One-sided thoughts, and tool calls ----------------------------------------------------------------

ANSWER = (
    "There are 12 eggs in the box, and she used 5 of them for the cake. That leaves 12 - 5 = 7 eggs.\n\n"
    "So the answer is **7**."
)
THOUGHT = (
    "<think>\nThe user asks about eggs. In the box there are 12 eggs. She used 5. I subtract: 12 - 5 = 7.\n"
    "</think>\n\n"
)


@pytest.mark.parametrize("student", ["gpt2", "llama2", "gemma4"])
@pytest.mark.parametrize("teacher", ["deepseek-v3", "qwen2"])
def test_a_thought_on_one_side_costs_the_thought_and_nothing_of_the_answer(
    teacher: str, student: str
) -> None:
    sides = read(teacher, student)
    same = oracle.pieces(THOUGHT + ANSWER, [Change(0, len(THOUGHT), "")])
    found = by_dskd(batch_of(sides[0], sides[1], [Row(THOUGHT + ANSWER, ANSWER, same)]))
    assert found.score.hit == found.score.exist > 20
    assert (found.score.found, found.false) == (found.score.true, 0)
    assert found.coverage is not None
    assert found.coverage[1] == 1


CALL = '{"name": "weather", "arguments": {"city": "Hà Nội", "unit": "celsius"}}'
RESULT = '{"temperature": 31}'
REPORT = "It is 31 degrees in Hà Nội right now, so take a hat with you."
WITH_TOOLS = {
    "qwen2": (
        """<|im_start|>user
How warm is it?<|im_end|>
<|im_start|>assistant
{call}<|im_end|>
<|im_start|>user
<tool_response>
{result}
</tool_response><|im_end|>
<|im_start|>assistant
{report}<|im_end|>
""",
        f"<tool_call>\n{CALL}\n</tool_call>",
    ),
    "mistral": (
        "<s>[INST] How warm is it? [/INST]\n{call}</s>[TOOL_RESULTS] {result}[/TOOL_RESULTS]\n{report}</s>",
        f"[TOOL_CALLS] [{CALL}]",
    ),
}
"""Templates written down by hand, and how each writes a call."""


def with_tools(name: str, template: str) -> Side:
    text, call = WITH_TOOLS[template]
    return conversation(name, text.format(call=call, result=RESULT, report=REPORT), [call, REPORT])


@pytest.mark.parametrize(("teacher", "student"), [("qwen2", "llama2"), ("smollm2", "phi3")])
def test_a_tool_call_in_two_formats_loses_what_is_around_it_and_no_later_turn(
    teacher: str, student: str
) -> None:
    sides = with_tools(teacher, "qwen2"), with_tools(student, "mistral")
    found = align_masked(*sides)
    assert found.counts.segment_mismatch.tolist() == [0]
    around = len(WITH_TOOLS["mistral"][1]) - len(CALL)
    lost = 1 - found.coverage.student[0]
    assert 0 < lost < 2 * around / len((CALL + REPORT).encode())
    assert_last_turn_is_whole(sides, found)


def with_tools_of_gemma() -> Side:
    """In the template that comes with it."""
    function = {"name": "weather", "arguments": {"city": "Hà Nội", "unit": "celsius"}}
    messages = [
        {"role": "user", "content": "How warm is it?"},
        {"role": "assistant", "tool_calls": [{"id": "0", "type": "function", "function": function}]},
        {"role": "tool", "tool_call_id": "0", "name": "weather", "content": RESULT},
        {"role": "assistant", "content": REPORT},
    ]
    rendered = pretrained("gemma4").apply_chat_template(messages, tokenize=False)
    start, end = rendered.index("<|tool_call>"), rendered.index("<tool_call|>") + len("<tool_call|>")
    return conversation("gemma4", rendered, [rendered[start:end], REPORT])


@pytest.mark.parametrize("teacher", ["qwen2", "smollm2"])
def test_a_tool_call_that_is_written_in_another_way_costs_no_later_turn(teacher: str) -> None:
    sides = with_tools(teacher, "qwen2"), with_tools_of_gemma()
    found = align_masked(*sides)
    assert found.counts.segment_mismatch.tolist() == [0]
    assert 0 < found.coverage.student[0] < 1
    assert_last_turn_is_whole(sides, found)


def assert_last_turn_is_whole(sides: tuple[Side, Side], found: Alignment) -> None:
    report = align_masked(*(Side(side.vocabulary, side.ids, last_turn(side)) for side in sides))
    assert report.coverage.teacher.tolist() == report.coverage.student.tolist() == [1.0]
    assert set(pairs_of(report)) <= set(pairs_of(found))


def last_turn(side: Side) -> list[bool]:
    mask = side.mask or []
    last = max(at for at, selected in enumerate(mask) if selected)
    first = max(at for at in range(last) if not mask[at]) + 1
    return [first <= at <= last for at in range(len(mask))]


# ---- Prompt and response in one token ------------------------------------------------------------------


@pytest.mark.parametrize("student", ["llama2", "gemma4"])
@pytest.mark.parametrize("teacher", ["gpt2", "qwen2"])
def test_a_token_that_straddles_prompt_and_response_leaves_the_mask_and_the_rest_aligns(
    teacher: str, student: str
) -> None:
    prompt, response = "Nobody knew, it was un", "believable, and yet it happened on the last day"
    whole = tokenizer_of(teacher).encode(prompt + response, add_special_tokens=False)
    mask = [start >= len(prompt) for start, _ in whole.offsets]
    straddling = [at for at, (start, end) in enumerate(whole.offsets) if start < len(prompt) < end]
    assert len(straddling) == 1
    assert not mask[straddling[0]]
    ids = encode(student, response)
    found = Aligner(vocabulary_of(teacher), vocabulary_of(student)).align(whole.ids, ids, teacher_mask=mask)
    assert found.coverage.teacher.tolist() == [1.0]
    assert pairs_of(found) == [(len(whole.ids) - at, len(ids) - at) for at in range(9, 0, -1)]
    (lost,) = in_lists(found).differences
    assert said(vocabulary_of(student), ids[lost[2] : lost[3]]).strip() == b"believable"


# ---- Text that is hardly text --------------------------------------------------------------------------

HARDLY_TEXT = {
    "NUL": "a\0b \0\0 end",
    "a byte order mark": "\ufeffa word\ufeff and more",
    "separators of lines": "one\u2028two\u2029three\x85four\x0b five\x0c end",
    "directions and joiners": "a\u200e\u202eb\u200d \u2060end",
    "no character at all": "\uffff \U0010ffff \ue000 end",
    "a replacement": "\ufffd\ufffd end",
}


@pytest.mark.parametrize("student", ["llama2", "gemma4", "qwen2"])
@pytest.mark.parametrize("name", list(HARDLY_TEXT))
def test_strange_characters_are_plain_bytes(name: str, student: str) -> None:
    rows = [encode(side, HARDLY_TEXT[name]) for side in ("gpt2", student)]
    found = Aligner(vocabulary_of("gpt2"), vocabulary_of(student)).align(*rows)
    assert said(vocabulary_of("gpt2"), rows[0]) == HARDLY_TEXT[name].encode()
    assert found.coverage.teacher.tolist() == found.coverage.student.tolist() == [1.0]
    assert len(found.differences) == 0


def test_bytes_that_are_no_unicode_text_align_like_any_other() -> None:
    surrogate, cut = b"\xed\xa0\x80", b"\xf0\x9f"
    teacher = Vocabulary.from_bytes([surrogate, cut, b"\xff", b"\0"])
    student = Vocabulary.from_bytes([b"\xed", b"\xa0\x80", cut, b"\xff\0"])
    found = in_lists(Aligner(teacher, student).align([0, 1, 2, 3], [0, 1, 2, 3]))
    assert found.chunks == [(0, 1, 0, 2), (1, 2, 2, 3), (2, 4, 3, 4)]
    assert found.pairs == [(1, 2, PairKind.EXACT)]


def test_a_lone_surrogate_in_a_literal_of_a_role_is_refused() -> None:
    with pytest.raises(ValueError, match=r"ud800"):
        Vocabulary.from_bytes([b"a"], roles={"\ud800": {"eos"}})
    with pytest.raises(ValueError, match=r"ud800"):
        Vocabulary.from_bytes([b"a"], roles={0: {"\ud800"}})


# ---- Tokenizers that are not to be trusted -------------------------------------------------------------


def test_code_that_comes_with_a_tokenizer_is_not_run(tmp_path: Path) -> None:
    (tmp_path / "evil.py").write_text(
        f"open({str(tmp_path / 'ran')!r}, 'w').close()\nclass Evil: pass\n", "utf-8"
    )
    config = {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["evil.Evil", None]}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(TokenizerError, match="transformers cannot read the tokenizer of"):
        load_tokenizer(str(tmp_path))
    assert not (tmp_path / "ran").exists()


# ---- Content hash --------------------------------------------------------------------------------------


def test_a_real_tokenizer_that_has_changed_has_another_content_hash() -> None:
    path = folder_of("qwen2") / "tokenizer.json"
    contents = json.loads(path.read_text(encoding="utf-8"))
    vocabulary = contents["model"]["vocab"]
    one, other = "Ġmeaning", "Ġanswer"
    vocabulary[one], vocabulary[other] = vocabulary[other], vocabulary[one]
    swapped = Vocabulary.from_tokenizer(tokenizers.Tokenizer.from_str(json.dumps(contents)))
    original = vocabulary_of("qwen2")
    assert len(swapped) == len(original)
    hashes = {
        original.content_hash,
        swapped.content_hash,
        Vocabulary.from_tokenizer(tokenizer_of("qwen2"), size=152_064).content_hash,
        Vocabulary.from_tokenizer(tokenizer_of("qwen2"), roles={"<|im_end|>": {"eos"}}).content_hash,
    }
    assert len(hashes) == 4
