"""Who comes first: the student in all of `dskd.nn`, as the input of `kl_div`; see docs/losses.md."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch.nn import functional

import dskd.nn
from dskd.nn import Projectors, kl

if TYPE_CHECKING:
    from collections.abc import Iterator

WITH_TRITON = "dskd.nn.kernel_rows"
"""A test imports it in a process of its own; see tests/test_kernels.py."""


def modules() -> list[str]:
    found = pkgutil.walk_packages(dskd.nn.__path__, "dskd.nn.")
    return sorted(one.name for one in found if one.name != WITH_TRITON)


def callables(module: str) -> Iterator[tuple[str, Any]]:
    """Functions, methods and classes that are written there."""
    members = vars(importlib.import_module(module))
    for name, one in members.items():
        if getattr(one, "__module__", None) != module or not callable(one):
            continue
        yield name, one
        if inspect.isclass(one):
            for inner, method in vars(one).items():
                if inspect.isfunction(getattr(method, "__func__", method)):
                    yield f"{name}.{inner}", getattr(method, "__func__", method)


def sides_of(one: Any) -> list[str]:
    """Of the arguments that need no name, those of a model."""
    taken = (
        name.removeprefix("of_").split("_")[0]
        for name, parameter in inspect.signature(one).parameters.items()
        if parameter.kind is not parameter.KEYWORD_ONLY and "_to_" not in name
    )
    return [side.removesuffix("s") for side in taken if side in ("student", "teacher", "teachers")]


@pytest.mark.parametrize("module", modules())
def test_the_student_is_the_first_of_two_models(module: str) -> None:
    for name, one in callables(module):
        sides = sides_of(one)
        assert "teacher" not in sides[:1] or "student" not in sides, (
            f"{module}.{name}{inspect.signature(one)}"
        )


def test_there_are_such_signatures() -> None:
    both = [name for module in modules() for name, one in callables(module) if len(set(sides_of(one))) == 2]
    assert {"kl", "divergence", "divergence_and_gradient", "Batch", "Objective", "Loss.terms"} <= set(both)


def test_kl_takes_its_arguments_as_the_one_of_pytorch() -> None:
    one, other = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    expected = functional.kl_div(one, other, reduction="none", log_target=True).sum(-1)
    torch.testing.assert_close(kl(one, other), expected)
    assert not torch.allclose(kl(other, one), expected)


def test_heads_without_a_name_are_refused() -> None:
    heads = torch.eye(3), torch.eye(3)
    overlap = torch.arange(3).repeat(2, 1).T
    with pytest.raises(TypeError, match="positional"):
        Projectors(*heads, overlap)  # type: ignore[call-arg]
    made = Projectors(student_weight=heads[0], teacher_weight=heads[1], overlap=overlap)
    with pytest.raises(TypeError, match="positional"):
        made.refresh(*heads)  # type: ignore[call-arg]
