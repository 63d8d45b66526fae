"""A student to start from: cut from a larger model, and carried over to another vocabulary.

student = cut_layers(teacher, [0, 1, 2, 10, 28, 29])
carry_embeddings(student, teacher_side, student_side)
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from dskd.vocabulary_map import vocabulary_map

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from dskd.vocabulary import Vocabulary

__all__ = ["carry_embeddings", "cut_layers"]


def cut_layers(model: Any, layers: Sequence[int]) -> Any:
    """A copy of a causal language model that has only some of its layers, in this order.

    Args:
        model: of transformers, with its decoder layers in one list (Llama, Qwen, Mistral, Gemma ...).
        layers: their indices, from 0.

    Raises:
        ValueError: there is no such layer, one is named twice, none is named, or the model has no single list
            of layers.
    """
    config = model.config.get_text_config()
    count = config.num_hidden_layers
    if not layers or any(not 0 <= layer < count for layer in layers) or len(set(layers)) < len(layers):
        raise ValueError(
            f"layers={list(layers)}; the model has layers 0 to {count - 1}, and each is kept once"
        )
    student = copy.deepcopy(model)
    name, stack = _layer_stack(student, count)
    kept = nn.ModuleList(stack[layer] for layer in layers)
    for index, layer in enumerate(kept):
        for module in layer.modules():
            if hasattr(module, "layer_idx"):  # where its keys and values are in the cache
                module.layer_idx = index  # type: ignore[assignment] # a number, not a module
    parent, _, attribute = name.rpartition(".")
    setattr(student.get_submodule(parent), attribute, kept)
    _set_layers(student.config.get_text_config(), layers)
    return student


def _layer_stack(model: Any, count: int) -> tuple[str, nn.ModuleList]:
    stacks = [
        (name, module)
        for name, module in model.base_model.named_modules(prefix=model.base_model_prefix)
        if isinstance(module, nn.ModuleList) and len(module) == count
    ]
    if len(stacks) != 1:
        raise ValueError(
            f"{type(model).__name__} has {len(stacks)} lists of {count} layers; cannot tell which to cut"
        )
    return stacks[0]


def _set_layers(config: Any, layers: Sequence[int]) -> None:
    config.num_hidden_layers = len(layers)
    if getattr(config, "layer_types", None):  # one a layer: full or sliding attention
        config.layer_types = [config.layer_types[layer] for layer in layers]


def carry_embeddings(model: Any, old: tuple[Any, Vocabulary], new: tuple[Any, Vocabulary]) -> None:
    """Gives a model another vocabulary: each new token gets the embeddings of the old token with its bytes.

    A new token that the old vocabulary does not have gets the mean of the old embeddings over the old
    tokenisation of its bytes; a special without a counterpart, and an unknown slot, the mean of all. The head
    is carried as the input embeddings are, tied or not; the configuration gets the new special ids.

    Args:
        model: a causal language model of transformers, changed in place.
        old: its tokenizer of transformers, and the vocabulary of that.
        new: the tokenizer that it is to have, and the vocabulary of that.
    """
    sources = _sources(old, new[1])
    embeddings = _carried(model.get_input_embeddings().weight, sources)
    head = model.get_output_embeddings()
    tied = head.weight is model.get_input_embeddings().weight
    head_rows = None if tied else _carried(head.weight, sources)
    bias = None if getattr(head, "bias", None) is None else _carried(head.bias[:, None], sources)[:, 0]
    model.resize_token_embeddings(len(sources), mean_resizing=False)
    with torch.no_grad():
        model.get_input_embeddings().weight.copy_(embeddings)
        if head_rows is not None:
            model.get_output_embeddings().weight.copy_(head_rows)
        if bias is not None:
            model.get_output_embeddings().bias.copy_(bias)
    _set_special_ids(model, new[0])


def _sources(old: tuple[Any, Vocabulary], new: Vocabulary) -> list[list[int]]:
    """For every new id the old ids whose embeddings it gets the mean of; none: of all."""
    tokenizer, vocabulary = old
    mapped = vocabulary_map(vocabulary, new).student_to_teacher
    spelled = _Speller(tokenizer, vocabulary)
    return [
        [int(mapped[token])] if mapped[token] >= 0 else spelled(new.token_bytes(token) or b"")
        for token in range(new.size)
    ]


class _Speller:
    """Bytes to the ids of a vocabulary: by its tokenizer, or where that cannot, by longest match."""

    def __init__(self, tokenizer: Any, vocabulary: Vocabulary) -> None:
        self._tokenizer = tokenizer
        self._vocabulary = vocabulary
        ids = range(vocabulary.size)
        self._ids = {known: token for token in ids if (known := vocabulary.token_bytes(token))}
        self._longest = max(map(len, self._ids))

    def __call__(self, text: bytes) -> list[int]:
        return self._tokenised(text) or self._matched(text)

    def _tokenised(self, text: bytes) -> list[int]:
        """What the tokenizer makes of it; nothing where that has other bytes, or the bytes are no text."""
        # A space that the tokenizer adds by itself is not given to it.
        given = text[1:] if self._vocabulary.dummy_prefix and text.startswith(b" ") else text
        try:
            ids: list[int] = self._tokenizer(given.decode(), add_special_tokens=False)["input_ids"]
        except UnicodeDecodeError:
            return []
        spelled = b"".join(self._vocabulary.token_bytes(token) or b"" for token in ids)
        return ids if spelled == text else []

    def _matched(self, text: bytes) -> list[int]:
        ids, start = [], 0
        while start < len(text):
            ends = range(min(len(text), start + self._longest), start, -1)
            end = next((end for end in ends if text[start:end] in self._ids), None)
            if end is None:  # the vocabulary lacks this byte
                start += 1
                continue
            ids.append(self._ids[text[start:end]])
            start = end
        return ids


def _carried(rows: Tensor, sources: Sequence[Sequence[int]]) -> Tensor:
    """`[len(sources), d]`: the mean of the rows that each source names, of all rows where it names none."""
    with torch.no_grad():
        flat = torch.tensor([token for source in sources for token in source], device=rows.device)
        counts = torch.tensor([len(source) for source in sources], device=rows.device)
        of = torch.repeat_interleave(torch.arange(len(sources), device=rows.device), counts)
        total = torch.zeros(len(sources), rows.shape[1], device=rows.device).index_add_(
            0, of, rows[flat].float()
        )
        mean = total / counts.clamp(min=1)[:, None]
        mean[counts == 0] = rows.float().mean(0)
        return mean.to(rows.dtype)


def _set_special_ids(model: Any, tokenizer: Any) -> None:
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        token = getattr(tokenizer, name)
        setattr(model.config.get_text_config(), name, token)
        if model.generation_config is not None:
            setattr(model.generation_config, name, token)
