"""The command line: `dskd inspect` draws two tokenizations of a text, `dskd align` aligns those of a file.

It needs more than the library (`pip install 'dskd[cli]'`). Importing it stays cheap: what reads tokenizers
and writes Parquet is imported by the command that needs it.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
from dataclasses import dataclass, field, fields
from enum import Enum
from importlib import import_module
from itertools import chain, groupby, islice, zip_longest
from pathlib import Path  # noqa: TC003 - typer reads the annotations of a command
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import numpy as np

from dskd._core import __version__
from dskd.alignment import Aligner, Counts, PairKind
from dskd.loading import LoadedTokenizer, TokenizerError, load_tokenizer
from dskd.ragged import Ragged
from dskd.reference import published_eta
from dskd.vocabulary import Kind

with contextlib.suppress(ImportError):  # `main` tries again, and says what is missing
    import typer
    from rich.cells import cell_len
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
    from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    import numpy.typing as npt
    import pyarrow as pa

    from dskd.alignment import Alignment, Pairs, Ranges

__all__ = ["InputError", "Totals", "application", "draw", "label", "legend", "main", "percent", "visible"]


class InputError(ValueError):
    """What the user named cannot be read or written; the message says where, what was found, the way out."""


# ---- The command -----------------------------------------------------------------------------------------


def main() -> None:
    """The command `dskd`."""
    # A job that its scheduler ends cleans up, as one that is interrupted does.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # what its encoding lacks is escaped, instead of an error
            stream.reconfigure(errors="backslashreplace")
    try:
        import_module("rich")
        import_module("typer")
        application()()
    except ImportError as error:
        sys.exit(f"dskd: {error}; the command line needs more than the library: pip install 'dskd[cli]'")


def application() -> typer.Typer:
    """The command with its subcommands."""
    app = typer.Typer(
        name="dskd",
        help="Exact token alignment between two tokenizers, for cross-tokenizer distillation.",
        no_args_is_help=True,
        add_completion=False,
        rich_markup_mode=None,  # boxes would break the paths in an error
        pretty_exceptions_enable=False,
    )
    app.callback()(_options)
    app.command()(inspect)
    app.command()(align)
    return app


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"dskd {__version__}")
        raise typer.Exit


def _options(
    *,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit."),
    ] = False,
) -> None:
    """Takes the options that stand before a subcommand."""


_PUBLISHED = "Add the ratio by the rule as published, over the same tokens."


def inspect(
    text: Annotated[str, typer.Argument(help="The text; - reads it from standard input.")],
    *,
    teacher: Annotated[
        str, typer.Option(metavar="TOKENIZER", help="The teacher's: a hub name, a folder or a file.")
    ],
    student: Annotated[str, typer.Option(metavar="TOKENIZER", help="The student's.")],
    published: Annotated[bool, typer.Option("--published", help=_PUBLISHED)] = False,
    parse_special: Annotated[
        bool, typer.Option("--parse-special", help="Read </s> and the like as special tokens, not as text.")
    ] = False,
) -> None:
    """Draw two tokenizations of one text above each other.

    Between them a bar says how the tokens belong together; below stands what the bars mean, and how much was
    paired. White space is shown (· ⏎ →), and what is no character to print is shown by its code.
    """
    with _reported():
        text = _text_of_argument(text)
        tokenizers = _Tokenizers.load(teacher, student, parse_special=parse_special)
        batch = tokenizers.align([text])
        totals = Totals()
        totals.add(batch, _published(tokenizers, batch) if published else None)
        console = Console(highlight=False)
        labels = (
            _labels(tokenizers.teacher, batch.teacher_ids),
            _labels(tokenizers.student, batch.student_ids),
        )
        for line in [
            *draw(batch.alignment, *labels, width=console.width),
            *legend(batch.alignment, width=console.width),
            *_wrapped(totals.phrases(), console.width),
        ]:
            console.print(line, soft_wrap=True)


def align(  # noqa: PLR0913 - the options of a command
    file: Annotated[Path, typer.Argument(help="Text with a row per line, or JSON lines (*.jsonl).")],
    *,
    teacher: Annotated[
        str, typer.Option(metavar="TOKENIZER", help="The teacher's: a hub name, a folder or a file.")
    ],
    student: Annotated[str, typer.Option(metavar="TOKENIZER", help="The student's.")],
    field: Annotated[
        str | None, typer.Option(help="Read JSON lines, and the text from this field.  [default: text]")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(help="Parquet, or JSON lines (*.jsonl).  [default: FILE with suffix .dskd.parquet]"),
    ] = None,
    summary: Annotated[Path | None, typer.Option(help="Also write the summary's numbers, as JSON.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")] = False,
    limit: Annotated[int | None, typer.Option(min=1, help="Stop after so many rows.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows at a time.")] = 256,
    num_threads: Annotated[
        int | None, typer.Option(min=1, help="Rows aligned at once.  [default: one per processor]")
    ] = None,
    published: Annotated[bool, typer.Option("--published", help=_PUBLISHED)] = False,
    parse_special: Annotated[
        bool, typer.Option("--parse-special", help="Read </s> and the like as special tokens, not as text.")
    ] = False,
) -> None:
    """Align two tokenizations of every row of a file, and sum up.

    Each row becomes a row of Parquet: the ids of both sides, pairs, chunks, differences, counts and ratios.
    Nothing is written unless all is.
    """
    output = output or file.with_suffix(".dskd.parquet")
    with _reported():
        _check_paths(file, output, summary, overwrite=overwrite)
        tokenizers = _Tokenizers.load(teacher, student, parse_special=parse_special)
        totals, start = Totals(), time.perf_counter()
        with (
            _aside(output) as aside,
            _writer(aside, output.suffix, tokenizers) as write,
            _progress(file, limit) as show,
        ):
            for part in _batches(islice(_rows(file, field), limit), batch_size):
                batch = tokenizers.align([row.text for row in part], num_threads)
                write(_record_batch(batch, first_row=totals.rows))
                totals.add(batch, _published(tokenizers, batch) if published else None)
                show(part)
            if not totals.rows:
                raise InputError(f"{file} has no rows; there is nothing to align")
        totals.seconds = time.perf_counter() - start
        if summary:
            paths = {"file": str(file), "output": str(output)}
            _write_summary(summary, {**paths, **tokenizers.about(), **totals.numbers()})
        for line in [*_report(totals, tokenizers), "", f"written to {output}"]:
            Console(highlight=False).print(_harmless_text(line), soft_wrap=True)


@contextlib.contextmanager
def _reported() -> Iterator[None]:
    """Says in one line what went wrong, where the user can do something about it."""
    try:
        yield
    except BrokenPipeError:  # the reader of a pipe has seen enough: the application ends quietly
        raise
    except (InputError, TokenizerError, OSError) as error:
        _complain(f"error: {error}")
        raise typer.Exit(1) from error
    except KeyboardInterrupt as error:
        _complain("interrupted")
        raise typer.Exit(128 + signal.SIGINT) from error


def _complain(message: str) -> None:
    Console(stderr=True, highlight=False).print(_harmless_text(message), soft_wrap=True)


# ---- Two tokenizers --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Batch:
    """Rows of ids of both sides, their alignment, and the seconds that aligning took."""

    teacher_ids: Ragged
    student_ids: Ragged
    alignment: Alignment
    seconds: float


@dataclass(frozen=True, slots=True)
class _Tokenizers:
    """The teacher's tokenizer and the student's."""

    teacher: LoadedTokenizer
    student: LoadedTokenizer
    aligner: Aligner

    @classmethod
    def load(cls, teacher: str, student: str, *, parse_special: bool) -> _Tokenizers:
        sides = [load_tokenizer(name, parse_special=parse_special) for name in (teacher, student)]
        return cls(sides[0], sides[1], Aligner(sides[0].vocabulary, sides[1].vocabulary))

    def about(self) -> dict[str, dict[str, str]]:
        """Which tokenizers they are, for a file that holds their ids."""
        return {
            side: {"name": tokenizer.name, "content_hash": tokenizer.vocabulary.content_hash}
            for side, tokenizer in (("teacher", self.teacher), ("student", self.student))
        }

    def align(self, texts: Sequence[str], num_threads: int | None = None) -> _Batch:
        teacher_ids = _ragged(self.teacher.encode_batch(texts))
        student_ids = _ragged(self.student.encode_batch(texts))
        start = time.perf_counter()
        alignment = self.aligner.align(teacher_ids, student_ids, num_threads=num_threads)
        return _Batch(teacher_ids, student_ids, alignment, time.perf_counter() - start)


def _ragged(rows: Sequence[Sequence[int]]) -> Ragged:
    values = np.fromiter(chain.from_iterable(rows), np.int32, sum(map(len, rows)))
    return Ragged.from_lengths(values, [len(row) for row in rows])


def _published(tokenizers: _Tokenizers, batch: _Batch) -> tuple[int, int]:
    """How many pairs the published rule makes, and how many of them are none by the definition.

    Counted are its pairs whose student token has bytes: what the ratio counts of ours.
    """
    has_bytes = tokenizers.student.vocabulary.canonical_ids >= 0
    pairs = false_pairs = 0
    for row in range(len(batch.alignment)):
        teacher, student = _row(batch.teacher_ids, row), _row(batch.student_ids, row)
        found = published_eta(
            tokenizers.teacher.spellings(teacher),
            tokenizers.student.spellings(student),
            teacher_eos=tokenizers.teacher.eos,
            student_eos=tokenizers.student.eos,
        )
        ours = batch.alignment[row].pairs
        true_pairs = set(zip(ours.teacher.tolist(), ours.student.tolist(), strict=True))
        text_pairs = [pair for pair in found if has_bytes[student[pair[1]]]]
        pairs += len(text_pairs)
        false_pairs += sum(pair not in true_pairs for pair in text_pairs)
    return pairs, false_pairs


def _row(rows: Ragged, row: int) -> list[int]:
    ids: list[int] = rows.values[rows.offsets[row] : rows.offsets[row + 1]].tolist()
    return ids


# ---- Numbers ---------------------------------------------------------------------------------------------


def _no_counts() -> Counts:
    return Counts(*(np.zeros(1, np.int64) for _ in fields(Counts)))


@dataclass(slots=True)
class Totals:
    """Sums over rows; the ratios are quotients of sums.

    Attributes:
        rows: rows.
        teacher_ids: ids of the teacher, specials and all.
        student_ids: the same for the student.
        differences: runs of tokens whose bytes differ.
        counts: the counts of all rows together, as those of one row.
        published: pairs of the published rule, and how many of them are false; None if not counted.
        seconds_aligning: seconds in `Aligner.align`.
        seconds: seconds from the first row read to the file written.
    """

    rows: int = 0
    teacher_ids: int = 0
    student_ids: int = 0
    differences: int = 0
    counts: Counts = field(default_factory=_no_counts)
    published: tuple[int, int] | None = None
    seconds_aligning: float = 0.0
    seconds: float = 0.0

    def add(self, batch: _Batch, published: tuple[int, int] | None = None) -> None:
        """Adds the rows of a batch."""
        self.rows += len(batch.alignment)
        self.teacher_ids += len(batch.teacher_ids.values)
        self.student_ids += len(batch.student_ids.values)
        self.differences += len(batch.alignment.differences)
        self.seconds_aligning += batch.seconds
        total = batch.alignment.counts.total()
        names = [item.name for item in fields(Counts)]
        self.counts = Counts(*(getattr(self.counts, name) + getattr(total, name) for name in names))
        if published is not None:
            before = self.published or (0, 0)
            self.published = (before[0] + published[0], before[1] + published[1])

    @property
    def pairs(self) -> int:
        """Pairs of all three kinds."""
        return int((self.counts.exact + self.counts.space + self.counts.role)[0])

    @property
    def published_ratio(self) -> float | None:
        """Pairs of the published rule, false ones too / student tokens that have bytes, as of our ratio."""
        if self.published is None:
            return None
        return self.published[0] / max(int(self.counts.student_tokens[0]), 1)

    def numbers(self) -> dict[str, Any]:
        """All of them by name, as JSON has them."""
        coverage, ids = self.counts.coverage, self.teacher_ids + self.student_ids
        return {
            "rows": self.rows,
            "teacher_ids": self.teacher_ids,
            "student_ids": self.student_ids,
            "pairs": self.pairs,
            **{item.name: int(getattr(self.counts, item.name)[0]) for item in fields(Counts)},
            "differences": self.differences,
            "ratio": float(self.counts.ratio[0]),
            "coverage_teacher": float(coverage.teacher[0]),
            "coverage_student": float(coverage.student[0]),
            "published_pairs": self.published and self.published[0],
            "published_false_pairs": self.published and self.published[1],
            "published_ratio": self.published_ratio,
            "seconds_aligning": self.seconds_aligning,
            "seconds": self.seconds,
            "tokens_per_second_aligning": ids / self.seconds_aligning if self.seconds_aligning else 0.0,
            "tokens_per_second": ids / self.seconds if self.seconds else 0.0,
        }

    def phrases(self) -> list[Text]:
        """What one line says of one text."""
        numbers = self.numbers()
        teacher, student = (percent(numbers[f"coverage_{side}"]) for side in ("teacher", "student"))
        said = [
            f"{self.teacher_ids:,} teacher tokens",
            f"{self.student_ids:,} student tokens",
            f"{self.pairs:,} pair{'s' * (self.pairs != 1)} ({_kinds_of_pairs(numbers)})",
            f"ratio {percent(numbers['ratio'])}",
            f"coverage {teacher}" if teacher == student else f"coverage {teacher} teacher, {student} student",
        ]
        if self.published_ratio is not None:
            false_pairs = f" ({self.published[1]:,} false)" if self.published and self.published[1] else ""
            said.append(f"published rule {percent(self.published_ratio)}{false_pairs}")
        return [Text(phrase) for phrase in said]


def _report(totals: Totals, tokenizers: _Tokenizers) -> list[str]:
    """The summary of a run: what each side has, what is counted of both, and how fast it was."""
    numbers = totals.numbers()
    sides = [
        ("", "teacher", "student"),
        ("tokenizer", tokenizers.teacher.name, tokenizers.student.name),
        ("tokens", f"{totals.teacher_ids:,}", f"{totals.student_ids:,}"),
        ("coverage", *(percent(numbers[f"coverage_{side}"]) for side in ("teacher", "student"))),
    ]
    width = max(cell_len(student) for _, _, student in sides)
    rows = [(name, teacher, _right(student, width)) for name, teacher, student in sides]
    return _table([*rows, ("", "", ""), *_report_of_both(totals, numbers)])


def _report_of_both(totals: Totals, numbers: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    yield "rows", f"{totals.rows:,}", ""
    yield "pairs", f"{totals.pairs:,}", _kinds_of_pairs(numbers)
    yield "differences", f"{totals.differences:,}", ""
    yield "ratio", percent(numbers["ratio"]), f"of {numbers['student_tokens']:,} student tokens with text"
    if totals.published is not None and totals.published_ratio is not None:
        pairs, false_pairs = totals.published
        note = f"{pairs:,} pairs, {false_pairs:,} of them false, of the same tokens"
        yield "published rule", percent(totals.published_ratio), note
    yield "tokens a second", f"{numbers['tokens_per_second_aligning']:,.0f}", "of both sides, aligning alone"
    everything = "reading, tokenizing and writing" if totals.published is None else "everything else"
    yield "", f"{numbers['tokens_per_second']:,.0f}", f"with {everything}"


def _table(rows: Sequence[tuple[str, str, str]]) -> list[str]:
    """Lines of three columns, the second flush right."""
    widths = [max(cell_len(row[column]) for row in rows) for column in (0, 1)]
    return [
        f"{name}{' ' * (widths[0] - cell_len(name))}  {_right(value, widths[1])}  {note}".rstrip()
        for name, value, note in rows
    ]


def _right(text: str, width: int) -> str:
    return " " * (width - cell_len(text)) + text


def _kinds_of_pairs(numbers: dict[str, Any]) -> str:
    return ", ".join(f"{numbers[kind]:,} {kind}" for kind in ("exact", "space", "role"))


def percent(part: float) -> str:
    """With one digit, and 100.0% for all of it only."""
    return f"{min(part, 0.999) if part < 1 else part:.1%}"


# ---- Drawing ---------------------------------------------------------------------------------------------


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
    return _wrapped(samples, width)


def _wrapped(phrases: Sequence[Text], width: int) -> list[Text]:
    """The phrases side by side, on as many lines as it takes."""
    lines: list[Text] = []
    for phrase in phrases:
        if lines and lines[-1].cell_len + 3 + phrase.cell_len <= width:
            lines[-1].append("   ").append_text(phrase)
        else:
            lines.append(phrase.copy())
    return lines


def _labels(tokenizer: LoadedTokenizer, ids: Ragged) -> list[str]:
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
        else "".join(_VISIBLE.get(character) or _harmless(character) for character in run)
        for is_partial, run in groupby(text, lambda character: "\udc80" <= character <= "\udcff")
    )
    return f"◌{shown}" if shown and cell_len(shown[0]) == 0 else shown or "⟨⟩"


def _harmless(character: str) -> str:
    """The character, or where it is none to print its code."""
    if character.isprintable() and ord(character) not in _VARIATION_SELECTORS:
        return character
    code = ord(character)
    return f"⟨{code:02X}⟩" if code < 0x80 else f"⟨U+{code:04X}⟩"  # noqa: PLR2004 - ASCII, where it is the byte


def _harmless_text(text: str) -> Text:
    """Text that a user named or a file holds, for a line in the terminal."""
    return Text("".join(map(_harmless, text)))


# ---- Rows in ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Line:
    """The text of a row, and the bytes of the file that it took."""

    text: str
    size: int


def _text_of_argument(argument: str) -> str:
    """The argument, or what standard input holds."""
    if argument == "-":
        return _decoded(sys.stdin.buffer.read(), "standard input")
    return _decoded(os.fsencode(argument), "TEXT")


def _rows(file: Path, name: str | None) -> Iterator[_Line]:
    """The texts of a file: every line, or the named field of every line that is not blank."""
    is_json = name is not None or file.suffix in _JSON_LINES
    with file.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            where = f"{file}, line {number}"
            start = 3 if number == 1 and line.startswith(b"\xef\xbb\xbf") else 0  # a byte order mark
            text = _decoded(line[start:].removesuffix(b"\n").removesuffix(b"\r"), where)
            if not is_json:
                yield _Line(text, len(line))
            elif text.strip():
                yield _Line(_field_of(text, name or "text", where), len(line))


_JSON_LINES = (".jsonl", ".ndjson", ".json")


def _decoded(data: bytes, where: str) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise InputError(
            f"{where}: byte {data[error.start]:#04x} at offset {error.start} is not UTF-8; convert it, "
            "for example with iconv -f LATIN1 -t UTF-8"
        ) from error


def _field_of(line: str, name: str, where: str) -> str:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:  # a number of 5,000 digits is a bare ValueError
        raise InputError(f"{where}: not JSON ({error}); JSON lines have one object a line") from error
    if not isinstance(row, dict):
        raise InputError(
            f"{where}: {_TYPES[type(row)]} instead of an object; JSON lines have one object a line"
        )
    if name not in row:
        having = ", ".join(row) or "none"
        raise InputError(f"{where}: no field {name!r}; its fields are {having}: name one with --field")
    text = row[name]
    if not isinstance(text, str):
        raise InputError(
            f"{where}: field {name!r} is {_TYPES[type(text)]}, not a string; name one with --field"
        )
    return _whole(text, where)


_TYPES = {
    dict: "an object",
    list: "a list",
    str: "a string",
    int: "a number",
    float: "a number",
    bool: "true or false",
    type(None): "null",
}


def _whole(text: str, where: str) -> str:
    """The text, unless an escape in it is half a character."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        code = f"\\u{ord(text[error.start]):04x}"
        raise InputError(
            f"{where}: {code} is half of a surrogate pair and no character; repair the row"
        ) from error
    return text


