"""The examples with `datasets` and Ray run; an aligner is the same to `datasets` in every process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

import assets
from conftest import needs_assets
from dskd import Aligner, Vocabulary
from dskd.arrow import list_array, record_batch
from dskd.cli.loading import load_tokenizer

if TYPE_CHECKING:
    from collections.abc import Mapping

EXAMPLES = Path(__file__).parents[1] / "examples"


def fetch_assets() -> None:
    for name in ("qwen2", "smollm2"):
        assets.tokenizer(name)


def run_example(name: str, *arguments: str, **environment: str) -> str:
    """What it prints."""
    ended = subprocess.run(
        [sys.executable, str(EXAMPLES / name), *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def expected_columns(rows: int) -> Mapping[str, Any]:
    """What aligning the rows of the examples finds, in one call."""
    teacher, student = (load_tokenizer(str(assets.tokenizer(name))) for name in ("qwen2", "smollm2"))
    texts = assets.source_rows(rows)
    aligner = Aligner(teacher.vocabulary, student.vocabulary)
    found = record_batch(aligner.align(teacher.encode_batch(texts), student.encode_batch(texts)))
    columns: dict[str, Any] = found.to_pydict()
    return columns


def test_datasets_map_in_two_processes_and_from_the_cache(tmp_path: Path) -> None:
    needs_assets(fetch_assets)
    caches = tmp_path / "cache"
    code = (
        f"import sys, json; sys.path.insert(0, {str(EXAMPLES)!r}); import with_datasets as example\n"
        "aligned = example.main(30)\n"
        "json.dump([aligned.to_dict(), [file['filename'] for file in aligned.cache_files]], sys.stderr)"
    )
    environment = {**os.environ, "HF_HOME": str(caches), "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
    found, files = [], []
    for seed in ("1", "2"):
        line = [sys.executable, "-W", "ignore", "-c", code]
        ended = subprocess.run(
            line, env={**environment, "PYTHONHASHSEED": seed}, capture_output=True, text=True, check=False
        )
        assert ended.returncode == 0, ended.stderr
        rows, written = json.loads(ended.stderr.splitlines()[-1])
        found.append((ended.stdout, rows))
        files.append({path: Path(path).stat().st_mtime_ns for path in written})
    assert found[0] == found[1]
    assert files[0] == files[1]  # the second process wrote nothing anew
    assert len(files[0]) == 2  # a file of each of two processes
    expected = expected_columns(30)
    assert {name: found[0][1][name] for name in expected} == expected


FINGERPRINT = """
import functools, sys, datasets, dskd
from datasets.fingerprint import Hasher
tokens = [b"a", b" b", b"ab", b"</s>", b"<s>"]
roles = {3: {"eos", "pad", "x", "y"}, 4: {"bos", "z"}}
sides = [dskd.Vocabulary.from_bytes(tokens, roles=roles), dskd.Vocabulary.from_bytes(tokens[1:])]
aligner = dskd.Aligner(*sides)
if sys.argv[1] == "used":
    aligner.align([[0, 1]], [[1, 0]])
    aligner.vocabulary_map, hash(aligner)
function = lambda batch: aligner.align(batch["teacher_ids"], batch["student_ids"])
print([Hasher.hash(each) for each in (aligner, aligner.align, function)])
"""


def test_an_equal_aligner_has_the_same_fingerprint_in_every_process() -> None:
    """Alone, as a method and inside a function; however strings are hashed, used before or new."""
    found = set()
    for seed, state in (("1", "new"), ("2", "new"), ("3", "used")):
        line = [sys.executable, "-W", "ignore", "-c", FINGERPRINT, state]
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        found.add(subprocess.run(line, env=environment, capture_output=True, text=True, check=True).stdout)
    assert len(found) == 1
    assert found.pop().count("'") == 6


def test_ray_aligns_what_one_call_aligns(tmp_path: Path) -> None:
    needs_assets(fetch_assets)
    said = run_example("with_ray.py", "30", str(tmp_path))
    assert said.startswith("30 rows, ")
    expected = expected_columns(30)
    found = pq.read_table(tmp_path / "aligned")
    rows = [dict(zip(expected, row, strict=True)) for row in zip(*expected.values(), strict=True)]
    # Blocks come in any order.
    assert sorted(map(repr, found.select(list(expected)).to_pylist())) == sorted(map(repr, rows))


def test_an_alignment_is_written_to_arrow_without_copies() -> None:
    vocabulary = Vocabulary.from_bytes([b"a", b" b"])
    alignment = Aligner(vocabulary, vocabulary).align([[0, 1], [], [1]], [[0, 1], [], [1]])
    found = record_batch(alignment)
    assert found["pair_teacher"].to_pylist() == [[0, 1], [], [0]]
    assert found["pair_kind"].type == pa.list_(pa.uint8())
    values = alignment.pairs.teacher
    assert list_array(values, alignment.pairs.offsets).values.buffers()[1].address == values.ctypes.data
