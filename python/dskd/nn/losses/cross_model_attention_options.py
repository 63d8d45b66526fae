"""The options of cross-model attention, the presets of the publications, and what a term is divided by."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias, get_args

from dskd.nn.divergences import DIVERGENCES, Divergence
from dskd.nn.reduction import CROSS_ENTROPY

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dskd.nn.reduction import Reduction

__all__ = ["DSKD_V1_ATTENTION", "DSKD_V2_ATTENTION", "OVER", "CrossModelAttentionOptions"]

Added: TypeAlias = Literal["gold", "prediction"]
AttentionGate: TypeAlias = Literal["gold"]
AttentionNormaliser: TypeAlias = Literal["positions", "labels"]

OVER = {
    CROSS_ENTROPY: "labels",
    "t2s_ce": "labels",
    "t2s_kd": "labels",
    "s2t_kd": "teacher_labels",
    "student_positions": "labels",
    "teacher_positions": "teacher_labels",
    "agreed": "labels",
    "gated": "labels",
    "kq_queries": "labels",
    "kq_keys": "teacher_labels",
    "kq_forward": "labels",
    "kq_backward": "teacher_labels",
    "kq_right_queries": "labels",
    "kq_right_keys": "teacher_labels",
}
"""What each term and count runs over, as `Reduction` names it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CrossModelAttentionOptions:
    """How two models that attend to each other are compared; the defaults are as in arXiv 2406.17328.

    Attributes:
        divergence: D of t2s_kd.
        mix: the parameter of D, where it has one.
        s2t_divergence: D of s2t_kd; None: the same (arXiv 2406.17328: always `kl`).
        temperature: tau, of the divergences on both sides.
        teacher_temperature: tau_t, of sg(z_ts) in t2s_kd besides.
        gate: which positions take part in t2s_kd: those where argmax z_ts is the `gold` token; None: all.
        added: the token whose embedding is added to the teacher's state in v_t (and there alone; keys, label
            and gate stay gold): the `gold` one, the teacher's `prediction` (its argmax, the lowest id of
            several; arXiv 2504.11426), or None.
        normaliser: what distillation terms are divided by: the `positions` of the whole step that each runs
            over, the student's or the teacher's, or all by the student's, its `labels`.
    """

    divergence: Divergence = "kl"
    mix: float | None = None
    s2t_divergence: Divergence | None = None
    temperature: float = 1.0
    teacher_temperature: float = 1.0
    gate: AttentionGate | None = "gold"
    added: Added | None = "gold"
    normaliser: AttentionNormaliser = "positions"

    def __post_init__(self) -> None:
        """Checks them.

        Raises:
            ValueError: one is out of its range.
        """
        choices: dict[str, tuple[str | None, ...]] = {
            "divergence": tuple(DIVERGENCES),
            "s2t_divergence": (*DIVERGENCES, None),
            "gate": (*get_args(AttentionGate), None),
            "added": (*get_args(Added), None),
            "normaliser": get_args(AttentionNormaliser),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}={getattr(self, name)!r}; it is one of {allowed}")
        for name in ("temperature", "teacher_temperature"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name}={getattr(self, name)}; it is above 0, and a number")

    @property
    def of_teacher_space(self) -> Divergence:
        """D in the teacher's space."""
        return self.s2t_divergence or self.divergence

    def mix_of(self, divergence: Divergence) -> float | None:
        """The parameter of a divergence: what was given is that of `divergence`."""
        return self.mix if divergence == self.divergence else None

    def weights(self, reduction: Reduction, teacher_positions: int) -> Mapping[str, float]:
        """What the sum of each term is multiplied with, those of key-query matching too.

        Args:
            reduction: of the step.
            teacher_positions: of the micro-batch.

        Raises:
            ValueError: the step has fewer teacher positions than the micro-batch.
        """
        if self.normaliser == "positions" and reduction.teacher_labels < teacher_positions:
            raise ValueError(
                f"teacher_labels={reduction.teacher_labels} of the step, and the micro-batch has "
                f"{teacher_positions} teacher positions: give Reduction(teacher_labels=...), or "
                "normaliser='labels'"
            )
        weights = {
            name: reduction.alpha / max(getattr(reduction, self._count(field)), 1)
            for name, field in OVER.items()
        }
        return {**weights, CROSS_ENTROPY: reduction.cross_entropy}

    def _count(self, field: str) -> str:
        return "labels" if self.normaliser == "labels" else field


DSKD_V1_ATTENTION = CrossModelAttentionOptions(s2t_divergence="kl", normaliser="labels")
"""arXiv 2406.17328, different vocabularies: every term over the student's tokens."""

DSKD_V2_ATTENTION = CrossModelAttentionOptions(added="prediction", normaliser="labels")
"""arXiv 2504.11426: the teacher's prediction in place of the gold token in v_t."""
