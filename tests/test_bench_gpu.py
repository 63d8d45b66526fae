"""`benches/gpu.py` runs where there is no GPU; what it says of one, nobody has seen yet."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dskd.nn import LOSSES
from gpu import COMPARED, ONE_VOCABULARY, another, losses_over_pairs

BENCHES = Path(__file__).parents[1] / "benches"
RESULTS = BENCHES / "results" / "gpu.json"


def run_bench(*arguments: str) -> str:
    """What it prints."""
    command = [sys.executable, str(BENCHES / "gpu.py"), *arguments]
    ended = subprocess.run(command, capture_output=True, encoding="utf-8", check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


def written() -> bytes | None:
    return RESULTS.read_bytes() if RESULTS.exists() else None


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_where_there_is_no_gpu_it_says_so_and_writes_nothing() -> None:
    before = written()
    assert run_bench("--test", "--bench") == "there is no GPU here: nothing was tested, measured or written\n"
    assert written() == before


def test_a_quick_run_compares_every_loss_measures_every_way_and_writes_nothing() -> None:
    before = written()
    lines = run_bench("--quick").splitlines()
    assert written() == before
    compared = [line for line in lines if line.startswith("ok ")]
    assert not any(line.startswith("OFF") for line in lines)
    for name, _ in losses_over_pairs():
        assert {f"ok  {name}, {dtype}, chunks" for dtype in ("float32", "float64")} & set(compared), name
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line.startswith("| tiny")]
    for models, losses in (("tiny", COMPARED), ("tiny, one vocabulary", ONE_VOCABULARY)):
        for loss in losses:
            measured = {way for first, second, _, way, *_ in cells if (first, second) == (models, loss)}
            assert measured >= {"fused", "fused, without kernels", "definition"}


def test_all_losses_over_pairs_are_compared_and_their_presets() -> None:
    names = {name.partition(",")[0] for name, _ in losses_over_pairs()}
    left_out = {name for name, kind in LOSSES.items() if kind().needs.chunks or kind().needs.positions}
    assert names | left_out == set(LOSSES)
    assert {"cross_entropy", "dual_space", "shared_vocabulary"} <= names


def test_a_contestant_that_computes_another_loss_is_told_from_the_others() -> None:
    assert another(2.0, 2.01) == another(None, 2.0) == ""
    assert another(2.1, 2.0) == "its loss is 2.1, not 2"
    assert another(float("nan"), 2.0) == "its loss is nan, not 2"
