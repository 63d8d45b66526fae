"""`benches/loss.py` runs; how fast the losses are stands in benches/README.md."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

import assets
import loss
from conftest import needs_assets
from dskd.nn import LOSSES

if TYPE_CHECKING:
    from collections.abc import Mapping

BENCHES = Path(__file__).parents[1] / "benches"


def run_bench(*arguments: str) -> str:
    """What it prints."""
    command = [sys.executable, str(BENCHES / "loss.py"), *arguments]
    ended = subprocess.run(command, capture_output=True, encoding="utf-8", check=False)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def fetch_assets() -> None:
    for name in ("smollm2", "mistral-v1"):
        assets.tokenizer(name)
    assets.prompt_rows("train", 1)


@pytest.fixture(scope="module")
def quick_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The JSON file of a quick run, and what it printed."""
    needs_assets(fetch_assets)
    output = tmp_path_factory.mktemp("bench") / "folder" / "loss.json"
    return output, run_bench("--quick", "--besides", "the tests", "--output", str(output))


@pytest.fixture(scope="module")
def results(quick_run: tuple[Path, str]) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(quick_run[0].read_text(encoding="utf-8"))
    return loaded


def test_everything_is_measured_and_what_was_asked_stands_beside_it(results: Mapping[str, Any]) -> None:
    assert list(results) == ["lines", "machine", "besides", "sizes", "measured"]
    asked = [line["target"] for line in results["lines"] if line["target"] is not None]
    of_one_more = [1.3 for name in loss.MORE if name in LOSSES]
    assert asked == [0.40, 20, 0.40, 0.25, 50, 0.25, 0.70, 0.70, 1.1, *of_one_more, 1.4]
    without = [line for line in results["lines"] if line["value"] is None]
    reasons = ("left out of this run", "is not installed", "does not tell it")
    assert all(any(reason in line["note"] for reason in reasons) for line in without), without
    assert len(results["lines"]) - len(without) >= 20


def test_every_contestant_is_timed(results: Mapping[str, Any]) -> None:
    measured = results["measured"]["threads 1"]
    timed = {name for what, found in measured.items() if "products" not in what for name in found}
    assert timed >= {"published", "fused", "cached", "full_cross_entropy", "cross_entropy"}
    assert timed >= {"full_same_vocabulary", "same_vocabulary"}
    assert timed >= {name for name in loss.MORE if name in LOSSES}
    steps = measured["step, kept"]
    assert list(steps) == [
        "sft",
        "dual_space",
        "dual_space_still",
        "dual_space_full",
        "dual_space_teacher",
        "dual_space_ungated",
    ]
    assert all(min(found["seconds"]) > 0 for each in steps.values() for found in each)


def test_the_table_is_made_from_the_file(quick_run: tuple[Path, str]) -> None:
    output, printed = quick_run
    assert printed.startswith("The fused losses beside the published form and others, in one thread")
    assert "beside it ran: the tests." in printed
    assert run_bench("--table", "--output", str(output)) == printed


def test_each_number_of_threads_has_its_table_which_names_the_processor(results: Mapping[str, Any]) -> None:
    first, *_ = results["lines"]
    lines = [{**first, "threads": 1, "what": "slow"}, {**first, "threads": 2, "what": "fast"}]
    made = loss.tables({**results, "lines": lines, "machine": {**results["machine"], "cpu": "a processor"}})
    alone, together = made.split("in 2 threads on a processor:")
    assert "in one thread on a processor:" in alone
    assert ("slow" in alone, "fast" in alone) == (True, False)
    assert ("slow" in together, "fast" in together) == (False, True)


def test_the_readme_holds_the_table_of_the_committed_file(tmp_path: Path) -> None:
    committed, copy = BENCHES / "results" / "loss.json", tmp_path / "copy.json"
    assert committed.exists(), "measure on a machine at rest: make bench-loss"
    copy.write_bytes(committed.read_bytes())
    assert run_bench("--table", "--output", str(copy)) in (BENCHES / "README.md").read_text("utf-8")


def test_a_loss_that_is_not_the_published_one_stops_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "given.pt"
    torch.save(loss.given_of(loss.SMALL), file)
    runner = loss.Runner(loss.QUICK, file, apart=False)
    runner.refuse_differences(("published", "fused", "cached"))
    monkeypatch.setattr(loss, "mean_kl", lambda teacher, student: (teacher - student).square().mean())
    with pytest.raises(RuntimeError, match="not those of published"):
        runner.refuse_differences(("published", "fused", "cached"))
