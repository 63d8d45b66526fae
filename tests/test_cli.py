"""The command: it draws every token once, writes what `Aligner.align` finds, and its sums are true."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from typer.testing import CliRunner, Result

import assets
from children import HANGS
from conftest import needs_assets
from dskd import Aligner, Counts, Vocabulary, __version__
from dskd.cli.commands import application
from dskd.cli.drawing import draw, label, legend, visible
from dskd.cli.loading import LoadedTokenizer, load_tokenizer
from dskd.cli.totals import percent
from dskd.reference import published_eta
from test_loading import byte_level, sentencepiece_like, write_folder

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


ROWS = ["Hello world, well", "", "Hello wörld\t知 </s>", "world Hello", "Hello  Hello"] * 3


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The options that name two tiny tokenizers."""
    folder = tmp_path_factory.mktemp("tokenizers")
    teacher = write_folder(folder / "bytes", byte_level("Hello", " world", " well"))
    student = write_folder(folder / "pieces", sentencepiece_like("  ", " Hello", " world", " we", "知"))
    return ["--teacher", str(teacher), "--student", str(student)]


@pytest.fixture(scope="module")
def files(pair: list[str]) -> list[str]:
    """The same by their files, which need no transformers to be read: a process is ready sooner."""
    return [pair[0], f"{pair[1]}/tokenizer.json", pair[2], f"{pair[3]}/tokenizer.json"]


@pytest.fixture(scope="module")
def sides(pair: list[str]) -> tuple[LoadedTokenizer, LoadedTokenizer]:
    return load_tokenizer(pair[1]), load_tokenizer(pair[3])


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"text": row}) + "\n" for row in ROWS), encoding="utf-8")
    return path


def run(*arguments: str | Path, columns: int = 80, stdin: bytes | None = None) -> Result:
    environment = {"COLUMNS": str(columns), "NO_COLOR": "1"}
    return CliRunner().invoke(application(), [str(each) for each in arguments], input=stdin, env=environment)


def output_of(*arguments: str | Path, columns: int = 80, stdin: bytes | None = None) -> str:
    result = run(*arguments, columns=columns, stdin=stdin)
    assert result.exit_code == 0, result.output
    return result.output


def error_of(*arguments: str | Path, stdin: bytes | None = None) -> str:
    result = run(*arguments, stdin=stdin)
    assert result.exit_code == 1, result.output
    assert result.output.startswith("error: ")
    assert result.output.count("\n") == 1
    return result.output.strip()


def command(*arguments: str | Path, **options: Any) -> subprocess.Popen[str]:
    """The real command, in a process of its own."""
    line = [sys.executable, "-m", "dskd", *map(str, arguments)]
    return subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


# ---- The command -----------------------------------------------------------------------------------------


def test_the_version() -> None:
    assert output_of("--version") == f"dskd {__version__}\n"


def test_help_names_the_commands() -> None:
    assert re.search(r"inspect +Draw .*\n +align +Align ", output_of("--help"))


def test_without_a_command_it_says_how_to_use_it() -> None:
    assert "Usage: " in run().output


def test_importing_it_loads_no_tokenizer_library() -> None:
    heavy = ["transformers", "tokenizers", "sentencepiece", "pyarrow", "huggingface_hub", "torch"]
    code = f"import sys, dskd.cli; print([name for name in {heavy} if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "[]\n"


@pytest.mark.parametrize("missing", ["typer", "rich", "pyarrow", "tokenizers"])
def test_a_missing_extra_is_one_sentence(missing: str, pair: list[str], rows: Path) -> None:
    tokenizer = f"{pair[1]}/tokenizer.json"
    arguments = ["dskd", "align", str(rows), "--teacher", tokenizer, "--student", tokenizer]
    prepare = f"import sys; sys.modules[{missing!r}] = None; sys.argv = {arguments}"
    code = f"{prepare}; import dskd.cli; dskd.cli.main()"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (found.returncode, found.stdout) == (1, "")
    expected = (
        rf"dskd: .*{missing}.*; the command line needs more than the library: pip install 'dskd\[cli\]'\n"
    )
    assert re.fullmatch(expected, found.stderr), found.stderr


