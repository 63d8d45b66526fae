"""Real tokenizers of every family: the bytes of an id are what it adds to the text; specials have roles."""

from __future__ import annotations

import base64
import functools
import io
import json
import os
import subprocess
import sys
import unicodedata
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pytest
import sentencepiece
import tiktoken
import tokenizers
import transformers
from sentencepiece import sentencepiece_model_pb2
from tokenizers import decoders, models

import assets
import dskd
from conftest import needs_assets
from dskd import Kind, Vocabulary, reference
from dskd.reading import read_tokenizer
from real_tokenizers import encode, folder_of, tokenizer_of, vocabulary_of

if TYPE_CHECKING:
    from collections.abc import Callable

BYTE_LEVEL = [name for name, source in assets.TOKENIZERS.items() if source.family == "byte-level BPE"]
SENTENCEPIECE = [name for name, source in assets.TOKENIZERS.items() if source.family == "SentencePiece BPE"]
EXACT = BYTE_LEVEL + SENTENCEPIECE  # families that give every text back
LOSSY = [name for name, source in assets.TOKENIZERS.items() if source.family in {"Unigram", "WordPiece"}]
NORMALISES_TO_NFC = {"qwen2", "gpt-neox"}

TEXTS = [
    "▁ as text",
    "Hello world, it's 2026!",
    " leading space,  two spaces, trailing space ",
    "def f(x):\n\tif x:\n        return {'é': \"ß\"}\r\n",
    "你好，世界。今天天气怎么样？",
    "नमस्ते दुनिया · สวัสดี · مرحبا بالعالم · Việt Nam",
    "👩‍👩‍👧‍👦 🇫🇷 🙃 \u200b\ufeff\u2028 end",
    "Ġ and Ċ and <0x0A> and ## as text",
]


def text_of(vocabulary: Vocabulary, ids: list[int]) -> bytes:
    """The bytes of all ids, less the dummy prefix."""
    text = b"".join(vocabulary.token_bytes(token_id) or b"" for token_id in ids)
    return text.removeprefix(b" ") if vocabulary.dummy_prefix else text


def sentencepiece_model(**options: Any) -> sentencepiece.SentencePieceProcessor:
    """A real model, trained here on a little text."""
    model = io.BytesIO()
    sentences = iter([*TEXTS, "the cat sat on the mat with the other cats"] * 20)
    defaults = {"vocab_size": 420, "model_type": "bpe", "byte_fallback": True, "character_coverage": 0.98}
    quiet = {"minloglevel": 2, "hard_vocab_limit": False}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=sentences, model_writer=model, **{**defaults, **quiet, **options}
    )
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


@pytest.mark.parametrize("name", EXACT)
def test_the_bytes_of_the_ids_are_the_text(name: str) -> None:
    vocabulary = vocabulary_of(name)
    multilingual = needs_assets(lambda: assets.prose("multilingual"))
    for text in [*TEXTS, *(multilingual[start : start + 1_000] for start in range(0, 60_000, 1_000))]:
        # SentencePiece itself reads a literal ▁ as a space.
        expected = text.replace("▁", " ") if name in SENTENCEPIECE else text
        expected = unicodedata.normalize("NFC", expected) if name in NORMALISES_TO_NFC else expected
        ids = encode(name, text)
        assert text_of(vocabulary, ids) == expected.encode(), text
        assert vocabulary.spans(ids)[-1, 1] == len(expected.encode())


@pytest.mark.parametrize("name", EXACT + LOSSY)
def test_the_bytes_of_an_id_are_what_it_adds_behind_text(name: str) -> None:
    """Every id whose bytes are whole characters, so that `decode` loses nothing."""
    vocabulary, tokenizer = vocabulary_of(name), tokenizer_of(name)
    before = encode(name, "the")[-1:]
    text, checked = tokenizer.decode(before), 0
    for token_id in range(len(vocabulary)):
        token = vocabulary.token_bytes(token_id)
        # An added token is its content; the byte-level decoder would read an added ø as the byte F8.
        added = name in BYTE_LEVEL and vocabulary.kind(token_id) == Kind.USER_DEFINED
        if token is not None and _is_utf8(token) and not added:
            assert tokenizer.decode([*before, token_id]) == text + token.decode(), token_id
            checked += 1
    assert checked > 0.95 * len(vocabulary)


@pytest.mark.parametrize("name", EXACT + LOSSY)
def test_decoding_equals_its_definition_on_every_real_tokenizer(name: str) -> None:
    pieces = read_tokenizer(tokenizer_of(name))
    vocabulary = vocabulary_of(name)
    assert pieces.steps is not None
    for token_id in [*range(300), *range(300, len(vocabulary), 29)]:
        spelling = pieces.spellings[token_id]
        if vocabulary.kind(token_id) < Kind.SPECIAL:
            assert isinstance(spelling, str)
            expected = reference.token_bytes(spelling, pieces.kinds[token_id], pieces.steps)
            assert vocabulary.token_bytes(token_id) == expected, spelling


