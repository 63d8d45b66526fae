"""Texts from a file or an argument, each error with its line, and the progress through them."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

__all__ = ["InputError", "Line", "batches", "progress", "rows_of", "text_of_argument"]


class InputError(ValueError):
    """What the user named cannot be read or written; the message says where, what was found, the way out."""


@dataclass(frozen=True, slots=True)
class Line:
    """The text of a row, and the bytes of the file that it took."""

    text: str
    size: int


def text_of_argument(argument: str) -> str:
    """The argument, or what standard input holds."""
    if argument == "-":
        return _decoded(sys.stdin.buffer.read(), "standard input")
    return _decoded(os.fsencode(argument), "TEXT")


def rows_of(file: Path, name: str | None) -> Iterator[Line]:
    """The texts of a file: every line, or the named field of every line that is not blank."""
    is_json = name is not None or file.suffix in _JSON_LINES
    with file.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            where = f"{file}, line {number}"
            start = 3 if number == 1 and line.startswith(b"\xef\xbb\xbf") else 0  # a byte order mark
            text = _decoded(line[start:].removesuffix(b"\n").removesuffix(b"\r"), where)
            if not is_json:
                yield Line(text, len(line))
            elif text.strip():
                yield Line(_field_of(text, name or "text", where), len(line))


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


def batches(rows: Iterator[Line], size: int) -> Iterator[list[Line]]:
    """So many rows at a time."""
    while part := list(islice(rows, size)):
        yield part


@contextlib.contextmanager
def progress(file: Path, limit: int | None) -> Iterator[Callable[[list[Line]], None]]:
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

        def show(part: list[Line]) -> None:
            seen = progress.tasks[task].fields
            rows, read = seen["rows"] + len(part), seen["bytes"] + sum(line.size for line in part)
            done = max(read / size if size else 0.0, rows / limit if limit else 0.0)
            progress.update(task, completed=done, rows=rows, bytes=read)

        yield show
