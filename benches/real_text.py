"""Rows of real text and what is done to it: edits, NFD, white space, a `<think>` block; the truth is kept."""

from __future__ import annotations

import random
import re
import unicodedata

import corpus
import oracle
from judge import Row, changed_row
from oracle import Change

CHARACTERS = 3000
LONGEST_EDIT = 200


def edited(text: str, count: int, inserts: str, rng: random.Random) -> list[Change]:
    """`count` edits that do not touch each other; what comes in is taken from `inserts`.

    A third each inserts, deletes and replaces, 1 to 200 characters. Edits whose result is not in NFC are
    drawn anew, since a tokenizer that normalises would change more than the edit.
    """
    while True:
        changes = _edits(len(text), count, inserts, rng)
        if unicodedata.is_normalized("NFC", oracle.changed(text, changes)):
            return changes


def _edits(length: int, count: int, inserts: str, rng: random.Random) -> list[Change]:
    kinds = [rng.choice(("insert", "delete", "replace")) for _ in range(count)]
    removed = [0 if kind == "insert" else rng.randint(1, LONGEST_EDIT) for kind in kinds]
    places = sorted(rng.sample(range(length - sum(removed) + 1), count))
    changes: list[Change] = []
    before = 0
    for kind, gone, place in zip(kinds, removed, places, strict=True):
        new = "" if kind == "delete" else _taken(inserts, rng)
        changes.append(Change(place + before, place + before + gone, new))
        before += gone
    return changes


def _taken(inserts: str, rng: random.Random) -> str:
    length = rng.randint(1, LONGEST_EDIT)
    start = rng.randrange(len(inserts) - length)
    return inserts[start : start + length]


def rows_with_edits(count: int, edits: int, seed: int) -> list[Row]:
    """Real text; one side, drawn for each row, reads it after its edits, which bring in text of its kind."""
    rng = random.Random(seed)  # noqa: S311 - the same at every run is the point
    rows = []
    for name, text in corpus.passages(count, CHARACTERS, rng):
        row = changed_row(text, edited(text, edits, corpus.long_texts()[name], rng))
        swap = rng.random() < 0.5  # noqa: PLR2004 - either side
        rows.append(row.swapped() if swap else row)
    return rows


def rows_in_nfd(language: str, count: int) -> list[Row]:
    """The teacher reads NFD, the student what NFC makes of it."""
    rng = random.Random(language)  # noqa: S311
    texts = corpus.windows(corpus.in_language(language), count, CHARACTERS, rng)
    rows = (changed_row(text, oracle.decompositions(text)) for text in texts)
    return [row.swapped() for row in rows]


def rows_with_composed_nukta(count: int) -> list[Row]:
    """Hindi: the teacher reads letters with a nukta as one character each, which NFC takes apart.

    These eight are what Unicode excludes from composition; besides them NFD changes hardly anything in Hindi.
    """
    composed = {unicodedata.normalize("NFC", chr(code)): chr(code) for code in range(0x0958, 0x0960)}
    rng = random.Random("nukta")  # noqa: S311
    rows = []
    for text in corpus.windows(corpus.in_language("hi"), count, CHARACTERS, rng):
        found = re.finditer("|".join(composed), text)
        row = changed_row(text, [Change(*match.span(), composed[match[0]]) for match in found])
        rows.append(row.swapped())
    return rows


def rows_of_source(count: int, pattern: str, new: str) -> list[Row]:
    """The teacher reads source code, the student the same after `re.sub`."""
    rng = random.Random(pattern)  # noqa: S311
    texts = corpus.windows(corpus.long_texts()["source"], count, CHARACTERS, rng)
    return [changed_row(text, oracle.substitutions(text, re.compile(pattern), new)) for text in texts]


def rows_with_thoughts(count: int, *, teacher_thinks: bool) -> list[Row]:
    """An answer of real text, and before it, on one side only, 200 to 600 characters of thought."""
    rng = random.Random(3)  # noqa: S311
    rows = []
    answers, thoughts = corpus.passages(count, CHARACTERS, rng), corpus.passages(count, 600, rng)
    for (_, answer), (_, thought) in zip(answers, thoughts, strict=True):
        block = f"<think>\n{thought[: rng.randint(200, 600)]}\n</think>\n\n"
        row = changed_row(answer, [Change(0, 0, block)])
        rows.append(row.swapped() if teacher_thinks else row)
    return rows


def unrelated_rows(count: int) -> list[Row]:
    """The sides read passages of two kinds of real text, or far apart in one; nothing corresponds."""
    rng = random.Random(10)  # noqa: S311
    teachers, students = corpus.passages(count, CHARACTERS, rng), corpus.passages(count, CHARACTERS, rng)
    return [Row(one, other, []) for (_, one), (_, other) in zip(teachers, students, strict=True)]
