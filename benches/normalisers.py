"""What the normalisers of real tokenizers do to a text, character by character, so that the truth is known.

None of it asks a tokenizer; `parts` looks whether one does the same.
"""

from __future__ import annotations

import re
import unicodedata
from typing import TYPE_CHECKING

from oracle import Change, changed

if TYPE_CHECKING:
    from collections.abc import Callable, Container


def by_character(text: str, written: Callable[[str], str]) -> list[Change]:
    """What changes where each character is written so by itself."""
    return [Change(at, at + 1, new) for at, old in enumerate(text) if (new := written(old)) != old]


def lower_case(text: str) -> list[Change]:
    """What `text.lower()` changes.

    Raises:
        ValueError: a character's small letter depends on what is beside it.
    """
    changes = by_character(text, str.lower)
    if changed(text, changes) != text.lower():
        raise ValueError(f"not lower-cased character by character: {text[:40]!r}")
    return changes


def nfkc(text: str) -> list[Change]:
    """What NFKC changes in a text whose characters it does not join.

    Raises:
        ValueError: it joins or reorders some.
    """
    changes = by_character(text, _nfkc)
    if changed(text, changes) != _nfkc(text):
        raise ValueError(f"not in NFKC character by character: {text[:40]!r}")
    return changes


def _nfkc(text: str) -> str:
    return unicodedata.normalize("NFKC", text)


def composed(text: str) -> list[Change]:
    """What NFC changes in a text in NFD whose letters it composes with their marks.

    Raises:
        ValueError: it changes more than that.
    """
    clusters = re.finditer(r"[^\u0300-\u036f][\u0300-\u036f]+", text)
    changes = [Change(*match.span(), unicodedata.normalize("NFC", match[0])) for match in clusters]
    if changed(text, changes) != unicodedata.normalize("NFC", text):
        raise ValueError(f"not in NFC cluster by cluster: {text[:40]!r}")
    return changes


def nfkc_and_white_space(text: str) -> list[Change]:
    """XLM-R and T5: NFKC, one space for each run of white space, none at the ends."""
    spans = [match.span() for match in re.finditer(r"\S+", text)]
    return _words(text, spans, _nfkc)


def words_of_bert(text: str) -> list[Change]:
    """BERT, uncased: small letters without accents; a space between words, and each punctuation mark is one.

    Its decoder leaves the space out that the ids have before `.`, `?`, `!` and `,`.
    """
    spans = [match.span() for match in _WORD.finditer(text)]
    return _words(text, spans, _without_case_and_accents, without_space=frozenset(".?!,"))


_MARKS = "!-/:-@\\[-`{-~\u2010-\u2027\u2030-\u205e\u00a1\u00a7\u00ab\u00b6\u00b7\u00bb\u00bf"
"""ASCII's signs, and the punctuation of the texts here."""
_WORD = re.compile(rf"[{_MARKS}]|[^\s{_MARKS}]+")


def _without_case_and_accents(character: str) -> str:
    decomposed = unicodedata.normalize("NFD", character)
    return "".join(one for one in decomposed if unicodedata.category(one) != "Mn").lower()


def _words(
    text: str, spans: list[tuple[int, int]], written: Callable[[str], str], without_space: Container[str] = ()
) -> list[Change]:
    """Words at these places, each character written so, and one space between them and none around.

    Words in `without_space` have none before them.
    """
    changes: list[Change] = []
    end = 0
    for start, stop in spans:
        space = " " if end and text[start:stop] not in without_space else ""
        if text[end:start] != space:
            changes.append(Change(end, start, space))
        changes += [
            Change(start + change.start, start + change.end, change.new)
            for change in by_character(text[start:stop], written)
        ]
        end = stop
    if text[end:]:
        changes.append(Change(end, len(text), ""))
    return changes
