"""Losses for distillation between models of different tokenizers; needs `pip install 'dskd[torch]'`.

Functions first, modules second. They take positions and hidden states as tensors and know nothing of trainers
or tokenizers:

    heads, divergences, reduction <- positions, projectors <- losses
"""

from dskd.nn.divergences import (
    DIVERGENCES,
    adaptive_kl,
    divergence,
    divergence_and_gradient,
    js,
    kl,
    reverse_kl,
    skew_kl,
    skew_reverse_kl,
    tvd,
)
from dskd.nn.heads import Head
from dskd.nn.losses import (
    DSKD_V1,
    DSKD_V2,
    DSKD_V2_SAME_VOCABULARY,
    AttendedSide,
    AttendedStates,
    AttentionProjectors,
    AttentionScales,
    CrossModelAttentionLoss,
    Discriminator,
    DualSpaceLoss,
    DualSpaceOptions,
    KeyQueryMatching,
    SharedVocabularyLoss,
    SharedVocabularyOptions,
    VocabularyMaps,
    adversarial_matching,
    cross_model_attention,
    dual_space,
    fused_cross_entropy,
    fused_dual_space,
    fused_shared_vocabulary,
    shared_vocabulary,
    transport_matching,
)
from dskd.nn.positions import AlignedStates, Positions
from dskd.nn.projectors import Projectors, gram_inverse, solve_projector
from dskd.nn.reduction import LossParts, Reduction, TermSums, weighted
from dskd.nn.teacher_statistics import TeacherStatistics, teacher_statistics

__all__ = [
    "DIVERGENCES",
    "DSKD_V1",
    "DSKD_V2",
    "DSKD_V2_SAME_VOCABULARY",
    "AlignedStates",
    "AttendedSide",
    "AttendedStates",
    "AttentionProjectors",
    "AttentionScales",
    "CrossModelAttentionLoss",
    "Discriminator",
    "DualSpaceLoss",
    "DualSpaceOptions",
    "Head",
    "KeyQueryMatching",
    "LossParts",
    "Positions",
    "Projectors",
    "Reduction",
    "SharedVocabularyLoss",
    "SharedVocabularyOptions",
    "TeacherStatistics",
    "TermSums",
    "VocabularyMaps",
    "adaptive_kl",
    "adversarial_matching",
    "cross_model_attention",
    "divergence",
    "divergence_and_gradient",
    "dual_space",
    "fused_cross_entropy",
    "fused_dual_space",
    "fused_shared_vocabulary",
    "gram_inverse",
    "js",
    "kl",
    "reverse_kl",
    "shared_vocabulary",
    "skew_kl",
    "skew_reverse_kl",
    "solve_projector",
    "teacher_statistics",
    "transport_matching",
    "tvd",
    "weighted",
]
