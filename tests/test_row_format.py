"""Rows of other shapes, made rows of messages."""

from __future__ import annotations

import json
from typing import Any

import pytest

from assets import conversations
from conftest import needs_assets
from dskd.train.row_files import placed_rows
from dskd.train.row_format import FORMATS, RowFormat
from dskd.train.rows import Conversation, Plain, read_row


def said_by(row_format: RowFormat, row: dict[str, Any]) -> str:
    with pytest.raises(ValueError, match=r".") as raised:
        read_row(row_format(row))
    return str(raised.value)


# ---- Names -----------------------------------------------------------------------------------------------


def test_columns_get_the_names_that_are_wanted_and_others_are_left_out() -> None:
    made = RowFormat(columns={"prompt": "question", "completion": "answer"}, ignore=("id", "prompt"))
    assert made({"question": "a", "answer": "b", "id": 1, "prompt": "old"}) == {
        "prompt": "a",
        "completion": "b",
    }


def test_two_columns_may_change_names() -> None:
    made = RowFormat(columns={"prompt": "completion", "completion": "prompt"})
    assert made({"prompt": "b", "completion": "a"}) == {"prompt": "a", "completion": "b"}


def test_what_is_none_is_not_there() -> None:
    assert RowFormat(columns={"prompt": "question"})({"question": None, "prompt": "a", "x": None}) == {
        "prompt": "a"
    }


def test_a_name_that_is_taken_is_refused() -> None:
    said = said_by(
        RowFormat(columns={"prompt": "question"}), {"question": "a", "prompt": "b", "completion": "c"}
    )
    assert said.startswith("row_columns gives the name prompt to a column, and another has it; ")


def test_a_column_that_is_not_named_is_refused_all_the_same() -> None:
    said = said_by(RowFormat(columns={"prompt": "question"}), {"question": "a", "completion": "c", "id": 1})
    assert said.startswith("nobody would look at id: ")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"format": "alpacca"}, f"there is no row_format 'alpacca'; there is {', '.join(FORMATS)}"),
        ({"columns": {"prompt": "a", "completion": "a"}}, "a stands twice in row_columns and ignore_columns"),
        ({"columns": {"prompt": "a"}, "ignore": ("a",)}, "a stands twice in row_columns and ignore_columns"),
        ({"columns": {"prompt": 1}}, "row_columns={'prompt': 1}: each is a name of a column"),
    ],
    ids=str,
)
def test_a_format_that_cannot_be_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=r".") as raised:
        RowFormat(**given)
    assert str(raised.value) == message


def test_without_a_format_a_row_stays_as_it_is() -> None:
    assert read_row(RowFormat()({"text": "a"})) == Plain("", "a")


# ---- Alpaca ----------------------------------------------------------------------------------------------

ALPACA = RowFormat("alpaca")


def turn(role: str, content: str) -> dict[str, Any]:
    return {"role": role, "content": content}


@pytest.mark.parametrize("more", [{}, {"input": ""}, {"input": None, "system": ""}], ids=str)
def test_an_instruction_and_its_output(more: dict[str, Any]) -> None:
    row = {"instruction": "a", "output": "b", **more}
    assert read_row(ALPACA(row)) == Conversation([turn("user", "a"), turn("assistant", "b")])


def test_all_that_alpaca_has() -> None:
    row = {
        "instruction": "add",
        "input": "2 and 2",
        "output": "4",
        "system": "count",
        "history": [["q", "a"]],
    }
    assert read_row(ALPACA(row)) == Conversation(
        [
            turn("system", "count"),
            turn("user", "q"),
            turn("assistant", "a"),
            turn("user", "add\n2 and 2"),
            turn("assistant", "4"),
        ]
    )
    assert set(row) == {"instruction", "input", "output", "system", "history"}


