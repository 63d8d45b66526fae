"""Dual-space knowledge distillation over exact pairs (arXiv 2406.17328, 2504.11426).

In the student's space `z_ts = (h_t P_ts) sg(W_s)^T`, in the teacher's `z_st = (h_s P_st) W_t^T`, with each
head's own transforms:

    t2s_ce = CE(z_ts, y)                                     moves P_ts only
    t2s_kd = D(softmax(sg(z_ts) / tau), softmax(z_s / tau))  moves the student, its head too
    s2t_kd = D(softmax(z_t / tau), softmax(z_st / tau))      moves the student's body, and P_st if trained

By default the target of t2s_kd is the teacher's own logits on the shared vocabulary O in place of z_ts; then
there is no z_ts and no t2s_ce.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias, get_args

import torch
from torch import distributed

from dskd.nn.divergences import DIVERGENCES, Divergence
from dskd.nn.elementwise import argmax
from dskd.nn.heads import UNREACHABLE
from dskd.nn.loss import Needs
from dskd.nn.losses.comparing import Comparing, refuse_other
from dskd.nn.losses.known_teacher import is_enough, known_kl
from dskd.nn.projectors import Initial, Projectors, StudentToTeacher, TeacherToStudent
from dskd.nn.teacher_statistics import predictions, probability_sums
from dskd.nn.term import Aside, Read, Term, View

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor, nn

    from dskd.nn.batch import States, Teacher, TeacherModel
    from dskd.nn.heads import Head

__all__ = ["DualSpace", "DualSpaceProjectors"]

Gate: TypeAlias = Literal["prediction", "gold"]
Spaces: TypeAlias = Literal["both", "student", "teacher"]
TrainedBy: TypeAlias = Literal["prediction", "gold", "distribution"]
Target: TypeAlias = Literal["projected", "exact"]
Columns: TypeAlias = Literal["all", "overlap"]
Normaliser: TypeAlias = Literal["pairs", "labels", "micro_batch"]

Counted: TypeAlias = "tuple[Tensor, Mapping[str, Tensor]]"
"""A loss per item, and numbers for the log."""

_CHOICES: Mapping[str, tuple[str | None, ...]] = {
    "gate": (None, *get_args(Gate)),
    "spaces": get_args(Spaces),
    "t2s_target": get_args(TrainedBy),
    "target": get_args(Target),
    "columns": get_args(Columns),
    "s2t_columns": get_args(Columns),
    "normaliser": get_args(Normaliser),
    "s2t_divergence": (None, *DIVERGENCES),
}

_UNBOUNDED = ("reverse_kl", "adaptive_kl")
"""What is infinite where the teacher has no probability."""

_UNGATED = {"target": "projected", "columns": "all", "s2t_weight": 1.0, "centre": False, "refresh_every": 1}


# ---- Options ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class DualSpace(Comparing):
    """How two models are compared in two spaces.

    The defaults are what came out best in benches/study.md. Presets: `dskd_ungated`, arXiv 2504.11426 without
    its gate, every term over the pairs of the step; `dskd_v2`, the same paper, different vocabularies: over
    the pairs of the micro-batch, t2s_kd over those gated; `dskd_v2_same_vocabulary`, the same, off-policy
    (on-policy has no gate); `dskd_v1`, arXiv 2406.17328, same vocabulary: the gold token, no gate, every term
    over the student's tokens.

    Attributes:
        s2t_divergence: D in the teacher's space; None: the same (v1: always kl).
        scale_by_temperature_squared: multiply the divergences with tau^2, which keeps the size of their
            gradients.
        gate: which pairs take part in t2s_kd: those where argmax z_ts is the teacher's `prediction` in the
            student's vocabulary, or the `gold` token; None: all.
        gate_threshold: the share of such pairs in the micro-batch above which the gate is lifted; 1: never.
        spaces: `student` has the terms of the student's space, `teacher` those of the teacher's, which has
            no gate; `both`.
        t2s_target: what trains P_ts. A cross-entropy `t2s_ce` with y, the teacher's `prediction` (its argmax,
            the lowest id of several) in the student's vocabulary, or the `gold` token; or the `distribution`:
            `t2s_kl = KL(p_t on O, softmax(z_ts on O))`, which keeps z_ts close as the student's head moves.
            Where a prediction has no counterpart, the pair leaves t2s_ce, and t2s_kd if that is gated by it.
        target: of t2s_kd: the `projected` teacher, z_ts; or `exact`, the teacher's own logits on O, which
            with columns `overlap` is the shared-vocabulary loss: its limit as P_ts gets perfect. Without a
            gate there is then no z_ts, no P_ts, and nothing that trains it.
        columns: the ids over which t2s_kd compares: `all`, or those of O (`overlap`), renormalised there.
        s2t_columns: the same for s2t_kd.
        s2t_weight: what s2t_kd is multiplied with in the loss.
        drop_unmapped: leave pairs whose prediction has no counterpart out of all terms.
        normaliser: what the terms are divided by: the `pairs` of the whole step, its `labels`, or the pairs
            of the `micro_batch`, without those that are dropped, averaged over the micro-batches.
        gated_mean: divide t2s_kd by the pairs of the micro-batch that its gate let through, likewise.
        teacher_to_student: whether P_ts is `trained`, or `solved` again as the student's head moves.
        student_to_teacher: the same for P_st.
        initial: where those begin that are trained: `solved`, or `random`.
        bias: give those that are trained a bias.
        centre: solve projectors on centred heads, since what all logits have more says nothing.
        refresh_every: steps between two solutions of a solved projector.
    """

    s2t_divergence: Divergence | None = None
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
    teacher_to_student: TeacherToStudent = "trained"
    student_to_teacher: StudentToTeacher = "solved"
    initial: Initial = "solved"
    bias: bool = False
    centre: bool = True
    refresh_every: int = 5

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "dskd_ungated": _UNGATED,
        "dskd_v1": {
            **_UNGATED,
            "t2s_target": "gold",
            "s2t_divergence": "kl",
            "normaliser": "labels",
            "student_to_teacher": "trained",
            "initial": "random",
            "bias": True,
        },
        "dskd_v2": {
            **_UNGATED,
            "gate": "prediction",
            "drop_unmapped": True,
            "normaliser": "micro_batch",
            "gated_mean": True,
        },
        "dskd_v2_same_vocabulary": {
            **_UNGATED,
            "gate": "prediction",
            "normaliser": "labels",
            "gated_mean": True,
        },
    }

    def __post_init__(self) -> None:
        """Checks them.

        Raises:
            ValueError: one is out of its range, or two do not go together.
        """
        super().__post_init__()
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name}={getattr(self, name)!r}; it is one of {choices}")
        if not 0 <= self.gate_threshold <= 1:
            raise ValueError(f"gate_threshold={self.gate_threshold}; it is a share, from 0 to 1")
        refuse_other("s2t_weight", self.s2t_weight)
        refuse_other("refresh_every", self.refresh_every, least=1)
        if not self.projects:
            self._refuse_without_projection()
        if self.target == "exact" and self.columns == "all" and self.divergence in _UNBOUNDED:
            raise ValueError(
                f"divergence={self.divergence!r} is infinite outside the tokens that the teacher has: "
                "with target='exact' set columns='overlap', or take another divergence"
            )

    def _refuse_without_projection(self) -> None:
        """What speaks of the projected teacher, where there is none."""
        for name, usual in (("t2s_target", "prediction"), ("teacher_to_student", "trained")):
            if getattr(self, name) != usual:
                raise ValueError(
                    f"{name}={getattr(self, name)!r} is of P_ts, and with target='exact' and no gate, or "
                    "with spaces='teacher', there is none: set target='projected' and spaces='both', or "
                    f"leave {name} out"
                )

    @property
    def projects(self) -> bool:
        """Whether the student's space has the projected teacher z_ts: as the target, or for the gate."""
        return self.spaces != "teacher" and (self.target == "projected" or self.gate is not None)

    @property
    def _speaks_of_overlap(self) -> bool:
        in_student = self.target == "exact" or self.t2s_target == "distribution" or self.columns == "overlap"
        in_teacher = self.s2t_columns == "overlap"
        return (self.spaces != "teacher" and in_student) or (self.spaces != "student" and in_teacher)

    @property
    def needs(self) -> Needs:
        """The teacher's states at the pairs; projectors are solved on the tokens in common."""
        return Needs(pairs=True, overlap=self._speaks_of_overlap)

    def build(self, student: Head, teacher: TeacherModel) -> DualSpaceProjectors:
        """The projectors; one that nobody asks for is not trained."""
        if teacher.maps.overlap is None:
            raise ValueError("projectors are solved on the tokens in common: give VocabularyMaps(overlap=)")
        made = DualSpaceProjectors(
            student_weight=student.weight,
            teacher_weight=teacher.head.weight,
            overlap=teacher.maps.overlap,
            **{name: getattr(self, name) for name in _OF_PROJECTORS},
        )
        made.refresh_every = self.refresh_every
        made.begun_on(student.weight)
        if not self.projects:
            made.teacher_to_student.requires_grad_(False)
        if self.spaces == "student":
            made.student_to_teacher.requires_grad_(False)
        return made

    def terms(
        self, student: States, teacher: Teacher | None, built: nn.Module | None
    ) -> Sequence[Term | Aside]:
        """See `Loss`."""
        if teacher is None or not isinstance(built, Projectors):
            raise ValueError("DualSpace needs a teacher, and the projectors that it builds")
        return _Pairs(self, student, teacher, built).terms()


