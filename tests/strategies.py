"""Random rows and batches, as strategies of hypothesis.

They have few letters and many spaces, so that the two sides meet often: most of them are two tokenizations of
one text or nearly so, cut anywhere, with specials strewn in; the others are independent.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
from hypothesis import strategies as st

from dskd import Aligner
from sides import Side, vocabulary_of

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True)
class Token:
    """Text, or a special with roles; neither is opaque. The name tells ids apart that are otherwise alike."""

    text: bytes | None = None
    roles: frozenset[str] | None = None
    name: str = ""
    is_user_defined: bool = False


OPAQUE = Token()
SPECIALS = [
    *(Token(roles=frozenset({role})) for role in ("<a>", "<b>", "bos", "eos", "pad")),
    *(
        Token(roles=frozenset(roles))
        for roles in (["bos", "eos"], ["eos", "pad"], ["bos", "unk"], ["<a>", "<b>"])
    ),
    Token(roles=frozenset({"<a>"}), name="another"),
    Token(roles=frozenset({"<only here>"})),
    Token(roles=frozenset()),
]
UNITS = [b" ", b" ", b" ", b"a", b"a", b"b", "é".encode(), "…".encode()]
PIECES = [
    b" ",
    b"  ",
    b"a",
    b" a",
    b"  a",
    b"aa",
    b"b",
    b"ab",
    b" b",
    b"\xc3",
    b"\xa9",
    "é".encode(),
    b"\xe2\x80",
]

zero_width = st.sampled_from([*SPECIALS, *SPECIALS, Token(b"")])
texts = st.lists(st.sampled_from(UNITS), max_size=8).map(b"".join)
random_tokens = st.lists(
    st.builds(Token, text=st.sampled_from(PIECES), is_user_defined=st.booleans())
    | st.sampled_from([Token(piece) for piece in PIECES])
    | st.sampled_from([*SPECIALS, Token(b""), OPAQUE]),
    max_size=8,
)


@st.composite
def tokenizations(draw: st.DrawFn, text: bytes, strewn: st.SearchStrategy[Token] = zero_width) -> list[Token]:
    """A text cut anywhere, in the middle of characters too, with tokens strewn in between."""
    cuts = sorted({0, len(text), *draw(st.lists(st.integers(0, len(text)), max_size=len(text)))})
    tokens = [Token(text[start:end]) for start, end in pairwise(cuts)]
    for token, place in draw(st.lists(st.tuples(strewn, st.integers(0, len(tokens))), max_size=2)):
        tokens.insert(place, token)
    return tokens


@st.composite
def one_text(draw: st.DrawFn) -> tuple[list[Token], list[Token]]:
    """Two tokenizations of one text."""
    text = draw(texts)
    return draw(tokenizations(text)), draw(tokenizations(text))


@st.composite
def parts(draw: st.DrawFn) -> tuple[list[Token], list[Token]]:
    """A stretch of common text with specials before it, or a tag; often one side has a space more."""
    text = draw(texts)
    tag = draw(st.sampled_from([b"", b"<t>"]))
    longer = draw(st.sampled_from([None, 0, 1]))
    sides = []
    for side in range(2):
        lead = draw(st.lists(zero_width, max_size=2))
        tags = [Token(tag, is_user_defined=draw(st.sampled_from([True, True, False])))] if tag else []
        tokens = draw(tokenizations(b" " + text if longer == side else text))
        sides.append([*lead, *tags, *draw(with_user_defined(tokens))])
    return sides[0], sides[1]


@st.composite
def with_user_defined(draw: st.DrawFn, tokens: list[Token]) -> list[Token]:
    """The same tokens, of which some are user-defined."""
    chosen = draw(st.sets(st.integers(0, 7), max_size=2))
    return [
        replace(token, is_user_defined=True) if token.text and at in chosen else token
        for at, token in enumerate(tokens)
    ]


@st.composite
def related(draw: st.DrawFn) -> tuple[list[Token], list[Token]]:
    """Two tokenizations of nearly one text: spaces more, sometimes an edit, an unknown token or a cut."""
    drawn = draw(st.lists(parts(), min_size=1, max_size=3))
    teacher, student = ([token for part in drawn for token in part[side]] for side in range(2))
    match draw(st.integers(0, 5)):
        case 0:
            student.insert(draw(st.integers(0, len(student))), Token(draw(st.sampled_from(PIECES))))
        case 1:
            student.insert(draw(st.integers(0, len(student))), OPAQUE)
        case 2:
            del student[draw(st.integers(0, len(student))) :]
        case _:
            pass
    return (teacher, student) if draw(st.booleans()) else (student, teacher)


segments = related() | related() | one_text() | st.tuples(random_tokens, random_tokens)


def side_of(tokens: Sequence[Token], *, dummy_prefix: bool = True) -> Side:
    """A row of these tokens, and the smallest vocabulary that has them."""
    entries = list(dict.fromkeys(tokens))
    roles: dict[int | str, set[str]] = {
        index: set(entry.roles) for index, entry in enumerate(entries) if entry.roles is not None
    }
    user_defined = {index for index, entry in enumerate(entries) if entry.is_user_defined}
    vocabulary = vocabulary_of(
        [entry.text for entry in entries], roles, user_defined, dummy_prefix=dummy_prefix
    )
    return Side(vocabulary, [entries.index(token) for token in tokens])


def masked_side(
    segments: Sequence[Sequence[Token]], gaps: Sequence[Sequence[int]], *, dummy_prefix: bool
) -> Side:
    """A row of segments with ids that take no part, and need not exist, before, between and behind."""
    whole = side_of([token for segment in segments for token in segment], dummy_prefix=dummy_prefix)
    ids, mask, at = list(gaps[0]), [False] * len(gaps[0]), 0
    for segment, gap in zip(segments, gaps[1:], strict=True):
        ids += [*whole.ids[at : at + len(segment)], *gap]
        mask += [*[True] * len(segment), *[False] * len(gap)]
        at += len(segment)
    return Side(whole.vocabulary, ids, mask)


@st.composite
def rows(draw: st.DrawFn) -> tuple[Side, Side]:
    """One row, mostly without a mask, else of several segments a side."""
    prefixes = draw(st.sampled_from([(True, True), (True, True), (True, False), (False, True)]))
    if draw(st.integers(0, 2)):
        of_row = draw(segments)
        teacher, student = (
            side_of(tokens, dummy_prefix=prefix) for tokens, prefix in zip(of_row, prefixes, strict=True)
        )
        return teacher, student
    turns = draw(st.lists(segments, max_size=3))
    surplus = draw(st.sampled_from([(0, 0), (0, 0), (0, 1), (1, 0), (2, 0)]))
    sides = []
    for side in range(2):
        of_side = [turn[side] for turn in turns] + [draw(random_tokens) for _ in range(surplus[side])]
        gap = st.lists(st.sampled_from([-100, 0, 1, 2**40]), min_size=1, max_size=2)
        gaps = [draw(gap) for _ in range(len(of_side) + 1)]
        sides.append(masked_side(of_side, gaps, dummy_prefix=prefixes[side]))
    return sides[0], sides[1]


VERSE_UNITS = [b" ", b"a", b"a", b"b", b"ab", b" a", b"a b ", b"the ", b"\n", "é".encode()]
verses = st.lists(st.sampled_from(VERSE_UNITS), max_size=6).map(b"".join)


@st.composite
def repeated_rows(draw: st.DrawFn) -> tuple[Side, Side]:
    """Few verses sung again and again; on each side some were left out, sung once more or changed."""
    known = draw(st.lists(verses, min_size=1, max_size=3))
    song = draw(st.lists(st.sampled_from(known), max_size=8))
    sides = [
        side_of(draw(tokenizations(b"".join(_sung(draw, song, known)), strewn_in_song))) for _ in range(2)
    ]
    return sides[0], sides[1]


strewn_in_song = st.sampled_from([OPAQUE, *SPECIALS[:3]])


def _sung(draw: st.DrawFn, song: Sequence[bytes], known: Sequence[bytes]) -> list[bytes]:
    lines = list(song)
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(lines)))
        match draw(st.integers(0, 3)):
            case 0:
                lines[at : at + 1] = []
            case 1:
                lines.insert(at, draw(st.sampled_from(known)))
            case 2:
                other = draw(st.sampled_from([b"", b"x", b"yz"]))
                lines[at : at + 1] = [line.replace(b"a", other) for line in lines[at : at + 1]]
            case _:
                lines.insert(at, draw(st.sampled_from(VERSE_UNITS)))
    return lines


@dataclass(frozen=True)
class Batch:
    """Rows of both sides in common vocabularies."""

    aligner: Aligner
    teacher: list[list[int]]
    student: list[list[int]]


@st.composite
def batches(draw: st.DrawFn) -> Batch:
    of_rows = draw(st.lists(segments, min_size=1, max_size=5))
    sides = [side_of([token for row in of_rows for token in row[side]]) for side in range(2)]
    lengths = [[len(row[side]) for row in of_rows] for side in range(2)]
    ids = [
        np.split(np.array(side.ids), np.cumsum(of_side)[:-1])
        for side, of_side in zip(sides, lengths, strict=True)
    ]
    teacher, student = ([[int(token) for token in row] for row in of_side] for of_side in ids)
    return Batch(Aligner(sides[0].vocabulary, sides[1].vocabulary), teacher, student)
