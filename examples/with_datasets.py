"""Aligns real text with `datasets.map` in two processes, ids and alignment as Arrow.

    python examples/with_datasets.py [ROWS]

`datasets` knows a function by a hash of it and of what it is given. That of an aligner depends on its two
vocabularies alone, so a later run with the same tokenizers finds its result in the cache, and aligns nothing.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import datasets
import pyarrow as pa
import transformers

import assets
from dskd import Aligner
from dskd.arrow import record_batch

if TYPE_CHECKING:
    from collections.abc import Iterator


def text_rows(count: int) -> Iterator[dict[str, str]]:
    """Real text; a data set that lies in files has a cache, and one made of a list has none."""
    return ({"text": text} for text in assets.source_rows(count))


def tokenize(texts: dict[str, list[str]], teacher: str, student: str) -> dict[str, list[list[int]]]:
    """The ids of a batch of texts by two tokenizers."""
    sides = [transformers.AutoTokenizer.from_pretrained(folder) for folder in (teacher, student)]
    teacher_ids, student_ids = (side(texts["text"], add_special_tokens=False).input_ids for side in sides)
    return {"teacher_ids": teacher_ids, "student_ids": student_ids}


def align(ids: pa.Table, aligner: Aligner) -> pa.Table:
    """A batch of ids, and what aligning them finds; no id becomes an object of Python's."""
    found = record_batch(aligner.align(ids["teacher_ids"], ids["student_ids"]))
    return pa.table([*ids.columns, *found.columns], names=[*ids.column_names, *found.schema.names])


def main(rows: int = 200) -> datasets.Dataset:
    """The aligned rows; says how many of the student's tokens are paired."""
    folders = [str(assets.tokenizer(name)) for name in ("qwen2", "smollm2")]
    aligner = Aligner(*(transformers.AutoTokenizer.from_pretrained(folder) for folder in folders))
    texts = datasets.Dataset.from_generator(text_rows, gen_kwargs={"count": rows})
    sides = {"teacher": folders[0], "student": folders[1]}
    ids = texts.map(tokenize, batched=True, remove_columns="text", fn_kwargs=sides)
    aligned = ids.with_format("arrow").map(align, batched=True, num_proc=2, fn_kwargs={"aligner": aligner})
    table = aligned.with_format("numpy")[:]
    ratio = (table["exact"] + table["space"]).sum() / table["student_tokens"].sum()
    print(f"{len(aligned)} rows, {ratio:.1%} of the student's tokens paired")
    return aligned


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
