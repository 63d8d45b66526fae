"""`transformers.Trainer` with a teacher beside it."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from transformers import Trainer
from transformers.trainer_utils import PredictionOutput

from dskd.alignment import Aligner
from dskd.columns import Counts
from dskd.nn.adapted import weight_of
from dskd.nn.batch import ONLY_TEACHER, TeacherModel, VocabularyMaps, named
from dskd.nn.heads import Head
from dskd.nn.loss import Needs
from dskd.nn.objective import Objective
from dskd.nn.projector_files import load_projectors, save_projectors
from dskd.nn.reduction import Reduction
from dskd.train.adapters import is_adapted, load_adapters, merged, refuse_merging
from dskd.train.collator import DistillationCollator, TeacherSide
from dskd.train.evaluation import held_out
from dskd.train.loading import ready_student, ready_teacher, tokenizer_of
from dskd.train.model import DistillationModel, head_of, hidden_states
from dskd.train.prediction import likeliest
from dskd.train.rendering import Template
from dskd.train.side import STUDENT, Side, stops_of
from dskd.train.stops import with_stops
from dskd.vocabulary import Vocabulary

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor, nn

    from dskd.nn.batch import Teacher
    from dskd.train.collator import Collated
    from dskd.train.config import DistillationConfig
    from dskd.vocabulary import RolesLike

__all__ = ["PROJECTORS_FILE", "DistillationTrainer"]

PROJECTORS_FILE = "projectors.safetensors"
"""Beside the student's own files, which know nothing of it."""


