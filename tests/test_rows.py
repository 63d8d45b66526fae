"""What a row may be, what it says, and one sentence for each way in which it is not as it should be."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from dskd.train.rows import Conversation, Plain, read_row

SYSTEM = {"role": "system", "content": "s"}
USER = {"role": "user", "content": "a"}
ANSWER = {"role": "assistant", "content": "b"}


def refused(row: dict[str, Any]) -> str:
    with pytest.raises(ValueError, match=r".") as raised:
        read_row(row)
    return str(raised.value)


# ---- What a row says -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "plain"),
    [
        ({"prompt": "a", "completion": "b"}, Plain("a", "b")),
        ({"prompt": "", "completion": " ü\n"}, Plain("", " ü\n")),
        ({"text": "a b"}, Plain("", "a b")),
        ({"text": "a", "prompt": None, "completion": None, "tools": None, "id": None}, Plain("", "a")),
        ({"text": "12", "tools": []}, Plain("", "12")),
    ],
    ids=str,
)
def test_strings_are_plain_text(row: dict[str, Any], plain: Plain) -> None:
    assert read_row(row) == plain


TURNS = [SYSTEM, USER, ANSWER, {"role": "user", "content": ""}, {"role": "assistant", "content": "c"}]


def test_messages_are_a_conversation_as_they_stand() -> None:
    assert read_row({"messages": TURNS}) == Conversation(TURNS)


def test_a_conversation_may_end_with_its_user() -> None:
    assert read_row({"messages": [USER, ANSWER, USER]}) == Conversation([USER, ANSWER, USER])


def test_a_prompt_of_messages_is_context() -> None:
    row = {"prompt": [SYSTEM, USER, ANSWER, USER], "completion": [ANSWER]}
    assert read_row(row) == Conversation([SYSTEM, USER, ANSWER, USER, ANSWER], prompt_messages=4)


def test_a_completion_may_have_several_messages() -> None:
    completion = [ANSWER, {"role": "tool", "content": "4"}, ANSWER]
    assert read_row({"prompt": [USER], "completion": completion}) == Conversation(
        [USER, *completion], prompt_messages=1
    )


def test_what_is_none_in_a_message_is_left_out_and_its_content_is_always_there() -> None:
    call = {"function": {"name": "f", "arguments": {"x": None}}}
    given = {"content": None, "role": "assistant", "name": None, "tool_calls": [{**call, "id": None}]}
    for message in (given, {key: value for key, value in given.items() if value is not None}):
        found = read_row({"messages": [{**USER, "tool_calls": None}, message]})
        assert found == Conversation([USER, {"role": "assistant", "content": None, "tool_calls": [call]}])


def test_fields_that_only_a_template_knows_stay() -> None:
    turn = {**ANSWER, "reasoning_content": "r", "prefix": True, "weight": 0}
    assert read_row({"messages": [USER, turn]}) == Conversation([USER, turn])


def test_parts_of_text_are_joined() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b\n", "other": None}]
    assert read_row({"messages": [{**USER, "content": parts}, ANSWER]}) == Conversation(
        [{**USER, "content": "ab\n"}, ANSWER]
    )


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning", "thinking"])
def test_a_turn_that_only_thinks_is_not_empty(field: str) -> None:
    turn = {"role": "assistant", "content": "", field: "so"}
    assert read_row({"messages": [USER, turn]}) == Conversation([USER, turn])


CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": {"x": [1, None], "y": 0.1}}}


@pytest.mark.parametrize("as_text", [False, True], ids=["objects", "text"])
def test_arguments_of_a_call_are_an_object(as_text: bool) -> None:
    arguments = CALL["function"]["arguments"]  # type: ignore[index]
    given = json.dumps(arguments) if as_text else arguments
    for wrapped, right in (
        ({**CALL, "function": {"name": "f", "arguments": given}}, CALL),
        ({"name": "f", "arguments": given}, {"name": "f", "arguments": arguments}),
    ):
        found = read_row({"messages": [USER, {"role": "assistant", "tool_calls": [wrapped]}]})
        assert found == Conversation([USER, {"role": "assistant", "content": None, "tool_calls": [right]}])


def test_no_arguments_are_an_empty_object() -> None:
    turn = {"role": "assistant", "tool_calls": [{"name": "f", "arguments": ""}]}
    found = read_row({"messages": [turn]})
    assert isinstance(found, Conversation)
    assert found.messages[0]["tool_calls"] == [{"name": "f", "arguments": {}}]


def test_an_empty_list_of_calls_is_none() -> None:
    assert read_row({"messages": [USER, {**ANSWER, "tool_calls": []}]}) == Conversation([USER, ANSWER])


TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"default": None}}}]


@pytest.mark.parametrize("as_text", [False, True], ids=["objects", "text"])
def test_tools_and_template_kwargs_are_the_rows(as_text: bool) -> None:
    kwargs = {"enable_thinking": False, "date": None}
    row = {"messages": [USER, ANSWER], "tools": TOOLS, "chat_template_kwargs": kwargs}
    given = {name: json.dumps(value) for name, value in row.items()} if as_text else row
    assert read_row(given) == Conversation([USER, ANSWER], TOOLS, kwargs)


@pytest.mark.parametrize("nothing", [None, "", [], "[]"], ids=repr)
def test_no_tools_are_none(nothing: Any) -> None:
    assert read_row({"messages": [USER, ANSWER], "tools": nothing}) == Conversation([USER, ANSWER])


@pytest.mark.parametrize("nothing", [None, "", {}, "{}"], ids=repr)
def test_no_template_kwargs_are_none(nothing: Any) -> None:
    assert read_row({"messages": [USER, ANSWER], "chat_template_kwargs": nothing}) == Conversation(
        [USER, ANSWER]
    )


def test_the_row_is_not_changed() -> None:
    row = {
        "messages": [USER, {"role": "assistant", "tool_calls": [{"name": "f", "arguments": "{}"}], "x": None}]
    }
    before = json.dumps(row)
    read_row(row)
    assert json.dumps(row) == before


# ---- What is refused -------------------------------------------------------------------------------------

WAYS = "a row has messages, or prompt and completion, or text"
BOTH = "both are strings, or both are lists of messages"
SHAPES: list[tuple[dict[str, Any], str]] = [
    ({}, f"{WAYS}; this one has nothing"),
    ({"prompt": "a"}, f"{WAYS}; this one has prompt"),
    ({"prompt": "a", "completion": None}, f"{WAYS}; this one has prompt"),
    ({"tools": TOOLS}, f"{WAYS}; this one has tools"),
    ({"messages": [USER, ANSWER], "text": "a"}, f"{WAYS}; this one has messages, text"),
    ({"prompt": 1, "completion": 2}, f"prompt and completion are int and int; {BOTH}"),
    ({"prompt": "a", "completion": [ANSWER]}, f"prompt and completion are str and list; {BOTH}"),
    ({"prompt": [USER], "completion": "a"}, f"prompt and completion are list and str; {BOTH}"),
    ({"prompt": "a", "completion": ""}, "the completion is empty"),
    ({"text": ""}, "the text is empty"),
    ({"text": 7}, "text is a number; it is a string"),
    ({"text": "a", "tools": TOOLS}, "nobody would look at tools: plain text has no template"),
    (
        {"prompt": "a", "completion": "b", "chat_template_kwargs": {"x": 1}},
        "nobody would look at chat_template_kwargs: plain text has no template",
    ),
    ({"messages": {}}, "messages are an object; they are a list of messages"),
    ({"messages": []}, "there are no messages"),
    ({"messages": "[1"}, "messages: this is text and no JSON: "),
    ({"prompt": [], "completion": [ANSWER]}, "there are no messages of the prompt"),
    ({"prompt": [USER], "completion": []}, "there are no messages of the completion"),
]


@pytest.mark.parametrize(("row", "message"), SHAPES, ids=str)
def test_a_row_of_another_shape_is_refused(row: dict[str, Any], message: str) -> None:
    said = refused(row)
    assert said.startswith(message) if message.endswith(": ") else said == message


def test_columns_that_nobody_would_look_at_are_refused_by_name() -> None:
    said = refused({"messages": [USER, ANSWER], "source": "web", "id": 0, "empty": None})
    assert said.startswith("nobody would look at id, source: ")
    assert said.endswith("leave out with ignore_columns: [id, source]")


PARTS = "parts are text: {'type': 'text', 'text': ...}"
CALLED = "tool call 0 (from 0) of message 1 (from 0)"
MESSAGES: list[tuple[Any, str]] = [
    ("hello", "message 1 (from 0) is a string; it is a role and a content"),
    ({"content": "b"}, "message 1 (from 0) has no role"),
    ({"role": "", "content": "b"}, "message 1 (from 0) has no role"),
    ({"role": "user"}, "message 1 (from 0), of the user, has no content"),
    ({"role": "user", "content": {"a": 1}}, "the content of message 1 (from 0) is an object; it is a string"),
    (
        {"role": "user", "content": [{"type": "image", "url": "x"}]},
        f"the content of message 1 (from 0) has a part of type image; {PARTS}",
    ),
    (
        {"role": "user", "content": ["a"]},
        f"the content of message 1 (from 0) has a part of type None; {PARTS}",
    ),
    ({"role": "assistant"}, "message 1 (from 0) is the assistant's and empty"),
    ({"role": "assistant", "content": "", "name": "x"}, "message 1 (from 0) is the assistant's and empty"),
    (
        {"role": "assistant", "tool_calls": {"a": 1}},
        "tool_calls of message 1 (from 0) are an object; they are a list",
    ),
    ({"role": "assistant", "tool_calls": [{}]}, f"{CALLED} has no name"),
    (
        {"role": "assistant", "tool_calls": [{"function": {"arguments": {}}}]},
        f"{CALLED} has no name",
    ),
    (
        {"role": "assistant", "tool_calls": [{"name": "f", "arguments": "[]"}]},
        f"the arguments of {CALLED}: this is a list, and should be an object",
    ),
    (
        {"role": "assistant", "tool_calls": [{"name": "f", "arguments": "{'x': 1}"}]},
        f"the arguments of {CALLED}: this is text and no JSON",
    ),
]


@pytest.mark.parametrize(("message", "said"), MESSAGES, ids=str)
def test_a_message_that_is_not_as_it_should_be_is_refused(message: Any, said: str) -> None:
    assert refused({"messages": [USER, message, ANSWER]}).partition(": Expecting ")[0] == said


def test_a_message_of_a_prompt_is_told_from_one_of_a_completion() -> None:
    for name, other in (("prompt", "completion"), ("completion", "prompt")):
        row = {name: [{"role": "user"}], other: [ANSWER]}
        assert refused(row) == f"message 0 (from 0) of the {name}, of the user, has no content"


@pytest.mark.parametrize(
    ("row", "where"),
    [
        ({"messages": [SYSTEM, USER]}, ""),
        ({"prompt": [USER, ANSWER], "completion": [USER]}, " of the completion"),
    ],
    ids=str,
)
def test_a_row_without_a_turn_of_the_assistants_is_refused(row: dict[str, Any], where: str) -> None:
    assert refused(row) == f"no message{where} is the assistant's: there is nothing to learn"


def test_an_empty_turn_of_the_assistants_may_stand_in_a_prompt() -> None:
    empty = {"role": "assistant", "content": ""}
    assert read_row({"prompt": [USER, empty], "completion": [ANSWER]}) == Conversation(
        [USER, empty, ANSWER], prompt_messages=2
    )
    said = refused({"prompt": [USER], "completion": [ANSWER, empty]})
    assert said == "message 1 (from 0) of the completion is the assistant's and empty"


@pytest.mark.parametrize("tools", [{"name": "f"}, ["f"], "f", '"f"', 7], ids=repr)
def test_tools_that_are_no_list_of_objects_are_refused(tools: Any) -> None:
    assert re.match("tools(:| are a list of objects)", refused({"messages": [USER, ANSWER], "tools": tools}))


@pytest.mark.parametrize("kwargs", ["x", "[1]", [1], 7], ids=repr)
def test_template_kwargs_that_are_no_object_are_refused(kwargs: Any) -> None:
    row = {"messages": [USER, ANSWER], "chat_template_kwargs": kwargs}
    assert refused(row).startswith("chat_template_kwargs: this is ")


def test_template_kwargs_cannot_say_what_the_renderer_says() -> None:
    kwargs = {"add_generation_prompt": True, "x": 1, "tokenize": True}
    said = refused({"messages": [USER, ANSWER], "chat_template_kwargs": kwargs})
    assert said == "chat_template_kwargs has add_generation_prompt, tokenize, which is not for a row to say"


HALF = "a\ud83d"


@pytest.mark.parametrize(
    ("row", "name"),
    [
        ({"text": HALF}, "the text"),
        ({"prompt": HALF, "completion": "b"}, "the prompt"),
        ({"messages": [USER, {**ANSWER, "content": HALF}]}, "the content of message 1 (from 0)"),
        ({"messages": [USER, {**ANSWER, "thinking": HALF}]}, "the thinking of message 1 (from 0)"),
        (
            {"messages": [{"role": "assistant", "tool_calls": [{"name": "f", "arguments": {"x": [HALF]}}]}]},
            "the tool_calls of message 0 (from 0)",
        ),
        ({"messages": [USER, ANSWER], "tools": [{"name": HALF}]}, "tools"),
        ({"messages": [USER, ANSWER], "chat_template_kwargs": {"x": HALF}}, "chat_template_kwargs"),
    ],
    ids=["text", "prompt", "content", "thinking", "call", "tools", "kwargs"],
)
def test_half_a_character_is_refused(row: dict[str, Any], name: str) -> None:
    assert refused(row).startswith(f"{name} has half a character: ")


@pytest.mark.parametrize(
    ("row", "name"),
    [
        ({"messages": [USER, {**ANSWER, "image": b"x"}]}, "the image of message 1 (from 0)"),
        ({"messages": [USER, ANSWER], "tools": [{"name": b"x"}]}, "tools"),
        ({"messages": [USER, ANSWER], "chat_template_kwargs": {"x": b"x"}}, "chat_template_kwargs"),
    ],
    ids=["message", "tools", "kwargs"],
)
def test_what_is_no_json_is_refused(row: dict[str, Any], name: str) -> None:
    assert refused(row) == f"{name} cannot be JSON: Object of type bytes is not JSON serializable"
