"""What a tokenizer says of its ids, before the core makes a vocabulary of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from typing import TypeAlias

__all__ = ["Kind", "Pieces", "Step"]


class Kind(IntEnum):
    """What an id is; of several ids with the same bytes the canonical one has the lowest kind."""

    NORMAL = 0
    USER_DEFINED = 1
    BYTE = 2
    UNUSED = 3
    SPECIAL = 4
    OPAQUE = 5


Step: TypeAlias = tuple[str, str, str]
"""A decoder step and what it needs: `replace` what by what, `word` the prefix of what goes on with a word."""


@dataclass(frozen=True, slots=True)
class Pieces:
    """What a tokenizer says of its ids."""

    spellings: list[str | None] | list[bytes | None]
    kinds: list[Kind]
    named: dict[int, set[str]] = field(default_factory=dict)
    """The roles that the tokenizer names, by id; literals are added later."""
    steps: tuple[Step, ...] | None = None
    """The steps of its decoder, for spellings that are text; None where they are the bytes themselves."""
    dummy_prefix: bool = False
