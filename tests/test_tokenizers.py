"""Real tokenizers of the two families: the bytes of their ids are the text, and their specials have roles."""

from __future__ import annotations

import functools
import io
import unicodedata
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import sentencepiece
import tokenizers
import transformers
from tokenizers import decoders, models

import assets
import dskd
from conftest import needs_assets
from dskd import Kind, Vocabulary

if TYPE_CHECKING:
    from pathlib import Path

BYTE_LEVEL = [name for name, source in assets.TOKENIZERS.items() if source.family == "byte-level BPE"]
SENTENCEPIECE = [name for name, source in assets.TOKENIZERS.items() if source.family == "SentencePiece BPE"]
SUPPORTED = BYTE_LEVEL + SENTENCEPIECE
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


@functools.cache
def folder_of(name: str) -> Path:
    return needs_assets(lambda: assets.tokenizer(name))


@functools.cache
def tokenizer_of(name: str) -> Any:
    """The tokenizer in its own library: tokenizers where there is a tokenizer.json, else SentencePiece."""
    folder = folder_of(name)
    if (folder / "tokenizer.json").exists():
        return tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    return sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))


@functools.cache
def vocabulary_of(name: str) -> Vocabulary:
    return Vocabulary.from_tokenizer(tokenizer_of(name))


def encode(name: str, text: str) -> list[int]:
    tokenizer = tokenizer_of(name)
    if isinstance(tokenizer, tokenizers.Tokenizer):
        return list(tokenizer.encode(text, add_special_tokens=False).ids)
    return list(tokenizer.encode(text))


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


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", SUPPORTED)
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


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", SUPPORTED)
def test_spans_of_any_ids_are_those_of_the_decoded_text(name: str) -> None:
    """Ids in an order that no encoder writes; all are whole characters, so that `decode` loses nothing."""
    vocabulary, tokenizer = vocabulary_of(name), tokenizer_of(name)
    rng = np.random.default_rng(0)
    text = {Kind.NORMAL, Kind.UNUSED}
    whole = [token_id for token_id in range(len(vocabulary)) if vocabulary.kind(token_id) in text]
    whole = [token_id for token_id in whole if _is_utf8(vocabulary.token_bytes(token_id) or b"\xff")]
    for _ in range(200):
        ids = rng.choice(whole, size=6).tolist()
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


@pytest.mark.parametrize("name", ["llama2", "phi3", "gemma4", "smollm2", "llama3", "mistral-v3"])
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
    ("name", "family"), [("bert", "WordPiece tokenizers are not"), ("xlm-r", "Unigram tokenizers are not")]
)
def test_a_family_that_is_not_built_yet_is_refused_by_name(name: str, family: str) -> None:
    with pytest.raises(ValueError, match=family):
        Vocabulary.from_tokenizer(tokenizer_of(name))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model_type": "unigram"}, "SentencePiece Unigram models are not supported yet"),
        ({"byte_fallback": False}, "SentencePiece BPE without byte fallback is not supported yet"),
        ({"treat_whitespace_as_suffix": True}, "white space as a suffix is not supported yet"),
    ],
)
def test_a_sentencepiece_model_of_another_kind_is_refused_by_name(
    options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Vocabulary.from_tokenizer(sentencepiece_model(**options))


@pytest.mark.parametrize(
    ("decoder", "message"),
    [
        (None, "without a byte-level or byte-fallback decoder"),
        (decoders.BPEDecoder(), '"BPEDecoder".* is not supported yet'),
        (
            decoders.Sequence([decoders.ByteLevel(), decoders.Strip("x", 1, 0)]),
            '"Strip".* is not supported',
        ),
        (decoders.Sequence([decoders.Replace("▁", " ")]), "without a byte-level or byte-fallback decoder"),
        (
            decoders.Sequence([decoders.ByteFallback(), decoders.Strip(" ", 1, 0), decoders.Fuse()]),
            "Strip behind ByteFallback is not",
        ),
        (
            decoders.Sequence([decoders.ByteFallback(), decoders.Replace("A", "Z"), decoders.Fuse()]),
            "Replace behind ByteFallback is not",
        ),
        (
            decoders.Sequence([decoders.ByteFallback(), decoders.Fuse(), decoders.Replace("bb", "X")]),
            "Replace behind Fuse is not",
        ),
        (
            decoders.Sequence([decoders.ByteLevel(), decoders.Replace("a", "Z")]),
            "Replace behind ByteLevel is not",
        ),
    ],
)
def test_a_decoder_that_cannot_be_read_exactly_is_refused(decoder: Any, message: str) -> None:
    tokenizer = tokenizers.Tokenizer(models.BPE({"a": 0}, []))
    if decoder is not None:
        tokenizer.decoder = decoder
    with pytest.raises(ValueError, match=message):
        Vocabulary.from_tokenizer(tokenizer)


def test_slow_tokenizers_are_refused_by_their_class() -> None:
    with pytest.raises(TypeError, match=r"cannot read a transformers\..*Tokenizer: give"):
        Vocabulary.from_tokenizer(transformers.ByT5Tokenizer())


def test_the_one_liner_notices_that_the_specials_have_changed() -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder_of("gpt2"))
    ids = [tokenizer.eos_token_id]
    assert len(dskd.align(ids, ids, teacher=tokenizer, student=tokenizer).pairs) == 1
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.bos_token = tokenizer.eos_token = tokenizer.unk_token = None
    assert len(dskd.align(ids, ids, teacher=tokenizer, student=tokenizer).pairs) == 0
