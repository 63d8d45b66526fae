"""What a run is told: the options of distillation, and those of `dskd-train`."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from transformers import TrainingArguments

from dskd.nn.batch import ONLY_TEACHER
from dskd.nn.losses import LOSSES, CrossEntropy
from dskd.nn.losses.comparing import refuse_other
from dskd.nn.losses.options import loss_of
from dskd.nn.objective import Weighted
from dskd.train.adapters import is_folder
from dskd.train.rendering import TrainOn
from dskd.train.row_format import FORMATS, RowFormat
from dskd.train.side import STUDENT, AddBos, SystemRole

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["DistillationConfig", "ScriptArguments"]

CROSS_ENTROPY_ALONE = "sft"

_CHOICES: Mapping[str, Sequence[str]] = {
    "train_on": get_args(TrainOn),
    "add_bos": get_args(AddBos),
    "system_role": get_args(SystemRole),
}


def _option(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass
class DistillationConfig(TrainingArguments):
    """`transformers.TrainingArguments`, and how to distill.

    The options of a loss are those of its class, see `dskd.nn.LOSSES` and docs/losses.md.

    Raises:
        ValueError: an option is out of its range.
    """

    objective: str = _option(
        "dual_space",
        f"A loss beside the cross-entropy: {', '.join(name for name in LOSSES if name != 'cross_entropy')}; "
        f"or {CROSS_ENTROPY_ALONE}, cross-entropy alone. Several, or several teachers, are losses, where the "
        "cross-entropy is cross_entropy.",
    )
    alpha: float = _option(0.5, "The objective's share; 1 - alpha is the share of the cross-entropy.")
    loss_options: dict[str, Any] | str | None = _option(  # noqa: RUF009 - a field
        None,
        "The objective's options, as JSON or a table; in a file or on a command line each has its own name.",
    )
    losses: list[dict[str, Any]] | str | None = _option(  # noqa: RUF009
        None,
        "In place of an objective a weighted sum, a list as JSON or in a file: each has "
        f"loss (one of {', '.join(LOSSES)}), weight (1), teacher (where there are several), preset, and "
        "options of its own.",
    )
    projector_learning_rate: float = _option(
        5e-4, "Of the projectors, and of all that is trained beside the student, without weight decay."
    )
    model_init_kwargs: dict[str, Any] | str | None = _option(  # noqa: RUF009
        None,
        "What the student is loaded with, as JSON or a table: dtype (float32 unless said), "
        "attn_implementation, quantization_config ..., see from_pretrained of transformers.",
    )
    teacher_model_init_kwargs: dict[str, Any] | str | None = _option(  # noqa: RUF009
        None,
        "The same for the teacher, device_map too (of several teachers by their names); on a CPU its dtype "
        "is float32 unless said, else that of its files.",
    )
    max_prompt_length: int = _option(
        512,
        "Tokens before the turn that is learnt, on each side; of a longer conversation the first exchanges "
        "go, of a longer question its beginning.",
    )
    max_response_length: int = _option(512, "Tokens of a response, on each side; its end is cut off.")
    train_on: str = _option("all", "Which turns of the assistant are learnt: all, or last.")
    add_bos: str = _option(
        "auto",
        "Whether a row begins with the beginning of sequence: auto, as the chat template writes it, and "
        "plain text as the tokenizer or the template would; true; false.",
    )
    chat_template: str | None = _option(
        None, "The student's, in place of its tokenizer's own: a file, or Jinja text."
    )
    teacher_chat_template: dict[str, Any] | str | None = _option(  # noqa: RUF009
        None, "The same for the teacher; of several teachers by their names, as JSON."
    )
    chat_template_kwargs: dict[str, Any] | str | None = _option(  # noqa: RUF009
        None, 'Variables of the chat templates, as JSON: {"enable_thinking": false}.'
    )
    system_role: str = _option(
        "system",
        "What becomes of a system message: system, as the template has it; user, in front of the first "
        "question, for templates that refuse one; drop.",
    )
    parse_markers: bool = _option(
        True,
        "Whether the literal of a special token in a text of a row is that token, as when the model is "
        "asked; false for texts that are not trusted.",
    )

    def __post_init__(self) -> None:
        """Checks the options, and sets those of transformers that have only one right value here."""
        # The collator needs the text; the NaN filter would show a broken loss as 0.
        self.remove_unused_columns = False
        self.logging_nan_inf_filter = False
        super().__post_init__()  # type: ignore[no-untyped-call]
        # Streamed rows too are collated where they are trained on: accelerate can cut tensors, not a batch.
        of_accelerate: Any = self.accelerator_config  # read by now
        of_accelerate.dispatch_batches = False
        if self.device.type == "cpu":
            self.dataloader_pin_memory = False  # PyTorch warns of what has no use there
        self.loss_options = table_of("loss_options", self.loss_options)
        for name in ("model_init_kwargs", "teacher_model_init_kwargs"):
            setattr(self, name, table_of(name, getattr(self, name)) or None)
        self.losses = None if self.losses is None else _entries(self.losses)
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"alpha={self.alpha}; it is a share, from 0 to 1")
        refuse_other("projector_learning_rate", self.projector_learning_rate)
        for name in ("max_prompt_length", "max_response_length"):
            value = getattr(self, name)
            if value < 1:
                raise ValueError(f"{name}={value}; it is at least 1")
        self.chat_template_kwargs = table_of("chat_template_kwargs", self.chat_template_kwargs)
        for name, choices in _CHOICES.items():
            if (given := getattr(self, name)) not in choices:
                raise ValueError(f"{name}={given!r}; it is one of {', '.join(choices)}")
        self.weighted()

    def template_of(self, name: str) -> str | None:
        """The chat template that a model is to have in place of its own, as Jinja text.

        Args:
            name: `student`, or a teacher's.
        """
        given: Any = self.chat_template if name == STUDENT else self.teacher_chat_template
        if name != STUDENT and (isinstance(given, dict) or _is_table(given)):
            given = table_of("teacher_chat_template", given).get(name)
        if given is None or "{" in given:
            return None if given is None else str(given)
        return Path(given).expanduser().read_text(encoding="utf-8")

    def weighted(self) -> Sequence[Weighted]:
        """The losses of the run.

        Raises:
            ValueError: there is no such loss, or an option is not as it should be.
        """
        if self.losses is not None:
            self._refuse_beside_losses()
            return [_weighted(index, entry) for index, entry in enumerate(_entries(self.losses))]
        given = table_of("loss_options", self.loss_options)
        if self.objective == CROSS_ENTROPY_ALONE:
            if given:
                raise ValueError(f"objective={CROSS_ENTROPY_ALONE!r} has no option {', '.join(given)}")
            return [Weighted(CrossEntropy())]
        loss = loss_of(self.objective, given, preset=given.pop("preset", None))
        return [Weighted(CrossEntropy(), 1 - self.alpha), Weighted(loss, self.alpha)]

    def _refuse_beside_losses(self) -> None:
        """What would not be looked at, where one could believe it was."""
        fields = type(self).__dataclass_fields__
        for name in ("objective", "alpha"):
            if getattr(self, name) != fields[name].default:
                raise ValueError(
                    f"{name}={getattr(self, name)!r} beside losses, which say all: leave one out"
                )
        if self.loss_options:
            raise ValueError(f"{', '.join(self.loss_options)} beside losses: options stand in their entries")


def _is_table(given: Any) -> bool:
    """Whether it is JSON of a table, and not Jinja."""
    return isinstance(given, str) and given.lstrip().startswith('{"')


def _weighted(index: int, entry: Mapping[str, Any]) -> Weighted:
    given = dict(entry)
    name = given.pop("loss", None)
    if name is None:
        raise ValueError(f"losses, entry {index} (from 0) has no loss: NAME; there is {', '.join(LOSSES)}")
    weight, teacher = given.pop("weight", 1.0), given.pop("teacher", ONLY_TEACHER)
    if isinstance(weight, bool) or not isinstance(weight, int | float):
        raise ValueError(f"losses, entry {index} (from 0): weight={weight!r}; it is a number")  # noqa: TRY004
    refuse_other(f"losses, entry {index} (from 0): weight", weight)
    return Weighted(loss_of(name, given, preset=given.pop("preset", None)), float(weight), teacher)


def table_of(name: str, given: Any) -> dict[str, Any]:
    found = _read_json(name, given) if isinstance(given, str) else given
    if found is not None and not isinstance(found, dict):
        raise ValueError(f"{name}={given!r} is no table of options")
    return dict(found or {})


def _entries(given: Any) -> list[dict[str, Any]]:
    found = _read_json("losses", given) if isinstance(given, str) else given
    if not isinstance(found, list) or not found or not all(isinstance(one, dict) for one in found):
        raise ValueError('losses is a list, and each of it a table: [{"loss": "dual_space", "weight": 0.5}]')
    return [dict(one) for one in found]


def _read_json(name: str, given: str) -> Any:
    try:
        return json.loads(given)
    except json.JSONDecodeError as error:
        raise ValueError(f"{name}={given!r} is no JSON: {error}") from error


@dataclass
class ScriptArguments:
    """What `dskd-train` is told besides: which models and which data."""

    teacher: str = _option("", "A causal language model: a hub name or a folder.")
    student: str = _option("", "The model to train: a hub name or a folder.")
    train_data: str = _option(
        "", "Rows, see docs/data.md: a file (JSON lines, JSON, CSV, Parquet), a folder, or a data set's name."
    )
    eval_data: str | None = _option(None, "The same for evaluation.")
    train_split: str = _option("train", "Of train_data; a part of it as train[:1000].")
    eval_split: str | None = _option(
        None, "Of eval_data; else its validation or its test split, whichever is there."
    )
    row_format: str | None = _option(
        None, f"How rows look that are not as docs/data.md says: {', '.join(FORMATS)}."
    )
    row_columns: dict[str, Any] | str | None = _option(  # noqa: RUF009 - a field
        None,
        'Columns that have other names, as JSON or a table: {"prompt": "question", "completion": "answer"}.',
    )
    ignore_columns: list[str] | None = _option(  # noqa: RUF009
        None, "Columns to leave out: those that nobody would look at are refused otherwise."
    )
    streaming: bool = _option(False, "Read rows as they are trained on, and check them then.")
    skip_bad_rows: bool = _option(False, "Leave out rows that are not as they should be; how many is logged.")
    teachers: dict[str, Any] | str | None = _option(  # noqa: RUF009 - a field
        None, 'In place of teacher several, by the names that losses call them, as JSON: {"big": "..."}.'
    )
    teacher_roles: dict[str, Any] | str | None = _option(  # noqa: RUF009
        None,
        'Roles that the teacher\'s tokenizer does not name, as JSON: {"<|endoftext|>": ["eos"]}; of several '
        "teachers by their names.",
    )
    student_roles: dict[str, Any] | str | None = _option(  # noqa: RUF009
        None, "The same for the student's tokenizer."
    )
    student_tokenizer: str | None = _option(
        None, "Give the student this tokenizer first, its embeddings carried over by token bytes."
    )
    student_layers: list[int] | None = _option(  # noqa: RUF009
        None, "Keep only these layers of the student first."
    )
    lora: dict[str, Any] | str | None = _option(  # noqa: RUF009
        None,
        'Train adapters alone, with these options of peft.LoraConfig, as JSON: {"r": 16, "alpha": 32, '
        '"target_modules": "all-linear"}; output_dir is then a folder of adapters.',
    )
    merge: bool = _option(
        False,
        "At the end put the adapters into the student: output_dir is a plain model, adapters/ beside it.",
    )

    def __post_init__(self) -> None:
        """Reads what the command line gives as JSON.

        Raises:
            ValueError: a model or the data is not named, roles or columns are no JSON, or there is no such
                format.
        """
        several = table_of("teachers", self.teachers)
        if several and self.teacher:
            raise ValueError("teacher and teachers are both given: leave one out")
        self.models_of_teachers = several or {ONLY_TEACHER: self.teacher}
        if not all(self.models_of_teachers.values()):
            raise ValueError("teacher is not given: --teacher, or a line teacher: in the file of --config")
        for name in ("student", "train_data"):
            if not getattr(self, name):
                raise ValueError(f"{name} is not given: --{name}, or a line {name}: in the file of --config")
        self.lora = None if self.lora is None else table_of("lora", self.lora)
        self._refuse_lora()
        given = table_of("teacher_roles", self.teacher_roles)
        by_name = given if several else {ONLY_TEACHER: given}
        if unknown := sorted(by_name.keys() - self.models_of_teachers.keys()):
            raise ValueError(f"teacher_roles of {', '.join(unknown)}, which is none of teachers")
        self.roles_of_teachers = {name: _roles(roles) for name, roles in by_name.items()}
        self.roles_of_student = _roles(table_of("student_roles", self.student_roles))
        self.reading: dict[str, Any] = {
            "row_format": RowFormat(
                self.row_format, table_of("row_columns", self.row_columns), tuple(self.ignore_columns or ())
            ),
            "streaming": self.streaming,
            "skip_bad_rows": self.skip_bad_rows,
        }
        """How `load_rows` reads."""

    def _refuse_lora(self) -> None:
        if self.merge and self.lora is None and not is_folder(self.student):
            raise ValueError("merge without lora: there is nothing to merge; leave it out")
        changes = ("student_layers", "student_tokenizer")
        changed = " and ".join(name for name in changes if getattr(self, name) is not None)
        if changed and is_folder(self.student):
            raise ValueError(f"{changed} beside a student that is a folder of adapters: merge these first")
        if changed and self.lora is not None and not self.merge:
            raise ValueError(
                f"lora beside {changed}: the adapters would belong to a model that is nowhere; merge: true "
                "keeps it whole, or save that model first and name it as the student"
            )


def _roles(given: Mapping[str, Any]) -> dict[str, set[str]]:
    return {token: set(names) for token, names in given.items()}
