"""Rows of JSON and CSV files exactly as they stand there, each with its place, or what is wrong in its place.

Not by `datasets`: its tables give every object the keys of all others, and it stops at the first bad line.
"""

from __future__ import annotations

import csv
import gzip
import json
import sys
import zlib
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["PlacedRow", "placed_rows", "reader_of"]

PlacedRow = tuple[str, "dict[str, Any] | ValueError"]
"""Where it stands, for a sentence; and the row, or why it cannot be read."""

_BOM = b"\xef\xbb\xbf"


def placed_rows(path: str) -> Iterator[PlacedRow]:
    """The rows of a file whose name ends as `reader_of` knows.

    Raises:
        ValueError: the file as a whole cannot be read: a broken archive, array or header.
    """
    reader = reader_of(path)
    if reader is None:
        raise ValueError(f"{path} is no file of JSON or CSV")
    try:
        yield from reader(path)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path} cannot be unpacked to its end: {error}") from error


def reader_of(path: str) -> Callable[[str], Iterator[PlacedRow]] | None:
    """What reads the file, by the end of its name; None if nothing here does."""
    return _READERS.get(Path(path.removesuffix(".gz")).suffix)


def _opened(path: str) -> IO[bytes]:
    return cast("IO[bytes]", gzip.open(path) if path.endswith(".gz") else Path(path).open("rb"))


# ---- JSON ------------------------------------------------------------------------------------------------


def _json_rows(path: str) -> Iterator[PlacedRow]:
    """Of JSON lines, or of one array."""
    with _opened(path) as file:
        start: bytes = cast("Any", file).peek(64).removeprefix(_BOM).lstrip()
        yield from _array(path, file) if start.startswith(b"[") else _lines(path, file)


def _lines(path: str, file: IO[bytes]) -> Iterator[PlacedRow]:
    for number, line in enumerate(file, 1):
        text = (line.removeprefix(_BOM) if number == 1 else line).rstrip()
        if text:
            yield f"{path}, line {number}", _line(text)


def _line(line: bytes) -> dict[str, Any] | ValueError:
    try:
        return _row(json.loads(line.decode()))
    except json.JSONDecodeError as error:
        return ValueError(f"this is no JSON: {error.msg} at column {error.colno}; every line is a row")
    except UnicodeDecodeError as error:
        return ValueError(f"this is not UTF-8: {error}")
    except (ValueError, RecursionError) as error:  # a number too long, or too many brackets
        return ValueError(f"this cannot be read: {error}")


def _array(path: str, file: IO[bytes]) -> Iterator[PlacedRow]:
    try:
        found = json.loads(file.read().removeprefix(_BOM).decode())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} begins as an array of rows and is no JSON: {error}") from error
    for index, row in enumerate(found):
        yield f"{path}, row {index} (from 0)", _row(row)


def _row(value: Any) -> dict[str, Any] | ValueError:
    if isinstance(value, dict):
        return value
    return ValueError(f"this is a JSON {type(value).__name__}; a row is an object")


# ---- CSV -------------------------------------------------------------------------------------------------


def _csv_rows(path: str) -> Iterator[PlacedRow]:
    """Every cell is text: nothing becomes a number, and no word a missing value."""
    csv.field_size_limit(sys.maxsize)  # of 131,072 characters, else: a document is longer
    with _opened(path) as file:
        lines = (line.decode("utf-8-sig" if number == 0 else "utf-8") for number, line in enumerate(file))
        reader = csv.reader(lines, strict=True)
        try:
            yield from _cells(path, reader)
        except csv.Error as error:
            raise ValueError(f"{path}, line {reader.line_num}: this is no CSV: {error}") from error
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}, line {reader.line_num + 1}: this is not UTF-8: {error}") from error


def _cells(path: str, reader: Any) -> Iterator[PlacedRow]:
    header: list[str] = next(reader, [])
    if twice := sorted({name for name in header if header.count(name) > 1}):
        raise ValueError(f"{path} has two columns {', '.join(twice)}")
    first = reader.line_num + 1
    for cells in reader:
        if cells:
            yield f"{path}, line {first}", _of_cells(header, cells)
        first = reader.line_num + 1


def _of_cells(header: list[str], cells: list[str]) -> dict[str, Any] | ValueError:
    if len(cells) != len(header):
        return ValueError(f"this has {len(cells)} cells, and the header {len(header)}")
    return dict(zip(header, cells, strict=True))


_READERS = {".jsonl": _json_rows, ".ndjson": _json_rows, ".json": _json_rows, ".csv": _csv_rows}
