"""What `make demo` ends with: a real teacher distilled into a student with another tokenizer.

1. Fetches SmolLM2-135M-Instruct (byte-level BPE) and Mistral 7B's tokenizer (SentencePiece), see assets.py.
2. Makes a student to start from: nine of the teacher's thirty layers, its embeddings carried over to
   Mistral's vocabulary by token bytes; or, with `--start narrow`, a narrower one with random weights.
3. Trains it with `dskd-train --config`, from the same start on the same batches in the same order: by
   cross-entropy alone (SFT), by dual-space distillation in as many steps, and by SFT again for as long as
   that took.
4. Measures bits per byte of text that was in no training, and lets the student answer.

    python examples/distill.py [--steps 50] [--seed 0] [--runs sft dual_space shared_vocabulary]
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

import assets
from dskd import Vocabulary
from dskd.train import Side, carry_embeddings, cut_layers, held_out

LAYERS = [0, 1, 2, 3, 10, 17, 24, 28, 29]
ROLES = {"<|endoftext|>": {"eos"}}  # its configuration calls it the unknown token and nothing else
ROWS: dict[assets.Split, int] = {"train": 1_600, "held_out": 240}
BATCH = 8
RUNS: dict[str, dict[str, Any]] = {
    "sft": {"objective": "sft"},
    "dual_space": {"objective": "dual_space"},
    "dual_space_published": {"objective": "dual_space", "preset": "dskd_v2"},
    "dual_space_ungated": {"objective": "dual_space", "preset": "dskd_ungated"},
    "sft_equal_time": {"objective": "sft"},
    "shared_vocabulary": {"objective": "shared_vocabulary"},
}
# glibc gives large blocks back to the system and asks for them again at every step, which costs page faults.
KEEP_MEMORY = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "100000000000",
    "MALLOC_TOP_PAD_": "1000000000",
}

console = Console(highlight=False)


@dataclass(frozen=True)
class Measured:
    """A line of the table."""

    name: str
    bits_per_byte: float
    end_of_turn_bits: float
    steps: int = 0
    seconds_a_step: float = 0.0
    ratio: float = 0.0
    coverage: float = 0.0


def main() -> None:
    """Runs the four steps."""
    arguments = parse()
    folder = arguments.output
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    console.rule("1  a real teacher, another tokenizer, real text")
    teacher, tokenizer = assets.model("smollm2"), assets.tokenizer("mistral-v1")
    data = {str(split): write_rows(folder, split, arguments.steps) for split in ROWS}
    console.print(f"teacher   {teacher}\ntokenizer {tokenizer}\nrows      {data['train']}", soft_wrap=True)
    console.rule("2  a student to start from")
    start = make_start(arguments.start, teacher, tokenizer, folder / "start")
    lines = [measure("teacher", teacher, data["held_out"], ROLES), measure("start", start, data["held_out"])]
    console.rule("3  training")
    for name in arguments.runs:
        steps = arguments.steps if name != "sft_equal_time" else steps_in_equal_time(lines)
        lines.append(
            train(name, steps, arguments.seed, folder, {"teacher": teacher, "student": start, **data})
        )
    console.rule("4  held-out text")
    report(lines)
    answer(folder / arguments.runs[min(1, len(arguments.runs) - 1)], data["held_out"])
    (folder / "summary.json").write_text(json.dumps([asdict(line) for line in lines], indent=1) + "\n")
    console.print(f"written: {folder}/summary.json, and in {folder}/RUN students, metrics.jsonl and loss.png")


def parse() -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description="Distill SmolLM2-135M-Instruct into a smaller student.")
    parser.add_argument("--steps", type=int, default=50, help="of SFT and dual space, 8 rows each; 50")
    parser.add_argument("--seed", type=int, default=0, help="of the order of the rows; 0")
    parser.add_argument("--start", choices=("cut", "narrow"), default="cut", help="the student; cut")
    runs = ("sft", "dual_space", "sft_equal_time")
    parser.add_argument("--runs", nargs="+", choices=RUNS, default=runs, help=f"{' '.join(runs)}")
    parser.add_argument("--output", type=Path, default=Path("demo/distill"), help="demo/distill")
    return parser.parse_args()


def write_rows(folder: Path, split: assets.Split, steps: int) -> Path:
    """The rows of a split as JSON lines; in a smoke run only what is needed."""
    path = folder / f"{split}.jsonl"
    count = ROWS[split] if steps >= 20 else min(ROWS[split], BATCH * max(steps, 2))  # noqa: PLR2004
    rows = assets.prompt_rows(split, count)
    path.write_text("".join(json.dumps(row_of(row)) + "\n" for row in rows), encoding="utf-8")
    return path


def row_of(row: assets.PromptRow) -> dict[str, str]:
    """What is trained on: a column that nobody looks at would be refused."""
    return {"prompt": row.prompt, "completion": row.completion}


def make_start(kind: str, teacher: Path, tokenizer: Path, folder: Path) -> Path:
    """The folder of the student that every run starts from."""
    old, new = AutoTokenizer.from_pretrained(teacher), AutoTokenizer.from_pretrained(tokenizer)
    torch.manual_seed(0)
    if kind == "cut":
        student = cut_layers(AutoModelForCausalLM.from_pretrained(teacher, dtype=torch.float32), LAYERS)
        sides = (old, Vocabulary.from_tokenizer(old, roles=ROLES)), (new, Vocabulary.from_tokenizer(new))
        carry_embeddings(student, *sides)
    else:
        student = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=len(new),
                hidden_size=384,
                intermediate_size=1024,
                num_hidden_layers=6,
                num_attention_heads=6,
                num_key_value_heads=2,
                tie_word_embeddings=True,
                bos_token_id=new.bos_token_id,
                eos_token_id=new.eos_token_id,
            )
        )
    student.save_pretrained(folder)
    new.save_pretrained(folder)
    millions = sum(one.numel() for one in student.parameters()) / 1e6
    console.print(f"{millions:.0f} M parameters, vocabulary of {len(new):,}: {folder}")
    return folder


def measure(name: str, model: Path, rows: Path, roles: dict[str, set[str]] | None = None) -> Measured:
    """What the model in a folder says of the held-out rows."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    side = Side(tokenizer, Vocabulary.from_tokenizer(tokenizer, roles=roles))
    network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    found = held_out(network, side, map(json.loads, rows.read_text(encoding="utf-8").splitlines()))
    console.print(f"{name}: {found.bits_per_byte:.3f} bits per byte of {found.rows} held-out responses")
    return Measured(name, found.bits_per_byte, found.end_of_turn_bits)


