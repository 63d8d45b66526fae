"""Sums of losses: what a run is trained by."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from torch import nn

from dskd.nn.batch import ONLY_TEACHER, Batch, named
from dskd.nn.checks import refuse_two_vocabularies
from dskd.nn.fused import Part, by_position, fused, whole
from dskd.nn.loss import Begun, Needs
from dskd.nn.reduction import LossParts, Reduction

if TYPE_CHECKING:
    from dskd.nn.batch import TeacherModel
    from dskd.nn.heads import Head
    from dskd.nn.loss import Loss
    from dskd.nn.term import Aside, Term

__all__ = ["Objective", "Weighted"]


@dataclass(frozen=True, slots=True)
class Weighted:
    """A loss in a sum.

    Attributes:
        loss: with its options.
        weight: what it is multiplied with.
        teacher: the name of the teacher that it listens to; not looked at where it needs none.
    """

    loss: Loss
    weight: float = 1.0
    teacher: str = ONLY_TEACHER

    @property
    def of(self) -> str | None:
        """The name of the teacher, or None where the loss needs none."""
        return self.teacher if self.loss.needs.teacher else None


class Objective(nn.Module):
    """The weighted sum of losses, and what is trained beside the student for them.

    Args:
        losses: at least one.
        student: the student's head, live.
        teachers: by name; one teacher is `teacher`.
        fused: keep no logits; False: the definition, under plain autograd.
        chunk_memory: bytes for the logits of one chunk; None: by the device, 160 MiB on a CPU.

    Attributes:
        built: what the losses have built, by the number of the loss from 0, as `Loss.build` made it.

    Raises:
        ValueError: there is no loss, or a teacher is not there, has no token in common with the student, or
            another vocabulary than a loss takes.
    """

    def __init__(
        self,
        losses: Iterable[Weighted | Loss],
        student: Head,
        teachers: Mapping[str, TeacherModel] | TeacherModel | None = None,
        *,
        fused: bool = True,
        chunk_memory: int | None = None,
    ) -> None:
        """See the class."""
        super().__init__()
        self.losses = tuple(one if isinstance(one, Weighted) else Weighted(one) for one in losses)
        models = _by_name(teachers)
        self._refuse(student, models)
        self.fused = fused
        self.chunk_memory = chunk_memory
        self.built = nn.ModuleDict()
        for index, one in enumerate(self.losses):
            made = None if one.of is None else one.loss.build(student, models[one.of])
            if made is not None:
                self.built[str(index)] = made

    def _refuse(self, student: Head, models: Mapping[str, TeacherModel]) -> None:
        if not self.losses:
            raise ValueError("there is no loss: give at least one, CrossEntropy() say")
        for one in self.losses:
            if one.of is not None and one.of not in models:
                raise ValueError(
                    f"{type(one.loss).__name__} listens to the teacher {one.of!r}, and there is "
                    f"{', '.join(map(repr, models)) or 'none'}: name one of these, or give it"
                )
            if one.of is not None and one.loss.needs.overlap:
                models[one.of].maps.shared()
            if one.of is not None and one.loss.needs.same_vocabulary:
                who = f"the teacher {one.of!r}"
                refuse_two_vocabularies(type(one.loss).__name__, student, models[one.of], who)

    @property
    def needs(self) -> Mapping[str, Needs]:
        """What is needed of each teacher, by its name."""
        found: dict[str, Needs] = {}
        for one in self.losses:
            if one.of is not None:
                found[one.of] = found.get(one.of, Needs()) | one.loss.needs
        return found

    def forward(
        self,
        batch: Batch,
        reduction: Reduction | Literal["mean", "sum", "none"] = "mean",
        *,
        step: int | None = None,
    ) -> LossParts:
        """The loss of a micro-batch.

        Args:
            batch: of the student and its teachers.
            reduction: of the step. `mean`: the batch is the step; `sum`: nothing is divided; `none`: nothing
                is summed, the loss is what each of the student's positions adds, `[labels]`, with all logits
                kept.
            step: of the optimizer, by which projectors know when to be solved again; None: they look at
                whether the student's head has moved.

        Raises:
            ValueError: the batch lacks what a loss needs, or the step has not counted it.
        """
        parts = self.parts(batch, reduction, step=step)
        if reduction == "none":
            return by_position(parts, len(batch.student.labels))
        return fused(parts, chunk_memory=self.chunk_memory) if self.fused else whole(parts)

    def parts(
        self,
        batch: Batch,
        reduction: Reduction | Literal["mean", "sum", "none"] = "mean",
        *,
        step: int | None = None,
    ) -> Sequence[Part]:
        """The terms of all losses, and what the sum of each is multiplied with."""
        of_step = _reduction(reduction, batch) if isinstance(reduction, str) else reduction
        parts = []
        for index, one in enumerate(self.losses):
            teacher = None if one.of is None else batch.teachers.get(one.of)
            if one.of is not None and teacher is None:
                raise ValueError(
                    f"the batch has no teacher {one.of!r}, to whom {type(one.loss).__name__} listens"
                )
            built = dict(self.built).get(str(index))
            if teacher is not None and isinstance(built, Begun):
                built.begin(batch.student.head, teacher, step)
            for term in one.loss.terms(batch.student, teacher, built):
                of = ONLY_TEACHER if one.of is None else one.of
                weight = one.weight * term.weight / _divisor(term, of, of_step)
                parts.append(Part(term, named(of, term.name), _counted(of, term.over.name), weight))
        return parts


def _divisor(term: Term | Aside, teacher: str, reduction: Reduction | None) -> int:
    """What the sum of a term is divided by."""
    if reduction is None:
        return 1
    if isinstance(term.per, int):
        return max(term.per, 1) * reduction.micro_batches
    name = term.over.name if term.per is None else term.per
    least = term.over.count if name == term.over.name else 0
    return reduction.of(_counted(teacher, name), least)


def _counted(teacher: str, over: str) -> str:
    """What a batch calls the count of this; the student's labels are nobody else's."""
    return over if over == "labels" else named(teacher, over)


def _by_name(teachers: Mapping[str, TeacherModel] | TeacherModel | None) -> Mapping[str, TeacherModel]:
    if teachers is None:
        return {}
    return teachers if isinstance(teachers, Mapping) else {ONLY_TEACHER: teachers}


def _reduction(name: str, batch: Batch) -> Reduction | None:
    if name == "mean":
        return Reduction(batch.counts())
    if name in ("sum", "none"):
        return None
    raise ValueError(f"reduction={name!r}; it is 'mean', 'sum', 'none', or the Reduction of a step")