@pytest.mark.parametrize("name", EXACT + LOSSY)
def test_spans_of_any_ids_are_those_of_the_decoded_text(name: str) -> None:
    """Ids in an order that no encoder writes; all are whole characters, so that `decode` loses nothing."""
    vocabulary, tokenizer = vocabulary_of(name), tokenizer_of(name)
    rng = np.random.default_rng(0)
    text = {Kind.NORMAL, Kind.UNUSED}
    whole = [token_id for token_id in range(len(vocabulary)) if vocabulary.kind(token_id) in text]
    whole = [token_id for token_id in whole if _is_utf8(vocabulary.token_bytes(token_id) or b"\xff")]
    # Of a first token WordPiece keeps the ##, and Metaspace drops more than one ▁.
    first = encode(name, "the") if name in LOSSY else []
    for _ in range(200):
        ids = [*first, *rng.choice(whole, size=6).tolist()]
        decoded = tokenizer.decode(ids)
        assert text_of(vocabulary, ids).decode() == decoded, ids
        assert vocabulary.spans(ids)[-1, 1] == len(decoded.encode())


def _is_utf8(data: bytes) -> bool:
    return data.decode(errors="replace").encode() == data


def assert_same_text(one: Vocabulary, other: Vocabulary) -> None:
    """Whether both read the same bytes wherever both see text; roles are more where more is known."""
    ids = [i for i in range(len(one)) if max(one.kind(i), other.kind(i)) < Kind.SPECIAL]
    assert len(one) == len(other)
    assert len(ids) > 0.9 * len(one)
    assert [one.token_bytes(i) for i in ids] == [other.token_bytes(i) for i in ids]
    assert one.dummy_prefix == other.dummy_prefix


def test_the_same_vocabulary_by_two_roads_has_one_content_hash() -> None:
    loaded = transformers.AutoTokenizer.from_pretrained(folder_of("mistral-v1"))
    assert Vocabulary.from_tokenizer(loaded).content_hash == vocabulary_of("mistral-v1").content_hash


@pytest.mark.parametrize(
    "name", ["llama2", "phi3", "gemma4", "smollm2", "llama3", "mistral-v3", "xlm-r", "bert", "minilm"]
)
def test_transformers_and_the_plain_tokenizer_read_the_same_bytes(name: str) -> None:
    loaded = transformers.AutoTokenizer.from_pretrained(folder_of(name))
    assert_same_text(Vocabulary.from_tokenizer(loaded), vocabulary_of(name))


@pytest.mark.parametrize("name", ["llama2", "phi3"])
def test_tokenizer_json_and_sentencepiece_model_read_the_same_bytes(name: str) -> None:
    processor = sentencepiece.SentencePieceProcessor(model_file=str(folder_of(name) / "tokenizer.model"))
    assert_same_text(Vocabulary.from_tokenizer(processor), vocabulary_of(name))


@pytest.mark.parametrize("name", ["llama2", "phi3"])
def test_96_byte_strings_have_two_ids_and_the_piece_stands_before_the_byte(name: str) -> None:
    vocabulary = vocabulary_of(name)
    text = [token_id for token_id in range(len(vocabulary)) if vocabulary.token_bytes(token_id)]
    doubled = [token_id for token_id in text if vocabulary.canonical_ids[token_id] != token_id]
    assert len(doubled) == 96
    assert {vocabulary.kind(token_id) for token_id in doubled} == {Kind.BYTE}
    canonical = vocabulary.canonical_ids[doubled].tolist()
    assert {vocabulary.kind(token_id) for token_id in canonical} == {Kind.NORMAL}


def test_the_dummy_prefix_is_read_from_the_decoder() -> None:
    assert {
        name: vocabulary_of(name).dummy_prefix for name in ("llama2", "mistral-v1", "gemma4", "gpt2")
    } == {
        "llama2": True,
        "mistral-v1": True,
        "gemma4": False,
        "gpt2": False,
    }


def test_one_id_has_all_the_roles_that_transformers_names() -> None:
    gpt2 = Vocabulary.from_tokenizer(transformers.AutoTokenizer.from_pretrained(folder_of("gpt2")))
    assert {"bos", "eos", "<|endoftext|>"} <= set(gpt2.roles[50256])
    assert gpt2.kind(50256) == Kind.SPECIAL
    llama = Vocabulary.from_tokenizer(transformers.AutoTokenizer.from_pretrained(folder_of("llama2")))
    assert llama.roles == {0: {"unk"}, 1: {"bos", "<s>"}, 2: {"eos", "</s>"}}
    assert llama.kind(0) == Kind.OPAQUE


def test_sentencepiece_names_its_roles_and_its_controls_are_special() -> None:
    vocabulary = vocabulary_of("mistral-v3")
    assert vocabulary.roles[1] == {"bos", "<s>"}
    assert vocabulary.roles[3] == {"[INST]"}
    assert vocabulary.kind(0) == Kind.OPAQUE


