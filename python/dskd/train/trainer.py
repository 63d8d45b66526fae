"""`transformers.Trainer` with a teacher beside it."""

from __future__ import annotations

from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import Trainer

from dskd.alignment import Aligner
from dskd.columns import Counts
from dskd.nn.losses import (
    AttentionProjectors,
    CrossModelAttentionLoss,
    DualSpaceLoss,
    KeyQueryMatching,
    SharedVocabularyLoss,
    VocabularyMaps,
)
from dskd.nn.projector_files import load_projectors, save_projectors
from dskd.nn.projectors import Projectors
from dskd.nn.reduction import Reduction
from dskd.train.collator import DistillationCollator, Side, positions_of
from dskd.train.evaluation import held_out
from dskd.train.model import DistillationModel, head_of, hidden_states
from dskd.vocabulary import Vocabulary

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from torch import Tensor, nn

    from dskd.nn.heads import Head
    from dskd.train.config import DistillationConfig
    from dskd.vocabulary import RolesLike

__all__ = ["PROJECTORS_FILE", "DistillationTrainer"]

PROJECTORS_FILE = "projectors.safetensors"
"""Beside the student's own files, which know nothing of it."""


class DistillationTrainer(Trainer):
    """Trains a student on rows of text, with a teacher whose tokenizer is another.

    Args:
        model: the student, a causal language model of transformers.
        teacher: the same; it is frozen and put in eval mode.
        args: see `DistillationConfig`.
        train_dataset: rows with `prompt` and `completion`, see `dskd.train.data`.
        eval_dataset: the same; `evaluate` says its bits per byte.
        processing_class: the student's tokenizer of transformers, fast.
        teacher_processing_class: the teacher's.
        roles: roles that the student's tokenizer does not name, as in `Vocabulary.from_tokenizer`.
        teacher_roles: the same for the teacher's.
        **options: others of `transformers.Trainer`: `callbacks`, `optimizers`.

    Raises:
        ValueError: a tokenizer cannot be read exactly, has no end of sequence, or defines more ids than its
            model has; a model has no linear head; there are several GPUs in this one process.
    """

    args: DistillationConfig
    data_collator: DistillationCollator
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
        processing_class: Any,
        teacher_processing_class: Any,
        roles: RolesLike | None = None,
        teacher_roles: RolesLike | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        **options: Any,
    ) -> None:
        """See the class."""
        if args.n_gpu > 1:
            raise ValueError(
                f"{args.n_gpu} GPUs in one process: start one process a GPU, with accelerate launch"
            )
        teacher.requires_grad_(False).eval().to(args.device)
        model.to(args.device)
        collator = _collator(
            (teacher, teacher_processing_class, teacher_roles), (model, processing_class, roles), args
        )
        heads = head_of(teacher, collator.teacher.vocabulary), head_of(model, collator.student.vocabulary)
        embeddings = [one.get_input_embeddings().weight for one in (teacher, model)]
        loss = _loss(args, *heads, collator.aligner, [one.shape[1] for one in embeddings])
        super().__init__(
            model=DistillationModel(model, heads[1], heads[0], loss, embeddings[0]),
            args=args,
            data_collator=collator,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            **options,
        )
        self.teacher = teacher
        self._reduction = Reduction(0, 0)
        self._refresh = False
        self._noted: dict[str, Tensor] = {}

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
        batches, items = super().get_batch_samples(epoch_iterator, num_batches, device)
        names = ("labels", "paired", "teacher_labels")
        counts = [sum(len(batch[name]) for batch in batches) for name in names]
        labels, pairs, teacher_labels = self._over_processes(torch.tensor(counts)).tolist()
        alpha = 0.0 if self._whole().loss is None else self.args.alpha
        self._reduction = Reduction(labels, pairs, alpha, teacher_labels)
        self._refresh = self.state.global_step % self.args.steps_between_solutions == 0
        return batches, items

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Mapping[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,  # noqa: ARG002 - counts student labels only
    ) -> Any:
        """The loss of one micro-batch of the step that `get_batch_samples` began.

        Raises:
            FloatingPointError: it is not finite.
        """
        parts = model(inputs, self._teacher_hidden(inputs), self._reduction, refresh=self._refresh)
        self._refresh = False
        self._refuse_not_finite(parts.sums)
        self._note({**parts.sums, **parts.counts}, inputs)
        # Gradients are averaged over processes, and the counts are of all of them.
        loss = parts.loss * self.accelerator.num_processes
        return (loss, parts) if return_outputs else loss

    @torch.no_grad()
    def _teacher_hidden(self, batch: Mapping[str, Tensor]) -> Tensor | None:
        """The teacher's states `[.., D]` where the loss needs them."""
        whole = self._whole()
        if whole.loss is None:
            return None
        states = hidden_states(self.teacher, batch["teacher_input_ids"], batch["teacher_attention_mask"])
        return whole.of_teacher(positions_of(batch), states)

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
        loss = self._whole().loss
        trained = [] if loss is None else [one for one in loss.parameters() if one.requires_grad]
        players = {id(one) for one in _players(loss)}
        calm = [one for one in trained if id(one) not in players]
        against = [one for one in trained if id(one) in players]
        given = {"lr": self.args.projector_learning_rate, "weight_decay": 0.0}
        more = {"betas": _ADVERSARIAL_BETAS} if "betas" in optimizer.defaults else {}
        groups = [{"params": calm, **given}, {"params": against, **given, **more}]
        return [group for group in groups if group["params"]]

    # ---- What is logged ----------------------------------------------------------------------------------

    def _note(self, sums: Mapping[str, Tensor], batch: Mapping[str, Tensor]) -> None:
        """Adds the sums of a micro-batch to those since the last log."""
        counted = {item.name: batch["alignment_counts"][index] for index, item in enumerate(fields(Counts))}
        more = {"labels": len(batch["labels"]), "pairs": len(batch["paired"])}
        more["teacher_labels"] = len(batch["teacher_labels"])
        cut = {"teacher_cut": batch["cut"][0], "student_cut": batch["cut"][1]}
        for name, value in {**sums, **counted, **more, **cut}.items():
            added = torch.as_tensor(value).detach().double()
            self._noted[name] = self._noted[name] + added if name in self._noted else added

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Logs, and with a loss its terms and how the alignment went, since the last time."""
        if "loss" in logs and self._noted:
            names = sorted(self._noted)
            totals = self._over_processes(torch.stack([self._noted[name].cpu() for name in names]))
            self._noted = {}
            over = getattr(self._whole().loss, "over", _OVER)
            logs |= _per_item(dict(zip(names, totals.tolist(), strict=True)), over)
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
            if whole.projectors is not None:
                beside = {_beside(name): value for name, value in state.items() if name.startswith("loss.")}
                save_projectors(folder / PROJECTORS_FILE, beside, **self._hashes())

    def _hashes(self) -> dict[str, str]:
        """What projectors belong to."""
        sides = {"teacher": self.data_collator.teacher, "student": self.data_collator.student}
        return {f"{name}_hash": side.vocabulary.content_hash for name, side in sides.items()}

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:  # noqa: ARG002
        """The student, and what is trained beside it, as they were saved.

        Raises:
            FileNotFoundError: the projectors are not there.
            ValueError: they belong to other vocabularies, or to another objective.
        """
        folder, whole = Path(resume_from_checkpoint), self._whole()
        saved = type(whole.student).from_pretrained(folder, dtype=whole.student.dtype)
        whole.student.load_state_dict(saved.state_dict())
        if whole.projectors is not None:
            saved = load_projectors(folder / PROJECTORS_FILE, **self._hashes())
            names = {_beside(name): name for name in whole.state_dict() if name.startswith("loss.")}
            if other := sorted(names.keys() ^ saved.keys()):
                raise ValueError(
                    f"{folder / PROJECTORS_FILE} and this run differ in {', '.join(other)}: resume with the "
                    "objective and the matching of that run, or start anew"
                )
            whole.load_state_dict({names[name]: value for name, value in saved.items()}, strict=False)

    def _load_best_model(self) -> None:
        self._load_from_checkpoint(str(self.state.best_model_checkpoint))


_GROUPS = 2
"""Those that Trainer makes: with and without weight decay."""

_ADVERSARIAL_BETAS = (0.5, 0.9)
"""Of Adam, for a discriminator and the queries that play against it.

