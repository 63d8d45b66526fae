"""What `dskd align` does: rows are read, aligned, summed up and written, a few at a time."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any

from dskd._core import __version__
from dskd.cli.pair import published_pairs
from dskd.cli.rows import InputError, Place
from dskd.cli.rows_in import open_rows
from dskd.cli.rows_out import batch_of, writer, written_aside
from dskd.cli.shards import opened
from dskd.cli.totals import Totals

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from dskd.cli.pair import AlignedRows, TokenizerPair
    from dskd.cli.rows import Rows

__all__ = ["Work"]


@dataclass(frozen=True, slots=True)
class Work:
    """A file and what is to be done with its rows.

    Attributes:
        file: what is read.
        field: of JSON lines or Parquet, the field that holds the text.
        tokenizers: the two sides.
        limit: how many rows are read at most.
        batch_size: how many rows at a time.
        num_threads: how many rows are aligned at once.
        published: whether the pairs of the published rule are counted.
        parse_special: whether literals of special tokens in a text are read as those.
        show: is told how far the file was read.
    """

    file: Path
    field: str | None
    tokenizers: TokenizerPair
    limit: int | None
    batch_size: int
    num_threads: int | None
    published: bool
    parse_special: bool
    show: Callable[[Rows], None]

    def to_file(self, output: Path) -> Totals:
        """Writes all rows to one file.

        Raises:
            InputError: a row cannot be read, or there is none.
        """
        start = time.perf_counter()
        with open_rows(self.file, self.field, Place()) as rows, written_aside(output) as aside:
            batches = self._aligned(rows, self.limit or sys.maxsize)
            totals = self._write(aside, output.suffix, batches, start)
            if not totals.rows:
                raise self._no_rows()
        return totals

    def to_folder(self, folder: Path, shard_rows: int, *, overwrite: bool) -> Totals:
        """Writes so many rows a shard to a folder, and goes on where an earlier process ended.

        Raises:
            InputError: a row cannot be read, or there is none; or as `dskd.cli.shards.opened`.
        """
        with (
            opened(folder, self._job(shard_rows), overwrite=overwrite) as shards,
            open_rows(self.file, self.field, shards.place) as rows,
        ):
            while not shards.complete:
                start = time.perf_counter()
                left = (self.limit or sys.maxsize) - rows.place.rows
                batches = self._aligned(rows, min(shard_rows, left))
                if first := next(batches, None):
                    whole = chain([first], batches)
                    write = partial(self._write, suffix=".parquet", batches=whole, start=start)
                    shards.add(write, rows)
                elif shards.count:
                    shards.finish()
                else:
                    shards.discard()
                    raise self._no_rows()
            return shards.totals

    def _aligned(self, rows: Rows, count: int) -> Iterator[tuple[int, AlignedRows]]:
        """So many rows, a few at a time, each time with the number of the first."""
        end = rows.place.rows + count
        while (first := rows.place.rows) < end and (part := rows.read(min(self.batch_size, end - first))):
            try:
                batch = self.tokenizers.align(part, self.num_threads)
            except ValueError as error:  # an id that the vocabulary lacks
                raise InputError(f"{self.file}, in the rows from {first} on: {error}") from error
            self.show(rows)
            yield first, batch

    def _write(
        self, path: Path, suffix: str, batches: Iterable[tuple[int, AlignedRows]], start: float
    ) -> Totals:
        totals = Totals()
        with writer(path, suffix, self.tokenizers) as write:
            for first_row, batch in batches:
                write(batch_of(batch, first_row=first_row))
                totals.add(batch, published_pairs(self.tokenizers, batch) if self.published else None)
        totals.seconds = time.perf_counter() - start
        return totals

    def _no_rows(self) -> InputError:
        return InputError(f"{self.file} has no rows; there is nothing to align")

    def _job(self, shard_rows: int) -> dict[str, Any]:
        """All that the shards depend on, by what it is called in an error."""
        with open_rows(self.file, self.field, Place()) as rows:
            kind, reads_text = rows.kind, rows.reads_text
        state = self.file.stat()
        sides = (("teacher", self.tokenizers.teacher), ("student", self.tokenizers.student))
        return {
            "dskd": __version__,
            "the input": self.file.name,
            "the input's size": state.st_size,
            "the input's time of change": state.st_mtime_ns,
            "the rows as": kind,
            **{f"the {side}'s vocabulary": tokenizer.vocabulary.content_hash for side, tokenizer in sides},
            **{
                f"the {side}'s way to split text": tokenizer.encoding_hash if reads_text else None
                for side, tokenizer in sides
            },
            "--shard-rows": shard_rows,
            "--limit": self.limit,
            "--batch-size": self.batch_size,
            "--published": self.published,
            "--parse-special": self.parse_special,
        }
