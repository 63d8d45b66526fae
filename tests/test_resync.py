"""Texts that repeat themselves and differ a little in every line: what corresponds is found at its place.

A vocabulary of the 256 single bytes on both sides, so that byte i is token i.
"""

from __future__ import annotations

import random
import re
from typing import TYPE_CHECKING

import pytest

from dskd import Aligner, Vocabulary

if TYPE_CHECKING:
    from collections.abc import Callable

BYTES = Vocabulary.from_bytes([bytes([byte]) for byte in range(256)])
ALIGNER = Aligner(BYTES, BYTES)


def drawn(seed: int) -> random.Random:
    """The same at every run."""
    return random.Random(seed)  # noqa: S311


def pairs(teacher: str, student: str) -> list[tuple[int, int]]:
    """The pairs of bytes, teacher's and student's."""
    found = ALIGNER.align(list(teacher.encode()), list(student.encode())).pairs
    return list(zip(found.teacher.tolist(), found.student.tolist(), strict=True))


def equal_places(teacher: str, student: str) -> list[tuple[int, int]]:
    """Where both have the same byte at the same place."""
    both = zip(teacher.encode(), student.encode(), strict=True)
    return [(place, place) for place, (one, other) in enumerate(both) if one == other]


def open_invoices(_: random.Random) -> list[str]:
    return [f"[ ] call {name} about the open invoice" for name in ["Dan", *5 * ["Bob"], "Ann"]]


def song(rng: random.Random) -> list[str]:
    verses = ("Row, row, row your boat", "Gently down the stream", "Merrily, merrily", "Life is but a dream")
    return [rng.choice(verses) for _ in range(60)]


def long_list(rng: random.Random) -> list[str]:
    return [f"- [ ] {rng.choice(('call', 'pay', 'ask'))} {rng.choice(('Bob', 'Ann'))}" for _ in range(300)]


@pytest.mark.parametrize("lines", [open_invoices, song, long_list])
def test_line_ends_that_become_spaces_cost_the_line_ends(lines: Callable[[random.Random], list[str]]) -> None:
    text = "\n".join(lines(drawn(1)))
    assert pairs(text, text.replace("\n", " ")) == equal_places(text, text.replace("\n", " "))


def test_the_open_invoices_have_245_pairs() -> None:
    text = "\n".join(open_invoices(drawn(1)))
    assert len(pairs(text, text.replace("\n", " "))) == 245


def test_lower_case_costs_the_capitals() -> None:
    rng = drawn(2)
    lines = [
        f"- {rng.choice(('Ask', 'Pay', 'Call'))} {rng.choice(('Bob', 'Ann'))} on Monday" for _ in range(60)
    ]
    text = "\n".join(lines)
    assert pairs(text, text.lower()) == equal_places(text, text.lower())


def test_a_record_left_out_is_the_one_that_is_missing() -> None:
    records = [f'{{"id": {7919 * number % 1000}, "state": "open", "name": "Bob"}}\n' for number in range(40)]
    text, without = "".join(records), "".join(records[:17] + records[18:])
    start, end = len("".join(records[:17])), len("".join(records[:18]))
    places = [place for place in range(len(text)) if not start <= place < end]
    # What is left out can slide to and fro over what its neighbours begin and end with alike.
    assert len(set(pairs(text, without)) ^ set(zip(places, range(len(without)), strict=True))) <= 2 * 12


def test_what_follows_many_small_differences_is_found() -> None:
    accents, tail = "áéíóú" * 12, " and from here on both say the same."
    teacher = accents + tail
    student = "".join(f"\\u{ord(letter):04x}" for letter in accents) + tail
    ends = (len(teacher.encode()), len(student.encode()))
    behind = [(ends[0] - back, ends[1] - back) for back in range(len(tail), 0, -1)]
    assert pairs(teacher, student)[-len(tail) :] == behind


def test_texts_longer_than_a_table_are_followed_in_every_line() -> None:
    rng = drawn(3)
    lines = [
        f"{rng.choice(('INFO', 'DEBUG'))} the queue is {rng.choice(('open', 'late'))} now"
        for _ in range(2000)
    ]
    one, other = (
        "\n".join(f"{1000 + 7 * n + step} {line}" for n, line in enumerate(lines)) for step in (0, 3)
    )
    assert len(one) > 40_000
    numbers = [range(*match.span()) for match in re.finditer(r"(?m)^[0-9]+", one)]
    in_numbers = {place for number in numbers for place in number}
    missed = set(equal_places(one, other)) ^ set(pairs(one, other))
    assert {place for place, _ in missed} <= in_numbers


def test_insertions_longer_than_a_window_are_passed_wherever_they_stand() -> None:
    rng = drawn(4)
    words = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(2, 9))) for _ in range(4000)]

    def text(count: int) -> str:
        return "".join(f"{rng.choice(words)} " for _ in range(count))

    parts = [text(1500) for _ in range(3)]
    inserted = [text(1500), text(900)]
    teacher = "".join(parts)
    student = parts[0] + inserted[0] + parts[1] + inserted[1] + parts[2]
    starts = (0, len(parts[0] + inserted[0]), len(parts[0] + inserted[0] + parts[1] + inserted[1]))
    expected: list[tuple[int, int]] = []
    at = 0
    for part, start in zip(parts, starts, strict=True):
        expected += [(at + offset, start + offset) for offset in range(len(part))]
        at += len(part)
    assert len(set(expected) ^ set(pairs(teacher, student))) <= 2 * 4 * 16
