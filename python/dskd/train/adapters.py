"""A student with adapters of PEFT: put on, read through, saved, merged; or refused by name.

PEFT is imported where a student with adapters is made or opened, and nowhere else. What is distilled is the
model inside: its body is called, and its head is read as one weight (`dskd.nn.adapted`).
"""

from __future__ import annotations

import sys
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from dskd.nn.adapted import has_low_rank
from dskd.nn.heads import Head

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "inside",
    "is_adapted",
    "load_adapters",
    "lora_config",
    "merged",
    "opened",
    "refuse_unread",
    "with_adapters",
]

CONFIG_FILE = "adapter_config.json"
"""What makes a folder one of adapters."""

READ = ("LORA", "IA3", "LOHA", "LOKR", "OFT", "VERA", "LN_TUNING", "TRAINABLE_TOKENS")
"""Kinds of adapters that are layers of the model, so that its body has them."""


def _peft() -> Any:
    try:
        import peft  # noqa: PLC0415 - of students with adapters alone
    except ImportError as error:
        raise ImportError(f"adapters need PEFT: pip install 'dskd[peft]' ({error})") from error
    return peft


# ---- Putting on ------------------------------------------------------------------------------------------


def lora_config(options: Mapping[str, Any]) -> Any:
    """The `peft.LoraConfig` of a causal language model with these options.

    Args:
        options: those of `LoraConfig`; `alpha` and `dropout` are `lora_alpha` and `lora_dropout`.

    Raises:
        ImportError: PEFT is not installed.
        ValueError: there is no such option, or it is not as it should be.
    """
    kind = _peft().LoraConfig
    known = {one.name for one in fields(kind) if one.init}
    named = {
        name if name in known or f"lora_{name}" not in known else f"lora_{name}": value
        for name, value in options.items()
    }
    if len(named) < len(options):
        raise ValueError(f"lora gives an option by both of its names: {', '.join(options)}")
    if unknown := sorted(named.keys() - known):
        raise ValueError(
            f"lora has no option {', '.join(unknown)}; there is r, alpha, dropout, target_modules, "
            "modules_to_save, and what else peft.LoraConfig has"
        )
    try:
        return kind(**{"task_type": "CAUSAL_LM", **named})
    except TypeError as error:
        raise ValueError(f"lora={dict(options)!r}: {error}") from error


def with_adapters(model: Any, config: Any) -> Any:
    """The model inside a `PeftModel` with new adapters, which alone are trained.

    Args:
        model: a causal language model of transformers; its layers are replaced in place.
        config: of PEFT, a `LoraConfig` say.

    Raises:
        ValueError: it has adapters already, or PEFT cannot put these on.
    """
    if is_adapted(model):
        raise ValueError("peft_config beside a student that is a PeftModel already: leave one out")
    _refuse_injected(model)
    try:
        return _peft().get_peft_model(model, config)
    except TypeError as error:
        raise ValueError(f"peft_config: {error}") from error


# ---- Reading through -------------------------------------------------------------------------------------


def is_adapted(model: Any) -> bool:
    """Whether it is a `PeftModel`."""
    peft = sys.modules.get("peft")
    return peft is not None and isinstance(model, peft.PeftModel)


def inside(model: Any) -> Any:
    """The model of transformers inside a `PeftModel`, its layers with their adapters; any other as it is."""
    return model.get_base_model() if is_adapted(model) else model


def refuse_unread(model: Any) -> None:
    """Refuses a student whose adapters would not be trained, not be seen by the losses, or not be saved.

    Raises:
        ValueError: the adapters were put into a model that does not know of them, are of a kind that is more
            than layers of the model, or are on the head in a way that is no weight.
    """
    _refuse_quantised(model)
    if not is_adapted(model):
        _refuse_injected(model)
        return
    for name, config in model.peft_config.items():
        kind = str(getattr(config.peft_type, "value", config.peft_type))
        if kind not in READ or getattr(config, "alora_invocation_tokens", None) is not None:
            raise ValueError(
                f"the adapter {name!r} of the student is {kind}, which is more than its layers or not "
                f"known: there is {', '.join(READ)}"
            )
    if not any(one.requires_grad for one in model.parameters()):
        raise ValueError(
            "nothing of the student is trained: PeftModel.from_pretrained(..., is_trainable=True)"
        )
    _refuse_on_head(model)


def _refuse_quantised(model: Any) -> None:
    if getattr(inside(model), "is_quantized", False) and not is_adapted(model):
        raise ValueError(
            "the student is quantised, and so trained by adapters alone: give peft_config (lora)"
        )


