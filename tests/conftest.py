"""What tests share: real assets or a reason, and vocabularies from the named cases."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, TypeVar

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

Asset = TypeVar("Asset")


def needs_assets(call: Callable[[], Asset]) -> Asset:
    """What the call returns; where the assets cannot be had the test is skipped, under `CI=true` it fails."""
    import assets  # noqa: PLC0415 - tests of the core run without what it needs

    try:
        return call()
    except assets.AssetUnavailable as error:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(str(error))
