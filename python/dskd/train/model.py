"""The one module that is trained: the student, and the loss with its projectors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import distributed, nn

from dskd.nn.heads import Head
from dskd.nn.linear import refuse_sharded
from dskd.nn.losses import AttendedSide, AttendedStates, CrossModelAttentionLoss, fused_cross_entropy
from dskd.nn.positions import AlignedStates
from dskd.nn.projectors import Projectors
from dskd.nn.teacher_statistics import probability_sums
from dskd.train.collator import positions_of
from dskd.vocabulary import Kind

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from dskd.nn.losses import AttentionProjectors
    from dskd.nn.positions import Positions
    from dskd.nn.reduction import LossParts, Reduction
    from dskd.vocabulary import Vocabulary

__all__ = ["DistillationModel", "head_of", "hidden_states"]


class DistillationModel(nn.Module):
    """A student and what it is distilled with, prepared, moved and optimised together.

    Losses are computed inside `forward`, where a sharded head is whole.

    Args:
        student: a causal language model of transformers.
        student_head: its head.
        teacher_head: the teacher's; the teacher itself stays outside.
        loss: a module of `dskd.nn` over aligned or attended states; None for cross-entropy alone.
        teacher_embeddings: `[V_t, D]`, the teacher's input embeddings, for a loss over attended states.
    """

    accepts_loss_kwargs = False

    def __init__(
        self,
        student: Any,
        student_head: Head,
        teacher_head: Head,
        loss: nn.Module | None,
        teacher_embeddings: Tensor | None = None,
    ) -> None:
        """See the class."""
        super().__init__()
        self.student = student
        self.loss = loss
        self._unreachable = student_head.unreachable
        self.teacher_head = teacher_head
        # No parameter of this module: the teacher's own.
        self._teacher_embeddings = None if teacher_embeddings is None else teacher_embeddings.detach()

    @property
    def config(self) -> Any:
        """The student's configuration."""
        return self.student.config

    @property
    def projectors(self) -> Projectors | AttentionProjectors | None:
        """The projectors, where the loss has some."""
        return getattr(self.loss, "projectors", None)

    @property
    def attends(self) -> bool:
        """Whether the loss is over the supervised positions of both models, not over pairs."""
        return isinstance(self.loss, CrossModelAttentionLoss)

    def of_teacher(self, positions: Positions, hidden_states: Tensor) -> Tensor:
        """What the loss needs of the teacher's states `[batch, columns, D]`."""
        if self.attends:
            return positions.of_attended(hidden_states)
        return positions.of_teacher(hidden_states)

    def gradient_checkpointing_enable(self, **options: Any) -> None:
        """Of the student."""
        self.student.gradient_checkpointing_enable(**options)

    def forward(
        self,
        batch: Mapping[str, Tensor],
        teacher_hidden: Tensor | None,
        reduction: Reduction,
        *,
        refresh: bool = False,
    ) -> LossParts:
        """The loss of a micro-batch: cross-entropy over the labels, and the terms of the loss.

        Args:
            batch: of `DistillationCollator`.
            teacher_hidden: `of_teacher`; None where there is no loss.
            reduction: of the step.
            refresh: whether projectors are solved again before.

        Raises:
            TypeError: the student's head is sharded here: with FSDP2, shard this module, not its parts alone.
        """
        head = Head.of(self.student, self._unreachable)
        refuse_sharded(head)
        positions = positions_of(batch)
        states = hidden_states(self.student, batch["student_input_ids"], batch["student_attention_mask"])
        supervised = positions.of_student(states)
        if self.loss is None or teacher_hidden is None:
            return fused_cross_entropy(supervised, head, positions.labels, reduction=reduction)
        if refresh and isinstance(self.projectors, Projectors):
            self._refresh(self.projectors, head, teacher_hidden)
        given = (positions, supervised, head, teacher_hidden)
        made = self._attended(batch, *given) if self.attends else self._aligned(*given)
        parts: LossParts = self.loss(made, reduction)
        return parts

    def _aligned(
        self, positions: Positions, student_hidden: Tensor, head: Head, teacher_hidden: Tensor
    ) -> AlignedStates:
        """Both models at the pairs."""
        return AlignedStates(
            student_hidden=student_hidden,
            labels=positions.labels,
            paired=positions.paired,
            teacher_hidden=teacher_hidden,
            teacher_head=self.teacher_head,
            student_head=head,
        )

    def _attended(
        self,
        batch: Mapping[str, Tensor],
        positions: Positions,
        student_hidden: Tensor,
        head: Head,
        teacher_hidden: Tensor,
    ) -> AttendedStates:
        """Both models at their own supervised positions."""
        student = AttendedSide(
            row=positions.row,
            hidden=student_hidden,
            inputs=positions.of_student(batch["student_input_ids"]),
            labels=positions.labels,
            embeddings=self.student.get_input_embeddings().weight,
            head=head,
        )
        if self._teacher_embeddings is None:
            raise ValueError("a loss over attended states needs teacher_embeddings=")
        teacher = AttendedSide(
            row=positions.attended_row,
            hidden=teacher_hidden,
            inputs=positions.of_attended(batch["teacher_input_ids"]),
            labels=positions.teacher_labels,
            embeddings=self._teacher_embeddings,
            head=self.teacher_head,
        )
        return AttendedStates(teacher, student)

    def _refresh(self, projectors: Projectors, head: Head, teacher_hidden: Tensor) -> None:
        """Solves projectors again, weighted by what the teacher expects where they are."""
        if projectors.observes:
            sums = probability_sums(self.teacher_head, teacher_hidden)
            count = sums.new_tensor([float(len(teacher_hidden))])
            if distributed.is_available() and distributed.is_initialized():
                distributed.all_reduce(sums)
                distributed.all_reduce(count)
            projectors.observe(sums, int(count))
        projectors.refresh(self.teacher_head.weight, head.weight)


def hidden_states(model: Any, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """`[batch, columns, d]`: what the model's head is given, after its final norm."""
    outputs = model.base_model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)
    states: Tensor = outputs.last_hidden_state
    return states


def head_of(model: Any, vocabulary: Vocabulary) -> Head:
    """The head of a model, checked: it makes of the model's states what the model makes of them.

    Args:
        model: a causal language model of transformers.
        vocabulary: of its tokenizer, with `size=model.config.vocab_size`; slots that the tokenizer does not
            define are unreachable.

    Raises:
        ValueError: the model's logits are made in a way that `Head` does not know.
    """
    device = model.get_output_embeddings().weight.device
    dead = [
        vocabulary.kind(token) == Kind.OPAQUE and token not in vocabulary.roles
        for token in range(vocabulary.size)
    ]
    head = Head.of(model, torch.tensor(dead, device=device) if any(dead) else None)
    ids = torch.arange(8, device=device)[None] % vocabulary.size
    was_training = model.training
    model.eval()
    with torch.no_grad():
        expected = model(input_ids=ids, use_cache=False).logits[0].float()
        found = head.logits(hidden_states(model, ids, torch.ones_like(ids))[0])
    model.train(was_training)
    gap = (found - expected).abs().max() if found.shape == expected.shape else torch.tensor(torch.inf)
    if not gap <= 0.02 * expected.abs().max().clamp(min=1):
        raise ValueError(
            f"the logits of {type(model).__name__} are not those of a linear head on its last hidden state "
            "(with its configuration's logit_scale, logits_scaling, final_logit_softcapping): not supported"
        )
    return head
