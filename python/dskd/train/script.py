"""`dskd-train`: reads its options, trains a student, and says where everything is.

    dskd-train --config run.yaml --learning_rate 1e-4

The file's keys are the options of the command line, and the command line beats the file.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import yaml
from transformers import HfArgumentParser, set_seed

from dskd.nn.losses import LOSSES
from dskd.nn.losses.options import help_of
from dskd.train import loading
from dskd.train.adapters import lora_config
from dskd.train.config import DistillationConfig, ScriptArguments, table_of
from dskd.train.data import load_rows
from dskd.train.reporting import MetricsFile, draw_curve
from dskd.train.student import carry_embeddings, cut_layers
from dskd.train.trainer import DistillationTrainer
from dskd.vocabulary import Vocabulary

__all__ = ["main", "parse", "train"]


def main(arguments: list[str] | None = None) -> None:
    """The command `dskd-train`; an error that the user can mend is one line."""
    try:
        train(*parse(sys.argv[1:] if arguments is None else arguments))
    except (ValueError, OSError, ImportError, FloatingPointError) as error:
        sys.exit(f"dskd-train: {error}")


_PARSED: Any = (ScriptArguments, DistillationConfig)


def parse(arguments: list[str]) -> tuple[ScriptArguments, DistillationConfig]:
    """The options of the file that `--config` names, and over them those of the command line.

    Raises:
        ValueError: the file has a key that is no option, or is no table of options.
        FileNotFoundError: there is no such file.
    """
    parser = HfArgumentParser(_PARSED, prog="dskd-train")
    parser.add_argument("--config", metavar="FILE", help="YAML or JSON with any of the options below.")
    of_losses = _add_options_of_losses(parser)
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    finder.add_argument("--config", type=Path)
    found, rest = finder.parse_known_args(arguments)
    from_file = [] if found.config is None else _as_arguments(_read(found.config, _names(parser)))
    given, others = _options_of_losses([*from_file, *rest], of_losses)
    if given:
        others.append(f"--loss_options={json.dumps({**_loss_options(others), **given})}")
    script, config = parser.parse_args_into_dataclasses(others, look_for_args_file=False)[:2]
    return script, config


def _names(parser: argparse.ArgumentParser) -> set[str]:
    return {action.dest for action in parser._actions} - {"help", "config"}  # noqa: SLF001 - no public list


def _add_options_of_losses(parser: argparse.ArgumentParser) -> set[str]:
    """The options of all losses, for the help and against typing errors; returns their names."""
    text: dict[str, list[str]] = {"preset": []}
    for name, kind in LOSSES.items():
        for option, said in help_of(kind).items():
            text.setdefault(option, []).append(f"{name}: {said}")
        if kind.presets:
            text["preset"].append(f"{name}: {', '.join(kind.presets)}.")
    group = parser.add_argument_group("options of the objective, see docs/losses.md")
    for option, each in text.items():
        alike = len({one.partition(": ")[2] for one in each}) == 1
        said = each[0].partition(": ")[2] if alike else " ".join(each)
        group.add_argument(f"--{option}", default=argparse.SUPPRESS, help=said.replace("%", "%%"))
    return set(text)


def _options_of_losses(arguments: list[str], names: set[str]) -> tuple[dict[str, Any], list[str]]:
    """Those of the objective, as YAML reads their values, and all other arguments."""
    reader = argparse.ArgumentParser(add_help=False, allow_abbrev=False, argument_default=argparse.SUPPRESS)
    for name in names:
        reader.add_argument(f"--{name}")
    found, others = reader.parse_known_args(arguments)
    return {name: _numbers(yaml.safe_load(value)) for name, value in vars(found).items()}, others


def _loss_options(arguments: list[str]) -> dict[str, Any]:
    """What `--loss_options` says, which single options beat."""
    reader = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    reader.add_argument("--loss_options")
    given = reader.parse_known_args(arguments)[0].loss_options
    return {} if given is None else table_of("loss_options", given)


def _read(path: Path, known: set[str]) -> dict[str, Any]:
    options = yaml.safe_load(path.read_text(encoding="utf-8"))
    if not isinstance(options, dict):
        raise ValueError(f"{path} is no table of options: NAME: VALUE a line")  # noqa: TRY004 - of a file
    if unknown := sorted(set(map(str, options)) - known):
        raise ValueError(f"{path}: there is no option {', '.join(unknown)}; dskd-train --help lists them")
    return options


def _numbers(value: Any) -> Any:
    """The same, with 1e-7 a number: YAML takes it for text, since it lacks a point or a sign."""
    if isinstance(value, dict):
        return {key: _numbers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_numbers(item) for item in value]
    if isinstance(value, str) and re.fullmatch(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+", value):
        return float(value)
    return value


def _as_arguments(options: dict[str, Any]) -> list[str]:
    """The options as a command line has them."""
    arguments = []
    for name, value in options.items():
        if value is None:
            continue
        if isinstance(value, dict) or name == "losses":
            arguments.append(f"--{name}={json.dumps(_numbers(value))}")
        elif isinstance(value, list):
            arguments += [f"--{name}", *map(str, value)]
        else:
            arguments.append(f"--{name}={value}")
    return arguments


def train(script: ScriptArguments, config: DistillationConfig) -> DistillationTrainer:
    """A whole run: tokenizers, models, data, training, files."""
    # The tokenizers run in the workers of a data loader, which are forked.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    folder = Path(str(config.output_dir))
    _refuse_to_overwrite(folder, resuming=bool(config.resume_from_checkpoint))
    set_seed(config.seed)

    train_rows = load_rows(script.train_data, split=script.train_split, **script.reading)
    eval_rows = None
    if script.eval_data is not None:
        eval_rows = load_rows(script.eval_data, split=script.eval_split, **script.reading)
    names = script.models_of_teachers
    tokenizers = {name: loading.load_tokenizer(model) for name, model in names.items()}
    student, tokenizer = load_student(script, config)
    config.model_init_kwargs = None  # used up: the trainer refuses them beside a model

    trainer = DistillationTrainer(
        student,
        names,
        config,
        processing_class=tokenizer,
        teacher_processing_class=tokenizers,
        peft_config=None if script.lora is None else lora_config(table_of("lora", script.lora)),
        roles=script.roles_of_student,
        teacher_roles=script.roles_of_teachers,
        train_dataset=train_rows,
        eval_dataset=eval_rows,
        callbacks=[MetricsFile(folder / "metrics.jsonl")],
    )
    if script.merge:
        trainer.refuse_merging()
    trainer.train(resume_from_checkpoint=config.resume_from_checkpoint)
    if eval_rows is not None and not _was_evaluated(trainer):
        trainer.evaluate()
    if script.merge:
        trainer.save_model(str(folder / "adapters"))
        trainer.merge_adapters()
    trainer.save_model()
    if trainer.is_world_process_zero():
        draw_curve(folder / "metrics.jsonl", folder / "loss.png", trainer.terms)
        for name, path in (("student", "."), ("metrics", "metrics.jsonl"), ("curve", "loss.png")):
            sys.stdout.write(f"{name:9} {folder / path}\n")
    return trainer


def _was_evaluated(trainer: DistillationTrainer) -> bool:
    """Whether the last step was, by `eval_strategy`."""
    state = trainer.state
    return any("eval_loss" in line and line["step"] == state.global_step for line in state.log_history)


def load_student(script: ScriptArguments, config: DistillationConfig) -> tuple[Any, Any]:
    """The student and its tokenizer, cut and carried over as told."""
    student = loading.load_student(script.student, table_of("model_init_kwargs", config.model_init_kwargs))
    tokenizer = loading.load_tokenizer(script.student_tokenizer or script.student)
    if script.student_layers is not None:
        student = cut_layers(student, script.student_layers)
    if script.student_tokenizer is not None:
        old = loading.load_tokenizer(script.student)
        size = student.get_output_embeddings().weight.shape[0]
        carry_embeddings(
            student,
            (old, Vocabulary.from_tokenizer(old, size=size)),
            (tokenizer, Vocabulary.from_tokenizer(tokenizer, roles=script.roles_of_student)),
        )
    return student, tokenizer


def _refuse_to_overwrite(folder: Path, *, resuming: bool) -> None:
    """What an earlier run left is not lost, and not mixed with."""
    if not resuming and folder.is_dir() and any(folder.iterdir()):
        raise ValueError(
            f"{folder} is not empty; give another --output_dir, remove it, or --resume_from_checkpoint"
        )