def _batches(rows: Iterator[_Line], size: int) -> Iterator[list[_Line]]:
    while part := list(islice(rows, size)):
        yield part


# ---- Rows out --------------------------------------------------------------------------------------------


def _check_paths(file: Path, output: Path, summary: Path | None, *, overwrite: bool) -> None:
    """Before anything is read: whether there is something to read, and nothing in the way."""
    if not file.exists():
        raise InputError(f"there is no file {file}")
    if file.is_dir():
        raise InputError(f"{file} is a folder; name a file in it")
    if output.suffix not in _WRITERS:
        raise InputError(f"--output {output}: its suffix is none of {', '.join(_WRITERS)}")
    for path in filter(None, (output, summary)):
        if path.resolve() == file.resolve():
            raise InputError(f"{path} is the file to read; name another to write")
        if not path.parent.is_dir():
            raise InputError(f"{path}: there is no folder {path.parent}; make it first")
        if path.exists() and not (overwrite and path.is_file()):
            raise InputError(f"{path} exists; name another, or replace it with --overwrite")


@contextlib.contextmanager
def _aside(path: Path) -> Iterator[Path]:
    """A path beside this one to write to; at the end it is renamed, and after an error nothing is left."""
    aside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield aside
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def _write_summary(path: Path, numbers: dict[str, Any]) -> None:
    with _aside(path) as aside:
        aside.write_text(json.dumps(numbers, indent=2) + "\n", encoding="utf-8")