def test_added_text_is_its_content() -> None:
    vocabulary = vocabulary_of("deepseek-v3")
    user = tokenizer_of("deepseek-v3").token_to_id("<｜User｜>")
    assert vocabulary.kind(user) == Kind.USER_DEFINED
    assert vocabulary.token_bytes(user) == "<｜User｜>".encode()


def test_a_role_can_be_added_by_literal() -> None:
    tokenizer = tokenizer_of("deepseek-v3")
    end = "<｜end▁of▁sentence｜>"
    vocabulary = Vocabulary.from_tokenizer(tokenizer, roles={end: {"eos"}})
    assert vocabulary.roles[tokenizer.token_to_id(end)] == {"eos", end}


def test_slots_that_only_the_model_has_are_opaque() -> None:
    vocabulary = Vocabulary.from_tokenizer(tokenizer_of("gpt2"), size=50_304)
    assert len(vocabulary) == 50_304
    assert vocabulary.kind(50_300) == Kind.OPAQUE


def test_a_trained_sentencepiece_model_with_every_kind_of_piece() -> None:
    processor = sentencepiece_model(user_defined_symbols=["<sep>", "▁▁"], control_symbols=["<ctl>"])
    vocabulary = Vocabulary.from_tokenizer(processor)
    ids = {piece: processor.piece_to_id(piece) for piece in ("<sep>", "▁▁", "<ctl>", "<0xE2>", "<unk>")}
    assert vocabulary.token_bytes(ids["<sep>"]) == b"<sep>"
    assert vocabulary.token_bytes(ids["▁▁"]) == b"  "
    assert vocabulary.token_bytes(ids["<0xE2>"]) == b"\xe2"
    assert vocabulary.token_bytes(ids["<ctl>"]) == b""
    kinds = {piece: vocabulary.kind(token_id) for piece, token_id in ids.items()}
    assert kinds == {
        "<sep>": Kind.USER_DEFINED,
        "▁▁": Kind.USER_DEFINED,
        "<ctl>": Kind.SPECIAL,
        "<0xE2>": Kind.BYTE,
        "<unk>": Kind.OPAQUE,
    }


@pytest.mark.parametrize("prefix", [True, False])
def test_a_trained_sentencepiece_model_says_whether_it_has_a_dummy_prefix(prefix: bool) -> None:
    processor = sentencepiece_model(add_dummy_prefix=prefix, remove_extra_whitespaces=False)
    vocabulary = Vocabulary.from_tokenizer(processor)
    assert vocabulary.dummy_prefix is prefix
    text = "Hello world, it is 2026!"
    assert text_of(vocabulary, processor.encode(text)) == text.encode()


@pytest.mark.parametrize(
    "options",
    [
        {"model_type": "unigram"},
        {"model_type": "unigram", "byte_fallback": False},
        {"model_type": "unigram", "add_dummy_prefix": False},
        {"model_type": "unigram", "add_dummy_prefix": False, "remove_extra_whitespaces": False},
        {"byte_fallback": False},
        {"byte_fallback": False, "user_defined_symbols": ["<0x41>", "▁▁"]},
        {"model_type": "char", "byte_fallback": False},
        {"model_type": "word", "byte_fallback": False},
    ],
    ids=str,
)
def test_every_kind_of_sentencepiece_model_adds_what_its_own_decoder_adds(options: dict[str, Any]) -> None:
    processor = sentencepiece_model(**options)
    vocabulary = Vocabulary.from_tokenizer(processor)
    before = processor.encode("the")[-1:]
    whole = [i for i in range(len(vocabulary)) if _is_utf8(vocabulary.token_bytes(i) or b"\xff")]
    assert len(whole) > 40
    for token_id in whole:
        added = (vocabulary.token_bytes(token_id) or b"").decode()
        assert processor.decode([*before, token_id]) == processor.decode(before) + added
    for text in TEXTS[1:4]:
        ids = processor.encode(text)
        if processor.unk_id() not in ids:
            assert text_of(vocabulary, ids).decode() == processor.decode(ids)


def test_an_unknown_token_is_opaque_in_every_family() -> None:
    unknown = {"xlm-r": "<unk>", "bert": "[UNK]", "minilm": "[UNK]", "llama2": "<unk>"}
    for name, literal in unknown.items():
        token_id = tokenizer_of(name).token_to_id(literal)
        assert vocabulary_of(name).kind(token_id) == Kind.OPAQUE
        assert vocabulary_of(name).roles[token_id] == {"unk"}


