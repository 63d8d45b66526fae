"""A language model's head as a value: what makes logits of hidden states, and which ids it can mean."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

from dskd.nn.adapted import weight_of
from dskd.nn.products import linear

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["UNREACHABLE", "Head"]

UNREACHABLE = -math.inf
"""A logit without probability. A finite one would let `-log q` of it pass as a loss."""

_ROWS_AT_ONCE = 4096
"""That are multiplied at once where they need not stay."""

_ROWS_AT_ONCE_ON_CPU = 1024
"""As fast there, and 8 MiB less of what malloc keeps, at d=256, D=512, V=50,257, by hand."""


@dataclass(frozen=True, slots=True, eq=False)
class Head:
    """`logits = cap(scale * (hidden weight^T + bias))`, `cap(x) = softcap * tanh(x / softcap)`.

    Attributes:
        weight: `[V, d]`, a row per token.
        bias: `[V]`, or None.
        scale: what the model multiplies its logits with (Cohere; Granite divides).
        softcap: where the model caps its logits (Gemma), or None.
        unreachable: bool `[V]`, the ids that no tokenizer can emit (a model's padded slots), or None. They
            have no probability in a loss that compares distributions.
    """

    weight: Tensor
    bias: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None
    unreachable: Tensor | None = None

    @classmethod
    def of(cls, model: Any, unreachable: Tensor | None = None) -> Head:
        """The head of a causal language model of transformers, with its configuration's transforms.

        Read are `logit_scale`, `logits_scaling` and `final_logit_softcapping`. A model that makes its logits
        in another way is not noticed here; `dskd.train` compares once and refuses it.

        Args:
            model: the model, or a `PeftModel` around it; its parameters are used, not copied. Of a head with
                adapters the weight is what they make of it, see `dskd.nn.adapted`.
            unreachable: see the class.

        Raises:
            ValueError: the model has no linear head.
        """
        output = model.get_output_embeddings()
        weight = weight_of(output)
        if weight is None:
            raise ValueError(f"{type(model).__name__} has no linear head; give a causal language model")
        if not weight.is_floating_point():
            raise ValueError(
                f"the head of {type(model).__name__} is quantised ({weight.dtype}): leave it out, with "
                "llm_int8_skip_modules=['lm_head'] in a quantization_config of bitsandbytes"
            )
        config = model.config.get_text_config()
        scale = getattr(config, "logit_scale", None) or 1 / (getattr(config, "logits_scaling", None) or 1)
        return cls(
            weight,
            getattr(output, "bias", None),
            float(scale),
            getattr(config, "final_logit_softcapping", None),
            unreachable,
        )

    @property
    def width(self) -> int:
        """Of the states that it reads: d."""
        return self.weight.shape[1]

    @property
    def size(self) -> int:
        """Of its vocabulary: V."""
        return self.weight.shape[0]

    def logits(self, hidden: Tensor) -> Tensor:
        """The logits of hidden states `[n, d]`: `[n, V]`, float32 or wider."""
        logits = functional.linear(hidden.to(self.weight.dtype), self.weight, self.bias)
        return self._transformed(logits.to(torch.promote_types(logits.dtype, torch.float32)))

    def logits_at(self, hidden: Tensor, ids: Tensor) -> Tensor:
        """The logits of a few ids `[n, k]`, each state's own, and no others: `[n, k]`, float32 or wider.

        They are multiplied in float32 or wider.
        """
        dtype = torch.promote_types(self.weight.dtype, torch.float32)
        with torch.autocast(hidden.device.type, enabled=False):
            rows = functional.embedding(ids, self.weight).to(dtype)
            logits = (rows @ hidden.to(dtype)[:, :, None])[..., 0]
        return self._transformed(logits if self.bias is None else logits + self.bias[ids])

    def _transformed(self, logits: Tensor) -> Tensor:
        if self.scale != 1:
            logits = logits * self.scale
        return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)

    def reachable(self, logits: Tensor) -> Tensor:
        """The same logits; minus infinity, no probability, of ids that no tokenizer can emit."""
        return logits if self.unreachable is None else logits.masked_fill(self.unreachable, UNREACHABLE)

    def reachable_(self, logits: Tensor) -> Tensor:
        """`reachable`, in place."""
        return logits if self.unreachable is None else logits.masked_fill_(self.unreachable, UNREACHABLE)

    def rows(self, tokens: slice) -> Head:
        """The head of these tokens alone."""
        bias = None if self.bias is None else self.bias[tokens]
        unreachable = None if self.unreachable is None else self.unreachable[tokens]
        return replace(self, weight=self.weight[tokens], bias=bias, unreachable=unreachable)

    def through(self, projector: Tensor, dtype: torch.dtype) -> Head:
        """The head that reads what a projector is yet to carry: `weight projector^T`.

        Args:
            projector: `[width, d]`, of states `[n, width]` to `[n, d]`.
            dtype: of its weight `[V, width]`, which is multiplied in float32 or wider.
        """
        wide = torch.promote_types(torch.promote_types(self.weight.dtype, projector.dtype), torch.float32)
        rows = projector.detach().to(wide)
        weight = torch.empty(len(self.weight), len(projector), dtype=dtype, device=self.weight.device)
        with torch.no_grad(), torch.autocast(weight.device.type, enabled=False):
            step = _ROWS_AT_ONCE_ON_CPU if weight.device.type == "cpu" else _ROWS_AT_ONCE
            for start in range(0, len(weight), step):
                block = slice(start, start + step)
                weight[block] = linear(self.weight[block].to(wide), rows)
        return replace(self, weight=weight)

    def to(self, device: torch.device | str) -> Head:
        """The same on a device."""
        bias = None if self.bias is None else self.bias.to(device)
        unreachable = None if self.unreachable is None else self.unreachable.to(device)
        return replace(self, weight=self.weight.to(device), bias=bias, unreachable=unreachable)

    def detached(self) -> Head:
        """The same head, to which no gradient flows."""
        bias = None if self.bias is None else self.bias.detach()
        return replace(self, weight=self.weight.detach(), bias=bias)
