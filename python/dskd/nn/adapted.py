"""What a layer multiplies with where PEFT has put an adapter on it, as one weight.

A head is a weight to a loss, which never calls the layer. Nothing here imports PEFT: where nobody has, no
layer has an adapter.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

__all__ = ["has_low_rank", "weight_of"]


def weight_of(layer: Any) -> Tensor | None:
    """The weight `[V, d]` that a linear layer or an embedding multiplies with; None of a layer without one.

    Gradients flow to its adapters. A LoRA is `W + scaling B A`, in the wider of the dtypes of W and of the
    product. A layer that PEFT trains in a copy (`modules_to_save`), and one of which single rows are trained
    (`trainable_token_indices`), says its weight itself. Of other adapters it is the weight below them, and
    `dskd.train.adapters.refuse_unread` refuses them.
    """
    weight: Tensor | None = getattr(layer, "weight", None)
    if weight is None or not has_low_rank(layer):
        return weight
    for adapter in _active(layer):
        weight = torch.add(weight, _product(layer, adapter))
    return weight


def has_low_rank(layer: Any) -> bool:
    """Whether a LoRA is on the layer, active or not."""
    lora = sys.modules.get("peft.tuners.lora")
    return lora is not None and isinstance(layer, lora.Linear | lora.Embedding)


def _active(layer: Any) -> Iterator[str]:
    """The names of the layer's LoRAs that its weight does not hold already."""
    if not layer.disable_adapters and not layer.merged:
        factors = {*layer.lora_A, *layer.lora_embedding_A}
        yield from (name for name in layer.active_adapters if name in factors)


def _product(layer: Any, adapter: str) -> Tensor:
    """`scaling B A`; not rounded to what autocast multiplies in, as little as the weight is."""
    with torch.autocast(layer.base_layer.weight.device.type, enabled=False):
        if adapter in layer.lora_A:
            product = layer.lora_B[adapter].weight @ layer.lora_A[adapter].weight
        else:
            product = (layer.lora_embedding_B[adapter] @ layer.lora_embedding_A[adapter]).T
        scaled: Tensor = product * layer.scaling[adapter]
        return scaled
