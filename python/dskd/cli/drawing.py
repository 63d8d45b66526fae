"""Two tokenizations of a text, drawn above each other."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from itertools import chain, groupby, zip_longest
from typing import TYPE_CHECKING

from rich.cells import cell_len
from rich.text import Text

from dskd.columns import PairKind
from dskd.vocabulary import Kind

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from dskd.alignment import Alignment
    from dskd.cli.loading import LoadedTokenizer
    from dskd.columns import Ranges
    from dskd.ragged import Ragged

__all__ = ["draw", "harmless", "label", "labels_of", "legend", "visible", "wrapped"]


class _Link(Enum):
    """How tokens above each other belong together: the bar between them, its style, what it means."""

    EXACT = ("━", "━", "━", "green", "the same token")
    SPACE = ("·", "━", "━", "green", "the same but for one space")
    ROLE = ("═", "═", "═", "green", "specials of one role")
    CHUNK = ("├", "─", "┤", "yellow", "the same text in other tokens")
    DIFFERENCE = ("╳", "╳", "╳", "red", "different text")
    ALONE = ("∅", " ", " ", "dim", "covers no text")

    def __init__(self, first: str, middle: str, last: str, style: str, meaning: str) -> None:
        self.first = first
        self.middle = middle
        self.last = last
        self.style = style
        self.meaning = meaning

    def bar(self, width: int, *, opens: bool = True, closes: bool = True) -> str:
        """The bar over this width, or the piece of it that opens or closes it."""
        characters = [self.middle] * width
        if closes:
            characters[-1] = self.last
        if opens:
            characters[0] = self.first
        return "".join(characters)


@dataclass(frozen=True, slots=True)
class _Cell:
    """What is drawn in one place: tokens of both sides, and the bar between them."""

    link: _Link
    teacher: str
    student: str
    opens: bool = True
    closes: bool = True

    @property
    def width(self) -> int:
        return max(cell_len(self.teacher), cell_len(self.student), 1)

    @property
    def bar(self) -> str:
        return self.link.bar(self.width, opens=self.opens, closes=self.closes)

    @property
    def ends_a_line(self) -> bool:
        """Whether a line of the text ends here, where the drawing breaks as well."""
        return "⏎" in self.teacher or "⏎" in self.student


_NAMED_FROM = 40  # columns; a narrower terminal has initials at the left


def draw(
    alignment: Alignment, teacher_labels: Sequence[str], student_labels: Sequence[str], *, width: int
) -> list[Text]:
    """The lines of a drawing of one row: teacher tokens, bars, student tokens, an empty line; and again.

    Args:
        alignment: of one row.
        teacher_labels: how each teacher token is shown, see `label`.
        student_labels: the same for the student.
        width: columns of the terminal, 8 or more; no line is wider.
    """
    names = ("teacher  ", "student  ") if width >= _NAMED_FROM else ("T ", "S ")
    room = width - len(names[0])
    cells = (
        cell
        for link, teacher, student in _columns(alignment)
        for cell in _cells(link, teacher_labels[teacher], student_labels[student], room)
    )
    return [line for block in _blocks(cells, room) for line in _lines(block, names)]


def _columns(alignment: Alignment) -> Iterator[tuple[_Link, slice, slice]]:
    """What stands above each other, in the order of the text; every token once."""
    at_teacher = at_student = 0
    end = (int(alignment.teacher_lengths[0]), int(alignment.student_lengths[0]))
    for link, teacher, student in [*_linked(alignment), (None, slice(end[0], None), slice(end[1], None))]:
        # Between them stand tokens without text that have no counterpart.
        yield from ((_Link.ALONE, slice(at, at + 1), slice(0)) for at in range(at_teacher, teacher.start))
        yield from ((_Link.ALONE, slice(0), slice(at, at + 1)) for at in range(at_student, student.start))
        at_teacher, at_student = teacher.stop, student.stop
        if link is not None:
            yield link, teacher, student


def _linked(alignment: Alignment) -> list[tuple[_Link, slice, slice]]:
    """Chunks, differences and pairs of specials, in the order of the text."""
    pairs = alignment.pairs
    positions = zip(pairs.teacher.tolist(), pairs.student.tolist(), strict=True)
    kinds = dict(zip(positions, pairs.kind.tolist(), strict=True))
    linked = [
        (_Link[PairKind(kind).name], slice(teacher, teacher + 1), slice(student, student + 1))
        for (teacher, student), kind in kinds.items()
    ]
    chunks = _slices(alignment.chunks)
    linked += [(_Link.CHUNK, *chunk) for chunk in chunks if (chunk[0].start, chunk[1].start) not in kinds]
    linked += [(_Link.DIFFERENCE, *difference) for difference in _slices(alignment.differences)]
    return sorted(linked, key=lambda entry: (entry[1].start, entry[2].start))


def _slices(ranges: Ranges) -> Iterator[tuple[slice, slice]]:
    ends = (ranges.teacher_start, ranges.teacher_end, ranges.student_start, ranges.student_end)
    for row in zip(*(end.tolist() for end in ends), strict=True):
        yield slice(*row[:2]), slice(*row[2:])


def _cells(link: _Link, teacher: Sequence[str], student: Sequence[str], room: int) -> Iterator[_Cell]:
    """One cell, or as many as it takes where there is not so much room."""
    teacher, student = _level(teacher, student), _level(student, teacher)
    pieces = list(zip_longest(_pieces(teacher, room), _pieces(student, room), fillvalue=""))
    for index, piece in enumerate(pieces):
        yield _Cell(link, *piece, opens=index == 0, closes=index == len(pieces) - 1)


def _level(tokens: Sequence[str], others: Sequence[str]) -> Sequence[str]:
    """The tokens, moved by one column where the others have one space before the same text."""
    if tokens and "".join(others) == "·" + "".join(tokens):
        return [" " + tokens[0], *tokens[1:]]
    return tokens


def _pieces(tokens: Sequence[str], room: int) -> list[str]:
    """The tokens with bounds between them, cut where there is no room, behind a bound if possible."""
    pieces = [""]
    bounded = [*(f"{token}│" for token in tokens[:-1]), *tokens[-1:]]
    for part in chain.from_iterable(_chopped(token, room) for token in bounded):
        if cell_len(pieces[-1]) + cell_len(part) > room:
            pieces.append("")
        pieces[-1] += part
    return pieces


def _chopped(token: str, room: int) -> Iterator[str]:
    """The token in parts that there is room for."""
    part = ""
    for character in token:
        if cell_len(part + character) > room:
            yield part
            part = ""
        part += character
    yield part


def _blocks(cells: Iterable[_Cell], room: int) -> Iterator[list[_Cell]]:
    """As many cells as there is room for, a column apart, up to the end of a line of text."""
    block: list[_Cell] = []
    for cell in cells:
        if block and sum(each.width + 1 for each in block) + cell.width > room:
            yield block
            block = []
        block.append(cell)
        if cell.ends_a_line:
            yield block
            block = []
    if block:
        yield block


def _lines(block: Sequence[_Cell], names: tuple[str, str]) -> Iterator[Text]:
    starts = ((names[0], "dim"), (" " * len(names[0]), ""), (names[1], "dim"))
    teacher, bars, student = (Text().append(*start) for start in starts)
    for cell in block:
        teacher.append_text(_shown(cell.teacher, cell)).append(" ")
        bars.append(cell.bar, cell.link.style).append(" ")
        student.append_text(_shown(cell.student, cell)).append(" ")
    for line in (teacher, bars, student, Text()):
        line.rstrip()
        yield line


def _shown(tokens: str, cell: _Cell) -> Text:
    """Tokens in the colour of their link, as wide as the cell."""
    text = Text(tokens, cell.link.style)
    text.highlight_regex(r"[·⏎→│]", "dim")
    return text.append(" " * (cell.width - cell_len(tokens)))


def legend(alignment: Alignment, *, width: int) -> list[Text]:
    """What the bars in the drawing of this row mean."""
    found = {link for link, _, _ in _columns(alignment)}
    samples = [
        Text.assemble((link.bar(3).rstrip(), link.style), f" {link.meaning}")
        for link in _Link
        if link in found
    ]
    return wrapped(samples, width)


def wrapped(phrases: Sequence[Text], width: int) -> list[Text]:
    """The phrases side by side, on as many lines as it takes."""
    lines: list[Text] = []
    for phrase in phrases:
        if lines and lines[-1].cell_len + 3 + phrase.cell_len <= width:
            lines[-1].append("   ").append_text(phrase)
        else:
            lines.append(phrase.copy())
    return lines


def labels_of(tokenizer: LoadedTokenizer, ids: Ragged) -> list[str]:
    """How each token is shown."""
    return [label(tokenizer, token_id) for token_id in ids.values.tolist()]


def label(tokenizer: LoadedTokenizer, token_id: int) -> str:
    """How a token is shown: its bytes made visible, or a special's spelling as «</s>»."""
    if tokenizer.vocabulary.kind(token_id) in (Kind.SPECIAL, Kind.OPAQUE):
        spelling = tokenizer.spellings([token_id])[0]
        return f"«{visible((spelling or '?').encode())}»"
    return visible(tokenizer.vocabulary.token_bytes(token_id) or b"")


