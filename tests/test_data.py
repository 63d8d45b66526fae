"""Rows from files, folders and data sets: as they stand there, checked, and each fault with its place."""

from __future__ import annotations

import csv
import gzip
import json
import logging
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from torch.utils.data import DataLoader

from dskd.train import script
from dskd.train.data import check_rows, load_rows
from dskd.train.row_format import FORMATS, RowFormat
from dskd.train.rows import COLUMNS, Conversation, read_row

if TYPE_CHECKING:
    from collections.abc import Iterator

USER = {"role": "user", "content": "a"}
ANSWER = {"role": "assistant", "content": "b"}
STRINGS = [
    {"prompt": "a", "completion": "b"},
    {"prompt": "", "completion": " ü\u2028\n"},
    {"prompt": "1", "completion": "2"},
]
PROMPTED = [
    {"prompt": [{"role": "system", "content": "s"}, USER], "completion": [ANSWER]},
    {"prompt": [{"role": "user", "content": ""}], "completion": [{"role": "assistant", "content": "c"}]},
]
TEXTS = [{"text": "a"}, {"text": "[1]"}, {"text": "\x1e{}"}]


def calling(**arguments: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": None, "tool_calls": [{"name": "f", "arguments": arguments}]}


# Objects that share no keys, whose nulls are said, and numbers that a quick reader changes.
CALLS: list[dict[str, Any]] = [
    {
        "messages": [
            USER,
            calling(x=None, near=0.1 + 0.2, many=10**30),
            {"role": "tool", "content": "4"},
            ANSWER,
        ],
        "tools": [{"name": "f", "parameters": {"default": None, "x": {"type": "number"}}}],
    },
    {
        "messages": [USER, calling(x="text"), {**ANSWER, "reasoning_content": "so"}],
        "tools": [{"name": "g", "parameters": {"y": [1, "two", {"z": {}}]}}],
    },
    {"messages": [USER, calling(x=[1], deep={"y": {"z": 1}})], "tools": []},
]
KINDS = {"strings": STRINGS, "prompted": PROMPTED, "texts": TEXTS, "calls": CALLS}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


def written(path: Path, rows: list[Any]) -> str:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
        return str(path)
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    if path.name == "array.json":
        path.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    elif path.suffix == ".gz":
        path.write_bytes(gzip.compress(lines.encode()))
    else:
        path.write_text(lines, encoding="utf-8")
    return str(path)


def refused(path: str, **options: Any) -> str:
    with pytest.raises(ValueError, match=r".") as raised:
        list(load_rows(path, **options))
    assert str(raised.value).startswith(path)
    return str(raised.value).removeprefix(path)


# ---- What is read is what is there -----------------------------------------------------------------------


@pytest.mark.parametrize("streaming", [False, True], ids=["stored", "streamed"])
@pytest.mark.parametrize("rows", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "array.json", "rows.jsonl.gz", "rows.ndjson"])
def test_rows_of_json_are_what_the_file_holds(
    name: str, rows: list[dict[str, Any]], streaming: bool, tmp_path: Path
) -> None:
    assert list(load_rows(written(tmp_path / name, rows), streaming=streaming)) == rows


@pytest.mark.parametrize("streaming", [False, True], ids=["stored", "streamed"])
@pytest.mark.parametrize("rows", [STRINGS, PROMPTED, TEXTS], ids=["strings", "prompted", "texts"])
def test_rows_of_parquet_are_what_the_file_holds(
    rows: list[dict[str, Any]], streaming: bool, tmp_path: Path
) -> None:
    assert list(load_rows(written(tmp_path / "rows.parquet", rows), streaming=streaming)) == rows


FILLED: list[dict[str, Any]] = [
    {
        "messages": [USER, calling(x=1), {"role": "tool", "content": "4", "name": "f"}, ANSWER],
        "tools": [{"name": "g", "parameters": {"y": [{"a": 1}, {"b": 2}]}}],
    },
    {"messages": [USER, calling(y={"z": "deep"})], "tools": [{"name": "h", "parameters": {}}]},
]


