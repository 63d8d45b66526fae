"""Random heads, hidden states and pairs for the tests of losses, every tensor of them a leaf."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

from dskd.nn import AlignedStates, Head, VocabularyMaps

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from torch import Tensor

__all__ = [
    "TRAINED",
    "TRANSFORMS",
    "Leaves",
    "Transforms",
    "backward",
    "clearly_said",
    "gradients",
    "random_leaves",
]


@dataclass(frozen=True)
class Transforms:
    """What a head does besides its product, and which ids it cannot mean."""

    bias: bool = False
    scale: float = 1.0
    softcap: float | None = None
    unreachable: tuple[int, ...] = ()

    def head(self, weight: Tensor, bias: Tensor) -> Head:
        unreachable = torch.zeros(len(weight), dtype=torch.bool, device=weight.device)
        unreachable[list(self.unreachable)] = True
        return Head(
            weight,
            bias if self.bias else None,
            self.scale,
            self.softcap,
            unreachable if self.unreachable else None,
        )


PLAIN = Transforms()
TRANSFORMS: dict[str, tuple[Transforms, Transforms]] = {
    "plain": (PLAIN, PLAIN),
    "bias and scale": (Transforms(bias=True, scale=0.5), Transforms(bias=True, scale=1.5)),
    "soft cap": (Transforms(softcap=1.5), Transforms(softcap=0.8)),
    "unreachable ids": (Transforms(unreachable=(0, 5)), Transforms(unreachable=(4,))),
    "all of these": (
        Transforms(bias=True, scale=2.0, softcap=2.5, unreachable=(5,)),
        Transforms(bias=True, scale=0.7, softcap=3.0, unreachable=(4,)),
    ),
}
"""Of teacher and student."""

TRAINED = ["student_hidden", "student_weight", "student_bias", "to_student", "to_teacher"]


@dataclass(frozen=True)
class Leaves:
    """Leaves by name, all wanting a gradient, the teacher's too; which position each pair has; the maps."""

    by_name: dict[str, Tensor]
    labels: Tensor
    paired: Tensor
    maps: VocabularyMaps
    teacher: Transforms = field(default_factory=Transforms)
    student: Transforms = field(default_factory=Transforms)

    def head(self, side: str) -> Head:
        transforms = self.teacher if side == "teacher" else self.student
        return transforms.head(self.by_name[f"{side}_weight"], self.by_name[f"{side}_bias"])

    def states(self) -> AlignedStates:
        return AlignedStates(
            student_hidden=self.by_name["student_hidden"],
            labels=self.labels,
            paired=self.paired,
            teacher_hidden=self.by_name["teacher_hidden"],
            teacher_head=self.head("teacher"),
            student_head=self.head("student"),
        )

    @property
    def trained(self) -> dict[str, Tensor]:
        """Those that a loss may move, as far as they are used."""
        names = [name for name in TRAINED if name != "student_bias" or self.student.bias]
        return {name: self.by_name[name] for name in names if self.by_name[name].requires_grad}

    def cast(self, dtypes: Mapping[str, torch.dtype] | torch.dtype) -> Leaves:
        """The same numbers, or nearly, as other leaves."""
        made = {
            name: leaf.detach()
            .to(dtypes if isinstance(dtypes, torch.dtype) else dtypes.get(name, leaf.dtype))
            .clone()
            .requires_grad_(leaf.requires_grad)
            for name, leaf in self.by_name.items()
        }
        return replace(self, by_name=made)

    def frozen(self, names: Iterable[str]) -> Leaves:
        """The same numbers as other leaves, of which these want no gradient."""
        made = self.cast({})
        for name in names:
            made.by_name[name].requires_grad_(False)
        return made


def random_leaves(
    seed: int = 0,
    *,
    labels: int = 14,
    pairs: int = 12,
    sizes: tuple[int, int] = (6, 5),
    widths: tuple[int, int] = (4, 3),
    transforms: tuple[Transforms, Transforms] = (PLAIN, PLAIN),
    device: str = "cpu",
    dtype: torch.dtype = torch.float64,
) -> Leaves:
    """Of teacher and student are `sizes` V_t, V_s and `widths` D, d.

    Teacher ids 1, 5, 9, ... are unmapped; 2, 3, 4 are shared with 3, 0, 2 of the student, as far as these are
    there, and are the overlap; the others are mapped and not in it. No id is mapped to one that the student
    cannot mean.
    """
    generator = torch.Generator().manual_seed(seed)

    def leaf(*shape: int) -> Tensor:
        drawn = torch.randn(*shape, generator=generator, dtype=torch.float64)
        return drawn.to(device, dtype).requires_grad_()

    (teacher, student), (wide, narrow) = sizes, widths
    by_name = {
        "teacher_hidden": leaf(pairs, wide),
        "student_hidden": leaf(labels, narrow),
        "teacher_weight": leaf(teacher, wide),
        "teacher_bias": leaf(teacher),
        "student_weight": leaf(student, narrow),
        "student_bias": leaf(student),
        "to_student": leaf(pairs, narrow),
        "to_teacher": leaf(pairs, wide),
    }
    said = torch.randint(0, min(student, 4), (labels,), generator=generator)
    # Not in order, so that what is given back in another order shows.
    paired = torch.randperm(labels, generator=generator)[:pairs]
    maps = vocabulary_maps(teacher, student, device)
    maps.to_student[
        torch.isin(maps.to_student.cpu(), torch.tensor(transforms[1].unreachable)).to(device)
    ] = -1
    return Leaves(by_name, said.to(device), paired.to(device), maps, *transforms)


def vocabulary_maps(teacher: int, student: int, device: str = "cpu") -> VocabularyMaps:
    to_student = torch.arange(1, teacher + 1).remainder(student)
    to_student[1::4] = -1
    shared = [pair for pair in ((2, 3), (3, 0), (4, 2)) if pair[0] < teacher and pair[1] < student]
    overlap = torch.tensor(shared or [(0, 0)], dtype=torch.int64)
    to_student[overlap[:, 0]] = overlap[:, 1]
    return VocabularyMaps(to_student=to_student.to(device), overlap=overlap.to(device))


def gradients(value: Tensor, leaves: Mapping[str, Tensor], **options: Any) -> dict[str, Tensor]:
    """The gradient of every leaf; zero where the value does not depend on it."""
    if not value.requires_grad:
        return {name: torch.zeros_like(leaf) for name, leaf in leaves.items()}
    found = torch.autograd.grad(value, list(leaves.values()), allow_unused=True, **options)
    return {
        name: torch.zeros_like(leaf) if gradient is None else gradient
        for (name, leaf), gradient in zip(leaves.items(), found, strict=True)
    }


def backward(value: Any, **options: Any) -> None:
    """`value.backward()`, which PyTorch gives no types."""
    value.backward(**options)


def clearly_said(case: Leaves) -> Leaves:
    """The same, the teacher's states and those carried to the student moved so that one id stands out.

    Which id is largest decides what is trained towards and what a gate lets through; where two are as near as
    products in bfloat16 are off, another kernel says another.
    """
    made = case.cast({})
    for name, side in (("teacher_hidden", "teacher"), ("to_student", "student")):
        hidden, head = made.by_name[name], made.head(side)
        with torch.no_grad():
            hidden += 2 * functional.normalize(head.weight[head.logits(hidden).argmax(-1)])
    return made
