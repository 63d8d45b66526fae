"""Every Python block of the README and of the documents runs, as it stands."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import assets
from conftest import needs_assets

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCKS = [
    block
    for page in PAGES
    for block in re.findall(
        r"^```python\n(.*?)^```$", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE
    )
]

ON_THE_HUB = {
    "deepseek-ai/DeepSeek-V3": ("deepseek-v3", "deepseek_v3"),
    "mistralai/Mistral-7B-v0.1": ("mistral-v1", "mistral"),
}
REVISION = "0" * 40


def fill_hub_cache(cache: Path) -> None:
    """Lays the tokenizers out as the hub's own client keeps them, so that hub names work without a hub."""
    for name, (asset, model_type) in ON_THE_HUB.items():
        model = cache / f"models--{name.replace('/', '--')}"
        snapshot = model / "snapshots" / REVISION
        shutil.copytree(assets.tokenizer(asset), snapshot)
        config = f'{{"model_type": "{model_type}"}}'  # there the model's own lies beside its tokenizer
        (snapshot / "config.json").write_text(config, encoding="utf-8")
        (model / "refs").mkdir()
        (model / "refs" / "main").write_text(REVISION, encoding="utf-8")


def test_the_pages_have_python_blocks() -> None:
    assert len(BLOCKS) == 8


@pytest.mark.parametrize("block", BLOCKS, ids=range(len(BLOCKS)))
def test_a_python_block_runs(block: str, tmp_path: Path) -> None:
    needs_assets(lambda: fill_hub_cache(tmp_path / "hub"))
    environment = {**os.environ, "HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}
    run = subprocess.run(
        [sys.executable, "-c", block],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    if "print" in block:
        assert re.fullmatch(r"\[.*\] \[.*\] \[0\.\d+\]\n", run.stdout), run.stdout
