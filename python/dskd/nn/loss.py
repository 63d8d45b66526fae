"""What a loss is: options, what it needs, and its terms."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import nn

    from dskd.nn.batch import States, Teacher, TeacherModel
    from dskd.nn.heads import Head
    from dskd.nn.term import Aside, Term

__all__ = ["Begun", "Loss", "Needs"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Needs:
    """What a loss needs of a batch.

    Attributes:
        pairs: the teacher's states at the pairs.
        chunks: what the teacher says of the tokens of each chunk.
        positions: the teacher's states at all its supervised positions, and the embeddings of both models.
        overlap: that the vocabularies have tokens in common.
        same_vocabulary: that they are one: an id is the same token on both sides.
    """

    pairs: bool = False
    chunks: bool = False
    positions: bool = False
    overlap: bool = False
    same_vocabulary: bool = False

    @property
    def teacher(self) -> bool:
        """Whether it needs a teacher at all."""
        return self.pairs or self.chunks or self.positions

    def __or__(self, other: Needs) -> Needs:
        """What both need."""
        fields = (field.name for field in dataclasses.fields(self))
        return Needs(**{name: getattr(self, name) or getattr(other, name) for name in fields})


@runtime_checkable
class Begun(Protocol):
    """What a loss has built, and wants to be told of each batch: projectors that are solved again, say."""

    def begin(self, student: Head, teacher: Teacher, step: int | None) -> None:
        """Called before the terms of a batch are made.

        Args:
            student: its head, as it is now.
            teacher: the one that the loss listens to.
            step: of the optimizer; None: nobody says.
        """


@dataclass(frozen=True, kw_only=True)
class Loss:
    """A loss is a frozen dataclass of options with `needs` and `terms`.

    The fields are the options in a file of `dskd-train` and on its command line; the class's docstring is
    their help. See docs/losses.md, "your own loss".
    """

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    """Options by name, as publications have them."""

    @property
    def needs(self) -> Needs:
        """What it needs of a batch; nothing of a teacher, unless told otherwise."""
        return Needs()

    def build(self, student: Head, teacher: TeacherModel) -> nn.Module | None:  # noqa: ARG002
        """What is trained or kept beside the student: projectors and the like; None: nothing.

        What is `Begun` is told of each batch before its terms are asked for.
        """
        return None

    def terms(
        self, student: States, teacher: Teacher | None, built: nn.Module | None
    ) -> Sequence[Term | Aside]:
        """The terms of a batch.

        Args:
            student: at its supervised positions.
            teacher: the one that this loss listens to; it has what `needs` asks for. None: it needs none.
            built: what `build` made, given back.
        """
        raise NotImplementedError