class DistillationTrainer(Trainer):
    """Trains a student on rows of text, with a teacher whose tokenizer is another.

    Args:
        model: the student, a causal language model of transformers, or a `PeftModel` around one; or a name,
            and it is loaded with `model_init_kwargs`.
        teacher: the same; it is frozen and put in eval mode. Several by name, as the losses call them.
        args: see `DistillationConfig`.
        train_dataset: rows of text, see docs/data.md; the first ones are looked at here.
        eval_dataset: the same; `evaluate` says its bits per byte.
        processing_class: the student's tokenizer of transformers, fast; of a model by name, that of its name.
        teacher_processing_class: the teacher's; of several by name.
        peft_config: of PEFT; the student gets these adapters, which alone are trained and saved.
        roles: roles that the student's tokenizer does not name, as in `Vocabulary.from_tokenizer`.
        teacher_roles: the same for the teacher's; of several by name.
        **options: others of `transformers.Trainer`: `callbacks`, `optimizers`.

    Raises:
        ValueError: a tokenizer cannot be read exactly, or has no end of sequence that its model has a row
            for; a model has no linear head, or the student adapters that would not be trained or saved; a
            loss listens to a teacher that is not there, or to one with which it has no token in common; there
            are several GPUs in this one process.
    """

    args: DistillationConfig
    data_collator: Any  # a DistillationCollator
    eval_dataset: Any
    processing_class: Any
    # The loss is normalised over the whole accumulated batch, by our own counts.
    loss_is_scaled_for_ga = True

    def __init__(  # noqa: PLR0913 - the signature of Trainer, and a teacher
        self,
        model: Any,
        teacher: Any,
        args: DistillationConfig,
        *,
        processing_class: Any = None,
        teacher_processing_class: Any = None,
        peft_config: Any = None,
        roles: RolesLike | None = None,
        teacher_roles: RolesLike | Mapping[str, RolesLike] | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        **options: Any,
    ) -> None:
        """See the class."""
        if args.n_gpu > 1:
            raise ValueError(
                f"{args.n_gpu} GPUs in one process: start one process a GPU, with accelerate launch"
            )
        named_teachers = _by_name(teacher)
        processing_class = tokenizer_of(processing_class, model)
        tokenizers = {
            name: tokenizer_of(_of(teacher_processing_class, name), one)
            for name, one in named_teachers.items()
        }
        model = ready_student(model, args.device, args.model_init_kwargs, peft_config)
        self.teachers: Mapping[str, Any] = {
            name: ready_teacher(one, args.device, _options_of(args.teacher_model_init_kwargs, name, teacher))
            for name, one in named_teachers.items()
        }
        side = _side(STUDENT, model, processing_class, roles, args)
        sides = {
            name: _side(name, one, tokenizers[name], _of(teacher_roles, name), args)
            for name, one in self.teachers.items()
        }
        aligners = {name: Aligner(one.vocabulary, side.vocabulary) for name, one in sides.items()}
        head = head_of(model, side.vocabulary)
        self._models = {
            name: _teacher_model(one, sides[name], side, aligners[name], args.device)
            for name, one in self.teachers.items()
        }
        objective = Objective(args.weighted(), head, self._models)
        _refuse_narrow_embeddings(objective, model, head)
        self._needs = {name: objective.needs.get(name, Needs()) for name in self.teachers}
        collator = DistillationCollator(
            side,
            {name: TeacherSide(one, aligners[name], self._needs[name]) for name, one in sides.items()},
        )
        for name, rows in _data_sets(train_dataset, eval_dataset):
            collator.refuse(rows, name)
        super().__init__(
            model=DistillationModel(model, head, objective),
            args=args,
            data_collator=cast("Any", collator),
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            **options,
        )
        self._reduction = Reduction({})
        self._noted: dict[str, Tensor] = {}
        self._over: dict[str, str] = {}
        self._terms: set[str] = set()

    @property
    def terms(self) -> list[str]:
        """The names of the terms that it has seen, the cross-entropy first."""
        return [name for name in self._over if name in self._terms]

    @property
    def student(self) -> Any:
        """The model that is trained, without what it is trained with."""
        return self._whole().student

    def _whole(self) -> DistillationModel:
        whole: DistillationModel = self.accelerator.unwrap_model(self.model)
        return whole

    # ---- One step ----------------------------------------------------------------------------------------

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Any]:
        """The micro-batches of one optimizer step; counts what its terms are divided by."""
        batches: list[Collated] = list(itertools.islice(epoch_iterator, num_batches))
        each = [batch.places.counts() for batch in batches]
        names = list(each[0]) if each else []
        numbers = [len(each), *(sum(counts[name] for counts in each) for name in names)]
        total = self._over_processes(torch.tensor(numbers, device=device)).tolist()
        self._reduction = Reduction(dict(zip(names, total[1:], strict=True)), max(total[0], 1))
        return batches, None

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Any,
        return_outputs: bool = False,
        num_items_in_batch: Any = None,  # noqa: ARG002 - counts student labels only
    ) -> Any:
        """The loss of one micro-batch of the step that `get_batch_samples` began.

        Raises:
            FloatingPointError: it is not finite.
        """
        collated: Collated = inputs
        teachers = self._spoken(collated)
        parts = model(collated, teachers, self._reduction, step=self.state.global_step)
        self._refuse_not_finite(parts.sums)
        self._over.update(parts.over)
        self._terms.update(parts.sums)
        self._note({**parts.sums, **parts.counts}, collated)
        # Gradients are averaged over processes, and the counts are of all of them.
        loss = parts.loss * self.accelerator.num_processes
        return (loss, parts) if return_outputs else loss

    @torch.no_grad()
    def _spoken(self, collated: Collated) -> dict[str, Teacher]:
        """The teachers that a loss listens to, where they speak."""
        spoken = {}
        for name, teacher in self.teachers.items():
            if self._needs[name].teacher:
                tokens = collated.teachers[name]
                states = hidden_states(teacher, tokens.input_ids, tokens.attention_mask)
                spoken[name] = collated.places.of_teacher(
                    name, states, self._models[name], inputs=tokens.input_ids
                )
        return spoken

    def floating_point_ops(self, inputs: Any) -> int:  # noqa: ARG002 - the signature of Trainer
        """0: what transformers estimates of one model would be wrong of two."""
        return 0

    def _track_num_input_tokens(self, inputs: Any) -> None:
        """Counts the student's, which Trainer looks for in a dictionary."""
        super()._track_num_input_tokens(vars(inputs.student))  # type: ignore[no-untyped-call]

    def _refuse_not_finite(self, terms: Mapping[str, Tensor]) -> None:
        broken = [name for name, value in terms.items() if not torch.isfinite(value)]
        if broken:
            raise FloatingPointError(
                f"step {self.state.global_step}: {', '.join(broken)} is not finite; the weights are those "
                "of the step before. Lower the learning rate, or train in float32 or bf16"
            )

    # ---- The optimizer -----------------------------------------------------------------------------------

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """The optimizer; what is trained beside the student has its own rate and no weight decay."""
        optimizer: torch.optim.Optimizer = super().create_optimizer(model)
        groups = self._groups_beside(optimizer)
        if len(optimizer.param_groups) == _GROUPS:
            own = {id(parameter) for group in groups for parameter in group["params"]}
            for group in optimizer.param_groups:
                group["params"] = [one for one in group["params"] if id(one) not in own]
            for group in groups:
                optimizer.add_param_group(group)
        return optimizer

    def _groups_beside(self, optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
        """Projectors and what matches keys and queries; those that play against each other by themselves."""
        objective = self._whole().objective
        trained = [one for one in objective.parameters() if one.requires_grad]
        players = {id(one) for built in objective.built.values() for one in _players(built)}
        calm = [one for one in trained if id(one) not in players]
        against = [one for one in trained if id(one) in players]
        given = {"lr": self.args.projector_learning_rate, "weight_decay": 0.0}
        more = {"betas": _ADVERSARIAL_BETAS} if "betas" in optimizer.defaults else {}
        groups = [{"params": calm, **given}, {"params": against, **given, **more}]
        return [group for group in groups if group["params"]]

    # ---- What is logged ----------------------------------------------------------------------------------

    def _note(self, sums: Mapping[str, Tensor], batch: Collated) -> None:
        """Adds the sums of a micro-batch to those since the last log."""
        found: dict[str, Any] = {**sums, **batch.places.counts()}
        found |= {"student_cut": batch.cut[STUDENT], **{name: batch.cut[name] for name in _CUT}}
        for name, counted in batch.alignment_counts.items():
            found |= {named(name, item.name): counted[index] for index, item in enumerate(fields(Counts))}
            found[named(name, "teacher_cut")] = batch.cut[name]
        for name, value in found.items():
            added = torch.as_tensor(value).detach().double().cpu()
            self._noted[name] = self._noted[name] + added if name in self._noted else added

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Logs, and with a loss its terms and how the alignment went, since the last time."""
        if "loss" in logs and self._noted:
            names = sorted(self._noted)
            totals = self._over_processes(torch.stack([self._noted[name] for name in names]))
            self._noted = {}
            logs |= _per_item(dict(zip(names, totals.tolist(), strict=True)), self._over, list(self.teachers))
        super().log(logs, start_time)

    def _over_processes(self, numbers: Tensor) -> Tensor:
        """Their sum over all processes."""
        if self.accelerator.num_processes == 1:
            return numbers
        total: Tensor = self.accelerator.reduce(numbers.to(self.args.device), "sum")
        return total.cpu()

    # ---- Evaluation --------------------------------------------------------------------------------------

    def evaluate(
        self,
        eval_dataset: Any = None,
        ignore_keys: Any = None,  # noqa: ARG002 - the signature of Trainer
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Bits per byte of the student on held-out rows, see `dskd.train.evaluation`; logged."""
        rows = self.eval_dataset if eval_dataset is None else eval_dataset
        if rows is None:
            raise ValueError("there is nothing to evaluate: give eval_dataset")
        if isinstance(rows, dict):
            parts = [self.evaluate(part, None, f"{metric_key_prefix}_{name}") for name, part in rows.items()]
            return {name: value for part in parts for name, value in part.items()}
        side = self.data_collator.student
        found = held_out(self.student, side, rows, batch_size=self.args.per_device_eval_batch_size)
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in asdict(found).items()}
        # What a trainer chooses its best model by, unless told otherwise.
        metrics[f"{metric_key_prefix}_loss"] = found.bits_per_byte
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def predict(
        self,
        test_dataset: Any,
        ignore_keys: Any = None,  # noqa: ARG002 - the signature of Trainer
        metric_key_prefix: str = "test",
    ) -> PredictionOutput:
        """The student's likeliest ids and the labels, see `likeliest`, and what `evaluate` says."""
        size, model = self.args.per_device_eval_batch_size, self.student
        ids, labels = likeliest(model, self.data_collator, test_dataset, batch_size=size)
        found = held_out(model, self.data_collator.student, test_dataset, batch_size=size)
        metrics: Any = {f"{metric_key_prefix}_{name}": value for name, value in asdict(found).items()}
        self.control = self.callback_handler.on_predict(self.args, self.state, self.control, metrics)
        return PredictionOutput(predictions=ids, label_ids=labels, metrics=metrics)

    # ---- Files -------------------------------------------------------------------------------------------

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        """A student folder that `from_pretrained` opens, and what is trained beside it."""
        folder, whole = Path(output_dir or str(self.args.output_dir)), self._whole()
        state = whole.state_dict() if state_dict is None else state_dict
        of_student = {
            name.removeprefix("student."): value
            for name, value in state.items()
            if name.startswith("student.")
        }
        whole.student.save_pretrained(folder, state_dict=of_student, is_main_process=self.args.should_save)
        if self.args.should_save:
            self.processing_class.save_pretrained(folder)
            if len(whole.objective.built):
                beside = {short: state[name] for name, short in _beside(state).items()}
                save_projectors(folder / PROJECTORS_FILE, beside, **self._hashes())

    def refuse_merging(self) -> None:
        """Refuses at the start what `merge_adapters` would at the end.

        Raises:
            ValueError: the student has no adapters, is quantised, or is sharded over processes.
        """
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            raise ValueError("merge: the student is sharded; open the adapters with PEFT and merge there")
        refuse_merging(self.student)

    def merge_adapters(self) -> None:
        """Puts the adapters into the student, which is a plain model from here on: train it no further.

        Raises:
            ValueError: see `refuse_merging`.
        """
        self.refuse_merging()
        whole = self._whole()
        whole.student = merged(whole.student)

    def _hashes(self) -> dict[str, str]:
        """What projectors belong to."""
        collator = self.data_collator
        hashes = {name: one.side.vocabulary.content_hash for name, one in collator.teachers.items()}
        alone = hashes.get(ONLY_TEACHER)
        return {
            "teacher_hash": alone or " ".join(f"{name}={value}" for name, value in sorted(hashes.items())),
            "student_hash": collator.student.vocabulary.content_hash,
        }

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:  # noqa: ARG002
        """The student, and what is trained beside it, as they were saved.

        Raises:
            FileNotFoundError: the projectors are not there, or the student's adapters.
            ValueError: they belong to other vocabularies, to another objective, or to other adapters.
        """
        folder, whole = Path(resume_from_checkpoint), self._whole()
        if is_adapted(whole.student):
            load_adapters(whole.student, folder)
        else:
            saved = type(whole.student).from_pretrained(folder, dtype=whole.student.dtype)
            whole.student.load_state_dict(saved.state_dict())
        if len(whole.objective.built):
            saved = load_projectors(folder / PROJECTORS_FILE, **self._hashes())
            names = {short: name for name, short in _beside(whole.state_dict()).items()}
            if other := sorted(names.keys() ^ saved.keys()):
                raise ValueError(
                    f"{folder / PROJECTORS_FILE} and this run differ in {', '.join(other)}: resume with the "
                    "objective and the matching of that run, or start anew"
                )
            whole.load_state_dict({names[name]: value for name, value in saved.items()}, strict=False)

    def _load_best_model(self) -> None:
        self._load_from_checkpoint(str(self.state.best_model_checkpoint))


