"""Turns the vocabulary of a GGUF file into a tokenizer folder that `tokenizers` and transformers load.

A GGUF file holds the pieces, their types, scores and merges, but only the *name* of the pre-tokenizer. What
each name means is written down here, in the JSON form of `tokenizers`, as the published `tokenizer.json` of
that family has it. transformers' own `gguf_file=` road gets several of these families wrong; this one gives
the ids of every golden string that lies beside the files.

The metadata is read here and not with the `gguf` package, which makes a NumPy array of every string: 42 s for
the 262,144 pieces and 514,906 merges of Gemma 4, against 0.8 s.
"""

from __future__ import annotations

import base64
import importlib
import json
import mmap
import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["GgufVocabulary", "PieceType", "convert", "read_vocabulary"]

Json = dict[str, Any]


class PieceType(IntEnum):
    """The type of a piece; GGUF and SentencePiece's own model file use the same numbers."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True, slots=True)
class GgufVocabulary:
    """What a GGUF file says of its tokenizer.

    `pieces`, `types` and, where the family has them, `scores` have one entry an id; `roles` are ids by their
    names in tokenizer_config.json.
    """

    model: str
    pre_tokenizer: str
    pieces: list[str]
    types: list[int]
    scores: list[float]
    merges: list[tuple[str, str]]
    roles: dict[str, int]
    adds_bos: bool
    adds_eos: bool
    chat_template: str | None
    charsmap: bytes


def convert(gguf: Path, folder: Path) -> None:
    """Writes tokenizer.json, tokenizer_config.json and, for Llama 2's family, tokenizer.model into `folder`.

    Raises:
        ValueError: `gguf` is not a GGUF file, or holds a vocabulary of a kind that is not written down here.
    """
    vocabulary = read_vocabulary(gguf)
    _write_json(folder / "tokenizer.json", _tokenizer(vocabulary))
    _write_json(folder / "tokenizer_config.json", _config(vocabulary))
    if vocabulary.model == "llama":
        (folder / "tokenizer.model").write_bytes(_sentencepiece_model(vocabulary))


def read_vocabulary(gguf: Path) -> GgufVocabulary:
    """The vocabulary of a GGUF file, with or without a model in it."""
    metadata = _read_metadata(gguf)
    of_tokenizer: Json = {key.removeprefix("tokenizer.ggml."): value for key, value in metadata.items()}
    model: str = of_tokenizer["model"]
    pieces: list[str] = of_tokenizer["tokens"]
    architecture: str = metadata["general.architecture"]
    vocabulary = GgufVocabulary(
        model=model,
        pre_tokenizer=of_tokenizer.get("pre", architecture),
        pieces=_word_pieces(pieces, of_tokenizer["token_type"]) if model == "bert" else pieces,
        types=of_tokenizer["token_type"],
        scores=of_tokenizer.get("scores", []),
        merges=[_halves(merge) for merge in of_tokenizer.get("merges", [])],
        roles={role: of_tokenizer[key] for role, key in _ROLES.items() if key in of_tokenizer},
        adds_bos=of_tokenizer.get("add_bos_token", _adds_bos_unasked(of_tokenizer)),
        adds_eos=of_tokenizer.get("add_eos_token", model == "bert"),
        chat_template=metadata.get("tokenizer.chat_template"),
        charsmap=bytes(value & 0xFF for value in of_tokenizer.get("precompiled_charsmap", [])),
    )
    return _checked(vocabulary, gguf)


_ROLES = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "unk_token": "unknown_token_id",
    "pad_token": "padding_token_id",
    "cls_token": "cls_token_id",
    "sep_token": "seperator_token_id",  # GGUF's own spelling
    "mask_token": "mask_token_id",
}


def _adds_bos_unasked(of_tokenizer: Json) -> bool:
    """Whether a bos (BERT: [CLS]) goes first where the file does not say, as llama.cpp has it."""
    return of_tokenizer["model"] in ("bert", "llama") or of_tokenizer.get("pre") == "llama-bpe"


def _halves(merge: str) -> tuple[str, str]:
    """The two pieces of a merge: "left right"; the first character is never the separator."""
    cut = merge.index(" ", 1)
    return merge[:cut], merge[cut + 1 :]


def _word_pieces(pieces: list[str], types: list[int]) -> list[str]:
    """BERT's spelling: GGUF marks the beginning of a word with "▁", BERT the continuation with "##"."""

    def spelling(piece: str, kind: int) -> str:
        if kind == PieceType.CONTROL or (piece.startswith("[") and piece.endswith("]")):
            return piece
        return piece[1:] if piece.startswith("▁") else "##" + piece

    return [spelling(piece, kind) for piece, kind in zip(pieces, types, strict=True)]