# ---- Drawing ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b" a b", "·a·b"),
        (b"\n\t", "⏎→"),
        (b"\r\x00\x1b[0m", "⟨0D⟩⟨00⟩⟨1B⟩[0m"),
        (b"\xe4", "⟨E4⟩"),
        (b"a\xe4\xbd\xc3\xa9", "a⟨E4BD⟩é"),
        (b"\xed\xa0\x80", "⟨EDA080⟩"),
        ("知🚀".encode(), "知🚀"),
        ("\u0301e\u0301".encode(), "◌\u0301e\u0301"),
        ("\u202e\u200d\ufe0f\xa0\u2028\x85".encode(), "⟨U+202E⟩⟨U+200D⟩⟨U+FE0F⟩⟨U+00A0⟩⟨U+2028⟩⟨U+0085⟩"),
        ("│".encode(), "⟨U+2502⟩"),
        (b"", "⟨⟩"),
    ],
)
def test_bytes_are_made_visible(data: bytes, expected: str) -> None:
    assert visible(data) == expected


def test_the_drawing_of_a_text(pair: list[str]) -> None:
    drawn = output_of("inspect", *pair, "Hello world, well\n知", "--published", columns=70)
    assert drawn == (
        "teacher   Hello ·world , ·well   ⏎\n"
        "         ·━━━━━ ━━━━━━ ━ ├─────┤ ━\n"
        "student  ·Hello ·world , ·we│l│l ⏎\n"
        "\n"
        "teacher  ⟨E7⟩│⟨9F⟩│⟨A5⟩\n"
        "         ├────────────┤\n"
        "student  知\n"
        "\n"
        "━━━ the same token   ·━━ the same but for one space\n"
        "├─┤ the same text in other tokens\n"
        "8 teacher tokens   8 student tokens\n"
        "4 pairs (3 exact, 1 space, 0 role)   ratio 50.0%   coverage 100.0%\n"
        "published rule 25.0%\n"  # it stumbles over the comma, which the student spells <0x2C>
    )


def test_the_drawing_of_specials_and_differences() -> None:
    teacher = Vocabulary.from_bytes(
        [b"Hi", b" you", b"</s>", b"<t>", b"a", b"b"], roles={2: {"eos"}, 3: {"x"}}
    )
    student = Vocabulary.from_bytes([b" Hi", b" ", b"you", b"<e>", b"c", b"d"], roles={3: {"eos"}})
    alignment = Aligner(teacher, student).align([[3, 0, 1, 2, 4, 5]], [[0, 1, 2, 3, 4]])
    labels = ["«<t>»", "Hi", "·you", "«</s>»", "a", "b"], ["·Hi", "·", "you", "«<e>»", "c"]
    assert [line.plain for line in draw(alignment, *labels, width=60)] == [
        "teacher  «<t>»  Hi ·you  «</s>» a│b",
        "         ∅     ·━━ ├───┤ ══════ ╳╳╳",
        "student        ·Hi ·│you «<e>»  c",
        "",
    ]
    assert [line.plain for line in legend(alignment, width=100)] == [
        "·━━ the same but for one space   ═══ specials of one role   ├─┤ the same text in other tokens",
        "╳╳╳ different text   ∅ covers no text",
    ]


def test_what_has_no_room_goes_on_in_the_next_line() -> None:
    text = Vocabulary.from_bytes([b"abc", b"defghij", b"abcdefghij", b"z"])
    alignment = Aligner(text, text).align([[0, 1, 3]], [[2, 3]])
    assert [
        line.plain for line in draw(alignment, ["abc", "defghij", "z"], ["abcdefghij", "z"], width=10)
    ] == [
        "T abc│",
        "  ├───────",
        "S abcdefgh",
        "",
        "T defghij",
        "  ──────┤",
        "S ij",
        "",
        "T z",
        "  ━",
        "S z",
        "",
    ]


def test_pairs_have_one_colour_and_the_rest_others(sides: tuple[LoadedTokenizer, LoadedTokenizer]) -> None:
    teacher_ids, student_ids = (side.encode("Hello world, well") for side in sides)
    alignment = Aligner(sides[0].vocabulary, sides[1].vocabulary).align([teacher_ids], [student_ids])
    bars = draw(alignment, *labels_of(sides, teacher_ids, student_ids), width=80)[1]
    styles = {bars.plain[span.start : span.end]: span.style for span in bars.spans if span.style}
    assert styles == {"·━━━━━": "green", "━━━━━━": "green", "━": "green", "├─────┤": "yellow"}


