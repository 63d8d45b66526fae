"""Training on `transformers.Trainer`; needs `pip install 'dskd[train]'`.

rows <- rendering, laying <- side <- fitting <- collator     from a row of text to a batch
config, data, collator <- model, evaluation <- trainer <- script        student, reporting beside them
"""

from dskd.train.collator import Collated, DistillationCollator, EncodedRow, TeacherSide
from dskd.train.config import DistillationConfig
from dskd.train.data import load_rows
from dskd.train.evaluation import HeldOut, held_out
from dskd.train.rendering import Rendering, Template, Turn
from dskd.train.rows import Conversation, Plain, read_row
from dskd.train.side import Encoded, EncodedTurn, Side
from dskd.train.student import carry_embeddings, cut_layers
from dskd.train.trainer import DistillationTrainer

__all__ = [
    "Collated",
    "Conversation",
    "DistillationCollator",
    "DistillationConfig",
    "DistillationTrainer",
    "Encoded",
    "EncodedRow",
    "EncodedTurn",
    "HeldOut",
    "Plain",
    "Rendering",
    "Side",
    "TeacherSide",
    "Template",
    "Turn",
    "carry_embeddings",
    "cut_layers",
    "held_out",
    "load_rows",
    "read_row",
]