_Write: TypeAlias = "Callable[[pa.RecordBatch], None]"


@contextlib.contextmanager
def _writer(path: Path, suffix: str, tokenizers: _Tokenizers) -> Iterator[_Write]:
    """What writes record batches to this path, by the suffix that it will have."""
    with _WRITERS[suffix](path, _schema(tokenizers)) as write:
        yield write


_GROUP_BYTES = 1 << 26  # a row group; one for every batch would fill the footer of a large file


@contextlib.contextmanager
def _parquet(path: Path, schema: pa.Schema) -> Iterator[_Write]:
    import pyarrow as pa  # noqa: PLC0415 - `inspect` does without
    import pyarrow.parquet as pq  # noqa: PLC0415

    waiting: list[pa.RecordBatch] = []

    def flush() -> None:
        writer.write_table(pa.Table.from_batches(waiting, schema))
        waiting.clear()

    def write(batch: pa.RecordBatch) -> None:
        waiting.append(batch.replace_schema_metadata(schema.metadata))
        if sum(each.nbytes for each in waiting) > _GROUP_BYTES:
            flush()

    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        yield write
        if waiting:
            flush()


@contextlib.contextmanager
def _json_lines(path: Path, _schema: pa.Schema) -> Iterator[_Write]:
    with path.open("w", encoding="utf-8") as file:

        def write(batch: pa.RecordBatch) -> None:
            file.writelines(json.dumps(row) + "\n" for row in batch.to_pylist())

        yield write