def _checked(vocabulary: GgufVocabulary, gguf: Path) -> GgufVocabulary:
    """`vocabulary`, if every piece is there once and the family is one that is written down here."""
    if len(set(vocabulary.pieces)) != len(vocabulary.pieces):
        raise ValueError(f"{gguf.name} spells two ids alike; a tokenizer.json cannot hold both")
    if vocabulary.model not in _MODELS:
        raise ValueError(
            f"{gguf.name} is a {vocabulary.model!r} vocabulary; known are {', '.join(sorted(_MODELS))}"
        )
    if vocabulary.model == "gpt2" and vocabulary.pre_tokenizer not in _PRE_TOKENIZERS:
        known = ", ".join(sorted(_PRE_TOKENIZERS))
        raise ValueError(
            f"{gguf.name} names the pre-tokenizer {vocabulary.pre_tokenizer!r}; known are {known}"
        )
    return vocabulary


# The metadata of a GGUF file ---------------------------------------------------

# The struct code of each GGUF type.
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9


def _read_metadata(gguf: Path) -> Json:
    """All key and value pairs in the head of a GGUF file (versions 2 and 3, little-endian)."""
    with gguf.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        if data[:4] != b"GGUF":
            raise ValueError(f"{gguf} is not a GGUF file: it begins with {data[:4]!r}")
        cursor = _Cursor(data, at=4)
        version, _tensors, entries = cursor.number("I"), cursor.number("Q"), cursor.number("Q")
        if version not in (2, 3):
            raise ValueError(f"{gguf} is GGUF version {version}; 2 and 3 can be read")
        return {cursor.string(): cursor.value(cursor.number("I")) for _ in range(entries)}


@dataclass(slots=True)
class _Cursor:
    """Reads one GGUF value after the other."""

    data: mmap.mmap
    at: int

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY:
            return self.array(self.number("I"), self.number("Q"))
        return self.number(_NUMBERS[kind])

    def array(self, kind: int, length: int) -> list[Any]:
        if kind in _NUMBERS:
            return list(self.take(f"{length}{_NUMBERS[kind]}"))
        return [self.value(kind) for _ in range(length)]

    def string(self) -> str:
        length = self.number("Q")
        self.at += length
        return self.data[self.at - length : self.at].decode()

    def number(self, code: str) -> Any:
        return self.take(code)[0]

    def take(self, code: str) -> tuple[Any, ...]:
        values = struct.unpack_from("<" + code, self.data, self.at)
        self.at += struct.calcsize("<" + code)
        return values


# tokenizer.json ----------------------------------------------------------------


def _isolated(pattern: str) -> Json:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def _byte_level(*, splits: bool) -> Json:
    """Bytes to printable characters; `splits` first, by GPT-2's pattern."""
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": splits}


def _digits(*, one_by_one: bool) -> Json:
    return {"type": "Digits", "individual_digits": one_by_one}


_LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN_2 = _LLAMA_3.replace(r"\p{N}{1,3}", r"\p{N}")
_DEEPSEEK_LETTERS = (
    "\\s?[A-Za-z\xb5\xc0-\xd6\xd8-\xf6\xf8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af\u0370-\u0373\u0376\u0377\u037b-\u037d\u037f\u0386"
    "\u0388-\u038a\u038c\u038e-\u03a1\u03a3-\u03f5\u03f7-\u0481\u048a-\u052f\u0531-\u0556\u10a0-\u10c5\u13a0-\u13f5\u13f8-\u13fd\u1c90-\u1cba"
    "\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77\u1d79-\u1d9a\u1e00-\u1f15\u1f18-\u1f1d\u1f20-\u1f45\u1f48-\u1f4d\u1f50-\u1f57\u1f59\u1f5b\u1f5d"
    "\u1f5f-\u1f7d\u1f80-\u1fb4\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb\u1fe0-\u1fec\u1ff2-\u1ff4\u1ff6-\u1ffc"
    "\u2102\u2107\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128\u212a-\u212d\u212f-\u2134\u2139\u213c-\u213f\u2145-\u2149\u214e\u2183\u2184"
    "\u2c00-\u2c7b\u2c7e-\u2ce4\u2ceb-\u2cee\u2cf2\u2cf3\ua640-\ua66d\ua680-\ua69b\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf"
    "\ufb00-\ufb06\ufb13-\ufb17\uff21-\uff3a\uff41-\uff5a\U00010400-\U0001044f\U000104b0-\U000104d3\U000104d8-\U000104fb\U00010c80-\U00010cb2"
    "\U00010cc0-\U00010cf2\U000118a0-\U000118df\U0001e900-\U0001e943]+"
)
_DEEPSEEK_PUNCTUATION = "\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+"
_CJK = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"

_PRE_TOKENIZERS: dict[str, list[Json]] = {
    "gpt-2": [_byte_level(splits=True)],
    "gptneox": [_byte_level(splits=True)],  # this file names its architecture and no pre-tokenizer
    "starcoder": [_digits(one_by_one=True), _byte_level(splits=True)],
    "smollm": [_digits(one_by_one=True), _byte_level(splits=True)],
    "llama-bpe": [_isolated(_LLAMA_3), _byte_level(splits=False)],
    "qwen2": [_isolated(_QWEN_2), _byte_level(splits=False)],
    "falcon": [
        {"type": "Punctuation", "behavior": "Contiguous"},
        _byte_level(splits=True),
        _digits(one_by_one=False),
        _isolated("[0-9][0-9][0-9]"),
    ],
    "deepseek-llm": [
        _isolated("[\r\n]"),
        _isolated(_DEEPSEEK_LETTERS),
        _isolated(_DEEPSEEK_PUNCTUATION),
        _isolated(r"\s+$"),
        _isolated(_CJK),
        _digits(one_by_one=False),
        _byte_level(splits=False),
    ],
}
_NORMALIZES_TO_NFC = ("qwen2", "gptneox")

_SPACES_TO_MARKS = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
_MARKS_TO_SPACES = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
_FALLBACK_DECODERS = [_MARKS_TO_SPACES, {"type": "ByteFallback"}, {"type": "Fuse"}]
_METASPACE = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}


def _tokenizer(vocabulary: GgufVocabulary) -> Json:
    """The contents of tokenizer.json."""
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": _added_tokens(vocabulary),
        "post_processor": _template(vocabulary),
        **_MODELS[vocabulary.model](vocabulary),
    }


def _byte_level_bpe(vocabulary: GgufVocabulary) -> Json:
    name = vocabulary.pre_tokenizer
    return {
        "normalizer": {"type": "NFC"} if name in _NORMALIZES_TO_NFC else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": _PRE_TOKENIZERS[name]},
        "decoder": _byte_level(splits=True),
        "model": _bpe(vocabulary, vocabulary.merges, ignore_merges=name == "llama-bpe"),
    }


def _sentencepiece_bpe(vocabulary: GgufVocabulary) -> Json:
    """Llama 2's family: a dummy prefix, byte fallback, and merges that the scores stand for."""
    dummy_prefix = {"type": "Prepend", "prepend": "▁"}
    drop_the_prefix = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
    return {
        "normalizer": {"type": "Sequence", "normalizers": [dummy_prefix, _SPACES_TO_MARKS]},
        "pre_tokenizer": None,
        "decoder": {"type": "Sequence", "decoders": [*_FALLBACK_DECODERS, drop_the_prefix]},
        "model": _bpe(vocabulary, _merges_by_score(vocabulary), byte_fallback=True),
    }