def test_word_pieces_have_the_space_of_their_word_and_are_cleaned_up_one_by_one() -> None:
    tokenizer = tokenizers.Tokenizer(
        models.WordPiece({"don": 0, "##'": 1, "##t": 2, ".": 3, "n't": 4, "##.": 5, "[UNK]": 6})
    )
    found = {}
    for cleanup in (True, False):
        tokenizer.decoder = decoders.WordPiece(cleanup=cleanup)
        vocabulary = Vocabulary.from_tokenizer(tokenizer)
        found[cleanup] = [vocabulary.token_bytes(token_id) for token_id in range(6)]
        assert vocabulary.dummy_prefix
    assert found == {
        True: [b" don", b"'", b"t", b".", b"n't", b"."],
        False: [b" don", b"'", b"t", b" .", b" n't", b"."],
    }


def test_whole_words_are_joined_by_spaces() -> None:
    tokenizer = tokenizers.Tokenizer(models.WordLevel({"the": 0, "cat": 1, "[UNK]": 2}, "[UNK]"))
    vocabulary = Vocabulary.from_tokenizer(tokenizer)
    assert [vocabulary.token_bytes(token_id) for token_id in range(3)] == [b" the", b" cat", None]
    assert text_of(vocabulary, [0, 1]).decode() == tokenizer.decode([0, 1]) == "the cat"


@pytest.mark.parametrize("scheme", ["always", "first", "never"])
def test_metaspace_says_whether_it_drops_the_first_space(scheme: str) -> None:
    tokenizer = tokenizers.Tokenizer(models.Unigram([("<unk>", 0.0), ("▁a", -1.0), ("b▁c", -2.0)], unk_id=0))
    tokenizer.decoder = decoders.Metaspace(prepend_scheme=scheme)
    vocabulary = Vocabulary.from_tokenizer(tokenizer)
    assert [vocabulary.token_bytes(token_id) for token_id in range(3)] == [None, b" a", b"b c"]
    assert vocabulary.dummy_prefix is (scheme != "never")
    assert text_of(vocabulary, [1, 2, 1]).decode() == tokenizer.decode([1, 2, 1])


def test_a_unigram_model_falls_back_to_bytes() -> None:
    pieces = [("<unk>", 0.0), ("▁a", -1.0), ("<0xC3>", -2.0), ("<0xA9>", -2.0)]
    tokenizer = tokenizers.Tokenizer(models.Unigram(pieces, unk_id=0, byte_fallback=True))
    tokenizer.decoder = decoders.Sequence([decoders.Metaspace(), decoders.ByteFallback(), decoders.Fuse()])
    vocabulary = Vocabulary.from_tokenizer(tokenizer)
    assert [vocabulary.token_bytes(token_id) for token_id in range(4)] == [None, b" a", b"\xc3", b"\xa9"]
    assert vocabulary.kind(2) == Kind.BYTE
    assert text_of(vocabulary, [1, 2, 3]).decode() == tokenizer.decode([1, 2, 3]) == "aé"


def test_of_a_piece_that_a_unigram_model_has_twice_both_ids_have_the_bytes() -> None:
    tokenizer = tokenizers.Tokenizer(models.Unigram([("<unk>", 0.0), ("a", -1.0), ("a", -2.0)], unk_id=0))
    tokenizer.decoder = decoders.Metaspace()
    vocabulary = Vocabulary.from_tokenizer(tokenizer)
    assert [vocabulary.token_bytes(token_id) for token_id in (1, 2)] == [b"a", b"a"]
    assert vocabulary.canonical_ids.tolist() == [-1, 1, 1]


@pytest.mark.parametrize(
    "name", ["T5", "XLMRoberta", "MBart", "DebertaV2", "BigBird", "XLNet", "Camembert", "Llama", "Gemma"]
)
def test_what_transformers_makes_of_a_sentencepiece_model_adds_what_its_decoder_adds(
    name: str, tmp_path: Path
) -> None:
    options = {} if name in {"Llama", "Gemma"} else {"model_type": "unigram", "byte_fallback": False}
    model = sentencepiece_model(**options).serialized_model_proto()
    for file in ("spiece.model", "tokenizer.model", "sentencepiece.bpe.model", "spm.model"):
        (tmp_path / file).write_bytes(model)
    tokenizer = getattr(transformers, f"{name}Tokenizer").from_pretrained(tmp_path)
    vocabulary, decode = Vocabulary.from_tokenizer(tokenizer), tokenizer.backend_tokenizer.decode
    text = "the cats it's 2026! Hello"
    ids = tokenizer(text, add_special_tokens=False).input_ids
    assert text_of(vocabulary, ids) == text.encode()
    for token_id in range(len(vocabulary)):
        if vocabulary.kind(token_id) in {Kind.NORMAL, Kind.USER_DEFINED}:
            added = (vocabulary.token_bytes(token_id) or b"").decode()
            assert decode([*ids, token_id]) == text + added


# ---- What is listed as special and decoded as text --------------------------------------------------------

ORDINARY_SYMBOLS = ["<sep>", "<pad>", "<cls>", "<mask>", "<eop>", "<eod>", ".", "("]
"""As in XLNet's spiece.model: control symbols by their looks, and punctuation."""