_OF_PROJECTORS = ("teacher_to_student", "student_to_teacher", "initial", "bias", "centre")


class DualSpaceProjectors(Projectors):
    """Projectors that are solved again as the student's head moves; see `Projectors`.

    Attributes:
        refresh_every: steps between two solutions.
    """

    refresh_every = 5
    _solved_at: int | None = None
    _seen: Tensor | None = None
    _moves = -1
    _begun_on: tuple[Tensor, torch.dtype] | None = None

    def begin(self, student: Head, teacher: Teacher, step: int | None) -> None:
        """Solves again what is solved, if it is time; weighted by what the teacher expects, where P_ts is.

        Args:
            student: its head, as it is now.
            teacher: at the pairs.
            step: of the optimizer; None: as often as the head was seen to have moved.
        """
        if not self.training or not self._is_time(student, step) or self._is_just_solved(student):
            return
        if self.observes and teacher.hidden is not None:
            sums = probability_sums(teacher.model.head, teacher.hidden)
            count = sums.new_tensor([float(len(teacher.hidden))])
            if distributed.is_available() and distributed.is_initialized():
                distributed.all_reduce(sums)
                distributed.all_reduce(count)
            self.observe(sums, int(count))
        self.refresh(student_weight=student.weight, teacher_weight=teacher.model.head.weight)

    def begun_on(self, weight: Tensor) -> None:
        """Remembers on which head, the student's, it was solved as it was made."""
        self._begun_on = _some_of(weight), self.student_to_teacher.dtype

    def _is_just_solved(self, student: Head) -> bool:
        """Whether there is nothing to solve yet: the head is still that, and no frequencies were told."""
        begun_on, self._begun_on = self._begun_on, None
        if begun_on is None or self.observes:
            return False
        # A module that has been cast since could be solved more exactly, or is less exact than it was.
        weight, dtype = begun_on
        return dtype == self.student_to_teacher.dtype and _are_equal(weight, _some_of(student.weight))

    def _is_time(self, student: Head, step: int | None) -> bool:
        if step is not None:
            is_new, self._solved_at = step != self._solved_at, step
            return is_new and step % self.refresh_every == 0
        seen, self._seen = self._seen, _some_of(student.weight)
        is_new = seen is None or not _are_equal(seen, self._seen)
        self._moves += is_new
        return is_new and self._moves % self.refresh_every == 0


