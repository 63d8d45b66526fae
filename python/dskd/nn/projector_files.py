"""Projectors in a file, which says which two vocabularies they belong to; needs safetensors."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

__all__ = ["load_projectors", "save_projectors"]


def save_projectors(
    path: Path | str, state: Mapping[str, Tensor], *, student_hash: str, teacher_hash: str
) -> None:
    """Writes `Projectors.state_dict()` as safetensors.

    Args:
        path: of the file; its folder is there.
        state: what is written.
        student_hash: `Vocabulary.content_hash` of the student's vocabulary.
        teacher_hash: of the teacher's.
    """
    from safetensors.torch import save_file  # noqa: PLC0415 - dskd[train] has it, dskd[torch] need not

    tensors = {name: value.detach().cpu().contiguous() for name, value in state.items()}
    save_file(tensors, path, metadata=_about(student_hash, teacher_hash))


def load_projectors(path: Path | str, *, student_hash: str, teacher_hash: str) -> dict[str, Tensor]:
    """The state that was saved, for `Projectors.load_state_dict`, on the CPU.

    Args:
        path: of the file.
        student_hash: see `save_projectors`.
        teacher_hash: likewise.

    Raises:
        FileNotFoundError: the file is not there.
        ValueError: it is no safetensors file, or belongs to other vocabularies.
    """
    from safetensors import SafetensorError, safe_open  # noqa: PLC0415 - as above

    if not Path(path).is_file():
        raise FileNotFoundError(
            f"{path} is missing: the run to resume had no projectors, or they were not copied along"
        )
    try:
        with safe_open(path, "pt") as file:
            _refuse_others(path, file.metadata() or {}, _about(student_hash, teacher_hash))
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dictionary
    except SafetensorError as error:
        raise ValueError(
            f"{path} is no whole safetensors file ({error}); copy it again, or start anew"
        ) from error


def _about(student_hash: str, teacher_hash: str) -> dict[str, str]:
    return {"teacher_vocabulary": teacher_hash, "student_vocabulary": student_hash}


def _refuse_others(path: Path | str, saved: Mapping[str, str], expected: Mapping[str, str]) -> None:
    for name, content_hash in expected.items():
        if saved.get(name) != content_hash:
            raise ValueError(
                f"{path} belongs to another {name.replace('_', ' ')}: the content hash of that is "
                f"{saved.get(name)}, and this run's is {content_hash}; resume with the tokenizers and "
                "roles of that run, or start anew"
            )
