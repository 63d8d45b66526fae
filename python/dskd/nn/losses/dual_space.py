"""Dual-space knowledge distillation over exact pairs (arXiv 2406.17328, 2504.11426): the definition.

In the student's space `z_ts = (h_t P_ts) sg(W_s)^T`, in the teacher's `z_st = (h_s P_st) W_t^T`, with each
head's own transforms:

    t2s_ce = CE(z_ts, y)                                     moves P_ts only
    t2s_kd = D(softmax(sg(z_ts) / tau), softmax(z_s / tau))  moves the student, its head too
    s2t_kd = D(softmax(z_t / tau), softmax(z_st / tau))      moves the student's body, and P_st if trained

By default the target of t2s_kd is the teacher's own logits on the shared vocabulary O in place of z_ts; then
there is no z_ts and no t2s_ce.

`dual_space` makes all logits and leaves their gradients to autograd. `fused_dual_space` equals it, keeps no
logits, and is what trains.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional

from dskd.nn.divergences import divergence
from dskd.nn.heads import UNREACHABLE
from dskd.nn.linear import CHUNK_MEMORY
from dskd.nn.losses.dual_space_fused import fused_dual_space
from dskd.nn.losses.dual_space_options import DualSpaceOptions, VocabularyMaps
from dskd.nn.reduction import TermSums, weighted

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from dskd.nn.positions import AlignedStates
    from dskd.nn.projectors import Projectors
    from dskd.nn.reduction import LossParts, Reduction

__all__ = ["DualSpaceLoss", "dual_space"]


def dual_space(
    states: AlignedStates,
    to_student: Tensor,
    to_teacher: Tensor,
    maps: VocabularyMaps,
    options: DualSpaceOptions | None = None,
) -> TermSums:
    """The terms, each summed over the pairs, and the cross-entropy over the labels.

    Args:
        states: the hidden states and heads.
        to_student: `[pairs, d]`, the teacher's states in the student's space, `sg(h_t) P_ts`.
        to_teacher: `[pairs, D]`, the student's states in the teacher's space, `h_s P_st`.
        maps: of the two vocabularies.
        options: None: the defaults.

    Returns:
        Sums `cross_entropy`, `t2s_ce` or `t2s_kl`, `t2s_kd`, `s2t_kd`; counts `unmapped` (predictions without
        a counterpart), `agreed` (pairs where argmax z_ts is y) and, with a gate, `gated` (those let through).
        Where nothing is projected there is no `t2s_ce` and no `agreed`.

    Raises:
        ValueError: the options need an overlap that is not there.
    """
    options = options or DualSpaceOptions()
    options.require(maps)
    logits = states.student_head.logits(states.student_hidden)
    sums = {"cross_entropy": functional.cross_entropy(logits, states.labels, reduction="sum")}
    with torch.no_grad():
        teacher = states.teacher_head.reachable(states.teacher_head.logits(states.teacher_hidden))
        predicted = maps.to_student[teacher.argmax(-1)]
    kept = options.kept(predicted)
    counts = {"unmapped": (predicted < 0).sum()}
    if options.spaces != "teacher":
        ids = {"predicted": predicted, "gold": states.labels[states.paired]}
        student = states.student_head.reachable(logits[states.paired])
        z_ts = None
        if options.projects:
            head = states.student_head.detached()
            z_ts = head.reachable(head.logits(to_student))
        in_space = _student_space((teacher, z_ts, student), ids, kept, maps, options)
        sums |= in_space.sums
        counts |= in_space.counts
    if options.spaces != "student":
        head = states.teacher_head.detached()
        z_st = head.reachable(head.logits(to_teacher))
        if options.s2t_columns == "overlap":
            of_teacher, _ = maps.shared()
            teacher, z_st = teacher[:, of_teacher], z_st[:, of_teacher]
        name = options.of_teacher_space
        items = divergence(name, teacher, z_st, temperature=options.temperature, mix=options.mix_of(name))
        sums["s2t_kd"] = options.of_divergences * torch.where(kept, items, 0).sum()
    return TermSums(sums, counts)


def _student_space(
    logits: tuple[Tensor, Tensor | None, Tensor],
    ids: Mapping[str, Tensor],
    kept: Tensor,
    maps: VocabularyMaps,
    options: DualSpaceOptions,
) -> TermSums:
    """The terms of the student's space, of the logits z_t, z_ts (or None) and z_s of reachable ids."""
    teacher, z_ts, student = logits
    trained, passed = TermSums({}, {}), kept
    if z_ts is not None:
        trained = _training_projector(teacher, z_ts, ids, kept, maps, options)
        passed = options.let_through(z_ts.argmax(-1), ids["predicted"], ids["gold"])
    gated = {} if options.gate is None else {"gated": passed.sum()}
    if options.target == "exact" or z_ts is None:
        of_teacher, of_student = maps.shared()
        target = torch.full_like(student, UNREACHABLE).detach()
        target = target.index_copy(1, of_student, teacher[:, of_teacher].to(target.dtype))
    else:
        target = z_ts.detach()
    if options.columns == "overlap":
        of_student = maps.shared()[1]
        target, student = target[:, of_student], student[:, of_student]
    items = divergence(options.divergence, target, student, temperature=options.temperature, mix=options.mix)
    distilled = options.of_divergences * torch.where(passed, items, 0).sum()
    return TermSums({**trained.sums, "t2s_kd": distilled}, {**trained.counts, **gated})


