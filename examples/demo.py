"""What `make demo` shows: two real tokenizers of different families, drawn and aligned on real text.

1. Fetches DeepSeek-V3's tokenizer (byte-level BPE) and Mistral 7B's (SentencePiece BPE), see assets.py.
2. Draws an English sentence, a piece of code and a Chinese sentence with `dskd inspect`.
3. Aligns 1,000 real rows, half instruction data and half Python source, with `dskd align`.
4. Compares what was written with the definition, row by row.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet
from rich.console import Console
from rich.progress import track

import assets
from dskd import Vocabulary, reference
from dskd.cli.loading import load_tokenizer

FOLDER = Path("demo")
ROWS = 1_000
SENTENCES = [
    "Knowledge distillation transfers what a teacher knows, even when the student reads differently.",
    'def greet(name: str) -> str:\n    """Say hello."""\n    return f"Héllo, {name}! 🎉"\n',
    "知识蒸馏把大模型的能力传给小模型，即使两者的分词器不同。",
]
RANGES = ("teacher_start", "teacher_end", "student_start", "student_end")

console = Console()


def main() -> None:
    """Runs the four steps; fails if a row is not what the definition says."""
    FOLDER.mkdir(exist_ok=True)
    console.rule("1  real tokenizers and real text")
    pair = fetch_tokenizers()
    console.rule("2  two tokenizations of one text")
    for sentence in SENTENCES:
        dskd("inspect", *pair, sentence)
    console.rule(f"3  {ROWS:,} real rows")
    source, output, summary = write_rows(), FOLDER / "rows.parquet", FOLDER / "summary.json"
    options = ["--output", str(output), "--overwrite", "--published", "--summary", str(summary)]
    dskd("align", *pair, str(source), *options)
    console.rule("4  the same by the definition")
    compare_with_reference(output, pair)
    console.print(f"written: {source}, {output}, {summary}")


def fetch_tokenizers() -> list[str]:
    """The options that name teacher and student, both on this machine now."""
    teacher, student = assets.tokenizer("deepseek-v3"), assets.tokenizer("mistral-v1")
    console.print(f"teacher  {teacher}\nstudent  {student}", soft_wrap=True)
    return ["--teacher", str(teacher), "--student", str(student)]


def write_rows() -> Path:
    """The rows as JSON lines: instruction data, then Python source of this interpreter."""
    path = FOLDER / "rows.jsonl"
    rows = assets.instruction_rows(ROWS // 2) + assets.source_rows(ROWS // 2)
    path.write_text("".join(json.dumps({"text": row}) + "\n" for row in rows), encoding="utf-8")
    return path


def dskd(*arguments: str) -> None:
    """The command, as anybody would call it."""
    subprocess.run([sys.executable, "-m", "dskd", *arguments], check=True)


def compare_with_reference(path: Path, pair: list[str]) -> None:
    """Aligns every row again with `dskd.reference` and stops at the first that differs."""
    teacher, student = (load_tokenizer(name).vocabulary for name in (pair[1], pair[3]))
    rows = pyarrow.parquet.read_table(path).to_pylist()
    for row in track(rows, "every pair and chunk", console=console):
        if (found := pairs_and_chunks(row)) != (expected := by_definition(row, teacher, student)):
            raise SystemExit(f"row {row['row']}: found {found}, by the definition {expected}")
    pairs = sum(len(row["pair_kind"]) for row in rows)
    chunks = sum(len(row["chunk_teacher_start"]) for row in rows)
    console.print(f"{len(rows):,} rows, {pairs:,} pairs and {chunks:,} chunks: all equal the reference")


def pairs_and_chunks(row: dict[str, list[int]]) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]]]:
    """A row of the file as the reference says it."""
    pairs = zip(row["pair_teacher"], row["pair_student"], row["pair_kind"], strict=True)
    return list(pairs), list(zip(*(row[f"chunk_{name}"] for name in RANGES), strict=True))


def by_definition(
    row: dict[str, list[int]], teacher: Vocabulary, student: Vocabulary
) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]]]:
    """The row aligned by the slow definition."""
    expected = reference.align(teacher, student, row["teacher_ids"], row["student_ids"])
    return list(expected.pairs), list(expected.chunks)


if __name__ == "__main__":
    main()
