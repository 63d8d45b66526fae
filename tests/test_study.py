"""`benches/study.py` runs, and its tables say what was measured."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import assets
import study
from conftest import needs_assets

pytestmark = pytest.mark.timeout(900)  # the real model is converted at the first call

BENCHES = Path(__file__).parents[1] / "benches"


def fetch_assets() -> None:
    assets.model("smollm2")
    assets.tokenizer("mistral-v1")
    assets.prompt_rows("train", 8)


def test_a_smoke_run_trains_every_kind_of_arm_and_prints_both_tables(tmp_path: Path) -> None:
    needs_assets(fetch_assets)
    output = tmp_path / "study.json"
    command = [
        sys.executable,
        str(BENCHES / "study.py"),
        "--quick",
        "--starts",
        "cut",
        "--output",
        str(output),
    ]
    ended = subprocess.run(command, capture_output=True, encoding="utf-8", check=False, cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    for arm in study.SMOKE:
        assert f"cut, seed 0, {arm}: " in ended.stdout
        assert f"\n| {arm} | " in ended.stdout
    assert "| z_ts | distance, step 0 | distance, step 2 | distance, step 4 |" in ended.stdout
    again = subprocess.run(
        [*command, "--resume"], capture_output=True, encoding="utf-8", check=False, cwd=tmp_path
    )
    assert again.returncode == 0, again.stderr
    assert "seed 0" not in again.stdout  # nothing was missing
    assert again.stdout[again.stdout.index("### From") :] == ended.stdout[ended.stdout.index("### From") :]


def line(arm: str, seconds: float, *bits: float, seed: int = 0, **diagnosis: float) -> dict[str, Any]:
    curve = [
        {"step": 10 * index, "bits_per_byte": one, "end_of_turn_bits": 4.0, **diagnosis}
        for index, one in enumerate(bits)
    ]
    return {"start": "cut", "seed": seed, "arm": arm, "seconds_a_step": seconds, "curve": curve}


def test_at_equal_time_the_curve_is_read_where_sft_was_done() -> None:
    sft = line("SFT", 2.0, 4.0, 3.0, 2.0)
    # 20 steps of 2 s are 40 s: 16 steps of 2.5 s, six tenths of the way from 2.8 to 1.8
    assert study.at_equal_time(line("overlap", 2.5, 4.0, 2.8, 1.8), sft) == pytest.approx(2.2)
    assert study.at_equal_time(line("overlap", 1.0, 4.0, 2.8, 1.8), sft) == 1.8
    assert study.at_equal_time(sft, sft) == 2.0


def test_the_tables_are_means_over_seeds_and_differences_to_sft() -> None:
    said: dict[str, Any] = {"distance": 0.25, "outside": 0.125, "entropy": 2.5}
    lines = [
        line("SFT", 2.0, 4.0, 2.0),
        line("SFT", 2.0, 4.0, 2.2, seed=1),
        line("overlap", 3.0, 4.0, 1.8, **said),
        line("overlap", 3.0, 4.0, 1.9, seed=1, **said),
    ]
    on = {"cpu": "a processor", "cores": 2}
    made = study.tables({"lines": lines, "machine": on})
    assert "| SFT | 2.100 (2.000 to 2.200) | 2.100 | +0.000 | 4.00 | 1.00 |" in made
    # 20 s are 6.67 steps: 4 - 2/3 2.2 and 4 - 2/3 2.1
    assert "| overlap | 1.850 (1.800 to 1.900) | 2.567 | -0.250 | 4.00 | 1.50 |" in made
    assert "| overlap (1 of them) | 1.800 (" in study.tables({"lines": lines[:3], "machine": on})
    assert "| overlap | 0.250 | 0.250 | 0.250 | 12.5% |" in made


def test_every_arm_of_a_shorter_list_is_an_arm() -> None:
    assert set(study.OF_NARROW) | set(study.SMOKE) <= set(study.ARMS)
