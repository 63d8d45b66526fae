"""Alignments as torch tensors on a device: the same attributes. torch is imported at the first use."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import torch

__all__ = [
    "AlignmentTensors",
    "ChunkTensors",
    "CountTensors",
    "PairTensors",
    "PredictingTensors",
    "RangeTensors",
    "alignment_tensors",
    "predicting_tensors",
]


@dataclass(frozen=True, slots=True, eq=False)
class PairTensors:
    """As `Pairs`, in tensors of the same types."""

    teacher: torch.Tensor
    student: torch.Tensor
    kind: torch.Tensor
    offsets: torch.Tensor


@dataclass(frozen=True, slots=True, eq=False)
class RangeTensors:
    """As `Ranges`, in tensors of the same types."""

    teacher_start: torch.Tensor
    teacher_end: torch.Tensor
    student_start: torch.Tensor
    student_end: torch.Tensor
    offsets: torch.Tensor


@dataclass(frozen=True, slots=True, eq=False)
class ChunkTensors(RangeTensors):
    """As `Chunks`, in tensors of the same types."""

    encloses_zero_width: torch.Tensor


@dataclass(frozen=True, slots=True, eq=False)
class CountTensors:
    """As `Counts`, in tensors of the same types."""

    teacher_tokens: torch.Tensor
    student_tokens: torch.Tensor
    teacher_bytes: torch.Tensor
    student_bytes: torch.Tensor
    chunk_bytes: torch.Tensor
    teacher_opaque: torch.Tensor
    student_opaque: torch.Tensor
    exact: torch.Tensor
    role: torch.Tensor
    space: torch.Tensor
    segment_mismatch: torch.Tensor


@dataclass(frozen=True, slots=True, eq=False)
class AlignmentTensors:
    """As `Alignment`, in tensors of the same types."""

    pairs: PairTensors
    chunks: ChunkTensors
    differences: RangeTensors
    counts: CountTensors
    teacher_lengths: torch.Tensor
    student_lengths: torch.Tensor


@dataclass(frozen=True, slots=True, eq=False)
class PredictingTensors:
    """As `Predicting`, in tensors of the same types."""

    row: torch.Tensor
    teacher: torch.Tensor
    student: torch.Tensor
    kind: torch.Tensor
    left_out: int

    def __len__(self) -> int:
        """The number of pairs that are predicted."""
        return len(self.row)


def alignment_tensors(alignment: Any, device: torch.device | str | int) -> AlignmentTensors:
    """The arrays of an `Alignment` as tensors on a device."""
    return AlignmentTensors(
        pairs=_moved(alignment.pairs, PairTensors, device),
        chunks=_moved(alignment.chunks, ChunkTensors, device),
        differences=_moved(alignment.differences, RangeTensors, device),
        counts=_moved(alignment.counts, CountTensors, device),
        teacher_lengths=_tensor(alignment.teacher_lengths, device),
        student_lengths=_tensor(alignment.student_lengths, device),
    )


def predicting_tensors(predicting: Any, device: torch.device | str | int) -> PredictingTensors:
    """The arrays of a `Predicting` as tensors on a device."""
    return _moved(predicting, PredictingTensors, device)


_Tensors = TypeVar("_Tensors", PairTensors, RangeTensors, ChunkTensors, CountTensors, PredictingTensors)


def _moved(arrays: Any, into: type[_Tensors], device: torch.device | str | int) -> _Tensors:
    return into(**{item.name: _tensor(getattr(arrays, item.name), device) for item in fields(into)})


def _tensor(value: Any, device: torch.device | str | int) -> Any:
    """A copy of an array, since ours are read-only and tensors are not; a number as it is."""
    try:
        import torch  # noqa: PLC0415 - dskd needs numpy only
    except ImportError as error:
        raise ImportError("tensors need torch: pip install 'dskd[torch]'; the arrays are numpy's") from error
    return value if isinstance(value, int) else torch.tensor(value, device=device)
