"""What a CPU does another way, against PyTorch's own."""

from __future__ import annotations

import pytest
import torch

from dskd.nn.elementwise import argmax, exp_, probabilities, row_blocks
from rounding import assert_within, probabilities_bound, unit

DTYPES = [torch.float32, torch.float64]


def logits_of(rows: int, columns: int, dtype: torch.dtype, device: str) -> torch.Tensor:
    generator = torch.Generator().manual_seed(columns)
    return torch.randn(rows, columns, generator=generator, dtype=torch.float64).mul_(4).to(device, dtype)


# ---- The largest -----------------------------------------------------------------------------------------

COLUMNS = [1, 2, 255, 256, 257, 511, 512, 513, 1000, 5000]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("columns", COLUMNS)
@pytest.mark.parametrize("rows", [0, 1, 40])
def test_the_largest_is_where_pytorch_finds_it(
    rows: int, columns: int, dtype: torch.dtype, device: str
) -> None:
    logits = logits_of(rows, columns, dtype, device)
    assert torch.equal(argmax(logits), logits.argmax(-1))


@pytest.mark.parametrize("columns", COLUMNS)
def test_the_largest_may_be_anywhere(columns: int, device: str) -> None:
    places = torch.arange(columns, device=device)[-600:]
    logits = logits_of(len(places), columns, torch.float32, device)
    logits[torch.arange(len(places), device=device), places] = 100.0
    assert torch.equal(argmax(logits), places)


@pytest.mark.parametrize("columns", COLUMNS)
def test_of_several_it_is_the_first(columns: int, device: str) -> None:
    generator = torch.Generator().manual_seed(1)
    few = torch.randint(0, 3, (200, columns), generator=generator).float().to(device)
    rare = (torch.rand(200, columns, generator=generator) < 2 / columns).float().to(device)
    for logits in (few, rare, torch.zeros(3, columns, device=device)):
        first = (logits == logits.amax(-1, keepdim=True)).int().cumsum(-1).eq(1).int().argmax(-1)
        assert torch.equal(argmax(logits), first)


@pytest.mark.parametrize("value", [-1e30, -torch.inf])
def test_what_has_no_probability_is_smaller_than_anything(value: float, device: str) -> None:
    logits = torch.full((4, 700), value, device=device)
    for row, place in enumerate((0, 255, 256, 699)):
        logits[row, place] = -50.0
    assert argmax(logits).tolist() == [0, 255, 256, 699]


def test_what_is_not_a_number_is_found_first(device: str) -> None:
    logits = logits_of(5, 700, torch.float32, device)
    for row, place in enumerate((0, 300, 511, 512, 699)):
        logits[row, place] = torch.nan
    assert torch.equal(argmax(logits), logits.argmax(-1))


def test_rows_may_be_views(device: str) -> None:
    wide = logits_of(9, 1400, torch.float32, device)
    for logits in (wide[:, 3:703], wide[::2], wide.T[:700].T, wide.T.contiguous().T):
        assert torch.equal(argmax(logits), logits.argmax(-1))


# ---- Probabilities ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("columns", [1, 7, 3000])
def test_probabilities_are_off_by_what_rounding_may_do(columns: int, dtype: torch.dtype, device: str) -> None:
    logits = logits_of(20, columns, dtype, device)
    exact, log_probs = logits.double().softmax(-1), logits.log_softmax(-1)
    bound = probabilities_bound(logits, dtype=dtype)
    for out in (torch.empty_like(logits), log_probs):
        found = probabilities(log_probs, out=out)
        assert found is out
        assert_within(found, exact, bound)


def test_what_is_masked_has_no_probability(device: str) -> None:
    logits = torch.tensor([[0.0, -1e30, 0.0], [-1e30, 5.0, -1e30]], device=device)
    found = probabilities(logits.log_softmax(-1), out=logits)
    assert found.tolist() == [[0.5, 0.0, 0.5], [0.0, 1.0, 0.0]]


@pytest.mark.parametrize("dtype", DTYPES)
def test_exp_in_place_is_close_where_it_counts(dtype: torch.dtype, device: str) -> None:
    values = torch.linspace(-80, 0, 4001, dtype=torch.float64, device=device)
    given = values.to(dtype, copy=True)
    found = exp_(given)
    assert found is given
    error = (found.double() - values.exp()) / values.exp()
    # What a value is off is what its exponential is off, relatively: by a rounding as it is given, of the
    # logarithm of e, and of the product with it; the power itself by two.
    assert (error.abs() <= unit(dtype) * (2 + 3 * values.abs())).all()
    assert found[-1] == 1
    assert exp_(torch.tensor([-1e30, -torch.inf], dtype=dtype, device=device)).tolist() == [0.0, 0.0]


# ---- Blocks ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [0, 1, 5, 12])
@pytest.mark.parametrize("at_once", [1, 10, 35, 1000])
def test_blocks_are_all_rows_in_order_and_as_many_for_each_thread_as_fit(
    rows: int, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dskd.nn.elementwise._AT_ONCE", at_once)
    blocks = row_blocks(torch.zeros(rows, 10))
    assert [row for block in blocks for row in range(rows)[block]] == list(range(rows))
    assert row_blocks(torch.zeros(rows, 10, device="meta")) == [slice(0, rows)]
    most = min(torch.get_num_threads(), 16) * max(1, at_once // 10)
    assert all(len(range(rows)[block]) == most for block in blocks[:-1])
    assert len(range(rows)[blocks[-1]]) <= most
