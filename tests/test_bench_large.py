"""`benches/large.py` runs, and the figures that are committed are in the README."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import assets
from conftest import needs_assets

BENCHES = Path(__file__).parents[1] / "benches"


def fetch_assets() -> None:
    for name in ("deepseek-v3", "qwen2"):
        assets.tokenizer(name)
    assets.instruction_rows(1)
    assets.prose("multilingual")
    assets.translation("fr")


def test_a_quick_run_is_killed_and_ends_with_the_same_bytes(tmp_path: Path) -> None:
    needs_assets(fetch_assets)
    output = tmp_path / "large.json"
    command = [sys.executable, str(BENCHES / "large.py"), "--quick", "--output", str(output)]
    ended = subprocess.run(command, capture_output=True, encoding="utf-8", check=False)
    assert ended.returncode == 0, ended.stderr
    found = json.loads(output.read_text(encoding="utf-8"))["results"]
    assert [each["kind"] for each in found] == ["ids in Parquet", "text in JSON lines"]
    assert all(each["same_bytes"] and each["kills"] == 2 for each in found)
    assert len(ended.stdout.splitlines()) == 2 + len(found) + 2  # what ran it stands below the table


def test_the_readme_holds_the_committed_figures() -> None:
    found = json.loads((BENCHES / "results" / "large.json").read_text(encoding="utf-8"))["results"]
    readme = (BENCHES / "README.md").read_text(encoding="utf-8")
    for each in found:
        assert each["tokens"] >= 10_000_000
        assert each["kills"] == 10
        assert each["same_bytes"]
        assert f"| {each['kind']} | {each['tokens']:,} | {each['seconds']:.1f} |" in readme
