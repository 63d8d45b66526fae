"""Rows of a file, read a few at a time from any place on; each error with its line or row.

Of text (a row per line) and JSON lines they are texts, read here; of Parquet texts or ids, read by
`dskd.cli.parquet_in`.
"""

from __future__ import annotations

import json
import os
import sys
from typing import TYPE_CHECKING, Self

from dskd.cli.rows import MOST_BYTES, InputError, Place

if TYPE_CHECKING:
    from pathlib import Path

    from dskd.cli.rows import Rows

__all__ = ["open_rows", "text_of_argument"]


def open_rows(file: Path, field: str | None, place: Place) -> Rows:
    """The rows of a file from a place on.

    Raises:
        InputError: it is Parquet and has no column that could be read.
    """
    if file.suffix == ".parquet":
        from dskd.cli.parquet_in import ParquetRows  # noqa: PLC0415 - who reads text does without

        return ParquetRows(file, field, place)
    return _Lines(file, field, place)


def text_of_argument(argument: str) -> str:
    """The argument, or what standard input holds."""
    if argument == "-":
        return _decoded(sys.stdin.buffer.read(), "standard input")
    return _decoded(os.fsencode(argument), "TEXT")


class _Lines:
    """The texts of a file: every line, or the named field of every line that is not blank."""

    def __init__(self, file: Path, field: str | None, place: Place) -> None:
        """Opens it and goes to the place; a pipe, which cannot go anywhere, begins at its beginning."""
        self.place = place
        self.reads_text = True
        self._name = file
        self._field = field or ("text" if file.suffix in _JSON_LINES else None)
        self.kind = f"lines of JSON, field {self._field}" if self._field else "lines of text"
        self._file = file.open("rb")
        self._size = os.fstat(self._file.fileno()).st_size
        if place.offset:
            self._file.seek(place.offset)

    def read(self, count: int) -> list[str]:
        """See `Rows`."""
        texts: list[str] = []
        size, lines, offset = 0, self.place.lines, self.place.offset
        while len(texts) < count and size < MOST_BYTES and (line := self._file.readline()):
            lines, offset = lines + 1, offset + len(line)
            if (text := self._text_of(line, lines)) is not None:
                texts.append(text)
                size += len(line)
        self.place = Place(self.place.rows + len(texts), lines, offset)
        return texts

    def _text_of(self, line: bytes, number: int) -> str | None:
        where = f"{self._name}, line {number}"
        start = 3 if number == 1 and line.startswith(b"\xef\xbb\xbf") else 0  # a byte order mark
        text = _decoded(line[start:].removesuffix(b"\n").removesuffix(b"\r"), where)
        if self._field is None:
            return text
        return _field_of(text, self._field, where) if text.strip() else None

    def share(self) -> float:
        """See `Rows`; of a pipe it is always 0."""
        return self.place.offset / self._size if self._size else 0.0

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Closes the file."""
        self._file.close()


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