_CUT = ("shortened", "straddled")
"""What of a batch was cut on whichever side, see `Collated`; a teacher may not have these names."""

_GROUPS = 2
"""Those that Trainer makes: with and without weight decay."""

_ADVERSARIAL_BETAS = (0.5, 0.9)
"""Of Adam, for a discriminator and the queries that play against it.

With the usual ones they go around each other. On two normal distributions, steps 300 to 1,500 at a rate of
0.01, the discriminator is right about 44 to 81 % with the usual ones, 49 to 78 % with these for it alone, and
47 to 56 % with these for both; the distributions then come three times nearer.
"""


def _data_sets(train: Any, evaluated: Any) -> Iterator[tuple[str, Any]]:
    """Those that are given, with the names that errors call them."""
    yield "train_dataset", train
    if isinstance(evaluated, Mapping):
        yield from ((f"eval_dataset {name!r}", rows) for name, rows in evaluated.items())
    else:
        yield "eval_dataset", evaluated


def _by_name(given: Any) -> Mapping[str, Any]:
    """Of one teacher, or of several by name."""
    return given if isinstance(given, Mapping) and not hasattr(given, "parameters") else {ONLY_TEACHER: given}


def _options_of(given: Any, name: str, teachers: Any) -> Any:
    """Those of the teacher of this name: of several they may be by name, or for all of them."""
    by_name = given and isinstance(teachers, Mapping) and given.keys() <= teachers.keys()
    return given.get(name) if by_name else given


