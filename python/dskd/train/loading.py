"""Models by their names, and where they are: a student on the device of training, a teacher anywhere."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from dskd.train import adapters

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "load_model",
    "load_student",
    "load_teacher",
    "load_tokenizer",
    "ready_student",
    "ready_teacher",
    "tokenizer_of",
]

_OFFLOADED = ("cpu", "disk")
"""Places of a `device_map` where nothing is computed beside a GPU."""


# ---- By name ---------------------------------------------------------------------------------------------


def load_student(name: str, options: Mapping[str, Any] | None = None) -> Any:
    """The student: in float32, unless `options` has a dtype."""
    return load_model(name, {"dtype": torch.float32, **_checked("model_init_kwargs", options)}, trained=True)


def load_teacher(name: str, device: torch.device, options: Mapping[str, Any] | None = None) -> Any:
    """The teacher: in float32 for a CPU, where half precision is slow, else as it was saved."""
    dtype = torch.float32 if device.type == "cpu" else "auto"
    return load_model(name, {"dtype": dtype, **_checked("teacher_model_init_kwargs", options)})


def load_model(name: str, options: Mapping[str, Any], *, trained: bool = False) -> Any:
    """A causal language model of transformers; of a folder of adapters the `PeftModel`, with its base.

    Args:
        name: a hub name or a folder.
        options: of `from_pretrained`.
        trained: whether the adapters of a folder are trained.

    Raises:
        OSError: there is no such model.
        ValueError: it cannot be loaded with these options.
    """
    if adapters.is_folder(name):
        return adapters.opened(load_model(adapters.base_named_by(name), options), name, trained=trained)
    try:
        return AutoModelForCausalLM.from_pretrained(name, trust_remote_code=False, **options)
    except (TypeError, ImportError) as error:
        # An option that is none, and a library that one needs: bitsandbytes, accelerate, flash-attn.
        raise ValueError(f"{name} with {dict(options)}: {error}") from error


def load_tokenizer(name: str) -> Any:
    """The tokenizer of transformers of a hub name or a folder."""
    return AutoTokenizer.from_pretrained(name, trust_remote_code=False)


def tokenizer_of(given: Any, model: Any) -> Any:
    """The one that is given; else, where a model is given by name, that of this name."""
    return load_tokenizer(str(model)) if given is None and _is_name(model) else given


def _checked(name: str, options: Mapping[str, Any] | None) -> dict[str, Any]:
    found = dict(options or {})
    if "trust_remote_code" in found:
        raise ValueError(f"{name}: trust_remote_code is no option; code that comes with a model is not run")
    if "torch_dtype" in found:
        raise ValueError(f"{name}: torch_dtype is dtype, as in transformers")
    dtype = found.get("dtype", "auto")
    if (
        isinstance(dtype, str)
        and dtype != "auto"
        and not isinstance(getattr(torch, dtype, None), torch.dtype)
    ):
        raise ValueError(f"{name}: dtype={dtype!r}; it is auto, float32, bfloat16, float16 ...")
    return found


# ---- Ready -----------------------------------------------------------------------------------------------


def ready_student(model: Any, device: torch.device, options: Any = None, peft_config: Any = None) -> Any:
    """The student on its device, with its adapters.

    Args:
        model: a causal language model, a `PeftModel`, or a name.
        device: where it is trained.
        options: `model_init_kwargs`, of a name.
        peft_config: adapters that it gets.

    Raises:
        ValueError: options beside a model; adapters that would not be trained or saved; other devices.
    """
    model = _loaded(model, "model_init_kwargs", options, lambda name: load_student(name, options))
    if peft_config is not None:
        model = adapters.with_adapters(model, peft_config)
    adapters.refuse_unread(model)
    if _is_placed(model):
        _refuse_elsewhere(model, device)
        return model
    return model.to(device)


def ready_teacher(model: Any, device: torch.device, options: Any = None) -> Any:
    """The teacher, frozen and in eval mode; on the device, unless it was loaded onto another or quantised.

    Args:
        model: a causal language model, or a name.
        device: where the student is trained.
        options: `teacher_model_init_kwargs`, of a name.

    Raises:
        ValueError: options beside a model.
    """
    model = _loaded(
        model, "teacher_model_init_kwargs", options, lambda name: load_teacher(name, device, options)
    )
    model.requires_grad_(False).eval()
    return model if _is_placed(model) else model.to(device)


def _is_name(model: Any) -> bool:
    return isinstance(model, str | Path)


def _loaded(model: Any, name: str, options: Any, load: Any) -> Any:
    if _is_name(model):
        return load(str(model))
    if options:
        raise ValueError(f"{name} beside a model that is loaded already: give its name, or leave them out")
    return model


def _is_placed(model: Any) -> bool:
    """Whether it stays where it was loaded: by a `device_map`, or quantised, which cannot always be moved."""
    its = adapters.inside(model)
    return getattr(its, "hf_device_map", None) is not None or getattr(its, "is_quantized", False)


def _refuse_elsewhere(model: Any, device: torch.device) -> None:
    """A student is trained where its losses are computed; a teacher may be anywhere."""
    places = {str(one) for one in (getattr(adapters.inside(model), "hf_device_map", None) or {}).values()}
    devices = {one.device for one in model.parameters()}
    offloaded = places.intersection(_OFFLOADED) - {device.type}
    if offloaded or any(one.type != device.type or one.index not in (None, device.index) for one in devices):
        raise ValueError(
            f"the student's device_map has {', '.join(sorted(places))}, and it is trained on {device} as a "
            "whole: leave device_map out, or shard it with accelerate launch (FSDP, DeepSpeed)"
        )
