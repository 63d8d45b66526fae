"""What a row may be: a conversation, or plain text.

`messages`, any number of turns; or `prompt` and `completion`, both strings or both lists of messages; or
`text`. Beside messages stand `tools` and `chat_template_kwargs`. Other columns are refused: nobody would
look at them.

Which fields of a message a template looks at is known to who renders it, so here they stay as they are.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["COLUMNS", "Conversation", "Plain", "read_row"]

COLUMNS = ("messages", "prompt", "completion", "text", "tools", "chat_template_kwargs")
"""All that a row may have."""

ASSISTANT = "assistant"

_WRITTEN = ("content", "reasoning_content", "reasoning", "thinking", "tool_calls")
"""What an assistant writes; a turn without any of it is empty."""

_WAYS = "a row has messages, or prompt and completion, or text"
_OF_TEMPLATE = ("tools", "chat_template_kwargs")
# What is not the row's to say: the call that renders it does.
_RESERVED = frozenset(
    {
        "messages",
        "conversation",
        "tools",
        "tokenize",
        "add_generation_prompt",
        "continue_final_message",
        "return_dict",
        "return_tensors",
        "return_assistant_tokens_mask",
        "padding",
        "truncation",
        "max_length",
    }
)


@dataclass(frozen=True, slots=True)
class Conversation:
    """Turns that a template renders.

    Attributes:
        messages: each with `role`, `content` (None where the row has none), and what else the row says of it;
            arguments of tool calls are objects.
        tools: what the assistant may call, as JSON schemas.
        template_kwargs: what else the template is told.
        prompt_messages: assistant turns among the first so many are context only.
    """

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None = None
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    prompt_messages: int = 0


@dataclass(frozen=True, slots=True)
class Plain:
    """Text without turns.

    Attributes:
        prompt: what the completion goes on from; empty for a row of `text`.
        completion: what the student writes.
    """

    prompt: str
    completion: str


def read_row(row: Mapping[str, Any]) -> Conversation | Plain:
    """What a row says. A column that is None is none: Arrow fills with it.

    Raises:
        ValueError: what is wrong with the row; in which file and where its caller knows.
    """
    given = {name: value for name, value in row.items() if value is not None}
    _refuse_other_columns(given)
    ways = {name for name in given if name not in _OF_TEMPLATE}
    if ways == {"messages"}:
        return _conversation(given, _messages("", given["messages"]))
    if ways == {"text"}:
        return _plain(given, "", "text")
    if ways == {"prompt", "completion"}:
        return _prompted(given)
    raise ValueError(f"{_WAYS}; this one has {', '.join(given) or 'nothing'}")


def _refuse_other_columns(given: Mapping[str, Any]) -> None:
    if others := sorted(map(str, given.keys() - set(COLUMNS))):
        names = ", ".join(others)
        raise ValueError(
            f"nobody would look at {names}: {_WAYS}, and beside messages tools and chat_template_kwargs; "
            f"rename with row_columns, or leave out with ignore_columns: [{names}]"
        )


def _prompted(given: Mapping[str, Any]) -> Conversation | Plain:
    prompt, completion = given["prompt"], given["completion"]
    if isinstance(prompt, str) and isinstance(completion, str):
        return _plain(given, prompt, "completion")
    if not isinstance(prompt, list) or not isinstance(completion, list):
        kinds = f"{type(prompt).__name__} and {type(completion).__name__}"
        raise ValueError(  # noqa: TRY004 - of a row
            f"prompt and completion are {kinds}; both are strings, or both are lists of messages"
        )
    context, written = _messages(" of the prompt", prompt), _messages(" of the completion", completion)
    return _conversation(given, [*context, *written], len(context))


def _plain(given: Mapping[str, Any], prompt: str, name: str) -> Plain:
    written = given[name]
    if not isinstance(written, str):
        raise ValueError(f"{name} is {_kind(written)}; it is a string")  # noqa: TRY004 - of a row
    if not written:
        raise ValueError(f"the {name} is empty")
    if unused := [column for column in _OF_TEMPLATE if given.get(column)]:
        raise ValueError(f"nobody would look at {', '.join(unused)}: plain text has no template")
    for part, text in (("prompt", prompt), (name, written)):
        _refuse_unwritable(f"the {part}", text)
    return Plain(prompt, written)


def _conversation(
    given: Mapping[str, Any], messages: list[dict[str, Any]], prompt_messages: int = 0
) -> Conversation:
    written = [
        (index, message)
        for index, message in enumerate(messages[prompt_messages:])
        if message["role"] == ASSISTANT
    ]
    where = " of the completion" if prompt_messages else ""
    if not written:
        raise ValueError(f"no message{where} is the assistant's: there is nothing to learn")
    for index, message in written:
        if not any(message.get(name) for name in _WRITTEN):
            raise ValueError(f"message {index} (from 0){where} is the assistant's and empty")
    return Conversation(
        messages,
        _tools(given.get("tools")),
        _template_kwargs(given.get("chat_template_kwargs")),
        prompt_messages,
    )


# ---- Messages --------------------------------------------------------------------------------------------


def _messages(where: str, given: Any) -> list[dict[str, Any]]:
    found = _from_json("messages", given)
    if not isinstance(found, list):
        raise ValueError(f"messages are {_kind(found)}; they are a list of messages")  # noqa: TRY004
    if not found:
        raise ValueError(f"there are no messages{where}")
    return [_message(f"message {index} (from 0){where}", message) for index, message in enumerate(found)]


def _message(place: str, given: Any) -> dict[str, Any]:
    if not isinstance(given, Mapping):
        raise ValueError(f"{place} is {_kind(given)}; it is a role and a content")  # noqa: TRY004
    role, content = given.get("role"), _content(place, given.get("content"))
    if not isinstance(role, str) or not role:
        raise ValueError(f"{place} has no role")
    if content is None and role != ASSISTANT:
        raise ValueError(f"{place}, of the {role}, has no content")
    others = {
        name: value for name, value in given.items() if value is not None and name not in {"role", "content"}
    }
    for name, value in (("content", content), *others.items()):
        _refuse_unwritable(f"the {name} of {place}", value)
    calls = _tool_calls(place, others.pop("tool_calls", None))
    return {"role": role, "content": content, **others, **({"tool_calls": calls} if calls else {})}


def _content(place: str, given: Any) -> str | None:
    """The text of a content; that of parts is joined."""
    if given is None or isinstance(given, str):
        return given
    if not isinstance(given, list):
        raise ValueError(f"the content of {place} is {_kind(given)}; it is a string")  # noqa: TRY004
    return "".join(_part(place, part) for part in given)


def _part(place: str, part: Any) -> str:
    kind = part.get("type") if isinstance(part, Mapping) else None
    text = part.get("text") if kind == "text" else None
    if isinstance(text, str):
        return text
    raise ValueError(
        f"the content of {place} has a part of type {kind}; parts are text: {{'type': 'text', 'text': ...}}"
    )


def _tool_calls(place: str, given: Any) -> list[dict[str, Any]]:
    found = _from_json(f"tool_calls of {place}", given or [])
    if not isinstance(found, list):
        raise ValueError(f"tool_calls of {place} are {_kind(found)}; they are a list")  # noqa: TRY004
    return [_tool_call(f"tool call {index} (from 0) of {place}", call) for index, call in enumerate(found)]


def _tool_call(place: str, given: Any) -> dict[str, Any]:
    """The call with its arguments as an object: OpenAI has them as text, templates expect an object."""
    if not isinstance(given, Mapping):
        raise ValueError(f"{place} is {_kind(given)}; it is a function")  # noqa: TRY004
    call = {name: value for name, value in given.items() if value is not None}
    if isinstance(call.get("function"), Mapping):
        return {**call, "function": _tool_call(place, call["function"])}
    if not isinstance(call.get("name"), str):
        raise ValueError(f"{place} has no name")  # noqa: TRY004 - of a row
    if isinstance(call.get("arguments"), str):
        call["arguments"] = _object(f"the arguments of {place}", call["arguments"])
    return call


# ---- Beside them -----------------------------------------------------------------------------------------


def _tools(given: Any) -> list[dict[str, Any]] | None:
    found = _from_json("tools", given or [])
    if not isinstance(found, list) or not all(isinstance(tool, Mapping) for tool in found):
        raise ValueError("tools are a list of objects, or such a list as JSON")
    _refuse_unwritable("tools", found)
    return [dict(tool) for tool in found] or None


def _template_kwargs(given: Any) -> dict[str, Any]:
    found = _object("chat_template_kwargs", given or {})
    _refuse_unwritable("chat_template_kwargs", found)
    if reserved := sorted(_RESERVED & found.keys()):
        raise ValueError(f"chat_template_kwargs has {', '.join(reserved)}, which is not for a row to say")
    return found


def _object(name: str, given: Any) -> dict[str, Any]:
    """An object, or one as JSON; nothing at all is an empty one."""
    found = {} if isinstance(given, str) and not given.strip() else _from_json(name, given)
    if not isinstance(found, Mapping):
        raise ValueError(f"{name}: this is {_kind(found)}, and should be an object")  # noqa: TRY004
    return dict(found)


def _from_json(name: str, given: Any) -> Any:
    if not isinstance(given, str):
        return given
    try:
        return json.loads(given)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name}: this is text and no JSON: {error}") from error


def _refuse_unwritable(name: str, value: Any) -> None:
    """What is no JSON, or has one half of a surrogate pair, which JSON can spell: no tokenizer takes it."""
    try:
        text = value if isinstance(value, str) else _ENCODER.encode(value)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{name} cannot be JSON: {error}") from error
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"{name} has half a character: {error}") from error


_ENCODER = json.JSONEncoder(ensure_ascii=False)
_KINDS = {str: "a string", list: "a list", dict: "an object", bool: "true or false"}
_KINDS |= {int: "a number", float: "a number", type(None): "null"}


def _kind(value: Any) -> str:
    return _KINDS.get(type(value), f"a {type(value).__name__}")
