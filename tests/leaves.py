"""Random batches for the tests of losses: a student and its teachers, every tensor of theirs a leaf."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch

from dskd.nn import (
    Batch,
    Chunks,
    Head,
    Objective,
    States,
    Teacher,
    TeacherModel,
    VocabularyMaps,
    teacher_statistics,
)
from dskd.nn.fused import whole

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from torch import Tensor

    from dskd.nn import AttentionScales, Loss, LossParts, Weighted

__all__ = [
    "PLAIN",
    "TRANSFORMS",
    "Leaves",
    "Transforms",
    "all_of",
    "backward",
    "gradients",
    "objective_of",
    "random_leaves",
    "say_clearly",
    "term_of",
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


@dataclass(frozen=True)
class OfTeacher:
    """What of a teacher is no leaf: its head's transforms, maps, pairs, chunks, and its own positions."""

    transforms: Transforms
    maps: VocabularyMaps
    paired: Tensor
    chunks: Chunks
    labels: Tensor
    inputs: Tensor
    row: Tensor


@dataclass(frozen=True)
class Leaves:
    """Leaves by name, all wanting a gradient, the teachers' and the embeddings too; and where they are.

    The names are `student_hidden`, `student_weight`, `student_bias` and `student_embeddings`; of each
    teacher, by its name in place of `student`, the same and `_states`: `_hidden` is at the pairs, `_states`
    at its own supervised positions.
    """

    by_name: dict[str, Tensor]
    labels: Tensor
    inputs: Tensor
    row: Tensor
    teachers: dict[str, OfTeacher]
    student: Transforms = field(default_factory=Transforms)

    def head(self, side: str) -> Head:
        transforms = self.student if side == "student" else self.teachers[side].transforms
        return transforms.head(self.by_name[f"{side}_weight"], self.by_name[f"{side}_bias"])

    def model(self, name: str = "teacher") -> TeacherModel:
        embeddings = self.by_name[f"{name}_embeddings"]
        return TeacherModel(self.head(name), self.teachers[name].maps, embeddings)

    @property
    def models(self) -> dict[str, TeacherModel]:
        return {name: self.model(name) for name in self.teachers}

    def batch(self, *, known: float | None = None, scales: AttentionScales | None = None) -> Batch:
        """`known`: with statistics of the teachers at this temperature, where their heads have any."""
        student = States(
            self.by_name["student_hidden"],
            self.labels,
            self.head("student"),
            row=self.row,
            inputs=self.inputs,
            embeddings=self.by_name["student_embeddings"],
        )
        return Batch(student, {name: self._teacher(name, known, scales) for name in self.teachers})

    def _teacher(self, name: str, known: float | None, scales: AttentionScales | None) -> Teacher:
        of, model = self.teachers[name], self.model(name)
        hidden, states = self.by_name[f"{name}_hidden"], self.by_name[f"{name}_states"]
        kept: list[Any] = [None, None]
        if known is not None and model.head.softcap is None:
            kept = [
                teacher_statistics(model.head, one, temperature=known, chunk_memory=1)
                for one in (hidden, states)
            ]
        everywhere = States(
            states,
            of.labels,
            model.head,
            row=of.row,
            inputs=of.inputs,
            embeddings=model.embeddings,
            statistics=kept[1],
            name="teacher_labels",
        )
        return Teacher(model, hidden, of.paired, kept[0], of.chunks, everywhere, scales)

    @property
    def trained(self) -> dict[str, Tensor]:
        """Those of the student that a loss may move, as far as they are used."""
        names = ["student_hidden", "student_weight", *(["student_bias"] if self.student.bias else [])]
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

    def part(self, rows: Iterable[int]) -> Leaves:
        """A micro-batch of these rows: what it is made of are functions of the leaves."""
        those = torch.tensor(list(rows), dtype=torch.int64, device=self.row.device)
        kept = torch.isin(self.row, those)
        by_name = {**self.by_name, "student_hidden": self.by_name["student_hidden"][kept]}
        place, teachers = kept.cumsum(0) - 1, {}
        for name, of in self.teachers.items():
            pairs, its = kept[of.paired], torch.isin(of.row, those)
            by_name[f"{name}_hidden"] = self.by_name[f"{name}_hidden"][pairs]
            by_name[f"{name}_states"] = self.by_name[f"{name}_states"][its]
            teachers[name] = replace(
                of,
                paired=place[of.paired[pairs]],
                chunks=_part_of(of.chunks, kept, place),
                labels=of.labels[its],
                inputs=of.inputs[its],
                row=of.row[its],
            )
        labels, inputs, row = (one[kept] for one in (self.labels, self.inputs, self.row))
        return replace(self, by_name=by_name, labels=labels, inputs=inputs, row=row, teachers=teachers)


