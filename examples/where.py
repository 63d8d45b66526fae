"""Where the students of `examples/distill.py` differ: their bits a byte by kind of token.

    python examples/where.py demo/distill [demo/seed1 ...]    # folders that distill.py has written

The held-out text is split by the student's tokens: the first of a response, those that pair with a teacher's
token and so receive its distribution, those that do not, and, of all of them, those that the teacher's
vocabulary has no counterpart for. The end of turn is apart. Several folders of the same runs are averaged.
"""

from __future__ import annotations

import json
import math
import sys
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM, AutoTokenizer

import assets
from distill import ROLES
from dskd import Aligner, Vocabulary
from dskd.nn import Head
from dskd.train import Collated, DistillationCollator, Side, TeacherSide
from dskd.train.model import hidden_states

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

KINDS = ("first", "paired", "not paired", "no counterpart", "end of turn")


def main() -> None:
    """Measures every run of every folder."""
    folders = [Path(name) for name in sys.argv[1:]] or [Path("demo/distill")]
    collator = make_collator()
    found: dict[str, list[dict[str, float]]] = defaultdict(list)
    for folder in folders:
        rows = list(map(json.loads, (folder / "held_out.jsonl").read_text(encoding="utf-8").splitlines()))
        for run in sorted(path.parent for path in folder.glob("*/metrics.jsonl")):
            found[run.name].append(bits_by_kind(run, collator, rows))
    table = Table(title=f"bits a byte of held-out text, mean of {len(folders)}", title_justify="left")
    for column in ("", *KINDS[:-1], "end of turn, bits"):
        table.add_column(column, justify="right" if column else "left")
    for name, of_folders in found.items():
        means = [sum(bits[kind] for bits in of_folders) / len(of_folders) for kind in KINDS]
        table.add_row(name, *(f"{mean:.3f}" for mean in means))
    Console(highlight=False).print(table)


def make_collator() -> DistillationCollator:
    """The two sides of the demo."""
    tokenizers = [
        AutoTokenizer.from_pretrained(path)
        for path in (assets.model("smollm2"), assets.tokenizer("mistral-v1"))
    ]
    teacher = Side(tokenizers[0], Vocabulary.from_tokenizer(tokenizers[0], roles=ROLES))
    student = Side(tokenizers[1], Vocabulary.from_tokenizer(tokenizers[1]))
    aligner = Aligner(teacher.vocabulary, student.vocabulary)
    return DistillationCollator(student, {"teacher": TeacherSide(teacher, aligner)})


@torch.no_grad()
def bits_by_kind(
    run: Path, collator: DistillationCollator, rows: list[Mapping[str, Any]]
) -> dict[str, float]:
    """Bits a byte of the tokens of each kind; bits a response of the ends of turn."""
    model: Any = AutoModelForCausalLM.from_pretrained(run, dtype=torch.float32)
    model.eval()
    bits: dict[str, float] = defaultdict(float)
    size: dict[str, int] = defaultdict(int)
    for row in rows:
        batch = collator([row])
        states = hidden_states(model, batch.student.input_ids, batch.student.attention_mask)
        supervised = batch.places.student
        logits = Head.of(model).logits(supervised.of(states))
        nats = torch.nn.functional.cross_entropy(logits, supervised.labels, reduction="none")
        for index, kind in kinds_of(batch, collator):
            bits[kind] += float(nats[index]) / math.log(2)
            text = collator.student.vocabulary.token_bytes(int(supervised.labels[index])) or b""
            size[kind] += len(text) if kind != "end of turn" else 1
    return {kind: bits[kind] / max(size[kind], 1) for kind in KINDS}


def kinds_of(batch: Collated, collator: DistillationCollator) -> Iterator[tuple[int, str]]:
    """The kinds of every supervised position of one row; one may have two."""
    supervised, paired = batch.places.student, set(batch.places.teachers["teacher"].paired.tolist())
    counterpart = collator.teachers["teacher"].aligner.vocabulary_map.student_to_teacher
    first = int(supervised.column.min())
    for index, (label, column) in enumerate(
        zip(supervised.labels.tolist(), supervised.column.tolist(), strict=True)
    ):
        if not collator.student.vocabulary.token_bytes(label):
            yield index, "end of turn"
            continue
        yield index, "first" if column == first else "paired" if index in paired else "not paired"
        if counterpart[label] < 0:
            yield index, "no counterpart"


if __name__ == "__main__":
    main()
