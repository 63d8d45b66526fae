"""The options of dual-space distillation, the presets of the publications, and what a term is divided by."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, TypeAlias, get_args

import torch

from dskd.nn.divergences import DIVERGENCES, Divergence

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from dskd.nn.reduction import Reduction

__all__ = [
    "DSKD_UNGATED",
    "DSKD_V1",
    "DSKD_V2",
    "DSKD_V2_SAME_VOCABULARY",
    "DualSpaceOptions",
    "VocabularyMaps",
]

Gate: TypeAlias = Literal["prediction", "gold"]
Spaces: TypeAlias = Literal["both", "student", "teacher"]
TrainedBy: TypeAlias = Literal["prediction", "gold", "distribution"]
Target: TypeAlias = Literal["projected", "exact"]
Columns: TypeAlias = Literal["all", "overlap"]
Normaliser: TypeAlias = Literal["pairs", "labels", "micro_batch"]

_CHOICES = {
    "gate": (None, *get_args(Gate)),
    "spaces": get_args(Spaces),
    "t2s_target": get_args(TrainedBy),
    "target": get_args(Target),
    "columns": get_args(Columns),
    "s2t_columns": get_args(Columns),
    "normaliser": get_args(Normaliser),
}

_UNBOUNDED = ("reverse_kl", "adaptive_kl")
"""What is infinite where the teacher has no probability."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VocabularyMaps:
    """What the two vocabularies have in common.

    Attributes:
        to_student: int64 `[V_t]`, the student's id of each teacher id, or -1:
            `aligner.vocabulary_map.teacher_to_student`.
        overlap: int64 `[overlap, 2]`, the ids (teacher, student) of the shared tokens O:
            `aligner.vocabulary_map.overlap`; needed where an option speaks of O.
    """

    to_student: Tensor
    overlap: Tensor | None = None

    def shared(self) -> tuple[Tensor, Tensor]:
        """The ids of the teacher in O, and of the student.

        Raises:
            ValueError: there is no overlap.
        """
        if self.overlap is None or not len(self.overlap):
            raise ValueError(
                "columns, s2t_columns, target or t2s_target speak of the tokens that both vocabularies have: "
                "give VocabularyMaps(overlap=aligner.vocabulary_map.overlap), not empty"
            )
        return self.overlap[:, 0], self.overlap[:, 1]


