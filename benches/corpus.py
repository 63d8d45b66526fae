"""The real tokenizers and the real texts with which alignment is proved, fetched by examples/assets.py.

Prose in many languages is the `multilingual` text of the assets, and what Django says to its users: its
translations, real sentences of translators in the scripts that no other package carries.
"""

from __future__ import annotations

import functools
import itertools
import os
import sys
import unicodedata
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import sentencepiece
import tokenizers

from dskd import Ragged, Vocabulary

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
import assets

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Mapping, Sequence

    from oracle import Ints

LANGUAGES = assets.LANGUAGES
"""Those of the translations."""

# ---- Tokenizers ------------------------------------------------------------------------------------------

_numbers: dict[bytes, int] = {}
"""A number for each string of bytes that is a token of any vocabulary."""


@dataclass(frozen=True, slots=True, eq=False)
class Tokenizer:
    """A tokenizer, what dskd knows of it, and tables by id.

    Attributes:
        name: as in `assets.TOKENIZERS`.
        vocabulary: what dskd knows of it.
        tokens: the bytes of each id, empty where it has none.
        lengths: how many those are, int64.
        numbers: equal for ids with equal bytes, in all vocabularies, int64.
        numbers_without_space: the number of the bytes behind a leading space; -1 where there is none.
        ids_of: the first id with these bytes.
    """

    name: str
    vocabulary: Vocabulary
    encode: Callable[[Sequence[str]], list[list[int]]]
    spell: Callable[[list[int]], list[str]]
    tokens: list[bytes]
    lengths: Ints
    numbers: Ints
    numbers_without_space: Ints
    ids_of: dict[bytes, int]
    _known: dict[str, npt.NDArray[np.int32]] = field(default_factory=dict)

    def rows(self, texts: Sequence[str]) -> list[npt.NDArray[np.int32]]:
        """The ids of each text without special tokens; a text is tokenized once."""
        new = [text for text in dict.fromkeys(texts) if text not in self._known]
        for start in range(0, len(new), 64):
            some = new[start : start + 64]
            ids = (np.array(row, dtype=np.int32) for row in self.encode(some))
            self._known.update(zip(some, ids, strict=True))
        return [self._known[text] for text in texts]

    def forget(self) -> None:
        """Frees the ids of texts that are not needed any more."""
        self._known.clear()

    def text_of(self, ids: npt.NDArray[np.int32]) -> bytes:
        """The bytes of all ids."""
        return b"".join(map(self.tokens.__getitem__, ids.tolist()))


def names() -> list[str]:
    """The tokenizers of the assets."""
    return [name for name, source in assets.TOKENIZERS.items() if source.family != "rank file"]


BYTES = "bytes"
"""Every byte is a token, in order; behind them is one whose bytes are unknown."""


@functools.cache
def tokenizer(name: str) -> Tokenizer:
    """The tokenizer of this name; `BYTES` is one of them.

    Raises:
        ValueError: dskd refuses it, and says why.
    """
    if name == BYTES:
        return _bytes()
    encode, spell, own = _own(name)
    return made_of(name, Vocabulary.from_tokenizer(own), encode, spell)


def _bytes() -> Tokenizer:
    vocabulary = Vocabulary.from_bytes([bytes([byte]) for byte in range(256)], size=257)
    encode = lambda texts: [list(text.encode()) for text in texts]  # noqa: E731
    return made_of(BYTES, vocabulary, encode, lambda ids: [chr(0x100 + token_id) for token_id in ids])


def made_of(
    name: str,
    vocabulary: Vocabulary,
    encode: Callable[[Sequence[str]], list[list[int]]],
    spell: Callable[[list[int]], list[str]],
) -> Tokenizer:
    """A tokenizer with its tables."""
    tokens = [vocabulary.token_bytes(token_id) or b"" for token_id in range(len(vocabulary))]
    lengths = np.array([len(token) for token in tokens], dtype=np.int64)
    numbers = [_numbers.setdefault(token, len(_numbers)) for token in tokens]
    behind = [_numbers.setdefault(token[1:], len(_numbers)) if token[:1] == b" " else -1 for token in tokens]
    tables = (np.array(numbers, dtype=np.int64), np.array(behind, dtype=np.int64))
    ids_of = {token: token_id for token_id, token in reversed(list(enumerate(tokens))) if token}
    return Tokenizer(name, vocabulary, encode, spell, tokens, lengths, *tables, ids_of)


