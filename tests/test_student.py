"""Students to start from: cut to some layers, and carried over to another vocabulary."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest
import torch
from tokenizers import pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Gemma2Config,
    Gemma2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PhiConfig,
    PhiForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

import tiny
from dskd import Kind, Vocabulary
from dskd.train import carry_embeddings, cut_layers
from test_loading import byte_level

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

SIZES: dict[str, Any] = {
    "vocab_size": 50,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "initializer_range": 0.3,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
# A window that is shorter than the text, on some layers: that each keeps its own can be seen.
WINDOW: dict[str, Any] = {
    "sliding_window": 3,
    "layer_types": ["full_attention", "sliding_attention", "sliding_attention", "full_attention"],
}
QWEN: dict[str, Any] = {"use_sliding_window": True, "max_window_layers": 0}
FAMILIES: dict[str, Any] = {
    "Llama": (LlamaForCausalLM, LlamaConfig, SIZES),
    "Qwen2": (Qwen2ForCausalLM, Qwen2Config, {**SIZES, **WINDOW, **QWEN}),
    "Qwen3": (Qwen3ForCausalLM, Qwen3Config, {**SIZES, **WINDOW, **QWEN}),
    "Gemma2": (Gemma2ForCausalLM, Gemma2Config, {**SIZES, **WINDOW}),
}
IDS = torch.tensor([[3, 14, 15, 9, 26, 5, 35, 8, 9, 7]])


def made(family: str, layers: list[int] | None = None) -> Any:
    """A model with all four layers, or by its configuration with so many and of these types."""
    torch.manual_seed(5)
    if family == "GPT-2":
        return tiny.gpt2(50, 16, seed=5, n_layer=4 if layers is None else len(layers)).float()
    model, config, sizes = FAMILIES[family]
    if layers is not None:
        types = [sizes["layer_types"][layer] for layer in layers] if "layer_types" in sizes else None
        sizes = {**sizes, "num_hidden_layers": len(layers), **({"layer_types": types} if types else {})}
    return model(config(**sizes))


def by_hand(family: str, whole: Any, layers: list[int]) -> Any:
    """A model of so many layers, given the weights of these."""
    model = made(family, layers)
    weights = {}
    for name, value in whole.state_dict().items():
        found = re.search(r"\.(?:layers|h)\.(\d+)\.", name)
        if found is None:
            weights[name] = value
        elif int(found[1]) in layers:
            start, end = found.span(1)
            weights[f"{name[:start]}{layers.index(int(found[1]))}{name[end:]}"] = value
    model.load_state_dict(weights)
    return model.eval()


@torch.no_grad()
def logits(model: Any) -> Tensor:
    found: Tensor = model.eval()(IDS, use_cache=False).logits
    return found


@torch.no_grad()
def gap_of_cache(model: Any) -> float:
    """How far the logits of a text that the model goes on with by its cache are from those of it at once."""
    given = {
        "attention_mask": torch.ones_like(IDS),
        "max_new_tokens": 6,
        "do_sample": False,
        "pad_token_id": 0,
    }
    found = model.eval().generate(
        IDS, output_logits=True, return_dict_in_generate=True, use_cache=True, **given
    )
    at_once = model(found.sequences, use_cache=False).logits[0, IDS.shape[1] - 1 : -1]
    gap = torch.cat(found.logits) - at_once
    assert gap.shape == (6, 50)
    return float(gap.abs().max())


@pytest.mark.parametrize("layers", [[0, 3], [1, 2, 3], [2], [3, 1], [0, 1, 2, 3]], ids=str)
@pytest.mark.parametrize("family", [*FAMILIES, "GPT-2"])
def test_a_cut_model_is_one_made_by_hand_with_those_layers(
    family: str, layers: list[int], tmp_path: Path
) -> None:
    whole = made(family)
    before = logits(whole)
    student = cut_layers(whole, layers)
    expected = logits(by_hand(family, whole, layers))
    assert torch.equal(logits(student), expected)
    if layers != [0, 1, 2, 3]:
        assert not torch.allclose(expected, before, atol=1e-2)
    student.save_pretrained(tmp_path)
    opened = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert opened.config.num_hidden_layers == len(layers)
    assert torch.equal(logits(opened), expected)
    for one in (student, opened):
        assert gap_of_cache(one) < 1e-4


def test_the_model_that_is_cut_stays_as_it_was() -> None:
    whole = made("Qwen3")
    before = logits(whole)
    student = cut_layers(whole, [1, 3])
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.zero_()
    assert torch.equal(logits(whole), before)
    assert whole.config.num_hidden_layers == len(whole.config.layer_types) == 4
    assert gap_of_cache(whole) < 1e-4


@pytest.mark.parametrize("layers", [[], [4], [-1], [0, 1, 17], [0, 0, 2]], ids=str)
def test_layers_that_are_not_there_are_named(layers: list[int]) -> None:
    message = f"layers={layers}; the model has layers 0 to 3, and each is kept once"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        cut_layers(made("Llama"), layers)


def test_a_model_without_one_list_of_layers_is_refused() -> None:
    model = made("Llama")
    model.model.others = torch.nn.ModuleList(torch.nn.Identity() for _ in range(4))
    with pytest.raises(
        ValueError, match="LlamaForCausalLM has 2 lists of 4 layers; cannot tell which to cut"
    ):
        cut_layers(model, [0])


# ---- Another vocabulary ----------------------------------------------------------------------------------


def spelled(text: str) -> str:
    """As a byte-level vocabulary spells it, without a space before."""
    word: str = pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str(text)[0][0]
    return word


def old_side() -> tuple[Any, Vocabulary]:
    tokenizer = tiny.teacher_tokenizer()
    return tokenizer, Vocabulary.from_tokenizer(tokenizer)


def new_side() -> tuple[Any, Vocabulary]:
    """Tokens that the old one has, that it has in pieces, halves of a letter, and specials."""
    words = [" Paris", " Paris is", "Hello world", spelled("知"), spelled("識")]
    tokenizer = tiny.fast_tokenizer(
        tokenizer_object=byte_level(*words),
        bos_token="<s>",  # noqa: S106 - no password
        eos_token="</s>",  # noqa: S106
        pad_token="<pad>",  # noqa: S106
    )
    return tokenizer, Vocabulary.from_tokenizer(tokenizer)


def expected_rows(rows: Tensor, old: tuple[Any, Vocabulary], new: tuple[Any, Vocabulary]) -> Tensor:
    """A token at a time, by what the docstring says."""
    by_bytes = {old[1].token_bytes(token): token for token in reversed(range(old[1].size))}
    named = {"</s>": old[0].eos_token_id}
    found = []
    for token in range(new[1].size):
        known = new[1].token_bytes(token)
        if not known:
            spelling = new[0].convert_ids_to_tokens(token)
            found.append(rows[named[spelling]] if spelling in named else rows.mean(0))
        elif known in by_bytes:
            found.append(rows[by_bytes[known]])
        else:
            try:
                ids = old[0](known.decode(), add_special_tokens=False)["input_ids"]
            except UnicodeDecodeError:
                ids = [by_bytes[bytes([byte])] for byte in known]  # the old one has no halves of letters
            assert b"".join(old[1].token_bytes(one) or b"" for one in ids) == known
            found.append(torch.stack([rows[one] for one in ids]).mean(0))
    return torch.stack(found)


def phi(vocabulary: int) -> Any:
    torch.manual_seed(3)
    sizes = {name: value for name, value in SIZES.items() if name not in ("vocab_size", "head_dim")}
    model = PhiForCausalLM(PhiConfig(vocab_size=vocabulary, **{**sizes, "num_key_value_heads": 2}))
    torch.nn.init.normal_(model.lm_head.bias)
    return model


MODELS = {
    "untied": lambda size: tiny.llama(size, 16).float(),
    "tied": lambda size: tiny.gpt2(size, 16).float(),
    "tied by option": lambda size: tiny.llama(size, 16, tie_word_embeddings=True).float(),
    "with a bias": phi,
}


@pytest.mark.parametrize("kind", MODELS)
def test_every_token_gets_the_embeddings_that_the_definition_says(kind: str, tmp_path: Path) -> None:
    old, new = old_side(), new_side()
    model = MODELS[kind](old[1].size)
    rows, head = (
        one.weight.detach().clone() for one in (model.get_input_embeddings(), model.get_output_embeddings())
    )
    bias = getattr(model.get_output_embeddings(), "bias", None)
    bias = None if bias is None else bias.detach().clone()
    carry_embeddings(model, old, new)
    assert torch.allclose(model.get_input_embeddings().weight, expected_rows(rows, old, new), atol=1e-6)
    assert torch.allclose(model.get_output_embeddings().weight, expected_rows(head, old, new), atol=1e-6)
    if bias is not None:
        expected = expected_rows(bias[:, None], old, new)[:, 0]
        assert torch.allclose(model.get_output_embeddings().bias, expected, atol=1e-6)
    tied = model.get_input_embeddings().weight is model.get_output_embeddings().weight
    assert tied == kind.startswith("tied")
    model.save_pretrained(tmp_path)
    new[0].save_pretrained(tmp_path)
    opened, tokenizer = (
        AutoModelForCausalLM.from_pretrained(tmp_path),
        AutoTokenizer.from_pretrained(tmp_path),
    )
    assert torch.equal(logits(opened), logits(model))
    assert tokenizer("Hello Paris")["input_ids"] == new[0]("Hello Paris")["input_ids"]


def test_the_cases_above_are_all_there() -> None:
    old, new = old_side(), new_side()
    known = {old[1].token_bytes(token) for token in range(old[1].size)}
    kinds = {"copied": 0, "pieces": 0, "halves": 0, "special": 0}
    for token in range(new[1].size):
        text = new[1].token_bytes(token)
        if not text:
            assert new[1].kind(token) in (Kind.SPECIAL, Kind.OPAQUE)
            kinds["special"] += 1
        elif text in known:
            kinds["copied"] += 1
        else:
            kinds["halves" if "\ufffd" in text.decode(errors="replace") else "pieces"] += 1
    assert kinds["copied"] >= 256
    assert kinds["pieces"] >= 8
    assert kinds["halves"] == 2
    assert kinds["special"] == 3


def test_a_token_with_the_same_bytes_is_copied_to_the_last_bit() -> None:
    old, new = old_side(), new_side()
    model = MODELS["untied"](old[1].size)
    before = model.get_input_embeddings().weight.detach().clone()
    carry_embeddings(model, old, new)
    for text in (" Paris", "Hello", "e"):
        ids = [side[0](text, add_special_tokens=False)["input_ids"] for side in (old, new)]
        assert len(ids[0]) == len(ids[1]) == 1, text
        assert torch.equal(model.get_input_embeddings().weight[ids[1][0]], before[ids[0][0]])


def test_the_configuration_has_the_new_size_and_special_ids() -> None:
    old, new = old_side(), new_side()
    model = MODELS["untied"](old[1].size)
    carry_embeddings(model, old, new)
    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    assert model.config.vocab_size == len(new[0])
    assert [getattr(model.config, name) for name in names] == [getattr(new[0], name) for name in names]
    assert [getattr(model.generation_config, name) for name in names] == [
        getattr(new[0], name) for name in names
    ]


def test_the_old_slots_beyond_the_tokenizer_are_gone() -> None:
    old = old_side()[0], Vocabulary.from_tokenizer(old_side()[0], size=old_side()[1].size + 7)
    model = MODELS["untied"](old[1].size)
    rows = model.get_input_embeddings().weight.detach().clone()
    carry_embeddings(model, old, new_side())
    assert len(model.get_input_embeddings().weight) == len(new_side()[0])
    ids = [side[0](" Paris", add_special_tokens=False)["input_ids"] for side in (old, new_side())]
    assert torch.equal(model.get_input_embeddings().weight[ids[1][0]], rows[ids[0][0]])


def test_from_a_dummy_prefix_tokenizer_the_pieces_still_have_the_bytes_of_the_token() -> None:
    """Embeddings that are counts of bytes: whatever the pieces are, they must add up to the token."""
    tokenizer = tiny.student_tokenizer()
    old, new = (tokenizer, Vocabulary.from_tokenizer(tokenizer)), new_side()
    model = tiny.llama(old[1].size, 256).float()
    with torch.no_grad():
        model.get_input_embeddings().weight.zero_()
        for token in range(old[1].size):
            for byte in old[1].token_bytes(token) or b"":
                model.get_input_embeddings().weight[token, byte] += 1
    carry_embeddings(model, old, new)
    for token in range(new[1].size):
        if text := new[1].token_bytes(token):
            counted = model.get_input_embeddings().weight[token]
            expected = torch.bincount(torch.tensor(list(text)), minlength=256)
            assert torch.allclose(counted / counted.sum(), expected / expected.sum(), atol=1e-5), text