def _of(given: Any, name: str) -> Any:
    """What is given for the teacher of this name: to it alone, or to several by name."""
    if isinstance(given, Mapping) and name in given:
        return given[name]
    return given if name == ONLY_TEACHER else None


def _players(built: nn.Module) -> Sequence[nn.Parameter]:
    """What plays against each other, a discriminator say and what it judges; or nothing."""
    players: Sequence[nn.Parameter] = getattr(built, "players", list)()
    return players


def _beside(state: Mapping[str, Any]) -> dict[str, str]:
    """What losses have built, by its name in `DistillationModel`, and its name in the file.

    The file numbers what several losses have built by the number of the loss.
    """
    names = {name: name.removeprefix(_BUILT) for name in state if name.startswith(_BUILT)}
    if len({short.partition(".")[0] for short in names.values()}) == 1:
        return {name: short.partition(".")[2] for name, short in names.items()}
    return names


_BUILT = "objective.built."


def _side(name: str, model: Any, tokenizer: Any, roles: RolesLike | None, args: DistillationConfig) -> Side:
    """How rows become ids of a model.

    Raises:
        ValueError: its tokenizer cannot be read, or has no end of sequence; what is wrong with its template.
    """
    who = {STUDENT: "the student", ONLY_TEACHER: "the teacher"}.get(name, f"the teacher {name!r}")
    if tokenizer is None:
        raise ValueError(f"{who} has no tokenizer: give teacher_processing_class={{{name!r}: ...}}")
    if tokenizer.eos_token_id is None:
        raise ValueError(f"{who}'s tokenizer has no end of sequence; set its eos_token")
    size = _rows(who, model)
    _refuse_ids_of_every_row(who, tokenizer, size)
    template, options = args.template_of(name), cast("Any", args)  # checked there
    stops = [token for token in stops_of(model) if token in tokenizer.added_tokens_decoder]
    try:
        ends = _stops(tokenizer, template, options.chat_template_kwargs, stops)
        given = {key: set(value) for key, value in (roles or {}).items()}
        for literal in ends:
            given.setdefault(literal, set()).add("eos")
        vocabulary = Vocabulary.from_tokenizer(tokenizer, size=size, roles=given, cut=True)
    except ValueError as error:
        raise ValueError(f"{who}'s tokenizer: {error}") from error
    return Side(
        tokenizer,
        vocabulary,
        args.max_prompt_length,
        args.max_response_length,
        chat_template=template,
        template_kwargs=options.chat_template_kwargs,
        stop_ids=tuple(stops),
        add_bos=options.add_bos,
        train_on=options.train_on,
        parse_markers=args.parse_markers,
        system_role=options.system_role,
    )


