"""The losses: a file a paper. A new one is its file and a line in `LOSSES`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dskd.nn.losses.alm import ALM
from dskd.nn.losses.cross_entropy import CrossEntropy
from dskd.nn.losses.cross_model_attention import CrossModelAttention
from dskd.nn.losses.dual_space import DualSpace
from dskd.nn.losses.logits import Logits
from dskd.nn.losses.shared_vocabulary import SharedVocabulary
from dskd.nn.losses.strict_top_k import StrictTopK
from dskd.nn.losses.uld import ULD

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dskd.nn.loss import Loss

__all__ = [
    "ALM",
    "LOSSES",
    "ULD",
    "CrossEntropy",
    "CrossModelAttention",
    "DualSpace",
    "Logits",
    "SharedVocabulary",
    "StrictTopK",
]

LOSSES: Mapping[str, type[Loss]] = {
    "alm": ALM,
    "cross_entropy": CrossEntropy,
    "cross_model_attention": CrossModelAttention,
    "dual_space": DualSpace,
    "logits": Logits,
    "shared_vocabulary": SharedVocabulary,
    "strict_top_k": StrictTopK,
    "uld": ULD,
}
"""Every loss by its name in a file of options."""