@pytest.mark.parametrize("streaming", [False, True], ids=["stored", "streamed"])
def test_keys_that_a_table_of_structs_adds_are_taken_out_again(streaming: bool, tmp_path: Path) -> None:
    path = written(tmp_path / "rows.parquet", FILLED)
    assert "'y': None" in str(pq.read_table(path).to_pylist())  # there are some
    found = load_rows(path, streaming=streaming)
    assert [read_row(row) for row in found] == [read_row(row) for row in FILLED]


@pytest.mark.parametrize("streaming", [False, True], ids=["stored", "streamed"])
@pytest.mark.parametrize("name", ["rows.csv", "rows.csv.gz"])
def test_every_cell_of_a_csv_is_text(name: str, streaming: bool, tmp_path: Path) -> None:
    rows = [("007", "NA"), ("", "two\nlines, 'quoted' \"and\" so"), ("1e5", "ü" * 200_000)]
    text = tmp_path / "plain.csv"
    with text.open("w", encoding="utf-8-sig", newline="") as file:
        csv.writer(file).writerows([("prompt", "completion"), *rows])
    path = tmp_path / name
    path.write_bytes(gzip.compress(text.read_bytes()) if name.endswith(".gz") else text.read_bytes())
    found = load_rows(str(path), streaming=streaming)
    assert [(row["prompt"], row["completion"]) for row in found] == rows


def test_a_csv_has_messages_as_json(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("messages", "tools"), (json.dumps([USER, ANSWER]), "")])
    assert [read_row(row) for row in load_rows(str(path))] == [Conversation([USER, ANSWER])]


def test_a_byte_order_mark_and_empty_lines_are_no_rows(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'\xef\xbb\xbf\n{"text": "a"}\r\n\n  \n{"text": "b"}')
    assert list(load_rows(str(path))) == [{"text": "a"}, {"text": "b"}]


@pytest.mark.parametrize("streaming", [False, True], ids=["stored", "streamed"])
def test_rows_come_in_the_format_that_is_told(streaming: bool, tmp_path: Path) -> None:
    rows = [{"question": "a", "answer": "b", "id": index} for index in range(3)]
    row_format = RowFormat(columns={"prompt": "question", "completion": "answer"}, ignore=("id",))
    path = written(tmp_path / "rows.jsonl", rows)
    assert list(load_rows(path, row_format=row_format, streaming=streaming)) == 3 * STRINGS[:1]
    alpaca = written(tmp_path / "alpaca.parquet", [{"instruction": "a", "input": "", "output": "b"}])
    found = list(load_rows(alpaca, row_format=RowFormat("alpaca"), streaming=streaming))
    assert found == [{"messages": [USER, ANSWER]}]


def test_rows_of_different_shapes_lie_in_one_file(tmp_path: Path) -> None:
    rows = [STRINGS[0], CALLS[0], TEXTS[0], PROMPTED[0]]
    found = load_rows(written(tmp_path / "rows.jsonl", rows))
    assert [read_row(row) for row in found] == [read_row(row) for row in rows]


def test_a_loader_and_its_workers_read_them(tmp_path: Path) -> None:
    rows = load_rows(written(tmp_path / "rows.jsonl", CALLS))
    loader = DataLoader(rows, batch_size=2, collate_fn=list, num_workers=1)
    assert [row for batch in loader for row in batch] == CALLS


def test_rows_are_mapped_to_others_and_the_rest_stays(tmp_path: Path) -> None:
    rows = load_rows(written(tmp_path / "rows.jsonl", CALLS))
    mapped = rows.map(
        lambda row: {"turns": len(row["messages"]), "text": "[1]"}, remove_columns=["messages", "tools"]
    )
    assert list(mapped) == [{"turns": len(row["messages"]), "text": "[1]"} for row in CALLS]


def test_what_was_read_is_found_again_until_the_file_changes(tmp_path: Path) -> None:
    path = written(tmp_path / "rows.jsonl", STRINGS)
    first, again = load_rows(path), load_rows(path)
    assert first.cache_files == again.cache_files
    assert list(load_rows(written(tmp_path / "rows.jsonl", STRINGS[:1]))) == STRINGS[:1]


def test_a_table_that_was_read_is_found_again(tmp_path: Path) -> None:
    path = written(tmp_path / "rows.parquet", FILLED)
    first, again = load_rows(path), load_rows(path)
    assert first.cache_files == again.cache_files