def _stops(
    tokenizer: Any, template: str | None, kwargs: Mapping[str, Any], stops: Sequence[int]
) -> list[str]:
    """The literals that end a turn: of the generation configuration, and of the chat template."""
    literals = [str(tokenizer.added_tokens_decoder[token].content) for token in stops]
    if template is not None or tokenizer.chat_template:
        known = [*literals, tokenizer.eos_token]
        stop = Template(tokenizer, chat_template=template, kwargs=kwargs, stops=known).stop
        literals += [stop] if stop is not None and stop in tokenizer.get_vocab() else []
    return literals


def _refuse_ids_of_every_row(who: str, tokenizer: Any, size: int) -> None:
    """A row may be left out that has an id beyond the model's; not where every row begins or ends with it."""
    most = max([tokenizer.eos_token_id, *tokenizer("")["input_ids"]])
    if most >= size:
        raise ValueError(
            f"{who}'s tokenizer: every row would have its id {most}, and the model has ids 0 to {size - 1}; "
            "it is another model's, or the model needs resize_token_embeddings"
        )


def _rows(who: str, model: Any) -> int:
    """How many ids the model has: rows of its head."""
    try:
        return Head.of(model).size
    except ValueError as error:
        raise ValueError(f"{who}: {error}") from error


def _teacher_model(model: Any, teacher: Side, student: Side, aligner: Aligner, device: Any) -> TeacherModel:
    """What losses read of a teacher, on the student's device, wherever the teacher itself is."""
    head, embeddings = head_of(model, teacher.vocabulary), weight_of(model.get_input_embeddings())
    moved = head.to(device)
    if embeddings is not None:
        embeddings = moved.weight if embeddings is head.weight else embeddings.to(device)
    return TeacherModel(moved, with_stops(VocabularyMaps.of(aligner, device), teacher, student), embeddings)


