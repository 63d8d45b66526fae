"""The kernels of a GPU where there is none: interpreted on the CPU, compiled for cards, and left alone.

What holds of their values is in tests/each_kernel.py.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from dskd.nn import kernels
from dskd.nn.divergences import gradient_by_logits

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

HERE = Path(__file__).parent

needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None,
    reason="Triton is not installed: it comes with PyTorch for CUDA",
)

CARDS = {"80": "kl", "90": "js", "100": "skew_kl"}
"""Compute capabilities, of A100, H100 and B200, and the divergence that is compiled for each."""


def in_a_process(*command: str, environment: Mapping[str, str]) -> str:
    """What it prints."""
    ended = subprocess.run(
        [sys.executable, *command],
        env={**os.environ, **environment},
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert ended.returncode == 0, ended.stdout[-5000:] + ended.stderr[-5000:]
    return ended.stdout


@needs_triton
def test_interpreted_on_the_cpu_they_are_the_definitions() -> None:
    said = in_a_process(
        "-m", "pytest", "-q", "-p", "no:cacheprovider", str(HERE / "each_kernel.py"),
        environment={"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert " passed" in said
    assert " skipped" not in said


@needs_triton
def test_they_compile_for_cards_that_are_not_here(tmp_path: Path) -> None:
    """Triton brings the compiler of the machine code along."""
    said = in_a_process(
        str(HERE / "compile_kernels.py"), *(f"{card}:{name}" for card, name in CARDS.items()),
        environment={"TRITON_CACHE_DIR": str(tmp_path)},
    )  # fmt: skip
    assert said.splitlines() == [
        f"{card} {name}" for card in CARDS for name in ("divergence_rows", "softmax_rows")
    ]


@pytest.fixture
def no_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where it is not installed."""
    monkeypatch.setitem(sys.modules, "triton", None)


@pytest.fixture
def not_asked_yet(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As at the start of a process."""
    monkeypatch.delitem(sys.modules, "dskd.nn.kernel_rows", raising=False)
    forget = kernels._rows.cache_clear  # noqa: SLF001 - what a process asks once
    forget()
    yield
    forget()


@pytest.mark.usefixtures("no_triton", "not_asked_yet")
def test_without_triton_pytorch_does_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    student, teacher = torch.randn(2, 3, 40, generator=torch.Generator().manual_seed(0))
    assert not kernels.takes(student, teacher)
    items, gradient = gradient_by_logits("kl", student, teacher, temperature=2.0)
    exact = (teacher.double() / 2).softmax(-1), (student.double() / 2).softmax(-1)
    torch.testing.assert_close(items, (exact[0] * (exact[0] / exact[1]).log()).sum(-1).float())
    torch.testing.assert_close(gradient, (exact[1] - exact[0]).float())


@pytest.mark.usefixtures("not_asked_yet")
def test_on_a_cpu_triton_is_not_even_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    gradient_by_logits("kl", torch.ones(2, 9), torch.ones(2, 9))
    assert not kernels.takes(torch.ones(2, 9))
    assert "dskd.nn.kernel_rows" not in sys.modules