# ---- Splits ----------------------------------------------------------------------------------------------


def folder_of(folder: Path, *names: str) -> str:
    """Each file has one row, its name."""
    folder.mkdir()
    for name in names:
        written(folder / name, [{"text": name}])
    return str(folder)


def texts_of(*args: Any, **options: Any) -> list[str]:
    return [row["text"] for row in load_rows(*args, **options)]


@pytest.mark.parametrize("streaming", [False, True], ids=["stored", "streamed"])
@pytest.mark.parametrize("end", ["jsonl", "jsonl.gz", "csv", "parquet"])
def test_a_folder_has_splits_by_name(end: str, streaming: bool, tmp_path: Path) -> None:
    names = [f"train.{end}", f"test.{end}"]
    folder = folder_of(tmp_path / "set", *(() if end == "csv" else names))
    if end == "csv":
        for name in names:
            (tmp_path / "set" / name).write_text(f"text\n{name}\n", encoding="utf-8")
    assert texts_of(folder, streaming=streaming) == [f"train.{end}"]
    assert texts_of(folder, split="test", streaming=streaming) == [f"test.{end}"]


@pytest.mark.parametrize("held_out", ["test", "validation"])
def test_evaluated_is_what_is_there_for_it_and_that_is_said(
    held_out: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = folder_of(tmp_path / "set", "train.jsonl", f"{held_out}.jsonl")
    with caplog.at_level(logging.WARNING):
        rows = load_rows(folder, split=None)
    assert [row["text"] for row in rows] == [f"{held_out}.jsonl"]
    assert str(rows.split) == held_out
    assert caplog.messages == [f"{folder} has the splits train, {held_out}; {held_out} is taken"]


@pytest.mark.parametrize("names", [("train",), ("train", "validation", "test")], ids=str)
def test_what_is_evaluated_must_be_said_where_it_is_not_plain(names: tuple[str, ...], tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "set", *(f"{name}.jsonl" for name in names))
    said = refused(folder, split=None)
    assert said == f" has the splits {', '.join(names)}; say with eval_split which is evaluated on"


def test_a_split_that_is_not_there_is_refused_with_those_that_are(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "set", "train.jsonl", "test.jsonl")
    assert refused(folder, split="validation") == " has no split validation, only train, test"
    only = folder_of(tmp_path / "other", "test.jsonl")
    assert refused(only) == " has no split train, only test"


def test_several_files_of_a_split_are_read_one_after_the_other(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "set", "train-00000-of-00002.jsonl", "train-00001-of-00002.jsonl")
    names = ["train-00000-of-00002.jsonl", "train-00001-of-00002.jsonl"]
    assert texts_of(folder) == names
    assert texts_of(folder, streaming=True) == names


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.parquet"])
def test_a_part_of_a_split(name: str, tmp_path: Path) -> None:
    path = written(tmp_path / name, [{"text": str(index)} for index in range(10)])
    assert texts_of(path, split="train[:3]") == ["0", "1", "2"]
    assert texts_of(path, split="train[80%:]") == ["8", "9"]
    assert texts_of(path, split="train[:1]+train[-1:]") == ["0", "9"]


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.parquet"])
def test_a_file_is_one_split(name: str, tmp_path: Path) -> None:
    path = written(tmp_path / name, TEXTS)
    assert list(load_rows(path, split=None)) == TEXTS
    assert refused(path, split="test") == " is one file, whose split is train; test is asked for"


# ---- What is wrong ---------------------------------------------------------------------------------------

NO_ROW = '{"prompt": "a"\n'


def placed(tmp_path: Path, malformed: str) -> str:
    """A file whose lines 3 and 5 are malformed; line 2 is empty."""
    path = tmp_path / "rows.jsonl"
    good = '{"text": "a"}\n'
    path.write_bytes(f"{good}\n{malformed}\n{good}{malformed}\n".encode("utf-8", "surrogateescape"))
    return str(path)


HALF_A_NAME = "the tool_calls of message 0 (from 0) has half a character: "
LINES = {
    '{"text": "a"': "this is no JSON: Expecting ',' delimiter at column 13; every line is a row",
    "[1]": "this is a JSON list; a row is an object",
    '"text"': "this is a JSON str; a row is an object",
    '{"text": ""}': "the text is empty",
    '{"text": "\udcff"}': "this is not UTF-8: ",
    '{"text": "\\ud83d"}': "the text has half a character: ",
    '{"messages": [{"role": "assistant", "tool_calls": [{"name": "f\\ud83d"}]}]}': HALF_A_NAME,
    '{"text": "a", "id": 7}': "nobody would look at id: ",
    "[" * 100_000: "this cannot be read: ",
    f'{{"text": {"1" * 5000}}}': "this cannot be read: Exceeds the limit (4300 digits)",
}


@pytest.mark.parametrize("malformed", LINES, ids=[line[:20] for line in LINES])
def test_a_malformed_line_is_named_with_file_line_and_reason(malformed: str, tmp_path: Path) -> None:
    said = refused(placed(tmp_path, malformed))
    assert said.startswith(f", line 3: {LINES[malformed]}")
    assert said.endswith(" (2 bad of 4 rows; skip_bad_rows leaves such rows out)")
    assert refused(placed(tmp_path, malformed), streaming=True).startswith(f", line 3: {LINES[malformed]}")


@pytest.mark.parametrize("streaming", [False, True], ids=["stored", "streamed"])
@pytest.mark.parametrize("malformed", LINES, ids=[line[:20] for line in LINES])
def test_malformed_lines_are_left_out_and_counted_if_told(
    malformed: str, streaming: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = placed(tmp_path, malformed)
    with caplog.at_level(logging.WARNING):
        rows = load_rows(path, skip_bad_rows=True, streaming=streaming)
        caplog.clear() if streaming else None
        assert list(rows) == 2 * [{"text": "a"}]
    (said,) = caplog.messages
    counted = "2 bad rows left out" if streaming else f"{path}: 2 bad of 4 rows left out"
    assert said.startswith(f"{counted}, the first: {path}, line 3: {LINES[malformed]}")


def test_what_was_left_out_is_counted_when_it_is_found_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = placed(tmp_path, "[1]")
    for _ in range(2):
        caplog.clear()
        load_rows(path, skip_bad_rows=True)
        assert "2 bad of 4 rows left out" in caplog.text


def test_rows_that_are_all_bad_are_an_error_even_if_skipped(tmp_path: Path) -> None:
    path = written(tmp_path / "rows.jsonl", [{"a": 1}])
    assert "nobody would look at a" in refused(path, skip_bad_rows=True)


MALFORMED: list[tuple[str, list[dict[str, Any]], dict[str, Any], str]] = [
    ("rows.jsonl", STRINGS[:2], {"prompt": "a", "completion": ""}, ", line 3: the completion is empty"),
    ("array.json", STRINGS[:2], {"prompt": "a"}, ", row 2 (from 0): a row has messages, or "),
    (
        "rows.parquet",
        STRINGS[:2],
        {"prompt": "a", "completion": ""},
        ", row 2 (from 0): the completion is empty",
    ),
    (
        "rows.parquet",
        PROMPTED,
        {"prompt": [USER], "completion": []},
        ", row 2 (from 0): there are no messages of the completion",
    ),
]


@pytest.mark.parametrize("streaming", [False, True], ids=["stored", "streamed"])
@pytest.mark.parametrize(("name", "good", "row", "message"), MALFORMED, ids=str)
def test_a_malformed_row_is_named(
    name: str, good: list[dict[str, Any]], row: dict[str, Any], message: str, streaming: bool, tmp_path: Path
) -> None:
    path = written(tmp_path / name, [*good, row, *good, row])
    assert refused(path, streaming=streaming).startswith(message)


def test_a_value_that_is_no_json_is_named(tmp_path: Path) -> None:
    path = written(tmp_path / "rows.parquet", [{"messages": [USER, {**ANSWER, "image": b"x"}]}])
    assert refused(path).startswith(", row 0 (from 0): the image of message 1 (from 0) cannot be JSON: ")


def test_a_streamed_row_is_checked_when_it_comes(tmp_path: Path) -> None:
    path = written(tmp_path / "rows.jsonl", [*TEXTS, {"text": ""}])
    rows = iter(load_rows(path, streaming=True))
    assert [next(rows) for _ in TEXTS] == TEXTS
    with pytest.raises(
        ValueError, match=r", line 4: the text is empty \(skip_bad_rows leaves such rows out\)$"
    ):
        next(rows)


CSV = {
    'text\na\n"b\n': ", line 3: this is no CSV: unexpected end of data",
    "text,text\na,b\n": " has two columns text",
    "text\na\nb,c\n": ", line 3: this has 2 cells, and the header 1",
    'text\n"a\n\nb"\n\nc,d\n': ", line 6: this has 2 cells, and the header 1",
    "text\na\n\udcff\n": ", line 3: this is not UTF-8: ",
    "text\n": " has no rows",
    "": " has no rows",
}


@pytest.mark.parametrize("streaming", [False, True], ids=["stored", "streamed"])
@pytest.mark.parametrize("text", CSV, ids=repr)
def test_a_malformed_csv_is_named(text: str, streaming: bool, tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    assert refused(str(path), streaming=streaming).startswith(CSV[text])


@pytest.mark.parametrize("skip", [False, True], ids=["strict", "skipping"])
def test_an_archive_that_is_cut_is_an_error_whatever_is_skipped(skip: bool, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(gzip.compress("".join(json.dumps(row) for row in STRINGS).encode())[:-9])
    assert refused(str(path), skip_bad_rows=skip).startswith(" cannot be unpacked to its end: ")


@pytest.mark.parametrize("text", ['[{"text": "a"}, ', '[{"text": "a"}]\n[1]'], ids=repr)
def test_an_array_that_is_cut_is_an_error(text: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text(text, encoding="utf-8")
    said = refused(str(path), skip_bad_rows=True)
    assert said.startswith(" begins as an array of rows and is no JSON: ")


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.csv", "rows.jsonl.gz", "rows.parquet"])
def test_a_missing_file_is_named(name: str, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=rf"^there is no file {tmp_path / name}$"):
        load_rows(str(tmp_path / name))


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=str(tmp_path / "nowhere")):
        load_rows(str(tmp_path / "nowhere"))


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.txt"
    path.write_text("a\n", encoding="utf-8")
    assert refused(str(path)).startswith(": a file of rows ends in .jsonl")


@pytest.mark.parametrize("streaming", [False, True], ids=["stored", "streamed"])
@pytest.mark.parametrize("text", ["", "\n", " \n\n", "[]"], ids=repr)
def test_an_empty_file_has_no_rows(text: str, streaming: bool, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(text, encoding="utf-8")
    assert refused(str(path), streaming=streaming) == " has no rows"


def test_a_parquet_file_without_rows_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), path)
    assert refused(str(path)) == " has no rows"


# ---- Rows that are given -----------------------------------------------------------------------------------


class Mapped:
    """Rows as a data set of PyTorch has them."""

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.rows[index]


@pytest.mark.parametrize(
    "kind", [list, Mapped, datasets.Dataset.from_list], ids=["list", "torch", "datasets"]
)
def test_rows_that_are_given_are_checked_and_given_back(kind: Any) -> None:
    rows = kind(STRINGS)
    assert check_rows(rows) is rows
    with pytest.raises(ValueError, match=r"^eval_dataset, row 1 \(from 0\): the completion is empty"):
        check_rows(kind([*STRINGS[:1], {"prompt": "a", "completion": ""}]), name="eval_dataset")


def test_rows_that_were_loaded_are_given_back(tmp_path: Path) -> None:
    rows = load_rows(written(tmp_path / "rows.jsonl", CALLS))
    assert check_rows(rows) is rows


def test_keys_that_a_given_table_adds_are_taken_out_again() -> None:
    given = datasets.Dataset.from_list(FILLED)
    assert "'y': None" in str(list(given))  # there are some
    assert [read_row(row) for row in check_rows(given)] == [read_row(row) for row in FILLED]


def test_given_streams_are_checked_as_they_come() -> None:
    given = datasets.Dataset.from_list([*TEXTS, {"text": ""}]).to_iterable_dataset(num_shards=2)
    rows = iter(check_rows(given))
    assert [next(rows) for _ in TEXTS] == TEXTS
    with pytest.raises(ValueError, match=r"^train_dataset, shard 1, row 1 \(from 0\): the text is empty"):
        next(rows)


def test_several_given_by_name_are_each_checked() -> None:
    assert check_rows({"a": STRINGS, "b": TEXTS}) == {"a": STRINGS, "b": TEXTS}
    with pytest.raises(ValueError, match=r"^eval\['b'\], row 0 \(from 0\): "):
        check_rows({"a": STRINGS, "b": [{}]}, name="eval")


def test_what_only_a_reader_can_go_through_is_left_to_it() -> None:
    rows = iter(TEXTS)
    assert check_rows(rows) is rows
    assert list(rows) == TEXTS
    assert check_rows(None) is None


# ---- As the script is told -------------------------------------------------------------------------------


def test_the_script_reads_as_its_options_say(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "set", "test.jsonl")
    rows = [{"question": "a", "answer": "b", "id": 1}, {"question": "a", "id": 2}]
    written(tmp_path / "set" / "train.jsonl", rows)
    file = tmp_path / "run.yaml"
    options = {
        "teacher": "T",
        "student": "S",
        "train_data": folder,
        "train_split": "train",
        "row_columns": {"prompt": "question", "completion": "answer"},
        "ignore_columns": ["id"],
        "skip_bad_rows": True,
        "output_dir": str(tmp_path / "out"),
        "use_cpu": True,
    }
    file.write_text(json.dumps(options), encoding="utf-8")
    told = script.parse(["--config", str(file)])[0]
    found = load_rows(told.train_data, split=told.train_split, **told.reading)
    assert list(found) == [{"prompt": "a", "completion": "b"}]
    streamed = script.parse(
        ["--config", str(file), "--streaming", "--row_columns", "{}", "--eval_split", "test"]
    )[0]
    assert texts_of(folder, split=streamed.eval_split, **streamed.reading) == ["test.jsonl"]


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (["--row_format", "alpacca"], "there is no row_format 'alpacca'; there is alpaca, sharegpt, parts"),
        (["--row_columns", "prompt: a"], "row_columns='prompt: a' is no JSON"),
        (["--row_columns", "[1]"], "row_columns=.* is no table of options"),
    ],
    ids=str,
)
def test_a_format_that_cannot_be_is_said_before_anything_is_read(
    option: list[str], message: str, tmp_path: Path
) -> None:
    named = ["--teacher", "T", "--student", "S", "--train_data", "rows.jsonl", "--use_cpu"]
    with pytest.raises(ValueError, match=message):
        script.parse([*named, "--output_dir", str(tmp_path / "out"), *option])


def test_a_folder_that_is_trained_and_evaluated_on_gives_each_its_split(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = folder_of(tmp_path / "set", "train.jsonl", "test.jsonl")
    read: list[list[str]] = []

    def reading(*args: Any, **options: Any) -> None:
        read.append(texts_of(*args, **options))
        if len(read) == 2:
            raise InterruptedError

    monkeypatch.setattr(script, "load_rows", reading)
    named = ["--teacher", "T", "--student", "S", "--train_data", folder, "--eval_data", folder, "--use_cpu"]
    with pytest.raises(InterruptedError):
        script.train(*script.parse([*named, "--output_dir", str(tmp_path / "out")]))
    assert read == [["train.jsonl"], ["test.jsonl"]]


# ---- As the page says ------------------------------------------------------------------------------------

PAGE = Path(__file__).parents[1] / "docs" / "data.md"


def test_rows_of_the_page_are_read(tmp_path: Path) -> None:
    blocks = re.findall(r"^```json\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(blocks), encoding="utf-8")
    assert len([read_row(row) for row in load_rows(str(path))]) > 4


def test_the_page_names_every_format_and_option() -> None:
    text = PAGE.read_text(encoding="utf-8")
    options = ("row_format", "row_columns", "ignore_columns", "streaming", "skip_bad_rows")
    for name in (*FORMATS, *options, "train_split", "eval_split", *COLUMNS):
        assert f"`{name}" in text, name
