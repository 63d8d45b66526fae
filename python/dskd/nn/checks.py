"""What is refused where a batch enters: shapes, dtypes and orders by which a loss would be another number.

Each names what was found, where, and the way out. A check that reads numbers asks the device once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from dskd.nn.batch import Chunks, States, Teacher, TeacherModel
    from dskd.nn.heads import Head
    from dskd.nn.teacher_statistics import TeacherStatistics

__all__ = [
    "refuse_is_text",
    "refuse_maps",
    "refuse_name",
    "refuse_states",
    "refuse_statistics",
    "refuse_teacher",
    "refuse_two_vocabularies",
]


def refuse_states(name: str, hidden: Tensor, labels: Tensor, head: Head) -> None:
    """What is wrong with the states of a model beside its labels and head."""
    if hidden.ndim != 2 or labels.ndim != 1 or len(hidden) != len(labels):  # noqa: PLR2004
        raise ValueError(
            f"{name}: states of shape {list(hidden.shape)} and labels of shape {list(labels.shape)}; give "
            "the states at the supervised positions alone, [n, width], and the token that each predicts, [n]"
        )
    if hidden.shape[1] != head.width:
        raise ValueError(
            f"{name}: states are {hidden.shape[1]} wide and the head reads {head.width}; are the heads "
            "swapped?"
        )
    if labels.dtype != torch.int64:
        raise ValueError(f"{name} are {labels.dtype}; give token ids, int64")
    if len(labels) and int(labels.max()) >= head.size:
        raise ValueError(
            f"{name} have the id {int(labels.max())}, and the head has 0 to {head.size - 1}; are the heads "
            "swapped?"
        )


def refuse_is_text(is_text: Tensor | None, overlap: Tensor | None) -> None:
    """What is wrong with a mask of the overlap."""
    tokens = 0 if overlap is None else len(overlap)
    if is_text is not None and (is_text.shape != (tokens,) or is_text.dtype != torch.bool):
        raise ValueError(
            f"is_text has shape {list(is_text.shape)}, {is_text.dtype}, beside an overlap of {tokens}; give "
            "bool [overlap]"
        )


def refuse_name(of: str, states: States, name: str) -> None:
    """States under another name than that by which they are counted."""
    if states.name != name:
        raise ValueError(f"the states of the {of} are named {states.name!r}: give States(name={name!r})")


def refuse_statistics(name: str, statistics: TeacherStatistics | None, count: int) -> None:
    """Statistics of another number of positions."""
    if statistics is not None and len(statistics.predicted) != count:
        raise ValueError(f"statistics of {len(statistics.predicted)} positions, and there are {count} {name}")


def refuse_maps(to_student: Tensor, overlap: Tensor | None) -> None:
    """What is wrong with maps of vocabularies."""
    whole = {"to_student": to_student} if overlap is None else {"to_student": to_student, "overlap": overlap}
    for name, ids in whole.items():
        if not isinstance(ids, torch.Tensor) or ids.dtype != torch.int64:
            raise ValueError(f"{name} is no int64 tensor: give torch.tensor(..) of what vocabulary_map has")
    if to_student.ndim != 1:
        raise ValueError(
            f"to_student has shape {list(to_student.shape)}: give one id for each of the teacher's"
        )
    if overlap is None:
        return
    if overlap.ndim != 2 or overlap.shape[1] != 2:  # noqa: PLR2004
        raise ValueError(
            f"overlap has shape {list(overlap.shape)}: give [overlap, 2], a row (teacher, student) a token; "
            "is it transposed?"
        )
    if bool((overlap < 0).any()):
        raise ValueError("overlap has negative ids: give the tokens alone that both vocabularies have")
    for side, ids in zip(("teacher", "student"), overlap.T, strict=True):
        if len(ids.unique()) != len(ids):
            raise ValueError(
                f"overlap has an id of the {side} twice, which would count twice: give each once"
            )


def refuse_teacher(name: str, student: States, teacher: Teacher) -> None:
    """What is wrong with a teacher beside this student."""
    is_silent = teacher.hidden is None and teacher.logits is None and teacher.top is None
    if is_silent != (teacher.paired is None):
        raise ValueError(f"teacher {name!r}: give hidden, or what is stored of it, and paired, or neither")
    ids, size = teacher.model.maps.size, student.head.size
    if ids > size:
        raise ValueError(
            f"teacher {name!r}: its maps have the student's id {ids - 1}, and the student's head has 0 to "
            f"{size - 1}: give pairs (teacher, student), in this order, of these two models"
        )
    if teacher.states is not None:
        refuse_name(f"teacher {name!r}", teacher.states, "teacher_labels")
    if teacher.hidden is not None and teacher.paired is not None:
        refuse_statistics("pairs", teacher.statistics, len(teacher.paired))
        refuse_pairs(name, teacher.hidden, teacher.paired, teacher.model, len(student.labels))
    if teacher.paired is not None:
        refuse_stored(name, teacher, teacher.paired, len(student.labels))
    if teacher.kinds is not None:
        refuse_kinds(name, teacher.kinds, teacher.paired)
    if teacher.chunks is not None:
        refuse_chunks(name, teacher.chunks, len(student.labels))


def refuse_two_vocabularies(loss: str, student: Head, teacher: TeacherModel, who: str) -> None:
    """What is wrong with a teacher whose ids a loss takes for the student's."""
    said = f"{loss} compares what two models say of the same ids, and "
    if teacher.head.size != student.size:
        raise ValueError(
            f"{said}the student has {student.size} and {who} {teacher.head.size}: take SharedVocabulary"
        )
    if not teacher.maps.is_same:
        raise ValueError(
            f"{said}the student's vocabulary of {student.size} is not that of {who}: take SharedVocabulary; "
            "where every id is the same token on both sides, give the teacher "
            f"VocabularyMaps.same({student.size})"
        )


