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
from dskd.nn.losses import DualSpaceLoss, SharedVocabularyLoss, dual_space, shared_vocabulary
from dskd.nn.positions import AlignedStates, Positions
from dskd.nn.projectors import Projectors, gram_inverse, solve_projector
from dskd.nn.reduction import StepCounts, TermSums, distillation_loss

__all__ = [
    "DIVERGENCES",
    "AlignedStates",
    "DualSpaceLoss",
    "Head",
    "Positions",
    "Projectors",
    "SharedVocabularyLoss",
    "StepCounts",
    "TermSums",
    "adaptive_kl",
    "distillation_loss",
    "divergence",
    "divergence_and_gradient",
    "dual_space",
    "gram_inverse",
    "js",
    "kl",
    "reverse_kl",
    "shared_vocabulary",
    "skew_kl",
    "skew_reverse_kl",
    "solve_projector",
    "tvd",
]