def labels_of(
    sides: tuple[LoadedTokenizer, LoadedTokenizer], teacher: list[int], student: list[int]
) -> tuple[list[str], list[str]]:
    return [label(sides[0], each) for each in teacher], [label(sides[1], each) for each in student]


ANY_IDS = st.lists(st.integers(0, 10_000), max_size=30)
ANY_TEXT = st.text(
    st.sampled_from("Helo wrd,\n\t\x1b\u0301\u202e│知🚀é") | st.characters(codec="utf-8"), max_size=40
)


@given(
    text=ANY_TEXT,
    more=st.tuples(ANY_IDS, ANY_IDS),
    width=st.integers(8, 100),
)
def test_the_drawing_contains_every_token_once_and_keeps_to_the_width(
    sides: tuple[LoadedTokenizer, LoadedTokenizer], text: str, more: tuple[list[int], list[int]], width: int
) -> None:
    """On two tokenizations of a text, and any ids behind them."""
    ids = [
        [*side.encode(text), *(token_id % len(side.vocabulary) for token_id in rest)]
        for side, rest in zip(sides, more, strict=True)
    ]
    alignment = Aligner(sides[0].vocabulary, sides[1].vocabulary).align([ids[0]], [ids[1]])
    labels = labels_of(sides, *ids)
    lines = [line.plain for line in draw(alignment, *labels, width=width)]
    assert max(map(cell_len, lines), default=0) <= width
    assert all(line.isprintable() for line in lines)
    name = 9 if width >= 40 else 2
    for line_of_block, side_labels in ((0, labels[0]), (2, labels[1])):
        drawn = "".join(line[name:] for line in lines[line_of_block::4])
        assert re.sub("[ │]", "", drawn) == "".join(side_labels)


# ---- inspect ---------------------------------------------------------------------------------------------


def test_inspect_sums_up_below_the_drawing(pair: list[str]) -> None:
    drawn = output_of("inspect", *pair, "Hello world</s>", "--published", "--parse-special", columns=200)
    assert drawn.splitlines()[-1].split("   ") == [
        "3 teacher tokens",
        "3 student tokens",
        "3 pairs (1 exact, 1 space, 1 role)",
        "ratio 100.0%",
        "coverage 100.0%",
        "published rule 100.0%",
    ]
    assert "═" not in output_of("inspect", *pair, "Hello world</s>")


def test_inspect_reads_standard_input(pair: list[str]) -> None:
    text = "Hello wörld\n"
    drawn = output_of("inspect", *pair, "-", stdin=text.encode())
    assert drawn == output_of("inspect", *pair, text)
    assert "⏎" in drawn


def test_inspect_of_no_text_is_no_drawing(pair: list[str]) -> None:
    first = output_of("inspect", *pair, "").splitlines()[0]
    assert first.startswith("0 teacher tokens   0 student tokens   0 pairs")


def test_escapes_in_a_text_do_not_reach_the_terminal(pair: list[str]) -> None:
    drawn = output_of("inspect", *pair, "\x1b[31mred\x07\x9b\u202e\r", columns=200)
    assert drawn.replace("\n", "").isprintable()
    assert "⟨1B⟩" in drawn


def test_escapes_in_names_do_not_reach_the_terminal(pair: list[str]) -> None:
    assert error_of("inspect", "--teacher", "\x1b]0;title\x07", *pair[2:], "text") == (
        "error: there is no file or folder ⟨1B⟩]0;title⟨07⟩, and a hub name is OWNER/NAME or NAME"
    )


def test_standard_input_that_is_not_utf8(pair: list[str]) -> None:
    assert error_of("inspect", *pair, "-", stdin=b"ab\xff") == (
        "error: standard input: byte 0xff at offset 2 is not UTF-8; convert it, for example with "
        "iconv -f LATIN1 -t UTF-8"
    )