def assert_text_is_what_is_not_skipped(tokenizer: Any) -> None:
    """Whether every id has bytes if and only if `decode(skip_special_tokens=True)` prints it behind text.

    Specials that are named for their use are special in any case, and unknown tokens opaque.
    """
    vocabulary = Vocabulary.from_tokenizer(tokenizer)
    before = tokenizer("a cat", add_special_tokens=False).input_ids
    text = tokenizer.decode(before, skip_special_tokens=True)
    named = {tokenizer.convert_tokens_to_ids(token) for token in tokenizer.special_tokens_map.values()}
    for token_id in set(range(len(vocabulary))) - named:
        printed = tokenizer.decode([*before, token_id], skip_special_tokens=True)
        token = vocabulary.token_bytes(token_id)
        if token is not None and _is_utf8(token):
            assert printed == text + token.decode()


@pytest.mark.parametrize("name", ["XLNet", "T5", "XLMRoberta", "DebertaV2", "Llama", "Reformer"])
def test_a_user_defined_piece_that_transformers_lists_as_special_is_what_its_decoder_says(
    name: str, tmp_path: Path
) -> None:
    options = {} if name == "Llama" else {"model_type": "unigram", "byte_fallback": False}
    model = sentencepiece_model(user_defined_symbols=ORDINARY_SYMBOLS, control_symbols=["<ctl>"], **options)
    for file in ("spiece.model", "tokenizer.model", "sentencepiece.bpe.model", "spm.model"):
        (tmp_path / file).write_bytes(model.serialized_model_proto())
    tokenizer = getattr(transformers, f"{name}Tokenizer").from_pretrained(tmp_path)
    stop = tokenizer.convert_tokens_to_ids(".")
    assert stop in tokenizer.all_special_ids
    assert_text_is_what_is_not_skipped(tokenizer)
    skipped = tokenizer.decode([stop], skip_special_tokens=True) == ""
    assert Vocabulary.from_tokenizer(tokenizer).token_bytes(stop) == (b"" if skipped else b".")
    assert skipped is (name == "Reformer")


def test_the_full_stops_of_xlnet_align_with_those_of_others(tmp_path: Path) -> None:
    model = sentencepiece_model(
        user_defined_symbols=ORDINARY_SYMBOLS, model_type="unigram", byte_fallback=False
    )
    (tmp_path / "spiece.model").write_bytes(model.serialized_model_proto())
    tokenizer: Any = transformers.XLNetTokenizer.from_pretrained(tmp_path)
    other = Vocabulary.from_bytes([b" the", b" cat", b"."])
    ids = tokenizer("the cat. the cat.", add_special_tokens=False).input_ids
    aligned = dskd.Aligner(tokenizer, other).align(ids, [0, 1, 2, 0, 1, 2])
    assert aligned.coverage.teacher.tolist() == aligned.coverage.student.tolist() == [1.0]
    assert len(aligned.differences) == 0


def byte_level_of_transformers(*added: tokenizers.AddedToken, **options: Any) -> Any:
    """A byte-level BPE that has `the`, with these added tokens."""
    vocabulary = {**reference.byte_level_alphabet(), "th": 256, "the": 257}
    tokenizer = tokenizers.Tokenizer(models.BPE(vocabulary, [("t", "h"), ("th", "e")]))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens(list(added))
    fast: Any = transformers.PreTrainedTokenizerFast
    return fast(tokenizer_object=tokenizer, **options)


ADDED_AS_TEXT = tokenizers.AddedToken("<x>", special=False, normalized=False)


def test_ordinary_text_among_the_further_special_tokens_is_special_where_the_decoder_skips_it() -> None:
    tokenizer = byte_level_of_transformers(ADDED_AS_TEXT, extra_special_tokens=[".", "the", "<x>"])
    assert {".", "the", "<x>"} <= set(tokenizer.all_special_tokens)
    assert_text_is_what_is_not_skipped(tokenizer)
    vocabulary = Vocabulary.from_tokenizer(tokenizer)
    found = {literal: tokenizer.convert_tokens_to_ids(literal) for literal in (".", "the", "<x>")}
    assert {literal: vocabulary.token_bytes(token_id) for literal, token_id in found.items()} == {
        ".": b"",
        "the": b"",
        "<x>": b"<x>",
    }


def test_a_line_break_that_is_added_as_special_is_special_and_that_of_the_vocabulary_text() -> None:
    tokenizer = byte_level_of_transformers()
    tokenizer.add_special_tokens({"extra_special_tokens": ["\n"]})
    vocabulary = Vocabulary.from_tokenizer(tokenizer)
    assert vocabulary.token_bytes(tokenizer.convert_tokens_to_ids("\n")) == b""
    assert vocabulary.token_bytes(tokenizer.convert_tokens_to_ids("Ċ")) == b"\n"
    assert_text_is_what_is_not_skipped(tokenizer)


