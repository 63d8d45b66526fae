"""A job by shards goes on after a kill at any moment, and ids pass from Arrow to Arrow as they are."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dskd.cli.pair import Ids
from dskd.cli.rows import Place
from dskd.cli.rows_in import open_rows
from test_cli import command, error_of, output_of, run
from test_loading import byte_level, sentencepiece_like, write_folder

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

TEXTS = [f"Hello world, well {'Hello ' * (number % 7)}知 {number}" for number in range(23)]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The options that name two tiny tokenizers; of files, which need no transformers to be read."""
    folder = tmp_path_factory.mktemp("tokenizers")
    teacher = write_folder(folder / "bytes", byte_level("Hello", " world", " well"))
    student = write_folder(folder / "pieces", sentencepiece_like("  ", " Hello", " world", " we", "知"))
    return ["--teacher", f"{teacher}/tokenizer.json", "--student", f"{student}/tokenizer.json"]


@pytest.fixture
def lines(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    write_lines(path, TEXTS)
    return path


def write_lines(path: Path, texts: Sequence[str]) -> None:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")


def contents(folder: Path) -> dict[str, bytes]:
    """Every file but the manifest, which has times in it."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".manifest.jsonl"}


def sums(path: Path) -> dict[str, Any]:
    """A summary but for what is different in every run."""
    numbers: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return {name: value for name, value in numbers.items() if "second" not in name and name != "output"}


# ---- Shards ----------------------------------------------------------------------------------------------


def test_shards_hold_the_rows_of_one_file(pair: list[str], lines: Path) -> None:
    summaries = lines.with_name("one.json"), lines.with_name("shards.json")
    output_of("align", *pair, lines, "--summary", summaries[0])
    said = output_of("align", *pair, lines, "--shard-rows", "5", "--summary", summaries[1])
    folder = lines.with_name("rows.dskd")
    assert sorted(contents(folder)) == [f"part-{number:06}.parquet" for number in range(5)]
    assert pq.read_table(folder).equals(pq.read_table(lines.with_name("rows.dskd.parquet")))
    assert sums(summaries[0]) == sums(summaries[1])
    assert said.endswith(f"written to {folder}\n")


def test_shards_are_a_data_set(pair: list[str], lines: Path) -> None:
    output_of("align", *pair, lines, "--shard-rows", "5")
    folder = str(lines.with_name("rows.dskd"))
    cache = str(lines.with_name("cache"))
    found = datasets.load_dataset("parquet", data_dir=folder, cache_dir=cache, split="train")
    assert found["row"][:] == list(range(len(TEXTS)))


@pytest.mark.parametrize("options", [["--limit", "10"], ["--limit", "7"], []])
def test_a_job_that_is_done_is_left_alone(pair: list[str], lines: Path, options: list[str]) -> None:
    line = ["align", *pair, str(lines), "--shard-rows", "5", *options]
    said, folder = output_of(*line), lines.with_name("rows.dskd")
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert output_of(*line) == said
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    assert pq.read_table(folder).num_rows == int(options[1] if options else len(TEXTS))


KILLED_AT = """
import os, pathlib, signal, sys
left = int(sys.argv.pop(1))

def killed(call):
    def counted(*arguments):
        global left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        found = call(*arguments)
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return found
    return counted

os.fsync = killed(os.fsync)
pathlib.Path.replace = killed(pathlib.Path.replace)
import dskd.cli
dskd.cli.main()
"""


def test_a_kill_at_every_moment_leaves_a_job_that_resumes(pair: list[str], tmp_path: Path) -> None:
    """Before and after each call that makes something last: the file, its name, the line of the manifest."""
    lines, whole, folder = tmp_path / "rows.jsonl", tmp_path / "whole", tmp_path / "killed"
    write_lines(lines, TEXTS[:4])
    line = ["align", *pair, str(lines), "--shard-rows", "3", "--output"]
    output_of(*line, whole)
    for moment in range(1, 100):
        code = [sys.executable, "-c", KILLED_AT, str(moment), *line, str(folder)]
        ended = subprocess.run(code, capture_output=True, check=False)
        if ended.returncode == 0:
            break
        assert ended.returncode == -signal.SIGKILL, ended.stderr
        output_of(*line, folder)
        assert contents(folder) == contents(whole), moment
        shutil.rmtree(folder)
    # The manifest and each of two shards: synced, renamed, the name synced; three lines more; one sweep.
    assert moment == 2 * (3 + 2 * 3 + 3 + 1) + 1


def test_one_job_killed_again_and_again(pair: list[str], tmp_path: Path) -> None:
    lines, whole, folder = tmp_path / "rows.jsonl", tmp_path / "whole", tmp_path / "killed"
    write_lines(lines, TEXTS * 40)
    line = ["align", *pair, str(lines), "--shard-rows", "20", "--batch-size", "1", "--output"]
    output_of(*line, whole)
    rng, kills = random.Random(7), 0  # noqa: S311 - moments, no secrets
    for _ in range(6):
        process = command(*line, folder)
        while process.poll() is None and not list(folder.glob(f".part-*.{process.pid}.part")):
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.1))
        process.kill()
        process.communicate()
        kills += process.returncode == -signal.SIGKILL
    output_of(*line, folder)
    assert contents(folder) == contents(whole)
    assert kills


def test_a_line_of_the_manifest_that_is_cut_was_not_written(pair: list[str], lines: Path) -> None:
    line, folder = ["align", *pair, str(lines), "--shard-rows", "5"], lines.with_name("rows.dskd")
    output_of(*line)
    before, manifest = contents(folder), folder / ".manifest.jsonl"
    whole = manifest.read_bytes().splitlines(keepends=True)
    manifest.write_bytes(b"".join(whole[:3]) + whole[3][:40])
    output_of(*line)
    assert contents(folder) == before
    assert len(manifest.read_bytes().splitlines()) == len(whole)


def test_an_error_keeps_the_shards_before_it(pair: list[str], lines: Path) -> None:
    with lines.open("a", encoding="utf-8") as file:
        file.write("broken\n")
    for _ in range(2):
        found = error_of("align", *pair, lines, "--shard-rows", "5")
        assert found.startswith(f"error: {lines}, line 24: not JSON")
    assert len(contents(lines.with_name("rows.dskd"))) == 4


def test_a_file_without_rows_leaves_no_folder(pair: list[str], tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("\n", encoding="utf-8")
    found = error_of("align", *pair, path, "--shard-rows", "5")
    assert found == f"error: {path} has no rows; there is nothing to align"
    assert list(tmp_path.iterdir()) == [path]


OTHER_JOBS = {
    "--shard-rows": ["--shard-rows", "6"],
    "--limit": ["--limit", "3"],
    "--batch-size": ["--batch-size", "7"],
    "--published": ["--published"],
    "--parse-special": ["--parse-special"],
    "the rows as": ["--field", "other"],
}


@pytest.mark.parametrize("name", OTHER_JOBS)
def test_other_options_are_refused(pair: list[str], lines: Path, name: str) -> None:
    line = ["align", *pair, str(lines), "--shard-rows", "5"]
    output_of(*line)
    refused(error_of(*line, *OTHER_JOBS[name]), lines.with_name("rows.dskd"), name)


def refused(said: str, folder: Path, name: str) -> None:
    way_out = "the same command with --overwrite starts over, another --output leaves it alone"
    pattern = f"error: {folder}: {name} was .* when it was begun and is .*; {way_out}"
    assert re.fullmatch(pattern, said), said


def test_another_input_is_refused(pair: list[str], lines: Path) -> None:
    line, folder = ["align", *pair, str(lines), "--shard-rows", "5"], lines.with_name("rows.dskd")
    output_of(*line)
    state = lines.stat()
    write_lines(lines, [*TEXTS[:-1], "Hello"])
    refused(error_of(*line), folder, "the input's size")
    write_lines(lines, [*TEXTS[:-1], TEXTS[-1].replace("H", "J")])
    refused(error_of(*line), folder, "the input's time of change")
    write_lines(lines, TEXTS)
    os.utime(lines, ns=(state.st_atime_ns, state.st_mtime_ns))
    other = lines.rename(lines.with_name("other.jsonl"))
    refused(error_of("align", *pair, other, "--shard-rows", "5", "--output", folder), folder, "the input")


def test_other_tokenizers_are_refused(pair: list[str], lines: Path, tmp_path: Path) -> None:
    folder = lines.with_name("rows.dskd")
    output_of("align", *pair, lines, "--shard-rows", "5")
    other = write_folder(tmp_path / "other", byte_level("Hello", " world", " wells"))
    said = error_of("align", "--teacher", f"{other}/tokenizer.json", *pair[2:], lines, "--shard-rows", "5")
    refused(said, folder, "the teacher's vocabulary")


def test_a_tokenizer_that_splits_otherwise_is_refused(pair: list[str], lines: Path, tmp_path: Path) -> None:
    """Its vocabulary is the same, and so are the bytes of every id."""
    output_of("align", *pair, lines, "--shard-rows", "5")
    other = json.loads((lines.parent / pair[1]).read_text(encoding="utf-8"))
    other["normalizer"] = {"type": "NFC"}
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(other), encoding="utf-8")
    said = error_of("align", "--teacher", path, *pair[2:], lines, "--shard-rows", "5")
    refused(said, lines.with_name("rows.dskd"), "the teacher's way to split text")


def test_another_version_is_refused(pair: list[str], lines: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output_of("align", *pair, lines, "--shard-rows", "5")
    monkeypatch.setattr("dskd.cli.work.__version__", "99")
    refused(error_of("align", *pair, lines, "--shard-rows", "5"), lines.with_name("rows.dskd"), "dskd")


def test_overwrite_starts_over(pair: list[str], lines: Path) -> None:
    folder = lines.with_name("rows.dskd")
    output_of("align", *pair, lines, "--shard-rows", "2")
    output_of("align", *pair, lines, "--shard-rows", "9", "--overwrite")
    assert len(contents(folder)) == 3
    assert pq.read_table(folder).num_rows == len(TEXTS)


def test_a_shard_that_is_gone_is_an_error(pair: list[str], lines: Path) -> None:
    output_of("align", *pair, lines, "--shard-rows", "5")
    shard = lines.with_name("rows.dskd") / "part-000001.parquet"
    shard.unlink()
    found = error_of("align", *pair, lines, "--shard-rows", "5")
    assert found.startswith(f"error: {shard} is missing or was changed since it was written; ")


def test_a_folder_of_somebody_else_is_left_alone(pair: list[str], lines: Path) -> None:
    folder = lines.with_name("rows.dskd")
    folder.mkdir()
    (folder / "precious").touch()
    for more in ([], ["--overwrite"]):
        found = error_of("align", *pair, lines, "--shard-rows", "5", *more)
        assert found == (
            f"error: {folder} holds precious and is no folder of dskd align's shards; name another --output"
        )
    assert list(folder.iterdir()) == [folder / "precious"]


def test_two_processes_do_not_write_to_one_folder(pair: list[str], lines: Path) -> None:
    fcntl = pytest.importorskip("fcntl")
    folder = lines.with_name("rows.dskd")
    folder.mkdir()
    descriptor = os.open(folder, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    found = error_of("align", *pair, lines, "--shard-rows", "5")
    os.close(descriptor)
    assert found == f"error: another dskd align is writing to {folder}; wait for it, or end it"
    output_of("align", *pair, lines, "--shard-rows", "5")


def test_a_folder_has_no_suffix_of_a_file(pair: list[str], lines: Path) -> None:
    output = lines.with_name("out.parquet")
    found = error_of("align", *pair, lines, "--shard-rows", "5", "--output", output)
    assert found == f"error: --output {output}: with --shard-rows it is a folder, and its name has no suffix"


# ---- Parquet ---------------------------------------------------------------------------------------------


@pytest.fixture
def ids(pair: list[str], lines: Path) -> Path:
    """The ids of the rows, as `dskd align` itself writes them."""
    path = lines.with_name("ids.parquet")
    output_of("align", *pair, lines, "--output", path)
    return path


@pytest.mark.parametrize("kind", [pa.list_(pa.int64()), pa.large_list(pa.uint32()), pa.list_(pa.uint16())])
def test_ids_give_what_their_text_gives(pair: list[str], ids: Path, kind: pa.DataType) -> None:
    expected = pq.read_table(ids)
    path, found = ids.with_name("other.parquet"), ids.with_name("found.parquet")
    columns = {name: expected[name].cast(kind) for name in ("teacher_ids", "student_ids")}
    pq.write_table(pa.table({"text": ["no"] * len(expected), **columns}), path, row_group_size=4)
    output_of("align", *pair, path, "--output", found, "--batch-size", "3")
    assert pq.read_table(found).equals(expected)


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())])
def test_text_in_parquet_is_text(pair: list[str], ids: Path, kind: pa.DataType) -> None:
    path, found = ids.with_name("text.parquet"), ids.with_name("found.parquet")
    pq.write_table(pa.table({"words": pa.array(TEXTS).cast(kind)}), path)
    output_of("align", *pair, path, "--output", found, "--field", "words")
    assert pq.read_table(found).equals(pq.read_table(ids))


def test_ids_by_shards_resume(pair: list[str], ids: Path) -> None:
    line, folder = ["align", *pair, str(ids), "--shard-rows", "5"], ids.with_name("ids.dskd")
    output_of(*line)
    before, manifest = contents(folder), folder / ".manifest.jsonl"
    for done in range(5):
        manifest.write_bytes(b"".join(manifest.read_bytes().splitlines(keepends=True)[: done + 1]))
        output_of(*line)
        assert contents(folder) == before


PARQUET_ERRORS: dict[str, tuple[dict[str, Any], list[str], str]] = {
    "no column": (
        {"words": ["a"]},
        [],
        ": no column 'text', nor teacher_ids and student_ids; its columns are words: name one with --field",
    ),
    "no field": (
        {"words": ["a"]},
        ["--field", "other"],
        ": no column 'other'; its columns are words: name one with --field",
    ),
    "numbers": ({"text": [1]}, [], ": column 'text' is int64, not strings"),
    "flat ids": (
        {"teacher_ids": [1], "student_ids": [1]},
        [],
        ": column 'teacher_ids' is int64, not lists of integers",
    ),
    "null": (
        {"text": ["a", None]},
        [],
        ", in the rows from 0 on: row 1 is null, not a string; drop it, or make it an empty string",
    ),
    "null ids": (
        {"teacher_ids": [[1], None], "student_ids": [[1], [1]]},
        [],
        ", in the rows from 0 on: teacher_ids row 1 is null; fill or drop it",
    ),
    "no such id": (
        {"teacher_ids": [[1], [10_000]], "student_ids": [[1], [1]]},
        ["--batch-size", "1"],
        ", in the rows from 1 on: teacher row 0, position 0: id 10000 is not in the vocabulary",
    ),
}


@pytest.mark.parametrize("name", PARQUET_ERRORS)
def test_parquet_that_cannot_be_read(pair: list[str], tmp_path: Path, name: str) -> None:
    columns, options, message = PARQUET_ERRORS[name]
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table(columns), path)
    assert error_of("align", *pair, path, *options).startswith(f"error: {path}{message}")
    assert list(tmp_path.iterdir()) == [path]


def test_what_is_no_parquet(pair: list[str], tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    path.write_bytes(b"text")
    assert error_of("align", *pair, path).startswith(f"error: {path} is no Parquet: ")


# ---- Reading ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """One row after the other, as lines with blanks between them, as texts and as ids in row groups."""
    folder = tmp_path_factory.mktemp("files")
    lines, texts, ids = (folder / name for name in ("rows.jsonl", "texts.parquet", "ids.parquet"))
    lines.write_text("\n".join(json.dumps({"text": text}) + "\n" for text in TEXTS), encoding="utf-8")
    pq.write_table(pa.table({"text": TEXTS}), texts, row_group_size=4)
    numbers = [[number] * (number % 3) for number in range(len(TEXTS))]
    pq.write_table(pa.table({"teacher_ids": numbers, "student_ids": numbers}), ids, row_group_size=5)
    return [lines, texts, ids]


def read_all(path: Path, counts: Sequence[int], place: Place) -> tuple[list[Any], Place]:
    """Rows read in calls of these counts, and where the next one is."""
    found: list[Any] = []
    with open_rows(path, None, place) as rows:
        for count in counts:
            part = rows.read(count)
            assert len(part) <= count
            if isinstance(part, Ids):
                ends = part.teacher.offsets.tolist()
                found += [part.teacher.values[start:end].tolist() for start, end in pairwise(ends)]
            else:
                found += part
        return found, rows.place


@given(first=st.lists(st.integers(1, 9), max_size=5), then=st.lists(st.integers(1, 9), max_size=5))
def test_reading_goes_on_from_any_place(files: list[Path], first: list[int], then: list[int]) -> None:
    for path in files:
        everything, _ = read_all(path, [len(TEXTS)], Place())
        before, place = read_all(path, first, Place())
        after, _ = read_all(path, then, place)
        assert before + after == everything[: min(sum(first), len(TEXTS)) + sum(then)]
        assert place.rows == len(before)


def test_long_rows_are_read_fewer_at_a_time(files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("rows_in", "parquet_in"):
        monkeypatch.setattr(f"dskd.cli.{module}.MOST_BYTES", 8)
    for path, at_once in zip(files, (1, 1, 4), strict=True):
        assert len(read_all(path, [len(TEXTS)], Place())[0]) <= at_once
        assert len(read_all(path, [1] * len(TEXTS), Place())[0]) == len(TEXTS)


def test_help_says_how_to_resume() -> None:
    assert "--shard-rows" in run("align", "--help").output