def _training_projector(
    teacher: Tensor,
    z_ts: Tensor,
    ids: Mapping[str, Tensor],
    kept: Tensor,
    maps: VocabularyMaps,
    options: DualSpaceOptions,
) -> TermSums:
    """t2s_ce or t2s_kl, and where z_ts is y."""
    predicted, gold = ids["predicted"], ids["gold"]
    sums = {}
    if options.t2s_target == "distribution":
        of_teacher, of_student = maps.shared()
        items = divergence("kl", teacher[:, of_teacher], z_ts[:, of_student])
        sums["t2s_kl"] = torch.where(kept, items, 0).sum()
    else:
        y = predicted if options.t2s_target == "prediction" else gold
        sums["t2s_ce"] = functional.cross_entropy(z_ts, y.where(kept, -1), ignore_index=-1, reduction="sum")
    agreed = z_ts.argmax(-1) == (gold if options.t2s_target == "gold" else predicted)
    return TermSums(sums, {"agreed": agreed.sum()})


class DualSpaceLoss(nn.Module):
    """Keeps the options of `dual_space`, and its projectors.

    Where the options do not ask for a projected teacher (`options.projects`), P_ts gets a gradient of zeros:
    do not give it to an optimizer that decays weights.

    Args:
        projectors: of the two models.
        maps: of the two vocabularies.
        options: None: the defaults.
        fused: keep no logits, see `fused_dual_space`; False: the definition.
        chunk_memory: bytes for the logits of one chunk of the fused form, see `fused_dual_space`.

    Raises:
        ValueError: the options need an overlap that is not there.
    """

    to_student: Tensor
    overlap: Tensor | None

    def __init__(
        self,
        projectors: Projectors,
        maps: VocabularyMaps,
        options: DualSpaceOptions | None = None,
        *,
        fused: bool = True,
        chunk_memory: int = CHUNK_MEMORY,
    ) -> None:
        """See the class."""
        super().__init__()
        self.options = options or DualSpaceOptions()
        self.options.require(maps)
        self.projectors = projectors
        self.register_buffer("to_student", maps.to_student, persistent=False)
        self.register_buffer("overlap", maps.overlap, persistent=False)
        self.fused = fused
        self.chunk_memory = chunk_memory

    def forward(self, states: AlignedStates, reduction: Reduction) -> LossParts:
        """The loss of a micro-batch."""
        to_student = self.projectors.to_student(states.teacher_hidden.detach())
        projector = self.projectors.settled_to_teacher if self.fused else None
        student = states.student_hidden[states.paired]
        to_teacher = self.projectors.to_teacher(student) if projector is None else student
        maps = VocabularyMaps(to_student=self.to_student, overlap=self.overlap)
        if self.fused:
            return fused_dual_space(
                states,
                to_student,
                to_teacher,
                maps,
                self.options,
                reduction=reduction,
                projector=projector,
                chunk_memory=self.chunk_memory,
            )
        terms = dual_space(states, to_student, to_teacher, maps, self.options)
        pairs = len(states.paired)
        kept = pairs - terms.counts["unmapped"] if self.options.drop_unmapped else pairs
        weights = self.options.weights(reduction, int(kept), int(terms.counts.get("gated", kept)))
        return weighted(terms, weights)
