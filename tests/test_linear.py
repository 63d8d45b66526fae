"""Heads read in chunks: rows, memory, products and gradients, each against the head itself and autograd."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from dskd.nn import Head
from dskd.nn.linear import ChunkMemory, ReadHead, chunk_memory_of, computing, with_gradients
from leaves import TRANSFORMS, Transforms, backward

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from torch import Tensor

CPU = torch.device("cpu")

# ---- Chunks ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [0, 1, 15, 16, 17, 33, 100])
@pytest.mark.parametrize("budget", [0, 8 * 10 * 16, 8 * 10 * 23, 10**9])
def test_chunks_are_all_rows_in_order_in_sixteens_and_of_nearly_the_same_size(
    count: int, budget: int
) -> None:
    memory = ChunkMemory(10, torch.float64, CPU, budget=budget, most=1000)
    chunks = [range(count)[rows] for rows in memory.chunks(count)]
    assert [row for rows in chunks for row in rows] == list(range(count))
    sizes = [len(rows) for rows in chunks]
    assert all(0 < size <= memory.rows for size in sizes)
    assert all(size % 16 == 0 for size in sizes[:-1])
    assert not sizes or max(sizes) - min(sizes) <= 31
    assert len(sizes) == -(-count // memory.rows)


@pytest.mark.parametrize(
    ("budget", "dtype", "rows"),
    # 100 columns: 800 bytes a row in float64, 400 in float32; 16 rows at least, on a CPU in sixteens
    [
        (80_000, torch.float64, 96),
        (40_000, torch.float32, 96),
        (80_000, torch.float32, 192),
        (76_799, torch.float64, 80),
        (1, torch.float64, 16),
    ],
)
def test_a_chunk_has_the_rows_that_fit_and_never_few(budget: int, dtype: torch.dtype, rows: int) -> None:
    assert ChunkMemory(100, dtype, CPU, budget=budget, most=1000).rows == rows
    assert ChunkMemory(100, dtype, CPU, budget=budget, most=7).rows == 7


def test_the_rows_of_two_heads_are_those_of_the_one_that_needs_more_in_the_wider_dtype() -> None:
    small, large = Head(torch.zeros(10, 2, dtype=torch.bfloat16)), Head(torch.zeros(50, 3))

    def memory_of(*matrices: tuple[Head, int], budget: int = 60_000) -> ChunkMemory:
        return chunk_memory_of(matrices, budget=budget, most=1000)

    # three matrices of 50 float32: 600 bytes a row; sixteen of 10: 640
    for matrices in (((small, 3), (large, 3)), ((large, 3), (small, 3))):
        memory = memory_of(*matrices, budget=30_000)
        assert (memory.rows, memory.dtype) == (48, torch.float32)
    assert memory_of((large, 3), (small, 16), budget=32_000).rows == 48
    assert memory_of((small, 1)).dtype == torch.float32
    wide = Head(torch.zeros(10, 2, dtype=torch.float64))
    assert memory_of((small, 1), (wide, 1)).dtype == torch.float64


def test_a_head_that_caps_its_logits_needs_two_matrices_more_than_the_most() -> None:
    capped = Head(torch.zeros(10, 2), softcap=30.0)
    # five matrices of 10 float32: 200 bytes a row
    for count in (1, 2, 3):
        assert chunk_memory_of([(capped, count)], budget=10_000, most=1000).rows == 48


@pytest.mark.parametrize(
    ("widths", "counts", "rows"),
    # three quarters of the width by the matrices of that head, the fewest of all heads; 64 to 128
    [
        ((256,), (2,), 96),
        ((256, 512), (2, 2), 96),
        ((512, 256), (2, 2), 96),
        ((256, 512), (1, 4), 96),
        ((256, 300), (0, 2), 112),
        ((576, 896), (2, 0), 128),
        ((2048,), (2,), 128),
        ((8,), (1,), 64),
        ((8,), (0,), 64),
    ],
)
def test_on_a_cpu_a_chunk_has_rows_by_the_width_of_the_heads(
    widths: tuple[int, ...], counts: tuple[int, ...], rows: int
) -> None:
    matrices = [(Head(torch.zeros(3, width)), count) for width, count in zip(widths, counts, strict=True)]
    assert chunk_memory_of(matrices, budget=10**9, most=1000).rows == rows
    assert chunk_memory_of(matrices, budget=10**9, most=50).rows == 50


def test_the_slopes_of_a_cap_are_matrices_too() -> None:
    weight = torch.zeros(3, 512)
    rows = [
        chunk_memory_of([(Head(weight, softcap=cap), 2)], budget=10**9, most=1000).rows for cap in (None, 9.0)
    ]
    assert rows == [128, 64]  # 3/4 of 512 by 2, and by 5


def test_places_of_one_width_are_apart_and_keep_what_they_hold(device: str) -> None:
    memory = ChunkMemory(3 * 4, torch.float64, torch.device(device), budget=0, most=1000)
    for place in range(3):
        memory.take(place, 5, 4).fill_(place)
    for place in range(3):
        assert memory.take(place, 5, 4).shape == (5, 4)
        assert (memory.take(place, 5, 4) == place).all()


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
    memory = chunk_memory_of([(head, 2)], budget=0, most=9)
    made = torch.empty_like(hidden)
    with computing(memory):
        read = ReadHead(0, head, memory)
        for rows in (slice(0, 2), slice(2, 5)):
            logits = read.logits(hidden[rows])
            torch.testing.assert_close(logits, expected[rows], rtol=1e-13, atol=1e-14)
            assert torch.equal(read.reachable_(logits.clone()), head.reachable(logits))
            made[rows] = read.backward(hidden[rows], outer[rows].clone())
    found = [made, read.weight_gradient, read.bias_gradient][: len(leaves)]
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-13)
    assert read.size == 7


@pytest.mark.parametrize("frozen", ["weight", "bias"])
def test_what_is_frozen_has_no_gradient_and_costs_none(frozen: str) -> None:
    head, hidden = random_head(Transforms(bias=True))
    getattr(head, frozen).requires_grad_(requires_grad=False)
    memory = chunk_memory_of([(head, 2)], budget=0, most=9)
    with computing(memory):
        read = ReadHead(0, head, memory)
        read.backward(hidden, read.logits(hidden))
    assert (read.weight_gradient is None) == (frozen == "weight")
    assert (read.bias_gradient is None) == (frozen == "bias")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_gradients_of_the_weights_are_added_up_in_float32(dtype: torch.dtype) -> None:
    """1 and 512 times 2^-9 are 2; added up in bfloat16, that stays at 1."""
    head = Head(torch.zeros(1, 1, dtype=dtype, requires_grad=True))
    memory = chunk_memory_of([(head, 1)], budget=0, most=9)
    with computing(memory):
        read = ReadHead(0, head, memory)
        read.backward(torch.ones(1, 1, dtype=dtype), torch.ones(1, 1))
        for _ in range(512):
            read.backward(torch.ones(1, 1, dtype=dtype), torch.full((1, 1), 2.0**-9))
    assert read.weight_gradient is not None
    assert read.weight_gradient.dtype == torch.float32
    assert read.weight_gradient.item() == 2.0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_logits_are_made_in_the_dtype_in_which_the_head_makes_them(dtype: torch.dtype, device: str) -> None:
    head, hidden = random_head(Transforms(bias=True, scale=0.3, softcap=2.0), device, dtype)
    memory = chunk_memory_of([(head, 2)], budget=0, most=9)
    with computing(memory):
        found = ReadHead(0, head, memory).logits(hidden)
    assert found.dtype == torch.float32
    torch.testing.assert_close(
        found, head.logits(hidden), rtol=0, atol=0 if dtype == torch.bfloat16 else 1e-6
    )


def test_under_autocast_the_products_are_in_its_dtype(device: str) -> None:
    head, hidden = random_head(Transforms(bias=True), device, torch.float32)
    with torch.autocast(device, torch.bfloat16):
        memory = chunk_memory_of([(head, 2)], budget=0, most=9)
        expected = head.logits(hidden)
        with computing(memory):
            found = ReadHead(0, head, memory).logits(hidden)
    assert memory.autocast == torch.bfloat16
    assert torch.equal(found, expected)
    assert not torch.equal(found, head.logits(hidden))
    assert chunk_memory_of([(head, 2)], budget=0, most=9).autocast is None


def test_multiplied_is_the_product_and_nothing_else() -> None:
    head, _ = random_head(Transforms(bias=True, scale=3.0, softcap=1.0))
    columns = torch.eye(7, dtype=torch.float64)[2:4]
    read = ReadHead(0, head, chunk_memory_of([(head, 1)], budget=0, most=9))
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
    memory = ChunkMemory(7, torch.float32, CPU, budget=0, most=9)
    message = (
        r"^the head is sharded \(DTensor\): compute the loss inside the forward of the module that FSDP2 "
        r"gathers, or give a head of weight.full_tensor\(\)$"
    )
    with pytest.raises(TypeError, match=message):
        ReadHead(0, head, memory)
    ReadHead(0, Head(sharded.full_tensor()), memory).logits(torch.randn(2, 3))


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
