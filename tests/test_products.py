"""Products with a head against PyTorch's own, by either of the libraries that a CPU has for them."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import pytest
import torch
from torch.nn import functional

from dskd.nn import products
from dskd.nn.products import library, linear, linear_into
from rounding import assert_within, product_bound

if TYPE_CHECKING:
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
def timed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The weights that were multiplied to see who is faster, in a process that has measured nothing yet."""
    seen: list[tuple[int, ...]] = []

    def faster(rows: Tensor, weight: Tensor) -> str:
        assert rows.shape[1] == weight.shape[1]
        seen.append(tuple(weight.shape))
        return "onednn"

    monkeypatch.setattr(products, "_found", {})
    monkeypatch.setattr(products, "_faster", faster)
    monkeypatch.setattr(products, "_LARGE", 6 * 20 * 30)
    monkeypatch.delenv("DSKD_PRODUCTS", raising=False)
    return seen


def large(*, transposed: bool) -> tuple[Tensor, Tensor]:
    """As large as what is measured in these tests."""
    rows, weight, _ = matrices(6, 30, 20, torch.float32, "cpu")
    return (torch.ones(6, 30), weight.T) if transposed else (rows, weight)


@needs_both
def test_who_is_faster_is_measured_once_for_each_way_that_a_head_is_read(
    timed: list[tuple[int, ...]],
) -> None:
    for transposed in (False, True, False, True):
        for _ in range(3):
            assert library(*large(transposed=transposed)) == "onednn"
    assert timed == [(30, 20), (20, 30)]


@needs_both
def test_of_a_large_product_some_is_measured_along_the_vocabulary(timed: list[tuple[int, ...]]) -> None:
    library(torch.ones(6, 20), torch.ones(300, 20))
    library(torch.ones(6, 300), torch.ones(300, 20).T)
    assert timed == [(30, 20), (20, 30)]


@needs_both
def test_small_products_are_never_measured(timed: list[tuple[int, ...]]) -> None:
    rows, weight = large(transposed=False)
    assert library(rows, weight[:-1]) == "torch"
    assert library(rows[:0], weight) == "torch"
    linear(rows[:-1], weight)
    linear_into(torch.empty(5, 30), rows[:-1], weight)
    assert timed == []


@needs_both
def test_where_bits_must_not_depend_on_a_clock_nothing_is_measured(
    timed: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:  # to switch them on takes seconds
        patch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
        assert library(*large(transposed=False)) == "torch"
    monkeypatch.setattr(torch.backends.mkldnn, "enabled", False)
    assert library(*large(transposed=False)) == "torch"
    assert timed == []


@needs_both
def test_the_environment_says_who_multiplies(
    by_library: str, timed: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DSKD_PRODUCTS", by_library)
    assert library(*large(transposed=False)) == by_library
    assert timed == []
    monkeypatch.setattr(torch.backends.mkldnn, "enabled", False)
    assert library(*large(transposed=False)) == "torch"


@needs_both
def test_a_library_that_is_not_known_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DSKD_PRODUCTS", "mkl")
    with pytest.raises(
        ValueError, match="DSKD_PRODUCTS='mkl'; it is onednn or torch, or not set: then it is measured"
    ):
        linear(*large(transposed=False))


@needs_both
@pytest.mark.parametrize(("of_onednn", "expected"), [(0.5, "onednn"), (0.97, "torch"), (2.0, "torch")])
def test_the_faster_one_is_taken_and_pytorchs_own_where_both_are_about_as_fast(
    of_onednn: float, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a clock on which every product takes a second by PyTorch; the first of each takes long."""
    monkeypatch.delenv("DSKD_PRODUCTS", raising=False)
    turns = [(100.0, 100.0), (7.0, of_onednn), (1.0, 9.0), (3.0, 5.0)]
    readings = [step for first, second in turns for step in (1000.0, first, second)]
    clock = itertools.accumulate(readings)
    monkeypatch.setattr("dskd.nn.products.time.perf_counter", lambda: next(clock))
    assert products._faster(*large(transposed=False)) == expected  # noqa: SLF001, by no other way without a clock


@needs_both
def test_both_say_the_same_of_a_product_that_is_measured() -> None:
    """Through what is called, once for each library and as it is measured: within what each may round."""
    rows, weight, bias = matrices(17, 4100, 256, torch.float32, "cpu")
    assert len(rows) * weight.numel() >= products._LARGE  # noqa: SLF001
    gradient = linear(rows, weight)
    for asked in ("onednn", "torch", None):
        with pytest.MonkeyPatch.context() as patch:
            patch.delenv("DSKD_PRODUCTS", raising=False)
            if asked is not None:
                patch.setenv("DSKD_PRODUCTS", asked)
            assert_close(linear(rows, weight, bias), rows, weight, bias)
            assert_close(linear(gradient, weight.T), gradient, weight.T, None)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes_are_multiplied_by_pytorch(
    dtype: torch.dtype, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DSKD_PRODUCTS", "onednn")
    rows, weight, _ = matrices(3, 4, 5, dtype, device)
    assert library(rows, weight) == "torch"