def test_its_columns_may_have_other_names() -> None:
    made = RowFormat("alpaca", {"instruction": "question"})
    assert read_row(made({"question": "a", "output": "b"})) == read_row(
        ALPACA({"instruction": "a", "output": "b"})
    )


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"output": "b"}, "there is no instruction"),
        ({"instruction": "a"}, "there is no output"),
        ({"instruction": 7, "output": "b"}, "7 is no text: instruction"),
        ({"instruction": "a", "output": ""}, "message 1 (from 0) is the assistant's and empty"),
        (
            {"instruction": "a", "output": "b", "history": [["q"]]},
            "history is a list of pairs: what was asked, and what was answered",
        ),
        (
            {"instruction": "a", "output": "b", "messages": []},
            "there is a column messages, too: leave out row_format, or ignore that column",
        ),
    ],
    ids=str,
)
def test_a_row_that_is_no_alpaca_is_refused(row: dict[str, Any], message: str) -> None:
    assert said_by(ALPACA, row) == message


def test_the_whole_text_that_alpaca_has_beside_is_refused_by_name() -> None:
    said = said_by(ALPACA, {"instruction": "a", "output": "b", "text": "Below is ..."})
    assert said == "a row has messages, or prompt and completion, or text; this one has text, messages"


# ---- ShareGPT --------------------------------------------------------------------------------------------

SHAREGPT = RowFormat("sharegpt")
SPEAKERS = "system, human, user, gpt, assistant, observation, tool, function_call"
TOOL = {"name": "f", "description": "d", "parameters": {"type": "object", "properties": {}}}
FUNCTION = {"type": "function", "function": TOOL}


def spoken(who: str, value: str, **others: Any) -> dict[str, Any]:
    return {"from": who, "value": value, **others}


def test_turns_of_all_speakers() -> None:
    row = {
        "conversations": [
            spoken("human", "a"),
            spoken("function_call", '{"name": "f", "arguments": {"x": null}}'),
            spoken("observation", "4"),
            spoken("gpt", "b"),
            spoken("user", "c"),
            spoken("assistant", "d"),
        ],
        "system": "s",
        "tools": json.dumps([TOOL]),
    }
    call = {"type": "function", "function": {"name": "f", "arguments": {"x": None}}}
    assert read_row(SHAREGPT(row)) == Conversation(
        [
            turn("system", "s"),
            turn("user", "a"),
            {"role": "assistant", "content": None, "tool_calls": [call]},
            turn("tool", "4"),
            turn("assistant", "b"),
            turn("user", "c"),
            turn("assistant", "d"),
        ],
        [FUNCTION],
    )


@pytest.mark.parametrize("tools", [[TOOL], [FUNCTION], json.dumps([FUNCTION]), json.dumps(TOOL)], ids=str)
def test_tools_are_functions_however_they_are_written(tools: Any) -> None:
    row = {"conversations": [spoken("human", "a"), spoken("gpt", "b")], "tools": tools}
    found = read_row(SHAREGPT(row))
    assert isinstance(found, Conversation)
    assert found.tools == [FUNCTION]


def test_one_turn_may_call_several() -> None:
    calls = [{"name": "f", "arguments": {}}, {"name": "g", "arguments": {"x": 1}}]
    found = read_row(
        SHAREGPT({"conversations": [spoken("human", "a"), spoken("function_call", json.dumps(calls))]})
    )
    assert isinstance(found, Conversation)
    assert [call["function"] for call in found.messages[1]["tool_calls"]] == calls


def test_what_a_turn_has_besides_stays() -> None:
    found = read_row(SHAREGPT({"conversations": [spoken("human", "a"), spoken("gpt", "b", weight=0)]}))
    assert isinstance(found, Conversation)
    assert found.messages[1] == {**turn("assistant", "b"), "weight": 0}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({}, "a row of sharegpt has conversations, a list of turns"),
        ({"conversations": [{"from": "human"}]}, "turn 0 (from 0) has no from and value, the text"),
        (
            {"conversations": [spoken("bing", "a")]},
            f"turn 0 (from 0) is from 'bing'; there is {SPEAKERS}",
        ),
        (
            {"conversations": [spoken("system", "a"), spoken("gpt", "b")], "system": "s"},
            "there is a column system, and a turn of the system's: leave one out",
        ),
    ],
    ids=str,
)
def test_a_row_that_is_no_sharegpt_is_refused(row: dict[str, Any], message: str) -> None:
    assert said_by(SHAREGPT, row) == message