def _gemma_bpe(vocabulary: GgufVocabulary) -> Json:
    """Gemma 4: as Llama 2, with merges of its own and no dummy prefix."""
    return {
        "normalizer": _SPACES_TO_MARKS,
        "pre_tokenizer": {
            "type": "Split",
            "pattern": {"String": " "},
            "behavior": "MergedWithPrevious",
            "invert": False,
        },
        "decoder": {"type": "Sequence", "decoders": _FALLBACK_DECODERS},
        "model": _bpe(vocabulary, vocabulary.merges, byte_fallback=True),
    }


def _unigram(vocabulary: GgufVocabulary) -> Json:
    """XLM-R: NFKC by SentencePiece's own table, white space collapsed."""
    charsmap = base64.b64encode(vocabulary.charsmap).decode()
    return {
        "normalizer": {"type": "Precompiled", "precompiled_charsmap": charsmap},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "WhitespaceSplit"}, _METASPACE]},
        "decoder": _METASPACE,
        "model": {
            "type": "Unigram",
            "unk_id": vocabulary.roles["unk_token"],
            "vocab": list(zip(vocabulary.pieces, vocabulary.scores, strict=True)),
            "byte_fallback": False,
        },
    }


def _word_piece(vocabulary: GgufVocabulary) -> Json:
    """BERT uncased."""
    return {
        "normalizer": {
            "type": "BertNormalizer",
            "clean_text": True,
            "handle_chinese_chars": True,
            "strip_accents": None,
            "lowercase": True,
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
        "model": {
            "type": "WordPiece",
            "unk_token": vocabulary.pieces[vocabulary.roles["unk_token"]],
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
            "vocab": _ids(vocabulary.pieces),
        },
    }


_MODELS = {
    "gpt2": _byte_level_bpe,
    "llama": _sentencepiece_bpe,
    "gemma4": _gemma_bpe,
    "t5": _unigram,
    "bert": _word_piece,
}


def _bpe(
    vocabulary: GgufVocabulary,
    merges: list[tuple[str, str]],
    *,
    byte_fallback: bool = False,
    ignore_merges: bool = False,
) -> Json:
    """A BPE model; one that falls back to bytes has an unknown token too."""
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": vocabulary.pieces[vocabulary.roles["unk_token"]] if byte_fallback else None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": byte_fallback,
        "byte_fallback": byte_fallback,
        "ignore_merges": ignore_merges,
        "vocab": _ids(vocabulary.pieces),
        "merges": merges,
    }


def _ids(pieces: list[str]) -> dict[str, int]:
    return {piece: index for index, piece in enumerate(pieces)}


def _merges_by_score(vocabulary: GgufVocabulary) -> list[tuple[str, str]]:
    """SentencePiece's merges: each way to halve a piece, better scores first, then lower ids."""
    mergeable = (PieceType.NORMAL, PieceType.USER_DEFINED)
    ids = {
        piece: index
        for index, (piece, kind) in enumerate(zip(vocabulary.pieces, vocabulary.types, strict=True))
        if kind in mergeable
    }
    ranked = []
    for piece, index in ids.items():
        if vocabulary.types[index] == PieceType.NORMAL:
            halves = [(piece[:cut], piece[cut:]) for cut in range(1, len(piece))]
            known = [
                (ids[left], ids[right], left, right) for left, right in halves if left in ids and right in ids
            ]
            ranked += [(-vocabulary.scores[index], left, right) for _, _, left, right in sorted(known)]
    ranked.sort(key=lambda merge: merge[0])  # stable: the order of ids within a score stays
    return [(left, right) for _, left, right in ranked]


