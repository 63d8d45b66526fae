"""Aligned rows to Parquet or JSON lines, batch by batch; nothing half-made is left behind."""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import fields
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from dskd._core import __version__
from dskd.cli.pair import AlignedRows, TokenizerPair
from dskd.cli.rows_in import InputError
from dskd.columns import Counts
from dskd.ragged import Ragged

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    import numpy.typing as npt
    import pyarrow as pa

    from dskd.columns import Pairs, Ranges

__all__ = ["check_paths", "record_batch", "write_summary", "writer", "written_aside"]


def check_paths(file: Path, output: Path, summary: Path | None, *, overwrite: bool) -> None:
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
def written_aside(path: Path) -> Iterator[Path]:
    """A path beside this one to write to; at the end it is renamed, and after an error nothing is left."""
    aside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield aside
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def write_summary(path: Path, numbers: dict[str, Any]) -> None:
    """Writes the numbers as JSON."""
    with written_aside(path) as aside:
        aside.write_text(json.dumps(numbers, indent=2) + "\n", encoding="utf-8")


_Write: TypeAlias = "Callable[[pa.RecordBatch], None]"


@contextlib.contextmanager
def writer(path: Path, suffix: str, tokenizers: TokenizerPair) -> Iterator[_Write]:
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
        parquet.write_table(pa.Table.from_batches(waiting, schema))
        waiting.clear()

    def write(batch: pa.RecordBatch) -> None:
        waiting.append(batch.replace_schema_metadata(schema.metadata))
        if sum(each.nbytes for each in waiting) > _GROUP_BYTES:
            flush()

    with pq.ParquetWriter(path, schema, compression="zstd") as parquet:
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


def _schema(tokenizers: TokenizerPair) -> pa.Schema:
    """The columns, and which tokenizers the ids are of."""
    nothing = Ragged.from_lengths(np.empty(0, np.int32), [])
    alignment = tokenizers.aligner.align([], [])
    about = json.dumps({"version": __version__, **tokenizers.about()})
    return record_batch(AlignedRows(nothing, nothing, alignment, 0.0), first_row=0).schema.with_metadata(
        {"dskd": about}
    )


def record_batch(batch: AlignedRows, *, first_row: int) -> pa.RecordBatch:
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