def steps_in_equal_time(lines: list[Measured]) -> int:
    """How many steps of SFT take as long as dual-space distillation did."""
    (sft,) = (line for line in lines if line.name == "sft")
    dual = next(line for line in lines if line.name.startswith("dual_space"))
    return round(dual.steps * dual.seconds_a_step / sft.seconds_a_step)


def train(name: str, steps: int, seed: int, folder: Path, paths: dict[str, Path]) -> Measured:
    """One run of `dskd-train`, as anybody would start it."""
    config = {
        "teacher": str(paths["teacher"]),
        "teacher_roles": {token: sorted(roles) for token, roles in ROLES.items()},
        "student": str(paths["student"]),
        "train_data": str(paths["train"]),
        "eval_data": str(paths["held_out"]),
        "output_dir": str(folder / name),
        **RUNS[name],
        "alpha": 0.5,
        "max_steps": steps,
        "per_device_train_batch_size": BATCH,
        "learning_rate": 1e-3,
        "projector_learning_rate": 1e-4,
        "warmup_steps": max(steps // 10, 1),
        "lr_scheduler_type": "cosine_with_min_lr",
        "lr_scheduler_kwargs": {"min_lr_rate": 0.1},
        "adam_beta2": 0.95,
        "max_grad_norm": 1.0,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "seed": seed,
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    console.print(f"dskd-train --config {path}")
    command = [sys.executable, "-m", "dskd", "train", "--config", str(path)]
    subprocess.run(command, check=True, env={**os.environ, **KEEP_MEMORY})
    return measured_by(folder / name / "metrics.jsonl", name)


def measured_by(metrics: Path, name: str) -> Measured:
    """What a run wrote down."""
    lines = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    last: dict[str, Any] = {}
    for line in lines:
        last |= line
    trained = [line for line in lines if "ratio" in line]
    tokens, size = (sum(line[name] for line in trained) for name in ("student_tokens", "student_bytes"))
    return Measured(
        name,
        last["eval_bits_per_byte"],
        last["eval_end_of_turn_bits"],
        last["step"],
        last["train_runtime"] / last["step"],
        sum(line["ratio"] * line["student_tokens"] for line in trained) / tokens,
        sum(line["coverage_student"] * line["student_bytes"] for line in trained) / size,
    )


def report(lines: list[Measured]) -> None:
    """The table."""
    table = Table(title="held-out responses: bits a byte of text, bits an end of turn", title_justify="left")
    for column in ("", "bits/byte", "end, bits", "steps", "s/step", "ratio", "coverage"):
        table.add_column(column, justify="right" if column else "left", no_wrap=True)
    for line in lines:
        trained = (
            (f"{line.steps}", f"{line.seconds_a_step:.2f}", f"{line.ratio:.1%}", f"{line.coverage:.1%}")
            if line.steps
            else ("", "", "", "")
        )
        table.add_row(line.name, f"{line.bits_per_byte:.3f}", f"{line.end_of_turn_bits:.2f}", *trained)
    console.print(table)


def answer(model: Path, rows: Path) -> None:
    """What the student says to a held-out prompt, by greedy decoding."""
    prompt = next(
        row["prompt"]
        for row in map(json.loads, rows.read_text(encoding="utf-8").splitlines())
        if not row["prompt"].endswith(("Answer:", "Summary:"))
    )
    tokenizer = AutoTokenizer.from_pretrained(model)
    student = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    ids = tokenizer(prompt, return_tensors="pt", add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        written = student.generate(ids, max_new_tokens=40, do_sample=False, repetition_penalty=1.2)
    text = tokenizer.decode(written[0, ids.shape[1] :], skip_special_tokens=True)
    console.print(
        f"[bold]{model.name}[/bold] goes on with a held-out text:\n  {prompt}\n  [bold]{text}[/bold]"
    )


if __name__ == "__main__":
    main()