def _own(
    name: str,
) -> tuple[Callable[[Sequence[str]], list[list[int]]], Callable[[list[int]], list[str]], Any]:
    """How its own library encodes and spells, and its own object."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    folder = assets.tokenizer(name)
    if (folder / "tokenizer.json").exists():
        loaded = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        loaded.no_truncation()
        loaded.no_padding()

        def encode(texts: Sequence[str]) -> list[list[int]]:
            return [row.ids for row in loaded.encode_batch(list(texts), add_special_tokens=False)]

        spelling = functools.cache(lambda token_id: loaded.id_to_token(token_id) or "")
        return encode, lambda ids: list(map(spelling, ids)), loaded
    processor: Any = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    return lambda texts: processor.encode(list(texts)), processor.id_to_piece, processor


def ragged(rows: Sequence[npt.NDArray[np.int32]]) -> Ragged:
    """The rows as one array of int64 and its offsets."""
    values = np.concatenate([np.empty(0, dtype=np.int32), *rows]).astype(np.int64)
    return Ragged.from_lengths(values, [len(row) for row in rows])


# ---- Texts -----------------------------------------------------------------------------------------------


@functools.cache
def translations() -> Mapping[str, str]:
    """What Django says, by language, in NFC."""
    found = {language: assets.translation(language) for language in assets.LANGUAGES}
    return {language: unicodedata.normalize("NFC", text) for language, text in found.items()}


def in_language(language: str) -> str:
    """What Django says in this language."""
    return translations()[language]


@functools.cache
def long_texts() -> Mapping[str, str]:
    """Source code, instructions, and prose in many languages; long, in NFC."""
    found = {
        "source": "\n\n\n".join(assets.source_rows(600)),
        "instructions": "\n\n".join(assets.instruction_rows(600)),
        "multilingual": "\n\n".join([assets.prose("multilingual"), *translations().values()]),
    }
    return {name: unicodedata.normalize("NFC", text) for name, text in found.items()}


def windows(text: str, count: int, characters: int, rng: random.Random) -> list[str]:
    """So many passages of so many characters from random places, each in NFC by itself."""
    starts = [rng.randrange(max(1, len(text) - characters)) for _ in range(count)]
    return [unicodedata.normalize("NFC", text[start : start + characters]) for start in starts]


def passages(count: int, characters: int, rng: random.Random) -> list[tuple[str, str]]:
    """Passages of each of `long_texts` in turn, each with the name of its text."""
    each = [
        [(name, passage) for passage in windows(text, -(-count // 3), characters, rng)]
        for name, text in long_texts().items()
    ]
    return list(itertools.chain.from_iterable(zip(*each, strict=True)))[:count]


def emoji() -> list[str]:
    """Every code point of the blocks of pictures, flags, tones of skin, keycaps, and joined families."""
    pictures = [chr(code) for code in [*range(0x1F300, 0x1FB00), *range(0x2600, 0x27C0)]]
    flags = [chr(0x1F1E6 + one) + chr(0x1F1E6 + other) for one in range(26) for other in range(26)]
    toned = [
        f"{chr(hand)}{chr(tone)}" for hand in range(0x1F440, 0x1F490) for tone in range(0x1F3FB, 0x1F400)
    ]
    keycaps = [f"{key}\ufe0f\u20e3" for key in "0123456789#*"]
    people = "👩👨👧👦🧑"
    families = ["\u200d".join(people[index % 5] for index in range(first, first + 4)) for first in range(5)]
    kinds = (pictures, flags, toned, keycaps, families)
    rows = [kind[start : start + 100] for kind in kinds for start in range(0, len(kind), 100)]
    return ["".join(row) for row in rows] + [" ".join(row) for row in rows]


def golden_strings() -> list[str]:
    """The strings with which publishers test their tokenizers, each once."""
    named = [name for name, source in assets.TOKENIZERS.items() if source.golden]
    return list(dict.fromkeys(text for name in named for text, _ in assets.golden(name)))