_VISIBLE = {" ": "·", "\n": "⏎", "\t": "→", "│": "⟨U+2502⟩"}
_VARIATION_SELECTORS = range(0xFE00, 0xFE10)  # they change how wide the character before them is


def visible(data: bytes) -> str:
    """Bytes as characters that are safe to print: `·` is a space, `⏎` a new line, `→` a tab.

    What is no whole character, controls a terminal, joins characters or has no shape is written as `⟨E4B8⟩`,
    `⟨1B⟩` or `⟨U+202E⟩`; a combining mark that would stand on whatever comes before it gets a circle: `◌́`.
    """
    text = data.decode("utf-8", "surrogateescape")  # what is no whole character becomes surrogates, for now
    shown = "".join(
        f"⟨{''.join(run).encode('utf-8', 'surrogateescape').hex().upper()}⟩"
        if is_partial
        else "".join(_VISIBLE.get(character) or _printable(character) for character in run)
        for is_partial, run in groupby(text, lambda character: "\udc80" <= character <= "\udcff")
    )
    return f"◌{shown}" if shown and cell_len(shown[0]) == 0 else shown or "⟨⟩"


def _printable(character: str) -> str:
    """The character, or where it is none to print its code."""
    if character.isprintable() and ord(character) not in _VARIATION_SELECTORS:
        return character
    code = ord(character)
    return f"⟨{code:02X}⟩" if code < 0x80 else f"⟨U+{code:04X}⟩"  # noqa: PLR2004 - ASCII, where it is the byte


def harmless(text: str) -> Text:
    """Text that a user named or a file holds, for a line in the terminal."""
    return Text("".join(map(_printable, text)))
