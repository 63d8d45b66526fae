"""`benches/study.py` runs, and its tables say what was measured."""

from __future__ import annotations

import json
import subprocess
import sys
from argparse import Namespace
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

import assets
import study
from conftest import needs_assets

BENCHES = Path(__file__).parents[1] / "benches"


def fetch_assets() -> None:
    assets.model("smollm2")
    assets.tokenizer("mistral-v1")
    assets.prompt_rows("train", 8)


def run_study(*arguments: str, folder: Path) -> str:
    command = [sys.executable, str(BENCHES / "study.py"), *arguments]
    ended = subprocess.run(command, capture_output=True, encoding="utf-8", check=False, cwd=folder)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def test_a_smoke_run_trains_every_kind_of_arm_and_goes_on_where_it_was_cut(tmp_path: Path) -> None:
    needs_assets(fetch_assets)
    output = tmp_path / "study.json"
    arguments = ["--quick", "--starts", "cut", "--output", str(output)]
    printed = run_study(*arguments, folder=tmp_path)
    for arm in study.SMOKE:
        assert f"cut, seed 0, {arm}: " in printed
        assert f"\n| {arm} | " in printed
    assert "| z_ts | distance, step 0 | distance, step 2 | distance, step 4 |" in printed

    results = json.loads(output.read_text(encoding="utf-8"))
    assert set(results["seconds"]["cut"]) == set(study.SMOKE)
    (cut,) = (line for line in results["lines"] if line["arm"] == study.SMOKE[-1])
    results["lines"].remove(cut)
    output.write_text(json.dumps(results), encoding="utf-8")
    again = run_study(*arguments, folder=tmp_path)
    assert [line for line in again.splitlines() if ", seed 0, " in line] == [
        f"cut, seed 0, {cut['arm']}: {cut['curve'][-1]['bits_per_byte']:.3f} bits a byte"
    ]
    assert again[again.index("### From") :] == printed[printed.index("### From") :]


def line(arm: str, *bits: float, seed: int = 0, **diagnosis: float) -> dict[str, Any]:
    curve = [
        {"step": 10 * index, "bits_per_byte": one, "end_of_turn_bits": 4.0, **diagnosis}
        for index, one in enumerate(bits)
    ]
    return {"start": "cut", "seed": seed, "arm": arm, "revision": f"r{seed}", "curve": curve}


def test_at_equal_time_the_curve_is_read_where_sft_was_done() -> None:
    # 20 steps of SFT are as long as 16 that take 1.25 times as long: six tenths of the way from 2.8 to 1.8
    assert study.at_equal_time(line("overlap", 4.0, 2.8, 1.8)["curve"], 1.25) == pytest.approx(2.2)
    assert study.at_equal_time(line("overlap", 4.0, 2.8, 1.8)["curve"], 0.5) == 1.8
    assert study.at_equal_time(line("SFT", 4.0, 3.0, 2.0)["curve"], 1.0) == 2.0


def test_the_tables_are_means_over_seeds_and_differences_to_sft() -> None:
    said: dict[str, Any] = {"distance": 0.25, "outside": 0.125, "entropy": 2.5}
    lines = [
        line("SFT", 4.0, 2.0),
        line("SFT", 4.0, 2.2, seed=1),
        line("overlap", 4.0, 1.8, **said),
        line("overlap", 4.0, 1.9, seed=1, **said),
    ]
    results: dict[str, Any] = {
        "lines": lines,
        "machine": {"cpu": "a processor", "cores": 2},
        "seconds": {"cut": {"SFT": 2.0, "overlap": 3.0}},
    }
    made = study.tables(results)
    assert "| SFT | 2.100 (2.000 to 2.200) | 2.100 | +0.000 |  | 4.00 | 1.00 |" in made
    # 10 steps of 2 s are 6.67 of 3 s: 4 - 2/3 2.2 and 4 - 2/3 2.1
    assert "| overlap | 1.850 (1.800 to 1.900) | 2.567 | -0.250 |  | 4.00 | 1.50 |" in made
    assert "| overlap | 0.250 | 0.250 | 0.250 | 12.5% |" in made
    assert made.endswith("\n\na processor, 2 cores; revision r0, r1.")
    some = study.tables({**results, "lines": lines[:3], "seconds": {}})
    assert "| overlap (1 of them) | 1.800 (1.800 to 1.800) |  | -0.200 |  | 4.00 |  |" in some
    shared = [line(study.SHARED, 4.0, 1.7), line(study.SHARED, 4.0, 2.0, seed=1)]
    beside = study.tables({**results, "lines": [*lines, *shared]})
    assert "| 2.567 | -0.250 | +0.000 (-0.100 to +0.100) | 4.00 | 1.50 |" in beside
    assert "z_ts" not in study.tables({**results, "lines": lines[:2]})


def test_what_is_whole_is_made_anew_and_what_nobody_asked_for_stays(tmp_path: Path) -> None:
    kept, whole = line("SFT", 4.0, 2.0), {**line("SFT", 4.0, 3.0), "start": "narrow"}
    there = {"machine": {}, "plan": asdict(study.SMALL), "lines": [kept, whole]}
    options = Namespace(output=tmp_path / "study.json")
    wanted = {("narrow", 0): ["SFT"]}

    def goes_on(plan: study.Plan, seconds: dict[str, Any]) -> dict[str, Any]:
        study.REPORT.write(options, {**there, "seconds": seconds})
        return study.goes_on_with(options, plan, wanted)

    timed = {"cut": {"SFT": 2.0}, "narrow": {"SFT": 1.0}}
    anew = goes_on(study.SMALL, timed)
    assert (anew["lines"], anew["seconds"]) == ([kept], {"cut": {"SFT": 2.0}})
    assert goes_on(study.SMALL, {})["lines"] == [kept, whole]  # what a step takes is missing
    assert goes_on(study.Plan(), timed)["lines"] == []


def test_the_page_holds_the_tables_of_the_committed_file() -> None:
    results = json.loads(study.REPORT.file.read_text(encoding="utf-8"))
    assert f"\n\n{study.tables(results)}\n\n" in (BENCHES / "study.md").read_text(encoding="utf-8")


def test_every_arm_of_a_shorter_list_is_an_arm() -> None:
    assert set(study.OF_NARROW) | set(study.SMOKE) <= set(study.ARMS)