With the usual ones they go around each other. On two normal distributions, steps 300 to 1,500 at a rate of
0.01, the discriminator is right about 44 to 81 % with the usual ones, 49 to 78 % with these for it alone, and
47 to 56 % with these for both; the distributions then come three times nearer.
"""

_OVER = {
    "cross_entropy": "labels",
    **dict.fromkeys(
        ("t2s_ce", "t2s_kl", "t2s_kd", "s2t_kd", "shared_kd", "unmapped", "agreed", "gated"), "pairs"
    ),
}
"""What a term or a count is a share of, where the loss has no `over` that says it."""


def _players(loss: nn.Module | None) -> list[nn.Parameter]:
    """A discriminator, and the projector of queries that it is trained against; or none."""
    if not isinstance(loss, CrossModelAttentionLoss) or loss.matching is None:
        return []
    if loss.matching.variant != "adversarial":
        return []
    return [*loss.matching.parameters(), *loss.projectors.query.parameters()]


def _beside(name: str) -> str:
    """The name in the file of what `DistillationModel` holds as `loss.projectors.X`, or `loss.X`."""
    return name.removeprefix("loss.").removeprefix("projectors.")


def _collator(
    teacher: tuple[Any, Any, RolesLike | None],
    student: tuple[Any, Any, RolesLike | None],
    args: DistillationConfig,
) -> DistillationCollator:
    sides = _side("teacher", *teacher, args), _side("student", *student, args)
    return DistillationCollator(*sides, Aligner(sides[0].vocabulary, sides[1].vocabulary))


def _side(name: str, model: Any, tokenizer: Any, roles: RolesLike | None, args: DistillationConfig) -> Side:
    if tokenizer.eos_token_id is None:
        raise ValueError(f"the {name}'s tokenizer has no end of sequence; set its eos_token")
    size = model.get_output_embeddings().weight.shape[0]
    try:
        vocabulary = Vocabulary.from_tokenizer(tokenizer, size=size, roles=roles)
    except ValueError as error:
        raise ValueError(f"the {name}'s tokenizer: {error}") from error
    return Side(tokenizer, vocabulary, args.max_prompt_length, args.max_response_length)


def _loss(
    args: DistillationConfig, teacher: Head, student: Head, aligner: Aligner, embedded: Sequence[int]
) -> nn.Module | None:
    """What the objective needs; none for cross-entropy alone.

    `embedded` are the widths of the input embeddings of the teacher and of the student.
    """
    if args.objective == "sft":
        return None
    if args.objective == "cross_model_attention":
        return _attention(args, teacher, student, embedded)
    device, mapped = student.weight.device, aligner.vocabulary_map
    overlap = torch.tensor(mapped.overlap, device=device)
    if args.objective == "shared_vocabulary":
        return SharedVocabularyLoss(overlap, args.shared_vocabulary_options())
    projectors = Projectors(teacher.weight, student.weight, overlap, **args.projector_options())
    options = args.dual_space_options()
    if not options.projects:
        projectors.teacher_to_student.requires_grad_(False)
    if options.spaces == "student":
        projectors.student_to_teacher.requires_grad_(False)
    to_student = torch.tensor(mapped.teacher_to_student, device=device)
    maps = VocabularyMaps(to_student=to_student, overlap=overlap)
    return DualSpaceLoss(projectors, maps, options)


def _attention(args: DistillationConfig, teacher: Head, student: Head, embedded: Sequence[int]) -> nn.Module:
    """Cross-model attention, with what matches its keys and queries."""
    widths = [head.weight.shape[1] for head in (teacher, student)]
    for name, width, of_embeddings in zip(("teacher", "student"), widths, embedded, strict=True):
        if width != of_embeddings:
            raise ValueError(
                f"the {name}'s input embeddings are {of_embeddings} wide and its states {width}: "
                "cross_model_attention adds and compares them, and takes models where they agree"
            )
    projectors = AttentionProjectors(*widths)
    matching = None
    if args.matching != "none":
        matching = KeyQueryMatching(2 * widths[0], variant=args.matching, rate=args.kq_rate)
    options = args.cross_model_attention_options()
    return CrossModelAttentionLoss(projectors, options, matching=matching).to(student.weight.device)


def _per_item(sums: dict[str, float], over: Mapping[str, str]) -> dict[str, float]:
    """Terms per item of what they run over, and the ratios of the alignment, from sums."""
    counts = Counts(*(np.array([sums[item.name]], dtype=np.int64) for item in fields(Counts)))
    said = {name: sums[name] / max(sums[field], 1) for name, field in over.items() if name in sums}
    said |= {name: sums[name] for name in ("labels", "pairs")}
    if "teacher_labels" in over.values():
        said |= {"teacher_labels": sums["teacher_labels"]}
    # Of several steps a ratio is the quotient of sums; these are the denominators.
    said |= {name: sums[name] for name in ("student_tokens", "student_bytes")}
    said |= {"ratio": float(counts.ratio[0])}
    said |= {"coverage_teacher": float(counts.coverage.teacher[0])}
    said |= {"coverage_student": float(counts.coverage.student[0])}
    return said | {name: sums[name] for name in ("teacher_cut", "student_cut") if sums[name]}
