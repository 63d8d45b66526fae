"""What `import dskd` needs, and what it says of itself."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import dskd

ROOT = Path(__file__).parent.parent

HEAVY = {"torch", "transformers", "tokenizers", "sentencepiece", "rich", "typer", "pyarrow"}


def test_import_loads_numpy_and_nothing_heavy() -> None:
    code = "import sys, dskd, dskd.reference; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[0] for name in run.stdout.split()}
    assert "numpy" in loaded
    assert not loaded & HEAVY


def test_the_version_is_that_of_cargo_toml() -> None:
    cargo = tomllib.loads((ROOT / "Cargo.toml").read_text(encoding="utf-8"))
    assert dskd.__version__ == cargo["package"]["version"]


def test_every_public_name_exists_and_is_documented() -> None:
    public = {name: getattr(dskd, name) for name in dskd.__all__}
    assert all(value.__doc__ for value in public.values())


def test_tests_run_against_the_installed_package() -> None:
    assert not Path(dskd.__file__).is_relative_to(ROOT / "python")