def test_a_call_that_is_no_json_is_refused() -> None:
    text = said_by(SHAREGPT, {"conversations": [spoken("human", "a"), spoken("function_call", "f()")]})
    assert text.startswith("the call of turn 1 (from 0): this is text and no JSON: ")


def test_conversations_of_roles_and_contents_need_only_another_name() -> None:
    made = RowFormat(columns={"messages": "conversations"})
    turns = [turn("user", "a"), turn("assistant", "b")]
    assert read_row(made({"conversations": turns})) == Conversation(turns)


# ---- Typed parts -----------------------------------------------------------------------------------------

PARTS = RowFormat("parts")


def part(kind: str, value: str) -> dict[str, str]:
    return {"type": kind, "value": value}


def test_parts_are_text_thoughts_and_calls() -> None:
    thought = [part("reasoning", "so"), part("tool_call", '{"name": "f", "arguments": {}}')]
    answer = [part("reasoning", "then"), part("text", "b"), part("text", "c")]
    row = {
        "messages": [
            {"role": "user", "content": [part("text", "a")]},
            {"role": "assistant", "content": thought},
            turn("tool", "4"),
            {"role": "assistant", "content": answer},
        ]
    }
    call = {"type": "function", "function": {"name": "f", "arguments": {}}}
    assert read_row(PARTS(row)) == Conversation(
        [
            turn("user", "a"),
            {"role": "assistant", "content": None, "reasoning_content": "so", "tool_calls": [call]},
            turn("tool", "4"),
            {**turn("assistant", "bc"), "reasoning_content": "then"},
        ]
    )


def test_parts_of_another_type_are_refused() -> None:
    row = {"messages": [{"role": "user", "content": [part("image", "x")]}]}
    assert said_by(PARTS, row) == (
        "message 0 (from 0) has a part of type image; there is text, reasoning, tool_call"
    )


# ---- Real rows -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "row_format", "rows"),
    [
        ("alpaca_en", ALPACA, 999),
        ("alpaca_zh", ALPACA, 1000),
        ("glaive_toolcall_en", SHAREGPT, 300),
        ("glaive_toolcall_zh", SHAREGPT, 300),
        ("reason_tool_use", PARTS, 50),
        ("c4", RowFormat(), 300),
    ],
    ids=str,
)
def test_real_rows_of_every_format_are_read(name: str, row_format: RowFormat, rows: int) -> None:
    path = needs_assets(lambda: conversations(name))
    found = [row_format(row) for _, row in placed_rows(str(path)) if isinstance(row, dict)]
    assert len([read_row(row) for row in found]) == rows


def test_real_calls_thoughts_and_results_are_told_apart() -> None:
    path = needs_assets(lambda: conversations("reason_tool_use"))
    rows = [row for _, row in placed_rows(str(path)) if isinstance(row, dict)]
    read = [read_row(PARTS(row)) for row in rows]
    turns = [turn for one in read if isinstance(one, Conversation) for turn in one.messages]
    parts = [part for row in rows for turn in row["messages"] for part in turn["content"]]
    for kind, count in (
        ("reasoning", sum("reasoning_content" in turn for turn in turns)),
        ("tool_call", sum(len(turn.get("tool_calls", [])) for turn in turns)),
        ("text", sum(turn["content"] is not None for turn in turns)),
    ):
        assert count == sum(part["type"] == kind for part in parts) > 0, kind
    arguments = [call["function"]["arguments"] for turn in turns for call in turn.get("tool_calls", [])]
    assert {type(one) for one in arguments} == {dict}