def test_colours_are_for_terminals_alone(files: list[str]) -> None:
    colourless = {key: value for key, value in os.environ.items() if key not in ("NO_COLOR", "FORCE_COLOR")}
    drawn = {
        name: command(
            "inspect", *files, "Hello world", env={**colourless, "COLUMNS": "80", **more}
        ).communicate()
        for name, more in {"redirected": {}, "forced": {"FORCE_COLOR": "1"}}.items()
    }
    assert drawn["redirected"][1] == drawn["forced"][1] == ""
    assert "\x1b" not in drawn["redirected"][0]
    assert "\x1b[32m" in drawn["forced"][0]
    assert re.sub(r"\x1b\[[0-9;]*m", "", drawn["forced"][0]) == drawn["redirected"][0]


def test_inspect_on_an_output_that_knows_ascii_alone(files: list[str]) -> None:
    process = command("inspect", *files, "Hello", env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert "\\u2501" in process.communicate()[0]
    assert process.returncode == 0


# ---- align -----------------------------------------------------------------------------------------------


def expected_rows(sides: tuple[LoadedTokenizer, LoadedTokenizer], texts: list[str]) -> list[dict[str, Any]]:
    """What every row of the file holds, by `Aligner.align` on that row."""
    aligner = Aligner(sides[0].vocabulary, sides[1].vocabulary)
    expected: list[dict[str, Any]] = []
    for index, text in enumerate(texts):
        ids = [side.encode(text) for side in sides]
        found = aligner.align([ids[0]], [ids[1]])
        row: dict[str, Any] = {"row": index, "teacher_ids": ids[0], "student_ids": ids[1]}
        groups = (("pair", found.pairs), ("chunk", found.chunks), ("difference", found.differences))
        for prefix, group in groups:
            names = [name for name in names_of(group) if name != "offsets"]
            row |= {f"{prefix}_{name}": getattr(group, name).tolist() for name in names}
        row |= {item.name: int(getattr(found.counts, item.name)[0]) for item in fields(Counts)}
        row |= {"coverage_teacher": found.coverage.teacher[0], "coverage_student": found.coverage.student[0]}
        expected.append({**row, "ratio": found.ratio[0]})
    return expected


def names_of(group: Any) -> list[str]:
    return [item.name for item in fields(group)]


def test_parquet_holds_what_the_aligner_finds(
    pair: list[str], sides: tuple[LoadedTokenizer, LoadedTokenizer], rows: Path
) -> None:
    output_of("align", *pair, rows)
    table = pq.read_table(rows.with_name("rows.dskd.parquet"))
    assert table.to_pylist() == expected_rows(sides, ROWS)
    about = json.loads(table.schema.metadata[b"dskd"])
    assert about["version"] == __version__
    assert about["student"] == {"name": "pieces", "content_hash": sides[1].vocabulary.content_hash}


def test_json_lines_hold_the_same(
    pair: list[str], sides: tuple[LoadedTokenizer, LoadedTokenizer], rows: Path
) -> None:
    output = rows.with_name("out.jsonl")
    output_of("align", *pair, rows, "--output", output)
    found = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    assert found == expected_rows(sides, ROWS)


@pytest.mark.parametrize("options", [["--batch-size", "1"], ["--batch-size", "7"], ["--num-threads", "1"]])
def test_the_rows_do_not_depend_on_batches_and_threads(
    pair: list[str], rows: Path, options: list[str]
) -> None:
    one, other = rows.with_name("one.parquet"), rows.with_name("other.parquet")
    output_of("align", *pair, rows, "--output", one)
    output_of("align", *pair, rows, "--output", other, *options)
    assert pq.read_table(one).equals(pq.read_table(other))


def test_row_groups_are_cut_by_size(pair: list[str], rows: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dskd.cli.rows_out._GROUP_BYTES", 1)
    output_of("align", *pair, rows, "--batch-size", "4")
    found = pq.ParquetFile(rows.with_name("rows.dskd.parquet"))
    assert found.metadata.num_row_groups == 4
    assert found.read().column("row").to_pylist() == list(range(len(ROWS)))


def test_the_summary_is_the_sum_of_the_rows(
    pair: list[str], sides: tuple[LoadedTokenizer, LoadedTokenizer], rows: Path
) -> None:
    path = rows.with_name("summary.json")
    said = output_of("align", *pair, rows, "--summary", path, "--published", "--batch-size", "4")
    summary, expected = json.loads(path.read_text(encoding="utf-8")), expected_rows(sides, ROWS)
    for name in ("teacher_tokens", "student_bytes", "chunk_bytes", "exact", "space", "segment_mismatch"):
        assert summary[name] == sum(row[name] for row in expected)
    assert summary["rows"] == len(ROWS)
    assert summary["teacher_ids"] == sum(len(row["teacher_ids"]) for row in expected)
    assert summary["pairs"] == sum(len(row["pair_kind"]) for row in expected)
    assert summary["differences"] == sum(len(row["difference_teacher_start"]) for row in expected)
    assert summary["ratio"] == (summary["exact"] + summary["space"]) / summary["student_tokens"]
    assert summary["coverage_teacher"] == summary["chunk_bytes"] / summary["teacher_bytes"]
    assert 0 < summary["seconds_aligning"] < summary["seconds"]
    ids = summary["teacher_ids"] + summary["student_ids"]
    assert summary["tokens_per_second"] == pytest.approx(ids / summary["seconds"])
    assert summary["teacher"]["name"] == "bytes"
    assert re.search(rf"ratio +{summary['ratio']:.1%}  of {summary['student_tokens']} student tokens", said)
    assert said.endswith(f"written to {rows.with_name('rows.dskd.parquet')}\n")


def test_the_published_rule_is_counted_over_the_same_tokens(
    pair: list[str], sides: tuple[LoadedTokenizer, LoadedTokenizer], rows: Path
) -> None:
    path = rows.with_name("summary.json")
    output_of("align", *pair, rows, "--summary", path, "--published", "--batch-size", "4")
    summary = json.loads(path.read_text(encoding="utf-8"))
    pairs = false_pairs = 0
    for row in expected_rows(sides, ROWS):
        spelled = [side.spellings(row[f"{name}_ids"]) for side, name in zip(sides, SIDES, strict=True)]
        found = published_eta(*spelled, teacher_eos="</s>", student_eos="</s>")
        true_pairs = set(zip(row["pair_teacher"], row["pair_student"], strict=True))
        pairs += len(found)
        false_pairs += len(set(found) - true_pairs)
    assert (summary["published_pairs"], summary["published_false_pairs"]) == (pairs, false_pairs)
    assert summary["published_ratio"] == pairs / summary["student_tokens"]
    # Of "Hello  Hello" a single space and a double one: the rule deletes both, and finds them equal.
    assert false_pairs == 3


SIDES = ("teacher", "student")


@pytest.mark.parametrize(
    ("part", "expected"), [(0.0, "0.0%"), (0.12345, "12.3%"), (0.9999, "99.9%"), (1.0, "100.0%")]
)
def test_less_than_everything_is_never_said_to_be_all(part: float, expected: str) -> None:
    assert percent(part) == expected


def test_without_being_asked_the_published_rule_is_not_counted(pair: list[str], rows: Path) -> None:
    path = rows.with_name("summary.json")
    assert "published" not in output_of("align", *pair, rows, "--summary", path)
    assert json.loads(path.read_text(encoding="utf-8"))["published_ratio"] is None


def test_a_limit_stops_early(pair: list[str], rows: Path) -> None:
    output_of("align", *pair, rows, "--limit", "7", "--batch-size", "4")
    assert pq.read_table(rows.with_name("rows.dskd.parquet")).num_rows == 7


def texts_read(pair: list[str], path: Path, *options: str) -> list[bytes]:
    """What the rows of a file hold, from the ids that were written."""
    output = path.with_name("read.parquet")
    output_of("align", *pair, path, "--output", output, *options)
    vocabulary = load_tokenizer(pair[1]).vocabulary
    ids = pq.read_table(output).column("teacher_ids").to_pylist()
    return [b"".join(vocabulary.token_bytes(token_id) or b"" for token_id in row) for row in ids]


def test_text_has_a_row_per_line(pair: list[str], tmp_path: Path) -> None:
    path = tmp_path / "rows.txt"
    path.write_bytes("\ufeffone\r\n\n two \r three\x0b\u2028\x85\nlast".encode())
    assert texts_read(pair, path) == [b"one", b"", " two \r three\x0b\u2028\x85".encode(), b"last"]


def test_json_lines_have_a_row_per_object(pair: list[str], tmp_path: Path) -> None:
    path = tmp_path / "rows.data"
    path.write_text('{"q": "one", "n": 1}\n\n  \n{"q": "tw\\u00f6\\n"}', encoding="utf-8")
    assert texts_read(pair, path, "--field", "q") == [b"one", "twö\n".encode()]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (
            b'{"text": ',
            "not JSON (Expecting value: line 1 column 10 (char 9)); JSON lines have one object a line",
        ),
        (b'["text"]', "a list instead of an object; JSON lines have one object a line"),
        (b"[" * 100_000, "not JSON ("),
        (b"1" * 5_000, "not JSON ("),
        (b'{"a\\u001b": 1, "b": 2}', "no field 'text'; its fields are a⟨1B⟩, b: name one with --field"),
        (b"{}", "no field 'text'; its fields are none: name one with --field"),
        (b'{"text": ["a"]}', "field 'text' is a list, not a string; name one with --field"),
        (b'{"text": null}', "field 'text' is null, not a string; name one with --field"),
        (b'{"text": true}', "field 'text' is true or false, not a string; name one with --field"),
        (b'{"text": "\\ud83d"}', "\\ud83d is half of a surrogate pair and no character; repair the row"),
        (b'{"text": "\xff"}', "byte 0xff at offset 10 is not UTF-8; convert it, for example with iconv"),
    ],
)
def test_a_row_that_cannot_be_read(pair: list[str], tmp_path: Path, line: bytes, expected: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"text": "fine"}\n' * 2 + line + b"\n")
    assert error_of("align", *pair, path, "--batch-size", "1").startswith(
        f"error: {path}, line 3: {expected}"
    )
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(("name", "content"), [("rows.txt", b""), ("rows.jsonl", b"\n \n")])
def test_a_file_without_rows(pair: list[str], tmp_path: Path, name: str, content: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    assert error_of("align", *pair, path) == f"error: {path} has no rows; there is nothing to align"
    assert list(tmp_path.iterdir()) == [path]


def test_what_is_there_is_replaced_only_if_asked_for(pair: list[str], rows: Path) -> None:
    output, summary = rows.with_name("rows.dskd.parquet"), rows.with_name("summary.json")
    for path in (output, summary):
        path.write_bytes(b"precious")
        message = f"error: {path} exists; name another, or replace it with --overwrite"
        assert error_of("align", *pair, rows, "--summary", summary) == message
        assert path.read_bytes() == b"precious"
        path.unlink()
    output.write_bytes(b"old")
    output_of("align", *pair, rows, "--overwrite")
    assert pq.read_table(output).num_rows == len(ROWS)


def test_an_error_leaves_what_was_there(pair: list[str], tmp_path: Path) -> None:
    path, output = tmp_path / "rows.jsonl", tmp_path / "out.parquet"
    path.write_text('{"text": "a"}\nbroken\n', encoding="utf-8")
    output.write_bytes(b"precious")
    error_of("align", *pair, path, "--output", output, "--overwrite", "--batch-size", "1")
    assert output.read_bytes() == b"precious"
    assert sorted(tmp_path.iterdir()) == [output, path]


PATH_ERRORS: dict[str, tuple[list[str], str]] = {
    "no file": (["nothing.txt"], "there is no file {folder}/nothing.txt"),
    "a folder": (["."], "{folder} is a folder; name a file in it"),
    "suffix": (
        ["rows.jsonl", "--output", "out.csv"],
        "--output {folder}/out.csv: its suffix is none of .parquet, .jsonl, .ndjson",
    ),
    "itself": (
        ["rows.jsonl", "--output", "rows.jsonl", "--overwrite"],
        "{folder}/rows.jsonl is the file to read; name another to write",
    ),
    "no folder": (
        ["rows.jsonl", "--output", "none/out.parquet"],
        "{folder}/none/out.parquet: there is no folder {folder}/none; make it first",
    ),
}


@pytest.mark.parametrize("case", PATH_ERRORS)
def test_paths_are_checked_before_anything_is_read(case: str, rows: Path) -> None:
    arguments, message = PATH_ERRORS[case]
    folder = rows.parent
    paths = [each if each.startswith("--") else str(folder / each) for each in arguments]
    # Tokenizers that do not exist: they are not looked for.
    found = error_of("align", "--teacher", "./none", "--student", "./none", *paths)
    assert found == f"error: {message.format(folder=folder)}"


def test_a_tokenizer_that_cannot_be_had(pair: list[str], rows: Path) -> None:
    assert error_of("align", "--teacher", "./none", *pair[2:], rows).startswith(
        "error: there is no file or folder ./none"
    )


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_signal_leaves_nothing_behind(files: list[str], tmp_path: Path, name: str) -> None:
    """A pipe that stays open keeps the command waiting in the middle of its file."""
    pipe, output = tmp_path / "rows.txt", tmp_path / "out.jsonl"
    os.mkfifo(pipe)
    process = command("align", *files, pipe, "--output", output, "--batch-size", "1")
    with pipe.open("w", encoding="utf-8") as rows:
        rows.write("Hello world\n" * 100)
        rows.flush()
        wait_until(lambda: len(list(tmp_path.iterdir())) > 1)
        time.sleep(0.2)
        process.send_signal(signal.Signals[name])
        said = process.communicate()
    assert process.returncode == 128 + signal.Signals[name]
    assert said == ("", "interrupted\n" if name == "SIGINT" else "")
    assert list(tmp_path.iterdir()) == [pipe]


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + HANGS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_progress_goes_to_a_terminal_and_leaves_the_summary(files: list[str], rows: Path) -> None:
    """Standard error is a terminal here, standard output is not."""
    pty = pytest.importorskip("pty")
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "80"}
    line = [sys.executable, "-m", "dskd", "align", *files, str(rows), "--batch-size", "1"]
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=theirs, text=True, env=environment) as process:
        os.close(theirs)
        said, shown = process.communicate()[0], read_all(ours)
    assert f"{len(ROWS)} rows" in shown
    assert "\x1b" not in said
    assert "tokens a second" in said