_LOOKED_AT = 1024


def _some_of(weight: Tensor) -> Tensor:
    """Numbers by which weights are seen to move: fused optimizers do not count how often they write."""
    flat = weight.detach().flatten()
    return flat[:: max(len(flat) // _LOOKED_AT, 1)].clone()


def _are_equal(one: Tensor, other: Tensor) -> bool:
    return (one.dtype, one.device) == (other.dtype, other.device) and torch.equal(one, other)


# ---- Terms -----------------------------------------------------------------------------------------------


class _Pairs:
    """The terms over the pairs of one batch."""

    def __init__(self, how: DualSpace, student: States, teacher: Teacher, projectors: Projectors) -> None:
        self.how, self.student, self.teacher, self.projectors = how, student, teacher, projectors
        self.paired = teacher.pairs.at if teacher.pairs.at is not None else student.labels[:0]
        self.gold = student.labels[self.paired]
        self._last: tuple[slice, Tensor] | None = None

    def terms(self) -> list[Term | Aside]:
        """Those of both spaces."""
        made: list[Term | Aside] = []
        if self.how.spaces != "teacher":
            made += [self._training_projector()] if self.projected is not None else []
            made.append(self._t2s_kd())
        if self.how.spaces != "student":
            made.append(self._s2t_kd())
        return made

    # ---- What is read ------------------------------------------------------------------------------------

    @cached_property
    def projected(self) -> Read | None:
        """z_ts, where somebody asks for it."""
        if not self.how.projects:
            return None
        states = self.projectors.to_student(self.teacher.read.states)
        return Read(states, self.student.head.detached(), self.teacher.pairs)

    def _carried(self) -> Read:
        """z_st."""
        head, states = self.teacher.model.head.detached(), self.student.hidden[self.paired]
        projector = self.projectors.settled_to_teacher
        if projector is None:
            return Read(self.projectors.to_teacher(states), head, self.teacher.pairs)
        return Read(states, head, self.teacher.pairs, projector=projector.detach())

    # ---- Predictions, and which pairs take part ----------------------------------------------------------

    @cached_property
    def _known(self) -> Tensor | None:
        """The teacher's predictions in the student's vocabulary or -1, where they are there before."""
        statistics = self.teacher.statistics
        if statistics is not None:
            return self._mapped(statistics.predicted)
        if self._weights_need_all_pairs:
            return self._mapped(predictions(self.teacher.model.head, self.teacher.read.states))
        return None

    def _mapped(self, predicted: Tensor) -> Tensor:
        return self.teacher.model.maps.to_student[predicted]

    def _predicted(self, rows: slice, said: View | None) -> Tensor:
        if self._known is not None:
            return self._known[rows]
        if said is None:
            raise ValueError("the teacher's logits are not read")
        if self._last is None or self._last[0] != rows:
            self._last = rows, self._mapped(argmax(said.reachable.detach()))
        return self._last[1]

    @property
    def _asks_teacher(self) -> list[Read]:
        """The teacher's logits, where its predictions are not known before."""
        return [] if self._known is not None else [self.teacher.read]

    def _kept(self, predicted: Tensor) -> Tensor:
        """Which pairs are not dropped."""
        return predicted >= 0 if self.how.drop_unmapped else torch.ones_like(predicted, dtype=torch.bool)

    def _let_through(self, said: Tensor, predicted: Tensor, gold: Tensor) -> Tensor:
        """Which pairs are not dropped and pass the gate, of three columns of ids."""
        kept = self._kept(predicted)
        if self.how.gate is None:
            return kept
        passed = said == (gold if self.how.gate == "gold" else predicted)
        lifted = passed.sum() > self.how.gate_threshold * len(passed)
        return (passed | lifted) & kept

    @property
    def _weights_need_all_pairs(self) -> bool:
        """Whether what a pair weighs depends on all of them: on how many there are, or on the gate."""
        how = self.how
        counted = how.gated_mean or how.normaliser == "micro_batch"
        gated = how.gate is not None and how.spaces != "teacher"
        return (how.drop_unmapped and counted) or (gated and (how.gated_mean or how.gate_threshold < 1))

    @cached_property
    def _passed(self) -> Tensor | None:
        """Those that take part in t2s_kd, where that is known before the walk."""
        if not self._weights_need_all_pairs or self._known is None:
            return None
        if self.projected is None:
            return self._kept(self._known)
        said = predictions(self.projected.head, self.projected.states.detach())
        return self._let_through(said, self._known, self.gold)

    @cached_property
    def _per(self) -> str | int:
        """What a term is divided by."""
        if self.how.normaliser != "micro_batch":
            return self.how.normaliser
        return len(self.gold) if self._known is None else int(self._kept(self._known).sum())

    # ---- The terms ---------------------------------------------------------------------------------------

    def _training_projector(self) -> Term:
        """t2s_ce, or t2s_kl."""
        by_distribution = self.how.t2s_target == "distribution"
        reads = [self.teacher.read] if by_distribution else self._asks_teacher

        def losses(
            rows: slice, projected: View, said: View | None = None
        ) -> tuple[Tensor, Mapping[str, Tensor]]:
            predicted, gold = self._predicted(rows, said), self.gold[rows]
            y = gold if self.how.t2s_target == "gold" else predicted
            agreed = argmax(projected.reachable.detach()) == y
            kept = self._kept(predicted)
            if by_distribution and said is not None:
                of_teacher, of_student = self.teacher.shared
                target = said.reachable.index_select(-1, of_teacher)
                items = torch.where(kept, projected.divergence("kl", target, of_student), 0)
            else:
                labels = y.where(kept, -1)
                found = projected.log_probs_at(labels.clamp(min=0)[:, None])[:, 0]
                items = torch.where(labels >= 0, -found, 0)
            return items, {"agreed": agreed.sum()}

        name = "t2s_kl" if by_distribution else "t2s_ce"
        reads = [*([] if self.projected is None else [self.projected]), *reads]
        return Term(name, self.teacher.pairs, reads, losses, per=self._per)

    def _t2s_kd(self) -> Term:
        how = self.how
        needs_teacher = how.target == "exact" or self._known is None
        reads = {"student": self.student.read}
        if self.projected is not None:
            reads["projected"] = self.projected
        if needs_teacher:
            reads["teacher"] = self.teacher.read

        def losses(rows: slice, *views: View) -> Counted:
            seen = dict(zip(reads, views, strict=True))
            predicted = self._predicted(rows, seen.get("teacher"))
            passed = self._gate(rows, predicted, seen.get("projected"))
            columns = self.teacher.shared[1] if how.columns == "overlap" else None
            items = seen["student"].divergence(
                how.divergence,
                self._target(seen),
                columns,
                temperature=how.temperature,
                mix=how.mix,
            )
            counts = {"unmapped": (predicted < 0).sum()}
            if how.gate is not None:
                counts["gated"] = passed.sum()
            return self._scaled(items, passed), counts

        per = self._per
        if how.gated_mean:
            per = len(self.gold) if self._passed is None else int(self._passed.sum())
        return Term("t2s_kd", self.teacher.pairs, list(reads.values()), losses, per=per)

    def _gate(self, rows: slice, predicted: Tensor, projected: View | None) -> Tensor:
        if self._passed is not None:
            return self._passed[rows]
        if projected is None:
            return self._kept(predicted)
        return self._let_through(argmax(projected.reachable.detach()), predicted, self.gold[rows])

    def _target(self, seen: Mapping[str, View]) -> Tensor:
        """The teacher's side of t2s_kd, of the ids that are compared."""
        on_overlap = self.how.columns == "overlap"
        if self.how.target == "projected":
            made = seen["projected"].reachable.detach()
            return made.index_select(-1, self.teacher.shared[1]) if on_overlap else made
        of_teacher, of_student = self.teacher.shared
        target = seen["teacher"].reachable.index_select(-1, of_teacher)
        if on_overlap:
            return target
        student = seen["student"].logits
        everywhere = torch.full(student.shape, UNREACHABLE, dtype=student.dtype, device=student.device)
        # 2.7 to 2.9 times as fast as index_copy_, by hand.
        return everywhere.scatter_(1, of_student.expand(len(target), -1), target.to(student.dtype))

    def _scaled(self, items: Tensor, kept: Tensor) -> Tensor:
        factor = self.how.temperature**2 if self.how.scale_by_temperature_squared else 1.0
        return factor * torch.where(kept, items, 0)

    def _s2t_kd(self) -> Term | Aside:
        how, pairs = self.how, self.teacher.pairs
        name = how.s2t_divergence or how.divergence
        columns = self.teacher.shared[0] if how.s2t_columns == "overlap" else None
        carried, statistics = self._carried(), self.teacher.statistics
        alone = how.spaces == "teacher"
        is_linear = name == "kl" and columns is None
        if statistics is not None and is_linear and is_enough(statistics, carried.head, how.temperature):
            predicted = self._mapped(statistics.predicted)
            found = self._scaled(known_kl(carried, statistics), self._kept(predicted)).sum()
            counts = {"unmapped": (predicted < 0).sum()} if alone else {}
            return Aside("s2t_kd", pairs, found, how.s2t_weight, self._per, counts)
        mix = how.mix if name == how.divergence else None

        def losses(rows: slice, of_me: View, said: View) -> Counted:
            predicted, target = self._predicted(rows, said), said.reachable
            if columns is not None:
                target = target.index_select(-1, columns)
            items = of_me.divergence(name, target, columns, temperature=how.temperature, mix=mix)
            counts = {"unmapped": (predicted < 0).sum()} if alone else {}
            return self._scaled(items, self._kept(predicted)), counts

        return Term("s2t_kd", pairs, [carried, self.teacher.read], losses, how.s2t_weight, self._per)