def test_what_is_named_for_its_use_is_special_though_the_decoder_prints_it() -> None:
    tokenizer = byte_level_of_transformers(ADDED_AS_TEXT)
    tokenizer.eos_token, tokenizer.pad_token = "<x>", "!"
    ends = [tokenizer.eos_token_id, tokenizer.pad_token_id]
    assert tokenizer.decode(ends, skip_special_tokens=True) == "<x>!"
    vocabulary = Vocabulary.from_tokenizer(tokenizer)
    assert [vocabulary.roles[token_id] for token_id in ends] == [{"eos", "<x>"}, {"pad"}]


# ---- Slow tokenizers of transformers ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("slow") / "tokenizer.model"
    path.write_bytes(sentencepiece_model(model_type="unigram").serialized_model_proto())
    return str(path)


@pytest.mark.parametrize(
    "name",
    ["PLBartTokenizer", "SiglipTokenizer", "BertGenerationTokenizer", "GPTSw3Tokenizer", "SpeechT5Tokenizer"],
)
def test_a_slow_tokenizer_around_a_sentencepiece_model_is_read_through_it(name: str, model_file: str) -> None:
    """Whatever ids it gives to the pieces: PLBart's are one more than the model's."""
    tokenizer = getattr(transformers, name)(vocab_file=model_file)
    tokenizer.add_tokens(["<extra>"])
    vocabulary = Vocabulary.from_tokenizer(tokenizer)
    text = "hello world it is the cat"
    ids = tokenizer(text, add_special_tokens=False).input_ids
    assert text_of(vocabulary, ids) == text.encode()
    assert vocabulary.token_bytes(tokenizer.convert_tokens_to_ids("<extra>")) == b"<extra>"
    assert vocabulary.token_bytes(tokenizer.convert_tokens_to_ids("<0xE2>")) == b"\xe2"
    assert vocabulary.kind(tokenizer.unk_token_id) == Kind.OPAQUE
    assert "eos" in vocabulary.roles[tokenizer.eos_token_id]


def test_a_slow_tokenizer_without_a_model_to_read_is_refused_by_its_class() -> None:
    message = r"cannot read a transformers\..*ByT5Tokenizer: it decodes in Python, .*Vocabulary\.from_bytes"
    with pytest.raises(TypeError, match=message):
        Vocabulary.from_tokenizer(transformers.ByT5Tokenizer())


def test_a_spelling_that_is_no_unicode_text_is_refused_by_its_id(model_file: str) -> None:
    tokenizer: Any = transformers.SiglipTokenizer(vocab_file=model_file)
    vocabulary = {**tokenizer.get_vocab(), "\ud800": 700}
    tokenizer.get_vocab = lambda: vocabulary
    with pytest.raises(ValueError, match=r"token 700 is spelled '\\ud800', which is not Unicode text"):
        Vocabulary.from_tokenizer(tokenizer)


# ---- tiktoken ---------------------------------------------------------------------------------------------


@functools.cache
def encoding_of(name: str) -> tiktoken.Encoding:
    folder = folder_of(name)
    special = json.loads((folder / "special_tokens.json").read_text(encoding="utf-8"))
    lines = (line.split() for line in (folder / f"{name}.tiktoken").read_bytes().splitlines())
    ranks = {base64.b64decode(token): int(rank) for token, rank in lines}
    # Where a text is split says nothing of the bytes of its tokens.
    return tiktoken.Encoding(name, pat_str=r"\s?\S+|\s+", mergeable_ranks=ranks, special_tokens=special)


@pytest.mark.parametrize("name", ["cl100k", "o200k"])
def test_the_bytes_of_tiktokens_ids_are_the_text(name: str) -> None:
    encoding = encoding_of(name)
    vocabulary = Vocabulary.from_tokenizer(encoding)
    for text in TEXTS:
        ids = encoding.encode_ordinary(text)
        assert text_of(vocabulary, ids) == text.encode()
        assert vocabulary.spans(ids)[-1, 1] == len(text.encode())


@pytest.mark.parametrize("name", ["cl100k", "o200k"])
def test_tiktokens_gaps_are_opaque_and_its_specials_have_roles(name: str) -> None:
    encoding = encoding_of(name)
    vocabulary = Vocabulary.from_tokenizer(encoding)
    special = {encoding.encode_single_token(literal): literal for literal in encoding.special_tokens_set}
    assert len(vocabulary) == encoding.n_vocab
    assert vocabulary.roles == {
        token_id: {literal, "eos"} if token_id == encoding.eot_token else {literal}
        for token_id, literal in special.items()
    }
    opaque = {i for i in range(len(vocabulary)) if vocabulary.kind(i) == Kind.OPAQUE}
    gaps = {"cl100k": {100256, *range(100261, 100276)}, "o200k": {199998, *range(200000, 200018)}}
    assert opaque == gaps[name]