def _added_tokens(vocabulary: GgufVocabulary) -> list[Json]:
    """The pieces looked for before all else: control pieces and roles special, user-defined ones text."""
    special = set(vocabulary.roles.values())
    return [
        {
            "id": index,
            "content": piece,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": kind == PieceType.CONTROL or index in special,
        }
        for index, (piece, kind) in enumerate(zip(vocabulary.pieces, vocabulary.types, strict=True))
        if kind in (PieceType.CONTROL, PieceType.USER_DEFINED) or index in special
    ]


def _template(vocabulary: GgufVocabulary) -> Json | None:
    """The step that puts bos before and eos after a text (BERT: [CLS] and [SEP]), if the family does so."""
    first = [_first_role(vocabulary, "cls_token", "bos_token")] if vocabulary.adds_bos else []
    last = [_first_role(vocabulary, "sep_token", "eos_token")] if vocabulary.adds_eos else []
    if not first + last:
        return None
    pieces = {index: vocabulary.pieces[index] for index in first + last}

    def around(text: str, part: int) -> list[Json]:
        def special(index: int) -> Json:
            return {"SpecialToken": {"id": pieces[index], "type_id": part}}

        return [*map(special, first), {"Sequence": {"id": text, "type_id": part}}, *map(special, last)]

    return {
        "type": "TemplateProcessing",
        "single": around("A", 0),
        "pair": around("A", 0) + around("B", 1),
        "special_tokens": {
            piece: {"id": piece, "ids": [index], "tokens": [piece]} for index, piece in pieces.items()
        },
    }


def _first_role(vocabulary: GgufVocabulary, *roles: str) -> int:
    """The id of the first of `roles` that the vocabulary has."""
    return next(vocabulary.roles[role] for role in roles if role in vocabulary.roles)


# The files beside it -----------------------------------------------------------


def _config(vocabulary: GgufVocabulary) -> Json:
    """The contents of tokenizer_config.json; this class takes tokenizer.json as it is."""
    config: Json = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    config |= {role: vocabulary.pieces[index] for role, index in vocabulary.roles.items()}
    if vocabulary.chat_template is not None:
        config["chat_template"] = vocabulary.chat_template
    return config


def _sentencepiece_model(vocabulary: GgufVocabulary) -> bytes:
    """A SentencePiece BPE model file with the same pieces, scores, types and roles."""
    # By name: the module is generated code without types.
    model = importlib.import_module("sentencepiece.sentencepiece_model_pb2").ModelProto()
    for piece, score, kind in zip(
        vocabulary.pieces, vocabulary.scores, _sentencepiece_types(vocabulary), strict=True
    ):
        model.pieces.add(piece=piece, score=score, type=kind)
    _fill_trainer_spec(model.trainer_spec, vocabulary)
    model.normalizer_spec.name = "identity"
    model.normalizer_spec.add_dummy_prefix = True
    model.normalizer_spec.remove_extra_whitespaces = False
    return bytes(model.SerializeToString())


def _sentencepiece_types(vocabulary: GgufVocabulary) -> list[int]:
    """SentencePiece wants one unknown piece; Phi-3's file calls its 53 spare slots unknown."""
    types = [PieceType.UNUSED if kind == PieceType.UNKNOWN else kind for kind in vocabulary.types]
    types[vocabulary.roles["unk_token"]] = PieceType.UNKNOWN
    return types


def _fill_trainer_spec(spec: Any, vocabulary: GgufVocabulary) -> None:
    bpe = 2
    spec.model_type = bpe
    spec.vocab_size = len(vocabulary.pieces)
    spec.byte_fallback = PieceType.BYTE in vocabulary.types
    spec.pad_id = -1
    for role in ("unk", "bos", "eos", "pad"):
        if (index := vocabulary.roles.get(f"{role}_token")) is not None:
            setattr(spec, f"{role}_id", index)
            setattr(spec, f"{role}_piece", vocabulary.pieces[index])


def _write_json(path: Path, contents: Json) -> None:
    path.write_text(json.dumps(contents, ensure_ascii=False), encoding="utf-8", newline="\n")
