"""Where rows come from: files, folders and data sets, and which of their splits."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import datasets
from pyarrow import parquet

from dskd.train.row_files import placed_rows, reader_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from dskd.train.row_files import PlacedRow

__all__ = ["Rows", "RowsFile", "RowsTable", "Source", "find_rows", "tables"]

Rows: TypeAlias = "datasets.Dataset | datasets.IterableDataset"

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RowsFile:
    """A file that `row_files` reads, as it was when it was found: a later one is not taken for it."""

    path: str
    size: int
    changed: int

    @classmethod
    def at(cls, path: Path) -> RowsFile:
        """The file there.

        Raises:
            FileNotFoundError: there is none.
        """
        if not path.is_file():
            raise FileNotFoundError(f"there is no file {path}")
        state = path.stat()
        return cls(str(path), state.st_size, state.st_mtime_ns)

    def placed(self) -> Iterator[PlacedRow]:
        """Its rows."""
        return placed_rows(self.path)


@dataclass(frozen=True, slots=True)
class RowsTable:
    """Rows that `datasets` reads, and what they are called."""

    name: str
    rows: Rows

    def placed(self) -> Iterator[PlacedRow]:
        """Its rows, without the keys that a table of structs adds to an object."""
        features = self.rows.features or {}
        for index, row in enumerate(self.rows):
            yield f"{self.name}, row {index} (from 0)", _without_fill(row, features)


def _without_fill(value: Any, feature: Any) -> Any:
    """The value; of a struct only what is there."""
    if isinstance(value, list):
        inner = feature[0] if isinstance(feature, list) else getattr(feature, "feature", None)
        return [_without_fill(item, inner) for item in value]
    if isinstance(value, Mapping) and isinstance(feature, Mapping):
        return {key: _without_fill(item, feature.get(key)) for key, item in value.items() if item is not None}
    return value


@dataclass(frozen=True, slots=True)
class Source:
    """What is to be read.

    Attributes:
        split: the name of the split.
        part: what of the rows of `shards` is asked for, as `datasets` says it; None is all.
        shards: the rows, in order.
    """

    split: str
    part: str | None
    shards: Sequence[RowsFile | RowsTable]


def find_rows(source: str, split: str | None, *, streaming: bool) -> Source:
    """What is to be read of a file, a folder or a data set, see `load_rows`.

    Raises:
        FileNotFoundError: there is no such file or data set.
        ValueError: it is no such file, or has not the split that is asked for.
    """
    path = Path(source).expanduser()
    if reader_of(source) is not None or path.suffix == ".parquet":
        return _of_file(path, split, streaming=streaming)
    if path.is_file():
        raise ValueError(
            f"{path}: a file of rows ends in .jsonl, .json or .csv, these also with .gz, or .parquet"
        )
    return _of_set(str(path) if path.is_dir() else source, split, streaming=streaming)


def tables(name: str, rows: Rows) -> list[RowsTable]:
    """The rows, streamed ones in their own shards: workers share them out."""
    if isinstance(rows, datasets.Dataset) or rows.n_shards == 1:
        return [RowsTable(name, rows)]
    count = rows.n_shards
    return [
        RowsTable(f"{name}, shard {index}", rows.shard(num_shards=count, index=index))
        for index in range(count)
    ]


def _of_file(path: Path, split: str | None, *, streaming: bool) -> Source:
    found, split = RowsFile.at(path), split or "train"
    if _name(split) != "train":
        raise ValueError(f"{path} is one file, whose split is train; {split} is asked for")
    if path.suffix != ".parquet":
        return Source("train", _part(split), [found])
    if not parquet.read_metadata(path).num_rows:
        raise ValueError(f"{path} has no rows")
    rows = datasets.load_dataset("parquet", data_files=str(path), split=split, streaming=streaming)
    return Source("train", None, tables(str(path), rows))


def _of_set(source: str, split: str | None, *, streaming: bool) -> Source:
    builder = datasets.load_dataset_builder(source)
    files = {
        str(name): [str(file) for file in found] for name, found in (builder.config.data_files or {}).items()
    }
    chosen = _chosen(source, split, list(files or builder.info.splits or {}))
    of_split = files.get(_name(chosen), [])
    if Path(source).is_dir() and of_split and all(reader_of(file) for file in of_split):
        return Source(_name(chosen), _part(chosen), [RowsFile.at(Path(file)) for file in of_split])
    rows = datasets.load_dataset(source, split=chosen, streaming=streaming)
    return Source(_name(chosen), None, tables(f"{source}, {chosen}", rows))


# ---- Splits ----------------------------------------------------------------------------------------------

_HELD_OUT = ("validation", "test")


def _chosen(source: str, split: str | None, there: Sequence[str]) -> str:
    """The split that is asked for, or else the one that is there to be evaluated on."""
    if split is None:
        held_out = [name for name in _HELD_OUT if name in there]
        if len(held_out) != 1:
            raise ValueError(
                f"{source} has the splits {', '.join(there)}; say with eval_split which is evaluated on"
            )
        split = held_out[0]
    elif "+" not in split and there and _name(split) not in there:
        raise ValueError(f"{source} has no split {_name(split)}, only {', '.join(there)}")
    if len(there) > 1:
        _LOG.warning("%s has the splits %s; %s is taken", source, ", ".join(there), split)
    return split


def _name(split: str) -> str:
    return split.partition("[")[0]


def _part(split: str) -> str | None:
    return split if "[" in split else None
