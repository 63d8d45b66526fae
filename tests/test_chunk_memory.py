"""How much of a GPU a chunk takes where nobody says, by reckoning: there is none here."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from dskd.nn import Batch, CrossEntropy, Head, Objective, States
from dskd.nn.linear import CHUNK_MEMORY, chunk_memory_on, rows_at_once

GIB = 2**30
CUDA = torch.device("cuda", 0)


def with_free(
    monkeypatch: pytest.MonkeyPatch, of_driver: int, *, reserved: int = 0, allocated: int = 0
) -> None:
    """A GPU of so much memory that nobody uses."""
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda _: (of_driver, 80 * GIB))
    monkeypatch.setattr("torch.cuda.memory_reserved", lambda _: reserved)
    monkeypatch.setattr("torch.cuda.memory_allocated", lambda _: allocated)


def head_on(device: torch.device, size: int, dtype: torch.dtype = torch.bfloat16) -> Head:
    """A head without numbers."""
    with FakeTensorMode():
        return Head(torch.empty(size, 8, dtype=dtype, device=device))


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_where_there_is_no_gpu_it_is_what_it_always_was(device: str) -> None:
    assert chunk_memory_on(torch.device(device)) == CHUNK_MEMORY


@pytest.mark.parametrize(
    ("of_driver", "reserved", "allocated", "expected"),
    [
        (64 * GIB, 0, 0, 8 * GIB),
        (64 * GIB - 1, 0, 0, 4 * GIB),
        (127 * GIB, 0, 0, 8 * GIB),
        # What PyTorch keeps and nobody uses is free: 1 + (40 - 7) = 34 GiB.
        (GIB, 40 * GIB, 7 * GIB, 4 * GIB),
        (0, 0, 0, 1),
    ],
)
def test_on_a_gpu_it_is_an_eighth_of_what_is_free_or_less_up_to_a_half(
    monkeypatch: pytest.MonkeyPatch, of_driver: int, reserved: int, allocated: int, expected: int
) -> None:
    with_free(monkeypatch, of_driver, reserved=reserved, allocated=allocated)
    assert chunk_memory_on(CUDA) == expected


@pytest.mark.parametrize(
    ("free", "rows"),
    # Three matrices of 100,000 float32 are 1.2 MB a row.
    [
        (8 * GIB, 880),  # 2^30 bytes are 894 rows, and sixteens of them 880
        (GIB // 2, 256),  # 2^26 bytes are 55
        (80 * GIB, 4096),  # 2^33 bytes are 7,158
    ],
)
def test_nobody_says_how_many_rows_there_are(monkeypatch: pytest.MonkeyPatch, free: int, rows: int) -> None:
    with_free(monkeypatch, free)
    heads = [(head_on(CUDA, 100_000), 3)]
    assert rows_at_once(heads, budget=None, most=10_000) == rows
    assert rows_at_once(heads, budget=None, most=100) == 100


def test_what_somebody_says_counts_on_a_gpu_too(monkeypatch: pytest.MonkeyPatch) -> None:
    with_free(monkeypatch, 64 * GIB)
    heads = [(head_on(CUDA, 100_000), 3)]
    assert rows_at_once(heads, budget=0, most=10_000) == 16
    assert rows_at_once(heads, budget=12_000_000_000, most=100_000) == 10_000


def test_on_a_cpu_nobody_says_either() -> None:
    # 160 MiB are 41 rows of a million float32.
    heads = [(Head(torch.zeros(1_000_000, 1)), 1)]
    assert rows_at_once(heads, budget=None, most=10_000) == 32


def test_an_objective_asks_the_device_unless_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def spy(device: torch.device) -> int:
        asked.append(device.type)
        return CHUNK_MEMORY

    monkeypatch.setattr("dskd.nn.linear.chunk_memory_on", spy)
    monkeypatch.setattr("dskd.nn.fused.chunk_memory_on", spy)
    head = Head(torch.ones(5, 3, requires_grad=True))
    batch = Batch(States(torch.ones(2, 3), torch.tensor([0, 4]), head))
    Objective([CrossEntropy()], head, chunk_memory=1)(batch)
    assert not asked
    Objective([CrossEntropy()], head)(batch)
    assert set(asked) == {"cpu"}
