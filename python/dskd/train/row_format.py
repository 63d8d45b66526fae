"""Rows of other shapes made rows of messages: other names of columns, Alpaca, ShareGPT, typed parts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["FORMATS", "RowFormat"]


@dataclass(frozen=True, slots=True)
class RowFormat:
    """How a row of the data becomes one that `read_row` knows.

    Attributes:
        format: one of `FORMATS`; None where rows are as `read_row` wants them.
        columns: names that are wanted, and the columns that have them under others.
        ignore: columns that are left out.

    Raises:
        ValueError: there is no such format, a column is given two names, or is named and left out.
    """

    format: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    ignore: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Checks what it is told."""
        if self.format is not None and self.format not in FORMATS:
            raise ValueError(f"there is no row_format {self.format!r}; there is {', '.join(FORMATS)}")
        if not all(isinstance(column, str) for column in self.columns.values()):
            raise ValueError(f"row_columns={dict(self.columns)}: each is a name of a column")
        given = [*self.columns.values(), *self.ignore]
        if twice := sorted({column for column in given if given.count(column) > 1}):
            raise ValueError(f"{', '.join(twice)} stands twice in row_columns and ignore_columns")

    def __call__(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """The row with the names and the shape that are wanted.

        Raises:
            ValueError: it is not of this format, or a new name is taken.
        """
        found = self._renamed({name: row[name] for name in row if row[name] is not None})
        return found if self.format is None else FORMATS[self.format](found)

    def _renamed(self, row: dict[str, Any]) -> dict[str, Any]:
        names = {column: name for name, column in self.columns.items()}
        kept = {name: value for name, value in row.items() if name not in self.ignore}
        if taken := sorted(
            name for column, name in names.items() if column in kept and name in kept.keys() - names
        ):
            raise ValueError(
                f"row_columns gives the name {', '.join(taken)} to a column, and another has it; leave "
                "that out with ignore_columns"
            )
        return {names.get(name, name): value for name, value in kept.items()}


# ---- Alpaca ----------------------------------------------------------------------------------------------


def _alpaca(row: dict[str, Any]) -> dict[str, Any]:
    """`instruction`, `input` below it, `output`; before them `system`, and `history` of pairs."""
    asked, more = _text(row, "instruction"), _text(row, "input", "")
    turns = [*_history(row.pop("history", [])), (f"{asked}\n{more}" if more else asked, _text(row, "output"))]
    return _with_messages(row, [message for turn in turns for message in _exchange(*turn)])


def _history(given: Any) -> list[tuple[str, str]]:
    if not isinstance(given, list) or not all(
        isinstance(pair, list | tuple) and len(pair) == 2 and all(isinstance(text, str) for text in pair)  # noqa: PLR2004
        for pair in given
    ):
        raise ValueError("history is a list of pairs: what was asked, and what was answered")
    return [(asked, answered) for asked, answered in given]


def _exchange(asked: str, answered: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]


# ---- ShareGPT --------------------------------------------------------------------------------------------

_ROLES = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "observation": "tool",
    "tool": "tool",
}
_CALL = "function_call"


def _sharegpt(row: dict[str, Any]) -> dict[str, Any]:
    """`conversations` of turns, each `from` whom and its `value`; beside it `system` and `tools`."""
    turns = row.pop("conversations", None)
    if not isinstance(turns, list):
        raise ValueError("a row of sharegpt has conversations, a list of turns")  # noqa: TRY004 - of a row
    if row.get("tools"):
        row["tools"] = [_tool(tool) for tool in _json_list("tools", row["tools"])]
    return _with_messages(row, [_turn(index, turn) for index, turn in enumerate(turns)])


def _turn(index: int, turn: Any) -> dict[str, Any]:
    if not isinstance(turn, Mapping) or not isinstance(turn.get("value"), str):
        raise ValueError(f"turn {index} (from 0) has no from and value, the text")  # noqa: TRY004 - of a row
    others = {name: value for name, value in turn.items() if name not in {"from", "value"}}
    who, said = turn.get("from"), turn["value"]
    if who == _CALL:
        calls = [_call(call) for call in _json_list(f"the call of turn {index} (from 0)", said)]
        return {"role": "assistant", "content": None, "tool_calls": calls, **others}
    if who not in _ROLES:
        raise ValueError(f"turn {index} (from 0) is from {who!r}; there is {', '.join([*_ROLES, _CALL])}")
    return {"role": _ROLES[who], "content": said, **others}


def _tool(given: Any) -> Any:
    """A function that may be called, as templates expect it."""
    bare = isinstance(given, Mapping) and "name" in given and "function" not in given
    return {"type": "function", "function": given} if bare else given


_call = _tool
"""A call has the same shape around it."""


# ---- Typed parts -----------------------------------------------------------------------------------------


def _parts(row: dict[str, Any]) -> dict[str, Any]:
    """`messages` whose content is a list of parts: `type` text, reasoning or tool_call, and `value`."""
    messages = row.pop("messages", None)
    if not isinstance(messages, list):
        raise ValueError("a row of parts has messages, a list")  # noqa: TRY004 - of a row
    return {**row, "messages": [_of_parts(index, message) for index, message in enumerate(messages)]}


def _of_parts(index: int, message: Any) -> Any:
    if not isinstance(message, Mapping) or not isinstance(message.get("content"), list):
        return message
    found: dict[str, list[str]] = {"text": [], "reasoning": [], "tool_call": []}
    for part in message["content"]:
        kind, value = (part.get("type"), part.get("value")) if isinstance(part, Mapping) else (None, None)
        if kind not in found or not isinstance(value, str):
            raise ValueError(
                f"message {index} (from 0) has a part of type {kind}; there is {', '.join(found)}"
            )
        found[kind].append(value)
    calls = [
        _call(call)
        for text in found["tool_call"]
        for call in _json_list(f"the call of message {index} (from 0)", text)
    ]
    return {
        **message,
        "content": "".join(found["text"]) if found["text"] else None,
        **({"reasoning_content": "".join(found["reasoning"])} if found["reasoning"] else {}),
        **({"tool_calls": calls} if calls else {}),
    }


# ---- Shared ----------------------------------------------------------------------------------------------

FORMATS: Mapping[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "alpaca": _alpaca,
    "sharegpt": _sharegpt,
    "parts": _parts,
}
"""By name, what makes a row of messages of such a row; columns that it does not know stay."""


def _with_messages(row: dict[str, Any], messages: list[dict[str, Any]]) -> dict[str, Any]:
    """With the row's `system` before them."""
    if "messages" in row:
        raise ValueError("there is a column messages, too: leave out row_format, or ignore that column")
    system = _text(row, "system", "")
    if system and any(message["role"] == "system" for message in messages):
        raise ValueError("there is a column system, and a turn of the system's: leave one out")
    opening = [{"role": "system", "content": system}] if system else []
    return {**row, "messages": [*opening, *messages]}


def _text(row: dict[str, Any], name: str, default: str | None = None) -> str:
    """Takes the text out of the row."""
    found = row.pop(name, default)
    if not isinstance(found, str):
        said = "there is no" if found is None else f"{found!r} is no text:"
        raise ValueError(f"{said} {name}")  # noqa: TRY004 - of a row
    return found


def _json_list(name: str, given: Any) -> list[Any]:
    """A list, or one as JSON; one object is a list of it."""
    try:
        found = json.loads(given) if isinstance(given, str) else given
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name}: this is text and no JSON: {error}") from error
    return found if isinstance(found, list) else [found]
