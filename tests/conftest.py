"""What tests share: hypothesis profiles, devices, kernels, and real assets or a reason."""

from __future__ import annotations

import gc
import os
from typing import TYPE_CHECKING, TypeVar

import hypothesis
import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

Asset = TypeVar("Asset")

IN_CI = os.environ.get("CI") == "true"

# A slow machine is no failure, and a landing must not hang on a lucky seed.
hypothesis.settings.register_profile("default", deadline=None, max_examples=200, derandomize=IN_CI)
hypothesis.settings.register_profile("long", deadline=None, max_examples=10_000)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--without-onednn", action="store_true", help="PyTorch multiplies with its other library"
    )


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--without-onednn"):
        import torch  # noqa: PLC0415 - tests of the core run without it

        torch.backends.mkldnn.enabled = False  # type: ignore[assignment] # a property of the module


def pytest_collection_finish() -> None:
    """What is imported by now stays until the end: it is not looked through at every collection of garbage.

    The Trainer of transformers collects at each end of a run; that took half of the time of its tests.
    """
    gc.collect()
    gc.freeze()


def needs_assets(call: Callable[[], Asset]) -> Asset:
    """What the call returns; where the assets cannot be had the test is skipped, under `CI=true` it fails."""
    import assets  # noqa: PLC0415 - tests of the core run without what it needs

    try:
        return call()
    except assets.AssetUnavailable as error:
        if IN_CI:
            raise
        pytest.skip(str(error))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test that asks for a `device` runs on "cpu", and on "cuda" where there is one."""
    marks = metafunc.definition.iter_markers("parametrize")
    has_its_own = any("device" in mark.args[0] for mark in marks)
    if "device" in metafunc.fixturenames and not has_its_own:
        metafunc.parametrize("device", _devices())


def _devices() -> list[str]:
    import torch  # noqa: PLC0415 - tests of the core run without it

    return ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


@pytest.fixture
def no_tokenizers(monkeypatch: pytest.MonkeyPatch) -> None:
    """`dskd.align` has no pair in this process, as at its start."""
    monkeypatch.setattr("dskd.alignment._default", None)
    monkeypatch.setattr("dskd.alignment._latest", None)
