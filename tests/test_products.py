"""Products with a head against PyTorch's own, by either of the libraries that a CPU has for them."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import pytest
import torch
from torch.nn import functional

from dskd.nn import products
from dskd.nn.products import linear, linear_into
from rounding import assert_within, product_bound

if TYPE_CHECKING:
    from torch import Tensor

DTYPES = [torch.float32, torch.float64, torch.bfloat16]


@pytest.fixture(params=[True, False], ids=["onednn", "plain"])
def _library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "enabled", request.param)


pytestmark = pytest.mark.usefixtures("_library")


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


@pytest.mark.parametrize("dtype", DTYPES)
def test_matrices_may_be_views(dtype: torch.dtype, device: str) -> None:
    rows, weight, _ = matrices(9, 40, 12, dtype, device)
    assert_close(linear(rows, weight[5:31]), rows, weight[5:31], None)
    assert_close(linear(rows[:, 3:], weight[:, 3:]), rows[:, 3:], weight[:, 3:], None)
    assert_close(linear(rows, weight.T.contiguous().T), rows, weight, None)
    assert_close(linear(rows.T.contiguous().T, weight), rows, weight, None)
    columns = torch.randn(9, 40, dtype=torch.float64).to(device, dtype)
    assert_close(linear(columns, weight.T), columns, weight.T, None)


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("at_once", [1, 6, 20, 1000])
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


@pytest.mark.parametrize("dtype", DTYPES)
def test_nothing_is_recorded_for_autograd(dtype: torch.dtype, device: str) -> None:
    rows, weight, _ = matrices(3, 4, 5, dtype, device)
    assert not linear(rows.requires_grad_(), weight.requires_grad_()).requires_grad


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_product_is_made_where_there_is_room_or_beside_it(dtype: torch.dtype, device: str) -> None:
    rows, weight, bias = matrices(5, 20, 8, dtype, device)
    for room_dtype in (dtype, torch.promote_types(dtype, torch.float32)):
        room = torch.empty(5, 20, dtype=room_dtype, device=device)
        for used in (None, bias):
            found = linear(rows, weight, used, room=room)
            assert found.dtype == room_dtype
            assert_close(found, rows, weight, used)


class Called(Exception):  # noqa: N818, it is no error
    """An operator was."""


@pytest.mark.parametrize("is_there", [True, False])
def test_which_library_makes_it(is_there: bool, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """oneDNN where it is built in and switched on, for float32 on a CPU; nothing calls it elsewhere."""

    def operator(*_: object) -> Tensor:
        raise Called

    if not products._OPERATOR:  # noqa: SLF001, what is asked is whether it is there
        pytest.skip("this build of PyTorch has no such operator, or the processor is another")
    monkeypatch.setattr(torch.ops.mkldnn, "_linear_pointwise", operator)
    monkeypatch.setattr(products, "_OPERATOR", is_there)
    for dtype in DTYPES:
        rows, weight, bias = matrices(3, 4, 5, dtype, device)
        is_called = is_there and torch.backends.mkldnn.enabled and dtype == torch.float32 and device == "cpu"
        with pytest.raises(Called) if is_called else contextlib.nullcontext():
            linear(rows, weight, bias)
        with pytest.raises(Called) if is_called else contextlib.nullcontext():
            linear_into(torch.empty(3, 4, dtype=dtype, device=device), rows, weight, bias)