# ---- What cannot be read exactly --------------------------------------------------------------------------


def test_a_sentencepiece_model_with_spaces_behind_its_words_is_refused() -> None:
    with pytest.raises(ValueError, match=r"treat_whitespace_as_suffix.* depends on what follows"):
        Vocabulary.from_tokenizer(sentencepiece_model(treat_whitespace_as_suffix=True))


def test_a_sentencepiece_model_with_a_denormalizer_is_refused() -> None:
    model = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined] # made at run time
    model.ParseFromString(sentencepiece_model().serialized_model_proto())
    model.denormalizer_spec.precompiled_charsmap = model.normalizer_spec.precompiled_charsmap
    processor = sentencepiece.SentencePieceProcessor(model_proto=model.SerializeToString())
    with pytest.raises(ValueError, match="denormalizer cannot be read exactly"):
        Vocabulary.from_tokenizer(processor)


@pytest.mark.parametrize("protobuf", ["upb", "python"])
def test_a_piece_that_is_no_utf8_is_named(protobuf: str, tmp_path: Path) -> None:
    model = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined] # made at run time
    model.ParseFromString(sentencepiece_model().serialized_model_proto())
    model.pieces[300].piece = "QQQQ"
    path = tmp_path / "broken.model"
    path.write_bytes(model.SerializeToString().replace(b"QQQQ", b"Q\xff\xfeQ"))
    code = (
        "import sys, sentencepiece, dskd\n"
        "processor = sentencepiece.SentencePieceProcessor(model_file=sys.argv[1])\n"
        "try: dskd.Vocabulary.from_tokenizer(processor)\n"
        "except ValueError as error: print(error)"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, str(path)],
        env={**os.environ, "PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION": protobuf},
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.startswith(r"piece 300 of the SentencePiece model is b'Q\xff\xfeQ', which is not UTF-8")


def bpe(**options: Any) -> Any:
    return models.BPE({"a": 0, "b": 1}, [], **options)


@pytest.mark.parametrize(
    ("model", "decoder", "message"),
    [
        (bpe(), None, "this BPE tokenizer has no decoder"),
        (models.WordPiece({"a": 0}), None, "this WordPiece tokenizer has no decoder"),
        (models.Unigram([("a", 0.0)]), None, "this Unigram tokenizer has no decoder"),
        (
            bpe(end_of_word_suffix="</w>"),
            decoders.ByteLevel(),
            "BPE with the word suffix '</w>' cannot be read exactly",
        ),
        (
            bpe(continuing_subword_prefix="@@"),
            decoders.ByteLevel(),
            "BPE marks what goes on with a word by '@@', and its decoder does not take that away",
        ),
        (
            models.WordPiece({"a": 0}, continuing_subword_prefix="##"),
            decoders.WordPiece("@@"),
            "WordPiece marks what goes on with a word by '##'",
        ),
        (
            bpe(byte_fallback=True),
            decoders.Metaspace(),
            "BPE falls back to bytes, and its decoder has no step",
        ),
        (
            models.Unigram([("a", 0.0)], byte_fallback=True),
            decoders.Metaspace(),
            "Unigram falls back to bytes, and its decoder has no step",
        ),
    ],
)
def test_a_decoder_that_cannot_be_read_exactly_is_refused(model: Any, decoder: Any, message: str) -> None:
    tokenizer = tokenizers.Tokenizer(model)
    if decoder is not None:
        tokenizer.decoder = decoder
    with pytest.raises(ValueError, match=message):
        Vocabulary.from_tokenizer(tokenizer)


class Shouting:
    """A decoder made in Python."""

    def decode_chain(self, tokens: list[str]) -> list[str]:
        return [token.upper() for token in tokens]


def test_a_decoder_made_in_python_is_refused() -> None:
    tokenizer = tokenizers.Tokenizer(bpe())
    tokenizer.decoder = decoders.Decoder.custom(Shouting())
    with pytest.raises(ValueError, match="is made in Python and cannot be read"):
        Vocabulary.from_tokenizer(tokenizer)


# ---- A hostile tokenizer.json -----------------------------------------------------------------------------


def byte_level(vocabulary: dict[str, int]) -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer(models.BPE(vocabulary, []))
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def test_an_id_beyond_the_limit_is_refused_before_memory_is_asked_for() -> None:
    with pytest.raises(
        ValueError, match="id 4294967295, and a vocabulary may have 4194304 entries; ids end at"
    ):
        Vocabulary.from_tokenizer(byte_level({"a": 2**32 - 1}))


def test_one_id_with_two_tokens_is_refused() -> None:
    with pytest.raises(ValueError, match="gives id 0 to two tokens, 'a' and 'b'"):
        Vocabulary.from_tokenizer(byte_level({"a": 0, "b": 0}))


