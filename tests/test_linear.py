"""Heads read in chunks: rows, memory, products and gradients, each against the head itself and autograd."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from dskd.nn import Head
from dskd.nn.linear import ReadHead, chunks, computing, multiplied_in, rows_at_once, with_gradients
from leaves import TRANSFORMS, Transforms, backward

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from torch import Tensor

# ---- Chunks ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [0, 1, 15, 16, 17, 33, 100])
@pytest.mark.parametrize("most", [1, 16, 32, 1000])
def test_chunks_are_all_rows_in_order_in_sixteens_and_of_nearly_the_same_size(count: int, most: int) -> None:
    made = [range(count)[rows] for rows in chunks(count, most)]
    assert [row for rows in made for row in rows] == list(range(count))
    sizes = [len(rows) for rows in made]
    assert all(0 < size <= most for size in sizes)
    assert most == 1 or all(size % 16 == 0 for size in sizes[:-1])
    assert not sizes or max(sizes) - min(sizes) <= 31
    assert len(sizes) == -(-count // most)


@pytest.mark.parametrize(
    ("budget", "dtype", "rows"),
    # 100 columns: 800 bytes a row in float64, 400 in float32; 16 rows at least, on a CPU in sixteens
    [
        (64_000, torch.float64, 80),
        (32_000, torch.float32, 80),
        (63_999, torch.float64, 64),
        (32_000, torch.bfloat16, 80),  # whose logits are float32
        (1, torch.float64, 16),
    ],
)
def test_a_chunk_has_the_rows_that_fit_and_never_few(budget: int, dtype: torch.dtype, rows: int) -> None:
    head = Head(torch.zeros(100, 512, dtype=dtype))
    assert rows_at_once([(head, 1)], budget=budget, most=1000) == rows
    assert rows_at_once([(head, 1)], budget=budget, most=7) == 7


def test_all_matrices_of_all_heads_are_there_at_once_in_the_widest_dtype() -> None:
    small, large = Head(torch.zeros(10, 512, dtype=torch.bfloat16)), Head(torch.zeros(50, 512))
    # two matrices of 10 and one of 50 float32: 280 bytes a row; in float64 560
    assert rows_at_once([(small, 2), (large, 1)], budget=280 * 48, most=1000) == 48
    wide = Head(torch.zeros(10, 512, dtype=torch.float64))
    assert rows_at_once([(wide, 2), (large, 1)], budget=280 * 96, most=1000) == 48


def test_a_head_that_caps_its_logits_needs_a_matrix_more() -> None:
    weight = torch.zeros(10, 512)
    # of 10 float32: 40 bytes a row
    assert rows_at_once([(Head(weight, softcap=30.0), 1)], budget=80 * 48, most=1000) == 48
    assert rows_at_once([(Head(weight), 1)], budget=40 * 48, most=1000) == 48


@pytest.mark.parametrize(
    ("widths", "rows"),
    # the width of the narrowest of all heads; 64 to 128, in sixteens
    [((100,), 96), ((100, 512), 96), ((512, 100), 96), ((2048,), 128), ((8,), 64)],
)
def test_on_a_cpu_a_chunk_has_rows_by_the_width_of_the_heads(widths: tuple[int, ...], rows: int) -> None:
    heads = [(Head(torch.zeros(3, width)), 1) for width in widths]
    assert rows_at_once(heads, budget=10**9, most=1000) == rows
    assert rows_at_once(heads, budget=10**9, most=50) == 50


# ---- A head ----------------------------------------------------------------------------------------------


def random_head(
    transforms: Transforms, device: str = "cpu", dtype: torch.dtype = torch.float64
) -> tuple[Head, Tensor]:
    generator = torch.Generator().manual_seed(1)
    weight, bias, hidden = (
        torch.randn(*shape, generator=generator, dtype=torch.float64).to(device, dtype).requires_grad_()
        for shape in ((7, 3), (7,), (5, 3))
    )
    return transforms.head(weight, bias), hidden


ONE_SIDED = {
    f"{name}, {side}": pair[index]
    for name, pair in TRANSFORMS.items()
    for index, side in ((0, "t"), (1, "s"))
}


@pytest.mark.parametrize("transforms", ONE_SIDED.values(), ids=ONE_SIDED)
def test_logits_and_gradients_are_those_of_the_head(transforms: Transforms, device: str) -> None:
    head, hidden = random_head(transforms, device)
    outer = torch.randn(5, 7, generator=torch.Generator().manual_seed(2), dtype=torch.float64).to(device)
    expected = head.logits(hidden)
    leaves = [hidden, head.weight, *([] if head.bias is None else [head.bias])]
    wanted = torch.autograd.grad((expected * outer).sum(), leaves)
    made = torch.empty_like(hidden)
    with computing(head.weight.device):
        read = ReadHead(head, 9)
        for rows in (slice(0, 2), slice(2, 5)):
            logits = read.logits(hidden[rows])
            torch.testing.assert_close(logits, expected[rows], rtol=1e-13, atol=1e-14)
            made[rows] = read.backward(hidden[rows], outer[rows].clone())
    found = [made, read.weight_gradient, read.bias_gradient][: len(leaves)]
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-13)
    assert read.rows == 9


@pytest.mark.parametrize("frozen", ["weight", "bias"])
def test_what_is_frozen_has_no_gradient_and_costs_none(frozen: str) -> None:
    head, hidden = random_head(Transforms(bias=True))
    getattr(head, frozen).requires_grad_(requires_grad=False)
    with computing(head.weight.device):
        read = ReadHead(head, 9)
        read.backward(hidden, read.logits(hidden))
    assert (read.weight_gradient is None) == (frozen == "weight")
    assert (read.bias_gradient is None) == (frozen == "bias")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_gradients_of_the_weights_are_added_up_in_float32(dtype: torch.dtype) -> None:
    """1 and 512 times 2^-9 are 2; added up in bfloat16, that stays at 1."""
    head = Head(torch.zeros(1, 1, dtype=dtype, requires_grad=True))
    with computing(head.weight.device):
        read = ReadHead(head, 9)
        read.backward(torch.ones(1, 1, dtype=dtype), torch.ones(1, 1))
        for _ in range(512):
            read.backward(torch.ones(1, 1, dtype=dtype), torch.full((1, 1), 2.0**-9))
    assert read.weight_gradient is not None
    assert read.weight_gradient.dtype == torch.float32
    assert read.weight_gradient.item() == 2.0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_logits_are_made_in_the_dtype_in_which_the_head_makes_them(dtype: torch.dtype, device: str) -> None:
    head, hidden = random_head(Transforms(bias=True, scale=0.3, softcap=2.0), device, dtype)
    with computing(head.weight.device):
        found = ReadHead(head, 9).logits(hidden)
    assert found.dtype == torch.float32
    torch.testing.assert_close(
        found, head.logits(hidden), rtol=0, atol=0 if dtype == torch.bfloat16 else 1e-6
    )


def test_under_autocast_the_products_are_in_its_dtype(device: str) -> None:
    head, hidden = random_head(Transforms(bias=True), device, torch.float32)
    with torch.autocast(device, torch.bfloat16):
        expected, read = head.logits(hidden), ReadHead(head, 9)
        assert multiplied_in(head) == torch.bfloat16
        assert multiplied_in(Head(head.weight.double())) == torch.float64
        with computing(head.weight.device):
            found = read.logits(hidden)
    assert torch.equal(found, expected)
    assert not torch.equal(found, head.logits(hidden))
    assert multiplied_in(head) == torch.float32


def test_multiplied_is_the_product_and_nothing_else() -> None:
    head, _ = random_head(Transforms(bias=True, scale=3.0, softcap=1.0))
    columns = torch.eye(7, dtype=torch.float64)[2:4]
    read = ReadHead(head, 9)
    assert torch.equal(read.multiplied(columns), head.weight.detach()[2:4])


# ---- A head that is sharded ------------------------------------------------------------------------------


@pytest.fixture
def mesh(tmp_path: Path) -> Iterator[Any]:
    """Of this one process."""
    distributed.init_process_group("gloo", f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    distributed.destroy_process_group()


def test_a_sharded_head_is_refused_with_the_way_out_and_its_whole_is_not(mesh: Any) -> None:
    sharded = distribute_tensor(torch.randn(7, 3), mesh, [Shard(0)])
    head = Head(sharded)
    message = (
        r"^the head is sharded \(DTensor\): compute the loss inside the forward of the module that FSDP2 "
        r"gathers, or give a head of weight.full_tensor\(\)$"
    )
    with pytest.raises(TypeError, match=message):
        ReadHead(head, 9)
    ReadHead(Head(sharded.full_tensor()), 9).logits(torch.randn(2, 3))


# ---- A value with gradients ------------------------------------------------------------------------------


def half_square(leaf: Tensor) -> Tensor:
    """`|x|^2 / 2`, of which the gradient is x."""
    return with_gradients(leaf.detach().square().sum() / 2, [(leaf, leaf.detach().clone())])


def test_the_gradients_are_those_that_were_given(device: str) -> None:
    leaf = torch.tensor([3.0, -4.0], device=device, requires_grad=True)
    loss = half_square(leaf)
    assert loss.item() == 12.5
    backward(loss)
    assert leaf.grad is not None
    assert leaf.grad.tolist() == [3.0, -4.0]


def test_a_factor_scales_them_and_sums_add_them(device: str) -> None:
    leaf = torch.tensor([3.0, -4.0], device=device, requires_grad=True)
    backward(3 * half_square(leaf) - half_square(leaf) / 2 + leaf.sum())
    assert leaf.grad is not None
    # 3 x - x / 2 + 1
    assert leaf.grad.tolist() == [8.5, -9.0]


def test_they_reach_what_made_the_input() -> None:
    leaf = torch.tensor([3.0, -4.0], requires_grad=True)
    backward(half_square(2 * leaf))
    assert leaf.grad is not None
    # |2 x|^2 / 2
    assert leaf.grad.tolist() == [12.0, -16.0]


def test_what_wants_no_gradient_gets_none_and_nothing_wanted_is_no_graph() -> None:
    wanted, other = torch.ones(2, requires_grad=True), torch.ones(2)
    loss = with_gradients(torch.tensor(1.0), [(wanted, torch.ones(2)), (other, torch.ones(2)), (other, None)])
    backward(loss)
    assert other.grad is None
    assert not with_gradients(torch.tensor(1.0), [(other, torch.ones(2))]).requires_grad


def test_they_come_in_the_dtype_of_the_input() -> None:
    leaf = torch.ones(2, dtype=torch.bfloat16, requires_grad=True)
    backward(2 * with_gradients(torch.tensor(1.0), [(leaf, torch.full((2,), 3.0))]))
    assert leaf.grad is not None
    assert leaf.grad.dtype == torch.bfloat16
    assert leaf.grad.tolist() == [6.0, 6.0]


def test_a_second_backward_is_refused_with_the_way_out() -> None:
    loss = half_square(torch.ones(2, requires_grad=True))
    backward(loss, retain_graph=True)
    message = r"^backward ran twice through a fused loss, .*: call the loss again, or use fused=False$"
    with pytest.raises(RuntimeError, match=message):
        backward(loss)


def test_it_cannot_be_differentiated_twice() -> None:
    leaf = torch.ones(2, requires_grad=True)
    (gradient,) = torch.autograd.grad(half_square(leaf) ** 2, leaf, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        backward(gradient.sum())
