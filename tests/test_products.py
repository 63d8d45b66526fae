"""Products with a head against PyTorch's own, by either of the libraries that a CPU has for them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from torch.nn import functional

from dskd.nn import products
from dskd.nn.products import library, linear, linear_into
from rounding import assert_within, product_bound

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

DTYPES = [torch.float32, torch.float64, torch.bfloat16]


@pytest.fixture(params=["onednn", "torch"])
def by_library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("DSKD_PRODUCTS", request.param)
    return str(request.param)


either_library = pytest.mark.usefixtures("by_library")


def matrices(m: int, n: int, k: int, dtype: torch.dtype, device: str) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(m + n + k)
    rows, weight, bias = (
        torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((m, k), (n, k), (n,))
    )
    return rows.to(device, dtype), weight.to(device, dtype), bias.to(device, dtype)


def assert_close(found: Tensor, rows: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    """To what may be rounded in the dtype of the matrices."""
    wide = functional.linear(rows.double(), weight.double(), None if bias is None else bias.double())
    assert_within(found, wide, product_bound(rows, weight, bias, rows.dtype))


@either_library
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(0, 3, 4), (1, 1, 1), (5, 7, 3), (112, 33, 256), (17, 300, 65)])
def test_it_is_linear(
    shape: tuple[int, int, int], dtype: torch.dtype, device: str, *, with_bias: bool
) -> None:
    rows, weight, bias = matrices(*shape, dtype, device)
    used = bias if with_bias else None
    found = linear(rows, weight, used)
    assert (found.dtype, found.shape) == (dtype, (shape[0], shape[1]))
    assert_close(found, rows, weight, used)


@either_library
@pytest.mark.parametrize("dtype", DTYPES)
def test_matrices_may_be_views(dtype: torch.dtype, device: str) -> None:
    rows, weight, _ = matrices(9, 40, 12, dtype, device)
    assert_close(linear(rows, weight[5:31]), rows, weight[5:31], None)
    assert_close(linear(rows[:, 3:], weight[:, 3:]), rows[:, 3:], weight[:, 3:], None)
    assert_close(linear(rows, weight.T.contiguous().T), rows, weight, None)
    assert_close(linear(rows.T.contiguous().T, weight), rows, weight, None)
    columns = torch.randn(9, 40, dtype=torch.float64).to(device, dtype)
    assert_close(linear(columns, weight.T), columns, weight.T, None)


@either_library
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("at_once", [6, 1000])
def test_in_memory_that_is_there_it_is_the_same_however_it_is_cut(
    dtype: torch.dtype, device: str, at_once: int, monkeypatch: pytest.MonkeyPatch, *, with_bias: bool
) -> None:
    monkeypatch.setattr("dskd.nn.products._TOKENS_AT_ONCE", at_once)
    rows, weight, bias = matrices(5, 20, 8, dtype, device)
    used = bias if with_bias else None
    for out_dtype in (dtype, torch.promote_types(dtype, torch.float32)):
        out = torch.full((5, 20), torch.nan, dtype=out_dtype, device=device)
        linear_into(out, rows, weight, used)
        assert_close(out, rows, weight, used)


@either_library
@pytest.mark.parametrize("dtype", DTYPES)
def test_nothing_is_recorded_for_autograd(dtype: torch.dtype, device: str) -> None:
    rows, weight, _ = matrices(3, 4, 5, dtype, device)
    assert not linear(rows.requires_grad_(), weight.requires_grad_()).requires_grad


@either_library
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_product_is_made_where_there_is_room_or_beside_it(dtype: torch.dtype, device: str) -> None:
    rows, weight, bias = matrices(5, 20, 8, dtype, device)
    for room_dtype in (dtype, torch.promote_types(dtype, torch.float32)):
        room = torch.empty(5, 20, dtype=room_dtype, device=device)
        for used in (None, bias):
            found = linear(rows, weight, used, room=room)
            assert found.dtype == room_dtype
            assert_close(found, rows, weight, used)


# ---- Which library makes them ----------------------------------------------------------------------------

needs_both = pytest.mark.skipif(
    not (products._OPERATOR and torch.backends.mkldnn.enabled),  # noqa: SLF001, what is asked is whether it is there
    reason="one library alone: the other is switched off, not built in, or the processor is another",
)


@pytest.fixture
def by_maker(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """Who multiplies where the processor is somebody's."""
    monkeypatch.delenv("DSKD_PRODUCTS", raising=False)

    def asked(maker: str) -> str:
        monkeypatch.setattr(products, "_maker", lambda: maker)
        products._of_this_processor.cache_clear()  # noqa: SLF001
        found = library()
        products._of_this_processor.cache_clear()  # noqa: SLF001
        return found

    return asked


@needs_both
@pytest.mark.parametrize(
    ("maker", "expected"),
    [
        ("vendor_id\t: AuthenticAMD", "onednn"),
        ("vendor_id\t: HygonGenuine", "onednn"),
        ("AMD64 Family 25 Model 1 Stepping 1, AuthenticAMD", "onednn"),
        ("vendor_id\t: GenuineIntel", "torch"),
        ("", "torch"),
    ],
)
def test_who_multiplies_is_said_by_the_maker_of_the_processor(
    maker: str, expected: str, by_maker: Callable[[str], str]
) -> None:
    assert by_maker(maker) == expected


def test_without_the_operator_it_is_pytorch(
    by_maker: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(products, "_OPERATOR", False)
    assert by_maker("vendor_id\t: AuthenticAMD") == "torch"
    monkeypatch.setenv("DSKD_PRODUCTS", "onednn")
    with pytest.raises(ValueError, match="this build of PyTorch has not"):
        library()


@needs_both
def test_the_environment_says_otherwise(by_library: str) -> None:
    assert library() == by_library


def test_a_library_that_is_not_known_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DSKD_PRODUCTS", "mkl")
    with pytest.raises(ValueError, match="DSKD_PRODUCTS='mkl'; it is onednn or torch, or not set"):
        library()


@needs_both
def test_both_say_the_same_of_a_large_product() -> None:
    """Through what is called, once for each library: within what each may round."""
    rows, weight, bias = matrices(17, 4100, 256, torch.float32, "cpu")
    gradient = linear(rows, weight)
    for asked in ("onednn", "torch"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("DSKD_PRODUCTS", asked)
            assert_close(linear(rows, weight, bias), rows, weight, bias)
            assert_close(linear(gradient, weight.T), gradient, weight.T, None)
