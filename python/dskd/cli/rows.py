"""What an open file of rows is, whatever its kind, and where reading it goes on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, Self, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dskd.cli.pair import Ids

__all__ = ["MOST_BYTES", "InputError", "Part", "Place", "Rows"]

MOST_BYTES = 1 << 23
"""Of text or ids that are read at a time, but for a single row that has more: what memory depends on."""


class InputError(ValueError):
    """What the user named cannot be read or written; the message says where, what was found, the way out."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where reading goes on: rows, lines and, of text, bytes that lie before."""

    rows: int = 0
    lines: int = 0
    offset: int = 0


Part: TypeAlias = "Sequence[str] | Ids"
"""Rows that were read: their texts, or their ids."""


class Rows(Protocol):
    """An open file of rows. What a call reads depends on the place and the count alone."""

    place: Place
    kind: str
    """What is read of each row, in words."""
    reads_text: bool
    """Whether that is text; or else ids."""

    def read(self, count: int) -> Part:
        """At most so many rows more; fewer where they are long, none at the end of the file."""
        ...

    def share(self) -> float:
        """How much of the file lies before the place, from 0 to 1."""
        ...

    def __enter__(self) -> Self:
        """Itself."""
        ...

    def __exit__(self, *_: object) -> None:
        """Closes the file."""
        ...