def _refuse_injected(model: Any) -> None:
    layers = sys.modules.get("peft.tuners.tuners_utils")
    if layers is not None and any(isinstance(one, layers.BaseTunerLayer) for one in model.modules()):
        raise ValueError(
            f"{type(model).__name__} has adapters that it would not be saved with (inject_adapter_in_model, "
            "add_adapter): give the plain model and peft_config, peft.get_peft_model(model, config), or "
            "PeftModel.from_pretrained(model, folder, is_trainable=True)"
        )


def _refuse_on_head(model: Any) -> None:
    """What is trained in the head's layer is reached through its weight and bias, or refused."""
    layer, head = model.get_output_embeddings(), Head.of(model)
    way_out = "give modules_to_save=['lm_head'] in place of it, or leave the head out of target_modules"
    if has_low_rank(layer) and any(isinstance(one, nn.Dropout) and one.p for one in layer.modules()):
        raise ValueError(
            f"the adapter on the student's head has dropout, which its weight does not say: 0, or {way_out}"
        )
    trained = {name: one for name, one in layer.named_parameters() if one.requires_grad}
    read = [one for one in (head.weight, head.bias) if one is not None and one.requires_grad]
    found: Any = [None] * len(trained)
    if trained and read:
        total = torch.stack([one.sum() for one in read]).sum()
        found = torch.autograd.grad(total, list(trained.values()), allow_unused=True)
    if unread := [name for name, one in zip(trained, found, strict=True) if one is None]:
        raise ValueError(
            f"the adapter on the student's head trains {', '.join(unread)}, which is no part of its weight: "
            f"a loss would not see it; {way_out}"
        )


# ---- Files -----------------------------------------------------------------------------------------------


def is_folder(name: str) -> bool:
    """Whether the folder holds adapters in place of a model."""
    return (Path(name) / CONFIG_FILE).is_file()


def base_named_by(folder: str) -> str:
    """The model that the adapters in a folder belong to.

    Raises:
        ValueError: they do not say.
    """
    name = _peft().PeftConfig.from_pretrained(folder).base_model_name_or_path
    if not name:
        raise ValueError(f"{folder} holds adapters and does not name their model: open both with PEFT")
    return str(name)


def opened(model: Any, folder: str, *, trained: bool) -> Any:
    """The model with the adapters of a folder; `trained` or for inference."""
    return _peft().PeftModel.from_pretrained(model, folder, is_trainable=trained)


def load_adapters(model: Any, folder: Path) -> None:
    """Gives a `PeftModel` the weights that its adapters have in a folder that it saved.

    Raises:
        FileNotFoundError: they are not there.
        ValueError: they are other adapters.
    """
    peft = _peft()
    for name in model.peft_config:
        its = folder if name == "default" else folder / name
        if not (its / CONFIG_FILE).is_file():
            raise FileNotFoundError(f"{its} holds no adapters ({CONFIG_FILE}), and the student has some")
        saved = peft.utils.load_peft_weights(str(its), device="cpu")
        own = peft.get_peft_model_state_dict(model, adapter_name=name)
        if other := sorted(saved.keys() ^ own.keys()):
            raise ValueError(
                f"{its} and the adapter {name!r} of this run differ in {', '.join(other[:3])}"
                f"{' ...' if len(other) > 3 else ''}: resume with the lora options of that run"  # noqa: PLR2004
            )
        peft.set_peft_model_state_dict(model, saved, adapter_name=name)


# ---- Merging ---------------------------------------------------------------------------------------------


def refuse_merging(model: Any) -> None:
    """Refuses what cannot become a plain model with the same logits.

    Raises:
        ValueError: there is no adapter, or the model is quantised.
    """
    if not is_adapted(model):
        raise ValueError("merge: the student has no adapters; give lora, or leave merge out")
    if getattr(inside(model), "is_quantized", False):
        raise ValueError(
            "merge: the student is quantised, and rounding the sum would change it; open the adapters with "
            "PEFT on the model as it was before, and merge there"
        )


def merged(model: Any) -> Any:
    """The plain model with what its adapters make of it; the `PeftModel` is used up.

    A head that is tied to the embeddings gets a weight of its own where a LoRA is on one of the two: both
    would see the sum. That they are two then PEFT says in the configuration.

    Raises:
        ValueError: see `refuse_merging`; or a weight is not finite.
    """
    refuse_merging(model)
    plain = inside(model)
    ends = plain.get_input_embeddings(), plain.get_output_embeddings()
    if any(has_low_rank(one) for one in ends) and _own(ends[0]) is _own(ends[1]):
        _layer(ends[1]).weight = nn.Parameter(_own(ends[1]).detach().clone(), requires_grad=False)
    return model.merge_and_unload(safe_merge=True)


def _layer(layer: Any) -> Any:
    """The layer below its LoRA."""
    return layer.base_layer if has_low_rank(layer) else layer


def _own(layer: Any) -> Any:
    return _layer(layer).weight
