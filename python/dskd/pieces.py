"""What a tokenizer says of its ids, before the core makes a vocabulary of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from typing import NamedTuple

from dskd import _core

__all__ = ["DecoderStep", "Kind", "Pieces", "refuse_slots"]


class Kind(IntEnum):
    """What an id is; of several ids with the same bytes the canonical one has the lowest kind."""

    NORMAL = 0
    USER_DEFINED = 1
    BYTE = 2
    UNUSED = 3
    SPECIAL = 4
    OPAQUE = 5


class DecoderStep(NamedTuple):
    """A step of a decoder.

    `byte_level` and `byte_fallback`; `replace` old by new; `word`, where old is the prefix of what goes on
    with a word.
    """

    name: str
    old: str = ""
    new: str = ""


@dataclass(frozen=True, slots=True)
class Pieces:
    """What a tokenizer says of its ids."""

    spellings: list[str | None] | list[bytes | None]
    kinds: list[Kind]
    named: dict[int, set[str]] = field(default_factory=dict)
    """The roles that the tokenizer names, by id; literals are added later."""
    steps: tuple[DecoderStep, ...] | None = None
    """The steps of its decoder, for spellings that are text; None where they are the bytes themselves."""
    dummy_prefix: bool = False


_LARGEST_REAL = 1 << 18
"""Slots of the largest vocabulary in wide use (Gemma): so many may be empty in any other, too."""

_SLOTS_A_TOKEN = 4
"""Above that so many slots for each token: models are padded to a multiple, never to several times."""


def refuse_slots(slots: int, tokens: int, found: str) -> None:
    """Refuses far more slots than there are tokens: a few bytes in a file would be gigabytes here.

    Args:
        slots: how many are wanted.
        tokens: how many ids have a token.
        found: what wants them, for the message.

    Raises:
        ValueError: they are more than any vocabulary may have, or than this one may.
    """
    if slots > _core.MAX_ENTRIES:
        raise ValueError(
            f"{found}, and a vocabulary may have {_core.MAX_ENTRIES} entries; ids end at "
            f"{_core.MAX_ENTRIES - 1}"
        )
    allowed = max(_LARGEST_REAL, _SLOTS_A_TOKEN * tokens)
    if slots > allowed:
        raise ValueError(
            f"{found}: {slots} slots for {tokens} token{'s' * (tokens != 1)}, and {allowed} are allowed "
            f"({_SLOTS_A_TOKEN} a token, and {_LARGEST_REAL} in any case); if the ids are right, give "
            "Vocabulary.from_bytes a list of what each decodes to, with None where there is nothing"
        )
