"""Rows of repetitive text: of all `kinds`, as real tokenizers read it, small cases; the truth is kept."""

from __future__ import annotations

import functools
import itertools
import random
import unicodedata
from typing import TYPE_CHECKING

import assets
import kinds
import normalisers
from judge import changed_row

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from judge import Row
    from kinds import Version, Written
    from oracle import Change

    Make = Callable[[random.Random], Version]


@functools.cache
def rows_of_kind(name: str, count: int) -> list[Row]:
    """Rows of a kind; either side, drawn, reads the one version."""
    make = makers()[name] if name in makers() else _laid(kinds.UNDECIDED[name])
    rows = []
    for index in range(count):
        rng = random.Random(f"{name} {index}")  # noqa: S311 - the same at every run is the point
        row = _row(make(rng))
        rows.append(row.swapped() if rng.random() < 0.5 else row)  # noqa: PLR2004 - either side
    return rows


def _row(version: Version) -> Row:
    return changed_row(version.text, version.changes, values=version.values)


def is_large(row: Row) -> bool:
    """Whether more than a third of the longer text is not in the other."""
    same = sum(length for _, _, length in row.same)
    return 3 * same < 2 * max(len(row.teacher.encode()), len(row.student.encode()))


def large(count: int, normalised: int) -> list[Row]:
    """The rows of which more than a third differs, of so many of all kinds and so many normalised ones."""
    rows = [row for name in makers() for row in rows_of_kind(name, count)]
    for kind, normaliser in itertools.product(NORMALISED, NORMALISERS):
        rows += rows_normalised(kind, normaliser, normalised)
    return [row for row in rows if is_large(row)]


def unchanged(count: int) -> list[str]:
    """Repetitive texts of all kinds."""
    return [kinds.any_text(random.Random(f"unchanged {index}")) for index in range(count)]  # noqa: S311


@functools.cache
def makers() -> Mapping[str, Make]:
    """What makes a text and its other version, by the name of the kind."""
    source = assets.source_rows(600)
    of_values = {name: _laid(make) for name, make in kinds.VALUES.items()}
    of_code = {name: functools.partial(make, source) for name, make in kinds.CODE.items()}
    return {**of_values, **kinds.CHARACTERS, **of_code}


def _laid(make: Callable[[random.Random], Written]) -> Make:
    return lambda rng: kinds.laid(make(rng))


# ---- What a tokenizer makes of it ------------------------------------------------------------------------

NORMALISERS: Mapping[str, tuple[Mapping[str, str], Callable[[str], list[Change]]]] = {
    "NFKC and white space by XLM-R": (kinds.UNUSUAL, normalisers.nfkc_and_white_space),
    "lower case by BERT": (kinds.ACCENTED, normalisers.words_of_bert),
    "NFC by Qwen": (kinds.ACCENTED, normalisers.composed),
}
"""Words to put into the texts, and what a tokenizer changes in them."""
NORMALISED: Mapping[str, Sequence[Callable[[random.Random], Written]]] = {
    "lists": (kinds.list_with_names, kinds.list_with_numbers),
    "logs": (kinds.log_with_times, kinds.log_with_ids),
    "tables": (kinds.table_with_values,),
}
"""The texts, by what they are called."""


@functools.cache
def rows_normalised(kind: str, normaliser: str, count: int) -> list[Row]:
    """The teacher reads texts of a kind, the student what its tokenizer makes of them."""
    words, normalise = NORMALISERS[normaliser]
    rows = []
    for index in range(count):
        rng = random.Random(f"{kind} {index}")  # noqa: S311
        text = kinds.with_words(kinds.text_of(rng, NORMALISED[kind]), words).strip()
        text = unicodedata.normalize("NFD", text) if normalise is normalisers.composed else text
        rows.append(changed_row(text, normalise(text), values=True))
    return rows


# ---- Small cases -----------------------------------------------------------------------------------------


def small_cases() -> dict[str, Row]:
    """Inputs on which alignment once failed, read byte by byte; each stands for a kind."""
    rng = random.Random("small cases")  # noqa: S311
    names = ["Dan", *(5 * ["Bob"]), "Ann"]
    calls = [f"[ ] call {name} about the open invoice" for name in names]
    song = [rng.choice(kinds.VERSES[:4]) for _ in range(60)]
    long = [f"[ ] call {rng.choice(kinds.NAMES)} about the open invoice" for _ in range(300)]
    capitals = [f"[ ] Call {rng.choice(kinds.NAMES)} about the open Invoice" for _ in range(60)]
    accents = "Árvíztűrő tükörfúrógép, öt hűtőházból kértünk színhúst. "
    escaped = "".join(one if one.isascii() else f"\\u{ord(one):04x}" for one in accents)
    versions = {
        "one byte a line": kinds.laid(kinds.joined(calls, "\n", " ")),
        "a song of 60 lines": kinds.laid(kinds.joined(song, "\n", " ")),
        "a list of 300 lines": kinds.laid(kinds.joined(long, "\n", " ")),
        "a list in lower case": _lower_cased("\n".join(capitals)),
        "text behind many small differences": kinds.laid([(accents * 3, escaped * 3), "\n".join(capitals)]),
    }
    return {name: _row(version) for name, version in versions.items()}


def _lower_cased(text: str) -> Version:
    return kinds.Version(text, normalisers.lower_case(text))
