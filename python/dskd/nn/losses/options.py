"""From names and options, as files have them, to losses."""

from __future__ import annotations

import dataclasses
import re
import sys
import typing
from typing import TYPE_CHECKING, Any

from dskd.nn.losses import LOSSES

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dskd.nn.loss import Loss

__all__ = ["help_of", "loss_of", "options_of"]


def loss_of(name: str, options: Mapping[str, Any] | None = None, *, preset: str | None = None) -> Loss:
    """The loss of this name in `LOSSES`.

    Args:
        name: of the loss.
        options: its fields; `none` is None, and a whole number may stand for one that has a point.
        preset: one of its `presets`, beside which its own options are not given.

    Raises:
        ValueError: there is no such loss, option or preset; an option has another type, is out of its range,
            or is the preset's own.
    """
    if name not in LOSSES:
        raise ValueError(f"there is no loss {name!r}; there is {', '.join(LOSSES)}")
    kind, given = LOSSES[name], dict(options or {})
    known = options_of(kind)
    if unknown := sorted(given.keys() - known.keys()):
        said = f"it has {', '.join(known)}" if known else "it has none"
        raise ValueError(f"{name} has no option {', '.join(unknown)}; {said}")
    from_preset: Mapping[str, Any] = {}
    if preset not in (None, "none"):
        if preset not in kind.presets:
            raise ValueError(
                f"preset={preset!r} is none of {name}; it has {', '.join(kind.presets) or 'none'}"
            )
        from_preset = kind.presets[str(preset)]
        if both := sorted(given.keys() & from_preset.keys()):
            raise ValueError(f"{', '.join(both)} beside preset={preset!r}, which has its own: leave one out")
    given = {option: _read(name, option, value, known[option]) for option, value in given.items()}
    return kind(**{**from_preset, **given})


def options_of(kind: type[Loss]) -> Mapping[str, Any]:
    """The type of each option of a loss, by its name."""
    names = [field.name for field in dataclasses.fields(kind)]
    hints: dict[str, Any] = {}
    for one in reversed(kind.__mro__):
        # Other annotations may speak of what is imported for type checking alone.
        written = {name: text for name, text in vars(one).get("__annotations__", {}).items() if name in names}
        alone = type("Options", (), {"__annotations__": written})
        hints |= typing.get_type_hints(alone, globalns=vars(sys.modules[one.__module__]))
    return {name: hints[name] for name in names}


def _read(loss: str, name: str, value: Any, hint: Any) -> Any:
    """A value as the option's type has it."""
    choices = typing.get_args(hint) or (hint,)
    if isinstance(value, str) and value.lower() in ("none", "null") and type(None) in choices:
        return None
    if float in choices and type(value) is int:
        return float(value)
    if value is None or any(_fits(value, choice) for choice in choices):
        if value is None and type(None) not in choices:
            raise ValueError(f"{loss}: {name} is not given; leave it out for the default")
        return value
    raise ValueError(f"{loss}: {name}={value!r}; it is {_said(choices)}")


def _fits(value: Any, choice: Any) -> bool:
    if typing.get_origin(choice) is typing.Literal:
        return value in typing.get_args(choice)
    if isinstance(choice, type):
        return type(value) is choice
    return bool(value == choice)


_KINDS: Mapping[Any, str] = {
    bool: "true or false",
    float: "a number",
    int: "a whole number",
    str: "a text",
}


def _said(choices: tuple[Any, ...]) -> str:
    """What one of these is, in words: `a number, or none`, `one of gold, none`."""
    none = ["none"] if type(None) in choices else []
    named = [str(one) for choice in choices for one in typing.get_args(choice)]
    kinds = [said for kind, said in _KINDS.items() if kind in choices]
    return ", or ".join([*kinds, f"one of {', '.join(named + none)}"] if named else kinds + none)


def help_of(kind: type[Loss]) -> Mapping[str, str]:
    """What the docstrings say of each option of a loss, in one line."""
    found: dict[str, str] = {}
    for one in reversed(kind.__mro__):
        _, _, attributes = (one.__doc__ or "").partition("Attributes:\n")
        for name, text in re.findall(r"^ {8}(\w+): (.*(?:\n {12}.*)*)", attributes, re.MULTILINE):
            found[name] = " ".join(text.split())
    return {name: found.get(name, "") for name in options_of(kind)}
