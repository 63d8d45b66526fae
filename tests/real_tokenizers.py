"""The real tokenizers of the assets, each opened once in its own library."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import sentencepiece
import tokenizers

import assets
from conftest import needs_assets
from dskd import Vocabulary

if TYPE_CHECKING:
    from pathlib import Path


@functools.cache
def folder_of(name: str) -> Path:
    return needs_assets(lambda: assets.tokenizer(name))


@functools.cache
def tokenizer_of(name: str) -> Any:
    """The tokenizer in its own library: tokenizers where there is a tokenizer.json, else SentencePiece."""
    folder = folder_of(name)
    if (folder / "tokenizer.json").exists():
        tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return tokenizer
    return sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))


@functools.cache
def vocabulary_of(name: str) -> Vocabulary:
    return Vocabulary.from_tokenizer(tokenizer_of(name))


def encode(name: str, text: str) -> list[int]:
    """The ids of a text without special tokens around it."""
    tokenizer = tokenizer_of(name)
    if isinstance(tokenizer, tokenizers.Tokenizer):
        return list(tokenizer.encode(text, add_special_tokens=False).ids)
    return list(tokenizer.encode(text))
