"""Rows to train on, each of which `read_row` can read: that is seen before anything is trained.

Each row is brought to its format and checked once, and stored as Arrow, where the next run of the same data
finds it. It is stored as it is: text as text, and all else as JSON, since a table of structs would give every
object the keys of all others, arguments of tool calls above all. (`datasets.Json` reads the text "12" as a
number.)
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sized
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets

from dskd.train import row_files, row_format, row_sources, rows
from dskd.train.row_format import RowFormat
from dskd.train.row_sources import Rows, RowsTable, Source, find_rows, tables
from dskd.train.rows import COLUMNS, read_row

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dskd.train.row_sources import RowsFile

__all__ = ["check_rows", "load_rows"]

_LOG = logging.getLogger(__name__)
_AS_IT_IS = RowFormat()


def load_rows(
    source: str,
    *,
    split: str | None = "train",
    row_format: RowFormat = _AS_IT_IS,
    streaming: bool = False,
    skip_bad_rows: bool = False,
) -> Rows:
    """The rows of a file, a folder or a data set, see `dskd.train.rows` for what they may be.

    Args:
        source: a file of JSON lines, JSON or CSV, these also `.gz`, or Parquet; a folder; a data set's name.
        split: of a folder or a data set, as `datasets` says it (`train[:1000]`); None is `validation` or
            `test`, of which one is there. A file is one split, `train`.
        row_format: how its rows become rows that `read_row` knows.
        streaming: rows are read as they are asked for, and checked as they come.
        skip_bad_rows: a row that is not as it should be is left out; they are counted and logged.

    Raises:
        FileNotFoundError: there is no such file or data set.
        ValueError: there are no rows, or no such split; or a row is not as it should be: it is named.
    """
    found = find_rows(source, split, streaming=streaming)
    if streaming:
        return _not_empty(_streamed(found.shards, row_format, skip_bad_rows=skip_bad_rows), source)
    return _sound(_stored(found, row_format, source), source, skip_bad_rows=skip_bad_rows)


def check_rows(given: Any, *, name: str = "train_dataset") -> Any:
    """The same rows, each of which `read_row` can read.

    A table of structs gives every object the keys of all others: what is None in a struct is left out again.
    What is streamed is checked as it comes, if it is of `datasets`, and else by who reads it.

    Args:
        given: a sequence or a data set of rows; or several, by name.
        name: what an error calls them.

    Raises:
        ValueError: a row is not as it should be; it is named by its index.
    """
    if isinstance(given, Mapping):
        return {key: check_rows(part, name=f"{name}[{key!r}]") for key, part in given.items()}
    if isinstance(given, datasets.IterableDataset):
        return _streamed(tables(name, given), _AS_IT_IS, skip_bad_rows=False)
    if isinstance(given, datasets.Dataset) and _has_structs(given):
        found = Source("train", None, [RowsTable(name, given.with_format(None))])
        return _sound(_stored(found, _AS_IT_IS, name), name, skip_bad_rows=False)
    if isinstance(given, Sized) and hasattr(given, "__getitem__"):
        each = given if isinstance(given, datasets.Dataset) else (given[index] for index in range(len(given)))
        for index, row in enumerate(each):
            _refuse_bad(f"{name}, row {index} (from 0)", row)
    return given


def _refuse_bad(place: str, row: Any) -> None:
    try:
        read_row(row)
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from error


def _has_structs(given: datasets.Dataset) -> bool:
    """Whether objects lie in it as structs; what a transform of its owner makes of them is its affair."""
    return given.format["type"] != "custom" and any(
        not isinstance(feature, datasets.Value) for feature in given.features.values()
    )


# ---- Stored ----------------------------------------------------------------------------------------------

_JSON = "\x1e"
"""What JSON among texts begins with, as in RFC 7464; text that begins so is stored as JSON."""

_ENCODER = json.JSONEncoder(ensure_ascii=False)
_FAULT = "fault"
_STORED = datasets.Features({name: datasets.Value("string") for name in (*COLUMNS, _FAULT)})


def _stored(found: Source, row_format: RowFormat, source: str) -> datasets.Dataset:
    """All rows, or in the column `fault` what is wrong with them."""
    given = {"shards": tuple(found.shards), "row_format": row_format, "rules": _rules(), "source": source}
    try:
        stored = datasets.Dataset.from_generator(
            _records, features=_STORED, gen_kwargs=given, split=datasets.NamedSplit(found.split)
        )
    except datasets.exceptions.DatasetGenerationError as error:
        raise error.__cause__ or error from None
    return stored if found.part is None else _part_of(stored, found.split, found.part)


@functools.cache
def _rules() -> str:
    """Changes with what is read and how: what other rules have stored is not found again."""
    modules = (
        Path(__file__),
        *(Path(str(one.__file__)) for one in (rows, row_files, row_format, row_sources)),
    )
    return hashlib.sha256(b"".join(path.read_bytes() for path in modules)).hexdigest()


def _records(
    shards: Sequence[RowsFile | RowsTable], row_format: RowFormat, rules: str, source: str
) -> Iterator[dict[str, str | None]]:
    del rules  # told so that what is stored has it in its name
    index = -1
    for index, (place, row) in enumerate(one for shard in shards for one in shard.placed()):  # noqa: B007
        try:
            yield {name: _text(value) for name, value in _sound_row(row, row_format).items()}
        except ValueError as error:
            yield {_FAULT: f"{place}: {error}"}
    if index < 0:
        raise ValueError(f"{source} has no rows")


def _sound_row(row: Mapping[str, Any] | ValueError, row_format: RowFormat) -> dict[str, Any]:
    """The row in its format.

    Raises:
        ValueError: what is wrong with it.
    """
    if isinstance(row, ValueError):
        raise row
    found = row_format(row)
    read_row(found)
    return found


def _text(value: Any) -> str:
    if isinstance(value, str) and not value.startswith(_JSON):
        return value
    return _JSON + _ENCODER.encode(value)


def _part_of(stored: datasets.Dataset, split: str, part: str) -> datasets.Dataset:
    """What is asked for, as `datasets` understands it."""
    instructions = datasets.ReadInstruction.from_spec(part).to_absolute({split: len(stored)})
    return datasets.concatenate_datasets(
        [
            stored.select(range(one.from_ or 0, len(stored) if one.to is None else one.to))
            for one in instructions
        ]
    )


def _sound(stored: datasets.Dataset, source: str, *, skip_bad_rows: bool) -> datasets.Dataset:
    """The rows that are as they should be, which all are unless the others are skipped."""
    faults = stored.select_columns(_FAULT)[:][_FAULT]
    bad = [fault for fault in faults if fault is not None]
    if bad and (len(bad) == len(faults) or not skip_bad_rows):
        raise ValueError(
            f"{bad[0]} ({len(bad)} bad of {_rows_of(faults)}; skip_bad_rows leaves such rows out)"
        )
    if not faults:
        raise ValueError(f"{source} has no rows")
    if bad:
        _LOG.warning("%s: %d bad of %s left out, the first: %s", source, len(bad), _rows_of(faults), bad[0])
        stored = stored.select([index for index, fault in enumerate(faults) if fault is None])
    return _shown(stored)


def _rows_of(faults: Sequence[str | None]) -> str:
    return f"{len(faults)} rows" if len(faults) > 1 else "1 row"


def _shown(stored: datasets.Dataset) -> datasets.Dataset:
    """The columns that a row has, and in them what it says."""
    table = stored.data
    empty = [name for name in COLUMNS if table.column(name).null_count == len(table)]
    return stored.remove_columns([*empty, _FAULT]).with_transform(_decoded)


def _decoded(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
    return {name: [_said(value) for value in values] for name, values in batch.items()}


def _said(value: Any) -> Any:
    return json.loads(value[1:]) if isinstance(value, str) and value.startswith(_JSON) else value


# ---- Streamed --------------------------------------------------------------------------------------------


def _streamed(
    shards: Sequence[RowsFile | RowsTable], row_format: RowFormat, *, skip_bad_rows: bool
) -> datasets.IterableDataset:
    given = {"shards": list(shards), "row_format": row_format, "skip_bad_rows": skip_bad_rows}
    return datasets.IterableDataset.from_generator(_sound_rows, gen_kwargs=given)


def _sound_rows(
    shards: Sequence[RowsFile | RowsTable], row_format: RowFormat, *, skip_bad_rows: bool
) -> Iterator[dict[str, Any]]:
    for shard in shards:
        bad: list[str] = []
        for place, row in shard.placed():
            try:
                yield _sound_row(row, row_format)
            except ValueError as error:
                bad.append(f"{place}: {error}")
                if not skip_bad_rows:
                    raise ValueError(f"{bad[0]} (skip_bad_rows leaves such rows out)") from error
        if bad:
            _LOG.warning("%d bad rows left out, the first: %s", len(bad), bad[0])


def _not_empty(streamed: datasets.IterableDataset, source: str) -> datasets.IterableDataset:
    """The same; its first row is read, so that what is wrong with all is seen at the start."""
    if next(iter(streamed), None) is None:
        raise ValueError(f"{source} has no rows")
    return streamed
