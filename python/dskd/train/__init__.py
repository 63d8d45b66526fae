"""Training on `transformers.Trainer`; needs `pip install 'dskd[train]'`.

config, data <- collator <- model, evaluation <- trainer <- script        student, reporting beside them
"""

from dskd.train.collator import Collated, DistillationCollator, Encoded, EncodedRow, Side, TeacherSide
from dskd.train.config import DistillationConfig
from dskd.train.data import load_rows
from dskd.train.evaluation import HeldOut, held_out
from dskd.train.student import carry_embeddings, cut_layers
from dskd.train.trainer import DistillationTrainer

__all__ = [
    "Collated",
    "DistillationCollator",
    "DistillationConfig",
    "DistillationTrainer",
    "Encoded",
    "EncodedRow",
    "HeldOut",
    "Side",
    "TeacherSide",
    "carry_embeddings",
    "cut_layers",
    "held_out",
    "load_rows",
]
