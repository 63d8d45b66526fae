"""Rows from files: what a row must have, and one sentence for each way in which it has not."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dskd.train import load_rows

if TYPE_CHECKING:
    from pathlib import Path

GOOD = [{"prompt": "a", "completion": "b"}, {"prompt": "", "completion": " ü\n"}]
MESSAGES = [
    {
        "prompt": [{"role": "system", "content": "s"}, {"role": "user", "content": "a"}],
        "completion": [{"role": "assistant", "content": "b"}],
    },
    {"prompt": [{"role": "user", "content": ""}], "completion": [{"role": "assistant", "content": "c"}]},
]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def written(path: Path, rows: list[dict[str, Any]]) -> str:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("rows", [GOOD, MESSAGES], ids=["strings", "messages"])
@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.parquet"])
def test_rows_are_what_the_file_holds(name: str, rows: list[dict[str, Any]], tmp_path: Path) -> None:
    assert list(load_rows(written(tmp_path / name, rows))) == rows


def test_more_columns_are_kept(tmp_path: Path) -> None:
    rows = [{**row, "id": index} for index, row in enumerate(GOOD)]
    assert list(load_rows(written(tmp_path / "rows.jsonl", rows))) == rows


def test_a_folder_of_a_data_set_and_its_split(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    written(folder / "train.jsonl", GOOD)
    written(folder / "test.jsonl", GOOD[:1])
    assert list(load_rows(str(folder))) == GOOD
    assert list(load_rows(str(folder), split="test")) == GOOD[:1]


STRINGS_OR_MESSAGES = r"both are strings, or both are lists of messages"
ONE_MESSAGE = r"the completion is one message with a content"
USER = [{"role": "user", "content": "a"}]

MALFORMED: list[tuple[dict[str, Any], str]] = [
    ({"prompt": "a", "completion": ""}, "the completion is empty"),
    (
        {"prompt": "a", "completion": None},
        rf"prompt and completion are str and NoneType; {STRINGS_OR_MESSAGES}",
    ),
    (
        {"prompt": None, "completion": "b"},
        rf"prompt and completion are NoneType and str; {STRINGS_OR_MESSAGES}",
    ),
]
MALFORMED_MESSAGES: list[tuple[dict[str, Any], str]] = [
    ({"prompt": USER, "completion": []}, ONE_MESSAGE),
    ({"prompt": USER, "completion": [*USER, *USER]}, ONE_MESSAGE),
    ({"prompt": USER, "completion": [{"role": "assistant", "content": ""}]}, ONE_MESSAGE),
    ({"prompt": USER, "completion": [{"role": "assistant", "content": None}]}, ONE_MESSAGE),
    (
        {"prompt": USER, "completion": None},
        rf"prompt and completion are list and NoneType; {STRINGS_OR_MESSAGES}",
    ),
]


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.parquet"])
@pytest.mark.parametrize(
    ("good", "row", "message"),
    [
        *((GOOD, row, message) for row, message in MALFORMED),
        *((MESSAGES, row, message) for row, message in MALFORMED_MESSAGES),
    ],
    ids=str,
)
def test_a_malformed_row_is_named(
    name: str, good: list[dict[str, Any]], row: dict[str, Any], message: str, tmp_path: Path
) -> None:
    path = written(tmp_path / name, [*good, row, *good, row])
    with pytest.raises(ValueError, match=rf"^{path}, row 2 \(from 0\): {message}$"):
        load_rows(path)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": 1, "completion": 2}, rf"prompt and completion are int and int; {STRINGS_OR_MESSAGES}"),
        (
            {"prompt": "a", "completion": USER},
            rf"prompt and completion are str and list; {STRINGS_OR_MESSAGES}",
        ),
        (
            {"prompt": USER, "completion": "a"},
            rf"prompt and completion are list and str; {STRINGS_OR_MESSAGES}",
        ),
        ({"prompt": USER, "completion": [{"role": "assistant"}]}, ONE_MESSAGE),
    ],
    ids=str,
)
def test_a_file_of_nothing_but_malformed_rows(row: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = written(tmp_path / "rows.jsonl", [row])
    with pytest.raises(ValueError, match=rf"^{path}, row 0 \(from 0\): {message}$"):
        load_rows(path)


@pytest.mark.parametrize(
    "malformed", [["just a string"], [], [{"role": "user"}], [{"content": "no role"}]], ids=str
)
def test_a_malformed_prompt_of_messages_is_named(malformed: list[Any], tmp_path: Path) -> None:
    row = {"prompt": malformed, "completion": [{"role": "assistant", "content": "b"}]}
    path = written(tmp_path / "rows.jsonl", [row])
    with pytest.raises(ValueError, match=rf"^{path}, row 0 \(from 0\): "):
        load_rows(path)


def test_a_malformed_completion_of_messages_that_are_strings_is_named(tmp_path: Path) -> None:
    path = written(tmp_path / "rows.jsonl", [{"prompt": USER, "completion": ["just a string"]}])
    with pytest.raises(ValueError, match=rf"^{path}, row 0 \(from 0\): {ONE_MESSAGE}$"):
        load_rows(path)


@pytest.mark.parametrize(
    ("row", "missing"),
    [
        ({"text": "a", "completion": "b"}, "no column prompt, only text, completion"),
        ({"prompt": "a", "answer": "b"}, "no column completion, only prompt, answer"),
        ({"text": "a"}, "no column completion and no column prompt, only text"),
    ],
    ids=str,
)
@pytest.mark.parametrize("name", ["rows.jsonl", "rows.parquet"])
def test_missing_columns_are_named_with_those_that_are_there(
    name: str, row: dict[str, Any], missing: str, tmp_path: Path
) -> None:
    path = written(tmp_path / name, [row])
    with pytest.raises(ValueError, match=rf"^{path} has {missing}; rename them"):
        load_rows(path)


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.parquet"])
def test_a_missing_file_is_named(name: str, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=rf"^there is no file {tmp_path / name}$"):
        load_rows(str(tmp_path / name))


def test_a_parquet_file_without_rows_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    pq.write_table(
        pa.table({"prompt": pa.array([], pa.string()), "completion": pa.array([], pa.string())}), path
    )
    with pytest.raises(ValueError, match=rf"^{path} has no rows$"):
        load_rows(str(path))


@pytest.mark.parametrize("text", ["", "\n", " \n\n"], ids=repr)
def test_an_empty_file_of_lines_has_no_rows(text: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=rf"^{path} has no rows$"):
        load_rows(str(path))


def test_a_line_that_is_no_json_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "a", "completion": "b"}\n{"prompt": \n', encoding="utf-8")
    with pytest.raises(ValueError, match=str(path)):
        load_rows(str(path))
