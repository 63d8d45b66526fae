"""The losses, a file a paper: each a function over aligned states, and a module that keeps its options."""

from dskd.nn.losses.dual_space import DualSpaceLoss, dual_space
from dskd.nn.losses.shared_vocabulary import SharedVocabularyLoss, shared_vocabulary

__all__ = ["DualSpaceLoss", "SharedVocabularyLoss", "dual_space", "shared_vocabulary"]
