"""Cross-model attention: dual-space distillation of any two tokenizers, without alignment.

Every supervised position of a row attends to those of the other model in the same row, see `attention`
(arXiv 2406.17328, section 3.3). x is the token at a position, y the one that it predicts, e the (detached)
embeddings:

    q    = Query[e_s(x); e_s(y)]                       [n, 2D]
    k    = [e_t(x); e_t(y)] / std                      [m, 2D]
    v_t  = P_ts(h_t / std + e_t(y) / std)              [m, d]
    v_s  = P_st(h_s)                                   [n, D]
    A    = q k^T / sqrt(2D)
    z_ts = softmax(A) v_t sg(W_s)^T                    a row a student position
    z_st = softmax(A^T) v_s W_t^T                      a row a teacher position

    t2s_ce = CE(z_ts, y_s)                                                  moves P_ts and Query
    t2s_kd = D(softmax(sg(z_ts) / (tau tau_t)), softmax(z_s / tau)), gated  moves the student, head too
    s2t_kd = D(softmax(z_t / tau), softmax(z_st / tau))                     moves the student's body, P_st
                                                                            and Query

with each head's own transforms. Nothing of softmax(A^T) is stopped, in the paper neither: the attention is
learned from both directions, so s2t_kd moves Query too, by which student positions a teacher position finds.
The student learns nothing through A, as embeddings are detached. Positions of rows where the other model has
none take no part, in the scales neither.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias, get_args

import torch
from torch import nn

from dskd.nn.divergences import DIVERGENCES, Divergence
from dskd.nn.elementwise import argmax
from dskd.nn.loss import Needs
from dskd.nn.losses.attention import AttentionProjectors, attended, rows_of
from dskd.nn.losses.comparing import Comparing, refuse_other
from dskd.nn.losses.key_query_matching import KeyQueryMatching, MatchingVariant
from dskd.nn.losses.known_teacher import is_enough, known_kl
from dskd.nn.teacher_statistics import predictions
from dskd.nn.term import Aside, Over, Read, Term, View

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from dskd.nn.batch import States, Teacher, TeacherModel
    from dskd.nn.heads import Head

__all__ = ["Attending", "CrossModelAttention"]

Added: TypeAlias = Literal["gold", "prediction"]
AttentionGate: TypeAlias = Literal["gold"]
AttentionNormaliser: TypeAlias = Literal["positions", "labels"]

_CHOICES: Mapping[str, tuple[str | None, ...]] = {
    "s2t_divergence": (None, *DIVERGENCES),
    "gate": (None, *get_args(AttentionGate)),
    "added": (None, *get_args(Added)),
    "normaliser": get_args(AttentionNormaliser),
    "matching": (None, *get_args(MatchingVariant)),
}


_FIRST_PAPER = {"s2t_divergence": "kl", "normaliser": "labels"}


@dataclass(frozen=True, kw_only=True)
class CrossModelAttention(Comparing):
    """How two models that attend to each other are compared; the defaults are as in arXiv 2406.17328.

    Presets: `dskd_v1`, arXiv 2406.17328, different vocabularies: every term over the student's tokens;
    `dskd_v2`, the same with the change of arXiv 2504.11426, the teacher's prediction in place of the gold
    token in v_t; `key_query_matching`, the first and what the public code of arXiv 2603.22056 adds to it. The
    variant of KDFlow is `added` and `gate` none, head rows for embeddings, and scales of 1.

    Attributes:
        s2t_divergence: D of s2t_kd; None: the same (arXiv 2406.17328: always kl).
        teacher_temperature: tau_t, of sg(z_ts) in t2s_kd besides.
        gate: which positions take part in t2s_kd: those where argmax z_ts is the `gold` token; None: all.
        added: the token whose embedding is added to the teacher's state in v_t (and there alone; keys, label
            and gate stay gold): the `gold` one, the teacher's `prediction` (its argmax, the lowest id of
            several; arXiv 2504.11426), or None.
        normaliser: what the terms are divided by: the `positions` of the whole step that each runs over, the
            student's or the teacher's, or all by the student's, its `labels`.
        matching: bring queries near keys (arXiv 2603.22056), against a discriminator (`adversarial`) or by
            what it costs to carry one to the other (`transport`); `frozen`, as in the public code, against a
            discriminator that is not trained; None: not.
        kq_rate: the weight of matching (published: 0.01, and in the script 1).
    """

    s2t_divergence: Divergence | None = None
    teacher_temperature: float = 1.0
    gate: AttentionGate | None = "gold"
    added: Added | None = "gold"
    normaliser: AttentionNormaliser = "positions"
    matching: MatchingVariant | None = None
    kq_rate: float = 0.01

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "dskd_v1": _FIRST_PAPER,
        "dskd_v2": {"added": "prediction", "normaliser": "labels"},
        "key_query_matching": {**_FIRST_PAPER, "matching": "frozen", "kq_rate": 1.0},
    }

    def __post_init__(self) -> None:
        """Checks them.

        Raises:
            ValueError: one is out of its range.
        """
        super().__post_init__()
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name}={getattr(self, name)!r}; it is one of {choices}")
        refuse_other("teacher_temperature", self.teacher_temperature, above=0)
        refuse_other("kq_rate", self.kq_rate)

    @property
    def needs(self) -> Needs:
        """Both models at all their supervised positions."""
        return Needs(positions=True)

    def build(self, student: Head, teacher: TeacherModel) -> Attending:
        """The projectors, and what matches keys and queries."""
        if teacher.embeddings is not None and teacher.embeddings.shape[1] != teacher.head.width:
            raise ValueError(
                f"the teacher's input embeddings are {teacher.embeddings.shape[1]} wide and its states "
                f"{teacher.head.width}: cross-model attention adds and compares them, and takes models where "
                "they agree"
            )
        matching = None
        if self.matching is not None:
            matching = KeyQueryMatching(2 * teacher.head.width, variant=self.matching, rate=self.kq_rate)
        projectors = AttentionProjectors(student_width=student.width, teacher_width=teacher.head.width)
        return Attending(projectors, matching).to(student.weight.device)

    def terms(
        self, student: States, teacher: Teacher | None, built: nn.Module | None
    ) -> Sequence[Term | Aside]:
        """See `Loss`."""
        if teacher is None or teacher.states is None or not isinstance(built, Attending):
            raise ValueError(
                "CrossModelAttention needs the teacher at its supervised positions, Teacher(states=), and "
                "the projectors that it builds"
            )
        return _Rows(self, student, teacher, built).terms()


class Attending(nn.Module):
    """What cross-model attention trains beside the student.

    Args:
        projectors: Query, P_ts and P_st.
        matching: of keys and queries; None: there is no such term.
    """

    def __init__(self, projectors: AttentionProjectors, matching: KeyQueryMatching | None = None) -> None:
        """See the class."""
        super().__init__()
        self.projectors = projectors
        self.matching = matching

    def players(self) -> list[nn.Parameter]:
        """A discriminator, and the projector of queries that it is trained against; or none."""
        if self.matching is None or self.matching.variant != "adversarial":
            return []
        return [*self.matching.parameters(), *self.projectors.query.parameters()]


class _Rows:
    """The terms of one batch, over the rows where both models have positions."""

    def __init__(self, how: CrossModelAttention, student: States, teacher: Teacher, built: Attending) -> None:
        if teacher.states is None:
            raise ValueError("the teacher's positions are not there")
        self.how, self.built, self.everywhere = how, built, student
        self.scales = teacher.scales
        of_student = torch.isin(rows_of(student), rows_of(teacher.states))
        of_teacher = torch.isin(rows_of(teacher.states), rows_of(student))
        self.student, self.over = _met(student, of_student)
        self.teacher, self.over_teacher = _met(teacher.states, of_teacher)

    def terms(self) -> list[Term | Aside]:
        """Those of both spaces, and of the matching."""
        to_student, to_teacher = attended(
            self.student, self.teacher, self.built.projectors, self._added(), self.scales
        )
        projected = Read(to_student, self.student.head.detached(), self.over, self.student.labels)
        carried = Read(to_teacher, self.teacher.head.detached(), self.over_teacher)
        terms = [self._t2s_ce(projected), self._t2s_kd(projected), self._s2t_kd(carried)]
        return terms if self.built.matching is None else [*terms, *self._matched(self.built.matching)]

    def _added(self) -> Tensor | None:
        """The tokens whose embeddings are added to the teacher's states."""
        if self.how.added != "prediction":
            return None if self.how.added is None else self.teacher.labels
        if self.teacher.statistics is not None:
            return self.teacher.statistics.predicted
        return predictions(self.teacher.head, self.teacher.hidden)

    @property
    def _per(self) -> str | None:
        return "labels" if self.how.normaliser == "labels" else None

    def _t2s_ce(self, projected: Read) -> Term:
        def losses(_: slice, of_teacher: View) -> tuple[Tensor, Mapping[str, Tensor]]:
            gold = of_teacher.labels
            agreed = argmax(of_teacher.reachable.detach()) == gold
            items = -of_teacher.log_probs_at(gold[:, None])[:, 0]
            return items, {"agreed": agreed.sum()}

        return Term("t2s_ce", self.over, [projected], losses, per=self._per)

    def _t2s_kd(self, projected: Read) -> Term:
        how = self.how

        def losses(_: slice, of_me: View, of_teacher: View) -> tuple[Tensor, Mapping[str, Tensor]]:
            target = of_teacher.reachable.detach()
            hits = argmax(target) == of_teacher.labels
            if how.teacher_temperature != 1:
                target = target / how.teacher_temperature
            items = of_me.divergence(how.divergence, target, temperature=how.temperature, mix=how.mix)
            counts = {"student_positions": torch.tensor(len(hits), device=hits.device)}
            if how.gate is None:
                return items, counts
            return torch.where(hits, items, 0), {**counts, "gated": hits.sum()}

        return Term("t2s_kd", self.over, [self.everywhere.read, projected], losses, per=self._per)

    def _s2t_kd(self, carried: Read) -> Term | Aside:
        how, statistics = self.how, self.teacher.statistics
        name = how.s2t_divergence or how.divergence
        count = torch.tensor(len(self.teacher.labels), device=self.teacher.labels.device)
        numbers = {"teacher_positions": count}
        if statistics is not None and name == "kl" and is_enough(statistics, carried.head, how.temperature):
            found = known_kl(carried, statistics).sum()
            return Aside("s2t_kd", self.over_teacher, found, per=self._per, counts=numbers)
        mix = how.mix if name == how.divergence else None
        said = Read(self.teacher.hidden.detach(), self.teacher.head.detached(), self.over_teacher)

        def losses(rows: slice, of_me: View, said: View) -> tuple[Tensor, Mapping[str, Tensor]]:
            items = of_me.divergence(name, said.reachable, temperature=how.temperature, mix=mix)
            return items, {"teacher_positions": count.new_tensor(rows.stop - rows.start)}

        return Term("s2t_kd", self.over_teacher, [carried, said], losses, per=self._per)

    def _matched(self, matching: KeyQueryMatching) -> list[Aside]:
        """The terms over keys and queries."""
        with torch.autocast(self.student.hidden.device.type, enabled=False):
            queries = self.built.projectors.queries(self.student)
            keys = self.built.projectors.keys(self.teacher, None if self.scales is None else self.scales.keys)
            found = matching(queries, keys)
        overs = {"queries": self.over, "keys": self.over_teacher}
        return [
            Aside(f"kq_{name}", overs[side], value, per=self._per, counts=numbers)
            for name, side, value, numbers in found
        ]


def _met(states: States, meeting: Tensor) -> tuple[States, Over]:
    """Those that have something to attend to, and where they are among all."""
    if bool(meeting.all()):
        return states, states.over  # the usual case: no copies
    at = meeting.nonzero()[:, 0]
    return states.where(meeting), Over(states.name, len(states.labels), at=at, walk=states.name)