def refuse_pairs(name: str, hidden: Tensor, paired: Tensor, model: TeacherModel, labels: int) -> None:
    if paired.ndim != 1 or paired.dtype != torch.int64 or hidden.shape[:1] != paired.shape:
        raise ValueError(
            f"teacher {name!r}: states of shape {list(hidden.shape)} for pairs of shape "
            f"{list(paired.shape)}, {paired.dtype}; give its states at the pairs alone, "
            "[pairs, D], and int64 [pairs]"
        )
    if hidden.ndim != 2 or hidden.shape[1] != model.head.width:  # noqa: PLR2004
        raise ValueError(
            f"teacher {name!r}: states of shape {list(hidden.shape)}, and its head reads {model.head.width}; "
            "are the heads swapped?"
        )
    refuse_order(name, paired, labels)


def refuse_order(name: str, paired: Tensor, labels: int) -> None:
    if len(paired) and not ascends(paired, labels):
        raise ValueError(
            f"teacher {name!r}: paired does not ascend from 0 to {labels - 1}: give each supervised position "
            "of the student once, in order, and the teacher's states in the same order"
        )


def refuse_stored(name: str, teacher: Teacher, paired: Tensor, labels: int) -> None:
    size = teacher.model.head.size
    if teacher.logits is not None and teacher.logits.shape != (len(paired), size):
        raise ValueError(
            f"teacher {name!r}: logits of shape {list(teacher.logits.shape)} for {len(paired)} pairs and a "
            f"vocabulary of {size}; give [pairs, V_t]"
        )
    if teacher.top is not None:
        refuse_top(name, *teacher.top, len(paired), size)
    if teacher.hidden is None:
        refuse_order(name, paired, labels)


def refuse_top(name: str, ids: Tensor, log_probs: Tensor, pairs: int, size: int) -> None:
    fits = ids.ndim == 2 and len(ids) == pairs and ids.shape == log_probs.shape  # noqa: PLR2004
    if not fits or ids.dtype != torch.int64:
        raise ValueError(
            f"teacher {name!r}: top has ids of shape {list(ids.shape)}, {ids.dtype}, and log-probabilities "
            f"of shape {list(log_probs.shape)}, for {pairs} pairs; give int64 [pairs, k] and [pairs, k]"
        )
    if bool(((ids < 0) | (ids >= size)).any()):
        raise ValueError(f"teacher {name!r}: top has ids that are not in a vocabulary of {size}")
    most = float(log_probs.float().logsumexp(-1).amax()) if ids.numel() else 0.0
    if not most <= _ROUNDED:
        raise ValueError(
            f"teacher {name!r}: probabilities of top sum up to exp({most:.4g}) at a pair; give their natural "
            "logarithms, each token once"
        )


def refuse_kinds(name: str, kinds: Tensor, paired: Tensor | None) -> None:
    is_integer = not (kinds.is_floating_point() or kinds.dtype == torch.bool)
    if paired is None or kinds.shape != paired.shape or not is_integer:
        raise ValueError(
            f"teacher {name!r}: kinds of shape {list(kinds.shape)}, {kinds.dtype}, for "
            f"{0 if paired is None else len(paired)} pairs; give a dskd.PairKind for each, an integer"
        )


def refuse_chunks(name: str, chunks: Chunks, labels: int) -> None:
    count = len(chunks.teacher_log_probs)
    for column in (chunks.positions, chunks.chunk):
        if column.ndim != 1 or column.dtype != torch.int64:
            raise ValueError(
                f"teacher {name!r}: chunks of shape {list(column.shape)}, {column.dtype}; give int64 "
                "[positions]"
            )
    if chunks.teacher_log_probs.ndim != 1:
        raise ValueError(
            f"teacher {name!r}: log-probabilities of chunks of shape "
            f"{list(chunks.teacher_log_probs.shape)}; give one sum a chunk"
        )
    if chunks.positions.shape != chunks.chunk.shape:
        raise ValueError(
            f"teacher {name!r}: {len(chunks.positions)} positions in chunks and {len(chunks.chunk)} chunks "
            "of them; give one for each"
        )
    wrong = chunks.teacher_log_probs.isnan() | (chunks.teacher_log_probs > _ROUNDED)
    if bool(wrong.any()):
        raise ValueError(
            f"teacher {name!r}: of a chunk it says {float(chunks.teacher_log_probs[wrong][0]):.4g}; give "
            "logarithms of probabilities, which are at most 0"
        )
    if not len(chunks.chunk):
        if count:
            raise ValueError(f"teacher {name!r}: {count} chunks without a position; give none")
        return
    steps = chunks.chunk.diff()
    whole = int(chunks.chunk[0]) == 0 and int(chunks.chunk[-1]) == count - 1
    if not whole or bool(((steps < 0) | (steps > 1)).any()) or not ascends(chunks.positions, labels):
        raise ValueError(
            f"teacher {name!r}: chunks are to be numbered from 0 to {count - 1} in the order of their "
            f"positions, which ascend from 0 to {labels - 1}"
        )


_ROUNDED = 0.01
"""Above 0 a log-probability may be by rounding; one that is no logarithm is mostly above this."""


def ascends(indices: Tensor, size: int) -> bool:
    """Whether they are below the size, each once, in order; asks the device once."""
    is_wrong = (indices.diff() <= 0).any() | (indices[0] < 0) | (indices[-1] >= size)
    return not bool(is_wrong)
