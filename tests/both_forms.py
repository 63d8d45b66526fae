"""A student and a teacher small enough to be looked at, and a loss run whole and fused on them."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import torch

from dskd.nn import (
    Batch,
    Chunks,
    CrossEntropy,
    Head,
    Objective,
    States,
    Teacher,
    TeacherModel,
    VocabularyMaps,
    Weighted,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from dskd.nn import Loss, LossParts

__all__ = ["Small", "assert_fused_is_whole", "read_by_identity", "small"]

LABELS = 60
OF_STUDENT, OF_TEACHER = 40, 50
SHARED = 30
UNSHARED = OF_STUDENT - 1
"""A student's id that the teacher has not, and that no label is."""

CHUNK_OF = [1, 1, 3, 2, 20, 4, 1, 5, 17, 2]
"""Tokens of the student in each chunk: two of them are longer than the 16 rows that a walk takes at least."""

HEADS: dict[str, dict[str, Any]] = {
    "plain": {},
    "bias and scale": {"bias": True, "scale": 0.5},
    "soft cap": {"softcap": 1.5},
    "unreachable ids": {"unreachable": True},
    "ids at minus infinity": {"bias": True, "infinite": True},
}
"""What heads do besides their product: keywords of `small`."""


@dataclass(frozen=True)
class Small:
    """A batch, its heads, and the tensors that a loss may move."""

    batch: Batch
    student: Head
    teacher: TeacherModel
    moved: Sequence[Tensor]

    def run(
        self, losses: Sequence[Loss | Weighted], *, fused: bool = True, chunk_memory: int = 1
    ) -> tuple[LossParts, list[Tensor]]:
        """The loss, and the gradient of it by each tensor that is moved."""
        objective = Objective(losses, self.student, self.teacher, fused=fused, chunk_memory=chunk_memory)
        parts = objective.double()(self.batch)
        found = torch.autograd.grad(parts.loss, self.moved, allow_unused=True)
        pairs = zip(found, self.moved, strict=True)
        return parts, [torch.zeros_like(one) if made is None else made for made, one in pairs]


def small(
    seed: int = 0,
    *,
    bias: bool = False,
    unreachable: bool = False,
    infinite: bool = False,
    **transforms: Any,
) -> Small:
    """60 positions, of which 41 pair and 56 are in chunks; float64."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    hidden = random(LABELS, 6).requires_grad_()
    moved, heads = [hidden], []
    for size, width in ((OF_STUDENT, 6), (OF_TEACHER, 8)):
        nobody = torch.zeros(size, dtype=torch.bool)
        nobody[-1] = True
        offsets = random(size).masked_fill(nobody & infinite, -torch.inf) if bias else None
        mask = nobody if unreachable else None
        heads.append(Head(random(size, width), offsets, unreachable=mask, **transforms))
    student, of_teacher = heads
    moved += [one.requires_grad_() for one in (student.weight, student.bias) if one is not None]
    overlap = torch.stack([torch.arange(SHARED), torch.arange(5, 5 + SHARED)], 1)
    maps = VocabularyMaps(
        to_student=torch.full((OF_TEACHER,), -1).index_copy(0, overlap[:, 0], overlap[:, 1]),
        overlap=overlap,
        is_text=torch.arange(SHARED) >= 2,
    )
    teacher = TeacherModel(of_teacher, maps)
    paired = torch.randperm(LABELS, generator=generator)[:41].sort().values
    of_chunks = torch.arange(len(CHUNK_OF)).repeat_interleave(torch.tensor(CHUNK_OF))
    positions = torch.randperm(LABELS, generator=generator)[: len(of_chunks)].sort().values
    batch = Batch(
        States(hidden, torch.randint(0, UNSHARED, (LABELS,), generator=generator), student),
        {
            "teacher": Teacher(
                teacher,
                random(41, 8),
                paired,
                chunks=Chunks(positions, of_chunks, -3 * random(len(CHUNK_OF)).abs()),
                kinds=torch.arange(41, dtype=torch.uint8) % 3,
            )
        },
    )
    return Small(batch, student, teacher, moved)


def assert_fused_is_whole(losses: Sequence[Loss | Weighted], made: Small) -> None:
    """Beside a cross-entropy: value, every sum, every count and every gradient, to rounding in float64."""
    losses = [CrossEntropy(), *losses]
    expected, slopes = made.run(losses, fused=False)
    assert all(torch.isfinite(one).all() for one in (expected.loss, *slopes))
    for chunk_memory, block in ((1, None), (1, 3), (1 << 27, None), (1 << 27, 7)):
        with _blocks_of(block):
            found, gradients = made.run(losses, chunk_memory=chunk_memory)
        torch.testing.assert_close(found.loss, expected.loss, rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(dict(found.sums), dict(expected.sums), rtol=1e-12, atol=1e-14)
        assert {**found.counts} == {**expected.counts}
        for one, other in zip(gradients, slopes, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12 * float(other.abs().max()))


def _blocks_of(rows: int | None) -> Any:
    """Terms run on so many rows of a chunk at once; None: as many as the walk takes."""
    return nullcontext() if rows is None else patch("dskd.nn.fused._block_rows", lambda _widest, _rows: rows)


def read_by_identity(logits: Sequence[Sequence[float]]) -> tuple[Tensor, Head]:
    """States that are logits already, whose exponentials these are, and the head that reads them so."""
    states = torch.tensor(logits, dtype=torch.float64).log()
    return states, Head(torch.eye(states.shape[1], dtype=torch.float64))
