"""A bar that says how far a file was read."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from dskd.cli.rows import Rows

__all__ = ["progress"]


@contextlib.contextmanager
def progress(limit: int | None) -> Iterator[Callable[[Rows], None]]:
    """What shows how much of a file was read, or of the rows up to the limit where that is more."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda _: None
        return
    rows = TextColumn("{task.fields[rows]:,} rows")
    columns = (BarColumn(), TaskProgressColumn(), rows, TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=None, rows=0)

        def show(read: Rows) -> None:
            done = max(read.share(), read.place.rows / limit if limit else 0.0)
            bar.update(task, completed=done, total=1.0 if done else None, rows=read.place.rows)

        yield show
