"""The commands: what they are told, and what they do step by step."""

from __future__ import annotations

import contextlib
import signal
from pathlib import Path  # noqa: TC003 - typer reads the annotations of a command
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from dskd._core import __version__
from dskd.cli.drawing import draw, harmless, labels_of, legend, wrapped
from dskd.cli.loading import TokenizerError
from dskd.cli.pair import TokenizerPair, published_pairs
from dskd.cli.progress import progress
from dskd.cli.rows import InputError
from dskd.cli.rows_in import text_of_argument
from dskd.cli.rows_out import check_paths, write_summary
from dskd.cli.totals import Totals, report
from dskd.cli.work import Work

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["application"]


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
    app.command()(train)
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
        text = text_of_argument(text)
        tokenizers = TokenizerPair.load(teacher, student, parse_special=parse_special)
        batch = tokenizers.align([text])
        totals = Totals()
        totals.add(batch, published_pairs(tokenizers, batch) if published else None)
        console = Console(highlight=False)
        labels = (
            labels_of(tokenizers.teacher, batch.teacher_ids),
            labels_of(tokenizers.student, batch.student_ids),
        )
        for line in [
            *draw(batch.alignment, *labels, width=console.width),
            *legend(batch.alignment, width=console.width),
            *wrapped(totals.phrases(), console.width),
        ]:
            console.print(line, soft_wrap=True)


def align(  # noqa: PLR0913 - the options of a command
    file: Annotated[
        Path,
        typer.Argument(help="Text with a row per line, JSON lines (*.jsonl), or Parquet (*.parquet)."),
    ],
    *,
    teacher: Annotated[
        str, typer.Option(metavar="TOKENIZER", help="The teacher's: a hub name, a folder or a file.")
    ],
    student: Annotated[str, typer.Option(metavar="TOKENIZER", help="The student's.")],
    field: Annotated[
        str | None,
        typer.Option(
            help="Read JSON lines or Parquet, and the text from this field.  [default: text; of Parquet the "
            "columns teacher_ids and student_ids, where there are both]"
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(help="Parquet, or JSON lines (*.jsonl).  [default: FILE with suffix .dskd.parquet]"),
    ] = None,
    shard_rows: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Write a folder of Parquet files of so many rows, which the same command goes on with "
            "after it was ended.  [default folder: FILE with suffix .dskd]",
        ),
    ] = None,
    summary: Annotated[Path | None, typer.Option(help="Also write the summary's numbers, as JSON.")] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace what is there, all shards.")
    ] = False,
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
    Nothing is written unless all is, or all of a shard; memory does not grow with the file.
    """
    output = output or file.with_suffix(".dskd.parquet" if shard_rows is None else ".dskd")
    with _reported():
        check_paths(file, output, summary, overwrite=overwrite, shards=shard_rows is not None)
        tokenizers = TokenizerPair.load(teacher, student, parse_special=parse_special)
        with progress(limit) as show:
            work = Work(
                file=file,
                field=field,
                tokenizers=tokenizers,
                limit=limit,
                batch_size=batch_size,
                num_threads=num_threads,
                published=published,
                parse_special=parse_special,
                show=show,
            )
            if shard_rows is None:
                totals = work.to_file(output)
            else:
                totals = work.to_folder(output, shard_rows, overwrite=overwrite)
        if summary:
            paths = {"file": str(file), "output": str(output)}
            write_summary(summary, {**paths, **tokenizers.about(), **totals.numbers()})
        for line in [*report(totals, tokenizers), "", f"written to {output}"]:
            Console(highlight=False).print(harmless(line), soft_wrap=True)


def train() -> None:
    """Distill a teacher into a student; dskd train --help lists the options. Needs dskd[train]."""
    # Never run: `main` hands this command on. It stands here for `dskd --help`.


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
    Console(stderr=True, highlight=False).print(harmless(message), soft_wrap=True)
