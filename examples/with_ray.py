"""Aligns real text with Ray Data on a local Ray: ids from Parquet, aligned by two actors, to Parquet.

    python examples/with_ray.py [ROWS [FOLDER]]

An actor keeps its aligner, which is sent to it once. Ray cuts the rows into blocks and feeds them as Arrow.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import ray
import tokenizers

import assets
from dskd import Aligner
from dskd.arrow import record_batch


class Align:
    """What an actor does with a batch."""

    def __init__(self, aligner: Aligner) -> None:
        """Keeps the aligner for all batches."""
        self.aligner = aligner

    def __call__(self, ids: pa.Table) -> pa.Table:
        """The ids, and what aligning them finds; in one thread, since Ray counts a processor for an actor."""
        found = record_batch(self.aligner.align(ids["teacher_ids"], ids["student_ids"], num_threads=1))
        return pa.table([*ids.columns, *found.columns], names=[*ids.column_names, *found.schema.names])


def write_ids(path: Path, sides: list[tokenizers.Tokenizer], rows: int) -> None:
    """Real text as ids of both sides."""
    texts = assets.source_rows(rows)
    ids = [[each.ids for each in side.encode_batch_fast(texts, add_special_tokens=False)] for side in sides]
    lists = [pa.array(side, pa.list_(pa.int32())) for side in ids]
    pq.write_table(pa.table(lists, names=["teacher_ids", "student_ids"]), path)


def main(rows: int = 200, folder: Path = Path("demo/ray")) -> None:
    """Writes the ids, aligns them, and says how many of the student's tokens are paired."""
    folder.mkdir(parents=True, exist_ok=True)
    files = [assets.tokenizer(name) / "tokenizer.json" for name in ("qwen2", "smollm2")]
    sides = [tokenizers.Tokenizer.from_file(str(file)) for file in files]
    write_ids(folder / "ids.parquet", sides, rows)

    # Two processors of four for the actors; what reads and writes needs some, too.
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False)
    ids = ray.data.read_parquet(str(folder / "ids.parquet"), override_num_blocks=4)
    aligned = ids.map_batches(
        Align,
        fn_constructor_args=(Aligner(*sides),),
        batch_format="pyarrow",
        batch_size=64,
        compute=ray.data.ActorPoolStrategy(size=2),
    )
    aligned.write_parquet(str(folder / "aligned"), mode=ray.data.SaveMode.OVERWRITE)
    ray.shutdown()

    table = pq.read_table(folder / "aligned", columns=["exact", "space", "student_tokens"])
    exact, space, tokens = (sum(column.to_pylist()) for column in table.columns)
    print(f"{len(table)} rows, {(exact + space) / tokens:.1%} of the student's tokens paired")


if __name__ == "__main__":
    main(*(kind(value) for kind, value in zip((int, Path), sys.argv[1:], strict=False)))