@dataclass(frozen=True, slots=True, kw_only=True)
class DualSpaceOptions:
    """How two models are compared in two spaces.

    The defaults are what came out best in benches/study.md; `DSKD_UNGATED` is what the papers do.

    Attributes:
        divergence: D.
        mix: the parameter of D, where it has one.
        s2t_divergence: D in the teacher's space; None: the same (v1: always `kl`).
        temperature: tau, of the divergences, on both sides.
        scale_by_temperature_squared: multiply the divergences with tau^2, which keeps the size of their
            gradients.
        gate: which pairs take part in t2s_kd: those where argmax z_ts is the teacher's `prediction` in the
            student's vocabulary, or the `gold` token; None: all.
        gate_threshold: the share of such pairs in the micro-batch above which the gate is lifted; 1: never.
        spaces: `student` has the terms of the student's space, `teacher` those of the teacher's, which has
            no gate.
        t2s_target: what trains P_ts. A cross-entropy `t2s_ce` with y, the teacher's `prediction` (its argmax,
            the lowest id of several) in the student's vocabulary, or the `gold` token; or the `distribution`:
            `t2s_kl = KL(p_t on O, softmax(z_ts on O))`, which keeps z_ts close as the student's head moves.
            Where a prediction has no counterpart, the pair leaves t2s_ce, and t2s_kd if that is gated by it.
        target: of t2s_kd: the `projected` teacher, z_ts; or `exact`, the teacher's own logits on O, which
            with `columns="overlap"` is the shared-vocabulary loss: its limit as P_ts gets perfect. Without a
            gate there is then no z_ts, no P_ts, and nothing that trains it.
        columns: the ids over which t2s_kd compares: `all`, or those of O, renormalised there.
        s2t_columns: the same for s2t_kd.
        s2t_weight: what s2t_kd is multiplied with in the loss.
        drop_unmapped: leave pairs whose prediction has no counterpart out of all terms.
        normaliser: what distillation terms are divided by: the `pairs` of the whole step, its `labels`, or
            the pairs of the `micro_batch`, without those that are dropped.
        gated_mean: divide t2s_kd by the pairs of the micro-batch that its gate let through.
    """

    divergence: Divergence = "kl"
    mix: float | None = None
    s2t_divergence: Divergence | None = None
    temperature: float = 1.0
    scale_by_temperature_squared: bool = False
    gate: Gate | None = None
    gate_threshold: float = 1.0
    spaces: Spaces = "both"
    t2s_target: TrainedBy = "prediction"
    target: Target = "exact"
    columns: Columns = "overlap"
    s2t_columns: Columns = "all"
    s2t_weight: float = 0.25
    drop_unmapped: bool = False
    normaliser: Normaliser = "pairs"
    gated_mean: bool = False

    def __post_init__(self) -> None:
        """Checks them.

        Raises:
            ValueError: one is out of its range, or two do not go together.
        """
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name}={getattr(self, name)!r}; it is one of {choices}")
        for name in ("divergence", "s2t_divergence"):
            if getattr(self, name) not in (*DIVERGENCES, *((None,) if name == "s2t_divergence" else ())):
                raise ValueError(f"{name}={getattr(self, name)!r}; it is one of {tuple(DIVERGENCES)}")
        if not self.temperature > 0:
            raise ValueError(f"temperature={self.temperature}; it is above 0")
        if not 0 <= self.gate_threshold <= 1:
            raise ValueError(f"gate_threshold={self.gate_threshold}; it is a share, from 0 to 1")
        if not 0 <= self.s2t_weight < math.inf:
            raise ValueError(f"s2t_weight={self.s2t_weight}; it is a weight, from 0")
        if not self.projects and self.t2s_target != "prediction":
            raise ValueError(
                f"t2s_target={self.t2s_target!r} trains P_ts, and with target='exact' and no gate, or with "
                "spaces='teacher', there is none: set target='projected' and spaces='both', or leave "
                "t2s_target out"
            )
        if self.target == "exact" and self.columns == "all" and self.divergence in _UNBOUNDED:
            raise ValueError(
                f"divergence={self.divergence!r} is infinite outside the tokens that the teacher has: "
                "with target='exact' set columns='overlap', or take another divergence"
            )

    @property
    def projects(self) -> bool:
        """Whether the student's space has the projected teacher z_ts: as the target, or for the gate."""
        return self.spaces != "teacher" and (self.target == "projected" or self.gate is not None)

    @property
    def speaks_of_overlap(self) -> bool:
        """Whether an option of the student's space speaks of O."""
        return self.target == "exact" or self.t2s_target == "distribution" or self.columns == "overlap"

    @property
    def needs_teacher(self) -> bool:
        """Whether the student's space needs the teacher's own logits on O."""
        return self.spaces != "teacher" and (self.target == "exact" or self.t2s_target == "distribution")

    @property
    def needs_overlap(self) -> bool:
        """Whether an option speaks of O."""
        teacher = self.spaces != "student" and self.s2t_columns == "overlap"
        return (self.spaces != "teacher" and self.speaks_of_overlap) or teacher

    @property
    def of_teacher_space(self) -> Divergence:
        """D in the teacher's space."""
        return self.s2t_divergence or self.divergence

    @property
    def of_divergences(self) -> float:
        """What the divergences are multiplied with."""
        return self.temperature**2 if self.scale_by_temperature_squared else 1.0

    def require(self, maps: VocabularyMaps) -> None:
        """Refuses maps that lack what the options need.

        Raises:
            ValueError: there is no overlap.
        """
        if self.needs_overlap:
            maps.shared()

    def mix_of(self, divergence: Divergence) -> float | None:
        """The parameter of a divergence: what was given is that of `divergence`."""
        return self.mix if divergence == self.divergence else None

    def kept(self, predicted: Tensor) -> Tensor:
        """Which pairs are not dropped: bool `[pairs]`, of predictions or -1."""
        return predicted >= 0 if self.drop_unmapped else torch.ones_like(predicted, dtype=torch.bool)

    def let_through(self, said: Tensor, predicted: Tensor, gold: Tensor) -> Tensor:
        """Which pairs are not dropped and pass the gate: bool `[pairs]` from three columns of ids."""
        kept = self.kept(predicted)
        if self.gate is None:
            return kept
        passed = said == (gold if self.gate == "gold" else predicted)
        lifted = passed.sum() > self.gate_threshold * len(passed)
        return (passed | lifted) & kept

    def weights(self, reduction: Reduction, pairs: int, gated: int) -> Mapping[str, float]:
        """What the sum of each term is multiplied with.

        Args:
            reduction: of the step.
            pairs: of the micro-batch; without those that `drop_unmapped` leaves out.
            gated: those of them that take part in t2s_kd.
        """
        count = {"pairs": reduction.pairs, "labels": reduction.labels, "micro_batch": pairs}[self.normaliser]
        each = reduction.alpha / max(count, 1)
        gate = reduction.alpha / max(gated, 1) if self.gated_mean else each
        return {
            "cross_entropy": reduction.cross_entropy,
            "t2s_ce": each,
            "t2s_kl": each,
            "t2s_kd": gate,
            "s2t_kd": each * self.s2t_weight,
        }


DSKD_UNGATED = DualSpaceOptions(target="projected", columns="all", s2t_weight=1.0)
"""arXiv 2504.11426 without its gate, every term over the pairs of the step; with projectors not centred."""

DSKD_V1 = replace(DSKD_UNGATED, t2s_target="gold", s2t_divergence="kl", normaliser="labels")
"""arXiv 2406.17328, same vocabulary: the gold token, no gate, every term over the student's tokens.

Its projectors are `Projectors(student_to_teacher="trained", initial="random", bias=True)`; those of the
presets below `Projectors(centre=False)`.
"""

DSKD_V2 = replace(
    DSKD_UNGATED, gate="prediction", drop_unmapped=True, normaliser="micro_batch", gated_mean=True
)
"""arXiv 2504.11426, different vocabularies: over the pairs of the micro-batch, t2s_kd over those gated."""

DSKD_V2_SAME_VOCABULARY = replace(DSKD_UNGATED, gate="prediction", normaliser="labels", gated_mean=True)
"""arXiv 2504.11426, same vocabulary (off-policy: on-policy has no gate)."""