def _part_of(chunks: Chunks, kept: Tensor, place: Tensor) -> Chunks:
    those = kept[chunks.positions]
    ids, chunk = torch.unique(chunks.chunk[those], return_inverse=True)
    return Chunks(place[chunks.positions[those]], chunk, chunks.teacher_log_probs[ids])


def random_leaves(  # noqa: PLR0913 - a case is what it is of
    seed: int = 0,
    *,
    labels: int = 14,
    pairs: int = 12,
    teacher_labels: int = 13,
    rows: int = 3,
    apart: int = 0,
    sizes: tuple[int, int] = (6, 5),
    widths: tuple[int, int] = (4, 3),
    transforms: tuple[Transforms, Transforms] = (PLAIN, PLAIN),
    teachers: tuple[str, ...] = ("teacher",),
    device: str = "cpu",
    dtype: torch.dtype = torch.float64,
) -> Leaves:
    """Of teacher and student are `sizes` V_t, V_s and `widths` D, d.

    Positions are in so many rows, those of a teacher in rows that are so far `apart`. Every teacher after the
    first has 3 ids more, is wider by 1, and a pair fewer. Teacher ids 1, 5, 9, ... are unmapped; 2, 3, 4 are
    shared with 3, 0, 2 of the student, as far as these are there, and are the overlap; the others are mapped
    and not in it. No id is mapped to one that the student cannot mean.
    """
    generator = torch.Generator().manual_seed(seed)

    def leaf(*shape: int) -> Tensor:
        drawn = torch.randn(*shape, generator=generator, dtype=torch.float64)
        return drawn.to(device, dtype).requires_grad_()

    def ids(count: int, size: int, without: tuple[int, ...]) -> Tensor:
        meant = torch.tensor([one for one in range(size) if one not in without])
        return meant[torch.randint(0, len(meant), (count,), generator=generator)].to(device)

    narrow, student = widths[1], sizes[1]
    by_name = {
        "student_hidden": leaf(labels, narrow),
        "student_weight": leaf(student, narrow),
        "student_bias": leaf(student),
        "student_embeddings": leaf(student, narrow),
    }
    row = torch.arange(labels) * rows // max(labels, 1)
    made = {}
    for index, name in enumerate(teachers):
        size, wide, count = sizes[0] + 3 * index, widths[0] + index, max(pairs - index, 0)
        by_name |= {
            f"{name}_hidden": leaf(count, wide),
            f"{name}_weight": leaf(size, wide),
            f"{name}_bias": leaf(size),
            f"{name}_embeddings": leaf(size, wide),
            f"{name}_states": leaf(teacher_labels, wide),
        }
        its = ids(teacher_labels, size, transforms[0].unreachable), ids(teacher_labels, size, ())
        made[name] = OfTeacher(
            transforms[0],
            vocabulary_maps(size, student, transforms[1].unreachable, device),
            torch.randperm(labels, generator=generator)[:count].sort().values.to(device),
            _chunks(row, generator, device, dtype),
            *its,
            (torch.arange(teacher_labels) * rows // max(teacher_labels, 1) + apart).to(device),
        )
    said, read = ids(labels, min(student, 4), transforms[1].unreachable), ids(labels, student, ())
    return Leaves(by_name, said, read, row.to(device), made, transforms[1])


def _chunks(row: Tensor, generator: torch.Generator, device: str, dtype: torch.dtype) -> Chunks:
    """Of one to four positions of a row, some of which are in none."""
    kept = torch.rand(len(row), generator=generator) < 0.8
    begins: list[int] = []
    length, last = 0, None
    longest = torch.randint(1, 5, (len(row) + 1,), generator=generator).tolist()
    for its in row[kept].tolist():
        is_new = its != last or length == longest[sum(begins)]
        begins.append(is_new)
        length, last = 1 if is_new else length + 1, its
    chunk = torch.tensor(begins, dtype=torch.int64).cumsum(0) - 1
    says = -5 * torch.rand(sum(begins), generator=generator, dtype=torch.float64)
    positions = kept.nonzero()[:, 0]
    return Chunks(positions.to(device), chunk.to(device), says.to(device, dtype))


def vocabulary_maps(
    teacher: int, student: int, unreachable: tuple[int, ...] = (), device: str = "cpu"
) -> VocabularyMaps:
    to_student = torch.arange(1, teacher + 1).remainder(student)
    to_student[1::4] = -1
    shared = [pair for pair in ((2, 3), (3, 0), (4, 2)) if pair[0] < teacher and pair[1] < student]
    overlap = torch.tensor(shared or [(0, 0)], dtype=torch.int64)
    to_student[overlap[:, 0]] = overlap[:, 1]
    to_student[torch.isin(to_student, torch.tensor(unreachable, dtype=torch.int64))] = -1
    return VocabularyMaps(to_student=to_student.to(device), overlap=overlap.to(device))


# ---- Losses of them --------------------------------------------------------------------------------------


def objective_of(
    case: Leaves,
    *losses: Weighted | Loss,
    fused: bool = True,
    chunk_memory: int = 1,
    dtype: torch.dtype = torch.float64,
    noise: float = 0.3,
) -> Objective:
    """Without dropout, nor projectors that are solved again; what is trained is moved at random, alike."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        made = Objective(losses, case.head("student"), case.models, fused=fused, chunk_memory=chunk_memory)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in made.parameters():
            moved = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.add_(moved.to(parameter.device, parameter.dtype), alpha=noise)
    return made.to(dtype).eval()


def all_of(found: LossParts, leaves: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The loss, its sums and its gradients."""
    return {"loss": found.loss.detach(), **found.sums, **gradients(found.loss, leaves)}


def gradients(value: Tensor, leaves: Mapping[str, Tensor], **options: Any) -> dict[str, Tensor]:
    """The gradient of every leaf; zero where the value does not depend on it."""
    if not value.requires_grad or not leaves:
        return {name: torch.zeros_like(leaf) for name, leaf in leaves.items()}
    found = torch.autograd.grad(value, list(leaves.values()), allow_unused=True, **options)
    return {
        name: torch.zeros_like(leaf) if gradient is None else gradient
        for (name, leaf), gradient in zip(leaves.items(), found, strict=True)
    }


def backward(value: Any, **options: Any) -> None:
    """`value.backward()`, which PyTorch gives no types."""
    value.backward(**options)


_CLEARLY = 0.1
"""Of the deviation of a row of logits: what products in bfloat16 are off by is a small part of it."""


def say_clearly(case: Leaves, projector: Tensor | None) -> None:
    """Draws states of the teacher anew until one id stands out in each, and in each that is carried.

    Which id is largest decides what is trained towards and what a gate lets through; where two are as near as
    products in bfloat16 are off, another kernel says another.
    """
    generator = torch.Generator().manual_seed(5)
    # Rounded is what is not capped yet.
    teacher, student = (replace(case.head(side), softcap=None) for side in ("teacher", "student"))
    for name in ("teacher_hidden", "teacher_states"):
        hidden = case.by_name[name].detach()
        while True:
            logits = [teacher.logits(hidden)]
            if projector is not None:
                logits.append(student.logits(hidden @ projector.detach().to(hidden.dtype)))
            unclear = torch.stack([_is_unclear(one.detach()) for one in logits]).any(0)
            if not unclear.any():
                break
            drawn = torch.randn(hidden.shape, generator=generator, dtype=torch.float64)
            hidden[unclear] = drawn.to(hidden.device, hidden.dtype)[unclear]


def _is_unclear(logits: Tensor) -> Tensor:
    first, second = logits.topk(2).values.T
    unclear: Tensor = first - second < _CLEARLY * logits.std(-1)
    return unclear


# ---- A term alone ----------------------------------------------------------------------------------------


def term_of(objective: Objective, batch: Batch, name: str) -> Tensor:
    """The sum of one term, as a function of all that it is made of: by its definition, without a weight."""
    parts = [part for part in objective.parts(batch, "sum") if part.name == name]
    return whole([replace(part, weight=1.0) for part in parts]).loss
