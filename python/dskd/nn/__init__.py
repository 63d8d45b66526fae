"""Losses for distillation between models of different tokenizers; needs `pip install 'dskd[torch]'`.

Functions first, modules second. They take positions and hidden states as tensors and know nothing of trainers
or tokenizers:

    heads, divergences, reduction <- positions, projectors <- losses
"""

from dskd.nn.divergences import DIVERGENCES, divergence, kl, reverse_kl
from dskd.nn.heads import Head
from dskd.nn.losses import (
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
)
from dskd.nn.positions import AlignedStates, Positions
from dskd.nn.projectors import Projectors, gram_inverse, solve_projector
from dskd.nn.reduction import StepCounts, TermSums, distillation_loss

__all__ = [
    "DIVERGENCES",
    "AlignedStates",
    "AttendedSide",
    "AttendedStates",
    "AttentionProjectors",
    "AttentionScales",
    "CrossModelAttentionLoss",
    "Discriminator",
    "DualSpaceLoss",
    "Head",
    "KeyQueryMatching",
    "Positions",
    "Projectors",
    "SharedVocabularyLoss",
    "StepCounts",
    "TermSums",
    "adversarial_matching",
    "cross_model_attention",
    "distillation_loss",
    "divergence",
    "dual_space",
    "gram_inverse",
    "kl",
    "reverse_kl",
    "shared_vocabulary",
    "solve_projector",
    "transport_matching",
]