def _refuse_narrow_embeddings(objective: Objective, student: Any, head: Head) -> None:
    width = student.get_input_embeddings().weight.shape[1]
    attends = any(needs.positions for needs in objective.needs.values())
    if attends and width != head.width:
        raise ValueError(
            f"the student's input embeddings are {width} wide and its states {head.width}: a loss that "
            "attends adds and compares them, and takes models where they agree"
        )


def _per_item(sums: dict[str, float], over: Mapping[str, str], teachers: Sequence[str]) -> dict[str, float]:
    """Terms per item of what they run over, and how the alignments went, from sums."""
    said = {name: sums[name] / max(sums[count], 1) for name, count in over.items() if name in sums}
    said |= {name: sums[name] for name in dict.fromkeys(("labels", *over.values())) if name in sums}
    for teacher in teachers:
        said |= _of_alignment(teacher, sums)
    return said | {name: sums[name] for name in ("student_cut", *_CUT) if sums[name]}


def _of_alignment(teacher: str, sums: Mapping[str, float]) -> dict[str, float]:
    """Of one teacher."""
    mine = {item.name: sums[named(teacher, item.name)] for item in fields(Counts)}
    counts = Counts(*(np.array([value], dtype=np.int64) for value in mine.values()))
    # Of several steps a ratio is the quotient of sums; these are the denominators.
    said = {name: mine[name] for name in ("student_tokens", "student_bytes")}
    said |= {"pairs": sums[named(teacher, "pairs")], "ratio": float(counts.ratio[0])}
    said |= {"coverage_teacher": float(counts.coverage.teacher[0])}
    said |= {"coverage_student": float(counts.coverage.student[0])}
    if cut := sums[named(teacher, "teacher_cut")]:
        said["teacher_cut"] = cut
    return {named(teacher, name): value for name, value in said.items()}
