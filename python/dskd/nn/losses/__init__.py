"""The losses, a file a paper: each a function over states of both models, and a module with its options."""

from dskd.nn.losses.attention import AttendedSide, AttendedStates, AttentionProjectors, AttentionScales
from dskd.nn.losses.cross_entropy import fused_cross_entropy
from dskd.nn.losses.cross_model_attention import CrossModelAttentionLoss, cross_model_attention
from dskd.nn.losses.cross_model_attention_fused import fused_cross_model_attention
from dskd.nn.losses.cross_model_attention_options import (
    DSKD_V1_ATTENTION,
    DSKD_V2_ATTENTION,
    CrossModelAttentionOptions,
)
from dskd.nn.losses.dual_space import DualSpaceLoss, dual_space
from dskd.nn.losses.dual_space_fused import fused_dual_space
from dskd.nn.losses.dual_space_options import (
    DSKD_UNGATED,
    DSKD_V1,
    DSKD_V2,
    DSKD_V2_SAME_VOCABULARY,
    DualSpaceOptions,
    VocabularyMaps,
)
from dskd.nn.losses.key_query_matching import (
    Discriminator,
    KeyQueryMatching,
    adversarial_matching,
    transport_matching,
)
from dskd.nn.losses.shared_vocabulary import (
    SharedVocabularyLoss,
    SharedVocabularyOptions,
    fused_shared_vocabulary,
    shared_vocabulary,
)

__all__ = [
    "DSKD_UNGATED",
    "DSKD_V1",
    "DSKD_V1_ATTENTION",
    "DSKD_V2",
    "DSKD_V2_ATTENTION",
    "DSKD_V2_SAME_VOCABULARY",
    "AttendedSide",
    "AttendedStates",
    "AttentionProjectors",
    "AttentionScales",
    "CrossModelAttentionLoss",
    "CrossModelAttentionOptions",
    "Discriminator",
    "DualSpaceLoss",
    "DualSpaceOptions",
    "KeyQueryMatching",
    "SharedVocabularyLoss",
    "SharedVocabularyOptions",
    "VocabularyMaps",
    "adversarial_matching",
    "cross_model_attention",
    "dual_space",
    "fused_cross_entropy",
    "fused_cross_model_attention",
    "fused_dual_space",
    "fused_shared_vocabulary",
    "shared_vocabulary",
    "transport_matching",
]
