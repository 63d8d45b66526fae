"""Losses for distillation between models of different tokenizers; needs `pip install 'dskd[torch]'`.

    batch      a student and its teachers where they predict the same text
    losses     options, and terms over rows of logits: a file a loss, `LOSSES` one dictionary
    objective  their weighted sum, with what is trained beside the student
    fused      who runs the terms: whole, or a chunk of rows after the other

Nothing here knows of trainers or tokenizers. What stands higher in this list is known to what stands lower:

    heads, divergences, projectors <- term, batch <- loss <- losses; term <- fused <- objective
"""

from dskd.nn.batch import Batch, Chunks, States, Teacher, TeacherModel, VocabularyMaps
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
from dskd.nn.loss import Loss, Needs
from dskd.nn.losses import (
    ALM,
    LOSSES,
    ULD,
    CrossEntropy,
    CrossModelAttention,
    DualSpace,
    Logits,
    SharedVocabulary,
    StrictTopK,
)
from dskd.nn.losses.attention import AttentionProjectors, AttentionScales
from dskd.nn.losses.key_query_matching import (
    Discriminator,
    KeyQueryMatching,
    adversarial_matching,
    frozen_matching,
    transport_matching,
)
from dskd.nn.losses.options import loss_of
from dskd.nn.objective import Objective, Weighted
from dskd.nn.places import Places
from dskd.nn.projectors import Projectors, gram_inverse, most_frequent, solve_projector
from dskd.nn.reduction import LossParts, Reduction
from dskd.nn.teacher_statistics import TeacherStatistics, label_log_probs, teacher_statistics
from dskd.nn.term import Aside, Over, Read, Term, View

__all__ = [
    "ALM",
    "DIVERGENCES",
    "LOSSES",
    "ULD",
    "Aside",
    "AttentionProjectors",
    "AttentionScales",
    "Batch",
    "Chunks",
    "CrossEntropy",
    "CrossModelAttention",
    "Discriminator",
    "DualSpace",
    "Head",
    "KeyQueryMatching",
    "Logits",
    "Loss",
    "LossParts",
    "Needs",
    "Objective",
    "Over",
    "Places",
    "Projectors",
    "Read",
    "Reduction",
    "SharedVocabulary",
    "States",
    "StrictTopK",
    "Teacher",
    "TeacherModel",
    "TeacherStatistics",
    "Term",
    "View",
    "VocabularyMaps",
    "Weighted",
    "adaptive_kl",
    "adversarial_matching",
    "divergence",
    "divergence_and_gradient",
    "frozen_matching",
    "gram_inverse",
    "js",
    "kl",
    "label_log_probs",
    "loss_of",
    "most_frequent",
    "reverse_kl",
    "skew_kl",
    "skew_reverse_kl",
    "solve_projector",
    "teacher_statistics",
    "transport_matching",
    "tvd",
]
