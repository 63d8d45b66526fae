"""Exact token alignment between two tokenizers, for cross-tokenizer distillation.

`align` and `set_tokenizers` are the one-liner, `Aligner` is what they stand on, `Vocabulary` is what an
aligner knows of a tokenizer, `Alignment` is what it returns. `dskd.reference` holds the definitions.
"""

from dskd._core import __version__
from dskd.alignment import Aligner, Alignment, Predicting, align, set_tokenizers
from dskd.columns import Chunks, Counts, PairKind, Pairs, Ranges
from dskd.overlaps import Overlaps
from dskd.ragged import Ragged
from dskd.student_values import StudentValues
from dskd.tensors import AlignmentTensors, PredictingTensors
from dskd.vocabulary import Kind, Vocabulary
from dskd.vocabulary_map import VocabularyMap

__all__ = [
    "Aligner",
    "Alignment",
    "AlignmentTensors",
    "Chunks",
    "Counts",
    "Kind",
    "Overlaps",
    "PairKind",
    "Pairs",
    "Predicting",
    "PredictingTensors",
    "Ragged",
    "Ranges",
    "StudentValues",
    "Vocabulary",
    "VocabularyMap",
    "__version__",
    "align",
    "set_tokenizers",
]
