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
<<<<<<< HEAD
    DSKD_V1,
    DSKD_V2,
    DSKD_V2_SAME_VOCABULARY,
    DualSpaceLoss,
    DualSpaceOptions,
    SharedVocabularyLoss,
    SharedVocabularyOptions,
    VocabularyMaps,
    dual_space,
    fused_cross_entropy,
    fused_dual_space,
    fused_shared_vocabulary,
    shared_vocabulary,
=======
    AttendedSide,
    AttendedStates,
    AttentionProjectors,
    AttentionScales,
    CrossModelAttentionLoss,
    Discriminator,
    DualSpaceLoss,
    KeyQueryMatching,
    SharedVocabularyLoss,
    adversarial_matching,
    cross_model_attention,
    dual_space,
    shared_vocabulary,
    transport_matching,
>>>>>>> wC
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
<<<<<<< HEAD
    "LossParts",
=======
    "KeyQueryMatching",
>>>>>>> wC
    "Positions",
    "Projectors",
    "Reduction",
    "SharedVocabularyLoss",
    "SharedVocabularyOptions",
    "TeacherStatistics",
    "TermSums",
<<<<<<< HEAD
    "VocabularyMaps",
    "adaptive_kl",
=======
    "adversarial_matching",
    "cross_model_attention",
    "distillation_loss",
>>>>>>> wC
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
<<<<<<< HEAD
    "teacher_statistics",
    "tvd",
    "weighted",
=======
    "transport_matching",
>>>>>>> wC
]
