"""Rows of hostile shapes: two texts that differ in ways that make a search look everywhere.

Each makes so many tokens a side. Two vocabularies: single bytes, with one id whose bytes nobody knows, and
2,000 words of two to nine letters.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import numpy as np

from dskd import Aligner, Vocabulary

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import numpy.typing as npt

    Ids = npt.NDArray[Any]
    Row = tuple[Ids, Ids]
    Make = Callable[[int, np.random.Generator], Row]

UNKNOWN = 256
WORDS = 2_000


@functools.cache
def aligner(vocabulary: str) -> Aligner:
    """Of two sides that have the same vocabulary: `bytes` or `words`."""
    if vocabulary == "bytes":
        side = Vocabulary.from_bytes([*(bytes([byte]) for byte in range(256)), None])
    else:
        rng = np.random.default_rng(0)
        letters = [rng.integers(97, 123, rng.integers(2, 10)).astype(np.uint8) for _ in range(WORDS)]
        side = Vocabulary.from_bytes([b" " + word.tobytes() for word in letters])
    return Aligner(side, side)


def shapes() -> Iterator[tuple[str, str, Make]]:
    """Name, vocabulary and maker of each."""
    for vocabulary, sizes in (("bytes", (1, 2, 4, 26, 200)), ("words", (1, 2, 30, WORDS))):
        for size in sizes:
            yield f"{vocabulary}, two texts of {size}", vocabulary, functools.partial(_unrelated, size)
        for period in (2, 7, 64, 1000):
            yield (
                f"{vocabulary}, a period of {period}, one changed",
                vocabulary,
                functools.partial(_period, period, 0),
            )
            yield (
                f"{vocabulary}, a period of {period}, one more",
                vocabulary,
                functools.partial(_period, period, 1),
            )
        for every in (3, 10, 30, 100, 1000):
            yield f"{vocabulary}, one in {every} changed", vocabulary, functools.partial(_changed, every)
            yield f"{vocabulary}, one in {every} dropped", vocabulary, functools.partial(_dropped, every)
    for name, make in OF_BYTES.items():
        yield f"bytes, {name}", "bytes", make
    for name, make in OF_BOTH.items():
        for vocabulary in ("bytes", "words"):
            yield f"{vocabulary}, {name}", vocabulary, make


def _text(tokens: int, rng: np.random.Generator, size: int = 26) -> Ids:
    return rng.integers(97, 97 + min(size, 26), tokens) if size <= 26 else rng.integers(0, size, tokens)  # noqa: PLR2004


def _unrelated(size: int, tokens: int, rng: np.random.Generator) -> Row:
    teacher, student = _text(tokens, rng, size), _text(tokens, rng, size)
    return teacher, student + 30 if size == 1 else student


def _period(period: int, more: int, tokens: int, rng: np.random.Generator) -> Row:
    once = _text(period, rng)
    other = np.concatenate([once, once[:more]])
    other[period // 2] = 150
    return np.resize(once, tokens), np.resize(other, tokens)


def _changed(every: int, tokens: int, rng: np.random.Generator) -> Row:
    teacher = _text(tokens, rng)
    return teacher, np.where(rng.random(tokens) < 1 / every, _text(tokens, rng), teacher)


def _dropped(every: int, tokens: int, rng: np.random.Generator) -> Row:
    teacher = _text(tokens, rng)
    return teacher, teacher[rng.random(tokens) >= 1 / every]


def _unknown(of_teacher: float, of_student: float, tokens: int, rng: np.random.Generator) -> Row:
    text = _text(tokens, rng)
    teacher, student = (
        np.where(rng.random(tokens) < share, UNKNOWN, text) for share in (of_teacher, of_student)
    )
    return teacher, student


def _records(tokens: int, rng: np.random.Generator) -> Row:
    """Lines of forty bytes, of which six are others on the other side."""
    teacher = np.resize(
        np.frombuffer(b'{"id": 000000, "state": "open", "x": 1}\n', dtype=np.uint8), tokens
    ).astype(int)
    student = teacher.copy()
    is_digit = teacher == ord("0")
    for ids in (teacher, student):
        ids[is_digit] = _text(int(np.sum(is_digit)), rng, 10)
    return teacher, student


def _thue_morse(tokens: int, _: np.random.Generator) -> Row:
    ones = np.array([number.bit_count() % 2 for number in range(tokens)])
    return 97 + ones, 98 - ones


def _doubled(tokens: int, rng: np.random.Generator) -> Row:
    text = _text(tokens, rng)
    return text, np.repeat(text[: tokens // 2], 2)


def _spaces(tokens: int, rng: np.random.Generator) -> Row:
    text = np.where(rng.random(tokens) < 0.8, 32, _text(tokens, rng))  # noqa: PLR2004
    return text, text[np.r_[True, (text[1:] != 32) | (text[:-1] != 32)]]  # noqa: PLR2004


def _moved(parts: int, tokens: int, rng: np.random.Generator) -> Row:
    text = _text(tokens, rng)
    return text, np.concatenate(
        [
            part
            for _, part in sorted(
                enumerate(np.array_split(text, parts)), key=lambda part: part[0] * 7919 % parts
            )
        ]
    )


def _inserted(tokens: int, rng: np.random.Generator) -> Row:
    text = _text(tokens // 2, rng)
    return np.concatenate([text, _text(tokens // 2, rng)]), np.concatenate([_text(tokens // 2, rng), text])


def _doubles(tokens: int, rng: np.random.Generator) -> Row:
    lines = [_text(30, rng) for _ in range(5)]
    sides = [np.concatenate([lines[line] for line in rng.integers(0, 5, tokens // 30)]) for _ in range(2)]
    return sides[0], sides[1]


OF_BYTES: dict[str, Make] = {
    "unknown everywhere": functools.partial(_unknown, 1.0, 1.0),
    "every other unknown on both sides": functools.partial(_unknown, 0.5, 0.5),
    "one in ten unknown on both sides": functools.partial(_unknown, 0.1, 0.1),
    "every other unknown on one side": functools.partial(_unknown, 0.5, 0.0),
    "unknown everywhere on one side": functools.partial(_unknown, 1.0, 0.0),
    "records with other numbers": _records,
    "Thue and Morse": _thue_morse,
    "spaces collapsed": _spaces,
}
OF_BOTH: dict[str, Make] = {
    "every one doubled": _doubled,
    "two halves exchanged": functools.partial(_moved, 2),
    "a hundred parts in another order": functools.partial(_moved, 101),
    "ten thousand parts in another order": functools.partial(_moved, 10_007),
    "half before and half behind": _inserted,
    "five lines in any order": _doubles,
}