def test_an_added_token_at_the_id_of_another_is_refused() -> None:
    tokenizer = byte_level({"a": 0, "b": 2})  # tokenizers counts two and gives the next token id 2
    tokenizer.add_tokens(["x"])
    with pytest.raises(ValueError, match="gives id 2 to two tokens, 'b' and 'x'"):
        Vocabulary.from_tokenizer(tokenizer)


def test_a_token_beyond_the_limit_is_refused() -> None:
    with pytest.raises(ValueError, match="token 0 has 70000 bytes, and 65535 are allowed"):
        Vocabulary.from_tokenizer(byte_level({"a" * 70_000: 0}))


def test_a_decoder_that_doubles_a_token_again_and_again_is_refused_before_memory_is_asked_for() -> None:
    tokenizer = byte_level({"a": 0})
    tokenizer.decoder = decoders.Sequence([decoders.Replace("a", "aa")] * 64)
    with pytest.raises(
        ValueError, match="decoder makes 128 bytes of token 0, and 68 are allowed: four times"
    ):
        Vocabulary.from_tokenizer(tokenizer)


def test_a_decoder_that_makes_much_of_each_token_is_refused() -> None:
    tokenizer = byte_level({f"a{number}": number for number in range(20_000)})
    tokenizer.decoder = decoders.Replace("a", "x" * 65_000)
    with pytest.raises(
        ValueError, match="decoder makes 65001 bytes of token 0, and 72 are allowed: four times"
    ):
        Vocabulary.from_tokenizer(tokenizer)


@pytest.mark.parametrize(
    "tokenizer",
    [
        lambda: byte_level({"a": 262_144}),
        lambda: cast("Any", transformers).PreTrainedTokenizerFast(
            tokenizer_object=byte_level({"a": 262_144})
        ),
        lambda: tiktoken.Encoding(
            "x", pat_str=".", mergeable_ranks={b"a": 0}, special_tokens={"<e>": 262_144}
        ),
    ],
    ids=["tokenizers", "transformers", "tiktoken"],
)
def test_an_id_far_beyond_the_number_of_tokens_is_refused(tokenizer: Callable[[], Any]) -> None:
    message = (
        r"defines id 262144: 262145 slots for \d+ tokens?, and 262144 are allowed \(4 a token, and 262144 in "
        r"any case\); if the ids are right, give Vocabulary\.from_bytes a list"
    )
    with pytest.raises(ValueError, match=message):
        Vocabulary.from_tokenizer(tokenizer())


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc, and limits the address space")
@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("tokenizer largest", "defines id 16777215"),
        ("tokenizer allowed", "size=262144"),
        ("tekken largest", "has default_vocab_size 16777215"),
        ("tekken allowed", "size=262143"),
        ("tiktoken largest", "id 16777215; ids end at"),
        ("tiktoken allowed", "size=262144"),
        ("rwkv largest", "id 16777215; ids end at"),
        ("rwkv allowed", "size=262144"),
        ("size largest", "size=16777215"),
        ("size allowed", "size=262143"),
        ("steps", "20000 steps"),
        ("growth", "makes 65001 bytes of token 0"),
    ],
)
def test_little_memory_is_enough_to_read_or_refuse_a_small_input(
    name: str, answer: str, tmp_path: Path
) -> None:
    script = Path(__file__).with_name("hostile.py")
    command = [sys.executable, str(script), name, str(tmp_path)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert answer in run.stdout


def test_an_id_below_the_size_of_real_vocabularies_may_stand_alone() -> None:
    assert len(Vocabulary.from_tokenizer(byte_level({"a": 262_143}))) == 262_144


def test_a_slot_that_no_token_has_is_opaque() -> None:
    vocabulary = Vocabulary.from_tokenizer(byte_level({"a": 0, "b": 2}))
    assert [vocabulary.token_bytes(token_id) for token_id in range(3)] == [b"a", None, b"b"]


def test_an_empty_tokenizer_is_an_empty_vocabulary() -> None:
    assert len(Vocabulary.from_tokenizer(byte_level({}))) == 0


@pytest.mark.parametrize("name", LOSSY)
def test_what_a_lossy_tokenizer_keeps_aligns_with_byte_level_bpe(name: str) -> None:
    text = "the cat sat on the mat, with four other cats. and then?"
    aligner = dskd.Aligner(vocabulary_of(name), vocabulary_of("gpt2"))
    aligned = aligner.align(encode(name, text), encode("gpt2", text))
    assert aligned.coverage.student.tolist() == [1.0]
    assert aligned.ratio[0] > 0.9
    assert len(aligned.differences) == 0


def test_the_one_liner_notices_that_the_specials_have_changed() -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder_of("gpt2"))
    ids = [tokenizer.eos_token_id]
    assert len(dskd.align(ids, ids, teacher=tokenizer, student=tokenizer).pairs) == 1
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.bos_token = tokenizer.eos_token = tokenizer.unk_token = None
    assert len(dskd.align(ids, ids, teacher=tokenizer, student=tokenizer).pairs) == 0