def read_all(descriptor: int) -> str:
    shown = b""
    try:
        while chunk := os.read(descriptor, 1 << 16):
            shown += chunk
    except OSError:  # how a terminal says that nobody writes any more
        pass
    os.close(descriptor)
    return shown.decode()


# ---- Real tokenizers -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real_pair() -> list[str]:
    teacher = needs_assets(lambda: assets.tokenizer("deepseek-v3"))
    student = needs_assets(lambda: assets.tokenizer("mistral-v1"))
    return ["--teacher", str(teacher), "--student", str(student)]


def test_the_command_draws_two_real_tokenizations(real_pair: list[str]) -> None:
    text = 'def greet(name):\n    return f"你好 🚀"\n'
    process = command("inspect", *real_pair, text, env={**os.environ, "COLUMNS": "100", "NO_COLOR": "1"})
    assert process.communicate() == (DRAWN, "")


DRAWN = """\
teacher   def ·greet  (name  ):⏎
         ·━━━ ├─────┤ ├────┤ ├──┤
student  ·def ·gre│et (│name ):│⏎

teacher  ··· ·return ·f " 你好  ·⟨F09F⟩│⟨9A⟩│⟨80⟩ "⏎
         ━━━ ━━━━━━━ ━━ ━ ├───┤ ├───────────────┤ ├─┤
student  ··· ·return ·f " 你│好 ·│🚀              "│⏎

━━━ the same token   ·━━ the same but for one space   ├─┤ the same text in other tokens
13 teacher tokens   17 student tokens   5 pairs (4 exact, 1 space, 0 role)   ratio 29.4%
coverage 100.0%
"""


def test_the_command_aligns_real_rows(real_pair: list[str], tmp_path: Path) -> None:
    texts = [*needs_assets(lambda: assets.instruction_rows(40)), *assets.source_rows(40)]
    path, summary = tmp_path / "rows.jsonl", tmp_path / "summary.json"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    process = command("align", *real_pair, path, "--published", "--summary", summary)
    said = process.communicate()
    assert (said[1], process.returncode) == ("", 0)
    sides = load_tokenizer(real_pair[1]), load_tokenizer(real_pair[3])
    found = pq.read_table(tmp_path / "rows.dskd.parquet").to_pylist()
    assert found == expected_rows(sides, texts)
    numbers = json.loads(summary.read_text(encoding="utf-8"))
    assert numbers["coverage_teacher"] == numbers["coverage_student"] == 1.0
    assert numbers["published_ratio"] < numbers["ratio"]
