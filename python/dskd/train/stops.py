"""Which id ends a turn, where a vocabulary has several that do.

`<|im_end|>` ends the turns of a chat model and `<|endoftext|>` a text: both are ends of sequence, and the map
of two vocabularies, which goes by roles, takes the lowest id of each. In a turn it is the one that the
template writes that a model expects.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from dskd.nn.batch import VocabularyMaps
    from dskd.train.side import Side

__all__ = ["with_stops"]


def with_stops(maps: VocabularyMaps, teacher: Side, student: Side) -> VocabularyMaps:
    """The maps in which every end of the teacher's is the student's stop, and the two stops are each other's.

    Args:
        maps: of the two vocabularies.
        teacher: its side.
        student: likewise.
    """
    ends = [_ends(side) for side in (teacher, student)]
    if all(len(one) == 1 for one in ends) or maps.overlap is None:
        return maps
    device = maps.overlap.device
    of_teacher, of_student = (torch.tensor(sorted(one), device=device) for one in ends)
    stops = torch.tensor([teacher.stop_id, student.stop_id], device=device)
    kept = ~(torch.isin(maps.overlap[:, 0], of_teacher) | torch.isin(maps.overlap[:, 1], of_student))
    overlap = torch.cat([maps.overlap[kept], stops[None]])
    order = overlap[:, 0].argsort()
    is_text = maps.is_text
    if is_text is not None:
        is_text = torch.cat([is_text[kept], is_text.new_zeros(1)])[order]
    to_student = maps.to_student.index_fill(0, of_teacher, student.stop_id)
    return replace(maps, to_student=to_student, overlap=overlap[order], is_text=is_text)


def _ends(side: Side) -> set[int]:
    return {token for token, roles in side.vocabulary.roles.items() if "eos" in roles}
