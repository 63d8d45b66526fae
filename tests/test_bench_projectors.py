"""`benches/projectors.py` runs, and the figures that are committed are in the README."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import assets
from conftest import needs_assets

BENCHES = Path(__file__).parents[1] / "benches"
COMMITTED = BENCHES / "results" / "projectors.json"


def fetch_assets() -> None:
    assets.model("smollm2")
    assets.tokenizer("mistral-v1")
    assets.prose("wiki")


def run_bench(*arguments: str) -> str:
    command = [sys.executable, str(BENCHES / "projectors.py"), *arguments]
    ended = subprocess.run(command, capture_output=True, encoding="utf-8", check=False)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def assert_sound(results: dict[str, Any]) -> None:
    """What holds at any size."""
    assert len(results["solutions"]) == 3
    for line in results["solutions"]:
        assert line["distance"]["solve_projector"] < 1e-9  # a ten-thousandth of what is asked
        assert all(seconds > 0 for seconds in line["seconds"].values())
    found = {(line["student"], line["way"]): line for line in results["sayings"]}
    assert len(found) == len(results["sayings"]) == 4 * 6
    for line in found.values():
        assert 0 <= line["agreement"] <= 1
        assert 0 < line["outside"] < 1
    # The demo's student has the teacher's own rows on the overlap.
    assert all(line["kl"] < 1e-4 for line in results["sayings"][:6])
    assert all(line["agreement"] > 0.99 for line in results["sayings"][:6])
    assert all(line["kl"] > 0.01 for line in results["sayings"][6:])


def test_a_quick_run_says_what_it_should(tmp_path: Path) -> None:
    needs_assets(fetch_assets)
    output = tmp_path / "folder" / "projectors.json"
    printed = run_bench("--quick", "--output", str(output))
    assert_sound(json.loads(output.read_text(encoding="utf-8")))
    assert run_bench("--table", "--output", str(output)) == printed


def test_the_readme_holds_the_committed_figures() -> None:
    results = json.loads(COMMITTED.read_text(encoding="utf-8"))
    assert_sound(results)
    assert [line["rows"] for line in results["solutions"]][::2] == [49_152, 100_000]
    readme = (BENCHES / "README.md").read_text(encoding="utf-8")
    for line in results["solutions"]:
        assert f"| {line['heads']} | {line['rows']:,} x {line['columns'][1]:,} |" in readme
    for line in results["sayings"]:
        assert f"| {line['student']} | {line['way']} | {line['agreement']:.1%} | {line['kl']:.3g} |" in readme
