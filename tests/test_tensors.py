"""Alignments as tensors on a device: every array, of its type, under its name."""

from __future__ import annotations

import subprocess
import sys
import warnings
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
import pytest
import torch

from dskd import Aligner, Alignment, Vocabulary
from dskd.tensors import AlignmentTensors

ALIGNER = Aligner(
    Vocabulary.from_bytes([b"Hello", b" world", b"</s>", b"?"], roles={2: {"eos"}}),
    Vocabulary.from_bytes([b" Hello", b" wor", b"ld", b"</s>", b"!"], roles={3: {"eos"}}),
)
FOUND = ALIGNER.align([[0, 1, 2], [0, 3]], [[0, 1, 2, 3], [0, 4]])


def flat(value: Any, name: str = "") -> dict[str, Any]:
    """Every array, tensor or number by its dotted name."""
    like = AlignmentTensors if isinstance(value, Alignment) else value
    if not is_dataclass(like):
        return {name: value}
    public = [item.name for item in fields(like)]
    return {
        key: item for field in public for key, item in flat(getattr(value, field), f"{name}.{field}").items()
    }


@pytest.mark.parametrize("device", ["cpu", torch.device("cpu")])
@pytest.mark.parametrize("found", [FOUND, FOUND.predicting(), FOUND[1], ALIGNER.align([], [])])
def test_every_array_is_a_tensor_of_the_same_name_type_and_values(found: Any, device: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        arrays, tensors = flat(found), flat(found.to(device))
    assert list(arrays) == list(tensors)
    for name, array in arrays.items():
        if isinstance(array, int):
            assert tensors[name] == array
        else:
            assert tensors[name].numpy().dtype == array.dtype, name
            assert tensors[name].tolist() == array.tolist(), name


def test_tensors_go_to_the_device() -> None:
    assert {tensor.device.type for tensor in flat(FOUND.to("meta")).values()} == {"meta"}
    assert FOUND.predicting().to("meta").teacher.device.type == "meta"


def test_writing_to_a_tensor_does_not_change_the_alignment() -> None:
    before = FOUND.pairs.teacher.copy()
    FOUND.to("cpu").pairs.teacher.fill_(7)
    assert (FOUND.pairs.teacher == before).all()


def test_predicting_tensors_index_hidden_states() -> None:
    predicting = FOUND.predicting()
    hidden = torch.arange(2 * 3).reshape(2, 3)
    tensors = predicting.to("cpu")
    assert len(tensors) == len(predicting) == 1
    expected = np.arange(6).reshape(2, 3)[predicting.row, predicting.teacher]
    assert hidden[tensors.row, tensors.teacher].tolist() == expected.tolist()


WITHOUT_TORCH = """
import sys
sys.modules["torch"] = None
import dskd
vocabulary = dskd.Vocabulary.from_bytes([b"a"])
found = dskd.Aligner(vocabulary, vocabulary).align([0], [0])
for each in (found, found.predicting()):
    try:
        each.to("cpu")
    except ImportError as error:
        print(error)
"""


def test_without_torch_the_way_out_is_named() -> None:
    run = subprocess.run([sys.executable, "-c", WITHOUT_TORCH], capture_output=True, text=True, check=True)
    assert (
        run.stdout.splitlines()
        == ["tensors need torch: pip install 'dskd[torch]'; the arrays are numpy's"] * 2
    )
