"""Every ordered pair of real lossless tokenizers on a few rows of each kind equals the oracle of byte spans.

`benches/recall.py` does the same on many rows and writes what it finds into benches/proof.md.
"""

from __future__ import annotations

import functools
import random

import pytest

import assets
import corpus
from conftest import needs_assets
from judge import Row, batch_of, by_dskd, same_row

LOSSLESS = [
    name
    for name, source in assets.TOKENIZERS.items()
    if source.family in {"byte-level BPE", "SentencePiece BPE"}
]
LANGUAGES = (
    *("ar", "bn", "cs", "de", "el", "en", "es", "fa", "fr", "he", "hi", "hy", "ja", "ka", "kn", "ko", "ml"),
    *("my", "pa", "pl", "ru", "sw", "ta", "th", "tr", "ur", "vi", "zh_Hans", "zh_Hant"),
)
EACH, CHARACTERS = 3, 250


@functools.cache
def rows() -> list[Row]:
    """Three rows of source code, of emoji, and of each language."""
    rng = random.Random(2026)  # noqa: S311 - the same at every run is the point
    texts = {language: assets.translation(language) for language in LANGUAGES if language != "en"}
    texts |= {"en": assets.prose("wiki"), "source": "\n\n".join(assets.source_rows(50))}
    found = [row for text in texts.values() for row in corpus.windows(text, EACH, CHARACTERS, rng)]
    return [same_row(text) for text in [*found, *rng.sample(corpus.emoji(), EACH)]]


def test_there_are_twelve_tokenizers_and_twenty_languages() -> None:
    assert len(LOSSLESS) >= 12
    assert len(set(LANGUAGES)) >= 20
    assert len(needs_assets(rows)) == EACH * (len(LANGUAGES) + 2)


@pytest.mark.parametrize("name", LOSSLESS)
def test_pairs_with_every_tokenizer_are_those_of_the_oracle(name: str) -> None:
    teacher = needs_assets(lambda: corpus.tokenizer(name))
    for other in LOSSLESS:
        student = needs_assets(lambda: corpus.tokenizer(other))  # noqa: B023 - called at once
        batch = batch_of(teacher, student, needs_assets(rows))
        assert len(batch.rows) == len(rows()), other
        found = by_dskd(batch)
        assert (found.score.found, found.score.hit, found.false) == (found.score.exist, found.score.exist, 0)
        assert found.score.exist > len(rows()), other
        assert found.coverage == (1, 1), other