_WRITERS = {".parquet": _parquet, ".jsonl": _json_lines, ".ndjson": _json_lines}


def _schema(tokenizers: _Tokenizers) -> pa.Schema:
    """The columns, and which tokenizers the ids are of."""
    nothing = Ragged.from_lengths(np.empty(0, np.int32), [])
    alignment = tokenizers.aligner.align([], [])
    about = json.dumps({"version": __version__, **tokenizers.about()})
    return _record_batch(_Batch(nothing, nothing, alignment, 0.0), first_row=0).schema.with_metadata(
        {"dskd": about}
    )


def _record_batch(batch: _Batch, *, first_row: int) -> pa.RecordBatch:
    """A row of the file for each row of the batch: ids, what aligning found, counts and ratios."""
    import pyarrow as pa  # noqa: PLC0415 - `inspect` does without

    alignment = batch.alignment
    ends = ("teacher_start", "teacher_end", "student_start", "student_end")
    columns = {
        "row": first_row + np.arange(len(alignment)),
        "teacher_ids": _lists(batch.teacher_ids.values, batch.teacher_ids.offsets),
        "student_ids": _lists(batch.student_ids.values, batch.student_ids.offsets),
        **_list_columns("pair", alignment.pairs, ("teacher", "student", "kind")),
        **_list_columns("chunk", alignment.chunks, (*ends, "encloses_zero_width")),
        **_list_columns("difference", alignment.differences, ends),
        **{item.name: getattr(alignment.counts, item.name) for item in fields(Counts)},
        "coverage_teacher": alignment.coverage.teacher,
        "coverage_student": alignment.coverage.student,
        "ratio": alignment.ratio,
    }
    return pa.record_batch(columns)


def _list_columns(prefix: str, found: Pairs | Ranges, names: Iterable[str]) -> dict[str, pa.ListArray]:
    return {f"{prefix}_{name}": _lists(getattr(found, name), found.offsets) for name in names}


def _lists(values: npt.NDArray[Any], offsets: npt.NDArray[np.int64]) -> pa.ListArray:
    import pyarrow as pa  # noqa: PLC0415 - `inspect` does without

    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(values))


@contextlib.contextmanager
def _progress(file: Path, limit: int | None) -> Iterator[Callable[[list[_Line]], None]]:
    """A bar over the bytes of the file, or over the rows up to the limit where that comes first."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda _: None
        return
    size = file.stat().st_size
    rows = TextColumn("{task.fields[rows]:,} rows")
    columns = (BarColumn(), TaskProgressColumn(), rows, TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=1.0 if size else None, rows=0, bytes=0)

        def show(part: list[_Line]) -> None:
            seen = progress.tasks[task].fields
            rows, read = seen["rows"] + len(part), seen["bytes"] + sum(line.size for line in part)
            done = max(read / size if size else 0.0, rows / limit if limit else 0.0)
            progress.update(task, completed=done, rows=rows, bytes=read)

        yield show
