"""Cross-model attention: dual-space distillation of any two tokenizers, without alignment: the definition.

Every supervised position of a row attends to those of the other model in the same row, see `attention`
(arXiv 2406.17328, section 3.3; with the change of arXiv 2504.11426 by `added="prediction"`).
`cross_model_attention` makes all logits and leaves their gradients to autograd.
`fused_cross_model_attention` equals it, keeps no logits, and is what trains.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional

from dskd.nn.divergences import divergence
from dskd.nn.linear import CHUNK_MEMORY
from dskd.nn.losses.attention import attended
from dskd.nn.losses.cross_model_attention_fused import fused_cross_model_attention
from dskd.nn.losses.cross_model_attention_options import OVER, CrossModelAttentionOptions
from dskd.nn.reduction import CROSS_ENTROPY, LossParts, TermSums, weighted

if TYPE_CHECKING:
    from torch import Tensor

    from dskd.nn.heads import Head
    from dskd.nn.losses.attention import AttendedStates, AttentionProjectors, AttentionScales
    from dskd.nn.losses.key_query_matching import KeyQueryMatching
    from dskd.nn.reduction import Reduction

__all__ = ["CrossModelAttentionLoss", "cross_model_attention"]


def cross_model_attention(
    states: AttendedStates,
    projectors: AttentionProjectors,
    options: CrossModelAttentionOptions | None = None,
    *,
    scales: AttentionScales | None = None,
) -> TermSums:
    """The three terms of dual-space distillation, each summed over the positions of its space.

    In every row, x the token at a position and y the one that it predicts, e the (detached) embeddings:

        q    = Query[e_s(x); e_s(y)]                       [n, 2D]
        k    = [e_t(x); e_t(y)] / std                      [m, 2D]
        v_t  = P_ts(h_t / std + e_t(y) / std)              [m, d]
        v_s  = P_st(h_s)                                   [n, D]
        A    = q k^T / sqrt(2D)
        z_ts = softmax(A) v_t sg(W_s)^T                    a row a student position
        z_st = softmax(A^T) v_s W_t^T                      a row a teacher position

        t2s_ce = CE(z_ts, y_s)                                                  moves P_ts and Query
        t2s_kd = D(softmax(sg(z_ts) / (tau tau_t)), softmax(z_s / tau)), gated  moves the student, head too
        s2t_kd = D(softmax(z_t / tau), softmax(z_st / tau))                     moves the student's body,
                                                                                P_st and Query

    with each head's own transforms. Nothing of softmax(A^T) is stopped, in the paper neither: the attention
    is learned from both directions, so s2t_kd moves Query too, by which student positions a teacher position
    finds. The student learns nothing through A, as embeddings are detached.

    The attention is computed in the projectors' dtype, under autocast too. Positions of rows where the other
    model has none take no part, in the scales neither, but for the cross-entropy.

    The variant without scales, with head rows for embeddings and v_t = P_ts h_t is
    `scales=AttentionScales()`, `embeddings=head.weight`, `added=None`, `gate=None`.

    Args:
        states: both models at their supervised positions.
        projectors: Query, P_ts and P_st.
        options: None: the defaults.
        scales: the three std; None: over the positions that take part.

    Returns:
        Sums `cross_entropy`, over all of the student's positions, `t2s_ce`, `t2s_kd`, `s2t_kd`; counts
        `student_positions` and `teacher_positions` (that took part), `agreed` (student positions where argmax
        z_ts is gold) and, with a gate, `gated` (those it lets through).
    """
    options = options or CrossModelAttentionOptions()
    every = states.student.head.logits(states.student.hidden)
    cross_entropy = functional.cross_entropy(every, states.student.labels, reduction="sum")
    z_s = states.student.head.reachable(every[states.meeting()])
    states = states.of_rows_with_both()
    teacher, student = states.teacher, states.student
    with torch.no_grad():
        z_t = teacher.head.reachable(teacher.head.logits(teacher.hidden))
    tokens = {"gold": teacher.labels, "prediction": z_t.argmax(-1), None: None}[options.added]
    to_student, to_teacher = attended(states, projectors, tokens, scales)
    z_ts, z_st = _frozen_logits(student.head, to_student), _frozen_logits(teacher.head, to_teacher)

    hits = z_ts.argmax(-1) == student.labels
    target, tau = z_ts.detach() / options.teacher_temperature, options.temperature
    of_student = divergence(options.divergence, target, z_s, temperature=tau, mix=options.mix)
    name = options.of_teacher_space
    of_teacher = divergence(name, z_t, z_st, temperature=tau, mix=options.mix_of(name))
    sums = {
        CROSS_ENTROPY: cross_entropy,
        "t2s_ce": functional.cross_entropy(z_ts, student.labels, reduction="sum"),
        "t2s_kd": (of_student if options.gate is None else of_student * hits).sum(),
        "s2t_kd": of_teacher.sum(),
    }
    counts = {
        "student_positions": torch.tensor(len(student.row), device=hits.device),
        "teacher_positions": torch.tensor(len(teacher.row), device=hits.device),
        "agreed": hits.sum(),
        **({} if options.gate is None else {"gated": hits.sum()}),
    }
    return TermSums(sums, counts)


def _frozen_logits(head: Head, hidden: Tensor) -> Tensor:
    """The logits of a head that learns nothing from them."""
    return head.reachable(head.detached().logits(hidden))


class CrossModelAttentionLoss(nn.Module):
    """Keeps the options of `cross_model_attention`, its projectors, and what matches keys and queries.

    Args:
        projectors: of the two models.
        options: None: the defaults.
        matching: adds its own terms over the same keys and queries (arXiv 2603.22056); None: no such terms.
        fused: keep no logits, see `fused_cross_model_attention`; False: the definition.
        chunk_memory: bytes for the logits of one chunk of the fused form.

    Attributes:
        over: what each term and count runs over, as `Reduction` names it.
    """

    over = OVER

    def __init__(
        self,
        projectors: AttentionProjectors,
        options: CrossModelAttentionOptions | None = None,
        *,
        matching: KeyQueryMatching | None = None,
        fused: bool = True,
        chunk_memory: int = CHUNK_MEMORY,
    ) -> None:
        """See the class."""
        super().__init__()
        self.projectors = projectors
        self.options = options or CrossModelAttentionOptions()
        self.matching = matching
        self.fused = fused
        self.chunk_memory = chunk_memory

    def forward(
        self, states: AttendedStates, reduction: Reduction, scales: AttentionScales | None = None
    ) -> LossParts:
        """The loss of a micro-batch.

        Raises:
            ValueError: the reduction does not count the teacher's positions, and the options need them.
        """
        if self.fused:
            parts = fused_cross_model_attention(
                states,
                self.projectors,
                self.options,
                reduction=reduction,
                scales=scales,
                chunk_memory=self.chunk_memory,
            )
        else:
            weights = self.options.weights(reduction, len(states.teacher.row))
            parts = weighted(
                cross_model_attention(states, self.projectors, self.options, scales=scales), weights
            )
        if self.matching is None:
            return parts
        more = self._match(self.matching, states.of_rows_with_both(), reduction, scales)
        sums, counts = {**parts.sums, **more.sums}, {**parts.counts, **more.counts}
        return LossParts(parts.loss + more.loss, sums, counts)

    def _match(
        self,
        matching: KeyQueryMatching,
        states: AttendedStates,
        reduction: Reduction,
        scales: AttentionScales | None,
    ) -> LossParts:
        """The terms over keys and queries."""
        weights = self.options.weights(reduction, len(states.teacher.row))
        with torch.autocast(states.student.hidden.device.type, enabled=False):
            queries = self.projectors.queries(states.student)
            keys = self.projectors.keys(states.teacher, None if scales is None else scales.keys)
            return weighted(matching(queries, keys), weights)
